"""The gateway read by others: zarr and xarray over HTTP, our own client, and a Kubo node."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from running import Kubo

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.gateway import GatewayBlocks
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import as_cid_bytes, format_cid
from cas_zarr.codecs.car import CarReader
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.sync import copy_tree
from cas_zarr.server.running import Server, serve_in_thread
from cas_zarr.tree.walk import reachable

pytest.importorskip("aiohttp")


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    """Return a dataset whose larger variable has values of more than one block."""
    values = np.arange(2 * 600 * 700, dtype="f4").reshape(2, 600, 700)
    return xr.Dataset(
        {"t": (("time", "y", "x"), values), "s": (("time",), np.arange(2.0))},
        attrs={"title": "a dataset"},
    )


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, data: xr.Dataset) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("gateway") / "a.cas"
    with CASStore(folder) as store:
        data.to_zarr(store, mode="w", consolidated=False)
        store.commit("first", author="A <a@b.c>")
    with Repository.open(folder, read_only=True) as found:
        yield found


@pytest.fixture(scope="module")
def server(repo: Repository) -> Iterator[Server]:
    with serve_in_thread(repo) as running:
        yield running


@pytest.fixture(scope="module")
def root(repo: Repository) -> str:
    return format_cid(repo.resolve("main").root)


def test_xarray_reads_it_over_http(server: Server, data: xr.Dataset, root: str) -> None:
    for place in ("zarr/main", f"ipfs/{root}"):
        read = xr.open_zarr(f"{server.url}/{place}", consolidated=True)
        xr.testing.assert_identical(read.load(), data)


def test_zarr_reads_it_over_http(server: Server, data: xr.Dataset, root: str) -> None:
    array = zarr.open_array(f"{server.url}/ipfs/{root}/t", mode="r")
    np.testing.assert_array_equal(array[1, 5:9], data["t"].values[1, 5:9])


def test_zarr_takes_no_missing_block_for_fill_values(repo: Repository, tmp_path: Path) -> None:
    copy = Repository.clone(repo.location, tmp_path / "part.cas", paths="s")
    with copy, serve_in_thread(copy) as server:
        group = zarr.open_group(f"{server.url}/zarr/main", mode="r")
        assert group["s"][:].tolist() == [0, 1]
        with pytest.raises(Exception, match="502"):
            group["t"][0]


def test_our_own_client_copies_it(server: Server, repo: Repository, root: str) -> None:
    with GatewayBlocks(server.url) as blocks:
        target = MemoryBlocks()
        copy_tree(blocks, target, root)
        assert {cid for _, cid in reachable(target, root)} == set(target.list())
        mapping = CASMapping(target, root, read_only=True)
        assert dict(mapping) == dict(repo.at("main"))


def test_one_car_brings_all_of_it(server: Server, repo: Repository, root: str) -> None:
    with urllib.request.urlopen(f"{server.url}/ipfs/{root}?format=car", timeout=20) as answer:
        found = {cid for cid, _ in CarReader(answer)}
    assert found == {cid for _, cid in reachable(repo.blocks, root)}


def test_a_repository_is_cloned(server: Server, repo: Repository, tmp_path: Path) -> None:
    copy = Repository.clone(server.url, tmp_path / "copy.cas")
    with copy:
        assert copy.branches() == repo.branches()
        assert dict(copy.at("main")) == dict(repo.at("main"))
        assert copy.verify(data=True).ok


def test_a_node_imports_a_car(kubo: Kubo, server: Server, repo: Repository, root: str) -> None:
    with urllib.request.urlopen(f"{server.url}/ipfs/{root}?format=car", timeout=20) as answer:
        car = answer.read()
    kubo.run("dag", "import", "--pin-roots=true", input=car)
    for _, cid in reachable(repo.blocks, root):
        stat = kubo.run("block", "stat", "--offline", format_cid(cid))
        assert f"Size: {repo.blocks.size(cid)}" in stat
    assert as_cid_bytes(root) in {cid for _, cid in reachable(repo.blocks, root)}
