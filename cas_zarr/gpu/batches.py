"""Values that lie on a device, in batches: hashed there, and copied only where they are missing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, BlockStore
from cas_zarr.cid import DIGEST_SIZE, RAW, CidBytes, HashFunction, format_cid, hash_of, make_cid
from cas_zarr.codecs.shardindex import ShardLayout, cut_points_by
from cas_zarr.codecs.unixfs import LEAF_SIZE, build_file
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    DeviceMemoryError,
    FormatError,
    LimitError,
)
from cas_zarr.gpu.gather import to_host
from cas_zarr.gpu.hashing import digest_many, digest_slab, prefers_device
from cas_zarr.gpu.kernels import cupy
from cas_zarr.gpu.memory import halving, pinned
from cas_zarr.parallel import map_ordered
from cas_zarr.tree.node import Value
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import MAX_VALUE_SIZE, FilePiece, file_pieces, is_file

__all__ = ["Batch", "Carried", "load"]

_Place: TypeAlias = tuple[Any, int, int]  # an array, and where a leaf begins and ends in it

_ALIGNED = 256


@dataclass(frozen=True, slots=True)
class _Settled:
    """What a block store has of a batch.

    Attributes
    ----------
    blocks : BlockStore
    function : HashFunction
    cids : list of list of CidBytes
        The leaves of each value.
    missing : dict of CidBytes to memoryview
        The leaves that the store did not have, copied to the host.
    """

    blocks: BlockStore
    function: HashFunction
    cids: list[list[CidBytes]]
    missing: dict[CidBytes, memoryview]


class Batch:
    """Values of one batch, on one device.

    The first of them that a store takes has all of them hashed, and brings to the host those that
    the store does not have, all at once and each content once.

    Parameters
    ----------
    values : sequence of cupy.ndarray of uint8
        Contiguous memory of one device.
    cuts : sequence of sequence of int, optional
        Where the leaves of each value begin and end, from 0 to its size; by default at each MiB.
    """

    def __init__(self, values: Sequence[Any], cuts: Sequence[Sequence[int]] | None = None) -> None:
        self._values = values
        self._cuts = cuts or [_each_mebibyte(value.nbytes) for value in values]
        self._lock = threading.Lock()
        self._settled: _Settled | None = None

    def store(self, row: int, blocks: BlockStore, function: HashFunction) -> CidBytes:
        """Hold a value in a block store, and return its CID."""
        with self._lock:
            settled = self._settled
            if settled is None or settled.blocks is not blocks or settled.function is not function:
                settled = self._settled = self._settle(blocks, function)
        cids = settled.cids[row]
        for cid in cids:
            data = settled.missing.get(cid)
            if data is not None:
                blocks.put(cid, data)
        root, nodes = build_file(list(zip(cids, self._sizes(row), strict=True)), function)
        blocks.put_many(nodes)
        return root

    def store_shard(
        self, row: int, blocks: BlockStore, function: HashFunction, layout: ShardLayout
    ) -> CidBytes:
        """Hold a shard in a block store, cut at its inner chunks, and return its CID."""
        value = self._values[row]
        with value.device:
            cuts = cut_points_by(lambda start, stop: value[start:stop].get(), value.nbytes, layout)
        return Batch([value], [cuts]).store(0, blocks, function)

    def _sizes(self, row: int) -> list[int]:
        return [stop - start for start, stop in pairwise(self._cuts[row])]

    def _settle(self, blocks: BlockStore, function: HashFunction) -> _Settled:
        places = [
            (value, start, stop)
            for value, cuts in zip(self._values, self._cuts, strict=True)
            for start, stop in pairwise(cuts)
        ]
        with self._values[0].device:
            copied: list[memoryview] = []
            digests = _digests(places, function)
            if digests is None:
                copied = to_host(_parts(places, range(len(places))))
                digests = map_ordered(function.digest, copied)
            cids = [make_cid(RAW, function, digest) for digest in digests]
            first = {cid: row for row, cid in reversed(list(enumerate(cids)))}
            unique = list(first)
            lacking = blocks.lacks_many(unique)
            rows = [first[cid] for cid, missing in zip(unique, lacking, strict=True) if missing]
            new = [copied[row] for row in rows] if copied else to_host(_parts(places, rows))
        each = iter(cids)
        return _Settled(
            blocks,
            function,
            [[next(each) for _ in pairwise(cuts)] for cuts in self._cuts],
            dict(zip((cids[row] for row in rows), new, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Carried:
    """One value of a batch, as a buffer hands it to a store."""

    batch: Batch
    row: int
    size: int

    def store(
        self, blocks: BlockStore, function: HashFunction, layout: ShardLayout | None = None
    ) -> CidBytes:
        """Hold the value in a block store, and return its CID.

        Parameters
        ----------
        blocks : BlockStore
        function : HashFunction
        layout : ShardLayout, optional
            For a shard over 1 MiB, whose leaves end where its inner chunks do.
        """
        if layout is None:
            return self.batch.store(self.row, blocks, function)
        return self.batch.store_shard(self.row, blocks, function, layout)


def load(reader: TreeReader, values: Sequence[Value]) -> list[Any]:
    """Return values on the current device, verified.

    Their blocks are read into one slab, which is copied as a whole and hashed there. A block that
    is not what its CID says is read again by way of the host, where it is replaced by a sound copy
    or refused. Where the device has no memory for the slab there are several.

    Raises
    ------
    CorruptBlockError, BlockNotFoundError, FormatError, LimitError
        As for `cas_zarr.tree.values.read_value`.
    DeviceMemoryError
        If one value does not fit.
    """
    return halving(lambda some: _load(reader, some), values)


def _load(reader: TreeReader, values: Sequence[Value]) -> list[Any]:
    """Return values on the current device, in one slab, verified."""
    array = cupy()
    starts, end = [], 0
    pieces: list[FilePiece] = []
    for value in values:
        _check_size(value)
        starts.append(end)
        found = [FilePiece(0, value.size, value.cid)]
        if is_file(value.cid):
            found = file_pieces(reader, value.cid, value.size) if value.size else []
        elif value.size > MAX_BLOCK_SIZE:  # or a few bytes could claim all memory
            raise FormatError(
                f"block {format_cid(value.cid)} is said to have {value.size} bytes; a block has at "
                f"most {MAX_BLOCK_SIZE}"
            )
        pieces += [FilePiece(end + each.offset, each.size, each.cid, each.data) for each in found]
        end += -(-value.size // _ALIGNED) * _ALIGNED
    slab = array.empty(end, array.uint8)  # nothing is read for one that cannot be had
    host = pinned(end)
    view = memoryview(host)
    by_function: dict[HashFunction, list[FilePiece]] = {}
    for piece in pieces:
        if piece.data is None:
            by_function.setdefault(hash_of(piece.cid), []).append(piece)
    on_device = {
        function: prefers_device(function, [piece.size for piece in found])
        for function, found in by_function.items()
    }

    def read(piece: FilePiece) -> bool:
        """Fill in a piece; tell whether it was verified."""
        out = view[piece.offset : piece.offset + piece.size]
        if piece.data is not None:
            out[:] = piece.data
            return True
        if on_device[hash_of(piece.cid)]:
            try:
                return reader.blocks.read_unverified_into(piece.cid, out)
            except (CorruptBlockError, BlockNotFoundError):
                pass  # a sound copy may be had, or the same is raised again
        reader.blocks.read_into(piece.cid, out)
        return True

    verified = map_ordered(read, pieces)
    slab.set(host)
    doubtful = [piece for piece, sound in zip(pieces, verified, strict=True) if not sound]
    sound_copies = []
    for function in by_function:
        found = [piece for piece in doubtful if hash_of(piece.cid) is function]
        offsets, sizes = [piece.offset for piece in found], [piece.size for piece in found]
        try:
            digests = _rows(digest_slab(slab, offsets, sizes, function))
        except DeviceMemoryError:
            held = [view[piece.offset : piece.offset + piece.size] for piece in found]
            digests = map_ordered(function.digest, held)
        for piece, digest in zip(found, digests, strict=True):
            if digest != piece.cid[-DIGEST_SIZE:]:
                again = np.empty(piece.size, np.uint8)
                reader.blocks.read_into(piece.cid, memoryview(again))
                slab[piece.offset : piece.offset + piece.size].set(again)
                sound_copies.append(again)
    array.cuda.get_current_stream().synchronize()  # the memory of the host goes now
    return [slab[start : start + value.size] for start, value in zip(starts, values, strict=True)]


def _check_size(value: Value) -> None:
    """Refuse a value that claims more than it can have, before there is memory for it."""
    most = MAX_VALUE_SIZE if is_file(value.cid) else MAX_BLOCK_SIZE
    if value.size > most:
        raise LimitError(f"value {format_cid(value.cid)} claims {value.size} bytes; at most {most}")


def _each_mebibyte(size: int) -> list[int]:
    """Return where the leaves of a value begin and end; an empty one has one leaf, too."""
    return [*range(0, max(size, 1), LEAF_SIZE), size]


def _parts(places: Sequence[_Place], rows: Iterable[int]) -> list[Any]:
    return [value[start:stop] for value, start, stop in (places[row] for row in rows)]


def _digests(places: Sequence[_Place], function: HashFunction) -> list[bytes] | None:
    """Return the digests of parts of arrays of the current device, or None where the host hashes.

    An array of CuPy for each of thousands of inner chunks would take longer than hashing them.
    """
    sizes = [stop - start for _, start, stop in places]
    if not prefers_device(function, sizes):
        return None
    addresses = [value.data.ptr + start for value, start, _ in places]
    try:
        return _rows(digest_many(addresses, sizes, function))
    except DeviceMemoryError:  # the host needs none of the device's
        return None


def _rows(digests: Any) -> list[bytes]:
    """Return what a device found, once it has."""
    return [digest.tobytes() for digest in digests.get()]
