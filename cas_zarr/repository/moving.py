"""Moving branches and tags by hand: every such move is in the log of refs, with its reason."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from cas_zarr.cid import CidBytes, CidLike, as_cid_bytes, format_cid
from cas_zarr.errors import (
    CasZarrError,
    ConflictError,
    FormatError,
    InvalidArgumentError,
)
from cas_zarr.repository.guard import Guard
from cas_zarr.repository.refs import Branch, GuardError, Tag
from cas_zarr.repository.versions import Commits, Resolved, not_found, root_of

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["delete_branch", "guarded", "move_branch", "move_tag", "rename_branch", "reset"]

_T = TypeVar("_T")


def move_branch(
    repo: Repository, name: str, version: CidLike, *, why: str, force: bool = False
) -> Branch:
    """Let a branch lead to another version; return what it is now.

    Parameters
    ----------
    repo : Repository
    name : str
        The branch.
    version : str or CID
        A commit: it becomes the newest one of the branch, and its root what the branch shows. A
        root: the branch shows it, its newest commit stays.
    why : str
        The reason, for the log of refs.
    force : bool
        Drop work that no commit has, a record that is damaged, and commits that cannot be read.
        The log has the work.

    Raises
    ------
    VersionNotFoundError
        If there is no such branch or version.
    ConflictError
        If the branch has work that no commit has, or another writer moved it meanwhile.
    """
    found = repo.resolve(version)
    try:
        record = repo.refs.branch(name)
    except FormatError:
        if not force or found.commit is None:
            raise
        whole = Branch(found.commit, found.root)
        guarded(
            repo,
            found,
            lambda guard: repo.refs.overwrite_damaged(name, whole, why=why, guard=guard),
        )
        return whole
    if record is None:
        raise not_found(repo.refs, name, kind="branch", names=repo.refs.branches())
    new = Branch(record.commit if found.commit is None else found.commit, found.root)
    lost = force and record.commit is not None and not _is_readable(repo, record.commit)
    shown = record.work if lost else root_of(repo.blocks, record)
    if shown != found.root and not force:
        _require_committed(repo, name, record)
    if new.commit == record.commit and shown == found.root:
        return record
    guarded(
        repo,
        found,
        lambda guard: repo.refs.update(name, expected=record, new=new, why=why, guard=guard),
        since=shown if found.commit is None else None if lost else record.commit,
    )
    return new


def reset(repo: Repository, name: str, version: CidLike, *, force: bool = False) -> Branch:
    """Let a branch lead to another version, as `move_branch`; the reason names the version."""
    return move_branch(repo, name, version, why=f"reset: to {_text(version)}", force=force)


def delete_branch(repo: Repository, name: str, *, force: bool = False) -> None:
    """Take a branch away.

    Raises
    ------
    VersionNotFoundError
        If there is no such branch.
    ConflictError
        If it has work that no commit has, unless `force` drops it; or another writer moved it
        meanwhile.
    """
    record = repo.refs.branch(name)
    if record is None:
        raise not_found(repo.refs, name, kind="branch", names=repo.refs.branches())
    if not force:
        _require_committed(repo, name, record)
    repo.refs.update(name, expected=record, new=None, why="delete")


def rename_branch(repo: Repository, old: str, new: str) -> Branch:
    """Give a branch another name; return its record.

    A writer that is there first takes part: what it moves meanwhile moves along. A session that is
    open on the old name finds its branch gone.

    Raises
    ------
    VersionNotFoundError
        If there is no branch of the old name.
    ConflictError
        If there is one of the new name.
    """
    refs = repo.refs
    record = refs.branch(old)
    if record is None:
        raise not_found(refs, old, kind="branch", names=refs.branches())
    why = f"rename: {old} is {new} now"
    refs.update(new, expected=None, new=record, why=why)  # first, so that no crash loses it
    while True:
        try:
            refs.update(old, expected=record, new=None, why=why)
        except ConflictError:
            later = refs.branch(old)
            if later is None:  # renamed or deleted by another: its word counts
                refs.update(new, expected=record, new=None, why=f"rename: {old} was gone")
                raise
            refs.update(new, expected=record, new=later, why=why)
            record = later
            continue
        return record


def move_tag(repo: Repository, name: str, version: CidLike, *, why: str = "") -> CidBytes:
    """Give the name of a tag to the commit of another version; return that commit.

    Raises
    ------
    VersionNotFoundError
        If there is no such tag or version.
    ConflictError
        If another writer moved it meanwhile.
    """
    found = repo.resolve(version)
    commit = found.commit
    if commit is None:
        raise InvalidArgumentError(
            f"{version!r} is a root, and a tag names a commit; commit it first"
        )
    tag = repo.refs.tag(name)
    if tag is None:
        raise not_found(repo.refs, name, kind="tag", names=repo.refs.tags())
    if tag.commit != commit:
        why = why or f"move: to {_text(version)}"
        guarded(
            repo,
            found,
            lambda guard: repo.refs.move_tag(
                name, expected=tag, new=Tag(commit), why=why, guard=guard
            ),
        )
    return commit


def guarded(
    repo: Repository,
    found: Resolved,
    move: Callable[[bytes | None], _T],
    *,
    since: CidBytes | None = None,
) -> _T:
    """Move a ref to a version so that no collection of garbage takes from under it what it needs.

    Parameters
    ----------
    repo : Repository
    found : Resolved
        What the ref is to lead to.
    move : callable
        Moves it, given the `guard` for a method of `Refs`. It is called again where a collection
        went on meanwhile.
    since : CidBytes, optional
        What the ref leads to, if `move` expects just that: a commit for a commit, or a root.
    """
    guard = Guard(repo.blocks, repo.refs)
    # What no ref leads to may have been collected in part, long before.
    check = found.commit is None or not _is_reached(repo, found.commit)
    while True:
        guard.secure(found.commit or found.root, since=since, check=check)
        try:
            return move(guard.record)
        except GuardError:
            continue


def _is_reached(repo: Repository, commit: CidBytes) -> bool:
    """Tell whether a branch or a tag leads to a commit; the latest commits are looked at first."""
    seen = set(_tips(repo))
    if commit in seen:
        return True
    commits = Commits(repo.blocks, repo.refs)
    queue: list[tuple[int, CidBytes]] = []
    fresh = list(seen)
    while fresh or queue:
        for cid in fresh:
            with suppress(CasZarrError):  # behind a ref that is hurt already
                heapq.heappush(queue, (-commits.read(cid).time, cid))
        if not queue:
            return False
        fresh = [one for one in commits.parents(heapq.heappop(queue)[1]) if one not in seen]
        seen.update(fresh)
        if commit in seen:
            return True
    return False


def _is_readable(repo: Repository, commit: CidBytes) -> bool:
    """Tell whether all commits of a history can be read."""
    commits = Commits(repo.blocks, repo.refs)
    seen = {commit}
    pending = [commit]
    while pending:
        try:
            fresh = [one for one in commits.parents(pending.pop()) if one not in seen]
        except CasZarrError:
            return False
        seen.update(fresh)
        pending += fresh
    return True


def _tips(repo: Repository) -> Iterator[CidBytes]:
    refs = repo.refs
    looks: tuple[tuple[list[str], Callable[[str], Branch | Tag | None]], ...] = (
        (refs.branches(), refs.branch),
        (refs.tags(), refs.tag),
    )
    for names, look in looks:
        for name in names:
            try:
                record = look(name)
            except FormatError:  # it leads nowhere
                continue
            if record is not None and record.commit is not None:
                yield record.commit


def _require_committed(repo: Repository, name: str, record: Branch) -> None:
    """Refuse to drop work that no commit has."""
    work = record.work
    if work is not None and work != root_of(repo.blocks, Branch(record.commit)):
        raise ConflictError(
            f"branch {name!r} of {repo.location} has work that no commit has, root "
            f"{format_cid(work)}; commit it first, or pass force=True to drop it (the log of refs "
            "keeps it)"
        )


def _text(version: CidLike) -> str:
    return version if isinstance(version, str) else format_cid(as_cid_bytes(version))
