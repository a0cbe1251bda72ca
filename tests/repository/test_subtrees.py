"""Copying, moving and attaching: what was at one place is at another, and no chunk was opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    InvalidArgumentError,
    InvalidKeyError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
    VersionNotFoundError,
    WriteOnceError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository import faraway
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.subtrees import subtree_blocks, subtree_of
from cas_zarr.tree.node import Header, Root
from cas_zarr.tree.view import TreeView
from tests.servers.counting import counting_gateway

KEYS = {
    "zarr.json": b'{"node_type": "group"}',
    "air/zarr.json": b'{"node_type": "group"}',
    "air/t/zarr.json": b'{"node_type": "array"}',
    "air/t/c/0/0": b"0",
    "air/t/c/0/1": b"1",
    "air/note": b"plain",
    "sea/.zarray": b"{}",
    "sea/0": b"0",
}


class Counting(MemoryBlocks):
    """Blocks that count how often they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[CidBytes] = []

    def _read(self, cid: CidBytes) -> Any:
        self.reads.append(cid)
        return super()._read(cid)


def filled(keys: dict[str, bytes] = KEYS, **options: Any) -> CASMapping:
    mapping = CASMapping(MemoryBlocks(), **options)
    for key, value in keys.items():
        mapping[key] = value
    return mapping


def content(mapping: CASMapping) -> dict[str, bytes]:
    return {key: bytes(mapping[key]) for key in mapping}


def moved(keys: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    return {new + key[len(old) :]: keys[key] for key in keys if key.startswith(f"{old}/")}


def without(keys: dict[str, bytes], path: str) -> dict[str, bytes]:
    return {key: value for key, value in keys.items() if not key.startswith(f"{path}/")}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("air", "copy"),
        ("air/t", "air/u"),
        ("air/t", "t"),
        ("sea", "deep/er/sea"),
        ("air", "air/air"),
    ],
)
def test_a_copy_is_what_setting_each_key_makes(source: str, target: str) -> None:
    mapping = filled()
    mapping.copy(source, target)
    expected = {**KEYS, **moved(KEYS, source, target)}
    assert content(mapping) == expected
    assert mapping.flush() == filled(expected).flush()
    assert mapping.cid(source) != mapping.cid(target) or source != "air/air"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("air", "wind"),
        ("air/t", "t"),
        ("air/t", "air/u"),
        ("sea", "air/sea"),
        ("sea", "new/er/sea"),
    ],
)
def test_a_move_is_a_copy_and_a_deletion(source: str, target: str) -> None:
    mapping = filled()
    before = mapping.cid(source)
    mapping.move(source, target)
    expected = {**without(KEYS, source), **moved(KEYS, source, target)}
    assert content(mapping) == expected
    assert mapping.flush() == filled(expected).flush()
    assert mapping.cid(target) == before


