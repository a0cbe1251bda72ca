"""`CASStore` under zarr and xarray: versions, exits, siblings, pickles, consolidated metadata."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from multiformats import CID
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

import cas_zarr
from cas_zarr import (
    CASMapping,
    CASStore,
    CasZarrError,
    ConflictError,
    CorruptBlockError,
    InvalidArgumentError,
    InvalidKeyError,
    ReadOnlyError,
    Repository,
    RepositoryNotFoundError,
    StorageError,
    VersionNotFoundError,
    WriteOnceError,
)
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.consolidated import Consolidation

Build = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "repo"


def run(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def listed(store: CASStore) -> list[str]:
    async def collect() -> list[str]:
        return sorted([key async for key in store.list()])

    return sync(collect())


# -- the everyday ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_scripts_follow_each_other_with_no_commit(path: Path, zarr_format: int) -> None:
    write = f"""
        import sys, zarr, numpy as np
        from cas_zarr import CASStore
        group = zarr.open_group(store=CASStore(sys.argv[1]), mode="a", zarr_format={zarr_format})
        array = group.require_array("x", shape=(4, 4), chunks=(2, 2), dtype="i4")
        array[:] = np.asarray(array[:]) + 1
        """
    for turn in range(1, 4):
        done = run(path, write)
        assert (done.returncode, done.stderr) == (0, "")
        array = zarr.open_array(CASStore(path), path="x", mode="r")
        np.testing.assert_array_equal(array[:], np.full((4, 4), turn))


def test_a_script_that_fails_keeps_what_it_wrote(path: Path) -> None:
    done = run(
        path,
        """
        import sys, zarr
        from cas_zarr import CASStore
        zarr.save_array(CASStore(sys.argv[1]), zarr.ones(3)[:])
        raise SystemError("on purpose")
        """,
    )
    assert done.returncode == 1
    assert list(zarr.open_array(CASStore(path), mode="r")[:]) == [1, 1, 1]


def test_flush_commit_and_versions(path: Path) -> None:
    store = CASStore(path)
    assert store.root is None
    array = zarr.create_array(store, shape=(8,), chunks=(2,), dtype="i4")
    array[:] = 1
    root = store.flush()
    assert isinstance(root, CID)
    assert str(root).startswith("baguqe")
    assert store.root == root
    assert store.cid() == root
    first = store.commit("first", author="A")
    array[2:4] = 2
    second = store.commit("second")
    Repository.open(path).create_tag("v1", first)

    def read(version: object) -> list[int]:
        opened = zarr.open_array(CASStore(path, version=version), mode="r")  # type: ignore[arg-type]
        return [int(number) for number in opened[:]]

    one, two = [1] * 8, [1, 1, 2, 2, 1, 1, 1, 1]
    assert read("v1") == read(first) == read(str(first)) == read(root) == read("main~1") == one
    assert read("main") == read(second) == read(bytes(second)) == two
    array[:] = 3
    assert read("main") == two
    store.flush()
    assert read("main") == two
    assert [entry.commit.message for entry in Repository.open(path).log()] == ["second", "first"]


def test_the_root_does_not_depend_on_how_it_was_written(tmp_path: Path) -> None:
    data = np.arange(64, dtype="f4").reshape(8, 8)
    one = CASStore(tmp_path / "one")
    array = zarr.create_array(one, name="a", shape=(8, 8), chunks=(2, 4), dtype="f4")
    array[:] = data
    two = CASStore(tmp_path / "two")
    array = zarr.create_array(two, name="a", shape=(4, 8), chunks=(2, 4), dtype="f4")
    array[:] = 7
    two.flush()
    array.resize((8, 8))
    array[4:] = data[4:]
    two.commit("half")
    array[:4] = data[:4]
    assert one.flush() == two.flush()
    assert one.cid("a") == two.cid("a")


def test_a_value_that_changes_after_set(path: Path) -> None:
    for size in (10, 100_000, 3 << 20):
        store = CASStore(path)
        data = np.full(size, 1, "u1")
        store.set_sync("k", cpu.Buffer.from_array_like(data))
        asyncio.run(store.set("l", cpu.Buffer.from_array_like(data)))
        data[:] = 2
        store.flush()
        for opened in (store, CASStore(path)):
            for key in "kl":
                value = opened.get_sync(key)
                assert value is not None
                assert (value.as_numpy_array() == 1).all()


def test_an_array_that_changes_after_it_was_written(path: Path) -> None:
    data = np.zeros((4, 1 << 19), "u1")
    array = zarr.create_array(
        CASStore(path), data=data, chunks=(2, 1 << 19), compressors=None, filters=None
    )
    array[:] = data
    data[:] = 9
    assert not np.any(array[:])


@pytest.mark.parametrize("size", [0, 5, 2_500_000])
def test_ranges(path: Path, size: int) -> None:
    store = CASStore(path)
    data = np.random.default_rng(0).integers(0, 255, size, "u1").tobytes()
    store.set_sync("k", cpu.Buffer.from_bytes(data))
    requests = [
        (RangeByteRequest(1, 3), data[1:3]),
        (RangeByteRequest(0, size + 10), data),
        (RangeByteRequest(size + 1, size + 2), b""),
        (RangeByteRequest(2, 2), b""),
        (RangeByteRequest(1_048_570, 1_048_580), data[1_048_570:1_048_580]),
        (OffsetByteRequest(2), data[2:]),
        (OffsetByteRequest(size + 1), b""),
        (SuffixByteRequest(3), data[-3:]),
        (SuffixByteRequest(size + 9), data),
        (SuffixByteRequest(0), b""),
        (None, data),
    ]
    prototype = default_buffer_prototype()
    values = asyncio.run(
        store.get_partial_values(prototype, [("k", request) for request, _ in requests])
    )
    for (request, expected), value in zip(requests, values, strict=True):
        assert value is not None
        assert value.to_bytes() == expected, request
    for request, _ in requests:
        assert store.get_sync("absent", byte_range=request) is None


def test_sizes_come_from_the_tree(path: Path) -> None:
    store = CASStore(path)
    array = zarr.create_array(
        store, name="a", shape=(100,), chunks=(10,), dtype="u1", compressors=None, fill_value=0
    )
    array[:50] = 1
    store.flush()
    cold = CASStore(path)
    reads: list[object] = []
    real = cold.mapping.blocks._read
    cold.mapping.blocks._read = lambda cid: reads.append(cid) or real(cid)  # type: ignore
    metadata = sync(cold.getsize("a/zarr.json"))
    assert sync(cold.getsize("a/c/0")) == 10
    assert sync(cold.getsize_prefix("a")) == 50 + metadata
    assert sync(cold.getsize_prefix("a/c")) == 50
    assert reads == []
    with pytest.raises(FileNotFoundError):
        sync(cold.getsize("a/c/9"))


# -- two writers, exits, forks --------------------------------------------------------------------


def test_two_writers_of_different_arrays_are_united(path: Path) -> None:
    zarr.create_group(CASStore(path))
    one, two = CASStore(path), CASStore(path)
    zarr.open_group(one, mode="a").create_array("one", data=np.arange(4))
    zarr.open_group(two, mode="a").create_array("two", data=np.arange(4))
    one.flush()
    two.flush()
    assert sorted(zarr.open_group(CASStore(path), mode="r").array_keys()) == ["one", "two"]


def test_two_writers_of_one_chunk_conflict(path: Path) -> None:
    zarr.create_array(CASStore(path), shape=(4,), chunks=(2,), dtype="i4")[:] = 0
    gc.collect()
    one, two = CASStore(path), CASStore(path)
    zarr.open_array(one, mode="a")[:] = 1
    zarr.open_array(two, mode="a")[:] = 2
    one.flush()
    with pytest.raises(ConflictError, match="conflicts/main") as caught:
        two.close()
    (kept,) = Repository.open(path).refs.all_kept()
    assert kept in str(caught.value)
    assert list(zarr.open_array(CASStore(path), mode="r")[:]) == [1] * 4
    assert list(zarr.open_array(CASStore(path, version=kept), mode="r")[:]) == [2] * 4


def test_leaving_a_with_flushes_and_the_store_goes_on(path: Path) -> None:
    with CASStore(path) as store:
        array = zarr.create_array(store, shape=(4,), dtype="i4")
        array[:] = 1
    assert list(zarr.open_array(CASStore(path), mode="r")[:]) == [1] * 4
    array[:] = 2
    store.close()
    assert list(zarr.open_array(CASStore(path), mode="r")[:]) == [2] * 4


def test_what_is_left_is_flushed_when_the_last_array_goes(path: Path) -> None:
    array = zarr.create_array(CASStore(path), shape=(4,), dtype="i4")
    array[:] = 1
    assert "zarr.json" not in CASStore(path).mapping
    del array
    gc.collect()
    assert list(zarr.open_array(CASStore(path), mode="r")[:]) == [1] * 4


def test_a_store_that_was_committed_waits_for_no_collector(path: Path) -> None:
    gc.disable()
    try:
        store = CASStore(path)
        store.set_sync("k", cpu.Buffer.from_bytes(b"1"))
        store.commit("first")
        assert store.cid() == store.root == store.flush()
        store.set_sync("l", cpu.Buffer.from_bytes(b"2"))
        del store
        assert sorted(CASStore(path).mapping) == ["k", "l"]
    finally:
        gc.enable()


def test_a_sibling_keeps_the_session_alive(path: Path) -> None:
    store = CASStore(path)
    store.set_sync("k", cpu.Buffer.from_bytes(b"1"))
    sibling = store.with_read_only(True)
    del store
    gc.collect()
    assert "k" not in CASStore(path).mapping
    value = sibling.get_sync("k")
    assert value is not None
    assert value.to_bytes() == b"1"
    sibling.close()
    del sibling, value
    gc.collect()
    assert "k" in CASStore(path).mapping


def test_workers_of_fork_write_beside_each_other(path: Path) -> None:
    done = run(
        path,
        """
        import multiprocessing, os, sys, zarr
        from cas_zarr import CASStore
        store = CASStore(sys.argv[1])
        zarr.create_array(
            store, name="a", shape=(8,), chunks=(1,), dtype="i4", compressors=None
        )
        store.flush()

        def work(number):
            store.session.prepare().set_value(f"a/c/{number}", bytes([number] * 4))
            store.close()

        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=work, args=(number,)) for number in range(8)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 8
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    array = zarr.open_array(CASStore(path), path="a", mode="r")
    assert array[:].tobytes() == b"".join(bytes([number] * 4) for number in range(8))


