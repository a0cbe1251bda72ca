"""Running the gateway: in a thread of this process, or until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cas_zarr.errors import InvalidArgumentError, StorageError
from cas_zarr.server.app import ACCESS_LOG, Limits, aiohttp_web, build_app
from cas_zarr.server.connections import Connections

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["Server", "serve", "serve_in_thread"]

HOST = "127.0.0.1"


class Server:
    """A gateway that runs.

    Attributes
    ----------
    url : str
        ``http://host:port``
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def __repr__(self) -> str:
        return f"Server({self.url!r})"


class _Running:
    """What runs in a loop: made, started and stopped there."""

    def __init__(
        self, repo: Repository, host: str, port: int, fetch: bool, limits: Limits | None, log: bool
    ) -> None:
        if not host:  # which would be every address of this machine
            raise InvalidArgumentError("a server needs an address to listen on, as 127.0.0.1")
        self._web = aiohttp_web()
        self._repo, self._host, self._port = repo, host, port
        self._fetch, self._limits, self._log = fetch, limits or Limits(), log

    async def start(self) -> str:
        app, times = build_app(self._repo, fetch=self._fetch, limits=self._limits)
        self._runner: Any = self._web.AppRunner(
            app,
            access_log=logging.getLogger(ACCESS_LOG) if self._log else None,
            keepalive_timeout=self._limits.idle,
            handle_signals=False,
            shutdown_timeout=2.0,
        )
        await self._runner.setup()
        limits = self._limits
        made = Connections(times, idle=limits.idle, most=limits.connections)
        made.make = self._runner.server
        self._connections = made
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(made, self._host, self._port)
        except (OSError, OverflowError, ValueError) as error:
            await self._runner.cleanup()
            raise StorageError(
                f"cannot listen on {self._host}:{self._port}: {error}; choose another address or "
                "port, or end what uses it"
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        self._server.close()
        await self._runner.cleanup()
        await self._connections.end()


@contextmanager
def serve_in_thread(
    repo: Repository,
    *,
    host: str = HOST,
    port: int = 0,
    fetch: bool = False,
    limits: Limits | None = None,
) -> Iterator[Server]:
    """Serve a repository while a context lasts.

    Parameters
    ----------
    repo : Repository
    host : str
        Address to listen on; by default loopback, which no other machine reaches.
    port : int
        0 for one that is free.
    fetch, limits
        As in `cas_zarr.server.app.make_app`.

    Yields
    ------
    Server

    Examples
    --------
    >>> with serve_in_thread(repo) as server:  # doctest: +SKIP
    ...     copy = Repository.clone(server.url, "copy.cas")
    """
    running = _Running(repo, host, port, fetch, limits, False)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="cas-zarr-gateway", daemon=True)
    thread.start()
    try:
        url = asyncio.run_coroutine_threadsafe(running.start(), loop).result()
        try:
            yield Server(url)
        finally:
            asyncio.run_coroutine_threadsafe(running.stop(), loop).result(15)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(15)
        if not thread.is_alive():
            loop.close()


def serve(
    repo: Repository,
    *,
    host: str = HOST,
    port: int = 8080,
    fetch: bool = False,
    limits: Limits | None = None,
    access_log: bool = False,
    ready: Callable[[Server], None] | None = None,
) -> None:
    """Serve a repository until an interrupt or SIGTERM; call it in the main thread.

    Parameters
    ----------
    repo, host, port, fetch, limits
        As in `serve_in_thread`.
    access_log : bool
        Whether each request gets a line in the logger `ACCESS_LOG`.
    ready : callable, optional
        Called when requests are answered.
    """
    running = _Running(repo, host, port, fetch, limits, access_log)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        url = await running.start()
        try:
            if ready is not None:
                ready(Server(url))
            await stop.wait()
        finally:
            await running.stop()

    asyncio.run(main())
