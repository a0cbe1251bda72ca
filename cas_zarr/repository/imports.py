"""Import of an existing Zarr hierarchy, byte for byte.

Keys and values are copied as they lie, so every format version, codec and extension comes through
unchanged, the result has the CIDs that writing it here would have given, and a second import of
the same bytes stores nothing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cas_zarr.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    NotFoundError,
    StorageError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.parallel import map_ordered
from cas_zarr.repository.session import Session
from cas_zarr.tree.keys import check_key

__all__ = [
    "FolderSource",
    "ImportReport",
    "Progress",
    "import_zarr",
    "make_room",
    "refuse_itself",
    "require_room",
    "write_parents",
]

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes in all."""

_DOCUMENTS = (".zgroup", ".zarray", ".zattrs", ".zmetadata", "zarr.json")
_GROUP_V2 = b'{\n    "zarr_format": 2\n}'
_GROUP_V3 = b'{\n  "attributes": {},\n  "zarr_format": 3,\n  "node_type": "group"\n}'

_BATCH_BYTES = 32 << 20
_BATCH_KEYS = 256
_FLUSH_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import has done.

    Attributes
    ----------
    source : str
        Where the data came from.
    path : str
        The node it was put at, "" for the root.
    keys : int
        Number of keys written.
    size : int
        Their values' length in bytes, whether or not the repository held them already.
    """

    source: str
    path: str
    keys: int
    size: int


class Source(ABC):
    """A place that holds a Zarr hierarchy as keys and values."""

    location: str

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return every key and the length of its value in bytes."""

    @abstractmethod
    def values(self, keys: Sequence[str]) -> Sequence[bytes]:
        """Return the values of keys, in order."""


class FolderSource(Source):
    """A folder on the disk; links are followed."""

    def __init__(self, root: Path) -> None:
        self.location = str(root)
        self._root = root

    def sizes(self) -> dict[str, int]:
        return dict(self._walk(self._root, ""))

    def _walk(self, folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    yield prefix + entry.name, entry.stat().st_size
                elif entry.is_dir():
                    if prefix.count("/") > 64:  # deeper than any key may be: a loop of links
                        raise InvalidArgumentError(
                            f"{entry.path} lies deeper than 64 folders; is it a loop of links?"
                        )
                    yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
                else:
                    raise InvalidArgumentError(
                        f"{entry.path} is neither a file nor a folder, or a link to nothing"
                    )

    def values(self, keys: Sequence[str]) -> Sequence[bytes]:
        return map_ordered(self._value, keys)

    def _value(self, key: str) -> bytes:
        return (self._root / key).read_bytes()


class _FileSystem(Source):
    """A folder behind fsspec: object storage, HTTP, an archive."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise MissingDependencyError(
                f"reading {url} needs fsspec; install cas_zarr[import]"
            ) from None
        self.location = url.removeprefix("zip://::")
        try:
            with _reading(self.location):
                self._fs: Any
                self._fs, root = url_to_fs(url)
        except ImportError as error:
            raise MissingDependencyError(
                f"reading {url} needs a further package: {error}"
            ) from None
        except ValueError as error:
            raise InvalidArgumentError(f"{url} cannot be read: {error}") from None
        self._root = str(root).rstrip("/")

    def sizes(self) -> dict[str, int]:
        with _reading(self.location):
            found = self._fs.find(self._root, detail=True)
        start = len(self._root) + 1 if self._root else 0
        return {
            name[start:].lstrip("/"): int(entry.get("size") or 0)
            for name, entry in found.items()
            if entry.get("type") == "file"
        }

    def values(self, keys: Sequence[str]) -> Sequence[bytes]:
        paths = {key: f"{self._root}/{key}" if self._root else key for key in keys}
        with _reading(self.location):
            found = self._fs.cat(list(paths.values()))
        if isinstance(found, bytes):  # what fsspec gives for a single path
            return [found]
        return [found[path] if path in found else found[f"/{path}"] for path in paths.values()]


@contextmanager
def _reading(location: str) -> Iterator[None]:
    """Take errors of whatever is behind fsspec, an archive or a server, for those of reading."""
    try:
        yield
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:
        raise StorageError(
            f"reading {location} failed: {error or type(error).__name__}; see that it is whole, "
            "then import it again"
        ) from error


def import_zarr(
    source: str | os.PathLike[str],
    session: Session,
    *,
    path: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Copy a Zarr hierarchy into a session, byte for byte.

    Afterwards the node at `path` holds exactly the keys and values of the source. Groups above it
    that have no document yet get an empty one. What was copied is made durable after each GiB, so
    an import that was interrupted can be run again: what is there costs a hash and no storage.
    Others see the data when all are there. If it fails, `Session.discard` drops what it has done.

    Parameters
    ----------
    source : str or path
        A folder, a ``.zip`` file, or a URL that fsspec understands (``s3://``, ``https://``, ...).
    session : Session
        Where to write.
    path : str
        Node to put the hierarchy at; "" is the root.
    replace : bool
        Whether keys below `path` that the source does not have are removed. Without it they make
        the import fail before anything is written.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Raises
    ------
    NotFoundError
        If there is no Zarr hierarchy at `source`.
    InvalidArgumentError
        If `path` holds something else already and `replace` is not set.
    InvalidKeyError
        If a key of the source cannot be stored.
    StorageError
        If reading the source fails.
    """
    opened = _open(source)
    path = path.strip("/")
    prefix = path + "/" if path else ""
    try:
        sizes = opened.sizes()
        if not any(key.rpartition("/")[2] in _DOCUMENTS for key in sizes):
            raise NotFoundError(
                f"no zarr array or group is at {opened.location}: there is no zarr.json, .zgroup "
                "or .zarray; name the folder that holds one"
            )
        refuse_itself(opened, session.repository.location)
        for key in sizes:
            check_key(prefix + key)
        target = session.prepare()
        make_room(target, path, sizes, replace=replace)
        _copy(opened, sizes, session, prefix, progress)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"reading {opened.location} failed: {error}") from error
    session.flush()
    return ImportReport(opened.location, path, len(sizes), sum(sizes.values()))


