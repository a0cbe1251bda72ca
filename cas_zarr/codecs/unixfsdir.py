"""UnixFS directories: names to links, in one node or, where they are many, in a tree of shards.

Written is what the profile ``unixfs-v1-2025`` fixes: CIDv1, one node while its block is at most
256 KiB, to the byte; past that a HAMT of fanout 256 over murmur3-x64-64 of the names. With SHA-256
the CID is what ``ipfs add`` gives under that profile. Read is every directory, strictly.

Source: https://specs.ipfs.tech/unixfs/, https://specs.ipfs.tech/ipips/ipip-0499/.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import DAG_PB, BytesLike, CidBytes, HashFunction, as_cid_bytes, cid_of
from cas_zarr.cid import encode_varint as varint
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.dagpb import FieldKinds, PBLink
from cas_zarr.codecs.murmur3 import MURMUR3_X64_64, murmur3
from cas_zarr.errors import FormatError, InvalidArgumentError, LimitError

__all__ = [
    "FANOUT",
    "MAX_NAME",
    "THRESHOLD",
    "DirectoryBlock",
    "DirectoryEntry",
    "DirectoryNode",
    "check_name",
    "decode_directory",
    "directory_blocks",
    "node_type",
    "position",
]

THRESHOLD: Final = 262144
"""Largest block, in bytes, of a directory that is one node."""

FANOUT: Final = 256
"""Places of a shard that is written."""

MAX_NAME: Final = 1024
"""Longest name that is read or written, in bytes."""

_MAX_FANOUT: Final = 1024
_CID_SIZE: Final = 36
_LIMIT: Final = 1 << 63
_BASIC_DATA: Final = b"\x0a\x02\x08\x01"  # the field of a node with the type in it
_TYPE, _DATA, _FILESIZE, _BLOCKSIZES = 1, 2, 3, 4
_HASH_TYPE, _FANOUT, _MODE, _MTIME = 5, 6, 7, 8
_FIELDS: FieldKinds = {
    _TYPE: int,
    _DATA: bytes,
    _FILESIZE: int,
    _BLOCKSIZES: int,
    _HASH_TYPE: int,
    _FANOUT: int,
    _MODE: int,
    _MTIME: bytes,
}
_DIRECTORY, _SHARD = 1, 5
_TYPES: Final = {
    0: "file",
    1: "directory",
    2: "file",
    3: "metadata",
    4: "symlink",
    5: "shard",
}
_PREFIXES: Final = tuple(b"%02X" % place for place in range(FANOUT))


class DirectoryBlock(NamedTuple):
    """A block of a directory, and the bytes of all blocks at and below it."""

    cid: CidBytes
    data: bytes
    tsize: int


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """A name in a node of a directory.

    Attributes
    ----------
    name : str or None
        None for a shard of the level below.
    cid : CidBytes
        As CIDv1.
    tsize : int
        Bytes of all blocks below, as the node claims; 0 where it says nothing.
    place : int
        Where it stands in a shard; 0 in a directory of one node.
    """

    name: str | None
    cid: CidBytes
    tsize: int
    place: int = 0


@dataclass(frozen=True, slots=True)
class DirectoryNode:
    """A node of a directory.

    Attributes
    ----------
    entries : tuple of DirectoryEntry
    fanout : int
        Places of a shard; 0 for a directory of one node.
    """

    entries: tuple[DirectoryEntry, ...]
    fanout: int = 0


# -- writing --------------------------------------------------------------------------------------


def directory_blocks(
    names: Sequence[str], cids: BytesLike, tsizes: Sequence[int], function: HashFunction
) -> Iterator[DirectoryBlock]:
    """Yield the blocks of a directory, children first; the last one is the directory itself.

    Parameters
    ----------
    names : sequence of str
        In any order, each once.
    cids : bytes
        The CIDs of the entries one after another, CIDv1 of 36 bytes each.
    tsizes : sequence of int
        Bytes of all blocks at and below each entry.
    function : HashFunction
        What the CIDs of the nodes are made with.

    Raises
    ------
    InvalidArgumentError
        If the columns differ in length, or a name cannot stand in a directory or is there twice.
    LimitError
        If sizes pass 2^63-1, or two names have the same hash.
    """
    n = len(names)
    if len(tsizes) != n or len(cids) != n * _CID_SIZE:
        raise InvalidArgumentError(
            f"a directory of {n} names needs as many sizes and cids of {_CID_SIZE} bytes"
        )
    cids = bytes(cids)
    encoded = [_encode_name(name) for name in names]
    if sum(tsizes) >= _LIMIT - (1 << 40):
        raise LimitError("a directory has 2^63 bytes or more below it")
    if n * 44 + sum(map(len, encoded)) <= THRESHOLD:  # what links have at least
        data = _basic(encoded, cids, tsizes)
        if len(data) <= THRESHOLD:
            yield _block(data, sum(tsizes), function)
            return
    hashes = murmur3(encoded)
    order = np.argsort(hashes, kind="stable")
    yield from _Shards(encoded, cids, tsizes, hashes[order], order, function).run(0, n, 0)


def _encode_name(name: str) -> bytes:
    check_name(name, InvalidArgumentError)
    return name.encode()


def _basic(names: Sequence[bytes], cids: bytes, tsizes: Sequence[int]) -> bytes:
    out = bytearray()
    before = b""
    for row in sorted(range(len(names)), key=names.__getitem__):
        name = names[row]
        if name == before:
            raise InvalidArgumentError(f"a directory has the name {name.decode()!r} twice")
        before = name
        out += _link(name, cids[_CID_SIZE * row : _CID_SIZE * row + _CID_SIZE], tsizes[row])
    return bytes(out + _BASIC_DATA)


def _link(name: bytes, cid: bytes, tsize: int) -> bytes:
    body = b"\x0a\x24%b\x12%b%b\x18%b" % (cid, varint(len(name)), name, varint(tsize))
    return b"\x12%b%b" % (varint(len(body)), body)


def _block(data: bytes, below: int, function: HashFunction) -> DirectoryBlock:
    return DirectoryBlock(cid_of(DAG_PB, function, data), data, len(data) + below)


class _Shards:
    """Entries in the order of their hashes, which fall into shards by eight bits a level."""

    def __init__(
        self,
        names: Sequence[bytes],
        cids: bytes,
        tsizes: Sequence[int],
        hashes: NDArray[np.uint64],
        order: NDArray[np.int64],
        function: HashFunction,
    ) -> None:
        self.names = names
        self.cids = cids
        self.tsizes = tsizes
        self.hashes = hashes
        self.order = order
        self.function = function

    def run(self, low: int, high: int, level: int) -> Iterator[DirectoryBlock]:
        if level == 8:
            names = [self.names[row].decode() for row in self.order[low : low + 2].tolist()]
            if names[0] == names[1]:
                raise InvalidArgumentError(f"a directory has the name {names[0]!r} twice")
            raise LimitError(f"names {names} have one hash, so no directory can hold both")
        hashes: list[int] = self.hashes[low:high].tolist()
        order = self.order[low:high].tolist()
        shift = 56 - 8 * level
        out = bytearray()
        bits = below = 0
        at = 0
        while at < len(hashes):
            place = hashes[at] >> shift & 255
            end = at + 1
            if end < len(hashes) and hashes[end] >> shift & 255 == place:
                end = bisect_left(hashes, (hashes[at] >> shift) + 1 << shift, end)
                block = None
                for block in self.run(low + at, low + end, level + 1):
                    yield block
                assert block is not None
                out += _link(_PREFIXES[place], block.cid, block.tsize)
                below += block.tsize
            else:
                row = order[at]
                cid = self.cids[_CID_SIZE * row : _CID_SIZE * row + _CID_SIZE]
                out += _link(_PREFIXES[place] + self.names[row], cid, self.tsizes[row])
                below += self.tsizes[row]
            bits |= 1 << place
            at = end
        field = bits.to_bytes(FANOUT // 8, "big").lstrip(b"\0")
        data = b"\x08\x05\x12%b%b\x28\x22\x30\x80\x02" % (varint(len(field)), field)
        out += b"\x0a%b%b" % (varint(len(data)), data)
        yield _block(bytes(out), below, self.function)


# -- reading --------------------------------------------------------------------------------------


def check_name(name: str, error: type[FormatError | InvalidArgumentError] = FormatError) -> None:
    """Refuse a name that cannot stand in a directory: empty, "." or "..", with "/" or NUL.

    Raises
    ------
    FormatError
        Or whatever `error` says.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise error(f"a directory has the name {name[:80]!r}, which is no name of a file")
    if len(name) > MAX_NAME // 4:
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            size = 0
        if size > MAX_NAME:
            raise error(f"a directory has a name of {size} bytes; at most {MAX_NAME} can be")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise error(f"a directory has the name {name[:80]!r}, which is not unicode") from None


