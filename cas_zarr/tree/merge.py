"""Uniting what two writers did since a common version.

Two changes conflict where both set the same key to different values, and where one changed
something under a node that the other deleted, or whose layout (any of its documents, but for the
attributes) the other changed. All else is united.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cas_zarr.cid import CidBytes
from cas_zarr.errors import ConflictError
from cas_zarr.tree.apply import apply
from cas_zarr.tree.changes import Changes, pack_value
from cas_zarr.tree.diff import ChunkChanges, NodeChange, diff
from cas_zarr.tree.keys import chunk_names, parse_form
from cas_zarr.tree.node import Node, Root, Value
from cas_zarr.tree.values import is_file
from cas_zarr.tree.view import TreeView

__all__ = ["changes_of", "merge"]

_SHOWN = 5
_NOT_LAYOUT = frozenset({".zattrs", ".zmetadata"})


def merge(base: TreeView, ours: TreeView, theirs: TreeView) -> Root:
    """Return the root that has what changed from `base` to `ours` and to `theirs`.

    Raises
    ------
    ConflictError
        If the two overlap; it names what.
    """
    mine = {change.path: change for change in diff(base, ours)}
    other = {change.path: change for change in diff(base, theirs)}
    if not other:
        return ours.root
    if not mine:
        return theirs.root
    conflicts = _conflicts(base, ours, theirs, mine, other)
    if conflicts:
        more = f" and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
        raise ConflictError(
            f"another writer changed the same thing: {'; '.join(conflicts[:_SHOWN])}{more}; open "
            "the branch anew and apply your change to what is there now"
        )
    return apply(theirs, changes_of(ours, list(mine.values())))


def changes_of(after: TreeView, differences: list[NodeChange]) -> Changes:
    """Return differences as changes that can be applied to another version.

    Parameters
    ----------
    after : TreeView
        The version that the differences lead to.
    differences : list of NodeChange
    """
    changes = Changes()
    for change in differences:
        base = f"{change.path}/" if change.path else ""
        for name, (_, document) in change.docs.items():
            if document is None:
                changes.delete(base + name)
            else:
                changes.set_document(base + name, after.document_bytes(document))
        for name, (_, value) in change.keys.items():
            _bind(changes, base + name, value)
        layout = after.layout(change.path) if change.chunks else None
        for chunks in change.chunks:
            kind = parse_form(chunks.form)[0]
            removed = chunks.removed.tolist()
            for row, name in enumerate(chunk_names(kind, chunks.coordinates)):
                key = base + name
                value = None
                if not removed[row]:
                    cid = CidBytes(chunks.after[row].tobytes())
                    value = Value(cid, int(chunks.sizes_after[row]))
                _bind(changes, key, value)
                if value is not None and is_file(value.cid):
                    changes.layouts[key] = layout
    return changes


def _bind(changes: Changes, key: str, value: Value | None) -> None:
    if value is None:
        if changes.values.get(key) is None:  # else it has only moved to another tree
            changes.delete(key)
        return
    changes.set_value(key, pack_value(value.cid, value.size))
    if is_file(value.cid):
        changes.layouts[key] = None


def _conflicts(
    base: TreeView,
    ours: TreeView,
    theirs: TreeView,
    mine: dict[str, NodeChange],
    other: dict[str, NodeChange],
) -> list[str]:
    found = []
    for one, two in ((mine, other), (other, mine)):
        gone = {path for path, change in one.items() if change.status == "removed"}
        for path, change in two.items():
            if change.status != "removed":
                deleted = next((up for up in _at_and_above(path) if up in gone), None)
                if deleted is not None:
                    found.append(f"node {path!r} was changed where {deleted!r} was deleted")
    for path in sorted(mine.keys() & other.keys()):
        a, b = mine[path], other[path]
        for kind, pairs in (("document", (a.docs, b.docs)), ("key", (a.keys, b.keys))):
            found.extend(
                f"{kind} {name!r} of {path!r} was set twice"
                for name in sorted(pairs[0].keys() & pairs[1].keys())
                if pairs[0][name][1] != pairs[1][name][1]
            )
        for chunks in a.chunks:
            for others in b.chunks:
                if others.form == chunks.form:
                    found.extend(_overlap(path, chunks, others))
    for changes, writes in ((mine, other), (other, mine)):
        if found:
            break
        for path, change in writes.items():
            array = _array_of(base, path) if change.chunks or change.keys else None
            if array in changes and _layouts_differ(ours, theirs, array, changes[array]):
                found.append(f"the layout of {array!r} was changed while it was written to")
    return found


def _array_of(base: TreeView, path: str) -> str:
    """Return the array that a folder belongs to, or the path itself if it belongs to none."""
    owner = base.owner(path)
    return path if owner is None else owner


def _layouts_differ(ours: TreeView, theirs: TreeView, path: str, change: NodeChange) -> bool:
    """Tell whether the documents of a node that one side changed differ in more than attributes."""
    nodes = ours.node(path), theirs.node(path)
    return any(
        _layout_of(ours, nodes[0], name) != _layout_of(theirs, nodes[1], name)
        for name in change.docs
        if name not in _NOT_LAYOUT
    )


def _layout_of(view: TreeView, node: Node | None, name: str) -> Any:
    """Return a document of a node without its attributes; None if there is none."""
    if node is None or name not in node.docs:
        return None
    document = view.document_bytes(node.docs[name])
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        return document
    if isinstance(value, dict):
        value.pop("attributes", None)
        value.pop("consolidated_metadata", None)
    return value


def _overlap(path: str, a: ChunkChanges, b: ChunkChanges) -> list[str]:
    rows = {tuple(row): n for n, row in enumerate(b.coordinates.tolist())}
    out = []
    for n, row in enumerate(a.coordinates.tolist()):
        m = rows.get(tuple(row))
        if m is not None and not np.array_equal(a.after[n], b.after[m]):
            out.append(f"chunk {tuple(row)} of {path!r} was set twice")
    return out


def _at_and_above(path: str) -> list[str]:
    parts = path.split("/") if path else []
    return [*("/".join(parts[:n]) for n in range(len(parts), 0, -1)), ""]
