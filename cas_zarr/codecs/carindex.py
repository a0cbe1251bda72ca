"""The index of a CARv2 file: MultihashIndexSorted (0x0401), multihash -> offset of its section.

::

    varint 0x0401 | u32 number of codes
      for each multihash code, ascending:    u64 code | u32 number of widths
        for each width, ascending:           u32 width | u64 bytes | records
          record, ascending by digest:       digest (width - 8 bytes) | u64 offset

All little-endian; an offset is that of the section in the CARv1 payload. Encoding and checking work
on NumPy arrays, so a million records cost a fraction of a second.

Source: https://ipld.io/specs/transport/car/carv2/ and go-car, its reference.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import BytesLike, decode_varint, encode_varint
from cas_zarr.errors import FormatError, InvalidCIDError

__all__ = [
    "INDEX_SORTED",
    "MULTIHASH_INDEX_SORTED",
    "Buffer",
    "Digests",
    "IndexGroup",
    "Offsets",
    "decode_index",
    "encode_index",
    "group_arrays",
    "index_codec",
    "index_groups",
]

INDEX_SORTED = 0x0400
MULTIHASH_INDEX_SORTED = 0x0401

Buffer: TypeAlias = "BytesLike | mmap.mmap"
Digests: TypeAlias = NDArray[np.uint8]
Offsets: TypeAlias = NDArray[np.uint64]

_OFFSET_SIZE = 8
_MAX_DIGEST = 512


@dataclass(frozen=True, slots=True)
class IndexGroup:
    """Where the records of one multihash code and digest length lie in an index.

    Attributes
    ----------
    code : int
        Multihash code.
    digest_size : int
        Bytes of a digest.
    start : int
        Offset of the first record, in bytes.
    count : int
        Number of records.
    """

    code: int
    digest_size: int
    start: int
    count: int

    @property
    def stride(self) -> int:
        """Bytes of a record."""
        return self.digest_size + _OFFSET_SIZE

    @property
    def stop(self) -> int:
        """Offset behind the last record, in bytes."""
        return self.start + self.count * self.stride


def encode_index(groups: Iterable[tuple[int, Digests, Offsets]]) -> bytes:
    """Encode an index with its codec in front.

    Parameters
    ----------
    groups : iterable of (int, (n, w) array of uint8, (n,) array of uint64)
        Multihash code, digests and offsets in any order; each code and width once.
    """
    by_code: dict[int, list[tuple[Digests, Offsets]]] = {}
    for code, digests, offsets in groups:
        if len(digests):
            by_code.setdefault(code, []).append((digests, offsets))
    out: list[BytesLike] = [encode_varint(MULTIHASH_INDEX_SORTED), _u32(len(by_code))]
    for code in sorted(by_code):
        widths = sorted(by_code[code], key=lambda group: group[0].shape[1])
        out += [_u64(code), _u32(len(widths))]
        for digests, offsets in widths:
            count, size = digests.shape
            order = _digest_order(digests)
            records = np.empty((count, size + _OFFSET_SIZE), dtype=np.uint8)
            np.take(digests, order, axis=0, out=records[:, :size])
            records[:, size:] = (
                offsets[order].astype("<u8").view(np.uint8).reshape(count, _OFFSET_SIZE)
            )
            out += [_u32(size + _OFFSET_SIZE), _u64(records.nbytes), records.data]
    return b"".join(out)


def index_codec(data: Buffer, start: int = 0) -> tuple[int, int]:
    """Return the codec of an index, known here or not, and the offset of what follows."""
    try:
        codec, behind = decode_varint(bytes(data[start : start + 10]))
        return codec, start + behind
    except InvalidCIDError:
        raise FormatError("a car index does not begin with its codec") from None


def index_groups(data: Buffer, start: int = 0) -> tuple[IndexGroup, ...]:
    """Read the framing of a MultihashIndexSorted that fills `data` from `start`, not its records.

    Raises
    ------
    FormatError
        If it is another index, or counts and lengths do not add up to its size.
    """
    codec, offset = index_codec(data, start)
    if codec != MULTIHASH_INDEX_SORTED:
        raise FormatError(
            f"a car has an index of codec 0x{codec:x}, where a MultihashIndexSorted (0x401) is "
            "needed"
        )
    size = len(data)

    def number(width: int) -> int:
        nonlocal offset
        if offset + width > size:
            raise FormatError(f"a car index is cut off at {size} bytes")
        offset += width
        return int.from_bytes(data[offset - width : offset], "little")

    groups: list[IndexGroup] = []
    last_code = -1
    for _ in range(number(4)):
        code, widths = number(8), number(4)
        if code <= last_code:
            raise FormatError("the multihash codes of a car index are not in order")
        last_code, last_width = code, -1
        for _ in range(widths):
            width, length = number(4), number(8)
            if not _OFFSET_SIZE <= width <= _MAX_DIGEST or width <= last_width or length % width:
                raise FormatError(
                    f"a car index has records of {width} bytes in {length} bytes, or out of order"
                )
            if length > size - offset:
                raise FormatError(
                    f"a car index is cut off: {length} bytes of records are announced and "
                    f"{size - offset} are there"
                )
            groups.append(IndexGroup(code, width - _OFFSET_SIZE, offset, length // width))
            last_width = width
            offset += length
    if offset != size:
        raise FormatError(f"{size - offset} bytes follow a car index")
    return tuple(groups)


def group_arrays(data: Buffer, group: IndexGroup) -> tuple[Digests, Offsets]:
    """View the digests, (n, w) uint8, and the offsets, (n,) uint64, of a group, without a copy."""
    digests: Digests = np.ndarray(
        (group.count, group.digest_size),
        np.uint8,
        buffer=data,
        offset=group.start if group.count else 0,
        strides=(group.stride, 1),
    )
    offsets: Offsets = np.ndarray(
        (group.count,),
        np.dtype("<u8"),
        buffer=data,
        offset=group.start + group.digest_size if group.count else 0,
        strides=(group.stride,),
    )
    return digests, offsets


def decode_index(data: BytesLike) -> list[tuple[int, Digests, Offsets]]:
    """Decode a MultihashIndexSorted and check the order of its records.

    Returns
    -------
    list of (int, (n, w) array of uint8, (n,) array of uint64)
        Multihash code, digests ascending, and offsets; views of `data`.

    Raises
    ------
    FormatError
        If anything in it is not as the format wants it.
    """
    decoded = []
    for group in index_groups(data):
        digests, offsets = group_arrays(data, group)
        if bool((offsets >= np.uint64(1 << 63)).any()):
            raise FormatError("a car index has an offset beyond 2^63")
        if group.digest_size and group.count > 1:
            rows = _rows(digests)
            if not bool((rows[:-1] <= rows[1:]).all()):
                raise FormatError("the digests of a car index are not in order")
        decoded.append((group.code, digests, offsets))
    return decoded


def _digest_order(digests: Digests) -> NDArray[np.intp]:
    count, size = digests.shape
    if size == 0:
        return np.arange(count)
    if size >= _OFFSET_SIZE:  # digests differ in their first eight bytes, but for hostile ones
        head = np.ascontiguousarray(digests[:, :8]).view(">u8").ravel().astype(np.uint64)
        order = np.argsort(head, kind="stable")
        head = head[order]
        if not bool((head[1:] == head[:-1]).any()):
            return order
    return np.argsort(_rows(digests), kind="stable")


def _rows(digests: Digests) -> NDArray[np.bytes_]:
    """View each digest as one item; items of one length compare as their bytes do."""
    return np.ascontiguousarray(digests).view(f"S{digests.shape[1]}").ravel()


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")
