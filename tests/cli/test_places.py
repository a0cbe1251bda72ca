"""Where there is no repository, where it is empty, and where it must not be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command

from cas_zarr import Repository
from cas_zarr.cli.group import cli

NOBODY = "http://127.0.0.1:9"

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "attach": ("a", "main:b"),
    "branch": ("new",),
    "cherry-pick": ("main",),
    "clone": ("x.cas",),
    "commit": ("-m", "x"),
    "cp": ("a", "b"),
    "expire": ("--keep", "1"),
    "export": ("main", "-o", "x.car"),
    "merge": ("main",),
    "mv": ("a", "b"),
    "pin": ("--service", NOBODY),
    "prove": ("a", "-o", "x.car"),
    "rebase": ("main", "--onto", "main"),
    "repair": ("--from", "other.cas"),
    "reset": ("main", "main"),
    "revert": ("main",),
    "rm": ("a",),
    "same": ("main", "main"),
    "tag": ("v1",),
    "unpublish": ("--expired", "--to", NOBODY),
    "upload": ("--to", NOBODY),
}
"""What commands need beside a repository."""

ELSEWHERE = {"import", "link", "resolve", "verify-proof"}
"""Commands that begin with something else."""

NAMES = sorted(set(cli.commands) - ELSEWHERE)


@pytest.mark.parametrize("name", NAMES)
def test_no_repository(
    name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAS_ZARR_PINNING_TOKEN", "a token")
    result = command(name, tmp_path / "nothing.cas", *ARGUMENTS.get(name, ()))
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert str(tmp_path) in result.err
    assert "True" not in result.err  # that is Python, and no option
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gateway"])  # it serves on
def test_an_empty_repository(
    name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAS_ZARR_PINNING_TOKEN", "a token")
    Repository.open("empty.cas", create=True).close()
    Repository.open("other.cas", create=True).close()
    result = command(name, "empty.cas", *ARGUMENTS.get(name, ()))
    assert result.code in (0, 1)
    assert result.code == 0 or result.err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("log",),
        ("log", "--graph"),
        ("branch",),
        ("tag",),
        ("reflog",),
        ("diff",),
        ("diff", "main", "main"),
        ("same", "main", "main"),
        ("prove", "t2m", "-o", "x.car"),
    ],
    ids=" ".join,
)
def test_reading_writes_nothing(
    weather: Path,
    tmp_path: Path,
    done: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in weather.rglob("*")}
    done(arguments[0], weather, *arguments[1:])
    assert {file: file.stat().st_mtime_ns for file in weather.rglob("*")} == before
