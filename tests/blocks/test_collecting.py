"""What a folder of packs does for collections beside the suite of all stores."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.merge import merge
from cas_zarr.blocks.pack import Pack
from cas_zarr.cid import SHA256
from cas_zarr.testing.blocks import sample_blocks


def _packs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.car"))


def test_rows_of_an_index_are_found_in_bulk(tmp_path: Path) -> None:
    blocks = sample_blocks(300, 1) | sample_blocks(300, 2, function=SHA256)
    with LocalBlocks(tmp_path, create=True) as store:
        store.put_many(blocks.items())
        store.flush()
    (path,) = _packs(tmp_path)
    index = Pack(str(path)).index
    held = [
        bytes([code, 32]) + digest.tobytes()
        for code, digests, _ in index.records()
        for digest in digests
    ]
    others = [cid[-34:] for cid in sample_blocks(50, 3)]
    keys = held[::-1] + others
    rows = index.find_rows(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 34))
    assert rows.tolist() == [*range(len(held))[::-1], *[-1] * len(others)]


def test_the_name_of_a_pack_never_comes_back(tmp_path: Path) -> None:
    blocks = sample_blocks(5, 1)
    names = set()
    for i in range(3):
        folder = tmp_path / f"{i}"
        with LocalBlocks(folder, create=True) as store:
            store.put_many(blocks.items())
            store.flush()
        (path,) = _packs(folder)
        names.add(path.name)
        for _ in range(3):  # the same blocks at the same places, over and over
            made = merge(str(folder), [Pack(str(path))])
            assert made is not None
            path = Path(made.path)
            names.add(path.name)
    assert len(names) == 12


def test_two_processes_that_merge_the_same_packs_make_one(tmp_path: Path) -> None:
    with LocalBlocks(tmp_path, create=True) as store:
        for seed in range(2):
            store.put_many(sample_blocks(5, seed).items())
            store.flush()
    packs = [Pack(str(path)) for path in _packs(tmp_path)]
    one, other = merge(str(tmp_path), packs), merge(str(tmp_path), packs[::-1])
    assert one is not None
    assert other is not None
    # the sections lie in another order, so the index is another; the same order makes one name
    again = merge(str(tmp_path), packs)
    assert again is not None
    assert one.name == again.name


def test_a_pack_is_locked_until_its_session_has_flushed(tmp_path: Path) -> None:
    store = LocalBlocks(tmp_path, create=True)
    first, second = list(sample_blocks(2, 1).items())
    store.put(*first)
    assert store._writer is not None
    store._writer.full = True
    store.put(*second)  # seals the first pack
    other = LocalBlocks(tmp_path)
    (pack,) = other._folder.packs.values()
    assert other._folder.is_growing(pack)
    store.flush()
    assert not other._folder.is_growing(pack)
    assert not any(other._folder.is_growing(one) for one in store._folder.packs.values())
    store.close()


def test_small_packs_of_a_session_that_has_not_flushed_are_not_merged(tmp_path: Path) -> None:
    store = LocalBlocks(tmp_path, create=True)
    for cid, data in sample_blocks(5, 1).items():
        store.put(cid, data)
        assert store._writer is not None
        store._writer.full = True
    names = {path.name for path in _packs(tmp_path)}
    assert len(names) == 4
    other = LocalBlocks(tmp_path)
    other.tidy()
    assert {path.name for path in _packs(tmp_path)} == names
    store.flush()
    other.tidy()
    assert len(_packs(tmp_path)) == 1
    store.close()
    assert set(LocalBlocks(tmp_path, read_only=True).list()) == set(sample_blocks(5, 1))


def test_a_lock_ends_with_its_store(tmp_path: Path) -> None:
    store = LocalBlocks(tmp_path, create=True)
    for cid, data in sample_blocks(2, 1).items():
        store.put(cid, data)
        assert store._writer is not None
        store._writer.full = True
    other = LocalBlocks(tmp_path)
    (pack,) = other._folder.packs.values()
    assert other._folder.is_growing(pack)
    store.close()
    assert not other._folder.is_growing(pack)


def test_a_child_of_fork_leaves_the_locks_of_its_parent(tmp_path: Path) -> None:
    store = LocalBlocks(tmp_path, create=True)
    for cid, data in sample_blocks(2, 1).items():
        store.put(cid, data)
        assert store._writer is not None
        store._writer.full = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the tests' runner may have threads
        child = os.fork()
    if child == 0:
        store.flush()
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    other = LocalBlocks(tmp_path)
    (pack,) = other._folder.packs.values()
    assert other._folder.is_growing(pack)
    store.flush()
    assert not other._folder.is_growing(pack)


def test_a_pack_that_was_merged_meanwhile_is_passed_by_a_sweep(tmp_path: Path) -> None:
    store = LocalBlocks(tmp_path, create=True)
    for seed in range(3):
        store.put_many(sample_blocks(5, seed).items())
        store.flush()
    marks = store.survey()
    data = marks.condemn(0)
    assert data is not None
    condemned = store.write_list(data)
    other = LocalBlocks(tmp_path)  # does not know of the list
    other.put_many(sample_blocks(5, 9).items())
    other.flush()
    assert other.repack().after == 1
    assert marks.sweep(condemned).blocks == 0
    assert len(set(LocalBlocks(tmp_path, read_only=True).list())) == 20