# -- siblings, equality, pickles ------------------------------------------------------------------


def test_siblings(path: Path) -> None:
    store = CASStore(path)
    reader = store.with_read_only(True)
    assert reader.read_only
    assert not reader._is_open
    assert reader != store
    assert reader == store.with_read_only(True)
    assert store.with_read_only(False) == store
    store.set_sync("k", cpu.Buffer.from_bytes(b"1"))
    assert sync(reader.exists("k"))
    for call in (
        lambda: reader.set_sync("k", cpu.Buffer.from_bytes(b"2")),
        lambda: reader.delete_sync("k"),
        lambda: sync(reader.delete_dir("")),
        lambda: sync(reader.clear()),
        lambda: sync(reader.set_if_not_exists("l", cpu.Buffer.from_bytes(b"2"))),
        lambda: reader.commit("no"),
    ):
        with pytest.raises(ReadOnlyError):
            call()
    writer = reader.with_read_only(False)
    writer.set_sync("l", cpu.Buffer.from_bytes(b"2"))
    assert sync(store.exists("l"))
    store.commit("c")
    version = CASStore(path, version="main")
    assert version.read_only
    with pytest.raises(ReadOnlyError, match="is a version"):
        version.with_read_only(False)
    assert version.with_read_only(True) == version
    fixed = CASStore(path, read_only=True)
    assert fixed.with_read_only(False) == store


