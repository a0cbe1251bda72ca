"""The buffer of zarr for chunks on a device: it carries its batch to the store, and loads late."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, gpu
from zarr.registry import register_buffer, register_ndbuffer

from cas_zarr.gpu.batches import Batch, Carried, load
from cas_zarr.gpu.kernels import cupy
from cas_zarr.tree.node import Value
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import read_value

if TYPE_CHECKING:
    from zarr.core.buffer.core import ArrayLike, NDArrayLike

__all__ = ["BUFFER", "ND_BUFFER", "ChunkArray", "ChunkBuffer", "carry", "is_on_device", "load_all"]

BUFFER = "cas_zarr.gpu.buffers.ChunkBuffer"
ND_BUFFER = "cas_zarr.gpu.buffers.ChunkArray"
"""Their names in zarr's configuration."""


class ChunkBuffer(gpu.Buffer):
    """Bytes on a device.

    Attributes
    ----------
    carried : Carried or None
        Its batch and place there, for a store to hash and to copy it with the others.
    """

    carried: Carried | None = None
    _array: Any = None
    _source: tuple[TreeReader, Value] | None = None

    def __init__(self, array_like: ArrayLike) -> None:
        super().__init__(cupy().asarray(array_like))  # some codecs of zarr hand over host memory

    @classmethod
    def from_value(cls, reader: TreeReader, value: Value) -> Self:
        """Return a value that is read and verified when it is first asked for."""
        buffer = cls.__new__(cls)
        buffer._source = reader, value
        return buffer

    @property
    def _data(self) -> Any:
        if self._array is None and self._source is not None:
            load_all([self])
        return self._array

    @_data.setter
    def _data(self, array: Any) -> None:
        self._array = array

    def __setitem__(self, key: slice, value: Any) -> None:
        self.carried = None  # it is not what was hashed any more
        super().__setitem__(key, value)

    def as_numpy_array(self) -> NDArray[Any]:
        """Return a copy on the host; what was not loaded yet does not visit the device."""
        if self._array is None and self._source is not None:
            reader, value = self._source
            return np.frombuffer(read_value(reader, value.cid, value.size), np.uint8)
        return super().as_numpy_array()


class ChunkArray(gpu.NDBuffer):
    """An array on a device, where one of the host is copied to."""

    def __init__(self, array: NDArrayLike) -> None:
        super().__init__(cupy().asarray(array))


register_buffer(ChunkBuffer, qualname=BUFFER)
register_ndbuffer(ChunkArray, qualname=ND_BUFFER)


def load_all(buffers: Iterable[Buffer | None]) -> None:
    """Load what is not loaded yet, values of one reader together."""
    waiting: dict[TreeReader, list[tuple[ChunkBuffer, Value]]] = {}
    for buffer in buffers:
        if isinstance(buffer, ChunkBuffer) and buffer._array is None and buffer._source is not None:
            reader, value = buffer._source
            waiting.setdefault(reader, []).append((buffer, value))
    for reader, found in waiting.items():
        arrays = load(reader, [value for _, value in found])
        for (buffer, _), array in zip(found, arrays, strict=True):
            buffer._array = array


def carry(buffers: Sequence[Buffer | None]) -> list[Buffer | None]:
    """Return encoded chunks; those of one device are one batch."""
    found: list[Buffer | None] = list(buffers)
    devices: dict[int, list[int]] = {}
    for row, buffer in enumerate(found):
        if buffer is not None and is_on_device(buffer):
            devices.setdefault(_array(buffer).device.id, []).append(row)
    for rows in devices.values():
        arrays = [_array(found[row]) for row in rows]
        batch = Batch(arrays)
        for place, (row, array) in enumerate(zip(rows, arrays, strict=True)):
            made = ChunkBuffer(array)
            made.carried = Carried(batch, place, array.nbytes)
            found[row] = made
    return found


def is_on_device(buffer: Buffer) -> bool:
    """Tell whether a buffer lies on a device."""
    return hasattr(buffer.as_array_like(), "__cuda_array_interface__")


def _array(buffer: Buffer | None) -> Any:
    assert buffer is not None
    return buffer.as_array_like()
