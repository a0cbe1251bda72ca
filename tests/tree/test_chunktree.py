"""Chunk trees: their shape, what a change rewrites, what a read opens, and hostile ones."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import CountingBlocks, chunks, fake_cids, leaf, tree_of

from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, SHA256, CidBytes, CidLike, cid_of
from cas_zarr.errors import BlockNotFoundError, FormatError, InvalidArgumentError
from cas_zarr.tree import chunktree, morton
from cas_zarr.tree.chunktree import ChunkTree, TreeRef, build, embedded_ref
from cas_zarr.tree.page import Page, PageReader
from cas_zarr.tree.table import empty_table
from cas_zarr.tree.update import update

SIDE = 100


@pytest.fixture(scope="module")
def cube() -> tuple[CountingBlocks, TreeRef]:
    """A tree of 100 x 100 x 100 chunks."""
    grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1).reshape(-1, 3)
    blocks = CountingBlocks()
    sizes = np.full(len(grid), 70_000, np.uint64)
    table = chunktree.chunk_table(morton.encode(grid), fake_cids(len(grid)), sizes, 3)
    ref = build(PageReader(blocks), BLAKE3, table, 3)
    assert ref is not None
    return blocks, ref


def test_a_million_chunks_make_the_pages_that_the_design_counts(
    cube: tuple[CountingBlocks, TreeRef],
) -> None:
    blocks, ref = cube
    pages = [Page.from_block(blocks.get(cid)) for cid in blocks.list()]
    assert ref.embedded is not None
    assert len(ref.embedded) <= chunktree.EMBED_LIMIT
    pages.append(Page.from_block(ref.embedded))
    assert Counter(page.level for page in pages) == {0: 1954, 1: 5, 2: 1}
    assert (ref.chunks, ref.size) == (SIDE**3, SIDE**3 * 70_000)
    assert max(len(page) for page in pages) <= 512


def test_a_series_and_a_map_open_few_pages(cube: tuple[CountingBlocks, TreeRef]) -> None:
    blocks, ref = cube
    for start, stop, most in (
        ((0, 40, 40), (100, 41, 41), 13 + 5),
        ((50, 0, 0), (51, 100, 100), 157 + 5),
        ((8, 16, 24), (16, 24, 32), 1 + 1),
    ):
        blocks.reads.clear()
        found = tree_of(blocks, ref, 3).select(start, stop)
        assert len(blocks.reads) <= most
        box = np.array(stop) - np.array(start)
        assert len(found) == box.prod()
        coordinates = morton.decode(found.codes, 3)
        assert (coordinates >= start).all()
        assert (coordinates < stop).all()


def test_one_chunk_is_found_through_one_path(cube: tuple[CountingBlocks, TreeRef]) -> None:
    blocks, ref = cube
    tree = tree_of(blocks, ref, 3)
    blocks.reads.clear()
    found = tree.find(morton.code_of((99, 0, 57)))
    assert found == (CidBytes(fake_cids(SIDE**3)[99 * SIDE**2 + 57].tobytes()), 70_000)
    assert len(blocks.reads) == 2
    assert tree.find(morton.code_of((100, 0, 57))) is None
    assert tree.find(morton.code_of((2**32 - 1,) * 3)) is None


def test_one_changed_chunk_rewrites_one_path(cube: tuple[CountingBlocks, TreeRef]) -> None:
    blocks, ref = cube
    before = set(blocks.list())
    blocks.reads.clear()
    none = np.zeros(0, np.uint64)
    changed = update(PageReader(blocks), BLAKE3, ref, chunks({(50, 60, 70): 1}, 3), none, 3)
    new = set(blocks.list()) - before
    assert changed is not None
    assert len(new) == 2  # a leaf page and the page above; the top is embedded
    assert sum(blocks.size(cid) for cid in new) + len(changed.embedded or b"") <= 100_000
    assert len(blocks.reads) <= 4
    assert changed.size == ref.size - 70_000 + 1
    for cid in new:
        blocks.delete(cid)


def test_changing_every_page_does_not_hold_the_tree_in_memory(tmp_path: Path) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(64)] * 3, indexing="ij"), -1).reshape(-1, 3)
    codes, sizes = morton.encode(grid), np.full(len(grid), 7, np.uint64)
    table = chunktree.chunk_table(codes, fake_cids(len(grid)), sizes, 3)
    none = np.zeros(0, np.uint64)
    with LocalBlocks(tmp_path / "packs", create=True) as blocks:
        ref = build(PageReader(blocks), BLAKE3, table, 3)
        tree_size = sum(column.nbytes for column in (table.codes, table.cids, table.sizes))
        for sets, deletes in (
            (table.take(slice(0, None, 300)), none),
            (empty_table(), codes[::300]),
        ):
            sets = replace(sets, sizes=sets.sizes + np.uint64(1))
            tracemalloc.start()
            changed = update(PageReader(blocks, capacity=8), BLAKE3, ref, sets, np.sort(deletes), 3)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert changed != ref
            assert peak < tree_size / 3


class FarBlocks(CountingBlocks):
    """Blocks at a round trip, which are counted."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.trips = 0

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        self.trips += 1
        found = super().get_many(cids)
        del self.reads[-len(cids) :]
        return found


