"""Repositories: opening, version expressions, branches, tags, log."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    RAW,
    CidBytes,
    cid_of,
    codec_of,
    format_cid,
    hash_of,
    to_cid,
)
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    ConflictError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    InvalidKeyError,
    ReadOnlyError,
    RepositoryNotFoundError,
    VersionNotFoundError,
)
from cas_zarr.repository import versions
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.refs import Branch, RefMove
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import Commits, parents_of, split_place


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with commits 0 to 3 on main, 1 tagged, and other branched off 2."""
    repository = Repository.open(tmp_path / "repo", create=True)
    session = repository.session()
    for number in range(4):
        session.prepare().set_value("n", b"%d" % number)
        session.commit(f"commit {number}", time=number)
    repository.create_tag("v1", "main~2")
    repository.create_branch("other", "main~1")
    return repository


def value(repository: Repository, version: object) -> bytes:
    return bytes(repository.at(version)["n"])  # type: ignore[arg-type]


def test_a_branch_with_work_is_not_deleted_unless_forced(repository: Repository) -> None:
    session = repository.session("other")
    session.prepare().set_value("n", b"not committed")
    work = session.flush()
    with pytest.raises(ConflictError, match="has work that no commit has"):
        repository.delete_branch("other")
    assert "other" in repository.branches()
    repository.delete_branch("other", force=True)
    assert "other" not in repository.branches()
    last = repository.reflog("other")[-1]
    assert isinstance(last.old, Branch)
    assert last.old.work == work
    repository.create_branch("again", "other@{1}")
    repository.delete_branch("again")


def test_short_cids(repository: Repository) -> None:
    session = repository.session()
    session.prepare().set_value("n", b"not committed")
    work = session.flush()
    repository.refs.track("origin/x", expected=None, new=repository.refs.tag("v1"))
    for version, expected in {"main": b"3", "other": b"2", "v1": b"1", "main~3": b"0"}.items():
        found = repository.resolve(version)
        assert found.commit is not None
        for cid in (found.commit, found.root):
            for length in (12, 16, 58):
                assert value(repository, format_cid(cid)[:length]) == expected
    short = format_cid(repository.resolve("main").commit)[:16]
    assert value(repository, f"{short}~2") == b"1"
    assert repository.resolve(short).name == short
    assert value(repository, format_cid(work)[:16]) == b"not committed"
    for unknown in (short[:11], short[:15] + "1", "b" * 20):
        with pytest.raises(VersionNotFoundError, match="there is no version"):
            repository.resolve(unknown)
    repository.create_branch(short, "v1")  # a name comes first
    assert value(repository, short) == b"1"


