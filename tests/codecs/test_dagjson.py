"""DAG-JSON: one encoding for a value, and nothing else is read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy

from cas_zarr.cid import BLAKE3, DAG_JSON, RAW, SHA256, CidBytes, Link, cid_of, format_cid
from cas_zarr.codecs import dagjson
from cas_zarr.errors import FormatError

LINK = Link(cid_of(RAW, BLAKE3, b"x"))
TEXT = format_cid(LINK.cid)


@given(st.data())
def test_what_is_encoded_is_decoded(ipld_values: SearchStrategy[Any], data: DataObject) -> None:
    value = data.draw(ipld_values)
    encoded = dagjson.encode(value)
    decoded = dagjson.decode(encoded)
    assert decoded == value
    assert dagjson.encode(decoded) == encoded  # 1, 1.0 and True are equal in Python


@given(st.data())
def test_a_changed_byte_is_refused_or_means_another_value(
    ipld_values: SearchStrategy[Any], data: DataObject
) -> None:
    encoded = bytearray(dagjson.encode(data.draw(ipld_values)))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'"\\{}[]:,/ 01e.-'))
    _refused_or_canonical(bytes(encoded))


@given(st.data())
def test_what_is_cut_off_is_refused(ipld_values: SearchStrategy[Any], data: DataObject) -> None:
    encoded = dagjson.encode(data.draw(st.lists(ipld_values, min_size=1, max_size=3)))
    with pytest.raises(FormatError):
        dagjson.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(st.text(alphabet='"\\/{}[]:,bytesu0d8+-.eE19 naif\n\u00e9\U00010151') | st.text())
@example('{"/":{"bytes":"AB"}}')  # stray bits
@example('{"/":{"bytes":"AA=="}}')
@example('"\\/"')
@example("-0")
@example("1.50")
@example("1e5")
def test_any_text_is_refused_or_canonical(text: str) -> None:
    _refused_or_canonical(text.encode("utf-8"))


@given(st.binary())
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    _refused_or_canonical(data)


@given(st.data())
def test_the_text_of_a_link_is_its_only_one(data: DataObject) -> None:
    cid = data.draw(st.sampled_from([RAW, DAG_JSON]).map(lambda codec: cid_of(codec, BLAKE3, b"x")))
    text = format_cid(cid)
    at = data.draw(st.integers(0, len(text)))
    dropped = data.draw(st.integers(0, 8))
    added = data.draw(st.text(alphabet="abz27 =_A\u00e90", max_size=8))
    _refused_or_canonical(f'{{"/":"{text[:at]}{added}{text[at + dropped :]}"}}'.encode())


def _refused_or_canonical(data: bytes) -> None:
    try:
        value = dagjson.decode(data)
    except FormatError:
        return
    assert dagjson.encode(value) == data


@given(st.dictionaries(st.text(), st.integers(0, 9)))
def test_the_order_of_keys_does_not_matter_and_is_that_of_their_bytes(
    pairs: dict[str, int],
) -> None:
    encoded = dagjson.encode(dict(pairs))
    assert encoded == dagjson.encode(dict(reversed(pairs.items())))
    ordered = dagjson.sorted_keys(pairs)
    assert ordered == sorted(pairs, key=lambda key: key.encode("utf-8"))
    parts = [dagjson.encode_string(key) + b":%d" % pairs[key] for key in ordered]
    assert encoded == b"{" + b",".join(parts) + b"}"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ('\b\f\n\r\t"\\/', rb'"\b\f\n\r\t\"\\/"'),
        ("\x00\x1f\x7f", b'"\\u0000\\u001f\x7f"'),
        ("Č水\U00010151\u2028", '"Č水\U00010151\u2028"'.encode()),
        ({"": 0, "!": 1, "/": 2}, b'{"":0,"!":1,"/":2}'),
        ({"\uffff": 0, "\U00010000": 1}, '{"\uffff":0,"\U00010000":1}'.encode()),
        (2**64 - 1, b"18446744073709551615"),
        (-(2**64), b"-18446744073709551616"),
        (b"", b'{"/":{"bytes":""}}'),
        (b"\xa1", b'{"/":{"bytes":"oQ"}}'),
        ({"/": LINK}, f'{{"/":{{"/":"{TEXT}"}}}}'.encode()),
        ({"/": {"bytes": 1}}, b'{"/":{"bytes":1}}'),
        ({"/": {"a": "", "bytes": ""}}, b'{"/":{"a":"","bytes":""}}'),
        # As ECMAScript writes them: checked against Node.js over 300 000 doubles.
        (1.0, b"1.0"),
        (-0.0, b"-0.0"),
        (1e-6, b"0.000001"),
        (1.5e-7, b"1.5e-7"),
        (5e-324, b"5e-324"),
        (1.2345678901234567e20, b"123456789012345670000.0"),
        (1e21, b"1e+21"),
        (-1.7976931348623157e308, b"-1.7976931348623157e+308"),
    ],
)
def test_known_encodings(value: Any, encoded: bytes) -> None:
    assert dagjson.encode(value) == encoded
    assert dagjson.decode(encoded) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" 1",
        b"1\n",
        b"1 2",
        b"[1, 2]",
        b"\xef\xbb\xbf1",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\\ud800\\udd51"',
        b'"\\u0041"',
        b'"\\u001F"',
        b'"\\u000a"',
        b'"\n"',
        b"'a'",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"nan",
        b"True",
        b"01",
        b"+1",
        b"-0",
        b"1.",
        b".5",
        b"1.0e0",
        b"1E400",
        b"1e999999999999",
        b"1" * 10**6,
        b"0." + b"1" * 10**6,
        b"18446744073709551616",
        b"-18446744073709551617",
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"b":1,"a":2}',
        b'{"a":1,}',
        b"{1:2}",
        b'{"/":"x"}',
        b'{"/":""}',
        f'{{"/":"{TEXT}","a":1}}'.encode(),
        f'{{"/":"{TEXT}","/":"{TEXT}"}}'.encode(),
        f'{{"/":"{TEXT.upper()}"}}'.encode(),
        f'{{"/":"{TEXT}="}}'.encode(),
        f'{{"/":"{TEXT}a"}}'.encode(),
        f'{{"/":"{TEXT[:-1]}"}}'.encode(),
        f'{{"/":"{TEXT[:-1]}z"}}'.encode(),
        f'{{"/":"{TEXT[:20]}_{TEXT[21:]}"}}'.encode(),
        f'{{"/":"{TEXT[:20]}0{TEXT[21:]}"}}'.encode(),
        b'{"/":"Qm' + b"1" * 44 + b'"}',
        b'{"/":"Qm' + b"z" * 44 + b'"}',
        b'{"/":"b' + b"a" * 10**6 + b'"}',
        b'{"/":{"bytes":"AA","x":1}}',
        b'{"/":{"bytes":"AA"},"x":1}',
        b'{"/":{"bytes":"A"}}',
        b'{"/":{"bytes":"A-_A"}}',
        b'{"/":{"bytes":"\xc3\xa9"}}',
    ],
)
def test_other_ways_to_write_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        dagjson.decode(data)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        2**64,
        -(2**64) - 1,
        (1, 2),
        {1: 2},
        {None: 1},
        {"a": {1}},
        object(),
        bytearray(b"a"),
        "\ud800",
        {"\udfff": 1},
        {"/": TEXT},
        {"/": "x", "z": 1},
        {"/": {"bytes": "AA"}},
        {"/": {"bytes": "AA", "x": 1}},
        {"/": {"bytes": "AA", 1: 2}},
        Link(CidBytes(b"no cid")),
        Link(CidBytes(b"")),
    ],
)
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        dagjson.encode(value)
    with pytest.raises(FormatError):
        dagjson.encode([value])


def _nest(levels: int, value: Any = 0) -> Any:
    for level in range(levels):
        value = {"k": value} if level % 2 else [value]
    return value


@pytest.mark.parametrize(
    ("value", "extra"), [(0, 0), (1e-7, 0), (LINK, 1), (b"x", 2), ("[[{{", 0), ('\\"[', 0)]
)
def test_depth_is_limited_alike_in_both_directions(value: Any, extra: int) -> None:
    deepest = _nest(dagjson.MAX_DEPTH - extra, value)
    encoded = dagjson.encode(deepest)
    assert dagjson.decode(encoded) == deepest
    with pytest.raises(FormatError, match="deep"):
        dagjson.encode([deepest])
    with pytest.raises(FormatError, match="128 levels"):
        dagjson.decode(b"[" + encoded + b"]")
    assert dagjson.decode(b"[" + encoded + b"]", max_depth=129) == [deepest]


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b"[" * 10**5 + b"]" * 10**5,
        b'["]",' * 10**5,
        b'["\\"]",' * 10**5,
    ],
)
def test_absurd_nesting_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        dagjson.decode(data)


@given(st.data())
def test_depth_is_told_without_parsing(data: DataObject) -> None:
    texts = st.text(alphabet='[]{}"\\a')
    value = data.draw(
        st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))
    )

    def depth(item: Any) -> int:
        if isinstance(item, str):
            return 0
        items = item.values() if isinstance(item, dict) else item
        return 1 + max(map(depth, items), default=0)

    encoded = dagjson.encode(value)
    for limit in range(5):
        assert dagjson.fits_depth(encoded, limit) == (depth(value) <= limit)


def test_the_message_says_where_and_what() -> None:
    with pytest.raises(FormatError, match=r"canonical at character 4: it reads ' 2\]' where '2\]'"):
        dagjson.decode(b"[11, 2]")


def test_a_cid_of_version_0_stays_one() -> None:
    link = Link(CidBytes(b"\x12\x20" + SHA256.digest(b"")))
    encoded = dagjson.encode(link)
    assert encoded == b'{"/":"QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n"}'
    assert dagjson.decode(encoded) == link


def test_views_are_decoded() -> None:
    assert dagjson.decode(memoryview(b"[1]")) == [1] == dagjson.decode(bytearray(b"[1]"))
