"""The body of an answer, read piece by piece: bounded, and whole or refused."""

from __future__ import annotations

import http.client
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from cas_zarr.blocks.transport import Answer, Connection, Watch, explained, shown
from cas_zarr.closing import Closing
from cas_zarr.errors import RemoteError

__all__ = ["FAILURES", "MAX_BODY", "HttpStream"]

MAX_BODY = 16 << 20
"""Largest body that is read in one go unless told otherwise, in bytes."""

FAILURES = (OSError, http.client.HTTPException, ValueError)
"""What goes wrong between us and a server."""

_MAX_LINE = 1 << 20
_PIECE = 1 << 18
_LARGEST_PIECE = 1 << 20


class HttpStream(Closing):
    """An answer whose body is read piece by piece; a context manager.

    It can be read as a binary file that cannot seek, by `CarReader` for one. Leaving it before its
    end closes the connection; after it, the connection serves the next request. One thread reads;
    another one may close it meanwhile, which ends the reading.

    Parameters
    ----------
    connection : Connection
    raw : Answer
        Read up to its body.
    asked : tuple of str
        Method and URL, for messages.
    patience : float or None
        Seconds in which a piece must come.
    deadline : float or None
        When the body must be there whole, on the monotonic clock.
    watch : Watch or None
    release : callable
        Is called once, with the connection and whether it can serve another request.

    Attributes
    ----------
    status : int
    headers : mapping of str to str
        Names in lower case; a name that came twice has both values, with a comma between.
    """

    def __init__(
        self,
        connection: Connection,
        raw: Answer,
        *,
        asked: tuple[str, str],
        patience: float | None,
        deadline: float | None,
        watch: Watch | None,
        release: Callable[[Connection, bool], object],
    ) -> None:
        self._connection = connection
        self._raw = raw
        self._asked = asked
        self._patience = patience
        self._deadline = deadline
        self._watch = watch
        self._release = release
        self._left: int | None = raw.length
        self._ended = False  # the body was read whole
        self._over = False  # the connection is given back, or closed
        self._reading = self._closed = False
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.status = raw.status
        headers: dict[str, str] = {}
        for name, value in raw.headers.items():
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        self.headers: Mapping[str, str] = headers
        if self.status < 200:
            raise self._refused(f"it answers {self.status}, which is no answer; check the url")
        encoding = headers.get("content-encoding") or "identity"
        coding = headers.get("transfer-encoding", "chunked")
        for name in (encoding, coding):
            if name.lower() not in ("identity", "chunked"):
                raise self._refused(
                    f"the answer comes in the encoding {name[:40]!r}, which was not asked for; "
                    "use a server that sends bytes as they are"
                )

    @property
    def trailers(self) -> Mapping[str, str]:
        """What came behind a chunked body, once that is read; names in lower case."""
        return self._raw.trailers

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces of the body as they come."""
        while piece := self.read():
            yield piece

    def read(self, size: int = _PIECE) -> bytes:
        """Return what has come, at least one byte and at most `size`; nothing at the end.

        Raises
        ------
        RemoteError
            If nothing comes for as long as the time-out, or the body is cut off.
        """
        if self._ended or size == 0:
            return b""
        size = _PIECE if size < 0 else min(size, _LARGEST_PIECE)  # nothing for a claimed length
        if self._left is not None:
            size = min(size, self._left)
        piece = self._piece(size) if size else b""
        if self._left is not None:
            if size and not piece:
                raise self._failed(http.client.IncompleteRead(b""))
            self._left -= len(piece)
        if not piece or self._left == 0:
            self._ended = True
            self._finish(reusable=True)
        return piece

    def read_all(self, limit: int = MAX_BODY) -> bytes:
        """Return the rest of the body.

        Raises
        ------
        RemoteError
            As `read` does, or if there are more than `limit` bytes.
        """
        if self._left is not None and self._left > limit:
            raise self._refused(f"the answer has {self._left} bytes; at most {limit} are read here")
        piece = self.read()
        if self._ended:
            return piece
        body = io.BytesIO()  # a list of pieces would take many times what small ones hold
        size = 0
        while piece:
            size += body.write(piece)
            if size > limit:
                raise self._refused(f"the answer has more than the {limit} bytes that are read")
            piece = self.read()
        return body.getvalue()

    def lines(self, limit: int = _MAX_LINE) -> Iterator[bytes]:
        """Yield the lines of the body as they come, without their ends, each at most `limit` bytes.

        Raises
        ------
        RemoteError
            As `read` does, or if a line is longer.
        """
        rest = bytearray()
        while piece := self.read():
            rest += piece
            if b"\n" in piece:
                *whole, last = bytes(rest).split(b"\n")
                for line in whole:
                    self._check_line(line, limit)
                    yield line
                rest = bytearray(last)
            self._check_line(rest, limit)
        if rest:
            yield bytes(rest)

    def seekable(self) -> bool:
        """Tell that one cannot seek."""
        return False

    def readable(self) -> bool:
        """Tell that one can read."""
        return True

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            if self._reading:  # and lets go of it then
                self._closed = True
                if self._pid == os.getpid():
                    self._connection.wire.cut()
                return
        self._finish(reusable=self._left == 0)

    def _piece(self, size: int) -> bytes:
        wire = self._connection.wire
        wire.deadline = self._deadline
        if self._patience is not None:  # for all the reads that one piece may take
            end = time.monotonic() + self._patience
            wire.deadline = end if self._deadline is None else min(end, self._deadline)
        with self._lock:
            self._reading = not self._over
        if self._over:
            raise self._refused("the answer was closed before its end")
        piece, failure = b"", None
        try:
            piece = self._raw.read1(size)
        except FAILURES as error:
            failure = error
        finally:
            with self._lock:
                self._reading = False
        aborted = self._watch is not None and self._watch.aborted
        if self._closed or (not piece and failure is None and aborted):
            failure = http.client.IncompleteRead(b"")
        if failure is not None:
            raise self._failed(failure)
        return piece

    def _finish(self, *, reusable: bool) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
        if self._watch is not None:
            self._watch.detach()
        self._raw.close()
        mine = self._pid == os.getpid()
        self._release(self._connection, reusable and mine and not self._raw.will_close)

    def _check_line(self, line: bytes | bytearray, limit: int) -> None:
        if len(line) > limit:
            raise self._refused(f"a line of the answer has more than {limit} bytes")

    def _failed(self, error: Exception) -> RemoteError:
        self._finish(reusable=False)
        failure = explained(*self._asked, error, self._patience)
        failure.__cause__ = error
        return failure

    def _refused(self, why: str) -> RemoteError:
        self._finish(reusable=False)
        method, url = self._asked
        return RemoteError(f"{method} {shown(url)}: {why}", status=self.status)