def test_a_short_cid_of_two_is_refused(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_is_short_cid", re.compile("bafyr4i").fullmatch)
    with pytest.raises(InvalidArgumentError, match=r"'bafyr4i' stands for .* and .* write more"):
        repository.resolve("bafyr4i")


def test_expressions(repository: Repository) -> None:
    assert value(repository, "main") == b"3"
    assert value(repository, "main~") == b"2"
    assert value(repository, "main~0") == b"3"
    assert value(repository, "main~3") == b"0"
    assert value(repository, "main~1~1") == b"1"
    assert value(repository, "main^~") == b"1"
    assert value(repository, "main^1") == b"2"
    assert value(repository, "v1") == b"1"
    assert value(repository, "v1~1") == b"0"
    assert value(repository, "other") == b"2"
    found = repository.resolve("v1")
    assert found.commit is not None
    for version in (format_cid(found.commit), found.commit, to_cid(found.commit)):
        assert repository.resolve(version).root == found.root
        assert repository.resolve(version).commit == found.commit
    for version in (format_cid(found.root), found.root, to_cid(found.root)):
        assert repository.resolve(version).root == found.root
        assert repository.resolve(version).commit is None
    assert value(repository, format_cid(found.commit) + "~1") == b"0"


def test_a_tag_comes_before_a_branch(repository: Repository) -> None:
    repository.create_branch("v1", "main")
    assert value(repository, "v1") == b"1"


def test_a_merge_has_more_parents(repository: Repository) -> None:
    one, two = repository.resolve("main"), repository.resolve("v1")
    assert one.commit is not None
    assert two.commit is not None
    cid, data = Commit(root=one.root, parents=(one.commit, two.commit), time=9).to_block()
    repository.blocks.put(cid, data)
    repository.blocks.flush()
    name = format_cid(cid)
    assert value(repository, f"{name}^1") == b"3"
    assert value(repository, f"{name}^2") == b"1"
    assert value(repository, f"{name}^2~1") == b"0"
    with pytest.raises(VersionNotFoundError, match="has 2 parents"):
        repository.resolve(f"{name}^3")
    log = [entry.cid for entry in repository.log(name)]
    assert log == [cid, *(entry.cid for entry in repository.log("main"))]


def test_versions_that_are_not_there(repository: Repository) -> None:
    with pytest.raises(VersionNotFoundError, match="did you mean 'main'"):
        repository.resolve("mian")
    with pytest.raises(VersionNotFoundError, match="there are 'v1', 'main', 'other'"):
        repository.resolve("zzz")
    with pytest.raises(VersionNotFoundError, match="begins with commit"):
        repository.resolve("main~4")
    with pytest.raises(VersionNotFoundError, match="has 1 parents"):
        repository.resolve("main^2")
    with pytest.raises(VersionNotFoundError, match="begins with commit"):
        repository.resolve("main~999999")
    with pytest.raises(VersionNotFoundError, match="commit b"):
        repository.resolve(cid_of(DAG_CBOR, BLAKE3, b"absent"))
    with pytest.raises(VersionNotFoundError, match="root b"):
        repository.resolve(cid_of(DAG_JSON, BLAKE3, b"absent"))
    with pytest.raises(VersionNotFoundError, match="conflicts/main/x"):
        repository.resolve("conflicts/main/x")
    repository.create_branch("empty", None)
    with pytest.raises(VersionNotFoundError, match="no commit yet"):
        repository.resolve("empty")


@pytest.mark.parametrize("version", ["", "~1", "^", "main~x", "main~1x", "main~~x", "main~9999999"])
def test_expressions_that_are_none(repository: Repository, version: str) -> None:
    with pytest.raises(InvalidArgumentError):
        repository.resolve(version)


# -- times, the log of refs, places, cut histories ------------------------------------------------


def micros(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1_000_000)


@pytest.fixture
def dated() -> Repository:
    """Return a repository with a commit on main at noon and at 12:00:30 of the first three days."""
    repository = Repository.memory()
    session = repository.session()
    for day in (1, 2, 3):
        for time in ("12:00:00.000000", "12:00:30.250000"):
            session.prepare().set_value("n", f"{day} {time[6:8]}".encode())
            session.commit("", time=micros(f"2026-01-0{day}T{time}+00:00"))
    return repository


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-01-01", b"1 30"),
        ("2026-01-02", b"2 30"),
        ("2026-01-03", b"3 30"),
        ("2030-12-31", b"3 30"),
        ("9999-12-31", b"3 30"),
        ("2026-01-02T11:59", b"1 30"),
        ("2026-01-02T12:00", b"2 30"),
        ("2026-01-02T12:00Z", b"2 30"),
        ("2026-01-02T12:00:00", b"2 00"),
        ("2026-01-02T12:00:29", b"2 00"),
        ("2026-01-02T12:00:30", b"2 30"),
        ("2026-01-02T12:00:30.25", b"2 30"),
        ("2026-01-02T12:00:30.249999", b"2 00"),
        ("2026-01-02T13:00:30.249999+01:00", b"2 00"),
        ("2026-01-02T00:30-12:00", b"2 30"),
    ],
)
def test_a_version_at_a_time(dated: Repository, time: str, expected: bytes) -> None:
    assert value(dated, f"main@{time}") == expected
    tip = dated.resolve("main").commit
    assert tip is not None
    assert value(dated, f"{format_cid(tip)}@{time}") == expected
    found = dated.resolve(f"main@{time}")
    assert found.name == f"main@{time}"
    assert found.commit is not None


def test_times_and_steps_can_be_mixed(dated: Repository) -> None:
    assert value(dated, "main@2026-01-02~1") == b"2 00"
    assert value(dated, "main~3@2026-01-02T12:00") == b"2 00"
    assert value(dated, "main@2026-01-03@2026-01-01") == b"1 30"


def test_a_time_goes_by_what_a_branch_was_itself() -> None:
    repository = Repository.memory()
    session = repository.session()
    session.prepare().set_value("n", b"base")
    base = session.commit("", time=0)
    session.prepare().set_value("n", b"side")
    root = session.flush()

    def commit(time: int, *parents: CidBytes) -> CidBytes:
        cid, data = Commit(root=root, parents=parents, time=time).to_block()
        repository.blocks.put(cid, data)
        return cid

    side = commit(micros("2026-01-05T00:00+00:00"), base)
    merged = commit(micros("2026-01-09T00:00+00:00"), base, side)
    assert repository.resolve(f"{format_cid(merged)}@2026-01-06").commit == base
    # a clock that went wrong hides nothing
    skewed = commit(micros("2026-01-01T00:00+00:00"), merged)
    assert repository.resolve(f"{format_cid(skewed)}@2026-01-06").commit == skewed


