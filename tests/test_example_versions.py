"""The example of versions runs to its end and says what it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "versions.py"


@pytest.mark.slow
def test_the_example_of_versions(tmp_path: Path) -> None:
    for module in ("matplotlib", "netCDF4", "iris_sample_data", "xarray"):
        pytest.importorskip(module)
    pytest.importorskip("zarr", minversion="3.1")
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--output", output],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("identical to the netCDF file") == 3
    assert done.stdout.count("conflict: chunk (8, 0, ") == 2
    assert "merge: 2 chunks added up" in done.stdout
    assert "pushed again: 0 blocks" in done.stdout
    assert done.stdout.count("while its source is out of reach: identical") == 2
    assert "verify reads every block: all is well" in done.stdout
    assert (output / "versions.png").read_bytes().startswith(b"\x89PNG")
