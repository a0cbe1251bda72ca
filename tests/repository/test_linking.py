"""Links to data that lie elsewhere: equal to an import, and never wrong numbers."""

from __future__ import annotations

import json
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.references import References
from cas_zarr.errors import (
    CorruptBlockError,
    InvalidArgumentError,
    InvalidKeyError,
    LimitError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
)
from cas_zarr.repository.imports import import_zarr
from cas_zarr.repository.linking import link, list_sources, repoint

GROUP = {".zgroup": '{"zarr_format":2}'}


def make_zarr(folder: Path, zarr_format: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    """Write a Zarr with small chunks, chunks over 1 MiB, and shards over 1 MiB."""
    rng = np.random.default_rng(0)
    data = {
        "small": rng.normal(size=(20, 64, 64)).astype("f4"),
        "deep/large": rng.normal(size=(1200, 1000)).astype("f4"),
    }
    chunks = {"small": (4, 64, 64), "deep/large": (600, 1000)}
    group = zarr.open_group(folder, mode="w", zarr_format=zarr_format)
    for name, values in data.items():
        array = group.create_array(
            name, shape=values.shape, chunks=chunks[name], dtype="f4", compressors=None
        )
        array[...] = values
    if zarr_format == 3:
        data["shards"] = data["deep/large"]
        array = group.create_array(
            "shards", shape=(1200, 1000), chunks=(100, 100), shards=(600, 1000), dtype="f4"
        )
        array[...] = data["shards"]
    group.attrs["title"] = "ünïcode"
    return data


def read(location: Path | str, path: str = "", **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    group = zarr.open_group(CASStore(str(location), **options), path=path, mode="r")
    return {name: array[...] for name, array in members(group)}


def members(group: zarr.Group) -> list[tuple[str, zarr.Array[Any]]]:
    return [(n, a) for n, a in group.members(max_depth=None) if isinstance(a, zarr.Array)]


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[name], wanted[name]) for name in wanted
    )


def size_of(repository: Path) -> int:
    return sum(file.stat().st_size for file in repository.rglob("*") if file.is_file())


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_folder_is_linked_and_has_the_root_of_an_import(tmp_path: Path, zarr_format: int) -> None:
    data = make_zarr(tmp_path / "era5.zarr", zarr_format)
    (tmp_path / "era5.zarr" / "empty").touch()
    repository = Repository.open(tmp_path / "links", create=True)
    calls: list[tuple[int, int]] = []
    done = link(
        repository,
        tmp_path / "era5.zarr",
        path="era5",
        progress=lambda *now: calls.append(now),
    )
    assert same(read(tmp_path / "links", "era5"), data)
    assert size_of(tmp_path / "links") < done.size / 50
    assert calls[-1][0] == calls[-1][1] > 1 << 22
    copy = Repository.open(tmp_path / "copy", create=True)
    copied = link(copy, tmp_path / "era5.zarr", path="era5", copy=True)
    assert (copied.keys, copied.size, copied.path) == (done.keys, done.size, "era5")
    assert (copied.linked, list_sources(copy)) == (0, [])
    ours, theirs = repository.record("main"), copy.record("main")
    assert ours is not None
    assert theirs is not None
    assert (ours.work, ours.commit) == (theirs.work, None)
    assert repository.verify(data=True).ok


