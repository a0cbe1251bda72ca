"""Single chunks as NumPy arrays, decoded and encoded by zarr itself.

It is what lets a conflict be resolved by a function of three arrays. A store in memory holds the
documents of the array and one chunk, and zarr reads or writes that block, so every codec, data
type and chunk grid that zarr knows is known here too.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.codecs.shardindex import parse_layout
from cas_zarr.errors import (
    ConflictError,
    FormatError,
    InvalidArgumentError,
    MissingDependencyError,
)
from cas_zarr.tree.conflicts import Choice, Conflict, Resolver
from cas_zarr.tree.keys import chunk_names, parse_form
from cas_zarr.tree.node import Value
from cas_zarr.tree.values import read_value, write_value
from cas_zarr.tree.view import TreeView

__all__ = ["ArrayFunction", "by_arrays", "decode_chunk", "documents_of", "encode_chunk", "widest"]

ArrayFunction: TypeAlias = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], Any]
"""What makes one chunk of three: of the common version, ours and theirs."""

Documents: TypeAlias = Mapping[str, bytes]

# What zarr and the codecs raise for bytes that are not what the metadata say.
_FAILURES = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    ImportError,
    OSError,
    EOFError,
    MemoryError,
    zlib.error,
)


def documents_of(view: TreeView, path: str, kind: str) -> dict[str, bytes] | None:
    """Return the documents by which zarr reads the chunks of an array.

    Parameters
    ----------
    view : TreeView
    path : str
        The array.
    kind : str
        Kind of its chunk keys, as ``c/``; it tells the formats apart where an array has both.

    Returns
    -------
    dict of str to bytes, or None
        The `zarr.json`, or the `.zarray`; None if there is no array.
    """
    node = view.node(path)
    if node is None:
        return None
    names = (".zarray", "zarr.json") if kind in (".", "/") else ("zarr.json",)
    for name in names:
        if name in node.docs:
            return {name: view.document_bytes(node.docs[name])}
    return None


def decode_chunk(
    documents: Documents, kind: str, coordinates: Sequence[int], data: bytes | None
) -> NDArray[Any]:
    """Decode a chunk, as far as it lies in the array's shape.

    Parameters
    ----------
    documents : mapping of str to bytes
        The array's `zarr.json` or `.zarray`.
    kind : str
        Kind of its chunk keys, as ``c/``.
    coordinates : sequence of int
        Its place in the grid of chunks.
    data : bytes or None
        The value; without one the array has the fill value.

    Raises
    ------
    FormatError
        If zarr cannot read it.
    """
    key = _key(kind, coordinates)
    held = dict(documents) if data is None else {**documents, key: data}
    array, place = _open(_in_memory(held), key, coordinates)
    try:
        with _quiet():
            return np.array(array.get_block_selection(place))
    except _FAILURES as error:
        raise _unreadable(key, error) from error


def encode_chunk(
    documents: Documents, kind: str, coordinates: Sequence[int], array: Any
) -> bytes | None:
    """Encode a chunk as zarr would store it.

    Parameters
    ----------
    documents, kind, coordinates
        As for `decode_chunk`.
    array : array_like
        Its values; of the shape that `decode_chunk` gives, or one that broadcasts to it.

    Returns
    -------
    bytes or None
        The value; None where zarr stores none, since all is the fill value.

    Raises
    ------
    InvalidArgumentError
        If the array has another shape, or a type that does not fit.
    """
    key = _key(kind, coordinates)
    held = _in_memory(documents)
    target, place = _open(held, key, coordinates, writable=True)
    before = decode_chunk(documents, kind, coordinates, None)
    found = np.asarray(array)
    try:
        whole = np.broadcast_to(found, before.shape)
    except ValueError:
        raise InvalidArgumentError(
            f"chunk {key!r} has the shape {before.shape}, and an array of {found.shape} was made "
            "for it; return an array of the shape of those that were given"
        ) from None
    if "O" not in found.dtype.char + before.dtype.char:
        try:
            whole = whole.astype(before.dtype, casting="same_kind")
        except TypeError:
            raise InvalidArgumentError(
                f"chunk {key!r} has the type {before.dtype}, and an array of {found.dtype} was "
                "made for it; convert it where that is meant"
            ) from None
    try:
        with _quiet():
            target.set_block_selection(place, np.array(whole))
    except _FAILURES as error:
        raise FormatError(f"zarr cannot write chunk {key!r}: {error}") from error
    buffer = held.get(key)
    return None if buffer is None else bytes(buffer.to_bytes())


def by_arrays(
    function: ArrayFunction, base: TreeView, ours: TreeView, theirs: TreeView
) -> Resolver:
    """Make a resolver for `cas_zarr.tree.merge` of a function of three arrays.

    Parameters
    ----------
    function : callable
        Gets a chunk as it is in `base`, `ours` and `theirs` and returns what it shall be. The
        arrays have one shape, that of the chunk as far as it lies in the array. A version that
        has no such chunk, or has the array in another grid, gives the fill value.
    base, ours, theirs : TreeView
        What is merged; what the function makes is written to the block store of `ours`.

    Raises
    ------
    ConflictError
        By the resolver, for what is no chunk.
    """
    views = (base, ours, theirs)

    def resolve(conflict: Conflict) -> Choice:
        if conflict.kind != "chunk" or conflict.coordinates is None:
            raise ConflictError(
                f"{conflict.reason}; a function of three arrays resolves only chunks", [conflict]
            )
        kind, place = parse_form(conflict.name)[0], conflict.coordinates
        found = widest([documents_of(view, conflict.path, kind) for view in views])
        # The layout is the one that a side has changed it to, or that of all.
        layout = found[1] if found[2] in (None, found[0]) else found[2]
        if layout is None:
            raise ConflictError(f"{conflict.reason}; there is no array to read it by", [conflict])
        blank = decode_chunk(layout, kind, place, None)
        arrays = []
        for view, documents, value in zip(
            views, found, (conflict.base, conflict.ours, conflict.theirs), strict=True
        ):
            array = blank
            if documents is not None and isinstance(value, Value):
                held = bytes(read_value(view.reader, value.cid, value.size))
                array = decode_chunk(documents, kind, place, held)
            arrays.append(array if array.shape == blank.shape else blank.copy())
        data = encode_chunk(layout, kind, place, function(*arrays))
        if data is None:
            return None
        blocks, header = ours.reader.blocks, ours.root.header
        cuts = parse_layout(layout["zarr.json"]) if "zarr.json" in layout else None
        return Value(write_value(blocks, header.function, data, cuts), len(data))

    return resolve


def widest(documents: Sequence[Documents | None]) -> list[Documents | None]:
    """Return the documents of one array with one shape, the largest of each dimension.

    A version that resized the array sees a chunk at its edge cut off elsewhere than another
    version does; with one shape the three arrays of a conflict have one shape too.
    """
    parsed = [None if found is None else _parse(found) for found in documents]
    shapes = {tuple(value["shape"]) for _, value in filter(None, parsed)}
    if len(shapes) < 2 or len({len(shape) for shape in shapes}) > 1:
        return list(documents)
    shape = [max(lengths) for lengths in zip(*shapes, strict=True)]
    return [
        None if found is None else {found[0]: json.dumps({**found[1], "shape": shape}).encode()}
        for found in parsed
    ]


def _parse(documents: Documents) -> tuple[str, dict[str, Any]]:
    ((name, data),) = documents.items()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    shape = value.get("shape") if isinstance(value, dict) else None
    if not isinstance(shape, list) or any(type(length) is not int for length in shape):
        raise FormatError(f"{name} of the array is none that zarr reads; set it anew")
    return name, value


def _key(kind: str, coordinates: Sequence[int]) -> str:
    return chunk_names(kind, np.array([coordinates], np.int64).reshape(1, -1))[0]


def _in_memory(values: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what a store of zarr in memory holds."""
    try:
        from zarr.core.buffer import cpu
    except ImportError:
        raise MissingDependencyError(
            "arrays are decoded by zarr >= 3.1; install it, or resolve with 'ours' or 'theirs'"
        ) from None
    return {name: cpu.Buffer.from_bytes(data) for name, data in values.items()}


def _open(
    held: dict[str, Any], key: str, coordinates: Sequence[int], *, writable: bool = False
) -> tuple[Any, tuple[int, ...]]:
    """Return the array in a store, and the place of a chunk in its grid."""
    import zarr
    from zarr.storage import MemoryStore

    try:
        with _quiet():
            array = zarr.open_array(
                store=MemoryStore(held),
                mode="r+" if writable else "r",
                zarr_format=3 if "zarr.json" in held else 2,
            )
            # The key "0" of an array of format 2 without dimensions reads like that of one with.
            place = tuple(coordinates) if array.ndim else ()
            name = array.metadata.encode_chunk_key(place)
    except _FAILURES as error:
        raise _unreadable(key, error) from error
    if name != key:
        raise FormatError(
            f"chunk {key!r} is not where the array has its chunks, which would be {name!r}"
        )
    return array, place


def _quiet() -> warnings.catch_warnings[None]:
    # What zarr warns of, it has said to whoever made and opened the array.
    return warnings.catch_warnings(action="ignore")


def _unreadable(key: str, error: BaseException) -> FormatError:
    return FormatError(f"zarr cannot read chunk {key!r}: {error}")
