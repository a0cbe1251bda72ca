"""Blocks in object storage: in memory and in a folder, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from cas_zarr.blocks.objectstore import ObjectStoreBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_PB, RAW, SHA256, CidBytes, cid_of, make_cid
from cas_zarr.testing import BlockStoreSuite


class ObjectStoreSuite(BlockStoreSuite):
    """The suite for what tells each block as raw."""

    def test_a_cid_of_version_0_is_the_one_of_version_1(self, store: ObjectStoreBlocks) -> None:
        data = b"\x0a\x00"
        newer = cid_of(DAG_PB, SHA256, data)
        store.put(CidBytes(b"\x12\x20" + newer[-32:]), data)
        assert store.get(newer) == store.get(CidBytes(b"\x12\x20" + newer[-32:])) == data
        assert list(store.list()) == [make_cid(RAW, SHA256, newer[-32:])]

    def test_list_gives_each_block_once_with_its_cid(self, store: ObjectStoreBlocks) -> None:
        held = set()
        for codec in (RAW, DAG_CBOR, DAG_PB):
            for function in (BLAKE3, SHA256):
                data = bytes([codec]) * 50_000
                cid = cid_of(codec, function, data)
                for _ in range(2):
                    store.put(cid, data)
                held.add(make_cid(RAW, function, cid[-32:]))
        assert sorted(store.list()) == sorted(held)


class TestObjectsInMemory(ObjectStoreSuite):
    def make_store(self, folder: Path) -> ObjectStoreBlocks:  # noqa: ARG002
        self.objects = MemoryStore()
        return ObjectStoreBlocks(self.objects, "some/where")

    def reopen(self, folder: Path, *, read_only: bool = False) -> ObjectStoreBlocks:  # noqa: ARG002
        return ObjectStoreBlocks(self.objects, "some/where", read_only=read_only)


class TestObjectsInAFolder(ObjectStoreSuite):
    def make_store(self, folder: Path) -> ObjectStoreBlocks:
        return self.reopen(folder)

    def reopen(self, folder: Path, *, read_only: bool = False) -> ObjectStoreBlocks:
        return ObjectStoreBlocks(LocalStore(folder), read_only=read_only)
