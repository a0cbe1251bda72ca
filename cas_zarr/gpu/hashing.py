"""Digests of many blobs that lie in the memory of a GPU.

A blob is any run of bytes there: an encoded chunk, a leaf of a value over 1 MiB, a block that was
read. What is launched on which of them is a `Plan`: NumPy alone, so it is the same for a device and
for tests that have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import BLAKE3, DIGEST_SIZE, SHA256, HashFunction
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.gpu.kernels import Launch, cupy, firsts_of, launch
from cas_zarr.gpu.memory import allocated, halving
from cas_zarr.parallel import WORKERS

__all__ = ["Plan", "digest_many", "digest_slab", "make_plan", "prefers_device"]

Integers: TypeAlias = "NDArray[np.integer[Any]] | Sequence[int]"

LEAF = 1024
"""Bytes of a leaf of BLAKE3."""

# Threads of a block, also named in the sources. With SHA-256 a warp is alone in its block: while
# there are few blobs, each then has a multiprocessor to itself.
_THREADS = {"blake3_leaves": 128, "blake3_parents": 128, "sha256_blobs": 32}

# From where on a device is taken to be faster than copying to the host and hashing there: reckoned
# for an H100, not measured. A plan and its launches take about as long as the host takes for 1 MiB,
# and a core hashes SHA-256 as fast as 40 threads that have a scheduler to themselves.
_BLAKE3_BYTES = 1 << 20
_SHA256_BLOBS_A_CORE = 40


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How the digests of a batch are computed.

    Attributes
    ----------
    function : HashFunction
    blobs : int
    leaves : int
        Leaves of all blobs (BLAKE3; 0 with SHA-256).
    slots : int
        Places for the chaining values of leaves, of 32 bytes each. A tree of more than one leaf has
        as many as a full one of its height.
    levels : tuple of (int, int)
        For each level of the trees, from below: threads, and blobs that reach above it.
    table : array of int64
        What the kernels look up, the largest blob first: addresses, sizes, rows of the digests, and
        with BLAKE3 where the leaves and the slots of each blob begin, and where the last ones end.
    """

    function: HashFunction
    blobs: int
    leaves: int
    slots: int
    levels: tuple[tuple[int, int], ...]
    table: NDArray[np.int64]

    @property
    def scratch(self) -> int:
        """Bytes of memory that are needed from the first launch to the last."""
        return DIGEST_SIZE * self.slots

    def launches(self, table: int, scratch: int, digests: int) -> list[Launch]:
        """Return what to launch, one after the other.

        Parameters
        ----------
        table, scratch, digests : int
            Addresses, multiples of 16: of a copy of `table`, of `scratch` bytes, and of 32 bytes a
            blob, which receive the digests in the order that the blobs were given in.
        """
        if not self.blobs:
            return []
        column = self.blobs * self.table.itemsize
        addresses, sizes, rows, firsts = (table + column * number for number in range(4))
        slots = firsts + column + self.table.itemsize
        blobs = (addresses, sizes, rows)
        if self.function == SHA256:
            return [_over("sha256_blobs", self.blobs, *blobs, digests)]
        trees = (firsts, slots)
        parents = (
            _over("blake3_parents", threads, count, rows, *trees, level, scratch, digests)
            for level, (threads, count) in enumerate(self.levels)
        )
        leaves = (self.leaves, self.blobs, *blobs, *trees, scratch, digests)
        return [_over("blake3_leaves", *leaves), *parents]


