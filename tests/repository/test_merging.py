"""Merges of the branches of whole repositories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from branches import BEGIN, commit, content, document, messages, state, tip, write

from cas_zarr.cid import format_cid
from cas_zarr.errors import (
    ConflictError,
    InvalidArgumentError,
    ReadOnlyError,
    VersionNotFoundError,
)
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.merging import MergeResult, cherry_pick, merge, rebase, revert
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import read_commit
from cas_zarr.tree.conflicts import Conflict


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Return a repository of one commit, with the branches main and side."""
    repository = Repository.open(tmp_path / "repo", create=True, author="Ada")
    commit(repository, "begin", BEGIN)
    repository.create_branch("side")
    return repository


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


def test_what_was_resolved_crosswise_in_two_ways_is_a_conflict_again(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/0": b"ours", "a/c/3": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs", "a/c/4": b"theirs"}, "side")
    before = state(repo)
    merge(repo, "side", resolve="ours")
    merge(repo, before["main"].commit, into="side", resolve="ours")  # type: ignore[arg-type]
    for into, other in (("main", "side"), ("side", "main")):
        with pytest.raises(ConflictError) as caught:
            merge(repo, other, into=into)
        (conflict,) = caught.value.conflicts
        assert conflict.key == "a/c/0"
    merge(repo, "side", resolve="theirs")
    assert content(repo) == content(repo, "side")


def test_what_was_resolved_crosswise_in_one_way_is_settled(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/0": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs"}, "side")
    before = state(repo)
    merge(repo, "side", resolve="ours")
    merge(repo, before["main"].commit, into="side", resolve="theirs")  # type: ignore[arg-type]
    commit(repo, "more", {"a/c/1": b"more"}, "side")
    merge(repo, "side")
    assert content(repo) == {**content(repo, "side"), "a/c/0": b"ours"}


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
    with pytest.raises(ConflictError, match=r"sha2-256; write one of them anew .* the other$"):
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


def test_a_conflict_says_what_can_resolve_it(repo: Repository) -> None:
    commit(repo, "ours", {"a/c/0": b"ours"})
    commit(repo, "theirs", {"a/c/0": b"theirs"}, "side")
    with pytest.raises(ConflictError, match=r"'ours', 'theirs' or a function of three arrays$"):
        merge(repo, "side")
    commit(repo, "ours", {"k": b"ours"})
    commit(repo, "theirs", {"k": b"theirs"}, "side")
    for resolve in (None, lambda *arrays: arrays[0]):
        with pytest.raises(ConflictError, match="function of three arrays is for chunks alone"):
            merge(repo, "side", resolve=resolve)


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
