"""Caches on disk and in memory: bounded, shared, and never in the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cas_zarr.blocks import cache as cache_module
from cas_zarr.blocks import disk
from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.cache import CacheBlocks, RecentBlocks, open_cache
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of
from cas_zarr.errors import BlockNotFoundError, InvalidArgumentError
from cas_zarr.testing import BlockStoreSuite
from cas_zarr.testing.blocks import sample_blocks

MIB = 1 << 20


class TestRecentBlocks(BlockStoreSuite):
    def make_store(self, folder: Path) -> BlockStore:  # noqa: ARG002
        return RecentBlocks()


def _blocks(count: int, size: int, seed: int = 0) -> dict[CidBytes, bytes]:
    rng = random.Random(seed)
    return {cid_of(RAW, BLAKE3, data): data for data in (rng.randbytes(size) for _ in range(count))}


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir())


def test_what_was_put_is_there_for_the_next_process(tmp_path: Path) -> None:
    blocks = sample_blocks(200)
    with CacheBlocks(tmp_path / "c") as cache:
        cache.put_many(blocks.items())
        assert [cache.get(cid) for cid in blocks] == list(blocks.values())
    with CacheBlocks(tmp_path / "c") as cache:
        assert list(cache.get_many(list(blocks))) == list(blocks.values())
        assert len([name for name in os.listdir(tmp_path / "c") if name.endswith(".car")]) == 1


def test_the_limit_is_held_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    folder, limit = tmp_path / "c", 4 * MIB
    with CacheBlocks(folder, limit) as cache:
        first = _blocks(3, 50_000)
        cache.put_many(first.items())
        cache.flush()
        (kept,) = folder.glob("*.car")
        for seed in range(1, 200):
            cache.put_many(_blocks(3, 30_000, seed).items())
            assert _size(folder) <= limit + limit // 16 + 100_000, seed
            if seed % 10 == 0:  # it is read now and then, so it stays, wherever it is merged to
                cache._touched.clear()
                assert cache.get(next(iter(first))) == first[next(iter(first))]
                time.sleep(0.002)
        assert _size(folder) > limit // 2
        assert not cache.has(next(iter(_blocks(3, 30_000, 1))))
        assert len(list(folder.glob("*.car"))) < 60
        assert kept is not None


def test_a_damaged_block_and_a_damaged_pack_are_fetched_again(tmp_path: Path) -> None:
    blocks = sample_blocks(20, largest=300)
    behind = MemoryBlocks()
    behind.put_many(blocks.items())
    with TieredBlocks(CacheBlocks(tmp_path / "c"), [behind]) as tier:
        assert list(tier.get_many(list(blocks))) == list(blocks.values())
    (pack,) = (tmp_path / "c").glob("*.car")
    sound = pack.read_bytes()
    cid = list(blocks)[3]
    for damaged in (
        sound.replace(blocks[cid], bytes(len(blocks[cid]))),  # a block
        sound[: len(sound) // 2],  # the end
        b"nothing" * 9,
    ):
        pack.write_bytes(damaged)
        with CacheBlocks(tmp_path / "c") as cache:
            assert cache.get_held(list(blocks)).get(cid) is None
        with TieredBlocks(CacheBlocks(tmp_path / "c"), [behind]) as tier:
            assert list(tier.get_many(list(blocks))) == list(blocks.values())
            assert tier.get(cid) == blocks[cid]
        with CacheBlocks(tmp_path / "c") as cache:
            assert cache.get(cid) == blocks[cid]
        shutil.rmtree(tmp_path / "c")
        (tmp_path / "c").mkdir()


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = _blocks(10, 100_000)
    behind = MemoryBlocks()
    behind.put_many(blocks.items())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with TieredBlocks(CacheBlocks(tmp_path / "c"), [behind]) as tier:
        with monkeypatch.context() as patch:
            patch.setattr(disk, "pwritev", full)
            patch.setattr(disk, "pwrite", full)
            assert list(tier.get_many(list(blocks))) == list(blocks.values())
            tier.flush()
        assert not tier.local.has(next(iter(blocks)))
        monkeypatch.setattr(tier.local, "_resting", 0.0)
        assert list(tier.get_many(list(blocks))) == list(blocks.values())
        assert tier.local.has(next(iter(blocks)))
    with CacheBlocks(tmp_path / "c") as cache:
        assert all(cache.has_many(list(blocks)))


def test_a_folder_that_someone_removed_is_no_error(tmp_path: Path) -> None:
    blocks = sample_blocks(30)
    behind = MemoryBlocks()
    behind.put_many(blocks.items())
    with TieredBlocks(CacheBlocks(tmp_path / "c"), [behind]) as tier:
        assert list(tier.get_many(list(blocks))) == list(blocks.values())
        tier.flush()
        shutil.rmtree(tmp_path / "c")
        assert list(tier.get_many(list(blocks))) == list(blocks.values())
        assert [tier.get(cid) for cid in blocks] == list(blocks.values())
        tier.local.put(*next(iter(sample_blocks(1, seed=9).items())))
        tier.flush()


def test_an_evicted_pack_can_be_read_on_or_fetched_again(tmp_path: Path) -> None:
    blocks = _blocks(20, 60_000)
    behind = MemoryBlocks()
    behind.put_many(blocks.items())
    with (
        TieredBlocks(CacheBlocks(tmp_path / "c"), [behind]) as reader,
        CacheBlocks(tmp_path / "c", MIB) as other,
    ):
        reader.get_many(list(blocks))
        reader.flush()
        for seed in range(1, 30):
            other.put_many(_blocks(2, 60_000, seed).items())
        other.flush()
        assert _size(tmp_path / "c") <= MIB + 200_000
        assert [reader.get(cid) for cid in blocks] == list(blocks.values())


def test_without_a_cache_on_disk_memory_is_bounded() -> None:
    blocks = _blocks(10, 1000)
    cache = RecentBlocks(5000)
    cache.put_many(blocks.items())
    held = list(cache.list())
    assert held == list(blocks)[5:]
    cache.get(held[0])
    cache.put(*next(iter(_blocks(1, 1000, 1).items())))
    assert cache.has(held[0])
    assert not cache.has(held[1])


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    cache = open_cache()
    assert isinstance(cache, CacheBlocks)
    assert tmp_path in Path(cache.path).parents
    assert cache.limit == cache_module.CACHE_LIMIT
    assert open_cache(True) is cache
    assert isinstance(open_cache(False), RecentBlocks)
    mine = open_cache((tmp_path / "mine", 64 * MIB))
    assert isinstance(mine, CacheBlocks)
    assert (mine.path, mine.limit) == (str(tmp_path / "mine"), 64 * MIB)
    assert open_cache((tmp_path / "mine", 2 * MIB)) is mine  # and holds what it was told last
    mine.put_many(_blocks(30, 60_000).items())
    assert _size(tmp_path / "mine") > MIB  # it did not wait for a sixteenth of the old limit
    for wrong_limit in (7, True):
        with pytest.raises(InvalidArgumentError, match="a cache of"):
            open_cache((tmp_path / "mine", wrong_limit))
    assert mine.limit == 2 * MIB
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    assert isinstance(open_cache(), RecentBlocks)  # no home to write to
    for wrong in (7, (tmp_path, 7), ("", MIB), (tmp_path,), (tmp_path, True)):
        with pytest.raises(InvalidArgumentError, match="cache"):
            open_cache(wrong)  # type: ignore[arg-type]


_WRITER = """
import random, sys
from cas_zarr.blocks.cache import CacheBlocks
from cas_zarr.cid import BLAKE3, RAW, cid_of
seed = int(sys.argv[2])
cache = CacheBlocks(sys.argv[1], 2 << 20)
rng = random.Random(seed)
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    data = rng.randbytes(20_000)
    cache.put(cid_of(RAW, BLAKE3, data), data)
    others = random.Random(1 - seed)
    data = others.randbytes(20_000)
    found = cache.get_held([cid_of(RAW, BLAKE3, data)])
    assert all(got == data for got in found.values())
