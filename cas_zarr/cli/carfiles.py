"""`cas-zarr export`, and the import of what it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click

from cas_zarr.cid import format_cid, hash_of
from cas_zarr.cli.options import BOX, Slices, json_option, repository_argument
from cas_zarr.cli.output import cid_text, count, counter, print_json, print_pairs, size_text
from cas_zarr.cli.sections import command
from cas_zarr.codecs.car import PRAGMA, CarReader
from cas_zarr.errors import CasZarrError, InvalidArgumentError, StorageError
from cas_zarr.repository.applying import import_car
from cas_zarr.repository.exporting import export
from cas_zarr.repository.repository import Repository

__all__ = ["export_command", "import_from_car", "is_car"]

_STREAM = "-"
_VERSION_1 = b"\xa2\x65roots"  # what a header of version 1 begins with, behind its length


@command(
    "export",
    "share",
    "cas-zarr export weather.cas main -o weather.car",
    "cas-zarr export weather.cas v1.0..v2.0 -o news.car",
    "cas-zarr export weather.cas main --path era5/t2m --box 0:10,:,: -o days.car",
    "cas-zarr export weather.cas main -o - | ssh other cas-zarr import - weather.cas",
)
@repository_argument
@click.argument("version")
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="FILE",
    help="The CAR file to write; - is the standard output.",
)
@click.option("--path", default="", help="Only this group or array, as a dataset of its own.")
@click.option(
    "--box",
    type=BOX,
    metavar="A:B,...",
    help="Only the chunks that hold this box of the index of the array at --path, as in 0:10,:,3.",
)
@click.option("--history", is_flag=True, help="The commit and all before it, not its root alone.")
@json_option
def export_command(
    repository: str,
    version: str,
    output: str,
    path: str,
    box: Slices | None,
    history: bool,
    as_json: bool,
) -> None:
    """Write a version, or a part of it, to one CAR file.

    VERSION is a tag, a branch (its newest commit), a commit or a root; v1..v2 is what v2 has and
    v1 has not, for someone who has v1 already.

    The file can be opened in place as a dataset, imported into any repository, or given to IPFS
    (ipfs dag import). The same version gives the same bytes. To a pipe goes a CAR of version 1,
    which has no index, as a pipe cannot seek.
    """
    begin, dots, end = version.partition("..")
    if dots and not (begin and end):
        raise click.UsageError("write the difference of two versions as v1..v2")
    repo = Repository.open(repository, read_only=True)
    target: str | BinaryIO = output
    if output == _STREAM:
        target = sys.stdout.buffer
        if as_json or sys.stdout.isatty():
            raise click.UsageError(
                "a car goes to a pipe or a file, and not with --json to the same place; name a "
                "file with -o"
            )
    with counter("export") as progress:
        report = export(
            repo,
            end if dots else version,
            target,
            path=path,
            box=box,
            since=begin if dots else None,
            history=history,
            progress=progress,
        )
    if output == _STREAM:
        sys.stdout.buffer.flush()
        return
    if as_json:
        print_json(
            {
                "file": output,
                "root": format_cid(report.root),
                "since": cid_text(report.since),
                "blocks": report.blocks,
                "bytes": report.size,
                "car": report.version,
            }
        )
        return
    pairs = [
        ("exported", f"{count(report.blocks, 'block')}, {size_text(report.size)}"),
        ("root", format_cid(report.root)),
    ]
    if report.since is not None:
        pairs.append(("since", format_cid(report.since)))
    print_pairs([*pairs, ("file", output)])


def is_car(source: str) -> bool:
    """Tell by the name, or else by the first bytes, whether a source is a CAR."""
    if source == _STREAM or source.partition("?")[0].lower().endswith(".car"):
        return True
    path = Path(source)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise StorageError(
            error.errno or 0, "cannot read what shall be imported; check its permissions", source
        ) from error
    return head.startswith(PRAGMA) or _VERSION_1 in head[1:12]


def import_from_car(
    source: str,
    repository: str,
    *,
    branch: str,
    message: str | None,
    commit: bool,
    replace: bool,
    hash_name: str | None,
    author: str,
    as_json: bool,
) -> None:
    """Import a CAR for `cas-zarr import`, and tell what came of it."""
    opened = Repository.prepare(repository, hash=hash_name, author=author)
    if not opened.exists and hash_name is None and source != _STREAM:
        opened = Repository.prepare(repository, hash=_hash_of(source), author=author)
    place: str | BinaryIO = sys.stdin.buffer if source == _STREAM else source
    with opened, counter("import") as progress:
        report = import_car(
            opened,
            place,
            branch=branch,
            message=message,
            commit=commit,
            replace=replace,
            progress=progress,
        )
    if as_json:
        print_json(
            {
                "source": report.source,
                "roots": [format_cid(root) for root in report.roots],
                "since": cid_text(report.since),
                "blocks": report.blocks,
                "bytes": report.size,
                "held": report.held,
                "branch": report.branch,
                "root": cid_text(report.root),
                "commit": cid_text(report.commit),
            }
        )
        return
    new = f"{count(report.blocks, 'block')}, {size_text(report.size)}"
    pairs = [
        ("imported", f"{new}; {report.held:,} were here"),
        ("branch", report.branch or ""),
        ("root", cid_text(report.root) or ""),
    ]
    if report.commit is not None:
        pairs.append(("commit", format_cid(report.commit)))
    print_pairs(pairs)


def _hash_of(source: str) -> str | None:
    """Return the hash of what a local CAR names, for the repository that is made for it."""
    if not Path(source).is_file():
        return None
    with CarReader(source) as car:
        roots = car.header.roots
    if not roots:
        raise InvalidArgumentError(f"{source} names no root, so no branch can lead to it")
    try:
        return hash_of(roots[0]).name
    except CasZarrError:
        return None
