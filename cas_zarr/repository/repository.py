"""Repositories: blocks, refs, and what they mean together."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from cas_zarr.cid import CidBytes, CidLike
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.repository.applying import import_car
from cas_zarr.repository.base import RepositoryBase
from cas_zarr.repository.diffing import Change, compare, empty_place, place_of, same
from cas_zarr.repository.expiring import expire
from cas_zarr.repository.exporting import export
from cas_zarr.repository.gc import collect, repack
from cas_zarr.repository.history import LogEntry, log
from cas_zarr.repository.linking import link, list_sources, repoint
from cas_zarr.repository.merging import cherry_pick, merge, rebase, revert
from cas_zarr.repository.moving import delete_branch, guarded, move_tag, rename_branch, reset
from cas_zarr.repository.names import check_name
from cas_zarr.repository.pinning import pin_remote
from cas_zarr.repository.proof import prove
from cas_zarr.repository.publishing import publish
from cas_zarr.repository.refs import Branch, RefMove, Tag
from cas_zarr.repository.remotes import add_remote, list_remotes, remove_remote
from cas_zarr.repository.repair import repair
from cas_zarr.repository.session import Session, close_sessions
from cas_zarr.repository.sync import clone, fetch, fetch_paths, pull, push
from cas_zarr.repository.unpublishing import unpublish
from cas_zarr.repository.uploading import upload_car
from cas_zarr.repository.verify import Progress, VerifyReport, verify
from cas_zarr.repository.versions import not_found

__all__ = ["LogEntry", "Repository"]


class Repository(RepositoryBase):
    """A repository of datasets, and all that can be done with their versions.

    Open one with `Repository.open`, or copy one with `Repository.clone`. Verbs that are a module's
    own matter are the functions of that module, which take the repository first: `merge` here is
    `cas_zarr.repository.merging.merge`.

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

    log = log

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

    merge = merge
    cherry_pick = cherry_pick
    revert = revert
    rebase = rebase

    # -- sharing --------------------------------------------------------------------------------

    clone = staticmethod(clone)

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

    fetch = fetch
    pull = pull
    push = push
    fetch_paths = fetch_paths
    export = export
    import_car = import_car

    # -- data that lie elsewhere ------------------------------------------------------------------

    link = link
    link_sources = list_sources
    repoint = repoint

    # -- IPFS -----------------------------------------------------------------------------------

    publish = publish
    unpublish = unpublish
    upload_car = upload_car
    pin_remote = pin_remote

    # -- cleaning -------------------------------------------------------------------------------

    gc = collect
    expire = expire
    repack = repack

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

    repair = repair

    prove = prove

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

    def delete_branch(self, name: str, *, force: bool = False) -> None:
        """Take a branch away; its commits stay until they are collected.

        Raises
        ------
        ConflictError
            If it has work that no commit has, unless `force` drops it; the log of refs has it.
        """
        self._check_writable()
        delete_branch(self, name, force=force)

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
