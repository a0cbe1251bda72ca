"""Results that are kept by the CIDs of the chunks that they were computed from.

A chunk whose CID did not change gives what it gave before, in any place and any version. So after
an append, or a correction, only new and changed chunks are read and computed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import CodeType
from typing import Any, Final, TypeAlias

import dask.array as da
import numpy as np
import zarr
from blake3 import blake3
from dask.base import tokenize
from numpy.typing import DTypeLike, NDArray

from cas_zarr.blocks.cache import cache_folder
from cas_zarr.dataset import Dataset
from cas_zarr.errors import InvalidArgumentError

__all__ = ["cached"]

DaskArray: TypeAlias = Any
ZarrArray: TypeAlias = "zarr.Array[Any]"
Function: TypeAlias = "Callable[[NDArray[Any]], Any]"

LIMIT: Final = 10 << 30
_DIGEST: Final = 32
_OURS = re.compile(r"[0-9a-f]{62}(\.npy|\..+\.part)")  # a result, or what a kill left of one
_LAYOUT: Final = ("data_type", "dtype", "codecs", "compressor", "filters", "fill_value", "order")


def cached(
    function: Function,
    *,
    folder: str | os.PathLike[str] | None = None,
    version: str = "",
    chunks: tuple[tuple[int, ...], ...] | None = None,
    dtype: DTypeLike | None = None,
    limit: int = LIMIT,
) -> Callable[[ZarrArray], DaskArray]:
    """Return a function of arrays that computes each distinct chunk once and remembers it.

    Parameters
    ----------
    function : callable
        Takes the values of one chunk (of one shard, where the array is sharded) and returns an
        array. It must depend on nothing else. Its code is part of the key, with its defaults and
        what it wraps; of what it calls, only the names.
    folder : path, optional
        Where results are kept; any number of processes share it. By default in the user's cache.
    version : str
        Change it where what the function calls has changed.
    chunks : tuple of tuple of int, optional
        Shapes of the results, as dask has them, where they are not those of the chunks.
    dtype : dtype, optional
        Of the results; by default found by a call with a single one.
    limit : int
        Bytes that are kept; results that were not used for longest go first.

    Returns
    -------
    callable
        Takes a `zarr.Array` of a `CASStore` and returns a dask array.

    Raises
    ------
    InvalidArgumentError
        By the callable, if the array is in another store.

    Examples
    --------
    >>> sums = cached(lambda block: block.sum(axis=0, keepdims=True))  # doctest: +SKIP
    """
    place = Path(folder) if folder is not None else cache_folder() / "derived"
    label = tokenize(function, _code_of(function), version)

    def apply(array: ZarrArray) -> DaskArray:
        if not isinstance(array.store, Dataset):
            raise InvalidArgumentError(
                f"{array.store} has no CIDs to keep results by; open the array on a CASStore"
            )
        _prune(place, limit)
        kind = dtype
        if kind is None:
            kind = np.asarray(function(np.ones((1,) * array.ndim, array.dtype))).dtype
        source = _Source(array, function, label, place, _layout_of(array))
        return da.map_blocks(
            source,
            chunks=_sides(array) if chunks is None else chunks,
            dtype=kind,
            meta=np.empty((0,) * array.ndim, kind),
            name=f"cached-{tokenize(array, label, chunks, str(kind))}",
        )

    return apply


@dataclass(frozen=True, slots=True)
class _Source:
    """Gives the result of a chunk: what was kept of it, or what the function makes of it."""

    array: ZarrArray
    function: Function
    label: str
    folder: Path
    layout: bytes

    def __call__(self, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
        array = self.array
        place = tuple(
            slice(ends[at], ends[at + 1])
            for at, ends in zip(block_id, map(_ends, _sides(array)), strict=True)
        )
        shape = tuple(side.stop - side.start for side in place)
        file = self._file(block_id, shape)
        kept = _read(file)
        if kept is not None:
            return kept
        result = np.asarray(self.function(np.asarray(array[place])))
        if file == self._file(block_id, shape):  # else it was written to meanwhile
            _write(file, result)
        return result

    def _file(self, place: tuple[int, ...], shape: tuple[int, ...]) -> Path:
        store: Any = self.array.store
        name = self.array.metadata.encode_chunk_key(place)
        cid = store.mapping.cid_of(f"{self.array.path}/{name}".lstrip("/"))
        key = blake3(self.label.encode())
        for part in (self.layout, repr(shape).encode(), cid or b"the fill value"):
            key.update(len(part).to_bytes(8, "little") + part)
        digest = key.hexdigest()
        return self.folder / digest[:2] / f"{digest[2:]}.npy"


def _layout_of(array: ZarrArray) -> bytes:
    """Return what in its metadata decides what the bytes of a chunk mean."""
    document = array.metadata.to_dict()
    known = {name: document[name] for name in _LAYOUT if name in document}
    return repr((sorted(known.items()), array.shards or array.chunks)).encode()


def _sides(array: ZarrArray) -> tuple[tuple[int, ...], ...]:
    grid = array.shards or array.chunks
    return tuple(
        tuple(min(side, length - start) for start in range(0, length, side)) or (0,)
        for length, side in zip(array.shape, grid, strict=True)
    )


def _ends(lengths: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(lengths).tolist()]


def _code_of(function: Function) -> object:
    """Return the code of a function, which its name does not tell, and of what it wraps."""
    found: list[object] = []
    pending: list[object] = [function]
    seen: list[object] = []
    while pending:
        one = pending.pop()
        if any(one is other for other in seen):
            continue
        seen.append(one)
        code = getattr(one, "__code__", None)
        if isinstance(code, CodeType):
            found += [_parts_of(code), getattr(one, "__kwdefaults__", None)]
        for cell in getattr(one, "__closure__", None) or ():
            with suppress(ValueError):  # it is empty yet
                pending.append(cell.cell_contents)
        pending += getattr(one, "__defaults__", None) or ()
        pending += [getattr(one, name, None) for name in ("func", "__wrapped__")]
        if not callable(one):
            found.append(one)
    return found


def _parts_of(code: CodeType) -> tuple[object, ...]:
    constants = [_parts_of(it) if isinstance(it, CodeType) else it for it in code.co_consts]
    return code.co_code, code.co_names, constants


# -- files -----------------------------------------------------------------------------------------


def _read(file: Path) -> NDArray[Any] | None:
    """Return a result that was kept and is whole."""
    try:
        data = file.read_bytes()
        if blake3(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        with suppress(OSError):
            os.utime(file)
        return np.load(BytesIO(data[_DIGEST:]), allow_pickle=False)
    except (OSError, ValueError):
        return None


def _write(file: Path, result: NDArray[Any]) -> None:
    """Keep a result where that can be done: it can be computed again."""
    if result.dtype.hasobject:  # it would have to be pickled
        return
    buffer = BytesIO()
    np.save(buffer, result, allow_pickle=False)
    data = buffer.getvalue()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            dir=file.parent, prefix=f"{file.stem}.", suffix=".part", delete=False
        ) as part:
            try:
                part.write(blake3(data).digest() + data)
                part.close()
                os.replace(part.name, file)
            except BaseException:
                os.unlink(part.name)
                raise


def _prune(folder: Path, limit: int) -> None:
    """Delete what was not used for longest, once there is too much; only what was kept here."""
    found = []
    for file in folder.glob("[0-9a-f][0-9a-f]/*"):
        if _OURS.fullmatch(file.name) is None:
            continue
        with suppress(OSError):
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    left = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if left <= limit:
            return
        with suppress(OSError):
            file.unlink()
        left -= size
