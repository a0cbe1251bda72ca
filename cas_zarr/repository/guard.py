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

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.collectable import CollectableBlocks
from cas_zarr.blocks.condemned import Condemned
from cas_zarr.blocks.index import KEY_SIZE
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import DAG_CBOR, CidBytes, codec_of, format_cid
from cas_zarr.codecs import dagjson
from cas_zarr.errors import BlockNotFoundError, CasZarrError, FormatError, StorageError
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.refs import Refs
from cas_zarr.tree.walk import reachable

__all__ = ["CollectionRecord", "Guard", "PendingList", "collectable"]

_TYPE = "cas-zarr/gc"
_VERSION = 1
_BATCH = 1 << 14


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
        return dagjson.encode(
            {"type": _TYPE, "version": _VERSION, "epoch": self.epoch, "lists": lists}
        )

    @classmethod
    def from_bytes(cls, data: bytes | None) -> Self:
        """Read a record, None for the first; FormatError if it is damaged."""
        if data is None:
            return cls()
        try:
            value = dagjson.decode(data)
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
    if not isinstance(name, str) or type(time) is not int:
        raise FormatError("it has something else than lists")
    return PendingList(name, time)


def collectable(blocks: BlockStore) -> BlockStore:
    """Return what holds the blocks that are really here."""
    while isinstance(blocks, TieredBlocks):
        blocks = blocks.local
    return blocks


class Guard:
    """Keeps a writer from relying on blocks that are being collected.

    Make one before the first block is put that a ref shall lead to: from then on what is condemned
    counts as absent when it is put. Then, for each move of a ref: `secure` what it will lead to,
    put and flush what is left to put (the commit), and move the ref with ``guard=guard.record``.
    On a `GuardError`, begin again with `secure`.

    Parameters
    ----------
    blocks : BlockStore
    refs : Refs

    Attributes
    ----------
    record : bytes or None
        The record of collections that `secure` has looked at last; what a ref is moved with.
    """

    def __init__(self, blocks: BlockStore, refs: Refs) -> None:
        self.blocks = blocks
        self.refs = refs
        self.record: bytes | None = None
        self._partial = isinstance(blocks, TieredBlocks)
        self._own = collectable(blocks)
        self._told: tuple[bytes | None, tuple[Condemned, ...]] | None = None
        self.record, _ = self._look()

    def secure(
        self, root: CidBytes | None, *, since: CidBytes | None = None, check: bool = False
    ) -> None:
        """Make sure that a ref can lead to `root`.

        Without a pending list, and if none came and went since the last look, this costs the
        reading of one small file; else, a walk of what `root` has and `since` has not.

        Parameters
        ----------
        root : CidBytes or None
            A root, or a commit: then with its history and all their roots. None only looks.
        since : CidBytes, optional
            What the very ref that is to be moved leads to, and what the move expects it to be: a
            root for a root, a commit for a commit. What another ref leads to does not count, for
            that may move before this one does.
        check : bool
            Walk in any case: for what someone named by its CID, which may have been collected, in
            part, long before.

        Raises
        ------
        StorageError
            If blocks are gone that `root` leads to: the writer is older than the grace time of a
            collection. What it has written must be written again.
        """
        record, lists = self._look()
        if root is not None and (check or lists or record != self.record) and root != since:
            try:
                for batch in _batches(self._needed(root, since)):
                    self._renew(batch)
                self.blocks.flush()
            except BlockNotFoundError as error:
                raise _gone(root, str(error)) from error
        self.record = record

    # ---------------------------------------------------------------------------------------

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

    def _renew(self, batch: list[CidBytes]) -> None:
        """Write anew what is condemned; BlockNotFoundError if a block is gone."""
        own = self._own
        condemned = np.zeros(len(batch), bool)
        if isinstance(own, CollectableBlocks) and self._told is not None and self._told[1]:
            keys = b"".join(cid[-KEY_SIZE:] for cid in batch)
            condemned = own.condemned_many(np.frombuffer(keys, np.uint8).reshape(-1, KEY_SIZE))
        for row in np.flatnonzero(condemned).tolist():
            if not self._partial or own.has(batch[row]):
                own.put(batch[row], own.get(batch[row]))
        if not self._partial:  # else what is not here can be fetched again
            for cid, held in zip(batch, own.has_many(batch), strict=True):
                if not held:
                    raise BlockNotFoundError(f"block {format_cid(cid)} is not there")

    def _needed(self, cid: CidBytes, since: CidBytes | None) -> Iterator[CidBytes]:
        """Yield the blocks that `cid` leads to and `since` does not, one before those it links."""
        if codec_of(cid) != DAG_CBOR:
            yield from self._root(cid, since)
            return
        had = self._history(since) if since is not None else {}
        fresh = self._history(cid, had)
        yield from fresh
        for _, (root, parent) in fresh.items():
            before = fresh.get(parent) or had.get(parent) if parent is not None else None
            yield from self._root(root, None if before is None else before[0])

    def _history(
        self, cid: CidBytes, without: Container[CidBytes] = ()
    ) -> dict[CidBytes, tuple[CidBytes, CidBytes | None]]:
        """Return root and first parent of each commit of a history."""
        shallow = self.refs.shallow()
        found: dict[CidBytes, tuple[CidBytes, CidBytes | None]] = {}
        pending = [cid]
        while pending:
            cid = pending.pop()
            if cid in found or cid in without:
                continue
            commit = Commit.from_block(cid, self.blocks.get(cid))
            parents = () if cid in shallow else commit.parents
            found[cid] = commit.root, parents[0] if parents else None
            pending.extend(parents)
        return found

    def _root(self, root: CidBytes, since: CidBytes | None) -> Iterator[CidBytes]:
        if root == since:
            return
        blocks = self._own if self._partial else self.blocks
        skip = _pass_missing if self._partial else None
        for _, cid in reachable(blocks, root, since=since, on_error=skip):
            yield cid


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


def _gone(root: CidBytes, why: str) -> StorageError:
    return StorageError(
        f"{format_cid(root)} cannot be placed: this session is older than the grace time of a "
        f"collection of garbage, which has deleted blocks that it relied on ({why}); open it anew "
        "and write the data again"
    )
