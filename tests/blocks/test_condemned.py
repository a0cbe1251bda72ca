"""Lists of condemned blocks as bytes."""

from __future__ import annotations

import numpy as np
import pytest

from cas_zarr.blocks.condemned import Condemned, encode_condemned
from cas_zarr.cid import SHA256
from cas_zarr.errors import FormatError
from cas_zarr.testing.blocks import sample_blocks


def _list(count: int) -> tuple[bytes, list[bytes]]:
    cids = [*sample_blocks(count, 1), *sample_blocks(count, 2, function=SHA256)]
    keys = [cid[-34:] for cid in cids]
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 34)
    return encode_condemned([rows[:3], rows[3:]], ["b", "a"], blocks=7, size=99), keys


def test_a_list_reads_as_it_was_written() -> None:
    data, keys = _list(50)
    condemned = Condemned.from_bytes(data, Condemned.name_of(data))
    assert condemned.places == {"a", "b"}
    assert (condemned.blocks, condemned.size) == (7, 99)
    assert all(condemned.holds(key) for key in keys)
    others = [cid[-34:] for cid in sample_blocks(50, 3)]
    assert not any(condemned.holds(key) for key in others)
    rows = np.frombuffer(b"".join(keys + others), np.uint8).reshape(-1, 34)
    assert condemned.holds_many(rows).tolist() == [True] * 100 + [False] * 50


def test_the_bytes_follow_from_what_is_listed() -> None:
    data, keys = _list(5)
    rows = np.frombuffer(b"".join(keys[::-1]), np.uint8).reshape(-1, 34)
    assert encode_condemned([rows], {"a", "b"}, blocks=7, size=99) == data
    empty = encode_condemned([], [], blocks=0, size=0)
    assert Condemned.from_bytes(empty, Condemned.name_of(empty)).index.count == 0


def test_any_flipped_bit_is_noticed() -> None:
    data, _ = _list(1)
    name = Condemned.name_of(data)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            Condemned.from_bytes(bytes(damaged), name)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x02{}", b"\xff", b"\x0f" + b'{"type":"other"}'])
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Condemned.from_bytes(data, Condemned.name_of(data))
