"""Packs: the sealed CARv2 files of a local repository, and how a file becomes one.

::

    pragma and header, 51 bytes | CARv1: header without roots, sections | MultihashIndexSorted

A pack never changes. It is written as ``<random>.part`` by a process that holds the file's lock,
and gets its name, ``<32 hex digits>.car``, once all of it is durable. Data are read with ``pread``
into private memory; only the index is mapped.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks import disk
from cas_zarr.blocks.base import MAX_BLOCK_SIZE
from cas_zarr.blocks.index import KEY_SIZE, Heads, PackIndex, SearchIndex
from cas_zarr.cid import BLAKE3, CidBytes, decode_varint
from cas_zarr.codecs.car import DATA_START, encode_roots, encode_wrapper, parse_cid, parse_wrapper
from cas_zarr.codecs.carindex import Digests, Offsets, encode_index
from cas_zarr.errors import FormatError, InvalidCIDError

__all__ = [
    "EMPTY_PAYLOAD",
    "MAX_AWAKE",
    "MAX_SECTION",
    "PACK_SUFFIX",
    "PART_SUFFIX",
    "NotDurableError",
    "Pack",
    "Source",
    "create_part",
    "finish_part",
    "is_pack_name",
    "iter_sections",
    "parse_section",
    "remove_leftovers",
    "seal_part",
]

PACK_SUFFIX = ".car"
PART_SUFFIX = ".part"
EMPTY_PAYLOAD = encode_roots(())
"""The CARv1 header of every pack: no roots, so that an import pins nothing."""

MAX_SECTION = MAX_BLOCK_SIZE + 256
"""Largest section that is read, in bytes: a block and its CID."""

MAX_AWAKE = 192
"""Packs of a process that are open at once; each takes one descriptor or two."""

_EMPTY_INDEX = encode_index([])
_MAPPED = 1 << 16  # smaller indexes are read into memory: a mapping costs a descriptor and a page
_HEAD_SIZE = 300
_WINDOW = 1 << 18


class NotDurableError(OSError):
    """An fsync failed."""


class Source(Protocol):
    """A payload of sections that can be read: a pack, sealed or growing."""

    path: str

    @property
    def data_size(self) -> int:
        """Size of the payload, in bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of the payload."""

    def read_into(self, buffers: list[memoryview], offset: int) -> int:
        """Fill buffers from the payload; return how many bytes there were."""


class Pack:
    """A sealed pack, open for reading.

    At most `MAX_AWAKE` packs of a process keep their file open; the others sleep, and open it again
    when they are asked. Someone who still reads from one that falls asleep is not disturbed.

    Parameters
    ----------
    path : str
    fd : int, optional
        The file if it is open already; it belongs to the pack from here on.

    Raises
    ------
    FormatError
        If the file is no finished CARv2 with an index, or its parts do not fit its size.
    OSError
        If it cannot be opened.
    """

    __slots__ = ("__weakref__", "_file", "data_size", "data_start", "file_size", "index", "path")

    index: PackIndex | _SleepingIndex

    def __init__(self, path: str, fd: int | None = None) -> None:
        self.path = path
        self._open(_File(os.open(path, os.O_RDONLY | os.O_CLOEXEC) if fd is None else fd))

    @property
    def name(self) -> str:
        """File name of the pack."""
        return os.path.basename(self.path)

    def __repr__(self) -> str:
        return f"Pack({self.path!r}, {self.index.count} blocks)"

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of the payload."""
        if offset >= self.data_size:  # the index says what it likes
            return b""
        file = self._file or self.wake()
        return os.pread(file.fd, size, self.data_start + offset)

    def read_into(self, buffers: list[memoryview], offset: int) -> int:
        """Fill buffers from the payload; return how many bytes there were."""
        if offset >= self.data_size:
            return 0
        file = self._file or self.wake()
        return os.preadv(file.fd, buffers, self.data_start + offset)

    def find(self, key: bytes) -> int | None:
        """Return the offset of a block's section, or None."""
        return self.index.find(key)

    def sections(self) -> Iterator[tuple[CidBytes, int, int]]:
        """Yield CID, offset and size of each block, as they lie."""
        return iter_sections(self, self.index)

    def wake(self) -> _File:
        """Open the file again; `FileNotFoundError` if another process removed it."""
        return self._open(_File(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)))

    def sleep(self) -> None:
        """Let go of the file and the index."""
        self.index = _SleepingIndex(self, self.index.count)
        self._file: _File | None = None

    def _open(self, file: _File) -> _File:
        size = os.fstat(file.fd).st_size
        try:
            _, start, data_size, index_start = parse_wrapper(os.pread(file.fd, DATA_START, 0))
            if not index_start:
                raise FormatError("it has no index")
            if index_start >= size:
                raise FormatError(f"it is cut off at {size} bytes; its index is at {index_start}")
            index = _open_index(file.fd, index_start, size)
        except FormatError as error:
            raise FormatError(
                f"pack {self.path} cannot be read: {error}; fetch its blocks again from elsewhere"
            ) from None
        self.file_size, self.data_start, self.data_size = size, start, data_size
        self.index, self._file = index, file
        _awake.append(weakref.ref(self))
        while len(_awake) > MAX_AWAKE:
            oldest = _awake.popleft()()
            if oldest is not None and oldest is not self:
                oldest.sleep()
        return file


