"""What the commands share: arguments, options, and how a repository and a version are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cas_zarr.cid import CidBytes
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import root_of

__all__ = [
    "author_option",
    "branch_option",
    "json_option",
    "opened",
    "path_argument",
    "repository_argument",
    "version_option",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

repository_argument = click.argument("repository")
path_argument = click.argument("path", default="")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
author_option = click.option(
    "--author",
    envvar="CAS_ZARR_AUTHOR",
    show_envvar=True,
    default="",
    help="Who commits, as 'Name <address>'.",
)


def branch_option(function: _Function) -> _Function:
    """Add `--branch`."""
    return click.option(
        "--branch",
        "-b",
        metavar="NAME",
        default="main",
        show_default=True,
        help="Branch whose working root is meant.",
    )(function)


def version_option(function: _Function) -> _Function:
    """Add `--version` and `--branch`."""
    return click.option(
        "--version",
        "-v",
        metavar="VERSION",
        help="Tag, branch, commit, root CID, or main~2. Without it: what the branch shows now, "
        "committed or not.",
    )(branch_option(function))


def opened(location: str, version: str | None, branch: str) -> tuple[Repository, CidBytes | None]:
    """Open a repository for reading, and find the root that is meant; None if it is empty."""
    repository = Repository.open(location, read_only=True)
    if version is not None:
        return repository, repository.resolve(version).root
    return repository, root_of(repository.blocks, repository.record(branch))
