"""docs/cli.md, made from the help that the commands give: `python -m cas_zarr.cli.reference`."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc

import click

from cas_zarr.cli.group import cli

__all__ = ["reference"]

_INTRODUCTION = """\
# The command `cas-zarr`

Made from the help of the commands by `make docs`; a test keeps the two equal.

Results go to the standard output, errors, warnings and progress bars to the standard error.
`--json` prints one JSON document. Exit codes: 0 done, 1 an error or found damage, 2 wrong usage,
130 interrupted."""


def reference() -> str:
    """Return the reference of all commands as Markdown."""
    parts = [_INTRODUCTION]
    for name, command in sorted(cli.commands.items()):
        parts.append("\n".join(_command(name, command)))
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"cas-zarr {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## `{name}`\n"
    yield f"    cas-zarr {name} {usage}\n"
    yield cleandoc(command.help or "")
    options = [option for option in command.params if isinstance(option, click.Option)]
    yield "\n| option | meaning |\n| --- | --- |"
    for option in options:
        record = option.get_help_record(context)
        if record is not None:
            flags, text = (" ".join(part.split()).replace("|", r"\|") for part in record)
            yield f"| `{flags}` | {text} |"


if __name__ == "__main__":
    click.echo(reference(), nl=False)
