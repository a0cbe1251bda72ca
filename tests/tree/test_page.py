"""Pages: their bytes are what DAG-CBOR says, and nothing else is read as one."""

from __future__ import annotations

import random
from typing import Any

import dag_cbor
import numpy as np
import pytest
from building import fake_cids, leaf, reader
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID

from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, DAG_PB, RAW, cid_of, format_cid
from cas_zarr.errors import CasZarrError, FormatError
from cas_zarr.tree.page import Page

CODES = st.lists(st.integers(0, 2**80), max_size=20, unique=True).map(sorted)


def column(values: list[int]) -> bytes:
    width = max(1, (max(values, default=0).bit_length() + 7) // 8)
    return b"".join(value.to_bytes(width, "little") for value in values)


def by_oracle(page: Page) -> bytes:
    """Encode a page as `dag_cbor` encodes the map that the format describes."""
    fields: dict[str, Any] = {
        "type": "cas-zarr/page",
        "version": 1,
        "level": page.level,
        "codes": column(page.codes.tolist()),
        "links": [CID.decode(page.cid(row)) for row in range(len(page))],
        "sizes": column(page.sizes.tolist()) if len(page) else b"",
    }
    if not len(page):
        fields["codes"] = b""
    if page.prefixes is not None:
        fields["counts"] = column(page.counts.tolist())
        fields["prefixes"] = column(page.prefixes.tolist())
    return dag_cbor.encode(fields)


def inner(
    codes: list[int],
    prefixes: list[int],
    counts: list[int] | None = None,
    sizes: list[int] | None = None,
    level: int = 1,
    codec: int = DAG_CBOR,
) -> Page:
    n = len(codes)
    return Page(
        level,
        np.array(codes, np.uint64),
        fake_cids(n, codec),
        np.array([7] * n if sizes is None else sizes, np.uint64),
        np.array([1] * n if counts is None else counts, np.uint64),
        np.array(prefixes, np.int64),
    )


def same(a: Page, b: Page) -> bool:
    return (
        a.level == b.level
        and a.codes.tolist() == b.codes.tolist()
        and a.cids.tolist() == b.cids.tolist()
        and a.sizes.tolist() == b.sizes.tolist()
        and a.counts.tolist() == b.counts.tolist()
        and (a.prefixes is None) == (b.prefixes is None)
        and (a.prefixes is None or a.prefixes.tolist() == b.prefixes.tolist())
    )


@given(CODES, st.data())
def test_leaf_pages_are_what_dag_cbor_encodes(codes: list[int], data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 2**40), min_size=len(codes), max_size=len(codes)))
    page = leaf(codes, sizes)
    block = page.to_block()
    assert block == by_oracle(page)
    assert dag_cbor.decode(block)["level"] == 0
    assert same(Page.from_block(block), page)
    assert Page.from_block(block).totals() == (len(codes), sum(sizes))


@given(CODES.filter(lambda codes: codes and codes[-1] < 2**64), st.data())
def test_inner_pages_are_what_dag_cbor_encodes(codes: list[int], data: st.DataObject) -> None:
    def numbers(low: int, high: int) -> list[int]:
        size = len(codes)
        return data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size))

    page = inner(codes, numbers(0, 1024), numbers(1, 2**40), numbers(0, 2**50), level=3)
    block = page.to_block()
    assert block == by_oracle(page)
    assert same(Page.from_block(block), page)


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 512])
def test_a_page_of_any_size_is_what_dag_cbor_encodes(count: int) -> None:
    page = leaf(list(range(count)))
    assert page.to_block() == by_oracle(page)
    assert same(Page.from_block(page.to_block()), page)


def small_pages() -> dict[str, bytes]:
    return {
        "leaf": leaf([0, 3, 260], [5, 70_000, 0]).to_block(),
        "inner": inner([0, 8, 512], [93, 93, 88], [3, 300, 7], [9, 1, 2**33]).to_block(),
        "empty": leaf([]).to_block(),
    }


def decodes_to_itself(data: bytes) -> bool:
    """Decode what may be a page: False if it is refused, else it has to be canonical."""
    try:
        page = Page.from_block(data)
    except CasZarrError:
        return False
    assert page.to_block() == data
    return True


@pytest.mark.parametrize("kind", ["leaf", "inner", "empty"])
def test_every_changed_byte_is_refused_or_canonical(kind: str) -> None:
    block = small_pages()[kind]
    page = Page.from_block(block)
    digests = set()  # their inner bytes are all alike: one change of each is enough
    for row in range(len(page)):
        start = block.index(page.cid(row)) + 4
        digests.update(range(start + 1, start + 31))
    for position in range(len(block)):
        accepted = 0
        for value in range(256) if position not in digests else [block[position] ^ 1]:
            if value != block[position]:
                changed = block[:position] + bytes([value]) + block[position + 1 :]
                accepted += decodes_to_itself(changed)
        if position in digests:
            assert accepted == 1
        if position < block.index(b"codes") + 5:
            assert accepted == 0


@pytest.mark.parametrize("kind", ["leaf", "inner", "empty"])
def test_every_truncation_and_addition_is_refused(kind: str) -> None:
    block = small_pages()[kind]
    for end in range(len(block)):
        with pytest.raises(FormatError):
            Page.from_block(block[:end])
    with pytest.raises(FormatError, match="too many"):
        Page.from_block(block + b"\0")


