"""Blocks on real servers of S3."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest

from cas_zarr.blocks.objects import Objects, open_object_store
from cas_zarr.blocks.objectstore import ObjectStoreBlocks
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of, format_cid
from cas_zarr.errors import CasZarrError, CorruptBlockError, RemoteError, StorageError
from cas_zarr.testing.blocks import sample_blocks
from objects.servers import BUCKET, KEY, SECRET, Moto, S3Server, VersityGw
from objects.suite import ObjectStoreSuite


class _OnAServer(ObjectStoreSuite):
    server: S3Server

    def make_store(self, folder: Path) -> ObjectStoreBlocks:
        return self.reopen(folder)

    def reopen(self, folder: Path, *, read_only: bool = False) -> ObjectStoreBlocks:
        prefix = f"{folder.parent.name}/{folder.name}"
        return ObjectStoreBlocks(self.server.store(), prefix, read_only=read_only)


@pytest.mark.slow  # moto takes some milliseconds for a request
class TestBlocksOnMoto(_OnAServer):
    @pytest.fixture(autouse=True)
    def take_server(self, moto: Moto) -> None:
        self.server = moto


class TestBlocksOnVersityGw(_OnAServer):
    @pytest.fixture(autouse=True)
    def take_server(self, versitygw: VersityGw) -> None:
        self.server = versitygw


def _names(s3: S3Server, prefix: str) -> set[str]:
    return {meta["path"] for meta in obstore.list(s3.store(), prefix).collect()}


def _name(prefix: str, cid: CidBytes) -> str:
    text = format_cid(cid)
    return f"{prefix}/blocks/{text[-2:]}/{text}"


def _written(s3: S3Server, name: str) -> tuple[object, ...]:
    meta = obstore.head(s3.store(), name)
    return meta["e_tag"], meta["last_modified"], meta["version"]


def test_a_block_is_an_object_that_its_cid_names(s3: S3Server, prefix: str) -> None:
    blocks = sample_blocks(20)
    with ObjectStoreBlocks(s3.store(), prefix) as store:
        store.put_many(blocks.items())
        store.flush()
    assert _names(s3, prefix) == {_name(prefix, cid) for cid in blocks}
    for cid, data in blocks.items():
        assert bytes(obstore.get(s3.store(), _name(prefix, cid)).bytes()) == data


def test_clients_that_put_the_same_blocks_at_once_agree(s3: S3Server, prefix: str) -> None:
    blocks = sample_blocks(60, largest=20_000)
    big = sample_blocks(2, 1, largest=1 << 20)
    together = threading.Barrier(3)

    def write(seed: int) -> None:
        items = list((blocks | big).items())
        items = items[seed * 20 :] + items[: seed * 20]
        with ObjectStoreBlocks(s3.store(), prefix) as store:
            together.wait(30)
            store.put_many(items)
            store.flush()
            assert all(store.has_many([cid for cid, _ in items]))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    with ObjectStoreBlocks(s3.store(), prefix, read_only=True) as store:
        assert sorted(store.list()) == sorted(blocks | big)
        assert list(store.get_many(list(blocks))) == list(blocks.values())


def test_an_object_that_is_there_is_not_overwritten(s3: S3Server, prefix: str) -> None:
    for size in (100, 1 << 19):
        data = bytes(size)
        cid = cid_of(RAW, BLAKE3, data)
        with ObjectStoreBlocks(s3.store(), prefix) as store:
            store.put(cid, data)
            store.flush()
        before = _written(s3, _name(prefix, cid))
        with ObjectStoreBlocks(s3.store(), prefix) as other:
            other.put(cid, data[:-1] + b"x")  # wrong, and of the same size
            other.flush()
        assert _written(s3, _name(prefix, cid)) == before
        with ObjectStoreBlocks(s3.store(), prefix) as store:
            assert store.get(cid) == data


@pytest.mark.parametrize("size", [10, 1 << 19])
def test_a_block_that_is_damaged_there_is_told_and_can_be_put_anew(
    s3: S3Server, prefix: str, size: int
) -> None:
    data = bytes(size)
    cid = cid_of(RAW, BLAKE3, data)
    with ObjectStoreBlocks(s3.store(), prefix) as store:
        store.put(cid, data)
        store.flush()
        for damaged in (b"x" + data[1:], data[:-1], b"", bytes(3 << 20)):
            obstore.put(s3.store(), _name(prefix, cid), damaged)
            for read in (store.get, lambda cid: store.get_many([cid])):
                with pytest.raises(CorruptBlockError, match=f"{format_cid(cid)} in s3://{BUCKET}"):
                    read(cid)
            with pytest.raises(CorruptBlockError, match=format_cid(cid)):
                store.read_into(cid, memoryview(bytearray(size)))
            with pytest.raises(CorruptBlockError, match=format_cid(cid)):
                store.put(cid, data[:-1] + b"y")  # no better
            store.put(cid, data)
            store.flush()
            assert store.get(cid) == data


def test_an_object_of_another_size_is_no_block_for_who_looks_first(
    s3: S3Server, prefix: str
) -> None:
    data = bytes(1 << 19)
    cid = cid_of(RAW, BLAKE3, data)
    obstore.put(s3.store(), _name(prefix, cid), data[:1000])
    with ObjectStoreBlocks(s3.store(), prefix) as store:
        store.put(cid, data)
        store.flush()
        assert store.get(cid) == data


def test_many_are_deleted_at_once_and_can_be_put_again(s3: S3Server, prefix: str) -> None:
    blocks = sample_blocks(30)
    gone = list(blocks)[::2]
    missing = cid_of(RAW, BLAKE3, b"missing")
    with ObjectStoreBlocks(s3.store(), prefix) as store:
        store.put_many(blocks.items())
        store.flush()
        store.delete_many([*gone, missing])
        assert sorted(store.list()) == sorted(set(blocks) - set(gone))
        store.put_many((cid, blocks[cid]) for cid in gone)
        store.flush()
        assert sorted(store.list()) == sorted(blocks)


def test_what_lies_beside_the_blocks_is_none(s3: S3Server, prefix: str) -> None:
    blocks = sample_blocks(3)
    cid, data = next(iter(blocks.items()))
    text = format_cid(cid)
    with ObjectStoreBlocks(s3.store(), prefix) as store:
        store.put_many(blocks.items())
        store.flush()
        for name in ("refs/x", "blocks/README", f"blocks/{text}", f"blocks/zz/{text}", "blocksx/a"):
            obstore.put(s3.store(), f"{prefix}/{name}", data)
        assert sorted(store.list()) == sorted(blocks)


def test_a_store_is_pickled_without_what_is_on_its_way(s3: S3Server, prefix: str) -> None:
    blocks = sample_blocks(5)
    with ObjectStoreBlocks(s3.store(), prefix, read_only=False, parallel=3) as store:
        store.put_many(blocks.items())
        store.flush()
        with pickle.loads(pickle.dumps(store)) as again:
            assert again.location == store.location
            assert list(again.get_many(list(blocks))) == list(blocks.values())


_WRITES_AT_EXIT = """
import atexit, sys
from obstore.store import S3Store
from cas_zarr.blocks.objectstore import ObjectStoreBlocks
from cas_zarr.testing.blocks import sample_blocks
url, key, secret, prefix = sys.argv[1:]
store = ObjectStoreBlocks(S3Store("bucket", endpoint=url, region="us-east-1", access_key_id=key,
    secret_access_key=secret, client_options={"allow_http": True}), prefix)
