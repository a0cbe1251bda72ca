"""Buffers, byte ranges and errors as zarr-python 3 takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, cpu

from cas_zarr.cid import hash_by_name
from cas_zarr.codecs.unixfs import LEAF_SIZE
from cas_zarr.errors import BlockNotFoundError, InvalidArgumentError, StorageError
from cas_zarr.tree.changes import is_document
from cas_zarr.tree.keys import check_key
from cas_zarr.tree.node import Value
from cas_zarr.tree.values import MAX_VALUE_SIZE

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from cas_zarr.mapping import CASMapping

__all__ = [
    "CPU_BUFFER",
    "bounds_of",
    "later",
    "no_buffer",
    "out_of_reach",
    "set_carried",
    "to_buffer",
]

CPU_BUFFER = cpu.Buffer

_BYTE = np.dtype("B")


def to_buffer(prototype: BufferPrototype, data: Any) -> Buffer:
    """Return verified bytes as a buffer, without a copy where that can be."""
    kind = prototype.buffer
    if kind is cpu.Buffer:  # `from_bytes` comes to the same, half a microsecond later
        return cpu.Buffer(np.frombuffer(data, _BYTE))
    make: Callable[[Any], Buffer] = getattr(kind, "from_verified", kind.from_bytes)
    return make(data)


def later(prototype: BufferPrototype, mapping: CASMapping, key: str) -> Buffer | None:
    """Return the value of a key as a buffer that reads it when it is asked for, or None.

    That is for buffers with a class method `from_value`; None is also returned where there is no
    value, and for documents.
    """
    make = getattr(prototype.buffer, "from_value", None)
    if make is None:
        return None
    value = mapping.find(key)
    return make(mapping.reader, value) if isinstance(value, Value) else None


def set_carried(mapping: CASMapping, key: str, carried: Any) -> bool:
    """Bind a key to a value that the batch it came in hashes and hands to the block store.

    Parameters
    ----------
    mapping : CASMapping
    key : str
    carried : cas_zarr.gpu.batches.Carried
        What a buffer has as `carried`.

    Returns
    -------
    bool
        False where nothing was done and the mapping must take the bytes: for documents, and values
        that are too large.
    """
    if mapping.read_only or carried.size > MAX_VALUE_SIZE:
        return False
    check_key(key)
    if is_document(key):
        return False
    layout = mapping.layout_now(key) if carried.size > LEAF_SIZE else None
    cid = carried.store(mapping.blocks, hash_by_name(mapping.hash), layout)
    mapping.bind(key, cid, carried.size, layout)
    return True


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
