"""Uniting what two sides did since a common version: nodes, fields of documents, keys and chunks.

Two changes conflict where both set the same thing to different values, and where one changed
something under a node that the other deleted, or whose layout (any of its documents, but for the
attributes) the other changed. All else is united: documents by field; a resize of an array on a
regular grid with chunks that were written inside its new shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np

from cas_zarr.cid import CidBytes
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.tree.apply import apply, bind
from cas_zarr.tree.changes import Changes
from cas_zarr.tree.conflicts import Choice, Conflict, Resolver, raise_conflicts
from cas_zarr.tree.descent import matches
from cas_zarr.tree.diff import NodeChange, diff
from cas_zarr.tree.fields import FieldPath, Side, merge_fields
from cas_zarr.tree.graft import graft
from cas_zarr.tree.keys import OWNERS, parse_form, split_key
from cas_zarr.tree.layouts import (
    ATTRIBUTES,
    LAYOUT_DOCUMENTS,
    Layout,
    layout_of,
    resize,
    same_layout,
)
from cas_zarr.tree.morton import decode
from cas_zarr.tree.moving import codes_below, covers, moves, same_below
from cas_zarr.tree.node import Root, Value
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.sides import Column, Rows, edit_of
from cas_zarr.tree.values import write_value
from cas_zarr.tree.view import TreeView

__all__ = ["Choice", "Conflict", "Merged", "Resolver", "changes_of", "merge"]

_PAGES: Final = 2048  # that a merge remembers: it looks at many three times
_Name = Literal["ours", "theirs"]
_NAMES: Final[tuple[_Name, _Name]] = ("ours", "theirs")


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What `merge` made.

    Attributes
    ----------
    root : Root
        The root document; all that it links is written, itself it is not.
    notes : tuple of str
        What was united and is worth a second look, one sentence each.
    resolved : tuple of Conflict
        What the resolver decided.
    """

    root: Root
    notes: tuple[str, ...] = ()
    resolved: tuple[Conflict, ...] = ()


def merge(
    base: TreeView, ours: TreeView, theirs: TreeView, *, resolve: Resolver | None = None
) -> Merged:
    """Unite what changed from `base` to `ours` and to `theirs`.

    Where nothing conflicts, the result does not depend on which side is which.

    Parameters
    ----------
    base, ours, theirs : TreeView
        The three versions; their blocks are in the same place, and both sides have one hash.
    resolve : callable, optional
        Given a `Conflict`, returns what to do: "base", "ours" or "theirs" to take what that side
        has; or, of a chunk, a key or a document, what to put there (None for nothing). For a
        node and a layout the side is taken with all that lies below the node, and nothing below
        it is asked again. For a document a side decides the fields that both changed, the others
        are united.

    Raises
    ------
    ConflictError
        If the two overlap and there is no resolver; `conflicts` has all of it.
    InvalidArgumentError
        If the sides have different hashes, or the resolver says what cannot be done.
    """
    headers = ours.root.header, theirs.root.header
    if headers[0].function is not headers[1].function:
        raise InvalidArgumentError(
            f"a dataset with {headers[0].function.name} cannot be merged with one with "
            f"{headers[1].function.name}; write one of them anew with the hash of the other"
        )
    reader = TreeReader(theirs.reader.blocks, _PAGES)
    views = [
        TreeView(reader, view.root) if view.reader.blocks is reader.blocks else view
        for view in (base, ours, theirs)
    ]
    mine = {change.path: change for change in diff(views[0], views[1])}
    other = {change.path: change for change in diff(views[0], views[2])}
    if not other:
        return Merged(ours.root)
    if not mine:
        return Merged(theirs.root)
    sides: dict[Side, TreeView] = dict(zip(("base", *_NAMES), views, strict=True))
    return _Merge(sides, {"ours": mine, "theirs": other}, resolve).run()


def changes_of(after: TreeView, differences: Iterable[NodeChange]) -> Changes:
    """Return differences as changes, key by key, that can be applied to another version.

    Parameters
    ----------
    after : TreeView
        The version that the differences lead to.
    differences : iterable of NodeChange
    """
    changes = Changes()
    for change in differences:
        base = f"{change.path}/" if change.path else ""
        for name, (_, document) in change.docs.items():
            if document is None:
                changes.delete(base + name)
            else:
                changes.set_document(base + name, after.document_bytes(document))
        for name, (_, value) in change.keys.items():
            bind(changes, base + name, value)
        for form in change.forms:
            edit_of(after, change, form, Rows(change, form)).enter(changes)
    return changes


