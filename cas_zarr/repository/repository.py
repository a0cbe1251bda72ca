"""Repositories: blocks, refs, and what they mean together."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.collectable import Repacked
from cas_zarr.cid import CidBytes, CidLike
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.repository.base import RepositoryBase
from cas_zarr.repository.diffing import Change, compare, empty_place, place_of, same
from cas_zarr.repository.expiring import ExpireReport, expire
from cas_zarr.repository.gc import GRACE, LOG_AGE, GCReport, collect, repack
from cas_zarr.repository.history import LogEntry, log
from cas_zarr.repository.merging import (
    MergeResult,
    Resolve,
    cherry_pick,
    merge,
    rebase,
    revert,
)
from cas_zarr.repository.moving import guarded, move_tag, rename_branch, reset
from cas_zarr.repository.names import check_name
from cas_zarr.repository.proof import prove
from cas_zarr.repository.refs import Branch, RefMove, Tag
from cas_zarr.repository.remotes import ORIGIN, add_remote, list_remotes, remove_remote
from cas_zarr.repository.repair import RepairProgress, RepairReport, repair
from cas_zarr.repository.session import Session, close_sessions
from cas_zarr.repository.sync import (
    Copied,
    PullReport,
    SyncReport,
    clone,
    fetch,
    fetch_paths,
    pull,
    push,
)
from cas_zarr.repository.times import When
from cas_zarr.repository.verify import Progress, VerifyReport, verify
from cas_zarr.repository.versions import not_found
from cas_zarr.tree.merge import Resolver

if TYPE_CHECKING:
    from cas_zarr.repository.signing import PrivateKey

__all__ = ["LogEntry", "Repository"]


class Repository(RepositoryBase):
    """A repository of datasets, and all that can be done with their versions.

    Open one with `Repository.open`, or copy one with `Repository.clone`.

    Attributes
    ----------
    location : str
        The path of the folder, or ``memory://name``.
    refs : Refs
        Branches and tags.
    read_only : bool
        Whether writing is refused.
    author : str
        Who commits, unless a commit says otherwise.
    """

    def session(self, branch: str = "main", *, strict: bool = False) -> Session:
        """Open a branch for writing.

        Parameters
        ----------
        branch : str
            It must be there, unless the repository has no branch at all.
        strict : bool
            Refuse to bind a key to another value.
        """
        return Session(self, branch, strict=strict)

    def close(self) -> None:
        """Flush what sessions have left, and release files; no session can be used afterwards."""
        close_sessions(self)
        super().close()

    # -- history --------------------------------------------------------------------------------

    def log(
        self,
        version: CidLike = "main",
        *,
        since: When | None = None,
        until: When | None = None,
        path: str | None = None,
        box: Sequence[slice | tuple[int, int | None]] | None = None,
        first_parent: bool = False,
        topological: bool = False,
    ) -> Iterator[LogEntry]:
        """Yield the commits of a version's history, newest first, each once.

        With `path`, and with a `box` of chunks there, those that changed it; see
        `cas_zarr.repository.history.log`.
        """
        return log(
            self,
            version,
            since=since,
            until=until,
            path=path,
            box=box,
            first_parent=first_parent,
            topological=topological,
        )

    def reflog(self, ref: str | None = None) -> list[RefMove]:
        """Return what each move of a branch or a tag replaced, newest last.

        Parameters
        ----------
        ref : str, optional
            A branch or a tag, also one that is gone; all of them by default.
        """
        return self.refs.log(ref)

    # -- comparing ------------------------------------------------------------------------------

    def diff(
        self,
        a: CidLike | None = None,
        b: CidLike | None = None,
        path: str = "",
        *,
        other: Repository | None = None,
        branch: str = "main",
        moves: bool = True,
    ) -> Iterator[Change]:
        """Yield what differs between any two things, found by comparing CIDs.

        Parameters
        ----------
        a, b : str, bytes or CID, optional
            Versions, places (``version:path``), or CIDs of commits, roots and subtrees. Without
            `b`, what the branch shows now, committed or not; without both, that against its
            newest commit.
        path : str
            Compare only what lies at and below this path.
        other : Repository, optional
            Where `b` is, if not here.
        branch : str
            The branch that is meant where `a` or `b` is left out.
        moves : bool
            Whether to find subtrees that lie elsewhere now.

        Raises
        ------
        VersionNotFoundError, NotFoundError
            If there is no such version, or neither has such a node.
        """
        if a is None and b is not None:
            raise InvalidArgumentError("b is given and a is not; give the version to compare with")
        record = self.record(branch) if a is None else None
        if a is None and (record is None or record.commit is None):
            before = empty_place(self)  # nothing is committed yet
        else:
            before = place_of(self, branch if a is None else a, branch=branch)
        after = place_of(self if other is None else other, b, branch=branch)
        return compare(before, after, path, moves=moves)

    def same(
        self, a: CidLike | None, b: CidLike | None, *, other: Repository | None = None
    ) -> bool:
        """Tell whether two things are equal to the last bit: whether they have one CID.

        The parameters are those of `diff`.
        """
        return same(place_of(self, a), place_of(self if other is None else other, b))

    # -- combining ------------------------------------------------------------------------------

    def merge(
        self,
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
        sign: PrivateKey | str | None = None,
    ) -> MergeResult:
        """Bring into a branch what another version has; see `cas_zarr.repository.merging.merge`.

        Different chunks of one array and different fields of one document are united. What both
        changed is a conflict: `resolve` is ``"ours"``, ``"theirs"`` or a function of three arrays.
        """
        return merge(
            self,
            version,
            into=into,
            message=message,
            resolve=resolve,
            resolver=resolver,
            fast_forward=fast_forward,
            author=author,
            metadata=metadata,
            time=time,
            sign=sign,
        )

    def cherry_pick(
        self,
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
        sign: PrivateKey | str | None = None,
    ) -> MergeResult:
        """Make on a branch the change that a commit made elsewhere.

        Message, author, time and metadata are the commit's, unless others are given.
        """
        return cherry_pick(
            self,
            version,
            into=into,
            parent=parent,
            resolve=resolve,
            resolver=resolver,
            message=message,
            author=author,
            metadata=metadata,
            time=time,
            sign=sign,
        )

    def revert(
        self,
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
        sign: PrivateKey | str | None = None,
    ) -> MergeResult:
        """Take back the change that a commit made, in a commit of its own."""
        return revert(
            self,
            version,
            into=into,
            parent=parent,
            resolve=resolve,
            resolver=resolver,
            message=message,
            author=author,
            metadata=metadata,
            time=time,
            sign=sign,
        )

    def rebase(
        self,
        branch: str,
        *,
        onto: CidLike,
        resolve: Resolve | None = None,
        resolver: Resolver | None = None,
        sign: PrivateKey | str | None = None,
    ) -> MergeResult:
        """Make the commits of a branch anew on top of another version."""
        return rebase(self, branch, onto=onto, resolve=resolve, resolver=resolver, sign=sign)

    # -- sharing --------------------------------------------------------------------------------

    @staticmethod
    def clone(
        source: Repository | str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        branches: Iterable[str] | None = None,
        paths: Sequence[str] | None = None,
        depth: int | None = None,
        author: str = "",
        progress: Progress | None = None,
    ) -> Repository:
        """Copy a repository, or some groups, arrays or boxes of it; see `sync.clone`."""
        return clone(
            source,
            target,
            branches=branches,
            paths=paths,
            depth=depth,
            author=author,
            progress=progress,
        )

    def remotes(self) -> dict[str, str]:
        """Return where other repositories are that have a name here."""
        return {remote.name: remote.location for remote in list_remotes(self.refs)}

    def add_remote(self, name: str, location: str | os.PathLike[str]) -> None:
        """Give another repository a name, for `fetch`, `pull` and `push`.

        Raises
        ------
        ConflictError
            If the name is taken.
        """
        self._check_writable()
        add_remote(self.refs, name, os.fspath(location))

    def remove_remote(self, name: str) -> None:
        """Forget another repository, and where its branches were.

        Raises
        ------
        ConflictError
            If this is a partial clone, whose other blocks are there.
        """
        self._check_writable()
        remove_remote(self.refs, name)

    def fetch(
        self,
        source: Repository | str | os.PathLike[str] = ORIGIN,
        *,
        branches: Iterable[str] | None = None,
        depth: int | None = None,
        progress: Progress | None = None,
    ) -> SyncReport:
        """Copy what another repository has got, and note where its branches are."""
        return fetch(self, source, branches=branches, depth=depth, progress=progress)

    def pull(
        self,
        source: Repository | str | os.PathLike[str] = ORIGIN,
        *,
        branches: str | Iterable[str] = "main",
        resolve: Resolve | None = None,
        progress: Progress | None = None,
    ) -> PullReport:
        """Fetch branches of another repository, and merge them into the ones of their name here."""
        return pull(self, source, branches=branches, resolve=resolve, progress=progress)

    def push(
        self,
        target: Repository | str | os.PathLike[str] = ORIGIN,
        *,
        branches: str | Iterable[str] = "main",
        tags: Iterable[str] = (),
        force: bool = False,
        progress: Progress | None = None,
    ) -> SyncReport:
        """Give another repository branches and tags, with the blocks that it lacks."""
        return push(self, target, branches=branches, tags=tags, force=force, progress=progress)

    def fetch_paths(
        self, paths: Sequence[str] | None = None, *, progress: Progress | None = None
    ) -> Copied:
        """Copy more of what a partial clone left behind; without `paths` the rest."""
        return fetch_paths(self, paths, progress=progress)

    # -- cleaning -------------------------------------------------------------------------------

    def gc(
        self,
        *,
        grace: timedelta = GRACE,
        log_age: timedelta = LOG_AGE,
        dry_run: bool = False,
        max_unused: float = 0.05,
        progress: Progress | None = None,
    ) -> GCReport:
        """Condemn what no ref leads to, and delete what was condemned long enough ago.

        What the log of refs has from the last `log_age` (30 days) counts as in use, so that a
        deleted branch can be brought back; see `cas_zarr.repository.gc.collect`.
        """
        return collect(
            self,
            grace=grace,
            log_age=log_age,
            dry_run=dry_run,
            max_unused=max_unused,
            progress=progress,
        )

    def expire(
        self,
        *,
        older_than: datetime | timedelta | None = None,
        keep: int | None = None,
        dry_run: bool = False,
    ) -> ExpireReport:
        """Cut old history off; `gc` then deletes what only it had. See `expiring.expire`."""
        return expire(self, older_than=older_than, keep=keep, dry_run=dry_run)

    def repack(self) -> Repacked:
        """Write all packs anew, into as few as is sensible."""
        return repack(self)

    # -- checking -------------------------------------------------------------------------------

    def verify(
        self,
        version: CidLike | None = None,
        *,
        path: str = "",
        data: bool = False,
        sample: float | None = None,
        seed: int = 0,
        signatures: bool = False,
        allowed: Collection[bytes] | None = None,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Check a version, a node of it, or all refs with their histories and files.

        The structure is read and hashed, and of the values it is checked that they are there; with
        `data` all of them are read too, with `sample` a share. What is damaged or missing is in the
        report, and the arrays and chunks that it hurts; see `cas_zarr.repository.verify`.
        """
        return verify(
            self.blocks,
            self.refs,
            version,
            path=path,
            data=data,
            sample=sample,
            seed=seed,
            signatures=signatures,
            allowed=allowed,
            progress=progress,
        )

    def repair(
        self,
        source: Repository | BlockStore | str | os.PathLike[str],
        *,
        progress: RepairProgress | None = None,
    ) -> RepairReport:
        """Put right what is damaged or missing, with blocks from another place."""
        return repair(self, source, progress=progress)

    def prove(
        self,
        version: CidLike,
        path: str,
        box: Sequence[slice | tuple[int, int | None]] | None = None,
        *,
        chunks: bool = False,
    ) -> bytes:
        """Return a CAR that proves which chunks a version has to who holds its root CID alone.

        `cas_zarr.repository.proof.check_proof` checks it.

        Parameters
        ----------
        version : str, bytes or CID
        path : str
            An array.
        box : sequence of slice or (start, stop), optional
            In chunk coordinates; all chunks by default.
        chunks : bool
            Whether the values are in it as well.
        """
        return prove(self, version, path, box, chunks=chunks)

    # -- branches and tags ----------------------------------------------------------------------

    def create_branch(self, name: str, version: CidLike | None = "main") -> Branch:
        """Begin a branch at a version; with None, one that has no history and no data.

        Raises
        ------
        ConflictError
            If there is a branch of that name.
        """
        self._check_writable()
        check_name(name)
        if version is None:
            self.make()
            record = Branch()
        else:
            found = self.resolve(version)
            record = Branch(commit=found.commit, work=found.root)
            guarded(
                self,
                found,
                lambda guard: self.refs.update(
                    name, expected=None, new=record, why=f"branch from {found.name}", guard=guard
                ),
            )
            return record
        self.refs.update(name, expected=None, new=record, why="branch without a history")
        return record

    def delete_branch(self, name: str) -> None:
        """Take a branch away; its commits stay until they are collected."""
        self._check_writable()
        record = self.refs.branch(name)
        if record is None:
            raise not_found(self.refs, name, kind="branch", names=self.refs.branches())
        self.refs.update(name, expected=record, new=None, why="delete")

    def rename_branch(self, old: str, new: str) -> Branch:
        """Give a branch another name; what it was before is in the log under the old one."""
        self._check_writable()
        return rename_branch(self, old, new)

    def reset(self, branch: str, version: CidLike, *, force: bool = False) -> Branch:
        """Let a branch lead to another version.

        Raises
        ------
        ConflictError
            If it has work that no commit has, unless `force` drops it; the log of refs has it.
        """
        self._check_writable()
        return reset(self, branch, version, force=force)

    def create_tag(self, name: str, version: CidLike = "main") -> CidBytes:
        """Give the commit of a version a fixed name; return the commit.

        Raises
        ------
        ConflictError
            If there is a tag of that name.
        """
        self._check_writable()
        found = self.resolve(version)
        commit = found.commit
        if commit is None:
            raise InvalidArgumentError(
                f"{found.name!r} is a root, and a tag names a commit; commit it first"
            )
        tag = Tag(commit)
        guarded(
            self,
            found,
            lambda guard: self.refs.create_tag(name, tag, why=f"tag {found.name}", guard=guard),
        )
        return commit

    def move_tag(self, name: str, version: CidLike) -> CidBytes:
        """Let a tag name another commit; return that. The log of refs has the old one."""
        self._check_writable()
        return move_tag(self, name, version)

    def delete_tag(self, name: str) -> None:
        """Take a tag away."""
        self._check_writable()
        tag = self.refs.tag(name)
        if tag is None:
            raise not_found(self.refs, name, kind="tag", names=self.refs.tags())
        self.refs.delete_tag(name, expected=tag, why="delete")
