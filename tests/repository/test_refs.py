"""Refs: compare-and-swap, names, damage."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from cas_zarr.blocks.objects import Objects
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, CidBytes, cid_of, format_cid
from cas_zarr.errors import (
    ConflictError,
    FormatError,
    InvalidKeyError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
)
from cas_zarr.repository.bucket import BucketRefs
from cas_zarr.repository.folder import FolderRefs, is_repository, make_folder, read_marker
from cas_zarr.repository.refs import Branch, MemoryRefs, Refs, Tag


def commit_cid(number: int) -> CidBytes:
    return cid_of(DAG_CBOR, BLAKE3, b"commit %d" % number)


def root_cid(number: int) -> CidBytes:
    return cid_of(DAG_JSON, BLAKE3, b"root %d" % number)


ONE = Branch(commit_cid(1), root_cid(1))
TWO = Branch(commit_cid(2), root_cid(2))


@pytest.fixture(params=["memory", "folder", "bucket"])
def refs(request: pytest.FixtureRequest, tmp_path: Path) -> Refs:
    if request.param == "memory":
        return MemoryRefs()
    if request.param == "bucket":
        return BucketRefs(Objects(MemoryStore(), "some/where"))
    make_folder(tmp_path / "repo", BLAKE3)
    return FolderRefs(tmp_path / "repo")


def test_a_branch_moves_only_from_what_was_expected(refs: Refs) -> None:
    assert refs.branch("main") is None
    refs.update("main", expected=None, new=ONE)
    assert refs.branch("main") == ONE
    with pytest.raises(ConflictError, match="exists already"):
        refs.update("main", expected=None, new=TWO)
    with pytest.raises(ConflictError, match="another by now"):
        refs.update("main", expected=TWO, new=ONE)
    refs.update("main", expected=ONE, new=TWO)
    assert refs.branch("main") == TWO
    refs.update("main", expected=TWO, new=None)
    assert refs.branch("main") is None
    with pytest.raises(ConflictError, match="gone"):
        refs.update("main", expected=TWO, new=ONE)


def test_records_with_nothing_in_them(refs: Refs) -> None:
    for record in (Branch(), Branch(commit=commit_cid(3)), Branch(work=root_cid(3))):
        refs.update("b", expected=refs.branch("b"), new=record)
        assert refs.branch("b") == record


def test_tags_are_fixed(refs: Refs) -> None:
    refs.create_tag("v1.0", Tag(commit_cid(1)))
    with pytest.raises(ConflictError, match="exists already"):
        refs.create_tag("v1.0", Tag(commit_cid(2)))
    assert refs.tag("v1.0") == Tag(commit_cid(1))
    assert refs.tags() == ["v1.0"]
    with pytest.raises(ConflictError):
        refs.delete_tag("v1.0", expected=Tag(commit_cid(2)))
    refs.delete_tag("v1.0", expected=Tag(commit_cid(1)))
    assert refs.tags() == []


def test_names_form_a_hierarchy(refs: Refs) -> None:
    refs.update("feature/x", expected=None, new=ONE)
    refs.update("feature/y/z", expected=None, new=TWO)
    refs.update("main", expected=None, new=TWO)
    assert refs.branches() == ["feature/x", "feature/y/z", "main"]
    with pytest.raises(InvalidKeyError, match="folder of the other"):
        refs.update("feature", expected=None, new=ONE)
    with pytest.raises(InvalidKeyError, match="folder of the other"):
        refs.update("main/x", expected=None, new=ONE)
    refs.update("feature/x", expected=ONE, new=None)
    refs.update("feature/y/z", expected=TWO, new=None)
    refs.update("feature", expected=None, new=ONE)
    assert refs.branches() == ["feature", "main"]


def test_a_kept_root_has_a_name(refs: Refs) -> None:
    name = refs.keep("feature/x", ONE)
    assert refs.keep("feature/x", ONE) == name
    assert refs.kept(name) == ONE
    assert refs.all_kept() == [name]
    assert refs.branches() == []
    refs.forget(name)
    refs.forget(name)
    assert refs.kept(name) is None


def test_work_can_be_kept_for_any_branch(refs: Refs) -> None:
    longest = "/".join(["b" * 79] * 6) + "x" * 2
    with pytest.raises(InvalidKeyError, match="longer than 480 bytes"):
        refs.update(longest, expected=None, new=ONE)
    refs.update(longest[:480], expected=None, new=ONE)
    name = refs.keep(longest[:480], ONE)
    assert refs.kept(name) == ONE
    refs.forget(name)
    assert refs.all_kept() == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "..",
        "../x",
        "a/../b",
        "a..b",
        ".hidden",
        "a/.hidden",
        "-x",
        "a b",
        "a\nb",
        "a\0b",
        "a~1",
        "a^",
        "a:b",
        "a?b",
        "a*",
        "a[b",
        "a\\b",
        "a@{b",
        "a.lock",
        "a.lock/b",
        "a.",
        "x" * 256,
        "a/" * 300 + "b",
        "\ud800",
        format_cid(commit_cid(1)),
        "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n",
    ],
)
def test_names_that_cannot_be(refs: Refs, name: str) -> None:
    for call in (
        lambda: refs.branch(name),
        lambda: refs.tag(name),
        lambda: refs.update(name, expected=None, new=ONE),
        lambda: refs.create_tag(name, Tag(commit_cid(1))),
    ):
        with pytest.raises(InvalidKeyError, match="ref name"):
            call()
    assert refs.branches() == refs.tags() == []


@pytest.mark.parametrize("name", ["main", "a/b/c", "v1.0-rc_1", "größe", "@", "2024", "b" * 60])
def test_names_that_can_be(refs: Refs, name: str) -> None:
    refs.update(name, expected=None, new=ONE)
    assert refs.branch(name) == ONE
    assert refs.branches() == [name]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff",
        ONE.to_block()[:-1],
        ONE.to_block() + b"\n",
        ONE.to_block().replace(b'"version":1', b'"version":2'),
        ONE.to_block().replace(b"cas-zarr/branch", b"cas-zarr/branc2"),
        Tag(commit_cid(1)).to_block(),
        Branch(work=commit_cid(1)).to_block(),
        Branch(commit=root_cid(1)).to_block(),
        b"[" * 5000,
    ],
)
def test_a_damaged_ref_says_which(tmp_path: Path, data: bytes) -> None:
    make_folder(tmp_path, BLAKE3)
    (tmp_path / "refs" / "heads" / "main").write_bytes(data)
    with pytest.raises(FormatError, match=r"ref heads/main in .* is damaged"):
        FolderRefs(tmp_path).branch("main")


def test_read_only_refs_do_not_move(tmp_path: Path) -> None:
    make_folder(tmp_path, BLAKE3)
    refs = FolderRefs(tmp_path, read_only=True)
    for call in (
        lambda: refs.update("main", expected=None, new=ONE),
        lambda: refs.create_tag("v", Tag(commit_cid(1))),
        lambda: refs.keep("main", ONE),
        lambda: refs.forget("conflicts/main/x"),
    ):
        with pytest.raises(ReadOnlyError):
            call()


# -- the folder -----------------------------------------------------------------------------------


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    assert not is_repository(tmp_path / "absent")
    assert not is_repository(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RepositoryNotFoundError, match=r"notes\.txt"):
        make_folder(tmp_path, BLAKE3)
    with pytest.raises(RepositoryNotFoundError, match="is a file"):
        make_folder(tmp_path / "notes.txt", BLAKE3)
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ('{"type":"cas-zarr/repository","version":1}', "not known"),
        ('{"hash":"md5","type":"cas-zarr/repository","version":1}', "md5"),
        ('{"hash":"blake3","type":"cas-zarr/repository","version":2}', "version 2"),
        ('{"hash":"blake3","type":"something","version":1}', "no marker"),
    ],
)
def test_a_marker_that_is_not_understood(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cas-zarr.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_marker(tmp_path)


# -- many writers ---------------------------------------------------------------------------------


def _count_up(path: str, times: int) -> None:
    refs = FolderRefs(Path(path))
    for _ in range(times):
        while True:
            now = refs.branch("main")
            number = 0 if now is None else int.from_bytes(now.work[-4:], "big")
            new = Branch(work=CidBytes(root_cid(0)[:-4] + (number + 1).to_bytes(4, "big")))
            try:
                refs.update("main", expected=now, new=new)
            except ConflictError:
                continue
            break


def test_eight_processes_lose_no_update(tmp_path: Path) -> None:
    make_folder(tmp_path, BLAKE3)
    context = multiprocessing.get_context("fork" if sys.version_info < (3, 12) else "spawn")
    workers = [
        context.Process(target=_count_up, args=(str(tmp_path), 50), daemon=True) for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    now = FolderRefs(tmp_path).branch("main")
    assert now is not None
    assert now.work is not None
    assert int.from_bytes(now.work[-4:], "big") == 8 * 50


def test_threads_lose_no_update(tmp_path: Path) -> None:
    make_folder(tmp_path, BLAKE3)
    threads = [threading.Thread(target=_count_up, args=(str(tmp_path), 20)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = FolderRefs(tmp_path).branch("main")
    assert now is not None
    assert now.work is not None
    assert int.from_bytes(now.work[-4:], "big") == 80


def test_makers_at_once_make_one_repository(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cas_zarr.cid import hash_by_name;"
        "from cas_zarr.repository.folder import make_folder;"
        "print(make_folder(Path(sys.argv[1]), hash_by_name(sys.argv[2])).name)"
    )
    target = str(tmp_path / "a" / "b")
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", code, target, ("blake3", "sha2-256")[number % 2]],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    answers = {maker.communicate(timeout=60)[0] for maker in makers}
    assert len(answers) == 1
    assert answers == {read_marker(Path(target)).name + "\n"}


# -- crashes and failing disks --------------------------------------------------------------------

Forked = Callable[[Callable[[], object]], int]
Strike = Callable[[int, Callable[[], object]], list[str]]
Blow = Callable[[], None]


@pytest.mark.parametrize("at", range(1, 12))
def test_a_killed_writer_leaves_a_whole_ref(
    tmp_path: Path, forked: Forked, strike: Strike, die: Blow, at: int
) -> None:
    make_folder(tmp_path, BLAKE3)
    refs = FolderRefs(tmp_path)
    refs.update("main", expected=None, new=ONE)

    def body() -> None:
        strike(at, die)
        refs.update("main", expected=ONE, new=TWO)

    died = forked(body) == -signal.SIGKILL
    assert died == (at <= 9)
    after = refs.branch("main")
    assert after in (ONE, TWO)
    assert refs.branches() == ["main"]
    refs.update("main", expected=after, new=Branch())
    assert refs.branch("main") == Branch()
    assert os.listdir(tmp_path / "refs" / "heads") == ["main"]


@pytest.mark.parametrize("at", range(1, 25))
def test_a_killed_maker_leaves_what_can_be_made(
    tmp_path: Path, forked: Forked, strike: Strike, die: Blow, at: int
) -> None:
    target = tmp_path / "repo"

    def body() -> None:
        strike(at, die)
        make_folder(target, BLAKE3)

    if forked(body) == 0:
        assert at > 12
    assert make_folder(target, BLAKE3) is BLAKE3
    FolderRefs(target).update("main", expected=None, new=ONE)


def test_a_full_disk_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strike: Strike
) -> None:
    make_folder(tmp_path, BLAKE3)
    refs = FolderRefs(tmp_path)
    refs.update("main", expected=None, new=ONE)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    at, calls = 0, [""]
    while len(calls) >= at:
        at += 1
        before = refs.branch("main")
        new = TWO if before == ONE else ONE
        calls = strike(at, fail)
        with suppress(StorageError):
            refs.update("main", expected=before, new=new)
        monkeypatch.undo()
        assert refs.branch("main") in (before, new)
    assert at > 4


def test_the_lock_of_a_dead_holder_is_free(tmp_path: Path) -> None:
    make_folder(tmp_path, BLAKE3)
    code = (
        "import os, sys, signal; from pathlib import Path; from cas_zarr.repository import folder;"
        "lock = folder._locked(Path(sys.argv[1])); lock.__enter__();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert result.returncode == -signal.SIGKILL
    FolderRefs(tmp_path).update("main", expected=None, new=ONE)
