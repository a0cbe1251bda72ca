"""Uniting two writers' changes: what conflicts does, and nothing else."""

from __future__ import annotations

import itertools

import pytest
from building import CountingBlocks

from cas_zarr.errors import ConflictError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import merge as module
from cas_zarr.tree.merge import merge
from cas_zarr.tree.node import Root

Edit = dict[str, bytes | None]

ARRAY = b'{"node_type":"array","shape":[8]}'
WITH_ATTRIBUTES = b'{"node_type":"array","shape":[8],"attributes":{"units":"K"}}'
LARGER = b'{"node_type":"array","shape":[9]}'

BASE: dict[str, bytes] = {
    "zarr.json": b'{"node_type":"group"}',
    "a/zarr.json": ARRAY,
    **{f"a/c/{x}/{y}": b"%d%d" % (x, y) for x in range(4) for y in range(4)},
    "b/.zarray": b'{"shape":[4]}',
    "b/.zattrs": b"{}",
    "b/0": b"0",
    "g/.zgroup": b"{}",
    "g/h/zarr.json": ARRAY,
    "g/h/c/0": b"0",
    "notes/readme": b"read me",
    "notes/more": b"more",
}


def edited(blocks: CountingBlocks, root: bytes, edit: Edit) -> CASMapping:
    mapping = CASMapping(blocks, root)
    for key, value in edit.items():
        if key.endswith("/"):
            mapping.discard_prefix(key)
        elif value is None:
            mapping.discard(key)
        else:
            mapping[key] = value
    return mapping


def united(ours: Edit, theirs: Edit) -> tuple[Root, Root]:
    """Return what both edits make together, and what they make one after the other."""
    blocks = CountingBlocks()
    base = CASMapping(blocks)
    base.update(BASE)
    root = base.flush()
    a, b = edited(blocks, root, ours), edited(blocks, root, theirs)
    both = merge(base.view, a.view, b.view).root
    return both, edited(blocks, b.flush(), ours).view.root


DISJOINT: list[Edit] = [
    {"a/c/0/0": b"new"},
    {"a/c/1/1": None, "a/c/7/7": b"far"},
    {"a/c/2/2": b"same"},
    {"new/zarr.json": ARRAY, "new/c/0": b"x"},
    {"g/h/c/5": b"x"},
    {"notes/readme": b"changed"},
    {"notes/more": None},
    {"b/0": b"1"},
    {"b/.zattrs": b'{"a":1}'},
    {"k": b"plain"},
    {"zarr.json": b'{"node_type":"group","attributes":{"a":1}}'},
    {},
]


@pytest.mark.parametrize(("one", "two"), list(itertools.permutations(range(len(DISJOINT)), 2)))
def test_what_is_disjoint_is_united_as_if_done_in_turn(one: int, two: int) -> None:
    both, in_turn = united(DISJOINT[one], DISJOINT[two])
    assert both.cid() == in_turn.cid()


IDENTICAL: list[Edit] = [
    {"a/c/0/0": b"new", "a/c/3/3": None},
    {"a/zarr.json": LARGER},
    {"a/": None},
    {"k": b"plain", "notes/readme": None},
    {"g/": None, "zarr.json": b"{2}"},
    {"new/.zarray": b"{}", "new/0.0": b"1"},
]


@pytest.mark.parametrize("edit", IDENTICAL)
def test_identical_changes_never_conflict(edit: Edit) -> None:
    both, in_turn = united(edit, edit)
    assert both.cid() == in_turn.cid()
    more: Edit = edit | {"zz": b"more"}
    for one, two in ((edit, more), (more, edit)):
        both, in_turn = united(one, two)
        assert both.cid() == united(more, {})[0].cid()


ATTRIBUTES: list[tuple[Edit, Edit]] = [
    ({"a/zarr.json": WITH_ATTRIBUTES}, {"a/c/0/0": b"x"}),
    ({"b/.zattrs": b'{"a":1}'}, {"b/0": b"x"}),
    ({"b/.zmetadata": b"{}"}, {"b/0": b"x"}),
    ({"zarr.json": b'{"consolidated_metadata":{},"node_type":"group"}'}, {"k": b"x"}),
    ({"a/zarr.json": b' { "shape" : [8], "node_type":"array"}'}, {"a/c/0/0": b"x"}),
]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), ATTRIBUTES)
def test_attributes_are_no_layout(ours: Edit, theirs: Edit, swap: bool) -> None:
    if swap:
        ours, theirs = theirs, ours
    both, in_turn = united(ours, theirs)
    assert both.cid() == in_turn.cid()


