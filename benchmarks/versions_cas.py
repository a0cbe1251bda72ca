"""What cas_zarr takes for versions of a million chunks; `python -m benchmarks.versions` runs it.

Each part runs in a process of its own, all of a round on one repository, in the order of `PARTS`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.parts import (
    ARRAY,
    Figure,
    chunk_key,
    chunk_keys,
    clock,
    counting,
    document,
    peak_memory,
    print_part,
)
from benchmarks.report import folder_bytes

if TYPE_CHECKING:
    from cas_zarr import Repository

__all__ = ["LOGGED", "PAIRS", "PARTS", "SCATTERED", "chunk_value", "small_side"]

SCATTERED = 1000
"""Chunks that a large change has."""

LOGGED = 1000
"""Commits that a log goes through."""

PAIRS = 5
"""Pairs of branches; each is merged once."""

_COMMITS = 1600  # one after another, by one writer
_SMALL = 100_000  # chunks of the garbage that icechunk collects too
_WRITERS, _EACH = 8, 25  # processes on one branch, and the commits of each
_REPEATS = 11


def _fill(folder: Path, side: int) -> list[Figure]:
    """Make the repository: a version with all chunks, and branches that differ from it."""
    count = side**3
    with closing(_open(folder, create=True)) as repository:
        session = repository.session("main")
        mapping = session.mapping
        mapping.set_value(f"{ARRAY}/zarr.json", document(side))
        keys = chunk_keys(side)
        values = [chunk_value(0, number) for number in range(count)]
        with clock() as filling:
            for key, value in zip(keys, values, strict=True):
                mapping.set_value(key, value)
        with clock() as committing:
            session.commit("all chunks")
        stored = folder_bytes(folder / "repo")
        repository.create_tag("first")
        numbers = Random(0).sample(range(count), SCATTERED * (2 * PAIRS + 1))
        for place, name in enumerate(["one", "scattered", *_pair_names()]):
            repository.create_branch(name, "first")
            start = max(0, place - 1) * SCATTERED
            changed = [count // 2] if name == "one" else numbers[start : start + SCATTERED]
            _commit(repository, name, changed, side, stamp=place + 1)
    return [
        Figure("fill", filling(), "s", None, f"{count:,} × 16 B through the mapping"),
        Figure("commit of all chunks", committing(), "s"),
        Figure("stored", stored, "B"),
    ]


def _diff(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Compare versions in a repository that was opened for it: nothing is cached."""
    figures = []
    for name, count, limit in (("one", 1, 0.003), ("scattered", SCATTERED, 0.150)):
        alone, opened, boxes = [], [], []
        for _ in range(_REPEATS):
            with clock() as opening:
                repository = _open(folder, read_only=True)
            with closing(repository):
                with clock() as comparing:
                    (change,) = repository.diff("first", name)
                    found = len(change.coordinates)
                with clock() as boxing:
                    _ = change.boxes
            _check(f"diff of {name}", found, count)
            alone.append(comparing())
            opened.append(opening() + comparing())
            boxes.append(boxing())
        read, size = _blocks_read(folder, name)
        what = "diff, 1 changed chunk" if count == 1 else f"diff, {count:,} scattered changes"
        note = f"coordinates, CIDs, sizes; fresh objects, median of {_REPEATS}"
        figures += [
            Figure(what, statistics.median(alone), "s", limit, note),
            Figure(f"... {count:,}, opening in", statistics.median(opened), "s"),
            Figure("... merged boxes on top", statistics.median(boxes), "s"),
            Figure("... blocks read", read, "", 8 if count == 1 else None, f"{size:,} B"),
        ]
    return figures


