"""Work on several devices of one process: zarr calls codecs in threads that know of one only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from cas_zarr.gpu.kernels import cupy

__all__ = ["by_device", "current_device", "device_of", "here", "rows_by_device"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def current_device() -> int:
    """Return the number of the device that this thread works on."""
    return int(cupy().cuda.runtime.getDevice())


def device_of(array: Any) -> int | None:
    """Return the number of the device that an array lies on, None for one on the host."""
    return int(array.device.id) if hasattr(array, "__cuda_array_interface__") else None


def here(array: Any) -> Any:
    """Return an array on the current device, copied there if it lies on another.

    The copy crosses whatever there is between the two, and waits for what was launched before it.
    """
    cuda = cupy().cuda
    if device_of(array) in (None, current_device()):
        return array
    with array.device:
        if not array.flags.c_contiguous:
            array = array.copy()
        cuda.get_current_stream().synchronize()
    copied = array.copy()
    cuda.get_current_stream().synchronize()  # the other may be freed now
    return copied


def rows_by_device(devices: Iterable[int | None]) -> dict[int, list[int]]:
    """Return for each device the rows that lie on it; those that lie on none are left out."""
    found: dict[int, list[int]] = {}
    for row, device in enumerate(devices):
        if device is not None:
            found.setdefault(device, []).append(row)
    return found


async def by_device(
    work: Callable[[list[_T]], Awaitable[Iterable[_R]]],
    items: Sequence[_T],
    devices: Sequence[int | None],
) -> list[_R]:
    """Do items of each device with that device as the current one, and return all in order.

    A coroutine cannot set it: others run in between, in the same thread. So what lies on another
    device is done in a thread of its own, with a loop of its own.

    Parameters
    ----------
    work : callable
        A coroutine function that does some of the items, without anything of this loop.
    items : sequence
    devices : sequence of int or None
        Where each lies; what lies on none is done with those of the current one.
    """
    current = current_device()
    rows = rows_by_device(current if device is None else device for device in devices)
    done: list[Any] = [None] * len(items)

    async def do(some: list[_T]) -> list[_R]:
        return list(await work(some))

    def do_there(device: int, some: list[_T]) -> list[_R]:
        with cupy().cuda.Device(device):
            return asyncio.run(do(some))

    for device, found in rows.items():
        some = [items[row] for row in found]
        there = device != current
        made = await (asyncio.to_thread(do_there, device, some) if there else do(some))
        for row, result in zip(found, made, strict=True):
            done[row] = result
    return done
