"""Who wants what another thread asks for already waits for its answer, its error, or its end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cas_zarr.blocks.flights import Flights
from cas_zarr.errors import ConflictError, RemoteError, StorageError


class Asked:
    """A question that takes a while, and counts how often it is asked."""

    def __init__(self, *ends: object) -> None:
        self.ends = list(ends)
        self.count = 0
        self.lock = threading.Lock()

    def __call__(self) -> object:
        with self.lock:
            self.count += 1
            end = self.ends.pop(0)
        time.sleep(0.2)
        if isinstance(end, BaseException):
            raise end
        return end


def outcomes(flights: Flights[object], asked: Asked, threads: int = 6) -> list[object]:
    def ask(_: int) -> object:
        try:
            return flights.do("key", asked)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, range(threads)))


def test_one_asks_for_all_and_the_next_time_it_is_asked_anew() -> None:
    flights: Flights[object] = Flights()
    asked = Asked("first", "second")
    assert outcomes(flights, asked) == ["first"] * 6
    assert flights.do("key", asked) == "second"
    assert asked.count == 2


@pytest.mark.parametrize(
    "error",
    [
        RemoteError("busy", status=503),
        StorageError(28, "no space", "/disk"),
        ConflictError("both", ["one"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_to_all_as_it_was(error: Exception) -> None:
    found = outcomes(Flights(), Asked(error))
    assert len({id(one) for one in found}) == 6  # none shares a traceback
    for one in found:
        assert type(one) is type(error)
        assert (str(one), vars(one)) == (str(error), vars(error))


def test_who_waited_for_a_thread_that_was_interrupted_asks_itself() -> None:
    asked = Asked(KeyboardInterrupt(), *["later"] * 5)
    found = outcomes(Flights(), asked)
    assert sorted(map(str, found)) == ["", *["later"] * 5]


def test_nobody_waits_longer_than_he_said() -> None:
    flights: Flights[object] = Flights()
    asked = Asked("slow", "alone")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.do, "key", asked)
        while not asked.count:
            time.sleep(0.001)
        assert flights.do("key", asked, timeout=0.01) == "alone"
        assert first.result() == "slow"


def test_a_question_that_leads_back_to_itself_is_asked_again() -> None:
    flights: Flights[str] = Flights()
    depth: list[str] = []

    def ask() -> str:
        depth.append("asked")
        return "answer" if len(depth) == 2 else flights.do("key", ask)

    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(flights.do("key", ask)), daemon=True)
    asking.start()
    asking.join(5)
    assert found == ["answer"]


class Odd(Exception):
    """One that cannot be copied."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_be_copied_comes_to_all() -> None:
    assert {type(one) for one in outcomes(Flights(), Asked(Odd(1, 2)))} == {Odd}
