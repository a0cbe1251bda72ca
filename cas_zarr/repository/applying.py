"""Import of a CAR: its blocks are verified and kept, then a branch is moved to what it names.

Nothing is believed of a CAR but what hashes to its CID. A branch moves when all that its root
leads to is here: what an incremental CAR leaves out has to be here already. An import that was
interrupted is run again, and puts only what is not there yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast

from cas_zarr.blocks.carsource import Paced, is_url
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    CidBytes,
    ReadableCids,
    as_cid_bytes,
    codec_of,
    decode_varint,
    format_cid,
)
from cas_zarr.codecs.car import CarReader
from cas_zarr.codecs.carnote import CarNote
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    ConflictError,
    InvalidArgumentError,
    ReadOnlyError,
    RemoteError,
)
from cas_zarr.repository.commit import COMMIT_TYPE, Commit
from cas_zarr.repository.names import check_name
from cas_zarr.repository.placing import Placer
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.transfer import Known
from cas_zarr.repository.versions import Commits, root_of
from cas_zarr.repository.working import now
from cas_zarr.tree.node import ROOT_TYPE
from cas_zarr.tree.walk import reachable

if TYPE_CHECKING:
    from cas_zarr.blocks.http import HttpClient
    from cas_zarr.repository.repository import Repository

__all__ = ["CarReport", "import_car"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the blocks and the bytes that have been read."""

_BATCH_BLOCKS = 64
_BATCH_BYTES = 8 << 20
_FLUSH_BLOCKS = 1 << 14
_FLUSH_BYTES = 256 << 20
_ASK = 1024
_ATTEMPTS = 20
_IDENTITY = 0


@dataclass(frozen=True, slots=True, repr=False)
class CarReport(ReadableCids):
    """What an import of a CAR has done.

    Attributes
    ----------
    source : str
        Where the CAR was.
    roots : tuple of CidBytes
        What the CAR names. All that a version among them leads to is here; what leads to something
        else is here itself.
    blocks, size : int
        What is new here; `size` in bytes.
    held : int
        Blocks of the CAR that were here already.
    since : CidBytes or None
        What an incremental CAR was made upon.
    branch : str or None
        The branch that was to move.
    commit : CidBytes or None
        The newest commit of that branch now.
    root : CidBytes or None
        The root that the branch shows now; without a branch, that of the CAR's one root.
    """

    source: str
    roots: tuple[CidBytes, ...]
    blocks: int
    size: int
    held: int
    since: CidBytes | None = None
    branch: str | None = None
    commit: CidBytes | None = None
    root: CidBytes | None = None


def import_car(
    repo: Repository,
    source: str | os.PathLike[str] | BinaryIO,
    *,
    branch: str | None = None,
    message: str | None = None,
    commit: bool = True,
    replace: bool = False,
    client: HttpClient | None = None,
    progress: Progress | None = None,
) -> CarReport:
    """Take the blocks of a CAR, and move a branch to its root.

    Parameters
    ----------
    repo : Repository
        Is made if it is not there.
    source : path, URL or binary file object
        A file object is read from where it stands and not closed; it need not be able to seek.
    branch : str, optional
        Where the CAR's root is a commit, the branch moves forward to it. Where it is a root of a
        dataset, that becomes a new commit of the branch, which has to be empty, or to show what the
        CAR was made upon. Without it no ref moves, and a collection of garbage will take what no
        other ref leads to.
    message : str, optional
        Of the commit; by default it names the source.
    commit : bool
        Whether a root of a dataset becomes a commit; else only what the branch shows.
    replace : bool
        Let a root take the place of whatever the branch shows. Its history stays.
    client : HttpClient, optional
        For a URL.
    progress : callable, optional
        Called with the blocks and the bytes that have been read.

    Raises
    ------
    FormatError, CorruptBlockError
        If the CAR is cut off, is none, or a block in it is damaged. What was read before is kept.
    BlockNotFoundError
        If not all that a root leads to is here now; the message has what is missing, and which root
        an incremental CAR was made upon. Nothing has moved then, and the blocks stay.
    ConflictError
        If the branch has commits or work that the move would drop. Nothing has moved then.
    """
    if repo.read_only:
        raise ReadOnlyError(f"{repo.location} is open for reading only")
    if branch is not None:
        check_name(branch)
    with _opened(source, client) as car:
        repo.make()
        placer = Placer(repo, "import")  # before a block is put: a collection may go on beside
        taker = _Taker(repo, car.reader, progress)
        taker.take()
        roots = tuple(map(as_cid_bytes, car.reader.header.roots))
    checker = _Checker(repo, car.name, taker.note)
    shown = [checker.check(root) for root in roots]
    report = CarReport(
        car.name,
        roots,
        taker.blocks,
        taker.size,
        taker.held,
        since=None if taker.note is None else taker.note.since,
        root=shown[0] if len(roots) == 1 else None,
    )
    if branch is None:
        return report
    if len(roots) != 1:
        raise InvalidArgumentError(
            f"{car.name} names {len(roots)} roots, so it cannot be told what branch {branch!r} "
            "shall lead to; import it without a branch, and move the branch to a root"
        )
    text = _message(car.name) if message is None else message
    record = _move(repo, placer, branch, roots[0], report, text, commit=commit, replace=replace)
    return CarReport(
        report.source,
        roots,
        report.blocks,
        report.size,
        report.held,
        report.since,
        branch,
        record.commit,
        root_of(repo.blocks, record),
    )


