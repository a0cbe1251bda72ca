"""The commands between repositories: `clone`, `remote`, `fetch`, `pull`, `push`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cas_zarr.cid import format_cid
from cas_zarr.cli.combining import Side, merge_json, print_merge
from cas_zarr.cli.conflicts import conflicts_told
from cas_zarr.cli.options import (
    author_option,
    json_option,
    repository_argument,
    resolve_options,
    sources_options,
    writable,
)
from cas_zarr.cli.output import (
    cid_text,
    count,
    counter,
    print_json,
    print_pairs,
    print_table,
    printable,
    size_text,
)
from cas_zarr.cli.sections import command
from cas_zarr.repository.repository import Repository

if TYPE_CHECKING:
    from cas_zarr.repository.sync import SyncReport

__all__ = ["clone_command", "fetch_command", "pull_command", "push_command", "remote_command"]

_depth_option = click.option(
    "--depth",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many commits of a branch to copy; what lies before is cut off.",
)
_branches_option = click.option(
    "--branch",
    "-b",
    "branches",
    multiple=True,
    metavar="NAME",
    help="Only this branch. Repeatable.",
)


@command(
    "clone",
    "share",
    "cas-zarr clone /data/weather.cas weather.cas",
    "cas-zarr clone /data/weather.cas small.cas --path era5/t2m --path 'era5/msl[0:10]' --depth 1",
)
@click.argument("source")
@click.argument("target")
@_branches_option
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    help="Copy only this group, array, or box of an array, as era5/t2m[0:10,:]. Repeatable. The "
    "rest is fetched from the source when it is read.",
)
@_depth_option
@author_option
@sources_options
@json_option
def clone_command(
    source: str,
    target: str,
    branches: tuple[str, ...],
    paths: tuple[str, ...],
    depth: int | None,
    author: str,
    gateways: tuple[str, ...],
    node: str | None,
    as_json: bool,
) -> None:
    """Copy a repository, or a part of it, with its history.

    Every block is verified as it arrives. A clone that was interrupted goes on where it stopped
    when it is run again. Uncommitted work is not copied. SOURCE is a path, ipfs://CID of a commit
    whose history was published, the address of a served repository, or a CAR.
    """
    with counter("clone") as progress:
        repo = Repository.clone(
            source,
            target,
            branches=branches or None,
            paths=paths or None,
            depth=depth,
            author=author,
            gateways=gateways or None,
            node=node,
            progress=progress,
        )
    found = {name: cid_text(record.commit) for name, record in repo.branches().items()}
    tags = {name: format_cid(commit) for name, commit in repo.tags().items()}
    if as_json:
        print_json({"repository": repo.location, "branches": found, "tags": tags})
        return
    pairs = [("repository", repo.location)]
    pairs += [(f"branch {name}", commit or "no commit") for name, commit in found.items()]
    print_pairs(pairs + [(f"tag {name}", commit) for name, commit in tags.items()])


@command(
    "remote",
    "share",
    "cas-zarr remote weather.cas",
    "cas-zarr remote weather.cas archive /data/archive.cas",
    "cas-zarr remote weather.cas archive --delete",
)
@repository_argument
@click.argument("name", required=False)
@click.argument("location", required=False)
@click.option("--delete", is_flag=True, help="Forget the remote, and where its branches were.")
@json_option
def remote_command(
    repository: str, name: str | None, location: str | None, delete: bool, as_json: bool
) -> None:
    """List the other repositories that have a name here, or name one, or forget one.

    A clone knows its source as origin. With NAME and LOCATION, a path or an address, the repository
    there gets that name, which fetch, pull and push take instead of the location.
    """
    if (name is None) != (location is None and not delete) or (delete and location is not None):
        raise click.UsageError("give a name and a path, or a name with --delete, or neither")
    if name is None:
        remotes = sorted(Repository.open(repository, read_only=True).remotes().items())
        if as_json:
            print_json([{"name": one, "location": place} for one, place in remotes])
        else:
            print_table(("NAME", "LOCATION"), remotes)
        return
    repo = writable(repository)
    if location is None:
        repo.remove_remote(name)
        did, said = {"deleted": name}, f"deleted remote {name}"
    else:
        repo.add_remote(name, location)
        place = repo.remotes()[name]
        did, said = {"name": name, "location": place}, f"remote {name} at {place}"
    if as_json:
        print_json(did)
    else:
        click.echo(printable(said))


@command(
    "fetch",
    "share",
    "cas-zarr fetch weather.cas",
    "cas-zarr log weather.cas origin/main",
    "cas-zarr fetch small.cas --path era5/msl",
)
@repository_argument
@click.argument("source", required=False)
@_branches_option
@_depth_option
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    help="Of a partial clone: copy this group, array or box of all versions, too. Repeatable.",
)
@click.option("--rest", is_flag=True, help="Of a partial clone: copy all that is not here yet.")
@sources_options
@json_option
def fetch_command(
    repository: str,
    source: str | None,
    branches: tuple[str, ...],
    depth: int | None,
    paths: tuple[str, ...],
    rest: bool,
    gateways: tuple[str, ...],
    node: str | None,
    as_json: bool,
) -> None:
    """Copy what another repository has and this one lacks; no branch here moves.

    SOURCE is a path or the name of a remote; by default it is origin, the repository that this one
    was cloned from. Its branches can be read afterwards as origin/main, and so on.
    """
    repo = writable(repository, gateways=gateways, node=node)
    if paths or rest:
        if (paths and rest) or source is not None or branches or depth is not None:
            raise click.UsageError("give --path or --rest alone: they are about origin's versions")
        with counter("fetch") as progress:
            copied = repo.fetch_paths(paths or None, progress=progress)
        if as_json:
            print_json({"blocks": copied.blocks, "bytes": copied.size})
        else:
            print_pairs([("fetched", f"{count(copied.blocks, 'block')}, {size_text(copied.size)}")])
        return
    with counter("fetch") as progress:
        report = repo.fetch(
            *_place(source), branches=branches or None, depth=depth, progress=progress
        )
    if as_json:
        print_json(_report_json(report))
    else:
        print_pairs(_report_pairs(report, "fetched"))


@command(
    "pull",
    "share",
    "cas-zarr pull weather.cas",
    "cas-zarr pull weather.cas ../other.cas --branch trial --theirs",
)
@repository_argument
@click.argument("source", required=False)
@click.option(
    "--branch",
    "-b",
    "branches",
    multiple=True,
    metavar="NAME",
    default=("main",),
    show_default=True,
    help="Branch to fetch and to merge into. Repeatable.",
)
@resolve_options
@author_option
@sources_options
@json_option
def pull_command(
    repository: str,
    source: str | None,
    branches: tuple[str, ...],
    resolve: Side | None,
    author: str,
    gateways: tuple[str, ...],
    node: str | None,
    as_json: bool,
) -> None:
    """Fetch branches, and merge each into the one of its name here.

    SOURCE is as for `fetch`. Conflicts are told as `merge` tells them; what was fetched stays.
    """
    repo = writable(repository, author=author, gateways=gateways, node=node)
    with conflicts_told(repo, branches[0], as_json), counter("pull") as progress:
        report = repo.pull(*_place(source), branches=branches, resolve=resolve, progress=progress)
    if as_json:
        merged = {name: merge_json(result) for name, result in report.merged.items()}
        print_json({"fetched": _report_json(report.fetched), "merged": merged})
        return
    print_pairs(_report_pairs(report.fetched, "fetched"))
    for result in report.merged.values():
        print_merge(result, as_json)


@command(
    "push",
    "share",
    "cas-zarr push weather.cas",
    "cas-zarr push weather.cas /data/weather.cas --branch main --tag v1.0",
)
@repository_argument
@click.argument("target", required=False)
@_branches_option
@click.option("--tag", "tags", multiple=True, metavar="NAME", help="This tag, too. Repeatable.")
@click.option("--force", is_flag=True, help="Move a branch there though that drops its commits.")
@json_option
def push_command(
    repository: str,
    target: str | None,
    branches: tuple[str, ...],
    tags: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Copy branches and tags to another repository, and move its branches.

    TARGET is a path or the name of a remote; by default it is origin. The branch is main, unless
    others are named. Only blocks that the target lacks are copied, and its branches move when all
    is there: an interrupted push has changed nothing, and the next one goes on. A branch that has
    other commits there is refused: pull first.
    """
    repo = writable(repository)
    with counter("push") as progress:
        report = repo.push(
            *_place(target),
            branches=branches or ("main",),
            tags=tags,
            force=force,
            progress=progress,
        )
    if as_json:
        print_json(_report_json(report))
    else:
        print_pairs(_report_pairs(report, "pushed"))


def _place(place: str | None) -> tuple[str, ...]:
    return () if place is None else (place,)


def _report_json(report: SyncReport) -> dict[str, Any]:
    return {
        "commits": report.commits,
        "blocks": report.blocks,
        "bytes": report.size,
        "branches": {name: format_cid(commit) for name, commit in report.branches.items()},
        "tags": {name: format_cid(commit) for name, commit in report.tags.items()},
        "refused": {name: format_cid(commit) for name, commit in report.refused.items()},
    }


def _report_pairs(report: SyncReport, word: str) -> list[tuple[str, str]]:
    copied = (count(report.commits, "commit"), count(report.blocks, "block"))
    pairs = [(word, f"{', '.join(copied)}, {size_text(report.size)}")]
    pairs += [(f"branch {name}", format_cid(commit)) for name, commit in report.branches.items()]
    pairs += [(f"tag {name}", format_cid(commit)) for name, commit in report.tags.items()]
    return pairs + [
        (f"tag {name}", f"not taken: it is another commit here than {format_cid(commit)}")
        for name, commit in report.refused.items()
    ]
