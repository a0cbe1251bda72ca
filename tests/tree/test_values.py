"""Values: one block or a file of leaves, cut where shards are, read in part."""

from __future__ import annotations

import itertools
import json
import mmap
import random
from typing import Any

import google_crc32c
import numpy as np
import pytest
from building import CountingBlocks
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, DAG_PB, RAW, SHA256, CidBytes, HashFunction, cid_of
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.unixfs import build_file, decode_file_node
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    FormatError,
    LimitError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import MAX_VALUE_SIZE, file_blocks, read_value, write_value

MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def leaves_of(blocks: MemoryBlocks, cid: CidBytes, size: int) -> list[tuple[CidBytes, int]]:
    found = file_blocks(TreeReader(blocks), cid, size)
    return [(each, blocks.size(each)) for each in found if each[1] == RAW]


@pytest.mark.parametrize("function", [BLAKE3, SHA256])
@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 3 * MIB, 3 * MIB + 17])
def test_a_value_is_the_unixfs_file_of_one_mib_leaves(size: int, function: HashFunction) -> None:
    data = noise(size)
    blocks = CountingBlocks()
    cid = write_value(blocks, function, data)
    pieces = [data[at : at + MIB] for at in range(0, size, MIB)] or [b""]
    leaves = [(cid_of(RAW, function, piece), len(piece)) for piece in pieces]
    expected, nodes = build_file(leaves, function)
    assert cid == expected
    assert set(blocks.list()) == {leaf for leaf, _ in leaves} | {node for node, _ in nodes}
    assert bytes(read_value(TreeReader(blocks), cid, size)) == data


def test_a_mapping_stores_a_value_as_that_file() -> None:
    data = noise(2 * MIB + 5)
    mapping = CASMapping(CountingBlocks(), hash="sha2-256")
    mapping["a/b"] = data
    pieces = [data[at : at + MIB] for at in range(0, len(data), MIB)]
    leaves = [(cid_of(RAW, SHA256, piece), len(piece)) for piece in pieces]
    assert mapping.cid_of("a/b") == build_file(leaves, SHA256)[0]
    assert mapping["a/b"] == data


@settings(max_examples=40)
@given(st.integers(0, 5 * MIB + 40), st.integers(0, 5 * MIB + 40))
def test_a_range_opens_only_the_leaves_that_it_touches(start: int, stop: int) -> None:
    reader = TreeReader(LONG)
    reader.file_node(LONG_CID)
    LONG.reads.clear()
    part = read_value(reader, LONG_CID, len(DATA), start, stop)
    assert bytes(part) == DATA[start:stop]
    end = min(stop, len(DATA))
    touched = 0 if start >= end else (end - 1) // MIB - start // MIB + 1
    assert len(LONG.reads) == touched


DATA = noise(5 * MIB + 11)
LONG = CountingBlocks()
LONG_CID = write_value(LONG, BLAKE3, DATA)


def test_ranges_through_a_mapping() -> None:
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping["k"] = DATA
    mapping["s"] = b"0123456789"
    read = CASMapping(blocks, mapping.flush())
    for key, data in (("k", DATA), ("s", b"0123456789")):
        for start, stop in ((0, 4), (3, None), (-3, None), (-len(data) - 5, 2), (5, 5), (7, 3)):
            part = read.get_value(key, start, stop)
            assert part is not None
            assert bytes(part) == data[start:stop]
        for start, stop in ((len(data), None), (len(data) + 9, None), (2, len(data) + 9)):
            part = read.get_value(key, start, stop)
            assert part is not None
            assert bytes(part) == data[start:stop]
    assert read.get_value("nothing", 1, 2) is None
    blocks.reads.clear()
    assert read.size_of("k") == len(DATA)
    assert blocks.reads == []


def test_a_value_past_four_gib_is_refused_before_it_is_read() -> None:
    with mmap.mmap(-1, MAX_VALUE_SIZE + 1, access=mmap.ACCESS_READ) as huge:
        view = memoryview(huge)
        with pytest.raises(LimitError, match="use smaller chunks"):
            CASMapping(MemoryBlocks()).set_value("a", view)
        view.release()


