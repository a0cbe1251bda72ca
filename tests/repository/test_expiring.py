"""Old history that is cut off: what stays, where the cut is, and what the log still has."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from histories import History
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import CorruptBlockError, InvalidArgumentError, VersionNotFoundError
from cas_zarr.repository import history
from cas_zarr.repository.repository import Repository

SECOND = 1_000_000


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.fixture
def line() -> History:
    """Return commits 0 to 9 on main, a second apart; `old` is a tag of 2."""
    made = History()
    for number in range(10):
        made.commit(str(number), *[str(number - 1)] * (number > 0), time=number * SECOND)
        made.branch("main", str(number))
    made.repository.create_tag("old", made.cids["2"])
    return made


def listed(made: History, version: str = "main") -> str:
    return made.names([entry.cid for entry in history.log(made.repository, version)])


def test_commits_expire_by_count(line: History) -> None:
    repo = line.repository
    rehearsal = history.expire(repo, keep=3, dry_run=True)
    assert listed(line) == "9 8 7 6 5 4 3 2 1 0"
    assert rehearsal.dry_run
    report = history.expire(repo, keep=3)
    assert listed(line) == "9 8 7"
    assert listed(line, "old") == "2"
    assert set(line.names(report.expired).split()) == set("013456")
    assert report.kept == 4
    assert set(line.names(report.cut).split()) == {"2", "7"}
    assert (report.expired, report.kept, report.cut, report.moves, True) == (
        rehearsal.expired,
        rehearsal.kept,
        rehearsal.cut,
        rehearsal.moves,
        rehearsal.dry_run,
    )
    assert repo.refs.shallow() == set(report.cut)
    with pytest.raises(VersionNotFoundError, match="history was cut there"):
        repo.resolve("main~3")
    again = history.expire(repo, keep=3)
    assert (again.expired, again.cut, again.moves, again.kept) == ((), (), 0, 4)
    further = history.expire(repo, keep=1)
    assert set(line.names(further.expired).split()) == {"8", "7"}
    assert listed(line) == "9"
    assert listed(line, "old") == "2"
    assert {line.cids["9"], line.cids["2"]} <= repo.refs.shallow()
    assert next(history.log(repo)).cut


def test_commits_expire_by_age(line: History) -> None:
    repo = line.repository
    report = history.expire(repo, older_than=moment(6))
    assert listed(line) == "9 8 7 6"
    assert report.kept == 5
    history.expire(repo, older_than=datetime(1970, 1, 1, 0, 0, 7, 500_000))  # without a zone
    assert listed(line) == "9 8"
    history.expire(repo, older_than=moment(1_000_000))
    assert listed(line) == "9"


def test_an_age_counts_back_from_now() -> None:
    made = History()
    now = time.time_ns() // 1000
    for number, age in enumerate((1000, 100, 10)):
        made.commit(str(number), *[str(number - 1)] * (number > 0), time=now - age * 3600 * SECOND)
        made.branch("main", str(number))
    history.expire(made.repository, older_than=timedelta(hours=500))
    assert listed(made) == "2 1"


def test_either_reason_lets_a_commit_stay(line: History) -> None:
    history.expire(line.repository, keep=2, older_than=moment(5))
    assert listed(line) == "9 8 7 6 5"
    history.expire(line.repository, keep=3, older_than=moment(9))
    assert listed(line) == "9 8 7"


def test_the_log_of_refs_expires_with_the_commits(line: History) -> None:
    repo = line.repository
    repo.create_branch("side", "main~4")
    line.commit("s", "5", time=6 * SECOND)
    line.branch("side", "s")
    repo.delete_branch("side")
    history.expire(repo, keep=2)
    named = {
        cid
        for move in repo.refs.log()
        for record in (move.old, move.new)
        if record is not None and (cid := record.commit) is not None
    }
    # What is in no history is held, what expired is not.
    assert named == {line.cids[name] for name in ("8", "9", "2", "s")}
    assert listed(line, "side@{1}") == "s"
    assert line.cids["s"] in repo.refs.shallow()
    before = len(repo.refs.log())
    assert history.expire(repo, older_than=timedelta(0)).moves == before
    assert repo.refs.log() == []


def test_a_damaged_log_does_not_stop_it(tmp_path: Path) -> None:
    made = History(Repository.open(tmp_path / "r", create=True))
    made.commit("a")
    made.commit("b", "a")
    made.branch("main", "b")
    log = tmp_path / "r" / "refs" / "log"
    log.write_bytes(log.read_bytes() + b"junk\n")
    assert history.expire(made.repository, keep=1).kept == 1
    assert len(made.repository.refs.log_damage()) == 1


def test_what_the_log_has_and_cannot_be_read_is_told(line: History) -> None:
    repo = line.repository
    line.commit("lost", "9")
    line.commit("last", "lost")
    line.branch("main", "last")
    line.branch("main", "9")
    repo.blocks.delete(line.cids["lost"])
    with pytest.raises(CorruptBlockError, match=r"nothing was expired .* older_than") as caught:
        history.expire(repo, keep=3)
    assert format_cid(line.cids["last"]) in str(caught.value)
    assert listed(line) == "9 8 7 6 5 4 3 2 1 0"
    history.expire(repo, keep=3, older_than=timedelta(0))
    assert listed(line) == "9 8 7"


def test_what_a_clock_says_hides_no_young_commit() -> None:
    made = History()
    made.commit("a", time=0)
    made.commit("b", "a", time=100 * SECOND)
    made.commit("c", "b", time=1 * SECOND)
    made.commit("d", "c", time=200 * SECOND)
    made.branch("main", "d")
    history.expire(made.repository, older_than=moment(50))
    assert listed(made, "main") == "d c b"


def test_a_merge_keeps_both_sides_or_none() -> None:
    made = History()
    for name, parents, when in (
        ("a", "", 0),
        ("b", "a", 10),
        ("x", "a", 1),
        ("m", "bx", 20),
        ("e", "m", 30),
    ):
        made.commit(name, *parents, time=when * SECOND)
    made.branch("main", "e")
    report = history.expire(made.repository, older_than=moment(5))
    assert set(listed(made).split()) == set("embx")  # x lies behind a merge that goes on
    assert set(made.names(report.cut).split()) == set("bx")
    history.expire(made.repository, older_than=moment(15))
    assert listed(made) == "e m"


def test_branches_of_other_repositories_hold_their_commits(line: History) -> None:
    from cas_zarr.repository.refs import Tag

    line.repository.refs.track("origin/main", expected=None, new=Tag(line.cids["4"]))
    history.expire(line.repository, keep=1)
    assert listed(line, "origin/main") == "4"


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"keep": 0},
        {"keep": -1},
        {"keep": True},
        {"keep": 1.5},
        {"older_than": timedelta(-1)},
        {"older_than": "30d"},
    ],
)
def test_limits_that_make_no_sense(line: History, limits: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        history.expire(line.repository, **limits)  # type: ignore[arg-type]
    assert len(listed(line).split()) == 10


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[tuple[int, ...], int]]:
    count = draw(st.integers(1, 12))
    out = []
    for number in range(count):
        near = st.integers(max(0, number - 4), number - 1)
        parents = draw(st.lists(near, max_size=2, unique=True) if number else st.just([]))
        out.append((tuple(parents), draw(st.integers(0, 9))))
    return out


@given(graphs(), st.data())
def test_what_must_stay_stays_and_is_joined_to_a_tip(
    graph: list[tuple[tuple[int, ...], int]], data: st.DataObject
) -> None:
    made = History()
    for number, (parents, when) in enumerate(graph):
        made.commit(str(number), *map(str, parents), time=when * SECOND)
    numbers = st.integers(0, len(graph) - 1)
    tips = data.draw(st.lists(numbers, min_size=1, max_size=3, unique=True))
    for place, tip in enumerate(tips):
        if place == 1:
            made.repository.create_tag("v", made.cids[str(tip)])
        else:
            made.branch(f"b{place}", str(tip))
    limit = data.draw(st.integers(0, 10))
    repo = made.repository

    def reach() -> set[CidBytes]:
        found: set[CidBytes] = set()
        for tip in tips:
            found.update(history.ancestors(repo, made.cids[str(tip)]))
        return found

    before = reach()
    report = history.expire(repo, older_than=moment(limit))
    after = reach()
    young = {cid for cid in before if repo.blocks.has(cid) and _time(repo, cid) >= limit * SECOND}
    assert young <= after
    assert {made.cids[str(tip)] for tip in tips} <= after
    assert set(report.expired) == before - after
    assert report.kept == len(after)
    # Nothing stays without a reason: young, a tip, behind one that follows it, or beside those.
    cut = repo.refs.shallow()
    for cid in after - young - {made.cids[str(tip)] for tip in tips}:
        assert (
            cid in cut
            or not _parents(repo, cid)
            or any(one in after for one in _parents(repo, cid))
        )
    for cid in cut:
        assert after.isdisjoint(_parents(repo, cid))
    again = history.expire(repo, older_than=moment(limit))
    assert again.expired == ()
    assert again.cut == ()


def _time(repo: Repository, cid: CidBytes) -> int:
    return next(history.log(repo, cid)).commit.time


def _parents(repo: Repository, cid: CidBytes) -> tuple[CidBytes, ...]:
    return next(history.log(repo, cid)).commit.parents


def test_a_move_that_holds_a_commit_outlives_the_expiry_of_the_other_one(line: History) -> None:
    """A branch is reset far back by mistake, and goes on; what it was can be had for a while."""
    repo = line.repository
    repo.refs.trim_log(time.time_ns() // 1000 + 1)
    history.reset(repo, "main", line.cids["5"])
    line.commit("10", "5", time=10 * SECOND)
    line.branch("main", "10")
    report = history.expire(repo, keep=1)
    assert listed(line) == "10 5"
    assert line.cids["9"] not in report.expired
    assert repo.resolve("main@{2}").commit == line.cids["9"]
    assert repo.resolve("main@{1}").commit == line.cids["5"]
    repo.gc(grace=timedelta(0))
    assert dict(repo.at("main@{2}").items()) == {"n": b"9"}
