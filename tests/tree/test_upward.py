"""Walking a root from below: all blocks, what is linked first, nothing that is there."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator

import pytest
from building import CountingBlocks

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, DAG_PB, RAW, CidBytes, cid_of
from cas_zarr.codecs import dagcbor, dagjson
from cas_zarr.codecs.dagpb import decode as decode_dagpb
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import shards, table, update
from cas_zarr.tree import upward as module
from cas_zarr.tree.upward import upward
from cas_zarr.tree.walk import reachable


@pytest.fixture(params=[131_072, 2000], ids=["whole", "shards"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few entries make shards, and a few chunks pages of several levels."""
    monkeypatch.setattr(shards, "SHARD_LIMIT", request.param)
    if request.param == 2000:
        for each in (table, update):
            if hasattr(each, "MAX_ENTRIES"):
                monkeypatch.setattr(each, "MAX_ENTRIES", 5)


def fill(mapping: CASMapping, rng: random.Random, count: int) -> None:
    for name in ("zarr.json", "a/zarr.json", "b/.zarray", "deep/er/zarr.json"):
        mapping[name] = b"{}" if rng.random() < 0.9 else b"\xff" * 70_000
    for _ in range(count):
        x, y = rng.randrange(40), rng.randrange(40)
        value = b"%d" % rng.randrange(30)
        kind = rng.randrange(12)
        if kind < 6:
            mapping[f"a/c/{x}/{y}"] = value
        elif kind < 9:
            mapping[f"b/{x}.{y}.{x % 3}"] = value
        elif kind < 11:
            mapping[f"many/n{x}"] = value
        else:
            mapping[f"deep/er/c/{x % 4}/{y % 2}"] = bytes([y % 3]) * rng.choice((3, (3 << 20) + y))


def links(cid: CidBytes, data: bytes) -> Iterator[CidBytes]:
    """Yield what a block links, by the decoders of its codec alone."""
    if cid[1] == DAG_PB:
        yield from (link.cid for link in decode_dagpb(data).links)
    elif cid[1] != RAW:
        value = dagcbor.decode(data) if cid[1] == DAG_CBOR else dagjson.decode(data, max_depth=200)
        pending = [value]
        while pending:
            one = pending.pop()
            if isinstance(one, dict):
                pending.extend(one.values())
            elif isinstance(one, list):
                pending.extend(one)
            elif hasattr(one, "cid"):
                yield one.cid


def check_order(blocks: BlockStore, found: list[CidBytes], there: set[CidBytes]) -> None:
    come = set(there)
    for cid in found:
        missing = [link for link in links(cid, blocks.get(cid)) if link not in come]
        assert not missing
        come.add(cid)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(12))
def test_all_blocks_come_and_what_is_linked_comes_first(seed: int) -> None:
    rng = random.Random(seed)
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    fill(mapping, rng, rng.choice((5, 60, 700)))
    old = mapping.flush()
    whole = list(upward(blocks, old))
    assert set(whole) == {cid for _, cid in reachable(blocks, old)}
    assert len(whole) == len(set(whole))
    assert whole[-1] == old
    check_order(blocks, whole, set())
    fill(mapping, rng, rng.choice((1, 5, 100)))
    for key in rng.sample(sorted(mapping), 3):
        del mapping[key]
    new = mapping.flush()
    more = list(upward(blocks, new, since=old))
    assert set(more) == {cid for _, cid in reachable(blocks, new, since=old)}
    assert len(more) == len(set(more))
    check_order(blocks, more, set(whole))
    assert list(upward(blocks, new, since=new)) == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(12))
def test_what_is_there_is_left_out_with_all_below_it(seed: int) -> None:
    """Stop a transfer anywhere: the next one brings the rest, and asks of the tree only."""
    rng = random.Random(seed)
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    fill(mapping, rng, 600)
    root = mapping.flush()
    whole = list(upward(blocks, root))
    there = set(whole[: rng.randrange(len(whole))])
    asked: list[CidBytes] = []

    def has(cid: CidBytes) -> bool:
        asked.append(cid)
        return cid in there

    rest = list(upward(blocks, root, has=has))
    check_order(blocks, rest, there)
    assert set(rest) | there == set(whole)
    assert not [cid for cid in asked if cid[1] == RAW]
    assert len(asked) == len(set(asked))
    again = [cid for cid in rest if cid in there]
    assert not [cid for cid in again if cid[1] in (DAG_CBOR, DAG_JSON)]
    there.update(whole)
    asked.clear()
    assert list(upward(blocks, root, has=has)) == []
    assert asked == [root]


def test_a_constant_field_and_distinct_values_are_remembered_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 10)
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping["a/zarr.json"] = mapping["b/zarr.json"] = b"{}"
    for x, y in itertools.product(range(50), repeat=2):
        mapping[f"a/c/{x}/{y}"] = b"same"
        mapping[f"b/c/{x}/{y}"] = b"%d" % (x % 25)
    root = mapping.flush()
    walk = module._Upward(blocks, blocks, None)
    found = list(walk.run(root, None))
    assert len(walk.recent) == 10
    assert found.count(cid_of(RAW, BLAKE3, b"same")) == 1
    assert set(found) == {cid for _, cid in reachable(blocks, root)}


@pytest.mark.usefixtures("small")
def test_the_walk_is_lazy() -> None:
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping["a/zarr.json"] = b"{}"
    for x, y in itertools.product(range(60), repeat=2):
        mapping[f"a/c/{x}/{y}"] = b"%d-%d" % (x, y)
    root = mapping.flush()
    blocks.reads.clear()
    next(upward(blocks, root))
    assert not [cid for cid in blocks.reads if cid[1] == RAW]


def test_a_page_comes_right_after_its_chunks() -> None:
    """What was sent before a break can be told by its pages."""
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping["a/zarr.json"] = b"{}"
    for x, y in itertools.product(range(60), repeat=2):
        mapping[f"a/c/{x}/{y}"] = b"%d-%d" % (x, y)
    root = mapping.flush()
    since_page = 0
    for cid in upward(blocks, root):
        since_page = since_page + 1 if cid[1] == RAW else 0
        assert since_page <= 512


def test_a_place_is_asked_for_many_pages_at_once() -> None:
    """It may be far: more questions are under way than there are cores."""
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks)
    mapping["zarr.json"] = b"{}"
    for number in range(512 * 20):
        mapping[f"c/{number}"] = b"%d" % number
    root = mapping.flush()
    lock, enough = threading.Lock(), threading.Event()
    calls = itertools.count()
    busy = 0

    def has(cid: CidBytes) -> bool:  # noqa: ARG001
        nonlocal busy
        if next(calls) == 0:  # the root is asked for alone
            return False
        with lock:
            busy += 1
            if busy == 16:
                enough.set()
        assert enough.wait(10)
        return True

    assert list(upward(blocks, root, has=has)) == [root]