# -- hostile and damaged files --------------------------------------------------------------


def node_of(leaves: list[tuple[CidBytes, int]], blocks: MemoryBlocks) -> CidBytes:
    cid, nodes = build_file(leaves, BLAKE3)
    blocks.put_many(nodes)
    return cid


def test_claims_are_checked_before_memory_is_taken() -> None:
    blocks = CountingBlocks()
    raw = cid_of(RAW, BLAKE3, b"abc")
    blocks.put(raw, b"abc")
    claimed = node_of([(raw, 2**31), (raw, 2**31 - 5)], blocks)
    reader = TreeReader(blocks)
    with pytest.raises(FormatError, match="a block has at most"):
        read_value(reader, claimed, 2**32 - 5)
    with pytest.raises(FormatError, match="claims 17"):
        read_value(reader, claimed, 17)
    with pytest.raises(LimitError, match="at most"):
        read_value(reader, claimed, 2**40)
    for size in (2, 4, 2**40):
        with pytest.raises(FormatError, match="has 3 bytes where the document or page"):
            read_value(reader, raw, size)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 4), (2, 3), (0, 3), (3, 5)])
def test_a_leaf_of_another_size_is_refused(start: int, stop: int) -> None:
    blocks = CountingBlocks()
    leaves = []
    for piece, size in ((b"ab", 3), (b"cd", 2)):
        leaves.append((cid_of(RAW, BLAKE3, piece), size))
        blocks.put(leaves[-1][0], piece)
    cid = node_of(leaves, blocks)
    if start >= 3:
        assert bytes(read_value(TreeReader(blocks), cid, 5, start, stop)) == b"cd"
        return
    with pytest.raises(CasZarrError):
        read_value(TreeReader(blocks), cid, 5, start, stop)


def test_missing_and_damaged_leaves_are_named() -> None:
    data = noise(2 * MIB)
    for damage in (None, b"\0" * MIB):
        blocks = MemoryBlocks()
        cid = write_value(blocks, BLAKE3, data)
        leaf = cid_of(RAW, BLAKE3, data[MIB:])
        blocks.delete(leaf)
        if damage is not None:
            blocks._blocks[leaf[2:]] = (leaf, damage)
        reader = TreeReader(blocks)
        assert bytes(read_value(reader, cid, len(data), 0, MIB)) == data[:MIB]
        for start in (0, MIB, MIB + 5):
            with pytest.raises(BlockNotFoundError if damage is None else CorruptBlockError):
                read_value(reader, cid, len(data), start)


def test_a_file_whose_nodes_do_not_add_up_is_refused() -> None:
    blocks = CountingBlocks()
    leaf = cid_of(RAW, BLAKE3, b"abc")
    blocks.put(leaf, b"abc")
    inner = node_of([(leaf, 3), (leaf, 3)], blocks)
    outer = node_of([(inner, 7), (leaf, 3)], blocks)  # the inner node has 6
    with pytest.raises(FormatError, match="has 6 bytes"):
        read_value(TreeReader(blocks), outer, 10)
    with pytest.raises(FormatError, match="has 6 bytes"):
        list(file_blocks(TreeReader(blocks), outer, 10))
    assert bytes(read_value(TreeReader(blocks), outer, 10, 7)) == b"abc"


def test_absurd_nesting_of_a_file_is_refused() -> None:
    blocks = CountingBlocks()
    leaf = cid_of(RAW, BLAKE3, b"abc")
    blocks.put(leaf, b"abc")
    cid = leaf
    for _ in range(40):  # nodes of one link each, which build_file does not make
        body = b"\x08\x02\x18\x03\x20\x03"
        data = dagpb.encode(dagpb.PBNode(body, (dagpb.PBLink(cid, "", 3),)))
        assert decode_file_node(data).size == 3
        cid = cid_of(DAG_PB, BLAKE3, data)
        blocks.put(cid, data)
    with pytest.raises(FormatError):
        read_value(TreeReader(blocks), cid, 3)
    with pytest.raises(FormatError):
        list(file_blocks(TreeReader(blocks), cid, 3))


