"""What was published, and where: one record for each place, beside the refs.

It tells the next publication what the place has, and a later one what can be taken down there. It
keeps nothing alive here, and nothing is lost with it but time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from cas_zarr.cid import BLAKE3, CidBytes, Link, ReadableCids
from cas_zarr.errors import FormatError
from cas_zarr.repository.records import seal, unseal
from cas_zarr.repository.refs import Refs

__all__ = [
    "Place",
    "Published",
    "forget_published",
    "list_places",
    "note_published",
    "place_of",
    "published_at",
]

PLACE_TYPE = "cas-zarr/published"
PLACE_VERSION = 1
KINDS = ("root", "commit", "unixfs")

_MOST = 1000  # publications that a place is remembered to have, the newest
_FIELDS = {"cid", "kind", "path", "name"}


@dataclass(frozen=True, slots=True, repr=False)
class Published(ReadableCids):
    """One publication.

    Attributes
    ----------
    cid : CidBytes
        What was pinned.
    kind : str
        "root", "commit" (with its history) or "unixfs" (a view).
    path : str
        The group or array that it is of; "" for the whole dataset.
    name : str
        The name of the pin, "" for none.
    """

    cid: CidBytes
    kind: str = "root"
    path: str = ""
    name: str = ""


_Entries: TypeAlias = tuple[Published, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """What was published to one place, the newest last."""

    location: str
    entries: tuple[Published, ...] = ()

    def to_block(self) -> bytes:
        """Return the record as canonical DAG-JSON."""
        return seal(
            {
                "type": PLACE_TYPE,
                "version": PLACE_VERSION,
                "location": self.location,
                "entries": [
                    {"cid": Link(one.cid), "kind": one.kind, "path": one.path, "name": one.name}
                    for one in self.entries
                ],
            }
        )

    @classmethod
    def from_block(cls, data: bytes) -> Self:
        """Read a record; FormatError if it is none."""
        value = unseal(data)
        if not isinstance(value, dict) or value.get("type") != PLACE_TYPE:
            raise FormatError("it is no record of what was published")
        version = value.get("version")
        if version != PLACE_VERSION or isinstance(version, bool):
            raise FormatError(f"it has version {version!r} and {PLACE_VERSION} is known here")
        location, entries = value.get("location"), value.get("entries")
        if set(value) != {"type", "version", "location", "entries"} or not (
            isinstance(location, str) and isinstance(entries, list)
        ):
            raise FormatError("it has missing or unknown fields")
        return cls(location, tuple(map(_entry, entries)))


def _entry(value: Any) -> Published:
    if not isinstance(value, dict) or set(value) != _FIELDS:
        raise FormatError("an entry has missing or unknown fields")
    cid, kind = value["cid"], value["kind"]
    path, name = value["path"], value["name"]
    if (
        not isinstance(cid, Link)
        or kind not in KINDS
        or not (isinstance(path, str) and isinstance(name, str))
    ):
        raise FormatError("an entry is none of a publication")
    return Published(cid.cid, kind, path, name)


def place_of(location: str) -> str:
    """Return the name of the record of a place, as `IpfsNode.place` has it."""
    return BLAKE3.digest(location.encode("utf-8", "surrogatepass"))[:16].hex()


def published_at(refs: Refs, location: str) -> Place:
    """Return what is known to have been published to a place; a damaged record counts as none."""
    return _read(refs.published(place_of(location)), location)


def list_places(refs: Refs) -> list[Place]:
    """Return all places that something was published to; records that are damaged are left out."""
    found = []
    for name in refs.all_published():
        data = refs.published(name)
        if data is not None:
            try:
                found.append(Place.from_block(data))
            except FormatError:
                continue
    return found


def note_published(refs: Refs, location: str, entries: Sequence[Published]) -> None:
    """Note publications as the newest of a place; nothing where refs are only read."""
    known = {(one.cid, one.kind, one.path) for one in entries}  # parts that are alike have one CID

    def noted(before: _Entries) -> _Entries:
        kept = (one for one in before if (one.cid, one.kind, one.path) not in known)
        return (*kept, *entries)[-_MOST:]

    _change(refs, location, noted)


def forget_published(refs: Refs, location: str, cids: Collection[CidBytes]) -> None:
    """Take publications out of the record of a place: they are pinned there no more."""
    _change(refs, location, lambda before: tuple(one for one in before if one.cid not in cids))


def _change(refs: Refs, location: str, change: Callable[[_Entries], _Entries]) -> None:
    if refs.read_only:
        return
    name = place_of(location)
    while True:
        data = refs.published(name)
        before = _read(data, location).entries
        entries = change(before)
        if entries == before:
            return
        block = Place(location, entries).to_block() if entries else None
        if refs.swap_published(name, data, block):
            return


def _read(data: bytes | None, location: str) -> Place:
    try:
        place = Place(location) if data is None else Place.from_block(data)
    except FormatError:
        return Place(location)
    return place if place.location == location else Place(location)
