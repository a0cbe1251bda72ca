"""The commands of history: `commit`, `log`, `branch`, `tag`, `reset`, `reflog`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeAlias

import click

from cas_zarr.cid import CidBytes, as_cid_bytes, format_cid
from cas_zarr.cli.options import (
    FIRST_MOMENT,
    LAST_MOMENT,
    Slices,
    author_option,
    box_option,
    branch_option,
    chunk_box,
    committed_root,
    json_option,
    message_option,
    repository_argument,
    sign_option,
    signing_key,
    writable,
    writing,
)
from cas_zarr.cli.output import (
    brief_text,
    cid_text,
    print_json,
    print_pairs,
    print_table,
    printable,
    signature_text,
    time_text,
)
from cas_zarr.cli.sections import command
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.history import LogEntry, graph_lines
from cas_zarr.repository.refs import Branch, Tag
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import root_of

__all__ = [
    "branch_command",
    "commit_command",
    "log_command",
    "reflog_command",
    "reset_command",
    "tag_command",
]

Refs: TypeAlias = Mapping[CidBytes, Sequence[str]]
"""Names of branches and tags by the commits that they are at."""


@command(
    "commit",
    "history",
    "cas-zarr commit weather.cas -m 'correct day 3'",
    "cas-zarr commit weather.cas -m 'first release' --sign ~/.ssh/id_ed25519",
)
@repository_argument
@message_option("What changed, and why.", required=True)
@branch_option
@click.option("--allow-empty", is_flag=True, help="Commit though nothing has changed.")
@sign_option
@author_option
@json_option
def commit_command(
    repository: str,
    message: str,
    branch: str,
    allow_empty: bool,
    sign: str | None,
    author: str,
    as_json: bool,
) -> None:
    """Make what a branch shows a part of its history.

    It commits the branch's working root: what was written and flushed, by whom ever. Only the root
    and the commit are new; no chunk is read or written.
    """
    repo = writable(repository, author=author)
    root = root_of(repo.blocks, repo.record(branch))
    if not allow_empty and root == committed_root(repo, branch):
        why = "nothing was written" if root is None else "it shows what its newest commit has"
        raise InvalidArgumentError(
            f"there is nothing to commit on branch {branch!r}: {why}; --allow-empty commits it all "
            "the same"
        )
    key = signing_key(sign)
    with writing(repo, branch) as session:
        commit = session.commit(message, sign=key)
        root = session.root
    if as_json:
        print_json({"branch": branch, "commit": format_cid(commit), "root": cid_text(root)})
        return
    print_pairs([("commit", format_cid(commit)), ("root", cid_text(root) or "")])


# -- log ----------------------------------------------------------------------------------------


@command(
    "log",
    "history",
    "cas-zarr log weather.cas --graph",
    "cas-zarr log weather.cas --path era5/t2m --box 0:10,: --since 30d",
    "cas-zarr log weather.cas main@2026-01-31 -n 1",
)
@repository_argument
@click.argument("version", default="main")
@click.option("--graph", is_flag=True, help="Draw how the commits follow each other.")
@click.option("--oneline", is_flag=True, help="Print one line a commit.")
@click.option("--path", help="Only commits that changed this group or array.")
@box_option
@click.option(
    "--since", type=FIRST_MOMENT, help="Only commits from then on: 2026-01-31, or 30d ago."
)
@click.option("--until", type=LAST_MOMENT, help="Only commits until then, that day included.")
@click.option("--first-parent", is_flag=True, help="Of merges follow only the branch merged into.")
@click.option("--limit", "-n", type=click.IntRange(min=1), help="Show no more commits than this.")
@json_option
def log_command(
    repository: str,
    version: str,
    graph: bool,
    oneline: bool,
    path: str | None,
    box: Slices | None,
    since: datetime | None,
    until: datetime | None,
    first_parent: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show the commits of a version, newest first.

    With --path only those are shown that changed the group or array, and with --box only those
    that changed a chunk which holds that box of its index. No chunk is read for it: commits are
    compared by CIDs. Times are UTC. On a terminal the branches and tags at a commit stand behind
    it, and --oneline shows the first characters of CIDs, which are versions, too.
    """
    repo = Repository.open(repository, read_only=True)
    chunks = None
    if box is not None:
        if path is None:
            raise click.UsageError("--box is of an array; name it with --path")
        chunks = chunk_box(repo, repo.resolve(version).root, path, box)
    found = repo.log(
        version,
        since=since,
        until=until,
        path=path,
        box=chunks,
        first_parent=first_parent,
        topological=graph,
    )
    entries = list(islice(found, limit))
    refs = _refs_of(repo) if as_json or sys.stdout.isatty() else {}
    if as_json:
        print_json([_entry_json(entry, refs) for entry in entries])
        return
    if not entries and path is not None:
        click.echo(f"no commit changed {printable(path)!r}", err=True)
    if graph:
        for row in _drawn(entries, refs, oneline=oneline):
            click.echo(row)
        return
    for number, entry in enumerate(entries):
        if number and not oneline:
            click.echo()
        for row in [_line_of(entry, refs)] if oneline else _lines_of(entry, refs):
            click.echo(row)


