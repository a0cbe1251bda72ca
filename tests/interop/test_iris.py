"""Real climate data, as netCDF ships it, through xarray into a `CASStore` and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("netCDF4")
pytest.importorskip("zarr", minversion="3.1")
iris_sample_data = pytest.importorskip("iris_sample_data")

from zarr.codecs import ZstdCodec  # noqa: E402

from cas_zarr import CASStore  # noqa: E402

SAMPLES = Path(iris_sample_data.path)
STEPS = 10


def _open(name: str) -> Any:
    """Return a sample as it lies in the file: nothing decoded, so nothing is encoded again."""
    return xr.load_dataset(SAMPLES / name, engine="netcdf4", decode_cf=False)


def _import(store: CASStore, name: str, group: str, zarr_format: int = 3) -> None:
    data = _open(name).drop_encoding()
    compressor: dict[str, Any] = {}
    if zarr_format == 3:
        compressor = {"compressors": (ZstdCodec(level=3),)}
    encoding: dict[Any, dict[str, Any]] = {
        key: {
            # xarray gives floats without a fill value one of its own, unless it is told not to.
            **({} if "_FillValue" in variable.attrs else {"_FillValue": None}),
            "chunks": tuple(
                min(size, STEPS) if dim == "time" else size for dim, size in variable.sizes.items()
            ),
            **compressor,
        }
        for key, variable in data.variables.items()
    }
    data.to_zarr(store, group=group, encoding=encoding, zarr_format=zarr_format)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["A1B_north_america.nc", "ostia_monthly.nc"])
def test_every_value_and_attribute_comes_back(tmp_path: Path, name: str, zarr_format: int) -> None:
    with CASStore(tmp_path / "climate.cas") as store:
        _import(store, name, "run", zarr_format)
        store.commit(name)
    version = CASStore(tmp_path / "climate.cas", version="main")
    back = xr.open_zarr(version, group="run", decode_cf=False, mask_and_scale=False)
    original = _open(name)
    xr.testing.assert_identical(back.load(), original)
    for key, variable in original.variables.items():
        assert back[key].dtype == variable.dtype
    decoded = xr.open_zarr(version, group="run", chunks=None)
    expected = xr.load_dataset(SAMPLES / name, engine="netcdf4")
    xr.testing.assert_identical(decoded.load(), expected)


def test_the_scenarios_share_the_chunks_that_are_equal(tmp_path: Path) -> None:
    a1b, e1 = "A1B_north_america.nc", "E1_north_america.nc"
    with CASStore(tmp_path / "climate.cas") as store:
        _import(store, a1b, "a1b")
        _import(store, e1, "e1")
        store.commit("both")
        same = [
            store.cid("a1b/air_temperature", box=box) == store.cid("e1/air_temperature", box=box)
            for box in (((i, i + 1), (0, 1), (0, 1)) for i in range(24))
        ]
    left = _open(a1b)["air_temperature"].values
    right = _open(e1)["air_temperature"].values
    expected = [
        np.array_equal(left[i : i + STEPS], right[i : i + STEPS])
        for i in range(0, left.shape[0], STEPS)
    ]
    assert same == expected
    assert sum(same) == 14


def test_importing_twice_stores_nothing_new(tmp_path: Path) -> None:
    roots, sizes = [], []
    for _ in range(2):
        with CASStore(tmp_path / "climate.cas") as store:
            _import(store, "A1B_north_america.nc", "again")
            roots.append(str(store.flush()))
        packs = tmp_path / "climate.cas" / "packs"
        sizes.append(sum(pack.stat().st_size for pack in packs.iterdir()))
        with CASStore(tmp_path / "climate.cas") as store:
            xr.Dataset().to_zarr(store, mode="w")
    assert roots[0] == roots[1]
    assert sizes[1] - sizes[0] < 50_000  # the root in between, and pages; no chunk again


def test_a_time_series_and_a_map_read_only_what_they_need(tmp_path: Path) -> None:
    with CASStore(tmp_path / "climate.cas") as store:
        _import(store, "ostia_monthly.nc", "sst")
        store.commit("sst")
    data = xr.open_zarr(CASStore(tmp_path / "climate.cas", version="main"), group="sst")
    original = xr.load_dataset(SAMPLES / "ostia_monthly.nc", engine="netcdf4")
    series = data["surface_temperature"].isel(latitude=9, longitude=200)
    np.testing.assert_array_equal(
        series.values, original["surface_temperature"].isel(latitude=9, longitude=200).values
    )
    month = data["surface_temperature"].isel(time=17)
    np.testing.assert_array_equal(
        month.values, original["surface_temperature"].isel(time=17).values
    )
