"""Names that move: publishing under an IPNS name, and finding out what a name leads to.

A name of a key is asked of gateways as a signed record, which is verified here; a node of your own
is believed. A name of a domain (DNSLink) stands in no signed record: what is said of it is marked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import CidBytes, CidLike, as_cid_bytes, format_cid
from cas_zarr.codecs.ipns import (
    MAX_RECORD_BYTES,
    IpnsName,
    IpnsRecord,
    decode_record,
    is_name,
    parse_name,
)
from cas_zarr.errors import (
    CasZarrError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    MissingDependencyError,
    NotFoundError,
    RemoteError,
)

if TYPE_CHECKING:
    from cas_zarr.blocks.http import HttpClient
    from cas_zarr.blocks.ipfsnode import IpfsNode

__all__ = [
    "NameAnswer",
    "move_name",
    "own_name",
    "publish_name",
    "resolve_ipns",
    "resolve_name",
]

_RECORD_TYPE = "application/vnd.ipfs.ipns-record"
_PATIENCE = 60.0  # seconds for the answer of one gateway: a slow one must not hold up the rest
_MAX_PATH = 4096
_MAX_KEY_NAME = 255  # bytes: what a node takes for the name of a pin
_MAX_STEPS = 8  # names that lead to names
_DOMAIN = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(?:\.[a-z0-9_][a-z0-9_-]{0,62})+", re.IGNORECASE
)
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|ms|s|m|h))+")


@dataclass(frozen=True, slots=True)
class NameAnswer:
    """What a name leads to, and who says so.

    Attributes
    ----------
    path : str
        ``/ipfs/<cid>``, with a path behind it where the name has one.
    verified : bool
        Whether every step was a record signed by the key of the name, checked here. What a node
        says, and what is known of a domain, is not.
    source : str
        Who has answered.
    expires : int or None
        When the first record on the way is over, in nanoseconds since 1970-01-01 UTC.
    ttl : int or None
        How long the answer may be kept, in nanoseconds.
    sequence : int or None
        Number of the record of the name that was asked for.
    """

    path: str
    verified: bool
    source: str
    expires: int | None = None
    ttl: int | None = None
    sequence: int | None = None


def publish_name(
    node: IpfsNode | str,
    key_name: str,
    cid: CidLike,
    *,
    lifetime: str | timedelta | None = None,
    ttl: str | timedelta | None = None,
) -> str:
    """Let an IPNS name lead to a CID; return the name, ``k51…``.

    Parameters
    ----------
    node : IpfsNode or str
        A node, or what `as_node` takes for one. It has the key, signs the record, and publishes it
        again until it is shut down.
    key_name : str
        Of a key of the node; it is made if there is none of that name.
    cid : CID
    lifetime : str or timedelta, optional
        How long the record is valid, as ``48h``; by default what the node does.
    ttl : str or timedelta, optional
        How long others may keep it without a look at a newer one.

    Raises
    ------
    RemoteError
        If the node does not do it.
    """
    from cas_zarr.blocks.ipfsclient import as_node

    node, target = as_node(node), as_cid_bytes(cid)
    times = {"lifetime": _duration("lifetime", lifetime), "ttl": _duration("ttl", ttl)}
    return move_name(node, key_name, own_name(node, key_name), target, **times)


def move_name(
    node: IpfsNode,
    key_name: str,
    name: str,
    cid: CidBytes,
    *,
    lifetime: str | None = None,
    ttl: str | None = None,
) -> str:
    """Let the name of a key, as `own_name` has given it, lead to a CID; return the name."""
    said = node.name_publish(cid, key_name, lifetime=lifetime, ttl=ttl)
    if str(parse_name(said)) != name:
        raise RemoteError(
            f"{node.location} published {said[:100]!r}, and the key {key_name!r} is that of "
            f"{name}; check the keys of the node"
        )
    return name


def own_name(node: IpfsNode, key_name: str) -> str:
    """Return the IPNS name of a key of a node, ``k51…``; the key is made if there is none.

    Raises
    ------
    InvalidArgumentError
        If no key can have that name.
    RemoteError
        If the node does not do it.
    """
    text = key_name if isinstance(key_name, str) and key_name.isprintable() else ""
    if not 0 < len(text.encode()) <= _MAX_KEY_NAME or "/" in text:
        raise InvalidArgumentError(
            f"{key_name!r:.300} is no name of a key; use text without '/', of at most "
            f"{_MAX_KEY_NAME} bytes"
        )
    found = node.keys().get(text)
    if found is None:
        try:
            found = node.key_gen(text)
        except RemoteError:
            found = node.keys().get(text)  # another process may have been quicker
            if found is None:
                raise
    return str(parse_name(found))


def resolve_ipns(
    name: str,
    *,
    nodes: Sequence[IpfsNode | str] = (),
    gateways: Sequence[str] = (),
    client: HttpClient | None = None,
) -> str:
    """Return what a name leads to, ``/ipfs/<cid>`` or ``/ipfs/<cid>/path``; see `resolve_name`."""
    return resolve_name(name, nodes=nodes, gateways=gateways, client=client).path


def resolve_name(
    name: str,
    *,
    nodes: Sequence[IpfsNode | str] = (),
    gateways: Sequence[str] = (),
    client: HttpClient | None = None,
) -> NameAnswer:
    """Find out what a name leads to.

    Parameters
    ----------
    name : str
        The name of a key (``k51…``) or a domain, also as ``ipns://name/path`` or ``/ipns/name``.
    nodes : sequence of IpfsNode, or of what `as_node` takes for one
        Asked first, in this order; the first that knows the name is believed.
    gateways : sequence of str
        Addresses of HTTP gateways, asked if no node knows the name: for a key all of them for its
        record, of which the newest valid one counts; for a domain one after the other.
    client : HttpClient, optional
        What asks the gateways.

    Raises
    ------
    NotFoundError
        If nobody knows the name.
    FormatError
        If what is said of it cannot be trusted: it is expired, not signed by its key, or no path.
    RemoteError
        If nobody could be asked.
    """
    if not nodes and not gateways:
        raise InvalidArgumentError(
            f"nobody can be asked for the ipns name {name!r}; give a node or a gateway"
        )
    from cas_zarr.blocks.ipfsclient import as_node

    asked = [as_node(node) for node in ((nodes,) if isinstance(nodes, str) else nodes)]
    if isinstance(gateways, str):
        gateways = (gateways,)
    if gateways and client is None:
        from cas_zarr.blocks.http import HttpClient

        with HttpClient() as own:
            return _Resolver(asked, gateways, own).resolve(name)
    return _Resolver(asked, gateways, client).resolve(name)


class _Resolver:
    def __init__(
        self, nodes: Sequence[IpfsNode], gateways: Sequence[str], client: HttpClient | None
    ) -> None:
        self.nodes = nodes
        self.gateways = [gateway.rstrip("/") for gateway in gateways]
        self.client = client

    def resolve(self, name: str) -> NameAnswer:
        """Follow a name, and the names that it leads to."""
        kind, key, rest = _split("/ipns/" + name.removeprefix("ipns://").removeprefix("/ipns/"))
        answer = None
        for _ in range(_MAX_STEPS):
            step = self._step(key)
            answer = step if answer is None else _joined(answer, step)
            kind, key, inner = _split(step.path)
            rest = inner + rest
            if kind == "ipfs":
                return replace(answer, path=f"/ipfs/{key}{rest}")
        raise FormatError(
            f"the ipns name {name!r} leads to {_MAX_STEPS} other names in a row; that is taken for "
            "a circle: ask whoever publishes it"
        )

    def _step(self, key: str) -> NameAnswer:
        failures: list[CasZarrError] = []
        for node in self.nodes:
            try:
                path = node.name_resolve(key)
                _split(path)
            except CasZarrError as error:
                failures.append(error)
            else:
                return NameAnswer(path, False, node.location)
        found = self._records(parse_name(key), failures) if is_name(key) else None
        if found is None and not is_name(key):
            found = self._domain(key, failures)
        if found is None:
            raise _failed(key, failures)
        return found

    def _records(self, name: IpnsName, failures: list[CasZarrError]) -> NameAnswer | None:
        """Return the newest of the valid records that the gateways have."""

        def ask(gateway: str) -> tuple[IpnsRecord, str] | CasZarrError:
            try:
                return decode_record(self._record_at(gateway, name), name), gateway
            except CasZarrError as error:
                return error

        found = []
        for answer in map_waiting(ask, self.gateways):
            if isinstance(answer, CasZarrError):
                failures.append(answer)
            else:
                found.append(answer)
        if not found:
            return None
        record, gateway = max(found, key=lambda one: one[0].order)
        return NameAnswer(record.value, True, gateway, record.expires, record.ttl, record.sequence)

    def _record_at(self, gateway: str, name: IpnsName) -> bytes:
        assert self.client is not None
        answer = self.client.request(
            "GET",
            f"{gateway}/ipns/{name}?format=ipns-record",
            headers={"accept": _RECORD_TYPE},
            limit=MAX_RECORD_BYTES,
            total=_PATIENCE,
        )
        _refuse(gateway, f"ipns name {name}", answer.status)
        kind = answer.headers.get("content-type", "").partition(";")[0].strip()
        if kind != _RECORD_TYPE:
            raise RemoteError(
                f"gateway {gateway} answered with {kind[:80]!r} where the record of ipns name "
                f"{name} was asked for; it is no trustless gateway: give another",
                status=answer.status,
            )
        return answer.body

    def _domain(self, domain: str, failures: list[CasZarrError]) -> NameAnswer | None:
        """Return what a gateway says of a domain: the root that it has resolved it to."""
        assert self.client is not None or not self.gateways
        for gateway in self.gateways:
            try:
                answer = self.client.request(  # type: ignore[union-attr]
                    "HEAD",
                    f"{gateway}/ipns/{domain}?format=raw",
                    headers={"accept": "application/vnd.ipld.raw"},
                    total=_PATIENCE,
                )
                _refuse(gateway, f"domain {domain!r}", answer.status)
                roots = answer.headers.get("x-ipfs-roots", "")
                path = f"/ipfs/{roots.strip()}"
                if "/" in roots or not roots.strip():
                    raise FormatError(
                        f"gateway {gateway} does not say what the domain {domain!r} leads to "
                        "(X-Ipfs-Roots); ask a node"
                    )
                _split(path)
            except CasZarrError as error:
                failures.append(error)
            else:
                return NameAnswer(path, False, gateway)
        return None


def _refuse(gateway: str, what: str, status: int) -> None:
    if status in (404, 410):
        raise NotFoundError(f"gateway {gateway} does not know the {what}")
    if status != 200:
        raise RemoteError(
            f"gateway {gateway} answered {status} when it was asked for the {what}; give another",
            status=status,
        )


def _failed(key: str, failures: Sequence[CasZarrError]) -> CasZarrError:
    """Return the error that says most of why a name could not be resolved."""
    kinds = (
        MissingDependencyError,
        FormatError,
        NotFoundError,
        RemoteError,
        InvalidArgumentError,
    )
    kind = next((one for one in kinds if any(isinstance(f, one) for f in failures)), NotFoundError)
    told = "; ".join(dict.fromkeys(map(str, failures))) or "there was no gateway to ask"
    return kind(f"the ipns name {key} was not resolved: {told}")


def _joined(before: NameAnswer, step: NameAnswer) -> NameAnswer:
    def least(a: int | None, b: int | None) -> int | None:
        return b if a is None else a if b is None else min(a, b)

    return replace(
        before,
        verified=before.verified and step.verified,
        expires=least(before.expires, step.expires),
        ttl=least(before.ttl, step.ttl),
    )


def _split(path: str) -> tuple[str, str, str]:
    """Take a path apart: ``ipfs`` or ``ipns``, the CID or the name, and what is behind it."""
    if not isinstance(path, str) or len(path) > _MAX_PATH:
        raise FormatError(f"a name leads to no path, or to one of more than {_MAX_PATH} bytes")
    kind, _, rest = path.removeprefix("/").partition("/")
    key, slash, inner = rest.partition("/")
    behind = f"/{inner}".rstrip("/") if slash else ""
    strange = "\0" in path or path.encode("utf-8", "replace").decode() != path  # half a character
    if strange or any(segment in ("", ".", "..") for segment in behind.split("/")[1:]):
        raise FormatError(f"a name leads to {path[:200]!r}, which is no path")
    if kind == "ipfs" and path.startswith("/"):
        try:
            return kind, format_cid(as_cid_bytes(key)), behind
        except InvalidCIDError as error:
            raise FormatError(f"a name leads to {path[:200]!r}: {error}") from None
    if kind == "ipns" and path.startswith("/"):
        if is_name(key):
            return kind, str(parse_name(key)), behind
        if _DOMAIN.fullmatch(key):
            return kind, key, behind
    raise FormatError(
        f"{path[:200]!r} is no path of a name; it reads /ipns/k51… or /ipns/example.org, and what "
        "it leads to /ipfs/bafy…"
    )


def _duration(what: str, value: str | timedelta | None) -> str | None:
    """Return a duration as nodes read it, ``48h``."""
    if value is None:
        return None
    if isinstance(value, timedelta) and value > timedelta(0):
        return f"{value // timedelta(microseconds=1)}us"
    if isinstance(value, str) and len(value) <= 40 and _DURATION.fullmatch(value):
        return value
    raise InvalidArgumentError(f"{what} {value!r} is no duration; write 48h, 30m or 10s")
