"""What a writer of refs holds against a collection of garbage that runs beside it.

A collection condemns what no ref leads to, publishes the list, waits a grace time, and deletes what
is on the list and still not in use. Between, a writer may come to rely on a condemned block: it
finds it held and does not write it again. The record of collections, which lies with the refs,
names the lists that are pending; a ref moves only if this record is the one that its mover has
looked at, and having looked means: whatever the move newly leads to is on no list, or was written
anew, into a pack that the list does not name. So a block that is on a list and that a ref leads to
was led to before the list was swept, and is marked then, or has a copy that the sweep leaves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.collectable import CollectableBlocks
from cas_zarr.blocks.condemned import Condemned
from cas_zarr.blocks.fronted import FrontedBlocks
from cas_zarr.blocks.index import KEY_SIZE
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import DAG_CBOR, CidBytes, codec_of, format_cid
from cas_zarr.codecs import dagjson
from cas_zarr.errors import BlockNotFoundError, CasZarrError, FormatError, StorageError
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.records import seal, unseal
from cas_zarr.repository.refs import Branch, Refs, Tag
from cas_zarr.tree.walk import reachable

__all__ = ["CollectionRecord", "Guard", "PendingList", "collectable"]

_TYPE = "cas-zarr/gc"
_VERSION = 1
_BATCH = 1 << 14
_is_name = re.compile("[0-9a-f]{32}").fullmatch  # it becomes the name of a file

_History: TypeAlias = dict[CidBytes, tuple[CidBytes, tuple[CidBytes, ...]]]
"""Commit -> its root, and its parents where the history is not cut there."""


@dataclass(frozen=True, slots=True)
class PendingList:
    """A list of condemned blocks that was published.

    Attributes
    ----------
    name : str
    time : int
        When it was published: microseconds since 1970-01-01 UTC.
    """

    name: str
    time: int


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """The record of collections.

    Attributes
    ----------
    epoch : int
        Grows with every list that is published, so that no record ever comes back.
    lists : tuple of PendingList
    """

    epoch: int = 0
    lists: tuple[PendingList, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the record as canonical DAG-JSON."""
        lists: list[dagjson.Value] = [{"name": one.name, "time": one.time} for one in self.lists]
        return seal({"type": _TYPE, "version": _VERSION, "epoch": self.epoch, "lists": lists})

    @classmethod
    def from_bytes(cls, data: bytes | None) -> Self:
        """Read a record, None for the first; FormatError if it is damaged."""
        if data is None:
            return cls()
        try:
            value = unseal(data)
            if not isinstance(value, dict) or value.get("type") != _TYPE:
                raise FormatError("it is none")
            if value.get("version") != _VERSION:
                raise FormatError(f"it has format version {value.get('version')!r}")
            epoch, lists = value.get("epoch"), value.get("lists")
            if type(epoch) is not int or not isinstance(lists, list):
                raise FormatError("it has missing or wrong fields")
            return cls(epoch, tuple(map(_pending, lists)))
        except FormatError as error:
            raise FormatError(
                f"the record of collections is damaged: {error}; run gc, which writes it anew"
            ) from None


def _pending(value: object) -> PendingList:
    if not isinstance(value, dict) or set(value) != {"name", "time"}:
        raise FormatError("it has something else than lists")
    name, time = value["name"], value["time"]
    if not isinstance(name, str) or not _is_name(name) or type(time) is not int:
        raise FormatError("it has something else than lists")
    return PendingList(name, time)


def collectable(blocks: BlockStore) -> BlockStore:
    """Return what holds the blocks that are really here, or behind a cache."""
    while isinstance(blocks, (TieredBlocks, FrontedBlocks)):
        blocks = blocks.behind if isinstance(blocks, FrontedBlocks) else blocks.local
    return blocks


