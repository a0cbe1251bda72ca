"""What differs between two versions, found by comparing CIDs: equal subtrees are never opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.errors import LimitError
from cas_zarr.tree.chunktree import ChunkTree, TreeRef
from cas_zarr.tree.descent import CHUNKS, descend, matches
from cas_zarr.tree.keys import parse_form
from cas_zarr.tree.morton import decode
from cas_zarr.tree.node import EMPTY, Document, Node, Value
from cas_zarr.tree.page import CID_SIZE
from cas_zarr.tree.shards import TreeReader, differing_entries, iter_entries
from cas_zarr.tree.table import Table, concatenate
from cas_zarr.tree.view import TreeView, walk_nodes

__all__ = ["ChunkChanges", "NodeChange", "Status", "Totals", "diff", "differing_chunks"]

Status: TypeAlias = Literal["added", "removed", "moved", "changed"]

_MOST: Final = 1 << 26  # chunks that differ: some GB in memory


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


class Totals(NamedTuple):
    """Chunks of a node, and bytes of their values."""

    chunks: int = 0
    size: int = 0


_NOTHING: Final = Totals()


@dataclass(frozen=True, slots=True, eq=False)
class NodeChange:
    """A node that differs.

    Attributes
    ----------
    path : str
        Where it is (of a pair of paths, below the first of them).
    status : "added", "removed", "moved" or "changed"
    source : str or None
        Where a node that moved was.
    docs : mapping of name to (before, after)
        The documents that differ, None where there is none.
    keys : mapping of name to (before, after)
        The plain keys that differ.
    before, after : Totals
        Chunks of the node and bytes of their values, as its documents say: no page is opened.
    """

    path: str
    status: Status
    source: str | None = None
    docs: Mapping[str, tuple[Document | None, Document | None]] = field(default_factory=dict)
    keys: Mapping[str, tuple[Value | None, Value | None]] = field(default_factory=dict)
    before: Totals = _NOTHING
    after: Totals = _NOTHING
    _trees: Mapping[str, tuple[ChunkTree | None, ChunkTree | None]] = field(
        default_factory=dict, repr=False
    )
    _memo: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of chunk trees that differ, sorted; no page is opened."""
        return tuple(self._trees)

    @property
    def chunks(self) -> tuple[ChunkChanges, ...]:
        """The chunks that differ; the pages of trees that came or went are opened only here."""
        return tuple(
            _changes_of(form, parse_form(form)[1], *self.tables(form)) for form in self._trees
        )

    def tables(self, form: str) -> tuple[Table, Table]:
        """Return the chunks of one form as they were and as they are, without what is equal."""
        found: tuple[Table, Table] | None = self._memo.get(form)
        if found is None:
            found = self._memo[form] = differing_chunks(*self._trees[form])
        return found

    def trees(self, form: str) -> tuple[TreeRef | None, TreeRef | None]:
        """Return the references to the trees of one form before and after."""
        old, new = self._trees[form]
        return None if old is None else old.ref, None if new is None else new.ref


def diff(
    a: TreeView,
    b: TreeView,
    path: str = "",
    *,
    other: str | None = None,
    moves: bool = False,
) -> Iterator[NodeChange]:
    """Yield what changed from `a` to `b`, a node at a time, parents before children.

    Parameters
    ----------
    a, b : TreeView
        Two versions; their blocks may be in different places. Where they have different hashes,
        equal bytes have different CIDs, and everything differs.
    path : str
        Compare only what lies at and below this node.
    other : str, optional
        Where the node to compare it with lies in `b`; without it at the same path. So two arrays
        of one dataset can be compared, if their chunks are on the same grid.
    moves : bool
        Whether to look for nodes that are gone and lie elsewhere, equal with all that is below
        them. Such a node is one change, "moved", and nothing in it is opened; its node of before
        is not "removed" then. What was copied is "added".
    """
    old = a.node(path)
    new = b.node(path if other is None else other)
    if not moves:
        yield from _walk(a, b, path, old, new, None)
        return
    loose = _Loose(a.reader, b.reader)
    found = list(_walk(a, b, path, old, new, loose))
    loose.pair()
    for place, node in loose.rest(1):
        found.append(_whole(a, b, place, None, node))
    for place, node in loose.rest(0):
        found.append(_whole(a, b, place, node, None))
    for place, source, node in loose.moved():
        totals = _totals(node)
        found.append(NodeChange(place, "moved", source, before=totals, after=totals))
    found.sort(key=lambda change: change.path.split("/") if change.path else [])
    yield from found


