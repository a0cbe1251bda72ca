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
from typing import TypeAlias
from urllib.parse import urljoin

from cas_zarr.blocks.transport import (
    Address,
    Connection,
    Watch,
    connect,
    explained,
    parse_url,
    shown,
    usable,
)
from cas_zarr.closing import Closing
from cas_zarr.errors import InvalidArgumentError, RemoteError

__all__ = ["MAX_BODY", "HttpClient", "HttpStream", "Response", "Watch", "retry_after"]

MAX_BODY = 16 << 20
"""Largest body that `HttpClient.request` reads unless told otherwise, in bytes."""

Body: TypeAlias = "bytes | Iterable[bytes] | None"

_MAX_HEADERS = 1 << 16
_MAX_LINE = 1 << 20
_PIECE = 1 << 18
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 3
_AGAIN = {429, 502, 503, 504}
_BACKOFF = 0.1
_MAX_PAUSE = 10.0
_NAME = re.compile("[A-Za-z0-9_-]+")
_FAILURES = (OSError, http.client.HTTPException, ValueError)


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


class HttpStream(Closing):
    """An answer whose body is read piece by piece; a context manager.

    It can be read as a binary file that cannot seek, by `CarReader` for one. Leaving it before its
    end closes the connection; after it, the connection serves the next request.

    Attributes
    ----------
    status : int
    headers : mapping of str to str
        Names in lower case.
    """

    def __init__(
        self,
        client: HttpClient,
        connection: Connection,
        raw: http.client.HTTPResponse,
        *,
        asked: tuple[str, str],
        patience: float | None,
        deadline: float | None,
        watch: Watch | None,
        reusable: bool,
    ) -> None:
        self._client = client
        self._connection = connection
        self._raw = raw
        self._asked = asked
        self._patience = patience
        self._deadline = deadline
        self._watch = watch
        self._reusable = reusable
        self._left: int | None = raw.length
        self._over = False
        self.status = raw.status
        headers: dict[str, str] = {}
        size = 0
        for name, value in raw.headers.items():
            size += len(name) + len(value)
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        self.headers: Mapping[str, str] = headers
        encoding = headers.get("content-encoding", "identity").lower()
        if size > _MAX_HEADERS:
            raise self._refused(f"the headers have {size} bytes; at most {_MAX_HEADERS} are read")
        if encoding != "identity":
            raise self._refused(
                f"the answer comes in the encoding {encoding[:40]!r}, which was not asked for; "
                "use a server that sends bytes as they are"
            )

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces of the body as they come."""
        while piece := self.read():
            yield piece

    def read(self, size: int = _PIECE) -> bytes:
        """Return what has come, at least one byte and at most `size`; nothing at the end.

        Raises
        ------
        RemoteError
            If nothing comes for as long as the time-out, or the body is cut off.
        """
        if self._over or size == 0:
            return b""
        if self._left is not None:
            size = min(size, self._left) if size > 0 else self._left
        elif size < 0:
            size = _PIECE
        piece = self._piece(size) if size else b""
        if self._left is not None:
            if size and not piece:
                raise self._cut_off()
            self._left -= len(piece)
        if not piece or self._left == 0:
            self._finish()
        return piece

    def read_all(self, limit: int = MAX_BODY) -> bytes:
        """Return the rest of the body.

        Raises
        ------
        RemoteError
            As `read` does, or if there are more than `limit` bytes.
        """
        if self._left is not None and self._left > limit:
            raise self._refused(f"the answer has {self._left} bytes; at most {limit} are read here")
        pieces = []
        size = 0
        while piece := self.read():
            size += len(piece)
            if size > limit:
                raise self._refused(f"the answer has more than the {limit} bytes that are read")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def lines(self, limit: int = _MAX_LINE) -> Iterator[bytes]:
        """Yield the lines of the body as they come, without their ends, each at most `limit` bytes.

        Raises
        ------
        RemoteError
            As `read` does, or if a line is longer.
        """
        rest = b""
        while piece := self.read():
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
            if len(rest) > limit or any(len(line) > limit for line in whole):
                raise self._refused(f"a line of the answer has more than {limit} bytes")
        if rest:
            yield rest

    def seekable(self) -> bool:
        """Tell that one cannot seek."""
        return False

    def readable(self) -> bool:
        """Tell that one can read."""
        return True

    def close(self) -> None:
        """Let go of the connection."""
        if not self._over:
            self._reusable = False
            self._finish()

    def _piece(self, size: int) -> bytes:
        now = time.monotonic()
        deadline = None if self._patience is None else now + self._patience
        if self._deadline is not None:
            deadline = self._deadline if deadline is None else min(deadline, self._deadline)
        self._connection.socket.deadline = deadline
        try:
            piece: bytes = self._raw.read1(size)
        except _FAILURES as error:
            self.close()
            raise explained(*self._asked, error, self._patience) from error
        if not piece and self._watch is not None and self._watch.aborted:
            raise self._cut_off()
        return piece

    def _finish(self) -> None:
        self._over = True
        if self._watch is not None:
            self._watch.detach()
        self._raw.close()
        self._client._take_back(
            self._connection, reusable=self._reusable and not self._raw.will_close
        )

    def _cut_off(self) -> RemoteError:
        self.close()
        error = http.client.IncompleteRead(b"")
        failure = explained(*self._asked, error, self._patience)
        failure.__cause__ = error
        return failure

    def _refused(self, why: str) -> RemoteError:
        self.close()
        method, url = self._asked
        return RemoteError(f"{method} {shown(url)}: {why}", status=self.status)


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
            Seconds until the answer must be there whole; by default ten times `timeout`.
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
        if not (body is None or isinstance(body, bytes)):
            retries = 0
        for attempt in range(retries + 1):
            pause = 0.0
            try:
                with self.stream(
                    method,
                    url,
                    headers=headers,
                    body=body,
                    timeout=timeout,
                    total=total,
                    watch=watch,
                    connect_timeout=connect_timeout,
                ) as stream:
                    response = Response(stream.status, stream.headers, stream.read_all(limit))
                if response.status not in _AGAIN or attempt == retries:
                    return response
                pause = retry_after(response.headers) or 0.0
            except RemoteError as error:
                if attempt == retries or not isinstance(
                    error.__cause__, (OSError, http.client.IncompleteRead)
                ):
                    raise
            pause = max(pause, _BACKOFF * 2**attempt * random.uniform(0.5, 1.5))
            time.sleep(min(pause, _MAX_PAUSE))
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
            stream = self._send(
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

    def _send(
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
        safe = method in ("GET", "HEAD") and body is None
        while True:
            connection = self._take(address)
            sent = _Sent()
            try:
                if connection is None:
                    limit = self.connect_timeout if connect_timeout is None else connect_timeout
                    if deadline is not None:
                        left = max(0.001, deadline - time.monotonic())
                        limit = left if limit is None else min(left, limit)
                    try:
                        connection = connect(address, timeout=limit, context=self._tls)
                    except _FAILURES as error:
                        raise explained(method, url, error, limit) from error
                head = None if patience is None else time.monotonic() + 2 * patience
                if deadline is not None:
                    head = deadline if head is None else min(head, deadline)
                connection.bound(patience=patience, deadline=head, watch=watch)
                if watch is not None:
                    watch.attach(connection.socket)
                raw = _exchange(connection, method, target, headers, body, sent)
                return HttpStream(
                    self,
                    connection,
                    raw,
                    asked=(method, url),
                    patience=patience,
                    deadline=deadline,
                    watch=watch,
                    reusable=sent.whole,
                )
            except BaseException as error:
                if watch is not None:
                    watch.detach()
                stale = connection is not None and connection.used
                if connection is not None:
                    connection.close()
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
            if usable(connection):
                return connection
            connection.close()
        return None

    def _take_back(self, connection: Connection, *, reusable: bool) -> None:
        idle = self._idle.setdefault(connection.address, [])
        if reusable and len(idle) < self._connections:
            connection.used = True
            connection.bound(patience=None, deadline=None)
            idle.append(connection)
        else:
            connection.close()

    def _tls(self) -> ssl.SSLContext:
        with self._context_lock:
            if self._context is None:
                self._context = ssl.create_default_context()
            return self._context


class _Sent:
    """Whether a request went out whole."""

    __slots__ = ("whole",)

    def __init__(self) -> None:
        self.whole = False


class _Broken(Exception):
    """What went wrong between us and the server; what the caller's body raises is not that."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


def _exchange(
    connection: Connection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Body,
    sent: _Sent,
) -> http.client.HTTPResponse:
    whole = body if isinstance(body, bytes) else None
    failure: Exception | None = None
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
    except _FAILURES as error:
        raise _Broken(error) from error
    pieces: Iterable[bytes] = ()
    if whole is not None:
        pieces = (whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE))
    elif body is not None and not isinstance(body, bytes):
        pieces = _chunks(body)
    for piece in pieces:
        try:
            connection.send(piece)
        except _FAILURES as error:
            failure = error  # the server may have answered why it reads no more
            break
    try:
        raw = connection.getresponse()
    except _FAILURES as error:
        raise _Broken(failure or error) from error
    sent.whole = failure is None
    return raw


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
                connections.pop().close()
            except IndexError:
                break
