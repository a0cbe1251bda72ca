"""Walking a root: every block once, parents first, lazily."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from building import CountingBlocks, leaf

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, RAW, CidBytes, cid_of
from cas_zarr.errors import BlockNotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import shards
from cas_zarr.tree.chunktree import TreeRef
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


def test_seven_pages_that_claim_ten_to_the_eighteenth_chunks_are_walked_once() -> None:
    blocks = CountingBlocks()
    page, count = leaf(list(range(512)), [1] * 512), 512
    for level in range(1, 7):
        cid = cid_of(DAG_CBOR, BLAKE3, page.to_block())
        blocks.put(cid, page.to_block())
        width = 511 if level == 6 else 512
        page, count = inner(cid, width, level, count), count * width
    top = page.to_block()
    blocks.put(cid_of(DAG_CBOR, BLAKE3, top), top)
    ref = TreeRef(cid_of(DAG_CBOR, BLAKE3, top), count, count)
    root = Root(Header(), Node({".zarray": b"{}"}, trees={"/2": ref}))
    blocks.put(root.cid(), root.to_block())
    found = [cid for _, cid in reachable(blocks, root.cid())]
    assert len(found) == 1 + 7 + 512
    mapping = CASMapping(blocks, root.cid())
    assert mapping.prefix_size("") == count + 2
    assert len(list(itertools.islice(mapping, 1000))) == 1000
    assert mapping.size_of("5/7") == 1


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