def test_it_is_seen_by_who_has_opened_before(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    Repository.open(tmp_path / "links", create=True).session().flush()
    reader = Repository.open(tmp_path / "links", read_only=True)
    reader.blocks.has("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")
    link(Repository.open(tmp_path / "links"), tmp_path / "source", message="link")
    found = reader.at("main")
    chunk = found["small/c/0/0/0"]
    assert chunk == data["small"][:4].tobytes()


def test_a_session_is_left_to_its_owner(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    with repository.session() as session:
        link(session, tmp_path / "source")
        assert session.dirty
        session.commit("link", author="me")
    assert same(read(tmp_path / "links", version="main"), data)
    assert [entry.commit.message for entry in repository.log()] == ["link"]


def test_what_is_written_later_lies_beside_it(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    first = link(repository, tmp_path / "source", message="link")
    assert first.linked > 0
    before = {p: p.read_bytes() for p in (tmp_path / "source").rglob("*") if p.is_file()}
    with CASStore(str(tmp_path / "links")) as store:
        array = zarr.open_array(store, path="small")
        array[3] = 7
        store.commit("mask")
    data["small"][3] = 7
    assert same(read(tmp_path / "links"), data)
    assert {p: p.read_bytes() for p in before} == before
    assert repository.verify(data=True).ok


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    link(repository, tmp_path / "source", message="link")
    hurt = ("small/c/1/0/0", "deep/large/c/1/0", "shards/c/0/0")
    for key in hurt:
        flip(tmp_path / "source" / key, 100)
    found = repository.at("main")
    group = zarr.open_group(CASStore(str(tmp_path / "links")), mode="r")
    for key in hurt:
        with pytest.raises(CorruptBlockError, match=rf"of .*/source/{key}, which has changed"):
            found.get_value(key)
    assert found.get_value("deep/large/c/1/0", 1 << 20) is not None  # another block of the file
    with pytest.raises(CorruptBlockError):
        group["small"][4:8]  # type: ignore[index]
    assert np.array_equal(group["small"][8:], data["small"][8:])  # type: ignore[index]
    assert np.array_equal(group["shards"][:, 100:], data["shards"][:, 100:])  # type: ignore[index]
    report = repository.verify(data=True)
    assert {(damage.path, damage.kind) for damage in report.damaged} == {
        (key, "value") for key in hurt
    }
    assert all("link the source again" in damage.reason for damage in report.damaged)


def test_to_link_again_takes_what_the_source_has_now(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    link(repository, tmp_path / "source", message="first")
    with pytest.raises(InvalidArgumentError, match="which the source does not have"):
        link(repository, {"refs": GROUP})
    zarr.open_array(tmp_path / "source", path="small")[0] = 5
    data["small"][0] = 5
    link(repository, tmp_path / "source", message="second")
    assert same(read(tmp_path / "links", version="main"), data)
    with pytest.raises(CorruptBlockError):
        read(tmp_path / "links", version="main~1")
    link(repository, {"refs": GROUP}, replace=True)
    assert read(tmp_path / "links") == {}


def test_a_source_that_moved_is_named_and_can_be_looked_for_elsewhere(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    link(repository, tmp_path / "source", message="link")
    assert [(one.location, one.missing) for one in list_sources(repository)] == [
        (str(tmp_path / "source"), ())
    ]
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    group = zarr.open_group(CASStore(str(tmp_path / "links")), mode="r")
    for name, _ in members(group):
        with pytest.raises(StorageError, match=r"/source/.* which is gone.*repoint"):
            group[name][...]  # type: ignore[index]
    report = repository.verify()
    assert not report.ok
    assert {array.path for array in report.arrays} == set(data)
    assert all(str(tmp_path / "source") in damage.reason for damage in report.damaged)
    (source,) = list_sources(repository)
    assert len(source.missing) == 9
    with pytest.raises(NotFoundError, match=f"what is: {tmp_path}/source"):
        repoint(repository, tmp_path / "wrong", tmp_path / "elsewhere")
    with pytest.raises(ReadOnlyError):
        repoint(Repository.open(tmp_path / "links", read_only=True), "a", "b")
    assert repoint(repository, f"{tmp_path}/source/", tmp_path / "elsewhere") == source.blocks
    assert same(read(tmp_path / "links"), data)
    assert repository.verify(data=True).ok
    assert list_sources(repository)[0].missing == ()


def test_what_is_gone_can_be_repaired_from_a_copy(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    link(repository, tmp_path / "source", message="link")
    Repository.clone(str(tmp_path / "links"), str(tmp_path / "copy"))
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    assert repository.repair(str(tmp_path / "copy")).ok
    assert same(read(tmp_path / "links"), data)


def test_a_clone_and_a_push_carry_the_bytes(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    link(repository, tmp_path / "source", message="link")
    Repository.clone(str(tmp_path / "links"), str(tmp_path / "clone"))
    Repository.open(tmp_path / "pushed", create=True).close()
    repository.push(str(tmp_path / "pushed"))
    repository.export("main", tmp_path / "links.car")
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    assert same(read(tmp_path / "links.car"), data)
    for other in ("clone", "pushed"):
        assert same(read(tmp_path / other, version="main"), data), other
        assert Repository.open(tmp_path / other).verify(data=True).ok
        assert not (tmp_path / other / "references").exists()


def test_a_push_of_what_has_changed_fails_and_moves_nothing(tmp_path: Path) -> None:
    make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    link(repository, tmp_path / "source", message="link")
    flip(tmp_path / "source" / "small/c/0/0/0", 0)
    target = Repository.open(tmp_path / "pushed", create=True)
    with pytest.raises(CorruptBlockError, match="has changed since"):
        repository.push(str(tmp_path / "pushed"))
    assert target.branches() == {}


def test_gc_keeps_what_is_in_use_and_drops_what_nobody_needs(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    link(repository, tmp_path / "source", message="link")
    blocks = list_sources(repository)[0].blocks
    assert repository.gc(grace=timedelta(0)).references == 0
    assert same(read(tmp_path / "links"), data)
    with repository.session() as session:
        session.mapping.discard_prefix("shards/")
        session.commit("without shards")
    none = timedelta(0)
    assert repository.gc(grace=none, log_age=none).references == 0  # the history needs it
    repository.create_branch("fresh", None)
    with repository.session("fresh") as session:
        import_zarr(tmp_path / "source" / "deep", session)
        session.commit("deep alone")
    link(repository, tmp_path / "source" / "small", branch="fresh", path="small", message="small")
    repository.delete_branch("main")
    assert repository.gc(log_age=none).references == 0  # they are younger than the grace time
    assert repository.gc(grace=none, log_age=none, dry_run=True).references == 0
    report = repository.gc(grace=none, log_age=none)
    assert report.references > 0
    assert 0 < sum(one.blocks for one in list_sources(repository)) < blocks
    found = read(tmp_path / "links", version="fresh")
    assert same(found, {"large": data["deep/large"], "small": data["small"]})
    repository.create_branch("bare", None)
    repository.delete_branch("fresh")
    repository.gc(grace=none, log_age=none)
    assert list_sources(repository) == []
    assert list((tmp_path / "links" / "references").iterdir()) == []


def test_a_session_that_linked_before_a_collection_is_told(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    with repository.session() as session:
        session.mapping["note"] = b"all that is in use"
        session.commit("note")
    session = repository.session()
    other = Repository.open(tmp_path / "links", read_only=False)
    for last in (False, True):  # the first makes a record of collections
        link(session, tmp_path / "source", path="late")
        assert other.gc(grace=timedelta(0)).references > 0
        if last:
            with pytest.raises(StorageError, match="older than the grace time"):
                session.flush()
        session.discard()
    link(session, tmp_path / "source", path="late")
    session.commit("again")
    assert other.gc(grace=timedelta(0)).references == 0
    assert same(read(tmp_path / "links", "late"), data)
    assert repository.verify(data=True).ok


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_ref_comes_to_lead_to_during_a_collection_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    session = repository.session()
    link(session, tmp_path / "source")
    hide = References.set_aside

    def set_aside(references: References, *args: Any) -> bool:
        if when == "before":
            session.flush()
        done = hide(references, *args)
        if when == "after":
            assert list_sources(repository) == []
            session.commit("meanwhile")
        return done

    monkeypatch.setattr(References, "set_aside", set_aside)
    other = Repository.open(tmp_path / "links", read_only=False)
    assert other.gc(grace=timedelta(0)).references == 0
    assert same(read(tmp_path / "links"), data)
    assert repository.verify(data=True).ok


def test_a_collection_that_is_interrupted_drops_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    session = repository.session()
    link(session, tmp_path / "source")
    held = list_sources(repository)
    hide = References.set_aside

    def interrupted(references: References, *args: Any) -> bool:
        assert hide(references, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(References, "set_aside", interrupted)
    other = Repository.open(tmp_path / "links", read_only=False)
    with pytest.raises(KeyboardInterrupt):
        other.gc(grace=timedelta(0))
    assert list_sources(repository) == held
    session.discard()


def test_a_repository_that_keeps_no_references_says_so(tmp_path: Path) -> None:
    data = make_zarr(tmp_path / "source")
    repository = Repository.memory()
    with pytest.raises(InvalidArgumentError, match="copy=True"):
        link(repository, tmp_path / "source")
    assert list_sources(repository) == []
    link(repository, tmp_path / "source", copy=True)
    assert same(read(repository.location), data)


def test_what_cannot_be_linked_leaves_nothing(tmp_path: Path) -> None:
    repository = Repository.open(tmp_path / "links", create=True)
    (tmp_path / "bare").mkdir()
    (tmp_path / "text").write_text("no json")
    (tmp_path / "range").write_bytes(bytes(10))
    cases: list[tuple[Any, type[Exception], str]] = [
        (tmp_path / "none", NotFoundError, "does not exist"),
        (tmp_path / "bare", NotFoundError, "no zarr"),
        (tmp_path / "text", InvalidArgumentError, "neither a folder"),
        ({"version": 1, "refs": {}}, NotFoundError, "no zarr"),
        ({"version": 2, "refs": GROUP}, InvalidArgumentError, "version 2"),
        ({"version": 1, "refs": GROUP, "gen": [{}]}, InvalidArgumentError, "gen"),
        (GROUP | {"a": ["{{u}}"]}, InvalidArgumentError, "template"),
        (GROUP | {"a": ["s3://b/k", 0, 1]}, InvalidArgumentError, "cannot be referred to"),
        (GROUP | {"a": [str(tmp_path / "none")]}, StorageError, "cannot be read"),
        (GROUP | {"a": [str(tmp_path / "none"), 0, 1]}, StorageError, "bytes 0 to 1 of"),
        (GROUP | {"a": [str(tmp_path / "range"), 5, 6]}, StorageError, "bytes 5 to 11 of"),
        (GROUP | {"a": [str(tmp_path / "range"), 0, 1 << 33]}, LimitError, "at most"),
        (GROUP | {"a": ["x", 5]}, InvalidArgumentError, "not \\[url\\]"),
        (GROUP | {"a": ["x", -1, 5]}, InvalidArgumentError, "not \\[url\\]"),
        (GROUP | {"a": []}, InvalidArgumentError, "not \\[url\\]"),
        (GROUP | {"a": 5}, InvalidArgumentError, "no reference"),
        (GROUP | {"a": "base64:?"}, InvalidArgumentError, "base64"),
        (GROUP | {"a": "\ud800"}, InvalidArgumentError, "cannot be written as text"),
        (GROUP | {"a": {"b": b"1"}}, InvalidArgumentError, "cannot be written as text"),
        (GROUP | {5: "a"}, InvalidArgumentError, "5 is no key"),
        ({"version": 1, "refs": [GROUP]}, InvalidArgumentError, "are not maps"),
        ({"refs": GROUP, "templates": ["u"]}, InvalidArgumentError, "are not maps"),
        (GROUP | {"../a": [str(tmp_path / "range")]}, InvalidKeyError, "a"),
    ]
    for source, error, message in cases:
        with pytest.raises(error, match=message):
            link(repository, source)
    make_zarr(tmp_path / "around")
    inside = Repository.open(tmp_path / "around" / "links", create=True)
    with pytest.raises(InvalidArgumentError, match="holds the repository"):
        link(inside, tmp_path / "around")
    assert list_sources(repository) == []
    assert repository.branches() == {}


# -- ranges of files ------------------------------------------------------------------------------


@pytest.fixture
def h5py() -> Any:
    with warnings.catch_warnings():  # numpy's own word on the sizes of its types, see its FAQ
        warnings.filterwarnings("ignore", message="numpy.ndarray size changed")
        return pytest.importorskip("h5py", exc_type=ImportError)


def sample_in(folder: Path, name: str) -> Path:
    """Return a copy of a file of iris-sample-data."""
    samples = Path(pytest.importorskip("iris_sample_data").path)
    file = folder / name
    file.write_bytes(next(samples.rglob(name)).read_bytes())
    return file


def references_to(h5py: Any, file: Path) -> dict[str, Any]:
    """Return kerchunk's references to the arrays of an HDF5 file."""
    refs: dict[str, Any] = dict(GROUP)
    with h5py.File(file) as source:
        for name, item in source.items():
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and item.shape:
                _refer(refs, name, item, str(file))
    return {"version": 1, "refs": refs}


def _refer(refs: dict[str, Any], name: str, item: Any, url: str) -> None:
    chunks = item.chunks or item.shape
    filters = [{"id": "shuffle", "elementsize": item.dtype.itemsize}] if item.shuffle else []
    if item.compression == "gzip":
        filters.append({"id": "zlib", "level": item.compression_opts})
    refs[f"{name}/.zarray"] = json.dumps(
        {
            "zarr_format": 2,
            "shape": item.shape,
            "chunks": chunks,
            "dtype": item.dtype.str,
            "order": "C",
            "compressor": None,
            "filters": filters or None,
            "fill_value": item.fillvalue.item(),
        }
    )
    refs[f"{name}/.zattrs"] = json.dumps({"_ARRAY_DIMENSIONS": [f"{n}" for n in item.shape]})
    zero = ".".join("0" * item.ndim)
    if item.chunks is None:
        if item.id.get_offset() is not None:
            refs[f"{name}/{zero}"] = [url, item.id.get_offset(), item.id.get_storage_size()]
        return
    for number in range(item.id.get_num_chunks()):
        found = item.id.get_chunk_info(number)
        key = ".".join(str(at // n) for at, n in zip(found.chunk_offset, chunks, strict=True))
        refs[f"{name}/{key}"] = [url, found.byte_offset, found.size]


@pytest.mark.parametrize(
    "sample", ["A1B_north_america.nc", "nemo_1m_20150101-20150201_grid-T.nc", "ostia_monthly.nc"]
)
def test_a_netcdf_file_is_linked_by_its_ranges(tmp_path: Path, h5py: Any, sample: str) -> None:
    file = sample_in(tmp_path, sample)
    refs = references_to(h5py, file)
    repository = Repository.open(tmp_path / "links", create=True)
    done = link(repository, refs, path="model", message="link")
    assert done.linked > 3
    found = read(tmp_path / "links", "model")
    with h5py.File(file) as source:
        assert len(found) > 4
        for name, values in found.items():
            assert np.array_equal(values, source[name][...], equal_nan=True), name
    assert size_of(tmp_path / "links") < file.stat().st_size / 3
    assert repository.verify(data=True).ok
    copy = Repository.open(tmp_path / "copy", create=True)
    link(copy, refs, path="model", copy=True, message="link")
    assert copy.same("main:model", "main:model", other=repository)
    assert list_sources(copy) == []
    (report,) = list_sources(repository)
    assert (report.location, report.missing) == (str(file), ())


def test_what_kerchunk_writes_is_read_by_xarray(tmp_path: Path, h5py: Any) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what kerchunk imports
        hdf = pytest.importorskip("kerchunk.hdf", exc_type=ImportError)
        file = sample_in(tmp_path, "A1B_north_america.nc")
        with h5py.File(file) as source:
            refs = hdf.SingleHdf5ToZarr(source, str(file), inline_threshold=100).translate()
    repository = Repository.open(tmp_path / "links", create=True)
    assert link(repository, refs, message="link").linked >= 240
    with (
        xarray.open_dataset(file) as wanted,
        xarray.open_zarr(CASStore(str(tmp_path / "links")), consolidated=False) as found,
    ):
        grid = "latitude_longitude"  # has no data but a fill value, which kerchunk lets xarray mask
        xarray.testing.assert_equal(found.drop_vars(grid).load(), wanted.drop_vars(grid).load())
    assert repository.verify(data=True).ok


def test_a_chunk_over_a_mebibyte_is_ranges_of_the_file(tmp_path: Path, h5py: Any) -> None:
    values = np.random.default_rng(0).normal(size=(900, 1000)).astype("f8")
    file = tmp_path / "large.h5"
    with h5py.File(file, "w") as target:
        target.create_dataset("x", data=values, chunks=(450, 1000))
    refs = references_to(h5py, file)
    link(Repository.open(tmp_path / "links", create=True), refs, message="link")
    repository = Repository.open(tmp_path / "links")
    assert list_sources(repository)[0].blocks == 8  # of at most 1 MiB each
    assert np.array_equal(read(tmp_path / "links")["x"], values)
    assert size_of(tmp_path / "links") < 20_000
    flip(file, refs["refs"]["x/1.0"][1] + (2 << 20))
    array = zarr.open_array(CASStore(str(tmp_path / "links")), path="x", mode="r")
    assert np.array_equal(array[:450], values[:450])
    with pytest.raises(CorruptBlockError, match=f"of {file}, which has changed since"):
        array[450:]


def test_a_damaged_file_of_references_is_told(tmp_path: Path) -> None:
    make_zarr(tmp_path / "source")
    repository = Repository.open(tmp_path / "links", create=True)
    link(repository, tmp_path / "source", message="link")
    (file,) = (tmp_path / "links" / "references").iterdir()
    flip(file, 300)
    report = Repository.open(tmp_path / "links").verify()
    assert not report.ok
    assert all(f"{file} is damaged" in damage.reason for damage in report.damaged)
    assert Repository.open(tmp_path / "links").gc(grace=timedelta(0)).references == 0
    flip(file, 300)
    assert Repository.open(tmp_path / "links").verify(data=True).ok
