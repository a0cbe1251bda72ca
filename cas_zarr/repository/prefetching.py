"""Fetching a part of a dataset ahead: few round trips, many requests at once.

The pages of a box are read level by level, each level in one go. Where most of what lies below a
leaf page is wanted and none of it is here, one request brings the page with all its chunks; the
other chunks are fetched side by side. All of it is kept in the tier that the blocks are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.cache import CacheBlocks, RecentBlocks
from cas_zarr.blocks.tiered import TieredBlocks, tier_of
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import CidBytes
from cas_zarr.errors import InvalidArgumentError, NotFoundError, ReadOnlyError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.describe import describe_node
from cas_zarr.repository.selection import Box, Part, index_box, parse_part
from cas_zarr.tree.chunktree import ChunkTree, decode_last
from cas_zarr.tree.descent import CHUNKS, descend
from cas_zarr.tree.keys import parse_form
from cas_zarr.tree.morton import decode
from cas_zarr.tree.node import Node, Root, Value
from cas_zarr.tree.page import MAX_ENTRIES
from cas_zarr.tree.shards import TreeReader, iter_entries
from cas_zarr.tree.table import Table
from cas_zarr.tree.values import fetch_range, file_blocks, is_file
from cas_zarr.tree.view import TreeView, walk_nodes

__all__ = ["MOST", "Prefetched", "Progress", "prefetch"]

Progress = Callable[[int, int], None]
"""Called now and then with the blocks and the bytes that are here by now."""

_BATCH: Final = 128  # blocks that are asked for at once
_BATCH_BYTES: Final = 32 << 20
MOST: Final = 0.75
"""Share of a leaf page's chunks from which on all of them are fetched with it."""


@dataclass(frozen=True, slots=True)
class Prefetched:
    """What is here after a part of a dataset was fetched.

    Attributes
    ----------
    chunks, size : int
        Values of the part, and their bytes, whether they were fetched now or before.
    complete : bool
        Whether all of it was; what has no room in the cache is not fetched.
    """

    chunks: int
    size: int
    complete: bool


def prefetch(
    mapping: CASMapping,
    path: str | Part = "",
    box: Sequence[slice | tuple[int | None, int | None] | int] | None = None,
    *,
    progress: Progress | None = None,
) -> Prefetched:
    """Fetch a group, an array, or a box of an array ahead.

    Parameters
    ----------
    mapping : CASMapping
        As of its last flush.
    path : str or Part
        "" is everything; ``"air/t2m[0:10, :]"`` is a box.
    box : sequence of slice, (start, stop) or int, optional
        A box of the array's index, in elements; sides that are left out are whole.
    progress : callable, optional

    Raises
    ------
    NotFoundError
        If there is nothing at the path.
    InvalidArgumentError
        If a box is given for something that is no array on a regular grid, or twice.
    ReadOnlyError
        If what is fetched would not be kept.
    """
    part = parse_part(path)
    if box is not None and part.slices is not None:
        raise InvalidArgumentError(f"{path!s} has a box, and one is given; a box cannot come twice")
    sides = part.slices if box is None else tuple(box)
    tier = tier_of(mapping.blocks)
    root = mapping.root
    if root is None:
        return Prefetched(0, 0, True)
    view = TreeView(TreeReader(mapping.blocks), Root.from_block(mapping.blocks.get(root)))
    node = view.node(part.path)
    if node is None:
        raise NotFoundError(f"there is no group or array {part.path!r}; list the dataset to see")
    work = _Work(view.reader, tier, progress)
    if sides is not None:
        work.array(node, _box(view.reader, node, part.path, sides))
    else:
        for _, inner in walk_nodes(view.reader, node, part.path):
            work.array(inner, None)
            if work.full():
                break
    if tier is not None and isinstance(tier.local, CacheBlocks):
        tier.local.flush()
    return Prefetched(work.chunks, work.size, not work.full())


def _box(
    reader: TreeReader,
    node: Node,
    path: str,
    sides: Sequence[slice | tuple[int | None, int | None] | int],
) -> Box:
    info = describe_node(reader, node, path)
    if info.shape is None or info.chunk_shape is None:
        raise InvalidArgumentError(
            f"{path!r} is no array on a regular grid of chunks; give no box to fetch all of it"
        )
    return index_box(info.shape, info.chunk_shape, sides)


