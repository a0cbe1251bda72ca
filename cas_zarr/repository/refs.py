"""Refs: names that move. Everything else in a repository never changes.

A branch is one record of a commit and a working root, a tag is a commit, a kept root is what a
writer could not place. All three live under names and move by compare-and-swap only, so that two
writers never overwrite each other.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from cas_zarr.cid import DAG_CBOR, DAG_JSON, CidBytes, Link, codec_of, format_cid
from cas_zarr.codecs import dagjson
from cas_zarr.errors import (
    ConflictError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    InvalidKeyError,
    ReadOnlyError,
)
from cas_zarr.repository.names import check_name

__all__ = ["Branch", "MemoryRefs", "Refs", "Tag"]

REF_VERSION = 1
MAX_REF_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a branch stands.

    Attributes
    ----------
    commit : CidBytes or None
        The newest commit; None before the first.
    work : CidBytes or None
        The root that writers of the branch share; None where it is the commit's root.
    """

    commit: CidBytes | None = None
    work: CidBytes | None = None

    def to_block(self) -> bytes:
        """Return the record as canonical DAG-JSON."""
        return dagjson.encode(
            {
                "type": "cas-zarr/branch",
                "version": REF_VERSION,
                "commit": None if self.commit is None else Link(self.commit),
                "work": None if self.work is None else Link(self.work),
            }
        )

    @classmethod
    def from_block(cls, data: bytes) -> Self:
        """Read a record; FormatError if it is none."""
        value = _record(data, "cas-zarr/branch", {"commit", "work"})
        return cls(_link(value["commit"], DAG_CBOR), _link(value["work"], DAG_JSON))


@dataclass(frozen=True, slots=True)
class Tag:
    """A fixed name of a commit."""

    commit: CidBytes

    def to_block(self) -> bytes:
        """Return the record as canonical DAG-JSON."""
        return dagjson.encode(
            {"type": "cas-zarr/tag", "version": REF_VERSION, "commit": Link(self.commit)}
        )

    @classmethod
    def from_block(cls, data: bytes) -> Self:
        """Read a record; FormatError if it is none."""
        commit = _link(_record(data, "cas-zarr/tag", {"commit"})["commit"], DAG_CBOR)
        if commit is None:
            raise FormatError("a tag has no commit")
        return cls(commit)


_Record = TypeVar("_Record", Branch, Tag)


