"""Blocks in a folder of packs: the embedded default.

Any number of processes and threads use the folder at once. Each process writes into a pack of its
own; a block counts, and others see it, once `flush` has sealed that pack. Readers hold on to the
packs they know and look at the folder again before they say that a block is not there.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, MutableSequence, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks import disk
from cas_zarr.blocks.base import checked
from cas_zarr.blocks.collectable import CollectableBlocks, Marks, Repacked
from cas_zarr.blocks.condemned import Condemned
from cas_zarr.blocks.folder import PackFolder
from cas_zarr.blocks.index import KEY_SIZE, Directory, Holder
from cas_zarr.blocks.lists import ListFolder
from cas_zarr.blocks.pack import (
    Pack,
    Source,
    parse_section,
    remove_leftovers,
)
from cas_zarr.blocks.packmarks import PackMarks
from cas_zarr.blocks.repack import repack
from cas_zarr.blocks.writer import PackWriter
from cas_zarr.cid import (
    BytesLike,
    CidBytes,
    CidLike,
    as_cid_bytes,
    encode_varint,
    format_cid,
    matches,
)
from cas_zarr.errors import (
    CorruptBlockError,
    FormatError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
)
from cas_zarr.parallel import map_ordered

__all__ = ["LocalBlocks", "PackStats"]

_WINDOW = 1 << 17  # read ahead when blocks are read in the order in which they lie
_GLANCE = 1 << 12  # read at a place that was not expected: a header, or a small block
_HEAD = 64
_EXACT = 1 << 15  # larger blocks are read alone, without a copy
_AHEAD = 1 << 16  # a gap that still counts as reading on
_COARSE = 2_500_000_000  # nanoseconds within which a folder may change without a new time stamp
_ATTEMPTS = 16
_MANY = 256  # blocks from which an index is gone through with all of them at once


@dataclass(frozen=True, slots=True)
class PackStats:
    """What a folder of packs holds.

    Attributes
    ----------
    packs : int
        Number of sealed packs.
    blocks : int
        Number of blocks in them; a block that lies in two packs counts twice.
    bytes : int
        Size of their files, in bytes.
    unflushed : int
        Number of blocks that `flush` has not made durable yet.
    damaged : tuple of str
        One message for each pack that cannot be read.
    """

    packs: int
    blocks: int
    bytes: int
    unflushed: int
    damaged: tuple[str, ...]


class LocalBlocks(CollectableBlocks):
    """Blocks in a folder of packs.

    Parameters
    ----------
    path : str or PathLike
        The folder that holds the packs.
    create : bool
        Whether the folder is made if it is not there.
    read_only : bool
        Whether `put` and `delete` are refused. Nothing in the folder is touched then.

    Raises
    ------
    RepositoryNotFoundError
        If the folder is not there and `create` is off.
    StorageError
        If the folder cannot be read or made.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, create: bool = False, read_only: bool = False
    ) -> None:
        self.read_only = read_only
        self._path = os.path.abspath(os.fspath(path))
        self._lock = threading.RLock()  # of writing; taken before that of the folder
        self._directory = Directory()
        self._folder = PackFolder(self._path, self._directory)
        self._writer: PackWriter | None = None
        self._inherited: tuple[PackWriter, ...] = ()  # of the process that was forked
        self._lost: StorageError | None = None
        self._rotten: set[bytes] = set()  # multihashes of blocks that were found damaged
        self._locks: list[int] = []  # of packs that were sealed since the last flush
        self._lists = ListFolder(self._path)
        # What was read last, where it begins in its source, and where the next section begins in it
        self._cursor: tuple[Source, bytes, int, int] | None = None
        try:
            if not os.path.isdir(self._path):
                if not create or read_only:
                    raise RepositoryNotFoundError(
                        f"there is no folder {self._path} with packs; create a repository there "
                        "first, or check the path"
                    )
                disk.make_folder(self._path)
            if not read_only:
                remove_leftovers(self._path)
            self._folder.refresh()
        except OSError as error:
            raise disk.failure(error, "open the packs", self._path) from error
        _stores.add(self)

    @property
    def location(self) -> str:
        return f"the packs in {self._path}"

    @property
    def path(self) -> str:
        """The folder of the packs."""
        return self._path

    def __repr__(self) -> str:
        return f"LocalBlocks({self._path!r})"

    # -- reading ----------------------------------------------------------------------------

    def _read(self, cid: CidBytes) -> bytes | None:
        cursor = self._cursor
        if cursor is not None:  # is it the next section? most reads follow the order of writing
            _, data, _, at = cursor
            if at + 3 < len(data):
                length = data[at]
                begin = at + 1
                if length > 127:
                    more = data[begin]
                    begin += 1
                    if more < 128:
                        length += (more << 7) - 128
                    else:
                        length += (more << 7) + (data[begin] << 14) - 16512
                        begin += 1
                end = begin + length
                if data.startswith(cid, begin) and end <= len(data):
                    self._cursor = (cursor[0], data, cursor[2], end)
                    return data[begin + len(cid) : end]
        found = self._find(cid[-KEY_SIZE:])
        if found is None:
            self._refuse_if_damaged(cid)
            return None
        try:
            return self._read_at(found[0], found[1], cid)
        except CorruptBlockError:
            other = self._read_other_copy(cid)
            if other is None:
                raise
            return other

    def _read_at(self, source: Source, offset: int, cid: CidBytes) -> bytes:
        """Read the block whose section should begin at `offset`."""
        cursor = self._cursor
        size, data, start = _GLANCE, b"", offset
        if cursor is not None and cursor[0] is source:
            _, window, begins, at = cursor
            if begins <= offset <= begins + len(window) - _HEAD:
                data, start = window, begins
            elif 0 <= offset - begins - at <= _AHEAD:
                size = _WINDOW if window else _HEAD
        try:
            if not data:
                data = source.read(offset, size)
            begin, end = _block_at(data, offset - start, cid)
            if end > len(data) and len(data) > _GLANCE and end - begin <= _EXACT:
                shift = start - offset  # the window ends in this block: read the next one
                data, start = source.read(offset, _WINDOW), offset
                begin, end = begin + shift, end + shift
            if end <= len(data):
                self._cursor = (source, data, start, end)
                return data[begin:end]
            body = source.read(start + begin, end - begin)
            if len(body) != end - begin:
                raise FormatError("it is cut off")
            # Reading on after a small block is worth a window, after a large one a header only.
            kept = body if len(body) <= _EXACT else b""
            self._cursor = (source, kept, start + end - len(kept), len(kept))
            return body
        except FormatError as error:
            raise self._damaged_pack(cid, source, offset, error) from None
        except OSError as error:
            raise disk.failure(error, f"read block {format_cid(cid)}", source.path) from error

    def _read_into(self, cid: CidBytes, out: memoryview) -> int:
        if len(out) <= _GLANCE:  # likely to be in the window
            return super()._read_into(cid, out)
        found = self._find(cid[-KEY_SIZE:])
        if found is None:
            self._refuse_if_damaged(cid)
            return False
        source, offset = found
        out = out if out.ndim == 1 and out.itemsize == 1 else out.cast("B")
        head = encode_varint(len(cid) + len(out)) + cid
        there = memoryview(bytearray(len(head)))
        try:
            done = source.read_into([there, out], offset)
        except OSError as error:
            raise disk.failure(error, f"read block {format_cid(cid)}", source.path) from error
        if done == len(head) + len(out) and there == head:
            return True
        data = self._read(cid) or b""  # held under another codec, or something is wrong
        if len(data) != len(out):
            raise self._wrong_length(cid, len(data), len(out))
        out[:] = data
        return True

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        key = cid[-KEY_SIZE:]
        self._rotten.add(key)  # a put of it writes it anew
        self._look_again()
        for holder in self._directory.holders():
            offset = holder.index.find(key)
            if offset is not None:
                with suppress(CorruptBlockError):
                    data = self._read_at(cast(Source, holder), offset, cid)
                    if matches(cid, data):
                        return data
        return None

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        """Return the bytes of many blocks, in order, each verified.

        They are read in the order in which they lie; large ones in threads.
        """
        keys = [checked(cid) for cid in cids]
        found = self._find_many_here([key[-KEY_SIZE:] for key in keys])
        if len(keys) < 2 or any(place is None for place in found):
            return map_ordered(self.get, keys) if len(keys) < 64 else [self.get(k) for k in keys]
        places = [(id(place[0]), place[1], i) for i, place in enumerate(found) if place]
        places.sort()
        span = sum(b[1] - a[1] for a, b in pairwise(places) if a[0] == b[0])
        if span > _EXACT * len(places):
            return map_ordered(self.get, keys)
        out = [b""] * len(keys)
        for _, _, i in places:
            out[i] = self.get(keys[i])
        return out

    def _has(self, cid: CidBytes) -> bool:
        return self._find(cid[-KEY_SIZE:]) is not None

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether it is held."""
        keys = [checked(cid)[-KEY_SIZE:] for cid in cids]
        known = list(self._folder.packs)
        flags = [found is not None for found in self._find_many_here(keys)]
        if not all(flags) and (self._look_again() or list(self._folder.packs) != known):
            flags = [found is not None for found in self._find_many_here(keys)]
        return flags

    def lacks_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        # docstring inherited
        return [
            not held or checked(cid)[-KEY_SIZE:] in self._rotten
            for cid, held in zip(cids, self.has_many(cids), strict=True)
        ]

    def has_array(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell for each of many multihashes, (n, 34) uint8, whether its block is held."""
        held = np.zeros(len(keys), bool)
        if len(keys) >= _MANY:
            for holder in reversed(self._directory.holders()):
                left = np.flatnonzero(~held)
                held[left] = holder.index.find_many(keys[left]) >= 0
        for row in np.flatnonzero(~held).tolist():  # they may be in a pack that is new
            held[row] = self._find(keys[row].tobytes()) is not None
        return held

    def _size(self, cid: CidBytes) -> int | None:
        found = self._find(cid[-KEY_SIZE:])
        if found is None:
            self._refuse_if_damaged(cid)
            return None
        source, offset = found
        try:
            begin, end = _block_at(source.read(offset, 300), 0, cid)
        except FormatError as error:
            raise self._damaged_pack(cid, source, offset, error) from None
        except OSError as error:
            raise disk.failure(error, f"read block {format_cid(cid)}", source.path) from error
        return end - begin

    def list(self) -> Iterator[CidBytes]:
        """Yield the CID of every block that is held, each multihash once."""
        writer = self._writer
        done: list[Pack | PackWriter] = []
        while True:  # until no pack is new: they may be merged meanwhile
            self._look_again()
            fresh = [h for h in self._directory.holders() if isinstance(h, Pack) and h not in done]
            if not fresh:
                break
            for pack in fresh:
                yield from self._list_one(pack, done)
        for open_pack in (*self._inherited, *([writer] if writer else [])):
            yield from self._list_one(open_pack, done)

    def _list_one(
        self, source: Pack | PackWriter, done: MutableSequence[Pack | PackWriter]
    ) -> Iterator[CidBytes]:
        try:
            for cid, _, _ in source.sections():
                if all(other.find(cid[-KEY_SIZE:]) is None for other in done):
                    yield cid
        except FormatError as error:
            raise CorruptBlockError(
                f"pack {source.path} is damaged: {error}; run verify, and fetch its blocks again "
                "from elsewhere"
            ) from None
        except OSError as error:
            raise disk.failure(error, "list the blocks of a pack", source.path) from error
        done.append(source)

    def stats(self) -> PackStats:
        """Count packs, blocks and bytes."""
        self._look_again()
        packs = list(self._folder.packs.values())
        writer = self._writer
        return PackStats(
            packs=len(packs),
            blocks=sum(pack.index.count for pack in packs),
            bytes=sum(pack.file_size for pack in packs),
            unflushed=writer.count if writer is not None else 0,
            damaged=tuple(self._folder.damaged.values()),
        )

    # -- finding ----------------------------------------------------------------------------

    def _find_here(self, key: bytes) -> tuple[Source, int] | None:
        writer = self._writer
        if writer is not None:
            offset = writer.places.get(key)
            if offset is not None:
                return writer, offset
        return cast("tuple[Source, int] | None", self._directory.find(key))

    def _find_many_here(self, keys: Sequence[bytes]) -> Sequence[tuple[Source, int] | None]:
        writer = self._writer
        places = writer.places if writer is not None else {}
        found = cast("list[tuple[Source, int] | None]", self._directory.find_many(keys))
        if writer is not None and places:
            for i, key in enumerate(keys):
                if found[i] is None and key in places:
                    found[i] = (writer, places[key])
        return found

    def _find(self, key: bytes) -> tuple[Source, int] | None:
        """Find a block, with another look at the folder before giving up."""
        found = self._find_here(key)
        if found is not None:
            return found
        for _ in range(_ATTEMPTS):
            news = self._look_again()
            found = self._find_here(key)  # news or not: another thread may have had them first
            if found is not None:
                return found
            if not news:
                break
        for writer in self._inherited:
            offset = writer.find(key)
            if offset is not None:
                return writer, offset
        return None

    def _look_again(self) -> bool:
        try:
            return self._folder.refresh()
        except OSError as error:
            raise disk.failure(error, "look at the packs", self._path) from error

    def _damaged_pack(
        self, cid: CidBytes, source: Source, offset: int, error: FormatError
    ) -> CorruptBlockError:
        return CorruptBlockError(
            f"block {format_cid(cid)} cannot be read at {offset} in pack {source.path}: {error}; "
            "run verify, and fetch it again from elsewhere"
        )

    def _refuse_if_damaged(self, cid: CidBytes) -> None:
        if self._folder.damaged:
            raise CorruptBlockError(
                f"block {format_cid(cid)} is in no sound pack of {self._path}, and may lie in a "
                f"damaged one: {'; '.join(self._folder.damaged.values())}"
            )

    # -- writing ----------------------------------------------------------------------------

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        key = cid[-KEY_SIZE:]
        with self._lock:
            writer = self._writer
            if writer is not None and key in writer.places:
                return
            if (
                self._directory.find(key) is not None
                and key not in self._rotten
                and not (self._condemned and self._is_condemned(key))
            ):
                return
            try:
                if writer is None:
                    writer = self._open_writer()
                elif writer.full:
                    self._seal()
                    writer = self._open_writer()
                writer.add(cid, key, data)
                self._rotten.discard(key)
            except OSError as error:
                raise disk.failure(error, f"write block {format_cid(cid)}", self._path) from error

    def renew(self, cid: CidLike, data: BytesLike) -> None:
        """Hold a block anew, whatever is held under its CID: for one that is damaged here.

        Raises
        ------
        CorruptBlockError
            If `data` does not hash to `cid`.
        """
        key = as_cid_bytes(cid)
        if not matches(key, data):
            raise CorruptBlockError(
                f"block {format_cid(key)} cannot be renewed: the bytes do not hash to its cid"
            )
        self._rotten.add(key[-KEY_SIZE:])
        self.put(key, data)

    def set_aside(self, name: str) -> None:
        """Read no more from a pack, until this is closed; its file stays."""
        self._cursor = None
        self._folder.set_aside(name)

    def remove_pack(self, name: str) -> None:
        """Remove a pack; what it holds is lost, unless it is held elsewhere, durably."""
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        self.set_aside(name)
        try:
            disk.unlink(os.path.join(self._path, name))
            disk.fsync_folder(self._path)
        except OSError as error:
            raise disk.failure(error, "remove a pack", self._path) from error

    def _open_writer(self) -> PackWriter:
        self._writer = writer = PackWriter(self._path, self._directory, self._lock)
        return writer

    def flush(self) -> None:
        """Make every block that was put durable, and visible to other processes.

        Raises
        ------
        StorageError
            If the disk failed. What earlier flushes made durable is whole; what was put since can
            still be read here, and flushed once the cause is gone.
        """
        try:
            with self._lock:
                if self._writer is not None:
                    self._seal()
                self._folder.sync()
                self._unlock()
        except OSError as error:
            raise disk.failure(error, "flush the blocks", self._path) from error
        # The blocks are safe: if tidying fails, the packs stay as they are until the next time.
        self.tidy()

    def _seal(self) -> None:
        writer = self._writer
        if writer is None:
            return
        if self._lost is not None:
            raise self._lost
        if writer.tainted:
            writer = self._renew(writer)
        with self._folder.lock:  # nobody else learns of the pack before it is taken in
            self._folder.take(writer.seal())
        # The lock of the part file stays: until the flush returns nobody collects what is in it.
        self._locks.append(os.dup(writer.fd))
        self._writer = None

    def _unlock(self) -> None:
        while self._locks:
            descriptor = self._locks.pop()
            disk.unlock(descriptor)
            os.close(descriptor)

    def _renew(self, old: PackWriter) -> PackWriter:
        """Copy an open pack into a new file, after an fsync of the old one failed.

        The kernel may have dropped what did not reach the disk, so each block is verified.
        """
        fresh = PackWriter(self._path, self._directory, self._lock)
        try:
            for cid, offset, size in old.sections():
                data = old.body(cid, offset, size)
                if not matches(cid, data):
                    raise FormatError(f"block {format_cid(cid)} is not as it was put")
                fresh.add(cid, cid[-KEY_SIZE:], data)
        except FormatError as error:
            fresh.discard()
            self._lost = StorageError(
                errno.EIO,
                "what was put since the last flush was lost when it could not be written: "
                f"{error}; open the repository anew and put it again",
                old.path,
            )
            raise self._lost from None
        except BaseException:
            fresh.discard()
            raise
        old.discard()
        self._writer = fresh
        return fresh

    def close(self) -> None:
        """Release files and memory. What was not flushed is lost."""
        with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                with suppress(OSError):
                    writer.discard()
            self._unlock()
            self._inherited = ()
            self._cursor = None
            self._folder.clear()

    def _delete(self, cid: CidBytes) -> None:
        self.delete_many([cid])

    def delete_many(self, cids: Iterable[CidLike]) -> None:
        """Forget many blocks: every pack that holds one of them is written anew without them.

        What was put before is flushed first.
        """
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        drop = {as_cid_bytes(cid)[-KEY_SIZE:] for cid in cids}
        self.flush()
        self._look_again()
        self._cursor = None
        try:
            self._folder.drop(drop)
        except OSError as error:
            raise disk.failure(error, "write packs anew", self._path) from error

    # -- collecting, docstrings inherited ---------------------------------------------------

    def avoid(self, lists: Sequence[Condemned], epoch: int) -> None:
        super().avoid(lists, epoch)
        self._folder.reserved = {place for one in self._condemned for place in one.places}
        self._look_again()

    def condemned_many(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        out = np.zeros(len(keys), bool)
        for one in self._condemned:
            rows = np.flatnonzero(one.holds_many(keys))
            if not len(rows):
                continue
            young = np.zeros(len(rows), bool)
            for holder in self._younger(one):
                young |= holder.index.find_many(keys[rows]) >= 0
            writer = self._writer
            if writer is not None and (places := writer.places):
                young |= [keys[row].tobytes() in places for row in rows.tolist()]
            out[rows[~young]] = True
        return out

    def _is_condemned(self, key: bytes) -> bool:
        """Tell whether a list condemns all copies of a block that is not in the slab."""
        return any(
            one.holds(key) and all(holder.index.find(key) is None for holder in self._younger(one))
            for one in self._condemned
        )

    def _younger(self, condemned: Condemned) -> Iterator[Holder]:
        """Yield the packs, and parts of the open one, that are younger than a list."""
        for holder in self._directory.holders():
            if not isinstance(holder, Pack) or holder.name not in condemned.places:
                yield holder

    def survey(self) -> Marks:
        self._look_again()
        packs = list(self._folder.packs.values())
        try:
            growing = [pack.name for pack in packs if self._folder.is_growing(pack)]
        except OSError as error:
            raise disk.failure(error, "look at the packs", self._path) from error
        return PackMarks(self._folder, packs, growing)

    def write_list(self, data: bytes) -> Condemned:
        return self._lists.write(data)

    def read_list(self, name: str) -> Condemned:
        return self._lists.read(name)

    def delete_lists(self, keep: Collection[str]) -> None:
        self._lists.delete(keep)

    def collecting(self) -> AbstractContextManager[None]:
        return self._lists.collecting()

    def tidy(self) -> None:
        with suppress(OSError):
            self._folder.merge_small()

    def repack(self) -> Repacked:
        self._look_again()
        try:
            return repack(self._folder)
        except OSError as error:
            raise disk.failure(error, "write packs anew", self._path) from error

    def _after_fork(self) -> None:
        """In a forked child: read what the parent had, write into packs of its own."""
        self._lock = threading.RLock()
        locks, self._locks = self._locks, []
        for descriptor in locks:  # to unlock them would unlock them for the parent
            os.close(descriptor)
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon(self._lock)
            self._inherited = (*self._inherited, writer)
        self._directory = Directory()
        self._folder.after_fork(self._directory)


def _block_at(data: bytes, at: int, cid: CidBytes) -> tuple[int, int]:
    """Return begin and end of the block `cid` whose section begins at `at`."""
    if at + 3 < len(data):  # two bytes of length and just this CID, as a rule
        length, more = data[at], data[at + 1]
        if length >= 128 and more < 128 and data.startswith(cid, at + 2):
            return at + 2 + len(cid), at + 2 + length + (more << 7) - 128
    held, begin, end = parse_section(data, at)
    if held[-KEY_SIZE:] != cid[-KEY_SIZE:]:
        raise FormatError("a section of another block is there")
    return begin, end


_stores: weakref.WeakSet[LocalBlocks] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
