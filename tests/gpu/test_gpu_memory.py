"""What happens where the memory of a device, or what the host can pin, does not suffice."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from gpu.arrays import CODECS, create, field
from gpu.fakecupy import CUDARuntimeError, DeviceArray, Fake, on_device
from gpu.hostkernels import EDGES, scattered
from zarr.core.buffer.core import default_buffer_prototype

from cas_zarr import CASStore, gpu
from cas_zarr.cid import hash_by_name
from cas_zarr.errors import CasZarrError, DeviceMemoryError
from cas_zarr.gpu.batches import load
from cas_zarr.gpu.buffers import load_all
from cas_zarr.gpu.hashing import digest_slab, make_plan
from cas_zarr.gpu.memory import halving, pinned
from cas_zarr.tree.node import Value

SIZES = EDGES * 5


@pytest.fixture
def store(tmp_path: Path) -> CASStore:
    """Return an empty repository."""
    return CASStore(tmp_path / "repository")


def test_a_batch_is_halved_down_to_what_fits(fake: Fake) -> None:
    done: list[list[int]] = []

    def work(rows: Any) -> list[int]:
        fake.cupy.empty(100 * len(rows), np.uint8)
        done.append(list(rows))
        return [row * row for row in rows]

    fake.memory.largest = 250
    assert halving(work, range(7)) == [row * row for row in range(7)]
    assert done == [[0], [1, 2], [3, 4], [5, 6]]
    assert halving(work, []) == []
    fake.memory.largest = 99
    with pytest.raises(DeviceMemoryError):
        halving(work, range(7))


def test_the_memory_of_an_attempt_is_free_before_the_next(fake: Fake) -> None:
    def work(rows: Any) -> list[int]:
        held = fake.cupy.empty(100 * len(rows), np.uint8)
        fake.cupy.empty(20, np.uint8)
        return [held.nbytes] * len(rows)

    gc.collect()
    fake.memory.capacity = fake.memory.held + 410
    assert halving(work, range(4)) == [200] * 4


def test_results_of_a_half_are_held_without_what_is_empty_between_them(fake: Fake) -> None:
    def work(rows: Any) -> list[Any]:
        slab = fake.cupy.empty((len(rows), 1000), np.uint8)
        for row in range(len(rows)):
            slab[row].fill(rows[row])
        return [slab[row, :10] for row in range(len(rows))]

    gc.collect()
    before = fake.memory.held
    fake.memory.capacity = before + 2100  # for two slots, and not for those of all halves
    found = halving(work, range(8))
    assert [each.get().tolist() for each in found] == [[row] * 10 for row in range(8)]
    gc.collect()
    assert fake.memory.held - before <= 6 * 10 + 2 * 1000


def test_what_does_not_fit_is_told(fake: Fake, store: CASStore) -> None:
    data = field((128, 64))
    with gpu.enabled():
        array = create(store, CODECS["zstd"], data.shape)
        given = on_device(data)
        fake.memory.largest = 16_500  # a chunk, and not what its encoder may need
        with pytest.raises(DeviceMemoryError) as caught:
            array[:] = given
    assert isinstance(caught.value, CasZarrError)
    assert isinstance(caught.value, MemoryError)
    said = str(caught.value)
    assert said.startswith("device 0 has too little memory: out of memory allocating")
    free = fake.memory.capacity - fake.memory.held
    assert "of its 85,899,345,920 bytes are free" in said
    assert abs(int(said.split("; ")[1].split()[0].replace(",", "")) - free) < 1 << 20
    assert "smaller chunks" in said
    assert list(store._tree.mapping.list_keys("c/")) == []  # nothing is half-written
    fake.memory.clear()
    with gpu.enabled():
        array[:] = given
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


def test_an_array_that_does_not_fit_is_read_in_parts(fake: Fake, store: CASStore) -> None:
    data = field((512, 64))
    create(store, CODECS["zstd"], data.shape)[:] = data
    with gpu.enabled():
        array = zarr.open_array(store, mode="r")
        fake.memory.largest = data.nbytes - 1
        with pytest.raises(
            DeviceMemoryError, match=r"allocating 131,072 bytes .* read less at once"
        ):
            array[:]
        found = [array[start : start + 64].get() for start in range(0, 512, 64)]
    np.testing.assert_array_equal(np.concatenate(found), data)


def test_values_are_loaded_in_several_slabs(fake: Fake, store: CASStore) -> None:
    data = field((512, 64))
    create(store, [], data.shape)[:] = data

    def buffers() -> list[Any]:
        kind = default_buffer_prototype()
        return [store.get_sync(f"c/{row}/0", prototype=kind) for row in range(8)]

    with gpu.enabled():
        found = buffers()
        fake.memory.largest = 40_000  # two chunks of 16 KiB
        load_all(found)
        for row, buffer in enumerate(found):
            assert isinstance(buffer.as_array_like(), DeviceArray)
            assert buffer.to_bytes() == data[64 * row : 64 * (row + 1)].tobytes()
        fake.memory.largest = 16_000
        fake.bus.clear()
        with pytest.raises(DeviceMemoryError, match="device 0 has too little memory"):
            load_all(buffers())
        assert fake.bus.up == 0


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_a_batch_is_hashed_in_parts(fake: Fake, hash: str) -> None:
    function = hash_by_name(hash)
    slab, offsets = scattered(SIZES)
    there = on_device(slab)
    gc.collect()
    before = fake.memory.held
    fake.memory.capacity = before + (32 + 16) * len(SIZES)  # for digests, and half of a table
    stream = fake.cupy.cuda.Stream()
    found = digest_slab(there, offsets, SIZES, function, stream=stream)
    assert [digest.tobytes() for digest in found.get()] == [
        function.digest(slab[offset : offset + size])
        for offset, size in zip(offsets, SIZES, strict=True)
    ]
    assert stream.launched > len(make_plan(offsets, SIZES, function).launches(0, 0, 0))
    del found
    fake.memory.capacity = before + 32 * len(SIZES) - 1
    with pytest.raises(DeviceMemoryError, match="device 0"):
        digest_slab(there, offsets, SIZES, function)


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_the_host_hashes_what_a_device_has_no_memory_for(
    fake: Fake, tmp_path: Path, hash: str
) -> None:
    data = np.random.default_rng(0).random((1 << 20) + 5, "float32")  # 4 MiB and 20 bytes
    store, plain = (CASStore(tmp_path / name, hash=hash) for name in ("device", "host"))
    create(plain, [], data.shape, data.shape)[:] = data
    with gpu.enabled():
        array = create(store, [], data.shape, data.shape)
        given = on_device(data)
        fake.memory.largest = 100  # not for the five digests
        fake.bus.clear()
        array[:] = given
        assert fake.bus.down == data.nbytes + 1  # whether it is empty
    cid = plain._tree.mapping.cid_of("c/0")
    assert store._tree.mapping.cid_of("c/0") == cid
    reader = store._tree.mapping.reader
    room = -(-data.nbytes // 256) * 256 + 100
    fake.memory.largest, fake.memory.capacity = 80 << 30, fake.memory.held + room
    assert cid is not None
    (found,) = load(reader, [Value(cid, data.nbytes)])
    assert fake.bus.down == data.nbytes + 1  # and no digests
    np.testing.assert_array_equal(found.get().view("f4"), data)


def test_what_the_host_cannot_pin_is_copied_all_the_same(fake: Fake, store: CASStore) -> None:
    data = field()
    fake.pinned.most = 1000
    assert pinned(1000).nbytes == 1000
    assert pinned(1001).nbytes == 1001
    with gpu.enabled():
        create(store, CODECS["zstd"])[:] = on_device(data)
        np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:].get(), data)


def test_other_errors_of_pinning_are_not_hidden(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise CUDARuntimeError(719)

    monkeypatch.setattr(fake.cupy.cuda, "alloc_pinned_memory", refuse)
    with pytest.raises(CUDARuntimeError):
        pinned(10)
