"""Cherry-pick, revert and rebase; and all of them with kills, collections and a model of dicts."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from branches import BEGIN, commit, content, messages, state, tip, write
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import (
    ConflictError,
    InvalidArgumentError,
    StorageError,
)
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.history import merge_bases
from cas_zarr.repository.merging import MergeResult, cherry_pick, merge, rebase, revert
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import read_commit
from cas_zarr.tree.conflicts import Conflict

Forked = Callable[[Callable[[], object]], int]
Strike = Callable[[int, Callable[[], object]], list[str]]


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Return a repository of one commit, with the branches main and side."""
    repository = Repository.open(tmp_path / "repo", create=True, author="Ada")
    commit(repository, "begin", BEGIN)
    repository.create_branch("side")
    return repository


# -- cherry-pick and revert ------------------------------------------------------------------------


def test_a_commit_is_picked(repo: Repository) -> None:
    commit(repo, "not this", {"a/c/4": b"theirs"}, "side")
    write(repo, "side", {"a/c/5": b"theirs"})
    session = repo.session("side")
    picked = session.commit("this\n\nbecause", author="Bo", time=5, metadata={"k": 1})
    commit(repo, "nor that", {"a/c/6": b"theirs"}, "side")
    old = state(repo)["main"].commit
    result = cherry_pick(repo, "side~1")
    assert result.kind == "cherry-pick"
    assert tip(repo) == Commit(
        root=result.root,  # type: ignore[arg-type]
        parents=(old,),  # type: ignore[arg-type]
        message="this\n\nbecause",
        author="Bo",
        time=5,
        metadata={"k": 1, "cherry-picked from": format_cid(picked)},
    )
    assert set(content(repo)) == {*BEGIN, "a/c/5"}
    assert repo.refs.log("main")[-1].why == "cherry-pick: this"
    before = state(repo)
    assert cherry_pick(repo, picked).kind == "already"
    assert state(repo) == before


def test_a_first_commit_can_be_picked_and_reverted(repo: Repository) -> None:
    repo.create_branch("empty", None)
    assert cherry_pick(repo, "main", into="empty").kind == "cherry-pick"
    assert content(repo, "empty") == content(repo)
    revert(repo, "empty", into="empty")
    assert content(repo, "empty") == {}


def test_a_pick_conflicts_and_is_resolved(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/0": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs"}, "side")
    before = state(repo)
    with pytest.raises(ConflictError, match="picking bafy"):
        cherry_pick(repo, "side")
    assert state(repo) == before
    assert cherry_pick(repo, "side", resolve="ours").kind == "already"
    cherry_pick(repo, "side", resolve="theirs")
    assert content(repo)["a/c/0"] == b"theirs"


def test_a_commit_is_undone(repo: Repository) -> None:
    undone = commit(repo, "wrong\n\nvery", {"a/c/0": b"wrong", "a/c/2": b"new", "a/c/1": None})
    commit(repo, "right", {"a/c/3": b"right"})
    result = revert(repo, "main~1", author="Bo")
    assert result.kind == "revert"
    assert tip(repo).message == f'revert "wrong"\n\nThis reverts commit {format_cid(undone)}.'
    assert tip(repo).author == "Bo"
    assert content(repo) == {**BEGIN, "a/c/3": b"right"}
    assert revert(repo, undone).kind == "already"
    revert(repo, "main")
    assert content(repo)["a/c/0"] == b"wrong"


def test_what_was_changed_since_is_not_undone(repo: Repository) -> None:
    commit(repo, "wrong", {"a/c/0": b"wrong"})
    commit(repo, "since", {"a/c/0": b"since"})
    before = state(repo)
    with pytest.raises(ConflictError, match="reverting bafy"):
        revert(repo, "main~1")
    assert state(repo) == before


