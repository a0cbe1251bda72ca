"""A node behind an `ipfshttpclient.Client` that the user has, and whatever else means a node.

The client's public methods alone are used, of 0.7.0 and of 0.8.0a2. `ipfshttpclient.connect()` of
0.7.0 refuses nodes of today by their version, and that of 0.8.0a2 warns; `ipfshttpclient.Client()`
looks at no version. Time-outs, tokens and the size of answers are those of the client.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from cas_zarr.blocks.ipfsnode import IpfsNode, Pin, multihash_of, put_options
from cas_zarr.cid import BytesLike, CidBytes, as_cid_bytes, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    InvalidArgumentError,
    InvalidCIDError,
    RemoteError,
)

__all__ = ["ClientNode", "as_node"]

_PACKAGE = "ipfshttpclient"
_MISSING = re.compile(r"not found|could not find|not exist", re.IGNORECASE)
_NOT_PINNED = re.compile(r"not pinned", re.IGNORECASE)
_LIFETIME = "48h"  # the client would say 24h where nodes take 48h
_MULTIADDR = re.compile(
    r"/(?:(ip4|dns|dns4|dns6)/([A-Za-z0-9._-]{1,253})|(ip6)/([0-9A-Fa-f:.]{2,45}))"
    r"/tcp/([0-9]{1,5})(?:/(https?))?/?"
)


class ClientNode(IpfsNode):
    """A node that an `ipfshttpclient.Client` speaks to.

    Parameters
    ----------
    client : ipfshttpclient.Client
        It stays the caller's, who closes it.

    Notes
    -----
    It has no way to remove a block (`block_rm`).
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._peer = ""

    def __repr__(self) -> str:
        return f"ClientNode({self.location})"

    # docstrings inherited

    @property
    def location(self) -> str:
        return "the node of an ipfshttpclient.Client"

    @property
    def place(self) -> str:
        if not self._peer:  # the client does not tell what address it has
            with self._asking("its id"):
                self._peer = _text(self._client.id()["ID"])
        return f"{self.location}, {self._peer}"

    # -- blocks -----------------------------------------------------------------------------

    def block_get(self, cid: CidBytes) -> bytes | None:
        with self._asking(f"block {format_cid(cid)}"):
            try:
                return bytes(self._client.block.get(format_cid(cid), offline=True))
            except self._refused as error:
                if _MISSING.search(str(error)):
                    return None
                raise

    def block_size(self, cid: CidBytes) -> int | None:
        with self._asking(f"the size of block {format_cid(cid)}"):
            try:
                size = self._client.block.stat(format_cid(cid), offline=True)["Size"]
            except self._refused as error:
                if _MISSING.search(str(error)):
                    return None
                raise
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise ValueError(f"a size of {size!r}")
            return size

    def block_put(self, cid: CidBytes, data: BytesLike) -> None:
        with self._asking(f"a put of block {format_cid(cid)}"):
            answer = self._client.block.put(io.BytesIO(data), opts=put_options(cid))
            found = as_cid_bytes(_text(answer["Key"]))
        self.sent += len(data)
        if multihash_of(found) != multihash_of(cid):
            raise CorruptBlockError(
                f"{self.location} holds block {format_cid(cid)} as {format_cid(found)}; one of "
                "both is damaged: run verify"
            )

    def block_rm(self, cid: CidBytes) -> None:
        raise InvalidArgumentError(
            f"block {format_cid(cid)} cannot be removed from {self.location}: the client has no "
            "method for it; give the address of the node instead, http://127.0.0.1:5001"
        )

    def blocks(self) -> Iterator[CidBytes]:
        with self._asking("the list of blocks"):
            answers = list(self._client.unstable.refs.local())
            found = [as_cid_bytes(_text(answer["Ref"])) for answer in answers]
        return iter(found)

    def import_car(self, pieces: Iterable[bytes]) -> None:
        source = _Pieces(pieces)
        # With its statistics the answer has one line, which the client insists on, at the end.
        options = {"pin-roots": "false", "stats": "true", "allow-big-block": "true"}
        try:
            with self._asking("the import of a car"):
                answer = self._client.dag.imprt(source, opts=options)
                if not isinstance(answer["Stats"]["BlockCount"], int):
                    raise ValueError("no count of blocks")
        except RemoteError:
            if source.error is not None:  # what the caller's blocks have raised, not the node
                raise source.error from None
            raise
        finally:
            self.sent += source.size

    # -- pins -------------------------------------------------------------------------------

    def pin_add(self, cid: CidBytes, *, name: str = "") -> None:
        options = {"name": name} if name else {}
        with self._asking(f"a pin of {format_cid(cid)}", missing=cid):
            self._client.pin.add(format_cid(cid), offline=True, opts=options)

    def pin_update(self, old: CidBytes, new: CidBytes) -> None:
        with self._asking(f"a pin of {format_cid(new)}", missing=new):
            self._client.pin.update(
                format_cid(old), format_cid(new), unpin=False, offline=True, opts={}
            )

    def pin_rm(self, cid: CidBytes) -> None:
        with self._asking(f"the removal of a pin of {format_cid(cid)}"):
            try:
                self._client.pin.rm(format_cid(cid), opts={})
            except self._refused as error:
                if not _NOT_PINNED.search(str(error)):
                    raise

    def is_pinned(self, cid: CidBytes) -> bool:
        with self._asking(f"the pin of {format_cid(cid)}"):
            try:
                found = self._client.pin.ls(format_cid(cid), type="recursive", opts={})["Keys"]
            except self._refused as error:
                if _NOT_PINNED.search(str(error)):
                    return False
                raise
            return any(
                multihash_of(as_cid_bytes(_text(key))) == multihash_of(cid)
                for key, pin in found.items()
                if pin["Type"] == "recursive"
            )

    def pins(self) -> Iterator[Pin]:
        with self._asking("the list of its pins"):
            found = self._client.pin.ls(type="recursive", opts={"names": "true"})["Keys"]
            pins = [
                Pin(as_cid_bytes(_text(key)), _text(pin.get("Name") or ""))
                for key, pin in found.items()
            ]
        return iter(pins)

    # -- names ------------------------------------------------------------------------------

    def keys(self) -> dict[str, str]:
        with self._asking("the list of its keys"):
            found = self._client.key.list(opts={"ipns-base": "base36"})["Keys"]
            return {_text(key["Name"]): _text(key["Id"]) for key in found}

    def key_gen(self, name: str) -> str:
        with self._asking(f"a new key {name!r}"):
            answer = self._client.key.gen(name, "ed25519", size=256, opts={"ipns-base": "base36"})
            return _text(answer["Id"])

    def name_publish(
        self, cid: CidBytes, key: str, *, lifetime: str | None = None, ttl: str | None = None
    ) -> str:
        with self._asking(f"the publishing of {format_cid(cid)} under the key {key!r}"):
            answer = self._client.name.publish(
                f"/ipfs/{format_cid(cid)}",
                resolve=False,
                lifetime=lifetime or _LIFETIME,
                ttl=ttl,
                key=key,
                allow_offline=True,
                opts={"ipns-base": "base36"},
            )
            return _text(answer["Name"])

    def name_resolve(self, name: str) -> str:
        with self._asking(f"the ipns name {name}"):
            answer = self._client.name.resolve(f"/ipns/{name}", recursive=True, opts={})
            return _text(answer["Path"])

    def version(self) -> str:
        with self._asking("its version"):
            return _text(self._client.version()["Version"])

    # ---------------------------------------------------------------------------------------

    @property
    def _refused(self) -> type[Exception]:
        """What the client raises where the node says no."""
        found: type[Exception] = sys.modules[_PACKAGE].exceptions.ErrorResponse
        return found

    @contextmanager
    def _asking(self, what: str, *, missing: CidBytes | None = None) -> Iterator[None]:
        """Turn what the client raises into errors of this package."""
        self.requests += 1
        broad: type[Exception] = sys.modules[_PACKAGE].exceptions.Error
        try:
            yield
        except CasZarrError as error:
            if isinstance(error, InvalidCIDError):
                raise RemoteError(
                    f"{self.location} gives something else for {what}: {error}"
                ) from None
            raise
        except self._refused as error:
            if missing is not None and _MISSING.search(str(error)):
                raise BlockNotFoundError(
                    f"{self.location} refuses {what}, of which it lacks a block: {_short(error)}; "
                    "send it again"
                ) from None
            raise RemoteError(
                f"{self.location} refuses {what}: {_short(error)}", status=_status_of(error)
            ) from None
        except (broad, OSError) as error:  # what breaks later comes from requests, as an OSError
            raise RemoteError(
                f"{self.location} does not answer when asked for {what}: {_short(error)}; "
                "check that it runs and that the client has the address of its rpc",
                status=_status_of(error),
            ) from None
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise RemoteError(
                f"{self.location} gives something else for {what}: "
                f"{_short(error)}; check that the client has the address of a node's rpc"
            ) from None


