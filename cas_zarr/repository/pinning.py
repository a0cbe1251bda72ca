"""Pinning services: others who keep a dataset on their nodes, asked over the Pinning Service API.

A service is told a CID and fetches the blocks itself, from whoever has them: publish to a node
first, and name its addresses as origins.

Source: https://ipfs.github.io/pinning-services-api-spec/.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args
from urllib.parse import quote, urlencode

from cas_zarr.blocks.ipfsnode import plain_url
from cas_zarr.cid import CidBytes, CidLike, ReadableCids, as_cid_bytes, format_cid
from cas_zarr.errors import (
    InvalidArgumentError,
    InvalidCIDError,
    NotFoundError,
    RemoteError,
)

if TYPE_CHECKING:
    from cas_zarr.blocks.http import HttpClient, Response
    from cas_zarr.repository.repository import Repository

__all__ = ["PinState", "PinningService", "RemotePin", "pin_remote"]

PinState: TypeAlias = Literal["queued", "pinning", "pinned", "failed"]
"""How far a service is with a pin."""

_STATES: tuple[PinState, ...] = get_args(PinState)
_PAGE = 200
_MAX_PAGES = 10_000
_MAX_ANSWER = 16 << 20
_MAX_NAME = 255
_MAX_ORIGINS = 20
_MAX_ID = 1000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 10.0  # seconds
_REASONS = {
    401: "the token is missing, or is refused; give one that the service knows",
    403: "the token does not allow it; give another",
    409: "the account has no means left for it",
    429: "it was asked too often; wait",
}

Progress: TypeAlias = "Callable[[RemotePin], object]"


@dataclass(frozen=True, slots=True, repr=False)
class RemotePin(ReadableCids):
    """A pin at a service.

    Attributes
    ----------
    request_id : str
        What the service calls it; another pin of the same CID has another.
    cid : CidBytes
    state : "queued", "pinning", "pinned" or "failed"
    name : str
        "" where it has none.
    created : str
        When the service was asked, as it says.
    delegates : tuple of str
        Addresses of its nodes, which can be connected to so that they need not search.
    origins : tuple of str
        Addresses where the blocks are, as they were given.
    meta, info : mapping of str to str
        What was given, and what the service tells, for example why it failed.
    """

    request_id: str
    cid: CidBytes
    state: PinState
    name: str = ""
    created: str = ""
    delegates: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    info: Mapping[str, str] = field(default_factory=dict)


class PinningService:
    """A service that pins what it is told.

    Parameters
    ----------
    endpoint : str
        Address of its API, without ``/pins``.
    token : str
        Sent as ``Authorization: Bearer``, to the endpoint only.
    client : HttpClient, optional
        What asks it.

    Notes
    -----
    All methods raise `RemoteError` if the service does not answer, refuses, or answers something
    else than the specification says; `status` tells refusals apart.
    """

    def __init__(self, endpoint: str, token: str, *, client: HttpClient | None = None) -> None:
        from cas_zarr.blocks.http import HttpClient

        endpoint = plain_url(endpoint, "a pinning service", "https://pins.example.org")
        if not isinstance(token, str) or not token.strip().isascii() or not token.strip():
            raise InvalidArgumentError(f"the token for {endpoint} is empty, or no ascii text")
        self.endpoint = endpoint.removesuffix("/pins")
        self._token = token.strip()
        self._client = client if client is not None else HttpClient()

    def __repr__(self) -> str:
        return f"PinningService({self.endpoint!r})"

    def add(
        self,
        cid: CidLike,
        *,
        name: str = "",
        origins: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
    ) -> RemotePin:
        """Ask for a pin of a CID and all that it links.

        Parameters
        ----------
        cid : CID
        name : str
            Up to 255 characters; pins can be looked up by it.
        origins : sequence of str
            Up to 20 addresses (multiaddr) of nodes that have the blocks.
        meta : mapping of str to str, optional
            Kept with the pin.
        """
        return self._pin(self._ask("POST", "/pins", _wanted(cid, name, origins, meta)))

    def status(self, request_id: str) -> RemotePin:
        """Return a pin as it is now.

        Raises
        ------
        NotFoundError
            If the service has none of that id.
        """
        return self._pin(self._ask("GET", _place(request_id)))

    def wait(
        self, request_id: str, *, timeout: float = 3600.0, progress: Progress | None = None
    ) -> RemotePin:
        """Wait until a CID is pinned, and return the pin.

        Parameters
        ----------
        request_id : str
        timeout : float
            Seconds to wait at most.
        progress : callable, optional
            Called with the pin whenever it was looked at.

        Raises
        ------
        RemoteError
            If the service has failed, or is not done in time; it goes on then.
        """
        end = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            pin = self.status(request_id)
            if progress is not None:
                progress(pin)
            if pin.state == "pinned":
                return pin
            told = self._scrubbed(pin.info.get("status_details", "without a reason"))
            if pin.state == "failed":
                raise RemoteError(
                    f"pinning service {self.endpoint} failed to pin {format_cid(pin.cid)}: {told}; "
                    "see that a node it can reach has all blocks, then add the pin again"
                )
            left = end - time.monotonic()
            if not left > 0:  # nor of nan
                raise RemoteError(
                    f"pinning service {self.endpoint} has not pinned {format_cid(pin.cid)} within "
                    f"{timeout:g} s, it is {pin.state}; wait longer, or see that it can reach a "
                    "node which has all blocks"
                )
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def list(
        self,
        *,
        cid: CidLike | None = None,
        name: str | None = None,
        states: Sequence[PinState] = _STATES,
        meta: Mapping[str, str] | None = None,
    ) -> Iterator[RemotePin]:
        """Yield pins, the newest first.

        Parameters
        ----------
        cid : CID, optional
            Only those of this CID.
        name : str, optional
            Only those of exactly this name.
        states : sequence of str
            Only those that are so far; without it all.
        meta : mapping of str to str, optional
            Only those with these entries.
        """
        if not states or any(state not in _STATES for state in states):
            raise InvalidArgumentError(f"{states!r} are no states of pins; they are {_STATES}")
        asked = {"status": ",".join(states), "limit": str(_PAGE)}
        wanted = None if cid is None else as_cid_bytes(cid)
        if wanted is not None:
            asked["cid"] = format_cid(wanted)
        if name is not None:
            asked["name"] = _checked_text("name", name)
        if meta is not None:
            asked["meta"] = json.dumps(_checked_meta(meta))
        seen: set[str] = set()
        for _ in range(_MAX_PAGES):
            query = urlencode(asked, safe=",")  # the specification joins lists by it
            count, page = self._page(self._ask("GET", f"/pins?{query}"))
            fresh = [pin for pin in page if pin.request_id not in seen]
            seen.update(pin.request_id for pin in fresh)
            # a service may pass over what it was asked, and pins are replaced by what is found
            yield from (pin for pin in fresh if _is_asked(pin, wanted, name, states, meta or {}))
            if not fresh or count <= len(page):
                return
            if not page[-1].created:
                raise self._nonsense("a pin does not say when it was created")
            asked["before"] = page[-1].created
        raise RemoteError(f"pinning service {self.endpoint} lists pins without an end")

    def replace(
        self,
        request_id: str,
        cid: CidLike,
        *,
        name: str = "",
        origins: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
    ) -> RemotePin:
        """Ask for another CID in place of a pin; what both share is not fetched again.

        Raises
        ------
        NotFoundError
            If the service has no pin of that id.
        """
        return self._pin(self._ask("POST", _place(request_id), _wanted(cid, name, origins, meta)))

    def delete(self, request_id: str) -> None:
        """Take a pin away.

        Raises
        ------
        NotFoundError
            If the service has none of that id.
        """
        self._send("DELETE", _place(request_id))

    # -- requests -----------------------------------------------------------------------------

    def _ask(self, method: str, place: str, wanted: Mapping[str, Any] | None = None) -> Any:
        body = self._send(method, place, wanted).body
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self._nonsense("no json") from None

    def _send(self, method: str, place: str, wanted: Mapping[str, Any] | None = None) -> Response:
        headers = {"authorization": f"Bearer {self._token}", "accept": "application/json"}
        body = None
        if wanted is not None:
            headers["content-type"] = "application/json"
            body = json.dumps(wanted).encode()
        answer = self._client.request(
            method,
            self.endpoint + place,
            headers=headers,
            body=body,
            limit=_MAX_ANSWER,
            retries=2 if method == "GET" else 0,  # what was done once is not there a second time
        )
        if answer.status not in (200, 202):
            raise self._refusal(answer, method, place)
        return answer

    def _refusal(self, answer: Response, method: str, place: str) -> Exception:
        told = ""
        try:
            error = json.loads(answer.body)["error"]
            told = ": ".join(str(error[key]) for key in ("reason", "details") if key in error)
        except (ValueError, RecursionError, LookupError, TypeError):
            pass
        told = self._scrubbed(told or f"status {answer.status}")
        what = f"{method} {place.partition('?')[0]}"
        if answer.status == 404:
            return NotFoundError(
                f"pinning service {self.endpoint} knows nothing of {what} ({told}); check the id "
                "of the pin, and the address of the service"
            )
        why = _REASONS.get(answer.status)
        return RemoteError(
            f"pinning service {self.endpoint} refuses {what}: {f'{why} ({told})' if why else told}",
            status=answer.status,
        )

    def _scrubbed(self, text: str) -> str:
        """Return what a service says, without the token that it may repeat, and not too long."""
        return text.replace(self._token, "(the token)")[:500]

    def _nonsense(self, why: str) -> RemoteError:
        return RemoteError(
            f"{self.endpoint} does not answer as a pinning service does: {self._scrubbed(why)}; "
            "check its address"
        )

    # -- answers ------------------------------------------------------------------------------

    def _page(self, value: Any) -> tuple[int, Sequence[RemotePin]]:
        if not isinstance(value, dict):
            raise self._nonsense("a list of pins is no object")
        count, results = value.get("count"), value.get("results")
        if not isinstance(count, int) or isinstance(count, bool) or not isinstance(results, list):
            raise self._nonsense("a list of pins has no count or no results")
        return count, [self._pin(result) for result in results]

    def _pin(self, value: Any) -> RemotePin:
        pin = value.get("pin") if isinstance(value, dict) else None
        if not isinstance(pin, dict):
            raise self._nonsense("a pin is none")
        request_id, state, cid = _text(value.get("requestid")), value.get("status"), pin.get("cid")
        if not 0 < len(request_id) <= _MAX_ID:
            raise self._nonsense("a pin has no requestid")
        if state not in _STATES:
            raise self._nonsense(f"a pin has the status {state!r}")
        if not isinstance(cid, str):
            raise self._nonsense("a pin has no cid")
        try:
            found = as_cid_bytes(cid)
        except InvalidCIDError as error:
            raise self._nonsense(str(error)) from None
        return RemotePin(
            request_id,
            found,
            state,
            _text(pin.get("name")),
            _text(value.get("created")),
            _texts(value.get("delegates")),
            _texts(pin.get("origins")),
            _pairs(pin.get("meta")),
            _pairs(value.get("info")),
        )


def pin_remote(
    repo: Repository,
    service: PinningService,
    version: CidLike = "main",
    *,
    name: str = "",
    history: bool = False,
    origins: Sequence[str] = (),
    meta: Mapping[str, str] | None = None,
    timeout: float | None = None,
    progress: Progress | None = None,
) -> RemotePin:
    """Let a service pin a version.

    Parameters
    ----------
    repo : Repository
    service : PinningService
        It fetches the blocks itself: they must be on a node that it can reach.
    version : str, bytes or CID
        A version expression; its root is pinned.
    name : str
        Name of the pin. If the service has pins of another CID under it, the newest of them is
        replaced; without a name one is added.
    history : bool
        Pin the commit, and with it all commits and roots before it, instead of the root.
    origins : sequence of str
        Addresses of nodes that have the blocks.
    meta : mapping of str to str, optional
        Kept with the pin.
    timeout : float, optional
        Wait so many seconds until it is pinned; without it do not wait.
    progress : callable, optional
        Called with the pin whenever it was looked at.

    Returns
    -------
    RemotePin
        Where the service has or makes a pin of that CID and name already, that one.

    Raises
    ------
    RemoteError
        If the service refuses, or fails, or is not done in time.
    """
    found = repo.resolve(version)
    if not history:
        cid = found.root
    elif found.commit is None:
        raise InvalidArgumentError(f"{found.name!r} is a root, and a root has no history")
    else:
        cid = found.commit
    _wanted(cid, name, origins, meta)
    pin = _held(service, cid, name)
    if pin is None:
        old = next(service.list(name=name), None) if name else None
        if old is None:
            pin = service.add(cid, name=name, origins=origins, meta=meta)
        else:
            pin = service.replace(old.request_id, cid, name=name, origins=origins, meta=meta)
    if timeout is not None and pin.cid == cid:
        pin = service.wait(pin.request_id, timeout=timeout, progress=progress)
    if pin.cid != cid:
        raise RemoteError(
            f"pinning service {service.endpoint} was asked for a pin of {format_cid(cid)} and made "
            f"one of {format_cid(pin.cid)}; ask whoever runs it"
        )
    return pin


def _held(service: PinningService, cid: CidBytes, name: str) -> RemotePin | None:
    pins = service.list(cid=cid, states=("queued", "pinning", "pinned"))
    return next((pin for pin in pins if pin.name == name), None)


def _is_asked(
    pin: RemotePin,
    cid: CidBytes | None,
    name: str | None,
    states: Sequence[PinState],
    meta: Mapping[str, str],
) -> bool:
    return (
        (cid is None or pin.cid == cid)
        and (name is None or pin.name == name)
        and pin.state in states
        and meta.items() <= pin.meta.items()
    )


def _wanted(
    cid: CidLike, name: str, origins: Sequence[str], meta: Mapping[str, str] | None
) -> dict[str, Any]:
    wanted: dict[str, Any] = {"cid": format_cid(as_cid_bytes(cid))}
    if len(_checked_text("name", name)) > _MAX_NAME:
        raise InvalidArgumentError(
            f"the name of a pin has at most {_MAX_NAME} characters, not {len(name)}"
        )
    if isinstance(origins, str) or len(origins) > _MAX_ORIGINS:
        raise InvalidArgumentError(f"origins are a sequence of at most {_MAX_ORIGINS} addresses")
    if name:
        wanted["name"] = name
    if origins:
        wanted["origins"] = [_checked_text("origin", origin) for origin in origins]
    if meta:
        wanted["meta"] = _checked_meta(meta)
    return wanted


def _checked_meta(meta: Mapping[str, str]) -> dict[str, str]:
    return {_checked_text("meta", key): _checked_text("meta", meta[key]) for key in meta}


def _checked_text(what: str, text: str) -> str:
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):  # no text, or a lone surrogate
        raise InvalidArgumentError(f"the {what} of a pin is text, not {text!r:.80}") from None
    return text


def _place(request_id: str) -> str:
    if not isinstance(request_id, str) or not request_id or len(request_id) > _MAX_ID:
        raise InvalidArgumentError(f"{request_id!r:.80} is no id of a pin at a service")
    if request_id in (".", ".."):
        raise InvalidArgumentError(f"{request_id!r} is no id of a pin at a service")
    return f"/pins/{quote(request_id, safe='')}"


def _text(value: object) -> str:
    """Return text, "" for what is none: JSON can hold half a character."""
    try:
        return value if isinstance(value, str) and value.encode() else ""
    except UnicodeEncodeError:
        return ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _pairs(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        return {}
    return {key: one for key, one in value.items() if isinstance(one, str)}
