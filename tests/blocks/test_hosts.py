"""Hosts are looked up in bounded time, once for all who want the same."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cas_zarr.blocks.hosts import look_up
from cas_zarr.blocks.http import HttpClient
from cas_zarr.errors import RemoteError

NAME = "slow.invalid"


class Resolver:
    """The system's, which gives no answer for one name before it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer = threading.Event()
        self._system = socket.getaddrinfo

    def __call__(self, host: str, port: int, **options: Any) -> Any:
        if host != NAME or options.get("flags"):
            return self._system(host, port, **options)
        self.asked += 1
        assert self.answer.wait(30)
        return self._system("127.0.0.1", port, **options)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.answer.set()
    for thread in threading.enumerate():
        if thread.name == "cas-zarr-hosts":
            thread.join(10)


def test_addresses_and_names_are_found() -> None:
    assert [row[4] for row in look_up("127.0.0.1", 80)] == [("127.0.0.1", 80)]
    assert look_up("::1", 80)[0][4][:2] == ("::1", 80)
    assert look_up("localhost", 80, timeout=20)
    with pytest.raises(OSError, match=r"not known|No address"):
        look_up("no-such-host.invalid", 80, timeout=20)
    with pytest.raises(UnicodeError):
        look_up("a..b", 80)


def test_a_look_up_is_given_up_after_its_time(resolver: Resolver) -> None:
    with pytest.raises(TimeoutError):
        look_up(NAME, 80, timeout=0.1)
    with HttpClient(timeout=60, connect_timeout=0.2) as client:
        with pytest.raises(RemoteError, match=r"within 0\.2 s"):
            client.request("GET", f"http://{NAME}/")
        with pytest.raises(RemoteError, match=r"within 0\.1 s"):
            client.request("GET", f"http://{NAME}/", connect_timeout=0.1)
    assert resolver.asked == 1  # who comes later waits for the same answer


def test_a_host_is_looked_up_once_for_all_and_anew_the_next_time(resolver: Resolver) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(look_up, NAME, 81, timeout=20) for _ in range(8)]
        time.sleep(0.2)
        resolver.answer.set()
        assert {each.result()[0][4] for each in found} == {("127.0.0.1", 81)}
    assert resolver.asked == 1
    assert look_up(NAME, 81)
    assert resolver.asked == 2


def test_a_child_waits_for_no_thread_of_its_parent(
    resolver: Resolver, forked: Callable[[Callable[[], object]], int]
) -> None:
    with pytest.raises(TimeoutError):
        look_up(NAME, 82, timeout=0.1)

    def child() -> None:
        resolver.answer.set()
        assert look_up(NAME, 82, timeout=20)

    assert forked(child) == 0
