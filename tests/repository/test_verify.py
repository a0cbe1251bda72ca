"""Verification finds every flipped byte and every missing block."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cas_zarr.cid import BLAKE3, DAG_CBOR, RAW, cid_of, codec_of, format_cid
from cas_zarr.errors import VersionNotFoundError
from cas_zarr.repository.repository import Repository
from cas_zarr.tree.walk import reachable

CHUNKS = {f"a/c/{number}": bytes([number]) * 500 for number in range(8)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    session = Repository.prepare(path).session()
    session.prepare().set_value("a/zarr.json", b"{}")
    for key, value in CHUNKS.items():
        session.prepare().set_value(key, value)
    session.prepare().set_value("a/big", random.Random(0).randbytes(3 << 20))
    session.commit("one")
    session.prepare().set_value("a/c/0", b"other" * 100)
    session.commit("two")
    session.prepare().set_value("a/c/1", b"work" * 100)
    session.flush()
    return path


def flip(path: Path, marker: bytes) -> None:
    """Flip a bit in the middle of what holds `marker`, in whichever pack it lies."""
    for pack in (path / "packs").glob("*.car"):
        data = bytearray(pack.read_bytes())
        at = data.find(marker)
        if at >= 0:
            data[at + len(marker) // 2] ^= 1
            pack.chmod(0o644)
            pack.write_bytes(data)
            return
    raise AssertionError(f"{marker[:20]!r} is in no pack")


def test_a_whole_repository(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = Repository.open(path).verify(progress=lambda *done: calls.append(done))
    assert report.ok
    assert report.damaged == ()
    assert report.commits == 2
    assert report.roots == 3
    assert report.size > 3 << 20
    assert calls[-1][0] >= report.blocks  # the packs are counted too
    assert calls[-1][1] >= report.size
    assert calls == sorted(calls)
    one = Repository.open(path).verify("main~1", data=True)
    assert one.ok
    assert (one.commits, one.roots) == (1, 1)
    assert one.blocks < report.blocks


def test_a_damaged_chunk_is_named(path: Path) -> None:
    flip(path, CHUNKS["a/c/3"])
    report = Repository.open(path).verify(data=True)
    assert not report.ok
    assert report.complete
    (damage,) = report.damaged
    assert damage.path == "a/c/3"
    assert damage.cid == cid_of(RAW, BLAKE3, CHUNKS["a/c/3"])
    assert format_cid(damage.cid) in str(damage)
    assert str(path) in damage.reason


def test_damage_of_an_old_version_only(path: Path) -> None:
    flip(path, CHUNKS["a/c/0"])
    repository = Repository.open(path)
    assert repository.verify("main", data=True).ok
    assert not repository.verify("main~1", data=True).ok
    assert not repository.verify(data=True).ok


def test_a_damaged_leaf_of_a_large_value(path: Path) -> None:
    flip(path, random.Random(0).randbytes(3 << 20)[1 << 20 : 2 << 20])
    (damage,) = Repository.open(path).verify("main", data=True).damaged
    assert damage.path == "a/big"


def test_a_damaged_root_or_commit(path: Path) -> None:
    repository = Repository.open(path)
    found = repository.resolve("main")
    assert found.commit is not None
    flip(path, repository.blocks.get(found.commit))
    flip(path, repository.blocks.get(found.root))
    report = Repository.open(path).verify(data=True)
    assert not report.ok
    assert not report.complete
    assert found.commit in {damage.cid for damage in report.damaged}
    (damage,) = Repository.open(path).verify("main", data=True).damaged
    assert damage.path == "main"
    assert format_cid(found.commit) in damage.reason
    by_root = Repository.open(path).verify(found.root)
    assert [damage.cid for damage in by_root.damaged] == [found.root]


def test_a_damaged_page_hides_what_lies_below(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    session = Repository.prepare(path).session()
    session.prepare().set_value("a/zarr.json", b"{}")
    for number in range(200):
        session.prepare().set_value(f"a/c/{number}", number.to_bytes(2, "big"))
    session.flush()
    root = session.root
    assert root is not None
    blocks = Repository.open(path).blocks
    (page,) = [cid for _, cid in reachable(blocks, root) if codec_of(cid) == DAG_CBOR]
    flip(path, blocks.get(page))
    report = Repository.open(path).verify(data=True)
    assert not report.ok
    assert not report.complete
    assert [(damage.path, damage.cid) for damage in report.damaged] == [("a", page)]


def test_it_goes_on_behind_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    session = Repository.prepare(path).session()
    for array in ("a", "b"):
        session.prepare().set_value(f"{array}/zarr.json", b"{}")
        for number in range(200):
            value = f"chunk {number} of {array}".encode()
            session.prepare().set_value(f"{array}/c/{number}", value)
    session.flush()
    root = session.root
    assert root is not None
    blocks = Repository.open(path).blocks
    pages = {place: cid for place, cid in reachable(blocks, root) if codec_of(cid) == DAG_CBOR}
    for whole in pages:
        flip(path, f"chunk 7 of {whole}".encode())
    flip(path, blocks.get(pages["b"]))
    report = Repository.open(path).verify(data=True)
    assert not report.complete  # nobody can say what "b" has
    assert {damage.path for damage in report.damaged} == {"b", "a/c/7"}


def test_a_missing_block(path: Path) -> None:
    repository = Repository.open(path)
    repository.blocks.delete(cid_of(RAW, BLAKE3, CHUNKS["a/c/5"]))
    (damage,) = repository.verify(data=True).damaged
    assert damage.path == "a/c/5"
    assert "is not in" in damage.reason


def test_a_damaged_ref(path: Path) -> None:
    (path / "refs" / "heads" / "main").write_bytes(b"{")
    (path / "refs" / "tags" / "v1").write_bytes(b"x")
    report = Repository.open(path).verify(data=True)
    assert [damage.path for damage in report.damaged] == ["branch main", "tag v1"]


def test_a_version_that_is_not_there(path: Path) -> None:
    with pytest.raises(VersionNotFoundError):
        Repository.open(path).verify("absent")
