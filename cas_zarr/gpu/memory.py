"""Memory of a device and of its host: what is done where it does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cas_zarr.gpu.kernels import cupy

__all__ = ["halving"]


def halving(
    work: Callable[[Sequence[Any]], Sequence[Any | None]], items: Sequence[Any]
) -> list[Any | None]:
    """Do a batch, or its halves where the memory of the device does not suffice."""
    try:
        return list(work(items))
    except cupy().cuda.memory.OutOfMemoryError:
        if len(items) == 1:
            raise
    half = len(items) // 2
    return [*halving(work, items[:half]), *halving(work, items[half:])]