def test_no_chunk_and_no_page_is_opened() -> None:
    blocks = Counting()
    mapping = CASMapping(blocks)
    mapping["a/zarr.json"] = b'{"node_type": "array"}'
    rows = 20_000
    cids = np.tile(np.frombuffer(_raw(blocks), np.uint8), (rows, 1))
    coordinates = np.stack([np.arange(rows) // 200, np.arange(rows) % 200], axis=1)
    mapping.set_links("a", coordinates, cids, np.ones(rows, np.int64))
    root = mapping.flush()
    again = CASMapping(blocks, root)
    blocks.reads.clear()
    again.copy("a", "b")
    again.move("a", "c/d")
    again.attach("e", root)
    assert blocks.reads == [root]  # which `attach` was given
    assert again["c/d/c/5/7"] == b"x"
    assert again["e/a/c/5/7"] == b"x"
    assert "a/c/5/7" not in again


def _raw(blocks: MemoryBlocks) -> bytes:
    one = CASMapping(blocks)
    one["x"] = b"x"
    cid = one.cid_of("x")
    assert cid is not None
    return cid


def test_what_is_there_is_replaced_only_if_that_was_said() -> None:
    mapping = filled()
    for verb in (mapping.copy, mapping.move):
        with pytest.raises(InvalidArgumentError, match="something at 'sea' already"):
            verb("air", "sea")
        with pytest.raises(InvalidArgumentError, match="something at 'air/note' already"):
            verb("sea", "air/note")
    with pytest.raises(InvalidArgumentError, match="something at the root already"):
        mapping.attach("", mapping.flush())
    assert content(mapping) == KEYS
    mapping.copy("air", "sea", overwrite=True)
    expected = {**without(KEYS, "sea"), **moved(KEYS, "air", "sea")}
    assert content(mapping) == expected
    mapping.copy("sea/t", "air/note", overwrite=True)
    expected = {key: value for key, value in expected.items() if key != "air/note"}
    expected |= moved(expected, "sea/t", "air/note")
    assert content(mapping) == expected
    assert mapping.flush() == filled(expected).flush()


def test_a_node_takes_the_place_of_what_it_was_in() -> None:
    mapping = filled()
    mapping.move("air/t", "air", overwrite=True)
    expected = {**without(KEYS, "air"), **moved(KEYS, "air/t", "air")}
    assert content(mapping) == expected


def test_the_whole_goes_into_a_part_and_back() -> None:
    mapping = filled()
    root = mapping.flush()
    mapping.copy("", "backup")
    assert content(mapping) == {**KEYS, **{f"backup/{key}": KEYS[key] for key in KEYS}}
    mapping.attach("", mapping.cid("backup"), overwrite=True)
    assert mapping.flush() == root


def test_paths_that_cannot_be() -> None:
    mapping = filled()
    before = mapping.flush()
    with pytest.raises(InvalidArgumentError, match="the same or lies in it"):
        mapping.move("air", "air/t/x")
    with pytest.raises(InvalidArgumentError):
        mapping.move("air", "air", overwrite=True)
    with pytest.raises(InvalidArgumentError):
        mapping.move("", "all")
    with pytest.raises(InvalidArgumentError, match="key of a document"):
        mapping.copy("air", "x/zarr.json")
    with pytest.raises(InvalidKeyError):
        mapping.copy("air", "x//y")
    with pytest.raises(NotFoundError, match="no node 'nothing'"):
        mapping.copy("nothing", "x")
    with pytest.raises(NotFoundError):
        mapping.copy("air/note", "x")  # a key is no node
    assert mapping.flush() == before


def test_a_move_that_fails_leaves_everything_where_it_was() -> None:
    mapping = filled()
    deep = "/".join("d" * 40)
    mapping[f"deep/{deep}/zarr.json"] = b"{}"
    before = mapping.flush()
    target = "/".join("e" * 30)
    with pytest.raises(InvalidKeyError, match="more than 64 levels"):
        mapping.move("deep", target)
    assert mapping.flush() == before
    mapping[target] = b"value"
    before = mapping.flush()
    with pytest.raises(InvalidKeyError, match="more than 64 levels"):
        mapping.copy("deep", target, overwrite=True)
    assert mapping.flush() == before


def test_read_only_and_strict_are_kept() -> None:
    mapping = filled()
    root = mapping.flush()
    fixed = CASMapping(mapping.blocks, root, read_only=True)
    for verb in (fixed.copy, fixed.move):
        with pytest.raises(ReadOnlyError):
            verb("air", "x")
    with pytest.raises(ReadOnlyError):
        fixed.attach("x", root)
    strict = CASMapping(mapping.blocks, root, strict=True)
    with pytest.raises(WriteOnceError):
        strict.move("air", "x")
    with pytest.raises(WriteOnceError):
        strict.copy("air", "sea", overwrite=True)
    strict.copy("air", "x")
    assert content(strict) == {**KEYS, **moved(KEYS, "air", "x")}


def test_a_subtree_that_asks_for_more_is_refused() -> None:
    mapping = filled()
    node = mapping.view.node("air")
    assert node is not None
    part = Root(Header(mapping.view.root.header.function, needs_to_write=("more",)), node)
    with pytest.raises(ReadOnlyError, match="needs more"):
        mapping.attach("x", part)
    with pytest.raises(BlockNotFoundError):
        mapping.attach("x", Root(Header(), node).cid())


# -- of repositories ------------------------------------------------------------------------------


def committed(path: Path, keys: dict[str, bytes] = KEYS, **options: Any) -> Repository:
    repository = Repository.open(path, create=True, **options)
    with repository.session() as session:
        for key, value in keys.items():
            session.prepare()[key] = value
        session.commit("begin")
    return repository


def test_a_session_copies_moves_and_attaches(tmp_path: Path) -> None:
    repository = committed(tmp_path / "one")
    repository.create_tag("v1")
    with repository.session() as session:
        session.copy("air/t", "t")
        session.move("sea", "ocean")
        session.attach("old", "v1")
        session.attach("old-sea", "v1:sea")
        session.attach("by-cid", format_cid(repository.resolve("v1").root))
        assert session.dirty
        session.commit("moved things")
    expected = {
        **without(KEYS, "sea"),
        **moved(KEYS, "air/t", "t"),
        **moved(KEYS, "sea", "ocean"),
        **moved(KEYS, "sea", "old-sea"),
        **{f"{name}/{key}": KEYS[key] for name in ("old", "by-cid") for key in KEYS},
    }
    assert content(Repository.open(tmp_path / "one").at("main")) == expected
    assert Repository.open(tmp_path / "one").verify().ok


@pytest.mark.parametrize("how", ["repository", "blocks", "location"])
@pytest.mark.parametrize("inner", ["", "air", "air/t"])
def test_what_is_attached_from_elsewhere_is_copied(tmp_path: Path, how: str, inner: str) -> None:
    other = committed(tmp_path / "other")
    here = Repository.open(tmp_path / "here", create=True)
    place = f"main:{inner}"
    source: Any = other
    if how == "blocks":
        place, source = f"{format_cid(other.resolve('main').root)}:{inner}", other.blocks
    elif how == "location":
        source = str(tmp_path / "other")
    with here.session() as session:
        session.attach("x", place, source=source)
        session.commit("attached")
    keys = {f"x/{key}": KEYS[key] for key in KEYS} if not inner else moved(KEYS, inner, "x")
    again = Repository.open(tmp_path / "here")
    assert content(again.at("main")) == keys
    assert again.verify().ok
    assert len(list(again.blocks.list())) <= len(set(keys.values())) + 8


def test_a_subtree_of_another_hash_stays_as_it_is(tmp_path: Path) -> None:
    other = committed(tmp_path / "other", hash="sha2-256")
    here = committed(tmp_path / "here", {"zarr.json": b"{}"})
    with here.session() as session:
        session.attach("x", "main:air", source=other)
        session.commit("attached")
    mapping = here.at("main")
    assert mapping.cid_of("x/t/c/0/0") == other.at("main").cid_of("air/t/c/0/0")
    assert mapping["x/t/c/0/0"] == b"0"
    assert here.verify().ok


def test_what_is_not_there_cannot_be_attached(tmp_path: Path) -> None:
    repository = committed(tmp_path / "one")
    with repository.session() as session:
        with pytest.raises(VersionNotFoundError):
            session.attach("x", "v9")
        with pytest.raises(NotFoundError, match="no node 'wind'"):
            session.attach("x", "main:wind")
        commit = repository.resolve("main").commit
        assert commit is not None
        with pytest.raises(InvalidArgumentError, match="no root"):
            session.attach("x", format_cid(commit), source=repository.blocks)
        with pytest.raises(InvalidArgumentError, match="already"):
            session.attach("air", "main:sea")
        assert not session.dirty


def test_what_was_collected_in_part_cannot_be_attached(tmp_path: Path) -> None:
    repository = committed(tmp_path / "one")
    cid = repository.at("main").cid("air")
    gone = repository.at("main").cid_of("air/t/c/0/1")
    assert gone is not None
    with repository.session() as session:
        session.attach("x", "main:air")  # a ref leads to all of it
        session.attach("y", f"{format_cid(repository.resolve('main').root)}:air")
        repository.blocks.delete(gone)
        for place in (cid, f"{format_cid(repository.resolve('main').root)}:air"):
            with pytest.raises((StorageError, NotFoundError)):
                session.attach("z", place)
        assert "z/t/zarr.json" not in session.mapping


def test_nothing_is_copied_to_where_something_is(tmp_path: Path) -> None:
    other = committed(tmp_path / "other")
    here = committed(tmp_path / "here", {"x/zarr.json": b"{}"})
    before = set(here.blocks.list())
    with here.session() as session, pytest.raises(InvalidArgumentError, match="already"):
        session.attach("x", "main", source=other)
    assert set(here.blocks.list()) == before


def test_history_follows_a_cid(tmp_path: Path) -> None:
    repository = committed(tmp_path / "one")
    with repository.session() as session:
        session.move("air", "wind")
        session.commit("renamed")
    views = [
        TreeView(repository.at(version).view.reader, repository.at(version).view.root)
        for version in ("main~1", "main")
    ]
    old, new = views[0].node("air"), views[1].node("wind")
    assert old is not None
    assert new is not None
    assert old.text() == new.text()


def test_a_store_copies_moves_and_attaches(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3.1")
    from cas_zarr.store import CASStore

    store = CASStore(tmp_path / "one")
    group = zarr.open_group(store=store, mode="a")
    group.create_array("a", shape=(4,), chunks=(2,), dtype="i4")[...] = np.arange(4)
    store.commit("begin")
    store.copy("a", "b")
    store.move("a", "c")
    store.attach("before", "main")
    group = zarr.open_group(store=store, mode="r+")
    group["b"][0] = 9
    np.testing.assert_array_equal(group["b"][...], [9, 1, 2, 3])
    np.testing.assert_array_equal(group["c"][...], [0, 1, 2, 3])
    np.testing.assert_array_equal(group["before/a"][...], [0, 1, 2, 3])
    assert "a" not in group
    store.close()
    fixed = CASStore(tmp_path / "one", read_only=True)
    for verb in (fixed.copy, fixed.move, fixed.attach):
        with pytest.raises(ReadOnlyError):
            verb("b", "d")
    assert json.loads(fixed.mapping["b/zarr.json"])["shape"] == [4]


def test_a_store_on_a_bare_mapping_attaches_by_cid() -> None:
    pytest.importorskip("zarr", minversion="3.1")
    from cas_zarr.store import CASStore

    mapping = filled()
    store = CASStore(mapping)
    store.attach("x", mapping.flush())
    assert content(mapping) == {**KEYS, **{f"x/{key}": KEYS[key] for key in KEYS}}


def test_a_part_has_one_cid_whoever_asks() -> None:
    mapping = filled()
    mapping.flush()
    header = Header(mapping.view.root.header.function, extra={"said": "of the whole"})
    root = Root(header, mapping.view.root.node)
    mapping.blocks.put(root.cid(), root.to_block())
    whole = CASMapping(mapping.blocks, root.cid(), read_only=True)
    blocks, cid = subtree_blocks(mapping.blocks, root.cid(), "air")
    assert cid == whole.cid("air")
    assert cid == subtree_of(mapping.blocks, f"{format_cid(root.cid())}:air").cid()
    assert content(CASMapping(blocks, cid, read_only=True))["t/c/0/0"] == b"0"
    assert subtree_blocks(mapping.blocks, root.cid(), "") == (mapping.blocks, root.cid())
    with counting_gateway(mapping.blocks) as server:
        there = Repository.open(f"ipfs://{format_cid(root.cid())}/air", gateways=server.url)
        record = there.refs.branch("main")
        assert record is not None
        assert record.work == cid


def _far(tmp_path: Path, chunks: int = 40) -> tuple[Repository, str]:
    """Return a repository with an array of that many chunks, and the address of its root."""
    repo = Repository.open(tmp_path / "far.cas", create=True)
    with repo.session() as session:
        session.mapping["air/t/zarr.json"] = b'{"node_type": "array"}'
        for row in range(chunks):
            session.mapping[f"air/t/c/{row}"] = b"%d" % row
        session.commit("far")
    return repo, f"ipfs://{format_cid(repo.resolve('main').root)}"


def test_what_is_attached_by_address_comes_from_the_gateways_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, address = _far(tmp_path)
    with far, counting_gateway(far.blocks) as server, counting_gateway(MemoryBlocks()) as default:
        monkeypatch.setattr(faraway, "LOCAL_GATEWAY", default.url)
        monkeypatch.setattr(faraway, "PUBLIC_GATEWAYS", ())
        here = Repository.open(tmp_path / "here.cas", create=True, gateways=server.url)
        with here, here.session() as session:
            session.attach("x", address.removeprefix("ipfs://"), source=address)
            assert session.mapping["x/air/t/c/7"] == b"7"
        assert default.taken() == []


def test_a_part_that_is_attached_from_afar_is_fetched_side_by_side_and_once(tmp_path: Path) -> None:
    far, address = _far(tmp_path)
    root = address.removeprefix("ipfs://")
    with (
        far,
        counting_gateway(far.blocks) as server,
        Repository.open(address, gateways=server.url, cache=False) as source,
    ):
        blocks, cid = subtree_blocks(source.blocks, source.resolve(root).root, "air")
        assert blocks.remote
        assert blocks.has_many([cid]) == [True]
        server.taken()
        server.delay = 0.02
        with Repository.open(tmp_path / "here.cas", create=True) as here, here.session() as session:
            session.attach("x", f"{root}:air", source=source)
            assert session.mapping["x/t/c/7"] == b"7"
        asked = server.taken()
        assert {form for form, _ in asked} == {"raw"}
        assert len(asked) == len(set(asked))
        assert server.busiest > 8


def test_a_source_without_a_block_is_not_passed_over(tmp_path: Path) -> None:
    with Repository.open(tmp_path / "a.cas", create=True) as repo, repo.session() as session:
        session.mapping["zarr.json"] = b"{}"
        root = session.flush()
        with pytest.raises(BlockNotFoundError):
            session.attach("x", root, source=MemoryBlocks())
