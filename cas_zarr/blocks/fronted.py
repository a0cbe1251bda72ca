"""Blocks in a place far away, with a cache in front of it.

What is far away is what counts: all is written there, and what is held is what it holds. The cache
spares round trips, and whatever goes wrong with it costs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import RAW, BytesLike, CidBytes, CidLike, codec_of
from cas_zarr.errors import BlockNotFoundError

__all__ = ["FrontedBlocks"]

_T = TypeVar("_T")

_SMALL: Final = 16 << 10  # bytes up to which a value that is written is kept as well


class FrontedBlocks(BlockStore):
    """Blocks far away, read through a cache.

    Parameters
    ----------
    cache : BlockStore
        A `CacheBlocks` or `RecentBlocks`. Keeps what is read, and of what is written all that is
        likely to be read soon: documents, pages, and values of up to 16 KiB.
    behind : BlockStore
        Holds the blocks.

    Attributes
    ----------
    behind : BlockStore
    tier : TieredBlocks
        Both, for who fetches ahead.
    """

    def __init__(self, cache: BlockStore, behind: BlockStore) -> None:
        self.behind = behind
        self.tier: TieredBlocks = _Tier(cache, behind)
        self.read_only = behind.read_only
        self.remote = behind.remote

    @property
    def location(self) -> str:
        return self.behind.location

    def __repr__(self) -> str:
        return f"FrontedBlocks({self.tier.local!r}, {self.behind!r})"

    # -- reading ------------------------------------------------------------------------------

    def _read(self, cid: CidBytes) -> BytesLike | None:
        return self.tier._read(cid)

    def _read_into(self, cid: CidBytes, out: memoryview) -> int:
        return self.tier._read_into(cid, out)

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        return self.tier._read_other_copy(cid)

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        """Return the bytes of many blocks, in order, each verified; what must be is fetched."""
        return self.tier.get_many(cids)

    def get_held(self, cids: Sequence[CidLike]) -> dict[CidBytes, bytes]:
        """Return those of many blocks that are held, verified; a damaged one counts as not held."""
        return self.tier.get_held(cids)

    def _has(self, cid: CidBytes) -> bool:
        return self.behind.has(cid)

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether it is held behind the cache."""
        return self.behind.has_many(cids)

    def _size(self, cid: CidBytes) -> int | None:
        return self.behind._size(cid)

    def list(self) -> Iterator[CidBytes]:
        """Yield the CID of every block that is held behind the cache."""
        return self.behind.list()

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        return self.behind._not_found(cid)

    # -- writing ------------------------------------------------------------------------------

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        self.behind.put(cid, data)
        if len(data) <= _SMALL or codec_of(cid) != RAW:
            self.tier.local.put(cid, data)

    def _delete(self, cid: CidBytes) -> None:
        self.behind.delete(cid)
        self.tier.local.delete(cid)

    def flush(self) -> None:
        """Make every block that was put durable, where it is held."""
        self.behind.flush()

    def close(self) -> None:
        """Release files and memory of both."""
        self.tier.close()


class _Tier(TieredBlocks):
    """A tier of one place that has to answer: why it does not is told as it is."""

    def __init__(self, cache: BlockStore, behind: BlockStore) -> None:
        super().__init__(cache, [behind])
        self._place = behind

    # docstrings inherited

    def _ask(self, question: Callable[[BlockStore], _T | None], cid: CidBytes) -> _T | None:  # noqa: ARG002
        try:
            return question(self._place)
        except BlockNotFoundError:
            return None

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        return self._place._not_found(cid)
