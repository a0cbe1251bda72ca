"""Where a large value is cut into leaves: at each MiB, or at the inner chunks of a Zarr shard.

A shard is a value that holds many chunks and, at its start or end, an index of their offsets and
sizes. Cut where these chunks begin and end, two shards that share some of them share their
blocks, and one chunk can be read and verified without its neighbours. The cuts follow from the
bytes of the value and of the array's ``zarr.json`` alone. They matter to whoever writes; a reader
finds the sizes of the leaves in the file.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any, Literal

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import BytesLike
from cas_zarr.codecs.dagjson import MAX_DEPTH, fits_depth
from cas_zarr.codecs.unixfs import LEAF_SIZE

__all__ = [
    "MIN_MEAN_PIECE",
    "ShardLayout",
    "cut_points",
    "cut_points_by",
    "index_start",
    "missing_chunks",
    "parse_index",
    "parse_layout",
]

MIN_MEAN_PIECE = 8 * 1024
"""Mean size of the pieces of a shard, in bytes, below which it is cut as any other value."""

_MISSING = 2**64 - 1  # offset and size of an inner chunk that is not there
_ENTRY_SIZE = 16
_CRC_SIZE = 4
_MAX_DIMENSIONS = 32
_MAX_INT_DIGITS = 18
_ENDIANS: dict[Any, Literal["<", ">"]] = {"little": "<", "big": ">"}


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Where the index of a shard is, and how to read it.

    Attributes
    ----------
    chunks : int
        Number of inner chunks, and so of entries in the index.
    index_size : int
        Bytes of the index, its checksum included.
    location : {"start", "end"}
        The end of the shard that the index is at.
    crc32c : bool
        Whether the index ends with a CRC-32C of what comes before, little-endian.
    byte_order : {"<", ">"}
        Of the unsigned integers of 64 bits in the index, as NumPy writes it.
    shape, inner_shape : tuple of int
        Elements of a shard and of an inner chunk along each axis. Nothing is cut by them, so
        layouts that differ in them alone are equal.
    """

    chunks: int
    index_size: int
    location: Literal["start", "end"]
    crc32c: bool
    byte_order: Literal["<", ">"]
    shape: tuple[int, ...] = field(default=(), compare=False)
    inner_shape: tuple[int, ...] = field(default=(), compare=False)


def parse_layout(zarr_json: BytesLike) -> ShardLayout | None:
    """Return the layout of the shards of an array, or None if it has none that is known.

    Parameters
    ----------
    zarr_json : bytes-like
        The document of the array. Whatever is in it, this does not raise.

    Returns
    -------
    ShardLayout or None
        None unless the node is an array on a regular grid whose last codec is
        ``sharding_indexed`` with index codecs ``bytes`` and perhaps ``crc32c``, and whose chunks
        are a whole number of inner chunks.
    """
    document = _parse_json(bytes(zarr_json))
    if not isinstance(document, dict) or document.get("node_type") != "array":
        return None
    grid, codecs = document.get("chunk_grid"), document.get("codecs")
    if _name(grid) != "regular" or not isinstance(codecs, list) or not codecs:
        return None
    if _name(codecs[-1]) != "sharding_indexed":
        return None
    sharding = _configuration(codecs[-1])
    shapes = _configuration(grid).get("chunk_shape"), sharding.get("chunk_shape")
    shard, inner = map(_elements, shapes)
    location = sharding.get("index_location", "end")
    index = _parse_index_codecs(sharding.get("index_codecs"))
    if shard is None or inner is None or index is None or location not in ("start", "end"):
        return None
    chunks, rest = divmod(shard, inner)
    if rest:
        return None
    byte_order, crc32c = index
    size = chunks * _ENTRY_SIZE + (_CRC_SIZE if crc32c else 0)
    outer, inner_shape = (tuple(shape or ()) for shape in shapes)
    return ShardLayout(chunks, size, location, crc32c, byte_order, outer, inner_shape)


def cut_points(value: BytesLike, layout: ShardLayout | None) -> list[int]:
    """Return where the leaves of a value begin and end, as ascending offsets from 0 to its length.

    A value of up to 1 MiB is one leaf. A larger one is cut at each MiB; one of an array with
    shards at the offsets and ends of its inner chunks and of its index, and each piece over 1 MiB
    again at each MiB from its start, unless the index is bad (bounds, overlap, checksum) or the
    pieces are small.

    Parameters
    ----------
    value : bytes-like
        The whole value, contiguous.
    layout : ShardLayout or None
        What `parse_layout` says of its array.

    Returns
    -------
    list of int
        The borders, in bytes: ``[0]`` for an empty value, otherwise 0, every cut, the length.
    """
    view = memoryview(value).cast("B")
    return cut_points_by(lambda start, stop: view[start:stop], len(view), layout)


