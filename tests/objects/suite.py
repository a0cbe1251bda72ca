"""The suite of block stores for what keeps multihashes, and tells each block as raw."""

from __future__ import annotations

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_PB, RAW, SHA256, CidBytes, cid_of, make_cid
from cas_zarr.testing import BlockStoreSuite

__all__ = ["ObjectStoreSuite"]


class ObjectStoreSuite(BlockStoreSuite):
    """Inherit as from `BlockStoreSuite`."""

    def test_a_cid_of_version_0_is_the_one_of_version_1(self, store: BlockStore) -> None:
        data = b"\x0a\x00"
        newer = cid_of(DAG_PB, SHA256, data)
        store.put(CidBytes(b"\x12\x20" + newer[-32:]), data)
        assert store.get(newer) == store.get(CidBytes(b"\x12\x20" + newer[-32:])) == data
        assert list(store.list()) == [make_cid(RAW, SHA256, newer[-32:])]

    def test_list_gives_each_block_once_with_its_cid(self, store: BlockStore) -> None:
        held = set()
        for codec in (RAW, DAG_CBOR, DAG_PB):
            for function in (BLAKE3, SHA256):
                data = bytes([codec]) * 50_000
                cid = cid_of(codec, function, data)
                for _ in range(2):
                    store.put(cid, data)
                held.add(make_cid(RAW, function, cid[-32:]))
        assert sorted(store.list()) == sorted(held)
