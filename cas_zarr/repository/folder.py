"""A repository's folder: the marker that makes it one, its lock, and the refs in it.

::

    cas-zarr.json     what this is: type, format version, hash
    cas-zarr.lock     held while a ref moves or the folder is made; it is never removed
    packs/            the blocks
    refs/heads/…  refs/tags/…  refs/conflicts/…
    refs/log          what each move of a ref replaced; lines are added under the lock
    refs/gc           the record of the collection of garbage
    refs/shallow      the commits at which the history was cut

The kernel frees the lock when its holder dies. A file is replaced by writing another one, which
is synced and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import fcntl
import io
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cas_zarr.blocks import disk
from cas_zarr.cid import HashFunction, hash_by_name
from cas_zarr.codecs import dagjson
from cas_zarr.errors import (
    FormatError,
    InvalidCIDError,
    RepositoryNotFoundError,
)
from cas_zarr.repository.records import MAX_REF_BYTES
from cas_zarr.repository.reflog import MAX_LINE, is_torn
from cas_zarr.repository.refs import (
    GC,
    LOG,
    UNGUARDED,
    Refs,
    Unguarded,
    collected_meanwhile,
    limit_of,
    name_clash,
)

__all__ = [
    "MARKER",
    "FolderRefs",
    "decode_marker",
    "encode_marker",
    "is_repository",
    "make_folder",
    "read_marker",
]

MARKER = "cas-zarr.json"
"""The file by which a folder is known as a repository."""

LOCK = "cas-zarr.lock"
REPOSITORY_TYPE = "cas-zarr/repository"
REPOSITORY_VERSION = 1

# Whatever an interrupted creation may leave behind begins with this.
_OURS = "cas-zarr."


def is_repository(path: Path) -> bool:
    """Tell whether `path` is a repository's folder.

    Returns
    -------
    bool
        False where nothing is, or an empty folder.

    Raises
    ------
    RepositoryNotFoundError
        If it is a file, or a folder that holds something else.
    """
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise RepositoryNotFoundError(
            f"{path} is a file, and a repository is a folder; give another path"
        ) from None
    except OSError as error:
        raise disk.failure(error, "list it", str(path)) from error
    if MARKER in names:
        return True
    begun = {"packs", "refs"} if LOCK in names else set()
    others = sorted(name for name in names if not name.startswith(_OURS) and name not in begun)
    if others:
        raise RepositoryNotFoundError(
            f"{path} is no cas_zarr repository and is not empty (it holds {others[0]!r}); nothing "
            "is written there: give the path of a repository, or of a new or empty folder"
        )
    return False


def read_marker(path: Path) -> HashFunction:
    """Return the hash function of the repository at `path`.

    Raises
    ------
    FormatError
        If the marker is damaged, or of a version that is not known here.
    """
    file = path / MARKER
    data = _read_file(file)
    if data is None:
        raise RepositoryNotFoundError(f"{path} is no cas_zarr repository: {MARKER} is missing")
    return decode_marker(data, str(path))


def encode_marker(function: HashFunction) -> bytes:
    """Return the marker of a repository."""
    return dagjson.encode(
        {"type": REPOSITORY_TYPE, "version": REPOSITORY_VERSION, "hash": function.name}
    )


def decode_marker(data: bytes, where: str) -> HashFunction:
    """Return the hash function that a marker tells; FormatError as of `read_marker`."""
    file = f"{where}/{MARKER}"
    try:
        value = dagjson.decode(data)
    except FormatError as error:
        raise FormatError(f"{file} is damaged: {error}; restore it from a backup") from None
    if not isinstance(value, dict) or value.get("type") != REPOSITORY_TYPE:
        raise FormatError(f"{file} is no marker of a cas_zarr repository")
    version = value.get("version")
    if version != REPOSITORY_VERSION or isinstance(version, bool):
        raise FormatError(
            f"{where} is a repository of format version {version!r}; this cas_zarr knows "
            f"{REPOSITORY_VERSION}: use a newer one"
        )
    try:
        return hash_by_name(str(value.get("hash")))
    except InvalidCIDError as error:
        raise FormatError(f"{file} is damaged: {error}") from None


def make_folder(path: Path, function: HashFunction) -> HashFunction:
    """Make a repository at `path`, or find the one that someone else made meanwhile.

    Returns
    -------
    HashFunction
        That of the repository as it is.
    """
    if is_repository(path):
        return read_marker(path)
    _make_folder(path)
    with _locked(path):
        if is_repository(path):
            return read_marker(path)
        for folder in ("packs", "refs/heads", "refs/tags"):
            _make_folder(path / folder)
        _replace(path / MARKER, encode_marker(function))  # last: now the folder is whole
    return function


class FolderRefs(Refs):
    """Refs as files of a repository's folder."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._folder = path / "refs"
        self.read_only = read_only

    # docstrings inherited

    @property
    def location(self) -> str:
        return str(self._path)

    def _load(self, path: str) -> bytes | None:
        return _read_file(self._folder / path, limit_of(path))

    def _swap(
        self,
        path: str,
        old: bytes | None,
        new: bytes | None,
        *,
        line: bytes | None = None,
        guard: bytes | Unguarded | None = UNGUARDED,
    ) -> bool:
        file = self._folder / path
        with _locked(self._path):
            if self._load(path) != old:
                return False
            if guard is not UNGUARDED and self._load(GC) != guard:
                raise collected_meanwhile(self.location)
            if old is None and new is not None:
                self._make_room(path)
            if line is not None:
                _append(self._folder / LOG, line)
            if new is not None:
                _replace(file, new)
            elif old is not None:
                self._remove(file)
            return True

    def _read_log(self) -> bytes:
        file = self._folder / LOG
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise disk.failure(error, "read it", str(file)) from error

    def _rewrite_log(self, change: Callable[[bytes], tuple[bytes, int]]) -> int:
        with _locked(self._path):
            data, count = change(self._read_log())
            if count:
                _replace(self._folder / LOG, data)
            return count

    def _paths(self, folder: str) -> Iterator[str]:
        top = self._folder / folder
        for parent, folders, files in os.walk(top, onerror=_cannot_list):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith("."):  # one that was being written when its writer died
                    yield os.path.relpath(os.path.join(parent, name), top)

    def _make_room(self, path: str) -> None:
        """Make the folders of a new ref; refuse where a name is in the way."""
        file = self._folder / path
        if file.is_dir():
            other = next(self._paths(path), None)
            if other is not None:
                raise name_clash(path, f"{path}/{other}")
            self._prune(file)
        for parent in file.parents:
            if parent.is_dir():
                break
            if parent.is_file():
                raise name_clash(path, str(parent.relative_to(self._folder)))
        _make_folder(file.parent)

    def _remove(self, file: Path) -> None:
        try:
            disk.unlink(str(file))
        except OSError as error:
            raise disk.failure(error, "remove it", str(file)) from error
        _sync_folder(file.parent)
        for parent in file.parents:
            if parent.parent == self._folder or parent == self._folder:
                break
            try:
                parent.rmdir()
            except OSError:  # it still holds another ref
                break

    def _prune(self, folder: Path) -> None:
        """Remove a tree of empty folders."""
        for parent, _, files in os.walk(folder, topdown=False):
            for name in files:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(parent, name))  # half-written, of a dead writer
            with suppress(FileNotFoundError):
                os.rmdir(parent)


