"""Streams of zlib that a device reads and writes: what stands around the deflate of nvCOMP."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from gpu.arrays import create, field
from gpu.fakecupy import DeviceArray, Fake, on_device

from cas_zarr import CASStore, gpu
from cas_zarr.gpu.frames import Zlib

Codec = pytest.importorskip("zarr.codecs.numcodecs").Zlib  # of zarr 3.1.3 and later

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")


def compressed(data: bytes, *, window: int = 15, dictionary: bytes | None = None) -> bytes:
    """Return a stream of zlib with a window of 2 ** `window` bytes."""
    options = {} if dictionary is None else {"zdict": dictionary}
    encoder = zlib.compressobj(wbits=window, **options)
    return encoder.compress(data) + encoder.flush()


@pytest.mark.parametrize("level", range(-1, 10))
@pytest.mark.usefixtures("fake")
def test_streams_are_those_of_zlib(level: int) -> None:
    random = np.random.default_rng(0)
    sizes = [1, 2, 7, 2048, 2049, 100_000]
    chunks = [random.integers(0, 4, size, np.uint8) for size in sizes]
    made = Zlib(level).encode([on_device(chunk) for chunk in chunks])
    for chunk, one in zip(chunks, made, strict=True):
        stream = one.get().tobytes()
        assert stream[:2] == zlib.compress(b"", level)[:2]
        assert zlib.decompress(stream) == chunk.tobytes()


def test_a_host_and_a_device_exchange_arrays(fake: Fake, tmp_path: Path) -> None:
    data = field()
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        create(store, [Codec(level=3)])[:] = on_device(data)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)
    assert "nvcompBatchedDeflateCompressAsync" in fake.library.calls
    create(store, [Codec(level=3)])[:] = data
    with gpu.enabled():
        found = zarr.open_array(store, mode="r")[:]
    assert isinstance(found, DeviceArray)
    np.testing.assert_array_equal(found.get(), data)
    assert fake.library.decoded == 16


RAW = field((64, 64)).tobytes()
SOUND = zlib.compress(RAW)
ODD = {
    "a small window": compressed(RAW, window=10),
    "a trailing byte": SOUND + b"\0",
    "a trailing stream": SOUND + zlib.compress(b"more"),
}
WRONG = {
    "a wrong checksum": SOUND[:-1] + bytes([SOUND[-1] ^ 1]),
    "a wrong head": b"\x78\x9d" + SOUND[2:],
    "a dictionary": compressed(RAW, dictionary=RAW[:100]),
    "another method": b"\x79" + SOUND[1:],
    "no body": SOUND[:2] + SOUND[-4:],
    "two bytes": SOUND[:2],
}


@pytest.mark.parametrize("stream", ODD.values(), ids=ODD)
@pytest.mark.usefixtures("fake")
def test_odd_streams_are_left_to_the_host(tmp_path: Path, stream: bytes) -> None:
    found = Zlib(1).decode([on_device(np.frombuffer(stream, np.uint8))], [len(RAW)])
    assert found == [None]
    store = CASStore(tmp_path / "repository")
    create(store, [Codec()], (64, 64))
    store._tree.mapping["c/0/0"] = stream
    with gpu.enabled():
        array = zarr.open_array(store, mode="r")
        assert array[:].get().tobytes() == RAW


@pytest.mark.parametrize("stream", WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures("fake")
def test_wrong_streams_are_refused_as_on_a_host(tmp_path: Path, stream: bytes) -> None:
    found = Zlib(1).decode([on_device(np.frombuffer(stream, np.uint8))], [len(RAW)])
    assert found == [None]
    store = CASStore(tmp_path / "repository")
    create(store, [Codec()], (64, 64))
    store._tree.mapping["c/0/0"] = stream
    with gpu.enabled(), pytest.raises(zlib.error):
        zarr.open_array(store, mode="r")[:]


@pytest.mark.usefixtures("fake")
def test_sound_streams_among_odd_ones() -> None:
    streams = [SOUND, *ODD.values(), SOUND]
    found = Zlib(1).decode(
        [on_device(np.frombuffer(stream, np.uint8)) for stream in streams],
        [len(RAW), *[len(RAW)] * len(ODD), len(RAW)],
    )
    assert [one is not None for one in found] == [True, *[False] * len(ODD), True]
    assert found[-1].get().tobytes() == RAW


@pytest.mark.gpu
@pytest.mark.parametrize("level", [-1, 1, 9])
def test_zlib_of_a_device(cuda: Any, level: int) -> None:
    random = np.random.default_rng(0)
    chunks = [
        random.integers(0, most, size, np.uint8)
        for size in (1, 2, 7, 2048, 65_537, 1 << 20, 1 << 24)
        for most in (1, 5, 256)
    ]
    for chunk, made in zip(
        chunks, Zlib(level).encode([cuda.asarray(chunk) for chunk in chunks]), strict=True
    ):
        assert zlib.decompress(made.get().tobytes()) == chunk.tobytes()
    streams = [np.frombuffer(zlib.compress(chunk, level), np.uint8) for chunk in chunks]
    decoded = Zlib(level).decode(
        [cuda.asarray(stream) for stream in streams], [len(chunk) for chunk in chunks]
    )
    for chunk, found in zip(chunks, decoded, strict=True):
        assert found is not None
        assert found.get().tobytes() == chunk.tobytes()
    wrong = streams[-1].copy()
    wrong[-1] ^= 1
    assert Zlib(level).decode([cuda.asarray(wrong)], [len(chunks[-1])]) == [None]
