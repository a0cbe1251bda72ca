"""Blobs of a device in one slab of the host: gathered there, and copied one by one.

`python tests/gpu/test_gpu_gather.py LIBRARY [OVERRUN]` gathers blobs that fill allocations to
their last byte, or claims OVERRUN bytes more for one of them: for a library that a sanitizer
watches.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu.arrays import create, field
from gpu.fakecupy import Fake, on_device
from gpu.hostkernels import (
    EDGES,
    KERNEL,
    address_of,
    aligned,
    run_threads,
    scattered,
    watched,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas_zarr import CASStore, gpu
from cas_zarr.gpu import gather, kernels
from cas_zarr.gpu.gather import plan_gathering, prefers_gathering, to_host

KIB = 1 << 10
SIZES = {
    "edges": [*EDGES, 8191, 8192, 8193, 70_000],
    "tiny": [0, 1, 2, 15, 16, 17, 31, 0],
    "one": [12_345],
    "empty": [0, 0],
    "none": [],
}


def taken(slab: Any, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    return [
        slab[offset : offset + size].tobytes() for offset, size in zip(offsets, sizes, strict=True)
    ]


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_blobs_come_to_the_host(fake: Fake, sizes: list[int], gathered: bool) -> None:
    slab, offsets = scattered(sizes)
    there = on_device(slab)
    blobs = [there[at : at + size] for at, size in zip(offsets, sizes, strict=True)]
    fake.bus.clear()
    found = to_host(blobs, gathered=gathered)
    assert [bytes(each) for each in found] == taken(slab, offsets, sizes)
    if gathered:
        assert fake.bus.downs == (sum(sizes) > 0)
        assert sum(sizes) <= fake.bus.down <= sum(sizes) + 30 * len(sizes)
    else:
        assert (fake.bus.down, fake.bus.downs) == (sum(sizes), np.count_nonzero(sizes))


@given(st.lists(st.integers(0, 20_000), max_size=20), st.integers(0, 1 << 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.usefixtures("fake")
def test_blobs_at_any_address_are_gathered(sizes: list[int], seed: int) -> None:
    slab, offsets = scattered(sizes, seed)
    there = on_device(slab)
    blobs = [there[at : at + size] for at, size in zip(offsets, sizes, strict=True)]
    found = to_host(blobs, gathered=True)
    assert [bytes(each) for each in found] == taken(slab, offsets, sizes)


def test_where_blobs_are_gathered() -> None:
    assert not prefers_gathering([])
    assert not prefers_gathering([KIB] * 7)
    assert prefers_gathering([KIB] * 8)
    assert prefers_gathering([256 * KIB] * 7 + [0])
    assert not prefers_gathering([256 * KIB] * 8)


def test_a_batch_of_small_chunks_crosses_in_one_copy(fake: Fake, tmp_path: Path) -> None:
    data = field((640, 64))
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = create(store, [], data.shape)
        fake.bus.clear()
        array[:] = on_device(data)
        assert fake.bus.downs == 3  # which are empty, the digests, and all ten chunks
        other = on_device(data + 1)
        fake.memory.largest = data.nbytes - 1
        fake.bus.clear()
        array[:] = other
        assert fake.bus.downs == 2 + 10
        fake.memory.clear()
    np.testing.assert_array_equal(array[:], data + 1)


def gathered_by(
    library: ctypes.CDLL, addresses: Sequence[int], sizes: Sequence[int], backwards: bool = False
) -> list[bytes]:
    """Run the kernel on memory of the host."""
    plan = plan_gathering(addresses, sizes)
    table, slab = aligned(plan.table.nbytes), aligned(plan.size)
    table[:] = plan.table.view(np.uint8)
    launch = plan.launch(address_of(table), address_of(slab))
    run_threads(library, launch, 0, launch.blocks * launch.threads, backwards)
    return taken(slab, plan.starts.tolist(), sizes)


def test_no_byte_is_touched_that_is_not_of_a_blob(compiler: Path, tmp_path: Path) -> None:
    done = watched(compiler, kernels.source("gather"), tmp_path, __file__)
    assert done == (0, "blobs agree\n")


def test_the_sanitizer_sees_a_byte_too_many(compiler: Path, tmp_path: Path) -> None:
    status, output = watched(compiler, kernels.source("gather"), tmp_path, __file__, "1")
    assert status != 0
    assert "heap-buffer-overflow" in output


def test_the_source_includes_nothing() -> None:
    code = kernels.source("gather")
    assert "#include" not in code
    assert tuple(KERNEL.findall(code)) == kernels.NAMES["gather"]
    assert f"__launch_bounds__({gather._THREADS}) gather(" in code


def main(library: str, overrun: str = "0") -> None:
    """Gather blobs of all edges, each in an allocation that it fills to the last byte."""
    random = np.random.default_rng(0)
    kept, addresses, sizes = [], [], []
    for size in [*EDGES, 8191, 8192, 8193, 70_000]:
        for skip in (0, 1, 4, 13, 15):
            memory = random.integers(0, 256, skip + size, np.uint8)
            kept.append(memory[skip:])
            addresses.append(address_of(memory) + skip)
            sizes.append(size)
    expected = [each.tobytes() for each in kept]
    sizes[-1] += int(overrun)
    for backwards in (False, True):
        if gathered_by(ctypes.CDLL(library), addresses, sizes, backwards) != expected:
            sys.exit("blobs differ")
    print("blobs agree")


if __name__ == "__main__":
    main(*sys.argv[1:])
