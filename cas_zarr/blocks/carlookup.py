"""Finding blocks in the index of a CAR that is too far away, or too large, to be read whole.

The digests in a MultihashIndexSorted are sorted and evenly spread, so where one stands can be told
from its first bytes: a look-up reads one window of records, seldom two, and windows are kept for
a while. Nothing is believed here that is not checked when the block itself is read.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.carsource import ByteSource
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import DIGEST_SIZE, HASHES
from cas_zarr.codecs.carindex import MULTIHASH_INDEX_SORTED, IndexGroup, index_codec
from cas_zarr.errors import FormatError
from cas_zarr.parallel import map_ordered

__all__ = ["WindowedIndex"]

_RECORD: Final = DIGEST_SIZE + 8
_ROWS: Final = 4096  # of a window: 160 KiB
_KEPT: Final = 128  # windows: 20 MiB
_GUESSES: Final = 4  # that are interpolated before the rest is halved
_MAX_GROUPS: Final = 64
_FRAME: Final = 64  # bytes: all that stands before the records of the first hash function


class WindowedIndex:
    """The index of a CAR, read where it is looked at.

    Parameters
    ----------
    source : ByteSource
    start : int
        Where the index begins in the file; it lasts to the end.

    Raises
    ------
    FormatError
        If it is another index, or its framing does not fit the file.
    """

    def __init__(self, source: ByteSource, start: int) -> None:
        self._source = source
        self._windows: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._groups = {
            bytes([group.code, DIGEST_SIZE]): group
            for group in self._framing(start)
            if group.code in HASHES and group.digest_size == DIGEST_SIZE and group.count
        }
        self.count = sum(group.count for group in self._groups.values())

    def find(self, key: bytes) -> int | None:
        """Return the offset of the section of a multihash, or None."""
        group = self._groups.get(key[:2])
        if group is None:
            return None
        low, high = 0, group.count  # the digest stands among these rows, if at all
        least, most = 0, 1 << 64
        digest = key[2:]
        head = int.from_bytes(digest[:8], "big")
        for guess in range(128):
            if low >= high:
                return None
            if guess < _GUESSES and most > least:
                row = low + (high - low) * (head - least) // (most - least)
                row = min(max(row, low), high - 1)
            else:
                row = (low + high) // 2
            number = row // _ROWS
            window = self._window(key[:2], group, number)
            first, last = window[:DIGEST_SIZE], window[-_RECORD:][:DIGEST_SIZE]
            if digest < first:
                high, most = min(high, number * _ROWS), int.from_bytes(first[:8], "big")
            elif digest > last:
                low = max(low, number * _ROWS + len(window) // _RECORD)
                least = int.from_bytes(last[:8], "big")
            else:
                return _find_in(window, digest)
            if not least <= head <= most:  # the order of the records is wrong
                return None
        return None

    def find_many(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the offsets of many multihashes, (n, 34) uint8; -1 for those that are not here."""
        found = np.full(len(keys), -1, np.int64)
        rows = [(key.tobytes(), row) for row, key in enumerate(keys)]
        rows.sort()  # neighbours share a window
        for start in range(0, len(rows), _KEPT // 2):
            part = rows[start : start + _KEPT // 2]
            self._read_ahead([key for key, _ in part])
            for key, row in part:
                at = self.find(key)
                found[row] = -1 if at is None else at
        return found

    def _read_ahead(self, keys: Sequence[bytes]) -> None:
        """Read the windows in which some multihashes should stand, all at once."""
        likely: dict[tuple[bytes, int], IndexGroup] = {}
        for key in keys:
            group = self._groups.get(key[:2])
            if group is not None:
                row = group.count * int.from_bytes(key[2:10], "big") >> 64
                likely[key[:2], row // _ROWS] = group
        wanted = [one for one in likely if one not in self._windows]
        spread = map_waiting if self._source.remote else map_ordered
        spread(lambda one: self._window(one[0], likely[one], one[1]), wanted)

    # ---------------------------------------------------------------------------------------

    def _framing(self, start: int) -> Iterator[IndexGroup]:
        source, size = self._source, self._source.size
        frame, begin, at = source.read_at(start, _FRAME), start, start

        def take(width: int) -> bytes:
            nonlocal frame, begin, at
            if at + width > begin + len(frame):
                frame, begin = source.read_at(at, _FRAME), at
            at += width
            return frame[at - width - begin : at - begin]

        codec, width = index_codec(frame)
        at += width
        if codec != MULTIHASH_INDEX_SORTED:
            raise FormatError(f"{source.name} has an index of codec 0x{codec:x}")
        codes = int.from_bytes(take(4), "little")
        groups = 0
        if codes > _MAX_GROUPS:
            raise FormatError(f"the index of {source.name} claims {codes} hash functions")
        for _ in range(codes):
            head = take(12)
            code, widths = (int.from_bytes(head[i:j], "little") for i, j in pairwise((0, 8, 12)))
            for _ in range(widths):
                head = take(12)
                width, length = (
                    int.from_bytes(head[i:j], "little") for i, j in pairwise((0, 4, 12))
                )
                groups += 1
                if width < 8 or length % width or at + length > size or groups > _MAX_GROUPS:
                    raise FormatError(
                        f"the index of {source.name} is cut off or damaged: {length} bytes of "
                        f"records of {width} bytes stand at {at} of {size}"
                    )
                yield IndexGroup(code, width - 8, at, length // width)
                at += length
        if at != size:
            raise FormatError(f"the index of {source.name} ends at {at} of {size} bytes")

    def _window(self, prefix: bytes, group: IndexGroup, number: int) -> bytes:
        place = prefix, number
        with self._lock:
            window = self._windows.get(place)
            if window is not None:
                self._windows.move_to_end(place)
                return window
        start = number * _ROWS
        size = (min(start + _ROWS, group.count) - start) * _RECORD
        window = self._source.read_at(group.start + start * _RECORD, size)
        if len(window) != size:
            raise FormatError(f"the index of {self._source.name} is cut off")
        with self._lock:
            self._windows[place] = window
            while len(self._windows) > _KEPT:
                self._windows.popitem(last=False)
        return window


def _find_in(window: bytes, digest: bytes) -> int | None:
    def digest_at(i: int) -> bytes:
        return window[i * _RECORD : i * _RECORD + DIGEST_SIZE]

    count = len(window) // _RECORD
    i = bisect_left(range(count), digest, key=digest_at)
    if i == count or digest_at(i) != digest:
        return None
    at = i * _RECORD + DIGEST_SIZE
    offset = int.from_bytes(window[at : at + 8], "little")
    return offset if offset < 1 << 63 else None  # no file is so large