def _refs_of(repo: Repository) -> dict[CidBytes, list[str]]:
    """Return the branches and tags that are at each commit."""
    found: dict[CidBytes, list[str]] = {}
    for name, record in repo.branches().items():
        if record.commit is not None:
            found.setdefault(record.commit, []).append(name)
    for name, commit in sorted(repo.tags().items()):
        found.setdefault(as_cid_bytes(commit), []).append(f"tag {name}")
    return found


def _entry_json(entry: LogEntry, refs: Refs) -> dict[str, Any]:
    commit = entry.commit
    return {
        "commit": format_cid(entry.cid),
        "refs": refs.get(entry.cid, []),
        "root": format_cid(commit.root),
        "parents": [format_cid(parent) for parent in commit.parents],
        "author": commit.author,
        "time": time_text(commit.time),
        "message": commit.message,
        "metadata": commit.metadata,
        "signature": signature_text(commit),
        "cut": entry.cut,
    }


def _line_of(entry: LogEntry, refs: Refs) -> str:
    cid = click.style(brief_text(entry.cid), fg="yellow")
    return f"{cid} {time_text(entry.commit.time)}{_shown(entry, refs)} {_subject(entry.commit)}"


def _shown(entry: LogEntry, refs: Refs) -> str:
    names = ", ".join(refs.get(entry.cid, ()))
    return click.style(f" ({printable(names)})", fg="cyan") if names else ""


def _lines_of(entry: LogEntry, refs: Refs) -> list[str]:
    commit = entry.commit
    lines = [
        click.style(f"commit {format_cid(entry.cid)}", fg="yellow") + _shown(entry, refs),
        f"root   {format_cid(commit.root)}",
    ]
    if len(commit.parents) > 1:
        lines.append("merge  " + " ".join(format_cid(parent) for parent in commit.parents))
    if commit.author:
        lines.append(f"author {printable(commit.author)}")
    if commit.signature is not None:
        lines.append(f"signed {printable(signature_text(commit) or '')}")
    lines.append(f"date   {time_text(commit.time)}")
    if entry.cut:
        lines.append("cut    the history goes on elsewhere: it was expired or not cloned")
    lines.append("")
    return lines + [f"    {printable(line)}" for line in commit.message.splitlines()]


def _subject(commit: Commit) -> str:
    return printable((commit.message.splitlines() or [""])[0])


def _drawn(entries: list[LogEntry], refs: Refs, *, oneline: bool) -> Iterator[str]:
    """Yield the lines of commits behind the drawing of their history."""
    for line in graph_lines(entries):
        if line.entry is None:
            yield line.text
            continue
        entry = line.entry
        first, *rest = [_line_of(entry, refs)] if oneline else _lines_of(entry, refs)
        yield f"{line.text} {first}"
        for text in rest if oneline else [*rest, ""]:
            yield f"{line.below:<{len(line.text)}} {text}".rstrip()


# -- branches and tags --------------------------------------------------------------------------


