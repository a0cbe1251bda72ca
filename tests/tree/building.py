"""What the tests of the tree build on: tables of chunks from dicts, and blocks that are counted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import RAW, CidBytes
from cas_zarr.tree import chunktree, morton
from cas_zarr.tree.page import Page, PageReader
from cas_zarr.tree.table import Table

__all__ = ["CountingBlocks", "chunks", "fake_cids", "leaf", "reader", "tree_of"]


class CountingBlocks(MemoryBlocks):
    """Blocks in memory that remember which were read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[CidBytes] = []

    def _read(self, cid: CidBytes) -> bytes | None:
        self.reads.append(cid)
        return super()._read(cid)


def fake_cids(count: int, codec: int = RAW) -> np.ndarray:
    """Return CIDs of blocks that are nowhere, all different, shape (count, 36)."""
    cids = np.zeros((count, 36), np.uint8)
    cids[:, :4] = [1, codec, 0x1E, 32]
    cids[:, 4:12] = np.arange(count, dtype="<u8").view(np.uint8).reshape(-1, 8)
    return cids


def chunks(values: Mapping[tuple[int, ...], int], ndim: int) -> Table:
    """Return the table of chunks at some coordinates; a chunk's CID and size follow its value."""
    coordinates = np.array(sorted(values), np.int64).reshape(len(values), ndim)
    sizes = np.array([values[key] for key in sorted(values)], np.uint64)
    cids = fake_cids(len(values))
    cids[:, 4:12] = sizes.astype("<u8").view(np.uint8).reshape(-1, 8)
    return chunktree.chunk_table(morton.encode(coordinates), cids, sizes, ndim)


def reader(blocks: MemoryBlocks | None = None) -> PageReader:
    """Return a reader of pages that remembers nothing yet."""
    return PageReader(CountingBlocks() if blocks is None else blocks)


def tree_of(blocks: MemoryBlocks, ref: chunktree.TreeRef, ndim: int) -> chunktree.ChunkTree:
    """Return a tree that is opened afresh."""
    return chunktree.ChunkTree(PageReader(blocks), ref, ndim)


def leaf(codes: list[int], sizes: list[int] | None = None) -> Page:
    """Return a leaf page with chunks at some relative codes."""
    n = len(codes)
    wide = max(codes, default=0) >= 1 << 64
    return Page(
        0,
        np.array(codes, object if wide else np.uint64),
        fake_cids(n),
        np.array([7] * n if sizes is None else sizes, np.uint64),
        np.ones(n, np.uint64),
    )
