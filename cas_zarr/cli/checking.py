"""The commands that check, beside `verify`: `repair`, `prove`, `verify-proof`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.cli.options import (
    Slices,
    box_option,
    chunk_box,
    index_box_of,
    json_option,
    opened,
    repository_argument,
    version_option,
    writable,
)
from cas_zarr.cli.output import count, print_json, print_pairs, printable, size_text, steps
from cas_zarr.cli.sections import command
from cas_zarr.errors import NotFoundError, StorageError
from cas_zarr.repository.describe import describe_node
from cas_zarr.repository.proof import Proof, check_proof
from cas_zarr.repository.selection import Box
from cas_zarr.tree.node import Node
from cas_zarr.tree.shards import TreeReader

__all__ = ["prove_command", "repair_command", "verify_proof_command"]

_SHOWN = 20


@command(
    "repair",
    "check",
    "cas-zarr repair weather.cas --from /backup/weather.cas",
)
@repository_argument
@click.option(
    "--from", "source", metavar="OTHER", required=True, help="Repository that has what is hurt."
)
@json_option
def repair_command(repository: str, source: str, as_json: bool) -> None:
    """Put right what is damaged or missing, with blocks from another repository.

    Everything is verified; only blocks that are hurt are fetched, and each is hashed before it
    counts. Damaged packs go when all that can be read of them is elsewhere. Damaged refs are told,
    never guessed; damaged lines of the log of refs are told and dropped. The exit code is 1 if not
    all is whole in the end.
    """
    repo = writable(repository)
    with steps("repair") as progress:
        report = repo.repair(source, progress=progress)
    if as_json:
        print_json(report.as_json())
    else:
        pairs = [
            ("fetched", f"{count(report.fetched, 'block')}, {size_text(report.fetched_size)}"),
            ("saved", f"{count(report.saved, 'block')} out of damaged packs"),
            ("packs", f"{len(report.replaced):,} replaced, {len(report.kept):,} damaged ones kept"),
            ("refs", f"{len(report.refs):,} damaged"),
            ("log", f"{count(report.mended, 'damaged line')} dropped"),
            ("now", "all whole" if report.ok else "not all whole; see: cas-zarr verify --data"),
        ]
        for damage in (*report.refs, *report.log):
            click.echo(f"damaged: {printable(str(damage))}")
        for cid in report.lost[:_SHOWN]:
            click.echo(f"lost: block {format_cid(cid)} is hurt here and not in {source}")
        if len(report.lost) > _SHOWN:
            click.echo(f"and {len(report.lost) - _SHOWN:,} more; --json has all")
        print_pairs(pairs)
    if not report.ok:
        click.get_current_context().exit(1)


# -- proofs -------------------------------------------------------------------------------------


@command(
    "prove",
    "check",
    "cas-zarr prove weather.cas era5/t2m --box 0:10,:,: -o t2m.car",
    "cas-zarr prove weather.cas era5/t2m --version v1.0 --chunks -o t2m.car",
)
@repository_argument
@click.argument("path")
@box_option
@click.option("--chunks", is_flag=True, help="Put the values of the chunks into the proof, too.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="CAR file to write; the standard output by default.",
)
@version_option
@json_option
def prove_command(
    repository: str,
    path: str,
    box: Slices | None,
    chunks: bool,
    output: Path | None,
    version: str | None,
    branch: str,
    as_json: bool,
) -> None:
    """Prove which chunks an array has to someone who holds the root's CID alone.

    The proof is a small CAR: the root document and the pages on the way to the chunks. Send it
    along with the path; the root's CID is what the other one has to trust. The proof of a box also
    shows which of its chunks are absent.
    """
    if output is None and as_json:
        raise click.UsageError(
            "--json needs --output: the proof itself would be on the same stream"
        )
    repo, root = opened(repository, version, branch)
    if root is None:
        raise NotFoundError(f"{repository} has no root on branch {branch!r}: nothing was written")
    path = path.strip("/")
    car = repo.prove(root, path, chunk_box(repo, root, path, box), chunks=chunks)
    if output is None:
        sys.stdout.buffer.write(car)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(car)
    except OSError as error:
        raise StorageError(f"the proof cannot be written to {output}: {error.strerror}") from error
    found = {"proof": str(output), "bytes": len(car), "root": format_cid(root), "path": path}
    if as_json:
        print_json(found)
        return
    print_pairs(
        [
            ("proof", f"{output}, {size_text(len(car))}"),
            ("root", format_cid(root)),
            ("path", path or "/"),
        ]
    )


@command(
    "verify-proof",
    "check",
    "cas-zarr verify-proof t2m.car era5/t2m --root CID --box 0:10,:,:",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.argument("path", default="")
@click.option("--root", metavar="CID", required=True, help="The root that you trust.")
@box_option
@json_option
def verify_proof_command(
    file: str, path: str, root: str, box: Slices | None, as_json: bool
) -> None:
    """Check a proof, with nothing but the CID of the root.

    Every block of it is hashed. The exit code is 0 if the proof shows what is at the path and in
    the box, and 1 if it does not.
    """
    chunks = None if box is None else _chunks_of(file, root, path, box)
    proof = check_proof(file, root, path, chunks)
    if as_json:
        print_json(_proof_json(proof))
        return
    present = f"{count(len(proof), 'chunk')} of {size_text(int(proof.sizes.sum()))}"
    pairs = [
        ("root", format_cid(proof.root)),
        ("path", proof.path or "/"),
        ("present", present),
        ("absent", f"{count(proof.missing, 'chunk')}, which have the fill value"),
        ("values", "in the proof, verified" if proof.data_verified else "not in the proof"),
    ]
    if proof.form is None and not proof.box:
        pairs = [*pairs[:2], ("documents", ", ".join(proof.documents) or "none")]
    print_pairs([*pairs, ("result", "the proof holds")])


def _chunks_of(file: str, root: str, path: str, box: Slices) -> Box:
    """Return the chunks that hold a box of the array's index, by the metadata in the proof."""
    documents = check_proof(file, root, path, ()).documents
    node = describe_node(TreeReader(MemoryBlocks()), Node(docs=documents), path)
    return index_box_of(node, path, box)


def _proof_json(proof: Proof) -> dict[str, Any]:
    return {
        "root": format_cid(proof.root),
        "path": proof.path,
        "documents": {
            name: text.decode("utf-8", "replace") for name, text in proof.documents.items()
        },
        "box": proof.box,
        "data_verified": proof.data_verified,
        "absent": proof.missing,
        "chunks": [
            {"coordinates": place, "cid": format_cid(CidBytes(cid.tobytes())), "bytes": size}
            for place, cid, size in zip(
                proof.coordinates.tolist(), proof.cids, proof.sizes.tolist(), strict=True
            )
        ],
    }
