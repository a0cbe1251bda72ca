"""The commands that compare: `diff` and `same`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from cas_zarr.cli.options import branch_option, json_option, repository_argument
from cas_zarr.cli.output import box_text, count, print_json, printable, size_text
from cas_zarr.cli.sections import command
from cas_zarr.repository.describe import describe_node
from cas_zarr.repository.diffing import Change
from cas_zarr.repository.repository import Repository
from cas_zarr.tree.fields import MISSING
from cas_zarr.tree.node import EMPTY

if TYPE_CHECKING:
    from cas_zarr.cli.plotting import ChunkMap

__all__ = ["diff_command", "map_of", "same_command"]

_BAR = 30
_NAME = 60
_BOXES = 50
_VALUE = 200
_COLOURS = {"~": "yellow", "+": "green", "-": "red"}


@command(
    "diff",
    "compare",
    "cas-zarr diff weather.cas                       # work that was not committed",
    "cas-zarr diff weather.cas main~1 main --chunks",
    "cas-zarr diff weather.cas v1.0 main --path era5 --fields",
    "cas-zarr diff weather.cas main:a1b/t2m main:e1/t2m --plot maps.png",
    "cas-zarr diff weather.cas main main --other ../copy.cas",
)
@repository_argument
@click.argument("before", required=False)
@click.argument("after", required=False)
@click.option("--path", default="", help="Compare only this group or array.")
@click.option("--other", metavar="OTHER", help="Repository that has AFTER, if not this one.")
@branch_option
@click.option("--chunks", is_flag=True, help="List what differs as boxes of the array's index.")
@click.option("--fields", is_flag=True, help="Show metadata before and after, field by field.")
@click.option("--no-moves", is_flag=True, help="Show a moved node as removed and added.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw maps of the chunks that differ into this PNG.",
)
@json_option
def diff_command(
    repository: str,
    before: str | None,
    after: str | None,
    path: str,
    other: str | None,
    branch: str,
    chunks: bool,
    fields: bool,
    no_moves: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show what differs between two versions, by comparing CIDs.

    BEFORE and AFTER are versions, or places in them, as main:group/array: so two arrays of one
    dataset can be compared, too. Without AFTER it is what the branch shows now, and without BEFORE
    its newest commit. What is equal is never opened, and no chunk is read.

    A bar has ~ for changed, + for added and - for removed chunks.
    """
    repo = Repository.open(repository, read_only=True)
    there = None if other is None else Repository.open(other, read_only=True)
    found = repo.diff(before, after, path, other=there, branch=branch, moves=not no_moves)
    changes = list(found)
    if plot is not None:
        title = f"{_short(before or f'commit of {branch}')} → {_short(after or f'{branch} now')}"
        _plot(changes, plot, f"{Path(repo.location).name}: {title}")
    if as_json:
        print_json([change.as_json() for change in changes])
        return
    for line in _stat(changes, chunks=chunks, fields=fields):
        click.echo(line)
    if plot is not None:
        click.echo(f"drawn into {plot}", err=True)


def _stat(changes: Sequence[Change], *, chunks: bool, fields: bool) -> Iterator[str]:
    """Yield a line a node, what was asked for below it, and a line that sums up."""
    names = [_name(change) for change in changes]
    width = min(max(map(len, names), default=0), _NAME)
    most = max((_touched(change) for change in changes), default=0)
    for name, change in zip(names, changes, strict=True):
        yield f" {name:<{width}} | {_what(change, most)}"
        if fields:
            for field in change.fields:
                where = printable(" ".join([field.document, ".".join(field.path)]).rstrip())
                yield f"   {where}: {_value(field.before)} -> {_value(field.after)}"
        if chunks:
            boxes = change.boxes
            for box in boxes[:_BOXES]:
                yield f"   {box_text(box)}"
            if len(boxes) > _BOXES:
                yield f"   and {len(boxes) - _BOXES:,} more boxes; --json has all"
    yield _sum(changes)


def _name(change: Change) -> str:
    path = printable(change.path or "/")
    if change.source is not None:
        return f"{printable(change.source or '/')} => {path}"
    return path if change.other == change.path else f"{path} vs {printable(change.other or '/')}"


def _touched(change: Change) -> int:
    return change.added + change.removed + change.modified


