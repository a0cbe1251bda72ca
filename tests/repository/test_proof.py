"""Proofs: what they show, that they are small, and that nothing else passes for one."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from syncing import array, commit, grid

from cas_zarr.cid import DAG_JSON, DAG_PB, RAW, CidBytes, cid_of, encode_varint, format_cid
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.car import CarReader, CarWriter
from cas_zarr.codecs.dagpb import PBLink, PBNode
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    FormatError,
    InvalidArgumentError,
    LimitError,
    NotFoundError,
    StorageError,
)
from cas_zarr.repository import proof as proofs
from cas_zarr.repository.proof import check_proof, prove
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.selection import index_box
from cas_zarr.tree.chunktree import build, chunk_table
from cas_zarr.tree.morton import encode
from cas_zarr.tree.node import Header, Node, Root
from cas_zarr.tree.page import Page
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.walk import reachable

SIDE = 48


@pytest.fixture(scope="module")
def repo() -> Repository:
    """Return a repository with arrays of which some chunks are absent."""
    repo = Repository.memory()
    values: dict[str, bytes | None] = dict(grid("g/a", SIDE, 1) | grid("b", SIDE, 2))
    for i in range(10, 20):
        del values[f"g/a/c/{i}/{i}"]
    values["g/zarr.json"] = b'{"node_type": "group"}'
    values["long/zarr.json"] = b'{"attributes": "' + b"x" * 100_000 + b'"}'
    values["point/zarr.json"] = array((), ())
    values["point/c"] = b"7"
    values["large/zarr.json"] = array((4_000_000,), (3_000_000,))
    values["large/c/0"] = bytes(3_000_000)
    values["large/c/1"] = np.arange(750_000, dtype="<u4").tobytes()
    commit(repo, values, "one")
    return repo


@pytest.fixture(scope="module")
def root(repo: Repository) -> CidBytes:
    return repo.resolve("main").root


def _blocks(car: bytes) -> dict[CidBytes, bytes]:
    return dict(CarReader(io.BytesIO(car)))


def _car(root: CidBytes, blocks: dict[CidBytes, bytes], version: int = 1) -> bytes:
    stream = io.BytesIO()
    writer = CarWriter(stream, [root], version=version)
    for cid, data in blocks.items():
        writer.put(cid, data)
    writer.finish()
    return stream.getvalue()


def test_a_proof_shows_what_is_there_and_what_is_not(repo: Repository, root: CidBytes) -> None:
    box = [(8, 14), (8, 14)]
    car = prove(repo, "main", "g/a", box)
    shown = check_proof(car, root, "g/a", box)
    mapping = repo.at("main")
    assert shown.root == root
    assert shown.form == "c/2"
    assert shown.box == ((8, 14), (8, 14))
    assert shown.documents == {"zarr.json": mapping["g/a/zarr.json"]}
    assert len(shown) == 36 - 4
    assert shown.missing == 4
    assert shown.absent().tolist() == [[i, i] for i in range(10, 14)]
    for at, cid, size in zip(shown.coordinates, shown.cids, shown.sizes, strict=True):
        key = f"g/a/c/{at[0]}/{at[1]}"
        assert mapping.cid_of(key) == cid.tobytes()
        assert size == len(mapping[key])
    assert not shown.data_verified
    part = check_proof(car, format_cid(root), "/g/a/", [slice(9, 12), slice(9, 12)])
    assert part.absent().tolist() == [[10, 10], [11, 11]]


def test_the_whole_array_if_no_box_is_asked_for(repo: Repository, root: CidBytes) -> None:
    shown = check_proof(prove(repo, root, "g/a"), root, "g/a")
    assert shown.box == ((0, SIDE), (0, SIDE))
    assert shown.missing == 10
    assert shown.absent().tolist() == [[i, i] for i in range(10, 20)]


def test_a_proof_is_its_root_and_pages(repo: Repository, root: CidBytes) -> None:
    box = index_box((2 * SIDE, 2 * SIDE), (2, 2), [slice(0, 2), slice(0, 2)])
    car = prove(repo, "main", "g/a", box)
    blocks = _blocks(car)
    assert CarReader(io.BytesIO(car)).header.roots == (root,)
    assert len(blocks) == 2  # the root, with the top page in it, and one leaf page
    heads = 60 + 40 * len(blocks)
    assert len(car) <= sum(map(len, blocks.values())) + heads
    assert check_proof(car, root, "g/a", box).size == sum(map(len, blocks.values()))
    pages = {cid for _, cid in reachable(repo.blocks, root, values=False)}
    assert set(blocks) < pages
    whole = prove(repo, "main", "g/a")
    assert set(_blocks(whole)) < pages
    with_chunks = prove(repo, "main", "g/a", box, chunks=True)
    assert len(_blocks(with_chunks)) == 3
    assert with_chunks == prove(repo, "main", "g/a", box, chunks=True)


@pytest.mark.parametrize("path", ["g/a", "large", "point"])
def test_the_values_can_be_in_it_and_are_verified(
    repo: Repository, root: CidBytes, path: str
) -> None:
    car = prove(repo, "main", path, chunks=True)
    assert check_proof(car, root, path).data_verified
    blocks = _blocks(car)
    bare = set(_blocks(prove(repo, "main", path)))
    values = [cid for cid in blocks if cid not in bare]
    assert values
    for cid in values[:5]:
        less = {other: data for other, data in blocks.items() if other != cid}
        assert not check_proof(_car(root, less), root, path).data_verified


def test_an_array_of_no_dimensions_and_a_group(repo: Repository, root: CidBytes) -> None:
    shown = check_proof(prove(repo, "main", "point"), root, "point")
    assert (shown.form, len(shown), shown.missing, shown.box) == ("c", 1, 0, ())
    group = check_proof(prove(repo, "main", "g"), root, "g")
    assert (group.form, len(group)) == (None, 0)
    assert group.documents == {"zarr.json": b'{"node_type": "group"}'}
    whole = check_proof(prove(repo, "main", ""), root, "")
    assert whole.documents == {}
    long = check_proof(prove(repo, "main", "long"), root, "long")
    assert long.documents["zarr.json"] == repo.at("main")["long/zarr.json"]


def test_what_is_not_there_is_proved_too(repo: Repository, root: CidBytes) -> None:
    car = prove(repo, "main", "g/a")
    for path in ("g/b", "nothing", "g/a/c"):
        with pytest.raises(NotFoundError, match="no node") as caught:
            check_proof(car, root, path)
        assert not isinstance(caught.value, BlockNotFoundError)
        with pytest.raises(NotFoundError):
            prove(repo, "main", path)
    beyond = check_proof(car, root, "g/a", [(100, 102), (0, 3)])
    assert (len(beyond), beyond.missing) == (0, 6)
    other = check_proof(car, root, "g/a", [(0, 5)])  # no chunk has one coordinate
    assert (other.form, other.missing) == (None, 5)


def test_a_proof_of_something_else_covers_nothing(repo: Repository, root: CidBytes) -> None:
    car = prove(repo, "main", "g/a", [(0, 2), (0, 2)])
    with pytest.raises(BlockNotFoundError, match="does not cover what is asked of g/a"):
        check_proof(car, root, "g/a")
    with pytest.raises(BlockNotFoundError, match="does not cover what is asked of b"):
        check_proof(car, root, "b", [(0, 2), (0, 2)])
    data = (
        b'{"docs":{"zarr.json":"{}"},"header":{"hash":"blake3","type":"cas-zarr/root","version":1}}'
    )
    other = Root.from_block(data).cid()
    with pytest.raises(BlockNotFoundError, match=format_cid(other)):
        check_proof(car, other, "g/a")
    for wrong in (cid_of(RAW, Header().function, b"x"), repo.resolve("main").commit):
        assert wrong is not None
        with pytest.raises(InvalidArgumentError, match="no root"):
            check_proof(car, wrong, "g/a")


def test_a_proof_lies_in_a_file_and_in_a_car_of_version_2(
    repo: Repository, root: CidBytes, tmp_path: Path
) -> None:
    car = prove(repo, "main", "g/a", chunks=True)
    file = tmp_path / "proof.car"
    file.write_bytes(car)
    assert check_proof(file, root, "g/a").data_verified
    file.write_bytes(_car(root, _blocks(car), version=2))
    assert check_proof(str(file), root, "g/a").data_verified
    with pytest.raises(StorageError, match="check its path"):
        check_proof(tmp_path / "nowhere.car", root, "g/a")


def test_threads_that_read_a_proof_do_not_disturb_each_other(tmp_path: Path) -> None:
    repo = Repository.memory()
    text = b'{"attributes": "' + np.random.default_rng(0).bytes(3_000_000).hex().encode() + b'"}'
    commit(repo, {"long/zarr.json": text})
    root = repo.resolve("main").root
    file = tmp_path / "proof.car"
    file.write_bytes(prove(repo, "main", "long"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            assert check_proof(file, root, "long").documents == {"zarr.json": text}
    finally:
        sys.setswitchinterval(interval)


def test_a_value_of_no_dimensions_can_be_absent() -> None:
    repo = Repository.memory()
    commit(repo, {"p/zarr.json": array((), ())})
    root = repo.resolve("main").root
    shown = check_proof(prove(repo, "main", "p"), root, "p")
    assert (len(shown), shown.missing, shown.absent().shape) == (0, 1, (1, 0))


def test_an_array_of_more_chunks_than_there_can_be() -> None:
    repo = Repository.memory()
    commit(repo, {"p/zarr.json": array((1 << 70,), (1,)), "p/c/7": b"1"})
    root = repo.resolve("main").root
    shown = check_proof(prove(repo, "main", "p"), root, "p")
    assert shown.coordinates.tolist() == [[7]]
    assert shown.box == ((0, 1 << 32),)
    far = index_box((1 << 70,), (2,), [slice((1 << 70) - 9, None)])
    assert far == ((0, 0),)


def test_every_flipped_bit_is_noticed_or_harmless() -> None:
    repo = Repository.memory()
    commit(repo, {**grid("g/a", 5), "b/zarr.json": b"{}"})
    root = repo.resolve("main").root
    box = [(0, 2), (3, 7)]
    car = prove(repo, "main", "g/a", box, chunks=True)
    right = check_proof(car, root, "g/a", box)
    noticed = 0
    for at in range(0, 8 * len(car), 5):
        broken = bytearray(car)
        broken[at // 8] ^= 1 << at % 8
        try:
            found = check_proof(bytes(broken), root, "g/a", box)
        except CasZarrError:
            noticed += 1
            continue
        assert found.coordinates.tolist() == right.coordinates.tolist()
        assert found.cids.tobytes() == right.cids.tobytes()
        assert found.documents == right.documents
    assert noticed > len(car)  # of 8/5 of them


def test_every_truncation_is_refused(repo: Repository, root: CidBytes) -> None:
    car = prove(repo, "main", "g/a", [(0, 2), (0, 2)])
    for end in range(0, len(car), 97):
        with pytest.raises((FormatError, BlockNotFoundError)):
            check_proof(car[:end], root, "g/a", [(0, 2), (0, 2)])


def test_blocks_beside_are_ignored_and_wrong_ones_are_not_believed(
    repo: Repository, root: CidBytes
) -> None:
    blocks = _blocks(prove(repo, "main", "g/a"))
    more = blocks | {cid_of(RAW, Header().function, bytes([i])): bytes([i]) for i in range(99)}
    more[CidBytes(b"\x01\x55\x00\x03abc")] = b"abc"  # an identity
    right = check_proof(_car(root, blocks), root, "g/a")
    shown = check_proof(_car(CidBytes(cid_of(RAW, Header().function, b"")), more), root, "g/a")
    assert shown.cids.tobytes() == right.cids.tobytes()
    assert shown.size == right.size
    for cid in blocks:
        with pytest.raises(CorruptBlockError, match=format_cid(cid)):
            check_proof(_car(root, blocks | {cid: blocks[root] + b" "}), root, "g/a")
    for rubbish in (b"", b"rubbish", bytes(1000)):
        with pytest.raises(FormatError):
            check_proof(rubbish, root, "g/a")


def test_what_is_too_large_is_refused(
    repo: Repository, root: CidBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    car = prove(repo, "main", "g/a")
    with monkeypatch.context() as patch:
        patch.setattr(proofs, "MAX_PROOF_BYTES", 1000)
        with pytest.raises(LimitError, match="over 1000"):
            check_proof(car, root, "g/a")
        with pytest.raises(LimitError, match="leave the chunks out"):
            prove(repo, "main", "g/a", chunks=True)
    with monkeypatch.context() as patch:
        patch.setattr(proofs, "MAX_CHUNKS", 1000)
        for look in (lambda: check_proof(car, root, "g/a"), lambda: prove(repo, "main", "g/a")):
            with pytest.raises(LimitError, match="smaller box"):
                look()
        assert len(check_proof(car, root, "g/a", [(0, 30), (0, 30)])) == 890
    with monkeypatch.context() as patch:
        patch.setattr(proofs, "_MAX_SECTIONS", 3)
        with pytest.raises(LimitError, match="more than 3 blocks"):
            check_proof(car, root, "g/a")
    wide = check_proof(car, root, "g/a", [(0, None), (0, None)])
    assert wide.missing == (1 << 64) - SIDE**2 + 10
    with pytest.raises(LimitError, match="prove a smaller one"):
        wide.absent()
    for wrong in ([(-1, 2), (0, 2)], [slice(0, 4, 2), slice(0, 1)]):
        with pytest.raises(InvalidArgumentError, match="no side of a box"):
            check_proof(car, root, "g/a", wrong)  # type: ignore[arg-type]


def test_pages_that_claim_too_much_come_to_an_end() -> None:
    """One page linked 512 times by the next, level by level: a few blocks, 10^19 chunks."""
    function = Header().function
    blocks: dict[CidBytes, bytes] = {}
    value = cid_of(RAW, function, b"x")
    cids = np.tile(np.frombuffer(value, np.uint8), (512, 1))
    ones = np.ones(512, np.uint64)
    page = Page(0, np.arange(512, dtype=np.uint64), cids, ones, ones)
    prefix, count = 64 - 9, 512
    for level in range(1, 6):
        data = page.to_block()
        cid = cid_of(0x71, function, data)
        blocks[cid] = data
        n = 512
        page = Page(
            level,
            np.arange(n, dtype=np.uint64) << np.uint64(64 - prefix),
            np.tile(np.frombuffer(cid, np.uint8), (n, 1)),
            np.full(n, count, np.uint64),
            np.full(n, count, np.uint64),
            np.full(n, prefix, np.int64),
        )
        prefix, count = prefix - 9, count * n
    data = page.to_block()
    top = cid_of(0x71, function, data)
    blocks[top] = data
    document = (
        '{"docs":{"zarr.json":"{}"},"header":{"hash":"blake3","type":"cas-zarr/root","version":1},'
        f'"trees":{{"c/2":{{"bytes":{count},"chunks":{count},"top":{{"/":"{format_cid(top)}"}}}}}}}}'
    ).encode()
    root = cid_of(DAG_JSON, function, document)
    blocks[root] = document
    car = _car(root, blocks)
    with pytest.raises(LimitError, match="smaller box"):
        check_proof(car, root, "")
    shown = check_proof(car, root, "", [(0, 16), (0, 16)])
    assert len(shown) == 256


def test_a_file_that_links_itself_a_billion_times_comes_to_an_end() -> None:
    function = Header().function
    blocks: dict[CidBytes, bytes] = {}
    leaf = bytes(1 << 20)
    cid, size, below = cid_of(RAW, function, leaf), len(leaf), len(leaf)
    blocks[cid] = leaf
    for _ in range(4):  # 64 links each: 2^44 bytes
        content = b"\x08\x02\x18" + encode_varint(64 * size)
        content += b"".join(b"\x20" + encode_varint(size) for _ in range(64))
        data = dagpb.encode(PBNode(content, (PBLink(cid, "", below),) * 64))
        cid, size, below = cid_of(DAG_PB, function, data), 64 * size, 64 * below + len(data)
        blocks[cid] = data
    reader = TreeReader(Repository.memory().blocks)
    table = chunk_table(
        encode(np.array([[0]])), np.frombuffer(cid, np.uint8)[None], np.array([size], np.uint64), 1
    )
    ref = build(reader, function, table, 1)
    assert ref is not None
    made = Root(Header(), Node(docs={"zarr.json": b"{}"}, trees={"c/1": ref}))
    blocks[made.cid()] = made.to_block()
    shown = check_proof(_car(made.cid(), blocks), made.cid(), "")
    assert shown.data_verified
    assert shown.sizes.tolist() == [1 << 44]


@pytest.mark.parametrize(
    "box", [5, [3], ["a"], [None], [(0, "x")], [(0, 1, 2)], [slice(0, 2.5)], [(0.5, 1)]]
)
def test_what_is_no_box_is_refused(repo: Repository, box: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        prove(repo, "main", "b", box)


def test_what_is_no_path_and_no_proof_is_refused(repo: Repository) -> None:
    root = repo.resolve("main").root
    with pytest.raises(InvalidArgumentError, match="no path"):
        prove(repo, "main", 7)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="no path"):
        check_proof(b"", root, 7)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="no proof"):
        check_proof(7, root, "a")  # type: ignore[arg-type]
