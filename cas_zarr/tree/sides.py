"""What one side of a merge did to the chunks of a tree, as columns."""

from __future__ import annotations

import numpy as np

from cas_zarr.cid import CidBytes
from cas_zarr.tree.apply import ChunkEdit
from cas_zarr.tree.changes import unpack_value
from cas_zarr.tree.chunktree import Value
from cas_zarr.tree.descent import alike, matches
from cas_zarr.tree.diff import NodeChange
from cas_zarr.tree.morton import Codes, search
from cas_zarr.tree.page import CID_SIZE
from cas_zarr.tree.table import Table
from cas_zarr.tree.view import TreeView

__all__ = ["Column", "Rows", "edit_of"]


class Rows:
    """The chunks of one tree that one side changed, but for those that are dealt with."""

    __slots__ = ("change", "dropped", "form")

    def __init__(self, change: NodeChange, form: str) -> None:
        self.change = change
        self.form = form
        self.dropped: list[Codes] = []

    def drop(self, codes: Codes) -> None:
        """Leave out what the other side did too, or what was decided."""
        if len(codes):
            self.dropped.append(codes)

    def tables(self) -> tuple[Table, Codes]:
        """Return the chunks that were set, and the codes of others that were deleted."""
        old, new = self.change.tables(self.form)
        gone = np.ones(len(old), bool)
        gone[matches(old.codes, new.codes)[0]] = False
        deletes = old.codes[gone]
        for codes in self.dropped:
            kept = np.ones(len(new), bool)
            kept[matches(new.codes, codes)[0]] = False
            new = new.take(kept)
            kept = np.ones(len(deletes), bool)
            kept[matches(deletes, codes)[0]] = False
            deletes = deletes[kept]
        return new, deletes

    def __bool__(self) -> bool:
        if not self.dropped:
            return True
        sets, deletes = self.tables()
        return bool(len(sets) or len(deletes))


class Column:
    """What became of the chunks that one side changed, by their ascending codes."""

    def __init__(self, old: Table, new: Table) -> None:
        gone = np.ones(len(old), bool)
        gone[matches(old.codes, new.codes)[0]] = False
        codes = np.concatenate(alike(new.codes, old.codes[gone]))
        order = np.argsort(codes, kind="stable")
        packed = np.zeros((len(codes), CID_SIZE + 8), np.uint8)
        packed[: len(new), :CID_SIZE] = new.cids
        packed[: len(new), CID_SIZE:] = (
            np.ascontiguousarray(new.sizes, "<u8").view(np.uint8).reshape(-1, 8)
        )
        self.codes: Codes = codes[order]
        self.packed = packed[order]
        self.old = old

    def after(self, row: int) -> Value | None:
        """Return what is there; None if it was deleted."""
        packed = self.packed[row].tobytes()
        return unpack_value(packed) if packed[0] else None

    def before(self, row: int) -> Value | None:
        """Return what was there."""
        code = int(self.codes[row])
        place = search(self.old.codes, code)
        if place == len(self.old) or int(self.old.codes[place]) != code:
            return None
        return Value(CidBytes(self.old.cids[place].tobytes()), int(self.old.sizes[place]))


def edit_of(view: TreeView, change: NodeChange, form: str, rows: Rows) -> ChunkEdit:
    """Return the chunks that one side changed as an edit of another version."""
    whole = None
    if not rows.dropped:
        before, after = change.trees(form)
        whole = after if before is None else None
    return ChunkEdit(change.path, form, rows.tables, view.layout(change.path), whole)
