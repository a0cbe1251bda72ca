"""Measure versions of a million chunks: `python -m benchmarks.versions`.

A grid of 100×100×100 chunks of 16 bytes each in a local repository on disk, with branches, a
history and a clone. The parts run in processes of their own, one after another, on one repository
a round. Where a bar of the project exists it stands beside the figure; where icechunk is installed
and has the feature, its figure does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.parts import Figure, figure_table, medians, quantity, run_part
from benchmarks.report import RESULTS, describe_machine, machine_line, table
from benchmarks.versions_cas import PARTS

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print tables, write JSON."""
    options = _parse(arguments)
    folder = Path(options.folder or tempfile.gettempdir())
    machine = describe_machine(folder)
    print(machine_line(machine), flush=True)
    rivals = () if options.alone else _rival_parts()
    if not rivals:
        print("icechunk is left out" + ("" if options.alone else ": it is not installed"))
    ours: list[list[Figure]] = []
    theirs: list[list[Figure]] = []
    loads = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=folder, prefix="cas-zarr-benchmark-") as place:
            where = ["--folder", place, "--side", str(options.side)]
            ours.append([])
            theirs.append([])
            for part in PARTS:
                os.sync()
                ours[-1] += run_part("benchmarks.versions_cas", part, where)
                if part in rivals:
                    os.sync()
                    theirs[-1] += run_part("benchmarks.versions_icechunk", part, where)
                loads.append(round(os.getloadavg()[0], 2))
                print(
                    f"round {number + 1}/{options.rounds}: {part} done, load {loads[-1]}",
                    flush=True,
                )
    figures, beside = medians(ours), medians(theirs)
    chunks = options.side**3
    print("\n" + figure_table(f"{chunks:,} chunks", figures))
    if beside:
        print("\n" + _side_by_side(figures, beside))
    if options.side != 100:
        print("\nthe bars are for 1,000,000 chunks")
    options.json.parent.mkdir(exist_ok=True)
    document = {
        "machine": machine,
        "chunks": chunks,
        "rounds": options.rounds,
        "load_averages": loads,
        "bars_apply": options.side == 100,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
        "icechunk": [asdict(figure) for figure in beside],
    }
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\nload {min(loads)} to {max(loads)}; written to {options.json}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 000 chunks, one round")
    parser.add_argument("--chunks", type=int, help="about so many, a cube (1 000 000)")
    parser.add_argument("--rounds", type=int, help="rounds, 3 unless --quick")
    parser.add_argument("--folder", help="where the repositories lie; temporary by default")
    parser.add_argument("--json", type=Path, default=RESULTS / "versions.json", help="results")
    parser.add_argument("--alone", action="store_true", help="leave icechunk out")
    options = parser.parse_args(arguments)
    chunks = options.chunks or (20_000 if options.quick else 1_000_000)
    options.side = round(chunks ** (1 / 3))
    if options.side < 24:
        parser.error(f"{chunks} chunks are too few for what is changed; give 14 000 or more")
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _rival_parts() -> Sequence[str]:
    """Return the parts that icechunk takes part in."""
    if importlib.util.find_spec("icechunk") is None:
        return ()
    from benchmarks.versions_icechunk import PARTS as RIVALS

    return tuple(RIVALS)


def _side_by_side(ours: Sequence[Figure], theirs: Sequence[Figure]) -> str:
    """Return what both do, and how many times longer icechunk takes."""
    known = {figure.what: figure for figure in ours}
    rows = []
    for figure in theirs:
        own = known[figure.what]
        ratio = f"{figure.value / own.value:,.2f}" if own.value else ""
        both = [quantity(one.value, one.unit) for one in (own, figure)]
        rows.append([figure.what, *both, ratio, figure.note])
    return table(["", "cas_zarr", "icechunk", "ratio", ""], rows)


if __name__ == "__main__":
    sys.exit(main())
