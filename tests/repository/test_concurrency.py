"""Many writers of one branch: nothing is lost, and nothing is united that must not be."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pytest
from branches import document

from cas_zarr.cid import format_cid
from cas_zarr.errors import ConflictError
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.session import Session

Forked = Callable[[Callable[[], object]], int]

HERE = str(Path(__file__).parent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a repository with an array of one chunk, committed."""
    with opened(tmp_path / "repo") as session:
        session.prepare().set_value("a/zarr.json", document())
        session.prepare().set_value("a/c/0", b"0")
        session.commit("begin", time=0)
    return tmp_path / "repo"


def opened(path: Path) -> Session:
    return Repository.prepare(path).session()


def content(path: Path) -> dict[str, bytes]:
    mapping = opened(path).mapping
    return {key: bytes(mapping[key]) for key in mapping}


# -- commits that may or may not be united ------------------------------------------------------


@pytest.mark.parametrize("first", ["layout", "chunk"])
def test_a_new_layout_and_a_chunk_of_the_old_are_not_united(path: Path, first: str) -> None:
    def recreate(session: Session) -> None:
        session.prepare().discard_prefix("a/")
        session.prepare().set_value("a/zarr.json", document(data_type="float32"))
        session.prepare().set_value("a/c/0", b"zero")

    def add(session: Session) -> None:
        session.prepare().set_value("a/c/1", b"1")

    verbs = [recreate, add] if first == "layout" else [add, recreate]
    one, two = opened(path), opened(path)
    verbs[0](one)
    verbs[1](two)
    one.commit("first")
    before = content(path)
    with pytest.raises(ConflictError, match="layout") as caught:
        two.commit("second")
    assert [conflict.path for conflict in caught.value.conflicts] == ["a"]
    assert content(path) == before
    (name,) = Repository.open(path).refs.all_kept()
    assert name in str(caught.value)
    assert [entry.commit.message for entry in Repository.open(path).log()] == ["first", "begin"]


def test_a_conflict_has_what_was_changed_twice(path: Path) -> None:
    one, two = opened(path), opened(path)
    for session, value in ((one, b"1"), (two, b"2")):
        session.prepare().set_value("a/c/0", value)
        session.prepare().set_value("a/c/7", value)
    one.commit("first")
    with pytest.raises(ConflictError) as caught:
        two.commit("second")
    found = {
        conflict.coordinates: tuple(
            None if value is None else bytes(two.mapping.blocks.get(value.cid))
            for value in (conflict.base, conflict.ours, conflict.theirs)
        )
        for conflict in caught.value.conflicts
    }
    assert found == {(0,): (b"0", b"2", b"1"), (7,): (None, b"2", b"1")}
    assert {conflict.path for conflict in caught.value.conflicts} == {"a"}


