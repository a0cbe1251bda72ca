"""Blocks behind trustless HTTP gateways of IPFS: several, none of them trusted.

A gateway is asked for raw blocks and for CARs, never for anything that it put together itself.
Wrong bytes, pages of HTML and endless answers are refused and the next gateway is asked; what
gateways say of existence and size is a hint, since it cannot be checked.

Source: Trustless Gateway specification, https://specs.ipfs.tech/http-gateways/trustless-gateway/.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import quote

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, checked
from cas_zarr.blocks.carstream import Car, blocks_of
from cas_zarr.blocks.flights import Flights
from cas_zarr.blocks.health import Budget, Health, health_of, in_order
from cas_zarr.blocks.hedging import Race
from cas_zarr.blocks.http import HttpClient, Response, Watch, retry_after
from cas_zarr.blocks.readonly import ReadOnlyBlocks
from cas_zarr.blocks.transport import parse_url, shown
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import BytesLike, CidBytes, CidLike, as_cid_bytes, format_cid, matches
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    InvalidArgumentError,
    RemoteError,
)

__all__ = ["GatewayBlocks", "gateway_url"]

_RAW = {"accept": "application/vnd.ipld.raw"}
_CAR = {"accept": "application/vnd.ipld.car; version=1; order=dfs; dups=n"}
_SCOPES = ("all", "entity", "block")
_GONE = (404, 410)
_ROUNDS = 3
_BACKOFF = 0.1
_BUSY = 1.0
_PART_PATIENCE = 5.0  # seconds of silence after which single blocks, which are hedged, are better

_Answer: TypeAlias = "tuple[Health, Response]"


@dataclass(slots=True)
class _Search:
    """What came out so far of looking for one block."""

    cid: CidBytes
    method: str
    verify: bool
    deadline: float
    done: set[str] = field(default_factory=set)  # not asked again for this block
    missing: set[str] = field(default_factory=set)
    liars: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)

    def spoilt(self, server: Health, why: str, *, again: bool = False) -> None:
        """Note why a server was of no use."""
        self.problems[server.url] = why
        if not again:
            self.done.add(server.url)


class GatewayBlocks(ReadOnlyBlocks):
    """Blocks that trustless gateways give, each verified.

    Parameters
    ----------
    urls : str or sequence of str
        ``https://host[:port]``, or with the place of the CID in the path, as
        ``https://host/ipfs/{cid}``. The order is that of preference among equals.
    client : HttpClient, optional
        By default one of its own.
    hedge : bool
        Whether to ask a second gateway where the first is silent for longer than is usual for it.
    timeout : float
        Seconds until a block must be there, all gateways and repetitions together. Of a CAR, that
        may pass without a byte.
    parallel : int
        How many blocks `get_many` asks for at once, at most 32.

    Notes
    -----
    `has` and `size` believe the gateways: both are hints.

    Examples
    --------
    >>> with GatewayBlocks("http://127.0.0.1:8080") as blocks:  # doctest: +SKIP
    ...     blocks.get("bafkr4i...")
    """

    remote = True

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        client: HttpClient | None = None,
        hedge: bool = True,
        timeout: float = 30.0,
        parallel: int = 32,
    ) -> None:
        places = [urls] if isinstance(urls, str) else list(urls)
        if not places:
            raise InvalidArgumentError("no gateway is given; give at least one url")
        self.urls = tuple(dict.fromkeys(map(gateway_url, places)))
        self._servers = [health_of(url) for url in self.urls]
        self._own = HttpClient() if client is None else None
        self.client: HttpClient = client or self._own  # type: ignore[assignment]
        self._budget = Budget() if hedge else None
        self._timeout = timeout
        self._parallel = max(1, parallel)
        self._flights: Flights[_Answer | None] = Flights()
        self._last = threading.local()

    @property
    def location(self) -> str:
        """The gateways, in words."""
        names = [url.partition("/ipfs/{cid}")[0] for url in self.urls]
        return ("gateway " if len(names) == 1 else "gateways ") + ", ".join(names)

    def __repr__(self) -> str:
        return f"GatewayBlocks({list(self.urls)})"

    def close(self) -> None:
        """Close the connections, unless the client came from elsewhere."""
        if self._own is not None:
            self._own.close()

    # -- blocks -------------------------------------------------------------------------------

    def _read(self, cid: CidBytes) -> BytesLike | None:
        # The base class hashes what this returns: a wrong answer leads to `_read_other_copy`.
        answer = self._flights.do(
            cid, lambda: self._look(cid, "GET", verify=False), timeout=2 * self._timeout
        )
        if answer is None:
            return None
        self._last.answer = (cid, answer[0])
        return answer[1].body

    def _read_other_copy(self, cid: CidBytes) -> bytes | None:
        known, liar = getattr(self._last, "answer", (None, None))
        first = liar if known == cid else None
        answer = self._flights.do(
            (cid, "again"),
            lambda: self._look(cid, "GET", verify=True, liar=first),
            timeout=2 * self._timeout,  # who asks is done before that, with an error at least
        )
        return None if answer is None else answer[1].body

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        """Return the bytes of many blocks, in order, each verified, many asked for at once."""
        keys = [checked(cid) for cid in cids]
        unique = list(dict.fromkeys(keys))
        found = dict(zip(unique, self._map(self.get, unique), strict=True))
        return [found[key] for key in keys]

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        """Tell for each of many blocks whether a gateway says that it has it."""
        return self._map(self.has, [checked(cid) for cid in cids])

    def _map(self, function: Callable[[CidBytes], object], keys: list[CidBytes]) -> list:  # type: ignore[type-arg]
        return map_waiting(function, keys, parallel=self._parallel)

    def _has(self, cid: CidBytes) -> bool:
        return self._look(cid, "HEAD", verify=False) is not None

    def _size(self, cid: CidBytes) -> int | None:
        answer = self._look(cid, "HEAD", verify=False)
        if answer is None:
            return None
        text = answer[1].headers.get("content-length", "")
        if text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= MAX_BLOCK_SIZE:
            return int(text)
        return len(self.get(cid))

    # -- one block from several gateways --------------------------------------------------------

    def _look(
        self, cid: CidBytes, method: str, *, verify: bool, liar: Health | None = None
    ) -> _Answer | None:
        """Return an answer and who gave it; None if every gateway says that it has no such block.

        Raises
        ------
        CorruptBlockError
            If all that came were other bytes.
        RemoteError
            If a gateway that might have had it gave no answer.
        """
        search = _Search(as_cid_bytes(cid), method, verify, time.monotonic() + self._timeout)
        if liar is not None:
            self._lied(search, liar, "its answer")
        if self._budget is not None:
            self._budget.earn()
        for attempt in range(_ROUNDS):
            servers = [each for each in self._servers if each.url not in search.done]
            if not servers:
                break
            now = time.monotonic()
            if attempt:
                pause = _BACKOFF * 2**attempt * random.uniform(0.5, 1.5)
                time.sleep(max(0.0, min(pause, search.deadline - now)))
                now = time.monotonic()
            opening = min(each.closed_until for each in servers)
            if opening > search.deadline:
                break
            if opening > now:
                time.sleep(opening - now)
            ready = [each for each in servers if each.closed_until <= time.monotonic()]
            answer = Race(
                in_order(ready),
                lambda server, watch, more: self._ask(search, server, watch, more),
                budget=self._budget,
                deadline=search.deadline,
            ).run()
            if answer is not None:
                return answer
            if time.monotonic() >= search.deadline:
                break
        self._check_missing(search)
        return None

    def _ask(self, search: _Search, server: Health, watch: Watch, more: bool) -> _Answer | None:
        began = time.monotonic()
        left = search.deadline - began
        if left <= 0:
            return None
        url = server.url.replace("{cid}", format_cid(search.cid)) + "?format=raw"
        try:
            response = self.client.request(
                search.method,
                url,
                headers=_RAW,
                limit=MAX_BLOCK_SIZE,
                timeout=min(left, self.client.timeout or left),
                total=left,
                watch=watch,
                connect_timeout=min(max(1.0, server.patience), left) if more else None,
            )
        except RemoteError as error:
            if watch.aborted:
                server.answered(time.monotonic() - began)  # at least so long
            else:
                server.failed(began)
                search.spoilt(server, str(error), again=error.status is None)
            return None
        if response.status == 200:
            if search.verify and not matches(search.cid, response.body):
                self._lied(search, server, _described(response))
                return None
            server.answered(time.monotonic() - began)
            return server, response
        self._refused(search, server, response, began)
        return None

    def _refused(self, search: _Search, server: Health, response: Response, began: float) -> None:
        status = response.status
        where = server.url.replace("{cid}", format_cid(search.cid))
        if status in _GONE:
            server.answered(time.monotonic() - began)
            search.missing.add(server.url)
            search.spoilt(server, f"{where}: it has no such block")
        elif status == 429 or status >= 500:
            pause = retry_after(response.headers)
            if pause is not None or status == 429:
                server.close(_BUSY if pause is None else pause)
            server.failed(began)
            search.spoilt(server, f"{where}: it answers {status}; try again later", again=True)
        else:
            search.spoilt(server, f"{where}: it answers {status}; check that it is a gateway")

    def _lied(self, search: _Search, server: Health, what: str) -> None:
        server.lied()
        search.liars.add(server.url)
        where = server.url.replace("{cid}", format_cid(search.cid))
        search.spoilt(server, f"{where}: {what} is not the block")

    def _check_missing(self, search: _Search) -> None:
        """Raise why there is no answer, unless every gateway says that it has no such block."""
        if search.missing == set(self.urls):
            return
        for server in self._servers:
            if closed := _closed(server):
                search.problems[server.url] = closed
            elif server.url not in search.problems:
                why = f"{_place(server)}: no answer within {self._timeout:g} s"
                search.problems[server.url] = why
        told = "; ".join(search.problems[url] for url in self.urls)
        cid = format_cid(search.cid)
        if search.liars and search.liars | search.missing == set(self.urls):
            raise CorruptBlockError(
                f"block {cid} did not come from {self.location}: {told}; give another gateway"
            )
        raise RemoteError(
            f"block {cid} did not come from {self.location}: {told}; try again, or give another "
            "gateway"
        )

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        return BlockNotFoundError(
            f"block {format_cid(cid)} is not in {self.location}; add another gateway, or start the "
            "node that has it"
        )

    # -- many blocks in one answer ---------------------------------------------------------------

    def fetch_car(
        self,
        cid: CidLike,
        *,
        scope: str = "all",
        path: str = "",
        part: tuple[int, int] | None = None,
    ) -> Iterator[tuple[CidBytes, bytes]]:
        """Yield the blocks below a CID that one request brings, each verified as it comes.

        Parameters
        ----------
        cid : CID
        scope : str
            ``all`` (what is reachable), ``entity`` (a whole file, or a folder without what is in
            it) or ``block`` (one block), as ``dag-scope`` of the specification.
        path : str
            Of UnixFS or IPLD, below `cid`; the blocks on the way come too.
        part : (int, int), optional
            Of a file that is asked for as an ``entity``: the bytes from and up to which come, with
            the nodes above them (``entity-bytes``, IPIP-402). A gateway may send more.

        Raises
        ------
        BlockNotFoundError
            If no gateway has it.
        RemoteError
            If the answer breaks off, or holds too much that was not asked for. What was yielded
            before is sound: go on with `get_many`.
        CorruptBlockError
            If a gateway sent other bytes than a CID says.
        """
        key = as_cid_bytes(checked(cid))
        if scope not in _SCOPES:
            raise InvalidArgumentError(f"scope {scope!r} is not known; use one of {_SCOPES}")
        steps = "".join("/" + quote(step, safe="") for step in path.split("/") if step)
        asked = f"{steps}?format=car&dag-scope={scope}"
        if part is not None:
            start, stop = part
            if scope != "entity" or not 0 <= start < stop:
                raise InvalidArgumentError(
                    f"{start}:{stop} is no range of bytes of a file; ask for one with the scope "
                    "entity"
                )
            asked += f"&entity-bytes={start}:{stop - 1}"
        patience = min(self._timeout, self.client.timeout or self._timeout)
        return self._cars(key, asked, patience if part is None else min(patience, _PART_PATIENCE))

    def _cars(self, cid: CidBytes, asked: str, patience: float) -> Iterator[tuple[CidBytes, bytes]]:
        missing = 0
        failures: list[CasZarrError] = []
        told: list[str] = []
        for server in in_order(self._servers):
            if closed := _closed(server):
                told.append(closed)
                continue
            url = server.url.replace("{cid}", format_cid(cid)) + asked
            began = time.monotonic()
            given = False
            try:
                with self.client.stream("GET", url, headers=_CAR, timeout=patience) as stream:
                    if stream.status in _GONE:
                        missing += 1
                        told.append(f"{_place(server)}: it has no such block")
                        continue
                    if pause := retry_after(stream.headers):
                        server.close(pause)
                    for block in blocks_of(Car(stream, url, self._timeout), cid):
                        if not given:
                            server.answered(time.monotonic() - began)
                        given = True
                        yield block
                    return
            except (RemoteError, CorruptBlockError) as error:
                if isinstance(error, CorruptBlockError):
                    server.lied()
                else:
                    server.failed(began)
                if given:
                    raise
                failures.append(error)
                told.append(str(error))
        if missing == len(self._servers):
            raise self._not_found(cid)
        if failures and all(isinstance(each, CorruptBlockError) for each in failures):
            raise failures[0]
        raise RemoteError(
            f"no car of {format_cid(cid)} came from {self.location}: {'; '.join(told)}; try again, "
            "or give another gateway"
        )


def gateway_url(url: str) -> str:
    """Return the URL of a gateway with the place of the CID, ``{cid}``, in its path.

    Raises
    ------
    InvalidArgumentError
        If it is none, or holds a user or a password.
    """
    trial = url.replace("{cid}", "cid")
    (_, host, _), target = parse_url(trial)
    head, mark, tail = url.partition("{cid}")
    if "?" in trial or "#" in trial or "{cid}" in tail or "{cid}" in url.split("/")[2]:
        raise InvalidArgumentError(
            f"{shown(url)!r} is no url of a gateway; give one like https://host or "
            "https://host/ipfs/{cid}: the cid stands in the path, once, and nothing behind it"
        )
    if not mark:
        head = url.rstrip("/") + ("/" if target.rstrip("/").endswith("/ipfs") else "/ipfs/")
    if host == "localhost":
        # Kubo sends those who call it by this name to a host for each CID.
        head = head.replace("localhost", "127.0.0.1", 1)
    return head + "{cid}" + (tail.rstrip("/") if mark else "")


def _described(response: Response) -> str:
    kind = response.headers.get("content-type", "no type")[:60]
    return f"its answer of {len(response.body)} bytes ({kind!r})"


def _place(server: Health) -> str:
    return server.url.partition("/ipfs/{cid}")[0]


def _closed(server: Health) -> str:
    """Return in words that a server asked not to be asked now, or nothing."""
    left = server.closed_until - time.monotonic()
    return f"{_place(server)}: it asks to be left alone for {left:.0f} s" if left > 0 else ""
