"""Several processes write, flush, merge and read in one folder at once."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of
from cas_zarr.testing.blocks import sample_blocks

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["cas_zarr.blocks.local", "cas_zarr.testing.blocks"])

WRITERS, ROUNDS = 8, 12


def _round(writer: int, i: int) -> dict[CidBytes, bytes]:
    own = sample_blocks(6, 1000 * writer + i, largest=400)
    return own | sample_blocks(3, 77_000 + i, largest=400)  # what all of them write


def _write(folder: str, writer: int) -> None:
    with LocalBlocks(folder, create=True) as store:
        for i in range(ROUNDS):
            blocks = _round(writer, i)
            store.put_many(blocks.items())
            store.flush()
            for earlier in range(0, i + 1, 3):
                for cid, data in _round(writer, earlier).items():
                    assert store.get(cid) == data


def _read(folder: str) -> None:
    """Whatever is listed can be read, before and after it was merged."""
    rng = random.Random(5)
    known: list[CidBytes] = []
    with LocalBlocks(folder, read_only=True) as store:
        for _ in range(30):
            known = list({*known, *store.list()})
            for cid in rng.sample(known, min(50, len(known))):
                store.get(cid)


def test_eight_processes_writing_and_merging_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "packs"
    folder.mkdir()
    children = [_context.Process(target=_write, args=(str(folder), i)) for i in range(WRITERS)]
    children.append(_context.Process(target=_read, args=(str(folder),)))
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * len(children)
    everything: dict[CidBytes, bytes] = {}
    for writer in range(WRITERS):
        for i in range(ROUNDS):
            everything |= _round(writer, i)
    with LocalBlocks(folder) as store:
        assert not list(folder.glob("*.part"))
        assert sorted(store.list()) == sorted(everything)
        assert all(store.get(cid) == data for cid, data in everything.items())
        # a flush leaves merging to a process that is at it: the next quiet one catches up
        last = cid_of(RAW, BLAKE3, b"last")
        store.put(last, b"last")
        store.flush()
        assert store.stats().packs < 20
        assert sorted(store.list()) == sorted([*everything, last])
