"""Blocks in memory: for tests, for small things, and as the top of a tier."""

from __future__ import annotations

from collections.abc import Iterator

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import DIGEST_SIZE, BytesLike, CidBytes

__all__ = ["MemoryBlocks"]

_MULTIHASH_SIZE = DIGEST_SIZE + 2


class MemoryBlocks(BlockStore):
    """Blocks in a dict of this process.

    Parameters
    ----------
    read_only : bool
        Whether `put` and `delete` are refused.
    """

    def __init__(self, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self._blocks: dict[bytes, tuple[CidBytes, bytes]] = {}

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
        if key not in self._blocks:
            self._blocks[key] = (cid, bytes(data))

    def _has(self, cid: CidBytes) -> bool:
        return cid[-_MULTIHASH_SIZE:] in self._blocks

    def _size(self, cid: CidBytes) -> int | None:
        held = self._blocks.get(cid[-_MULTIHASH_SIZE:])
        return None if held is None else len(held[1])

    def _delete(self, cid: CidBytes) -> None:
        self._blocks.pop(cid[-_MULTIHASH_SIZE:], None)

    def list(self) -> Iterator[CidBytes]:
        for cid, _ in list(self._blocks.values()):
            yield cid