def end():
    store.put_many(sample_blocks(50, 1).items())
    store.flush()
atexit.register(end)
store.put_many(sample_blocks(50, 0).items())
"""


def test_a_flush_at_the_exit_of_the_interpreter_writes_all(
    versitygw: VersityGw, prefix: str
) -> None:
    command = [sys.executable, "-c", _WRITES_AT_EXIT, versitygw.url, KEY, SECRET, prefix]
    subprocess.run(command, check=True, timeout=60)
    with ObjectStoreBlocks(versitygw.store(), prefix) as store:
        assert sorted(store.list()) == sorted(sample_blocks(50, 0) | sample_blocks(50, 1))


def test_a_forked_process_is_told_instead_of_hanging(
    versitygw: VersityGw, prefix: str, forked: Callable[[Callable[[], object]], int]
) -> None:
    cid = cid_of(RAW, BLAKE3, b"data")
    with ObjectStoreBlocks(versitygw.store(), prefix) as store:
        store.put(cid, b"data")
        store.flush()

        def child() -> None:
            with pytest.raises(StorageError, match="forked"):
                store.get(cid)

        assert forked(child) == 0
        assert store.get(cid) == b"data"


# -- errors -------------------------------------------------------------------------------------


def _refused(objects: Objects) -> list[CasZarrError]:
    """Return the errors of each kind of request."""
    cid = cid_of(RAW, BLAKE3, b"data")
    out = []

    def write(store: ObjectStoreBlocks) -> None:
        store.put(cid, b"data")
        store.flush()

    for ask in (
        lambda store: store.get(cid),
        lambda store: store.has(cid),
        lambda store: store.size(cid),
        lambda store: list(store.list()),
        lambda store: store.delete(cid),
        lambda store: store.has_many([cid, cid]),
        write,
    ):
        with ObjectStoreBlocks(objects) as store, pytest.raises(CasZarrError) as caught:
            ask(store)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert SECRET not in repr(store)
        out.append(caught.value)
    return out


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    objects = open_object_store("s3://no-such-bucket/some/where", **s3.options())
    for error in _refused(objects):
        assert type(error) is RemoteError
        assert "in s3://no-such-bucket/some/where at http://127.0.0.1" in str(error)
        assert "no such bucket" in str(error)


def test_credentials_that_are_refused_are_told(versitygw: VersityGw) -> None:
    place = f"s3://{BUCKET}/some/where"
    for changes in (
        {"secret_access_key": "another"},
        {"access_key_id": "AKIANOBODY"},
        {"anonymous": True, "access_key_id": None, "secret_access_key": None},
    ):
        objects = open_object_store(place, **versitygw.options(**changes))
        for error in _refused(objects):
            assert type(error) is RemoteError
            assert f"in {place} at http://127.0.0.1" in str(error)
            assert "denied" in str(error)
            assert "credentials" in str(error)
            assert "AKIANOBODY" not in str(error)


def test_credentials_that_are_nowhere_are_told(
    versitygw: VersityGw, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    options = versitygw.options(
        access_key_id=None,
        secret_access_key=None,
        metadata_endpoint="http://127.0.0.1:9",  # where a machine of AWS asks for its own
        retry_config={"max_retries": 0},
    )
    for error in _refused(open_object_store(f"s3://{BUCKET}", **options)):
        assert "no credentials were found" in str(error)
        assert "anonymous=True" in str(error)


def test_a_server_that_is_away_is_told(versitygw: VersityGw) -> None:
    from datetime import timedelta

    quick = {"max_retries": 1, "backoff": {"max_backoff": timedelta(milliseconds=10)}}
    options = versitygw.options(endpoint="http://127.0.0.1:9", retry_config=quick)
    for error in _refused(open_object_store(f"s3://{BUCKET}", **options)):
        assert type(error) is RemoteError
        assert "cannot be reached (connection refused)" in str(error)
        assert f"s3://{BUCKET} at http://127.0.0.1:9" in str(error)


def test_http_has_to_be_allowed_where_a_store_was_made_without(versitygw: VersityGw) -> None:
    from obstore.store import S3Store

    for error in _refused(Objects(S3Store(BUCKET, **versitygw.options()))):
        assert "allow_http" in str(error)
