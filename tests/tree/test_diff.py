"""Differences: all of them, none else, and nothing that is equal is opened."""

from __future__ import annotations

import numpy as np
import pytest
from building import CountingBlocks, fake_cids

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import descent, page, shards, table, update
from cas_zarr.tree.apply import apply
from cas_zarr.tree.diff import NodeChange, diff
from cas_zarr.tree.graft import graft
from cas_zarr.tree.merge import changes_of
from cas_zarr.tree.morton import decode
from cas_zarr.tree.node import Value
from cas_zarr.tree.view import TreeView

ONE = b"1"


def mapping_of(values: dict[str, bytes], blocks: MemoryBlocks | None = None) -> CASMapping:
    mapping = CASMapping(CountingBlocks() if blocks is None else blocks)
    mapping.update(values)
    return mapping


def differences(a: CASMapping, b: CASMapping, path: str = "") -> dict[str, NodeChange]:
    found = list(diff(a.view, b.view, path))
    assert len({change.path for change in found}) == len(found)
    return {change.path: change for change in found}


def grid(count: int, name: str = "a") -> dict[str, bytes]:
    keys = {f"{name}/c/{x}/{y}": ONE for x in range(count) for y in range(count)}
    return {f"{name}/zarr.json": b"{}", **keys}


def test_equal_versions_do_not_differ() -> None:
    values = grid(3) | {"k": b"k", "g/.zgroup": b"{}"}
    assert differences(mapping_of(values), mapping_of(dict(reversed(values.items())))) == {}
    assert differences(CASMapping(MemoryBlocks()), CASMapping(MemoryBlocks())) == {}


def test_every_kind_of_change_is_told() -> None:
    a = mapping_of(
        grid(3)
        | {"zarr.json": b"{}", "k": b"old", "gone/zarr.json": b"{}", "gone/c/0": ONE, "d/x": b"1"}
    )
    b = mapping_of(
        grid(3)
        | {"zarr.json": b"{1}", "k": b"new", "l": b"l", "new/.zarray": b"{}", "new/0.0": ONE}
        | {"a/c/1/1": b"other", "a/c/0/7": b"more", "d/x": b"1"}
    )
    del b["a/c/2/2"]
    found = differences(a, b)
    assert list(found) == ["", "a", "gone", "new"]
    assert {path: change.status for path, change in found.items()} == {
        "": "changed",
        "a": "changed",
        "gone": "removed",
        "new": "added",
    }
    assert found[""].docs == {"zarr.json": (b"{}", b"{1}")}
    assert set(found[""].keys) == {"k", "l"}
    old, new = found[""].keys["k"]
    assert isinstance(old, Value)
    assert isinstance(new, Value)
    assert (old.cid, new.cid) == (a.cid_of("k"), b.cid_of("k"))
    assert found[""].keys["l"][0] is None
    (chunks,) = found["a"].chunks
    assert chunks.form == "c/2"
    assert chunks.coordinates.tolist() == [[0, 7], [1, 1], [2, 2]]
    assert chunks.added.tolist() == [True, False, False]
    assert chunks.removed.tolist() == [False, False, True]
    assert chunks.sizes_before.tolist() == [0, 1, 1]
    assert chunks.sizes_after.tolist() == [4, 5, 0]
    assert CidBytes(chunks.after[1].tobytes()) == b.cid_of("a/c/1/1")
    assert CidBytes(chunks.before[1].tobytes()) == a.cid_of("a/c/1/1")
    assert found["gone"].docs == {"zarr.json": (b"{}", None)}
    assert found["gone"].chunks[0].removed.all()
    assert found["new"].chunks[0].added.all()
    assert differences(a, b, "a").keys() == {"a"}
    assert differences(a, b, "nothing") == {}


