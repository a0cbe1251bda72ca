"""The kernels compiled for the host: the same sources, the same plans, no device.

`python tests/gpu/hostkernels.py LIBRARY FUNCTION [OVERRUN]` hashes blobs that fill allocations to
their last byte, or claims OVERRUN bytes more for one of them: for libraries that a sanitizer
watches, in a child (see test_gpu_hashing.py).
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import DIGEST_SIZE, HashFunction, hash_by_name
from cas_zarr.gpu.hashing import Plan, make_plan
from cas_zarr.gpu.kernels import OPTIONS, Launch

__all__ = [
    "EDGES",
    "KERNEL",
    "HostCupy",
    "HostKernels",
    "HostStream",
    "address_of",
    "aligned",
    "build",
    "scattered",
    "watched",
]

Bytes = NDArray[np.uint8]

SHIM = Path(__file__).with_name("shim.h")
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]

KERNEL = re.compile(r"__global__ void __launch_bounds__\(\d+\) (\w+)\(")
BOUNDS = re.compile(r"__launch_bounds__\((\d+)\) (\w+)\(")
"""Threads that a block may have, and the kernel."""

MOST_BLOCKS = (1 << 31) - 1

EDGES = sorted(
    {0, 1, 2, 3, 4, 5, 55, 56, 57, 119, 120, 1000}
    | {
        near
        for edge in (16, 64, 128, 1024, 2048, 3072, 4096, 7168)
        for near in range(edge - 1, edge + 2)
    }
)
"""Sizes around which a block, a leaf, a tree or the padding ends."""


def build(compiler: Path, code: str, library: Path, *options: str) -> Path:
    """Compile CUDA C++ for the host into a shared library, with a launcher of each kernel."""
    launchers = "\n".join(f"LAUNCHER({name})" for name in KERNEL.findall(code))
    source = library.with_suffix(".cpp")
    source.write_text(f'#include "{SHIM}"\n{code}\n{launchers}\n')
    command = [str(compiler), "-std=c++14", "-O2", "-shared", "-fPIC", *WARNINGS, *options]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return library


def watched(
    compiler: Path, code: str, folder: Path, script: str, *arguments: str
) -> tuple[int, str]:
    """Run a script in a child, on a library that sanitizers watch; return its status and output.

    The script is given the path of the library, and the arguments.
    """
    options = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    library = build(compiler, code, folder / "libkernels.so", *options)
    asan = subprocess.run(
        [str(compiler), "-print-file-name=libasan.so"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": asan,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, script, str(library), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def aligned(size: int) -> Bytes:
    """Return memory of `size` bytes that begins at a multiple of 16 and ends where it ends."""
    memory = np.zeros(size + 16, np.uint8)
    skip = (-memory.ctypes.data) % 16
    return memory[skip : skip + size]


def address_of(memory: NDArray[np.generic]) -> int:
    """Return where memory begins."""
    return int(memory.ctypes.data)


def scattered(sizes: Sequence[int], seed: int = 0) -> tuple[Bytes, list[int]]:
    """Return a slab of random bytes and where each blob lies in it.

    They lie in an order of their own, at any alignment, with gaps of up to 40 bytes between them.
    """
    random = np.random.default_rng(seed)
    offsets, end = [0] * len(sizes), 0
    for row in random.permutation(len(sizes)):
        offsets[row] = end + int(random.integers(0, 41))
        end = offsets[row] + sizes[row]
    slab = aligned(-(-end // 4) * 4)
    slab[:] = random.integers(0, 256, len(slab), np.uint8)
    return slab, offsets


def run_threads(
    library: ctypes.CDLL, launch: Launch, first: int, count: int, backwards: bool = False
) -> None:
    """Run some threads of a launch, one after the other."""
    getattr(library, f"launch_{launch.kernel}")(
        ctypes.c_uint(launch.threads),
        ctypes.c_uint64(first),
        ctypes.c_uint64(count),
        ctypes.c_int(backwards),
        (ctypes.c_uint64 * len(launch.arguments))(*launch.arguments),
    )


class HostKernels:
    """The kernels of one hash function, in a library that `build` made."""

    def __init__(self, function: HashFunction, library: Path) -> None:
        self.function = function
        self._library = ctypes.CDLL(str(library))

    def launch(
        self, launch: Launch, first: int = 0, count: int | None = None, *, backwards: bool = False
    ) -> None:
        """Run a launch, or `count` of its threads from `first` on."""
        threads = launch.blocks * launch.threads if count is None else count
        run_threads(self._library, launch, first, threads, backwards)

    def run(self, plan: Plan, *, backwards: bool = False) -> Bytes:
        """Return the digests that a plan leads to, an array of 32 bytes a blob."""
        table = aligned(plan.table.nbytes)
        table[:] = plan.table.view(np.uint8)
        scratch, digests = aligned(plan.scratch), aligned(plan.blobs * DIGEST_SIZE)
        for launch in plan.launches(address_of(table), address_of(scratch), address_of(digests)):
            self.launch(launch, backwards=backwards)
        return digests.reshape(plan.blobs, DIGEST_SIZE)

    def digest_many(self, addresses: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Return the digest of each blob."""
        found = self.run(make_plan(addresses, sizes, self.function))
        return [digest.tobytes() for digest in found]


