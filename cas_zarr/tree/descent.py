"""Two chunk trees side by side: what they do not share, page by page, from the top down.

Where both have a page with the same box and the same CID, it is not opened. Boxes of pages are
binary prefixes, so two of them are disjoint or nested; that lets a large difference be gone
through in batches that take little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import CidBytes
from cas_zarr.errors import CasZarrError, FormatError
from cas_zarr.tree.chunktree import ChunkTree
from cas_zarr.tree.morton import Codes
from cas_zarr.tree.page import Page
from cas_zarr.tree.table import Table, concatenate, empty_table, from_page

__all__ = ["CHUNKS", "PageError", "alike", "descend", "matches", "without_shared"]

CHUNKS: Final = -1
"""The level of chunks, as `descend` gives it."""

PageError: TypeAlias = Callable[[CidBytes, CasZarrError], None]

_ONE: Final = np.uint64(1)
_LONGEST: Final = np.uint64(63)  # _ONE * 63 is a float before NumPy 2
_MOST: Final = np.uint64(2**64 - 1)
_BATCH: Final = 128  # pages that are open at once: some MB
_WIDEST: Final = 4096  # pages of `b` beside one of `a` that are opened where only `a` counts


def descend(
    a: ChunkTree | None,
    b: ChunkTree | None,
    *,
    only_a: bool = False,
    fresh: Callable[[Table], Table] | None = None,
    on_error: tuple[PageError | None, PageError | None] = (None, None),
) -> Iterator[tuple[int, Table, Table]]:
    """Yield what two trees do not share: rows of `a` and rows of `b`, with their level.

    The pages of a level come before what lies below them, and are opened only after they were
    yielded. The top pages are not among them. Rows of level `CHUNKS` are chunks; of these each
    piece of the grid comes once, in order of the codes.

    Parameters
    ----------
    a, b : ChunkTree or None
        Trees of equally many dimensions.
    only_a : bool
        Leave out, and do not open, pages of `b` where `a` has nothing that differs. Where `b` has
        very many beside a page of `a`, what they share is not looked for: a few pages can claim
        more than any memory holds.
    fresh : callable, optional
        Given pages of `a` that are about to be opened; returns those that shall be.
    on_error : pair of callables, optional
        For each tree, called with CID and error for a page that cannot be read, which then counts
        as empty. Without it the error is raised.
    """
    if a is not None and b is not None and a.ref.cid == b.ref.cid:
        return
    sides = _Side(a, on_error[0]), _Side(b, on_error[1])
    levels = [side.level for side in sides]
    rows = [side.rows for side in sides]
    for one, other in ((0, 1), (1, 0)):
        while levels[one] > levels[other] and levels[other] >= 0:
            if one == 0 and fresh is not None and levels[0] < sides[0].level:
                rows[0] = fresh(rows[0])
            if only_a and one == 1 and len(rows[1]) > _WIDEST:
                rows[1], levels[1] = empty_table(), CHUNKS
                break
            rows[one] = sides[one].open(rows[one], levels[one])
            levels[one] -= 1
            if one == 0 or not only_a:
                found = [empty_table(), empty_table()]
                found[one] = rows[one]
                yield levels[one], found[0], found[1]
    stack = [(max(levels), rows[0], rows[1])]
    while stack:
        level, rows_a, rows_b = stack.pop()
        if len(rows_a) + len(rows_b) > _BATCH:
            parts = _batches(rows_a, rows_b, sides[0].bits or sides[1].bits)
            if len(parts) > 1:
                stack.extend((level, *part) for part in reversed(parts))
                continue
        if fresh is not None and level < sides[0].level:
            rows_a = fresh(rows_a)
        if only_a:
            rows_b = rows_b.take(_touching(rows_b, rows_a, sides[0].bits))
            if len(rows_b) > _WIDEST:
                rows_b = empty_table()
        below_a, below_b = without_shared(
            sides[0].open(rows_a, level), sides[1].open(rows_b, level)
        )
        level -= 1
        if len(below_a) or (len(below_b) and not only_a):
            yield level, below_a, below_b
            if level >= 0:
                stack.append((level, below_a, below_b))


class _Side:
    """One of the two trees: opens its pages."""

    def __init__(self, tree: ChunkTree | None, on_error: PageError | None) -> None:
        self.tree = tree
        self.on_error = on_error
        self.level = CHUNKS
        self.bits = 0
        self.rows = empty_table()
        if tree is None:
            return
        self.bits = tree.bits
        try:
            self.level = tree.top.level
        except CasZarrError as error:
            self._failed(tree.ref.cid, error)
            return
        self.rows = Table(
            np.zeros(1, np.uint64),
            np.frombuffer(tree.ref.cid, np.uint8).reshape(1, -1),
            np.array([tree.ref.size], np.uint64),
            np.array([tree.ref.chunks], np.uint64),
            np.zeros(1, np.int64),
        )

    def open(self, rows: Table, level: int) -> Table:
        """Return what the pages in some rows, all of one level, list."""
        if self.tree is None or len(rows) == 0:
            return empty_table()
        if level == self.level:
            return from_page(self.tree.top, 0, self.bits)
        cids = [CidBytes(cid.tobytes()) for cid in rows.cids]
        try:
            pages: list[Page | None] = list(self.tree.reader.pages(cids, level))
        except CasZarrError:
            if self.on_error is None:
                raise
            pages = [self._page(cid, level) for cid in cids]
        lows, prefixes = rows.codes.tolist(), rows.prefixes.tolist()
        totals = zip(rows.counts.tolist(), rows.sizes.tolist(), strict=True)
        tables = []
        for page, cid, low, prefix, total in zip(pages, cids, lows, prefixes, totals, strict=True):
            if page is None:
                continue
            try:
                if page.totals() != total:
                    raise FormatError(
                        "a page does not have the chunks or bytes that its parent claims"
                    )
                page.check_box(self.bits, prefix)
            except CasZarrError as error:
                self._failed(cid, error)
                continue
            tables.append(from_page(page, low, self.bits))
        return concatenate(tables)

    def _page(self, cid: CidBytes, level: int) -> Page | None:
        assert self.tree is not None
        try:
            return self.tree.reader.page(cid, level)
        except CasZarrError as error:
            self._failed(cid, error)
            return None

    def _failed(self, cid: CidBytes, error: CasZarrError) -> None:
        if self.on_error is None:
            raise error
        self.on_error(cid, error)


def matches(a: Codes, b: Codes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places in two ascending columns of codes where both have the same code."""
    a, b = alike(a, b)
    if len(a) > len(b):
        rows_b, rows_a = matches(b, a)
        return rows_a, rows_b
    if len(a) == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    near = np.searchsorted(b, a)
    near[near == len(b)] = 0
    rows = np.flatnonzero(b[near] == a)
    return rows, near[rows]


