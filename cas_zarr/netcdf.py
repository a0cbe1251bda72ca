"""Import of a netCDF file as chunked Zarr, value for value.

xarray writes the metadata, so what it reads back is what it would have read from the file; the
values are copied as they are stored, neither masked nor scaled nor taken for times. The default
codec is Zstandard in one thread, which gives equal bytes for equal data, so that chunks that two
files share are stored once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from cas_zarr.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    NotFoundError,
    StorageError,
)
from cas_zarr.repository.imports import ImportReport, Progress, require_room
from cas_zarr.repository.session import Session
from cas_zarr.store import CASStore
from cas_zarr.tree.keys import check_key

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DEFAULT_CODEC", "import_netcdf", "parse_codec"]

DEFAULT_CODEC = "zstd:3"

_CHUNK_BYTES = 1 << 20  # a value of at most 1 MiB is one block
_SLAB_BYTES = 32 << 20
_FLUSH_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Codec:
    """How chunks are compressed: Zstandard at a level, or not at all (None)."""

    level: int | None

    def compressors(self, zarr_format: int) -> Any:
        """Return what zarr takes as the encoding ``compressors``."""
        if self.level is None:
            return None
        if zarr_format == 2:
            import numcodecs

            return numcodecs.Zstd(level=self.level)
        from zarr.codecs import ZstdCodec

        return (ZstdCodec(level=self.level, checksum=False),)


def parse_codec(text: str) -> Codec:
    """Read the name of a codec: ``zstd``, ``zstd:LEVEL`` (1 to 22) or ``none``."""
    name, _, level = text.partition(":")
    if name == "none" and not level:
        return Codec(None)
    if name == "zstd" and (not level or (level.isdecimal() and 1 <= int(level) <= 22)):
        return Codec(int(level) if level else 3)
    raise InvalidArgumentError(
        f"codec {text!r} is not known; use zstd, zstd:1 to zstd:22, or none (codecs whose output "
        "depends on threads or time would break dedupe)"
    )


def import_netcdf(
    source: str | os.PathLike[str],
    session: Session,
    *,
    path: str = "",
    chunks: Mapping[str, int] | None = None,
    codec: str = DEFAULT_CODEC,
    zarr_format: int = 3,
    replace: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Write a netCDF file into a session as a Zarr group.

    Afterwards the group at `path` holds exactly what the file holds; groups inside the file become
    groups below it. What was written is made durable after each GiB, and shown to
    others at the end; if it fails, `Session.discard` drops it.

    Parameters
    ----------
    source : str or path
        A local netCDF 3 or 4 file.
    session : Session
        Where to write.
    path : str
        Group to write; "" is the root.
    chunks : mapping of str to int, optional
        Length of a chunk along the dimensions that are named; along the others of a variable that
        has one of them a chunk spans everything. Any other variable has chunks of at most 1 MiB,
        cut along its leading dimensions.
    codec : str
        ``zstd``, ``zstd:LEVEL`` or ``none``.
    zarr_format : {3, 2}
        Version of the Zarr format.
    replace : bool
        Whether whatever else lies at `path` is removed. Without it that is an error.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidKeyError
        If `path` cannot be one.
    InvalidArgumentError
        If it is no netCDF file, a dimension is unknown, or `path` holds something else already.
    StorageError
        If reading the file fails.
    """
    compressors = parse_codec(codec).compressors(zarr_format)
    path = path.strip("/")
    if path:
        check_key(path)
    groups = _open_groups(os.fspath(source))
    store = CASStore(session)
    try:
        _check_chunks(chunks or {}, groups)
        if not replace:
            _require_room(store, path, groups)
        _write(groups, store, path, chunks or {}, compressors, zarr_format, progress)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"reading {source} failed: {error}") from error
    finally:
        for dataset in groups.values():
            dataset.close()
    session.flush()
    prefix = path + "/" if path else ""
    keys = sum(1 for _ in session.mapping.list_keys(prefix))
    return ImportReport(os.fspath(source), path, keys, session.mapping.prefix_size(prefix))


def _open_groups(source: str) -> dict[str, xr.Dataset]:
    """Open every group of the file, lazily and undecoded, under its path ("" for the root)."""
    try:
        import dask.array  # noqa: F401  (xarray needs it to write metadata before the values)
        import netCDF4
        import xarray as xr
    except ImportError as error:
        raise MissingDependencyError(
            f"importing netCDF needs xarray, netCDF4 and dask; install cas_zarr[import] ({error})"
        ) from None
    if not os.path.exists(source):
        raise NotFoundError(f"{source} does not exist; name a netCDF file")
    try:
        with netCDF4.Dataset(source) as file:
            paths = list(_group_paths(file, ""))
    except OSError as error:
        raise InvalidArgumentError(f"{source} cannot be read as netCDF: {error}") from None
    return {
        path: xr.open_dataset(
            source, engine="netcdf4", group=path or None, decode_cf=False, cache=False
        )
        for path in paths
    }


