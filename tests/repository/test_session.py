"""Sessions: flush, commit, two writers, what is left at the end, fork."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from cas_zarr.cid import format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    ConflictError,
    InvalidArgumentError,
    LimitError,
    ReadOnlyError,
    StorageError,
    VersionNotFoundError,
)
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.session import Session, View, close_sessions

Forked = Callable[[Callable[[], object]], int]
Strike = Callable[[int, Callable[[], object]], list[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "repo"


def opened(path: Path) -> Session:
    return Repository.prepare(path).session()


def content(path: Path) -> dict[str, bytes]:
    mapping = opened(path).mapping
    return {key: bytes(mapping[key]) for key in mapping}


def test_a_flush_shows_to_the_next_session(path: Path) -> None:
    one = opened(path)
    one.prepare().set_value("a", b"1")
    assert one.dirty
    assert content(path) == {}
    root = one.flush()
    assert not one.dirty
    assert one.root == root
    assert content(path) == {"a": b"1"}
    assert Repository.open(path).refs.branch("main") == Branch(work=root)
    one.prepare().set_value("b", b"2")
    one.flush()
    assert content(path) == {"a": b"1", "b": b"2"}


def test_nothing_is_made_before_the_first_write(path: Path) -> None:
    one = opened(path)
    assert list(one.mapping) == []
    empty = one.flush()
    one.close()
    assert not path.exists()
    one.prepare().set_value("a", b"1")
    one.prepare().discard("a")
    assert one.flush() == empty


def test_a_flush_of_nothing_moves_no_ref(path: Path) -> None:
    one = opened(path)
    one.prepare().set_value("a", b"1")
    root = one.flush()
    before = (path / "refs/heads/main").stat()
    assert one.flush() == root
    one.prepare().set_value("a", b"2")
    one.prepare().set_value("a", b"1")
    assert one.flush() == root
    assert (path / "refs/heads/main").stat() == before


def test_a_commit_is_a_step_of_history(path: Path) -> None:
    one = opened(path)
    one.prepare().set_value("a", b"1")
    first = one.commit("first", author="A", time=1, metadata={"k": [1, None]})
    one.prepare().set_value("a", b"2")
    second = one.commit("second")
    repository = Repository.open(path)
    log = list(repository.log("main"))
    assert [entry.cid for entry in log] == [second, first]
    assert log[1].commit.message == "first"
    assert log[1].commit.author == "A"
    assert log[1].commit.time == 1
    assert log[1].commit.metadata == {"k": [1, None]}
    assert log[1].commit.parents == ()
    assert log[0].commit.parents == (first,)
    assert log[0].commit.root == one.root
    assert repository.refs.branch("main") == Branch(commit=second, work=one.root)


def test_equal_data_has_an_equal_root_whoever_commits_it(tmp_path: Path) -> None:
    roots = set()
    for name in ("a", "b"):
        one = opened(tmp_path / name)
        one.prepare().set_value("a", b"1")
        one.commit(name, author=name)
        roots.add(one.root)
    assert len(roots) == 1


def test_a_commit_of_an_empty_branch(path: Path) -> None:
    one = opened(path)
    cid = one.commit("nothing yet")
    assert [entry.cid for entry in Repository.open(path).log()] == [cid]


def test_a_bad_message_loses_nothing(path: Path) -> None:
    one = opened(path)
    one.prepare().set_value("a", b"1")
    with pytest.raises(LimitError):
        one.commit("x" * 70_000)
    with pytest.raises(InvalidArgumentError, match="message of a commit is text, not a int"):
        one.commit(5)  # type: ignore[arg-type]
    one.flush()
    assert content(path) == {"a": b"1"}


def test_the_author_is_the_repositorys_unless_said(path: Path) -> None:
    session = Repository.prepare(path, author="Ada <ada@example.org>").session()
    session.commit("one")
    session.commit("two", author="Bo")
    assert [entry.commit.author for entry in Repository.open(path).log()] == [
        "Bo",
        "Ada <ada@example.org>",
    ]


# -- two writers ----------------------------------------------------------------------------------


def test_disjoint_changes_are_united(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a", b"1")
    two.prepare().set_value("b", b"2")
    one.flush()
    root = two.flush()
    assert content(path) == {"a": b"1", "b": b"2"}
    assert bytes(two.mapping["a"]) == b"1"
    one.prepare().set_value("c", b"3")
    assert one.flush() != root
    assert content(path) == {"a": b"1", "b": b"2", "c": b"3"}


def test_united_again_and_again(path: Path) -> None:
    sessions = [opened(path) for _ in range(3)]
    expected = {}
    for turn in range(4):
        for number, session in enumerate(sessions):
            key, value = f"k{number}", b"%d" % turn
            session.prepare().set_value(key, value)
            session.flush()
            expected[key] = value
            assert content(path) == expected


def test_equal_changes_do_not_conflict(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a", b"1")
    two.prepare().set_value("a", b"1")
    assert one.flush() == two.flush()
    assert content(path) == {"a": b"1"}


def test_overlapping_changes_conflict_and_nothing_is_lost(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a", b"1")
    two.prepare().set_value("a", b"2")
    two.prepare().set_value("b", b"2")
    one.flush()
    with pytest.raises(ConflictError, match="conflicts/main/") as caught:
        two.flush()
    assert content(path) == {"a": b"1"}
    repository = Repository.open(path)
    (name,) = repository.refs.all_kept()
    assert repr(name) in str(caught.value)
    kept = repository.at(name)
    assert {key: bytes(kept[key]) for key in kept} == {"a": b"2", "b": b"2"}
    assert format_cid(repository.resolve(name).root) in str(caught.value)
    with pytest.raises(ConflictError):  # it is told again, and kept once
        two.flush()
    assert repository.refs.all_kept() == [name]
    del two, caught  # leaving does not tell what was told
    gc.collect()


def test_a_conflict_can_be_settled_in_the_session(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a", b"1")
    two.prepare().set_value("a", b"2")
    two.prepare().set_value("b", b"2")
    one.flush()
    with pytest.raises(ConflictError):
        two.flush()
    two.prepare().set_value("a", b"1")
    two.flush()
    assert content(path) == {"a": b"1", "b": b"2"}


def test_commits_of_two_writers_are_one_history(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a", b"1")
    two.prepare().set_value("b", b"2")
    first = one.commit("one")
    second = two.commit("two")
    log = list(Repository.open(path).log())
    assert [entry.cid for entry in log] == [second, first]
    assert content(path) == {"a": b"1", "b": b"2"}


def test_a_flush_after_anothers_commit_keeps_the_commit(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a", b"1")
    one.flush()
    three = opened(path)
    commit = one.commit("same work, now history")
    three.prepare().set_value("b", b"2")
    root = three.flush()
    assert Repository.open(path).refs.branch("main") == Branch(commit=commit, work=root)
    two.close()


def test_a_branch_that_was_deleted_meanwhile(path: Path) -> None:
    one = opened(path)
    one.prepare().set_value("a", b"1")
    one.flush()
    one.prepare().set_value("a", b"2")
    Repository.open(path).delete_branch("main", force=True)
    with pytest.raises(ConflictError, match="was deleted meanwhile"):
        one.flush()
    assert len(Repository.open(path).refs.all_kept()) == 1


def _write_own_keys(path: str, number: int, times: int) -> None:
    session = opened(Path(path))
    for turn in range(times):
        session.prepare().set_value(f"{number}.{turn}", b"%d" % number)
        if turn % 2:
            session.commit(f"{number} {turn}")
        else:
            session.flush()


def test_eight_processes_lose_nothing(path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[3].split(':');"
        "from test_session import _write_own_keys;"
        "_write_own_keys(sys.argv[1], int(sys.argv[2]), 6)"
    )
    here = str(Path(__file__).parent)
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(number), here])
        for number in range(8)
    ]
    assert [worker.wait(120) for worker in workers] == [0] * 8
    assert set(content(path)) == {f"{number}.{turn}" for number in range(8) for turn in range(6)}
    assert len(list(Repository.open(path).log())) == 8 * 3


def test_threads_share_a_session(path: Path) -> None:
    session = opened(path)

    def work(number: int) -> None:
        for turn in range(20):
            session.prepare().set_value(f"{number}.{turn}", b"%d" % turn)
            if turn % 5 == 0:
                session.flush()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.flush()
    assert len(content(path)) == 80


# -- the end --------------------------------------------------------------------------------------


def test_what_is_left_is_flushed_when_the_session_goes(path: Path) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"1")
    del session
    assert content(path) == {"a": b"1"}


def test_a_session_in_a_cycle_is_flushed_by_the_collector(path: Path) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"1")
    cycle: list[object] = [session]
    cycle.append(cycle)
    del session, cycle
    gc.collect()
    assert content(path) == {"a": b"1"}  # the next session waits for it


def test_leaving_and_closing_flush(path: Path) -> None:
    with opened(path) as session:
        session.prepare().set_value("a", b"1")
    assert content(path) == {"a": b"1"}
    session.prepare().set_value("b", b"2")
    session.close()
    session.close()
    assert content(path) == {"a": b"1", "b": b"2"}


def test_an_exit_of_the_interpreter_flushes(path: Path) -> None:
    code = (
        "import sys; from cas_zarr import Repository;"
        "session = Repository.prepare(sys.argv[1]).session();"
        "session.prepare().set_value('a', b'1'); keep = [session]; keep.append(keep);"
        "sys.exit(3)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
    assert result.returncode == 3
    assert content(path) == {"a": b"1"}


def test_work_beside_a_version_that_is_damaged_is_kept(path: Path) -> None:
    repository = Repository.open(path, create=True)
    one, two = repository.session(), repository.session()
    one.prepare()["a"] = b"1"
    two.prepare()["b"] = b"2"
    root = two.flush()
    repository.blocks.delete(root)
    for _ in range(2):
        with pytest.raises(BlockNotFoundError, match=format_cid(root)) as caught:
            one.flush()
        (name,) = repository.refs.all_kept()
        assert f"is kept as {name!r}" in caught.value.__notes__[-1]
    one.close()  # it has been told
    assert dict(repository.at(name)) == {"a": b"1"}


def test_a_conflict_at_exit_is_told_and_kept(path: Path) -> None:
    code = (
        "import sys; from cas_zarr import Repository;"
        "one = Repository.prepare(sys.argv[1]).session();"
        "two = Repository.prepare(sys.argv[1]).session();"
        "one.prepare().set_value('a', b'1'); two.prepare().set_value('a', b'2'); one.flush()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    (name,) = Repository.open(path).refs.all_kept()
    assert name in result.stderr
    assert content(path) == {"a": b"1"}


def test_closing_the_sessions_of_a_repository_flushes_them(path: Path) -> None:
    repository = Repository.open(path, create=True)
    one, two, three = (repository.session() for _ in range(3))
    elsewhere = opened(path)
    for session, key in ((one, "a"), (two, "b"), (elsewhere, "c")):
        session.prepare().set_value(key, b"1")
    close_sessions(repository)
    assert not one.dirty
    assert not two.dirty
    assert elsewhere.dirty  # of another object for the same folder
    repository.blocks.close()
    assert content(path) == {"a": b"1", "b": b"1"}
    three.prepare().set_value("d", b"1")
    three.flush()
    one.prepare().set_value("e", b"1")
    one.commit("after all")
    assert content(path) == dict.fromkeys("abde", b"1")
    elsewhere.flush()


def test_closing_the_sessions_tells_a_conflict_and_goes_on(path: Path) -> None:
    repository = Repository.open(path, create=True)
    sessions = [repository.session() for _ in range(3)]
    for number, session in enumerate(sessions):
        session.prepare().set_value("same", b"%d" % number)
        session.prepare().set_value(f"own {number}", b"1")
    with pytest.raises(ConflictError):
        close_sessions(repository)
    repository.blocks.close()
    kept = Repository.open(path).refs.all_kept()
    assert len(kept) == 2
    found = [content(path), *(dict(Repository.open(path).at(name)) for name in kept)]
    assert {key for one in found for key in one} == {"same", "own 0", "own 1", "own 2"}
    close_sessions(repository)  # what was told is not told again


def test_a_session_that_relies_on_garbage_is_not_harmed_by_a_collection(path: Path) -> None:
    repository = Repository.open(path, create=True)
    with repository.session() as first:
        first.prepare().set_value("a", b"1")
        first.commit("first")
    repository.create_branch("side")
    with repository.session("side") as side:
        for number in range(20):
            side.prepare().set_value(f"b/{number}", b"%d" % number)
        side.commit("side")
    session = opened(path)
    for number in range(10):
        session.prepare().set_value(f"b/{number}", b"%d" % number)  # which are there
    repository.delete_branch("side", force=True)
    repository.refs.trim_log(1 << 62)
    gc_module = importlib.import_module("cas_zarr.repository.gc")
    gc_module.collect(repository, grace=timedelta(hours=1))
    for number in range(10, 20):
        session.prepare().set_value(f"b/{number}", b"%d" % number)  # condemned by now
    session.commit("again")
    for _ in range(2):
        gc_module.collect(Repository.open(path), grace=timedelta(0))
    assert Repository.open(path).verify(data=True).ok
    assert set(content(path)) == {"a", *(f"b/{number}" for number in range(20))}


# -- fork -----------------------------------------------------------------------------------------


def test_a_child_does_not_flush_its_parents_session(path: Path, forked: Forked) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"1")

    def body() -> None:
        nonlocal session
        session.close()
        del session
        gc.collect()

    assert forked(body) == 0
    assert content(path) == {}
    session.flush()
    assert content(path) == {"a": b"1"}


def test_a_child_of_a_clean_parent_writes_for_itself(path: Path, forked: Forked) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"1")
    session.flush()

    def body() -> None:
        assert bytes(session.mapping["a"]) == b"1"
        session.prepare().set_value("child", b"1")
        session.flush()

    assert forked(body) == 0
    session.prepare().set_value("parent", b"1")
    session.flush()
    assert content(path) == {"a": b"1", "child": b"1", "parent": b"1"}


def test_a_child_of_an_unflushed_parent_must_not_write(path: Path, forked: Forked) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"1")

    def body() -> None:
        with pytest.raises(CasZarrError, match="forked"):
            session.prepare()

    assert forked(body) == 0


# -- crashes and failing disks --------------------------------------------------------------------


def test_a_kill_at_any_write_of_a_commit(
    path: Path, forked: Forked, strike: Strike, die: Callable[[], None]
) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"0")
    session.commit("0")
    del session
    before = content(path)
    at, died = 0, True
    while died:
        at += 1
        after = {"a": b"%d" % at, "b": b"%d" % at}

        def body(at: int = at, after: dict[str, bytes] = after) -> None:
            other = opened(path)
            strike(at, die)
            for key, value in after.items():
                other.prepare().set_value(key, value)
            other.commit(str(at))

        died = forked(body) != 0
        now = content(path)
        assert now in (before, after)
        log = list(Repository.open(path).log())
        assert log[-1].commit.message == "0"
        for entry in log:
            version = Repository.open(path).at(entry.cid)
            assert {bytes(version[key]) for key in version} == {entry.commit.message.encode()}
        before = now
    assert at > 8
    assert before == after


@pytest.mark.parametrize("number", [5, 28])
def test_a_failing_disk_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, strike: Strike, number: int
) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"0")
    session.flush()

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    at, calls = 0, [""]
    while len(calls) >= at:
        at += 1
        value = b"%d" % at
        before = content(path)
        calls = strike(at, fail)
        try:
            session.prepare().set_value("a", value)
            session.commit(str(at))
            failed = False
        except StorageError:
            failed = True
        monkeypatch.undo()
        assert content(path) in (before, {"a": value})
        session.prepare().set_value("a", value)
        session.flush()
        assert content(path) == {"a": value}
        assert failed or len(calls) < at or content(path) == {"a": value}
    assert at > 8


@pytest.mark.parametrize("verb", ["flush", "commit"])
def test_an_interrupt_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, strike: Strike, verb: str
) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"0")
    session.flush()

    def interrupt() -> None:
        raise KeyboardInterrupt

    at, calls = 0, [""]
    while len(calls) >= at:
        at += 1
        value = b"%d" % at
        session.prepare().set_value("a", value)
        calls = strike(at, interrupt)
        with suppress(KeyboardInterrupt):
            session.flush() if verb == "flush" else session.commit(str(at))
        monkeypatch.undo()
        session.close()  # what an exit would do
        assert content(path) == {"a": value}
    assert at > 6


# -- bad input ------------------------------------------------------------------------------------


def test_sessions_that_cannot_be(path: Path) -> None:
    opened(path).commit("first")
    with pytest.raises(ReadOnlyError):
        Repository.open(path, read_only=True).session()
    with pytest.raises(VersionNotFoundError, match="did you mean 'main'"):
        Repository.open(path).session("mian")


def test_a_view_has_no_branch(path: Path) -> None:
    opened(path).commit("first")
    repository = Repository.open(path)
    view = View(repository.at("main"), repository)
    assert view.flush() == repository.resolve("main").root
    view.close()
    with pytest.raises(ReadOnlyError):
        view.prepare()
    with pytest.raises(InvalidArgumentError):
        view.commit("no")


def test_a_subtree_that_was_named_can_be_opened_after_its_session_was_closed(
    tmp_path: Path,
) -> None:
    with Repository.open(tmp_path / "r", create=True).session() as session:
        session.mapping["g/zarr.json"] = b"{}"
    with Repository.open(tmp_path / "r").session() as session:
        cid = session.mapping.cid("g")
    assert list(Repository.open(tmp_path / "r").at(cid)) == ["zarr.json"]


def test_what_was_not_flushed_can_be_dropped(path: Path) -> None:
    session = opened(path)
    session.prepare().set_value("a", b"1")
    session.flush()
    with opened(path) as other:
        other.prepare().set_value("a", b"theirs")
    session.prepare().set_value("a", b"2")
    session.prepare().set_value("b", b"2")
    with pytest.raises(ConflictError):
        session.flush()
    session.discard()
    assert not session.dirty
    assert dict(session.mapping.items()) == {"a": b"theirs"}
    session.prepare().set_value("b", b"3")
    session.close()
    assert content(path) == {"a": b"theirs", "b": b"3"}


def test_dropping_what_was_not_flushed_where_nothing_is_yet(path: Path) -> None:
    session = Repository.prepare(path).session()
    session.discard()
    session.prepare().set_value("a", b"1")
    session.discard()
    session.close()
    assert content(path) == {}


def test_dropping_leaves_nothing_even_where_the_branch_is_gone(path: Path) -> None:
    repo = Repository.prepare(path)
    with repo.session() as first:
        first.prepare().set_value("a", b"1")
    repo.create_branch("b", first.root)
    session = repo.session("b")
    session.prepare().set_value("b", b"2")
    repo.delete_branch("b", force=True)
    with pytest.raises(VersionNotFoundError):
        session.discard()
    session.close()
    assert repo.refs.all_kept() == []
