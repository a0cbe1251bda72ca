"""Finding blocks among packs: each search is compared with a dict."""

from __future__ import annotations

import hashlib
import mmap
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.blocks import index as module
from cas_zarr.blocks.index import Directory, PackIndex
from cas_zarr.codecs.carindex import encode_index
from cas_zarr.errors import FormatError

BLAKE3, SHA256 = b"\x1e\x20", b"\x12\x20"


class _Holder:
    def __init__(self, places: dict[bytes, int], before: bytes = b"") -> None:
        self.places = places
        self.index = PackIndex(before + _encode(places), len(before))


def _encode(places: dict[bytes, int]) -> bytes:
    groups = []
    for prefix in (BLAKE3, SHA256):
        ours = {key[2:]: place for key, place in places.items() if key[:2] == prefix}
        digests = np.frombuffer(b"".join(ours), np.uint8).reshape(-1, 32)
        groups.append((prefix[0], digests, np.array(list(ours.values()), np.uint64)))
    return encode_index(groups)


def _places(count: int, seed: int, prefix: bytes = BLAKE3) -> dict[bytes, int]:
    return {
        prefix + hashlib.sha256(f"{seed}/{i}".encode()).digest(): 18 + 40 * i for i in range(count)
    }


def _check(index: PackIndex, places: dict[bytes, int], absent: dict[bytes, int]) -> None:
    assert index.count == len(places)
    assert all(index.find(key) == place for key, place in places.items())
    assert all(index.find(key) is None for key in absent)
    keys = [*places, *absent]
    matrix = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 34)
    assert index.find_many(matrix).tolist() == [*places.values(), *[-1] * len(absent)]


@pytest.mark.parametrize("count", [0, 1, 64, 65, 300, 5000])
@pytest.mark.parametrize("warm", [False, True])
def test_an_index_finds_what_it_holds_and_nothing_else(count: int, warm: bool) -> None:
    places = _places(count, 0) | _places(count // 2, 1, SHA256)
    index = PackIndex(b"before" + _encode(places), 6)
    if warm:
        index.warm()
    absent = _places(20, 2)
    absent |= {SHA256 + key[2:]: 0 for key in list(places)[:20] if key[:2] == BLAKE3}
    _check(index, places, absent)


def test_a_mapped_index_is_searched_where_it_lies() -> None:
    places = _places(2000, 0)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(5000) + _encode(places))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        index = PackIndex(mapped, 5000)
        _check(index, places, _places(10, 1))
        index.warm()
        _check(index, places, _places(10, 1))


@pytest.mark.parametrize("warm", [False, True])
def test_digests_made_alike_are_told_apart(warm: bool) -> None:
    digests = [bytes(31) + bytes([i]) for i in range(100)]
    digests += [bytes(8) + bytes([i]) + bytes(23) for i in range(1, 100)]
    places = {BLAKE3 + digest: i for i, digest in enumerate(digests)}
    index = PackIndex(_encode(places))
    if warm:
        index.warm()
    _check(index, places, {BLAKE3 + bytes(9) + b"\x01" + bytes(22): 0, BLAKE3 + b"\xff" * 32: 0})


@given(st.binary(min_size=40, max_size=40), st.integers(0, 10_000))
def test_records_in_disorder_are_searched_without_harm(record: bytes, at: int) -> None:
    places = _places(200, 0)
    content = bytearray(_encode(places))
    at = 30 + at % (len(content) - 69)
    content[at : at + 40] = record
    index = PackIndex(bytes(content))
    for key in places:
        assert index.find(key) is None or isinstance(index.find(key), int)
    index.warm()
    matrix = np.frombuffer(b"".join(places), np.uint8).reshape(-1, 34)
    index.find_many(matrix)
    for key in places:
        found = index.find(key)
        assert found is None or found >= 0


def test_framing_that_does_not_add_up_is_refused() -> None:
    content = _encode(_places(5, 0))
    for length in range(len(content)):
        with pytest.raises(FormatError):
            PackIndex(content[:length])


@given(st.data())
def test_a_directory_finds_as_a_dict_does(data: st.DataObject) -> None:
    directory = Directory()
    model: list[_Holder] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LEAST_WORTH", data.draw(st.sampled_from([0, 500, 1 << 30])))
        for seed in range(data.draw(st.integers(1, 14))):
            action = data.draw(st.sampled_from(["add", "add", "add", "merge", "remove"]))
            if action == "add" or not model:
                places = _places(data.draw(st.sampled_from([0, 1, 5, 100, 300])), seed)
                if model:
                    places |= dict(list(model[0].places.items())[:3])
                model.append(_Holder(places))
                directory.add(model[-1])
            else:
                old = data.draw(st.lists(st.sampled_from(model), unique=True, min_size=1))
                new = None
                if action == "merge":
                    merged: dict[bytes, int] = {}
                    for holder in old:
                        merged |= holder.places
                    new = _Holder(merged)
                directory.replace(old, new)
                model = [holder for holder in model if holder not in old]
                model += [new] if new else []
            assert {id(h) for h in directory.holders()} == {id(h) for h in model}
            keys = [key for holder in model for key in holder.places]
            keys += _places(5, 99)
            many = directory.find_many(keys)
            for key, found in zip(keys, many, strict=True):
                for answer in (directory.find(key), found):
                    if answer is None:
                        assert not any(key in holder.places for holder in model)
                    else:
                        holder, place = answer
                        assert holder in model
                        assert holder.places[key] == place  # type: ignore[attr-defined]


def test_a_block_nobody_has_costs_one_look_at_the_table() -> None:
    directory = Directory()
    holders = [_Holder(_places(2000, seed)) for seed in range(8)]
    for holder in holders:
        directory.add(holder)
    absent = list(_places(3000, 99))
    for key in absent:
        assert directory.find(key) is None
    asked: list[bytes] = []
    for holder in holders:
        holder.index = _Asked(holder.index, asked)  # type: ignore[assignment]
    for key in absent:
        assert directory.find(key) is None
    assert len(asked) < len(absent)  # for eight packs


class _Asked:
    def __init__(self, index: PackIndex, asked: list[bytes]) -> None:
        self.count = index.count
        self._index = index
        self._asked = asked

    def find(self, key: bytes) -> int | None:
        self._asked.append(key)
        return self._index.find(key)