def _group_paths(group: Any, path: str) -> Iterator[str]:
    yield path
    for name, child in group.groups.items():
        yield from _group_paths(child, f"{path}/{name}" if path else name)


def _check_chunks(chunks: Mapping[str, int], groups: Mapping[str, xr.Dataset]) -> None:
    dims = {str(dim) for dataset in groups.values() for dim in dataset.dims}
    for dim, length in chunks.items():
        if dim not in dims:
            raise InvalidArgumentError(
                f"no dimension {dim!r} is in the file; there are: {', '.join(sorted(dims))}"
            )
        if length < 1 and length != -1:
            raise InvalidArgumentError(
                f"a chunk of {length} along {dim!r} makes no sense; give a length from 1, or -1 "
                "for all of the dimension"
            )


def _require_room(store: CASStore, path: str, groups: Mapping[str, xr.Dataset]) -> None:
    nodes = set(groups) | {
        f"{group}/{name}" if group else str(name)
        for group, dataset in groups.items()
        for name in dataset.variables
    }
    tops = {node.partition("/")[0] for node in nodes}
    require_room(
        store.mapping,
        path,
        lambda key: key.partition("/")[0] in tops or "/" not in key,
    )


def _chunk_shape(
    dims: Sequence[str], shape: Sequence[int], itemsize: int, chunks: Mapping[str, int]
) -> tuple[int, ...]:
    """Return the lengths of a chunk, by the rule that `import_netcdf` states."""
    if any(dim in chunks for dim in dims):
        return tuple(
            max(1, size if chunks.get(dim, -1) == -1 else min(chunks[dim], size))
            for dim, size in zip(dims, shape, strict=True)
        )
    lengths = [max(1, size) for size in shape]
    size = itemsize
    for length in lengths:
        size *= length
    for axis, length in enumerate(lengths):
        if size <= _CHUNK_BYTES:
            break
        row = size // length
        lengths[axis] = max(1, _CHUNK_BYTES // row)
        size = row * lengths[axis]
    return tuple(lengths)


def _slabs(
    shape: Sequence[int], chunk: Sequence[int], itemsize: int
) -> Iterator[tuple[slice, ...]]:
    """Yield boxes of whole chunks that fit in memory and cover the shape."""
    slab = list(chunk)
    size = itemsize
    for length in chunk:
        size *= length
    for axis in reversed(range(len(shape))):
        grow = max(1, min(-(-shape[axis] // chunk[axis]), _SLAB_BYTES // max(1, size)))
        slab[axis] *= grow
        size *= grow
        if slab[axis] < shape[axis]:
            break
    starts = (range(0, length, step) for length, step in zip(shape, slab, strict=True))
    for start in product(*starts):
        yield tuple(
            slice(at, min(at + step, length))
            for at, step, length in zip(start, slab, shape, strict=True)
        )


def _write(
    groups: Mapping[str, xr.Dataset],
    store: CASStore,
    path: str,
    chunks: Mapping[str, int],
    compressors: Any,
    zarr_format: int,
    progress: Progress | None,
) -> None:
    import zarr

    total = sum(dataset.nbytes for dataset in groups.values())
    done = flushed = 0
    for index, (group, dataset) in enumerate(groups.items()):
        at = "/".join(part for part in (path, group) if part)
        _write_metadata(dataset, store, at, chunks, compressors, zarr_format, fresh=index == 0)
        for name, variable in dataset.variables.items():
            array = zarr.open_array(store, path=f"{at}/{name}" if at else str(name), mode="r+")
            for slab in _slabs(variable.shape, array.chunks, variable.dtype.itemsize):
                array[slab] = variable[slab].values
                done += variable[slab].nbytes
                if progress is not None:
                    progress(done, total)
                if done - flushed >= _FLUSH_BYTES:
                    store.mapping.flush()  # shown to nobody yet
                    flushed = done


def _write_metadata(
    dataset: xr.Dataset,
    store: CASStore,
    path: str,
    chunks: Mapping[str, int],
    compressors: Any,
    zarr_format: int,
    *,
    fresh: bool,
) -> None:
    encoding: dict[str, Any] = {}
    lazy = dataset.chunk()
    for name, variable in lazy.variables.items():
        own = encoding[str(name)] = {
            "chunks": _chunk_shape(
                [str(dim) for dim in variable.dims],
                variable.shape,
                variable.dtype.itemsize,
                chunks,
            ),
            "compressors": compressors,
        }
        if variable.encoding.get("dtype") is str:
            own["dtype"] = str
        if "_FillValue" not in variable.attrs:
            own["_FillValue"] = None  # or xarray gives every float the fill value nan
        variable.encoding = {}  # how the file stored it says nothing about how zarr does
    lazy.to_zarr(
        store,
        group=path or None,
        mode="w" if fresh else "a",
        encoding=encoding,
        compute=False,
        consolidated=False,
        zarr_format=zarr_format,
        safe_chunks=False,  # only the metadata is written here
    )
