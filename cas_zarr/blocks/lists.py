"""The lists of condemned blocks of a folder of packs, and the lock of collections.

::

    packs/<32 hex digits>.condemned    a list; it never changes
    packs/gc.lock                      locked by who collects; it is never removed

A list counts while the record of collections, which lies with the refs, names it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from cas_zarr.blocks import disk
from cas_zarr.blocks.condemned import Condemned
from cas_zarr.blocks.pack import create_part
from cas_zarr.errors import BlockNotFoundError, ConflictError, FormatError

__all__ = ["ListFolder"]

_SUFFIX = ".condemned"
_LOCK = "gc.lock"


class ListFolder:
    """The lists in a folder.

    Parameters
    ----------
    path : str
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, data: bytes) -> Condemned:
        """Write a list, durably; StorageError if the disk fails."""
        name = Condemned.name_of(data)
        try:
            fd, part = create_part(self.path)
            try:
                disk.pwrite(fd, data, 0)
                disk.fsync(fd)
                disk.rename(part, self._file(name))
            except OSError:
                with suppress(OSError):
                    disk.unlink(part)
                raise
            finally:
                os.close(fd)
            disk.fsync_folder(self.path)
        except OSError as error:
            raise disk.failure(error, "write a list of condemned blocks", self.path) from error
        return self.read(name)

    def read(self, name: str) -> Condemned:
        """Return a list.

        Raises
        ------
        BlockNotFoundError
            If there is none of that name.
        FormatError
            If it is damaged.
        """
        file = self._file(name)
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise BlockNotFoundError(
                f"there is no list {file} of condemned blocks; run gc, which makes a new one"
            ) from None
        except OSError as error:
            raise disk.failure(error, "read a list of condemned blocks", file) from error
        try:
            if not os.fstat(fd).st_size:
                raise FormatError("it is empty")
            return Condemned.from_bytes(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), name)
        except FormatError as error:
            raise FormatError(
                f"list {file} of condemned blocks is damaged: {error}; run gc, which makes a new "
                "one"
            ) from None
        except OSError as error:
            raise disk.failure(error, "read a list of condemned blocks", file) from error
        finally:
            os.close(fd)

    def delete(self, keep: Collection[str]) -> None:
        """Remove all lists but those of some names."""
        try:
            for entry in os.listdir(self.path):
                name, suffix = os.path.splitext(entry)
                if suffix == _SUFFIX and name not in keep:
                    disk.unlink(os.path.join(self.path, entry))
        except OSError as error:
            raise disk.failure(error, "remove a list of condemned blocks", self.path) from error

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Hold the lock of collections; ConflictError if someone else does."""
        file = os.path.join(self.path, _LOCK)
        try:
            fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise disk.failure(error, "lock it", file) from error
        try:
            if disk.try_lock(fd) is False:
                raise ConflictError(
                    f"another collection is under way in {self.path}; wait until it has ended"
                )
            yield
        finally:
            os.close(fd)

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name + _SUFFIX)
