"""Clones of some parts of a dataset; the rest is fetched when it is read."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from syncing import array, commit, contents, grid, held, reads

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.errors import (
    ConflictError,
    FormatError,
    InvalidArgumentError,
    InvalidKeyError,
    StorageError,
    VersionNotFoundError,
)
from cas_zarr.repository.gc import Collection, collect
from cas_zarr.repository.records import seal
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.remotes import (
    Remote,
    add_remote,
    get_remote,
    is_partial,
    list_remotes,
    local_blocks,
    remove_remote,
)
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.selection import Part, index_box, parse_part, part_blocks
from cas_zarr.repository.sync import clone, copy_tree, fetch, fetch_paths, pull, push
from cas_zarr.tree.walk import reachable

SIDE = 40  # chunks along each side: 1600 in an array, some leaf pages


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a repository of two commits and three arrays."""
    path = tmp_path_factory.mktemp("template") / "source"
    repo = Repository.open(path, create=True)
    values = grid("g/a", SIDE, 1) | grid("g/b", SIDE, 2) | grid("c", SIDE, 3)
    commit(repo, values | {"g/zarr.json": b"{}", "g/notes": b"plain"}, "one")
    commit(repo, {"g/a/c/0/0": b"news", "c/c/3/3": b"more"}, "two")
    repo.close()
    return path


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Repository:
    """Return a copy of the template."""
    shutil.copytree(template, tmp_path / "source")
    return Repository.open(tmp_path / "source")


def _here(repo: Repository, prefix: str, version: str = "main") -> int:
    """Return how many of the values below a prefix are here, without fetching one."""
    local = local_blocks(repo.blocks)
    mapping = repo.at(version)
    return sum(local.has(mapping.cid_of(key) or b"") for key in mapping.list_keys(prefix))


def _offline(source: Repository) -> Path:
    path = Path(source.location)
    return path.rename(path.with_name("away"))


# -- which blocks ---------------------------------------------------------------------------------


def test_parts_are_read_as_they_are_written() -> None:
    for text, part in {
        "": Part(""),
        "/g/a/": Part("g/a"),
        "a[0:10, :]": Part("a", ((0, 10), (None, None))),
        "a[3]": Part("a", ((3, 4),)),
        "a[-1,-4:-2]": Part("a", ((-1, None), (-4, -2))),
        "[1:2]": Part("", ((1, 2),)),
    }.items():
        assert parse_part(text) == part
        assert parse_part(str(part)) == part
        assert parse_part(part) is part
    for wrong in ("a[", "a[]", "a[1:2:3]", "a[x]", "a[1:2]b", "a[1]["):
        with pytest.raises(InvalidArgumentError, match="no part of a dataset"):
            parse_part(wrong)
    with pytest.raises(InvalidKeyError):
        parse_part("a/../b")
    with pytest.raises(InvalidArgumentError):
        parse_part(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slices", "box"),
    [
        ((), ((0, 4), (0, 5))),
        ((slice(0, 10),), ((0, 1), (0, 5))),
        ((slice(9, 11), slice(None)), ((0, 2), (0, 5))),
        ((slice(-1, None), 3), ((3, 4), (0, 1))),
        (((5, 5), (0, 1)), ((0, 0), (0, 1))),
        (((30, 99), -1), ((3, 4), (4, 5))),
        (((None, None), (4, 8)), ((0, 4), (0, 1))),
    ],
)
def test_the_chunks_that_hold_a_box_of_the_index(
    slices: tuple[slice, ...], box: tuple[tuple[int, int], ...]
) -> None:
    assert index_box((34, 50), (10, 12), slices) == box


def test_a_box_that_is_none_is_refused() -> None:
    for slices in ([slice(0, 4, 2)], [slice(0, 1)] * 3, ["x"], [(0.5, 2)]):
        with pytest.raises(InvalidArgumentError):
            index_box((34, 50), (10, 12), slices)  # type: ignore[arg-type]
    assert index_box((0, 5), (1, 0), ()) == ((0, 0), (0, 5))


