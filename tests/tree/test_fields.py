"""Documents compared and united field by field."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_zarr.tree.fields import MISSING, FieldChange, changed_fields, merge_fields, parse

ATTRIBUTES = ("attributes",)


def text(value: Any, **options: Any) -> bytes:
    return json.dumps(value, **options).encode()


def test_changed_fields_are_named() -> None:
    before = text({"shape": [8], "attributes": {"units": "K", "gone": None, "same": 1}})
    after = text({"shape": [9], "attributes": {"units": "C", "same": 1, "new": {"a": 1}}}, indent=2)
    assert changed_fields(before, after) == [
        FieldChange(("attributes", "gone"), None, MISSING),
        FieldChange(("attributes", "new"), MISSING, {"a": 1}),
        FieldChange(("attributes", "units"), "K", "C"),
        FieldChange(("shape",), [8], [9]),
    ]


def test_what_reads_the_same_is_not_changed() -> None:
    assert changed_fields(b'{"a":1,"b":[1.50]}', b'{\n "b": [1.5], "a": 1 }') == []
    assert changed_fields(None, None) == []
    assert changed_fields(b'{"a":NaN}', b'{"a": NaN}') == []


@pytest.mark.parametrize("pair", [("1", "1.0"), ("1", "true"), ("0", "false"), ("null", '""')])
def test_numbers_and_truth_are_three_things(pair: tuple[str, str]) -> None:
    a, b = (f'{{"a":{part}}}'.encode() for part in pair)
    assert [change.path for change in changed_fields(a, b)] == [("a",)]


def test_whole_documents() -> None:
    assert changed_fields(None, b"{}") == [FieldChange((), MISSING, {})]
    assert changed_fields(b"[1]", None) == [FieldChange((), [1], MISSING)]
    assert changed_fields(b"no json", b"{}") == [FieldChange((), b"no json", {})]
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING


@pytest.mark.parametrize(
    "document", [b"", b"x", b'{"a":1,"a":2}', b"\xff", b'{"a":1e999}', b"[" * 10_000, b"9" * 5000]
)
def test_what_cannot_be_written_again_is_bytes(document: bytes) -> None:
    assert parse(document) == document
    merged, conflicts = merge_fields(b"{}", b'{"a":1}', document, prefer="theirs")
    assert (merged, conflicts) == (document, [()])


@pytest.mark.parametrize(
    "options",
    [
        {"indent": 2},
        {"indent": 4},
        {},
        {"separators": (",", ":")},
        {"indent": 2, "ensure_ascii": False},
    ],
)
def test_the_result_is_written_like_the_base(options: dict[str, Any]) -> None:
    base = {"z": 1, "é": "ü", "attributes": {"b": 1, "a": [1, {"x": 2}]}}
    ours = {"z": 1, "é": "ü", "attributes": {"b": 2, "a": [1, {"x": 2}], "n": {}}}
    theirs = {"attributes": {"a": [1]}, "é": "ü", "z": 1}
    expected = {"z": 1, "é": "ü", "attributes": {"a": [1], "n": {}}}
    for end in (b"", b"\n"):
        documents = text(base, **options) + end, text(ours, indent=1), text(theirs, indent=7)
        merged, conflicts = merge_fields(*documents)
        assert conflicts == [("attributes", "b")]
        assert (
            merged
            == text(expected | {"attributes": {"b": 2} | expected["attributes"]}, **options) + end
        )  # type: ignore[dict-item]
        merged, _ = merge_fields(*documents, prefer="theirs")
        assert merged == text(expected, **options) + end


def test_both_may_do_the_same() -> None:
    base, ours = b'{"a": 1, "b": 2}', b'{"b":2,"a":3}'
    assert merge_fields(base, ours, b'{"a":3,"b":2,"c":1}') == (b'{"a": 3, "b": 2, "c": 1}', [])
    assert merge_fields(base, ours, base) == (ours, [])
    assert merge_fields(base, base, ours) == (ours, [])
    assert merge_fields(base, ours, ours) == (ours, [])
    assert merge_fields(base, b'{"b":2}', b'{"b":2,"c":1}') == (b'{"b": 2, "c": 1}', [])


def test_what_was_deleted_and_changed_is_a_conflict() -> None:
    documents = b'{"a":{"x":1},"b":1}', b'{"b":2}', b'{"a":{"x":2},"b":1}'
    assert merge_fields(*documents) == (b'{"b":2}', [("a",)])
    assert merge_fields(*documents, prefer="theirs") == (b'{"a":{"x":2},"b":2}', [("a",)])
    assert merge_fields(*documents, prefer="base") == (b'{"a":{"x":1},"b":2}', [("a",)])


def test_without_a_base_both_may_add() -> None:
    assert merge_fields(None, b'{"b":1}', b'{"a":1}') == (b'{"a":1,"b":1}', [])
    merged, conflicts = merge_fields(None, b'{"b":1,"c":[1]}', b'{"c":[2],"a":1}')
    assert conflicts == [("c",)]
    assert json.loads(merged) == {"a": 1, "b": 1, "c": [1]}


def test_members_that_stay_together_are_one_thing() -> None:
    base = {"shape": [8], "dtype": "i4", "attributes": {"a": 1}}
    ours = {"shape": [9], "dtype": "i4", "attributes": {"a": 1, "b": 1}}
    theirs = {"shape": [8], "dtype": "f4", "attributes": {"a": 2}}
    documents = text(base), text(ours), text(theirs)
    assert merge_fields(*documents)[1] == []
    merged, conflicts = merge_fields(*documents, apart=ATTRIBUTES)
    assert conflicts == [("dtype",), ("shape",)]
    assert json.loads(merged) == ours | {"attributes": {"a": 2, "b": 1}}
    merged, _ = merge_fields(*documents, apart=ATTRIBUTES, prefer="theirs")
    assert json.loads(merged) == theirs | {"attributes": {"a": 2, "b": 1}}
    same = text(ours | {"attributes": {"c": 1}})
    assert merge_fields(text(base), text(ours), same, apart=ATTRIBUTES)[1] == []


values = st.recursive(
    st.sampled_from([None, True, 0, 1, 1.5, "", "x", [1], []]),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
documents = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


@given(documents, documents, documents)
@settings(max_examples=200)
def test_it_does_not_matter_which_side_is_which(base: Any, ours: Any, theirs: Any) -> None:
    sides = text(ours, indent=2), text(theirs)
    for apart in ((), ("a",)):
        merged, conflicts = merge_fields(text(base), *sides, apart=apart)
        swapped, found = merge_fields(text(base), *sides[::-1], apart=apart, prefer="theirs")
        assert sorted(conflicts) == sorted(found)
        assert merged == swapped
        changed = {
            side: {change.path for change in changed_fields(text(base), document)}
            for side, document in zip(("ours", "theirs"), sides, strict=True)
        }
        for change in changed_fields(text(base), merged):
            assert any(
                change.path[: len(path)] == path[: len(change.path)]
                for path in changed["ours"] | changed["theirs"]
            )
        if not changed["theirs"]:
            assert changed_fields(sides[0], merged) == []
