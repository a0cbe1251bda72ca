"""The commands in sections, each with examples in its help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

__all__ = ["SECTIONS", "Command", "Commands", "command"]

SECTIONS = {
    "data": "Put data in and look at them",
    "history": "History",
    "compare": "Compare",
    "combine": "Combine",
    "share": "Share",
    "clean": "Clean",
    "check": "Check",
}
"""Names of the sections, and their headings in the help."""


class Command(click.Command):
    """A command that knows its section and shows examples."""

    def __init__(
        self, *args: Any, section: str, examples: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.section = section
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, a line each and never wrapped."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)


_NO_CHECKOUT = "nothing is checked out: commands take --version or --branch"
_OTHER_WORDS = {
    "add": "what was written is there already, and `commit` takes all of it",
    "checkout": _NO_CHECKOUT,
    "init": "`import` makes a repository, and so does the first write",
    "serve": "it is `gateway`",
    "status": "`branch` has a star where there is work to commit, and `diff` shows it",
    "switch": _NO_CHECKOUT,
}
"""Words that users of git try, and what to do here."""


class Commands(click.Group):
    """A group whose help lists its commands by section."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say what there is in place of one of git."""
        if args[0] in _OTHER_WORDS:
            ctx.fail(f"there is no command {args[0]!r}: {_OTHER_WORDS[args[0]]}")
        return super().resolve_command(ctx, args)

    def sections(self) -> dict[str, list[Command]]:
        """Return the commands by section, in the order in which they were added."""
        found: dict[str, list[Command]] = {name: [] for name in SECTIONS}
        for entry in self.commands.values():
            if isinstance(entry, Command):
                found[entry.section].append(entry)
        return found

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of commands for each section."""
        for name, commands in self.sections().items():
            limit = formatter.width - 6 - max(len(str(entry.name)) for entry in commands)
            with formatter.section(SECTIONS[name]):
                formatter.write_dl(
                    [(str(entry.name), entry.get_short_help_str(limit)) for entry in commands]
                )


def command(name: str, section: str, *examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command of a section; its docstring is the help."""
    return click.command(name, cls=Command, section=section, examples=examples)
