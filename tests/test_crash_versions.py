"""What a death, a power failure or a full disk leaves at any system call of a combination.

Merge, rebase, cherry-pick, revert and a commit that is united with another writer's: the branch is
where it was or where it shall be, all that refs lead to reads back, and a second run completes it.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cas_zarr.errors import StorageError
from cas_zarr.repository.merging import cherry_pick, merge, rebase, revert
from cas_zarr.repository.repository import Repository
from cas_zarr.testing.faults import DEATHS, EXIT_CODE, DiskFault

State = dict[str, tuple[dict[str, bytes], dict[str, bytes], list[str]]]
"""Branch -> data of its commit, data of its work, messages of its history."""

ARRAY = b'{"zarr_format":3,"node_type":"array","shape":[9],"chunk_grid":{"name":"regular"}}'


def _write(repo: Repository, branch: str, values: dict[str, bytes], message: str | None) -> None:
    session = repo.session(branch)
    for key, value in values.items():
        session.mapping.set_value(key, value)
    if message is None:
        session.flush()
    else:
        session.commit(message, time=len(message))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with two branches that went apart, and uncommitted work."""
    place = tmp_path_factory.mktemp("template") / "r.cas"
    repo = Repository.open(place, create=True, author="somebody")
    _write(repo, "main", {"a/zarr.json": ARRAY, "a/c/0": b"first"}, "first")
    repo.create_branch("side")
    _write(repo, "main", {"a/c/1": b"ours" * 300}, "ours")
    _write(repo, "side", {"a/c/2": b"theirs" * 300}, "theirs")
    _write(repo, "side", {"a/c/3": b"again" * 20_000}, "again")
    _write(repo, "main", {"note": b"work"}, None)
    _write(repo, "side", {"side note": b"work"}, None)
    repo.close()
    return place


def _commit_beside_another(repo: Repository) -> None:
    """Commit from a session that began before another writer's commit."""
    if any(entry.commit.message == "late" for entry in repo.log("main")):
        return
    session = repo.session("main")
    session.mapping.set_value("a/c/7", b"late" * 100)
    _write(repo, "main", {"a/c/8": b"between" * 100}, "between")
    session.commit("late", time=99)


ACTIONS: dict[str, tuple[str, Callable[[Repository], object]]] = {
    "merge": ("main", lambda repo: merge(repo, "side", time=50)),
    "rebase": ("side", lambda repo: rebase(repo, "side", onto="main")),
    "cherry-pick": ("main", lambda repo: cherry_pick(repo, "side~1")),
    "revert": ("main", lambda repo: revert(repo, "main", time=50)),
    "unite": ("main", _commit_beside_another),
}


def _act(folder: str, name: str, at: int, how: str) -> None:
    with DiskFault(at, how):
        repo = Repository.open(folder, author="somebody")
        ACTIONS[name][1](repo)
        repo.close()


def _state(repo: Repository) -> State:
    """Read all that the branches lead to."""
    out: State = {}
    for name, record in repo.branches().items():
        work = {} if record.work is None else dict(repo.at(record.work).items())
        messages = [entry.commit.message for entry in repo.log(name)]
        for entry in repo.log(name):
            assert repo.at(entry.cid).items()
        out[name] = dict(repo.at(name).items()), work, messages
    return out


def _after(template: Path, folder: Path, name: str) -> tuple[State, State]:
    """Return what the branches are before and after an action."""
    shutil.copytree(template, folder)
    repo = Repository.open(folder, author="somebody")
    before = _state(repo)
    ACTIONS[name][1](repo)
    after = _state(repo)
    repo.close()
    assert before != after
    return before, after


def _between(state: State, name: str, before: State, after: State) -> bool:
    """Tell whether a state can be found: old, new, or with the other writer's commit alone."""
    if state in (before, after):
        return True
    data, work, messages = after["main"]
    late = {key: value for key, value in data.items() if key != "a/c/7"}
    noted = {key: value for key, value in work.items() if key != "a/c/7"}
    return name == "unite" and state == after | {"main": (late, noted, messages[1:])}


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.slow
def test_a_death_at_any_call_loses_nothing(
    template: Path,
    tmp_path: Path,
    forked: Callable[[Callable[[], object]], int],
    name: str,
    how: str,
) -> None:
    before, after = _after(template, tmp_path / "model", name)
    branch = ACTIONS[name][0]
    at = deaths = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        shutil.copytree(template, folder)
        status = forked(partial(_act, str(folder), name, at, how))
        assert status in (0, EXIT_CODE)
        repo = Repository.open(folder, author="somebody")
        found = _state(repo)
        assert _between(found, name, before, after)
        assert repo.refs.log_damage() == []
        if status == 0:
            assert found == after
            break
        if found == before or name == "unite":  # what was killed can be done again
            ACTIONS[name][1](repo)
        again = _state(repo)
        assert {k: v for k, v in again.items() if k != branch} == {
            k: v for k, v in before.items() if k != branch
        }
        if name != "unite" or found == before:
            assert again == after
        else:
            assert again[branch][0] == after[branch][0]
        assert repo.verify(data=True).ok
        repo.close()
        shutil.rmtree(folder)
        deaths += 1
    assert deaths > 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ACTIONS)
def test_after_a_failed_call_it_can_be_done_again(
    template: Path, tmp_path: Path, name: str, number: int
) -> None:
    before, after = _after(template, tmp_path / "model", name)
    at, reached = 0, True
    while reached:
        at += 1
        folder = tmp_path / str(at)
        shutil.copytree(template, folder)
        repo = Repository.open(folder, author="somebody")
        error = None
        with DiskFault(at, number) as fault:
            try:
                ACTIONS[name][1](repo)
            except StorageError as caught:
                error = caught
        reached = fault.reached
        found = _state(Repository.open(folder, read_only=True))
        assert _between(found, name, before, after)
        if error is not None:
            assert str(folder) in str(error) or error.filename is not None
            if found == before:
                ACTIONS[name][1](repo)
                assert _state(repo) == after
        repo.close()
        shutil.rmtree(folder)
    assert at > 8
