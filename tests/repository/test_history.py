"""Histories: the log of a version, of a path, of a box; where versions went apart."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import numpy as np
import pytest
from histories import History
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import CasZarrError, InvalidArgumentError
from cas_zarr.repository import history
from cas_zarr.repository.times import format_time, to_micros

ARRAY = b'{"zarr_format":3,"node_type":"array"}'


def names(made: History, entries: object) -> str:
    return made.names([entry.cid for entry in entries])  # type: ignore[attr-defined]


@pytest.fixture
def crossed() -> History:
    """Return a history with a branch that was merged, one that was not, and a merge crosswise.

    ::

        a - b - c ----- m - e    main
             \\      /
              x - y - z          other
    """
    made = History()
    made.commit("a")
    made.commit("b", "a")
    made.commit("x", "b")
    made.commit("c", "b")
    made.commit("y", "x")
    made.commit("m", "c", "y")
    made.commit("z", "y")
    made.commit("e", "m")
    made.branch("main", "e")
    made.branch("other", "z")
    return made


# -- the listing ----------------------------------------------------------------------------------


def test_the_log_is_by_time_and_each_commit_comes_once(crossed: History) -> None:
    repo = crossed.repository
    assert names(crossed, history.log(repo)) == "e m y c x b a"
    assert names(crossed, history.log(repo, "main^")) == "m y c x b a"
    assert names(crossed, history.log(repo, first_parent=True)) == "e m c b a"
    assert names(crossed, history.log(repo, "other")) == "z y x b a"
    assert names(crossed, history.log(repo, topological=True)) == "e m y c x b a"
    assert crossed.names(list(history.ancestors(repo, "other"))) == "z y x b a"
    entry = next(history.log(repo, "main~1"))
    assert crossed.names(entry.parents) == "c y"
    assert entry.commit.message == "m"
    assert not entry.cut
    root = repo.resolve("main").root
    for call in (history.log, history.ancestors):
        with pytest.raises(InvalidArgumentError, match="no history"):
            list(call(repo, root))


def test_the_log_between_times() -> None:
    made = History()
    for day in range(1, 6):
        time = to_micros(f"2026-01-0{day}T12:00")
        made.commit(str(day), *[str(day - 1)] * (day > 1), time=time)
    made.branch("main", "5")
    repo = made.repository

    def listed(**options: object) -> str:
        return names(made, history.log(repo, **options))  # type: ignore[arg-type]

    assert listed(since="2026-01-03") == "5 4 3"
    assert listed(until="2026-01-03") == "3 2 1"
    assert listed(since="2026-01-02", until="2026-01-04") == "4 3 2"
    assert listed(since="2026-01-02T12:00:01", until="2026-01-04T11:59") == "3"
    assert listed(since="2026-01-02T12:00", until="2026-01-04T12:00") == "4 3 2"
    noon = datetime(2026, 1, 4, 12)
    assert listed(since=noon) == "5 4"
    assert listed(since=noon.replace(tzinfo=UTC)) == "5 4"
    assert listed(until=noon.replace(tzinfo=timezone(timedelta(hours=1)))) == "3 2 1"
    assert listed(since=to_micros(noon) + 1) == "5"
    assert listed(since="2027-01-01") == ""
    assert listed(since="2026-01-02", until="2026-01-04", topological=True) == "4 3 2"
    for odd in ("yesterday", "2026-02-30", True, None.__class__, 1.5):
        with pytest.raises(InvalidArgumentError, match="is no time"):
            listed(since=odd)


def test_what_a_time_is_in_text() -> None:
    assert to_micros("1970-01-01") == 0
    assert to_micros("1970-01-01", end=True) == 86_400_000_000 - 1
    assert to_micros("1970-01-01T00:01", end=True) == 120_000_000 - 1
    assert to_micros("1970-01-01T00:00:01+01:00", end=True) == -3_600_000_000 + 2_000_000 - 1
    assert to_micros("1970-01-01T00:00:01.5Z", end=True) == 1_500_000
    assert to_micros("9999-12-31", end=True) == 253_402_300_799_999_999
    assert format_time(to_micros("2026-01-31T12:00:05")) == "2026-01-31T12:00:05Z"
    assert format_time(2**63 - 1) == f"{2**63 - 1} µs"
    assert format_time(-(2**63)) == f"{-(2**63)} µs"


def test_clocks_that_were_wrong_change_no_ancestry() -> None:
    made = History()
    made.commit("a", time=100)
    made.commit("b", "a", time=1)
    made.commit("c", "a", time=50)
    made.commit("d", "b", "c", time=2)
    made.commit("e", "c", time=200)
    made.branch("main", "d")
    made.branch("other", "e")
    repo = made.repository
    assert names(made, history.log(repo, topological=True)) == "d c b a"
    assert set(names(made, history.log(repo)).split()) == set("abcd")
    assert history.merge_bases(repo, "main", "other") == [made.cids["c"]]
    assert history.is_ancestor(repo, made.cids["a"], "main")
    assert names(made, history.log(repo, since=50)) == "c a"


def test_a_cut_ends_the_history(crossed: History) -> None:
    repo = crossed.repository
    repo.refs.set_shallow(frozenset(), {crossed.cids["b"], crossed.cids["y"]})
    entries = list(history.log(repo))
    assert names(crossed, entries) == "e m y c b"
    assert [entry.commit.message for entry in entries if entry.cut] == ["y", "b"]
    assert entries[-1].parents == ()
    assert entries[-1].commit.parents == (crossed.cids["a"],)
    assert names(crossed, history.log(repo, topological=True)) == "e m y c b"
    assert history.merge_base(repo, "other", crossed.cids["c"]) is None
    repo.refs.set_shallow(repo.refs.shallow(), {crossed.cids["a"]})
    assert not any(entry.cut for entry in history.log(repo))  # the first commit has no parents


# -- the listing of a path ------------------------------------------------------------------------


def grid(chunks: dict[tuple[int, int], bytes], **more: bytes) -> dict[str, bytes]:
    values = {f"air/c/{i}/{j}": value for (i, j), value in chunks.items()}
    return {"zarr.json": b'{"zarr_format":3}', "air/zarr.json": ARRAY, **values, **more}


@pytest.fixture
def arrays() -> History:
    """Return a history of an array with chunks, and of other things beside it."""
    made = History()
    big = {(i, j): b"%d %d" % (i, j) for i in range(40) for j in range(40)}
    made.commit("none", values={"zarr.json": b'{"zarr_format":3}'})
    made.commit("born", "none", values=grid(big))
    made.commit("beside", "born", values=grid(big, note=b"1"))
    one = big | {(3, 4): b"new"}
    made.commit("one", "beside", values=grid(one, note=b"1"))
    two = one | {(30, 31): b"new"}
    made.commit("two", "one", values=grid(two, note=b"2"))
    attributes = grid(two, note=b"2") | {"air/zarr.json": ARRAY + b" "}
    made.commit("attributes", "two", values=attributes)
    back = grid(big | {(30, 31): b"new"}, note=b"2") | {"air/zarr.json": ARRAY + b" "}
    made.commit("back", "attributes", values=back)
    made.commit("gone", "back", values={"zarr.json": b'{"zarr_format":3}', "note": b"2"})
    made.branch("main", "gone")
    return made


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "gone back attributes two one beside born none"),
        ("/", "gone back attributes two one beside born none"),
        ("air", "gone back attributes two one born"),
        ("/air/", "gone back attributes two one born"),
        ("note", "two beside"),
        ("air/zarr.json", "gone attributes born"),
        ("air/c/3/4", "gone back one born"),
        ("air/c/30/31", "gone two born"),
        ("air/c/99/99", ""),
        ("nothing/here", ""),
        ("zarr.json", "none"),
    ],
)
def test_the_log_of_a_path(arrays: History, path: str, expected: str) -> None:
    assert names(arrays, history.log(arrays.repository, path=path)) == expected
    entries = list(history.log(arrays.repository, path=path, topological=True))
    assert names(arrays, entries) == expected
    for entry, behind in pairwise(entries):  # linked to the next
        assert entry.parents == (behind.cid,)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((slice(None), slice(None)), "gone back two one born"),
        (((0, None), (0, None)), "gone back two one born"),
        (((3, 4), (4, 5)), "gone back one born"),
        (((3, 4), (5, 6)), "gone born"),
        (((0, 4), (0, 5)), "gone back one born"),
        (((0, 3), (0, 40)), "gone born"),
        ((slice(30, 31), slice(31, 32)), "gone two born"),
        (((3, 31), (4, 32)), "gone back two one born"),
        (((40, 50), (0, 50)), ""),
        (((5, 5), (0, 50)), ""),
        (((np.int64(3), np.int64(4)), (4, 5)), "gone back one born"),
    ],
)
def test_the_log_of_a_box(arrays: History, box: Sequence[slice], expected: str) -> None:
    assert names(arrays, history.log(arrays.repository, path="air", box=box)) == expected


def test_boxes_that_do_not_fit(arrays: History) -> None:
    repo = arrays.repository
    with pytest.raises(InvalidArgumentError, match=r"box of 1 dimensions .* 2 dimensions"):
        history.log(repo, "main~1", path="air", box=[slice(0, 1)])
    for odd in ((-1, 2), slice(0, 4, 2), (0, 1, 2), 3, ("a", "b")):
        with pytest.raises(InvalidArgumentError, match="no side of a box"):
            history.log(repo, path="air", box=[odd, slice(None)])  # type: ignore[list-item]
    with pytest.raises(CasZarrError, match="segment"):
        history.log(repo, path="a//b")


def test_a_merge_is_listed_if_it_is_like_no_parent() -> None:
    made = History()
    made.commit("a", values={"x": b"0", "y": b"0"})
    made.commit("x", "a", values={"x": b"1", "y": b"0"})
    made.commit("y", "a", values={"x": b"0", "y": b"1"})
    made.commit("m", "x", "y", values={"x": b"1", "y": b"1"})
    made.commit("odd", "x", "y", values={"x": b"2", "y": b"1"})
    made.branch("main", "m")
    made.branch("odd", "odd")
    repo = made.repository
    assert names(made, history.log(repo, path="x")) == "x a"
    assert names(made, history.log(repo, path="y")) == "y a"
    assert names(made, history.log(repo, path="y", first_parent=True)) == "m a"
    assert names(made, history.log(repo, path="")) == "m y x a"
    assert names(made, history.log(repo, "odd", path="x")) == "odd x a"
    linked = {
        made.names([entry.cid]): made.names(entry.parents)
        for entry in history.log(repo, "odd", path="x", topological=True)
    }
    assert linked == {"odd": "x a", "x": "a", "a": ""}


def test_the_log_of_a_path_reads_no_more_than_it_must() -> None:
    made = History()
    big = {(i, j): b"%d %d" % (i, j) for i in range(64) for j in range(64)}
    made.commit("0", values=grid(big))
    for number in range(1, 30):
        big[number, 63] = b"new"
        made.commit(str(number), str(number - 1), values=grid(big, note=b"%d" % (number % 2)))
    made.branch("main", "29")
    reads: list[CidBytes] = []
    blocks = made.repository.blocks
    read = blocks._read
    blocks._read = lambda cid: reads.append(cid) or read(cid)  # type: ignore[method-assign]

    def cost(**options: object) -> tuple[int, int]:
        reads.clear()
        found = len(list(history.log(made.repository, **options)))  # type: ignore[arg-type]
        assert len(set(reads)) > len(reads) - 3  # what was read is remembered
        return found, len(reads)

    found, count = cost()
    assert found == 30
    assert count <= 30 + 2
    found, count = cost(path="air")  # a commit and a root each
    assert found == 30
    assert count <= 2 * 30 + 2
    found, count = cost(path="air", box=((0, 2), (0, 2)))  # and for each one path of pages
    assert found == 1
    assert count <= 4 * 30 + 12
    found, count = cost(path="air", box=((7, 8), (0, 64)))
    assert found == 2
    assert count <= 6 * 30 + 12


# -- where versions went apart --------------------------------------------------------------------


def test_merge_bases(crossed: History) -> None:
    repo = crossed.repository
    base = history.merge_base
    assert base(repo, "main", "main") == crossed.cids["e"]
    assert base(repo, "main", "main~1") == crossed.cids["m"]
    assert base(repo, "main~1", "main") == crossed.cids["m"]
    assert base(repo, "main", "other") == crossed.cids["y"]
    assert base(repo, "main~2", "other") == crossed.cids["b"]
    crossed.commit("lone")
    crossed.branch("lone", "lone")
    assert base(repo, "main", "lone") is None
    assert history.merge_bases(repo, "main", "lone") == []
    root = repo.resolve("main").root
    with pytest.raises(InvalidArgumentError, match="no history"):
        base(repo, "main", root)


@pytest.mark.parametrize(
    "times", [(1, 2, 3, 4, 5), (9, 2, 3, 4, 5), (1, 9, 8, 2, 1), (5, 1, 9, 9, 9)]
)
def test_a_merge_crosswise_has_two_bases(times: tuple[int, ...]) -> None:
    made = History()
    for name, parents, time in zip("abcxy", ("", "a", "a", "bc", "cb"), times, strict=True):
        made.commit(name, *parents, time=time)
    made.branch("x", "x")
    made.branch("y", "y")
    found = history.merge_bases(made.repository, "x", "y")
    assert set(made.names(found)) - {" "} == {"b", "c"}
    later = sorted("bc", key=lambda name: (-times["abc".index(name)], made.cids[name]))
    assert made.names(found) == " ".join(later)
    assert history.merge_base(made.repository, "y", "x") == made.cids[later[0]]


def test_a_base_is_found_without_what_lies_behind_it() -> None:
    made = History()
    for number in range(100):
        made.commit(str(number), *[str(number - 1)] * (number > 0))
    made.commit("x", "97")
    made.commit("y", "96")
    blocks = made.repository.blocks
    reads: list[CidBytes] = []
    read = blocks._read
    blocks._read = lambda cid: reads.append(cid) or read(cid)  # type: ignore[method-assign]
    assert history.merge_base(made.repository, made.cids["x"], made.cids["y"]) == made.cids["96"]
    assert len(set(reads)) < 8


def test_a_base_that_another_follows_is_none_though_its_clock_was_ahead() -> None:
    made = History()
    made.commit("a", time=9)
    made.commit("between", "a", time=1)
    made.commit("b", "between", time=5)
    made.commit("x", "b", "a", time=10)
    made.commit("y", "b", "a", time=11)
    found = history.merge_bases(made.repository, made.cids["x"], made.cids["y"])
    assert made.names(found) == "b"


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[tuple[int, ...], int]]:
    """Return commits: their parents, all earlier in the list, and their times."""
    count = draw(st.integers(1, 12))
    out = []
    for number in range(count):
        parents = draw(
            st.lists(st.integers(0, number - 1), max_size=3, unique=True) if number else st.just([])
        )
        out.append((tuple(parents), draw(st.integers(0, 6))))
    return out


def made_of(graph: list[tuple[tuple[int, ...], int]]) -> tuple[History, list[set[int]]]:
    made = History()
    behind: list[set[int]] = []
    for number, (parents, time) in enumerate(graph):
        made.commit(str(number), *map(str, parents), time=time)
        behind.append({number}.union(*(behind[parent] for parent in parents)))
    return made, behind


@given(graphs(), st.data())
def test_bases_are_the_best_of_the_common_ancestors(
    graph: list[tuple[tuple[int, ...], int]], data: st.DataObject
) -> None:
    made, behind = made_of(graph)
    a, b = (data.draw(st.integers(0, len(graph) - 1)) for _ in "ab")
    one, two = (made.cids[str(number)] for number in (a, b))
    common = behind[a] & behind[b]
    best = {one for one in common if not any(one in behind[other] - {other} for other in common)}
    found = history.merge_bases(made.repository, one, two)
    assert set(made.names(found).split()) == {str(number) for number in best}
    assert len(found) == len(best)
    assert history.is_ancestor(made.repository, one, two) == (a in behind[b])
    assert history.merge_bases(made.repository, two, one) == found


@given(graphs(), st.booleans())
def test_a_topological_log_has_nothing_before_what_follows_it(
    graph: list[tuple[tuple[int, ...], int]], first_parent: bool
) -> None:
    made, behind = made_of(graph)
    tip = made.cids[str(len(graph) - 1)]
    entries = list(history.log(made.repository, tip, topological=True, first_parent=first_parent))
    place = {entry.cid: number for number, entry in enumerate(entries)}
    assert len(place) == len(entries)
    for entry in entries:
        assert all(place[parent] > place[entry.cid] for parent in entry.parents)
    if not first_parent:
        assert set(names(made, entries).split()) == {str(one) for one in behind[-1]}
        by_time = list(history.log(made.repository, tip))
        assert {entry.cid for entry in by_time} == place.keys()


@given(graphs(), st.data())
def test_the_log_of_a_path_is_what_comparing_all_would_find(
    graph: list[tuple[tuple[int, ...], int]], data: st.DataObject
) -> None:
    made = History()
    values = [
        data.draw(st.dictionaries(st.sampled_from(["x/a", "x/b", "y"]), st.just(b"1")))
        for _ in graph
    ]
    for number, (parents, time) in enumerate(graph):
        made.commit(str(number), *map(str, parents), time=time, values=values[number])
    tip = len(graph) - 1
    behind, pending = set(), [tip]
    while pending:
        number = pending.pop()
        behind.add(number)
        pending.extend(graph[number][0])

    def at(number: int) -> dict[str, bytes]:
        return {key: value for key, value in values[number].items() if key.startswith("x/")}

    expected = {
        str(number)
        for number in behind
        if all(at(number) != at(parent) for parent in graph[number][0])
        and (graph[number][0] or at(number))
    }
    entries = list(history.log(made.repository, made.cids[str(tip)], path="x"))
    assert set(names(made, entries).split()) == expected
    linked = list(history.log(made.repository, made.cids[str(tip)], path="x", topological=True))
    assert {entry.cid for entry in linked} == {entry.cid for entry in entries}
    shown = {entry.cid for entry in linked}
    assert all(parent in shown for entry in linked for parent in entry.parents)


def test_errors_name_the_version(crossed: History) -> None:
    with pytest.raises(CasZarrError, match="did you mean 'main'"):
        history.merge_base(crossed.repository, "mian", "other")
    assert format_cid(crossed.cids["a"]).startswith("b")
