"""What a process remembers of the servers it asks: how fast they are, and when they failed.

It is kept for each URL and shared by all stores of a process. It decides which server is asked
first, and after which silence another one is asked as well.

Source: J. Dean, L. A. Barroso, The Tail at Scale, Communications of the ACM 56 (2), 2013, for
asking a second server late and rarely.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterable

from cas_zarr.blocks.transport import parse_url

__all__ = ["Budget", "Health", "health_of", "in_order"]

FIRST_CONTACT = 1.0
"""Seconds of silence of a server that was never asked before, until another one is asked too."""

_FLOOR = 0.2
_CEILING = 5.0
_SPREAD = 4.0  # deviations above the mean that are still usual
_WEIGHT = 0.125
_SHORTEST, _LONGEST = 0.25, 60.0  # seconds that a failing server is asked last
_LIE = 60.0

_known: dict[str, Health] = {}


class Health:
    """How one server has done so far.

    Attributes
    ----------
    url : str
    local : bool
        Whether it is on this machine.
    closed_until : float
        Until when, on the monotonic clock, the server asked not to be asked.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        host = parse_url(url.replace("{cid}", "cid"))[0][1]
        self.local = host in ("localhost", "::1") or host.startswith("127.")
        self.closed_until = 0.0
        self._doubtful_until = 0.0
        self._failed_at = 0.0
        self._failures = 0
        self._mean: float | None = None
        self._deviation = 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Health({self.url!r}, latency={self._mean}, failures={self._failures})"

    @property
    def patience(self) -> float:
        """Seconds after which its silence is unusual."""
        if self._mean is None:
            return FIRST_CONTACT
        return min(_CEILING, max(_FLOOR, 2 * self._mean, self._mean + _SPREAD * self._deviation))

    @property
    def doubtful(self) -> bool:
        """Whether it failed a short while ago."""
        return time.monotonic() < max(self._doubtful_until, self.closed_until)

    def answered(self, seconds: float) -> None:
        """Note an answer, of whatever content, and how long it took."""
        with self._lock:
            self._failures = 0
            if self._mean is None:
                self._mean, self._deviation = seconds, seconds / 2
            else:
                self._deviation += _WEIGHT * (abs(seconds - self._mean) - self._deviation)
                self._mean += _WEIGHT * (seconds - self._mean)

    def failed(self, began: float) -> None:
        """Note that a request of that time failed; those that ran beside it count as one."""
        with self._lock:
            if began < self._failed_at:
                return
            self._failed_at = time.monotonic()
            pause = min(_LONGEST, _SHORTEST * 2 ** min(self._failures, 10))
            self._failures += 1
            self._doubtful_until = self._failed_at + pause * random.uniform(0.5, 1.0)

    def lied(self) -> None:
        """Note that it gave bytes that are not what was asked for."""
        with self._lock:
            self._doubtful_until = time.monotonic() + _LIE

    def close(self, seconds: float) -> None:
        """Note that it asks to be left alone for so long."""
        with self._lock:
            self.closed_until = max(self.closed_until, time.monotonic() + seconds)

    def forget(self) -> None:
        """Forget what was noted."""
        with self._lock:
            self.closed_until = self._doubtful_until = self._failed_at = 0.0
            self._failures = 0
            self._mean = None

    def rank(self) -> tuple[bool, bool, float]:
        """Return what servers are sorted by: sound ones, local ones, fast ones first."""
        return (self.doubtful, not self.local, self._mean or 0.0)


class Budget:
    """How many second requests may be made: a tenth of the first ones, and some to begin with.

    Where all servers are slow, to ask two each time would make them slower.
    """

    def __init__(self, *, share: float = 0.1, most: float = 16.0) -> None:
        self._share = share
        self._most = most
        self._left = most  # no lock: threads that count at once may lose a request, no more

    def earn(self) -> None:
        """Count a first request."""
        self._left = min(self._most, self._left + self._share)

    def spend(self) -> bool:
        """Tell whether a second request may be made now, and count it."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


def health_of(url: str) -> Health:
    """Return what this process remembers of a URL."""
    return _known.setdefault(url, Health(url))


def in_order(servers: Iterable[Health]) -> list[Health]:
    """Return servers as they are best asked; equals stay in their order."""
    return sorted(servers, key=Health.rank)


def _after_fork() -> None:
    for server in _known.values():  # another thread may have held it
        server._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
