"""The commands that combine versions and subtrees.

`merge`, `cherry-pick`, `revert`, `rebase`; `cp`, `mv`, `rm`, `attach`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from cas_zarr.cid import format_cid
from cas_zarr.cli.conflicts import conflict_json, conflict_line, conflicts_told
from cas_zarr.cli.options import (
    author_option,
    branch_option,
    into_option,
    json_option,
    message_option,
    repository_argument,
    resolve_options,
    sign_option,
    signing_key,
    writable,
    writing,
)
from cas_zarr.cli.output import cid_text, count, print_json, print_pairs, printable
from cas_zarr.cli.sections import command
from cas_zarr.repository.describe import describe
from cas_zarr.repository.imports import write_parents
from cas_zarr.repository.session import Session

if TYPE_CHECKING:
    from cas_zarr.repository.merging import MergeResult

__all__ = [
    "Side",
    "attach_command",
    "cherry_pick_command",
    "cp_command",
    "merge_command",
    "merge_json",
    "mv_command",
    "print_merge",
    "rebase_command",
    "revert_command",
    "rm_command",
]

Side = Literal["ours", "theirs"]

_WORDS = {
    "already": "already there: nothing to do",
    "fast-forward": "fast-forward",
}


@command(
    "merge",
    "combine",
    "cas-zarr merge weather.cas scenario-b -m 'take scenario B'",
    "cas-zarr merge weather.cas scenario-b --into trial --theirs",
)
@repository_argument
@click.argument("version")
@into_option
@message_option("Message of the merge commit; by default it names both.")
@resolve_options
@click.option("--no-ff", is_flag=True, help="Make a merge commit where moving would be enough.")
@sign_option
@author_option
@json_option
def merge_command(
    repository: str,
    version: str,
    into: str,
    message: str | None,
    resolve: Side | None,
    no_ff: bool,
    sign: str | None,
    author: str,
    as_json: bool,
) -> None:
    """Bring what another version has into a branch.

    Nodes, fields of metadata and chunks that only one of both changed are united, and no chunk is
    read. What both changed is a conflict: each is printed with the array, the chunk, the box of
    the array's index that it holds, and the CIDs of the common version (base), of the branch
    (ours) and of the other one (theirs); the exit code is 1 and nothing has moved.
    """
    repo = writable(repository, author=author)
    key = signing_key(sign)
    with conflicts_told(repo, into, as_json):
        result = repo.merge(
            version, into=into, message=message, resolve=resolve, fast_forward=not no_ff, sign=key
        )
    print_merge(result, as_json)


_parent_option = click.option(
    "--parent",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a merge commit: the parent, from 1, against which its changes are taken.",
)


@command(
    "cherry-pick",
    "combine",
    "cas-zarr cherry-pick weather.cas trial~1",
)
@repository_argument
@click.argument("version")
@into_option
@_parent_option
@resolve_options
@sign_option
@json_option
def cherry_pick_command(
    repository: str,
    version: str,
    into: str,
    parent: int | None,
    resolve: Side | None,
    sign: str | None,
    as_json: bool,
) -> None:
    """Do on a branch what one commit did to its parent.

    Author, time and message are those of the commit.
    """
    repo = writable(repository)
    key = signing_key(sign)
    with conflicts_told(repo, into, as_json):
        result = repo.cherry_pick(version, into=into, parent=parent, resolve=resolve, sign=key)
    print_merge(result, as_json)


@command(
    "revert",
    "combine",
    "cas-zarr revert weather.cas main~3",
)
@repository_argument
@click.argument("version")
@into_option
@message_option("Message of the commit; by default it names the one that is undone.")
@_parent_option
@resolve_options
@sign_option
@author_option
@json_option
def revert_command(
    repository: str,
    version: str,
    into: str,
    message: str | None,
    parent: int | None,
    resolve: Side | None,
    sign: str | None,
    author: str,
    as_json: bool,
) -> None:
    """Undo on a branch what one commit did, by a new commit.

    What came later stays.
    """
    repo = writable(repository, author=author)
    key = signing_key(sign)
    with conflicts_told(repo, into, as_json):
        result = repo.revert(
            version, into=into, message=message, parent=parent, resolve=resolve, sign=key
        )
    print_merge(result, as_json)


@command(
    "rebase",
    "combine",
    "cas-zarr rebase weather.cas trial --onto main",
)
@repository_argument
@click.argument("branch")
@click.option("--onto", metavar="VERSION", required=True, help="What the commits shall follow.")
@resolve_options
@sign_option
@json_option
def rebase_command(
    repository: str,
    branch: str,
    onto: str,
    resolve: Side | None,
    sign: str | None,
    as_json: bool,
) -> None:
    """Make the commits that only a branch has anew, on top of another version.

    Commits that have nothing left to do are dropped. The branch moves once, at the end.
    """
    repo = writable(repository)
    key = signing_key(sign)
    with conflicts_told(repo, branch, as_json):
        result = repo.rebase(branch, onto=onto, resolve=resolve, sign=key)
    print_merge(result, as_json)


def merge_json(result: MergeResult) -> dict[str, Any]:
    """Return where a branch stands now as JSON values."""
    return {
        "kind": result.kind,
        "commit": cid_text(result.commit),
        "root": cid_text(result.root),
        "commits": [format_cid(commit) for commit in result.commits],
        "notes": list(result.notes),
        "resolved": [conflict_json(one, None) for one in result.resolved],
    }


def print_merge(result: MergeResult, as_json: bool) -> None:
    """Print where a branch stands now, and what was united or resolved on the way."""
    if as_json:
        print_json(merge_json(result))
        return
    for note in result.notes:
        click.echo(f"note: {printable(note)}")
    for one in result.resolved:
        click.echo(f"resolved: {conflict_line(one, None)}")
    text = _WORDS.get(result.kind) or f"{result.kind}: {count(len(result.commits), 'new commit')}"
    print_pairs(
        [
            ("result", text),
            ("commit", cid_text(result.commit) or "none"),
            ("root", cid_text(result.root) or "none"),
        ]
    )


# -- subtrees -----------------------------------------------------------------------------------

_overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")


@command(
    "cp",
    "combine",
    "cas-zarr cp weather.cas era5/t2m backup/t2m",
)
@repository_argument
@click.argument("source")
@click.argument("target")
@branch_option
@_overwrite_option
@json_option
def cp_command(
    repository: str, source: str, target: str, branch: str, overwrite: bool, as_json: bool
) -> None:
    """Put a group or an array at another path, too.

    Both share every block. Groups above the path are made where there are none. Like what `mv`,
    `rm` and `attach` do, it shows in the branch, and `commit` makes it history.
    """
    with writing(writable(repository), branch) as session:
        session.copy(source.strip("/"), target.strip("/"), overwrite=overwrite)
        _finish(session, target, as_json)


@command(
    "mv",
    "combine",
    "cas-zarr mv weather.cas era5/t2m era5/air_temperature",
)
@repository_argument
@click.argument("source")
@click.argument("target")
@branch_option
@_overwrite_option
@json_option
def mv_command(
    repository: str, source: str, target: str, branch: str, overwrite: bool, as_json: bool
) -> None:
    """Move or rename a group or an array, whatever its size."""
    with writing(writable(repository), branch) as session:
        session.move(source.strip("/"), target.strip("/"), overwrite=overwrite)
        _finish(session, target, as_json)


@command(
    "rm",
    "combine",
    "cas-zarr rm weather.cas era5/t2m",
)
@repository_argument
@click.argument("path")
@branch_option
@json_option
def rm_command(repository: str, path: str, branch: str, as_json: bool) -> None:
    """Take a group or an array away, with all below it.

    It shows in the branch, and `commit` makes it history. Older commits have the data still.
    """
    path = path.strip("/")
    if not path:
        raise click.UsageError("give the path of a group or an array, not the root")
    with writing(writable(repository), branch) as session:
        describe(session.repository.blocks, session.root, path)  # tells what there is if not that
        session.prepare().discard_prefix(path + "/")
        root = format_cid(session.flush())
    if as_json:
        print_json({"path": path, "root": root})
    else:
        print_pairs([("removed", path), ("root", root)])


@command(
    "attach",
    "combine",
    "cas-zarr attach weather.cas old/t2m v1.0:era5/t2m",
    "cas-zarr attach weather.cas ocean main:sst --from ../ocean.cas",
)
@repository_argument
@click.argument("path")
@click.argument("version")
@click.option("--from", "source", metavar="OTHER", help="Repository that has it; this by default.")
@branch_option
@_overwrite_option
@json_option
def attach_command(
    repository: str,
    path: str,
    version: str,
    source: str | None,
    branch: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Put a dataset, or a part of any version, at a path.

    VERSION is the CID of a root or of a subtree, or a version with a path behind a colon. From
    another repository the blocks that this one lacks are copied.
    """
    with writing(writable(repository), branch) as session:
        session.attach(path.strip("/"), version, source=source, overwrite=overwrite)
        _finish(session, path, as_json)


def _finish(session: Session, path: str, as_json: bool) -> None:
    """Make the groups above the path, flush, and print what is there now."""
    path = path.strip("/")
    mapping = session.prepare()
    write_parents(mapping, path, ["zarr.json"] if mapping.exists(f"{path}/zarr.json") else [])
    found: dict[str, Any] = {"path": path, "cid": mapping.cid(path)}
    found["root"] = session.flush()
    texts = {name: value if name == "path" else format_cid(value) for name, value in found.items()}
    if as_json:
        print_json(texts)
        return
    print_pairs([(name, value or "/") for name, value in texts.items()])