def test_a_change_of_one_chunk_opens_one_path_on_each_side() -> None:
    blocks = CountingBlocks()
    values = {f"a/c/{x}/{y}": b"%d,%d" % (x, y) for x in range(100) for y in range(100)}
    first = mapping_of({"a/zarr.json": b"{}"} | values | grid(30, "b"), blocks)
    root = first.flush()
    first["a/c/50/50"] = b"changed"
    changed = first.flush()
    a, b = CASMapping(blocks, root), CASMapping(blocks, changed)
    pages = len([cid for cid in blocks.list() if cid[1] == 0x71])
    assert pages > 20
    blocks.reads.clear()
    found = differences(a, b)
    assert found["a"].chunks[0].coordinates.tolist() == [[50, 50]]
    assert found.keys() == {"a"}
    assert len(blocks.reads) <= 4


def test_equal_versions_open_nothing() -> None:
    blocks = CountingBlocks()
    root = mapping_of(grid(60), blocks).flush()
    a, b = CASMapping(blocks, root), CASMapping(blocks, root)
    blocks.reads.clear()
    assert differences(a, b) == {}
    assert blocks.reads == []


def test_in_a_large_folder_only_the_shards_that_differ_are_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "SHARD_LIMIT", 4000)
    blocks = CountingBlocks()
    mapping = mapping_of({f"n{n}/zarr.json": b"%d" % n for n in range(800)}, blocks)
    root = mapping.flush()
    mapping["n7/zarr.json"] = b"x"
    del mapping["n8/zarr.json"]
    mapping["new"] = b"x"
    a, b = CASMapping(blocks, root), CASMapping(blocks, mapping.flush())
    assert len(a.view.root.node.shards) >= 8
    blocks.reads.clear()
    found = differences(a, b)
    assert {path: change.status for path, change in found.items()} == {
        "": "changed",
        "n7": "changed",
        "n8": "removed",
    }
    assert len(blocks.reads) <= 6


def test_trees_of_other_heights_and_hashes_are_compared() -> None:
    small, large = mapping_of(grid(3)), mapping_of(grid(60))
    for a, b in ((small, large), (large, small)):
        (chunks,) = differences(a, b)["a"].chunks
        assert len(chunks) == 3600 - 9
        assert chunks.added.all() == (a is small)
    other = CASMapping(MemoryBlocks(), hash="sha2-256")
    other.update(grid(3))
    (chunks,) = differences(small, other)["a"].chunks
    assert len(chunks) == 9
    assert not chunks.added.any()


def test_a_wide_tree_is_compared_with_a_narrow_one() -> None:
    a = mapping_of({"a/zarr.json": b"{}", "a/c/1/2/3": ONE, "a/c/9/9/9": ONE})
    b = mapping_of({"a/zarr.json": b"{}", "a/c/1/2/3": ONE, "a/c/0/0/4000000": ONE})
    for one, two in ((a, b), (b, a)):
        (chunks,) = differences(one, two)["a"].chunks
        assert chunks.coordinates.tolist() == [[0, 0, 4_000_000], [9, 9, 9]]


def test_scalars_and_moves_between_forms() -> None:
    a = mapping_of({"a/zarr.json": b"{}", "a/c": ONE, "a/0": ONE})
    b = mapping_of({"a/zarr.json": b"{}", "a/c": b"2", "a/c/0": ONE})
    found = differences(a, b)["a"].chunks
    assert [chunks.form for chunks in found] == [".1", "c", "c/1"]
    assert [chunks.coordinates.shape for chunks in found] == [(1, 1), (1, 0), (1, 1)]


CASES = [
    grid(4),
    grid(4) | {"a/c/2/2": b"x"},
    grid(4) | {"a/zarr.json": b"{2}", "a/c/foo": b"f"},
    {key: value for key, value in grid(4).items() if "zarr" not in key},  # plain keys
    grid(4) | {"a/c/zarr.json": b"{}"},  # another owner between
    grid(4) | {"a/c/1/zarr.json": b"{}"},
    grid(25) | {"b/.zarray": b"\xff" * 70_000, "b/1.2": b"y" * 3},
    {},
    {"a": b"1", "a/b": b"2", "a/b/c": b"3"},
    {"zarr.json": b"{}", "c": b"1", "c/0": b"2", "0": b"3", "1/1": b"4", "c.5": b"5"},
]


