"""What an earlier root has at the same place, so that what both share need not be opened.

Who walks a root beside an earlier one takes what the earlier one has for had already. What cannot
be read there is not had, and is walked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cas_zarr.cid import CidBytes
from cas_zarr.errors import CasZarrError
from cas_zarr.tree.node import Node, ShardRef, Value
from cas_zarr.tree.shards import TreeReader, get_child, get_key
from cas_zarr.tree.values import file_blocks, is_file

__all__ = ["Earlier", "not_had"]


class Earlier:
    """Reads an earlier root.

    Parameters
    ----------
    reader : TreeReader
        Where its blocks are.
    """

    def __init__(self, reader: TreeReader) -> None:
        self.reader = reader

    def child(self, old: Node | None, name: str) -> Node | None:
        """Return the child of that name, None if there is none or it cannot be read."""
        if old is None:
            return None
        try:
            return get_child(self.reader, old, name)
        except CasZarrError:
            return None

    def key(self, old: Node | None, name: str) -> Value | None:
        """Return the value of a plain key, None if there is none or it cannot be read."""
        if old is None:
            return None
        try:
            return get_key(self.reader, old, name)
        except CasZarrError:
            return None

    def below(self, refs: Sequence[ShardRef], without: Collection[ShardRef]) -> list[ShardRef]:
        """Return what shards list, but for those that are shared and so are not opened."""
        out: list[ShardRef] = []
        for ref in refs:
            if ref.level and ref not in without:
                try:
                    out.extend(self.reader.shard(ref).shards)
                except CasZarrError:
                    continue
        return out

    def file_blocks(self, old: Value | None) -> frozenset[CidBytes]:
        """Return the blocks of a value that is a file; none of another, or one out of reach."""
        if old is None or not is_file(old.cid):
            return frozenset()
        try:
            return frozenset(file_blocks(self.reader, old.cid, old.size))
        except CasZarrError:
            return frozenset()


def not_had(cid: CidBytes, error: CasZarrError) -> None:
    """Take a page that cannot be read for one that the earlier root does not have."""
