"""Consolidated metadata that nobody had to write.

The root document holds all metadata already, so what `zarr.consolidate_metadata` would have stored
is composed when someone reads it: inside a group's ``zarr.json`` in format 3, as ``.zmetadata`` in
format 2. It is never stored and never listed, and what a user consolidated is given as it is.

Source: `zarr.core.group.ConsolidatedMetadata` of zarr-python 3, which is not part of the Zarr
specification.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cas_zarr.mapping import CASMapping

__all__ = ["MAX_NODES", "Consolidation", "is_composed"]

MAX_NODES = 10_000
"""Nodes below a group up to which its consolidated metadata are composed.

Zarr makes an object of each, some 50 to 100 µs, when the group is opened: beyond this, opening a
group would cost seconds, and reading its members as they are asked for is quicker.
"""

_V3, _V2 = "zarr.json", ".zmetadata"
_KEPT = 8


def is_composed(key: str) -> bool:
    """Tell whether `key` is one whose value may be composed."""
    return key.endswith((_V3, _V2)) and key.rpartition("/")[2] in (_V3, _V2)


class Consolidation:
    """Consolidated metadata of the groups of a mapping.

    Parameters
    ----------
    mapping : CASMapping
        One for reading. If it is a fixed version, what was composed is kept for the next time.
    fixed : bool
        Whether it is.
    """

    def __init__(self, mapping: CASMapping, *, fixed: bool) -> None:
        self._mapping = mapping
        self._fixed = fixed
        self._composed: dict[str, bytes | None] = {}

    def get(self, key: str) -> bytes | None:
        """Return what a reader sees under a key that `is_composed`; None if nothing is there."""
        if key in self._composed:
            return self._composed[key]
        folder, _, name = key.rpartition("/")
        stored = self._read(key)
        value = stored
        if name == _V3 and stored is not None:
            value = self._version_3(folder, stored)
        elif name == _V2 and stored is None:
            value = self._version_2(folder)
        if self._fixed:
            if len(self._composed) >= _KEPT:
                self._composed.pop(next(iter(self._composed)))
            self._composed[key] = value
        return value

    def _version_3(self, folder: str, stored: bytes) -> bytes:
        group = _parse(stored)
        if not _is_group(group) or group.get("consolidated_metadata") is not None:
            return stored
        members: dict[str, Any] = {}
        ahead = [""]
        while ahead:
            for path in self._below(folder, ahead.pop()):
                data = self._read(_join(_join(folder, path), _V3))
                if data is None:  # no node, and zarr looks no further there
                    continue
                member = _parse(data)
                if _is_group(member):
                    member["consolidated_metadata"] = _inline({})
                    ahead.append(path)
                elif member.get("node_type") != "array":
                    return stored  # zarr would refuse all because of it
                members[path] = member
                if len(members) > MAX_NODES:
                    return stored
        group["consolidated_metadata"] = _inline(_in_order(members))
        return _encoded(group) or stored

    def _version_2(self, folder: str) -> bytes | None:
        documents: dict[str, Any] = {}
        if not self._add_version_2(documents, folder, ""):
            return None
        ahead = [""]
        while ahead:
            for path in self._below(folder, ahead.pop()):
                if self._add_version_2(documents, folder, path):
                    ahead.append(path)
                if len(documents) > 2 * MAX_NODES:
                    return None
        return _encoded({"metadata": documents, "zarr_consolidated_format": 1})

    def _add_version_2(self, documents: dict[str, Any], folder: str, path: str) -> bool:
        """Add the documents of a node, if it is one; tell whether it is a group."""
        base = _join(folder, path)
        kind = ".zarray"
        data = self._read(_join(base, kind))
        if data is None:
            kind = ".zgroup"
            data = self._read(_join(base, kind))
        node = _parse(data)
        if node.get("zarr_format") != 2:
            return False
        documents[_join(path, kind)] = node
        documents[_join(path, ".zattrs")] = _parse(self._read(_join(base, ".zattrs")))
        return kind == ".zgroup"

    def _below(self, folder: str, parent: str) -> Iterator[str]:
        """Yield the paths, relative to `folder`, of what lies below one of its nodes."""
        for name in self._mapping.list_folder(_join(folder, parent)):
            yield _join(parent, name)

    def _read(self, key: str) -> bytes | None:
        data = self._mapping.get_value(key)
        return None if data is None else bytes(data)


def _parse(data: bytes | None) -> dict[str, Any]:
    """Return a JSON object; an empty one if the bytes are none."""
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _encoded(value: dict[str, Any]) -> bytes | None:
    """Return JSON; None for what could just be read, and is too deep with the rest around it."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return None


def _is_group(document: dict[str, Any]) -> bool:
    return document.get("node_type") == "group" and document.get("zarr_format") == 3


def _inline(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": metadata}


def _in_order(members: dict[str, Any]) -> dict[str, Any]:
    # Some versions of zarr expect parents first, and siblings beside each other.
    return dict(sorted(members.items(), key=lambda item: (item[0].count("/"), item[0])))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
