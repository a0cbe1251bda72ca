"""Remotes: other repositories that this one was cloned from, or is synchronised with.

A remote has a name (``origin`` for the one that was cloned), a location, and for a partial clone
the parts that are copied from it. What the others have is fetched from there when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.fronted import FrontedBlocks
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.errors import CasZarrError, ConflictError, FormatError, InvalidArgumentError
from cas_zarr.repository.faraway import Sources
from cas_zarr.repository.opening import parse_location, path_of
from cas_zarr.repository.records import seal, unseal
from cas_zarr.repository.refs import Refs
from cas_zarr.repository.selection import Part, parse_part
from cas_zarr.repository.versions import not_found

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = [
    "ORIGIN",
    "Remote",
    "add_remote",
    "blocks_for",
    "get_remote",
    "is_partial",
    "list_remotes",
    "local_blocks",
    "open_remote",
    "remove_remote",
    "set_parts",
    "stored_blocks",
]

ORIGIN = "origin"
"""The remote that a clone comes from."""

REMOTE_TYPE = "cas-zarr/remote"
REMOTE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Remote:
    """Another repository.

    Attributes
    ----------
    name : str
    location : str
        Path or address, as `Repository.open` takes it.
    parts : tuple of Part, optional
        What is copied from it. None is everything; anything else makes this a partial clone.
    """

    name: str
    location: str
    parts: tuple[Part, ...] | None = None

    @property
    def partial(self) -> bool:
        """Whether blocks were left there that versions here lead to."""
        return self.parts is not None

    def to_block(self) -> bytes:
        """Return the record as canonical DAG-JSON."""
        return seal(
            {
                "type": REMOTE_TYPE,
                "version": REMOTE_VERSION,
                "location": self.location,
                "parts": None if self.parts is None else [str(part) for part in self.parts],
            }
        )

    @classmethod
    def from_block(cls, name: str, data: bytes) -> Self:
        """Read a record; FormatError if it is none."""
        value = unseal(data)
        if not isinstance(value, dict) or value.get("type") != REMOTE_TYPE:
            raise FormatError("it is no record of a remote")
        version = value.get("version")
        if version != REMOTE_VERSION or isinstance(version, bool):
            raise FormatError(f"it has version {version!r} and {REMOTE_VERSION} is known here")
        location, parts = value.get("location"), value.get("parts")
        if (
            set(value) != {"type", "version", "location", "parts"}
            or not isinstance(location, str)
            or not (parts is None or isinstance(parts, list))
        ):
            raise FormatError("it has missing or unknown fields")
        try:
            found = None if parts is None else tuple(parse_part(part) for part in parts)
        except CasZarrError as error:
            raise FormatError(str(error)) from None
        return cls(name, location, found)


def get_remote(refs: Refs, name: str) -> Remote | None:
    """Return a remote, or None if there is none of that name.

    Raises
    ------
    FormatError
        If its record is damaged.
    """
    data = refs.remote(name)
    if data is None:
        return None
    try:
        return Remote.from_block(name, data)
    except FormatError as error:
        raise FormatError(
            f"the record of remote {name!r} in {refs.location} is damaged: {error}; restore its "
            f"file, refs/remotes/{name}, or remove it and add the remote again"
        ) from None


def list_remotes(refs: Refs) -> list[Remote]:
    """Return all remotes, by name."""
    found = (get_remote(refs, name) for name in refs.remotes())
    return [remote for remote in found if remote is not None]


def add_remote(
    refs: Refs, name: str, location: str, *, parts: Sequence[Part] | None = None
) -> Remote:
    """Give another repository a name.

    Raises
    ------
    InvalidArgumentError
        If the location means nothing, or has a password in it.
    ConflictError
        If the name is taken.
    """
    if not isinstance(location, str) or not location:
        raise InvalidArgumentError(f"{location!r} is no path or address of a repository")
    parse_location(location)
    if "://" not in location:
        location = str(path_of(location))  # it is looked for from elsewhere, too
    remote = Remote(name, location, None if parts is None else tuple(parts))
    if not refs.swap_remote(name, None, remote.to_block()):
        raise ConflictError(
            f"remote {name!r} exists already in {refs.location}; choose another name, or remove "
            "it first"
        )
    return remote


def remove_remote(refs: Refs, name: str) -> None:
    """Forget a remote and where its branches were.

    Raises
    ------
    ConflictError
        If blocks that versions here lead to are nowhere but there.
    """
    remote = get_remote(refs, name)
    if remote is None:
        raise not_found(refs, name, kind="remote", names=refs.remotes())
    if remote.partial:
        raise ConflictError(
            f"{refs.location} is a partial clone of remote {name!r}, and what was left there could "
            "not be read any more; fetch the rest first"
        )
    if not refs.swap_remote(name, remote.to_block(), None):
        raise ConflictError(f"remote {name!r} of {refs.location} is another by now; repeat")
    for branch in refs.all_tracked():
        if branch.startswith(f"{name}/") and (now := refs.tracked(branch)) is not None:
            refs.track(branch, expected=now, new=None)


def set_parts(refs: Refs, remote: Remote, parts: Sequence[Part] | None) -> Remote:
    """Change which parts of a remote are copied; ConflictError if it is another by now."""
    new = replace(remote, parts=None if parts is None else tuple(parts))
    if not refs.swap_remote(remote.name, remote.to_block(), new.to_block()):
        raise ConflictError(f"remote {remote.name!r} of {refs.location} is another by now; repeat")
    return new


def is_partial(repo: Repository) -> bool:
    """Tell whether versions lead to blocks that were left at a remote on purpose."""
    return any(remote.partial for remote in list_remotes(repo.refs))


def open_remote(location: str, *, sources: Sources | None = None) -> Repository:
    """Open another repository for reading; what is read of it is kept by whoever reads.

    Parameters
    ----------
    location : str
    sources : Sources, optional
        Where to look for blocks of IPFS.
    """
    from cas_zarr.repository.repository import Repository

    passing = (sources or Sources()).passing()
    return Repository.open_from(location, passing)


def blocks_for(refs: Refs, local: BlockStore, *, sources: Sources | None = None) -> BlockStore:
    """Return the blocks of a repository: those here, and behind them those left at remotes.

    Nothing is opened until it is needed.
    """
    behind: list[Callable[[], BlockStore]] = []
    remote = False
    for name in refs.remotes():
        try:
            found = get_remote(refs, name)
        except FormatError as error:  # told where a block is missing, not to whoever opens
            behind.append(partial(_refuse, error))
            continue
        if found is not None and found.partial:
            behind.append(partial(_blocks_of, found.location, sources))
            remote = remote or _is_far(found.location)
    return TieredBlocks(local, behind, remote=remote) if behind else local


def local_blocks(blocks: BlockStore) -> BlockStore:
    """Return the blocks that are really here."""
    return blocks.local if isinstance(blocks, TieredBlocks) else blocks


def stored_blocks(blocks: BlockStore) -> BlockStore:
    """Return the blocks that are really here, and not what a cache has of them."""
    local = local_blocks(blocks)
    return local.behind if isinstance(local, FrontedBlocks) else local


def _blocks_of(location: str, sources: Sources | None) -> BlockStore:
    return open_remote(location, sources=sources).blocks


def _is_far(location: str) -> bool:
    try:
        return parse_location(location).remote
    except InvalidArgumentError:  # told when it is opened
        return False


def _refuse(error: FormatError) -> BlockStore:
    raise error