def _merge(folder: Path, side: int) -> list[Figure]:
    """Merge two branches that changed other chunks; rebase a commit on another."""
    merging, rebasing = [], []
    for ours, theirs in _pairs():
        with closing(_open(folder)) as repository, clock() as once:
            result = repository.merge(theirs, into=ours)
        _check("merge", result.kind, "merge")
        merging.append(once())
    with closing(_open(folder)) as repository:
        (change,) = repository.diff("first", _pair_names()[0])
        _check("what was merged", len(change.coordinates), 2 * SCATTERED)
        count = side**3
        numbers = Random(1).sample(range(count), 2 * SCATTERED * PAIRS)
        for place in range(PAIRS):
            name = f"rebase-{place}"
            repository.create_branch(name, "first")
            start = 2 * place * SCATTERED
            session = repository.session(name)
            for number in numbers[start : start + SCATTERED]:
                session.mapping.set_value(chunk_key(number, side), chunk_value(90 + place, number))
            others = numbers[start + SCATTERED : start + 2 * SCATTERED]
            with closing(_open(folder)) as other:
                _commit(other, name, others, side, stamp=190 + place)
            with clock() as once:
                session.commit("on top of what another did")
            rebasing.append(once())
    each = f"{SCATTERED:,} + {SCATTERED:,} disjoint changes, median of {PAIRS}"
    return [
        Figure("merge of two branches", statistics.median(merging), "s", 0.5, f"{each}, fsync in"),
        Figure("... slowest", max(merging), "s"),
        Figure("commit after another's commit", statistics.median(rebasing), "s", None, each),
    ]


