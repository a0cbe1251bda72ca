"""DAG-JSON: the codec of root documents, strict and canonical.

A value is None, a bool, an int, a float, a str, bytes, a `Link`, a list of values or a dict of
them under str keys. It has exactly one encoding, and `decode` accepts nothing else: no white
space, keys ascending by their UTF-8 bytes, no key twice, the short escapes of RFC 8259 and
``\\u00xx`` in lower case for the other control characters, everything else as raw UTF-8, integers
from -2^64 to 2^64-1, finite floats in the shortest form of ECMAScript (with ``.0`` where that
would read as an integer).

The work is done by the C scanner and the C encoder of the standard `json`: what was scanned is
encoded again and compared, so every leniency of the scanner shows as a difference.

Source: https://ipld.io/specs/codecs/dag-json/spec/ and, for what it leaves open, @ipld/dag-json.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from json.encoder import encode_basestring
from typing import Any, NoReturn, TypeAlias

from cas_zarr.cid import (
    DAG_CBOR,
    DAG_PB,
    HASHES,
    RAW,
    BytesLike,
    CidBytes,
    Link,
    codec_of,
    format_cid,
    make_cid,
)
from cas_zarr.errors import FormatError, InvalidCIDError

__all__ = ["MAX_DEPTH", "Value", "decode", "encode", "encode_string", "fits_depth", "sorted_keys"]

Value: TypeAlias = "bool | int | float | str | bytes | Link | list[Value] | dict[str, Value] | None"

MAX_DEPTH = 128
"""Levels of lists and maps that `decode` and `encode` go down unless told otherwise."""

_MAX_INT_DIGITS = len(str(-(2**64)))  # longer is out of range whatever it says
_MAX_FLOAT_DIGITS = 32  # the longest shortest form of a double has 25 characters
_INT_LIMIT = 2**64

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_BASE32_PAIRS = [first + second for first in _BASE32 for second in _BASE32]
# The digits that int() knows; any other byte becomes one that it refuses.
_BASE32_TO_INT = bytes.maketrans(
    bytes(range(256)),
    bytes(
        b"0123456789abcdefghijklmnopqrstuv"[_BASE32.find(chr(byte))] if chr(byte) in _BASE32 else 33
        for byte in range(256)
    ),
)
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_PLAIN_PREFIXES = frozenset(
    make_cid(codec, function, b"")
    for codec in (RAW, DAG_PB, DAG_CBOR)
    for function in HASHES.values()
)
_PAIR_SHIFTS = range(280, -1, -10)  # 36 bytes are 58 digits, of which the last is half empty
_MAX_LINK_TEXT = 512
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_OPENERS = bytes.maketrans(b"[]", b"{}")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))


# -- decoding -----------------------------------------------------------------------------------


def decode(data: BytesLike, *, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value that canonical DAG-JSON bytes encode.

    Parameters
    ----------
    data : bytes-like
        The whole block.
    max_depth : int
        Levels of lists and maps that are accepted.

    Raises
    ------
    FormatError
        If the bytes are not the canonical encoding of a value, or nested too deep.
    """
    data = bytes(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"dag-json is not utf-8 at byte {error.start}") from None
    if not fits_depth(data, max_depth):
        raise FormatError(
            f"dag-json is nested deeper than {max_depth} levels, or its brackets do not match"
        )
    scan = _Scan()
    try:
        value = scan.decode(data, text)
    except json.JSONDecodeError as error:
        raise FormatError(f"dag-json is no json: {error.msg} at character {error.pos}") from None
    if scan.odd_float:
        canonical = _canonical(value, max_depth)
    else:
        canonical = _encode_scanned(value, scan.texts)
    if canonical != text:
        raise _not_canonical(text, canonical)
    return value


def fits_depth(data: bytes, limit: int) -> bool:
    """Tell whether JSON bytes nest at most `limit` levels, without parsing them.

    Of bytes that are not JSON it may say either; a scanner that goes ahead on yes still never
    goes deeper than `limit`, since it stops where the bytes stop being JSON.
    """
    if data.count(b"[") + data.count(b"{") <= limit:
        return True
    # Runs of backslashes pair up from the left, so what remains are the quotes that delimit.
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two adjacent quotes go without changing which of the others open and which close.
    data = data.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    brackets = b"".join(data.split(b'"')[::2]).translate(_OPENERS)
    for _ in range(limit):
        shorter = brackets.replace(b"{}", b"")  # takes the innermost level away
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    return not brackets


