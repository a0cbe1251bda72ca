"""Writing dask arrays and xarray datasets from many workers.

Each task writes blocks of some megabytes into a fork of its own and gives back a delta; deltas are
joined in a tree and merged here, by the process that has the store. Nothing is seen by others
before it flushes or commits. A task that is killed, retried or run twice costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import dask.array as da
import numpy as np
import zarr
from dask.base import is_dask_collection
from dask.delayed import Delayed, delayed

from cas_zarr.dataset import Dataset
from cas_zarr.errors import CasZarrError, InvalidArgumentError
from cas_zarr.repository.forking import Fork
from cas_zarr.store import CASStore
from cas_zarr.tree.delta import Delta, joined

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Writes", "store_dask", "to_cas"]

DaskArray: TypeAlias = Any
ZarrArray: TypeAlias = "zarr.Array[Any]"
Region: TypeAlias = "tuple[slice, ...]"

_TASK: Final = 32 << 20  # bytes that a task writes, where blocks are smaller
_FAN_IN: Final = 16  # deltas that are joined by one task


class Writes:
    """Writes that wait to be computed.

    Attributes
    ----------
    delayed : Delayed
        Does them, in workers. Its result is for `merge`: compute it together with what else there
        is to compute, or call `compute`.
    """

    def __init__(self, store: Dataset, fork: Fork, deltas: list[Delayed]) -> None:
        self._store = store
        self._fork = fork
        self.delayed = _tree(deltas)

    def __repr__(self) -> str:
        return f"Writes({self._store})"

    def compute(self, **options: Any) -> None:
        """Write all of it, and take it over into the store, which is to be flushed or committed.

        Parameters
        ----------
        **options
            For the scheduler.

        Raises
        ------
        ConflictError
            As `merge` does.
        """
        self.merge(self.delayed.compute(**options))

    def merge(self, result: list[Delta]) -> None:
        """Take over what `delayed` gave; in the process that has the store.

        Raises
        ------
        ConflictError
            If two of the writes, or one and the store, set a chunk to different values; nothing is
            taken over then.
        """
        self._store.session.merge([self._fork.bringing(result)])


def store_dask(
    sources: DaskArray | Sequence[DaskArray],
    targets: str | ZarrArray | Sequence[str | ZarrArray],
    store: CASStore,
    *,
    regions: Region | Sequence[Region] | None = None,
    compute: bool = True,
    **options: Any,
) -> Writes | None:
    """Write dask arrays into zarr arrays of a store, from as many workers as the scheduler has.

    Parameters
    ----------
    sources : dask array, or several
    targets : str or zarr.Array, or several
        The arrays, which are there already: their paths, or they themselves, opened on `store`.
    store : CASStore
        Open on a branch.
    regions : tuple of slice, or several, optional
        Where in the targets; by default all of them.
    compute : bool
        Write now. Otherwise return what does.
    **options
        For the scheduler, as ``scheduler="processes"``.

    Returns
    -------
    Writes or None

    Raises
    ------
    InvalidArgumentError
        If a source does not fit its place.
    ConflictError
        If the store wrote other values to the same chunks meanwhile.

    Notes
    -----
    Blocks that end inside a chunk of the target are cut anew where chunks end. Where a region
    begins or ends inside a chunk, the rest of that chunk stays as it is.

    Examples
    --------
    >>> zarr.create_array(store, name="t2m", shape=x.shape, chunks=(1, 256, 256), dtype="f4")
    ... # doctest: +SKIP
    >>> store_dask(x, "t2m", store)  # doctest: +SKIP
    >>> store.commit("t2m")  # doctest: +SKIP
    """
    several = isinstance(sources, (list, tuple))
    if not all(isinstance(source, da.Array) for source in (sources if several else [sources])):
        raise InvalidArgumentError(
            "a source is no dask array; make one with dask.array.from_array, or assign what is in "
            "memory to the zarr array"
        )
    if isinstance(sources, da.Array):
        sources, targets = [sources], [targets]  # type: ignore[list-item]
        regions = None if regions is None else [regions]  # type: ignore[list-item]
    places: list[Any] = [None] * len(sources) if regions is None else list(regions)
    if isinstance(targets, (str, zarr.Array)) or not len(sources) == len(targets) == len(places):
        raise InvalidArgumentError("give as many targets, and regions if any, as sources")
    fork = _fork_of(store)
    tasks: list[Delayed] = []
    for source, target, region in zip(sources, targets, places, strict=True):
        path = target if isinstance(target, str) else _path_in(store, target)
        array = zarr.open_array(store, path=path, mode="r")
        tasks += _array_tasks(fork, source, array, path, region, _write_blocks, path)
    writes = Writes(store, fork, tasks)
    return _computed(writes, compute, options)


def _fork_of(store: CASStore) -> Fork:
    if not isinstance(store, Dataset):
        raise InvalidArgumentError(f"{store} is no CASStore; open a repository with CASStore(...)")
    fork = store.fork().session
    assert isinstance(fork, Fork)
    return fork


def _path_in(store: CASStore, target: ZarrArray) -> str:
    """Return the path of an array that was opened on a store."""
    if not isinstance(target.store, Dataset) or target.store.session is not store.session:
        raise InvalidArgumentError(f"{target} is not in {store}; open it there, or give its path")
    return target.path


def to_cas(
    dataset: xr.Dataset | xr.DataArray,
    store: CASStore,
    *,
    group: str | None = None,
    mode: str | None = None,
    append_dim: str | None = None,
    region: Mapping[str, slice] | None = None,
    encoding: Mapping[str, Any] | None = None,
    compute: bool = True,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Writes | None:
    """Write an xarray dataset whose variables are dask arrays, from many workers.

    The metadata and what is in memory are written here, by ``to_zarr``; the blocks of lazy
    variables by the workers. If one of them fails, the store is as it was before.

    Parameters
    ----------
    dataset : Dataset or DataArray
    store : CASStore
        Open on a branch.
    group : str, optional
        Path of the group.
    mode, append_dim, region, encoding, **kwargs
        As ``xarray.Dataset.to_zarr`` has them; a region is given in slices.
    compute : bool
        Write the blocks now. Otherwise return what does.
    options : mapping, optional
        For the scheduler.

    Returns
    -------
    Writes or None

    Examples
    --------
    >>> to_cas(ds, store, append_dim="time")  # doctest: +SKIP
    >>> store.commit("one more day")  # doctest: +SKIP
    """
    import xarray as xr

    if isinstance(dataset, xr.DataArray):
        dataset = dataset.to_dataset(name=dataset.name or "data")
    sides = region or {}
    if not isinstance(sides, Mapping) or not all(isinstance(it, slice) for it in sides.values()):
        raise InvalidArgumentError("give the region in slices, as {'time': slice(0, 24)}")
    starts: dict[Hashable, int] = {}
    for dim, side in sides.items():
        starts[dim] = side.start or 0
        if starts[dim] < 0:
            starts[dim] = side.indices(_length(store, group, dim))[0]
    if append_dim is not None:
        starts[append_dim] = _length(store, group, append_dim)
    shared: dict[str, Any] = {"group": group, "consolidated": False, "safe_chunks": False}
    given = {"mode": mode, "append_dim": append_dim, "region": region, "encoding": encoding}
    prepared = _fork_of(store)
    dataset.to_zarr(CASStore(prepared), compute=False, **(shared | kwargs | given))
    store.session.prepare().unite(prepared.flush(), base=prepared.base)
    fork = _fork_of(store)
    tasks: list[Delayed] = []
    for name, variable in dataset.variables.items():
        if not is_dask_collection(variable._data):
            continue
        path = f"{group.strip('/')}/{name}" if group and group.strip("/") else str(name)
        array = zarr.open_array(store, path=path, mode="r")
        place = tuple(
            slice(starts.get(dim, 0), starts.get(dim, 0) + size)
            for dim, size in variable.sizes.items()
        )
        empty = (encoding or {}).get(str(name), {}).get("write_empty_chunks")
        options_here = shared | {"write_empty_chunks": kwargs.get("write_empty_chunks", empty)}
        where = name, variable.dims, options_here
        tasks += _array_tasks(fork, variable.data, array, path, place, _write_variable, where)
    writes = Writes(store, fork, tasks)
    try:
        return _computed(writes, compute, options or {})
    except BaseException as error:
        _take_back(store, prepared, error)
        raise


def _take_back(store: CASStore, fork: Fork, error: BaseException) -> None:
    """Undo what a fork did that was merged, so that what failed can be tried again."""
    try:
        store.session.prepare().unite(fork.base, base=fork.flush())
    except CasZarrError as trouble:
        error.add_note(f"the metadata that were written before stay in {store}: {trouble}")


def _length(store: CASStore, group: str | None, dim: Hashable) -> int:
    """Return how long a dimension is before something is appended; 0 where nothing is there."""
    import xarray as xr

    try:
        with xr.open_zarr(store, group=group, consolidated=False, chunks=None) as before:
            return int(before.sizes.get(dim, 0))
    except FileNotFoundError:
        return 0


def _computed(writes: Writes, compute: bool, options: Mapping[str, Any]) -> Writes | None:
    if not compute:
        return writes
    writes.compute(**options)
    return None


# -- tasks -----------------------------------------------------------------------------------------


def _array_tasks(
    fork: Fork,
    source: DaskArray,
    target: ZarrArray,
    path: str,
    region: Region | None,
    write: Callable[..., list[Delta]],
    where: Any,
) -> list[Delayed]:
    """Return tasks that write the blocks of one array, each some megabytes of them."""
    place = tuple(slice(0, length) for length in target.shape) if region is None else region
    place = place if isinstance(place, (tuple, list)) else (place,)
    starts = _check_place(source, target, path, place)
    grid = target.shards or target.chunks
    source = source.rechunk(
        tuple(
            _aligned(lengths, start, chunk)
            for lengths, start, chunk in zip(source.chunks, starts, grid, strict=True)
        )
    )
    sides = [
        [slice(int(a), int(b)) for a, b in pairwise(np.cumsum((start, *lengths)))]
        for lengths, start in zip(source.chunks, starts, strict=True)
    ]
    blocks = source.to_delayed().ravel()
    tasks, batch, held = [], [], 0
    for at, block in zip(product(*sides), blocks, strict=True):
        batch.append((at, block))
        held += source.dtype.itemsize * int(np.prod([side.stop - side.start for side in at]))
        if held >= _TASK:
            tasks.append(batch)
            batch, held = [], 0
    tasks += [batch] if batch else []
    task = delayed(write, pure=False)
    return [
        task(fork, where, [at for at, _ in batch], [block for _, block in batch]) for batch in tasks
    ]


def _check_place(source: DaskArray, target: ZarrArray, path: str, place: Region) -> tuple[int, ...]:
    """Return where a source begins in its target."""
    if any(np.isnan(side) for sides in source.chunks for side in sides):
        raise InvalidArgumentError(
            "an array of unknown chunk sizes cannot be written; call compute_chunk_sizes on it"
        )
    if not all(isinstance(side, slice) for side in place):
        raise InvalidArgumentError(f"a region is a tuple of slices, not {place!r}, for {path!r}")
    shape = tuple(
        len(range(*side.indices(length))) for side, length in zip(place, target.shape, strict=False)
    )
    steps = any(side.step not in (None, 1) for side in place)
    if len(place) != target.ndim or shape != source.shape or steps:
        raise InvalidArgumentError(
            f"an array of shape {source.shape} does not fit into {place} of {path!r}, whose shape "
            f"is {target.shape}; give a region of its shape, in steps of 1"
        )
    return tuple(side.indices(length)[0] for side, length in zip(place, target.shape, strict=True))


def _aligned(sides: Sequence[int], start: int, chunk: int) -> tuple[int, ...]:
    """Return the sides of blocks that end where chunks do, near to where they ended."""
    total = sum(sides)
    ends = {start + total}
    for end in np.cumsum(sides)[:-1].tolist():
        near = round((start + end) / chunk) * chunk if chunk else 0
        if start < near < start + total:
            ends.add(near)
    ordered = [start, *sorted(ends)]
    return tuple(b - a for a, b in pairwise(ordered)) if total else tuple(sides)


def _write_blocks(fork: Fork, path: str, places: list[Region], blocks: list[Any]) -> list[Delta]:
    """Write blocks into an array, in a worker."""
    mine = fork.fresh()
    array = zarr.open_array(CASStore(mine), path=path, mode="r+")
    for place, block in _united(places, blocks):
        array[place] = block
    return mine.deltas()


def _write_variable(
    fork: Fork, where: tuple[Any, ...], places: list[Region], blocks: list[Any]
) -> list[Delta]:
    """Write blocks of a variable, encoded as the array that is there says, in a worker."""
    import xarray as xr

    name, dims, options = where
    mine = fork.fresh()
    store = CASStore(mine)
    for place, block in _united(places, blocks):
        region = dict(zip(dims, place, strict=True))
        part = xr.Dataset({name: (dims, block)})
        part.to_zarr(store, region=region or None, mode="r+", **options)
    return mine.deltas()


def _united(places: list[Region], blocks: list[Any]) -> list[tuple[Region, Any]]:
    """Unite blocks that lie side by side, for each assignment costs as much as some chunks."""
    parts = list(zip(places, blocks, strict=True))
    for axis in reversed(range(len(places[0]) if places else 0)):
        rows: list[list[tuple[Region, Any]]] = []
        for place, block in parts:
            last = rows[-1][-1][0] if rows else None
            if last is not None and _goes_on(last, place, axis):
                rows[-1].append((place, block))
            else:
                rows.append([(place, block)])
        parts = [row[0] if len(row) == 1 else _one(row, axis) for row in rows]
    return parts


def _goes_on(last: Region, place: Region, axis: int) -> bool:
    """Tell whether a place begins where another ends, and is as wide along all other axes."""
    aside = last[:axis] + last[axis + 1 :] == place[:axis] + place[axis + 1 :]
    return aside and last[axis].stop == place[axis].start


def _one(row: list[tuple[Region, Any]], axis: int) -> tuple[Region, Any]:
    first, last = row[0][0], row[-1][0]
    place = (*first[:axis], slice(first[axis].start, last[axis].stop), *first[axis + 1 :])
    return place, np.concatenate([block for _, block in row], axis)


def _tree(deltas: list[Delayed]) -> Delayed:
    """Join deltas, a few at a time, so that no task gets all of them."""
    join = delayed(_join, pure=False)
    while len(deltas) > _FAN_IN:
        deltas = [join(deltas[row : row + _FAN_IN]) for row in range(0, len(deltas), _FAN_IN)]
    return join(deltas)


def _join(results: list[list[Delta]]) -> list[Delta]:
    return joined([delta for result in results for delta in result])
