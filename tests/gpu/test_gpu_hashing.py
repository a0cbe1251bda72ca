"""Digests of many blobs at once: the kernels, compiled for the host, against the host's functions.

The same cases run on a device where there is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu import hostkernels
from gpu.hostkernels import (
    EDGES,
    KERNEL,
    HostKernels,
    HostStream,
    address_of,
    aligned,
    scattered,
    watched,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas_zarr.cid import BLAKE3, SHA256, HashFunction
from cas_zarr.errors import InvalidArgumentError, MissingDependencyError
from cas_zarr.gpu import hashing, kernels
from cas_zarr.gpu.hashing import digest_many, digest_slab, make_plan, prefers_device
from cas_zarr.parallel import WORKERS

MIB = 1 << 20
RANDOM = np.random.default_rng(3)
BATCHES = {
    "edges": EDGES * 16,
    "small": RANDOM.integers(0, 3000, 3000).tolist(),
    "tiny": RANDOM.integers(0, 70, 4000).tolist(),
    "around a mebibyte": [MIB - 1, MIB, MIB + 1],
    "mixed": [5 * MIB + 7, 0, 1, *RANDOM.integers(0, 200_000, 40).tolist(), 0, 64, MIB // 2],
    "one": [33 * 1024],
    "one empty": [0],
    "none": [],
}
batches = pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)


def expected(
    function: HashFunction, slab: Any, offsets: Sequence[int], sizes: Sequence[int]
) -> list[bytes]:
    return [
        function.digest(slab[offset : offset + size])
        for offset, size in zip(offsets, sizes, strict=True)
    ]


def digest_scattered(host: HostKernels, slab: Any, offsets: list[int], sizes: Any) -> list[bytes]:
    return host.digest_many([address_of(slab) + offset for offset in offsets], sizes)


@batches
def test_digests_are_those_of_the_host(host: HostKernels, sizes: list[int]) -> None:
    slab, offsets = scattered(sizes)
    found = digest_scattered(host, slab, offsets, sizes)
    assert found == expected(host.function, slab, offsets, sizes)


def test_every_edge_at_every_alignment(host: HostKernels) -> None:
    slab = aligned(EDGES[-1] + 16)
    slab[:] = np.random.default_rng(1).integers(0, 256, len(slab), np.uint8)
    sizes = [size for size in EDGES for _ in range(16)]
    offsets = list(range(16)) * len(EDGES)
    found = digest_scattered(host, slab, offsets, sizes)  # blobs may lie over each other
    assert found == expected(host.function, slab, offsets, sizes)


@given(
    sizes=st.lists(
        st.one_of(st.integers(0, 200), st.integers(0, 5000), st.integers(0, 70_000)), max_size=12
    ),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_digests_of_any_sizes(host: HostKernels, sizes: list[int], seed: int) -> None:
    slab, offsets = scattered(sizes, seed)
    found = digest_scattered(host, slab, offsets, sizes)
    assert found == expected(host.function, slab, offsets, sizes)


def test_every_count_of_leaves_up_to_130(host: HostKernels) -> None:
    sizes = [1024 * leaves - more for leaves in range(1, 131) for more in (0, 1, 1023)]
    slab, offsets = scattered(sizes)
    found = digest_scattered(host, slab, offsets, sizes)
    assert found == expected(host.function, slab, offsets, sizes)


def test_blobs_may_lie_in_many_slabs(host: HostKernels) -> None:
    slabs = [aligned(size) for size in BATCHES["small"][:200]]
    for number, slab in enumerate(slabs):
        slab[:] = number
    found = host.digest_many([address_of(slab) for slab in slabs], [len(slab) for slab in slabs])
    assert found == [host.function.digest(slab) for slab in slabs]


def test_a_launch_does_not_hang_on_the_order_of_its_threads(host: HostKernels) -> None:
    sizes = BATCHES["mixed"]
    slab, offsets = scattered(sizes)
    plan = make_plan(np.array(offsets) + address_of(slab), sizes, host.function)
    found = [digest.tobytes() for digest in host.run(plan, backwards=True)]
    assert found == expected(host.function, slab, offsets, sizes)


def test_the_published_vectors(conformance: Path, hosts: dict[str, HostKernels]) -> None:
    cases = json.loads((conformance / "blake3/test_vectors.json").read_text())["cases"]
    assert len(cases) > 30
    sizes = [case["input_len"] for case in cases]
    slab = aligned(max(sizes))
    slab[:] = np.resize(np.arange(251, dtype=np.uint8), len(slab))
    found = hosts["blake3"].digest_many([address_of(slab)] * len(sizes), sizes)
    assert [digest.hex() for digest in found] == [case["hash"][:64] for case in cases]


def test_leaves_are_found_past_four_thousand_million(hosts: dict[str, HostKernels]) -> None:
    # The first blob is claimed alone: none of its threads runs, so it needs no memory.
    host = hosts["blake3"]
    slab, [offset] = scattered([9 * 1024 + 77])
    sizes = [9 * 1024 + 77, 2**42 + 1]
    plan = make_plan([address_of(slab) + offset, 0], sizes, BLAKE3)
    first, slot = 2**32 + 1, 2**33
    assert (plan.leaves, plan.slots) == (first + 10, slot + 16)
    table = aligned(plan.table.nbytes)
    table[:] = plan.table.view(np.uint8)
    scratch, digests = aligned(32 * 16), aligned(64)
    leaves, *levels = plan.launches(
        address_of(table), address_of(scratch) - 32 * slot, address_of(digests)
    )
    host.launch(leaves, first, 10)
    for level, threads in enumerate([8, 4, 2, 1]):
        assert plan.levels[level] == ((slot >> level + 1) + threads, 2)
        host.launch(levels[level], slot >> level + 1, threads)
    assert plan.levels[4:] == tuple((slot >> level + 1, 1) for level in range(4, 33))
    assert digests[:32].tobytes() == BLAKE3.digest(slab[offset : offset + sizes[0]])
    assert not digests[32:].any()


@pytest.mark.parametrize("sizes", [[2**32] * 3000, [2**32, 0, 5] * 1000, [2**31] * 70])
def test_a_plan_counts_in_64_bits(sizes: list[int]) -> None:
    plan = make_plan([2**47 - 1] * len(sizes), sizes, BLAKE3)
    leaves = [max(1, -(-size // 1024)) for size in sizes]
    assert plan.leaves == sum(leaves)
    full = sum(count for count in leaves if count > 1)  # all of them are powers of two
    assert plan.slots == full
    assert [threads for threads, _ in plan.levels] == [
        full >> level + 1 for level in range(max(leaves).bit_length() - 1)
    ]
    for launch in plan.launches(0, 0, 0):
        assert 0 <= launch.blocks * launch.threads - launch.arguments[0] < launch.threads


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_the_slots_of_a_plan(sizes: list[int]) -> None:
    plan = make_plan([0] * len(sizes), sizes, BLAKE3)
    begins, held, rows = plan.table[: 3 * len(sizes)].reshape(3, -1)
    firsts, slots = plan.table[3 * len(sizes) :].reshape(2, -1)
    leaves = np.diff(firsts)
    assert not begins.any()
    assert [sizes[row] for row in rows] == held.tolist()
    assert leaves.tolist() == [max(1, -(-size // 1024)) for size in held.tolist()]
    for first, room, count in zip(slots.tolist(), np.diff(slots).tolist(), leaves, strict=False):
        assert room == (0 if count == 1 else 1 << (int(count) - 1).bit_length())
        assert not room or first % room == 0
    assert len(plan.levels) == (int(leaves.max()) - 1).bit_length()
    for level, (threads, blobs) in enumerate(plan.levels):
        assert blobs == (leaves > 1 << level).sum()
        assert threads << level + 1 == slots[blobs]


def test_the_longest_blobs_come_first(function: HashFunction) -> None:
    sizes = BATCHES["mixed"]
    plan = make_plan(range(len(sizes)), sizes, function)
    begins, held, rows = plan.table[: 3 * len(sizes)].reshape(3, -1)
    assert sorted(rows.tolist()) == begins[np.argsort(rows)].tolist() == list(range(len(sizes)))
    assert [sizes[row] for row in rows] == held.tolist() == sorted(sizes, reverse=True)
    assert (plan.scratch > 0) == (function == BLAKE3)


@pytest.mark.slow
def test_a_length_of_more_than_32_bits_of_bits(hosts: dict[str, HostKernels]) -> None:
    slab = np.zeros(2**29 + 1, np.uint8)
    assert hosts["sha2-256"].digest_many([address_of(slab)], [len(slab)]) == [SHA256.digest(slab)]


def sanitized(
    compiler: Path, function: HashFunction, folder: Path, *arguments: str
) -> tuple[int, str]:
    """Hash in a child with a library that sanitizers watch; return its status and what it said."""
    code, script = kernels.source(function), hostkernels.__file__
    return watched(compiler, code, folder, script, function.name, *arguments)


def test_no_word_is_touched_that_holds_nothing_of_a_blob(
    function: HashFunction, compiler: Path, tmp_path: Path
) -> None:
    status, output = sanitized(compiler, function, tmp_path)
    assert (status, output) == (0, "digests agree\n")


def test_the_sanitizer_sees_a_word_too_many(
    function: HashFunction, compiler: Path, tmp_path: Path
) -> None:
    status, output = sanitized(compiler, function, tmp_path, "4")
    assert status != 0
    assert "heap-buffer-overflow" in output


@pytest.mark.parametrize(
    ("addresses", "sizes", "complaint"),
    [
        ([1, 2], [3], "2 addresses and 1 sizes"),
        ([-1], [3], "addresses"),
        ([0], [-1], "sizes"),
        ([0], [2**63], "sizes"),
        ([0], [2**70], "sizes"),
        ([0], [1.5], "sizes"),
        (np.zeros(1, np.uint64) - np.uint64(1), [1], "addresses"),
        ([[0]], [1], "addresses"),
        (0, [1], "addresses"),
    ],
)
def test_a_plan_refuses_what_are_no_blobs(addresses: Any, sizes: Any, complaint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=complaint):
        make_plan(addresses, sizes, BLAKE3)


def test_another_hash_function_has_no_kernel() -> None:
    other = HashFunction("md5", 0xD5, lambda _: b"")
    for use in (lambda: make_plan([], [], other), lambda: kernels.source(other)):
        with pytest.raises(InvalidArgumentError, match="md5"):
            use()


def test_blobs_lie_within_their_slab() -> None:
    slab = np.zeros(100, np.uint8)
    for offsets, sizes in [([0, 60], [100, 41]), ([0, 101], [1, 0]), ([0, 2**62], [1, 2**62])]:
        with pytest.raises(InvalidArgumentError, match=r"blob 1 .* slab of 100 bytes"):
            digest_slab(slab, offsets, sizes, BLAKE3)


def test_without_cupy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingDependencyError, match=r"cas_zarr\[gpu-cu12\]"):
        digest_many([0], [0], BLAKE3)


def test_the_sources_include_nothing(function: HashFunction) -> None:
    code = kernels.source(function)
    assert "#include" not in code
    assert tuple(KERNEL.findall(code)) == kernels.NAMES[function.code]
    for name in kernels.NAMES[function.code]:
        assert f"__launch_bounds__({hashing._THREADS[name]}) {name}(" in code


def test_where_a_batch_is_hashed() -> None:
    assert not prefers_device(BLAKE3, [])
    assert not prefers_device(BLAKE3, [MIB - 1])
    assert prefers_device(BLAKE3, [MIB // 2] * 2)
    assert not prefers_device(SHA256, [])
    assert not prefers_device(SHA256, [0] * 10_000)
    assert not prefers_device(SHA256, [MIB] * (40 * WORKERS - 1))
    assert prefers_device(SHA256, [MIB] * 40 * WORKERS)
    assert not prefers_device(SHA256, [MIB] * (40 * WORKERS - 1) + [1] * 1000)


# On a device, and on the host in the same way.


def device_digests(digests: Any) -> list[bytes]:
    return [digest.tobytes() for digest in digests.get()]


@batches
def test_a_device_finds_the_digests_of_the_host(
    device: Any, function: HashFunction, sizes: list[int]
) -> None:
    slab, offsets = scattered(sizes)
    there = device.asarray(slab)
    found = digest_slab(there, offsets, sizes, function)
    assert found.shape == (len(sizes), 32)
    assert found.dtype == np.uint8
    assert device_digests(found) == expected(function, slab, offsets, sizes)


def test_a_device_takes_blobs_of_many_slabs_on_a_stream(
    device: Any, function: HashFunction
) -> None:
    stream = device.cuda.Stream(non_blocking=True)
    slabs = [RANDOM.integers(0, 256, size, np.uint8) for size in EDGES]
    with stream:
        there = [device.asarray(slab) for slab in slabs]
        addresses = [slab.data.ptr for slab in there]
    found = digest_many(addresses, EDGES, function, stream=stream)
    stream.synchronize()
    assert device_digests(found) == [function.digest(slab) for slab in slabs]
    if isinstance(stream, HostStream):
        assert stream.launched == len(make_plan(addresses, EDGES, function).launches(0, 0, 0))


def test_a_device_is_asked_by_several_threads(device: Any, function: HashFunction) -> None:
    sizes = BATCHES["mixed"]

    def run(seed: int) -> bool:
        slab, offsets = scattered(sizes, seed)
        with device.cuda.Stream(non_blocking=True) as stream:
            found = digest_slab(device.asarray(slab), offsets, sizes, function)
            stream.synchronize()
            return device_digests(found) == expected(function, slab, offsets, sizes)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(16)))


@pytest.mark.gpu
@pytest.mark.slow
def test_a_device_hashes_past_four_gibibytes(cuda: Any) -> None:
    size, many = 64 * MIB + 5, 70
    free, _ = cuda.cuda.runtime.memGetInfo()
    if free < 1.2 * size * many:
        pytest.skip(f"the device has {free} bytes free; {size * many} are hashed here")
    slab = cuda.arange(size * many // 4 + 1, dtype=np.uint32).view(np.uint8)
    offsets = [size * number for number in range(many)]
    found = device_digests(digest_slab(slab, offsets, [size] * many, BLAKE3))
    for number in (0, 31, 32, many - 1):
        blob = slab[offsets[number] : offsets[number] + size].get()
        assert found[number] == BLAKE3.digest(blob)
