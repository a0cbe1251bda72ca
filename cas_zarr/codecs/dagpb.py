"""DAG-PB: the envelope of UnixFS files, links and some bytes in Protocol Buffers.

Written with the links first; read in either order, as both are found. Anything else that makes a
second encoding of the same node possible is refused: unknown fields, fields twice or out of
order, varints longer than they need to be.

Source: https://ipld.io/specs/codecs/dag-pb/spec/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from cas_zarr.cid import (
    DAG_PB,
    HASHES,
    RAW,
    BytesLike,
    CidBytes,
    codec_of,
    decode_varint,
    encode_varint,
    make_cid,
)
from cas_zarr.errors import FormatError, InvalidCIDError

__all__ = ["FieldKinds", "PBLink", "PBNode", "decode", "encode", "read_fields"]

FieldKinds: TypeAlias = dict[int, type[int] | type[bytes]]

_WIRE = {int: 0, bytes: 2}
_DATA, _LINKS = 1, 2
_NODE: FieldKinds = {_DATA: bytes, _LINKS: bytes}
_HASH, _NAME, _TSIZE = 1, 2, 3
_LINK: FieldKinds = {_HASH: bytes, _NAME: bytes, _TSIZE: int}
_INT_LIMIT = 2**63  # a varint of nine bytes, and what others hold in a signed integer

# What stands before the digest of 32 bytes in most links: to look it up is quicker than to parse.
_USUAL = {
    bytes(make_cid(codec, function, b"")) for codec in (RAW, DAG_PB) for function in HASHES.values()
}


@dataclass(frozen=True, slots=True)
class PBLink:
    """A link: a CID of either version, and perhaps a name and the size of all that is below."""

    cid: CidBytes
    name: str | None = None
    tsize: int | None = None


@dataclass(frozen=True, slots=True)
class PBNode:
    """A node: bytes, or None, and links in the order of their names."""

    data: bytes | None = None
    links: tuple[PBLink, ...] = ()


def encode(node: PBNode) -> bytes:
    """Return the DAG-PB of a node.

    Raises
    ------
    FormatError
        If the links are not ascending by the UTF-8 bytes of their names (None counts as ""), a
        size is negative or passes 2^63-1, or a link is no CID.
    """
    out = bytearray()
    before = b""
    for link in node.links:
        try:
            name = (link.name or "").encode("utf-8")
        except UnicodeEncodeError:
            raise FormatError(f"the link name {link.name!r} is not unicode") from None
        if name < before:
            raise FormatError(f"the links of a dag-pb node are not in order at {link.name!r}")
        before = name
        body = _encode_link(link, name)
        out += b"\x12" + encode_varint(len(body)) + body
    if node.data is not None:
        out += b"\x0a" + encode_varint(len(node.data)) + node.data
    return bytes(out)


def decode(data: BytesLike) -> PBNode:
    """Return the node that DAG-PB bytes encode.

    Raises
    ------
    FormatError
        If they are no DAG-PB, or not as strict as this module asks.
    """
    links: list[PBLink] = []
    content: bytes | None = None
    links_before = 0
    for field, value in read_fields(bytes(data), _NODE):
        if field == _LINKS:
            links.append(_decode_link(value))
        elif content is not None:
            raise FormatError("a dag-pb node has its data twice")
        else:
            content, links_before = bytes(value), len(links)
    if 0 < links_before < len(links):
        raise FormatError("a dag-pb node has its data between its links")
    return PBNode(content, tuple(links))


def read_fields(data: bytes, kinds: FieldKinds) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a Protocol Buffers message, strictly.

    Parameters
    ----------
    data : bytes
        The whole message.
    kinds : dict
        The fields that are allowed: int for a varint, bytes for whatever has a length.

    Raises
    ------
    FormatError
        On another field, the wire type of another kind, a varint of 2^63 or more or longer than
        it needs to be, or a message that is cut off.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        field, wire = tag >> 3, tag & 7
        kind = kinds.get(field)
        if kind is None or wire != _WIRE[kind]:
            raise FormatError(
                f"a message has the field {field} of wire type {wire}, not known here"
            )
        value, at = _read_varint(data, at)
        if kind is bytes:
            if value > end - at:
                raise FormatError(f"the field {field} of a message is cut off")
            yield field, data[at : at + value]
            at += value
        else:
            yield field, value


def _encode_link(link: PBLink, name: bytes) -> bytes:
    if len(link.cid) != 36 or link.cid[:4] not in _USUAL:
        codec_of(link.cid)  # a link that is no cid must not get into a block
    body = b"\x0a" + encode_varint(len(link.cid)) + link.cid
    if link.name is not None:
        body += b"\x12" + encode_varint(len(name)) + name
    if link.tsize is not None:
        if not 0 <= link.tsize < _INT_LIMIT:
            raise FormatError(f"a dag-pb link has the size {link.tsize}, not within 0 and 2^63-1")
        body += b"\x18" + encode_varint(link.tsize)
    return body


def _decode_link(data: bytes) -> PBLink:
    if data[:2] == b"\x0a\x24" and data[38:41] == b"\x12\x00\x18":  # as nodes of files have it
        below, end = _read_varint(data, 41)
        if end == len(data):
            cid = CidBytes(data[2:38])
            if cid[:4] not in _USUAL:
                codec_of(cid)
            return PBLink(cid, "", below)
    found: CidBytes | None = None
    name: str | None = None
    tsize: int | None = None
    before = 0
    for field, value in read_fields(data, _LINK):
        if field <= before:
            raise FormatError("a dag-pb link has a field twice or out of order")
        before = field
        if field == _HASH:
            found = CidBytes(value)
            codec_of(found)
        elif field == _NAME:
            try:
                name = value.decode("utf-8")
            except UnicodeDecodeError:
                raise FormatError("a dag-pb link has a name that is not utf-8") from None
        else:
            tsize = value
    if found is None:
        raise FormatError("a dag-pb link has no cid")
    return PBLink(found, name, tsize)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:  # most are one byte
        return data[at], at + 1
    try:
        return decode_varint(data, at)
    except InvalidCIDError as error:
        raise FormatError(f"a message is broken at byte {at}: {error}") from None
