"""The contract of a block store whose garbage can be collected.

A collection surveys the blocks (`Marks`), marks those that are in use, and condemns others: it
writes a list of them. A store that was told of a list (`avoid`) takes a condemned block for absent
when it is put, and holds it anew, in a place that the list does not name. After the grace time the
list is swept: what is still not in use goes, from the places that the list names alone.

What makes this safe beside writers is in `cas_zarr.repository.guard`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.condemned import Condemned

__all__ = ["CollectableBlocks", "Marks", "Repacked", "Swept"]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep, or several, deleted.

    Attributes
    ----------
    blocks, size : int
        Copies of blocks, and their bytes.
    rewritten, removed : int
        Packs that were written anew without some of their blocks, and packs that went as a whole.
    freed : int
        Bytes that the files of the packs are smaller by.
    damaged : tuple of str
        One message for each pack that is damaged in its structure and was left as it is.
    """

    blocks: int = 0
    size: int = 0
    rewritten: int = 0
    removed: int = 0
    freed: int = 0
    damaged: tuple[str, ...] = ()

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.blocks + other.blocks,
            self.size + other.size,
            self.rewritten + other.rewritten,
            self.removed + other.removed,
            self.freed + other.freed,
            (*self.damaged, *other.damaged),
        )


@dataclass(frozen=True, slots=True)
class Repacked:
    """What `repack` did.

    Attributes
    ----------
    before, after : int
        Number of packs.
    freed : int
        Bytes that their files are smaller by.
    damaged : tuple of str
        One message for each pack that is damaged in its structure and was left as it is.
    """

    before: int
    after: int
    freed: int
    damaged: tuple[str, ...] = ()


class Marks(ABC):
    """A mark for each copy of a block that a store held when it was surveyed.

    A store that holds a block twice counts it twice. What comes later, from whomever, is neither
    counted nor condemned nor swept.

    Attributes
    ----------
    blocks, size : int
        Copies, and their bytes.
    """

    blocks: int
    size: int

    @abstractmethod
    def mark(self, keys: NDArray[np.uint8]) -> None:
        """Mark the blocks of many multihashes, (n, 34), as used. One that is not held is passed."""

    @abstractmethod
    def used(self) -> tuple[int, int]:
        """Return how many copies are marked, and their bytes."""

    @abstractmethod
    def condemn(self, max_unused: float) -> bytes | None:
        """Return a list of blocks that are not marked; None if there is nothing to condemn.

        Parameters
        ----------
        max_unused : float
            The share of all bytes that may stay unused where packs are used in part.
        """

    @abstractmethod
    def sweep(self, condemned: Condemned, *, dry_run: bool = False) -> Swept:
        """Delete what a list condemned and is not marked, from the places that it names.

        Parameters
        ----------
        condemned : Condemned
        dry_run : bool
            Whether to count only.

        Raises
        ------
        StorageError
            If the disk failed. Nothing else was deleted; sweep again.
        """

    def set_references_aside(self, before: int) -> bool:  # noqa: ARG002
        """Hide references to blocks elsewhere that are not marked; tell whether there are any.

        `drop_references` or `restore_references` has to follow.

        Parameters
        ----------
        before : int
            Those that were written after this, in microseconds since 1970-01-01 UTC, stay.
        """
        return False

    def drop_references(self) -> int:
        """Forget what was set aside, but what is marked by now; return how many."""
        return 0

    def restore_references(self) -> None:
        """Take back what was set aside."""


class CollectableBlocks(BlockStore):
    """Blocks whose garbage can be collected."""

    _condemned: tuple[Condemned, ...] = ()
    _epoch = -1

    def avoid(self, lists: Sequence[Condemned], epoch: int) -> None:
        """Take what these lists condemn for absent when it is put, and nothing else.

        What is held is looked at anew: it may have been deleted meanwhile.

        Parameters
        ----------
        lists : sequence of Condemned
        epoch : int
            Grows with every list that is published. Lists of an older epoch than those that are
            known here are passed over: users of one store may learn of them in any order.
        """
        if epoch >= self._epoch:
            self._epoch, self._condemned = epoch, tuple(lists)

    @abstractmethod
    def condemned_many(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell for each of many multihashes, (n, 34), whether a list condemns all copies of it."""

    @abstractmethod
    def survey(self) -> Marks:
        """Return marks, none set, for all blocks that are held durably now."""

    @abstractmethod
    def write_list(self, data: bytes) -> Condemned:
        """Hold a list, durably."""

    @abstractmethod
    def read_list(self, name: str) -> Condemned:
        """Return a list.

        Raises
        ------
        BlockNotFoundError
            If there is none of that name.
        FormatError
            If it is damaged.
        """

    @abstractmethod
    def delete_lists(self, keep: Collection[str]) -> None:
        """Remove all lists but those of some names."""

    @abstractmethod
    def collecting(self) -> AbstractContextManager[None]:
        """Return a context in which nobody else collects here; ConflictError if someone does."""

    def tidy(self) -> None:
        """Merge packs if there are too many; a failure leaves them as they are."""

    def repack(self) -> Repacked:
        """Put the blocks into as few packs as is sensible, each block once; nothing in memory."""
        return Repacked(0, 0, 0)
