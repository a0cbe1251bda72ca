"""The commands around pins and names: `unpublish`, `pin`, `upload`, `resolve`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.cli.options import json_option, repository_argument
from cas_zarr.cli.output import count, counter, print_json, print_pairs, size_text
from cas_zarr.cli.publishing import read_token
from cas_zarr.cli.sections import command
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.repository.repository import Repository

if TYPE_CHECKING:
    from cas_zarr.repository.published import Published

__all__ = ["pin_command", "resolve_command", "unpublish_command", "upload_command"]

_NODE = "http://127.0.0.1:5001"
_PINNING_TOKEN = "CAS_ZARR_PINNING_TOKEN"

_token_option = click.option(
    "--token-file",
    metavar="FILE",
    help="Holds the token that is asked for; without it CAS_ZARR_IPFS_TOKEN does.",
)


@command(
    "unpublish",
    "share",
    "cas-zarr unpublish weather.cas --version v1.0",
    "cas-zarr unpublish weather.cas --expired --dry-run",
)
@repository_argument
@click.option(
    "--version",
    "-v",
    metavar="VERSION",
    help="The version to take back, or the CID of a publication.",
)
@click.option(
    "--expired", is_flag=True, help="All that no branch, tag or kept root leads to any more."
)
@click.option(
    "--to",
    metavar="URL",
    default=_NODE,
    show_default=True,
    help="The node, as it was given to publish.",
)
@_token_option
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@json_option
def unpublish_command(
    repository: str,
    version: str | None,
    expired: bool,
    to: str,
    token_file: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take pins away from an IPFS node that `publish` has made there.

    Nothing is deleted at once: the node frees the blocks when it collects its garbage. Pins that
    others have made are left alone. An IPNS name goes on leading to what it was given until it is
    published anew.
    """
    from cas_zarr.repository.unpublishing import unpublish

    if (version is None) == (not expired):
        raise click.UsageError("give either --version or --expired, to say what to take back")
    with Repository.open(repository, read_only=dry_run) as repo:
        report = unpublish(
            repo,
            to,
            version=version,
            expired=expired,
            token=read_token(token_file),
            dry_run=dry_run,
        )
    groups = {"unpinned": report.unpinned, "gone": report.gone, "foreign": report.foreign}
    if as_json:
        listed = {name: [_entry_json(one) for one in group] for name, group in groups.items()}
        print_json({"node": report.location, **listed, "kept": report.kept, "dry_run": dry_run})
        return
    words = {
        "unpinned": "would unpin" if dry_run else "unpinned",
        "gone": "was not pinned any more",
        "foreign": "left alone, pinned under another name",
    }
    pairs = [(words[name], _entry_text(one)) for name, group in groups.items() for one in group]
    print_pairs([*pairs, ("kept", count(report.kept, "publication"))])


def _entry_json(one: Published) -> dict[str, str]:
    return {"cid": format_cid(one.cid), "kind": one.kind, "path": one.path, "name": one.name}


def _entry_text(one: Published) -> str:
    what = f"{one.kind} of {one.path}" if one.path else one.kind
    return f"{format_cid(one.cid)} ({what})"


