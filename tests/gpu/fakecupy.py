"""A stand-in for CuPy and nvCOMP in the memory of the host, which counts what crosses the bus.

The code above them is the package's own: arrays here look like those of a device to zarr, the
kernels are the sources compiled for the host, and the functions of nvCOMP's C API are done by
numcodecs, on the addresses that they are given.
"""

from __future__ import annotations

import ctypes
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from gpu import devicearrays, encoders
from gpu.hostkernels import HostCupy, HostStream, aligned
from numpy.typing import NDArray

__all__ = ["DeviceArray", "Fake", "FakeCupy", "FakeNvcomp"]


class OutOfMemoryError(MemoryError):
    """No memory is left on the device."""

    def __init__(self, size: int, total: int) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,}).")


class CUDARuntimeError(RuntimeError):
    """What a device refuses."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Memory:
    """What is allocated on a device, and how much there can be, in bytes."""

    def __init__(self) -> None:
        self.held = 0
        self.regions: dict[int, tuple[int, int]] = {}
        self.clear()

    def clear(self) -> None:
        """Be a device of 80 GiB."""
        self.capacity = self.largest = 80 << 30

    def check(self, size: int) -> None:
        """Refuse what there is no memory for."""
        if size > min(self.largest, self.capacity - self.held):
            raise OutOfMemoryError(size, self.held)

    def take(self, owner: Any, size: int) -> None:
        """Count memory until its owner goes."""
        self.held += size
        self.regions[id(owner)] = owner.ctypes.data, owner.nbytes
        weakref.finalize(owner, self._free, id(owner), size)

    def _free(self, owner: int, size: int) -> None:
        self.held -= size
        del self.regions[owner]


DEVICES = (Memory(), Memory())
MEMORY = DEVICES[0]
CURRENT = threading.local()


def current() -> int:
    """Return the device that this thread works on."""
    return getattr(CURRENT, "device", 0)


def check_address(address: int) -> None:
    """Refuse an address of another device than the current one."""
    for number, memory in enumerate(DEVICES):
        if number != current():
            for begin, size in list(memory.regions.values()):
                assert not begin <= address < begin + size, f"this lies on device {number}"


def check_table(address: int) -> None:
    """Refuse addresses of another device in what may be a small table at an address."""
    for begin, size in list(DEVICES[current()].regions.values()):
        if begin <= address < begin + size and size < 20_000:
            for word in words(address, (begin + size - address) // 8).tolist():
                check_address(word)


class PinnedMemory:
    """What the host can pin, in bytes at once."""

    most = 1 << 40

    def alloc(self, size: int) -> Any:
        """Return memory that is pinned, as one buffer."""
        if size > self.most:
            raise CUDARuntimeError(2)
        return memoryview(bytearray(size))


class Bus:
    """What was copied, in bytes: up, down by so many copies, and from device to device."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Count anew."""
        self.up = self.down = self.downs = self.across = 0


BUS = Bus()
COPIES: deque[tuple[NDArray[Any], NDArray[Any]]] = deque()
"""To the host, which were asked for and not waited for: where to, and what."""
COPYING = threading.Lock()


class DeviceArray(devicearrays.DeviceArray):
    """An array of a device, by default the current one, which counts what crosses the bus."""

    def __init__(self, host: NDArray[Any], device: Any = None) -> None:
        super().__init__(host, device or Device())

    def crossed(self, up: int = 0, down: int = 0) -> None:
        """Count what went over the bus."""
        BUS.up += up
        BUS.down += down
        BUS.downs += down > 0

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> NDArray[Any]:
        """Copy it to the host: only once the stream is waited for, if it does not block."""
        found = super().get(stream, order, out)
        if blocking:
            FakeStream.current().synchronize()
        elif out is not None:
            COPIES.append((out, found.copy()))
            out.view(np.uint8).fill(0xA5)
        return found

    def worked_on(self) -> None:
        """Refuse a kernel of another device, which may not reach this memory, and odd addresses."""
        assert self.device.id == current(), f"{self.device} is worked on by {Device()}"
        odd = self.size and self.data.ptr % self.itemsize
        assert not odd, f"{self.dtype} at an address that is no multiple of its size"

    def copy(self, order: str = "C") -> DeviceArray:
        """Return a copy on the current device."""
        memory = DEVICES[current()]
        memory.check(self.nbytes)
        if self.device.id == current():
            there = super().copy(order)
            memory.take(there._host, self.nbytes)
            return there
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise NotImplementedError("CuPy cannot copy non-contiguous array between devices.")
        made = DeviceArray(aligned(self.nbytes).view(self.dtype).reshape(self.shape))
        made._host[...] = self._host
        memory.take(made._host.base, self.nbytes)
        BUS.across += self.nbytes
        return made


