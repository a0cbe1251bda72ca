"""Blocks in object storage without a server, and how a place of objects is given."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import obstore
import pytest
from objects.suite import ObjectStoreSuite
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, MemoryStore, S3Store

from cas_zarr.blocks.objects import Objects, open_object_store
from cas_zarr.blocks.objectstore import ObjectStoreBlocks
from cas_zarr.cid import BLAKE3, RAW, cid_of, format_cid
from cas_zarr.errors import (
    CorruptBlockError,
    InvalidArgumentError,
    MissingDependencyError,
    StorageError,
)
from cas_zarr.testing.blocks import sample_blocks


class TestObjectsInMemory(ObjectStoreSuite):
    def make_store(self, folder: Path) -> ObjectStoreBlocks:  # noqa: ARG002
        self.objects = MemoryStore()
        return ObjectStoreBlocks(self.objects, "some/where")

    def reopen(self, folder: Path, *, read_only: bool = False) -> ObjectStoreBlocks:  # noqa: ARG002
        return ObjectStoreBlocks(self.objects, "some/where", read_only=read_only)


class TestObjectsInAFolder(ObjectStoreSuite):
    def make_store(self, folder: Path) -> ObjectStoreBlocks:
        return self.reopen(folder)

    def reopen(self, folder: Path, *, read_only: bool = False) -> ObjectStoreBlocks:
        return ObjectStoreBlocks(LocalStore(folder), read_only=read_only)


def test_the_layout_is_the_one_that_is_written_down() -> None:
    objects = MemoryStore()
    with ObjectStoreBlocks(objects, "/some/where/") as store:
        store.put(cid_of(RAW, BLAKE3, b"data"), b"data")
        store.flush()
    cid = "bafkr4ibiuje4fzgtvev4bilo3dy3lt4dziqecxxbfzicwclgesicxpexxu"
    names = [meta["path"] for meta in obstore.list(objects).collect()]
    assert names == [f"some/where/blocks/xu/{cid}"]


def test_many_objects_are_listed_in_little_memory() -> None:
    objects = MemoryStore()
    for number in range(20_000):
        text = format_cid(cid_of(RAW, BLAKE3, b"%d" % number))
        obstore.put(objects, f"blocks/{text[-2:]}/{text}", b"")
    store = ObjectStoreBlocks(objects)
    tracemalloc.start()
    try:
        count = sum(1 for _ in store.list())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 4 << 20  # all their entries at once take 20 MB


def test_what_is_on_its_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from cas_zarr.blocks import uploads

    monkeypatch.setattr(uploads, "_MOST_BYTES", 10_000)
    held: list[int] = []
    go_on = threading.Event()

    def send(key: bytes, data: bytes) -> None:  # noqa: ARG001
        go_on.wait(30)
        held.append(on_its_way._size)

    on_its_way = uploads.Uploads(send, parallel=4)
    threading.Timer(0.1, go_on.set).start()
    for number in range(100):
        on_its_way.add(b"%d" % number, bytes(3000))
    on_its_way.wait()
    assert len(held) == 100
    assert max(held) <= 10_000


def test_what_is_known_to_be_there_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from cas_zarr.blocks import objectstore

    monkeypatch.setattr(objectstore, "_MOST_KNOWN", 10)
    blocks = sample_blocks(100)
    store = ObjectStoreBlocks(MemoryStore())
    for _ in range(2):
        store.put_many(blocks.items())
        store.flush()
        assert len(store._known) + len(store._known_before) <= 20
    assert sorted(store.list()) == sorted(blocks)


# -- places -------------------------------------------------------------------------------------

_S3 = {"region": "us-east-1", "access_key_id": "AKIAKEY", "secret_access_key": "the-secret"}


@pytest.mark.parametrize(
    ("place", "prefix", "options", "location"),
    [
        ("s3://bucket", "", _S3, "s3://bucket"),
        ("s3://bucket/a/b/", "c", _S3, "s3://bucket/a/b/c"),
        (
            "s3://bucket/a",
            "",
            {**_S3, "endpoint": "http://user:the-secret@127.0.0.1:9000/"},
            "s3://bucket/a at http://127.0.0.1:9000",
        ),
        ("gs://bucket/a", "", {"anonymous": True}, "gs://bucket/a"),
        (
            "az://container/a",
            "",
            {"account_name": "me", "account_key": "dGhlLXNlY3JldA=="},
            "az://container/a",
        ),
        (S3Store("bucket", prefix="a", **_S3), "b", {}, "s3://bucket/a/b"),  # type: ignore[arg-type]
        (GCSStore("bucket", skip_signature=True), "", {}, "gs://bucket"),
        (
            AzureStore("container", account_name="me", skip_signature=True),
            "x",
            {},
            "az://container/x",
        ),
        (HTTPStore("https://user:the-secret@host/a"), "x", {}, "https://host/a/x"),
    ],
)
def test_a_place_is_told_without_secrets(
    place: Any, prefix: str, options: dict[str, Any], location: str
) -> None:
    objects = open_object_store(place, prefix, **options)
    assert objects.location == location
    store = ObjectStoreBlocks(objects)
    assert store.location == location
    assert "secret" not in repr(store) + repr(objects)
    assert ObjectStoreBlocks(objects, "more").location.startswith(location.partition(" at ")[0])


def test_a_place_in_memory_is_a_new_one_each_time() -> None:
    one, other = ObjectStoreBlocks("memory://"), ObjectStoreBlocks("memory://", "a/b")
    assert one.location.startswith("memory://obstore-")
    assert other.location.endswith("/a/b")
    one.put(cid_of(RAW, BLAKE3, b"data"), b"data")
    one.flush()
    assert list(other.list()) == []


def test_a_folder_is_a_place(tmp_path: Path) -> None:
    blocks = sample_blocks(3)
    with pytest.raises(StorageError, match="mkdir"):
        open_object_store(f"file://{tmp_path}/new")
    objects = open_object_store(f"file://{tmp_path}/new", mkdir=True)
    assert objects.location == f"file://{tmp_path}/new"
    with ObjectStoreBlocks(objects) as store:
        store.put_many(blocks.items())
        store.flush()
    with ObjectStoreBlocks(f"file://{tmp_path}/new") as store:
        assert sorted(store.list()) == sorted(blocks)
        store.delete_many([*blocks, cid_of(RAW, BLAKE3, b"missing")])
        assert list(store.list()) == []


@pytest.mark.parametrize(
    ("place", "options", "words"),
    [
        ("bucket/prefix", {}, "no url of object storage"),
        ("ftp://user:the-secret@host/x", {}, "ftp://host/x is no url"),
        ("memory://x", {}, "no path"),
        ("memory://", {"region": "x"}, "no options"),
        ("s3://bucket", {"secret_access_key": "the-secret", "colour": "red"}, "'colour' is no opt"),
        ("s3://bucket//a", {}, "s3://bucket//a cannot be opened"),
        ("az://container", {}, "account_name"),
        (MemoryStore(), {"region": "x"}, "region"),
        (object(), {}, "object is no store of obstore"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(
    place: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        open_object_store(place, **options)
    assert "the-secret" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["a//b", "../a", "a/./b", "a\nb"])
def test_a_prefix_that_makes_no_sense_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgumentError, match="prefix"):
        Objects(MemoryStore(), prefix)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "blocks").write_bytes(b"")  # a file where the folder of blocks should be
    cid = cid_of(RAW, BLAKE3, b"data")
    store = ObjectStoreBlocks(LocalStore(tmp_path))
    store.put(cid, b"data")
    with pytest.raises(StorageError, match=f"write .*{format_cid(cid)} in file://{tmp_path}: "):
        store.flush()


def test_a_damaged_object_in_a_folder_is_told(tmp_path: Path) -> None:
    cid = cid_of(RAW, BLAKE3, b"data")
    with ObjectStoreBlocks(LocalStore(tmp_path)) as store:
        store.put(cid, b"data")
        store.flush()
        (path,) = (tmp_path / "blocks").glob("*/*")
        path.write_bytes(b"dat")
        with pytest.raises(CorruptBlockError, match=f"{format_cid(cid)} in file://{tmp_path}"):
            store.get(cid)


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingDependencyError, match=r"cas-zarr\[s3\]"):
        open_object_store("s3://bucket")


def test_obstore_is_loaded_when_it_is_used() -> None:
    code = "import sys, cas_zarr, cas_zarr.blocks.objectstore; assert 'obstore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
