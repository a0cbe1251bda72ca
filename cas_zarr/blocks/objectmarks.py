"""Marks for the blocks in a bucket.

A block is known by the first eight bytes of its digest: 14 bytes of memory each, so that 10^8 fit
into some gigabytes. Two that are equal in these are marked together, and one more is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.collectable import Marks, Swept
from cas_zarr.blocks.condemned import Condemned, encode_condemned
from cas_zarr.blocks.index import multihashes
from cas_zarr.blocks.lease import Lease
from cas_zarr.blocks.objectnames import PLACES, folders_of, keys_at, name_in
from cas_zarr.blocks.objects import Objects
from cas_zarr.blocks.waiting import map_waiting

__all__ = ["ObjectMarks"]

_BATCH: Final = 1000  # names that are deleted by one request
_AT_ONCE: Final = 8  # requests
_PAGE: Final = 1 << 14
_FEW: Final = 1 << 15  # objects up to which a place is listed by one request after the other
_MOST_CONDEMNED: Final = 1 << 22  # by one list: each writer reads its 140 MB
_SURE: Final = 5.0  # seconds for which a lease that was renewed is taken for granted


class ObjectMarks(Marks):
    """Marks for all blocks that a bucket holds now.

    Parameters
    ----------
    objects : Objects
    lease : Lease, optional
        Of who collects: renewed as the work goes on.
    """

    def __init__(self, objects: Objects, lease: Lease | None) -> None:
        self._objects = objects
        self._lease = lease
        begins, sizes, places = [], [], []
        for place, _ in enumerate(PLACES):
            for keys, lengths in self._listed(place):
                begins.append(_begins(keys))
                sizes.append(lengths)
                places.append(np.full(len(keys), place, np.uint8))
        joined = np.concatenate(begins) if begins else np.empty(0, np.uint64)
        order = np.argsort(joined, kind="stable")
        self._begins = joined[order]
        self._sizes = (np.concatenate(sizes) if sizes else np.empty(0, np.uint32))[order]
        self._places = (np.concatenate(places) if places else np.empty(0, np.uint8))[order]
        self._marks = np.zeros(len(order), bool)
        self._here = np.ones(len(order), bool)
        self.blocks = len(order)
        self.size = int(self._sizes.sum(dtype=np.int64))

    # docstrings inherited

    def mark(self, keys: NDArray[np.uint8]) -> None:
        self._renew_lease()
        begins = _begins(keys)
        rows = np.searchsorted(self._begins, begins)
        while len(rows):  # the same in both places, or alike by chance
            within = rows < len(self._begins)
            rows, begins = rows[within], begins[within]
            same = self._begins[rows] == begins
            rows, begins = rows[same], begins[same]
            self._marks[rows] = True
            rows = rows + 1

    def used(self) -> tuple[int, int]:
        used = self._marks & self._here
        return int(used.sum()), int(self._sizes[used].sum(dtype=np.int64))

    def condemn(self, max_unused: float) -> bytes | None:  # noqa: ARG002
        """Return a list of blocks of one place; what may stay unused has no meaning here."""
        unused = ~self._marks & self._here
        counts = [int((unused & (self._places == place)).sum()) for place, _ in enumerate(PLACES)]
        place = int(np.argmax(counts))
        if not counts[place]:
            return None
        found: list[NDArray[np.uint8]] = []
        count = size = 0
        for keys, sizes in self._listed(place):
            rows = self._rows(keys, place)
            goes = (rows >= 0) & unused[rows]
            found.append(keys[goes])
            size += int(sizes[goes].sum(dtype=np.int64))
            count += len(found[-1])
            if count >= _MOST_CONDEMNED:
                break
        return encode_condemned(found, [PLACES[place]], blocks=count, size=size) if count else None

    def sweep(self, condemned: Condemned, *, dry_run: bool = False) -> Swept:
        done = Swept()
        for place, folder in enumerate(PLACES):
            if folder not in condemned.places:
                continue
            batches = self._condemned(condemned, place)
            while some := list(islice(batches, _AT_ONCE)):
                if not dry_run:
                    self._renew_lease(within=_SURE)
                    delete = partial(self._delete, folder)
                    map_waiting(delete, [keys for keys, _ in some], parallel=_AT_ONCE)
                for keys, rows in some:
                    size = int(self._sizes[rows].sum(dtype=np.int64))
                    done += Swept(blocks=len(keys), size=size, freed=size)
                    if not dry_run:
                        self._here[rows] = False
                        self.blocks -= len(keys)
                        self.size -= size
        return done

    # ---------------------------------------------------------------------------------------

    def _renew_lease(self, *, within: float = 60.0) -> None:
        if self._lease is not None:
            self._lease.renew(within=within)

    def _delete(self, place: str, keys: NDArray[np.uint8]) -> None:
        self._objects.delete([name_in(place, bytes(key)) for key in keys])

    def _condemned(
        self, condemned: Condemned, place: int
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.intp]]]:
        """Yield what goes, in batches, with its rows."""
        for code, digests, _ in condemned.index.records():
            for start in range(0, len(digests), _BATCH):
                keys = multihashes(code, digests[start : start + _BATCH])
                rows = self._rows(keys, place)
                goes = (rows >= 0) & ~self._marks[rows] & self._here[rows]
                if goes.any():
                    yield keys[goes], rows[goes]

    def _rows(self, keys: NDArray[np.uint8], place: int) -> NDArray[np.intp]:
        """Return the row of each of many blocks in one of the places; -1 if it was not there."""
        begins = _begins(keys)
        found = np.full(len(keys), -1, np.intp)
        rows = np.searchsorted(self._begins, begins)
        left = np.arange(len(keys))
        while len(left):
            within = rows < len(self._begins)
            rows, left = rows[within], left[within]
            same = self._begins[rows] == begins[left]
            rows, left = rows[same], left[same]
            here = self._places[rows] == place
            found[left[here]] = rows[here]
            rows, left = rows[~here] + 1, left[~here]
        return found

    def _listed(self, place: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint32]]]:
        """Yield multihashes and sizes of what a place holds."""
        listing = self._objects.list(PLACES[place])
        first = list(islice(listing, _FEW))
        if len(first) < _FEW:
            parts: Iterator[list[tuple[str, int]]] = iter([first])
        else:  # folders side by side, instead of one page after the other
            parts = self._side_by_side(folders_of(PLACES[place]))
        for part in parts:
            self._renew_lease()
            keys, found = keys_at([name for name, _ in part])
            sizes = np.array([size for _, size in part], np.uint64)[found]
            yield keys, np.minimum(sizes, 0xFFFFFFFF).astype(np.uint32)

    def _side_by_side(self, folders: list[str]) -> Iterator[list[tuple[str, int]]]:
        for start in range(0, len(folders), 32):
            yield from map_waiting(
                lambda folder: list(self._objects.list(folder)), folders[start : start + 32]
            )


def _begins(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the first eight bytes of each digest of multihashes as a number."""
    return np.ascontiguousarray(keys[:, 2:10]).view(">u8").ravel().astype(np.uint64)