def test_a_merge_is_picked_or_undone_against_a_parent(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/3": b"ours"})
    commit(repo, "theirs", {"a/c/4": b"theirs"}, "side")
    merge(repo, "side")
    for verb in (cherry_pick, revert):
        with pytest.raises(InvalidArgumentError, match="merge of 2 parents"):
            verb(repo, "main", into="side")
        with pytest.raises(InvalidArgumentError, match="not one of number 3"):
            verb(repo, "main", into="side", parent=3)
    cherry_pick(repo, "main", into="side", parent=2)
    assert content(repo, "side") == content(repo)
    revert(repo, "main", parent=1)
    assert set(content(repo)) == {*BEGIN, "a/c/3"}
    with pytest.raises(InvalidArgumentError, match="not one of number 2"):
        revert(repo, "main~2", parent=2)


# -- rebase ----------------------------------------------------------------------------------------


def test_commits_are_made_anew_on_another_version(repo: Repository) -> None:
    commit(repo, "main 1", {"a/c/3": b"main"})
    goal = commit(repo, "main 2", {"a/c/0": b"both"})
    session = repo.session("side")
    session.prepare()["a/c/4"] = b"side"
    session.commit("side 1", author="Bo", time=3, metadata={"k": 1})
    commit(repo, "side 2", {"a/c/0": b"both"}, "side")  # nothing is left of it
    commit(repo, "side 3", {"a/c/5": b"side"}, "side")
    write(repo, "side", {"a/c/6": b"work"})
    result = rebase(repo, "side", onto="main")
    assert result.kind == "rebase"
    assert len(result.commits) == 2
    assert messages(repo, "side")[:3] == ["side 3", "main 2", "main 1"] or messages(
        repo, "side"
    ) == ["side 3", "side 1", "main 2", "main 1", "begin"]
    first, second = (read_commit(repo.blocks, cid) for cid in result.commits)
    assert first.parents == (goal,)
    assert (first.author, first.time, dict(first.metadata)) == ("Bo", 3, {"k": 1})
    assert second.parents == (result.commits[0],)
    assert result.commit == result.commits[-1]
    assert content(repo, "side") == {
        **BEGIN,
        "a/c/0": b"both",
        "a/c/3": b"main",
        "a/c/4": b"side",
        "a/c/5": b"side",
    }
    assert bytes(repo.session("side").mapping["a/c/6"]) == b"work"
    (move,) = [one for one in repo.refs.log("side") if one.why == "rebase onto main"]
    assert move.new == state(repo)["side"]
    assert rebase(repo, "side", onto="main").kind == "already"
    assert repo.verify().ok


def test_a_rebase_may_just_move(repo: Repository) -> None:
    goal = commit(repo, "main 1", {"a/c/3": b"main"})
    result = rebase(repo, "side", onto="main")
    assert (result.kind, result.commit, result.commits) == ("fast-forward", goal, ())
    before = state(repo)
    assert rebase(repo, "side", onto="main").kind == "already"
    assert state(repo) == before


def test_a_merge_is_replayed_as_what_it_did(repo: Repository) -> None:
    repo.create_branch("third")
    commit(repo, "main 1", {"a/c/3": b"main"})
    commit(repo, "side 1", {"a/c/4": b"side"}, "side")
    commit(repo, "third 1", {"a/c/5": b"third"}, "third")
    merge(repo, "third", into="side")
    result = rebase(repo, "side", onto="main")
    assert len(result.commits) == 2
    assert all(len(read_commit(repo.blocks, cid).parents) == 1 for cid in result.commits)
    assert {"a/c/3", "a/c/4", "a/c/5"} <= set(content(repo, "side"))


def test_a_rebase_goes_back_to_where_the_other_was_merged(repo: Repository) -> None:
    commit(repo, "side 1", {"a/c/4": b"side"}, "side")
    commit(repo, "main 1", {"a/c/3": b"main"})
    merge(repo, "main", into="side")
    commit(repo, "main 2", {"a/c/6": b"main"})
    commit(repo, "side 2", {"a/c/5": b"side"}, "side")
    result = rebase(repo, "side", onto="main")
    assert [read_commit(repo.blocks, cid).message for cid in result.commits] == [
        "side 1",
        "side 2",
    ]
    assert {"a/c/3", "a/c/4", "a/c/5", "a/c/6"} <= set(content(repo, "side"))


def test_a_rebase_that_conflicts_moves_nothing(repo: Repository) -> None:
    commit(repo, "main 1", {"a/c/0": b"main"})
    commit(repo, "side 1", {"a/c/4": b"side"}, "side")
    bad = commit(repo, "side 2", {"a/c/0": b"side"}, "side")
    before = state(repo)
    with pytest.raises(ConflictError, match=f"replaying {format_cid(bad)}") as caught:
        rebase(repo, "side", onto="main")
    assert [conflict.coordinates for conflict in caught.value.conflicts] == [(0,)]
    assert state(repo) == before
    result = rebase(repo, "side", onto="main", resolve="theirs")
    assert content(repo, "side")["a/c/0"] == b"side"
    assert [conflict.coordinates for conflict in result.resolved] == [(0,)]


def test_a_branch_without_anything_in_common_is_rebased(repo: Repository) -> None:
    repo.create_branch("other", None)
    commit(repo, "apart", {"z": b"z"}, "other")
    result = rebase(repo, "other", onto="main")
    assert len(result.commits) == 1
    assert content(repo, "other") == {**content(repo), "z": b"z"}


# -- signatures, collections, many writers ---------------------------------------------------------


def test_what_is_made_can_be_signed(repo: Repository) -> None:
    pytest.importorskip("cryptography")
    from cas_zarr.repository.signing import check, load_key

    key = load_key(bytes(range(32)))
    commit(repo, "ours", {"a/c/3": b"ours"})
    write(repo, "side", {"a/c/4": b"theirs"})
    repo.session("side").commit("theirs", sign=key)
    assert check(tip(repo, "side")).valid
    signer = check(tip(repo, "side")).signer
    merge(repo, "side", sign=key)
    assert check(tip(repo)).signer == signer
    revert(repo, "main", parent=1, sign=bytes(range(32)))  # as `load_key` takes it
    assert check(tip(repo)).signer == signer
    cherry_pick(repo, "side")
    assert tip(repo).signature is None
    rebase(repo, "side", onto="main~3")
    assert tip(repo, "side").message == "theirs"
    assert tip(repo, "side").signature is None


def test_a_collection_in_the_middle_of_a_merge(repo: Repository) -> None:
    from datetime import timedelta

    from cas_zarr.repository.gc import collect

    commit(repo, "ours", {"a/c/0": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs"}, "side")
    repo.create_branch("garbage")
    commit(repo, "garbage", {"a/c/9": b"garbage"}, "garbage")
    repo.delete_branch("garbage")
    repo.refs.trim_log(1 << 62)
    turns = []

    def resolver(conflict: Conflict) -> Any:  # noqa: ARG001
        turns.append(1)
        if len(turns) == 1:
            collect(Repository.open(repo.location), grace=timedelta(hours=1))
        return "theirs"

    merge(repo, "side", resolver=resolver)
    assert len(turns) <= 2
    collect(Repository.open(repo.location), grace=timedelta(0))
    assert Repository.open(repo.location).verify(data=True).ok


def test_what_was_collected_in_part_cannot_be_merged(repo: Repository) -> None:
    cid = commit(repo, "theirs", {"a/c/20": b"theirs"}, "side")
    gone = repo.at("side").cid_of("a/c/20")
    assert gone is not None
    repo.delete_branch("side")
    repo.blocks.delete(gone)
    before = state(repo)
    for version in (cid, format_cid(cid), f"{format_cid(cid)}~0"):
        with pytest.raises(StorageError):
            merge(repo, version)
    assert state(repo) == before


def _drop(repo: Repository) -> CidBytes:
    cid = commit(repo, "theirs", {f"a/c/{n}": b"theirs %d" % n for n in range(20, 30)}, "side")
    repo.delete_branch("side")
    repo.refs.trim_log(1 << 62)
    return cid


@pytest.mark.parametrize("verb", [merge, cherry_pick])
def test_what_is_being_collected_can_still_be_merged(
    repo: Repository, verb: Callable[..., MergeResult]
) -> None:
    from datetime import timedelta

    from cas_zarr.repository.gc import collect

    cid = _drop(repo)
    commit(repo, "ours", {"a/c/3": b"ours"})
    collect(repo, grace=timedelta(hours=1))  # condemned, and still there
    other = Repository.open(repo.location)
    verb(other, cid)
    other.refs.trim_log(1 << 62)
    collect(Repository.open(repo.location), grace=timedelta(0))
    collect(Repository.open(repo.location), grace=timedelta(0))
    again = Repository.open(repo.location)
    assert again.verify(data=True).ok
    assert content(again)["a/c/25"] == b"theirs 25"
    assert content(again)["a/c/3"] == b"ours"


@pytest.mark.parametrize("verb", ["merge", "rebase", "revert"])
def test_a_kill_at_any_write_leaves_what_was_or_what_shall_be(
    repo: Repository, forked: Forked, strike: Strike, die: Callable[[], None], verb: str
) -> None:
    commit(repo, "ours", {"a/c/3": b"ours"})
    commit(repo, "theirs", {"a/c/4": b"theirs"}, "side")
    commit(repo, "theirs again", {"a/c/5": b"theirs"}, "side")
    write(repo, "side", {"a/c/6": b"work"})
    write(repo, "main", {"a/c/7": b"work"})
    begin = state(repo)
    repo.close()

    def body(at: int) -> None:
        inner = Repository.open(repo.location)
        strike(at, die)
        if verb == "merge":
            merge(inner, "side")
        elif verb == "rebase":
            rebase(inner, "side", onto="main")
        else:
            revert(inner, "main")

    at, died, branch = 0, True, "side" if verb == "rebase" else "main"
    while died:
        at += 1
        status = forked(functools.partial(body, at))
        assert status in (0, -signal.SIGKILL)
        died = status != 0
        again = Repository.open(repo.location)
        now = state(again)
        assert {**now, branch: begin[branch]} == begin
        if died and now == begin:
            assert content(again, branch).keys() <= {*BEGIN, "a/c/3", "a/c/4", "a/c/5"}
        else:
            assert now[branch].work != begin[branch].work
        assert again.verify(data=True).ok
        if now != begin:  # it was killed behind the move
            assert again.refs.log(branch)[-1].new == now[branch]
            again.refs.update(branch, expected=now[branch], new=begin[branch])
    assert at > 8


# -- against dicts ---------------------------------------------------------------------------------

KEYS = ["a/c/0", "a/c/1", "a/c/2", "b", "c/d"]
Edits: TypeAlias = "dict[str, bytes | None]"


def united(
    base: dict[str, bytes], ours: dict[str, bytes], theirs: dict[str, bytes]
) -> tuple[dict[str, bytes], set[str]]:
    """Return what a merge makes of dicts, and the keys that both changed."""
    out, twice = dict(ours), set()
    for key in base.keys() | ours.keys() | theirs.keys():
        was, mine, other = base.get(key), ours.get(key), theirs.get(key)
        if other in (was, mine):
            continue
        if mine != was:
            twice.add(key)
        elif other is None:
            del out[key]
        else:
            out[key] = other
    return out, twice


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("commit"),
            st.sampled_from(["main", "side"]),
            st.dictionaries(
                st.sampled_from(KEYS), st.sampled_from([None, b"x", b"y", b"z"]), min_size=1
            ),
        ),
        st.tuples(
            st.sampled_from(["merge", "pick", "revert", "rebase"]),
            st.sampled_from(["main", "side"]),
            st.sampled_from([None, "ours", "theirs"]),
        ),
    ),
    min_size=3,
    max_size=10,
)


