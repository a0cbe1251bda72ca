"""Finding a block among the packs of a repository.

A pack's sorted index is searched where it lies, mapped from the file. Two structures are made once
enough blocks have been asked for to pay for them:

- for each index a fan-out: where the digests with the same leading bits begin, so that a search
  compares some four records;
- for all of them one table from the leading bits of a digest to the pack that has such digests,
  so that a block nobody has (each block of a first write) costs one look, whatever the number of
  packs.

They cost about two and eight to sixteen bytes a block. Nothing here has to be right for safety: a
block is hashed after it was read.
"""

from __future__ import annotations

import mmap
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import DIGEST_SIZE, HASHES
from cas_zarr.codecs.carindex import Digests, IndexGroup, Offsets, group_arrays, index_groups

__all__ = ["KEY_SIZE", "Directory", "Heads", "Holder", "PackIndex", "SearchIndex", "multihashes"]

KEY_SIZE = DIGEST_SIZE + 2
"""Bytes of a multihash of the hash functions known here: code, length, digest."""

Heads: TypeAlias = "dict[bytes, NDArray[np.unsignedinteger]]"
"""The first eight bytes of the digests of an index, by the multihash prefix of their group."""

_RECORD = DIGEST_SIZE + 8
_UNSORTED_SEARCH = 64  # an index of so many records is searched from end to end
_SEVERAL = 0xFFFF
_MAX_TABLE_BITS = 26
_SPARSENESS = 4  # places in the table for each digest, at least
_PROBE_COST = 250  # one search without fan-out costs as much as entering so many records
_LEAST_WORTH = 1 << 14

_leading = Struct(">I").unpack_from
_offset = Struct("<Q").unpack_from


