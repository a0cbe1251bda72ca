"""`clone`, `fetch`, `pull`, `push`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import Command

from cas_zarr import CASStore

Write = Callable[..., None]


def commits(done: Command, folder: Path, version: str = "main") -> list[str]:
    return [entry["commit"] for entry in done("log", folder, version, "--json").json]


def change(folder: Path, place: tuple[int, int], value: float, message: str) -> None:
    with CASStore(folder) as store:
        zarr.open_array(store, path="t2m", mode="r+")[place] = value
        store.commit(message)


@pytest.fixture
def clone(weather: Path, tmp_path: Path, done: Command) -> Path:
    folder = tmp_path / "clone.cas"
    done("clone", weather, folder)
    return folder


def test_clone_has_branches_tags_and_history(
    weather: Path, tmp_path: Path, done: Command, write: Write
) -> None:
    done("tag", weather, "v1")
    write((0, 0), 5, "second")
    done("branch", weather, "trial", "main~1")
    made = done("clone", weather, tmp_path / "a.cas", "--json").json
    newest, first = commits(done, weather)
    assert made["branches"] == {"main": newest, "trial": first}
    assert made["tags"] == {"v1": first}
    text = done("clone", weather, tmp_path / "b.cas", "--branch", "main", "--depth", 1).out
    assert f"branch main  {newest}" in text
    assert "trial" not in text
    assert commits(done, tmp_path / "b.cas") == [newest]
    assert "expired or not cloned" in done("log", tmp_path / "b.cas").out
    assert done("verify", tmp_path / "a.cas", "--data").code == 0


def test_partial_clone_and_the_rest(
    weather: Path, tmp_path: Path, command: Command, done: Command
) -> None:
    folder = tmp_path / "part.cas"
    done("clone", weather, folder, "--path", "t2m[0:2, 0:3]")
    assert "3 blocks left at the remote" in done("verify", folder, "--data").out
    assert done("fetch", folder, "--path", "t2m[0:2]", "--json").json["blocks"] == 1
    assert "2 blocks left at the remote" in done("verify", folder).out
    done("fetch", folder, "--rest")
    assert "left at the remote" not in done("verify", folder, "--data").out
    assert command("fetch", folder, "--rest", "--depth", 2).code == 2


def test_fetch_and_pull(weather: Path, clone: Path, done: Command, write: Write) -> None:
    write((0, 0), 5, "second")
    report = done("fetch", clone, "--json").json
    assert report["commits"] == 1
    assert report["branches"] == {"main": commits(done, weather)[0]}
    assert len(commits(done, clone)) == 1
    assert commits(done, clone, "origin/main") == commits(done, weather)
    assert "origin/main" in done("branch", clone, "--all").out
    pulled = done("pull", clone, "--json").json
    assert pulled["merged"]["main"]["kind"] == "fast-forward"
    assert commits(done, clone) == commits(done, weather)


def test_pull_tells_conflicts(
    weather: Path, clone: Path, command: Command, done: Command, write: Write
) -> None:
    write((0, 0), 5, "there")
    change(clone, (1, 1), 6, "here")
    told = command("pull", clone, weather)
    assert told.code == 1
    assert told.out.startswith("conflict: t2m/c/0/0 [0:2, 0:3]: base bafk")
    done("pull", clone, weather, "--theirs")
    array = zarr.open_array(CASStore(clone, version="main"), path="t2m", mode="r")
    assert (array[0, 0], array[1, 1]) == (5, 7)


def test_push(weather: Path, clone: Path, command: Command, done: Command, write: Write) -> None:
    change(clone, (0, 0), 5, "second")
    done("tag", clone, "v2")
    report = done("push", clone, "--tag", "v2", "--json").json
    assert report["commits"] == 1
    assert commits(done, weather) == commits(done, clone)
    assert [tag["name"] for tag in done("tag", weather, "--json").json] == ["v2"]
    write((3, 5), 6, "there")
    change(clone, (0, 0), 7, "here")
    refused = command("push", clone)
    assert refused.code == 1
    assert "pull" in refused.err
    assert len(commits(done, weather)) == 3
    done("push", clone, weather, "--force")
    assert commits(done, weather) == commits(done, clone)


def test_a_damaged_source_is_told(weather: Path, tmp_path: Path, command: Command) -> None:
    chunk = CASStore(weather, version="main").mapping["t2m/c/1/1"]
    for pack in (weather / "packs").glob("*.car"):
        data = bytearray(pack.read_bytes())
        if chunk in data:
            data[data.index(chunk)] ^= 1
            pack.chmod(0o644)
            pack.write_bytes(data)
    told = command("clone", weather, tmp_path / "clone.cas")
    assert told.code == 1
    assert told.err.startswith("error: block bafk")


def test_no_origin(weather: Path, command: Command) -> None:
    told = command("fetch", weather)
    assert (told.code, told.out) == (1, "")
    assert "origin" in told.err
    assert "give the location of the other repository" in told.err
    assert command("clone", weather / "nothing", weather / "x").code == 1


def test_values_of_a_clone(weather: Path, clone: Path) -> None:
    arrays = [
        zarr.open_array(CASStore(folder, version="main"), path="t2m", mode="r")[:]
        for folder in (weather, clone)
    ]
    np.testing.assert_array_equal(*arrays)


def test_remotes_are_named_listed_and_forgotten(
    weather: Path, clone: Path, tmp_path: Path, command: Command, done: Command, write: Write
) -> None:
    assert done("remote", clone, "--json").json == [{"name": "origin", "location": str(weather)}]
    done("remote", weather, "copy", clone)
    assert f"copy  {clone}" in done("remote", weather).out
    write((0, 0), 5, "second")
    assert done("push", weather, "copy", "--json").json["commits"] == 1
    assert commits(done, clone) == commits(done, weather)
    assert command("remote", weather, "copy", tmp_path / "other.cas").code == 1
    assert done("remote", weather, "copy", "--delete", "--json").json == {"deleted": "copy"}
    for place in ("http://127.0.0.1:8099", f"ipns://{'k51' * 20}"):
        added = done("remote", weather, "far", place, "--json").json
        assert added == {"name": "far", "location": place}
        assert done("remote", weather, "--json").json == [added]
        done("remote", weather, "far", "--delete")
    assert done("remote", weather, "--json").json == []
    for wrong in (("copy",), ("--delete",), ("copy", clone, "--delete")):
        assert command("remote", weather, *wrong).code == 2
    done("clone", weather, tmp_path / "part.cas", "--path", "t2m[0:2]")
    refused = command("remote", tmp_path / "part.cas", "origin", "--delete")
    assert refused.code == 1
    assert "fetch the rest first" in refused.err
