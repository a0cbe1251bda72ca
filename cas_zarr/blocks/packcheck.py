"""Checking a pack bit for bit, and saving what is sound in one that is damaged.

A pack is canonical: its header, its sections and the order of its index follow from its blocks. So
whatever bit of the file is another than it was written, `check_pack` finds a place that does not
fit; `salvage` needs neither header nor index and goes on behind what it cannot read.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks import disk
from cas_zarr.blocks.index import KEY_SIZE
from cas_zarr.blocks.pack import EMPTY_PAYLOAD, MAX_SECTION, is_pack_name, parse_section
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    DIGEST_SIZE,
    HASHES,
    RAW,
    CidBytes,
    codec_of,
    encode_varint,
    format_cid,
    hash_of,
    make_cid,
)
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.car import DATA_START, encode_wrapper, parse_wrapper, section_head
from cas_zarr.codecs.carindex import decode_index, encode_index
from cas_zarr.errors import FormatError, InvalidCIDError
from cas_zarr.parallel import WORKERS, map_ordered

__all__ = ["PackCheck", "PackFault", "check_pack", "pack_paths", "salvage"]

_WINDOW = 4 << 20
_HEAD_SIZE = 300
_GLANCE = 1 << 16
_TOLD = 1000  # blocks
_SHARED = 1 << 19  # bytes from which hashing is worth a thread
_MAX_FAULTS = 1000  # of one pack; a pack with more is not described any better by them
_CODECS = (RAW, DAG_PB, DAG_CBOR, DAG_JSON)
_CID = re.compile(
    b"|".join(re.escape(bytes(make_cid(c, h, b""))) for c in _CODECS for h in HASHES.values())
)
_PREFIXES = [bytes(make_cid(c, h, b"")) for c in _CODECS for h in HASHES.values()]
_USUAL = {bytes(make_cid(c, h, b"")) for c in _CODECS[:3] for h in HASHES.values()}
_LONGEST_VARINT = 4
_LEAST_HEAD = 1 + DIGEST_SIZE + 4
_USUAL_HEAD = _LONGEST_VARINT + 5 + DIGEST_SIZE  # at most

OnBytes = Callable[[int, int], None]
"""Called with blocks and bytes that were checked since the last call."""


@dataclass(frozen=True, slots=True)
class PackFault:
    """A place in a pack that is not as it was written.

    Attributes
    ----------
    pack : str
        Path of the file.
    offset : int or None
        Where in the file, in bytes; None where all of it is meant.
    reason : str
    cid : CidBytes or None
        The block that lies there, as far as its section says.
    """

    pack: str
    offset: int | None
    reason: str
    cid: CidBytes | None = None

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at {self.offset}"
        named = "" if self.cid is None else f" (block {format_cid(self.cid)})"
        return f"pack {self.pack}{at}{named}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PackCheck:
    """What `check_pack` found.

    Attributes
    ----------
    path : str
    size : int
        Bytes of the file.
    blocks : int
        Sections that could be read.
    faults : tuple of PackFault
    suspects : frozenset of bytes
        Multihashes of blocks that cannot be relied on to be read from this pack.
    indexed : bool
        Whether its index can be read. If not, nobody knows what it held.
    """

    path: str
    size: int
    blocks: int
    faults: tuple[PackFault, ...]
    suspects: frozenset[bytes] = field(repr=False)
    indexed: bool = True


def pack_paths(folder: str) -> list[str]:
    """Return the paths of the packs in a folder, sorted.

    Raises
    ------
    StorageError
        If the folder cannot be listed.
    """
    try:
        return sorted(
            os.path.join(folder, name) for name in os.listdir(folder) if is_pack_name(name)
        )
    except OSError as error:
        raise disk.failure(error, "list the packs", folder) from error


def check_pack(path: str, *, data: bool = True, progress: OnBytes | None = None) -> PackCheck:
    """Check header, sections and index of a pack, and with `data` every block.

    Parameters
    ----------
    path : str
    data : bool
        Whether the blocks are read and hashed; with it every flipped bit is found.
    progress : callable, optional
        Called with the blocks and bytes that were checked since its last call.

    Raises
    ------
    FileNotFoundError
        If it is gone, merged by another process.
    StorageError
        If it cannot be read.
    """
    with _opened(path) as file:
        return _Checker(file, data, progress).run()


@contextmanager
def _opened(path: str) -> Iterator[_File]:
    """Open a pack; what the disk does wrong meanwhile is a StorageError, unless it is gone."""
    try:
        file = _File(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise disk.failure(error, "open a pack", path) from error
    try:
        yield file
    except OSError as error:
        raise disk.failure(error, "read a pack", path) from error
    finally:
        file.close()


class _File:
    """A pack as bytes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        pieces = []
        while size > 0 and (piece := os.pread(self.fd, size, offset)):
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        os.close(self.fd)


