"""The HTTP client of the package: what asks nodes, gateways and other servers.

Nothing above this module knows what speaks HTTP underneath: it is the standard library's, chosen by
the measurement in docs/design/005-ipfs.md. Servers are taken for hostile: bodies, headers and times
are bounded, compressed answers are refused, and a redirect leads to the same host or nowhere.
No proxy and no credential is taken from the environment.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import ssl
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast
from urllib.parse import urljoin

from cas_zarr.blocks.httpstream import FAILURES, MAX_BODY, HttpStream
from cas_zarr.blocks.transport import (
    BUFFER,
    MAX_HEADERS,
    Address,
    Answer,
    Connection,
    Watch,
    connect,
    explained,
    parse_url,
    shown,
)
from cas_zarr.closing import Closing
from cas_zarr.errors import InvalidArgumentError, RemoteError

__all__ = ["MAX_BODY", "HttpClient", "HttpStream", "Response", "Watch", "retry_after"]

Body: TypeAlias = "bytes | Iterable[bytes] | None"

_PIECE = 1 << 18
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 3
_AGAIN = {429, 502, 503, 504}
_BACKOFF = 0.1
_MAX_PAUSE = 10.0
_NAME = re.compile("[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, read whole.

    Attributes
    ----------
    status : int
    headers : mapping of str to str
        Names in lower case; a name that came twice has both values, with a comma between.
    body : bytes
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class HttpClient(Closing):
    """An HTTP client that threads may share, with connections that are kept open.

    Parameters
    ----------
    timeout : float
        Seconds that may pass without a byte from the server.
    connect_timeout : float
        Seconds until a connection must stand, TLS included.
    headers : mapping, optional
        Sent with every request; a token belongs here. They are in no message and no repr.
    connections : int
        How many idle connections are kept open for each server.
    context : ssl.SSLContext, optional
        For servers with a certificate of a private authority; by default the system's.

    Notes
    -----
    A status is an answer and is returned; `RemoteError` means that there was no answer, or none
    that can be used. A child process has connections of its own.
    """

    def __init__(
        self,
        *,
        timeout: float | None = 30.0,
        connect_timeout: float | None = 5.0,
        headers: Mapping[str, str] | None = None,
        connections: int = 32,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self._headers = {
            "user-agent": "cas_zarr",
            "accept-encoding": "identity",
            **_lowered(headers),
        }
        self._connections = connections
        self._context = context
        self._context_lock = threading.Lock()
        self._idle: dict[Address, list[Connection]] = {}
        self._pid = os.getpid()
        weakref.finalize(self, _close_all, self._idle)

    def __repr__(self) -> str:
        return f"HttpClient(timeout={self.timeout}, connect_timeout={self.connect_timeout})"

    def close(self) -> None:
        """Close the idle connections. A client that is used again opens new ones."""
        _close_all(self._idle)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        limit: int = MAX_BODY,
        timeout: float | None = None,
        retries: int = 0,
        total: float | None = None,
        watch: Watch | None = None,
        connect_timeout: float | None = None,
    ) -> Response:
        """Send a request and return the answer, whatever its status.

        Parameters
        ----------
        method, url : str
        headers : mapping, optional
            Beside those of the client, and before them.
        body : bytes or iterable of bytes, optional
            An iterable is sent as it comes (chunked).
        limit : int
            Largest body of an answer that is read, in bytes.
        timeout : float, optional
            Seconds without a byte; by default the client's.
        retries : int
            How often to ask again where there was no answer, or one of 429, 502, 503 or 504. Not
            where `body` is an iterable, which can be read only once.
        total : float, optional
            Seconds until the answer must be there whole, all attempts together; by default ten
            times `timeout`.
        watch : Watch, optional
            A handle on this request.
        connect_timeout : float, optional
            By default the client's.

        Raises
        ------
        RemoteError
            If the server cannot be reached, takes too long, or gives no valid answer.
        InvalidArgumentError
            If the URL or a header is none.
        """
        patience = self.timeout if timeout is None else timeout
        if total is None and patience is not None:
            total = 10 * patience
        end = None if total is None else time.monotonic() + total
        if not (body is None or isinstance(body, bytes)):
            retries = 0
        for attempt in range(retries + 1):
            last = attempt == retries
            try:
                with self.stream(
                    method,
                    url,
                    headers=headers,
                    body=body,
                    timeout=timeout,
                    total=None if end is None else max(0.0, end - time.monotonic()),
                    watch=watch,
                    connect_timeout=connect_timeout,
                ) as stream:
                    response = Response(stream.status, stream.headers, stream.read_all(limit))
                asked = retry_after(response.headers) or 0.0
                if response.status not in _AGAIN or last or not _waited(attempt, end, asked):
                    return response
            except RemoteError as error:
                given_up = watch is not None and watch.aborted
                if given_up or last or not _passing(error) or not _waited(attempt, end):
                    raise
        raise AssertionError("unreachable")

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        timeout: float | None = None,
        total: float | None = None,
        watch: Watch | None = None,
        connect_timeout: float | None = None,
    ) -> HttpStream:
        """Send a request and return its answer as a context manager, the body still unread.

        Parameters and errors are those of `request`; `total` is not limited by default.
        """
        patience = self.timeout if timeout is None else timeout
        deadline = None if total is None else time.monotonic() + total
        merged = {**self._headers, **_lowered(headers)}
        for _ in range(_MAX_REDIRECTS + 1):
            stream = self._once(
                method,
                url,
                merged,
                body,
                patience=patience,
                deadline=deadline,
                watch=watch,
                connect_timeout=connect_timeout,
            )
            if stream.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                return stream
            stream.close()
            url = _redirected(method, url, stream)
        raise RemoteError(
            f"{method} {shown(url)}: more than {_MAX_REDIRECTS} redirects; check the url",
            status=stream.status,
        )

    # -- one request --------------------------------------------------------------------------

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body,
        *,
        patience: float | None,
        deadline: float | None,
        watch: Watch | None,
        connect_timeout: float | None,
    ) -> HttpStream:
        address, target = parse_url(url)
        once = not (body is None or isinstance(body, bytes))
        safe = method in ("GET", "HEAD") and body is None
        while True:
            # What can be sent only once is not sent to where nobody may listen any more.
            connection = None if once else self._take(address)
            try:
                if connection is None:
                    limit = self.connect_timeout if connect_timeout is None else connect_timeout
                    if deadline is not None:
                        left = max(0.001, deadline - time.monotonic())
                        limit = left if limit is None else min(left, limit)
                    try:
                        connection = connect(address, timeout=limit, context=self._tls)
                    except FAILURES as error:
                        raise explained(method, url, error, limit) from error
                wire = connection.wire
                wire.patience, wire.deadline, wire.watch = patience, deadline, watch
                if watch is not None:
                    watch.attach(wire)
                failure = _send(connection, method, target, headers, body)
                try:
                    raw = _receive(connection)
                except FAILURES as error:
                    raise _Broken(failure or error) from error
                return HttpStream(
                    connection,
                    raw,
                    asked=(method, url),
                    patience=patience,
                    deadline=deadline,
                    watch=watch,
                    release=self._take_back if failure is None else _end,
                )
            except BaseException as error:
                if watch is not None:
                    watch.detach()
                stale = connection is not None and connection.used
                if connection is not None:
                    connection.hang_up()
                if isinstance(error, _Broken):
                    cause = error.cause
                    # The server closed it while it was idle: nobody has read the request.
                    given_up = watch is not None and watch.aborted
                    if stale and safe and not given_up and isinstance(cause, ConnectionError):
                        continue
                    raise explained(method, url, cause, patience) from cause
                raise

    def _take(self, address: Address) -> Connection | None:
        if self._pid != os.getpid():  # a child must not speak into its parent's connections
            self._pid = os.getpid()
            self._context_lock = threading.Lock()
            _close_all(self._idle)
        idle = self._idle.get(address)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if connection.usable():
                return connection
            connection.hang_up()
        return None

    def _take_back(self, connection: Connection, reusable: bool) -> None:
        idle = self._idle.setdefault(connection.address, [])
        if reusable and len(idle) < self._connections:
            connection.used = True
            connection.wire.watch = None
            idle.append(connection)
        else:
            connection.hang_up()

    def _tls(self) -> ssl.SSLContext:
        with self._context_lock:
            if self._context is None:
                self._context = ssl.create_default_context()
            return self._context


class _Broken(Exception):
    """What went wrong between us and the server; what the caller's body raises is not that."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


