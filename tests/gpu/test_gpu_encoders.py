"""What only a device can show: the encoders and decoders of nvCOMP beside those of the host."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from gpu.hostformats import bitcomp, bitcomp_type, deflated, unbitcomp
from numcodecs import LZ4 as HostLZ4
from numcodecs import GZip, Zstd
from numpy.typing import NDArray

from cas_zarr.gpu import gdeflate
from cas_zarr.gpu.formats import Ans, Bitcomp, Cascaded, Gdeflate
from cas_zarr.gpu.nvcomp import GZIP, LZ4, ZSTD, Algorithm, Codec
from cas_zarr.gpu.pieces import PIECE, Layout, count_pieces, decode, encode, piece_sizes

pytestmark = pytest.mark.gpu

HOSTS = {ZSTD.name: Zstd(level=3), LZ4.name: HostLZ4(), GZIP.name: GZip(level=1)}
SIZES = [1, 7, 4096, 1 << 16, (1 << 16) + 1, 1 << 20, 1 << 24]


@cache
def contents() -> list[NDArray[np.uint8]]:
    """Return chunks of all sizes: like fields, all zeros, and such as no encoder makes smaller."""
    random = np.random.default_rng(0)
    steps = np.round(random.normal(size=SIZES[-1] // 4).cumsum(), 1).astype("float32")
    field, noise = steps.view(np.uint8), random.integers(0, 256, SIZES[-1], np.uint8)
    return [
        each[:size].copy() for size in SIZES for each in (field, noise, np.zeros_like(noise[:size]))
    ]


def heads(chunks: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.array([len(chunk) for chunk in chunks], "<u4").view(np.uint8).reshape(-1, 4)


@pytest.mark.parametrize("algorithm", [ZSTD, LZ4, GZIP], ids=lambda each: each.name)
def test_a_host_decodes_what_a_device_encoded(cuda: Any, algorithm: Algorithm) -> None:
    chunks = contents()
    given = [cuda.asarray(chunk) for chunk in chunks]
    encoded = Codec(algorithm).compress(given, heads(chunks) if algorithm is LZ4 else None)
    for chunk, made in zip(chunks, encoded, strict=True):
        assert bytes(HOSTS[algorithm.name].decode(made.get().tobytes())) == chunk.tobytes()


@pytest.mark.parametrize("algorithm", [ZSTD, LZ4, GZIP], ids=lambda each: each.name)
def test_a_device_decodes_what_a_host_encoded(cuda: Any, algorithm: Algorithm) -> None:
    chunks = contents()
    head = 4 if algorithm is LZ4 else 0
    made = [np.frombuffer(HOSTS[algorithm.name].encode(chunk), np.uint8)[head:] for chunk in chunks]
    given = [cuda.asarray(each) for each in made]
    codec = Codec(algorithm)
    if algorithm is not LZ4:
        assert codec.decoded_sizes(given).tolist() == [len(chunk) for chunk in chunks]
    decoded = codec.decompress(given, [len(chunk) for chunk in chunks])
    for chunk, found in zip(chunks, decoded, strict=True):
        assert found is not None
        assert found.get().tobytes() == chunk.tobytes()


@pytest.mark.parametrize("algorithm", [ZSTD, GZIP], ids=lambda each: each.name)
def test_chunks_are_larger_than_some_comments_allow(cuda: Any, algorithm: Algorithm) -> None:
    chunk = np.resize(contents()[-3], (24 << 20) + 5)  # the headers say 16 MB, and 2 GiB
    codec = Codec(algorithm)
    (encoded,) = codec.compress([cuda.asarray(chunk)])
    assert bytes(HOSTS[algorithm.name].decode(encoded.get().tobytes())) == chunk.tobytes()
    made = np.frombuffer(HOSTS[algorithm.name].encode(chunk), np.uint8)
    for given in (encoded, cuda.asarray(made)):
        (found,) = codec.decompress([given], [len(chunk)])
        assert found is not None
        assert found.get().tobytes() == chunk.tobytes()


TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
OWN = [
    Ans(),
    *(Bitcomp(name, algorithm) for name in TYPES for algorithm in ("default", "sparse")),
    *(Cascaded(name, level) for name in TYPES for level in (0, 3, 7)),
    *(Gdeflate(level) for level in (0, 1, 2, 4, 5)),
]
own = pytest.mark.parametrize("codec", OWN, ids=repr)


def whole(codec: Any) -> list[NDArray[np.uint8]]:
    """Return chunks that are whole numbers of a codec's elements."""
    return [chunk for chunk in contents() if len(chunk) % codec.width == 0]


