"""Clone, fetch, pull and push."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from syncing import commit, contents, grid, held, reads

from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import DAG_CBOR, codec_of, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    ConflictError,
    CorruptBlockError,
    InvalidArgumentError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
    VersionNotFoundError,
)
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.expiring import expire
from cas_zarr.repository.gc import Collection, collect
from cas_zarr.repository.history import ancestors
from cas_zarr.repository.placing import Placer
from cas_zarr.repository.refs import Branch, Tag
from cas_zarr.repository.remotes import Remote, get_remote
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.sync import clone, copy_tree, fetch, pull, push
from cas_zarr.repository.versions import read_commit
from cas_zarr.tree.walk import reachable


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    """Return a repository of three commits, a branch beside main, and two tags."""
    repo = Repository.open(tmp_path / "source", create=True, author="Ada")
    commit(repo, grid("a", 30) | {"big": bytes(range(256)) * 9000}, "one")
    repo.create_tag("v1")
    commit(repo, {"a/c/0/0": b"new!", "x/zarr.json": b"{}"}, "two")
    repo.create_branch("side")
    commit(repo, {"a/c/9/9": b"side"}, "of the side", "side")
    repo.create_tag("side-tag", "side")
    commit(repo, {"a/c/29/29": None}, "three")
    return repo


def _same(one: Repository, two: Repository, *branches: str) -> bool:
    """Tell whether two repositories have the same commits and data on some branches."""
    for branch in branches:
        a, b = one.refs.branch(branch), two.refs.branch(branch)
        assert a is not None
        assert b is not None
        assert a.commit == b.commit
        ours = list(ancestors(one, branch))
        assert ours == list(ancestors(two, branch))
        for cid in ours:
            assert contents(one, cid) == contents(two, cid)
    return True


def test_a_clone_has_all_branches_tags_and_versions(source: Repository, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    copy = clone(
        source.location,
        tmp_path / "copy",
        author="Bob",
        progress=lambda blocks, size: told.append((blocks, size)),
    )
    assert _same(source, copy, "main", "side")
    assert copy.author == "Bob"
    assert copy.tags() == source.tags()
    assert copy.refs.all_tracked() == ["origin/main", "origin/side"]
    assert get_remote(copy.refs, "origin") == Remote("origin", source.location)
    assert copy.verify(data=True).ok
    assert told == sorted(told)
    assert told[-1][0] == len(held(copy))
    assert told[-1][1] == sum(copy.blocks.size(cid) for cid in held(copy))
    record = copy.refs.branch("main")
    assert record is not None
    assert record.work == copy.resolve("main").root
    commit(copy, {"b/zarr.json": b"{}"}, "goes on")
    assert source.at("main").get("b/zarr.json") is None


def test_a_clone_leaves_behind_what_nothing_leads_to(source: Repository, tmp_path: Path) -> None:
    data = b"garbage"
    mapping = source.at("main")
    garbage = commit(source, {"a/c/1/1": data}, "to be dropped", "side")
    root = read_commit(source.blocks, garbage).root
    source.delete_branch("side")
    source.delete_tag("side-tag")
    copy = clone(source, tmp_path / "copy")
    assert copy.refs.branches() == ["main"]
    assert not copy.blocks.has(root)
    assert len(held(copy)) < len(held(source))
    assert dict(copy.at("main")) == dict(mapping)


def test_only_some_branches_and_the_tags_of_their_histories(
    source: Repository, tmp_path: Path
) -> None:
    copy = clone(source, tmp_path / "copy", branches=["main"])
    assert copy.refs.branches() == ["main"]
    assert copy.refs.tags() == ["v1"]
    assert _same(source, copy, "main")
    with pytest.raises(VersionNotFoundError, match=r"'sid'.*'side'"):
        clone(source, tmp_path / "other", branches=["sid"])


def test_the_second_version_costs_what_differs(
    source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = clone(source, tmp_path / "copy")
    before = held(copy)
    commit(source, {"a/c/4/4": b"next"}, "four")
    tip = source.resolve("main").root
    needed = {cid for _, cid in reachable(source.blocks, tip)}
    with reads(monkeypatch, source.blocks) as seen:
        report = fetch(copy)
    new = held(copy) - before
    record = source.refs.branch("main")
    assert record is not None
    assert record.commit in new
    assert new - {record.commit} == needed - before
    # the commit, the root with its top page, one leaf page, the chunk
    assert report.blocks == len(new) == 4
    assert report.commits == 1
    assert report.branches["main"] == record.commit
    assert len(set(seen)) <= 8  # of 900 chunks and 5 commits
    again = fetch(copy)
    assert (again.blocks, again.size, again.commits) == (0, 0, 0)


def test_what_is_there_by_chance_is_not_taken_for_a_tree(
    source: Repository,
) -> None:
    root = source.resolve("main").root
    target = MemoryBlocks()
    some = [cid for _, cid in reachable(source.blocks, root)][::7]
    assert root in some
    target.put_many((cid, source.blocks.get(cid)) for cid in some)
    copied = copy_tree(source.blocks, target, root)
    everything = {cid for _, cid in reachable(target, root)}
    assert all(target.has(cid) for cid in everything)
    assert copied.blocks == len(everything) - len(some)


def test_commits_that_are_there_by_chance_are_not_taken_for_versions(
    source: Repository, tmp_path: Path
) -> None:
    target = Repository.open(tmp_path / "target", create=True)
    for cid in ancestors(source, "main"):
        target.blocks.put(cid, source.blocks.get(cid))
    target.blocks.flush()
    fetch(target, source)
    assert target.verify(data=True).ok
    assert contents(target, "fetched/main") == contents(source)
    assert contents(target, "fetched/main~2") == contents(source, "main~2")


@pytest.mark.parametrize("depth", [None, 1])
def test_each_of_many_versions_costs_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int | None
) -> None:
    source = Repository.open(tmp_path / "source", create=True)
    commit(source, grid("a", 64), "first")
    copy = clone(source, tmp_path / "copy")
    for i in range(4):
        commit(source, {f"a/c/{i}/{i}": b"%4d" % i}, f"{i}")
    with reads(monkeypatch, source.blocks) as seen:
        report = fetch(copy, depth=depth)
    # of 8 leaf pages one that changed is read, for each version that comes
    assert report.blocks == (16 if depth is None else 7)
    assert len([cid for cid in seen if codec_of(cid) == DAG_CBOR]) <= (10 if depth is None else 4)


def test_a_flipped_bit_never_arrives_and_the_rest_comes_when_it_is_mended(
    source: Repository, tmp_path: Path
) -> None:
    victim = source.at("main").cid_of("a/c/12/12")
    assert victim is not None
    (pack,) = [
        p for p in Path(source.location, "packs").glob("*.car") if b"\x0c\x0c\0\0" in p.read_bytes()
    ]
    whole = pack.read_bytes()
    broken = bytearray(whole)
    broken[whole.index(victim) + len(victim)] ^= 4
    pack.write_bytes(broken)
    with pytest.raises(CorruptBlockError) as caught:
        clone(source.location, tmp_path / "copy")
    assert format_cid(victim) in str(caught.value)
    assert source.location in str(caught.value)
    half = Repository.open(tmp_path / "copy")
    assert half.refs.branches() == []
    there = held(half)
    assert there
    assert victim not in there
    half.close()
    pack.write_bytes(whole)
    told: list[int] = []
    copy = clone(source.location, tmp_path / "copy", progress=lambda n, _: told.append(n))
    assert _same(source, copy, "main", "side")
    assert told[-1] == len(held(copy)) - len(there)


def test_a_missing_block_is_named(source: Repository, tmp_path: Path) -> None:
    victim = source.at("main").cid_of("a/c/12/12")
    assert victim is not None
    source.blocks.delete(victim)
    with pytest.raises(BlockNotFoundError, match=format_cid(victim)):
        clone(source.location, tmp_path / "copy")


def test_uncommitted_work_stays_behind_unless_there_is_nothing_else(tmp_path: Path) -> None:
    source = Repository.open(tmp_path / "source", create=True)
    commit(source, {"a/zarr.json": b"{}"}, "one")
    with source.session() as session:
        session.prepare().set_value("work/zarr.json", b"{}")
    source.create_branch("never", None)
    with source.session("never") as session:
        session.prepare().set_value("work/zarr.json", b"{}")
    copy = clone(source, tmp_path / "copy")
    assert list(copy.session().mapping) == ["a/zarr.json"]
    assert copy.refs.branch("never") == source.refs.branch("never")
    assert list(copy.session("never").mapping) == ["work/zarr.json"]
    with pytest.raises(InvalidArgumentError, match="no commit yet"):
        push(copy, branches="never")
    for name, options in {"one": {"depth": 1}, "two": {"branches": ["never"]}}.items():
        copy = clone(source, tmp_path / name, **options)  # type: ignore[arg-type]
        assert contents(copy, copy.refs.branch("never").work) == {"work/zarr.json": b"{}"}  # type: ignore[union-attr,arg-type]
        assert copy.verify(data=True).ok


def test_where_something_else_is_nothing_is_cloned(source: Repository, tmp_path: Path) -> None:
    other = Repository.open(tmp_path / "other", create=True)
    commit(other, {"mine/zarr.json": b"{}"})
    with pytest.raises(ConflictError, match="versions of its own"):
        clone(source, tmp_path / "other")
    copy = clone(source, tmp_path / "copy")
    with pytest.raises(ConflictError, match="clone of another repository"):
        clone(other, tmp_path / "copy")
    with pytest.raises(ConflictError, match="other parts"):
        clone(source, tmp_path / "copy", paths=["a"])
    with pytest.raises(ConflictError):
        clone(source, source.location)
    assert clone(source, tmp_path / "copy").branches() == copy.branches()
    with pytest.raises(RepositoryNotFoundError):
        clone(tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_between_folders_and_memory_and_between_hashes(source: Repository, tmp_path: Path) -> None:
    memory = clone(source, "memory://sync-test")
    assert _same(source, memory, "main", "side")
    back = clone("memory://sync-test", tmp_path / "back")
    assert _same(source, back, "main", "side")
    other = Repository.open(tmp_path / "sha", create=True, hash="sha2-256")
    push(source, other, branches=["main", "side"])
    assert _same(source, other, "main", "side")
    commit(other, {"a/c/0/1": b"more"}, "goes on")
    assert other.verify(data=True).ok
    assert clone(other, tmp_path / "sha2").hash == "sha2-256"


def test_two_clones_at_once(source: Repository, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            clone(source.location, tmp_path / "copy").close()
        except CasZarrError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    copy = Repository.open(tmp_path / "copy")
    assert _same(source, copy, "main", "side")
    assert copy.verify(data=True).ok


# -- depth ----------------------------------------------------------------------------------------


def test_a_shallow_clone_ends_where_it_was_cut(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", depth=2)
    cids = list(ancestors(source))
    assert list(ancestors(copy)) == cids[:2]
    assert copy.refs.shallow() == {cids[1], source.resolve("side~1").commit}
    assert copy.refs.tags() == ["side-tag"]
    assert contents(copy, "main~1") == contents(source, "main~1")
    with pytest.raises(VersionNotFoundError, match="cut"):
        copy.resolve("main~2")
    assert copy.verify(data=True).ok
    further = clone(copy, tmp_path / "further")
    assert further.refs.shallow() == copy.refs.shallow()
    assert list(ancestors(further)) == cids[:2]
    with pytest.raises(InvalidArgumentError, match="depth 0"):
        clone(source, tmp_path / "nothing", depth=0)


def test_a_shallow_clone_goes_on_and_can_be_deepened(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", depth=1, branches=["main"])
    assert len(list(ancestors(copy))) == 1
    commit(source, {"a/c/5/5": b"more"}, "four")
    assert fetch(copy, branches=["main"]).commits == 1
    copy.refs.update(
        "main",
        expected=copy.refs.branch("main"),
        new=Branch(source.resolve("main").commit, source.resolve("main").root),
    )
    assert len(list(ancestors(copy))) == 2
    fetch(copy, branches=["main"], depth=3)
    assert len(list(ancestors(copy))) == 3
    assert copy.refs.shallow() == {source.resolve("main~2").commit}
    fetch(copy, depth=1 << 40)
    assert copy.refs.shallow() == frozenset()
    assert _same(source, copy, "main")
    assert copy.refs.tags() == ["side-tag", "v1"]
    assert copy.verify(data=True).ok


def test_what_is_whole_is_not_cut_by_a_shallow_fetch(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy")
    commit(source, {"a/c/5/5": b"more"}, "four")
    fetch(copy, depth=1)
    assert copy.refs.shallow() == frozenset()
    commit(source, {"a/c/5/5": b"yes!"}, "five")
    commit(source, {"a/c/5/5": b"then"}, "six")
    fetch(copy, depth=1)
    assert copy.refs.shallow() == {source.resolve("main").commit}
    assert len(list(ancestors(copy))) == 3


def test_times_that_are_wrong_cost_copies_and_nothing_else(tmp_path: Path) -> None:
    source = Repository.open(tmp_path / "source", create=True)
    for i, time in enumerate([500, 100, 900, 50, 700]):
        with source.session() as session:
            session.prepare().set_value("a/zarr.json", b"%d" % i)
            session.commit(f"{i}", time=time)
    copy = clone(source, tmp_path / "copy")
    with source.session() as session:
        session.prepare().set_value("a/zarr.json", b"last")
        session.commit("last", time=1)
    fetch(copy)
    fetch(copy, depth=1)
    assert copy.refs.shallow() == frozenset()
    assert copy.refs.tracked("origin/main") == Tag(source.resolve("main").commit)
    pull(copy)
    assert _same(source, copy, "main")


# -- fetch and pull -------------------------------------------------------------------------------


def test_fetch_moves_no_branch_and_keeps_tags_that_differ(
    source: Repository, tmp_path: Path
) -> None:
    copy = clone(source, tmp_path / "copy")
    before = copy.branches()
    tip = commit(source, {"a/c/5/5": b"more"}, "four")
    source.create_tag("v2")
    first = source.tags()["v1"]
    copy.delete_tag("v1")
    ours = copy.create_tag("v1", "main")
    report = fetch(copy)
    assert report.tags == {"v2": tip}
    assert report.refused == {"v1": first}
    assert copy.tags()["v1"] == ours
    assert copy.branches() == before
    assert copy.refs.tracked("origin/main") == Tag(tip)
    assert contents(copy, tip) == contents(source)


def test_fetch_from_a_place_that_is_no_remote(source: Repository, tmp_path: Path) -> None:
    repo = Repository.open(tmp_path / "repo", create=True)
    with pytest.raises(VersionNotFoundError, match="no remote 'origin'"):
        fetch(repo)
    tip = source.resolve("main").commit
    assert fetch(repo, source.location, branches="main").branches == {"main": tip}
    assert repo.refs.all_tracked() == ["fetched/main"]
    assert repo.refs.remotes() == []
    with pytest.raises(ReadOnlyError):
        fetch(Repository.open(tmp_path / "repo", read_only=True), source.location)


def test_pull_forwards_merges_and_makes_branches(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", branches=["main"])
    tip = commit(source, {"a/c/5/5": b"more"}, "four")
    assert pull(copy).merged["main"].kind == "fast-forward"
    assert copy.resolve("main").commit == tip
    assert pull(copy).merged["main"].kind == "already"
    commit(source, {"a/c/6/6": b"them"}, "theirs")
    commit(copy, {"a/c/7/7": b"ours"}, "ours")
    result = pull(copy).merged["main"]
    assert result.kind == "merge"
    now = contents(copy)
    assert (now["a/c/6/6"], now["a/c/7/7"]) == (b"them", b"ours")
    merged = read_commit(copy.blocks, copy.resolve("main").commit or b"")  # type: ignore[arg-type]
    assert merged.message == "merge origin/main into main"
    assert merged.parents[1] == source.resolve("main").commit
    assert pull(copy, branches=["side"]).merged["side"].kind == "already"
    assert _same(source, copy, "side")
    assert copy.verify(data=True).ok


def test_pull_that_conflicts_leaves_what_it_fetched(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy")
    commit(source, {"a/c/6/6": b"them"}, "theirs")
    ours = commit(copy, {"a/c/6/6": b"ours"}, "ours")
    with pytest.raises(ConflictError) as caught:
        pull(copy)
    assert len(caught.value.conflicts) == 1
    assert copy.resolve("main").commit == ours
    assert copy.refs.tracked("origin/main") == Tag(source.resolve("main").commit)
    pull(copy, resolve="theirs")
    assert contents(copy)["a/c/6/6"] == b"them"


# -- push -----------------------------------------------------------------------------------------


def test_push_forwards_and_copies_just_what_is_new(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy")
    tip = commit(copy, {"a/c/5/5": b"more"}, "four")
    copy.create_tag("v3")
    report = push(copy, tags=["v3"])
    assert report.blocks == 4
    assert source.resolve("main").commit == tip
    assert source.tags()["v3"] == tip
    assert copy.refs.tracked("origin/main") == Tag(tip)
    assert contents(source) == contents(copy)
    assert source.refs.log("main")[-1].why == f"push from {copy.location}"
    assert push(copy).blocks == 0
    copy.create_branch("new")
    commit(copy, {"n/zarr.json": b"{}"}, "new", "new")
    push(copy, branches=["main", "new"])
    assert _same(copy, source, "new", "main")
    with source.session("new") as session:  # and work goes on there
        assert session.prepare().get("n/zarr.json") == b"{}"
    assert source.verify(data=True).ok


def test_push_into_an_empty_repository(source: Repository, tmp_path: Path) -> None:
    target = Repository.open(tmp_path / "target", create=True)
    push(source, target.location, branches=["main", "side"], tags=["v1"])
    assert _same(source, target, "main", "side")
    assert target.refs.tags() == ["v1"]
    with pytest.raises(RepositoryNotFoundError):
        push(source, tmp_path / "nowhere")
    with pytest.raises(ReadOnlyError):
        push(source, Repository.open(tmp_path / "target", read_only=True))
    with pytest.raises(VersionNotFoundError, match="branch 'mian'"):
        push(source, target, branches="mian")
    with pytest.raises(VersionNotFoundError, match="tag 'v7'"):
        push(source, target, tags=["v7"])


def test_push_does_not_drop_what_others_did(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy")
    theirs = commit(source, {"a/c/6/6": b"them"}, "theirs")
    ours = commit(copy, {"a/c/7/7": b"ours"}, "ours")
    before = held(source)
    for _ in range(2):  # the second time their commit is here, but not in our history
        with pytest.raises(ConflictError, match="pull first"):
            push(copy)
        fetch(copy)
    assert source.resolve("main").commit == theirs
    assert held(source) == before
    push(copy, force=True)
    assert source.resolve("main").commit == ours
    assert contents(source, "main@{1}")["a/c/6/6"] == b"them"
    pull(copy)
    push(copy)
    assert _same(copy, source, "main")


def test_push_does_not_drop_uncommitted_work(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy")
    ours = commit(copy, {"a/c/7/7": b"ours"}, "ours")
    with source.session() as session:
        session.prepare().set_value("a/c/1/1", b"work")
    work = source.refs.branch("main")
    with pytest.raises(ConflictError, match="uncommitted work"):
        push(copy)
    assert source.refs.branch("main") == work
    push(copy, force=True)
    assert source.resolve("main").commit == ours
    assert source.refs.log("main")[-1].old == work


def test_push_moves_a_tag_only_by_force(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy")
    copy.delete_tag("v1")
    moved = copy.create_tag("v1", "main")
    tip = commit(copy, {"a/c/7/7": b"ours"}, "ours")
    with pytest.raises(ConflictError, match="tag 'v1'"):
        push(copy, tags=["v1"])
    assert source.resolve("main").commit != tip
    push(copy, tags=["v1"], force=True)
    assert source.tags()["v1"] == moved
    assert source.resolve("main").commit == tip


def test_push_of_a_cut_history_needs_what_came_before(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", depth=1)
    tip = commit(copy, {"a/c/7/7": b"ours"}, "ours")
    other = Repository.open(tmp_path / "other", create=True)
    with pytest.raises(ConflictError, match="history here was cut"):
        push(copy, other)
    assert other.refs.branches() == []
    push(copy)
    assert source.resolve("main").commit == tip
    assert source.refs.shallow() == frozenset()


def test_of_two_pushes_at_once_one_has_to_pull(source: Repository, tmp_path: Path) -> None:
    copies = [clone(source, tmp_path / f"{i}") for i in range(4)]
    for i, copy in enumerate(copies):
        commit(copy, {f"a/c/{i}/7": b"ours"}, f"{i}")
    barrier = threading.Barrier(4)
    won: list[int] = []

    def run(i: int) -> None:
        barrier.wait()
        try:
            push(copies[i])
        except ConflictError:
            return
        won.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    for i, copy in enumerate(copies):
        if i not in won:
            pull(copy)
            push(copy)
    values = contents(source)
    assert all(values[f"a/c/{i}/7"] == b"ours" for i in range(4))
    assert source.verify(data=True).ok


# -- beside a collection of garbage ---------------------------------------------------------------


@pytest.fixture
def littered(source: Repository, tmp_path: Path) -> Repository:
    """Return a clone in which all blocks of a branch of the source are garbage."""
    target = clone(source, tmp_path / "target")
    target.delete_branch("side")
    target.delete_tag("side-tag")
    target.refs.track("origin/side", expected=target.refs.tracked("origin/side"), new=None)
    target.refs.trim_log(1 << 62)
    return target


@contextmanager
def _collection(target: Repository) -> Iterator[None]:
    """Condemn, mark again, let something happen, and sweep."""
    target.refs.trim_log(1 << 62)
    with Collection(target, log_age=timedelta(0)) as collection:
        collection.mark()
        assert collection.publish()
        collection.mark()
        yield
        assert collection.sweep(timedelta(0)).blocks


def test_what_is_condemned_is_not_relied_on(source: Repository, littered: Repository) -> None:
    with _collection(littered):
        push(source, littered, branches="side")
    assert littered.verify(data=True).ok
    assert _same(source, littered, "side", "main")


@pytest.mark.parametrize("call", ["branch", "set_tag"])
def test_what_is_condemned_during_a_push_is_not_relied_on(
    source: Repository, littered: Repository, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = getattr(Placer, call)

    def late(self: Placer, *args: Any, **kwargs: Any) -> None:
        with _collection(littered) if args[0] in ("side", "side-tag") else nullcontext():
            real(self, *args, **kwargs)

    monkeypatch.setattr(Placer, call, late)
    push(
        source,
        littered,
        branches="main" if call == "set_tag" else "side",
        tags=["side-tag"] if call == "set_tag" else [],
    )
    assert littered.verify(data=True).ok
    version = "side-tag" if call == "set_tag" else "side"
    assert contents(littered, version) == contents(source, "side")


def test_what_is_swept_during_a_push_is_missed_and_copied_by_the_next(
    source: Repository, littered: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Placer.branch

    def late(self: Placer, name: str, *args: Any, **kwargs: Any) -> None:
        with _collection(littered):
            pass
        real(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Placer, "branch", late)
        with pytest.raises(StorageError, match="grace time"):
            push(source, littered, branches="side")
    assert littered.verify(data=True).ok
    assert littered.refs.branches() == ["main"]
    assert push(source, littered, branches="side").blocks
    assert _same(source, littered, "side", "main")


def test_nothing_else_of_a_repository_is_copied(source: Repository, tmp_path: Path) -> None:
    """The marks of collections and the log stay where they are."""
    copy = clone(source, tmp_path / "copy")
    assert {move.why for move in copy.refs.log()} == {
        f"clone {source.location}",
        f"fetch from {source.location}",
    }
    shutil.rmtree(source.location)
    assert copy.verify(data=True).ok  # nothing is left behind there


def test_commits_are_kept_to_the_byte(source: Repository, tmp_path: Path) -> None:
    root = source.resolve("main").root
    made = Commit(root=root, parents=(), message="signed", signature=bytes(range(96)))
    cid, data = made.to_block()
    source.blocks.put(cid, data)
    source.blocks.flush()
    source.create_branch("signed", cid)
    copy = clone(source, tmp_path / "copy")
    assert copy.blocks.get(cid) == data
    assert isinstance(copy.blocks, LocalBlocks)


def test_a_push_beside_which_blocks_are_swept_says_to_push_again(
    source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = clone(source, tmp_path / "target")
    target.create_branch("gone")
    commit(target, {"a/c/1/1": b"garbage" * 9}, "gone", "gone")
    target.delete_branch("gone")
    commit(source, {"a/c/2/2": b"garbage" * 9}, "four")
    real = Placer.branch

    def branch(self: Placer, *arguments: Any, **options: Any) -> None:
        collect(target, grace=timedelta(0), log_age=timedelta(0), max_unused=0)
        real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Placer, "branch", branch)
        with pytest.raises(StorageError, match=r"this push is older than .*; push again"):
            push(source, target)
    assert target.verify().ok
    push(source, target)
    assert _same(source, target, "main")


def test_a_history_is_fetched_deeper_while_a_list_is_pending(
    source: Repository, tmp_path: Path
) -> None:
    copy = clone(source, tmp_path / "copy", depth=1, branches=["main"])
    copy.create_branch("gone")
    commit(copy, {"a/c/1/1": b"garbage" * 9}, "gone", "gone")
    copy.delete_branch("gone")
    report = collect(copy, log_age=timedelta(0), max_unused=0)
    assert report.condemned_blocks
    for depth in (2, 3):
        fetch(copy, depth=depth, branches=["main"])
        assert len(list(copy.log())) == depth
    assert copy.refs.shallow() == frozenset()
    assert copy.verify().ok


def test_what_was_behind_a_cut_is_written_anew_where_it_is_condemned(
    source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = clone(source, tmp_path / "copy", branches=["main"])
    expire(copy, keep=1)
    real = type(copy.refs).set_shallow
    pending: list[Collection] = []

    def set_shallow(self: Any, *arguments: Any, **options: Any) -> None:
        if not pending:  # a list comes at the last moment
            pending.append(Collection(Repository.open(copy.location), log_age=timedelta(0)))
            pending[0].mark()
            assert pending[0].publish()
        real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(copy.refs), "set_shallow", set_shallow)
        fetch(copy, depth=9, branches=["main"])
    pending[0].sweep(timedelta(0))
    assert Repository.open(copy.location).verify().ok
    assert len(list(copy.log())) == 3
