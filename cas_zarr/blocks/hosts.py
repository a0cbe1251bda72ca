"""Looking up the addresses of hosts, in bounded time.

The system's look-up can neither be interrupted nor told how long it may take, so it runs in a
thread of its own; all who want the same host wait for that one.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

__all__ = ["Found", "look_up"]

Found: TypeAlias = "Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]]"
"""What ``socket.getaddrinfo`` gives."""

_Asked: TypeAlias = tuple[str, int]

_under_way: dict[_Asked, Future[Found]] = {}
_lock = threading.Lock()


def look_up(host: str, port: int, *, timeout: float | None = None) -> Found:
    """Return the addresses of a host.

    Raises
    ------
    OSError, UnicodeError
        If it has none, or no host can have that name.
    TimeoutError
        If that takes longer than `timeout` seconds.
    """
    try:
        return _ask(host, port, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):  # it is a name
        pass
    key = host, port
    with _lock:
        found = _under_way.get(key)
        if found is None:
            found = _under_way[key] = Future()
            thread = threading.Thread(
                target=_run, args=(key, found), name="cas-zarr-hosts", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter exits
                del _under_way[key]
                return _ask(host, port)
    return found.result(timeout)


def _run(key: _Asked, found: Future[Found]) -> None:
    try:
        answer = _ask(*key)
    except BaseException as error:
        found.set_exception(error)
    else:
        found.set_result(answer)
    finally:
        with _lock:
            _under_way.pop(key, None)


def _ask(host: str, port: int, flags: int = 0) -> Found:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)


def _after_fork() -> None:  # the threads did not come along
    global _lock
    _lock = threading.Lock()
    _under_way.clear()


os.register_at_fork(after_in_child=_after_fork)
