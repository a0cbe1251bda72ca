"""Differences: all of them, none else, and nothing that is equal is opened."""

from __future__ import annotations

import numpy as np
import pytest
from building import CountingBlocks

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import shards
from cas_zarr.tree.apply import apply
from cas_zarr.tree.diff import NodeChange, diff
from cas_zarr.tree.merge import changes_of
from cas_zarr.tree.node import Value

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
