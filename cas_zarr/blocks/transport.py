"""Connections over which HTTP is spoken: bounded in time, and open to being given up.

What is spoken over them is the business of the standard library's ``http.client``. Here stands what
it lacks: sockets that end a slow trickle, and a handle by which another thread ends a request.
"""

from __future__ import annotations

import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from cas_zarr.errors import InvalidArgumentError, RemoteError

__all__ = ["Address", "Connection", "Watch", "connect", "explained", "parse_url", "shown", "usable"]

Address = tuple[str, str, int]
"""Scheme, host and port."""

_PORTS = {"http": 80, "https": 443}
_STRANGE = re.compile(r"[^!-~]")
_SHOWN = 300


class Watch:
    """A handle on one request: to be told when it takes long, and to give it up.

    Parameters
    ----------
    after : float, optional
        Seconds after which `then` is called, once, if the request still waits for bytes.
    then : callable, optional
        Is called in the thread that waits, and must not block.
    """

    def __init__(
        self, *, after: float | None = None, then: Callable[[], object] | None = None
    ) -> None:
        self._due = None if after is None else time.monotonic() + after
        self._then = then
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.aborted = False

    def abort(self) -> None:
        """End the request from any thread: it fails at once. One that is over stays as it is."""
        with self._lock:
            self.aborted = True
            if self._socket is not None:
                _shut(self._socket)

    def attach(self, sock: socket.socket) -> None:
        """Let `abort` end what goes over `sock`."""
        with self._lock:
            self._socket = sock
            if self.aborted:
                _shut(sock)

    def detach(self) -> None:
        """Let go of the socket: another request may use it now."""
        with self._lock:
            self._socket = None

    def wait(self, sock: socket.socket) -> None:
        """Return when bytes are there, or when `then` was called."""
        if self._due is None or self._then is None:
            return
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return
        left = self._due - time.monotonic()
        if left > 0 and _readable(sock, left):
            return
        self._due = None
        self._then()


class _Bounded(Protocol):
    patience: float | None
    deadline: float | None
    watch: Watch | None


def _allow(sock: Any) -> None:
    """Give the next read as long as patience and deadline leave."""
    bounds = cast(_Bounded, sock)
    if bounds.watch is not None:
        bounds.watch.wait(sock)
    patience = bounds.patience
    if bounds.deadline is not None:
        left = bounds.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        patience = left if patience is None else min(left, patience)
    sock.settimeout(patience)


class _Plain(socket.socket):
    patience: float | None = None
    deadline: float | None = None
    watch: Watch | None = None

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        _allow(self)
        return super().recv_into(buffer, nbytes, flags)


class _Secure(ssl.SSLSocket):
    patience: float | None = None
    deadline: float | None = None
    watch: Watch | None = None

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        _allow(self)
        return super().recv_into(buffer, nbytes, flags)


class Connection(http.client.HTTPConnection):
    """A connection that never opens itself anew behind our back."""

    auto_open = 0

    def __init__(self, address: Address, sock: _Plain | _Secure) -> None:
        super().__init__(address[1], address[2])
        self.default_port = _PORTS[address[0]]
        self.address = address
        self.socket = sock  # http.client drops its own where the server will close
        self.sock: Any = sock
        self.used = False

    def bound(
        self, *, patience: float | None, deadline: float | None, watch: Watch | None = None
    ) -> None:
        """Set how long a read may take from now on, and who watches."""
        self.socket.patience = patience
        self.socket.deadline = deadline
        self.socket.watch = watch
        self.socket.settimeout(patience)

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self.socket.close()


def parse_url(url: str) -> tuple[Address, str]:
    """Return the address that a URL leads to, and what is asked for there.

    Raises
    ------
    InvalidArgumentError
        If it is no URL of HTTP, holds credentials, or characters that have no place in one.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        host = None
    # A line break that got into a request would be a second request.
    if not host or _STRANGE.search(url):
        raise InvalidArgumentError(
            f"{url[:_SHOWN]!r} is no url; give one like http://127.0.0.1:8080/path, quoted"
        )
    if parts.scheme not in _PORTS:
        raise InvalidArgumentError(f"{url[:_SHOWN]!r} is no url of http or https")
    if parts.username is not None or parts.password is not None:
        raise InvalidArgumentError(
            f"the url of {host} holds a user or a password; give them as a header or a token"
        )
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    return (parts.scheme, host, port or _PORTS[parts.scheme]), target


def shown(url: str) -> str:
    """Return a URL as messages show it: without its query, which may hold a secret."""
    return url.partition("?")[0].partition("#")[0][:_SHOWN]


def connect(
    address: Address, *, timeout: float | None, context: Callable[[], ssl.SSLContext]
) -> Connection:
    """Open a connection; all its addresses together, and TLS, take about `timeout` seconds."""
    scheme, host, port = address
    end = None if timeout is None else time.monotonic() + timeout
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    error: OSError = OSError("the host has no address")
    for row, (family, kind, protocol, _, where) in enumerate(found):
        sock = _Plain(family, kind, protocol)
        try:
            if end is not None:
                share = (end - time.monotonic()) / (len(found) - row)
                sock.settimeout(max(share, 0.001))
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "http":
                return Connection(address, sock)
            settings = context()
            settings.sslsocket_class = _Secure
            secure = settings.wrap_socket(sock, server_hostname=host)
            return Connection(address, cast(_Secure, secure))
        except OSError as failure:
            error = failure
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise error


def usable(connection: Connection) -> bool:
    """Tell whether an idle connection can carry another request."""
    # Bytes that nobody asked for, or its end.
    return connection.sock is not None and not _readable(connection.socket, 0)


def explained(method: str, url: str, error: BaseException, timeout: float | None) -> RemoteError:
    """Return the error that says in words what went wrong."""
    head = f"{method} {shown(url)}"
    if isinstance(error, socket.gaierror):
        why = "the host has no address; check its name and the network"
    elif isinstance(error, ConnectionRefusedError):
        why = "nothing listens there; start the server, or check host and port"
    elif isinstance(error, ssl.SSLCertVerificationError):
        why = f"its certificate is refused ({error.verify_message}); check the host's name"
    elif isinstance(error, TimeoutError):
        limit = "the time given" if timeout is None else f"{timeout:g} s"
        why = f"no answer, or no more of it, within {limit}; try again, or allow more time"
    elif isinstance(error, (http.client.RemoteDisconnected, ConnectionError)):
        why = "the server closed the connection before it had answered; try again"
    elif isinstance(error, http.client.IncompleteRead):
        why = "the answer is cut off; try again"
    elif isinstance(error, (http.client.HTTPException, ValueError)):
        why = f"the answer is not that of an http server ({type(error).__name__}); check the url"
    else:
        reason = getattr(error, "strerror", None) or type(error).__name__
        why = f"the connection failed ({reason}); try again, or check the url"
    return RemoteError(f"{head}: {why}")


def _readable(sock: socket.socket, seconds: float) -> bool:
    try:
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))
    except (OSError, ValueError):  # closed meanwhile
        return True


def _shut(sock: socket.socket) -> None:
    # Not its own: that of TLS would drop the keys under the thread that reads.
    with suppress(OSError):  # it is closed already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