def _prove(folder: Path, side: int) -> list[Figure]:
    """Prove chunks of the array to who has the root CID alone."""
    from cas_zarr.repository.proof import check_proof

    edge = max(1, side // 10)
    figures = []
    for what, length in (("1 chunk", 1), (f"a box of {edge}³ chunks", edge)):
        low = side // 2
        box = [(low, low + length)] * 3
        seconds, checking = [], []
        for _ in range(_REPEATS):
            with closing(_open(folder, read_only=True)) as repository:
                root = repository.resolve("first").root
                with clock() as proving:
                    proof = repository.prove("first", ARRAY, box)
                with clock() as checked:
                    found = check_proof(proof, root, ARRAY, box)
            _check("proof", len(found), length**3)
            seconds.append(proving())
            checking.append(checked())
        figures += [
            Figure(f"proof of {what}", statistics.median(seconds), "s"),
            Figure("... check of it", statistics.median(checking), "s"),
            Figure("... size", len(proof), "B"),
        ]
    return figures


def _sync(folder: Path, side: int) -> list[Figure]:
    """Clone, pull a second version, push a changed chunk."""
    from cas_zarr import Repository

    count = side**3
    copied = (0, 0)

    def progress(blocks: int, size: int) -> None:
        nonlocal copied
        copied = blocks, size

    with clock() as cloning:
        clone = Repository.clone(
            folder / "repo", folder / "clone", branches=["main"], progress=progress
        )
    clone.close()
    cloned = copied
    peak = peak_memory()
    with closing(_open(folder)) as source:
        numbers = Random(2).sample(range(count), SCATTERED)
        _commit(source, "main", numbers, side, stamp=290)
    with closing(Repository.open(folder / "clone")) as repository:
        with clock() as pulling:
            pulled = repository.pull().fetched
        _check("pulled commits", pulled.commits, 1)
        _commit(repository, "main", [count // 3], side, stamp=291)
    with closing(Repository.open(folder / "clone")) as repository:
        with clock() as pushing:
            pushed = repository.push()
        _check("pushed commits", pushed.commits, 1)
    with closing(_open(folder, read_only=True)) as source:
        _check(
            "value",
            source.at("main").get_value(chunk_key(count // 3, side)),
            chunk_value(291, count // 3),
        )
    return [
        Figure("clone", cloning(), "s", None, "one branch, each block verified, fsynced"),
        Figure("... blocks", cloned[0], "", None, f"{cloned[1]:,} B"),
        Figure("... peak memory", peak, "B"),
        Figure("pull of a second version", pulling(), "s", None, f"{SCATTERED:,} chunks changed"),
        Figure("... blocks", pulled.blocks, "", None, f"{pulled.size:,} B"),
        Figure("push of 1 changed chunk", pushing(), "s"),
        Figure("... blocks", pushed.blocks, "", None, f"{pushed.size:,} B"),
    ]


def _verify(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Check the structure of a version, that of the repository, and all data."""
    figures = []
    kinds: list[tuple[str, dict[str, Any], str]] = [
        ("verify a version", {"version": "first"}, "structure hashed, values there"),
        ("verify the repository", {}, "all branches, packs and their indexes"),
        ("... all data read and hashed", {"data": True}, ""),
    ]
    for what, options, note in kinds:
        with closing(_open(folder, read_only=True)) as repository:
            with clock() as verifying:
                report = repository.verify(**options)
            _check(what, report.damages, 0)
        note = note or f"{report.read:,} blocks, {report.read_size:,} B"
        figures.append(Figure(what, verifying(), "s", None, note))
    return figures


def _commits(folder: Path, side: int) -> list[Figure]:
    """Make many commits of one changed chunk each; log them."""
    random = Random(3)
    edge = max(1, side // 10)
    with closing(_open(folder)) as repository:
        repository.create_branch("steps", "first")
        session = repository.session("steps")
        inside = 0
        seconds = []
        for number in range(_COMMITS):
            low, high = (0, edge) if number % 10 == 0 else (edge, side)
            place = [random.randrange(low, high) for _ in range(3)]
            key = f"{ARRAY}/c/{place[0]}/{place[1]}/{place[2]}"
            inside += number % 10 == 0 and number < LOGGED - 1
            with clock() as once:
                session.mapping.set_value(key, chunk_value(390, number))
                cid = session.commit(f"step {number}")
            seconds.append(once())
            if number == LOGGED - 2:  # the first commit of all is one of them
                repository.create_tag("logged", cid)
    figures = [
        Figure(
            "commits a second, one writer",
            _COMMITS / sum(seconds),
            "",
            None,
            f"{_COMMITS:,} of 1 chunk",
        ),
        Figure(
            "commit of 1 changed chunk", statistics.median(seconds), "s", None, "median, fsyncs in"
        ),
        Figure("... slowest", max(seconds), "s", None, "merging of packs in"),
    ]
    box = [(0, edge)] * 3
    logs: list[tuple[str, dict[str, Any], int, float | None, str]] = [
        (f"log, {LOGGED:,} commits", {}, LOGGED, None, ""),
        ("... --path of the array", {"path": ARRAY}, LOGGED, 1.0, "all have changed it"),
        ("... and a box", {"path": ARRAY, "box": box}, inside + 1, 1.0, f"{inside + 1} have"),
    ]
    for what, options, expected, limit, note in logs:
        times = []
        for _ in range(3):
            with closing(_open(folder, read_only=True)) as repository, clock() as once:
                found = sum(1 for _ in repository.log("logged", **options))
            _check(what, found, expected)
            times.append(once())
        figures.append(Figure(what, statistics.median(times), "s", limit, note))
    return figures


def _history(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Make a long history of one chunk, log it, and let it go: what does not depend on chunks."""
    from cas_zarr import Repository

    with closing(Repository.open(folder / "history", create=True)) as repository:
        session = repository.session("main")
        session.mapping.set_value(f"{ARRAY}/zarr.json", document(1))
        with clock() as committing:
            for number in range(LOGGED):
                session.mapping.set_value(chunk_key(0, 1), chunk_value(number, 0))
                session.commit(f"step {number}")
    logs = []
    for _ in range(3):
        with closing(Repository.open(folder / "history")) as repository, clock() as logging:
            found = sum(1 for _ in repository.log())
        _check("commits", found, LOGGED)
        logs.append(logging())
    with closing(Repository.open(folder / "history")) as repository:
        with clock() as expiring:
            report = repository.expire(keep=1)
        _check("expired commits", len(report.expired), LOGGED - 1)
        with clock() as collecting:
            collected = repository.gc(grace=timedelta(0), max_unused=0.0)
    what = f"{LOGGED:,} commits of a small array"
    return [
        Figure(f"{what}: make them", committing(), "s"),
        Figure("... log them", statistics.median(logs), "s"),
        Figure("... expire all but one", expiring(), "s"),
        Figure("... collect them", collecting(), "s", None, f"{collected.deleted_blocks:,} blocks"),
    ]


def _race(folder: Path, side: int) -> list[Figure]:
    """Let processes commit on one branch at once."""
    with closing(_open(folder)) as repository:
        repository.create_branch("busy", "first")
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(_WRITERS)
    results: Any = context.Queue()
    writers = [
        context.Process(target=_write, args=(folder, side, number, start, results))
        for number in range(_WRITERS)
    ]
    for writer in writers:
        writer.start()
    spans = [results.get(timeout=600) for _ in writers]
    for writer in writers:
        writer.join()
    with closing(_open(folder, read_only=True)) as repository:
        _check("commits", sum(1 for _ in repository.log("busy")), _WRITERS * _EACH + 1)
        (change,) = repository.diff("first", "busy")
        _check("chunks", len(change.coordinates), _WRITERS * _EACH)
    seconds = max(stop for _, stop, _ in spans) - min(start for start, _, _ in spans)
    what = f"commits a second, {_WRITERS} processes"
    note = f"{_EACH} each on one branch, none lost"
    return [
        Figure(what, _WRITERS * _EACH / seconds, "", None, note),
        Figure("... slowest commit", max(worst for _, _, worst in spans), "s"),
    ]


def _write(folder: Path, side: int, number: int, start: Any, results: Any) -> None:
    """Be one of the processes that commit at once."""
    with closing(_open(folder)) as repository:
        session = repository.session("busy")
        mine = range(number, side**3, _WRITERS)
        start.wait()
        began = perf_counter()
        worst = 0.0
        for chunk in Random(number).sample(mine, _EACH):
            with clock() as once:
                session.mapping.set_value(chunk_key(chunk, side), chunk_value(490, chunk))
                session.commit(f"chunk {chunk}")
            worst = max(worst, once())
        results.put((began, perf_counter(), worst))


def _mark(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Look for garbage among all blocks of few versions, changing nothing."""
    return _dry_run(folder, "gc, dry run", 10.0)


def _mark_all(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Look for garbage when there is a long history."""
    return _dry_run(folder, "gc, dry run, long history")


def _dry_run(folder: Path, what: str, limit: float | None = None) -> list[Figure]:
    with closing(_open(folder)) as repository:
        before = peak_memory()
        with clock() as marking:
            report = repository.gc(dry_run=True)
    peak = peak_memory()
    return [
        Figure(what, marking(), "s", limit, f"{report.blocks:,} blocks, {report.roots:,} roots"),
        Figure("... peak memory", peak, "B", None, f"of it before: {before:,} B"),
    ]


def _expire(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Let old commits go, and collect what only they had."""
    with closing(_open(folder)) as repository:
        with clock() as expiring:
            report = repository.expire(keep=1)
        with clock() as collecting:
            collected = repository.gc(grace=timedelta(0), max_unused=0.0)
    return [
        Figure(
            "expire, the large array", expiring(), "s", None, f"{len(report.expired):,} commits"
        ),
        Figure(
            "... gc after it",
            collecting(),
            "s",
            None,
            f"{collected.deleted_blocks:,} blocks deleted",
        ),
    ]


def _spoil(folder: Path, side: int) -> list[Figure]:
    """Make repositories in which every other block is garbage."""
    _make_half(folder / "half", side)
    _make_half(folder / "half-small", small_side(side))
    return []


def _make_half(path: Path, side: int) -> None:
    from cas_zarr import Repository

    with closing(Repository.open(path, create=True)) as repository:
        session = repository.session("main")
        session.mapping.set_value(f"{ARRAY}/zarr.json", document(side))
        session.commit("none of them")
        keys = chunk_keys(side)
        for number, key in enumerate(keys):
            session.mapping.set_value(key, chunk_value(0, number))
        session.flush()
        for key in keys[::2]:
            session.mapping.discard(key)
        session.flush()  # or the log of refs would keep the work that the commit replaces
        session.commit("half of them")


def _sweep(folder: Path, side: int) -> list[Figure]:
    """Collect them: condemn first, then delete, as one does a grace time apart."""
    from cas_zarr import Repository

    count = side**3
    with closing(Repository.open(folder / "half")) as repository:
        before = peak_memory()
        with clock() as condemning:
            condemned = repository.gc()
        with clock() as deleting:
            deleted = repository.gc(grace=timedelta(0))
        peak = peak_memory()
        _check("condemned blocks", condemned.condemned_blocks >= count // 2, True)
        _check("deleted blocks", deleted.deleted_blocks, condemned.condemned_blocks)
        _check("a value", repository.at("main").get_value(chunk_key(1, side)), chunk_value(0, 1))
    return [
        Figure(
            "gc, half is garbage: condemn", condemning(), "s", 10.0, f"{condemned.blocks:,} blocks"
        ),
        Figure(
            "... delete",
            deleting(),
            "s",
            10.0,
            f"{deleted.deleted_blocks:,} blocks, {deleted.freed:,} B freed",
        ),
        Figure("... peak memory", peak, "B", None, f"of it before: {before:,} B"),
    ]


def _sweep_small(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Collect half of as many blocks as icechunk can take."""
    from cas_zarr import Repository

    with closing(Repository.open(folder / "half-small")) as repository, clock() as collecting:
        report = repository.gc(grace=timedelta(0))
    note = f"{report.deleted_blocks:,} of {report.blocks:,} blocks"
    return [Figure("gc of a smaller one at once", collecting(), "s", None, note)]


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {
    "fill": _fill,
    "diff": _diff,
    "merge": _merge,
    "prove": _prove,
    "sync": _sync,
    "verify": _verify,
    "mark": _mark,
    "commits": _commits,
    "history": _history,
    "race": _race,
    "mark-all": _mark_all,
    "expire": _expire,
    "spoil": _spoil,
    "sweep": _sweep,
    "sweep-small": _sweep_small,
}


def _open(folder: Path, *, create: bool = False, read_only: bool = False) -> Repository:
    from cas_zarr import Repository

    return Repository.open(folder / "repo", create=create, read_only=read_only)


def _commit(
    repository: Repository, branch: str, numbers: Sequence[int], side: int, *, stamp: int
) -> None:
    """Change chunks on a branch, in one commit."""
    session = repository.session(branch)
    for number in numbers:
        session.mapping.set_value(chunk_key(number, side), chunk_value(stamp, number))
    session.commit(f"{len(numbers)} chunks")


def chunk_value(stamp: int, number: int) -> bytes:
    """Return the value of a chunk, another one for each stamp."""
    return (stamp << 64 | number).to_bytes(16, "little")


def _pairs() -> list[tuple[str, str]]:
    return [(f"ours-{number}", f"theirs-{number}") for number in range(PAIRS)]


def _pair_names() -> list[str]:
    return [name for pair in _pairs() for name in pair]


def small_side(side: int) -> int:
    return min(side, round(_SMALL ** (1 / 3)))


def _blocks_read(folder: Path, name: str) -> tuple[int, int]:
    """Return how many blocks a diff reads, counting again what is read again, and their bytes."""
    with closing(_open(folder, read_only=True)) as repository:
        watched, blocks = counting(repository)
        for change in watched.diff("first", name):
            _ = change.coordinates
    return blocks.reads, blocks.bytes_read


def _check(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"{what}: {found!r} where {expected!r} was expected")


if __name__ == "__main__":
    sys.exit(print_part(PARTS))
