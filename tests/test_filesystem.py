"""ipfs:// as a file system of fsspec."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, cid_of, format_cid
from cas_zarr.errors import BlockNotFoundError
from cas_zarr.filesystem import CasFileSystem
from cas_zarr.repository.unixfsview import UnixfsView
from tests.servers.counting import Counting, counting_gateway


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Let fsspec know the file system, as the entry point of the package does."""
    for protocol in CasFileSystem.protocol:
        fsspec.register_implementation(protocol, CasFileSystem, clobber=True)
    yield
    CasFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Counting, str, str]]:
    """Serve a dataset; return the server, the CID of its root, and that of its UnixFS view."""
    path = str(tmp_path_factory.mktemp("fs") / "r.cas")
    dataset = xr.Dataset(
        {"air": (("time", "x"), np.arange(200.0).reshape(20, 10))},
        coords={"time": np.arange(20), "x": np.arange(10)},
    )
    with CASStore(path) as store:
        dataset.chunk({"time": 5}).to_zarr(store, mode="w", consolidated=False)
        store.commit("data")
    with Repository.open(path) as repo:
        root = repo.resolve("main").root
        view = UnixfsView(repo.blocks, root)
        blocks = MemoryBlocks()
        for cid, data in view.blocks():
            blocks.put(cid, repo.blocks.get(cid) if data is None else data)
        for cid in repo.blocks.list():
            blocks.put(cid, repo.blocks.get(cid))
    with counting_gateway(blocks) as server:
        yield server, format_cid(root), format_cid(view.cid)


def _fs(server: Counting) -> CasFileSystem:
    return CasFileSystem(gateways=server.url, cache=False, skip_instance_cache=True)


@pytest.mark.parametrize("which", [1, 2], ids=["dataset", "unixfs"])
def test_files_and_folders(served: tuple[Counting, str, str], which: int) -> None:
    cid = served[which]
    fs = _fs(served[0])
    names = {one["name"]: one["type"] for one in fs.ls(f"ipfs://{cid}")}
    assert names[f"{cid}/zarr.json"] == "file"
    assert names[f"{cid}/air"] == "directory"
    assert sorted(fs.find(f"{cid}/air")) == [
        *[f"{cid}/air/c/{row}/0" for row in range(4)],
        f"{cid}/air/zarr.json",
    ]
    whole = fs.cat_file(f"{cid}/air/zarr.json")
    assert fs.info(f"{cid}/air/zarr.json")["size"] == len(whole)
    assert fs.cat_file(f"{cid}/air/zarr.json", 3, 9) == whole[3:9]
    assert fs.cat_file(f"{cid}/air/zarr.json", -9, -2) == whole[-9:-2]
    with fs.open(f"{cid}/air/zarr.json") as file:
        assert file.read(5) == whole[:5]
        file.seek(-4, 2)
        assert file.read() == whole[-4:]
    assert b"consolidated_metadata" in fs.cat_file(f"{cid}/zarr.json")
    assert fs.isdir(f"{cid}/air/c")
    assert not fs.exists(f"{cid}/air/c/9/0")
    for missing in ("nothing", "air/c/9/0", "air/zarr.json/x"):
        with pytest.raises(FileNotFoundError):
            fs.cat_file(f"{cid}/{missing}")
    with pytest.raises(IsADirectoryError):
        fs.cat_file(f"{cid}/air")
    parts = fs.cat_ranges([f"{cid}/air/zarr.json"] * 2 + [f"{cid}/none"], [0, 2, 0], [4, 6, 1])
    assert parts[:2] == [whole[:4], whole[2:6]]
    assert isinstance(parts[2], FileNotFoundError)
    read = fs.cat([f"{cid}/air/zarr.json", f"{cid}/zarr.json"])
    assert read[f"{cid}/air/zarr.json"] == whole
    with pytest.raises(NotImplementedError):
        fs.open(f"{cid}/new", "wb")
    assert fs.unstrip_protocol(f"{cid}/a") == f"ipfs://{cid}/a"


@pytest.mark.parametrize("which", [1, 2], ids=["dataset", "unixfs"])
def test_where_users_type_urls(served: tuple[Counting, str, str], which: int) -> None:
    server, cid = served[0], served[which]
    options = {"gateways": server.url, "cache": False}
    with fsspec.open(f"ipfs://{cid}/air/zarr.json", **options) as file:
        assert b"zarr_format" in file.read()
    found = xr.open_zarr(f"ipfs://{cid}", storage_options=options)
    assert found.air.sum() == np.arange(200.0).sum()
    group = zarr.open_group(f"ipfs://{cid}", mode="r", storage_options=options)
    assert group["air"][3, 4] == 34.0


def test_many_files_are_read_at_once(served: tuple[Counting, str, str]) -> None:
    server, cid, _ = served
    fs = _fs(server)
    server.taken()
    server.delay, server.busiest = 0.05, 0
    try:
        read = fs.cat_ranges([f"{cid}/air/c/{row}/0" for row in range(4)], None, None)
    finally:
        server.delay = 0.0
    assert all(isinstance(data, bytes) for data in read)
    assert server.busiest == 4
    assert len(server.taken()) <= 6


def test_what_is_out_of_reach_is_no_missing_file(served: tuple[Counting, str, str]) -> None:
    fs = _fs(served[0])
    nowhere = format_cid(cid_of(0x70, BLAKE3, b"nowhere"))
    with pytest.raises(BlockNotFoundError):
        fs.cat_file(f"{nowhere}/zarr.json")