def test_equality(tmp_path: Path) -> None:
    for name in ("a", "b"):
        CASStore(tmp_path / name).commit("first")
    stores = [
        CASStore(tmp_path / "a"),
        CASStore(tmp_path / "b"),
        CASStore(tmp_path / "a", read_only=True),
        CASStore(tmp_path / "a", version="main"),
        CASStore(tmp_path / "a", version="main~0"),
        CASStore(CASMapping(MemoryBlocks())),
        MemoryStore(),
    ]
    for left in stores:
        for right in stores:
            assert (left == right) == (left is right)
    assert stores[0] == CASStore(str(tmp_path / "a"))
    assert str(stores[3]) == f"cas-zarr://{tmp_path}/a@main"
    assert repr(stores[2]) == f"CASStore('cas-zarr://{tmp_path}/a#main', read_only=True)"


def test_pickles(path: Path) -> None:
    store = CASStore(path)
    store.set_sync("k", cpu.Buffer.from_bytes(b"1"))
    with pytest.raises(CasZarrError, match="flush first"):
        pickle.dumps(store)
    with pytest.raises(CasZarrError, match="flush first"):
        pickle.dumps(store.with_read_only(True))
    first = store.commit("first")
    copies = {
        name: pickle.loads(pickle.dumps(one))
        for name, one in {
            "writer": store,
            "sibling": store.with_read_only(True),
            "version": CASStore(path, version="main"),
            "commit": CASStore(path, version=first),
            "reader": CASStore(path, read_only=True),
        }.items()
    }
    assert copies["writer"] == store
    assert copies["version"] == CASStore(path, version="main")
    assert copies["reader"] == CASStore(path, read_only=True)
    assert [one.read_only for one in copies.values()] == [False, True, True, True, True]
    version = pickle.dumps(CASStore(path, version="main"))
    store.set_sync("k", cpu.Buffer.from_bytes(b"2"))
    store.commit("second")
    copies["late"] = pickle.loads(version)  # it names what main was when it was pickled
    for name, one in copies.items():
        value = one.get_sync("k")
        assert value.to_bytes() == b"1", name
    copies["writer"].set_sync("l", cpu.Buffer.from_bytes(b"3"))
    copies["writer"].flush()
    assert sorted(CASStore(path).mapping) == ["k", "l"]


