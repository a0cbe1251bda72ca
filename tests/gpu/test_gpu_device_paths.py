"""Memory, shards, datasets and several devices, on real ones. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from gpu.hostkernels import EDGES, scattered
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec
from zarr.storage import MemoryStore

from cas_zarr import CASStore, gpu
from cas_zarr.errors import DeviceMemoryError
from cas_zarr.gpu.gather import to_host

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> CASStore:
    """Return an empty repository."""
    return CASStore(tmp_path / "repository")


@pytest.fixture
def pool(cuda: Any) -> Iterator[Any]:
    """Return CuPy's pool, without a limit again once a test is over."""
    found = cuda.get_default_memory_pool()
    found.free_all_blocks()
    yield found
    found.set_limit(size=0)


def smooth(size: int) -> Any:
    """Return so many float32 that can be compressed."""
    return np.round(np.random.default_rng(0).normal(size=size).cumsum(), 1).astype("f4")


def create(store: Any, size: int, chunk: int, **options: Any) -> Any:
    return zarr.create_array(
        store,
        shape=(size,),
        chunks=(chunk,),
        dtype="f4",
        compressors=[ZstdCodec()],
        overwrite=True,
        **options,
    )


@pytest.mark.parametrize("gathered", [False, True])
def test_blobs_come_to_the_host(cuda: Any, gathered: bool) -> None:
    sizes = [*EDGES, 8191, 8192, 8193, 70_000, 5 * MIB + 3] * 3
    slab, offsets = scattered(sizes)
    there = cuda.asarray(slab)
    blobs = [there[at : at + size] for at, size in zip(offsets, sizes, strict=True)]
    found = to_host(blobs, gathered=gathered)
    for at, size, blob in zip(offsets, sizes, found, strict=True):
        assert bytes(blob) == slab[at : at + size].tobytes()


def test_batches_fit_into_little_memory(cuda: Any, pool: Any, store: CASStore) -> None:
    data = smooth(64 * MIB)
    given = cuda.asarray(data)
    with gpu.enabled(batch_size=256):
        array = create(store, len(data), MIB // 4)
        pool.free_all_blocks()
        # Less than the slots of all chunks, and more than an encoder's 130 MiB with its scratch, or
        # what is read of a part, 30 MiB, and decoded, and returned, 64 MiB each.
        pool.set_limit(size=pool.used_bytes() + 256 * MIB)
        array[:] = given
        for start in range(0, len(data), 16 * MIB):
            part = array[start : start + 16 * MIB]
            np.testing.assert_array_equal(part.get(), data[start : start + 16 * MIB])
            del part
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


def test_what_does_not_fit_is_told(cuda: Any, pool: Any, store: CASStore) -> None:
    data = smooth(4 * MIB)
    given = cuda.asarray(data)
    with gpu.enabled():
        array = create(store, len(data), len(data))
        pool.free_all_blocks()
        pool.set_limit(size=pool.used_bytes() + MIB)
        with pytest.raises(DeviceMemoryError, match="device 0"):
            array[:] = given
        assert list(store._tree.mapping.list_keys("c/")) == []
        pool.set_limit(size=0)
        array[:] = given
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_shards_have_the_cids_of_a_host(cuda: Any, tmp_path: Path, hash: str) -> None:
    data = smooth(16 * MIB)
    device, host = (CASStore(tmp_path / name, hash=hash) for name in ("device", "host"))
    with gpu.enabled():
        array = create(device, len(data), MIB // 4, shards=(8 * MIB,))
        array[:] = cuda.asarray(data)
        array[5 : MIB // 2] = cuda.asarray(data[5 : MIB // 2] + 1)
        data[5 : MIB // 2] += 1
        np.testing.assert_array_equal(array[:].get(), data)
        np.testing.assert_array_equal(array[7 : 3 * MIB].get(), data[7 : 3 * MIB])
    create(host, len(data), MIB // 4, shards=(8 * MIB,))
    for row in range(2):
        key = f"c/{row}"
        host._tree.mapping[key] = device._tree.mapping[key]
        assert host._tree.mapping.cid_of(key) == device._tree.mapping.cid_of(key)
    np.testing.assert_array_equal(zarr.open_array(device, mode="r")[:], data)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16"])
def test_inner_chunks_begin_anywhere(cuda: Any, store: CASStore, dtype: str) -> None:
    data = np.arange(1 << 14).astype(dtype)
    inner = ShardingCodec(chunk_shape=(256,), codecs=[BytesCodec()], index_location="start")
    with gpu.enabled():
        array = zarr.create_array(
            store,
            shape=data.shape,
            chunks=(1 << 12,),
            dtype=dtype,
            compressors=None,
            serializer=inner,
        )
        array[:] = cuda.asarray(data)
        np.testing.assert_array_equal(array[:].get(), data)
        np.testing.assert_array_equal(array[100:900].get(), data[100:900])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8"])
def test_tiny_numbers_are_not_taken_for_zero(cuda: Any, store: CASStore, dtype: str) -> None:
    data = np.full(1000, np.finfo(dtype).smallest_subnormal, dtype)
    with gpu.enabled():
        array = zarr.create_array(store, shape=data.shape, chunks=(100,), dtype=dtype, fill_value=0)
        array[:] = cuda.asarray(data)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


def test_bytes_of_other_stores(cuda: Any) -> None:
    data, store = smooth(MIB), MemoryStore()
    with gpu.enabled():
        array = create(store, len(data), MIB // 4)
        array[:] = cuda.asarray(data)
        np.testing.assert_array_equal(array[:].get(), data)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


def test_datasets_of_xarray(cuda: Any, store: CASStore) -> None:
    data = xr.Dataset({"t": (("y", "x"), smooth(1 << 16).reshape(256, 256))}, {"y": np.arange(256)})
    with gpu.enabled():
        given = data.assign(t=data["t"].copy(data=cuda.asarray(data["t"].values)))
        given.to_zarr(store, mode="w", encoding={"t": {"chunks": (64, 64)}})
        opened = xr.open_zarr(store, chunks=None, consolidated=False, create_default_indexes=False)
        found = opened["t"].data
    assert isinstance(found, cuda.ndarray)
    np.testing.assert_array_equal(found.get(), data["t"].values)
    xr.testing.assert_identical(xr.open_zarr(store, chunks=None, consolidated=False).load(), data)


def test_two_devices(cuda: Any, store: CASStore) -> None:
    if cuda.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device of CUDA; two are needed")
    data = smooth(8 * MIB)
    with cuda.cuda.Device(1):
        given = cuda.asarray(data)
    with gpu.enabled():
        array = create(store, len(data), MIB // 4)
        array[:] = given
        found = array[:]
        assert found.device.id == 0
        np.testing.assert_array_equal(found.get(), data)
    with cuda.cuda.Device(1):
        settings = gpu.enabled()
    with settings:
        found = zarr.open_array(store, mode="r")[:]
        assert found.device.id == 1
        np.testing.assert_array_equal(found.get(), data)
