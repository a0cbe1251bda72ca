"""The state of a session: a mapping, and the record of the branch that it builds on.

`flush` makes its changes durable and moves the branch by compare-and-swap; where another writer
was first, the changes are united with theirs, or the root is kept under a name of its own.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import CasZarrError, ConflictError, InvalidArgumentError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.forking import Fork
from cas_zarr.repository.guard import Guard
from cas_zarr.repository.refs import Branch, GuardError
from cas_zarr.repository.versions import root_of
from cas_zarr.tree.delta import Delta
from cas_zarr.tree.diff import NodeChange, diff
from cas_zarr.tree.node import EMPTY, Header, Root
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.view import TreeView

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = [
    "ATTEMPTS",
    "WorkingTree",
    "now",
    "pause",
    "signed",
    "subject",
    "summary",
    "trees_of",
    "view_of",
]

# Every failed attempt is the success of another writer, so this many in a row is no accident.
ATTEMPTS = 1000
_LONGEST_PAUSE = 0.05
_SHOWN = 5

Record = Callable[[Branch | None, CidBytes], Branch]


class WorkingTree:
    """The state of a session.

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
        self.target: CASMapping | None = None
        self._begin()
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
        rebase: bool = True,
        sign: Any = None,
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
                    time=now() if time is None else time,
                    message=message,
                    metadata={} if metadata is None else metadata,
                )
                cid, data = signed(commit, sign).to_block(self.repository.function)
                self.repository.blocks.put(cid, data)
                # Behind the commit, so that one pack and one sync are enough for all.
                self.mapping.flush()
                self.repository.blocks.flush()
                newest.append(cid)
                return Branch(commit=cid, work=root)

            self._place(root, record, why=f"commit: {subject(message)}", rebase=rebase)
            return newest[-1]

    def fork(self) -> Fork:
        """Make all changes durable, shown to nobody, and return a fork of them."""
        with self.lock:
            base = self.prepare().flush()
            return Fork(self.repository, base, self.branch, self._name, strict=self.strict)

    def merge(self, forks: Fork | Iterable[Fork]) -> None:
        """Take over what forks have written; see `Session.merge`."""
        if isinstance(forks, Fork):
            forks = (forks,)
        elif not isinstance(forks, Iterable):
            raise InvalidArgumentError(f"{forks!r} is no fork; give what `fork` has returned")
        with self.lock:
            deltas: dict[CidBytes, list[Delta]] = {}
            mapping = self.prepare()
            for fork in forks:
                if not isinstance(fork, Fork) or fork.maker != self._name:
                    raise InvalidArgumentError(
                        f"{fork!r} is no fork of this session on branch {self.branch!r} of "
                        f"{self.repository.location}; merge it into the one that made it"
                    )
                deltas.setdefault(fork.base, []).extend(fork.deltas())
            mapping.unite_deltas(deltas)

    def leave(self) -> None:
        """Flush what is left, once: a conflict that the user has seen is not told again."""
        with self.lock:
            if self.pid != os.getpid():
                return
            if not self.pending:
                if self.target is not None:
                    self.repository.blocks.flush()  # blocks of subtrees that were named by `cid`
                return
            if self._told == self.mapping.root and not self.mapping.dirty:
                return
            self.flush()

    def discard(self) -> None:
        """Drop what was not flushed; see `Session.discard`."""
        with self.lock:
            self.target = None  # whatever happens now, nothing is left to be flushed
            self.pid = os.getpid()
            try:
                self._begin()
            finally:
                self.target = None  # nor what was put: until `prepare`, this only reads

    def after_fork(self) -> None:
        """Let go of what belongs to the parent: its lock, and its unflushed changes."""
        self.lock = threading.RLock()
        self.target = None
        self._name = os.urandom(16)

    # ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Take the branch as it is now."""
        repository = self.repository
        self._told: CidBytes | None = None
        # The guard of this state knows what happened since its forks were made, and no other's.
        self._name = os.urandom(16)
        self.base = repository.record(self.branch)
        self.base_root: CidBytes | None = None
        self._tried: Branch | None = None
        if repository.exists:
            self.base_root = root_of(repository.blocks, self.base)
            self.mapping = self.target = self._open()
        else:
            self.mapping = CASMapping(MemoryBlocks(), None, hash=repository.hash)

    def _open(self) -> CASMapping:
        self._guard = Guard(
            self.repository.blocks,
            self.repository.refs,
            remedy="drop what was not flushed (`discard`), and write the data again",
        )
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

    def _work(self, base: Branch | None, root: CidBytes) -> Branch:
        if self.mapping.root != root:  # it was united with another's
            self.mapping.flush()
        return Branch(commit=None if base is None else base.commit, work=root)

    def _place(
        self, root: CidBytes, record: Record, *, why: str = "", rebase: bool = True
    ) -> CidBytes:
        """Move the branch to `root`; unite where others were first.

        `record` makes the branch's record and leaves all that it leads to durable.
        """
        refs, guard = self.repository.refs, self._guard
        for attempt in range(ATTEMPTS):
            found = refs.branch(self.branch)
            if found is not None and found == self._tried:
                # A move that failed, or was interrupted, has come to be: it is no other writer's.
                self.base, self.base_root = found, found.work
            if found != self.base:  # a look spares a commit and its sync
                if not rebase:
                    raise self._moved(root)
                root = self._meet(root)
            new = record(self.base, root)
            guard.secure_move(new, self.base)
            self._tried = new
            try:
                refs.update(self.branch, expected=self.base, new=new, why=why, guard=guard.record)
            except ConflictError:  # it moved just now, or a collection went on
                pause(attempt)
                continue
            self.base, self.base_root, self._told = new, root, None
            return root
        raise self._conflict(
            root,
            f"branch {self.branch!r} of {self.repository.location} moved {ATTEMPTS} times while "
            "this session tried to",
        )

    def _meet(self, root: CidBytes) -> CidBytes:
        """Base the changes on what the branch is now; return the root that this makes."""
        theirs, their_root = self._theirs(root)
        if their_root not in (self.base_root, root):
            try:
                self.mapping.unite(their_root, base=self.base_root)
            except ConflictError as error:
                raise self._conflict(root, summary(error), error.conflicts) from None
            except CasZarrError as error:  # theirs is damaged, or asks for too much
                error.add_note(
                    f"it is about what another writer placed on branch {self.branch!r}; this "
                    f"session's root {format_cid(root)} is kept as {self._keep(root)!r}"
                )
                raise
            root = self.mapping.cid()  # `record` makes it durable, with one sync for all
        self.base, self.base_root = theirs, their_root
        return root

    def _moved(self, root: CidBytes) -> ConflictError:
        """Return the error for a branch that moved under a writer that shall not unite."""
        their_root = self._theirs(root)[1]
        function = self.mapping.view.root.header.function
        views = [
            view_of(self.mapping.blocks, cid, function) for cid in (self.base_root, their_root)
        ]
        changes = tuple(diff(views[0], views[1]))
        return self._conflict(
            root,
            f"branch {self.branch!r} of {self.repository.location} moved meanwhile: another "
            f"writer {_told(changes)}; commit with rebase=True where the changes shall be united",
            changes=changes,
        )

    def _theirs(self, root: CidBytes) -> tuple[Branch, CidBytes | None]:
        theirs = self.repository.refs.branch(self.branch)
        if theirs is None:
            raise self._conflict(
                root, f"branch {self.branch!r} of {self.repository.location} was deleted meanwhile"
            )
        return theirs, root_of(self.repository.blocks, theirs)

    def _conflict(
        self,
        root: CidBytes,
        reason: str,
        conflicts: Sequence[Any] = (),
        *,
        changes: Sequence[NodeChange] = (),
    ) -> ConflictError:
        name = self._keep(root)
        return ConflictError(
            f"{reason}; nothing was overwritten: this session's root {format_cid(root)} is kept "
            f"as {name!r}. Open the branch anew, take over what is needed from version={name!r}, "
            "and flush again",
            conflicts,
            changes=changes,
        )

    def _keep(self, root: CidBytes) -> str:
        """Keep a root under a name of its own, durably."""
        self.mapping.flush()
        record = Branch(commit=None if self.base is None else self.base.commit, work=root)
        while True:
            self._guard.secure_move(record, None)
            try:
                name = self.repository.refs.keep(
                    self.branch,
                    record,
                    why=f"could not be placed on {self.branch}",
                    guard=self._guard.record,
                )
            except GuardError:
                continue
            self._told = root
            return name


