"""References: blocks whose bytes lie elsewhere, as a range of a file or of what a server has.

A repository's folder may have, beside its packs, ``references/<32 hex digits>.refs``::

    magic, 16 bytes | length of the header, u64 | header, DAG-JSON | a row for each block | BLAKE3

The header tells a location and the names of sources below it; a row is a multihash, the number of
its source, an offset and a length, all in little endian, sorted by digest. Such a file never
changes. It is local to its repository, as packs are: no root knows of it, and whoever copies blocks
from here gets their bytes. What is read is verified as all blocks are, so a source that has changed
is refused, never served.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks import disk
from cas_zarr.blocks.base import checked
from cas_zarr.blocks.carsource import ByteSource, is_url, open_source
from cas_zarr.blocks.index import KEY_SIZE
from cas_zarr.blocks.readonly import ReadOnlyBlocks
from cas_zarr.blocks.referencetable import Place, Table
from cas_zarr.cid import RAW, CidBytes, CidLike, format_cid, matches
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    FormatError,
    RemoteError,
    StorageError,
)

if TYPE_CHECKING:
    from cas_zarr.blocks.http import HttpClient

__all__ = ["ReferencedBlocks", "References", "SourceReport"]

SUFFIX: Final = ".refs"
_PART: Final = ".part"
_ASIDE: Final = ".aside"  # what nothing in use needed, until that is sure
_OPEN: Final = 32  # files on servers of which the begin, 256 KiB, is kept
_ABANDONED: Final = 86400  # seconds after which nobody goes on writing a file


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What is known of some sources that lie at one location.

    Attributes
    ----------
    location : str
        A folder, a file or a URL.
    blocks, size : int
        References to it, and their bytes.
    missing : tuple of str
        Files of it that are gone, or shorter than they were. A server is not asked.
    """

    location: str
    blocks: int
    size: int
    missing: tuple[str, ...]


