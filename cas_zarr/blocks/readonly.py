"""Stores that others only read: their base, and blocks with more beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cas_zarr.blocks.base import BlockStore, checked
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BytesLike, CidBytes, CidLike, format_cid
from cas_zarr.errors import ReadOnlyError

__all__ = ["Overlaid", "ReadOnlyBlocks"]


class ReadOnlyBlocks(BlockStore):
    """A store that others only read; it lists nothing unless a backend can."""

    read_only = True

    def _write(self, cid: CidBytes, data: BytesLike) -> None:  # noqa: ARG002
        raise self._refusal(cid)

    def _delete(self, cid: CidBytes) -> None:
        raise self._refusal(cid)

    def _refusal(self, cid: CidBytes) -> ReadOnlyError:
        return ReadOnlyError(f"{self.location} is for reading only; {format_cid(cid)} stays as is")

    def list(self) -> Iterator[CidBytes]:
        """Yield nothing."""
        return iter(())


class Overlaid(ReadOnlyBlocks):
    """Blocks, and beside them some that need not be among them: documents of subtrees.

    Parameters
    ----------
    blocks : BlockStore
        Asked for what is not beside it, and for many at once as many.
    cid, data : CidBytes and bytes, optional
        The first of those beside it.

    Attributes
    ----------
    made : MemoryBlocks
        Those beside it; more can be put there.
    """

    def __init__(
        self, blocks: BlockStore, cid: CidBytes | None = None, data: BytesLike = b""
    ) -> None:
        self.remote = blocks.remote
        self.blocks = blocks
        self.made = MemoryBlocks()
        if cid is not None:
            self.made.put(cid, data)

    # docstrings inherited

    @property
    def location(self) -> str:
        return self.blocks.location

    def _read(self, cid: CidBytes) -> BytesLike | None:
        data = self.made._read(cid)
        return self.blocks.get(cid) if data is None else data

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        keys = [checked(cid) for cid in cids]
        made = self.made.get_held(keys)
        if not made:
            return self.blocks.get_many(keys)
        others = iter(self.blocks.get_many([key for key in keys if key not in made]))
        return [made[key] if key in made else next(others) for key in keys]

    def get_held(self, cids: Sequence[CidLike]) -> dict[CidBytes, bytes]:
        made = self.made.get_held(cids)
        return made | self.blocks.get_held([cid for cid in map(checked, cids) if cid not in made])

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        keys = [checked(cid) for cid in cids]
        flags = self.made.has_many(keys)
        others = [key for key, made in zip(keys, flags, strict=True) if not made]
        rest = iter(self.blocks.has_many(others) if others else ())
        return [made or next(rest) for made in flags]

    def _has(self, cid: CidBytes) -> bool:
        return self.made._has(cid) or self.blocks.has(cid)

    def _size(self, cid: CidBytes) -> int | None:
        size = self.made._size(cid)
        return self.blocks.size(cid) if size is None else size

    def list(self) -> Iterator[CidBytes]:
        return self.blocks.list()
