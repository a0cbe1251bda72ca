"""CAR files, version 1 and 2: streams of blocks with their CIDs.

A CARv1 is a header (DAG-CBOR: roots, version) and sections: varint length, CID, data. A CARv2 wraps
one between a fixed header and an index (see `carindex`). Reading works on any binary file object,
block by block, and hashes every block unless told not to.

Source: https://ipld.io/specs/transport/car/.
"""

from __future__ import annotations

import errno
import io
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from cas_zarr.cid import (
    DIGEST_SIZE,
    HASHES,
    BytesLike,
    CidBytes,
    decode_varint,
    encode_varint,
    format_cid,
    hash_of,
)
from cas_zarr.closing import Closing
from cas_zarr.codecs.carindex import (
    MULTIHASH_INDEX_SORTED,
    Digests,
    Offsets,
    decode_index,
    encode_index,
    index_codec,
)
from cas_zarr.errors import (
    CasZarrError,
    CorruptBlockError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    LimitError,
    StorageError,
)

__all__ = [
    "DATA_START",
    "MAX_HEADER",
    "PRAGMA",
    "CarHeader",
    "CarReader",
    "CarWriter",
    "Section",
    "can_seek",
    "decode_roots",
    "encode_roots",
    "encode_wrapper",
    "naming",
    "parse_cid",
    "parse_wrapper",
    "section_head",
]

PRAGMA = bytes.fromhex("0aa16776657273696f6e02")
"""First bytes of a CARv2: a CARv1 header that says version 2."""

DATA_START = len(PRAGMA) + 40
"""Offset of the CARv1 payload in the CARv2 files that are written here, in bytes."""

MAX_HEADER = 1 << 20
"""Largest CARv1 header that is read, in bytes."""

_MAX_BLOCK = 2 << 20
_MAX_CID = 256
_READ_SIZE = 1 << 18
_IDENTITY = 0


@dataclass(frozen=True, slots=True)
class CarHeader:
    """What stands before the sections of a CAR.

    Attributes
    ----------
    version : int
        1 or 2.
    roots : tuple of CidBytes
        As written in the file: CIDv0 stay as they are.
    data_offset, data_size : int
        Where the CARv1 payload lies in the file, in bytes; the size is None for version 1, which
        lasts to the end of the file.
    index_offset : int
        Where the index lies in the file, 0 if there is none.
    characteristics : bytes
        The 16 bytes of flags of version 2.
    """

    version: int
    roots: tuple[CidBytes, ...]
    data_offset: int = 0
    data_size: int | None = None
    index_offset: int = 0
    characteristics: bytes = bytes(16)


class Section(NamedTuple):
    """One block in a CAR: its CID, the offset of its section in the payload, its size in bytes."""

    cid: CidBytes
    offset: int
    size: int


def encode_roots(roots: Sequence[CidBytes]) -> bytes:
    """Return a CARv1 header with its length in front."""
    links = [b"\xd8\x2a" + _cbor_head(0x40, len(cid) + 1) + b"\0" + cid for cid in roots]
    body = b"\xa2\x65roots" + _cbor_head(0x80, len(roots)) + b"".join(links) + b"\x67version\x01"
    return encode_varint(len(body)) + body


def decode_roots(body: bytes) -> tuple[CidBytes, ...]:
    """Return the roots in a CARv1 header, given without its length.

    Raises
    ------
    FormatError
        If it is not the canonical DAG-CBOR of ``{roots: [links], version: 1}``.
    """
    if body == PRAGMA[1:]:
        raise FormatError("a car of version 2 stands where a car of version 1 is wanted")
    refusal = FormatError(f"car header {body[:64].hex()} is not one of version 1 in dag-cbor")
    if body[:7] != b"\xa2\x65roots" or body[-9:] != b"\x67version\x01":
        raise refusal
    end = len(body) - 9
    count, at = _cbor_argument(body, 7, 0x80, refusal)
    roots: list[CidBytes] = []
    for _ in range(count):
        if body[at : at + 2] != b"\xd8\x2a":
            raise refusal
        size, at = _cbor_argument(body, at + 2, 0x40, refusal)
        if size < 2 or at + size > end or body[at] != 0:
            raise refusal
        cid, stop = parse_cid(body, at + 1, at + size)
        if stop != at + size:
            raise refusal
        roots.append(cid)
        at = stop
    if at != end:
        raise refusal
    return tuple(roots)


def encode_wrapper(
    data_size: int,
    index_offset: int,
    *,
    data_offset: int = DATA_START,
    characteristics: bytes = bytes(16),
) -> bytes:
    """Return pragma and header of a CARv2."""
    numbers = (data_offset, data_size, index_offset)
    return PRAGMA + characteristics + b"".join(n.to_bytes(8, "little") for n in numbers)