@pytest.mark.parametrize("first", range(len(CASES)))
@pytest.mark.parametrize("second", range(len(CASES)))
def test_differences_lead_from_one_version_to_the_other(first: int, second: int) -> None:
    blocks = MemoryBlocks()
    a, b = mapping_of(CASES[first], blocks), mapping_of(CASES[second], blocks)
    changes = changes_of(b.view, list(diff(a.view, b.view)))
    assert apply(a.view, changes).cid() == b.flush()
    assert np.all([key in CASES[first] or key in CASES[second] for key in changes.values])


# -- opened only when asked for ---------------------------------------------------------------


def big(blocks: CountingBlocks, *names: str, side: int = 40) -> CASMapping:
    mapping = CASMapping(blocks)
    mapping["zarr.json"] = b"{}"
    cells = np.indices((side, side, side)).reshape(3, -1).T
    for name in names:
        mapping[f"{name}/zarr.json"] = b"{}"
        mapping.set_links(name, cells, fake_cids(len(cells)), np.full(len(cells), 10))
    return mapping


def test_of_a_million_chunks_one_that_changed_costs_two_paths() -> None:
    blocks = CountingBlocks()
    mapping = big(blocks, "a", side=100)
    root = mapping.flush()
    mapping["a/c/5/6/7"] = b"changed"
    changed = mapping.flush()
    blocks.reads.clear()
    a, b = CASMapping(blocks, root), CASMapping(blocks, changed)
    (change,) = diff(a.view, b.view)
    (chunks,) = change.chunks
    assert chunks.coordinates.tolist() == [[5, 6, 7]]
    assert len(blocks.reads) <= 8  # the two roots among them
    assert change.before == (1_000_000, 10_000_000)
    assert change.after == (1_000_000, 9_999_997)


def test_an_array_that_came_or_went_is_opened_only_for_its_chunks() -> None:
    blocks = CountingBlocks()
    empty = CASMapping(blocks, CASMapping(blocks).flush())
    root = big(blocks, "a").flush()
    for status in ("added", "removed"):
        full = CASMapping(blocks, root)  # which remembers no page
        a, b = (empty, full) if status == "added" else (full, empty)
        blocks.reads.clear()
        change = differences(a, b)["a"]
        assert (change.status, change.forms) == (status, ("c/3",))
        assert {change.before, change.after} == {(0, 0), (64_000, 640_000)}
        assert blocks.reads == []
        (chunks,) = change.chunks
        assert len(chunks) == 64_000
        assert len(blocks.reads) > 50


def test_what_moved_is_one_change_and_is_not_opened() -> None:
    blocks = CountingBlocks()
    mapping = big(blocks, "g/a", "b")
    mapping["g/zarr.json"] = b"{}"
    mapping["g/sub/.zgroup"] = b"{}"
    before = CASMapping(blocks, mapping.flush())
    view = before.view
    root = graft(view, "moved/g", view.node("g"))
    root = graft(TreeView(view.reader, root), "g", None)
    root = graft(TreeView(view.reader, root), "copy", view.node("b"))
    after = TreeView(view.reader, root)
    blocks.reads.clear()
    found = list(diff(view, after, moves=True))
    assert [(change.path, change.status, change.source) for change in found] == [
        ("copy", "added", None),
        ("moved", "added", None),
        ("moved/g", "moved", "g"),
    ]
    assert found[2].chunks == ()
    assert found[2].docs == {}
    assert blocks.reads == []
    assert {change.status for change in diff(view, after)} == {"added", "removed"}


def test_what_moved_out_of_something_that_went_is_found() -> None:
    values = {f"old/{name}/zarr.json": name.encode() for name in ("x", "y", "z")}
    a = mapping_of(values | {"old/zarr.json": b"{}", "same/.zgroup": b"1"})
    b = mapping_of({"new/x/zarr.json": b"x", "y/zarr.json": b"y", "also/y/zarr.json": b"y"})
    found = list(diff(a.view, b.view, moves=True))
    assert [(change.path, change.status, change.source) for change in found] == [
        ("also", "added", None),
        ("also/y", "added", None),
        ("new", "added", None),
        ("new/x", "moved", "old/x"),
        ("old", "removed", None),
        ("old/z", "removed", None),
        ("same", "removed", None),
        ("y", "moved", "old/y"),
    ]


