"""What merge, cherry-pick, revert and rebase share: uniting roots, and moving a branch there.

A branch moves once, by compare-and-swap; where it moved meanwhile, all is done anew. Work of the
branch that is not committed is carried over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cas_zarr.cid import (
    DAG_JSON,
    CidBytes,
    CidLike,
    HashFunction,
    ReadableCids,
    as_cid_bytes,
    cid_of,
    format_cid,
)
from cas_zarr.errors import ConflictError, InvalidArgumentError, ReadOnlyError
from cas_zarr.repository.arrays import ArrayFunction, by_arrays
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.guard import Guard
from cas_zarr.repository.names import looks_like_cid
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.versions import read_commit
from cas_zarr.repository.working import ATTEMPTS, now, pause, signed, summary, view_of
from cas_zarr.tree.conflicts import Conflict, Resolver
from cas_zarr.tree.merge import merge as merge_trees

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = [
    "Head",
    "Kind",
    "MergeResult",
    "Mover",
    "Options",
    "Resolve",
    "name_of",
    "put_commit",
    "unite",
]

Resolve: TypeAlias = "Literal['ours', 'theirs', 'base'] | ArrayFunction"
"""Which side a conflict takes, or the function that makes one chunk of three arrays."""

Kind: TypeAlias = Literal["already", "fast-forward", "merge", "cherry-pick", "revert", "rebase"]


@dataclass(frozen=True, slots=True, repr=False)
class MergeResult(ReadableCids):
    """Where a branch stands after a merge, and what became of it.

    Attributes
    ----------
    kind : str
        ``already`` if there was nothing to do and nothing moved; ``fast-forward`` if the branch
        moved to a commit that was there; else what was done.
    commit : CidBytes or None
        The newest commit of the branch.
    root : CidBytes or None
        The root of that commit.
    notes : tuple of str
        What was united and deserves a look, as a resize beside a write.
    resolved : tuple of Conflict
        What was changed twice and resolved as was asked for.
    commits : tuple of CidBytes
        The commits that were made, oldest first.
    """

    kind: Kind
    commit: CidBytes | None
    root: CidBytes | None
    notes: tuple[str, ...] = ()
    resolved: tuple[Conflict, ...] = ()
    commits: tuple[CidBytes, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Head(ReadableCids):
    """A branch as it was read: its record, its commit and the root of that."""

    record: Branch | None
    commit: CidBytes | None
    root: CidBytes | None

    def already(self) -> MergeResult:
        return MergeResult("already", self.commit, self.root)


@dataclass(frozen=True, slots=True)
class Options:
    """What a commit has beside root, parents and message."""

    author: str | None
    metadata: Mapping[str, Any] | None
    time: int | None
    sign: Any

    def commit(
        self, repo: Repository, root: CidBytes, parents: tuple[CidBytes, ...], message: str
    ) -> CidBytes:
        commit = Commit(
            root=root,
            parents=parents,
            author=repo.author if self.author is None else self.author,
            time=now() if self.time is None else self.time,
            message=message,
            metadata={} if self.metadata is None else self.metadata,
        )
        return put_commit(repo, signed(commit, self.sign))


class Mover:
    """Moves one branch to what a step makes of it."""

    def __init__(
        self,
        repo: Repository,
        branch: str,
        version: CidLike,
        resolve: Resolve | None,
        resolver: Resolver | None,
    ) -> None:
        if repo.read_only:
            raise ReadOnlyError(f"{repo.location} is open for reading only")
        if resolve is not None and resolver is not None:
            raise InvalidArgumentError("give either resolve or resolver, not both")
        if resolve is not None and not callable(resolve) and resolve not in _SIDES:
            raise InvalidArgumentError(
                f"resolve is {resolve!r}; give 'ours', 'theirs', 'base' or a function of three "
                "arrays"
            )
        self.repo = repo
        self.branch = branch
        self.resolve = resolve
        self.resolver = resolver
        # What has no name may have been collected in part: it is looked at closely.
        self.by_cid = not isinstance(version, str) or looks_like_cid(_BEHIND.split(version)[0])
        self.guard = Guard(repo.blocks, repo.refs)

    def run(self, step: Callable[[Head], MergeResult], *, why: str) -> MergeResult:
        """Move the branch to where `step` leads, by compare-and-swap."""
        repo = self.repo
        for attempt in range(ATTEMPTS):
            head = self._head()
            result = step(head)
            if result.kind == "already":
                return result
            assert result.commit is not None
            work, notes = self._carry(head, result.root)
            repo.blocks.flush()
            new = Branch(commit=result.commit, work=work)
            if self.by_cid:
                self.guard.secure(result.commit, since=head.commit, check=True)
            self.guard.secure_move(new, head.record)
            try:
                repo.refs.update(
                    self.branch,
                    expected=head.record,
                    new=new,
                    why=why,
                    guard=self.guard.record,
                )
            except ConflictError:  # it moved, or a collection began: all is looked at anew
                pause(attempt)
                continue
            return replace(result, notes=result.notes + notes)
        raise ConflictError(
            f"branch {self.branch!r} of {repo.location} moved {ATTEMPTS} times while this tried "
            "to; wait for its other writers"
        )

    def unite(
        self, base: CidBytes | None, ours: CidBytes | None, theirs: CidBytes | None, what: str
    ) -> tuple[CidBytes, tuple[str, ...], tuple[Conflict, ...]]:
        """Return the root that has the changes of both, and what there is to say of it."""
        try:
            return unite(self.repo, base, ours, theirs, self.resolve, self.resolver)
        except ConflictError as error:
            raise ConflictError(
                f"{what} conflicts with branch {self.branch!r}, and nothing was moved: "
                f"{summary(error)}{_ways_out(error.conflicts)}",
                error.conflicts,
            ) from None

    def _head(self) -> Head:
        record = self.repo.record(self.branch)
        commit = None if record is None else record.commit
        root = None if commit is None else read_commit(self.repo.blocks, commit).root
        return Head(record, commit, root)

    def _carry(self, head: Head, root: CidBytes | None) -> tuple[CidBytes | None, tuple[str, ...]]:
        """Return the working root behind a move of the branch's commit to one with `root`."""
        work = None if head.record is None else head.record.work
        if work is None or work in (head.root, root):
            return root, ()
        try:
            return unite(self.repo, head.root, work, root)[:2]
        except ConflictError as error:
            raise ConflictError(
                f"branch {self.branch!r} has work that is not committed and conflicts, and "
                f"nothing was moved; commit it or reset the branch first: {summary(error)}",
                error.conflicts,
            ) from None