def make_plan(addresses: Integers, sizes: Integers, function: HashFunction) -> Plan:
    """Plan the digests of a batch of blobs.

    Parameters
    ----------
    addresses, sizes : sequence of int
        Where each blob begins in the memory of the device, at any alignment, and its bytes.
    function : HashFunction
        BLAKE3 or SHA-256.

    Raises
    ------
    InvalidArgumentError
        If there are not as many addresses as sizes, one is negative or no integer, or the hash
        function has no kernel.
    """
    begins, counts = _integers(addresses, "addresses"), _integers(sizes, "sizes")
    if len(begins) != len(counts):
        raise InvalidArgumentError(
            f"a batch has {len(begins)} addresses and {len(counts)} sizes; give one of each a blob"
        )
    if function not in (BLAKE3, SHA256):
        raise InvalidArgumentError(f"no kernel hashes with {function.name}; use blake3 or sha2-256")
    rows = np.argsort(-counts, kind="stable")
    columns = [begins[rows], counts[rows], rows]
    if function == SHA256:
        return Plan(function, len(rows), 0, 0, (), np.concatenate(columns))
    leaves = np.maximum(-(-columns[1] // LEAF), 1)  # an empty blob has one leaf, too
    height = np.frexp(leaves - 1)[1].astype(np.int64)
    firsts, slots = firsts_of(leaves), firsts_of((leaves > 1) << height)
    above = np.arange(height.max(initial=0))
    reaching = len(rows) - np.searchsorted(height[::-1], above, side="right")
    levels = zip((slots[reaching] >> (above + 1)).tolist(), reaching.tolist(), strict=True)
    return Plan(
        function=function,
        blobs=len(rows),
        leaves=int(firsts[-1]),
        slots=int(slots[-1]),
        levels=tuple(levels),
        table=np.concatenate([*columns, firsts, slots]),
    )


def digest_many(
    addresses: Integers, sizes: Integers, function: HashFunction, *, stream: Any = None
) -> Any:
    """Hash many blobs on the current device.

    Parameters
    ----------
    addresses, sizes : sequence of int, on the host
        Where each blob begins in the memory of the device, at any alignment, and its bytes. Memory
        is read in whole words of four bytes that hold bytes of a blob.
    function : HashFunction
        BLAKE3 or SHA-256.
    stream : cupy.cuda.Stream, optional
        Where to launch; by default the current one.

    Returns
    -------
    cupy.ndarray of uint8, shape (blobs, 32)
        The digests. They are there once the stream has come so far; until then the blobs stay as
        they are, and allocated. Nothing is waited for.

    Raises
    ------
    InvalidArgumentError
        See `make_plan`.
    MissingDependencyError
        If CuPy is not installed.
    DeviceMemoryError
        If there is not even memory to hash one blob after the other.
    """
    whole = make_plan(addresses, sizes, function)
    array = cupy()

    def hash_rows(rows: Sequence[int]) -> Sequence[int]:
        part = slice(rows[0], rows[-1] + 1)
        plan = whole
        if len(rows) < whole.blobs:
            plan = make_plan(addresses[part], sizes[part], function)
        table = array.asarray(plan.table)
        scratch = array.empty(plan.scratch, array.uint8)
        found = digests.data.ptr + DIGEST_SIZE * rows[0]
        launch(function, plan.launches(table.data.ptr, scratch.data.ptr, found))
        return rows

    with stream or array.cuda.get_current_stream():
        digests = allocated(lambda: array.empty((whole.blobs, DIGEST_SIZE), array.uint8))
        if whole.blobs:
            halving(hash_rows, range(whole.blobs))
    return digests


def digest_slab(
    slab: Any, offsets: Integers, sizes: Integers, function: HashFunction, *, stream: Any = None
) -> Any:
    """Hash many blobs of one slab; see `digest_many`.

    Parameters
    ----------
    slab : cupy.ndarray
        Contiguous memory of the current device.
    offsets, sizes : sequence of int, on the host
        Where each blob begins in the slab, and its bytes.
    function : HashFunction
    stream : cupy.cuda.Stream, optional

    Raises
    ------
    InvalidArgumentError
        Also if a blob does not lie within the slab.
    """
    begins, counts = _integers(offsets, "offsets"), _integers(sizes, "sizes")
    if len(begins) == len(counts) and np.any(counts > slab.nbytes - begins):
        row = int(np.argmax(counts > slab.nbytes - begins))
        raise InvalidArgumentError(
            f"blob {row} has {counts[row]} bytes from {begins[row]} on, in a slab of {slab.nbytes} "
            "bytes; give offsets and sizes within it"
        )
    return digest_many(begins + slab.data.ptr, counts, function, stream=stream)


def prefers_device(function: HashFunction, sizes: Integers) -> bool:
    """Tell whether a batch that lies on a device had better be hashed there than on the host.

    BLAKE3 has a thread for each KiB, so a device wins unless the batch is tiny. SHA-256 has one for
    each blob, so it takes as many blobs as outweigh the cores of the host. Blobs of uneven sizes
    count as many as would come to the same if all were as long as the longest.
    """
    counts = _integers(sizes, "sizes")
    total = int(counts.sum())
    if function == BLAKE3:
        return total >= _BLAKE3_BYTES
    return total >= _SHA256_BLOBS_A_CORE * WORKERS * max(int(counts.max(initial=0)), 1)


def _over(kernel: str, *arguments: int) -> Launch:
    return Launch.over(kernel, _THREADS[kernel], *arguments)


def _integers(values: Integers, name: str) -> NDArray[np.int64]:
    try:
        given = np.asarray(values)
        found = given.astype(np.int64, casting="same_kind" if given.size else "unsafe")
    except (OverflowError, TypeError, ValueError):
        found = np.full(1, -1)
    if found.ndim != 1 or found.min(initial=0) < 0:
        raise InvalidArgumentError(
            f"the {name} of a batch are not a row of integers from 0 to 2^63"
        )
    return found
