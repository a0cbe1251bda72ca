"""Commands that read from IPFS ask what they are told to ask, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from running import Kubo

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid
from cas_zarr.cli.group import cli


def done(*words: str | Path) -> str:
    result = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_published_directory_is_linked_and_read_where_it_is(kubo: Kubo, tmp_path: Path) -> None:
    data = np.random.default_rng(3).random((6, 50_000))
    source = tmp_path / "theirs.zarr"
    zarr.create_array(source, name="a/x", data=data, chunks=(1, 50_000), compressors=None)
    cid = kubo.run("add", "-r", "-Q", "--cid-version=1", str(source)).strip()
    target = tmp_path / "ours.cas"
    where = ("--gateway", kubo.gateway)
    told = done("import", f"ipfs://{cid}/a", target, "--path", "b", *where, "--json")
    report = json.loads(told)
    assert report["linked"] == 6
    assert report["fetched"] == 17  # 9 directories, 2 documents, the tops of 6 files
    assert sum(file.stat().st_size for file in (target / "packs").iterdir()) < data.nbytes // 10
    store = CASStore(str(target), version="main", gateways=kubo.gateway, cache=False)
    assert np.array_equal(zarr.open_array(store, path="b/x", mode="r")[:], data)
    assert "6 x 50000" in done("show", f"ipfs://{cid}", "a/x", *where)


def test_a_clone_by_address_asks_the_gateway_that_is_given(kubo: Kubo, tmp_path: Path) -> None:
    with CASStore(str(tmp_path / "here.cas")) as store:
        zarr.create_array(store, name="x", data=np.arange(9), chunks=(4,))
        store.commit("first")
    with Repository.open(tmp_path / "here.cas") as repo:
        address = f"ipfs://{format_cid(repo.publish(to=kubo.rpc, history=True).cid)}"
    done("clone", address, tmp_path / "copy.cas", "--gateway", kubo.gateway)
    copy = zarr.open_array(CASStore(str(tmp_path / "copy.cas"), version="main"), path="x", mode="r")
    assert copy[:].tolist() == list(range(9))
    with CASStore(str(tmp_path / "here.cas")) as store:
        zarr.open_array(store, path="x", mode="r+")[0] = 7
        store.commit("second")
    with Repository.open(tmp_path / "here.cas") as repo:
        newer = f"ipfs://{format_cid(repo.publish(to=kubo.rpc, history=True).cid)}"
    done("pull", tmp_path / "copy.cas", newer, "--node", kubo.rpc, "--gateway", kubo.gateway)
    copy = zarr.open_array(CASStore(str(tmp_path / "copy.cas"), version="main"), path="x", mode="r")
    assert copy[0] == 7


def test_a_dataset_of_cas_zarr_is_not_a_directory(
    kubo: Kubo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAS_ZARR_GATEWAYS", kubo.gateway)
    with CASStore(str(tmp_path / "here.cas")) as store:
        zarr.create_array(store, name="x", data=np.arange(9), chunks=(4,))
        root = format_cid(store.session.flush())
    words = ["import", f"ipfs://{root}", str(tmp_path / "ours.cas")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code != 0
    assert "clone it" in str(result.exception)
