"""The buffer of zarr for chunks on a device: it carries its batch to the store, and loads late."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, NDBuffer, cpu, gpu
from zarr.registry import register_buffer, register_ndbuffer

from cas_zarr.gpu.batches import Batch, Carried, load
from cas_zarr.gpu.devices import device_of, here, rows_by_device
from cas_zarr.gpu.kernels import cupy
from cas_zarr.gpu.memory import allocated
from cas_zarr.tree.node import Value
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import read_value

if TYPE_CHECKING:
    from zarr.core.buffer.core import ArrayLike, NDArrayLike

__all__ = [
    "BUFFER",
    "ND_BUFFER",
    "UNVERIFIED",
    "ChunkArray",
    "ChunkBuffer",
    "carry",
    "is_device_dtype",
    "is_on_device",
    "load_all",
    "names_of",
]

BUFFER = "cas_zarr.gpu.buffers.ChunkBuffer"
ND_BUFFER = "cas_zarr.gpu.buffers.ChunkArray"
"""Their names in zarr's configuration."""

# Whether 0.0 is another fill value than -0.0, as it is for newer releases of zarr.
_ZEROS_DIFFER = not cpu.NDBuffer.from_numpy_array(np.zeros(1)).all_equal(-0.0)

UNVERIFIED: ContextVar[bool] = ContextVar("UNVERIFIED", default=False)
"""Whether the batch that is decoded was not verified: its tasks and threads inherit it."""


class ChunkBuffer(gpu.Buffer):
    """Bytes on a device.

    Attributes
    ----------
    number : int
        The device that values are read to; see `names_of`.
    carried : Carried or None
        Its batch and place there, for a store to hash and to copy it with the others. It is a batch
        of its own unless `carry` put it into one, and None while it is not loaded.
    verified : bool
        Whether the bytes are, or are part of, what a CID named: nvCOMP decodes no others, since its
        decoders do not refuse all that no encoder made.
    """

    number = 0
    verified = False
    _carried: Carried | None = None
    _array: Any = None
    _source: tuple[TreeReader, Value] | None = None

    def __init__(self, array_like: ArrayLike) -> None:
        with _place(self, array_like):  # some codecs of zarr hand over memory of the host
            super().__init__(allocated(lambda: cupy().asarray(array_like)))

    @classmethod
    def from_bytes(cls, bytes_like: Any) -> Self:
        """See `zarr.core.buffer.Buffer`."""
        return cls(np.frombuffer(bytes_like, np.uint8))

    @classmethod
    def from_verified(cls, data: Any) -> Self:
        """Return bytes that were verified on the host."""
        buffer = cls.from_bytes(data)
        buffer.verified = True
        return buffer

    @classmethod
    def from_value(cls, reader: TreeReader, value: Value) -> Self:
        """Return a value that is read and verified when it is first asked for."""
        buffer = cls.__new__(cls)
        buffer._source = reader, value
        buffer.verified = True  # or it cannot be had
        return buffer

    @property
    def carried(self) -> Carried | None:
        array = self._array
        if self._carried is None and array is not None and array.flags.c_contiguous:
            return Carried(Batch([array]), 0, array.nbytes)
        return self._carried

    @property
    def _data(self) -> Any:
        if self._array is None and self._source is not None:
            load_all([self])
        return self._array

    @_data.setter
    def _data(self, array: Any) -> None:
        self._array = array

    def __getitem__(self, key: slice) -> Self:
        part = super().__getitem__(key)
        part.verified = self.verified
        return part

    def __setitem__(self, key: slice, value: Any) -> None:
        self._carried, self.verified = None, False  # it is not what was hashed any more
        super().__setitem__(key, value)

    def combine(self, others: Iterable[Buffer]) -> Self:
        """Return buffers one after the other; those of the host are copied to the device."""
        given: list[Buffer] = [self, *others]
        parts: list[Any] = [type(self)(each.as_array_like())._array for each in given]
        with max(parts, key=len).device:
            joined = allocated(lambda: cupy().concatenate([here(part) for part in parts]))
        return type(self)(joined)

    def __add__(self, other: Buffer) -> Self:
        return self.combine([other])

    def as_numpy_array(self) -> NDArray[Any]:
        """Return a copy on the host; what was not loaded yet does not visit the device."""
        if self._array is None and self._source is not None:
            reader, value = self._source
            return np.frombuffer(read_value(reader, value.cid, value.size), np.uint8)
        return super().as_numpy_array()


