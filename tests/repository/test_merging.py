"""Merge, cherry-pick, revert and rebase, on branches of whole repositories."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import (
    ConflictError,
    InvalidArgumentError,
    ReadOnlyError,
    StorageError,
    VersionNotFoundError,
)
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.history import merge_bases
from cas_zarr.repository.merging import MergeResult, cherry_pick, merge, rebase, revert
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import read_commit
from cas_zarr.tree.conflicts import Conflict

Forked = Callable[[Callable[[], object]], int]
Strike = Callable[[int, Callable[[], object]], list[str]]

ARRAY = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [40],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}],
    "attributes": {},
}


def document(**changes: Any) -> bytes:
    return json.dumps({**ARRAY, **changes}).encode()


BEGIN: dict[str, bytes | None] = {"a/zarr.json": document(), "a/c/0": b"0", "a/c/1": b"1"}


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Return a repository of one commit, with the branches main and side."""
    repository = Repository.open(tmp_path / "repo", create=True, author="Ada")
    commit(repository, "begin", BEGIN)
    repository.create_branch("side")
    return repository


def write(repo: Repository, branch: str, keys: dict[str, bytes | None]) -> None:
    session = repo.session(branch)
    for key, value in keys.items():
        if value is None:
            session.prepare().discard(key)
        else:
            session.prepare()[key] = value
    session.flush()


def commit(
    repo: Repository, message: str, keys: dict[str, bytes | None], branch: str = "main"
) -> CidBytes:
    write(repo, branch, keys)
    return repo.session(branch).commit(message)


def content(repo: Repository, version: Any = "main") -> dict[str, bytes]:
    mapping = repo.at(version)
    return {key: bytes(mapping[key]) for key in mapping}


def tip(repo: Repository, branch: str = "main") -> Commit:
    record = repo.refs.branch(branch)
    assert record is not None
    assert record.commit is not None
    return read_commit(repo.blocks, record.commit)


def messages(repo: Repository, branch: str = "main") -> list[str]:
    return [entry.commit.message for entry in repo.log(branch)]


def state(repo: Repository) -> dict[str, Branch]:
    return repo.branches()


# -- merge ----------------------------------------------------------------------------------------


def test_there_may_be_nothing_to_merge(repo: Repository) -> None:
    before = state(repo)
    for version in ("side", "main", "main~0"):
        result = merge(repo, version)
        assert result == MergeResult("already", before["main"].commit, before["main"].work)
    commit(repo, "more", {"a/c/2": b"2"})
    before = state(repo)
    assert merge(repo, "side").kind == "already"
    assert state(repo) == before


def test_a_branch_without_commits_of_its_own_just_moves(repo: Repository) -> None:
    cid = commit(repo, "more", {"a/c/2": b"2"}, "side")
    result = merge(repo, "side")
    assert (result.kind, result.commit, result.commits) == ("fast-forward", cid, ())
    assert state(repo)["main"] == state(repo)["side"]
    (move,) = [one for one in repo.refs.log("main") if one.why == "merge side"]
    assert move.new == state(repo)["main"]


def test_a_merge_commit_on_request(repo: Repository) -> None:
    old = state(repo)["main"].commit
    cid = commit(repo, "more", {"a/c/2": b"2"}, "side")
    result = merge(repo, "side", fast_forward=False, message="by hand", author="Bo", time=7)
    assert result.kind == "merge"
    assert tip(repo) == Commit(
        root=tip(repo, "side").root,
        parents=(old, cid),  # type: ignore[arg-type]
        message="by hand",
        author="Bo",
        time=7,
    )


