"""Large folders: what is split where, and that a change leaves the rest alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from building import CountingBlocks
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_zarr.cid import BLAKE3, DAG_JSON, RAW, CidBytes, cid_of, format_cid
from cas_zarr.errors import FormatError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import shards
from cas_zarr.tree.node import EMPTY, Header, Node, Root, ShardRef, Value
from cas_zarr.tree.shards import TreeReader, edit_entries, get_child, get_key, name_bits
from cas_zarr.tree.view import TreeView

VALUE = Value(cid_of(RAW, BLAKE3, b""), 0)
Entries = dict[str, Value | Node]


@contextmanager
def shards_of(weight: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_LIMIT", weight)
        yield


def edited(reader: TreeReader, node: Node, edits: dict[str, Value | Node | None]) -> Node:
    """Set entries, or remove both the key and the node of a name."""
    keys = {name: entry if isinstance(entry, Value) else None for name, entry in edits.items()}
    nodes = {name: entry if isinstance(entry, Node) else None for name, entry in edits.items()}
    return edit_entries(reader, BLAKE3, node, keys, nodes)


def expected_shards(entries: Entries, limit: int, bits: str = "") -> list[tuple[str, int]]:
    """Return bits and weight of the shards, by the words of the rule."""
    below = {name: entry for name, entry in entries.items() if name_bits(name).startswith(bits)}
    weight = sum(
        len(f"{json.dumps(n, ensure_ascii=False)}:{e.text()}".encode()) + 1
        for n, e in below.items()
    )
    if not below:
        return []
    if weight <= limit or len(below) == 1:
        return [(bits, weight)]
    return expected_shards(below, limit, bits + "0") + expected_shards(below, limit, bits + "1")


def leaf_refs(reader: TreeReader, refs: tuple[ShardRef, ...]) -> list[ShardRef]:
    out = []
    for ref in refs:
        out += leaf_refs(reader, reader.shard(ref).shards) if ref.level else [ref]
    return out


names = st.one_of(st.integers(0, 60).map(str), st.sampled_from(["a", "é", "longer name", "c"]))
small = st.builds(lambda data: Value(cid_of(RAW, BLAKE3, data), 5), st.binary(max_size=2))
node = st.builds(lambda n: Node({"zarr.json": b"x" * n}), st.sampled_from([0, 1, 30, 200, 900]))
edits = st.dictionaries(names, st.one_of(small, node, st.none()), max_size=25)


@given(st.lists(edits, min_size=1, max_size=6), st.sampled_from([400, 700, 2000]))
@settings(max_examples=120)
def test_a_changed_folder_is_one_made_afresh(
    history: list[dict[str, Value | Node | None]], limit: int
) -> None:
    with shards_of(limit):
        reader, folder = TreeReader(CountingBlocks()), EMPTY
        model: Entries = {}
        for step in history:
            folder = edited(reader, folder, step)
            model = {n: e for n, e in (model | step).items() if e is not None}
            other = TreeReader(CountingBlocks())
            fresh = edited(other, EMPTY, dict(sorted(model.items(), reverse=True)))
            assert folder.text() == fresh.text()
            assert set(other.blocks.list()) <= set(reader.blocks.list())
            expected = expected_shards(model, limit)
            if sum(weight for _, weight in expected) <= limit:
                assert not folder.shards
            else:
                refs = leaf_refs(reader, folder.shards)
                assert [(ref.bits, ref.size) for ref in refs] == expected
            cold = TreeReader(reader.blocks)
            entries = list(shards.iter_entries(cold, folder))
            assert {name: e.text() for name, e in entries} == {
                n: e.text() for n, e in model.items()
            }
            assert len(entries) == len(model)
            for name in [*model, "not there"]:
                entry = model.get(name)
                found = get_child(cold, folder, name), get_key(cold, folder, name)
                if isinstance(entry, Node):
                    assert found[0] is not None
                    assert (found[0].text(), found[1]) == (entry.text(), None)
                else:
                    assert found == (None, entry)
            assert len(folder.text()) <= 3 * max(limit, 700) + 200


def test_a_key_and_a_node_of_one_name_stay_together() -> None:
    with shards_of(400):
        reader = TreeReader(CountingBlocks())
        child = Node({"zarr.json": b"y" * 500})
        folder = edit_entries(reader, BLAKE3, EMPTY, {"a": VALUE, "b": VALUE}, {"a": child})
        assert len(leaf_refs(reader, folder.shards)) == 2
        assert get_key(reader, folder, "a") == VALUE
        found = get_child(reader, folder, "a")
        assert found is not None
        assert found.text() == child.text()
        alone = edit_entries(reader, BLAKE3, folder, {"b": None}, {})
        assert (
            alone.text() == edit_entries(reader, BLAKE3, EMPTY, {"a": VALUE}, {"a": child}).text()
        )


@pytest.fixture(scope="module")
def crowd() -> tuple[CountingBlocks, CidBytes]:
    """A group of 100 000 arrays."""
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping["g/zarr.json"] = b"{}"
    for n in range(100_000):
        mapping[f"g/n{n}/zarr.json"] = b'{"n":%d}' % n
    return blocks, mapping.flush()


def test_a_group_of_100_000_opens_with_one_block(crowd: tuple[CountingBlocks, CidBytes]) -> None:
    blocks, root = crowd
    blocks.reads.clear()
    mapping = CASMapping(blocks, root)
    assert mapping["g/zarr.json"] == b"{}"
    assert blocks.reads == [root]
    assert blocks.size(root) < 132_000
    assert max(blocks.size(cid) for cid in blocks.list()) < 132_000
    assert mapping["g/n77777/zarr.json"] == b'{"n":77777}'
    assert "g/n100000/zarr.json" not in mapping
    assert len(blocks.reads) <= 3
    blocks.reads.clear()
    assert mapping["g/n77777/zarr.json"] == b'{"n":77777}'
    assert blocks.reads == []


def test_a_group_of_100_000_is_listed(crowd: tuple[CountingBlocks, CidBytes]) -> None:
    blocks, root = crowd
    mapping = CASMapping(blocks, root)
    names = list(mapping.list_folder("g"))
    assert names == sorted(["zarr.json", *(f"n{n}" for n in range(100_000))])


def test_one_changed_child_of_100_000_rewrites_one_shard(
    crowd: tuple[CountingBlocks, CidBytes],
) -> None:
    blocks, root = crowd
    before = set(blocks.list())
    mapping = CASMapping(blocks, root)
    blocks.reads.clear()
    mapping["g/n5/zarr.json"] = b"changed"
    changed = mapping.flush()
    new = set(blocks.list()) - before
    assert len(new) == 2  # the shard and the root
    assert len(blocks.reads) <= 2
    mapping["g/n5/zarr.json"] = b'{"n":5}'
    assert mapping.flush() == root
    assert CASMapping(blocks, changed)["g/n5/zarr.json"] == b"changed"
    for cid in new:
        blocks.delete(cid)


def test_a_name_with_a_surrogate_is_not_there(crowd: tuple[CountingBlocks, CidBytes]) -> None:
    mapping = CASMapping(*crowd)
    assert mapping.get("g/\ud800/zarr.json") is None
    assert mapping.get("g/\ud800") is None


# -- hostile shards -------------------------------------------------------------------------


def entry_text(name: str) -> str:
    return f"{json.dumps(name)}:{VALUE.text()}"


HEAD = '"header":{"type":"cas-zarr/shard","version":1}'
NAMES = sorted(f"k{n}" for n in range(8))
BITS = {bit: [name for name in NAMES if name_bits(name)[0] == bit] for bit in "01"}


def shard_text(names: list[str]) -> str:
    return "{" + HEAD + ',"keys":{' + ",".join(map(entry_text, sorted(names))) + "}}"


def weight_of(names: list[str]) -> int:
    return sum(len(entry_text(name)) + 1 for name in names)


def view_of(text: str, weight: int, bits: str = "0", level: int = 0) -> TreeView:
    blocks = CountingBlocks()
    cid = cid_of(DAG_JSON, BLAKE3, text.encode())
    blocks.put(cid, text.encode())
    root = Root(Header(), Node(shards=(ShardRef(bits, cid, level, weight),)))
    return TreeView(TreeReader(blocks), Root.from_block(root.to_block()))


def ways() -> dict[str, Callable[[TreeView], object]]:
    name = BITS["0"][0]
    return {
        "find": lambda view: view.find(name),
        "list": lambda view: list(view.keys()),
        "edit": lambda view: edited(view.reader, view.root.node, {name: None}),
    }


@pytest.mark.parametrize("way", list(ways()))
def test_a_shard_that_is_right_is_read(way: str) -> None:
    ways()[way](view_of(shard_text(BITS["0"]), weight_of(BITS["0"])))


def bad_shards() -> dict[str, tuple[Any, ...]]:
    good, weight = shard_text(BITS["0"]), weight_of(BITS["0"])
    inner = ShardRef("00", cid_of(DAG_JSON, BLAKE3, b""), 0, 9).text()
    other = ShardRef("10", cid_of(DAG_JSON, BLAKE3, b""), 0, 9).text()
    high = ShardRef("00", cid_of(DAG_JSON, BLAKE3, b""), 3, 9).text()
    return {
        "weight": (good, weight + 1),
        "no weight": (good, 0),
        "other names": (shard_text(NAMES), weight_of(NAMES)),
        "version": (good.replace('"version":1', '"version":2'), weight),
        "version true": (good.replace('"version":1', '"version":true'), weight + 3),
        "type": (good.replace("cas-zarr/shard", "cas-zarr/sharp"), weight),
        "header": (good.replace(HEAD, HEAD[:-1] + ',"x":1}'), weight),
        "no header": ('{"keys":{' + entry_text(BITS["0"][0]) + "}}", weight),
        "empty": ("{" + HEAD + "}", 0),
        "empty keys": ("{" + HEAD + ',"keys":{}}', 0),
        "more": ("{" + HEAD + ',"what":{"a":1}}', 6),
        "level": (good, weight, "0", 1),
        "both": ("{" + HEAD + ',"keys":{' + entry_text("k") + '},"shards":[' + inner + "]}", 5),
        "elsewhere": ("{" + HEAD + ',"shards":[' + other + "]}", len(other) + 1, "0", 1),
        "too high": ("{" + HEAD + ',"shards":[' + high + "]}", len(high) + 1, "0", 1),
        "flat": ("{" + HEAD + ',"shards":[' + inner + "]}", len(inner) + 1, "0", 0),
        "no json": ("{" + HEAD, weight),
        "list": ("[]", 0),
    }


@pytest.mark.parametrize("way", list(ways()))
@pytest.mark.parametrize("case", list(bad_shards()))
def test_a_shard_that_is_not_what_its_link_says_is_refused(case: str, way: str) -> None:
    view = view_of(*bad_shards()[case])
    with pytest.raises(FormatError):
        ways()[way](view)


def test_levels_of_shards_are_read(crowd: tuple[CountingBlocks, CidBytes]) -> None:
    with shards_of(700):
        mapping = CASMapping(CountingBlocks())
        for n in range(300):
            mapping[f"k{n}"] = b"%d" % n
        root = mapping.flush()
        refs = mapping.view.root.node.shards
        assert refs[0].level >= 2
        read = CASMapping(mapping.blocks, root)
        assert all(read[f"k{n}"] == b"%d" % n for n in range(300))
        assert len(list(read)) == 300
    assert format_cid(root) != format_cid(crowd[1])
