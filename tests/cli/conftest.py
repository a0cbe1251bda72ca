"""What the tests of the command line share: a way to run a command line, and a repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands import Command, Result

from cas_zarr import CASStore
from cas_zarr.cli.group import run


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs a command line."""

    def call(*arguments: object) -> Result:
        code = run([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def done(command: Command) -> Command:
    """Return a function that runs a command line, which must succeed."""

    def call(*arguments: object) -> Result:
        result = command(*arguments)
        assert result.code == 0, result.err + result.out
        return result

    return call


@pytest.fixture
def weather(tmp_path: Path) -> Path:
    """Return a repository with one commit: t2m of 4 x 6 in chunks of 2 x 3, and a group."""
    folder = tmp_path / "weather.cas"
    with CASStore(folder) as store:
        group = zarr.open_group(store, mode="a")
        array = group.create_array(
            "t2m", shape=(4, 6), chunks=(2, 3), dtype="<f4", dimension_names=("time", "x")
        )
        array[:] = np.arange(24, dtype="<f4").reshape(4, 6)
        array.attrs["units"] = "K"
        store.commit("first import", author="A <a@b.c>")
    return folder


@pytest.fixture
def write(weather: Path) -> Callable[..., None]:
    """Return a function that sets elements of t2m on a branch, and commits if given a message."""

    def call(place: Any, value: float, message: str | None = None, *, branch: str = "main") -> None:
        with CASStore(weather, branch=branch) as store:
            zarr.open_array(store, path="t2m", mode="r+")[place] = value
            if message is not None:
                store.commit(message)

    return call
