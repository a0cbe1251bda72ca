"""Blocks in one place, and behind it other places that have what is not there yet.

What was fetched from a place behind is verified, kept in the local one and so fetched once. All
changes are made to the local one alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeAlias, TypeVar

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, VERIFIED, BlockStore, checked
from cas_zarr.blocks.cache import CacheBlocks, RecentBlocks
from cas_zarr.blocks.flights import Flights
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import RAW, BytesLike, CidBytes, CidLike, codec_of, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    StorageError,
)

__all__ = ["Behind", "TieredBlocks", "tier_of"]

Behind: TypeAlias = "BlockStore | Callable[[], BlockStore]"
"""A place behind the local one, or a function that opens it when it is needed first."""

_T = TypeVar("_T")

_FLUSH_AT = 64 << 20  # bytes that were fetched and are not durable yet
_SPAN = 16 << 20  # bytes of a file that are asked for by one request
_WITHOUT = 60.0  # seconds for which no range is asked for after a request for one was in vain

_asking = threading.local()


class TieredBlocks(BlockStore):
    """Blocks in a local place, and in others that are asked for what it lacks.

    Parameters
    ----------
    local : BlockStore
        Is read first, and holds what is put and what was fetched. Where it is read-only, what was
        fetched is not kept.
    behind : sequence of BlockStore or callable
        Are asked in their order. One that cannot be reached is asked again the next time.
    remote : bool
        Whether one that is not open yet is behind a network.

    Attributes
    ----------
    local : BlockStore
        What is really here: `list`, `delete` and `flush` speak of it alone.
    """

    def __init__(
        self, local: BlockStore, behind: Sequence[Behind], *, remote: bool = False
    ) -> None:
        self.local = local
        self.read_only = local.read_only
        self.remote = (
            remote
            or local.remote
            or any(isinstance(place, BlockStore) and place.remote for place in behind)
        )
        self._behind = tuple(behind)
        self._opened: dict[int, BlockStore] = {}
        self._lock = threading.Lock()
        self._unflushed = 0
        self._flights: Flights[bytes | None] = Flights()
        self._range_flights: Flights[None] = Flights()
        self._ranges_from = 0.0  # when ranges may be asked for, as the monotonic clock has it
        in_memory = isinstance(local, (MemoryBlocks, RecentBlocks))  # all of one location
        self._identity = id(local) if in_memory else local.location

    @property
    def location(self) -> str:
        return self.local.location

    def __repr__(self) -> str:
        return f"TieredBlocks({self.local!r}, {len(self._behind)} behind)"

    # -- reading ----------------------------------------------------------------------------

    def _read(self, cid: CidBytes) -> BytesLike | None:
        try:
            data = self.local._read(cid)
        except CorruptBlockError:
            fetched = self._fetch(cid)
            if fetched is None:
                raise
            return fetched
        return self._fetch(cid) if data is None else data

    def _read_into(self, cid: CidBytes, out: memoryview) -> int:
        damaged: CorruptBlockError | None = None
        try:
            filled = self.local._read_into(cid, out)
        except CorruptBlockError as error:
            filled, damaged = 0, error
        if filled:
            return filled
        data = self._fetch(cid)
        if data is None:
            if damaged is not None:
                raise damaged
            return 0
        if len(data) != len(out):
            raise self._wrong_length(cid, len(data), len(out))
        out[:] = data
        return VERIFIED

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        data = self.local._read_other_copy(cid)
        return self._fetch(cid) if data is None else data

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        """Return the bytes of many blocks, in order, each verified.

        What is not here is fetched in one go from each place behind that has it.
        """
        keys = [checked(cid) for cid in cids]
        held = self.local.has_many(keys)
        missing = [key for key, here in zip(keys, held, strict=True) if not here]
        fetched = self._fetch_many(list(dict.fromkeys(missing))) if missing else {}
        here_keys = [key for key in keys if key not in fetched]
        try:
            here = iter(self.local.get_many(here_keys))
        except (BlockNotFoundError, CorruptBlockError):
            here = (self.get(key) for key in here_keys)
        return [fetched[key] if key in fetched else next(here) for key in keys]

    def get_held(self, cids: Sequence[CidLike]) -> dict[CidBytes, bytes]:
        """Return those of many blocks that are held here or behind, verified."""
        keys = list(dict.fromkeys(checked(cid) for cid in cids))
        out = self.local.get_held(keys)
        missing = [key for key in keys if key not in out]
        if missing:
            out.update(self._fetch_many(missing, whole=False))
        return out

    def _fetch_many(
        self, missing: Sequence[CidBytes], *, whole: bool = True
    ) -> dict[CidBytes, bytes]:
        """Return those of some blocks that places behind have, each asked for at most once.

        With `whole`, where a place that cannot be asked leaves some missing, its error is raised.
        """
        fetched: dict[CidBytes, bytes] = {}

        def keep(found: dict[CidBytes, bytes]) -> None:
            fetched.update(found)
            self._keep(found.items())

        def fetch(place: BlockStore) -> bool | None:
            wanted = [key for key in missing if key not in fetched]
            if place.remote:  # what came stays, also where another does not come
                map_waiting(lambda key: keep(place.get_held([key])), wanted)
            else:
                keep(place.get_held(wanted))
            return len(fetched) == len(missing) or None

        try:
            self._ask(fetch, missing[0])
        except BlockNotFoundError:
            if whole:
                raise
        return fetched

    def _has(self, cid: CidBytes) -> bool:
        return self.local.has(cid) or bool(self._ask(lambda place: place.has(cid) or None, cid))

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether it is held here or behind."""
        keys = [checked(cid) for cid in cids]
        flags = list(self.local.has_many(keys))

        def look(place: BlockStore) -> bool | None:
            rows = [row for row, held in enumerate(flags) if not held]
            for row, held in zip(rows, place.has_many([keys[row] for row in rows]), strict=True):
                flags[row] = held
            return all(flags) or None

        if not all(flags):
            self._ask(look, keys[flags.index(False)])
        return flags

    def _size(self, cid: CidBytes) -> int | None:
        with suppress(CorruptBlockError):
            size = self.local._size(cid)
            if size is not None:
                return size
        return self._ask(lambda place: place.size(cid), cid)

    def list(self) -> Iterator[CidBytes]:
        """Yield the CID of every block that is held here."""
        return self.local.list()

    # -- writing ----------------------------------------------------------------------------

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        self.local.put(cid, data)

    def _delete(self, cid: CidBytes) -> None:
        self.local.delete(cid)

    def flush(self) -> None:
        """Make every block that was put or fetched durable."""
        self._unflushed = 0
        self.local.flush()

    def close(self) -> None:
        """Keep what was fetched, and release files and memory of all places."""
        with self._lock:
            opened, self._opened = self._opened, {}
        given = (place for place in self._behind if isinstance(place, BlockStore))
        with ExitStack() as stack:
            for place in {id(place): place for place in (*given, *opened.values())}.values():
                stack.callback(place.close)
            stack.callback(self.local.close)
            if self._unflushed:
                with suppress(StorageError):  # it can be fetched again
                    self.flush()

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        with self._lock:
            places = [place.location for place in self._opened.values()]
        if not places or not isinstance(self.local, (CacheBlocks, RecentBlocks)):
            places.insert(0, self.location)
        return BlockNotFoundError(
            f"block {format_cid(cid)} is not in {', and not in '.join(places)}; add a place that "
            "has it, or fetch it from there"
        )

    def _corrupt(self, cid: CidBytes) -> CorruptBlockError:
        return self.local._corrupt(cid)

    # -- the places behind ------------------------------------------------------------------

    def _fetch(self, cid: CidBytes) -> bytes | None:
        """Return a block from behind, verified, and keep it; None if no place has it.

        Threads that ask for one block at once wait for the first of them.
        """
        if not self.remote:
            return self._fetch_alone(cid)
        # Since it was looked for here, another thread may have been quicker.
        return self._flights.do(
            cid, lambda: self.local.get_held([cid]).get(cid) or self._fetch_alone(cid)
        )

    def _fetch_alone(self, cid: CidBytes) -> bytes | None:
        data = self._ask(lambda place: place.get(cid), cid)
        if data is not None:
            self._keep([(cid, data)])
        return data

    def fetch_below(self, cids: Sequence[CidBytes], enough: Callable[[], bool]) -> int:
        """Fetch blocks with all that they link, by one request each, from a place that can do it.

        What does not come that way is left for `get_many`.

        Parameters
        ----------
        cids : sequence of CidBytes
        enough : callable
            Asked between blocks; once it says so, nothing more is fetched.

        Returns
        -------
        int
            How many blocks came.
        """
        return sum(map_waiting(partial(self._take_car, enough), cids))

    def _take_car(self, enough: Callable[[], bool], cid: CidBytes) -> int:
        count = 0
        with suppress(CasZarrError):
            for one in self.fetch_car(cid) or ():
                self._keep([one])
                count += 1
                if enough():
                    break
        return count

    def fetch_ranges(
        self, cid: CidBytes, ranges: Sequence[tuple[int, int]], *, above: CidBytes | None = None
    ) -> bool:
        """Fetch ranges of a file with the nodes above them, by a request for each 16 MiB.

        What does not come that way is left for `get`: all of it where the first place behind gives
        no CARs, or what it gives would not be kept here.

        Parameters
        ----------
        cid : CidBytes
            The file.
        ranges : sequence of (int, int)
            The bytes, from and up to.
        above : CidBytes, optional
            A node above small ranges that is lacking. Of threads that lack one at once the first
            asks, since its answer has the node, and the others wait for that.

        Returns
        -------
        bool
            Whether this thread asked, or need not; else what is lacking may be less now.
        """
        asked: list[bool] = []
        room = getattr(self.local, "limit", None)
        total = sum(stop - start for start, stop in ranges)
        if self.read_only or (room is not None and 2 * total > room):
            return True
        with suppress(CasZarrError):
            if not hasattr(self._open(0), "fetch_car"):  # a node is nearer than a gateway
                return True
            spans = [
                (at, min(at + _SPAN, stop))
                for start, stop in ranges
                for at in range(start, stop, _SPAN)
            ]
            shared = above if total <= MAX_BLOCK_SIZE else None
            asked = map_waiting(lambda part: self._take_range(cid, part, shared), spans)
        return any(asked)

    def _take_range(self, cid: CidBytes, part: tuple[int, int], above: CidBytes | None) -> bool:
        asked = False

        def take() -> None:
            nonlocal asked
            asked = True
            left = part[1] - part[0] + 2 * MAX_BLOCK_SIZE  # leaves may begin and end outside
            came = False
            with suppress(CasZarrError):
                for one in self.fetch_car(cid, scope="entity", part=part) or ():
                    self._keep([one])
                    came = True
                    left -= len(one[1]) if codec_of(one[0]) == RAW else 0
                    if left < 0:  # it sends the whole file, whatever was asked for
                        break
            if left < 0 or not came:
                self._ranges_from = time.monotonic() + _WITHOUT

        if time.monotonic() < self._ranges_from:
            return True
        self._range_flights.do((cid, part) if above is None else above, take)
        return asked

    def fetch_car(
        self, cid: CidBytes, *, scope: str = "all", part: tuple[int, int] | None = None
    ) -> Iterator[tuple[CidBytes, bytes]] | None:
        """Return what one request to a place behind brings; None where no place gives CARs.

        See `cas_zarr.blocks.gateway.GatewayBlocks.fetch_car`.
        """

        def begin(place: BlockStore) -> Iterator[tuple[CidBytes, bytes]] | None:
            fetch_car = getattr(place, "fetch_car", None)
            return None if fetch_car is None else fetch_car(cid, scope=scope, part=part)

        with suppress(CasZarrError):
            return self._ask(begin, cid)
        return None

    def _keep(self, blocks: Iterable[tuple[CidBytes, bytes]]) -> None:
        if self.read_only:
            return
        # The disk may be full: what was read is right all the same.
        with suppress(StorageError):
            for cid, data in blocks:
                self.local.put(cid, data)
                self._unflushed += len(data)
            if self._unflushed >= _FLUSH_AT:
                self.flush()

    def _ask(self, question: Callable[[BlockStore], _T | None], cid: CidBytes) -> _T | None:
        """Return the first answer of a place behind that is one; None where none has an answer.

        Raises
        ------
        BlockNotFoundError
            If a place that might have had it could not be asked.
        CorruptBlockError
            If all that was found is damaged.
        """
        active: set[str | int] = _asking.__dict__.setdefault("active", set())
        if self._identity in active:  # two places that lie behind each other
            return None
        active.add(self._identity)
        damaged: CorruptBlockError | None = None
        silent: list[str] = []
        try:
            for row in range(len(self._behind)):
                try:
                    answer = question(self._open(row))
                except BlockNotFoundError:
                    continue
                except CorruptBlockError as error:
                    damaged = error
                except CasZarrError as error:
                    silent.append(str(error))
                else:
                    if answer is not None:
                        return answer
        finally:
            active.discard(self._identity)
        if damaged is not None:
            raise damaged
        if silent:
            raise BlockNotFoundError(
                f"block {format_cid(cid)} is not in {self.location}, and the place behind it that "
                f"should have it cannot be asked: {'; '.join(silent)}; make that place reachable "
                "again, or fetch the block from another one"
            )
        return None

    def _open(self, row: int) -> BlockStore:
        with self._lock:
            place = self._opened.get(row)
            if place is None:
                behind = self._behind[row]
                place = behind if isinstance(behind, BlockStore) else behind()
                self._opened[row] = place
            return place


def tier_of(blocks: BlockStore) -> TieredBlocks | None:
    """Return the tier that keeps what is fetched, or None where nothing is far away."""
    tier = getattr(blocks, "tier", blocks)
    return tier if isinstance(tier, TieredBlocks) and tier.remote else None
