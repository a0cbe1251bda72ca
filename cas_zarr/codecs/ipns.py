"""IPNS: names that are public keys, and the signed records that say what a name leads to.

A record is verified as it is decoded: its signature against the name, its end of validity against
the clock, the unsigned copies of its fields against the signed ones. Ed25519 signs and verifies,
RSA (of old names) verifies; both through `cryptography` (the extra ``cas_zarr[ipfs]``).

Source: https://specs.ipfs.tech/ipns/ipns-record/, https://github.com/libp2p/specs (peer ids).
"""

from __future__ import annotations

import hashlib
import re
import time
from base64 import b32decode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from cas_zarr.cid import decode_varint, encode_varint
from cas_zarr.codecs import dagcbor
from cas_zarr.codecs.dagpb import FieldKinds, read_fields
from cas_zarr.errors import (
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    LimitError,
    MissingDependencyError,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    PrivateKey: TypeAlias = Ed25519PrivateKey

__all__ = [
    "MAX_RECORD_BYTES",
    "ExpiredRecordError",
    "IpnsName",
    "IpnsRecord",
    "decode_record",
    "encode_record",
    "is_name",
    "name_of",
    "parse_name",
]

MAX_RECORD_BYTES = 10 * 1024
"""Largest record that is read or written, in bytes."""

KEY_SIZE = 32

_LIBP2P_KEY = 0x72
_IDENTITY, _SHA256 = 0x00, 0x12
_RSA, _ED25519 = 0, 1
_KEY_TYPES = {0: "rsa", 1: "ed25519", 2: "secp256k1", 3: "ecdsa"}
_ED25519_PREFIX = b"\x08\x01\x12\x20"  # the public key as Protocol Buffers: type 1, 32 bytes
_RSA_BITS = range(2048, 8193)
_MAX_NAME = 128
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

_SIGNED = b"ipns-signature:"
_VALUE, _SIGNATURE_1, _TYPE, _VALIDITY, _SEQUENCE, _TTL, _KEY, _SIGNATURE_2, _DATA = range(1, 10)
_ENTRY: FieldKinds = {
    _VALUE: bytes,
    _SIGNATURE_1: bytes,
    _TYPE: int,
    _VALIDITY: bytes,
    _SEQUENCE: int,
    _TTL: int,
    _KEY: bytes,
    _SIGNATURE_2: bytes,
    _DATA: bytes,
}
_PUBLIC_KEY: FieldKinds = {1: int, 2: bytes}
_SECOND = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(Z|[+-][0-9]{2}:[0-9]{2})"
)


class ExpiredRecordError(FormatError):
    """A record is signed by the right key, and its time is over."""


@dataclass(frozen=True, slots=True)
class IpnsName:
    """An IPNS name: the multihash of a public key. Its text is a CIDv1 in base 36, ``k51…``.

    Attributes
    ----------
    multihash : bytes
    """

    multihash: bytes

    def __str__(self) -> str:
        return "k" + _to_base(b"\x01\x72" + self.multihash, _BASE36)

    @property
    def public_key(self) -> bytes | None:
        """The 32 bytes of the Ed25519 key that the name is; None of a name that is a hash."""
        code, digest = _split(self.multihash)
        inline = code == _IDENTITY and digest.startswith(_ED25519_PREFIX)
        return digest[len(_ED25519_PREFIX) :] if inline else None


@dataclass(frozen=True, slots=True)
class IpnsRecord:
    """What a name leads to.

    Attributes
    ----------
    value : str
        A path, ``/ipfs/…`` or ``/ipns/…``.
    expires : int
        End of its validity, in nanoseconds since 1970-01-01 UTC.
    sequence : int
        Of two valid records the one with the higher number is the newer.
    ttl : int or None
        How long it may be kept without a look at a newer one, in nanoseconds.
    """

    value: str
    expires: int
    sequence: int
    ttl: int | None = None

    @property
    def order(self) -> tuple[int, int]:
        """What the newest record has most of."""
        return self.sequence, self.expires


# -- names ------------------------------------------------------------------------------------


