"""A real node as a block store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Kubo

from cas_zarr.blocks.ipfsnode import multihash_of
from cas_zarr.blocks.kubo import KuboBlocks, KuboNode
from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_PB,
    RAW,
    SHA256,
    CidBytes,
    cid_of,
    encode_varint,
    format_cid,
)
from cas_zarr.codecs.car import encode_roots, section_head
from cas_zarr.errors import BlockNotFoundError, RemoteError
from cas_zarr.testing import BlockStoreSuite


def as_raw(cid: CidBytes) -> CidBytes:
    return CidBytes(b"\x01" + encode_varint(RAW) + multihash_of(cid))


class OwnBlocks(KuboBlocks):
    """The blocks of a node but for those that it was born with."""

    born: frozenset[CidBytes] = frozenset()

    def list(self) -> Iterator[CidBytes]:
        return (cid for cid in super().list() if cid not in self.born)


class TestKuboBlocks(BlockStoreSuite):
    @pytest.fixture(autouse=True)
    def empty_node(self, kubo: Kubo) -> None:
        self.url = kubo.rpc
        blocks = KuboBlocks(kubo.rpc)
        kubo.run("repo", "gc", "-q")
        self.born = frozenset(blocks.list())

    def make_store(self, folder: Path) -> KuboBlocks:
        return self.reopen(folder)

    def reopen(self, folder: Path, *, read_only: bool = False) -> KuboBlocks:  # noqa: ARG002
        store = OwnBlocks(self.url, read_only=read_only)
        store.born = self.born
        return store

    # A node keeps multihashes, and tells each block as raw.

    def test_a_cid_of_version_0_is_the_one_of_version_1(self, store: KuboBlocks) -> None:
        data = b"\x0a\x00"
        newer = cid_of(DAG_PB, SHA256, data)
        store.put(CidBytes(b"\x12\x20" + newer[-32:]), data)
        assert store.get(newer) == store.get(CidBytes(b"\x12\x20" + newer[-32:])) == data
        assert list(store.list()) == [as_raw(newer)]

    def test_list_gives_each_block_once_with_its_cid(self, store: KuboBlocks) -> None:
        held = set()
        for codec in (RAW, DAG_CBOR, DAG_PB):
            for function in (BLAKE3, SHA256):
                data = bytes([codec]) * 50_000
                cid = cid_of(codec, function, data)
                for _ in range(2):
                    store.put(cid, data)
                held.add(as_raw(cid))
        assert sorted(store.list()) == sorted(held)


def test_a_pin_asks_for_all_that_is_below(kubo: Kubo) -> None:
    import dag_cbor
    from multiformats import CID

    node = KuboNode(kubo.rpc)
    leaf = cid_of(RAW, BLAKE3, b"leaf of a pin")
    data = dag_cbor.encode([CID.decode(bytes(leaf))])
    top = cid_of(DAG_CBOR, BLAKE3, data)
    node.block_put(top, data)
    with pytest.raises(BlockNotFoundError, match="bafkr4i"):
        node.pin_add(top)
    assert not node.is_pinned(top)
    node.block_put(leaf, b"leaf of a pin")
    node.pin_add(top, name="a pin")
    assert node.is_pinned(top)
    assert not node.is_pinned(leaf)
    assert ("a pin", top) in [(pin.name, pin.cid) for pin in node.pins()]
    with pytest.raises(RemoteError, match="pinned"):
        node.block_rm(leaf)
    other = dag_cbor.encode([CID.decode(bytes(leaf)), 1])
    new = cid_of(DAG_CBOR, BLAKE3, other)
    node.block_put(new, other)
    node.pin_update(top, new)
    assert node.is_pinned(top)
    assert node.is_pinned(new)
    for cid in (top, new, new):
        node.pin_rm(cid)
    assert not node.is_pinned(top)


def test_names_are_made_published_and_resolved(kubo: Kubo) -> None:
    node = KuboNode(kubo.rpc)
    cid = cid_of(RAW, BLAKE3, b"named")
    node.block_put(cid, b"named")
    name = node.key_gen("kubo-test")
    assert node.keys()["kubo-test"] == name
    assert name.startswith("k51")
    assert node.name_publish(cid, "kubo-test", lifetime="1h", ttl="1m") == name
    assert node.name_resolve(name) == f"/ipfs/{format_cid(cid)}"
    with pytest.raises(RemoteError, match="already exists"):
        node.key_gen("kubo-test")


def test_a_damaged_car_and_a_gateway_in_place_of_the_rpc_are_told(kubo: Kubo) -> None:
    node = KuboNode(kubo.rpc)
    cid = cid_of(RAW, BLAKE3, b"right")
    with pytest.raises(RemoteError, match="dag/import"):
        node.import_car([encode_roots(()), section_head(cid, 5), b"wrong"])
    with pytest.raises(RemoteError, match="gateway"):
        KuboNode(kubo.gateway).version()


def test_only_blocks_of_known_hashes_are_listed(kubo: Kubo) -> None:
    kubo.run("block", "put", "--mhtype=sha2-512", input=b"of another hash")
    blocks = KuboBlocks(kubo.rpc)
    assert all(cid[2] in (0x12, 0x1E) for cid in blocks.list())
