"""What is left after a process died, or the disk was full, at any system call of a transfer."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from syncing import commit, contents, grid, held

from cas_zarr.cid import CidBytes
from cas_zarr.errors import StorageError
from cas_zarr.repository import transfer
from cas_zarr.repository.history import ancestors
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.sync import clone, pull, push
from cas_zarr.testing.faults import DEATHS, EXIT_CODE, DiskFault
from cas_zarr.tree.walk import reachable

Forked = Callable[[Callable[[], object]], int]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a repository, an older clone of it, and one that went its own way."""
    folder = tmp_path_factory.mktemp("template")
    source = Repository.open(folder / "source", create=True)
    commit(source, grid("a", 6) | {"g/zarr.json": b"{}"}, "one")
    for name in ("target", "other"):
        clone(source, folder / name).close()
    other = Repository.open(folder / "other")
    commit(other, {"a/c/5/5": b"ours"}, "ours")
    other.close()
    commit(source, {f"a/c/0/{i}": b"new%d" % i for i in range(6)}, "two")
    source.create_branch("side")
    commit(source, grid("b", 5, 7), "of the side", "side")
    source.create_tag("v1")
    source.close()
    return folder


@pytest.fixture(autouse=True)
def _flush_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_FLUSH_BLOCKS", 12)
    monkeypatch.setattr(transfer, "_READ", 5)
    # It is processes that die here, not the machine; the calls are counted all the same.
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # noqa: ARG005


def _push(folder: Path) -> None:
    source = Repository.open(folder / "source", read_only=True)
    push(source, folder / "target", branches=["main", "side"], tags=["v1"])


def _needed(repo: Repository, *branches: str) -> set[CidBytes]:
    found: set[CidBytes] = set()
    for branch in branches:
        for cid in ancestors(repo, branch):
            root = repo.resolve(cid).root
            found |= {cid, *(block for _, block in reachable(repo.blocks, root))}
    return found


def _check_push(folder: Path, before: dict[str, Branch]) -> None:
    source = Repository.open(folder / "source", read_only=True)
    target = Repository.open(folder / "target")
    new = source.branches()
    for name in ("main", "side"):
        assert target.refs.branch(name) in (before.get(name), new[name])
    assert target.tags() in ({}, source.tags())
    assert target.verify(data=True).ok
    assert contents(target, before["main"].commit or "")["a/c/0/0"] == bytes(4)
    rest = _needed(source, "main", "side") - held(target)
    report = push(source, target, branches=["main", "side"], tags=["v1"])
    assert report.blocks == len(rest)
    for name in ("main", "side"):
        assert target.refs.branch(name) == new[name]
        assert contents(target, name) == contents(source, name)
    assert target.tags() == source.tags()
    assert target.verify(data=True).ok
    target.close()
    source.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", DEATHS)
def test_a_push_that_dies_at_any_call_loses_nothing(
    template: Path, tmp_path: Path, forked: Forked, how: str
) -> None:
    target = Repository.open(template / "target", read_only=True)
    before = target.branches()
    target.close()
    at = deaths = 0
    while True:
        at += 1
        folder = tmp_path / f"{at}"
        shutil.copytree(template, folder)

        def die(folder: Path = folder, at: int = at) -> None:
            with DiskFault(at, how):
                _push(folder)

        status = forked(die)
        assert status in (0, EXIT_CODE)
        _check_push(folder, before)
        shutil.rmtree(folder)
        if status == 0:
            break
        deaths += 1
    assert deaths > 50


@pytest.mark.slow
@pytest.mark.parametrize("how", ["half", "power"])
def test_a_clone_that_dies_at_any_call_is_finished_by_the_next(
    template: Path, tmp_path: Path, forked: Forked, how: str
) -> None:
    source = Repository.open(template / "source", read_only=True)
    needed = _needed(source, "main", "side")
    expected = {name: contents(source, name) for name in ("main", "side")}
    at = deaths = 0
    while True:
        at += 1
        target = tmp_path / f"{at}"

        def die(target: Path = target, at: int = at) -> None:
            with DiskFault(at, how):
                clone(template / "source", target)

        status = forked(die)
        assert status in (0, EXIT_CODE)
        there: set[CidBytes] = set()
        if (target / "cas-zarr.json").exists():
            half = Repository.open(target)
            assert half.verify(data=True).ok
            there = held(half)
            half.close()
        told = [0]
        copy = clone(template / "source", target, progress=lambda n, _, told=told: told.append(n))
        assert told[-1] == len(needed - there)
        assert held(copy) == needed
        assert {name: contents(copy, name) for name in copy.refs.branches()} == expected
        assert copy.tags() == source.tags()
        copy.close()
        shutil.rmtree(target)
        if status == 0:
            break
        deaths += 1
    assert deaths > 60


@pytest.mark.slow
def test_a_pull_that_dies_at_any_call_loses_nothing(
    template: Path, tmp_path: Path, forked: Forked
) -> None:
    at = deaths = 0
    while True:
        at += 1
        folder = tmp_path / f"{at}"
        shutil.copytree(template / "other", folder)
        repo = Repository.open(folder, read_only=True)
        before = repo.refs.branch("main")
        repo.close()

        def die(folder: Path = folder, at: int = at) -> None:
            with DiskFault(at, "half"):
                pull(Repository.open(folder))

        status = forked(die)
        assert status in (0, EXIT_CODE)
        repo = Repository.open(folder)
        assert repo.verify(data=True).ok
        ours = contents(repo)
        assert ours["a/c/5/5"] == b"ours"
        assert (ours["a/c/0/0"] == b"new0") == (repo.refs.branch("main") != before)
        pull(repo)
        now = contents(repo)
        assert (now["a/c/5/5"], now["a/c/0/0"]) == (b"ours", b"new0")
        assert repo.verify(data=True).ok
        repo.close()
        shutil.rmtree(folder)
        if status == 0:
            break
        deaths += 1
    assert deaths > 20


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_push_that_fails_can_be_repeated(template: Path, tmp_path: Path, number: int) -> None:
    target = Repository.open(template / "target", read_only=True)
    before = target.branches()
    target.close()
    failures = 0
    for at in (*range(1, 12, 2), *range(12, 200, 9)):
        folder = tmp_path / f"{at}"
        shutil.copytree(template, folder)
        with DiskFault(at, number, times=1 << 30) as fault:  # a disk that stays full
            try:
                _push(folder)
            except StorageError as error:
                failures += error.errno == number
        _check_push(folder, before)
        shutil.rmtree(folder)
        if not fault.reached:
            break
    assert failures > 5