class _Scan:
    """One run of the scanner, with what has to be known afterwards to encode its result again."""

    def __init__(self) -> None:
        self.texts: dict[CidBytes, str] = {}  # of the links met: writing them costs more than this
        self.odd_float = False  # whether a float is written otherwise than repr does

    def decode(self, data: bytes, text: str) -> Any:
        # A hook is a call from C for each map or integer: none where there is nothing to see.
        special = b'"/":' in data  # written otherwise it is not canonical, which shows later
        long_int = b"0" * (_MAX_INT_DIGITS - 2) in data.translate(_DIGITS)
        return json.JSONDecoder(
            object_hook=self._map if special else None,
            parse_int=_parse_int if long_int else None,
            parse_float=self._float,
            parse_constant=_refuse_constant,
        ).decode(text)

    def _map(self, pairs: dict[str, Any]) -> Any:
        if "/" not in pairs or next(iter(pairs)) != "/":
            return pairs
        inner = pairs["/"]
        if type(inner) is str:
            _only_key(pairs)
            cid = _parse_link(inner)
            self.texts[cid] = inner
            return Link(cid)
        if type(inner) is dict and _looks_like_bytes(inner):
            _only_key(pairs)
            _only_key(inner)
            return _parse_bytes(inner["bytes"])
        return pairs

    def _float(self, text: str) -> float:
        if len(text) > _MAX_FLOAT_DIGITS:
            raise FormatError(f"dag-json has a float of {len(text)} characters; 25 are enough")
        value = float(text)
        if value - value != 0.0:
            raise FormatError(f"dag-json has the float {text}, which is not finite as a double")
        if repr(value) != text:
            self.odd_float = True
        return value


def _parse_int(text: str) -> int:
    if len(text) > _MAX_INT_DIGITS:
        raise FormatError(
            f"dag-json has an integer of {len(text)} digits; it needs 65 bits at most"
        )
    value = int(text)
    if not -_INT_LIMIT <= value < _INT_LIMIT:
        raise _out_of_range(value)
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise FormatError(f"dag-json has {text}, which the data model does not know")


def _looks_like_bytes(pairs: dict[str, Any]) -> bool:
    """Tell whether a map under "/" claims to be bytes: its least key is "bytes", with a string."""
    return type(pairs.get("bytes")) is str and min(pairs) == "bytes"


def _only_key(pairs: dict[str, Any]) -> None:
    if len(pairs) != 1:
        raise FormatError(
            f"dag-json has a link or bytes beside the key {max(pairs)[:40]!r}; they stand alone"
        )


def _parse_bytes(text: str) -> bytes:
    try:
        value = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise FormatError(f"dag-json has bytes that are not base64: {text[:40]!r}") from None
    return value


def _parse_link(text: str) -> CidBytes:
    """Return the CID of a link's text, which is base58 for a CIDv0 and base32 for a CIDv1."""
    if text[:1] == "b" and len(text) <= _MAX_LINK_TEXT:
        size, spare = divmod(5 * (len(text) - 1), 8)
        try:
            number = int(text[1:].encode("utf-8").translate(_BASE32_TO_INT), 32)
        except ValueError:  # another character, or none; a lone surrogate is one too
            number = -1
        if number >= 0 and spare < 5 and not number & ((1 << spare) - 1):
            cid = CidBytes((number >> spare).to_bytes(size, "big"))
            if cid[:4] in _PLAIN_PREFIXES and size == 36:
                return cid
            if cid[0] == 1:
                codec_of(cid)  # checks the rest
                return cid
    elif text[:2] == "Qm" and len(text) == 46:
        number = 0
        for character in text:
            digit = _BASE58.find(character)
            if digit < 0:
                break
            number = number * 58 + digit
        else:
            if number.bit_length() <= 272:
                cid = CidBytes(number.to_bytes(34, "big"))
                if cid[:2] == b"\x12\x20":
                    return cid
    raise InvalidCIDError(f"dag-json has a link {text[:80]!r}, which is no cid in its one form")


def _encode_scanned(value: Any, texts: dict[CidBytes, str]) -> str:
    """Encode what the scanner gave; it is known to hold nothing that `json` would misread."""

    def special(item: Any) -> Any:
        if type(item) is Link:
            return {"/": texts[item.cid]}
        return {"/": {"bytes": b64encode(item).decode("ascii").rstrip("=")}}

    return json.JSONEncoder(
        ensure_ascii=False,
        check_circular=False,
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":"),
        default=special,
    ).encode(value)


def _not_canonical(text: str, canonical: str) -> FormatError:
    low, high = 0, min(len(text), len(canonical))
    while low < high:  # the longest common prefix
        middle = (low + high + 1) // 2
        if text[low:middle] == canonical[low:middle]:
            low = middle
        else:
            high = middle - 1
    return FormatError(
        f"dag-json is not canonical at character {low}: it reads {text[low : low + 24]!r} where "
        f"{canonical[low : low + 24]!r} is the one way to write it"
    )


# -- encoding -----------------------------------------------------------------------------------