def test_a_file_that_links_one_leaf_a_billion_times_is_walked_once() -> None:
    blocks = CountingBlocks()
    cid, size = cid_of(RAW, BLAKE3, b"abc"), 3
    blocks.put(cid, b"abc")
    cids = {cid}
    for _ in range(6):
        cid, size = node_of([(cid, size)] * 64, blocks), 64 * size
        cids.add(cid)
    found = list(file_blocks(TreeReader(blocks), cid, size))
    assert len(found) == len(cids) == 7
    assert set(found) == cids


def test_inline_bytes_of_a_node_are_read() -> None:
    blocks = CountingBlocks()
    leaf = cid_of(RAW, BLAKE3, b"def")
    blocks.put(leaf, b"def")
    body = b"\x08\x02\x12\x03abc\x18\x06\x20\x03"
    data = dagpb.encode(dagpb.PBNode(body, (dagpb.PBLink(leaf, "", 3),)))
    cid = cid_of(DAG_PB, BLAKE3, data)
    blocks.put(cid, data)
    for start, stop in itertools.combinations(range(7), 2):
        part = read_value(TreeReader(blocks), cid, 6, start, stop)
        assert bytes(part) == b"abcdef"[start:stop]


# -- shards of arrays -----------------------------------------------------------------------

PIECE = 300_000


def array(inner: int = 1, chunks: int = 6, location: str = "end", crc: bool = True) -> bytes:
    """Return the zarr.json of an array of `chunks` bytes in one shard."""
    index = [{"name": "bytes", "configuration": {"endian": "little"}}]
    document: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [chunks * 4],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunks]}},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [inner],
                    "codecs": [{"name": "bytes"}],
                    "index_codecs": index + [{"name": "crc32c"}] * crc,
                    "index_location": location,
                },
            }
        ],
    }
    return json.dumps(document).encode()


def shard(pieces: list[bytes]) -> bytes:
    """Return a shard of inner chunks, in order, with its index at the end."""
    ends = list(itertools.accumulate(map(len, pieces)))
    entries = [(end - len(piece), len(piece)) for end, piece in zip(ends, pieces, strict=True)]
    index = np.array(entries, "<u8").tobytes()
    return b"".join(pieces) + index + google_crc32c.value(index).to_bytes(4, "little")


PIECES = [noise(PIECE, seed) for seed in range(6)]
SHARD = shard(PIECES)


def sharded(documents_first: bool = True, value: bytes = SHARD) -> CASMapping:
    mapping = CASMapping(CountingBlocks())
    if documents_first:
        mapping["a/zarr.json"] = array()
    mapping["a/c/0"] = value
    mapping["a/zarr.json"] = array()
    return mapping


def sizes(mapping: CASMapping, key: str = "a/c/0") -> list[int]:
    cid, size = mapping.cid_of(key), mapping.size_of(key)
    assert cid is not None
    assert size is not None
    return [length for _, length in leaves_of(mapping.blocks, cid, size)]  # type: ignore[arg-type]


CUT = sorted([PIECE] * 6 + [6 * 16 + 4])
PLAIN = sorted([MIB, len(SHARD) - MIB])


def test_a_shard_is_cut_at_its_inner_chunks() -> None:
    mapping = sharded()
    assert sorted(sizes(mapping)) == CUT
    read = CASMapping(mapping.blocks, mapping.flush())
    assert sorted(sizes(read)) == CUT
    assert read["a/c/0"] == SHARD
    blocks = mapping.blocks
    assert isinstance(blocks, CountingBlocks)
    blocks.reads.clear()
    part = read.get_value("a/c/0", 2 * PIECE, 3 * PIECE)
    assert part is not None
    assert bytes(part) == PIECES[2]
    assert cid_of(RAW, BLAKE3, PIECES[2]) in blocks.reads
    assert len([cid for cid in blocks.reads if cid[1] == RAW]) == 1


def test_shards_that_share_inner_chunks_share_blocks() -> None:
    mapping = sharded()
    before = set(mapping.blocks.list())
    mapping["a/c/1"] = shard([*PIECES[:2], noise(PIECE, 99), *PIECES[3:]])
    new = [cid for cid in mapping.blocks.list() if cid not in before and cid[1] == RAW]
    assert [mapping.blocks.size(cid) for cid in new] == [PIECE]


