"""Rounding of floating-point numbers to fewer bits, on a device: the filter of numcodecs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from zarr.abc.codec import ArrayArrayCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer

from cas_zarr.gpu.devices import device_of
from cas_zarr.gpu.kernels import Launch, cupy, launch
from cas_zarr.gpu.standin import StandIn

__all__ = ["DeviceBitRound", "plan_rounding", "rounded"]

_THREADS: Final = 256  # also named in the source
_MANTISSA: Final = {"f2": 10, "f4": 23, "f8": 52}


@dataclass(frozen=True)
class DeviceBitRound(StandIn, ArrayArrayCodec):  # type: ignore[override]
    """The filter, where a chunk lies.

    Attributes
    ----------
    kept : int
        Bits of the mantissa that are kept.
    """

    kept: int

    async def encode(
        self, chunks_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        """Round a batch of chunks; see `zarr.abc.codec.Codec`."""
        pairs = list(chunks_and_specs)
        if not all(chunk is None or self._takes(chunk) for chunk, _ in pairs):
            found: Iterable[NDBuffer | None] = await self.host.encode(pairs)
            return found
        return [
            None if chunk is None else self._rounded(chunk.as_ndarray_like(), spec)
            for chunk, spec in pairs
        ]

    async def decode(
        self, chunks_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        """Return chunks as they are, for what was rounded off is lost."""
        pairs = list(chunks_and_specs)
        if not all(chunk is None or self._takes(chunk) for chunk, _ in pairs):
            found: Iterable[NDBuffer | None] = await self.host.decode(pairs)
            return found
        return [chunk for chunk, _ in pairs]

    def _takes(self, chunk: NDBuffer) -> bool:
        array = chunk.as_ndarray_like()
        bits = _MANTISSA.get(array.dtype.str[1:], -1)
        return device_of(array) is not None and 0 <= self.kept <= bits

    def _rounded(self, array: Any, spec: ArraySpec) -> NDBuffer:
        with array.device:
            made = rounded(array, self.kept)
        return spec.prototype.nd_buffer.from_ndarray_like(made)


def rounded(array: Any, kept: int) -> Any:
    """Return numbers of the current device rounded to `kept` bits of their mantissa.

    Parameters
    ----------
    array : cupy.ndarray of float16, float32 or float64
    kept : int
        0 to all that there are.

    Returns
    -------
    cupy.ndarray
        As integers of their size, or the array itself where all bits are kept.
    """
    dropped = _MANTISSA[array.dtype.str[1:]] - kept
    if not dropped:
        return array
    given = array if array.flags.c_contiguous else array.copy()
    made = cupy().empty(given.shape, f"i{given.itemsize}")
    if given.size:
        places = given.data.ptr, made.data.ptr
        launch("bitround", [plan_rounding(given.size, given.itemsize, dropped, *places)])
    return made


def plan_rounding(count: int, itemsize: int, dropped: int, source: int, target: int) -> Launch:
    """Return what to launch: `count` numbers at an address, and where they are rounded to."""
    return Launch.over(f"bitround_{itemsize}", _THREADS, count, source, target, dropped)
