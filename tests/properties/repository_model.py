"""What a repository should do, said with dicts: the model of test_repository_machine.py.

A dataset is a dict of key to bytes. Nothing of the package is used here but names of keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Clash",
    "Data",
    "Delicate",
    "ModelCommit",
    "Record",
    "Side",
    "World",
    "below",
    "dump",
    "exists",
    "node_of",
    "unite",
]

Data = dict[str, bytes]
Side = Literal["base", "ours", "theirs"]

_CHUNK = re.compile(r"c/(\d+)/(\d+)")
_ATTRIBUTES = {"attributes", "consolidated_metadata"}
_MISSING = object()
MAX_CROSSWISE = 8


class Clash(Exception):
    """Two sides changed the same thing."""


class Delicate(Exception):
    """Nobody says what becomes of this."""


def dump(value: Any) -> bytes:
    """Return a document as zarr writes it."""
    return json.dumps(value, indent=2).encode()


def below(data: Data, path: str) -> Data:
    """Return what lies at and below a node, with the keys as they are."""
    return {key: value for key, value in data.items() if not path or key.startswith(f"{path}/")}


def exists(data: Data, path: str) -> bool:
    """Tell whether a key or a node is at a path."""
    return path in data or any(key.startswith(f"{path}/") for key in data)


def above(path: str) -> Iterator[str]:
    """Yield a path and all above it, the root last."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""


def document_of(path: str) -> str:
    return f"{path}/zarr.json" if path else "zarr.json"


def owner_of(data: Data, path: str) -> str | None:
    return next((up for up in above(path) if document_of(up) in data), None)


def node_of(data: Data, key: str) -> tuple[str, tuple[int, int] | None]:
    """Return the node that a key belongs to, and the coordinates if it is a chunk."""
    folder, _, name = key.rpartition("/")
    if name != "zarr.json":
        owner = owner_of(data, folder)
        if owner is not None:
            match = _CHUNK.fullmatch(key[len(owner) + 1 if owner else 0 :])
            if match is not None:
                return owner, (int(match[1]), int(match[2]))
    return folder, None


# -- uniting two datasets -------------------------------------------------------------------------


def unite(base: Data, ours: Data, theirs: Data, prefer: Side | None = None) -> Data:
    """Return what has the changes of both; where both changed a thing that of one, or Clash.

    Raises
    ------
    Clash
        If both changed the same, and it is not said whose change counts.
    Delicate
        If the model leaves open what becomes of it.
    """
    if theirs == base:
        return dict(ours)
    if ours == base:
        return dict(theirs)
    if is_delicate(base, ours, theirs):
        raise Delicate
    sides = {"base": base, "ours": ours, "theirs": theirs}
    names: tuple[Side, Side] = ("ours", "theirs")
    changed = {
        name: {k for k in base.keys() | sides[name].keys() if base.get(k) != sides[name].get(k)}
        for name in names
    }
    places: dict[Side, dict[str, tuple[str, tuple[int, int] | None]]] = {
        name: {
            key: node_of(sides[name] if key in sides[name] else base, key) for key in changed[name]
        }
        for name in names
    }
    taken: dict[str, Side] = {}

    def clash(what: str) -> Side:
        if prefer is None:
            raise Clash(what)
        return prefer

    def is_taken(path: str) -> bool:
        return any(up in taken for up in above(path))

    # A node that one side deleted, and something at or below it that the other changed.
    found = set()
    for one, other in (names, names[::-1]):
        gone = {
            path
            for path in {key.rpartition("/")[0] for key in base if key.endswith("zarr.json")}
            if not below(sides[one], path)
        }
        for path, _ in places[other].values():
            if below(sides[other], path):
                found.update([up for up in above(path) if up in gone][-1:])
    for path in sorted(found):
        if not is_taken(path):
            taken[path] = clash(f"{path!r} was changed and deleted")

    both = changed["ours"] & changed["theirs"]
    equal = {key for key in both if ours.get(key) == theirs.get(key)}
    values = {key for key in both - equal if not key.endswith("zarr.json")}

    # Layouts: what one side wrote where the other changed the layout, or both changed it.
    layouts = {
        path: {side: _layout(sides[side].get(document_of(path))) for side in sides}
        for name in names
        for key, (path, _) in places[name].items()
        if key.endswith("zarr.json")
    }
    layouts = {
        path: of
        for path, of in layouts.items()
        if not is_taken(path) and of["ours"] != of["theirs"]
    }
    writes: dict[Side, dict[str, set[str]]] = {"ours": {}, "theirs": {}}
    for name in names:
        for key, (path, _) in places[name].items():
            if key.endswith("zarr.json") or key in equal:
                continue
            owners = {owner_of(sides[side], path) for side in sides}
            if owner_of(base, path) is None:
                owners.add(path)
            for owner in owners & layouts.keys():
                writes[name].setdefault(owner or "", set()).add(key)
    for path, of in sorted(layouts.items()):
        if of["base"] not in (of["ours"], of["theirs"]):
            resized = _resized(of["ours"], of["theirs"])
            if resized is None and any(path in writes[name] for name in names):
                taken[path] = clash(f"the layout of {path!r} was changed twice")

    # Documents, by field.
    merged: Data = {}
    documents = {}
    for key in sorted(key for key in both - equal if key.endswith("zarr.json")):
        path = key.rpartition("/")[0]
        if not is_taken(path):
            documents[key] = _merge_documents(*(sides[s].get(key) for s in sides), clash)
    for path, of in sorted(layouts.items()):
        key = document_of(path)
        final = documents.get(key, (ours if key in changed["ours"] else theirs).get(key))
        for name in names:
            if is_taken(path) or path not in writes[name] or of[name] == _layout(final):
                continue
            grid = _resized(of[name], _layout(final))
            if grid is None:
                taken[path] = clash(f"{path!r} was written to and laid out anew")
                break
            for written in writes[name][path] - values:
                node, chunk = places[name][written]
                outside = chunk is not None and any(
                    c >= g for c, g in zip(chunk, grid, strict=True)
                )
                if node == path and outside and written in sides[name]:
                    values.add(written)

    for key in base.keys() | ours.keys() | theirs.keys():
        path = node_of(ours if key in ours else theirs if key in theirs else base, key)[0]
        top = next((up for up in reversed(list(above(path))) if up in taken), None)
        if top is not None:
            source = sides[taken[top]]
        elif key in documents:
            source = documents
        elif key in values:
            source = sides[clash(f"{key!r} was set twice")]
        else:
            source = ours if key in changed["ours"] else theirs
        value = source.get(key)
        if value is not None:
            merged[key] = value
    return merged