def _what(change: Change, most: int) -> str:
    """Return what became of a node: counts, a bar, sizes."""
    parts = []
    if change.status != "changed":
        parts.append(f"{change.status} {change.kind}")
    if change.status == "moved":
        if chunks := change.node.after.chunks:
            parts += [count(chunks, "chunk"), size_text(change.node.after.size)]
        return ", ".join(parts)
    if touched := _touched(change):
        parts.append(f"{count(touched, 'chunk')} {_bar(change, most)}")
    if change.status == "changed" and change.fields:
        parts.append(count(len(change.fields), "field"))
    if change.keys:
        parts.append(count(len(change.keys), "key"))
    if change.bytes_before != change.bytes_after:
        parts.append(f"{size_text(change.bytes_before)} -> {size_text(change.bytes_after)}")
    elif change.bytes_after:
        parts.append(size_text(change.bytes_after))
    return ", ".join(parts) or "metadata"


def _bar(change: Change, most: int) -> str:
    """Return a bar whose length is the share of the longest; what there is has a sign at least."""
    signs = ""
    for sign, number in (("~", change.modified), ("+", change.added), ("-", change.removed)):
        length = number if most <= _BAR else -(-number * _BAR // most)
        if length:
            signs += click.style(sign * length, fg=_COLOURS[sign])
    return signs


def _value(value: Any) -> str:
    if value is MISSING:
        return "none"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= _VALUE else f"{text[:_VALUE]}...")


def _sum(changes: Sequence[Change]) -> str:
    if not changes:
        return "no difference"
    kinds = [
        f"{number:,} {status}"
        for status in ("changed", "added", "removed", "moved")
        if (number := sum(change.status == status for change in changes))
    ]
    chunks = [
        f"{number:,} {name}"
        for name, number in (
            ("changed", sum(change.modified for change in changes)),
            ("added", sum(change.added for change in changes)),
            ("removed", sum(change.removed for change in changes)),
        )
        if number
    ]
    text = f" {count(len(changes), 'node')} differ{'s' if len(changes) == 1 else ''}"
    text += f": {', '.join(kinds)}"
    return f"{text}; chunks: {', '.join(chunks)}" if chunks else text


# -- a picture ----------------------------------------------------------------------------------


def _plot(changes: Sequence[Change], file: Path, title: str) -> None:
    from cas_zarr.cli.plotting import draw

    draw([found for change in changes if (found := map_of(change)) is not None], file, title=title)


def _short(version: str) -> str:
    """Return a version with room for it in a title: of a CID its end."""
    return version if len(version) <= 40 else f"…{version[-16:]}"


def map_of(change: Change) -> ChunkMap | None:
    """Return the chunks of an array that differ, as they are drawn; None where there are none."""
    from cas_zarr.cli.plotting import ADDED, CHANGED, REMOVED, ChunkMap

    if change.status == "moved" or not change.chunks:
        return None
    chunks = max(change.chunks, key=len)  # trees of two forms beside each other are rare
    ndim = chunks.coordinates.shape[1]
    grid = [0] * ndim
    if change.shape is not None and change.chunk_shape is not None and len(change.shape) == ndim:
        grid = [
            -(-length // chunk) if chunk else 0
            for length, chunk in zip(change.shape, change.chunk_shape, strict=True)
        ]
    ends = (chunks.coordinates.max(axis=0, initial=-1) + 1).tolist()
    states = np.where(chunks.added, ADDED, np.where(chunks.removed, REMOVED, CHANGED))
    return ChunkMap(
        _name(change),
        tuple(max(pair) for pair in zip(grid, ends, strict=True)),
        _dimension_names(change),
        chunks.coordinates,
        states.astype(np.uint8),
    )


def _dimension_names(change: Change) -> tuple[str, ...]:
    gone = change.status == "removed"
    view, path = (change.before, change.path) if gone else (change.after, change.other)
    return describe_node(view.reader, view.node(path) or EMPTY, path).dimension_names


# -- same ---------------------------------------------------------------------------------------


@command(
    "same",
    "compare",
    "cas-zarr same weather.cas v1.0 main",
    "cas-zarr same weather.cas main:a1b/t2m main:e1/t2m && echo equal",
)
@repository_argument
@click.argument("first")
@click.argument("second")
@click.option("--other", metavar="OTHER", help="Repository that has SECOND, if not this one.")
@json_option
def same_command(
    repository: str, first: str, second: str, other: str | None, as_json: bool
) -> None:
    """Tell whether two versions, or places in them, are the same down to the bit.

    The exit code is 0 if they are and 1 if not. It takes two CIDs to know.
    """
    there = None if other is None else Repository.open(other, read_only=True)
    same = Repository.open(repository, read_only=True).same(first, second, other=there)
    if as_json:
        print_json({"same": same})
    else:
        click.echo("the same" if same else "not the same")
    if not same:
        click.get_current_context().exit(1)
