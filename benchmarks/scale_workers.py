"""What many workers cost: a merge of large deltas, and dask beside a plain directory."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr

from benchmarks.parts import ARRAY, Figure, document, print_part, timed
from cas_zarr import CASStore, Repository
from cas_zarr.cid import BLAKE3, RAW, cid_of
from cas_zarr.distributed import store_dask
from cas_zarr.repository.forking import Fork
from cas_zarr.tree.changes import pack_value

__all__ = ["PARTS"]

FORKS = 8
PROCESSES = 2
CHUNK = 1 << 16
ROUNDS = 3


def merge(folder: Path, chunks: int) -> list[Figure]:
    """Merge what eight workers wrote into one array."""
    session = Repository.open(folder / "merge.cas", create=True).session()
    side = round(chunks ** (1 / 3))
    session.mapping[f"{ARRAY}/zarr.json"] = document(side)
    fork = session.fork()
    each = chunks // FORKS
    forks = [pickle.loads(_written(fork.fresh(), side, n * each, each)) for n in range(FORKS)]
    took = timed(lambda: session.merge(forks))
    flushed = timed(session.flush)
    return [
        Figure(f"merge of {FORKS} deltas of {each:,} chunks", took, "s", 1.0),
        Figure("flush after it", flushed, "s"),
    ]


def _written(fork: Fork, side: int, first: int, count: int) -> bytes:
    """Let a fork link chunks that all differ, key by key, and return it as it travels."""
    value = b"a chunk"
    cid = cid_of(RAW, BLAKE3, value)
    fork.mapping.blocks.put(cid, value)
    changes = fork.mapping._state[1]
    for number in range(first, first + count):
        key = f"{ARRAY}/c/{number // side**2}/{number // side % side}/{number % side}"
        packed = pack_value(cid, len(value))
        changes.values[key] = packed[:4] + number.to_bytes(8, "little") + packed[12:]
    return pickle.dumps(fork)


def dask_writes(folder: Path, chunks: int) -> list[Figure]:
    """Write chunks of 64 KiB from two processes, into a directory and into a repository."""
    lazy = da.map_blocks(
        _noise, chunks=((CHUNK // 4,) * chunks,), dtype="f4", meta=np.empty(0, "f4")
    )
    options = {"shape": lazy.shape, "chunks": (CHUNK // 4,), "dtype": "f4", "compressors": None}
    plain, ours = [], []
    with dask.config.set(scheduler="processes", num_workers=PROCESSES):
        for number in range(ROUNDS):
            array = zarr.create_array(folder / f"{number}.zarr", name="data", **options)
            blocks = lazy.rechunk((1 << 23,))
            plain.append(timed(lambda b=blocks, a=array: b.store(a, lock=False)))
            with CASStore(folder / f"{number}.cas") as store:
                zarr.create_array(store, name="data", **options)
                ours.append(timed(lambda s=store: _write(lazy, s)))
    what = f"{chunks} chunks of 64 KiB, dask with {PROCESSES} processes"
    before, after = (float(np.median(times)) for times in (plain, ours))
    return [
        Figure(f"{what}: LocalStore, in blocks of 32 MiB", before, "s"),
        Figure(f"{what}: store_dask and commit", after, "s"),
        Figure("of the time of LocalStore", 100 * after / before, "%", 100 / 0.9),
    ]


def _write(lazy: da.Array, store: CASStore) -> None:
    store_dask(lazy, "data", store)
    store.commit("noise")


def _noise(block_id: tuple[int, ...] = (0,)) -> np.ndarray:
    return np.random.default_rng(block_id[0]).random(CHUNK // 4, "f4")


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {"merge": merge, "dask": dask_writes}

if __name__ == "__main__":
    sys.exit(print_part(PARTS))
