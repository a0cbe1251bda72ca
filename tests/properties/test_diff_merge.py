"""Differences and merges against a model of dicts, on keys that move between nodes and trees."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_law import Map, keys, maps, root_of, small_limits, values

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.errors import ConflictError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree.apply import apply
from cas_zarr.tree.diff import diff
from cas_zarr.tree.graft import graft
from cas_zarr.tree.merge import changes_of, merge
from cas_zarr.tree.node import Node, Root
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.view import TreeView, walk_nodes
from cas_zarr.tree.walk import reachable

Edit = dict[str, bytes | None]

# keys that change places with one another: an owner of chunks comes or goes around them
near = st.sampled_from(
    [
        "zarr.json",
        "a/zarr.json",
        "a/c/zarr.json",
        "0/zarr.json",
        "a/c/1/.zarray",
        "0/.zattrs",
        "c/1/.zgroup",
        "0/1",
        "0/2/3",
        "1",
        "1/2",
        "c/0",
        "c/0/1",
        "a/c/0",
        "a/c/1/0",
        "a/c/1/1",
        "a/0/1",
        "a/b/c",
        "a/new/c/1",
        "a/new/.zarray",
    ]
)
maps = st.one_of(maps, st.dictionaries(near, values))
edits = st.dictionaries(st.one_of(keys, near), st.one_of(st.none(), values), max_size=8)
paths = st.sampled_from(
    ["", "a", "b", "a/b", "0", "c", "a/c", "a/0", "é", "a/c/1", "new", "a/new", "c/0", "x/y/z", "1"]
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def view_of(blocks: MemoryBlocks, final: Map) -> TreeView:
    mapping = CASMapping(blocks)
    mapping.update(final)
    return opened(blocks, mapping.flush())


def opened(blocks: MemoryBlocks, root: CidBytes) -> TreeView:
    return TreeView(TreeReader(blocks), Root.from_block(blocks.get(root)))


def stored(blocks: MemoryBlocks, root: Root) -> CidBytes:
    blocks.put(root.cid(), root.to_block())
    return root.cid()


def contents(blocks: MemoryBlocks, root: Root) -> Map:
    found = CASMapping(blocks, stored(blocks, root)).items()
    return {key: bytes(value) for key, value in found}


def edited(base: Map, edit: Edit) -> Map:
    return {key: data for key, data in {**base, **edit}.items() if data is not None}


def united(base: Map, ours: Map, theirs: Map) -> Map:
    out = {}
    for key in ours.keys() | theirs.keys():
        data = ours.get(key) if theirs.get(key) == base.get(key) else theirs.get(key)
        if data is not None:
            out[key] = data
    return out


@given(maps, edits, edits)
@quick
def test_a_merge_is_what_both_did_or_a_conflict(base: Map, one: Edit, two: Edit) -> None:
    with small_limits():
        blocks = MemoryBlocks()
        ours, theirs = edited(base, one), edited(base, two)
        views = [view_of(blocks, final) for final in (base, ours, theirs)]
        results: list[Any] = []
        for a, b in ((1, 2), (2, 1)):
            try:
                results.append(merge(views[0], views[a], views[b]).root)
            except ConflictError as error:
                results.append({(c.path, c.kind, c.name, c.coordinates) for c in error.conflicts})
        if isinstance(results[0], Root):
            assert isinstance(results[1], Root)
            assert results[0].cid() == results[1].cid() == root_of(united(base, ours, theirs))
            return
        assert results[0] == results[1]
        for side, own in (("ours", ours), ("theirs", theirs)):
            made = merge(*views, resolve=lambda _, side=side: side)  # type: ignore[misc]
            found = contents(blocks, made.root)
            assert root_of(found) == made.root.cid()
            for conflict in made.resolved:
                if conflict.kind in ("chunk", "key"):
                    assert found.get(conflict.key) == own.get(conflict.key)


@given(maps, maps)
@quick
def test_differences_lead_from_one_version_to_the_other(first: Map, second: Map) -> None:
    with small_limits():
        blocks = MemoryBlocks()
        a, b = view_of(blocks, first), view_of(blocks, second)
        plain = list(diff(a, b))
        assert apply(a, changes_of(b, plain)).cid() == b.root.cid()
        found = {(change.path, change.status): change for change in diff(a, b, moves=True)}
        spread = set()
        for change in found.values():
            if change.status != "moved":
                spread.add((change.path, change.status))
                continue
            assert change.source is not None
            was, now = a.node(change.source), b.node(change.path)
            assert was is not None
            assert now is not None
            assert was.text() == now.text()
            assert b.node(change.source) is None
            assert a.node(change.path) is None
            for path, _ in walk_nodes(a.reader, was, change.source):
                spread.add((path, "removed"))
            for path, _ in walk_nodes(b.reader, now, change.path):
                spread.add((path, "added"))
        assert spread == {(change.path, change.status) for change in plain}


@given(maps, maps, paths, paths)
@quick
def test_a_subtree_put_at_a_path_is_its_keys_set_there(
    final: Map, other: Map, path: str, source: str
) -> None:
    with small_limits():
        blocks = MemoryBlocks()
        view, donor = view_of(blocks, final), view_of(blocks, other)
        node = donor.node(source) or Node()
        alone = contents(blocks, Root(donor.root.header, node))
        base = f"{path}/" if path else ""
        expected = {key: data for key, data in final.items() if not key.startswith(base)}
        assert graft(view, path, None).cid() == root_of(expected)
        expected |= {base + key: data for key, data in alone.items()}
        made = graft(view, path, node)
        assert contents(blocks, made) == expected
        assert made.cid() == root_of(expected)


@given(maps, edits)
@quick
def test_what_a_walk_leaves_out_is_had(base: Map, edit: Edit) -> None:
    with small_limits():
        blocks = MemoryBlocks()
        old = stored(blocks, view_of(blocks, base).root)
        new = stored(blocks, view_of(blocks, edited(base, edit)).root)
        had = {cid for _, cid in reachable(blocks, old)}
        found = [cid for _, cid in reachable(blocks, new, since=old)]
        everything = {cid for _, cid in reachable(blocks, new)}
        assert len(set(found)) == len(found)
        assert everything - had <= set(found) <= everything
