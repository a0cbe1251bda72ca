"""Chunk trees: which value lies at which coordinates of one grid.

A tree is named by its `TreeRef` in a node of the root document; its pages are blocks, except a
small top page, which is embedded in the document. `build` makes one in bulk, `ChunkTree` reads
one; `cas_zarr.tree.update` changes one along the paths of what changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import BLAKE3, DAG_CBOR, CidBytes, HashFunction, cid_of, format_cid
from cas_zarr.errors import FormatError, InvalidArgumentError
from cas_zarr.tree.morton import Codes, code_bits, decode, search
from cas_zarr.tree.page import CID_SIZE, Page, PageReader
from cas_zarr.tree.table import Table, concatenate, empty_table, from_page, page_starts, to_page

__all__ = [
    "EMBED_LIMIT",
    "ChunkTree",
    "TreeRef",
    "Value",
    "build",
    "chunk_table",
    "embedded_ref",
    "store_top",
    "write_pages",
]

EMBED_LIMIT: Final = 2048
"""Largest top page, in bytes, that is embedded in its document."""


class Value(NamedTuple):
    """A link to the value of a key, and its size in bytes."""

    cid: CidBytes
    size: int

    def __repr__(self) -> str:
        return f"Value(cid={format_cid(self.cid)}, size={self.size})"

    def text(self) -> str:
        """Return its DAG-JSON."""
        return f'{{"cid":{{"/":"{format_cid(self.cid)}"}},"size":{self.size}}}'


@dataclass(frozen=True, slots=True)
class TreeRef:
    """What a node says of one of its chunk trees.

    Attributes
    ----------
    cid : CidBytes
        CID of the top page.
    chunks, size : int
        Chunks, and bytes of their values.
    embedded : bytes or None
        The top page itself, where it is embedded.
    """

    cid: CidBytes
    chunks: int
    size: int
    embedded: bytes | None = None


def chunk_table(
    codes: NDArray[np.uint64], cids: NDArray[np.uint8], sizes: NDArray[np.uint64], ndim: int
) -> Table:
    """Return a table of chunks in ascending order of their codes, which must be distinct."""
    if len(codes) > 1 and not (codes[1:] > codes[:-1]).all():
        order = np.argsort(codes, kind="stable")
        codes, cids, sizes = codes[order], cids[order], sizes[order]
        if (codes[1:] == codes[:-1]).any():
            raise InvalidArgumentError("a chunk is given twice; give each coordinate once")
    n = len(codes)
    return Table(codes, cids, sizes, np.ones(n, np.uint64), np.full(n, code_bits(ndim), np.int64))


def write_pages(
    reader: PageReader, function: HashFunction, entries: Table, level: int, bits: int, base: int = 0
) -> Table:
    """Put `entries` into pages of `level`, write them, and return the table of the pages.

    `base` is as in `page_starts`: the prefix length of the box that the entries lie in.
    """
    starts, prefixes = page_starts(entries.codes, bits, base)
    n = len(starts)
    if n == 0:
        return empty_table()
    cids = np.empty((n, CID_SIZE), np.uint8)
    lows = [
        int(entries.codes[start]) >> bits - length << bits - length
        for start, length in zip(starts.tolist(), prefixes.tolist(), strict=True)
    ]
    stops = [*starts[1:].tolist(), len(entries)]

    def blocks() -> Iterator[tuple[CidBytes, bytes]]:
        for row, (start, stop, low) in enumerate(zip(starts.tolist(), stops, lows, strict=True)):
            data = to_page(entries.take(slice(start, stop)), low, level).to_block()
            cid = cid_of(DAG_CBOR, function, data)
            cids[row] = np.frombuffer(cid, np.uint8)
            yield cid, data

    if n == 1 and prefixes[0] == 0:  # the top: its block is written where it is not embedded
        cid, data = next(blocks())
        reader.remember(cid, Page.from_block(data))  # which holds no array of the caller
    else:
        reader.blocks.put_many(blocks())
    codes = np.array(lows, entries.codes.dtype)
    return Table(
        codes,
        cids,
        np.add.reduceat(entries.sizes, starts),
        np.add.reduceat(entries.counts, starts),
        prefixes,
    )


def store_top(reader: PageReader, tops: Table) -> TreeRef:
    """Return the reference to the one page of `tops`; write its block if it is not small."""
    cid = CidBytes(tops.cids[0].tobytes())
    data = reader.page(cid).to_block()
    chunks, size = int(tops.counts[0]), int(tops.sizes[0])
    if len(data) <= EMBED_LIMIT:
        return embedded_ref(data, chunks, size)
    reader.blocks.put(cid, data)
    return TreeRef(cid, chunks, size)


def embedded_ref(page: bytes, chunks: int, size: int) -> TreeRef:
    """Return the reference to an embedded page.

    Its CID stands in no document; it is BLAKE3's whatever the profile, so that equal pages have
    equal references.
    """
    return TreeRef(cid_of(DAG_CBOR, BLAKE3, page), chunks, size, page)


def build(reader: PageReader, function: HashFunction, chunks: Table, ndim: int) -> TreeRef | None:
    """Build the tree of `chunks` in bulk; None if there are none."""
    if len(chunks) == 0:
        return None
    bits = code_bits(ndim)
    entries, level = chunks, 0
    while True:
        entries = write_pages(reader, function, entries, level, bits)
        if len(entries) == 1:
            return store_top(reader, entries)
        level += 1


class ChunkTree:
    """Reads one chunk tree.

    Parameters
    ----------
    reader : PageReader
    ref : TreeRef
    ndim : int
        Number of dimensions of the grid.
    """

    __slots__ = ("_last", "_top", "bits", "ndim", "reader", "ref")

    def __init__(self, reader: PageReader, ref: TreeRef, ndim: int) -> None:
        self.reader = reader
        self.ref = ref
        self.ndim = ndim
        self.bits = code_bits(ndim)
        self._top: Page | None = None
        # of the leaf that was read last: lowest code, end of its box, what its `lookup` gives
        self._last: tuple[int, int, dict[int, int], Any, list[int]] | None = None

    @property
    def top(self) -> Page:
        """The top page, checked against the totals that the document gives."""
        if self._top is None:
            if self.ref.embedded is None:
                page = self.reader.page(self.ref.cid)
            else:
                page = Page.from_block(self.ref.embedded, "an embedded page")
            if page.totals() != (self.ref.chunks, self.ref.size):
                raise FormatError(
                    f"a chunk tree claims {self.ref.chunks} chunks of {self.ref.size} bytes and "
                    f"its top page has {page.totals()[0]} of {page.totals()[1]}"
                )
            page.check_box(self.bits, 0)
            self._top = page
        return self._top

    def find(self, code: int) -> Value | None:
        """Return the value at a code, or None."""
        last = self._last
        if last is None or not last[0] <= code < last[1]:
            found = self.descend(code, 0)
            if found is None:
                return None
            leaf, low, prefix = found
            last = self._last = low, low + (1 << self.bits - prefix), *leaf.lookup()
        low, _, rows, cids, sizes = last
        row = rows.get(code - low)
        if row is None:
            return None
        return Value(cids[CID_SIZE * row : CID_SIZE * (row + 1)], sizes[row])

    def descend(self, code: int, level: int) -> tuple[Page, int, int] | None:
        """Return the page of `level` whose box holds `code`, its lowest code and prefix length."""
        page, low, prefix = self.top, 0, 0
        if level > page.level:
            return None
        while page.level > level:
            row = self.row_of(page, code - low)
            if row < 0:
                return None
            page, low, prefix = self.child(page, low, row)
        return page, low, prefix

    def row_of(self, page: Page, code: int) -> int:
        """Return the row of the child whose box holds the relative `code`, or -1."""
        assert page.prefixes is not None
        row = page.row_below(code)
        if row < 0 or code - int(page.codes[row]) >> self.bits - int(page.prefixes[row]):
            return -1
        return row

    def rows_within(self, page: Page, low: int, high: int) -> range:
        """Return the rows of the children whose boxes overlap the relative codes low ... high-1."""
        first = self.row_of(page, low)
        if first < 0:
            first = page.row_below(low) + 1
        return range(first, page.row_below(high - 1) + 1)

    def child(self, page: Page, low: int, row: int) -> tuple[Page, int, int]:
        """Open the child page in `row` of `page`, whose lowest code is `low`; check its box."""
        assert page.prefixes is not None
        prefix = int(page.prefixes[row])
        child = self.reader.page(page.cid(row), page.level - 1)
        if child.totals() != (int(page.counts[row]), int(page.sizes[row])):
            raise FormatError("a page does not have the chunks or bytes that its parent claims")
        child.check_box(self.bits, prefix)
        return child, low + int(page.codes[row]), prefix

    def fetch(self, codes: Codes, most: int) -> int:
        """Read the pages on the paths to some codes, those of a level together, to have them ready.

        Parameters
        ----------
        codes : array
            Ascending codes.
        most : int
            Pages that are read of a level, at most.

        Returns
        -------
        int
            The code below which all pages were read.
        """
        front, end = [(self.top, 0, 0)], 1 << self.bits
        for level in range(self.top.level - 1, -1, -1):
            found: list[tuple[CidBytes, int, int]] = []
            for page, low, prefix in front:
                assert page.prefixes is not None
                stop = min(low + (1 << self.bits - prefix), end)
                at = search(codes, low)
                while at < len(codes) and (code := int(codes[at])) < stop:
                    row = page.row_below(code - low)
                    if self.row_of(page, code - low) >= 0:
                        if len(found) == most:
                            end = code
                            break
                        length = int(page.prefixes[row])
                        found.append((page.cid(row), low + int(page.codes[row]), length))
                    after = int(page.codes[row + 1]) if row + 1 < len(page) else stop - low
                    at = search(codes, low + after)
            pages = self.reader.pages([cid for cid, _, _ in found], level)
            front = []
            for page, (_, low, prefix) in zip(pages, found, strict=True):
                page.check_box(self.bits, prefix)
                front.append((page, low, prefix))
        return end

    def pages(
        self, level: int = 0, low: int = 0, prefix: int = 0
    ) -> Iterator[tuple[Page, int, int]]:
        """Yield the pages of a level inside a box, in order, with lowest code and prefix length."""
        stack = [(self.top, 0, 0)]
        high = low + (1 << self.bits - prefix)
        while stack:
            page, start, length = stack.pop()
            if page.level < level:
                continue
            if page.level == level:
                if length >= prefix and low <= start < high:
                    yield page, start, length
                continue
            for row in reversed(self.rows_within(page, low - start, high - start)):
                stack.append(self.child(page, start, row))

    def tables(self) -> Iterator[Table]:
        """Yield all chunks, a leaf page at a time, in order of their codes."""
        for page, low, _ in self.pages():
            yield from_page(page, low, self.bits)

    def table(self) -> Table:
        """Return all chunks at once."""
        return concatenate(self.tables())

    def coordinates(self) -> Iterator[NDArray[np.int64]]:
        """Yield the coordinates of all chunks, shape (n, ndim), a leaf page at a time."""
        for table in self.tables():
            yield decode(table.codes, self.ndim)

    def select(self, start: tuple[int, ...], stop: tuple[int, ...]) -> Table:
        """Return the chunks in a box of the grid; pages outside it are not opened."""
        lower, upper = np.array(start, np.int64), np.array(stop, np.int64)
        if (upper <= lower).any():
            return empty_table()
        found = []
        stack = [(self.top, 0)]
        while stack:
            page, low = stack.pop()
            entries = from_page(page, low, self.bits)
            first = decode(entries.codes, self.ndim)
            if page.level == 0:
                found.append(entries.take(((first >= lower) & (first < upper)).all(axis=1)))
                continue
            sides = decode_last(entries, self.bits, self.ndim)
            hit = ((sides >= lower) & (first < upper)).all(axis=1)
            for row in np.flatnonzero(hit).tolist():
                stack.append(self.child(page, low, row)[:2])
        return concatenate(found)


def decode_last(entries: Table, bits: int, ndim: int) -> NDArray[np.int64]:
    """Return the coordinates of the last cell in each entry's box."""
    lasts = [
        int(code) + (1 << bits - length) - 1
        for code, length in zip(entries.codes.tolist(), entries.prefixes.tolist(), strict=True)
    ]
    wide = max(lasts, default=0) >= 1 << 64
    return decode(np.array(lasts, object if wide else np.uint64), ndim)
