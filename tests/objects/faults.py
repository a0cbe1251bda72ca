"""A proxy before a server of S3 that lets things go wrong, and counts what it is asked.

::

    with fault_proxy(server.url) as faults:
        store = S3Store(..., endpoint=faults.url)
        faults.script("slow", "lost")       # the next two requests
        faults.at_random(0.3, seed=1)       # and a share of all others

The faults: ``slow`` (503 SlowDown), ``cut`` (the connection is reset before the request is passed
on), ``lost`` (it is passed on, and reset before the answer), ``half`` (the answer breaks off in the
middle), ``wrong`` (a byte of the body is another), ``conflict`` (409, as where two put at once),
``skewed`` (403, as where a clock is wrong), ``expired`` (400, and it says the token back),
``denied`` (403), ``broken`` (500), ``stall`` (no answer for as long as anyone waits), ``none``.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

__all__ = ["Faults", "Request", "fault_proxy"]

RANDOM = ("slow", "cut", "lost", "half", "broken")
"""What happens at random: what a client can do something about."""

_ANSWERS = {
    "slow": (503, "SlowDown", "Please reduce your request rate."),
    "broken": (500, "InternalError", "We encountered an internal error. Please try again."),
    "conflict": (409, "ConditionalRequestConflict", "Another request is in progress."),
    "skewed": (403, "RequestTimeTooSkewed", "The difference between the times is too large."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
_TO_PASS = (
    "authorization",
    "content-md5",
    "content-type",
    "host",
    "if-match",
    "if-none-match",
    "range",
)


@dataclass(frozen=True)
class Request:
    """A request, and what was done to it."""

    method: str
    path: str
    fault: str
    condition: str
    size: int


class Faults:
    """What a proxy does, and what it was asked.

    Attributes
    ----------
    url : str
    latency : float
        Seconds before each answer.
    requests : list of Request
    busiest : int
        How many there were at once.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.url = ""
        self.latency = 0.0
        self.requests: list[Request] = []
        self.busiest = self.busy = 0
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._script: deque[str] = deque()
        self._always = ""
        self._share = 0.0
        self._random = random.Random(0)

    def script(self, *faults: str) -> None:
        """Let the next requests go wrong, each in its way."""
        with self._lock:
            self._script.extend(faults)

    def always(self, fault: str = "") -> None:
        """Let all requests that no script is for go wrong in one way, or in none."""
        with self._lock:
            self._always = fault

    def at_random(self, share: float, seed: int = 0) -> None:
        """Let a share of the requests go wrong; which ones depends on the order they come in."""
        with self._lock:
            self._share = share
            self._random = random.Random(seed)

    def taken(self) -> list[Request]:
        """Return the requests since the last time."""
        with self._lock:
            out, self.requests = self.requests, []
        return out

    def begun(self, handler: BaseHTTPRequestHandler, size: int) -> str:
        """Note a request, and return what is to be done to it."""
        headers = handler.headers
        condition = headers.get("if-none-match") or headers.get("if-match") or ""
        with self._lock:
            if self._script:
                fault = self._script.popleft()
            elif self._random.random() < self._share:
                fault = self._random.choice(RANDOM)
            else:
                fault = self._always
            path = handler.path
            self.requests.append(Request(handler.command, path, fault, condition, size))
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        return fault

    def ended(self) -> None:
        """Note that a request was answered, or not."""
        with self._lock:
            self.busy -= 1


@contextmanager
def fault_proxy(upstream: str) -> Iterator[Faults]:
    """Run a proxy in threads, before a server at a URL; gives what controls it."""
    faults = Faults(upstream)
    handler = type("Handler", (_Handler,), {"faults": faults})
    server = _Server(("127.0.0.1", 0), handler)
    faults.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield faults
    finally:
        faults.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a connection that is kept would be waited for
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients go away here."""


class _Handler(BaseHTTPRequestHandler):
    faults: Faults
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    _upstream: HTTPConnection | None = None
    _busy = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_all(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(size)
        fault = self.faults.begun(self, size)
        self._busy = True
        try:
            if self.faults.latency:
                time.sleep(self.faults.latency)
            self._answer(fault, body)
        finally:
            self._ended()

    def _ended(self) -> None:
        """Count a request no more, before it is answered: then its client asks for the next."""
        if self._busy:
            self._busy = False
            self.faults.ended()

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = handle_all

    def _answer(self, fault: str, body: bytes) -> None:
        if fault in _ANSWERS:
            return self._refuse(*_ANSWERS[fault])
        if fault == "stall":
            self.faults.released.wait(30)
            return self._cut()
        if fault == "cut":
            return self._cut()
        answer, data = self._pass_on(body)
        if fault == "lost":
            return self._cut()
        if fault == "wrong" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return self._pass_back(answer, data, half=fault == "half")

    def _pass_on(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() in _TO_PASS or name.lower().startswith("x-amz-")
        }
        for attempt in (1, 2):
            if self._upstream is None:
                place = urlsplit(self.faults.upstream)
                self._upstream = HTTPConnection(place.hostname or "", place.port, timeout=60)
            try:
                self._upstream.request(self.command, self.path, body or None, headers)
                answer = self._upstream.getresponse()
                return answer, answer.read()
            except (HTTPException, OSError):  # it was kept for too long
                self._upstream.close()
                self._upstream = None
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def _pass_back(self, answer: HTTPResponse, data: bytes, *, half: bool) -> None:
        self._ended()
        self.send_response(answer.status)
        length = answer.headers.get("content-length") if self.command == "HEAD" else None
        for name, value in answer.headers.items():
            if name.lower() not in ("connection", "content-length", "date", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("content-length", length or str(len(data)))
        self.end_headers()
        if half:
            self.wfile.write(data[: len(data) // 2])
            return self._cut()
        self.wfile.write(data)
        return None

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._ended()
        token = self.headers.get("x-amz-security-token", "")
        data = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}'
            f"</Message><Token-0>{token}</Token-0></Error>"
        ).encode()
        self.send_response(status)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _cut(self) -> None:
        """Reset the connection: not even its end comes in order."""
        self._ended()
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()
        if self._upstream is not None:
            self._upstream.close()
