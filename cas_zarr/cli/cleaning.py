"""The commands that clean: `gc`, `expire`, `repack`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from cas_zarr.cid import format_cid
from cas_zarr.cli.options import (
    AGE,
    DURATION,
    SHARE,
    json_option,
    repository_argument,
    writable,
)
from cas_zarr.cli.output import (
    block_bar,
    count,
    print_json,
    print_pairs,
    printable,
    size_text,
)
from cas_zarr.cli.sections import command

if TYPE_CHECKING:
    from cas_zarr.repository.gc import GCReport

__all__ = ["expire_command", "gc_command", "repack_command"]

_SHOWN = 20


@command(
    "gc",
    "clean",
    "cas-zarr gc weather.cas --dry-run",
    "cas-zarr gc weather.cas",
    "cas-zarr gc weather.cas --grace 0               # when nobody writes",
    "cas-zarr gc weather.cas --grace 0 --log-age 0   # and no deleted branch is missed",
)
@repository_argument
@click.option(
    "--grace",
    type=DURATION,
    default="1d",
    show_default=True,
    help="How long what is condemned stays before it is deleted: 1d, 12h, or 0 for not at all.",
)
@click.option(
    "--log-age",
    type=DURATION,
    default="30d",
    show_default=True,
    help="How long the reflog keeps what branches and tags were moved away from; with 0 a deleted "
    "branch cannot be brought back.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option(
    "--max-unused",
    type=SHARE,
    default="5%",
    show_default=True,
    help="Share of all bytes that may stay unused inside packs that are used in part.",
)
@json_option
def gc_command(
    repository: str,
    grace: timedelta,
    log_age: timedelta,
    dry_run: bool,
    max_unused: float,
    as_json: bool,
) -> None:
    """Collect garbage: delete blocks that nothing leads to any more.

    Branches, tags, kept roots and the reflog (of the last 30 days) hold what they lead to. The rest
    is condemned by one run, and deleted by one that comes when the grace time is over. Readers and
    writers can go on meanwhile.
    """
    repo = writable(repository)
    with block_bar("gc") as progress:
        report = repo.gc(
            grace=grace, log_age=log_age, dry_run=dry_run, max_unused=max_unused, progress=progress
        )
    if as_json:
        print_json(_gc_json(report))
        return
    would = "would be " if dry_run else ""
    pairs = [
        ("in use", _blocks(report.live_blocks, report.live_size)),
        (f"{would}condemned", _blocks(report.condemned_blocks, report.condemned_size)),
        (f"{would}deleted", _blocks(report.deleted_blocks, report.deleted_size)),
    ]
    if report.freed:
        packs = [
            f"{count(number, 'pack')} {word}"
            for number, word in ((report.rewritten, "rewritten"), (report.removed, "removed"))
            if number
        ]
        pairs.append(("freed", ", ".join([size_text(report.freed), *packs])))
    pairs += [("damaged", name) for name in report.damaged]
    if report.missing:
        pairs.append(("not here", f"{count(report.missing, 'block')} that can be fetched"))
    print_pairs(pairs)
    if report.condemned_blocks and report.until is not None and not dry_run:
        click.echo(
            f"what is condemned is deleted by a gc after {report.until:%Y-%m-%dT%H:%M:%SZ}, or now "
            "by one with --grace 0 if nobody writes"
        )


def _blocks(number: int, size: int) -> str:
    return f"{count(number, 'block')}, {size_text(size)}"


def _gc_json(report: GCReport) -> dict[str, Any]:
    return {
        "dry_run": report.dry_run,
        "blocks": report.blocks,
        "bytes": report.size,
        "live_blocks": report.live_blocks,
        "live_bytes": report.live_size,
        "condemned_blocks": report.condemned_blocks,
        "condemned_bytes": report.condemned_size,
        "until": None if report.until is None else f"{report.until:%Y-%m-%dT%H:%M:%SZ}",
        "deleted_blocks": report.deleted_blocks,
        "deleted_bytes": report.deleted_size,
        "freed_bytes": report.freed,
        "packs_rewritten": report.rewritten,
        "packs_removed": report.removed,
        "damaged": list(report.damaged),
        "missing": report.missing,
    }


@command(
    "expire",
    "clean",
    "cas-zarr expire weather.cas --older-than 90d --dry-run",
    "cas-zarr expire weather.cas --keep 100",
)
@repository_argument
@click.option(
    "--older-than",
    type=AGE,
    metavar="AGE",
    help="Commits that are younger stay: 90d, or a day as 2026-01-31.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="The newest N commits of each branch stay.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@json_option
def expire_command(
    repository: str,
    older_than: datetime | timedelta | None,
    keep: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let old history go.

    The history is cut behind the commits that stay; these keep their CIDs and their data. What
    branches and tags lead to always stays. Nothing is deleted: `gc` does that. With both limits a
    commit stays for either reason.
    """
    if older_than is None and keep is None:
        raise click.UsageError("give --older-than or --keep: without a limit nothing expires")
    report = writable(repository).expire(older_than=older_than, keep=keep, dry_run=dry_run)
    if as_json:
        print_json(
            {
                "dry_run": report.dry_run,
                "expired": [format_cid(commit) for commit in report.expired],
                "kept": report.kept,
                "cut": [format_cid(commit) for commit in report.cut],
                "moves": report.moves,
            }
        )
        return
    if dry_run:
        for commit in report.expired[:_SHOWN]:
            click.echo(f"would go: {format_cid(commit)}")
        if len(report.expired) > _SHOWN:
            click.echo(f"and {len(report.expired) - _SHOWN:,} more; --json has all")
    word = "would be cut off" if dry_run else "cut off"
    pairs = [
        (word, count(len(report.expired), "commit")),
        ("kept", count(report.kept, "commit")),
        ("reflog", f"{count(report.moves, 'move')} {'would be ' if dry_run else ''}dropped"),
    ]
    print_pairs(pairs)
    if report.expired and not dry_run:
        click.echo("gc frees what they took, once the grace time is over")


@command(
    "repack",
    "clean",
    "cas-zarr repack weather.cas",
)
@repository_argument
@json_option
def repack_command(repository: str, as_json: bool) -> None:
    """Put all blocks into as few packs as is sensible, each block once.

    Flushes and `gc` merge packs as they go on, so this is for a repository that is to be copied
    or kept. Readers and writers can go on meanwhile.
    """
    report = writable(repository).repack()
    if as_json:
        print_json(
            {
                "packs_before": report.before,
                "packs_after": report.after,
                "freed_bytes": report.freed,
                "damaged": list(report.damaged),
            }
        )
    else:
        print_pairs(
            [
                ("packs", f"{report.before:,} -> {report.after:,}"),
                ("freed", size_text(report.freed)),
            ]
        )
        for text in report.damaged:
            click.echo(f"damaged: {printable(text)}")
    if report.damaged:
        click.get_current_context().exit(1)
