"""History: the commits behind a version, which of them changed what, and where histories meet.

Times only decide in which order commits are shown and looked at; what is found does not depend on
clocks. Where a history was cut on purpose, it ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from cas_zarr.cid import CidBytes, CidLike, ReadableCids
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.expiring import ExpireReport, expire
from cas_zarr.repository.graph import GraphLine, graph_lines
from cas_zarr.repository.moving import move_branch, move_tag, rename_branch, reset
from cas_zarr.repository.times import When, to_micros
from cas_zarr.repository.touched import Touched
from cas_zarr.repository.versions import Commits

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = [
    "ExpireReport",
    "GraphLine",
    "LogEntry",
    "ancestors",
    "expire",
    "graph_lines",
    "is_ancestor",
    "log",
    "merge_base",
    "merge_bases",
    "move_branch",
    "move_tag",
    "rename_branch",
    "reset",
]

Box: TypeAlias = "Sequence[slice | tuple[int, int | None]]"


@dataclass(frozen=True, slots=True, repr=False)
class LogEntry(ReadableCids):
    """A commit in a listing of a history.

    Attributes
    ----------
    cid : CidBytes
    commit : Commit
    parents : tuple of CidBytes
        The parents that the listing followed; in a topological one, the nearest commits behind
        this one that are listed.
    cut : bool
        Whether the history was cut off here on purpose: the commit has parents that are no part
        of it.
    """

    cid: CidBytes
    commit: Commit
    parents: tuple[CidBytes, ...] = ()
    cut: bool = False


def log(
    repo: Repository,
    version: CidLike = "main",
    *,
    since: When | None = None,
    until: When | None = None,
    path: str | None = None,
    box: Box | None = None,
    first_parent: bool = False,
    topological: bool = False,
) -> Iterator[LogEntry]:
    """Yield the commits of a version's history, newest first, each once.

    A commit comes after all that were made later and that the walk has met so far; merges bring in
    the histories of all their parents.

    Parameters
    ----------
    repo : Repository
    version : str or CID
    since, until : datetime, str or int, optional
        Only commits of these times and between them; text of a day or a minute is all of it.
    path : str, optional
        Only commits that changed the node or the key at this path: for which it is not what it was
        in any of their parents. No chunk is read, and of two versions just what differs is opened.
    box : sequence of slice or (start, stop), optional
        Only commits that changed a chunk in this box of the array at `path`, in coordinates of its
        chunk grid, as `CASMapping.cid` takes it.
    first_parent : bool
        Of a merge follow only its first parent, and compare it only with that.
    topological : bool
        No commit before all that follow it, whatever the clocks said; the parents of entries are
        among the listing. This reads the whole history before the first entry comes.

    Raises
    ------
    InvalidArgumentError
        If the version is a root, which has no history, or the box does not fit.
    """
    begin = None if since is None else to_micros(since)
    end = None if until is None else to_micros(until, end=True)
    found = repo.resolve(version)
    start = found.commit
    if start is None:
        raise InvalidArgumentError(f"{version!r} is a root and has no history")
    commits = Commits(repo.blocks, repo.refs)
    touched = None if path is None and box is None else Touched(repo.blocks, path or "", box)
    if touched is not None:
        touched.check(found.root)

    def parents_of(cid: CidBytes) -> tuple[CidBytes, ...]:
        parents = commits.parents(cid)
        return parents[:1] if first_parent else parents

    def listed(entry: LogEntry) -> bool:
        time = entry.commit.time
        if (begin is not None and time < begin) or (end is not None and time > end):
            return False
        if touched is None:
            return True
        root = entry.commit.root
        if not entry.parents:
            return touched.differs(None, root)
        return all(touched.differs(commits.read(one).root, root) for one in entry.parents)

    def entries() -> Iterator[LogEntry]:
        order = _topological if topological else _by_time
        for cid in order(commits, start, parents_of):
            commit = commits.read(cid)
            cut = cid in commits.cut and bool(commit.parents)
            yield LogEntry(cid, commit, parents_of(cid), cut)

    if topological and (touched is not None or begin is not None or end is not None):
        return _relinked(list(entries()), listed)
    return filter(listed, entries())


def ancestors(repo: Repository, version: CidLike = "main") -> Iterator[CidBytes]:
    """Yield the commit of a version and all that it follows, newest first, each once."""
    commits = Commits(repo.blocks, repo.refs)
    return _by_time(commits, _commit_of(repo, version), commits.parents)


def is_ancestor(repo: Repository, ancestor: CidLike, version: CidLike) -> bool:
    """Tell whether the commit of a version is, or follows, that of `ancestor`."""
    wanted = _commit_of(repo, ancestor)
    start = _commit_of(repo, version)
    return wanted == start or merge_bases(repo, wanted, start) == [wanted]


def merge_base(repo: Repository, a: CidLike, b: CidLike) -> CidBytes | None:
    """Return the commit from which two versions went apart; None if they share no history.

    Where there are several, as after merges crosswise, it is the latest of `merge_bases`.
    """
    return next(iter(merge_bases(repo, a, b)), None)


def merge_bases(repo: Repository, a: CidLike, b: CidLike) -> list[CidBytes]:
    """Return the commits that both versions follow and no other such commit follows.

    They are sorted, the latest first. Only what is newer than them is read, and some of what is
    older where clocks were wrong or there are several.
    """
    one, two = _commit_of(repo, a), _commit_of(repo, b)
    if one == two:
        return [one]
    # As git does it: who comes from where is painted down the history, the latest commits first. A
    # commit that both reach is a candidate, and what lies behind it is stale. Paint that comes late
    # is painted on, so the end is right whatever the clocks said.
    commits = Commits(repo.blocks, repo.refs)
    paint = {one: _A, two: _B}
    queue = [(-commits.read(cid).time, cid, True) for cid in paint]
    heapq.heapify(queue)
    fresh = len(queue)  # of the queue: not stale when they were put there
    candidates: set[CidBytes] = set()
    while queue and (fresh or len(candidates) > 1):
        _, cid, counted = heapq.heappop(queue)
        fresh -= counted
        colours = paint[cid]
        if colours & _BOTH == _BOTH:
            if not colours & _STALE:
                candidates.add(cid)
            colours |= _STALE
        for parent in commits.parents(cid):
            before = paint.get(parent, 0)
            if before | colours == before:
                continue
            paint[parent] = before | colours
            if colours & _STALE:
                candidates.discard(parent)
            counted = not paint[parent] & _STALE
            heapq.heappush(queue, (-commits.read(parent).time, parent, counted))
            fresh += counted
    return sorted(candidates, key=lambda cid: (-commits.read(cid).time, cid))


_A, _B, _STALE = 1, 2, 4
_BOTH = _A | _B


def _commit_of(repo: Repository, version: CidLike) -> CidBytes:
    commit = repo.resolve(version).commit
    if commit is None:
        raise InvalidArgumentError(
            f"{version!r} is a root and has no history; give a branch, a tag or a commit"
        )
    return commit


def _by_time(
    commits: Commits, start: CidBytes, parents_of: Callable[[CidBytes], Sequence[CidBytes]]
) -> Iterator[CidBytes]:
    seen = {start}
    order = 0
    queue = [(-commits.read(start).time, order, start)]
    while queue:
        cid = heapq.heappop(queue)[2]
        yield cid
        for parent in parents_of(cid):
            if parent not in seen:
                seen.add(parent)
                order += 1
                heapq.heappush(queue, (-commits.read(parent).time, order, parent))


def _topological(
    commits: Commits, start: CidBytes, parents_of: Callable[[CidBytes], Sequence[CidBytes]]
) -> Iterator[CidBytes]:
    waiting: dict[CidBytes, int] = {start: 0}  # how many that follow were not yielded yet
    pending = [start]
    while pending:
        for parent in dict.fromkeys(parents_of(pending.pop())):
            if parent not in waiting:
                waiting[parent] = 0
                pending.append(parent)
            waiting[parent] += 1
    order = 0
    queue = [(-commits.read(start).time, order, start)]
    while queue:
        cid = heapq.heappop(queue)[2]
        yield cid
        for parent in dict.fromkeys(parents_of(cid)):
            waiting[parent] -= 1
            if not waiting[parent]:
                order += 1
                heapq.heappush(queue, (-commits.read(parent).time, order, parent))


def _relinked(entries: list[LogEntry], listed: Callable[[LogEntry], bool]) -> Iterator[LogEntry]:
    """Yield the entries that are listed, each linked to the nearest listed ones behind it."""
    nearest: dict[CidBytes, tuple[CidBytes, ...]] = {}
    kept = []
    for entry in reversed(entries):
        behind = dict.fromkeys(cid for parent in entry.parents for cid in nearest[parent])
        if listed(entry):
            nearest[entry.cid] = (entry.cid,)
            kept.append(replace(entry, parents=tuple(behind)))
        else:
            nearest[entry.cid] = tuple(behind)
    return reversed(kept)
