"""Git for arrays, on IPFS: a content-addressable chunk store for Zarr on IPLD.

The public names are imported when they are first used, so that importing the package loads neither
zarr nor anything optional.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cas_zarr.errors import (
        BlockNotFoundError,
        CasZarrError,
        ConflictError,
        CorruptBlockError,
        DeviceMemoryError,
        FormatError,
        InvalidArgumentError,
        InvalidCIDError,
        InvalidKeyError,
        LimitError,
        MissingDependencyError,
        NotFoundError,
        ReadOnlyError,
        RemoteError,
        RepositoryNotFoundError,
        StorageError,
        VersionNotFoundError,
        WriteOnceError,
    )
    from cas_zarr.mapping import CASMapping
    from cas_zarr.repository.commit import Commit
    from cas_zarr.repository.diffing import Change
    from cas_zarr.repository.proof import check_proof
    from cas_zarr.repository.repository import Repository
    from cas_zarr.store import CASStore
    from cas_zarr.tree.conflicts import Conflict

__all__ = [
    "BlockNotFoundError",
    "CASMapping",
    "CASStore",
    "CasZarrError",
    "Change",
    "Commit",
    "Conflict",
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
    "Repository",
    "RepositoryNotFoundError",
    "StorageError",
    "VersionNotFoundError",
    "WriteOnceError",
    "check_proof",
]

_HOMES = {
    "CASMapping": "cas_zarr.mapping",
    "CASStore": "cas_zarr.store",
    "Change": "cas_zarr.repository.diffing",
    "Commit": "cas_zarr.repository.commit",
    "Conflict": "cas_zarr.tree.conflicts",
    "Repository": "cas_zarr.repository.repository",
    "check_proof": "cas_zarr.repository.proof",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "cas_zarr.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
