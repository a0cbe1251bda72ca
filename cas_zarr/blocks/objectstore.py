"""Blocks in object storage: S3, GCS, Azure, and what is like them. An object for each block.

::

    blocks/…, rescued/…  the blocks (`cas_zarr.blocks.objectnames`)
    condemned/<name>     lists of condemned blocks
    collecting.json      who collects garbage (`cas_zarr.blocks.lease`)

An object is written once, under the condition that it is not there. So there is no index and no
lock, and any number of clients write at once: who comes second finds that the block is there.

A sweep deletes by name, and cannot see that a block was written anew a moment ago. So a block that
is condemned in one place is written into the other one, and no sweep of that list goes there.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, checked
from cas_zarr.blocks.collectable import CollectableBlocks, Marks
from cas_zarr.blocks.condemned import Condemned
from cas_zarr.blocks.lease import Lease
from cas_zarr.blocks.objectmarks import ObjectMarks
from cas_zarr.blocks.objectnames import KEY_SIZE, PLACES, cid_at, name_in
from cas_zarr.blocks.objects import Objects, Place, open_object_store
from cas_zarr.blocks.uploads import Uploads
from cas_zarr.blocks.waiting import WAITERS, map_waiting
from cas_zarr.cid import RAW, BytesLike, CidBytes, CidLike, format_cid, matches
from cas_zarr.errors import BlockNotFoundError, LimitError, ReadOnlyError, StorageError

__all__ = ["ObjectStoreBlocks"]

_AS_RAW: Final = bytes([1, RAW])
_LOOK_FIRST: Final = 1 << 18  # bytes; a put that fails sends all of them, a look sends none
_MOST_KNOWN: Final = 1 << 16  # twice; some 20 MB
_LISTS: Final = "condemned"
_LEASE: Final = "collecting.json"
_MOST_LIST: Final = 1 << 30


class ObjectStoreBlocks(CollectableBlocks):
    """Blocks that are objects of a bucket.

    Parameters
    ----------
    store : Objects, str or obstore store
        What `open_object_store` gives or takes.
    prefix : str
        Below that of `store`.
    read_only : bool
        Whether `put` and `delete` are refused.
    parallel : int
        Requests that are under way at once, at most 32.

    Attributes
    ----------
    objects : Objects
        The place of the blocks, for what lies beside them.

    Notes
    -----
    `put` copies a block and sends it while its caller goes on, at most 64 MiB of them; a `flush`
    returns when all are there, and raises if some are not. A block that this process has sent, or
    found there, is not sent again. `list` gives each block as raw. A block that was found damaged
    is written anew when it is put.

    Examples
    --------
    >>> with ObjectStoreBlocks("memory://") as blocks:  # doctest: +SKIP
    ...     blocks.put(cid, data)
    ...     blocks.flush()
    """

    remote = True

    def __init__(
        self,
        store: Objects | Place,
        prefix: str = "",
        *,
        read_only: bool = False,
        parallel: int = WAITERS,
    ) -> None:
        if isinstance(store, Objects):
            self.objects = Objects(store.store, store.prefix + prefix) if prefix else store
        else:
            self.objects = open_object_store(store, prefix)
        self.read_only = read_only
        self._parallel = max(1, min(parallel, WAITERS))
        self._uploads = Uploads(self._send, parallel=self._parallel)
        self._known: set[bytes] = set()  # multihashes of blocks that are there
        self._known_before: set[bytes] = set()
        self._damaged: set[bytes] = set()  # of blocks that were found damaged
        self._lock = threading.Lock()  # of what is known, and the lists it is known under
        self._lease: Lease | None = None  # while garbage is collected

    @property
    def location(self) -> str:
        return self.objects.location

    def __repr__(self) -> str:
        return f"ObjectStoreBlocks({self.location!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (self.objects, self.read_only, self._parallel)

    # -- reading ------------------------------------------------------------------------------

    def _read(self, cid: CidBytes) -> BytesLike | None:
        data = self._uploads.get(cid[-KEY_SIZE:])
        return self._read_object(cid) if data is None else data

    def _read_object(self, cid: CidBytes) -> memoryview | None:
        for place in PLACES:
            data = self._read_in(place, cid)
            if data is not None:
                return data
        return None

    def _read_in(self, place: str, cid: CidBytes) -> memoryview | None:
        try:
            return self.objects.get(name_in(place, cid[-KEY_SIZE:]), limit=MAX_BLOCK_SIZE)
        except LimitError:
            self._note_damage(cid)
            raise self._corrupt(cid) from None

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        """Ask once more: the bytes may have been changed on their way."""
        for place in PLACES:
            data = self._read_in(place, cid)
            if data is not None and matches(cid, data):
                return bytes(data)
        self._note_damage(cid)
        return None

    def _note_damage(self, cid: CidBytes) -> None:
        key = cid[-KEY_SIZE:]
        self._damaged.add(key)
        self._forget(key)

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        """Return the bytes of many blocks, in order, each verified, many asked for at once."""
        keys = [checked(cid) for cid in cids]
        unique = list(dict.fromkeys(keys))
        found = dict(
            zip(unique, map_waiting(self.get, unique, parallel=self._parallel), strict=True)
        )
        return [found[key] for key in keys]

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether it is held, many asked for at once."""
        keys = [checked(cid) for cid in cids]
        return map_waiting(self._has, keys, parallel=self._parallel)

    def _has(self, cid: CidBytes) -> bool:
        return self._size(cid) is not None

    def _size(self, cid: CidBytes) -> int | None:
        key = cid[-KEY_SIZE:]
        data = self._uploads.get(key)
        if data is not None:
            return len(data)
        sizes = (self.objects.size(name_in(place, key)) for place in PLACES)
        return next((size for size in sizes if size is not None), None)

    def list(self) -> Iterator[CidBytes]:
        """Yield the CID of every block that is held, as raw, page by page as they come."""
        self._uploads.wait()
        rescued = {cid for name, _ in self.objects.list(PLACES[1]) if (cid := cid_at(name))}
        yield from rescued
        for name, _ in self.objects.list(PLACES[0]):
            cid = cid_at(name)
            if cid is not None and cid not in rescued:
                yield cid

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        return BlockNotFoundError(
            f"block {format_cid(cid)} is not in {self.location}; check that this is the place it "
            "was written to, or fetch it from one that has it"
        )

    # -- writing ------------------------------------------------------------------------------

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        key = cid[-KEY_SIZE:]
        if key in self._known or key in self._known_before:
            return
        if key in self._damaged and not matches(cid, data):
            raise self._corrupt(cid)  # it is not replaced by what is as wrong
        self._uploads.add(key, data)

    def _send(self, key: bytes, data: bytes) -> None:
        """Hold a block, unless it is there already."""
        while True:
            lists = self._condemned
            there = self._send_to(self._place_for(key), key, data)
            with self._lock:  # a list that came meanwhile may condemn it where it was sent
                if self._condemned is lists:
                    if there:
                        self._note(key)
                    return

    def _send_to(self, place: str, key: bytes, data: bytes) -> bool:
        name = name_in(place, key)
        damaged = key in self._damaged
        if not damaged and len(data) >= _LOOK_FIRST:
            size = self.objects.size(name)
            if size is not None:
                if size == len(data):
                    return True
                damaged = True
        if not damaged:
            self.objects.create(name, data)
            return True
        if matches(CidBytes(_AS_RAW + key), data):
            self.objects.replace(name, data)
            self._damaged.discard(key)
            return True
        return False  # whatever is there: who reads it is told

    def _place_for(self, key: bytes) -> str:
        """Return where a block is written: not where a list condemns it."""
        swept = {place for one in self._condemned if one.holds(key) for place in one.places}
        for place in PLACES:
            if place not in swept:
                return place
        raise StorageError(
            f"two collections of garbage in {self.location} condemn a block in both places; wait "
            "until one of them is done, and flush again"
        )

    def _note(self, key: bytes) -> None:
        """Remember that a block is there; of too many the older half is forgotten."""
        if len(self._known) >= _MOST_KNOWN:
            self._known, self._known_before = set(), self._known
        self._known.add(key)

    def _forget(self, key: bytes) -> None:
        self._known.discard(key)
        self._known_before.discard(key)

    def _delete(self, cid: CidBytes) -> None:
        self.delete_many([cid])

    def delete_many(self, cids: Sequence[CidLike]) -> None:
        """Forget many blocks, up to a thousand by one request. It is no error if one is not held.

        Another client that has seen a block there takes it for held: see that no one writes it.
        """
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        keys = [checked(cid)[-KEY_SIZE:] for cid in cids]
        for key in keys:
            self._uploads.drop(key)
        try:
            self.objects.delete([name_in(place, key) for place in PLACES for key in keys])
        finally:
            for key in keys:
                self._forget(key)
                self._damaged.discard(key)

    def flush(self) -> None:
        """Make every block that was put durable.

        Raises
        ------
        RemoteError
            If some could not be written. They are kept, and the next flush tries them again.
        """
        self._uploads.wait()

    def close(self) -> None:
        """Send nothing more. What was not flushed may be lost."""
        self._uploads.close()

    # -- collecting garbage -------------------------------------------------------------------

    def avoid(self, lists: Sequence[Condemned], epoch: int) -> None:
        """Take what these lists condemn for absent; forget what was there before an epoch."""
        with self._lock:
            if epoch > self._epoch:
                self._known, self._known_before = set(), set()
            super().avoid(lists, epoch)

    def condemned_many(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell for each of many multihashes whether a list condemns it and it has no other copy."""
        listed = np.zeros(len(keys), bool)
        for one in self._condemned:
            listed |= one.holds_many(keys)
        rows = np.flatnonzero(listed).tolist()
        listed[rows] = map_waiting(
            lambda row: not self._is_rescued(bytes(keys[row])), rows, parallel=self._parallel
        )
        return listed

    def _is_rescued(self, key: bytes) -> bool:
        if key in self._known or key in self._known_before or self._uploads.get(key) is not None:
            return True
        return self.objects.size(name_in(self._place_for(key), key)) is not None

    def survey(self) -> Marks:
        """Return marks for all objects that are there; those of others may not be flushed yet."""
        self._uploads.wait()
        return ObjectMarks(self.objects, self._lease)

    def write_list(self, data: bytes) -> Condemned:
        """Hold a list, durably."""
        condemned = Condemned.from_bytes(data, Condemned.name_of(data))
        self.objects.create(f"{_LISTS}/{condemned.name}", data)
        return condemned

    def read_list(self, name: str) -> Condemned:
        """Return a list; BlockNotFoundError if there is none of that name."""
        data = self.objects.get(f"{_LISTS}/{name}", limit=_MOST_LIST)
        if data is None:
            raise BlockNotFoundError(
                f"the list {name} of condemned blocks is not in {self.location}; run gc, which "
                "makes a new one"
            )
        return Condemned.from_bytes(bytes(data), name)

    def delete_lists(self, keep: Collection[str]) -> None:
        """Remove all lists but those of some names."""
        names = [name for name, _ in self.objects.list(_LISTS)]
        self.objects.delete([name for name in names if name.rpartition("/")[2] not in keep])

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Return a context in which nobody else collects here; ConflictError if someone does."""
        with Lease(self.objects, _LEASE, "collection") as self._lease:
            try:
                yield
            finally:
                self._lease = None


def _opened(objects: Objects, read_only: bool, parallel: int) -> ObjectStoreBlocks:
    return ObjectStoreBlocks(objects, read_only=read_only, parallel=parallel)
