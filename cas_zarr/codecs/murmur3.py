"""MurmurHash3, by which sharded UnixFS directories place names: x64, the first of its two words.

It is no cryptographic hash: nothing is verified with it. Names of equal length are hashed together,
as columns, so that a million take about a second.

Source: A. Appleby, MurmurHash3_x64_128, https://github.com/aappleby/smhasher; the first 64 bits,
seed 0, is what the multicodec table calls ``murmur3-x64-64`` (0x22).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MURMUR3_X64_64", "murmur3"]

MURMUR3_X64_64: Final = 0x22
"""Code of the hash in the multicodec table."""

_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_M1, _M2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_ADD1, _ADD2 = np.uint64(0x52DCE729), np.uint64(0x38495AB5)
_FIVE = np.uint64(5)
_BATCH = 1 << 16

_Words = NDArray[np.uint64]


def murmur3(names: Sequence[bytes]) -> _Words:
    """Return the hash of each of many names.

    Parameters
    ----------
    names : sequence of bytes

    Returns
    -------
    array of uint64, shape (n,)
        The first word of the hash. Sharded directories take its bytes from the greatest on.
    """
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    out = np.empty(len(names), np.uint64)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            joined = b"".join([names[row] for row in part.tolist()])
            out[part] = _hash(joined, len(part), length)
    return out


def _hash(joined: bytes, n: int, length: int) -> _Words:
    """Hash `n` names of one length, which stand one after another."""
    blocks, tail = divmod(length, 16)
    padded = np.zeros((n, 16 * (blocks + 1)), np.uint8)
    padded[:, :length] = np.frombuffer(joined, np.uint8).reshape(n, length)
    words = padded.view("<u8").astype(np.uint64, copy=False)
    h1 = np.zeros(n, np.uint64)
    h2 = np.zeros(n, np.uint64)
    for block in range(blocks):
        h1 ^= _mixed_1(words[:, 2 * block])
        h1 = (_rotated(h1, 27) + h2) * _FIVE + _ADD1
        h2 ^= _mixed_2(words[:, 2 * block + 1])
        h2 = (_rotated(h2, 31) + h1) * _FIVE + _ADD2
    if tail > 8:
        h2 ^= _mixed_2(words[:, 2 * blocks + 1])
    if tail:
        h1 ^= _mixed_1(words[:, 2 * blocks])
    size = np.uint64(length)
    h1 ^= size
    h2 ^= size
    h1 = h1 + h2
    h2 = h2 + h1
    return _finished(h1) + _finished(h2)


def _mixed_1(word: _Words) -> _Words:
    return _rotated(word * _C1, 31) * _C2


def _mixed_2(word: _Words) -> _Words:
    return _rotated(word * _C2, 33) * _C1


def _rotated(word: _Words, bits: int) -> _Words:
    turned: Any = word << np.uint64(bits) | word >> np.uint64(64 - bits)
    return turned  # type: ignore[no-any-return]


def _finished(word: _Words) -> _Words:
    word = word ^ word >> np.uint64(33)
    word = word * _M1
    word = word ^ word >> np.uint64(33)
    word = word * _M2
    return word ^ word >> np.uint64(33)
