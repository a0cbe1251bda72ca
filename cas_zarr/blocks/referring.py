"""Packs, and beside them references: the blocks of a repository that may lie elsewhere.

A block that is referred to is held: it is read where it lies, and never copied on its own. To put
it copies it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.collectable import Marks, Swept
from cas_zarr.blocks.condemned import Condemned
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.references import ReferencedBlocks, References
from cas_zarr.cid import CidBytes, CidLike, matches
from cas_zarr.errors import BlockNotFoundError, CorruptBlockError
from cas_zarr.parallel import map_ordered

__all__ = ["ReferringBlocks"]


class ReferringBlocks(LocalBlocks):
    """Blocks in a folder of packs, and those that files of references lead to.

    Parameters
    ----------
    path : str or PathLike
        The folder that holds the packs.
    references : str or PathLike
        The folder of references; it need not be there.
    create, read_only : bool
        As of `LocalBlocks`.

    Attributes
    ----------
    references : References
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        references: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
    ) -> None:
        self.references = References(references)
        self._elsewhere = ReferencedBlocks(self.references)
        super().__init__(path, create=create, read_only=read_only)

    # docstrings inherited

    def _read(self, cid: CidBytes) -> bytes | None:
        try:
            data = super()._read(cid)
        except CorruptBlockError:
            data = self._elsewhere._read(cid)
            if data is None:
                raise
            return data
        return self._elsewhere._read(cid) if data is None else data

    def _read_into(self, cid: CidBytes, out: memoryview) -> int:
        damaged: CorruptBlockError | None = None
        try:
            if super()._read_into(cid, out):
                return True
        except CorruptBlockError as error:
            damaged = error
        data = self._elsewhere._read(cid)
        if data is None:
            if damaged is not None:
                raise damaged
            return False
        if len(data) != len(out):
            raise self._corrupt(cid)
        out[:] = data
        return True

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        data = super()._read_other_copy(cid)
        if data is None:
            data = self._elsewhere._read(cid)
        return data if data is not None and matches(cid, data) else None

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        if self.references.tables():  # where they lie, order does not matter
            return map_ordered(self.get, cids)
        return super().get_many(cids)

    def _has(self, cid: CidBytes) -> bool:
        return super()._has(cid) or self._elsewhere._has(cid)

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        flags = list(super().has_many(cids))
        if not all(flags):
            left = [row for row, held in enumerate(flags) if not held]
            found = self._elsewhere.has_many([cids[row] for row in left])
            for row, held in zip(left, found, strict=True):
                flags[row] = held
        return flags

    def has_array(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        held = super().has_array(keys)
        left = np.flatnonzero(~held)
        if len(left):
            held[left] = self.references.has_array(keys[left])
        return held

    def elsewhere(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell for each of many multihashes, (n, 34), whether no pack has it and a source does."""
        out = np.zeros(len(keys), bool)
        if self.references.tables():
            left = np.flatnonzero(~super().has_array(keys))
            out[left] = self.references.has_array(keys[left])
        return out

    def _size(self, cid: CidBytes) -> int | None:
        if LocalBlocks._has(self, cid):
            return super()._size(cid)
        return self._elsewhere._size(cid)

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        if self.references.damaged or any(self.references.find(cid)):
            return self._elsewhere._not_found(cid)
        return super()._not_found(cid)

    def _corrupt(self, cid: CidBytes) -> CorruptBlockError:
        if not LocalBlocks._has(self, cid):
            return self._elsewhere._corrupt(cid)
        return super()._corrupt(cid)

    def close(self) -> None:
        super().close()
        self.references.close()

    def survey(self) -> Marks:
        return _Marks(super().survey(), self.references)

    def _after_fork(self) -> None:
        super()._after_fork()
        self.references = References(self.references.path)
        self._elsewhere = ReferencedBlocks(self.references)


class _Marks(Marks):
    """Marks for packs, and for references that were there when they were surveyed."""

    def __init__(self, packs: Marks, references: References) -> None:
        self._packs = packs
        self._references = references
        self._tables = dict(references.tables())
        self._marks = {name: np.zeros(len(table), bool) for name, table in self._tables.items()}
        self._count()

    # docstrings inherited

    def mark(self, keys: NDArray[np.uint8]) -> None:
        self._packs.mark(keys)
        for name, table in self._tables.items():
            rows = table.find_many(keys)
            self._marks[name][rows[rows >= 0]] = True

    def used(self) -> tuple[int, int]:
        return self._packs.used()

    def condemn(self, max_unused: float) -> bytes | None:
        return self._packs.condemn(max_unused)

    def sweep(self, condemned: Condemned, *, dry_run: bool = False) -> Swept:
        swept = self._packs.sweep(condemned, dry_run=dry_run)
        self._count()
        return swept

    def set_references_aside(self, before: int) -> bool:
        return self._references.set_aside(self._marks, before)

    def drop_references(self) -> int:
        return self._references.drop(self._marks)

    def restore_references(self) -> None:
        self._references.restore()

    def _count(self) -> None:
        self.blocks, self.size = self._packs.blocks, self._packs.size
