"""Keys that are looked at together mean what each of them means alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, RAW, cid_of
from cas_zarr.errors import InvalidArgumentError, InvalidKeyError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import classify
from cas_zarr.tree.changes import Changes
from cas_zarr.tree.classify import Classifier
from cas_zarr.tree.keys import parse_chunk

ARRAY = b'{"node_type": "array"}'
OWNERS = ("a", "g/b1", "g/b1/c/n")

numbers = st.one_of(
    st.integers(0, 12).map(str),
    st.sampled_from(["00", "01", "4294967295", "4294967296", "99999999999", "", "x", "١", "-1"]),
)
names = st.builds(
    lambda head, separator, parts: head + separator.join(parts),
    st.sampled_from(["", "c/", "c.", "c", "n/", "c/n/c/", "c\n"]),
    st.sampled_from(["/", ".", "\n"]),
    st.lists(numbers, min_size=1, max_size=3),
)
alike = st.builds(
    lambda owner, head, separator, places: [
        f"{owner}/{head}{separator.join(map(str, place))}" for place in places
    ],
    st.sampled_from(OWNERS),
    st.sampled_from(["", "c/", "c."]),
    st.sampled_from(["/", "."]),
    st.lists(st.tuples(*[st.integers(0, 200)] * 3), min_size=8, max_size=20, unique=True),
)
other = st.builds(lambda owner, name: f"{owner}/{name}", st.sampled_from(OWNERS), names)


def dataset() -> CASMapping:
    mapping = CASMapping(MemoryBlocks())
    for owner in OWNERS:
        mapping[f"{owner}/zarr.json"] = ARRAY
    return mapping


@given(alike, st.lists(other, max_size=2), st.randoms(use_true_random=False))
@settings(max_examples=300)
@example([f"a/c/{n}" for n in range(9)], ["a/c/1\na/c/2"], None)
@example([f"a/c/{n}" for n in range(9)], ["a/c/1/1"], None)
def test_chunks_that_are_found_together_are_those_of_the_grammar(
    keys: list[str], others: list[str], random: object
) -> None:
    keys = list(dict.fromkeys([*keys, *others]))
    if random is not None:
        random.shuffle(keys)  # type: ignore[attr-defined]
    classifier = Classifier(dataset().view, Changes())
    found = classifier.chunks_of(keys)
    alone = [(owner := classifier.owner(key.rpartition("/")[0]), key) for key in keys]
    meant = [None if owner is None else parse_chunk(key[len(owner) + 1 :]) for owner, key in alone]
    if found is not None:
        owner, kind, coordinates = found
        assert {owner} == {owner for owner, _ in alone}
        assert [(kind, tuple(row)) for row in coordinates.tolist()] == meant
    elif not others and keys[0].startswith("a/"):  # nothing lies below it that could own them
        assert None in meant or len({(kind, len(place)) for kind, place in meant}) > 1


def bound(mapping: CASMapping, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Store a value for each key; return CIDs and sizes."""
    values = [key.encode() for key in keys]
    cids = [cid_of(RAW, BLAKE3, value) for value in values]
    mapping.blocks.put_many(zip(cids, values, strict=True))
    links = np.frombuffer(b"".join(cids), np.uint8).reshape(-1, 36)
    return links, np.array([len(value) for value in values], np.int64)


KEYS = [
    *(f"a/c/{x}/{y}" for x, y in itertools.product(range(40), repeat=2)),
    *(f"a/{x}.{y}" for x, y in itertools.product(range(9), repeat=2)),
    "a/notes",
    *(f"g/b1/c/{x}" for x in range(600)),
    *(f"g/b1/c/n/c/{x}" for x in range(30)),
    *(f"g/b1/c/{x}/{x}" for x in range(20)),
    "g/b1/c/01",
    "loose",
    *(f"nothing/c/{x}/0" for x in range(20)),
]


@pytest.mark.parametrize("block", [16, 100, 1 << 17])
@pytest.mark.parametrize("order", ["given", "reversed", "mixed"])
def test_many_cids_are_as_values_one_by_one(
    block: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify, "_BLOCK", block)
    keys = KEYS if order == "given" else KEYS[::-1] if order == "reversed" else KEYS[::7]
    if order == "mixed":
        keys = [key for start in range(7) for key in KEYS[start::7]]
    one, many = dataset(), dataset()
    many.set_cids(keys, *bound(many, keys))
    for key in keys:
        one[key] = key.encode()
        assert many[key] == one[key]
    assert many.flush() == one.flush()
    many.set_cids(keys[:0], *bound(many, keys[:0]))
    assert many.root == one.root == many.flush()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([f"a/c/{n}" for n in range(20)] + ["a/c/3"], "given twice"),
        (["loose", "loose"], "given twice"),
        ([f"a/c/{n}" for n in range(20)] + ["a//c/21"], "segment ''"),
        (["a/zarr.json"], "'a/zarr.json' is the key of a document"),
    ],
)
def test_keys_that_cannot_be_bound_change_nothing(keys: list[str], message: str) -> None:
    mapping = dataset()
    root = mapping.flush()
    with pytest.raises((InvalidArgumentError, InvalidKeyError), match=message):
        mapping.set_cids(keys, *bound(mapping, keys))
    assert mapping.flush() == root


def test_cids_that_do_not_fit_their_keys_are_refused() -> None:
    mapping = dataset()
    cids, sizes = bound(mapping, ["a/c/0", "a/c/1"])
    for columns in ((cids[:1], sizes), (cids, sizes[:1]), (cids, -sizes), (cids[:, ::-1], sizes)):
        with pytest.raises(InvalidArgumentError):
            mapping.set_cids(["a/c/0", "a/c/1"], *columns)