class Refs(ABC):
    """The refs of a repository.

    A backend provides a map of path to bytes whose entries move by compare-and-swap.

    Attributes
    ----------
    read_only : bool
        Whether moving a ref is refused.
    """

    read_only: bool = False

    # -- what a backend provides ------------------------------------------------------------

    @abstractmethod
    def _load(self, path: str) -> bytes | None:
        """Return the bytes at `path`, or None."""

    @abstractmethod
    def _swap(self, path: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace `old` by `new` at `path` durably; False if `old` is not what is there."""

    @abstractmethod
    def _paths(self, folder: str) -> Iterator[str]:
        """Yield the paths below `folder`, relative to it, in no order."""

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

    def update(self, name: str, *, expected: Branch | None, new: Branch | None) -> None:
        """Move a branch from one record to another.

        Parameters
        ----------
        name : str
            The branch.
        expected : Branch or None
            What it is now; None means that it must not exist.
        new : Branch or None
            What it becomes; None deletes it.

        Raises
        ------
        ConflictError
            If it is not what was expected; nothing is changed.
        InvalidKeyError
            If the name cannot be stored.
        """
        self._move(f"heads/{check_name(name)}", "branch", name, expected, new)

    # -- tags -------------------------------------------------------------------------------

    def tag(self, name: str) -> Tag | None:
        """Return a tag, or None if there is no such tag."""
        return self._read(Tag, f"tags/{check_name(name)}")

    def tags(self) -> list[str]:
        """Return the names of all tags, sorted."""
        return sorted(self._paths("tags"))

    def create_tag(self, name: str, tag: Tag) -> None:
        """Give a commit a fixed name; ConflictError if the name is taken."""
        self._move(f"tags/{check_name(name)}", "tag", name, None, tag)

    def delete_tag(self, name: str, *, expected: Tag) -> None:
        """Take a tag away; ConflictError if it is not what was expected."""
        self._move(f"tags/{check_name(name)}", "tag", name, expected, None)

    # -- roots that could not be placed -------------------------------------------------------

    def keep(self, branch: str, record: Branch) -> str:
        """Keep a working root that could not be placed on `branch`; return its name.

        The name, ``conflicts/<branch>/<end of the cid>``, can be opened as a version.
        """
        if record.work is None:
            raise InvalidArgumentError("there is no working root to keep")
        name = f"conflicts/{check_name(branch)}/{format_cid(record.work)[-16:]}"
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        data = record.to_block()
        while not self._swap(name, old := self._load(name), data):
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

    def forget(self, name: str) -> None:
        """Let a kept root go. It is no error if it is gone."""
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        if name.startswith("conflicts/") and (old := self._load(check_name(name))) is not None:
            self._swap(name, old, None)

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

    def _move(
        self,
        path: str,
        kind: str,
        name: str,
        expected: Branch | Tag | None,
        new: Branch | Tag | None,
    ) -> None:
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        old = None if expected is None else expected.to_block()
        if self._swap(path, old, None if new is None else new.to_block()):
            return
        now = self._load(path)
        if expected is None:
            raise ConflictError(
                f"{kind} {name!r} exists already in {self.location}; choose another name, or "
                "move it from what it is now"
            )
        state = "gone" if now is None else "another by now"
        raise ConflictError(
            f"{kind} {name!r} in {self.location} is {state}: another writer was here first; "
            "read it again and repeat"
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
        self._lock: threading.Lock = threading.Lock() if of is None else of._lock
        self.read_only = read_only

    # docstrings inherited

    @property
    def location(self) -> str:
        return "memory"

    def _load(self, path: str) -> bytes | None:
        return self._refs.get(path)

    def _swap(self, path: str, old: bytes | None, new: bytes | None) -> bool:
        with self._lock:
            if self._refs.get(path) != old:
                return False
            if new is None:
                self._refs.pop(path, None)
                return True
            if old is None:
                for other in self._refs:
                    if other.startswith(path + "/") or path.startswith(other + "/"):
                        raise name_clash(path, other)
            self._refs[path] = new
            return True

    def _paths(self, folder: str) -> Iterator[str]:
        prefix = folder + "/"
        return iter([path[len(prefix) :] for path in list(self._refs) if path.startswith(prefix)])


def name_clash(path: str, other: str) -> InvalidKeyError:
    """Return the error for a ref whose name is a folder of another's, or the reverse."""
    return InvalidKeyError(
        f"ref {path} cannot be beside ref {other}: one name is a folder of the other; choose "
        "another name"
    )


def _record(data: bytes, kind: str, fields: set[str]) -> dict[str, Any]:
    if len(data) > MAX_REF_BYTES:
        raise FormatError(f"it has more than {MAX_REF_BYTES} bytes")
    value = dagjson.decode(data)
    if not isinstance(value, dict) or value.get("type") != kind:
        raise FormatError(f"it is no {kind} record")
    version = value.get("version")
    if version != REF_VERSION or isinstance(version, bool):
        raise FormatError(f"it has format version {version!r} and {REF_VERSION} is known here")
    if set(value) != fields | {"type", "version"}:
        raise FormatError("it has missing or unknown fields")
    return value


def _link(value: object, codec: int) -> CidBytes | None:
    if value is None:
        return None
    if not isinstance(value, Link):
        raise FormatError("it holds something else than a link")
    try:
        found = codec_of(value.cid)
    except InvalidCIDError as error:
        raise FormatError(str(error)) from None
    if found != codec:
        raise FormatError(f"it links {format_cid(value.cid)}, which is of another codec")
    return value.cid
