"""The gateway as an application of aiohttp: reads in threads, bounded in number, time and memory.

`cas_zarr.server.gateway` decides what is answered. Here it is sent: one request has a thread while
it reads, a piece in memory while it sends, and a client that takes nothing for too long is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cas_zarr.errors import CasZarrError, InvalidArgumentError, MissingDependencyError
from cas_zarr.server.connections import cut
from cas_zarr.server.gateway import Gateway, Reply
from cas_zarr.server.negotiation import Asked

if TYPE_CHECKING:
    from aiohttp import web

    from cas_zarr.repository.repository import Repository

__all__ = ["ACCESS_LOG", "Limits", "aiohttp_web", "build_app", "make_app"]

ACCESS_LOG: Final = "cas_zarr.server.access"
"""Name of the logger that gets a line for each request."""

_log = logging.getLogger("cas_zarr.server")

_CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": (
        "Accept, Cache-Control, Content-Type, If-None-Match, If-Range, Range, User-Agent, "
        "X-Requested-With"
    ),
    "Access-Control-Expose-Headers": (
        "Accept-Ranges, Content-Disposition, Content-Length, Content-Location, Content-Range, "
        "Etag, X-Ipfs-Path, X-Ipfs-Roots"
    ),
}
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server gives to all its clients together, and to one.

    Attributes
    ----------
    requests : int
        Requests that are answered at once; another one waits for `queue` seconds, then it is told
        to come again (503).
    queue : float
        Seconds.
    threads : int
        Threads that read blocks.
    patience : float
        Seconds in which a client has to take a piece of at most 2 MiB.
    idle : float
        Seconds that a connection is kept without a whole request.
    connections : int
        Connections at once; one more is closed.
    """

    requests: int = 64
    queue: float = 5.0
    threads: int = 16
    patience: float = 30.0
    idle: float = 60.0
    connections: int = 512

    def __post_init__(self) -> None:
        for name in ("requests", "queue", "threads", "patience", "idle", "connections"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name} of a server is more than 0")


def aiohttp_web() -> Any:
    """Return the module `aiohttp.web`.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        from aiohttp import web
    except ImportError as error:
        raise MissingDependencyError(
            "a gateway needs aiohttp; install cas_zarr[gateway]"
        ) from error
    return web


@dataclass(slots=True)
class State:
    """What the requests of one application share."""

    gateway: Gateway
    limits: Limits
    pool: ThreadPoolExecutor
    slots: asyncio.Semaphore | None = None
    times: dict[Any, float | None] = field(default_factory=dict)  # see `Connections`


def make_app(
    repo: Repository, *, fetch: bool = False, limits: Limits | None = None
) -> web.Application:
    """Return an application that serves a repository, for reading only.

    Parameters
    ----------
    repo : Repository
        It may be written to, collected and repacked meanwhile: refs are read for each request.
    fetch : bool
        Of a partial clone: whether what is not here is fetched when a client asks for it.
    limits : Limits, optional

    Raises
    ------
    MissingDependencyError
        If aiohttp is not installed.
    """
    return build_app(repo, fetch=fetch, limits=limits or Limits())[0]


def build_app(
    repo: Repository, *, fetch: bool, limits: Limits
) -> tuple[web.Application, dict[Any, float | None]]:
    """Return what `make_app` does, and the times that `Connections` keeps an eye on."""
    web = aiohttp_web()
    pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="cas-zarr-gateway")
    state = State(Gateway(repo, fetch=fetch), limits, pool)

    async def handle(request: Any) -> Any:
        transport, loop = request.transport, asyncio.get_running_loop()
        if transport in state.times:
            state.times[transport] = None
        try:
            return await _handle(web, state, request)
        finally:
            if transport in state.times:
                state.times[transport] = loop.time()

    async def lifetime(_: Any) -> AsyncIterator[None]:
        yield
        pool.shutdown(wait=False, cancel_futures=True)

    app = web.Application(client_max_size=1)
    app.router.add_route("*", "/{path:.*}", handle)
    app.cleanup_ctx.append(lifetime)
    return app, state.times


async def _handle(web: Any, state: State, request: Any) -> Any:
    if state.slots is None:  # made here, so that it belongs to the loop that runs
        state.slots = asyncio.Semaphore(state.limits.requests)
    if request.method == "OPTIONS":
        return await _send(web, state, request, Reply(204, {}))
    if request.method not in ("GET", "HEAD"):
        text = b"this gateway is for reading only: GET, HEAD and OPTIONS\n"
        headers = {"Allow": "GET, HEAD, OPTIONS", "Content-Type": "text/plain; charset=utf-8"}
        return await _send(web, state, request, Reply(405, headers, text))
    try:
        await asyncio.wait_for(state.slots.acquire(), state.limits.queue)
    except TimeoutError:
        text = b"too many requests at once; come again\n"
        headers = {"Retry-After": "1", "Content-Type": "text/plain; charset=utf-8"}
        return await _send(web, state, request, Reply(503, headers, text))
    try:
        loop = asyncio.get_running_loop()
        asked = _asked(request)
        reply, first = await loop.run_in_executor(state.pool, _begin, state.gateway, asked)
        return await _send(web, state, request, reply, first)
    finally:
        state.slots.release()


async def _send(
    web: Any, state: State, request: Any, reply: Reply, first: bytes | memoryview | None = None
) -> Any:
    """Send an answer, a piece at a time; `first` is that of a body which is made as it is sent."""
    response = web.StreamResponse(status=reply.status, headers={**reply.headers, **_CORS})
    if reply.status not in (204, 304):
        response.content_length = reply.length
    patience = state.limits.patience
    try:
        await response.prepare(request)
        if request.method != "HEAD":
            async with aclosing(_pieces(state, reply, first)) as pieces:
                async for piece in pieces:
                    await asyncio.wait_for(response.write(piece), patience)
        await asyncio.wait_for(response.write_eof(), patience)
    except (CasZarrError, TimeoutError, OSError) as error:
        # A part must never be taken for the whole: the connection ends without the end of a body.
        level = logging.WARNING if isinstance(error, CasZarrError) else logging.INFO
        _log.log(level, "cut off the answer to %s: %s", request.path_qs[:200], error)
        cut(request.transport)
    return response


async def _pieces(
    state: State, reply: Reply, first: bytes | memoryview | None
) -> AsyncGenerator[bytes | memoryview, None]:
    body: Any = reply.body
    if isinstance(body, (bytes, memoryview)):
        for start in range(0, len(body), _PIECE):
            yield body[start : start + _PIECE]
        return
    loop, piece = asyncio.get_running_loop(), first
    while piece is not None:
        yield piece
        piece = await loop.run_in_executor(state.pool, next, body, None)


def _begin(gateway: Gateway, asked: Asked) -> tuple[Reply, bytes | memoryview | None]:
    """Return the answer and its first piece: what fails until then can still be told."""
    reply = gateway.answer(asked)
    if isinstance(reply.body, (bytes, memoryview)):
        return reply, None
    try:
        return reply, next(reply.body, None)
    except CasZarrError as error:
        return gateway.failed(error), None


def _asked(request: Any) -> Asked:
    query: dict[str, str] = {}
    for name, value in request.query.items():
        query.setdefault(name, value)
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return Asked(request.method == "HEAD", request.rel_url.raw_path, query, headers)
