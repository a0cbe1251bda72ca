"""Measure the tree with a million chunks: `python -m benchmarks.tree`.

A grid of 100×100×100 chunks of 16 bytes each, all different, in a local repository. What is
measured runs in processes of its own, one after another: filling and committing, opening afresh,
memory. Where a bar of the project exists it stands beside the figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path

import numpy as np

from benchmarks.parts import (
    ARRAY,
    Figure,
    bytes_written,
    chunk_keys,
    clock,
    document,
    drop_cached_files,
    figure_table,
    medians,
    run_part,
    timed,
)
from benchmarks.report import describe_machine, folder_bytes, machine_line, write_json

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print a table, write JSON."""
    options = _parse(arguments)
    if options.part:
        figures = _PARTS[options.part](Path(options.folder), options.side)
        print(json.dumps([asdict(figure) for figure in figures]))
        return 0
    folder = Path(options.folder or tempfile.gettempdir())
    machine = describe_machine(folder)
    print(machine_line(machine), flush=True)
    rounds: list[list[Figure]] = []
    for number in range(options.rounds):
        figures: list[Figure] = []
        with tempfile.TemporaryDirectory(dir=folder, prefix="cas-zarr-benchmark-") as place:
            for part in _PARTS:
                os.sync()
                figures += run_part(
                    "benchmarks.tree", part, ["--folder", place, "--side", str(options.side)]
                )
                print(f"round {number + 1}/{options.rounds}: {part} done", flush=True)
        rounds.append(figures)
    figures = medians(rounds)
    print()
    print(figure_table("a million chunks", figures))
    full = options.side == 100
    path = write_json(
        options.name,
        {
            "machine": machine,
            "chunks": options.side**3,
            "rounds": options.rounds,
            "bars_apply": full,
            "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
        },
    )
    print(f"\nwritten to {path}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tree", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="27 000 chunks, one round")
    parser.add_argument("--side", type=int, help="chunks along each of the three axes (100)")
    parser.add_argument("--rounds", type=int, help="rounds, 3 unless --quick")
    parser.add_argument("--folder", help="where the repository lies; temporary by default")
    parser.add_argument("--name", default="tree", help="name of the JSON file of results")
    parser.add_argument("--part", choices=_PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.side = options.side or (30 if options.quick else 100)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


# -- the parts: each runs in a process of its own -----------------------------------------------


def _bulk(folder: Path, side: int) -> list[Figure]:
    """Build the tree from arrays of coordinates, links and sizes, with nothing else around it."""
    from cas_zarr.blocks.local import LocalBlocks
    from cas_zarr.cid import BLAKE3, RAW, make_cid
    from cas_zarr.tree.chunktree import build, chunk_table
    from cas_zarr.tree.morton import encode
    from cas_zarr.tree.page import PageReader

    count = side**3
    coordinates = np.stack(np.unravel_index(np.arange(count), (side,) * 3), axis=1)
    prefix = np.frombuffer(make_cid(RAW, BLAKE3, bytes(32)), np.uint8)[:-32]
    links = np.empty((count, len(prefix) + 32), np.uint8)
    links[:, : len(prefix)] = prefix
    links[:, len(prefix) :] = np.random.default_rng(1).integers(0, 256, (count, 32), np.uint8)
    sizes = np.full(count, 16, np.uint64)
    with LocalBlocks(folder / "bulk", create=True) as blocks:
        reader = PageReader(blocks)
        with clock() as building:
            build(reader, BLAKE3, chunk_table(encode(coordinates), links, sizes, 3), 3)
        with clock() as flushing:
            blocks.flush()
    return [
        Figure("bulk fill of the tree", building(), "s", 0.5, "links given, pages written"),
        Figure("... flush", flushing(), "s", None, "pages only, fsynced"),
    ]


def _fill(folder: Path, side: int) -> list[Figure]:
    """Fill through the mapping, commit, and commit single changes."""
    from cas_zarr import Repository

    count = side**3
    keys = chunk_keys(side)
    values = [number.to_bytes(16, "little") for number in range(count)]
    repository = Repository.open(folder / "repo", create=True)
    session = repository.session("main")
    mapping = session.mapping
    mapping.set_value(f"{ARRAY}/zarr.json", document(side))
    set_value = mapping.set_value
    with clock() as filling:
        for key, value in zip(keys, values, strict=True):
            set_value(key, value)
    with clock() as committing:
        session.commit("a million chunks")
    stored = folder_bytes(folder / "repo")

    seconds, written = [], []
    for number in range(20):
        key = keys[(number * 49_999 + 7) % count]
        set_value(key, (count + number).to_bytes(16, "little"))
        before = bytes_written()
        with clock() as once:
            session.commit("one chunk")
        seconds.append(once())
        written.append(bytes_written() - before)
    with clock() as again:
        for key, value in zip(keys[:100_000], values[:100_000], strict=True):
            set_value(key, value)
    repository.close()
    return [
        Figure("fill through the mapping", filling(), "s", 8.0, f"{count:,} × 16 B"),
        Figure("... commit", committing(), "s", None, "tree built, packs sealed, fsynced"),
        Figure("... stored", float(stored), "B"),
        Figure(
            "commit after one change",
            statistics.median(seconds),
            "s",
            0.010,
            "median of 20, fsyncs in",
        ),
        Figure("... slowest of 20", max(seconds), "s"),
        Figure("... bytes written", statistics.median(written), "B", 100_000, "median of 20"),
        Figure("... most of 20", float(max(written)), "B", None, "merging of packs in"),
        Figure("set 100 000 equal values again", again(), "s"),
    ]


def _open(folder: Path, side: int) -> list[Figure]:
    """Open the repository in this fresh process and read one chunk; list keys."""
    import zarr

    from cas_zarr import CASStore, Repository

    key = f"{ARRAY}/c/{side // 2}/{side // 3}/{side // 5}"
    packs = folder / "repo"

    def mapping() -> None:
        with closing(Repository.open(packs, read_only=True)) as repository:
            assert repository.at("main").get_value(key) is not None

    def array() -> None:
        store = CASStore(packs, version="main")
        zarr.open_array(store, path=ARRAY, mode="r")[side - 1, side - 1, 0]

    drop_cached_files(packs)
    first = timed(mapping)
    cold = statistics.median(timed(mapping) for _ in range(20))
    timed(array)
    through_zarr = statistics.median(timed(array) for _ in range(20))
    with closing(Repository.open(packs, read_only=True)) as repository:
        opened = repository.at("main")
        with clock() as listing:
            listed = sum(1 for _ in islice(opened.list_keys(f"{ARRAY}/"), 100_000))
        expected = min(100_000, side**3 + 1)
        if listed != expected:
            raise SystemExit(f"listed {listed} keys where {expected} were expected")
        with clock() as sizing:
            opened.prefix_size(f"{ARRAY}/")
        series = [f"{ARRAY}/c/{time}/{side // 2}/{side // 2}" for time in range(side)]
        fresh = repository.at("main")
        with clock() as reading:
            for chunk in series:
                fresh.get_value(chunk)
    return [
        Figure("cold open + one chunk", cold, "s", 0.005, "fresh objects, median of 20"),
        Figure("... first in a process, from disk", first, "s", None, "page cache dropped"),
        Figure("... through zarr.open_array", through_zarr, "s", None, "zarr's own cost in"),
        Figure("list 100 000 keys", listing(), "s", 0.2),
        Figure("size of the array from the tree", sizing(), "s"),
        Figure(f"a series of {side} chunks", reading(), "s", None, "opened afresh, verified"),
    ]


def _memory(folder: Path, side: int) -> list[Figure]:
    """Measure what a session holds for each changed chunk, in the process and in Python."""
    from cas_zarr import Repository

    def run(name: str, side_: int, probe: Callable[[], int]) -> float:
        with closing(Repository.open(folder / name, create=True)) as repository:
            session = repository.session("main")
            session.mapping.set_value(f"{ARRAY}/zarr.json", document(side_))
            session.mapping.set_value(f"{ARRAY}/c/0/0/0", b"warm")
            before = probe()
            for number, (i, j, k) in enumerate(product(range(side_), repeat=3)):
                session.mapping.set_value(f"{ARRAY}/c/{i}/{j}/{k}", number.to_bytes(16, "little"))
            grown = (probe() - before) / side_**3
            session.flush()
            return grown

    resident = run("resident", side, _resident)
    tracemalloc.start()
    traced = run("traced", min(side, 60), lambda: tracemalloc.get_traced_memory()[0])
    return [
        Figure("memory a changed chunk, resident", resident, "B", 200, "growth of the process"),
        Figure("... traced by Python", traced, "B", None, f"{min(side, 60) ** 3:,} chunks"),
    ]


_PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {
    "bulk": _bulk,
    "fill": _fill,
    "open": _open,
    "memory": _memory,
}


def _resident() -> int:
    """Return the resident memory of this process, in bytes."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