def test_pages_that_are_far_away_are_read_together(cube: tuple[CountingBlocks, TreeRef]) -> None:
    near, ref = cube
    far = FarBlocks()
    far.put_many((cid, near.get(cid)) for cid in near.list())
    rng = np.random.default_rng(0)
    places = {tuple(place): 1 for place in rng.integers(0, SIDE + 20, (300, 3)).tolist()}
    sets = chunks(places, 3)
    gone = np.sort(morton.encode(rng.integers(0, SIDE, (40, 3))))
    none = np.zeros(0, np.uint64)
    for changes in ((sets, none), (empty_table(), gone), (sets, gone)):
        far.trips, far.reads = 0, []
        changed = update(PageReader(far), BLAKE3, ref, *changes, 3)
        assert far.trips + len(far.reads) <= 30  # of some 150 pages
        assert changed == update(PageReader(near), BLAKE3, ref, *changes, 3)


def test_equal_neighbours_are_one_page_wherever_they_lie() -> None:
    blocks = CountingBlocks()
    box = {(x, y, z): 7 for x in range(8) for y in range(8) for z in range(8)}
    grid = {(x, y, z): 7 for x in range(16) for y in range(16) for z in range(16)}
    ref = build(PageReader(blocks), BLAKE3, chunks(grid, 3), 3)
    alone = build(PageReader(CountingBlocks()), BLAKE3, chunks(box, 3), 3)
    assert ref is not None
    assert alone is not None
    top = tree_of(blocks, ref, 3).top
    assert (top.level, len(top)) == (1, 8)
    assert {top.cid(row) for row in range(8)} == {alone.cid} == set(blocks.list())


def test_a_top_page_past_two_kib_is_a_block() -> None:
    blocks = CountingBlocks()
    for count in (40, 60):
        ref = build(PageReader(blocks), SHA256, chunks({(n,): 1 for n in range(count)}, 1), 1)
        assert ref is not None
        assert (ref.embedded is None) == (count == 60)
    assert list(blocks.list()) == [ref.cid]
    assert ref.cid[2] == SHA256.code


def test_no_chunks_are_no_tree() -> None:
    pages = PageReader(CountingBlocks())
    assert build(pages, BLAKE3, empty_table(), 3) is None
    ref = build(pages, BLAKE3, chunks({(1, 2): 3}, 2), 2)
    gone = np.array([morton.code_of((1, 2))], np.uint64)
    assert update(pages, BLAKE3, ref, empty_table(), gone, 2) is None
    assert update(pages, BLAKE3, ref, empty_table(), gone[:0], 2) is ref
    assert update(pages, BLAKE3, None, empty_table(), gone, 2) is None


def test_a_chunk_given_twice_is_refused() -> None:
    twice = np.array([5, 3, 5], np.uint64)
    with pytest.raises(InvalidArgumentError, match="twice"):
        chunktree.chunk_table(twice, fake_cids(3), np.ones(3, np.uint64), 1)


def test_one_scalar_makes_a_tree_without_dimensions() -> None:
    blocks = CountingBlocks()
    ref = build(PageReader(blocks), BLAKE3, chunks({(): 9}, 0), 0)
    assert ref is not None
    tree = tree_of(blocks, ref, 0)
    assert tree.find(0) == (chunks({(): 9}, 0).cids[0].tobytes(), 9)
    changed = update(PageReader(blocks), BLAKE3, ref, chunks({(): 4}, 0), np.zeros(0, np.uint64), 0)
    assert changed == build(PageReader(blocks), BLAKE3, chunks({(): 4}, 0), 0)


# -- hostile trees --------------------------------------------------------------------------


def put(blocks: CountingBlocks, page: Page) -> CidBytes:
    data = page.to_block()
    cid = cid_of(DAG_CBOR, BLAKE3, data)
    blocks.put(cid, data)
    return cid


def above(children: list[tuple[int, int, CidBytes, int, int]], level: int = 1) -> Page:
    """Return an inner page of children: code, prefix length, CID, chunks, bytes."""
    codes, prefixes, cids, counts, sizes = zip(*children, strict=True)
    return Page(
        level,
        np.array(codes, np.uint64),
        np.array([list(cid) for cid in cids], np.uint8),
        np.array(sizes, np.uint64),
        np.array(counts, np.uint64),
        np.array(prefixes, np.int64),
    )


def read_all(blocks: CountingBlocks, top: Page, ndim: int = 1) -> None:
    chunks_, size = top.totals()
    tree = tree_of(blocks, embedded_ref(top.to_block(), chunks_, size), ndim)
    tree.table()


