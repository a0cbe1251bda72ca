"""The note at the begin of a CAR that has not all that its root leads to.

It is a block of its own that nothing links, so a tool that does not know it takes it for any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    CidBytes,
    Link,
    ReadableCids,
    cid_of,
    codec_of,
    format_cid,
)
from cas_zarr.codecs import dagcbor
from cas_zarr.errors import FormatError

__all__ = ["MAX_NOTE", "CarNote"]

MAX_NOTE: Final = 4096
"""Largest block that is read as a note, in bytes."""

_TYPE: Final = "cas-zarr/car-note"
_VERSION: Final = 1
_SHOWN: Final = 200  # characters of a box in messages


@dataclass(frozen=True, slots=True, repr=False)
class CarNote(ReadableCids):
    """What a CAR says of itself that has not all that its root leads to.

    It is the first block of the CAR, DAG-CBOR: ``{type, version, root, since, box}``. It is a claim
    of whoever wrote the file: what it says is told, and what `since` names is looked for where the
    CAR is imported.

    Attributes
    ----------
    root : CidBytes
        The root of the CAR.
    since : CidBytes or None
        What has the rest.
    box : str
        The part that is there, as ``[0:10, :]``, where only a box of an array is; else "".
    """

    root: CidBytes
    since: CidBytes | None = None
    box: str = ""

    def to_block(self) -> tuple[CidBytes, bytes]:
        """Return CID and bytes."""
        value: dict[str, Any] = {
            "type": _TYPE,
            "version": _VERSION,
            "root": Link(self.root),
            "since": None if self.since is None else Link(self.since),
            "box": self.box,
        }
        data = dagcbor.encode(value)
        return cid_of(DAG_CBOR, BLAKE3, data), data

    @classmethod
    def from_block(cls, cid: CidBytes, data: bytes) -> Self | None:
        """Read a block whose bytes have been verified; None if it is no note that is known here."""
        if len(data) > MAX_NOTE or codec_of(cid) != DAG_CBOR or _TYPE.encode() not in data:
            return None
        try:
            value = dagcbor.decode(data)
        except FormatError:
            return None
        if not isinstance(value, dict) or value.get("type") != _TYPE:
            return None
        root, since, box = value.get("root"), value.get("since"), value.get("box")
        if value.get("version") != _VERSION or not isinstance(box, str):
            return None
        if not isinstance(root, Link) or not isinstance(since, Link | None):
            return None
        return cls(root.cid, None if since is None else since.cid, box)

    def content(self) -> str:
        """Return in words what the CAR has."""
        if self.since is None:
            return f"the box {self.box[:_SHOWN]} alone" if self.box else "a part alone"
        kind = "commit" if codec_of(self.since) == DAG_CBOR else "root"
        return f"what was new since {kind} {format_cid(self.since)}"
