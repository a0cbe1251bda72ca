"""The drawing of a history, held to drawings."""

from __future__ import annotations

from random import Random

import pytest
from histories import History
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.repository import history
from cas_zarr.repository.graph import graph_lines
from cas_zarr.repository.history import LogEntry

DRAWINGS = {
    "one": (["a", "b a", "c b"], ["* c", "* b", "* a"]),
    "a merge": (
        ["a", "b a", "x a", "m b x"],
        ["* m", "|\\", "| * x", "* | b", "|/", "* a"],
    ),
    "the branch goes on": (
        ["a", "x a", "y x", "b a", "m b y", "c m"],
        ["* c", "* m", "|\\", "* | b", "| * y", "| * x", "|/", "* a"],
    ),
    "crosswise": (
        ["a", "b a", "c a", "x b c", "y c b", "m x y"],
        [
            "* m",
            "|\\",
            "| * y",
            "| |\\",
            "* | | x",
            "|\\ \\ \\",
            "| |/ /",
            "| |/",
            "|/|",
            "| * c",
            "* | b",
            "|/",
            "* a",
        ],
    ),
    "from nothing": (["a", "z", "m a z"], ["* m", "|\\", "| * z", "* a"]),
    "a first one beside": (
        ["a", "z", "b a", "m z b"],
        ["* m", "|\\", "| * b", "* | z", " /", "* a"],
    ),
    "three parents": (
        ["a", "x a", "y a", "z a", "m x y z"],
        ["* m", "|\\", "|\\ \\", "| | * z", "| * | y", "| |/", "* | x", "|/", "* a"],
    ),
    "far apart": (
        ["a", "p a", "q a", "n q a", "m p n"],
        ["* m", "|\\", "| * n", "| |\\", "| * | q", "| |/", "* | p", "|/", "* a"],
    ),
}


def made_of(commits: list[str]) -> tuple[History, list[LogEntry]]:
    made = History()
    for commit in commits:
        name, *parents = commit.split()
        made.commit(name, *parents)
    return made, list(
        history.log(made.repository, made.cids[commits[-1].split()[0]], topological=True)
    )


def drawn(entries: list[LogEntry]) -> list[str]:
    return [
        line.text if line.entry is None else f"{line.text} {line.entry.commit.message}"
        for line in graph_lines(entries)
    ]


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings(name: str) -> None:
    commits, expected = DRAWINGS[name]
    assert drawn(made_of(commits)[1]) == expected


def read(lines: list[tuple[str, str | None]]) -> set[tuple[str, str]]:
    """Follow the lines of a drawing from each commit down; return who leads to whom."""
    edges: set[tuple[str, str]] = set()
    straight: dict[int, set[str]] = {}  # what comes down into a column
    sliding: dict[int, set[str]] = {}  # and what comes into it from the right
    for text, name in lines:
        below: dict[int, set[str]] = {}
        slid: dict[int, set[str]] = {}
        for place, mark in enumerate(text):
            column = (place + 1) // 2 if mark == "/" else place // 2
            down, over = straight.get(column, set()), sliding.get(column, set())
            both = text[place : place + 1] == "|" and text[place - 1 : place] == "/" and place > 0
            if mark == "*":
                assert name is not None
                edges |= {(child, name) for child in down | over}
                below[column] = {name}
            elif mark == "|":
                assert place % 2 == 0
                below.setdefault(column, set()).update(down if both and over else down | over)
            elif mark == "/":
                assert place % 2 == 1
                passes = text[place + 1 : place + 2] == "|"
                slid.setdefault(column - 1, set()).update(over or down if passes else down | over)
            elif mark == "\\":
                assert place % 2 == 1
                below.setdefault(column + 1, set()).update(down | over)
        straight, sliding = below, slid
    return edges


@st.composite
def graphs(draw: st.DrawFn) -> list[str]:
    count = draw(st.integers(1, 14))
    out = []
    for number in range(count):
        near = st.integers(max(0, number - 6), number - 1)
        parents = draw(st.lists(near, max_size=3, unique=True) if number else st.just([]))
        out.append(" ".join(map(str, [number, *parents])))
    return out


@given(graphs())
def test_the_lines_lead_from_each_commit_to_its_parents(commits: list[str]) -> None:
    made, entries = made_of(commits)
    lines = [
        (line.text, None if line.entry is None else line.entry.commit.message)
        for line in graph_lines(entries)
    ]
    assert [name for _, name in lines if name] == [entry.commit.message for entry in entries]
    expected = {
        (entry.commit.message, made.names([parent]))
        for entry in entries
        for parent in entry.parents
    }
    assert read(lines) == expected
    assert all(text == text.rstrip() for text, _ in lines)


@given(graphs(), st.randoms(use_true_random=False))
def test_any_order_is_drawn_from_the_newest_down(commits: list[str], random: Random) -> None:
    _, entries = made_of(commits)
    shuffled = list(entries)
    random.shuffle(shuffled)
    seen: set[bytes] = set()
    for line in graph_lines(shuffled):
        if line.entry is not None:
            assert seen.isdisjoint(line.entry.parents)
            seen.add(line.entry.cid)
    assert len(seen) == len(entries)


def test_what_stands_beside_the_lines_of_a_message() -> None:
    _, entries = made_of(["a", "b a", "x a", "m b x"])
    assert [line.below for line in graph_lines(entries) if line.entry] == ["|", "| |", "| |", ""]


def test_a_listing_that_stops_leads_on() -> None:
    _, entries = made_of(["a", "b a", "c b"])
    assert drawn(entries[:2]) == ["* c", "* b"]
    assert list(graph_lines([])) == []
