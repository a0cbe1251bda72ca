"""Connections of a server: how many there are, and how long one may be without a whole request.

aiohttp bounds the time between requests, not that of a head which comes a byte at a time. Here a
connection has to have its next request understood within a time from the end of its last answer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

__all__ = ["Connections", "cut"]


def cut(transport: Any) -> None:
    """End a connection by a reset: to a client of HTTP/1.0 any other end is that of the body."""
    if transport is None:
        return
    if (connection := transport.get_extra_info("socket")) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Connections:
    """Makes the protocol of each connection, and cuts off those that are too many or too slow.

    Parameters
    ----------
    times : dict
        By transport, when its last answer ended (in the time of the loop); None while one is sent.
        The application keeps it.
    idle : float
        Seconds.
    most : int
        Connections at once.
    """

    def __init__(self, times: dict[Any, float | None], *, idle: float, most: int) -> None:
        self.times = times
        self.idle = idle
        self.most = most
        self.make: Any = None

    def __call__(self) -> asyncio.Protocol:
        return _Watched(self.make(), self)

    async def end(self) -> None:
        """Cut off what is left: a client that takes nothing would keep its connection open."""
        for transport in list(self.times):
            cut(transport)
        await asyncio.sleep(0)  # they are closed in the next round of the loop


class _Watched(asyncio.Protocol):
    """Hands everything to the protocol of aiohttp, and keeps the time."""

    def __init__(self, inner: Any, all: Connections) -> None:
        self._inner = inner
        self._all = all
        self._timer: asyncio.TimerHandle | None = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        loop = asyncio.get_running_loop()
        self._transport = transport
        self._all.times[transport] = loop.time()
        self._inner.connection_made(transport)
        if len(self._all.times) > self._all.most:
            self._transport.abort()
        else:
            self._timer = loop.call_later(self._all.idle, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.times.pop(self._transport, None)
        if self._timer is not None:
            self._timer.cancel()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        found: bool | None = self._inner.eof_received()
        return found

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        ended = self._all.times.get(self._transport)
        left = self._all.idle if ended is None else ended + self._all.idle - loop.time()
        if left > 0:
            self._timer = loop.call_later(left + 0.01, self._look)
        else:
            self._transport.abort()
