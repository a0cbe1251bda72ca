"""What a session has set and deleted since its root was made: key → value, nothing classified."""

from __future__ import annotations

from typing import Final

from cas_zarr.cid import CidBytes
from cas_zarr.codecs.shardindex import ShardLayout
from cas_zarr.tree.keys import DOCUMENTS
from cas_zarr.tree.node import Document, Value

__all__ = ["ABSENT", "CLEAR", "Changes", "is_document", "pack_value", "unpack_value"]

ABSENT: Final = object()
"""What `Changes.get` says of a key that was deleted."""
CLEAR: Final = object()
"""What `Changes.get` says of a key that was not touched."""

_UNTOUCHED: Final = b"untouched"  # told apart by identity


def pack_value(cid: CidBytes, size: int) -> bytes:
    """Return CID and size as one small object: a session holds one for each changed chunk."""
    return cid + size.to_bytes(8, "little")


def unpack_value(packed: bytes) -> Value:
    """Return the link that `pack_value` packed."""
    return Value(CidBytes(packed[:-8]), int.from_bytes(packed[-8:], "little"))


class Changes:
    """Keys that were set or deleted, over a root that stays as it is.

    Attributes
    ----------
    values : dict of str to bytes or None
        Packed links of the values that were set; None for a key that was deleted.
    docs : dict of str to bytes or None
        The same for documents, with their exact bytes.
    layouts : dict of str to ShardLayout or None
        How the values past one block were cut.
    cleared : set of str
        Folders ("" or with a slash at the end) below which the root's keys are gone.
    """

    __slots__ = ("cleared", "docs", "layouts", "values")

    def __init__(self) -> None:
        self.values: dict[str, bytes | None] = {}
        self.docs: dict[str, bytes | None] = {}
        self.layouts: dict[str, ShardLayout | None] = {}
        self.cleared: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.values or self.docs or self.cleared)

    def __len__(self) -> int:
        return len(self.values) + len(self.docs)

    def set_value(self, key: str, packed: bytes) -> None:
        """Bind a key to a value that is stored."""
        self.values[key] = packed

    def set_document(self, key: str, data: bytes) -> None:
        """Bind a document's key to its bytes."""
        self.docs[key] = data

    def delete(self, key: str) -> None:
        """Unbind a key."""
        if is_document(key):
            self.docs[key] = None
        else:
            self.values[key] = None
            self.layouts.pop(key, None)

    def clear(self, folder: str) -> None:
        """Unbind every key in a folder ("" or with a slash at the end)."""
        for bound in (self.values, self.docs, self.layouts):
            for key in [key for key in bound if key.startswith(folder)]:
                del bound[key]
        # replaced as a whole: other threads go through it
        self.cleared = {f for f in self.cleared if not f.startswith(folder)} | {folder}

    def hides(self, key: str) -> bool:
        """Tell whether a key of the root lies in a folder that was cleared."""
        cleared, end = self.cleared, 0
        while cleared and key[:end] not in cleared:
            end = key.find("/", end) + 1
            if end == 0:
                return False
        return bool(cleared)

    def get(self, key: str) -> Document | object:
        """Return what is bound to a key, `ABSENT` if it was deleted, `CLEAR` if nothing changed."""
        packed = self.values.get(key, _UNTOUCHED)  # asked once: another thread may clear it
        if packed is not _UNTOUCHED:
            return ABSENT if packed is None else unpack_value(packed)
        data = self.docs.get(key, _UNTOUCHED)
        if data is not _UNTOUCHED:
            return ABSENT if data is None else data
        if self.cleared and self.hides(key):
            return ABSENT
        return CLEAR


def is_document(key: str) -> bool:
    """Tell whether a key is that of a metadata document."""
    return key.rpartition("/")[2] in DOCUMENTS
