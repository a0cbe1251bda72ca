"""Blocks in object storage: S3, GCS, Azure, and what is like them. An object for each block.

::

    blocks/<last two characters of the cid>/<cid>

The CID is that of the block as raw, in base32: blocks are found by their multihash. An object is
written once, under the condition that it is not there. So there is no index and no lock, and any
number of clients write at once: who comes second finds that the block is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, BlockStore, checked
from cas_zarr.blocks.objects import Objects, Place, open_object_store
from cas_zarr.blocks.uploads import Uploads
from cas_zarr.blocks.waiting import WAITERS, map_waiting
from cas_zarr.cid import (
    DIGEST_SIZE,
    RAW,
    BytesLike,
    CidBytes,
    CidLike,
    as_cid_bytes,
    format_cid,
    matches,
)
from cas_zarr.errors import (
    BlockNotFoundError,
    InvalidCIDError,
    LimitError,
    ReadOnlyError,
)

__all__ = ["ObjectStoreBlocks"]

_FOLDER = "blocks"
_KEY_SIZE = DIGEST_SIZE + 2  # a multihash
_AS_RAW = bytes([1, RAW])
_LOOK_FIRST = 1 << 18  # bytes; a put that fails sends all of them, a look sends none
_MOST_KNOWN = 1 << 16  # twice; some 20 MB


class ObjectStoreBlocks(BlockStore):
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

    @property
    def location(self) -> str:
        return self.objects.location

    def __repr__(self) -> str:
        return f"ObjectStoreBlocks({self.location!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (self.objects, self.read_only, self._parallel)

    # -- reading ------------------------------------------------------------------------------

    def _read(self, cid: CidBytes) -> BytesLike | None:
        data = self._uploads.get(cid[-_KEY_SIZE:])
        return self._read_object(cid) if data is None else data

    def _read_object(self, cid: CidBytes) -> memoryview | None:
        try:
            return self.objects.get(_name(cid[-_KEY_SIZE:]), limit=MAX_BLOCK_SIZE)
        except LimitError:
            self._note_damage(cid)
            raise self._corrupt(cid) from None

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        """Ask once more: the bytes may have been changed on their way."""
        data = self._read_object(cid)
        if data is not None and matches(cid, data):
            return bytes(data)
        self._note_damage(cid)
        return None

    def _note_damage(self, cid: CidBytes) -> None:
        key = cid[-_KEY_SIZE:]
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
        key = cid[-_KEY_SIZE:]
        data = self._uploads.get(key)
        return self.objects.size(_name(key)) if data is None else len(data)

    def list(self) -> Iterator[CidBytes]:
        """Yield the CID of every block that is held, as raw, page by page as they come."""
        self._uploads.wait()
        for name, _ in self.objects.list(_FOLDER):
            cid = _cid(name)
            if cid is not None:
                yield cid

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        return BlockNotFoundError(
            f"block {format_cid(cid)} is not in {self.location}; check that this is the place it "
            "was written to, or fetch it from one that has it"
        )

    # -- writing ------------------------------------------------------------------------------

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        key = cid[-_KEY_SIZE:]
        if key in self._known or key in self._known_before:
            return
        if key in self._damaged and not matches(cid, data):
            raise self._corrupt(cid)  # it is not replaced by what is as wrong
        self._uploads.add(key, data)

    def _send(self, key: bytes, data: bytes) -> None:
        """Hold a block, unless it is there already."""
        name = _name(key)
        damaged = key in self._damaged
        if not damaged and len(data) >= _LOOK_FIRST:
            size = self.objects.size(name)
            if size is not None:
                if size == len(data):
                    return self._note(key)
                damaged = True
        if not damaged:
            self.objects.create(name, data)
        elif matches(CidBytes(_AS_RAW + key), data):
            self.objects.replace(name, data)
            self._damaged.discard(key)
        else:
            return None  # whatever is there: who reads it is told
        return self._note(key)

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
        keys = [checked(cid)[-_KEY_SIZE:] for cid in cids]
        for key in keys:
            self._uploads.drop(key)
        try:
            self.objects.delete([_name(key) for key in keys])
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


def _opened(objects: Objects, read_only: bool, parallel: int) -> ObjectStoreBlocks:
    return ObjectStoreBlocks(objects, read_only=read_only, parallel=parallel)


def _name(key: bytes) -> str:
    """Return the name of the object of a multihash."""
    text = format_cid(CidBytes(_AS_RAW + key))
    return f"{_FOLDER}/{text[-2:]}/{text}"


def _cid(name: str) -> CidBytes | None:
    """Return the CID of the block that an object of that name holds; None if it holds none."""
    try:
        cid = checked(as_cid_bytes(name.rpartition("/")[2]))
    except InvalidCIDError:
        return None
    return cid if _name(cid[-_KEY_SIZE:]) == name else None
