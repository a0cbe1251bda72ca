"""Values: the bytes of one key, as one raw block or, past 1 MiB, as a UnixFS file.

The leaves of a file end at each MiB, or at the borders of inner chunks where the array is
sharded (`cas_zarr.codecs.shardindex`). A range of a value is read and verified without the rest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, groupby
from typing import Any, Final, TypeVar

import numpy as np

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, BlockStore
from cas_zarr.blocks.tiered import TieredBlocks, tier_of
from cas_zarr.blocks.waiting import WAITERS, map_waiting
from cas_zarr.cid import DAG_PB, RAW, BytesLike, CidBytes, HashFunction, cid_of, format_cid
from cas_zarr.codecs.shardindex import ShardLayout, cut_points
from cas_zarr.codecs.unixfs import LEAF_SIZE, build_file
from cas_zarr.errors import FormatError, LimitError
from cas_zarr.parallel import map_ordered
from cas_zarr.tree.directories import is_inline, read_block
from cas_zarr.tree.shards import TreeReader

__all__ = [
    "MAX_VALUE_SIZE",
    "FilePiece",
    "fetch_range",
    "file_blocks",
    "file_pieces",
    "is_file",
    "map_reads",
    "read_value",
    "write_value",
]

_T = TypeVar("_T")
_R = TypeVar("_R")

MAX_VALUE_SIZE: Final = 1 << 32
"""Largest value, in bytes."""

_MAX_FILE_DEPTH: Final = 16
_MOST_PIECES: Final = 1 << 22  # a few blocks can claim billions
_ALONE: Final = 1 << 15  # values from here on are read straight to where they are used


def is_file(cid: CidBytes) -> bool:
    """Tell whether a value is a UnixFS file rather than one block."""
    return cid[1] == DAG_PB


def write_value(
    blocks: BlockStore,
    function: HashFunction,
    data: BytesLike,
    layout: ShardLayout | None = None,
) -> CidBytes:
    """Hash and store a value; return its CID.

    `data` may be a view of memory that changes later: every byte is hashed and copied or written
    before this returns. Leaves are hashed in threads, each while its bytes are hot.
    """
    if len(data) <= LEAF_SIZE:
        cid = cid_of(RAW, function, data)
        blocks.put(cid, data)
        return cid
    if len(data) > MAX_VALUE_SIZE:
        raise LimitError(
            f"a value has {len(data)} bytes; at most {MAX_VALUE_SIZE} can be stored under one key: "
            "use smaller chunks"
        )
    view = memoryview(data)
    cuts = cut_points(view, layout)

    def write_leaf(row: int) -> tuple[CidBytes, int]:
        piece = view[cuts[row] : cuts[row + 1]]
        cid = cid_of(RAW, function, piece)
        blocks.put(cid, piece)
        return cid, len(piece)

    leaves = map_ordered(write_leaf, range(len(cuts) - 1))
    cid, nodes = build_file(leaves, function)
    blocks.put_many(nodes)
    return cid


def read_value(
    reader: TreeReader, cid: CidBytes, size: int, start: int = 0, stop: int | None = None
) -> bytes | memoryview:
    """Return bytes `start` to `stop` of a value, verified.

    Parameters
    ----------
    reader : TreeReader
    cid : CidBytes
        The value.
    size : int
        How many bytes the tree says that it has.
    start, stop : int
        Range of bytes; only the leaves that it touches are read.

    Raises
    ------
    CorruptBlockError, BlockNotFoundError
        If a block is damaged or missing.
    FormatError
        If the value is not what the tree says.
    """
    if stop is None and start <= 0 and size < _ALONE and not is_file(cid):
        data = reader.blocks.get(cid)  # most reads, of small chunks, end here
        if len(data) == size:
            return data
    stop = size if stop is None else min(stop, size)
    if not is_file(cid):
        if _ALONE <= size <= LEAF_SIZE and start <= 0 and stop == size:
            whole = memoryview(np.empty(size, np.uint8))  # memory that nobody clears first
            reader.blocks.read_into(cid, whole)
            return whole
        data = reader.blocks.get(cid)
        if len(data) != size:
            raise _wrong_size(cid, size, len(data))
        return data if start <= 0 and stop == size else data[start:stop]
    if size > MAX_VALUE_SIZE:
        raise LimitError(f"value {format_cid(cid)} claims {size} bytes; at most {MAX_VALUE_SIZE}")
    if start >= stop:
        return b""
    tier = tier_of(reader.blocks)
    pieces = (
        file_pieces(reader, cid, size, start, stop)
        if tier is None
        else _fetched_pieces(reader, tier, cid, size, start, stop)
    )
    view = memoryview(np.empty(stop - start, np.uint8))

    def read(piece: FilePiece) -> None:
        begin, end = max(piece.offset, start), min(piece.offset + piece.size, stop)
        target = view[begin - start : end - start]
        if piece.data is not None:
            target[:] = piece.data[begin - piece.offset : end - piece.offset]
        elif end - begin == piece.size:
            reader.blocks.read_into(piece.cid, target)
        else:
            data = reader.blocks.get(piece.cid)
            if len(data) != piece.size:
                raise _wrong_size(piece.cid, piece.size, len(data))
            target[:] = data[begin - piece.offset : end - piece.offset]

    map_reads(reader, read, pieces)
    return view


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A leaf of a file, or bytes that stand in a node or in a CID."""

    offset: int
    size: int
    cid: CidBytes
    data: bytes | None = None


def fetch_range(
    reader: TreeReader, cid: CidBytes, size: int, start: int = 0, stop: int | None = None
) -> None:
    """Fetch what a range of a far file lacks, where few requests can bring it.

    The rest is left for `read_value`, whose parameters and errors these are.
    """
    tier = tier_of(reader.blocks)
    if tier is not None:
        _fetched_pieces(reader, tier, cid, size, start, size if stop is None else stop)


