"""Asking once where many threads want the same: the later ones wait for the answer."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Flights"]

_T = TypeVar("_T")


class _Flight(Generic[_T]):
    __slots__ = ("answer", "asker", "done", "error", "given_up")

    def __init__(self) -> None:
        self.asker = threading.get_ident()
        self.done = threading.Event()
        self.answer: _T | None = None
        self.error: Exception | None = None
        self.given_up = False


class Flights(Generic[_T]):
    """Questions under way: who asks what another thread asks already waits for its answer."""

    def __init__(self) -> None:
        self._under_way: dict[object, _Flight[_T]] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def do(self, key: object, ask: Callable[[], _T], *, timeout: float | None = None) -> _T:
        """Return what `ask` gives, called once for all who want `key` at the time.

        Who has waited for `timeout` seconds asks alone, and so does who waited for a thread that
        was interrupted, or would wait for itself. An error is raised to all.
        """
        if self._pid != os.getpid():  # the threads of the parent will not answer
            self._pid = os.getpid()
            self._under_way, self._lock = {}, threading.Lock()
        with self._lock:
            flight = self._under_way.get(key)
            if flight is None:
                mine = self._under_way[key] = _Flight()
        if flight is not None:
            own = flight.asker == threading.get_ident()
            if own or not flight.done.wait(timeout) or flight.given_up:
                return ask()
            if flight.error is not None:
                raise _copied(flight.error)
            return flight.answer  # type: ignore[return-value]
        try:
            mine.answer = ask()
        except Exception as error:
            mine.error = error
            raise
        except BaseException:
            mine.given_up = True
            raise
        finally:
            with self._lock:
                self._under_way.pop(key, None)
            mine.done.set()
        return mine.answer


def _copied(error: Exception) -> Exception:
    """Return an error for another thread, which gives it a traceback of its own."""
    try:
        return copy.copy(error)
    except Exception:  # made of other arguments than it keeps
        return error