def parse_wrapper(data: bytes) -> tuple[bytes, int, int, int]:
    """Return characteristics, data offset, data size and index offset of a CARv2.

    Raises
    ------
    FormatError
        If the first 51 bytes are not the header of a finished CARv2.
    """
    if len(data) < DATA_START or data[: len(PRAGMA)] != PRAGMA:
        raise FormatError(f"bytes {data[:16].hex()} do not begin a car of version 2")
    at = len(PRAGMA) + 16
    data_offset, data_size, index_offset = (
        int.from_bytes(data[start : start + 8], "little") for start in (at, at + 8, at + 16)
    )
    data_end = data_offset + data_size
    if (
        data_offset < DATA_START
        or data_size == 0
        or data_end >= 1 << 63
        or (index_offset and not data_end <= index_offset < 1 << 63)
    ):
        raise FormatError(
            f"a car of version 2 places its data at {data_offset}, {data_size} bytes, and its "
            f"index at {index_offset}: it was not finished, or is damaged"
        )
    return data[len(PRAGMA) : at], data_offset, data_size, index_offset


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of the file before what is wrong in it."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None


def parse_cid(data: BytesLike, start: int, end: int) -> tuple[CidBytes, int]:
    """Return the CID that begins at `start` and the offset behind it, at most `end`.

    Raises
    ------
    FormatError
        If there is none.
    """
    if bytes(data[start : start + 2]) == b"\x12\x20":
        stop = start + 34
    else:
        try:
            version, at = decode_varint(data, start)
            _, at = decode_varint(data, at)
            _, at = decode_varint(data, at)
            size, at = decode_varint(data, at)
        except InvalidCIDError as error:
            raise FormatError(f"a car holds a cid that cannot be read: {error}") from None
        stop = at + size
        if version != 1 or stop - start > _MAX_CID:
            raise FormatError(f"a car holds a cid of version {version} and {stop - start} bytes")
    if stop > end:
        raise FormatError("a car holds a cid that reaches beyond its section")
    return CidBytes(bytes(data[start:stop])), stop


def section_head(cid: CidBytes, size: int) -> bytes:
    """Return what stands before the `size` bytes of a block in a CAR."""
    return encode_varint(len(cid) + size) + cid


