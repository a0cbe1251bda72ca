"""The example of a climatology computes new chunks alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "climatology.py"


@pytest.mark.slow
def test_the_example_of_a_climatology(tmp_path: Path) -> None:
    for module in ("dask", "netCDF4", "iris_sample_data", "xarray"):
        pytest.importorskip(module)
    pytest.importorskip("zarr", minversion="3.1")
    command = [sys.executable, EXAMPLE, "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [
        " 60 years: 6 chunks computed, 0 taken from before",
        "120 years: 6 chunks computed, 6 taken from before",
        "180 years: 6 chunks computed, 12 taken from before",
        "240 years: 6 chunks computed, 18 taken from before",
        "equal to the mean that xarray computes from the file, each time",
    ]
