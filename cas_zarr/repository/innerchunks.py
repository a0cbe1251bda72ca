"""Inner chunks of shards by their CIDs: which differ, and what they are called.

A long shard is cut where its inner chunks begin and end, so its file names them one by one: the
nodes and the indexes are read, and no inner chunk is. The CID of an inner chunk is the one that its
bytes would have as a value of their own, as in an array without shards. In a shard that is not cut
so, of up to 1 MiB for example, it is found by reading the shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import CidBytes, HashFunction, format_cid
from cas_zarr.codecs.shardindex import ShardLayout, index_start, missing_chunks, parse_index
from cas_zarr.codecs.unixfs import build_file
from cas_zarr.errors import CasZarrError, FormatError, InvalidArgumentError
from cas_zarr.tree.diff import ChunkChanges
from cas_zarr.tree.morton import decode
from cas_zarr.tree.page import CID_SIZE
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import file_pieces, is_file, map_reads, read_value, write_value
from cas_zarr.tree.view import TreeView, box_tree, chunks_cid

__all__ = [
    "InnerGrid",
    "differing_inner_chunks",
    "inner_box_cid",
    "inner_chunk_cid",
    "inner_grid",
]

_MOST_SHARDS: Final = 1024  # two versions of each are opened
_MOST_CHUNKS: Final = 1 << 20  # inner chunks of a shard
_TOGETHER: Final = 32  # shards whose files are held at once

_Blocks: TypeAlias = "tuple[tuple[CidBytes, int], ...] | None"
"""CIDs and sizes of the blocks of an inner chunk; None if it is not there."""


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
    names = [(piece.cid, piece.size) for piece in pieces]
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


# -- their names ------------------------------------------------------------------------------


def inner_chunk_cid(view: TreeView, path: str, place: Sequence[int]) -> CidBytes | None:
    """Return the CID of an inner chunk, None where there is none and the fill value is read.

    Parameters
    ----------
    view : TreeView
    path : str
        Of the array.
    place : sequence of int
        Coordinates in the grid of inner chunks.

    Raises
    ------
    InvalidArgumentError
        If the array has no shards, or another number of dimensions.
    FormatError
        If a shard has an index that is damaged.
    """
    box = [(at, at + 1) for at in place]
    _, cids, _ = _inner_chunks(view, path, box)
    return CidBytes(cids[0].tobytes()) if len(cids) else None


def inner_box_cid(
    view: TreeView, path: str, box: Sequence[slice | tuple[int, int | None]]
) -> CidBytes:
    """Return the CID of a box of inner chunks: what it is in an array without shards.

    Parameters
    ----------
    view : TreeView
    path : str
        Of the array.
    box : sequence of slices or (start, stop)
        In the grid of inner chunks.

    Raises
    ------
    InvalidArgumentError, FormatError
        As of `inner_chunk_cid`.
    """
    return chunks_cid(view.root.header.function, *_inner_chunks(view, path, box))


def _inner_chunks(
    view: TreeView, path: str, box: Sequence[slice | tuple[int, int | None]]
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]:
    """Return coordinates within a box, CIDs and sizes of its inner chunks."""
    layout = view.layout(path)
    grid = None if layout is None else inner_grid(layout, layout, layout.shape)
    if layout is None or grid is None:
        raise InvalidArgumentError(
            f"{path!r} is no array with shards whose inner chunks are known; name its chunks"
        )
    tree, start, stop = box_tree(view, path, box)
    sides, low, high = np.array(grid.sides), np.array(start), np.array(stop)
    shards = tree.select(
        tuple((low // sides).tolist()), tuple(np.minimum(-(-high // sides), high).tolist())
    )
    places = decode(shards.codes, tree.ndim)
    function = view.root.header.function

    def read(row: int) -> list[tuple[NDArray[np.int64], CidBytes, int]]:
        cid, size = CidBytes(shards.cids[row].tobytes()), int(shards.sizes[row])
        corner = places[row] * sides
        numbers = np.arange(layout.chunks)
        inner = corner + np.stack(np.unravel_index(numbers, grid.sides), axis=1)
        wanted = ((inner >= low) & (inner < high)).all(axis=1)
        named = _named(view.reader, function, cid, size, layout, np.flatnonzero(wanted).tolist())
        return [(inner[number] - low, *name) for number, name in named.items()]

    found = [one for some in map_reads(view.reader, read, range(len(shards))) for one in some]
    return (
        np.array([place for place, _, _ in found], np.int64).reshape(-1, tree.ndim),
        np.frombuffer(b"".join(cid for _, cid, _ in found), np.uint8).reshape(-1, CID_SIZE),
        np.array([size for _, _, size in found], np.uint64),
    )


def _named(
    reader: TreeReader,
    function: HashFunction,
    cid: CidBytes,
    size: int,
    layout: ShardLayout,
    numbers: Sequence[int],
) -> dict[int, tuple[CidBytes, int]]:
    """Return CID and size of those of some inner chunks of a shard that are there."""
    blocks = _inner_blocks(reader, cid, size, layout) if is_file(cid) else None
    found: dict[int, tuple[CidBytes, int]] = {}
    if blocks is not None:
        for number in numbers:
            parts = blocks[number]
            if parts is not None:
                found[number] = build_file(parts, function)[0], sum(part for _, part in parts)
        return found
    data = memoryview(read_value(reader, cid, size))
    at = index_start(size, layout)
    entries = parse_index(data[at : at + layout.index_size], layout) if at >= 0 else None
    if entries is None:
        raise FormatError(f"shard {format_cid(cid)} has an index that is damaged")
    missing = missing_chunks(entries)
    for number in numbers:
        if not missing[number]:
            offset, length = map(int, entries[number])
            if offset + length > size:
                raise FormatError(f"shard {format_cid(cid)} has an index that points outside it")
            part = data[offset : offset + length]
            found[number] = write_value(MemoryBlocks(), function, part), length
    return found
