"""Blocks in a folder of packs."""

from __future__ import annotations

from pathlib import Path

from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.testing import BlockStoreSuite, CollectableBlocksSuite


class TestLocalBlocks(BlockStoreSuite):
    def make_store(self, folder: Path) -> LocalBlocks:
        return LocalBlocks(folder / "packs", create=True)

    def reopen(self, folder: Path, *, read_only: bool = False) -> LocalBlocks:
        return LocalBlocks(folder / "packs", read_only=read_only)


class TestCollectableLocalBlocks(CollectableBlocksSuite):
    def make_store(self, folder: Path) -> LocalBlocks:
        return LocalBlocks(folder / "packs", create=True)
