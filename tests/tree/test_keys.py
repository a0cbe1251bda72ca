"""The grammar of keys: which can be stored, and which are chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.errors import FormatError, InvalidKeyError
from cas_zarr.tree.keys import (
    check_key,
    chunk_names,
    form_of,
    parse_chunk,
    parse_form,
    split_key,
)


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "a/b",
        ".zarray",
        "a/.zattrs",
        "..a",
        "a..",
        "...",
        "é/ü",
        "e\u0301/u\u0308",  # decomposed, and so another key
        'a b\n\t\\"',
        "\x01\x7f",
        "𝄞",
        "-",
        "a" * 1024,
        "é" * 512,
        "/".join(["a"] * 64),
        "/".join(["é"] * 64),
    ],
)
def test_keys_that_can_be_stored(key: str) -> None:
    check_key(key)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "segment ''"),
        ("/a", "segment ''"),
        ("a/", "segment ''"),
        ("a//b", "segment ''"),
        (".", "'.'"),
        ("a/./b", "'.'"),
        ("..", "'..'"),
        ("../a", "'..'"),
        ("a/../b", "'..'"),
        ("a\0b", "NUL"),
        ("a/\ud800", "lone surrogate"),
        ("\udfff", "lone surrogate"),
        ("a" * 1025, "1025 bytes"),
        ("é" * 513, "1026 bytes"),
        ("/".join(["a"] * 65), "65 segments"),
        ("/".join(["aé"] * 65), "65 segments"),
    ],
)
def test_keys_that_cannot(key: str, message: str) -> None:
    with pytest.raises(InvalidKeyError, match=message):
        check_key(key)


@pytest.mark.parametrize("key", [5, None, b"a"])
def test_a_key_is_text(key: object) -> None:
    with pytest.raises(InvalidKeyError, match=type(key).__name__):
        check_key(key)  # type: ignore[arg-type]


@given(st.text(max_size=80))
def test_the_short_way_agrees_with_the_rule(key: str) -> None:
    segments = key.split("/")
    fine = (
        all(part not in ("", ".", "..") and "\0" not in part for part in segments)
        and not any("\ud800" <= character <= "\udfff" for character in key)
        and len(segments) <= 64
        and len(key.encode("utf-8", "surrogatepass")) <= 1024
    )
    try:
        check_key(key)
    except InvalidKeyError:
        assert not fine
    else:
        assert fine


@pytest.mark.parametrize(
    ("name", "kind", "coordinates"),
    [
        ("c", "c", ()),
        ("c/0", "c/", (0,)),
        ("c/0/1/2", "c/", (0, 1, 2)),
        ("c.0", "c.", (0,)),
        ("c.7.0", "c.", (7, 0)),
        ("0", ".", (0,)),
        ("0.0", ".", (0, 0)),
        ("12.3.4", ".", (12, 3, 4)),
        ("0/0", "/", (0, 0)),
        ("5/6/7", "/", (5, 6, 7)),
        ("c/4294967295", "c/", (2**32 - 1,)),
        ("/".join(["c"] + ["1"] * 32), "c/", (1,) * 32),
        (".".join(["1"] * 32), ".", (1,) * 32),
    ],
)
def test_names_of_chunks(name: str, kind: str, coordinates: tuple[int, ...]) -> None:
    assert parse_chunk(name) == (kind, coordinates)
    assert chunk_names(kind, np.array([coordinates]).reshape(1, -1)) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "c/",
        "c.",
        "c/00",
        "c/01",
        "01",
        "0.01",
        "1/02",
        "c0",
        "c/-1",
        "-1",
        "+1",
        "1 ",
        "c/1/",
        "/1",
        ".1",
        "1.",
        "1..2",
        "1/2.3",
        "1.2/3",
        "c/1.2",
        "c.1/2",
        "c/c/1",
        "C/1",
        "c/4294967296",
        "4294967296",
        "99999999999",
        "c/10000000000",
        "c/1/4294967296",
        "c/1\n",
        "١",  # a digit, elsewhere
        "c/²",
        "1e3",
        "0x1",
        "1_0",
        "/".join(["c"] + ["1"] * 33),
        ".".join(["1"] * 33),
        "/".join(["1"] * 33),
        "zarr.json",
    ],
)
def test_names_that_only_look_like_chunks(name: str) -> None:
    assert parse_chunk(name) is None


@given(
    st.sampled_from(["c/", "c.", ".", "/"]),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=32),
)
def test_name_and_form_have_an_inverse(kind: str, coordinates: list[int]) -> None:
    if kind == "/" and len(coordinates) == 1:
        kind = "."  # one number has no separator
    (name,) = chunk_names(kind, np.array([coordinates]))
    assert parse_chunk(name) == (kind, tuple(coordinates))
    assert parse_form(form_of(kind, len(coordinates))) == (kind, len(coordinates))


@pytest.mark.parametrize(
    "form",
    ["", "c/", "c/0", "c/33", "c/03", "c.33", "/1", "/33", ".0", "3", "c3", "c/3 ", "d/3", "c/³"],
)
def test_forms_that_no_tree_has(form: str) -> None:
    with pytest.raises(FormatError, match="no form"):
        parse_form(form)


def test_the_form_of_scalars() -> None:
    assert form_of("c", 0) == "c"
    assert parse_form("c") == ("c", 0)


def test_split() -> None:
    assert split_key("a/b/c") == ("a/b", "c")
    assert split_key("c") == ("", "c")
