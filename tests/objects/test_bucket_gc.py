"""Collections in a bucket: beside writers, killed, two at once, on real servers.

Most run on obstore's store in memory, which honours conditions: there every request of one client
can be the moment at which another one does all of its work.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import obstore
import pytest
from repository.collecting import NONE, content, make, used, value, write

from cas_zarr.blocks import objectmarks
from cas_zarr.blocks.collectable import CollectableBlocks
from cas_zarr.blocks.lease import Lease
from cas_zarr.blocks.objectnames import PLACES, cid_at, folders_of, keys_at, name_in
from cas_zarr.blocks.objects import Objects
from cas_zarr.blocks.objectstore import ObjectStoreBlocks
from cas_zarr.cid import BLAKE3, RAW, SHA256, CidBytes, cid_of, make_cid
from cas_zarr.errors import ConflictError, StorageError
from cas_zarr.repository.bucket import BucketRefs
from cas_zarr.repository.gc import GCReport, collect
from cas_zarr.repository.refs import GuardError
from cas_zarr.repository.repository import Repository
from cas_zarr.testing import CollectableBlocksSuite
from objects.faults import Faults
from objects.servers import BUCKET, S3Server, VersityGw

DAY = timedelta(days=1)
LOST = {i: 2000 + i for i in range(30)}  # what `make` wrote on a branch that is gone


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no collection wait for requests of those who died: here they are over."""
    monkeypatch.setattr(BucketRefs, "settling", 0.0)


class TestCollectableBlocks(CollectableBlocksSuite):
    def make_store(self, folder: Any) -> CollectableBlocks:  # noqa: ARG002
        return ObjectStoreBlocks(obstore.store.MemoryStore())

    def test_what_was_not_flushed_is_not_condemned(self, collectable: CollectableBlocks) -> None:
        """It may be in a bucket: it is held anew when it is put, and whoever needs it puts it."""
        data = b"not flushed yet"
        cid = cid_of(RAW, BLAKE3, data)
        collectable.put(cid, data)
        marks = collectable.survey()
        condemned = collectable.write_list(marks.condemn(0) or b"")
        collectable.avoid([condemned], 1)
        collectable.put(cid, data)
        collectable.flush()
        assert collectable.survey().sweep(condemned).blocks == 1
        assert collectable.get(cid) == data


class TestLease:
    def test_one_at_a_time(self) -> None:
        objects = Objects(obstore.store.MemoryStore())
        with Lease(objects, "lease", "collection") as first:
            with (
                pytest.raises(ConflictError, match="another collection is under way"),
                Lease(objects, "lease", "collection"),
            ):
                pass
            first.renew(within=0)
        with Lease(objects, "lease", "collection"):
            pass

    def test_one_that_was_left_is_taken_over_and_its_holder_told(self) -> None:
        objects = Objects(obstore.store.MemoryStore())
        with Lease(objects, "lease", "collection") as first:
            _let_lease_end(objects, "lease")
            with (
                Lease(objects, "lease", "collection"),
                pytest.raises(ConflictError, match="has taken over"),
            ):
                first.renew(within=0)
            assert objects.read("lease", limit=100) is not None

    @pytest.mark.parametrize("data", [b"{", b"[]", b'{"holder":1}', b"\xff"])
    def test_one_that_is_damaged_is_free(self, data: bytes) -> None:
        objects = Objects(obstore.store.MemoryStore())
        objects.replace("lease", data)
        with Lease(objects, "lease", "collection"):
            pass


def _let_lease_end(objects: Objects, name: str = "collecting.json") -> None:
    found = objects.read(name, limit=4096)
    if found is not None and found[0]:
        held = json.loads(found[0])
        objects.replace(name, json.dumps(held | {"time": held["time"] - 4000}).encode())


def test_names_are_those_of_cids() -> None:
    keys = [f.code_and_size + f.digest(bytes([n])) for n in range(200) for f in _functions()]
    names = [name_in(place, key) for place in PLACES for key in keys]
    found, flags = keys_at(names)
    assert flags.all()
    assert [bytes(key) for key in found] == keys * 2
    assert all(name.rpartition("/")[0] in folders_of(name.partition("/")[0]) for name in names)
    cid = cid_at(names[0])
    assert cid is not None
    assert cid[-34:] == keys[0]
    good = names[0]
    bad = [good[:-1], good + "a", good.upper(), good[:-2] + "é" + good[-1], "blocks/aa/x", ""]
    bad += [good[:-59] + "c" + good[-58:], good[:-59] + "b" + "a" * 58]
    found, flags = keys_at([*bad, good])
    assert flags.tolist() == [False] * len(bad) + [True]
    assert cid_at("other/" + good.partition("/")[2]) is None


