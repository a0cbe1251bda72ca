"""Arrays on a real device, held to zarr and numcodecs on the host. Skipped where there is none."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numcodecs import GZip, Zstd
from zarr.codecs import GzipCodec, ZstdCodec

from cas_zarr import CASStore, gpu
from cas_zarr.gpu import gdeflate
from cas_zarr.gpu.formats import Ans, Bitcomp, Cascaded, Gdeflate

codecs = pytest.importorskip("zarr.codecs.numcodecs")  # of zarr 3.1.3 and later

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr"),
]

CODECS = {
    "zstd": ZstdCodec,
    "gzip": GzipCodec,
    "lz4": codecs.LZ4,
    "zlib": codecs.Zlib,
}
OWN = [Ans(), Bitcomp(), Bitcomp("uint8", "sparse"), Cascaded(), Cascaded(level=7), Gdeflate()]
CHUNKS = {"64 KiB": 1 << 14, "1 MiB": 1 << 18, "16 MiB": 1 << 22}  # of float32
FIELDS = ("smooth", "random", "constant")


def field(kind: str, size: int) -> Any:
    """Return numbers that can be compressed well, hardly, or to almost nothing."""
    random = np.random.default_rng(0)
    if kind == "random":
        return random.integers(0, 2**32, size, "uint32").view("float32")
    if kind == "constant":
        return np.full(size, 7, "float32")
    return np.round(random.normal(size=size).cumsum(), 1).astype("float32")


def create(store: CASStore, codec: Any, size: int, chunk: int) -> Any:
    return zarr.create_array(
        store,
        shape=(size,),
        chunks=(chunk,),
        dtype="float32",
        compressors=[] if codec is None else [codec],
        overwrite=True,
    )


@pytest.fixture
def store(tmp_path: Path) -> CASStore:
    """Return an empty repository."""
    return CASStore(tmp_path / "repository")


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("codec", CODECS)
def test_both_ways(cuda: Any, store: CASStore, codec: str, chunk: str, kind: str) -> None:
    size = 4 * CHUNKS[chunk] + 5
    data = field(kind, size)
    with gpu.enabled():
        create(store, CODECS[codec](), size, CHUNKS[chunk])[:] = cuda.asarray(data)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:].view("u4"), data.view("u4"))
    create(store, CODECS[codec](), size, CHUNKS[chunk])[:] = data
    with gpu.enabled():
        found = zarr.open_array(store, mode="r")[:]
    assert isinstance(found, cuda.ndarray)
    np.testing.assert_array_equal(found.get().view("u4"), data.view("u4"))


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
@pytest.mark.parametrize("size", [1 << 14, (1 << 20) + 5])
def test_cids_are_those_of_a_host(cuda: Any, tmp_path: Path, hash: str, size: int) -> None:
    data = field("random", 64 * size)
    device, host = (CASStore(tmp_path / name, hash=hash) for name in ("device", "host"))
    with gpu.enabled():
        create(device, None, len(data), size)[:] = cuda.asarray(data)
    create(host, None, len(data), size)[:] = data
    for row in range(64):
        assert device._tree.mapping.cid_of(f"c/{row}") == host._tree.mapping.cid_of(f"c/{row}")


def test_frames_and_members(cuda: Any, store: CASStore) -> None:
    data = field("smooth", 4096)
    raw = data.tobytes()
    for codec, encoder in ((ZstdCodec(), Zstd()), (GzipCodec(), GZip())):
        create(store, codec, 4096, 4096)
        parts = bytes(encoder.encode(raw[:5000])) + bytes(encoder.encode(raw[5000:]))
        store._tree.mapping["c/0"] = parts
        with gpu.enabled():
            found = zarr.open_array(store, mode="r")[:]
        np.testing.assert_array_equal(cuda.asnumpy(found), data)


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("codec", OWN, ids=repr)
def test_own_formats(cuda: Any, tmp_path: Path, codec: Any, kind: str) -> None:
    size = (1 << 22) + 5
    data = field(kind, size)
    device, host = (CASStore(tmp_path / name) for name in ("device", "host"))
    with gpu.enabled():
        create(device, codec, size, 1 << 20)[:] = cuda.asarray(data)
        found = zarr.open_array(device, mode="r")[:]
    assert isinstance(found, cuda.ndarray)
    np.testing.assert_array_equal(found.get().view("u4"), data.view("u4"))
    create(host, codec, size, 1 << 20)[:] = data  # chunks of NumPy
    assert host.flush() == device.flush()
    found = zarr.open_array(device, mode="r")[:]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found.view("u4"), data.view("u4"))


def test_a_machine_without_a_device_reads_gdeflate(
    cuda: Any, store: CASStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not gdeflate.has_library():
        pytest.skip("no library of nvCOMP for hosts is installed")
    data = field("smooth", 100_000)
    with gpu.enabled():
        create(store, Gdeflate(level=5), len(data), 40_000)[:] = cuda.asarray(data)
    monkeypatch.setitem(sys.modules, "cupy", None)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_filters(cuda: Any, tmp_path: Path, dtype: str) -> None:
    data = field("smooth", 1 << 16).astype(dtype)
    stores = [CASStore(tmp_path / name) for name in ("device", "host")]
    for store in stores:
        with gpu.enabled() if store is stores[0] else nullcontext():
            array = zarr.create_array(
                store,
                shape=data.shape,
                chunks=(10_000,),
                dtype=dtype,
                filters=[codecs.BitRound(keepbits=5)],
                compressors=[codecs.Shuffle()],
            )
            array[:] = cuda.asarray(data) if store is stores[0] else data
    assert stores[0].flush() == stores[1].flush()


def test_duplicates(cuda: Any, store: CASStore) -> None:
    data = field("random", 1 << 20)
    with gpu.enabled():
        array = create(store, ZstdCodec(), 1 << 20, 1 << 14)
        array[:] = cuda.asarray(data)
        data.view("u4")[: 1 << 17] ^= 1  # as numbers some of them are none
        array[:] = cuda.asarray(data)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:].view("u4"), data.view("u4"))
