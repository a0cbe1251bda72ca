"""The system calls that change a disk, in one place.

Everything that writes below a repository's folder calls these functions through the module
(``disk.fsync(fd)``), so a test can put others in their place and fail or kill the process at any
one of them. They raise `OSError`; `failure` makes it the error that users see.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from cas_zarr.cid import BytesLike
from cas_zarr.errors import StorageError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "appends",
    "create",
    "failure",
    "fsync",
    "fsync_folder",
    "link",
    "make_folder",
    "pwrite",
    "pwritev",
    "rename",
    "truncate",
    "try_lock",
    "unlink",
    "unlock",
]

_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None) if sys.platform != "win32" else None
_HAS_PWRITEV = hasattr(os, "pwritev")

_REMEDIES = {
    errno.ENOSPC: "free some space, then try again",
    errno.EDQUOT: "free some space within the quota, then try again",
    errno.EFBIG: "raise the limit of the size of a file (ulimit -f)",
    errno.EROFS: "open it with read_only=True",
    errno.EACCES: "check its permissions, or open it with read_only=True",
    errno.EPERM: "check its permissions, or open it with read_only=True",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.EIO: "check the disk, then try again",
}


def failure(error: OSError, doing: str, path: str) -> StorageError:
    """Return the `StorageError` for a failed system call, with its number, file and remedy."""
    if isinstance(error, StorageError):
        return error
    number = error.errno or errno.EIO
    remedy = _REMEDIES.get(number, "see that the folder is there and can be used, then try again")
    reason = (error.strerror or os.strerror(number)).lower()
    return StorageError(number, f"cannot {doing}: {reason}; {remedy}", path)


def create(path: str) -> int:
    """Create a new file for reading and writing; `FileExistsError` if it is there."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def appends(fd: int) -> bool:
    """Tell whether all that is written goes to the end of the file, wherever one seeks to."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)


def make_folder(path: str) -> None:
    """Create a folder, and those above it, unless it is there; its name is made durable."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    make_folder(parent)
    with suppress(FileExistsError):
        os.mkdir(path)
    fsync_folder(parent)


def pwrite(fd: int, data: BytesLike, offset: int) -> None:
    """Write all of `data` at `offset`."""
    done = os.pwrite(fd, data, offset)
    if done < len(data):
        # Whoever keeps an error keeps what this refers to, and a buffer with a view cannot grow.
        with memoryview(data) as view:
            while done < len(view):
                with view[done:] as rest:
                    done += os.pwrite(fd, rest, offset + done)


def pwritev(fd: int, buffers: Sequence[BytesLike], offset: int) -> None:
    """Write all of several buffers one behind the other at `offset`."""
    done = os.pwritev(fd, buffers, offset) if _HAS_PWRITEV else 0
    for buffer in buffers:
        size = len(buffer)
        if done < size:
            with memoryview(buffer) as view, view[done:] as rest:
                pwrite(fd, rest, offset + done)
            done = 0
        else:
            done -= size
        offset += size


def truncate(fd: int, size: int) -> None:
    """Cut a file to `size` bytes."""
    os.ftruncate(fd, size)


def fsync(fd: int) -> None:
    """Make the content of a file durable."""
    if _FULL_SYNC is not None:  # fsync of macOS leaves the data in the drive's cache
        try:
            fcntl.fcntl(fd, _FULL_SYNC)
            return
        except OSError as error:  # a network file system may not know it
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(fd)


def fsync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fsync(fd)
    finally:
        os.close(fd)


def rename(source: str, target: str) -> None:
    """Give a file its name, in place of what had it."""
    os.replace(source, target)


def link(source: str, target: str) -> None:
    """Give a file a second name; `FileExistsError` if it is taken."""
    os.link(source, target)


def unlink(path: str) -> None:
    """Remove a name; it is no error if it is gone."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def try_lock(fd: int, *, shared: bool = False) -> bool | None:
    """Take the advisory lock of an open file, which goes with the descriptor.

    Parameters
    ----------
    fd : int
    shared : bool
        Whether others may share it: enough to see that nobody has it for himself.

    Returns
    -------
    bool or None
        Whether it is ours now; None where the file system has no such locks.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def unlock(fd: int) -> None:
    """Let the advisory lock of an open file go, and that of all duplicates of its descriptor."""
    with suppress(OSError):  # the file system may have none
        fcntl.flock(fd, fcntl.LOCK_UN)
