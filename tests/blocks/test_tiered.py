"""A local place of blocks with others behind it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.cache import CacheBlocks, RecentBlocks
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import BLAKE3, RAW, CidBytes, CidLike, cid_of, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    InvalidArgumentError,
    RemoteError,
    RepositoryNotFoundError,
    StorageError,
)
from cas_zarr.testing import BlockStoreSuite
from cas_zarr.testing.blocks import sample_blocks


class TestTieredBlocks(BlockStoreSuite):
    def make_store(self, folder: Path) -> TieredBlocks:
        return TieredBlocks(LocalBlocks(folder / "packs", create=True), [MemoryBlocks()])

    def reopen(self, folder: Path, *, read_only: bool = False) -> TieredBlocks:
        return TieredBlocks(LocalBlocks(folder / "packs", read_only=read_only), [MemoryBlocks])


class Counting(MemoryBlocks):
    """Blocks in memory that count how they were asked."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[CidBytes] = []
        self.batches: list[int] = []

    def _read(self, cid: CidBytes) -> bytes | None:
        self.reads.append(cid)
        return super()._read(cid)

    def get_many(self, cids: list[CidLike]) -> list[bytes]:  # type: ignore[override]
        self.batches.append(len(cids))
        return [self.get(cid) for cid in cids]


def _behind(blocks: dict[CidBytes, bytes]) -> Counting:
    place = Counting()
    place.put_many(blocks.items())
    return place


def _damage(place: MemoryBlocks, cid: CidBytes) -> None:
    place._blocks[cid[-34:]] = (cid, b"damaged")


def test_what_was_fetched_is_kept_and_fetched_once(tmp_path: Path) -> None:
    blocks = sample_blocks(20)
    place = _behind(blocks)
    with TieredBlocks(LocalBlocks(tmp_path / "p", create=True), [place]) as store:
        for cid, data in blocks.items():
            assert not store.local.has(cid)
            assert store.has(cid)
            assert store.size(cid) == len(data)
            assert store.get(cid) == data
            out = bytearray(len(data))
            store.read_into(cid, memoryview(out))
            assert out == data
        assert place.reads == list(blocks)
    with LocalBlocks(tmp_path / "p") as local:  # closing made them durable
        assert {cid: local.get(cid) for cid in local.list()} == blocks


def test_many_are_fetched_in_one_go_from_whoever_has_them() -> None:
    blocks = sample_blocks(90)
    cids = list(blocks)
    local, one, two = MemoryBlocks(), Counting(), Counting()
    local.put_many((cid, blocks[cid]) for cid in cids[:30])
    one.put_many((cid, blocks[cid]) for cid in cids[30:50])
    two.put_many((cid, blocks[cid]) for cid in cids[40:])
    store = TieredBlocks(local, [one, two])
    assert list(store.has_many(cids)) == [True] * 90
    asked = [*cids, cids[70]]
    assert list(store.get_many(asked)) == [blocks[cid] for cid in asked]
    assert (one.batches, two.batches) == ([20], [40])
    assert len(local) == 90
    missing = cid_of(RAW, BLAKE3, b"nowhere")
    assert list(store.has_many([cids[0], missing])) == [True, False]
    with pytest.raises(BlockNotFoundError, match=format_cid(missing)):
        store.get_many([cids[0], missing])


def test_a_damaged_block_behind_never_arrives() -> None:
    blocks = sample_blocks(3)
    cid = list(blocks)[1]
    place = _behind(blocks)
    _damage(place, cid)
    local = MemoryBlocks()
    store = TieredBlocks(local, [place])
    for read in (store.get, lambda one: store.get_many([*blocks, one])):
        with pytest.raises(CorruptBlockError, match=format_cid(cid)):
            read(cid)
        assert not local.has(cid)
    assert TieredBlocks(local, [place, _behind(blocks)]).get(cid) == blocks[cid]
    assert local.get(cid) == blocks[cid]


def test_a_damaged_block_here_is_fetched_and_mended(tmp_path: Path) -> None:
    blocks = sample_blocks(5, largest=200)
    cid = list(blocks)[2]
    with LocalBlocks(tmp_path / "p", create=True) as local:
        local.put_many(blocks.items())
        local.flush()
    (pack,) = (tmp_path / "p").glob("*.car")
    data = bytearray(pack.read_bytes())
    data[data.index(blocks[cid]) + 1] ^= 1
    pack.write_bytes(data)
    with LocalBlocks(tmp_path / "p") as local, pytest.raises(CorruptBlockError):
        local.get(cid)
    with TieredBlocks(LocalBlocks(tmp_path / "p"), [_behind(blocks)]) as store:
        assert store.get(cid) == blocks[cid]
        assert list(store.get_many(list(blocks))) == list(blocks.values())
    with LocalBlocks(tmp_path / "p") as local:
        assert local.get(cid) == blocks[cid]


def test_a_place_that_cannot_be_reached_is_named_and_asked_again() -> None:
    blocks = sample_blocks(4)
    here, *rest = blocks
    local = MemoryBlocks()
    local.put(here, blocks[here])
    reachable = False

    def opened() -> BlockStore:
        if not reachable:
            raise RepositoryNotFoundError("there is no repository at /far/away")
        return _behind(blocks)

    store = TieredBlocks(local, [opened])
    assert store.get(here) == blocks[here]
    assert list(store.get_many([here])) == [blocks[here]]
    for ask in (store.get, store.has, store.size, lambda one: store.get_many([here, one])):
        with pytest.raises(BlockNotFoundError, match=r"/far/away.*make that place reachable"):
            ask(rest[0])
    with pytest.raises(BlockNotFoundError, match="/far/away"):
        store.has_many([here, rest[0]])
    reachable = True
    assert list(store.get_many(rest)) == [blocks[cid] for cid in rest]


