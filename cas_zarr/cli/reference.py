"""docs/cli.md, made from the help that the commands give: `python -m cas_zarr.cli.reference`."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc

import click

from cas_zarr.cli.group import cli
from cas_zarr.cli.sections import SECTIONS, Command

__all__ = ["reference"]

_INTRODUCTION = """\
# The command `cas-zarr`

Made from the help of the commands by `make docs`; a test keeps the two equal.

Results go to the standard output, errors, warnings and progress bars to the standard error.
`--json` prints one JSON document. Exit codes: 0 done, 1 an error or found damage, 2 wrong usage,
130 interrupted."""


def reference() -> str:
    """Return the reference of all commands as Markdown."""
    sections = cli.sections()
    contents = [
        f"- {SECTIONS[section]}: "
        + ", ".join(f"[`{entry.name}`](#{entry.name})" for entry in commands)
        for section, commands in sections.items()
    ]
    parts = [_INTRODUCTION, "\n".join(contents)]
    for section, commands in sections.items():
        parts.append(f"## {SECTIONS[section]}")
        parts += ["\n".join(_command(entry)) for entry in commands]
    return "\n\n".join(parts) + "\n"


def _command(command: Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"cas-zarr {command.name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"### `{command.name}`\n"
    yield f"    cas-zarr {command.name} {usage}\n"
    yield cleandoc(command.help or "")
    if command.examples:
        yield "\n```sh"
        yield from command.examples
        yield "```"
    options = [option for option in command.params if isinstance(option, click.Option)]
    yield "\n| option | meaning |\n| --- | --- |"
    for option in options:
        record = option.get_help_record(context)
        if record is not None:
            flags, text = (" ".join(part.split()).replace("|", r"\|") for part in record)
            yield f"| `{flags}` | {text} |"


if __name__ == "__main__":
    click.echo(reference(), nl=False)
