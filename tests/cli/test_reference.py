"""docs/cli.md says what the commands themselves say."""

from __future__ import annotations

from pathlib import Path

import click

from cas_zarr.cli.group import cli
from cas_zarr.cli.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_page_is_the_help_of_the_commands() -> None:
    assert PAGE.read_text() == reference(), "run: make docs"


def test_everything_has_help() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts}"
        json = [option for option in command.params if "--json" in option.opts]
        assert json or name == "cat-root", name
