"""Reading ahead: chunks that a reader far from its data will ask for next are fetched together.

Zarr asks for the chunks of a selection one by one, ten at a time, which leaves a network idle. Once
some have come in order, the next ones are fetched in the background, twice as many each time, and
handed out from memory. At most about as much is fetched in vain as was asked for.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from cas_zarr.blocks.tiered import TieredBlocks, tier_of
from cas_zarr.blocks.waiting import map_waiting, waiting_pool
from cas_zarr.cid import CidBytes
from cas_zarr.errors import CasZarrError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.describe import describe_node
from cas_zarr.repository.prefetching import MOST
from cas_zarr.repository.runs import Coordinates, Run
from cas_zarr.tree.chunktree import ChunkTree
from cas_zarr.tree.keys import chunk_key, form_of, parse_chunk, split_key
from cas_zarr.tree.morton import code_of
from cas_zarr.tree.values import is_file

__all__ = ["ReadAhead", "read_ahead"]

Bytes: TypeAlias = "bytes | memoryview"
Promise: TypeAlias = "Future[Bytes | None]"

_AFTER: Final = 8  # chunks that come in order before any is guessed
_MOST: Final = 1024  # chunks that are guessed at once
_HELD: Final = 64 << 20  # bytes that wait to be asked for
_RUNS: Final = 8  # of one array, as when threads read side by side
_ARRAYS: Final = 64
_BATCH: Final = 64  # blocks that are handed out together
_PATIENCE: Final = 0.1  # seconds that a reader may be busy with what it has
_MARKS: Final = "0123456789./"
_DIGITS: Final = frozenset("0123456789")


@dataclass(slots=True)
class _Reading:
    """A run, and how far ahead of it is fetched."""

    run: Run
    window: int = 0
    planning: bool = False


@dataclass(slots=True)
class _Array:
    """Where the chunks of one array lie.

    Attributes
    ----------
    base : str
        What stands before the name of a chunk in its key.
    grid : tuple of int
        Chunks along each axis.
    most : int
        Chunks that may be fetched at once.
    """

    base: str
    form: str
    tree: ChunkTree
    grid: Coordinates
    most: int

    def has(self, key: str) -> bool:
        """Tell whether a key is that of one of its chunks."""
        chunk = parse_chunk(key[len(self.base) :]) if key.startswith(self.base) else None
        return chunk is not None and form_of(chunk[0], len(chunk[1])) == self.form

    def plan(self, run: Run, number: int) -> dict[str, Coordinates]:
        """Return keys and coordinates of the chunks of a run that should come next.

        Numbers at the end of the array's path are the first coordinates of the run.
        """
        more = len(run.first) - len(self.grid)
        path = tuple(at + 1 for at in run.first[:more])
        places = [place[more:] for place in run.plan(number, path + self.grid)]
        return {self.base + chunk_key(self.form, place): place for place in places}


def read_ahead(mapping: CASMapping) -> ReadAhead | None:
    """Return what fetches ahead for a mapping; None where nothing is far, or it may change."""
    tier = tier_of(mapping.blocks) if mapping.read_only else None
    return None if tier is None else ReadAhead(mapping, tier)


class ReadAhead:
    """Fetches ahead for the readers of one version, and holds what they did not ask for yet.

    Parameters
    ----------
    mapping : CASMapping
        The version; it does not change.
    tier : TieredBlocks
        Its blocks.
    """

    def __init__(self, mapping: CASMapping, tier: TieredBlocks) -> None:
        self._mapping = mapping
        self._tier = tier
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._readings: OrderedDict[str, list[_Reading]] = OrderedDict()
        self._arrays: dict[str, _Array] = {}
        self._coming: dict[str, list[Promise]] = {}
        self._values: OrderedDict[str, Bytes] = OrderedDict()
        self._held = 0

    def take(self, key: str) -> Bytes | Promise | None:
        """Note that a value is asked for; return it if it is here, or a promise of it.

        None, from either, does not say that there is no such value: read it as any other.
        """
        if key[-1:] not in _DIGITS:
            return None
        if self._pid != os.getpid():  # what the parent's threads fetch will not come
            self._start()
        head = key.rstrip(_MARKS)
        try:
            place = tuple(map(int, key[len(head) :].strip("./").replace(".", "/").split("/")))
        except ValueError:
            return None
        with self._lock:
            reading = self._note(head, place)
            found = self._take(key)
        if reading is not None:
            with suppress(RuntimeError):  # the interpreter is exiting and takes no new work
                waiting_pool("ahead").submit(self._go_ahead, reading, head, key)
        return found

    def _take(self, key: str) -> Bytes | Promise | None:
        value = self._values.pop(key, None)
        if value is not None:
            self._held -= len(value)
            return value
        waiting = self._coming.get(key)
        if waiting is None:
            return None
        promise: Promise = Future()
        waiting.append(promise)
        return promise

    def _note(self, head: str, place: Coordinates) -> _Reading | None:
        """Note coordinates; return the reading that goes on with them, if it is time to fetch."""
        readings = self._readings.get(head)
        if readings is None:
            readings = self._readings[head] = []
            if len(self._readings) > _ARRAYS:
                self._arrays.pop(self._readings.popitem(last=False)[0], None)
        for row, reading in enumerate(readings):
            run = reading.run
            if not run.goes_on(place):
                continue
            if row:
                readings.insert(0, readings.pop(row))
            due = run.count >= _AFTER and 4 * run.planned <= reading.window
            if not due or run.ended or reading.planning:
                return None
            reading.planning = True
            reading.window = min(max(2 * reading.window, run.count), _MOST)
            return reading
        readings.insert(0, _Reading(Run(place)))
        del readings[_RUNS:]
        return None

    # -- in the background --------------------------------------------------------------------

    def _go_ahead(self, reading: _Reading, head: str, key: str) -> None:
        """Fetch what should come next."""
        places: dict[str, Coordinates] = {}
        try:
            array = self._arrays.get(head)
            if array is None or not array.has(key):
                array = self._array(key)
                if array is None:  # and no more is tried for this run
                    return
                self._arrays[head] = array
            with self._lock:
                number = min(reading.window, array.most)
                places = array.plan(reading.run, number)
                reading.window = number
                reading.planning = False
                places = {name: each for name, each in places.items() if name not in self._values}
                for name in places:
                    self._coming.setdefault(name, [])
            self._fetch(array, places, reading.run)
        except CasZarrError:
            pass  # who asks for it is told why it does not come
        finally:
            for name in places:
                self._deliver(name, None)

    def _array(self, key: str) -> _Array | None:
        """Find the array of a chunk, if it has a regular grid and no large chunks."""
        view = self._mapping.view
        owner = view.owner(split_key(key)[0])
        node = None if owner is None else view.node(owner)
        if owner is None or node is None:
            return None
        base = f"{owner}/" if owner else ""
        chunk = parse_chunk(key[len(base) :])
        info = describe_node(view.reader, node, owner)
        if chunk is None or info.shape is None or info.chunk_shape is None:
            return None
        form = form_of(chunk[0], len(chunk[1]))
        ref = node.trees.get(form)
        if ref is None or len(info.shape) != len(chunk[1]):
            return None
        grid = tuple(
            -(-length // side) if side else 0
            for length, side in zip(info.shape, info.chunk_shape, strict=True)
        )
        most = _HELD // 2 // max(1, ref.size // ref.chunks)
        if most < _AFTER:  # then what zarr asks for at once is enough to be busy with
            return None
        return _Array(base, form, ChunkTree(view.reader, ref, len(grid)), grid, most)

    def _fetch(self, array: _Array, places: Mapping[str, Coordinates], run: Run) -> None:
        came, when = run.count, time.monotonic()
        codes = {name: code_of(place) for name, place in places.items()}
        for cid in _whole_pages(array.tree, sorted(codes.values())):
            if not self._tier.local.has(cid):
                self._tier.fetch_below([cid], lambda: False)
        names = list(codes)
        for start in range(0, len(names), _BATCH):
            if run.count != came:
                came, when = run.count, time.monotonic()
            idle = time.monotonic() - when > _PATIENCE
            if start and idle and not any(map(self._coming.get, names)):
                break  # the reader has what it wanted
            batch = names[start : start + _BATCH]
            found = [(name, array.tree.find(codes[name])) for name in batch]
            for name, value in found:
                if value is None:
                    self._deliver(name, None)
            values = [(name, value) for name, value in found if value is not None]
            blocks = [(name, value) for name, value in values if not is_file(value.cid)]
            files = [name for name, value in values if is_file(value.cid)]
            got = self._tier.get_many([value.cid for _, value in blocks])
            for (name, value), data in zip(blocks, got, strict=True):
                self._deliver(name, data if len(data) == value.size else None)
            whole = map_waiting(self._mapping.get_value, files)
            for name, long in zip(files, whole, strict=True):
                self._deliver(name, long)

    def _deliver(self, name: str, data: Bytes | None) -> None:
        """Hand a value to who waits for it, or keep it until it is asked for."""
        with self._lock:
            promises = self._coming.pop(name, ())
            if data is not None and not promises:
                self._values[name] = data
                self._held += len(data)
                while self._held > _HELD:
                    self._held -= len(self._values.popitem(last=False)[1])
        for promise in promises:
            with suppress(InvalidStateError):  # who waited was cancelled
                promise.set_result(data)


def _whole_pages(tree: ChunkTree, codes: Sequence[int]) -> Iterator[CidBytes]:
    """Yield the leaf pages most of whose chunks are among these codes, which ascend."""
    if tree.top.level == 0:
        return
    row = 0
    while row < len(codes):
        found = tree.descend(codes[row], 1)
        stop = row + 1
        if found is not None:
            page, low, _ = found
            child = tree.row_of(page, codes[row] - low)
            if child >= 0 and page.prefixes is not None:
                end = low + int(page.codes[child]) + (1 << tree.bits - int(page.prefixes[child]))
                stop = bisect_left(codes, end, row)
                if stop - row >= MOST * int(page.counts[child]):
                    yield page.cid(child)
        row = stop
