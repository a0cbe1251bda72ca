"""All that a device cannot do is done on the host, and comes to what a host alone would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from gpu.fakecupy import DeviceArray, on_device
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec
from zarr.core.buffer import cpu

from cas_zarr import CASStore, gpu
from cas_zarr.gpu.buffers import ChunkArray, is_device_dtype

pytestmark = [
    pytest.mark.usefixtures("fake"),
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr"),
    pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification"),
    pytest.mark.filterwarnings("ignore:The codec `vlen-utf8` is currently not part"),
]

SHAPE, CHUNKS = (20, 12), (5, 4)
DTYPES = [
    "?",
    "i1",
    "<u2",
    "<i8",
    "<f2",
    "<f4",
    "<f8",
    "<c8",
    "<c16",
    "<M8[ns]",
    "<m8[s]",
    "<U5",
    "S3",
    "<i4,<f8",
]


def numbers(dtype: str, fill: Any = 0) -> Any:
    """Return elements of a type; chunks of the second row of chunks hold nothing but `fill`."""
    counts = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 50
    if dtype == "<i4,<f8":
        data = np.zeros(SHAPE, dtype)
        data["f0"], data["f1"] = counts, counts / 2
        data[5:10] = np.zeros((), dtype)
        return data
    data = counts.astype(dtype)
    data[5:10] = {"U": "", "S": b"", "M": "NaT", "m": "NaT"}.get(data.dtype.kind, fill)
    return data


def given(data: Any) -> Any:
    """Return an array where a user of a device has it."""
    return on_device(data) if is_device_dtype(data.dtype) else data


def on_host(found: Any) -> Any:
    return found.get() if isinstance(found, DeviceArray) else np.asarray(found)


def check(tmp_path: Path, data: Any, **options: Any) -> None:
    """Write an array on a host and on a device, whole and in part, and read it on a device."""
    stores = {name: CASStore(tmp_path / name) for name in ("host", "device")}

    def write(name: str, change: Any) -> Any:
        array = zarr.create_array(
            stores[name], name="a", shape=data.shape, chunks=CHUNKS, dtype=data.dtype, **options
        )
        array[:] = change(data)
        array[3:7, 2:6] = change(data[8:12, 1:5])  # parts of chunks, some of them empty
        return array

    expected = write("host", lambda each: each)[:]
    with gpu.enabled():
        array = write("device", given)
        found = array[:]
        assert isinstance(found, DeviceArray) == is_device_dtype(data.dtype)
        np.testing.assert_array_equal(on_host(found), expected)
        np.testing.assert_array_equal(on_host(array[2:11, 3]), expected[2:11, 3])
        written = stores["device"].flush()
        np.testing.assert_array_equal(
            on_host(zarr.open_array(stores["host"], path="a", mode="r")[:]), expected
        )
    assert written == stores["host"].flush()
    keys = stores["host"]._tree.mapping.list_keys("a/")
    documents = {"a/.zarray", "a/.zattrs", "a/zarr.json"}
    assert len(set(keys) - documents) < 12  # one of 12 chunks is empty, or more are


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_every_data_type(tmp_path: Path, dtype: str, zarr_format: Any) -> None:
    check(tmp_path, numbers(dtype), compressors=None, zarr_format=zarr_format)


@pytest.mark.parametrize("dtype", ["<f4", "<M8[ns]"])
@pytest.mark.parametrize("fill", [0, 7])
def test_shards(tmp_path: Path, dtype: str, fill: int) -> None:
    data = numbers(dtype, fill)
    value = np.datetime64("NaT", "ns") if dtype == "<M8[ns]" else fill
    check(tmp_path, data, compressors=None, shards=(10, 12), fill_value=value)


@pytest.mark.parametrize("fill", [0.0, -0.0, np.nan, 7.5, np.inf])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<c8"])
def test_empty_chunks_are_not_stored(tmp_path: Path, dtype: str, fill: float) -> None:
    data = numbers(dtype, fill)
    data[10:15] = -data[10:15, :1] * 0  # zeros of the other sign are no fill value
    check(tmp_path, data, compressors=None, fill_value=fill)


@pytest.mark.parametrize("times", [0, 3])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<c8", "<c16"])
def test_chunks_of_tiny_numbers_are_not_empty(tmp_path: Path, dtype: str, times: int) -> None:
    tiny = float(np.finfo(dtype).smallest_subnormal)
    data = numbers(dtype, times * tiny)
    data[10:15] = tiny
    check(tmp_path, data, compressors=None, fill_value=times * tiny)


def test_an_array_tells_whether_it_is_equal() -> None:
    for dtype in ("<f4", "<i2", "?", "<c16"):
        for value in (0, 1):
            array = ChunkArray(on_device(np.full((3, 4), value, dtype)))  # type: ignore[arg-type]
            assert array.all_equal(np.dtype(dtype).type(value))
            assert not array.all_equal(np.dtype(dtype).type(1 - value))
            assert not array.all_equal(None)
    differ = not cpu.NDBuffer(np.zeros(3)).all_equal(-0.0)  # older releases do not tell
    assert ChunkArray(on_device(np.zeros(3))).all_equal(-0.0) != differ  # type: ignore[arg-type]
    nothing = ChunkArray(on_device(np.full(3, np.nan)))  # type: ignore[arg-type]
    assert nothing.all_equal(np.nan)
    assert not nothing.all_equal(np.nan, equal_nan=False)


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": BloscCodec(cname="zstd", shuffle="shuffle", typesize=4)},
        {"compressors": [Crc32cCodec()]},
        {"compressors": None, "filters": [TransposeCodec(order=(1, 0))]},
        {"compressors": None, "serializer": BytesCodec(endian="big")},
    ],
    ids=["blosc", "crc32c", "transpose", "big"],
)
@pytest.mark.parametrize("dtype", ["<f4", "<M8[ns]"])
def test_codecs_of_zarr(tmp_path: Path, options: Any, dtype: str) -> None:
    check(tmp_path, numbers(dtype), **options)


@pytest.mark.parametrize("name", ["Delta", "FixedScaleOffset", "BZ2", "CRC32", "Blosc", "LZMA"])
def test_codecs_of_numcodecs(tmp_path: Path, name: str) -> None:
    codecs = pytest.importorskip("zarr.codecs.numcodecs")
    options: Any = {
        "Delta": {"dtype": "<f4"},
        "FixedScaleOffset": {"offset": 0, "scale": 10, "dtype": "<f4", "astype": "<i4"},
    }.get(name, {})
    codec = getattr(codecs, name)(**options)
    place: Any = {"compressors": [codec]}
    if name in ("Delta", "FixedScaleOffset"):
        place = {"filters": [codec], "compressors": None}
    check(tmp_path, numbers("<f4"), **place)


@pytest.mark.parametrize("codec", [numcodecs.Zlib(1), numcodecs.Blosc(), numcodecs.LZ4()])
def test_codecs_of_format_2(tmp_path: Path, codec: Any) -> None:
    check(
        tmp_path,
        numbers("<f4"),
        compressors=codec,
        filters=[numcodecs.Delta("<f4")],
        order="F",
        zarr_format=2,
    )


def test_strings_of_any_length(tmp_path: Path) -> None:
    data = np.array(["", "a", "größe", "x" * 300] * 60, object).reshape(SHAPE)
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = zarr.create_array(store, shape=SHAPE, chunks=CHUNKS, dtype=str)
        array[:] = data.astype(array.dtype)
        np.testing.assert_array_equal(np.asarray(array[:]), data)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(store, mode="r")[:]), data)
