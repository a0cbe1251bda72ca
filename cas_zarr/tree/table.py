"""Columns of entries, and how sorted entries fall into pages.

The rule, the same at every level: a page is each maximal binary prefix that holds at most 512
entries of the level below. So the shape of a tree follows from its set of coordinates alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cas_zarr.tree.morton import Codes, bit_lengths, fit, search
from cas_zarr.tree.page import CID_SIZE, MAX_ENTRIES, Page

__all__ = ["Table", "concatenate", "empty_table", "from_page", "page_starts", "to_page"]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Entries of one level: chunks, or pages of one level.

    Attributes
    ----------
    codes : array, shape (n,)
        Absolute Morton codes (the lowest of the box, for a page), ascending.
    cids : array of uint8, shape (n, 36)
    sizes, counts : arrays of uint64, shape (n,)
        Bytes of values, and chunks.
    prefixes : array of int64, shape (n,)
        Length of each entry's prefix in bits; for a chunk all bits of its code.
    """

    codes: Codes
    cids: NDArray[np.uint8]
    sizes: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    prefixes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: Any) -> Table:
        """Return the entries in `rows`: a slice, a mask or indices."""
        return Table(
            self.codes[rows],
            self.cids[rows],
            self.sizes[rows],
            self.counts[rows],
            self.prefixes[rows],
        )

    def span(self, low: int, high: int) -> slice:
        """Return the rows whose codes are in low ... high - 1."""
        return slice(search(self.codes, low), search(self.codes, high))


def empty_table() -> Table:
    """Return a table of no entries."""
    none = np.zeros(0, np.uint64)
    return Table(none, np.zeros((0, CID_SIZE), np.uint8), none, none, np.zeros(0, np.int64))


def concatenate(tables: Iterable[Table]) -> Table:
    """Join tables whose codes do not overlap, and sort them."""
    parts = [table for table in tables if len(table)]
    if not parts:
        return empty_table()
    if len(parts) == 1:
        return parts[0]
    codes = _join_codes([part.codes for part in parts])
    joined = Table(
        codes,
        np.concatenate([part.cids for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.prefixes for part in parts]),
    )
    if (codes[1:] > codes[:-1]).all():
        return joined
    return joined.take(np.argsort(codes, kind="stable"))


def from_page(page: Page, low: int, bits: int) -> Table:
    """Return the entries of a page whose prefix starts at code `low`, of codes of `bits` bits."""
    codes = page.codes
    if low:
        if codes.dtype == object or low + int(codes[-1]) >= 1 << 64:
            codes = codes.astype(object) + low
        else:
            codes = codes + np.uint64(low)
    prefixes = np.full(len(page), bits, np.int64) if page.prefixes is None else page.prefixes
    return Table(codes, page.cids, page.sizes, page.counts, prefixes)


def to_page(table: Table, low: int, level: int) -> Page:
    """Return the page of `level` that holds the entries, its prefix starting at code `low`."""
    codes = table.codes
    if low:
        codes = fit(codes - (low if codes.dtype == object else np.uint64(low)))
    return Page(
        level,
        codes,
        table.cids,
        table.sizes,
        table.counts,
        table.prefixes if level else None,
    )


def page_starts(
    codes: Codes, bits: int, base: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Partition sorted entries into pages.

    Parameters
    ----------
    codes : array, shape (n,)
        Ascending codes that share a prefix of `base` bits.
    bits : int
        Bits of a code.
    base : int
        Length of a prefix whose parent is known to hold more than one page can.

    Returns
    -------
    starts : array of int64
        First row of each page.
    prefixes : array of int64
        Length of each page's prefix.

    Notes
    -----
    A prefix of length d around entry i holds more than 512 entries exactly if some window of 513
    consecutive entries around i shares d bits. So the prefix of i's page is one bit longer than
    the longest that any of those windows shares.
    """
    n = len(codes)
    if n <= MAX_ENTRIES:
        return np.zeros(min(n, 1), np.int64), np.full(min(n, 1), base, np.int64)
    shared = bits - bit_lengths(codes[MAX_ENTRIES:] ^ codes[:-MAX_ENTRIES])
    padded = np.full(n + MAX_ENTRIES, -1, np.int64)
    padded[MAX_ENTRIES:n] = shared  # padded[i + 512] is the window that starts at i
    lengths = _sliding_max(padded, MAX_ENTRIES + 1) + 1
    neighbours = bits - bit_lengths(codes[1:] ^ codes[:-1])
    fresh = np.ones(n, bool)
    fresh[1:] = neighbours < lengths[1:]
    starts = np.flatnonzero(fresh)
    return starts, lengths[starts]


def _sliding_max(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the maximum of each window of `width` values, by doubling."""
    have = 1
    while have < width:
        step = min(have, width - have)
        values = np.maximum(values[:-step], values[step:])
        have += step
    return values


def _join_codes(columns: list[Codes]) -> Codes:
    if any(column.dtype == object for column in columns):
        columns = [column.astype(object) for column in columns]
    return np.concatenate(columns)
