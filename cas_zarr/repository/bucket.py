"""A repository in a bucket: the marker that makes it one, and the refs in it.

::

    cas-zarr.json     what this is, as in a folder
    blocks/… and others  the blocks, an object each (`cas_zarr.blocks.objectstore`)
    refs/heads/….ref  refs/tags/….ref  refs/conflicts/….ref
    refs/heads/….root the root document that a branch leads to, or led to before its last move
    refs/log/<time>-<random>
                      what moves of refs replaced: a line, or what a log was rewritten to
    refs/gc.ref       the record of the collection of garbage
    refs/shallow.ref  the commits at which the history was cut

There is no lock. A ref is an object that is replaced under the condition that it is the version
that was read, and the record of collections is read after that version; who collects puts each ref
anew, so that nobody can move it whose look at the record is older. Who makes a ref looks once more
behind. What was deleted stays as an empty object, so that conditions can be made of it, too. The
names have an end of their own since many servers cannot hold an object whose name is a folder of
another's.

Behind its record an object has a second line: a JSON array of 16 hex digits for each of its newest
writes, newest first. It tells a writer whose answer was lost whether its write took place, and no
two versions are alike.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.objects import Objects, Token
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import DAG_JSON, CidBytes, HashFunction, cid_of
from cas_zarr.errors import (
    CasZarrError,
    FormatError,
    RemoteError,
    RepositoryNotFoundError,
    StorageError,
)
from cas_zarr.repository.folder import MARKER, decode_marker, encode_marker
from cas_zarr.repository.names import check_name
from cas_zarr.repository.records import MAX_REF_BYTES, Branch
from cas_zarr.repository.refs import (
    GC,
    LOG,
    SHALLOW,
    UNGUARDED,
    GuardError,
    Refs,
    Unguarded,
    collected_meanwhile,
    limit_of,
    name_clash,
)

__all__ = ["BucketRefs", "make_bucket"]

_FOLDER: Final = "refs"
_END: Final = ".ref"
_ROOT: Final = ".root"
_MAX_ROOT: Final = 1 << 17  # bytes; a larger one is worth a round trip of its own
_REMOTES: Final = "remotes"

_WRITES: Final = 32  # that an object tells; more are not made while an answer is waited for
_MAX_TAIL: Final = 1024
_TAIL: Final = re.compile(rb'\n\["[0-9a-f]{16}"(?:,"[0-9a-f]{16}"){0,31}\]')

_PIECE: Final = 4 << 20  # bytes of a rewritten log in one object
_MAX_PIECE: Final = 64 << 20
_MANY: Final = 256  # objects of a log, which are then put into one
_LOOKS: Final = 5  # at a log that is rewritten meanwhile
_FRESH: Final = 1.0  # seconds
_MOST_SEEN: Final = 1024


@dataclass(frozen=True, slots=True)
class _Version:
    """What stands at a path: no record and no token where nothing ever was."""

    record: bytes | None = None
    token: Token | None = None
    writes: tuple[bytes, ...] = ()


class BucketRefs(Refs):
    """Refs as objects of a bucket.

    Parameters
    ----------
    objects : Objects
    read_only : bool
        Whether moving a ref is refused.

    Notes
    -----
    Two refs that are made at the same moment can get names of which one is a folder of the other:
    that is looked for before, and there is no lock. Both work here, and only one fits into a
    folder.
    """

    settling = 120.0  # twice what a request and its repetitions take at most

    def __init__(self, objects: Objects, *, read_only: bool = False) -> None:
        self.objects = objects
        self.read_only = read_only
        self._documents: BlockStore | None = None
        self._root: tuple[CidBytes, bytes] | None = None  # of the branch that was asked for first
        self._seen: dict[str, _Version] = {}  # as they were read last
        self._ahead: dict[str, _Version] = {}
        self._remotes: list[str] | None = None
        self._until = 0.0

    # docstrings inherited

    @property
    def location(self) -> str:
        return self.objects.location

    def open(self, first: str = "") -> HashFunction | None:
        """Return the hash function that the marker tells; None if this is no repository.

        Parameters
        ----------
        first : str
            The branch that is asked for next, at once: it is read at the same time.

        Raises
        ------
        FormatError
            If the marker is damaged, or of a version that is not known here.
        """
        paths = [f"heads/{check_name(first)}"] if first else []
        if first and not self.read_only:
            paths.append(GC)
        marker: list[bytes | None] = [None]
        root: list[memoryview | None] = [None]
        ahead: dict[str, _Version] = {}

        def read_marker() -> None:
            found = self.objects.read(MARKER, limit=MAX_REF_BYTES)
            marker[0] = None if found is None else found[0]

        def read_ahead(path: str) -> None:
            ahead[path] = self._look(path)

        def read_root() -> None:
            with suppress(CasZarrError):  # it can be read as a block
                root[0] = self.objects.get(_root_name(f"heads/{first}"), limit=_MAX_ROOT)

        def list_remotes() -> None:
            self._remotes = self._list_remotes()

        asks: list[Callable[[], None]] = [read_marker, list_remotes]
        asks += [partial(read_ahead, path) for path in paths]
        if first:
            asks.append(read_root)
        map_waiting(lambda ask: ask(), asks)
        if marker[0] is None:
            self._remotes = None
            return None
        self._ahead, self._until = ahead, time.monotonic() + _FRESH
        function = decode_marker(marker[0], self.objects.url)
        if root[0] is not None:
            self._root = cid_of(DAG_JSON, function, root[0]), bytes(root[0])
        return function

    def keep_roots(self, documents: BlockStore) -> None:
        """Keep root documents there, which come with branches and go with them."""
        self._documents = documents
        if self._root is not None:
            documents.put(*self._root)

    def check_marker(self) -> None:
        """Raise FormatError if the marker is missing, or not as it was written."""
        file = f"{self.objects.url}/{MARKER}"
        found = self.objects.read(MARKER, limit=MAX_REF_BYTES)
        if found is None:
            raise FormatError(f"{file} is missing; restore it from a backup")
        if found[0] != encode_marker(decode_marker(found[0], self.objects.url)):
            raise FormatError(f"{file} is not in its canonical form")

    def _load(self, path: str) -> bytes | None:
        ahead = self._ahead.pop(path, None)
        if ahead is None or time.monotonic() > self._until:
            ahead = self._look(path)
        return ahead.record

    def _look(self, path: str) -> _Version:
        found = self.objects.read(_name(path), limit=limit_of(path) + _MAX_TAIL)
        version = _Version() if found is None else _version(*found)
        if len(self._seen) >= _MOST_SEEN:
            self._seen = {}
        self._seen[path] = version
        return version

    def _swap(
        self,
        path: str,
        old: bytes | None,
        new: bytes | None,
        *,
        line: bytes | None = None,
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> bool:
        self.objects.check_swaps()
        self._ahead.clear()
        seen = self._seen.pop(path, None)
        if seen is not None and seen.record == old and self._replace(path, seen, new, line, guard):
            return True
        # It is another version; perhaps one with the same record, or another is expected.
        seen = self._look(path)
        return seen.record == old and self._replace(path, seen, new, line, guard)

    def _replace(
        self,
        path: str,
        seen: _Version,
        new: bytes | None,
        line: bytes | None,
        guard: bytes | Unguarded | None,
    ) -> bool:
        """Replace a version of a ref; False if it is not the one that is there."""
        # After the version was read: a collection that has announced itself and then replaced all
        # refs by their like knows that nobody moves one under an older record.
        asks = [partial(self._note_root, path, new)]
        if guard is not UNGUARDED:
            asks.insert(0, partial(self._check_guard, guard))
        map_waiting(lambda ask: ask(), asks)
        if seen.record is None and new is not None:
            self._check_room(path)
        entry = "" if line is None else self._add_to_log(line)
        own = self._put(path, seen, new)
        if own and seen.record is None and new is not None and guard is not UNGUARDED:
            self._look_again(path, new, own, guard)
        if own:
            return True
        if entry:
            with suppress(CasZarrError):  # a move that never came to be may be told
                self.objects.delete([entry])
        return False

    def _look_again(self, path: str, new: bytes, own: bytes, guard: bytes | None) -> None:
        """Take back a ref that was made just now if a collection began or ended meanwhile.

        A fence puts each ref anew, and cannot do so with one that is not there yet.
        """
        try:
            self._check_guard(guard)
        except GuardError:
            while (made := self._look(path)).record == new and own in made.writes:
                if self._put(path, made, None):  # else a fence has put it anew, or someone moved it
                    break
            raise

    def _check_guard(self, guard: bytes | None) -> None:
        if self._look(GC).record != guard:
            raise collected_meanwhile(self.location)

    def _note_root(self, path: str, new: bytes | None) -> None:
        """Put the root document that a branch will lead to beside it, for its next reader.

        It is known by its own bytes: one that is old, or of a move that failed, does no harm.
        """
        if self._documents is None or new is None or not path.startswith("heads/"):
            return
        with suppress(CasZarrError):  # it can be read as a block
            root = Branch.from_block(new).work
            found = {} if root is None else self._documents.get_held([root])
            for data in found.values():
                if len(data) <= _MAX_ROOT:
                    self.objects.replace(_root_name(path), data)

    def _put(self, path: str, seen: _Version, new: bytes | None) -> bytes:
        """Return the id of the write that replaced a version; none if it is not there by now."""
        self._seen.pop(path, None)
        name = _name(path)
        own = os.urandom(8).hex().encode()
        if new is None:
            gone = seen.record is None or self.objects.swap(name, seen.token, b"")
            return own if gone else b""
        data = new + _tail((own, *seen.writes[: _WRITES - 1]))
        put = self.objects.swap(
            name, seen.token, data, ours=lambda now: own in _version(now, None).writes
        )
        return own if put else b""

    def fence(self) -> None:
        """Put each ref anew: who has read another version of it has to look at the record again."""
        folders = ("heads", "tags", "conflicts", "tracking")
        paths = [f"{folder}/{path}" for folder in folders for path in self._list(folder)]
        map_waiting(self._put_anew, [*paths, SHALLOW])

    def _put_anew(self, path: str) -> None:
        while (seen := self._look(path)).record is not None:
            if self._put(path, seen, seen.record):
                return

    def _paths(self, folder: str) -> Iterator[str]:
        if folder == _REMOTES:
            remotes, self._remotes = self._remotes, None
            if remotes is None or time.monotonic() > self._until:
                remotes = self._list_remotes()
            return iter(remotes)
        return self._list(folder)

    def _list(self, folder: str) -> Iterator[str]:
        top = f"{_FOLDER}/{folder}/"
        for name, size in self.objects.list(top):
            if size and name.endswith(_END):
                yield name[len(top) : -len(_END)]

    def _list_remotes(self) -> list[str]:
        try:
            return list(self._list(_REMOTES))
        except RemoteError as error:
            if not self.read_only or error.status != 403:
                raise
            return []  # a public bucket whose objects may be read and not be listed

    def _check_room(self, path: str) -> None:
        """Refuse a new ref where a name is in the way."""
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(2, len(parts))]

        def clash(other: str) -> str | None:
            if other == path:
                below = next(self._list(path), None)
                return None if below is None else f"{path}/{below}"
            return None if self._look(other).record is None else other

        for other in map_waiting(clash, [path, *above] if len(parts) > 1 else []):
            if other is not None:
                raise name_clash(path, other)

    # -- the log ------------------------------------------------------------------------------

    def _add_to_log(self, line: bytes) -> str:
        name = _log_name(f"{time.time_ns() // 1000:020d}")
        self.objects.create(name, line)
        return name

    def _read_log(self) -> bytes:
        return self._log_objects()[1]

    def _rewrite_log(self, change: Callable[[bytes], tuple[bytes, int]]) -> int:
        names, data = self._log_objects()
        new, count = change(data)
        if not count and len(names) < _MANY:
            return 0
        # First the new ones, where the oldest was, then away with the old ones. In between lines
        # are there twice, which is not told; those that are added now are in objects of their own.
        stem = _log_name(names[0].rpartition("/")[2].partition("-")[0])
        for number, piece in enumerate(_pieces(new)):
            self.objects.create(f"{stem}-{number:06d}", piece)
        self.objects.delete(names)
        return count

    def _log_objects(self) -> tuple[list[str], bytes]:
        """Return the names of the objects of the log, in order, and all of their lines."""
        for _ in range(_LOOKS):
            names = sorted(name for name, size in self.objects.list(f"{_FOLDER}/{LOG}/") if size)
            found = map_waiting(partial(self.objects.get, limit=_MAX_PIECE), names)
            lines: dict[bytes, None] = {}
            for data in found:
                if data is None:  # rewritten since it was listed
                    break
                lines.update(dict.fromkeys(bytes(data).removesuffix(b"\n").split(b"\n")))
            else:
                return names, b"".join(line + b"\n" for line in lines)
        raise RemoteError(f"the log of refs in {self.location} is rewritten all the time; repeat")


def make_bucket(objects: Objects, function: HashFunction) -> HashFunction:
    """Make a repository, or find the one that someone else made meanwhile.

    Returns
    -------
    HashFunction
        That of the repository as it is.

    Raises
    ------
    StorageError
        If the server does as it is asked whatever the condition: nothing is made then.
    """
    objects.check_swaps()
    _check_conditions(objects)
    if objects.create(MARKER, encode_marker(function)):
        return function
    found = BucketRefs(objects).open()
    if found is None:
        raise RepositoryNotFoundError(
            f"the repository in {objects.location} was removed just now; repeat"
        )
    return found


def _check_conditions(objects: Objects) -> None:
    """Try whether the server honours conditions, for there are some that pass over them."""
    name = _name(f"probe/{os.urandom(8).hex()}")
    try:
        made = objects.swap(name, None, b"first") and not objects.swap(name, None, b"second")
        found = objects.read(name, limit=10)
        honoured = (
            made
            and found is not None
            and objects.swap(name, found[1], b"third")
            and not objects.swap(name, found[1], b"fourth")
        )
    finally:
        with suppress(CasZarrError):
            objects.delete([name])
    if not honoured:
        raise StorageError(
            f"{objects.location} does not honour the conditions of a put (if-none-match, "
            "if-match), so writers would overwrite each other's work; use a newer version of the "
            "server, or another one"
        )


def _version(data: bytes, token: Token | None) -> _Version:
    """Take an object of a ref apart. What has no second line of ours is a record as a whole."""
    if not data:
        return _Version(None, token)
    start = data.rfind(b"\n")
    if start < 0 or not _TAIL.fullmatch(data, start):
        return _Version(data, token)
    return _Version(data[:start], token, tuple(data[start + 3 : -2].split(b'","')))


def _name(path: str) -> str:
    return f"{_FOLDER}/{path}{_END}"


def _root_name(path: str) -> str:
    return f"{_FOLDER}/{path}{_ROOT}"


def _tail(writes: tuple[bytes, ...]) -> bytes:
    return b'\n["' + b'","'.join(writes) + b'"]'


def _log_name(when: str) -> str:
    return f"{_FOLDER}/{LOG}/{when}-{os.urandom(8).hex()}"


def _pieces(data: bytes) -> Iterator[bytes]:
    """Cut a log into pieces that end with a line."""
    start = 0
    while start < len(data):
        stop = min(start + _PIECE, len(data))
        if stop < len(data):
            stop = data.rfind(b"\n", start, stop) + 1 or data.find(b"\n", stop) + 1 or len(data)
        yield data[start:stop]
        start = stop
