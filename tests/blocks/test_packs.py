"""Packs on the disk: their form, damage, leftovers, merging, bounds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from cas_zarr.blocks import local, merge, pack, writer
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, RAW, SHA256, CidBytes, cid_of, digest_of, format_cid
from cas_zarr.codecs.car import CarReader
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    RepositoryNotFoundError,
)
from cas_zarr.testing.blocks import sample_blocks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def _fill(folder: Path, blocks: dict[CidBytes, bytes]) -> None:
    with LocalBlocks(folder, create=True) as store:
        store.put_many(blocks.items())
        store.flush()


def _packs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.car"))


# -- form -----------------------------------------------------------------------------------


def test_a_pack_is_a_car_without_roots_whose_index_is_that_of_its_blocks(folder: Path) -> None:
    blocks = sample_blocks(50) | sample_blocks(30, 1, function=SHA256, largest=70_000)
    cbor = cid_of(DAG_CBOR, BLAKE3, b"\xa0")
    blocks[cbor] = b"\xa0"
    _fill(folder, blocks)
    (path,) = _packs(folder)
    assert len(path.stem) == 32
    with CarReader(path) as car:
        assert car.header.version == 2
        assert car.header.roots == ()
        index = car.index()
        assert index is not None
        found = {
            (code, digests[i].tobytes()): int(offsets[i])
            for code, digests, offsets in index
            for i in range(len(digests))
        }
        sections = {(s.cid[-34], digest_of(s.cid)): s.offset for s in car.sections()}
        assert found == sections
    with CarReader(path) as car:
        assert dict(car) == blocks


def test_a_flush_without_news_writes_nothing(folder: Path) -> None:
    blocks = sample_blocks(5)
    with LocalBlocks(folder, create=True) as store:
        store.flush()
        assert list(folder.iterdir()) == []
        store.put_many(blocks.items())
        store.flush()
        before = [(p.name, p.stat().st_mtime_ns) for p in folder.iterdir()]
        store.put_many(blocks.items())
        store.flush()
        assert [(p.name, p.stat().st_mtime_ns) for p in folder.iterdir()] == before


def test_a_folder_that_is_not_there_is_not_made_by_reading(tmp_path: Path) -> None:
    for options in ({}, {"read_only": True}, {"read_only": True, "create": True}):
        with pytest.raises(RepositoryNotFoundError, match=str(tmp_path / "nothing")):
            LocalBlocks(tmp_path / "nothing", **options)
    assert not (tmp_path / "nothing").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(CasZarrError):
        LocalBlocks(tmp_path / "file", create=True)
    with pytest.raises(CasZarrError):
        LocalBlocks(tmp_path / "file" / "packs", create=True)


def test_closing_drops_what_was_not_flushed(folder: Path) -> None:
    store = LocalBlocks(folder, create=True)
    store.put_many(sample_blocks(5).items())
    assert len(list(folder.glob("*.part"))) == 1
    store.close()
    assert list(folder.iterdir()) == []


# -- damage ---------------------------------------------------------------------------------


def _small_pack(folder: Path) -> tuple[dict[CidBytes, bytes], Path, bytes]:
    blocks = {
        cid_of(RAW, BLAKE3, data): data for data in (b"", b"a", b"bc" * 20, bytes(range(100)))
    }
    blocks[cid_of(RAW, SHA256, b"sha")] = b"sha"
    _fill(folder, blocks)
    (path,) = _packs(folder)
    return blocks, path, path.read_bytes()


def _read_all(folder: Path, blocks: dict[CidBytes, bytes]) -> int:
    """Read every block in every way; return how many came back whole. Wrong bytes never do."""
    whole = 0
    with LocalBlocks(folder, read_only=True) as store:
        for cid, data in blocks.items():
            try:
                assert store.get(cid) == data
                whole += 1
            except (CorruptBlockError, BlockNotFoundError) as error:
                assert format_cid(cid) in str(error)  # noqa: PT017
            try:
                out = bytearray(len(data))
                store.read_into(cid, memoryview(out))
                assert out == data
            except (CorruptBlockError, BlockNotFoundError):
                pass
            for call in (store.size, store.has):
                with contextlib.suppress(CorruptBlockError, BlockNotFoundError):
                    call(cid)
        try:
            for cid in store.list():
                assert cid[-34:] in {key[-34:] for key in blocks}
        except CorruptBlockError as error:
            assert ".car" in str(error)  # noqa: PT017
    return whole


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_bit_anywhere_never_gives_wrong_bytes(folder: Path, flip: int) -> None:
    blocks, path, content = _small_pack(folder)
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= flip
        path.write_bytes(damaged)
        _read_all(folder, blocks)


def test_a_flipped_byte_of_a_block_is_told_and_the_others_are_whole(folder: Path) -> None:
    blocks, path, content = _small_pack(folder)
    at = content.index(bytes(range(100))) + 50
    damaged = bytearray(content)
    damaged[at] ^= 0x10
    path.write_bytes(damaged)
    assert _read_all(folder, blocks) == len(blocks) - 1
    with (
        LocalBlocks(folder) as store,
        pytest.raises(CorruptBlockError, match="is damaged: its bytes do not hash"),
    ):
        store.get(cid_of(RAW, BLAKE3, bytes(range(100))))


def test_a_pack_cut_off_at_any_length_is_told_and_the_others_are_whole(folder: Path) -> None:
    blocks, path, content = _small_pack(folder)
    sound = sample_blocks(5)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with LocalBlocks(folder) as store:
            assert len(store.stats().damaged) == 1
            cid = next(iter(blocks))
            with pytest.raises(CorruptBlockError, match=path.name):
                store.get(cid)
            assert not store.has(cid)
            store.put_many(sound.items())
            assert all(store.get(key) == data for key, data in sound.items())


def test_a_damaged_block_is_healed_by_putting_it_again(folder: Path) -> None:
    blocks, path, content = _small_pack(folder)
    data = bytes(range(100))
    cid = cid_of(RAW, BLAKE3, data)
    path.write_bytes(content.replace(data, data[::-1]))
    with LocalBlocks(folder) as store:
        with pytest.raises(CorruptBlockError):
            store.get(cid)
        store.put(cid, data)
        assert store.get(cid) == data
        store.flush()
        assert store.get(cid) == data
    for _ in range(4):  # whichever pack is asked first
        with LocalBlocks(folder, read_only=True) as store:
            assert store.get(cid) == data
            out = bytearray(len(data))
            store.read_into(cid, memoryview(out))
            assert out == data
    with LocalBlocks(folder) as store:  # and a merge keeps the sound copy
        for i in range(4):
            store.put_many(sample_blocks(3, i).items())
            store.flush()
        assert store.stats().packs < 6
    with LocalBlocks(folder) as store:
        assert all(store.get(key) == value for key, value in blocks.items())


def test_a_damaged_pack_is_not_merged_and_does_not_hinder_others(folder: Path) -> None:
    _, path, content = _small_pack(folder)
    with LocalBlocks(folder) as store:
        damaged = bytearray(content)
        damaged[51 + 18] ^= 1  # the length of the first section
        path.write_bytes(damaged)
        for i in range(12):
            store.put_many(sample_blocks(3, i).items())
            store.flush()
        assert path.exists()
        assert store.stats().packs < 9


# -- leftovers and other processes ------------------------------------------------------------


def test_part_files_of_dead_processes_are_removed_and_living_ones_kept(folder: Path) -> None:
    folder.mkdir()
    dead = folder / "0123.part"
    dead.write_bytes(b"half")
    alive = LocalBlocks(folder)
    assert not dead.exists()
    blocks = sample_blocks(3)
    alive.put_many(blocks.items())
    dead.write_bytes(b"half")
    with open(folder / "4567.part", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        LocalBlocks(folder, read_only=True).close()
        assert dead.exists()
        LocalBlocks(folder).close()
        assert not dead.exists()
        assert len(list(folder.glob("*.part"))) == 2
    alive.flush()
    with LocalBlocks(folder) as store:
        assert sorted(store.list()) == sorted(blocks)
    alive.close()


def test_a_reader_goes_on_while_packs_are_merged_under_it(folder: Path) -> None:
    everything: dict[CidBytes, bytes] = {}
    with LocalBlocks(folder, create=True) as store:
        reader = LocalBlocks(folder, read_only=True)
        for i in range(20):
            blocks = sample_blocks(10, i)
            store.put_many(blocks.items())
            store.flush()
            everything |= blocks
            assert all(reader.get(cid) == data for cid, data in everything.items())
        assert reader.stats().packs == store.stats().packs < 8
        reader.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_reads_what_its_parent_put_and_writes_for_itself(folder: Path) -> None:
    blocks, more = sample_blocks(300), sample_blocks(20, 1)
    with LocalBlocks(folder, create=True) as store:
        store.put_many(sample_blocks(5, 2).items())
        store.flush()
        store.put_many(blocks.items())
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert all(store.get(cid) == data for cid, data in blocks.items())
                assert sorted(store.list()) == sorted([*blocks, *sample_blocks(5, 2)])
                store.put_many(more.items())
                store.put_many(list(blocks.items())[:10])  # the parent may never flush them
                store.flush()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert len(list(folder.glob("*.part"))) == 1
        with LocalBlocks(folder) as other:
            assert sorted(other.list()) == sorted([*more, *list(blocks)[:10], *sample_blocks(5, 2)])
        store.flush()
        assert set(store.list()) == {*more, *blocks, *sample_blocks(5, 2)}


# -- bounds ---------------------------------------------------------------------------------


def test_many_flushes_leave_few_packs_and_write_little_more(folder: Path) -> None:
    rng = random.Random(0)
    size = 0
    copied: list[int] = []
    real = merge.merge

    with LocalBlocks(folder, create=True) as store, pytest.MonkeyPatch.context() as patch:

        def counting(path: str, packs: list[pack.Pack]) -> pack.Pack | None:
            copied.append(sum(p.data_size for p in packs))
            return real(path, packs)

        patch.setattr("cas_zarr.blocks.folder.merge", counting)
        for _ in range(200):
            data = rng.randbytes(6000)
            size += len(data)
            store.put(cid_of(RAW, BLAKE3, data), data)
            store.flush()
        stats = store.stats()
        assert stats.blocks == 200
        assert stats.packs <= 10
    assert sum(copied) < 6 * size


def test_a_large_pack_is_sealed_and_another_begun(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_RUN_LENGTH", 100)
    monkeypatch.setattr(writer, "_MAX_BLOCKS", 350)
    blocks = sample_blocks(1500, largest=60)
    with LocalBlocks(folder, create=True) as store:
        store.put_many(blocks.items())
        assert len(_packs(folder)) == 3
        assert store.stats().unflushed == len(blocks) - 1200
        assert all(store.get(cid) == data for cid, data in blocks.items())
        assert sorted(store.list()) == sorted(blocks)
        store.flush()
        assert all(store.has_many(list(blocks)))
    with LocalBlocks(folder) as store:
        assert sorted(store.list()) == sorted(blocks)
        assert list(store.get_many(list(blocks))) == list(blocks.values())


def test_a_pack_of_many_bytes_is_sealed_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_MAX_BYTES", 500_000)
    blocks = sample_blocks(20, largest=150_000)
    with LocalBlocks(folder, create=True) as store:
        store.put_many(blocks.items())
        assert len(_packs(folder)) >= 2
        store.flush()
        assert all(store.get(cid) == data for cid, data in blocks.items())


def test_more_packs_than_may_be_open_are_read_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "MAX_AWAKE", 5)
    monkeypatch.setattr(merge, "_FAN_IN", 1000)
    everything: dict[CidBytes, bytes] = {}
    with LocalBlocks(folder, create=True) as store:
        for i in range(30):
            blocks = sample_blocks(10, i)
            store.put_many(blocks.items())
            store.flush()
            everything |= blocks
    with LocalBlocks(folder) as store:
        before = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0
        assert store.stats().packs == 30
        cids = list(everything)
        random.Random(0).shuffle(cids)
        for cid in cids:
            assert store.get(cid) == everything[cid]
        assert all(store.has_many(cids))
        assert sorted(store.list()) == sorted(everything)
        after = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0
        assert after - before <= 10
        # one that sleeps and was merged by another process is found in its new place
        monkeypatch.setattr(merge, "_FAN_IN", 4)
        with LocalBlocks(folder) as other:
            other.put_many(sample_blocks(1, 99).items())
            other.flush()
            assert other.stats().packs < 8
        assert all(store.get(cid) == everything[cid] for cid in cids)


def test_threads_read_while_others_write_and_flush(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_RUN_LENGTH", 64)
    monkeypatch.setattr(writer, "_SLAB_SIZE", 8192)
    groups = [sample_blocks(20, i, largest=3000) for i in range(40)]
    ready: list[dict[CidBytes, bytes]] = []
    done = threading.Event()
    failures: list[BaseException] = []
    with LocalBlocks(folder, create=True) as store:

        def read(seed: int) -> None:
            rng = random.Random(seed)
            try:
                while not done.is_set():
                    for group in rng.sample(ready, min(3, len(ready))):
                        for cid, data in group.items():
                            assert store.get(cid) == data
                            out = bytearray(len(data))
                            store.read_into(cid, memoryview(out))
                            assert out == data
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for i, group in enumerate(groups):
            store.put_many(group.items())
            ready.append(group)
            if i % 2:
                store.flush()
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []


# -- reading in order and out of order --------------------------------------------------------


@pytest.mark.parametrize("largest", [40, 1500, 9000, 80_000])
def test_any_order_of_reading_gives_the_right_blocks(folder: Path, largest: int) -> None:
    blocks = sample_blocks(300, largest=largest)
    _fill(folder, blocks)
    cids = list(blocks)
    orders = [cids, cids[::-1], cids[::3], cids[5:] + cids[:5]]
    shuffled = list(cids)
    random.Random(1).shuffle(shuffled)
    with LocalBlocks(folder) as store:
        for order in [*orders, shuffled]:
            for cid in order:
                assert store.get(cid) == blocks[cid]


def test_reading_in_order_takes_few_system_calls(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = sample_blocks(2000, largest=2)
    blocks = {cid_of(RAW, BLAKE3, bytes([i % 256]) * i): bytes([i % 256]) * i for i in range(800)}
    _fill(folder, blocks)
    reads: list[int] = []
    real = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return real(fd, size, offset)

    with LocalBlocks(folder) as store:
        monkeypatch.setattr(os, "pread", counted)
        for cid, data in blocks.items():
            assert store.get(cid) == data
    assert len(reads) < 20
    assert sum(reads) < 3 * sum(len(data) + 40 for data in blocks.values())


def test_numpy_memory_can_be_put_and_read_into(folder: Path) -> None:
    array = np.arange(5000, dtype="<f8")
    cid = cid_of(RAW, BLAKE3, memoryview(array).cast("B"))
    with LocalBlocks(folder, create=True) as store:
        store.put(cid, memoryview(array))
        store.flush()
        out = np.empty(5000, dtype="<f8")
        store.read_into(cid, memoryview(out).cast("B"))
        assert (out == array).all()
    assert local.__all__ == ["LocalBlocks", "PackStats"]
