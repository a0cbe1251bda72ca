"""Blocks in a folder of packs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import BLAKE3, RAW, SHA256, CidBytes, cid_of
from cas_zarr.testing import BlockStoreSuite, CollectableBlocksSuite
from cas_zarr.testing.blocks import sample_blocks


class TestLocalBlocks(BlockStoreSuite):
    def make_store(self, folder: Path) -> LocalBlocks:
        return LocalBlocks(folder / "packs", create=True)

    def reopen(self, folder: Path, *, read_only: bool = False) -> LocalBlocks:
        return LocalBlocks(folder / "packs", read_only=read_only)


class TestCollectableLocalBlocks(CollectableBlocksSuite):
    def make_store(self, folder: Path) -> LocalBlocks:
        return LocalBlocks(folder / "packs", create=True)


def test_an_array_of_multihashes_is_looked_for_as_one_by_one(tmp_path: Path) -> None:
    store = LocalBlocks(tmp_path, create=True)
    other = LocalBlocks(tmp_path)
    blocks = [(cid_of(RAW, BLAKE3, b"%d" % n), b"%d" % n) for n in range(1200)]
    blocks += [(cid_of(RAW, SHA256, b"%d" % n), b"%d" % n) for n in range(50)]
    store.put_many(blocks[::4])
    store.flush()
    store.put_many(blocks[1::4])
    assert not store.has_array(np.zeros((0, 34), np.uint8)).size
    other.put_many(blocks[2::4])
    other.flush()  # store has not seen this pack yet
    cids = [cid for cid, _ in blocks]
    for some in (cids, cids[:40]):
        keys = np.frombuffer(b"".join(cid[2:] for cid in some), np.uint8).reshape(-1, 34)
        held = LocalBlocks(tmp_path).has_array(keys).tolist()
        assert held == [n % 4 in (0, 2) for n in range(len(some))]
        assert store.has_array(keys).tolist() == [n % 4 != 3 for n in range(len(some))]


def test_threads_that_miss_at_once_all_learn_of_a_new_pack(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    with (
        LocalBlocks(tmp_path / "p", create=True) as writer,
        LocalBlocks(tmp_path / "p") as reader,
        ThreadPoolExecutor(8) as pool,
    ):

        def read(cid: CidBytes) -> bytes:
            barrier.wait()
            return reader.get(cid)

        for seed in range(60):
            ((cid, data),) = sample_blocks(1, seed).items()
            writer.put(cid, data)
            writer.flush()
            assert list(pool.map(read, [cid] * 8)) == [data] * 8
