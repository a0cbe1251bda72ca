"""Single chunks as arrays: read and written as zarr does it."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.errors import FormatError, InvalidArgumentError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.arrays import decode_chunk, documents_of, encode_chunk, widest
from cas_zarr.tree.keys import parse_chunk

zarr = pytest.importorskip("zarr", minversion="3.1")

from cas_zarr.store import CASStore  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"shape": (10, 7), "chunks": (4, 4), "dtype": "<f8", "fill_value": 9.5},
    "big-endian": {"shape": (10,), "chunks": (4,), "dtype": ">i2", "fill_value": -3},
    "one value": {"shape": (), "chunks": (), "dtype": "i4", "fill_value": 5},
    "structured": {"shape": (5,), "chunks": (3,), "dtype": [("a", ">i4"), ("b", "<f8")]},
    "text": {"shape": (5,), "chunks": (3,), "dtype": "U4"},
    "not a number": {"shape": (5,), "chunks": (3,), "dtype": "f4", "fill_value": np.nan},
    "time": {"shape": (5,), "chunks": (3,), "dtype": "M8[s]"},
    "strings": {"shape": (5,), "chunks": (3,), "dtype": str},
    "truth": {"shape": (5,), "chunks": (3,), "dtype": bool},
}


def made(version: int, **options: Any) -> tuple[CASMapping, Any]:
    mapping = CASMapping(MemoryBlocks())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that have no specification yet
        array = zarr.create_array(store=CASStore(mapping), name="a", zarr_format=version, **options)
    return mapping, array


def values_for(array: Any) -> Any:
    count = int(np.prod(array.shape))
    numbers = np.arange(1, count + 1).reshape(array.shape)
    if array.dtype.names:
        found = np.zeros(array.shape, array.dtype)
        for name in array.dtype.names:
            found[name] = numbers
        return found
    if array.dtype == object:  # strings, where NumPy has no type of its own for them
        return numbers.astype(str).astype(object)
    return numbers.astype(array.dtype)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_read_and_written_as_zarr_does(version: int, kind: str) -> None:
    mapping, array = made(version, **KINDS[kind])
    array[...] = values_for(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.open_array(array.store, path="a", mode="r")  # another type than it was made of
    whole = np.asarray(array[...])
    keys = [key for key in mapping.list_keys("a/") if parse_chunk(key[2:])]
    assert keys
    for key in keys:
        parsed = parse_chunk(key[2:])
        assert parsed is not None
        form, coordinates = parsed
        documents = documents_of(mapping.view, "a", form)
        assert documents is not None
        found = decode_chunk(documents, form, coordinates, mapping[key])
        part = tuple(
            slice(c * n, (c + 1) * n) for c, n in zip(coordinates, array.chunks, strict=False)
        )
        expected = whole[part] if array.ndim else whole
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
        assert encode_chunk(documents, form, coordinates, expected) == mapping[key]
        blank = decode_chunk(documents, form, coordinates, None)
        assert blank.shape == expected.shape
        if not array.dtype.names:
            np.testing.assert_array_equal(
                blank, np.full(blank.shape, array.fill_value, blank.dtype)
            )
        assert encode_chunk(documents, form, coordinates, blank) is None


def test_a_sharded_array_has_a_shard_for_a_chunk() -> None:
    mapping, array = made(3, shape=(20,), chunks=(2,), shards=(8,), dtype="i8")
    array[...] = np.arange(20)
    documents = documents_of(mapping.view, "a", "c/")
    assert documents is not None
    found = decode_chunk(documents, "c/", (2,), mapping["a/c/2"])
    np.testing.assert_array_equal(found, [16, 17, 18, 19])
    data = encode_chunk(documents, "c/", (1,), np.arange(8, 16))
    assert data is not None
    np.testing.assert_array_equal(decode_chunk(documents, "c/", (1,), data), np.arange(8, 16))


def test_chunks_may_be_of_different_sizes() -> None:
    with zarr.config.set({"array.rectilinear_chunks": True}):
        try:
            mapping, array = made(3, shape=(6,), chunks=[[1, 2, 3]], dtype="i4")
        except TypeError:
            pytest.skip("this release of zarr has regular grids alone")
        array[...] = np.arange(1, 7)
        documents = documents_of(mapping.view, "a", "c/")
        assert documents is not None
        for place, expected in enumerate(([1], [2, 3], [4, 5, 6])):
            data = mapping[f"a/c/{place}"]
            found = decode_chunk(documents, "c/", (place,), data)
            np.testing.assert_array_equal(found, expected)
            assert encode_chunk(documents, "c/", (place,), found) == data


def test_what_does_not_fit_is_refused() -> None:
    mapping, _ = made(3, shape=(6,), chunks=(4,), dtype="i4")
    documents = documents_of(mapping.view, "a", "c/")
    assert documents is not None
    with pytest.raises(InvalidArgumentError, match=r"shape \(2,\), and an array of \(4,\)"):
        encode_chunk(documents, "c/", (1,), np.zeros(4, "i4"))
    with pytest.raises(InvalidArgumentError, match="type int32, and an array of float64"):
        encode_chunk(documents, "c/", (1,), np.array([0.5, 1.5]))
    assert encode_chunk(documents, "c/", (1,), 7) is not None  # broadcasts


def test_bytes_that_are_no_chunk_are_a_format_error() -> None:
    mapping, array = made(3, shape=(6,), chunks=(4,), dtype="i4")
    array[...] = 1
    documents = documents_of(mapping.view, "a", "c/")
    assert documents is not None
    for data in (b"", b"no chunk", mapping["a/c/0"][:-3]):
        with pytest.raises(FormatError, match="zarr cannot read chunk 'c/0'"):
            decode_chunk(documents, "c/", (0,), data)
    with pytest.raises(FormatError, match="zarr cannot read chunk"):
        decode_chunk({"zarr.json": b"{}"}, "c/", (0,), None)
    with pytest.raises(FormatError, match="would be 'c/0'"):
        decode_chunk(documents, ".", (0,), None)


@pytest.mark.parametrize("field", ["fill_value", "level", "document"])
def test_metadata_that_make_zarr_stumble_are_a_format_error(field: str) -> None:
    mapping, _ = made(3, shape=(6,), chunks=(4,), dtype="i4")
    found: Any = json.loads(mapping["a/zarr.json"])
    if field == "fill_value":
        found[field] = 10**25
    elif field == "level":
        found["codecs"][-1] = {"name": "gzip", "configuration": {"level": 10**25}}
    else:
        found = None
    with pytest.raises(FormatError, match="zarr cannot read chunk 'c/0'"):
        encode_chunk({"zarr.json": json.dumps(found).encode()}, "c/", (0,), np.ones(4, "i4"))


def test_one_shape_for_versions_of_an_array() -> None:
    documents = []
    for shape in ((10, 4), (6, 9)):
        mapping, _ = made(3, shape=shape, chunks=(4, 4), dtype="i4")
        documents.append(documents_of(mapping.view, "a", "c/"))
    found = widest([*documents, None])
    assert found[0] is not None
    assert decode_chunk(found[0], "c/", (2, 2), None).shape == (2, 1)
    assert found[2] is None
    assert widest([documents[0], None, documents[0]]) == [documents[0], None, documents[0]]


@pytest.mark.parametrize("shape", [None, 4, [{}], [[4]], ["4"], [4.0]])
def test_a_shape_that_is_none_is_a_format_error(shape: Any) -> None:
    documents = [{"zarr.json": json.dumps({"shape": each}).encode()} for each in ([4], shape)]
    with pytest.raises(FormatError, match=r"zarr.json of the array is none that zarr reads"):
        widest(documents)


def test_an_array_of_both_formats_is_read_by_the_keys() -> None:
    mapping, _ = made(3, shape=(4,), chunks=(4,), dtype="i4")
    _, other = made(2, shape=(4,), chunks=(4,), dtype="f8")
    mapping["a/.zarray"] = other.store.mapping["a/.zarray"]
    assert set(documents_of(mapping.view, "a", ".") or ()) == {".zarray"}
    assert set(documents_of(mapping.view, "a", "c/") or ()) == {"zarr.json"}
    assert documents_of(mapping.view, "b", "c/") is None
