"""Predictions of a network, written as a pyramid of resolutions from where they were computed.

A small network learns to sharpen fields of air temperature (Met Office, Open Government Licence,
from the package `iris-sample-data`) and predicts each year of a scenario at eight times its
resolution. The levels are written one after the other, as OME-Zarr 0.5, which viewers zoom into.
On a machine with a GPU (`pip install 'cas-zarr[gpu-cu12]'`) the fields are computed, compressed and
hashed there, and only compressed bytes that the repository does not have come to the host; on any
other the same program runs with NumPy, and the files are in the same format::

    python examples/pyramid.py --output demo-output
"""

from __future__ import annotations

import argparse
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import iris_sample_data
import numpy as np
import xarray as xr
import zarr
from numpy.lib.stride_tricks import sliding_window_view
from zarr.codecs import ZstdCodec

from cas_zarr import CASStore, gpu
from cas_zarr.errors import MissingDependencyError

FILE = Path(iris_sample_data.path) / "A1B_north_america.nc"
DOUBLINGS = 3  # the network doubles the resolution each time
FILTERS = 32
SIDE = 5  # pixels that a prediction looks at, along each axis
LEVELS = 4
CHUNK = (1, 256, 256)
YEARS = 16  # that are in memory at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    output = parser.parse_args().output
    folder = output / "pyramid.cas"
    shutil.rmtree(folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)

    with xr.open_dataset(FILE, engine="netcdf4") as data:
        fields = data["air_temperature"][::2].values.astype("f4")
    xp, device = array_module()
    with device, CASStore(folder) as store:
        network = Network(xp, fields[:60])
        top = tuple(size << DOUBLINGS for size in fields.shape[1:])
        levels = create_pyramid(store, len(fields), top)
        for start in range(0, len(fields), YEARS):
            predicted = xp.asarray(fields[start : start + YEARS])
            for _ in range(DOUBLINGS):
                predicted = network.doubled(predicted)
            for number, level in enumerate(levels):
                if number:
                    predicted = halved(predicted)
                level[start : start + YEARS] = predicted
        store.commit("temperature, eight times finer", metadata={"filters": FILTERS})
    with CASStore(folder, version="main") as store:
        show(zarr.open_group(store, mode="r"), fields)


def array_module() -> tuple[Any, AbstractContextManager[Any]]:
    """Return CuPy and what lets zarr use it, or NumPy and nothing."""
    try:
        gpu.require()
    except MissingDependencyError as error:
        print(f"on the CPU, for {error}")
        return np, nullcontext()
    import cupy

    return cupy, gpu.enabled()


class Network:
    """Two layers of convolutions that double the resolution of a field.

    The filters of the first layer are random and stay so; the second layer is fitted, to fields
    that were coarsened before ("extreme learning machine", Huang et al. 2006).
    """

    def __init__(self, xp: Any, fields: np.ndarray) -> None:
        chance = np.random.default_rng(0)
        filters = chance.normal(size=(SIDE * SIDE, FILTERS)) / SIDE
        self.xp, self.filters = xp, xp.asarray(filters, dtype="f4")
        fine = xp.asarray(fields)[:, : fields.shape[1] // 2 * 2, : fields.shape[2] // 2 * 2]
        seen, level = self._seen(halved(fine))
        wanted = cells(fine).reshape(-1, 4) - level
        self.last = xp.linalg.lstsq(seen, wanted, rcond=None)[0]

    def doubled(self, fields: Any) -> Any:
        """Return fields of shape (n, y, x) with twice as many pixels along both axes."""
        count, height, width = fields.shape
        seen, level = self._seen(fields)
        fine = (seen @ self.last + level).reshape(count, height, width, 2, 2)
        return fine.transpose(0, 1, 3, 2, 4).reshape(count, 2 * height, 2 * width)

    def _seen(self, fields: Any) -> tuple[Any, Any]:
        """Return what the last layer sees of each pixel, and what its predictions add to."""
        edge = SIDE // 2
        wide = self.xp.pad(fields, ((0, 0), (edge, edge), (edge, edge)), mode="edge")
        windows = patches(self.xp, wide).reshape(-1, SIDE * SIDE)
        level = fields.reshape(-1, 1)
        near = windows - level
        return self.xp.concatenate([near, self.xp.tanh(near @ self.filters)], axis=1), level


def patches(xp: Any, fields: Any) -> Any:
    """Return the surroundings of each pixel: shape (n, y, x, SIDE, SIDE)."""
    view = sliding_window_view if xp is np else xp.lib.stride_tricks.sliding_window_view
    return view(fields, (SIDE, SIDE), axis=(1, 2))


def cells(fields: Any) -> Any:
    """Return fields as squares of two by two pixels: shape (n, y/2, x/2, 2, 2)."""
    count, height, width = fields.shape
    return fields.reshape(count, height // 2, 2, width // 2, 2).transpose(0, 1, 3, 2, 4)


def halved(fields: Any) -> Any:
    """Return the next level of a pyramid: means of two by two pixels."""
    return cells(fields).mean(axis=(3, 4))


def create_pyramid(store: CASStore, years: int, top: tuple[int, int]) -> list[zarr.Array]:
    """Create the arrays of a pyramid and say what they are, as OME-Zarr 0.5 does."""
    group = zarr.create_group(store, overwrite=True)
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [1, 2**level, 2**level]}],
        }
        for level in range(LEVELS)
    ]
    axes = [{"name": "t", "type": "time"}] + [{"name": x, "type": "space"} for x in "yx"]
    multiscales = [{"name": "air_temperature", "axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return [
        group.create_array(
            str(level),
            shape=(years, top[0] >> level, top[1] >> level),
            chunks=CHUNK,
            dtype="f4",
            compressors=ZstdCodec(level=3),
            dimension_names=("t", "y", "x"),
        )
        for level in range(LEVELS)
    ]


def show(group: zarr.Group, fields: np.ndarray) -> None:
    """Print the levels, and how far the coarsest is from what went in."""
    for path in group.attrs["ome"]["multiscales"][0]["datasets"]:
        array = group[path["path"]]
        print(f"level {path['path']}: {array.shape}, {array.nchunks_initialized} chunks")
    coarse = np.asarray(array[:])
    error = np.abs(coarse - fields).max()
    print(f"the coarsest is within {error:.2f} K of the scenario")


if __name__ == "__main__":
    main()