_BEHIND = re.compile("[~^@]")
_SIDES = ("ours", "theirs", "base")


def unite(
    repo: Repository,
    base: CidBytes | None,
    ours: CidBytes | None,
    theirs: CidBytes | None,
    resolve: Resolve | None = None,
    resolver: Resolver | None = None,
) -> tuple[CidBytes, tuple[str, ...], tuple[Conflict, ...]]:
    """Write the root that has the changes of both; return it, notes, and what was resolved."""
    blocks = repo.blocks
    function = _function_of(repo, ours, theirs)
    views = [view_of(blocks, cid, function) for cid in (base, ours, theirs)]
    if isinstance(resolve, str):
        resolver = _taking(resolve)
    elif resolve is not None:
        resolver = by_arrays(resolve, *views)
    try:  # a function is called when it is known that it can resolve all
        merged = merge_trees(*views, resolve=None if callable(resolve) else resolver)
    except ConflictError as error:
        if not callable(resolve) or any(one.kind != "chunk" for one in error.conflicts):
            raise
        merged = merge_trees(*views, resolve=resolver)
    data = merged.root.to_block()
    cid = cid_of(DAG_JSON, merged.root.header.function, data)
    blocks.put(cid, data)
    return cid, merged.notes, merged.resolved


def _ways_out(conflicts: Sequence[Conflict]) -> str:
    """Say how conflicts can be resolved; of other hashes, which are none, all is said already."""
    if not conflicts:
        return ""
    if all(conflict.kind == "chunk" for conflict in conflicts):
        return ". Say how to resolve it: 'ours', 'theirs' or a function of three arrays"
    return (
        ". Say how to resolve it: 'ours' or 'theirs', or a resolver that looks at each; a function "
        "of three arrays is for chunks alone"
    )


def _taking(side: Literal["ours", "theirs", "base"]) -> Resolver:
    return lambda _: side


def _function_of(repo: Repository, *roots: CidBytes | None) -> HashFunction:
    """Return the hash that the roots share; refuse what cannot be written here."""
    headers = [view_of(repo.blocks, cid, repo.function).root.header for cid in roots if cid]
    for header in headers:
        if header.needs_to_write:
            raise ReadOnlyError(
                f"writing this dataset needs {', '.join(header.needs_to_write)}, which this "
                "release does not know; upgrade cas_zarr"
            )
        if header.function is not headers[0].function:
            raise ConflictError(
                f"one dataset is of {headers[0].function.name} and one of {header.function.name}; "
                "write one of them anew with the hash of the other"
            )
    return headers[0].function if headers else repo.function


def put_commit(repo: Repository, commit: Commit) -> CidBytes:
    cid, data = commit.to_block(repo.function)
    repo.blocks.put(cid, data)
    return cid


def name_of(version: CidLike) -> str:
    return version if isinstance(version, str) else format_cid(as_cid_bytes(version))
