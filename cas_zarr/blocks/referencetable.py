"""A file of references: which blocks lie elsewhere, and where; see `cas_zarr.blocks.references`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import MAX_BLOCK_SIZE
from cas_zarr.blocks.carsource import is_url
from cas_zarr.blocks.index import KEY_SIZE
from cas_zarr.cid import BLAKE3, DIGEST_SIZE, CidBytes
from cas_zarr.codecs import dagjson
from cas_zarr.errors import FormatError

__all__ = ["Place", "Table"]

_MAGIC: Final = b"cas-zarr/refs/1\n"
_TYPE: Final = "cas-zarr/references"
_VERSION: Final = 1
_ROW: Final = np.dtype(
    [("key", "u1", (KEY_SIZE,)), ("source", "<u4"), ("offset", "<u8"), ("size", "<u4")]
)
_MAX_OFFSET: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a block lie.

    Attributes
    ----------
    source : str
        An absolute path, or a URL of HTTP.
    offset, size : int
        The range, in bytes.
    """

    source: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"bytes {self.offset} to {self.offset + self.size} of {self.source}"

    def is_there(self) -> bool:
        """Tell whether the source has these bytes; a server is not asked."""
        return self.offset + self.size <= _length(self.source)


class Table:
    """A file of references, read into memory.

    Parameters
    ----------
    location : str
        What the names are relative to; "" where they are whole.
    names : sequence of str
        Sources; "" is the location itself.
    rows : array of `_ROW`
        Sorted by digest, each multihash once.
    """

    def __init__(self, location: str, names: Sequence[str], rows: NDArray[np.void]) -> None:
        self.location = location
        self.names = tuple(names)
        self.rows = rows
        self._heads = _heads(rows["key"])

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, location: str, places: Iterable[tuple[CidBytes, str, int, int]]) -> Table:
        """Make one of CIDs, each with the name of its source, offset and size."""
        names: dict[str, int] = {}
        found: dict[bytes, tuple[int, int, int]] = {}
        for cid, name, offset, size in places:
            row = names.setdefault(name, len(names)), offset, size
            found.setdefault(bytes(cid[-KEY_SIZE:]), row)
        rows = np.zeros(len(found), _ROW)
        if found:
            joined = b"".join(found)
            rows["key"] = np.frombuffer(joined, np.uint8).reshape(-1, KEY_SIZE)
            columns = np.array(list(found.values()), np.uint64)
            rows["source"], rows["offset"], rows["size"] = columns.T
        return cls(location, tuple(names), rows[np.argsort(_heads(rows["key"]), kind="stable")])

    def source(self, row: int) -> str:
        """Return the path or URL of a source by its number."""
        name = self.names[row]
        return (
            f"{self.location.rstrip('/')}/{name}"
            if self.location and name
            else self.location or name
        )

    def place(self, row: int) -> Place:
        """Return where the bytes of a row lie."""
        found = self.rows[row]
        return Place(self.source(int(found["source"])), int(found["offset"]), int(found["size"]))

    def there(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Tell for each of some rows whether its source is there, and long enough."""
        sources, numbers = np.unique(rows["source"], return_inverse=True)
        lengths = np.array([_length(self.source(row)) for row in sources.tolist()], np.int64)
        ends = (rows["offset"] + rows["size"]).astype(np.int64)
        there: NDArray[np.bool_] = ends <= lengths[numbers]
        return there

    def find(self, key: bytes) -> int | None:
        """Return the row of a multihash, or None."""
        head = np.uint64(int.from_bytes(key[2:10], "big"))
        row = int(np.searchsorted(self._heads, head))
        while row < len(self.rows) and self._heads[row] == head:
            if self.rows["key"][row].tobytes() == key:
                return row
            row += 1
        return None

    def find_many(self, keys: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Return the row of each of many multihashes, (n, 34); -1 where there is none."""
        if not len(self.rows):
            return np.full(len(keys), -1)
        heads = _heads(keys)
        rows = np.minimum(np.searchsorted(self._heads, heads), len(self.rows) - 1)
        same = (self.rows["key"][rows] == keys).all(axis=1)
        near = ~same & (self._heads[rows] == heads)  # two hash functions, or a wonder
        rows[~same] = -1
        for at in np.flatnonzero(near).tolist():
            found = self.find(keys[at].tobytes())
            rows[at] = -1 if found is None else found
        return rows

    def kept(self, mask: NDArray[np.bool_]) -> Table:
        """Return a table of some of the rows, with the names that they need."""
        rows = self.rows[mask]
        needed, numbers = np.unique(rows["source"], return_inverse=True)
        rows["source"] = numbers
        return Table(self.location, [self.names[row] for row in needed.tolist()], rows)

    def moved(self, old: str, new: str) -> Table | None:
        """Return a table with other sources instead of those at `old`; None if it has none."""
        location = _moved(self.location, old, new)
        if self.location and location is not None:
            return Table(location, self.names, self.rows)
        sources = [self.source(row) for row in range(len(self.names))]
        moved = [_moved(source, old, new) for source in sources]
        if all(source is None for source in moved):
            return None
        names = [a if b is None else b for a, b in zip(sources, moved, strict=True)]
        return Table("", names, self.rows)

    def to_bytes(self) -> bytes:
        """Return the file."""
        header = dagjson.encode(
            {
                "type": _TYPE,
                "version": _VERSION,
                "location": self.location,
                "names": list(self.names),
                "count": len(self.rows),
            }
        )
        data = b"".join((_MAGIC, len(header).to_bytes(8, "little"), header, self.rows.tobytes()))
        return data + BLAKE3.digest(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Table:
        """Read a file; FormatError if it is damaged."""
        if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + 8 + DIGEST_SIZE:
            raise FormatError("it is no file of references of a version that is known here")
        body = memoryview(data)[:-DIGEST_SIZE]
        if BLAKE3.digest(body) != data[-DIGEST_SIZE:]:
            raise FormatError("its bytes are not those that were written")
        begin = len(_MAGIC) + 8
        end = begin + int.from_bytes(data[len(_MAGIC) : begin], "little")
        header = dagjson.decode(bytes(body[begin:end]))
        if not isinstance(header, dict) or header.get("type") != _TYPE:
            raise FormatError("its header is none of references")
        if header.get("version") != _VERSION:
            raise FormatError(f"it has version {header.get('version')!r}; {_VERSION} is known here")
        location, names, count = (header.get(name) for name in ("location", "names", "count"))
        if (
            not isinstance(location, str)
            or not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or type(count) is not int
            or len(body) - end != count * _ROW.itemsize
        ):
            raise FormatError("its header has missing or wrong fields")
        rows = np.frombuffer(body[end:], _ROW)
        heads = _heads(rows["key"])
        if count and (
            int(rows["source"].max()) >= len(names)
            or int(rows["size"].max()) > MAX_BLOCK_SIZE
            or int(rows["offset"].max()) > _MAX_OFFSET
            or not (heads[:-1] <= heads[1:]).all()
        ):
            raise FormatError("its rows are out of order or out of bounds")
        return cls(location, [str(name) for name in names], rows)


def _heads(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, 2:10]).view(">u8").ravel().astype(np.uint64)


def _length(source: str) -> int:
    """Return the length of a file, -1 where there is none; a server is believed to have all."""
    if is_url(source):
        return np.iinfo(np.int64).max
    try:
        found = os.stat(source)
    except (OSError, ValueError):
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _moved(source: str, old: str, new: str) -> str | None:
    """Return where a source is once `old` is `new`; None if it is not at or below `old`."""
    old, new = old.rstrip("/"), new.rstrip("/")
    if source.rstrip("/") == old:
        return new or "/"
    return new + source[len(old) :] if source.startswith(old + "/") else None