class _Merge:
    def __init__(
        self,
        views: Mapping[Side, TreeView],
        changes: Mapping[_Name, dict[str, NodeChange]],
        resolve: Resolver | None,
    ) -> None:
        self.views = views
        self.changes = changes
        self.resolve = resolve
        self.conflicts: list[Conflict] = []
        self.notes: list[str] = []
        self.taken: dict[str, Side] = {}  # paths that one side has with all that is below them
        self.decided = Changes()
        self.documents: dict[tuple[str, str], bytes | None] = {}
        self.keys = {
            name: {path: set(change.keys) for path, change in changes[name].items()}
            for name in _NAMES
        }
        self.rows = {
            name: {
                path: {form: Rows(change, form) for form in change.forms}
                for path, change in changes[name].items()
            }
            for name in _NAMES
        }
        self.overlaps: list[Conflict] = []  # of chunks and keys
        self.contested: set[str] = set()  # where they are

    def run(self) -> Merged:
        self._deleted_nodes()
        self._new_owners()
        both = sorted(self.changes["ours"].keys() & self.changes["theirs"].keys())
        for path in both:
            self._drop_equal(path)
        self._layouts(both)
        for conflict in self.overlaps:
            if not self._is_taken(split_key(conflict.key)[0]):
                self._decide(conflict)
        if self.resolve is None:
            raise_conflicts(self.conflicts)
        return Merged(self._united(), tuple(self.notes), tuple(self.conflicts))

    def _ask(self, conflict: Conflict) -> Choice:
        """Let the resolver decide; without one go on, to find what else there is."""
        self.conflicts.append(conflict)
        return "ours" if self.resolve is None else self.resolve(conflict)

    def _take(self, path: str, kind: Literal["node", "layout"], reason: str) -> None:
        conflict = Conflict(path, kind, reason=reason)
        side = conflict.side(self._ask(conflict))
        assert side is not None
        self.taken[path] = side

    def _is_taken(self, path: str) -> bool:
        return bool(self.taken) and any(up in self.taken for up in _at_and_above(path))

    # -- nodes that are gone ----------------------------------------------------------------

    def _deleted_nodes(self) -> None:
        found: dict[str, str] = {}
        for one, other in (_NAMES, _NAMES[::-1]):
            gone = self._gone(one)
            for path, change in self.changes[other].items() if gone else ():
                if change.status != "removed":
                    deleted = [up for up in _at_and_above(path) if up in gone]
                    if deleted:
                        found.setdefault(
                            deleted[-1],
                            f"{'node ' if path else ''}{_named(path)} was changed where "
                            f"{_named(deleted[-1])} was deleted",
                        )
        for path in sorted(found):
            if not any(up in found for up in _at_and_above(path)[1:]):
                self._take(path, "node", found[path])

    def _gone(self, name: _Name) -> set[str]:
        """Return the nodes that one side deleted; a folder without documents is not one."""
        return {
            path
            for path, change in self.changes[name].items()
            if change.status == "removed" and any(before for before, _ in change.docs.values())
        }

    # -- keys that change places ------------------------------------------------------------

    def _new_owners(self) -> None:
        """Find writes to keys that are chunks on one side and none, or of another array, elsewhere.

        Such a key lies in different places of the tree, so that it cannot be compared there.
        """
        flips = {name: self._flips(name) for name in _NAMES}
        for path in sorted(flips["ours"] | flips["theirs"]):
            if self._is_taken(path):
                continue
            if path in flips["ours"] and path in flips["theirs"]:
                views = self.views["ours"], self.views["theirs"]
                clash = moves(self.views["base"], path) and not same_below(*views, path)
            else:
                other: _Name = "theirs" if path in flips["ours"] else "ours"
                there = any(moves(self.views[side], path) for side in ("base", other))
                clash = there and self._writes_below(other, path)
            if clash:
                self._take(path, "layout", _written_beside(path))

    def _flips(self, name: _Name) -> set[str]:
        """Return the nodes that came to own chunks on one side, or ceased to."""
        base, view = self.views["base"], self.views[name]
        return {
            path
            for path, change in self.changes[name].items()
            if not OWNERS.isdisjoint(change.docs)
            and (base.owner(path) == path) != (view.owner(path) == path)
        }

    def _writes_below(self, name: _Name, path: str) -> bool:
        """Tell whether one side wrote to keys that belong to a node wherever it owns chunks."""
        views = self.views.values()
        for place in self._written_at_and_below[name].get(path, ()):
            if any(view.owner(place) == path for view in views):
                return True
        for place in _at_and_above(path)[1:] if path else ():
            change = self.changes[name].get(place)
            if change is not None and change.forms:
                rest = path[len(place) + 1 if place else 0 :] + "/"
                if any(len(codes) for _, codes in codes_below(change, rest)):
                    return True
        return False

    @cached_property
    def _written_at_and_below(self) -> dict[_Name, dict[str, list[str]]]:
        """By the path of a node, where each side wrote keys and chunks at and below it."""
        out: dict[_Name, dict[str, list[str]]] = {"ours": {}, "theirs": {}}
        for name in _NAMES:
            for place, change in self.changes[name].items():
                if change.keys or change.forms:
                    for path in _at_and_above(place):
                        out[name].setdefault(path, []).append(place)
        return out

    # -- what both did ----------------------------------------------------------------------

    def _drop_equal(self, path: str) -> None:
        """Set aside what both sides changed at a node: equal changes go, others are conflicts."""
        mine, other = (self.changes[name][path] for name in _NAMES)
        for name in sorted(mine.keys.keys() & other.keys.keys()):
            for side in _NAMES:
                self.keys[side][path].discard(name)
            (before, a), (_, b) = mine.keys[name], other.keys[name]
            if a != b:
                reason = f"key {name!r} of {_named(path)} was set twice"
                self.overlaps.append(Conflict(path, "key", name, None, before, a, b, reason))
                self.contested.add(path)
        for form in mine.forms:
            if form in other.forms:
                self._drop_equal_chunks(path, form)

    def _drop_equal_chunks(self, path: str, form: str) -> None:
        changes = [self.changes[name][path] for name in _NAMES]
        rows = [self.rows[name][path] for name in _NAMES]
        if changes[0].trees(form) == changes[1].trees(form):
            for side in rows:
                del side[form]
            return
        columns = [Column(*change.tables(form)) for change in changes]
        at = matches(columns[0].codes, columns[1].codes)
        both = columns[0].codes[at[0]]
        for side in rows:
            side[form].drop(both)
        differ = ~(columns[0].packed[at[0]] == columns[1].packed[at[1]]).all(axis=1)
        ndim = parse_form(form)[1]
        if differ.any():
            self.contested.add(path)
        where = decode(both[differ], ndim).tolist()
        for place, a, b in zip(where, at[0][differ], at[1][differ], strict=True):
            chunk = tuple(place)
            self.overlaps.append(
                Conflict(
                    path,
                    "chunk",
                    form,
                    chunk,
                    columns[0].before(a),
                    columns[0].after(a),
                    columns[1].after(b),
                    f"chunk {chunk} of {_named(path)} was set twice",
                )
            )

    # -- documents and layouts --------------------------------------------------------------

    def _layouts(self, both: list[str]) -> None:
        changed = sorted(
            {
                path
                for name in _NAMES
                for path, change in self.changes[name].items()
                if not set(LAYOUT_DOCUMENTS).isdisjoint(change.docs)
            }
        )
        layouts = {
            path: {side: self._layout(side, path) for side in self.views}
            for path in changed
            if not self._is_taken(path)
        }
        layouts = {
            path: of for path, of in layouts.items() if not same_layout(of["ours"], of["theirs"])
        }
        writes = self._writes(layouts)
        for path, of in layouts.items():
            if self._is_taken(path):
                continue
            if not any(same_layout(of["base"], of[name]) for name in _NAMES):
                documents = [
                    {name for name in self.changes[side][path].docs if name in LAYOUT_DOCUMENTS}
                    for side in _NAMES
                ]
                if documents[0].isdisjoint(documents[1]) or (
                    resize(of["ours"], of["theirs"]) is None
                    and any(writes[side].get(path) for side in _NAMES)
                ):
                    self._take(path, "layout", f"the layout of {_named(path)} was changed twice")
        for path in both:
            if not self._is_taken(path):
                self._documents(path)
        for path, of in layouts.items():
            final = self._final_layout(path)
            for side in _NAMES:
                if not self._is_taken(path) and final is not None and writes[side].get(path):
                    self._write_beside(path, side, of[side], final)

    def _layout(self, side: Side, path: str) -> Layout:
        return layout_of({name: self._document(side, path, name) for name in LAYOUT_DOCUMENTS})

    def _document(self, side: Side, path: str, name: str) -> bytes | None:
        view = self.views[side]
        node = view.node(path)
        document = None if node is None else node.docs.get(name)
        return None if document is None else view.document_bytes(document)

    def _final_layout(self, path: str) -> Layout | None:
        """Return the layout that a node will have; None while that is undecided."""
        if self.resolve is None and any(
            conflict.kind == "document" and conflict.path == path for conflict in self.conflicts
        ):
            return None
        documents = {}
        for name in LAYOUT_DOCUMENTS:
            if (path, name) in self.documents:
                documents[name] = self.documents[path, name]
            else:
                mine = self.changes["ours"].get(path)
                side: Side = "ours" if mine is not None and name in mine.docs else "theirs"
                documents[name] = self._document(side, path, name)
        return layout_of(documents)

    def _writes(self, layouts: Mapping[str, object]) -> dict[_Name, dict[str, list[str]]]:
        """Return, of the nodes in question, the folders where each side wrote to them."""
        out: dict[_Name, dict[str, list[str]]] = {"ours": {}, "theirs": {}}
        for side in _NAMES if layouts else ():
            for path in self.changes[side]:
                rows = self.rows[side][path].values()
                if self.keys[side][path] or any(rows) or path in self.contested:
                    owners = [view.owner(path) for view in self.views.values()]
                    arrays = {owner for owner in owners if owner is not None}
                    for array in arrays | ({path} if owners[0] is None else set()):
                        if array in layouts:
                            out[side].setdefault(array, []).append(path)
        return out

    def _write_beside(self, path: str, side: _Name, before: Layout, after: Layout) -> None:
        """Look at what one side wrote to an array that will have another layout than it knew."""
        if same_layout(before, after):
            return
        size = resize(before, after)
        if size is None:
            self._take(path, "layout", _written_beside(path))
            return
        rows = self.rows[side].get(path, {}).get(size.form)
        if rows:
            sets, _ = rows.tables()
            places = decode(sets.codes, len(size.grid))
            beyond = np.flatnonzero(size.outside(places))
            other: _Name = "theirs" if side == "ours" else "ours"
            for row, place in zip(beyond.tolist(), places[beyond].tolist(), strict=True):
                code, chunk = int(sets.codes[row]), tuple(place)
                was, held = (self._chunk(one, path, size.form, code) for one in ("base", other))
                value = Value(CidBytes(sets.cids[row].tobytes()), int(sets.sizes[row]))
                mine, yours = (value, held) if side == "ours" else (held, value)
                reason = f"chunk {chunk} of {_named(path)} was set outside the shape {size.after}"
                conflict = Conflict(path, "chunk", size.form, chunk, was, mine, yours, reason)
                self.overlaps.append(conflict)
            rows.drop(sets.codes[beyond])
        self.notes.append(
            f"{_named(path)} was resized from {size.before} to {size.after} on one side and "
            "written to on the other; both are kept"
        )

    def _chunk(self, side: Side, path: str, form: str, code: int) -> Value | None:
        tree = self.views[side].tree(path, form)
        return None if tree is None else tree.find(code)

    def _documents(self, path: str) -> None:
        mine, other = (self.changes[name][path].docs for name in _NAMES)
        for name in sorted(mine.keys() & other.keys()):
            held = {side: self._document(side, path, name) for side in self.views}
            if held["ours"] == held["theirs"]:
                continue
            merged, fields = _merge_documents(name, held, "ours")
            if fields:
                reason = f"document {name!r} of {_named(path)} was set twice{_listed(fields)}"
                values = held["base"], held["ours"], held["theirs"]
                conflict = Conflict(path, "document", name, None, *values, reason)
                choice = self._ask(conflict)
                side = conflict.side(choice)
                if side is None:
                    merged = choice if isinstance(choice, bytes) else None
                else:
                    merged, _ = _merge_documents(name, held, side)
            self.documents[path, name] = merged

    # -- the result -------------------------------------------------------------------------

    def _decide(self, conflict: Conflict) -> None:
        """Let the resolver decide a chunk or a key."""
        choice = self._ask(conflict)
        side = conflict.side(choice)
        value = choice if side is None else conflict.of(side)
        layout = None
        if conflict.kind == "chunk" and side is not None:
            layout = self.views[side].layout(conflict.path)
        if isinstance(value, bytes):
            header = self.views["theirs"].root.header
            blocks = self.views["theirs"].reader.blocks
            value = Value(write_value(blocks, header.function, value), len(value))
        if value is None:
            self.decided.delete(conflict.key)
        else:
            assert isinstance(value, Value)
            bind(self.decided, conflict.key, value, layout)

    def _united(self) -> Root:
        ours, theirs = self.views["ours"], self.views["theirs"]
        changes = Changes()
        gone = self._removed_whole(changes)
        edits = []
        for path in self.taken:
            self._leave_below(path)
        for path, change in self.changes["ours"].items():
            if self._is_taken(path) or (gone and any(up in gone for up in _at_and_above(path))):
                continue
            base = f"{path}/" if path else ""
            for name in change.docs:
                place = path, name
                document = (
                    self.documents[place]
                    if place in self.documents
                    else self._document("ours", path, name)
                )
                if document is None:
                    changes.delete(base + name)
                else:
                    changes.set_document(base + name, document)
            for name in self.keys["ours"][path]:
                bind(changes, base + name, change.keys[name][1])
            for form, rows in self.rows["ours"][path].items():
                if rows:
                    edits.append(edit_of(ours, change, form, rows))
        changes.values.update(self.decided.values)
        changes.layouts.update(self.decided.layouts)
        root = apply(theirs, changes, edits)
        header = root.header
        if header.text() == self.views["base"].root.header.text():
            header = ours.root.header
        root = Root(header, root.node)
        for path, side in sorted(self.taken.items()):
            if side != "theirs":
                root = _with_all_below(TreeView(theirs.reader, root), path, self.views[side])
        return root

    def _leave_below(self, path: str) -> None:
        """Leave out what was written to chunks of arrays above a node whose keys lie below it."""
        for up in _at_and_above(path)[1:] if path else ():
            change = self.changes["ours"].get(up)
            if change is not None and change.forms:
                rest = path[len(up) + 1 if up else 0 :] + "/"
                for form, codes in codes_below(change, rest):
                    if form in self.rows["ours"][up]:
                        self.rows["ours"][up][form].drop(codes)

    def _removed_whole(self, changes: Changes) -> set[str]:
        """Clear the nodes that are gone with all that was below them; nothing there is opened."""
        gone: set[str] = set()
        for path in sorted(self._gone("ours") - {""}):
            above = _at_and_above(path)[1:]
            if self._is_taken(path) or any(up in gone for up in above):
                continue
            if not any(covers(view, path) for view in self.views.values()):
                gone.add(path)
                if self.views["theirs"].node(path) is not None:
                    changes.cleared.add(f"{path}/")  # none of them lies in another
        return gone