def _walk(
    a: TreeView, b: TreeView, path: str, old: Node | None, new: Node | None, loose: _Loose | None
) -> Iterator[NodeChange]:
    """Yield the changes at and below a node; to `loose`, if any, goes what came or went whole."""
    pending = [(path, old, new)]
    top = True
    while pending:
        path, before, after = pending.pop()
        old, new = before or EMPTY, after or EMPTY
        if old is new or old.text() == new.text():
            continue
        if loose is not None and not (before and after) and not top:
            loose.add(path, before, after)
            continue
        top = False
        docs, keys, children = _compare(a.reader, old, b.reader, new)
        base = f"{path}/" if path else ""
        pending.extend((base + name, *pair) for name, pair in reversed(children))
        change = _change(a, b, path, before, after, docs, keys)
        if change is not None:
            yield change


_Pairs: TypeAlias = "list[tuple[str, tuple[Node | None, Node | None]]]"


def _compare(
    reader_a: TreeReader, old: Node, reader_b: TreeReader, new: Node
) -> tuple[
    dict[str, tuple[Document | None, Document | None]],
    dict[str, tuple[Value | None, Value | None]],
    _Pairs,
]:
    """Return the documents, the keys and the child nodes that are not the same in two nodes."""
    keys: dict[str, tuple[Value | None, Value | None]] = {}
    children: _Pairs = []
    sides = differing_entries(reader_a, old, reader_b, new)
    for name in sorted(sides[0].keys() | sides[1].keys()):
        values: list[Value | None] = [None, None]
        nodes: list[Node | None] = [None, None]
        for side in (0, 1):
            for entry in sides[side].get(name, ()):
                if isinstance(entry, Node):
                    nodes[side] = entry
                else:
                    values[side] = entry
        if values[0] != values[1]:
            keys[name] = values[0], values[1]
        if nodes[0] is not nodes[1]:
            children.append((name, (nodes[0], nodes[1])))
    docs = {
        name: (old.docs.get(name), new.docs.get(name))
        for name in sorted(old.docs.keys() | new.docs.keys())
        if old.docs.get(name) != new.docs.get(name)
    }
    return docs, keys, children


def _change(
    a: TreeView,
    b: TreeView,
    path: str,
    before: Node | None,
    after: Node | None,
    docs: Mapping[str, tuple[Document | None, Document | None]],
    keys: Mapping[str, tuple[Value | None, Value | None]],
) -> NodeChange | None:
    """Return the change of one node without what is below it; None if there is none."""
    old, new = before or EMPTY, after or EMPTY
    trees = {}
    memo: dict[str, Any] = {}
    for form in sorted(old.trees.keys() | new.trees.keys()):
        refs = old.trees.get(form), new.trees.get(form)
        if refs[0] == refs[1]:
            continue
        ndim = parse_form(form)[1]
        pair = (
            None if refs[0] is None else ChunkTree(a.reader, refs[0], ndim),
            None if refs[1] is None else ChunkTree(b.reader, refs[1], ndim),
        )
        if None not in pair:  # pages may differ where no chunk does: by their hash
            memo[form] = differing_chunks(*pair)
            if not len(memo[form][0]) and not len(memo[form][1]):
                continue
        trees[form] = pair
    if before and after and not (docs or keys or trees):
        return None
    status: Status = "added" if not before else "removed" if not after else "changed"
    return NodeChange(path, status, None, docs, keys, _totals(old), _totals(new), trees, memo)


def _whole(
    a: TreeView, b: TreeView, path: str, before: Node | None, after: Node | None
) -> NodeChange:
    """Return the change of a node that came or went."""
    docs, keys, _ = _compare(a.reader, before or EMPTY, b.reader, after or EMPTY)
    change = _change(a, b, path, before, after, docs, keys)
    assert change is not None
    return change


def _totals(node: Node) -> Totals:
    trees = node.trees.values()
    return Totals(sum(tree.chunks for tree in trees), sum(tree.size for tree in trees))


# -- nodes that moved -----------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Piece:
    """A node that came or went, alone or below another that did."""

    path: str
    node: Node
    parent: _Piece | None = None
    partner: _Piece | None = None
    below: list[_Piece] = field(default_factory=list)

    def moved(self) -> bool:
        """Tell whether the node moved, and none above it did."""
        return self.partner is not None and not self.in_pair() and not self.partner.in_pair()

    def in_pair(self) -> bool:
        """Tell whether a node above this one has a partner."""
        piece = self.parent
        while piece is not None and piece.partner is None:
            piece = piece.parent
        return piece is not None


