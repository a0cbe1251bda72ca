"""A gateway on loopback that answers as it is told to: honestly, wrongly, slowly, for ever."""
# ruff: noqa: ARG001  (the lies share one signature)

from __future__ import annotations

import gzip
import io
import random
import socket
import ssl
from collections.abc import Callable, Mapping

from cas_zarr.cid import BLAKE3, RAW, CidBytes, as_cid_bytes, cid_of, digest_of
from cas_zarr.codecs.car import CarWriter, encode_wrapper
from cas_zarr.errors import CasZarrError
from servers.loopback import Loopback, Request, parse_request

__all__ = ["LIES", "LyingGateway"]

RAW_TYPE = "application/vnd.ipld.raw"
CAR_TYPE = "application/vnd.ipld.car; version=1; order=dfs; dups=n"


class LyingGateway(Loopback):
    """A gateway that answers as it is told to.

    Parameters
    ----------
    blocks : mapping
        What the gateway has; a CAR has all of them, in their order.
    lie : str
        ``honest``, ``missing``, or one of `LIES`.
    times : int, optional
        Only so many requests are answered with the lie, the rest honestly.
    delay : float
        Seconds before every answer.
    keep_alive : bool
        Whether an honest answer leaves the connection open.
    context : ssl.SSLContext, optional
        For TLS.

    Attributes
    ----------
    requests : list of Request
    sent : int
        Bytes of bodies that went out.
    """

    def __init__(
        self,
        blocks: Mapping[CidBytes, bytes] | None = None,
        lie: str = "honest",
        *,
        times: int | None = None,
        delay: float = 0.0,
        keep_alive: bool = True,
        context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(context=context)
        self.blocks = dict(blocks or {})
        self._digests = {digest_of(cid): data for cid, data in self.blocks.items()}
        self.lie = lie
        self.delay = delay
        self.requests: list[Request] = []
        self.sent = 0
        self._times = times
        self._keep_alive = keep_alive

    # -- serving ------------------------------------------------------------------------------

    def serve(self, sock: socket.socket, lines: io.BufferedReader) -> None:
        while (request := parse_request(lines)) is not None:
            with self._lock:
                self.requests.append(request)
                lie = self.lie
                if self._times is not None:
                    self._times -= 1
                    lie = self.lie if self._times >= 0 else "honest"
            self.wait(self.delay)
            if lie == "honest":
                self._honest(sock, request)
                if self._keep_alive:
                    continue
            elif lie == "missing":
                self.answer(sock, b"no such block", status="404 Not Found")
                continue
            else:
                LIES[lie](self, sock, request)
            return

    def send(self, sock: socket.socket, data: bytes) -> None:
        """Send a part of a body."""
        sock.sendall(data)
        with self._lock:
            self.sent += len(data)

    def answer(
        self,
        sock: socket.socket,
        body: bytes = b"",
        *,
        status: str = "200 OK",
        kind: str = RAW_TYPE,
        length: int | None = None,
        extra: str = "",
        head: bool = False,
    ) -> None:
        """Send an answer."""
        size = len(body) if length is None else length
        start = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{extra}\r\n"
        )
        sock.sendall(start.encode("latin-1"))
        if not head:
            self.send(sock, body)

    def block(self, request: Request) -> bytes | None:
        """Return the block that is asked for, if it is here."""
        name = request.target.partition("?")[0].split("/")[2:3]
        try:
            return self._digests.get(digest_of(as_cid_bytes(name[0])))
        except (IndexError, CasZarrError):
            return None

    def car(self) -> bytes:
        """Return a CAR of all blocks, the first one its root."""
        out = io.BytesIO()
        writer = CarWriter(out, list(self.blocks)[:1], version=1)
        for cid, data in self.blocks.items():
            writer.put(cid, data)
        return out.getvalue()

    def _honest(self, sock: socket.socket, request: Request) -> None:
        data = self.block(request)
        head = request.method == "HEAD"
        if data is None:
            self.answer(sock, b"no such block", status="404 Not Found", head=head)
        elif "format=car" in request.target:
            self.answer(sock, self.car(), kind=CAR_TYPE, head=head)
        else:
            self.answer(sock, data, head=head)


# -- the lies -----------------------------------------------------------------------------------