def encode(value: Value, *, max_depth: int = MAX_DEPTH) -> bytes:
    """Return the canonical DAG-JSON of a value.

    Raises
    ------
    FormatError
        If it is no value of the data model: another type (tuples are none), a key that is not
        str, an integer or float out of range, a lone surrogate, a map that would read as a link
        or as bytes, or deeper nesting than `max_depth` levels.
    """
    return _to_utf8(_canonical(value, max_depth))


def encode_string(text: str) -> bytes:
    """Return the canonical JSON string of a text, with its quotes, in UTF-8."""
    return _to_utf8(encode_basestring(text))


def sorted_keys(keys: Iterable[str]) -> list[str]:
    """Return keys in the order of DAG-JSON: by their UTF-8 bytes, which is by code points."""
    return sorted(keys)


def _canonical(value: Any, max_depth: int) -> str:
    out: list[str] = []
    _write(value, out, max_depth)
    return "".join(out)


def _write(value: Any, out: list[str], levels: int) -> None:
    """Append the text of a value; the commonest kinds come first."""
    kind = type(value)
    if kind is str:
        out.append(encode_basestring(value))
    elif kind is dict:
        _write_map(value, out, levels)
    elif kind is Link:
        _need(1, levels)
        out.append(f'{{"/":"{_link_text(value.cid)}"}}')
    elif kind is int:
        if not -_INT_LIMIT <= value < _INT_LIMIT:
            raise _out_of_range(value)
        out.append(repr(value))
    elif kind is list:
        _need(1, levels)
        separator = "["
        for item in value:
            out.append(separator)
            _write(item, out, levels - 1)
            separator = ","
        out.append("]" if value else "[]")
    elif kind is bool:
        out.append("true" if value else "false")
    elif value is None:
        out.append("null")
    elif kind is bytes:
        _need(2, levels)
        out.append(f'{{"/":{{"bytes":"{b64encode(value).decode("ascii").rstrip("=")}"}}}}')
    elif kind is float:
        out.append(_float_text(value))
    else:
        raise FormatError(
            f"a {kind.__name__} cannot be encoded as dag-json; use None, bool, int, float, str, "
            "bytes, Link, list or dict"
        )


def _write_map(pairs: dict[Any, Any], out: list[str], levels: int) -> None:
    _need(1, levels)
    for key in pairs:
        if type(key) is not str:
            raise FormatError(f"a map of dag-json has the key {key!r}; keys are str")
    separator = "{"
    for key in sorted(pairs):
        out.append(separator)
        out.append(encode_basestring(key))
        out.append(":")
        _write(pairs[key], out, levels - 1)
        separator = ","
    out.append("}" if pairs else "{}")
    if "/" in pairs and min(pairs) == "/":  # looked at last, when all keys below are known as str
        inner = pairs["/"]
        if type(inner) is str or (type(inner) is dict and _looks_like_bytes(inner)):
            raise FormatError('a map with the key "/" would read as a link or as bytes in dag-json')


def _need(levels: int, left: int) -> None:
    """Refuse a value that takes more levels of JSON than are left; a link takes one, bytes two."""
    if levels > left:
        raise FormatError("a value is nested too deep for dag-json")


def _float_text(value: float) -> str:
    """Write a float as ECMAScript does, with a ".0" where that shows no point and no exponent."""
    if value - value != 0.0:
        raise FormatError(f"the float {value!r} cannot be encoded as dag-json; it is not finite")
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    if exponent:
        power = int(exponent)
        if -6 <= power < 0 or 16 <= power < 21:  # repr goes over to exponents earlier
            sign = "-" if value < 0 else ""
            digits = mantissa.lstrip("-").replace(".", "")
            if power < 0:
                return f"{sign}0.{'0' * (-power - 1)}{digits}"
            return f"{sign}{digits.ljust(power + 1, '0')}.0"
        return f"{mantissa}e{power:+d}"
    return text


def _link_text(cid: CidBytes) -> str:
    if cid[:2] == b"\x12\x20" and len(cid) == 34:  # a CIDv0 stays one
        number = int.from_bytes(cid, "big")
        digits = []
        while number:
            number, digit = divmod(number, 58)
            digits.append(_BASE58[digit])
        return "".join(reversed(digits))
    if len(cid) == 36 and cid[:4] in _PLAIN_PREFIXES:
        number = int.from_bytes(cid, "big") << 2
        return "b" + "".join([_BASE32_PAIRS[number >> shift & 1023] for shift in _PAIR_SHIFTS])
    codec_of(cid)  # a link that is no cid must not get into a block
    return format_cid(cid)


def _to_utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(
            f"a text has the lone surrogate U+{ord(text[error.start]):04X}, which is not unicode"
        ) from None


def _out_of_range(value: int) -> FormatError:
    return FormatError(
        f"an integer of {value.bit_length()} bits is out of the range of ipld, -2^64 to 2^64-1"
    )
