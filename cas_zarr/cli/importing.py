"""`cas-zarr import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cas_zarr.cid import format_cid
from cas_zarr.cli.carfiles import import_from_car, is_car
from cas_zarr.cli.options import (
    author_option,
    committed_root,
    json_option,
    repository_argument,
    sources_options,
    writing,
)
from cas_zarr.cli.output import count, counter, print_json, print_pairs, progress_bar, size_text
from cas_zarr.cli.sections import command
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.repository.imports import ImportReport, import_zarr
from cas_zarr.repository.linking import LinkReport
from cas_zarr.repository.opening import parse_location
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.unixfsimport import UnixfsReport, link_published

__all__ = ["import_command", "print_brought"]

_NETCDF_SUFFIXES = (".nc", ".nc3", ".nc4", ".cdf", ".netcdf")
_MAGIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05", b"\x89HDF")


class _Chunks(click.ParamType):  # type: ignore[type-arg]
    """``time=10,lat=90``"""

    name = "chunks"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, int]:
        if isinstance(value, dict):
            return value
        chunks: dict[str, int] = {}
        for part in str(value).split(","):
            name, equals, length = part.strip().rpartition("=")
            try:
                chunks[name] = int(length)
            except ValueError:
                equals = ""
            if not equals or not name:
                self.fail(f"{part!r} is not NAME=LENGTH, as in time=10,lat=90", param, ctx)
        return chunks


@command(
    "import",
    "data",
    "cas-zarr import era5.zarr weather.cas --path era5",
    "cas-zarr import A1B.nc weather.cas --path a1b --chunks time=10",
    "cas-zarr import news.car weather.cas",
    "cas-zarr import ipfs://bafybe... weather.cas --path theirs --gateway http://127.0.0.1:8080",
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
    help="Branch to import into.",
)
@click.option("--no-commit", is_flag=True, help="Only flush: the branch shows it, no history.")
@click.option("--replace", is_flag=True, help="Remove what is at the path and not in the source.")
@click.option(
    "--hash",
    "hash_name",
    type=click.Choice(["blake3", "sha2-256"]),
    help="Hash function of a repository that this makes; blake3 by default.",
)
@click.option(
    "--chunks",
    type=_Chunks(),
    metavar="DIM=N,...",
    help="netCDF: length of a chunk along dimensions; chunks span the others. By default chunks "
    "are of at most 1 MiB.",
)
@click.option(
    "--codec",
    default="zstd:3",
    show_default=True,
    help="netCDF: zstd:LEVEL or none. Both give equal bytes for equal data.",
)
@click.option(
    "--zarr-format",
    type=click.Choice(["2", "3"]),
    default="3",
    show_default=True,
    help="netCDF: Zarr format to write.",
)
@author_option
@sources_options
@json_option
def import_command(
    source: str,
    repository: str,
    path: str,
    message: str | None,
    branch: str,
    no_commit: bool,
    replace: bool,
    hash_name: str | None,
    chunks: dict[str, int] | None,
    codec: str,
    zarr_format: str,
    author: str,
    gateways: tuple[str, ...],
    node: str | None,
    as_json: bool,
) -> None:
    """Import a Zarr, a netCDF file or a CAR, and commit it.

    SOURCE is a Zarr of any format version, copied byte for byte: a folder, a .zip file, or a URL
    that fsspec understands. Or it is a local netCDF file, written as chunked Zarr. REPOSITORY is a
    folder, made if it is not there.

    Or it is a CAR as `export` writes it: a file, a URL of one, or - for the standard input. Every
    block is verified. A commit in it moves the branch forward; a root becomes a commit of the
    branch, which has to be empty or to show what the CAR was made upon.

    Or it is ipfs://CID of a directory of Zarr files that someone published: its metadata are read,
    its chunks are linked, and fetched when they are read.

    The branch shows all of an import or, if it fails or is interrupted, nothing. It can be run
    again: what is there already is not stored twice, and where nothing has changed there is no
    commit.
    """
    if is_car(source):
        if path or chunks is not None:
            raise click.UsageError(
                "--path and --chunks are not for a CAR; import it to a branch of its own, and put "
                "that at a path with attach"
            )
        import_from_car(
            source,
            repository,
            branch=branch,
            message=message,
            commit=not no_commit,
            replace=replace,
            hash_name=hash_name,
            author=author,
            as_json=as_json,
        )
        return
    opened = Repository.prepare(
        repository, hash=hash_name, author=author, gateways=gateways or None, node=node
    )
    if _is_published(source):
        if no_commit or chunks is not None:
            raise click.UsageError("what is linked is committed, with the chunks that it has")
        with counter("import") as told:
            linked = link_published(
                opened,
                source,
                branch=branch,
                path=path,
                replace=replace,
                message=message,
                progress=told,
            )
        _print_linked(opened, linked, branch, as_json)
        return
    with writing(opened, branch) as session, progress_bar(Path(source).name) as progress:
        report: ImportReport
        if _is_netcdf(source):
            from cas_zarr.netcdf import import_netcdf

            report = import_netcdf(
                source,
                session,
                path=path,
                chunks=chunks,
                codec=codec,
                zarr_format=int(zarr_format),
                replace=replace,
                progress=progress,
            )
        elif chunks is not None:
            raise click.UsageError("--chunks is for netCDF; a Zarr keeps the chunks that it has")
        else:
            report = import_zarr(source, session, path=path, replace=replace, progress=progress)
        root = session.flush()
        commit = None
        if not no_commit and root != committed_root(opened, branch):
            commit = session.commit(message or _message(report))
    made = None if commit is None else format_cid(commit)
    pairs = [
        ("imported", f"{count(report.keys, 'key')}, {size_text(report.size)}"),
        ("root", format_cid(root)),
    ]
    if made is not None:
        pairs.append(("commit", made))
    elif not no_commit:
        pairs.append(("commit", "none: the branch has this root already"))
    print_brought(report, pairs, as_json, root=format_cid(root), commit=made)


def print_brought(
    report: ImportReport | UnixfsReport | LinkReport,
    pairs: list[tuple[str, str]],
    as_json: bool,
    **more: object,
) -> None:
    """Print what was brought into a repository: in JSON with `more`, else as pairs."""
    if as_json:
        print_json(
            {
                "source": report.source,
                "path": report.path,
                "keys": report.keys,
                "bytes": report.size,
                **more,
            }
        )
    else:
        print_pairs(pairs)


def _message(report: ImportReport) -> str:
    name = Path(report.source).name or report.source
    return f"import {name} as {report.path}" if report.path else f"import {name}"


def _is_published(source: str) -> bool:
    """Tell whether a source is an address on IPFS, or of one at a gateway."""
    try:
        return "://" in source and parse_location(source).kind in ("ipfs", "ipns")
    except InvalidArgumentError:  # it may mean something to fsspec
        return source.lower().startswith(("ipfs://", "ipns://"))


def _is_netcdf(source: str) -> bool:
    """Tell by the name, or else by the first bytes."""
    if source.lower().endswith(_NETCDF_SUFFIXES):
        return True
    path = Path(source)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def _print_linked(opened: Repository, report: UnixfsReport, branch: str, as_json: bool) -> None:
    root = format_cid(opened.resolve(branch).root)
    pairs = [
        ("linked", f"{count(report.keys, 'key')}, {size_text(report.size)}"),
        ("fetched", count(report.fetched, "block")),
        ("root", root),
    ]
    counts = {"linked": report.linked, "fetched": report.fetched}
    print_brought(report, pairs, as_json, **counts, root=root)
