"""What every block store must do whose garbage can be collected.

::

    class TestMyBlocks(CollectableBlocksSuite):
        def make_store(self, folder):
            return MyBlocks(folder)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cas_zarr.blocks.collectable import CollectableBlocks
from cas_zarr.blocks.condemned import Condemned
from cas_zarr.cid import SHA256, CidBytes
from cas_zarr.errors import BlockNotFoundError, ConflictError
from cas_zarr.testing.blocks import sample_blocks

__all__ = ["CollectableBlocksSuite"]


def _keys(cids: Iterable[CidBytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(cid[-34:] for cid in cids), np.uint8).reshape(-1, 34)


class CollectableBlocksSuite:
    """Inherit and give `make_store`."""

    def make_store(self, folder: Path) -> CollectableBlocks:
        """Return a new, empty store that may use `folder`."""
        raise NotImplementedError

    @pytest.fixture
    def collectable(self, tmp_path: Path) -> CollectableBlocks:
        """Return a new store."""
        return self.make_store(tmp_path / "collectable")

    def fill(self, store: CollectableBlocks) -> tuple[dict[CidBytes, bytes], list[CidBytes]]:
        """Put blocks in three flushes; return all of them, and those that are in use."""
        blocks = sample_blocks(40, 1) | sample_blocks(40, 2, function=SHA256)
        for part in range(3):
            store.put_many(list(blocks.items())[part::3])
            store.flush()
        return blocks, list(blocks)[::2]

    def condemn(self, store: CollectableBlocks, used: Iterable[CidBytes]) -> Condemned:
        """Condemn all blocks but those in use."""
        marks = store.survey()
        marks.mark(_keys(used))
        data = marks.condemn(0)
        assert data is not None
        return store.write_list(data)

    def test_marks_count_and_condemn_what_is_not_marked(
        self, collectable: CollectableBlocks
    ) -> None:
        blocks, used = self.fill(collectable)
        marks = collectable.survey()
        assert marks.blocks == len(blocks)
        assert marks.used() == (0, 0)
        marks.mark(_keys(used[:10]))
        marks.mark(_keys(used))  # again, and more
        marks.mark(_keys(sample_blocks(5, 99)))  # not there
        count, size = marks.used()
        assert count == len(used)
        assert sum(len(blocks[cid]) for cid in used) <= size < marks.size
        data = marks.condemn(0)
        assert data is not None
        condemned = collectable.write_list(data)
        assert condemned.blocks == len(blocks) - len(used)
        assert condemned.size == marks.size - size
        assert condemned.holds_many(_keys(blocks)).tolist() == [c not in used for c in blocks]

    def test_a_sweep_deletes_what_is_condemned_and_not_marked(
        self, collectable: CollectableBlocks
    ) -> None:
        blocks, used = self.fill(collectable)
        condemned = self.condemn(collectable, used)
        garbage = [cid for cid in blocks if cid not in used]
        marks = collectable.survey()
        marks.mark(_keys([*used, *garbage[:7]]))  # some are in use again
        would = marks.sweep(condemned, dry_run=True)
        assert all(collectable.has(cid) for cid in blocks)
        swept = marks.sweep(condemned)
        assert (swept.blocks, swept.size) == (would.blocks, would.size)
        assert swept.blocks == len(garbage) - 7
        assert set(collectable.list()) == {*used, *garbage[:7]}
        assert all(collectable.get(cid) == blocks[cid] for cid in [*used, *garbage[:7]])
        assert marks.blocks == len(used) + 7
        assert marks.sweep(condemned).blocks == 0
        assert marks.condemn(0) is None

    def test_a_condemned_block_is_absent_when_it_is_put_and_then_younger(
        self, collectable: CollectableBlocks
    ) -> None:
        blocks, used = self.fill(collectable)
        garbage = [cid for cid in blocks if cid not in used]
        condemned = self.condemn(collectable, used)
        collectable.avoid([condemned], 1)
        keys = _keys([*used, *garbage])
        expected = np.array([False] * len(used) + [True] * len(garbage))
        assert collectable.condemned_many(keys).tolist() == expected.tolist()
        again = garbage[:5]
        for cid in [*again, *used[:5]]:
            collectable.put(cid, blocks[cid])
        expected[len(used) : len(used) + 5] = False
        assert collectable.condemned_many(keys).tolist() == expected.tolist()
        collectable.flush()
        assert collectable.condemned_many(keys).tolist() == expected.tolist()
        marks = collectable.survey()
        marks.mark(_keys(used))
        marks.sweep(condemned)
        assert set(collectable.list()) == {*used, *again}
        assert all(collectable.get(cid) == blocks[cid] for cid in again)

    def test_a_list_that_is_avoided_no_more_is_forgotten(
        self, collectable: CollectableBlocks
    ) -> None:
        blocks, used = self.fill(collectable)
        collectable.avoid([self.condemn(collectable, used)], 3)
        assert collectable.condemned_many(_keys(blocks)).any()
        collectable.avoid([], 2)  # older
        assert collectable.condemned_many(_keys(blocks)).any()
        collectable.avoid([], 3)
        assert not collectable.condemned_many(_keys(blocks)).any()

    def test_what_comes_after_a_survey_is_neither_condemned_nor_swept(
        self, collectable: CollectableBlocks
    ) -> None:
        _, used = self.fill(collectable)
        marks = collectable.survey()
        later = sample_blocks(10, 3)
        collectable.put_many(later.items())
        collectable.flush()
        marks.mark(_keys(used))
        data = marks.condemn(0)
        assert data is not None
        marks.sweep(collectable.write_list(data))
        assert set(collectable.list()) == {*used, *later}

    def test_what_was_not_flushed_is_not_condemned(self, collectable: CollectableBlocks) -> None:
        blocks, _ = self.fill(collectable)
        later = sample_blocks(10, 3)
        collectable.put_many(later.items())
        condemned = self.condemn(collectable, ())
        assert not condemned.holds_many(_keys(later)).any()
        assert condemned.blocks == len(blocks)

    def test_lists_are_kept_until_they_are_deleted(self, collectable: CollectableBlocks) -> None:
        _, used = self.fill(collectable)
        first = self.condemn(collectable, used)
        second = self.condemn(collectable, used[:3])
        assert collectable.read_list(first.name).blocks == first.blocks
        collectable.delete_lists([second.name])
        with pytest.raises(BlockNotFoundError):
            collectable.read_list(first.name)
        assert collectable.read_list(second.name).places == second.places

    def test_one_collection_at_a_time(self, collectable: CollectableBlocks) -> None:
        with collectable.collecting(), pytest.raises(ConflictError):
            collectable.collecting().__enter__()
        with collectable.collecting():
            pass

    def test_repacking_keeps_every_block(self, collectable: CollectableBlocks) -> None:
        blocks, _ = self.fill(collectable)
        collectable.repack()
        assert {cid: collectable.get(cid) for cid in collectable.list()} == blocks
