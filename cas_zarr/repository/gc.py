"""Collection of garbage: blocks that no ref leads to any more.

Two steps that are a grace time apart, so that writers can go on: what is not in use is condemned,
and a list of it published; later, what is on the list and still not in use is deleted. See
`cas_zarr.repository.guard` for why nothing is lost, and docs/design/003-collecting.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.collectable import CollectableBlocks, Marks, Repacked, Swept
from cas_zarr.blocks.condemned import Condemned
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    ConflictError,
    CorruptBlockError,
    FormatError,
    InvalidArgumentError,
    ReadOnlyError,
)
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.guard import CollectionRecord, PendingList, collectable
from cas_zarr.repository.refs import Branch, Refs, Tag
from cas_zarr.tree.mark import Marker

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["GRACE", "LOG_AGE", "Collection", "GCReport", "collect", "repack"]

GRACE = timedelta(days=1)
"""How long condemned blocks stay.

A session is safe for ever if it puts all that it needs, and its packs are spared until it flushes.
Only one that came to rely on a block that was garbage, and that flushes later than this after the
block was condemned, has to write again.
"""

LOG_AGE = timedelta(days=30)
"""How long the log of refs keeps what a ref was moved away from."""

Progress = Callable[[int, int], None]
"""Called with the blocks that were found in use so far, and all that there are."""

_T = TypeVar("_T")

_DAY_ZERO = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class GCReport:
    """What `collect` found and did. A block that lies in two packs counts twice.

    Attributes
    ----------
    blocks, size : int
        Blocks that were there, and their bytes.
    live_blocks, live_size : int
        Those in use, by what refs and their log lead to.
    condemned_blocks, condemned_size : int
        Those that are on a list that is pending now.
    until : datetime or None
        From when on they can be deleted, UTC; None if there is no list.
    deleted_blocks, deleted_size : int
        Those that were deleted.
    freed : int
        Bytes that the files are smaller by.
    rewritten, removed : int
        Packs that were written anew, and packs that went as a whole.
    commits, roots : int
        How many were walked.
    missing : int
        Blocks that link others and were not there, where that was allowed.
    damaged : tuple of str
        Packs that could not be rewritten.
    references : int
        References to bytes elsewhere that were dropped.
    dry_run : bool
        Whether nothing was changed: `deleted_blocks` and so on are what would have been.
    """

    blocks: int
    size: int
    live_blocks: int
    live_size: int
    condemned_blocks: int
    condemned_size: int
    until: datetime | None
    deleted_blocks: int
    deleted_size: int
    freed: int
    rewritten: int
    removed: int
    commits: int
    roots: int
    missing: int
    damaged: tuple[str, ...]
    dry_run: bool
    references: int = 0

    @property
    def unused_blocks(self) -> int:
        """Blocks that were not in use."""
        return self.blocks - self.live_blocks

    @property
    def unused_size(self) -> int:
        """Their bytes."""
        return self.size - self.live_size


def collect(
    repo: Repository,
    *,
    grace: timedelta = GRACE,
    dry_run: bool = False,
    max_unused: float = 0.05,
    log_age: timedelta = LOG_AGE,
    missing: Literal["error", "skip"] | None = None,
    progress: Progress | None = None,
    clock: Callable[[], int] | None = None,
) -> GCReport:
    """Condemn what is not in use, and delete what was condemned long enough ago.

    Readers and writers can go on meanwhile.

    Parameters
    ----------
    repo : Repository
    grace : timedelta
        How long condemned blocks stay. With none, what is condemned is deleted at once; a session
        that came to rely on it then gets an error when it flushes, and has to write again.
    dry_run : bool
        Change nothing.
    max_unused : float
        The share of all bytes that may stay unused in packs that are used in part; packs that are
        not used at all go in any case.
    log_age : timedelta
        Moves of refs in the log that are older are dropped, and no longer keep anything.
    missing : "error" or "skip", optional
        What to do if a block is missing that links others: refuse, or go on with what is there. By
        default go on only where what is missing can be fetched from another repository.
    progress : callable, optional
        Called now and then with the number of blocks in use so far, and of all.
    clock : callable, optional
        Returns the time in microseconds since 1970-01-01 UTC.

    Raises
    ------
    ConflictError
        If another collection is under way.
    BlockNotFoundError, CorruptBlockError, FormatError
        If a ref, a commit, or a block that links others is missing or damaged: nothing is deleted
        then, for what lies below it may be in use.
    StorageError
        If the disk failed. Nothing in use is lost; collect again.
    """
    for span in (grace, log_age):
        if not isinstance(span, timedelta) or span < timedelta(0):
            raise InvalidArgumentError(
                f"{span!r} is no time to keep something; give a timedelta of 0 or more"
            )
    if not isinstance(max_unused, (int, float)) or not 0 <= max_unused <= 1:
        raise InvalidArgumentError(f"max_unused is a share from 0 to 1, not {max_unused!r}")
    if missing not in (None, "error", "skip"):
        raise InvalidArgumentError(f'missing is "error" or "skip", not {missing!r}')
    with Collection(
        repo,
        dry_run=dry_run,
        max_unused=max_unused,
        log_age=log_age,
        missing=missing,
        progress=progress,
        clock=clock,
    ) as collection:
        collection.mark(grace)
        held = collection.marks.blocks, collection.marks.size
        live = collection.marks.used()
        swept = Swept()
        if grace or not dry_run:  # what is condemned already is a part of what would be
            swept = collection.sweep(grace)
        if not collection.pending():
            collection.publish()
            if not grace:
                collection.mark()
                swept += collection.sweep(grace)
        dropped = collection.drop_references(grace)
        collection.tidy()
        lists = collection.pending()
        since = max((time for _, time in lists), default=None)
        return GCReport(
            blocks=held[0],
            size=held[1],
            live_blocks=live[0],
            live_size=live[1],
            condemned_blocks=sum(one.blocks for one, _ in lists),
            condemned_size=sum(one.size for one, _ in lists),
            until=None if since is None else _after(since, grace),
            deleted_blocks=swept.blocks,
            deleted_size=swept.size,
            freed=swept.freed,
            rewritten=swept.rewritten,
            removed=swept.removed,
            commits=len(collection.commits),
            roots=len(collection.roots),
            missing=collection.missing,
            damaged=swept.damaged,
            dry_run=dry_run,
            references=dropped,
        )


def repack(repo: Repository) -> Repacked:
    """Put all blocks into as few packs as is sensible, each block once.

    Packs that a pending list of condemned blocks names stay as they are.

    Raises
    ------
    ConflictError
        If a collection is under way.
    StorageError
        If the disk failed. Nothing is lost.
    """
    blocks = _blocks_of(repo, writable=True)
    with blocks.collecting():
        state = CollectionRecord.from_bytes(repo.refs.gc_record())
        blocks.avoid([blocks.read_list(one.name) for one in state.lists], state.epoch)
        return blocks.repack()


def _blocks_of(repo: Repository, *, writable: bool) -> CollectableBlocks:
    blocks = collectable(repo.blocks)
    if not isinstance(blocks, CollectableBlocks):
        raise InvalidArgumentError(
            f"blocks in {blocks.location} cannot be collected: they do not tell which of them are "
            "younger than a list of what is not in use; nothing was deleted"
        )
    if writable and (repo.read_only or blocks.read_only):
        raise ReadOnlyError(f"{repo.location} is open for reading only")
    return blocks


class Collection:
    """The steps of a collection, in the order in which `collect` takes them.

    Parameters
    ----------
    As of `collect`.

    Attributes
    ----------
    marks : Marks
    commits, roots : set of CidBytes
        What was walked.
    """

    def __init__(
        self,
        repo: Repository,
        *,
        dry_run: bool = False,
        max_unused: float = 0.0,
        log_age: timedelta = LOG_AGE,
        missing: Literal["error", "skip"] | None = None,
        progress: Progress | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._blocks = _blocks_of(repo, writable=not dry_run)
        self._refs: Refs = repo.refs
        self._location = repo.location
        self._dry_run = dry_run
        self._max_unused = max_unused
        self._log_age = log_age
        self._clock = clock or _now
        self._progress = progress
        if missing is None:
            missing = "skip" if isinstance(repo.blocks, TieredBlocks) else "error"
        self._skip = missing == "skip"
        self._would: list[tuple[Condemned, int]] | None = None  # what a dry run would leave
        self._passed = 0
        self._found = 0
        self._exit = ExitStack()
        self.commits: set[CidBytes] = set()
        self.roots: set[CidBytes] = set()
        self.marks: Marks
        self._marker: Marker | None = None
        self._ended: set[CidBytes] = set()  # commits at which the history was cut
        self._listed: set[str] = set()  # lists that were pending when the last mark began
        self._cutoff = 0
        self._state_is_damaged = False
        self._missing: Literal["error", "skip"] = missing

    def __enter__(self) -> Self:
        lock: AbstractContextManager[None] = nullcontext()
        if not self._dry_run:
            lock = self._blocks.collecting()
        self._exit.enter_context(lock)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    @property
    def missing(self) -> int:
        """Blocks that link others and were passed over."""
        return self._passed + (0 if self._marker is None else self._marker.missing_count)

    # -- marking ------------------------------------------------------------------------------

    def mark(self, grace: timedelta | None = timedelta(0)) -> None:
        """Mark what refs and their log lead to now. Again: what they have come to lead to since.

        Parameters
        ----------
        grace : timedelta, optional
            Lists that are younger are not swept by it; without it none is.

        Raises
        ------
        BlockNotFoundError, CorruptBlockError, FormatError
            If something cannot be read that may lead to more.
        """
        if self._marker is None:
            self._cutoff = self._clock() - self._log_age // _MICROSECOND
            if not self._dry_run:
                self._refs.trim_log(self._cutoff)
                _, state = self._state()  # what is on a list shall not be merged from here on
                self._blocks.avoid([one for one, _ in self._read(state)], state.epoch)
            # First the blocks, then the refs: a block that is put after this is not judged, and
            # a ref that leads to one that is judged has been moved by one who looked at the lists.
            self.marks = self._blocks.survey()
            self._marker = Marker(self._blocks, self._sink, missing=self._missing)
        elif self.missing:  # what was passed over may have been fetched, and lead to more
            self._marker = Marker(self._blocks, self._sink, missing=self._missing)
            self._passed = 0
            self.commits.clear()
            self.roots.clear()
        lists = [] if grace is None else self._old(self.pending(), grace)
        self._listed = {one.name for one, _ in lists}
        if lists and not self._dry_run:  # whoever moves a ref that is read below has seen them
            newest = max(published for _, published in lists)
            time.sleep(max(0.0, self._refs.settling - max(0, self._clock() - newest) / 1e6))
            self._refs.fence()
        while True:  # until all that refs lead to has been seen before
            count = len(self.commits) + len(self.roots)
            records = list(self._records())  # then where histories end: that is noted first
            shallow = self._guarded("the record of cut histories", self._refs.shallow)
            for cid in self._ended - shallow:  # the rest of it was fetched meanwhile
                self._ended.discard(cid)
                for parent in self._read_commit(cid).parents:
                    self._commit(f"commit {format_cid(cid)}", parent, shallow)
            for name, record in records:
                if record.commit is not None:
                    self._commit(name, record.commit, shallow)
                if isinstance(record, Branch) and record.work is not None:
                    self._root(name, record.work)
            if len(self.commits) + len(self.roots) == count:
                break
        self._marker.finish()

    def _records(self) -> Iterator[tuple[str, Branch | Tag]]:
        """Yield all that refs and their log say."""
        refs = self._refs
        kinds: list[tuple[str, list[str], Callable[[str], Branch | Tag | None]]] = [
            ("branch ", refs.branches(), refs.branch),
            ("tag ", refs.tags(), refs.tag),
            ("", refs.all_kept(), refs.kept),
            ("", refs.all_tracked(), refs.tracked),
        ]
        for kind, names, read in kinds:
            for name in names:
                record = self._guarded(kind + name, partial(read, name))
                if record is not None:
                    yield kind + name, record
        # Last: what was moved from one name to another meanwhile is in the log by now.
        for move in self._guarded("the log of refs", refs.log):
            if move.time >= self._cutoff:
                for logged in (move.old, move.new):
                    if logged is not None:
                        yield f"the log of {move.ref}", logged

    def _commit(self, name: str, cid: CidBytes, shallow: frozenset[CidBytes]) -> None:
        assert self._marker is not None
        ahead = [cid]
        while ahead:
            cid = ahead.pop()
            if cid in self.commits:
                continue
            self.commits.add(cid)
            self._marker.block(cid)
            try:
                commit = self._guarded(name, partial(self._read_commit, cid))
            except BlockNotFoundError:
                if not self._skip:
                    raise
                self._passed += 1
                continue
            self._root(name, commit.root)
            if cid in shallow:
                self._ended.add(cid)
            else:
                ahead.extend(commit.parents)

    def _read_commit(self, cid: CidBytes) -> Commit:
        return Commit.from_block(cid, self._blocks.get(cid))

    def _root(self, name: str, cid: CidBytes) -> None:
        if cid not in self.roots:
            self.roots.add(cid)
            assert self._marker is not None
            self._guarded(name, partial(self._marker.root, cid))

    def _sink(self, keys: NDArray[np.uint8]) -> None:
        self.marks.mark(keys)
        self._found += len(keys)
        if self._progress is not None:
            self._progress(min(self._found, self.marks.blocks), self.marks.blocks)

    def _guarded(self, name: str, read: Callable[[], _T]) -> _T:
        """Return what `read` does; say of an error that nothing was deleted, and of which ref."""
        try:
            return read()
        except (BlockNotFoundError, CorruptBlockError, FormatError) as error:
            raise _refusal(self._location, name, error) from error

    # -- lists --------------------------------------------------------------------------------

    def pending(self) -> list[tuple[Condemned, int]]:
        """Return the lists that are pending, and when they were published."""
        if self._would is not None:
            return self._would
        return self._read(self._state()[1])

    def publish(self) -> bool:
        """Condemn what is not marked; tell whether there was anything.

        Raises
        ------
        ConflictError
            If another collection has published a list meanwhile.
        """
        data = self.marks.condemn(self._max_unused)
        if data is None:
            return False
        now = self._clock()
        if self._dry_run:
            self._would = [(Condemned.from_bytes(data, Condemned.name_of(data)), now)]
            return True
        condemned = self._blocks.write_list(data)
        raw, state = self._state()
        lists = (*state.lists, PendingList(condemned.name, now))
        self._swap(raw, CollectionRecord(state.epoch + 1, lists))
        return True

    def sweep(self, grace: timedelta) -> Swept:
        """Delete what is on a list that is older than `grace`, and not marked.

        Lists that were published after the last `mark` began are left: it may have missed what
        refs came to lead to before.
        """
        raw, state = self._state()
        pending = self._read(state) if self._would is None else self._would
        now = self._clock()
        swept = Swept()
        left = []
        for condemned, published in pending:
            if now - published >= grace // _MICROSECOND and condemned.name in self._listed:
                swept += self.marks.sweep(condemned, dry_run=self._dry_run)
            else:  # a list of the future is one of a clock that was wrong: its time begins now
                left.append((condemned, min(published, now)))
        if self._dry_run:
            self._would = left or None
            return swept
        lists = tuple(PendingList(condemned.name, published) for condemned, published in left)
        if lists != state.lists or self._state_is_damaged:
            later = any(one not in state.lists for one in lists)
            self._swap(raw, CollectionRecord(state.epoch + later, lists))
        return swept

    def drop_references(self, grace: timedelta) -> int:
        """Forget references that nothing in use needs and that are older than `grace`.

        They are hidden, and the record is made anew: who moves a ref from then on looks whether
        all is there. What refs have come to lead to before comes back.
        """
        if self._dry_run:
            return 0
        self.mark(None)
        before = self._clock() - grace // _MICROSECOND
        try:
            if not self.marks.set_references_aside(before):
                return 0
            raw, state = self._state()
            self._swap(raw, CollectionRecord(state.epoch + 1, state.lists))
            self.mark(None)
        except BaseException:
            self.marks.restore_references()
            raise
        return self.marks.drop_references()

    def tidy(self) -> None:
        """Remove lists that someone who died has left, and merge packs if there are too many."""
        if not self._dry_run:
            self._blocks.delete_lists([one.name for one in self._state()[1].lists])
            self._blocks.tidy()

    def _old(
        self, lists: list[tuple[Condemned, int]], grace: timedelta
    ) -> list[tuple[Condemned, int]]:
        until = self._clock() - grace // _MICROSECOND
        return [one for one in lists if one[1] <= until]

    def _state(self) -> tuple[bytes | None, CollectionRecord]:
        raw = self._refs.gc_record()
        self._state_is_damaged = False
        try:
            return raw, CollectionRecord.from_bytes(raw)
        except FormatError:  # its lists are of no use; no epoch may come back
            self._state_is_damaged = True
            return raw, CollectionRecord(_now())

    def _read(self, state: CollectionRecord) -> list[tuple[Condemned, int]]:
        """Return the lists of a record, without those that are damaged or gone."""
        found = []
        for one in state.lists:
            with suppress(BlockNotFoundError, FormatError):
                found.append((self._blocks.read_list(one.name), one.time))
        return found

    def _swap(self, raw: bytes | None, new: CollectionRecord) -> None:
        if not self._refs.swap_gc(raw, new.to_bytes()):
            raise ConflictError(
                f"another collection of {self._location} was here first; collect again"
            )
        self._blocks.delete_lists([one.name for one in new.lists])
        self._blocks.avoid([condemned for condemned, _ in self._read(new)], new.epoch)


def _refusal(location: str, name: str, error: CasZarrError) -> CasZarrError:
    kind: type[CasZarrError] = FormatError
    for one in (BlockNotFoundError, CorruptBlockError):
        if isinstance(error, one):
            kind = one
    return kind(
        f"nothing was collected in {location}: {name} cannot be followed, and what it leads to "
        f"may be in use: {error}; run verify and repair, then gc again"
    )


def _after(time: int, grace: timedelta) -> datetime:
    try:
        return _DAY_ZERO + time * _MICROSECOND + grace
    except OverflowError:  # a clock was wrong, or the grace time never ends
        return datetime.max.replace(tzinfo=UTC)


def _now() -> int:
    return time.time_ns() // 1000
