"""Merge, cherry-pick, revert and rebase: three versions make a fourth, and a branch moves to it.

All four unite what changed between a base and two versions, at the grain of nodes, fields of
metadata and chunks (see `cas_zarr.tree.merge`); no chunk is opened, unless a function of three
arrays is to resolve a conflict. A branch moves once, at the end, by compare-and-swap; where it
moved meanwhile, all is done anew. Uncommitted work of the branch is carried over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cas_zarr.cid import CidBytes, CidLike, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    InvalidArgumentError,
    VersionNotFoundError,
)
from cas_zarr.repository.combining import (
    Head,
    Kind,
    MergeResult,
    Mover,
    Options,
    Resolve,
    name_of,
    put_commit,
    unite,
)
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.history import ancestors, merge_bases
from cas_zarr.repository.versions import CUT, Commits, read_commit
from cas_zarr.repository.working import signed, subject
from cas_zarr.tree.conflicts import Conflict, Resolver

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["MergeResult", "Resolve", "cherry_pick", "merge", "rebase", "revert"]

_CROSSWISE = 8  # how deep merges crosswise are followed


def merge(
    repo: Repository,
    version: CidLike,
    *,
    into: str = "main",
    message: str | None = None,
    resolve: Resolve | None = None,
    resolver: Resolver | None = None,
    fast_forward: bool = True,
    author: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    time: int | None = None,
    sign: Any = None,
) -> MergeResult:
    """Bring what another version has into a branch.

    Parameters
    ----------
    repo : Repository
    version : str, bytes or CID
        What to merge: any version with a history, or a root that was kept after a conflict, which
        becomes a commit of one parent.
    into : str
        The branch.
    message : str, optional
        Of the merge commit; by default it names the version.
    resolve : "ours", "theirs", "base" or function, optional
        What to do where both changed the same. Ours is the branch. A function gets three arrays,
        the chunk as it was at first, ours and theirs, and returns one; an absent chunk is an array
        of the fill value. What is no chunk stays a conflict then.
    resolver : function of a Conflict, optional
        In place of `resolve`, for full control; see `cas_zarr.tree.merge.Resolver`.
    fast_forward : bool
        Just move the branch where it has nothing of its own; with false a merge commit is made.
    author, metadata, time, sign
        Of the merge commit, as `Session.commit` has them.

    Raises
    ------
    ConflictError
        If both changed the same thing, with `conflicts`; or if uncommitted work of the branch
        conflicts with what was merged. Nothing has moved then.
    """
    name = name_of(version)
    options = Options(author, metadata, time, sign)
    mover = Mover(repo, into, version, resolve, resolver)

    def step(head: Head) -> MergeResult:
        found = repo.resolve(version)
        text = message if message is not None else _merge_message(name, into)
        if found.commit is None:
            return _merge_kept(mover, head, version, text, options)
        bases = [] if head.commit is None else merge_bases(repo, head.commit, found.commit)
        if found.commit in bases:
            return head.already()
        if head.commit is None or (head.commit in bases and fast_forward):
            return MergeResult("fast-forward", found.commit, found.root)
        if not bases:
            _check_whole(repo, head.commit, found.commit)
        base = _root_between(mover, bases)
        root, notes, resolved = mover.unite(base, head.root, found.root, f"merging {name}")
        commit = options.commit(repo, root, (head.commit, found.commit), text)
        return MergeResult("merge", commit, root, notes, resolved, (commit,))

    return mover.run(step, why=f"merge {name}")


def cherry_pick(
    repo: Repository,
    version: CidLike,
    *,
    into: str = "main",
    parent: int | None = None,
    resolve: Resolve | None = None,
    resolver: Resolver | None = None,
    message: str | None = None,
    author: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    time: int | None = None,
    sign: Any = None,
) -> MergeResult:
    """Do on a branch what one commit did to its parent.

    Author, time, message and metadata are the picked commit's, unless others are given; the
    metadata say ``cherry-picked from`` beside.

    Parameters
    ----------
    repo : Repository
    version : str, bytes or CID
        The commit.
    into : str
        The branch.
    parent : int, optional
        For a merge commit: the parent, counted from 1, against which its changes are taken.
    resolve, resolver
        As for `merge`; theirs is the picked commit.

    Raises
    ------
    ConflictError
        As `merge` does.
    """
    cid, picked = _commit_of(repo, version)
    before = _parent_root(repo, cid, picked, parent)
    origin = {**picked.metadata, "cherry-picked from": format_cid(cid)}
    options = Options(
        picked.author if author is None else author,
        origin if metadata is None else metadata,
        picked.time if time is None else time,
        sign,
    )
    mover = Mover(repo, into, version, resolve, resolver)
    what = f"picking {format_cid(cid)}"
    text = picked.message if message is None else message

    def step(head: Head) -> MergeResult:
        return _apply(mover, head, before, picked.root, what, text, options, "cherry-pick")

    return mover.run(step, why=f"cherry-pick: {subject(text)}")


def revert(
    repo: Repository,
    version: CidLike,
    *,
    into: str = "main",
    parent: int | None = None,
    resolve: Resolve | None = None,
    resolver: Resolver | None = None,
    message: str | None = None,
    author: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    time: int | None = None,
    sign: Any = None,
) -> MergeResult:
    """Undo on a branch what one commit did to its parent, by a new commit.

    Parameters
    ----------
    repo : Repository
    version : str, bytes or CID
        The commit.
    into : str
        The branch.
    parent : int, optional
        For a merge commit: the parent, counted from 1, to go back to.
    resolve, resolver
        As for `merge`; theirs is what was before the commit.
    message : str, optional
        By default ``revert "…"``, with the subject of the commit.

    Raises
    ------
    ConflictError
        As `merge` does.
    """
    cid, undone = _commit_of(repo, version)
    before = _parent_root(repo, cid, undone, parent)
    options = Options(author, metadata, time, sign)
    mover = Mover(repo, into, version, resolve, resolver)
    what = f"reverting {format_cid(cid)}"
    title = f'revert "{subject(undone.message)}"'
    text = f"{title}\n\nThis reverts commit {format_cid(cid)}." if message is None else message

    def step(head: Head) -> MergeResult:
        return _apply(mover, head, undone.root, before, what, text, options, "revert")

    return mover.run(step, why=f"revert: {subject(undone.message)}")


def rebase(
    repo: Repository,
    branch: str,
    *,
    onto: CidLike,
    resolve: Resolve | None = None,
    resolver: Resolver | None = None,
    sign: Any = None,
) -> MergeResult:
    """Make the commits that only a branch has anew, on top of another version.

    Authors, times, messages and metadata stay; signatures go, since they would not hold. A merge
    commit becomes one that does what it did to its first parent. A commit that has nothing left
    to do is dropped. The branch moves once, at the end.

    Parameters
    ----------
    repo : Repository
    branch : str
    onto : str, bytes or CID
        The version that the commits shall follow.
    resolve, resolver
        As for `merge`: ours is `onto` with what was replayed already, theirs the commit.
    sign : key, optional
        Signs the new commits.

    Returns
    -------
    MergeResult
        With all new commits in `commits`.

    Raises
    ------
    ConflictError
        As `merge` does; nothing has moved then.
    """
    mover = Mover(repo, branch, onto, resolve, resolver)
    name = name_of(onto)

    def step(head: Head) -> MergeResult:
        tip, goal = _commit_of(repo, onto)
        bases = [] if head.commit is None else merge_bases(repo, head.commit, tip)
        if tip in bases:
            return head.already()
        if head.commit is None or head.commit in bases:
            return MergeResult("fast-forward", tip, goal.root)
        if not bases:
            _check_whole(repo, head.commit, tip)
        commit, root = tip, goal.root
        made: list[CidBytes] = []
        notes: list[str] = []
        resolved: list[Conflict] = []
        for cid, one in reversed(list(_own_commits(repo, head.commit, tip))):
            before = _parent_root(repo, cid, one, 1 if len(one.parents) > 1 else None)
            now_root, said, chosen = mover.unite(
                before, root, one.root, f"replaying {format_cid(cid)}"
            )
            if now_root == root:
                continue
            root = now_root
            notes += said
            resolved += chosen
            copy = signed(replace(one, root=root, parents=(commit,), signature=None), sign)
            commit = put_commit(repo, copy)
            made.append(commit)
        return MergeResult("rebase", commit, root, tuple(notes), tuple(resolved), tuple(made))

    return mover.run(step, why=f"rebase onto {name}")


def _apply(
    mover: Mover,
    head: Head,
    before: CidBytes | None,
    after: CidBytes | None,
    what: str,
    message: str,
    options: Options,
    kind: Kind,
) -> MergeResult:
    """Do on a branch what led from one root to another, as one commit."""
    root, notes, resolved = mover.unite(before, head.root, after, what)
    if root == head.root:
        return replace(head.already(), notes=notes, resolved=resolved)
    parents = () if head.commit is None else (head.commit,)
    commit = options.commit(mover.repo, root, parents, message)
    return MergeResult(kind, commit, root, notes, resolved, (commit,))


def _merge_kept(
    mover: Mover, head: Head, version: CidLike, message: str, options: Options
) -> MergeResult:
    """Merge a root that was kept after a conflict: what it has beyond the commit it began with."""
    kept = mover.repo.refs.kept(version) if isinstance(version, str) else None
    if kept is None:
        raise InvalidArgumentError(
            f"{name_of(version)!r} is a root and has no history; merge a commit, a branch, a tag, "
            "or a root that was kept after a conflict"
        )
    before = None if kept.commit is None else read_commit(mover.repo.blocks, kept.commit).root
    what = f"merging {name_of(version)}"
    return _apply(mover, head, before, kept.work, what, message, options, "merge")


def _root_between(mover: Mover, bases: list[CidBytes], depth: int = 0) -> CidBytes | None:
    """Return the root that two versions have in common; None if they have none.

    Where they were merged crosswise there are several commits that both follow, and neither tells
    the whole: they are merged themselves. What they conflict in is taken as it was before them: so
    it is a conflict again where it was resolved in one way here and in another there.
    """
    if not bases:
        return None
    repo = mover.repo
    root = read_commit(repo.blocks, bases[0]).root
    for other in bases[1:] if depth < _CROSSWISE else ():
        before = _root_between(mover, merge_bases(repo, bases[0], other), depth + 1)
        root = unite(repo, before, root, read_commit(repo.blocks, other).root, "base")[0]
    return root


def _check_whole(repo: Repository, *versions: CidBytes) -> None:
    """Refuse histories that do not meet because one was cut: what they share is not known."""
    commits = Commits(repo.blocks, repo.refs)
    for version in versions if commits.cut else ():
        for cid in ancestors(repo, version):
            if cid in commits.cut:
                raise InvalidArgumentError(
                    f"{format_cid(versions[0])} and {format_cid(versions[1])} have no commit in "
                    f"common here, and one of them goes back to {format_cid(cid)} only: {CUT}"
                )


def _own_commits(
    repo: Repository, start: CidBytes, other: CidBytes
) -> Iterator[tuple[CidBytes, Commit]]:
    """Yield the commits by first parents, newest first, as far as `other` does not have them."""
    commits = Commits(repo.blocks, repo.refs)
    theirs = {other}
    ahead = [other]
    while ahead:
        for parent in commits.parents(ahead.pop()):
            if parent not in theirs:
                theirs.add(parent)
                ahead.append(parent)
    cid: CidBytes | None = start
    while cid is not None and cid not in theirs:
        yield cid, commits.read(cid)
        cid = next(iter(commits.parents(cid)), None)


def _commit_of(repo: Repository, version: CidLike) -> tuple[CidBytes, Commit]:
    found = repo.resolve(version)
    if found.commit is None:
        raise InvalidArgumentError(
            f"{name_of(version)!r} is a root and has no history; give a commit, a branch or a tag"
        )
    return found.commit, read_commit(repo.blocks, found.commit)


def _parent_root(
    repo: Repository, cid: CidBytes, commit: Commit, parent: int | None
) -> CidBytes | None:
    """Return the root before a commit; None before a first one."""
    count = len(commit.parents)
    if count == 0:
        return None
    if parent is None and count > 1:
        raise InvalidArgumentError(
            f"commit {format_cid(cid)} is a merge of {count} parents; pass parent=1 for what it "
            "did to the first, or another number"
        )
    if parent is not None and not 1 <= parent <= count:
        raise InvalidArgumentError(
            f"commit {format_cid(cid)} has {count} parents, not one of number {parent}"
        )
    before = commit.parents[(parent or 1) - 1]
    try:
        return read_commit(repo.blocks, before).root
    except BlockNotFoundError:
        raise VersionNotFoundError(
            f"commit {format_cid(before)}, which {format_cid(cid)} follows, is not in "
            f"{repo.location}; {CUT}"
        ) from None


def _merge_message(name: str, into: str) -> str:
    return f"merge {name}" if into == "main" else f"merge {name} into {into}"
