"""What refs hold: a branch's commit and working root, a tag's commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    CidBytes,
    Link,
    ReadableCids,
    codec_of,
    format_cid,
)
from cas_zarr.codecs import dagjson
from cas_zarr.errors import FormatError, InvalidCIDError

__all__ = ["MAX_REF_BYTES", "Branch", "Tag", "link_of", "seal", "unseal"]

REF_VERSION = 1
MAX_REF_BYTES = 4096


@dataclass(frozen=True, slots=True, repr=False)
class Branch(ReadableCids):
    """Where a branch stands.

    Attributes
    ----------
    commit : CidBytes or None
        The newest commit; None before the first.
    work : CidBytes or None
        The root that writers of the branch share; None where it is the commit's root.
    """

    commit: CidBytes | None = None
    work: CidBytes | None = None

    def to_block(self) -> bytes:
        """Return the record as canonical DAG-JSON."""
        return dagjson.encode(
            {
                "type": "cas-zarr/branch",
                "version": REF_VERSION,
                "commit": None if self.commit is None else Link(self.commit),
                "work": None if self.work is None else Link(self.work),
            }
        )

    @classmethod
    def from_block(cls, data: bytes) -> Self:
        """Read a record; FormatError if it is none."""
        value = _record(data, "cas-zarr/branch", {"commit", "work"})
        return cls(link_of(value["commit"], DAG_CBOR), link_of(value["work"], DAG_JSON))


@dataclass(frozen=True, slots=True, repr=False)
class Tag(ReadableCids):
    """A fixed name of a commit."""

    commit: CidBytes

    def to_block(self) -> bytes:
        """Return the record as canonical DAG-JSON."""
        return dagjson.encode(
            {"type": "cas-zarr/tag", "version": REF_VERSION, "commit": Link(self.commit)}
        )

    @classmethod
    def from_block(cls, data: bytes) -> Self:
        """Read a record; FormatError if it is none."""
        commit = link_of(_record(data, "cas-zarr/tag", {"commit"})["commit"], DAG_CBOR)
        if commit is None:
            raise FormatError("a tag has no commit")
        return cls(commit)


def _record(data: bytes, kind: str, fields: set[str]) -> dict[str, Any]:
    if len(data) > MAX_REF_BYTES:
        raise FormatError(f"it has more than {MAX_REF_BYTES} bytes")
    value = dagjson.decode(data)
    if not isinstance(value, dict) or value.get("type") != kind:
        raise FormatError(f"it is no {kind} record")
    version = value.get("version")
    if version != REF_VERSION or isinstance(version, bool):
        raise FormatError(f"it has format version {version!r} and {REF_VERSION} is known here")
    if set(value) != fields | {"type", "version"}:
        raise FormatError("it has missing or unknown fields")
    return value


def seal(value: Mapping[str, dagjson.Value]) -> bytes:
    """Return a record as canonical DAG-JSON with a check, so that any flipped bit is noticed.

    The field ``check`` is 32 hex digits: 16 bytes of the BLAKE3 of the record without it. Records
    of branches and tags need none: another CID in them is that of a block which nobody has.
    """
    return dagjson.encode({**value, "check": _check(value)})


def unseal(data: bytes) -> Any:
    """Return the record that `seal` made these bytes of; FormatError if they are others."""
    value = dagjson.decode(data)
    if isinstance(value, dict) and value.pop("check", None) != _check(value):
        raise FormatError("its bytes do not match its check")
    return value


def _check(value: Mapping[str, dagjson.Value]) -> str:
    return BLAKE3.digest(dagjson.encode(dict(value)))[:16].hex()


def link_of(value: object, codec: int) -> CidBytes | None:
    """Return the CID that a decoded link names; FormatError if it is none of that codec."""
    if value is None:
        return None
    if not isinstance(value, Link):
        raise FormatError("it holds something else than a link")
    try:
        found = codec_of(value.cid)
    except InvalidCIDError as error:
        raise FormatError(str(error)) from None
    if found != codec:
        raise FormatError(f"it links {format_cid(value.cid)}, which is of another codec")
    return value.cid
