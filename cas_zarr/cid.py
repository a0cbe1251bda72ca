"""CIDs and the hash functions behind them.

Inside the package a CID is its binary form, `CidBytes`; at the public edge functions take text,
bytes or a `multiformats.CID` (`as_cid_bytes`) and give a `multiformats.CID` (`to_cid`). Building
one of those costs about a hundred times what the bytes cost, so it happens at the edge only.

Source: CID, multihash and multicodec specifications, https://github.com/multiformats.
"""

from __future__ import annotations

import hashlib
import threading
from base64 import b32decode, b32encode
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NewType, TypeAlias

from blake3 import blake3 as _blake3

from cas_zarr.errors import InvalidCIDError

if TYPE_CHECKING:
    from multiformats import CID

__all__ = [
    "BLAKE3",
    "DAG_CBOR",
    "DAG_JSON",
    "DAG_PB",
    "DIGEST_SIZE",
    "HASHES",
    "RAW",
    "SHA256",
    "BytesLike",
    "CidBytes",
    "CidLike",
    "HashFunction",
    "Link",
    "ReadableCids",
    "as_cid_bytes",
    "cid_of",
    "codec_of",
    "decode_varint",
    "digest_of",
    "encode_varint",
    "format_cid",
    "hash_by_name",
    "hash_of",
    "make_cid",
    "matches",
    "to_cid",
]

CidBytes = NewType("CidBytes", bytes)
BytesLike: TypeAlias = "bytes | bytearray | memoryview"
CidLike: TypeAlias = "str | bytes | CID"

RAW, DAG_PB, DAG_CBOR, DAG_JSON = 0x55, 0x70, 0x71, 0x0129
DIGEST_SIZE = 32

_MAX_CID_BYTES = 256


@dataclass(frozen=True, slots=True)
class HashFunction:
    """A hash function that the format knows: 32 bytes of digest under a multihash code."""

    name: str
    code: int
    digest: Callable[[Any], bytes]


def _blake3_digest(data: Any) -> bytes:
    return _blake3(data).digest()


def _sha256_digest(data: Any) -> bytes:
    return hashlib.sha256(data).digest()


BLAKE3 = HashFunction("blake3", 0x1E, _blake3_digest)
SHA256 = HashFunction("sha2-256", 0x12, _sha256_digest)
HASHES = {function.code: function for function in (BLAKE3, SHA256)}
_BY_NAME = {function.name: function for function in HASHES.values()} | {"sha256": SHA256}


@dataclass(frozen=True, slots=True)
class Link:
    """A link inside an IPLD value: any CID, of a hash known here or not."""

    cid: CidBytes


def hash_by_name(name: str) -> HashFunction:
    """Return the hash function of that name, ``blake3`` or ``sha2-256``."""
    try:
        return _BY_NAME[name]
    except KeyError:
        known = ", ".join(function.name for function in HASHES.values())
        raise InvalidCIDError(f"hash function {name!r} is not known; use one of: {known}") from None


