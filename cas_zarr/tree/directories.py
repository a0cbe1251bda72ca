"""Reading UnixFS trees: paths, folders and files, from any block store, every block verified.

A CID can carry its bytes itself (multihash ``identity``, as ``ipfs add --inline`` writes): such
blocks are read from their CIDs. Sharded directories are walked depth first, some shards at a time,
and each name is checked to stand where its hash puts it, so a few blocks cannot claim billions.

Source: https://specs.ipfs.tech/unixfs/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, BlockStore
from cas_zarr.cid import (
    DAG_PB,
    RAW,
    CidBytes,
    CidLike,
    ReadableCids,
    as_cid_bytes,
    codec_of,
    decode_varint,
    format_cid,
)
from cas_zarr.codecs.murmur3 import murmur3
from cas_zarr.codecs.unixfs import FileNode, decode_file_node
from cas_zarr.codecs.unixfsdir import (
    DirectoryEntry,
    DirectoryNode,
    check_name,
    decode_directory,
    node_type,
    position,
)
from cas_zarr.errors import FormatError, InvalidKeyError, LimitError, NotFoundError
from cas_zarr.tree.keys import MAX_DEPTH

__all__ = [
    "Entry",
    "find_name",
    "is_inline",
    "list_directory",
    "open_entry",
    "read_block",
    "read_blocks",
    "read_file",
    "resolve_path",
]

_BATCH: Final = 64  # shards that are read together
_LEAVES: Final = 16  # of a file, of up to a MiB or two, that are read together
_MAX_FILE_DEPTH: Final = 16


@dataclass(frozen=True, slots=True, repr=False)
class Entry(ReadableCids):
    """What a path of a UnixFS tree leads to.

    Attributes
    ----------
    cid : CidBytes
        As CIDv1.
    kind : str
        ``file`` or ``directory``.
    size : int
        Bytes of the file; for a directory those of all blocks at and below it, as it claims.
    """

    cid: CidBytes
    kind: Literal["file", "directory"]
    size: int


def read_block(blocks: BlockStore, cid: CidBytes) -> bytes:
    """Return the bytes of a block, verified; those of an inline CID from the CID itself.

    Raises
    ------
    BlockNotFoundError, CorruptBlockError, InvalidCIDError
    """
    data = _inline(cid)
    return blocks.get(cid) if data is None else data


def read_blocks(blocks: BlockStore, cids: Sequence[CidBytes]) -> list[bytes]:
    """Return many blocks as `read_block` does, in order, read together."""
    found = {cid: _inline(cid) for cid in cids}
    missing = [cid for cid, data in found.items() if data is None]
    found.update(zip(missing, blocks.get_many(missing), strict=True))
    return [data for cid in cids if (data := found[cid]) is not None]


def is_inline(cid: CidBytes) -> bool:
    """Tell whether a CID carries its bytes itself."""
    return _inline(cid) is not None


def _inline(cid: CidBytes) -> bytes | None:
    """Return the bytes that a CID of multihash ``identity`` carries, or None."""
    if cid[0] != 1:
        return None
    _, at = decode_varint(cid, 1)
    code, at = decode_varint(cid, at)
    return cid[decode_varint(cid, at)[1] :] if code == 0 else None


def open_entry(blocks: BlockStore, cid: CidLike) -> Entry:
    """Return what a CID of a UnixFS tree is; one block at most is read.

    Raises
    ------
    FormatError
        If it is no file and no directory.
    """
    key = as_cid_bytes(cid)
    codec = codec_of(key)
    if codec == RAW:
        if is_inline(key) or blocks.remote:  # what a server tells of a size cannot be checked
            return Entry(key, "file", len(read_block(blocks, key)))
        return Entry(key, "file", blocks.size(key))
    if codec != DAG_PB:
        raise FormatError(f"{format_cid(key)} has codec 0x{codec:x}, so it is no file or directory")
    data = read_block(blocks, key)
    try:
        kind = node_type(data)
        if kind == "file":
            return Entry(key, "file", decode_file_node(data).size)
        below = sum(entry.tsize for entry in decode_directory(data).entries)
    except FormatError as error:
        raise FormatError(f"{format_cid(key)} is no file or directory: {error}") from None
    return Entry(key, "directory", len(data) + below)


def resolve_path(blocks: BlockStore, cid: CidLike, path: str = "") -> Entry:
    """Follow a path of names from a UnixFS directory.

    Parameters
    ----------
    blocks : BlockStore
    cid : CID
        The directory (or, with an empty path, anything).
    path : str
        Names between slashes; slashes at its ends do not matter.

    Raises
    ------
    NotFoundError
        If a name is not there, or leads through a file.
    InvalidKeyError
        If the path has an empty name, "." or "..", or is deeper than 64 names.
    FormatError
        If a node on the way is no directory that can be read.
    """
    key = as_cid_bytes(cid)
    names = path.strip("/").split("/") if path.strip("/") else []
    if len(names) > MAX_DEPTH:
        raise InvalidKeyError(f"path {path[:80]!r} is deeper than {MAX_DEPTH} names")
    for at, name in enumerate(names):
        found = find_name(blocks, key, name)
        if found is None:
            above = "/".join(names[:at])
            raise NotFoundError(
                f"there is no {name!r} in /ipfs/{format_cid(as_cid_bytes(cid))}/{above}; list the "
                "directory above it"
            )
        key = found
    return open_entry(blocks, key)


def list_directory(
    blocks: BlockStore, cid: CidLike, *, block: bytes | None = None
) -> Iterator[tuple[str, CidBytes, int]]:
    """Yield name, CID and size of each entry of a UnixFS directory, in the order of its blocks.

    The size is what the directory claims of all blocks at and below the entry: for a raw block its
    bytes. Shards are read some at a time.

    Parameters
    ----------
    blocks : BlockStore
    cid : CID
        The directory.
    block : bytes, optional
        Its block, where the caller has read it.

    Raises
    ------
    FormatError
        If it is no directory, or its shards are not what they say.
    """
    key = as_cid_bytes(cid)
    top = _directory(blocks, key) if block is None else _decoded(key, block)
    if not top.fanout:
        for entry in top.entries:
            yield entry.name or "", entry.cid, entry.tsize
        return
    yield from _walk_shards(blocks, key, top)


def read_file(
    blocks: BlockStore, cid: CidLike, *, limit: int, start: int = 0, stop: int | None = None
) -> bytes:
    """Return the bytes of a UnixFS file, whatever its layout, verified; or a range of them.

    Parameters
    ----------
    blocks : BlockStore
    cid : CID
    limit : int
        The most bytes that are returned.
    start, stop : int, optional
        Range of bytes, as of a slice. Only the leaves that it touches are read, some at a time.

    Raises
    ------
    LimitError
        If there are more than `limit` bytes.
    FormatError
        If it is no file, or its sizes do not agree.
    """
    key = as_cid_bytes(cid)
    top = read_block(blocks, key)
    node = decode_file_node(top) if codec_of(key) == DAG_PB else FileNode(len(top), (), (), top)
    begin, end, _ = slice(start, stop).indices(node.size)
    if end - begin > limit:
        raise LimitError(
            f"file {format_cid(key)} has {end - begin} bytes; at most {limit} are read here"
        )
    out = bytearray()
    pieces = _pieces(blocks, node, begin, end, 0, 0)
    while batch := list(islice(pieces, _LEAVES)):
        leaves = iter(read_blocks(blocks, [piece.what for piece in batch if piece.is_leaf]))
        for piece in batch:
            data = next(leaves) if piece.is_leaf else piece.what
            if len(data) != piece.size:
                raise _wrong_size(piece.what, len(data), piece.size)
            out += data[max(begin - piece.offset, 0) : end - piece.offset]
    return bytes(out)


class _Piece(NamedTuple):
    """The CID of a leaf of a file, or bytes that stand in a node."""

    offset: int
    size: int
    what: Any
    is_leaf: bool


def _pieces(
    blocks: BlockStore, node: FileNode, begin: int, end: int, offset: int, depth: int
) -> Iterator[_Piece]:
    """Yield the pieces of a file that a range of its bytes touches."""
    if node.data and offset < end and begin < offset + len(node.data):
        yield _Piece(offset, len(node.data), node.data, False)
    offset += len(node.data)
    for child, size in zip(node.links, node.sizes, strict=True):
        if size and offset < end and begin < offset + size:
            if codec_of(child) != DAG_PB:
                yield _Piece(offset, size, child, True)
            else:
                below = decode_file_node(read_block(blocks, child))
                if below.size != size or depth == _MAX_FILE_DEPTH:
                    raise _wrong_size(child, below.size, size)
                yield from _pieces(blocks, below, begin, end, offset, depth + 1)
        offset += size


def _wrong_size(cid: CidBytes, found: int, claimed: int) -> FormatError:
    return FormatError(
        f"file {format_cid(cid)} has {found} bytes where its link says {claimed}, or is more than "
        f"{_MAX_FILE_DEPTH} nodes deep"
    )


# -- directories ----------------------------------------------------------------------------------


def _directory(blocks: BlockStore, cid: CidBytes) -> DirectoryNode:
    data = read_block(blocks, cid) if codec_of(cid) == DAG_PB else None
    if data is None or _is_file(data):
        raise NotFoundError(f"{format_cid(cid)} is no directory, and has nothing below it")
    return _decoded(cid, data)


def _is_file(data: bytes) -> bool:
    try:
        return node_type(data) == "file"
    except FormatError:  # told where it is decoded
        return False


def _decoded(cid: CidBytes, data: bytes) -> DirectoryNode:
    if len(data) > MAX_BLOCK_SIZE:
        raise LimitError(f"block {format_cid(cid)} has {len(data)} bytes")
    try:
        return decode_directory(data)
    except FormatError as error:
        raise FormatError(f"{format_cid(cid)} is no directory: {error}") from None


def find_name(blocks: BlockStore, cid: CidBytes, name: str) -> CidBytes | None:
    """Return what has a name in a UnixFS directory, or None.

    Raises
    ------
    NotFoundError
        If it is a file, so that nothing is below it.
    InvalidKeyError
        If nothing can have such a name.
    FormatError
        If it is no directory that can be read.
    """
    try:
        check_name(name)
    except FormatError:
        raise InvalidKeyError(f"a path has the name {name[:80]!r}, which no file has") from None
    node = _directory(blocks, cid)
    if not node.fanout:
        return next((entry.cid for entry in node.entries if entry.name == name), None)
    level, fanout = 0, node.fanout
    while True:
        place = position(name, level, fanout)
        entry = next((entry for entry in node.entries if entry.place == place), None)
        if entry is None or entry.name is not None:
            return entry.cid if entry is not None and entry.name == name else None
        node = _shard(entry.cid, read_block(blocks, entry.cid), fanout)
        level += 1


def _shard(cid: CidBytes, data: bytes, fanout: int) -> DirectoryNode:
    node = _decoded(cid, data)
    if node.fanout != fanout or not node.entries:
        raise FormatError(
            f"shard {format_cid(cid)} has a fanout of {node.fanout} where the one above it has "
            f"{fanout}, or nothing in it"
        )
    return node


def _walk_shards(
    blocks: BlockStore, cid: CidBytes, top: DirectoryNode
) -> Iterator[tuple[str, CidBytes, int]]:
    width = top.fanout.bit_length() - 1
    batch: list[tuple[CidBytes, DirectoryNode, int, int]] = [(cid, top, 0, 0)]
    pending: list[tuple[CidBytes, int, int]] = []  # shards, their bits of a hash, and how many
    while batch:
        named: list[tuple[CidBytes, DirectoryEntry, int, int]] = []
        inner: list[tuple[CidBytes, int, int]] = []
        for shard, node, bits, length in batch:
            for entry in node.entries:
                below = bits << width | entry.place
                if entry.name is None:
                    inner.append((entry.cid, below, length + width))
                else:
                    named.append((shard, entry, below, length + width))
        yield from _checked(named)
        pending.extend(reversed(inner))
        taken = [pending.pop() for _ in range(min(_BATCH, len(pending)))]
        if any(length + width > 64 for _, _, length in taken):
            raise FormatError(f"directory {format_cid(cid)} is deeper than hashes have bits")
        found = read_blocks(blocks, [shard for shard, _, _ in taken])
        batch = [
            (shard, _shard(shard, data, top.fanout), bits, length)
            for (shard, bits, length), data in zip(taken, found, strict=True)
        ]


def _checked(
    named: Sequence[tuple[CidBytes, DirectoryEntry, int, int]],
) -> Iterator[tuple[str, CidBytes, int]]:
    """Yield entries of shards whose names stand where their hashes put them."""
    names = [entry.name or "" for _, entry, _, _ in named]
    hashes = murmur3([name.encode() for name in names]).tolist()
    for name, (shard, entry, bits, length), word in zip(names, named, hashes, strict=True):
        if word >> 64 - length != bits:
            raise FormatError(
                f"shard {format_cid(shard)} has the name {name[:80]!r}, whose hash puts it "
                "elsewhere"
            )
        yield name, entry.cid, entry.tsize