def _with_all_below(view: TreeView, path: str, side: TreeView) -> Root:
    """Return the root of a version with all keys at and below a path as another has them."""
    root = graft(view, path, side.node(path))
    changes = Changes()
    for key in side.chunk_keys_above(f"{path}/"):
        value = side.find(key)
        owner = side.owner(split_key(key)[0])
        assert isinstance(value, Value)
        bind(changes, key, value, None if owner is None else side.layout(owner))
    return apply(TreeView(view.reader, root), changes) if changes else root


def _merge_documents(
    name: str, held: Mapping[Side, bytes | None], prefer: Side
) -> tuple[bytes | None, list[FieldPath]]:
    """Return the document that two make, and the fields that one of them decides."""
    ours, theirs = held["ours"], held["theirs"]
    if ours is None or theirs is None:
        return held[prefer], [()]
    apart = ATTRIBUTES if name in LAYOUT_DOCUMENTS else ()
    merged, fields = merge_fields(held["base"], ours, theirs, apart=apart, prefer=prefer)
    if apart and held[prefer] is None and any(field and field[0] not in apart for field in fields):
        return None, fields  # what is left are attributes of nothing
    return (held[prefer] if () in fields else merged), fields


def _listed(fields: list[FieldPath]) -> str:
    names = [".".join(field) for field in fields if field]
    return f", in {', '.join(names)}" if names else ""


def _named(path: str) -> str:
    return repr(path) if path else "the root"


def _written_beside(path: str) -> str:
    return f"the layout of {_named(path)} was changed while it was written to"


def _at_and_above(path: str) -> list[str]:
    parts = path.split("/") if path else []
    return [*("/".join(parts[:n]) for n in range(len(parts), 0, -1)), ""]
