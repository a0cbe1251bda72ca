"""The log of refs: every move is in it, a crash costs nothing, damage is noticed and is local."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, CidBytes, Link, cid_of
from cas_zarr.errors import ConflictError, FormatError, InvalidKeyError, LimitError, ReadOnlyError
from cas_zarr.repository.folder import FolderRefs, make_folder
from cas_zarr.repository.records import seal
from cas_zarr.repository.reflog import MAX_LINE, RefMove, read_lines
from cas_zarr.repository.refs import Branch, GuardError, MemoryRefs, Refs, Tag


def commit_cid(number: int) -> CidBytes:
    return cid_of(DAG_CBOR, BLAKE3, b"commit %d" % number)


def root_cid(number: int) -> CidBytes:
    return cid_of(DAG_JSON, BLAKE3, b"root %d" % number)


ONE, TWO, THREE = (Branch(commit_cid(number), root_cid(number)) for number in (1, 2, 3))


@pytest.fixture(params=["memory", "folder"])
def refs(request: pytest.FixtureRequest, tmp_path: Path) -> Refs:
    if request.param == "memory":
        return MemoryRefs()
    make_folder(tmp_path / "repo", BLAKE3)
    return FolderRefs(tmp_path / "repo")


def said(refs: Refs, name: str | None = None) -> list[tuple[str, object, object, str]]:
    return [(move.ref, move.old, move.new, move.why) for move in refs.log(name)]


def test_every_move_is_logged(refs: Refs) -> None:
    assert refs.log() == []
    refs.update("main", expected=None, new=ONE, why="begin")
    refs.update("main", expected=ONE, new=TWO)
    refs.update("main", expected=TWO, new=None, why="no more")
    refs.create_tag("v1", Tag(commit_cid(1)), why="released")
    refs.move_tag("v1", expected=Tag(commit_cid(1)), new=Tag(commit_cid(2)), why="wrong one")
    assert refs.tag("v1") == Tag(commit_cid(2))
    refs.delete_tag("v1", expected=Tag(commit_cid(2)))
    name = refs.keep("main", THREE, why="lost")
    refs.forget(name, why="looked at")
    assert said(refs) == [
        ("heads/main", None, ONE, "begin"),
        ("heads/main", ONE, TWO, ""),
        ("heads/main", TWO, None, "no more"),
        ("tags/v1", None, Tag(commit_cid(1)), "released"),
        ("tags/v1", Tag(commit_cid(1)), Tag(commit_cid(2)), "wrong one"),
        ("tags/v1", Tag(commit_cid(2)), None, ""),
        (name, None, THREE, "lost"),
        (name, THREE, None, "looked at"),
    ]
    assert [move.kind for move in refs.log()] == ["branch"] * 3 + ["tag"] * 3 + ["kept root"] * 2
    assert len(refs.log("main")) == len(refs.log("v1")) == 3
    assert {move.name for move in refs.log(name)} == {name}
    assert refs.log("other") == []
    times = [move.time for move in refs.log()]
    assert times == sorted(times)
    assert times[0] > 1_600_000_000_000_000


def test_a_move_of_the_work_alone_is_logged_only_with_a_reason(refs: Refs) -> None:
    refs.update("main", expected=None, new=ONE)
    flushed = Branch(ONE.commit, root_cid(7))
    refs.update("main", expected=ONE, new=flushed)
    assert len(refs.log()) == 1
    refs.update("main", expected=flushed, new=ONE, why="reset")
    assert said(refs)[1:] == [("heads/main", flushed, ONE, "reset")]


def test_what_did_not_move_is_not_logged(refs: Refs) -> None:
    refs.update("main", expected=None, new=ONE)
    with pytest.raises(ConflictError):
        refs.update("main", expected=TWO, new=ONE)
    with pytest.raises(InvalidKeyError):
        refs.update("main/x", expected=None, new=ONE)
    with pytest.raises(ConflictError):
        refs.move_tag("v", expected=Tag(commit_cid(1)), new=Tag(commit_cid(2)))
    refs.forget("conflicts/main/x")
    assert len(refs.log()) == 1


@pytest.mark.parametrize(
    ("why", "kept"),
    [
        ("first\nsecond", "first"),
        ("x" * 5000, "x" * 1024),
        ("ü" * 5000, "ü" * 512),
        ("\u20ac" * 5000, "\u20ac" * 341),
        ("\ud800", "?"),
        ('a"b\\c\x00\x7f\u2028d', 'a"b\\c\x00\x7f'),
        ("\n", ""),
    ],
)
def test_a_reason_is_a_short_line(refs: Refs, why: str, kept: str) -> None:
    refs.update("main", expected=None, new=ONE, why=why)
    assert [move.why for move in refs.log()] == [kept]


def test_no_line_is_longer_than_is_looked_for() -> None:
    move = RefMove("heads/" + "n" * 512, ONE, TWO, -(2**63), "\x01" * 5000)
    assert len(move.to_line()) < MAX_LINE


# -- guards ---------------------------------------------------------------------------------------


def test_a_guarded_move_waits_for_no_collection(refs: Refs) -> None:
    assert refs.gc_record() is None
    refs.update("main", expected=None, new=ONE, guard=None)
    assert refs.swap_gc(None, b"first")
    assert not refs.swap_gc(None, b"second")
    assert refs.gc_record() == b"first"
    for guard in (None, b"other"):
        for move in (
            partial(refs.update, "main", expected=ONE, new=TWO, guard=guard),
            partial(refs.create_tag, "v", Tag(commit_cid(1)), guard=guard),
            partial(refs.keep, "main", TWO, guard=guard),
        ):
            with pytest.raises(GuardError, match="collection"):
                move()
    assert refs.branch("main") == ONE
    assert (refs.tags(), refs.all_kept(), len(refs.log())) == ([], [], 1)
    refs.update("main", expected=ONE, new=TWO, guard=b"first")
    refs.update("main", expected=TWO, new=ONE)
    refs.create_tag("v", Tag(commit_cid(1)), guard=b"first")
    refs.move_tag("v", expected=Tag(commit_cid(1)), new=Tag(commit_cid(2)), guard=b"first")
    refs.delete_tag("v", expected=Tag(commit_cid(2)), guard=b"first")
    assert refs.swap_gc(b"first", None)
    assert refs.gc_record() is None
    with pytest.raises(LimitError, match="4097"):
        refs.swap_gc(None, bytes(4097))
    assert refs.swap_gc(None, bytes(4096))
    assert refs.gc_record() == bytes(4096)


def test_a_conflict_is_told_before_a_guard(refs: Refs) -> None:
    refs.swap_gc(None, b"x")
    with pytest.raises(ConflictError) as caught:
        refs.update("main", expected=TWO, new=ONE, guard=None)
    assert not isinstance(caught.value, GuardError)


# -- where histories were cut ---------------------------------------------------------------------


def test_cut_histories(refs: Refs) -> None:
    assert refs.shallow() == frozenset()
    some = {commit_cid(number) for number in range(200)}  # more than a ref's record can have
    refs.set_shallow(frozenset(), some)
    assert refs.shallow() == some
    with pytest.raises(ConflictError, match="cut elsewhere"):
        refs.set_shallow(frozenset(), {commit_cid(1)})
    refs.set_shallow(some, {commit_cid(1)})
    assert refs.shallow() == {commit_cid(1)}
    refs.set_shallow({commit_cid(1)}, frozenset())
    assert refs.shallow() == frozenset()
    assert refs.branches() == refs.tags() == refs.log() == []


def test_a_damaged_record_of_cut_histories(tmp_path: Path) -> None:
    make_folder(tmp_path, BLAKE3)
    refs = FolderRefs(tmp_path)
    refs.set_shallow(frozenset(), {commit_cid(1), commit_cid(2)})
    file = tmp_path / "refs" / "shallow"
    good = file.read_bytes()
    sound = {"commits": [Link(commit_cid(1))], "type": "cas-zarr/shallow", "version": 1}
    file.write_bytes(seal(sound))
    assert refs.shallow() == {commit_cid(1)}
    root = Link(cid_of(DAG_JSON, BLAKE3, b"root"))
    backwards = [Link(cid) for cid in sorted((commit_cid(1), commit_cid(2)), reverse=True)]
    for data, reason in (
        (b"", ""),
        (good[:-1], ""),
        (good.replace(b"shallow", b"shallou"), "do not match its check"),
        (b"[]", "missing or unknown fields"),
        (seal({**sound, "more": 1}), "missing or unknown fields"),
        (seal({**sound, "type": "cas-zarr/tag"}), "of version"),
        (seal({**sound, "version": 2}), "of version 2"),
        (seal({**sound, "version": True}), "of version True"),
        (seal({**sound, "commits": []}), "no sorted list"),
        (seal({**sound, "commits": [None]}), "no sorted list"),
        (seal({**sound, "commits": 3}), "no sorted list"),
        (seal({**sound, "commits": backwards}), "no sorted list"),
        (seal({**sound, "commits": [root]}), "of another codec"),
    ):
        file.write_bytes(data)
        with pytest.raises(FormatError, match=rf"cut histories in .* is damaged.*{reason}"):
            refs.shallow()


# -- trimming and damage --------------------------------------------------------------------------


def line(number: int, time: int) -> bytes:
    return RefMove("heads/b", None, Branch(commit_cid(number)), time, str(number)).to_line()


def test_old_moves_are_dropped(refs: Refs) -> None:
    for number in range(4):
        refs.update(f"b{number}", expected=None, new=ONE)
    times = [move.time for move in refs.log()]
    assert refs.trim_log(times[0]) == 0
    assert refs.trim_log(times[2]) == len([one for one in times if one < times[2]])
    assert [move.time for move in refs.log()] == [one for one in times if one >= times[2]]
    assert refs.trim_log(2**63) == len([one for one in times if one >= times[2]])
    assert refs.log() == []
    refs.update("main", expected=None, new=ONE)
    assert len(refs.log()) == 1


def test_trimming_goes_by_the_time_of_each_move(tmp_path: Path) -> None:
    refs, log = with_log(tmp_path, line(1, 10) + b"junk\n" + line(2, 99) + line(3, 11) + b"x\n")
    assert refs.trim_log(50) == 2
    assert log.read_bytes() == line(2, 99) + b"x\n"


def test_mending_drops_what_is_damaged(tmp_path: Path) -> None:
    refs, log = with_log(tmp_path, line(1, 1) + b"junk\n" + line(2, 2) + b"\n" + b"torn")
    assert len(refs.log_damage()) == 2
    with pytest.raises(FormatError, match=r"line 2 of the log .*; line 4 of the log"):
        refs.log()
    assert [move.why for move in refs.log(damaged="skip")] == ["1", "2"]
    assert refs.mend_log() == 2
    assert log.read_bytes() == line(1, 1) + line(2, 2)
    assert refs.mend_log() == 0


def test_what_a_newer_version_wrote_is_not_dropped_when_the_log_is_mended(tmp_path: Path) -> None:
    text = b'{"author":"x","new":null,"old":null,"ref":"heads/x","time":0,"why":""}'
    newer = BLAKE3.digest(text)[:16].hex().encode() + b" " + text + b"\n"
    refs, log = with_log(tmp_path, line(1, 1) + newer + b"junk\n" + line(2, 2))
    assert len(refs.log_damage()) == 2
    assert refs.mend_log() == 1
    assert log.read_bytes() == line(1, 1) + newer + line(2, 2)
    assert refs.mend_log() == 0


def test_a_long_line_that_looks_like_many_costs_little() -> None:
    data = (b"0" * 32 + b" {") * 300_000
    ((number, _, found),) = read_lines(data)  # tried at each of its places it takes hours
    assert (number, len(found)) == (1, 1)


def with_log(path: Path, data: bytes) -> tuple[FolderRefs, Path]:
    make_folder(path, BLAKE3)
    log = path / "refs" / "log"
    log.write_bytes(data)
    return FolderRefs(path), log


def test_a_torn_last_line_is_no_damage(tmp_path: Path) -> None:
    whole = line(1, 1) + line(2, 2)
    refs, log = with_log(tmp_path, whole)
    for size in range(len(line(1, 1)), len(whole)):
        log.write_bytes(whole[:size])
        seen = [move.why for move in refs.log()]
        assert seen == (["1", "2"] if size == len(whole) - 1 else ["1"])
        if size % 16 == 0 or size > len(whole) - 4:
            refs.update("main", expected=None, new=ONE, why="next")
            assert [move.why for move in refs.log()] == [*seen, "next"]
            refs.update("main", expected=ONE, new=None)


def test_a_torn_line_longer_than_the_next_goes_as_a_whole(tmp_path: Path) -> None:
    long = RefMove("heads/b", ONE, TWO, 5, "why" * 300).to_line()
    refs, log = with_log(tmp_path, line(1, 1) + long[:-20])
    refs.update("main", expected=None, new=ONE, why="next")
    assert [move.why for move in refs.log()] == ["1", "next"]
    assert log.read_bytes().endswith(b"}\n")


def test_every_flipped_bit_is_noticed_and_costs_one_line(tmp_path: Path) -> None:
    whole = line(1, 1) + line(2, 2) + line(3, 3)
    for at in range(len(whole)):
        number = whole[:at].count(b"\n") + 1
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            found = [one for _, _, line in read_lines(bytes(data)) for one in line]
            errors = [one for one in found if isinstance(one, FormatError)]
            moves = [one.why for one in found if isinstance(one, RefMove)]
            assert errors
            lost = {"1", "2", "3"} - set(moves)
            assert lost <= {str(number)}
            assert moves == sorted(moves)
    refs, log = with_log(tmp_path, whole)
    for at in range(0, len(whole), 23):
        data = bytearray(whole)
        data[at] ^= 2
        log.write_bytes(data)
        with pytest.raises(FormatError, match=rf"line {whole[:at].count(10) + 1} .*{tmp_path}"):
            refs.log()
        refs.update("main", expected=None, new=ONE, why="goes on")
        assert len(refs.log(damaged="skip")) >= 3
        assert refs.log(damaged="skip")[-1].why == "goes on"
        assert refs.log_damage()
        refs.update("main", expected=ONE, new=None)


def test_the_end_of_the_last_line_is_no_less_guarded(tmp_path: Path) -> None:
    refs, log = with_log(tmp_path, line(1, 1)[:-1] + b"\x0b")
    with pytest.raises(FormatError, match="line 1"):
        refs.log()
    assert [move.why for move in refs.log(damaged="skip")] == ["1"]
    refs.update("main", expected=None, new=ONE, why="2")
    assert [move.why for move in refs.log(damaged="skip")] == ["1", "2"]
    assert refs.mend_log() == 1
    assert log.read_bytes().startswith(line(1, 1))


@pytest.mark.parametrize("junk", [b"\xff" * 50_000, b"\0" * 100, b"\n\n\n", b"{}\n", b"x" * 70])
def test_no_junk_stops_a_move(tmp_path: Path, junk: bytes) -> None:
    refs, _ = with_log(tmp_path, line(1, 1) + junk)
    refs.update("main", expected=None, new=ONE, why="2")
    assert [move.why for move in refs.log(damaged="skip")] == ["1", "2"]


@given(st.binary(max_size=200))
def test_any_bytes_can_be_read(data: bytes) -> None:
    assert all(isinstance(one, FormatError) for _, _, found in read_lines(data) for one in found)


@pytest.mark.parametrize(
    "value",
    [
        b"[]",
        b'{"new":null,"old":null,"ref":"heads/x","time":0}',
        b'{"new":null,"old":null,"ref":"other/x","time":0,"why":""}',
        b'{"new":null,"old":null,"ref":3,"time":0,"why":""}',
        b'{"new":null,"old":null,"ref":"heads/x","time":true,"why":""}',
        b'{"new":null,"old":null,"ref":"heads/x","time":0,"why":null}',
        b'{"new":3,"old":null,"ref":"heads/x","time":0,"why":""}',
        b'{"new":{"commit":null},"old":null,"ref":"heads/x","time":0,"why":""}',
        b'{"new":{"commit":null},"old":null,"ref":"tags/x","time":0,"why":""}',
        b'{"new":null, "old":null,"ref":"heads/x","time":0,"why":""}',
    ],
)
def test_a_line_that_is_none_of_ours(value: bytes) -> None:
    check = BLAKE3.digest(value)[:16].hex().encode()
    with pytest.raises(FormatError):
        RefMove.from_line(check + b" " + value)


def test_a_read_only_log(tmp_path: Path) -> None:
    make_folder(tmp_path, BLAKE3)
    refs = FolderRefs(tmp_path, read_only=True)
    assert refs.log() == refs.log_damage() == []
    for call in (
        lambda: refs.trim_log(0),
        refs.mend_log,
        lambda: refs.swap_gc(None, b""),
        lambda: refs.set_shallow(frozenset(), {commit_cid(1)}),
        lambda: refs.move_tag("v", expected=Tag(commit_cid(1)), new=Tag(commit_cid(2))),
    ):
        with pytest.raises(ReadOnlyError):
            call()


# -- crashes and many writers ---------------------------------------------------------------------


@pytest.mark.parametrize("at", range(1, 16))
@pytest.mark.parametrize("act", ["create", "move", "delete", "tag", "trim", "cut"])
def test_a_killed_writer_leaves_a_log_that_tells(
    tmp_path: Path,
    forked: Callable[[Callable[[], object]], int],
    strike: Callable[..., list[str]],
    die: Callable[[], None],
    at: int,
    act: str,
) -> None:
    make_folder(tmp_path, BLAKE3)
    refs = FolderRefs(tmp_path)
    if act != "create":
        refs.update("main", expected=None, new=ONE)
    acts: dict[str, Callable[[], object]] = {
        "create": lambda: refs.update("main", expected=None, new=ONE),
        "move": lambda: refs.update("main", expected=ONE, new=TWO),
        "delete": lambda: refs.update("main", expected=ONE, new=None),
        "tag": lambda: refs.create_tag("a/b/c", Tag(commit_cid(1))),
        "trim": lambda: refs.trim_log(2**63),
        "cut": lambda: refs.set_shallow(frozenset(), {commit_cid(1)}),
    }

    def body() -> None:
        strike(at, die)
        acts[act]()

    died = forked(body) == -signal.SIGKILL
    assert died or at > 5
    log = refs.log()
    state: dict[str, object] = {"heads/main": refs.branch("main"), "tags/a/b/c": refs.tag("a/b/c")}
    for ref, now in state.items():
        moves = [move for move in log if move.ref == ref]
        if moves and act != "trim":  # nothing moved that the log does not tell
            assert now in (moves[-1].new, moves[-1].old)
        elif act != "trim":
            assert now is None
    assert died or act == "trim" or not log or state[log[-1].ref] == log[-1].new
    refs.update("next", expected=None, new=ONE)
    assert refs.log()[-1].name == "next"
    assert refs.shallow() in (frozenset(), {commit_cid(1)})


def _swing(path: str, name: str, times: int) -> None:
    refs = FolderRefs(Path(path))
    for number in range(times):
        refs.update(name, expected=None, new=ONE, why=f"{name} {number}")
        refs.update(name, expected=ONE, new=None)
        refs.log()


def test_writers_at_once_lose_no_line(tmp_path: Path) -> None:
    make_folder(tmp_path, BLAKE3)
    context = multiprocessing.get_context("fork" if sys.version_info < (3, 12) else "spawn")
    workers = [
        context.Process(target=_swing, args=(str(tmp_path), f"b{number}", 20), daemon=True)
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    refs = FolderRefs(tmp_path)
    for number in range(4):
        whys = [move.why for move in refs.log(f"b{number}")]
        assert whys[::2] == [f"b{number} {one}" for one in range(20)]
        assert len(whys) == 40
