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

__all__ = ["conflict_json", "conflict_line", "conflicts_told"]

_SHOWN = 100
_SIDES = ("base", "ours", "theirs")


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


def conflict_line(conflict: Any, node: NodeInfo | None) -> str:
    """Return a conflict as a line: where, which chunk and box, and the three CIDs."""
    parts = [printable(conflict.path or "/"), conflict.kind, printable(str(conflict.name or ""))]
    box = _box_of(conflict, node)
    if box is not None:
        parts.append(box_text(box))
    sides = [f"{side} {_cid_of(getattr(conflict, side)) or 'none'}" for side in _SIDES]
    text = " ".join(part for part in parts if part)
    return f"{text}: {', '.join(sides)}; {printable(conflict.reason)}"


def conflict_json(conflict: Any, node: NodeInfo | None) -> dict[str, Any]:
    """Return a conflict as JSON values."""
    coordinates = _coordinates(conflict)
    box = _box_of(conflict, node)
    return {
        "path": conflict.path,
        "kind": conflict.kind,
        "name": conflict.name,
        "coordinates": coordinates,
        "box": None if box is None else [list(side) for side in box],
        **{side: _cid_of(getattr(conflict, side)) for side in _SIDES},
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


def _coordinates(conflict: Any) -> list[int] | None:
    if conflict.coordinates is None:
        return None
    return [int(number) for number in conflict.coordinates]


def _box_of(conflict: Any, node: NodeInfo | None) -> tuple[tuple[int, int], ...] | None:
    """Return the box of the array's index that a chunk holds."""
    coordinates = _coordinates(conflict)
    if coordinates is None or node is None or node.shape is None or node.chunk_shape is None:
        return None
    if len(coordinates) != len(node.shape):
        return None
    return tuple(
        (place * chunk, max(min((place + 1) * chunk, length), place * chunk))
        for place, chunk, length in zip(coordinates, node.chunk_shape, node.shape, strict=True)
    )


def _cid_of(value: Any) -> str | None:
    """Return the CID of one side of a conflict: of a value, or of the bytes of a document."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return format_cid(cid_of(RAW, BLAKE3, value))
    return format_cid(value.cid)