@pytest.mark.parametrize("kind", ["leaf", "inner", "empty"])
def test_random_damage_is_refused_or_canonical(kind: str) -> None:
    block = small_pages()[kind]
    rng = random.Random(kind)
    for _ in range(4000):
        changed = bytearray(block)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(changed))
            what = rng.randrange(3)
            if what == 0:
                changed[start : start + rng.randint(1, 9)] = rng.randbytes(rng.randint(0, 9))
            elif what == 1:  # a piece of the page itself, elsewhere
                source = rng.randrange(len(block))
                changed[start:start] = block[source : source + rng.randint(1, 45)]
            else:
                del changed[start : start + rng.randint(1, 45)]
            if not changed:
                changed = bytearray(b"\xa6")
        decodes_to_itself(bytes(changed))


def test_numbers_that_are_not_in_their_shortest_form_are_refused() -> None:
    block = leaf([0, 3, 260], [5, 70_000, 0]).to_block()
    longer = {
        b"\x65codes\x46": b"\x65codes\x58\x06",
        b"\x65level\x00": b"\x65level\x18\x00",
        b"\x65links\x83": b"\x65links\x98\x03",
        b"\x65sizes\x49": b"\x65sizes\x5b" + (9).to_bytes(8, "big"),
        b"\x67version\x01": b"\x67version\x19\x00\x01",
    }
    for short, long in longer.items():
        assert block.count(short) == 1
        assert not decodes_to_itself(block.replace(short, long))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Page.from_block(data)


def test_an_empty_page_whose_columns_have_bytes_is_refused() -> None:
    block = leaf([]).to_block()
    assert block.count(b"\x40") == 2
    for at in (block.index(b"\x40"), block.rindex(b"\x40")):
        with pytest.raises(FormatError, match="for 0 entries"):
            Page.from_block(block[:at] + b"\x43abc" + block[at + 1 :])


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (leaf([3, 3]), "ascending"),
        (leaf([4, 3]), "ascending"),
        (leaf(list(range(513))), "513 entries"),
        (inner([0], [10], [0]), "without chunks"),
        (inner([0], [10], level=65), "level 65"),
        (inner([0], [10], level=0), "level 0"),
        (inner([], [], level=1), "0 entries"),
        (leaf([0, 1], [2**62, 2**62]), "2\\*\\*63"),
        (inner([0, 8], [93, 93], [2**62, 2**62]), "2\\*\\*63"),
        (leaf([0], [2**63]), "2\\*\\*63"),
    ],
)
def test_what_no_page_says_is_refused(page: Page, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Page.from_block(page.to_block())


def test_the_greatest_totals_are_read() -> None:
    page = leaf([0, 1], [2**62, 2**62 - 1])
    assert Page.from_block(page.to_block()).totals() == (2, 2**63 - 1)


@pytest.mark.parametrize(
    ("codec", "level", "fine"),
    [
        (RAW, 0, True),
        (DAG_PB, 0, True),
        (DAG_CBOR, 0, True),
        (0x51, 0, False),
        (RAW, 1, False),
        (DAG_PB, 1, False),
        (DAG_CBOR, 1, True),
    ],
)
def test_links_are_of_the_codecs_of_their_level(codec: int, level: int, fine: bool) -> None:
    page = inner([0], [10], codec=codec) if level else leaf([0])
    page.cids[:, 1] = codec
    if fine:
        Page.from_block(page.to_block())
    else:
        with pytest.raises(FormatError, match="link"):
            Page.from_block(page.to_block())


def test_links_of_other_lengths_and_hashes_are_refused() -> None:
    for column_, value in ((0, 0), (2, 0x13), (3, 31)):
        page = leaf([0, 1])
        page.cids[1, column_] = value
        with pytest.raises(FormatError, match="link"):
            Page.from_block(page.to_block())
    assert DAG_JSON > 0xFF  # and so has no link of 41 bytes


def test_another_version_is_named() -> None:
    block = leaf([0]).to_block()
    assert block.endswith(b"\x67version\x01")
    with pytest.raises(FormatError, match="has version 2; this release reads 1"):
        Page.from_block(block[:-1] + b"\x02")


def test_a_reader_says_which_page_has_the_wrong_level() -> None:
    pages = reader()
    block = leaf([0]).to_block()
    cid = cid_of(DAG_CBOR, BLAKE3, block)
    pages.blocks.put(cid, block)
    assert pages.page(cid, 0).level == 0
    with pytest.raises(FormatError, match=f"{format_cid(cid)} has level 0 where its parent needs"):
        pages.page(cid, 1)


def test_a_reader_forgets_the_oldest_page() -> None:
    pages = reader()
    pages._capacity = 2
    cids = []
    for code in range(3):
        block = leaf([code]).to_block()
        cids.append(cid_of(DAG_CBOR, BLAKE3, block))
        pages.blocks.put(cids[-1], block)
        pages.page(cids[-1])
    pages.blocks.reads.clear()  # type: ignore[attr-defined]
    for cid in reversed(cids):
        pages.page(cid)
    assert pages.blocks.reads == [cids[0]]  # type: ignore[attr-defined]
