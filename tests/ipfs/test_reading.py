"""Reading what a real node has: through its gateway and its RPC, by CID and by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from running import Kubo

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid
from cas_zarr.repository.publishing import publish
from cas_zarr.server.running import serve_in_thread


@pytest.fixture
def weather(tmp_path: Path) -> Repository:
    path = str(tmp_path / "weather.cas")
    with CASStore(path) as store:
        for day in range(2):
            dataset = xr.Dataset(
                {"t2m": (("time", "x"), np.arange(400.0).reshape(20, 20) + day)},
                coords={"time": np.arange(20)},
            )
            dataset.chunk({"time": 5}).to_zarr(store, mode="w", consolidated=False)
            store.commit(f"day {day}")
    return Repository.open(path)


def test_a_root_and_a_history_from_a_node(weather: Repository, kubo: Kubo, tmp_path: Path) -> None:
    report = publish(weather, to=kubo.rpc, history=True)
    commit = weather.resolve("main").commit
    assert commit is not None
    for number, options in enumerate(
        ({"gateways": kubo.gateway}, {"node": kubo.rpc, "gateways": ()})
    ):
        options["cache"] = tmp_path / f"cache{number}"
        with CASStore(f"ipfs://{format_cid(commit)}", **options) as store:
            read = xr.open_zarr(store)
            assert read.t2m.values[3, 4] == 65.0
        before = CASStore(f"ipfs://{format_cid(commit)}", version="main~1", **options)
        assert xr.open_zarr(before).t2m.values[3, 4] == 64.0
        found = Repository.open(f"ipfs://{format_cid(commit)}", **options)
        assert [entry.commit.message for entry in found.log()] == ["day 1", "day 0"]
    assert report.cid


def test_a_name_stays_at_what_it_stood_for(weather: Repository, kubo: Kubo) -> None:
    first = publish(weather, "main~1", to=kubo.rpc, name="reading")
    assert first.ipns is not None
    name = first.ipns.removeprefix("ipns://").removeprefix("/ipns/")
    options = {"node": kubo.rpc, "gateways": (), "cache": False}
    store = CASStore(f"ipns://{name}", **options)
    assert zarr.open_group(store=store, mode="r")["t2m"][3, 4] == 64.0
    repo = Repository.open(f"ipns://{name}", **options)
    assert repo.location == f"ipns://{name}"
    assert repo.fixed in repr(repo)
    assert repo.fixed.startswith("ipfs://")
    publish(weather, to=kubo.rpc, name="reading")
    assert zarr.open_group(store=store, mode="r")["t2m"][3, 5] == 65.0
    newer = CASStore(f"ipns://{name}", **options)
    assert zarr.open_group(store=newer, mode="r")["t2m"][3, 5] == 66.0


def test_a_tree_of_files_that_someone_else_published(
    weather: Repository, kubo: Kubo, tmp_path: Path
) -> None:
    folder = tmp_path / "plain.zarr"
    xr.open_zarr(CASStore(weather, read_only=True)).to_zarr(folder, mode="w", consolidated=False)
    cid = kubo.run("add", "-r", "-Q", str(folder)).strip()
    store = CASStore(f"ipfs://{cid}", gateways=kubo.gateway, cache=False)
    assert xr.open_zarr(store).t2m.values[3, 4] == 65.0
    array = zarr.open_array(
        CASStore(f"{kubo.gateway}/ipfs/{cid}/t2m", gateways=(), cache=False), mode="r"
    )
    assert array[3, 4] == 65.0


def test_a_repository_that_is_served(weather: Repository, tmp_path: Path) -> None:
    with serve_in_thread(weather) as server:
        store = CASStore(server.url, version="main~1")
        assert xr.open_zarr(store).t2m.values[3, 4] == 64.0
        with Repository.clone(server.url, tmp_path / "copy.cas") as copy:
            assert [entry.commit.message for entry in copy.log()] == ["day 1", "day 0"]
        Repository.clone(server.url, tmp_path / "part.cas", paths="time").close()
        with Repository.open(tmp_path / "part.cas") as part:
            assert part.blocks.remote
            assert xr.open_zarr(CASStore(part)).t2m.values[3, 4] == 65.0
        again = CASStore(tmp_path / "part.cas", read_only=True)
    assert xr.open_zarr(again).t2m.values[3, 4] == 65.0  # it was kept