ways: dict[str, Callable[[ChunkTree], object]] = {
    "find": lambda tree: tree.find(0),
    "table": lambda tree: tree.table(),
    "select": lambda tree: tree.select((0,), (2**32,)),
    "update": lambda tree: update(
        tree.reader, BLAKE3, tree.ref, chunks({(0,): 1}, 1), np.zeros(0, np.uint64), 1
    ),
}


@pytest.mark.parametrize("way", list(ways))
@pytest.mark.parametrize("case", ["level", "itself", "counts", "bytes", "outside", "missing"])
def test_a_child_that_is_not_what_its_parent_says_is_refused(way: str, case: str) -> None:
    blocks = CountingBlocks()
    small = put(blocks, leaf([0, 1]))  # two chunks of 7 bytes
    parent = above([(0, 24, small, 2, 14), (256, 24, small, 2, 14)])
    error: type[Exception] = FormatError
    if case == "level":
        top = above([(0, 23, small, 2, 14)], level=2)
    elif case == "itself":  # as near to a cycle as a page can come: a child of its own level
        top = above([(0, 23, put(blocks, parent), 4, 28)], level=1)
    elif case == "counts":
        top = above([(0, 24, small, 3, 14)])
    elif case == "bytes":
        top = above([(0, 24, small, 2, 13)])
    elif case == "outside":
        top = above([(0, 31, put(blocks, leaf([0, 1, 2])), 3, 21)])
    else:
        error = BlockNotFoundError
        top = above([(0, 24, CidBytes(fake_cids(1, DAG_CBOR)[0].tobytes()), 2, 14)])
    tree = tree_of(blocks, embedded_ref(top.to_block(), *top.totals()), 1)
    with pytest.raises(error):
        ways[way](tree)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(0, 24), (128, 25)], "overlap"),
        ([(0, 24), (200, 25)], "overlap"),
        ([(1, 24)], "not aligned"),
        ([(0, 33)], "impossible prefix"),
        ([(0, 0), (256, 24)], "overlap"),
        ([(2**32, 24)], "outside its box"),
    ],
)
def test_children_that_overlap_or_lie_elsewhere_are_refused(
    places: list[tuple[int, int]], message: str
) -> None:
    blocks = CountingBlocks()
    small = put(blocks, leaf([0, 1]))
    top = above([(code, prefix, small, 2, 14) for code, prefix in places])
    with pytest.raises(FormatError, match=message):
        read_all(blocks, top)


def test_a_child_wider_than_its_parent_is_refused() -> None:
    blocks = CountingBlocks()
    middle = above([(0, 20, put(blocks, leaf([0])), 1, 7)])
    top = above([(0, 22, put(blocks, middle), 1, 7)], level=2)
    with pytest.raises(FormatError, match="impossible prefix"):
        read_all(blocks, top)


def test_totals_that_the_document_claims_are_checked() -> None:
    blocks = CountingBlocks()
    page = leaf([0, 1]).to_block()
    for claim in ((3, 14), (2, 15), (2**62, 14)):
        with pytest.raises(FormatError, match=f"claims {claim[0]} chunks of {claim[1]} bytes"):
            tree_of(blocks, embedded_ref(page, *claim), 1).find(0)
    assert tree_of(blocks, embedded_ref(page, 2, 14), 1).find(1) is not None


def deep_claim(blocks: CountingBlocks, widest: int) -> Page:
    """Return a top page that claims `widest` * 512**6 chunks of a byte, and is seven pages."""
    cid, count = put(blocks, leaf(list(range(512)), [1] * 512)), 512
    for level in range(1, 7):
        step = 9 * level
        rows = range(widest if level == 6 else 512)
        page = above([(row << step, 64 - step, cid, count, count) for row in rows], level)
        count *= len(rows)
        if level < 6:
            cid = put(blocks, page)
    return page


def test_seven_pages_that_claim_ten_to_the_eighteenth_chunks_are_read_lazily() -> None:
    blocks = CountingBlocks()
    top = deep_claim(blocks, 511)
    assert top.totals()[0] == 511 * 512**6 > 9 * 10**18
    blocks.put(cid_of(DAG_CBOR, BLAKE3, top.to_block()), top.to_block())
    ref = TreeRef(cid_of(DAG_CBOR, BLAKE3, top.to_block()), *top.totals())
    tree = tree_of(blocks, ref, 2)
    assert tree.find(2**60) == (fake_cids(512)[0].tobytes(), 1)
    assert len(next(tree.tables())) == 512
    assert len(tree.select((5, 7), (6, 9))) == 2
    assert len(blocks.reads) == 7  # equal pages are one page
    other = tree_of(blocks, TreeRef(tree.top.cid(0), 512**6, 512**6), 2)
    assert len(other.select((0, 0), (4, 4))) == 16


def test_totals_past_the_limit_are_refused_at_once() -> None:
    blocks = CountingBlocks()
    with pytest.raises(FormatError, match="2\\*\\*63"):
        read_all(blocks, deep_claim(blocks, 512), 2)
    assert blocks.reads == []
