"""zarrita.js reads arrays over HTTP, from our gateway and from Kubo's."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from running import Kubo, NodeJs

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid
from cas_zarr.repository.publishing import publish
from cas_zarr.repository.unixfsview import UnixfsView
from cas_zarr.server.running import serve_in_thread

AIR = np.random.default_rng(1).normal(280, 10, (6, 20, 30)).astype("f4")
COUNTS = np.arange(70, dtype="i4")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    location = tmp_path_factory.mktemp("zarrita") / "weather.cas"
    with CASStore(location) as store:
        group = zarr.open_group(store, mode="a")
        air = group.create_array(
            "air",
            shape=AIR.shape,
            chunks=(1, 10, 16),
            dtype="f4",
            attributes={"units": "K"},
            compressors=zarr.codecs.GzipCodec(),
        )
        air[:] = AIR
        counts = group.create_array(
            "sharded/counts", shape=COUNTS.shape, chunks=(5,), shards=(35,), dtype="i4"
        )
        counts[:] = COUNTS
        store.commit("first import")
    repo = Repository.open(location)
    # a publication makes the folders of the view for the node alone; our gateway needs them here
    for cid, made in UnixfsView(repo.blocks, repo.resolve("main").root).blocks():
        if made is not None:
            repo.blocks.put(cid, made)
    repo.blocks.flush()
    return repo


@pytest.mark.parametrize("place", ["version", "root", "view", "kubo"])
def test_it_reads_arrays(repo: Repository, node_js: NodeJs, kubo: Kubo, place: str) -> None:
    root = format_cid(repo.resolve("main").root)
    with serve_in_thread(repo) as server:
        if place == "version":
            url = f"{server.url}/zarr/main"
        elif place == "root":
            url = f"{server.url}/ipfs/{root}"
        else:
            view = format_cid(publish(repo, to=kubo.rpc, view="unixfs").cid)
            url = f"{server.url if place == 'view' else kubo.gateway}/ipfs/{view}"
        air = node_js.json("zarrita.mjs", url, "air")
        assert (air["shape"], air["dtype"]) == (list(AIR.shape), "float32")
        assert air["attributes"] == {"units": "K"}
        assert np.array_equal(np.array(air["values"], "f4"), AIR.ravel())
        some = node_js.json("zarrita.mjs", url, "air", "2", "4")
        assert np.array_equal(np.array(some["values"], "f4"), AIR[2:4].ravel())
        counts = node_js.json("zarrita.mjs", url, "sharded/counts")
        assert counts["values"] == COUNTS.tolist()
