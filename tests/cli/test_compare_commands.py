"""`diff` and `same`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import Command

from cas_zarr import CASStore

Write = Callable[..., None]


@pytest.fixture
def changed(weather: Path) -> Path:
    """Return the repository with a second commit that changes a bit of everything."""
    with CASStore(weather) as store:
        group = zarr.open_group(store, mode="a")
        moving = group.create_array("old/place", shape=(3,), chunks=(1,), dtype="i4")
        moving[:] = 1
        store.commit("more")
        array = zarr.open_array(store, path="t2m", mode="r+")
        array.resize((6, 6))
        array[0, 0] = 50
        array[4:, :3] = 7
        array.attrs["units"] = "C"
        store.move("old/place", "new")
        store.mapping["notes/text"] = b"x"
        store.commit("all sorts")
    return weather


def test_diff_is_a_line_a_node(changed: Path, done: Command) -> None:
    lines = done("diff", changed, "main~1", "main").out.splitlines()
    assert [line.split("|")[0].strip() for line in lines[:-1]] == [
        "old/place => new",
        "notes",
        "t2m",
    ]
    assert "moved array, 3 chunks" in lines[0]
    assert "added folder, 1 key" in lines[1]
    assert "2 chunks ~+, 2 fields" in lines[2]
    assert lines[3] == " 3 nodes differ: 1 changed, 1 added, 1 moved; chunks: 1 changed, 1 added"
    back = done("diff", changed, "main", "main~1", "--path", "t2m").out.splitlines()
    assert "2 chunks ~-" in back[0]
    assert done("diff", changed, "main", "main").out == "no difference\n"


def test_diff_shows_boxes_and_fields(changed: Path, done: Command) -> None:
    lines = done("diff", changed, "main~1", "main", "--chunks", "--fields").out.splitlines()
    below = [line.strip() for line in lines if line.startswith("   ")]
    assert below == [
        'zarr.json attributes.units: "K" -> "C"',
        "zarr.json shape: [4, 6] -> [6, 6]",
        "[0:2, 0:3]",
        "[4:6, 0:3]",
    ]


def test_diff_without_versions_is_what_was_not_committed(
    weather: Path, command: Command, done: Command, write: Write
) -> None:
    assert done("diff", weather).out == "no difference\n"
    write((0, 0), 5)
    assert " t2m | 1 chunk ~" in done("diff", weather).out
    done("branch", weather, "trial")
    assert done("diff", weather, "--branch", "trial").out == "no difference\n"
    assert "1 chunk ~" in done("diff", weather, "trial").out
    assert command("diff", weather, "nothing").code == 1
    assert command("diff", weather, "main", "main", "--path", "nothing").code == 1


def test_diff_of_two_arrays_and_of_two_repositories(
    weather: Path, tmp_path: Path, done: Command, write: Write
) -> None:
    copy = tmp_path / "copy.cas"
    done("clone", weather, copy)
    write((0, 0), 5, "second")
    assert done("diff", weather, "main~1", "main", "--other", copy).out == "no difference\n"
    assert " t2m | 1 chunk ~" in done("diff", weather, "main", "main", "--other", copy).out
    done("attach", weather, "old", "main~1:t2m")
    done("commit", weather, "-m", "attached")
    assert " old vs t2m | 1 chunk ~" in done("diff", weather, "main:old", "main:t2m").out


def test_diff_as_json(changed: Path, done: Command) -> None:
    found = {
        change["path"]: change for change in done("diff", changed, "main~1", "main", "--json").json
    }
    assert found["new"] == {
        "path": "new",
        "source": "old/place",
        "status": "moved",
        "kind": "array",
    }
    assert found["t2m"]["chunks"]["boxes"] == [[[0, 2], [0, 3]], [[4, 6], [0, 3]]]
    assert found["t2m"]["fields"][0] == {
        "document": "zarr.json",
        "field": ["attributes", "units"],
        "before": "K",
        "after": "C",
    }


def test_bars_have_room(weather: Path, done: Command) -> None:
    with CASStore(weather) as store:
        group = zarr.open_group(store, mode="a")
        big = group.create_array("big", shape=(1000,), chunks=(1,), dtype="i4")
        big[:] = 1
        store.commit("big")
        big[:] = np.arange(1000)
        zarr.open_array(store, path="t2m", mode="r+")[0, 0] = 5
        store.commit("changed")
    lines = done("diff", weather, "main~1", "main").out.splitlines()
    assert lines[0].startswith(" big | 999 chunks ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~")
    bar = lines[0].split()[4].rstrip(",")
    assert (bar[-2:], len(bar)) == ("~-", 31)
    assert " t2m | 1 chunk ~," in lines[1]  # the least bar has a sign


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)
def test_diff_as_a_picture(changed: Path, tmp_path: Path, command: Command, done: Command) -> None:
    file = tmp_path / "maps.png"
    shown = done("diff", changed, "main~1", "main", "--plot", file)
    assert shown.err == f"drawn into {file}\n"
    assert file.read_bytes().startswith(b"\x89PNG")
    done("diff", changed, "main", "main", "--plot", file)
    lost = command("diff", changed, "main~1", "main", "--plot", tmp_path / "no" / "x.png")
    assert (lost.code, lost.out) == (1, "")
    assert lost.err.startswith("error: the picture cannot be written")


def test_maps_have_the_names_of_dimensions(changed: Path) -> None:
    from cas_zarr import Repository
    from cas_zarr.cli.comparing import map_of

    changes = Repository.open(changed).diff("main~1", "main")
    maps = [found for change in changes if (found := map_of(change)) is not None]
    assert [(one.path, one.grid, one.names) for one in maps] == [("t2m", (3, 2), ("time", "x"))]
    assert maps[0].coordinates.tolist() == [[0, 0], [2, 0]]
    assert maps[0].states.tolist() == [1, 2]


def test_same(changed: Path, tmp_path: Path, command: Command, done: Command) -> None:
    assert done("same", changed, "main~1:old/place", "main:new").out == "the same\n"
    different = command("same", changed, "main~1", "main")
    assert (different.code, different.out) == (1, "not the same\n")
    assert command("same", changed, "main~1", "main", "--json").json == {"same": False}
    copy = tmp_path / "copy.cas"
    done("clone", changed, copy)
    done("same", changed, "main", "main", "--other", copy)
    assert command("same", changed, "main", "nothing").code == 1
