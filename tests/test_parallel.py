"""Work that is shared out among threads: in order, never twice, and over when it returns."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pytest

from cas_zarr import parallel
from cas_zarr.blocks import waiting
from cas_zarr.blocks.waiting import WAITERS, map_waiting, waiting_pool
from cas_zarr.parallel import map_ordered

Map: TypeAlias = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@pytest.fixture(params=[map_ordered, map_waiting], ids=["cores", "waiters"])
def mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Map]:
    """Return one of the two, with a fresh pool of at least four threads."""
    monkeypatch.setattr(parallel, "WORKERS", 4)
    monkeypatch.setattr(parallel, "_pool", None)
    pools = dict(waiting._pools)
    waiting._pools.clear()
    yield request.param
    for pool in (parallel._pool, *waiting._pools.values()):
        if pool is not None:
            pool.shutdown()
    waiting._pools.update(pools)


@pytest.fixture
def no_more_threads() -> Iterator[Callable[[], object]]:
    """Return a function after which the system starts no thread."""
    yield lambda: threading.stack_size(1 << 46)
    threading.stack_size(0)


def test_results_come_in_order_from_several_threads(mapped: Map) -> None:
    names = set()
    another = threading.Event()

    def square(number: int) -> int:
        names.add(threading.get_ident())
        if len(names) > 1:
            another.set()
        assert number or another.wait(10)
        return number * number

    assert mapped(square, range(100)) == [number * number for number in range(100)]
    assert len(names) > 1
    assert mapped(square, []) == []
    assert mapped(square, [3]) == [9]


def test_after_an_error_nothing_begins_and_nothing_runs_on(mapped: Map) -> None:
    begun: list[int] = []
    ended: list[int] = []

    def fail_at_three(number: int) -> None:
        begun.append(number)
        time.sleep(0.02 if number == 3 else 0.1)
        if number == 3:
            raise KeyError(number)
        ended.append(number)

    with pytest.raises(KeyError):
        mapped(fail_at_three, range(1000))
    assert len(begun) < 100
    assert sorted([*ended, 3]) == sorted(begun)


def test_an_error_of_the_caller_s_thread_is_raised_as_well(mapped: Map) -> None:
    caller = threading.get_ident()
    here = threading.Event()

    def fail_here(_: int) -> None:
        if threading.get_ident() == caller:
            here.set()
            raise KeyboardInterrupt
        here.wait(10)

    with pytest.raises(KeyboardInterrupt):
        mapped(fail_here, range(50))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt: it is ignored in what a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_no_thread_at_work_on_a_buffer() -> None:
    caller = threading.get_ident()
    begun, ended = threading.Event(), threading.Event()

    def function(_: int) -> None:
        if threading.get_ident() == caller:
            begun.wait(10)
            return
        begun.set()
        for _ in range(2):
            time.sleep(0.1)  # by now the caller waits for this
            signal.pthread_kill(caller, signal.SIGINT)
        time.sleep(0.2)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        map_ordered(function, range(2))
    assert ended.is_set()


def test_work_within_work_ends(mapped: Map) -> None:
    def inner(number: int) -> int:
        return sum(mapped(lambda each: each + number, range(20)))

    assert mapped(inner, range(100)) == [190 + 20 * number for number in range(100)]


def test_a_pool_that_is_busy_is_not_waited_for(mapped: Map) -> None:
    """Else two threads could wait for each other: one in the pool, one for a place in it."""
    done = threading.Event()
    pool = parallel._executor() if mapped is map_ordered else waiting_pool("fetch")
    for _ in range(2 * WAITERS):
        pool.submit(done.wait, 20)
    try:
        finished: list[Any] = []
        other = threading.Thread(target=lambda: finished.append(mapped(str, range(9))), daemon=True)
        other.start()
        other.join(5)
        assert finished == [[str(number) for number in range(9)]]
    finally:
        done.set()


def test_where_no_more_threads_start_each_item_is_done_once(
    mapped: Map, no_more_threads: Callable[[], object]
) -> None:
    mapped(lambda _: time.sleep(0.01), range(2))  # starts one thread
    done: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.002)
        done.append(number)
        return number

    no_more_threads()
    assert mapped(work, range(40)) == list(range(40))
    time.sleep(0.1)
    assert sorted(done) == list(range(40))


def test_a_child_has_threads_of_its_own(
    mapped: Map, forked: Callable[[Callable[[], object]], int]
) -> None:
    mapped(str, range(50))
    locks = parallel._lock, waiting._lock

    def child() -> None:
        signal.alarm(10)  # ends a child that waits for ever
        assert mapped(os.path.basename, ["a/b"] * 50) == ["b"] * 50

    for lock in locks:  # as another thread may
        with lock:
            assert forked(child) == 0
