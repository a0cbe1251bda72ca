"""What the README shows works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_examples_run(tmp_path: Path) -> None:
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[:2]
    subprocess.run(
        [sys.executable, "-c", first + second],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monday.cas", "weather.cas"]


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        assert target.startswith("https://") or (README.parent / target).exists(), target
