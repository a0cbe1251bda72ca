"""zarr 2.18 on `CASMapping`, in an environment of its own: zarr 3 cannot be beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

zarr = pytest.importorskip("zarr")
if not zarr.__version__.startswith("2."):
    pytest.skip(
        f"zarr {zarr.__version__} is installed; these tests are for zarr 2.18 and run in an "
        "environment of their own",
        allow_module_level=True,
    )

import numcodecs  # noqa: E402

from cas_zarr import CASMapping  # noqa: E402
from cas_zarr.blocks.base import BlockStore  # noqa: E402
from cas_zarr.blocks.local import LocalBlocks  # noqa: E402
from cas_zarr.blocks.memory import MemoryBlocks  # noqa: E402

# zarr 2 calls what NumPy 2 and its own later versions deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

OpenBlocks = Callable[[], BlockStore]


@pytest.fixture(params=["memory", "local"])
def blocks(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        yield MemoryBlocks()
    else:
        with LocalBlocks(tmp_path / "packs", create=True) as local:
            yield local


def _again(mapping: CASMapping) -> CASMapping:
    """Return the flushed mapping opened afresh, read-only."""
    return CASMapping(mapping.blocks, mapping.flush(), read_only=True)


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("compressor", [None, numcodecs.Zstd(3)], ids=["plain", "zstd"])
def test_create_write_and_read(blocks: BlockStore, separator: str, compressor: Any) -> None:
    data = np.arange(60 * 45, dtype="f4").reshape(60, 45)
    mapping, plain = CASMapping(blocks), dict[str, bytes]()
    for store in (mapping, plain):
        array = zarr.create(
            data.shape,
            chunks=(16, 10),
            dtype=data.dtype,
            store=store,
            compressor=compressor,
            dimension_separator=separator,
        )
        array[...] = data
        array.attrs["units"] = "K"
    assert dict(mapping) == plain
    back = zarr.open(_again(mapping), mode="r")
    assert back.attrs["units"] == "K"
    np.testing.assert_array_equal(back[...], data)
    np.testing.assert_array_equal(back[13:40, 7], data[13:40, 7])
    assert back.nchunks_initialized == zarr.open(plain, mode="r").nchunks_initialized
    assert f"1{separator}2" in mapping


def test_groups_and_nested_groups(blocks: BlockStore) -> None:
    mapping = CASMapping(blocks)
    root = zarr.group(store=mapping, overwrite=True)
    deep = root.require_group("model/surface")
    deep.create_dataset("wind", data=np.arange(24).reshape(4, 6), chunks=(2, 3))
    root.create_dataset("model/mask", data=np.ones((3, 3), dtype="bool"))
    root.attrs["title"] = "nested"
    back = zarr.open_group(_again(mapping), mode="r")
    assert back.attrs["title"] == "nested"
    assert sorted(back["model"].group_keys()) == ["surface"]
    assert sorted(back["model"].array_keys()) == ["mask"]
    np.testing.assert_array_equal(back["model/surface/wind"][...], np.arange(24).reshape(4, 6))

    del root["model/surface"]
    assert not any(key.startswith("model/surface") for key in mapping)
    assert "surface" not in zarr.open_group(_again(mapping), mode="r")["model"]


def test_resize_and_append(blocks: BlockStore) -> None:
    mapping = CASMapping(blocks)
    array = zarr.open(mapping, mode="w", shape=(10, 10), chunks=(4, 4), dtype="i8", fill_value=-1)
    array[...] = np.arange(100).reshape(10, 10)
    full = mapping.flush()
    array.resize(6, 6)
    assert "2.2" not in mapping
    small = zarr.open(_again(mapping), mode="r")
    np.testing.assert_array_equal(small[...], np.arange(100).reshape(10, 10)[:6, :6])

    array.append(np.full((3, 6), 7), axis=0)
    assert array.shape == (9, 6)
    np.testing.assert_array_equal(array[6:], np.full((3, 6), 7))
    before = zarr.open(CASMapping(blocks, full, read_only=True), mode="r")
    np.testing.assert_array_equal(before[...], np.arange(100).reshape(10, 10))


def test_consolidated_metadata(blocks: BlockStore) -> None:
    mapping = CASMapping(blocks)
    root = zarr.group(store=mapping)
    root.create_dataset("a/b", data=np.arange(5))
    zarr.consolidate_metadata(mapping)
    assert ".zmetadata" in mapping
    back = zarr.open_consolidated(_again(mapping), mode="r")
    np.testing.assert_array_equal(back["a/b"][...], np.arange(5))


def test_object_arrays_and_scalars(blocks: BlockStore) -> None:
    mapping = CASMapping(blocks)
    root = zarr.group(store=mapping)
    words = np.array(["α", "", "a longer word"], dtype=object)
    root.create_dataset("words", data=words, object_codec=numcodecs.VLenUTF8())
    root.create_dataset("answer", data=np.int64(42))
    root.create_dataset("nothing", shape=(0, 3), dtype="f8")
    back = zarr.open_group(_again(mapping), mode="r")
    assert back["words"][...].tolist() == words.tolist()
    assert back["answer"][()] == 42
    assert back["nothing"].shape == (0, 3)


def test_copying_a_store_gives_the_same_root(blocks: BlockStore) -> None:
    first = CASMapping(blocks)
    root = zarr.group(store=first)
    root.create_dataset("x", data=np.arange(1000), chunks=(100,), compressor=numcodecs.Zstd(1))
    root.create_dataset("y", data=np.linspace(0, 1, 50), compressor=None)
    second = CASMapping(MemoryBlocks())
    zarr.copy_store(first, second)
    assert dict(second) == dict(first)
    assert second.flush() == first.flush()


def test_what_is_written_through_zarr_survives_a_new_process_view(tmp_path: Path) -> None:
    with LocalBlocks(tmp_path / "packs", create=True) as local:
        mapping = CASMapping(local)
        zarr.save_group(mapping, a=np.arange(10), b=np.eye(4))
        root = mapping.flush()
    with LocalBlocks(tmp_path / "packs", read_only=True) as local:
        group = zarr.open_group(CASMapping(local, root, read_only=True), mode="r")
        np.testing.assert_array_equal(group["a"][...], np.arange(10))
        np.testing.assert_array_equal(group["b"][...], np.eye(4))


def test_a_value_changed_by_the_caller_changes_nothing(blocks: BlockStore) -> None:
    mapping = CASMapping(blocks)
    array = zarr.create((8,), chunks=(8,), dtype="i4", store=mapping, compressor=None)
    data = np.arange(8, dtype="i4")
    array[...] = data
    data[:] = -1
    np.testing.assert_array_equal(array[...], np.arange(8))


def test_a_read_only_mapping_refuses(blocks: BlockStore) -> None:
    mapping = CASMapping(blocks)
    zarr.create((8,), chunks=(4,), dtype="i4", store=mapping)[...] = 1
    reading = _again(mapping)
    with pytest.raises(ValueError, match="read"):
        reading[".zarray"] = b"{}"
    with pytest.raises(ValueError, match="read"):
        del reading["0"]


def test_zarr3_keys_are_only_keys(blocks: BlockStore) -> None:
    mapping = CASMapping(blocks)
    mapping["notes/readme.txt"] = b"plain"
    zarr.group(store=mapping)
    assert dict(_again(mapping))["notes/readme.txt"] == b"plain"
    mapping.clear()
    assert len(mapping) == 0
