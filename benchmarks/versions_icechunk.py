"""What icechunk takes for the same versions; `python -m benchmarks.versions` runs this beside.

The array is the same. Values of 16 bytes lie in its manifests, as its defaults have it; where
chunks are to be garbage, each is a file. Its differences are told from logs of transactions, so
they are between a version and one that follows it. It does not recommend local files to several
writers at once; that is left out, and so is what it has no word for: proofs, clones, merges of
branches, logs of a path.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import batched
from pathlib import Path
from random import Random
from typing import Any

import icechunk
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from benchmarks.parts import (
    ARRAY,
    Figure,
    chunk_key,
    chunk_keys,
    clock,
    document,
    print_part,
)
from benchmarks.report import folder_bytes
from benchmarks.versions_cas import LOGGED, PAIRS, SCATTERED, chunk_value, small_side

__all__ = ["PARTS"]

_REPEATS = 11
_GROUP = b'{"zarr_format":3,"node_type":"group"}'
_BATCH = 1000
_COMMITS = 20


def _fill(folder: Path, side: int) -> list[Figure]:
    repository = _open(folder, create=True)
    session = repository.writable_session("main")
    _put(session, [("zarr.json", _GROUP), (f"{ARRAY}/zarr.json", document(side))])
    count = side**3
    with clock() as filling:
        _put(session, ((key, chunk_value(0, n)) for n, key in enumerate(chunk_keys(side))))
    with clock() as committing:
        first = session.commit("all chunks")
    stored = folder_bytes(folder / "icechunk")
    repository.create_tag("first", first)
    for name, numbers in (
        ("one", [count // 2]),
        ("scattered", Random(0).sample(range(count), SCATTERED)),
    ):
        repository.create_branch(name, first)
        _commit(repository, name, numbers, side, stamp=1)
    return [
        Figure("fill", filling(), "s", None, f"{count:,} × 16 B, `store.set` {_BATCH:,} at a time"),
        Figure("commit of all chunks", committing(), "s"),
        Figure("stored", stored, "B", None, "16 B chunks lie in manifests, compressed"),
    ]


def _diff(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    figures = []
    for name, count in (("one", 1), ("scattered", SCATTERED)):
        seconds, opened = [], []
        for _ in range(_REPEATS):
            with clock() as opening:
                repository = _open(folder)
            with clock() as comparing:
                found = repository.diff(from_tag="first", to_branch=name).updated_chunks
            if len(found[f"/{ARRAY}"]) != count:
                raise SystemExit(f"icechunk found {len(found[f'/{ARRAY}'])} of {count} changes")
            seconds.append(comparing())
            opened.append(opening() + comparing())
        what = "diff, 1 changed chunk" if count == 1 else f"diff, {count:,} scattered changes"
        figures += [
            Figure(what, statistics.median(seconds), "s", None, "from logs; coordinates only"),
            Figure(f"... {count:,}, opening in", statistics.median(opened), "s"),
        ]
    return figures


def _merge(folder: Path, side: int) -> list[Figure]:
    repository = _open(folder)
    first = repository.lookup_tag("first")
    numbers = Random(1).sample(range(side**3), 2 * SCATTERED * PAIRS)
    seconds = []
    for place in range(PAIRS):
        name = f"rebase-{place}"
        repository.create_branch(name, first)
        start = 2 * place * SCATTERED
        session = repository.writable_session(name)
        mine = numbers[start : start + SCATTERED]
        _put(session, ((chunk_key(n, side), chunk_value(90 + place, n)) for n in mine))
        others = numbers[start + SCATTERED : start + 2 * SCATTERED]
        _commit(_open(folder), name, others, side, stamp=190 + place)
        with clock() as once:
            session.commit("on top of what another did", rebase_with=icechunk.ConflictDetector())
        seconds.append(once())
    what = "commit after another's commit"
    return [Figure(what, statistics.median(seconds), "s", None, "with its `ConflictDetector`")]


def _commits(folder: Path, side: int) -> list[Figure]:
    repository = _open(folder)
    repository.create_branch("steps", repository.lookup_tag("first"))
    random = Random(3)
    seconds = []
    for number in range(_COMMITS):
        chunk = random.randrange(side**3)
        session = repository.writable_session("steps")
        with clock() as once:
            _put(session, [(chunk_key(chunk, side), chunk_value(390, number))])
            session.commit(f"step {number}")
        seconds.append(once())
    figure = Figure(
        "commit of 1 changed chunk", statistics.median(seconds), "s", None, f"of {_COMMITS}"
    )
    return [figure]


def _history(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    repository = _open(folder, "icechunk-history", create=True)
    with clock() as committing:
        for number in range(LOGGED):
            session = repository.writable_session("main")
            if number == 0:
                _put(session, [("zarr.json", _GROUP), (f"{ARRAY}/zarr.json", document(1))])
            _put(session, [(chunk_key(0, 1), chunk_value(number, 0))])
            session.commit(f"step {number}")
    logs = []
    for _ in range(3):
        repository = _open(folder, "icechunk-history")
        with clock() as logging:
            found = sum(1 for _ in repository.ancestry(branch="main"))
        if found != LOGGED + 1:  # it begins with a commit of its own
            raise SystemExit(f"icechunk has {found} commits where {LOGGED + 1} were expected")
        logs.append(logging())
    now = datetime.now(UTC)
    with clock() as expiring:
        expired = repository.expire_snapshots(older_than=now)
    with clock() as collecting:
        done = repository.garbage_collect(delete_object_older_than=now)
    files = done.snapshots_deleted + done.manifests_deleted + done.transaction_logs_deleted
    what = f"{LOGGED:,} commits of a small array"
    return [
        Figure(f"{what}: make them", committing(), "s", None, "no fsync"),
        Figure("... log them", statistics.median(logs), "s"),
        Figure("... expire all but one", expiring(), "s", None, f"{len(expired):,} expired"),
        Figure("... collect them", collecting(), "s", None, f"{files:,} files"),
    ]


def _spoil(folder: Path, side: int) -> list[Figure]:
    side = small_side(side)
    repository = _open(folder, "icechunk-half", create=True, inline=0)
    session = repository.writable_session("main")
    _put(session, [("zarr.json", _GROUP), (f"{ARRAY}/zarr.json", document(side))])
    keys = chunk_keys(side)
    _put(session, ((key, chunk_value(0, number)) for number, key in enumerate(keys)))
    session.commit("all chunks")
    session = repository.writable_session("main")
    _delete(session, keys[::2])
    session.commit("half of them")
    return []


def _sweep_small(folder: Path, side: int) -> list[Figure]:
    repository = _open(folder, "icechunk-half", inline=0)
    now = datetime.now(UTC)
    with clock() as collecting:
        repository.expire_snapshots(older_than=now)
        collected = repository.garbage_collect(delete_object_older_than=now)
    note = f"{collected.chunks_deleted:,} of {small_side(side) ** 3:,} files"
    return [Figure("gc of a smaller one at once", collecting(), "s", None, note)]


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {
    "fill": _fill,
    "diff": _diff,
    "merge": _merge,
    "commits": _commits,
    "history": _history,
    "spoil": _spoil,
    "sweep-small": _sweep_small,
}


def _open(
    folder: Path, name: str = "icechunk", *, create: bool = False, inline: int | None = None
) -> Any:
    config = icechunk.RepositoryConfig.default()
    if inline is not None:
        config.inline_chunk_threshold_bytes = inline
    storage = icechunk.local_filesystem_storage(str(folder / name))
    made = icechunk.Repository.create if create else icechunk.Repository.open
    return made(storage, config=config)


def _put(session: Any, items: Iterable[tuple[str, bytes]]) -> None:
    """Set keys, many at once."""
    make = default_buffer_prototype().buffer.from_bytes
    store = session.store
    sync(_in_batches(store.set(key, make(value)) for key, value in items))


def _delete(session: Any, keys: Iterable[str]) -> None:
    store = session.store
    sync(_in_batches(store.delete(key) for key in keys))


async def _in_batches(calls: Iterator[Any]) -> None:
    for some in batched(calls, _BATCH):
        await asyncio.gather(*some)


def _commit(repository: Any, branch: str, numbers: Sequence[int], side: int, *, stamp: int) -> None:
    session = repository.writable_session(branch)
    _put(session, ((chunk_key(n, side), chunk_value(stamp, n)) for n in numbers))
    session.commit(f"{len(numbers)} chunks")


if __name__ == "__main__":
    icechunk.set_logs_filter("error")  # it warns that local files are not safe for many writers
    sys.exit(print_part(PARTS))
