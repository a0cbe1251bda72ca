"""The command that gives versions to an IPFS node: `publish`."""

from __future__ import annotations

import os

import click

from cas_zarr.cid import format_cid
from cas_zarr.cli.options import json_option, repository_argument
from cas_zarr.cli.output import count, counter, print_json, print_pairs, size_text
from cas_zarr.cli.sections import command
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.repository.repository import Repository

__all__ = ["publish_command", "read_token"]

TOKEN = "CAS_ZARR_IPFS_TOKEN"
_MAX_TOKEN = 1 << 16


@command(
    "publish",
    "share",
    "cas-zarr publish weather.cas",
    "cas-zarr publish weather.cas v1.0 --to http://127.0.0.1:5001 --name weather",
    "cas-zarr publish weather.cas main --view unixfs --path era5/t2m",
)
@repository_argument
@click.argument("version", default="main")
@click.option(
    "--to",
    metavar="URL",
    default="http://127.0.0.1:5001",
    show_default=True,
    help="Address of the node's RPC.",
)
@click.option("--name", metavar="NAME", help="Name of the pin and of the key of its IPNS name.")
@click.option(
    "--view",
    type=click.Choice(["root", "unixfs"]),
    default="root",
    show_default=True,
    help="unixfs publishes a directory of files over the same chunks, too.",
)
@click.option("--path", metavar="PATH", default="", help="Only this group or array.")
@click.option("--history", is_flag=True, help="The commit, with all that came before it.")
@click.option(
    "--token-file",
    metavar="FILE",
    help=f"Holds the token that the RPC asks for; without it {TOKEN} does.",
)
@json_option
def publish_command(
    repository: str,
    version: str,
    to: str,
    name: str | None,
    view: str,
    path: str,
    history: bool,
    token_file: str | None,
    as_json: bool,
) -> None:
    """Give a version to an IPFS node, and pin it there.

    Only what the node lacks is sent. A publication that was interrupted goes on where it stopped
    when it is run again. By default the root goes, without the history.
    """
    from cas_zarr.repository.publishing import publish

    token = read_token(token_file)
    with Repository.open(repository) as repo, counter("publish") as progress:
        report = publish(
            repo,
            version,
            to=to,
            name=name,
            view="unixfs" if view == "unixfs" else "root",
            path=path,
            history=history,
            token=token,
            progress=progress,
        )
    if as_json:
        print_json(
            {
                "cid": format_cid(report.cid),
                "root": format_cid(report.root),
                "view": report.view,
                "url": report.url,
                "gateway": report.gateway,
                "ipns": report.ipns,
                "pinned": report.pinned,
                "node": report.location,
                "blocks": report.blocks,
                "bytes": report.size,
                "requests": report.requests,
            }
        )
        return
    pairs = [
        ("cid", format_cid(report.cid)),
        ("url", report.url),
        ("gateway", report.gateway),
        ("sent", f"{count(report.blocks, 'block')}, {size_text(report.size)}"),
    ]
    if report.root != report.cid:
        pairs.insert(1, ("root", format_cid(report.root)))
    if report.ipns is not None:
        pairs.append(("ipns", f"ipns://{report.ipns}"))
    print_pairs(pairs)


def read_token(file: str | None, variable: str = TOKEN) -> str | None:
    """Return the token in a file, or in a variable of the environment; None if there is none."""
    if file is None:
        return os.environ.get(variable, "").strip() or None
    try:
        with open(file, encoding="utf-8") as stream:
            token = stream.read(_MAX_TOKEN).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"the token cannot be read from {file}: {getattr(error, 'strerror', None) or 'no text'}"
        ) from None
    if not token:
        raise InvalidArgumentError(f"{file} holds no token")
    return token