def make_room(
    target: CASMapping, path: str, keys: Collection[str], *, replace: bool = False
) -> None:
    """Prepare a path for exactly the keys of an import, and the groups above it.

    Raises
    ------
    InvalidArgumentError
        If there is another key, and it is not to be replaced.
    """
    prefix = path + "/" if path else ""
    if replace:
        for key in [key for key in target.list_keys(prefix) if key[len(prefix) :] not in keys]:
            target.discard(key)
    else:
        require_room(target, path, lambda rest: rest in keys)
    write_parents(target, path, keys)


def require_room(target: CASMapping, path: str, known: Callable[[str], bool]) -> None:
    """Refuse to mix an import with what lies at `path` already.

    `known` tells of a key relative to `path` whether the import is going to write it.

    Raises
    ------
    InvalidArgumentError
        If there is another key.
    """
    prefix = path + "/" if path else ""
    for key in target.list_keys(prefix):
        if not known(key[len(prefix) :]):
            raise InvalidArgumentError(
                f"{path or 'the root'} holds {key!r}, which the source does not have; import to "
                "another path, or replace what is there (--replace)"
            )


def _open(source: str | os.PathLike[str]) -> Source:
    text = os.fspath(source)
    if "://" in text or "::" in text:
        return _FileSystem(text)
    local = Path(text)
    if local.is_dir():
        return FolderSource(local)
    if local.is_file() and local.suffix == ".zip":
        return _FileSystem(f"zip://::{local}")
    if local.exists():
        raise InvalidArgumentError(
            f"{text} is neither a folder with a zarr nor a .zip, netCDF or .car file"
        )
    raise NotFoundError(f"{text} does not exist; name a folder, a .zip file or a url")


def refuse_itself(source: Source, repository: str) -> None:
    if isinstance(source, FolderSource):
        folder, inside = Path(source.location).resolve(), Path(repository).resolve()
        if folder == inside or folder in inside.parents:
            raise InvalidArgumentError(
                f"{source.location} holds the repository {repository} that it is to be imported "
                "into; name a folder beside it"
            )


def write_parents(target: CASMapping, path: str, keys: Iterable[str]) -> None:
    """Give the groups above a path that have no document yet an empty one.

    `keys` are those at the path: without a ``zarr.json`` among them they are of format 2.
    """
    if not path:
        return
    v2 = not any(key.rpartition("/")[2] == "zarr.json" for key in keys)
    names = path.split("/")[:-1]
    for parent in ("/".join(names[:depth]) for depth in range(len(names) + 1)):
        prefix = parent + "/" if parent else ""
        if not any(target.exists(prefix + name) for name in ("zarr.json", ".zgroup", ".zarray")):
            target.set_value(
                prefix + (".zgroup" if v2 else "zarr.json"), _GROUP_V2 if v2 else _GROUP_V3
            )


def _copy(
    source: Source,
    sizes: dict[str, int],
    session: Session,
    prefix: str,
    progress: Progress | None,
) -> None:
    total = sum(sizes.values())
    done = flushed = 0
    for batch in _batches(sizes):
        target = session.prepare()
        for key, value in zip(batch, source.values(batch), strict=True):
            target.set_value(prefix + key, value)
            done += len(value)
        if progress is not None:
            progress(done, total)
        if done - flushed >= _FLUSH_BYTES:
            target.flush()  # durable, and shown to nobody: half an import is no state of a branch
            flushed = done


def _batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Yield keys in groups that fit in memory, documents first.

    A value of a sharded array is cut at its inner chunks, for which its array has to be known.
    """
    batch: list[str] = []
    size = 0
    for key in sorted(sizes, key=lambda key: (key.rpartition("/")[2] not in _DOCUMENTS, key)):
        if batch and (len(batch) == _BATCH_KEYS or size + sizes[key] > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += sizes[key]
    if batch:
        yield batch