def _told(changes: Sequence[NodeChange]) -> str:
    """Say what another writer did."""
    if not changes:
        return "made a commit of the same data"
    parts = []
    for change in changes[:_SHOWN]:
        chunks = sum(map(len, change.chunks)) if change.status == "changed" else 0
        count = f" ({chunks} chunk{'' if chunks == 1 else 's'})" if chunks else ""
        where = repr(change.path) if change.path else "the root"
        parts.append(f"{change.status} {where}{count}")
    more = len(changes) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def summary(error: ConflictError) -> str:
    """Say what was changed twice, without what to do about it."""
    if not error.conflicts:
        return str(error)
    shown = "; ".join(conflict.reason for conflict in error.conflicts[:_SHOWN])
    more = len(error.conflicts) - _SHOWN
    return f"both changed the same thing: {shown}" + (f" and {more} more" if more > 0 else "")


def view_of(blocks: Any, root: CidBytes | None, function: Any) -> TreeView:
    """Return the tree of a root; without one, that of a dataset without anything.

    Parameters
    ----------
    blocks : BlockStore
    root : CidBytes or None
    function : HashFunction
        What an empty dataset is hashed with.
    """
    found = Root(Header(function), EMPTY) if root is None else Root.from_block(blocks.get(root))
    return TreeView(TreeReader(blocks), found)


def signed(commit: Commit, key: Any) -> Commit:
    """Return a commit with a signature, if there is a key: one that was loaded, or its file."""
    if key is None:
        return commit
    from cas_zarr.repository.signing import load_key, sign

    return sign(commit, load_key(key) if isinstance(key, (str, bytes, os.PathLike)) else key)


def subject(message: str) -> str:
    """Return the first line of a message that has something on it."""
    if not isinstance(message, str):
        raise InvalidArgumentError(f"message of a commit is text, not a {type(message).__name__}")
    return next((line.strip() for line in message.splitlines() if line.strip()), "")


def now() -> int:
    """Return the time in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


def pause(attempt: int) -> None:
    """Wait a little, for longer and at random after each failed attempt."""
    time.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.0005 * attempt)))


_trees: weakref.WeakSet[WorkingTree] = weakref.WeakSet()


def trees_of(repository: Repository | None = None) -> list[WorkingTree]:
    """Return the working trees of one repository object that are open, or all of them."""
    return [tree for tree in list(_trees) if repository is None or tree.repository is repository]
