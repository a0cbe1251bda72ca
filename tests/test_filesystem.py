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
from cas_zarr.cid import BLAKE3, DAG_PB, RAW, SHA256, CidBytes, cid_of, format_cid
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.dagpb import PBLink, PBNode
from cas_zarr.codecs.unixfs import build_file
from cas_zarr.errors import CorruptBlockError, StorageError
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
    server, cid, _ = served
    fs = _fs(server)
    nowhere = format_cid(cid_of(0x70, BLAKE3, b"nowhere"))
    with pytest.raises(StorageError, match="is not in gateway") as caught:
        fs.cat_file(f"{nowhere}/zarr.json")
    assert not isinstance(caught.value, KeyError | FileNotFoundError)
    chunk = f"{cid}/air/c/1/0"
    with Repository.open(f"ipfs://{cid}", gateways=server.url, cache=False) as repo:
        lost = CASStore(repo).mapping.cid_of("air/c/1/0")
    assert lost is not None
    data = server.blocks.get(lost)
    server.blocks.delete(lost)
    try:
        with pytest.raises(StorageError):  # a reader of mappings takes a KeyError for no chunk
            fs.get_mapper(f"{cid}/air")["c/1/0"]
        (error,) = fs.cat_ranges([chunk], None, None)
        assert isinstance(error, StorageError)
    finally:
        server.blocks.put(lost, data)
    assert fs.cat_file(chunk) == data


def test_a_damaged_file_does_not_keep_the_others(served: tuple[Counting, str, str]) -> None:
    server, cid, _ = served
    fs = _fs(server)
    sound = fs.cat_file(f"{cid}/air/c/0/0")
    answer = server.answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "answer", lambda form, key: (answer(form, key) or b"") + b"!")
        names = [f"{cid}/air/c/{row}/0" for row in range(2)]
        read = fs.cat(names, on_error="return")
        assert read[names[0]] == sound
        assert isinstance(read[names[1]], CorruptBlockError)
        assert fs.cat(names, on_error="omit") == {names[0]: sound}


INLINE = CidBytes(b"\x01\x55\x00\x03abc")


def test_files_of_every_kind_are_read() -> None:
    blocks = MemoryBlocks()
    leaf, rest = b"x" * (1 << 20), b"y" * 300_000
    leaves = [(cid_of(RAW, SHA256, data), len(data)) for data in (leaf, rest)]
    blocks.put_many(zip([cid for cid, _ in leaves], (leaf, rest), strict=True))
    ends_inline, nodes = build_file([leaves[1], (INLINE, 3)], SHA256)
    blocks.put_many(nodes)
    huge, nodes = build_file([leaves[0]] * 5000 + [leaves[1]], SHA256)  # of 5 GB
    blocks.put_many(nodes)
    names = ["alone", "inline", "ends", "huge"]
    links = dict(zip(names, (leaves[1][0], INLINE, ends_inline, huge), strict=True))
    directory = dagpb.encode(
        PBNode(b"\x08\x01", tuple(PBLink(links[name], name) for name in sorted(names)))
    )
    top = cid_of(DAG_PB, SHA256, directory)
    blocks.put(top, directory)
    with counting_gateway(blocks) as server:
        fs = _fs(server)
        cid = format_cid(top)
        assert fs.cat_file(f"{cid}/alone") == rest
        assert fs.cat_file(f"{cid}/inline") == b"abc"
        assert fs.cat_file(f"{cid}/inline", 1, -1) == b"b"
        assert fs.cat_file(f"{cid}/ends") == rest + b"abc"
        assert fs.cat_file(f"{cid}/ends", -4) == b"yabc"
        assert fs.cat_file(f"{cid}/huge", -300_001, -299_999) == b"xy"
        sizes = {one["name"]: one["size"] for one in fs.ls(cid)}
        assert sizes == {
            f"{cid}/alone": len(rest),
            f"{cid}/inline": 3,
            f"{cid}/ends": len(rest) + 3,
            f"{cid}/huge": 5000 * len(leaf) + len(rest),
        }
        one = format_cid(leaves[1][0])
        assert fs.cat_file(one, 2, 5) == b"yyy"
        assert fs.info(f"ipfs://{one}") == {"name": one, "size": len(rest), "type": "file"}
        assert fs.ls(one, detail=False) == [one]
        assert fs.cat_file(format_cid(ends_inline), -2) == b"bc"
        assert fs.cat_file(format_cid(INLINE)) == b"abc"
        with fsspec.open(f"ipfs://{one}", gateways=server.url, cache=False) as file:
            assert file.read() == rest
        with pytest.raises(FileNotFoundError):
            fs.cat_file(f"{one}/below")


def test_a_gateway_cannot_cut_a_file_short(served: tuple[Counting, str, str]) -> None:
    server, _, view = served
    honest = server.answer
    cid = next(one["name"] for one in _fs(server).ls(f"{view}/air/c/0") if one["type"] == "file")
    whole = _fs(server).cat_file(cid)
    with Repository.open(f"ipfs://{view}/air", gateways=server.url, cache=False) as repo:
        chunk = CASStore(repo).mapping.cid_of("c/0/0")
    assert chunk is not None

    def lying(form: str, key: CidBytes) -> bytes | None:
        data = honest(form, key)
        return data if data is None or server.requests[-1][0] != "head" else data[:3]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "answer", lying)
        for name in (cid, format_cid(chunk)):
            fs = _fs(server)
            assert fs.cat_file(name) == whole
            assert fs.info(name)["size"] == len(whole)
            with fs.open(name) as file:
                assert file.read() == whole


def test_what_was_opened_longest_ago_is_forgotten(served: tuple[Counting, str, str]) -> None:
    server, cid, view = served
    fs = _fs(server)
    leaf = cid_of(RAW, SHA256, b"leaf")
    server.blocks.put(leaf, b"leaf")
    tops = []
    for number in range(100):
        data = dagpb.encode(PBNode(b"\x08\x01", (PBLink(leaf, f"{number:03}", 4),)))
        tops.append(cid_of(DAG_PB, SHA256, data))
        server.blocks.put(tops[-1], data)
    first = fs.cat_file(f"{cid}/air/zarr.json")
    for number, top in enumerate(tops):
        assert fs.cat_file(f"{format_cid(top)}/{number:03}") == b"leaf"
        assert len(fs._trees) <= 32
    assert fs.cat_file(f"{cid}/air/zarr.json") == first
    assert fs.cat_file(f"{view}/air/zarr.json") == first
