"""Refs in a bucket, on real servers: conditional puts, answers that are lost, the log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore

from cas_zarr.blocks.objects import Objects, open_object_store
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, SHA256, CidBytes, cid_of
from cas_zarr.errors import (
    ConflictError,
    FormatError,
    InvalidArgumentError,
    InvalidKeyError,
    ReadOnlyError,
    RemoteError,
    StorageError,
)
from cas_zarr.repository.bucket import BucketRefs, make_bucket
from cas_zarr.repository.refs import Branch, GuardError, Refs, Tag
from objects import faults as fault_module
from objects.faults import Faults, fault_proxy
from objects.servers import BUCKET, Moto, S3Server, VersityGw


def _commit(number: int) -> CidBytes:
    return cid_of(DAG_CBOR, BLAKE3, b"commit %d" % number)


def _branch(number: int) -> Branch:
    return Branch(_commit(number), cid_of(DAG_JSON, BLAKE3, b"root %d" % number))


ONE, TWO, THREE = _branch(1), _branch(2), _branch(3)


def _refs(server: S3Server, prefix: str, url: str = "") -> BucketRefs:
    options = server.options(endpoint=url or server.url)
    return BucketRefs(open_object_store(f"s3://{BUCKET}/{prefix}", **options))


def _names(server: S3Server, prefix: str, folder: str = "") -> dict[str, int]:
    listed = obstore.list(server.store(), f"{prefix}/{folder}".rstrip("/")).collect()
    return {meta["path"].removeprefix(f"{prefix}/"): meta["size"] for meta in listed}


@pytest.fixture
def refs(s3: S3Server, prefix: str) -> BucketRefs:
    return _refs(s3, prefix)


# -- moving -------------------------------------------------------------------------------------


def test_a_ref_moves_only_from_what_it_is(s3: S3Server, refs: BucketRefs, prefix: str) -> None:
    other = _refs(s3, prefix)
    refs.update("main", expected=None, new=ONE)
    assert other.branch("main") == ONE
    with pytest.raises(ConflictError, match="exists already"):
        other.update("main", expected=None, new=TWO)
    other.update("main", expected=ONE, new=TWO)
    with pytest.raises(ConflictError, match="another by now"):  # it has ONE in mind
        refs.update("main", expected=ONE, new=THREE)
    assert refs.branch("main") == TWO
    refs.update("main", expected=TWO, new=ONE)
    other.update("main", expected=ONE, new=THREE)  # and this one TWO
    assert refs.branch("main") == other.branch("main") == THREE


def test_a_record_that_came_back_is_what_was_expected(
    s3: S3Server, refs: BucketRefs, prefix: str
) -> None:
    other = _refs(s3, prefix)
    refs.update("main", expected=None, new=ONE)
    assert other.branch("main") == ONE
    refs.update("main", expected=ONE, new=TWO)
    refs.update("main", expected=TWO, new=ONE)
    other.update("main", expected=ONE, new=THREE)
    assert refs.branch("main") == THREE


def test_what_was_deleted_is_absent_and_can_be_made_anew(
    s3: S3Server, refs: BucketRefs, prefix: str
) -> None:
    other = _refs(s3, prefix)
    for _ in range(2):
        refs.update("a/b", expected=None, new=ONE)
        refs.create_tag("v1", Tag(_commit(1)))
        assert (other.branches(), other.tags()) == (["a/b"], ["v1"])
        with pytest.raises(ConflictError, match="another by now"):
            other.update("a/b", expected=TWO, new=None)
        other.update("a/b", expected=ONE, new=None)
        other.delete_tag("v1", expected=Tag(_commit(1)))
        assert (refs.branches(), refs.tags()) == ([], [])
        assert refs.branch("a/b") is None
        assert refs.tag("v1") is None
        with pytest.raises(ConflictError, match="gone"):
            refs.update("a/b", expected=ONE, new=TWO)
    refs.update("a/b/c", expected=None, new=ONE)  # nothing is in its way
    refs.forget("conflicts/nothing/there")
    assert other.branches() == ["a/b/c"]


@pytest.mark.parametrize(
    "name", ["größe", "a%2Fb", "x#y", '{a}|"b"<>`', "@", "a&b+c=d;e,f'g!(h)$", "日本/語", "%"]
)
def test_names_are_kept_as_they_are(refs: BucketRefs, name: str) -> None:
    refs.update(name, expected=None, new=ONE)
    refs.update(name, expected=ONE, new=TWO)
    refs.create_tag(name, Tag(_commit(1)))
    assert refs.branch(name) == TWO
    assert refs.branches() == refs.tags() == [name]
    refs.update(name, expected=TWO, new=None)
    assert refs.branches() == []


def test_a_name_is_no_folder_of_another(refs: BucketRefs) -> None:
    refs.update("feature/x/y", expected=None, new=ONE)
    for name in ("feature", "feature/x", "feature/x/y/z", "feature/x/y/z/w"):
        with pytest.raises(InvalidKeyError, match="folder of the other"):
            refs.update(name, expected=None, new=TWO)
    refs.update("feature/xx", expected=None, new=TWO)
    refs.create_tag("feature", Tag(_commit(1)))
    assert refs.branches() == ["feature/x/y", "feature/xx"]


def test_nothing_moves_where_a_collection_went_on(
    s3: S3Server, refs: BucketRefs, prefix: str
) -> None:
    other = _refs(s3, prefix)
    refs.update("main", expected=None, new=ONE, guard=None)
    assert other.swap_gc(None, b"first")
    assert not other.swap_gc(None, b"second")
    before = len(refs.log())
    with pytest.raises(GuardError):
        refs.update("main", expected=ONE, new=TWO, guard=None)
    assert refs.branch("main") == ONE
    assert len(refs.log()) == before
    refs.update("main", expected=ONE, new=TWO, guard=b"first")
    assert refs.gc_record() == b"first"
    assert refs.swap_gc(b"first", None)
    refs.update("main", expected=TWO, new=ONE, guard=None)


def test_records_beside_the_refs(refs: BucketRefs) -> None:
    many = frozenset(map(_commit, range(3000)))  # more than a ref can hold
    refs.set_shallow(frozenset(), many)
    assert refs.shallow() == many
    with pytest.raises(ConflictError):
        refs.set_shallow(frozenset(), frozenset())
    refs.set_shallow(many, frozenset())
    assert refs.shallow() == frozenset()
    assert refs.swap_remote("origin", None, b"x" * 100_000)
    assert refs.remote("origin") == b"x" * 100_000
    assert refs.remotes() == ["origin"]


def _race(refs: list[Refs], times: int) -> None:
    """Count up in the last bytes of a branch, from each of some clients at once."""
    start = threading.Barrier(len(refs))

    def count(one: Refs) -> None:
        start.wait(30)
        for _ in range(times):
            while True:
                now = one.branch("main")
                number = 0 if now is None else int.from_bytes(now.work[-4:], "big")
                new = Branch(work=CidBytes(ONE.work[:-4] + (number + 1).to_bytes(4, "big")))
                try:
                    one.update("main", expected=now, new=new, why=f"{number + 1}")
                except ConflictError:
                    continue
                break

    with ThreadPoolExecutor(len(refs)) as pool:
        list(pool.map(count, refs))


def _count(refs: Refs) -> int:
    now = refs.branch("main")
    assert now is not None
    assert now.work is not None
    return int.from_bytes(now.work[-4:], "big")


def test_clients_that_move_one_branch_lose_no_move(s3: S3Server, prefix: str) -> None:
    clients: list[Refs] = [_refs(s3, prefix) for _ in range(4)]
    _race(clients, 6)
    assert _count(clients[0]) == 24
    told = [int(move.why) for move in clients[1].log()]
    assert sorted(told) == list(range(1, 25))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_no_move_is_lost_or_made_twice_where_requests_go_wrong(
    versitygw: VersityGw, faults: Faults, prefix: str, seed: int
) -> None:
    faults.at_random(0.15, seed)
    clients: list[Refs] = [_refs(versitygw, prefix, faults.url) for _ in range(3)]
    _race(clients, 8)
    faults.at_random(0)
    assert _count(clients[0]) == 24  # each client counts what it made, so one made twice shows
    told = [int(move.why) for move in clients[1].log()]
    assert sorted(set(told)) == list(range(1, 25))


# -- answers that are lost ------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lost", "cut", "slow", "broken", "half"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_move_takes_place_once_whatever_becomes_of_its_answers(
    versitygw: VersityGw, faults: Faults, prefix: str, fault: str, times: int
) -> None:
    refs = _refs(versitygw, prefix, faults.url)
    refs.update("main", expected=None, new=ONE)
    refs.branch("main")
    for at in range(3):  # the request for the line of the log, for the ref, and after it
        old, new = (ONE, TWO) if refs.branch("main") == ONE else (TWO, ONE)
        faults.script(*["none"] * at, *[fault] * times)
        refs.update("main", expected=old, new=new, why="moved")
        assert refs.branch("main") == new
    assert [move.why for move in refs.log()].count("moved") == 3
    for at in range(2):
        faults.script(*["none"] * at, *[fault] * times)
        refs.update("main", expected=refs.branch("main"), new=None, why="gone")
        assert refs.branch("main") is None
        faults.script(*["none"] * at, *[fault] * times)
        refs.update("main", expected=None, new=ONE)
        assert refs.branch("main") == ONE


def test_a_move_is_made_again_where_it_met_another_one(
    versitygw: VersityGw, faults: Faults, prefix: str
) -> None:
    refs = _refs(versitygw, prefix, faults.url)
    refs.update("main", expected=None, new=ONE)
    assert refs.branch("main") == ONE
    faults.script("none", "conflict")  # the line of the log, and the ref
    refs.update("main", expected=ONE, new=TWO)
    assert refs.branch("main") == TWO


def test_a_move_counts_though_another_came_before_its_answer_was_sought(
    versitygw: VersityGw, faults: Faults, prefix: str
) -> None:
    refs, other = _refs(versitygw, prefix, faults.url), _refs(versitygw, prefix)
    refs.update("main", expected=None, new=ONE)
    assert refs.branch("main") == ONE
    faults.script("none", "lost")  # the line of the log, and the ref

    def follow() -> None:
        while other.branch("main") != TWO:
            pass
        other.update("main", expected=TWO, new=THREE)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        refs.update("main", expected=ONE, new=TWO)
        following.result(30)
    assert refs.branch("main") == THREE


def test_a_swap_is_known_by_those_that_came_after_it(s3: S3Server, prefix: str) -> None:
    objects = Objects(s3.store(), prefix)
    assert objects.swap("x", None, b"one")
    found = objects.read("x", limit=100)
    assert found is not None
    assert objects.swap("x", found[1], b"two")
    assert objects.swap("x", found[1], b"two")  # as if its answer was lost
    assert not objects.swap("x", found[1], b"three")
    assert not objects.swap("x", None, b"three")
    seen: list[bytes] = []
    assert objects.swap("x", found[1], b"three", ours=lambda now: not seen.append(now))
    assert seen == [b"two"]
    assert not objects.swap("y", found[1], b"three")
    assert objects.read("y", limit=100) is None
    data, _ = objects.read("x", limit=1) or (b"", {})
    assert len(data) >= 2
    assert b"two".startswith(data)


# -- the log --------------------------------------------------------------------------------------


def test_the_log_is_told_in_order_and_can_be_trimmed(
    s3: S3Server, refs: BucketRefs, prefix: str
) -> None:
    records = [None, *map(_branch, range(12))]
    for number, (old, new) in enumerate(pairwise(records)):
        refs.update("main", expected=old, new=new, why=f"move {number}")
    moves = refs.log()
    assert [move.why for move in moves] == [f"move {number}" for number in range(12)]
    assert len(_names(s3, prefix, "refs/log")) == 12
    assert refs.trim_log(moves[5].time) == 5
    assert refs.log() == moves[5:]
    assert len(_names(s3, prefix, "refs/log")) == 1
    refs.update("main", expected=records[-1], new=TWO, why="after")
    assert [move.why for move in refs.log()] == [*(move.why for move in moves[5:]), "after"]
    assert refs.trim_log(moves[9].time) == 4
    assert refs.log()[:3] == moves[9:]
    assert refs.trim_log(None, commits={TWO.commit, _commit(11)}) == 2
    assert refs.log()[-1].why == "move 10"
    assert refs.trim_log(moves[-1].time + 1_000_000_000) == 2
    assert refs.log() == []
    assert _names(s3, prefix, "refs/log") == {}


def test_a_rewriting_that_was_interrupted_loses_no_line(
    s3: S3Server, refs: BucketRefs, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        refs.update(f"b{number}", expected=None, new=ONE)
    moves = refs.log()
    real = Objects.delete

    def dies(objects: Objects, names: list[str]) -> None:
        real(objects, names[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(Objects, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        refs._rewrite_log(lambda data: (data, 1))
    monkeypatch.undo()
    assert len(_names(s3, prefix, "refs/log")) == 4
    assert _refs(s3, prefix).log() == moves
    refs.trim_log(moves[2].time)
    assert _refs(s3, prefix).log() == moves[2:]


def test_a_log_that_is_rewritten_while_it_is_read_is_read_anew(s3: S3Server, prefix: str) -> None:
    refs, other = _refs(s3, prefix), _refs(s3, prefix)
    for number in range(20):
        refs.update(f"b{number}", expected=None, new=ONE)
    moves = refs.log()
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            other._rewrite_log(lambda data: (data, 1))

    with ThreadPoolExecutor(1) as pool:
        rewriting = pool.submit(rewrite)
        try:
            for _ in range(10):
                with suppress(RemoteError):  # it is rewritten all the time
                    assert refs.log() == moves
        finally:
            stop.set()
        rewriting.result(30)
    assert refs.log() == moves


def test_damage_of_the_log_is_told_and_mended(s3: S3Server, refs: BucketRefs, prefix: str) -> None:
    for number in range(3):
        refs.update(f"b{number}", expected=None, new=ONE)
    moves = refs.log()
    name = sorted(_names(s3, prefix, "refs/log"))[1]
    data = bytes(obstore.get(s3.store(), f"{prefix}/{name}").bytes())
    obstore.put(s3.store(), f"{prefix}/{name}", data.replace(b"b1", b"b7"))
    with pytest.raises(FormatError, match="line 2 of the log"):
        refs.log()
    assert refs.log(damaged="skip") == [moves[0], moves[2]]
    assert refs.mend_log() == 1
    assert refs.log() == [moves[0], moves[2]]


# -- damage, markers and places -------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda _: b"{}",
        lambda data: data.replace(b'"version":1', b'"version":2'),
        lambda data: data + b"\n",
        lambda _: bytes(5000),
        lambda _: bytes(3 << 20),
    ],
)
def test_a_damaged_ref_is_told_and_can_be_overwritten(
    s3: S3Server, refs: BucketRefs, prefix: str, change: Callable[[bytes], bytes]
) -> None:
    refs.update("main", expected=None, new=ONE)
    name = f"{prefix}/refs/heads/main.ref"
    data = bytes(obstore.get(s3.store(), name).bytes())
    assert data.startswith(ONE.to_block() + b"\n[")
    with pytest.raises(ConflictError, match="not damaged"):
        refs.overwrite_damaged("main", TWO, why="repair")
    obstore.put(s3.store(), name, change(data))
    with pytest.raises(FormatError, match="ref heads/main in s3://"):
        refs.branch("main")
    assert refs.branches() == ["main"]
    refs.overwrite_damaged("main", TWO, why="repair")
    assert refs.branch("main") == TWO


def test_makers_at_once_make_one_repository(s3: S3Server, prefix: str) -> None:
    start = threading.Barrier(4)

    def make(number: int) -> object:
        objects = Objects(s3.store(), prefix)
        start.wait(30)
        return make_bucket(objects, (BLAKE3, SHA256)[number % 2])

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(make, range(4)))
    assert made == {_refs(s3, prefix).open()}


@pytest.mark.parametrize("ignored", ["if-match", "if-none-match"])
def test_a_server_that_passes_over_conditions_is_refused(
    moto: Moto, prefix: str, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    passed = [name for name in fault_module._TO_PASS if name != ignored]
    monkeypatch.setattr(fault_module, "_TO_PASS", passed)  # moto checks no signatures
    with fault_proxy(moto.url) as faults:
        with pytest.raises(StorageError, match="overwrite each other's work"):
            make_bucket(_refs(moto, prefix, faults.url).objects, BLAKE3)
        assert _names(moto, prefix) == {}
    assert make_bucket(_refs(moto, prefix).objects, BLAKE3) is BLAKE3
    assert list(_names(moto, prefix)) == ["cas-zarr.json"]


def test_what_is_read_along_is_not_told_twice(s3: S3Server, prefix: str) -> None:
    refs, other = _refs(s3, prefix), _refs(s3, prefix)
    make_bucket(refs.objects, BLAKE3)
    other.update("main", expected=None, new=ONE)
    assert refs.open("main") is BLAKE3
    other.update("main", expected=ONE, new=TWO)
    assert refs.branch("main") == ONE  # as it was when this was opened
    assert refs.branch("main") == TWO
    assert refs.open("main") is BLAKE3
    other.update("main", expected=TWO, new=THREE)
    with pytest.raises(ConflictError):
        refs.update("main", expected=TWO, new=ONE)
    assert refs.branch("main") == THREE


def test_a_marker_that_is_not_understood(s3: S3Server, prefix: str) -> None:
    refs = _refs(s3, prefix)
    assert refs.open() is None
    for text, message in (
        (b"{", "damaged"),
        (b'{"hash":"md5","type":"cas-zarr/repository","version":1}', "md5"),
        (b'{"hash":"blake3","type":"cas-zarr/repository","version":2}', "version 2"),
        (b'{"hash":"blake3","type":"something","version":1}', "no marker"),
    ):
        obstore.put(s3.store(), f"{prefix}/cas-zarr.json", text)
        with pytest.raises(FormatError, match=message):
            refs.open()


def test_refs_that_are_open_for_reading_do_not_move(refs: BucketRefs) -> None:
    refs.update("main", expected=None, new=ONE)
    reader = BucketRefs(refs.objects, read_only=True)
    for call in (
        lambda: reader.update("main", expected=ONE, new=TWO),
        lambda: reader.create_tag("v", Tag(_commit(1))),
        lambda: reader.trim_log(5),
    ):
        with pytest.raises(ReadOnlyError):
            call()
    assert reader.branch("main") == ONE


def test_a_folder_behind_obstore_is_refused_with_what_to_do(tmp_path: Path) -> None:
    objects = Objects(LocalStore(tmp_path))
    with pytest.raises(InvalidArgumentError, match=f"{tmp_path} is a folder.*give its path"):
        make_bucket(objects, BLAKE3)
    with pytest.raises(InvalidArgumentError, match="give its path"):
        BucketRefs(objects).update("main", expected=None, new=ONE)
    assert list(tmp_path.iterdir()) == []
