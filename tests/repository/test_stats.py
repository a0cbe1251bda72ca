"""Statistics against a count of every block by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.errors import BlockNotFoundError, NotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.stats import dataset_stats

ARRAY = b'{"zarr_format":3,"node_type":"array"}'
MIB = 1 << 20


@pytest.fixture
def mapping() -> CASMapping:
    """Return a mapping in memory."""
    return CASMapping(MemoryBlocks())


def test_nothing_and_the_empty_root(mapping: CASMapping) -> None:
    assert dataset_stats(mapping.blocks, None).values == 0
    stats = dataset_stats(mapping.blocks, mapping.flush())
    assert (stats.nodes, stats.logical, stats.stored, stats.saved) == ((), 0, 0, 0)
    assert stats.tree > 0


def test_repetitions_inside_an_array_and_between_two(mapping: CASMapping) -> None:
    mapping["a/zarr.json"] = mapping["b/zarr.json"] = ARRAY
    for number in range(5000):  # several leaf pages
        mapping[f"a/c/{number}"] = b"%04d" % (number % 100)
    mapping["b/c/0"] = b"0007"
    mapping["b/c/1"] = b"other"
    stats = dataset_stats(mapping.blocks, mapping.flush())
    first, second = stats.nodes
    assert (first.path, first.values, first.logical) == ("a", 5000, 20000)
    assert (first.stored, first.shared) == (400, 4)
    assert (second.values, second.logical, second.stored, second.shared) == (2, 9, 9, 4)
    assert (stats.values, stats.logical, stats.stored) == (5002, 20009, 405)
    assert stats.saved == 20009 - 405
    alone = dataset_stats(mapping.blocks, mapping.root, "b")
    assert [(node.path, node.shared) for node in alone.nodes] == [("b", 0)]
    assert alone.stored == 9


def test_values_of_many_leaves_are_shared_leaf_by_leaf(mapping: CASMapping) -> None:
    noise = np.random.default_rng(1).bytes(3 * MIB)
    mapping["zarr.json"] = ARRAY
    mapping["c/0"] = noise
    mapping["c/1"] = noise[: 2 * MIB] + b"x" * MIB
    stats = dataset_stats(mapping.blocks, mapping.flush())
    assert stats.logical == 6 * MIB
    assert stats.stored == 4 * MIB
    assert stats.saved == 2 * MIB
    blocks = mapping.blocks
    assert stats.stored + stats.tree == sum(blocks.size(cid) for cid in blocks.list())


def test_plain_keys_and_long_documents_count(mapping: CASMapping) -> None:
    mapping["zarr.json"] = b" " * 100_000
    mapping["notes/readme.txt"] = b"hello"
    stats = dataset_stats(mapping.blocks, mapping.flush())
    assert [(node.path, node.values, node.logical) for node in stats.nodes] == [
        ("", 1, 100_000),
        ("notes", 1, 5),
    ]


def test_the_tree_is_all_that_is_not_a_value(mapping: CASMapping) -> None:
    mapping["a/zarr.json"] = ARRAY
    for number in range(3000):
        mapping[f"a/c/{number}"] = b"%d" % number
        mapping[f"folder/{number}"] = b"%d" % number
    root = mapping.flush()
    stats = dataset_stats(mapping.blocks, root)
    blocks = mapping.blocks
    assert stats.stored + stats.tree == sum(blocks.size(cid) for cid in blocks.list())


def test_what_is_missing_is_said(mapping: CASMapping) -> None:
    mapping["a/zarr.json"] = ARRAY
    for number in range(3000):
        mapping[f"a/c/{number}"] = b"%d" % number
    root = mapping.flush()
    with pytest.raises(NotFoundError, match="no node 'b'"):
        dataset_stats(mapping.blocks, root, "b")
    for cid in list(mapping.blocks.list()):
        if cid != root:
            mapping.blocks.delete(cid)
    with pytest.raises(BlockNotFoundError):
        dataset_stats(mapping.blocks, root)
