"""`export`, and `import` of what it writes."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr
from commands import Command

from cas_zarr import CASStore
from cas_zarr.blocks.carfile import CarBlocks
from cas_zarr.errors import BlockNotFoundError, StorageError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.repository import Repository


def values(repository: Path, version: str = "main") -> list[list[float]]:
    store = CASStore(repository, version=version)
    found: list[list[float]] = zarr.open_array(store, path="t2m", mode="r")[:].tolist()  # type: ignore[union-attr,index]
    return found


def test_a_version_goes_from_one_repository_to_another(
    done: Command, weather: Path, tmp_path: Path
) -> None:
    car, other = tmp_path / "w.car", tmp_path / "other.cas"
    told = done("export", weather, "main", "-o", car, "--json").json
    assert told["bytes"] == car.stat().st_size
    assert told["since"] is None
    assert told["car"] == 2
    result = done("import", car, other, "-m", "taken", "--json").json
    assert result["roots"] == [told["root"]] == [result["root"]]
    assert result["blocks"] == told["blocks"]
    assert values(other) == values(weather)
    assert next(iter(Repository.open(other).log("main"))).commit.message == "taken"
    again = done("import", car, other, "--json").json
    assert (again["blocks"], again["commit"]) == (0, result["commit"])


def test_a_difference_is_applied_on_the_other_side(
    done: Command,
    command: Command,
    weather: Path,
    write: Callable[..., None],
    tmp_path: Path,
) -> None:
    base, news, other = tmp_path / "base.car", tmp_path / "news.car", tmp_path / "other.cas"
    write((0, 0), 99.0, "day one")
    done("export", weather, "main~1", "-o", base)
    told = done("export", weather, "main~1..main", "-o", news, "--json").json
    assert told["blocks"] <= 3
    result = command("import", news, other)
    assert result.code == 1
    assert told["since"] in result.err
    done("import", base, other)
    assert told["since"] in done("export", weather, "main~1..main", "-o", news).out
    done("import", news, other)
    assert values(other) == values(weather)


def test_a_history_and_a_part(done: Command, weather: Path, tmp_path: Path) -> None:
    car, other = tmp_path / "w.car", tmp_path / "other.cas"
    done("export", weather, "main", "--history", "-o", car)
    done("import", car, other, "--branch", "main")
    assert Repository.open(other).branches() == Repository.open(weather).branches()
    done("export", weather, "main", "--path", "t2m", "--box", "0:2,0:3", "-o", car)
    with CarBlocks(car) as blocks:
        mapping = CASMapping(blocks, blocks.roots[0], read_only=True)
        assert len(mapping["c/0/0"]) > 0
        with pytest.raises(BlockNotFoundError):
            mapping.get_value("c/1/1")
    array = zarr.open_array(CASStore(car), mode="r")
    assert array[0:2, 0:3].tolist() == [row[:3] for row in values(weather)[:2]]  # type: ignore[union-attr,index]
    with pytest.raises(StorageError, match=r"which has the box \[0:2, 0:3\] alone"):
        array[:]  # never a fill value


def test_a_pipe_carries_a_car(weather: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.cas"
    run = [sys.executable, "-c", "from cas_zarr.cli.main import main; main()"]
    out = subprocess.run(
        [*run, "export", weather, "main", "-o", "-"], check=True, capture_output=True
    ).stdout
    subprocess.run([*run, "import", "-", other], input=out, check=True, capture_output=True)
    assert values(other) == values(weather)


def test_a_sha2_car_makes_a_sha2_repository(done: Command, tmp_path: Path) -> None:
    car = tmp_path / "w.bin"
    with CASStore(tmp_path / "a.cas", hash="sha2-256") as store:
        zarr.create_group(store)
        store.commit("one")
    done("export", tmp_path / "a.cas", "main", "-o", car)
    done("import", car, tmp_path / "b.cas")  # known by its first bytes
    assert Repository.open(tmp_path / "b.cas").hash == "sha2-256"


def test_wrong_use_is_told(
    command: Command, weather: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    car = tmp_path / "w.car"
    assert command("export", weather, "..main", "-o", car).code == 2
    assert command("export", weather, "main").code == 2
    assert command("export", weather, "main", "-o", "-", "--json").code == 2
    assert command("export", weather, "none", "-o", car).code == 1
    assert not car.exists()
    car.write_bytes(b"<html>")
    result = command("import", car, tmp_path / "o.cas")
    assert result.code == 1
    assert "car" in result.err
    assert command("import", car, tmp_path / "o.cas", "--path", "x").code == 2
    result = command("import", "/proc/self/mem", tmp_path / "o.cas")  # opens, and cannot be read
    assert result.code == 1
    assert "check its permissions" in result.err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"nothing")))
    assert command("import", "-", tmp_path / "o.cas").code == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it is Linux that has a full disk")
def test_a_full_disk_is_told_with_its_file_first(weather: Path, command: Command) -> None:
    full = command("export", weather, "main", "-o", "/dev/full")
    assert full.code == 1
    assert full.err == (
        "error: /dev/full: cannot write a car file: no space left on device; free some space, then "
        "try again\n"
    )
