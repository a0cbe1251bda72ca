"""Chunks in formats of nvCOMP: cut into pieces, each a stream of its own.

A device needs many streams at once, far more than a batch has chunks, and some formats end at 16
MiB. A value is, little-endian:

    8 bytes    size of the chunk before it was encoded
    4 bytes    65 536: the bytes of a piece before it was encoded; the last one has what is left
    4 bytes    major version of the nvCOMP that encoded it
    4 bytes    for each piece: its encoded bytes
    ...        the pieces, each at a multiple of 16 from the begin of the value, zeros between
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.errors import FormatError
from cas_zarr.gpu.gather import gather, plan_gathering, to_host
from cas_zarr.gpu.kernels import cupy, firsts_of
from cas_zarr.gpu.nvcomp import MAJOR, Algorithm, Codec

__all__ = ["HEAD_SIZE", "PIECE", "Layout", "count_pieces", "decode", "encode", "piece_sizes"]

PIECE: Final = 1 << 16
"""Bytes of a piece before it is encoded; a whole number of elements of any type."""

_HEAD: Final = np.dtype([("size", "<u8"), ("piece", "<u4"), ("version", "<u4")])
HEAD_SIZE: Final = _HEAD.itemsize
"""Bytes before the table of a value."""

_GRAIN: Final = 16  # on a device, streams of all formats are read from such addresses
_SLOT: Final = 256  # what memory of CUDA is aligned to


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the pieces of an encoded chunk lie.

    Attributes
    ----------
    size : int
        Bytes of the chunk before it was encoded.
    lengths, starts : array of int64
        Encoded bytes of each piece, and where it begins in the value.
    end : int
        Bytes of the value.
    """

    size: int
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    end: int

    @classmethod
    def of(cls, size: int, lengths: NDArray[np.int64]) -> Layout:
        """Return the layout of a chunk of `size` bytes whose pieces have `lengths`."""
        first = _rounded(HEAD_SIZE + 4 * len(lengths), _GRAIN)
        behind = first + np.cumsum(_rounded(lengths, _GRAIN))
        starts = behind - _rounded(lengths, _GRAIN)
        end = int(starts[-1] + lengths[-1]) if len(lengths) else first
        return cls(size, lengths, starts, end)

    @classmethod
    def read(cls, size: int, table: bytes, length: int, name: str) -> Layout:
        """Return the layout of a value of `length` bytes, from its table.

        Raises
        ------
        FormatError
            If the pieces do not fill the value.
        """
        layout = cls.of(size, np.frombuffer(table, "<u4").astype(np.int64))
        if layout.end != length or not layout.lengths.all():
            raise FormatError(
                f"a chunk of {name} has {length} bytes, and its table pieces of which one is empty "
                f"or the last ends at {layout.end}; it was cut off, or not written by that codec"
            )
        return layout

    def head(self) -> bytes:
        """Return what stands before the pieces."""
        fixed = np.array([(self.size, PIECE, MAJOR)], _HEAD).tobytes()
        table = fixed + self.lengths.astype("<u4").tobytes()
        return table + bytes(-len(table) % _GRAIN)