def multihashes(codes: NDArray[np.uint8] | int, digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the multihashes, (n, 34), of digests of 32 bytes and their codes."""
    keys = np.empty((len(digests), KEY_SIZE), np.uint8)
    keys[:, 0] = codes
    keys[:, 1] = DIGEST_SIZE
    keys[:, 2:] = digests
    return keys


class PackIndex:
    """The index of one pack: multihash -> offset of the section in the payload.

    Parameters
    ----------
    buffer : bytes or mmap
        Holds a MultihashIndexSorted, framing included, from `start` to its end.

    Raises
    ------
    FormatError
        If the framing is not as specified. Records are looked at when they are asked for.
    """

    __slots__ = ("_buffer", "_groups", "_search", "count")

    def __init__(self, buffer: bytes | mmap.mmap, start: int = 0) -> None:
        self._buffer = buffer
        self._groups = {
            bytes([group.code, DIGEST_SIZE]): group
            for group in index_groups(buffer, start)
            if group.code in HASHES and group.digest_size == DIGEST_SIZE and group.count
        }
        self.count = sum(group.count for group in self._groups.values())
        # multihash prefix -> (positions in the buffer where each bucket begins, shift)
        self._search: dict[bytes, tuple[array[int], int]] = {
            prefix: (array("Q", [group.start, group.stop]), 32)
            for prefix, group in self._groups.items()
            if group.count <= _UNSORTED_SEARCH
        }

    def find(self, key: bytes) -> int | None:
        """Return the offset of the section of a multihash, or None."""
        prefix = key[:2]
        try:
            fan, shift = self._search[prefix]
        except KeyError:
            group = self._groups.get(prefix)
            return None if group is None else self._bisect(group, key[2:])
        bucket = _leading(key, 2)[0] >> shift
        start = fan[bucket]
        at = self._buffer.find(key[2:], start, fan[bucket + 1])
        if at < 0:
            return None
        if (at - start) % _RECORD:  # never by chance
            return self._bisect(self._groups[prefix], key[2:])
        found: int = _offset(self._buffer, at + DIGEST_SIZE)[0]
        return found

    def find_many(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the offsets of many multihashes, (n, 34) uint8; -1 for those that are not here."""
        found = np.full(len(keys), -1, dtype=np.int64)
        for prefix, group in self._groups.items():
            ours = np.flatnonzero((keys[:, 0] == prefix[0]) & (keys[:, 1] == prefix[1]))
            if len(ours) * 64 < group.count:  # cheaper than touching every record
                for i in ours.tolist():
                    offset = self.find(keys[i].tobytes())
                    if offset is not None:
                        found[i] = offset
                continue
            digests, offsets = group_arrays(self._buffer, group)
            heads = _heads(digests, 8)
            wanted = keys[ours, 2:]
            at = np.searchsorted(heads, _heads(wanted, 8))
            near = np.minimum(at, group.count - 1)
            same = (digests[near] == wanted).all(axis=1)
            found[ours[same]] = offsets[near[same]].astype(np.int64)
            for i in np.flatnonzero(~same & (heads[near] == _heads(wanted, 8))).tolist():
                offset = self._bisect(group, wanted[i].tobytes())  # equal heads: never by chance
                if offset is not None:
                    found[ours[i]] = offset
        return found

    def find_rows(self, keys: NDArray[np.uint8], memo: Heads | None = None) -> NDArray[np.int64]:
        """Return where many multihashes, (n, 34) uint8, stand among `records`; -1 for none.

        For many keys at once: the first time every record is looked at, and the heads of the
        digests, 8 bytes each, are put into `memo` for the next.
        """
        memo = {} if memo is None else memo
        found = np.full(len(keys), -1, dtype=np.int64)
        first = 0
        for prefix, group in self._groups.items():
            ours = np.flatnonzero((keys[:, 0] == prefix[0]) & (keys[:, 1] == prefix[1]))
            if len(ours):
                digests = group_arrays(self._buffer, group)[0]
                if prefix not in memo:
                    memo[prefix] = _heads(digests, 8)
                heads, wanted = memo[prefix], _heads(keys[ours, 2:10], 8)
                at = np.minimum(np.searchsorted(heads, wanted), group.count - 1)
                hits = np.flatnonzero(heads[at] == wanted)
                ours, at = ours[hits], at[hits]
                same = (digests[at] == keys[ours, 2:]).all(axis=1)
                found[ours[same]] = at[same] + first
                for i in ours[~same].tolist():  # equal heads: never by chance
                    row = self._row(group, keys[i, 2:].tobytes())
                    if row is not None:
                        found[i] = row + first
            first += group.count
        return found

    def records(self) -> list[tuple[int, Digests, Offsets]]:
        """Return multihash code, digests and offsets of the blocks, views of the index."""
        return [(group.code, *group_arrays(self._buffer, group)) for group in self._groups.values()]

    def leading(self) -> NDArray[np.uint32]:
        """Return the first four bytes of every digest as numbers."""
        parts = [_heads(digests, 4) for _, digests, _ in self.records()]
        return np.concatenate(parts).astype(np.uint32) if parts else np.empty(0, np.uint32)

    def warm(self) -> None:
        """Make the fan-out, if the index is large enough to need one."""
        for prefix, group in self._groups.items():
            if prefix not in self._search:
                bits = min(group.count.bit_length() - 3, 24)
                heads = _heads(group_arrays(self._buffer, group)[0], 4)
                borders = np.arange(1 << bits, dtype=np.uint64) << np.uint64(32 - bits)
                starts = np.searchsorted(heads, borders.astype(heads.dtype))
                fan = np.empty(len(starts) + 1, dtype=np.uint64)
                fan[:-1] = starts
                fan[-1] = group.count
                fan *= np.uint64(_RECORD)
                fan += np.uint64(group.start)
                self._search[prefix] = (array("Q", fan.tobytes()), 32 - bits)

    def _bisect(self, group: IndexGroup, digest: bytes) -> int | None:
        row = self._row(group, digest)
        if row is None:
            return None
        found: int = _offset(self._buffer, group.start + row * _RECORD + DIGEST_SIZE)[0]
        return found

    def _row(self, group: IndexGroup, digest: bytes) -> int | None:
        buffer, start = self._buffer, group.start

        def digest_at(i: int) -> bytes:
            at = start + i * _RECORD
            return buffer[at : at + DIGEST_SIZE]

        i = bisect_left(range(group.count), digest, key=digest_at)
        return None if i == group.count or digest_at(i) != digest else i


class SearchIndex(Protocol):
    """What `PackIndex` does: the index of a pack, open or not."""

    @property
    def count(self) -> int: ...

    def find(self, key: bytes) -> int | None: ...

    def find_many(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]: ...

    def find_rows(
        self, keys: NDArray[np.uint8], memo: Heads | None = None
    ) -> NDArray[np.int64]: ...

    def records(self) -> list[tuple[int, Digests, Offsets]]: ...

    def leading(self) -> NDArray[np.uint32]: ...

    def warm(self) -> None: ...


class Holder(Protocol):
    """Something with an index: a pack, or a part of one that is being written."""

    @property
    def index(self) -> SearchIndex: ...


class _State(NamedTuple):
    """What a search looks at, replaced as a whole."""

    table: array[int]  # leading bits -> 0, a slot, or _SEVERAL
    shift: int
    slots: list[Holder | None]  # who is meant; the first is never used
    tabled: tuple[Holder, ...]  # who has been entered in the table
    loose: tuple[Holder, ...]  # who is searched one by one


class Directory:
    """All the packs that a store knows, searched as one.

    Finding takes no lock; changing does. A holder that was removed while someone searches may
    still be found: it stays readable as long as it is referenced.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._state = _State(array("H", [0]), 32, [None], (), ())
        self._entered = 0
        self._probes = 0

    def holders(self) -> tuple[Holder, ...]:
        """Return all holders."""
        return self._state.tabled + self._state.loose

    def find(self, key: bytes) -> tuple[Holder, int] | None:
        """Return who holds a multihash, and the offset of its section there."""
        table, shift, slots, tabled, loose = self._state
        slot = table[_leading(key, 2)[0] >> shift]
        if slot:
            holder = slots[slot] if slot != _SEVERAL else None
            if holder is not None:
                offset = holder.index.find(key)
                if offset is not None:
                    return holder, offset
            else:  # of several, or of one that is gone
                for holder in reversed(tabled):
                    offset = holder.index.find(key)
                    if offset is not None:
                        return holder, offset
        if not loose:
            return None
        self._count_probes(loose)
        for holder in reversed(loose):
            offset = holder.index.find(key)
            if offset is not None:
                return holder, offset
        return None

    def find_many(self, keys: Sequence[bytes]) -> list[tuple[Holder, int] | None]:
        """Find many multihashes at once."""
        if len(keys) < 256:
            return [self.find(key) for key in keys]
        found: list[tuple[Holder, int] | None] = [None] * len(keys)
        matrix = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY_SIZE)
        left = np.arange(len(keys))
        for holder in reversed(self.holders()):
            offsets = holder.index.find_many(matrix[left])
            hits = offsets >= 0
            for i, offset in zip(left[hits].tolist(), offsets[hits].tolist(), strict=True):
                found[i] = (holder, offset)
            left = left[~hits]
        return found

    def add(self, holder: Holder) -> None:
        """Take a holder in."""
        with self._lock:
            self._add(holder)

    def replace(self, old: Iterable[Holder], new: Holder | None) -> None:
        """Put `new`, which holds what the old ones hold, or None, in their place."""
        gone = {id(holder) for holder in old}
        with self._lock:
            state = self._state
            tabled = tuple(holder for holder in state.tabled if id(holder) not in gone)
            loose = tuple(holder for holder in state.loose if id(holder) not in gone)
            inherits = new is not None and len(state.tabled) - len(tabled) == len(gone) > 0
            if new is not None and inherits:  # every digest is in the table already
                new.index.warm()
                tabled = (*tabled, new)
            elif new is not None:
                self._add(new)
                tabled = tuple(h for h in self._state.tabled if id(h) not in gone)
                loose = tuple(h for h in self._state.loose if id(h) not in gone)
            for slot, holder in enumerate(state.slots):
                if holder is not None and id(holder) in gone:
                    state.slots[slot] = new if inherits else None
            self._state = state._replace(tabled=tabled, loose=loose)

    def _add(self, holder: Holder) -> None:
        state = self._state
        room = len(state.table) // _SPARSENESS - self._entered
        if (holder.index.count <= room or len(state.table) >> _MAX_TABLE_BITS) and len(
            state.slots
        ) < _SEVERAL:
            self._enter(state, holder)
            self._state = state._replace(tabled=(*state.tabled, holder))
        else:
            self._state = state._replace(loose=(*state.loose, holder))

    def _count_probes(self, loose: tuple[Holder, ...]) -> None:
        self._probes += len(loose)
        records = sum(holder.index.count for holder in loose)
        if self._probes * _PROBE_COST > max(records, _LEAST_WORTH):
            self._tabulate()

    def _tabulate(self) -> None:
        """Make a new table of all holders."""
        with self._lock:
            if not self._state.loose:  # another thread was faster
                return
            holders = self.holders()
            total = sum(holder.index.count for holder in holders)
            bits = min(max((total * _SPARSENESS).bit_length(), 12), _MAX_TABLE_BITS)
            fresh = _State(array("H", bytes(2 << bits)), 32 - bits, [None], holders, ())
            self._entered = self._probes = 0
            for holder in holders[: _SEVERAL - 1]:
                self._enter(fresh, holder)
            beyond = holders[_SEVERAL - 1 :]
            self._state = fresh._replace(tabled=holders[: _SEVERAL - 1], loose=beyond)

    def _enter(self, state: _State, holder: Holder) -> None:
        holder.index.warm()
        slot = len(state.slots)
        state.slots.append(holder)
        table = np.frombuffer(state.table, dtype=np.uint16)
        at = holder.index.leading() >> np.uint32(state.shift)
        table[at] = np.where(table[at] == 0, slot, _SEVERAL)
        self._entered += holder.index.count


def _heads(digests: Digests, size: int) -> NDArray[np.unsignedinteger]:
    """Return the first 4 or 8 bytes of each digest as numbers."""
    heads: NDArray[np.unsignedinteger] = (
        np.ascontiguousarray(digests[:, :size]).view(f">u{size}").ravel().astype(f"=u{size}")
    )
    return heads
