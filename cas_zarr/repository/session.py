"""Sessions: a writable view of a branch, and a read-only view of anything.

A session opens the working root of a branch. `flush` makes its changes durable and moves the
branch by compare-and-swap; where another writer was first, the changes are united with theirs, or
the root is kept under a name of its own. What is left when the last user of a session goes, or
when the interpreter exits, is flushed.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import CasZarrError, ConflictError, InvalidArgumentError, ReadOnlyError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.versions import root_of

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["Session", "View", "WorkingTree"]

# Every failed attempt is the success of another writer, so this many in a row is no accident.
_ATTEMPTS = 1000
_LONGEST_PAUSE = 0.05


class WorkingTree:
    """The state of a session: its mapping, and the record of the branch that it builds on.

    It is apart from `Session` so that the finalizer of a session can hold it without holding the
    session.

    Attributes
    ----------
    mapping : CASMapping
        What is read. It is replaced where a session begins anew, after a fork for example.
    target : CASMapping or None
        What is written to: the mapping; None until `prepare` was called.
    """

    def __init__(self, repository: Repository, branch: str, *, strict: bool) -> None:
        self.repository = repository
        self.branch = branch
        self.strict = strict
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self._told: CidBytes | None = None
        self.base = repository.record(branch)
        self.base_root: CidBytes | None = None
        self.target: CASMapping | None = None
        if repository.exists:
            self.base_root = root_of(repository.blocks, self.base)
            self.mapping = self.target = self._open()
        else:
            self.mapping = CASMapping(MemoryBlocks(), None, hash=repository.hash)
        _trees.add(self)

    @property
    def pending(self) -> bool:
        """Whether something is not yet where the next reader of the branch looks."""
        return self.target is not None and self._differs()

    def prepare(self) -> CASMapping:
        """Return the mapping to write to; make the repository if it is not there.

        Raises
        ------
        CasZarrError
            In a child of fork, if its parent had unflushed changes.
        """
        with self.lock:
            if self.target is not None:
                return self.target
            if self.pid != os.getpid():
                if self._differs():
                    raise CasZarrError(
                        f"this process was forked while branch {self.branch!r} of "
                        f"{self.repository.location} had unflushed changes; flush before "
                        "forking, or open the store anew here"
                    )
                self.pid = os.getpid()
            self.repository.make()
            self.mapping = self.target = self._open()
            return self.target

    def flush(self) -> CidBytes:
        """Make all changes durable and show them to others; see `Session.flush`."""
        with self.lock:
            if self.target is None:  # nothing was ever written
                return self.mapping.flush()
            if not self.pending:
                self.repository.blocks.flush()  # blocks of subtrees that were named by `cid`
                return self.mapping.root or self.mapping.cid()
            root = self.mapping.flush()
            if root == self.base_root:  # the changes have cancelled out
                return root
            return self._place(root, self._work)

    def commit(
        self,
        message: str,
        *,
        author: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        time: int | None = None,
    ) -> CidBytes:
        """Make all changes durable and part of the history; see `Session.commit`."""
        with self.lock:
            root = self.prepare().cid()
            newest: list[CidBytes] = []

            def record(base: Branch | None, root: CidBytes) -> Branch:
                commit = Commit(
                    root=root,
                    parents=() if base is None or base.commit is None else (base.commit,),
                    author=self.repository.author if author is None else author,
                    time=_now() if time is None else time,
                    message=message,
                    metadata={} if metadata is None else metadata,
                )
                cid, data = commit.to_block(self.repository.function)
                self.repository.blocks.put(cid, data)
                # Behind the commit, so that one pack and one sync are enough for all.
                self.mapping.flush()
                self.repository.blocks.flush()
                newest.append(cid)
                return Branch(commit=cid, work=root)

            self._place(root, record)
            return newest[-1]

    def leave(self) -> None:
        """Flush what is left, once: a conflict that the user has seen is not told again."""
        with self.lock:
            if self.pid != os.getpid() or not self.pending:
                return
            if self._told == self.mapping.root and not self.mapping.dirty:
                return
            self.flush()

    # ---------------------------------------------------------------------------------------

    def _open(self) -> CASMapping:
        return CASMapping(
            self.repository.blocks,
            self.base_root,
            hash=self.repository.hash,
            strict=self.strict,
        )

    def _differs(self) -> bool:
        """Tell whether the mapping is not what the branch was last seen or made to be.

        It is found out anew each time: a flag could be wrong after an interrupt, and with it the
        last writes would be lost.
        """
        return self.mapping.dirty or self.mapping.root != self.base_root

    @staticmethod
    def _work(base: Branch | None, root: CidBytes) -> Branch:
        return Branch(commit=None if base is None else base.commit, work=root)

    def _place(
        self, root: CidBytes, record: Callable[[Branch | None, CidBytes], Branch]
    ) -> CidBytes:
        """Move the branch to `root`, whose blocks are durable; unite where others were first."""
        for attempt in range(_ATTEMPTS):
            new = record(self.base, root)
            try:
                self.repository.refs.update(self.branch, expected=self.base, new=new)
            except ConflictError:
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.0005 * attempt)))
                root = self._meet(root)
                continue
            self.base, self.base_root, self._told = new, root, None
            return root
        raise self._conflict(
            root,
            f"branch {self.branch!r} of {self.repository.location} moved {_ATTEMPTS} times while "
            "this session tried to",
        )

    def _meet(self, root: CidBytes) -> CidBytes:
        """Base the changes on what the branch is now; return the root that this makes."""
        theirs = self.repository.refs.branch(self.branch)
        if theirs is None:
            raise self._conflict(
                root, f"branch {self.branch!r} of {self.repository.location} was deleted meanwhile"
            )
        their_root = root_of(self.repository.blocks, theirs)
        if their_root not in (self.base_root, root):
            try:
                self.mapping.unite(their_root, base=self.base_root)
            except ConflictError as error:
                raise self._conflict(root, str(error)) from None
            root = self.mapping.flush()
        self.base, self.base_root = theirs, their_root
        return root

    def _conflict(self, root: CidBytes, reason: str) -> ConflictError:
        commit = None if self.base is None else self.base.commit
        name = self.repository.refs.keep(self.branch, Branch(commit=commit, work=root))
        self._told = root
        return ConflictError(
            f"{reason}; nothing was overwritten: this session's root {format_cid(root)} is kept "
            f"as {name!r}. Open the branch anew, take over what is needed from version={name!r}, "
            "and flush again"
        )


class Session:
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

        Returns
        -------
        CidBytes
            The commit. Its parent is the newest commit of the branch.

        Raises
        ------
        ConflictError, StorageError
            As `flush` does.
        """
        return self.tree.commit(message, author=author, metadata=metadata, time=time)

    def close(self) -> None:
        """Flush."""
        self.tree.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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


def _now() -> int:
    return time.time_ns() // 1000


# -- sessions that are left -----------------------------------------------------------------------

_trees: weakref.WeakSet[WorkingTree] = weakref.WeakSet()
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
    for tree in list(_trees):
        tree.lock = threading.RLock()
        tree.target = None


os.register_at_fork(after_in_child=_after_fork)
