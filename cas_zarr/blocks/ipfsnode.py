"""What can be asked of an IPFS node: its blocks, its pins, its keys and names.

`cas_zarr.blocks.kubo` speaks to a node's RPC, `cas_zarr.blocks.ipfsclient` through a client that
the user has. Nothing that a node says is verified here: `KuboBlocks` and the CAR reader do that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    RAW,
    BytesLike,
    CidBytes,
    ReadableCids,
    codec_of,
    decode_varint,
    hash_of,
)
from cas_zarr.errors import InvalidArgumentError

__all__ = ["IpfsNode", "Pin", "multihash_of", "plain_url", "put_options"]

_CODECS = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor", DAG_JSON: "dag-json"}


@dataclass(frozen=True, slots=True, repr=False)
class Pin(ReadableCids):
    """A recursive pin of a node.

    Attributes
    ----------
    cid : CidBytes
    name : str
        "" where it has none.
    """

    cid: CidBytes
    name: str = ""


class IpfsNode(ABC):
    """An IPFS node, which may be anywhere.

    All methods raise `RemoteError` where it does not answer, or not with what was asked for.

    Attributes
    ----------
    requests, sent : int
        How many requests were made of it, and how many bytes of blocks were sent to it. What
        cannot count leaves them 0.
    """

    requests: int = 0
    sent: int = 0

    @property
    @abstractmethod
    def location(self) -> str:
        """Where the node is, in words, for messages; no token is in it."""

    @property
    def place(self) -> str:
        """What tells this node from others: what is published there is noted under it."""
        return self.location

    # -- blocks -----------------------------------------------------------------------------

    @abstractmethod
    def block_get(self, cid: CidBytes) -> bytes | None:
        """Return the bytes that the node holds itself under a CID, unverified, or None."""

    @abstractmethod
    def block_size(self, cid: CidBytes) -> int | None:
        """Return how many bytes a block has that the node holds itself, or None."""

    @abstractmethod
    def block_put(self, cid: CidBytes, data: BytesLike) -> None:
        """Give the node one block; `CorruptBlockError` if it finds another CID for it."""

    @abstractmethod
    def block_rm(self, cid: CidBytes) -> None:
        """Let the node forget a block, if it holds it; `RemoteError` if it is pinned."""

    @abstractmethod
    def blocks(self) -> Iterator[CidBytes]:
        """Yield the CIDs of the blocks that the node holds; their codec may be raw."""

    @abstractmethod
    def import_car(self, pieces: Iterable[bytes]) -> None:
        """Send a CAR in pieces; it pins nothing. What came until an error may be held."""

    # -- pins -------------------------------------------------------------------------------

    @abstractmethod
    def pin_add(self, cid: CidBytes, *, name: str = "") -> None:
        """Pin a CID with all that it links.

        Raises
        ------
        BlockNotFoundError
            If the node does not hold all of it; nothing is looked for elsewhere.
        """

    @abstractmethod
    def pin_update(self, old: CidBytes, new: CidBytes) -> None:
        """Pin `new` by way of what it shares with `old`, which is and stays pinned.

        Raises
        ------
        BlockNotFoundError
            If the node does not hold all of `new`.
        """

    @abstractmethod
    def pin_rm(self, cid: CidBytes) -> None:
        """Take a recursive pin away, if it is there."""

    @abstractmethod
    def is_pinned(self, cid: CidBytes) -> bool:
        """Tell whether a CID is pinned recursively itself."""

    @abstractmethod
    def pins(self) -> Iterator[Pin]:
        """Yield the recursive pins."""

    # -- names ------------------------------------------------------------------------------

    @abstractmethod
    def keys(self) -> dict[str, str]:
        """Return the IPNS names that the node has keys of, by the names of the keys."""

    @abstractmethod
    def key_gen(self, name: str) -> str:
        """Make an Ed25519 key and return its IPNS name."""

    @abstractmethod
    def name_publish(
        self, cid: CidBytes, key: str, *, lifetime: str | None = None, ttl: str | None = None
    ) -> str:
        """Let the IPNS name of a key lead to a CID, and return the name.

        `lifetime` and `ttl` are durations as ``48h`` or ``5m``; the node has defaults.
        """

    @abstractmethod
    def name_resolve(self, name: str) -> str:
        """Return the path, ``/ipfs/…``, that an IPNS name leads to; as the node says."""

    @abstractmethod
    def version(self) -> str:
        """Return the version of the node's program."""


def put_options(cid: CidBytes) -> dict[str, str]:
    """Return what the RPC is told of a block, so that it finds its CID."""
    return {
        "cid-codec": _CODECS.get(codec_of(cid), "raw"),
        "mhtype": hash_of(cid).name,
        "mhlen": "32",
        "allow-big-block": "true",
    }


def multihash_of(cid: CidBytes) -> bytes:
    """Return what nodes compare: the multihash in a CID, without version and codec."""
    if cid[:2] == b"\x12\x20" and len(cid) == 34:
        return cid
    return cid[decode_varint(cid, 1)[1] :]


def plain_url(url: object, what: str, example: str) -> str:
    """Return the address of a service as it may be shown and noted, without a ``/`` at its end.

    Raises
    ------
    InvalidArgumentError
        If it is no URL of HTTP, or has a place where a secret stands: a user, a query, a fragment.
    """
    if isinstance(url, str) and any(char in url for char in "@?#"):
        raise InvalidArgumentError(
            f"the address of {what} holds a user, a query or a fragment; give {example}, and what "
            "it asks for as a token"
        )
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        valid = parts and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        valid = False
    if not valid:
        shown = repr(url) if isinstance(url, str) else f"a {type(url).__name__}"
        raise InvalidArgumentError(f"{shown:.300} is no address of {what}; give one as {example}")
    assert isinstance(url, str)
    return url.rstrip("/")
