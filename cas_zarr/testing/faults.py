"""A disk that fails, or a process that dies, at any one of its system calls.

The functions of `cas_zarr.blocks.disk` are replaced by ones that count. Meant for a child process
where the process is to die, and for any where a call is to fail.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from cas_zarr.blocks import disk

__all__ = ["CALLS", "DEATHS", "EXIT_CODE", "DiskFault"]

EXIT_CODE = 77
"""Exit code of a process that was made to die."""

DEATHS = ("before", "half", "after", "power")
"""Ways to die: before the call, after half a write, after the call, or as if the power failed."""

CALLS = (
    "create",
    "fsync",
    "fsync_folder",
    "link",
    "make_folder",
    "pwrite",
    "pwritev",
    "rename",
    "truncate",
    "unlink",
)
"""Names in `cas_zarr.blocks.disk` of all calls that change the disk."""


class DiskFault:
    """While this is entered, the `at`-th call that changes the disk goes wrong.

    Parameters
    ----------
    at : int
        Which call, from 1.
    how : str or int
        One of `DEATHS`, or the `errno` with which calls fail.
    times : int
        How many calls fail.
    drop : bool
        Whether an fsync that fails loses what was written to the file, as kernels may do.

    Attributes
    ----------
    calls : list of str
        Names of the calls so far.
    """

    def __init__(self, at: int, how: str | int, *, times: int = 1, drop: bool = False) -> None:
        self.calls: list[str] = []
        self._at = at
        self._how = how
        self._times = times
        self._drop = drop
        self._real: dict[str, Callable[..., Any]] = {}
        self._dirty: dict[int, int] = {}  # what was written to and not synced, and its size before
        # Names that are not durable yet, and what had them before.
        self._renames: list[tuple[str, str, bytes | None]] = []

    def __enter__(self) -> Self:
        for name in CALLS:
            self._real[name] = getattr(disk, name)
            setattr(disk, name, self._counted(name))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, real in self._real.items():
            setattr(disk, name, real)

    @property
    def reached(self) -> bool:
        """Whether the call came to pass."""
        return len(self.calls) >= self._at

    def _counted(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self._at <= len(self.calls) < self._at + self._times:
                self._go_wrong(name, real, arguments)
            self._note(name, arguments)
            return real(*arguments)

        return call

    def _note(self, name: str, arguments: Sequence[Any]) -> None:
        if name in ("pwrite", "pwritev", "truncate"):
            self._dirty.setdefault(arguments[0], os.fstat(arguments[0]).st_size)
        elif name == "fsync":
            self._dirty.pop(arguments[0], None)
        elif name == "rename":
            source, target = arguments
            self._renames.append((source, target, _content(target)))
        elif name == "fsync_folder":
            self._renames.clear()

    def _go_wrong(self, name: str, real: Callable[..., Any], arguments: Sequence[Any]) -> None:
        if isinstance(self._how, int):
            if self._drop and name == "fsync":
                size = os.fstat(arguments[0]).st_size
                os.ftruncate(arguments[0], 0)
                os.ftruncate(arguments[0], size)
            elif name == "pwrite" and self._how == errno.ENOSPC:
                _write_half(arguments)
            raise OSError(self._how, os.strerror(self._how))
        if self._how == "half" and name == "pwrite":
            _write_half(arguments)
        elif self._how == "half" and name == "pwritev":
            fd, buffers, offset = arguments
            _write_half((fd, b"".join(map(bytes, buffers)), offset))
        elif self._how == "after":
            real(*arguments)
        elif self._how == "power":
            for fd, size in self._dirty.items():
                os.ftruncate(fd, min(size, os.fstat(fd).st_size))
            for source, target, before in reversed(self._renames):
                if os.path.exists(target):
                    os.rename(target, source)
                if before is not None:
                    with open(target, "wb") as file:
                        file.write(before)
        os._exit(EXIT_CODE)


def _content(path: str) -> bytes | None:
    """Return what a small file holds; None if it is not there. Packs never replace one."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write_half(arguments: Sequence[Any]) -> None:
    fd, data, offset = arguments
    os.pwrite(fd, memoryview(data)[: len(data) // 2], offset)