def _message(name: str) -> str:
    text = f"import {Path(name).name or name}"
    return text.encode(errors="replace").decode()  # a file may have a name that is no text


# -- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opened:
    reader: CarReader
    name: str


@contextmanager
def _opened(
    source: str | os.PathLike[str] | BinaryIO, client: HttpClient | None
) -> Iterator[_Opened]:
    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "read"):
            raise InvalidArgumentError(
                f"a {type(source).__name__} is no car; give a path, a url or a binary file"
            )
        yield _Opened(CarReader(source), "a stream")
        return
    if not is_url(source):
        with CarReader(source) as reader:
            yield _Opened(reader, os.fspath(source))
        return
    from cas_zarr.blocks.http import HttpClient
    from cas_zarr.blocks.transport import shown

    url = str(source)
    name = shown(url)
    own = HttpClient() if client is None else None
    try:
        with (client or own).stream("GET", url) as answer:  # type: ignore[union-attr]
            if answer.status != 200:
                raise RemoteError(
                    f"{name} answered with status {answer.status}; check the url",
                    status=answer.status,
                )
            body = cast(BinaryIO, Paced(answer, name, (client or own).timeout))  # type: ignore[union-attr]
            yield _Opened(CarReader(body, name=name), name)
    finally:
        if own is not None:
            own.close()


class _Taker:
    """Puts the blocks of a CAR that a repository lacks."""

    def __init__(self, repo: Repository, reader: CarReader, progress: Progress | None) -> None:
        self._blocks = repo.blocks
        self._reader = reader
        self._progress = progress
        self.note: CarNote | None = None
        self.blocks = self.size = self.held = 0
        self._read = 0  # bytes
        self._unflushed = [0, 0]

    def take(self) -> None:
        """Read all of it; what was put is durable then, whatever happens."""
        batch: list[tuple[CidBytes, bytes]] = []
        size = 0
        try:
            for number, (cid, data) in enumerate(self._reader):
                if number == 0:
                    self.note = CarNote.from_block(cid, data)
                    if self.note is not None:
                        continue
                if _is_identity(cid):  # the link that has it is all that there is to it
                    continue
                batch.append((as_cid_bytes(cid), data))
                size += len(data)
                if len(batch) == _BATCH_BLOCKS or size >= _BATCH_BYTES:
                    self._put(batch)
                    batch, size = [], 0
            self._put(batch)
        except BaseException:
            with suppress(CasZarrError):  # the first error is the one to tell
                self._put(batch)
                self._blocks.flush()
            raise
        self._blocks.flush()

    def _put(self, batch: list[tuple[CidBytes, bytes]]) -> None:
        held = self._blocks.has_many([cid for cid, _ in batch]) if batch else ()
        fresh = {cid: data for (cid, data), here in zip(batch, held, strict=True) if not here}
        self._blocks.put_many(fresh.items())
        size = sum(map(len, fresh.values()))
        self.held += len(batch) - len(fresh)
        self.blocks += len(fresh)
        self.size += size
        self._read += sum(len(data) for _, data in batch)
        self._unflushed[0] += len(fresh)
        self._unflushed[1] += size
        if self._unflushed[0] >= _FLUSH_BLOCKS or self._unflushed[1] >= _FLUSH_BYTES:
            self._blocks.flush()
            self._unflushed = [0, 0]
        if self._progress is not None and batch:
            self._progress(self.blocks + self.held, self._read)