class _Pieces:
    """Pieces as a binary file that can only be read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self.size = 0
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            try:
                self._rest = memoryview(next(self._pieces))
            except StopIteration:
                return b""
            except BaseException as error:
                self.error = error
                raise
        end = len(self._rest) if size < 0 else size
        piece, self._rest = bytes(self._rest[:end]), self._rest[end:]
        self.size += len(piece)
        return piece


def as_node(to: object, *, token: str | None = None) -> IpfsNode:
    """Return the node that something means.

    Parameters
    ----------
    to : str, IpfsNode or ipfshttpclient.Client
        The address of a node's RPC, as ``http://127.0.0.1:5001`` or ``/ip4/127.0.0.1/tcp/5001``,
        or what speaks to one.
    token : str, optional
        Sent in the header ``Authorization``; for an address only.

    Raises
    ------
    InvalidArgumentError
        If it means none.
    """
    if isinstance(to, str):
        from cas_zarr.blocks.kubo import KuboNode

        return KuboNode(_url_of(to) if to.startswith("/") else to, token=token)
    if token is not None:
        raise InvalidArgumentError("a token goes with the address of a node, not with a client")
    if isinstance(to, IpfsNode):
        return to
    if any(base.__module__.partition(".")[0] == _PACKAGE for base in type(to).__mro__):
        return ClientNode(to)
    raise InvalidArgumentError(
        f"a {type(to).__name__} is no ipfs node; give the address of its rpc, as "
        "http://127.0.0.1:5001, or an ipfshttpclient.Client"
    )


def _url_of(multiaddr: str) -> str:
    match = _MULTIADDR.fullmatch(multiaddr)
    if match is None:
        raise InvalidArgumentError(
            f"{multiaddr[:200]!r} is no address of a node's rpc; write http://127.0.0.1:5001 or "
            "/ip4/127.0.0.1/tcp/5001"
        )
    host = match[2] or f"[{match[4]}]"
    return f"{match[6] or 'http'}://{host}:{match[5]}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where text was expected")
    return value


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of the client, None where there was no answer."""
    answer = getattr(getattr(error, "original", None), "response", None)
    status = getattr(answer, "status_code", None)
    return status if isinstance(status, int) else None


def _short(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
