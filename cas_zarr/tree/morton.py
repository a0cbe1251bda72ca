"""Morton codes of chunk coordinates.

Bit ``l`` of coordinate ``i`` of ``ndim`` stands at position ``l * ndim + (ndim - 1 - i)`` of the
code, so a coordinate below 2**32 gives a code below 2**(32 * ndim), and the chunks that share the
leading bits of their codes fill a compact, aligned box of the grid.

Arrays of codes are uint64 where every code fits and hold Python integers (dtype object) where one
does not; every function here and in the tree takes both.

Source: G. M. Morton, A computer oriented geodetic data base, 1966.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.errors import LimitError

__all__ = [
    "COORDINATE_BITS",
    "MAX_NDIM",
    "Codes",
    "bit_lengths",
    "code_bits",
    "code_of",
    "coordinates_of",
    "decode",
    "encode",
    "fit",
    "search",
    "spread",
]

COORDINATE_BITS = 32
MAX_NDIM = 32

Codes: TypeAlias = "NDArray[Any]"  # uint64, or object where a code is wider

_WORD = 1 << 64


def code_bits(ndim: int) -> int:
    """Return the number of bits of a code of `ndim` coordinates."""
    return COORDINATE_BITS * ndim


@lru_cache(maxsize=1 << 16)
def spread(coordinate: int, ndim: int) -> int:
    """Return `coordinate` with its bits `ndim` apart: the code of the last of `ndim` axes."""
    code = 0
    for bit in range(coordinate.bit_length()):
        code |= (coordinate >> bit & 1) << bit * ndim
    return code


def code_of(coordinates: tuple[int, ...]) -> int:
    """Return the code of one chunk."""
    ndim = len(coordinates)
    code = 0
    for axis, coordinate in enumerate(coordinates):
        code |= spread(coordinate, ndim) << (ndim - 1 - axis)
    return code


def coordinates_of(code: int, ndim: int) -> tuple[int, ...]:
    """Return the coordinates of one code."""
    coordinates = [0] * ndim
    for position in range(code.bit_length()):
        if code >> position & 1:
            bit, rest = divmod(position, ndim)
            coordinates[ndim - 1 - rest] |= 1 << bit
    return tuple(coordinates)


def encode(coordinates: NDArray[Any]) -> Codes:
    """Return the codes of many chunks.

    Parameters
    ----------
    coordinates : array of integers, shape (n, ndim)
        Chunk coordinates, each in 0 ... 2**32 - 1.
    """
    count, ndim = coordinates.shape
    if ndim == 0:
        return np.zeros(count, np.uint64)
    highest = int(coordinates.max(initial=0))
    if highest >> COORDINATE_BITS or int(coordinates.min(initial=0)) < 0:
        raise LimitError(f"a chunk coordinate is beyond 0 ... 2**{COORDINATE_BITS} - 1")
    bits = highest.bit_length()
    wide = bits * ndim > 64
    out: Codes = np.zeros(count, object if wide else np.uint64)
    table = _spread_table(ndim, wide)
    for axis in range(ndim):
        column = coordinates[:, axis].astype(np.int64)
        for byte in range((bits + 7) // 8):
            part = table[(column >> 8 * byte) & 0xFF]
            out |= part << _shift(8 * byte * ndim + ndim - 1 - axis, wide)
    return out


def decode(codes: Codes, ndim: int) -> NDArray[np.int64]:
    """Return the coordinates, shape (n, ndim), of many codes."""
    out = np.zeros((len(codes), ndim), np.int64)
    if len(codes) == 0 or ndim == 0:
        return out
    wide = codes.dtype == object
    bits = (int(codes.max()).bit_length() + ndim - 1) // ndim
    one: Any = 1 if wide else np.uint64(1)
    for axis in range(ndim):
        for bit in range(bits):
            position = bit * ndim + ndim - 1 - axis
            if position > 63 and not wide:  # the last level is cut off where a word ends
                break
            part = (codes >> _shift(position, wide)) & one
            out[:, axis] |= part.astype(np.int64) << bit
    return out


def bit_lengths(codes: Codes) -> NDArray[np.int64]:
    """Return the number of bits of each code (0 for the code 0)."""
    if codes.dtype == object:
        return np.fromiter((code.bit_length() for code in codes), np.int64, len(codes))
    high = (codes >> np.uint64(32)).astype(np.float64)
    low = (codes & np.uint64(0xFFFFFFFF)).astype(np.float64)
    lengths = np.where(high > 0, np.frexp(high)[1] + 32, np.frexp(low)[1])
    return lengths.astype(np.int64)


def fit(codes: Codes) -> Codes:
    """Return the codes as uint64 where all of them fit, else unchanged."""
    if codes.dtype == object and (len(codes) == 0 or codes.max() < _WORD):
        return codes.astype(np.uint64)
    return codes


def search(codes: Codes, value: int) -> int:
    """Return how many of the sorted `codes` are below `value`."""
    if codes.dtype == object:
        return int(np.searchsorted(codes, value))
    if value >= _WORD:
        return len(codes)
    return int(np.searchsorted(codes, np.uint64(value)))


def _shift(count: int, wide: bool) -> Any:
    return count if wide else np.uint64(min(count, 63))


@lru_cache(maxsize=64)
def _spread_table(ndim: int, wide: bool) -> NDArray[Any]:
    values = [spread(value, ndim) for value in range(256)]
    if wide:
        return np.array(values, object)
    return np.array([value % _WORD for value in values], np.uint64)
