"""The contract of a block store: a place that holds blocks under their CIDs.

A backend implements the underscored methods. What the public ones promise is kept here, once:
bytes that leave `get`, `get_many`, `get_range` or `read_into` hash to the CID that was asked for.
Blocks are found by their multihash, so the codec in a CID does not matter for finding one. A CID
whose hash cannot be checked is refused before a backend sees it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, final

from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    DIGEST_SIZE,
    HASHES,
    RAW,
    BytesLike,
    CidBytes,
    CidLike,
    as_cid_bytes,
    format_cid,
    hash_of,
    make_cid,
)
from cas_zarr.closing import Closing
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    InvalidArgumentError,
    LimitError,
    ReadOnlyError,
)
from cas_zarr.parallel import map_ordered

__all__ = ["MAX_BLOCK_SIZE", "VERIFIED", "BlockStore", "checked"]

MAX_BLOCK_SIZE = 2 * 1024 * 1024
"""Largest block that is read or written, in bytes: peers of IPFS refuse more."""

VERIFIED: Final = 2
"""What `BlockStore._read_into` returns for bytes that it has verified."""

# What stands before the digest tells all about a CID: to look it up costs a tenth of parsing.
_DIGESTS = {
    bytes(make_cid(codec, function, b"")): function.digest
    for codec in (RAW, DAG_PB, DAG_CBOR, DAG_JSON)
    for function in HASHES.values()
}


class BlockStore(Closing):
    """A place that holds blocks.

    Attributes
    ----------
    read_only : bool
        Whether `put` and `delete` are refused.
    remote : bool
        Whether a read takes a round trip: then readers ask for many blocks at once, and for none
        twice.
    """

    read_only: bool = False
    remote: bool = False

    # -- what a backend provides ------------------------------------------------------------

    @abstractmethod
    def _read(self, cid: CidBytes) -> BytesLike | None:
        """Return the bytes held under the multihash of `cid`, unverified, or None."""

    @abstractmethod
    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        """Hold `data`. It is copied or written before this returns."""

    @abstractmethod
    def _has(self, cid: CidBytes) -> bool:
        """Tell whether the block is held."""

    @abstractmethod
    def _size(self, cid: CidBytes) -> int | None:
        """Return the number of bytes of the block, or None."""

    @abstractmethod
    def _delete(self, cid: CidBytes) -> None:
        """Forget the block, if it is held."""

    @abstractmethod
    def list(self) -> Iterator[CidBytes]:
        """Yield the CID of every block that is held, in no order, each multihash once."""

    @property
    @abstractmethod
    def location(self) -> str:
        """Where the blocks are, in words, for messages."""

    def _read_into(self, cid: CidBytes, out: memoryview) -> int:
        """Fill `out` with the block, which has its length.

        False if it is not held, true if it is, and `VERIFIED` if it was verified just now.
        """
        data = self._read(cid)
        if data is None:
            return False
        if len(data) != len(out):
            raise self._wrong_length(cid, len(data), len(out))
        out[:] = data
        return True

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:  # noqa: ARG002
        """Return a sound copy from elsewhere after `_read` gave a damaged one, or None."""
        return None

    # -- what users call --------------------------------------------------------------------

    @final
    def get(self, cid: CidLike) -> bytes:
        """Return the bytes of a block, verified.

        Raises
        ------
        BlockNotFoundError
            If it is not held.
        CorruptBlockError
            If what is held does not hash to `cid`.
        InvalidCIDError
            If `cid` is no CID, or its hash cannot be checked here.
        """
        key: CidBytes = cid if type(cid) is bytes else as_cid_bytes(cid)  # type: ignore[assignment]
        digest = _DIGESTS.get(key[:-DIGEST_SIZE]) or hash_of(key).digest
        data = self._read(key)
        if data is None:
            raise self._not_found(key)
        if digest(data) != key[-DIGEST_SIZE:]:
            data = self._read_other_copy(key)
            if data is None:
                raise self._corrupt(key)
        return data if type(data) is bytes else bytes(data)

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        """Return the bytes of many blocks, in order, each verified, read in parallel."""
        return map_ordered(self.get, cids)

    def get_held(self, cids: Sequence[CidLike]) -> dict[CidBytes, bytes]:
        """Return those of many blocks that are held, verified; a damaged one counts as not held.

        A remote one is not asked twice for the same; a backend that does better gives its own.
        """
        keys = [checked(cid) for cid in cids]
        if self.remote:
            read = map_waiting(self._get_sound, keys)
            return {key: data for key, data in zip(keys, read, strict=True) if data is not None}
        held = [key for key, here in zip(keys, self.has_many(keys), strict=True) if here]
        try:
            return dict(zip(held, self.get_many(held), strict=True))
        except (BlockNotFoundError, CorruptBlockError):
            return {key: data for key in held if (data := self._get_sound(key)) is not None}

    def _get_sound(self, cid: CidBytes) -> bytes | None:
        try:
            return self.get(cid)
        except (BlockNotFoundError, CorruptBlockError):
            return None

    @final
    def get_range(self, cid: CidLike, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of a block; the whole block is read and verified."""
        if start < 0 or stop < start:
            raise InvalidArgumentError(f"{start}:{stop} is no range of bytes")
        return self.get(cid)[start:stop]

    @final
    def read_into(self, cid: CidLike, out: memoryview) -> None:
        """Fill `out` with a block of exactly its length, verified.

        When this raises, the content of `out` is undefined and must not be used.
        """
        key: CidBytes = cid if type(cid) is bytes else as_cid_bytes(cid)  # type: ignore[assignment]
        digest = _DIGESTS.get(key[:-DIGEST_SIZE]) or hash_of(key).digest
        filled = self._read_into(key, out)
        if not filled:
            raise self._not_found(key)
        if filled != VERIFIED and digest(out) != key[-DIGEST_SIZE:]:
            data = self._read_other_copy(key)
            if data is None or len(data) != len(out):
                raise self._corrupt(key)
            out[:] = data

    @final
    def read_unverified_into(self, cid: CidLike, out: memoryview) -> bool:
        """Fill `out` with what is held of a block of exactly its length; tell if it was verified.

        Where it was not, the caller compares its digest with the CID before anything else is done
        with it, and takes `read_into` where they differ. When this raises, the content of `out` is
        undefined and must not be used.

        Raises
        ------
        BlockNotFoundError
            If it is not held.
        CorruptBlockError
            If what is held is damaged for certain: of another length.
        """
        key = checked(cid)
        filled = self._read_into(key, out)
        if not filled:
            raise self._not_found(key)
        return filled == VERIFIED

    @final
    def put(self, cid: CidLike, data: BytesLike) -> None:
        """Hold a block whose CID the caller has computed from `data`.

        `data` may be a view of memory that changes later: it is copied or written before this
        returns. A block that is held already costs a look. It is durable after `flush`.
        """
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        key: CidBytes = cid if type(cid) is bytes else as_cid_bytes(cid)  # type: ignore[assignment]
        if key[:-DIGEST_SIZE] not in _DIGESTS:
            hash_of(key)
            key = as_cid_bytes(key)  # a CIDv0 is held as the CIDv1 it stands for
        if type(data) is memoryview and not (
            data.c_contiguous and data.ndim == 1 and data.itemsize == 1
        ):
            data = data.cast("B") if data.c_contiguous else data.tobytes()
        if len(data) > MAX_BLOCK_SIZE:
            raise LimitError(
                f"block {format_cid(key)} has {len(data)} bytes; the largest block is "
                f"{MAX_BLOCK_SIZE}"
            )
        self._write(key, data)

    def put_many(self, blocks: Iterable[tuple[CidLike, BytesLike]]) -> None:
        """Hold many blocks, as `put` does."""
        for cid, data in blocks:
            self.put(cid, data)

    @final
    def has(self, cid: CidLike) -> bool:
        """Tell whether a block is held."""
        return self._has(checked(cid))

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether it is held."""
        return [self.has(cid) for cid in cids]

    def lacks_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether a `put` is needed: for whom bytes cost a copy.

        It is for one that is not held, and for one that was found damaged.
        """
        return [not held for held in self.has_many(cids)]

    @final
    def size(self, cid: CidLike) -> int:
        """Return the number of bytes of a block without reading it.

        Raises
        ------
        BlockNotFoundError
            If it is not held.
        """
        key = checked(cid)
        size = self._size(key)
        if size is None:
            raise self._not_found(key)
        return size

    @final
    def delete(self, cid: CidLike) -> None:
        """Forget a block. It is no error if it is not held."""
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        self._delete(checked(cid))

    def flush(self) -> None:
        """Make every block that was put durable."""

    def close(self) -> None:
        """Release files and memory. What was not flushed may be lost."""

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        return BlockNotFoundError(
            f"block {format_cid(cid)} is not in {self.location}; fetch it from a place that has it"
        )

    def _wrong_length(self, cid: CidBytes, found: int, expected: int) -> CorruptBlockError:
        return CorruptBlockError(
            f"block {format_cid(cid)} in {self.location} has {found} bytes where {expected} were "
            "expected; run verify, and fetch it again from elsewhere"
        )

    def _corrupt(self, cid: CidBytes) -> CorruptBlockError:
        return CorruptBlockError(
            f"block {format_cid(cid)} in {self.location} is damaged: its bytes do not hash to "
            "its cid; run verify, and fetch it again from elsewhere"
        )


def checked(cid: CidLike) -> CidBytes:
    """Return a binary CID whose hash is known here, quickly where it is binary already."""
    key: CidBytes = cid if type(cid) is bytes else as_cid_bytes(cid)  # type: ignore[assignment]
    if key[:-DIGEST_SIZE] not in _DIGESTS:
        hash_of(key)
    return key
