"""Copies of many blobs of a device to its host, in one slab that is pinned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cas_zarr.gpu.kernels import Launch, cupy, firsts_of, launch
from cas_zarr.gpu.memory import pinned

__all__ = ["Gathering", "gather", "plan_gathering", "prefers_gathering", "to_host"]

_WORD = 16
_THREADS = 128  # also named in the source
_TILE = 4 * _THREADS * _WORD  # bytes that a block copies

# Each copy of its own costs some microseconds of the host, about as long as a bus of 25 GB/s takes
# for 128 KiB; a gathering costs some tens once, and moves a byte within the device in a fiftieth of
# the time that it takes on the bus. Reckoned, not measured.
_FEWEST = 8
_LARGEST_MEAN = 256 << 10


@dataclass(frozen=True, slots=True, eq=False)
class Gathering:
    """How blobs come into one slab of the device.

    Attributes
    ----------
    blobs, tiles, size : int
        Blobs, blocks that copy, and bytes of the slab.
    starts : array of int64
        Where each blob begins in the slab.
    table : array of int64
        What the kernel looks up: addresses, sizes, targets, and the first tile of each blob and of
        what is behind the last.
    """

    blobs: int
    tiles: int
    size: int
    starts: NDArray[np.int64]
    table: NDArray[np.int64]

    def launch(self, table: int, slab: int) -> Launch:
        """Return what to launch, with the addresses of a copy of `table` and of the slab."""
        column = self.blobs * self.table.itemsize
        columns = (table + column * number for number in range(4))
        return Launch("gather", self.tiles, _THREADS, (self.tiles, self.blobs, *columns, slab))


def plan_gathering(addresses: Sequence[int], sizes: Sequence[int]) -> Gathering:
    """Plan how blobs come into one slab, at offsets that have their addresses modulo 16.

    Parameters
    ----------
    addresses, sizes : sequence of int
        Where each blob begins in the memory of the device, and its bytes, at least 1.
    """
    begins, counts = np.array(addresses, np.int64), np.array(sizes, np.int64)
    skips = begins % _WORD
    words = -(-(skips + counts) // _WORD)
    targets = firsts_of(words) * _WORD
    firsts = firsts_of(-(-words * _WORD // _TILE))
    return Gathering(
        blobs=len(begins),
        tiles=int(firsts[-1]),
        size=int(targets[-1]),
        starts=targets[:-1] + skips,
        table=np.concatenate([begins, counts, targets[:-1], firsts]),
    )


def gather(plan: Gathering, slab: Any) -> None:
    """Copy blobs into a slab of the current device, as they were planned."""
    if not plan.tiles:
        return
    table = cupy().asarray(plan.table)
    launch("gather", [plan.launch(table.data.ptr, slab.data.ptr)])


def prefers_gathering(sizes: Sequence[int]) -> bool:
    """Tell whether blobs had better be gathered on the device than copied one by one."""
    return len(sizes) >= _FEWEST and sum(sizes) < _LARGEST_MEAN * len(sizes)


def to_host(blobs: Sequence[Any], *, gathered: bool | None = None) -> list[memoryview]:
    """Copy memory of the current device to the host, and wait for it.

    Parameters
    ----------
    blobs : sequence of cupy.ndarray of uint8
    gathered : bool, optional
        Whether they are gathered on the device and cross the bus in one copy, which takes as much
        memory there, or are copied one by one. By default `prefers_gathering` says so; where there
        is no memory for it they are not.

    Returns
    -------
    list of memoryview
        Views of one slab.
    """
    if gathered is None:
        gathered = prefers_gathering([blob.nbytes for blob in blobs])
    return (_gathered(blobs) if gathered else None) or _one_by_one(blobs)


def _gathered(blobs: Sequence[Any]) -> list[memoryview] | None:
    """Copy by way of a slab on the device; None where there is no memory for one."""
    array = cupy()
    sizes = [blob.nbytes for blob in blobs]
    plan = plan_gathering([blob.data.ptr for blob in blobs], sizes)
    try:
        slab = array.empty(plan.size, array.uint8)
        gather(plan, slab)
    except array.cuda.memory.OutOfMemoryError:
        return None
    return _received([(slab, 0)], plan.size, plan.starts.tolist(), sizes)


def _one_by_one(blobs: Sequence[Any]) -> list[memoryview]:
    sizes = [blob.nbytes for blob in blobs]
    *starts, end = np.cumsum([0, *sizes]).tolist()
    return _received(list(zip(blobs, starts, strict=True)), end, starts, sizes)


def _received(
    copies: Sequence[tuple[Any, int]], size: int, starts: Sequence[int], sizes: Sequence[int]
) -> list[memoryview]:
    """Copy arrays to their places in a slab of the host, and return parts of it."""
    host = pinned(size)
    try:
        for array, start in copies:
            if array.nbytes:
                array.get(out=host[start : start + array.nbytes], blocking=False)
    finally:  # nothing is written to the slab once it is somebody else's
        cupy().cuda.get_current_stream().synchronize()
    view = memoryview(host)
    return [view[start : start + length] for start, length in zip(starts, sizes, strict=True)]
