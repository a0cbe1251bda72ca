"""The one bounded thread pool of the package.

Hashing, reading and writing of large values release the GIL, so a few threads are enough; the
pool has as many as there are cores. Work that is handed in from inside the pool runs in place,
so nesting cannot dead-lock, and so does work that arrives while the interpreter exits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

__all__ = ["WORKERS", "map_ordered"]

WORKERS = max(2, min(32, os.cpu_count() or 1))

_T = TypeVar("_T")
_R = TypeVar("_R")

_inside = threading.local()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_pid = 0


def map_ordered(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Apply `function` to every item, in threads, and give the results in order.

    As many threads as there are cores, the caller's among them, take one item after the other: a
    hand-over for each item would cost more than hashing a mebibyte gains. An exception is raised
    after all calls that began have ended, so no thread still works on a caller's buffer once this
    returns.
    """
    threads = min(WORKERS, len(items))
    if threads < 2 or getattr(_inside, "working", False):
        return [function(item) for item in items]
    results: list[Any] = [None] * len(items)
    left = iter(range(len(items)))  # each number goes to one thread

    def work() -> None:
        try:
            for row in left:
                results[row] = function(items[row])
        finally:
            for _ in left:  # after a failure nobody begins another
                pass

    try:
        helpers = [_executor().submit(work) for _ in range(threads - 1)]
    except RuntimeError:  # the interpreter is exiting and takes no new futures
        return [function(item) for item in items]
    try:
        work()
    finally:
        wait(helpers)
    for helper in helpers:
        helper.result()
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
