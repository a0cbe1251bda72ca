"""A tree that was changed is the tree that is built afresh, whatever its history."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, SHA256, CidBytes
from cas_zarr.tree import chunktree, morton, page, table, update
from cas_zarr.tree.chunktree import ChunkTree, TreeRef
from cas_zarr.tree.page import PageReader
from cas_zarr.tree.table import Table

Place = tuple[int, ...]
Step = tuple[str, list[Place]]


@contextmanager
def pages_of(entries: int) -> Iterator[None]:
    """Let a page hold fewer entries, so that small trees have many pages."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (page, table, update):
            patch.setattr(module, "MAX_ENTRIES", entries)
        yield


def chunks(values: dict[Place, int], ndim: int) -> Table:
    places = sorted(values)
    coordinates = np.array(places, np.int64).reshape(len(places), ndim)
    sizes = np.array([values[place] for place in places], np.uint64)
    cids = np.zeros((len(places), 36), np.uint8)
    cids[:, :4] = [1, 0x55, 0x1E, 32]
    cids[:, 4:12] = sizes.astype("<u8").view(np.uint8).reshape(-1, 8)
    return chunktree.chunk_table(morton.encode(coordinates), cids, sizes, ndim)


def codes(places: set[Place], ndim: int) -> morton.Codes:
    array = np.array(sorted(places), np.int64).reshape(len(places), ndim)
    return np.sort(morton.encode(array))


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[Step]]:
    """Some dimensions, and steps that set and delete chunks which lie near each other."""
    ndim = draw(st.sampled_from([1, 2, 3, 5]))
    top = 2 ** draw(st.sampled_from([3, 5, 12, 21, 32])) - 1
    origin = st.tuples(*[st.integers(0, top)] * ndim)
    origins = draw(st.lists(origin, min_size=1, max_size=4))
    near = st.builds(
        lambda base, step: tuple(min(2**32 - 1, a + b) for a, b in zip(base, step, strict=True)),
        st.sampled_from(origins),
        st.tuples(*[st.integers(0, 5)] * ndim),
    )
    box = st.builds(
        lambda base, side: [
            tuple(min(2**32 - 1, a + b) for a, b in zip(base, step, strict=True))
            for step in itertools.islice(itertools.product(range(side), repeat=ndim), 60)
        ],
        near,
        st.integers(1, 4),
    )
    places = st.one_of(st.lists(near, max_size=12), box)
    kinds = st.sampled_from(["set", "set", "delete", "only"])
    return ndim, draw(st.lists(st.tuples(kinds, places), min_size=1, max_size=7))


def by_definition(sorted_codes: list[int], bits: int, most: int, low: int = 0, depth: int = 0):
    """Yield (first code of the box, prefix length, entries) of the pages, by the rule's words."""
    if len(sorted_codes) <= most:
        if sorted_codes:
            yield low, depth, len(sorted_codes)
        return
    middle = low + (1 << bits - depth - 1)
    split = sum(code < middle for code in sorted_codes)
    yield from by_definition(sorted_codes[:split], bits, most, low, depth + 1)
    yield from by_definition(sorted_codes[split:], bits, most, middle, depth + 1)


@given(histories(), st.sampled_from([2, 3, 6, 16]), st.sampled_from([0, 2, 5]))
@settings(max_examples=250)
def test_update_is_build(history: tuple[int, list[Step]], entries: int, ahead: int) -> None:
    ndim, steps = history
    with pages_of(entries), pytest.MonkeyPatch.context() as patch:
        blocks, model, ref = MemoryBlocks(), {}, None
        blocks.remote = ahead > 0  # then pages are read together
        patch.setattr(update, "_AHEAD", ahead)
        pages = PageReader(blocks)
        for number, (kind, places) in enumerate(steps, 1):
            sets: dict[Place, int] = {}
            if kind == "set":
                deletes = set(places[::5])  # absent ones are deleted too
                sets = {place: number + hash(place) % 3 for place in places[1:]}
                deletes -= set(sets)
            elif kind == "delete":
                deletes = set(places)
            else:
                deletes = set(model) - set(places)
            ref = update.update(pages, BLAKE3, ref, chunks(sets, ndim), codes(deletes, ndim), ndim)
            model.update(sets)
            for place in deletes:
                model.pop(place, None)
            check(blocks, ref, model, ndim)


