"""CASMapping: a dataset as a dict over blocks that are written once."""

from __future__ import annotations

import itertools
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, RAW, CidBytes, cid_of, format_cid, to_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    InvalidKeyError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
    WriteOnceError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import view as view_module
from cas_zarr.tree.node import Header, Root


class CountingBlocks(MemoryBlocks):
    """Blocks in memory that remember what was read and how often they were flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[CidBytes] = []
        self.flushes = 0

    def _read(self, cid: CidBytes) -> bytes | None:
        self.reads.append(cid)
        return super()._read(cid)

    def flush(self) -> None:
        self.flushes += 1


def filled(**options: Any) -> CASMapping:
    """Return a mapping of a small array, a group and two plain keys."""
    mapping = CASMapping(CountingBlocks(), **options)
    mapping["zarr.json"] = b'{"node_type":"group"}'
    mapping["a/zarr.json"] = b'{"node_type":"array"}'
    for x, y in itertools.product(range(12), repeat=2):
        mapping[f"a/c/{x}/{y}"] = b"%d,%d" % (x, y)
    mapping["g/k"] = b"plain"
    mapping["l"] = b"l" * (3 << 20)
    return mapping


def reopened(mapping: CASMapping, **options: Any) -> CASMapping:
    return CASMapping(mapping.blocks, mapping.flush(), **options)


def links(mapping: CASMapping, places: list[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """Return coordinates, CIDs and sizes of small values."""
    values = [repr(place).encode() for place in places]
    cids = [cid_of(RAW, BLAKE3, value) for value in values]
    if not mapping.read_only:
        mapping.blocks.put_many(zip(cids, values, strict=True))
    return (
        np.array(places),
        np.array([list(cid) for cid in cids], np.uint8),
        np.array([len(value) for value in values]),
    )


# -- a dict ---------------------------------------------------------------------------------


def test_it_is_a_mutable_mapping() -> None:
    mapping = CASMapping(MemoryBlocks())
    assert len(mapping) == 0
    assert list(mapping) == []
    mapping.update({"a": b"1", "b/c": b"2"})
    assert mapping == {"a": b"1", "b/c": b"2"}
    assert mapping.pop("a") == b"1"
    assert mapping.setdefault("b/c", b"3") == b"2"
    assert mapping.get("a") is None
    assert "b/c" in mapping
    assert "b" not in mapping
    assert 5 not in mapping
    with pytest.raises(KeyError, match="nothing"):
        mapping["nothing"]
    with pytest.raises(KeyError, match="nothing"):
        del mapping["nothing"]
    mapping.clear()
    assert dict(mapping) == {}
    assert mapping.flush() == CASMapping(MemoryBlocks()).flush()


def test_values_are_bytes_in_whatever_form_they_came() -> None:
    mapping = filled()
    for value in (b"abc", bytearray(b"abc"), memoryview(b"abc"), np.frombuffer(b"abc", np.uint8)):
        mapping["k"] = value
        assert mapping["k"] == b"abc"
        assert type(mapping["k"]) is bytes
    large = reopened(mapping)["l"]
    assert type(large) is bytes
    assert large == b"l" * (3 << 20)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.array(3.0),
        np.arange(12, dtype=">i4").reshape(3, 4),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.arange(12).reshape(3, 4).T,
        np.arange(3).astype("M8[s]"),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["é", "b"]),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
@pytest.mark.parametrize("key", ["k", "zarr.json", "c/0"])
def test_any_array_is_stored_as_its_bytes_in_c_order(array: np.ndarray, key: str) -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping[key] = array
    assert mapping[key] == array.tobytes()


def test_a_strided_memoryview_is_stored_as_its_bytes() -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping["k"] = memoryview(b"abcdef")[::2]
    assert mapping["k"] == b"ace"


@pytest.mark.parametrize("value", ["text", 5, None, [1], np.array([object()])])
def test_what_has_no_bytes_is_refused(value: Any) -> None:
    mapping = CASMapping(MemoryBlocks())
    with pytest.raises(InvalidArgumentError, match="bytes or an array"):
        mapping["k"] = value
    assert "k" not in mapping


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", "a\0", "\ud800", 5])
def test_keys_that_cannot_be_stored_are_refused_and_absent(key: Any) -> None:
    mapping = filled()
    with pytest.raises(InvalidKeyError):
        mapping[key] = b"x"
    assert key not in mapping
    if isinstance(key, str):
        assert mapping.get(key) is None
        assert mapping.discard(key) is False
        assert mapping.size_of(key) is None


def test_absurdly_deep_keys_are_absent() -> None:
    for mapping in (filled(), reopened(filled())):
        for deep in ("/".join(["a"] * 5000), "a/" * 5000, "a/c/" + "/".join(["0"] * 5000)):
            assert deep not in mapping
            assert list(mapping.list_keys(deep)) == []
            assert list(mapping.list_folder(deep)) == []
            assert mapping.prefix_size(deep) == 0
            with pytest.raises(NotFoundError):
                mapping.cid(deep)


def test_a_value_that_changes_after_it_was_set_is_stored_as_it_was() -> None:
    for size in (10, 3 << 20):
        array = np.zeros(size, np.uint8)
        mapping = CASMapping(MemoryBlocks())
        for key in ("k", "a/zarr.json", "a/c/0"):
            mapping[key] = array
        array[:] = 1
        read = reopened(mapping)
        for key in ("k", "a/zarr.json", "a/c/0"):
            assert mapping[key] == read[key] == bytes(size)


# -- listing and sizes ----------------------------------------------------------------------


def test_listing() -> None:
    for mapping in (filled(), reopened(filled())):
        chunks = [f"a/c/{x}/{y}" for x in range(12) for y in range(12)]
        assert sorted(mapping) == sorted(["zarr.json", "a/zarr.json", "g/k", "l", *chunks])
        assert sorted(mapping.list_keys("a/c/1")) == sorted(
            key for key in chunks if key.startswith("a/c/1")
        )
        assert sorted(mapping.list_keys("a/c/11/")) == sorted(f"a/c/11/{y}" for y in range(12))
        assert list(mapping.list_keys("a/c/11/3")) == ["a/c/11/3"]
        for none in ("a/c/11/3/", "a/c/x", "a/c/01", "/", "/a", "a//", "q", "a/c/99999999999"):
            assert list(mapping.list_keys(none)) == []
        assert list(mapping.list_folder()) == ["a", "g", "l", "zarr.json"]
        assert list(mapping.list_folder("a")) == ["c", "zarr.json"]
        assert list(mapping.list_folder("a/")) == ["c", "zarr.json"]
        assert list(mapping.list_folder("a/c/5")) == sorted(map(str, range(12)))
        assert list(mapping.list_folder("nothing")) == []
        assert mapping.listdir("g") == ["k"]


def test_a_listing_is_of_the_moment_that_it_began() -> None:
    mapping = filled()
    listed = mapping.list_keys("a/")
    first = next(listed)
    for key in list(mapping.list_keys("a/")):
        del mapping[key]
    assert len([first, *listed]) == 145
    assert list(mapping.list_keys("a/")) == []


def test_sizes_come_from_the_tree() -> None:
    mapping = reopened(filled())
    blocks = mapping.blocks
    assert isinstance(blocks, CountingBlocks)
    data = {key: len(value) for key, value in filled().items()}
    blocks.reads.clear()
    assert mapping.size_of("l") == mapping.getsize("l") == 3 << 20
    assert mapping.size_of("a/zarr.json") == len(b'{"node_type":"array"}')
    assert mapping.prefix_size("") == mapping.getsize("") == sum(data.values())
    for folder in ("a", "a/", "a/c", "a/c/1", "a/c/11/", "g", "l", "a/c/1/1", "nothing"):
        expected = sum(n for key, n in data.items() if key.startswith(folder.rstrip("/") + "/"))
        assert mapping.prefix_size(folder) == expected
    assert not [cid for cid in blocks.reads if cid[1] == RAW]
    assert mapping.getsize("g/k") == 5
    assert mapping.size_of("g") is None


def test_removing_folders() -> None:
    mapping = reopened(filled())
    mapping.rmdir("a/c/1")
    assert len(list(mapping.list_keys("a/c/"))) == 144 - 12
    mapping["a/c/1/5"] = b"again"
    mapping.rmdir("/a/c/")
    assert list(mapping.list_keys("a/")) == ["a/zarr.json"]
    assert mapping["g/k"] == b"plain"
    for folder in ("/", "a//", "//", "../"):
        with pytest.raises(InvalidKeyError):
            mapping.discard_prefix(folder)
    with pytest.raises(InvalidArgumentError, match="slash"):
        mapping.discard_prefix("a")
    assert len(mapping) == 4
    mapping.rmdir()
    assert dict(mapping) == {}


# -- reading --------------------------------------------------------------------------------


def test_a_chunk_whose_coordinates_are_partly_new_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh: list[dict[str, int]] = [{} for _ in range(33)]
    monkeypatch.setattr(view_module, "_SPREADS", fresh)
    mapping = CASMapping(MemoryBlocks())
    mapping["a/zarr.json"] = b"{}"
    numbers = (0, 1, 2, 3, 8, 10)
    for place in itertools.product(numbers, repeat=3):
        mapping["a/c/" + "/".join(map(str, place))] = repr(place).encode()
    read = reopened(mapping)
    assert read["a/c/0/0/0"] == b"(0, 0, 0)"  # the short way begins with the second chunk
    for known in numbers:
        for place in itertools.product(numbers, repeat=3):
            fresh[3].clear()
            assert read[f"a/c/{known}/{known}/{known}"] == f"({known}, {known}, {known})".encode()
            assert read["a/c/" + "/".join(map(str, place))] == repr(place).encode()
    fresh[3].clear()
    assert read["a/c/1/1/1"] == b"(1, 1, 1)"
    assert "a/c/1/9/1" not in read


@pytest.mark.parametrize(
    "key",
    ["a/c12/3", "a/c/1//2", "a/c/01/2", "a/c/1/2/", "a/c/-1/2", "a/c/1/4294967296", "a/c//1/2"],
)
def test_keys_that_only_look_like_chunks_are_absent(key: str) -> None:
    mapping = reopened(filled())
    assert mapping["a/c/1/2"] == b"1,2"
    assert mapping["a/c/3/2"] == b"3,2"
    assert mapping.get(key) is None


def test_reading_one_chunk_opens_the_root_a_path_and_the_value() -> None:
    mapping = CASMapping(CountingBlocks())
    mapping["a/zarr.json"] = b"{}"
    for x, y in itertools.product(range(100), repeat=2):
        mapping[f"a/c/{x}/{y}"] = b"%d,%d" % (x, y)
    blocks = mapping.blocks
    assert isinstance(blocks, CountingBlocks)
    root = mapping.flush()
    blocks.reads.clear()
    read = CASMapping(blocks, root)
    assert blocks.reads == [root]
    assert read["a/zarr.json"] == b"{}"
    assert read["a/c/57/3"] == b"57,3"
    assert len(blocks.reads) <= 4
    blocks.reads.clear()
    assert read.exists("a/c/57/2")
    assert read.cid_of("a/c/57/2") == cid_of(RAW, BLAKE3, b"57,2")
    assert read.cid_of("a/zarr.json") == cid_of(RAW, BLAKE3, b"{}")
    assert read.cid_of("nothing") is None
    assert blocks.reads == []


def test_damaged_and_missing_blocks_are_named() -> None:
    mapping = reopened(filled())
    blocks = mapping.blocks
    assert isinstance(blocks, CountingBlocks)
    cid = mapping.cid_of("a/c/1/1")
    assert cid is not None
    blocks._blocks[cid[2:]] = (cid, b"1,2")
    with pytest.raises(CorruptBlockError, match=format_cid(cid)):
        mapping["a/c/1/1"]
    blocks.delete(cid)
    for read in (mapping.__getitem__, mapping.get, lambda key: dict(mapping)[key]):
        with pytest.raises(StorageError, match=format_cid(cid)) as caught:
            read("a/c/1/1")
        assert not isinstance(caught.value, KeyError)  # zarr 2 would read a chunk of fill values
    assert "a/c/1/1" in mapping
    assert mapping.get("a/c/999/7") is None
    assert mapping.root is not None
    blocks.delete(mapping.root)
    with pytest.raises(BlockNotFoundError, match=format_cid(mapping.root)):
        CASMapping(blocks, mapping.root)


@pytest.mark.parametrize(
    ("root", "error"),
    [
        ("bafkqaaa", CasZarrError),
        ("nonsense", InvalidCIDError),
        (b"", InvalidCIDError),
        (format_cid(cid_of(RAW, BLAKE3, b"x")), FormatError),
        (format_cid(cid_of(DAG_CBOR, BLAKE3, b"x")), FormatError),
        (format_cid(cid_of(DAG_JSON, BLAKE3, b"x")), BlockNotFoundError),
    ],
)
def test_what_is_no_root_is_refused(root: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        CASMapping(MemoryBlocks(), root)


def test_a_root_is_taken_as_text_bytes_or_cid() -> None:
    mapping = filled()
    root = mapping.flush()
    for form in (root, format_cid(root), to_cid(root)):
        assert CASMapping(mapping.blocks, form)["g/k"] == b"plain"


# -- flushing -------------------------------------------------------------------------------


def test_flush_and_dirty() -> None:
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    assert mapping.root is None
    assert not mapping.dirty
    empty = mapping.flush()
    assert blocks.has(empty)
    assert mapping.root == empty
    mapping["a"] = b"1"
    assert mapping.dirty
    assert mapping.root == empty
    list(mapping)
    assert mapping.dirty  # applied, not flushed
    flushes = blocks.flushes
    root = mapping.flush()
    assert blocks.flushes == flushes + 1
    assert not mapping.dirty
    assert mapping.flush() == root == mapping.root
    assert format_cid(root) in repr(mapping)
    mapping["a"] = b"1"
    assert mapping.flush() == root
    del mapping["a"]
    assert mapping.flush() == empty


def test_documents_set_many_times_leave_one_block_each_flush() -> None:
    mapping = CASMapping(MemoryBlocks())
    for n in range(50):
        mapping["zarr.json"] = b"%d" % n * 70_000
    before = len(mapping.blocks)  # type: ignore[arg-type]
    assert before == 0
    mapping.flush()
    assert len(mapping.blocks) == 2  # type: ignore[arg-type]


def test_many_changes_are_applied_as_they_come() -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping._settle_at = 50
    mapping["a/zarr.json"] = b"{}"
    for n in range(120):
        mapping[f"a/c/{n}"] = b"x"
        mapping._settle_at = min(mapping._settle_at, 50)
        assert len(mapping._state[1].values) <= 50
    assert len(mapping) == 121
    assert mapping.dirty


def test_memory_of_a_changed_chunk_is_bounded() -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping["a/zarr.json"] = b"{}"
    mapping["a/c/0/0"] = b"x"
    count = 20_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(count):
            mapping[f"a/c/{n % 200}/{n // 200}"] = b"x"
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown / count < 300
    assert sys.getsizeof(mapping._state[1].values) / count < 120


# -- strict and read-only -------------------------------------------------------------------


def test_a_strict_mapping_binds_once() -> None:
    mapping = filled(strict=True)
    for _ in range(2):
        for key in ("a/c/1/1", "g/k", "zarr.json"):
            with pytest.raises(WriteOnceError, match=f"key '{key}' is bound to another value"):
                mapping[key] = b"other"
            mapping[key] = mapping[key]  # the same is no other
        with pytest.raises(WriteOnceError, match="deletes nothing"):
            del mapping["g/k"]
        with pytest.raises(WriteOnceError, match="deletes nothing"):
            mapping.rmdir("g")
        with pytest.raises(WriteOnceError, match="one by one"):
            mapping.set_links("a", *links(mapping, [(20, 20)]))
        with pytest.raises(WriteOnceError, match="one by one"):
            mapping.set_cids(["a/c/20/20"], *links(mapping, [(20, 20)])[1:])
        mapping["l"] = b"l" * (3 << 20)
        mapping.setdefault("new", b"x")
        assert mapping.flush() == filled_with_new().flush()
        mapping = reopened(mapping, strict=True)


def filled_with_new() -> CASMapping:
    mapping = filled()
    mapping["new"] = b"x"
    return mapping


def test_a_strict_mapping_takes_the_same_long_document_again() -> None:
    mapping = CASMapping(MemoryBlocks(), strict=True)
    mapping["zarr.json"] = b" " * 100_000
    for strict in (mapping, reopened(mapping, strict=True)):
        strict["zarr.json"] = b" " * 100_000
        with pytest.raises(WriteOnceError):
            strict["zarr.json"] = b" " * 99_999
        with pytest.raises(WriteOnceError):
            strict["zarr.json"] = b"{}"


CHANGES: dict[str, Callable[[CASMapping], object]] = {
    "set": lambda mapping: mapping.set_value("k", b"x"),
    "set the same": lambda mapping: mapping.set_value("g/k", b"plain"),
    "set a document": lambda mapping: mapping.set_value("zarr.json", b"{}"),
    "delete": lambda mapping: mapping.discard("g/k"),
    "delete what is not there": lambda mapping: mapping.discard("nothing"),
    "clear": lambda mapping: mapping.clear(),
    "rmdir": lambda mapping: mapping.rmdir("g"),
    "links": lambda mapping: mapping.set_links("a", *links(mapping, [(1, 1)])),
    "cids": lambda mapping: mapping.set_cids(["a/c/1/1"], *links(mapping, [(1, 1)])[1:]),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("why", ["asked", "blocks", "needs"])
def test_a_read_only_mapping_refuses_every_change(change: str, why: str) -> None:
    mapping = filled()
    root = mapping.flush()
    blocks = mapping.blocks
    message = "open for reading only"
    if why == "asked":
        read = CASMapping(blocks, root, read_only=True)
    elif why == "blocks":
        blocks.read_only = True
        read = CASMapping(blocks, root)
    else:
        document = Root(Header(needs_to_write=("x", "y")), mapping.view.root.node)
        blocks.put(document.cid(), document.to_block())
        root = document.cid()
        read = CASMapping(blocks, root)
        message = "needs x, y, which this release does not know"
    assert read.read_only
    held = len(blocks)  # type: ignore[arg-type]
    with pytest.raises(ReadOnlyError, match=message):
        CHANGES[change](read)
    assert read.flush() == root
    assert read.cid("a")
    assert len(blocks) == held  # type: ignore[arg-type]
    assert dict(read.items()) == dict(mapping.items())


def test_an_empty_read_only_mapping_has_the_root_of_nothing() -> None:
    read = CASMapping(MemoryBlocks(), read_only=True)
    assert read.flush() == CASMapping(MemoryBlocks()).flush()
    assert len(read.blocks) == 0  # type: ignore[arg-type]