class _Function:
    def __init__(self, function: Any) -> None:
        self.code_and_size = bytes(make_cid(RAW, function, b""))[2:]
        self.digest = function.digest


def _functions() -> list[_Function]:
    return [_Function(BLAKE3), _Function(SHA256)]


# -- one client at every request of another --------------------------------------------------------


@contextmanager
def _at_request(
    of: Repository, number: int, act: Callable[[], Any], *, but: str = "nothing"
) -> Iterator[list[int]]:
    """Let something happen before the n-th request of a repository; give how many there were.

    Requests to do what `but` says do not count.
    """
    objects = {id(of.refs.objects), id(of.blocks.behind.objects)}  # type: ignore[attr-defined]
    count = [0]
    lock = threading.Lock()
    real = Objects._do

    def do(self: Objects, doing: str, call: Callable[[], Any]) -> Any:
        if id(self) in objects and not doing.startswith(but):
            with lock:
                count[0] += 1
                now = count[0] == number
            if now:
                act()
        return real(self, doing, call)

    Objects._do = do  # type: ignore[method-assign, assignment]
    try:
        yield count
    finally:
        Objects._do = real  # type: ignore[method-assign]


def _collect(repo: Repository, grace: timedelta = NONE) -> GCReport:
    return collect(repo, grace=grace, log_age=NONE)


def _condemn(repo: Repository) -> None:
    _collect(repo, DAY)


def _sweep(repo: Repository) -> None:
    """Delete what is condemned, and condemn what is not used now."""
    later = collect(repo, log_age=NONE, clock=lambda: 2**51)
    assert later.deleted_blocks or not later.condemned_blocks or later.until is not None


def _check(place: Any, expected: dict[str, bytes]) -> None:
    """Look at all that the branches lead to, with a client that has seen nothing."""
    with Repository.open(place, read_only=True, cache=False) as repo:
        held = {cid[-34:] for cid in repo.blocks.list()}
        for branch in repo.branches():
            for cid in used(repo):
                assert cid[-34:] in held
            content(repo, branch)
        now = content(repo)
    assert {key: now.get(key) for key in expected} == expected


def _rely(place: Any) -> None:
    """Write what was garbage, and commit it; write it again where it was deleted meanwhile."""
    with Repository.open(place, cache=False) as repo:
        _write_lost(repo)


def _write_lost(repo: Repository) -> None:
    for _ in range(3):
        with suppress(StorageError):  # "older than the grace time of a collection"
            write(repo, "main", LOST, "again")
            return
    raise AssertionError("a session was refused three times")


def _write_beside(repo: Repository, branch: str, seeds: dict[int, int]) -> None:
    repo.create_branch(branch, "main")
    write(repo, branch, seeds, branch)


EXPECTED = {f"a/c/{chunk}": value(seed) for chunk, seed in LOST.items()}
STEPS = {
    "condemn": (_condemn,),
    "sweep": (_sweep,),
    "condemn and sweep": (_condemn, _sweep),
    "all at once": (_collect,),
}


def _take(steps: str, repo: Repository) -> None:
    for step in STEPS[steps]:
        step(repo)


@pytest.mark.slow
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("condemned", [False, True])
def test_a_collection_at_any_request_of_a_writer(steps: str, condemned: bool) -> None:
    number = total = 1
    while number <= total:
        place = obstore.store.MemoryStore()
        make(place).close()
        with Repository.open(place, cache=False) as other:
            if condemned:
                _condemn(other)
            act = partial(_take, steps, other)
            with Repository.open(place, cache=False) as repo:
                with _at_request(repo, number, act) as count:
                    _write_lost(repo)
                total = count[0]
        _check(place, EXPECTED)
        number += 1
    assert total > 20