class HostArray(np.ndarray):
    """An array of NumPy, asked as those of CuPy are."""

    @property
    def data(self) -> Any:
        """Return where it lies."""
        return SimpleNamespace(ptr=address_of(self))

    def get(self) -> NDArray[Any]:
        """Return it as an array of NumPy."""
        return np.asarray(self)


class HostStream:
    """A stream, on which everything is done at once; it counts the launches."""

    _entered = threading.local()

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking, self.launched = non_blocking, 0

    @classmethod
    def current(cls) -> HostStream:
        """Return the stream that this thread is in, or another."""
        entered: list[HostStream] = getattr(cls._entered, "streams", [])
        return entered[-1] if entered else cls()

    def __enter__(self) -> HostStream:
        self._entered.streams = [*getattr(self._entered, "streams", []), self]
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.streams.pop()

    def synchronize(self) -> None:
        """Wait for nothing."""


class HostCupy:
    """What hashing asks of the module cupy, with memory of the host and kernels for the host."""

    uint8 = np.uint8
    cuda = SimpleNamespace(Stream=HostStream, get_current_stream=HostStream.current)

    def __init__(self, compiler: Path, folder: Path) -> None:
        self._compiler, self._folder = compiler, folder
        self._libraries: dict[str, ctypes.CDLL] = {}

    @staticmethod
    def empty(shape: int | tuple[int, ...], dtype: type[np.uint8]) -> HostArray:
        """Return memory."""
        return aligned(int(np.prod(shape))).view(dtype).reshape(shape).view(HostArray)

    @staticmethod
    def asarray(values: NDArray[Any]) -> HostArray:
        """Return a copy."""
        copied = aligned(values.nbytes).view(values.dtype).reshape(values.shape)
        copied[:] = values
        return copied.view(HostArray)

    def RawModule(self, code: str, options: tuple[str, ...]) -> Any:
        """Return a module whose functions are launched as those of CuPy are."""
        assert options == OPTIONS
        if code not in self._libraries:
            path = self._folder / f"libkernels{len(self._libraries)}.so"
            self._libraries[code] = ctypes.CDLL(str(build(self._compiler, code, path)))
        library = self._libraries[code]
        bounds = {name: int(most) for most, name in BOUNDS.findall(code)}

        def get_function(name: str) -> Callable[..., None]:
            def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
                assert 0 < grid[0] <= MOST_BLOCKS
                assert block == (bounds[name],)
                assert all(type(argument) is np.uint64 for argument in arguments)
                launched = Launch(name, grid[0], block[0], tuple(map(int, arguments)))
                HostStream.current().launched += 1
                run_threads(library, launched, 0, grid[0] * block[0])

            return launch

        return SimpleNamespace(get_function=get_function)


def main(library: str, name: str, overrun: str = "0") -> None:
    """Hash blobs of all edges, each in an allocation that its words fill."""
    function = hash_by_name(name)
    random = np.random.default_rng(0)
    addresses, sizes, expected, kept = [], [], [], []
    for size in [*EDGES, 70_000]:
        for skip in (0, 1, 2, 3, 4, 13):
            words = max(-(-(skip + size) // 4), 1)
            memory = random.integers(0, 256, 4 * words, np.uint8)
            kept.append(memory)
            addresses.append(address_of(memory) + skip)
            sizes.append(size)
            expected.append(function.digest(memory[skip : skip + size]))
    sizes[-1] += int(overrun)
    addresses.append(1)  # nothing of an empty blob is read, so it may lie anywhere
    sizes.append(0)
    expected.append(function.digest(b""))
    if HostKernels(function, Path(library)).digest_many(addresses, sizes) != expected:
        sys.exit("digests differ")
    print("digests agree")


if __name__ == "__main__":
    main(*sys.argv[1:])