def node_type(data: BytesLike) -> str:
    """Return what a UnixFS node is: file, directory, shard, symlink or metadata.

    Raises
    ------
    FormatError
        If it is none.
    """
    return _TYPES[_type_of(_fields(dagpb.decode(data).data))]


def decode_directory(data: BytesLike) -> DirectoryNode:
    """Return the node of a directory that DAG-PB bytes encode.

    Raises
    ------
    FormatError
        If they are no UnixFS directory; if a name cannot stand in one, is there twice or out of
        order; if the places of a shard do not agree with its links.
    """
    node = dagpb.decode(data)
    fields = _fields(node.data)
    kind = _type_of(fields)
    if kind == _SHARD:
        return _decode_shard(fields, node.links)
    if kind != _DIRECTORY:
        raise FormatError(f"a unixfs node is a {_TYPES[kind]}, not a directory")
    entries = []
    before: bytes | None = None
    for link in node.links:
        name = link.name or ""
        check_name(name)
        if before is not None and name.encode() <= before:
            raise FormatError(f"a directory has the name {name!r} twice or out of order")
        before = name.encode()
        entries.append(DirectoryEntry(name, _cid(link), link.tsize or 0))
    return DirectoryNode(tuple(entries))


def position(name: str, level: int, fanout: int) -> int:
    """Return the place of a name in the shards of a level, counted from the top.

    Raises
    ------
    FormatError
        If the level is deeper than the hash has bits.
    """
    width = fanout.bit_length() - 1
    shift = 64 - width * (level + 1)
    if shift < 0:
        raise FormatError("a sharded directory is deeper than the hash of a name has bits")
    return int(murmur3([name.encode()])[0]) >> shift & fanout - 1