class Guard:
    """Keeps a writer from relying on blocks that are being collected.

    Make one before the first block is put that a ref shall lead to: from then on what is condemned
    counts as absent when it is put. Then, for each move of a ref: put and flush all that it needs,
    `secure_move`, and move it with ``guard=guard.record``. On a `GuardError` begin again with
    `secure_move`.

    Parameters
    ----------
    blocks : BlockStore
    refs : Refs
    writer, remedy : str
        Who it is that moves refs, and what to do where blocks are gone, for messages.

    Attributes
    ----------
    record : bytes or None
        The record of collections that was looked at last; what a ref is moved with.
    """

    def __init__(
        self,
        blocks: BlockStore,
        refs: Refs,
        *,
        writer: str = "this session",
        remedy: str = "open it anew and write the data again",
    ) -> None:
        self.blocks = blocks
        self.refs = refs
        self._writer, self._remedy = writer, remedy
        self._partial = isinstance(blocks, TieredBlocks)
        self._own = collectable(blocks)
        self._told: tuple[bytes | None, tuple[Condemned, ...]] | None = None
        self.record, _ = self._look()
        self._first = self.record
        self._cut: frozenset[CidBytes] = frozenset()

    def secure_move(self, new: Branch | Tag | None, expected: Branch | Tag | None) -> None:
        """Make sure that a ref can lead to `new`: its commit, history and roots.

        Without a pending list, and if none came since this guard was made, this costs the reading
        of one small file; else, a walk of what `new` has and `expected` has not.

        Parameters
        ----------
        new : Branch, Tag or None
            What the ref will be; None, where it is deleted, only looks.
        expected : Branch, Tag or None
            What the very ref that is moved is now, as the move expects it. What another ref leads
            to does not count, for that may move before this one does.

        Raises
        ------
        StorageError
            If blocks are gone that `new` leads to: the writer is older than the grace time of a
            collection. What it has written must be written again.
        """
        if new is not None and new != expected:
            self._secure(new, expected, check=False)
        else:
            self.record, _ = self._look()

    def secure(
        self, root: CidBytes | None, *, since: CidBytes | None = None, check: bool = False
    ) -> None:
        """Make sure that a ref can lead to `root`, as `secure_move` does.

        A commit that leads to the root, and was put before, is not looked at: it has to be secured
        too, or put after this.

        Parameters
        ----------
        root : CidBytes or None
            A root, or a commit: then with its history and all their roots. None only looks.
        since : CidBytes, optional
            What the very ref that is moved leads to now, as the move expects it: a root for a
            root, a commit for a commit.
        check : bool
            Walk in any case: for what someone named by its CID, which may have been collected, in
            part, long before.

        Raises
        ------
        StorageError
            As of `secure_move`.
        """
        if root is None or root == since:
            self.record, _ = self._look()
        else:
            was = None if since is None else _as_record(since)
            self._secure(_as_record(root), was, check=check)

    # ---------------------------------------------------------------------------------------

    def _secure(self, new: Branch | Tag, expected: Branch | Tag | None, *, check: bool) -> None:
        record, lists = self._look()
        if check or lists or record != self._first:
            swept = check or _was_swept(self._first, record)
            self._cut = self.refs.shallow()
            try:
                for batch in _batches(self._needed(new, expected)):
                    self._renew(batch, swept=swept)
                self.blocks.flush()
            except BlockNotFoundError as error:
                raise self._gone(new, str(error)) from error
        self.record = record

    def _look(self) -> tuple[bytes | None, tuple[Condemned, ...]]:
        """Read the record and the lists that it names; tell the blocks of them."""
        own = self._own
        if not isinstance(own, CollectableBlocks):
            return self.refs.gc_record(), ()
        while True:
            record = self.refs.gc_record()
            if self._told is not None and self._told[0] == record:
                return self._told
            state = CollectionRecord.from_bytes(record)
            known = {} if self._told is None else {one.name: one for one in self._told[1]}
            try:
                lists = tuple(known.get(one.name) or own.read_list(one.name) for one in state.lists)
            except BlockNotFoundError:
                if self.refs.gc_record() == record:
                    raise
                continue  # it was swept just now
            own.avoid(lists, state.epoch)
            self._told = record, lists
            return self._told

    def _renew(self, batch: list[CidBytes], *, swept: bool) -> None:
        """Write anew what is condemned; BlockNotFoundError if a block is gone."""
        own = self._own
        condemned = np.zeros(len(batch), bool)
        if isinstance(own, CollectableBlocks) and self._told is not None and self._told[1]:
            keys = b"".join(cid[-KEY_SIZE:] for cid in batch)
            condemned = own.condemned_many(np.frombuffer(keys, np.uint8).reshape(-1, KEY_SIZE))
        doubtful = [batch[row] for row in np.flatnonzero(condemned).tolist()]
        if own.remote:
            map_waiting(self._write_anew, doubtful)
        else:
            for cid in doubtful:
                self._write_anew(cid)
        # In a clone of parts most of what is not here was never here, and lies where it comes from.
        # But what was written here, and swept, is nowhere.
        if swept or not self._partial:
            doubtful = batch
        for cid, held in zip(doubtful, self.blocks.has_many(doubtful), strict=True):
            if not held:
                raise BlockNotFoundError(f"block {format_cid(cid)} is not there")

    def _write_anew(self, cid: CidBytes) -> None:
        with suppress(BlockNotFoundError):
            self._own.put(cid, self._own.get(cid))

    def _needed(self, new: Branch | Tag, expected: Branch | Tag | None) -> Iterator[CidBytes]:
        """Yield the blocks that `new` leads to and `expected` does not."""
        had = None if expected is None else expected.commit
        commits: _History = {}
        known: _History = {}
        if new.commit is not None and new.commit != had:
            commits, known = self._history(new.commit, had)
        elif had is not None:
            known = {had: self._commit(had)}
        work = _work(new)
        base = _work(expected) or (known[had][0] if had in known else None)
        yield from commits
        if work is not None:
            yield from self._root(work, base)
        for root, parents in commits.values():  # each commit costs what it changed
            if root not in (work, base):
                parent = parents[0] if parents else None
                before = commits.get(parent) or known.get(parent) if parent else None
                on_top = had is not None and parent == had
                yield from self._root(root, base if on_top else before[0] if before else None)

    def _history(self, cid: CidBytes, since: CidBytes | None) -> tuple[_History, _History]:
        """Return the commits of a history that are not in that of `since`, and some that are."""
        had: _History = {}
        if since is not None:
            had[since] = self._commit(since)
        fresh: _History = {}
        whole = False
        pending = [cid]
        while pending:
            cid = pending.pop()
            if cid in fresh or cid in had:
                continue
            if fresh and since is not None and not whole:  # more than one commit upon `since`
                had, whole = self._all(since), True
                if cid in had:
                    continue
            fresh[cid] = self._commit(cid)
            pending.extend(fresh[cid][1])
        return fresh, had

    def _all(self, cid: CidBytes) -> _History:
        found: _History = {}
        pending = [cid]
        while pending:
            cid = pending.pop()
            if cid not in found:
                found[cid] = self._commit(cid)
                pending.extend(found[cid][1])
        return found

    def _commit(self, cid: CidBytes) -> tuple[CidBytes, tuple[CidBytes, ...]]:
        commit = Commit.from_block(cid, self.blocks.get(cid))
        return commit.root, () if cid in self._cut else commit.parents

    def _root(self, root: CidBytes, since: CidBytes | None) -> Iterator[CidBytes]:
        if root == since:
            return
        blocks = self._own if self._partial else self.blocks
        skip = _pass_missing if self._partial else None
        if self._partial and since is not None and not blocks.has(since):
            since = None
        for _, cid in reachable(blocks, root, since=since, on_error=skip):
            yield cid

    def _gone(self, new: Branch | Tag, why: str) -> StorageError:
        cid = _work(new) or new.commit
        assert cid is not None
        return StorageError(
            f"{format_cid(cid)} cannot be placed: {self._writer} is older than the grace time of a "
            f"collection of garbage, which has deleted blocks that it relied on ({why}); "
            f"{self._remedy}"
        )


def _was_swept(first: bytes | None, now: bytes | None) -> bool:
    """Tell whether a list may have been swept between two records of collections."""
    try:
        before, after = CollectionRecord.from_bytes(first), CollectionRecord.from_bytes(now)
    except FormatError:
        return True
    old, new = ({one.name for one in record.lists} for record in (before, after))
    return not old <= new or after.epoch - before.epoch != len(new - old)


def _pass_missing(path: str, cid: CidBytes, error: CasZarrError) -> None:  # noqa: ARG001
    """Pass over what was not fetched."""
    if not isinstance(error, BlockNotFoundError):
        raise error


def _batches(cids: Iterable[CidBytes]) -> Iterator[list[CidBytes]]:
    batch: list[CidBytes] = []
    for cid in cids:
        batch.append(cid)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _as_record(cid: CidBytes) -> Branch:
    """Return a record that leads to a root or a commit alone."""
    return Branch(commit=cid) if codec_of(cid) == DAG_CBOR else Branch(work=cid)


def _work(record: Branch | Tag | None) -> CidBytes | None:
    return record.work if isinstance(record, Branch) else None