def test_different_chunks_are_united(repo: Repository) -> None:
    ours = commit(repo, "ours", {"a/c/0": b"ours", "a/c/3": b"ours"})
    theirs = commit(repo, "theirs", {"a/c/1": None, "a/c/4": b"theirs", "b": b"key"}, "side")
    repo.create_branch("mirror", "side")
    result = merge(repo, "side", metadata={"k": 1})
    assert result.kind == "merge"
    assert result.commits == (result.commit,)
    assert tip(repo).parents == (ours, theirs)
    assert tip(repo).message == "merge side"
    assert tip(repo).author == "Ada"
    assert tip(repo).metadata == {"k": 1}
    assert content(repo) == {
        "a/zarr.json": document(),
        "a/c/0": b"ours",
        "a/c/3": b"ours",
        "a/c/4": b"theirs",
        "b": b"key",
    }
    assert state(repo)["main"] == Branch(result.commit, result.root)
    other = merge(repo, ours, into="mirror")
    assert other.root == result.root
    assert tip(repo, "mirror").message == f"merge {format_cid(ours)} into mirror"
    assert repo.verify().ok


def test_the_same_chunk_twice_is_a_conflict_and_nothing_moves(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/0": b"ours", "a/c/3": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs", "a/c/5": b"theirs"}, "side")
    before = state(repo)
    with pytest.raises(ConflictError, match="merging side conflicts with branch 'main'") as caught:
        merge(repo, "side")
    (conflict,) = caught.value.conflicts
    assert (conflict.path, conflict.kind, conflict.coordinates) == ("a", "chunk", (0,))
    values = [conflict.base, conflict.ours, conflict.theirs]
    assert [repo.blocks.get(value.cid) for value in values] == [b"0", b"ours", b"theirs"]
    assert state(repo) == before
    assert [move.why for move in repo.refs.log("main")][-1] == "commit: ours"


