"""Binding what is stored already: a million links at once, by coordinates and by keys."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from benchmarks.parts import ARRAY, Figure, chunk_keys, clock, document, print_part

__all__ = ["PARTS"]

_REPEATS = 5
_BARRED = 1_000_000  # chunks at which the bars apply


def _columns(folder: Path, side: int) -> list[Figure]:
    """Bind all chunks of an array by their coordinates, in C order."""
    coordinates = np.stack(np.unravel_index(np.arange(side**3), (side,) * 3), axis=1)
    cids, sizes = _links(side**3)
    return _measure(
        "set_links", folder, side, lambda to: to.set_links(ARRAY, coordinates, cids, sizes)
    )


def _keys(folder: Path, side: int) -> list[Figure]:
    """Bind all chunks of an array by their keys, in C order."""
    keys = chunk_keys(side)
    cids, sizes = _links(side**3)
    return _measure("set_cids", folder, side, lambda to: to.set_cids(keys, cids, sizes))


def _measure(what: str, folder: Path, side: int, bind: Callable[[Any], None]) -> list[Figure]:
    from cas_zarr import Repository

    binding, computing, committing = [], [], []
    for number in range(_REPEATS):
        with closing(Repository.open(folder / f"{what}-{number}", create=True)) as repository:
            session = repository.session("main")
            session.mapping.set_value(f"{ARRAY}/zarr.json", document(side))
            start = process_time()
            with clock() as once:
                bind(session.mapping)
            binding.append(once())
            computing.append(process_time() - start)
            with clock() as once:
                session.commit("links")
            committing.append(once())
        os.sync()
    limit = 0.5 if side**3 == _BARRED else None
    return [
        Figure(what, statistics.median(binding), "s", limit, f"pages in, median of {_REPEATS}"),
        Figure("... of it on the processor", statistics.median(computing), "s"),
        Figure("... fastest", min(binding), "s"),
        Figure("... commit", statistics.median(committing), "s", None, "fsynced"),
    ]


def _links(count: int) -> tuple[Any, Any]:
    """Return CIDs of random digests, which no page can make smaller, and sizes."""
    from cas_zarr.cid import BLAKE3, RAW, make_cid

    random = np.random.default_rng(1)
    cids = np.empty((count, 36), np.uint8)
    cids[:, :4] = np.frombuffer(make_cid(RAW, BLAKE3, b""), np.uint8)
    cids[:, 4:] = random.integers(0, 256, (count, 32), np.uint8)
    return cids, random.integers(1 << 16, 1 << 20, count)


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {"columns": _columns, "keys": _keys}

if __name__ == "__main__":
    sys.exit(print_part(PARTS))
