"""Collections in one process beside writers in others."""

from __future__ import annotations

import multiprocessing
import random
import time
from datetime import timedelta
from pathlib import Path

import pytest
from collecting import ARRAY, GROUP, collect_all, held, make, used, value

from cas_zarr.errors import ConflictError, StorageError
from cas_zarr.repository.gc import collect, repack
from cas_zarr.repository.repository import Repository

_context = multiprocessing.get_context("forkserver")

SECONDS = 8.0


def _write(path: str, name: str, seed: int, results: multiprocessing.Queue[object]) -> None:
    """Write values that others have made garbage of, and make garbage; count what was done."""
    rng = random.Random(seed)
    end = time.monotonic() + SECONDS
    commits = refused = 0
    expected: dict[int, int] = {}
    while time.monotonic() < end:
        repo = Repository.open(path)
        session = repo.session("main" if rng.random() < 0.5 else name)
        mapping = session.prepare()
        chosen = {rng.randrange(40): rng.randrange(60) for _ in range(rng.randrange(1, 12))}
        mapping["zarr.json"] = GROUP
        mapping[f"{name}/zarr.json"] = ARRAY
        for chunk, number in chosen.items():
            mapping[f"{name}/c/{chunk}"] = value(number)
        try:
            session.commit("next")
            commits += 1
            if session.branch == name:
                expected |= chosen
        except StorageError as error:
            if "older than the grace time" not in str(error):
                raise
            session.discard()
            refused += 1
            continue
        except ConflictError:
            session.discard()
            continue
        if rng.random() < 0.2:  # leave it as garbage, with what its history had
            record = repo.refs.branch(name)
            repo.refs.update(name, expected=record, new=repo.refs.branch("empty"))
            expected = {}
        repo.close()
    repo = Repository.open(path)
    found = dict(repo.at(name).items()) if repo.refs.branch(name).commit else {}
    assert {f"{name}/c/{chunk}": value(number) for chunk, number in expected.items()}.items() <= (
        found.items()
    )
    results.put((commits, refused))


def _collect(path: str, results: multiprocessing.Queue[object]) -> None:
    repo = Repository.open(path)
    end = time.monotonic() + SECONDS
    swept = 0
    while time.monotonic() < end:
        report = collect(repo, grace=timedelta(seconds=0.3), log_age=timedelta(0), max_unused=0)
        swept += report.deleted_blocks
        if report.deleted_blocks:
            repack(repo)
        time.sleep(0.05)
    results.put(swept)


@pytest.mark.slow
def test_writers_go_on_beside_collections(tmp_path: Path) -> None:
    path = tmp_path / "r"
    repo = make(path)
    repo.create_branch("empty", None)
    for name in ("w0", "w1"):
        repo.create_branch(name, None)
    repo.close()
    results: multiprocessing.Queue[object] = _context.Queue()
    children = [
        _context.Process(target=_write, args=(str(path), f"w{i}", i, results)) for i in range(2)
    ]
    children.append(_context.Process(target=_collect, args=(str(path), results)))
    for child in children:
        child.start()
    told = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    swept = sum(one for one in told if isinstance(one, int))
    commits = sum(one[0] for one in told if isinstance(one, tuple))
    assert swept > 0
    assert commits > 20
    repo = Repository.open(path)
    assert repo.verify().ok
    for _ in range(2):
        collect_all(repo)
    assert held(repo) == used(repo)
    assert repo.verify().ok
