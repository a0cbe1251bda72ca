"""A climatology that is computed anew after each append touches the new years alone.

Writes the yearly air temperature of a climate scenario (Met Office, Open Government Licence, from
the package `iris-sample-data`), sixty years at a time and from several worker processes, and asks
for the mean field after each append. What a chunk adds to it is kept by the chunk's CID::

    python examples/climatology.py --output demo-output
"""

from __future__ import annotations

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import iris_sample_data
import numpy as np
import xarray as xr
import zarr

from cas_zarr import CASStore
from cas_zarr.distributed import cached, to_cas

FILE = Path(iris_sample_data.path) / "E1_north_america.nc"
STEP = 60  # years in an append
CHUNK = 10  # years in a chunk


def sum_of_years(block: np.ndarray) -> np.ndarray:
    """Return what a chunk of years adds to the sum of all."""
    return block.sum(axis=0, keepdims=True, dtype="f8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    output = parser.parse_args().output
    folder, kept = output / "climatology.cas", output / "climatology-cache"
    for old in (folder, kept):
        shutil.rmtree(old, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)

    data = xr.open_dataset(FILE, engine="netcdf4")[["air_temperature"]]
    data = data.drop_vars(["forecast_period", "height"], errors="ignore").load()
    lazy = data.chunk(time=CHUNK)
    with CASStore(folder) as store, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for start in range(0, data.sizes["time"], STEP):
            part = lazy.isel(time=slice(start, start + STEP))
            to_cas(
                part,
                store,
                append_dim="time" if start else None,
                options={"scheduler": "processes", "pool": pool},
            )
            store.commit(f"years {start} to {start + STEP - 1}")
            total = mean_of(store, kept)
            expected = data.air_temperature[: start + STEP].mean("time").values
            assert np.allclose(total, expected)
    print("equal to the mean that xarray computes from the file, each time")


def mean_of(store: CASStore, kept: Path) -> np.ndarray:
    """Return the mean over all years so far; say how much of it was computed."""
    array = zarr.open_array(store, path="air_temperature", mode="r")
    before = {file.name for file in kept.glob("*/*.npy")}
    years, *field = array.shape
    number = -(-years // CHUNK)
    shapes = ((1,) * number, *((side,) for side in field))
    sums = cached(sum_of_years, folder=kept, chunks=shapes, dtype="f8")(array)
    mean = sums.sum(axis=0).compute() / years
    new = len({file.name for file in kept.glob("*/*.npy")} - before)
    print(f"{years:>3} years: {new} chunks computed, {number - new} taken from before")
    return mean


if __name__ == "__main__":
    main()
