"""Sessions: a writable view of a branch, and a read-only view of anything.

A session opens the working root of a branch. `flush` makes its changes durable and moves the
branch by compare-and-swap; where another writer was first, the changes are united with theirs, or
the root is kept under a name of its own (see `cas_zarr.repository.working`). What is left when
the last user of a session goes, when its repository is closed, or when the interpreter exits, is
flushed.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cas_zarr.cid import CidBytes, CidLike
from cas_zarr.closing import Closing
from cas_zarr.errors import CasZarrError, InvalidArgumentError, ReadOnlyError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.forking import Fork
from cas_zarr.repository.subtrees import Source, attach
from cas_zarr.repository.working import WorkingTree, trees_of

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["Session", "View", "close_sessions"]


class Session(Closing):
    """A writable view of a branch.

    Nothing that was written is lost when a session is closed, left, collected or alive at a
    normal exit of the interpreter: it is flushed then.

    Attributes
    ----------
    repository : Repository
    branch : str
    tree : WorkingTree
        The state, for adapters that must be quick.
    """

    def __init__(
        self, repository: Repository, branch: str = "main", *, strict: bool = False
    ) -> None:
        if repository.read_only:
            raise ReadOnlyError(f"{repository.location} is open for reading only")
        _settle()
        self.tree = WorkingTree(repository, branch, strict=strict)
        self.repository = repository
        self.branch = branch
        weakref.finalize(self, _leave, self.tree)

    def __repr__(self) -> str:
        return f"Session({self.repository.location!r}, branch={self.branch!r})"

    @property
    def mapping(self) -> CASMapping:
        """The keys and values as this session sees them."""
        return self.tree.mapping

    @property
    def root(self) -> CidBytes | None:
        """The root as of the last flush; None before the first one of a new branch."""
        return self.tree.mapping.root

    @property
    def remote(self) -> bool:
        """Whether a read takes a round trip."""
        return self.tree.mapping.blocks.remote

    @property
    def dirty(self) -> bool:
        """Whether there are changes that others cannot see yet."""
        return self.tree.pending

    def prepare(self) -> CASMapping:
        """Return the mapping to write to; make the repository if it is not there yet."""
        return self.tree.prepare()

    def flush(self) -> CidBytes:
        """Make all changes durable, show them to whoever opens the branch next.

        Returns
        -------
        CidBytes
            The root. Where another writer moved the branch meanwhile, it has their changes too.

        Raises
        ------
        ConflictError
            If they changed the same things. Their work stands, and the root of this session is
            kept under a name that the message has.
        StorageError
            If the disk failed. Nothing that was flushed before is lost; flush again.
        """
        return self.tree.flush()

    def commit(
        self,
        message: str,
        *,
        author: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        time: int | None = None,
        rebase: bool = True,
        sign: Any = None,
    ) -> CidBytes:
        """Flush, and make the root a commit of the branch.

        Parameters
        ----------
        message : str
            What changed and why, at most 64 KiB.
        author : str, optional
            By default that of the repository object.
        metadata : Mapping, optional
            Free values of the IPLD data model.
        time : int, optional
            Microseconds since 1970-01-01 UTC; now by default.
        rebase : bool
            Where another writer moved the branch meanwhile: unite the changes with theirs if they
            don't overlap. With false, nothing is committed then.
        sign : key, optional
            An Ed25519 key to sign with, from `cas_zarr.repository.signing.load_key`, or what that
            takes: the path of its file.

        Returns
        -------
        CidBytes
            The commit. Its parent is the newest commit of the branch.

        Raises
        ------
        ConflictError
            As `flush` does; `conflicts` has what was changed twice. With ``rebase=False`` if the
            branch moved at all; `changes` has what the other writer changed.
        StorageError
            If the disk failed.
        """
        return self.tree.commit(
            message, author=author, metadata=metadata, time=time, rebase=rebase, sign=sign
        )

    # -- subtrees -----------------------------------------------------------------------------

    def copy(self, source: str, target: str, *, overwrite: bool = False) -> None:
        """Put what is at one path at another too; see `CASMapping.copy`."""
        self.tree.prepare().copy(source, target, overwrite=overwrite)

    def move(self, source: str, target: str, *, overwrite: bool = False) -> None:
        """Put what is at one path at another instead; see `CASMapping.move`."""
        self.tree.prepare().move(source, target, overwrite=overwrite)

    def attach(
        self,
        path: str,
        version: CidLike,
        *,
        source: Source | None = None,
        overwrite: bool = False,
    ) -> None:
        """Put a dataset, or a part of one, at a path, without opening a chunk.

        Parameters
        ----------
        path : str
            Where to put it.
        version : str, bytes or CID
            The CID of a root or of a subtree; or a version, with a path behind a colon for a part
            of it: ``v1.0:air/t2m``.
        source : Repository, BlockStore, str or path, optional
            Where it is, or the location of a repository; by default this one. What is missing
            here is copied.
        overwrite : bool
            Replace what is at `path`.

        Raises
        ------
        InvalidArgumentError
            If something is at `path`, or the path cannot take it.
        VersionNotFoundError, NotFoundError
            If there is no such version, or nothing at its path.
        """
        attach(self.tree.prepare(), self.repository, path, version, source, overwrite=overwrite)

    # -- workers ------------------------------------------------------------------------------

    def fork(self) -> Fork:
        """Return a session for a worker, which can be pickled and comes back to be merged.

        What was written here so far is made durable and seen by the fork, and not by others yet.
        """
        return self.tree.fork()

    def merge(self, forks: Fork | Iterable[Fork]) -> None:
        """Take over what forks of this session have written; `flush` or `commit` shows it.

        Parameters
        ----------
        forks : Fork, or iterable of Fork
            Each as it came back from its worker. One that never came back is just not there.

        Raises
        ------
        ConflictError
            If two of them, or one and this session, wrote the same thing differently; nothing is
            taken over then. `conflicts` has what it is.
        InvalidArgumentError
            If one is no fork of this session.
        """
        self.tree.merge(forks)

    def discard(self) -> None:
        """Drop all changes that were not flushed, and show the branch as it is now.

        What a flush could not place is dropped, too, for example where a collection of garbage has
        deleted what it relied on: the session can be used anew, and has nothing to flush when it
        is left.
        """
        self.tree.discard()

    def close(self) -> None:
        """Flush."""
        self.tree.leave()


class View:
    """A mapping that belongs to no branch: a version, or one that the user made.

    It has what adapters need of a `Session`.
    """

    def __init__(self, mapping: CASMapping, repository: Repository | None = None) -> None:
        self.tree = self
        self.mapping = mapping
        self.target = None if mapping.read_only else mapping
        self.repository = repository

    @property
    def root(self) -> CidBytes | None:
        """The root as of the last flush."""
        return self.mapping.root

    @property
    def remote(self) -> bool:
        """Whether a read takes a round trip."""
        return self.mapping.blocks.remote

    @property
    def dirty(self) -> bool:
        """Whether there are changes that were not flushed."""
        return self.mapping.dirty

    def prepare(self) -> CASMapping:
        """Return the mapping to write to; ReadOnlyError if it is a version."""
        if self.target is None:
            raise ReadOnlyError("a version is open for reading only; open a branch to write")
        return self.target

    def flush(self) -> CidBytes:
        """Make all changes durable; return the root."""
        root = self.mapping.root
        return root if root is not None and not self.mapping.dirty else self.mapping.flush()

    def fork(self) -> Fork:
        """Refuse: there is no branch to write to."""
        raise InvalidArgumentError("only a store that is open on a branch of a repository can fork")

    def merge(self, forks: Fork | Iterable[Fork]) -> None:
        """Refuse: there is no branch to write to."""
        raise InvalidArgumentError(
            f"{forks!r} cannot be merged here; merge forks into the store that made them, which is "
            "open on a branch"
        )

    def commit(self, message: str, **options: object) -> CidBytes:
        """Refuse: there is no branch to commit to."""
        named = f" {message!r} ({', '.join(options)})" if options else f" {message!r}"
        raise InvalidArgumentError(
            f"cannot commit{named}: this is not open on a branch; open a branch of a repository"
        )

    def close(self) -> None:
        """Flush, if there is something to flush."""
        if self.target is not None and self.mapping.dirty:
            self.mapping.flush()


def close_sessions(repository: Repository) -> None:
    """Flush what the sessions of a repository object have left, before its blocks are closed.

    Raises
    ------
    ConflictError, StorageError
        As `Session.flush` does, after all sessions were looked after; the first of them.
    """
    errors: list[CasZarrError] = []
    for tree in trees_of(repository):
        try:
            tree.leave()
        except CasZarrError as error:
            errors.append(error)
    if errors:
        raise errors[0]


# -- sessions that are left -----------------------------------------------------------------------

_collecting: set[int] = set()
_leaving: set[threading.Thread] = set()


def _watch_collector(phase: str, _: object) -> None:
    if phase == "start":
        _collecting.add(threading.get_ident())
    else:
        _collecting.discard(threading.get_ident())


gc.callbacks.append(_watch_collector)


def _leave(tree: WorkingTree) -> None:
    """Flush what the last user of a session has left."""
    if tree.pid != os.getpid() or not tree.pending:
        return
    if threading.get_ident() not in _collecting:
        tree.leave()
        return
    # The garbage collector may run anywhere, inside the lock of a pack for example: a thread of
    # its own can wait for that. It is no daemon, so an exit waits for it.
    thread = threading.Thread(target=_leave_in_thread, args=(tree,), name="cas-zarr-flush")
    _leaving.add(thread)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is exiting: nobody else holds a lock
        _leaving.discard(thread)
        tree.leave()


def _leave_in_thread(tree: WorkingTree) -> None:
    try:
        tree.leave()
    finally:
        _leaving.discard(threading.current_thread())


def _settle() -> None:
    """Wait for sessions that are being left, so that the next one sees what they wrote."""
    for thread in list(_leaving):
        if thread is not threading.current_thread():
            thread.join()


def _after_fork() -> None:
    # Threads and their locks are the parent's; so are unflushed changes.
    _leaving.clear()
    _collecting.clear()
    for tree in trees_of():
        tree.after_fork()


os.register_at_fork(after_in_child=_after_fork)