def _send(
    connection: Connection, method: str, target: str, headers: Mapping[str, str], body: Body
) -> Exception | None:
    """Send a request; return why the server did not take the whole body, if it did not."""
    whole = body if isinstance(body, bytes) else None
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if whole is not None:
            connection.putheader("content-length", str(len(whole)))
        elif body is not None:
            connection.putheader("transfer-encoding", "chunked")
        elif method not in ("GET", "HEAD"):
            connection.putheader("content-length", "0")
        connection.endheaders()
    except FAILURES as error:
        raise _Broken(error) from error
    pieces: Iterable[bytes] = ()
    if whole is not None:
        pieces = (whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE))
    elif body is not None and not isinstance(body, bytes):
        pieces = _chunks(body)
    for piece in pieces:
        try:
            connection.send(piece)
        except FAILURES as error:
            return error  # the server may have answered why it reads no more
    return None


def _receive(connection: Connection) -> Answer:
    """Read an answer up to its body: in twice the time that may pass without a byte, at most."""
    wire = connection.wire
    if wire.patience is not None:
        end = time.monotonic() + 2 * wire.patience
        wire.deadline = end if wire.deadline is None else min(wire.deadline, end)
    wire.room = MAX_HEADERS + BUFFER
    raw = cast(Answer, connection.getresponse())
    wire.room = None
    return raw


