"""What is left when a collection dies or fails at any one of its changes of the disk."""

from __future__ import annotations

import errno
import gc
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from collecting import NONE, collect_all, content, held, make, used, write

from cas_zarr.errors import StorageError
from cas_zarr.repository.gc import collect, repack
from cas_zarr.repository.repository import Repository
from cas_zarr.testing.faults import DEATHS, EXIT_CODE, DiskFault


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "r"
    make(path).close()
    return path


def _clean(path: str) -> None:
    """Condemn, sweep, write between, compact: every call that changes something."""
    repo = Repository.open(path)
    try:
        collect(repo, log_age=NONE, max_unused=0)
        write(repo, "main", {3: 1003, 4: 9004})  # of these, one is condemned
        collect_all(repo)
        repack(repo)
    finally:
        repo.close()


def _check(path: Path, before: dict[str, bytes]) -> None:
    repo = Repository.open(path)
    assert content(repo) == before
    assert repo.verify().ok
    write(repo, "main", {5: 1005, 6: 9006}, "it goes on")
    for _ in range(2):
        collect_all(repo)
    assert repo.verify().ok
    assert held(repo) == used(repo)
    assert content(repo)["a/c/7"] == before["a/c/7"]
    repo.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", DEATHS)
def test_nothing_in_use_is_lost_by_a_death_at_any_call(
    template: Path, tmp_path: Path, how: str, forked: Callable[[Callable[[], object]], int]
) -> None:
    original = Repository.open(template, read_only=True)
    before = content(original)
    original.close()
    deaths = at = 0
    while True:
        at += 1
        path = tmp_path / f"{at}"
        shutil.copytree(template, path)

        def body(path: Path = path, at: int = at) -> None:
            with DiskFault(at, how):
                _clean(str(path))

        status = forked(body)
        assert status in (0, EXIT_CODE)
        _check(path, before)
        shutil.rmtree(path)
        if status == 0:
            break
        deaths += 1
    assert deaths > 40


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("times", [1, 3])
def test_nothing_in_use_is_lost_by_a_failure_at_any_call(
    template: Path, tmp_path: Path, number: int, times: int
) -> None:
    original = Repository.open(template, read_only=True)
    before = content(original)
    original.close()
    at = 0
    while True:
        at += 1
        path = tmp_path / f"{at}"
        shutil.copytree(template, path)
        with DiskFault(at, number, times=times) as fault, suppress(StorageError):
            _clean(str(path))
        reached = fault.reached
        _check(path, before)
        gc.collect()  # a session that is left flushes, and needs its folder for that
        for thread in threading.enumerate():
            if thread.name == "cas-zarr-flush":
                thread.join()
        shutil.rmtree(path)
        if not reached:
            break
    assert at > 40
