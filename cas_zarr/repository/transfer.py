"""Copying trees and histories from one place of blocks to another: only what is missing there.

A tree is walked beside one that the target has, so that what both share is not opened. A block
that the target holds already is not read, but that is never taken as a sign that what it links is
there too: an interrupted transfer leaves such blocks, and the next one takes them up.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

from cas_zarr.blocks.base import BlockStore, checked
from cas_zarr.blocks.readonly import ReadOnlyBlocks
from cas_zarr.cid import RAW, CidBytes, CidLike
from cas_zarr.errors import StorageError
from cas_zarr.repository.remotes import local_blocks
from cas_zarr.repository.selection import Part, part_blocks
from cas_zarr.repository.versions import Commits
from cas_zarr.tree.walk import reachable

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["Copier", "Known", "Plan", "Progress", "parents_first", "plan"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the blocks and the bytes that have been copied."""

_ASK = 1024  # blocks that the target is asked for at once
_READ = 32  # blocks in memory at once: one has at most 2 MiB
_FLUSH_BLOCKS = 1 << 14
_FLUSH_BYTES = 256 << 20
_RECENT_BYTES = 32 << 20
_RAW = bytes([1, RAW])  # what the CID of a raw block begins with


class Copier:
    """Copies blocks, verified, and makes them durable as it goes on.

    Used as a context: what was copied is durable when it is left, whatever happened.

    Parameters
    ----------
    source, target : BlockStore
    progress : callable, optional

    Attributes
    ----------
    blocks, size : int
        What was copied so far; `size` in bytes.
    """

    def __init__(
        self, source: BlockStore, target: BlockStore, progress: Progress | None = None
    ) -> None:
        self.source: BlockStore = _Recent(source)
        self.target = local_blocks(target)
        self.blocks = self.size = 0
        self._progress = progress
        self._flushed = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.flush()
        else:
            with suppress(StorageError):  # the first error is the one to tell
                self.flush()

    def tree(
        self,
        root: CidBytes,
        *,
        since: CidBytes | None = None,
        parts: Sequence[Part] | None = None,
    ) -> None:
        """Copy the blocks of `root`, or those of some parts of it.

        Parameters
        ----------
        root : CidBytes
        since : CidBytes, optional
            A root that the target has whole, or all those parts of; in a clone of parts, the rest
            can be fetched. One that is not there is passed over.
        parts : sequence of Part, optional
        """
        if since is not None and not self.target.has(since):
            since = None
        if parts is None:
            walk = reachable(self.source, root, since=since, since_blocks=self.target)
            self.copy(cid for _, cid in walk)
        else:
            self.copy(part_blocks(self.source, root, parts, since=since, since_blocks=self.target))

    def copy(self, cids: Iterable[CidBytes]) -> None:
        """Copy those of some blocks that the target lacks."""
        batch: list[CidBytes] = []
        for cid in cids:
            batch.append(cid)
            if len(batch) == _ASK:
                self._copy(batch)
                batch = []
        self._copy(batch)

    def flush(self) -> None:
        """Make durable what was copied."""
        self.target.flush()
        self._flushed = (self.blocks, self.size)

    def _copy(self, batch: Sequence[CidBytes]) -> None:
        held = self.target.has_many(batch) if batch else ()
        missing = [cid for cid, here in zip(batch, held, strict=True) if not here]
        for start in range(0, len(missing), _READ):
            part = missing[start : start + _READ]
            read = self.source.get_many(part)
            self.target.put_many(zip(part, read, strict=True))
            self.blocks += len(part)
            self.size += sum(map(len, read))
            if self._progress is not None:
                self._progress(self.blocks, self.size)
            blocks, size = self._flushed
            if self.blocks - blocks >= _FLUSH_BLOCKS or self.size - size >= _FLUSH_BYTES:
                self.flush()