class _Loose:
    """Finds which of the nodes that came are equal to one that went.

    Large ones first, so that a group that moved is one change: level by level, what has no
    partner is taken apart.
    """

    def __init__(self, reader_a: TreeReader, reader_b: TreeReader) -> None:
        self.readers = reader_a, reader_b
        self.tops: tuple[list[_Piece], list[_Piece]] = ([], [])

    def add(self, path: str, before: Node | None, after: Node | None) -> None:
        """Take a node that went (`before`) or came (`after`)."""
        for side, node in enumerate((before, after)):
            if node:
                self.tops[side].append(_Piece(path, node))

    def pair(self) -> None:
        """Find the partners."""
        known: tuple[dict[str, list[_Piece]], dict[str, list[_Piece]]] = ({}, {})
        level = self.tops
        while level[0] or level[1]:
            for side in (0, 1):
                for piece in level[side]:
                    known[side].setdefault(piece.node.text(), []).append(piece)
            for side in (0, 1):
                for piece in level[side]:
                    others = known[1 - side].get(piece.node.text(), [])
                    free = [one for one in others if one.partner is None and not one.in_pair()]
                    if free and piece.partner is None and not piece.in_pair():
                        piece.partner, free[0].partner = free[0], piece
            level = self._below(level[0], 0), self._below(level[1], 1)

    def _below(self, level: list[_Piece], side: int) -> list[_Piece]:
        for piece in level:
            if piece.partner is None and not piece.in_pair():
                piece.below = [
                    _Piece(f"{piece.path}/{name}", node, piece)
                    for name, node in _nodes_of(self.readers[side], piece.node)
                ]
        return [inner for piece in level for inner in piece.below]

    def moved(self) -> Iterator[tuple[str, str, Node]]:
        """Yield the nodes that moved: where they are, and where they were."""
        for piece in self._largest(1):
            if piece.moved() and piece.partner is not None:
                yield piece.path, piece.partner.path, piece.node

    def rest(self, side: int) -> Iterator[tuple[str, Node]]:
        """Yield the nodes that went (0) or came (1) and did not move."""
        for piece in self._largest(side):
            if piece.partner is None:
                yield piece.path, piece.node
            elif not piece.moved():  # what it is equal to moved with something larger
                yield from walk_nodes(self.readers[side], piece.node, piece.path)

    def _largest(self, side: int) -> Iterator[_Piece]:
        """Yield the pieces that are below no piece with a partner."""
        pending = list(self.tops[side])
        while pending:
            piece = pending.pop()
            yield piece
            if piece.partner is None:
                pending.extend(piece.below)


def _nodes_of(reader: TreeReader, node: Node) -> list[tuple[str, Node]]:
    return sorted(
        (name, entry) for name, entry in iter_entries(reader, node) if isinstance(entry, Node)
    )


# -- chunks ---------------------------------------------------------------------------------


def differing_chunks(a: ChunkTree | None, b: ChunkTree | None) -> tuple[Table, Table]:
    """Return the chunks of two trees that are not the same in both, in order of their codes.

    Level by level, what both have with the same box and CID is dropped; only the rest is opened.

    Raises
    ------
    LimitError
        If they are more than memory may hold: a few pages can claim any number of chunks.
    """
    found: tuple[list[Table], list[Table]] = ([], [])
    counts = [0 if tree is None else tree.ref.chunks for tree in (a, b)]
    _check_count(abs(counts[0] - counts[1]))
    count = 0
    for level, rows_a, rows_b in descend(a, b):
        if level == CHUNKS:
            found[0].append(rows_a)
            found[1].append(rows_b)
            count += max(len(rows_a), len(rows_b))
            _check_count(count)
    return concatenate(found[0]), concatenate(found[1])


def _check_count(count: int) -> None:
    if count > _MOST:
        raise LimitError(
            f"two versions of an array differ in more than {_MOST} chunks, too many to list; "
            "compare the CIDs of boxes of it instead"
        )


def _changes_of(form: str, ndim: int, old: Table, new: Table) -> ChunkChanges:
    rows_old, rows_new = matches(old.codes, new.codes)
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
