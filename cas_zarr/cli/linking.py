"""`cas-zarr link` and `cas-zarr sources`."""

from __future__ import annotations

from pathlib import Path

import click

from cas_zarr.cid import format_cid
from cas_zarr.cli.importing import print_brought
from cas_zarr.cli.options import author_option, json_option, repository_argument
from cas_zarr.cli.output import count, print_json, printable, progress_bar, size_text
from cas_zarr.cli.sections import command
from cas_zarr.repository.linking import link, list_sources, repoint
from cas_zarr.repository.repository import Repository

__all__ = ["link_command", "sources_command"]


@command(
    "link",
    "data",
    "cas-zarr link era5.zarr weather.cas --path era5",
    "cas-zarr link model.json weather.cas --path model",
)
@click.argument("source")
@repository_argument
@click.option("--path", default="", help="Node to put it at; the root by default.")
@click.option("--message", "-m", help="Message of the commit; by default it names the source.")
@click.option(
    "--branch",
    "-b",
    metavar="NAME",
    default="main",
    show_default=True,
    help="Branch to link into.",
)
@click.option("--copy", is_flag=True, help="Copy the bytes, and refer to nothing.")
@click.option("--replace", is_flag=True, help="Remove what is at the path and not in the source.")
@author_option
@json_option
def link_command(
    source: str,
    repository: str,
    path: str,
    message: str | None,
    branch: str,
    copy: bool,
    replace: bool,
    author: str,
    as_json: bool,
) -> None:
    """Link data that lie elsewhere, without copying them, and commit that.

    SOURCE is a folder with a Zarr, or references as kerchunk and VirtualiZarr write them, in JSON
    or parquet. Every chunk is hashed once and stays where it is. If it changes there, reading it is
    an error; if it moves, see `sources`. REPOSITORY is a folder, made if it is not there.
    """
    opened = Repository.prepare(repository, author=author)
    name = Path(source).name or source
    with progress_bar(name) as progress:
        report = link(
            opened,
            source,
            branch=branch,
            path=path,
            copy=copy,
            replace=replace,
            message=message or (f"link {name} as {path}" if path else f"link {name}"),
            progress=progress,
        )
    root = format_cid(opened.resolve(branch).root)
    pairs = [
        ("bound", f"{count(report.keys, 'key')}, {size_text(report.size)}"),
        ("linked", count(report.linked, "value")),
        ("root", root),
    ]
    print_brought(report, pairs, as_json, linked=report.linked, root=root)


@command(
    "sources",
    "data",
    "cas-zarr sources weather.cas",
    "cas-zarr sources weather.cas --move /old/era5.zarr /new/era5.zarr",
)
@repository_argument
@click.option(
    "--move",
    nargs=2,
    metavar="OLD NEW",
    help="Look for what was at OLD, a file, a folder or the begin of a URL, at NEW from now on.",
)
@json_option
def sources_command(repository: str, move: tuple[str, str] | None, as_json: bool) -> None:
    """Show where linked data lie, and which files of them are gone.

    Files that are there may have changed: `verify --data` reads them.
    """
    opened = Repository.open(repository, read_only=move is None)
    if move:
        repoint(opened, *move)
    reports = list_sources(opened)
    if as_json:
        print_json(
            [
                {
                    "location": report.location,
                    "blocks": report.blocks,
                    "bytes": report.size,
                    "missing": list(report.missing),
                }
                for report in reports
            ]
        )
        return
    for report in reports:
        missing = f", {count(len(report.missing), 'file')} missing" if report.missing else ""
        blocks = f"{count(report.blocks, 'block')}, {size_text(report.size)}{missing}"
        click.echo(f"{printable(report.location)}  {blocks}")