class CarReader(Closing):
    """The blocks of a CAR, one after another.

    Parameters
    ----------
    source : path or binary file object
        A file object is read from where it stands and is not closed; it need not be seekable.
    max_block : int
        Largest block that is read, in bytes.
    verify : bool
        Whether each block is hashed and compared with its CID.
    name : str, optional
        What the source is called in messages.

    Raises
    ------
    FormatError
        If the header is not that of a CAR.

    Examples
    --------
    >>> with CarReader("weather.car") as car:  # doctest: +SKIP
    ...     for cid, data in car:
    ...         blocks.put(cid, data)
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        max_block: int = _MAX_BLOCK,
        verify: bool = True,
        name: str | None = None,
    ) -> None:
        self._owned = isinstance(source, (str, os.PathLike))
        path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "a stream"
        self._name = name or path
        if isinstance(source, io.TextIOBase):
            raise InvalidArgumentError(
                f"{self._name} is open as text; open it as binary, with 'rb'"
            )
        try:
            self._file: BinaryIO = open(source, "rb") if self._owned else source  # type: ignore[arg-type,assignment]  # noqa: SIM115
        except (OSError, ValueError) as error:  # ValueError: no path has a NUL
            number = getattr(error, "errno", None) or errno.EINVAL
            raise StorageError(
                number, "cannot open a car file; check its path", self._name
            ) from error
        self._max_block = max_block
        self._verify = verify
        self._buffer = b""
        self._at = 0  # position of the next byte in the buffer
        self._taken = 0  # bytes of the source before the buffer
        self._limit: int | None = None  # end of the payload in the source
        try:
            with self._reading():
                self._start = self._file.tell() if can_seek(self._file) else None
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file if this reader opened it."""
        if self._owned:
            self._file.close()

    def __iter__(self) -> Iterator[tuple[CidBytes, bytes]]:
        """Yield CID and bytes of each block that is still ahead, verified.

        Raises
        ------
        FormatError
            If a section is cut off, too long, or no section.
        CorruptBlockError
            If a block does not hash to its CID.
        InvalidCIDError
            If a CID has a hash that cannot be checked here, unless `verify` is off.
        """
        for section in self._sections():
            data = self._take(section.size)
            if self._verify and not _holds(section.cid, data):
                raise CorruptBlockError(
                    f"block {format_cid(section.cid)} at {section.offset} in {self._name} is "
                    "damaged: its bytes do not hash to its cid; fetch it again from elsewhere"
                )
            yield section.cid, data

    def sections(self) -> Iterator[Section]:
        """Yield CID, offset and size of each block that is still ahead, without its bytes."""
        for section in self._sections():
            yield section
            self._skip(section.size)

    def index(self) -> list[tuple[int, Digests, Offsets]] | None:
        """Return the index of a seekable CARv2 as `decode_index` does, or None if it has none.

        An index of another kind counts as none: it can always be made from the sections.
        """
        if not self.header.index_offset:
            return None
        if self._start is None:
            raise InvalidArgumentError(f"{self._name} cannot seek, so its index cannot be read")
        with self._reading():
            back = self._file.tell()
            self._file.seek(self._start + self.header.index_offset)
            data = self._file.read()
            self._file.seek(back)
        codec, _ = index_codec(data)
        return decode_index(data) if codec == MULTIHASH_INDEX_SORTED else None

    # -- reading ----------------------------------------------------------------------------

    def _read_header(self) -> CarHeader:
        body = self._header_body()
        if body != PRAGMA[1:]:
            with naming(self._name):
                return CarHeader(1, decode_roots(body))
        wrapper = PRAGMA + self._take(DATA_START - len(PRAGMA))
        with naming(self._name):
            flags, data_offset, data_size, index_offset = parse_wrapper(wrapper)
        self._skip(data_offset - DATA_START)
        self._limit = data_offset + data_size
        self._buffer = self._buffer[: max(0, self._limit - self._taken)]
        body = self._header_body()
        with naming(self._name):
            roots = decode_roots(body)
        return CarHeader(2, roots, data_offset, data_size, index_offset, flags)

    def _header_body(self) -> bytes:
        size = self._varint()
        if size is None or not 0 < size <= MAX_HEADER:
            raise FormatError(f"{self._name} does not begin as a car file does")
        return self._take(size)

    def _sections(self) -> Iterator[Section]:
        base = self.header.data_offset
        while True:
            offset = self._position - base
            length = self._varint()
            if length is None:
                return
            if not 0 < length <= self._max_block + _MAX_CID:
                raise FormatError(
                    f"the section at {offset} in {self._name} claims {length} bytes; a block has "
                    f"at most {self._max_block}"
                )
            self._fill(min(length, _MAX_CID))
            end = min(self._at + length, len(self._buffer))
            try:
                cid, stop = parse_cid(self._buffer, self._at, end)
            except FormatError as error:
                raise FormatError(f"{self._name}, at {offset}: {error}") from None
            size = length - (stop - self._at)
            if size > self._max_block:
                raise LimitError(
                    f"block {format_cid(cid)} in {self._name} has {size} bytes; the largest that "
                    f"is read is {self._max_block}"
                )
            self._at = stop
            yield Section(cid, offset, size)

    @property
    def _position(self) -> int:
        return self._taken + self._at

    def _fill(self, size: int) -> int:
        """Have at least `size` bytes ahead in the buffer, if the payload has them."""
        have = len(self._buffer) - self._at
        if have >= size:
            return have
        pieces = [self._buffer[self._at :]]
        self._taken += self._at
        self._at = 0
        end = self._taken + have
        while have < size:
            want = min(max(size - have, _READ_SIZE), 1 << 20)
            if self._limit is not None:
                want = min(want, self._limit - end)
            piece = self._read(want) if want else b""
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
            end += len(piece)
        self._buffer = b"".join(pieces)
        return have

    def _read(self, size: int) -> bytes:
        with self._reading():
            piece: bytes | None = self._file.read(size)
            if piece is None:
                raise BlockingIOError(errno.EAGAIN, "nothing has come yet, and it does not wait")
        return piece

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except CasZarrError:  # a server's stream says itself what is wrong
            raise
        except (OSError, ValueError) as error:  # ValueError: it was closed
            reason = getattr(error, "strerror", None) or str(error)
            raise StorageError(
                f"cannot read {self._name}: {reason.lower()}; open it anew"
            ) from error

    def _take(self, size: int) -> bytes:
        if self._fill(size) < size:
            raise FormatError(
                f"{self._name} is cut off: {size} bytes should follow at {self._position} and "
                f"{len(self._buffer) - self._at} do"
            )
        data = self._buffer[self._at : self._at + size]
        self._at += size
        return data

    def _skip(self, size: int) -> None:
        while size > 0:
            step = min(size, 1 << 20)
            self._take(step)
            size -= step

    def _varint(self) -> int | None:
        """Read a varint, or None at the end of the payload."""
        if self._fill(1) == 0:
            if self._limit is not None and self._position < self._limit:
                raise FormatError(
                    f"{self._name} is cut off at {self._position} of {self._limit} bytes"
                )
            return None
        self._fill(9)
        try:
            value, self._at = decode_varint(self._buffer, self._at)
        except InvalidCIDError as error:
            raise FormatError(
                f"a length at {self._position} in {self._name} cannot be read: {error}"
            ) from None
        return value