def _end(connection: Connection, _: bool) -> None:
    connection.hang_up()


def _passing(error: RemoteError) -> bool:
    """Tell whether what went wrong may go right the next time."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return False
    return isinstance(cause, (OSError, http.client.IncompleteRead))


def _waited(attempt: int, end: float | None, asked: float = 0.0) -> bool:
    """Wait until it is time to ask again; False where no time is left for that."""
    pause = max(asked, _BACKOFF * 2**attempt * random.uniform(0.5, 1.5))
    pause = min(pause, _MAX_PAUSE)
    if end is not None and time.monotonic() + pause >= end:
        return False
    time.sleep(pause)
    return True


def _chunks(body: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of a body in the chunked coding, small ones together."""
    waiting: list[bytes] = []
    size = 0
    for piece in body:
        waiting.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield b"".join((b"%x\r\n" % size, *waiting, b"\r\n"))
            waiting, size = [], 0
    if size:
        yield b"".join((b"%x\r\n" % size, *waiting, b"\r\n"))
    yield b"0\r\n\r\n"


def _redirected(method: str, url: str, stream: HttpStream) -> str:
    """Return where a redirect leads, if it may."""
    place = stream.headers.get("location", "")
    (scheme, host, port), _ = parse_url(url)
    try:
        target = urljoin(url, place)
        there, _ = parse_url(target)
    except (ValueError, InvalidArgumentError):
        there = ("", "", 0)
    secured = (scheme, port) == ("http", 80) and there == ("https", host, 443)
    if not place or not (there == (scheme, host, port) or secured):
        raise RemoteError(
            f"{method} {shown(url)}: the server redirects to {shown(place)!r}, which is another "
            "place; if you trust that one, give its address",
            status=stream.status,
        )
    return target


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return for how many seconds a server asks to be left alone, if it says so in seconds."""
    text = headers.get("retry-after", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


def _lowered(headers: Mapping[str, str] | None) -> dict[str, str]:
    lowered = {name.lower(): value for name, value in (headers or {}).items()}
    for name, value in lowered.items():
        if not (_NAME.fullmatch(name) and value.isascii() and value.isprintable()):
            raise InvalidArgumentError(
                f"the header {name[:80]!r} or its value is none; use printable ASCII without breaks"
            )
    return lowered


def _close_all(idle: dict[Address, list[Connection]]) -> None:
    for connections in list(idle.values()):
        while connections:
            try:
                connections.pop().hang_up()
            except IndexError:
                break
