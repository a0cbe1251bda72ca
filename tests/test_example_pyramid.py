"""The example of a pyramid writes all of its levels, and what viewers need to know of them."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "pyramid.py"


@pytest.mark.slow
def test_the_example_of_a_pyramid(tmp_path: Path) -> None:
    for module in ("netCDF4", "iris_sample_data", "xarray"):
        pytest.importorskip(module)
    zarr = pytest.importorskip("zarr", minversion="3.1")
    command = [sys.executable, EXAMPLE, "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "level 0: (120, 296, 392), 480 chunks" in done.stdout

    from cas_zarr import CASStore

    group = zarr.open_group(CASStore(tmp_path / "pyramid.cas", version="main"), mode="r")
    (image,) = group.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["t", "y", "x"]
    levels = [group[path["path"]][:3] for path in image["datasets"]]
    for fine, coarse in pairwise(levels):
        assert fine.shape[1] == 2 * coarse.shape[1]
        halved = fine.reshape(3, coarse.shape[1], 2, coarse.shape[2], 2).mean(axis=(2, 4))
        np.testing.assert_allclose(halved, coarse, rtol=1e-5)
    assert levels[0].std() > 5  # kelvin: there is something in it