@pytest.mark.slow
@pytest.mark.parametrize("condemned", [False, True])
def test_a_writer_at_any_request_of_a_collection(condemned: bool) -> None:
    number = total = 1
    while number <= total:
        place = obstore.store.MemoryStore()
        make(place).close()
        with Repository.open(place, cache=False) as repo:
            if condemned:
                _condemn(repo)
            act = _sweep if condemned else _collect
            with _at_request(repo, number, lambda place=place: _rely(place)) as count:
                act(repo)
            total = count[0]
        _check(place, EXPECTED)
        with Repository.open(place, cache=False) as repo:
            _collect(repo)
        _check(place, EXPECTED)
        number += 1
    assert total > 20


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["condemn and sweep", "all at once"])
def test_a_collection_at_any_request_of_who_makes_a_branch(steps: str) -> None:
    """Of a commit that nothing leads to any more: it is there, and whole, or is refused."""
    number = total = 1
    while number <= total:
        place = obstore.store.MemoryStore()
        repo = make(place)
        lost = next(move.old for move in repo.refs.log() if move.new is None)
        assert lost.commit is not None
        with Repository.open(place, cache=False) as other:
            act = partial(_take, steps, other)
            with _at_request(repo, number, act) as count, suppress(StorageError, GuardError):
                repo.create_branch("back", lost.commit)
            total = count[0]
        repo.close()
        _check(place, {})
        number += 1
    assert total > 5


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.slow
@pytest.mark.parametrize("condemned", [False, True])
def test_a_collection_that_was_killed_is_ended_by_the_next(condemned: bool) -> None:
    def die() -> None:
        raise Killed

    killed, number = True, 0
    while killed:
        number += 1
        place = obstore.store.MemoryStore()
        make(place).close()
        with Repository.open(place, cache=False) as repo:
            before = content(repo)
            if condemned:
                _condemn(repo)
            with _at_request(repo, number, die) as count, suppress(Killed):
                (_sweep if condemned else _collect)(repo)
            killed = count[0] >= number
        _let_lease_end(Objects(place))
        _check(place, before)
        with Repository.open(place, cache=False) as repo:
            _collect(repo)
            _collect(repo)
            assert {cid[-34:] for cid in repo.blocks.list()} == {cid[-34:] for cid in used(repo)}
            lists = list(repo.blocks.behind.objects.list("condemned"))  # type: ignore[attr-defined]
            assert not lists
        _check(place, before)
    assert number > 20


