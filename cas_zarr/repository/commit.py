"""Commits: a root, where it came from, and who says so.

A commit is a DAG-CBOR block. The root it names holds no time and no author, so equal data has an
equal root whoever commits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    BytesLike,
    CidBytes,
    HashFunction,
    Link,
    ReadableCids,
    cid_of,
    codec_of,
    format_cid,
)
from cas_zarr.codecs import dagcbor
from cas_zarr.errors import (
    CasZarrError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    LimitError,
)

__all__ = [
    "COMMIT_TYPE",
    "COMMIT_VERSION",
    "MAX_AUTHOR_BYTES",
    "MAX_COMMIT_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_PARENTS",
    "Commit",
]

COMMIT_TYPE = "cas-zarr/commit"
COMMIT_VERSION = 1

MAX_MESSAGE_BYTES = 64 * 1024
MAX_AUTHOR_BYTES = 1024
MAX_PARENTS = 64
MAX_COMMIT_BYTES = 1 << 20

_REQUIRED = {"type", "version", "root", "parents", "author", "time", "message", "metadata"}
_OPTIONAL = {"signature"}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Commit(ReadableCids):
    """One version of a dataset in its history.

    Attributes
    ----------
    root : CidBytes
        The root document, a dag-json block.
    parents : tuple of CidBytes
        The commits this one follows; none for a first one, several for a merge.
    author : str
        Free text, customarily ``Name <address>``; at most 1 KiB.
    time : int
        When it was committed: microseconds since 1970-01-01 UTC.
    message : str
        At most 64 KiB.
    metadata : Mapping
        Free values of the IPLD data model. The whole block is at most 1 MiB.
    signature : bytes or None
        Who says so, as `cas_zarr.repository.signing` makes and checks it; one of another form is
        kept as it is.
    """

    root: CidBytes
    parents: tuple[CidBytes, ...] = ()
    author: str = ""
    time: int = 0
    message: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    signature: bytes | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metadata, Mapping):
            raise InvalidArgumentError(
                f"metadata of a commit is a mapping, not a {type(self.metadata).__name__}"
            )
        if isinstance(self.time, bool) or not isinstance(self.time, int):
            raise InvalidArgumentError("time of a commit is an integer of microseconds")
        if not -(1 << 63) <= self.time < 1 << 63:
            raise LimitError(f"time {self.time} of a commit does not fit 64 bits")
        if self.signature is not None and not isinstance(self.signature, bytes):
            raise InvalidArgumentError("signature of a commit is bytes")
        if len(self.parents) > MAX_PARENTS:
            raise LimitError(f"a commit has {len(self.parents)} parents; at most {MAX_PARENTS}")
        _check_text("message", self.message, MAX_MESSAGE_BYTES)
        _check_text("author", self.author, MAX_AUTHOR_BYTES)
        if codec_of(self.root) != DAG_JSON:
            raise InvalidArgumentError(f"{format_cid(self.root)} is no root: not dag-json")
        for parent in self.parents:
            if codec_of(parent) != DAG_CBOR:
                raise InvalidArgumentError(f"{format_cid(parent)} is no commit: not dag-cbor")

    def to_block(self, function: HashFunction = BLAKE3) -> tuple[CidBytes, bytes]:
        """Return the CID and the bytes of this commit.

        Raises
        ------
        InvalidArgumentError
            If the metadata has a value that IPLD does not know.
        LimitError
            If the block is over 1 MiB.
        """
        value: dict[str, Any] = {
            "type": COMMIT_TYPE,
            "version": COMMIT_VERSION,
            "root": Link(self.root),
            "parents": [Link(parent) for parent in self.parents],
            "author": self.author,
            "time": self.time,
            "message": self.message,
            "metadata": dict(self.metadata),
        }
        if self.signature is not None:
            value["signature"] = self.signature
        try:
            data = dagcbor.encode(value)
        except FormatError as error:
            raise InvalidArgumentError(f"metadata of a commit cannot be stored: {error}") from None
        if len(data) > MAX_COMMIT_BYTES:
            raise LimitError(
                f"a commit of {len(data)} bytes is over {MAX_COMMIT_BYTES}; put large metadata "
                "into the dataset"
            )
        return cid_of(DAG_CBOR, function, data), data

    @classmethod
    def from_block(cls, cid: CidBytes, data: BytesLike) -> Self:
        """Read the commit in block `cid`, whose bytes have been verified.

        Raises
        ------
        FormatError
            If the block is no commit, or of a version that is not known here.
        """
        name = format_cid(cid)
        if codec_of(cid) != DAG_CBOR or len(data) > MAX_COMMIT_BYTES:
            raise FormatError(f"block {name} is no commit")
        try:
            value = dagcbor.decode(data)
        except FormatError as error:
            raise FormatError(f"block {name} is no commit: {error}") from None
        if not isinstance(value, dict) or value.get("type") != COMMIT_TYPE:
            raise FormatError(f"block {name} is no commit")
        version = value.get("version")
        if type(version) is not int or version != COMMIT_VERSION:
            raise FormatError(
                f"commit {name} has format version {version!r}; this cas_zarr knows "
                f"{COMMIT_VERSION}: use a newer one"
            )
        keys = set(value)
        if not keys >= _REQUIRED or not keys <= _REQUIRED | _OPTIONAL:
            odd = ", ".join(sorted(keys ^ _REQUIRED))
            raise FormatError(f"commit {name} has missing or unknown fields: {odd}")
        try:
            return cls(
                root=_link(value["root"]),
                parents=tuple(_link(parent) for parent in _list(value["parents"])),
                author=value["author"],
                time=value["time"],
                message=value["message"],
                metadata=value["metadata"],
                signature=_signature(value),
            )
        except CasZarrError as error:
            raise FormatError(f"commit {name} is malformed: {error}") from None


def _check_text(what: str, text: str, limit: int) -> None:
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{what} of a commit is text, not a {type(text).__name__}")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what} of a commit has a lone surrogate") from None
    if size > limit:
        raise LimitError(f"{what} of a commit has {size} bytes; at most {limit}")


def _link(value: object) -> CidBytes:
    if not isinstance(value, Link):
        raise InvalidCIDError("a link was expected")
    return value.cid


def _list(value: object) -> list[object]:
    if not isinstance(value, list) or len(value) > MAX_PARENTS:
        raise FormatError(f"parents are a list of at most {MAX_PARENTS}")
    return value


def _signature(value: dict[str, Any]) -> bytes | None:
    if "signature" not in value:
        return None
    if not isinstance(value["signature"], bytes):
        raise FormatError("signature is not bytes")
    return value["signature"]
