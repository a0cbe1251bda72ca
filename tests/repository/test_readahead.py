"""Reading ahead: what is guessed and fetched for it, and that it never changes what is read."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import format_cid
from cas_zarr.errors import FormatError, StorageError
from cas_zarr.repository.runs import Run
from tests.servers.counting import Counting, counting_gateway

# -- what comes next -----------------------------------------------------------------------------


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[range]]:
    """A grid, and a box of it."""
    grid = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    sides = []
    for length in grid:
        start = draw(st.integers(0, length - 1))
        sides.append(range(start, draw(st.integers(start + 1, length))))
    return grid, sides


@settings(max_examples=300, deadline=None)
@given(boxes(), st.integers(1, 9))
def test_a_box_in_order_is_one_run_and_planned(
    given_box: tuple[tuple[int, ...], list[range]], number: int
) -> None:
    grid, sides = given_box
    places = list(itertools.product(*sides))
    run = Run(places[0])
    planned: set[tuple[int, ...]] = set()
    missed = 0
    for place in places[1:]:
        if 2 * run.planned <= number and not run.ended:
            planned.update(run.plan(number, grid))
        missed += place not in planned
        assert run.goes_on(place)
    assert all(0 <= at < end for place in planned for at, end in zip(place, grid, strict=True))
    # Each axis wraps once before its length is known; after that nothing is missed or in vain.
    assert missed <= len(grid) * (number + 1)
    assert len(planned - set(places)) <= len(grid) * 2 * number
    assert run.count == len(places)


def test_other_orders_are_no_run() -> None:
    for places in (
        [(0, 0), (0, 0)],
        [(0, 1), (0, 0)],
        [(0, 0), (0, 2)],
        [(0, 0), (2, 0)],
        [(0, 0), (1, 1)],
        [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)],  # beyond the side of the row before
        [(0, 0), (0, 1), (1, 0), (2, 0)],  # a shorter row
        [(0, 0), (0,)],
        [(), ()],
    ):
        run = Run(places[0])
        assert [run.goes_on(place) for place in places[1:]][-1] is False, places


# -- what is read --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid() -> Repository:
    """Three arrays: a grid of 30 x 20 chunks, of which one is absent, a line, and large chunks."""
    repo = Repository.memory()
    with CASStore(repo) as store:
        group = zarr.create_group(store=store)
        data = np.arange(120 * 40, dtype="i4").reshape(120, 40) + 1
        data[40:44, 20:22] = 0  # a chunk of the fill value is not stored
        group.create_array("grid", data=data, chunks=(4, 2), compressors=None)
        big = np.random.default_rng(0).integers(0, 255, (24, 1200, 1000), "u1")
        group.create_array("big", data=big, chunks=(1, 1200, 1000), compressors=None)
        line = group.create_array("line", shape=6000, dtype="u2", chunks=(2,), compressors=None)
        line[:] = np.arange(6000)
        store.commit("a grid")
    return repo


@pytest.fixture
def gateway(grid: Repository) -> Iterator[Counting]:
    with counting_gateway(grid.blocks) as server:
        yield server


def far(grid: Repository, gateway: Counting) -> CASStore:
    root = grid.resolve("main").root
    assert root is not None
    return CASStore(f"ipfs://{format_cid(root)}", gateways=gateway.url, cache=False)


def near(grid: Repository, name: str) -> np.ndarray:
    return zarr.open_array(CASStore(grid, version="main"), path=name, mode="r")[:]


@pytest.mark.parametrize("name", ["grid", "big"])
def test_it_reads_what_is_there(grid: Repository, gateway: Counting, name: str) -> None:
    gateway.delay = 0.002
    read = zarr.open_array(far(grid, gateway), path=name, mode="r")[:]
    np.testing.assert_array_equal(read, near(grid, name))
    if name != "big":  # of which there are few
        assert gateway.busiest > 10  # more than zarr asks for at once
    raw = [cid for form, cid in gateway.taken() if form == "raw"]
    assert len(raw) == len(set(raw))  # nothing twice


def test_a_long_line_comes_in_whole_pages(grid: Repository, gateway: Counting) -> None:
    zarr.open_array(far(grid, gateway), path="line", mode="r")[:]
    forms = [form for form, _ in gateway.taken()]
    assert "car" in forms
    assert len(forms) < 3000 - 400 * forms.count("car")  # each stands for a page, mostly of 512


def test_little_is_fetched_in_vain(grid: Repository, gateway: Counting) -> None:
    store = far(grid, gateway)
    array = zarr.open_array(store, path="grid", mode="r")
    gateway.taken()
    np.testing.assert_array_equal(array[8:48, 10:30], near(grid, "grid")[8:48, 10:30])
    chunks = 10 * 10
    assert len(gateway.taken()) <= 2.5 * chunks
    gateway.taken()
    for row in (3, 99, 60, 17, 118):  # nothing in order: what is asked for is what is fetched
        np.testing.assert_array_equal(array[row, 30], near(grid, "grid")[row, 30])
    assert len(gateway.taken()) <= 5 + 4  # and pages


def test_several_readers_at_once(grid: Repository, gateway: Counting) -> None:
    gateway.delay = 0.001
    array = zarr.open_array(far(grid, gateway), path="grid", mode="r")
    expected = near(grid, "grid")

    def rows(start: int) -> None:
        np.testing.assert_array_equal(array[start : start + 30], expected[start : start + 30])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rows, (0, 30, 60, 90)))


def test_who_gives_up_waiting_leaves_the_others_theirs(grid: Repository, gateway: Counting) -> None:
    store = far(grid, gateway)
    prototype = default_buffer_prototype()

    async def read() -> None:
        for row in range(30):
            await store.get(f"line/c/{row}", prototype)
        gateway.delay = 0.2
        tasks = [
            asyncio.create_task(store.get(f"line/c/{row}", prototype))
            for row in (30, 31, 32, 33, 60, 61, 62, 60, 61, 62)
        ]
        await asyncio.sleep(0.05)
        for task in tasks[4:7]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for row, value in zip((60, 61, 62), done[7:], strict=True):
            assert not isinstance(value, BaseException)
            assert value is not None
            assert value.to_bytes() == np.array([2 * row, 2 * row + 1], "u2").tobytes()

    asyncio.run(read())


def test_a_gateway_that_loses_its_blocks_is_an_error_of_the_reader(
    grid: Repository, gateway: Counting
) -> None:
    array = zarr.open_array(far(grid, gateway), path="grid", mode="r")
    array[:20]
    gateway.blocks = MemoryBlocks()
    with pytest.raises(StorageError, match="is not in"):
        array[:]


def test_no_more_than_its_share_waits_in_memory(
    grid: Repository, gateway: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cas_zarr.repository.readahead._HELD", 1024)  # 32 chunks
    store = far(grid, gateway)
    array = zarr.open_array(store, path="grid", mode="r")
    for row in range(0, 120, 8):  # each guesses what follows, in vain
        np.testing.assert_array_equal(array[row, :34], near(grid, "grid")[row, :34])
    ahead = store._ahead
    assert ahead is not None
    assert 0 < ahead._held <= 1024
    assert ahead._held == sum(map(len, ahead._values.values()))


def test_large_chunks_are_left_to_those_who_ask(gateway: Counting) -> None:
    """Eight of them would be more than may wait in memory, and go before they are asked for."""
    repo = Repository.memory()
    data = np.random.default_rng(0).integers(0, 255, (12, 5 << 20), "u1")
    with CASStore(repo) as store:
        array = zarr.create_array(
            store, name="huge", data=data, chunks=(1, 5 << 20), compressors=None
        )
        store.commit("large ones")
    gateway.blocks = repo.blocks
    store = far(repo, gateway)
    array = zarr.open_array(store, path="huge", mode="r")
    for row in range(12):
        np.testing.assert_array_equal(array[row], data[row])
    assert store._ahead is not None
    assert not store._ahead._arrays


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("name", ["plain", "2020", "t2", "a/1/0"])
def test_names_that_end_in_digits(gateway: Counting, name: str, separator: str) -> None:
    repo = Repository.memory()
    names = (name, "t", "21")
    values = {each: np.random.default_rng(row).random((40, 20)) for row, each in enumerate(names)}
    with CASStore(repo) as store:
        group = zarr.create_group(store=store, zarr_format=2)
        for each, data in values.items():
            encoding = {"name": "v2", "separator": separator}
            group.create_array(
                each, data=data, chunks=(2, 2), chunk_key_encoding=encoding, compressors=None
            )
        store.commit("three")
    gateway.blocks, gateway.delay = repo.blocks, 0.01
    store = far(repo, gateway)
    for each, data in values.items():
        gateway.busiest = 0
        read = zarr.open_array(store, path=each, mode="r")[:]
        np.testing.assert_array_equal(read, data)
        assert gateway.busiest > 10  # more than zarr asks for at once
    raw = [cid for form, cid in gateway.taken() if form == "raw"]
    assert len(raw) == len(set(raw))


def test_a_tree_that_lies_about_sizes_is_refused(gateway: Counting) -> None:
    repo = Repository.memory()
    with CASStore(repo) as store:
        zarr.create_array(store, name="line", data=np.arange(60), chunks=2, compressors=None)
        cids = [store.mapping.cid_of(f"line/c/{row}") for row in range(30)]
        store.mapping.set_links(
            "line",
            np.arange(30)[:, np.newaxis],
            np.array([np.frombuffer(cid or b"", np.uint8) for cid in cids]),
            np.full(30, 15),  # they have 16 bytes
        )
        store.commit("lies")
    gateway.blocks = repo.blocks
    store = far(repo, gateway)

    async def read() -> list[object]:
        prototype, found = default_buffer_prototype(), []
        for row in range(30):
            ask = store.get(f"line/c/{row}", prototype)
            found += await asyncio.gather(ask, return_exceptions=True)
        return found

    assert {type(found) for found in asyncio.run(read())} == {FormatError}


def test_absent_chunks_wait_for_no_others(gateway: Counting) -> None:
    repo = Repository.memory()
    with CASStore(repo) as store:
        array = zarr.create_array(store, name="line", shape=2000, chunks=1, dtype="i4")
        array[:] = np.where(np.arange(2000) % 64 == 63, 0, np.arange(2000))
        store.commit("holes")
    gateway.blocks = repo.blocks
    store = far(repo, gateway)
    prototype = default_buffer_prototype()

    async def read() -> int:
        for row in range(500):
            await store.get(f"line/c/{row}", prototype)
        gateway.delay = 0.1
        gateway.taken()
        tasks = [
            asyncio.create_task(store.get(f"line/c/{row}", prototype)) for row in range(500, 1400)
        ]
        assert await tasks[767 - 500] is None
        done = len(gateway.taken())
        await asyncio.gather(*tasks)
        return done

    # Of 886: those in the batches before it, and what is asked for beside them.
    assert asyncio.run(read()) < 700


def test_loops_and_threads_share_a_store(grid: Repository, gateway: Counting) -> None:
    gateway.delay = 0.001
    stores = [far(grid, gateway) for _ in range(2)]
    expected = near(grid, "line")

    def read(number: int) -> None:
        async def values() -> list[bytes]:
            prototype, found = default_buffer_prototype(), []
            for start in range(0, 300, 10):
                asked = (
                    stores[number % 2].get(f"line/c/{start + row}", prototype) for row in range(10)
                )
                found += [value.to_bytes() for value in await asyncio.gather(*asked) if value]
            return found

        assert b"".join(asyncio.run(values())) == expected[:600].tobytes()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(6)))