class References:
    """The files of references in a folder, which need not be there.

    Any number of processes use it at once: files are added and removed, never changed, and who
    does not find a block looks at the folder again.

    Parameters
    ----------
    path : str or PathLike

    Attributes
    ----------
    damaged : dict of str to str
        Files that cannot be read, with the reason.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.damaged: dict[str, str] = {}
        self._tables: dict[str, Table] = {}
        self._unread = False
        self._lock = threading.Lock()
        self._web: OrderedDict[str, ByteSource] = OrderedDict()
        self._client: HttpClient | None = None
        self._aside: dict[str, tuple[Table, NDArray[np.bool_]]] = {}

    def tables(self) -> dict[str, Table]:
        """Return the tables by the name of their files, as they are now."""
        try:
            names = {name for name in os.listdir(self.path) if name.endswith(SUFFIX)}
        except FileNotFoundError:
            names = set()
        except OSError as error:
            raise disk.failure(error, "look at the references", self.path) from error
        with self._lock:
            if self._unread or names != self._tables.keys() | self.damaged.keys():
                tables, damaged = self._tables, {}
                self._unread = False
                fresh: dict[str, Table] = {}
                for name in sorted(names):
                    try:
                        fresh[name] = tables[name] if name in tables else self._load(name)
                    except FileNotFoundError:  # replaced meanwhile
                        continue
                    except (FormatError, OSError) as error:
                        self._unread |= isinstance(error, OSError)  # next time it may be read
                        damaged[name] = f"{os.path.join(self.path, name)} is damaged: {error}"
                self._tables, self.damaged = fresh, damaged
            return self._tables

    def find(self, cid: CidBytes) -> Iterator[Place]:
        """Yield the places where the bytes of a block should lie."""
        key = cid[-KEY_SIZE:]
        for table in self.tables().values():
            row = table.find(key)
            if row is not None:
                yield table.place(row)

    def has_array(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell for each of many multihashes, (n, 34), whether a source is there that has it."""
        held = np.zeros(len(keys), bool)
        for table in self.tables().values():
            left = np.flatnonzero(~held)
            rows = table.find_many(keys[left])
            found = rows >= 0
            there = table.there(table.rows[rows[found]])
            held[left[found]] = there
        return held

    def read(self, place: Place) -> bytes | None:
        """Return the bytes at a place, unverified; None where the source is gone.

        Raises
        ------
        StorageError
            If it cannot be read.
        """
        if is_url(place.source):
            return self._read_web(place)
        try:
            fd = os.open(place.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return None
        except OSError as error:
            raise disk.failure(error, "read what is referred to", place.source) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            data = os.pread(fd, place.size, place.offset)
            while 0 < len(data) < place.size:
                more = os.pread(fd, place.size - len(data), place.offset + len(data))
                if not more:
                    break
                data += more
            return data
        except OSError as error:
            raise disk.failure(error, "read what is referred to", place.source) from error
        finally:
            os.close(fd)

    def add(self, table: Table) -> str:
        """Hold a table, durably; return the name of its file."""
        name = f"{secrets.token_hex(16)}{SUFFIX}"
        path = os.path.join(self.path, name)
        try:
            disk.make_folder(self.path)
            fd = disk.create(path + _PART)
            try:
                disk.pwrite(fd, table.to_bytes(), 0)
                disk.fsync(fd)
            finally:
                os.close(fd)
            disk.rename(path + _PART, path)
            disk.fsync_folder(self.path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(path + _PART)
            raise disk.failure(error, "write references", path) from error
        return name

    def remove(self, name: str) -> None:
        """Forget a table."""
        try:
            disk.unlink(os.path.join(self.path, name))
            disk.fsync_folder(self.path)
        except OSError as error:
            raise disk.failure(error, "remove references", self.path) from error

    def repoint(self, old: str, new: str) -> int:
        """Look for sources at another place from now on; return how many blocks that concerns."""
        count = 0
        for name, table in list(self.tables().items()):
            moved = table.moved(old, new)
            if moved is not None:
                self.add(moved)
                self.remove(name)
                count += len(moved)
        return count

    def set_aside(self, marks: dict[str, NDArray[np.bool_]], before: int) -> bool:
        """Hide the rows that are not marked, until `drop` or `restore`; tell if there are any.

        What one before left when it was killed comes back first.

        Parameters
        ----------
        marks : dict of str to array of bool
            A mark for each row of some tables.
        before : int
            Files that are younger than this, in microseconds since 1970-01-01 UTC, stay.
        """
        self._tidy()
        tables = self.tables()
        for name, mask in marks.items():
            table = tables.get(name)
            if table is None or len(mask) != len(table) or mask.all():
                continue
            path = os.path.join(self.path, name)
            try:
                if os.stat(path).st_mtime_ns // 1000 > before:
                    continue
            except FileNotFoundError:
                continue
            if mask.any():
                self.add(table.kept(mask))
            self._rename(name, name + _ASIDE)
            self._aside[name] = table, mask.copy()
        return bool(self._aside)

    def drop(self, marks: dict[str, NDArray[np.bool_]]) -> int:
        """Forget what was set aside, but what is marked by now; return how many rows."""
        count = 0
        for name, (table, kept) in list(self._aside.items()):
            back = marks[name] & ~kept
            if back.any():
                self.add(table.kept(back))
            self.remove(name + _ASIDE)
            del self._aside[name]
            count += int((~(kept | back)).sum())
        return count

    def restore(self) -> None:
        """Take back what was set aside."""
        for name in list(self._aside):
            self._rename(name + _ASIDE, name)
            del self._aside[name]

    def reports(self) -> list[SourceReport]:
        """Return what is known of the sources, by location."""
        found: dict[str, list[tuple[Table, NDArray[np.void]]]] = {}
        for table in self.tables().values():
            if table.location:
                found.setdefault(table.location, []).append((table, table.rows))
                continue
            for number, name in enumerate(table.names):
                rows = table.rows[table.rows["source"] == number]
                found.setdefault(name, []).append((table, rows))
        out = []
        for location, parts in sorted(found.items()):
            gone = {
                table.source(number)
                for table, rows in parts
                for number in np.unique(rows["source"][~table.there(rows)]).tolist()
            }
            blocks = sum(len(rows) for _, rows in parts)
            size = sum(int(rows["size"].sum(dtype=np.int64)) for _, rows in parts)
            out.append(SourceReport(location, blocks, size, tuple(sorted(gone))))
        return out

    def close(self) -> None:
        """Release connections and memory."""
        with self._lock:
            client, self._client = self._client, None
            self._web.clear()
            self._tables = {}
        if client is not None:
            client.close()

    def _load(self, name: str) -> Table:
        with open(os.path.join(self.path, name), "rb") as file:
            return Table.from_bytes(file.read())

    def _rename(self, name: str, new: str) -> None:
        try:
            disk.rename(os.path.join(self.path, name), os.path.join(self.path, new))
            disk.fsync_folder(self.path)
        except OSError as error:
            raise disk.failure(error, "set references aside", self.path) from error

    def _tidy(self) -> None:
        """Take back, and remove, what processes left that were killed."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk.failure(error, "look at the references", self.path) from error
        for name in names:
            if name.endswith(SUFFIX + _ASIDE):
                self._rename(name, name.removesuffix(_ASIDE))
            elif name.endswith(SUFFIX + _PART):
                with suppress(FileNotFoundError):
                    status = os.stat(os.path.join(self.path, name))
                    if status.st_mtime < time.time() - _ABANDONED:
                        self.remove(name)

    def _read_web(self, place: Place) -> bytes:
        source = self._open_web(place.source)
        try:
            return source.read_at(place.offset, place.size)
        except RemoteError:  # it may have been replaced by what has these bytes, too
            with self._lock:
                if self._web.get(place.source) is source:
                    del self._web[place.source]
            return self._open_web(place.source).read_at(place.offset, place.size)

    def _open_web(self, url: str) -> ByteSource:
        from cas_zarr.blocks.http import HttpClient

        with self._lock:
            found = self._web.get(url)
            if found is not None:
                self._web.move_to_end(url)
                return found
            if self._client is None:
                self._client = HttpClient()
            client = self._client
        opened = open_source(url, client=client)
        with self._lock:
            source = self._web.setdefault(url, opened)
            if len(self._web) > _OPEN:
                self._web.popitem(last=False)
        return source


class ReferencedBlocks(ReadOnlyBlocks):
    """The blocks that references lead to.

    Parameters
    ----------
    references : References
    """

    def __init__(self, references: References) -> None:
        self.references = references

    # docstrings inherited

    @property
    def location(self) -> str:
        return f"the references in {self.references.path}"

    def __repr__(self) -> str:
        return f"ReferencedBlocks({self.references.path!r})"

    def _read(self, cid: CidBytes) -> bytes | None:
        trouble: StorageError | None = None
        changed: bytes | None = None
        for place in self.references.find(cid):
            try:
                data = self.references.read(place)
            except StorageError as error:
                trouble = error
                continue
            if data is not None and matches(cid, data):
                return data
            changed = data if changed is None else changed
        if changed is None and trouble is not None:
            raise trouble
        return changed

    def _has(self, cid: CidBytes) -> bool:
        return any(place.is_there() for place in self.references.find(cid))

    def _size(self, cid: CidBytes) -> int | None:
        return next((p.size for p in self.references.find(cid) if p.is_there()), None)

    def list(self) -> Iterator[CidBytes]:
        """Yield the CID of every block that is referred to, as one of codec raw."""
        done: list[Table] = []
        for table in self.references.tables().values():
            for key in map(bytes, table.rows["key"]):
                if all(other.find(key) is None for other in done):
                    yield CidBytes(bytes((1, RAW)) + key)
            done.append(table)

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether a source is there that has it."""
        joined = b"".join(checked(cid)[-KEY_SIZE:] for cid in cids)
        keys = np.frombuffer(joined, np.uint8).reshape(-1, KEY_SIZE)
        held: list[bool] = self.references.has_array(keys).tolist()
        return held

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        places = list(self.references.find(cid))
        if places:
            return BlockNotFoundError(
                f"block {format_cid(cid)} is {_either(places)}, which is gone or shorter than it "
                "was; put it back, or say where it is now (`repoint`, `sources --move`)"
            )
        damaged = "".join(f"; {reason}" for reason in self.references.damaged.values())
        return BlockNotFoundError(
            f"block {format_cid(cid)} is not in {self.location}{damaged}; link it again, or fetch "
            "it from a place that has it"
        )

    def _corrupt(self, cid: CidBytes) -> CorruptBlockError:
        places = list(self.references.find(cid))
        if not places:
            return super()._corrupt(cid)
        return CorruptBlockError(
            f"block {format_cid(cid)} was {_either(places)}, which has changed since it was "
            "linked; put it back as it was, fetch the block from elsewhere (repair), or link the "
            "source again to take what it has now"
        )


def _either(places: Sequence[Place]) -> str:
    return " or ".join(map(str, places))