def _is_identity(cid: CidBytes) -> bool:
    return cid[0] == 1 and decode_varint(cid, decode_varint(cid, 1)[1])[0] == _IDENTITY


# -- what the roots lead to ---------------------------------------------------------------------


class _Checker:
    """Looks whether all that a root leads to is here."""

    def __init__(self, repo: Repository, name: str, note: CarNote | None) -> None:
        self._blocks = repo.blocks
        self._name = name
        self._note = note
        self._commits = Commits(repo.blocks, repo.refs)
        self._known = Known(repo)
        newest = self._known.newest()
        self._whole: set[CidBytes] = set()
        self._last: CidBytes | None = None
        if newest is not None:
            with suppress(CasZarrError):  # behind a ref that is hurt already
                last = self._commits.read(newest).root
                self._blocks.get(last)
                self._last = last

    def check(self, root: CidBytes) -> CidBytes | None:
        """Return the dataset that a root of the CAR shows; None where it is no version.

        Raises
        ------
        BlockNotFoundError
            If something is missing: of a version, of all that it leads to; else the block itself.
        """
        if _is_identity(root):
            return None
        if not self._blocks.has(root):
            raise self._missing(root, 1, "", root)
        if codec_of(root) == DAG_CBOR and COMMIT_TYPE.encode() in self._blocks.get(root):
            self._history(root)
            return self._commits.read(root).root
        if codec_of(root) == DAG_JSON and ROOT_TYPE.encode() in self._blocks.get(root):
            self._tree(root)
            return root
        return None

    def _history(self, tip: CidBytes) -> None:
        order: list[CidBytes] = []
        met = {tip}
        pending = [tip]
        while pending:
            cid = pending.pop()
            try:
                commit = self._commits.read(cid)
                if self._known.has(cid, commit.time):
                    continue
            except BlockNotFoundError:
                raise self._missing(tip, 1, "its history", cid) from None
            order.append(cid)
            for parent in self._commits.parents(cid):
                if parent not in met:
                    met.add(parent)
                    pending.append(parent)
        for cid in reversed(order):
            self._tree(self._commits.read(cid).root)

    def _tree(self, root: CidBytes) -> None:
        """Walk a root beside one that is whole, and ask for all that it names."""
        if root in self._whole:
            return
        count = 0
        first: tuple[str, CidBytes] | None = None
        batch: dict[CidBytes, str] = {}

        def miss(place: str, cid: CidBytes) -> None:
            nonlocal count, first
            count += 1
            first = first or (place, cid)

        def unread(_: str, __: CidBytes, error: CasZarrError) -> None:
            if not isinstance(error, BlockNotFoundError):
                raise error
            # It was yielded before it was read, so it is counted where it is asked for.

        def ask() -> None:
            for cid, here in zip(batch, self._blocks.has_many(list(batch)), strict=True):
                if not here:
                    miss(batch[cid], cid)
            batch.clear()

        if not self._blocks.has(root):
            raise self._missing(root, 1, "", root)
        for place, cid in reachable(self._blocks, root, since=self._last, on_error=unread):
            batch[cid] = place
            if len(batch) == _ASK:
                ask()
        if batch:
            ask()
        if first is not None:
            raise self._missing(root, count, *first)
        self._whole.add(root)
        self._last = root

    def _missing(self, root: CidBytes, count: int, place: str, cid: CidBytes) -> BlockNotFoundError:
        what = f"{count} blocks that it leads to are" if count > 1 else "a block of it is"
        where = f", of {place}" if place else ""
        text = (
            f"root {format_cid(root)} of {self._name} is not whole here: {what} missing "
            f"({format_cid(cid)}{where})"
        )
        note = self._note
        if note is None:
            remedy = "fetch it from where the car was made, then import again"
        elif note.since is None:
            remedy = "open it in place, or fetch the rest from where it was made"
        else:
            remedy = "import or fetch that first, then import this one again"
        text += "" if note is None else f"; the car has {note.content()}"
        return BlockNotFoundError(f"{text}; {remedy}. No branch has moved")


