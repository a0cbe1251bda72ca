"""A CAR file as a place of blocks, read where it lies: on the disk, in memory, or on a server.

Of a file with an index (CARv2) only what is asked for is read. Without one, its sections are gone
through once: on the disk only their heads are read, from a server the whole file is.

The index is a claim of whoever wrote the file. Where it leads to the section of another block, a
local file is gone through once, too; every block is hashed before it leaves.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import checked
from cas_zarr.blocks.carlookup import WindowedIndex
from cas_zarr.blocks.carsource import FIRST, WebSource, open_source
from cas_zarr.blocks.index import KEY_SIZE, PackIndex
from cas_zarr.blocks.pack import MAX_SECTION, parse_section
from cas_zarr.blocks.readonly import ReadOnlyBlocks
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import (
    DIGEST_SIZE,
    HASHES,
    CidBytes,
    CidLike,
    as_cid_bytes,
    decode_varint,
    format_cid,
    matches,
)
from cas_zarr.codecs.car import (
    DATA_START,
    MAX_HEADER,
    PRAGMA,
    CarReader,
    Section,
    decode_roots,
    naming,
    parse_wrapper,
)
from cas_zarr.codecs.carindex import MULTIHASH_INDEX_SORTED, decode_index, encode_index, index_codec
from cas_zarr.codecs.carnote import MAX_NOTE, CarNote
from cas_zarr.errors import CorruptBlockError, FormatError, InvalidCIDError
from cas_zarr.parallel import map_ordered

if TYPE_CHECKING:
    from cas_zarr.blocks.http import HttpClient

__all__ = ["CarBlocks"]

_SMALL_INDEX: Final = 4 << 20  # of a file on a server: read whole up to this size
_LARGE_INDEX: Final = 256 << 20  # of a local file
_HEAD: Final = 320  # a length and the longest CID
_WINDOW: Final = 1 << 16
_GUESS: Final = 1 << 16  # what is read at least of a section whose length is not known
_REQUESTS: Final = 16  # at once


_Runs: TypeAlias = list[list[int]]
_Read: TypeAlias = list[tuple[int, tuple[CidBytes, bytes]]]


class _Index(Protocol):
    count: int

    def find(self, key: bytes) -> int | None: ...

    def find_many(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]: ...


class _Layout(NamedTuple):
    """Where the payload lies in the file, and its index."""

    version: int
    roots: tuple[CidBytes, ...]
    start: int
    size: int
    first: int  # where the sections begin, in the payload
    index_offset: int


class CarBlocks(ReadOnlyBlocks):
    """The blocks of a CAR file, of version 1 or 2.

    Parameters
    ----------
    location : path, str or bytes
        A local file, or the URL of a file on a server that answers range requests; bytes are
        those of a CAR.
    client : HttpClient, optional
        For a URL; is not closed. By default one of its own.
    index : bool
        Whether the index of the file is used. Without it the sections are gone through, as they
        are in a file that has none: a look at the heads of all of a local file, a download of one
        on a server.

    Attributes
    ----------
    roots : tuple of CidBytes
        What the header of the file names.
    version : int
        1 or 2.
    file_size : int
        In bytes.
    note : CarNote or None
        What the file says of itself if it has not all that its root leads to.

    Raises
    ------
    StorageError
        If there is no such file.
    RemoteError
        If the server does not answer, or answers no range requests.
    FormatError
        If it is no CAR, or is cut off.

    Notes
    -----
    The places of the blocks of a file take some 48 bytes of memory each; an index of more than
    4 MiB on a server (or 256 MiB on the disk) is read in windows, where it is looked at.
    """

    def __init__(
        self,
        location: str | bytes | os.PathLike[str],
        *,
        client: HttpClient | None = None,
        index: bool = True,
    ) -> None:
        self._source = open_source(location, client=client)
        self._lock = threading.Lock()
        self._offsets: NDArray[np.uint64] | None = None
        self._guess = _GUESS
        try:
            layout = self._read_layout()
            self.roots = tuple(map(as_cid_bytes, layout.roots))
            self.version = layout.version
            self.file_size = self._source.size
            self._start, self._payload = layout.start, layout.size
            self._first = layout.first
            self.note = self._read_note()
            self._claimed = self._open_index(layout.index_offset) if index else None
            self._index: _Index = self._claimed or self._scan()
        except BaseException:
            self._source.close()
            raise

    def __repr__(self) -> str:
        return f"CarBlocks({self._source.name!r}, {self._index.count} blocks)"

    def __len__(self) -> int:
        """Return how many sections the index has."""
        return self._index.count

    # docstrings inherited

    @property
    def location(self) -> str:
        name = self._source.name
        return name if self.note is None else f"{name}, which has {self.note.content()}"

    def _read(self, cid: CidBytes) -> bytes | None:
        key = cid[-KEY_SIZE:]
        index = self._index
        offset = index.find(key)
        if offset is None:
            return None
        try:
            found, data = self._section(offset)
            if found[-KEY_SIZE:] == key:
                return data
        except FormatError:
            if index is not self._claimed:
                raise
        self._mistrust(cid, index)
        return self._read(cid)

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        index = self._index
        if index is not self._claimed or self._source.remote:
            return None
        self._mistrust(cid, index)
        data = self._read(cid)
        return data if data is not None and matches(cid, data) else None

    def _has(self, cid: CidBytes) -> bool:
        return self._index.find(cid[-KEY_SIZE:]) is not None

    def _size(self, cid: CidBytes) -> int | None:
        key = cid[-KEY_SIZE:]
        index = self._index
        offset = index.find(key)
        if offset is None:
            return None
        try:
            head = self._source.read_at(self._start + offset, _HEAD)
            found, begin, end = parse_section(head)
            if found[-KEY_SIZE:] == key and offset + end <= self._payload:
                return end - begin
        except FormatError:
            if index is not self._claimed:
                raise
        self._mistrust(cid, index)
        return self._size(cid)

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        return [at >= 0 for at in self._find_many([checked(cid) for cid in cids]).tolist()]

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        """Return the bytes of many blocks, in order, each verified.

        Blocks that lie near each other are read in one go, and from a server in few requests, some
        at a time.
        """
        keys = [checked(cid) for cid in cids]
        places = self._find_many(keys)
        for row in np.flatnonzero(places < 0)[:1].tolist():
            raise self._not_found(keys[row])
        read: dict[int, tuple[CidBytes, bytes]] = {}
        runs = self._runs(np.unique(places))
        if self._source.remote:
            parts = map_waiting(self._read_run, runs, parallel=_REQUESTS)
        else:
            parts = map_ordered(self._read_run, runs)
        for part in parts:
            read.update(part)

        def give(row: int) -> bytes:
            cid = keys[row]
            found, data = read.get(int(places[row]), (cid, b""))
            if found[-KEY_SIZE:] == cid[-KEY_SIZE:] and matches(cid, data):
                return data
            return self.get(cid)  # finds another copy, or says what is wrong

        return map_ordered(give, range(len(keys)))

    def list(self) -> Iterator[CidBytes]:
        """Yield the CID of every block, each multihash once, as they lie.

        The sections are gone through for it; of a file on a server all is downloaded.
        """
        for cid, offset, _ in self._sections():
            if _is_known(cid) and self._place(cid, offset) == offset:
                yield as_cid_bytes(cid)

    def close(self) -> None:
        self._source.close()

    # -- opening ----------------------------------------------------------------------------

    def _read_layout(self) -> _Layout:
        source = self._source
        head = source.read_at(0, DATA_START)
        if head[: len(PRAGMA)] != PRAGMA:
            roots, first = self._read_roots(0, source.size)
            return _Layout(1, roots, 0, source.size, first, 0)
        with naming(source.name):
            _, start, size, index_offset = parse_wrapper(head)
        if start + size > source.size or index_offset >= source.size:
            raise FormatError(
                f"{source.name} is cut off: it has {source.size} bytes, and its parts should end "
                f"at {max(start + size, index_offset)}; fetch it again"
            )
        roots, first = self._read_roots(start, start + size)
        return _Layout(2, roots, start, size, first, index_offset)

    def _read_roots(self, start: int, end: int) -> tuple[tuple[CidBytes, ...], int]:
        """Read the header of the payload; return its roots, and where in it the sections begin."""
        try:
            size, width = decode_varint(self._source.read_at(start, min(9, end - start)))
        except InvalidCIDError:
            size = width = 0
        if not 0 < size <= min(MAX_HEADER, end - start - width):
            raise FormatError(f"{self._source.name} does not begin as a car file does")
        with naming(self._source.name):
            return decode_roots(self._source.read_at(start + width, size)), width + size

    def _read_note(self) -> CarNote | None:
        at, size = self._start + self._first, min(_HEAD + MAX_NOTE, self._payload - self._first)
        data = self._source.read_at(at, size)
        try:
            cid, begin, end = parse_section(data)
        except FormatError:  # whoever goes through the sections says what is wrong
            return None
        block = data[begin:end]
        if end > len(data) or not _is_known(cid) or not matches(cid, block):
            return None
        return CarNote.from_block(cid, block)

    def _open_index(self, at: int) -> _Index | None:
        """Return the index of the file; None if there is none that can be used."""
        if not at:
            return None
        source = self._source
        size = source.size - at
        try:
            if size > (_SMALL_INDEX if source.remote else _LARGE_INDEX):
                return WindowedIndex(source, at)
            data = source.read_at(at, size)
            if index_codec(data)[0] != MULTIHASH_INDEX_SORTED:
                return None
            decode_index(data)
        except FormatError:
            return None
        found = PackIndex(data)
        self._offsets = _offsets(found)
        return found

    def _scan(self) -> PackIndex:
        """Make an index of all sections."""
        records: dict[int, tuple[bytearray, array[int]]] = {}
        for cid, offset, _ in self._sections():
            if _is_known(cid):
                code = cid[-KEY_SIZE]
                digests, offsets = records.setdefault(code, (bytearray(), array("Q")))
                digests += cid[-DIGEST_SIZE:]
                offsets.append(offset)
        index = PackIndex(
            encode_index(
                (
                    code,
                    np.frombuffer(digests, np.uint8).reshape(len(offsets), DIGEST_SIZE),
                    np.frombuffer(offsets, np.uint64),
                )
                for code, (digests, offsets) in records.items()
            )
        )
        self._offsets = _offsets(index)
        return index

    def _sections(self) -> Iterator[Section]:
        """Yield all sections, in their order; blocks are not hashed."""
        source = self._source
        if isinstance(source, WebSource) and source.size > FIRST:
            with source.stream() as file:
                yield from CarReader(file, verify=False, name=source.name).sections()
            return
        offset = self._first
        window, at = b"", 0
        while offset < self._payload:
            if not at <= offset <= at + len(window) - _HEAD:
                small = offset - at > 4 * _WINDOW  # blocks are large: read heads alone
                window, at = (
                    source.read_at(self._start + offset, _HEAD if small else _WINDOW),
                    (offset),
                )
                window = window[: self._payload - offset]
            try:
                cid, start, stop = parse_section(window, offset - at)
            except FormatError as error:
                raise FormatError(
                    f"{source.name} has no section at {offset}: {error}; fetch it again, or import "
                    "what lies before"
                ) from None
            if at + stop > self._payload:
                raise FormatError(
                    f"{source.name} is cut off: the section at {offset} ends at {at + stop} of "
                    f"{self._payload} bytes; fetch it again, or import what lies before"
                )
            yield Section(cid, offset, stop - start)
            offset = at + stop

    def _place(self, cid: CidBytes, offset: int) -> int | None:
        """Return where the index says that a block is which is at an offset, too."""
        index = self._index
        place = index.find(cid[-KEY_SIZE:])
        if place == offset or index is not self._claimed:
            return place
        if place is None:
            self._mistrust(cid, index)
        else:  # a second copy, or the index lies
            self._size(cid)
        return self._index.find(cid[-KEY_SIZE:])

    def _mistrust(self, cid: CidBytes, index: _Index) -> None:
        """Make another index in place of one that led to another block."""
        if index is not self._claimed:
            raise CorruptBlockError(
                f"block {format_cid(cid)} is not where it was in {self._source.name}: the file was "
                "changed; open it anew"
            )
        if self._source.remote:
            raise CorruptBlockError(
                f"the index of {self._source.name} leads to something else than block "
                f"{format_cid(cid)}; download the file, and open it with index=False"
            )
        with self._lock:
            if self._index is index:
                self._index = self._scan()

    # -- reading ----------------------------------------------------------------------------

    def _find_many(self, cids: Sequence[CidBytes]) -> NDArray[np.int64]:
        keys = np.frombuffer(b"".join(cid[-KEY_SIZE:] for cid in cids), np.uint8)
        return self._index.find_many(keys.reshape(len(cids), KEY_SIZE))

    def _extent(self, offset: int) -> int:
        """Return how many bytes to read for the section at an offset: all of it, or a guess."""
        offsets = self._offsets
        if offsets is None:
            return min(self._guess, MAX_SECTION, self._payload - offset)
        row = int(np.searchsorted(offsets, np.uint64(offset), side="right"))
        stop = int(offsets[row]) if row < len(offsets) else self._payload
        return max(min(stop, self._payload, offset + MAX_SECTION) - offset, 0)

    def _section(self, offset: int, window: bytes = b"") -> tuple[CidBytes, bytes]:
        """Return CID and bytes of the section at an offset; `window` has what was read of it."""
        data = window or self._source.read_at(self._start + offset, self._extent(offset))
        try:
            cid, begin, end = parse_section(data)
        except FormatError:  # too little of it was read, or there is none
            more = min(_HEAD, self._payload - offset) - len(data)
            if more <= 0:
                raise
            data += self._source.read_at(self._start + offset + len(data), more)
            cid, begin, end = parse_section(data)
        if offset + end > self._payload:
            raise FormatError(
                f"{self._source.name} is cut off: a section at {offset} has {end} bytes; fetch it "
                "again"
            )
        if end > len(data):
            data += self._source.read_at(self._start + offset + len(data), end - len(data))
        self._guess = max(_GUESS, end + (end >> 2), self._guess * 3 >> 2)  # blocks differ a little
        return cid, data[begin:end]

    def _runs(self, places: NDArray[np.int64]) -> _Runs:
        """Group the offsets of sections, ascending, into those that are read in one go."""
        gap, most = (1 << 16, 8 << 20) if self._source.remote else (1 << 14, 2 << 20)
        runs: _Runs = []
        end = begin = 0
        for offset in places.tolist():
            if not runs or offset > end + gap or offset - begin > most:
                runs.append([])
                begin = offset
            runs[-1].append(offset)
            end = max(offset, min(offset + self._extent(offset), self._payload))
        return runs

    def _read_run(self, offsets: Sequence[int]) -> _Read:
        first = offsets[0]
        stop = offsets[-1] + self._extent(offsets[-1])
        data = self._source.read_at(self._start + first, stop - first)
        found: _Read = []
        for offset, behind in zip(offsets, [*offsets[1:], stop], strict=True):
            try:
                found.append((offset, self._section(offset, data[offset - first : behind - first])))
            except FormatError:  # `get` says what is wrong
                continue
        return found


def _is_known(cid: CidBytes) -> bool:
    """Tell whether a CID has a hash that can be checked here."""
    try:
        return checked(cid)[-KEY_SIZE] in HASHES
    except InvalidCIDError:
        return False


def _offsets(index: PackIndex) -> NDArray[np.uint64]:
    parts = [offsets for _, _, offsets in index.records()]
    return np.sort(np.concatenate(parts).astype(np.uint64)) if parts else np.empty(0, np.uint64)