def name_of(public_key: bytes) -> IpnsName:
    """Return the name of a public Ed25519 key of 32 bytes."""
    if len(public_key) != KEY_SIZE:
        raise InvalidArgumentError(
            f"a public ed25519 key has {KEY_SIZE} bytes, not {len(public_key)}"
        )
    key = _ED25519_PREFIX + public_key
    return IpnsName(bytes((_IDENTITY, len(key))) + key)


def parse_name(text: str) -> IpnsName:
    """Return the name that a text means.

    Parameters
    ----------
    text : str
        A CIDv1 of the codec libp2p-key in base 36 (``k51…``), 32, 58 or 16, or a peer id
        (``12D3…``, ``Qm…``); a leading ``/ipns/`` or ``ipns://`` is passed over.

    Raises
    ------
    InvalidCIDError
        If it is none.
    """
    name = text.removeprefix("/ipns/").removeprefix("ipns://")
    if not name or len(name) > _MAX_NAME or not name.isascii():
        raise _no_name(text)
    try:
        if name.startswith(("12D3", "16Uiu", "Qm")):
            multihash = _from_base(name, _BASE58)
        else:
            multihash = _key_of_cid(_multibase(name), text)
        _split(multihash)
    except ValueError:  # InvalidCIDError is one
        raise _no_name(text) from None
    return IpnsName(multihash)


def is_name(text: str) -> bool:
    """Tell whether a text is the name of a key, not of a domain."""
    try:
        parse_name(text)
    except InvalidCIDError:
        return False
    return True


def _no_name(text: str) -> InvalidCIDError:
    return InvalidCIDError(
        f"{text[:_MAX_NAME]!r} is no ipns name; it reads k51…, or 12D3… or Qm… of an older one"
    )


def _multibase(text: str) -> bytes:
    base, body = text[0], text[1:]
    if base in "kK":
        return _from_base(body.lower(), _BASE36)
    if base in "bB":
        body = body.upper()
        return b32decode(body + "=" * (-len(body) % 8))
    if base == "z":
        return _from_base(body, _BASE58)
    if base in "fF":
        return bytes.fromhex(body)
    raise ValueError(base)


def _key_of_cid(cid: bytes, text: str) -> bytes:
    version, at = decode_varint(cid)
    codec, at = decode_varint(cid, at)
    if version != 1 or codec != _LIBP2P_KEY:
        raise _no_name(text)
    return cid[at:]


def _split(multihash: bytes) -> tuple[int, bytes]:
    """Return the code and the digest of the multihash of a key."""
    code, at = decode_varint(multihash)
    length, at = decode_varint(multihash, at)
    digest = multihash[at:]
    if length != len(digest) or code not in (_IDENTITY, _SHA256):
        raise InvalidCIDError("it is no multihash of a key")
    if code == _SHA256 and length != KEY_SIZE:
        raise InvalidCIDError("it is no multihash of a key")
    ed25519 = code == _IDENTITY and digest[:2] == _ED25519_PREFIX[:2]
    if ed25519 and (len(digest) != 4 + KEY_SIZE or digest[:4] != _ED25519_PREFIX):
        raise InvalidCIDError("it is no multihash of a key: of ed25519 there is one form")
    return code, digest