def check(blocks: MemoryBlocks, ref: TreeRef | None, model: dict[Place, int], ndim: int) -> None:
    """Compare a tree with a dict, and with the tree of just that dict."""
    fresh = MemoryBlocks()
    assert ref == chunktree.build(PageReader(fresh), BLAKE3, chunks(model, ndim), ndim)
    assert set(fresh.list()) <= set(blocks.list())
    if ref is None:
        assert not model
        return
    assert (ref.chunks, ref.size) == (len(model), sum(model.values()))
    tree = ChunkTree(PageReader(fresh), ref, ndim)
    expected = chunks(model, ndim)
    found = tree.table()
    assert found.codes.tolist() == expected.codes.tolist()
    assert found.cids.tolist() == expected.cids.tolist()
    assert found.sizes.tolist() == expected.sizes.tolist()
    listed = [tuple(row) for rows in tree.coordinates() for row in rows.tolist()]
    assert sorted(listed) == sorted(model)
    row = len(model) // 2
    assert tree.find(int(expected.codes[row])) == (
        CidBytes(expected.cids[row].tobytes()),
        int(expected.sizes[row]),
    )


@given(histories(), st.sampled_from([2, 3, 6, 16]))
def test_pages_are_the_maximal_prefixes(history: tuple[int, list[Step]], entries: int) -> None:
    ndim, steps = history
    places = {place for _, group in steps for place in group}
    sorted_codes = codes(places, ndim)
    bits = morton.code_bits(ndim)
    with pages_of(entries):
        starts, prefixes = table.page_starts(sorted_codes, bits)
    expected = list(by_definition(sorted_codes.tolist(), bits, entries))
    sizes = np.diff(np.append(starts, len(sorted_codes)))
    assert prefixes.tolist() == [depth for _, depth, _ in expected]
    assert sizes.tolist() == [count for _, _, count in expected]


@given(
    histories(),
    st.sampled_from([3, 16]),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=5, max_size=5),
)
def test_a_box_holds_what_lies_in_it(
    history: tuple[int, list[Step]], entries: int, sides: list[tuple[int, int]]
) -> None:
    ndim, steps = history
    model = {place: 1 for _, group in steps for place in group}
    if not model:
        return
    base = min(model)
    start = tuple(max(0, low + a - 20) for low, (a, _) in zip(base, sides, strict=False))
    stop = tuple(low + size for low, (_, size) in zip(start, sides, strict=False))
    with pages_of(entries):
        blocks = MemoryBlocks()
        ref = chunktree.build(PageReader(blocks), SHA256, chunks(model, ndim), ndim)
        assert ref is not None
        found = ChunkTree(PageReader(blocks), ref, ndim).select(start, stop)
    inside = {
        place
        for place in model
        if all(low <= at < high for low, at, high in zip(start, place, stop, strict=True))
    }
    assert {tuple(row) for row in morton.decode(found.codes, ndim).tolist()} == inside


@pytest.mark.parametrize("seed", range(6))
def test_update_is_build_with_pages_of_512(seed: int) -> None:
    rng = random.Random(seed)
    ndim = (3, 2, 1, 3, 5, 3)[seed]
    blocks, model, ref = MemoryBlocks(), {}, None
    pages = PageReader(blocks)
    high = (16, 64, 5000, 2**32, 5, 24)[seed]
    for step in range(6):
        sets = {
            tuple(rng.randrange(high) for _ in range(ndim)): rng.randrange(1, 10**6)
            for _ in range((1500, 1, 700, 20, 3, 0)[step])
        }
        deletes = set(rng.sample(sorted(model), len(model) * (0, 1, 0, 5, 9, 0)[step] // 10))
        deletes -= set(sets)
        ref = update.update(pages, BLAKE3, ref, chunks(sets, ndim), codes(deletes, ndim), ndim)
        model = {place: n for place, n in (model | sets).items() if place not in deletes}
        check(blocks, ref, model, ndim)
    assert len(model) > 50