class _Recent(ReadOnlyBlocks):
    """Reads another store and remembers pages for a while: they are walked and copied."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._kept: OrderedDict[CidBytes, bytes] = OrderedDict()
        self._held = 0

    # docstrings inherited

    @property
    def location(self) -> str:
        return self._blocks.location

    def _read(self, cid: CidBytes) -> bytes | None:
        data = self._kept.get(cid)
        if data is None:
            data = self._blocks.get(cid)
            self._keep(cid, data)
        return data

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        keys = [checked(cid) for cid in cids]
        others = [cid for cid in keys if cid not in self._kept]
        read = dict(zip(others, self._blocks.get_many(others), strict=True))
        out = [read[cid] if cid in read else self.get(cid) for cid in keys]
        for cid, data in read.items():
            self._keep(cid, data)
        return out

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        return self._blocks.has_many(cids)

    def _has(self, cid: CidBytes) -> bool:
        return self._blocks.has(cid)

    def _size(self, cid: CidBytes) -> int | None:
        return self._blocks.size(cid)

    def _keep(self, cid: CidBytes, data: bytes) -> None:
        if cid.startswith(_RAW) or cid in self._kept:
            return
        self._kept[cid] = data
        self._held += len(data)
        while self._held > _RECENT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._held -= len(dropped)


class Known:
    """The commits that the refs of a repository lead to, found as far back as is asked for.

    Parameters
    ----------
    repo : Repository
    """

    def __init__(self, repo: Repository) -> None:
        self.blocks = local_blocks(repo.blocks)
        self.commits = Commits(repo.blocks, repo.refs)
        self._met: set[CidBytes] = set()
        self._ahead: list[tuple[int, CidBytes]] = []  # newest first
        refs = repo.refs
        records = [refs.branch(name) for name in refs.branches()]
        records += [refs.kept(name) for name in refs.all_kept()]
        tags = [refs.tag(name) for name in refs.tags()]
        tags += [refs.tracked(name) for name in refs.all_tracked()]
        for record in (*records, *tags):
            if record is not None and record.commit is not None:
                self.meet(record.commit)

    def newest(self) -> CidBytes | None:
        """Return a commit that a ref leads to, the newest as far as times tell."""
        return self._ahead[0][1] if self._ahead else None

    def met(self, cid: CidBytes) -> bool:
        """Tell whether a commit was found already."""
        return cid in self._met

    def has(self, cid: CidBytes, time: int) -> bool:
        """Tell whether a ref leads to a commit of that time.

        Where clocks were wrong it may say no of one that a ref leads to: then it is copied again.
        """
        if cid not in self._met and self.blocks.has(cid):
            while self._ahead and -self._ahead[0][0] >= time and cid not in self._met:
                self._step()
        return cid in self._met

    def surely_has(self, cid: CidBytes) -> bool:
        """Tell whether a ref leads to a commit, if need be by going through all histories."""
        if cid not in self._met and self.blocks.has(cid):
            while self._ahead and cid not in self._met:
                self._step()
        return cid in self._met

    def parents_first(self) -> Iterator[CidBytes]:
        """Yield all commits that a ref leads to, parents before children."""
        while self._ahead:
            self._step()
        return parents_first({cid: self.commits.parents(cid) for cid in self._met})

    def _step(self) -> None:
        _, cid = heapq.heappop(self._ahead)
        for parent in self.commits.parents(cid):
            self.meet(parent)

    def meet(self, cid: CidBytes) -> None:
        """Take a commit, and what comes before it, for one that a ref leads to."""
        if cid not in self._met:
            self._met.add(cid)
            heapq.heappush(self._ahead, (-self.commits.read(cid).time, cid))


@dataclass(frozen=True, slots=True)
class Plan:
    """Which commits a transfer takes.

    Attributes
    ----------
    order : list of CidBytes
        Those that the target does not have, parents before children.
    cut : set of CidBytes
        Those of them whose parents stay behind.
    whole : set of CidBytes
        Commits of the target whose parents were cut off and now come.
    """

    order: list[CidBytes]
    cut: set[CidBytes] = field(default_factory=set)
    whole: set[CidBytes] = field(default_factory=set)


def plan(source: Commits, known: Known, tips: Iterable[CidBytes], depth: int | None) -> Plan:
    """Find the commits that lead to `tips` and that the target does not have.

    Parameters
    ----------
    source : Commits
    known : Known
        What the target has.
    tips : iterable of CidBytes
    depth : int, optional
        How many commits to go back; a tip is the first.
    """
    found: dict[CidBytes, tuple[CidBytes, ...]] = {}
    cut_there: set[CidBytes] = set()
    queue = deque((tip, 1) for tip in dict.fromkeys(tips))
    seen = {tip for tip, _ in queue}
    while queue:
        cid, level = queue.popleft()
        parents = source.parents(cid)
        if known.has(cid, source.read(cid).time):
            if depth is None:
                continue
            if cid in known.commits.cut:
                cut_there.add(cid)
        else:
            found[cid] = parents
        if depth is None or level < depth:
            for parent in parents:
                if parent not in seen:
                    seen.add(parent)
                    queue.append((parent, level + 1))

    def there(cid: CidBytes) -> bool:
        return cid in found or known.surely_has(cid)

    return Plan(
        list(parents_first(found)),
        {cid for cid in found if not all(map(there, source.read(cid).parents))},
        {cid for cid in cut_there if all(map(there, source.read(cid).parents))},
    )


def parents_first(found: dict[CidBytes, tuple[CidBytes, ...]]) -> Iterator[CidBytes]:
    """Yield commits, given with their parents, the parents before what follows them."""
    done: set[CidBytes] = set()
    for tip in found:
        pending = [tip]
        while pending:
            cid = pending[-1]
            ahead = [one for one in found[cid] if one in found and one not in done]
            if ahead and cid not in done:
                pending.extend(ahead)
                continue
            pending.pop()
            if cid not in done:
                done.add(cid)
                yield cid