class _Job(NamedTuple):
    """A block to hash: its CID, where its section begins in the file, its bytes."""

    cid: CidBytes
    offset: int
    data: memoryview


class _Checker:
    def __init__(self, file: _File, data: bool, progress: OnBytes | None) -> None:
        self.file = file
        self.data = data
        self.progress = progress
        self.faults: list[PackFault] = []
        self.suspects: set[bytes] = set()
        self.keys = bytearray()  # multihashes of the sections
        self.offsets = array("Q")  # and where they begin in the payload
        self.index: list[tuple[int, NDArray[np.uint8], NDArray[np.uint64]]] = []
        self.told = [0, 0]  # blocks and bytes that progress was not told of yet
        self.starts: NDArray[np.uint64] | None = None  # of the sections that the index has

    def run(self) -> PackCheck:
        """Check the file from front to back."""
        file = self.file
        end = self._wrapper()
        indexed = True
        index_bytes = file.read(end, file.size - end)
        try:
            self.index = decode_index(index_bytes)
        except FormatError as error:
            self._fault(end, f"its index cannot be read: {error}")
            indexed = False
        if file.read(DATA_START, len(EMPTY_PAYLOAD)) != EMPTY_PAYLOAD:
            self._fault(DATA_START, "its payload does not begin with a header without roots")
        if self.data or not self._quick(DATA_START + len(EMPTY_PAYLOAD), end):
            self._sections(DATA_START + len(EMPTY_PAYLOAD), end)
        self._compare(index_bytes, end)
        if self.faults and self.faults[0].offset == 0:  # readers may look at other places
            self.suspects.update(self._section_keys(), self._index_records())
        return PackCheck(
            file.path,
            file.size,
            len(self.offsets),
            tuple(self.faults),
            frozenset(self.suspects),
            indexed,
        )

    def _fault(self, offset: int | None, reason: str, cid: CidBytes | None = None) -> None:
        if cid is not None:
            self.suspects.add(cid[-KEY_SIZE:])
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(PackFault(self.file.path, offset, reason, cid))

    def _wrapper(self) -> int:
        """Check the header of version 2; return where the payload ends in the file."""
        head = self.file.read(0, DATA_START)
        try:
            _, _, data_size, index_offset = parse_wrapper(head)
        except FormatError as error:
            self._fault(0, str(error))
            return _payload_end(self.file)
        if head == encode_wrapper(data_size, DATA_START + data_size) and (
            DATA_START + data_size <= self.file.size
        ):
            return DATA_START + data_size
        if index_offset >= self.file.size or DATA_START + data_size > self.file.size:
            self._fault(0, f"it is cut off at {self.file.size} bytes")
        else:
            self._fault(0, "its header is not as it was written")
        return _payload_end(self.file)

    def _quick(self, at: int, end: int) -> bool:
        """Read the heads of all sections where the index has them, many at once.

        Returns
        -------
        bool
            False if they are not what the index says: then `_sections` tells which are not.
        """
        places = self._starts()
        if not len(places) or places[0] != at - DATA_START or places[-1] >= end - DATA_START:
            return False
        starts = places + np.uint64(DATA_START)
        sizes = np.append(starts[1:], np.uint64(end)) - starts
        keys: list[NDArray[np.uint8]] = []
        first = 0
        while first < len(starts):
            begin = int(starts[first])
            window = self.file.read(begin, min(_GLANCE, end - begin)) + bytes(_USUAL_HEAD)
            last = np.uint64(begin + len(window) - 2 * _USUAL_HEAD)
            rows = slice(first, max(first + 1, int(np.searchsorted(starts, last))))
            found = _keys_at(window, starts[rows] - np.uint64(begin), sizes[rows])
            if found is None:
                return False
            keys.append(found[0])
            self._tell(len(found[0]), found[1])
            first = rows.stop
        self.keys += np.concatenate(keys).tobytes()
        self.offsets.frombytes(places.tobytes())
        self._tell(0, 0)
        return True

    def _starts(self) -> NDArray[np.uint64]:
        """Return where the sections begin in the payload, as the index says."""
        if self.starts is None:
            none = np.zeros(0, np.uint64)
            self.starts = np.sort(np.concatenate([none, *(group[2] for group in self.index)]))
        return self.starts

    def _sections(self, at: int, end: int) -> None:
        """Walk over the sections between two places of the file."""
        window, start = b"", at
        jobs: list[_Job] = []
        while at < end:
            if at + _HEAD_SIZE > start + len(window) and start + len(window) < end:
                jobs = self._hash(jobs)
                window, start = self.file.read(at, min(self._stride(), end - at)), at
            try:
                cid, begin, stop = _parse(window, at - start)
            except (FormatError, InvalidCIDError) as error:
                jobs = self._hash(jobs)
                self._fault(at, f"no section begins there: {error}")
                at = self._resume(at, end)
                window, start = b"", at
                continue
            size = stop - begin
            if start + stop > end:
                jobs = self._hash(jobs)
                self._fault(at, "a section reaches beyond the payload", cid)
                at = self._resume(at, end)
                window, start = b"", at
                continue
            if self.data and stop > len(window):
                jobs = self._hash(jobs)
                needed = start + stop - at
                window, start = self.file.read(at, min(max(_WINDOW, needed), end - at)), at
                if len(window) < needed:
                    self._fault(at, "it was cut off while it was read", cid)
                    return
                continue
            self.keys += cid[-KEY_SIZE:]
            self.offsets.append(at - DATA_START)
            if self.data:
                jobs.append(_Job(cid, at, memoryview(window)[begin:stop]))
            else:
                self._tell(1, size)
            at = start + stop
        self._hash(jobs)
        self._tell(0, 0)

    def _stride(self) -> int:
        return _WINDOW if self.data else _GLANCE

    def _hash(self, jobs: list[_Job]) -> list[_Job]:
        """Hash what was gathered, in threads; return a new list to gather in."""
        if not jobs:
            return jobs
        size = sum(len(job.data) for job in jobs)
        share = -(-len(jobs) // WORKERS) if size > _SHARED else len(jobs)
        parts = [jobs[i : i + share] for i in range(0, len(jobs), share)]
        for bad in map_ordered(_unsound, parts):
            for job, reason in bad:
                self._fault(job.offset, reason, job.cid)
        self._tell(len(jobs), size)
        return []

    def _tell(self, blocks: int, size: int) -> None:
        """Tell of progress: of many blocks at once, and with none of those that are left."""
        self.told[0] += blocks
        self.told[1] += size
        if self.told[0] and (not blocks or self.told[0] >= _TOLD):
            if self.progress is not None:
                self.progress(*self.told)
            self.told = [0, 0]

    def _index_records(self) -> dict[bytes, int]:
        """Return what the index says: multihash -> offset in the payload."""
        records: dict[bytes, int] = {}
        for code, digests, offsets in self.index:
            head = encode_varint(code) + encode_varint(digests.shape[1])
            for row, offset in zip(digests, offsets.tolist(), strict=True):
                records[head + row.tobytes()] = offset
        return records

    def _section_keys(self) -> list[bytes]:
        keys = bytes(self.keys)
        return [keys[i : i + KEY_SIZE] for i in range(0, len(keys), KEY_SIZE)]

    def _resume(self, at: int, end: int) -> int:
        """Return where the next section begins, as the index says, behind an unreadable place."""
        starts = self._starts()
        row = int(np.searchsorted(starts, np.uint64(at - DATA_START), side="right"))
        return end if row == len(starts) else min(end, DATA_START + int(starts[row]))

    def _compare(self, found: bytes, at: int) -> None:
        """Compare the index with what the sections make."""
        keys = np.frombuffer(self.keys, np.uint8).reshape(-1, KEY_SIZE)
        places = np.frombuffer(self.offsets, np.uint64)
        codes = np.unique(keys[:, 0]).tolist()
        groups = [
            (code, keys[keys[:, 0] == code, 2:], places[keys[:, 0] == code]) for code in codes
        ]
        if encode_index(groups) == found:
            return
        if self.index:
            self._fault(at, "its index is not that of its sections")
        sections = dict(zip(self._section_keys(), self.offsets, strict=True))
        records = self._index_records()
        self.suspects.update(key for key, offset in records.items() if sections.get(key) != offset)


def _keys_at(
    window: bytes, starts: NDArray[np.uint64], sizes: NDArray[np.uint64]
) -> tuple[NDArray[np.uint8], int] | None:
    """Return the multihashes, (n, 34), of the sections of a known start and size.

    And the bytes of their blocks; None if one is no such section, or a rare one.
    """
    data = np.frombuffer(window, np.uint8)
    heads = data[starts.astype(np.intp)[:, None] + np.arange(_USUAL_HEAD)]
    keys = np.zeros((len(starts), KEY_SIZE), np.uint8)
    left = np.ones(len(starts), bool)
    size = 0
    for width in range(1, _LONGEST_VARINT + 1):
        rows = np.flatnonzero(left & (heads[:, width - 1] < 128))
        if not len(rows):
            continue
        left[rows] = False
        lengths = sizes[rows] - np.uint64(width)
        least = 0 if width == 1 else 1 << 7 * (width - 1)
        if ((lengths < least) | (lengths >= min(1 << 7 * width, MAX_SECTION + 1))).any():
            return None
        for byte in range(width):
            more = np.uint64(128 if byte < width - 1 else 0)
            wanted = lengths >> np.uint64(7 * byte) & np.uint64(127) | more
            if (heads[rows, byte] != wanted).any():
                return None
        for prefix in _PREFIXES:
            behind = width + len(prefix)
            ours = (heads[rows, width:behind] == np.frombuffer(prefix, np.uint8)).all(axis=1)
            ours &= lengths >= len(prefix) + DIGEST_SIZE
            if not ours.any():
                continue
            keys[rows[ours]] = heads[rows[ours], behind - 2 : behind + DIGEST_SIZE]
            size += int(lengths[ours].sum()) - int(ours.sum()) * (len(prefix) + DIGEST_SIZE)
    return (keys, size) if keys[:, 0].all() else None


def _parse(data: bytes, at: int) -> tuple[CidBytes, int, int]:
    """Return CID, begin and end of the block whose section begins at `at`, of a known hash."""
    if at + 3 < len(data):  # one or two bytes of length and a usual CID, as a rule
        length, begin = data[at], at + 1
        if length >= 128 and data[begin]:
            length += (data[begin] << 7) - 128
            begin += 1
        behind = begin + DIGEST_SIZE + 4
        usual = data[begin : begin + 4] in _USUAL and data[begin - 1] < 128
        if usual and behind <= min(begin + length, len(data)):
            return CidBytes(data[begin:behind]), behind, begin + length
    cid, begin, stop = parse_section(data, at)
    hash_of(cid)
    return cid, begin, stop


def _unsound(jobs: list[_Job]) -> list[tuple[_Job, str]]:
    """Return the jobs whose block is not as it was written, and why."""
    bad = []
    for job in jobs:
        if hash_of(job.cid).digest(job.data) != job.cid[-DIGEST_SIZE:]:
            bad.append((job, "its bytes do not hash to its cid"))
        elif not _fits(codec_of(job.cid), job.data):
            bad.append((job, "its bytes are not of the codec that its cid names"))
    return bad


def _fits(codec: int, data: memoryview) -> bool:
    """Tell whether bytes can be of a codec, so that a flipped bit in the codec is noticed."""
    if codec == DAG_PB:
        try:
            dagpb.decode(bytes(data))
        except FormatError:
            return False
        return True
    if codec == DAG_CBOR:  # dag-pb begins with the tag of one of its two fields
        return len(data) > 0 and not (len(data) > 1 and data[0] in (0x0A, 0x12))
    return codec in (RAW, DAG_JSON)


# -- saving what is sound -------------------------------------------------------------------


def salvage(path: str) -> Iterator[tuple[CidBytes, bytes]]:
    """Yield CID and bytes of every sound block in a pack, however damaged the rest of it is.

    Every block is hashed. Header and index are not needed: where no section can be read, the file
    is searched for the next one that holds what its CID says. A block whose length or CID alone is
    damaged is found by where the next one begins, and by what the index says.

    Raises
    ------
    FileNotFoundError
        If the pack is gone.
    StorageError
        If it cannot be read.
    """
    with _opened(path) as file:
        yield from _Salvage(file).run()


class _Salvage:
    def __init__(self, file: _File) -> None:
        self.file = file
        self.end = _payload_end(file)
        try:
            groups = decode_index(file.read(self.end, file.size - self.end))
        except FormatError:
            groups = []
        self.known = {
            bytes([code, DIGEST_SIZE]) + row.tobytes()
            for code, digests, _ in groups
            if code in HASHES and digests.shape[1] == DIGEST_SIZE
            for row in digests
        }

    def run(self) -> Iterator[tuple[CidBytes, bytes]]:
        """Yield the sound blocks in the order in which they lie."""
        at = DATA_START + len(EMPTY_PAYLOAD)
        while at < self.end:
            section = self._section(at)
            if section is not None and _sound(section[0], section[1]):
                yield _with_codec(*section[:2]), section[1]
                at = section[2]
                continue
            following = self._next(at + 1)
            yield from self._mended(at, following, section)
            at = following

    def _section(self, at: int) -> tuple[CidBytes, bytes, int] | None:
        """Return CID, bytes and end of what claims to be a section."""
        try:
            cid, begin, stop = parse_section(self.file.read(at, _HEAD_SIZE))
            hash_of(cid)
        except (FormatError, InvalidCIDError):
            return None
        if at + stop > self.file.size:
            return None
        return cid, self.file.read(at + begin, stop - begin), at + stop

    def _next(self, at: int) -> int:
        """Return where the next sound section begins, or the end of the payload."""
        while at < self.end:
            window = self.file.read(at, min(_WINDOW, self.end - at))
            for match in _CID.finditer(window):
                for width in range(1, _LONGEST_VARINT + 1):
                    start = match.start() - width
                    if start < 0:
                        break
                    section = self._section(at + start)
                    if section is not None and _sound(section[0], section[1]):
                        return at + start
            if at + len(window) >= self.end or not window:
                break
            at += max(1, len(window) - 64)  # a head may lie across the border
        return self.end

    def _mended(
        self, at: int, following: int, section: tuple[CidBytes, bytes, int] | None
    ) -> Iterator[tuple[CidBytes, bytes]]:
        """Yield the block of a damaged section if only what stands before its bytes is damaged."""
        ends = {following} if section is None else {following, section[2]}
        found: set[bytes] = set()  # the empty block is in every section, read like that
        for end in sorted(ends, reverse=True):
            if end - at > MAX_SECTION + _LONGEST_VARINT:
                continue
            for cid, data in self._readings(self.file.read(at, end - at)):
                key = bytes(cid[-KEY_SIZE:])
                if key not in found and _sound(cid, data):
                    found.add(key)
                    yield _with_codec(cid, data), data

    def _readings(self, whole: bytes) -> Iterator[tuple[CidBytes, bytes]]:
        """Yield what a section may be, its end being known: with its own CID, or one of the index.

        The length is not looked at, only how many bytes it may take.
        """
        for begin in range(_LEAST_HEAD, min(_LEAST_HEAD + _LONGEST_VARINT, len(whole)) + 1):
            data = whole[begin:]
            for size in (DIGEST_SIZE + 4, DIGEST_SIZE + 5):
                cid = CidBytes(whole[begin - size : begin])
                if _CID.match(cid) is not None and size == _cid_size(cid):
                    yield cid, data
            for code, function in HASHES.items():
                digest = function.digest(data)
                if bytes([code, DIGEST_SIZE]) + digest in self.known:
                    cids = [make_cid(codec, function, digest) for codec in _able(data)]
                    yield min(cids, key=lambda cid: _distance(cid, data, whole[:begin])), data


def _cid_size(cid: bytes) -> int:
    return DIGEST_SIZE + (5 if cid[1] & 0x80 else 4)


def _distance(cid: CidBytes, data: bytes, head: bytes) -> int:
    """Return in how many bits `head` differs from what should stand before a block."""
    should = section_head(cid, len(data))
    pairs = zip(should, head, strict=False)
    return 8 * abs(len(should) - len(head)) + sum((a ^ b).bit_count() for a, b in pairs)


def _payload_end(file: _File) -> int:
    """Return where the payload ends: as the header says if an index begins there, or a search."""
    head = file.read(0, DATA_START)
    numbers = [int.from_bytes(head[i : i + 8], "little") for i in range(27, len(head) - 7, 8)]
    sizes = [
        DATA_START + numbers[1] if len(numbers) > 1 else 0,
        numbers[2] if len(numbers) > 2 else 0,
    ]
    for end in sizes:
        if DATA_START < end <= file.size and _is_index(file.read(end, file.size - end)):
            return end
    for end in sizes:
        if DATA_START < end <= file.size:
            return end
    return file.size


def _is_index(data: bytes) -> bool:
    try:
        decode_index(data)
    except FormatError:
        return False
    return True


def _sound(cid: CidBytes, data: bytes) -> bool:
    return hash_of(cid).digest(data) == cid[-DIGEST_SIZE:]


def _with_codec(cid: CidBytes, data: bytes) -> CidBytes:
    """Return the CID of a block whose bytes are sound; its codec is mended if they deny it."""
    if _fits(codec_of(cid), memoryview(data)):
        return cid
    return make_cid(_nearest(codec_of(cid), data), hash_of(cid), cid[-DIGEST_SIZE:])


def _nearest(codec: int, data: bytes) -> int:
    """Return the codec with the fewest other bits that the bytes can be of."""
    return min(_able(data), key=lambda known: (known ^ codec).bit_count())


def _able(data: bytes) -> list[int]:
    return [codec for codec in _CODECS if _fits(codec, memoryview(data))]
