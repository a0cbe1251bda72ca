"""CAR files between this package and Kubo."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cas_zarr import CASStore
from cas_zarr.blocks.carfile import CarBlocks
from cas_zarr.cid import format_cid
from cas_zarr.repository.applying import import_car
from cas_zarr.repository.exporting import export
from cas_zarr.repository.repository import Repository


@pytest.fixture(params=["blake3", "sha2-256"])
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """Return a repository with two commits, and a value of more than one block."""
    with CASStore(tmp_path / "a.cas", hash=request.param) as store:
        group = zarr.open_group(store, mode="a")
        data = np.random.default_rng(0).integers(0, 1 << 60, (64, 64, 60))
        # so many chunks that their page is a block: links in an embedded page Kubo does not see
        array = group.create_array("t", shape=data.shape, chunks=(8, 8, 60), dtype="i8")
        array[:] = data
        store.commit("one")
        array[0] = 0
        store.commit("two")
    repo = Repository.open(tmp_path / "a.cas")
    with repo.session() as session:
        session.prepare().set_value("large", data.tobytes())
        session.commit("three")
    return repo


def dag_import(kubo: Any, path: Path) -> dict[str, Any]:
    lines = kubo.run("dag", "import", "--stats", "--enc=json", str(path)).splitlines()
    found: dict[str, Any] = {}
    for line in lines:
        found |= json.loads(line)
    return found


@pytest.mark.parametrize("history", [False, True])
def test_kubo_imports_what_is_exported_and_gives_it_back(
    kubo: Any, repo: Repository, tmp_path: Path, history: bool
) -> None:
    car = tmp_path / "x.car"
    report = export(repo, "main", car, history=history)
    told = dag_import(kubo, car)
    with CarBlocks(car) as blocks:
        assert told["Stats"]["BlockCount"] == report.blocks == len(list(blocks.list()))
        size = sum(blocks.size(cid) for cid in blocks.list())
    assert told["Stats"]["BlockBytesCount"] == size
    assert told["Root"]["Cid"]["/"] == format_cid(report.root)
    assert told["Root"]["PinErrorMsg"] == ""

    kubo_car = tmp_path / "kubo.car"
    dag_export(kubo, format_cid(report.root), kubo_car)
    other = Repository.open(tmp_path / "other.cas", create=True, hash=repo.hash)
    done = import_car(other, kubo_car, branch="main")
    assert done.blocks == report.blocks
    assert other.resolve("main").root == repo.resolve("main").root
    with CarBlocks(kubo_car) as theirs, CarBlocks(car) as ours:
        assert theirs.roots == ours.roots == (report.root,)
        assert sorted(theirs.list()) == sorted(ours.list())


def test_a_difference_completes_what_kubo_has(kubo: Any, repo: Repository, tmp_path: Path) -> None:
    export(repo, "main~1", tmp_path / "base.car")
    report = export(repo, "main", tmp_path / "news.car", since="main~1")
    assert dag_import(kubo, tmp_path / "base.car")["Root"]["PinErrorMsg"] == ""
    told = dag_import(kubo, tmp_path / "news.car")
    assert told["Root"] == {
        "Cid": {"/": format_cid(report.root)},
        "PinErrorMsg": "",
    }
    assert told["Stats"]["BlockCount"] == report.blocks + 1  # and the note


def dag_export(kubo: Any, cid: str, path: Path) -> None:
    """Write what `ipfs dag export` gives."""
    request = urllib.request.Request(
        f"{kubo.rpc}/api/v0/dag/export?arg={cid}&progress=false", method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        path.write_bytes(answer.read())
