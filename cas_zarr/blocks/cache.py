"""Blocks that were fetched, kept for the next time: on disk, or in memory.

Both are the local part of a tier (`cas_zarr.blocks.tiered`). Whatever goes wrong with them (a full
disk, a damaged pack, a folder that someone removed) costs another fetch and is no error.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from cas_zarr.blocks import disk
from cas_zarr.blocks.base import BlockStore, checked
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.pack import PACK_SUFFIX, PART_SUFFIX, Pack, Source, is_pack_name
from cas_zarr.cid import BytesLike, CidBytes, CidLike
from cas_zarr.errors import CorruptBlockError, InvalidArgumentError, StorageError

__all__ = [
    "CACHE_LIMIT",
    "MEMORY_LIMIT",
    "Cache",
    "CacheBlocks",
    "RecentBlocks",
    "cache_folder",
    "open_cache",
]

Cache: TypeAlias = "bool | str | os.PathLike[str] | tuple[str | os.PathLike[str], int] | None"
"""Where fetched blocks are kept: True, False, a folder, or a folder and its limit in bytes."""

CACHE_LIMIT = 10 << 30
"""Size, in bytes, that a cache on disk has by default."""

MEMORY_LIMIT = 256 << 20
"""Size, in bytes, of what is kept in memory where there is no cache on disk."""

_SMALLEST = 1 << 20
_LARGEST = 64 << 20  # a pack is evicted as a whole
_FLUSH_AFTER = 10.0  # seconds: what a killed process loses
_TOUCH_AFTER = 60.0  # seconds between two notes that a pack was used
_REST = 30.0  # seconds without writing after the disk failed


class CacheBlocks(LocalBlocks):
    """Blocks in a folder of packs that never grows much beyond a limit.

    Any number of processes share the folder. The packs that were not read for longest go first;
    who has one open reads on.

    Parameters
    ----------
    folder : str or PathLike
        Is made if it is not there.
    limit : int
        In bytes; it can be passed by what is not flushed yet: at most a sixteenth of it, and
        64 MiB, for each process that writes.

    Raises
    ------
    StorageError
        If the folder cannot be made or read.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = CACHE_LIMIT) -> None:
        self.limit = limit
        self._touched: dict[str, float] = {}
        self._unflushed = 0
        self._since = time.monotonic()
        self._resting = 0.0
        super().__init__(folder, create=True)
        _caches.add(self)

    @property
    def limit(self) -> int:
        """Its size, in bytes; what is there beyond a new one goes with the next flush."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < _SMALLEST:
            raise InvalidArgumentError(
                f"a cache of {limit!r} bytes is none; give at least {_SMALLEST}"
            )
        self._limit = limit
        self._share = min(max(limit >> 4, 1 << 16), _LARGEST)

    @property
    def location(self) -> str:
        return f"the cache in {self._path}"

    def __repr__(self) -> str:
        return f"CacheBlocks({self._path!r}, limit={self.limit})"

    # -- reading: what cannot be read is not there --------------------------------------------

    def _read(self, cid: CidBytes) -> bytes | None:
        for _ in range(2):
            with suppress(CorruptBlockError, StorageError):
                return super()._read(cid)
            self._cursor = None
            with suppress(StorageError):  # perhaps its pack was evicted by another process
                self._look_again()
        self._rotten.add(cid[-34:])
        return None

    def _read_into(self, cid: CidBytes, out: memoryview) -> int:
        with suppress(CorruptBlockError, StorageError):
            return super()._read_into(cid, out)
        self._rotten.add(cid[-34:])
        return False

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        with suppress(StorageError):
            return super()._read_other_copy(cid)
        return None

    def _has(self, cid: CidBytes) -> bool:
        with suppress(StorageError):
            return super()._has(cid)
        return False

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether it is held."""
        with suppress(StorageError):
            return super().has_many(cids)
        return [False] * len(cids)

    def _size(self, cid: CidBytes) -> int | None:
        with suppress(CorruptBlockError, StorageError):
            return super()._size(cid)
        return None

    def _refuse_if_damaged(self, cid: CidBytes) -> None:  # noqa: ARG002
        """Remove packs that cannot be opened: what they hold is fetched again."""
        for name in list(self._folder.damaged):
            with suppress(StorageError, OSError):
                self.remove_pack(name)

    def _find(self, key: bytes) -> tuple[Source, int] | None:
        found = super()._find(key)
        if found is not None and isinstance(found[0], Pack):
            self._note_use(found[0])
        return found

    def _note_use(self, pack: Pack) -> None:
        now = time.monotonic()
        if now - self._touched.get(pack.name, -_TOUCH_AFTER) >= _TOUCH_AFTER:
            if len(self._touched) > 4096:
                self._touched.clear()
            self._touched[pack.name] = now
            with suppress(OSError):
                os.utime(pack.path)

    # -- writing ------------------------------------------------------------------------------

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        if time.monotonic() < self._resting:
            return
        try:
            super()._write(cid, data)
        except StorageError:
            self._failed()
            return
        self._unflushed += len(data) + 64
        if self._unflushed >= self._share or time.monotonic() - self._since >= _FLUSH_AFTER:
            self.flush()

    def _failed(self) -> None:
        """Drop what is not flushed, and write nothing for a while."""
        self._resting = time.monotonic() + _REST
        self._drop_writer()
        with suppress(StorageError, OSError):  # someone may have removed the folder
            disk.make_folder(self._path)
        with suppress(StorageError, OSError):
            self._evict()

    def _drop_writer(self) -> None:
        with self._lock:
            writer, self._writer = self._writer, None
            self._lost = None
            self._unflushed = 0
            if writer is not None:
                with suppress(OSError):
                    writer.discard()

    def flush(self) -> None:
        """Make what was put durable where that can be done, and keep to the limit."""
        self._since = time.monotonic()
        with self._lock:
            pending, self._unflushed = self._unflushed, 0
        if not pending:
            return
        try:
            super().flush()
        except StorageError:
            self._failed()

    def tidy(self) -> None:
        """Merge small packs, and remove those that were not read for longest."""
        with suppress(OSError):
            # A pack goes as a whole, so none may become as large as the cache.
            self._folder.reserved = {
                pack.name
                for pack in list(self._folder.packs.values())
                if pack.file_size >= self._share
            }
            self._folder.merge_small()
            self._evict()

    def _evict(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if disk.try_lock(descriptor) is False:  # another process is at it
                return
            files = []
            with os.scandir(self._path) as entries:
                for entry in entries:
                    if entry.name.endswith((PACK_SUFFIX, PART_SUFFIX)):
                        with suppress(FileNotFoundError):
                            status = entry.stat()
                            files.append((status.st_mtime_ns, entry.name, status.st_size))
            left = sum(size for _, _, size in files)
            gone = False
            for _, name, size in sorted(files):
                if left <= self.limit:
                    break
                if is_pack_name(name):
                    disk.unlink(os.path.join(self._path, name))
                    left -= size
                    gone = True
        finally:
            os.close(descriptor)
        if gone:
            self._folder.refresh()

    def close(self) -> None:
        """Flush, and release files and memory; it can be used again."""
        self.flush()
        super().close()

    def _after_fork(self) -> None:
        self._unflushed = 0
        super()._after_fork()


class RecentBlocks(BlockStore):
    """Blocks in memory, of which the least recently used go once they are too many.

    Parameters
    ----------
    limit : int
        In bytes.
    """

    def __init__(self, limit: int = MEMORY_LIMIT) -> None:
        self.limit = limit
        self._held: OrderedDict[bytes, tuple[CidBytes, bytes]] = OrderedDict()
        self._size_held = 0
        self._guard = threading.Lock()

    # docstrings inherited

    @property
    def location(self) -> str:
        return "memory"

    def __repr__(self) -> str:
        return f"RecentBlocks(limit={self.limit})"

    def _read(self, cid: CidBytes) -> bytes | None:
        with self._guard:
            held = self._held.get(cid[-34:])
            if held is None:
                return None
            self._held.move_to_end(cid[-34:])
            return held[1]

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        with self._guard:
            if cid[-34:] in self._held:
                return
            self._held[cid[-34:]] = cid, bytes(data)
            self._size_held += len(data)
            while self._size_held > self.limit and self._held:
                _, (_, dropped) = self._held.popitem(last=False)
                self._size_held -= len(dropped)

    def _has(self, cid: CidBytes) -> bool:
        return cid[-34:] in self._held

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        return [checked(cid)[-34:] in self._held for cid in cids]

    def _size(self, cid: CidBytes) -> int | None:
        held = self._held.get(cid[-34:])
        return None if held is None else len(held[1])

    def _delete(self, cid: CidBytes) -> None:
        with self._guard:
            held = self._held.pop(cid[-34:], None)
            self._size_held -= len(held[1]) if held else 0

    def list(self) -> Iterator[CidBytes]:
        with self._guard:
            cids = [cid for cid, _ in self._held.values()]
        return iter(cids)


def cache_folder() -> Path:
    """Return the folder in which this platform keeps what can be fetched again."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "cas-zarr"
    return home / ".cache" / "cas-zarr"


def open_cache(cache: Cache = True) -> BlockStore:
    """Return the place where a process keeps what it fetches; one object for each folder.

    Parameters
    ----------
    cache : bool, path or (path, int)
        True (or None) is the user's cache of 10 GiB, or memory where that cannot be written; False
        is memory alone, of 256 MiB; or a folder, with a limit in bytes.
    """
    if cache is False:
        return RecentBlocks()
    limit = CACHE_LIMIT
    if cache is True or cache is None:
        try:
            return _shared_cache(str(cache_folder()), limit)
        except (StorageError, RuntimeError):  # no home, or none that can be written
            return RecentBlocks()
    if isinstance(cache, tuple):
        if len(cache) != 2:
            raise InvalidArgumentError(f"cache={cache!r} is no folder with a limit in bytes")
        cache, limit = cache
    try:
        folder = os.fspath(cache)
    except TypeError:
        folder = None
    if not isinstance(folder, str) or not folder:
        raise InvalidArgumentError(
            f"cache={cache!r} is none; give True, False, a folder, or (folder, bytes)"
        )
    return _shared_cache(os.path.abspath(folder), limit)


_open: dict[str, CacheBlocks] = {}  # a fork inherits them, as it does any packs
_opening = threading.Lock()
_caches: weakref.WeakSet[CacheBlocks] = weakref.WeakSet()


def _shared_cache(folder: str, limit: int) -> CacheBlocks:
    with _opening:
        held = _open.get(folder)
        if held is None:
            held = _open[folder] = CacheBlocks(folder, limit)
        held.limit = limit  # the last word counts
        return held


def _at_exit() -> None:
    for cache in list(_caches):
        cache.flush()


atexit.register(_at_exit)


def _after_fork() -> None:
    global _opening
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
