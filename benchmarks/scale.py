"""Measure how costs grow with the number of chunks: `python -m benchmarks.scale trees`.

`trees` builds the tree of one array of three dimensions at each size, without data, in a local
repository, and changes, compares, reads and marks it; beside the figures stand the slopes between
sizes: with the number of chunks to the power of 0 a cost stays, of 1 it grows as they do. `links`
binds a million links that are known already. `workers` merges deltas of 800 000 chunks and writes
4096 chunks through dask, `objects` does what one does with a store on a server of S3 that it starts
(it needs Go once), `shards` works in shards of 64 MiB. Where a bar of the project exists it stands
beside the figure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import scale_links, scale_objects, scale_shards, scale_trees, scale_workers
from benchmarks.parts import Figure, figure_table, medians, quantity, run_part
from benchmarks.report import RESULTS, describe_machine, machine_line, table

__all__ = ["main"]

CUBES = {"trees": scale_trees, "links": scale_links}
"""Benchmarks of a cube of chunks, whose side is given."""

COUNTS = {
    "workers": (scale_workers, {"merge": 800_000, "dask": 4096}),
    "objects": (scale_objects, {"values": 4096, "far": 1_000_000}),
    "shards": (scale_shards, {"mebibyte": 64, "16-kibibytes": 4096}),
}
"""Benchmarks whose parts have a number of chunks each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print tables, write JSON."""
    options = _parse(arguments)
    folder = Path(options.folder or tempfile.gettempdir())
    machine = describe_machine(folder)
    print(machine_line(machine), flush=True)
    if options.what in COUNTS:
        return _run_counts(options, folder, machine)
    module = CUBES[options.what]
    sides = [round(chunks ** (1 / 3)) for chunks in options.chunks]
    figures: dict[int, list[Figure]] = {}
    for side in sides:
        rounds: list[list[Figure]] = []
        for _ in range(options.rounds):
            rounds.append([])
            with tempfile.TemporaryDirectory(dir=folder, prefix="cas-zarr-benchmark-") as place:
                for part in options.parts or module.PARTS:
                    os.sync()
                    where = ["--folder", place, "--side", str(side)]
                    rounds[-1] += run_part(module.__name__, part, where)
                    load = os.getloadavg()[0]
                    print(f"{side**3:,} chunks: {part} done, load {load:.2f}", flush=True)
        figures[side] = medians(rounds)
    last = figures[sides[-1]]
    print("\n" + (_slopes(figures) if len(sides) > 1 else figure_table("", last)))
    if len(sides) > 1:
        print("\n" + figure_table(f"{sides[-1] ** 3:,} chunks", [f for f in last if f.limit]))
    options.json.parent.mkdir(exist_ok=True)
    document = {
        "machine": machine,
        "rounds": options.rounds,
        "figures": {
            side**3: [{**asdict(figure), "met": figure.met} for figure in measured]
            for side, measured in figures.items()
        },
    }
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.json}")
    return 0


def _run_counts(options: argparse.Namespace, folder: Path, machine: dict[str, Any]) -> int:
    module, counts = COUNTS[options.what]
    rounds: list[list[Figure]] = []
    for _ in range(options.rounds):
        rounds.append([])
        for part in options.parts or counts:
            with tempfile.TemporaryDirectory(dir=folder, prefix="cas-zarr-benchmark-") as place:
                os.sync()
                where = ["--folder", place, "--side", str(counts[part])]
                rounds[-1] += run_part(module.__name__, part, where)
            print(f"{part} done, load {os.getloadavg()[0]:.2f}", flush=True)
    figures = medians(rounds)
    print("\n" + figure_table(options.what, figures))
    options.json.parent.mkdir(exist_ok=True)
    measured = [{**asdict(figure), "met": figure.met} for figure in figures]
    document = {"machine": machine, "rounds": options.rounds, "figures": measured}
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.json}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("what", choices=[*CUBES, *COUNTS])
    parser.add_argument(
        "--chunks", type=float, nargs="+", default=[1e6], help="sizes, each about so many, a cube"
    )
    parser.add_argument("--parts", nargs="+", help="only these, in this order")
    parser.add_argument("--rounds", type=int, default=1, help="rounds (1)")
    parser.add_argument("--folder", help="where the repositories lie; temporary by default")
    parser.add_argument("--json", type=Path, help="results")
    options = parser.parse_args(arguments)
    options.chunks = [int(chunks) for chunks in options.chunks]
    options.json = options.json or RESULTS / f"scale-{options.what}.json"
    return options


def _slopes(figures: dict[int, list[Figure]]) -> str:
    """Return the figures of all sizes, and between two sizes the power with which each grows."""
    sides = list(figures)
    header = [""]
    for side in sides:
        header += [f"{side**3:,}", "slope"] if side != sides[-1] else [f"{side**3:,}", ""]
    rows = []
    for same in zip(*figures.values(), strict=True):
        row = [same[0].what]
        for place, figure in enumerate(same):
            row.append(quantity(figure.value, figure.unit))
            row.append(
                _slope(*same[place : place + 2], *sides[place : place + 2])
                if place + 1 < len(same)
                else same[-1].note
            )
        rows.append(row)
    return table(header, rows)


def _slope(one: Figure, other: Figure, side: int, other_side: int) -> str:
    if min(one.value, other.value) <= 0:
        return ""
    return f"{math.log(other.value / one.value) / math.log((other_side / side) ** 3):.2f}"


if __name__ == "__main__":
    sys.exit(main())
