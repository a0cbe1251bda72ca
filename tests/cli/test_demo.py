"""The demo of the README runs to its end and says what the README says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "climate.py"


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, DEMO, "--output", output],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "14 of 24 chunks are the same block" in done.stdout
    assert done.stdout.count("identical: values, types") == 5
    assert "refused: block b" in done.stdout
    assert (output / "scenarios.png").read_bytes().startswith(b"\x89PNG")