@command(
    "branch",
    "history",
    "cas-zarr branch weather.cas",
    "cas-zarr branch weather.cas experiment main~2",
    "cas-zarr branch weather.cas experiment --rename trial",
    "cas-zarr branch weather.cas trial --delete",
)
@repository_argument
@click.argument("name", required=False)
@click.argument("version", required=False)
@click.option("--delete", is_flag=True, help="Take the branch away; the reflog can bring it back.")
@click.option("--rename", metavar="NEW", help="Give the branch another name.")
@click.option("--force", is_flag=True, help="With --delete: let work go that was not committed.")
@click.option("--all", "-a", "show_all", is_flag=True, help="List what was fetched and kept, too.")
@json_option
def branch_command(
    repository: str,
    name: str | None,
    version: str | None,
    delete: bool,
    rename: str | None,
    force: bool,
    show_all: bool,
    as_json: bool,
) -> None:
    """List branches, or make, rename or delete one.

    Without NAME it lists them with their newest commits; a star says that a branch shows work
    that no commit has. With NAME it makes a branch at VERSION, which is main if it is left out.
    """
    changing = delete or rename is not None
    if (changing and (name is None or version is not None)) or (delete and rename is not None):
        raise click.UsageError("give one branch with --delete or with --rename NEW")
    if name is None:
        _list_branches(Repository.open(repository, read_only=True), show_all, as_json)
        return
    repo = writable(repository)
    if delete:
        repo.delete_branch(name, force=force)
        _done(as_json, f"deleted branch {name}; {name}@{{1}} is what it was", {"deleted": name})
    elif rename is not None:
        repo.rename_branch(name, rename)
        _done(as_json, f"branch {name} is {rename} now", {"old": name, "new": rename})
    else:
        record = repo.create_branch(name, "main" if version is None else version)
        at = cid_text(record.commit) or cid_text(record.work)
        _done(
            as_json,
            f"branch {name} at {at}",
            {"branch": name, "commit": cid_text(record.commit), "work": cid_text(record.work)},
        )


def _list_branches(repo: Repository, show_all: bool, as_json: bool) -> None:
    rows = [(name, record, "branch") for name, record in repo.branches().items()]
    if show_all:
        for name in repo.refs.all_tracked():
            tag = repo.refs.tracked(name)
            rows.append((name, Branch(None if tag is None else tag.commit), "fetched"))
        for name in repo.refs.all_kept():
            rows.append((name, repo.refs.kept(name) or Branch(), "kept"))
    found = []
    for name, record, kind in rows:
        commit = None if record.commit is None else repo.resolve(record.commit)
        root = None if commit is None else commit.root
        uncommitted = record.work is not None and record.work != root
        found.append((name, kind, record, uncommitted))
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "kind": kind,
                    "commit": cid_text(record.commit),
                    "work": cid_text(record.work),
                    "uncommitted": uncommitted,
                }
                for name, kind, record, uncommitted in found
            ]
        )
        return
    print_table(
        ("", "NAME", "COMMIT", "DATE", "MESSAGE"),
        [
            ("*" if uncommitted else "", name, *_tip(repo, record.commit))
            for name, _, record, uncommitted in found
        ],
        short="COMMIT",
    )


def _tip(repo: Repository, commit: CidBytes | None) -> tuple[str, str, str]:
    """Return CID, date and first line of a commit."""
    if commit is None:
        return "none yet", "", ""
    entry = next(iter(repo.log(commit)))
    return format_cid(commit), time_text(entry.commit.time), _subject(entry.commit)


