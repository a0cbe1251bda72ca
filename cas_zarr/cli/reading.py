"""The commands that read: `ls`, `show`, `stats`, `cid`, `verify`, `cat-root`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from cas_zarr.cid import format_cid
from cas_zarr.cli.options import (
    SHARE,
    json_option,
    opened,
    path_argument,
    repository_argument,
    sources_options,
    version_option,
)
from cas_zarr.cli.output import (
    cid_text,
    count,
    counter,
    print_json,
    print_pairs,
    print_table,
    printable,
    shape_text,
    size_text,
)
from cas_zarr.cli.sections import command
from cas_zarr.errors import NotFoundError
from cas_zarr.repository.describe import NodeInfo, describe, iter_nodes, unfold
from cas_zarr.repository.innerchunks import inner_box_cid
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.stats import dataset_stats
from cas_zarr.repository.verify import VerifyReport

__all__ = [
    "cat_root_command",
    "cid_command",
    "ls_command",
    "show_command",
    "stats_command",
    "verify_command",
]

_MOST_BOXES = 20


@command("ls", "data", "cas-zarr ls weather.cas -r", "cas-zarr ls weather.cas era5 --version v1.0")
@repository_argument
@path_argument
@click.option("--recursive", "-r", is_flag=True, help="List everything below, not only children.")
@version_option
@sources_options
@json_option
def ls_command(
    repository: str,
    path: str,
    recursive: bool,
    version: str | None,
    branch: str,
    gateways: tuple[str, ...],
    node: str | None,
    as_json: bool,
) -> None:
    """List the groups and arrays of a group, or an array alone."""
    repo, root = opened(repository, version, branch, gateways=gateways, node=node)
    top, *nodes = iter_nodes(repo.blocks, root, path, depth=None if recursive else 1)
    if top.kind == "array":
        path, nodes = "", [top, *nodes]
    if as_json:
        print_json([_node_json(node) for node in nodes])
        return
    start = len(path.strip("/")) + 1 if path.strip("/") else 0
    print_table(
        ("NAME", "KIND", "TYPE", "SHAPE", "CHUNKS", "STORED", "SIZE"),
        [
            (
                node.path[start:] or "/",
                node.kind,
                node.data_type or "",
                shape_text(node.shape),
                shape_text(node.chunk_shape),
                f"{node.chunks:,}" if node.kind == "array" else "",
                size_text(node.size) if node.kind == "array" else "",
            )
            for node in nodes
        ],
        right="STORED SIZE",
    )


@command("show", "data", "cas-zarr show weather.cas era5/t2m")
@repository_argument
@path_argument
@version_option
@sources_options
@json_option
def show_command(
    repository: str,
    path: str,
    version: str | None,
    branch: str,
    gateways: tuple[str, ...],
    node: str | None,
    as_json: bool,
) -> None:
    """Show a group or an array: its metadata, CID and sizes."""
    repo, root = opened(repository, version, branch, gateways=gateways, node=node)
    found = describe(repo.blocks, root, path)
    mapping = repo.at(root) if root is not None else None
    cid = None if mapping is None else mapping.cid(found.path)
    total = 0 if mapping is None else mapping.prefix_size(found.path + "/" if found.path else "")
    if as_json:
        print_json(
            _node_json(found)
            | {"cid": cid_text(cid), "bytes_below": total, "documents": found.documents}
        )
        return
    pairs = [
        ("path", found.path or "/"),
        ("kind", found.kind + (f", zarr format {found.zarr_format}" if found.zarr_format else "")),
        ("cid", cid_text(cid) or "none: nothing was written yet"),
    ]
    if found.kind == "array":
        grid = "" if found.grid_size is None else f" of {found.grid_size:,}"
        named = [found.dimension_names] if any(found.dimension_names) else []
        pairs += [
            ("type", found.data_type or "unknown"),
            ("shape", shape_text(found.shape) or "unknown"),
            *(("dimensions", ", ".join(name or "-" for name in names)) for names in named),
            ("chunks", shape_text(found.chunk_shape) or "not regular"),
            ("codecs", ", ".join(found.codecs) or "none"),
            ("stored", f"{found.chunks:,}{grid} chunks, {size_text(found.size)}"),
        ]
    pairs.append(("values below", size_text(total)))
    pairs += [(f"@{name}", _short(value)) for name, value in found.attributes.items()]
    print_pairs(pairs)


@command("stats", "data", "cas-zarr stats weather.cas")
@repository_argument
@path_argument
@version_option
@json_option
def stats_command(
    repository: str, path: str, version: str | None, branch: str, as_json: bool
) -> None:
    """Show what a dataset takes, and what dedupe saved.

    LOGICAL is what a folder of files would take, STORED what is left of it without repetitions
    inside the array, SHARED the part of that which other arrays have too. The last line counts
    every block once.
    """
    repo, root = opened(repository, version, branch)
    stats = dataset_stats(repo.blocks, root, path)
    if as_json:
        print_json(
            {
                "root": cid_text(root),
                "values": stats.values,
                "logical": stats.logical,
                "stored": stats.stored,
                "saved": stats.saved,
                "tree": stats.tree,
                "nodes": [
                    {
                        "path": node.path,
                        "values": node.values,
                        "logical": node.logical,
                        "stored": node.stored,
                        "shared": node.shared,
                    }
                    for node in stats.nodes
                ],
            }
        )
        return
    rows = [
        (
            node.path or "/",
            f"{node.values:,}",
            size_text(node.logical),
            size_text(node.stored),
            size_text(node.shared),
        )
        for node in stats.nodes
    ]
    rows.append(("all", f"{stats.values:,}", size_text(stats.logical), size_text(stats.stored), ""))
    print_table(
        ("PATH", "VALUES", "LOGICAL", "STORED", "SHARED"),
        rows,
        right="VALUES LOGICAL STORED SHARED",
    )
    share = f" ({stats.saved / stats.logical:.0%})" if stats.logical else ""
    click.echo()
    click.echo(
        f"dedupe saved {size_text(stats.saved)}{share}; what links the values takes "
        f"{size_text(stats.tree)}"
    )


@command(
    "cid",
    "data",
    "cas-zarr cid weather.cas era5/t2m --version main~1",
    "cas-zarr cid weather.cas era5/t2m --box 0:10,0:4,0:4",
)
@repository_argument
@path_argument
@click.option(
    "--box",
    metavar="A:B,...",
    help="Only a box of an array's chunks: a range of chunk indices, not elements, for each "
    "dimension.",
)
@click.option(
    "--inner", is_flag=True, help="The box counts the inner chunks of shards instead of shards."
)
@version_option
@json_option
def cid_command(
    repository: str,
    path: str,
    box: str | None,
    inner: bool,
    version: str | None,
    branch: str,
    as_json: bool,
) -> None:
    """Print the CID of a dataset, a node, or a box of chunks."""
    ranges = None if box is None else _parse_box(box)
    repo, root = opened(repository, version, branch)
    if root is None:
        raise NotFoundError(f"{repository} has no root on branch {branch!r}: nothing was written")
    mapping = repo.at(root)
    if inner:
        if ranges is None:
            raise click.UsageError("--inner says what --box counts; give --box as well")
        cid = inner_box_cid(mapping.view, path.strip("/"), ranges)
    else:
        cid = mapping.cid(path.strip("/"), ranges)
    if as_json:
        print_json({"path": path.strip("/"), "box": ranges, "cid": format_cid(cid)})
        return
    click.echo(format_cid(cid))


@command(
    "verify",
    "check",
    "cas-zarr verify weather.cas --data",
    "cas-zarr verify weather.cas --version v1.0 --path era5/t2m --sample 5%",
    "cas-zarr verify weather.cas --allowed-signers signers.txt",
)
@repository_argument
@click.option(
    "--version",
    "-v",
    metavar="VERSION",
    help="Only this version, without its history: a tag, branch, commit, root CID, or main~2.",
)
@click.option("--path", metavar="PATH", default="", help="Only this group or array of the version.")
@click.option("--data", is_flag=True, help="Read and hash every block, not only the structure.")
@click.option(
    "--sample", metavar="SHARE", type=SHARE, help="Read and hash a share of the values, as 5%."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    help="Which share of the values --sample reads: another number reads others.",
)
@click.option("--signatures", is_flag=True, help="Check the signatures of the commits.")
@click.option(
    "--allowed-signers",
    metavar="FILE",
    help="Accept only commits that are signed by one of the keys in this file, a line each: "
    "ssh-ed25519 AAAA... name.",
)
@json_option
def verify_command(
    repository: str,
    version: str | None,
    path: str,
    data: bool,
    sample: float | None,
    seed: int,
    signatures: bool,
    allowed_signers: str | None,
    as_json: bool,
) -> None:
    """Check that everything is there and whole.

    Without a version, all branches, tags and kept roots are checked with their histories, and the
    files of the repository. The structure is read and hashed, and of the values it is checked that
    they are there; --data reads and hashes all of them, --sample a share. The exit code is 1 if
    something is damaged or missing.
    """
    repo = Repository.open(repository, read_only=True)
    allowed = None
    if allowed_signers is not None:
        from cas_zarr.repository.signing import load_signers

        allowed = frozenset(load_signers(allowed_signers))
    with counter("verify") as progress:
        report = repo.verify(
            version,
            path=path,
            data=data,
            sample=sample,
            seed=seed,
            signatures=signatures,
            allowed=allowed,
            progress=progress,
        )
    if as_json:
        print_json(report.as_json())
    else:
        _print_report(report, signatures or allowed is not None)
    if not report.ok:
        click.get_current_context().exit(1)


def _print_report(report: VerifyReport, signatures: bool) -> None:
    for found in (*report.damaged, *report.pack_faults):
        click.echo(f"damaged: {printable(str(found))}")
    if report.damages > len(report.damaged):
        click.echo(f"and {report.damages - len(report.damaged):,} more")
    for array in report.arrays:
        where = " ".join(_box_text(box) for box in (array.indices or array.boxes)[:_MOST_BOXES])
        more = "" if len(array.boxes) <= _MOST_BOXES else " ..."
        click.echo(
            f"hurt: {printable(array.path or '/')} in {printable(array.version)}: "
            f"{count(array.chunks, 'chunk')} {where}{more}".rstrip()
        )
    if not report.complete:
        click.echo("what lies below a damaged block could not be checked")
    if report.promised:
        click.echo(f"{count(report.promised, 'block')} left at the remote, as a partial clone has")
    if signatures:
        click.echo(f"{count(report.signed, 'signed commit')}, {report.unsigned:,} unsigned")
    checked = (count(report.roots, "root"), count(report.commits, "commit"))
    blocks = f"{count(report.blocks, 'block')} of {size_text(report.size)}"
    damaged = max(report.damages, len(report.pack_faults))
    click.echo(
        f"{', '.join(checked)}, {blocks}, {size_text(report.read_size)} read: {_verdict(damaged)}"
    )


def _box_text(box: Sequence[tuple[int, int]]) -> str:
    return f"[{','.join(f'{start}:{stop}' for start, stop in box)}]"


@command("cat-root", "data", "cas-zarr cat-root weather.cas | jq .nodes")
@repository_argument
@click.option("--raw", is_flag=True, help="The exact bytes of the block, as they are hashed.")
@version_option
def cat_root_command(repository: str, raw: bool, version: str | None, branch: str) -> None:
    """Print the root document as JSON.

    The metadata documents in it, which are text, are unfolded.
    """
    repo, root = opened(repository, version, branch)
    if root is None:
        raise NotFoundError(f"{repository} has no root on branch {branch!r}: nothing was written")
    block = repo.blocks.get(root)
    if raw:
        sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        return
    print_json(unfold(block))


# -- forms ----------------------------------------------------------------------------------


def _node_json(node: NodeInfo) -> dict[str, Any]:
    found: dict[str, Any] = {
        "path": node.path,
        "kind": node.kind,
        "zarr_format": node.zarr_format,
        "attributes": node.attributes,
    }
    if node.kind == "array":
        found |= {
            "shape": node.shape,
            "dimension_names": node.dimension_names,
            "chunk_shape": node.chunk_shape,
            "data_type": node.data_type,
            "codecs": list(node.codecs),
            "chunks": node.chunks,
            "bytes": node.size,
        }
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 500 else text[:500] + "..."


def _verdict(damaged: int) -> str:
    return f"{damaged:,} damaged" if damaged else "all whole"


def _parse_box(text: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for part in text.split(","):
        begin, colon, end = part.strip().partition(":")
        try:
            ranges.append((int(begin), int(end) if colon else int(begin) + 1))
        except ValueError:
            raise click.BadParameter(
                f"{part!r} is no range of chunk indices; use A:B for each dimension, as in 0:4,2:3",
                param_hint="--box",
            ) from None
    return tuple(ranges)
