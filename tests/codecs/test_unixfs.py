"""UnixFS files: the CIDs that others give them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from cas_zarr.cid import BLAKE3, DAG_PB, RAW, SHA256, CidBytes, cid_of, codec_of, format_cid
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.dagpb import PBLink, PBNode
from cas_zarr.codecs.unixfs import LEAF_SIZE, MAX_LINKS, FileNode, build_file, decode_file_node
from cas_zarr.errors import FormatError, InvalidArgumentError, LimitError

CID = cid_of(RAW, BLAKE3, b"x")
ZEROS = cid_of(RAW, SHA256, bytes(LEAF_SIZE))


def _pattern(size: int) -> bytes:
    at = np.arange(size, dtype=np.uint64)
    return ((at * 31 + (at >> 8)) & 255).astype(np.uint8).tobytes()


# From ipfs-unixfs-importer 17.1.1 under its profile "unixfs-v1-2025".
@pytest.mark.parametrize(
    ("size", "cid"),
    [
        (2**20, "bafkreihwunguy6od2ewcs5mjebv7efvqqq2hi4nfh2s6p7u2i26remhqta"),
        (2**20 + 1, "bafybeiejkouhdadwq6odmdgica7fdicfqhfogaijsax5tnxp3yg56layvy"),
        (3 * 2**20 + 17, "bafybeidihnkmhwu3vxerctpouioci6zveresplf3dhlmueyevj4n2z4etm"),
    ],
)
def test_a_file_has_the_cid_that_others_give_it(size: int, cid: str) -> None:
    data = _pattern(size)
    pieces = [data[at : at + LEAF_SIZE] for at in range(0, size, LEAF_SIZE)]
    leaves = [(cid_of(RAW, SHA256, piece), len(piece)) for piece in pieces]
    assert format_cid(build_file(leaves, SHA256)[0]) == cid


# Zeros, as many MiB and then as many bytes; from the same importer.
@pytest.mark.parametrize(
    ("full", "rest", "cid", "nodes"),
    [
        (1024, 0, "bafybeibqawkaltgjfdebq4no6nmfcvkcw7k52xqzclkwfmrkn6oxw7srmy", 1),
        (1025, 0, "bafybeigt7wofv4vnxbg3titijasuw4ptg5kfztec4smsk7opdt7z6djoxq", 3),
        (1127, 5, "bafybeibuknixlvshduyuievudgf4ihnvovkodvns6jlcwpnvl7wmjcvoaq", 3),
    ],
)
def test_a_file_of_several_levels_has_it_too(full: int, rest: int, cid: str, nodes: int) -> None:
    leaves = [(ZEROS, LEAF_SIZE)] * full
    if rest:
        leaves.append((cid_of(RAW, SHA256, bytes(rest)), rest))
    root, blocks = build_file(leaves, SHA256)
    assert format_cid(root) == cid
    assert len(blocks) == nodes


def test_the_example_of_the_profile_is_a_bare_leaf() -> None:
    leaf = cid_of(RAW, SHA256, b"hello world")  # IPIP-499, test fixtures
    assert format_cid(leaf) == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    assert build_file([(leaf, 11)], SHA256) == (leaf, [])
    assert build_file([(leaf, 0)], SHA256) == (leaf, [])


def _leaves_below(cid: CidBytes, blocks: dict[CidBytes, bytes]) -> list[tuple[int, CidBytes, int]]:
    """Return depth, CID and size of every leaf, in order."""
    found = []

    def visit(cid: CidBytes, size: int, depth: int) -> None:
        if codec_of(cid) == RAW:
            found.append((depth, cid, size))
            return
        node = decode_file_node(blocks[cid])
        assert node.size == size
        assert node.data == b""
        for child, child_size in zip(node.links, node.sizes, strict=True):
            visit(child, child_size, depth + 1)

    root = decode_file_node(blocks[cid])
    visit(cid, root.size, 0)
    return found


@given(st.data())
def test_the_leaves_are_found_again_at_one_depth(data: DataObject) -> None:
    count = data.draw(st.sampled_from([2, 3, MAX_LINKS, MAX_LINKS + 1, 2 * MAX_LINKS + 5]))
    sizes = data.draw(st.lists(st.integers(1, 2 * LEAF_SIZE), min_size=1, max_size=5))
    leaves = [
        (cid_of(RAW, BLAKE3, at.to_bytes(4, "big")), sizes[at % len(sizes)]) for at in range(count)
    ]
    root, blocks = build_file(leaves, BLAKE3)
    assert all(cid_of(DAG_PB, BLAKE3, block) == cid for cid, block in blocks)
    assert blocks[-1][0] == root
    found = _leaves_below(root, dict(blocks))
    assert [(cid, size) for _, cid, size in found] == leaves
    assert len({depth for depth, _, _ in found}) == 1


def test_every_node_but_the_last_of_a_level_is_full_and_sizes_add_up() -> None:
    root, blocks = build_file([(ZEROS, LEAF_SIZE)] * (2 * MAX_LINKS + 1), SHA256)
    nodes = {cid: dagpb.decode(block) for cid, block in blocks}
    assert [len(nodes[cid].links) for cid, _ in blocks] == [MAX_LINKS, MAX_LINKS, 1, 3]
    for link in nodes[root].links:
        below = sum(child.tsize or 0 for child in nodes[link.cid].links)
        assert link.tsize == below + len(dict(blocks)[link.cid])
        assert link.name == ""


@pytest.mark.slow
def test_three_levels() -> None:
    leaves = [(ZEROS, 1)] * (MAX_LINKS * MAX_LINKS + 1)
    root, blocks = build_file(leaves, SHA256)
    assert [len(dagpb.decode(block).links) for _, block in blocks[-4:]] == [1, MAX_LINKS, 1, 2]
    found = _leaves_below(root, dict(blocks))
    assert len(found) == len(leaves)
    assert {depth for depth, _, _ in found} == {3}


def test_bad_leaves_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no leaves"):
        build_file([], BLAKE3)
    with pytest.raises(InvalidArgumentError, match="without bytes"):
        build_file([(CID, 1), (CID, 0)], BLAKE3)
    with pytest.raises(LimitError):
        build_file([(CID, 2**62), (CID, 2**62)], BLAKE3)


def _node(data: bytes | None, *names: str) -> bytes:
    return dagpb.encode(PBNode(data, tuple(PBLink(CID, name, 7) for name in names)))


def test_files_of_others_are_read() -> None:
    v0 = CidBytes(b"\x12\x20" + bytes(32))
    inline = dagpb.encode(PBNode(b"\x08\x02\x12\x02ab\x18\x05\x20\x03", (PBLink(v0),)))
    assert decode_file_node(inline) == FileNode(5, (CidBytes(b"\x01\x70" + v0),), (3,), b"ab")
    raw = _node(b"\x08\x00\x12\x02ab\x18\x02")
    assert decode_file_node(raw) == FileNode(2, (), (), b"ab")
    assert decode_file_node(_node(b"\x08\x02")) == FileNode(0, (), (), b"")
    with_times = _node(b"\x08\x02\x18\x03\x20\x03\x38\xa4\x03\x42\x02\x08\x01", "")
    assert decode_file_node(with_times) == FileNode(3, (CID,), (3,), b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        _node(None),
        _node(b""),
        _node(b"\x18\x00"),
        _node(b"\x08\x01"),  # a directory, a symbolic link, a shard of a directory
        _node(b"\x08\x04\x12\x01a"),
        _node(b"\x08\x05\x28\x22\x30\x80\x02"),
        _node(b"\x08\x02\x18\x03\x20\x03"),  # counts that differ
        _node(b"\x08\x02\x18\x03", ""),
        _node(b"\x08\x02\x18\x03\x20\x03", "", ""),
        _node(b"\x08\x02\x18\x04\x20\x03", ""),  # sizes that do not add up
        _node(b"\x08\x02\x20\x03", ""),
        _node(b"\x08\x02\x12\x01a\x18\x03\x20\x03", ""),
        _node(b"\x08\x02\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x20\x03", ""),
        _node(b"\x08\x02\x18\x03\x20\x03", "name"),
        _node(b"\x08\x02\x18\x03\x22\x01\x03", ""),  # packed, out of order, twice, unknown
        _node(b"\x18\x03\x08\x02\x20\x03", ""),
        _node(b"\x08\x02\x08\x02\x18\x03\x20\x03", ""),
        _node(b"\x08\x02\x18\x03\x20\x03\x48\x00", ""),
        _node(b"\x08\x02\x18\x03\x20\x83\x00", ""),
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_file_node(data)


@given(st.data())
def test_a_changed_byte_is_refused_or_adds_up(data: DataObject) -> None:
    _, blocks = build_file([(CID, 300), (CID, 5)], BLAKE3)
    block = bytearray(blocks[0][1])
    block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    try:
        node = decode_file_node(block)
    except FormatError:
        return
    assert node.size == len(node.data) + sum(node.sizes)
    assert len(node.links) == len(node.sizes)