@command(
    "pin",
    "share",
    "cas-zarr pin weather.cas main --service https://pins.example.org --token-file token",
    "cas-zarr pin weather.cas v1.0 --service https://pins.example.org --name weather --wait 600",
)
@repository_argument
@click.argument("version", default="main")
@click.option("--service", metavar="URL", required=True, help="Address of its Pinning Service API.")
@click.option(
    "--token-file",
    metavar="FILE",
    help=f"Holds the token of the service; without it {_PINNING_TOKEN} does.",
)
@click.option(
    "--name", metavar="NAME", default="", help="Name of the pin; it replaces one of this name."
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="MULTIADDR",
    help="Address of a node that has the blocks. Repeatable.",
)
@click.option("--history", is_flag=True, help="The commit, with all that came before it.")
@click.option(
    "--wait",
    "timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait until it is pinned, so long at most.",
)
@json_option
def pin_command(
    repository: str,
    version: str,
    service: str,
    token_file: str | None,
    name: str,
    origins: tuple[str, ...],
    history: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Let a pinning service keep a version.

    The service fetches the blocks itself: publish to a node that it can reach first.
    """
    from cas_zarr.repository.pinning import PinningService, pin_remote

    token = read_token(token_file, _PINNING_TOKEN)
    if token is None:
        raise InvalidArgumentError(
            f"pinning service {service} asks for a token; put it into {_PINNING_TOKEN}, or into a "
            "file for --token-file"
        )
    with Repository.open(repository, read_only=True) as repo:
        pin = pin_remote(
            repo,
            PinningService(service, token),
            version,
            name=name,
            history=history,
            origins=origins,
            timeout=timeout,
        )
    state = {"state": pin.state, "id": pin.request_id, "name": pin.name}
    if as_json:
        delegates = list(pin.delegates)
        print_json({**_head_json(pin.cid, service), **state, "delegates": delegates})
        return
    pairs = [("cid", format_cid(pin.cid)), *state.items()]
    print_pairs([pair for pair in pairs if pair[1]])


@command(
    "upload",
    "share",
    "cas-zarr upload weather.cas main --to https://rpc.example.org --token-file token",
    "cas-zarr upload weather.cas v1.1 --to https://rpc.example.org --since v1.0",
)
@repository_argument
@click.argument("version", default="main")
@click.option("--to", metavar="URL", required=True, help="Address of the service.")
@_token_option
@click.option("--path", metavar="PATH", default="", help="Only this group or array.")
@click.option(
    "--since",
    metavar="VERSION",
    help="A version that the service has whole; what it has is not sent.",
)
@json_option
def upload_command(
    repository: str,
    version: str,
    to: str,
    token_file: str | None,
    path: str,
    since: str | None,
    as_json: bool,
) -> None:
    """Send a version as CARs to a service that knows no more than that (dag/import).

    To a node of your own, publish: that sends only what the node lacks, and checks its pin.
    """
    from cas_zarr.repository.uploading import upload_car

    token = read_token(token_file)
    with Repository.open(repository, read_only=True) as repo, counter("upload") as progress:
        report = upload_car(
            repo, version, to=to, token=token, path=path, since=since, progress=progress
        )
    head = _head_json(report.cid, report.location)
    if as_json:
        print_json({**head, "blocks": report.blocks, "bytes": report.size})
        return
    sent = f"{count(report.blocks, 'block')}, {size_text(report.size)}"
    print_pairs([("cid", head["cid"]), ("url", head["url"]), ("sent", sent)])


def _head_json(cid: CidBytes, service: str) -> dict[str, str]:
    """Return what JSON of something that is at a service begins with."""
    text = format_cid(cid)
    return {"cid": text, "url": f"ipfs://{text}", "service": service}


@command(
    "resolve",
    "share",
    "cas-zarr resolve k51qzi5uqu5dlee3aiptboyzwf70udyg16yz3n8d5jy7okuvdcchdbrwpt4dur",
    "cas-zarr resolve ipns://data.example.org --gateway https://gateway.example.org",
)
@click.argument("name")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="URL",
    help=f"RPC of a node to ask; {_NODE} where neither nodes nor gateways are given. Repeatable.",
)
@click.option(
    "--gateway",
    "gateways",
    multiple=True,
    metavar="URL",
    help="A gateway to ask for signed records. Repeatable.",
)
@_token_option
@json_option
def resolve_command(
    name: str,
    nodes: tuple[str, ...],
    gateways: tuple[str, ...],
    token_file: str | None,
    as_json: bool,
) -> None:
    """Find out what an IPNS name leads to.

    What a gateway says is verified, and the newest of several answers counts. What a node says is
    believed. Of a domain (DNSLink) nothing can be verified.
    """
    from cas_zarr.blocks.ipfsclient import as_node
    from cas_zarr.repository.ipns import resolve_name

    if not nodes and not gateways:
        nodes = (_NODE,)
    token = read_token(token_file) if nodes else None
    answer = resolve_name(
        name, nodes=[as_node(node, token=token) for node in nodes], gateways=gateways
    )
    expires = None if answer.expires is None else _moment(answer.expires)
    if as_json:
        print_json(
            {
                "path": answer.path,
                "verified": answer.verified,
                "source": answer.source,
                "expires": expires,
                "sequence": answer.sequence,
            }
        )
        return
    verified = "yes" if answer.verified else "no: as the source says"
    pairs = [("path", answer.path), ("verified", verified), ("source", answer.source)]
    print_pairs(pairs if expires is None else [*pairs, ("expires", expires)])


def _moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
