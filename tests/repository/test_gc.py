"""Collections: what goes, what stays, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from collecting import NONE, collect_all, content, held, make, used, value, write

from cas_zarr.blocks import disk
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import BLAKE3, RAW, cid_of
from cas_zarr.errors import (
    BlockNotFoundError,
    ConflictError,
    CorruptBlockError,
    FormatError,
    InvalidArgumentError,
    ReadOnlyError,
    StorageError,
)
from cas_zarr.repository.bucket import BucketRefs
from cas_zarr.repository.expiring import expire
from cas_zarr.repository.gc import Collection, collect, repack
from cas_zarr.repository.guard import CollectionRecord, PendingList
from cas_zarr.repository.records import seal
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.sync import clone, fetch

SECOND = 1_000_000
DAY = 24 * 3600 * SECOND


@pytest.fixture(params=["folder", "memory", "bucket"])
def repo(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Repository:
    if request.param == "bucket":
        monkeypatch.setattr(BucketRefs, "settling", 0.0)  # nobody dies in the middle of a request
        return make(pytest.importorskip("obstore").store.MemoryStore())
    return make(tmp_path / "r" if request.param == "folder" else f"memory://{tmp_path.name}")


@pytest.fixture
def local(tmp_path: Path) -> Repository:
    return make(tmp_path / "r")


class Clock:
    """The time of a test, in microseconds."""

    def __init__(self) -> None:
        self.now = 2_000_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


def test_garbage_goes_and_what_refs_lead_to_stays(repo: Repository) -> None:
    before = content(repo), content(repo, "main~1")
    assert held(repo) > used(repo)
    report = collect_all(repo)
    assert held(repo) == used(repo)
    assert (content(repo), content(repo, "main~1")) == before
    assert report.live_blocks == len(used(repo))
    assert report.deleted_blocks == report.unused_blocks == report.blocks - report.live_blocks > 90
    assert report.deleted_size == report.unused_size > 0
    assert report.freed > 0
    assert (report.condemned_blocks, report.until) == (0, None)
    assert (report.commits, report.roots) == (2, 2)
    again = collect_all(repo)
    assert (again.blocks, again.unused_blocks, again.deleted_blocks) == (len(used(repo)), 0, 0)


def test_what_is_condemned_goes_after_the_grace_time(repo: Repository) -> None:
    clock = Clock()
    options = {"log_age": NONE, "max_unused": 0, "clock": clock, "grace": timedelta(days=1)}
    first = collect(repo, **options)
    everything = held(repo)
    assert first.deleted_blocks == 0
    assert first.condemned_blocks == first.unused_blocks > 90
    assert first.condemned_size == first.unused_size
    assert first.until == datetime.fromtimestamp(clock.now / SECOND, UTC) + timedelta(days=1)
    clock.now += DAY - 1
    assert collect(repo, **options).deleted_blocks == 0
    assert held(repo) == everything
    clock.now += 1
    last = collect(repo, **options)
    assert last.deleted_blocks == first.condemned_blocks
    assert (last.condemned_blocks, last.until) == (0, None)
    assert held(repo) == used(repo)


def test_what_is_used_again_is_not_deleted(repo: Repository) -> None:
    clock = Clock()
    collect(repo, log_age=NONE, max_unused=0, clock=clock)
    write(repo, "main", {3: 1003, 4: 2004}, "three")  # values that are condemned
    expected = content(repo)
    clock.now += 2 * DAY
    report = collect(repo, log_age=NONE, max_unused=0, clock=clock)
    assert report.deleted_blocks > 90
    assert content(repo) == expected
    assert repo.verify().ok


def test_a_clock_that_was_set_back_makes_a_list_wait_again(repo: Repository) -> None:
    clock = Clock()
    options = {"log_age": NONE, "max_unused": 0, "clock": clock, "grace": timedelta(days=1)}
    collect(repo, **options)
    clock.now -= 1000 * DAY
    report = collect(repo, **options)
    assert report.deleted_blocks == 0
    assert report.until == datetime.fromtimestamp(clock.now / SECOND, UTC) + timedelta(days=1)
    clock.now += DAY
    assert collect(repo, **options).deleted_blocks > 90


def test_a_dry_run_tells_and_changes_nothing(repo: Repository) -> None:
    before = held(repo), repo.refs.gc_record(), len(repo.refs.log())
    tree = _tree(repo)
    for grace in (NONE, timedelta(days=1)):
        report = collect(repo, grace=grace, log_age=NONE, max_unused=0, dry_run=True)
        assert report.dry_run
        assert report.unused_blocks > 90
        assert (report.deleted_blocks > 0) == (grace == NONE)
        assert (report.condemned_blocks > 0) == (grace != NONE)
        assert (held(repo), repo.refs.gc_record(), len(repo.refs.log())) == before
        assert _tree(repo) == tree
    would = collect(repo, grace=NONE, log_age=NONE, max_unused=0, dry_run=True)
    done = collect_all(repo)
    assert would.deleted_blocks == done.deleted_blocks
    assert would.deleted_size == done.deleted_size


def _tree(repo: Repository) -> list[tuple[str, bytes]]:
    if "://" in repo.location:
        return []
    files = sorted(path for path in Path(repo.location).rglob("*") if path.is_file())
    return [(str(path), path.read_bytes()) for path in files]


def test_a_dry_run_tells_what_a_pending_list_will_free(repo: Repository) -> None:
    clock = Clock()
    collect(repo, log_age=NONE, max_unused=0, clock=clock)
    clock.now += 2 * DAY
    would = collect(repo, log_age=NONE, max_unused=0, clock=clock, dry_run=True)
    assert would.deleted_blocks > 90
    assert collect(repo, log_age=NONE, max_unused=0, clock=clock).deleted_blocks == (
        would.deleted_blocks
    )


def test_the_log_of_refs_keeps_what_was_left(repo: Repository) -> None:
    lost = next(move.old for move in repo.refs.log() if move.new is None)
    assert isinstance(lost, Branch)
    report = collect(repo, grace=NONE, max_unused=0)
    assert report.commits == 3
    repo.refs.update("back", expected=None, new=lost)
    assert content(repo, "back")["a/c/5"] == value(2005)
    assert repo.verify().ok


def test_tags_and_kept_roots_keep_what_they_lead_to(repo: Repository) -> None:
    repo.create_branch("b", "main")
    commit = write(repo, "b", {1: 501}, "tagged")
    root = write(repo, "b", {2: 502})
    repo.create_tag("v1", commit)
    name = repo.refs.keep("b", Branch(commit, root))
    repo.delete_branch("b", force=True)
    collect_all(repo)
    assert content(repo, "v1")["a/c/1"] == value(501)
    assert content(repo, name)["a/c/2"] == value(502)
    assert repo.verify().ok


def test_a_history_that_was_cut_on_purpose_is_no_damage(repo: Repository) -> None:
    commits = [entry.cid for entry in repo.log("main")]
    repo.refs.set_shallow(frozenset(), frozenset({commits[0]}))
    report = collect_all(repo)
    assert report.commits == 1
    assert not repo.blocks.has(commits[1])
    assert content(repo)["a/c/0"] == value(7)
    assert collect_all(repo).deleted_blocks == 0


def test_packs_that_are_nearly_full_of_use_stay_as_they_are(local: Repository) -> None:
    collect_all(local)
    tight = sum(os.path.getsize(path) for path in _packs(local))
    session = local.session()
    session.prepare()["a/c/90"] = value(9000)
    session.prepare()["a/c/90"] = value(9001)  # one block in some sixty is garbage
    session.flush()
    repack(local)
    assert len(_packs(local)) == 1
    lazy = collect(local, grace=NONE, log_age=NONE, max_unused=0.5)
    assert lazy.unused_blocks > 0
    assert (lazy.deleted_blocks, lazy.condemned_blocks, lazy.rewritten) == (0, 0, 0)
    strict = collect_all(local)
    assert strict.deleted_blocks == lazy.unused_blocks
    assert strict.rewritten == 1
    assert sum(os.path.getsize(path) for path in _packs(local)) > tight


def _packs(repo: Repository) -> list[Path]:
    return sorted(Path(repo.location).glob("packs/*.car"))


def test_packs_that_are_not_used_at_all_go_whatever_may_stay(local: Repository) -> None:
    local.create_branch("b", None)
    write(local, "b", {i: 3000 + i for i in range(3)})
    local.delete_branch("b", force=True)
    report = collect(local, grace=NONE, log_age=NONE, max_unused=1)
    assert report.removed > 0
    assert report.rewritten == 0
    assert local.verify().ok


def test_a_session_that_writes_is_spared(local: Repository) -> None:
    session = local.session()
    mapping = session.prepare()
    mapping["a/c/5"] = value(5005)
    writer = local.blocks._writer  # type: ignore[attr-defined]
    writer.full = True  # as after 2 GiB: the next block seals the pack
    mapping["a/c/6"] = value(5006)
    other = Repository.open(local.location)
    collect_all(other)
    session.flush()
    work = other.branches()["main"].work
    assert work is not None
    assert dict(other.at(work).items())["a/c/5"] == value(5005)
    assert other.verify().ok


def test_a_session_whose_garbage_was_deleted_says_so_and_can_write_again(
    local: Repository,
) -> None:
    session = local.session()
    session.prepare()["a/c/5"] = value(1005)  # found among the garbage
    other = Repository.open(local.location)
    collect_all(other)
    with pytest.raises(StorageError, match="older than the grace time"):
        session.flush()
    assert other.verify().ok
    session.discard()
    session.prepare()["a/c/5"] = value(1005)
    session.commit("once more")
    again = Repository.open(local.location)
    assert content(again)["a/c/5"] == value(1005)
    assert again.verify().ok


def test_readers_that_were_open_before_go_on(local: Repository) -> None:
    reader = Repository.open(local.location, read_only=True)
    before = reader.at("main")
    first = before["a/c/1"]
    collect_all(local)
    repack(local)
    assert before["a/c/1"] == first
    assert dict(before.items()) == content(local)


def test_one_collection_at_a_time(repo: Repository) -> None:
    with Collection(repo) as first:
        first.mark()
        with pytest.raises(ConflictError, match="another collection is under way"):
            collect_all(repo)
        with pytest.raises(ConflictError, match="another collection is under way"):
            repack(repo)
    assert collect_all(repo).deleted_blocks > 0


def test_a_damaged_page_keeps_all_from_being_deleted(local: Repository) -> None:
    commit = local.branches()["main"].commit
    assert commit is not None
    for pack in _packs(local):
        data = pack.read_bytes()
        if commit in data:
            at = data.index(commit) + len(commit) + 5
            pack.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    again = Repository.open(local.location)
    with pytest.raises(CorruptBlockError, match=r"nothing was collected.*branch main.*verify"):
        collect_all(again)
    assert held(again)


def test_a_missing_commit_or_root_keeps_all_from_being_deleted(repo: Repository) -> None:
    commits = [entry.cid for entry in repo.log("main")]
    root = repo.resolve("main~1").root
    repo.blocks.flush()
    repo.blocks.delete(root)
    with pytest.raises(BlockNotFoundError, match=r"nothing was collected.*branch main"):
        collect_all(repo)
    repo.blocks.delete(commits[1])
    with pytest.raises(BlockNotFoundError, match=r"nothing was collected.*branch main"):
        collect_all(repo)
    before = len(list(repo.blocks.list()))
    report = collect(repo, grace=NONE, log_age=NONE, max_unused=0, missing="skip")
    assert report.missing == 1
    assert len(list(repo.blocks.list())) < before
    assert content(repo)["a/c/0"] == value(7)


def test_a_missing_chunk_hides_nothing(repo: Repository) -> None:
    repo.blocks.flush()
    repo.blocks.delete(cid_of(RAW, BLAKE3, value(7)))
    assert collect_all(repo).deleted_blocks > 0


def test_a_damaged_ref_keeps_all_from_being_deleted(local: Repository) -> None:
    (Path(local.location) / "refs/heads/main").write_bytes(b"{}")
    with pytest.raises(FormatError, match="nothing was collected"):
        collect_all(local)


@pytest.mark.parametrize("damage", ["record", "list", "list is gone"])
def test_a_damaged_record_or_list_is_made_anew(local: Repository, damage: str) -> None:
    collect(local, log_age=NONE, max_unused=0)
    (listed,) = Path(local.location).glob("packs/*.condemned")
    record = local.refs.gc_record()
    if damage == "record":
        assert local.refs.swap_gc(record, b"{}")
    elif damage == "list":
        data = listed.read_bytes()
        listed.unlink()
        listed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        listed.unlink()
    again = Repository.open(local.location)
    with pytest.raises((FormatError, BlockNotFoundError), match="run gc"):
        write(again, "main", {1: 11})
    report = collect(again, log_age=NONE, max_unused=0)
    assert report.condemned_blocks > 90
    assert report.deleted_blocks == 0
    write(again, "main", {1: 11})
    assert CollectionRecord.from_bytes(again.refs.gc_record()).epoch > 1
    assert collect_all(again).deleted_blocks > 90
    assert not list(Path(local.location).glob("packs/*.condemned"))


def test_a_record_reads_as_it_was_written() -> None:
    record = CollectionRecord(7, (PendingList("ab" * 16, 12), PendingList("cd" * 16, 13)))
    assert CollectionRecord.from_bytes(record.to_bytes()) == record
    assert CollectionRecord.from_bytes(None) == CollectionRecord(0, ())
    for data in (b"", b"{}", b"[]", record.to_bytes().replace(b'"epoch":7', b'"epoch":8')):
        with pytest.raises(FormatError, match="record of collections is damaged"):
            CollectionRecord.from_bytes(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "cas-zarr/tag"}, "it is none"),
        ({"version": 2}, "format version 2"),
        ({"epoch": "7"}, "missing or wrong fields"),
        ({"epoch": True}, "missing or wrong fields"),
        ({"epoch": None}, "missing or wrong fields"),
        ({"lists": {}}, "missing or wrong fields"),
        ({"lists": ["ab" * 16]}, "something else than lists"),
        ({"lists": [{"name": "ab" * 16}]}, "something else than lists"),
        ({"lists": [{"name": "ab" * 16, "time": 1, "more": 1}]}, "something else than lists"),
        ({"lists": [{"name": 7, "time": 1}]}, "something else than lists"),
        ({"lists": [{"name": "../" + "ab" * 14 + "x", "time": 1}]}, "something else than lists"),
        ({"lists": [{"name": "\0", "time": 1}]}, "something else than lists"),
        ({"lists": [{"name": "ab" * 16, "time": True}]}, "something else than lists"),
    ],
)
def test_a_record_that_is_malformed(change: dict[str, Any], reason: str) -> None:
    sound = {"type": "cas-zarr/gc", "version": 1, "epoch": 7, "lists": []}
    assert CollectionRecord.from_bytes(seal(sound)).epoch == 7
    with pytest.raises(FormatError, match=f"record of collections is damaged: .*{reason}"):
        CollectionRecord.from_bytes(seal({**sound, **change}))


def test_what_makes_no_sense_is_refused(repo: Repository) -> None:
    for options in (
        *({"grace": timedelta(-1)}, {"log_age": timedelta(-1)}, {"max_unused": 1.5}),
        *({"grace": 5}, {"log_age": None}, {"max_unused": "x"}, {"missing": "x"}),
    ):
        with pytest.raises(InvalidArgumentError):
            collect(repo, **options)  # type: ignore[arg-type]
    reader = Repository.open(repo.location, read_only=True)
    with pytest.raises(ReadOnlyError):
        collect_all(reader)
    with pytest.raises(ReadOnlyError):
        repack(reader)
    assert collect(reader, dry_run=True).dry_run


def test_progress_is_told(repo: Repository) -> None:
    told: list[tuple[int, int]] = []
    collect(repo, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert 0 < told[-1][0] <= told[-1][1]


def test_repack_leaves_one_copy_of_each_block_and_prefers_a_sound_one(local: Repository) -> None:
    collect_all(local)
    expected = content(local)
    victim = cid_of(RAW, BLAKE3, value(20))
    # a second copy: another process that does not look at what is there
    with LocalBlocks(Path(local.location) / "aside", create=True) as aside:
        for cid in [*list(local.blocks.list())[::2], victim]:
            aside.put(cid, local.blocks.get(cid))
        aside.flush()
    for pack in local.blocks._folder.packs.values():  # type: ignore[attr-defined]
        offset = pack.index.find(victim[-34:])
        if offset is not None:  # this copy is damaged
            with open(pack.path, "r+b") as file:
                file.seek(pack.data_start + offset + 60)
                file.write(b"?")
    for pack in Path(local.location).glob("aside/*.car"):
        pack.rename(Path(local.location) / "packs" / pack.name)
    again = Repository.open(local.location)
    report = repack(again)
    assert (report.after, report.damaged) == (1, ())
    assert report.before > 1
    assert report.freed > 0
    assert len(_packs(local)) == 1
    with LocalBlocks(Path(local.location) / "packs", read_only=True) as blocks:
        assert blocks.stats().blocks == len(used(again))
    fresh = Repository.open(local.location)
    assert content(fresh) == expected
    assert fresh.verify().ok


def test_packs_of_a_pending_list_are_not_merged(local: Repository) -> None:
    clock = Clock()
    collect(local, log_age=NONE, max_unused=0, clock=clock)
    for i in range(12):
        write(local, "main", {i: 6000 + i})
    record = CollectionRecord.from_bytes(local.refs.gc_record())
    places = local.blocks.read_list(record.lists[0].name).places  # type: ignore[attr-defined]
    assert places <= {pack.name for pack in _packs(local)}
    assert len(_packs(local)) < 12
    repack(local)
    assert places <= {pack.name for pack in _packs(local)}
    clock.now += 2 * DAY
    assert collect(local, log_age=NONE, max_unused=0, clock=clock).deleted_blocks > 90
    assert local.verify().ok


def test_what_comes_behind_a_cut_between_two_marks_stays(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    write(source, "main", {1: 4001}, "three")
    repo = clone(source, tmp_path / "copy")
    expire(repo, keep=1)  # what came before is garbage, and still here
    writer = Repository.open(repo.location)
    with Collection(repo, log_age=NONE) as collection:
        collection.mark()
        fetch(writer, depth=9)
        assert not writer.refs.shallow()
        collection.publish()
        collection.mark()
        collection.sweep(NONE)
    assert len(list(Repository.open(repo.location).log())) == 3
    assert Repository.open(repo.location).verify().ok


def test_a_list_that_came_after_the_mark_is_not_swept(local: Repository) -> None:
    writer = Repository.open(local.location)
    session = writer.session()
    session.prepare()["a/c/5"] = value(1005)  # found among the garbage
    with Collection(local, log_age=NONE) as late:
        late.mark()
        with without_lock(), Collection(local, log_age=NONE) as quick:
            quick.mark()
            session.flush()
            quick.publish()
        assert late.sweep(NONE).blocks == 0
        late.mark()
        assert late.sweep(NONE).blocks > 80
    again = Repository.open(local.location)
    assert again.verify().ok
    assert dict(again.session().mapping.items())["a/c/5"] == value(1005)


@contextmanager
def without_lock() -> Iterator[None]:
    """Have a file system without locks, where two can collect at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "try_lock", lambda *_, **__: None)
        yield


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_grace_time_without_end(local: Repository, dry_run: bool) -> None:
    report = collect(local, grace=timedelta.max, log_age=NONE, max_unused=0, dry_run=dry_run)
    assert report.until == datetime.max.replace(tzinfo=UTC)
    assert report.condemned_blocks
