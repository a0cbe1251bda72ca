"""How results look: tables, JSON, sizes, times and progress bars.

Results go to the standard output, everything else to the standard error. Nothing is cut off where
the output is not a terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import isfinite
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from cas_zarr.cid import CidBytes, Link, format_cid
from cas_zarr.errors import MissingDependencyError
from cas_zarr.repository.commit import Commit

__all__ = [
    "block_bar",
    "box_text",
    "brief_text",
    "cid_text",
    "count",
    "counter",
    "print_json",
    "print_pairs",
    "print_table",
    "printable",
    "progress_bar",
    "shape_text",
    "signature_text",
    "size_text",
    "steps",
    "time_text",
]

_PLAIN_WIDTH = 10_000
_CID = re.compile(r"\bb[a-z2-7]{58,}\b")
_SHORT_CID = 16


def print_json(value: Any) -> None:
    """Print one JSON document; `value` is one of the IPLD data model."""
    plain = _jsonable(value)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a lone surrogate, or a terminal that knows less than Unicode
        text = json.dumps(plain, indent=2, allow_nan=False)
    click.echo(text)


def _jsonable(value: Any) -> Any:
    """Return JSON values: bytes as hexadecimal text, links as maps, nan and infinity as text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Link):
        return {"/": format_cid(value.cid)}
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value


def printable(text: str) -> str:
    """Return text with what could steer a terminal, or cannot be encoded, escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "", short: str = ""
) -> None:
    """Print rows under a heading.

    `right` names the columns that are aligned to the right. `short` names one whose CIDs are cut
    off, to what is still a version, where a terminal is too narrow.
    """
    texts = [[printable(cell) for cell in row] for row in rows]
    console = Console(file=sys.stdout, highlight=False)
    narrow = bool(short) and console.is_terminal and _width(columns, texts) > console.width
    if narrow:
        at = columns.index(short)
        texts = [
            [*row[:at], _CID.sub(lambda cid: cid[0][:_SHORT_CID], row[at]), *row[at + 1 :]]
            for row in texts
        ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Any = "right" if column in right.split() else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in texts:
        table.add_row(*map(Text, row))
    _print(table, wrap=not narrow)


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return how many characters wide a table is that is not wrapped."""
    return sum(max(map(cell_len, column)) + 2 for column in zip(columns, *rows, strict=True))


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(printable(name)), Text(printable(value)))
    _print(table, wrap=False)


def _print(table: Table, *, wrap: bool = True) -> None:
    console = Console(file=sys.stdout, highlight=False)
    if console.is_terminal and wrap:
        console.print(table)
        return
    # A line too long for a terminal is left to it: what is copied from there stays whole.
    colors: Any = "auto" if console.is_terminal else None
    console = Console(file=sys.stdout, highlight=False, width=_PLAIN_WIDTH, color_system=colors)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function to call with bytes done and bytes in all; None without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def block_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function to call with blocks done and blocks in all; None without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counter(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function to call with blocks and bytes that are done; None without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with console.status(what) as status:
        yield lambda blocks, size: status.update(
            f"{what}: {count(blocks, 'block')}, {size_text(size)}"
        )


@contextmanager
def steps(what: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """Give a function to call with a step, its blocks and bytes; None without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with console.status(what) as status:
        yield lambda step, blocks, size: status.update(
            f"{what}, {step}: {count(blocks, 'block')}, {size_text(size)}"
        )


def brief_text(cid: CidBytes) -> str:
    """Return the text of a commit's CID, on a terminal so much of it as still is a version."""
    text = format_cid(cid)
    return text[:_SHORT_CID] if sys.stdout.isatty() else text


def cid_text(cid: CidBytes | None) -> str | None:
    """Return the text of a CID, None for None."""
    return None if cid is None else format_cid(cid)


def count(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number and what it counts."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def size_text(size: int) -> str:
    """Return a number of bytes for people, in decimal units."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.5 or unit == "PB":
            break
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"


def shape_text(shape: Sequence[int] | None) -> str:
    """Return a shape as ``240 x 37 x 49``; ``scalar`` for none of them, "" where unknown."""
    if shape is None:
        return ""
    return " x ".join(map(str, shape)) or "scalar"


def box_text(box: Sequence[slice | tuple[int, int]]) -> str:
    """Return a box of an array's index as ``[0:10, 5:6]``; ``[...]`` of an array without any."""
    sides = [(one.start, one.stop) if isinstance(one, slice) else one for one in box]
    return f"[{', '.join(f'{start}:{stop}' for start, stop in sides) or '...'}]"


def time_text(microseconds: int) -> str:
    """Return a time, in microseconds since 1970, as ISO 8601 in UTC."""
    try:
        moment = datetime.fromtimestamp(microseconds / 1e6, UTC)
    except (OverflowError, ValueError, OSError):  # no calendar has it
        return f"{microseconds} microseconds since 1970-01-01"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def signature_text(commit: Commit) -> str | None:
    """Return who signed a commit and whether that holds; None where nobody did."""
    if commit.signature is None:
        return None
    from cas_zarr.repository.signing import check, signer_text

    try:
        state = check(commit)
    except MissingDependencyError as error:
        return f"not checked: {error}"
    if state.valid and state.signer is not None:
        return signer_text(state.signer)
    signer = "" if state.signer is None else f"{signer_text(state.signer)} "
    return f"{signer}NOT VALID: {state.reason}"
