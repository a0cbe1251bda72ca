"""Blocks in memory: for tests, for small things, and as the top of a tier."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.collectable import CollectableBlocks, Marks, Swept
from cas_zarr.blocks.condemned import Condemned, encode_condemned
from cas_zarr.cid import DIGEST_SIZE, BytesLike, CidBytes
from cas_zarr.errors import BlockNotFoundError, ConflictError

__all__ = ["MemoryBlocks"]

_MULTIHASH_SIZE = DIGEST_SIZE + 2


class MemoryBlocks(CollectableBlocks):
    """Blocks in a dict of this process.

    Parameters
    ----------
    read_only : bool
        Whether `put` and `delete` are refused.
    """

    def __init__(self, *, read_only: bool = False) -> None:
        self.read_only = read_only
        # multihash -> block, and when it was put
        self._blocks: dict[bytes, tuple[CidBytes, bytes, int]] = {}
        self._time = 0  # counts flushes and surveys
        self._flushed = 0  # when that was last done
        self._lists: dict[str, bytes] = {}
        self._collecting = threading.Lock()

    @property
    def location(self) -> str:
        return "memory"

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        return f"MemoryBlocks({len(self._blocks)} blocks)"

    def _read(self, cid: CidBytes) -> bytes | None:
        held = self._blocks.get(cid[-_MULTIHASH_SIZE:])
        return None if held is None else held[1]

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        key = cid[-_MULTIHASH_SIZE:]
        if key not in self._blocks or (self._condemned and self._is_condemned(key)):
            self._blocks[key] = (cid, bytes(data), self._time)

    def _has(self, cid: CidBytes) -> bool:
        return cid[-_MULTIHASH_SIZE:] in self._blocks

    def _size(self, cid: CidBytes) -> int | None:
        held = self._blocks.get(cid[-_MULTIHASH_SIZE:])
        return None if held is None else len(held[1])

    def _delete(self, cid: CidBytes) -> None:
        self._blocks.pop(cid[-_MULTIHASH_SIZE:], None)

    def list(self) -> Iterator[CidBytes]:
        for cid, _, _ in list(self._blocks.values()):
            yield cid

    def flush(self) -> None:
        """Let a collection see what was put: until then it is spared."""
        self._time += 1
        self._flushed = self._time

    # -- collecting, docstrings inherited -----------------------------------------------------

    def _is_condemned(self, key: bytes) -> bool:
        held = self._blocks.get(key)
        return any(
            one.holds(key) and (held is None or held[2] < _time(one)) for one in self._condemned
        )

    def condemned_many(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        found = [self._is_condemned(key.tobytes()) for key in keys] if self._condemned else []
        return np.array(found or np.zeros(len(keys)), bool)

    def survey(self) -> Marks:
        self._time += 1
        return _MemoryMarks(self._blocks, self._flushed, self._time)

    def write_list(self, data: bytes) -> Condemned:
        condemned = Condemned.from_bytes(data, Condemned.name_of(data))
        self._lists[condemned.name] = data
        return condemned

    def read_list(self, name: str) -> Condemned:
        data = self._lists.get(name)
        if data is None:
            raise BlockNotFoundError(f"there is no list {name} of condemned blocks in memory")
        return Condemned.from_bytes(data, name)

    def delete_lists(self, keep: Collection[str]) -> None:
        for name in set(self._lists) - set(keep):
            del self._lists[name]

    @contextmanager
    def collecting(self) -> Iterator[None]:
        if not self._collecting.acquire(blocking=False):
            raise ConflictError("another collection is under way in memory; wait for it")
        try:
            yield
        finally:
            self._collecting.release()


def _time(condemned: Condemned) -> int:
    """Return when the survey was that a list was made of."""
    (place,) = condemned.places
    return int(place)


class _MemoryMarks(Marks):
    def __init__(
        self, blocks: dict[bytes, tuple[CidBytes, bytes, int]], flushed: int, time: int
    ) -> None:
        self._blocks = blocks
        self._flushed = flushed
        self._time = time
        held = list(blocks.items())
        self._unused = {key: len(data) for key, (_, data, _) in held}
        self.blocks = len(self._unused)
        self.size = sum(self._unused.values())

    def mark(self, keys: NDArray[np.uint8]) -> None:
        for row in keys:
            self._unused.pop(row.tobytes(), None)

    def used(self) -> tuple[int, int]:
        return self.blocks - len(self._unused), self.size - sum(self._unused.values())

    def condemn(self, max_unused: float) -> bytes | None:  # noqa: ARG002 - memory is given back
        go = [key for key in self._unused if self._put_before(key, self._flushed)]
        if not go:
            return None
        keys = np.frombuffer(b"".join(go), np.uint8).reshape(-1, _MULTIHASH_SIZE)
        size = sum(self._unused[key] for key in go)
        return encode_condemned([keys], [str(self._time)], blocks=len(go), size=size)

    def sweep(self, condemned: Condemned, *, dry_run: bool = False) -> Swept:
        go = [
            key
            for key in self._unused
            if condemned.holds(key) and self._put_before(key, _time(condemned))
        ]
        size = sum(self._unused[key] for key in go)
        if not dry_run:
            for key in go:
                del self._unused[key]
                self._blocks.pop(key, None)
            self.blocks -= len(go)
            self.size -= size
        return Swept(blocks=len(go), size=size, freed=size)

    def _put_before(self, key: bytes, time: int) -> bool:
        held = self._blocks.get(key)
        return held is not None and held[2] < time
