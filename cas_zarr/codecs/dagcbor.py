"""DAG-CBOR: the codec of commits and of the few small documents that are not pages.

The values are those of `dagjson`. A value has exactly one encoding: heads in their shortest form,
floats in 64 bits, map keys ascending by length and then by bytes, links as tag 42 over a 0 byte
and the binary CID; `decode` accepts nothing else. Links stay bytes, which is why this is not the
package `dag-cbor`: that builds a `multiformats.CID` for each, knows a part of the hash functions
only, and lets errors of its own through for some broken input. The tests use it as an oracle.

Source: https://ipld.io/specs/codecs/dag-cbor/spec/, RFC 8949.
"""

from __future__ import annotations

import struct
from typing import Any

from cas_zarr.cid import BytesLike, CidBytes, Link, codec_of
from cas_zarr.codecs.dagjson import MAX_DEPTH, Value
from cas_zarr.errors import FormatError

__all__ = ["decode", "encode"]

_UINT, _NEGATIVE, _BYTES, _TEXT, _LIST, _MAP, _TAG, _SIMPLE = range(8)
_LINK_TAG = 42
_FALSE, _TRUE, _NULL, _DOUBLE = 0xF4, 0xF5, 0xF6, 0xFB
_CONSTANTS = {_FALSE: False, _TRUE: True, _NULL: None}
_INT_LIMIT = 2**64


def encode(value: Value, *, max_depth: int = MAX_DEPTH) -> bytes:
    """Return the canonical DAG-CBOR of a value.

    Raises
    ------
    FormatError
        If it is no value of the data model (see `dagjson.encode`), or nested deeper than
        `max_depth` levels.
    """
    out = bytearray()
    _write(value, out, max_depth)
    return bytes(out)