def _wrong(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    data = bytearray(server.block(request) or b"other")
    data[len(data) // 2] ^= 1
    server.answer(sock, bytes(data))


def _truncated(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    data = server.block(request) or b"data"
    server.answer(sock, data[: len(data) // 2], length=len(data))


def _cut_short(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    data = server.block(request) or b"data"
    server.answer(sock, data, length=len(data) // 2)


def _claims_much(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    server.answer(sock, server.block(request) or b"data", length=10**15)


def _endless(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.ipld.raw\r\n\r\n")
    while server.wait(0):
        server.send(sock, bytes(1 << 16))


def _endless_chunks(
    server: LyingGateway,
    sock: socket.socket,
    request: Request,
) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while server.wait(0):
        server.send(sock, b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def _negative_chunks(
    server: LyingGateway,
    sock: socket.socket,
    request: Request,
) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n")
    while server.wait(0):
        server.send(sock, bytes(1 << 16))


def _trickle(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    data = server.block(request) or b"data"
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
    for at in range(len(data)):
        server.send(sock, data[at : at + 1])
        if not server.wait(0.05):
            return


def _trickling_head(
    server: LyingGateway,
    sock: socket.socket,
    request: Request,
) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while server.wait(0.05):
        server.send(sock, b"x")


def _continues(
    server: LyingGateway,
    sock: socket.socket,
    request: Request,
) -> None:
    while server.wait(0.01):
        server.send(sock, b"HTTP/1.1 100 Continue\r\n\r\n")


def _silent(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    while server.wait(1):
        pass


def _closes(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def _garbage(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    server.send(sock, random.Random(1).randbytes(1000) + b"\r\n\r\n")


def _redirect_away(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    extra = f"Location: http://127.0.0.2:9{request.target}\r\n"
    server.answer(sock, status="302 Found", extra=extra)


def _redirect_loop(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    extra = f"Location: {request.target}\r\n"
    server.answer(sock, status="302 Found", extra=extra)


def _long_header(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    server.answer(sock, server.block(request) or b"", extra=f"X-Long: {'x' * (8 << 20)}\r\n")


def _large_headers(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    extra = "".join(f"X-{i}: {'x' * 60_000}\r\n" for i in range(20))
    server.answer(sock, server.block(request) or b"", extra=extra)


def _many_headers(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    extra = "".join(f"X-{i}: x\r\n" for i in range(50_000))
    server.answer(sock, server.block(request) or b"", extra=extra)


def _html(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    server.answer(sock, b"<html>please log in</html>", kind="text/html")


def _gzip_bomb(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    server.answer(sock, gzip.compress(bytes(32 << 20)), extra="Content-Encoding: gzip\r\n")


def _busy(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    server.answer(sock, status="429 Too Many Requests", extra="Retry-After: 1\r\n")


def _busy_for_long(
    server: LyingGateway,
    sock: socket.socket,
    request: Request,
) -> None:
    server.answer(sock, status="429 Too Many Requests", extra="Retry-After: 3600\r\n")


def _broken(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    server.answer(sock, b"oops", status="500 Internal Server Error")


def _foreign_car(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {CAR_TYPE}\r\n\r\n".encode())
    server.send(sock, server.car())
    count = 0
    while server.wait(0):
        data = b"%d" % count
        out = io.BytesIO()
        CarWriter(out, (), version=1).put(cid_of(RAW, BLAKE3, data), data)
        server.send(sock, out.getvalue()[19:])
        count += 1


def _truncated_car(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    car = server.car()
    server.answer(sock, car[:-10], length=len(car), kind=CAR_TYPE)


def _short_car(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {CAR_TYPE}\r\n\r\n".encode())
    server.send(sock, server.car()[:-10])


def _padded_car(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    """Send a CARv2 whose blocks begin after 2^60 bytes."""
    sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {CAR_TYPE}\r\n\r\n".encode())
    wrapper = encode_wrapper(1 << 20, 0, data_offset=1 << 60)
    for at in range(len(wrapper)):
        server.send(sock, wrapper[at : at + 1])
    while server.wait(0):
        server.send(sock, bytes(1 << 16))


def _dripped_car(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    """Send a sound CAR byte by byte."""
    car = server.car()
    server.answer(sock, length=len(car), kind=CAR_TYPE)
    for at in range(len(car)):
        server.send(sock, car[at : at + 1])
    server.wait(5)


def _escapes(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    server.answer(sock, b"x", kind="text/\x1b[31mhtml")


def _wrong_car(server: LyingGateway, sock: socket.socket, request: Request) -> None:
    car = bytearray(server.car())
    car[-1] ^= 1
    server.answer(sock, bytes(car), kind=CAR_TYPE)


LIES: dict[str, Callable[[LyingGateway, socket.socket, Request], None]] = {
    "broken": _broken,
    "busy": _busy,
    "busy for long": _busy_for_long,
    "claims much": _claims_much,
    "closes": _closes,
    "continues": _continues,
    "cut short": _cut_short,
    "dripped car": _dripped_car,
    "endless": _endless,
    "escapes": _escapes,
    "endless chunks": _endless_chunks,
    "foreign car": _foreign_car,
    "garbage": _garbage,
    "gzip bomb": _gzip_bomb,
    "html": _html,
    "large headers": _large_headers,
    "long header": _long_header,
    "many headers": _many_headers,
    "negative chunks": _negative_chunks,
    "padded car": _padded_car,
    "redirect away": _redirect_away,
    "redirect loop": _redirect_loop,
    "short car": _short_car,
    "silent": _silent,
    "trickle": _trickle,
    "trickling head": _trickling_head,
    "truncated": _truncated,
    "truncated car": _truncated_car,
    "wrong": _wrong,
    "wrong car": _wrong_car,
}
"""What it can do wrong, by name."""
