"""Marking hands over the blocks that a walk yields, each page once for all roots."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import DAG_CBOR, DAG_JSON, DAG_PB, CidBytes, codec_of
from cas_zarr.codecs import unixfs
from cas_zarr.errors import BlockNotFoundError, CorruptBlockError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import shards
from cas_zarr.tree.mark import Marker
from cas_zarr.tree.walk import reachable


class Counted(MemoryBlocks):
    """Remembers what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[CidBytes] = []

    def _read(self, cid: CidBytes) -> bytes | None:
        self.reads.append(cid)
        return super()._read(cid)


@pytest.fixture(autouse=True)
def _deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have shards that list shards, and file nodes that link file nodes."""
    monkeypatch.setattr(shards, "SHARD_LIMIT", 3000)
    monkeypatch.setattr(unixfs, "MAX_LINKS", 2)


def _versions() -> tuple[Counted, list[CidBytes]]:
    """Make roots with inner pages, files of many leaves, shards of entries and long documents."""
    rng = random.Random(1)
    blocks = Counted()
    mapping = CASMapping(blocks)
    mapping["a/zarr.json"] = b"{}"
    for i in range(1500):
        mapping[f"a/c/{i}"] = rng.randbytes(9)
    mapping["b/zarr.json"] = rng.randbytes(70_000)
    mapping["b/c/0"] = rng.randbytes(3 << 20)
    mapping["big"] = rng.randbytes(2 << 20)
    for i in range(1500):
        mapping[f"many/{i:04}"] = rng.randbytes(9)
    roots = [mapping.flush()]
    mapping["a/c/7"] = b"other"
    mapping["many/0007"] = b"other"
    roots.append(mapping.flush())
    return blocks, roots


def _mark(
    blocks: MemoryBlocks, roots: list[CidBytes], **options: str
) -> tuple[Marker, list[bytes]]:
    found: list[bytes] = []

    def sink(keys: NDArray[np.uint8]) -> None:
        assert keys.shape[1] == 34
        found.extend(row.tobytes() for row in keys)

    marker = Marker(blocks, sink, **options)  # type: ignore[arg-type]
    for root in roots:
        marker.root(root)
    marker.finish()
    return marker, found


def test_what_is_handed_over_is_what_can_be_reached() -> None:
    blocks, roots = _versions()
    _, found = _mark(blocks, roots)
    expected = {cid[-34:] for root in roots for _, cid in reachable(blocks, root)}
    assert set(found) == expected
    assert {codec_of(cid) for cid in blocks.list()} >= {DAG_CBOR, DAG_JSON, DAG_PB}


def test_blocks_that_link_others_are_read_once_and_chunks_never() -> None:
    blocks, roots = _versions()
    blocks.reads.clear()
    _mark(blocks, roots)
    linking = {
        cid
        for root in roots
        for _, cid in reachable(blocks, root)
        if codec_of(cid) in (DAG_CBOR, DAG_JSON, DAG_PB)
    }
    again = Counted()
    again._blocks = blocks._blocks
    _mark(again, roots)
    assert sorted(again.reads) == sorted(linking)


@pytest.mark.parametrize("codec", [DAG_CBOR, DAG_PB, DAG_JSON])
def test_what_is_missing_is_named_or_passed_over(codec: int) -> None:
    blocks, roots = _versions()
    victims = [
        cid for _, cid in reachable(blocks, roots[0]) if codec_of(cid) == codec and cid not in roots
    ]
    assert victims
    for victim in victims[:: len(victims) // 6 + 1]:
        held = blocks._blocks.pop(victim[-34:])
        with pytest.raises(BlockNotFoundError, match=r"block ba[gf]"):
            _mark(blocks, roots)
        marker, found = _mark(blocks, roots, missing="skip")
        assert marker.missing_count == 1
        assert victim[-34:] in found
        blocks._blocks[victim[-34:]] = (victim, b"damaged", 0)
        for missing in ("error", "skip"):
            with pytest.raises(CorruptBlockError):
                _mark(blocks, roots, missing=missing)
        blocks._blocks[victim[-34:]] = held


def test_a_missing_chunk_hides_nothing() -> None:
    blocks, roots = _versions()
    _, before = _mark(blocks, roots)
    del blocks._blocks[next(cid for cid in blocks.list() if codec_of(cid) == 0x55)[-34:]]
    assert set(_mark(blocks, roots)[1]) == set(before)