@command(
    "tag",
    "history",
    "cas-zarr tag weather.cas",
    "cas-zarr tag weather.cas v1.0",
    "cas-zarr tag weather.cas v1.0 main~1 --move",
)
@repository_argument
@click.argument("name", required=False)
@click.argument("version", required=False)
@click.option("--delete", is_flag=True, help="Take the tag away; the reflog can bring it back.")
@click.option("--move", is_flag=True, help="Give the name of a tag to another commit.")
@json_option
def tag_command(
    repository: str,
    name: str | None,
    version: str | None,
    delete: bool,
    move: bool,
    as_json: bool,
) -> None:
    """List tags, or make, move or delete one.

    A tag is a fixed name of a commit. With NAME it is made at VERSION, which is main if it is left
    out.
    """
    if (delete and (name is None or version is not None or move)) or (move and name is None):
        raise click.UsageError("give one tag with --delete, or a tag and a version with --move")
    if name is None:
        repo = Repository.open(repository, read_only=True)
        tags = sorted(repo.tags().items())
        if as_json:
            print_json([{"name": tag, "commit": format_cid(commit)} for tag, commit in tags])
        else:
            rows = [(tag, *_tip(repo, commit)) for tag, commit in tags]
            print_table(("NAME", "COMMIT", "DATE", "MESSAGE"), rows, short="COMMIT")
        return
    repo = writable(repository)
    if delete:
        repo.delete_tag(name)
        _done(as_json, f"deleted tag {name}; {name}@{{1}} is what it was", {"deleted": name})
        return
    make = repo.move_tag if move else repo.create_tag
    commit = make(name, "main" if version is None else version)
    _done(as_json, f"tag {name} at {format_cid(commit)}", {"tag": name, "commit": cid_text(commit)})


@command(
    "reset",
    "history",
    "cas-zarr reset weather.cas main main~1",
    "cas-zarr reset weather.cas main 'main@{1}'      # undo that",
)
@repository_argument
@click.argument("branch")
@click.argument("version")
@click.option("--force", is_flag=True, help="Let work go that was not committed.")
@json_option
def reset_command(repository: str, branch: str, version: str, force: bool, as_json: bool) -> None:
    """Move a branch to another version.

    Commits that no ref leads to any more stay until `gc` takes them, and `reflog` names them.
    """
    repo = writable(repository)
    repo.reset(branch, version, force=force)
    now = repo.record(branch) or Branch()
    _done(
        as_json,
        f"branch {branch} at {cid_text(now.commit) or cid_text(now.work)}",
        {"branch": branch, "commit": cid_text(now.commit), "work": cid_text(now.work)},
    )


# -- the log of refs ----------------------------------------------------------------------------


@command(
    "reflog",
    "history",
    "cas-zarr reflog weather.cas main",
    "cas-zarr reset weather.cas main 'main@{2}'",
    "cas-zarr branch weather.cas lost 'lost@{1}'",
)
@repository_argument
@click.argument("ref", required=False)
@json_option
def reflog_command(repository: str, ref: str | None, as_json: bool) -> None:
    """Show how branches and tags moved, newest first.

    The text in the first column is a version: what the ref was before and after its moves, also
    where it is gone by now.
    """
    moves = Repository.open(repository, read_only=True).reflog(ref)
    counts: dict[str, int] = {}
    rows = []
    for move in reversed(moves):
        number = counts.get(move.ref, 0)
        counts[move.ref] = number + 1
        rows.append((move.name if move.kind == "kept root" else f"{move.name}@{{{number}}}", move))
    if as_json:
        print_json(
            [
                {
                    "version": version,
                    "ref": move.name,
                    "kind": move.kind,
                    "old": _record_json(move.old),
                    "new": _record_json(move.new),
                    "time": time_text(move.time),
                    "why": move.why,
                }
                for version, move in rows
            ]
        )
        return
    print_table(
        ("VERSION", "KIND", "TIME", "COMMIT", "WHY"),
        [
            (version, move.kind, time_text(move.time), _record_text(move.new), move.why)
            for version, move in rows
        ],
        short="COMMIT",
    )


def _record_json(record: Branch | Tag | None) -> Any:
    if record is None:
        return None
    if isinstance(record, Tag):
        return {"commit": format_cid(record.commit)}
    return {"commit": cid_text(record.commit), "work": cid_text(record.work)}


def _record_text(record: Branch | Tag | None) -> str:
    if record is None:
        return "deleted"
    if isinstance(record, Branch) and record.commit is None:
        return "no commit" if record.work is None else f"root {format_cid(record.work)}"
    return cid_text(record.commit) or ""


def _done(as_json: bool, text: str, value: dict[str, Any]) -> None:
    if as_json:
        print_json(value)
    else:
        click.echo(printable(text))
