"""xarray's own Zarr suite on a `CASStore`, numpy- and dask-backed, Zarr formats 2 and 3."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("dask")
pytest.importorskip("zarr", minversion="3.1")
pytest.importorskip("xarray.tests.test_backends", reason="xarray was installed without its tests")

from xarray.tests.conftest import compute_backend, time_unit, use_dask  # noqa: E402, F401
from xarray.tests.test_backends import TestZarrRegionAuto as RegionAuto  # noqa: E402
from xarray.tests.test_backends import ZarrBase, default_zarr_format  # noqa: E402, F401

from cas_zarr import CASStore  # noqa: E402

pytestmark = [
    # What zarr and xarray say about their own formats whatever the store is.
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]
_DASK_OBJECTS = pytest.mark.filterwarnings(
    # Object arrays have no fixed width: xarray computes them and says so.
    "ignore:.*has data in the form of a dask array with dtype=object"
)


@contextlib.contextmanager
def _target() -> Iterator[CASStore]:
    with (
        tempfile.TemporaryDirectory(prefix="cas-zarr-xarray-") as folder,
        CASStore(Path(folder) / "data.cas") as store,
    ):
        yield store


@pytest.fixture
def tmp_store(tmp_path: Path) -> Iterator[CASStore]:
    with CASStore(tmp_path / "data.cas") as store:
        yield store


class _OnCASStore(ZarrBase):  # type: ignore[misc]
    flush_when_saved = False

    def create_zarr_target(self) -> Any:
        return _target()

    def save(self, dataset: Any, store_target: Any, **kwargs: Any) -> Any:
        if not isinstance(store_target, CASStore):  # a path that a test made for itself
            with CASStore(store_target) as store:
                return super().save(dataset, store, **kwargs)
        result = super().save(dataset, store_target, **kwargs)
        if self.flush_when_saved:
            store_target.flush()
        return result

    @contextlib.contextmanager
    def open(self, path: Any, **kwargs: Any) -> Iterator[Any]:
        if not isinstance(path, CASStore):
            path = CASStore(path)
        with super().open(path, **kwargs) as dataset:
            yield dataset

    # A store with unflushed changes refuses to be pickled: the copy could not see them.

    def test_pickle(self) -> None:
        self.flush_when_saved = True
        super().test_pickle()

    def test_pickle_dataarray(self) -> None:
        self.flush_when_saved = True
        super().test_pickle_dataarray()


class TestNumpyBacked(_OnCASStore):
    pass


@_DASK_OBJECTS
class TestDaskBacked(_OnCASStore):
    """The same, with every dataset chunked before it is written and opened in chunks."""

    # It looks into the cache that xarray keeps for arrays which are not dask's.
    test_dataset_caching = None

    def save(self, dataset: Any, store_target: Any, **kwargs: Any) -> Any:
        if isinstance(dataset, xr.Dataset):
            dataset = dataset.chunk()
        return super().save(dataset, store_target, **kwargs)

    @contextlib.contextmanager
    def open(self, path: Any, **kwargs: Any) -> Iterator[Any]:
        with super().open(path, **({"chunks": {}} | kwargs)) as dataset:
            yield dataset


class TestRegionNumpyBacked(RegionAuto):  # type: ignore[misc]
    def create_zarr_target(self) -> Any:
        return _target()


class TestRegionDaskBacked(RegionAuto):  # type: ignore[misc]
    def create_zarr_target(self) -> Any:
        return _target()

    def save(self, target: CASStore, ds: Any, **kwargs: Any) -> None:
        # A region that is one dask chunk within a larger Zarr chunk is refused by xarray.
        super().save(target, ds if "region" in kwargs else ds.chunk(), **kwargs)


del RegionAuto  # or pytest collects it again, on a folder of xarray's own


def _dataset() -> Any:
    return xr.Dataset(
        {
            "temperature": (
                ("time", "y", "x"),
                np.arange(4 * 5 * 6, dtype="float32").reshape(4, 5, 6),
                {"units": "K"},
            ),
            "name": (("y",), np.array(["a", "b", "c", "d", "e"], dtype="<U1")),
        },
        coords={
            "time": np.arange("2020-01-01", "2020-01-05", dtype="datetime64[D]").astype(
                "datetime64[ns]"
            )
        },
        attrs={"title": "seasons"},
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("chunks", [None, {}], ids=["numpy", "dask"])
def test_a_committed_dataset_opens_without_a_warning(
    tmp_path: Path, zarr_format: int, chunks: dict[str, int] | None
) -> None:
    original = _dataset()
    with CASStore(tmp_path / "data.cas") as store:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification.*")
            original.to_zarr(store, zarr_format=zarr_format)
        store.commit("first")
        listed = sorted(store_keys(store))
        assert ".zmetadata" not in listed
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification.*")
        opened = xr.open_zarr(CASStore(tmp_path / "data.cas", version="main"), chunks=chunks)
    xr.testing.assert_identical(opened.load(), original)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_tree_of_groups_comes_back(tmp_path: Path, zarr_format: int) -> None:
    tree = xr.DataTree.from_dict(
        {
            "/": xr.Dataset({"a": ("x", [1, 2, 3])}),
            "/fine": xr.Dataset({"a": ("z", np.arange(9.0))}),
            "/fine/deep": xr.Dataset({"b": ("w", np.arange(2.0))}),
        }
    )
    with CASStore(tmp_path / "data.cas") as store:
        tree.to_zarr(store, zarr_format=zarr_format, consolidated=False)
        store.commit("tree")
    with xr.open_datatree(
        CASStore(tmp_path / "data.cas", version="main"), engine="zarr", chunks=None
    ) as opened:
        xr.testing.assert_identical(opened.load(), tree)
    group = xr.open_zarr(CASStore(tmp_path / "data.cas", version="main"), group="fine")
    xr.testing.assert_identical(group.load(), tree["fine"].to_dataset(inherit=False))


def test_appending_keeps_the_chunks_that_lie_there(tmp_path: Path) -> None:
    original = _dataset().drop_vars("name")
    with CASStore(tmp_path / "data.cas") as store:
        original.isel(time=slice(0, 2)).to_zarr(
            store, encoding={"temperature": {"chunks": (1, 5, 6)}}
        )
        store.commit("two days")
        before = {key: store.cid("temperature", box=box) for key, box in _first_days(2)}
        original.isel(time=slice(2, 4)).to_zarr(store, append_dim="time")
        store.commit("two more")
        after = {key: store.cid("temperature", box=box) for key, box in _first_days(2)}
        assert after == before
    opened = xr.open_zarr(CASStore(tmp_path / "data.cas", version="main"))
    xr.testing.assert_identical(opened.load(), original)
    earlier = xr.open_zarr(CASStore(tmp_path / "data.cas", version="main~1"))
    assert earlier.sizes["time"] == 2


def _first_days(count: int) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    return [(day, ((day, day + 1), (0, 1), (0, 1))) for day in range(count)]


def store_keys(store: CASStore) -> list[str]:
    from zarr.core.sync import sync

    async def keys() -> list[str]:
        return [key async for key in store.list()]

    return list(sync(keys()))
