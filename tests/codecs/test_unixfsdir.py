"""UnixFS directories: the CIDs that others give them, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.cid import BLAKE3, RAW, SHA256, CidBytes, HashFunction, cid_of, format_cid
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.dagpb import PBLink, PBNode
from cas_zarr.codecs.murmur3 import murmur3
from cas_zarr.codecs.unixfsdir import (
    THRESHOLD,
    DirectoryBlock,
    decode_directory,
    directory_blocks,
    node_type,
    position,
)
from cas_zarr.errors import FormatError, InvalidArgumentError

CID = cid_of(RAW, BLAKE3, b"x")
SHARD = b"\x08\x05\x12\x01\x01\x28\x22\x30\x80\x02"  # a link at place 0, fanout 256


def directory(n: int, function: HashFunction) -> list[DirectoryBlock]:
    contents = [b"%d" % i for i in range(n)]
    names = [f"f{i:06d}" for i in range(n)]
    cids = b"".join(cid_of(RAW, function, data) for data in contents)
    return list(directory_blocks(names, cids, list(map(len, contents)), function))


def node(data: bytes, *links: PBLink) -> bytes:
    return dagpb.encode(PBNode(data, links))


# The first two are published results of the reference implementation.
@pytest.mark.parametrize(
    ("name", "word"),
    [
        (b"hello", 0xCBD8A7B341BD9B02),
        (b"The quick brown fox jumps over the lazy dog", 0xE34BBC7BBC071B6C),
        (b"", 0),
    ],
)
def test_murmur3_gives_what_the_reference_gives(name: bytes, word: int) -> None:
    assert murmur3([name]).tolist() == [word]


def test_names_of_all_lengths_are_hashed_together_as_alone() -> None:
    names = [bytes(range(length)) for length in range(70)]
    assert murmur3(names * 2).tolist() == [int(murmur3([name])[0]) for name in names] * 2


# From Kubo 0.43.1 under its profile "unixfs-v1-2025", the first ones from the npm package
# ipfs-unixfs-importer 17.1.1 too. 5140 entries make a block of exactly 256 KiB.
@pytest.mark.parametrize(
    ("n", "function", "cid", "blocks", "size"),
    [
        (1, SHA256, "bafybeidp6b4flqjw37uxzlc4ess2e2teyvsmhh4zq6hfpsiccgqt57mjiy", 1, 56),
        (255, SHA256, "bafybeieuyr7a3c5scplwjllbjbej22ek4gsmu32h6mgj5qdgihasl5ro4e", 1, 13664),
        (5140, SHA256, "bafybeidynaya5couyoz3rngqhcpin3o2nrktfjca7bcvxsz7lddkmth5hi", 1, 281594),
        (5141, SHA256, "bafybeifd2wsr4v5pmft7xmpxpnqp2t7erhhguehdnvp5wlexglhh3jqxbm", 456, 330639),
        (10000, SHA256, "bafybeianw7qpcprjnypm2oiju4vhrakjdkgxl5pocrkoukhdehwdeeykam", 944, 646773),
        (5140, BLAKE3, "bafyb4iaykr3rq4wsyab6xgxdzvdjv4i2epgimmg3qcyscm3v2y7o2tzicy", 1, 281594),
        (5141, BLAKE3, "bafyb4ifizuvfznkztdpvuveup54mji7r2nia3xlqzaeejzg7dfb6ag6pxm", 456, 330639),
    ],
)
def test_a_directory_has_the_cid_that_others_give_it(
    n: int, function: HashFunction, cid: str, blocks: int, size: int
) -> None:
    found = directory(n, function)
    assert (format_cid(found[-1].cid), len(found), found[-1].tsize) == (cid, blocks, size)


def test_shards_come_before_those_that_link_them() -> None:
    seen: set[CidBytes] = set()
    for block in directory(6000, BLAKE3):
        for entry in decode_directory(block.data).entries:
            assert entry.name is not None or entry.cid in seen
        seen.add(block.cid)


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(names.filter(lambda name: name not in (".", "..")), unique=True, max_size=20))
def test_what_was_written_is_read_whatever_the_order(found: list[str]) -> None:
    cids = b"".join(cid_of(RAW, BLAKE3, name.encode()) for name in found)
    (block,) = directory_blocks(found, cids, [7] * len(found), BLAKE3)
    entries = decode_directory(block.data).entries
    assert sorted(entry.name or "" for entry in entries) == sorted(found)
    for entry in entries:
        assert entry.cid == cid_of(RAW, BLAKE3, (entry.name or "").encode())
        assert entry.tsize == 7
    back = b"".join(cids[36 * i : 36 * i + 36] for i in reversed(range(len(found))))
    assert [*directory_blocks(found[::-1], back, [7] * len(found), BLAKE3)] == [block]


def test_names_stand_where_their_hashes_say() -> None:
    top = directory(6000, SHA256)[-1]
    shard = decode_directory(top.data)
    assert shard.fanout == 256
    assert all(a.place < b.place for a, b in pairwise(shard.entries))
    for entry in shard.entries:
        assert entry.name is None or position(entry.name, 0, 256) == entry.place


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "\ud800", "x" * 1025])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        list(directory_blocks([name], CID, [1], BLAKE3))
    if name.isascii():
        with pytest.raises(FormatError):
            decode_directory(node(b"\x08\x01", PBLink(CID, name, 1)))


@pytest.mark.parametrize("n", [2, 7000])
def test_a_name_is_there_once(n: int) -> None:
    found = [f"{i}" for i in range(n - 1)] + ["0"]
    with pytest.raises(InvalidArgumentError, match="'0' twice"):
        list(directory_blocks(found, CID * n, [1] * n, BLAKE3))


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="as many"):
        list(directory_blocks(["a", "b"], CID, [1, 1], BLAKE3))


@pytest.mark.parametrize(
    ("data", "links", "message"),
    [
        (b"\x08\x02\x18\x00", (), "is a file"),
        (b"\x08\x04", (), "is a symlink"),
        (b"\x08\x09", (), "type 9"),
        (b"", (), "type None"),
        (b"\x08\x01\x08\x01", (), "twice"),
        (b"\x08\x01", (PBLink(CID, "a", 1), PBLink(CID, "a", 1)), "twice or out of order"),
        (SHARD, (), "0 links and 1 places"),
        (SHARD, (PBLink(CID, "01a", 1),), "at the place 0"),
        (SHARD, (PBLink(CID, "00..", 1),), "no name"),
        (SHARD, (PBLink(CID, "00a/b", 1),), "no name"),
        (SHARD.replace(b"\x28\x22", b"\x28\x23"), (PBLink(CID, "00a", 1),), "hash 35"),
        (SHARD.replace(b"\x80\x02", b"\x81\x02"), (PBLink(CID, "00a", 1),), "fanout of 257"),
        (SHARD.replace(b"\x80\x02", b"\x80\x80\x08"), (PBLink(CID, "00a", 1),), "fanout of 131"),
        (b"\x08\x05\x12\x21" + b"\1" * 33 + SHARD[5:], (), "places beyond"),
        (b"\x08\x05\x28\x22", (), "fanout of None"),
    ],
)
def test_nodes_that_are_no_directories_are_refused(
    data: bytes, links: tuple[PBLink, ...], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        decode_directory(node(data, *links))


def test_a_node_without_data_is_no_unixfs() -> None:
    with pytest.raises(FormatError, match="no unixfs"):
        node_type(dagpb.encode(PBNode(None, ())))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_directory_or_a_clear_error(data: bytes) -> None:
    with suppress(FormatError):
        decode_directory(data)


def test_the_longest_directory_of_one_node_has_just_the_limit() -> None:
    assert len(directory(5140, BLAKE3)[0].data) == THRESHOLD
