"""Nothing that a repository holds can steer the terminal of who looks at it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command

from cas_zarr import CASStore

NASTY = "\x1b]0;title\x07\x1b[2J"


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """Return a repository with escapes in messages, authors, paths, keys and attributes."""
    folder = tmp_path / "nasty.cas"
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    array = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [2],
        "data_type": NASTY,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "dimension_names": [NASTY],
        "attributes": {NASTY: NASTY},
    }
    with CASStore(folder, author=NASTY) as store:
        mapping = store.session.prepare()
        mapping["zarr.json"] = json.dumps(group).encode()
        store.commit(NASTY)
    for branch, value in (("main", b"1"), ("trial", b"2")):
        if branch == "trial":
            store.session.repository.create_branch(branch, "main~1")
        with CASStore(folder, branch=branch, author=NASTY) as store:
            mapping = store.session.prepare()
            mapping[f"{NASTY}/zarr.json"] = json.dumps({**array, "n": value.decode()}).encode()
            mapping[f"{NASTY}/c/0"] = value
            mapping[f"{NASTY}/note{NASTY}"] = value
            store.commit(NASTY)
    with CASStore(folder, branch="trial") as store:
        store.move(NASTY, f"moved{NASTY}")
        store.commit("moved")
    return folder


def test_what_could_steer_a_terminal_is_escaped(
    nasty: Path, tmp_path: Path, command: Command, done: Command
) -> None:
    car = tmp_path / "p.car"
    done("tag", nasty, "v1")
    for arguments in (
        ("ls", nasty, "-r"),
        ("show", nasty, NASTY),
        ("stats", nasty),
        ("log", nasty),
        ("log", nasty, "--graph"),
        ("log", nasty, "--oneline", "--path", NASTY),
        ("branch", nasty),
        ("tag", nasty),
        ("reflog", nasty),
        ("diff", nasty, "main~1", "main", "--chunks", "--fields"),
        ("diff", nasty, "main", "trial", "--fields"),
        ("diff", nasty, "trial~1", "trial"),
        ("diff", nasty, "main", NASTY),
        ("merge", nasty, "trial~1"),
        ("cp", nasty, NASTY, NASTY),
        ("cp", nasty, NASTY, f"copy{NASTY}"),
        ("prove", nasty, NASTY, "--version", "main", "-o", car),
        ("prove", nasty, f"{NASTY}x", "-o", car),
        ("verify-proof", car, NASTY, "--root", done("cid", nasty, "-v", "main").out.strip()),
        ("clone", nasty, tmp_path / f"clone{NASTY}"),
        ("reset", nasty, NASTY, "main"),
        (NASTY,),
        ("diff", nasty, "main~1", "main", "--plot", tmp_path / NASTY / "x.png"),
    ):
        result = command(*arguments)
        assert result.out + result.err, arguments
        assert "\x1b" not in result.out + result.err, arguments
        assert "\x07" not in result.out + result.err, arguments
    assert command("merge", nasty, "trial~1").out.count("conflict: ") == 1


def test_json_is_json_whatever_is_in_it(nasty: Path, command: Command) -> None:
    for arguments in (
        ("log", nasty),
        ("branch", nasty),
        ("reflog", nasty),
        ("diff", nasty, "main~1", "main"),
        ("merge", nasty, "trial~1"),
    ):
        out = command(*arguments, "--json").out
        assert "\x1b" not in out
        json.loads(out)
