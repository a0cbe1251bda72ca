"""Walking a root: every block once, parents first, lazily."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from building import CountingBlocks, fake_cids, leaf

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, DAG_PB, RAW, CidBytes, cid_of, codec_of
from cas_zarr.errors import BlockNotFoundError, LimitError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import shards
from cas_zarr.tree.chunktree import TreeRef
from cas_zarr.tree.diff import diff
from cas_zarr.tree.node import Header, Node, Root
from cas_zarr.tree.page import Page
from cas_zarr.tree.walk import reachable


def a_bit_of_everything(blocks: MemoryBlocks) -> CASMapping:
    mapping = CASMapping(blocks)
    mapping["zarr.json"] = b"\xff" * 70_000
    mapping["k"] = b"k" * (3 << 20)
    mapping["a/zarr.json"] = b"{}"
    mapping["b/.zarray"] = b"{}"
    for x, y in itertools.product(range(60), repeat=2):
        mapping[f"a/c/{x}/{y}"] = b"%d" % (x % 7)
    mapping["b/0.0.0"] = b"k" * (3 << 20)
    for n in range(100):
        mapping[f"many/n{n}"] = b"%d" % n
    return mapping


@pytest.mark.parametrize("limit", [131_072, 2000])
def test_exactly_the_blocks_of_a_dataset_are_reached(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(shards, "SHARD_LIMIT", limit)
    blocks = CountingBlocks()
    root = a_bit_of_everything(blocks).flush()
    found = list(reachable(blocks, root))
    cids = [cid for _, cid in found]
    assert len(set(cids)) == len(cids)
    assert set(cids) == set(blocks.list())
    assert found[0] == ("", root)
    places = {cid: place for place, cid in found}
    assert places[cid_of(RAW, BLAKE3, b"k" * (1 << 20))] in ("k", "b/0.0.0")
    assert places[cid_of(RAW, BLAKE3, b"6")].startswith(("a/c/", "many/n6"))


def test_values_are_named_and_not_read() -> None:
    blocks = CountingBlocks()
    root = a_bit_of_everything(blocks).flush()
    blocks.reads.clear()
    list(reachable(blocks, root))
    assert not [cid for cid in blocks.reads if cid[1] == RAW]
    tree_only = {cid for _, cid in reachable(blocks, root, values=False)}
    assert root in tree_only
    assert len(tree_only) > 5
    assert not [cid for cid in tree_only if cid[1] == RAW]


def test_a_walk_is_lazy_and_names_what_is_missing() -> None:
    blocks = CountingBlocks()
    root = a_bit_of_everything(blocks).flush()
    walk = reachable(blocks, root)
    blocks.reads.clear()
    assert next(walk) == ("", root)
    assert len(blocks.reads) <= 1
    page = next(cid for cid in blocks.list() if cid[1] == DAG_CBOR)
    blocks.delete(page)
    with pytest.raises(BlockNotFoundError):
        list(reachable(blocks, root))


def inner(cid: CidBytes, width: int, level: int, count: int) -> Page:
    step = 9 * level
    return Page(
        level,
        np.array([row << step for row in range(width)], np.uint64),
        np.array([list(cid)] * width, np.uint8),
        np.full(width, count, np.uint64),
        np.full(width, count, np.uint64),
        np.full(width, 64 - step, np.int64),
    )


def deep_claim(blocks: MemoryBlocks, pages: int = 7) -> tuple[CidBytes, int]:
    """Return a root with an array of so many pages, and the chunks that they claim."""
    page, count = leaf(list(range(512)), [1] * 512), 512
    for level in range(1, pages):
        cid = cid_of(DAG_CBOR, BLAKE3, page.to_block())
        blocks.put(cid, page.to_block())
        width = 511 if level == 6 else 512
        page, count = inner(cid, width, level, count), count * width
    top = page.to_block()
    blocks.put(cid_of(DAG_CBOR, BLAKE3, top), top)
    ref = TreeRef(cid_of(DAG_CBOR, BLAKE3, top), count, count)
    root = Root(Header(), Node({".zarray": b"{}"}, trees={"/2": ref}))
    blocks.put(root.cid(), root.to_block())
    return root.cid(), count


def test_seven_pages_that_claim_ten_to_the_eighteenth_chunks_are_walked_once() -> None:
    blocks = CountingBlocks()
    root, count = deep_claim(blocks)
    found = [cid for _, cid in reachable(blocks, root)]
    assert len(found) == 1 + 7 + 512
    mapping = CASMapping(blocks, root)
    assert mapping.prefix_size("") == count + 2
    assert len(list(itertools.islice(mapping, 1000))) == 1000
    assert mapping.size_of("5/7") == 1


@pytest.mark.parametrize("pages", [3, 7])
def test_pages_that_claim_too_much_are_not_gone_through_where_they_came_before(pages: int) -> None:
    blocks = CountingBlocks()
    old = deep_claim(blocks, pages)[0]
    mapping = CASMapping(blocks)
    mapping[".zarray"] = b"{}"
    for x in range(0, 2**32, 2**22):  # two levels
        mapping[f"{x}/{x}"] = b"%d" % x
    new = mapping.flush()
    found = {cid for _, cid in reachable(blocks, new, since=old)}
    assert found == {cid for _, cid in reachable(blocks, new)}
    (change,) = diff(CASMapping(blocks, old).view, CASMapping(blocks).view)
    with pytest.raises(LimitError, match="differ in more than"):
        change.chunks  # noqa: B018
    with pytest.raises(LimitError, match="compare the CIDs of boxes"):
        list(diff(CASMapping(blocks, old).view, mapping.view))


def test_a_page_that_is_also_a_value_is_walked_through() -> None:
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping["b/zarr.json"] = b"{}"
    for x, y in itertools.product(range(40), repeat=2):
        mapping[f"b/c/{x}/{y}"] = b"%d,%d" % (x, y)
    mapping.flush()
    tree = mapping.view.tree("b", "c/2")
    assert tree is not None
    assert tree.top.level == 1
    pages = tree.top.cids
    mapping["a/zarr.json"] = b"{}"
    rows = np.arange(len(pages)).reshape(-1, 1)
    sizes = np.array([blocks.size(CidBytes(cid.tobytes())) for cid in pages])
    mapping.set_links("a", rows, pages, sizes)
    root = mapping.flush()
    found = {cid for _, cid in reachable(blocks, root)}
    assert {cid_of(RAW, BLAKE3, b"%d,%d" % (x, x)) for x in range(40)} <= found


# -- what another root does not have ----------------------------------------------------------


def grown(blocks: CountingBlocks) -> tuple[CASMapping, CidBytes]:
    """Return an array of a million chunks, none of whose values is stored, among other things."""
    mapping = CASMapping(blocks)
    mapping["zarr.json"] = b"{}"
    mapping["a/zarr.json"] = b"{}"
    mapping["b/zarr.json"] = b"{}"
    for n in range(50):
        mapping[f"many/n{n}"] = b"%d" % n
    side = np.arange(100)
    grid = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    mapping.set_links("a", grid, fake_cids(len(grid)), np.ones(len(grid), np.int64))
    return mapping, mapping.flush()


def test_with_an_earlier_root_a_walk_costs_what_changed() -> None:
    blocks = CountingBlocks()
    mapping, before = grown(blocks)
    mapping["a/c/50/60/70"] = b"changed"
    after = mapping.flush()
    blocks.reads.clear()
    found = list(reachable(blocks, after, since=before))
    assert len(blocks.reads) <= 8
    pages = [cid for _, cid in found if cid[1] == DAG_CBOR]
    assert found[0] == ("", after)
    assert ("a/c/50/60/70", cid_of(RAW, BLAKE3, b"changed")) in found
    assert len(found) == 2 + len(pages)
    assert len(pages) == 2  # an inner page and a leaf; the top stands in the root
    assert list(reachable(blocks, after, since=after)) == []


def change(mapping: CASMapping, rng: random.Random) -> None:
    for key in rng.sample(sorted(mapping), 4):
        mapping.discard(key)
    for _ in range(4):
        mapping[f"a/c/{rng.randrange(70)}/{rng.randrange(70)}"] = rng.randbytes(2)
    mapping[f"many/n{rng.randrange(200)}"] = rng.randbytes(2)
    mapping[f"g{rng.randrange(3)}/zarr.json"] = b"{}"
    long = bytearray(b"k" * (3 << 20))
    long[rng.randrange(3) << 20] = 1
    mapping["b/0.0.0"] = bytes(long)
    if rng.random() < 0.3:
        mapping.discard_prefix(rng.choice(["a/", "many/", "b/"]))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("limit", [131_072, 600])
def test_what_is_left_out_is_in_the_earlier_root(
    monkeypatch: pytest.MonkeyPatch, limit: int, apart: bool
) -> None:
    monkeypatch.setattr(shards, "SHARD_LIMIT", limit)
    rng = random.Random(limit)
    blocks = CountingBlocks()
    mapping = a_bit_of_everything(blocks)
    roots = [mapping.flush()]
    for _ in range(12):
        change(mapping, rng)
        roots.append(mapping.flush())
    for _ in range(40):
        new, old = rng.choice(roots), rng.choice(roots)
        had = {cid for _, cid in reachable(blocks, old)}
        elsewhere = CountingBlocks()
        if apart:
            elsewhere.put_many((cid, blocks.get(cid)) for cid in had)
        found = [
            cid
            for _, cid in reachable(
                blocks, new, since=old, since_blocks=elsewhere if apart else None
            )
        ]
        assert len(set(found)) == len(found)
        everything = {cid for _, cid in reachable(blocks, new)}
        assert set(found) | had >= everything
        assert set(found) <= everything
        tree_only = {cid for _, cid in reachable(blocks, new, since=old, values=False)}
        assert tree_only <= set(found)
        assert tree_only >= {
            cid for cid in set(found) - had if codec_of(cid) in (DAG_CBOR, DAG_JSON)
        }


def test_of_a_long_value_only_the_leaves_that_changed_are_walked() -> None:
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping["a/zarr.json"] = b"{}"
    mapping["a/c/0"] = mapping["k"] = b"k" * (4 << 20)
    before = mapping.flush()
    mapping["a/c/0"] = mapping["k"] = b"k" * (3 << 20) + b"n" * (1 << 20)
    found = list(reachable(blocks, mapping.flush(), since=before))
    assert [codec_of(cid) for _, cid in found] == [DAG_JSON, DAG_PB, RAW]


def test_a_node_that_is_new_is_walked_whole_and_what_is_unreadable_counts_as_new() -> None:
    blocks = CountingBlocks()
    mapping = a_bit_of_everything(blocks)
    before = mapping.flush()
    for x, y in itertools.product(range(40), repeat=2):
        mapping[f"new/{x}.{y}"] = b"%d,%d" % (x, y)
    mapping["new/.zarray"] = b"{}"
    mapping["a/c/3/3"] = b"changed"
    after = mapping.flush()
    found = {cid for _, cid in reachable(blocks, after, since=before)}
    assert {cid_of(RAW, BLAKE3, b"%d,%d" % (x, 0)) for x in range(40)} <= found
    assert cid_of(RAW, BLAKE3, b"k" * (1 << 20)) not in found
    partial = MemoryBlocks()
    partial.put(before, blocks.get(before))
    more = {cid for _, cid in reachable(blocks, after, since=before, since_blocks=partial)}
    assert found < more
    with pytest.raises(BlockNotFoundError):
        list(reachable(blocks, after, since=after[:-1] + b"0", since_blocks=partial))


def test_a_page_that_cannot_be_read_is_told_and_the_walk_goes_on() -> None:
    blocks = CountingBlocks()
    mapping, before = grown(blocks)
    mapping["a/c/50/60/70"] = b"changed"
    mapping["b/c/0"] = b"more"
    after = mapping.flush()
    leaf_page = [cid for _, cid in reachable(blocks, after, since=before) if cid[1] == DAG_CBOR][-1]
    blocks.delete(leaf_page)
    told: list[tuple[str, CidBytes]] = []
    found = list(
        reachable(
            blocks, after, since=before, on_error=lambda path, cid, _: told.append((path, cid))
        )
    )
    assert told == [("a", leaf_page)]
    assert cid_of(RAW, BLAKE3, b"more") in {cid for _, cid in found}
    with pytest.raises(BlockNotFoundError):
        list(reachable(blocks, after, since=before))
