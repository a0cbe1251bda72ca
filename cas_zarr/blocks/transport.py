"""Connections over which HTTP is spoken: bounded in time, and open to being given up.

What is spoken over them is the business of the standard library's ``http.client``. Here stands what
it lacks: sockets that end a slow trickle, and a handle by which another thread ends a request.
"""

from __future__ import annotations

import http.client
import io
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from cas_zarr.blocks.hosts import look_up
from cas_zarr.errors import InvalidArgumentError, RemoteError

__all__ = [
    "BUFFER",
    "MAX_HEADERS",
    "Address",
    "Answer",
    "Connection",
    "TooLargeError",
    "Watch",
    "Wire",
    "connect",
    "explained",
    "parse_url",
    "shown",
]

Address = tuple[str, str, int]
"""Scheme, host and port."""

MAX_HEADERS = 1 << 16
"""Bytes of headers that are read."""

BUFFER = 1 << 13
"""Bytes of a body that may come along with the end of the headers."""

_MAX_TRAILERS, _MAX_TRAILER = 100, 1 << 13
_PORTS = {"http": 80, "https": 443}
_STRANGE = re.compile(r"[^!-~]")
_USER = re.compile(r"//[^/]*@")
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
        self.due = None if after is None or then is None else time.monotonic() + after
        self._then = then
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self.aborted = False

    def abort(self) -> None:
        """End the request from any thread: it fails at once. One that is over stays as it is."""
        with self._lock:
            self.aborted = True
            if self._wire is not None:
                self._wire.cut()

    def attach(self, wire: Wire) -> None:
        """Let `abort` end what goes over `wire`."""
        with self._lock:
            self._wire = wire
            if self.aborted:
                wire.cut()

    def detach(self) -> None:
        """Let go of the wire: another request may use it now."""
        with self._lock:
            self._wire = None

    def ring(self) -> None:
        """Tell that it takes long."""
        self.due = None
        if self._then is not None:
            self._then()


class Wire:
    """A connected socket as ``http.client`` takes it, whose reads and writes have an end.

    Attributes
    ----------
    patience : float or None
        Seconds that a read or a write may take.
    deadline : float or None
        When the last of them ends, on the monotonic clock.
    room : int or None
        How many bytes may still come.
    watch : Watch or None
    """

    def __init__(self, sock: socket.socket) -> None:
        self.patience: float | None = None
        self.deadline: float | None = None
        self.room: int | None = None
        self.watch: Watch | None = None
        self._socket = sock

    def recv_into(self, buffer: Any) -> int:
        """Read what has come, at least one byte; 0 at the end."""
        end = self._end()
        while True:
            due = None if self.watch is None else self.watch.due
            rings = due is not None and (end is None or due < end)
            try:
                self._allow(due if rings else end)
                count = self._socket.recv_into(buffer)
                break
            except TimeoutError:
                if not rings or self.watch is None:
                    raise
                self.watch.ring()
        if self.room is not None:
            self.room -= count
            if self.room < 0:
                raise TooLargeError
        return count

    def sendall(self, data: bytes) -> None:
        """Send bytes."""
        self._allow(self._end())
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002
        """Return a file that reads from here; closing it leaves the socket open."""
        return io.BufferedReader(_Reader(self), BUFFER)

    def close(self) -> None:
        """Do nothing: ``http.client`` closes before the body is read."""

    def hang_up(self) -> None:
        """Close the socket."""
        self._socket.close()

    def cut(self) -> None:
        """End the connection under whoever reads or writes."""
        with suppress(OSError):  # it is closed already
            # Not its own: that of TLS would drop the keys under the thread that reads.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def readable(self) -> bool:
        """Tell whether there are bytes, or the end."""
        try:
            if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
                return True
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # closed meanwhile
            return True

    def _end(self) -> float | None:
        """Return when a read or a write that begins now has to end."""
        silent = _after(self.patience)
        if silent is None or self.deadline is None:
            return self.deadline if silent is None else silent
        return min(silent, self.deadline)

    def _allow(self, end: float | None) -> None:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)


class _Reader(io.RawIOBase):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._wire.recv_into(buffer)


class TooLargeError(http.client.HTTPException):
    """More came than there was room for."""


