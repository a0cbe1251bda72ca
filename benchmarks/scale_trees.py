"""One array of very many chunks: its tree, one change, one difference, one read, one mark.

There are no data: links are of random digests, which no page can make smaller, and sizes those of
compressed chunks. Only the chunks that are changed and read are real. Each part runs in a process
of its own, all on one repository; `python -m benchmarks.scale trees` runs them.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from time import process_time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.parts import (
    ARRAY,
    Figure,
    bytes_written,
    chunk_key,
    clock,
    counting,
    document,
    drop_cached_files,
    peak_memory,
    print_part,
    timed,
)
from benchmarks.report import folder_bytes

__all__ = ["PARTS", "Links", "cubes"]

_CUBE = 64  # chunks along each side of a batch
_CHANGES = 20
_SCATTERED = 10_000
_WALKED = 2_000_000  # chunks; a walk takes more than 100 bytes for each
_BARRED = 99_000_000  # chunks from which the bars apply


class Links(NamedTuple):
    """Chunks of one batch: coordinates (n, 3), CIDs (n, 36) and sizes (n,)."""

    coordinates: NDArray[np.int64]
    cids: NDArray[np.uint8]
    sizes: NDArray[np.uint64]


def cubes(side: int) -> Iterator[Links]:
    """Yield the chunks of a grid of side³, cube by cube in Morton order."""
    from cas_zarr.cid import BLAKE3, RAW, make_cid
    from cas_zarr.tree.morton import decode

    head = np.frombuffer(make_cid(RAW, BLAKE3, b""), np.uint8)
    inside = decode(np.arange(_CUBE**3, dtype=np.uint64), 3)
    across = 1 << (-(-side // _CUBE) - 1).bit_length()
    for number, corner in enumerate(decode(np.arange(across**3, dtype=np.uint64), 3) * _CUBE):
        if (corner >= side).any():
            continue
        coordinates = inside + corner
        coordinates = coordinates[(coordinates < side).all(axis=1)]
        count = len(coordinates)
        random = np.random.default_rng([1, number])
        cids = np.empty((count, 36), np.uint8)
        cids[:, : len(head)] = head
        cids[:, len(head) :] = np.frombuffer(random.bytes(32 * count), np.uint8).reshape(-1, 32)
        yield Links(coordinates, cids, random.integers(1 << 16, 1 << 20, count, np.uint64))


def _build(folder: Path, side: int) -> list[Figure]:
    """Link all chunks, cube by cube, and commit."""
    from cas_zarr import Repository

    before = peak_memory()
    making = linking = 0.0
    with closing(Repository.open(folder / "repo", create=True)) as repository:
        session = repository.session("main")
        session.mapping.set_value(f"{ARRAY}/zarr.json", document(side))
        batches = cubes(side)
        while True:
            with clock() as once:
                links = next(batches, None)
            making += once()
            if links is None:
                break
            with clock() as once:
                session.mapping.set_links(ARRAY, *links)
            linking += once()
        with clock() as committing:
            session.commit("all chunks")
        chunks, peak = side**3, peak_memory()
        levels, pages = _pages(session.mapping, chunks)
        blocks = repository.blocks.stats().blocks
        root = len(repository.blocks.get(repository.resolve("main").root))
    stored = folder_bytes(folder / "repo")
    return [
        _figure(side, "build", linking + committing(), "s", 600, "linked, committed, fsynced"),
        Figure("... links made up", making, "s", None, "not in the build"),
        Figure(
            "levels of pages", levels, "", None, "with the top, which is in the root or a block"
        ),
        Figure("pages", pages, ""),
        Figure("blocks written", blocks, "", None, "pages that were replaced meanwhile are in it"),
        Figure("stored", stored, "B"),
        Figure("stored, a thousand chunks", 1000 * stored / chunks, "B"),
        Figure("root document", root, "B"),
        _figure(side, "peak memory", peak, "B", 4_000_000_000, f"{before:,} B before"),
    ]


def _change(folder: Path, side: int) -> list[Figure]:
    """Commit one chunk, at twenty places one after another."""
    from cas_zarr import Repository

    seconds, computing, blocks, written = [], [], [], []
    with closing(Repository.open(folder / "repo")) as repository:
        session = repository.session("main")
        for number in _changed(side):
            session.mapping.set_value(chunk_key(number, side), _value(number))
            held, handed = repository.blocks.stats().blocks, bytes_written()
            start = process_time()
            with clock() as committing:
                session.commit("one chunk")
            seconds.append(committing())
            computing.append(process_time() - start)
            blocks.append(repository.blocks.stats().blocks - held)
            written.append(bytes_written() - handed)
    note = f"median of {_CHANGES}"
    return [
        _figure(side, "commit of one chunk", statistics.median(seconds), "s", 0.015, note),
        Figure("... of it on the processor", statistics.median(computing), "s"),
        Figure(
            "... a file of as many bytes, fsynced", _fsync(folder, written), "s", None, "the disk"
        ),
        Figure("... first, nothing read yet", seconds[0], "s"),
        Figure("... slowest", max(seconds), "s"),
        Figure("... blocks", statistics.median(blocks), "", None, "chunk and commit in"),
        Figure("... bytes written", statistics.median(written), "B"),
        Figure("peak memory of commits", peak_memory(), "B"),
    ]


def _diff(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Compare the last two versions, with everything opened anew."""
    from cas_zarr import Repository

    def compare(repository: Any) -> None:
        (change,) = repository.diff("main~1", "main")
        if len(change.coordinates) != 1:
            raise SystemExit(f"{len(change.coordinates)} changes where 1 was expected")

    seconds = []
    for _ in range(_CHANGES):
        with closing(Repository.open(folder / "repo", read_only=True)) as repository:
            seconds.append(timed(lambda repository=repository: compare(repository)))
    with closing(Repository.open(folder / "repo", read_only=True)) as repository:
        watched, blocks = counting(repository)
        compare(watched)
    return [
        Figure("diff of one chunk", statistics.median(seconds), "s", None, f"median of {_CHANGES}"),
        Figure("... blocks read", blocks.reads, ""),
        Figure("... bytes read", blocks.bytes_read, "B"),
    ]