def is_delicate(base: Data, ours: Data, theirs: Data) -> bool:
    """Tell whether one side writes in a folder below a node that the other makes, or unmakes.

    The folder's keys belong to the node, but so only as long as it is there: whether that counts as
    a write to the node is left open here.
    """
    sides = (base, ours, theirs)
    for one, other in ((ours, theirs), (theirs, ours)):
        for key in base.keys() ^ one.keys():
            path = key.rpartition("/")[0]
            if not key.endswith("zarr.json"):
                continue
            for written in base.keys() | other.keys():
                folder = written.rpartition("/")[0]
                if base.get(written) != other.get(written) and folder != path:
                    places = {node_of(side, written)[0] for side in sides if written in side}
                    owners = {owner_of(side, place) for side in sides for place in places}
                    if path in owners - places:
                        return True
    return False


def _layout(document: bytes | None) -> dict[str, Any]:
    value = {} if document is None else json.loads(document)
    return {key: member for key, member in value.items() if key not in _ATTRIBUTES}


def _resized(before: dict[str, Any], after: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the new grid of an array that only has another shape."""
    if "shape" not in before or "shape" not in after:
        return None
    if before | {"shape": 0} != after | {"shape": 0}:
        return None
    return tuple(after["shape"])  # of one element are the chunks of the model


def _merge_documents(
    base: bytes | None, ours: bytes | None, theirs: bytes | None, clash: Any
) -> bytes | None:
    held = {"base": base, "ours": ours, "theirs": theirs}
    if ours is None or theirs is None:
        return held[clash("a document was deleted and changed")]
    if ours == base or theirs == base:
        return theirs if ours == base else ours
    values = [{} if one is None else json.loads(one) for one in (base, ours, theirs)]
    parts = [{key: value for key, value in one.items() if key not in _ATTRIBUTES} for one in values]
    if parts[1] != parts[2] and parts[0] not in parts[1:]:
        side = clash("a layout was changed twice")
        if held[side] is None:
            return None
        chosen = parts[list(held).index(side)]
        values[1:] = [
            chosen | {key: value for key, value in one.items() if key in _ATTRIBUTES}
            for one in values[1:]
        ]
    if base is None:
        values[0] = _MISSING  # type: ignore[call-overload]
    merged = _merge_fields(*values, clash)
    return None if merged is _MISSING else dump(merged)


def _merge_fields(base: Any, ours: Any, theirs: Any, clash: Any) -> Any:
    if ours == theirs:  # but perhaps with its members in another order
        if base == ours:
            return base
        return ours if ours is _MISSING else min(ours, theirs, key=json.dumps)
    if ours == base or theirs == base:
        return theirs if ours == base else ours
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return {"base": base, "ours": ours, "theirs": theirs}[clash("a field was changed twice")]
    before = base if isinstance(base, dict) else {}
    merged = {}
    for name in (*before, *sorted((ours.keys() | theirs.keys()) - before.keys())):
        member = _merge_fields(
            before.get(name, _MISSING),
            ours.get(name, _MISSING),
            theirs.get(name, _MISSING),
            clash,
        )
        if member is not _MISSING:
            merged[name] = member
    return merged


# -- histories and refs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCommit:
    """A commit: what it follows, and its dataset."""

    parents: tuple[bytes, ...]
    data: Data
    time: int
    message: str


@dataclass(frozen=True)
class Record:
    """Where a branch stands: its newest commit and its working dataset."""

    commit: bytes | None = None
    work: Data | None = None


@dataclass
class World:
    """The refs of one repository; commits are shared by all."""

    commits: dict[bytes, ModelCommit]
    branches: dict[str, Record] = field(default_factory=dict)
    tags: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, Record] = field(default_factory=dict)
    tracked: dict[str, bytes] = field(default_factory=dict)
    cut: frozenset[bytes] = frozenset()
    logged: set[bytes] = field(default_factory=set)

    def parents(self, cid: bytes) -> tuple[bytes, ...]:
        """Return the parents of a commit that are part of the history here."""
        return () if cid in self.cut else self.commits[cid].parents

    def history(self, *tips: bytes) -> set[bytes]:
        """Return commits and all behind them."""
        found: set[bytes] = set()
        pending = list(tips)
        while pending:
            cid = pending.pop()
            if cid not in found:
                found.add(cid)
                pending.extend(self.parents(cid))
        return found

    def merge_bases(self, a: bytes, b: bytes) -> list[bytes]:
        """Return the commits that both follow and no other such one follows, the latest first."""
        common = self.history(a) & self.history(b)
        best = common - {
            old for cid in common for parent in self.parents(cid) for old in self.history(parent)
        }
        return sorted(best, key=lambda cid: (-self.commits[cid].time, cid))

    def between(self, a: bytes, b: bytes, depth: int = 0) -> Data:
        """Return what two versions have in common: of several merge bases, what they agree on."""
        bases = self.merge_bases(a, b)
        if not bases:
            return {}
        data = self.commits[bases[0]].data
        for other in bases[1:] if depth < MAX_CROSSWISE else ():
            before = self.between(bases[0], other, depth + 1)
            data = unite(before, data, self.commits[other].data, "base")
        return data

    def is_torn(self, a: bytes | None, b: bytes) -> bool:
        """Tell whether two histories do not meet, and one was cut: nobody knows their base."""
        if a is None or self.merge_bases(a, b):
            return False
        return not self.cut.isdisjoint(self.history(a, b))

    def shown(self, record: Record | None) -> Data:
        """Return what writers of a branch begin with."""
        if record is None:
            return {}
        if record.work is not None:
            return record.work
        return {} if record.commit is None else self.commits[record.commit].data

    def head(self, record: Record | None) -> Data:
        """Return the dataset of the commit of a branch."""
        if record is None or record.commit is None:
            return {}
        return self.commits[record.commit].data

    def carried(self, record: Record, new: Data) -> Data:
        """Return the work of a branch whose commit moves to another dataset."""
        if record.work is None or record.work in (self.head(record), new):
            return new
        return unite(self.head(record), record.work, new)

    def own(self, start: bytes, other: bytes) -> list[bytes]:
        """Return the commits by first parents that `other` does not have, oldest first."""
        theirs = self.history(other)
        found = []
        cid: bytes | None = start
        while cid is not None and cid not in theirs:
            found.append(cid)
            cid = next(iter(self.parents(cid)), None)
        return found[::-1]

    def tips(self) -> set[bytes]:
        """Return the commits that refs lead to."""
        records = [*self.branches.values(), *self.kept.values()]
        found = {one.commit for one in records if one.commit is not None}
        return found | set(self.tags.values()) | set(self.tracked.values())

    def reachable(self) -> set[bytes]:
        """Return the commits that refs and their log lead to."""
        return self.history(*self.tips(), *self.logged)
