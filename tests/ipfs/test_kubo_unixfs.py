"""UnixFS with programs of others: the directories they make, the view they read, what we import."""

from __future__ import annotations

import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from running import Kubo, NodeJs

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.readonly import ReadOnlyBlocks
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import BLAKE3, RAW, SHA256, CidBytes, HashFunction, cid_of, format_cid
from cas_zarr.codecs.car import CarWriter
from cas_zarr.codecs.unixfsdir import directory_blocks
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.unixfsimport import import_unixfs, link_unixfs
from cas_zarr.repository.unixfsview import UnixfsView
from cas_zarr.tree.directories import resolve_path
from cas_zarr.tree.keys import DOCUMENTS

BORDER = 5140  # files whose directory has exactly 256 KiB


class NodeBlocks(ReadOnlyBlocks):
    """The blocks of a node, one request each."""

    location = "a node"

    def __init__(self, kubo: Kubo) -> None:
        self.kubo = kubo
        self.asked: list[CidBytes] = []

    def _read(self, cid: CidBytes) -> bytes | None:
        self.asked.append(cid)
        url = f"{self.kubo.rpc}/api/v0/block/get?offline=true&arg={format_cid(cid)}"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
            return bytes(answer.read())

    def _has(self, cid: CidBytes) -> bool:
        return self._read(cid) is not None

    def _size(self, cid: CidBytes) -> int | None:
        return len(self._read(cid) or b"")


def send(kubo: Kubo, view: UnixfsView, source: Any) -> str:
    """Import a view into a node, and pin it: so the node has all of it, and all sizes are right."""
    file = BytesIO()
    writer = CarWriter(file)
    for cid, data in view.blocks():
        writer.put(cid, source.get(cid) if data is None else data)
    writer.finish()
    kubo.run("dag", "import", "--pin-roots=false", input=file.getvalue())
    kubo.run("pin", "add", format_cid(view.cid))
    return format_cid(view.cid)


@pytest.fixture(scope="module")
def profiled(kubo: Kubo, tmp_path_factory: pytest.TempPathFactory) -> Kubo:
    """Return another node, which writes what the profile says; it need not run to do so."""
    node = Kubo(kubo.program, tmp_path_factory.mktemp("profiled"))
    node.run("config", "profile", "apply", "unixfs-v1-2025")
    return node


def made(n: int, function: HashFunction) -> tuple[str, int]:
    contents = [b"%d" % (i % 10) for i in range(n)]
    names = [f"f{i:06d}" for i in range(n)]
    cids = b"".join(cid_of(RAW, function, data) for data in contents)
    *_, top = directory_blocks(names, cids, [len(data) for data in contents], function)
    return format_cid(top.cid), top.tsize


MANY = [pytest.param(n, marks=pytest.mark.slow) for n in (10_000, 50_000)]