class Device:
    """A device, by default the current one; as a context it is the current one."""

    def __init__(self, number: int | None = None) -> None:
        self.id = current() if number is None else number
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(current())
        CURRENT.device = self.id
        return self

    def __exit__(self, *_: object) -> None:
        CURRENT.device = self._before.pop()

    def __repr__(self) -> str:
        return f"device {self.id}"


def on_device(array: Any) -> DeviceArray:
    """Copy an array of the host to the device; leave one that is there."""
    if isinstance(array, DeviceArray):
        return array
    array = np.asarray(array)
    devicearrays.check_dtype(array.dtype)
    memory = DEVICES[current()]
    memory.check(array.nbytes)
    BUS.up += array.nbytes
    copied = aligned(array.nbytes).view(array.dtype).reshape(array.shape)
    copied[...] = array
    memory.take(copied.base, array.nbytes)
    return DeviceArray(copied)


class FakeStream(HostStream):
    """A stream that has a handle, and copies to the host that nobody waited for."""

    ptr = 0

    def synchronize(self) -> None:
        """Let them be there."""
        with COPYING:
            while COPIES:
                out, found = COPIES.popleft()
                out[...] = found


class FakeCupy(HostCupy):
    """What the package and zarr ask of the module cupy."""

    uint64, int32, int64 = np.uint64, np.int32, np.int64
    ndarray = DeviceArray

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.bus = BUS
        self.devices = 1
        self.memory, self.pinned = MEMORY, PinnedMemory()
        self.cuda = SimpleNamespace(
            Stream=FakeStream,
            get_current_stream=FakeStream.current,
            Device=Device,
            alloc_pinned_memory=self.pinned.alloc,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDeviceCount=lambda: self.devices,
                getDevice=current,
                memGetInfo=self._mem_get_info,
            ),
        )

    @staticmethod
    def _mem_get_info() -> tuple[int, int]:
        memory = DEVICES[current()]
        return memory.capacity - memory.held, memory.capacity

    def RawModule(self, code: str, options: tuple[str, ...]) -> Any:
        """Return a module whose kernels refuse memory of other devices."""
        module = super().RawModule(code, options)

        def get_function(name: str) -> Callable[..., None]:
            function = module.get_function(name)

            def launch(grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
                for argument in map(int, arguments):
                    check_address(argument)
                    if self.devices > 1:
                        check_table(argument)
                function(grid, block, arguments)

            return launch

        return SimpleNamespace(get_function=get_function)

    def empty(self, shape: Any, dtype: Any = float, order: str = "C") -> DeviceArray:
        """Return memory of the device, filled with what must not be relied on."""
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        dtype = devicearrays.check_dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        DEVICES[current()].check(size)
        memory = np.empty(size + 256, np.uint8)
        DEVICES[current()].take(memory, size)
        memory[:] = 0xA5
        skip = -memory.ctypes.data % 256
        made = memory[skip : skip + size].view(dtype).reshape(shape, order=order)
        return DeviceArray(made)

    def zeros(self, shape: Any, dtype: Any = float) -> DeviceArray:
        """Return memory of the device, filled with zeros."""
        made = self.empty(shape, dtype)
        made.fill(0)
        return made

    asarray = asanyarray = staticmethod(on_device)

    @staticmethod
    def array(values: Any, dtype: Any = None) -> DeviceArray:
        """Return an array on the device."""
        return on_device(np.array(values, dtype))

    @staticmethod
    def frombuffer(data: Any, dtype: Any) -> DeviceArray:
        """Copy bytes to the device."""
        return on_device(np.frombuffer(data, dtype))

    @staticmethod
    def concatenate(arrays: list[Any]) -> Any:
        """Return arrays one after the other."""
        return np.concatenate(arrays)

    @staticmethod
    def stack(arrays: list[Any]) -> DeviceArray:
        """Return arrays beside each other."""
        assert all(isinstance(each, DeviceArray) for each in arrays)
        for each in arrays:
            each.worked_on()
        return DeviceArray(np.stack([each._host for each in arrays]))

    @staticmethod
    def isnan(array: Any) -> Any:
        """Tell which elements are no number."""
        return np.isnan(array)

    @staticmethod
    def asnumpy(array: Any) -> NDArray[Any]:
        """Copy an array to the host."""
        return array.get() if isinstance(array, DeviceArray) else np.asarray(array)


_FUNCTION = re.compile(
    r"nvcompBatched(Zstd|LZ4|Gzip|Deflate|Bitcomp|ANS|Gdeflate|Cascaded)"
    r"((?:Compress|Decompress|GetDecompressSize).*)"
)


class FakeNvcomp:
    """The C API of nvCOMP: each function by its name, as ctypes passes its arguments."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.devices: set[int] = set()
        self.decoded = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., int]:
        found = _FUNCTION.fullmatch(name)
        if found is None:
            raise AttributeError(name)
        algorithm, work = found.groups()

        def call(*arguments: Any) -> int:
            with self._lock:
                self.calls.append(name)
                self.devices.add(current())
            plain = [
                each.value if isinstance(each, ctypes.c_size_t) else each for each in arguments
            ]
            getattr(self, f"_{work}")(algorithm, *plain)
            return 0

        return call

    def _CompressGetRequiredAlignments(self, algorithm: str, options: Any, out: Any) -> None:
        assert ctypes.sizeof(options) == 64
        largest = 16 if algorithm == "ANS" else 8
        out._obj.input, out._obj.output, out._obj.temp = largest, largest, 8

    _DecompressGetRequiredAlignments = _CompressGetRequiredAlignments

    def _CompressGetMaxOutputChunkSize(self, _: str, size: int, _options: Any, out: Any) -> None:
        out._obj.value = size + size // 64 + 128

    def _CompressGetTempSize(self, _: str, *arguments: Any) -> None:
        arguments[3]._obj.value = 64

    def _DecompressGetTempSize(self, _: str, *arguments: Any) -> None:
        arguments[3]._obj.value = 0

    def _CompressAsync(
        self,
        algorithm: str,
        inputs: int,
        sizes: int,
        largest: int,
        count: int,
        _scratch: int,
        _scratch_size: int,
        outputs: int,
        encoded: int,
        options: Any,
        statuses: int,
        _stream: int,
    ) -> None:
        grain = 16 if algorithm == "ANS" else 8
        for row, (begin, size, target) in enumerate(
            zip(*(words(each, count).tolist() for each in (inputs, sizes, outputs)), strict=True)
        ):
            assert size <= largest
            assert begin % grain == target % grain == 0
            check_address(begin)
            check_address(target)
            made = encoders.encode(algorithm, ctypes.string_at(begin, size), options.words)
            ctypes.memmove(target, made, len(made))
            words(encoded, count)[row] = len(made)
            flags(statuses, count)[row] = 0

    def _GetDecompressSizeAsync(
        self, algorithm: str, inputs: int, sizes: int, found: int, count: int, _stream: int
    ) -> None:
        for row, (begin, size) in enumerate(
            zip(words(inputs, count).tolist(), words(sizes, count).tolist(), strict=True)
        ):
            data = ctypes.string_at(begin, size)
            words(found, count)[row] = encoders.decoded_size(algorithm, data)

    def _DecompressAsync(
        self,
        algorithm: str,
        inputs: int,
        sizes: int,
        room: int,
        decoded: int,
        count: int,
        _scratch: int,
        _scratch_size: int,
        outputs: int,
        _options: Any,
        statuses: int,
        _stream: int,
    ) -> None:
        for row, (begin, size, space, target) in enumerate(
            zip(
                *(words(each, count).tolist() for each in (inputs, sizes, room, outputs)),
                strict=True,
            )
        ):
            check_address(begin)
            check_address(target)
            made = encoders.decode(algorithm, ctypes.string_at(begin, size), space)
            ctypes.memmove(target, made, len(made))
            words(decoded, count)[row] = len(made)
            flags(statuses, count)[row] = 0
            self.decoded += 1


class Fake:
    """The device, and the library that encodes on it."""

    def __init__(self, cupy: FakeCupy, library: FakeNvcomp) -> None:
        self.cupy, self.library = cupy, library
        self.bus, self.memory, self.pinned = cupy.bus, cupy.memory, cupy.pinned
        self.memories = DEVICES


def words(address: int, count: int) -> NDArray[np.uint64]:
    """Return a table of the device."""
    check_address(address)
    memory = (ctypes.c_uint64 * count).from_address(address)
    return np.frombuffer(memory, np.uint64)


def flags(address: int, count: int) -> NDArray[np.int32]:
    """Return statuses of the device."""
    return np.frombuffer((ctypes.c_int32 * count).from_address(address), np.int32)
