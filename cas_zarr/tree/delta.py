"""Deltas: what one of several writers set and deleted since a root, to be sent and united.

Chunks are columns, 44 bytes and a code each, so that hundreds of thousands are sent and united in
a fraction of a second, and none of their pages is written before all of them are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import CidBytes
from cas_zarr.codecs.shardindex import ShardLayout
from cas_zarr.errors import ConflictError
from cas_zarr.tree.apply import ChunkEdit, apply
from cas_zarr.tree.changes import Changes, pack_value, unpack_value
from cas_zarr.tree.chunktree import chunk_table
from cas_zarr.tree.classify import Classifier, NodeEdit
from cas_zarr.tree.conflicts import Conflict
from cas_zarr.tree.descent import matches
from cas_zarr.tree.diff import diff
from cas_zarr.tree.keys import parse_form, split_key
from cas_zarr.tree.merge import changes_of, merge
from cas_zarr.tree.morton import Codes, coordinates_of
from cas_zarr.tree.node import Root, Value
from cas_zarr.tree.table import Table
from cas_zarr.tree.view import TreeView

__all__ = ["ChunkDelta", "Delta", "delta_between", "delta_of", "joined", "unite"]

_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class ChunkDelta:
    """Chunks of one tree that were set and deleted.

    Attributes
    ----------
    path, form : str
        The array, and which of its trees.
    codes, cids, sizes : arrays
        Of the chunks that were set, in any order: Morton codes, shape (n,); CIDs, shape (n, 36);
        bytes, shape (n,).
    deletes : array
        Codes of the chunks that were deleted.
    layout : ShardLayout or None
        The sharding that long values were cut for.
    """

    path: str
    form: str
    codes: Codes
    cids: NDArray[np.uint8]
    sizes: NDArray[np.uint64]
    deletes: Codes
    layout: ShardLayout | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What a writer set and deleted.

    Attributes
    ----------
    chunks : tuple of ChunkDelta
        Empty where documents changed too: then chunks are among the `values`.
    values, docs : dict of str to bytes or None
        Packed links and documents by key; None where it was deleted.
    layouts : dict of str to ShardLayout or None
        How long ones of the `values` were cut.
    cleared : frozenset of str
        Folders that were emptied first.
    """

    chunks: tuple[ChunkDelta, ...] = ()
    values: dict[str, bytes | None] = field(default_factory=dict)
    docs: dict[str, bytes | None] = field(default_factory=dict)
    layouts: dict[str, ShardLayout | None] = field(default_factory=dict)
    cleared: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.chunks or self.values or self.docs or self.cleared)

    @property
    def structural(self) -> bool:
        """Whether more than values changed, so that keys may belong elsewhere than before."""
        return bool(self.docs or self.cleared)

    def changes(self) -> Changes:
        """Return what is not in `chunks`."""
        changes = Changes()
        changes.values.update(self.values)
        changes.docs.update(self.docs)
        changes.layouts.update(self.layouts)
        changes.cleared = set(self.cleared)
        return changes


def delta_of(view: TreeView, changes: Changes) -> Delta:
    """Return changes of a version as a delta."""
    if changes.docs or changes.cleared:
        return Delta(
            values=dict(changes.values),
            docs=dict(changes.docs),
            layouts=dict(changes.layouts),
            cleared=frozenset(changes.cleared),
        )
    edit = NodeEdit()
    Classifier(view, changes).sort(dict(changes.values), edit)
    chunks: list[ChunkDelta] = []
    values: dict[str, bytes | None] = {}
    for path, node in _edits(edit):
        base = f"{path}/" if path else ""
        for name, value in node.keys.items():
            values[base + name] = None if value is None else pack_value(*value)
        for form, tree in node.trees.items():
            sets, deletes = tree.tables()
            layout = view.layout(path)
            chunks.append(
                ChunkDelta(path, form, sets.codes, sets.cids, sets.sizes, deletes, layout)
            )
    layouts = {key: changes.layouts[key] for key in values if key in changes.layouts}
    return Delta(tuple(chunks), values, layouts=layouts)


def delta_between(before: TreeView, after: TreeView) -> Delta:
    """Return what leads from one version to another as a delta."""
    return delta_of(before, changes_of(after, diff(before, after)))


