"""Where the bytes of a CAR lie: in a file, in memory, or on a server that answers range requests.

A file is kept open, so one that is replaced by another of its name is read on as it was. A file on
a server is watched by its ETag (or its time and size): one that was replaced there is told, never
mixed with what was read before.
"""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from cas_zarr.errors import RemoteError, StorageError

if TYPE_CHECKING:
    from cas_zarr.blocks.http import HttpClient, HttpStream

__all__ = [
    "FIRST",
    "ByteSource",
    "FileSource",
    "MemorySource",
    "Paced",
    "WebSource",
    "is_url",
    "open_source",
]

FIRST: Final = 1 << 18
"""Bytes of a file on a server that the first request asks for and that are kept."""

_ATTEMPTS: Final = 3
_PAUSE: Final = 0.2  # seconds, before the second attempt
_SLOWEST: Final = 1024  # bytes a second, over the time-out
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class ByteSource(ABC):
    """Bytes that can be read anywhere.

    Attributes
    ----------
    name : str
        Path or URL, for messages.
    size : int
        In bytes.
    remote : bool
        Whether a read costs a request.
    """

    name: str
    size: int
    remote: bool

    @abstractmethod
    def read_at(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`; fewer only where the file ends."""

    @abstractmethod
    def close(self) -> None:
        """Release files and connections."""


def is_url(location: str | bytes | os.PathLike[str]) -> bool:
    """Tell whether a location is a URL of HTTP."""
    return isinstance(location, str) and location.lower().startswith(("http://", "https://"))


def open_source(
    location: str | bytes | os.PathLike[str], *, client: HttpClient | None = None
) -> ByteSource:
    """Open a path or a URL, or the bytes of a CAR themselves.

    Raises
    ------
    StorageError
        If there is no such file.
    RemoteError
        If the server does not answer, or answers no range requests.
    """
    if isinstance(location, bytes):
        return MemorySource(location)
    if is_url(location):
        return WebSource(os.fspath(location), client=client)
    return FileSource(location)


class MemorySource(ByteSource):
    """Bytes in memory.

    Parameters
    ----------
    data : bytes
    """

    remote = False
    name = "a car in memory"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, start: int, size: int) -> bytes:
        return self._data[start : start + max(size, 0)]

    def close(self) -> None:
        pass


class FileSource(ByteSource):
    """A local file.

    Parameters
    ----------
    path : path
    """

    remote = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            self._file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115
            self.size = os.fstat(self._file.fileno()).st_size
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None) or 0
            raise StorageError(number, "cannot open a car file; check its path", self.name) from (
                error
            )

    def read_at(self, start: int, size: int) -> bytes:
        pieces: list[bytes] = []
        try:
            while size > 0:
                piece = os.pread(self._file.fileno(), size, start)
                if not piece:
                    break
                pieces.append(piece)
                start += len(piece)
                size -= len(piece)
        except (OSError, OverflowError, ValueError) as error:  # ValueError: it was closed
            raise StorageError(f"cannot read {self.name}: {error}; open it anew") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:  # a store that reads a file is rarely closed
            file.close()


class Paced:
    """The body of an answer as a binary file that cannot seek, and that has to come on.

    Parameters
    ----------
    stream : HttpStream
    where : str
        The URL, for messages.
    timeout : float or None
        Seconds in which 1 KiB for each of them must come.
    size : int, optional
        How many bytes there should be; none behind them are read.
    """

    def __init__(
        self, stream: HttpStream, where: str, timeout: float | None, size: int | None = None
    ) -> None:
        self.where = where
        self._stream = stream
        self._timeout = timeout
        self._wanted = size
        self._waited = 0.0
        self._size = 0

    def seekable(self) -> bool:
        """Tell that one cannot seek."""
        return False

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; nothing at the end."""
        if self._wanted is not None:
            size = min(size, self._wanted - self._size)
            if size == 0:
                return b""
        began = time.monotonic()
        piece = self._stream.read(size)
        self._waited += time.monotonic() - began
        self._size += len(piece)
        if not piece and self._wanted is not None:
            raise RemoteError(
                f"{self.where} broke off after {self._size} of {self._wanted} bytes; try again"
            )
        slow = self._timeout is not None and self._waited > self._timeout
        if slow and self._size < _SLOWEST * self._waited:
            raise RemoteError(
                f"{self.where}: {self._size} bytes in {self._waited:.0f} s are too few; try again "
                "later, or elsewhere"
            )
        return piece

    def read_all(self) -> bytes:
        """Return all that is left."""
        pieces = []
        while piece := self.read(1 << 20):
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class WebSource(ByteSource):
    """A file on a server.

    Parameters
    ----------
    url : str
    client : HttpClient, optional
        Is not closed; by default one of its own.

    Raises
    ------
    RemoteError
        If the server does not answer, has no such file, or answers no range requests.
    """

    remote = True

    def __init__(self, url: str, *, client: HttpClient | None = None) -> None:
        from cas_zarr.blocks.http import HttpClient
        from cas_zarr.blocks.transport import shown

        self._url = url
        self.name = shown(url)
        self._own = HttpClient() if client is None else None
        self._client: HttpClient = client or self._own  # type: ignore[assignment]
        self._mark = ""
        self.size = -1
        try:
            self._first = self._ask(0, FIRST)
        except BaseException:
            self.close()
            raise

    def read_at(self, start: int, size: int) -> bytes:
        stop = min(start + size, self.size)
        if start >= stop:
            return b""
        if stop <= len(self._first):
            return self._first[start:stop]
        return self._ask(start, stop - start)

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """Give the whole file as a binary file object, read once from its begin.

        No more of it is read than was there when the file was opened.
        """
        with self._client.stream("GET", self._url, headers=self._headers()) as answer:
            if answer.status != 200:
                raise self._refusal(answer.status)
            self._check_mark(answer.headers)
            if answer.headers.get("content-length", str(self.size)) != str(self.size):
                raise self._replaced()
            yield cast(BinaryIO, Paced(answer, self.name, self._client.timeout, self.size))

    def close(self) -> None:
        if self._own is not None:
            self._own.close()

    # ---------------------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        return {"Accept-Encoding": "identity"}

    def _ask(self, start: int, size: int) -> bytes:
        for attempt in range(_ATTEMPTS):
            try:
                return self._ask_once(start, size)
            except RemoteError as error:
                if error.status is not None or attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(_PAUSE * 4**attempt)  # the connection broke: ask again
        raise AssertionError

    def _ask_once(self, start: int, size: int) -> bytes:
        headers = self._headers() | {"Range": f"bytes={start}-{start + size - 1}"}
        if self._mark and not self._mark.startswith("W/"):
            headers["If-Range"] = self._mark
        with self._client.stream("GET", self._url, headers=headers) as answer:
            if answer.status == 200 and self.size < 0:
                return self._whole(answer)
            if answer.status != 206:
                raise self._refusal(answer.status)
            said = answer.headers.get("content-range", "none")
            found = _RANGE.fullmatch(said)
            if found is None:
                raise RemoteError(
                    f"{self.name} answers a range with the content-range {said[:60]!r}, which "
                    "cannot be read; download the file, and open it from the disk",
                    status=206,
                )
            first, last, total = map(int, found.groups())
            if first != start or last != min(start + size, total) - 1:
                raise RemoteError(
                    f"{self.name} was asked for bytes {start} to {start + size - 1} and answered "
                    f"with {first} to {last}; download the file, and open it from the disk",
                    status=206,
                )
            if self.size >= 0 and total != self.size:
                raise self._replaced()
            self._check_mark(answer.headers)
            data = Paced(answer, self.name, self._client.timeout, last - first + 1).read_all()
            self.size = total
            return data

    def _whole(self, answer: HttpStream) -> bytes:
        """Take a short file from a server that answers with all of it."""
        body = Paced(answer, self.name, self._client.timeout)
        data = b""
        while piece := body.read(FIRST + 1 - len(data)):
            data += piece
            if len(data) > FIRST:
                raise RemoteError(
                    f"the server of {self.name} answers no range requests, so the file cannot be "
                    "read in place; download it and open it from the disk, or import it into a "
                    "repository",
                    status=200,
                )
        self._check_mark(answer.headers)
        self.size = len(data)
        return data

    def _check_mark(self, headers: Mapping[str, str]) -> None:
        mark = headers.get("etag") or headers.get("last-modified") or ""
        if self.size < 0:
            self._mark = mark
        elif mark != self._mark:
            raise self._replaced()

    def _refusal(self, status: int) -> RemoteError:
        if self.size >= 0 and status in (200, 412, 416):
            return self._replaced(status)
        remedy = "check the url" if status in (404, 410) else "try again later, or elsewhere"
        return RemoteError(f"{self.name} answered with status {status}; {remedy}", status=status)

    def _replaced(self, status: int = 200) -> RemoteError:
        return RemoteError(
            f"{self.name} was replaced by another file while it was read; open it anew",
            status=status,
        )
