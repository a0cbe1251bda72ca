"""What a narrow terminal shows: nothing is broken that is to be copied."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Command, on_terminal


def shown_by(*arguments: object, columns: int = 80) -> list[str]:
    """Return the lines that a command shows on a terminal, without their colors."""
    shown, _ = on_terminal(*arguments, stream="stdout", columns=columns)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()


@pytest.mark.parametrize("columns", [60, 80])
def test_tables_have_short_cids_that_are_versions(
    weather: Path, done: Command, columns: int
) -> None:
    commit = done("log", weather, "--json").json[0]["commit"]
    done("tag", weather, "v1")
    for arguments in (("branch",), ("tag",), ("reflog",)):
        table = shown_by(arguments[0], weather, columns=columns)
        assert re.search(rf" {commit[:16]}  ", table[1])
        assert re.search(r" [0-9-]{10}T[0-9:]{8}Z", table[1])
    assert done("same", weather, commit[:16], "main").out == "the same\n"


def test_a_wide_terminal_has_whole_cids(weather: Path, done: Command) -> None:
    commit = done("log", weather, "--json").json[0]["commit"]
    assert f" {commit}  " in shown_by("branch", weather, columns=140)[1]
    assert f" {commit}  " in done("branch", weather).out  # and so has a pipe


def test_values_are_never_broken(weather: Path, done: Command) -> None:
    cid = done("cid", weather).out.strip()
    assert f"cid           {cid}" in shown_by("show", weather, columns=40)


def test_log_says_what_is_at_a_commit(weather: Path, done: Command) -> None:
    done("tag", weather, "v1")
    (entry,) = done("log", weather, "--json").json
    assert entry["refs"] == ["main", "tag v1"]
    (line,) = shown_by("log", weather, "--oneline")
    assert re.fullmatch(rf"{entry['commit'][:16]} \S+Z \(main, tag v1\) first import", line)
    assert shown_by("log", weather)[0] == f"commit {entry['commit']} (main, tag v1)"
    assert done("log", weather).out.splitlines()[0] == f"commit {entry['commit']}"