def piece_sizes(size: int) -> NDArray[np.int64]:
    """Return the bytes of the pieces of a chunk of `size` bytes."""
    sizes = np.full(-(-size // PIECE), PIECE, np.int64)
    if size % PIECE:
        sizes[-1] = size % PIECE
    return sizes


def count_pieces(head: bytes, length: int, name: str) -> tuple[int, int]:
    """Return the size of a chunk and how many pieces its value has, as its head says.

    Raises
    ------
    FormatError
        If a value of `length` bytes cannot be that.
    """
    if len(head) < HEAD_SIZE:
        raise FormatError(
            f"a chunk of {name} has {length} bytes, fewer than its head; it is cut off"
        )
    size, piece, version = np.frombuffer(head, _HEAD, 1)[0].tolist()
    if version != MAJOR or piece != PIECE:
        raise FormatError(
            f"a chunk of {name} was encoded by nvCOMP {version} in pieces of {piece} bytes, and "
            f"those of nvCOMP {MAJOR} in pieces of {PIECE} can be read; look for a newer cas_zarr"
        )
    count = -(-size // PIECE)
    if HEAD_SIZE + 4 * count > length:
        raise FormatError(
            f"a chunk of {name} claims {count} pieces and has {length} bytes; it is cut off, or "
            "was not written by that codec"
        )
    return size, count


def encode(algorithm: Algorithm, chunks: Sequence[Any]) -> list[Any]:
    """Encode chunks that lie on the current device.

    Parameters
    ----------
    algorithm : Algorithm
    chunks : sequence of cupy.ndarray of uint8
        Contiguous.

    Returns
    -------
    list of cupy.ndarray of uint8
        The values, each at a multiple of 16 of one slab.

    Raises
    ------
    CasZarrError
        If nvCOMP refuses.
    """
    codec = Codec(algorithm)
    chunks = codec.aligned("Compress", chunks)
    sizes = [piece_sizes(chunk.nbytes) for chunk in chunks]
    begins = [chunk.data.ptr + _steps(chunk.nbytes) for chunk in chunks]
    slab, lengths = None, np.empty(0, np.int64)
    if any(map(len, sizes)):
        slots = codec.compress_at(_column(begins), _column(sizes))
        slab, lengths = slots.slab, slots.sizes
    bounds = np.cumsum([len(each) for each in sizes])[:-1]
    layouts = [
        Layout.of(chunk.nbytes, part)
        for chunk, part in zip(chunks, np.split(lengths, bounds), strict=True)
    ]
    return _joined(slab, layouts)


def decode(algorithm: Algorithm, values: Sequence[Any], name: str) -> list[Any]:
    """Decode values that lie on the current device.

    Parameters
    ----------
    algorithm : Algorithm
    values : sequence of cupy.ndarray of uint8
        Contiguous, and known to be what an encoder made.
    name : str
        Of the codec, for errors.

    Returns
    -------
    list of cupy.ndarray of uint8
        The chunks, each at a multiple of 256 of one slab.

    Raises
    ------
    FormatError
        If a value is none of this format, or does not decode to the size that it says.
    """
    codec = Codec(algorithm)
    values = codec.aligned("Decompress", values)
    layouts = _layouts(values, name)
    begins = _begins([layout.size for layout in layouts])
    slab = cupy().empty(int(begins[-1]), np.uint8)
    if any(layout.size for layout in layouts):
        right = codec.decompress_at(
            _column(
                [value.data.ptr + each.starts for value, each in zip(values, layouts, strict=True)]
            ),
            _column([each.lengths for each in layouts]),
            _column(
                [
                    slab.data.ptr + int(begin) + _steps(each.size)
                    for begin, each in zip(begins, layouts, strict=False)
                ]
            ),
            _column([piece_sizes(each.size) for each in layouts]),
        )
        if not right.all():
            raise FormatError(
                f"{np.count_nonzero(~right)} of {len(right)} pieces of chunks of {name} do not "
                "decode to their sizes; they were not written by that codec"
            )
    return [
        slab[int(begin) : int(begin) + each.size]
        for begin, each in zip(begins, layouts, strict=False)
    ]


def _joined(slab: Any, layouts: Sequence[Layout]) -> list[Any]:
    """Return values: the heads, and behind each its pieces, which lie in the slots of a slab."""
    array = cupy()
    heads = [layout.head() for layout in layouts]
    head = array.asarray(np.frombuffer(b"".join(heads), np.uint8))
    addresses: list[int] = []
    sizes: list[int] = []
    firsts: list[int] = []
    at, slot = head.data.ptr, 0 if slab is None else slab.data.ptr
    for layout, each in zip(layouts, heads, strict=True):
        firsts.append(len(sizes))
        addresses.append(at)
        at += len(each)
        sizes += [len(each), *layout.lengths.tolist()]
        for _ in layout.lengths:
            addresses.append(slot)
            slot += slab.shape[1]
    plan = plan_gathering(addresses, sizes)  # all lie at multiples of 16, and come to such
    joined = array.zeros(plan.size, np.uint8)
    gather(plan, joined)
    begins = plan.starts[firsts].tolist()
    return [
        joined[begin : begin + layout.end] for begin, layout in zip(begins, layouts, strict=True)
    ]


def _layouts(values: Sequence[Any], name: str) -> list[Layout]:
    """Read the tables of values of a device: two copies for all of them."""
    claims = [
        count_pieces(head, value.nbytes, name)
        for value, head in zip(values, _read(values, 0, [HEAD_SIZE] * len(values)), strict=True)
    ]
    tables = _read(values, HEAD_SIZE, [4 * count for _, count in claims])
    return [
        Layout.read(size, table, value.nbytes, name)
        for value, (size, _), table in zip(values, claims, tables, strict=True)
    ]


def _read(values: Sequence[Any], start: int, counts: Sequence[int]) -> list[bytes]:
    """Return the bytes of each value from `start` on, as many as there are of those asked for."""
    parts = [value[start : start + count] for value, count in zip(values, counts, strict=True)]
    read = iter(to_host([part for part in parts if part.nbytes]))
    return [bytes(next(read)) if part.nbytes else b"" for part in parts]


def _steps(size: int) -> NDArray[np.int64]:
    """Return where the pieces of a chunk begin in it."""
    return PIECE * np.arange(-(-size // PIECE))


def _begins(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return where blobs begin in a slab, each in memory as it was allocated, and where it ends."""
    return firsts_of(_rounded(np.array(sizes, np.int64), _SLOT))


def _column(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.uint64]:
    return np.concatenate(parts).astype(np.uint64)


def _rounded(size: Any, grain: int) -> Any:
    return -(-size // grain) * grain