def without_shared(a: Table, b: Table) -> tuple[Table, Table]:
    """Return two tables without the rows that both have."""
    if len(a) == 0 or len(b) == 0:
        return a, b
    if a.codes.dtype == b.codes.dtype and np.array_equal(a.codes, b.codes):
        keep = ~_same(a, b)
        return a.take(keep), b.take(keep)
    rows_a, rows_b = matches(a.codes, b.codes)
    same = _same(a.take(rows_a), b.take(rows_b))
    keep_a, keep_b = np.ones(len(a), bool), np.ones(len(b), bool)
    keep_a[rows_a[same]] = False
    keep_b[rows_b[same]] = False
    return a.take(keep_a), b.take(keep_b)


def _same(a: Table, b: Table) -> NDArray[np.bool_]:
    """Tell which rows of two tables with the same codes are equal."""
    same: NDArray[np.bool_] = (a.prefixes == b.prefixes) & (a.sizes == b.sizes)
    words_a, words_b = a.cids.view(np.uint32), b.cids.view(np.uint32)
    for word in range(words_a.shape[1]):
        same &= words_a[:, word] == words_b[:, word]
    return same


def _batches(a: Table, b: Table, bits: int) -> list[tuple[Table, Table]]:
    """Cut rows of pages where no box of either side goes across the cut."""
    codes = np.concatenate(alike(a.codes, b.codes))
    lasts = np.concatenate(_lasts(a, b, bits))
    order = np.argsort(codes, kind="stable")
    codes, lasts = codes[order], np.maximum.accumulate(lasts[order])
    starts = np.flatnonzero(codes[1:] > lasts[:-1]) + 1
    cuts, done = [], 0
    for start in starts.tolist():
        if start - done >= _BATCH:
            cuts.append(codes[start])
            done = start
    parts = []
    places = [
        [0, *np.searchsorted(*alike(table.codes, np.array(cuts, codes.dtype))).tolist(), None]
        for table in (a, b)
    ]
    for row in range(len(cuts) + 1):
        one, two = (slice(ends[row], ends[row + 1]) for ends in places)
        parts.append((a.take(one), b.take(two)))
    return parts


def _touching(rows: Table, others: Table, bits: int) -> NDArray[np.bool_]:
    """Tell which boxes overlap one of `others`."""
    if len(others) == 0 or len(rows) == 0:
        return np.zeros(len(rows), bool)
    codes, starts = alike(rows.codes, others.codes)
    lasts, ends = _lasts(rows, others, bits)
    before = np.searchsorted(starts, codes, "right")  # others that begin at or before this one
    inside = np.searchsorted(starts, lasts, "right") > before
    around = ends[np.maximum(before - 1, 0)] >= codes
    touching: NDArray[np.bool_] = inside | (around & (before > 0))
    return touching


def _lasts(a: Table, b: Table, bits: int) -> tuple[Codes, Codes]:
    """Return the last code in each row's box, at most the greatest of the type of both."""
    if object in (a.codes.dtype, b.codes.dtype):
        wide = [
            rows.codes.astype(object)
            + np.array([(1 << bits - length) - 1 for length in rows.prefixes.tolist()], object)
            for rows in (a, b)
        ]
        return wide[0], wide[1]
    room = [np.minimum(bits - rows.prefixes, 64).astype(np.uint64) for rows in (a, b)]
    sides = [
        np.where(width == 64, _MOST, (_ONE << np.minimum(width, _LONGEST)) - _ONE) for width in room
    ]
    return a.codes + sides[0], b.codes + sides[1]


def alike(a: Codes, b: Codes) -> tuple[Codes, Codes]:
    """Return two columns of codes in one type."""
    if a.dtype == b.dtype:
        return a, b
    return a.astype(object), b.astype(object)
