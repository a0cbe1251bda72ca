"""Dask: arrays and datasets written by threads, processes and a cluster, in one commit."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from dask.base import tokenize

from cas_zarr import CASStore, Repository
from cas_zarr.distributed import cached, store_dask, to_cas
from cas_zarr.errors import ConflictError, InvalidArgumentError

SHAPE = (48, 60)
VALUES = np.arange(48 * 60, dtype="i4").reshape(SHAPE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CASStore]:
    with CASStore(tmp_path / "x.cas") as store:
        zarr.create_array(store, name="data", shape=SHAPE, dtype="i4", chunks=(5, 12))
        store.commit("an empty array")
        yield store


def content(store: CASStore, path: str = "data") -> np.ndarray:
    return zarr.open_array(store, path=path, mode="r")[:]


@pytest.fixture(autouse=True)
def _of_dask(processes: BaseContext) -> Iterator[None]:
    """Let dask start its processes where what they import is there already."""
    with dask.config.set({"multiprocessing.context": processes.get_start_method()}):
        yield


@pytest.fixture
def cluster(processes: BaseContext) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    method = "distributed.worker.multiprocessing-method"
    with (
        dask.config.set(
            {"distributed.scheduler.allowed-failures": 3, method: processes.get_start_method()}
        ),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp://"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("blocks", [(48, 60), (5, 12), (7, 7), (1, 60), (48, 1)])
def test_blocks_of_any_shape(store: CASStore, blocks: tuple[int, int]) -> None:
    store_dask(da.from_array(VALUES, chunks=blocks), "data", store)
    np.testing.assert_array_equal(content(store), VALUES)
    assert store.session.dirty  # nothing is shown before it is asked for
    store.commit("written")
    np.testing.assert_array_equal(content(CASStore(store.location, version="main")), VALUES)


def test_the_cid_is_that_of_one_writer(store: CASStore, tmp_path: Path) -> None:
    store_dask(da.from_array(VALUES, chunks=(7, 7)), "data", store)
    with CASStore(tmp_path / "alone.cas") as alone:
        zarr.create_array(alone, name="data", shape=SHAPE, dtype="i4", chunks=(5, 12))[:] = VALUES
        assert store.flush() == alone.flush()


def test_many_small_blocks_are_joined_in_a_tree(
    store: CASStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cas_zarr.distributed.writing._TASK", 1)
    monkeypatch.setattr("cas_zarr.distributed.writing._FAN_IN", 2)
    writes = store_dask(da.from_array(VALUES, chunks=(5, 12)), "data", store, compute=False)
    assert writes is not None
    assert content(store).sum() == 0
    names = [str(key) for key in writes.delayed.__dask_graph__()]
    assert sum(name.startswith("_write_blocks") for name in names) == 50
    assert sum(name.startswith("_join") for name in names) > 40
    result, total = dask.compute(writes.delayed, da.ones(3).sum())
    assert total == 3
    assert content(store).sum() == 0
    writes.merge(result)
    np.testing.assert_array_equal(content(store), VALUES)


def test_regions_and_several_targets(store: CASStore) -> None:
    zarr.create_array(store, name="other", shape=SHAPE, dtype="i4", chunks=(8, 60), shards=(16, 60))
    lazy = da.from_array(VALUES, chunks=(6, 20))
    store_dask(
        [lazy[2:31, 7:50], lazy],
        ["data", zarr.open_array(store, path="other")],
        store,
        regions=[(slice(2, 31), slice(7, 50)), (slice(None), slice(None))],
    )
    expected = np.zeros(SHAPE, "i4")
    expected[2:31, 7:50] = VALUES[2:31, 7:50]
    np.testing.assert_array_equal(content(store), expected)
    np.testing.assert_array_equal(content(store, "other"), VALUES)


def test_what_does_not_fit_is_refused(store: CASStore) -> None:
    lazy = da.from_array(VALUES, chunks=(6, 20))
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        store_dask(lazy[:10], "data", store)
    with pytest.raises(InvalidArgumentError, match="steps of 1"):
        store_dask(lazy[:24], "data", store, regions=(slice(0, 48, 2), slice(None)))
    elsewhere = zarr.create_array({}, shape=SHAPE, chunks=(5, 12), dtype="i4")
    with pytest.raises(InvalidArgumentError, match="is not in"):
        store_dask(lazy, elsewhere, store)
    region: Any
    for region in ((0, slice(None)), [(slice(None), slice(None))], 7):
        with pytest.raises(InvalidArgumentError, match="a region is a tuple of slices"):
            store_dask(lazy, "data", store, regions=region)
    with pytest.raises(InvalidArgumentError, match="as many targets"):
        store_dask([lazy], ["data", "data"], store)
    for source in (VALUES, [VALUES], None):
        with pytest.raises(InvalidArgumentError, match="no dask array"):
            store_dask(source, "data", store)
    memory: Any = zarr.storage.MemoryStore()
    with pytest.raises(InvalidArgumentError, match="is no CASStore"):
        store_dask(lazy, "data", memory)
    with pytest.raises(InvalidArgumentError, match="is no CASStore"):
        to_cas(xr.Dataset(), memory)
    with pytest.raises(InvalidArgumentError, match="compute_chunk_sizes"):
        store_dask(lazy[lazy[:, 0] > 0][:, :], "data", store, regions=(slice(0, 0), slice(None)))


def test_arrays_without_dimensions_and_without_elements(store: CASStore, tmp_path: Path) -> None:
    zarr.create_array(store, name="one", shape=(), dtype="f8")
    zarr.create_array(store, name="none", shape=(0, 3), dtype="f8", chunks=(1, 3))
    lazy = [da.from_array(np.array(4.0)), da.ones((0, 3))]
    store_dask(lazy, ["one", "none"], store)
    assert zarr.open_array(store, path="one", mode="r")[()] == 4
    same = cached(lambda block: block, folder=tmp_path / "kept")
    assert same(zarr.open_array(store, path="none")).compute().shape == (0, 3)


def test_two_writes_of_one_chunk_conflict(store: CASStore) -> None:
    lazy = da.from_array(VALUES, chunks=(6, 20))
    whole = (slice(None), slice(None))
    with pytest.raises(ConflictError, match="written by two"):
        store_dask([lazy, lazy + 1], ["data", "data"], store, regions=[whole, whole])
    assert content(store).sum() == 0


def test_processes(store: CASStore) -> None:
    lazy = da.from_array(VALUES, chunks=(20, 60))
    store_dask(lazy, "data", store, scheduler="processes", num_workers=2)
    store.commit("by processes")
    np.testing.assert_array_equal(content(store), VALUES)
    assert Repository.open(store.location).verify(data=True).ok


def die_once(block: np.ndarray, flag: str) -> np.ndarray:
    if not os.path.exists(flag):
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return block


@pytest.mark.slow
def test_a_cluster_of_which_a_worker_is_killed(
    cluster: Any, store: CASStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(cluster.scheduler_info()["workers"]) == 2
    monkeypatch.setattr("cas_zarr.distributed.writing._TASK", 1)
    lazy = da.from_array(VALUES, chunks=(5, 60))
    flag = str(tmp_path / "died")
    lazy = lazy.map_blocks(die_once, flag, dtype="i4", meta=np.empty((0, 0), "i4"))
    store_dask(lazy, "data", store)
    assert os.path.exists(flag)
    store.commit("after all")
    np.testing.assert_array_equal(content(store), VALUES)
    assert Repository.open(store.location).verify(data=True).ok


# -- xarray ----------------------------------------------------------------------------------------


def days(start: int, count: int) -> xr.Dataset:
    time = np.datetime64("2026-01-01", "ns") + np.arange(start, start + count) * np.timedelta64(
        1, "D"
    )
    values = np.random.default_rng(start).random((count, 10, 12))
    values[0, 0, 0] = np.nan
    return xr.Dataset(
        {
            "t2m": (("time", "y", "x"), values, {"units": "K"}),
            "mask": (("y", "x"), np.arange(120).reshape(10, 12) % 2 == 0),
            "seen": ("time", time + np.timedelta64(6, "h")),
        },
        coords={"time": time, "x": np.arange(12.0)},
    )


PACKED = {"t2m": {"dtype": "i2", "scale_factor": 1e-4, "_FillValue": -9}}


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_dataset_is_what_to_zarr_writes(tmp_path: Path, scheduler: str, zarr_format: int) -> None:
    lazy = days(0, 6).chunk(time=2, y=5)
    options: dict[str, Any] = {"encoding": PACKED, "zarr_format": zarr_format}
    with CASStore(tmp_path / "ours.cas") as ours, CASStore(tmp_path / "theirs.cas") as theirs:
        to_cas(lazy, ours, options={"scheduler": scheduler}, **options)
        lazy.to_zarr(theirs, consolidated=False, **options)
        assert ours.flush() == theirs.flush()


def test_append_and_region(tmp_path: Path) -> None:
    with CASStore(tmp_path / "x.cas") as store, CASStore(tmp_path / "y.cas") as theirs:
        to_cas(days(0, 4).chunk(time=2), store, group="model/run", encoding=PACKED)
        store.commit("four days")
        to_cas(days(4, 3).chunk(time=2), store, group="model/run", append_dim="time")
        store.commit("three more")
        days(0, 4).chunk(time=2).to_zarr(theirs, group="model/run", encoding=PACKED)
        days(4, 3).chunk(time=2).to_zarr(theirs, group="model/run", append_dim="time")
        assert store.flush() == theirs.flush()
        part = days(9, 2).chunk(time=1)[["t2m", "seen"]].drop_vars(["time", "x"])
        writes = to_cas(
            part, store, group="model/run", region={"time": slice(2, 4)}, mode="r+", compute=False
        )
        assert writes is not None
        writes.compute()
        store.commit("two days anew")
        read = xr.open_zarr(store, group="model/run", consolidated=False)
        np.testing.assert_allclose(read.t2m[2:4], part.t2m, atol=1e-4)
        np.testing.assert_array_equal(read.seen[2:4], part.seen)
        np.testing.assert_array_equal(read.time, days(0, 7).time)


@pytest.mark.parametrize(
    "options",
    [
        {"write_empty_chunks": True},
        {"encoding": {"v": {"write_empty_chunks": True}}},
        {"consolidated": True},
        {"safe_chunks": True},
    ],
)
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_options_are_those_of_to_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    if zarr.__version__ == "3.1.0" and "write_empty_chunks" in str(options):
        pytest.skip(
            "with zarr 3.1.0 xarray writes no empty chunks into a region, whatever is asked"
        )
    lazy = xr.Dataset({"v": ("x", np.full(10, np.nan))}).chunk(x=5)
    with CASStore(tmp_path / "x.cas") as ours, CASStore(tmp_path / "y.cas") as theirs:
        to_cas(lazy, ours, **options)
        lazy.to_zarr(theirs, **({"consolidated": False} | options))
        assert ours.flush() == theirs.flush()


@pytest.mark.parametrize("side", [slice(-3, None), slice(None, 3), slice(5, 8), slice(7, None)])
def test_regions_of_to_zarr(tmp_path: Path, side: slice) -> None:
    part = xr.Dataset({"v": ("x", -np.arange(3.0))})
    with CASStore(tmp_path / "x.cas") as ours, CASStore(tmp_path / "y.cas") as theirs:
        for store in (ours, theirs):
            whole = xr.Dataset({"v": ("x", np.arange(10.0))})
            whole.to_zarr(store, encoding={"v": {"chunks": (4,)}}, consolidated=False)
        to_cas(part.chunk(x=2), ours, region={"x": side})
        part.to_zarr(theirs, region={"x": side}, consolidated=False)
        assert ours.flush() == theirs.flush()
        with pytest.raises(InvalidArgumentError, match="in slices"):
            to_cas(part.chunk(x=2), ours, region={"x": "auto"})  # type: ignore[dict-item]


def test_appends_within_a_shard(tmp_path: Path) -> None:
    encoding = {"v": {"chunks": (2, 3), "shards": (4, 6)}}
    with CASStore(tmp_path / "x.cas") as ours, CASStore(tmp_path / "y.cas") as theirs:
        for start, end in ((0, 5), (5, 11), (11, 12), (12, 19)):
            values = np.arange(start * 6.0, end * 6.0).reshape(-1, 6)
            part = xr.Dataset({"v": (("x", "y"), values)})
            how: dict[str, Any] = {"append_dim": "x"} if start else {"encoding": encoding}
            to_cas(part.chunk(x=3), ours, **how)
            part.to_zarr(theirs, consolidated=False, **how)
            assert ours.flush() == theirs.flush()


@pytest.mark.parametrize("how", [{"append_dim": "time"}, {"mode": "w"}, {"group": "new"}])
def test_what_fails_leaves_the_store_as_it_was(tmp_path: Path, how: dict[str, Any]) -> None:
    with CASStore(tmp_path / "x.cas") as store:
        to_cas(days(0, 4).chunk(time=2), store)
        before = store.session.repository.resolve(store.commit("four days")).root

        def fail(_: np.ndarray) -> np.ndarray:
            store.mapping["other/zarr.json"] = b'{"zarr_format":3,"node_type":"group"}'
            raise RuntimeError("a worker failed")

        broken = days(4, 3).chunk(time=2)
        lazy = broken.t2m.data.map_blocks(fail, dtype="f8", meta=np.empty((0, 0, 0)), name="fail")
        broken["t2m"] = broken.t2m.copy(data=lazy)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="a worker failed"):
                to_cas(broken, store, **how)
        del store.mapping["other/zarr.json"]  # that of another thread stays
        assert bytes(store.flush()) == before
        to_cas(days(4, 3).chunk(time=2), store, append_dim="time")
        read = xr.open_zarr(store, consolidated=False)
        np.testing.assert_array_equal(read.time, days(0, 7).time)


def test_a_dataset_in_memory_needs_no_workers(tmp_path: Path) -> None:
    with CASStore(tmp_path / "x.cas") as store:
        to_cas(days(0, 3), store)
        to_cas(days(0, 2).t2m.rename("alone").chunk(), store, group="one")
        store.commit("three days")
        xr.testing.assert_equal(xr.open_zarr(store, consolidated=False).load(), days(0, 3))
        assert xr.open_zarr(store, group="one", consolidated=False).alone.shape == (2, 10, 12)


# -- names -----------------------------------------------------------------------------------------


def test_equal_data_have_equal_tokens(tmp_path: Path) -> None:
    stores = []
    for name in ("here.cas", "there.cas"):
        with CASStore(tmp_path / name) as store:
            zarr.create_array(store, name="a", shape=4, dtype="i4", chunks=2)[:] = 7
            zarr.create_array(store, name="b", shape=4, dtype="i4", chunks=2)[:] = 8
            store.commit("same", time=1)
        stores.append(CASStore(tmp_path / name, version="main"))
    assert tokenize(stores[0]) == tokenize(stores[1])
    arrays = [zarr.open_array(store, path="a", mode="r") for store in stores]
    assert (
        tokenize(arrays[0])
        == tokenize(arrays[1])
        == tokenize(pickle.loads(pickle.dumps(arrays[0])))
    )
    assert da.from_zarr(arrays[0]).name == da.from_zarr(arrays[1]).name
    assert tokenize(arrays[0]) != tokenize(zarr.open_array(stores[0], path="b", mode="r"))
    with CASStore(tmp_path / "here.cas") as store:
        before = tokenize(store)
        zarr.open_array(store, path="a")[0] = 1
        assert tokenize(store) != before
        assert tokenize(zarr.open_array(store, path="a")) != tokenize(arrays[0])
        assert tokenize(zarr.open_array(store, path="b")) == tokenize(
            zarr.open_array(stores[1], path="b", mode="r")
        )
        longer, array = zarr.open_array(store, path="a"), zarr.open_array(store, path="a")
        longer.resize(6)
        assert tokenize(longer) != tokenize(array)
    memory = zarr.create_array({}, shape=4, dtype="i4")
    assert tokenize(memory) == tokenize(memory)


def test_the_cid_of_a_chunk(store: CASStore) -> None:
    assert store.cid_of_chunk("data", (0, 0)) is None
    zarr.open_array(store, path="data")[:5, :12] = 3
    zarr.open_array(store, path="data")[5:10, :12] = 3
    cid = store.cid_of_chunk("data", (0, 0))
    assert cid is not None
    assert store.cid_of_chunk("data", (1, 0)) == cid
    assert store.cid_of_chunk("data", (0, 9)) is None
    assert store.cid_of_chunk("data", (-1, 0)) is None
    with pytest.raises(InvalidArgumentError, match="has 2 dimensions"):
        store.cid_of_chunk("data", (0,))
    for row, encoding in enumerate([("v2", "."), ("v2", "/"), ("default", "."), ("default", "/")]):
        for shape in ((), (2,), (2, 2)):
            array = zarr.create_array(
                store,
                name=f"{row}-{len(shape)}",
                shape=shape,
                dtype="i4",
                chunk_key_encoding={"name": encoding[0], "separator": encoding[1]},
                zarr_format=2 if encoding[0] == "v2" else 3,
            )
            array[...] = 1
            assert store.cid_of_chunk(array.path, (0,) * len(shape)) is not None
    with pytest.raises(KeyError, match="no array"):
        store.cid_of_chunk("nothing", (0,))


# -- results that are kept -------------------------------------------------------------------------


def sums_of(block: np.ndarray) -> np.ndarray:
    return block.sum(axis=0, keepdims=True)


def test_only_changed_chunks_are_computed_again(store: CASStore, tmp_path: Path) -> None:
    array = zarr.open_array(store, path="data")
    array[:] = VALUES
    store.commit("all")
    path = tmp_path / "x.cas"
    kept = cached(sums_of, folder=tmp_path / "kept", chunks=((1,) * 10, (12,) * 5))
    folder = tmp_path / "kept"

    def count() -> int:
        return len(list(folder.glob("*/*.npy")))

    before = zarr.open_array(CASStore(path, version="main"), path="data", mode="r")
    np.testing.assert_array_equal(kept(before).sum(axis=0).compute(), VALUES.sum(axis=0))
    assert count() == 50
    array[7, 13] = -1
    store.copy("data", "copy")
    store.commit("one chunk")
    after = zarr.open_array(CASStore(path, version="main"), path="data", mode="r")
    expected = VALUES.copy()
    expected[7, 13] = -1
    np.testing.assert_array_equal(kept(after).sum(axis=0).compute(), expected.sum(axis=0))
    assert count() == 51
    copy = zarr.open_array(CASStore(path, version="main"), path="copy", mode="r")
    np.testing.assert_array_equal(kept(copy).sum(axis=0).compute(), expected.sum(axis=0))
    assert count() == 51
    # Another version of what it calls, another function: another result.
    other = cached(sums_of, folder=folder, version="2", chunks=((1,) * 10, (12,) * 5))
    other(after).compute()
    assert count() == 101
    cached(lambda block: block + 1, folder=folder)(after).compute()
    assert count() == 151


def test_a_result_that_was_damaged_is_computed_again(store: CASStore, tmp_path: Path) -> None:
    zarr.open_array(store, path="data")[:] = VALUES
    store.commit("all")
    array = zarr.open_array(store, path="data", mode="r")
    double = cached(lambda block: 2 * block, folder=tmp_path / "kept")
    np.testing.assert_array_equal(double(array).compute(), 2 * VALUES)
    for file in (tmp_path / "kept").glob("*/*.npy"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    np.testing.assert_array_equal(double(array).compute(), 2 * VALUES)


def test_no_more_is_kept_than_there_is_room_for(store: CASStore, tmp_path: Path) -> None:
    zarr.open_array(store, path="data")[:] = VALUES
    array = zarr.open_array(store, path="data", mode="r")
    kept = cached(lambda block: block, folder=tmp_path / "kept", limit=1000)
    kept(array).compute()
    np.testing.assert_array_equal(kept(array).compute(), VALUES)
    kept(array)  # what the last one wrote goes
    files = list((tmp_path / "kept").glob("*/*"))
    assert sum(file.stat().st_size for file in files) <= 1000


def test_nothing_of_others_goes_from_a_folder_of_results(store: CASStore, tmp_path: Path) -> None:
    array = zarr.open_array(store, path="data", mode="r")
    for name in ("ab/notes.npy", "data/c0", f"ab/{'0' * 62}.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(2000))
    left = tmp_path / "ab" / f"{'0' * 62}.x.part"
    left.write_bytes(bytes(2000))
    cached(lambda block: block, folder=tmp_path, limit=0)(array).compute()
    assert not left.exists()
    assert {file.name for file in (tmp_path / "ab").iterdir()} == {"notes.npy", f"{'0' * 62}.txt"}
    assert (tmp_path / "data" / "c0").stat().st_size == 2000


def test_results_are_kept_for_stores_with_cids_alone() -> None:
    with pytest.raises(InvalidArgumentError, match="CASStore"):
        cached(np.negative)(zarr.create_array({}, shape=3, dtype="i4"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_without_dimensions_is_computed_again(
    store: CASStore, tmp_path: Path, zarr_format: Any
) -> None:
    array = zarr.create_array(store, name="one", shape=(), dtype="i4", zarr_format=zarr_format)
    double = cached(lambda block: 2 * block, folder=tmp_path / "kept")
    for value in (3, 4):
        array[...] = value
        assert double(array).compute() == 2 * value


def test_an_array_of_two_formats_is_computed_again(store: CASStore, tmp_path: Path) -> None:
    options: dict[str, Any] = {"name": "n", "shape": 4, "chunks": 2, "dtype": "i4"}
    old = zarr.create_array(store, zarr_format=2, **options)
    old[:] = 1
    with CASStore(tmp_path / "other.cas") as other:
        zarr.create_array(other, **options)
        store.mapping.update(dict(other.mapping))
    new = zarr.open_array(store, path="n", zarr_format=3)
    double = cached(lambda block: 2 * block, folder=tmp_path / "kept")
    for array, value in ((new, 5), (new, 6), (old, 7), (new, 8)):
        array[:] = value
        assert double(array).compute().tolist() == [2 * value] * 4


def test_what_is_written_meanwhile_is_kept_under_no_wrong_name(
    store: CASStore, tmp_path: Path
) -> None:
    array = zarr.create_array(store, name="n", shape=2, chunks=2, dtype="i4")
    array[:] = 1

    def late(block: np.ndarray) -> np.ndarray:
        return np.asarray(block) + 0

    class Late(zarr.Array):  # type: ignore[type-arg]
        def __getitem__(self, place: Any) -> Any:
            array[:] = 2  # after its name was found
            return super().__getitem__(place)

    kept = cached(late, folder=tmp_path / "kept", dtype="i4")
    kept(Late(array._async_array)).compute(scheduler="sync")
    array[:] = 1
    assert kept(array).compute().tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:The codec `vlen-utf8` is currently not part")
def test_results_that_would_be_pickled_are_given_and_not_kept(
    store: CASStore, tmp_path: Path
) -> None:
    words = zarr.create_array(store, name="words", shape=2, chunks=2, dtype=str)
    words[:] = np.array(["a", "bc"], object)
    same = cached(lambda block: block, folder=tmp_path / "kept", dtype=object)
    assert same(words).compute().tolist() == ["a", "bc"]
    assert not list(tmp_path.glob("kept/*/*"))


CODE = """
import functools
def through(function):
    @functools.wraps(function)
    def call(block):
        return function(block)
    return call
@through
def wrapped(block):
    return block * {n}
def default(block, factor={n}):
    return block * factor
def inner(block, other):
    return block * {n}
partial = functools.partial(inner, other=0)
def nested(block):
    return (lambda it: it * {n})(block)
"""


@pytest.mark.parametrize("name", ["wrapped", "default", "partial", "nested"])
def test_other_code_is_another_result(
    store: CASStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    array = zarr.create_array(store, name="n", shape=2, chunks=2, dtype="i4")
    array[:] = 1
    file, kept = tmp_path / "functions_of_a_test.py", tmp_path / "kept"
    for factor, files in ((2, 1), (2, 1), (3, 2)):
        file.write_text(CODE.format(n=factor))
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)
        exec(compile(file.read_text(), file, "exec"), module.__dict__)
        result = cached(getattr(module, name), folder=kept)(array).compute()
        assert result.tolist() == [factor] * 2
        assert len(list(kept.glob("*/*.npy"))) == files