class Answer(http.client.HTTPResponse):
    """An answer, with the trailers that came behind its body.

    What a server says before its answer (1xx) is skipped; 101 is none of these.
    """

    trailers: Mapping[str, str] = MappingProxyType({})

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if not 101 < found[1] < 200:
                return found
            http.client.parse_headers(self.fp)

    def _read_and_discard_trailer(self) -> None:
        trailers: dict[str, str] = {}
        for _ in range(_MAX_TRAILERS):
            line = self.fp.readline(_MAX_TRAILER + 1)
            if line in (b"\r\n", b"\n"):
                self.trailers = trailers
                return
            if not line:
                raise http.client.IncompleteRead(b"")
            if len(line) > _MAX_TRAILER:
                break
            name, _, value = line.decode("latin-1").partition(":")
            trailers[name.strip().lower()] = value.strip()
        raise http.client.LineTooLong("trailers")


class Connection(http.client.HTTPConnection):
    """A connection that never opens itself anew behind our back."""

    auto_open = 0
    response_class = Answer

    def __init__(self, address: Address, sock: socket.socket) -> None:
        super().__init__(address[1], address[2])
        self.default_port = _PORTS[address[0]]
        self.address = address
        self.wire = Wire(sock)  # http.client drops its own where the server will close
        self.sock: Any = self.wire
        self.used = False

    def hang_up(self) -> None:
        """Close the connection."""
        self.close()
        self.wire.hang_up()

    def usable(self) -> bool:
        """Tell whether an idle connection can carry another request."""
        # Bytes that nobody asked for, or its end.
        return self.sock is not None and not self.wire.readable()


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
        host = port = None
    # A line break that got into a request would be a second request.
    if not host or port == 0 or _STRANGE.search(url):
        raise InvalidArgumentError(
            f"{shown(url)!r} is no url; give one like http://127.0.0.1:8080/path, quoted"
        )
    if parts.scheme not in _PORTS:
        raise InvalidArgumentError(f"{shown(url)!r} is no url of http or https")
    if parts.username is not None or parts.password is not None:
        raise InvalidArgumentError(
            f"the url of {host} holds a user or a password; give them as a header or a token"
        )
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    return (parts.scheme, host, port or _PORTS[parts.scheme]), target


def shown(url: str) -> str:
    """Return a URL as messages show it: without user, password and query, which hold secrets."""
    return _USER.sub("//", url.partition("?")[0].partition("#")[0])[:_SHOWN]


def connect(
    address: Address, *, timeout: float | None, context: Callable[[], ssl.SSLContext]
) -> Connection:
    """Open a connection; to look up its host, all its addresses, and TLS end with the time-out.

    Parameters
    ----------
    address : Address
    timeout : float or None
        In seconds.
    context : callable
        Gives the context for TLS, where it is needed.
    """
    scheme, host, port = address
    end = _after(timeout)
    found = look_up(host, port, timeout=timeout)
    error: OSError = OSError("the host has no address")
    for row, (family, kind, protocol, _, where) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(end, share=len(found) - row))
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                sock.settimeout(_left(end))
                sock = context().wrap_socket(sock, server_hostname=host)
            return Connection(address, sock)
        except OSError as failure:
            error = failure
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise error


def explained(method: str, url: str, error: BaseException, timeout: float | None) -> RemoteError:
    """Return the error that says in words what went wrong."""
    head = f"{method} {shown(url)}"
    if isinstance(error, (socket.gaierror, UnicodeError)):
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
    elif isinstance(error, TooLargeError):
        why = f"its headers have more than the {MAX_HEADERS} bytes that are read; check the url"
    elif isinstance(error, http.client.IncompleteRead):
        why = "the answer is cut off; try again"
    elif isinstance(error, (http.client.HTTPException, ValueError)):
        why = f"the answer is not that of an http server ({type(error).__name__}); check the url"
    else:
        reason = getattr(error, "strerror", None) or type(error).__name__
        why = f"the connection failed ({reason}); try again, or check the url"
    return RemoteError(f"{head}: {why}")


def _after(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _left(end: float | None, *, share: int = 1) -> float | None:
    """Return the seconds until a time, divided among some; a little where none are left."""
    return None if end is None else max((end - time.monotonic()) / share, 0.001)