def test_a_commit_that_shall_not_unite_says_what_the_other_did(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a/c/1", b"1")
    one.prepare().set_value("a/c/2", b"1")
    one.prepare().set_value("b/zarr.json", document())
    first = one.commit("first")
    two.prepare().set_value("a/c/3", b"3")
    with pytest.raises(ConflictError, match=r"changed 'a' \(2 chunks\), added 'b'") as caught:
        two.commit("second", rebase=False)
    assert [change.path for change in caught.value.changes] == ["a", "b"]
    assert [c.tolist() for c in (x.coordinates for x in caught.value.changes[0].chunks)] == [
        [[1], [2]]
    ]
    assert caught.value.conflicts == ()
    branch = Repository.open(path).refs.branch("main")
    assert branch is not None
    assert branch.commit == first
    (name,) = Repository.open(path).refs.all_kept()
    assert bytes(Repository.open(path).at(name)["a/c/3"]) == b"3"
    two.commit("second, with theirs")
    assert content(path)["a/c/1"] == b"1"
    assert content(path)["a/c/3"] == b"3"


def test_a_commit_that_shall_not_unite_is_made_where_nothing_moved(path: Path) -> None:
    session = opened(path)
    for turn in range(3):
        session.prepare().set_value("a/c/0", b"%d" % turn)
        session.commit(str(turn), rebase=False)
    assert len(list(Repository.open(path).log())) == 4


def test_a_move_without_a_change_is_told_too(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.commit("the same again")
    two.prepare().set_value("a/c/3", b"3")
    with pytest.raises(ConflictError, match="made a commit of the same data") as caught:
        two.commit("second", rebase=False)
    assert caught.value.changes == ()


def test_what_was_refused_is_not_placed_by_closing(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a/c/1", b"1")
    one.commit("first")
    two.prepare().set_value("a/c/3", b"3")
    with pytest.raises(ConflictError):
        two.commit("second", rebase=False)
    two.close()
    assert "a/c/3" not in content(path)


# -- many processes -----------------------------------------------------------------------------


def _commit_chunks(path: str, number: int, times: int, overlap: int) -> None:
    """Commit a chunk a time; with `overlap` every so many commits one that all want."""
    session = opened(Path(path))
    lost = 0
    for turn in range(times):
        shared = overlap and turn % overlap == 0
        place = f"a/c/{turn % 64}" if shared else f"{number}/{turn}"
        session.prepare().set_value(place, b"%d %d" % (number, turn))
        try:
            session.commit(f"{number} {turn}")
        except ConflictError as error:
            lost += len(error.conflicts)  # each is one chunk
            session = opened(Path(path))
    print(lost)


Worker: TypeAlias = "subprocess.Popen[str]"


def run_writers(
    path: Path, writers: int, times: int, *, overlap: int = 0, first: int = 0
) -> list[Worker]:
    code = (
        "import sys; sys.path[:0] = sys.argv[5:];"
        "from test_concurrency import _commit_chunks;"
        "print('ready', flush=True); sys.stdin.readline();"
        "_commit_chunks(sys.argv[1], *map(int, sys.argv[2:5]))"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(number), str(times), str(overlap), HERE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(first, first + writers)
    ]
    for worker in workers:  # all begin at once, however long the interpreters took to start
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return workers


def finish(workers: list[Worker], seconds: float = 120) -> int:
    """Wait for writers, all of which must end well; return how many commits were refused."""
    told = [worker.communicate(timeout=seconds)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    return sum(map(int, told))


def kill(worker: Worker) -> None:
    worker.send_signal(signal.SIGKILL)
    worker.communicate(timeout=10)
    assert worker.returncode == -signal.SIGKILL


def check_history(path: Path, expected: set[str]) -> None:
    """Check that each commit is there once, in one line, and reads."""
    repository = Repository.open(path)
    log = list(repository.log())
    assert len(log) == len(expected) + 1
    assert {entry.commit.message for entry in log} == expected | {"begin"}
    for newer, older in pairwise(log):
        assert newer.commit.parents == (older.cid,)
    for entry in log[:-1]:
        number, turn = entry.commit.message.split()
        found = repository.at(entry.cid)
        values = [found.get_value(key) for key in (f"{number}/{turn}", f"a/c/{int(turn) % 64}")]
        assert f"{number} {turn}".encode() in values


@pytest.mark.slow
def test_eight_processes_commit_fifty_times_each(path: Path) -> None:
    assert finish(run_writers(path, 8, 50), 500) == 0
    check_history(path, {f"{number} {turn}" for number in range(8) for turn in range(50)})
    assert Repository.open(path).verify().ok
    keys = set(content(path))
    assert {f"{number}/{turn}" for number in range(8) for turn in range(50)} <= keys


def test_what_overlaps_is_a_conflict_of_all_but_one(path: Path) -> None:
    lost = finish(run_writers(path, 4, 12, overlap=3))
    assert lost
    repository = Repository.open(path)
    log = list(repository.log())
    assert len(log) == 1 + 4 * 12 - lost
    assert len(repository.refs.all_kept()) == lost
    done = {entry.commit.message for entry in log}
    for number in range(4):  # what no one else wanted is there whatever became of the rest
        for turn in range(12):
            if turn % 3:
                assert f"{number} {turn}" in done
                assert bytes(repository.at("main")[f"{number}/{turn}"]) == b"%d %d" % (number, turn)
    for name in repository.refs.all_kept():
        kept = repository.at(name)
        assert all(kept[key] is not None for key in kept)
    check_history(path, done - {"begin"})


def _hold_the_lock(path: Path, ready: int) -> None:
    with open(path / "cas-zarr.lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(ready, b"x")
        time.sleep(60)


def test_a_writer_that_is_killed_with_the_lock_stops_nobody(path: Path) -> None:
    ready, told = os.pipe()
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]; from pathlib import Path;"
        "from test_concurrency import _hold_the_lock;"
        "_hold_the_lock(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(told), HERE], pass_fds=[told], text=True
    )
    os.close(told)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    workers = run_writers(path, 4, 6)
    time.sleep(1.0)
    assert all(worker.poll() is None for worker in workers)  # they wait for it
    assert len(list(Repository.open(path).log())) == 1
    kill(holder)
    assert finish(workers) == 0
    check_history(path, {f"{number} {turn}" for number in range(4) for turn in range(6)})


def test_writers_that_are_killed_lose_only_their_own_next_commit(path: Path) -> None:
    workers = run_writers(path, 4, 12)
    (doomed,) = run_writers(path, 1, 100_000, first=4)
    repository = Repository.open(path)
    while not any(entry.commit.message == "4 5" for entry in repository.log()):
        time.sleep(0.02)
    kill(doomed)
    assert finish(workers) == 0
    expected = {f"{number} {turn}" for number in range(4) for turn in range(12)}
    messages = {entry.commit.message for entry in Repository.open(path).log()}
    assert expected <= messages
    check_history(path, messages - {"begin"})
    assert Repository.open(path).verify().ok


# -- the end of a repository ----------------------------------------------------------------------


def test_a_conflict_names_the_root_that_was_kept(path: Path) -> None:
    one, two = opened(path), opened(path)
    one.prepare().set_value("a/c/0", b"1")
    two.prepare().set_value("a/c/0", b"2")
    one.flush()
    with pytest.raises(ConflictError) as caught:
        two.flush()
    refs = Repository.open(path).refs
    (name,) = refs.all_kept()
    kept = refs.kept(name)
    assert isinstance(kept, Branch)
    assert kept.work is not None
    assert format_cid(kept.work) in str(caught.value)
    assert [move.ref for move in refs.log(name)] == [name]
