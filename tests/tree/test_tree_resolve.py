"""Conflicts as records, and what becomes of them when someone decides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from building import CountingBlocks

from cas_zarr.cid import BLAKE3, RAW, cid_of
from cas_zarr.errors import ConflictError, InvalidArgumentError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree.conflicts import Choice, Conflict
from cas_zarr.tree.merge import Merged, merge
from cas_zarr.tree.node import Header, Root, Value
from cas_zarr.tree.view import TreeView

Edit = dict[str, bytes | None]


def array(shape: list[int], chunks: list[int] | None = None, **more: Any) -> bytes:
    grid = {"chunk_shape": chunks or [2] * len(shape)}
    document = {
        "node_type": "array",
        "shape": shape,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "attributes": {"units": "K", "n": 1},
    }
    return json.dumps(document | more, indent=2).encode()


def array2(shape: list[int], **more: Any) -> bytes:
    return json.dumps({"shape": shape, "chunks": [2] * len(shape)} | more, indent=4).encode()


GROUP = b'{\n  "zarr_format": 3,\n  "node_type": "group",\n  "attributes": {}\n}'
BASE: dict[str, bytes] = {
    "zarr.json": GROUP,
    "a/zarr.json": array([8, 8]),
    **{f"a/c/{x}/{y}": b"%d%d" % (x, y) for x in range(4) for y in range(4)},
    "v2/.zarray": array2([8]),
    "v2/.zattrs": b'{"a": 1}',
    **{f"v2/{x}": b"%d" % x for x in range(4)},
    "g/zarr.json": GROUP,
    "g/h/zarr.json": array([4]),
    "g/h/c/0": b"0",
    "notes/readme": b"read me",
}


class Case:
    """A base and two sides of it."""

    def __init__(self, ours: Edit, theirs: Edit, base: dict[str, bytes] = BASE) -> None:
        self.blocks = CountingBlocks()
        first = CASMapping(self.blocks)
        first.update(base)
        root = first.flush()
        self.values = dict(base)
        self.base = CASMapping(self.blocks, root)
        self.ours, self.theirs = self.edited(ours), self.edited(theirs)

    def edited(self, edit: Edit) -> CASMapping:
        mapping = CASMapping(self.blocks, self.base.root)
        for key, value in edit.items():
            if key.endswith("/") or key == "":
                mapping.discard_prefix(key)
            elif value is None:
                mapping.discard(key)
            else:
                mapping[key] = value
        mapping.flush()
        return mapping

    def merged(self, *choices: Choice, swap: bool = False) -> Merged:
        left = list(choices)

        def decide(conflict: Conflict) -> Choice:
            assert left, f"nobody was to be asked about {conflict}"
            return left.pop(0)

        sides = [self.ours.view, self.theirs.view]
        made = merge(
            self.base.view, *(sides[::-1] if swap else sides), resolve=decide if choices else None
        )
        assert not left
        return made

    def keys(self, made: Merged) -> dict[str, bytes]:
        cid = made.root.cid()
        self.blocks.put(cid, made.root.to_block())
        found = dict(CASMapping(self.blocks, cid).items())
        again = CASMapping(CountingBlocks())
        again.update(found)
        assert again.flush() == cid  # the law
        return {key: bytes(value) for key, value in found.items()}

    def conflicts(self, swap: bool = False) -> tuple[Conflict, ...]:
        with pytest.raises(ConflictError) as caught:
            self.merged(swap=swap)
        return caught.value.conflicts


def value(data: bytes) -> Value:
    return Value(cid_of(RAW, BLAKE3, data), len(data))


# -- chunks and keys --------------------------------------------------------------------------


def test_a_chunk_that_was_set_twice_is_named_with_its_three_values() -> None:
    (conflict,) = Case({"a/c/1/2": b"ours"}, {"a/c/1/2": b"their"}).conflicts()
    assert (conflict.path, conflict.kind, conflict.name) == ("a", "chunk", "c/2")
    assert conflict.coordinates == (1, 2)
    assert conflict.key == "a/c/1/2"
    assert conflict.base == value(b"12")
    assert (conflict.ours, conflict.theirs) == (value(b"ours"), value(b"their"))
    (conflict,) = Case({"a/c/1/2": None}, {"a/c/1/2": b"their"}).conflicts()
    assert (conflict.ours, conflict.theirs) == (None, value(b"their"))
    (conflict,) = Case({"v2/9": b"1"}, {"v2/9": b"2"}).conflicts()
    assert (conflict.key, conflict.name, conflict.base) == ("v2/9", ".1", None)
    (conflict,) = Case({"notes/readme": b"1"}, {"notes/readme": None}).conflicts()
    assert (conflict.kind, conflict.name, conflict.key) == ("key", "readme", "notes/readme")
    assert (conflict.base, conflict.ours) == (value(b"read me"), value(b"1"))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("key", ["a/c/1/2", "v2/0", "notes/readme", "k", "a/c/9/9"])
def test_each_choice_of_a_value_is_what_becomes_of_the_key(key: str, swap: bool) -> None:
    case = Case({key: b"ours", "a/c/0/0": b"O"}, {key: b"theirs", "v2/1": b"T"})
    rest = BASE | {"a/c/0/0": b"O", "v2/1": b"T"}
    rest.pop(key, None)
    first, second = (b"theirs", b"ours") if swap else (b"ours", b"theirs")
    replaced = {"replaced": b"other"}
    case.blocks.put(value(b"other").cid, b"other")
    for choice, then in (
        ("ours", first),
        ("theirs", second),
        ("base", BASE.get(key)),
        (None, None),
        (b"bytes", b"bytes"),
        (value(b"other"), replaced["replaced"]),
    ):
        made = case.merged(choice, swap=swap)  # type: ignore[arg-type]
        assert case.keys(made) == rest | ({} if then is None else {key: then})
        assert [conflict.key for conflict in made.resolved] == [key]


def test_a_choice_that_makes_no_sense_is_refused() -> None:
    case = Case({"a/c/0/0": b"x"}, {"a/c/0/0": b"y"})
    for choice in ("mine", 3, [b"x"]):
        with pytest.raises(InvalidArgumentError, match="a/c/0/0"):
            case.merged(choice)  # type: ignore[arg-type]
    case = Case({"a/": None}, {"a/c/0/0": b"y"})
    for choice in (None, b"x", value(b"x")):
        with pytest.raises(InvalidArgumentError, match="'base', 'ours' or 'theirs'"):
            case.merged(choice, choice)
    case = Case({"v2/.zattrs": b"1"}, {"v2/.zattrs": b"2"})
    with pytest.raises(InvalidArgumentError):
        case.merged(value(b"x"))


def test_a_long_value_that_is_chosen_keeps_its_blocks() -> None:
    case = Case({"a/c/0/0": b"o" * (3 << 20)}, {"a/c/0/0": b"t" * (3 << 20)})
    for side in ("ours", "theirs"):
        made = case.merged(side)  # type: ignore[arg-type]
        assert case.keys(made)["a/c/0/0"] == side[0].encode() * (3 << 20)


# -- documents --------------------------------------------------------------------------------


def attributes(**values: Any) -> bytes:
    return array([8, 8], attributes=values)


@pytest.mark.parametrize("swap", [False, True])
def test_documents_are_united_field_by_field(swap: bool) -> None:
    case = Case(
        {"a/zarr.json": attributes(units="C", n=1, new=[1]), "v2/.zattrs": b'{"b":2,"a":1}'},
        {"a/zarr.json": array([8, 8], attributes={"units": "K"}), "v2/.zattrs": b'{"a":3}'},
    )
    found = case.keys(case.merged(swap=swap))
    assert found["a/zarr.json"] == attributes(units="C", new=[1])
    assert found["v2/.zattrs"] == b'{"a": 3, "b": 2}'  # written as before
    assert found.keys() == BASE.keys()


@pytest.mark.parametrize("swap", [False, True])
def test_a_layout_of_one_side_and_attributes_of_the_other_are_united(swap: bool) -> None:
    case = Case(
        {"a/zarr.json": array([8, 8], dimension_names=["x", "y"])},
        {"a/zarr.json": attributes(units="C", n=1)},
    )
    made = case.merged(swap=swap)
    united = array([8, 8], dimension_names=["x", "y"], attributes={"units": "C", "n": 1})
    assert case.keys(made)["a/zarr.json"] == united


def test_a_field_that_was_set_twice_is_decided_and_the_rest_united() -> None:
    case = Case(
        {"a/zarr.json": attributes(units="C", n=1, ours=1)},
        {"a/zarr.json": attributes(units="F", n=1, theirs=1)},
    )
    (conflict,) = case.conflicts()
    assert (conflict.kind, conflict.name, conflict.path) == ("document", "zarr.json", "a")
    assert "attributes.units" in conflict.reason
    assert conflict.base == BASE["a/zarr.json"]
    assert conflict.ours == attributes(units="C", n=1, ours=1)
    for choice, units in (("base", "K"), ("ours", "C"), ("theirs", "F")):
        found = case.keys(case.merged(choice))  # type: ignore[arg-type]
        assert found["a/zarr.json"] == attributes(units=units, n=1, ours=1, theirs=1)
    found = case.keys(case.merged(attributes(mine=True)))
    assert found["a/zarr.json"] == attributes(mine=True)
    assert "a/zarr.json" not in case.keys(case.merged(None))


def test_documents_that_are_no_json_are_one_thing() -> None:
    case = Case({"v2/.zattrs": b"no json"}, {"v2/.zattrs": b'{"a": 2}'})
    (conflict,) = case.conflicts()
    assert conflict.kind == "document"
    assert case.keys(case.merged("ours"))["v2/.zattrs"] == b"no json"
    assert case.keys(case.merged("base"))["v2/.zattrs"] == BASE["v2/.zattrs"]
    case = Case({"v2/.zattrs": None}, {"v2/.zattrs": b'{"a": 2}'})
    assert ".zattrs" not in str(sorted(case.keys(case.merged("ours"))))
    assert case.keys(case.merged("theirs"))["v2/.zattrs"] == b'{"a": 2}'


@pytest.mark.parametrize("swap", [False, True])
def test_two_new_nodes_that_agree_are_united(swap: bool) -> None:
    case = Case(
        {"new/zarr.json": array([4], attributes={"a": 1}), "new/c/0": b"0"},
        {"new/zarr.json": array([4], attributes={"b": 1}), "new/c/1": b"1"},
    )
    found = case.keys(case.merged(swap=swap))
    assert json.loads(found["new/zarr.json"])["attributes"] == {"a": 1, "b": 1}
    assert (found["new/c/0"], found["new/c/1"]) == (b"0", b"1")


def test_two_new_nodes_that_disagree_are_none_where_neither_is_wanted() -> None:
    """Attributes alone, that both would be united to, say nothing that zarr could open."""
    case = Case(
        {"new/zarr.json": array([4], attributes={"a": 1})},
        {"new/zarr.json": array([5], attributes={"b": 1})},
    )
    assert case.keys(case.merged("base")) == BASE
    found = json.loads(case.keys(case.merged("theirs"))["new/zarr.json"])
    assert (found["shape"], found["attributes"]) == ([5], {"a": 1, "b": 1})
    case = Case(
        {"new/zarr.json": array([4], attributes={"a": 1, "c": 1})},
        {"new/zarr.json": array([4], attributes={"b": 1, "c": 2})},
    )
    found = json.loads(case.keys(case.merged("base"))["new/zarr.json"])
    assert (found["shape"], found["attributes"]) == ([4], {"a": 1, "b": 1})


# -- layouts ----------------------------------------------------------------------------------


RESIZES: list[tuple[str, Edit, Edit]] = [
    ("a", {"a/zarr.json": array([10, 8])}, {"a/c/0/0": b"x", "a/c/3/3": None}),
    ("a", {"a/zarr.json": array([4, 8])}, {"a/c/1/3": b"x"}),
    (
        "a",
        {"a/zarr.json": array([3, 8]), **{f"a/c/{x}/{y}": None for x in (2, 3) for y in range(4)}},
        {"a/c/1/3": b"x", "a/c/2/0": None},
    ),
    ("a", {"a/zarr.json": array([10, 8]), "a/c/4/0": b"new"}, {"a/c/0/0": b"x"}),
    ("a", {"a/zarr.json": array([10, 8])}, {"a/extra": b"x"}),
    ("v2", {"v2/.zarray": array2([20])}, {"v2/2": b"x"}),
    ("v2", {"v2/.zarray": array2([5])}, {"v2/2": b"x"}),
    ("a", {"a/zarr.json": array([10**30, 8])}, {"a/c/0/0": b"x"}),  # beyond what a machine counts
]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("path", "ours", "theirs"), RESIZES)
def test_a_resize_is_united_with_chunks_inside_and_said(
    path: str, ours: Edit, theirs: Edit, swap: bool
) -> None:
    case = Case(ours, theirs)
    made = case.merged(swap=swap)
    found = case.keys(made)
    expected: dict[str, bytes | None] = {**BASE, **ours, **theirs}
    assert found == {key: data for key, data in expected.items() if data is not None}
    assert len(made.notes) == 1
    assert made.notes[0].startswith(f"{path!r} was resized from")


@pytest.mark.parametrize("swap", [False, True])
def test_a_chunk_outside_the_new_shape_is_a_conflict(swap: bool) -> None:
    outside = {f"a/c/{x}/{y}": None for x in (2, 3) for y in range(4)}
    case = Case({"a/zarr.json": array([4, 8]), **outside}, {"a/c/1/1": b"in", "a/c/7/1": b"out"})
    (conflict,) = case.conflicts(swap)
    assert (conflict.kind, conflict.path, conflict.coordinates) == ("chunk", "a", (7, 1))
    assert "outside the shape (4, 8)" in conflict.reason
    assert {conflict.ours, conflict.theirs} == {None, value(b"out")}
    gone = {key: data for key, data in BASE.items() if key not in outside}
    united = gone | {"a/zarr.json": array([4, 8]), "a/c/1/1": b"in"}
    for side in ("ours", "theirs"):
        kept = {"a/c/7/1": b"out"} if (side == "ours") == swap else {}
        assert case.keys(case.merged(side, swap=swap)) == united | kept  # type: ignore[arg-type]
    case = Case({"a/zarr.json": array([4, 8]), **outside}, {"a/c/3/1": b"out"})
    (conflict,) = case.conflicts(swap)
    assert conflict.coordinates == (3, 1)


@pytest.mark.parametrize("swap", [False, True])
def test_two_resizes_are_a_conflict_of_the_shape(swap: bool) -> None:
    case = Case(
        {"a/zarr.json": array([10, 8]), "a/c/4/0": b"4"},
        {"a/zarr.json": array([12, 8]), "a/c/5/0": b"5"},
    )
    (conflict,) = case.conflicts(swap)
    assert (conflict.kind, conflict.name) == ("document", "zarr.json")
    assert conflict.reason.endswith("in shape")
    large = "ours" if swap else "theirs"
    found = case.keys(case.merged(large, swap=swap))  # type: ignore[arg-type]
    assert found == BASE | {"a/zarr.json": array([12, 8]), "a/c/4/0": b"4", "a/c/5/0": b"5"}
    small = "theirs" if swap else "ours"
    made = case.merged(small, small, swap=swap)  # type: ignore[arg-type]
    assert case.keys(made) == BASE | {"a/zarr.json": array([10, 8]), "a/c/4/0": b"4"}
    assert [one.coordinates for one in made.resolved] == [None, (5, 0)]


LAYOUTS: list[tuple[str, Edit, Edit]] = [
    ("another type", {"a/zarr.json": array([8, 8], data_type="f8")}, {"a/c/0/0": b"x"}),
    ("other chunks", {"a/zarr.json": array([8, 8], [4, 4])}, {"a/c/0/0": b"x"}),
    ("more dimensions", {"a/zarr.json": array([8, 8, 8])}, {"a/c/0/0": b"x"}),
    ("resized, but irregular", {"a/zarr.json": array([9, 8], [0, 1])}, {"a/c/0/0": b"x"}),
    ("a group", {"a/zarr.json": GROUP}, {"a/c/0/0": b"x"}),
    ("no array", {"a/zarr.json": None}, {"a/c/0/0": b"x"}),
    ("a deletion", {"a/zarr.json": array([8, 8], data_type="f8")}, {"a/c/0/0": None}),
    (
        "made anew, twice",
        {"a/zarr.json": array([8, 8], data_type="f8"), "a/c/0/0": b"x"},
        {"a/zarr.json": array([8, 8], data_type="f4"), "a/c/1/1": b"x"},
    ),
    (
        "in both formats",
        {"a/zarr.json": array([8, 8], data_type="f8")},
        {"a/.zarray": array2([8, 8])},
    ),
    ("an array around keys", {"notes/zarr.json": array([8])}, {"notes/c/0": b"x"}),
]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"), [case[1:] for case in LAYOUTS], ids=[case[0] for case in LAYOUTS]
)
def test_a_layout_beside_a_write_is_a_conflict_of_the_whole_array(
    ours: Edit, theirs: Edit, swap: bool
) -> None:
    case = Case(ours | {"k": b"ours"}, theirs | {"l": b"theirs"})
    (conflict,) = case.conflicts(swap)
    assert conflict.kind == "layout"
    path = conflict.path
    assert path in ("a", "notes")
    both = {"k": b"ours", "l": b"theirs"}
    sides = {"ours": case.ours, "theirs": case.theirs, "base": case.base}
    if swap:
        sides = sides | {"ours": case.theirs, "theirs": case.ours}
    for side, mapping in sides.items():
        below = {k: bytes(v) for k, v in mapping.items() if k.startswith(f"{path}/")}
        rest = {k: v for k, v in BASE.items() if not k.startswith(f"{path}/")}
        found = case.keys(case.merged(side, swap=swap))  # type: ignore[arg-type]
        assert found == rest | below | both


MOVING: list[tuple[str, dict[str, bytes], Edit, Edit]] = [
    # a key that one side makes a chunk of a new array, and the other deletes
    ("a", {"a/c/1/0": b"x"}, {"a/zarr.json": b""}, {"a/c/1/0": None}),
    # a chunk of an array above that one side gives to a new array below
    ("0", {"zarr.json": b"", "0/1": b"x", "0/2": b"y"}, {"0/zarr.json": b""}, {"0/1": None}),
    # chunks that become plain keys
    ("a", {"a/zarr.json": b"", "a/c/0": b"x"}, {"a/zarr.json": None}, {"a/c/0": None}),
    # both make the same array of keys that are there, and one deletes some
    ("a", {"a/c/0": b"x"}, {"a/zarr.json": b"", "a/c/0": None}, {"a/zarr.json": b""}),
    # both take away the array below, whose chunks fall to the one above
    (
        "0",
        {"zarr.json": b"", "0/zarr.json": b"", "0/1": b"x"},
        {"0/zarr.json": None, "0/1": None},
        {"0/zarr.json": None},
    ),
]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("path", "base", "ours", "theirs"), MOVING)
def test_keys_that_change_places_are_not_lost(
    path: str, base: dict[str, bytes], ours: Edit, theirs: Edit, swap: bool
) -> None:
    base = base | {"k": b"k"}
    case = Case(ours | {"l": b"ours"}, theirs | {"m": b"theirs"}, base)
    (conflict,) = case.conflicts(swap)
    assert (conflict.kind, conflict.path) == ("layout", path)
    sides = {"ours": case.ours, "theirs": case.theirs, "base": case.base}
    if swap:
        sides = sides | {"ours": case.theirs, "theirs": case.ours}
    for side, mapping in sides.items():
        found = case.keys(case.merged(side, swap=swap))  # type: ignore[arg-type]
        below = {k: bytes(v) for k, v in mapping.items() if k.startswith(f"{path}/")}
        rest = {k: v for k, v in base.items() if not k.startswith(f"{path}/")}
        assert found == rest | below | {"l": b"ours", "m": b"theirs"}


@pytest.mark.parametrize("swap", [False, True])
def test_keys_that_become_chunks_of_a_new_array_stay(swap: bool) -> None:
    base = {"zarr.json": b"", "foo": b"", "a/c/0": b"x", "a/c/1": b"y"}
    case = Case({"a/zarr.json": b""}, {"foo": None}, base)
    found = case.keys(case.merged(swap=swap))
    assert found == {"zarr.json": b"", "a/zarr.json": b"", "a/c/0": b"x", "a/c/1": b"y"}


@pytest.mark.parametrize("swap", [False, True])
def test_what_one_side_says_of_the_dataset_is_kept(swap: bool) -> None:
    case = Case({"k": b"k"}, {"l": b"l"})
    view = case.ours.view
    header = Header(view.root.header.function, extra={"said": "ours"})
    ours = TreeView(view.reader, Root(header, view.root.node))
    sides = (ours, case.theirs.view)
    made = merge(case.base.view, *(sides[::-1] if swap else sides))
    assert made.root.header.extra == {"said": "ours"}


# -- nodes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [False, True])
def test_a_deleted_node_that_was_changed_is_one_conflict(swap: bool) -> None:
    case = Case({"g/": None, "k": b"k"}, {"g/h/c/0": b"x", "g/new/zarr.json": GROUP, "g/x": b"1"})
    (conflict,) = case.conflicts(swap)
    assert (conflict.kind, conflict.path) == ("node", "g")
    changed = {"g/h/c/0": b"x", "g/new/zarr.json": GROUP, "g/x": b"1", "k": b"k"}
    gone = {key: data for key, data in BASE.items() if not key.startswith("g/")} | {"k": b"k"}
    first, second = ("theirs", "ours") if swap else ("ours", "theirs")
    assert case.keys(case.merged(first, swap=swap)) == gone  # type: ignore[arg-type]
    assert case.keys(case.merged(second, swap=swap)) == BASE | changed  # type: ignore[arg-type]
    assert case.keys(case.merged("base", swap=swap)) == BASE | {"k": b"k"}


@pytest.mark.parametrize("swap", [False, True])
def test_a_folder_without_documents_is_not_a_thing_that_can_be_deleted(swap: bool) -> None:
    case = Case({"notes/readme": None}, {"notes/other": b"x"})
    found = case.keys(case.merged(swap=swap))
    assert found == {k: v for k, v in BASE.items() if k != "notes/readme"} | {"notes/other": b"x"}


def test_everything_was_deleted() -> None:
    case = Case({"": None}, {"k": b"x"})
    (conflict,) = case.conflicts()
    assert (conflict.kind, conflict.path) == ("node", "")
    assert case.keys(case.merged("ours")) == {}
    assert case.keys(case.merged("theirs")) == BASE | {"k": b"x"}


def test_the_resolver_is_asked_about_all_and_nothing_else() -> None:
    case = Case(
        {"a/c/0/0": b"1", "a/c/1/1": b"1", "k": b"1", "g/": None},
        {"a/c/0/0": b"2", "a/c/1/1": b"1", "k": b"2", "g/h/c/0": b"2"},
    )
    asked = [conflict.key for conflict in case.conflicts()]
    assert asked == ["g", "k", "a/c/0/0"]
    made = case.merged("theirs", "theirs", "theirs")
    assert [conflict.key for conflict in made.resolved] == asked
    assert case.keys(made) == BASE | {"a/c/0/0": b"2", "a/c/1/1": b"1", "k": b"2", "g/h/c/0": b"2"}


def test_datasets_of_two_hashes_are_not_merged() -> None:
    blocks = CountingBlocks()
    views = []
    for n, name in enumerate(("blake3", "blake3", "sha2-256")):
        mapping = CASMapping(blocks, hash=name)
        mapping[f"k{n}"] = b"x"
        mapping.flush()
        views.append(mapping.view)
    with pytest.raises(InvalidArgumentError, match="sha2-256"):
        merge(*views)


# -- what it costs ----------------------------------------------------------------------------


def test_an_array_that_one_side_added_or_deleted_is_not_opened() -> None:
    new: Edit = {"new/zarr.json": array([200, 200])}
    new |= {f"new/c/{x}/{y}": b"%d" % x for x in range(60) for y in range(60)}
    old = BASE | {key.replace("new", "old"): data for key, data in new.items() if data}
    case = Case(new | {"old/": None}, {"a/c/0/0": b"x"}, old)
    case.blocks.reads.clear()
    made = case.merged()
    assert len(case.blocks.reads) == 0  # a small tree stands in the root
    found = case.keys(made)
    assert found == BASE | {k: v for k, v in new.items() if v} | {"a/c/0/0": b"x"}