@pytest.mark.slow
def test_a_collection_that_slept_and_was_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its back the list was swept, and what was on it written again: it deletes nothing."""
    monkeypatch.setattr(objectmarks, "_SURE", 0.0)
    number = total = 1
    while number <= total:
        place = obstore.store.MemoryStore()
        make(place).close()
        with Repository.open(place, cache=False) as repo:
            _condemn(repo)

            def overtake(place: Any = place) -> None:
                _let_lease_end(Objects(place))
                with Repository.open(place, cache=False) as other:
                    _sweep(other)
                _rely(place)

            with (
                _at_request(repo, number, overtake, but="delete") as count,
                suppress(ConflictError),
            ):
                _sweep(repo)
            total = max(total, count[0])
        _check(place, EXPECTED if count[0] >= number else {})
        number += 1
    assert total > 20


# -- what is special about a bucket ---------------------------------------------------------------


def test_what_is_used_again_is_written_elsewhere_and_collected_from_there() -> None:
    place = obstore.store.MemoryStore()
    objects = Objects(place)
    with make(place) as repo:
        _condemn(repo)
        assert not list(objects.list("rescued"))
        _write_beside(repo, "again", LOST)
        rescued = {name for name, _ in objects.list("rescued")}
        assert len(rescued) >= len(LOST)
        _sweep(repo)
        assert content(repo, "again")["a/c/3"] == value(2003)
        repo.delete_branch("again")
        _collect(repo)
        _collect(repo)
        assert not list(objects.list("rescued"))
        write(repo, "main", LOST, "once more")
    _check(place, EXPECTED)


def test_a_client_that_remembers_a_block_looks_again_after_a_collection() -> None:
    place = obstore.store.MemoryStore()
    make(place).close()
    with Repository.open(place, cache=False) as repo, Repository.open(place, cache=False) as other:
        _write_beside(repo, "side", LOST)
        repo.delete_branch("side")  # and `repo` knows that the blocks are there
        _collect(other)
        _write_lost(repo)
    _check(place, EXPECTED)


def test_a_cache_does_not_hide_what_was_collected() -> None:
    place = obstore.store.MemoryStore()
    with make(place) as repo:
        _write_beside(repo, "side", LOST)
        assert content(repo, "side")["a/c/3"] == value(2003)  # it is in memory now
        repo.delete_branch("side")
        with Repository.open(place, cache=False) as other:
            _collect(other)
        _write_lost(repo)
    _check(place, EXPECTED)


def test_a_ref_that_waits_behind_a_fence_is_refused() -> None:
    place = obstore.store.MemoryStore()
    with make(place) as repo, Repository.open(place, cache=False) as other:
        record = repo.refs.branch("main")
        assert record is not None
        refs = repo.refs
        assert isinstance(refs, BucketRefs)
        real = refs._put

        def put(path: str, *rest: Any) -> bytes:
            if path == "heads/main":
                monkey.undo()
                _collect(other)
            return real(path, *rest)

        with pytest.MonkeyPatch.context() as monkey:
            monkey.setattr(refs, "_put", put)
            with pytest.raises(GuardError):
                refs.update("main", expected=record, new=record, guard=refs.gc_record())


def test_many_objects_are_listed_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectmarks, "_FEW", 10)
    place = obstore.store.MemoryStore()
    with make(place) as repo:
        before = content(repo)
        assert _collect(repo).deleted_blocks >= 90
        assert {cid[-34:] for cid in repo.blocks.list()} == {cid[-34:] for cid in used(repo)}
    _check(place, before)


def test_a_list_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectmarks, "_MOST_CONDEMNED", 20)
    monkeypatch.setattr(objectmarks, "_FEW", 10)
    place = obstore.store.MemoryStore()
    with make(place) as repo:
        before = content(repo)
        first = _collect(repo).deleted_blocks
        assert 20 <= first < 90
        while _collect(repo).deleted_blocks:
            pass
        assert {cid[-34:] for cid in repo.blocks.list()} == {cid[-34:] for cid in used(repo)}
    _check(place, before)


def test_digests_that_begin_alike_are_kept_together() -> None:
    blocks = ObjectStoreBlocks(obstore.store.MemoryStore())
    keys = [b"\x1e\x20" + b"same bytes" + bytes([n]) * 22 for n in range(3)]
    for place, key in zip(("blocks", "blocks", "rescued"), keys, strict=True):
        blocks.objects.replace(name_in(place, key), b"x")
    marks = blocks.survey()
    marks.mark(np.frombuffer(keys[1], np.uint8).reshape(1, -1))
    assert marks.used() == (3, 3)


def test_the_log_is_put_into_one_object() -> None:
    place = obstore.store.MemoryStore()
    with make(place) as repo:
        for number in range(300):
            repo.refs.create_tag(f"t{number}", _tag(repo))
        moves = len(repo.refs.log())
        collect(repo)
        assert len(repo.refs.log()) == moves
        assert len(list(Objects(place).list("refs/log/"))) <= 2


def _tag(repo: Repository) -> Any:
    from cas_zarr.repository.refs import Tag

    record = repo.refs.branch("main")
    assert record is not None
    assert record.commit is not None
    return Tag(CidBytes(record.commit))


def test_a_young_list_waits_for_requests_of_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(BucketRefs, "settling", 120.0)
    monkeypatch.setattr("cas_zarr.repository.gc.time.sleep", waited.append)
    with make(obstore.store.MemoryStore()) as repo:
        _condemn(repo)
        assert waited == []
        _sweep(repo)
        assert max(waited, default=0) == 0
        waited.clear()
        write(repo, "main", {1: 77})
        write(repo, "main", {1: 78})
        _collect(repo)
        assert 110 < max(waited) <= 120


# -- real servers ---------------------------------------------------------------------------------


def test_garbage_goes_from_a_server(s3: S3Server, prefix: str) -> None:
    url = f"s3://{BUCKET}/{prefix}/gc"
    options = {"storage_options": s3.options(), "cache": False}
    with Repository.open(url, create=True, **options) as repo:
        write(repo, "main", {i: i for i in range(40)}, "one")
        _write_beside(repo, "gone", LOST)
        repo.delete_branch("gone")
        before = content(repo)
        dry = collect(repo, grace=NONE, log_age=NONE, dry_run=True)
        _condemn(repo)
        write(repo, "main", {5: 2005}, "used again")
        _sweep(repo)
        before["a/c/5"] = value(2005)
        assert content(repo) == before
        held = {cid[-34:] for cid in repo.blocks.list()}
        assert held == {cid[-34:] for cid in used(repo)}
        assert dry.deleted_blocks > len(LOST)


def test_a_collection_through_a_bad_network(
    versitygw: VersityGw, faults: Faults, prefix: str
) -> None:
    url = f"s3://{BUCKET}/{prefix}/gc"
    options = {"storage_options": versitygw.options(endpoint=faults.url), "cache": False}
    with Repository.open(url, create=True, **options) as repo:
        write(repo, "main", {i: i for i in range(40)}, "one")
        _write_beside(repo, "gone", LOST)
        repo.delete_branch("gone")
        before = content(repo)
        faults.at_random(0.2)
        assert _collect(repo).deleted_blocks > len(LOST)
        faults.at_random(0)
        assert content(repo) == before
        assert {cid[-34:] for cid in repo.blocks.list()} == {cid[-34:] for cid in used(repo)}