def streams(value: bytes) -> list[bytes]:
    """Return the pieces of a value."""
    size, count = count_pieces(value[:16], len(value), "x")
    layout = Layout.read(size, value[16 : 16 + 4 * count], len(value), "x")
    return [
        value[start : start + length]
        for start, length in zip(layout.starts, layout.lengths, strict=True)
    ]


def laid_out(size: int, pieces: list[bytes]) -> NDArray[np.uint8]:
    """Return the value of a chunk, of its pieces."""
    layout = Layout.of(size, np.array([len(piece) for piece in pieces], np.int64))
    padded = [piece + bytes(-len(piece) % 16) for piece in pieces]
    return np.frombuffer((layout.head() + b"".join(padded))[: layout.end], np.uint8)


@own
def test_own_formats_both_ways(cuda: Any, codec: Any) -> None:
    chunks = whole(codec)
    values = encode(codec.nvcomp, [cuda.asarray(chunk) for chunk in chunks])
    again = encode(codec.nvcomp, [cuda.asarray(chunk) for chunk in chunks])
    assert [one.get().tobytes() for one in values] == [one.get().tobytes() for one in again]
    assert values[-1].nbytes < SIZES[-1] // 2  # zeros
    moved = [cuda.asarray(np.concatenate([[0], one.get()]).astype("u1"))[1:] for one in values]
    for given in (values, moved):
        decoded = decode(codec.nvcomp, given, codec.name)
        for chunk, found in zip(chunks, decoded, strict=True):
            assert found.get().tobytes() == chunk.tobytes()


@pytest.mark.parametrize("codec", [one for one in OWN if isinstance(one, Bitcomp)], ids=repr)
def test_a_host_and_a_device_exchange_bitcomp(cuda: Any, codec: Bitcomp) -> None:
    chunks = whole(codec)
    variant, code = codec.nvcomp.options
    for chunk, value in zip(
        chunks, encode(codec.nvcomp, [cuda.asarray(chunk) for chunk in chunks]), strict=True
    ):
        pieces, sizes = streams(value.get().tobytes()), piece_sizes(len(chunk)).tolist()
        assert {bitcomp_type(piece) for piece in pieces} == {code}
        assert b"".join(map(unbitcomp, pieces, sizes)) == chunk.tobytes()
    values = [
        laid_out(
            len(chunk),
            [
                bitcomp(chunk[at : at + PIECE].tobytes(), code, variant)
                for at in range(0, len(chunk), PIECE)
            ],
        )
        for chunk in chunks
    ]
    decoded = decode(codec.nvcomp, [cuda.asarray(value) for value in values], codec.name)
    for chunk, found in zip(chunks, decoded, strict=True):
        assert found.get().tobytes() == chunk.tobytes()


@pytest.mark.parametrize("level", [0, 1, 2, 4, 5])
def test_a_host_and_a_device_exchange_gdeflate(cuda: Any, level: int) -> None:
    if not gdeflate.has_library():
        pytest.skip("no library of nvCOMP for hosts is installed")
    codec, chunks = Gdeflate(level), contents()
    for chunk, value in zip(
        chunks, encode(codec.nvcomp, [cuda.asarray(chunk) for chunk in chunks]), strict=True
    ):
        pieces, sizes = streams(value.get().tobytes()), piece_sizes(len(chunk)).tolist()
        assert b"".join(map(gdeflate.decompress, pieces, sizes)) == chunk.tobytes()
    values = [
        laid_out(
            len(chunk),
            [deflated(chunk[at : at + PIECE].tobytes()) for at in range(0, len(chunk), PIECE)],
        )
        for chunk in chunks
    ]
    decoded = decode(codec.nvcomp, [cuda.asarray(value) for value in values], codec.name)
    for chunk, found in zip(chunks, decoded, strict=True):
        assert found.get().tobytes() == chunk.tobytes()