def cut_points_by(
    read: Callable[[int, int], BytesLike], length: int, layout: ShardLayout | None
) -> list[int]:
    """Return where the leaves of a value begin and end that need not lie in memory.

    Parameters
    ----------
    read : callable
        Returns the bytes from one offset up to another: it is asked for the index, if at all.
    length : int
        Bytes of the value.
    layout : ShardLayout or None

    Returns
    -------
    list of int
        As of `cut_points`.
    """
    if length <= LEAF_SIZE:
        return [0, length] if length else [0]
    borders = None if layout is None else _chunk_borders(read, length, layout)
    if borders is None or length < MIN_MEAN_PIECE * (len(borders) - 1):
        borders = [0, length]
    cuts: list[int] = []
    for start, end in pairwise(borders):
        cuts.extend(range(start, end, LEAF_SIZE))
    cuts.append(length)
    return cuts


def index_start(length: int, layout: ShardLayout) -> int:
    """Return where the index of a shard of so many bytes begins."""
    return 0 if layout.location == "start" else length - layout.index_size


def parse_index(index: BytesLike, layout: ShardLayout) -> NDArray[np.uint64] | None:
    """Return the offsets and sizes of inner chunks that an index has, None if its checksum fails.

    Parameters
    ----------
    index : bytes-like
        The bytes of the index, its checksum included.
    layout : ShardLayout

    Returns
    -------
    array of uint64, shape (chunks, 2), or None
        In C order of the inner chunks; see `missing_chunks`. Nothing says that they are true.
    """
    if layout.crc32c:
        index, checksum = index[:-_CRC_SIZE], index[-_CRC_SIZE:]
        if google_crc32c.value(bytes(index)) != int.from_bytes(checksum, "little"):
            return None
    return np.frombuffer(index, dtype=f"{layout.byte_order}u8").reshape(-1, 2)


def missing_chunks(entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell which entries of an index stand for inner chunks that are not there."""
    missing: NDArray[np.bool_] = (entries == _MISSING).all(axis=1)
    return missing


def _chunk_borders(
    read: Callable[[int, int], BytesLike], length: int, layout: ShardLayout
) -> list[int] | None:
    """Return the offsets and ends of the inner chunks and of the index, or None if it is bad."""
    size = layout.index_size
    if size > length:
        return None
    at = index_start(length, layout)
    low, high = (size, length) if at == 0 else (0, at)  # where chunks may lie
    entries = parse_index(read(at, at + size), layout)
    if entries is None:
        return None
    present = entries[~missing_chunks(entries)]
    # Compared before they are added: the sum of two could wrap.
    if (present > length).any():
        return None
    chunks: NDArray[np.int64] = present.astype(np.int64)
    chunks[:, 1] += chunks[:, 0]
    if (chunks[:, 0] < low).any() or (chunks[:, 1] > high).any():
        return None
    chunks = chunks[np.lexsort((chunks[:, 1], chunks[:, 0]))]
    if (chunks[1:, 0] < chunks[:-1, 1]).any():
        return None
    borders: list[int] = np.unique(np.append(chunks, (0, at, at + size, length))).tolist()
    return borders


def _parse_json(data: bytes) -> Any:
    """Parse JSON as leniently as Zarr does; None if it cannot be, or is nested absurdly."""
    if not fits_depth(data, MAX_DEPTH):
        return None
    try:
        return json.loads(data.decode("utf-8"), parse_int=_parse_int)
    except ValueError:  # not utf-8 or not json
        return None


def _parse_int(text: str) -> int:
    return int(text) if len(text) <= _MAX_INT_DIGITS else 0  # which no chunk shape may have


def _name(extension: Any) -> Any:
    """Return the name of a grid or codec, which is an object or, without options, a string."""
    return extension.get("name") if isinstance(extension, dict) else extension


def _configuration(extension: Any) -> dict[str, Any]:
    found = extension.get("configuration") if isinstance(extension, dict) else None
    return found if isinstance(found, dict) else {}


def _elements(shape: Any) -> int | None:
    """Return how many elements a chunk shape has, or None if it is none."""
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        return None
    if not all(type(extent) is int and extent > 0 for extent in shape):
        return None
    return prod(shape)


def _parse_index_codecs(codecs: Any) -> tuple[Literal["<", ">"], bool] | None:
    """Return byte order and presence of a checksum, or None for another chain of codecs."""
    if not isinstance(codecs, list) or [_name(codec) for codec in codecs] not in (
        ["bytes"],
        ["bytes", "crc32c"],
    ):
        return None
    endian = _configuration(codecs[0]).get("endian")
    byte_order = _ENDIANS.get(endian) if isinstance(endian, str) else None
    return None if byte_order is None else (byte_order, len(codecs) == 2)
