"""UnixFS files: how a value of more than one leaf is linked, and read in part.

Written is the layout of the profile ``unixfs-v1-2025``: CIDv1, raw leaves of 1 MiB, 1024 links a
node, balanced, no inline data, no metadata; with SHA-256 the CID is that of ``ipfs add`` under
that profile. Leaves of other sizes make a file that is as valid, under a CID of its own. Read is
every UnixFS file.

Source: https://specs.ipfs.tech/unixfs/, https://specs.ipfs.tech/ipips/ipip-0499/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cas_zarr.cid import (
    DAG_PB,
    BytesLike,
    CidBytes,
    HashFunction,
    as_cid_bytes,
    cid_of,
    encode_varint,
)
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.dagpb import FieldKinds, PBLink, PBNode
from cas_zarr.errors import FormatError, InvalidArgumentError, LimitError

__all__ = ["LEAF_SIZE", "MAX_LINKS", "FileNode", "build_file", "decode_file_node"]

LEAF_SIZE = 1 << 20
"""Size of every leaf but the last, in bytes, where nothing else sets the borders."""

MAX_LINKS = 1024
"""Links of a node; every node of a level but the last has as many."""

_RAW, _FILE = 0, 2  # the types that hold bytes of a file
_TYPE, _DATA, _FILESIZE, _BLOCKSIZES, _MODE, _MTIME = 1, 2, 3, 4, 7, 8
_FIELDS: FieldKinds = {
    _TYPE: int,
    _DATA: bytes,
    _FILESIZE: int,
    _BLOCKSIZES: int,
    _MODE: int,  # these two may stand there, and do not matter for the bytes
    _MTIME: bytes,
}
_SIZE_LIMIT = 2**63


@dataclass(frozen=True, slots=True)
class FileNode:
    """An inner node of a file.

    Attributes
    ----------
    size : int
        Bytes of the file below and in this node.
    links : tuple of CidBytes
        The children in the order of their bytes, as CIDv1.
    sizes : tuple of int
        Bytes of the file below each child.
    data : bytes
        Bytes of the file in the node itself, before those of the children.
    """

    size: int
    links: tuple[CidBytes, ...]
    sizes: tuple[int, ...]
    data: bytes


def build_file(
    leaves: Sequence[tuple[CidBytes, int]], function: HashFunction
) -> tuple[CidBytes, list[tuple[CidBytes, bytes]]]:
    """Link leaves to a file.

    Parameters
    ----------
    leaves : sequence of (CidBytes, int)
        CID and size in bytes of each raw leaf, in order. Sizes may differ; none is empty unless
        it is the only one.
    function : HashFunction
        What the CIDs of the nodes are made with.

    Returns
    -------
    CidBytes
        The file: its top node, or the leaf itself if there is only one.
    list of (CidBytes, bytes)
        The nodes, children before parents.
    """
    if not leaves:
        raise InvalidArgumentError("a file has no leaves; an empty one has one leaf without bytes")
    if len(leaves) > 1 and min(size for _, size in leaves) <= 0:
        raise InvalidArgumentError("a file of several leaves has one without bytes; leave it out")
    if sum(size for _, size in leaves) >= _SIZE_LIMIT:
        raise LimitError("a file has 2^63 bytes or more")
    blocks: list[tuple[CidBytes, bytes]] = []
    level = [(cid, size, size) for cid, size in leaves]  # CID, bytes of the file, bytes of blocks
    while len(level) > 1:
        above = []
        for start in range(0, len(level), MAX_LINKS):
            children = level[start : start + MAX_LINKS]
            block = _encode_node(children)
            cid = cid_of(DAG_PB, function, block)
            blocks.append((cid, block))
            size = sum(child[1] for child in children)
            above.append((cid, size, len(block) + sum(child[2] for child in children)))
        level = above
    return level[0][0], blocks


def decode_file_node(data: BytesLike) -> FileNode:
    """Return the inner node of a file that DAG-PB bytes encode.

    Raises
    ------
    FormatError
        If they are no DAG-PB, no UnixFS, of another type than a file, or if the counts and sizes
        in them do not agree.
    """
    node = dagpb.decode(data)
    if node.data is None:
        raise FormatError("a dag-pb node has no data, so it is no unixfs file")
    kind: int | None = None
    content = b""
    filesize = 0
    sizes: list[int] = []
    before = 0
    for field, value in dagpb.read_fields(node.data, _FIELDS):
        if field < before or (field == before and field != _BLOCKSIZES):
            raise FormatError(f"a unixfs node has the field {field} twice or out of order")
        before = field
        if field == _TYPE:
            kind = value
        elif field == _DATA:
            content = value
        elif field == _FILESIZE:
            filesize = value
        elif field == _BLOCKSIZES:
            sizes.append(value)
    if kind != _FILE and kind != _RAW:
        raise FormatError(f"a unixfs node is of type {kind}; a file is of type 2, or 0")
    if len(sizes) != len(node.links):
        raise FormatError(f"a unixfs file has {len(node.links)} links and {len(sizes)} block sizes")
    if len(content) + sum(sizes) != filesize:
        raise FormatError(
            f"a unixfs file says it has {filesize} bytes, and has {len(content) + sum(sizes)}"
        )
    if any(link.name for link in node.links):
        raise FormatError("a unixfs file has a link with a name, so it is no file")
    # Whether they are CIDs is known by now; those of version 0 get the form used inside.
    links = tuple(link.cid if link.cid[0] == 1 else as_cid_bytes(link.cid) for link in node.links)
    return FileNode(filesize, links, tuple(sizes), content)


def _encode_node(children: Sequence[tuple[CidBytes, int, int]]) -> bytes:
    content = bytearray(b"\x08\x02\x18")  # the type, and the head of the size
    content += encode_varint(sum(size for _, size, _ in children))
    for _, size, _ in children:
        content += b"\x20" + encode_varint(size)
    # The name is there and empty: ipfs writes it so, and the CID depends on it.
    links = tuple(PBLink(cid, "", below) for cid, _, below in children)
    return dagpb.encode(PBNode(bytes(content), links))
