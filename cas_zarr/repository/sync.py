"""Clone, fetch, pull and push: repositories that exchange versions, and only what is missing.

Commits are transferred oldest first, so that each root is walked beside one that the target has
already. A ref of the target moves last, by compare-and-swap, when all that it leads to is durable
there: whatever happens before, the target is as it was, and the next transfer copies only the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import CidBytes, CidLike, as_cid_bytes, format_cid
from cas_zarr.errors import (
    ConflictError,
    InvalidArgumentError,
    ReadOnlyError,
)
from cas_zarr.repository.base import Address
from cas_zarr.repository.faraway import NodeLike, Sources
from cas_zarr.repository.guard import Guard
from cas_zarr.repository.placing import Placer
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.remotes import (
    ORIGIN,
    Remote,
    add_remote,
    get_remote,
    list_remotes,
    local_blocks,
    open_remote,
    set_parts,
)
from cas_zarr.repository.selection import Part, parse_parts
from cas_zarr.repository.transfer import Copier, Known, Plan, Progress, plan
from cas_zarr.repository.versions import Commits, not_found, read_commit

if TYPE_CHECKING:
    from cas_zarr.repository.merging import MergeResult
    from cas_zarr.repository.repository import Repository

__all__ = [
    "Copied",
    "Place",
    "PullReport",
    "SyncReport",
    "clone",
    "copy_tree",
    "fetch",
    "fetch_paths",
    "pull",
    "push",
]

Place: TypeAlias = "str | os.PathLike[str] | Repository"
"""A repository, its path or address, or the name of a remote."""

FETCHED = "fetched"  # what was fetched from a place that is no remote

_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Copied:
    """How many blocks were copied, and how many bytes they have."""

    blocks: int
    size: int


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a transfer did.

    Attributes
    ----------
    commits, blocks, size : int
        What was copied; `size` in bytes. What the target had is not counted.
    branches : mapping of str to CidBytes
        The commits of the branches that were transferred.
    tags : mapping of str to CidBytes
        The tags that are new in the target.
    refused : mapping of str to CidBytes
        Tags that the target has for another commit, and keeps.
    """

    commits: int
    blocks: int
    size: int
    branches: Mapping[str, CidBytes] = field(default_factory=dict)
    tags: Mapping[str, CidBytes] = field(default_factory=dict)
    refused: Mapping[str, CidBytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PullReport:
    """What `pull` did: what was fetched, and how it was merged, by branch."""

    fetched: SyncReport
    merged: Mapping[str, MergeResult]


def copy_tree(
    source: BlockStore,
    target: BlockStore,
    root: CidLike,
    *,
    since: CidLike | None = None,
    parts: str | Sequence[str | Part] | None = None,
    progress: Progress | None = None,
) -> Copied:
    """Copy the blocks of a root that a place lacks, verified, and make them durable there.

    No ref leads to the root afterwards: it is the caller's to move one.

    Parameters
    ----------
    source, target : BlockStore
    root : CID
        The document of a dataset or of a subtree.
    since : CID, optional
        A root that the target has whole. What it has at the same place is not opened.
    parts : str or sequence, optional
        Copy only these groups, arrays and boxes, and what leads to them.
    progress : callable, optional
        Called with the blocks and the bytes that have been copied.

    Raises
    ------
    BlockNotFoundError, CorruptBlockError
        If the source lacks a block, or what it has is damaged; the message names block and
        place. What was copied stays: once the source is whole, the next call copies the rest.
    """
    with Copier(source, target, progress) as copier:
        copier.tree(
            as_cid_bytes(root),
            since=None if since is None else as_cid_bytes(since),
            parts=parse_parts(parts),
        )
    return Copied(copier.blocks, copier.size)


# -- clone and fetch ------------------------------------------------------------------------------


def clone(
    source: Place,
    target: Address,
    *,
    branches: Iterable[str] | None = None,
    paths: str | Sequence[str | Part] | None = None,
    depth: int | None = None,
    author: str = "",
    gateways: str | Sequence[str] | None = None,
    node: NodeLike | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Repository:
    """Make a repository that has the versions of another one.

    Branches, tags and their histories are copied. Of a branch's uncommitted work nothing is, as
    with git, unless it has no commit at all: then it comes as it stands. The source becomes the
    remote ``origin``. A clone that was interrupted is finished by cloning again.

    Parameters
    ----------
    source : path, address or Repository
    target : path, address or obstore store
        Where nothing is yet, or what an earlier clone from the same source has left.
    branches : iterable of str, optional
        Only these, and the tags of their histories; all branches and tags by default.
    paths : str or sequence of str, optional
        Make a partial clone: of each version copy only these groups, arrays and boxes
        (``"ocean/t2m[0:10, :]"``, in elements). What the others have is fetched from the source
        when it is read, so the source has to stay; see `fetch_paths`.
    depth : int, optional
        How many commits of each branch to copy; what lies before is cut off.
    author : str
        Who commits in the clone.
    gateways, node
        Where blocks of IPFS are looked for, as for `Repository.open`.
    storage_options : mapping, optional
        For object storage at either end, as for `Repository.open`.
    progress : callable, optional
        Called with the blocks and the bytes that have been copied.

    Raises
    ------
    VersionNotFoundError
        If the source has no such branch.
    ConflictError
        If something else is at the target.
    """
    from cas_zarr.repository.repository import Repository

    parts = parse_parts(paths)
    sources = Sources.of(gateways, node, storage_options=storage_options)
    with _opened(source, sources) as origin:
        chosen = _branches_of(origin, branches)
        made = Repository.open(
            target,
            create=True,
            hash=origin.hash,
            author=author,
            gateways=gateways,
            node=node,
            storage_options=storage_options,
        )
        try:
            _claim(made, origin, parts)
            placer = Placer(made, "clone")
            alone = branches is None and depth is None
            _fetch(
                made,
                origin,
                ORIGIN,
                chosen,
                depth,
                parts,
                progress,
                placer,
                all_tags=alone,
                works=True,
            )
            for name, record in chosen.items():
                placer.begin(name, _as_cloned(origin, record), why=f"clone {origin.location}")
        finally:
            made.close()
    return Repository.open_from(made.location, made.sources, read_only=False, author=author)


def fetch(
    repo: Repository,
    source: Place = ORIGIN,
    *,
    branches: Iterable[str] | None = None,
    depth: int | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    """Copy what another repository has and this one lacks; no branch here moves.

    Where the branches of the other one are can be read afterwards as ``origin/main``, and so on.

    Parameters
    ----------
    repo : Repository
    source : str, path or Repository
        The name of a remote, or any repository. Branches of one that is no remote are noted as
        ``fetched/main``, and so on, until the next of its kind is fetched.
    branches : iterable of str, optional
        All branches, and the tags of the commits that come, by default.
    depth : int, optional
        Go back only so many commits. Where the history here was cut, go back as far as that:
        a large number brings the whole history.
    progress : callable, optional
        Called with the blocks and the bytes that have been copied.

    Raises
    ------
    VersionNotFoundError
        If the source has no such branch.
    """
    _check_writable(repo)
    remote = _remote_for(repo, source)
    with _opened(source if remote is None else remote.location, repo.sources) as origin:
        chosen = _branches_of(origin, branches)
        name, parts = (FETCHED, None) if remote is None else (remote.name, remote.parts)
        report = _fetch(repo, origin, name, chosen, depth, parts, progress, Placer(repo, "fetch"))
    now = None if remote is None else get_remote(repo.refs, name)
    if now is not None and now.parts != parts:  # more was fetched meanwhile, of what was there then
        fetch_paths(repo, now.parts, remote=name, progress=progress)
    return report


def _fetch(
    repo: Repository,
    origin: Repository,
    remote: str,
    chosen: Mapping[str, Branch],
    depth: int | None,
    parts: Sequence[Part] | None,
    progress: Progress | None,
    placer: Placer,
    *,
    all_tags: bool = False,
    works: bool = False,
) -> SyncReport:
    """Copy branches, and the tags whose commits come; note where the branches are.

    With `works`, the working roots of branches that have no commit are copied, too.
    """
    if depth is not None and (not isinstance(depth, int) or depth < 1):
        raise InvalidArgumentError(f"depth {depth!r} is no number of commits; give 1 or more")
    commits = {name: r.commit for name, r in chosen.items() if r.commit is not None}
    named = {tag: found.commit for tag in origin.refs.tags() if (found := origin.refs.tag(tag))}
    tips = [*commits.values(), *(named.values() if all_tags else ())]
    known = Known(repo)
    with Copier(origin.blocks, repo.blocks, progress) as copier:
        steps = _copy_history(copier, origin, known, tips, depth, parts)
        for record in chosen.values():
            if works and record.commit is None and record.work is not None:
                copier.tree(record.work, parts=parts)
    placer.cut(steps)
    for name, commit in commits.items():
        placer.track(f"{remote}/{name}", commit)
    come = set(steps.order)
    new: dict[str, CidBytes] = {}
    refused: dict[str, CidBytes] = {}
    for tag, commit in named.items():
        if commit in come or known.surely_has(commit):
            ours = placer.tag(tag, commit, why=f"fetch from {origin.location}")
            if ours is None:
                new[tag] = commit
            elif ours != commit:
                refused[tag] = commit
    return SyncReport(len(steps.order), copier.blocks, copier.size, commits, new, refused)


def _copy_history(
    copier: Copier,
    source: Repository,
    known: Known,
    tips: Iterable[CidBytes],
    depth: int | None = None,
    parts: Sequence[Part] | None = None,
) -> Plan:
    """Copy the commits that lead to `tips`, and their roots."""
    commits = Commits(copier.source, source.refs)
    steps = plan(commits, known, tips, depth)
    _copy_commits(copier, commits, known, steps, parts)
    return steps


def _copy_commits(
    copier: Copier,
    commits: Commits,
    known: Known,
    steps: Plan,
    parts: Sequence[Part] | None = None,
) -> None:
    """Copy commits and their roots, each beside a root that is there."""
    newest = known.newest()
    last = None if newest is None else known.commits.read(newest).root
    roots: dict[CidBytes, CidBytes] = {}
    for cid in steps.order:
        commit = commits.read(cid)
        since = last
        for parent in commit.parents:
            if parent in roots:
                since = roots[parent]
                break
            if known.met(parent):
                since = known.commits.read(parent).root
                break
        copier.tree(commit.root, since=since, parts=parts)
        copier.copy([cid])
        roots[cid] = last = commit.root


def _as_cloned(origin: Repository, record: Branch) -> Branch:
    if record.commit is None:
        return Branch(work=record.work)
    return Branch(record.commit, read_commit(origin.blocks, record.commit).root)


# -- push and pull --------------------------------------------------------------------------------


def push(
    repo: Repository,
    target: Place = ORIGIN,
    *,
    branches: str | Iterable[str] = "main",
    tags: Iterable[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> SyncReport:
    """Copy branches and tags to another repository, and move its branches.

    Parameters
    ----------
    repo : Repository
    target : str, path or Repository
        The name of a remote, or any repository that can be written.
    branches : str or iterable of str
        Are made there where they are not yet.
    tags : iterable of str
    force : bool
        Move a branch there even where that drops commits or uncommitted work of it; the log of
        refs there tells what it was. Move tags.
    progress : callable, optional
        Called with the blocks and the bytes that have been copied.

    Raises
    ------
    ConflictError
        If a branch there has commits that are not here: pull first. Or if it has uncommitted work,
        or a tag names another commit there. Nothing there has moved then.
    VersionNotFoundError
        If there is no such branch or tag here.
    """
    names = [branches] if isinstance(branches, str) else list(dict.fromkeys(branches))
    commits = {name: _commit_of(repo, name) for name in names}
    named = {name: _commit_of(repo, name, tag=True) for name in dict.fromkeys(tags)}
    remote = _remote_for(repo, target)
    place = target if remote is None else remote.location
    with _opened(place, repo.sources, read_only=False) as there:
        _check_writable(there)
        placer = Placer(there, "push")
        own = Commits(repo.blocks, repo.refs)
        before = {name: there.refs.branch(name) for name in names}
        for name, record in before.items():
            _check_push(own, there, name, record, commits[name], force)
        marks = {name: there.refs.tag(name) for name in named}
        for name, tag in marks.items():
            if tag is not None and tag.commit != named[name] and not force:
                raise ConflictError(
                    f"tag {name!r} of {there.location} names another commit, "
                    f"{format_cid(tag.commit)}; choose another name, or push with force"
                )
        known = Known(there)
        with Copier(repo.blocks, there.blocks, progress) as copier:
            tips = [*commits.values(), *named.values()]
            steps = plan(own, known, tips, None)
            if steps.cut:
                raise ConflictError(
                    f"the history here was cut, and {there.location} does not have what came "
                    "before; fetch the rest from a repository that has it, then push"
                )
            _copy_commits(copier, own, known, steps)
        why = f"push from {repo.location}"
        for name, commit in commits.items():
            record = before[name]
            new = Branch(commit, read_commit(repo.blocks, commit).root)
            if record is None or record.commit != commit:
                placer.branch(name, record, new, why=why)
            if remote is not None and not repo.read_only:
                Placer(repo, "push").track(f"{remote.name}/{name}", commit)
        for name, commit in named.items():
            placer.set_tag(name, marks[name], commit, why=why)
    return SyncReport(len(steps.order), copier.blocks, copier.size, commits, named)


def pull(
    repo: Repository,
    source: Place = ORIGIN,
    *,
    branches: str | Iterable[str] = "main",
    progress: Progress | None = None,
    **options: Any,
) -> PullReport:
    """Fetch branches from another repository and merge each into the branch of that name.

    Parameters
    ----------
    repo : Repository
    source : str, path or Repository
        The name of a remote, or any repository.
    branches : str or iterable of str
        Are made here where they are not yet.
    progress : callable, optional
        Called with the blocks and the bytes that have been copied.
    **options
        As `cas_zarr.repository.merging.merge` takes them: ``resolve``, ``message``, ``author``, …

    Raises
    ------
    ConflictError
        If both changed the same thing. What was fetched is here all the same, and can be merged
        with a way to resolve the conflict.
    """
    from cas_zarr.repository.merging import merge

    names = [branches] if isinstance(branches, str) else list(dict.fromkeys(branches))
    fetched = fetch(repo, source, branches=names, progress=progress)
    remote = _remote_for(repo, source)
    place = _location(source) if remote is None else remote.name
    merged = {}
    for name, commit in fetched.branches.items():
        if repo.refs.branch(name) is None:
            new = Branch(commit, read_commit(repo.blocks, commit).root)
            Placer(repo, "pull").begin(name, new, why=f"pull {place}/{name}")
        words = {"message": f"merge {place}/{name} into {name}", **options}
        merged[name] = merge(repo, commit, into=name, **words)
    return PullReport(fetched, merged)


def fetch_paths(
    repo: Repository,
    paths: str | Sequence[str | Part] | None = None,
    *,
    remote: str = ORIGIN,
    progress: Progress | None = None,
) -> Copied:
    """Complete a partial clone: copy more groups, arrays or boxes of all its versions.

    Those are what branches, tags, kept roots and the log of refs lead to.

    Parameters
    ----------
    repo : Repository
    paths : str or sequence of str, optional
        What to copy, now and with each later fetch; the whole rest by default. After that the
        clone is no longer partial.
    remote : str
        Where the rest is.
    progress : callable, optional
        Called with the blocks and the bytes that have been copied.
    """
    _check_writable(repo)
    record = get_remote(repo.refs, remote)
    if record is None:
        raise not_found(repo.refs, remote, kind="remote", names=repo.refs.remotes())
    parts = parse_parts(paths)
    guard = Guard(
        local_blocks(repo.blocks), repo.refs, writer="this fetch", remedy="fetch the rest again"
    )
    steps: list[tuple[CidBytes, CidBytes | None]] = []
    known = Known(repo)
    works = _works(repo, known)
    with (
        _opened(record.location, repo.sources) as origin,
        Copier(
            TieredBlocks(local_blocks(repo.blocks), [origin.blocks]), repo.blocks, progress
        ) as copier,
    ):
        roots: dict[CidBytes, CidBytes] = {}
        last: CidBytes | None = None
        for cid in known.parents_first():
            commit = known.commits.read(cid)
            since = next((roots[one] for one in commit.parents if one in roots), last)
            copier.tree(commit.root, since=since, parts=parts)
            copier.copy([cid])
            steps.append((commit.root, since))
            roots[cid] = last = commit.root
        for work in works:
            copier.tree(work, since=last, parts=parts)
            steps.append((work, last))
    whole = parts is None or any(part == Part("") for part in parts)
    if whole:  # a collection that passed over what was missing may have taken what lies below
        _secure_all(guard, steps)
    if whole or record.parts is not None:
        kept = () if record.parts is None else record.parts
        set_parts(repo.refs, record, None if whole else [*dict.fromkeys((*kept, *(parts or ())))])
    return Copied(copier.blocks, copier.size)


def _secure_all(guard: Guard, steps: Sequence[tuple[CidBytes, CidBytes | None]]) -> None:
    """Make sure of all roots, each beside one that was made sure of before."""
    while True:
        guard.secure(None)
        record = guard.record
        for root, since in steps:
            guard.secure(root, since=since)
        if guard.record == record:
            return


def _works(repo: Repository, known: Known) -> list[CidBytes]:
    """Return all working roots that refs and their log lead to; let `known` meet the log."""
    refs = repo.refs
    records = [refs.branch(name) for name in refs.branches()]
    records += [refs.kept(name) for name in refs.all_kept()]
    for move in refs.log():
        for logged in (move.old, move.new):
            if logged is not None and logged.commit is not None:
                known.meet(logged.commit)
            if isinstance(logged, Branch):
                records.append(logged)
    works = [one.work for one in records if one is not None and one.work is not None]
    return list(dict.fromkeys(works))


# -- parts of all of them -------------------------------------------------------------------------


def _check_push(
    own: Commits,
    there: Repository,
    name: str,
    record: Branch | None,
    commit: CidBytes,
    force: bool,
) -> None:
    """Refuse to move a branch of the target where that would drop something."""
    if record is None or force or record.commit == commit:
        return
    if record.commit is not None and record.commit not in own.walk(commit):
        raise ConflictError(
            f"branch {name!r} of {there.location} has commits that are not in the history of "
            f"{name!r} here (its newest is {format_cid(record.commit)}); pull first, or push with "
            "force"
        )
    committed = None
    if record.commit is not None:
        committed = read_commit(there.blocks, record.commit).root
    if record.work not in (None, committed):
        raise ConflictError(
            f"branch {name!r} of {there.location} has uncommitted work; commit it there and pull, "
            "push to another branch, or push with force"
        )


def _commit_of(repo: Repository, name: str, *, tag: bool = False) -> CidBytes:
    kind, names = ("tag", repo.refs.tags()) if tag else ("branch", repo.refs.branches())
    record = repo.refs.tag(name) if tag else repo.refs.branch(name)
    if record is None:
        raise not_found(repo.refs, name, kind=kind, names=names)
    if record.commit is None:
        raise InvalidArgumentError(f"branch {name!r} has no commit yet; commit, then push")
    return record.commit


def _branches_of(origin: Repository, branches: str | Iterable[str] | None) -> dict[str, Branch]:
    there = origin.refs.branches()
    names = [branches] if isinstance(branches, str) else branches
    chosen = {}
    for name in there if names is None else names:
        record = origin.refs.branch(name)
        if record is None:
            raise not_found(origin.refs, name, kind="branch", names=there)
        chosen[name] = record
    return chosen


def _remote_for(repo: Repository, place: Place) -> Remote | None:
    """Return the remote that is meant, by its name or its location; None for another place."""
    location = _location(place)
    remotes = list_remotes(repo.refs)
    for remote in remotes:
        if place == remote.name or location == remote.location:
            return remote
    if place == ORIGIN and not os.path.exists(location):
        raise not_found(repo.refs, ORIGIN, kind="remote", names=[one.name for one in remotes])
    return None


def _location(place: Place) -> str:
    if not isinstance(place, (str, os.PathLike)):
        return place.location
    location = os.fspath(place)
    return location if "://" in location else os.path.abspath(location)


@contextmanager
def _opened(place: Place, sources: Sources, *, read_only: bool = True) -> Iterator[Repository]:
    """Open a place, with the sources that another one has."""
    from cas_zarr.repository.repository import Repository

    if not isinstance(place, (str, os.PathLike)):
        yield place
        return
    location = os.fspath(place)
    if read_only:
        found = open_remote(location, sources=sources)
    else:
        found = Repository.open_from(location, sources, read_only=False)
    try:
        yield found
    finally:
        found.close()


def _claim(repo: Repository, origin: Repository, parts: tuple[Part, ...] | None) -> None:
    """Note where a clone comes from, before anything else of it is there."""
    for _ in range(_ATTEMPTS):
        remote = get_remote(repo.refs, ORIGIN)
        if remote is not None:
            break
        if repo.refs.branches() or repo.refs.tags():
            raise ConflictError(
                f"{repo.location} is a repository with versions of its own; clone into another "
                "folder, or pull into this one"
            )
        with suppress(ConflictError):  # another clone was quicker
            add_remote(repo.refs, ORIGIN, origin.location, parts=parts)
    if remote is None or remote.location != origin.location:
        raise ConflictError(
            f"{repo.location} is a clone of another repository; clone into another folder"
        )
    if remote.parts != parts:
        raise ConflictError(
            f"{repo.location} is a clone of other parts of {origin.location}; clone into another "
            "folder, or fetch the other paths into this one"
        )


def _check_writable(repo: Repository) -> None:
    if repo.read_only:
        raise ReadOnlyError(f"{repo.location} is open for reading only")
