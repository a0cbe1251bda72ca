"""Chunks that are applied all at once, beside changes that come key by key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from building import CountingBlocks, chunks

from cas_zarr.mapping import CASMapping
from cas_zarr.tree.apply import ChunkEdit, apply
from cas_zarr.tree.changes import Changes, pack_value
from cas_zarr.tree.morton import encode
from cas_zarr.tree.node import Value
from cas_zarr.tree.table import Table

ARRAY = b'{"node_type": "array"}'


def bulk(form: str, sets: dict[tuple[int, ...], int], deletes: list[tuple[int, ...]]) -> ChunkEdit:
    ndim = int(form[-1])
    codes = np.sort(encode(np.array(deletes, np.int64).reshape(-1, ndim)))
    return ChunkEdit("a", form, lambda: (chunks(sets, ndim), codes))


def value_of(table: Table, row: int) -> Value:
    return Value(table.cids[row].tobytes(), int(table.sizes[row]))  # type: ignore[arg-type]


def result(before: dict[str, bytes], changes: Changes, edit: ChunkEdit) -> CASMapping:
    """Apply both at once; the root is what the keys make that are then found in it."""
    blocks = CountingBlocks()
    mapping = CASMapping(blocks)
    mapping.update(before)
    root = apply(mapping.view, changes, [edit])
    blocks.put(root.cid(), root.to_block())
    found = CASMapping(blocks, root.cid(), read_only=True)
    again, rest = CASMapping(blocks), Changes()
    for key in found:
        value = found.view.find(key)
        if isinstance(value, Value):
            rest.set_value(key, pack_value(value.cid, value.size))
        else:
            rest.set_document(key, found[key])
    assert apply(again.view, rest).cid() == root.cid()
    return found


@pytest.mark.parametrize("form", ["c/2", "/2"])
@pytest.mark.parametrize("there", [True, False])
def test_chunks_go_to_an_array_that_lies_below(form: str, there: bool) -> None:
    """Their keys are not of the array that they were given for, which the law would see."""
    base = "a/c/" if form == "c/2" else "a/"
    inner = {f"{base}0/zarr.json": ARRAY}
    changes = Changes()
    if not there:
        changes.set_document(f"{base}0/zarr.json", ARRAY)
    edit = bulk(form, {(0, 1): 5, (1, 1): 6}, [])
    found = result({"a/zarr.json": ARRAY, **(inner if there else {})}, changes, edit)
    assert set(found) == {"a/zarr.json", *inner, f"{base}0/1", f"{base}1/1"}
    for path, own in (("a", form), (f"{base}0", ".1")):
        tree = found.view.tree(path, own)
        assert tree is not None
        assert tree.ref.chunks == 1


@pytest.mark.parametrize("old", [{}, {f"a/c/{x}": b"old" for x in range(5)}])
def test_a_key_that_is_set_goes_before_chunks_and_one_that_is_deleted_does_not(old: Any) -> None:
    changes = Changes()
    other = value_of(chunks({(9,): 99}, 1), 0)
    for place in (0, 2):
        changes.set_value(f"a/c/{place}", pack_value(other.cid, other.size))
    for place in (1, 3):
        changes.delete(f"a/c/{place}")
    edit = bulk("c/1", {(0,): 5, (1,): 6}, [(2,), (4,)])
    found = result({"a/zarr.json": ARRAY, **old}, changes, edit)
    sizes = {key: found.size_of(key) for key in found if key != "a/zarr.json"}
    assert sizes == {"a/c/0": 99, "a/c/1": 6, "a/c/2": 99}