def test_a_read_only_place_keeps_nothing(tmp_path: Path) -> None:
    blocks = sample_blocks(4)
    LocalBlocks(tmp_path / "p", create=True).close()
    before = sorted((tmp_path / "p").iterdir())
    with TieredBlocks(LocalBlocks(tmp_path / "p", read_only=True), [_behind(blocks)]) as store:
        assert store.read_only
        assert list(store.get_many(list(blocks))) == list(blocks.values())
        assert [store.get(cid) for cid in blocks] == list(blocks.values())
    assert sorted((tmp_path / "p").iterdir()) == before


def test_changes_are_made_here_alone() -> None:
    blocks = sample_blocks(4)
    one, two, *_ = blocks
    place = _behind({one: blocks[one]})
    store = TieredBlocks(MemoryBlocks(), [place])
    store.put(two, blocks[two])
    assert list(store.list()) == [two]
    assert not place.has(two)
    store.get(one)
    store.delete(one)
    assert not store.local.has(one)
    assert store.get(one) == blocks[one]


def test_two_places_behind_each_other_come_to_an_end() -> None:
    blocks = sample_blocks(3)
    one, two, three = blocks
    places = MemoryBlocks(), MemoryBlocks()
    places[0].put(one, blocks[one])
    places[1].put(two, blocks[two])

    def tier(which: int) -> TieredBlocks:
        return TieredBlocks(places[which], [lambda: tier(1 - which)])

    store = tier(0)
    assert store.fetch_below([two], lambda: False) == 0
    assert list(store.get_many([one, two])) == [blocks[one], blocks[two]]
    assert not store.has(three)
    for ask in (store.get, lambda cid: store.get_many([one, cid])):
        with pytest.raises(BlockNotFoundError):
            ask(three)


class Slow(Counting):
    """A place that is far away."""

    remote = True

    def _read(self, cid: CidBytes) -> bytes | None:
        time.sleep(0.05)
        return super()._read(cid)

    def _has(self, cid: CidBytes) -> bool:
        raise AssertionError(f"{format_cid(cid)} was asked for before it was read")


def test_a_far_place_is_asked_once_for_each_block_and_never_whether_it_has_it() -> None:
    blocks = sample_blocks(8)
    place = Slow()
    place.put_many(blocks.items())
    store = TieredBlocks(MemoryBlocks(), [place])
    assert store.remote
    cid = next(iter(blocks))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.get, [cid] * 8)) == [blocks[cid]] * 8
    assert place.reads == [cid]
    missing = cid_of(RAW, BLAKE3, b"nowhere")
    assert store.get_held([*blocks, missing]) == blocks
    assert sorted(place.reads) == sorted([*blocks, missing])
    assert list(store.get_many(list(blocks))) == list(blocks.values())
    assert len(place.reads) == 9


def test_a_far_place_that_fails_on_one_block_loses_none_of_the_others() -> None:
    blocks = sample_blocks(20)
    broken = list(blocks)[-1]  # when its turn comes, the others are under way

    class Failing(Slow):
        def _read(self, cid: CidBytes) -> bytes | None:
            if cid == broken:
                raise RemoteError("the connection was closed")
            return super()._read(cid)

    place = Failing()
    place.put_many(blocks.items())
    store = TieredBlocks(MemoryBlocks(), [place])
    with pytest.raises(BlockNotFoundError, match="connection was closed"):
        store.get_many(list(blocks))
    assert set(store.local.list()) == set(blocks) - {broken}
    place.reads.clear()
    assert TieredBlocks(store.local, [place, _behind(blocks)]).get_held(list(blocks)) == blocks
    assert place.reads == []


def test_a_place_that_means_nothing_does_not_hide_the_next() -> None:
    blocks = sample_blocks(3)

    def nowhere() -> BlockStore:
        raise InvalidArgumentError("'ipfs://x' names no cid")

    for cid, data in blocks.items():
        store = TieredBlocks(MemoryBlocks(), [nowhere, _behind(blocks)])
        assert store.get(cid) == data
        assert store.get_held([cid]) == {cid: data}
    with pytest.raises(BlockNotFoundError, match="names no cid"):
        TieredBlocks(MemoryBlocks(), [nowhere]).get(cid)


def test_tiers_in_memory_can_stand_behind_each_other() -> None:
    blocks = sample_blocks(4)
    store = TieredBlocks(RecentBlocks(), [TieredBlocks(RecentBlocks(), [_behind(blocks)])])
    assert list(store.get_many(list(blocks))) == list(blocks.values())
    assert [store.get(cid) for cid in blocks] == list(blocks.values())


def test_closing_closes_places_that_were_never_asked() -> None:
    closed: list[str] = []

    class Closing(MemoryBlocks):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "bad":
                raise StorageError("the disk failed")

    with pytest.raises(StorageError, match="the disk failed"):
        TieredBlocks(Closing("here"), [Closing("one"), Closing("bad"), Closing("two")]).close()
    assert sorted(closed) == ["bad", "here", "one", "two"]


def test_what_no_place_has_is_told_by_the_places(tmp_path: Path) -> None:
    cid = cid_of(RAW, BLAKE3, b"nowhere")
    with LocalBlocks(tmp_path / "p", create=True) as behind:
        for local in (RecentBlocks(), CacheBlocks(tmp_path / "cache")):
            store = TieredBlocks(local, [behind])
            for ask in (store.get, store.size, lambda one, tier=store: tier.get_many([one])):
                with pytest.raises(BlockNotFoundError, match=f"is not in {behind.location}; add"):
                    ask(cid)
            local.close()
        with pytest.raises(BlockNotFoundError, match=f"in memory, and not in {behind.location}"):
            TieredBlocks(MemoryBlocks(), [behind]).get(cid)
