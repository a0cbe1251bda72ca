"""Lists of condemned blocks: what a collection of garbage will delete after a grace time.

::

    varint length of the header | header | MultihashIndexSorted, all offsets 0

The header is canonical DAG-JSON: ``{"blocks":n,"places":[name],"size":n,
"type":"cas-zarr/condemned","version":1}``. Places are the packs that held the blocks when the list
was made: a copy of a condemned block in any other pack is younger than the list, and is not deleted
by it. A list is named by 16 bytes of BLAKE3 of all of it, in hexadecimal.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.index import KEY_SIZE, PackIndex
from cas_zarr.cid import BLAKE3, decode_varint, encode_varint
from cas_zarr.codecs import dagjson
from cas_zarr.codecs.carindex import encode_index
from cas_zarr.errors import FormatError, InvalidCIDError

__all__ = ["Condemned", "encode_condemned"]

_TYPE = "cas-zarr/condemned"
_VERSION = 1


def encode_condemned(
    keys: Iterable[NDArray[np.uint8]], places: Collection[str], *, blocks: int, size: int
) -> bytes:
    """Encode a list.

    Parameters
    ----------
    keys : iterable of (n, 34) uint8
        Multihashes, in any order; one that comes twice does no harm.
    places : collection of str
        The packs that hold them.
    blocks, size : int
        How many copies there are of them in these packs, and their bytes.
    """
    header = dagjson.encode(
        {
            "type": _TYPE,
            "version": _VERSION,
            "places": [*sorted(places)],
            "blocks": blocks,
            "size": size,
        }
    )
    parts = list(keys)
    joined = np.concatenate(parts) if parts else np.empty((0, KEY_SIZE), np.uint8)
    groups = []
    for code in np.unique(joined[:, 0]).tolist():
        digests = joined[joined[:, 0] == code, 2:]
        groups.append((code, digests, np.zeros(len(digests), np.uint64)))
    return encode_varint(len(header)) + header + encode_index(groups)


@dataclass(frozen=True, slots=True, eq=False)
class Condemned:
    """A list of condemned blocks.

    Attributes
    ----------
    name : str
        32 hexadecimal digits.
    places : frozenset of str
        The packs that it condemns them in.
    blocks, size : int
        Copies of them in these packs, and their bytes.
    index : PackIndex
        The multihashes.
    """

    name: str
    places: frozenset[str]
    blocks: int
    size: int
    index: PackIndex

    @staticmethod
    def name_of(data: bytes | mmap.mmap) -> str:
        """Return the name of a list with this content."""
        return BLAKE3.digest(data)[:16].hex()

    @classmethod
    def from_bytes(cls, data: bytes | mmap.mmap, name: str) -> Condemned:
        """Read a list.

        Raises
        ------
        FormatError
            If it is damaged, or no list.
        """
        if cls.name_of(data) != name:
            raise FormatError("its bytes are not those that its name stands for")
        try:
            length, start = decode_varint(bytes(data[:10]))
        except InvalidCIDError as error:
            raise FormatError(str(error)) from None
        value = dagjson.decode(bytes(data[start : start + length]))
        if (
            not isinstance(value, dict)
            or value.get("type") != _TYPE
            or value.get("version") != _VERSION
        ):
            raise FormatError("it is no list of condemned blocks that is known here")
        places, blocks, size = value.get("places"), value.get("blocks"), value.get("size")
        if (
            not isinstance(places, list)
            or not all(isinstance(place, str) for place in places)
            or not isinstance(blocks, int)
            or not isinstance(size, int)
        ):
            raise FormatError("it has missing or wrong fields")
        return cls(name, frozenset(places), blocks, size, PackIndex(data, start + length))

    def holds(self, key: bytes) -> bool:
        """Tell whether the block of a multihash is condemned."""
        return self.index.find(key) is not None

    def holds_many(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell for each of many multihashes, (n, 34), whether its block is condemned."""
        held: NDArray[np.bool_] = self.index.find_many(keys) >= 0
        return held
