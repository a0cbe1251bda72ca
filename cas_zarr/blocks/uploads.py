"""Blocks on their way to a server: a bounded number, sent by threads while their owner goes on.

A round trip takes as long as hashing tens of megabytes. So a block is copied and sent later, and
whoever wants it durable waits for all of them at once.
"""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from collections.abc import Callable

from cas_zarr.blocks.waiting import WAITERS, waiting_pool
from cas_zarr.cid import BytesLike
from cas_zarr.errors import CasZarrError

__all__ = ["Uploads"]

_MOST_BYTES = 64 << 20
_MOST_BLOCKS = 1024


class Uploads:
    """Sends what is added, and holds it until it is sent.

    What could not be sent is held too, and the next `wait` tries it again. Its error is told by
    whoever waits, or else by the next `add`.

    Parameters
    ----------
    send : callable
        Gets a key and its bytes, in some thread; several at once.
    parallel : int
        Of them at once, at most 32.
    """

    def __init__(self, send: Callable[[bytes, bytes], None], *, parallel: int = WAITERS) -> None:
        self._send = send
        self._parallel = max(1, min(parallel, WAITERS))
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._held: dict[bytes, bytes] = {}  # all that is not sent, by its key
        self._size = 0  # bytes of it
        self._queue: deque[bytes] = deque()
        self._sending: set[bytes] = set()
        self._failed: dict[bytes, CasZarrError] = {}
        self._told = False  # of all that failed
        self._workers = 0

    def _here(self) -> threading.Condition:
        """Return the lock; in a forked process of a new state: its parent sends what it added."""
        if self._pid != os.getpid():
            self._begin()
        return self._changed

    def get(self, key: bytes) -> bytes | None:
        """Return what is held under a key and not sent yet."""
        return self._held.get(key)

    def add(self, key: bytes, data: BytesLike) -> None:
        """Copy bytes and send them soon; waits while there are too many of them.

        Raises
        ------
        CasZarrError
            If something that was added before could not be sent, and nobody was told. It is tried
            again then; what is added now is not taken.
        """
        with self._here():
            self._tell()
            while not self._has_room(len(data)):
                if not self._workers:  # all of it has failed
                    self._try_again()
                self._changed.wait()
                self._tell()
            if key not in self._held:
                self._held[key] = bytes(data)
                self._size += len(data)
                self._queue.append(key)
                self._employ()

    def wait(self) -> None:
        """Return when all that was added is sent.

        Raises
        ------
        CasZarrError
            If some of it cannot be sent. All the rest is.
        """
        with self._here():
            self._try_again()
            for key in list(self._held):  # not what other threads add meanwhile
                while key in self._held and key not in self._failed:
                    self._changed.wait()
            self._told = True
            self._raise()

    def drop(self, key: bytes) -> None:
        """Forget what is held under a key; if it is being sent, after that."""
        with self._here():
            while key in self._sending:
                self._changed.wait()
            self._failed.pop(key, None)
            self._size -= len(self._held.pop(key, b""))
            self._changed.notify_all()

    def close(self) -> None:
        """Forget all that no thread has begun to send."""
        with self._here():
            self._queue.clear()
            self._failed.clear()
            self._held.clear()
            self._size = 0
            self._changed.notify_all()

    # -- under the lock -------------------------------------------------------------------------

    def _has_room(self, size: int) -> bool:
        if not self._held:
            return True
        return len(self._held) < _MOST_BLOCKS and self._size + size <= _MOST_BYTES

    def _try_again(self) -> None:
        self._queue.extend(self._failed)
        self._failed.clear()
        self._employ()

    def _tell(self) -> None:
        if self._failed and not self._told:
            try:
                self._raise()
            finally:
                self._try_again()

    def _raise(self) -> None:
        for error in self._failed.values():
            raise copy.copy(error)  # each one who is told gets a traceback of its own

    def _employ(self) -> None:
        """Let one more thread send, if there is more to send than threads."""
        if self._workers < min(self._parallel, len(self._queue) + len(self._sending)):
            self._workers += 1
            try:
                waiting_pool("upload").submit(self._work)
            except RuntimeError:  # the interpreter is exiting and takes no new futures
                self._work()

    # -- sending --------------------------------------------------------------------------------

    def _work(self) -> None:
        """Send what is queued until there is no more."""
        key: bytes | None = None
        error: CasZarrError | None = None
        while True:
            with self._changed:
                if key is not None:
                    self._sent(key, error)
                key = self._next()
                if key is None:
                    self._workers -= 1
                    self._changed.notify_all()
                    return
                data = self._held[key]
                self._sending.add(key)
                self._employ()
            error = None
            try:
                self._send(key, data)
            except CasZarrError as problem:
                error = problem
            except Exception as problem:  # or the one who waits would wait for ever
                error = CasZarrError(f"a block cannot be sent: {problem!r}; report this")

    def _next(self) -> bytes | None:
        while self._queue:
            key = self._queue.popleft()
            if key in self._held and key not in self._sending:
                return key
        return None

    def _sent(self, key: bytes, error: CasZarrError | None) -> None:
        self._sending.discard(key)
        if error is None:
            self._size -= len(self._held.pop(key, b""))
        elif key in self._held:
            self._failed[key] = error
            self._told = False
        self._changed.notify_all()
