"""Blocks in object storage: in memory and in a folder, without a server."""

from __future__ import annotations

from pathlib import Path

from objects.suite import ObjectStoreSuite
from obstore.store import LocalStore, MemoryStore

from cas_zarr.blocks.objectstore import ObjectStoreBlocks


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