def _to_base(data: bytes, alphabet: str) -> str:
    number, out = int.from_bytes(data, "big"), []
    while number:
        number, digit = divmod(number, len(alphabet))
        out.append(alphabet[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return alphabet[0] * zeros + "".join(reversed(out))


def _from_base(text: str, alphabet: str) -> bytes:
    number = 0
    for char in text:
        number = number * len(alphabet) + alphabet.index(char)
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


# -- records ----------------------------------------------------------------------------------


def decode_record(data: bytes, name: IpnsName, *, now: int | None = None) -> IpnsRecord:
    """Return the record in some bytes, after it was verified.

    Parameters
    ----------
    data : bytes
        The record as Protocol Buffers, ``application/vnd.ipfs.ipns-record``.
    name : IpnsName
        The name that was asked for.
    now : int, optional
        The time, in nanoseconds since 1970-01-01 UTC; by default that of the clock.

    Raises
    ------
    ExpiredRecordError
        If it is over.
    FormatError
        If it is no record, is not signed by the key of the name, or says different things in its
        signed and its unsigned part.
    MissingDependencyError
        If `cryptography` is not installed.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise FormatError(
            f"the record of ipns name {name} has more than {MAX_RECORD_BYTES} bytes, which none has"
        )
    try:
        entry = _fields(data)
        signed, signature = entry.get(_DATA), entry.get(_SIGNATURE_2)
        if not signed or not signature:
            raise FormatError("it has no signature of version 2, and an older one proves nothing")
        if not _verify(_key_for(name, entry.get(_KEY)), _SIGNED + signed, signature):
            raise FormatError("its signature is not by the key of the name")
        document = dagcbor.decode(signed)
        if not isinstance(document, dict):
            raise FormatError("its signed part is no map")
        _check_copies(entry, document)
        record = _record(document)
    except FormatError as error:
        raise FormatError(
            f"the record of ipns name {name} cannot be trusted: {error}; ask another gateway or "
            "node"
        ) from None
    if record.expires <= (time.time_ns() if now is None else now):
        raise ExpiredRecordError(
            f"the record of ipns name {name} was valid until {_format_time(record.expires)}; "
            "whoever has its key must publish the name again"
        )
    return record


def encode_record(record: IpnsRecord, key: PrivateKey, *, legacy: bool = True) -> bytes:
    """Return a record, signed.

    Parameters
    ----------
    record : IpnsRecord
    key : Ed25519PrivateKey
        As `cas_zarr.repository.signing.load_key` gives it.
    legacy : bool
        Add the unsigned copies and the older signature, for old readers.

    Raises
    ------
    InvalidArgumentError
        If a field makes no sense.
    LimitError
        If it becomes larger than 10 KiB.
    """
    value = record.value.encode("utf-8", "replace")  # another where there is a lone surrogate
    if not value.startswith((b"/ipfs/", b"/ipns/")) or value.decode() != record.value:
        raise InvalidArgumentError(
            f"an ipns name leads to a path, /ipfs/… or /ipns/…, not to {record.value[:80]!r}"
        )
    ttl = 0 if record.ttl is None else record.ttl
    if not 0 <= record.sequence < 2**63 or not 0 <= ttl < 2**63:
        raise InvalidArgumentError("sequence and ttl of an ipns record are within 0 and 2^63-1")
    validity = _format_time(record.expires).encode()
    document: dict[str, Any] = {
        "Value": value,
        "Validity": validity,
        "ValidityType": 0,
        "Sequence": record.sequence,
    }
    if record.ttl is not None:
        document["TTL"] = ttl
    signed = dagcbor.encode(document)
    out = bytearray()
    if legacy:
        _put(out, _VALUE, value)
        _put(out, _SIGNATURE_1, key.sign(value + validity + b"0"))
        _put(out, _TYPE, 0)
        _put(out, _VALIDITY, validity)
        _put(out, _SEQUENCE, record.sequence)
        _put(out, _TTL, ttl)
    _put(out, _SIGNATURE_2, key.sign(_SIGNED + signed))
    _put(out, _DATA, signed)
    if len(out) > MAX_RECORD_BYTES:
        raise LimitError(
            f"an ipns record of {len(out)} bytes is over {MAX_RECORD_BYTES}; give a shorter path"
        )
    return bytes(out)


def _put(out: bytearray, field: int, value: int | bytes) -> None:
    if isinstance(value, int):
        out += encode_varint(field << 3) + encode_varint(value)
    else:
        out += encode_varint(field << 3 | 2) + encode_varint(len(value)) + value


def _fields(data: bytes) -> dict[int, Any]:
    entry: dict[int, Any] = {}
    for field, value in read_fields(data, _ENTRY):
        if field in entry:
            raise FormatError(f"it has the field {field} twice")
        entry[field] = value
    return entry


def _check_copies(entry: dict[int, Any], document: dict[str, Any]) -> None:
    """Refuse a record whose unsigned fields, which old readers take, are not its signed ones."""
    if _SIGNATURE_1 not in entry and _VALUE not in entry:
        return
    copies = {
        "Value": entry.get(_VALUE, b""),
        "Validity": entry.get(_VALIDITY, b""),
        "ValidityType": entry.get(_TYPE, 0),
        "Sequence": entry.get(_SEQUENCE, 0),
        "TTL": entry.get(_TTL, 0),
    }
    for field, copy in copies.items():
        if document.get(field, 0 if field == "TTL" else None) != copy:
            raise FormatError(f"its {field} is another in its unsigned part")


def _record(document: dict[str, Any]) -> IpnsRecord:
    value, validity = document.get("Value"), document.get("Validity")
    sequence, ttl = document.get("Sequence"), document.get("TTL")
    kind = document.get("ValidityType")
    if not isinstance(value, bytes) or not isinstance(validity, bytes):
        raise FormatError("it has no value or no validity")
    if kind != 0 or isinstance(kind, bool):
        raise FormatError(f"its validity is of type {kind!r}, and 0 is known here")
    for number in (sequence, 0 if ttl is None else ttl):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise FormatError("its sequence or ttl is no number from 0 on")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise FormatError("its value is no text") from None
    if not text.startswith(("/ipfs/", "/ipns/")):
        raise FormatError(f"its value {text[:80]!r} is no path, /ipfs/… or /ipns/…")
    assert isinstance(sequence, int)
    return IpnsRecord(text, _parse_time(validity), sequence, ttl)


def _parse_time(data: bytes) -> int:
    match = _TIME.fullmatch(data.decode("latin-1"))
    try:
        if match is None:
            raise ValueError
        moment = datetime.fromisoformat(match[1] + match[3]).astimezone(UTC)
    except (ValueError, OverflowError):  # beyond the calendar once it is UTC
        raise FormatError(f"its validity {data[:40]!r} is no time") from None
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * _SECOND + int((match[2] or "").ljust(9, "0"))


def _format_time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, _SECOND)
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        raise InvalidArgumentError(f"{nanoseconds} ns since 1970 are beyond the calendar") from None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


# -- keys -------------------------------------------------------------------------------------


def _key_for(name: IpnsName, given: bytes | None) -> tuple[int, bytes]:
    """Return type and bytes of the key of a name: its own, or the one in its record."""
    code, digest = _split(name.multihash)
    if code == _IDENTITY:
        if given is not None and given != digest:
            raise FormatError("it holds another key than that of the name")
        return _parse_key(digest)
    if given is None:
        raise FormatError("it lacks the public key, which the name is only a hash of")
    if hashlib.sha256(given).digest() != digest:
        raise FormatError("it holds another key than that of the name")
    return _parse_key(given)


def _parse_key(data: bytes) -> tuple[int, bytes]:
    fields = dict(read_fields(data, _PUBLIC_KEY))
    kind, key = fields.get(1), fields.get(2)
    if kind not in (_RSA, _ED25519) or key is None or (kind == _ED25519 and len(key) != KEY_SIZE):
        shown = _KEY_TYPES.get(kind, repr(kind)) if isinstance(kind, int) else "none"
        raise FormatError(
            f"its key is of the type {shown}; ed25519 and rsa keys can be checked here"
        )
    return kind, key


def _verify(key: tuple[int, bytes], message: bytes, signature: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
    except ImportError:
        raise MissingDependencyError(
            "to check ipns records needs cryptography; install cas_zarr[ipfs]"
        ) from None
    kind, data = key
    try:
        if kind == _ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(data).verify(signature, message)
            return True
        public = serialization.load_der_public_key(data)
        if not isinstance(public, rsa.RSAPublicKey) or public.key_size not in _RSA_BITS:
            raise FormatError("its rsa key is none, or not of 2048 to 8192 bits")
        public.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        if isinstance(error, FormatError):
            raise
        return False
    return True