class CarWriter:
    """Write a CAR block by block.

    Parameters
    ----------
    target : binary file object
        Written from where it stands, not closed; it must be seekable for version 2.
    roots : iterable of CidBytes
    version : int
        1 or 2.
    index : bool
        Whether version 2 gets a MultihashIndexSorted.

    Notes
    -----
    Blocks with an identity CID are written and not indexed, as go-car does it. Nothing is checked
    against its CID: blocks come verified. A file without a buffer may take a part of what it is
    given; the rest is given to it again.
    """

    def __init__(
        self,
        target: BinaryIO | io.BufferedIOBase,
        roots: Iterable[CidBytes] = (),
        *,
        version: int = 2,
        index: bool = True,
    ) -> None:
        if version not in (1, 2):
            raise InvalidArgumentError(f"car version {version} is not known; use 1 or 2")
        self._file = target
        self._version = version
        self._with_index = index and version == 2
        self._records: dict[tuple[int, int], tuple[bytearray, array[int]]] = {}
        if version == 2:
            self._start = target.tell()
            self._write(bytes(DATA_START))
        header = encode_roots(tuple(roots))
        self._write(header)
        self._offset = len(header)

    def put(self, cid: CidBytes, data: BytesLike) -> int:
        """Write a block; return the offset of its section in the payload, in bytes."""
        head = section_head(cid, len(data))
        self._write(head)
        self._write(data)
        offset = self._offset
        self._offset += len(head) + len(data)
        if self._with_index:
            code, digest = _multihash(cid)
            if code != _IDENTITY:
                digests, offsets = self._records.setdefault(
                    (code, len(digest)), (bytearray(), array("Q"))
                )
                digests += digest
                offsets.append(offset)
        return offset

    def finish(self) -> int:
        """Write the index and the header of version 2; return the size of the file in bytes."""
        if self._version == 1:
            return self._offset
        end = DATA_START + self._offset
        index = b""
        if self._with_index:
            index = encode_index(
                (
                    code,
                    np.frombuffer(digests, np.uint8).reshape(len(offsets), size),
                    np.frombuffer(offsets, np.uint64),
                )
                for (code, size), (digests, offsets) in self._records.items()
            )
            self._write(index)
        self._file.seek(self._start)
        self._write(encode_wrapper(self._offset, end if index else 0))
        self._file.seek(self._start + end + len(index))
        return end + len(index)

    def _write(self, data: BytesLike) -> None:
        done = self._file.write(data)
        if not isinstance(self._file, io.RawIOBase):  # others take all of it
            return
        while done is None or done < len(data):
            if not done:
                raise BlockingIOError(errno.EAGAIN, "it takes no more now, and does not wait")
            data = memoryview(data)[done:]
            done = self._file.write(data)


def can_seek(file: BinaryIO) -> bool:
    """Tell whether a file object can seek."""
    seekable = getattr(file, "seekable", None)  # an answer of a server may not have it
    return seekable is not None and bool(seekable())


def _holds(cid: CidBytes, data: bytes) -> bool:
    code, digest = _multihash(cid)
    if code == _IDENTITY:
        return digest == data
    function = HASHES.get(code)
    if function is None or len(digest) != DIGEST_SIZE:
        function = hash_of(cid)  # raises, with the words for it
    return function.digest(data) == digest


def _multihash(cid: CidBytes) -> tuple[int, bytes]:
    """Return the multihash code and the digest of a CID."""
    if cid[:2] == b"\x12\x20":
        return 0x12, cid[2:]
    _, at = decode_varint(cid, 1)
    code, at = decode_varint(cid, at)
    _, at = decode_varint(cid, at)
    return code, cid[at:]


def _cbor_head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major | value])
    width = 1 if value < 1 << 8 else 2 if value < 1 << 16 else 4
    return bytes([major | (23 + width.bit_length())]) + value.to_bytes(width, "big")


def _cbor_argument(data: bytes, at: int, major: int, refusal: FormatError) -> tuple[int, int]:
    """Read the head of a CBOR item of that major type, in its shortest form."""
    if at >= len(data) or data[at] & 0xE0 != major or data[at] & 0x1F > 26:
        raise refusal
    low = data[at] & 0x1F
    if low < 24:
        return low, at + 1
    stop = at + 1 + (1 << (low - 24))
    value = int.from_bytes(data[at + 1 : stop], "big")
    if stop > len(data) or _cbor_head(major, value) != data[at:stop]:
        raise refusal
    return value, stop