def _open(folder: Path, side: int) -> list[Figure]:
    """Open the repository in this fresh process and read one chunk."""
    from cas_zarr import Repository

    numbers = iter(_changed(side))

    def read() -> None:
        number = next(numbers)
        with closing(Repository.open(folder / "repo", read_only=True)) as repository:
            value = repository.at("main").get_value(chunk_key(number, side))
        if value != _value(number):
            raise SystemExit(f"chunk {number} is not what was written")

    drop_cached_files(folder)
    from_disk = timed(read)
    start = process_time()
    again = statistics.median(timed(read) for _ in range(_CHANGES - 2))
    computing = (process_time() - start) / (_CHANGES - 2)
    with closing(Repository.open(folder / "repo", read_only=True)) as repository:
        watched, blocks = counting(repository)
        watched.at("main").get_value(chunk_key(next(numbers), side))
    return [
        _figure(
            side, "open + one chunk", again, "s", 0.010, f"fresh objects, {_CHANGES - 2} places"
        ),
        Figure("... of it on the processor", computing, "s", None, "mean"),
        Figure("... first in a process, from disk", from_disk, "s", None, "page cache dropped"),
        Figure("... blocks read", blocks.reads, "", None, "commit, root, pages, chunk"),
        Figure("... bytes read", blocks.bytes_read, "B"),
        Figure("peak memory of a reader", peak_memory(), "B"),
    ]


def _scatter(folder: Path, side: int) -> list[Figure]:
    """Commit chunks that lie all over the array."""
    from cas_zarr import Repository

    before = peak_memory()
    with closing(Repository.open(folder / "repo")) as repository:
        session = repository.session("main")
        for number in Random(side + 1).sample(range(side**3), _SCATTERED):
            session.mapping.set_value(chunk_key(number, side), _value(number))
        handed, start = bytes_written(), process_time()
        with clock() as committing:
            session.commit("scattered chunks")
        computing, written = process_time() - start, bytes_written() - handed
    return [
        Figure(f"commit of {_SCATTERED:,} scattered chunks", committing(), "s"),
        Figure("... of it on the processor", computing, "s"),
        Figure("... bytes written", written, "B"),
        Figure("... peak memory", peak_memory(), "B", None, f"{before:,} B before"),
    ]


def _walk(folder: Path, side: int) -> list[Figure]:
    """Go through all blocks of a root, as a clone or an export does; not where that is too much."""
    from cas_zarr import Repository
    from cas_zarr.tree.walk import reachable

    before, blocks, seconds = peak_memory(), 0, 0.0
    if side**3 <= _WALKED:
        with closing(Repository.open(folder / "repo", read_only=True)) as repository:
            root = repository.resolve("main").root
            with clock() as walking:
                blocks = sum(1 for _ in reachable(repository.blocks, root))
        seconds = walking()
    grown = peak_memory() - before
    return [
        Figure("walk over all links", seconds, "s", None, f"{blocks:,} blocks named"),
        Figure(
            "... memory a block", grown / blocks if blocks else 0, "B", None, "each is remembered"
        ),
    ]


def _mark(folder: Path, side: int) -> list[Figure]:  # noqa: ARG001
    """Find out what a collection would delete: all pages are opened, all links looked up."""
    from cas_zarr import Repository

    before = peak_memory()
    with closing(Repository.open(folder / "repo")) as repository, clock() as marking:
        report = repository.gc(dry_run=True)
    return [
        Figure("gc, dry run", marking(), "s", None, f"{report.roots} roots"),
        Figure("... peak memory", peak_memory(), "B", None, f"{before:,} B before"),
    ]


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {
    "build": _build,
    "change": _change,
    "diff": _diff,
    "open": _open,
    "scatter": _scatter,
    "walk": _walk,
    "mark": _mark,
}


def _figure(side: int, what: str, value: float, unit: str, limit: float, note: str) -> Figure:
    return Figure(what, value, unit, limit if side**3 >= _BARRED else None, note)


def _changed(side: int) -> list[int]:
    """Return the chunks that are changed, and read afterwards."""
    return Random(side).sample(range(side**3), _CHANGES)


def _fsync(folder: Path, sizes: list[int]) -> float:
    """Return the median of the seconds that a new file and its name take to be durable."""
    seconds = []
    for size in sizes:
        with clock() as once, (folder / "alone").open("wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
            (folder / "alone").rename(folder / "renamed")
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        seconds.append(once())
    return statistics.median(seconds)


def _value(number: int) -> bytes:
    return number.to_bytes(16, "little")


def _pages(mapping: Any, chunks: int) -> tuple[int, int]:
    """Return levels and number of pages of the tree; no leaf is opened."""
    tree = mapping.view.tree(ARRAY, "c/3")
    if tree.ref.chunks != chunks:
        raise SystemExit(f"the tree has {tree.ref.chunks} chunks where {chunks} were linked")
    inner = [sum(len(page) for page, _, _ in tree.pages(k)) for k in range(1, tree.top.level + 1)]
    return tree.top.level + 1, 1 + sum(inner)


if __name__ == "__main__":
    sys.exit(print_part(PARTS))
