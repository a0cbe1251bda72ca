"""CASMapping: CIDs of parts, links in bulk, two writers, many threads."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from test_mapping import CountingBlocks, filled, links, reopened

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, RAW
from cas_zarr.errors import (
    ConflictError,
    FormatError,
    InvalidArgumentError,
    LimitError,
    NotFoundError,
    ReadOnlyError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.tree.morton import decode, encode
from cas_zarr.tree.node import Header, Node, Root, Value

# -- CIDs of parts --------------------------------------------------------------------------


def test_a_subtree_is_a_dataset_of_its_own() -> None:
    mapping = filled()
    mapping["deep/er/a/zarr.json"] = mapping["a/zarr.json"]
    for x, y in itertools.product(range(12), repeat=2):
        mapping[f"deep/er/a/c/{x}/{y}"] = b"%d,%d" % (x, y)
    cid = mapping.cid("a")
    assert cid == mapping.cid("deep/er/a") == mapping.cid("/a/")
    assert mapping.cid() == mapping.cid("") == mapping.flush()
    alone = CASMapping(mapping.blocks, cid)
    assert len(alone) == 145
    assert alone["c/3/4"] == b"3,4"
    fresh = CASMapping(MemoryBlocks())
    for key, value in alone.items():
        fresh[key] = value
    assert fresh.flush() == cid
    mapping["a/c/0/0"] = b"changed"
    assert mapping.cid("a") != cid
    assert mapping.cid("deep/er/a") == cid
    for path in ("nothing", "a/c", "g/k", "l"):
        with pytest.raises(NotFoundError, match=path):
            mapping.cid(path)


def test_a_subtree_whose_cid_was_asked_for_is_durable_with_the_next_flush() -> None:
    mapping = filled()
    blocks = mapping.blocks
    assert isinstance(blocks, CountingBlocks)
    mapping.flush()
    flushes = blocks.flushes
    cid = mapping.cid("a")
    mapping.flush()
    assert blocks.flushes == flushes + 1
    assert blocks.has(cid)


def cubes() -> CASMapping:
    """A mapping of an array with two equal boxes of chunks, and some more."""
    mapping = CASMapping(MemoryBlocks())
    mapping["a/zarr.json"] = b"{}"
    for x, y, z in itertools.product(range(16), repeat=3):
        mapping[f"a/c/{x}/{y}/{z}"] = b"%d" % (x % 8 + 10 * (y % 8) + 100 * (z % 8))
    return mapping


def test_boxes_of_chunks_have_cids() -> None:
    mapping = cubes()
    box = mapping.cid("a", [slice(0, 8), slice(0, 8), slice(0, 8)])
    for corner in itertools.product((0, 8), repeat=3):
        assert mapping.cid("a", [(low, low + 8) for low in corner]) == box
    tree = mapping.view.tree("a", "c/3")
    assert tree is not None
    assert {tree.top.cid(row) for row in range(len(tree.top))} == {box}
    odd = mapping.cid("a", [(1, 4), (2, 9), (3, 6)])
    assert odd == mapping.cid("a", [(9, 12), (2, 9), (3, 6)])
    assert odd != mapping.cid("a", [(1, 4), (2, 9), (4, 7)])
    assert odd != box
    mapping["a/c/9/2/3"] = b"changed"
    assert odd != mapping.cid("a", [(9, 12), (2, 9), (3, 6)])
    everything = mapping.cid("a", [slice(None), slice(None), slice(None)])
    assert everything == mapping.cid("a", [(0, 16)] * 3) == mapping.cid("a", [(0, 2**40)] * 3)
    empty = mapping.cid("a", [(20, 30)] * 3)
    assert empty == mapping.cid("a", [(3, 3), (0, 1), (0, 1)]) != everything


@pytest.mark.parametrize(
    "box",
    [
        [slice(0, 1)],
        [slice(0, 1)] * 4,
        [slice(-1, None)] * 3,
        [slice(0, -1)] * 3,
        [slice(0, 8, 2)] * 3,
        [(-1, 4)] * 3,
        [],
    ],
)
def test_boxes_that_make_no_sense_are_refused(box: Any) -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping["a/zarr.json"] = b"{}"
    mapping["a/c/0/0/0"] = b"x"
    with pytest.raises(InvalidArgumentError):
        mapping.cid("a", box)


# -- links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["c/", "c.", ".", "/"])
@pytest.mark.parametrize("below", [None, "a/c", "a/c/0", "a/0", "a/x"])
def test_many_links_are_as_one_by_one(kind: str, below: str | None) -> None:
    places = [(x, y) for x in range(0, 60, 2) for y in range(30)]
    one, two = CASMapping(MemoryBlocks()), CASMapping(MemoryBlocks())
    for mapping in (one, two):
        mapping["a/zarr.json"] = b"{}"
        mapping["a/c/3/3"] = b"before"
        mapping["a/c/4/4"] = b"before"
        if below is not None:
            mapping[f"{below}/zarr.json"] = b"{}"
    two.set_links("a", *links(two, places), kind=kind)
    for place in places:
        prefix = "a/" if len(kind) == 1 else f"a/{kind}"
        one[prefix + kind[-1].join(map(str, place))] = repr(place).encode()
    assert two.dirty
    assert one.flush() == two.flush()
    assert dict(one.items()) == dict(two.items())


def test_links_that_make_no_sense_are_refused() -> None:
    mapping = filled()
    root = mapping.flush()
    places, cids, sizes = links(mapping, [(1, 1), (2, 2)])
    other = cids.copy()
    other[0, 1] = 0x51
    cases: list[tuple[tuple[Any, ...], type[Exception]]] = [
        (("a", places[0], cids, sizes), InvalidArgumentError),
        (("a", places * 1.0, cids, sizes), InvalidArgumentError),
        (("a", places, cids[:1], sizes), InvalidArgumentError),
        (("a", places, cids.astype(np.int64), sizes), InvalidArgumentError),
        (("a", places, cids[:, :34], sizes), InvalidArgumentError),
        (("a", places, other, sizes), InvalidArgumentError),
        (("a", places, cids, sizes[:1]), InvalidArgumentError),
        (("a", places, cids, sizes * 1.0), InvalidArgumentError),
        (("a", places, cids, -sizes), InvalidArgumentError),
        (("a", places, cids, sizes.astype(np.uint64) << np.uint64(60)), InvalidArgumentError),
        (("a", places * 0, cids, sizes), InvalidArgumentError),
        (("a", -places, cids, sizes), LimitError),
        (("a", places << 32, cids, sizes), LimitError),
        (("a", np.zeros((2, 33), int), cids, sizes), FormatError),
        (("nothing", places, cids, sizes), NotFoundError),
        (("g", places, cids, sizes), NotFoundError),
    ]
    for arguments, error in cases:
        with pytest.raises(error):
            mapping.set_links(*arguments)
    with pytest.raises(FormatError, match="no form"):
        mapping.set_links("a", places, cids, sizes, kind="x")
    assert not mapping.dirty
    assert mapping.flush() == root
    mapping.set_links("a", places[:0], cids[:0], sizes[:0])
    assert mapping.flush() == root


@pytest.mark.parametrize("order", ["morton", "C", "scattered"])
def test_links_come_batch_by_batch_in_any_order(order: str) -> None:
    side = 22
    codes = np.sort(encode(np.stack(np.indices((side,) * 3), -1).reshape(-1, 3)))
    places = decode(codes, 3)
    cids = np.zeros((len(places), 36), np.uint8)
    cids[:, :4] = [1, RAW, BLAKE3.code, 32]
    cids[:, 4:12] = codes.astype("<u8").view(np.uint8).reshape(-1, 8)
    sizes = codes.astype(np.int64) % 1000
    rows = {
        "morton": np.arange(len(places)),
        "C": np.lexsort(places.T[::-1]),
        "scattered": np.random.default_rng(0).permutation(len(places)),
    }[order]
    one, many = CASMapping(MemoryBlocks()), CASMapping(MemoryBlocks())
    for mapping in (one, many):
        mapping["a/zarr.json"] = b"{}"
    one.set_links("a", places, cids, sizes)
    for batch in np.array_split(rows, 9):
        many.set_links("a", places[batch], cids[batch], sizes[batch])
    assert many.flush() == one.flush()


def test_links_are_copied_before_set_links_returns() -> None:
    one, two = CASMapping(MemoryBlocks()), CASMapping(MemoryBlocks())
    arrays = [links(mapping, [(x, 0) for x in range(200)]) for mapping in (one, two)]
    for mapping, (places, cids, sizes) in zip((one, two), arrays, strict=True):
        mapping["a/zarr.json"] = b"{}"
        mapping.set_links("a", places, cids, sizes)
    for array in arrays[0]:
        array[:] = 0
    assert one["a/c/7/0"] == two["a/c/7/0"] == b"(7, 0)"
    assert one.flush() == two.flush()


# -- two writers ----------------------------------------------------------------------------


def test_disjoint_changes_are_united() -> None:
    mapping = filled()
    base = mapping.flush()
    ours, theirs = CASMapping(mapping.blocks, base), CASMapping(mapping.blocks, base)
    ours["a/c/1/1"] = b"ours"
    theirs["a/c/2/2"] = b"theirs"
    placed = theirs.flush()
    ours.unite(placed, base=base)
    assert ours.dirty
    assert (ours["a/c/1/1"], ours["a/c/2/2"]) == (b"ours", b"theirs")
    theirs["a/c/1/1"] = b"ours"
    assert ours.flush() == theirs.flush()


def test_overlapping_changes_conflict_and_change_nothing() -> None:
    mapping = filled()
    base = mapping.flush()
    ours, theirs = CASMapping(mapping.blocks, base), CASMapping(mapping.blocks, base)
    ours["g/k"] = b"ours"
    theirs["g/k"] = b"theirs"
    with pytest.raises(ConflictError, match="'k' of 'g'"):
        ours.unite(theirs.flush(), base=base)
    assert ours["g/k"] == b"ours"
    del theirs["g/k"]
    theirs["g/k"] = b"ours"
    ours.unite(theirs.flush(), base=base)
    assert ours.flush() == theirs.flush()


def test_two_new_datasets_are_united() -> None:
    blocks = MemoryBlocks()
    ours, theirs = CASMapping(blocks), CASMapping(blocks)
    ours["a"] = b"1"
    theirs["b"] = b"2"
    ours.unite(theirs.flush(), base=None)
    assert dict(ours.items()) == {"a": b"1", "b": b"2"}
    ours.unite(None, base=None)
    assert dict(ours.items()) == {"a": b"1", "b": b"2"}


def test_datasets_of_other_profiles_are_not_united() -> None:
    blocks = MemoryBlocks()
    ours, theirs = CASMapping(blocks), CASMapping(blocks, hash="sha2-256")
    ours["a"] = b"1"
    theirs["b"] = b"2"
    with pytest.raises(ConflictError, match="sha2-256"):
        ours.unite(theirs.flush(), base=None)
    newer = Root(Header(needs_to_write=("x",)), Node({"zarr.json": b"{}"}))
    blocks.put(newer.cid(), newer.to_block())
    with pytest.raises(ReadOnlyError, match="needs x"):
        ours.unite(newer.cid(), base=None)
    assert dict(ours.items()) == {"a": b"1"}


# -- threads --------------------------------------------------------------------------------


def test_many_threads_set_read_list_and_flush() -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping["a/zarr.json"] = b"{}"
    mapping._settle_at = 100
    errors: list[BaseException] = []
    done = threading.Event()

    def write(worker: int) -> None:
        for n in range(300):
            key = f"a/c/{worker}/{n}"
            mapping[key] = b"%d/%d" % (worker, n)
            assert mapping[key] == b"%d/%d" % (worker, n)
            if n % 10 == 9:
                assert mapping.discard(f"a/c/{worker}/{n - 3}")
                assert f"a/c/{worker}/{n - 3}" not in mapping
            mapping[f"w{worker}/k"] = b"%d" % n

    def look() -> None:
        while not done.is_set():
            try:
                for key in itertools.islice(mapping.list_keys("a/c/3/"), 50):
                    mapping.get(key)
                mapping.prefix_size("a")
                mapping.flush()
                mapping.discard_prefix("other/")
            except BaseException as error:
                errors.append(error)
                raise

    looker = threading.Thread(target=look)
    looker.start()
    with ThreadPoolExecutor(6) as pool:
        results = [pool.submit(write, worker) for worker in range(6)]
    done.set()
    looker.join()
    assert not errors
    for result in results:
        result.result()
    expected = CASMapping(MemoryBlocks())
    expected["a/zarr.json"] = b"{}"
    for worker in range(6):
        for n in range(300):
            if n % 10 != 6:
                expected[f"a/c/{worker}/{n}"] = b"%d/%d" % (worker, n)
        expected[f"w{worker}/k"] = b"299"
    assert mapping.flush() == expected.flush()


def test_a_value_that_is_linked_is_told_from_a_document() -> None:
    mapping = reopened(filled())
    assert isinstance(mapping.view.find("a/c/1/1"), Value)
    assert mapping.view.find("zarr.json") == b'{"node_type":"group"}'


@pytest.mark.parametrize("size", [0, 1, 1 << 15, 1 << 16, (1 << 20) + 1])
def test_a_value_is_as_true_as_it_is_long(size: int) -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping["key"] = bytes(size)
    value = mapping.get_value("key")
    assert bool(value) == (size > 0)
    assert value == bytes(size)
