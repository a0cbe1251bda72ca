"""Refs: names that move. Everything else in a repository never changes.

A branch is one record of a commit and a working root, a tag is a commit, a kept root is what a
writer could not place. All three live under names and move by compare-and-swap only, so that two
writers never overwrite each other; a log tells what each move replaced.

Beside them are the record of the collection of garbage, which guards moves, and the commits at
which the history was cut.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Set
from enum import Enum
from typing import Literal, TypeVar

from cas_zarr.cid import DAG_CBOR, CidBytes, Link, format_cid
from cas_zarr.errors import (
    ConflictError,
    FormatError,
    InvalidArgumentError,
    InvalidKeyError,
    LimitError,
    ReadOnlyError,
)
from cas_zarr.repository.names import check_name
from cas_zarr.repository.records import MAX_REF_BYTES, Branch, Tag, link_of, seal, unseal
from cas_zarr.repository.reflog import RefMove, mended, read_lines, without

__all__ = [
    "UNGUARDED",
    "Branch",
    "GuardError",
    "MemoryRefs",
    "RefMove",
    "Refs",
    "Tag",
    "Unguarded",
    "collected_meanwhile",
    "limit_of",
    "name_clash",
]

MAX_SHALLOW_BYTES = 16 << 20
SHALLOW_TYPE = "cas-zarr/shallow"
SHALLOW_VERSION = 1

MAX_REMOTE_BYTES = 1 << 20

# Paths that no ref has: those of refs begin with heads/, tags/, conflicts/ or tracking/.
LOG, GC, SHALLOW = "log", "gc", "shallow"


class Unguarded(Enum):
    """That a ref is moved whatever collections there are."""

    UNGUARDED = "unguarded"


UNGUARDED = Unguarded.UNGUARDED
"""For moves after which a ref leads to nothing that no ref led to before."""


class GuardError(ConflictError):
    """A collection of garbage began or ended since a writer looked; look anew, and repeat."""


_Record = TypeVar("_Record", Branch, Tag)


class Refs(ABC):
    """The refs of a repository.

    A backend provides a map of path to bytes whose entries move by compare-and-swap.

    Attributes
    ----------
    read_only : bool
        Whether moving a ref is refused.
    settling : float
        Seconds after which a request of someone who died has come to its end.
    """

    read_only: bool = False
    settling: float = 0.0

    # -- what a backend provides ------------------------------------------------------------

    @abstractmethod
    def _load(self, path: str) -> bytes | None:
        """Return the bytes at `path`, or None; of more than `limit_of` just the beginning."""

    @abstractmethod
    def _swap(
        self,
        path: str,
        old: bytes | None,
        new: bytes | None,
        *,
        line: bytes | None = None,
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> bool:
        """Replace `old` by `new` at `path` durably; False if `old` is not what is there.

        Under the same lock: `GuardError` if `guard` is not what stands at the path ``gc``, and
        then `line` goes to the end of the log, durably, before anything moves.
        """

    @abstractmethod
    def _paths(self, folder: str) -> Iterator[str]:
        """Yield the paths below `folder`, relative to it, in no order."""

    @abstractmethod
    def _read_log(self) -> bytes:
        """Return the log."""

    @abstractmethod
    def _rewrite_log(self, change: Callable[[bytes], tuple[bytes, int]]) -> int:
        """Replace the log by what `change` makes of it, under the lock, and durably.

        The number that `change` gives beside is returned; where it is 0, nothing is written.
        """

    @property
    @abstractmethod
    def location(self) -> str:
        """Where the refs are, in words, for messages."""

    # -- branches ---------------------------------------------------------------------------

    def branch(self, name: str) -> Branch | None:
        """Return the record of a branch, or None if there is no such branch.

        Raises
        ------
        FormatError
            If what is stored is no record of a branch.
        """
        return self._read(Branch, f"heads/{check_name(name)}")

    def branches(self) -> list[str]:
        """Return the names of all branches, sorted."""
        return sorted(self._paths("heads"))

    def update(
        self,
        name: str,
        *,
        expected: Branch | None,
        new: Branch | None,
        why: str = "",
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> None:
        """Move a branch from one record to another.

        Parameters
        ----------
        name : str
            The branch.
        expected : Branch or None
            What it is now; None means that it must not exist.
        new : Branch or None
            What it becomes; None deletes it.
        why : str
            The reason, for the log; of it the first line, up to 1 KiB. A move that leaves the
            commit as it is, as flushes make them, is logged only if it has a reason.
        guard : bytes or None
            The record of collections that the writer knows, as `cas_zarr.repository.guard.Guard`
            has it after it has secured what `new` leads to. By default it is not looked at.

        Raises
        ------
        ConflictError
            If it is not what was expected; nothing is changed.
        GuardError
            If the record of collections is another by now; nothing is changed.
        InvalidKeyError
            If the name cannot be stored.
        """
        path = f"heads/{check_name(name)}"
        logged = bool(why) or expected is None or new is None or expected.commit != new.commit
        self._move(path, expected, new, why=why, guard=guard, logged=logged)

    def overwrite_damaged(
        self, name: str, new: Branch, *, why: str, guard: bytes | Unguarded | None = UNGUARDED
    ) -> None:
        """Give a branch whose record is damaged a new one; ConflictError if it is not damaged."""
        path = f"heads/{check_name(name)}"
        data = self._load(path)
        if data is None or _is_record(data):
            raise ConflictError(f"branch {name!r} in {self.location} is not damaged by now")
        self._check_writable()
        line = RefMove(path, None, new, _now(), why).to_line()
        if not self._swap(path, data, new.to_block(), line=line, guard=guard):
            raise ConflictError(
                f"branch {name!r} in {self.location} is another by now; read it again and repeat"
            )

    # -- tags -------------------------------------------------------------------------------

    def tag(self, name: str) -> Tag | None:
        """Return a tag, or None if there is no such tag."""
        return self._read(Tag, f"tags/{check_name(name)}")

    def tags(self) -> list[str]:
        """Return the names of all tags, sorted."""
        return sorted(self._paths("tags"))

    def create_tag(
        self,
        name: str,
        tag: Tag,
        *,
        why: str = "",
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> None:
        """Give a commit a fixed name; ConflictError if the name is taken.

        `why` and `guard` are as in `update`, here and below.
        """
        self._move(f"tags/{check_name(name)}", None, tag, why=why, guard=guard)

    def move_tag(
        self,
        name: str,
        *,
        expected: Tag,
        new: Tag,
        why: str = "",
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> None:
        """Give another commit the name of a tag; ConflictError if it is not what was expected."""
        self._move(f"tags/{check_name(name)}", expected, new, why=why, guard=guard)

    def delete_tag(
        self,
        name: str,
        *,
        expected: Tag,
        why: str = "",
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> None:
        """Take a tag away; ConflictError if it is not what was expected."""
        self._move(f"tags/{check_name(name)}", expected, None, why=why, guard=guard)

    # -- roots that could not be placed -------------------------------------------------------

    def keep(
        self,
        branch: str,
        record: Branch,
        *,
        why: str = "",
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> str:
        """Keep a working root that could not be placed on `branch`; return its name.

        The name, ``conflicts/<branch>/<end of the cid>``, can be opened as a version.
        """
        if record.work is None:
            raise InvalidArgumentError("there is no working root to keep")
        name = f"conflicts/{check_name(branch)}/{format_cid(record.work)[-16:]}"
        self._check_writable()
        data = record.to_block()
        line = RefMove(name, None, record, _now(), why).to_line()
        while not self._swap(name, old := self._load(name), data, line=line, guard=guard):
            if old == data:
                break
        return name

    def kept(self, name: str) -> Branch | None:
        """Return the record under a name that `keep` gave, or None."""
        if not name.startswith("conflicts/"):
            return None
        return self._read(Branch, check_name(name))

    def all_kept(self) -> list[str]:
        """Return the names of all kept roots, sorted."""
        return sorted(f"conflicts/{path}" for path in self._paths("conflicts"))

    def forget(self, name: str, *, why: str = "") -> None:
        """Let a kept root go; the log still has it. It is no error if it is gone."""
        self._check_writable()
        if not name.startswith("conflicts/") or (old := self._load(check_name(name))) is None:
            return
        try:
            record: Branch | None = Branch.from_block(old)
        except FormatError:
            record = None
        self._swap(name, old, None, line=RefMove(name, record, None, _now(), why).to_line())

    # -- the log ------------------------------------------------------------------------------

    def log(
        self, name: str | None = None, *, damaged: Literal["raise", "skip"] = "raise"
    ) -> list[RefMove]:
        """Return the moves of refs, oldest first.

        A move is logged before it is made: the last one of a ref may not have come to be.

        Parameters
        ----------
        name : str, optional
            Only those of the branch and of the tag of this name, or of this kept root.
        damaged : "raise" or "skip"
            What to do where a line of the log is damaged.

        Raises
        ------
        FormatError
            If a line is damaged; it names all of them.
        """
        lines = list(read_lines(self._read_log()))
        if damaged == "raise" and (reasons := self._damage(lines)):
            raise FormatError(
                f"{'; '.join(reasons[:20])}. The other lines can still be read "
                '(damaged="skip"), and mending the log drops these'
            )
        paths = {f"heads/{name}", f"tags/{name}", name}
        return [
            move
            for _, _, found in lines
            for move in found
            if isinstance(move, RefMove) and (name is None or move.ref in paths)
        ]

    def log_damage(self) -> list[str]:
        """Return what is wrong with the log, a damaged line each."""
        return self._damage(read_lines(self._read_log()))

    def trim_log(self, before: int | None, *, commits: Set[CidBytes] = frozenset()) -> int:
        """Drop the moves before a time, and those from or to one of some commits.

        The time is in microseconds since 1970-01-01 UTC. How many were dropped is returned.
        """
        self._check_writable()
        return self._rewrite_log(lambda data: without(data, before, commits))

    def mend_log(self) -> int:
        """Drop the lines of the log that are damaged; return how many."""
        self._check_writable()
        return self._rewrite_log(mended)

    def _damage(self, lines: Iterable[tuple[int, bytes, list[RefMove | FormatError]]]) -> list[str]:
        return [
            f"line {number} of the log of refs in {self.location} is damaged: {one}"
            for number, _, found in lines
            for one in found
            if isinstance(one, FormatError)
        ]

    # -- the collection of garbage --------------------------------------------------------------

    def gc_record(self) -> bytes | None:
        """Return what `swap_gc` has put there."""
        return self._load(GC)

    def swap_gc(self, old: bytes | None, new: bytes | None) -> bool:
        """Replace the record of collections, of at most 4096 bytes; False if it is not `old`."""
        self._check_writable()
        if new is not None and len(new) > MAX_REF_BYTES:
            raise LimitError(f"a record of collections of {len(new)} bytes is over {MAX_REF_BYTES}")
        return self._swap(GC, old, new)

    def fence(self) -> None:
        """See to it that nobody moves a ref who looked at the record of collections before this.

        Where a move and its look are one step, nothing has to be done.
        """

    # -- other repositories -----------------------------------------------------------------------

    def tracked(self, name: str) -> Tag | None:
        """Return the commit that a branch of another repository had when it was fetched last.

        `name` is that of the remote, a slash, and that of the branch there: ``origin/main``.
        """
        return self._read(Tag, f"tracking/{check_name(name)}")

    def all_tracked(self) -> list[str]:
        """Return the names of all branches that were fetched from elsewhere, sorted."""
        return sorted(self._paths("tracking"))

    def track(
        self,
        name: str,
        *,
        expected: Tag | None,
        new: Tag | None,
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> None:
        """Note where a branch of another repository is; ConflictError if not `expected`.

        It is not logged: what it says can be fetched again.
        """
        self._check_writable()
        old, data = (None if tag is None else tag.to_block() for tag in (expected, new))
        if not self._swap(f"tracking/{check_name(name)}", old, data, guard=guard):
            raise ConflictError(
                f"what {self.location} knows of {name!r} is another by now: it was fetched "
                "elsewhere meanwhile; fetch again"
            )

    def remote(self, name: str) -> bytes | None:
        """Return the record of a remote, as `cas_zarr.repository.remotes` makes it, or None."""
        return self._load(f"remotes/{check_name(name)}")

    def remotes(self) -> list[str]:
        """Return the names of all remotes, sorted."""
        return sorted(self._paths("remotes"))

    def swap_remote(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace the record of a remote, of at most 1 MiB; False if it is not `old`."""
        self._check_writable()
        if new is not None and len(new) > MAX_REMOTE_BYTES:
            raise LimitError(f"a record of a remote of {len(new)} bytes is over {MAX_REMOTE_BYTES}")
        return self._swap(f"remotes/{check_name(name)}", old, new)

    def published(self, name: str) -> bytes | None:
        """Return what was published to a place, as `cas_zarr.repository.published` notes it."""
        return self._load(f"published/{check_name(name)}")

    def all_published(self) -> list[str]:
        """Return the names of all places that something was published to, sorted."""
        return sorted(self._paths("published"))

    def swap_published(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace the record of a place, of at most 1 MiB; False if it is not `old`."""
        self._check_writable()
        if new is not None and len(new) > MAX_REMOTE_BYTES:
            raise LimitError(f"a record of a place of {len(new)} bytes is over {MAX_REMOTE_BYTES}")
        return self._swap(f"published/{check_name(name)}", old, new)

    # -- where the history was cut --------------------------------------------------------------

    def shallow(self) -> frozenset[CidBytes]:
        """Return the commits whose parents were cut off on purpose.

        Raises
        ------
        FormatError
            If the record is damaged.
        """
        data = self._load(SHALLOW)
        if data is None:
            return frozenset()
        try:
            return _shallow_from(data)
        except FormatError as error:
            raise FormatError(
                f"the record of cut histories in {self.location} is damaged: {error}; restore "
                f"its file, refs/{SHALLOW}, or remove it where the whole history is there"
            ) from None

    def set_shallow(
        self,
        expected: Set[CidBytes],
        new: Set[CidBytes],
        *,
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> None:
        """Replace the commits whose parents are cut off; ConflictError if not `expected`.

        Where refs lead to more of a history by it, it has to be guarded, as moves of refs are.
        """
        self._check_writable()
        if not self._swap(SHALLOW, _shallow_to(expected), _shallow_to(new), guard=guard):
            raise ConflictError(
                f"the history in {self.location} was cut elsewhere meanwhile; read where, and "
                "repeat"
            )

    # ---------------------------------------------------------------------------------------

    def _read(self, kind: type[_Record], path: str) -> _Record | None:
        data = self._load(path)
        if data is None:
            return None
        try:
            return kind.from_block(data)
        except FormatError as error:
            raise FormatError(
                f"ref {path} in {self.location} is damaged: {error}; set it again to a commit or "
                "root that you know, or restore its file"
            ) from None

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")

    def _move(
        self,
        path: str,
        expected: Branch | Tag | None,
        new: Branch | Tag | None,
        *,
        why: str,
        guard: bytes | Unguarded | None,
        logged: bool = True,
    ) -> None:
        self._check_writable()
        old = None if expected is None else expected.to_block()
        data = None if new is None else new.to_block()
        move = RefMove(path, expected, new, _now(), why)
        if self._swap(path, old, data, line=move.to_line() if logged else None, guard=guard):
            return
        now = self._load(path)
        if expected is None:
            verb = "move" if move.kind == "tag" else "reset"
            raise ConflictError(
                f"{move.kind} {move.name!r} exists already in {self.location}; choose another "
                f"name, or {verb} the one that is there"
            )
        state = "gone" if now is None else "another by now"
        raise ConflictError(
            f"{move.kind} {move.name!r} in {self.location} is {state}: another writer was here "
            "first; read it again and repeat"
        )


class MemoryRefs(Refs):
    """Refs in the memory of one process.

    Parameters
    ----------
    of : MemoryRefs, optional
        Others to share the refs of.
    read_only : bool
        Whether moving a ref is refused.
    """

    def __init__(self, of: MemoryRefs | None = None, *, read_only: bool = False) -> None:
        self._refs: dict[str, bytes] = {} if of is None else of._refs
        self._log: bytearray = bytearray() if of is None else of._log
        self._lock: threading.Lock = threading.Lock() if of is None else of._lock
        self.read_only = read_only

    # docstrings inherited

    @property
    def location(self) -> str:
        return "memory"

    def _load(self, path: str) -> bytes | None:
        return self._refs.get(path)

    def _swap(
        self,
        path: str,
        old: bytes | None,
        new: bytes | None,
        *,
        line: bytes | None = None,
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> bool:
        with self._lock:
            if self._refs.get(path) != old:
                return False
            if guard is not UNGUARDED and self._refs.get(GC) != guard:
                raise collected_meanwhile(self.location)
            if old is None and new is not None:
                for other in self._refs:
                    if other.startswith(path + "/") or path.startswith(other + "/"):
                        raise name_clash(path, other)
            self._log += line or b""
            if new is None:
                self._refs.pop(path, None)
            else:
                self._refs[path] = new
            return True

    def _paths(self, folder: str) -> Iterator[str]:
        prefix = folder + "/"
        return iter([path[len(prefix) :] for path in list(self._refs) if path.startswith(prefix)])

    def _read_log(self) -> bytes:
        with self._lock:
            return bytes(self._log)

    def _rewrite_log(self, change: Callable[[bytes], tuple[bytes, int]]) -> int:
        with self._lock:
            data, count = change(bytes(self._log))
            if count:
                self._log[:] = data
            return count


def limit_of(path: str) -> int:
    """Return how many bytes the record at a path can have."""
    if path.startswith(("remotes/", "published/")):
        return MAX_REMOTE_BYTES
    return MAX_SHALLOW_BYTES if path == SHALLOW else MAX_REF_BYTES


def name_clash(path: str, other: str) -> InvalidKeyError:
    """Return the error for a ref whose name is a folder of another's, or the reverse."""
    return InvalidKeyError(
        f"ref {path} cannot be beside ref {other}: one name is a folder of the other; choose "
        "another name"
    )


def collected_meanwhile(location: str) -> GuardError:
    """Return the error for a move whose guard is not the record of collections any more."""
    return GuardError(
        f"a collection of garbage in {location} went on while a ref was to be moved; secure what "
        "it is to lead to, and repeat"
    )


def _now() -> int:
    return time.time_ns() // 1000


def _is_record(data: bytes) -> bool:
    try:
        Branch.from_block(data)
    except FormatError:
        return False
    return True


def _shallow_to(commits: Set[CidBytes]) -> bytes | None:
    if not commits:
        return None
    data = seal(
        {
            "type": SHALLOW_TYPE,
            "version": SHALLOW_VERSION,
            "commits": [Link(cid) for cid in sorted(commits)],
        }
    )
    if len(data) > MAX_SHALLOW_BYTES:
        raise LimitError(
            f"a history cut at {len(commits)} commits is more than can be recorded; cut it "
            "further up"
        )
    return data


def _shallow_from(data: bytes) -> frozenset[CidBytes]:
    if len(data) > MAX_SHALLOW_BYTES:
        raise FormatError(f"it has more than {MAX_SHALLOW_BYTES} bytes")
    value = unseal(data)
    if not isinstance(value, dict) or set(value) != {"type", "version", "commits"}:
        raise FormatError("it has missing or unknown fields")
    version = value["version"]
    if value["type"] != SHALLOW_TYPE or version != SHALLOW_VERSION or isinstance(version, bool):
        raise FormatError(f"it is of version {version!r} and {SHALLOW_VERSION} is known here")
    found = value["commits"]
    commits = [link_of(one, DAG_CBOR) for one in found] if isinstance(found, list) else []
    cids = [cid for cid in commits if cid is not None]
    if not cids or len(cids) != len(commits) or cids != sorted(set(cids)):
        raise FormatError("it holds no sorted list of commits")
    return frozenset(cids)
