"""Asking several servers for one thing.

A request runs in the thread of the caller. Only where the server stays silent for longer than is
usual for it, another thread asks the next server as well; the first good answer ends the other
request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from cas_zarr.blocks.health import Budget, Health
from cas_zarr.blocks.transport import Watch

__all__ = ["Race"]

_T = TypeVar("_T")


class Race(Generic[_T]):
    """One question to several servers, the next one where the one before fails or is silent.

    Parameters
    ----------
    servers : iterable of Health
        In the order in which they are asked.
    ask : callable
        Takes a server, a watch to be handed to the request and whether another server is left;
        returns the answer, or None where that was none. It notes itself what went wrong.
    budget : Budget or None
        Of second requests; without one, a server is asked only after another one failed.
    deadline : float
        When to wait no longer, on the monotonic clock.
    """

    def __init__(
        self,
        servers: Iterable[Health],
        ask: Callable[[Health, Watch, bool], _T | None],
        *,
        budget: Budget | None,
        deadline: float,
    ) -> None:
        self._waiting = deque(servers)
        self._ask = ask
        self._budget = budget
        self._deadline = deadline
        self._changed = threading.Condition()
        self._helpers = 0
        self._watches: list[Watch] = []
        self._answer: _T | None = None
        self._over = False  # nothing more is asked
        self._error: BaseException | None = None

    def run(self) -> _T | None:
        """Return the first answer, or None if there is none; what still runs is given up."""
        try:
            self._go()
            with self._changed:
                while self._helpers and not self._over and self._error is None:
                    left = self._deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
        finally:
            with self._changed:
                self._end()
        if self._answer is None and self._error is not None:
            raise self._error
        return self._answer

    def _end(self) -> None:
        self._over = True
        for watch in self._watches:
            watch.abort()

    def _go(self) -> None:
        while time.monotonic() < self._deadline:
            with self._changed:
                if self._over or not self._waiting:
                    return
                server = self._waiting.popleft()
                more = bool(self._waiting)
                hedged = more and self._budget is not None
                watch = Watch(after=server.patience, then=self._hedge) if hedged else Watch()
                self._watches.append(watch)
            answer = self._ask(server, watch, more)
            with self._changed:
                self._watches.remove(watch)
                if answer is not None and not self._over:
                    self._answer = answer
                    self._end()
                    self._changed.notify_all()

    def _hedge(self) -> None:
        """Ask the next server, if it is sound, in a thread of its own: rare, so no pool."""
        with self._changed:
            following = self._waiting[0] if self._waiting else None
            if following is None or following.doubtful or self._budget is None:
                return
            if not self._budget.spend():
                return
            self._helpers += 1
        try:
            threading.Thread(target=self._help, name="cas-zarr-hedge", daemon=True).start()
        except RuntimeError:  # no more threads: the first server must do
            with self._changed:
                self._helpers -= 1

    def _help(self) -> None:
        try:
            self._go()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._helpers -= 1
                self._changed.notify_all()