@pytest.mark.parametrize("side", ["ours", "theirs", "base"])
def test_a_side_may_win(repo: Repository, side: Any) -> None:
    commit(repo, "ours", {"a/c/0": b"ours", "a/c/3": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs", "a/c/5": b"theirs"}, "side")
    result = merge(repo, "side", resolve=side)
    assert [conflict.coordinates for conflict in result.resolved] == [(0,)]
    expected = {"ours": b"ours", "theirs": b"theirs", "base": b"0"}[side]
    assert content(repo)["a/c/0"] == expected
    assert content(repo)["a/c/3"] == b"ours"
    assert content(repo)["a/c/5"] == b"theirs"


def test_a_resolver_sees_each_conflict(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/0": b"ours", "a/c/1": None, "k": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs", "a/c/1": b"theirs", "k": b"theirs"}, "side")
    seen: list[tuple[str, Any]] = []

    def resolver(conflict: Conflict) -> Any:
        seen.append((conflict.kind, conflict.coordinates))
        return "ours" if conflict.coordinates == (1,) else conflict.theirs

    result = merge(repo, "side", resolver=resolver)
    assert sorted(seen, key=str) == [("chunk", (0,)), ("chunk", (1,)), ("key", None)]
    assert len(result.resolved) == 3
    assert content(repo)["a/c/0"] == content(repo)["k"] == b"theirs"
    assert "a/c/1" not in content(repo)


def test_two_ways_to_resolve_are_one_too_many(repo: Repository) -> None:
    with pytest.raises(InvalidArgumentError, match="not both"):
        merge(repo, "side", resolve="ours", resolver=lambda _: "ours")
    with pytest.raises(InvalidArgumentError, match="resolve is 'mine'"):
        merge(repo, "side", resolve="mine")  # type: ignore[arg-type]


def test_work_that_is_not_committed_is_carried_over(repo: Repository) -> None:
    write(repo, "main", {"a/c/7": b"work"})
    commit(repo, "theirs", {"a/c/5": b"theirs"}, "side")
    result = merge(repo, "side")
    assert result.kind == "fast-forward"
    assert "a/c/7" not in content(repo)
    assert content(repo)["a/c/5"] == b"theirs"
    shown = repo.session("main").mapping
    assert bytes(shown["a/c/7"]) == b"work"
    assert bytes(shown["a/c/5"]) == b"theirs"
    assert state(repo)["main"].work != result.root


def test_work_that_conflicts_stops_a_merge(repo: Repository) -> None:
    write(repo, "main", {"a/c/0": b"work"})
    commit(repo, "theirs", {"a/c/0": b"theirs"}, "side")
    before = state(repo)
    with pytest.raises(ConflictError, match="not committed and conflicts") as caught:
        merge(repo, "side", resolve="theirs")
    assert [conflict.coordinates for conflict in caught.value.conflicts] == [(0,)]
    assert state(repo) == before


def test_an_open_session_goes_on_behind_a_merge(repo: Repository) -> None:
    session = repo.session("main")
    session.prepare()["a/c/9"] = b"session"
    commit(repo, "theirs", {"a/c/5": b"theirs"}, "side")
    merged = merge(repo, "side")
    cid = session.commit("behind")
    assert read_commit(repo.blocks, cid).parents == (merged.commit,)
    assert content(repo)["a/c/5"] == b"theirs"
    assert content(repo)["a/c/9"] == b"session"


def test_datasets_without_a_common_commit(repo: Repository) -> None:
    repo.create_branch("other", None)
    commit(repo, "apart", {"z/zarr.json": document(), "z/c/0": b"z", **BEGIN}, "other")
    result = merge(repo, "other")
    assert result.kind == "merge"
    assert len(tip(repo).parents) == 2
    assert content(repo)["z/c/0"] == b"z"
    assert content(repo)["a/c/1"] == b"1"


def test_a_branch_without_a_commit_takes_what_it_is_given(repo: Repository) -> None:
    repo.create_branch("new", None)
    write(repo, "new", {"w": b"work"})
    result = merge(repo, "main", into="new", fast_forward=False)
    assert result.kind == "fast-forward"
    assert content(repo, "new") == content(repo)
    assert set(repo.session("new").mapping) == {*content(repo), "w"}


def test_branches_that_were_merged_both_ways(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/3": b"ours"})
    commit(repo, "theirs", {"a/c/4": b"theirs"}, "side")
    before = state(repo)
    merge(repo, "side")
    merge(repo, before["main"].commit, into="side")  # type: ignore[arg-type]
    commit(repo, "ours again", {"a/c/5": b"ours"})
    commit(repo, "theirs again", {"a/c/6": b"theirs"}, "side")
    assert merge(repo, "side").kind == "merge"
    assert {"a/c/3", "a/c/4", "a/c/5", "a/c/6"} <= set(content(repo))


def test_what_was_settled_crosswise_is_no_conflict(repo: Repository) -> None:
    """Either of the two common commits alone knows only one of the changes."""
    commit(repo, "ours", {"a/c/0": b"ours"})
    commit(repo, "theirs", {"a/c/1": b"theirs"}, "side")
    before = state(repo)
    merge(repo, "side")
    merge(repo, before["main"].commit, into="side")  # type: ignore[arg-type]
    commit(repo, "ours again", {"a/c/0": b"ours again"})
    commit(repo, "theirs again", {"a/c/1": b"theirs again"}, "side")
    merge(repo, "side")
    assert content(repo)["a/c/0"] == b"ours again"
    assert content(repo)["a/c/1"] == b"theirs again"


def test_histories_that_were_cut_before_they_meet_are_not_merged(repo: Repository) -> None:
    cid = commit(repo, "ours", {"a/c/0": None})
    commit(repo, "theirs", {"a/c/4": b"theirs"}, "side")
    repo.refs.set_shallow(frozenset(), frozenset([cid]))
    before = state(repo)
    for verb in (lambda: merge(repo, "side"), lambda: rebase(repo, "side", onto="main")):
        with pytest.raises(InvalidArgumentError, match="the history was cut there"):
            verb()
    assert state(repo) == before


def test_a_parent_that_is_not_there_is_told(repo: Repository) -> None:
    first = state(repo)["main"].commit
    assert first is not None
    cid = commit(repo, "ours", {"a/c/0": None})
    repo.refs.set_shallow(frozenset(), frozenset([cid]))
    repo.delete_branch("side")
    repo.blocks.delete(first)
    for verb in (cherry_pick, revert):
        with pytest.raises(VersionNotFoundError, match="the history was cut there"):
            verb(repo, "main")


def test_fields_of_metadata_are_merged_and_a_resize_beside_a_write_is_told(
    repo: Repository,
) -> None:
    commit(repo, "ours", {"a/zarr.json": document(shape=[60], attributes={"by": "us"})})
    other = document(attributes={"units": "K"})
    commit(repo, "theirs", {"a/zarr.json": other, "a/c/20": b"new"}, "side")
    result = merge(repo, "side")
    found = json.loads(content(repo)["a/zarr.json"])
    assert found["shape"] == [60]
    assert found["attributes"] == {"by": "us", "units": "K"}
    assert any("a" in note for note in result.notes)


def test_a_root_that_was_kept_can_be_merged(repo: Repository) -> None:
    one, two = repo.session("main"), repo.session("main")
    one.prepare()["a/c/0"] = b"one"
    two.prepare()["a/c/0"] = b"two"
    two.prepare()["a/c/8"] = b"two"
    one.commit("one")
    with pytest.raises(ConflictError):
        two.commit("two")
    (name,) = repo.refs.all_kept()
    with pytest.raises(ConflictError):
        merge(repo, name)
    old = state(repo)["main"].commit
    result = merge(repo, name, resolve="theirs", message="theirs after all")
    assert result.kind == "merge"
    assert tip(repo).parents == (old,)
    assert content(repo)["a/c/0"] == content(repo)["a/c/8"] == b"two"


def test_what_cannot_be_merged(repo: Repository) -> None:
    before = state(repo)
    with pytest.raises(VersionNotFoundError):
        merge(repo, "sid")
    with pytest.raises(VersionNotFoundError):
        merge(repo, "side", into="mian")
    root = format_cid(tip(repo).root)
    with pytest.raises(InvalidArgumentError, match="is a root and has no history"):
        merge(repo, root)
    with pytest.raises(ReadOnlyError):
        merge(Repository.open(repo.location, read_only=True), "side")
    assert state(repo) == before


def test_a_merge_of_another_hash_is_refused(repo: Repository, tmp_path: Path) -> None:
    other = Repository.open(tmp_path / "other", create=True, hash="sha2-256")
    commit(other, "other", {"b": b"other"})
    record = other.refs.branch("main")
    assert record is not None
    for cid in other.blocks.list():
        data = other.blocks.get(cid)
        for known in (record.commit, record.work):
            if known is not None and known[-32:] == cid[-32:]:
                repo.blocks.put(known, data)
        repo.blocks.put(cid, data)
    with pytest.raises(ConflictError, match="sha2-256"):
        merge(repo, record.commit)  # type: ignore[arg-type]


def test_a_branch_that_moves_meanwhile_is_merged_anew(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/0": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs"}, "side")
    turns = []

    def resolver(conflict: Conflict) -> Any:  # noqa: ARG001
        turns.append(1)
        if len(turns) < 3:
            commit(repo, f"between {len(turns)}", {f"a/c/1{len(turns)}": b"x"})
        return "theirs"

    merge(repo, "side", resolver=resolver)
    assert len(turns) == 3
    assert sorted(messages(repo)) == sorted(
        ["merge side", "between 1", "between 2", "theirs", "ours", "begin"]
    )
    assert {"a/c/11", "a/c/12"} <= set(content(repo))


# -- functions of arrays ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_a_function_makes_one_chunk_of_three(tmp_path: Path, version: int) -> None:
    zarr = pytest.importorskip("zarr", minversion="3.1")
    from cas_zarr.store import CASStore

    repo = Repository.open(tmp_path / "repo", create=True)
    options: Any = {"shape": (7, 6), "chunks": (3, 4), "dtype": ">f4", "fill_value": -1}
    store = CASStore(repo)
    array = zarr.create_array(store=store, name="a", zarr_format=version, **options)
    array[:3] = 0
    store.commit("begin")
    repo.create_branch("side")
    ours = CASStore(repo)
    zarr.open_array(ours, path="a", mode="r+")[:, :] = 2
    ours.commit("ours")
    theirs = CASStore(repo, branch="side")
    zarr.open_array(theirs, path="a", mode="r+")[:, 4:] = 10
    theirs.commit("theirs")
    seen = {}

    def mean(base: Any, ours: Any, theirs: Any) -> Any:
        seen[base.shape, float(base.flat[0])] = ours.dtype
        assert base.shape == ours.shape == theirs.shape
        base[...] = 99  # arrays are one's own
        return (ours + theirs) / 2

    result = merge(repo, "side", resolve=mean)
    assert len(result.resolved) == 3
    assert set(seen) == {((3, 2), 0.0), ((3, 2), -1.0), ((1, 2), -1.0)}
    found = zarr.open_array(CASStore(repo, version="main"), path="a", mode="r")[...]
    expected = np.full((7, 6), 2.0)
    expected[:, 4:] = 6
    np.testing.assert_array_equal(found, expected)
    assert repo.verify(data=True).ok


def test_a_function_that_gives_the_fill_value_takes_the_chunk_away(repo: Repository) -> None:
    pytest.importorskip("zarr", minversion="3.1")
    commit(repo, "ours", {"a/c/0": b"\x01"})
    commit(repo, "theirs", {"a/c/0": b"\x02"}, "side")
    merge(repo, "side", resolve=lambda base, ours, theirs: 0 * (base + ours + theirs))
    assert "a/c/0" not in content(repo)


def test_what_is_no_chunk_stays_a_conflict(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/0": b"\x01", "k": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"\x02", "k": b"theirs"}, "side")
    before = state(repo)

    def function(*_: Any) -> Any:
        raise AssertionError("this cannot resolve all, and is not called")

    with pytest.raises(ConflictError) as caught:
        merge(repo, "side", resolve=function)
    assert {conflict.kind for conflict in caught.value.conflicts} == {"chunk", "key"}
    assert state(repo) == before


def test_an_array_that_was_resized_on_one_side(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3.1")
    from cas_zarr.store import CASStore

    repo = Repository.open(tmp_path / "repo", create=True)
    store = CASStore(repo)
    zarr.create_array(store=store, name="a", shape=(5,), chunks=(4,), dtype="i4")[...] = 1
    store.commit("begin")
    repo.create_branch("side")
    ours = CASStore(repo)
    array = zarr.open_array(ours, path="a", mode="r+")
    array.resize((8,))
    array[4:] = 5
    ours.commit("longer")
    theirs = CASStore(repo, branch="side")
    zarr.open_array(theirs, path="a", mode="r+")[4:] = 9
    theirs.commit("theirs")
    shapes = []

    def larger(base: Any, ours: Any, theirs: Any) -> Any:
        shapes.append((base.shape, ours.shape, theirs.shape))
        return np.maximum(ours, theirs)

    result = merge(repo, "side", resolve=larger)
    assert shapes == [((4,), (4,), (4,))]
    assert result.notes
    found = zarr.open_array(CASStore(repo, version="main"), path="a", mode="r")[...]
    np.testing.assert_array_equal(found, [1, 1, 1, 1, 9, 5, 5, 5])


def test_an_array_that_had_another_grid_before(repo: Repository) -> None:
    pytest.importorskip("zarr", minversion="3.1")
    grid = {"name": "regular", "configuration": {"chunk_shape": [4]}}
    for branch, value in (("main", b"\x01\x02\x03\x04"), ("side", b"\x05\x01\x01\x01")):
        keys = {"a/zarr.json": document(chunk_grid=grid), "a/c/0": value, "a/c/1": None}
        commit(repo, branch, keys, branch)
    seen = []

    def larger(base: Any, ours: Any, theirs: Any) -> Any:
        seen.append(base.tolist())
        base += 1  # the arrays are the function's own
        return np.maximum(ours, theirs)

    merge(repo, "side", resolve=larger)
    assert seen == [[0, 0, 0, 0]]
    assert content(repo)["a/c/0"] == b"\x05\x02\x03\x04"


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
