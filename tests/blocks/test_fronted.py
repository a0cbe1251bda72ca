"""Blocks far away with a cache in front: what counts is what is far away."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from objects.suite import ObjectStoreSuite
from obstore.store import MemoryStore

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.cache import CacheBlocks, RecentBlocks
from cas_zarr.blocks.fronted import FrontedBlocks
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.objectstore import ObjectStoreBlocks
from cas_zarr.blocks.tiered import tier_of
from cas_zarr.cid import BLAKE3, DAG_CBOR, RAW, CidBytes, cid_of, format_cid
from cas_zarr.errors import BlockNotFoundError, CorruptBlockError, RemoteError
from cas_zarr.testing.blocks import sample_blocks


class TestCacheInMemory(ObjectStoreSuite):
    def make_store(self, folder: Path) -> FrontedBlocks:
        self.objects = MemoryStore()
        return self.reopen(folder)

    def reopen(self, folder: Path, *, read_only: bool = False) -> FrontedBlocks:  # noqa: ARG002
        return FrontedBlocks(RecentBlocks(), ObjectStoreBlocks(self.objects, read_only=read_only))


class TestCacheOnDisk(TestCacheInMemory):
    def reopen(self, folder: Path, *, read_only: bool = False) -> FrontedBlocks:
        behind = ObjectStoreBlocks(self.objects, read_only=read_only)
        return FrontedBlocks(CacheBlocks(folder / "cache"), behind)


class _Far(MemoryBlocks):
    """Blocks in memory that count what is read of them, and can be out of reach."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[CidBytes] = []
        self.away = False
        self.slow: threading.Event | None = None

    def _read(self, cid: CidBytes) -> bytes | None:
        self.reads.append(cid)
        if self.slow is not None:
            self.slow.wait(10)
        if self.away:
            raise RemoteError("the server cannot be reached")
        return super()._read(cid)

    def _has(self, cid: CidBytes) -> bool:
        if self.away:
            raise RemoteError("the server cannot be reached")
        return super()._has(cid)


def _far(blocks: dict[CidBytes, bytes]) -> _Far:
    place = _Far()
    place.put_many(blocks.items())
    return place


@pytest.fixture(params=["memory", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> BlockStore:
    return RecentBlocks() if request.param == "memory" else CacheBlocks(tmp_path / "cache")


def _damage(place: BlockStore, cid: CidBytes, folder: Path) -> None:
    """Damage a block in a cache."""
    if isinstance(place, RecentBlocks):
        place._held[cid[-34:]] = (cid, b"damaged")
        return
    place.flush()
    (pack,) = (folder / "cache").glob("*.car")
    data = pack.read_bytes()
    place_of_it = data.index(cid[-32:]) + 32
    place.close()
    pack.write_bytes(data[:place_of_it] + bytes(16) + data[place_of_it + 16 :])


def test_what_was_read_is_read_from_far_away_once(cache: BlockStore) -> None:
    blocks = sample_blocks(50)
    cids = list(blocks)
    far = _far(blocks)
    store = FrontedBlocks(cache, far)
    assert store.remote
    assert store.get(cids[0]) == blocks[cids[0]]
    for _ in range(2):
        assert list(store.get_many([*cids, cids[0]])) == [*blocks.values(), blocks[cids[0]]]
        assert store.get_held(cids) == blocks
        out = bytearray(len(blocks[cids[1]]))
        store.read_into(cids[1], memoryview(out))
        assert out == blocks[cids[1]]
    assert sorted(far.reads) == sorted(cids)


def test_what_is_written_is_far_away_and_what_is_small_is_near_as_well(cache: BlockStore) -> None:
    far = _far({})
    store = FrontedBlocks(cache, far)
    page, large = bytes(range(256)) * 200, bytes(range(256)) * 100
    cids = [cid_of(DAG_CBOR, BLAKE3, page), cid_of(RAW, BLAKE3, b"x"), cid_of(RAW, BLAKE3, large)]
    for cid, data in zip(cids, (page, b"x", large), strict=True):
        store.put(cid, data)
    store.flush()
    assert list(far.has_many(cids)) == [True] * 3
    assert list(cache.has_many(cids)) == [True, True, False]
    assert [len(store.get(cid)) for cid in cids] == [len(page), 1, len(large)]
    assert far.reads == [cids[2]]


def test_what_is_held_is_what_is_far_away(cache: BlockStore) -> None:
    blocks = sample_blocks(3)
    cid, other, third = blocks
    cache.put(cid, blocks[cid])
    far = _far({other: blocks[other]})
    store = FrontedBlocks(cache, far)
    assert list(store.has_many([cid, other, third])) == [False, True, False]
    assert not store.has(cid)
    assert list(store.list()) == [other]
    with pytest.raises(BlockNotFoundError):
        store.size(cid)
    store.put(cid, blocks[cid])  # that it is in the cache does not spare the writing
    assert far.has(cid)
    for read in (store.get, lambda one: store.get_many([other, one])):
        with pytest.raises(BlockNotFoundError, match=f"{format_cid(third)} is not in memory"):
            read(third)


def test_a_damaged_cache_costs_another_read(cache: BlockStore, tmp_path: Path) -> None:
    blocks = sample_blocks(10)
    cids = list(blocks)
    far = _far(blocks)
    store = FrontedBlocks(cache, far)
    store.get_many(cids)
    _damage(cache, cids[3], tmp_path)
    far.reads.clear()
    assert list(store.get_many(cids)) == list(blocks.values())
    assert store.get(cids[3]) == blocks[cids[3]]
    assert set(far.reads) == {cids[3]}


def test_damage_far_away_is_told_and_not_kept(cache: BlockStore) -> None:
    blocks = sample_blocks(3)
    cid = list(blocks)[1]
    far = _far(blocks)
    far._blocks[cid[-34:]] = (cid, b"damaged")
    store = FrontedBlocks(cache, far)
    reads = (store.get, lambda one: store.get_many([*blocks, one]))
    for read in reads:
        with pytest.raises(CorruptBlockError, match=format_cid(cid)):
            read(cid)
        assert not cache.has(cid)
    assert cid not in store.get_held(list(blocks))


def test_a_place_out_of_reach_is_no_missing_block(cache: BlockStore) -> None:
    blocks = sample_blocks(2)
    cid, other = blocks
    far = _far(blocks)
    store = FrontedBlocks(cache, far)
    store.get(cid)
    far.away = True
    assert store.get(cid) == blocks[cid]

    def read_many(cids: Sequence[CidBytes]) -> object:
        return store.get_many(cids)

    for ask in (store.get, store.has, lambda one: read_many([cid, one]), store.tier.get):
        with pytest.raises(RemoteError, match="cannot be reached"):
            ask(other)
    with pytest.raises(RemoteError):
        store.get_held([other])


def test_threads_that_want_one_block_ask_once(cache: BlockStore) -> None:
    blocks = sample_blocks(1)
    (cid,) = blocks
    far = _far(blocks)
    far.slow = threading.Event()
    store = FrontedBlocks(cache, far)
    with ThreadPoolExecutor(8) as pool:
        got = [pool.submit(store.get, cid) for _ in range(8)]
        while not far.reads:
            pass
        far.slow.set()
        assert {one.result(20) for one in got} == {blocks[cid]}
    assert far.reads == [cid]


def test_what_fetches_ahead_finds_the_tier() -> None:
    store = FrontedBlocks(RecentBlocks(), _far({}))
    tier = tier_of(store)
    assert tier is store.tier
    assert tier is not None
    assert tier.remote
