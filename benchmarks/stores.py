"""Measure Zarr stores side by side: `python -m benchmarks.stores`.

One run, rounds interleaved (every store takes its turn in every round, in rotated order), medians.
The file system is synced outside the clock before each turn, so that nobody pays for the pages
that another store left dirty. All files lie in the page cache when they are read: this compares
the stores, not the disk.

Memory is touched before each clock starts: the first to use a page that the machine has never
given out pays for it, up to ten times the copy itself in a virtual machine, whichever store that
is. Where the rounds of one side differ by more than `UNSETTLED`, the verdict on a bar is marked:
it says more of the machine than of the stores.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.core.codec_pipeline as codec_pipeline

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.report import describe_machine, format_seconds, machine_line, table, write_json

__all__ = ["BARS", "CASES", "Bar", "Case", "main"]

PHASES = ("write", "commit", "rewrite", "read", "cold")
"""`rewrite` is the same data once more with its flush; `cold` opens afresh and reads a chunk."""

UNSETTLED = 1.5
"""Largest ratio between the rounds of one figure that a verdict may rest on."""

_READS = 3
_FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"


@dataclass(frozen=True, slots=True)
class Case:
    """`count` chunks of `size` bytes, in a one-dimensional float32 array."""

    name: str
    count: int
    size: int


CASES = {
    case.name: case
    for case in (
        Case("64x4MB", 64, 4 << 20),
        Case("4096x64KB", 4096, 64 << 10),
        Case("20000x1KB", 20_000, 1 << 10),
    )
}
_QUICK = {"64x4MB": 8, "4096x64KB": 512, "20000x1KB": 2000}


@dataclass(frozen=True, slots=True)
class Bar:
    """What cas_zarr must reach: seconds of `phase` at most `limit` times those of `against`."""

    case: str
    pipeline: str
    phase: str
    against: str
    limit: float
    codec: str = "none"


BARS = (
    Bar("4096x64KB", "default", "write", "MemoryStore", 1.35),
    Bar("4096x64KB", "default", "write", "LocalStore", 0.35),
    Bar("4096x64KB", "default", "read", "MemoryStore", 1.25),
    Bar("4096x64KB", "default", "read", "LocalStore", 0.6),
    Bar("20000x1KB", "default", "write", "MemoryStore", 1.15),
    Bar("20000x1KB", "default", "write", "LocalStore", 0.3),
    Bar("20000x1KB", "default", "read", "MemoryStore", 1.15),
    Bar("20000x1KB", "default", "read", "LocalStore", 0.3),
    Bar("64x4MB", "default", "write", "LocalStore", 1.5),
    Bar("64x4MB", "default", "read", "LocalStore", 1.25),
    Bar("4096x64KB", "fused", "write", "MemoryStore", 1.4),
    Bar("4096x64KB", "fused", "read", "MemoryStore", 1.2),
    Bar("20000x1KB", "fused", "write", "MemoryStore", 1.4),
    Bar("20000x1KB", "fused", "read", "MemoryStore", 1.25),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one store did in one round of one case."""

    case: str
    codec: str
    pipeline: str
    store: str
    round: int
    seconds: dict[str, float]
    stored: int
    new_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print tables, write JSON."""
    options = _parse(arguments)
    folder = Path(options.folder or tempfile.gettempdir())
    machine = describe_machine(folder)
    print(machine_line(machine), flush=True)
    names = []
    for name in options.stores:
        reason = CONTENDERS[name].missing()
        print(f"{name}: {'skipped, ' + reason if reason else CONTENDERS[name].note}")
        if reason is None:
            names.append(name)
    pipelines = list(options.pipelines)
    if "fused" in pipelines and not hasattr(codec_pipeline, "FusedCodecPipeline"):
        print(f"pipeline fused: skipped, zarr {zarr.__version__} has none")
        pipelines.remove("fused")

    turns: list[Turn] = []
    for case in (CASES[name] for name in options.case):
        if options.quick:
            case = Case(case.name, _QUICK[case.name], case.size)
        for codec in options.codecs:
            for pipeline in pipelines:
                turns += _run(case, codec, pipeline, names, options.rounds, folder)
                print()
                print(_case_table(turns, case.name, codec, pipeline), flush=True)
    verdicts = _judge(turns)
    if verdicts:
        print()
        print(_bar_table(verdicts))
    path = write_json(
        options.name,
        {
            "machine": machine,
            "quick": options.quick,
            "rounds": options.rounds,
            "turns": [asdict(turn) for turn in turns],
            "bars": verdicts,
        },
    )
    print(f"\nwritten to {path}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    default_stores = [name for name in CONTENDERS if name != "cas_zarr-memory"]
    parser.add_argument("--quick", action="store_true", help="an eighth of the chunks, one round")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--stores", nargs="+", choices=CONTENDERS, default=default_stores)
    parser.add_argument("--codecs", nargs="+", choices=("none", "zstd"), default=["none", "zstd"])
    parser.add_argument(
        "--pipelines", nargs="+", choices=("default", "fused"), default=["default", "fused"]
    )
    parser.add_argument("--rounds", type=int, help="rounds of each case, 3 unless --quick")
    parser.add_argument("--folder", help="where the stores live; a temporary folder by default")
    parser.add_argument("--name", default="stores", help="name of the JSON file of results")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


# -- measuring ----------------------------------------------------------------------------------


def _run(
    case: Case, codec: str, pipeline: str, names: list[str], rounds: int, folder: Path
) -> list[Turn]:
    """Let every store take its turn in every round."""
    words = case.count * case.size // 4
    data = np.random.default_rng(7).random(words, dtype=np.float32)
    settings: dict[str, Any] = {}
    if pipeline == "fused":
        settings = {"codec_pipeline.path": _FUSED, "codec_pipeline.max_workers": 1}
    turns = []
    with zarr.config.set(settings):
        for round_ in range(rounds):
            shift = round_ % len(names)
            for name in names[shift:] + names[:shift]:
                with _quiet(folder) as place:
                    contender = CONTENDERS[name](place)
                    seconds, stored, new_bytes = _turn(contender, case, codec, data)
                turns.append(
                    Turn(case.name, codec, pipeline, name, round_, seconds, stored, new_bytes)
                )
                _progress(f"{case.name} {codec} {pipeline} round {round_ + 1}/{rounds} {name}")
    _progress("")
    return turns


def _turn(
    contender: Contender, case: Case, codec: str, data: npt.NDArray[np.float32]
) -> tuple[dict[str, float], int, int]:
    """Take one store through all phases."""
    seconds: dict[str, float] = {}
    _touch(data)
    with _clock(seconds, "write"):
        store = contender.create()
        array = zarr.create_array(
            store,
            name="data",
            shape=data.shape,
            chunks=(case.size // 4,),
            dtype=data.dtype,
            compressors=None if codec == "none" else [zarr.codecs.ZstdCodec(level=3)],
        )
        array[...] = data
    with _clock(seconds, "commit"):
        contender.commit()
    stored = contender.stored_bytes()
    os.sync()
    _touch(data)
    with _clock(seconds, "rewrite"):
        array = zarr.open_array(contender.again(store), path="data", mode="r+")
        array[...] = data
        contender.commit_again()
    new_bytes = contender.stored_bytes() - stored
    os.sync()
    del array
    reads = []
    for _ in range(_READS):
        reading = zarr.open_array(contender.reopen(), path="data", mode="r")
        _touch(data)
        with _clock(seconds, "read"):
            result = reading[...]
        if not np.array_equal(result, data):
            raise SystemExit(f"{contender.name} gave back other data than was written")
        reads.append(seconds["read"])
        del reading, result
    seconds["read"] = statistics.median(reads)
    place = case.count // 2 * (case.size // 4)
    with _clock(seconds, "cold"):
        zarr.open_array(contender.reopen(), path="data", mode="r")[place]
    contender.remove()
    return seconds, stored, new_bytes


def _touch(data: npt.NDArray[np.float32]) -> None:
    """Use twice the memory of `data` and give it back, so that the next to ask gets it warm."""
    for block in [np.empty_like(data) for _ in range(2)]:
        block.fill(0)


@contextmanager
def _clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    gc.collect()
    start = perf_counter()
    yield
    seconds[phase] = perf_counter() - start


@contextmanager
def _quiet(folder: Path) -> Iterator[Path]:
    """Give a fresh folder on a disk that has nothing left to write."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="cas-zarr-benchmark-") as place:
        os.sync()
        yield Path(place) / "store"
    os.sync()


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# -- judging ------------------------------------------------------------------------------------


