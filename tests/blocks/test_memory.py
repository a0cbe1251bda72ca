"""Blocks in memory."""

from __future__ import annotations

from pathlib import Path

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.testing import BlockStoreSuite, CollectableBlocksSuite


class TestMemoryBlocks(BlockStoreSuite):
    def make_store(self, folder: Path) -> MemoryBlocks:  # noqa: ARG002
        return MemoryBlocks()


class TestCollectableMemoryBlocks(CollectableBlocksSuite):
    def make_store(self, folder: Path) -> MemoryBlocks:  # noqa: ARG002
        return MemoryBlocks()
