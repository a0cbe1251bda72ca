"""Codecs of bytes that a device does as a host does, a batch at once.

Each stands between what numcodecs writes and what nvCOMP knows: sizes before blocks, heads and
checksums around streams. Where a device cannot do a chunk there is None in its place, and the codec
of the host does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.gpu.checksums import write_checksums
from cas_zarr.gpu.gather import to_host
from cas_zarr.gpu.kernels import cupy
from cas_zarr.gpu.nvcomp import DEFLATE, GZIP, LZ4, ZSTD, Algorithm, Codec

__all__ = ["Frame", "Shuffle", "SizedBlock", "Stream", "Zlib", "frame_of"]

_STREAMS: Final = {"gzip": GZIP, "zstd": ZSTD}
_LZ4_HEAD: Final = 4
_ZLIB_HEAD: Final = 2
_ZLIB_TAIL: Final = 4
_DEFLATED: Final = 0x78  # deflate, with a window of 32 KiB
_DICTIONARY: Final = 0x20

Chunks: TypeAlias = Sequence[Any]
"""Arrays of CuPy, of uint8, contiguous, on the current device, none empty."""

Done: TypeAlias = Sequence[Any | None]


class Frame(Protocol):
    """What a device does to the chunks of a batch."""

    def encode(self, chunks: Chunks) -> Done:
        """Encode chunks."""

    def decode(self, chunks: Chunks, sizes: Sequence[int]) -> Done:
        """Decode chunks that give as many bytes; where a size is 0 it is not known."""


@dataclass(frozen=True)
class Stream:
    """Streams as nvCOMP writes them, which say their size: zstd and gzip.

    Attributes
    ----------
    algorithm : Algorithm
    """

    algorithm: Algorithm

    def encode(self, chunks: Chunks) -> Done:
        """Encode chunks."""
        codec = Codec(self.algorithm)
        return _some(codec.compress, chunks, [_fits(self.algorithm, one.nbytes) for one in chunks])

    def decode(self, chunks: Chunks, sizes: Sequence[int]) -> Done:
        """Decode streams that say that they give as many bytes: one frame or member."""
        codec = Codec(self.algorithm)
        claimed = codec.decoded_sizes(chunks).tolist()
        right = [
            _fits(self.algorithm, size) and size == claim
            for size, claim in zip(sizes, claimed, strict=True)
        ]
        return _some(codec.decompress, chunks, right, sizes)


@dataclass(frozen=True)
class SizedBlock:
    """Blocks of LZ4 behind their size, little-endian in four bytes, as numcodecs writes them."""

    def encode(self, chunks: Chunks) -> Done:
        """Encode chunks."""

        def work(some: Chunks) -> Done:
            sizes = np.array([chunk.nbytes for chunk in some], "<u4")
            return Codec(LZ4).compress(some, sizes.view(np.uint8).reshape(-1, _LZ4_HEAD))

        return _some(work, chunks, [_fits(LZ4, chunk.nbytes) for chunk in chunks])

    def decode(self, chunks: Chunks, sizes: Sequence[int]) -> Done:
        """Decode blocks behind the size that was asked for."""
        heads = to_host([chunk[:_LZ4_HEAD] for chunk in chunks])
        right = [
            _fits(LZ4, size) and chunk.nbytes > _LZ4_HEAD and size.to_bytes(4, "little") == head
            for chunk, size, head in zip(chunks, sizes, heads, strict=True)
        ]
        blocks = [chunk[_LZ4_HEAD:] for chunk in chunks]
        return _some(Codec(LZ4).decompress, blocks, right, sizes)


@dataclass(frozen=True)
class Zlib:
    """Streams of deflate between two bytes of head and an Adler-32: RFC 1950.

    Attributes
    ----------
    level : int
        As zlib has it; the head tells how hard the encoder was to try, and no more.
    """

    level: int

    def encode(self, chunks: Chunks) -> Done:
        """Encode chunks."""
        return _some(self._encode, chunks, [_fits(DEFLATE, chunk.nbytes) for chunk in chunks])

    def decode(self, chunks: Chunks, sizes: Sequence[int]) -> Done:
        """Decode streams with windows of 32 KiB and no dictionary, whose checksum is right."""
        heads = to_host([chunk[:_ZLIB_HEAD] for chunk in chunks])
        right = [
            _fits(DEFLATE, size) and chunk.nbytes > _ZLIB_HEAD + _ZLIB_TAIL and _is_plain(head)
            for chunk, size, head in zip(chunks, sizes, heads, strict=True)
        ]
        return _some(self._decode, chunks, right, sizes)

    def _encode(self, chunks: Chunks) -> Done:
        head = np.frombuffer(_zlib_head(self.level), np.uint8)
        made = Codec(DEFLATE).compress(chunks, np.tile(head, (len(chunks), 1)), tail=_ZLIB_TAIL)
        ends = np.array([one.data.ptr + one.nbytes for one in made])
        write_checksums(*_places(chunks), ends - _ZLIB_TAIL)
        return made

    def _decode(self, chunks: Chunks, sizes: Sequence[int]) -> Done:
        streams = [chunk[_ZLIB_HEAD:-_ZLIB_TAIL] for chunk in chunks]
        decoded = Codec(DEFLATE).decompress(streams, sizes)
        rows = [row for row, one in enumerate(decoded) if one is not None]
        found = cupy().empty((len(rows), _ZLIB_TAIL), np.uint8)
        targets = found.data.ptr + _ZLIB_TAIL * np.arange(len(rows))
        write_checksums(*_places([decoded[row] for row in rows]), targets)
        written = to_host([chunks[row][-_ZLIB_TAIL:] for row in rows])
        for row, tail, computed in zip(rows, written, found.get(), strict=True):
            if tail != computed.tobytes():
                decoded[row] = None
        return decoded


@dataclass(frozen=True)
class Shuffle:
    """Bytes of elements put together by their significance.

    Attributes
    ----------
    width : int
        Bytes of an element.
    """

    width: int

    def encode(self, chunks: Chunks) -> Done:
        """Put all first bytes first; whole elements only."""
        return [
            chunk.reshape(-1, self.width).T.ravel() if self._takes(chunk) else None
            for chunk in chunks
        ]

    def decode(self, chunks: Chunks, sizes: Sequence[int]) -> Done:
        """Put the bytes of each element together again."""
        del sizes  # they are those of the chunks
        return [
            chunk.reshape(self.width, -1).T.ravel() if self._takes(chunk) else None
            for chunk in chunks
        ]

    def _takes(self, chunk: Any) -> bool:
        return self.width > 1 and chunk.nbytes % self.width == 0


def frame_of(name: str, configuration: Mapping[str, Any]) -> Frame | None:
    """Return what a device does for a codec of numcodecs, if it does something."""
    if name in _STREAMS:
        return Stream(_STREAMS[name])
    if name == "lz4":
        return SizedBlock()
    if name == "zlib":
        return Zlib(int(configuration.get("level", 1)))
    if name == "shuffle":
        return Shuffle(int(configuration.get("elementsize") or 4))
    return None


def _zlib_head(level: int) -> bytes:
    """Return what zlib puts before a stream of a level; -1 is 6."""
    effort = (0, 0, 1, 1, 1, 1, 2, 3, 3, 3)[6 if level == -1 else level]
    flags = effort << 6
    return bytes([_DEFLATED, flags + -(_DEFLATED << 8 | flags) % 31])


def _is_plain(head: memoryview) -> bool:
    method, flags = head
    return method == _DEFLATED and not flags & _DICTIONARY and (method << 8 | flags) % 31 == 0


def _fits(algorithm: Algorithm, size: int) -> bool:
    return 0 < size <= algorithm.largest


def _places(chunks: Chunks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array([chunk.data.ptr for chunk in chunks]), np.array([one.nbytes for one in chunks])


def _some(
    work: Callable[..., Done], chunks: Chunks, right: Sequence[bool], *others: Sequence[Any]
) -> list[Any | None]:
    """Do those chunks that are right, and give None for the others."""
    rows = [row for row, here in enumerate(right) if here]
    done: list[Any | None] = [None] * len(chunks)
    if rows:
        columns = [[column[row] for row in rows] for column in (chunks, *others)]
        for row, made in zip(rows, work(*columns), strict=True):
            done[row] = made
    return done