@settings(max_examples=120)
@given(steps)
def test_branches_are_what_dicts_say(steps: list[tuple[str, str, Any]]) -> None:
    repo = Repository.memory()
    commit(repo, "begin", BEGIN)
    repo.create_branch("side")
    for verb, branch, what in steps:
        other = "side" if branch == "main" else "main"
        if verb == "commit":
            expected = {**content(repo, branch), **what}
            commit(repo, "some", what, branch)
            assert content(repo, branch) == {k: v for k, v in expected.items() if v is not None}
            continue
        source = tip(repo, other)
        before = state(repo)
        ours = content(repo, branch)
        after = content(repo, other)
        if verb == "merge":
            bases = merge_bases(repo, branch, other)
            if len(bases) > 1:
                continue  # what those have in common is theirs to say
            base = content(repo, bases[0])
            call = functools.partial(merge, repo, other, into=branch, resolve=what)
        elif verb == "rebase":
            with suppress(ConflictError):
                rebase(repo, branch, onto=other, resolve=what)
                assert merge(repo, other, into=branch).kind == "already"
            continue
        else:
            if len(source.parents) != 1:  # the first one makes the array
                continue
            base = content(repo, source.parents[0])
            if verb == "revert":
                base, after = after, base
            call = functools.partial(
                cherry_pick if verb == "pick" else revert, repo, other, into=branch, resolve=what
            )
        expected, twice = united(base, ours, after)
        if twice and what is None:
            with pytest.raises(ConflictError) as caught:
                call()
            assert {conflict.key for conflict in caught.value.conflicts} == twice
            assert state(repo) == before
            continue
        result = call()
        if what == "theirs":
            expected |= {key: after[key] for key in twice if key in after}
            expected = {key: v for key, v in expected.items() if key not in twice or key in after}
        assert content(repo, branch) == expected
        assert {conflict.key for conflict in result.resolved} == twice
        assert (result.kind == "already") == (state(repo) == before)
    assert repo.verify(data=True).ok
