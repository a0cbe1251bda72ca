"""The command that serves a repository: `gateway`."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import click

from cas_zarr.cli.options import repository_argument
from cas_zarr.cli.output import print_json, printable
from cas_zarr.cli.sections import command
from cas_zarr.repository.repository import Repository

if TYPE_CHECKING:
    from cas_zarr.server.running import Server

__all__ = ["gateway_command"]


@command(
    "gateway",
    "share",
    "cas-zarr gateway weather.cas",
    "cas-zarr gateway weather.cas --host 0.0.0.0 --port 8080 --log",
    "cas-zarr clone http://127.0.0.1:8080 copy.cas",
)
@repository_argument
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; 0.0.0.0 for whoever reaches this machine.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 for any that is free.",
)
@click.option(
    "--fetch",
    is_flag=True,
    help="Of a partial clone: fetch what a client asks for and is not here.",
)
@click.option("--log", "access_log", is_flag=True, help="Write a line for each request to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print where it listens as JSON.")
def gateway_command(
    repository: str, host: str, port: int, fetch: bool, access_log: bool, as_json: bool
) -> None:
    """Serve a repository over HTTP, for reading only, until Ctrl-C.

    It is a gateway of IPFS with the blocks of the repository: browsers, readers of Zarr over HTTP,
    nodes of IPFS, and `clone` on another machine can read from it. Whoever reaches the address can
    read everything in the repository.
    """
    from cas_zarr.server.app import ACCESS_LOG
    from cas_zarr.server.running import serve

    repo = Repository.open(repository, read_only=not fetch)
    if access_log:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Printable())
        logger = logging.getLogger(ACCESS_LOG)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)

    def tell(server: Server) -> None:
        if as_json:
            print_json({"url": server.url, "repository": repo.location})
        else:
            click.echo(f"serving {printable(repo.location)} at {server.url}, for reading only")
            click.echo(f"  {server.url}/zarr/main          a branch or a tag, for readers of Zarr")
            click.echo(f"  {server.url}/ipfs/CID           blocks, CARs, files, keys of a root")
            click.echo(f"  cas-zarr clone {server.url} copy.cas")
            click.echo("Ctrl-C ends it")
        sys.stdout.flush()

    with repo:
        serve(repo, host=host, port=port, fetch=fetch, access_log=access_log, ready=tell)


class _Printable(logging.Formatter):
    """Shows what clients sent without what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