def _fields(data: bytes | None) -> dict[int, int | bytes]:
    if data is None:
        raise FormatError("a dag-pb node has no data, so it is no unixfs")
    found: dict[int, int | bytes] = {}
    for field, value in dagpb.read_fields(data, _FIELDS):
        if field in found and field != _BLOCKSIZES:
            raise FormatError(f"a unixfs node has the field {field} twice")
        found[field] = value
    return found


def _type_of(fields: dict[int, int | bytes]) -> int:
    kind = fields.get(_TYPE)
    if not isinstance(kind, int) or kind not in _TYPES:
        raise FormatError(f"a unixfs node is of type {kind!r}, not known here")
    return kind


def _cid(link: PBLink) -> CidBytes:
    return link.cid if link.cid[0] == 1 else as_cid_bytes(link.cid)


def _decode_shard(fields: dict[int, int | bytes], links: tuple[PBLink, ...]) -> DirectoryNode:
    fanout, bits, function = fields.get(_FANOUT), fields.get(_DATA, b""), fields.get(_HASH_TYPE)
    if (
        not isinstance(fanout, int)
        or not 8 <= fanout <= _MAX_FANOUT
        or fanout & fanout - 1
        or not isinstance(bits, bytes)
        or len(bits) > fanout // 8
    ):
        raise FormatError(f"a sharded directory has a fanout of {fanout!r}, or places beyond it")
    if function != MURMUR3_X64_64:
        raise FormatError(f"a sharded directory has the hash {function!r}, not known here")
    field = int.from_bytes(bits, "big")
    places = [place for place in range(fanout) if field >> place & 1]
    if len(places) != len(links):
        raise FormatError(f"a shard has {len(links)} links and {len(places)} places")
    width = len(f"{fanout - 1:X}")
    entries = []
    for place, link in zip(places, links, strict=True):
        text = link.name or ""
        if text[:width] != f"{place:0{width}X}":
            raise FormatError(f"a shard has the link {text[:80]!r} at the place {place}")
        name = text[width:] or None
        if name is not None:
            check_name(name)
        entries.append(DirectoryEntry(name, _cid(link), link.tsize or 0, place))
    return DirectoryNode(tuple(entries), fanout)
