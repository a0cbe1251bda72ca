"""Arrays that are as strict as those of CuPy, in the memory of the host.

They are no arrays of NumPy: nothing reads them by chance. Arrays of the host are refused where CuPy
refuses them, functions of NumPy do what those of CuPy of that name do, and data types that CuPy
does not have cannot be made.

Source: cupy/_core/core.pyx, _dtype.pyx and internal.pyx of CuPy 14.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DeviceArray", "check_dtype"]


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """Return a data type; refuse what there cannot be on a device."""
    found = np.dtype(dtype)
    if found.byteorder == ">":
        raise ValueError(f"Unsupported dtype {found} with big-endian byte-order")
    plain = found.kind == "V" and found.itemsize and not found.hasobject and not found.subdtype
    if found.char not in "?bhilqBHILQefdFD" and not plain:
        raise ValueError(f"Unsupported dtype {found}")
    return found


class DeviceArray:
    """An array on a device.

    Parameters
    ----------
    host : numpy.ndarray
        Its memory.
    device : context manager with an attribute `id`
    """

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: NDArray[Any], device: Any) -> None:
        self._host = host
        self.device = device

    # -- what it is

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    flags = property(lambda self: self._host.flags)
    base = property(lambda self: self._host.base)

    real = property(lambda self: self._made(self._host.real))
    imag = property(lambda self: self._made(self._host.imag))

    @property
    def data(self) -> Any:
        """Return where it lies."""
        return SimpleNamespace(ptr=int(self._host.ctypes.data), device=self.device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Return what tells libraries that it is on a device."""
        return {**self._host.__array_interface__, "version": 3}

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        return f"DeviceArray({self._host!r})"

    # -- from and to the host

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    __index__ = __int__

    def item(self, *arguments: int) -> Any:
        """Return one element."""
        return self.get().item(*arguments)

    def tolist(self) -> Any:
        """Return its elements."""
        return self.get().tolist()

    def tobytes(self, order: Any = "C") -> bytes:
        """Return its bytes."""
        return self.get().tobytes(order)

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> NDArray[Any]:
        """Copy it to the host."""
        del stream, order, blocking
        self.crossed(down=self.nbytes)
        if out is None:
            return np.array(self._host)
        assert type(out) is np.ndarray
        assert (out.dtype, out.shape) == (self.dtype, self.shape)
        out[...] = self._host
        return out

    def set(self, array: Any, stream: Any = None) -> None:
        """Copy an array of the host here."""
        del stream
        if not isinstance(array, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        assert (array.dtype, array.shape) == (self.dtype, self.shape)
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        self.crossed(up=array.nbytes)
        self._host[...] = array

    def crossed(self, up: int = 0, down: int = 0) -> None:
        """Count what went over the bus."""

    def worked_on(self) -> None:
        """Be told that a kernel of the current device reads it or writes to it."""

    # -- shapes and types

    def view(self, dtype: Any = None) -> DeviceArray:
        """Return the same memory, as another data type."""
        return self._made(self._host.view() if dtype is None else self._host.view(dtype))

    def astype(
        self,
        dtype: Any,
        order: str = "K",
        casting: Any = None,
        subok: Any = None,
        copy: bool = True,
    ) -> DeviceArray:
        """Return it as another data type."""
        del casting, subok
        check_dtype(self.dtype)
        made = _plain(self).astype(check_dtype(dtype), order=order, copy=copy)  # type: ignore[call-overload]
        return self if made is self._host else self._made(made)

    def reshape(self, *shape: Any, order: str = "C") -> DeviceArray:
        """Return it with another shape."""
        return self._made(self._host.reshape(*shape, order=order))  # type: ignore[call-overload]

    def ravel(self, order: str = "C") -> DeviceArray:
        """Return it as a row."""
        if not self.flags.c_contiguous:
            self.worked_on()
        return self._made(self._host.ravel(order))  # type: ignore[arg-type]

    def transpose(self, *axes: Any) -> DeviceArray:
        """Return it with its axes in another order."""
        return self._made(self._host.transpose(*axes))

    T = property(transpose)

    def squeeze(self, axis: Any = None) -> DeviceArray:
        """Return it without axes of one element."""
        return self._made(self._host.squeeze(axis))

    def copy(self, order: str = "C") -> DeviceArray:
        """Return a copy."""
        return self._made(self._host.copy(order))  # type: ignore[arg-type]

    def fill(self, value: Any) -> None:
        """Fill it with a scalar."""
        _plain(self).fill(_plain(value))

    def __getitem__(self, key: Any) -> DeviceArray:
        found = self._host[_key(key)]
        return self._made(np.asarray(found) if np.isscalar(found) else found)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError(f"Unsupported type {type(value)}")
        check_dtype(self.dtype)
        _plain(self)[_key(key)] = _plain(value)

    def _made(self, host: Any) -> DeviceArray:
        return type(self)(host if type(host) is np.ndarray else np.asarray(host), self.device)

    # -- arithmetic

    def any(self, axis: Any = None) -> DeviceArray:
        """Tell whether some are true."""
        return self._made(_plain(self).any(axis))

    def all(self, axis: Any = None) -> DeviceArray:
        """Tell whether all are true."""
        return self._made(_plain(self).all(axis))

    def sum(self, axis: Any = None, dtype: Any = None) -> DeviceArray:
        """Return the sum."""
        return self._made(_plain(self).sum(axis, dtype))

    def mean(self, axis: Any = None, dtype: Any = None) -> DeviceArray:
        """Return the mean."""
        return self._made(_plain(self).mean(axis, dtype))

    def max(self, axis: Any = None) -> DeviceArray:
        """Return the largest."""
        return self._made(_plain(self).max(axis))

    def min(self, axis: Any = None) -> DeviceArray:
        """Return the smallest."""
        return self._made(_plain(self).min(axis))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        given = [*inputs, *options.get("out", ())]
        for each in given:
            if isinstance(each, np.ndarray) and each.ndim:
                raise TypeError(f"Unsupported type {type(each)}")
            if isinstance(each, DeviceArray):
                check_dtype(each.dtype)
        plain = (
            {**options, "out": tuple(map(_plain, options["out"]))} if "out" in options else options
        )
        made = getattr(ufunc, method)(*map(_plain, inputs), **plain)
        return options["out"][0] if "out" in options else self._made(made)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        del types
        found = _FUNCTIONS.get(function)
        return NotImplemented if found is None else found(self, *arguments, **options)


def _plain(value: Any) -> Any:
    if not isinstance(value, DeviceArray):
        return value
    value.worked_on()
    return value._host


def _key(key: Any) -> Any:
    """Return an index, which may hold arrays."""
    return tuple(map(_plain, key)) if isinstance(key, tuple) else _plain(key)


def _flushed(value: Any) -> Any:
    """Return numbers as CuPy compares them, whose kernels take subnormal float32 for 0 (-ftz)."""
    found = np.array(value, ndmin=1, order="C")
    if found.dtype.char not in "fF":
        return value
    parts = found.view("float32")
    parts[np.abs(parts) < np.finfo("float32").tiny] = 0
    return found.reshape(np.shape(value))


_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")


def _operator(name: str, *, reflected: bool = False) -> Callable[..., Any]:
    work = getattr(operator, name)

    def method(self: DeviceArray, *others: Any) -> Any:
        for each in others:
            if isinstance(each, np.ndarray) and each.ndim:
                raise TypeError(f"Unsupported type {type(each)}")
        check_dtype(self.dtype)
        given = [_plain(self), *map(_plain, others)]
        if name in _COMPARISONS:
            given = [_flushed(each) for each in given]
        return self._made(work(*(reversed(given) if reflected else given)))

    return method


def _in_place(name: str) -> Callable[..., Any]:
    work = getattr(operator, name)

    def method(self: DeviceArray, other: Any) -> Any:
        if isinstance(other, np.ndarray) and other.ndim:
            raise TypeError(f"Unsupported type {type(other)}")
        self._host = work(_plain(self), _plain(other))
        return self

    return method


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(DeviceArray, f"__r{_name}__", _operator(f"__{_name}__", reflected=True))
    setattr(DeviceArray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "invert", "abs"):
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))