def _fetched_pieces(
    reader: TreeReader, tier: TieredBlocks, cid: CidBytes, size: int, start: int, stop: int
) -> list[FilePiece]:
    """Return the pieces of a far file, after what a range lacks was fetched by few requests.

    Where a node is lacking, all of the range is asked for at once, and else runs of leaves that are
    more than come side by side.
    """
    asked = False

    def before(nodes: Sequence[CidBytes]) -> None:
        nonlocal asked
        unknown = [] if asked else [node for node in nodes if not reader.knows_file_node(node)]
        held = tier.local.has_many(unknown)
        lacking = [node for node, here in zip(unknown, held, strict=True) if not here]
        if lacking:
            asked = tier.fetch_ranges(cid, [(start, stop)], above=lacking[0])

    pieces = file_pieces(reader, cid, size, start, stop, before=before)
    if not asked and len(pieces) > WAITERS:
        held = tier.local.has_many([piece.cid for piece in pieces])
        rows = zip(pieces, held, strict=True)
        runs = [list(run) for here, run in groupby(rows, lambda row: row[1]) if not here]
        ranges = [
            (max(start, run[0][0].offset), min(stop, run[-1][0].offset + run[-1][0].size))
            for run in runs
            if len(run) > WAITERS
        ]
        if ranges:
            tier.fetch_ranges(cid, ranges)
    return pieces


def file_pieces(
    reader: TreeReader,
    cid: CidBytes,
    size: int,
    start: int = 0,
    stop: int | None = None,
    *,
    before: Callable[[Sequence[CidBytes]], None] | None = None,
) -> list[FilePiece]:
    """Return the pieces of a file that a range of bytes touches, in order; no leaf is read.

    The nodes of one level are read together.

    Parameters
    ----------
    reader : TreeReader
    cid : CidBytes
        The file.
    size : int
        How many bytes the tree says that it has.
    start, stop : int
        Range of bytes.
    before : callable, optional
        Is given the nodes of each level before they are read.

    Raises
    ------
    CorruptBlockError, BlockNotFoundError
        If a node is damaged or missing.
    FormatError, LimitError
        If the file is not what the tree says, or has too many pieces to list.
    """
    stop = size if stop is None else stop
    pieces = [FilePiece(0, size, cid)]
    for depth in count():
        inner = list(dict.fromkeys(each.cid for each in pieces if _is_node(each)))
        if not inner:
            return [_checked_leaf(reader, each) for each in pieces]
        if before is not None:
            before(inner)
        nodes = dict(zip(inner, map_reads(reader, reader.file_node, inner), strict=True))
        below: list[FilePiece] = []
        for piece in pieces:
            if not _is_node(piece):
                below.append(piece)
                continue
            node = nodes[piece.cid]
            if node.size != piece.size or depth > _MAX_FILE_DEPTH:
                raise _wrong_size(piece.cid, piece.size, node.size)
            offset = piece.offset
            if node.data and offset < stop and start < offset + len(node.data):
                below.append(FilePiece(offset, len(node.data), piece.cid, node.data))
            borders = list(accumulate(node.sizes, initial=offset + len(node.data)))
            first, last = bisect_right(borders, start) - 1, bisect_left(borders, stop)
            for row in range(max(0, first), min(last, len(node.links))):
                if node.sizes[row]:
                    below.append(FilePiece(borders[row], node.sizes[row], node.links[row]))
            if len(below) > _MOST_PIECES:
                raise LimitError(
                    f"value {format_cid(cid)} has more than {_MOST_PIECES} pieces in a range; "
                    "read less of it at a time"
                )
        pieces = below
    raise AssertionError  # a count has no end


def _is_node(piece: FilePiece) -> bool:
    return piece.data is None and is_file(piece.cid)


def _checked_leaf(reader: TreeReader, piece: FilePiece) -> FilePiece:
    """Return a leaf that may be read, with its bytes if its CID carries them."""
    if piece.data is not None:
        return piece
    if piece.size > MAX_BLOCK_SIZE:  # or a few bytes could claim gigabytes
        raise FormatError(
            f"leaf {format_cid(piece.cid)} claims {piece.size} bytes; a block has at most "
            f"{MAX_BLOCK_SIZE}"
        )
    if not is_inline(piece.cid):
        return piece
    data = read_block(reader.blocks, piece.cid)
    if len(data) != piece.size:
        raise _wrong_size(piece.cid, piece.size, len(data))
    return replace(piece, data=data)


def map_reads(reader: TreeReader, function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Apply a function that reads to every item: far away as many at once as may wait."""
    return (map_waiting if reader.blocks.remote else map_ordered)(function, items)


def file_blocks(reader: TreeReader, cid: CidBytes, size: int) -> Iterator[CidBytes]:
    """Yield the CIDs of all blocks of a value, nodes before what they link, each once."""
    pending: list[tuple[CidBytes, int, int]] = [(cid, size, 0)]
    seen: set[tuple[CidBytes, int]] = set()  # a few blocks can link one a billion times
    while pending:
        cid, size, depth = pending.pop()
        if (cid, size) in seen:
            continue
        seen.add((cid, size))
        yield cid
        if is_file(cid):
            node: Any = reader.file_node(cid)
            if node.size != size or depth > _MAX_FILE_DEPTH:
                raise _wrong_size(cid, size, node.size)
            pending.extend(
                (child, n, depth + 1) for child, n in zip(node.links, node.sizes, strict=True)
            )


def _wrong_size(cid: CidBytes, claimed: int, found: int) -> FormatError:
    return FormatError(
        f"value {format_cid(cid)} has {found} bytes where the document or page that links it "
        f"claims {claimed}"
    )
