"""The kernels compiled for the host: the same sources, the same plans, no device.

`python tests/gpu/hostkernels.py LIBRARY ...` hashes batches at the edges of allocations with
libraries that a sanitizer watches; it runs in a child, see test_gpu_hashing.py.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import DIGEST_SIZE, HashFunction
from cas_zarr.gpu.hashing import Plan, make_plan
from cas_zarr.gpu.kernels import NAMES, source

__all__ = ["HostKernels", "aligned", "build", "compiler"]

SHIM = Path(__file__).with_name("shim.h")
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def compiler() -> str | None:
    """Return a C++ compiler of the host, or None."""
    return shutil.which("g++") or shutil.which("clang++")


def build(function: HashFunction, folder: Path, *options: str) -> Path:
    """Compile the kernels of a hash function into a shared library in `folder`."""
    launchers = "\n".join(f"LAUNCHER({name})" for name in NAMES[function.code])
    code = folder / f"{function.name}.cpp"
    code.write_text(f'#include "{SHIM}"\n{source(function)}\n{launchers}\n')
    library = folder / f"lib{function.name}.so"
    command = [compiler(), "-std=c++14", "-O2", "-shared", "-fPIC", *WARNINGS, *options]
    subprocess.run([*command, str(code), "-o", str(library)], check=True)
    return library


def aligned(size: int) -> NDArray[np.uint8]:
    """Return memory of `size` bytes that begins at a multiple of 16."""
    memory = np.zeros(size + 16, np.uint8)
    skip = -memory.ctypes.data % 16
    return memory[skip : skip + size]


class HostKernels:
    """The kernels of one hash function, in a library that `build` made."""

    def __init__(self, function: HashFunction, library: Path) -> None:
        self.function = function
        self._library = ctypes.CDLL(str(library))

    def run(self, plan: Plan) -> NDArray[np.uint8]:
        """Return the digests that a plan leads to."""
        table = aligned(plan.table.nbytes)
        table[:] = plan.table.view(np.uint8)
        scratch, digests = aligned(plan.scratch), aligned(plan.blobs * DIGEST_SIZE)
        for launch in plan.launches(table.ctypes.data, scratch.ctypes.data, digests.ctypes.data):
            kernel = getattr(self._library, f"launch_{launch.kernel}")
            arguments = (ctypes.c_uint64 * len(launch.arguments))(*launch.arguments)
            kernel(ctypes.c_uint(launch.blocks), ctypes.c_uint(launch.threads), arguments)
        return digests.reshape(plan.blobs, DIGEST_SIZE)

    def digest_slab(
        self, slab: NDArray[np.uint8], offsets: list[int], sizes: list[int]
    ) -> NDArray[np.uint8]:
        """Return the digests of blobs of one slab."""
        begins = np.array(offsets, np.int64) + slab.ctypes.data
        return self.run(make_plan(begins, sizes, self.function))
