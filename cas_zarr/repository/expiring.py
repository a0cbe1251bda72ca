"""Letting old history go: it is cut off, and what is behind the cut can be collected then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cas_zarr.cid import CidBytes, ReadableCids, format_cid
from cas_zarr.errors import (
    CasZarrError,
    CorruptBlockError,
    InvalidArgumentError,
    ReadOnlyError,
)
from cas_zarr.repository.refs import Branch, RefMove, Refs, Tag
from cas_zarr.repository.times import to_micros
from cas_zarr.repository.versions import Commits

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["ExpireReport", "expire"]


@dataclass(frozen=True, slots=True, repr=False)
class ExpireReport(ReadableCids):
    """What an expiry did, or would do.

    Attributes
    ----------
    expired : tuple of CidBytes
        The commits that are part of no history any more.
    kept : int
        How many commits still are.
    cut : tuple of CidBytes
        The commits at which histories were cut anew.
    moves : int
        How many moves of refs were dropped from the log.
    dry_run : bool
        Whether nothing was done.
    """

    expired: tuple[CidBytes, ...]
    kept: int
    cut: tuple[CidBytes, ...]
    moves: int
    dry_run: bool


def expire(
    repo: Repository,
    *,
    older_than: datetime | timedelta | None = None,
    keep: int | None = None,
    dry_run: bool = False,
) -> ExpireReport:
    """Cut old commits off the histories of all refs.

    Nothing is deleted: what no ref leads to any more goes when garbage is collected. The commits
    that stay, their data and their CIDs are as before; the first of them still name their parents,
    but these are no part of the history.

    Parameters
    ----------
    repo : Repository
    older_than : datetime or timedelta, optional
        Commits that are younger stay: a moment (UTC where it has no zone), or an age. Of the log of
        refs, moves before it are dropped.
    keep : int, optional
        That many commits stay behind the tip of each branch, the tip included; of a merge, that
        many in both directions. Given both, a commit stays for either reason.
    dry_run : bool
        Only tell what would be done.

    Returns
    -------
    ExpireReport

    Raises
    ------
    InvalidArgumentError
        If neither limit is given, or one makes no sense.
    CorruptBlockError, BlockNotFoundError
        If a commit that a ref leads to, or that the log has, cannot be read; nothing is done.
    ConflictError
        If another process cut histories at the same time; repeat it.

    Notes
    -----
    The commit that a branch, a tag or a kept root leads to always stays, and so does one between a
    tip and a commit that stays, whatever the clocks said. Of a commit whose history goes on, all
    parents stay. Moves in the log of refs hold commits that are in no history, as those of a
    deleted branch, until they are older than the limit. Moves that name an expired commit are
    dropped from it; where a commit would have no move left then, the other end of its last one
    stays too.
    """
    if not dry_run and repo.read_only:
        raise ReadOnlyError(f"{repo.location} is open for reading only")
    limit = _limit(older_than)
    if limit is None and keep is None:
        raise InvalidArgumentError("give older_than or keep: without a limit nothing expires")
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise InvalidArgumentError(f"keep is a number of commits from 1 on, not {keep!r}")
    refs = repo.refs
    commits = Commits(repo.blocks, refs)
    history = _History(commits)
    branches, others = _tips(refs)
    tips = branches | others
    for tip in tips:
        history.add(tip)
    named = set(history.parents)
    log = refs.log(damaged="skip")
    young = [move for move in log if limit is None or move.time >= limit]
    held = {cid for move in young for cid in _commits_of(move) if cid not in named}
    for cid in held:
        if not repo.blocks.has(cid):
            continue
        try:
            history.add(cid)
        except CasZarrError as error:
            raise CorruptBlockError(
                f"nothing was expired in {repo.location}: commit {format_cid(cid)}, which the log "
                f"of refs has, cannot be followed: {error}; repair it, or give an older_than that "
                "lets go of what the log has of it"
            ) from error
    tips |= held & history.parents.keys()

    near = set() if keep is None else history.near(branches, keep)
    stays = {
        cid
        for cid in history.parents
        if cid in near or (limit is not None and commits.read(cid).time >= limit)
    }
    young_enough = history.between(stays)
    while True:
        stays = young_enough | tips
        history.complete(stays)
        expired = tuple(cid for cid in history.parents if cid not in stays)
        gone = set(expired)
        rescued = _held_with(held, young, gone)
        if not rescued:
            break
        tips |= rescued
    cut = {cid for cid in stays if not gone.isdisjoint(history.parents[cid])}
    if dry_run:
        moves = sum((limit is not None and move.time < limit) or move.names(gone) for move in log)
    else:
        if cut:
            refs.set_shallow(commits.cut, commits.cut | cut)
        moves = refs.trim_log(limit, commits=gone)
    return ExpireReport(expired, len(stays), tuple(sorted(cut)), moves, dry_run)


class _History:
    """The commits that were reached, with their parents; a commit comes behind its parents."""

    def __init__(self, commits: Commits) -> None:
        self.commits = commits
        self.parents: dict[CidBytes, tuple[CidBytes, ...]] = {}

    def add(self, tip: CidBytes) -> None:
        """Enter a commit and all behind it."""
        stack = [(tip, False)]
        while stack:
            cid, ready = stack.pop()
            if cid in self.parents:
                continue
            parents = self.commits.parents(cid)
            if ready:
                self.parents[cid] = parents
                continue
            stack.append((cid, True))
            stack.extend((parent, False) for parent in parents if parent not in self.parents)

    def near(self, tips: set[CidBytes], keep: int) -> set[CidBytes]:
        """Return the commits that are fewer than `keep` steps behind a tip."""
        found: set[CidBytes] = set()
        row = set(tips)
        while row and keep:
            found |= row
            row = {parent for cid in row for parent in self.parents[cid]} - found
            keep -= 1
        return found

    def between(self, stays: set[CidBytes]) -> set[CidBytes]:
        """Return what stays, and what has something behind it that stays."""
        found: set[CidBytes] = set()
        for cid, parents in self.parents.items():  # parents come first
            if cid in stays or not found.isdisjoint(parents):
                found.add(cid)
        return found

    def complete(self, stays: set[CidBytes]) -> None:
        """Let all parents of a commit stay if one of them does: a cut is behind a commit."""
        pending = list(stays)
        while pending:
            cid = pending.pop()
            parents = set(self.parents[cid])
            if not parents.isdisjoint(stays):
                pending.extend(parents - stays)
                stays |= parents


def _tips(refs: Refs) -> tuple[set[CidBytes], set[CidBytes]]:
    """Return the commits of branches, and those of all other refs."""
    branches = {_commit(refs.branch(name)) for name in refs.branches()}
    others = {_commit(refs.tag(name)) for name in refs.tags()}
    others |= {_commit(refs.tracked(name)) for name in refs.all_tracked()}
    others |= {_commit(refs.kept(name)) for name in refs.all_kept()}
    return {cid for cid in branches if cid}, {cid for cid in others if cid}


def _commit(record: Branch | Tag | None) -> CidBytes | None:
    return None if record is None else record.commit


def _commits_of(move: RefMove) -> Iterator[CidBytes]:
    for record in (move.old, move.new):
        if record is not None and record.commit is not None:
            yield record.commit


def _held_with(held: set[CidBytes], moves: list[RefMove], gone: set[CidBytes]) -> set[CidBytes]:
    """Return the expired commits that must stay since a move names them that alone holds another.

    Of the moves that hold a commit the latest is taken, where all of them name an expired one.
    """
    last: dict[CidBytes, RefMove | None] = {}
    for move in moves:
        for cid in held.intersection(_commits_of(move)):
            if not move.names(gone):
                last[cid] = None
            elif last.get(cid, move) is not None:
                last[cid] = move
    return {
        cid
        for move in last.values()
        if move is not None
        for cid in _commits_of(move)
        if cid in gone
    }


def _limit(older_than: datetime | timedelta | None) -> int | None:
    if older_than is None:
        return None
    if isinstance(older_than, timedelta):
        if older_than < timedelta(0):
            raise InvalidArgumentError(f"an age is not below zero, as {older_than} is")
        return time.time_ns() // 1000 - older_than // timedelta(microseconds=1)
    if not isinstance(older_than, datetime):
        raise InvalidArgumentError(f"{older_than!r} is no datetime and no timedelta")
    return to_micros(older_than)
