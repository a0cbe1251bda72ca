"""What stands in for the encoders of nvCOMP: those of the host, where there are any.

Its own formats have none; zlib is in their place, behind the options that the encoder was given.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from numcodecs import LZ4, GZip, Zstd

__all__ = ["decode", "decoded_size", "encode"]

_STOCK = {"Zstd": Zstd(level=1), "LZ4": LZ4(), "Gzip": GZip(level=1)}
_OWN = struct.Struct("<4IQ")
_WIDTHS = (1, 1, 2, 2, 4, 4, 8, 8)  # by nvcompType_t
_TYPE = {"Bitcomp": 1, "Cascaded": 0}  # which word of the options it is


def encode(algorithm: str, data: bytes, options: Sequence[int]) -> bytes:
    """Return what the encoder of an algorithm makes of bytes."""
    if algorithm == "Deflate":
        return zlib.compress(data, wbits=-15)
    if algorithm in _STOCK:
        made = bytes(_STOCK[algorithm].encode(data))
        return made[4:] if algorithm == "LZ4" else made
    assert len(data) <= 1 << 16
    if algorithm in _TYPE:
        assert len(data) % _WIDTHS[options[_TYPE[algorithm]]] == 0
    return _OWN.pack(*options[:4], len(data)) + zlib.compress(data)


def decode(algorithm: str, data: bytes, space: int) -> bytes:
    """Return what the decoder of an algorithm makes of bytes, where there is so much space."""
    if algorithm == "Deflate":
        return zlib.decompressobj(wbits=-15).decompress(data, space)
    if algorithm == "LZ4":
        data = space.to_bytes(4, "little") + data
    if algorithm in _STOCK:
        return bytes(_STOCK[algorithm].decode(data))[:space]
    return zlib.decompress(data[_OWN.size :])[:space]


def decoded_size(algorithm: str, data: bytes) -> int:
    """Return the bytes that they decode to, as they say themselves; 0 if they do not say it."""
    if algorithm == "Gzip":
        return int.from_bytes(data[-4:], "little")
    if algorithm == "Zstd":
        return _frame_size(data)
    if algorithm == "Deflate":
        return len(zlib.decompress(data, wbits=-15))
    size: int = _OWN.unpack_from(data)[-1]
    return size


def _frame_size(data: bytes) -> int:
    descriptor = data[4]
    single, code = descriptor >> 5 & 1, descriptor >> 6
    width = (single, 2, 4, 8)[code]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)
