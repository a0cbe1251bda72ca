"""Repositories: blocks, refs, and what they mean together."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import BLAKE3, CidBytes, CidLike, HashFunction
from cas_zarr.errors import (
    InvalidArgumentError,
    ReadOnlyError,
    RepositoryNotFoundError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.folder import FolderRefs, is_repository, make_folder, read_marker
from cas_zarr.repository.names import check_name
from cas_zarr.repository.opening import (
    MEMORY,
    SharedMemory,
    hash_named,
    in_memory,
    path_of,
    same_hash,
)
from cas_zarr.repository.refs import Branch, MemoryRefs, Refs, Tag
from cas_zarr.repository.remotes import blocks_for
from cas_zarr.repository.session import Session
from cas_zarr.repository.verify import Progress, VerifyReport, verify
from cas_zarr.repository.versions import Resolved, not_found, read_commit, resolve

__all__ = ["LogEntry", "Repository"]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A commit and its CID, as `Repository.log` yields them."""

    cid: CidBytes
    commit: Commit


class Repository:
    """A place of blocks and refs.

    Open one with `Repository.open`.

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

    def __init__(
        self,
        location: str,
        refs: Refs,
        blocks: BlockStore | None,
        function: HashFunction,
        *,
        read_only: bool = False,
        author: str = "",
    ) -> None:
        self.location = location
        self.refs = refs
        self.read_only = read_only
        self.author = author
        self._function = function
        self._blocks = blocks
        self._lock = threading.Lock()
        self._asked: HashFunction | None = None
        self._memory: SharedMemory | None = None

    def __repr__(self) -> str:
        return f"Repository({self.location!r})"

    # -- opening ------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str],
        *,
        create: bool = False,
        hash: str | None = None,
        read_only: bool = False,
        author: str = "",
    ) -> Self:
        """Open a repository.

        Parameters
        ----------
        location : str or path
            A folder, or ``memory://name`` for one in this process.
        create : bool
            Make it if it is not there.
        hash : str, optional
            ``blake3`` (for a new repository the default) or ``sha2-256``. For one that exists it
            must be what the repository has.
        read_only : bool
            Refuse to write.
        author : str
            Who commits, unless a commit says otherwise.

        Raises
        ------
        RepositoryNotFoundError
            If there is none and `create` is false, or the folder holds something else.
        FormatError
            If it is damaged, or of a format version that is not known here.
        """
        repository = cls.prepare(location, hash=hash, read_only=read_only, author=author)
        if not repository.exists:
            if not create:
                raise RepositoryNotFoundError(
                    f"there is no repository at {repository.location}; check the path, or pass "
                    "create=True to make one"
                )
            repository.make()
        return repository

    @classmethod
    def prepare(
        cls,
        location: str | os.PathLike[str],
        *,
        hash: str | None = None,
        read_only: bool = False,
        author: str = "",
    ) -> Self:
        """Open a repository that is made by the first write, where there is none yet."""
        function = None if hash is None else hash_named(hash)
        text = os.fspath(location)
        if not isinstance(text, str):
            raise InvalidArgumentError(f"{location!r} is no path or address of a repository")
        if text.startswith(MEMORY):
            return cls._prepare_memory(text, function, read_only, author)
        path = path_of(text)
        refs = FolderRefs(path, read_only=read_only)
        if not is_repository(path):
            repository = cls(
                str(path), refs, None, function or BLAKE3, read_only=read_only, author=author
            )
            repository._asked = function
            return repository
        found = same_hash(str(path), function, read_marker(path))
        blocks = blocks_for(refs, LocalBlocks(path / "packs", read_only=read_only))
        return cls(str(path), refs, blocks, found, read_only=read_only, author=author)

    @classmethod
    def memory(cls, *, hash: str | None = None, author: str = "") -> Self:
        """Make a repository in the memory of this process, under a name of its own."""
        return cls.prepare(MEMORY, hash=hash, author=author)

    @classmethod
    def _prepare_memory(
        cls, location: str, function: HashFunction | None, read_only: bool, author: str
    ) -> Self:
        location, held = in_memory(location, function or BLAKE3)
        repository = cls(
            location,
            MemoryRefs(held.refs, read_only=read_only),
            blocks_for(held.refs, held.blocks),
            same_hash(location, function, held.function),
            read_only=read_only,
            author=author,
        )
        repository._memory = held
        return repository

    # ---------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether it has been made."""
        return self._blocks is not None

    @property
    def blocks(self) -> BlockStore:
        """The blocks.

        Raises
        ------
        RepositoryNotFoundError
            If the repository has not been made yet.
        """
        if self._blocks is None:
            raise RepositoryNotFoundError(
                f"there is no repository at {self.location} yet; the first write makes it"
            )
        return self._blocks

    @property
    def function(self) -> HashFunction:
        """The hash function of new blocks."""
        return self._function

    @property
    def hash(self) -> str:
        """The name of the hash function of new blocks."""
        return self._function.name

    def make(self) -> None:
        """Make the repository if it is not there yet."""
        with self._lock:
            if self._blocks is not None:
                return
            self._check_writable()
            path = Path(self.location)
            found = make_folder(path, self._function)
            self._function = same_hash(self.location, self._asked, found)
            self._blocks = LocalBlocks(path / "packs", create=True)

    def close(self) -> None:
        """Release files. Sessions that are open must not be used afterwards."""
        with self._lock:
            if self._blocks is not None and self._memory is None:
                self._blocks.close()

    # -- versions -----------------------------------------------------------------------------

    def resolve(self, version: CidLike) -> Resolved:
        """Find what a version expression stands for; see `cas_zarr.repository.versions`.

        Raises
        ------
        VersionNotFoundError
            If nothing has that name; the message has the nearest ones.
        """
        return resolve(self.blocks, self.refs, version)

    def record(self, branch: str) -> Branch | None:
        """Return where a branch stands; None if it is to be the first one of the repository.

        Raises
        ------
        VersionNotFoundError
            If there is no such branch, but others are.
        """
        record = self.refs.branch(branch)
        if record is None and (others := self.refs.branches()):
            raise not_found(self.refs, branch, kind="branch", names=others)
        return record

    def at(self, version: CidLike) -> CASMapping:
        """Return the keys and values of a version, for reading only."""
        return CASMapping(self.blocks, self.resolve(version).root, hash=self.hash, read_only=True)

    def log(self, version: CidLike = "main") -> Iterator[LogEntry]:
        """Yield the commits of a version's history, newest first, each once.

        A commit comes after all that were made later and that the walk has met so far; merges
        bring in the histories of all their parents.
        """
        start = self.resolve(version).commit
        if start is None:
            raise InvalidArgumentError(f"{version!r} is a root and has no history")
        first = read_commit(self.blocks, start)
        seen = {start}
        order = 0
        queue = [(-first.time, order, start, first)]
        while queue:
            _, _, cid, commit = heapq.heappop(queue)
            yield LogEntry(cid, commit)
            for parent in commit.parents:
                if parent not in seen:
                    seen.add(parent)
                    order += 1
                    entry = read_commit(self.blocks, parent)
                    heapq.heappush(queue, (-entry.time, order, parent, entry))

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

    # -- branches and tags ----------------------------------------------------------------------

    def branches(self) -> dict[str, Branch]:
        """Return all branches by name."""
        found = {name: self.refs.branch(name) for name in self.refs.branches()}
        return {name: branch for name, branch in found.items() if branch is not None}

    def tags(self) -> dict[str, CidBytes]:
        """Return the commits of all tags by name."""
        found = {name: self.refs.tag(name) for name in self.refs.tags()}
        return {name: tag.commit for name, tag in found.items() if tag is not None}

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
        self.refs.update(name, expected=None, new=record)
        return record

    def delete_branch(self, name: str) -> None:
        """Take a branch away; its commits stay until they are collected."""
        self._check_writable()
        record = self.refs.branch(name)
        if record is None:
            raise not_found(self.refs, name, kind="branch", names=self.refs.branches())
        self.refs.update(name, expected=record, new=None)

    def create_tag(self, name: str, version: CidLike = "main") -> CidBytes:
        """Give the commit of a version a fixed name; return the commit.

        Raises
        ------
        ConflictError
            If there is a tag of that name.
        """
        self._check_writable()
        commit = self.resolve(version).commit
        if commit is None:
            raise InvalidArgumentError(
                f"{version!r} is a root, and a tag names a commit; commit it first"
            )
        self.refs.create_tag(name, Tag(commit))
        return commit

    def delete_tag(self, name: str) -> None:
        """Take a tag away."""
        self._check_writable()
        tag = self.refs.tag(name)
        if tag is None:
            raise not_found(self.refs, name, kind="tag", names=self.refs.tags())
        self.refs.delete_tag(name, expected=tag)

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

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