def _cannot_list(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise disk.failure(error, "list it", str(error.filename)) from error


_held: weakref.WeakSet[io.FileIO] = weakref.WeakSet()


def _let_go() -> None:
    # A child of fork shares the lock; were it to keep it, it would outlive its holder.
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the repository at `path`, against other threads and processes."""
    name = path / LOCK
    try:
        file = io.FileIO(name, "a")  # wherever an interrupt comes, it closes itself
        _held.add(file)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise disk.failure(error, "lock it", str(name)) from error
    try:
        yield
    finally:
        if not file.closed:  # a child that was forked by another thread just now may have it, too
            disk.unlock(file.fileno())
            file.close()


def _read_file(file: Path, limit: int = MAX_REF_BYTES) -> bytes | None:
    try:
        with open(file, "rb") as stream:
            return stream.read(limit + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk.failure(error, "read it", str(file)) from error


def _append(file: Path, line: bytes) -> None:
    """Add a line to the log, durably; what a writer that died has left of one is cut off."""
    path = str(file)
    created = False
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = disk.create(path)
            created = True
        try:
            end = os.fstat(descriptor).st_size
            start = max(0, end - MAX_LINE)
            tail = os.pread(descriptor, end - start, start).rpartition(b"\n")[2]
            if tail and is_torn(tail):
                end -= len(tail)
                disk.truncate(descriptor, end)
            elif tail:  # a whole line, or what is no line of ours at all: it is damage, and stays
                line = b"\n" + line
            try:
                disk.pwrite(descriptor, line, end)
                disk.fsync(descriptor)
            except OSError:
                with suppress(OSError):  # the ref will not move
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        if created:
            disk.fsync_folder(str(file.parent))
    except OSError as error:
        raise disk.failure(error, "write it", path) from error


def _replace(file: Path, data: bytes) -> None:
    """Write `file` so that it is at any time what it was or what it shall be, durably."""
    # One name for all drafts: they are written under the lock, so one that is there is what a
    # writer left that died, and is overwritten.
    draft = str(file.with_name(f"{_OURS}draft" if file.name == MARKER else ".draft"))
    try:
        disk.unlink(draft)
        descriptor = disk.create(draft)
        try:
            disk.pwrite(descriptor, data, 0)
            disk.fsync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(draft, str(file))
    except OSError as error:
        with suppress(OSError):
            os.unlink(draft)
        raise disk.failure(error, "write it", str(file)) from error
    _sync_folder(file.parent)


def _make_folder(folder: Path) -> None:
    try:
        disk.make_folder(str(folder))
    except OSError as error:
        raise disk.failure(error, "make the folder", str(folder)) from error


def _sync_folder(folder: Path) -> None:
    try:
        disk.fsync_folder(str(folder))
    except OSError as error:
        raise disk.failure(error, "sync it", str(folder)) from error
