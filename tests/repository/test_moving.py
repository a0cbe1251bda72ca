"""Branches and tags that are moved by hand: what they lead to, and what the log says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from histories import History

from cas_zarr.cid import format_cid
from cas_zarr.errors import (
    ConflictError,
    FormatError,
    InvalidArgumentError,
    InvalidKeyError,
    ReadOnlyError,
    VersionNotFoundError,
)
from cas_zarr.repository import history
from cas_zarr.repository.moving import guarded
from cas_zarr.repository.refs import Branch, GuardError
from cas_zarr.repository.repository import Repository


@pytest.fixture(params=["memory", "folder"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    """Return a history of a, b, c on main, with x beside it on no branch."""
    folder = None if request.param == "memory" else Repository.open(tmp_path / "r", create=True)
    made = History(folder)
    made.commit("a")
    made.commit("b", "a")
    made.commit("c", "b")
    made.commit("x", "a")
    for name in "abc":
        made.branch("main", name)
    return made


def shown(made: History, branch: str = "main") -> tuple[str, bytes]:
    record = made.repository.refs.branch(branch)
    assert record is not None
    assert record.commit is not None
    session = made.repository.session(branch)
    return made.names([record.commit]), bytes(session.mapping["n"])


def last(made: History) -> tuple[str, str]:
    move = made.repository.refs.log()[-1]
    return move.ref, move.why


@pytest.mark.parametrize("lost", ["b", "c"])
@pytest.mark.parametrize("work", [True, False])
def test_a_branch_is_reset_from_a_commit_that_is_lost(made: History, lost: str, work: bool) -> None:
    repo = made.repository
    record = repo.refs.branch("main")
    assert record is not None
    if not work:
        repo.refs.update("main", expected=record, new=Branch(record.commit))
    repo.blocks.delete(made.cids[lost])
    history.reset(repo, "main", made.cids["a"], force=True)
    assert shown(made) == ("a", b"a")


def test_a_branch_is_reset(made: History) -> None:
    repo = made.repository
    assert history.reset(repo, "main", "main~1") == repo.refs.branch("main")
    assert shown(made) == ("b", b"b")
    assert last(made) == ("heads/main", "reset: to main~1")
    history.reset(repo, "main", "main@{1}")
    assert shown(made) == ("c", b"c")
    history.reset(repo, "main", made.cids["x"])  # what no ref leads to
    assert shown(made) == ("x", b"x")
    assert last(made) == ("heads/main", f"reset: to {format_cid(made.cids['x'])}")
    history.move_branch(repo, "main", made.cids["c"], why="as it was")
    assert last(made) == ("heads/main", "as it was")
    count = len(repo.refs.log())
    assert history.reset(repo, "main", "main") == repo.refs.branch("main")
    assert len(repo.refs.log()) == count  # it was there already
    with pytest.raises(VersionNotFoundError, match="no branch 'mian'"):
        history.reset(repo, "mian", "main")
    with pytest.raises(VersionNotFoundError):
        history.reset(repo, "main", "nothing")


def test_work_that_no_commit_has_is_not_dropped_unasked(made: History) -> None:
    repo = made.repository
    session = repo.session()
    session.prepare().set_value("n", b"work")
    work = session.flush()
    before = repo.refs.branch("main")
    for version in ("main", "main~1"):
        with pytest.raises(ConflictError, match=f"root {format_cid(work)}; commit it first"):
            history.reset(repo, "main", version)
    assert repo.refs.branch("main") == before
    history.reset(repo, "main", "main", force=True)
    assert shown(made) == ("c", b"c")
    move = repo.refs.log()[-1]
    assert (move.old, move.why) == (before, "reset: to main")
    # and it comes back from the log
    assert isinstance(move.old, Branch)
    assert move.old.work is not None
    history.reset(repo, "main", move.old.work)
    assert shown(made) == ("c", b"work")
    with pytest.raises(ConflictError, match="commit it first"):
        history.reset(repo, "main", repo.resolve("main~1").root)
    history.reset(repo, "main", move.old.work)  # which is what it shows


def test_a_branch_without_a_commit_is_reset(made: History) -> None:
    repo = made.repository
    repo.create_branch("empty", None)
    history.reset(repo, "empty", "main~1")
    assert shown(made, "empty") == ("b", b"b")
    repo.create_branch("work", repo.resolve("main").root)
    with pytest.raises(ConflictError, match="commit it first"):
        history.reset(repo, "work", "main~1")
    assert history.reset(repo, "work", "main") == repo.refs.branch("work")
    assert shown(made, "work") == ("c", b"c")


def test_a_damaged_branch_is_set_again_by_force(tmp_path: Path) -> None:
    made = History(Repository.open(tmp_path / "r", create=True))
    made.commit("a")
    made.branch("main", "a")
    file = tmp_path / "r" / "refs" / "heads" / "main"
    good = file.read_bytes()
    file.write_bytes(good[:-5])
    with pytest.raises(FormatError, match="damaged"):
        history.reset(made.repository, "main", made.cids["a"])
    history.reset(made.repository, "main", made.cids["a"], force=True)
    assert shown(made) == ("a", b"a")
    assert file.read_bytes() == Branch(made.cids["a"], made.root({"n": b"a"})).to_block()
    with pytest.raises(ConflictError, match="not damaged"):
        made.repository.refs.overwrite_damaged("main", Branch(), why="")


def test_a_branch_is_renamed(made: History) -> None:
    repo = made.repository
    record = repo.refs.branch("main")
    assert history.rename_branch(repo, "main", "trunk/new") == record
    assert "main" not in repo.refs.branches()
    assert shown(made, "trunk/new") == ("c", b"c")
    assert [move.why for move in repo.refs.log()[-2:]] == ["rename: main is trunk/new now"] * 2
    history.rename_branch(repo, "trunk/new", "main")
    repo.create_branch("other", "main~1")
    with pytest.raises(ConflictError, match="'other' exists already"):
        history.rename_branch(repo, "main", "other")
    with pytest.raises(ConflictError, match="'main' exists already"):
        history.rename_branch(repo, "main", "main")
    with pytest.raises(VersionNotFoundError, match="did you mean 'main'"):
        history.rename_branch(repo, "mian", "x")
    for odd in ("a b", "main/x"):
        with pytest.raises(InvalidKeyError):
            history.rename_branch(repo, "main", odd)
    assert shown(made) == ("c", b"c")
    assert shown(made, "other") == ("b", b"b")


def between(made: History, name: str, act: Callable[[], object]) -> None:
    """Let `act` happen once, right before branch `name` is next deleted."""
    refs = made.repository.refs
    swap = refs._swap

    def meddle(path: str, old: bytes | None, new: bytes | None, **more: object) -> bool:
        if path == f"heads/{name}" and new is None:
            refs._swap = swap  # type: ignore[method-assign]
            act()
        return swap(path, old, new, **more)  # type: ignore[arg-type]

    refs._swap = meddle  # type: ignore[method-assign]


def test_what_a_writer_adds_during_a_renaming_comes_along(made: History) -> None:
    between(made, "main", lambda: made.branch("main", "x"))
    history.rename_branch(made.repository, "main", "new")
    assert shown(made, "new") == ("x", b"x")
    assert "main" not in made.repository.refs.branches()


def test_a_branch_that_is_deleted_during_a_renaming_stays_deleted(made: History) -> None:
    between(made, "main", lambda: made.repository.delete_branch("main"))
    with pytest.raises(ConflictError, match="gone"):
        history.rename_branch(made.repository, "main", "new")
    assert {"main", "new"}.isdisjoint(made.repository.refs.branches())


def test_a_tag_is_moved(made: History) -> None:
    repo = made.repository
    repo.create_tag("v1", "main~1")
    assert history.move_tag(repo, "v1", "main") == made.cids["c"]
    assert repo.resolve("v1").commit == made.cids["c"]
    assert last(made) == ("tags/v1", "move: to main")
    assert repo.resolve("v1@{1}").commit == made.cids["b"]
    history.move_tag(repo, "v1", made.cids["x"], why="that one")
    assert last(made) == ("tags/v1", "that one")
    count = len(repo.refs.log())
    history.move_tag(repo, "v1", "v1")
    assert len(repo.refs.log()) == count
    with pytest.raises(VersionNotFoundError, match="no tag 'v2'"):
        history.move_tag(repo, "v2", "main")
    with pytest.raises(InvalidArgumentError, match="commit it first"):
        history.move_tag(repo, "v1", repo.resolve("main").root)


def test_a_read_only_repository_moves_nothing(tmp_path: Path) -> None:
    made = History(Repository.open(tmp_path / "r", create=True))
    made.commit("a")
    made.commit("b", "a")
    made.branch("main", "a")
    made.branch("main", "b")
    made.repository.create_tag("v", "main")
    other = Repository.open(tmp_path / "r", read_only=True)
    for call in (
        lambda: history.reset(other, "main", "main~1"),
        lambda: history.rename_branch(other, "main", "x"),
        lambda: history.move_tag(other, "v", "main~1"),
        lambda: history.expire(other, keep=1),
    ):
        with pytest.raises(ReadOnlyError):
            call()
    assert history.expire(other, keep=1, dry_run=True).kept == 1


def test_a_move_is_made_again_where_a_collection_went_on(made: History) -> None:
    repo = made.repository
    calls: list[bytes | None] = []

    def move(guard: bytes | None) -> str:
        calls.append(guard)
        if len(calls) < 3:
            raise GuardError("again")
        return "moved"

    assert guarded(repo, repo.resolve(made.cids["x"]), move) == "moved"
    assert len(calls) == 3


def test_what_was_collected_in_part_is_led_to_by_no_ref(tmp_path: Path) -> None:
    made = History(Repository.open(tmp_path / "r", create=True))
    made.commit("a")
    made.commit("b", "a")
    made.branch("main", "a")
    blocks = made.repository.blocks
    lost = made.repository.resolve(made.cids["b"]).root
    other = History(Repository.open(tmp_path / "other", create=True))
    for cid in (made.cids["a"], made.repository.resolve("main").root, made.cids["b"], lost):
        other.repository.blocks.put(cid, blocks.get(cid))
    other.cids = made.cids
    other.branch("main", "a")
    with pytest.raises(Exception, match="cannot be placed") as caught:  # its value is not there
        history.reset(other.repository, "main", made.cids["b"])
    assert caught.type.__name__ == "StorageError"
