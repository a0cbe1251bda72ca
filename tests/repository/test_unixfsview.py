"""The UnixFS view: its files are the keys, its chunks the dataset's own blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from cas_zarr import CASStore
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, CidBytes, cid_of
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.unixfsdir import decode_directory, node_type
from cas_zarr.errors import InvalidKeyError, NotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository import unixfsview
from cas_zarr.repository.unixfsview import UnixfsView
from cas_zarr.tree.directories import list_directory, open_entry, read_file, resolve_path

ARRAY = b'{"zarr_format":3,"node_type":"array"}'
GROUP = b'{"zarr_format":3,"node_type":"group","attributes":{}}'


def whole(view: UnixfsView, source: MemoryBlocks) -> MemoryBlocks:
    """Return what a node has after the view was sent to it; every child is sent before a parent."""
    held = MemoryBlocks()
    for cid, data in view.blocks():
        if data is not None and cid[1] == 0x70 and node_type(data) in ("directory", "shard"):
            assert all(held.has(entry.cid) for entry in decode_directory(data).entries)
        held.put(cid, source.get(cid) if data is None else data)
    assert held.has(view.cid)
    return held


def files(blocks: MemoryBlocks, cid: CidBytes, base: str = "") -> dict[str, bytes]:
    out = {}
    for name, below, _ in list_directory(blocks, cid):
        if open_entry(blocks, below).kind == "directory":
            out.update(files(blocks, below, f"{base}{name}/"))
        else:
            out[base + name] = read_file(blocks, below, limit=1 << 30)
    return out


def total(blocks: MemoryBlocks, cid: CidBytes) -> int:
    """Return the bytes below a CID as its links add up when each is followed."""
    data = blocks.get(cid)
    if cid[1] != 0x70:
        return len(data)
    below = 0
    for link in dagpb.decode(data).links:
        size = total(blocks, link.cid)
        assert link.tsize == size
        below += size
    return len(data) + below


KEYS = {
    "zarr.json": GROUP,
    "a/zarr.json": ARRAY,
    "a/c/0/0/0": b"000",
    "a/c/0/0/1": b"001",
    "a/c/1/0/0": b"100",
    "a/c/2/0": b"20",  # of another tree
    "a/c/note": b"a key where chunks have their folders",
    "a/c/1/x": b"another",
    "flat/zarr.json": ARRAY,
    "flat/c.3.4": b"34",
    "flat/c.10.4": b"104",
    "old/.zgroup": b'{"zarr_format":2}',
    "old/.zattrs": b'{"a":1}',
    "old/a/.zarray": b'{"zarr_format":2}',
    "old/a/0.0": b"v2",
    "old/a/2/1": b"v2 in folders",
    "scalar/zarr.json": ARRAY,
    "scalar/c": b"0-d",
    "line/zarr.json": ARRAY,
    "line/c/7": b"7",
    "loose/readme.txt": b"a plain key",
    "long": bytes(range(256)) * 5000,
}


@pytest.mark.parametrize("group", [1 << 18, 1])
@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_every_key_is_a_file(hash: str, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unixfsview, "_GROUP", group)
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks, hash=hash)
    mapping.update(KEYS)
    view = UnixfsView(blocks, mapping.flush())
    held = whole(view, blocks)
    shown = files(held, view.cid)
    composed = shown.pop("old/.zmetadata")
    assert json.loads(composed)["metadata"][".zattrs"] == {"a": 1}
    metadata = json.loads(shown.pop("zarr.json"))["consolidated_metadata"]["metadata"]
    assert set(metadata) == {"a", "flat", "scalar", "line"}
    assert shown == {key: data for key, data in KEYS.items() if key != "zarr.json"}
    assert total(held, view.cid) == view.size
    assert resolve_path(held, view.cid, "a/c/1/0/0").size == 3


def test_no_chunk_is_stored_twice() -> None:
    blocks = MemoryBlocks()
    store = CASStore(CASMapping(blocks))
    group = zarr.open_group(store, mode="w")
    values = np.arange(1600.0).reshape(40, 40)
    group.create_array("x", data=values, chunks=(10, 10))
    values = np.arange(400_000.0).reshape(2, 200_000)
    group.create_array("big", data=values, chunks=(1, 200_000), compressors=None)
    root = store.flush()
    before = len(blocks)
    view = UnixfsView(blocks, root)
    added = {cid for cid, data in view.blocks() if data is not None}
    linked = {cid for cid, data in view.blocks() if data is None}
    assert all(map(blocks.has, linked))
    assert not any(map(blocks.has, added))
    # the root; x, x/c and four rows of it; big, big/c and two rows; and three documents
    assert len(added) == 1 + 6 + 4 + 3
    assert len(linked) == 16 + 2 * (2 + 1)  # a chunk of big has two leaves and a node
    assert len(blocks) == before


def test_the_same_root_makes_the_same_view() -> None:
    roots = []
    views = []
    for keys in (list(KEYS), list(reversed(KEYS))):
        blocks = MemoryBlocks()
        mapping = CASMapping(blocks)
        for key in keys:
            mapping[key] = KEYS[key]
        roots.append(mapping.flush())
        views.append(list(UnixfsView(blocks, roots[-1]).blocks()))
    assert roots[0] == roots[1]
    assert views[0] == views[1]


def test_a_part_is_the_directory_in_the_whole() -> None:
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks)
    mapping.update(KEYS)
    root = mapping.flush()
    view = UnixfsView(blocks, root)
    held = whole(view, blocks)
    for path in ("a", "old", "flat"):
        part = UnixfsView(blocks, root, path=f"/{path}/")
        assert part.cid == resolve_path(held, view.cid, path).cid
    with pytest.raises(NotFoundError, match="no node 'nothing'"):
        UnixfsView(blocks, root, path="nothing")


def test_what_is_there_is_skipped_with_all_below() -> None:
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks)
    mapping.update(KEYS)
    old = whole(UnixfsView(blocks, mapping.flush()), blocks)
    mapping["a/c/1/0/0"] = b"changed"
    view = UnixfsView(blocks, mapping.flush())
    asked: list[CidBytes] = []

    def has(cid: CidBytes) -> bool:
        asked.append(cid)
        return old.has(cid)

    sent = list(view.blocks(has))
    assert asked[0] == view.cid
    made = [cid for cid, data in sent if data is not None and cid[1] == 0x70]
    assert len(made) == 5  # the root, a, a/c, a/c/1 and a/c/1/0
    for cid, data in sent:
        old.put(cid, blocks.get(cid) if data is None else data)
    assert files(old, view.cid)["a/c/1/0/0"] == b"changed"
    assert total(old, view.cid) == view.size
    assert list(view.blocks(old.has)) == []


def test_a_flat_folder_of_many_chunks_is_sharded() -> None:
    n = 6000
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks)
    mapping["a/.zarray"] = b'{"zarr_format":2}'
    for i in range(n):
        mapping[f"a/{i}"] = b"%d" % i
    view = UnixfsView(blocks, mapping.flush())
    held = whole(view, blocks)
    top = resolve_path(held, view.cid, "a").cid
    assert decode_directory(held.get(top)).fanout == 256
    assert sum(1 for _ in list_directory(held, top)) == n + 1
    for i in (0, 17, n - 1):
        found = resolve_path(held, view.cid, f"a/{i}")
        assert found.cid == cid_of(0x55, BLAKE3, b"%d" % i)
    with pytest.raises(NotFoundError):
        resolve_path(held, view.cid, f"a/{n}")


def test_a_key_that_is_a_folder_too_makes_no_directory() -> None:
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks)
    mapping["x"] = b"1"
    mapping["x/y"] = b"2"
    view = UnixfsView(blocks, mapping.flush())
    with pytest.raises(InvalidKeyError, match="'x' twice"):
        view.cid  # noqa: B018