def _medians(turns: list[Turn], case: str, codec: str, pipeline: str) -> dict[str, dict[str, Any]]:
    """Return for each store the median of each phase, and its bytes."""
    chosen = [t for t in turns if (t.case, t.codec, t.pipeline) == (case, codec, pipeline)]
    result: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(turn.store for turn in chosen):
        mine = [turn for turn in chosen if turn.store == name]
        result[name] = {
            phase: statistics.median(turn.seconds[phase] for turn in mine) for phase in PHASES
        }
        result[name]["write+commit"] = statistics.median(
            turn.seconds["write"] + turn.seconds["commit"] for turn in mine
        )
        result[name]["spread"] = {
            phase: max(turn.seconds[phase] for turn in mine)
            / min(turn.seconds[phase] for turn in mine)
            for phase in PHASES
        }
        result[name]["stored"] = mine[0].stored
        result[name]["new_bytes"] = max(turn.new_bytes for turn in mine)
    return result


def _case_table(turns: list[Turn], case: str, codec: str, pipeline: str) -> str:
    medians = _medians(turns, case, codec, pipeline)
    rows = []
    for name, values in medians.items():
        row = [name]
        for phase in PHASES:
            cell = format_seconds(values[phase])
            if phase in ("write", "read") and name == "cas_zarr":
                ratios = [
                    f"{values[phase] / medians[other][phase]:.2f} {short}"
                    for other, short in (("MemoryStore", "M"), ("LocalStore", "L"))
                    if other in medians
                ]
                cell += f" ({', '.join(ratios)})" if ratios else ""
            row.append(cell)
        row += [f"{values['stored'] / 1e6:.1f} MB", f"{values['new_bytes'] / 1e6:.3f} MB"]
        rows.append(row)
    head = [f"{case}, {codec}, {pipeline}", *PHASES, "stored", "new in rewrite"]
    return table(head, rows)