def test_pickles_of_what_cannot_be_opened_elsewhere(path: Path) -> None:
    with pytest.raises(CasZarrError, match="bare mapping"):
        pickle.dumps(CASStore(CASMapping(MemoryBlocks())))
    store = CASStore("memory://here")
    store.set_sync("k", cpu.Buffer.from_bytes(b"1"))
    store.flush()
    data = pickle.dumps(store)
    assert pickle.loads(data) == store
    path.write_bytes(data)
    done = run(path, "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))")
    assert "in the memory of process" in done.stderr


def test_other_things_than_a_folder(path: Path) -> None:
    repository = Repository.open(path, create=True, author="Ada")
    store = CASStore(repository)
    store.set_sync("k", cpu.Buffer.from_bytes(b"1"))
    store.commit("first")
    assert next(repository.log()).commit.author == "Ada"
    session = repository.session()
    assert CASStore(session).session is session
    mapping = CASMapping(MemoryBlocks())
    bare = CASStore(mapping)
    bare.set_sync("k", cpu.Buffer.from_bytes(b"1"))
    assert mapping["k"] == b"1"
    assert bare.flush() == store.root
    with pytest.raises(InvalidArgumentError, match="open a branch"):
        bare.commit("no")
    assert CASStore(repository.at("main")).read_only
    for opened in (session, mapping):
        with pytest.raises(InvalidArgumentError, match="at one version"):
            CASStore(opened, version="main")


# -- consolidated metadata ------------------------------------------------------------------------


