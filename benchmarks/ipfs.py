"""Measure publishing to a node of IPFS, and reading: `python -m benchmarks.ipfs`.

The node is the one of the tests (Kubo, offline, on loopback), a fresh one for each figure. Figures
stand beside the bars of the project; each is the median of all rounds.
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

from benchmarks import ipfs_publish, ipfs_read
from benchmarks.parts import Figure, figure_table, medians, run_part
from benchmarks.report import RESULTS, describe_machine, machine_line

__all__ = ["main"]

CHUNKS = {"publishing": 1000, "changing": 100_000, "reading": 4096, "far": 1_000_000}
MODULES = {part: module for module in (ipfs_publish, ipfs_read) for part in module.PARTS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print a table, write JSON."""
    options = _parse(arguments)
    folder = Path(options.folder or tempfile.gettempdir())
    machine = describe_machine(folder)
    print(machine_line(machine), flush=True)
    rounds: list[list[Figure]] = []
    for number in range(options.rounds):
        rounds.append([])
        with tempfile.TemporaryDirectory(dir=folder, prefix="cas-zarr-benchmark-") as place:
            for part, module in MODULES.items():
                os.sync()
                chunks = CHUNKS[part] // (10 if options.quick else 1)
                where = ["--folder", place, "--side", str(chunks)]
                rounds[-1] += run_part(module.__name__, part, where)
                print(f"round {number + 1}/{options.rounds}: {part} done", flush=True)
    if importlib.util.find_spec("py_hamt") is None:
        print("py-hamt is left out: it is not installed")
    figures = medians(rounds)
    print("\n" + figure_table("a node on loopback", figures))
    if options.quick:
        print("\nthe bars are for ten times as many chunks")
    options.json.parent.mkdir(exist_ok=True)
    document = {
        "machine": machine,
        "rounds": options.rounds,
        "bars_apply": not options.quick,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
    }
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.json}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ipfs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the chunks, one round")
    parser.add_argument("--rounds", type=int, help="rounds, 3 unless --quick")
    parser.add_argument("--folder", help="where repositories and nodes lie; temporary by default")
    parser.add_argument("--json", type=Path, default=RESULTS / "ipfs.json", help="results")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