def _broadcast_arrays(self: DeviceArray, *arrays: Any) -> tuple[Any, ...]:
    """Return arrays of one shape. Those of the host, and scalars, stay as they are."""
    del self
    shape = np.broadcast_shapes(*(each.shape for each in arrays if isinstance(each, DeviceArray)))
    return tuple(
        each._made(np.broadcast_to(each._host, shape)) if isinstance(each, DeviceArray) else each
        for each in arrays
    )


def _array_equal(self: DeviceArray, one: Any, other: Any, equal_nan: bool = False) -> Any:
    """Tell whether two arrays of one shape are equal."""
    if one.shape != other.shape:
        return self._made(np.array(False))
    return self._made(np.array(np.array_equal(_plain(one), _plain(other), equal_nan=equal_nan)))


def _concatenate(self: DeviceArray, arrays: Any, axis: int = 0) -> Any:
    if not all(isinstance(each, DeviceArray) for each in arrays):
        raise TypeError("Only cupy arrays can be concatenated")
    return self._made(np.concatenate([_plain(each) for each in arrays], axis))


def _asarray(self: DeviceArray, value: Any, dtype: Any = None, **options: Any) -> Any:
    """Return a value as an array on the device."""
    del options
    host = np.asarray(_plain(value), dtype)
    check_dtype(host.dtype)
    self.crossed(up=0 if isinstance(value, DeviceArray) else host.nbytes)
    return self._made(host)


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.array_equal: _array_equal,
    np.asanyarray: _asarray,
    np.asarray: _asarray,
    np.broadcast_arrays: _broadcast_arrays,
    np.concatenate: _concatenate,
    np.shape: lambda _, array: array.shape,
    np.ndim: lambda _, array: array.ndim,
    np.zeros_like: lambda self, array, **options: self._made(np.zeros_like(array._host, **options)),
    np.empty_like: lambda self, array, **options: self._made(np.empty_like(array._host, **options)),
    np.ascontiguousarray: lambda self, array: self._made(np.ascontiguousarray(array._host)),
    np.broadcast_to: lambda self, array, shape: self._made(np.broadcast_to(array._host, shape)),
    np.transpose: lambda _, array, axes=None: array.transpose(axes),
    np.reshape: lambda _, array, shape, **options: array.reshape(shape, **options),
}