def test_a_part_takes_just_its_blocks(source: Repository) -> None:
    root = source.resolve("main").root
    mapping = source.at("main")

    def values(prefix: str) -> set[CidBytes]:
        return {mapping.cid_of(key) or CidBytes(b"") for key in mapping.list_keys(prefix)}

    everything = {cid for _, cid in reachable(source.blocks, root)}
    assert set(part_blocks(source.blocks, root, [Part("")])) == everything
    one = set(part_blocks(source.blocks, root, [Part("g/a")]))
    assert one < everything
    assert values("g/a/c/") < one
    assert not values("g/b/c/") & one
    group = set(part_blocks(source.blocks, root, [Part("g")]))
    assert group == one | set(part_blocks(source.blocks, root, [Part("g/b")])) | (
        values("g/notes") & everything
    )
    box = set(part_blocks(source.blocks, root, [parse_part("g/a[0:4, 0:6]")]))
    wanted = {mapping.cid_of(f"g/a/c/{i}/{j}") for i in range(2) for j in range(3)}
    assert box & values("g/a/c/") == wanted
    assert box - values("g/a/c/") < one
    assert list(part_blocks(source.blocks, root, [Part("nothing/there")])) == [root]


def test_what_an_earlier_root_has_is_left_out(
    source: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = source.resolve("main~1").root, source.resolve("main").root
    parts = [parse_part(text) for text in ("g/a", "g/b", "c[0:8, 0:8]")]
    before = set(part_blocks(source.blocks, old, parts))
    with reads(monkeypatch, source.blocks) as seen:
        found = set(part_blocks(source.blocks, new, parts, since=old))
    assert set(part_blocks(source.blocks, new, parts)) <= found | before
    assert len(found - before) == 5  # the root, and a page and a chunk of both arrays
    assert len(found) < 30  # of 1600 chunks in each; those in the box are named anyway
    assert len(set(seen)) < 15


def test_one_path_is_no_sequence_of_letters(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", paths="g/a")
    record = get_remote(copy.refs, "origin")
    assert record is not None
    assert record.parts == (Part("g/a"),)
    assert _here(copy, "g/b/c/") == 0
    fetch_paths(copy, "g/b")
    assert _here(copy, "g/b/c/") == SIDE**2
    assert _here(copy, "c/c/") == 0
    target = Repository.memory()
    copied = copy_tree(source.blocks, target.blocks, source.resolve("main").root, parts="g/notes")
    assert copied.blocks < 3
    for wrong in (7, [7]):
        with pytest.raises(InvalidArgumentError, match="no path"):
            clone(source, tmp_path / "other", paths=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="no number of commits"):
        fetch(copy, depth="all")  # type: ignore[arg-type]


# -- clones ---------------------------------------------------------------------------------------


def test_only_the_parts_are_copied_and_the_rest_comes_when_it_is_read(
    source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a", "c[0:8, 0:8]"])
    assert is_partial(copy)
    assert not is_partial(source)
    assert get_remote(copy.refs, "origin") == Remote(
        "origin", source.location, (Part("g/a"), Part("c", ((0, 8), (0, 8))))
    )
    assert isinstance(copy.blocks, TieredBlocks)
    for version in ("main", "main~1"):
        assert _here(copy, "g/a/c/", version) == SIDE**2
    copy.close()

    copy = Repository.open(tmp_path / "copy")
    before = held(copy)
    with reads(monkeypatch, local_blocks(copy.blocks)):
        assert copy.at("main")["g/b/c/7/9"] == bytes([7, 9, 2, 0])
    assert len(held(copy) - before) <= 3  # a value and the pages on its way
    assert contents(copy) == contents(source)
    assert contents(copy, "main~1") == contents(source, "main~1")
    copy.close()
    _offline(source)
    assert contents(Repository.open(tmp_path / "copy", read_only=True))["c/c/3/3"] == b"more"


def test_offline_what_is_there_can_be_read_and_the_rest_names_its_place(
    source: Repository, tmp_path: Path
) -> None:
    everything = contents(source)
    clone(source, tmp_path / "copy", paths=["g/a", "c[0:8, 0:8]"]).close()
    away = _offline(source)
    copy = Repository.open(tmp_path / "copy")
    for version, changed in (("main", b"news"), ("main~1", bytes([0, 0, 1, 0]))):
        mapping = copy.at(version)
        assert mapping["g/a/c/0/0"] == changed
        keys = set(mapping.list_keys("g/a/"))
        assert keys == {key for key in everything if key.startswith("g/a/")}
        assert all(mapping[key] == everything[key] for key in keys - {"g/a/c/0/0"})
        assert mapping["c/c/1/2"] == everything["c/c/1/2"]
        assert mapping["c/zarr.json"] == everything["c/zarr.json"]
    with pytest.raises(StorageError) as caught:
        copy.at("main")["g/b/c/7/9"]
    assert source.location in str(caught.value)
    assert "reachable" in str(caught.value)
    commit(copy, {"g/a/c/1/1": b"work"}, "offline")  # and work goes on
    assert copy.at("main")["g/a/c/1/1"] == b"work"
    away.rename(source.location)
    assert copy.at("main")["g/b/c/7/9"] == everything["g/b/c/7/9"]


def test_pull_copies_the_parts_and_push_what_was_made(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    commit(source, {"g/a/c/5/5": b"them", "g/b/c/5/5": b"over"}, "theirs")
    commit(copy, {"g/a/c/6/6": b"ours"}, "ours")
    report = fetch(copy)
    assert report.commits == 1
    assert report.blocks <= 6
    assert _here(copy, "g/b/c/", "origin/main") == 0
    pull(copy)
    push(copy)
    assert source.at("main")["g/a/c/6/6"] == b"ours"
    assert source.at("main")["g/b/c/5/5"] == b"over"
    assert source.verify(data=True).ok
    other = Repository.open(tmp_path / "other", create=True)
    push(copy, other)  # which needs what is not here
    assert contents(other) == contents(source)
    assert other.verify(data=True).ok


def test_the_rest_can_be_fetched(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    with pytest.raises(ConflictError, match="fetch the rest first"):
        remove_remote(copy.refs, "origin")
    fetch_paths(copy, ["g/b[0:10, :]"])
    record = get_remote(copy.refs, "origin")
    assert record is not None
    assert record.parts == (Part("g/a"), parse_part("g/b[0:10, :]"))
    assert _here(copy, "g/b/c/", "main~1") == 5 * SIDE
    commit(source, {"g/b/c/2/2": b"more"}, "three")
    fetch(copy)
    assert _here(copy, "g/b/c/", "origin/main") == 5 * SIDE
    with copy.session() as session:
        session.prepare().set_value("mine/zarr.json", b"{}")
    copied = fetch_paths(copy)
    assert copied.blocks
    assert not is_partial(copy)
    copy.close()
    copy = Repository.open(tmp_path / "copy")
    assert not isinstance(copy.blocks, TieredBlocks)
    _offline(source)
    assert copy.verify(data=True).ok
    assert copy.at("origin/main")["g/b/c/2/2"] == b"more"
    remove_remote(copy.refs, "origin")
    assert (list_remotes(copy.refs), copy.refs.all_tracked()) == ([], [])
    with pytest.raises(VersionNotFoundError, match="remote 'origin'"):
        fetch_paths(copy)


def test_a_partial_clone_of_a_partial_clone(source: Repository, tmp_path: Path) -> None:
    one = clone(source, tmp_path / "one", paths=["g"])
    two = clone(one.location, tmp_path / "two", paths=["g/b"])
    assert contents(two) == contents(source)
    whole = clone(one.location, tmp_path / "whole")
    assert not is_partial(whole)
    _offline(source)
    assert whole.verify(data=True).ok


def test_what_was_left_behind_is_no_damage_and_nothing_to_collect(
    source: Repository, tmp_path: Path
) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    _offline(source)
    report = copy.verify(data=True)
    assert report.ok
    assert report.promised > 0
    before = held(copy)
    collect(copy, grace=timedelta(0))
    assert held(copy) == before


def test_a_path_of_no_array_and_a_box_of_a_group(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", paths=["not/there"])
    assert contents(copy) == contents(source)
    with pytest.raises(InvalidArgumentError, match="no array on a regular grid"):
        clone(source, tmp_path / "other", paths=["g[0:3]"])
    with pytest.raises(InvalidArgumentError, match="too many"):
        clone(source, tmp_path / "third", paths=["c[0:3, 0:3, 0:3]"])


def test_a_box_follows_the_array_through_its_versions(tmp_path: Path) -> None:
    source = Repository.open(tmp_path / "source", create=True)
    commit(source, {"a/zarr.json": array((4,), (2,)), "a/c/0": b"00", "a/c/1": b"11"}, "one")
    commit(source, {"a/zarr.json": array((8,), (4,)), "a/c/0": b"0000", "a/c/1": b"1111"}, "two")
    copy = clone(source, tmp_path / "copy", paths=["a[-1]"])
    assert _here(copy, "a/c/", "main") == _here(copy, "a/c/", "main~1") == 1
    _offline(source)
    assert copy.at("main")["a/c/1"] == b"1111"
    assert copy.at("main~1")["a/c/1"] == b"11"


def test_copying_parts_of_a_tree(source: Repository) -> None:
    target = Repository.memory()
    root = source.resolve("main").root
    copied = copy_tree(source.blocks, target.blocks, root, parts=["g/a[0:2, 0:2]"])
    assert copied.blocks == len(set(target.blocks.list()))
    again = copy_tree(source.blocks, target.blocks, root, parts=["g/a[0:2, 0:2]"])
    assert (again.blocks, again.size) == (0, 0)


# -- records --------------------------------------------------------------------------------------


def test_remotes_have_names(source: Repository, tmp_path: Path) -> None:
    repo = Repository.open(tmp_path / "repo", create=True)
    add_remote(repo.refs, "lab/store", source.location)
    with pytest.raises(ConflictError, match="'lab/store' exists"):
        add_remote(repo.refs, "lab/store", "elsewhere")
    assert fetch(repo, "lab/store").branches.keys() == {"main"}
    assert repo.refs.all_tracked() == ["lab/store/main"]
    assert repo.resolve("lab/store/main").commit == source.resolve("main").commit
    assert pull(repo, source.location).fetched.blocks == 0  # found by its location, too
    assert repo.refs.all_tracked() == ["lab/store/main"]
    remove_remote(repo.refs, "lab/store")
    with pytest.raises(VersionNotFoundError):
        repo.resolve("lab/store/main")
    with pytest.raises(VersionNotFoundError, match="remote 'lab"):
        remove_remote(repo.refs, "lab/store")
    for wrong in ("", "a b", "../x"):
        with pytest.raises(InvalidKeyError):
            add_remote(repo.refs, wrong, "somewhere")
    with pytest.raises(InvalidArgumentError):
        add_remote(repo.refs, "name", "")


def test_a_damaged_record_is_told_where_a_block_is_missing(
    source: Repository, tmp_path: Path
) -> None:
    clone(source, tmp_path / "copy", paths=["g/a"]).close()
    file = tmp_path / "copy" / "refs" / "remotes" / "origin"
    file.write_bytes(file.read_bytes().replace(b"cas-zarr/remote", b"cas-zarr/rumour"))
    copy = Repository.open(tmp_path / "copy")
    assert copy.at("main")["g/a/c/0/0"] == b"news"
    with pytest.raises(StorageError, match="record of remote 'origin'"):
        copy.at("main")["g/b/c/7/9"]
    with pytest.raises(FormatError, match="record of remote 'origin'"):
        is_partial(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "cas-zarr/rumour"},
        {"version": 2},
        {"version": True},
        {"location": 7},
        {"parts": ["a["]},
        {"parts": [7]},
        {"parts": "a"},
        {"more": 1},
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any]) -> None:
    sound = {"type": "cas-zarr/remote", "version": 1, "location": "x", "parts": ["a"]}
    assert Remote.from_block("origin", seal(sound)) == Remote("origin", "x", (Part("a"),))
    with pytest.raises(FormatError):
        Remote.from_block("origin", seal({**sound, **change}))
    for data in (b"{}", b"[]", b"nothing", seal(sound)[:-1]):
        with pytest.raises(FormatError):
            Remote.from_block("origin", data)


def test_the_local_blocks_of_a_whole_repository_are_its_blocks(source: Repository) -> None:
    blocks: BlockStore = source.blocks
    assert local_blocks(blocks) is blocks


# -- collections ----------------------------------------------------------------------------------

NONE = timedelta(0)


def _garbage(repo: Repository, values: dict[str, bytes | None]) -> None:
    """Leave blocks here that no ref leads to, and that are nowhere else."""
    repo.create_branch("gone")
    commit(repo, values, "gone", "gone")
    repo.delete_branch("gone")


def test_a_collection_of_a_partial_clone(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    commit(copy, {"g/a/c/1/1": b"mine", "g/b/c/1/1": b"too", "m/zarr.json": b"{}"}, "mine")
    _garbage(copy, {"g/a/c/2/2": b"g" * 5000, "n/c/0": b"h" * 5000})
    assert copy.at("main~1")["c/c/0/0"]  # is fetched, and used
    copy.blocks.flush()
    expected = contents(copy)
    used = held(copy)
    report = collect(copy, grace=NONE, log_age=NONE, max_unused=0)
    assert report.deleted_size > 10_000
    assert report.missing > 0
    assert held(copy) < used
    assert copy.verify(data=True).ok
    fresh = Repository.open(copy.location)
    away = _offline(source)
    mapping = fresh.at("main")
    assert [mapping[key] for key in ("g/a/c/1/1", "g/b/c/1/1", "m/zarr.json")] == [
        b"mine",
        b"too",
        b"{}",
    ]
    assert mapping["c/c/0/0"]
    assert _here(fresh, "g/a/c/") == SIDE**2
    assert collect(fresh, grace=NONE, log_age=NONE, max_unused=0).deleted_blocks == 0
    away.rename(source.location)
    assert contents(fresh) == expected


@pytest.mark.parametrize("grace", [NONE, timedelta(microseconds=1)])
def test_a_partial_clone_does_not_rely_on_what_was_collected(
    source: Repository, tmp_path: Path, grace: timedelta
) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    _garbage(copy, {"g/a/c/2/2": b"only here" * 50})
    session = Repository.open(copy.location).session()
    session.prepare().set_value("g/a/c/3/3", b"only here" * 50)
    for _ in range(2):
        collect(copy, grace=grace, log_age=NONE, max_unused=0)
    with pytest.raises(StorageError, match=r"older than the grace time.*discard"):
        session.commit("with garbage")
    session.discard()
    session.prepare().set_value("g/a/c/3/3", b"only here" * 50)
    session.commit("without")
    assert Repository.open(copy.location).at("main")["g/a/c/3/3"] == b"only here" * 50
    assert copy.verify(data=True).ok


def test_work_in_a_partial_clone_goes_on_beside_a_list_without_its_source(
    source: Repository, tmp_path: Path
) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    _garbage(copy, {"g/a/c/2/2": b"only here" * 50})
    assert collect(copy, log_age=NONE, max_unused=0).condemned_blocks
    _offline(source)
    copy = Repository.open(copy.location)
    with copy.session() as session:
        session.move("g/b", "moved")  # which was not fetched
        session.prepare().set_value("g/a/c/3/3", b"only here" * 50)
        session.commit("move")
    collect(copy, grace=NONE, log_age=NONE, max_unused=0)
    assert copy.at("main")["g/a/c/3/3"] == b"only here" * 50


def test_a_clone_that_becomes_whole_beside_a_collection(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    value = copy.at("main")["g/b/c/1/1"]
    copy.close()
    copy = clone(source, tmp_path / "other", paths=["g/a"])
    _garbage(copy, {"g/a/c/1/1": value})  # is here, and what leads to it is not
    other = Repository.open(copy.location)
    with Collection(other, log_age=NONE) as collection:
        collection.mark()
        collection.publish()
        collection.mark()
        fetch_paths(copy)
        collection.sweep(NONE)
    assert Repository.open(copy.location).verify(data=True).ok
    copy = clone(source, tmp_path / "third", paths=["g/a"])
    _garbage(copy, {"g/a/c/1/1": value})
    other = Repository.open(copy.location)
    with Collection(other, log_age=NONE) as collection:
        collection.mark()
        fetch_paths(copy)
        collection.publish()
        collection.mark()
        collection.sweep(NONE)
    assert Repository.open(copy.location).verify(data=True).ok


def test_a_branch_at_what_was_not_fetched(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    commit(source, {"g/b/c/0/0": b"3"}, "three")
    tip = commit(source, {"g/b/c/0/0": b"4"}, "four")
    copy.create_branch("b", tip)
    copy.close()
    commit(source, {"g/a/c/0/0": b"5"}, "five")
    copy = Repository.open(copy.location)
    assert not local_blocks(copy.blocks).has(copy.resolve("b").root)
    fetch(copy)
    assert copy.at("origin/main")["g/a/c/0/0"] == b"5"
    collect(copy, grace=NONE, log_age=NONE)
    assert copy.at("b")["g/b/c/0/0"] == b"4"
    assert len(list(copy.log("b"))) == 4
    fetch_paths(copy)
    _offline(source)
    assert Repository.open(copy.location).verify(data=True).ok


def test_what_only_the_log_leads_to_is_fetched_with_the_rest(
    source: Repository, tmp_path: Path
) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    lost = commit(source, {"g/b/c/3/3": b"lost"}, "to be lost")
    fetch(copy)
    copy.reset("main", "origin/main")
    source.reset("main", "main~1", force=True)
    commit(source, {"g/b/c/3/3": b"instead"}, "instead")
    fetch(copy)
    copy.reset("main", "origin/main", force=True)
    fetch_paths(copy)
    _offline(source)
    copy = Repository.open(copy.location)
    assert not is_partial(copy)
    assert contents(copy, lost)["g/b/c/3/3"] == b"lost"
    assert collect(copy, grace=NONE).missing == 0


def test_what_was_kept_is_fetched_with_the_rest(source: Repository, tmp_path: Path) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    with source.session() as session:
        session.prepare().set_value("g/b/c/3/3", b"work")
    assert session.root is not None
    mapping = copy.at(session.root)
    assert mapping["g/b/zarr.json"]
    name = copy.refs.keep("main", Branch(work=session.root))
    fetch_paths(copy)
    _offline(source)
    assert contents(Repository.open(copy.location), name)["g/b/c/3/3"] == b"work"


def test_a_remote_is_known_by_a_relative_path(
    source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = clone(source, tmp_path / "copy", paths=["g/a"])
    commit(source, {"g/b/c/3/3": b"more"}, "three")
    monkeypatch.chdir(tmp_path)
    fetch(copy, "source")
    assert copy.refs.all_tracked() == ["origin/main"]
    assert _here(copy, "g/b/c/", "origin/main") == 0
