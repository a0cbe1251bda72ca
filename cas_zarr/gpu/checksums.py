"""Adler-32 of many blobs that lie in the memory of a GPU, for streams of zlib."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cas_zarr.gpu.kernels import Launch, cupy, firsts_of, launch

__all__ = ["Checksums", "plan_checksums", "write_checksums"]

_PIECE = 2048  # also in the source, as are the threads of a block
_THREADS = {"adler32_pieces": 128, "adler32_blobs": 32}


@dataclass(frozen=True, slots=True, eq=False)
class Checksums:
    """How the checksums of a batch are computed.

    Attributes
    ----------
    blobs, pieces : int
    table : array of int64
        What the kernels look up: addresses, sizes, targets, and the first piece of each blob and of
        what is behind the last.
    """

    blobs: int
    pieces: int
    table: NDArray[np.int64]

    @property
    def scratch(self) -> int:
        """Bytes of memory that are needed from the first launch to the last."""
        return 8 * self.pieces

    def launches(self, table: int, scratch: int) -> list[Launch]:
        """Return what to launch, with the addresses of a copy of `table` and of the scratch."""
        addresses, sizes, targets, firsts = (table + 8 * self.blobs * row for row in range(4))
        kernels = {
            "adler32_pieces": (self.pieces, self.blobs, addresses, sizes, firsts, scratch),
            "adler32_blobs": (self.blobs, sizes, firsts, scratch, targets),
        }
        return [Launch.over(name, _THREADS[name], *each) for name, each in kernels.items()]


def plan_checksums(
    addresses: NDArray[np.int64], sizes: NDArray[np.int64], targets: NDArray[np.int64]
) -> Checksums:
    """Plan the checksums of a batch of blobs.

    Parameters
    ----------
    addresses, sizes : array of int64
        Where each blob begins in the memory of the device, and its bytes, at least 1.
    targets : array of int64
        Where the four bytes of each checksum are written, the high one first.
    """
    firsts = firsts_of(-(-sizes // _PIECE))
    return Checksums(
        len(sizes), int(firsts[-1]), np.concatenate([addresses, sizes, targets, firsts])
    )


def write_checksums(
    addresses: NDArray[np.int64], sizes: NDArray[np.int64], targets: NDArray[np.int64]
) -> None:
    """Write the Adler-32 of blobs of the current device to where they are wanted there.

    See `plan_checksums`. Nothing is waited for.
    """
    if not len(sizes):
        return
    array = cupy()
    plan = plan_checksums(addresses, sizes, targets)
    table, scratch = array.asarray(plan.table), array.empty(plan.scratch, array.uint8)
    launch("adler32", plan.launches(table.data.ptr, scratch.data.ptr))
