"""Repositories in a bucket, on real servers: opened, written by many, killed, exchanged."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import zarr
from repository.syncing import commit, contents

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.cache import CacheBlocks
from cas_zarr.blocks.objects import Objects
from cas_zarr.cid import BLAKE3, RAW, cid_of, format_cid
from cas_zarr.errors import (
    ConflictError,
    InvalidArgumentError,
    ReadOnlyError,
    RemoteError,
    RepositoryNotFoundError,
)
from cas_zarr.repository.bucket import BucketRefs
from cas_zarr.repository.faraway import Sources
from cas_zarr.repository.history import ancestors
from objects.faults import Faults
from objects.servers import BUCKET, KEY, SECRET, S3Server, VersityGw

ARRAY = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [1000],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}],
    "attributes": {},
}


@pytest.fixture
def url(prefix: str) -> str:
    return f"s3://{BUCKET}/{prefix}/weather"


def _opened(server: S3Server, url: str, endpoint: str = "", **options: Any) -> Repository:
    storage = server.options(endpoint=endpoint or server.url)
    return Repository.open(url, storage_options=storage, **options)


def _array(count: int = 10, seed: int = 0) -> dict[str, bytes]:
    chunks = {f"a/c/{number}": bytes([seed, *number.to_bytes(2, "big")]) for number in range(count)}
    return {"a/zarr.json": json.dumps(ARRAY).encode(), **chunks}


# -- opening ------------------------------------------------------------------------------------


def test_zarr_writes_and_reads_in_a_bucket(s3: S3Server, url: str) -> None:
    data = np.arange(100 * 90, dtype="i4").reshape(100, 90)
    with _opened(s3, url, create=True, author="Ada") as repo:
        assert repo.location == url
        store = CASStore(repo)
        group = zarr.open_group(store=store, mode="a")
        array = group.create_array("t", shape=data.shape, chunks=(10, 10), dtype="i4")
        array[:] = data
        array[:50] = 7
        first = store.commit("half")
        array[:] = data
        store.flush()
    with _opened(s3, url, read_only=True) as again:
        assert np.array_equal(
            zarr.open_array(CASStore(again, read_only=True), path="t", mode="r")[:], data
        )
        old = zarr.open_array(CASStore(again, version=str(first)), path="t", mode="r")
        assert np.array_equal(old[:50], np.full((50, 90), 7))
        assert np.array_equal(old[50:], data[50:])
        assert [entry.commit.author for entry in again.log()] == ["Ada"]
        with pytest.raises(ReadOnlyError):
            again.session()


def test_a_prefix_without_a_marker_is_no_repository_and_can_become_one(
    s3: S3Server, url: str
) -> None:
    path = url.removeprefix(f"s3://{BUCKET}/")
    obstore.put(s3.store(), f"{path}/notes.txt", b"of someone else")
    obstore.put(s3.store(), f"{path}x/cas-zarr.json", b"of a neighbour")
    for options in ({}, {"read_only": True}):
        with pytest.raises(RepositoryNotFoundError, match=f"no repository at {url}"):
            _opened(s3, url, **options)
    with _opened(s3, url, create=True, hash="sha2-256") as repo:
        commit(repo, _array())
        assert repo.hash == "sha2-256"
    with _opened(s3, f"{url}/") as again:  # made once
        assert again.hash == "sha2-256"
        assert contents(again) == _array()
    with pytest.raises(InvalidArgumentError, match="uses sha2-256, not blake3"):
        _opened(s3, url, hash="blake3")
    assert bytes(obstore.get(s3.store(), f"{path}/notes.txt").bytes()) == b"of someone else"


def test_a_repository_is_made_by_the_first_write(s3: S3Server, url: str) -> None:
    repo = Repository.prepare(url, storage_options=s3.options())
    other = Repository.prepare(url, storage_options=s3.options(), hash="sha2-256")
    session, late = repo.session(), other.session()
    assert not repo.exists
    session.prepare().set_value("zarr.json", b"{}")
    session.commit("first")
    assert repo.exists
    with pytest.raises(InvalidArgumentError, match="uses blake3"):
        late.prepare()


def test_places_that_cannot_be_opened_are_told(s3: S3Server, url: str) -> None:
    with pytest.raises(RemoteError, match="no such bucket") as caught:
        _opened(s3, "s3://no-such-bucket/x")
    with pytest.raises(InvalidArgumentError, match="'nonsense' is no option"):
        Repository.open(url, storage_options=s3.options(nonsense=1))
    with pytest.raises(InvalidArgumentError, match="storage_options are a mapping"):
        Repository.open(url, storage_options="us-east-1")  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)
    options = s3.options(timeout="9s", connect_timeout="9s", allow_http=True, user_agent="me")
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(url, storage_options=options)


def test_a_store_of_obstore_is_a_place(s3: S3Server, prefix: str) -> None:
    store = s3.store(prefix=f"{prefix}/inner")
    with Repository.open(store, create=True) as repo:
        assert repo.location == f"s3://{BUCKET}/{prefix}/inner"
        commit(repo, _array(), "one")
        sources = pickle.loads(pickle.dumps(repo.sources))
    with _opened(s3, f"s3://{BUCKET}/{prefix}/inner") as by_url:
        assert contents(by_url) == _array()
    with Repository.open_from(repo.location, sources, read_only=False) as again:
        assert contents(again) == _array()
        commit(again, {"a/c/0": b"new"}, "two")
    with Repository.open_from(repo.location, repo.sources) as reader:
        assert [entry.commit.message for entry in reader.log()] == ["two", "one"]
    with pytest.raises(InvalidArgumentError, match="is no store of obstore"):
        Repository.open(5)  # type: ignore[arg-type]


def test_what_is_told_holds_no_credentials(versitygw: VersityGw, url: str) -> None:
    with _opened(versitygw, url, create=True) as repo:
        commit(repo, _array())
        for shown in (repr(repo), repr(repo.sources), repr(repo.blocks), str(CASStore(repo))):
            assert SECRET not in shown
            assert KEY not in shown
    objects = Objects(versitygw.store())
    for name, _ in list(objects.list(url.removeprefix(f"s3://{BUCKET}/"))):
        data = bytes(objects.get(name, limit=1 << 21) or b"")
        assert SECRET.encode() not in data
        assert KEY.encode() not in data


def test_a_public_bucket_that_may_not_be_listed_can_be_read(
    versitygw: VersityGw, faults: Faults, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _opened(versitygw, url, create=True) as repo:
        commit(repo, _array())
    real = faults.begun

    def begun(handler: Any, size: int) -> str:
        return "denied" if "list-type" in handler.path else real(handler, size)

    monkeypatch.setattr(faults, "begun", begun)
    with _opened(versitygw, url, faults.url, read_only=True) as reader:
        assert contents(reader) == _array()
        with pytest.raises(RemoteError, match="denied"):
            reader.branches()
    with pytest.raises(RemoteError, match="denied"):
        _opened(versitygw, url, faults.url)


# -- round trips --------------------------------------------------------------------------------


def test_a_dataset_of_a_million_chunks_opens_and_gives_one_in_four_round_trips(
    versitygw: VersityGw, faults: Faults, url: str, tmp_path: Path
) -> None:
    side = 100
    value = np.array([7], "<i4").tobytes()
    cid = cid_of(RAW, BLAKE3, value)
    coordinates = np.stack(np.indices((side, side, side)), -1).reshape(-1, 3)
    cids = np.tile(np.frombuffer(cid, np.uint8), (len(coordinates), 1))
    cids[:, 4:12] = np.arange(len(coordinates), dtype="<u8").view(np.uint8).reshape(-1, 8)
    cids[333_333] = np.frombuffer(cid, np.uint8)  # the chunk that is read is there
    with _opened(versitygw, url, create=True) as repo:
        store = CASStore(repo)
        zarr.create_array(
            store, name="t", shape=(side,) * 3, chunks=(1, 1, 1), dtype="i4", compressors=None
        )
        store.mapping.blocks.put(cid, value)
        sizes = np.full(len(cids), len(value), np.uint64)
        store.mapping.set_links("t", coordinates, cids, sizes)
        store.flush()
    faults.taken()
    faults.latency = 0.3
    options = versitygw.options(endpoint=faults.url)
    with CASStore(url, storage_options=options, read_only=True, cache=tmp_path / "cache") as store:
        assert faults.busiest == 4
        array = zarr.open_array(store, path="t", mode="r")
        assert array[33, 33, 33] == 7
        first, rest = (requests := faults.taken())[:4], requests[4:]
        told = {request.path.rpartition("/weather/")[2] for request in first}
        assert {"cas-zarr.json", "refs/heads/main.ref", "refs/heads/main.root"} < told
        # After all that at once: two pages, and the chunk.
        assert [request.method for request in rest] == ["GET"] * 3
        assert store.session.repository is not None
        store.session.repository.close()
    with CASStore(url, storage_options=options, read_only=True, cache=tmp_path / "cache") as store:
        assert zarr.open_array(store, path="t", mode="r")[33, 33, 33] == 7
        assert len(faults.taken()) == 4  # the branch; all else is in the cache
        assert store.session.repository is not None
        store.session.repository.close()


def test_a_root_beside_a_branch_is_a_hint(versitygw: VersityGw, url: str) -> None:
    """It is taken for what its bytes are: an old, a false or a missing one costs a round trip."""
    with _opened(versitygw, url, create=True) as repo:
        commit(repo, _array(3))
        assert isinstance(repo.refs, BucketRefs)
        objects = repo.refs.objects
        name = "refs/heads/main.root"
        old = objects.get(name, limit=1 << 20)
        assert old is not None
        assert old == repo.blocks.get(repo.resolve("main").root)
        commit(repo, _array(4))
    for hint in (old, b"{}", b"no document", None):
        if hint is None:
            objects.delete([name])
        else:
            objects.replace(name, bytes(hint))
        with _opened(versitygw, url, read_only=True) as repo:
            assert contents(repo) == _array(4)


def test_a_commit_of_a_chunk_takes_few_requests(
    versitygw: VersityGw, faults: Faults, url: str
) -> None:
    with _opened(versitygw, url, faults.url, create=True) as repo:
        commit(repo, _array(900))
        session = repo.session()
        session.prepare().set_value("a/c/5", b"new")
        faults.taken()
        session.commit("one chunk")
    requests = faults.taken()
    # The chunk, a page, the root and the commit; a look at the branch, two at the record of
    # collections, at the second one the root for the branch's next reader; the log and the branch.
    assert len([one for one in requests if "/blocks/" in one.path]) == 4
    assert len(requests) <= 10
    assert [one.path.rpartition("/refs/")[2][:4] for one in requests][-2:] == ["log/", "head"]


def test_a_long_read_keeps_the_network_busy(versitygw: VersityGw, faults: Faults, url: str) -> None:
    data = np.arange(400 * 10).reshape(400, 10)
    with _opened(versitygw, url, create=True) as repo:
        store = CASStore(repo)
        array = zarr.create_array(store, name="t", shape=(400, 10), chunks=(1, 10), dtype="i8")
        array[:] = data
        store.commit("all")
    faults.latency = 0.05
    with _opened(versitygw, url, faults.url, read_only=True) as repo:
        array = zarr.open_array(CASStore(repo, read_only=True), path="t", mode="r")
        assert np.array_equal(array[:], data)
        assert faults.busiest > 16  # zarr asks for ten at once
        blocks = [one.path for one in faults.taken() if "/blocks/" in one.path]
        assert len(blocks) == len(set(blocks))
    with _opened(versitygw, url, faults.url, read_only=True) as repo:
        store = CASStore(repo, read_only=True)
        assert store.prefetch("t").complete
        faults.taken()
        assert np.array_equal(zarr.open_array(store, path="t", mode="r")[:], data)
        assert faults.taken() == []


# -- many writers -------------------------------------------------------------------------------


def _race(clients: list[Repository], times: int) -> None:
    """Let each client commit chunks of its own, all at once."""

    def write(number: int) -> None:
        for turn in range(times):
            session = clients[number].session()
            session.prepare().set_value(f"a/c/{number * times + turn}", bytes([number, turn]))
            session.commit(f"{number}/{turn}")

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(write, range(len(clients))))


def _check_race(repo: Repository, clients: int, times: int) -> None:
    messages = [entry.commit.message for entry in repo.log()]
    assert messages.pop() == "begin"
    expected = [f"{number}/{turn}" for number in range(clients) for turn in range(times)]
    assert sorted(messages) == sorted(expected)
    chunks = {
        f"a/c/{number * times + turn}": bytes([number, turn])
        for number in range(clients)
        for turn in range(times)
    }
    assert contents(repo) == {**_array(0), **chunks}
    assert repo.verify(data=True).ok
    told = [move.why.removeprefix("commit: ") for move in repo.reflog("main")]
    assert sorted(told) == sorted([*expected, "begin"])


def test_two_clients_of_one_branch_lose_nocommit(s3: S3Server, url: str) -> None:
    with _opened(s3, url, create=True) as repo:
        commit(repo, _array(0), "begin")
        _race([_opened(s3, url) for _ in range(2)], 5)
        _check_race(repo, 2, 5)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_many_commits_of_two_clients_through_a_bad_network(
    versitygw: VersityGw, faults: Faults, url: str, share: float
) -> None:
    with _opened(versitygw, url, create=True) as repo:
        commit(repo, _array(0), "begin")
        faults.at_random(share, 3)
        _race([_opened(versitygw, url, faults.url) for _ in range(2)], 25)
        _check_race(repo, 2, 25)


def test_what_both_changed_is_a_conflict_and_nothing_is_lost(s3: S3Server, url: str) -> None:
    with _opened(s3, url, create=True) as repo, _opened(s3, url) as other:
        commit(repo, _array(), "begin")
        one, two = repo.session(), other.session()
        one.prepare().set_value("a/c/0", b"one")
        two.prepare().set_value("a/c/0", b"two")
        one.commit("one")
        with pytest.raises(ConflictError, match="conflicts/main/") as caught:
            two.commit("two")
        (name,) = repo.refs.all_kept()
        assert name in str(caught.value)
        assert contents(repo)["a/c/0"] == b"one"
        assert contents(repo, name)["a/c/0"] == b"two"
        two.discard()
        other.refs.forget(name)
        assert repo.refs.all_kept() == []


# -- writers that are killed ----------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from cas_zarr import Repository
from cas_zarr.blocks.objects import Objects
url, endpoint, key, secret, at = sys.argv[1:]
repo = Repository.open(url, storage_options={"endpoint": endpoint, "region": "us-east-1",
    "access_key_id": key, "secret_access_key": secret})
session = repo.session()
count = 0
for name in ("create", "swap", "replace", "delete"):
    def call(objects, *args, real=getattr(Objects, name), **options):
        global count
        count += 1
        if count == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(objects, *args, **options)
    setattr(Objects, name, call)
for number in range(5):
    session.prepare().set_value(f"a/c/{number}", b"killed" + bytes([number]))
session.commit("killed")
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_what_was_there(versitygw: VersityGw, url: str) -> None:
    with _opened(versitygw, url, create=True) as repo:
        before = commit(repo, _array(), "begin")
        at = 0
        while True:
            at += 1
            command = [sys.executable, "-c", _KILLED, url, versitygw.url, KEY, SECRET, str(at)]
            ended = subprocess.run(command, timeout=60, check=False).returncode
            record = repo.refs.branch("main")
            assert record is not None
            assert repo.verify(data=True).ok
            assert contents(repo, before) == _array()
            if ended == 0:
                break
            assert record.commit == before
            assert contents(repo) == _array()
        assert at > 8  # blocks, the line of the log, and the branch
        assert record.commit != before
        assert contents(repo)["a/c/4"] == b"killed\4"
        assert [entry.commit.message for entry in repo.log()] == ["killed", "begin"]


_LEFT = """
import sys
import numpy, zarr
from cas_zarr import CASStore, Repository
url, endpoint, key, secret = sys.argv[1:]
options = {"endpoint": endpoint, "region": "us-east-1", "access_key_id": key,
    "secret_access_key": secret}