def test_a_renamed_folder_of_many_nodes_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_LIMIT", 4000)
    blocks = CountingBlocks()
    mapping = mapping_of({f"many/n{n}/zarr.json": b"%d" % n for n in range(500)}, blocks)
    a = CASMapping(blocks, mapping.flush())
    node = a.view.node("many")
    assert node is not None
    assert node.shards
    renamed = graft(TreeView(a.view.reader, graft(a.view, "many", None)), "lot", node)
    blocks.reads.clear()
    (change,) = diff(a.view, TreeView(a.view.reader, renamed), moves=True)
    assert (change.path, change.status, change.source) == ("lot", "moved", "many")
    assert blocks.reads == []


# -- two of anything --------------------------------------------------------------------------


def test_two_arrays_of_one_dataset_are_compared() -> None:
    other = {key.replace("a/", "g/b/"): data for key, data in grid(5).items()}
    m = mapping_of(grid(5) | other | {"g/b/c/1/2": b"x", "g/b/more": b"m", "g/b/sub/.zgroup": b""})
    found = list(diff(m.view, m.view, "a", other="g/b"))
    assert [change.path for change in found] == ["a", "a/sub"]
    assert [change.status for change in found] == ["changed", "added"]
    assert found[0].chunks[0].coordinates.tolist() == [[1, 2]]
    assert found[0].keys.keys() == {"more"}
    assert list(diff(m.view, m.view, "a", other="a")) == []
    (added, *_) = diff(m.view, m.view, "nowhere", other="a")
    assert (added.path, added.status) == ("nowhere", "added")


def test_versions_in_two_places_are_compared() -> None:
    a = mapping_of(grid(60))
    b = mapping_of(grid(60) | {"a/c/3/4": b"other", "new/c/1": b"x", "new/zarr.json": b"{}"})
    a.flush(), b.flush()
    one, two = CASMapping(a.blocks, a.root), CASMapping(b.blocks, b.root)
    found = differences(one, two)
    assert found["a"].chunks[0].coordinates.tolist() == [[3, 4]]
    assert found["new"].chunks[0].added.all()


def test_pages_of_another_hash_over_the_same_values_are_no_difference() -> None:
    blocks = MemoryBlocks()
    a = mapping_of(grid(40), blocks)
    b = CASMapping(blocks, hash="sha2-256")
    b["a/zarr.json"] = b"{}"
    tree = a.view.tree("a", "c/2")
    assert tree is not None
    rows = tree.table()
    b.set_links("a", decode(rows.codes, 2), rows.cids, rows.sizes)
    assert b.view.node("a") is not None
    assert differences(a, b) == {}


@pytest.mark.parametrize("pairs", [(3, 60), (60, 3), (60, 61)])
@pytest.mark.parametrize("scattered", [False, True])
def test_large_differences_come_in_batches_that_cut_no_page(
    monkeypatch: pytest.MonkeyPatch, pairs: tuple[int, int], scattered: bool
) -> None:
    monkeypatch.setattr(descent, "_BATCH", 2)
    for module in (page, table, update):
        monkeypatch.setattr(module, "MAX_ENTRIES", 6)
    sides = [
        {key: b"%d" % (n * scattered) for n, key in enumerate(sorted(grid(count)))}
        for count in pairs
    ]
    a, b = (mapping_of(side) for side in sides)
    found = differences(a, b)
    (chunks,) = found["a"].chunks
    expected = {
        key for key in sides[0].keys() | sides[1].keys() if sides[0].get(key) != sides[1].get(key)
    } - {"a/zarr.json"}
    assert {f"a/c/{x}/{y}" for x, y in chunks.coordinates.tolist()} == expected
    assert len(chunks) == len(expected)
