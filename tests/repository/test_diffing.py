"""Comparing any two things of a repository: what is told, in which words, and what is opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cas_zarr.errors import InvalidArgumentError, NotFoundError, VersionNotFoundError
from cas_zarr.repository.diffing import index_boxes
from cas_zarr.repository.repository import Repository
from cas_zarr.store import CASStore


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Return a repository with an ocean of two arrays on one grid, committed and tagged."""
    with CASStore(tmp_path / "r") as store:
        ocean = zarr.open_group(store, mode="a").create_group("ocean")
        for name, offset in (("sst", 0), ("sss", 1)):
            array = ocean.create_array(name, shape=(10, 8), chunks=(4, 4), dtype="i4")
            array[:] = np.arange(80).reshape(10, 8) + offset
        store.commit("first")
    repo = Repository.open(tmp_path / "r")
    repo.create_tag("v1")
    return repo


def edited(repo: Repository, edit: Callable[[Any], object], message: str | None = "edit") -> None:
    """Change the dataset through zarr, and commit it if there is a message."""
    with CASStore(repo) as store:
        edit(zarr.open_group(store, mode="r+"))
        if message is not None:
            store.commit(message)


def test_a_changed_box_of_an_array_is_told_in_its_index(repo: Repository) -> None:
    def edit(group: Any) -> None:
        group["ocean/sst"][5, 0:8] = -1
        group["ocean/sst"][9, 7] = -2

    edited(repo, edit)
    (change,) = repo.diff("v1", "main")
    assert (change.path, change.status, change.kind) == ("ocean/sst", "changed", "array")
    assert (change.added, change.removed, change.modified) == (0, 0, 3)
    assert change.coordinates.tolist() == [[1, 0], [1, 1], [2, 1]]
    cells = np.zeros((10, 8), int)
    for box in change.boxes:
        cells[box] += 1
    assert cells[4:8].all()
    assert cells[8:10, 4:8].all()
    assert cells.sum() == 4 * 8 + 2 * 4  # disjoint, and nothing else
    assert change.fields == ()
    assert change.bytes_before > 0
    assert json.loads(json.dumps(change.as_json()))["chunks"]["modified"] == 3
    assert "3 chunks changed" in repr(change)


def test_without_versions_the_work_is_compared_with_the_newest_commit(repo: Repository) -> None:
    assert list(repo.diff()) == []
    edited(repo, lambda group: group["ocean"].attrs.update(title="x"), message=None)
    (change,) = repo.diff()
    assert (change.path, change.kind) == ("ocean", "group")
    (field,) = change.fields
    assert (field.document, field.path, field.after) == ("zarr.json", ("attributes", "title"), "x")
    assert [one.path for one in repo.diff("v1")] == ["ocean"]
    assert list(repo.diff("v1", "main")) == []


def test_before_the_first_commit_everything_is_added() -> None:
    repo = Repository.memory()
    with CASStore(repo) as store:
        zarr.open_group(store, mode="a").create_array("a", shape=(3,), chunks=(1,), dtype="i1")[
            :
        ] = 1
    changes = list(repo.diff())
    assert [(change.path, change.status) for change in changes] == [("", "added"), ("a", "added")]
    assert changes[1].added == 3
    assert changes[1].boxes == ((slice(0, 3),),)


def test_two_variables_of_one_dataset_are_compared(repo: Repository) -> None:
    (change,) = repo.diff("main:ocean/sst", "main:ocean/sss")
    assert (change.path, change.other) == ("ocean/sst", "ocean/sss")
    assert change.modified == 6
    assert change.boxes == ((slice(0, 10), slice(0, 8)),)
    assert change.as_json()["other"] == "ocean/sss"
    with CASStore(repo) as store:
        group = zarr.open_group(store, mode="r+")
        group["ocean/sss"][:] = group["ocean/sst"][:]
        store.commit("equal")
    assert list(repo.diff("main:ocean/sst", "main:ocean/sss")) == []
    assert repo.same("main:ocean/sst", "main:ocean/sss")


def test_a_subtree_can_be_compared_with_a_whole_dataset(repo: Repository) -> None:
    cid = repo.at("main").cid("ocean")
    with repo.session() as session:
        session.mapping.cid("ocean")  # makes it a block of its own
    assert list(repo.diff("main:ocean", cid)) == []
    edited(repo, lambda group: group["ocean/sst"].attrs.update(a=1))
    (change,) = repo.diff(cid, "main:ocean")
    assert (change.path, change.other) == ("sst", "ocean/sst")


