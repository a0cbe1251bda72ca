"""Buffers, byte ranges and errors as zarr-python 3 takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, cpu

from cas_zarr.errors import BlockNotFoundError, InvalidArgumentError, StorageError

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

__all__ = ["bounds_of", "no_buffer", "out_of_reach", "to_buffer"]

_BYTE = np.dtype("B")


def to_buffer(prototype: BufferPrototype, data: Any) -> Buffer:
    """Return bytes as a buffer, without a copy where that can be."""
    kind = prototype.buffer
    if kind is cpu.Buffer:  # `from_bytes` comes to the same, half a microsecond later
        return cpu.Buffer(np.frombuffer(data, _BYTE))
    return kind.from_bytes(data)


def bounds_of(byte_range: ByteRequest | None, size: int | None) -> tuple[int, int | None]:
    """Return start and stop of a request for a part of a value of so many bytes."""
    if byte_range is None:
        return 0, size
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, size
    if isinstance(byte_range, SuffixByteRequest) and size is not None:
        return max(0, size - byte_range.suffix), size
    raise InvalidArgumentError(f"Unexpected byte_range, got {byte_range}.")


def no_buffer(value: object) -> TypeError:
    """Return the error for a value that is no buffer."""
    return TypeError(
        f"CASStore.set(): `value` must be a Buffer instance. Got an instance of {type(value)} "
        "instead."
    )


def out_of_reach(error: BlockNotFoundError) -> StorageError:
    """Return the error for a value whose block is not there: zarr takes a KeyError for no key."""
    return StorageError(str(error))
