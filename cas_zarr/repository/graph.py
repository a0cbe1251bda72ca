"""The drawing of a history beside its listing, as `git log --graph` has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cas_zarr.cid import CidBytes

if TYPE_CHECKING:
    from cas_zarr.repository.history import LogEntry

__all__ = ["GraphLine", "graph_lines"]


class GraphLine(NamedTuple):
    """One line of a drawing.

    Attributes
    ----------
    text : str
        The drawing; a line of it has columns of two characters.
    entry : LogEntry or None
        The commit that the star stands for; None in a line that only joins others.
    below : str
        What stands in the column of the drawing where more lines are said of the commit.
    """

    text: str
    entry: LogEntry | None
    below: str


def graph_lines(entries: Iterable[LogEntry]) -> Iterator[GraphLine]:
    r"""Draw a history: ``*`` is a commit, and lines lead down to its parents.

    ::

        *    merge
        |\
        | *  on the other branch
        * |  on this one
        |/
        *    where they went apart

    Parameters
    ----------
    entries : iterable of LogEntry
        As `log` yields them. Commits that come before one that follows them, as wrong clocks can
        have it, are drawn behind it.
    """
    listed = _sorted(list(entries))
    drawn: set[CidBytes] = set()
    lanes: list[CidBytes] = []  # what each column leads to
    for entry in listed:
        if entry.cid not in lanes:
            lanes.append(entry.cid)
        at = lanes.index(entry.cid)
        text = "".join("* " if column == at else "| " for column in range(len(lanes)))
        drawn.add(entry.cid)
        parents = [one for one in dict.fromkeys(entry.parents) if one not in drawn]
        below = [not parents and column == at for column in range(len(lanes))]
        yield GraphLine(
            text.rstrip(), entry, "".join("  " if gone else "| " for gone in below).rstrip()
        )
        if not parents:
            del lanes[at]
            yield from _slide([*range(at), *range(at + 1, len(lanes) + 1)], lanes)
            continue
        lanes[at] = parents[0]
        for parent in reversed(parents[1:]):
            lanes.insert(at + 1, parent)
            right = "\\ " * (len(lanes) - at - 1)
            yield _joint("| " * (at + 1), right)
        yield from _slide(list(range(len(lanes))), lanes)


def _joint(left: str, right: str) -> GraphLine:
    """Return the line where a column begins: those right of it move over."""
    text = (left[:-1] + right).rstrip()
    return GraphLine(text, None, text)


def _slide(columns: list[int], lanes: list[CidBytes]) -> Iterator[GraphLine]:
    """Yield lines that bring lanes from their columns to the leftmost free ones.

    Lanes that lead to the same commit become one, in the column of the first of them; `lanes` is
    what is left of them.
    """
    left = list(dict.fromkeys(lanes))
    goals = [left.index(lane) for lane in lanes]
    lanes[:] = left
    while columns != goals:
        cells = [" "] * (2 * max(columns) + 1)
        for number, (column, goal) in enumerate(zip(columns, goals, strict=True)):
            if column == goal:
                cells[2 * column] = "|"
            else:
                cells[2 * column - 1] = "/"
                columns[number] -= 1
        text = "".join(cells).rstrip()
        yield GraphLine(text, None, text)


def _sorted(entries: list[LogEntry]) -> list[LogEntry]:
    """Return entries with none before one that follows it; else in the order that they have."""
    by_cid = {entry.cid: entry for entry in entries}
    waiting = dict.fromkeys(by_cid, 0)
    for entry in by_cid.values():
        for parent in dict.fromkeys(entry.parents):
            if parent in waiting:
                waiting[parent] += 1
    done: set[CidBytes] = set()
    passed: set[CidBytes] = set()
    out = []
    for turn in by_cid.values():
        passed.add(turn.cid)
        pending = [turn]
        while pending:
            entry = pending.pop()
            if waiting[entry.cid] or entry.cid in done:
                continue
            done.add(entry.cid)
            out.append(entry)
            for parent in dict.fromkeys(entry.parents):
                if parent in waiting:
                    waiting[parent] -= 1
                    if not waiting[parent] and parent in passed:
                        pending.append(by_cid[parent])
    return out
