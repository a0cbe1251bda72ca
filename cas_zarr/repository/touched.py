"""Whether a path, or a box of an array, is the same in two versions, without reading a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import BLAKE3, CidBytes
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.tree.chunktree import ChunkTree, TreeRef, decode_last
from cas_zarr.tree.descent import matches
from cas_zarr.tree.keys import check_key, parse_form
from cas_zarr.tree.morton import COORDINATE_BITS, decode
from cas_zarr.tree.node import Node, Root
from cas_zarr.tree.page import Page
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.table import Table, concatenate, empty_table, from_page
from cas_zarr.tree.view import TreeView

__all__ = ["Touched", "box_differs"]

Bounds: TypeAlias = "tuple[int, ...]"

_MEMO_LIMIT = 1 << 12
_UPPER = 1 << COORDINATE_BITS


class Touched:
    """Compares what lies at a path, or in a box of the array there, in versions of a dataset.

    Parameters
    ----------
    blocks : BlockStore
    path : str
        A node ("" is the root's) or a key.
    box : sequence of slice or (start, stop), optional
        Of chunk coordinates. Then only the chunks in it count.
    """

    def __init__(
        self,
        blocks: BlockStore,
        path: str,
        box: Sequence[slice | tuple[int, int | None]] | None = None,
    ) -> None:
        self.path = path.strip("/")
        if self.path:
            check_key(self.path)
        self._blocks = blocks
        self._reader = TreeReader(blocks)
        self._box: tuple[Bounds, Bounds] | None = None
        if box is not None:
            sides = [_side(part) for part in box]
            self._box = tuple(low for low, _ in sides), tuple(high for _, high in sides)
        self._memo: dict[CidBytes, Any] = {}

    def check(self, root: CidBytes) -> None:
        """Refuse a box that does not fit the array in a version, where it is there at all."""
        if self._box is None:
            return
        node = self._view(root).node(self.path)
        have = {parse_form(form)[1] for form in node.trees} if node is not None else set()
        if have and len(self._box[0]) not in have:
            raise InvalidArgumentError(
                f"a box of {len(self._box[0])} dimensions does not fit {self.path!r}, which has "
                f"chunks in {', '.join(map(str, sorted(have)))} dimensions"
            )

    def differs(self, before: CidBytes | None, after: CidBytes) -> bool:
        """Tell whether it is not the same in two roots; None is a version without anything."""
        if before == after:
            return False
        old, new = self._state(before), self._state(after)
        if self._box is None or old == new:
            return bool(old != new)
        start, stop = self._box
        for form in old.keys() | new.keys():
            a, b = (self._tree(form, trees.get(form)) for trees in (old, new))
            if box_differs(a, b, start, stop):
                return True
        return False

    def _tree(self, form: str, ref: TreeRef | None) -> ChunkTree | None:
        return None if ref is None else ChunkTree(self._reader, ref, parse_form(form)[1])

    def _state(self, root: CidBytes | None) -> Any:
        if root is None:
            return {} if self._box is not None else None
        if root not in self._memo:
            if len(self._memo) >= _MEMO_LIMIT:
                self._memo.clear()
            self._memo[root] = self._read(root)
        return self._memo[root]

    def _read(self, root: CidBytes) -> Any:
        view = self._view(root)
        node = view.node(self.path)
        if self._box is not None:
            return _fitting(node, len(self._box[0]))
        found = view.find(self.path) if self.path else None
        if not node and found is None:
            return None
        return None if node is None else BLAKE3.digest(node.text().encode()), found

    def _view(self, root: CidBytes) -> TreeView:
        return TreeView(self._reader, Root.from_block(self._blocks.get(root)))


def _fitting(node: Node | None, ndim: int) -> dict[str, TreeRef]:
    trees = {} if node is None else node.trees
    return {form: ref for form, ref in trees.items() if parse_form(form)[1] == ndim}


def box_differs(a: ChunkTree | None, b: ChunkTree | None, start: Bounds, stop: Bounds) -> bool:
    """Tell whether two trees differ in a box of the grid.

    Pages that both have, or that lie outside the box, are not opened.
    """
    if a is None or b is None:
        one = a or b
        return one is not None and _has_any(one, start, stop)
    if a.ref.cid == b.ref.cid:
        return False
    pages: list[list[tuple[Page, int]]] = [[(tree.top, 0)] for tree in (a, b)]
    for level in range(max(a.top.level, b.top.level), -1, -1):
        rows = [
            _Rows(tree, [one for one in found if one[0].level == level])
            for tree, found in zip((a, b), pages, strict=True)
        ]
        rows_a, rows_b = matches(rows[0].table.codes, rows[1].table.codes)
        same = (rows[0].table.cids[rows_a] == rows[1].table.cids[rows_b]).all(axis=1)
        same &= rows[0].table.prefixes[rows_a] == rows[1].table.prefixes[rows_b]
        for side, shared in enumerate((rows_a[same], rows_b[same])):
            rest = np.ones(len(rows[side].table), bool)
            rest[shared] = False
            hit = rows[side].inside(np.flatnonzero(rest), level, start, stop)
            if level == 0 and len(hit):
                return True
            below = [one for one in pages[side] if one[0].level < level]
            pages[side] = below + (rows[side].open(hit) if level else [])
    return False


def _has_any(tree: ChunkTree, start: Bounds, stop: Bounds) -> bool:
    stack = [(tree.top, 0)]
    while stack:
        page, low = stack.pop()
        rows = _Rows(tree, [(page, low)])
        hit = rows.inside(np.arange(len(page)), page.level, start, stop)
        if page.level == 0 and len(hit):
            return True
        if page.level:
            stack.extend(tree.child(page, low, row)[:2] for row in hit.tolist())
    return False


class _Rows:
    """What some pages of one level list, in order."""

    def __init__(self, tree: ChunkTree, pages: list[tuple[Page, int]]) -> None:
        self.tree = tree
        self.pages = pages
        tables = [from_page(page, low, tree.bits) for page, low in pages]
        self.table: Table = concatenate(tables) if tables else empty_table()
        self.ends = np.cumsum([len(table) for table in tables])

    def inside(
        self, rows: NDArray[np.intp], level: int, start: Bounds, stop: Bounds
    ) -> NDArray[np.intp]:
        """Return those of some rows whose chunk, or box of chunks, has a part in a box."""
        table = self.table.take(rows)
        first = decode(table.codes, self.tree.ndim)
        last = decode_last(table, self.tree.bits, self.tree.ndim) if level else first
        return rows[((last >= np.array(start)) & (first < np.array(stop))).all(axis=1)]

    def open(self, rows: NDArray[np.intp]) -> list[tuple[Page, int]]:
        """Return the pages that some of the rows list, with their lowest codes."""
        found = []
        for row in rows.tolist():
            number = int(np.searchsorted(self.ends, row, "right"))
            page, low = self.pages[number]
            begin = int(self.ends[number]) - len(page)
            found.append(self.tree.child(page, low, row - begin)[:2])
        return found


def _side(part: slice | tuple[int, int | None]) -> tuple[int, int]:
    """Return the first and the last but one coordinate of one side of a box."""
    try:
        start, stop, step = (
            (part.start, part.stop, part.step) if isinstance(part, slice) else (*part, None)
        )
        low = 0 if start is None else index(start)
        high = _UPPER if stop is None else min(index(stop), _UPPER)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{part!r} is no side of a box; give start and stop") from None
    if low < 0 or high < 0 or step not in (None, 1):
        raise InvalidArgumentError(
            f"{part} is no side of a box of chunks: it counts from 0 upwards, in steps of 1"
        )
    return min(low, _UPPER), high