def encode_varint(value: int) -> bytes:
    """Encode an unsigned integer as a multiformats varint (LEB128)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: BytesLike, offset: int = 0) -> tuple[int, int]:
    """Read a varint at `offset`; return the value and the offset behind it.

    Raises
    ------
    InvalidCIDError
        If it is cut off, longer than nine bytes, or not in its shortest form.
    """
    value = shift = 0
    start = offset
    while True:
        if offset >= len(data) or offset - start >= 9:
            raise InvalidCIDError("a varint is cut off or longer than nine bytes")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if byte == 0 and offset - start > 1:
                raise InvalidCIDError("a varint is not in its shortest form")
            return value, offset


_PREFIXES = {
    (codec, function.code): b"\x01" + encode_varint(codec) + bytes([function.code, DIGEST_SIZE])
    for codec in (RAW, DAG_PB, DAG_CBOR, DAG_JSON)
    for function in HASHES.values()
}


def make_cid(codec: int, function: HashFunction, digest: bytes) -> CidBytes:
    """Return the CIDv1 of a block of `codec` whose digest is known."""
    return CidBytes(_PREFIXES[codec, function.code] + digest)


def cid_of(codec: int, function: HashFunction, data: BytesLike) -> CidBytes:
    """Hash `data` and return its CIDv1."""
    return CidBytes(_PREFIXES[codec, function.code] + function.digest(data))


def digest_of(cid: CidBytes) -> bytes:
    """Return the 32 bytes of digest at the end of a CID whose hash is known here."""
    return cid[-DIGEST_SIZE:]


def codec_of(cid: CidBytes) -> int:
    """Return the codec of a CID (dag-pb for a CIDv0)."""
    return _parse(cid)[0]


def hash_of(cid: CidBytes) -> HashFunction:
    """Return the hash function of a CID.

    Raises
    ------
    InvalidCIDError
        If the hash is not BLAKE3 or SHA-256 with 32 bytes of digest: such a block cannot be
        checked, so it is never read.
    """
    _, code, digest = _parse(cid)
    function = HASHES.get(code)
    if function is None or len(digest) != DIGEST_SIZE:
        raise InvalidCIDError(
            f"cid {format_cid(cid)} has multihash 0x{code:x} of {len(digest)} bytes, which cannot "
            "be verified here; known are blake3 (0x1e) and sha2-256 (0x12) of 32 bytes"
        )
    return function


def matches(cid: CidBytes, data: BytesLike) -> bool:
    """Tell whether `data` hashes to `cid`."""
    return hash_of(cid).digest(data) == cid[-DIGEST_SIZE:]


def as_cid_bytes(cid: CidLike) -> CidBytes:
    """Return the binary form of a CID given as text, bytes or `multiformats.CID`.

    A CIDv0 becomes the CIDv1 of dag-pb with the same multihash.

    Raises
    ------
    InvalidCIDError
        If it is no CID.
    """
    if isinstance(cid, str):
        data = _decode_text(cid)
    elif isinstance(cid, (bytes, bytearray, memoryview)):
        data = bytes(cid)
    elif hasattr(cid, "__bytes__"):  # not bytes(): of an integer that is as many zeros
        data = cid.__bytes__()
    else:
        raise InvalidCIDError(
            f"a {type(cid).__name__} is no cid; give text, bytes or a multiformats.CID"
        )
    _parse(CidBytes(data))
    if data[:2] == b"\x12\x20" and len(data) == 34:
        data = b"\x01\x70" + data
    return CidBytes(data)


def format_cid(cid: CidBytes) -> str:
    """Return the text of a CID: base32 for CIDv1."""
    return "b" + b32encode(cid).decode("ascii").rstrip("=").lower()


class ReadableCids:
    """A dataclass, made with ``repr=False``, whose repr gives CIDs as text."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = (
            f"{each.name}={_shown(getattr(self, each.name))}"
            for each in fields(self)  # type: ignore[arg-type]
            if each.repr
        )
        return f"{type(self).__name__}({', '.join(shown)})"


def _shown(value: object) -> str:
    if isinstance(value, bytes) and value[:1] == b"\x01" and len(value) <= _MAX_CID_BYTES:
        try:
            _parse(CidBytes(value))
        except InvalidCIDError:
            return repr(value)
        return format_cid(CidBytes(value))
    if isinstance(value, tuple):
        body = ", ".join(map(_shown, value))
        return f"({body},)" if len(value) == 1 else f"({body})"
    return repr(value)


def to_cid(cid: CidBytes) -> CID:
    """Return a `multiformats.CID` (base32) for the public edge.

    It is built on the stack of a thread: the validation inside multiformats leaves cycles of
    exceptions behind, and with them every frame up the stack. The caller's arrays would live on
    until the next garbage collection, and what a store has left to flush would wait for it.
    """
    from multiformats import CID  # a large import, needed at the edge only

    built: list[CID] = []
    text = format_cid(cid)
    thread = threading.Thread(target=lambda: built.append(CID.decode(text)), name="cas-zarr-cid")
    try:
        thread.start()
    except RuntimeError:  # the interpreter is exiting, and collects everything
        return CID.decode(text)
    thread.join()
    return built[0]


def _decode_text(text: str) -> bytes:
    if text[:1] == "b" and len(text) <= 2 * _MAX_CID_BYTES:
        body = text[1:].upper()
        try:
            data = b32decode(body + "=" * (-len(body) % 8))
        except ValueError:
            raise InvalidCIDError(f"{text!r} is no cid: not base32") from None
        if format_cid(CidBytes(data)) != text:  # stray bits or upper case
            raise InvalidCIDError(f"{text!r} is no cid: not canonical base32")
        return data
    if not text or len(text) > 2 * _MAX_CID_BYTES:
        raise InvalidCIDError(f"{text[:64]!r} is no cid")
    from multiformats import CID  # other bases are rare: left to the library

    try:
        return bytes(CID.decode(text))
    except (ValueError, KeyError, TypeError, AssertionError, IndexError) as error:
        raise InvalidCIDError(f"{text!r} is no cid: {error}") from None


def _parse(cid: CidBytes) -> tuple[int, int, bytes]:
    """Take a binary CID apart into codec, multihash code and digest."""
    if len(cid) == 34 and cid[:2] == b"\x12\x20":
        return DAG_PB, 0x12, cid[2:]
    if not cid or len(cid) > _MAX_CID_BYTES or cid[0] != 1:
        raise InvalidCIDError(f"bytes {cid[:40].hex()} are no cid of version 0 or 1")
    codec, offset = decode_varint(cid, 1)
    code, offset = decode_varint(cid, offset)
    length, offset = decode_varint(cid, offset)
    if length != len(cid) - offset:
        raise InvalidCIDError(
            f"cid bytes {cid[:40].hex()} promise {length} bytes of digest and have "
            f"{len(cid) - offset}"
        )
    return codec, code, cid[offset:]
