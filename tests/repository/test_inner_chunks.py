"""Sharded arrays at the grain of their inner chunks: what is fetched, stored, and told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import as_cid_bytes, format_cid
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.stats import dataset_stats
from cas_zarr.store import CASStore
from tests.servers.counting import Counting, counting_gateway

KIB, MIB = 1 << 10, 1 << 20
FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"
PIPELINES = [None] + [FUSED] * hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline")


def filled(inner: int, count: int, shards: int = 2, **options: Any) -> Repository:
    """Commit an array of bytes, a row an inner chunk and `count` of them a shard."""
    repo = Repository.memory()
    with CASStore(repo) as store:
        options = {"compressors": None, **options}
        array = zarr.create_array(
            store,
            name="a",
            shape=(shards * count, inner),
            chunks=(1, inner),
            shards=(count, inner),
            dtype="u1",
            fill_value=0,
            **options,
        )
        for row in range(0, shards * count, count):
            array[row : row + count] = noise(row, (count, inner))
        store.commit("filled")
    return repo


def noise(seed: int, shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(seed).integers(1, 255, shape, "u1")


@contextmanager
def far(repo: Repository) -> Iterator[tuple[Any, Counting]]:
    """Open the array through a gateway."""
    root = repo.resolve("main").root
    assert root is not None
    with counting_gateway(repo.blocks) as gateway:
        store = CASStore(f"ipfs://{format_cid(root)}", gateways=gateway.url, cache=False)
        yield zarr.open_array(store, path="a", mode="r"), gateway
        store.close()


def fetched(blocks: BlockStore, gateway: Counting) -> list[int]:
    """Return the bytes of the blocks that were asked for since the last time, in order.

    The gateway gives no file as a CAR, so what is asked for that way does not come.
    """
    return [blocks.size(as_cid_bytes(cid)) for form, cid in gateway.taken() if form != "car"]


# -- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_one_inner_chunk_takes_the_node_the_index_and_itself(pipeline: str | None) -> None:
    repo = filled(128 * KIB, 16)
    options = {} if pipeline is None else {"codec_pipeline.path": pipeline}
    with zarr.config.set(options), far(repo) as (array, gateway):
        assert len(gateway.taken()) == 1  # the root
        assert (array[5] == noise(0, (16, 128 * KIB))[5]).all()
        node, index, chunk = fetched(repo.blocks, gateway)
        assert node < 2 * KIB
        assert (index, chunk) == (16 * 16 + 4, 128 * KIB)
        assert (array[9] == noise(0, (16, 128 * KIB))[9]).all()
        assert fetched(repo.blocks, gateway) == [128 * KIB]


def test_an_inner_chunk_of_thousands_takes_one_path_of_nodes() -> None:
    repo = filled(8 * KIB, 2500, shards=1)
    with far(repo) as (array, gateway):
        gateway.taken()
        assert (array[5] == noise(0, (2500, 8 * KIB))[5]).all()
        *nodes, index, inner, chunk = fetched(repo.blocks, gateway)
        assert sum(nodes) < 32 * KIB  # the top, and the node with the last leaves
        assert (len(nodes), index, chunk) == (2, 2500 * 16 + 4, 8 * KIB)
        assert inner < 64 * KIB
        array[1023:1025]
        assert sorted(fetched(repo.blocks, gateway))[:2] == [8 * KIB] * 2


class Gathering(BlockStore):
    """Blocks of which those of one size are given when so many were asked for, and not before."""

    def __init__(self, blocks: BlockStore, size: int) -> None:
        self.blocks = blocks
        self.wanted = size
        self.barrier = threading.Barrier(1, timeout=30)

    def _read(self, cid: Any) -> bytes | None:
        data = self.blocks.get(cid)
        if len(data) == self.wanted:
            self.barrier.wait()
        return data

    def _write(self, cid: Any, data: Any) -> None:
        raise NotImplementedError

    _delete = _has = _size = list = _write  # type: ignore[assignment]
    location = "here"


@pytest.mark.parametrize("count", [8, 31])
def test_a_run_of_inner_chunks_is_asked_for_at_once(count: int) -> None:
    repo = filled(16 * KIB, 128, shards=1)
    with far(repo) as (array, gateway):
        array[0]  # the node and the index are known from here on
        gathering = Gathering(repo.blocks, 16 * KIB)
        gathering.barrier = threading.Barrier(count, timeout=30)
        gateway.blocks = gathering
        gateway.taken()
        start = 40 * 16 * KIB  # not by zarr: some releases ask for inner chunks one by one
        found = array.store.mapping.get_value("a/c/0/0", start, start + count * 16 * KIB)
        assert not gathering.barrier.broken
        assert len(gateway.taken()) == count
    assert bytes(found) == noise(0, (128, 16 * KIB))[40 : 40 + count].tobytes()


@pytest.mark.slow
def test_the_nodes_of_a_long_value_are_asked_for_at_once() -> None:
    repo = filled(8 * KIB, 3072, shards=1)
    with far(repo) as (array, gateway):
        nodes = [cid for cid in repo.blocks.list() if cid[1] == 0x70]
        sizes = [repo.blocks.size(cid) for cid in nodes]
        (width,) = {size for size in sizes if sizes.count(size) == 3}
        gathering = Gathering(repo.blocks, width)
        gathering.barrier = threading.Barrier(3, timeout=30)
        gateway.blocks = gathering
        found = array.store.mapping.get_value("a/c/0/0", 1023 * 8 * KIB, 2049 * 8 * KIB)
        assert not gathering.barrier.broken
    assert bytes(found) == noise(0, (3072, 8 * KIB))[1023:2049].tobytes()


# -- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("compressors", [None, "auto"])
def test_writing_one_inner_chunk_stores_it_and_the_index(
    pipeline: str | None, compressors: Any
) -> None:
    repo = filled(128 * KIB, 16, shards=1, compressors=compressors)
    before = set(repo.blocks.list())
    options = {} if pipeline is None else {"codec_pipeline.path": pipeline}
    with zarr.config.set(options), CASStore(repo) as store:
        # Half of it zeros: where it is compressed, it gets another length, and all behind it move.
        row = np.where(np.arange(128 * KIB) % 2, noise(1, (128 * KIB,)), np.uint8(7))
        zarr.open_array(store, path="a", mode="r+")[5] = row
        store.flush()
    new = {cid: repo.blocks.size(cid) for cid in repo.blocks.list() if cid not in before}
    raw = sorted(size for cid, size in new.items() if cid[1] == 0x55)
    if compressors is None:
        assert raw == [128 * KIB]  # the index says what it said
    else:
        index, chunk = raw
        assert index == 16 * 16 + 4
        assert chunk < 128 * KIB
    assert len(new) == len(raw) + 2  # the root and the file's node
    assert sum(new.values()) < 132 * KIB


# -- comparing ----------------------------------------------------------------------------------


def edit(repo: Repository, change: Any) -> list[Any]:
    """Change the array and commit; return what differs."""
    with CASStore(repo) as store:
        change(zarr.open_array(store, path="a", mode="r+"))
        store.commit("edited")
    return list(repo.diff("main~1", "main"))


def test_a_difference_names_the_inner_chunks() -> None:
    repo = filled(128 * KIB, 16, shards=3)

    def change(array: Any) -> None:
        array[5:8] = 1
        array[12, 3] = 0
        array[16:32] = 2
        array[47] = 0  # as the fill value, it is no longer there

    (found,) = edit(repo, change)
    width = slice(0, 128 * KIB)
    rows = [(5, 8), (12, 13), (16, 32), (47, 48)]
    assert found.boxes == tuple((slice(*each), width) for each in rows)
    assert found.as_json()["chunks"]["boxes"][0] == [[5, 8], [0, 128 * KIB]]
    assert found.modified == 3


def test_in_two_dimensions_inner_chunks_lie_where_zarr_puts_them() -> None:
    repo = Repository.memory()
    with CASStore(repo) as store:
        array = zarr.create_array(
            store,
            name="a",
            shape=(2900, 3900),  # the last shards reach out of it
            shards=(1024, 2048),
            chunks=(256, 512),
            dtype="u1",
            compressors=None,
        )
        array[:] = noise(0, (2900, 3900))
        store.commit("filled")

    def change(array: Any) -> None:
        array[600, 1000] = 255
        array[2850:, 3700:] = 255

    (found,) = edit(repo, change)
    assert found.boxes == (
        (slice(512, 768), slice(512, 1024)),
        (slice(2816, 2900), slice(3584, 3900)),
    )


def test_comparing_reads_the_indexes_and_no_inner_chunk() -> None:
    repo = filled(128 * KIB, 16, shards=3)
    edit(repo, lambda array: array.__setitem__(5, 1))
    with counting_gateway(repo.blocks) as gateway:
        root = format_cid(repo.resolve("main").root or b"")
        there = Repository.open(f"ipfs://{root}", gateways=gateway.url, cache=False)
        (found,) = repo.diff("main~1", root, other=there)
        gateway.taken()
        assert found.boxes == ((slice(5, 6), slice(0, 128 * KIB)),)
        node, index = fetched(repo.blocks, gateway)
        assert (node < 2 * KIB, index) == (True, 16 * 16 + 4)
        there.close()


def test_shards_that_are_not_cut_or_not_there_differ_as_a_whole() -> None:
    small = filled(64 * KIB, 8, shards=2)  # values of one block
    (found,) = edit(small, lambda array: array.__setitem__(5, 1))
    assert found.boxes == ((slice(0, 8), slice(0, 64 * KIB)),)
    tiny = filled(1 * KIB, 4096, shards=2)  # in pieces of less than 8 KiB
    (found,) = edit(tiny, lambda array: array.__setitem__(5, 1))
    assert found.boxes == ((slice(0, 4096), slice(0, 1 * KIB)),)
    partial = filled(128 * KIB, 16, shards=2)
    (found,) = edit(partial, lambda array: array.__setitem__(5, 1))
    index = next(cid for cid in partial.blocks.list() if partial.blocks.size(cid) == 16 * 16 + 4)
    partial.blocks.delete(index)
    assert found.boxes == ((slice(0, 16), slice(0, 128 * KIB)),)


def test_a_shard_whose_inner_chunks_changed_places_differs_nowhere() -> None:
    repo = filled(128 * KIB, 16, shards=1)
    with CASStore(repo) as store:
        value = bytes(store.mapping["a/c/0/0"])
        body = np.frombuffer(value, "u1", 16 * 128 * KIB).reshape(16, -1)[::-1]
        entries = np.frombuffer(value[-(16 * 16 + 4) : -4], "<u8").reshape(-1, 2).copy()
        entries[:, 0] = 15 * 128 * KIB - entries[:, 0]
        index = entries.tobytes()
        check = google_crc32c.value(index).to_bytes(4, "little")
        before = np.array(zarr.open_array(store, path="a", mode="r"))
        store.mapping["a/c/0/0"] = body.tobytes() + index + check
        assert (np.array(zarr.open_array(store, path="a", mode="r")) == before).all()
        store.commit("another order")
    (found,) = repo.diff("main~1", "main")
    assert found.modified == 1
    assert found.boxes == ()


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_the_boxes_are_what_differs(compressors: Any) -> None:
    repo = filled(32 * KIB, 64, shards=2, compressors=compressors)
    random = np.random.default_rng(3)
    rows = random.choice(128, 20, replace=False)

    def change(array: Any) -> None:
        for row in rows.tolist():
            array[row, row] = 0 if row % 2 else 255

    (found,) = edit(repo, change)
    cells = np.zeros((128, 32 * KIB), int)
    for box in found.boxes:
        cells[box] += 1
    assert sorted(np.flatnonzero(cells.all(axis=1))) == sorted(rows)
    assert cells.sum() == 20 * 32 * KIB


# -- counting -----------------------------------------------------------------------------------


def test_stats_count_inner_chunks() -> None:
    repo = filled(128 * KIB, 16, shards=2)
    edit(repo, lambda array: array.__setitem__(slice(16, 31), array[:15]))  # and one is its own
    stats = dataset_stats(repo.blocks, repo.resolve("main").root)
    (node,) = stats.nodes
    assert (node.values, node.blocks, stats.blocks) == (2, 17 + 1, 17 + 1)  # both indexes are one
    assert node.stored == 17 * 128 * KIB + 16 * 16 + 4
    assert stats.saved == 15 * 128 * KIB + 16 * 16 + 4


def test_stats_of_shards_far_away_ask_once_for_each_node() -> None:
    repo = filled(128 * KIB, 16, shards=3)
    root = repo.resolve("main").root
    assert root is not None
    with counting_gateway(repo.blocks) as gateway:
        there = Repository.open(f"ipfs://{format_cid(root)}", gateways=gateway.url, cache=False)
        assert dataset_stats(there.blocks, root) == dataset_stats(repo.blocks, root)
        asked = gateway.taken()
        assert {form for form, _ in asked} == {"raw"}
        assert len(asked) == len(set(asked)) == 1 + 3  # the root, and the files of the shards
        there.close()
