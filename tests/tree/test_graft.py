"""Putting subtrees at paths: cheap, and the same as setting their keys."""

from __future__ import annotations

import numpy as np
import pytest
from building import CountingBlocks, fake_cids

from cas_zarr.errors import InvalidKeyError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree.graft import graft
from cas_zarr.tree.node import Node, Root
from cas_zarr.tree.view import TreeView


def root_of(values: dict[str, bytes]) -> bytes:
    mapping = CASMapping(CountingBlocks())
    mapping.update(values)
    return mapping.flush()


def large(blocks: CountingBlocks) -> tuple[CASMapping, CASMapping]:
    mapping = CASMapping(blocks)
    for path in ("", "x/", "x/y/", "big/"):
        mapping[f"{path}zarr.json"] = b"{}"
    grid = np.indices((40, 40, 40)).reshape(3, -1).T
    mapping.set_links("big", grid, fake_cids(len(grid)), np.ones(len(grid), np.int64))
    return mapping, CASMapping(blocks, mapping.flush())


def test_a_large_subtree_is_copied_moved_and_removed_without_a_look_into_it() -> None:
    blocks = CountingBlocks()
    mapping, fresh = large(blocks)
    node = fresh.view.node("big")
    blocks.reads.clear()
    count = len(blocks)
    copied = TreeView(fresh.view.reader, graft(fresh.view, "x/y/copy", node))
    assert copied.node("x/y/copy") is node
    moved = TreeView(fresh.view.reader, graft(copied, "big", None))
    assert moved.node("big") is None
    back = graft(TreeView(fresh.view.reader, graft(moved, "big", node)), "x/y/copy", None)
    assert back.cid() == fresh.root
    assert blocks.reads == []
    assert len(blocks) == count
    assert mapping.view.root.cid() == fresh.root


def test_what_was_at_the_path_is_replaced_and_empty_folders_go() -> None:
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping.update({"a/zarr.json": b"{}", "a/c/0": b"0", "a/x": b"1", "d/e/f/.zgroup": b"{}"})
    mapping.flush()
    view = mapping.view
    assert graft(view, "a", view.node("d/e")).cid() == root_of(
        {"a/f/.zgroup": b"{}", "d/e/f/.zgroup": b"{}"}
    )
    gone = {"a/zarr.json": b"{}", "a/c/0": b"0", "a/x": b"1"}
    assert graft(view, "d/e/f", None).cid() == graft(view, "d/e/f", Node()).cid() == root_of(gone)
    assert graft(view, "nowhere/at/all", None).cid() == view.root.cid()
    assert graft(view, "", view.node("a")).cid() == root_of(
        {"zarr.json": b"{}", "c/0": b"0", "x": b"1"}
    )
    assert graft(view, "", None).cid() == root_of({})


@pytest.mark.parametrize("path", ["c", "0", "a/c", "a/0", "a/c/1", "0/0", "x", "c/x"])
@pytest.mark.parametrize("owner", ["zarr.json", ".zarray", None])
def test_keys_that_read_as_chunks_of_an_array_above_become_them(
    path: str, owner: str | None
) -> None:
    blocks = CountingBlocks()
    around = {
        "zarr.json": b"{}",
        "0/1": b"a",
        "0/0/0": b"b",
        "c/5": b"c",
        "a/.zarray": b"{}",
        "a/0/1": b"d",
        "a/c/1/2": b"e",
    }
    inside = {
        "0": b"0",
        "1/2": b"12",
        "name": b"n",
        "c/7": b"7",
        "sub/.zgroup": b"{}",
        "3.4": b"34",
    }
    if owner is not None:
        inside[owner] = b"{}"
    mapping, donor = CASMapping(blocks), CASMapping(blocks)
    mapping.update(around)
    donor.update({f"d/{key}": data for key, data in inside.items()})
    mapping.flush(), donor.flush()
    made = graft(mapping.view, path, donor.view.node("d"))
    expected = {k: v for k, v in around.items() if not k.startswith(f"{path}/")}
    assert made.cid() == root_of(expected | {f"{path}/{k}": v for k, v in inside.items()})


def test_a_long_shard_is_cut_anew_where_it_becomes_a_chunk_of_another_array() -> None:
    blocks = CountingBlocks()
    mapping, donor = CASMapping(blocks), CASMapping(blocks)
    mapping["zarr.json"] = b"{}"
    donor["d/0"] = b"x" * (3 << 20)
    mapping.flush(), donor.flush()
    made = graft(mapping.view, "c", donor.view.node("d"))
    assert made.cid() == root_of({"zarr.json": b"{}", "c/0": b"x" * (3 << 20)})


def test_the_header_stays_and_links_of_another_hash_too() -> None:
    blocks = CountingBlocks()
    mapping, other = CASMapping(blocks), CASMapping(blocks, hash="sha2-256")
    mapping["zarr.json"] = b"{}"
    other.update({f"a/c/{x}/{y}": b"%d" % x for x in range(40) for y in range(40)})
    other["a/zarr.json"] = b"{}"
    mapping.flush(), other.flush()
    node = other.view.node("a")
    made = graft(mapping.view, "copy/a", node)
    assert made.header == mapping.view.root.header
    view = TreeView(mapping.view.reader, made)
    assert view.node("copy/a") is node
    assert view.find("copy/a/c/3/4") == other.view.find("a/c/3/4")


def test_paths_that_cannot_be_are_refused() -> None:
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping["/".join(["d"] * 40) + "/zarr.json"] = b"{}"
    mapping.flush()
    view = mapping.view
    for path in ("/a", "a/", "a//b", "..", "a\0"):
        with pytest.raises(InvalidKeyError):
            graft(view, path, view.node("d"))
    with pytest.raises(InvalidKeyError, match="shorter path"):
        graft(view, "/".join(["e"] * 30), view.node("d"))
    fitting = graft(view, "/".join(["e"] * 20), view.node("d"))
    assert Root.from_block(fitting.to_block()).cid() == fitting.cid()


@pytest.mark.parametrize("name", ["c/0/0/0", "0/0/0/0", "c.0.0.0", "0.0", "c", "a/b", "zarr.json"])
def test_every_key_of_a_copy_can_be_asked_for(name: str) -> None:
    """A key past the limits would be listed, and found to be absent."""
    paths = ["/".join("e" * count) for count in range(58, 65)]
    paths += ["é" * 500 + "/" + "e" * count for count in range(8, 24)]
    refused = 0
    for path in paths:
        mapping = CASMapping(CountingBlocks())
        mapping["a/zarr.json"] = b"{}"
        mapping[f"a/{name}"] = b"value"
        keys = [f"{path}/zarr.json", f"{path}/{name}"]
        if all(key.count("/") < 64 and len(key.encode()) <= 1024 for key in keys):
            mapping.copy("a", path)
            assert {mapping.get_value(key) for key in keys} <= {b"{}", b"value"}
        else:
            refused += 1
            with pytest.raises(InvalidKeyError, match="shorter path"):
                mapping.copy("a", path)
    assert 2 <= refused < len(paths) - 2
