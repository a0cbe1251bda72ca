"""Verification finds every flipped byte and every missing block."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from cas_zarr import CASStore
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    RAW,
    CidBytes,
    cid_of,
    codec_of,
    encode_varint,
    format_cid,
)
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.dagpb import PBLink, PBNode
from cas_zarr.codecs.unixfs import decode_file_node
from cas_zarr.errors import InvalidArgumentError, NotFoundError, VersionNotFoundError
from cas_zarr.repository import checking
from cas_zarr.repository.checking import Checker, Seen
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.records import Branch
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.verify import verify
from cas_zarr.tree.node import Header, Node, Root, Value
from cas_zarr.tree.page import Page
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


# -- levels -----------------------------------------------------------------------------------


def test_the_structure_alone(path: Path) -> None:
    flip(path, CHUNKS["a/c/3"])
    report = Repository.open(path).verify()
    assert report.ok  # the values were looked for, not read
    assert report.read < report.blocks
    Repository.open(path).blocks.delete(cid_of(RAW, BLAKE3, CHUNKS["a/c/5"]))
    report = Repository.open(path).verify()
    assert [damage.path for damage in report.damaged] == ["a/c/5"]


@pytest.mark.parametrize("version", [None, "main"])
def test_a_sample_is_a_share_that_its_seed_chooses(tmp_path: Path, version: str | None) -> None:
    path = tmp_path / "repo"
    session = Repository.prepare(path).session()
    session.prepare().set_value("a/zarr.json", b"{}")
    for number in range(3000):
        session.prepare().set_value(f"a/c/{number}", b"%d" % number * 30)
    session.commit("one")
    repo = Repository.open(path)
    whole = repo.verify(version)
    drawn = [repo.verify(version, sample=0.1, seed=seed) for seed in (0, 0, 1, 2)]
    read = [report.read - whole.read for report in drawn]
    assert read[0] == read[1]
    assert all(200 < count < 400 for count in read)
    assert all(report.ok and report.sample == 0.1 for report in drawn)
    assert drawn[3].seed == 2
    assert repo.verify(version, sample=1).read - whole.read == 3000
    flip(path, b"%d" % 1234 * 30)
    found = [not Repository.open(path).verify(version, sample=0.1, seed=s).ok for s in range(40)]
    assert 1 <= sum(found) <= 12
    for wrong in (0, 1.5, -0.1):
        with pytest.raises(InvalidArgumentError, match="share"):
            repo.verify(sample=wrong)


def test_a_node_of_a_version(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    session = Repository.prepare(path).session()
    for array in ("g/a", "g/b"):
        session.prepare().set_value(f"{array}/zarr.json", b"{}")
        for number in range(3):
            session.prepare().set_value(f"{array}/c/{number}", f"{number} of {array}".encode())
    session.commit("one")
    flip(path, b"1 of g/a")
    repo = Repository.open(path)
    assert repo.verify("main", path="g/b", data=True).ok
    assert not repo.verify("main", path="g/a/", data=True).ok
    assert not repo.verify("main", path="/g", data=True).ok
    with pytest.raises(NotFoundError):
        repo.verify("main", path="g/c")
    with pytest.raises(InvalidArgumentError):
        repo.verify(path="g")


# -- what is hurt -------------------------------------------------------------------------------


def test_hurt_arrays_and_boxes(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "repo")
    group = zarr.create_group(store)
    array = group.create_array("a", shape=(40, 50), chunks=(4, 5), dtype="u2", compressors=None)
    array[:] = np.arange(2000).reshape(40, 50)
    large = group.create_array("b", shape=(7000,), chunks=(10,), dtype="u2", compressors=None)
    large[:] = np.arange(7000)
    store.commit("one")
    array[0, 0] = 7
    store.commit("two")
    store.close()
    path = tmp_path / "repo"
    repo = Repository.open(path)
    mapping = repo.at("main~1")
    for row, column in ((2, 3), (2, 4), (3, 3), (3, 4), (9, 9)):
        flip(path, bytes(mapping[f"a/c/{row}/{column}"]))
    repo = Repository.open(path)
    pages = [c for at, c in reachable(repo.blocks, repo.resolve("main").root) if at == "b"]
    leaf = repo.blocks.get(pages[-1])
    flip(path, leaf)
    report = Repository.open(path).verify(data=True)
    assert not report.complete
    hurt = {(one.path, one.version): one for one in report.arrays}
    # the page of "a" is another in the older version, that of "b" is the same
    assert {path for path, version in hurt if version == "main"} == {"a", "b"}
    assert [path for path, version in hurt if version != "main"] == ["a"]
    found = hurt["a", "main"]
    assert found.chunks == 5
    assert found.boxes == (((2, 4), (3, 5)), ((9, 10), (9, 10)))
    assert found.indices == (((8, 16), (15, 25)), ((36, 40), (45, 50)))
    found = hurt["b", "main"]
    (box,) = found.boxes
    lost = [number for number in range(700) if box[0][0] <= number < box[0][1]]
    assert found.chunks == len(lost) == Page.from_block(leaf).totals()[0]
    assert found.shape == (7000,)
    text = json.dumps(report.as_json())
    assert json.loads(text)["arrays"][0]["indices"][0] == [[8, 16], [15, 25]]
    assert [fault["offset"] is not None for fault in report.as_json()["pack_faults"]] == [True] * 6


def test_a_repeated_value_hurts_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    session = Repository.prepare(path).session()
    for array in ("a", "b"):
        session.prepare().set_value(f"{array}/zarr.json", b"{}")
        for number in range(5):
            session.prepare().set_value(f"{array}/c/{number}", b"the same" * 9)
    session.prepare().set_value("b/c/5", b"another")
    session.commit("one")
    flip(path, b"the same" * 9)
    report = Repository.open(path).verify(data=True)
    assert {one.path: one.chunks for one in report.arrays} == {"a": 5, "b": 5}
    assert len(report.damaged) == 1
    assert report.blocks > 1


# -- large values that others have made ------------------------------------------------------------


def file_node(*children: tuple[CidBytes, int]) -> bytes:
    sizes = [size for _, size in children]
    fields = b"\x08\x02\x18" + encode_varint(sum(sizes))
    fields += b"".join(b"\x20" + encode_varint(size) for size in sizes)
    return dagpb.encode(PBNode(fields, tuple(PBLink(cid, "", size) for cid, size in children)))


def with_files(**files: bytes) -> Repository:
    """Make a repository whose dataset has these file nodes as values."""
    repo = Repository.memory()
    keys = {}
    for name, data in files.items():
        cid = cid_of(DAG_PB, BLAKE3, data)
        repo.blocks.put(cid, data)
        keys[name] = Value(cid, decode_file_node(data).size)
    root = Root(Header(), Node(keys=keys))
    repo.blocks.put(root.cid(), root.to_block())
    repo.refs.update("main", expected=None, new=Branch(None, root.cid()))
    return repo


def test_a_file_that_links_itself_a_billion_times_over() -> None:
    leaf = cid_of(RAW, BLAKE3, b"")
    levels = [file_node(*[(leaf, 0)] * 100)]
    while len(levels) < 10:
        levels.append(file_node(*[(cid_of(DAG_PB, BLAKE3, levels[-1]), 0)] * 100))
    repo = with_files(**{f"x{number}": data for number, data in enumerate(levels)})
    repo.blocks.put(leaf, b"")
    assert repo.verify(data=True).ok
    repo.blocks.delete(leaf)
    report = repo.verify(data=True)
    assert [damage.cid for damage in report.damaged] == [leaf]


@pytest.mark.parametrize(
    "link",
    [
        b"\x01\x55\x13\x40" + bytes(64),  # sha2-512
        b"\x01\x55\x16\x20" + bytes(32),  # sha3-256, as long as one of ours
        b"\x01\x55\x00\x01x",
        bytes(cid_of(DAG_JSON, BLAKE3, b"{}")),
    ],
)
def test_a_file_that_links_what_is_no_part_of_one(link: bytes) -> None:
    repo = with_files(x=file_node((CidBytes(link), 5)))
    (damage,) = repo.verify().damaged
    assert (damage.kind, damage.path) == ("file", "x")
    assert format_cid(CidBytes(link)) in damage.reason
    assert repo.gc().live_blocks == 2  # a collection goes on, and keeps what is there


def test_a_large_value_that_is_part_of_another_one() -> None:
    leaf = cid_of(RAW, BLAKE3, b"leaf")
    part = file_node((leaf, 4), (leaf, 4))
    whole = file_node((cid_of(DAG_PB, BLAKE3, part), 8), (leaf, 4))
    repo = with_files(whole=whole, part=part)
    checker = Checker(repo.blocks)
    for data, size in ((whole, 12), (part, 8)):
        cids = np.frombuffer(cid_of(DAG_PB, BLAKE3, data), np.uint8).reshape(1, -1)
        hurt = checker._values(cids, np.array([size], np.uint64), lambda _: ["x"])
        assert hurt.tolist() == [0]


# -- history, signatures, files -------------------------------------------------------------------


def test_a_history_that_was_cut(path: Path) -> None:
    repo = Repository.open(path)
    first = repo.resolve("main~1").commit
    tip = repo.resolve("main").commit
    assert first is not None
    assert tip is not None
    repo.blocks.delete(first)
    repo.refs.trim_log(1 << 62)
    assert not repo.verify().ok
    repo.refs.set_shallow(frozenset(), frozenset([tip]))
    assert repo.verify().ok
    assert repo.verify().commits == 1


def test_signatures(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from cas_zarr.repository import signing

    repo = Repository.open(tmp_path / "repo", create=True)
    key, other = signing.key_of(bytes(32)), signing.key_of(b"\1" * 32)
    session = repo.session()
    session.prepare().set_value("a/zarr.json", b"{}")
    session.commit("unsigned")
    tip = repo.resolve("main").commit
    assert tip is not None
    plain = Commit.from_block(tip, repo.blocks.get(tip))

    def add(commit: Commit) -> CidBytes:
        cid, data = commit.to_block()
        repo.blocks.put(cid, data)
        repo.blocks.flush()
        repo.refs.update("main", expected=repo.refs.branch("main"), new=Branch(cid, commit.root))
        return cid

    signed = add(signing.sign(replace(plain, message="signed", parents=(tip,)), key))
    report = repo.verify(signatures=True)
    assert (report.ok, report.signed, report.unsigned) == (True, 1, 1)
    assert repo.verify().signed == 0
    commit = Commit.from_block(signed, repo.blocks.get(signed))
    signer = signing.check(commit).signer
    assert signer is not None
    assert not repo.verify(allowed=[signer]).ok  # of the unsigned one
    assert repo.verify("main", allowed=[signer]).ok
    stranger = signing.check(signing.sign(plain, other)).signer
    assert stranger is not None
    refused = repo.verify("main", allowed=[stranger])
    assert [damage.kind for damage in refused.damaged] == ["signature"]
    assert signing.signer_text(signer) in refused.damaged[0].reason
    forged = add(replace(commit, message="forged", parents=(signed,)))
    report = repo.verify(signatures=True)
    assert [(damage.kind, damage.cid) for damage in report.damaged] == [("signature", forged)]
    assert (report.signed, report.unsigned) == (1, 1)


def test_a_damaged_marker_is_found_by_who_has_it_open(path: Path) -> None:
    repo = Repository.open(path)
    marker = path / "cas-zarr.json"
    marker.chmod(0o644)
    marker.write_bytes(marker.read_bytes() + b"\n")
    assert [damage.kind for damage in repo.verify().damaged] == ["marker"]


def test_a_damaged_line_of_the_log(path: Path) -> None:
    log = path / "refs" / "log"
    data = bytearray(log.read_bytes())
    data[50] ^= 4
    log.write_bytes(data)
    report = Repository.open(path).verify()
    assert [damage.kind for damage in report.damaged] == ["log"]
    assert report.complete


def test_a_damaged_list_of_a_collection(path: Path) -> None:
    repo = Repository.open(path)
    repo.delete_branch("main", force=True)
    repo.refs.trim_log(1 << 62)
    repo.gc()
    (condemned,) = (path / "packs").glob("*.condemned")
    assert repo.verify(data=True).ok
    data = bytearray(condemned.read_bytes())
    data[len(data) // 2] ^= 1
    condemned.chmod(0o644)
    condemned.write_bytes(data)
    (damage,) = Repository.open(path).verify().damaged
    assert (damage.kind, damage.path) == ("record", "collections")
    assert str(condemned) in damage.reason
    (path / "refs" / "gc").write_bytes(b"{}")
    (damage,) = Repository.open(path).verify().damaged
    assert damage.path == "collections"


def test_a_damaged_ref_and_what_the_log_has(path: Path) -> None:
    tip = Repository.open(path).resolve("main").commit
    assert tip is not None
    (path / "refs" / "heads" / "main").write_bytes(b"")
    report = Repository.open(path).verify()
    assert format_cid(tip) in report.damaged[0].reason
    assert report.commits == 2  # what it leads to is checked all the same


def test_a_damaged_tag_is_not_taken_for_the_branch_of_its_name(path: Path) -> None:
    repo = Repository.open(path)
    tip, first = repo.resolve("main").commit, repo.resolve("main~1").commit
    assert tip is not None
    assert first is not None
    repo.create_tag("twin", first)
    repo.create_branch("twin", tip)
    (path / "refs" / "tags" / "twin").write_bytes(b"")
    (damage,) = Repository.open(path).verify().damaged
    assert damage.path == "tag twin"
    assert format_cid(first) in damage.reason


def test_blocks_that_a_remote_has_promised(path: Path, tmp_path: Path) -> None:
    repo = Repository.open(path)
    shutil.copytree(path, tmp_path / "other")
    behind = Repository.open(tmp_path / "other").blocks
    missing = [cid_of(RAW, BLAKE3, CHUNKS[f"a/c/{number}"]) for number in (5, 6)]
    for cid in missing:
        repo.blocks.delete(cid)
    assert not repo.verify().ok
    tiers = TieredBlocks(repo.blocks, [behind])
    report = verify(tiers, repo.refs, data=True)
    assert report.ok
    assert report.promised == 2
    assert not any(repo.blocks.has_many(missing))  # they were not fetched for that
    flip(path, CHUNKS["a/c/3"])
    report = verify(TieredBlocks(Repository.open(path).blocks, [behind]), repo.refs, data=True)
    assert [damage.path for damage in report.damaged] == ["a/c/3"]


def test_more_damage_than_a_report_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MAX_LISTED", 3)
    repo = Repository.memory()
    session = repo.session()
    session.prepare().set_value("a/zarr.json", b"{}")
    for number in range(9):
        session.prepare().set_value(f"a/c/{number}", b"%d" % number)
    session.commit("one")
    for number in range(9):
        repo.blocks.delete(cid_of(RAW, BLAKE3, b"%d" % number))
    report = repo.verify()
    assert (len(report.damaged), report.damages, report.arrays[0].chunks) == (3, 9, 9)


def test_seen_is_a_set() -> None:
    seen, model = Seen(), set[int]()
    numbers = np.random.default_rng(0).integers(0, 5000, (40, 200)).astype(np.uint64)
    for part in numbers:
        fresh = seen.add(part)
        for number, new in zip(part.tolist(), fresh.tolist(), strict=True):
            assert new == (number not in model)
            model.add(number)
        assert seen.has(part).all()
    assert seen.has(np.arange(6000, dtype=np.uint64)).sum() == len(model)
