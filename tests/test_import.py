"""What importing the package loads, and where the environment is read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cas_zarr"


def loaded_by(code: str) -> set[str]:
    """Run code in a new interpreter; return the top-level modules that are loaded then."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    return set(done.stdout.split())


def test_the_package_alone_loads_nothing_heavy() -> None:
    heavy = {
        "zarr",
        "multiformats",
        "dag_cbor",
        "numpy",
        "xarray",
        "dask",
        "fsspec",
        "click",
        "rich",
    }
    assert not loaded_by("import cas_zarr") & heavy


@pytest.mark.parametrize(
    "code",
    [
        "import cas_zarr.repository.repository, cas_zarr.mapping",
        "from cas_zarr import CASStore, Repository, CASMapping",
    ],
)
def test_the_core_loads_nothing_optional(code: str) -> None:
    optional = {
        "aiohttp",
        "cryptography",
        "matplotlib",
        "click",
        "cupy",
        "dask",
        "fsspec",
        "httpx",
        "netCDF4",
        "obstore",
        "pandas",
        "requests",
        "rich",
        "xarray",
    }
    with_zarr = loaded_by("import zarr")
    assert not (loaded_by(code) - with_zarr) & optional


def test_every_module_says_what_it_exports() -> None:
    for file in PACKAGE.rglob("*.py"):
        body = ast.parse(file.read_text()).body
        if len(body) < 2:  # nothing, or a docstring
            continue
        names = {
            target.id
            for node in body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        assert "__all__" in names, file


def test_no_file_is_too_long() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {file: length for file, length in lengths.items() if length > 700} == {}


def test_the_environment_is_read_by_the_command_line_only() -> None:
    for file in PACKAGE.rglob("*.py"):
        if "cli" not in file.parts:
            text = file.read_text()
            assert "os.environ" not in text, file
            assert "getenv" not in text, file
