"""The group of commands, and what becomes of errors.

Exit codes: 0 done, 1 an error that the message explains or damage that `verify` found, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence

import click

from cas_zarr import errors
from cas_zarr.cli.carfiles import export_command
from cas_zarr.cli.checking import prove_command, repair_command, verify_proof_command
from cas_zarr.cli.cleaning import expire_command, gc_command, repack_command
from cas_zarr.cli.combining import (
    attach_command,
    cherry_pick_command,
    cp_command,
    merge_command,
    mv_command,
    rebase_command,
    revert_command,
    rm_command,
)
from cas_zarr.cli.comparing import diff_command, same_command
from cas_zarr.cli.history import (
    branch_command,
    commit_command,
    log_command,
    reflog_command,
    reset_command,
    tag_command,
)
from cas_zarr.cli.importing import import_command
from cas_zarr.cli.linking import link_command, sources_command
from cas_zarr.cli.output import printable
from cas_zarr.cli.pinning import (
    pin_command,
    resolve_command,
    unpublish_command,
    upload_command,
)
from cas_zarr.cli.publishing import publish_command
from cas_zarr.cli.reading import (
    cat_root_command,
    cid_command,
    ls_command,
    show_command,
    stats_command,
    verify_command,
)
from cas_zarr.cli.sections import Commands
from cas_zarr.cli.serving import gateway_command
from cas_zarr.cli.sharing import (
    clone_command,
    fetch_command,
    pull_command,
    push_command,
    remote_command,
)

__all__ = ["cli", "run"]


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="cas_zarr", prog_name="cas-zarr")
def cli() -> None:
    """Git for arrays: a content-addressed store for Zarr.

    A repository is a folder. One root CID names, verifies and reproduces everything in it.
    """


for entry in (
    import_command,
    link_command,
    sources_command,
    ls_command,
    show_command,
    stats_command,
    cid_command,
    cat_root_command,
    commit_command,
    log_command,
    branch_command,
    tag_command,
    reset_command,
    reflog_command,
    diff_command,
    same_command,
    merge_command,
    cherry_pick_command,
    revert_command,
    rebase_command,
    cp_command,
    mv_command,
    rm_command,
    attach_command,
    clone_command,
    remote_command,
    fetch_command,
    pull_command,
    push_command,
    publish_command,
    export_command,
    gateway_command,
    unpublish_command,
    resolve_command,
    pin_command,
    upload_command,
    gc_command,
    expire_command,
    repack_command,
    verify_command,
    repair_command,
    prove_command,
    verify_proof_command,
):
    cli.add_command(entry)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        # without standalone mode click returns the code of `ctx.exit` instead of exiting
        code = cli.main(list(arguments), prog_name="cas-zarr", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; run it again to go on", err=True)
        return 130
    except BrokenPipeError:  # the reader of a pipe has had enough
        sys.stderr.close()
        return 1
    except errors.CasZarrError as error:
        click.echo(f"error: {printable(_as_options(str(error), arguments))}", err=True)
        return 1
    return code if isinstance(code, int) else 0


_REMEDIES = {
    "pass create=True to make one": "make one with `import` or `clone`",
    ", or open it with read_only=True": "",
}
"""What errors advise, in Python and on the command line."""


def _as_options(text: str, arguments: Sequence[str]) -> str:
    """Return a message with the options of the command in place of arguments in Python."""
    for python, line in _REMEDIES.items():
        text = text.replace(python, line)
    command = cli.commands.get(arguments[0]) if arguments else None
    for parameter in command.params if command is not None else ():
        if isinstance(parameter, click.Option):
            option = max(parameter.opts, key=len)
            found = r"True\b" if parameter.is_flag else r"(?=\w)"
            given = option if parameter.is_flag else f"{option} "
            text = re.sub(rf"\b{re.escape(str(parameter.name))}={found}", given, text)
    return text


def _show_warning(message: Warning | str, *_: object) -> None:
    click.echo(f"warning: {printable(str(message))}", err=True)
