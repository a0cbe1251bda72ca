"""Which inner chunks of shards differ, by the CIDs of their blocks.

A long shard is cut where its inner chunks begin and end, so its file names them one by one. Of two
shards the nodes and the indexes are read; no inner chunk is.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import CidBytes
from cas_zarr.codecs.shardindex import ShardLayout, index_start, missing_chunks, parse_index
from cas_zarr.errors import CasZarrError
from cas_zarr.tree.diff import ChunkChanges
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import file_pieces, is_file, map_reads, read_value

__all__ = ["InnerGrid", "differing_inner_chunks", "inner_grid"]

_MOST_SHARDS: Final = 1024  # two versions of each are opened
_MOST_CHUNKS: Final = 1 << 20  # inner chunks of a shard
_TOGETHER: Final = 32  # shards whose files are held at once

_Blocks: TypeAlias = "tuple[CidBytes, ...] | None"


class InnerGrid(NamedTuple):
    """How the shards of an array are divided, in two versions of it.

    Attributes
    ----------
    before, after : ShardLayout
    sides : tuple of int
        Inner chunks of a shard along each axis.
    """

    before: ShardLayout
    after: ShardLayout
    sides: tuple[int, ...]


def inner_grid(
    before: ShardLayout | None, after: ShardLayout | None, chunk_shape: tuple[int, ...]
) -> InnerGrid | None:
    """Return how shards are divided, None where that is not alike in both versions."""
    if before is None or after is None:
        return None
    shapes = after.shape, after.inner_shape
    if (before.shape, before.inner_shape) != shapes or shapes[0] != chunk_shape:
        return None
    sides = tuple(side // part for side, part in zip(*shapes, strict=True))
    if not sides or any(side % part for side, part in zip(*shapes, strict=True)):
        return None
    return InnerGrid(before, after, sides) if after.chunks <= _MOST_CHUNKS else None


def differing_inner_chunks(
    old: TreeReader, new: TreeReader, part: ChunkChanges, grid: InnerGrid
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which shards differ as a whole, and of the others the inner chunks that do.

    Parameters
    ----------
    old, new : TreeReader
        Where the shards of before and after are read.
    part : ChunkChanges
        The shards that differ.
    grid : InnerGrid

    Returns
    -------
    shards : array of int64, shape (n, ndim)
        Grid coordinates of shards that came, went, are not cut at inner chunks, cannot be read or
        differ everywhere; of all shards where more than 1024 changed.
    chunks : array of int64, shape (m, ndim)
        Coordinates in the grid of inner chunks, of those in other shards.
    """
    rows = [
        row
        for row in range(len(part))
        if is_file(CidBytes(part.before[row].tobytes()))
        and is_file(CidBytes(part.after[row].tobytes()))
    ]
    whole = np.ones(len(part), bool)
    chunks = [np.empty((0, len(grid.sides)), np.int64)]
    for start in range(0, len(rows) if len(rows) <= _MOST_SHARDS else 0, _TOGETHER):
        some = rows[start : start + _TOGETHER]
        ours = _blocks_of(old, part.before[some], part.sizes_before[some], grid.before)
        theirs = _blocks_of(new, part.after[some], part.sizes_after[some], grid.after)
        for row, a, b in zip(some, ours, theirs, strict=True):
            if a is None or b is None:
                continue
            pairs = zip(a, b, strict=True)
            numbers = np.flatnonzero(np.fromiter((x != y for x, y in pairs), bool, len(a)))
            if len(numbers) < len(a):
                whole[row] = False
                places = np.stack(np.unravel_index(numbers, grid.sides), axis=1)
                chunks.append(part.coordinates[row] * np.array(grid.sides) + places)
    return part.coordinates[whole], np.concatenate(chunks)


def _blocks_of(
    reader: TreeReader, cids: NDArray[np.uint8], sizes: NDArray[np.uint64], layout: ShardLayout
) -> list[list[_Blocks] | None]:
    """Return for each of some shards what names its inner chunks, None where nothing does."""

    def read(row: int) -> list[_Blocks] | None:
        try:
            return _inner_blocks(reader, CidBytes(cids[row].tobytes()), int(sizes[row]), layout)
        except CasZarrError:  # whoever reads the shard is told
            return None

    return map_reads(reader, read, range(len(cids)))


def _inner_blocks(
    reader: TreeReader, cid: CidBytes, size: int, layout: ShardLayout
) -> list[_Blocks] | None:
    """Return the blocks of each inner chunk, None for one that is not there.

    None for all where the shard is not cut at its inner chunks.
    """
    if layout.index_size > size:
        return None
    pieces = file_pieces(reader, cid, size)
    at = index_start(size, layout)
    entries = parse_index(read_value(reader, cid, size, at, at + layout.index_size), layout)
    if entries is None or any(piece.data is not None for piece in pieces):  # bytes of no block
        return None
    rows = {piece.offset: row for row, piece in enumerate(pieces)}
    rows[size] = len(pieces)
    names = [piece.cid for piece in pieces]
    found: list[_Blocks] = []
    for (offset, length), missing in zip(
        entries.tolist(), missing_chunks(entries).tolist(), strict=True
    ):
        first, last = rows.get(offset), rows.get(offset + length)
        if missing:
            found.append(None)
        elif first is None or last is None:
            return None
        else:
            found.append(tuple(names[first:last]))
    return found