@pytest.mark.parametrize("n", [1, 2, 257, 1000, BORDER, BORDER + 1, *MANY])
def test_a_directory_has_the_cid_that_kubo_gives_it(profiled: Kubo, n: int, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(n):
        (folder / f"f{i:06d}").write_bytes(b"%d" % (i % 10))
    for function in (SHA256, BLAKE3):
        # not with --only-hash, which decides by another size of the directory
        options = ("--pin=false", f"--hash={function.name}")
        assert (
            profiled.run("add", "-r", "-Q", *options, str(folder)).strip() == made(n, function)[0]
        )


@pytest.mark.parametrize("n", [1, 257, BORDER, BORDER + 1, *MANY[:1]])
def test_a_directory_has_the_cid_and_the_size_that_the_importer_gives_it(
    node_js: NodeJs, n: int
) -> None:
    assert node_js.json("unixfs.mjs", str(n)) == list(made(n, SHA256))


# -- the view -------------------------------------------------------------------------------------


def dataset(*, big: bool = False) -> xr.Dataset:
    rng = np.random.default_rng(7)
    shape = (6, 32, 48)
    t2m = xr.DataArray(rng.standard_normal(shape), dims=("time", "lat", "lon"))
    found = {"t2m": t2m, "flag": t2m.isel(time=0) > 0}
    if big:
        found["big"] = xr.DataArray(rng.standard_normal((2, 200_000)), dims=("n", "m"))
    return xr.Dataset(found, coords={"lat": np.linspace(-90, 90, 32)}, attrs={"title": "ünïcode"})


ENCODING = {"t2m": {"chunks": (2, 16, 16)}, "big": {"chunks": (1, 200_000)}}


def written(store: Any, zarr_format: int, **options: Any) -> xr.Dataset:
    data = dataset(**options)
    encoding = {name: ENCODING[name] for name in data if name in ENCODING}
    data.to_zarr(store, zarr_format=zarr_format, consolidated=False, encoding=encoding)
    return data


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_xarray_reads_the_view_through_the_gateway_of_a_node(
    kubo: Kubo, tmp_path: Path, zarr_format: int, hash: str
) -> None:
    repo = Repository.open(tmp_path / "r", create=True, hash=hash)
    with CASStore(repo) as store:
        data = written(store, zarr_format, big=True)
        root = store.flush()
    before = len(list(repo.blocks.list()))
    cid = send(kubo, UnixfsView(repo.blocks, root), repo.blocks)
    assert len(list(repo.blocks.list())) == before  # nothing is stored for it
    url = f"{kubo.gateway}/ipfs/{cid}"
    with xr.open_zarr(url, consolidated=True) as shown:
        xr.testing.assert_identical(shown.load(), data)
    group = zarr.open_group(url, mode="r")
    assert group.metadata.consolidated_metadata is not None
    np.testing.assert_array_equal(group["t2m"][1, 3:5], data["t2m"][1, 3:5])
    assert "t2m/" in kubo.run("ls", f"/ipfs/{cid}")


def test_the_view_of_a_copy_is_what_kubo_makes_of_its_files(profiled: Kubo, tmp_path: Path) -> None:
    repo = Repository.open(tmp_path / "r", create=True, hash="sha2-256")
    with CASStore(repo) as store:
        written(store, 3, big=True)
        root = store.flush()
    view = UnixfsView(repo.blocks, root)
    source = CASStore(repo, version=root)
    mapping, folder = repo.at(root), tmp_path / "files"
    for key in mapping:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        data = source.get_sync(key) if key.endswith("zarr.json") else mapping[key]
        path.write_bytes(data if isinstance(data, bytes) else data.to_bytes())
    added = profiled.run("add", "-r", "-Q", "--pin=false", str(folder)).strip()
    assert format_cid(view.cid) == added


# -- the import -----------------------------------------------------------------------------------

WAYS = {
    "default": (),
    "v1": ("--cid-version=1",),
    "trickle": ("--trickle", "--cid-version=1", "--chunker=size-65536"),
    "inline": ("--inline", "--inline-limit=64", "--cid-version=1", "--chunker=size-300007"),
    "wrapped leaves": ("--cid-version=1", "--raw-leaves=false"),
    "blake3": ("--hash=blake3",),
}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("way", WAYS)
def test_a_dataset_that_was_added_is_linked_and_read(
    kubo: Kubo, tmp_path: Path, way: str, zarr_format: int
) -> None:
    folder = tmp_path / "files"
    data = written(str(folder), zarr_format, big=True)
    cid = kubo.run("add", "-r", "-H", "-Q", "--pin=false", *WAYS[way], str(folder)).strip()
    node = NodeBlocks(kubo)
    assert resolve_path(node, cid, "t2m").kind == "directory"
    mapping = CASMapping(MemoryBlocks())
    report = import_unixfs(mapping, node, cid, path="of/old")
    root = mapping.flush()
    folders = 1 + sum(1 for path in folder.rglob("*") if path.is_dir())
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    documents = sum(1 for name in names if name in DOCUMENTS)
    assert report.keys == len(names)
    if way in ("v1", "blake3"):
        # directories and documents, and the top nodes of the two files of several leaves
        assert report.fetched == folders + documents + 2
        assert report.linked == len(names) - documents
    held = CASMapping(TieredBlocks(mapping.blocks, [node]), root, read_only=True)
    with xr.open_zarr(CASStore(held), group="of/old", consolidated=False) as found:
        xr.testing.assert_identical(found.load(), data)


def test_what_is_linked_is_read_where_it_was_left(kubo: Kubo, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    data = written(str(folder), 3)
    cid = kubo.run("add", "-r", "-Q", "--pin=false", "--cid-version=1", str(folder)).strip()
    node = NodeBlocks(kubo)
    with Repository.open(tmp_path / "elsewhere", create=True) as elsewhere:
        for path in (".", *(str(path.relative_to(folder)) for path in folder.rglob("*"))):
            entry = resolve_path(node, cid, path.strip("."))
            elsewhere.blocks.put(entry.cid, node.get(entry.cid))
        elsewhere.blocks.flush()
    with Repository.open(tmp_path / "r", create=True) as repo:
        report = link_unixfs(repo, str(tmp_path / "elsewhere"), node, cid, path="old")
        assert report.linked > 0
    with xr.open_zarr(CASStore(tmp_path / "r"), group="old", consolidated=False) as found:
        xr.testing.assert_identical(found.load(), data)
