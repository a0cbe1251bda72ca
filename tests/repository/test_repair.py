"""Repair brings back, from a sound copy, whatever of a repository was damaged or lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.packcheck import salvage
from cas_zarr.cid import BLAKE3, DAG_CBOR, RAW, CidBytes, cid_of, codec_of, format_cid
from cas_zarr.codecs.car import DATA_START, parse_wrapper
from cas_zarr.errors import InvalidArgumentError, ReadOnlyError, RepositoryNotFoundError
from cas_zarr.repository.repair import RepairReport, repair
from cas_zarr.repository.repository import Repository
from cas_zarr.tree.walk import reachable

CHUNKS = {f"a/c/{number}": b"chunk %d " % number * 40 for number in range(300)}
LARGE = random.Random(1).randbytes((2 << 20) + 77)

Keys = dict[str, bytes]


@pytest.fixture
def model(tmp_path: Path) -> list[Keys]:
    """Make a repository of two packs, a sound copy of it, and return what its commits hold."""
    path = tmp_path / "repo"
    session = Repository.prepare(path).session()
    first: Keys = {"a/zarr.json": b'{"node_type":"array"}', **CHUNKS, "a/large": LARGE}
    for key, value in first.items():
        session.prepare().set_value(key, value)
    session.commit("one")
    session.prepare().set_value("a/c/0", b"other" * 100)
    session.commit("two")
    Repository.open(path).create_tag("v1", "main~1")
    shutil.copytree(path, tmp_path / "copy")
    return [first, {**first, "a/c/0": b"other" * 100}]


def packs(path: Path) -> list[Path]:
    return sorted((path / "packs").glob("*.car"), key=lambda pack: pack.stat().st_size)


def change(pack: Path, at: int, bits: int = 1) -> None:
    data = bytearray(pack.read_bytes())
    data[at] ^= bits
    pack.chmod(0o644)
    pack.write_bytes(data)


def change_block(path: Path, cid: CidBytes, shift: int = 5) -> None:
    """Damage a block, or with a negative `shift` what stands before its bytes."""
    block = Repository.open(path).blocks.get(cid)
    for pack in packs(path):
        at = pack.read_bytes().find(block)
        if at >= 0:
            change(pack, at + shift)
            return
    raise AssertionError("no pack has the block")


def chunk(path: Path, shift: int = 5) -> None:
    change_block(path, cid_of(RAW, BLAKE3, CHUNKS["a/c/77"]), shift)


def leaf_of_a_large_value(path: Path) -> None:
    change_block(path, cid_of(RAW, BLAKE3, LARGE[: 1 << 20]))


def page(path: Path) -> None:
    repo = Repository.open(path)
    root = repo.resolve("main~1").root
    cids = [cid for _, cid in reachable(repo.blocks, root) if codec_of(cid) == DAG_CBOR]
    change_block(path, cids[-1])


def root(path: Path) -> None:
    change_block(path, Repository.open(path).resolve("main").root)


def commit(path: Path) -> None:
    found = Repository.open(path).resolve("main").commit
    assert found is not None
    change_block(path, found)


def first_commit_and_root_and_page(path: Path) -> None:
    found = Repository.open(path).resolve("main~1")
    assert found.commit is not None
    page(path)
    change_block(path, found.root)
    change_block(path, found.commit)


def index(path: Path) -> None:
    pack = packs(path)[-1]
    start = parse_wrapper(pack.read_bytes()[:DATA_START])[3]
    change(pack, start + 1)


def a_digest_in_the_index(path: Path) -> None:
    change(packs(path)[-1], packs(path)[-1].stat().st_size - 15)


def an_offset_in_the_index(path: Path) -> None:
    change(packs(path)[-1], packs(path)[-1].stat().st_size - 8)


def header(path: Path) -> None:
    change(packs(path)[-1], 30)


def header_of_the_payload(path: Path) -> None:
    change(packs(path)[-1], DATA_START + 3)


def flags(path: Path) -> None:
    change(packs(path)[-1], 14)


def all_headers_at_once(path: Path) -> None:
    pack = packs(path)[-1]
    data = pack.read_bytes()
    pack.chmod(0o644)
    pack.write_bytes(b"\0" * DATA_START + data[DATA_START:])


def length_of_a_section(path: Path) -> None:
    chunk(path, -38)


def cid_of_a_section(path: Path) -> None:
    chunk(path, -3)


def codec_of_a_section(path: Path) -> None:
    chunk(path, -35)


def hash_of_a_section(path: Path) -> None:
    chunk(path, -34)


def index_cut_off(path: Path) -> None:
    pack = packs(path)[-1]
    pack.chmod(0o644)
    pack.write_bytes(pack.read_bytes()[:-2000])


def half_cut_off(path: Path) -> None:
    pack = packs(path)[-1]
    pack.chmod(0o644)
    pack.write_bytes(pack.read_bytes()[: pack.stat().st_size // 2])


def something_appended(path: Path) -> None:
    pack = packs(path)[0]
    pack.chmod(0o644)
    pack.write_bytes(pack.read_bytes() + b"x")


def a_pack_deleted(path: Path) -> None:
    packs(path)[-1].unlink()


def all_packs_deleted(path: Path) -> None:
    for pack in packs(path):
        pack.unlink()


def a_pack_of_zeros(path: Path) -> None:
    pack = packs(path)[-1]
    pack.chmod(0o644)
    pack.write_bytes(bytes(pack.stat().st_size))


NOTHING_LOST = [
    index,
    an_offset_in_the_index,
    a_digest_in_the_index,
    header,
    header_of_the_payload,
    flags,
    all_headers_at_once,
    length_of_a_section,
    cid_of_a_section,
    codec_of_a_section,
    hash_of_a_section,
    something_appended,
    index_cut_off,
]
LOST = [
    chunk,
    leaf_of_a_large_value,
    page,
    root,
    commit,
    first_commit_and_root_and_page,
    half_cut_off,
    a_pack_deleted,
    all_packs_deleted,
    a_pack_of_zeros,
]


def check(path: Path, model: list[Keys]) -> None:
    repo = Repository.open(path, read_only=True)
    assert repo.verify(data=True).ok
    for version, keys in zip(("v1", "main"), model, strict=True):
        assert {key: bytes(value) for key, value in repo.at(version).items()} == keys


@pytest.mark.parametrize("damage", [*LOST, *NOTHING_LOST], ids=lambda damage: damage.__name__)
def test_repair(tmp_path: Path, model: list[Keys], damage: Callable[[Path], None]) -> None:
    path = tmp_path / "repo"
    damage(path)
    assert not Repository.open(path).verify(data=True).ok
    report = repair(Repository.open(path), tmp_path / "copy")
    assert report.ok
    assert (report.lost, report.kept, report.refs) == ((), (), ())
    assert (report.fetched > 0) == (damage in LOST)
    check(path, model)
    again = repair(Repository.open(path), tmp_path / "copy")
    assert (again.ok, again.fetched, again.saved, again.replaced) == (True, 0, 0, ())


@pytest.mark.parametrize("damage", NOTHING_LOST, ids=lambda damage: damage.__name__)
def test_what_is_sound_in_a_damaged_pack_needs_no_source(
    tmp_path: Path, model: list[Keys], damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "repo"
    damage(path)
    report = repair(Repository.open(path), MemoryBlocks())
    assert report.ok
    assert len(report.replaced) == 1
    check(path, model)


def test_just_what_is_hurt_is_fetched(tmp_path: Path, model: list[Keys]) -> None:
    path = tmp_path / "repo"
    chunk(path)
    report = repair(Repository.open(path), Repository.open(tmp_path / "copy"))
    assert (report.fetched, report.fetched_size) == (1, len(CHUNKS["a/c/77"]))
    check(path, model)


def test_what_the_source_lacks(tmp_path: Path, model: list[Keys]) -> None:
    path = tmp_path / "repo"
    lacking = cid_of(RAW, BLAKE3, CHUNKS["a/c/9"])
    chunk(path)
    change_block(path, lacking)
    source = MemoryBlocks()
    given = cid_of(RAW, BLAKE3, CHUNKS["a/c/77"])
    source.put(given, CHUNKS["a/c/77"])
    report = repair(Repository.open(path), source)
    assert not report.ok
    assert report.lost == (lacking,)
    assert (report.fetched, report.replaced) == (1, ())
    assert len(report.kept) == 1  # someone may mend its one bit by hand
    assert Path(report.kept[0]).exists()
    assert [damage.path for damage in report.verified.damaged] == ["a/c/9"]
    repo = Repository.open(path)
    assert repo.at("main")["a/c/77"] == CHUNKS["a/c/77"]
    assert all(repo.at("v1")[key] == value for key, value in model[0].items() if key != "a/c/9")
    assert repair(repo, tmp_path / "copy").ok
    check(path, model)
    assert not Path(report.kept[0]).exists()


def test_a_damaged_source_gives_what_is_sound(tmp_path: Path, model: list[Keys]) -> None:
    path, copy = tmp_path / "repo", tmp_path / "copy"
    chunk(path)
    root(path)
    chunk(copy)
    report = repair(Repository.open(path), copy)
    assert report.lost == (cid_of(RAW, BLAKE3, CHUNKS["a/c/77"]),)
    assert report.fetched == 1
    assert not report.ok
    assert len(model) == 2


def test_a_damaged_ref_is_not_guessed(tmp_path: Path, model: list[Keys]) -> None:
    path = tmp_path / "repo"
    tip = Repository.open(path).resolve("main").commit
    assert tip is not None
    chunk(path)
    (path / "refs" / "heads" / "main").write_bytes(b"{")
    report = repair(Repository.open(path), tmp_path / "copy")
    assert not report.ok
    (ref,) = report.refs
    assert ref.path == "branch main"
    assert format_cid(tip) in ref.reason
    assert (path / "refs" / "heads" / "main").read_bytes() == b"{"
    assert report.fetched == 1  # what the log still leads to is repaired all the same
    assert report.verified.commits == len(model)


def test_damaged_lines_of_the_log_are_told_and_dropped(tmp_path: Path, model: list[Keys]) -> None:
    log = tmp_path / "repo" / "refs" / "log"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"x" + lines[1][1:] + b"junk\n" + b"".join(lines[2:]))
    repo = Repository.open(tmp_path / "repo")
    assert repo.verify().damages == 2
    report = repo.repair(tmp_path / "copy")
    assert report.ok
    assert report.mended == 2
    assert report.refs == ()
    assert [damage.reason.split(" of ")[0] for damage in report.log] == ["line 2", "line 3"]
    assert report.as_json()["mended_log_lines"] == 2
    assert log.read_bytes() == lines[0] + b"".join(lines[2:])
    assert len(repo.reflog()) == len(lines) - 1
    check(tmp_path / "repo", model)


def test_a_repository_in_memory(tmp_path: Path, model: list[Keys]) -> None:
    repo = Repository.memory()
    session = repo.session()
    for key, value in model[0].items():
        session.prepare().set_value(key, value)
    session.commit("one")
    repo.blocks.delete(cid_of(RAW, BLAKE3, CHUNKS["a/c/77"]))
    report = repair(repo, tmp_path / "copy")
    assert report.ok
    assert report.fetched == 1


def test_progress_and_json(tmp_path: Path, model: list[Keys]) -> None:
    path = tmp_path / "repo"
    chunk(path)
    steps: list[str] = []
    report = repair(
        Repository.open(path), tmp_path / "copy", progress=lambda what, *_: steps.append(what)
    )
    assert set(steps) == {"check", "save", "fetch", "verify"}
    assert report.as_json()["ok"] is True
    assert isinstance(report, RepairReport)
    assert len(model) == 2


def test_what_cannot_be(tmp_path: Path, model: list[Keys]) -> None:
    path = tmp_path / "repo"
    with pytest.raises(ReadOnlyError):
        repair(Repository.open(path, read_only=True), tmp_path / "copy")
    with pytest.raises(RepositoryNotFoundError):
        repair(Repository.open(path), tmp_path / "nowhere")
    with pytest.raises(InvalidArgumentError, match="from itself"):
        repair(Repository.open(path), path)
    check(path, model)


def test_salvage_gives_every_sound_block(tmp_path: Path, model: list[Keys]) -> None:
    """Sections are found again behind damage of any kind, anywhere."""
    path = tmp_path / "repo"
    pack = packs(path)[0]
    whole = pack.read_bytes()
    blocks = dict(salvage(str(pack)))
    assert len(blocks) >= 3
    other = tmp_path / "other.car"
    random_places = random.Random(7)
    for _ in range(300):
        data = bytearray(whole)
        at = random_places.randrange(len(data))
        data[at] ^= 1 << random_places.randrange(8)
        other.write_bytes(data)
        found = dict(salvage(str(other)))
        assert len(found) >= len(blocks) - 1
        assert found.items() <= blocks.items()
    assert len(model) == 2


def sound(path: Path) -> dict[CidBytes, bytes]:
    """Return all sound blocks in the packs of a repository."""
    return {cid: data for pack in packs(path) for cid, data in salvage(str(pack))}


@pytest.mark.slow
@pytest.mark.parametrize("damage", [chunk, header], ids=lambda damage: damage.__name__)
def test_killed_at_any_change_of_the_disk(
    tmp_path: Path,
    model: list[Keys],
    damage: Callable[[Path], None],
    forked: Callable[[Callable[[], object]], int],
    strike: Callable[..., list[str]],
    die: Callable[[], None],
) -> None:
    """No sound block is ever lost, and the next repair ends what was begun."""
    damage(tmp_path / "repo")
    before = sound(tmp_path / "repo")
    number = 0
    while True:
        number += 1
        path = tmp_path / f"repo{number}"
        shutil.copytree(tmp_path / "repo", path)

        def body(path: Path = path, number: int = number) -> None:
            strike(number, die)
            repair(Repository.open(path), tmp_path / "copy")

        status = forked(body)
        assert status in (0, -9)
        assert before.items() <= sound(path).items()
        if status == 0:
            break
        assert repair(Repository.open(path), tmp_path / "copy").ok
        check(path, model)
        shutil.rmtree(path)
    assert number > 8
