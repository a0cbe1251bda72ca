"""Datasets of xarray whose variables lie on a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from gpu.arrays import field
from gpu.fakecupy import DeviceArray, Fake, on_device

from cas_zarr import CASStore, gpu

ENCODING = {"t": {"chunks": (64, 64)}}


def dataset() -> xr.Dataset:
    coordinates = {"y": np.arange(256), "x": np.linspace(0, 1, 256)}
    return xr.Dataset({"t": (("y", "x"), field(), {"units": "K"})}, coordinates)


def test_a_dataset_goes_to_a_store_and_back(fake: Fake, tmp_path: Path) -> None:
    data = dataset()
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        given = data.assign(t=data["t"].copy(data=on_device(data["t"].values)))
        given.to_zarr(store, mode="w", encoding=ENCODING)
    store.commit("from a device")
    version = CASStore(tmp_path / "repository", version="main")
    xr.testing.assert_identical(xr.open_zarr(version, chunks=None).load(), data)
    with gpu.enabled():
        opened = xr.open_zarr(version, chunks=None, create_default_indexes=False)
        part, whole = opened["t"][3:70, 5].data, opened["t"].data
    assert isinstance(whole, DeviceArray)
    assert isinstance(part, DeviceArray)
    np.testing.assert_array_equal(whole.get(), data["t"].values)
    np.testing.assert_array_equal(part.get(), data["t"].values[3:70, 5])
    assert opened["t"].attrs == {"units": "K"}
    assert fake.library.decoded == 16 + 2


@pytest.mark.usefixtures("fake")
def test_a_dataset_of_a_host_is_written_as_ever(tmp_path: Path) -> None:
    data = dataset()
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        data.to_zarr(store, mode="w", encoding=ENCODING)
    xr.testing.assert_identical(xr.open_zarr(store, chunks=None, consolidated=False).load(), data)