store = CASStore(Repository.prepare(url, storage_options=options))
array = zarr.create_array(store, name="t", shape=(50, 10), chunks=(1, 10), dtype="i8")
array[:] = numpy.arange(500).reshape(50, 10)
"""


def test_what_is_left_is_flushed_at_the_exit_of_the_interpreter(
    versitygw: VersityGw, url: str
) -> None:
    command = [sys.executable, "-c", _LEFT, url, versitygw.url, KEY, SECRET]
    subprocess.run(command, timeout=60, check=True)
    with _opened(versitygw, url, read_only=True) as repo:
        array = zarr.open_array(CASStore(repo, read_only=True), path="t", mode="r")
        assert np.array_equal(array[:], np.arange(500).reshape(50, 10))


# -- all that is done with versions ---------------------------------------------------------------


def _history(repo: Repository) -> None:
    """Make branches that went apart, a tag, and a merge."""
    commit(repo, _array(40), "begin")
    repo.create_branch("side/a")
    commit(repo, {"a/c/1": b"of the side"}, "side", "side/a")
    commit(repo, {"a/c/2": b"of main", "a/c/39": None}, "main")
    repo.merge("side/a", message="united")
    repo.create_tag("v1.0")


def _all(repo: Repository) -> dict[str, Any]:
    return {
        "branches": {name: record.commit for name, record in repo.branches().items()},
        "tags": repo.tags(),
        "main": contents(repo),
        "old": contents(repo, "main~1"),
        "history": list(ancestors(repo, "main")),
    }


def test_verbs_work_in_a_bucket_as_in_a_folder(s3: S3Server, url: str, tmp_path: Path) -> None:
    with _opened(s3, url, create=True) as repo, Repository.open(tmp_path / "x", create=True) as own:
        for one in (repo, own):
            _history(one)
        assert contents(repo) == contents(own)
        assert [entry.commit.message for entry in repo.log()] == [
            entry.commit.message for entry in own.log()
        ]
        for versions in (("main~1", "main"), ("side/a", "v1.0")):
            assert [change.path for change in repo.diff(*versions)] == [
                change.path for change in own.diff(*versions)
            ]
        repo.rename_branch("side/a", "aside")
        repo.create_branch("side2", "v1.0")
        repo.reset("side2", "main~1")
        repo.delete_branch("side2")
        assert list(repo.branches()) == ["aside", "main"]
        repo.delete_tag("v1.0")
        assert repo.tags() == {}
        assert [move.name for move in repo.reflog()][-4:] == ["side2", "side2", "side2", "v1.0"]
        assert repo.verify(data=True).ok
        assert repo.gc().unused_blocks == 0
        assert contents(repo) == contents(own)


def test_a_bucket_and_folders_are_cloned_into_each_other(
    s3: S3Server, url: str, tmp_path: Path
) -> None:
    options = s3.options()
    with Repository.open(tmp_path / "own.cas", create=True) as own:
        _history(own)
        told = _all(own)
        with Repository.clone(own, url, storage_options=options) as repo:
            assert _all(repo) == told
            assert repo.remotes() == {"origin": own.location}
            assert repo.verify(data=True).ok
    with Repository.clone(url, tmp_path / "back.cas", storage_options=options) as back:
        assert _all(back) == told
        assert back.remotes() == {"origin": url}
        # The options stay with the object, not with the repository.
        commit(back, {"a/c/7": b"from the folder"}, "onward")
        report = back.push()
        assert report.commits == 1
        commit(back, {"a/c/8": b"again"}, "onward")
        with _opened(s3, url) as repo:
            assert contents(repo)["a/c/7"] == b"from the folder"
            commit(repo, {"a/c/9": b"from the bucket"}, "there")
            with pytest.raises(ConflictError, match="pull first"):
                back.push()
        back.pull()
        assert contents(back)["a/c/9"] == b"from the bucket"
        back.push()
    with _opened(s3, url) as repo:
        assert contents(repo)["a/c/8"] == b"again"
        assert repo.verify(data=True).ok
    with Repository.clone(url, f"{url}-copy", storage_options=options) as copy:
        assert contents(copy)["a/c/8"] == b"again"


def test_clones_of_parts_stand_on_buckets_and_in_them(
    s3: S3Server, url: str, tmp_path: Path
) -> None:
    options = s3.options()
    with _opened(s3, url, create=True) as repo:
        commit(repo, _array(40), "begin")
    with Repository.clone(url, tmp_path / "x", paths="a[0:5]", storage_options=options) as part:
        assert contents(part) == _array(40)  # the rest comes from the bucket
    with (
        Repository.open(tmp_path / "x", storage_options=options) as part,
        Repository.clone(part, f"{url}-part", paths="a[0:3]", storage_options=options) as two,
    ):
        assert part.at("main")["a/c/30"] == bytes([0, 0, 30])
        assert two.at("main")["a/c/2"] == bytes([0, 0, 2])
        assert two.blocks.remote
        assert two.fetch_paths("a[20:22]").blocks > 0


# -- damage ---------------------------------------------------------------------------------------


def test_damage_in_the_bucket_is_found_behind_a_cache_and_repaired(
    s3: S3Server, url: str, tmp_path: Path
) -> None:
    options = s3.options()
    cache = tmp_path / "cache"
    with Repository.open(url, create=True, storage_options=options, cache=cache) as repo:
        commit(repo, _array(), "begin")
        assert contents(repo) == _array()
        whole = Repository.clone(repo, tmp_path / "whole")
        names = [
            name
            for name, size in Objects(s3.store()).list(url.removeprefix(f"s3://{BUCKET}/"))
            if "/blocks/" in name and size == 3
        ]
        obstore.put(s3.store(), names[3], b"xxx")
        obstore.delete(s3.store(), [names[4]])
        assert contents(repo) == _array()  # from the cache
        report = repo.verify(data=True)
        assert not report.ok
        found = {format_cid(one.cid) for one in report.damaged if one.cid is not None}
        assert found == {name.rpartition("/")[2] for name in names[3:5]}
        repo.repair(whole)
        assert repo.verify(data=True).ok
        assert bytes(obstore.get(s3.store(), names[3]).bytes()) != b"xxx"
        marker = f"{url.removeprefix(f's3://{BUCKET}/')}/cas-zarr.json"
        data = bytes(obstore.get(s3.store(), marker).bytes())
        for damaged in (data.replace(b"}", b" }"), data.replace(b"3", b"4")):
            obstore.put(s3.store(), marker, damaged)
            assert [one.kind for one in repo.verify().damaged] == ["marker"]
        obstore.delete(s3.store(), [marker])
        assert [one.kind for one in repo.verify().damaged] == ["marker"]
        whole.close()


def test_a_cache_that_is_damaged_or_full_costs_requests_and_nothing_else(
    versitygw: VersityGw, faults: Faults, url: str, tmp_path: Path
) -> None:
    values = {f"a/c/{number}": bytes([number]) * 30_000 for number in range(60)}
    with _opened(versitygw, url, create=True) as repo:
        commit(repo, _array(0) | values, "begin")
    cache = (tmp_path / "cache", 1 << 20)
    for _ in range(3):
        with _opened(versitygw, url, faults.url, cache=cache, read_only=True) as reader:
            assert contents(reader) == _array(0) | values
        assert sum(file.stat().st_size for file in cache[0].iterdir()) < 2 << 20
        for pack in cache[0].glob("*.car"):
            data = bytearray(pack.read_bytes())
            data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
            pack.write_bytes(data)
    assert isinstance(reader.blocks.tier.local, CacheBlocks)  # type: ignore[attr-defined]


def test_sources_are_those_of_a_neighbour() -> None:
    sources = Sources.of(storage_options={"region": "us-east-1", "anonymous": True})
    assert sources.passing().storage_options == {"region": "us-east-1", "anonymous": True}
    assert "us-east-1" not in repr(sources)
    objects = sources.objects("s3://bucket/x")
    assert objects.url == "s3://bucket/x"
