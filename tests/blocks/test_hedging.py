"""Several servers asked for one thing: the first answer counts, and nothing is left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from cas_zarr.blocks.health import Budget, Health
from cas_zarr.blocks.hedging import Race
from cas_zarr.blocks.transport import Watch

Ask = Callable[[Health, Watch, bool], "str | None"]


class Asking:
    """Servers that answer as they are told to, until they are given up."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.given_up: list[str] = []

    def __call__(self, server: Health, watch: Watch, _: bool) -> str | None:
        name = server.url.rpartition("/")[2]
        self.asked.append(name)
        answer = self.answers[name]
        while isinstance(answer, float):  # seconds of silence
            answer -= 0.01
            time.sleep(0.01)
            if watch.due is not None and watch.due <= time.monotonic():
                watch.ring()
            if watch.aborted:
                self.given_up.append(name)
                return None
            if answer <= 0:
                answer = name
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[return-value]


def race(
    ask: Ask, names: str, *, budget: Budget | None = None, timeout: float = 10.0
) -> str | None:
    servers = [Health(f"http://192.0.2.1/{name}") for name in names]
    for server in servers:
        server.answered(0.05)  # so its silence is unusual after 0.2 s
    return Race(servers, ask, budget=budget, deadline=time.monotonic() + timeout).run()


def ended() -> None:
    """Wait for what still runs: it is given up, so it ends soon."""
    for thread in threading.enumerate():
        if thread.name == "cas-zarr-hedge":
            thread.join(5)
            assert not thread.is_alive()


def test_the_next_one_is_asked_where_one_has_no_answer() -> None:
    asking = Asking(a=None, b=None, c="c", d="d")
    assert race(asking, "abcd") == "c"
    assert asking.asked == ["a", "b", "c"]
    assert race(Asking(a=None), "a") is None
    assert race(Asking(), "") is None


def test_a_silent_one_is_overtaken_and_given_up() -> None:
    asking = Asking(a=60.0, b="b")
    assert race(asking, "ab", budget=Budget()) == "b"
    assert asking.given_up == ["a"]  # in this thread
    asking = Asking(a=60.0, b=60.0, c="c")
    assert race(asking, "abc", budget=Budget()) == "c"
    ended()
    assert sorted(asking.given_up) == ["a", "b"]


def test_the_first_one_may_still_win() -> None:
    asking = Asking(a=0.5, b=60.0)
    assert race(asking, "ab", budget=Budget()) == "a"
    ended()
    assert asking.given_up == ["b"]


def test_without_a_budget_one_is_asked_after_the_other() -> None:
    spent = Budget(most=0.0)
    for budget in (None, spent):
        asking = Asking(a=0.5, b="b")
        assert race(asking, "ab", budget=budget) == "a"
        assert asking.asked == ["a"]


def test_at_the_deadline_all_are_given_up() -> None:
    asking = Asking(a=None, b=60.0, c=60.0)
    began = time.monotonic()

    def ask(server: Health, watch: Watch, more: bool) -> str | None:
        if server.url.endswith("b"):
            threading.Timer(1.0, watch.abort).start()  # as the time-out of its request
        return asking(server, watch, more)

    assert race(ask, "abc", budget=Budget(), timeout=1.0) is None
    assert time.monotonic() - began < 5
    ended()
    assert sorted(asking.given_up) == ["b", "c"]


def test_an_error_is_raised_and_the_others_are_given_up() -> None:
    asking = Asking(b=20.0)
    overtaken = threading.Event()

    def ask(server: Health, watch: Watch, more: bool) -> str | None:
        if server.url.endswith("b"):
            overtaken.set()
            return asking(server, watch, more)
        watch.ring()
        assert overtaken.wait(10)
        raise MemoryError

    with pytest.raises(MemoryError):
        race(ask, "abc", budget=Budget())
    ended()
    assert (asking.asked, asking.given_up) == (["b"], ["b"])


def test_an_error_of_another_thread_is_raised_where_there_is_no_answer() -> None:
    asking = Asking(a=0.4, b=MemoryError(), c="c")
    assert race(asking, "ab", budget=Budget()) == "a"
    asking.answers["a"] = None

    def ask(server: Health, watch: Watch, more: bool) -> str | None:
        if server.url.endswith("a"):
            watch.ring()
            ended()
        return asking(server, watch, more)

    with pytest.raises(MemoryError):
        race(ask, "ab", budget=Budget())
