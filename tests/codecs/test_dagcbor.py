"""DAG-CBOR: one encoding for a value, and the package dag-cbor agrees."""

from __future__ import annotations

from typing import Any

import dag_cbor
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy
from multiformats import CID

from cas_zarr.cid import BLAKE3, RAW, CidBytes, Link, cid_of
from cas_zarr.codecs import dagcbor, dagjson
from cas_zarr.errors import FormatError

LINK = Link(cid_of(RAW, BLAKE3, b"x"))
TAGGED = b"\xd8\x2a\x58\x25\x00" + LINK.cid


@given(st.data())
def test_what_is_encoded_is_decoded(ipld_values: SearchStrategy[Any], data: DataObject) -> None:
    value = data.draw(ipld_values)
    encoded = dagcbor.encode(value)
    decoded = dagcbor.decode(encoded)
    assert decoded == value
    assert dagcbor.encode(decoded) == encoded
    assert dagjson.decode(dagjson.encode(decoded)) == decoded


@given(st.data())
def test_the_package_dag_cbor_encodes_alike(
    ipld_values: SearchStrategy[Any], data: DataObject
) -> None:
    value = data.draw(ipld_values)
    assert dagcbor.encode(value) == dag_cbor.encode(_with_cids(value))


def _with_cids(value: Any) -> Any:
    """Return a value with the links that the package knows."""
    if isinstance(value, Link):
        return CID.decode(bytes(value.cid))
    if isinstance(value, list):
        return [_with_cids(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_cids(item) for key, item in value.items()}
    return value


@given(st.data())
def test_a_changed_byte_is_refused_or_means_another_value(
    ipld_values: SearchStrategy[Any], data: DataObject
) -> None:
    encoded = bytearray(dagcbor.encode(data.draw(ipld_values)))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    _refused_or_canonical(bytes(encoded))


@given(st.data())
def test_what_is_cut_off_is_refused(ipld_values: SearchStrategy[Any], data: DataObject) -> None:
    encoded = dagcbor.encode(data.draw(ipld_values))
    with pytest.raises(FormatError):
        dagcbor.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(
    st.binary()
    | st.lists(st.sampled_from(b"\x00\x17\x18\x41\x61a\x80\x81\xa1\xf6\xf9\xfb\xff")).map(bytes)
)
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    value = _refused_or_canonical(data)
    try:
        theirs = dag_cbor.decode(data)
    except (dag_cbor.decoding.CBORDecodingError, KeyError, ValueError, IndexError):
        assert value is _REFUSED
    else:
        assert _with_cids(value) == theirs


_REFUSED = object()


def _refused_or_canonical(data: bytes) -> Any:
    try:
        value = dagcbor.decode(data)
    except FormatError:
        return _REFUSED
    assert dagcbor.encode(value) == data
    return value


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (LINK, TAGGED),
        ({"bb": 1, "a": 2, "": 3}, b"\xa3\x60\x03\x61a\x02\x62bb\x01"),
        ({"/": "x"}, b"\xa1\x61/\x61x"),
        (-(2**64), b"\x3b" + b"\xff" * 8),
        (1.5, b"\xfb\x3f\xf8" + bytes(6)),
    ],
)
def test_known_encodings(value: Any, encoded: bytes) -> None:
    assert dagcbor.encode(value) == encoded
    assert dagcbor.decode(encoded) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",  # bytes behind the value
        b"\x18\x17",  # heads longer than they need to be
        b"\x19\x00\xff",
        b"\x1a\x00\x00\xff\xff",
        b"\x1b" + bytes(4) + b"\xff" * 4,
        b"\x1c",
        b"\x5f\x41a\xff",  # of no stated length
        b"\x9f\xff",
        b"\xbf\xff",
        b"\xf7",  # undefined
        b"\xe0",
        b"\xf8\xff",
        b"\xf9\x3c\x00",  # floats of other widths, or not finite
        b"\xfa\x3f\x80\x00\x00",
        b"\xfb\x7f\xf0" + bytes(6),
        b"\xfb\x7f\xf8" + bytes(6),
        b"\xc1\x00",  # tags
        b"\xd8\x2a",
        b"\xd8\x2a\x60",
        b"\xd8\x2a\x40",
        b"\xd8\x2a\x41\x00",
        TAGGED.replace(b"\x25\x00", b"\x25\x01"),
        b"\xd8\x2a" + TAGGED,
        b"\x61\xff",  # not utf-8
        b"\x63\xed\xa0\x80",
        b"\xa2\x61a\x00\x61a\x00",  # keys twice, out of order, of another kind
        b"\xa2\x61b\x00\x61a\x00",
        b"\xa2\x62aa\x00\x61b\x00",
        b"\xa1\x00\x00",
        b"\xa1\x41a\x00",
        b"\x9b" + b"\xff" * 8,  # counts and lengths of 2^64-1
        b"\xbb" + b"\xff" * 8,
        b"\x5b" + b"\xff" * 8,
        b"\x7b" + b"\xff" * 8,
        b"\x81" * 10**6,  # absurd nesting
        b"\xa1\x61a" * 10**6,
        b"\xd8\x2a" * 10**6,
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        dagcbor.decode(data)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        2**64,
        -(2**64) - 1,
        (1, 2),
        {1: 2},
        {"a": {1}},
        bytearray(b"a"),
        "\ud800",
        {"\udfff": 1},
        Link(CidBytes(b"no cid")),
    ],
)
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        dagcbor.encode([value])


def test_depth_is_limited_alike_in_both_directions() -> None:
    value: Any = 0
    for _ in range(dagjson.MAX_DEPTH):
        value = [value]
    assert dagcbor.decode(dagcbor.encode(value)) == value
    with pytest.raises(FormatError, match="deep"):
        dagcbor.encode([value])
    with pytest.raises(FormatError, match="deep"):
        dagcbor.decode(b"\x81" + dagcbor.encode(value))
    assert dagcbor.decode(b"\x81" + dagcbor.encode(value), max_depth=129) == [value]