class _Work:
    def __init__(
        self, reader: TreeReader, tier: TieredBlocks | None, progress: Progress | None
    ) -> None:
        self.reader = reader
        self.tier = tier
        self.chunks = self.size = 0
        self._ahead = 0  # bytes of values when pages that came with theirs will be counted
        self._progress = progress
        self._full = False
        self._room: int | None = None
        if tier is not None and isinstance(tier.local, (CacheBlocks, RecentBlocks)):
            self._room = tier.local.limit * 7 // 8  # pages need some, too

    def full(self) -> bool:
        """Tell whether something was left out, since it would push out what was fetched."""
        return self._full

    def _left(self) -> float:
        """Return how many bytes of values can come yet."""
        return inf if self._room is None else self._room - self.size

    def array(self, node: Node, box: Box | None) -> None:
        """Fetch the documents and plain keys of a node, and the chunks of a box of it."""
        values = [value for value in node.docs.values() if isinstance(value, Value)]
        for _, entry in iter_entries(self.reader, node):
            if isinstance(entry, Value):
                values.append(entry)
        self._values(values)
        for form, ref in sorted(node.trees.items()):
            ndim = parse_form(form)[1]
            if box is not None and ndim != len(box):
                continue
            tree = ChunkTree(self.reader, ref, ndim)
            self._ahead = self.size
            if box is None and ref.embedded is None and ref.chunks <= MAX_ENTRIES:
                self._pages([ref.cid], [ref.size])  # a single page has no other above it
            for table in self._tables(tree, box):
                cids = [CidBytes(cid.tobytes()) for cid in table.cids]
                self._values(list(map(Value, cids, table.sizes.tolist())))
                if self.full():
                    return

    def _tables(self, tree: ChunkTree, box: Box | None) -> Iterator[Table]:
        def fresh(rows: Table) -> Table:
            rows = rows.take(_touching(tree, rows, box))
            self._below(tree, rows, box)
            return rows

        for level, rows, _ in descend(tree, None, only_a=True, fresh=fresh):
            if level == CHUNKS:
                yield rows.take(_touching(tree, rows, box))

    def _below(self, tree: ChunkTree, rows: Table, box: Box | None) -> None:
        """Fetch whole leaf pages by one request each, where most of them is wanted."""
        if self.tier is None or len(rows) == 0:
            return
        wanted = _is_leaf(rows) & (_share(tree, rows, box) >= MOST)
        cids = [CidBytes(cid.tobytes()) for cid in rows.cids[wanted]]
        self._pages(cids, rows.sizes[wanted].tolist())

    def _pages(self, cids: Sequence[CidBytes], sizes: Sequence[int]) -> None:
        """Fetch pages that are not here, with all that they link, as far as there is room."""
        if self.tier is None or not cids:
            return
        self._ahead = max(self._ahead, self.size)
        left = self._left() + self.size - self._ahead
        ends = list(accumulate(sizes))
        fitting = bisect_right(ends, left)
        self._ahead += ends[fitting - 1] if fitting else 0
        held = self.tier.local.has_many(cids[:fitting])
        missing = [cid for cid, here in zip(cids, held, strict=False) if not here]
        if missing:
            self._refuse_to_drop()
            self.tier.fetch_below(missing, self.full)

    def _values(self, values: Sequence[Value]) -> None:
        batch: list[Value] = []
        held = 0
        for value in values:
            if held + value.size > self._left():
                self._full = True
                break
            batch.append(value)
            held += value.size
            if len(batch) >= _BATCH or held >= _BATCH_BYTES:
                self._fetch(batch)
                batch, held = [], 0
        self._fetch(batch)

    def _fetch(self, values: Sequence[Value]) -> None:
        if self.tier is not None and values:
            self._bring([value.cid for value in values if not is_file(value.cid)])
            files = [value for value in values if is_file(value.cid)]
            if files and not self.tier.read_only:
                map_waiting(lambda value: fetch_range(self.reader, *value), files)
            self._bring([value.cid for value in files])
            leaves = [cid for value in files for cid in file_blocks(self.reader, *value)]
            for start in range(0, len(leaves), 16):  # of a MiB
                self._bring(leaves[start : start + 16])
        self.chunks += len(values)
        self.size += sum(value.size for value in values)
        if self._progress is not None:
            self._progress(self.chunks, self.size)

    def _bring(self, some: Sequence[CidBytes]) -> None:
        assert self.tier is not None
        cids = list(dict.fromkeys(some))
        held = self.tier.local.has_many(cids)
        missing = [cid for cid, here in zip(cids, held, strict=True) if not here]
        if missing:
            self._refuse_to_drop()
            self.tier.get_many(missing)

    def _refuse_to_drop(self) -> None:
        if self.tier is not None and self.tier.read_only:
            raise ReadOnlyError(
                f"{self.tier.location} is open for reading only and keeps nothing that is fetched; "
                "open it for writing to fetch ahead"
            )


def _is_leaf(rows: Table) -> NDArray[np.bool_]:
    """Tell which rows are pages of up to as many chunks as a leaf page has."""
    return rows.counts <= MAX_ENTRIES


def _touching(tree: ChunkTree, rows: Table, box: Box | None) -> NDArray[np.bool_]:
    """Tell which rows have something in a box of the grid."""
    if box is None or not box or len(rows) == 0:
        return np.ones(len(rows), bool)
    lower, upper = np.array(box, np.int64).T
    first = decode(rows.codes, tree.ndim)
    last = decode_last(rows, tree.bits, tree.ndim)
    touching: NDArray[np.bool_] = ((last >= lower) & (first < upper)).all(axis=1)
    return touching


def _share(tree: ChunkTree, rows: Table, box: Box | None) -> NDArray[np.float64]:
    """Return how much of each row's cells lies in a box of the grid."""
    if box is None or not box:
        return np.ones(len(rows))
    lower, upper = np.array(box, np.int64).T
    first = decode(rows.codes, tree.ndim)
    stop = decode_last(rows, tree.bits, tree.ndim) + 1
    inside = np.clip(np.minimum(stop, upper) - np.maximum(first, lower), 0, None)
    share: NDArray[np.float64] = (inside / (stop - first)).prod(axis=1)
    return share
