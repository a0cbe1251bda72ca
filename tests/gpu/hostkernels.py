"""The kernels compiled for the host: the same sources, the same plans, no device.

`python tests/gpu/hostkernels.py FUNCTION LIBRARY [OVERRUN]` hashes blobs that fill allocations to
their last byte, or claims OVERRUN bytes more for one of them: for libraries that a sanitizer
watches, in a child (see test_gpu_hashing.py).
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import DIGEST_SIZE, HashFunction, hash_by_name
from cas_zarr.gpu.hashing import Launch, Plan, make_plan
from cas_zarr.gpu.kernels import NAMES, source

__all__ = ["EDGES", "HostKernels", "address_of", "aligned", "build", "scattered"]

Bytes = NDArray[np.uint8]

SHIM = Path(__file__).with_name("shim.h")
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]

EDGES = sorted(
    {0, 1, 2, 3, 4, 5, 55, 56, 57, 119, 120, 1000}
    | {
        near
        for edge in (16, 64, 128, 1024, 2048, 3072, 4096, 7168)
        for near in range(edge - 1, edge + 2)
    }
)
"""Sizes around which a block, a leaf, a tree or the padding ends."""


def build(compiler: Path, function: HashFunction, folder: Path, *options: str) -> Path:
    """Compile the kernels of a hash function into a shared library in `folder`."""
    launchers = "\n".join(f"LAUNCHER({name})" for name in NAMES[function.code])
    code = folder / f"{function.name}.cpp"
    code.write_text(f'#include "{SHIM}"\n{source(function)}\n{launchers}\n')
    library = folder / f"lib{function.name}.so"
    command = [str(compiler), "-std=c++14", "-O2", "-shared", "-fPIC", *WARNINGS, *options]
    subprocess.run([*command, str(code), "-o", str(library)], check=True)
    return library


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


class HostKernels:
    """The kernels of one hash function, in a library that `build` made."""

    def __init__(self, function: HashFunction, library: Path) -> None:
        self.function = function
        self._library = ctypes.CDLL(str(library))

    def launch(
        self, launch: Launch, first: int = 0, count: int | None = None, *, backwards: bool = False
    ) -> None:
        """Run a launch, or `count` of its threads from `first` on."""
        kernel = getattr(self._library, f"launch_{launch.kernel}")
        arguments = (ctypes.c_uint64 * len(launch.arguments))(*launch.arguments)
        threads = launch.blocks * launch.threads if count is None else count
        kernel(
            ctypes.c_uint(launch.threads),
            ctypes.c_uint64(first),
            ctypes.c_uint64(threads),
            ctypes.c_int(backwards),
            arguments,
        )

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


def main(name: str, library: str, overrun: str = "0") -> None:
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
    if HostKernels(function, Path(library)).digest_many(addresses, sizes) != expected:
        sys.exit("digests differ")
    print("digests agree")


if __name__ == "__main__":
    main(*sys.argv[1:])
