"""Checksums of blobs of a device, held to zlib.

`python tests/gpu/test_gpu_adler32.py LIBRARY [OVERRUN]` sums blobs that fill allocations to their
last byte, or claims OVERRUN bytes more for one of them: for a library that a sanitizer watches.
"""

from __future__ import annotations

import ctypes
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu.hostkernels import EDGES, address_of, aligned, build, run_threads, scattered, watched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas_zarr.gpu.checksums import plan_checksums, write_checksums
from cas_zarr.gpu.kernels import source

PIECE = 2048
SIZES = [
    *sorted({*EDGES, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 63, 70_000} - {0}),
    1 << 20,
]


def summed(
    library: ctypes.CDLL, addresses: Sequence[int], sizes: Sequence[int], backwards: bool = False
) -> list[int]:
    """Run the kernels on memory of the host, with checksums at odd addresses."""
    found = aligned(7 * len(sizes))
    targets = address_of(found) + 7 * np.arange(len(sizes)) + 1
    plan = plan_checksums(np.array(addresses), np.array(sizes), targets)
    table, scratch = aligned(plan.table.nbytes), aligned(plan.scratch)
    table[:] = plan.table.view(np.uint8)
    for launch in plan.launches(address_of(table), address_of(scratch)):
        run_threads(library, launch, 0, launch.blocks * launch.threads, backwards)
    slots = found.reshape(-1, 7)
    assert not slots[:, 0].any()
    assert not slots[:, 5:].any()
    return [int.from_bytes(slot[1:5].tobytes(), "big") for slot in slots]


@pytest.fixture(scope="module")
def library(compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Return the kernels for the host."""
    folder = tmp_path_factory.mktemp("adler32")
    return ctypes.CDLL(str(build(compiler, source("adler32"), folder / "libadler32.so")))


@pytest.mark.parametrize("backwards", [False, True])
def test_checksums_are_those_of_zlib(library: ctypes.CDLL, backwards: bool) -> None:
    slab, offsets = scattered(SIZES)
    addresses = [address_of(slab) + offset for offset in offsets]
    expected = [
        zlib.adler32(slab[offset : offset + size])
        for offset, size in zip(offsets, SIZES, strict=True)
    ]
    assert summed(library, addresses, SIZES, backwards) == expected


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20), st.integers(0, 1 << 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_checksums_of_any_batch(library: ctypes.CDLL, sizes: list[int], seed: int) -> None:
    slab, offsets = scattered(sizes, seed)
    assert summed(library, [address_of(slab) + at for at in offsets], sizes) == [
        zlib.adler32(slab[at : at + size]) for at, size in zip(offsets, sizes, strict=True)
    ]


@pytest.mark.parametrize("size", [PIECE, (1 << 24) + 5])
def test_the_largest_bytes_do_not_overflow(library: ctypes.CDLL, size: int) -> None:
    slab = np.full(size, 255, np.uint8)
    assert summed(library, [address_of(slab)], [size]) == [zlib.adler32(slab)]


def test_bounds_of_the_comments() -> None:
    assert 255 * PIECE * (PIECE + 1) // 2 < 1 << 32
    assert 255 * PIECE * 65520 + 255 * PIECE * (PIECE + 1) // 2 < 1 << 36
    assert (1 << 36) * ((1 << 38) // PIECE) < 1 << 64


@pytest.mark.gpu
def test_checksums_of_a_device(cuda: Any) -> None:
    sizes = [*SIZES, (1 << 24) + 5]
    slab, offsets = scattered(sizes)
    slab[offsets[-1] : offsets[-1] + sizes[-1]] = 255
    there, found = cuda.asarray(slab), cuda.zeros(7 * len(sizes), cuda.uint8)
    targets = found.data.ptr + 7 * np.arange(len(sizes)) + 1
    write_checksums(there.data.ptr + np.array(offsets), np.array(sizes), targets)
    assert [int.from_bytes(slot[1:5].tobytes(), "big") for slot in found.get().reshape(-1, 7)] == [
        zlib.adler32(slab[at : at + size]) for at, size in zip(offsets, sizes, strict=True)
    ]


def test_no_byte_is_touched_that_is_not_of_a_blob(compiler: Path, tmp_path: Path) -> None:
    done = watched(compiler, source("adler32"), tmp_path, __file__)
    assert done == (0, "checksums agree\n")


def test_the_sanitizer_would_tell(compiler: Path, tmp_path: Path) -> None:
    status, output = watched(compiler, source("adler32"), tmp_path, __file__, "8")
    assert status != 0
    assert "heap-buffer-overflow" in output


def main(path: str, overrun: str = "0") -> None:
    """Sum blobs of all edges, each in an allocation that its words fill."""
    random = np.random.default_rng(0)
    addresses, sizes, expected, kept = [], [], [], []
    for size in SIZES[:-1]:
        for skip in (0, 1, 2, 3, 4, 13):
            memory = random.integers(0, 256, 4 * -(-(skip + size) // 4), np.uint8)
            kept.append(memory)
            addresses.append(address_of(memory) + skip)
            sizes.append(size)
            expected.append(zlib.adler32(memory[skip : skip + size]))
    sizes[-1] += int(overrun)
    if summed(ctypes.CDLL(path), addresses, sizes) != expected:
        sys.exit("checksums differ")
    print("checksums agree")


if __name__ == "__main__":
    main(*sys.argv[1:])