def test_times_that_cannot_be(dated: Repository) -> None:
    with pytest.raises(VersionNotFoundError, match=r"begins with commit \w+, of 2026-01-01T12:00"):
        dated.resolve("main@2025-12-31")
    for time in ("2026-02-30", "2026-13-01", "2026-01-01T25:00", "0000-01-01"):
        with pytest.raises(InvalidArgumentError, match="is no time"):
            dated.resolve(f"main@{time}")
    for time in ("yesterday", "2026-1-1", "2026-01-01T1", "", "2026-01-01T12:00:00.0000000"):
        with pytest.raises((VersionNotFoundError, InvalidArgumentError)):
            dated.resolve(f"main@{time}")
    root = format_cid(dated.resolve("main").root)
    with pytest.raises(InvalidArgumentError, match="no history"):
        dated.resolve(f"{root}@2026-01-01")


@pytest.mark.parametrize("name", ["a@2026-01-01", "@2026-01-01", "a@b", "@", "a@2026-01-01@b"])
def test_a_name_with_an_at_is_a_name(dated: Repository, name: str) -> None:
    dated.create_branch(name, "main~1")
    assert value(dated, name) == b"3 00"
    assert value(dated, f"{name}~1") == b"2 30"
    assert value(dated, f"{name}@2026-01-01") == b"1 30"
    assert value(dated, f"{name}@{{0}}") == b"3 00"
    dated.delete_branch(name)
    dated.create_tag(name, "main~2")
    assert value(dated, f"{name}@2026-01-01~") == b"1 00"


def test_what_a_ref_was_before(repository: Repository) -> None:
    for number in range(4):
        assert value(repository, f"main@{{{number}}}") == b"%d" % (3 - number)
    assert value(repository, "main@{1}~1") == b"1"
    with pytest.raises(VersionNotFoundError, match="was not there then"):
        repository.resolve("main@{4}")
    with pytest.raises(VersionNotFoundError, match="has 4 moves of 'main'"):
        repository.resolve("main@{5}")
    with pytest.raises(VersionNotFoundError, match="no branch 'mian'"):
        repository.resolve("mian@{1}")
    for odd in ("main~1@{1}", "@{1}", "main@2026-01-01@{1}"):
        with pytest.raises(InvalidArgumentError, match="no version"):
            repository.resolve(odd)
    assert repository.resolve("v1@{0}").commit == repository.resolve("v1").commit


def test_moves_are_those_of_what_the_name_means(repository: Repository) -> None:
    repository.create_tag("main", "main~2")  # a tag is tried before a branch
    assert value(repository, "main") == value(repository, "main@{0}") == b"1"
    with pytest.raises(VersionNotFoundError, match="was not there then"):
        repository.resolve("main@{1}")
    repository.delete_tag("main")
    assert value(repository, "main@{1}") == b"2"
    repository.delete_branch("main")
    assert value(repository, "main@{1}") in (b"1", b"3")


def test_commits_with_large_metadata_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "_MEMO_BYTES", 50_000)
    repository = Repository.memory()
    mapping = repository.session().prepare()
    root = mapping.flush()
    parents: tuple[CidBytes, ...] = ()
    for number in range(20):
        cid, data = Commit(
            root=root, parents=parents, time=number, metadata={"x": b"x" * 10_000}
        ).to_block()
        repository.blocks.put(cid, data)
        parents = (cid,)
    commits = Commits(repository.blocks, repository.refs)
    while parents:
        (cid,) = parents
        parents = commits.parents(cid)
        assert sum(len(each.metadata["x"]) for each in commits._memo.values()) <= 60_000


def test_a_deleted_branch_comes_back(repository: Repository) -> None:
    repository.delete_branch("main")
    with pytest.raises(VersionNotFoundError, match="was not there then"):
        repository.resolve("main@{0}")
    repository.create_branch("main", "main@{1}")
    assert value(repository, "main") == b"3"
    assert value(repository, "main@{2}") == b"3"
    assert value(repository, "main@{3}") == b"2"


def test_a_move_that_never_came_to_be_does_not_count(repository: Repository) -> None:
    tip = repository.refs.branch("main")
    never = Branch(commit=cid_of(DAG_CBOR, BLAKE3, b"never"))
    log = Path(repository.location) / "refs" / "log"
    with log.open("ab") as stream:
        stream.write(RefMove("heads/main", tip, never, 5).to_line())
    assert value(repository, "main@{1}") == b"2"
    session = repository.session()
    session.prepare().set_value("n", b"4")
    session.commit("4")
    assert [value(repository, f"main@{{{number}}}") for number in range(3)] == [b"4", b"3", b"2"]