def decode(data: BytesLike, *, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value that canonical DAG-CBOR bytes encode.

    Raises
    ------
    FormatError
        If the bytes are not the canonical encoding of one value, whole, or nested deeper than
        `max_depth` levels.
    """
    data = bytes(data)
    value, end = _read(data, 0, max_depth)
    if end != len(data):
        raise FormatError(f"dag-cbor has {len(data) - end} bytes behind its value")
    return value


def _write(value: Any, out: bytearray, levels: int) -> None:
    kind = type(value)
    if kind is str:
        _write_text(value, out)
    elif kind is bytes:
        _write_head(_BYTES, len(value), out)
        out += value
    elif kind is int:
        if not -_INT_LIMIT <= value < _INT_LIMIT:
            raise FormatError(
                f"an integer of {value.bit_length()} bits is out of the range of ipld, "
                "-2^64 to 2^64-1"
            )
        _write_head(_UINT, value, out) if value >= 0 else _write_head(_NEGATIVE, -1 - value, out)
    elif kind is bool:
        out.append(_TRUE if value else _FALSE)
    elif value is None:
        out.append(_NULL)
    elif kind is Link:
        codec_of(value.cid)  # a link that is no cid must not get into a block
        _write_head(_TAG, _LINK_TAG, out)
        _write_head(_BYTES, len(value.cid) + 1, out)
        out.append(0)
        out += value.cid
    elif kind is float:
        if value - value != 0.0:
            raise FormatError(f"the float {value!r} cannot be encoded; it is not finite")
        out.append(_DOUBLE)
        out += struct.pack(">d", value)
    elif kind is list or kind is dict:
        if levels <= 0:
            raise FormatError("a value is nested too deep for dag-cbor")
        if kind is list:
            _write_head(_LIST, len(value), out)
            for item in value:
                _write(item, out, levels - 1)
        else:
            _write_map(value, out, levels - 1)
    else:
        raise FormatError(
            f"a {kind.__name__} cannot be encoded as dag-cbor; use None, bool, int, float, str, "
            "bytes, Link, list or dict"
        )


def _write_map(pairs: dict[Any, Any], out: bytearray, levels: int) -> None:
    keys = []
    for key in pairs:
        if type(key) is not str:
            raise FormatError(f"a map of dag-cbor has the key {key!r}; keys are str")
        text = bytearray()
        _write_text(key, text)  # the head grows with the length, so this sorts as it should
        keys.append((bytes(text), key))
    keys.sort()
    _write_head(_MAP, len(keys), out)
    for text_bytes, key in keys:
        out += text_bytes
        _write(pairs[key], out, levels)


def _write_text(value: str, out: bytearray) -> None:
    try:
        data = value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(
            f"a text has the lone surrogate U+{ord(value[error.start]):04X}, which is not unicode"
        ) from None
    _write_head(_TEXT, len(data), out)
    out += data


def _write_head(major: int, argument: int, out: bytearray) -> None:
    first = major << 5
    if argument < 24:
        out.append(first | argument)
    elif argument < 1 << 8:
        out += bytes((first | 24, argument))
    elif argument < 1 << 16:
        out.append(first | 25)
        out += argument.to_bytes(2, "big")
    elif argument < 1 << 32:
        out.append(first | 26)
        out += argument.to_bytes(4, "big")
    else:
        out.append(first | 27)
        out += argument.to_bytes(8, "big")


def _read(data: bytes, at: int, levels: int) -> tuple[Any, int]:
    """Read the value at an offset; return it and the offset behind it."""
    if at >= len(data):
        raise _cut_off(at)
    first = data[at]
    if first in _CONSTANTS:
        return _CONSTANTS[first], at + 1
    if first == _DOUBLE:
        return _read_float(data, at + 1)
    major, argument, at = _read_head(data, at)
    if major == _UINT:
        return argument, at
    if major == _NEGATIVE:
        return -1 - argument, at
    if major == _BYTES:
        return _take(data, at, argument)
    if major == _TEXT:
        return _read_text(data, at, argument)
    if major == _TAG:
        return _read_link(data, at, argument)
    if levels <= 0:
        raise FormatError(f"dag-cbor is nested too deep at byte {at}")
    if major == _LIST:
        items = []
        for _ in range(argument):
            item, at = _read(data, at, levels - 1)
            items.append(item)
        return items, at
    return _read_map(data, at, argument, levels - 1)


def _read_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Read a head; return the major type, the argument and the offset behind it."""
    major, info = data[at] >> 5, data[at] & 0x1F
    if info < 24 and major != _SIMPLE:
        return major, info, at + 1
    if info > 27 or major == _SIMPLE:
        raise FormatError(
            f"dag-cbor has the head 0x{data[at]:02x} at byte {at}, which is not in it"
        )
    raw, end = _take(data, at + 1, 1 << (info - 24))
    argument = int.from_bytes(raw, "big")
    if argument < (24 if info == 24 else 1 << (8 << (info - 25))):
        raise FormatError(f"dag-cbor has a head longer than it needs at byte {at}")
    return major, argument, end


def _read_float(data: bytes, at: int) -> tuple[float, int]:
    raw, end = _take(data, at, 8)
    value: float = struct.unpack(">d", raw)[0]
    if value - value != 0.0:
        raise FormatError(f"dag-cbor has a float that is not finite at byte {at - 1}")
    return value, end


def _read_text(data: bytes, at: int, length: int) -> tuple[str, int]:
    raw, end = _take(data, at, length)
    try:
        return raw.decode("utf-8"), end
    except UnicodeDecodeError as error:
        raise FormatError(
            f"dag-cbor has text that is not utf-8 at byte {at + error.start}"
        ) from None


def _read_link(data: bytes, at: int, tag: int) -> tuple[Link, int]:
    if tag != _LINK_TAG:
        raise FormatError(f"dag-cbor has the tag {tag} before byte {at}; only 42 is known")
    if at >= len(data):
        raise _cut_off(at)
    major, length, start = _read_head(data, at)
    if major != _BYTES:
        raise FormatError(f"dag-cbor has a link at byte {at} that is not made of bytes")
    raw, end = _take(data, start, length)
    if raw[:1] != b"\x00":
        raise FormatError(f"dag-cbor has a link at byte {at} that does not start with a zero byte")
    cid = CidBytes(raw[1:])
    codec_of(cid)
    return Link(cid), end


def _read_map(data: bytes, at: int, count: int, levels: int) -> tuple[dict[str, Any], int]:
    pairs: dict[str, Any] = {}
    before = b""
    for _ in range(count):
        start = at
        if at >= len(data):
            raise _cut_off(at)
        major, length, at = _read_head(data, at)
        if major != _TEXT:
            raise FormatError(f"dag-cbor has a map key at byte {start} that is not text")
        key, at = _read_text(data, at, length)
        if data[start:at] <= before:
            raise FormatError(f"dag-cbor has the map key {key[:40]!r} twice or out of order")
        before = data[start:at]
        pairs[key], at = _read(data, at, levels)
    return pairs, at


def _take(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    if length > len(data) - at:
        raise _cut_off(len(data))
    return data[at : at + length], at + length


def _cut_off(at: int) -> FormatError:
    return FormatError(f"dag-cbor is cut off at byte {at}")