def joined(deltas: Sequence[Delta]) -> list[Delta]:
    """Put deltas together for the way, as they are: `unite` finds what two of them set."""
    chunks = [
        ChunkDelta(
            path,
            form,
            _joined([part.codes for part in parts]),
            np.concatenate([part.cids for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            _joined([part.deletes for part in parts]),
            parts[0].layout,
        )
        for (path, form), parts in _by_tree(deltas).items()
    ]
    others = [replace(delta, chunks=()) for delta in deltas if delta.values or delta.structural]
    return [Delta(tuple(chunks)), *others] if chunks else others


def unite(view: TreeView, deltas: Sequence[Delta]) -> Root:
    """Return the root of a version with the deltas of several writers.

    Parameters
    ----------
    view : TreeView
        The version that all of them began with.
    deltas : sequence of Delta
        Their values are stored.

    Raises
    ------
    ConflictError
        If two of them set the same thing to different values, or one set what another deleted.
    """
    plain = [delta for delta in deltas if not delta.structural]
    conflicts: list[Conflict] = []
    changes = _united_values(plain, conflicts)
    edits = [_united_chunks(parts, conflicts) for parts in _by_tree(plain).values()]
    if conflicts:
        raise _written_twice(conflicts)
    root = apply(view, changes, edits) if changes or edits else view.root
    for delta in deltas:
        if delta.structural:
            theirs = TreeView(view.reader, apply(view, delta.changes()))
            root = merge(view, TreeView(view.reader, root), theirs).root
    return root


# -- many writers of one tree ----------------------------------------------------------------------


def _by_tree(deltas: Sequence[Delta]) -> dict[tuple[str, str], list[ChunkDelta]]:
    found: dict[tuple[str, str], list[ChunkDelta]] = {}
    for delta in deltas:
        for one in delta.chunks:
            found.setdefault((one.path, one.form), []).append(one)
    return found


def _united_chunks(parts: Sequence[ChunkDelta], conflicts: list[Conflict]) -> ChunkEdit:
    """Return the chunks of all writers of one tree; enter what two of them wrote."""
    first = parts[0]
    codes = _joined([part.codes for part in parts])
    cids = np.concatenate([part.cids for part in parts])
    sizes = np.concatenate([part.sizes for part in parts])
    order = np.argsort(codes, kind="stable")
    codes, cids, sizes = codes[order], cids[order], sizes[order]
    twice = np.flatnonzero(codes[1:] == codes[:-1])
    if len(twice):
        same = (cids[twice] == cids[twice + 1]).all(axis=1) & (sizes[twice] == sizes[twice + 1])
        for row in twice[~same].tolist():
            values = [Value(CidBytes(cids[at].tobytes()), int(sizes[at])) for at in (row, row + 1)]
            conflicts.append(_conflict(first, int(codes[row]), values[0], values[1]))
        kept = np.ones(len(codes), bool)
        kept[twice + 1] = False
        codes, cids, sizes = codes[kept], cids[kept], sizes[kept]
    deletes = np.unique(_joined([part.deletes for part in parts]))
    for row in matches(codes, deletes)[0].tolist():
        value = Value(CidBytes(cids[row].tobytes()), int(sizes[row]))
        conflicts.append(_conflict(first, int(codes[row]), value, None))
    table = chunk_table(codes, cids, sizes, parse_form(first.form)[1])

    def rows() -> tuple[Table, Codes]:
        return table, deletes

    return ChunkEdit(first.path, first.form, rows, first.layout)


def _joined(columns: Sequence[Codes]) -> Codes:
    if any(column.dtype == object for column in columns):
        columns = [column.astype(object) for column in columns]
    return np.concatenate(columns)


def _united_values(deltas: Sequence[Delta], conflicts: list[Conflict]) -> Changes:
    changes = Changes()
    for delta in deltas:
        for key, packed in delta.values.items():
            known = changes.values.setdefault(key, packed)
            if known != packed:
                path, name = split_key(key)
                ours, theirs = (None if it is None else unpack_value(it) for it in (known, packed))
                reason = f"key {key!r} was set by two, to different values"
                conflicts.append(
                    Conflict(path, "key", name, ours=ours, theirs=theirs, reason=reason)
                )
        changes.layouts.update(delta.layouts)
    return changes


def _conflict(of: ChunkDelta, code: int, ours: Value, theirs: Value | None) -> Conflict:
    place = coordinates_of(code, parse_form(of.form)[1])
    where = ", ".join(map(str, place))
    did = "deleted by another" if theirs is None else "written by two, with different values"
    reason = f"chunk ({where}) of {of.path!r} was {did}"
    return Conflict(of.path, "chunk", of.form, place, ours=ours, theirs=theirs, reason=reason)


def _written_twice(conflicts: list[Conflict]) -> ConflictError:
    more = f" and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
    shown = "; ".join(conflict.reason for conflict in conflicts[:_SHOWN])
    return ConflictError(
        f"forks wrote the same thing: {shown}{more}; nothing was merged. Let each of them write "
        "whole chunks of its own, with regions that end where chunks do, and run them again",
        conflicts,
    )


def _edits(edit: NodeEdit, path: str = "") -> Iterator[tuple[str, NodeEdit]]:
    pending = [(path, edit)]
    while pending:
        path, one = pending.pop()
        yield path, one
        base = f"{path}/" if path else ""
        pending.extend((base + name, inner) for name, inner in one.nodes.items())