def test_moves_that_are_missing_in_the_log(repository: Repository) -> None:
    log = Path(repository.location) / "refs" / "log"
    lines = [line for line in log.read_bytes().splitlines(keepends=True) if b"heads/main" in line]
    log.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert [value(repository, f"main@{{{number}}}") for number in range(4)] == [
        b"3",
        b"2",
        b"1",
        b"0",
    ]
    log.write_bytes(lines[0] + b"x" + lines[1])
    with pytest.raises(FormatError, match="line 2 of the log"):
        repository.resolve("main@{1}")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("main", ("main", "")),
        ("main:", ("main", "")),
        ("main:/", ("main", "")),
        ("main~2:group/array", ("main~2", "group/array")),
        ("main:/group/array/", ("main", "group/array")),
        ("main:a:b", ("main", "a:b")),
        ("main:a\nb", ("main", "a\nb")),
        ("main@2026-01-31:air", ("main@2026-01-31", "air")),
        ("main@2026-01-31T12:00:air", ("main@2026-01-31T12:00", "air")),
        ("main@2026-01-31T12:00", ("main@2026-01-31T12:00", "")),
        ("main@2026-01-31T12:00:30", ("main@2026-01-31T12:00:30", "")),
        ("main@2026-01-31T12:00+01:00:a", ("main@2026-01-31T12:00+01:00", "a")),
        ("main@2026-01-31T12:00~1:a", ("main@2026-01-31T12:00~1", "a")),
        ("main@{1}:a/b", ("main@{1}", "a/b")),
    ],
)
def test_places(text: str, place: tuple[str, str]) -> None:
    assert split_place(text) == place


