"""Export: a version, a part of one, or what one has and another has not, as one CAR file.

The file begins with what a reader asks for first: the root document, then pages, then values, a
tree's chunks in Morton order. The same arguments give the same bytes, on any machine. A file is a
CARv2 with an index; what cannot be sought in, as a pipe, gets a CARv1.

A CAR that has not all that its root leads to begins with a note, a small block of its own that
nothing links: which root whoever imports it needs to have (see `CarNote`).
"""

from __future__ import annotations

import heapq
import io
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from cas_zarr.blocks import disk
from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    CidBytes,
    CidLike,
    ReadableCids,
    codec_of,
    format_cid,
)
from cas_zarr.codecs.car import CarWriter, can_seek
from cas_zarr.codecs.carnote import CarNote
from cas_zarr.errors import (
    BlockNotFoundError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
)
from cas_zarr.repository.selection import Part, parse_part, part_blocks
from cas_zarr.repository.subtrees import subtree_blocks
from cas_zarr.repository.versions import CUT, Commits
from cas_zarr.tree.walk import reachable

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["CarNote", "ExportReport", "Progress", "export"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the blocks and the bytes that have been written."""

Side: TypeAlias = "slice | tuple[int | None, int | None] | int"

_READ = 32  # blocks in memory at once: one has at most 2 MiB


@dataclass(frozen=True, slots=True, repr=False)
class ExportReport(ReadableCids):
    """What an export has written.

    Attributes
    ----------
    root : CidBytes
        The one root of the CAR: of a dataset or a subtree, or a commit where the history is in it.
    since : CidBytes or None
        The root, or commit, that an import needs to have; None where the CAR stands alone.
    blocks : int
        Blocks of the dataset, without the note of a CAR that does not stand alone.
    size : int
        Of the CAR, in bytes.
    version : int
        Of the format of the CAR, 1 or 2.
    """

    root: CidBytes
    since: CidBytes | None
    blocks: int
    size: int
    version: int


def export(
    repo: Repository,
    version: CidLike,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    path: str = "",
    box: Sequence[Side] | None = None,
    since: CidLike | None = None,
    history: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a version, or a part of it, to one CAR file.

    Parameters
    ----------
    repo : Repository
    version : str, bytes or CID
    target : path or binary file object
        A file is written under another name, made durable and then renamed: whatever happens, no
        half of one has its name. A named pipe or a device is written to as it is. A file object is
        written from where it stands and not closed; one that cannot seek, or was opened to append,
        gets a CARv1.
    path : str
        Export only this group or array. The root of the CAR is the document of the subtree, whose
        CID is the same wherever it lies: the CAR opens as a dataset of its own. A box of an array
        can stand behind it, as in ``ocean/t2m[0:10, :]``.
    box : sequence of slice, (start, stop) or int, optional
        Export only the chunks that hold this box of the array at `path`, in elements. The root is
        that of the whole array: what is read can be verified against it, and a read outside of the
        box fails.
    since : str, bytes or CID, optional
        Another version (with `path`, its part at the same path). What it has is left out; whoever
        imports the CAR needs to have it.
    history : bool
        Export the commit and all that came before it (with `since`, but for its history), with
        their roots. Without it, the root alone: who committed it, and when, stays here.
    progress : callable, optional
        Called with the blocks and the bytes that have been written.

    Raises
    ------
    VersionNotFoundError, NotFoundError
        If there is no such version or path.
    BlockNotFoundError, CorruptBlockError
        If a block is missing or damaged.
    StorageError
        If the disk failed.

    Notes
    -----
    Every block is verified as it is read. What is held in memory is one record of the index, and
    the CID, of each block.
    """
    part = _part(path, box)
    if history and (part.path or part.slices is not None):
        raise InvalidArgumentError(
            "a history is that of whole datasets; export a part without history=True"
        )
    if since is not None and part.slices is not None:
        raise InvalidArgumentError(
            "a box cannot be exported as a difference; leave out since, or the box"
        )
    plan = _history(repo, version, since) if history else _tree(repo, version, part, since)
    if isinstance(target, (str, os.PathLike)):
        return _to_path(plan, os.fsdecode(target), progress)
    is_file = hasattr(target, "write") and not isinstance(target, io.TextIOBase)
    if not is_file or getattr(target, "closed", False):
        raise InvalidArgumentError(f"{target!r} is no path, and no file that is open as binary")
    with _telling(str(getattr(target, "name", "a stream"))):
        return _write(plan, target, progress)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a CAR is to have."""

    blocks: BlockStore
    root: CidBytes
    cids: Iterable[CidBytes]
    since: CidBytes | None = None
    box: str = ""


def _part(path: str, box: Sequence[Side] | None) -> Part:
    part = parse_part(path)
    if box is None:
        return part
    if part.slices is not None:
        raise InvalidArgumentError(f"{path!r} has a box already; leave out the other one")
    if isinstance(box, str) or not isinstance(box, Iterable):
        raise InvalidArgumentError(f"{box!r} is no box; give a slice for each dimension")
    return Part(part.path, tuple(map(_side, box)))


def _side(side: Side) -> tuple[int | None, int | None]:
    try:
        if isinstance(side, slice):
            if side.step not in (None, 1):
                raise InvalidArgumentError(f"{side} has a step; give a box without steps")
            side = (side.start, side.stop)
        if not isinstance(side, tuple):
            return index(side), index(side) + 1 or None
        start, stop = (None if number is None else index(number) for number in side)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"{side!r} is no side of a box; give a start and a stop, in elements"
        ) from None
    return start, stop


# -- what to write ------------------------------------------------------------------------------


def _tree(repo: Repository, version: CidLike, part: Part, since: CidLike | None) -> _Plan:
    blocks, root = _place(repo, version, part.path)
    if part.slices is not None:
        here = Part("", part.slices)
        return _Plan(blocks, root, _box(blocks, root, here), None, str(here))
    if since is None:
        return _Plan(blocks, root, _ordered(blocks, root))
    try:
        others, old = _place(repo, since, part.path)
    except NotFoundError as error:
        if isinstance(error, BlockNotFoundError) or not part.path:
            raise
        repo.resolve(since)  # raises where it is the version that is not there
        return _Plan(blocks, root, _ordered(blocks, root))
    return _Plan(blocks, root, _ordered(blocks, root, old, others), old)


def _place(repo: Repository, version: CidLike, path: str) -> tuple[BlockStore, CidBytes]:
    """Return the root of a version or of its part, and the blocks to read it from."""
    return subtree_blocks(repo.blocks, repo.resolve(version).root, path)


def _ordered(
    blocks: BlockStore,
    root: CidBytes,
    since: CidBytes | None = None,
    since_blocks: BlockStore | None = None,
) -> Iterator[CidBytes]:
    """Yield the blocks of a root: the document, shards and pages, then the values."""
    done: set[CidBytes] = set()
    for values in (False, True):
        walk = reachable(blocks, root, values=values, since=since, since_blocks=since_blocks)
        for _, cid in walk:
            if cid not in done:
                if not values:
                    done.add(cid)
                yield cid


def _box(blocks: BlockStore, root: CidBytes, part: Part) -> Iterator[CidBytes]:
    found = list(part_blocks(blocks, root, [part]))
    structure = [cid for cid in found if codec_of(cid) in (DAG_JSON, DAG_CBOR)]
    yield from structure
    kept = set(structure)
    yield from (cid for cid in found if cid not in kept)


def _history(repo: Repository, version: CidLike, since: CidLike | None) -> _Plan:
    tip = repo.resolve(version).commit
    if tip is None:
        raise InvalidArgumentError(
            f"{version!r} is a root and has no history; export it without history=True"
        )
    base = None
    if since is not None:
        base = repo.resolve(since).commit
        if base is None:
            raise InvalidArgumentError(
                f"{since!r} is a root and has no history; export the difference without "
                "history=True"
            )
    return _Plan(repo.blocks, tip, _commits(repo, tip, base), base)


def _commits(repo: Repository, tip: CidBytes, base: CidBytes | None) -> Iterator[CidBytes]:
    """Yield the blocks of a history, newest commit first, each beside the one before."""
    commits = Commits(repo.blocks, repo.refs)
    had = set() if base is None else set(commits.walk(base))
    done: set[CidBytes] = set()
    beside = None if base is None else commits.read(base).root
    if tip in had:
        yield tip
        return
    queue = [(-commits.read(tip).time, tip)]
    met = {tip}
    while queue:
        cid = heapq.heappop(queue)[1]
        commit = commits.read(cid)
        if cid in commits.cut and commit.parents:
            raise ConflictError(
                f"the history of {format_cid(tip)} ends at commit {format_cid(cid)}: {CUT}; or "
                "export the version without history=True"
            )
        done.add(cid)
        yield cid
        for block in _ordered(repo.blocks, commit.root, beside):
            if block not in done:
                done.add(block)
                yield block
        beside = commit.root
        for parent in commit.parents:
            if parent not in met and parent not in had:
                met.add(parent)
                heapq.heappush(queue, (-commits.read(parent).time, parent))


# -- writing ------------------------------------------------------------------------------------


def _to_path(plan: _Plan, path: str, progress: Progress | None) -> ExportReport:
    if "\0" in path:
        raise InvalidArgumentError(f"{path!r} is no path of a file")
    if not os.path.basename(path) or os.path.isdir(path):
        raise InvalidArgumentError(f"{path!r} is a folder; name a file to write")
    if os.path.exists(path) and not os.path.isfile(path):
        with _telling(path), open(path, "wb") as pipe:
            return _write(plan, pipe, progress)
    path = os.path.realpath(path)  # a link stays, and what it leads to is replaced
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(6)}.part")
    with _telling(path):
        fd = disk.create(part)
        try:
            with open(fd, "r+b", closefd=True) as file:
                report = _write(plan, file, progress)
                file.flush()
                disk.fsync(fd)
            disk.rename(part, path)
            disk.fsync_folder(folder)
        except BaseException:
            with suppress(OSError):
                disk.unlink(part)
            raise
    return report


@contextmanager
def _telling(path: str) -> Iterator[None]:
    """Say of a failed system call what it was for."""
    try:
        yield
    except (StorageError, BrokenPipeError):  # who reads a pipe may have had enough
        raise
    except OSError as error:
        raise disk.failure(error, "write a car file", path) from error


def _write(plan: _Plan, file: BinaryIO, progress: Progress | None) -> ExportReport:
    version = 2 if _can_rewrite(file) else 1
    writer = CarWriter(file, [plan.root], version=version)
    if plan.since is not None or plan.box:
        writer.put(*CarNote(plan.root, plan.since, plan.box).to_block())
    blocks = size = 0
    for batch in _batches(plan.cids):
        for cid, data in zip(batch, plan.blocks.get_many(batch), strict=True):
            writer.put(cid, data)
            size += len(data)
        blocks += len(batch)
        if progress is not None:
            progress(blocks, size)
    return ExportReport(plan.root, plan.since, blocks, writer.finish(), version)


def _can_rewrite(file: BinaryIO) -> bool:
    """Tell whether the begin of a file can be written last."""
    if not can_seek(file):
        return False
    try:
        return not disk.appends(file.fileno())
    except (OSError, AttributeError):  # none of the system's
        return True


def _batches(cids: Iterable[CidBytes]) -> Iterator[list[CidBytes]]:
    batch: list[CidBytes] = []
    for cid in cids:
        batch.append(cid)
        if len(batch) == _READ:
            yield batch
            batch = []
    if batch:
        yield batch
