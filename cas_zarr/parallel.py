"""The one bounded thread pool of the package.

Hashing, reading and writing of large values release the GIL, so a few threads are enough; the
pool has as many as there are cores. Work that is handed in from inside the pool runs in place,
so nesting cannot dead-lock, and so does work that arrives while the interpreter exits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["WORKERS", "map_ordered", "shared_out"]

WORKERS = max(2, min(32, os.cpu_count() or 1))

_T = TypeVar("_T")
_R = TypeVar("_R")

_inside = threading.local()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_pid = 0


def map_ordered(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Apply `function` to every item, in threads, and give the results in order.

    As many threads as there are cores, the caller's among them. No thread still works on a
    caller's buffer once this returns or raises, be it because of an interrupt.
    """
    threads = min(WORKERS, len(items))
    if threads < 2 or getattr(_inside, "working", False):
        return [function(item) for item in items]
    return shared_out(
        function, items, threads - 1, lambda work: _executor().submit(work), to_the_end=True
    )


def shared_out(
    function: Callable[[_T], _R],
    items: Sequence[_T],
    helpers: int,
    submit: Callable[[Callable[[], None]], object],
    *,
    to_the_end: bool = False,
) -> list[_R]:
    """Apply `function` to every item, here and in helpers, and give the results in order.

    All take one item after the other: a hand-over for each item would cost more than hashing a
    mebibyte gains. After an exception nobody begins another item; it is raised after all calls that
    began have ended. A helper that has not begun by then is not waited for.

    Parameters
    ----------
    function : callable
    items : sequence
    helpers : int
        How many there may be.
    submit : callable
        Lets a helper run in another thread, now or later; RuntimeError where that cannot be: the
        interpreter exits, or the system has no more threads.
    to_the_end : bool
        Whether an interrupt that comes while helpers are waited for is raised after they have
        ended, and not at once: they do not take long, and work on memory of the caller.
    """
    results: list[Any] = [None] * len(items)
    left = iter(range(len(items)))  # each number goes to one thread
    changed = threading.Condition()
    running = 0
    over = False
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for row in left:
                results[row] = function(items[row])
        finally:
            for _ in left:
                pass

    def help_out() -> None:
        nonlocal running
        with changed:
            if over:
                return
            running += 1
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            with changed:
                running -= 1
                changed.notify()

    def await_helpers() -> None:
        nonlocal over
        with changed:
            over = True
            while running:
                changed.wait()

    try:
        with suppress(RuntimeError):
            for _ in range(helpers):
                submit(help_out)
        work()
    finally:
        while True:
            try:
                await_helpers()
                break
            except BaseException as error:
                if not to_the_end:
                    raise
                errors.insert(0, error)
    if errors:
        raise errors[0]
    return results


def _enter() -> None:
    _inside.working = True


def _executor() -> ThreadPoolExecutor:
    global _pool, _pool_pid
    pid = os.getpid()
    if _pool is None or _pool_pid != pid:  # threads do not survive a fork
        with _lock:
            if _pool is None or _pool_pid != pid:
                _pool = ThreadPoolExecutor(
                    WORKERS, thread_name_prefix="cas-zarr", initializer=_enter
                )
                _pool_pid = pid
    return _pool


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