def test_what_moved_is_told_as_one_change_and_not_opened(repo: Repository) -> None:
    with repo.session() as session:
        session.move("ocean", "sea")
        session.commit("rename")
    (change,) = repo.diff("v1", "main")
    assert (change.status, change.source, change.path) == ("moved", "ocean", "sea")
    assert change.chunks == ()
    assert "ocean moved to sea" in change.summary()
    assert {(one.path, one.status) for one in repo.diff("v1", "main", moves=False)} >= {
        ("ocean/sst", "removed"),
        ("sea/sst", "added"),
    }


def test_removed_arrays_and_a_resize(repo: Repository) -> None:
    def edit(group: Any) -> None:
        del group["ocean/sss"]
        group["ocean/sst"].resize((12, 8))
        group["ocean/sst"][10:] = 7

    edited(repo, edit)
    removed, resized = repo.diff("v1", "main")
    assert (removed.path, removed.status, removed.removed) == ("ocean/sss", "removed", 6)
    assert removed.bytes_before > removed.bytes_after == 0
    assert removed.shape == (10, 8)
    assert [field.path for field in resized.fields] == [("shape",)]
    assert resized.boxes == ((slice(8, 12), slice(0, 8)),)


def test_a_path_limits_the_comparison(repo: Repository) -> None:
    def edit(group: Any) -> None:
        group["ocean/sst"][0, 0] = 9
        group.attrs["a"] = 1

    edited(repo, edit)
    assert [one.path for one in repo.diff("v1", "main", "ocean")] == ["ocean/sst"]
    assert list(repo.diff("v1", "main", "ocean/sss")) == []
    with pytest.raises(NotFoundError, match="nowhere"):
        list(repo.diff("v1", "main", "nowhere"))


def test_repositories_are_compared_with_each_other(repo: Repository, tmp_path: Path) -> None:
    other = Repository.clone(repo, tmp_path / "other")
    assert list(repo.diff("main", "main", other=other)) == []
    edited(other, lambda group: group["ocean/sst"].__setitem__((0, 0), 9))
    (change,) = repo.diff("main", "main", other=other)
    assert change.modified == 1
    assert repo.same("v1", "main~1", other=other)
    assert not repo.same("main", "main", other=other)


def test_the_same_is_about_bits_and_not_about_names(repo: Repository) -> None:
    assert repo.same("main", "v1")
    assert not repo.same("main:ocean/sst", "main:ocean/sss")
    with pytest.raises(NotFoundError, match="ocean/nothing"):
        repo.same("main:ocean/nothing", "main:ocean/sst")
    other = Repository.memory(hash="sha2-256")
    with CASStore(other) as store:
        zarr.open_group(store, mode="a")
        store.commit("first")
    with pytest.raises(InvalidArgumentError, match="blake3 and the other of sha2-256"):
        repo.same("main", "main", other=other)


def test_bad_versions_are_refused(repo: Repository) -> None:
    with pytest.raises(VersionNotFoundError, match="did you mean 'main'"):
        list(repo.diff("mian", "main"))
    with pytest.raises(InvalidArgumentError, match="a is not"):
        list(repo.diff(None, "main"))


def test_chunks_outside_the_shape_keep_their_size() -> None:
    boxes = index_boxes(np.array([[0], [2], [5]]), (5,), (2,))
    assert boxes == ((slice(0, 2),), (slice(4, 5),), (slice(10, 12),))
    assert index_boxes(np.zeros((1, 0), np.int64), (), ()) == ((),)


@pytest.mark.parametrize("side", [2**31 - 1, 2**31, 2**40, 10**30])
def test_lengths_of_any_size_are_exact(side: int) -> None:
    """They are what a document claims; a box must be neither an overflow nor elsewhere."""
    last = 2**32 - 1
    (box,) = index_boxes(np.array([[last, 1]]), (side, 4), (side, 2))
    assert box == (slice(last * side, (last + 1) * side), slice(2, 4))
    (box,) = index_boxes(np.array([[1]]), (10**31,), (4,))
    assert box == (slice(4, 8),)