class _File:
    """A file descriptor, closed when nothing refers to it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        with suppress(AttributeError):  # an interrupt came before it had one
            os.close(self.fd)


_awake: deque[weakref.ref[Pack]] = deque()


class _SleepingIndex:
    """Stands for the index of a pack that sleeps, and wakes it; a pack that is gone has nothing."""

    __slots__ = ("_pack", "count")

    def __init__(self, pack: Pack, count: int) -> None:
        self._pack = weakref.ref(pack)
        self.count = count

    def _index(self) -> PackIndex:
        pack = self._pack()
        if pack is not None:
            try:
                pack.wake()
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    raise disk.failure(error, "open a pack again", pack.path) from error
            else:
                index = pack.index
                return index if isinstance(index, PackIndex) else PackIndex(_EMPTY_INDEX)
        return PackIndex(_EMPTY_INDEX)

    def find(self, key: bytes) -> int | None:
        return self._index().find(key)

    def find_many(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        return self._index().find_many(keys)

    def find_rows(self, keys: NDArray[np.uint8], memo: Heads | None = None) -> NDArray[np.int64]:
        return self._index().find_rows(keys, memo)

    def records(self) -> list[tuple[int, Digests, Offsets]]:
        return self._index().records()

    def leading(self) -> NDArray[np.uint32]:
        return self._index().leading()

    def warm(self) -> None:
        self._index().warm()


def _open_index(fd: int, start: int, end: int) -> PackIndex:
    if end - start <= _MAPPED:
        return PackIndex(os.pread(fd, end - start, start))
    skipped = start - start % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(fd, end - skipped, access=mmap.ACCESS_READ, offset=skipped)
    return PackIndex(mapped, start - skipped)


def parse_section(data: bytes, at: int = 0) -> tuple[CidBytes, int, int]:
    """Return CID, begin and end of the block whose section begins at `at`.

    The end may lie behind `data`, and is at most `MAX_SECTION` away.

    Raises
    ------
    FormatError
        If no section begins there.
    """
    try:
        length, start = decode_varint(data, at)
    except InvalidCIDError as error:
        raise FormatError(str(error)) from None
    if not 0 < length <= MAX_SECTION:
        raise FormatError(f"a section claims {length} bytes")
    cid, begin = parse_cid(data, start, min(start + length, len(data)))
    return cid, begin, start + length


def iter_sections(source: Source, index: SearchIndex) -> Iterator[tuple[CidBytes, int, int]]:
    """Yield CID, offset and size of the block, for each block of an index, as they lie.

    Raises
    ------
    FormatError
        If the index leads to something else.
    """
    window, start = b"", 0
    for key, offset in _records_by_offset(index):
        at = offset - start
        if at < 0 or at + _HEAD_SIZE > len(window):
            window, start, at = (
                source.read(offset, _HEAD_SIZE if at > _WINDOW else _WINDOW),
                offset,
                0,
            )
        cid, begin, end = parse_section(window, at)
        if cid[-KEY_SIZE:] != key or start + end > source.data_size:
            raise FormatError(f"the index of {source.path} leads to a section of another block")
        yield cid, offset, end - begin


def _records_by_offset(index: SearchIndex) -> Iterator[tuple[bytes, int]]:
    for code, digests, offsets in index.records():
        prefix = bytes([code, digests.shape[1]])
        order = np.argsort(offsets, kind="stable")
        for first in range(0, len(order), 1 << 14):
            part = order[first : first + (1 << 14)]
            rows, places = digests[part].tobytes(), offsets[part].tolist()
            size = digests.shape[1]
            for i, offset in enumerate(places):
                yield prefix + rows[i * size : (i + 1) * size], offset


def is_pack_name(name: str) -> bool:
    """Tell whether a file of that name is a sealed pack."""
    return name.endswith(PACK_SUFFIX) and not name.startswith(".")


def create_part(folder: str) -> tuple[int, str]:
    """Create a part file and take its lock; return descriptor and path."""
    while True:
        path = os.path.join(folder, secrets.token_hex(8) + PART_SUFFIX)
        fd = disk.create(path)
        # Between creation and lock a process that cleans up may have taken it for a leftover.
        if disk.try_lock(fd) is not False and _is_same_file(path, fd):
            return fd, path
        os.close(fd)


def finish_part(fd: int, path: str, data_size: int, index: bytes, salt: bytes = b"") -> str:
    """Make a durable file of a part file whose payload is written; return the name it is to get.

    Parameters
    ----------
    salt : bytes
        Packs of equal index and salt get one name.

    Raises
    ------
    NotDurableError
        If the file could not be synced. Its pages may count as clean now and never reach the
        disk, so a second try needs a new file.
    OSError
        If anything else failed: it can be tried again.
    """
    end = DATA_START + data_size
    disk.pwrite(fd, index, end)
    if os.fstat(fd).st_size != end + len(index):  # left by a write that failed
        disk.truncate(fd, end + len(index))
    disk.pwrite(fd, encode_wrapper(data_size, end), 0)
    try:
        disk.fsync(fd)
    except OSError as error:
        raise NotDurableError(error.errno, error.strerror) from error
    name = BLAKE3.digest(BLAKE3.digest(index) + salt)[:16].hex() + PACK_SUFFIX
    return os.path.join(os.path.dirname(path), name)


def seal_part(fd: int, path: str, data_size: int, index: bytes, salt: bytes = b"") -> str:
    """Make a pack of a part file as `finish_part` does, under its name; that is not durable yet."""
    target = finish_part(fd, path, data_size, index, salt)
    disk.rename(path, target)
    return target


def remove_leftovers(folder: str) -> None:
    """Remove the part files of processes that are gone."""
    for name in os.listdir(folder):
        if not name.endswith(PART_SUFFIX):
            continue
        path = os.path.join(folder, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # sealed or removed meanwhile, or not ours
            continue
        try:
            if disk.try_lock(fd) and _is_same_file(path, fd):
                disk.unlink(path)
        finally:
            os.close(fd)


def _is_same_file(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