def build(store: Any, zarr_format: int) -> None:
    """Make a hierarchy with arrays, groups, an empty group, and attributes."""
    root = zarr.create_group(store, zarr_format=zarr_format, attributes={"title": "t"})
    root.create_array("b", shape=(2, 2), dtype="f4", attributes={"units": "K"}, fill_value=np.nan)
    root.create_array("a", shape=(), dtype="i8")
    inner = root.create_group("inner", attributes={"n": 1})
    inner.create_array("x", shape=(3,), dtype="i2")
    inner.create_group("deep").create_array("y", shape=(1,), dtype="u1")
    root.create_group("empty")


def as_json(metadata: Any) -> dict[str, Any]:
    documents = metadata.to_buffer_dict(default_buffer_prototype())
    return {name: json.loads(document.to_bytes()) for name, document in documents.items()}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_composed_metadata_are_what_zarr_would_store(path: Path, zarr_format: int) -> None:
    theirs = MemoryStore()
    build(theirs, zarr_format)
    ours = CASStore(path)
    build(ours, zarr_format)
    ours.commit("first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = zarr.consolidate_metadata(theirs).metadata
    for store in (
        CASStore(path, version="main"),
        CASStore(path, read_only=True),
        ours.with_read_only(True),
    ):
        group = zarr.open_consolidated(store, mode="r")
        assert as_json(group.metadata) == as_json(expected)
        assert sorted(name for name, _ in group.members(max_depth=None)) == [
            *("a", "b", "empty", "inner", "inner/deep", "inner/deep/y", "inner/x")
        ]
        below = zarr.open_consolidated(store, path="inner", mode="r")
        assert sorted(name for name, _ in below.members(max_depth=None)) == ["deep", "deep/y", "x"]
        assert listed(store) == listed(ours)
        assert not [key for key in listed(store) if key.endswith(".zmetadata")]
        assert not sync(store.exists(".zmetadata"))
    assert zarr.open_consolidated(ours, mode="r").metadata.consolidated_metadata
    plain = zarr.open_group(CASStore(path, version="main"), mode="r", use_consolidated=False)
    assert plain.metadata.consolidated_metadata is None


def test_the_stored_text_is_untouched(path: Path) -> None:
    store = CASStore(path)
    build(store, 3)
    store.commit("first")
    stored = store.get_sync("zarr.json")
    version = CASStore(path, version="main")
    composed = version.get_sync("zarr.json")
    assert stored is not None
    assert composed is not None
    assert stored.to_bytes() == version.mapping["zarr.json"]
    assert json.loads(stored.to_bytes()).get("consolidated_metadata") is None
    size = sync(version.getsize("zarr.json"))
    assert size == len(composed)
    part = version.get_sync("zarr.json", byte_range=SuffixByteRequest(7))
    assert part is not None
    assert part.to_bytes() == composed.to_bytes()[-7:]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_a_user_consolidated_is_given_as_it_is(path: Path, zarr_format: int) -> None:
    theirs = MemoryStore()
    build(theirs, zarr_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        zarr.consolidate_metadata(theirs)
    store = CASStore(path)
    for key, value in theirs._store_dict.items():
        store.set_sync(key, value)
    store.commit("imported")
    version = CASStore(path, version="main")
    for key, value in theirs._store_dict.items():
        found = version.get_sync(key)
        assert found is not None
        if key in ("zarr.json", ".zmetadata"):
            assert found.to_bytes() == value.to_bytes()


def test_a_writable_store_does_not_consolidate(path: Path) -> None:
    store = CASStore(path)
    build(store, 3)
    assert not store.supports_consolidated_metadata
    with pytest.raises((TypeError, ValueError), match="consolidated metadata"):
        zarr.consolidate_metadata(store)
    assert zarr.open_group(store, mode="a").metadata.consolidated_metadata is None


@pytest.mark.parametrize(
    "document", [b"", b"{", b"[]", b'{"zarr_format": 3}', b"\xff", b"[" * 100_000]
)
def test_members_that_cannot_be_read_are_not_composed(path: Path, document: bytes) -> None:
    store = CASStore(path)
    build(store, 3)
    store.set_sync("bad/zarr.json", cpu.Buffer.from_bytes(document))
    stored = store.get_sync("zarr.json")
    read = store.with_read_only(True).get_sync("zarr.json")
    assert stored is not None
    assert read is not None
    assert read.to_bytes() == stored.to_bytes()


def test_too_many_members_are_not_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping["zarr.json"] = b'{"zarr_format":3,"node_type":"group"}'
    for number in range(5):
        mapping[f"g{number}/zarr.json"] = mapping["zarr.json"]
    assert b"consolidated" in (Consolidation(mapping, fixed=True).get("zarr.json") or b"")
    monkeypatch.setattr("cas_zarr.consolidated.MAX_NODES", 4)
    assert Consolidation(mapping, fixed=True).get("zarr.json") == mapping["zarr.json"]


def test_an_array_at_the_root_and_an_empty_store(path: Path) -> None:
    store = CASStore(path)
    zarr.create_array(store, shape=(2,), dtype="i4")[:] = 1
    store.commit("array")
    version = CASStore(path, version="main")
    assert list(zarr.open_array(version)[:]) == [1, 1]
    document = version.get_sync("zarr.json")
    assert document is not None
    assert document.to_bytes() == store.mapping["zarr.json"]
    assert version.get_sync(".zmetadata") is None


# -- xarray ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_xarray_neither_consolidates_nor_warns(path: Path, zarr_format: int) -> None:
    xr = pytest.importorskip("xarray")
    dataset = xr.Dataset(
        {"t": (("y", "x"), np.arange(6.0).reshape(2, 3), {"units": "K"})},
        coords={"x": [1, 2, 3]},
        attrs={"title": "t"},
    )
    store = CASStore(path)
    dataset.to_zarr(store, mode="w", zarr_format=zarr_format)
    dataset.to_zarr(store, group="sub/deep", zarr_format=zarr_format)
    assert not [key for key in listed(store) if key.endswith(".zmetadata")]
    for key, value in store.mapping.items():
        if key.endswith("zarr.json"):
            assert json.loads(value).get("consolidated_metadata") is None
    xr.testing.assert_identical(xr.open_zarr(store).load(), dataset)
    store.commit("first")
    for opened in (CASStore(path, version="main"), CASStore(path, read_only=True), CASStore(path)):
        for group in (None, "sub/deep", "/sub/deep"):
            loaded = xr.open_zarr(opened, group=group).load()
            xr.testing.assert_identical(loaded, dataset)
            loaded = xr.open_dataset(opened, engine="zarr", group=group).load()
            xr.testing.assert_identical(loaded, dataset)
    xr.testing.assert_identical(
        xr.open_zarr(CASStore(path, version="main"), consolidated=True).load(), dataset
    )
    tree = xr.open_datatree(CASStore(path, version="main"), engine="zarr")
    xr.testing.assert_identical(tree["sub/deep"].to_dataset().load(), dataset)
    dataset.to_zarr(store, append_dim="y")
    assert xr.open_zarr(store).sizes["y"] == 4


# -- bad input ------------------------------------------------------------------------------------


def test_stores_that_cannot_be(tmp_path: Path) -> None:
    for options in ({"read_only": True}, {"version": "main"}):
        with pytest.raises(RepositoryNotFoundError):
            CASStore(tmp_path / "absent", **options)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(RepositoryNotFoundError, match=r"notes\.txt"):
        CASStore(tmp_path / "foreign")
    assert os.listdir(tmp_path / "foreign") == ["notes.txt"]
    CASStore(tmp_path / "repo").commit("first")
    with pytest.raises(VersionNotFoundError, match="did you mean 'main'"):
        CASStore(tmp_path / "repo", version="mian")
    for options in ({}, {"read_only": True}):
        with pytest.raises(VersionNotFoundError, match="did you mean 'main'"):
            CASStore(tmp_path / "repo", branch="mian", **options)
    for location in ("sftp://host/path", "ipfs://bafy", 3, b"path", None):
        with pytest.raises((InvalidArgumentError, TypeError)):
            CASStore(location)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", "/", "../x", "a/../b", "a//b", "a\0b", "\ud800", "x" * 2000])
def test_keys_that_cannot_be(path: Path, key: str) -> None:
    store = CASStore(path)
    with pytest.raises(InvalidKeyError):
        store.set_sync(key, cpu.Buffer.from_bytes(b"1"))
    assert store.get_sync(key) is None
    assert not sync(store.exists(key))
    store.delete_sync(key)
    assert listed(store) == []


def test_values_that_are_no_buffer(path: Path) -> None:
    store = CASStore(path)
    for value in (b"bytes", "text", None, np.zeros(3)):
        with pytest.raises(TypeError, match="must be a Buffer"):
            store.set_sync("k", value)  # type: ignore[arg-type]


def test_a_strict_store_binds_once(path: Path) -> None:
    store = CASStore(path, strict=True)
    store.set_sync("k", cpu.Buffer.from_bytes(b"1"))
    store.set_sync("k", cpu.Buffer.from_bytes(b"1"))
    with pytest.raises(WriteOnceError):
        store.set_sync("k", cpu.Buffer.from_bytes(b"2"))
    with pytest.raises(WriteOnceError):
        store.delete_sync("k")


def test_a_flipped_byte_is_never_read(path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (4, 1000), "u1")
    zarr.create_array(CASStore(path), data=data, chunks=(1, 1000), compressors=None)
    gc.collect()
    (pack,) = (path / "packs").glob("*.car")
    content = bytearray(pack.read_bytes())
    content[content.find(data[2].tobytes()) + 500] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(content)
    array = zarr.open_array(CASStore(path), mode="r")
    np.testing.assert_array_equal(array[:2], data[:2])
    with pytest.raises(CorruptBlockError, match="damaged"):
        array[2]


# -- the package ----------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_large() -> None:
    done = run(
        Path("x"),
        """
        import sys, cas_zarr
        large = {"zarr", "multiformats", "xarray", "numpy", "fsspec", "click", "rich", "dag_cbor"}
        assert not large & set(sys.modules), large & set(sys.modules)
        cas_zarr.CasZarrError
        assert not large & set(sys.modules), large & set(sys.modules)
        cas_zarr.Repository
        assert not {"zarr", "xarray"} & set(sys.modules)
        assert "CASStore" in dir(cas_zarr)
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_public_names() -> None:
    for name in cas_zarr.__all__:
        assert getattr(cas_zarr, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        cas_zarr.Nothing  # noqa: B018


def test_a_block_that_is_gone_is_no_key_that_is_not_there(tmp_path: Path) -> None:
    """Zarr takes a KeyError for "no such key", and would fill, or make a group anew."""
    with CASStore(tmp_path / "x.cas") as store:
        group = zarr.create_group(store=store)
        document = cpu.Buffer.from_bytes(b'{"zarr_format":3,"node_type":"group"}')
        for number in range(3000):  # so many that the root's entries lie in blocks of their own
            store.set_sync(f"g{number}/zarr.json", document)
        group.create_array("data", data=np.arange(8), chunks=(8,), compressors=None)
        store.commit("all")
    repo = Repository.open(tmp_path / "x.cas")
    root = repo.resolve("main").root
    blocks = MemoryBlocks()
    blocks.put(root, repo.blocks.get(root))  # and nothing else
    store = CASStore(CASMapping(blocks, root, read_only=True))
    with pytest.raises(StorageError, match="is not in"):
        store.get_sync("data/c/0")
    for question in (store.exists("data/c/0"), store.getsize("data/c/0"), store.is_empty("g7")):
        with pytest.raises(StorageError, match="is not in"):
            asyncio.run(question)
    with pytest.raises(StorageError, match="is not in"):
        zarr.open_array(store, path="data", mode="r")
