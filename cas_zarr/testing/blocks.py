"""What every block store must do, as a pytest class to inherit from.

::

    class TestMyBlocks(BlockStoreSuite):
        def make_store(self, folder):
            return MyBlocks(folder)

        def reopen(self, folder, *, read_only=False):
            return MyBlocks(folder, read_only=read_only)
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, BlockStore
from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    RAW,
    SHA256,
    CidBytes,
    HashFunction,
    as_cid_bytes,
    cid_of,
    digest_of,
    encode_varint,
    format_cid,
    make_cid,
    to_cid,
)
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    InvalidArgumentError,
    InvalidCIDError,
    LimitError,
    NotFoundError,
    ReadOnlyError,
)

__all__ = ["BlockStoreSuite", "sample_blocks"]

SIZES = (0, 1, 2, 91, 92, 127, 128, 1000, 4096, 16_347, 16_348, 70_000, 1 << 20, MAX_BLOCK_SIZE)
"""Sizes in bytes at which lengths, buffers and windows of known backends change."""


def sample_blocks(
    count: int, seed: int = 0, *, largest: int = 3000, function: HashFunction = BLAKE3
) -> dict[CidBytes, bytes]:
    """Return blocks of random bytes and sizes by their CIDs, the same for the same arguments."""
    rng = random.Random(seed)
    blocks = (rng.randbytes(rng.randrange(1, largest)) for _ in range(count))
    return {cid_of(RAW, function, data): data for data in blocks}


class BlockStoreSuite:
    """Inherit and give `make_store`; give `reopen` too where blocks outlive the store."""

    def make_store(self, folder: Path) -> BlockStore:
        """Return an empty store that can be written; `folder` is an empty one of its own."""
        raise NotImplementedError

    def reopen(self, folder: Path, *, read_only: bool = False) -> BlockStore | None:  # noqa: ARG002
        """Open again what `make_store` made, or return None if nothing outlives the store."""
        return None

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlockStore]:
        store = self.make_store(tmp_path)
        yield store
        store.close()

    @pytest.mark.parametrize("function", [BLAKE3, SHA256], ids=lambda function: function.name)
    @pytest.mark.parametrize("size", SIZES)
    def test_a_block_comes_back_as_it_was(
        self, store: BlockStore, size: int, function: HashFunction
    ) -> None:
        data = random.Random(size).randbytes(size)
        cid = cid_of(RAW, function, data)
        assert not store.has(cid)
        store.put(cid, data)
        for _ in range(2):
            assert store.has(cid)
            assert store.size(cid) == size
            got = store.get(cid)
            assert type(got) is bytes
            assert got == data
            out = bytearray(size)
            store.read_into(cid, memoryview(out))
            assert out == data
            store.flush()

    @pytest.mark.parametrize("codec", [RAW, DAG_PB, DAG_CBOR, DAG_JSON])
    def test_the_codec_does_not_matter_for_finding_a_block(
        self, store: BlockStore, codec: int
    ) -> None:
        data = b"whatever the codec says"
        store.put(cid_of(codec, BLAKE3, data), data)
        store.flush()
        for other in (RAW, DAG_PB, DAG_CBOR, DAG_JSON):
            cid = cid_of(other, BLAKE3, data)
            assert store.has(cid)
            assert store.get(cid) == data
            assert store.size(cid) == len(data)
            out = bytearray(len(data))
            store.read_into(cid, memoryview(out))
            assert out == data

    def test_a_cid_is_taken_as_text_bytes_or_object(self, store: BlockStore) -> None:
        data = b"block"
        cid = cid_of(RAW, BLAKE3, data)
        store.put(format_cid(cid), data)
        for form in (cid, format_cid(cid), to_cid(cid), bytearray(cid)):
            assert store.get(form) == data  # type: ignore[arg-type]
            assert store.has(form)  # type: ignore[arg-type]

    def test_a_cid_of_version_0_is_the_one_of_version_1(self, store: BlockStore) -> None:
        data = b"\x0a\x00"
        newer = cid_of(DAG_PB, SHA256, data)
        older = CidBytes(b"\x12\x20" + digest_of(newer))
        store.put(older, data)
        store.flush()
        assert store.get(newer) == store.get(older) == data
        assert list(store.list()) == [newer]

    def test_what_is_not_held_is_not_found(self, store: BlockStore) -> None:
        store.put_many(sample_blocks(20).items())
        missing = cid_of(RAW, BLAKE3, b"missing")
        for _ in range(2):
            assert not store.has(missing)
            with pytest.raises(BlockNotFoundError, match=format_cid(missing)) as caught:
                store.get(missing)
            assert isinstance(caught.value, NotFoundError | KeyError)
            with pytest.raises(BlockNotFoundError):
                store.size(missing)
            with pytest.raises(BlockNotFoundError):
                store.read_into(missing, memoryview(bytearray(7)))
            store.flush()

    def test_the_same_digest_of_another_hash_is_another_block(self, store: BlockStore) -> None:
        data = b"one block"
        cid = cid_of(RAW, BLAKE3, data)
        store.put(cid, data)
        store.flush()
        assert not store.has(make_cid(RAW, SHA256, digest_of(cid)))

    @pytest.mark.parametrize("flushed", [False, True])
    def test_bytes_that_do_not_hash_to_the_cid_never_leave(
        self, store: BlockStore, flushed: bool
    ) -> None:
        cid = cid_of(RAW, BLAKE3, b"right")

        def put_and_get(into: bool) -> None:  # a store may refuse it on either way
            store.put(cid, b"wrong")
            if flushed:
                store.flush()
            if into:
                store.read_into(cid, memoryview(bytearray(5)))
            else:
                store.get(cid)

        for into in (False, True):
            with pytest.raises(CorruptBlockError, match=format_cid(cid)):
                put_and_get(into)

    def test_a_hash_that_cannot_be_checked_is_refused(self, store: BlockStore) -> None:
        unknown = CidBytes(b"\x01\x55" + encode_varint(0xB220) + b"\x20" + bytes(32))
        short = CidBytes(b"\x01\x55\x1e\x10" + bytes(16))
        for cid in (unknown, short, CidBytes(b"\x01\x55\x00\x01x"), CidBytes(b""), CidBytes(b"x")):
            with pytest.raises(InvalidCIDError):
                store.get(cid)
            with pytest.raises(InvalidCIDError):
                store.put(cid, b"x")
            with pytest.raises(InvalidCIDError):
                store.has(cid)
            with pytest.raises(InvalidCIDError):
                store.size(cid)
            with pytest.raises(InvalidCIDError):
                store.read_into(cid, memoryview(bytearray(1)))
        assert list(store.list()) == []

    @pytest.mark.parametrize("size", [5, 5000, 200_000])
    def test_a_caller_may_change_its_memory_after_put(self, store: BlockStore, size: int) -> None:
        memory = bytearray(random.Random(1).randbytes(size))
        before = bytes(memory)
        cid = cid_of(RAW, BLAKE3, before)
        store.put(cid, memoryview(memory))
        memory[:] = bytes(size)
        assert store.get(cid) == before
        store.flush()
        assert store.get(cid) == before

    def test_memory_of_any_layout_is_taken(self, store: BlockStore) -> None:
        rows = memoryview(bytearray(range(48))).cast("I", (3, 4))
        cid = cid_of(RAW, BLAKE3, rows.tobytes())
        store.put(cid, rows)
        assert store.get(cid) == rows.tobytes()
        apart = memoryview(bytearray(range(40)))[::2]
        cid = cid_of(RAW, BLAKE3, apart.tobytes())
        store.put(cid, apart)
        assert store.get(cid) == apart.tobytes()

    def test_a_range_is_cut_from_a_verified_block(self, store: BlockStore) -> None:
        data = bytes(range(100))
        cid = cid_of(RAW, BLAKE3, data)
        store.put(cid, data)
        assert store.get_range(cid, 10, 20) == data[10:20]
        assert store.get_range(cid, 90, 200) == data[90:]
        assert store.get_range(cid, 5, 5) == b""
        for start, stop in ((-1, 5), (5, 4)):
            with pytest.raises(InvalidArgumentError):
                store.get_range(cid, start, stop)

    def test_reading_into_memory_of_another_size_is_refused(self, store: BlockStore) -> None:
        for size in (100, 9000):
            data = bytes(size)
            cid = cid_of(RAW, BLAKE3, data)
            store.put(cid, data)
            for wrong in (0, size - 1, size + 1):
                with pytest.raises(CorruptBlockError):
                    store.read_into(cid, memoryview(bytearray(wrong)))

    def test_a_block_that_is_too_large_is_refused(self, store: BlockStore) -> None:
        data = bytes(MAX_BLOCK_SIZE + 1)
        cid = cid_of(RAW, BLAKE3, data)
        with pytest.raises(LimitError, match=format_cid(cid)):
            store.put(cid, data)
        assert not store.has(cid)

    def test_many_blocks_come_back_in_the_order_asked(self, store: BlockStore) -> None:
        blocks = sample_blocks(700, largest=400) | sample_blocks(5, 1, largest=90_000)
        store.put_many((cid, data) for cid, data in blocks.items())
        cids = list(blocks)
        random.Random(3).shuffle(cids)
        cids += cids[:3]
        for _ in range(2):
            assert list(store.get_many(cids)) == [blocks[cid] for cid in cids]
            assert list(store.get_many([])) == []
            missing = cid_of(RAW, BLAKE3, b"missing")
            flags = store.has_many([missing, *cids, missing])
            assert list(flags) == [False, *[True] * len(cids), False]
            with pytest.raises(BlockNotFoundError, match=format_cid(missing)):
                store.get_many([*cids[:5], missing])
            store.flush()

    def test_list_gives_each_block_once_with_its_cid(self, store: BlockStore) -> None:
        assert list(store.list()) == []
        held: set[CidBytes] = set()
        for i, codec in enumerate((RAW, DAG_CBOR, DAG_PB, DAG_JSON)):
            for function in (BLAKE3, SHA256):
                data = bytes([i]) * (i * 40_000)
                cid = cid_of(codec, function, data)
                if i:
                    store.put(cid, data)
                    held.add(cid)
            store.flush()
        for cid in list(held):
            store.put(cid, store.get(cid))
        assert sorted(store.list()) == sorted(held)
        assert all(as_cid_bytes(cid) == cid for cid in store.list())

    @pytest.mark.parametrize("flushed", [False, True])
    def test_delete_forgets_that_block_and_no_other(self, store: BlockStore, flushed: bool) -> None:
        blocks = sample_blocks(30)
        store.put_many(blocks.items())
        if flushed:
            store.flush()
        gone = list(blocks)[::7]
        for cid in gone:
            store.delete(cid)
            store.delete(cid)
        store.delete(cid_of(RAW, BLAKE3, b"missing"))
        for cid, data in blocks.items():
            assert store.has(cid) == (cid not in gone)
            if cid not in gone:
                assert store.get(cid) == data
        for cid in gone:
            with pytest.raises(BlockNotFoundError):
                store.get(cid)
        assert sorted(store.list()) == sorted(set(blocks) - set(gone))
        store.put(gone[0], blocks[gone[0]])
        assert store.get(gone[0]) == blocks[gone[0]]

    def test_putting_again_changes_nothing(self, store: BlockStore) -> None:
        blocks = sample_blocks(50)
        for _ in range(3):
            store.put_many(blocks.items())
            store.flush()
            store.flush()
        assert sorted(store.list()) == sorted(blocks)

    def test_a_read_only_store_refuses_to_change(self, store: BlockStore, tmp_path: Path) -> None:
        cid = cid_of(RAW, BLAKE3, b"data")
        store.put(cid, b"data")
        store.flush()
        reader = self.reopen(tmp_path, read_only=True)
        if reader is None:
            reader = store
            store.read_only = True
        with reader:
            other = cid_of(RAW, BLAKE3, b"other")
            with pytest.raises(ReadOnlyError):
                reader.put(other, b"other")
            with pytest.raises(ReadOnlyError):
                reader.put_many([(other, b"other")])
            with pytest.raises(ReadOnlyError):
                reader.delete(cid)
            assert reader.get(cid) == b"data"
            assert not reader.has(other)

    def test_what_was_flushed_is_there_when_opened_again(
        self, store: BlockStore, tmp_path: Path
    ) -> None:
        blocks = sample_blocks(100) | sample_blocks(3, 7, largest=300_000, function=SHA256)
        store.put_many(blocks.items())
        store.flush()
        with store:
            pass
        again = self.reopen(tmp_path)
        if again is None:
            pytest.skip("the blocks do not outlive this store")
        with again:
            assert sorted(again.list()) == sorted(blocks)
            for cid, data in blocks.items():
                assert again.get(cid) == data

    def test_another_store_sees_what_was_flushed(self, store: BlockStore, tmp_path: Path) -> None:
        other = self.reopen(tmp_path)
        if other is None:
            pytest.skip("the blocks do not outlive this store")
        with other:
            for round_ in range(4):
                blocks = sample_blocks(40, round_)
                assert not any(other.has_many(list(blocks)))
                store.put_many(blocks.items())
                store.flush()
                assert all(other.has(cid) for cid in blocks)
                assert list(other.get_many(list(blocks))) == list(blocks.values())

    def test_threads_may_share_a_store(self, store: BlockStore) -> None:
        groups = [sample_blocks(60, seed, largest=20_000) for seed in range(6)]

        def work(i: int) -> None:
            mine, shared = groups[i], groups[(i + 1) % len(groups)]
            for (cid, data), (other, more) in zip(mine.items(), shared.items(), strict=False):
                store.put(cid, data)
                store.put(other, more)
                assert store.get(cid) == data
                assert store.get(other) == more
            store.flush()
            for cid, data in mine.items():
                out = bytearray(len(data))
                store.read_into(cid, memoryview(out))
                assert out == data

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        everything: dict[CidBytes, bytes] = {}
        for group in groups:
            everything |= group
        assert sorted(store.list()) == sorted(everything)
        assert all(store.get(cid) == data for cid, data in everything.items())
