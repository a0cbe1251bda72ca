"""Where values are cut: at each MiB, or at the inner chunks of a shard."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any, Literal

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from cas_zarr.codecs.shardindex import ShardLayout, cut_points, parse_layout
from cas_zarr.codecs.unixfs import LEAF_SIZE

MISSING = (2**64 - 1, 2**64 - 1)


def _layout(
    chunks: int,
    location: Literal["start", "end"] = "end",
    crc32c: bool = True,
    byte_order: Literal["<", ">"] = "<",
) -> ShardLayout:
    return ShardLayout(chunks, 16 * chunks + 4 * crc32c, location, crc32c, byte_order)


def _shard(layout: ShardLayout, size: int, *entries: tuple[int, int]) -> bytes:
    """Return a value of `size` bytes with an index of these offsets and sizes."""
    index = np.array(entries, dtype=f"{layout.byte_order}u8").tobytes()
    if layout.crc32c:
        index += google_crc32c.value(index).to_bytes(4, "little")
    assert len(index) == layout.index_size
    rest = bytes(size - len(index))
    return index + rest if layout.location == "start" else rest + index


# -- values without shards -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "cuts"),
    [
        (0, [0]),
        (1, [0, 1]),
        (LEAF_SIZE, [0, LEAF_SIZE]),
        (LEAF_SIZE + 1, [0, LEAF_SIZE, LEAF_SIZE + 1]),
        (3 * LEAF_SIZE, [0, LEAF_SIZE, 2 * LEAF_SIZE, 3 * LEAF_SIZE]),
    ],
)
def test_a_value_is_cut_at_each_mebibyte(size: int, cuts: list[int]) -> None:
    assert cut_points(bytes(size), None) == cuts
    assert cut_points(memoryview(bytearray(size)), None) == cuts
    assert cut_points(memoryview(bytes(size // 4 * 4)).cast("f"), None)[-1] == size // 4 * 4


def test_a_shard_of_up_to_a_mebibyte_is_not_cut() -> None:
    layout = _layout(2)
    shard = _shard(layout, LEAF_SIZE, (0, 500_000), (500_000, 500_000))
    assert cut_points(shard, layout) == [0, LEAF_SIZE]


# -- shards that Zarr wrote ------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data())
def test_zarr_s_inner_chunks_are_leaves(data: DataObject) -> None:
    location = data.draw(st.sampled_from(["start", "end"]))
    endian = data.draw(st.sampled_from(["little", "big"]))
    checksum = data.draw(st.booleans())
    grid = data.draw(st.sampled_from([(6, 1), (3, 2), (2, 4), (1, 5), (20, 5)]))
    inner = (128, data.draw(st.sampled_from([512, 1024, 600])))  # 0.25 to 0.5 MiB each
    shape = (grid[0] * inner[0], grid[1] * inner[1])
    written = data.draw(st.sets(st.sampled_from(list(np.ndindex(grid))), min_size=1))

    store = MemoryStore()
    array = zarr.create_array(
        store,
        shape=shape,
        chunks=shape,
        dtype="float32",
        fill_value=0,
        filters=None,
        compressors=None,
        serializer=ShardingCodec(
            chunk_shape=inner,
            codecs=[BytesCodec()],
            index_codecs=[BytesCodec(endian=endian), *([Crc32cCodec()] if checksum else [])],
            index_location=location,
        ),
    )
    values = np.zeros(shape, dtype="float32")
    rng = np.random.default_rng(0)
    pieces = []
    for row, column in written:
        block = rng.random(inner, dtype="float32") + 1
        pieces.append(block.tobytes())
        values[
            row * inner[0] : (row + 1) * inner[0], column * inner[1] : (column + 1) * inner[1]
        ] = block
    array[:] = values

    layout = parse_layout(_stored(store, "zarr.json"))
    chunks = grid[0] * grid[1]
    index_size = 16 * chunks + 4 * checksum
    order = "<" if endian == "little" else ">"
    assert layout == ShardLayout(chunks, index_size, location, checksum, order)
    shard = _stored(store, "c/0/0")
    cuts = cut_points(shard, layout)
    if len(shard) <= LEAF_SIZE:
        assert cuts == [0, len(shard)]
        return
    leaves = [shard[start:end] for start, end in pairwise(cuts)]
    assert set(pieces) <= set(leaves)
    # Nothing but the chunks and the index: every byte is in one of them.
    assert sorted(map(len, leaves)) == sorted([*map(len, pieces), index_size])


def _stored(store: MemoryStore, key: str) -> bytes:
    found = asyncio.run(store.get(key, default_buffer_prototype()))
    assert found is not None
    return found.to_bytes()


# -- shards by hand --------------------------------------------------------------------------

SIZE = 2 * LEAF_SIZE


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("crc32c", [True, False])
def test_cuts_are_offsets_ends_and_the_index(crc32c: bool, byte_order: Literal["<", ">"]) -> None:
    layout = _layout(4, "end", crc32c, byte_order)
    entries = (700_000, 800_000), MISSING, (100, 600_000), (1_500_000, 0)
    at = SIZE - layout.index_size
    assert cut_points(_shard(layout, SIZE, *entries), layout) == [
        0, 100, 600_100, 700_000, 1_500_000, at, SIZE,
    ]  # fmt: skip
    layout = _layout(4, "start", crc32c, byte_order)
    entries = (layout.index_size, 500_000), (700_000, 800_000), MISSING, MISSING
    assert cut_points(_shard(layout, SIZE, *entries), layout) == [
        0, layout.index_size, layout.index_size + 500_000, 700_000, 1_500_000, SIZE,
    ]  # fmt: skip


def test_a_large_piece_is_cut_again_from_its_own_start() -> None:
    layout = _layout(2)
    size = 5 * LEAF_SIZE
    shard = _shard(layout, size, (10, 2 * LEAF_SIZE + 5), (2 * LEAF_SIZE + 15, LEAF_SIZE))
    at = size - layout.index_size
    assert cut_points(shard, layout) == [
        0,
        10,
        LEAF_SIZE + 10,
        2 * LEAF_SIZE + 10,
        2 * LEAF_SIZE + 15,
        3 * LEAF_SIZE + 15,
        4 * LEAF_SIZE + 15,
        at,
        size,
    ]


def test_an_empty_shard_is_cut_at_its_index_only() -> None:
    layout = _layout(65_537)
    shard = _shard(layout, layout.index_size, *[MISSING] * 65_537)
    assert cut_points(shard, layout) == [0, LEAF_SIZE, layout.index_size]
    shard = _shard(layout, layout.index_size + 9000, *[MISSING] * 65_537)
    assert cut_points(shard, layout) == [0, 9000, 9000 + LEAF_SIZE, 9000 + layout.index_size]


@pytest.mark.parametrize(
    "entries",
    [
        ((0, 10), (9, 10)),  # overlap
        ((0, 10), (0, 10)),
        ((0, 10), (5, 0)),
        ((0, 10), (SIZE - 36 - 9, 10)),  # into the index, behind the end, wrapping
        ((0, 10), (SIZE, 1)),
        ((0, 10), (SIZE + 1, 0)),
        ((0, 10), (2**64 - 10, 20)),
        ((0, 10), (2**63, 2**63)),
        ((0, 10), (20, 2**63)),
        ((0, 10), (MISSING[0], 0)),  # half of what says that a chunk is missing
        ((0, 10), (0, MISSING[0])),
    ],
)
def test_a_bad_index_is_not_followed(entries: tuple[tuple[int, int], ...]) -> None:
    layout = _layout(2)
    assert layout.index_size == 36
    assert cut_points(_shard(layout, SIZE, *entries), layout) == [0, LEAF_SIZE, SIZE]


def test_chunks_before_the_end_of_an_index_at_the_start_are_bad() -> None:
    layout = _layout(2, "start")
    assert cut_points(_shard(layout, SIZE, (36, 9), MISSING), layout)[1] == 36
    assert cut_points(_shard(layout, SIZE, (35, 9), MISSING), layout) == [0, LEAF_SIZE, SIZE]


def test_a_wrong_checksum_or_size_is_not_followed() -> None:
    layout = _layout(2)
    shard = bytearray(_shard(layout, SIZE, (0, 9), (9, SIZE - 45)))
    assert cut_points(shard, layout)[1] == 9
    shard[-1] ^= 1
    assert cut_points(shard, layout) == [0, LEAF_SIZE, SIZE]
    huge = ShardLayout(10**30, 16 * 10**30 + 4, "end", True, "<")
    assert cut_points(shard, huge) == [0, LEAF_SIZE, SIZE]


@pytest.mark.parametrize(("chunks", "followed"), [(254, True), (255, False)])
def test_small_pieces_are_not_worth_a_block_each(chunks: int, followed: bool) -> None:
    layout = _layout(chunks)  # with the rest and the index, there are two pieces more
    shard = _shard(layout, SIZE, *((at * 100, 100) for at in range(chunks)))
    assert (len(cut_points(shard, layout)) == chunks + 2 + 1 + 1) == followed
    assert (cut_points(shard, layout) == [0, LEAF_SIZE, SIZE]) != followed


@given(st.data())
def test_any_index_gives_cuts_within_the_limits(data: DataObject) -> None:
    location = data.draw(st.sampled_from(["start", "end"]))
    layout = _layout(3, location, data.draw(st.booleans()))
    offset = st.integers(0, SIZE) | st.sampled_from([0, SIZE, 2**63, 2**64 - 1])
    entries = data.draw(st.lists(st.tuples(offset, offset), min_size=3, max_size=3))
    cuts = cut_points(_shard(layout, SIZE, *entries), layout)
    assert cuts[0] == 0
    assert cuts[-1] == SIZE
    assert all(0 < end - start <= LEAF_SIZE for start, end in pairwise(cuts))


# -- documents -------------------------------------------------------------------------------


def _document() -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [100, 100],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [20, 30]}},
        "attributes": {"n": 2**70, "x": 1e300, "s": "]]}}"},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [10, 5],
                    "codecs": [{"name": "bytes"}],
                    "index_codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "crc32c"},
                    ],
                    "index_location": "end",
                },
            }
        ],
    }


def _parse(document: Any) -> ShardLayout | None:
    return parse_layout(json.dumps(document).encode("utf-8"))


def test_a_document_says_what_its_shards_are() -> None:
    document = _document()
    assert _parse(document) == ShardLayout(12, 196, "end", True, "<")
    sharding = document["codecs"][0]["configuration"]
    del sharding["index_location"]
    sharding["index_codecs"][1] = "crc32c"
    assert _parse(document) == ShardLayout(12, 196, "end", True, "<")
    sharding["index_location"] = "start"
    sharding["index_codecs"] = [{"name": "bytes", "configuration": {"endian": "big"}}]
    document["codecs"].insert(0, {"name": "transpose", "configuration": {"order": [1, 0]}})
    assert _parse(document) == ShardLayout(12, 192, "start", False, ">")
    document["chunk_grid"]["configuration"]["chunk_shape"] = []
    sharding["chunk_shape"] = []
    assert _parse(document) == ShardLayout(1, 16, "start", False, ">")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["node_type"], "group"),
        (["chunk_grid", "name"], "rectilinear"),
        (["chunk_grid"], "regular"),
        (["chunk_grid", "configuration", "chunk_shape"], [20, 31]),
        (["chunk_grid", "configuration", "chunk_shape"], [20, 0]),
        (["chunk_grid", "configuration", "chunk_shape"], [20, -30]),
        (["chunk_grid", "configuration", "chunk_shape"], [20, 30.0]),
        (["chunk_grid", "configuration", "chunk_shape"], [20, True]),
        (["chunk_grid", "configuration", "chunk_shape"], [20, 10**30]),
        (["chunk_grid", "configuration", "chunk_shape"], [50] * 33),
        (["codecs"], []),
        (["codecs"], [{"name": "bytes"}]),
        (["codecs"], [_document()["codecs"][0], {"name": "gzip"}]),
        (["codecs", 0, "configuration"], None),
        (["codecs", 0, "configuration", "chunk_shape"], [10, 0]),
        (["codecs", 0, "configuration", "index_location"], "middle"),
        (["codecs", 0, "configuration", "index_location"], ["end"]),
        (["codecs", 0, "configuration", "index_codecs"], []),
        (["codecs", 0, "configuration", "index_codecs"], ["bytes"]),
        (["codecs", 0, "configuration", "index_codecs", 1], {"name": "gzip"}),
        (["codecs", 0, "configuration", "index_codecs", 0, "configuration"], {"endian": "middle"}),
        (["codecs", 0, "configuration", "index_codecs", 0, "configuration"], {"endian": []}),
    ],
)
def test_another_document_says_nothing(path: list[Any], value: Any) -> None:
    document = _document()
    parent: Any = document
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    assert _parse(document) is None


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b"1" * 10**5,
        json.dumps(_document()).encode("utf-16"),
        json.dumps(_document()).encode("utf-8-sig"),
        json.dumps(_document() | {"deep": json.loads("[" * 200 + "]" * 200)}).encode(),
    ],
)
def test_what_is_no_document_says_nothing(document: bytes) -> None:
    assert parse_layout(document) is None


@given(st.data())
def test_no_document_raises(data: DataObject) -> None:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    anything = st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
    )
    document: Any = _document()
    parent, at = {"": document}, ""
    while data.draw(st.booleans()) and isinstance(parent[at], (dict, list)) and parent[at]:
        parent = parent[at]
        at = data.draw(
            st.sampled_from(list(parent) if isinstance(parent, dict) else [*range(len(parent))])
        )
    parent[at] = data.draw(anything)
    layout = _parse(document)
    assert layout is None or layout.index_size == 16 * layout.chunks + 4 * layout.crc32c
