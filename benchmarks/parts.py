"""What the benchmarks of a million chunks share: a grid, figures, and parts that run alone."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.report import format_seconds, table

__all__ = [
    "ARRAY",
    "Figure",
    "bytes_written",
    "chunk_key",
    "chunk_keys",
    "clock",
    "counting",
    "document",
    "drop_cached_files",
    "figure_table",
    "medians",
    "peak_memory",
    "print_part",
    "quantity",
    "run_part",
    "timed",
    "touch_memory",
]

ARRAY = "data"
_DOCUMENT = {
    "zarr_format": 3,
    "node_type": "array",
    "data_type": "uint64",
    "fill_value": 0,
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
}
_TOUCHED = 1 << 30


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result: a quantity, its unit and the bar it must stay under."""

    what: str
    value: float
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.limit is None else self.value <= self.limit


def run_part(module: str, part: str, options: Sequence[str]) -> list[Figure]:
    """Run one part of a benchmark in a fresh process and return its figures."""
    touch_memory()
    command = [sys.executable, "-m", module, "--part", part, *options]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"part {part} failed with exit status {done.returncode}")
    return [Figure(**figure) for figure in json.loads(done.stdout.splitlines()[-1])]


def print_part(
    parts: Mapping[str, Callable[[Path, int], list[Figure]]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Be the process of one part: print its figures."""
    parser = argparse.ArgumentParser(description="Run one part of a benchmark.")
    parser.add_argument("--part", choices=parts, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--side", type=int, required=True)
    options = parser.parse_args(arguments)
    figures = parts[options.part](options.folder, options.side)
    print(json.dumps([asdict(figure) for figure in figures]))
    return 0


def medians(rounds: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Return each figure with the median of its values in all rounds."""
    return [
        replace(same[0], value=statistics.median(figure.value for figure in same))
        for same in zip(*rounds, strict=True)
    ]


def figure_table(title: str, figures: Iterable[Figure]) -> str:
    """Return figures beside their bars."""
    rows = []
    for figure in figures:
        limit = "" if figure.limit is None else quantity(figure.limit, figure.unit)
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        rows.append([figure.what, quantity(figure.value, figure.unit), limit, verdict, figure.note])
    return table([title, "reached", "at most", "", ""], rows)


def quantity(value: float, unit: str) -> str:
    """Return a value with its unit."""
    if unit == "s":
        return format_seconds(value)
    return f"{value:,.0f} {unit}".rstrip()


# -- the grid -----------------------------------------------------------------------------------


def document(side: int) -> bytes:
    """Return the metadata of an array of side³ chunks of 16 bytes."""
    chunks = {"name": "regular", "configuration": {"chunk_shape": [1, 1, 2]}}
    shape = [side, side, 2 * side]
    return json.dumps({**_DOCUMENT, "shape": shape, "chunk_grid": chunks}).encode()


def chunk_keys(side: int) -> list[str]:
    """Return the keys of all its chunks, in C order."""
    return [f"{ARRAY}/c/{i}/{j}/{k}" for i, j, k in product(range(side), repeat=3)]


def chunk_key(number: int, side: int) -> str:
    """Return one of them."""
    return f"{ARRAY}/c/{number // side**2}/{number // side % side}/{number % side}"


# -- measuring ----------------------------------------------------------------------------------


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Give what returns, afterwards, the seconds that were spent inside."""
    start = perf_counter()
    stop = start
    yield lambda: stop - start
    stop = perf_counter()


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = perf_counter()
    function()
    return perf_counter() - start


def touch_memory() -> None:
    """Use memory and give it back, so that no clock runs while the machine finds it."""
    np.empty(_TOUCHED, np.uint8).fill(0)


def peak_memory() -> int:
    """Return the most memory that this process had resident at a time, in bytes."""
    # Not getrusage: there a child begins with what its parent had.
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024


def bytes_written() -> int:
    """Return the bytes that this process handed to write system calls so far."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    return int(counters.read_text().split("wchar:")[1].split()[0])


def counting(repository: Any) -> tuple[Any, Any]:
    """Return a repository that is only read, and its blocks: their `reads` and `bytes_read`.

    A block that is read again counts again in `reads`.
    """
    from cas_zarr import Repository
    from cas_zarr.cid import CidBytes
    from cas_zarr.repository.selection import Recording

    class Counting(Recording):
        reads = 0

        def _read(self, cid: CidBytes) -> bytes | None:
            self.reads += 1
            return super()._read(cid)

    blocks = Counting(repository.blocks)
    watched = Repository(
        repository.location, repository.refs, blocks, repository.function, read_only=True
    )
    return watched, blocks


def drop_cached_files(folder: Path) -> None:
    """Ask the kernel to forget the pages of all files below `folder`."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
