"""Servers over bare sockets on loopback: no server library would send what tests have to send."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["Loopback", "Request", "Scripted", "Talk", "parse_request"]


@dataclass(frozen=True)
class Request:
    """What came in: method, target, headers with names in lower case, and the body."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


class Loopback(ABC):
    """A context manager that serves; its threads end with it.

    Parameters
    ----------
    context : ssl.SSLContext, optional
        For a server with TLS.

    Attributes
    ----------
    url : str
    connections : int
        How many there were.
    """

    def __init__(self, *, context: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self._context = context
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        scheme = "http" if context is None else "https"
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    # Not its own: that of TLS would drop the keys under the thread that reads.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(10)

    @abstractmethod
    def serve(self, sock: socket.socket, lines: io.BufferedReader) -> None:
        """Serve one connection; it is closed when this returns."""

    def wait(self, seconds: float) -> bool:
        """Wait; tell whether the server still runs."""
        return not self._stopped.wait(seconds)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            if self._context is not None:
                sock = stack.enter_context(self._context.wrap_socket(sock, server_side=True))
            with self._lock:
                self._open.add(sock)
            try:
                if not self._stopped.is_set():
                    self.serve(sock, stack.enter_context(sock.makefile("rb")))
            finally:
                with self._lock:
                    self._open.discard(sock)


class Talk:
    """One connection, as a script of a test sees it."""

    def __init__(self, server: Scripted, sock: socket.socket, lines: io.BufferedReader) -> None:
        self.sock = sock
        self._server = server
        self._lines = lines

    def request(self, *, body: bool = True) -> Request:
        """Take the next request, with or without its body; the connection ends if there is none."""
        request = parse_request(self._lines, body=body)
        if request is None:
            raise ConnectionError("the client hung up")
        self._server.requests.append(request)
        return request

    def head(self) -> None:
        """Take the next request up to its body."""
        self.request(body=False)

    def send(self, *pieces: bytes) -> None:
        """Send bytes as they are."""
        for piece in pieces:
            self.sock.sendall(piece)

    def answer(self, body: bytes = b"", *, status: str = "200 OK", extra: str = "") -> None:
        """Send an answer of known length."""
        self.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode(), body)

    def hold(self) -> None:
        """Stay silent until the test ends."""
        self._server.wait(60)

    def wait(self, seconds: float) -> bool:
        """Wait; tell whether the server still runs."""
        return self._server.wait(seconds)


class Scripted(Loopback):
    """A server that does what a test says, connection by connection.

    Parameters
    ----------
    scripts : callable
        The first serves the first connection, and so on; the last one all that come after it.

    Attributes
    ----------
    requests : list of Request
        Those that a script has taken.
    """

    def __init__(
        self, *scripts: Callable[[Talk], object], context: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(context=context)
        self.requests: list[Request] = []
        self._scripts = list(scripts)

    def serve(self, sock: socket.socket, lines: io.BufferedReader) -> None:
        with self._lock:
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        script(Talk(self, sock, lines))


def parse_request(lines: io.BufferedReader, *, body: bool = False) -> Request | None:
    """Read a request, or None where the client hung up."""
    first = lines.readline().decode("latin-1").split()
    if len(first) != 3:
        return None
    headers = {}
    while (line := lines.readline().decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    data = b""
    if body and "content-length" in headers:
        data = lines.read(int(headers["content-length"]))
    elif body and headers.get("transfer-encoding") == "chunked":
        while size := int(lines.readline() or b"-1", 16):
            if size < 0:
                return None
            data += lines.read(size)
            lines.readline()
        lines.readline()
    return Request(first[0], first[1], headers, data)