CONFLICTS: list[tuple[str, Edit, Edit]] = [
    (r"chunk \(0, 0\) of 'a' was set twice", {"a/c/0/0": b"x"}, {"a/c/0/0": b"y"}),
    (r"chunk \(0, 0\) of 'a' was set twice", {"a/c/0/0": None}, {"a/c/0/0": b"y"}),
    (r"chunk \(9, 9\) of 'a' was set twice", {"a/c/9/9": b"x"}, {"a/c/9/9": b"y"}),
    ("key 'readme' of 'notes' was set twice", {"notes/readme": b"x"}, {"notes/readme": b"y"}),
    ("key 'k' of the root was set twice", {"k": b"x"}, {"k": b"y"}),
    ("key 'readme' of 'notes' was set", {"notes/readme": None}, {"notes/readme": b"y"}),
    (
        "document 'zarr.json' of 'a' was set twice, in shape",
        {"a/zarr.json": LARGER},
        {"a/zarr.json": ARRAY.replace(b"8", b"7")},
    ),
    ("document '.zattrs' of 'b'", {"b/.zattrs": b"1"}, {"b/.zattrs": b"2"}),
    ("node 'a' was changed where 'a' was deleted", {"a/": None}, {"a/c/0/0": b"x"}),
    ("node 'g/h' was changed where 'g' was deleted", {"g/": None}, {"g/h/c/0": b"x"}),
    ("node 'g/new' was changed where 'g' was deleted", {"g/": None}, {"g/new/.zarray": b"x"}),
    ("layout of 'a'", {"a/zarr.json": LARGER}, {"a/c/0/0": b"x"}),
    ("layout of 'a'", {"a/zarr.json": LARGER}, {"a/other": b"x"}),
    ("layout of 'a'", {"a/zarr.json": LARGER}, {"a/c/named": b"x"}),
    ("layout of 'a'", {"a/zarr.json": LARGER}, {"a/deep/er/named": b"x"}),
    ("layout of 'b'", {"b/.zarray": b"{}"}, {"b/0": b"x"}),
    ("layout of 'b'", {"b/.zarray": b"no json"}, {"b/0": b"x"}),
    ("layout of 'b'", {"b/zarr.json": ARRAY}, {"b/0": b"x"}),
    ("'a'", {"a/zarr.json": None}, {"a/c/0/0": b"x"}),
]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("message", "ours", "theirs"), CONFLICTS)
def test_what_overlaps_conflicts(message: str, ours: Edit, theirs: Edit, swap: bool) -> None:
    if swap:
        ours, theirs = theirs, ours
    with pytest.raises(ConflictError, match=message):
        united(ours, theirs)


def test_a_long_list_of_conflicts_is_cut() -> None:
    ours: Edit = {f"a/c/{x}/{y}": b"x" for x in range(4) for y in range(4)}
    with pytest.raises(ConflictError, match="and 11 more; open the branch anew"):
        united(ours, dict.fromkeys(ours, b"y"))


NODE = ("zarr.json", "c/0")


def test_many_nodes_that_came_and_went_are_not_compared_each_with_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_and_above, asked = module._at_and_above, []

    def counted(path: str) -> list[str]:
        asked.append(path)
        return at_and_above(path)

    monkeypatch.setattr(module, "_at_and_above", counted)
    blocks = CountingBlocks()
    base = CASMapping(blocks)
    base.update({f"a{n}/{key}": b"{}" for n in range(200) for key in NODE})
    root = base.flush()
    gone = edited(blocks, root, {f"a{n}/{key}": None for n in range(100) for key in NODE})
    more = {f"a{n}/c/1": b"more" for n in range(100, 200)}
    both = merge(base.view, gone.view, edited(blocks, root, more).view).root
    assert both.cid() == edited(blocks, gone.flush(), more).view.root.cid()
    assert len(asked) < 2000


def test_merging_with_what_did_not_change_is_the_other_root() -> None:
    blocks = CountingBlocks()
    base = CASMapping(blocks)
    base.update(BASE)
    root = base.flush()
    changed = edited(blocks, root, {"k": b"x"})
    assert merge(base.view, changed.view, base.view).root is changed.view.root
    assert merge(base.view, base.view, changed.view).root is changed.view.root


def test_large_values_keep_their_blocks() -> None:
    large = bytes(range(256)) * 5000
    both, in_turn = united({"a/c/0/0": large, "k": large}, {"b/0": large})
    assert both.cid() == in_turn.cid()
