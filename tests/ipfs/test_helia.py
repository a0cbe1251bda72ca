"""Helia reads what cas_zarr wrote: it knows IPLD, UnixFS and BLAKE3, and nothing of cas_zarr."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import zarr
from running import Kubo, NodeJs
from zarr.core.buffer import default_buffer_prototype

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid
from cas_zarr.repository.publishing import publish
from cas_zarr.repository.unixfsview import UnixfsView
from cas_zarr.server.running import serve_in_thread
from cas_zarr.tree.walk import reachable

SHAPE = (12, 64, 64)  # 768 chunks: two levels of pages


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    location = tmp_path_factory.mktemp("helia") / "weather.cas"
    random = np.random.default_rng(0)
    with CASStore(location) as store:
        group = zarr.open_group(store, mode="a")
        air = group.create_array("air", shape=SHAPE, chunks=(1, 8, 8), dtype="f4")
        air[:] = random.normal(280, 10, SHAPE)
        mask = group.create_array("sea/mask", shape=(4, 4), chunks=(2, 2), dtype="i2")
        mask[:] = np.arange(16).reshape(4, 4)  # its page lies within the root
        store.commit("first import")
    repo = Repository.open(location)
    # a publication makes the folders of the view for the node alone; our gateway needs them here
    for cid, made in UnixfsView(repo.blocks, repo.resolve("main").root).blocks():
        if made is not None:
            repo.blocks.put(cid, made)
    repo.blocks.flush()
    return repo


def expected(repo: Repository) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of every block that the root of main leads to."""
    found = {}
    for _, cid in reachable(repo.blocks, repo.resolve("main").root):
        data = bytes(repo.blocks.get(cid))
        found[format_cid(cid)] = len(data), hashlib.sha256(data).hexdigest()
    return found


def walked(node_js: NodeJs, gateway: str, cid: str) -> dict[str, tuple[int, str]]:
    found = node_js.json("helia.mjs", "walk", gateway, cid)
    return {cid: (size, digest) for cid, _, size, digest in found}


def test_it_finds_every_block_in_our_gateway(repo: Repository, node_js: NodeJs) -> None:
    blocks = expected(repo)
    assert len(blocks) > 768
    with serve_in_thread(repo) as server:
        assert walked(node_js, server.url, format_cid(repo.resolve("main").root)) == blocks


def test_it_finds_every_block_in_kubo(repo: Repository, node_js: NodeJs, kubo: Kubo) -> None:
    report = publish(repo, to=kubo.rpc)
    assert walked(node_js, kubo.gateway, format_cid(report.cid)) == expected(repo)


@pytest.mark.parametrize("through", ["kubo", "ours"])
def test_it_reads_the_view_of_files(
    repo: Repository, node_js: NodeJs, kubo: Kubo, through: str
) -> None:
    report = publish(repo, to=kubo.rpc, view="unixfs")
    store = CASStore(repo.location, version="main")
    values = {
        key: store.get_sync(key, prototype=default_buffer_prototype())
        for key in ("zarr.json", "air/zarr.json", "air/c/0/0/0", "air/c/11/7/7", "sea/mask/c/1/1")
    }
    urls = [f"ipfs://{format_cid(report.cid)}/{key}" for key in values]
    with serve_in_thread(repo) as server:
        gateway = kubo.gateway if through == "kubo" else server.url
        answers = node_js.json("helia.mjs", "fetch", gateway, *urls)
    for (key, value), (status, _, digest) in zip(values.items(), answers, strict=True):
        assert value is not None
        assert (status, digest) == (200, hashlib.sha256(value.to_bytes()).hexdigest()), key


def test_it_does_not_take_what_is_not_there(repo: Repository, node_js: NodeJs, kubo: Kubo) -> None:
    report = publish(repo, to=kubo.rpc, view="unixfs")
    url = f"ipfs://{format_cid(report.cid)}/air/c/99/0/0"
    [[status, _, _]] = node_js.json("helia.mjs", "fetch", kubo.gateway, url)
    assert status == 404
