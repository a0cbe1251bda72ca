"""Pages: the nodes of a chunk tree, as DAG-CBOR blocks that encode and decode as NumPy arrays.

A page is a DAG-CBOR map whose keys come in canonical order. A leaf (level 0) lists chunks::

    {type: "cas-zarr/page", codes: bytes, level: 0, links: [link], sizes: bytes, version: 1}

and an inner page lists pages of the level below::

    {type, codes, level, links, sizes, counts: bytes, version, prefixes: bytes}

`codes` are Morton codes relative to the page's prefix, strictly ascending; of a page in an inner
page it is the lowest code of its box. `sizes` are bytes of values, `counts` chunks, `prefixes` the
lengths of the children's prefixes in bits. Each column is little-endian in the least width that
holds its greatest entry. A link is a CIDv1 of codec raw, dag-pb or dag-cbor with a digest of 32
bytes, so each takes 41 bytes.

Source: docs/format.md, Pages; RFC 8949 and the DAG-CBOR specification for the encoding.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import DAG_CBOR, DAG_PB, HASHES, RAW, CidBytes, format_cid
from cas_zarr.errors import FormatError
from cas_zarr.tree.morton import Codes

__all__ = ["CID_SIZE", "MAX_ENTRIES", "MAX_LEVEL", "VERSION", "Page", "PageReader", "remember"]

VERSION: Final = 1
MAX_ENTRIES: Final = 512
MAX_LEVEL: Final = 64
CID_SIZE: Final = 36
_STRIDE: Final = 41
_LINK_HEAD: Final = np.frombuffer(b"\xd8\x2a\x58\x25\x00\x01", np.uint8)  # tag 42, 37 bytes, CIDv1
_HEADS: Final = np.dtype(  # what comes before the digest in a link, as two numbers
    {"names": ["first", "last"], "formats": ["<u8", "u1"], "offsets": [0, 8], "itemsize": _STRIDE}
)
_INNER_HEADS: Final = frozenset(
    _LINK_HEAD.tobytes() + bytes([DAG_CBOR, code, 32]) for code in HASHES
)
_LEAF_HEADS: Final = frozenset(
    _LINK_HEAD.tobytes() + bytes([codec, code, 32])
    for codec in (RAW, DAG_PB, DAG_CBOR)
    for code in HASHES
)
_TYPE: Final = b"\x64type\x6dcas-zarr/page"
_LIMIT: Final = 1 << 63
_MAX_CODE_WIDTH: Final = 128

_K = TypeVar("_K")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """A decoded page of `n` entries.

    Attributes
    ----------
    level : int
        0 for a leaf, whose entries are chunks.
    codes : array, shape (n,)
        Relative Morton codes, ascending.
    cids : array of uint8, shape (n, 36)
        CIDs of the chunks' values or of the child pages.
    sizes : array of uint64, shape (n,)
        Bytes of values.
    counts : array of uint64, shape (n,)
        Chunks; all one in a leaf.
    prefixes : array of int64, shape (n,), or None in a leaf
        Lengths of the prefixes of the child pages, in bits.
    """

    level: int
    codes: Codes
    cids: NDArray[np.uint8]
    sizes: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    prefixes: NDArray[np.int64] | None = None
    _memo: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.codes)

    def row_below(self, code: int) -> int:
        """Return the last row whose relative code is not above `code`, or -1."""
        codes = self._memo.get("codes")
        if codes is None:
            codes = self._memo["codes"] = self.codes.tolist()
        return bisect_right(codes, code) - 1

    def lookup(self) -> tuple[dict[int, int], Any, list[int]]:
        """Return rows by relative code, all CIDs in one piece, and sizes: to read single chunks."""
        found = self._memo.get("lookup")
        if found is None:  # made whole before others see it: threads share pages
            rows = dict(zip(self.codes.tolist(), range(len(self.codes)), strict=True))
            found = self._memo["lookup"] = rows, self.cids.tobytes(), self.sizes.tolist()
        return cast("tuple[dict[int, int], Any, list[int]]", found)

    def cid(self, row: int) -> CidBytes:
        """Return the CID in one row."""
        return CidBytes(self.cids[row].tobytes())

    def totals(self) -> tuple[int, int]:
        """Return the number of chunks and of bytes below this page."""
        totals = self._memo.get("totals")
        if totals is None:
            chunks = len(self.codes) if self.prefixes is None else _sum(self.counts)
            totals = self._memo["totals"] = chunks, _sum(self.sizes)
        return cast("tuple[int, int]", totals)

    def check_box(self, bits: int, prefix: int) -> None:
        """Check that what is listed lies in the page's box, in boxes that do not overlap.

        Parameters
        ----------
        bits, prefix : int
            Bits of a code in this tree, and of them the length of this page's prefix.
        """
        if self._memo.get("box") == (bits, prefix):
            return
        room = bits - prefix
        if len(self) and int(self.codes[-1]) >> room:
            raise FormatError("a page lists a chunk outside its box")
        if self.prefixes is not None:
            end = 0
            for code, length in zip(self.codes.tolist(), self.prefixes.tolist(), strict=True):
                if not prefix <= length <= bits:
                    raise FormatError("a page lists a child with an impossible prefix")
                side = 1 << bits - length
                if code % side or code < end:
                    raise FormatError("a page lists children that overlap or are not aligned")
                end = code + side
        self._memo["box"] = bits, prefix

    def to_block(self) -> bytes:
        """Encode the page."""
        leaf = self.prefixes is None
        n = len(self.codes)
        links = np.empty((n, _STRIDE), np.uint8)
        links[:, :5] = _LINK_HEAD[:5]
        links[:, 5:] = self.cids
        parts = [
            b"\xa6" if leaf else b"\xa8",
            _TYPE,
            b"\x65codes" + _column(self.codes),
            b"\x65level" + _head(0, self.level),
            b"\x65links" + _head(0x80, n),
            links.tobytes(),
            b"\x65sizes" + _column(self.sizes),
        ]
        if self.prefixes is None:
            parts.append(b"\x67version" + _head(0, VERSION))
        else:
            parts.append(b"\x66counts" + _column(self.counts))
            parts.append(b"\x67version" + _head(0, VERSION))
            parts.append(b"\x68prefixes" + _column(self.prefixes.astype(np.uint64)))
        return b"".join(parts)

    @classmethod
    def from_block(cls, data: bytes, place: object = "a page") -> Page:
        """Decode and check a page.

        Raises
        ------
        FormatError
            If the bytes are not exactly what `to_block` writes for the page they describe.
        """
        scan = _Scan(data, place)
        leaf = data[:1] == b"\xa6"
        scan.expect(b"\xa6" if leaf else b"\xa8")
        scan.expect(_TYPE, "it is no page of cas_zarr")
        scan.expect(b"\x65codes")
        raw_codes = scan.bytes()
        scan.expect(b"\x65level")
        level = scan.head(0)
        scan.expect(b"\x65links")
        n = scan.head(0x80)
        raw_links = scan.take(n * _STRIDE)
        scan.expect(b"\x65sizes")
        raw_sizes = scan.bytes()
        raw_counts = raw_prefixes = b""
        if not leaf:
            scan.expect(b"\x66counts")
            raw_counts = scan.bytes()
        scan.expect(b"\x67version")
        version = scan.head(0)
        if version != VERSION:
            raise FormatError(f"{place} has version {version}; this release reads {VERSION}")
        if not leaf:
            scan.expect(b"\x68prefixes")
            raw_prefixes = scan.bytes()
        scan.end()

        if n > MAX_ENTRIES or level > MAX_LEVEL or (level == 0) != leaf or (n == 0 and not leaf):
            raise FormatError(f"{place} claims level {level} and {n} entries")
        links = np.frombuffer(raw_links, np.uint8).reshape(n, _STRIDE)
        _check_links(links, level, place)
        codes = _uncolumn(raw_codes, n, _MAX_CODE_WIDTH, place)
        sizes = _uncolumn(raw_sizes, n, 8, place)
        counts = np.ones(n, np.uint64) if leaf else _uncolumn(raw_counts, n, 8, place)
        prefixes = None if leaf else _uncolumn(raw_prefixes, n, 2, place).astype(np.int64)
        if n > 1 and not (codes[1:] > codes[:-1]).all():
            raise FormatError(f"{place} does not have its codes in ascending order")
        if not leaf and not counts.all():
            raise FormatError(f"{place} lists a page without chunks")
        page = cls(level, codes, links[:, 5:], sizes, counts, prefixes)
        if max(page.totals()) >= _LIMIT:
            raise FormatError(f"{place} claims more than 2**63 chunks or bytes")
        return page


class _PageName:
    """What errors call a page: written out only for them, as base32 costs more than hashing."""

    __slots__ = ("cid",)

    def __init__(self, cid: CidBytes) -> None:
        self.cid = cid

    def __str__(self) -> str:
        return f"page {format_cid(self.cid)}"


class PageReader:
    """Reads, checks and remembers pages (and other small immutable things) of a block store.

    Parameters
    ----------
    blocks : BlockStore
        Where the blocks are.
    capacity : int
        How many decoded pages to remember; one takes some 60 KB.
    """

    __slots__ = ("_capacity", "_pages", "blocks")

    def __init__(self, blocks: BlockStore, capacity: int = 256) -> None:
        self.blocks = blocks
        self._capacity = capacity
        self._pages: OrderedDict[CidBytes, Page] = OrderedDict()

    def page(self, cid: CidBytes, level: int | None = None) -> Page:
        """Return the page behind a link that says which level it has to have."""
        page = self._pages.get(cid)
        if page is None:
            page = Page.from_block(self.blocks.get(cid), _PageName(cid))
            self.remember(cid, page)
        return page if level is None else self._of_level(cid, page, level)

    @staticmethod
    def _of_level(cid: CidBytes, page: Page, level: int) -> Page:
        if page.level != level:
            raise FormatError(
                f"page {format_cid(cid)} has level {page.level} where its parent needs {level}"
            )
        return page

    def pages(self, cids: Sequence[CidBytes], level: int) -> list[Page]:
        """Return many pages of one level; those that are not remembered are read together."""
        held = {cid: page for cid in cids if (page := self._pages.get(cid)) is not None}
        missing = [cid for cid in dict.fromkeys(cids) if cid not in held]
        if len(missing) > 1:
            for cid, data in zip(missing, self.blocks.get_many(missing), strict=True):
                held[cid] = Page.from_block(data, _PageName(cid))
                self.remember(cid, held[cid])
        found = (held[cid] if cid in held else self.page(cid) for cid in cids)
        return [self._of_level(*pair, level) for pair in zip(cids, found, strict=True)]

    def remember(self, cid: CidBytes, page: Page) -> None:
        """Keep a page that was just made, so that it need not be read again."""
        remember(self._pages, cid, page, self._capacity)


def remember(cache: OrderedDict[_K, _T], key: _K, thing: _T, capacity: int) -> None:
    """Keep a thing in a cache of bounded size; the oldest go first."""
    cache[key] = thing
    while len(cache) > capacity:
        try:
            cache.popitem(last=False)
        except KeyError:  # another thread was quicker
            break


# -- columns and CBOR heads -----------------------------------------------------------------


def _column(values: NDArray[Any]) -> bytes:
    """Encode a column, with its CBOR byte string head, in the least width."""
    if len(values) == 0:
        return b"\x40"
    width = max(1, (int(values.max()).bit_length() + 7) // 8)
    if values.dtype == object:
        body = b"".join(int(value).to_bytes(width, "little") for value in values)
    else:
        wide = np.ascontiguousarray(values, "<u8").view(np.uint8).reshape(-1, 8)
        body = wide[:, :width].tobytes()
    return _head(0x40, len(body)) + body


def _uncolumn(raw: bytes, n: int, widest: int, place: object) -> NDArray[Any]:
    """Decode a column of `n` entries; refuse a width that is not the least."""
    width, rest = divmod(len(raw), max(n, 1))
    if rest or not 1 <= width <= widest or n == 0:
        if n == 0 and not raw:
            return np.zeros(0, np.uint64)
        raise FormatError(f"{place} has a column of {len(raw)} bytes for {n} entries")
    grid = np.frombuffer(raw, np.uint8).reshape(n, width)
    if width > 1 and not grid[:, -1].any():
        raise FormatError(f"{place} has a column that is wider than its values need")
    if width > 8:
        return np.array([int.from_bytes(row.tobytes(), "little") for row in grid], object)
    out = np.zeros((n, 8), np.uint8)
    out[:, :width] = grid
    return out.view("<u8").reshape(n)


def _sum(column: NDArray[np.uint64]) -> int:
    if len(column) and int(column.max()) < _LIMIT // MAX_ENTRIES:
        return int(column.sum())
    return sum(column.tolist())  # which no sum of hostile numbers overflows


def _check_links(links: NDArray[np.uint8], level: int, place: object) -> None:
    if len(links) == 0:
        return
    heads = links.reshape(-1).view(_HEADS)
    if (heads["first"] == heads["first"][0]).all() and (heads["last"] == heads["last"][0]).all():
        head = links[0, :9].tobytes()  # nearly always: one speaks for all
        if head in (_LEAF_HEADS if not level else _INNER_HEADS):
            return
    codec, code, length = links[:, 6], links[:, 7], links[:, 8]
    known = (code == 0x1E) | (code == 0x12)
    codecs = codec == DAG_CBOR
    if not level:  # np.isin costs ten times as much on so few
        codecs |= (codec == RAW) | (codec == DAG_PB)
    if not (
        (links[:, :6] == _LINK_HEAD).all() and known.all() and codecs.all() and (length == 32).all()
    ):
        raise FormatError(
            f"{place} has a link that is no cid of raw, dag-pb or dag-cbor with 32 bytes of "
            f"{' or '.join(function.name for function in HASHES.values())}"
        )


def _head(major: int, value: int) -> bytes:
    """Encode the head of a CBOR item: `major` is the major type, shifted."""
    if value < 24:
        return bytes([major | value])
    for extra, width in ((24, 1), (25, 2), (26, 4)):
        if value < 1 << 8 * width:
            return bytes([major | extra]) + value.to_bytes(width, "big")
    return bytes([major | 27]) + value.to_bytes(8, "big")


class _Scan:
    """A cursor over a block that refuses whatever is not expected."""

    __slots__ = ("data", "offset", "place")

    def __init__(self, data: bytes, place: object) -> None:
        self.data = data
        self.offset = 0
        self.place = place

    def expect(self, what: bytes, otherwise: str = "it does not have the fields of one") -> None:
        if not self.data.startswith(what, self.offset):
            raise FormatError(f"{self.place} cannot be read: {otherwise}")
        self.offset += len(what)

    def take(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self.data):
            raise FormatError(f"{self.place} is cut off at byte {len(self.data)}")
        out = self.data[self.offset : end]
        self.offset = end
        return out

    def head(self, major: int) -> int:
        first = self.take(1)[0]
        extra = first & 0x1F
        if first & 0xE0 != major or extra > 27:
            raise FormatError(f"{self.place} has an unexpected item at byte {self.offset - 1}")
        if extra < 24:
            return extra
        value = int.from_bytes(self.take(1 << (extra - 24)), "big")
        if _head(major, value)[0] != first:
            raise FormatError(f"{self.place} has a number that is not in its shortest form")
        return value

    def bytes(self) -> bytes:
        return self.take(self.head(0x40))

    def end(self) -> None:
        if self.offset != len(self.data):
            raise FormatError(f"{self.place} has {len(self.data) - self.offset} bytes too many")
