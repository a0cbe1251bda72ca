"""Shards of 64 MiB: what it takes to write them, and to rewrite and read one inner chunk.

Beside each figure stands that of zarr's own LocalStore, with the same data and pipeline.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts import ARRAY, Figure, bytes_written, clock, counting, print_part, timed

__all__ = ["PARTS"]

_SHARD = 64 << 20
_SHARDS = 4
_REPEATS = 5
_TREE = 64 << 10  # beside an inner chunk and the index: a node of 1024 links, pages, the root


def _of_a_mebibyte(folder: Path, side: int) -> list[Figure]:
    """Shards of 64 inner chunks."""
    del side
    return _measure(folder, 1 << 20)


def _of_16_kibibytes(folder: Path, side: int) -> list[Figure]:
    """Shards of 4096 inner chunks."""
    del side
    return _measure(folder, 16 << 10)


def _measure(folder: Path, inner: int) -> list[Figure]:
    from zarr.storage import LocalStore

    from cas_zarr import CASStore, Repository

    rows = _SHARD // inner
    data = np.random.default_rng(1).integers(1, 255, (_SHARDS * rows, inner), "u1")
    places = np.random.default_rng(2).choice(len(data), 2 * _REPEATS, replace=False).tolist()
    ours, theirs = folder / f"ours-{inner}", folder / f"theirs-{inner}"
    repository = Repository.open(ours, create=True)
    store, local = CASStore(repository), LocalStore(theirs)
    writing = [timed(partial(_write, to, data, inner)) for to in (store, local)]
    os.sync()

    before = set(repository.blocks.list())
    rewriting: tuple[list[float], list[float]] = ([], [])
    written: tuple[list[int], list[int]] = ([], [])
    for row in places[:_REPEATS]:
        value = data[row][::-1]
        for side, to in enumerate((store, local)):
            start = bytes_written()
            rewriting[side].append(timed(partial(_rewrite, to, row, value)))
            written[side].append(bytes_written() - start)
    added = len(set(repository.blocks.list()) - before) / _REPEATS

    reading: tuple[list[float], list[float]] = ([], [])
    reads, bytes_read = [], []
    for row in places[_REPEATS:]:
        watched, blocks = counting(repository)
        for side in (0, 1):
            with clock() as once:
                found = _read(CASStore(watched, version=store.root) if side == 0 else local, row)
            assert (found == data[row]).all()
            reading[side].append(once())
        reads.append(blocks.reads)
        bytes_read.append(blocks.bytes_read)
    store.close()
    repository.close()

    most = inner + 16 * rows + _TREE
    median = statistics.median
    size = f"{inner >> 10:,} KiB"
    note = f"median of {_REPEATS}"
    return [
        Figure(f"write {_SHARDS} shards of inner chunks of {size}", writing[0], "s"),
        Figure("... LocalStore", writing[1], "s"),
        Figure("rewrite one inner chunk", median(rewriting[0]), "s", None, f"fsynced, {note}"),
        Figure("... LocalStore", median(rewriting[1]), "s", None, note),
        Figure("... blocks stored", added, "", None, "mean"),
        Figure("... bytes written", median(written[0]), "B", most, note),
        Figure("... bytes written, LocalStore", median(written[1]), "B", None, note),
        Figure("open and read one inner chunk", median(reading[0]), "s", None, note),
        Figure("... LocalStore", median(reading[1]), "s", None, note),
        Figure("... blocks read", median(reads), "", None, note),
        Figure("... bytes read", median(bytes_read), "B", most + _TREE, note),
    ]


def _write(store: Any, data: Any, inner: int) -> None:
    import zarr

    rows = _SHARD // inner
    array = zarr.create_array(
        store,
        name=ARRAY,
        shape=data.shape,
        shards=(rows, inner),
        chunks=(1, inner),
        dtype="u1",
        compressors=None,
    )
    for row in range(0, len(data), rows):
        array[row : row + rows] = data[row : row + rows]
    _flush(store)


def _rewrite(store: Any, row: int, value: Any) -> None:
    import zarr

    zarr.open_array(store, path=ARRAY, mode="r+")[row] = value
    _flush(store)


def _read(store: Any, row: int) -> Any:
    import zarr

    return zarr.open_array(store, path=ARRAY, mode="r")[row]


def _flush(store: Any) -> None:
    if hasattr(store, "flush"):
        store.flush()


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {
    "mebibyte": _of_a_mebibyte,
    "16-kibibytes": _of_16_kibibytes,
}

if __name__ == "__main__":
    sys.exit(print_part(PARTS))
