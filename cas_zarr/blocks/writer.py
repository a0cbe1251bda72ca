"""The pack that a process is writing: blocks in a part file, their places in memory.

Small blocks are gathered in a slab that is written when full; large ones go to the file from the
caller's memory. Places are kept in a dict, some 140 bytes a block, and once there are many of them
in sorted runs of 40 bytes a block; sealing merges the runs into the index of the pack.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np

from cas_zarr.blocks import disk
from cas_zarr.blocks.index import KEY_SIZE, Directory, PackIndex
from cas_zarr.blocks.pack import (
    EMPTY_PAYLOAD,
    NotDurableError,
    Pack,
    create_part,
    finish_part,
    iter_sections,
    parse_section,
)
from cas_zarr.cid import DIGEST_SIZE, BytesLike, CidBytes, encode_varint
from cas_zarr.codecs.car import DATA_START
from cas_zarr.codecs.carindex import encode_index

__all__ = ["PackWriter", "Run"]

_SLAB_SIZE = 1 << 20
_DIRECT_SIZE = 1 << 16  # blocks from here on are written from the caller's memory
_RUN_LENGTH = (1 << 17) * 2 // 3  # what a dict of CPython holds before it doubles to 2^18 places
_MAX_BLOCKS = 1 << 20
_MAX_BYTES = 2 << 30


class Run:
    """A sorted part of the blocks of an open pack."""

    __slots__ = ("index", "index_bytes", "path", "read", "read_into", "writer")

    def __init__(self, index: bytes, writer: PackWriter) -> None:
        self.index_bytes = index
        self.index = PackIndex(index)
        self.writer = writer
        self.path = writer.path
        self.read = writer.read
        self.read_into = writer.read_into

    @property
    def data_size(self) -> int:
        """Size of the payload so far, in bytes."""
        return self.writer.data_size

    @property
    def last(self) -> int:
        """Offset of the last block of this run in the payload."""
        return max(int(offsets.max()) for _, _, offsets in self.index.records())


class PackWriter:
    """A pack that grows. The caller holds `lock` for everything but reading.

    An interrupt may come between any two steps of a change: the next change begins with what the
    places say, and drops what an interrupted one has left behind them.

    Parameters
    ----------
    folder : str
        Where the part file is made and the pack will lie.
    directory : Directory
        Learns the runs, then the pack.
    lock : RLock

    Attributes
    ----------
    places : dict
        Multihash -> offset in the payload, for the blocks that are in no run yet.
    runs : list of Run
        The other blocks.
    full : bool
        The pack should be sealed before another block is added.
    tainted : bool
        The file's content may not reach the disk any more, whatever a later fsync says.
    """

    def __init__(self, folder: str, directory: Directory, lock: threading.RLock) -> None:
        self.fd, self.path = create_part(folder)
        self.places: dict[bytes, int] = {}
        self.full = False
        self.tainted = False
        self._folder = folder
        self._directory = directory
        self._lock = lock
        self.runs: list[Run] = []
        self._target = ""  # the name that this gets; once it is known, nothing is added
        self._pack: Pack | None = None
        self._settled = True  # no change has begun and not ended
        self._slab = bytearray(EMPTY_PAYLOAD)
        self._slab_start = 0  # offset of the slab in the payload: what is before it is in the file
        self._length = -1  # of the last section, and its varint: sizes repeat
        self._varint = b""
        self._pid = os.getpid()

    def __del__(self) -> None:
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            os.close(fd)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self._run_blocks + len(self.places)

    @property
    def _run_blocks(self) -> int:
        return sum(run.index.count for run in self.runs)

    @property
    def data_size(self) -> int:
        """Size of the payload so far, in bytes."""
        return self._slab_start + len(self._slab)

    def add(self, cid: CidBytes, key: bytes, data: BytesLike) -> None:
        """Append a block, which is not held yet. When this raises, it was not appended."""
        if not self._settled:
            self._settle()
        self._settled = False
        slab = self._slab
        size = len(data)
        length = len(cid) + size
        if length != self._length:
            self._varint = encode_varint(length)
            self._length = length
        if size >= _DIRECT_SIZE:
            if slab:
                self._spill()
            head = self._varint + cid
            offset = self._slab_start
            disk.pwritev(self.fd, (head, data), DATA_START + offset)
            self._slab_start = offset + len(head) + size
            self.places[key] = offset
            self.full = self.full or self._slab_start >= _MAX_BYTES
        else:
            if len(slab) >= _SLAB_SIZE:
                self._spill()
            offset = self._slab_start + len(slab)
            slab += self._varint
            slab += cid
            slab += data
            self.places[key] = offset
        if len(self.places) >= _RUN_LENGTH:
            self._freeze()
        self._settled = True

    def find(self, key: bytes) -> int | None:
        """Return the offset of a block's section, or None."""
        for run in self.runs:
            offset = run.index.find(key)
            if offset is not None:
                return offset
        return self.places.get(key)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of the payload; a section is never cut by fewer."""
        start = self._slab_start
        if offset >= start:
            with self._lock:
                start = self._slab_start
                if offset >= start:
                    return bytes(memoryview(self._slab)[offset - start : offset - start + size])
        return os.pread(self.fd, min(size, start - offset), DATA_START + offset)

    def read_into(self, buffers: list[memoryview], offset: int) -> int:
        """Fill buffers from the payload; return how many bytes there were."""
        if offset < self._slab_start:
            return os.preadv(self.fd, buffers, DATA_START + offset)
        done = 0
        for buffer in buffers:
            piece = self.read(offset + done, len(buffer))
            buffer[: len(piece)] = piece
            done += len(piece)
        return done

    def sections(self) -> Iterator[tuple[CidBytes, int, int]]:
        """Yield CID, offset and size of each block."""
        for run in self.runs:
            yield from iter_sections(self, run.index)
        for offset in list(self.places.values()):
            cid, begin, end = parse_section(self.read(offset, 300))
            yield cid, offset, end - begin

    def body(self, cid: CidBytes, offset: int, size: int) -> bytes:
        """Return the bytes of a block that `sections` gave."""
        head = len(encode_varint(len(cid) + size)) + len(cid)
        return self.read(offset + head, size)

    def seal(self) -> Pack:
        """Make a durable pack of what was added; its name in the folder is not durable yet.

        After an `OSError` everything that was added is still here and readable. After an interrupt
        it is completed by the next call.
        """
        if self._target and self.path != self._target and not os.path.exists(self.path):
            self.path = self._target  # the interrupt came just behind the rename
        if not self._target or self.path != self._target:
            self._finish()
        if self._pack is None:
            self._pack = Pack(self.path, os.dup(self.fd))  # readers may still use this writer
        if self._pack not in self._directory.holders():
            self._directory.replace(self.runs, self._pack)
        return self._pack

    def _finish(self) -> None:
        if not self._settled:
            self._settle()
        self._settled = False
        self._spill()
        self._freeze()
        self._settled = True
        index = self.runs[0].index_bytes if len(self.runs) == 1 else self._merged_index()
        try:
            # The salt keeps the name from meaning a pack of another process, which may be about
            # to remove its own.
            target = finish_part(self.fd, self.path, self._slab_start, index, os.urandom(16))
        except OSError as error:
            self.tainted = isinstance(error, NotDurableError)
            raise
        self.full = True  # whoever has seen the name relies on what is in the file
        self._target = target
        disk.rename(self.path, target)
        self.path = target

    def discard(self) -> None:
        """Remove the part file, unless it is a pack by now. What was added is gone."""
        self._directory.replace(self.runs, None)
        if self._pid == os.getpid() and self.path != self._target:
            disk.unlink(self.path)

    def abandon(self, lock: threading.RLock) -> None:
        """In a forked child: keep this for reading what the parent had written by then."""
        self._lock = lock

    def _settle(self) -> None:
        """Drop what an interrupted change has left behind the last block that has a place."""
        if self.places:
            last = next(reversed(self.places.values()))
        else:
            last = max((run.last for run in self.runs), default=-1)
        end = len(EMPTY_PAYLOAD) if last < 0 else last + parse_section(self.read(last, 300))[2]
        if end < self._slab_start:
            self._slab.clear()
            self._slab_start = end
        else:
            del self._slab[end - self._slab_start :]

    def _spill(self) -> None:
        if self._slab:
            disk.pwrite(self.fd, self._slab, DATA_START + self._slab_start)
            self._slab_start += len(self._slab)
            self.full = self.full or self._slab_start >= _MAX_BYTES
            self._slab.clear()

    def _freeze(self) -> None:
        """Turn the dict of places into a sorted run."""
        if not self.places:
            return
        key, offset = next(iter(self.places.items()))
        if self.runs and self.runs[-1].index.find(key) == offset:  # an interrupt left the dict
            self._directory.replace(self.runs[-1:], None)
            self.runs.pop()
        self.runs.append(self._run())
        self.full = self.full or self._run_blocks >= _MAX_BLOCKS
        self._directory.add(self.runs[-1])  # before the dict goes: a reader looks there first
        self.places = {}

    def _run(self) -> Run:
        keys = np.frombuffer(b"".join(self.places), np.uint8).reshape(-1, KEY_SIZE)
        places = np.fromiter(self.places.values(), np.uint64, len(self.places))
        codes = np.unique(keys[:, 0]).tolist()
        groups = [
            (code, keys[keys[:, 0] == code, KEY_SIZE - DIGEST_SIZE :], places[keys[:, 0] == code])
            for code in codes
        ]
        return Run(encode_index(groups), self)

    def _merged_index(self) -> bytes:
        records = [record for run in self.runs for record in run.index.records()]
        groups = []
        for code in {code for code, _, _ in records}:
            ours = [(digests, offsets) for found, digests, offsets in records if found == code]
            groups.append(
                (
                    code,
                    np.concatenate([digests for digests, _ in ours]),
                    np.concatenate([offsets for _, offsets in ours]),
                )
            )
        return encode_index(groups)