# -- moving the branch --------------------------------------------------------------------------


def _move(
    repo: Repository,
    placer: Placer,
    branch: str,
    root: CidBytes,
    report: CarReport,
    message: str,
    *,
    commit: bool,
    replace: bool,
) -> Branch:
    if report.root is None:
        raise InvalidArgumentError(
            f"{format_cid(root)} in {report.source} is neither a commit nor a root of a dataset, "
            f"so branch {branch!r} cannot lead to it; import it without a branch"
        )
    why = f"import {report.source}"
    for attempt in range(_ATTEMPTS):
        old = repo.refs.branch(branch)
        if codec_of(root) == DAG_CBOR:
            new = _forward(repo, branch, old, root)
        else:
            new = _upon(repo, branch, old, root, report, message, commit=commit, replace=replace)
        if new == old:
            return new
        try:
            placer.branch(branch, old, new, why=why)
        except ConflictError:
            if attempt + 1 == _ATTEMPTS or repo.refs.branch(branch) == old:
                raise
            continue  # another writer moved it: look again whether this may
        return new
    raise AssertionError


def _forward(repo: Repository, branch: str, old: Branch | None, tip: CidBytes) -> Branch:
    """Return the branch with a commit that its own comes before."""
    commits = Commits(repo.blocks, repo.refs)
    new = Branch(tip, commits.read(tip).root)
    if old is None or (old.commit is None and old.work is None):
        return new
    shown = root_of(repo.blocks, old)
    committed = None if old.commit is None else commits.read(old.commit).root
    if old.commit == tip:
        return old
    if shown not in (committed, new.work):
        raise _dropped(repo, branch)
    if old.commit is not None and old.commit not in commits.walk(tip):
        raise ConflictError(
            f"branch {branch!r} of {repo.location} has commits that are not in the history of "
            f"{format_cid(tip)}; import it to another branch, and merge that"
        )
    return new


def _upon(
    repo: Repository,
    branch: str,
    old: Branch | None,
    root: CidBytes,
    report: CarReport,
    message: str,
    *,
    commit: bool,
    replace: bool,
) -> Branch:
    """Return the branch with a root upon what it has."""
    head = None if old is None else old.commit
    committed = None if head is None else Commits(repo.blocks, repo.refs).read(head).root
    shown = root_of(repo.blocks, old)
    if old is not None and shown == root and (committed == root or not commit):
        return old
    if shown not in (committed, root) and not replace:
        raise _dropped(repo, branch)
    if shown is not None and shown not in (root, report.since) and not replace:
        upon = (
            "" if report.since is None else f" (the car was made upon {format_cid(report.since)})"
        )
        raise ConflictError(
            f"branch {branch!r} of {repo.location} shows another root, {format_cid(shown)}{upon}; "
            "import to another branch, and merge that, or replace what it shows with replace=True"
        )
    if not commit:
        return Branch(head, root)
    made = Commit(
        root=root,
        parents=() if head is None else (head,),
        author=repo.author,
        time=now(),
        message=message,
    )
    cid, data = made.to_block(repo.function)
    repo.blocks.put(cid, data)
    repo.blocks.flush()
    return Branch(cid, root)


def _dropped(repo: Repository, branch: str) -> ConflictError:
    return ConflictError(
        f"branch {branch!r} of {repo.location} has work that no commit has; commit it first, or "
        "import to another branch"
    )