def _judge(turns: list[Turn]) -> list[dict[str, Any]]:
    """Return each bar with the figure that was reached, where this run measured both sides."""
    verdicts: list[dict[str, Any]] = []
    rounds = 1 + max(turn.round for turn in turns)
    for bar in BARS:
        medians = _medians(turns, bar.case, bar.codec, bar.pipeline)
        if "cas_zarr" not in medians or bar.against not in medians:
            continue
        ours, theirs = medians["cas_zarr"], medians[bar.against]
        ratio = ours[bar.phase] / theirs[bar.phase]
        spread = max(side["spread"][bar.phase] for side in (ours, theirs))
        verdict = {
            **asdict(bar),
            "ratio": round(ratio, 3),
            "met": ratio <= bar.limit,
            "spread": round(spread, 2),
            "settled": spread <= UNSETTLED and rounds >= 3,
        }
        if bar.phase == "write":  # the bar again with the fsyncs, which the others do without
            durable = ours["write+commit"] / theirs["write"]
            verdict["ratio_with_commit"] = round(durable, 3)
        verdicts.append(verdict)
    for case, codec, pipeline in dict.fromkeys((t.case, t.codec, t.pipeline) for t in turns):
        ours = _medians(turns, case, codec, pipeline).get("cas_zarr")
        if ours is None:
            continue
        ratio = ours["rewrite"] / ours["write+commit"]
        verdicts.append(
            {
                **asdict(Bar(case, pipeline, "rewrite", "its first write", 1.0, codec)),
                "ratio": round(ratio, 3),
                "new_bytes": ours["new_bytes"],
                "met": ratio < 1 and ours["new_bytes"] == 0,
            }
        )
    return verdicts


def _bar_table(verdicts: list[dict[str, Any]]) -> str:
    rows = []
    for verdict in verdicts:
        extra = ""
        said = "met" if verdict["met"] else "MISSED"
        if not verdict.get("settled", True):
            said += f"? rounds differ {verdict['spread']:.1f} times"
        if "ratio_with_commit" in verdict:
            extra = f"{verdict['ratio_with_commit']:.2f} with commit"
        elif "new_bytes" in verdict:
            extra = f"{verdict['new_bytes']} new bytes"
        rows.append(
            [
                f"{verdict['case']}, {verdict['codec']}, {verdict['pipeline']}",
                verdict["phase"],
                f"{verdict['limit']} × {verdict['against']}",
                f"{verdict['ratio']:.2f}",
                said,
                extra,
            ]
        )
    return table(["bar", "phase", "at most", "reached", "", ""], rows)


if __name__ == "__main__":
    sys.exit(main())