@pytest.mark.parametrize("text", ["", ":", ":a"])
def test_places_without_a_version(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no place"):
        split_place(text)


def test_stepping_past_a_cut_says_so(repository: Repository) -> None:
    cut = repository.resolve("main~1").commit
    assert cut is not None
    repository.refs.set_shallow(frozenset(), {cut})
    assert value(repository, "main~1") == b"2"
    for version in ("main~2", "main~999", "main~1^1", "main@1969-12-31"):
        with pytest.raises(VersionNotFoundError, match=f"{format_cid(cut)}.*history was cut there"):
            repository.resolve(version)
    with pytest.raises(VersionNotFoundError, match="has 1 parents"):
        repository.resolve("main^2")
    assert parents_of(repository.blocks, repository.refs, cut) == ()
    assert value(repository, "v1~1") == b"0"  # what lies behind can still be named


@pytest.mark.parametrize("version", ["main" + "~1" * 3000, "@2026-01-01" * 300, "m" * 5000])
def test_expressions_that_are_long(repository: Repository, version: str) -> None:
    with pytest.raises((VersionNotFoundError, InvalidArgumentError)):
        repository.resolve(version)


@pytest.mark.parametrize("version", ["../x", "a b", ".git", "a\0", "x/"])
def test_names_that_no_ref_has(repository: Repository, version: str) -> None:
    with pytest.raises(VersionNotFoundError):
        repository.resolve(version)


def test_cids_that_are_no_version(repository: Repository) -> None:
    session = repository.session()
    session.prepare().set_value("raw", b"data")
    session.flush()
    with pytest.raises(InvalidArgumentError, match="cid of data"):
        repository.resolve(cid_of(RAW, BLAKE3, b"data"))
    page = cid_of(DAG_CBOR, BLAKE3, b"\xa0")
    repository.blocks.put(page, b"\xa0")
    with pytest.raises(FormatError, match="no commit"):
        repository.resolve(page)
    with pytest.raises(InvalidCIDError, match="cannot be verified"):
        repository.resolve(b"\x01\x71\x00\x02ab")
    root = format_cid(repository.resolve("main").root)
    with pytest.raises(InvalidArgumentError, match="no history"):
        repository.resolve(f"{root}~1")
    with pytest.raises(InvalidArgumentError, match="no history"):
        next(repository.log(root))


def test_the_log_follows_time_and_yields_each_once(repository: Repository) -> None:
    assert [entry.commit.message for entry in repository.log()] == [
        f"commit {number}" for number in (3, 2, 1, 0)
    ]
    assert [entry.commit.message for entry in repository.log("v1")] == ["commit 1", "commit 0"]


def test_a_missing_parent_is_named(repository: Repository) -> None:
    absent = cid_of(DAG_CBOR, BLAKE3, b"absent")
    cid, data = Commit(root=repository.resolve("main").root, parents=(absent,)).to_block()
    repository.blocks.put(cid, data)
    with pytest.raises(BlockNotFoundError, match=format_cid(absent)):
        list(repository.log(cid))


def test_branches_and_tags(repository: Repository) -> None:
    assert sorted(repository.branches()) == ["main", "other"]
    assert repository.tags() == {"v1": repository.resolve("main~2").commit}
    with pytest.raises(ConflictError):
        repository.create_branch("other", "main")
    with pytest.raises(ConflictError):
        repository.create_tag("v1", "main")
    with pytest.raises(InvalidKeyError):
        repository.create_branch("a..b")
    with pytest.raises(InvalidKeyError):
        repository.create_tag("a b")
    with pytest.raises(InvalidArgumentError, match="commit it first"):
        repository.create_tag("v2", repository.resolve("main").root)
    repository.create_branch("from-root", repository.resolve("v1").root)
    assert repository.refs.branch("from-root") == Branch(work=repository.resolve("v1").root)
    repository.delete_branch("other")
    repository.delete_tag("v1")
    assert sorted(repository.branches()) == ["from-root", "main"]
    assert repository.tags() == {}
    with pytest.raises(VersionNotFoundError, match="no branch 'other'"):
        repository.delete_branch("other")
    with pytest.raises(VersionNotFoundError, match="no tag 'v1'"):
        repository.delete_tag("v1")


def test_a_read_only_repository_changes_nothing(repository: Repository) -> None:
    other = Repository.open(repository.location, read_only=True)
    calls: list[Callable[[], object]] = [
        lambda: other.create_branch("x"),
        lambda: other.create_tag("x"),
        lambda: other.delete_branch("main"),
        lambda: other.delete_tag("v1"),
        lambda: other.session(),
        lambda: other.blocks.put(cid_of(RAW, BLAKE3, b"x"), b"x"),
    ]
    for call in calls:
        with pytest.raises(ReadOnlyError):
            call()
    assert value(other, "main") == b"3"


def test_opening(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError, match="create=True"):
        Repository.open(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    made = Repository.open(tmp_path / "a" / "b", create=True, hash="sha2-256")
    assert Repository.open(f"file://{tmp_path}/a/b").hash == "sha2-256"
    assert Repository.open(tmp_path / "a" / "b", create=True).hash == made.hash
    with pytest.raises(InvalidArgumentError, match="uses sha2-256"):
        Repository.open(tmp_path / "a" / "b", hash="blake3")
    with pytest.raises(InvalidArgumentError, match="md5"):
        Repository.open(tmp_path / "new", hash="md5", create=True)
    for odd in ("", "sftp://host/x", "ipfs://bafy", "a\0b", "file://elsewhere/x"):
        with pytest.raises(InvalidArgumentError):
            Repository.open(odd, create=True)
    (tmp_path / "file").write_text("x")
    for foreign in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CasZarrError):
            Repository.open(foreign, create=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "file"]


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session = Repository.prepare("repo").session()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    session.prepare().set_value("a", b"1")
    session.flush()
    assert (tmp_path / "repo" / "cas-zarr.json").exists()
    assert os.listdir(tmp_path / "elsewhere") == []


def test_the_hash_of_a_repository_is_in_all_it_writes(tmp_path: Path) -> None:
    repository = Repository.open(tmp_path / "repo", create=True, hash="sha2-256")
    session = repository.session()
    session.prepare().set_value("a", b"1")
    commit = session.commit("one")
    root = CidBytes(session.root or b"")
    assert {hash_of(cid).name for cid in (commit, root)} == {"sha2-256"}
    assert (codec_of(commit), codec_of(root)) == (DAG_CBOR, DAG_JSON)


def test_memory_goes_by_name() -> None:
    one = Repository.open("memory://shared", create=True)
    session = one.session()
    session.prepare().set_value("a", b"1")
    commit = session.commit("first")
    other = Repository.open("memory://shared", read_only=True)
    assert other.resolve("main").commit == commit
    with pytest.raises(ReadOnlyError):
        other.create_tag("x")
    with pytest.raises(InvalidArgumentError, match="uses blake3"):
        Repository.open("memory://shared", hash="sha2-256")
    assert Repository.memory().branches() == {}
    assert Repository.memory().location != Repository.memory().location
    del one, other, session
    assert Repository.open("memory://shared").branches() == {}
