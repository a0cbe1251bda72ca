"""Names of the objects that hold blocks.

::

    blocks/<last two characters of the cid>/<cid>
    rescued/<last two characters of the cid>/<cid>

The CID is that of the block as raw, in base32: blocks are found by their multihash. A list of
condemned blocks names one of these two places. What comes into use again while such a list is
pending is written into the other one, for the list's is swept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import checked
from cas_zarr.cid import DIGEST_SIZE, RAW, CidBytes, as_cid_bytes, format_cid
from cas_zarr.errors import InvalidCIDError

__all__ = ["KEY_SIZE", "PLACES", "cid_at", "folders_of", "keys_at", "name_in"]

PLACES: Final = ("blocks", "rescued")
"""Folders of blocks, in the order in which they are looked through."""

KEY_SIZE: Final = DIGEST_SIZE + 2
"""Bytes of a multihash."""

_AS_RAW: Final = bytes([1, RAW])
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_TEXT: Final = len(format_cid(CidBytes(_AS_RAW + bytes(KEY_SIZE))))
_SPARE_BITS: Final = 5 * (_TEXT - 1) - 8 * (KEY_SIZE + 2)  # that the last letter has, all zero
_VALUES: Final = np.full(256, 255, np.uint8)
_VALUES[np.frombuffer(_LETTERS.encode(), np.uint8)] = np.arange(32)


def name_in(place: str, key: bytes) -> str:
    """Return the name of the object of a multihash in one of the places."""
    text = format_cid(CidBytes(_AS_RAW + key))
    return f"{place}/{text[-2:]}/{text}"


def cid_at(name: str) -> CidBytes | None:
    """Return the CID of the block that an object of that name holds; None if it holds none."""
    place, _, rest = name.partition("/")
    try:
        cid = checked(as_cid_bytes(rest.rpartition("/")[2]))
    except InvalidCIDError:
        return None
    known = place in PLACES and name_in(place, cid[-KEY_SIZE:]) == name
    return cid if known else None


def keys_at(names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the multihashes of the blocks in many objects, and which of the names have one.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    keys : array of uint8, shape (n, 34)
        Of those that have one, in order.
    found : array of bool, shape (len(names),)
    """
    ends = [name.rpartition("/")[2] for name in names]
    found = np.array([len(end) == _TEXT and end.isascii() for end in ends], bool)
    joined = "".join(end for end, fits in zip(ends, found, strict=True) if fits)
    letters = np.frombuffer(joined.encode(), np.uint8).reshape(-1, _TEXT)
    values = _VALUES[letters[:, 1:]]
    bits = np.unpackbits(values[:, :, None], axis=2)[:, :, 3:].reshape(-1, 5 * (_TEXT - 1))
    raw = np.packbits(bits[:, : 8 * (KEY_SIZE + 2)], axis=1)
    sound = (values < 32).all(axis=1) & (letters[:, 0] == ord("b"))
    sound &= (raw[:, :2] == np.frombuffer(_AS_RAW, np.uint8)).all(axis=1)
    sound &= raw[:, 3] == DIGEST_SIZE
    found[found] = sound
    return raw[sound, 2:], found


def folders_of(place: str) -> list[str]:
    """Return all folders that objects of a place can lie in."""
    last = _LETTERS[:: 1 << _SPARE_BITS]
    return [f"{place}/{first}{second}" for first in _LETTERS for second in last]
