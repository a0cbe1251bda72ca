"""Every error that this package raises on purpose.

::

    CasZarrError
    ├── NotFoundError (KeyError)
    │   ├── BlockNotFoundError      a block is in none of the places that were asked
    │   ├── VersionNotFoundError    no branch, tag, commit or root of that name
    │   └── RepositoryNotFoundError no repository at that address
    ├── FormatError (ValueError)    bytes are not what their type and version say
    │   └── InvalidCIDError         text or bytes that are no CID we can check
    ├── CorruptBlockError           bytes do not hash to the CID that was asked for
    ├── InvalidKeyError (ValueError)  a key, a path or a ref name that cannot be stored
    ├── InvalidArgumentError (ValueError)  an argument that makes no sense
    ├── LimitError (ValueError)     a size, count or depth beyond the format's limits
    ├── ReadOnlyError (ValueError)  a write to something that is open for reading only
    ├── WriteOnceError              a strict store refuses to bind a key anew
    ├── ConflictError               another writer was here first and the changes overlap
    ├── StorageError (OSError)      the disk, or whatever holds the blocks, failed
    │   └── RemoteError             a server did not answer, or not with what was asked for
    ├── DeviceMemoryError (MemoryError)  the memory of a GPU does not suffice
    └── MissingDependencyError (ImportError)  an optional part is not installed

Messages say what, which, where, and the remedy, in lower case, with CIDs in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BlockNotFoundError",
    "CasZarrError",
    "ConflictError",
    "CorruptBlockError",
    "DeviceMemoryError",
    "FormatError",
    "InvalidArgumentError",
    "InvalidCIDError",
    "InvalidKeyError",
    "LimitError",
    "MissingDependencyError",
    "NotFoundError",
    "ReadOnlyError",
    "RemoteError",
    "RepositoryNotFoundError",
    "StorageError",
    "VersionNotFoundError",
    "WriteOnceError",
]


class CasZarrError(Exception):
    """Root of the errors of cas_zarr."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class NotFoundError(CasZarrError, KeyError):
    """Something that was asked for by name or CID is not there."""


class BlockNotFoundError(NotFoundError):
    """A block is in none of the places that were asked."""


class VersionNotFoundError(NotFoundError):
    """No branch, tag, commit or root answers to that name."""


class RepositoryNotFoundError(NotFoundError):
    """There is no repository at that address."""


class FormatError(CasZarrError, ValueError):
    """Bytes are not what their type and version say."""


class InvalidCIDError(FormatError):
    """Text or bytes are not a CID, or a CID of a hash that cannot be checked here."""


class CorruptBlockError(CasZarrError):
    """Bytes do not hash to the CID that was asked for."""


class InvalidKeyError(CasZarrError, ValueError):
    """A key, a path or a ref name cannot be stored."""


class InvalidArgumentError(CasZarrError, ValueError):
    """An argument makes no sense here."""


class LimitError(CasZarrError, ValueError):
    """A size, a count or a depth is beyond the limits of the format."""


class ReadOnlyError(CasZarrError, ValueError):
    """A write to something that is open for reading only."""


class WriteOnceError(CasZarrError):
    """A strict store refuses to bind a key to another value."""


class ConflictError(CasZarrError):
    """Another writer changed the same thing first.

    Parameters
    ----------
    message : str
    conflicts : sequence
        What was changed twice, as `cas_zarr.tree.merge.Conflict`; empty where nobody looked.
    changes : sequence
        What the other writer changed, as `cas_zarr.tree.diff.NodeChange`, where a writer asked
        not to unite with it.

    Attributes
    ----------
    conflicts, changes : tuple
    """

    def __init__(
        self, message: str, conflicts: Sequence[Any] = (), *, changes: Sequence[Any] = ()
    ) -> None:
        super().__init__(message)
        self.conflicts = tuple(conflicts)
        self.changes = tuple(changes)


class StorageError(CasZarrError, OSError):
    """The disk, or whatever holds the blocks, failed."""

    def __str__(self) -> str:  # OSError would begin with a number and end with the file
        if self.filename is None:
            return super().__str__()
        return f"{self.filename}: {self.strerror}"


class RemoteError(StorageError):
    """A server did not answer, or not with what was asked for.

    Parameters
    ----------
    message : str
    status : int, optional
        The HTTP status, where there was an answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class DeviceMemoryError(CasZarrError, MemoryError):
    """The memory of a GPU does not suffice for the smallest batch."""


class MissingDependencyError(CasZarrError, ImportError):
    """An optional part of the package is not installed."""