@pytest.mark.parametrize("flushes", list(itertools.product([False, True], repeat=2)))
def test_a_document_that_comes_after_the_shard_cuts_it_anew(flushes: tuple[bool, bool]) -> None:
    expected = sharded().flush()
    mapping = CASMapping(CountingBlocks())
    mapping["a/c/0"] = SHARD
    assert sorted(sizes(mapping)) == PLAIN
    if flushes[0]:
        mapping.flush()
    mapping["a/zarr.json"] = array()
    if flushes[1]:
        mapping = CASMapping(mapping.blocks, mapping.flush())
    assert mapping.flush() == expected
    assert sorted(sizes(mapping)) == CUT
    assert mapping["a/c/0"] == SHARD


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize(
    ("document", "cut"),
    [
        (array(), CUT),
        (array(inner=2), PLAIN),  # three entries are not where the index is
        (array(location="start"), PLAIN),
        (array(crc=False), PLAIN),
        (b'{"node_type":"array"}', PLAIN),
        (b"no json", PLAIN),
        (None, PLAIN),
    ],
)
def test_a_changed_sharding_cuts_anew(document: bytes | None, cut: list[int], flush: bool) -> None:
    mapping = sharded()
    fresh = CASMapping(MemoryBlocks())
    fresh["a/c/0"] = SHARD
    if flush:
        mapping.flush()
    if document is None:
        del mapping["a/zarr.json"]
    else:
        mapping["a/zarr.json"] = fresh["a/zarr.json"] = document
    assert mapping.flush() == fresh.flush()
    assert sorted(sizes(mapping)) == cut
    mapping["a/zarr.json"] = array()
    assert mapping.flush() == sharded().flush()


def test_a_flush_does_not_read_what_was_cut_right() -> None:
    mapping = sharded()
    mapping["k"] = SHARD
    blocks = mapping.blocks
    assert isinstance(blocks, CountingBlocks)
    blocks.reads.clear()
    mapping.flush()
    assert blocks.reads == []


def test_new_attributes_leave_the_shards_unread() -> None:
    mapping = sharded()
    mapping = CASMapping(mapping.blocks, mapping.flush())
    blocks = mapping.blocks
    assert isinstance(blocks, CountingBlocks)
    blocks.reads.clear()
    mapping["a/zarr.json"] = array().replace(b"{", b'{"attributes":{"units":"K"},', 1)
    mapping.flush()
    assert not [cid for cid in blocks.reads if cid[1] == RAW]


def test_keys_that_are_no_chunks_of_the_array_are_cut_as_any_other() -> None:
    mapping = sharded()
    for key in ("a/c/x", "a/shard", "b/c/0", "c/0"):
        mapping[key] = SHARD
        assert sorted(sizes(mapping, key)) == PLAIN
    mapping["a/7"] = SHARD  # a chunk too, if of another encoding
    assert sorted(sizes(mapping, "a/7")) == CUT
    mapping.flush()
    for key in ("a/c/x", "a/shard", "b/c/0", "c/0"):
        assert sorted(sizes(mapping, key)) == PLAIN


def test_owners_that_come_between_take_the_shards_over() -> None:
    mapping = CASMapping(CountingBlocks())
    mapping["zarr.json"] = array()
    mapping["c/0"] = SHARD
    assert sorted(sizes(mapping, "c/0")) == CUT
    mapping.flush()
    mapping["c/.zarray"] = b"{}"  # now it is chunk ".1" of an array that is not sharded
    root = mapping.flush()
    assert sorted(sizes(mapping, "c/0")) == PLAIN
    fresh = CASMapping(MemoryBlocks())
    fresh["c/.zarray"], fresh["c/0"], fresh["zarr.json"] = b"{}", SHARD, array()
    assert fresh.flush() == root


def test_a_shard_that_is_replaced_by_a_small_value_is_forgotten() -> None:
    mapping = sharded()
    mapping["a/c/0"] = b"small"
    fresh = CASMapping(MemoryBlocks())
    fresh["a/zarr.json"], fresh["a/c/0"] = array(), b"small"
    assert mapping.flush() == fresh.flush()
