"""Where repositories are: what locations mean, and what reading over a network asks for."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.cache import CacheBlocks, RecentBlocks
from cas_zarr.blocks.kubo import KuboNode
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.tiered import tier_of
from cas_zarr.cid import BLAKE3, RAW, CidBytes, as_cid_bytes, cid_of, format_cid
from cas_zarr.cli.group import cli
from cas_zarr.codecs.car import CarWriter
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    FormatError,
    InvalidArgumentError,
    NotFoundError,
    ReadOnlyError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository import faraway
from cas_zarr.repository.exporting import export
from cas_zarr.repository.faraway import LOCAL_GATEWAY, PUBLIC_GATEWAYS, Sources
from cas_zarr.repository.opening import parse_location
from cas_zarr.repository.unixfsview import UnixfsView
from tests.servers.counting import Counting, counting_gateway

SOME = format_cid(cid_of(0x0129, BLAKE3, b"{}"))


def test_a_home_is_meant_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    CASStore("~/x.cas").commit("one")
    assert (tmp_path / "x.cas" / "packs").is_dir()
    assert parse_location("~").text == str(tmp_path)
    for there in ("./~/x.cas", f"file://{tmp_path}/~/x.cas"):
        assert parse_location(there).text == str(tmp_path / "~" / "x.cas")
    repo = Repository.open("~/x.cas")
    repo.add_remote("home", "~/y.cas")
    assert repo.remotes() == {"home": str(tmp_path / "y.cas")}


def test_a_repository_is_pickled_by_where_it_is(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "x.cas", author="Ada")
    commit = store.commit("one")
    for read_only in (False, True):
        repo = Repository.open(tmp_path / "x.cas", read_only=read_only, author="Ada")
        copy = pickle.loads(pickle.dumps(repo))
        assert (repr(copy), copy.author, copy.read_only) == (repr(repo), "Ada", read_only)
        assert [entry.cid for entry in copy.log()] == [as_cid_bytes(commit)]
    export(repo, "main", tmp_path / "x.car")
    far = Repository.open(tmp_path / "x.car")
    again = pickle.loads(pickle.dumps(far))
    assert (again.location, again.fixed, again.read_only) == (far.location, far.fixed, True)
    shutil.rmtree(tmp_path / "x.cas")
    with pytest.raises(NotFoundError):
        pickle.loads(pickle.dumps(repo))


@pytest.mark.parametrize(
    ("text", "kind", "shown", "path", "gateway"),
    [
        (f"ipfs://{SOME}", "ipfs", f"ipfs://{SOME}", "", ""),
        (f"IPFS://{SOME}/a/b/", "ipfs", f"ipfs://{SOME}/a/b", "a/b", ""),
        ("ipns://example.org/x", "ipns", "ipns://example.org/x", "x", ""),
        (
            f"https://gw.example/ipfs/{SOME}/a",
            "ipfs",
            f"https://gw.example/ipfs/{SOME}/a",
            "a",
            "https://gw.example",
        ),
        (f"http://h:80/p/ipfs/{SOME}", "ipfs", f"http://h:80/p/ipfs/{SOME}", "", "http://h:80/p"),
        ("http://h/ipns/k51abc", "ipns", "http://h/ipns/k51abc", "", "http://h"),
        ("http://127.0.0.1:8099/", "server", "http://127.0.0.1:8099", "", ""),
        ("https://h/x.car", "car", "https://h/x.car", "", ""),
        ("https://h/x.car?sig=1", "car", "https://h/x.car?sig=1", "", ""),
        ("memory://x", "memory", "memory://x", "", ""),
        ("s3://bucket", "bucket", "s3://bucket", "", ""),
        ("S3://bucket/some/where/", "bucket", "s3://bucket/some/where", "", ""),
        ("gs://bucket/x", "bucket", "gs://bucket/x", "", ""),
        ("abfss://box@me.dfs.core.windows.net/x", "bucket", None, "", ""),
    ],
)
def test_what_an_address_means(
    text: str, kind: str, shown: str | None, path: str, gateway: str
) -> None:
    found = parse_location(text)
    shown = text if shown is None else shown
    assert (found.kind, found.text, found.path, found.gateway) == (kind, shown, path, gateway)
    assert found.remote is (kind != "memory")


def test_what_a_path_means(tmp_path: Path) -> None:
    assert parse_location(tmp_path / "a.cas").kind == "folder"
    assert parse_location(str(tmp_path / "a.car")).kind == "car"
    (tmp_path / "folder.car").mkdir()
    assert parse_location(tmp_path / "folder.car").kind == "folder"
    assert parse_location(f"file://{tmp_path}/a.cas").text == str(tmp_path / "a.cas")
    assert not parse_location(tmp_path / "a.car").remote
    assert parse_location(tmp_path / "A.CAR").kind == "car"
    assert parse_location(f"file://localhost{tmp_path}/a%23b.cas").text == f"{tmp_path}/a#b.cas"


@pytest.mark.parametrize(
    "text",
    [
        "ipfs:/" + SOME,
        "ipfs:" + SOME,
        "ipsf://" + SOME,
        "htp://127.0.0.1:80",
        "http:127.0.0.1",
        "http://",
        "http://h:99999",
        "http://h/x?y=1",
        f"ipfs://{SOME}?format=raw",
        f"ipfs://{SOME}/../a",
        "ipfs://",
        "s4://bucket/prefix",
        "s3://",
        "s3:bucket",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://bucket/a?b",
    ],
)
def test_typos_are_told_what_there_is(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"ipfs://CID, ipns://NAME, http"):
        parse_location(text)


@pytest.mark.parametrize(
    "text",
    [
        f"http://h/ipfs/{SOME}/\udc80",
        f"ipfs://{SOME}/\udc80",
        "http://h/ipns/\udc80",
        "http://\udc80/x",
        "file://[",
        "file:///data/a#b.cas",  # not /data/a
        "file:///data/a?b.cas",
        "file://host/data",
    ],
)
def test_an_address_is_taken_whole_or_not_at_all(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_location(text)


def test_other_addresses_that_mean_nothing() -> None:
    with pytest.raises(InvalidArgumentError, match=f"write ipfs://{SOME}"):
        parse_location(SOME)
    with pytest.raises(InvalidArgumentError, match="names no cid"):
        parse_location("ipfs://bafynonsense")
    with pytest.raises(InvalidArgumentError, match="password") as caught:
        parse_location("https://user:secret@h/x.car")
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="storage_options") as caught:
        parse_location("s3://key:secret@bucket/x")
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="gateway"):
        Sources.of(gateways=["example.org"])
    with pytest.raises(InvalidArgumentError, match="storage_options are a mapping"):
        Sources.of(storage_options=[("endpoint", "x")])  # type: ignore[arg-type]
    for gateway in ("http://[", "http://", "http://user:secret@h", "http://h?x", "http://h /", ""):
        with pytest.raises(InvalidArgumentError) as caught:
            Sources.of(gateways=gateway)
        assert "secret" not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="no address of an ipfs node"):
        Repository.open(f"ipfs://{SOME}", node="127.0.0.1:5001")
    raw = format_cid(cid_of(RAW, BLAKE3, b""))
    with pytest.raises(InvalidArgumentError, match="single block"):
        Repository.open(f"ipfs://{raw}", gateways="http://127.0.0.1:9")


def test_which_gateways_are_asked() -> None:
    assert Sources.of().all_gateways() == (LOCAL_GATEWAY, *PUBLIC_GATEWAYS)
    assert Sources.of(["http://a"]).all_gateways() == ("http://a",)
    assert Sources.of(["http://a"]).all_gateways("http://b") == ("http://b", "http://a")


@pytest.mark.parametrize(
    ("options", "here"),
    [
        ({"gateways": "http://127.0.0.2:80"}, True),
        ({"gateways": ["http://localhost", "http://[::1]:80"]}, True),
        ({"gateways": "http://127.evil.example"}, False),
        ({"gateways": (), "node": "/ip4/127.0.0.1/tcp/5001"}, True),
        ({"gateways": (), "node": KuboNode("http://192.0.2.1:5001")}, False),
        ({"gateways": "http://127.0.0.1", "node": "http://192.0.2.1:5001"}, False),
    ],
)
def test_only_what_is_on_this_machine_is_kept_in_memory(
    options: dict[str, Any], here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with Repository.open(f"ipfs://{SOME}", **options) as repo:
        tier = tier_of(repo.blocks)
        assert tier is not None
        assert isinstance(tier.local, RecentBlocks if here else CacheBlocks)


def test_a_cache_cannot_lie_in_a_repository(tmp_path: Path) -> None:
    Repository.open(tmp_path / "r.cas", create=True).close()
    for folder in (tmp_path / "r.cas", tmp_path / "r.cas" / "packs"):
        for cache in (str(folder), (folder, 1 << 20)):
            with pytest.raises(InvalidArgumentError, match="folder of the repository"):
                Repository.open(f"ipfs://{SOME}", gateways="http://127.0.0.1:9", cache=cache)
    assert Sources.of(cache=tmp_path / "r.cas.cache").cache


# -- reading --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[CidBytes], np.ndarray]:
    """Return a repository of three commits, the commits, and an array in the last."""
    path = str(tmp_path_factory.mktemp("source") / "r.cas")
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1000, (64, 64)).astype("i4")
    with CASStore(path) as store:
        group = zarr.open_group(store=store, mode="a")
        array = group.create_array("air", shape=(64, 64), chunks=(2, 2), dtype="i4")
        group.create_array("ocean/t", data=np.arange(10))
        commits = [store.commit("empty")]
        array[:32] = data[:32]
        commits.append(store.commit("half"))
        array[:] = data
        commits.append(store.commit("whole"))
    return path, [bytes(commit) for commit in commits], data


@pytest.fixture
def gateway(made: tuple[str, list[CidBytes], np.ndarray]) -> Iterator[Counting]:
    with (
        Repository.open(made[0], read_only=True) as source,
        counting_gateway(source.blocks) as server,
    ):
        yield server


def _root(path: str) -> str:
    with Repository.open(path, read_only=True) as source:
        return format_cid(source.resolve("main").root)


def _array(store: CASStore, name: str = "air") -> zarr.Array:
    array = zarr.open_group(store=store, mode="r")[name]
    assert isinstance(array, zarr.Array)
    return array


def test_a_commit_is_a_repository_with_its_history(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting, tmp_path: Path
) -> None:
    _, commits, data = made
    location = f"ipfs://{format_cid(commits[-1])}"
    repo = Repository.open(location, gateways=gateway.url, cache=tmp_path / "cache")
    assert gateway.taken() == []  # nothing is contacted before it is needed
    assert repo.read_only
    assert repo.fixed == location
    assert [entry.commit.message for entry in repo.log()] == ["whole", "half", "empty"]
    assert np.array_equal(_array(CASStore(repo))[:], data)
    half = _array(CASStore(repo, version="main~1"))
    assert np.array_equal(half[:32], data[:32])
    assert not half[32:].any()
    with pytest.raises(ReadOnlyError):
        repo.create_branch("other", "main")
    clone = Repository.clone(repo, tmp_path / "clone.cas")
    assert clone.resolve("main").commit == commits[-1]
    assert np.array_equal(_array(CASStore(clone.location, read_only=True))[:], data)
    clone.close()


def test_a_clone_by_address_asks_nobody_else(
    made: tuple[str, list[CidBytes], np.ndarray],
    gateway: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, commits, _ = made
    location = f"ipfs://{format_cid(commits[-1])}"
    with counting_gateway(MemoryBlocks()) as default:
        monkeypatch.setattr(faraway, "LOCAL_GATEWAY", default.url)
        monkeypatch.setattr(faraway, "PUBLIC_GATEWAYS", ())
        with Repository.clone(location, tmp_path / "a.cas", gateways=gateway.url) as clone:
            clone.fetch()
        Repository.clone(location, tmp_path / "b.cas", paths="ocean", gateways=gateway.url).close()
        with Repository.open(tmp_path / "b.cas", gateways=gateway.url) as part:
            part.fetch_paths()
        assert default.taken() == []
        assert gateway.taken()


def test_what_is_damaged_is_repaired_from_the_gateways_of_the_repository(
    made: tuple[str, list[CidBytes], np.ndarray],
    gateway: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(made[0], tmp_path / "r.cas")
    location = f"ipfs://{format_cid(made[1][-1])}"
    with counting_gateway(MemoryBlocks()) as default:
        monkeypatch.setattr(faraway, "LOCAL_GATEWAY", default.url)
        monkeypatch.setattr(faraway, "PUBLIC_GATEWAYS", ())
        with Repository.open(tmp_path / "r.cas", gateways=gateway.url) as repo:
            lost = _array_chunk(repo)
            repo.blocks.delete(lost)
            assert repo.repair(location).lost == ()
            assert repo.blocks.has(lost)
        assert default.taken() == []


def _array_chunk(repo: Repository) -> CidBytes:
    cid = CASStore(repo, read_only=True).mapping.cid_of("air/c/3/3")
    assert cid is not None
    return cid


def test_a_root_a_subtree_and_a_gateway_in_the_address(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting
) -> None:
    root = _root(made[0])
    store = CASStore(f"{gateway.url}/ipfs/{root}", gateways=())
    assert store.read_only
    assert str(store) == f"cas-zarr://{gateway.url}/ipfs/{root}#main"
    assert np.array_equal(_array(store)[:4], made[2][:4])
    part = CASStore(f"ipfs://{root}/ocean", gateways=gateway.url)
    assert np.array_equal(_array(part, "t")[:], np.arange(10))
    with pytest.raises(NotFoundError, match="nowhere"):
        CASStore(f"ipfs://{root}/nowhere", gateways=gateway.url)
    with pytest.raises(ReadOnlyError, match="clone"):
        store.with_read_only(False)
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert np.array_equal(_array(copy)[:4], made[2][:4])


def test_a_partial_clone_reads_on_from_ipfs(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting, tmp_path: Path
) -> None:
    location = f"ipfs://{format_cid(made[1][-1])}"
    origin = Repository.open(location, gateways=gateway.url, cache=False)
    Repository.clone(origin, tmp_path / "part.cas", paths="ocean").close()
    gateway.taken()
    store = CASStore(tmp_path / "part.cas", read_only=True, gateways=gateway.url)
    assert np.array_equal(_array(store, "ocean/t")[:], np.arange(10))
    assert gateway.taken() == []
    assert np.array_equal(_array(store)[:8], made[2][:8])
    assert gateway.taken()


def test_a_remote_is_where_it_was_when_it_got_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Repository.open(tmp_path / "a.cas", create=True) as repo:
        monkeypatch.chdir(tmp_path)
        repo.add_remote("beside", "b.cas")
        repo.add_remote("far", f"ipfs://{SOME}")
        assert repo.remotes() == {"beside": str(tmp_path / "b.cas"), "far": f"ipfs://{SOME}"}
        for location in ("https://user:secret@h/x.car", "s4://nothing", ""):
            with pytest.raises(InvalidArgumentError) as caught:
                repo.add_remote("wrong", location)
            assert "secret" not in str(caught.value)
        assert "wrong" not in repo.remotes()


def test_an_import_by_the_address_at_a_gateway_links(gateway: Counting, tmp_path: Path) -> None:
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks)
    mapping["zarr.json"] = b'{"zarr_format":3,"node_type":"array"}'
    mapping["c/0"] = b"a chunk"
    view = UnixfsView(blocks, mapping.flush())
    blocks.put_many((cid, data) for cid, data in view.blocks() if data is not None)
    gateway.blocks = blocks
    address = f"{gateway.url}/ipfs/{format_cid(view.cid)}"
    words = ["import", address, str(tmp_path / "r.cas"), "--gateway", gateway.url, "--json"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert json.loads(done.stdout)["linked"] == 1
    with Repository.open(tmp_path / "r.cas") as repo:
        assert repo.remotes() == {"ipfs": address}
        assert repo.at("main")["c/0"] == b"a chunk"
    wrong = CliRunner().invoke(cli, ["import", "IPFS://nonsense", str(tmp_path / "s.cas")])
    assert "names no cid" in str(wrong.exception)


def test_a_car_file_is_a_repository(
    made: tuple[str, list[CidBytes], np.ndarray], tmp_path: Path
) -> None:
    with Repository.open(made[0], read_only=True) as source:
        export(source, "main", tmp_path / "x.car")
    with CASStore(tmp_path / "x.car") as store:
        assert store.read_only
    assert np.array_equal(_array(store)[:], made[2])
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(_array(copy)[:], made[2])
    with pytest.raises(CasZarrError):
        CASStore(tmp_path / "none.car")


def test_a_car_that_cannot_be_opened_is_closed(
    made: tuple[str, list[CidBytes], np.ndarray], tmp_path: Path
) -> None:
    with Repository.open(made[0], read_only=True) as source:
        export(source, "main", tmp_path / "x.car")
    unknown = CidBytes(b"\x01\x71\x13\x40" + bytes(64))  # of SHA-512
    with (tmp_path / "y.car").open("wb") as file:
        CarWriter(file, [unknown], version=1).finish()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidArgumentError, match="uses blake3"):
        Repository.open(tmp_path / "x.car", hash="sha2-256")
    with pytest.raises(FormatError, match=r"y\.car"):
        Repository.open(tmp_path / "y.car")
    assert len(os.listdir("/proc/self/fd")) == before


# -- how often a server is asked ------------------------------------------------------------------


def test_requests_of_one_chunk_and_of_the_second_read(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting, tmp_path: Path
) -> None:
    location = f"ipfs://{_root(made[0])}"
    options = {"gateways": gateway.url, "cache": tmp_path / "cache"}
    with CASStore(location, **options) as store:
        array = _array(store)
        assert len(gateway.taken()) == 1
        assert np.array_equal(array[:2, :2], made[2][:2, :2])
        assert len(gateway.taken()) <= 3
        assert np.array_equal(array[:], made[2])
        asked = gateway.taken()
        assert len(asked) == len(set(asked))
        assert {form for form, _ in asked} <= {"raw", "car"}  # the store may read ahead
    with CASStore(location, **options) as store:
        assert np.array_equal(_array(store)[:], made[2])
        assert gateway.taken() == []
    shutil.rmtree(tmp_path / "cache")


def test_chunks_that_are_asked_for_at_once_are_fetched_at_once(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting
) -> None:
    store = CASStore(f"ipfs://{_root(made[0])}", gateways=gateway.url, cache=False)
    array = _array(store)
    gateway.delay = 0.02
    with zarr.config.set({"async.concurrency": 24}):
        assert np.array_equal(array[:24, :24], made[2][:24, :24])
    assert gateway.busiest >= 12
    asked = gateway.taken()
    assert len(asked) == len(set(asked))  # pages, too, though many wait for one


def test_prefetching_a_box_takes_few_round_trips(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting
) -> None:
    store = CASStore(f"ipfs://{_root(made[0])}", gateways=gateway.url, cache=False)
    gateway.taken()
    found = store.prefetch("air", (slice(0, 4), slice(0, 6)))
    assert (found.chunks, found.complete) == (6, True)
    asked = gateway.taken()
    assert len(asked) == len(set(asked)) <= 6 + 3
    assert np.array_equal(_array(store)[:4, :6], made[2][:4, :6])
    assert gateway.taken() == []
    assert store.prefetch("air[0:4, 0:6]") == found
    assert gateway.taken() == []


@pytest.mark.parametrize("cars", [True, False])
def test_prefetching_an_array_asks_for_whole_pages(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting, cars: bool
) -> None:
    gateway.cars = cars
    store = CASStore(f"ipfs://{_root(made[0])}", gateways=gateway.url, cache=False)
    gateway.taken()
    found = store.prefetch("air")
    assert (found.chunks, found.complete) == (1024, True)
    asked = gateway.taken()
    if cars:
        assert [form for form, _ in asked].count("car") == 2  # leaf pages of 512 chunks
        assert len(asked) <= 6
    gateway.taken()
    assert np.array_equal(_array(store)[:], made[2])
    assert gateway.taken() == []
    with pytest.raises(NotFoundError):
        store.prefetch("nothing")
    with pytest.raises(InvalidArgumentError, match="regular grid"):
        store.prefetch("", (slice(0, 1),))
    with pytest.raises(InvalidArgumentError, match="twice"):
        store.prefetch("air[0:4]", (slice(0, 1),))


@pytest.mark.parametrize("cars", [True, False])
@pytest.mark.parametrize("chunk", [16 << 10, 3 << 20], ids=["blocks", "files"])
def test_no_more_is_prefetched_than_the_cache_holds(tmp_path: Path, cars: bool, chunk: int) -> None:
    limit, rng = 4 << 20, np.random.default_rng(1)
    with Repository.open(tmp_path / "r.cas", create=True) as source:
        with CASStore(source) as store:
            zarr.create_array(
                store,
                name="a",
                data=rng.integers(0, 256, (24 << 20) // chunk * chunk, np.uint8),
                chunks=(chunk,),
                compressors=None,
            )
            root = format_cid(store.flush().__bytes__())
        with counting_gateway(source.blocks) as server:
            server.cars = cars
            answer = server.answer
            sent: list[int] = []

            def counted(form: str, cid: CidBytes) -> bytes | None:
                data = answer(form, cid)
                sent.append(len(data or b""))
                return data

            server.answer = counted  # type: ignore[method-assign]
            cache = tmp_path / f"cache{cars}{chunk}"
            with CASStore(f"ipfs://{root}", gateways=server.url, cache=(cache, limit)) as far:
                assert not far.prefetch("a").complete
            assert limit // 2 < sum(sent) < 2 * limit


def test_a_partial_clone_prefetches_whole_pages_too(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting, tmp_path: Path
) -> None:
    location = f"ipfs://{format_cid(made[1][-1])}"
    Repository.clone(location, tmp_path / "p.cas", paths="ocean", gateways=gateway.url).close()
    gateway.taken()
    with CASStore(tmp_path / "p.cas", gateways=gateway.url) as store:
        assert store.prefetch("air").chunks == 1024
        asked = [form for form, _ in gateway.taken()]
        assert asked.count("car") == 2  # leaf pages of 512 chunks
        assert len(asked) <= 6
        assert np.array_equal(_array(store)[:], made[2])
        assert gateway.taken() == []


def test_what_keeps_nothing_cannot_be_prefetched(
    made: tuple[str, list[CidBytes], np.ndarray], gateway: Counting, tmp_path: Path
) -> None:
    location = f"ipfs://{format_cid(made[1][-1])}"
    Repository.clone(location, tmp_path / "p.cas", paths="ocean", gateways=gateway.url).close()
    options = {"gateways": gateway.url, "read_only": True}
    with CASStore(tmp_path / "p.cas", **options) as store:
        assert store.prefetch("ocean").complete  # it is here
        gateway.taken()
        with pytest.raises(ReadOnlyError, match="keeps nothing"):
            store.prefetch("air", (slice(0, 2),))
    with CASStore(tmp_path / "p.cas", gateways=gateway.url) as store:
        assert store.prefetch("air", (slice(0, 2),)).complete
    gateway.taken()
    with CASStore(tmp_path / "p.cas", **options) as store:
        assert store.prefetch("air", (slice(0, 2),)).complete
    assert gateway.taken() == []


def test_a_write_to_memory_is_not_bothered_by_networks(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "a.cas")
    group = zarr.open_group(store=store, mode="a")
    group.create_array("a", data=np.arange(100), chunks=(10,))
    found = store.prefetch("a")  # of nothing that was flushed
    assert found.chunks == 0
    store.flush()
    assert store.prefetch("a").chunks == 10
    assert not store.mapping.blocks.remote


def test_what_no_gateway_has_is_told(gateway: Counting) -> None:
    with pytest.raises(BlockNotFoundError, match=f"{SOME} is not in gateway {gateway.url}; add"):
        CASStore(f"ipfs://{SOME}", gateways=gateway.url, cache=False)


def test_nobody_answers(made: tuple[str, list[CidBytes], np.ndarray]) -> None:
    with pytest.raises(BlockNotFoundError, match=r"127\.0\.0\.1:9"):
        CASStore(f"ipfs://{_root(made[0])}", gateways="http://127.0.0.1:9", cache=False)


def test_one_chunk_of_a_million_takes_five_round_trips(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    value = rng.integers(0, 256, 8, np.uint8).tobytes()
    with CASStore(tmp_path / "m.cas") as store:
        group = zarr.open_group(store=store, mode="a")
        group.create_array(
            "a", shape=(200, 200, 200), chunks=(2, 2, 2), dtype="u1", compressors=None
        )
        cids = rng.integers(0, 256, (1_000_000, 36), np.uint8)
        cids[:, :4] = np.frombuffer(cid_of(RAW, BLAKE3, b"")[:4], np.uint8)
        cids[123_456] = np.frombuffer(cid_of(RAW, BLAKE3, value), np.uint8)
        grid = np.stack(np.unravel_index(np.arange(1_000_000), (100,) * 3), axis=1)
        store.mapping.set_links("a", grid, cids, np.full(1_000_000, 8))
        store.mapping.blocks.put(cid_of(RAW, BLAKE3, value), value)
        root = format_cid(store.flush().__bytes__())
    with (
        Repository.open(tmp_path / "m.cas") as source,
        counting_gateway(source.blocks) as server,
    ):
        far = CASStore(f"ipfs://{root}", gateways=server.url, cache=False)
        array = _array(far, "a")
        assert len(server.taken()) == 1
        x, y, z = (2 * int(side) for side in grid[123_456])
        assert array[x : x + 2, y : y + 2, z : z + 2].tobytes() == value
        assert len(server.taken()) <= 4


def test_an_array_of_one_page_comes_with_one_request(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((16, 32))
    with CASStore(tmp_path / "a.cas") as store:
        group = zarr.open_group(store=store, mode="a")
        group.create_array("a", data=data, chunks=(1, 2), compressors=None)
        root = format_cid(store.flush().__bytes__())
    with (
        Repository.open(tmp_path / "a.cas") as source,
        counting_gateway(source.blocks) as server,
    ):
        far = CASStore(f"ipfs://{root}", gateways=server.url, cache=False)
        assert far.prefetch("a").chunks == 256
        assert [form for form, _ in server.taken()] == ["raw", "car"]
        assert np.array_equal(_array(far, "a")[:], data)
        assert server.taken() == []