"""


def _writer(folder: Path, seed: int, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder), str(seed), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_share_a_cache_and_one_may_be_killed(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    endless = _writer(folder, 2, 1 << 40)
    try:
        assert endless.stdout is not None
        assert endless.stdout.readline() == "ready\n"
        others = [_writer(folder, seed, 300) for seed in (0, 1)]
        for other in others:
            other.communicate(timeout=60)
            assert other.returncode == 0
        endless.send_signal(signal.SIGKILL)
    finally:
        endless.kill()
        endless.communicate()
    blocks = sample_blocks(10)
    with CacheBlocks(folder, 2 * MIB) as cache:  # what the killed one left is gone
        cache.put_many(blocks.items())
        cache.flush()
        assert list(cache.get_many(list(blocks))) == list(blocks.values())
        assert not list(folder.glob("*.part"))
        assert _size(folder) <= 2 * MIB + MIB // 4
        for cid in list(cache.list()):
            assert cache.get(cid)


def test_a_forked_child_uses_the_cache_of_its_parent(
    tmp_path: Path, forked: Callable[[Callable[[], object]], int]
) -> None:
    blocks = sample_blocks(10)
    more = sample_blocks(10, seed=1)
    cache = open_cache(tmp_path / "c")
    cache.put_many(blocks.items())

    def child() -> None:
        inherited = open_cache(tmp_path / "c")
        assert list(inherited.get_many(list(blocks))) == list(blocks.values())
        inherited.put_many(more.items())
        inherited.flush()

    assert forked(child) == 0
    assert list(cache.get_many(list(more))) == list(more.values())
    cache.flush()
    with CacheBlocks(tmp_path / "c") as again:
        assert all(again.has_many([*blocks, *more]))
    with pytest.raises(BlockNotFoundError):
        cache.get(cid_of(RAW, BLAKE3, b"nowhere"))
