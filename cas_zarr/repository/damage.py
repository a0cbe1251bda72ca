"""What a verification finds: records of damage, and of what it hurts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cas_zarr.blocks.packcheck import PackFault
from cas_zarr.cid import CidBytes, ReadableCids, format_cid

__all__ = ["MAX_LISTED", "Box", "Damage", "HurtArray", "VerifyReport"]

MAX_LISTED = 10_000
"""Most damaged things that a report lists one by one; all of them are counted."""

Box = tuple[tuple[int, int], ...]
"""For each dimension where it begins, and where it has ended."""


@dataclass(frozen=True, slots=True, repr=False)
class Damage(ReadableCids):
    """Something that is not what it should be.

    Attributes
    ----------
    cid : CidBytes or None
        The block; None for a ref that cannot be read.
    path : str
        The key or node whose block it is; "" for a root. For a ref or a commit, its name.
    reason : str
        What is wrong, and where the block lies.
    kind : str
        ``value``, ``page``, ``shard``, ``file`` (an inner node of a large value), ``root``,
        ``commit``, ``signature``, ``ref``, ``log``, ``marker`` or ``record``.
    version : str
        A version in which it was met, as other commands take it; "" for what belongs to none.
    """

    cid: CidBytes | None
    path: str
    reason: str
    kind: str = "value"
    version: str = ""

    def __str__(self) -> str:
        named = "" if self.cid is None else f" (block {format_cid(self.cid)})"
        return f"{self.path or 'root'}{named}: {self.reason}"

    def as_json(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "kind": self.kind,
            "cid": None if self.cid is None else format_cid(self.cid),
            "path": self.path,
            "version": self.version,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class HurtArray:
    """Chunks of an array that cannot be read.

    Attributes
    ----------
    path : str
    version : str
        The first version in which they were met; other versions that have the same chunks are
        hurt as well.
    chunks : int
        How many chunks.
    boxes : tuple of Box
        Where they are: boxes of chunk coordinates that do not overlap. Some of the cells of the box
        of a damaged page may hold no chunk. Empty where all of the array is meant.
    shape, chunk_shape : tuple of int or None
        Of the array, where its metadata can be read and says so.
    """

    path: str
    version: str
    chunks: int
    boxes: tuple[Box, ...]
    shape: tuple[int, ...] | None = None
    chunk_shape: tuple[int, ...] | None = None

    @property
    def indices(self) -> tuple[Box, ...] | None:
        """The boxes as ranges of the array's indices; None where its chunks are not known."""
        if self.shape is None or self.chunk_shape is None:
            return None
        if not self.boxes:
            return (tuple((0, length) for length in self.shape),)
        return tuple(
            tuple(
                (min(start * chunk, length), min(stop * chunk, length))
                for (start, stop), chunk, length in zip(
                    box, self.chunk_shape, self.shape, strict=False
                )
            )
            for box in self.boxes
        )

    def as_json(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "path": self.path,
            "version": self.version,
            "chunks": self.chunks,
            "boxes": self.boxes,
            "indices": self.indices,
            "shape": self.shape,
            "chunk_shape": self.chunk_shape,
        }


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `Repository.verify` found.

    Attributes
    ----------
    roots, commits, blocks, size : int
        What was checked; `size` in bytes. A block that is used twice is checked once.
    damaged : tuple of Damage
        What is broken or missing; at most `MAX_LISTED` of it.
    complete : bool
        False if a damaged block hid what lies below it, which could not be checked then.
    damages : int
        How many things are broken or missing.
    read, read_size : int
        The blocks, and their bytes, that were read and hashed. The others were looked for.
    promised : int
        Blocks that are not here, and that a remote has promised to give when they are needed.
    arrays : tuple of HurtArray
        Which arrays and chunks the damage hurts.
    packs : int
        The packs that were checked.
    pack_faults : tuple of PackFault
        What is wrong with them, whether it hurts a version or not.
    signed, unsigned : int
        Commits with a valid signature and without any, if signatures were checked.
    sample : float or None
        Share of the values that was read, if not all or none.
    seed : int
        What chose them: another one chooses others.
    """

    roots: int
    commits: int
    blocks: int
    size: int
    damaged: tuple[Damage, ...]
    complete: bool
    damages: int = 0
    read: int = 0
    read_size: int = 0
    promised: int = 0
    arrays: tuple[HurtArray, ...] = ()
    packs: int = 0
    pack_faults: tuple[PackFault, ...] = ()
    signed: int = 0
    unsigned: int = 0
    sample: float | None = None
    seed: int = field(default=0)

    @property
    def ok(self) -> bool:
        """Whether everything is whole."""
        return not self.damaged and not self.pack_faults and self.complete

    def as_json(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "ok": self.ok,
            "complete": self.complete,
            "roots": self.roots,
            "commits": self.commits,
            "blocks": self.blocks,
            "bytes": self.size,
            "read_blocks": self.read,
            "read_bytes": self.read_size,
            "promised": self.promised,
            "sample": self.sample,
            "seed": self.seed,
            "signed": self.signed,
            "unsigned": self.unsigned,
            "packs": self.packs,
            "damages": self.damages,
            "damaged": [damage.as_json() for damage in self.damaged],
            "arrays": [array.as_json() for array in self.arrays],
            "pack_faults": [
                {
                    "pack": fault.pack,
                    "offset": fault.offset,
                    "cid": None if fault.cid is None else format_cid(fault.cid),
                    "reason": fault.reason,
                }
                for fault in self.pack_faults
            ],
        }
