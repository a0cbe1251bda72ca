"""Memory of a device and of its host: what is done where it does not suffice.

CuPy frees the unused blocks of its pools, and what the collector of garbage finds, before it gives
up, so none of that is done again here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cas_zarr.errors import DeviceMemoryError
from cas_zarr.gpu.kernels import cupy

__all__ = ["allocated", "halving", "pinned"]

_T = TypeVar("_T")
_R = TypeVar("_R")

_NOT_ALLOCATED = 2  # cudaErrorMemoryAllocation


def halving(work: Callable[[Sequence[_T]], Sequence[_R]], items: Sequence[_T]) -> list[_R]:
    """Do a batch, or its halves where the memory of the device does not suffice.

    Results of halves are copied out of slabs that are mostly empty, as those of encoders are.

    Parameters
    ----------
    work : callable
        Does a batch on the current device, and gives a result for each item. What it allocated and
        does not return is free once it returned or raised.
    items : sequence

    Raises
    ------
    DeviceMemoryError
        If it does not suffice for one item.
    """
    try:
        return list(work(items))
    except cupy().cuda.memory.OutOfMemoryError as error:
        told = str(error)
    # The error is gone by now, and so are the frames that held the memory of the attempt.
    if len(items) < 2:
        raise _not_enough(told)
    half = len(items) // 2

    def tight(some: Sequence[_T]) -> list[_R]:
        return _tightened(list(work(some)))

    return [*halving(tight, items[:half]), *halving(tight, items[half:])]


def allocated(make: Callable[[], _R]) -> _R:
    """Return what a function allocates on the current device.

    Raises
    ------
    DeviceMemoryError
        If there is no memory for it.
    """
    (made,) = halving(lambda _: [make()], [None])
    return made


def _tightened(results: list[_R]) -> list[_R]:
    """Return results, copied where that lets go of more memory than it takes."""
    bases: list[Any] = [getattr(each, "base", None) for each in results]
    used: dict[int, int] = {}
    for each, base in zip(results, bases, strict=True):
        used[id(base)] = used.get(id(base), 0) + getattr(each, "nbytes", 0)
    copied: list[Any] = []
    try:
        for each, base in zip(results, bases, strict=True):
            loose = base is not None and 2 * used[id(base)] < base.nbytes
            copied.append(each.copy() if loose else each)  # type: ignore[attr-defined]
    except cupy().cuda.memory.OutOfMemoryError:
        if len(results) > 1:
            raise
        return results
    return copied


def pinned(size: int) -> NDArray[np.uint8]:
    """Return memory of the host that a device reads and writes at the full rate of the bus.

    Where no more can be had it is pageable, and copies take longer.
    """
    if not size:
        return np.empty(0, np.uint8)
    cuda = cupy().cuda
    try:
        memory = cuda.alloc_pinned_memory(size)
    except cuda.runtime.CUDARuntimeError as error:
        if error.status != _NOT_ALLOCATED:
            raise
        return np.empty(size, np.uint8)
    return np.frombuffer(memory, np.uint8, size)


def _not_enough(told: str) -> DeviceMemoryError:
    """Return the error for the current device, with what CuPy told: how many bytes, which limit."""
    cuda = cupy().cuda
    free, total = cuda.runtime.memGetInfo()
    return DeviceMemoryError(
        f"device {cuda.Device().id} has too little memory: "
        f"{told[:1].lower()}{told[1:].rstrip('.')}; {free:,} of its {total:,} bytes are free; read "
        "less at once, use smaller chunks, free arrays, end other processes on the device, or "
        "raise the limit of CuPy's memory pool"
    )
