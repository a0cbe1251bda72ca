"""Shards on a device: cut and named as on the host, and only pieces that are missing are copied."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from gpu.fakecupy import DeviceArray, Fake, on_device
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.buffer.core import default_buffer_prototype
from zarr.storage import MemoryStore

from cas_zarr import CASStore, gpu
from cas_zarr.codecs.unixfs import LEAF_SIZE
from cas_zarr.tree.values import file_blocks

NUMBERS = itertools.count()
PLAIN = (BytesCodec(),)
INDEX = (BytesCodec(), Crc32cCodec())


def sharded(
    store: Any,
    grid: tuple[int, int],
    inner: tuple[int, int],
    *,
    location: str = "end",
    index: Any = INDEX,
    codecs: Any = PLAIN,
    name: str | None = None,
) -> Any:
    """Create an array of one shard of float32."""
    shape = (grid[0] * inner[0], grid[1] * inner[1])
    return zarr.create_array(
        store,
        name=name,
        shape=shape,
        chunks=shape,
        dtype="float32",
        fill_value=0,
        filters=None,
        compressors=None,
        serializer=ShardingCodec(
            chunk_shape=inner, codecs=codecs, index_codecs=index, index_location=location
        ),
        overwrite=True,
    )


def bytes_of(store: MemoryStore, key: str) -> bytes:
    return store._store_dict[key].to_bytes()


def put(store: CASStore, key: str, data: bytes) -> None:
    """Hand bytes on a device to a store."""
    kind = default_buffer_prototype().buffer
    store.set_sync(key, kind(on_device(np.frombuffer(data, np.uint8))))


@pytest.fixture(params=["blake3", "sha2-256"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[CASStore, CASStore]:
    """Return a repository that is written from a device, and another."""
    device, host = (CASStore(tmp_path / name, hash=request.param) for name in ("device", "host"))
    return device, host


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.usefixtures("fake")
def test_a_shard_has_the_cid_of_the_host(stores: tuple[CASStore, CASStore], data: Any) -> None:
    grid = data.draw(st.sampled_from([(3, 2), (2, 4), (1, 1), (20, 5)]))
    # 4 KiB and 7.5 KiB: too little for a leaf each; 64 KiB, 0.4 MiB; 1.5 MiB: more than a leaf
    inner = data.draw(st.sampled_from([(32, 32), (40, 48), (128, 128), (128, 800), (384, 1024)]))
    if inner == (384, 1024):
        grid = (2, 1)
    index = [BytesCodec(endian=data.draw(st.sampled_from(["little", "big"])))]
    index += [Crc32cCodec()] if data.draw(st.booleans()) else []
    location = data.draw(st.sampled_from(["start", "end"]))
    written = data.draw(st.sets(st.sampled_from(list(np.ndindex(grid))), min_size=1))
    memory = MemoryStore()
    array = sharded(memory, grid, inner, location=location, index=index)
    for row, column in written:
        block = np.random.default_rng([row, column]).random(inner, "float32") + 1
        rows = slice(row * inner[0], (row + 1) * inner[0])
        array[rows, column * inner[1] : (column + 1) * inner[1]] = block
    shard = bytearray(bytes_of(memory, "c/0/0"))
    if data.draw(st.booleans()):  # as it is, or with an index, a chunk or a checksum that is bad
        at = data.draw(st.sampled_from([0, 7, 8, 16, len(shard) // 2, len(shard) - 1]))
        shard[at] ^= data.draw(st.sampled_from([1, 0x80]))
    size = data.draw(st.sampled_from([len(shard), len(shard), len(shard) // 2, 40]))
    name = f"a{next(NUMBERS)}"
    with gpu.enabled():
        sharded(stores[0], grid, inner, location=location, index=index, name=name)
        put(stores[0], f"{name}/c/0/0", bytes(shard[:size]))
    sharded(stores[1], grid, inner, location=location, index=index, name=name)
    stores[1]._tree.mapping[f"{name}/c/0/0"] = bytes(shard[:size])
    key = f"{name}/c/0/0"
    assert stores[0]._tree.mapping.cid_of(key) == stores[1]._tree.mapping.cid_of(key)
    assert bytes(stores[0]._tree.mapping[key]) == bytes(shard[:size])


@pytest.mark.parametrize("location", ["start", "end"])
def test_only_missing_pieces_of_a_shard_come_to_the_host(
    fake: Fake, tmp_path: Path, location: str
) -> None:
    grid, inner = (8, 8), (128, 128)  # 64 inner chunks of 64 KiB
    data = np.random.default_rng(0).random((1024, 1024), "float32")
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = sharded(store, grid, inner, location=location)
        index, digests = 16 * 64 + 4, 32 * 65
        fake.bus.clear()
        array[:] = on_device(data)
        more = fake.bus.down - (data.nbytes + index + digests)
        assert 0 <= more < 8 * index  # zarr looks at it, and a checksum is made on the host
        array[128:256, 256:384] = on_device(data[:128, :128] + 2)
        fake.bus.clear()
        array[:128, 256:384] = on_device(data[:128, :128] + 1)
        more = fake.bus.down - (128 * 128 * 4 + index + digests)
        assert 0 <= more < 8 * index
    data[128:256, 256:384] = data[:128, :128] + 2
    data[:128, 256:384] = data[:128, :128] + 1
    store.commit("shards")
    found = zarr.open_array(CASStore(tmp_path / "repository", version="main"), mode="r")
    np.testing.assert_array_equal(found[:], data)


@pytest.mark.usefixtures("fake")
def test_shards_that_a_device_encodes_are_cut_at_their_chunks(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((1024, 1024), "float32")
    store, plain = CASStore(tmp_path / "device"), CASStore(tmp_path / "host")
    with gpu.enabled():
        array = sharded(store, (4, 4), (256, 256), codecs=(BytesCodec(), ZstdCodec(level=0)))
        array[:] = on_device(data)
        found = array[:]
    assert isinstance(found, DeviceArray)
    np.testing.assert_array_equal(found.get(), data)
    mapping = store._tree.mapping
    sharded(plain, (4, 4), (256, 256), codecs=(BytesCodec(), ZstdCodec(level=0)))
    plain._tree.mapping["c/0/0"] = mapping["c/0/0"]
    cid = mapping.cid_of("c/0/0")
    assert plain._tree.mapping.cid_of("c/0/0") == cid
    assert cid is not None
    size = mapping.size_of("c/0/0") or 0
    assert len(list(file_blocks(mapping.reader, cid, size))) == 16 + 1 + 1  # index, and the file
    assert size > LEAF_SIZE


@pytest.mark.usefixtures("fake")
def test_a_flush_cuts_anew_where_the_sharding_changed(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((1024, 1024), "float32")
    store, plain = CASStore(tmp_path / "device"), CASStore(tmp_path / "host")
    with gpu.enabled():
        sharded(store, (8, 8), (128, 128))[:] = on_device(data)
    sharded(plain, (8, 8), (128, 128))[:] = data
    for each in (store, plain):
        document = bytes(each._tree.mapping["zarr.json"])
        assert b'"index_location": "end"' in document
        each._tree.mapping["zarr.json"] = document.replace(b': "end"', b': "start"')
    assert store.flush() == plain.flush()


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.usefixtures("fake")
def test_inner_chunks_are_read_from_where_no_number_may_lie(tmp_path: Path, dtype: str) -> None:
    data = np.arange(4096).astype(dtype)
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = zarr.create_array(
            store,
            shape=data.shape,
            chunks=data.shape,
            dtype=dtype,
            fill_value=None,
            compressors=None,
            serializer=ShardingCodec(
                chunk_shape=(256,), codecs=PLAIN, index_codecs=INDEX, index_location="start"
            ),
        )
        array[:] = on_device(data)  # the chunks lie behind an index of 16 * 16 + 4 bytes
        np.testing.assert_array_equal(array[:].get(), data)
        np.testing.assert_array_equal(array[100:900].get(), data[100:900])
        array[100:900] = on_device(data[100:900] + 1)
    data[100:900] += 1
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)
