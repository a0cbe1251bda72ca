"""Threads that wait for servers: many more than there are cores, and of a pool of their own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from cas_zarr.parallel import shared_out

__all__ = ["WAITERS", "map_waiting", "waiting_pool"]

WAITERS = 32
"""Requests of one kind of work that a process has under way at once."""

_T = TypeVar("_T")
_R = TypeVar("_R")

_inside = threading.local()
_lock = threading.Lock()
_pools: dict[tuple[int, str], ThreadPoolExecutor] = {}


def waiting_pool(name: str) -> Executor:
    """Return the pool of that name, of `WAITERS` threads; after a fork, another one."""
    key = os.getpid(), name
    pool = _pools.get(key)
    if pool is None:
        with _lock:
            pool = _pools.get(key)
            if pool is None:
                for old in [other for other in _pools if other[0] != key[0]]:
                    del _pools[old]
                pool = ThreadPoolExecutor(WAITERS, f"cas-zarr-{name}")
                _pools[key] = pool
    return pool


def map_waiting(
    function: Callable[[_T], _R], items: Sequence[_T], *, parallel: int = WAITERS
) -> list[_R]:
    """Apply `function` to every item, up to `parallel` at once, and give the results in order.

    After an exception nothing new begins; it is raised when what began has ended. Work that is
    handed in from inside runs in place.
    """
    threads = min(parallel, WAITERS, len(items))
    if threads < 2 or getattr(_inside, "nested", False):
        return [function(item) for item in items]

    def nested(item: _T) -> _R:
        before = getattr(_inside, "nested", False)
        _inside.nested = True
        try:
            return function(item)
        finally:
            _inside.nested = before

    return shared_out(nested, items, threads - 1, lambda work: waiting_pool("fetch").submit(work))


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
