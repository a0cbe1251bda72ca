"""Arrays of zarr_format 2 on a device: compressors without filters are done there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from gpu.arrays import field
from gpu.fakecupy import DeviceArray, Fake, on_device

from cas_zarr import CASStore, gpu

COMPRESSORS = {
    "zlib": numcodecs.Zlib(1),
    "lz4": numcodecs.LZ4(),
    "zstd": numcodecs.Zstd(3),
    "gzip": numcodecs.GZip(1),
}
each = pytest.mark.parametrize("name", COMPRESSORS)


def create(store: CASStore, compressor: Any, data: Any, **options: Any) -> Any:
    chunks = options.pop("chunks", (48, 40)[: data.ndim])
    return zarr.create_array(
        store,
        shape=data.shape,
        chunks=chunks,
        dtype=data.dtype,
        compressors=compressor,
        zarr_format=2,
        overwrite=True,
        **options,
    )


@each
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", "i2", "?", "c16"])
def test_both_ways(fake: Fake, tmp_path: Path, name: str, order: Any, dtype: str) -> None:
    data = field((96, 100)).astype(dtype)
    store = CASStore(tmp_path / "repository")
    for on_host in (False, True):
        if on_host:
            create(store, COMPRESSORS[name], data, order=order)[:] = data
        else:
            with gpu.enabled():
                array = create(store, COMPRESSORS[name], data, order=order)
                array[:] = on_device(data)
                array[3:50, 7] = on_device(data[3:50, 7])
        np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)
        fake.library.decoded = 0
        with gpu.enabled():
            found = zarr.open_array(store, mode="r")[:]
        assert isinstance(found, DeviceArray)
        np.testing.assert_array_equal(found.get(), data)
        assert fake.library.decoded == 6
    assert any(call.endswith("CompressAsync") for call in fake.library.calls)


@pytest.mark.parametrize(
    "options",
    [
        {"compressor": numcodecs.Blosc()},
        {"compressor": None},
        {"compressor": numcodecs.Zlib(), "filters": [numcodecs.Delta("f4")]},
        {"compressor": numcodecs.Zstd(checksum=True)},
    ],
    ids=["blosc", "none", "filters", "checksums"],
)
def test_what_a_device_does_not_do(fake: Fake, tmp_path: Path, options: Any) -> None:
    data = np.round(field((96, 100)))
    device, host = (CASStore(tmp_path / name) for name in ("device", "host"))
    compressor = options["compressor"]
    filters = {"filters": options["filters"]} if "filters" in options else {}
    with gpu.enabled():
        create(device, compressor, data, **filters)[:] = on_device(data)
        np.testing.assert_array_equal(zarr.open_array(device, mode="r")[:].get(), data)
    create(host, compressor, data, **filters)[:] = data
    assert device.flush() == host.flush()
    assert not any(call.endswith("CompressAsync") for call in fake.library.calls)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("data", [np.array(7.5), np.array(["a", "bc"]), np.arange(5, dtype=">i4")])
@pytest.mark.filterwarnings("ignore:The data type")
def test_odd_arrays(tmp_path: Path, data: Any) -> None:
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        create(store, numcodecs.Zlib(), data, chunks=data.shape)[...] = data
        found = zarr.open_array(store, mode="r")[...]
        found = found.get() if isinstance(found, DeviceArray) else found
        np.testing.assert_array_equal(np.asarray(found), data)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[...], data)


@pytest.mark.usefixtures("fake")
def test_streams_that_a_device_does_not_take(tmp_path: Path) -> None:
    data = field((48, 40))
    raw = data.tobytes()
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = create(store, numcodecs.Zstd(), data)
        encode = numcodecs.Zstd().encode
        store._tree.mapping["0.0"] = bytes(encode(raw[:100])) + bytes(encode(raw[100:]))
        np.testing.assert_array_equal(array[:].get(), data)


@pytest.mark.gpu
@each
@pytest.mark.parametrize("order", ["C", "F"])
def test_both_ways_on_a_device(cuda: Any, tmp_path: Path, name: str, order: Any) -> None:
    data = field((960, 1000))
    store = CASStore(tmp_path / "repository")
    options = {"order": order, "chunks": (240, 250)}
    with gpu.enabled():
        create(store, COMPRESSORS[name], data, **options)[:] = cuda.asarray(data)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)
    create(store, COMPRESSORS[name], data, **options)[:] = data
    with gpu.enabled():
        np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:].get(), data)
