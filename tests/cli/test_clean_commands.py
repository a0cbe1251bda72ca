"""`gc`, `expire`, `repack`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command

from cas_zarr import Repository

Write = Callable[..., None]


def blocks(folder: Path) -> int:
    with Repository.open(folder, read_only=True).blocks as store:
        return sum(1 for _ in store.list())


@pytest.fixture
def littered(weather: Path, done: Command, write: Write) -> Path:
    """Return a repository with a branch that is gone, and nothing of it in the reflog."""
    done("branch", weather, "trial")
    for number in range(3):
        write((0, 0), 100 + number, f"trial {number}", branch="trial")
    done("branch", weather, "trial", "--delete")
    Repository.open(weather).refs.trim_log(1 << 62)
    return weather


def test_gc_condemns_first_and_deletes_later(littered: Path, done: Command) -> None:
    before = blocks(littered)
    dry = done("gc", littered, "--dry-run", "--json").json
    assert dry["dry_run"]
    assert dry["blocks"] - dry["live_blocks"] > 0
    assert blocks(littered) == before
    first = done("gc", littered).out
    assert "deleted    0 blocks" in first
    assert "or now by one with --grace 0" in first
    assert blocks(littered) == before
    second = done("gc", littered, "--grace", "0", "--max-unused", "0", "--json").json
    assert second["deleted_blocks"] == dry["blocks"] - dry["live_blocks"]
    assert second["freed_bytes"] > 0
    assert blocks(littered) == before - second["deleted_blocks"]
    assert done("verify", littered, "--data").code == 0
    assert done("gc", littered, "--grace", "0").out.splitlines()[1].split()[:3] == [
        "condemned",
        "0",
        "blocks,",
    ]


def test_gc_refuses_what_makes_no_sense(weather: Path, command: Command) -> None:
    assert command("gc", weather, "--grace", "tomorrow").code == 2
    assert command("gc", weather, "--max-unused", "7").code == 2


def test_expire(weather: Path, command: Command, done: Command, write: Write) -> None:
    for number in range(3):
        write((0, 0), 100 + number, f"change {number}")
    commits = [entry["commit"] for entry in done("log", weather, "--json").json]
    dry = done("expire", weather, "--keep", 2, "--dry-run")
    assert sorted(line.split()[-1] for line in dry.out.splitlines()[:2]) == sorted(commits[2:])
    assert len(done("log", weather, "--json").json) == 4
    report = done("expire", weather, "--keep", 2, "--json").json
    assert sorted(report["expired"]) == sorted(commits[2:])
    assert (report["kept"], report["cut"]) == (2, [commits[1]])
    assert [entry["commit"] for entry in done("log", weather, "--json").json] == commits[:2]
    gone = command("cid", weather, "--version", "main~2")
    assert gone.code == 1
    assert "the history was cut there" in gone.err
    assert done("expire", weather, "--older-than", "90d").out.startswith("cut off  0 commits")
    assert command("expire", weather).code == 2


def test_repack(weather: Path, done: Command, write: Write) -> None:
    for number in range(3):
        write((0, 0), 100 + number, f"change {number}")
    report = done("repack", weather, "--json").json
    assert (report["packs_after"], report["damaged"]) == (1, [])
    assert len(list((weather / "packs").glob("*.car"))) == 1
    assert "1 -> 1" in done("repack", weather).out
    assert done("verify", weather, "--data").code == 0
