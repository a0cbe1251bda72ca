"""`merge`, `cherry-pick`, `revert`, `rebase`; `cp`, `mv`, `rm`, `attach`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import Command

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid

Write = Callable[..., None]


def values(weather: Path, version: str = "main", path: str = "t2m") -> np.ndarray:
    return zarr.open_array(CASStore(weather, version=version), path=path, mode="r")[:]


def messages(done: Command, weather: Path, version: str = "main") -> list[str]:
    return [entry["message"] for entry in done("log", weather, version, "--json").json]


@pytest.fixture
def trial(weather: Path, done: Command, write: Write) -> Path:
    """Return the repository with two branches that changed different chunks."""
    done("branch", weather, "trial")
    write((0, 0), 5, "on main")
    write((3, 5), 6, "on trial", branch="trial")
    return weather


@pytest.fixture
def clash(weather: Path, done: Command, write: Write) -> Path:
    """Return the repository with two branches that changed the same chunk."""
    done("branch", weather, "trial")
    write((0, 0), 5, "on main")
    write((1, 1), 6, "on trial", branch="trial")
    return weather


# -- merging ----------------------------------------------------------------------------------


def test_merge_of_what_does_not_touch(trial: Path, done: Command) -> None:
    text = done("merge", trial, "trial", "-m", "both", "--author", "B <b@c.d>").out
    assert "merge: 1 new commit" in text
    both = values(trial)
    assert (both[0, 0], both[3, 5]) == (5, 6)
    newest = done("log", trial, "-n", 1, "--json").json[0]
    assert (newest["message"], newest["author"]) == ("both", "B <b@c.d>")
    assert len(newest["parents"]) == 2
    assert "already there" in done("merge", trial, "trial").out
    graph = done("log", trial, "--graph", "--oneline").out.splitlines()
    assert [line[:3] for line in graph] == ["* b", "|\\", "| *", "* |", "|/", "* b"]


def test_merge_that_only_moves_the_branch(weather: Path, done: Command, write: Write) -> None:
    done("branch", weather, "trial")
    write((0, 0), 5, "on trial", branch="trial")
    result = done("merge", weather, "trial", "--json").json
    assert (result["kind"], result["commits"]) == ("fast-forward", [])
    done("reset", weather, "main", "main~1")
    result = done("merge", weather, "trial", "--no-ff", "--json").json
    assert (result["kind"], result["commits"]) == ("merge", [result["commit"]])


def test_conflicts_are_told_with_chunk_box_and_cids(clash: Path, command: Command) -> None:
    before = Repository.open(clash).record("main")
    told = command("merge", clash, "trial")
    assert told.code == 1
    cids = [
        format_cid(cid)
        for version in ("main~1", "main", "trial")
        if (cid := CASStore(clash, version=version).mapping.cid_of("t2m/c/0/0"))
    ]
    base, ours, theirs = cids
    assert told.out == (
        f"conflict: t2m/c/0/0 [0:2, 0:3]: base {base}, ours {ours}, theirs {theirs}\n"
    )
    assert told.err.startswith("error: merging trial conflicts with branch 'main'")
    as_json = command("merge", clash, "trial", "--json")
    assert as_json.code == 1
    assert as_json.err == ""
    (conflict,) = as_json.json["conflicts"]
    assert conflict["key"] == "t2m/c/0/0"
    assert conflict["coordinates"] == [0, 0]
    assert conflict["box"] == [[0, 2], [0, 3]]
    assert [conflict[side] for side in ("base", "ours", "theirs")] == cids
    assert Repository.open(clash).record("main") == before


@pytest.mark.parametrize(("side", "expected"), [("--ours", (5, 7)), ("--theirs", (0, 6))])
def test_a_side_resolves(
    clash: Path, done: Command, side: str, expected: tuple[float, float]
) -> None:
    result = done("merge", clash, "trial", side)
    assert "resolved: t2m/c/0/0" in result.out
    merged = values(clash)
    assert (merged[0, 0], merged[1, 1]) == expected


def test_conflicts_of_documents_and_nodes(weather: Path, command: Command, done: Command) -> None:
    for branch, units in (("main", "C"), ("trial", "F")):
        if branch == "trial":
            done("branch", weather, branch, "main~1")
        with CASStore(weather, branch=branch) as store:
            zarr.open_array(store, path="t2m", mode="r+").attrs["units"] = units
            store.commit(units)
    told = command("merge", weather, "trial")
    assert told.code == 1
    assert told.out.startswith("conflict: t2m/zarr.json: base bafk")
    assert "attributes.units" in told.out
    done("branch", weather, "gone", "main~1")
    with CASStore(weather, branch="gone") as store:
        del zarr.open_group(store, mode="a")["t2m"]
        store.commit("gone")
    told = command("merge", weather, "gone", "--json").json["conflicts"][0]
    assert (told["path"], told["kind"], told["base"]) == ("t2m", "node", None)


def test_cherry_pick_and_revert(trial: Path, command: Command, done: Command, write: Write) -> None:
    write((0, 5), 9, "more on trial", branch="trial")
    done("cherry-pick", trial, "trial")
    assert messages(done, trial) == ["more on trial", "on main", "first import"]
    assert (values(trial)[0, 5], values(trial)[3, 5]) == (9, 23)
    done("revert", trial, "main~1", "-m", "back")
    assert messages(done, trial)[0] == "back"
    assert (values(trial)[0, 0], values(trial)[0, 5]) == (0, 9)
    refused = command("cherry-pick", trial, "nothing")
    assert (refused.code, refused.out) == (1, "")
    done("merge", trial, "trial")
    refused = command("revert", trial, "main")
    assert "is a merge of 2 parents; pass --parent 1 for" in refused.err
    done("revert", trial, "main", "--parent", 1)


def test_rebase(trial: Path, done: Command) -> None:
    result = done("rebase", trial, "trial", "--onto", "main", "--json").json
    assert result["kind"] == "rebase"
    assert len(result["commits"]) == 1
    assert messages(done, trial, "trial") == ["on trial", "on main", "first import"]
    moved = values(trial, "trial")
    assert (moved[0, 0], moved[3, 5]) == (5, 6)


def test_merges_are_signed(trial: Path, tmp_path: Path, done: Command) -> None:
    pytest.importorskip("cryptography")
    file = tmp_path / "key"
    file.write_bytes(bytes(32))
    done("merge", trial, "trial", "--sign", file)
    done("revert", trial, "main~1", "--sign", file)
    signatures = [entry["signature"] for entry in done("log", trial, "--json").json]
    assert [one is not None for one in signatures] == [True, True, False, False, False]


# -- subtrees ---------------------------------------------------------------------------------


def test_copies_and_moves(weather: Path, command: Command, done: Command) -> None:
    cid = done("cid", weather, "t2m").out.strip()
    copied = done("cp", weather, "t2m", "backup/t2m", "--json").json
    assert (copied["path"], copied["cid"]) == ("backup/t2m", cid)
    assert done("cid", weather).out.strip() == copied["root"]
    taken = command("cp", weather, "t2m", "backup/t2m")
    assert taken.code == 1
    assert "pass --overwrite to replace it" in taken.err
    done("cp", weather, "t2m", "backup/t2m", "--overwrite")
    done("mv", weather, "t2m", "/air/")
    assert done("cid", weather, "air").out.strip() == cid
    assert command("cid", weather, "t2m").code == 1
    done("commit", weather, "-m", "moved")
    np.testing.assert_array_equal(values(weather, path="air"), values(weather, "main~1"))


def test_attach_of_an_older_version_and_of_another_repository(
    weather: Path, tmp_path: Path, done: Command, write: Write
) -> None:
    cid = done("cid", weather, "t2m").out.strip()
    write((0, 0), 5, "second")
    assert done("attach", weather, "old", "main~1:t2m", "--json").json["cid"] == cid
    other = tmp_path / "other.cas"
    with CASStore(other) as store:
        zarr.open_group(store, mode="a")
    assert cid in done("attach", other, "weather", "main~1:t2m", "--from", weather).out
    done("commit", other, "-m", "attached")
    np.testing.assert_array_equal(
        values(other, path="weather"), np.arange(24, dtype="<f4").reshape(4, 6)
    )
    assert done("verify", other, "--data").code == 0


def test_groups_above_a_path_are_made(weather: Path, done: Command) -> None:
    done("mv", weather, "t2m", "era5/surface/t2m")
    group = zarr.open_group(CASStore(weather), mode="r")
    assert sorted(name for name, _ in group.members(max_depth=None)) == [
        "era5",
        "era5/surface",
        "era5/surface/t2m",
    ]
    kinds = [row["kind"] for row in done("ls", weather, "-r", "--json").json]
    assert kinds == ["group", "group", "array"]


def test_rm(weather: Path, command: Command, done: Command) -> None:
    before = done("cid", weather).out
    missing = command("rm", weather, "t2n")
    assert (missing.code, missing.out) == (1, "")
    assert "no node 't2n' is in the root; there are: t2m" in missing.err
    assert command("rm", weather, "/").code == 2
    assert done("cid", weather).out == before
    done("cp", weather, "t2m", "a/t2m")
    assert done("rm", weather, "/t2m/", "--json").json["path"] == "t2m"
    assert [row["path"] for row in done("ls", weather, "-r", "--json").json] == ["a", "a/t2m"]
    assert "removed" in done("rm", weather, "a").out
    assert done("ls", weather, "--json").json == []
    assert done("show", weather, "t2m", "-v", "main", "--json").json["chunks"] == 4
