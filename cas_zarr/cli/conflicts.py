"""How conflicts are told: a line each, or as JSON, and exit code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of, format_cid
from cas_zarr.cli.output import box_text, print_json, printable
from cas_zarr.errors import ConflictError, NotFoundError
from cas_zarr.repository.describe import NodeInfo, describe
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import root_of
from cas_zarr.tree.conflicts import Conflict
from cas_zarr.tree.fields import Side
from cas_zarr.tree.node import Value

__all__ = ["conflict_json", "conflict_line", "conflicts_told"]

_SHOWN = 100
_SIDES: tuple[Side, ...] = ("base", "ours", "theirs")


@contextmanager
def conflicts_told(repository: Repository, branch: str, as_json: bool) -> Iterator[None]:
    """Tell the conflicts of an error, each with the box of the array's index that it is about.

    The error itself goes on, unless it is part of the JSON document.

    Parameters
    ----------
    repository : Repository
    branch : str
        The one that was to get changes; its arrays say what boxes chunks are.
    as_json : bool
    """
    try:
        yield
    except ConflictError as error:
        conflicts = error.conflicts
        root = root_of(repository.blocks, repository.refs.branch(branch))
        nodes = _Nodes(repository, root)
        if as_json:
            print_json(
                {
                    "error": str(error),
                    "conflicts": [conflict_json(one, nodes.find(one.path)) for one in conflicts],
                }
            )
            click.get_current_context().exit(1)
        for one in conflicts[:_SHOWN]:
            click.echo(f"conflict: {conflict_line(one, nodes.find(one.path))}")
        if len(conflicts) > _SHOWN:
            click.echo(f"and {len(conflicts) - _SHOWN:,} more; --json has all")
        raise


def conflict_line(conflict: Conflict, node: NodeInfo | None) -> str:
    """Return a conflict as a line: the key, the box of a chunk, and the three CIDs."""
    where = printable(conflict.key or "/")
    box = _box_of(conflict, node)
    if box is not None:
        where = f"{where} {box_text(box)}"
    if conflict.kind in ("node", "layout"):
        return f"{where}: {printable(conflict.reason)}"
    sides = ", ".join(f"{side} {_cid_of(conflict.of(side)) or 'none'}" for side in _SIDES)
    why = f"; {printable(conflict.reason)}" if conflict.kind == "document" else ""
    return f"{where}: {sides}{why}"


def conflict_json(conflict: Conflict, node: NodeInfo | None) -> dict[str, Any]:
    """Return a conflict as JSON values."""
    box = _box_of(conflict, node)
    return {
        "path": conflict.path,
        "key": conflict.key,
        "kind": conflict.kind,
        "name": conflict.name,
        "coordinates": conflict.coordinates,
        "box": None if box is None else [list(side) for side in box],
        **{side: _cid_of(conflict.of(side)) for side in _SIDES},
        "reason": conflict.reason,
    }


class _Nodes:
    """Finds the nodes of a root, each once; None where there is none."""

    def __init__(self, repository: Repository, root: CidBytes | None) -> None:
        self._blocks = repository.blocks
        self._root = root
        self._found: dict[str, NodeInfo | None] = {}

    def find(self, path: str) -> NodeInfo | None:
        if path not in self._found:
            try:
                self._found[path] = describe(self._blocks, self._root, path)
            except NotFoundError:
                self._found[path] = None
        return self._found[path]


def _box_of(conflict: Conflict, node: NodeInfo | None) -> tuple[tuple[int, int], ...] | None:
    """Return the box of the array's index that a chunk holds."""
    coordinates = conflict.coordinates
    if coordinates is None or node is None or node.shape is None or node.chunk_shape is None:
        return None
    if len(coordinates) != len(node.shape):
        return None
    return tuple(
        (place * chunk, max(min((place + 1) * chunk, length), place * chunk))
        for place, chunk, length in zip(coordinates, node.chunk_shape, node.shape, strict=True)
    )


def _cid_of(value: Value | bytes | None) -> str | None:
    """Return the CID of one side of a conflict: of a value, or of the bytes of a document."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return format_cid(cid_of(RAW, BLAKE3, value))
    return format_cid(value.cid)
