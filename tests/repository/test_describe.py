"""What is said of nodes, for metadata of both formats and for metadata that make no sense."""

from __future__ import annotations

import json
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, DAG_JSON, cid_of
from cas_zarr.errors import FormatError, NotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.describe import NodeInfo, describe, iter_nodes, unfold


def described(documents: dict[str, Any], path: str = "") -> NodeInfo:
    mapping = CASMapping(MemoryBlocks())
    for key, value in documents.items():
        mapping[key] = value if isinstance(value, bytes) else json.dumps(value).encode()
    return describe(mapping.blocks, mapping.flush(), path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_nodes_that_zarr_wrote(zarr_format: Any) -> None:
    store = CASStore(Repository.memory())
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format, attributes={"a": 1})
    zstd: Any = numcodecs.Zstd() if zarr_format == 2 else ZstdCodec()
    array = group.create_array(
        "x", shape=(5, 7), chunks=(2, 3), dtype="<i4", compressors=zstd, attributes={"b": 2}
    )
    array[:4] = np.arange(28).reshape(4, 7)
    group.create_array("scalar", shape=(), dtype="<f8")[()] = 3.0
    group.create_group("inner")
    root = store.flush()
    found = list(iter_nodes(store.mapping.blocks, root))
    assert [(node.path, node.kind, node.zarr_format) for node in found] == [
        ("", "group", zarr_format),
        ("inner", "group", zarr_format),
        ("scalar", "array", zarr_format),
        ("x", "array", zarr_format),
    ]
    assert found[0].attributes == {"a": 1}
    x = found[3]
    assert (x.name, x.shape, x.chunk_shape, x.attributes) == ("x", (5, 7), (2, 3), {"b": 2})
    assert x.data_type == ("<i4" if zarr_format == 2 else "int32")
    assert x.codecs == (("zstd",) if zarr_format == 2 else ("bytes", "zstd"))
    assert (x.chunks, x.grid_size) == (6, 9)
    assert x.size == store.mapping.prefix_size("x") - sum(
        store.mapping.size_of(key) or 0 for key in ("x/zarr.json", "x/.zarray", "x/.zattrs")
    )
    assert (found[2].shape, found[2].chunk_shape, found[2].grid_size) == ((), (), 1)
    assert [node.path for node in iter_nodes(store.mapping.blocks, root, "x")] == ["x"]
    assert len(list(iter_nodes(store.mapping.blocks, root, depth=0))) == 1


@pytest.mark.parametrize(
    "metadata",
    [
        b"no json",
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 10_000,
        [],
        {"node_type": "array"},
        {"node_type": "array", "shape": "x", "chunk_grid": 3, "codecs": {}, "data_type": None},
        {"node_type": "array", "shape": [1, -1], "codecs": [1, {"name": 7}], "attributes": []},
        {"node_type": "array", "shape": [4], "chunk_grid": {"configuration": {"chunk_shape": []}}},
        {"node_type": "array", "shape": [True], "data_type": {"name": ["x"]}},
    ],
)
def test_metadata_that_make_no_sense(metadata: Any) -> None:
    info = described({"zarr.json": metadata})
    assert info.kind in ("array", "group")
    assert info.chunk_shape is None
    assert info.grid_size is None


def test_names_of_dimensions() -> None:
    array = {"node_type": "array", "dimension_names": ["time", None, 3]}
    assert described({"zarr.json": array}).dimension_names == ("time", "", "")
    attributes = {".zarray": {}, ".zattrs": {"_ARRAY_DIMENSIONS": ["x", "y"]}}
    assert described(attributes).dimension_names == ("x", "y")
    for none in (None, "time", 7, {}):
        assert described({"zarr.json": array | {"dimension_names": none}}).dimension_names == ()
    assert described({"zarr.json": []}).dimension_names == ()


def test_an_empty_chunk_grid_and_zero_size() -> None:
    grid = {"configuration": {"chunk_shape": [0, 2]}}
    info = described({"zarr.json": {"node_type": "array", "shape": [0, 4], "chunk_grid": grid}})
    assert info.grid_size == 0


def test_folders_long_documents_and_both_formats() -> None:
    assert described({"a/b.txt": b"x"}, "a").kind == "folder"
    long = {"node_type": "group", "attributes": {"text": "x" * 100_000}}
    assert described({"zarr.json": long}).attributes == long["attributes"]
    both = described({"zarr.json": {"node_type": "group"}, ".zgroup": {"zarr_format": 2}})
    assert (both.kind, both.zarr_format) == ("group", 3)


def test_no_such_node() -> None:
    with pytest.raises(NotFoundError, match=r"no node 'c' is in a/b; it has no nodes"):
        described({"a/b/zarr.json": {}}, "a/b/c")
    with pytest.raises(NotFoundError, match=r"no node 'x' is in the root; there are: a"):
        described({"a/b/zarr.json": {}}, "x/y")
    assert describe(MemoryBlocks(), None).kind == "folder"


def test_unfold() -> None:
    mapping = CASMapping(MemoryBlocks())
    mapping["zarr.json"] = b'{"node_type": "group"}'
    mapping["a/.zarray"] = b"no json"
    mapping["a/0"] = b"chunk"
    document = unfold(mapping.blocks.get(mapping.flush()))
    assert document["docs"]["zarr.json"] == {"node_type": "group"}
    assert document["nodes"]["a"]["docs"][".zarray"] == "no json"
    assert document["nodes"]["a"]["trees"][".1"]["chunks"] == 1
    with pytest.raises(FormatError):
        unfold(b'{"a":1}')


def test_a_root_that_is_none() -> None:
    blocks = MemoryBlocks()
    data = b'{"a":1}'
    cid = cid_of(DAG_JSON, BLAKE3, data)
    blocks.put(cid, data)
    with pytest.raises(FormatError):
        describe(blocks, cid)