class ChunkArray(gpu.NDBuffer):
    """An array on a device, where one of the host is copied to.

    Its class methods give an array on the host for data types that a device does not have.

    Attributes
    ----------
    number : int
        The device where arrays are made; see `names_of`.
    """

    number = 0

    def __init__(self, array: NDArrayLike) -> None:
        with _place(self, array):
            super().__init__(allocated(lambda: cupy().asarray(array)))

    @classmethod
    def create(cls, *, shape: Any, dtype: Any, order: Any = "C", fill_value: Any = None) -> Any:
        """See `zarr.core.buffer.NDBuffer`."""
        kind: Any = super() if is_device_dtype(dtype) else cpu.NDBuffer
        with _place(cls, None):
            return allocated(
                lambda: kind.create(shape=shape, dtype=dtype, order=order, fill_value=fill_value)
            )

    @classmethod
    def empty(cls, shape: Any, dtype: Any, order: Any = "C") -> Any:
        """See `zarr.core.buffer.NDBuffer`."""
        return cls.create(shape=shape, dtype=dtype, order=order)

    @classmethod
    def from_ndarray_like(cls, ndarray_like: Any) -> Any:
        """See `zarr.core.buffer.NDBuffer`."""
        return (cls if is_device_dtype(ndarray_like.dtype) else cpu.NDBuffer)(ndarray_like)

    @classmethod
    def from_numpy_array(cls, array_like: Any) -> Any:
        """See `zarr.core.buffer.NDBuffer`."""
        return cls.from_ndarray_like(np.asanyarray(array_like))

    def __getitem__(self, key: Any) -> Self:
        with _place(self, self._data):
            return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, NDBuffer):
            value = value.as_ndarray_like()
        with _place(self, self._data):
            if isinstance(value, np.ndarray):
                value = cupy().asarray(value)
            super().__setitem__(key, here(value))

    def fill(self, value: Any) -> None:
        """See `zarr.core.buffer.NDBuffer`."""
        with _place(self, self._data):
            super().fill(value)

    def copy(self) -> Self:
        """See `zarr.core.buffer.NDBuffer`."""
        with _place(self, self._data):
            return super().copy()

    def astype(self, dtype: Any, order: Any = "K") -> Self:
        """See `zarr.core.buffer.NDBuffer`."""
        with _place(self, self._data):
            return super().astype(dtype, order)

    def all_equal(self, other: Any, equal_nan: bool = True) -> bool:
        """Tell whether all elements have a value; see `zarr.core.buffer.NDBuffer`."""
        with _place(self, self._data):
            return other is not None and bool(self.equals(other, equal_nan))

    def equals(self, other: Any, equal_nan: bool = True) -> Any:
        """Tell the same, without waiting for it: an array on the device, of one truth value.

        What zarr does for arrays of NumPy is always false for those of CuPy.
        """
        array: Any = self._data
        value = np.asarray(other).astype(array.dtype)
        kind = array.dtype.kind
        if kind in "fc" and np.isnan(value):
            return cupy().isnan(array).all() if equal_nan else (array == value[()]).all()
        if kind == "f":
            return _same(array, value, signed=_ZEROS_DIFFER).all()
        if kind == "c" and array.size:
            real, imag = _same(array.real, value.real), _same(array.imag, value.imag)
            return (real & imag).all()
        return (array == value[()]).all()


def _same(array: Any, value: NDArray[Any], *, signed: bool = False) -> Any:
    """Compare floating-point numbers with one that is none of NaN, by their bits.

    CuPy compiles its kernels with `-ftz=true`: they take subnormal float32 for zero, and a chunk of
    them would be empty.
    """
    bits = np.dtype(f"u{array.dtype.itemsize}")
    found, wanted = array.view(bits), value.view(bits)[()]
    if value == 0 and not signed:
        return found & bits.type(np.iinfo(bits).max >> 1) == 0
    return found == wanted


register_buffer(ChunkBuffer, qualname=BUFFER)
register_ndbuffer(ChunkArray, qualname=ND_BUFFER)


@cache
def names_of(device: int) -> tuple[str, str]:
    """Return what zarr's configuration calls the buffers whose values are read to a device."""
    if device == ChunkBuffer.number:
        return BUFFER, ND_BUFFER
    names = f"{BUFFER}.{device}", f"{ND_BUFFER}.{device}"
    register_buffer(type("ChunkBuffer", (ChunkBuffer,), {"number": device}), qualname=names[0])
    register_ndbuffer(type("ChunkArray", (ChunkArray,), {"number": device}), qualname=names[1])
    return names


def _place(kind: Any, array: Any) -> Any:
    """Return the device of an array as a context, or that of a kind of buffer for one of a host."""
    number = device_of(array)
    return cupy().cuda.Device(kind.number if number is None else number)


def load_all(buffers: Iterable[Buffer | None]) -> None:
    """Load what is not loaded yet, values of one reader together, to the devices they are for."""
    waiting: dict[tuple[TreeReader, int], list[tuple[ChunkBuffer, Value]]] = {}
    for buffer in buffers:
        if isinstance(buffer, ChunkBuffer) and buffer._array is None and buffer._source is not None:
            reader, value = buffer._source
            waiting.setdefault((reader, buffer.number), []).append((buffer, value))
    for (reader, device), found in waiting.items():
        with cupy().cuda.Device(device):
            arrays = load(reader, [value for _, value in found])
        for (buffer, _), array in zip(found, arrays, strict=True):
            buffer._array = array


def carry(buffers: Sequence[Buffer | None]) -> list[Buffer | None]:
    """Return encoded chunks; those of one device are one batch."""
    found: list[Buffer | None] = list(buffers)
    devices = (None if buffer is None else device_of(_array(buffer)) for buffer in found)
    for rows in rows_by_device(devices).values():
        arrays = [_array(found[row]) for row in rows]
        batch = Batch(arrays)
        for place, (row, array) in enumerate(zip(rows, arrays, strict=True)):
            made = ChunkBuffer(array)
            made._carried = Carried(batch, place, array.nbytes)
            found[row] = made
    return found


def is_device_dtype(dtype: Any) -> bool:
    """Tell whether arrays of a data type can lie on a device: numbers, in its byte order."""
    found = np.dtype(dtype)
    return found.char in "?bhilqBHILQefdFD" and found.isnative


def is_on_device(buffer: Buffer) -> bool:
    """Tell whether a buffer lies on a device."""
    return device_of(buffer.as_array_like()) is not None


def _array(buffer: Buffer | None) -> Any:
    assert buffer is not None
    return buffer.as_array_like()
