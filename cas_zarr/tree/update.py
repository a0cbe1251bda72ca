"""Changing a chunk tree along the paths of what changed.

The result is the tree that `build` makes of the chunks that remain, to the byte: at each level
the pages that hold a change are partitioned anew by the rule of `cas_zarr.tree.table`, and where
one lost entries, the widest prefix around it that fits into one page is joined. Everything else
is left as it is and never opened. The leaf pages that change are gone through one after another,
so memory holds some of them, and two small rows for each, however many there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from cas_zarr.cid import HashFunction
from cas_zarr.tree.chunktree import ChunkTree, TreeRef, build, store_top, write_pages
from cas_zarr.tree.descent import matches
from cas_zarr.tree.morton import Codes, search
from cas_zarr.tree.page import MAX_ENTRIES, Page, PageReader
from cas_zarr.tree.table import Table, concatenate, from_page

__all__ = ["update"]

_AHEAD: Final = (
    32  # pages of a level that are read together where blocks are far: the reader keeps 256
)


@dataclass(frozen=True, slots=True)
class _Patch:
    """New entries for all of one box: what was in it before is gone."""

    low: int
    prefix: int
    entries: Table


@dataclass(slots=True)
class _Group:
    """The patches that fall into one page (or into an empty box) of a level."""

    low: int
    prefix: int
    entries: Callable[[], Table]  # gives what the box holds after the patches
    change: int  # how many entries more than before that are
    pages: Table | None  # its pages, where they follow from its entries alone


def update(
    reader: PageReader,
    function: HashFunction,
    ref: TreeRef | None,
    sets: Table,
    deletes: Codes,
    ndim: int,
) -> TreeRef | None:
    """Return the tree with some chunks set and others deleted; None if nothing is left.

    Parameters
    ----------
    reader : PageReader
        Where pages are read and written.
    function : HashFunction
        Hash of the pages that are written.
    ref : TreeRef or None
        The tree as it is.
    sets : Table
        Chunks to set, as of `chunk_table`.
    deletes : array
        Ascending codes of chunks to delete; one that is in `sets` too is set.
    ndim : int
        Number of dimensions of the grid.
    """
    if ref is None:
        return build(reader, function, sets, ndim)
    if len(sets) + len(deletes) == 0:
        return ref
    return _Update(ChunkTree(reader, ref, ndim), function, sets, deletes).run()


class _Update:
    def __init__(
        self, tree: ChunkTree, function: HashFunction, sets: Table, deletes: Codes
    ) -> None:
        self.tree = tree
        self.function = function
        self.sets = sets
        self.deletes = deletes
        self.bits = tree.bits

    def run(self) -> TreeRef | None:
        groups = self._groups_of_chunks()
        level, reader = 0, self.tree.reader
        while True:
            patches = self._settle(level, groups)
            level += 1
            if len(patches) == 1 and patches[0].prefix == 0:  # all of the tree is in hand
                entries = patches[0].entries
                while len(entries) > 1:
                    entries = write_pages(reader, self.function, entries, level, self.bits)
                    level += 1
                return store_top(reader, entries) if len(entries) else None
            groups = self._groups_of_patches(level, patches)

    # -- which page a change falls into -----------------------------------------------------

    def _groups_of_chunks(self) -> list[_Group]:
        groups = []
        s = d = ready = 0
        remote = self.tree.reader.blocks.remote
        sets, deletes = self.sets.codes, self.deletes
        while s < len(sets) or d < len(deletes):
            first = min(
                int(codes[0]) for codes in (sets[s : s + 1], deletes[d : d + 1]) if len(codes)
            )
            if remote and first >= ready:
                rest = [codes for codes in (sets[s:], deletes[d:]) if len(codes)]
                ready = min(self.tree.fetch(codes, _AHEAD // len(rest)) for codes in rest)
            low, prefix, page = self._locate(first, 0)
            end = low + (1 << self.bits - prefix)
            rows, gone = slice(s, search(sets, end)), slice(d, search(deletes, end))
            before = 0 if page is None else len(page)
            groups.append(
                self._group(
                    0, low, prefix, partial(self._chunks, low, rows, gone), before, page is not None
                )
            )
            s, d = rows.stop, gone.stop
        return groups

    def _chunks(self, low: int, rows: slice, gone: slice) -> Table:
        """Return the chunks in the box at `low`, with those rows of the changes."""
        page = self._locate(low, 0)[2]
        sets, deletes = self.sets.take(rows), self.deletes[gone]
        if page is None:
            return sets
        return _edited(from_page(page, low, self.bits), sets, deletes)

    def _groups_of_patches(self, level: int, patches: list[_Patch]) -> list[_Group]:
        groups: list[_Group] = []
        row = 0
        while row < len(patches):
            low, prefix, page = self._locate(patches[row].low, level)
            if patches[row].prefix <= prefix:  # the patch is wider than any page it touches
                low, prefix, page = patches[row].low, patches[row].prefix, None
            end = low + (1 << self.bits - prefix)
            inside = []
            while row < len(patches) and patches[row].low < end:
                inside.append(patches[row])
                row += 1
            if page is not None:
                old = from_page(page, low, self.bits)
                new = _patched(old, inside, self.bits)
                groups.append(self._group(level, low, prefix, partial(_given, new), len(old), True))
            else:
                before = sum(len(old) for old, _, _ in self.tree.pages(level, low, prefix))
                new = concatenate(patch.entries for patch in inside)
                groups.append(self._group(level, low, prefix, partial(_given, new), before, False))
        return groups

    def _group(
        self,
        level: int,
        low: int,
        prefix: int,
        entries: Callable[[], Table],
        before: int,
        existed: bool,
    ) -> _Group:
        new = entries()
        pages = None
        if len(new) > MAX_ENTRIES or (existed and len(new) >= before):
            pages = self._write(level, prefix, new)
        return _Group(low, prefix, entries, len(new) - before, pages)

    def _locate(self, code: int, level: int) -> tuple[int, int, Page | None]:
        """Find the page of `level` whose box holds `code`, or the widest empty box around it."""
        page, low, prefix = self.tree.top, 0, 0
        if page.level < level:
            return 0, 0, None
        while page.level > level:
            row = self.tree.row_of(page, code - low)
            if row < 0:
                near = page.row_below(code - low)
                shared = max(
                    self.bits - (code ^ low + int(page.codes[other])).bit_length()
                    for other in (near, near + 1)
                    if 0 <= other < len(page)
                )
                room = self.bits - shared - 1
                return code >> room << room, shared + 1, None
            page, low, prefix = self.tree.child(page, low, row)
        return low, prefix, page

    # -- which box becomes which pages ------------------------------------------------------

    def _settle(self, level: int, groups: list[_Group]) -> list[_Patch]:
        """Write the pages of `level` for what the groups hold now."""
        lows = [group.low for group in groups]
        patches: list[_Patch] = []
        done = 0  # codes below are settled already
        for group in groups:
            if group.low < done:
                continue
            low, prefix, pages = group.low, group.prefix, group.pages
            if pages is None:
                low, prefix = self._widest(level, low, prefix, groups, lows)
                if prefix == group.prefix:
                    entries = group.entries()
                else:
                    entries = self._gather(level, low, prefix, groups, lows)
                pages = self._write(level, prefix, entries)
            done = low + (1 << self.bits - prefix)
            while patches and patches[-1].low >= low:  # swallowed by a box that begins before
                patches.pop()
            patches.append(_Patch(low, prefix, pages))
        return patches

    def _write(self, level: int, prefix: int, entries: Table) -> Table:
        return write_pages(self.tree.reader, self.function, entries, level, self.bits, prefix)

    def _widest(
        self, level: int, low: int, prefix: int, groups: list[_Group], lows: list[int]
    ) -> tuple[int, int]:
        """Return the widest box around one whose entries fit into one page."""
        while prefix:
            room = self.bits - prefix + 1
            wider = low >> room << room
            if self._count(level, wider, prefix - 1, groups, lows) > MAX_ENTRIES:
                break
            low, prefix = wider, prefix - 1
        return low, prefix

    def _count(
        self, level: int, low: int, prefix: int, groups: list[_Group], lows: list[int]
    ) -> int:
        """Count the entries in a box after the changes; exact up to one more than fit."""
        first, last = self._within(low, prefix, lows)
        change = sum(group.change for group in groups[first:last])
        limit = MAX_ENTRIES - change
        total = 0
        stack = [(self.tree.top, 0, 0)]
        high = low + (1 << self.bits - prefix)
        while stack and total <= limit:
            page, start, length = stack.pop()
            if page.level < level:
                continue
            if length >= prefix and page.level == level:
                total += len(page)
                continue
            if page.prefixes is None:
                continue
            for row in self.tree.rows_within(page, low - start, high - start):
                if level == 0 and int(page.prefixes[row]) >= prefix:
                    total += int(page.counts[row])
                elif total <= limit:
                    stack.append(self.tree.child(page, start, row))
        return total + change

    def _gather(
        self, level: int, low: int, prefix: int, groups: list[_Group], lows: list[int]
    ) -> Table:
        """Return the entries in a box after the changes."""
        first, last = self._within(low, prefix, lows)
        inside = groups[first:last]
        tables = [group.entries() for group in inside]
        boxes = [(group.low, group.low + (1 << self.bits - group.prefix)) for group in inside]
        starts = [begin for begin, _ in boxes]
        for page, start, _ in self.tree.pages(level, low, prefix):
            near = bisect_left(starts, start + 1) - 1
            if near < 0 or start >= boxes[near][1]:
                tables.append(from_page(page, start, self.bits))
        return concatenate(tables)

    def _within(self, low: int, prefix: int, lows: list[int]) -> tuple[int, int]:
        return bisect_left(lows, low), bisect_left(lows, low + (1 << self.bits - prefix))


def _edited(old: Table, sets: Table, deletes: Codes) -> Table:
    """Return sorted chunks with some set and some deleted."""
    rows = matches(old.codes, sets.codes)[0]
    if len(rows) == len(sets) and len(deletes) == 0:  # only other values: the order stays
        cids, sizes = old.cids.copy(), old.sizes.copy()
        cids[rows], sizes[rows] = sets.cids, sets.sizes
        return Table(old.codes, cids, sizes, old.counts, old.prefixes)
    kept = np.ones(len(old), bool)
    kept[rows] = False
    kept[matches(old.codes, deletes)[0]] = False
    return concatenate([old.take(kept), sets])


def _given(table: Table) -> Table:
    return table


def _patched(old: Table, patches: list[_Patch], bits: int) -> Table:
    keep = np.ones(len(old), bool)
    for patch in patches:
        keep[old.span(patch.low, patch.low + (1 << bits - patch.prefix))] = False
    return concatenate([old.take(keep), *(patch.entries for patch in patches)])
