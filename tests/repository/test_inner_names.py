"""Inner chunks of shards are called what they are called in an array without shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cas_zarr.errors import FormatError, InvalidArgumentError

zarr = pytest.importorskip("zarr", minversion="3.1")

from cas_zarr import CASStore, Repository  # noqa: E402

# Inner chunks, shards, shape: a shard of one block, of leaves at its inner chunks, of inner chunks
# that are files themselves.
FORMS = {
    "small": ((4, 6), (8, 12), (24, 36)),
    "long": ((64, 64), (512, 512), (1024, 1100)),
    "huge": ((512, 1024), (1024, 2048), (1024, 4096)),
}


def both(form: str, compressors: Any = None) -> tuple[CASStore, np.ndarray]:
    """Write one array twice, with shards and without."""
    inner, shards, shape = FORMS[form]
    data = np.random.default_rng(0).integers(1, 1000, shape).astype("f4")
    data[: inner[0], inner[1] : 2 * inner[1]] = 0  # an inner chunk that is not there
    data[shards[0] :, : shards[1]] = 0  # a shard that is not there
    store = CASStore(Repository.memory())
    shared = {"shape": shape, "chunks": inner, "dtype": "f4", "compressors": compressors}
    zarr.create_array(store, name="sharded", shards=shards, **shared)[:] = data
    zarr.create_array(store, name="plain", **shared)[:] = data
    return store, data


@pytest.mark.parametrize("compressors", [None, "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_boxes_and_chunks_are_those_of_an_array_without_shards(form: str, compressors: Any) -> None:
    store, data = both(form, compressors)
    inner, _, shape = FORMS[form]
    rows, columns = (-(-side // part) for side, part in zip(shape, inner, strict=True))
    boxes = [
        ((0, rows), (0, columns)),
        ((0, 1), (1, 2)),
        ((1, rows - 1), (1, columns)),
        ((0, 2), (columns - 1, columns)),
        ((rows, rows + 1), (0, 1)),
        (slice(None), slice(0, 3)),
    ]
    for box in boxes:
        assert store.cid("sharded", box, inner=True) == store.cid("plain", box), box
    for place in np.ndindex(min(rows, 4), min(columns, 4)):
        expected = store.cid_of_chunk("plain", place)
        assert store.cid_of_chunk("sharded", place, inner=True) == expected
        at = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, inner, strict=True))
        assert (expected is None) == (not data[at].any())


def test_a_changed_inner_chunk_changes_the_boxes_with_it() -> None:
    store, _ = both("long")
    boxes = [((0, 4), (0, 4)), ((4, 8), (0, 8))]
    before = [store.cid("sharded", box, inner=True) for box in boxes]
    zarr.open_array(store, path="sharded")[70, 10] = -1
    after = [store.cid("sharded", box, inner=True) for box in boxes]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]


def test_no_inner_chunk_is_read_where_a_shard_is_cut_at_them() -> None:
    store, _ = both("long")
    blocks = store._tree.mapping.blocks
    leaf = store.cid_of_chunk("sharded", (0, 0), inner=True)
    assert leaf is not None
    box = ((0, 4), (0, 4))
    expected = store.cid("sharded", box, inner=True)
    store.flush()
    blocks.delete(leaf)
    assert store.cid("sharded", box, inner=True) == expected


def test_what_has_no_inner_chunks_is_told() -> None:
    store, _ = both("small")
    with pytest.raises(InvalidArgumentError, match="no array with shards"):
        store.cid("plain", ((0, 1), (0, 1)), inner=True)
    with pytest.raises(InvalidArgumentError, match="no array with shards"):
        store.cid_of_chunk("plain", (0, 0), inner=True)
    with pytest.raises(InvalidArgumentError, match="give one"):
        store.cid("sharded", inner=True)
    with pytest.raises(InvalidArgumentError, match="dimensions"):
        store.cid("sharded", ((0, 1),), inner=True)
    store._tree.mapping["sharded/c/0/0"] = bytes(100)
    with pytest.raises(FormatError, match="index"):
        store.cid_of_chunk("sharded", (0, 0), inner=True)
