"""Stores that others only read: their base, and blocks with one more beside them."""

from __future__ import annotations

from collections.abc import Iterator

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import BytesLike, CidBytes, format_cid
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
    """Blocks, and beside them one that need not be among them: the document of a subtree.

    Parameters
    ----------
    blocks : BlockStore
    cid : CidBytes
    data : bytes
        The block beside.
    """

    def __init__(self, blocks: BlockStore, cid: CidBytes, data: bytes) -> None:
        self._blocks = blocks
        self._cid = cid
        self._data = data

    # docstrings inherited

    @property
    def location(self) -> str:
        return self._blocks.location

    def _read(self, cid: CidBytes) -> BytesLike | None:
        return self._data if cid == self._cid else self._blocks.get(cid)

    def _has(self, cid: CidBytes) -> bool:
        return cid == self._cid or self._blocks.has(cid)

    def _size(self, cid: CidBytes) -> int | None:
        return len(self._data) if cid == self._cid else self._blocks.size(cid)

    def list(self) -> Iterator[CidBytes]:
        return self._blocks.list()
