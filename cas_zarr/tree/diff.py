"""What differs between two versions, found by comparing CIDs: equal subtrees are never opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cas_zarr.tree.chunktree import ChunkTree
from cas_zarr.tree.keys import parse_form
from cas_zarr.tree.morton import decode
from cas_zarr.tree.node import EMPTY, Document, Node, Value
from cas_zarr.tree.page import CID_SIZE, Page
from cas_zarr.tree.shards import differing_entries
from cas_zarr.tree.table import Table, concatenate, empty_table, from_page
from cas_zarr.tree.view import TreeView

__all__ = ["ChunkChanges", "NodeChange", "diff", "differing_chunks"]


@dataclass(frozen=True, slots=True, eq=False)
class ChunkChanges:
    """The chunks of one tree that differ.

    Attributes
    ----------
    form : str
        Which tree of the node, as ``c/3``.
    coordinates : array of int64, shape (n, ndim)
        Chunk coordinates.
    before, after : array of uint8, shape (n, 36)
        CIDs of the values; zeros where there is no chunk.
    sizes_before, sizes_after : array of uint64, shape (n,)
        Bytes of the values.
    """

    form: str
    coordinates: NDArray[np.int64]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    sizes_before: NDArray[np.uint64]
    sizes_after: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def added(self) -> NDArray[np.bool_]:
        """Which of the chunks were not there before."""
        return np.equal(self.before[:, 0], 0)

    @property
    def removed(self) -> NDArray[np.bool_]:
        """Which of the chunks are no longer there."""
        return np.equal(self.after[:, 0], 0)


@dataclass(frozen=True, slots=True, eq=False)
class NodeChange:
    """A node that differs.

    Attributes
    ----------
    path : str
    status : "added", "removed" or "changed"
    docs : mapping of name to (before, after)
        The documents that differ, None where there is none.
    keys : mapping of name to (before, after)
        The plain keys that differ.
    chunks : tuple of ChunkChanges
    """

    path: str
    status: Literal["added", "removed", "changed"]
    docs: Mapping[str, tuple[Document | None, Document | None]] = field(default_factory=dict)
    keys: Mapping[str, tuple[Value | None, Value | None]] = field(default_factory=dict)
    chunks: tuple[ChunkChanges, ...] = ()


def diff(a: TreeView, b: TreeView, path: str = "") -> Iterator[NodeChange]:
    """Yield what changed from `a` to `b`, a node at a time, parents before children.

    Parameters
    ----------
    a, b : TreeView
        Two versions; their blocks may be in different places.
    path : str
        Compare only what lies at and below this node.
    """
    pending = [(path, a.node(path), b.node(path))]
    while pending:
        path, before, after = pending.pop()
        old, new = before or EMPTY, after or EMPTY
        if old is new or old.text() == new.text():
            continue
        entries_a, entries_b = differing_entries(a.reader, old, b.reader, new)
        keys: dict[str, tuple[Value | None, Value | None]] = {}
        children = []
        base = f"{path}/" if path else ""
        for name in sorted(entries_a.keys() | entries_b.keys()):
            pair = [
                (entries.get((name, "key")), entries.get((name, "node")))
                for entries in (_by_kind(entries_a, name), _by_kind(entries_b, name))
            ]
            if pair[0][0] != pair[1][0]:
                keys[name] = _as_value(pair[0][0]), _as_value(pair[1][0])
            if pair[0][1] is not pair[1][1]:
                children.append((base + name, _as_node(pair[0][1]), _as_node(pair[1][1])))
        pending.extend(reversed(children))
        docs = {
            name: (old.docs.get(name), new.docs.get(name))
            for name in sorted(old.docs.keys() | new.docs.keys())
            if old.docs.get(name) != new.docs.get(name)
        }
        chunks = tuple(_chunk_changes(a, b, old, new))
        if docs or keys or chunks or not before or not after:
            status: Literal["added", "removed", "changed"] = (
                "added" if not before else "removed" if not after else "changed"
            )
            yield NodeChange(path, status, docs, keys, chunks)


def _by_kind(
    entries: Mapping[str, list[Value | Node]], name: str
) -> dict[tuple[str, str], Value | Node]:
    return {
        (name, "node" if isinstance(entry, Node) else "key"): entry
        for entry in entries.get(name, ())
    }


def _as_value(entry: Value | Node | None) -> Value | None:
    return entry if isinstance(entry, Value) else None


def _as_node(entry: Value | Node | None) -> Node | None:
    return entry if isinstance(entry, Node) else None


def _chunk_changes(a: TreeView, b: TreeView, old: Node, new: Node) -> Iterator[ChunkChanges]:
    for form in sorted(old.trees.keys() | new.trees.keys()):
        if old.trees.get(form) == new.trees.get(form):
            continue
        ndim = parse_form(form)[1]
        trees = [
            ChunkTree(view.reader, node.trees[form], ndim) if form in node.trees else None
            for view, node in ((a, old), (b, new))
        ]
        yield _changes_of(form, ndim, *differing_chunks(trees[0], trees[1]))


def differing_chunks(a: ChunkTree | None, b: ChunkTree | None) -> tuple[Table, Table]:
    """Return the chunks of two trees that are not the same in both.

    Level by level, what both have with the same box and CID is dropped; only the rest is opened.
    """
    if a is None or b is None:
        return (
            empty_table() if a is None else a.table(),
            empty_table() if b is None else b.table(),
        )
    trees = (a, b)
    if a.ref.cid == b.ref.cid:
        return empty_table(), empty_table()
    open_pages = [[(tree.top, 0)] for tree in trees]
    for level in range(max(a.top.level, b.top.level), 0, -1):
        rows = [_children(pages, level) for pages in open_pages]
        shared = rows[0].keys() & rows[1].keys()
        for side, tree in enumerate(trees):
            below = [item for item in open_pages[side] if item[0].level < level]
            for place, (page, low, row) in rows[side].items():
                if place not in shared:
                    below.append(tree.child(page, low, row)[:2])
            open_pages[side] = below
    tables = [
        concatenate(from_page(page, low, trees[side].bits) for page, low in open_pages[side])
        for side in (0, 1)
    ]
    return _without_shared(tables[0], tables[1])


def _children(
    pages: list[tuple[Page, int]], level: int
) -> dict[tuple[int, int, bytes], tuple[Page, int, int]]:
    """Return the children of the pages of a level by place and CID, with where they are linked."""
    out = {}
    for page, low in pages:
        if page.level == level and page.prefixes is not None:
            for row, (code, prefix) in enumerate(
                zip(page.codes.tolist(), page.prefixes.tolist(), strict=True)
            ):
                out[low + code, prefix, page.cids[row].tobytes()] = page, low, row
    return out


def _without_shared(a: Table, b: Table) -> tuple[Table, Table]:
    rows_a, rows_b = _matches(a, b)
    same = (a.cids[rows_a] == b.cids[rows_b]).all(axis=1) & (a.sizes[rows_a] == b.sizes[rows_b])
    keep_a, keep_b = np.ones(len(a), bool), np.ones(len(b), bool)
    keep_a[rows_a[same]] = False
    keep_b[rows_b[same]] = False
    return a.take(keep_a), b.take(keep_b)


def _matches(a: Table, b: Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of `a` and of `b` with equal codes."""
    codes_a, codes_b = a.codes, b.codes
    if codes_a.dtype != codes_b.dtype:
        codes_a, codes_b = codes_a.astype(object), codes_b.astype(object)
    _, rows_a, rows_b = np.intersect1d(codes_a, codes_b, assume_unique=True, return_indices=True)
    return rows_a, rows_b


def _changes_of(form: str, ndim: int, old: Table, new: Table) -> ChunkChanges:
    rows_old, rows_new = _matches(old, new)
    only_new = np.ones(len(new), bool)
    only_new[rows_new] = False
    extra = new.take(only_new)
    n = len(old) + len(extra)
    before, after = np.zeros((n, CID_SIZE), np.uint8), np.zeros((n, CID_SIZE), np.uint8)
    sizes_before, sizes_after = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
    before[: len(old)], sizes_before[: len(old)] = old.cids, old.sizes
    after[rows_old], sizes_after[rows_old] = new.cids[rows_new], new.sizes[rows_new]
    after[len(old) :], sizes_after[len(old) :] = extra.cids, extra.sizes
    coordinates = np.concatenate([decode(old.codes, ndim), decode(extra.codes, ndim)])
    order = np.lexsort(coordinates.T[::-1]) if ndim else np.arange(n)
    return ChunkChanges(
        form,
        coordinates[order],
        before[order],
        after[order],
        sizes_before[order],
        sizes_after[order],
    )
