"""Sorting changed keys into the nodes and chunk trees that they belong to.

A key is classified against the documents that will be there, not those that were: where a
`zarr.json` or `.zarray` comes or goes, the keys around it move (`moved_keys`). So the result
follows from the final map alone, whatever the order in which its keys arrived.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.errors import InvalidKeyError
from cas_zarr.tree.changes import Changes, pack_value, unpack_value
from cas_zarr.tree.chunktree import TreeRef, chunk_table
from cas_zarr.tree.descent import alike, matches
from cas_zarr.tree.keys import MAX_DEPTH, OWNERS, form_of, parse_chunk, parse_chunks, split_key
from cas_zarr.tree.morton import MAX_NDIM, Codes, encode
from cas_zarr.tree.node import Node, Value
from cas_zarr.tree.page import CID_SIZE
from cas_zarr.tree.shards import iter_entries
from cas_zarr.tree.table import Table, concatenate, empty_table
from cas_zarr.tree.view import TreeView

__all__ = ["Classifier", "NodeEdit", "TreeEdit", "key_blocks", "moved_keys"]

_PACKED: Final = CID_SIZE + 8
_TAIL: Final = "0123456789./"
_BLOCK: Final = 1 << 15  # keys that are looked at together
_FEW: Final = 8  # so few are not


@dataclass(slots=True)
class TreeEdit:
    """Chunks to set in and to delete from one chunk tree.

    They come as columns of few or many, or as `bulk`, a table of chunks to set and codes of chunks
    to delete; `whole` is a tree that holds just what is set. What is set by either way is not
    deleted by the other: a key that moves between nodes is deleted and set.
    """

    ndim: int
    coordinates: list[NDArray[np.int64]] = field(default_factory=list)
    links: list[tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]] = field(default_factory=list)
    deletes: list[NDArray[np.int64]] = field(default_factory=list)
    bulk: Callable[[], tuple[Table, Codes]] | None = None
    whole: TreeRef | None = None

    def add(
        self,
        coordinates: NDArray[np.int64],
        cids: NDArray[np.uint8],
        sizes: NDArray[np.integer[Any]],
    ) -> None:
        """Set chunks: coordinates (n, ndim), CIDs (n, 36) and sizes (n,)."""
        self.coordinates.append(coordinates)
        self.links.append((cids, sizes))

    def add_packed(self, coordinates: NDArray[np.int64], packed: bytes) -> None:
        """Set chunks whose packed values stand one behind another."""
        rows = np.frombuffer(packed, np.uint8).reshape(-1, _PACKED)
        sizes = np.ascontiguousarray(rows[:, CID_SIZE:]).view("<u8").reshape(-1)
        self.add(coordinates, rows[:, :CID_SIZE], sizes)

    @property
    def in_bulk(self) -> bool:
        """Whether nothing came as columns."""
        return self.bulk is not None and not (self.coordinates or self.deletes)

    def tables(self) -> tuple[Table, Codes]:
        """Return the chunks to set, and the ascending codes of those to delete if not set."""
        if self.bulk is None:
            return self._columns()
        table, deletes = self.bulk()
        if self.in_bulk:
            return table, deletes
        first, gone = self._columns()
        kept = np.ones(len(table), bool)
        kept[matches(table.codes, first.codes)[0]] = False
        table = concatenate([table.take(kept), first])
        return table, np.union1d(*alike(deletes, gone))

    def _columns(self) -> tuple[Table, Codes]:
        table = empty_table()
        if self.links:
            codes = _joined([encode(part) for part in self.coordinates])
            cids = _joined([cids for cids, _ in self.links])
            sizes = _joined([sizes for _, sizes in self.links]).astype(np.uint64)
            table = chunk_table(codes, cids, sizes, self.ndim)
        none = np.zeros((0, self.ndim), np.int64)
        deletes = np.sort(_joined([encode(part) for part in (*self.deletes, none)]))
        # np.unique would hash the codes, which costs twenty times as much
        return table, deletes[np.append(True, deletes[1:] != deletes[:-1])[: len(deletes)]]


@dataclass(slots=True)
class NodeEdit:
    """What changes in one node and below it; `clear` forgets all that was there first."""

    clear: bool = False
    docs: dict[str, bytes | None] = field(default_factory=dict)
    keys: dict[str, Value | None] = field(default_factory=dict)
    trees: dict[str, TreeEdit] = field(default_factory=dict)
    nodes: dict[str, NodeEdit] = field(default_factory=dict)

    def at(self, path: str) -> NodeEdit:
        """Return the edit of the node at a path below this one, made if need be."""
        edit = self
        if path:
            for name in path.split("/"):
                inner = edit.nodes.get(name)
                if inner is None:
                    inner = edit.nodes[name] = NodeEdit()
                edit = inner
        return edit

    def tree(self, kind: str, ndim: int) -> TreeEdit:
        """Return the edit of one chunk tree of this node, made if need be."""
        form = form_of(kind, ndim)
        edit = self.trees.get(form)
        if edit is None:
            edit = self.trees[form] = TreeEdit(ndim)
        return edit


class Classifier:
    """Knows which nodes will own chunks once some changes are applied to a version.

    Parameters
    ----------
    view : TreeView
        The version as it is.
    changes : Changes
    """

    def __init__(self, view: TreeView, changes: Changes) -> None:
        self.view = view
        self.changes = changes
        self._owns: dict[str, bool] = {}
        self._owner: dict[str, str | None] = {}
        self._new = sorted(
            {split_key(key)[0] for key, data in changes.docs.items() if data is not None}
        )

    def owned_before(self, path: str) -> bool:
        """Tell whether the node at a path owns chunks in the version as it is."""
        node = self.view.node(path)
        return node is not None and not OWNERS.isdisjoint(node.docs)

    def owns(self, path: str) -> bool:
        """Tell whether the node at a path will own chunks."""
        known = self._owns.get(path)
        if known is None:
            node = self.view.node(path)
            known = False
            base = f"{path}/" if path else ""
            for name in OWNERS:
                key = base + name
                if key in self.changes.docs:
                    known |= self.changes.docs[key] is not None
                elif node is not None and name in node.docs:
                    known |= not self.changes.hides(key)
            self._owns[path] = known
        return known

    def owner(self, folder: str) -> str | None:
        """Return the deepest node at or above a folder that will own chunks."""
        try:
            return self._owner[folder]
        except KeyError:
            if self.owns(folder):
                owner: str | None = folder
            else:
                owner = None if folder == "" else self.owner(split_key(folder)[0])
            self._owner[folder] = owner
            return owner

    def flips(self) -> list[str]:
        """Return the paths whose owning chunks changes."""
        folders = {split_key(key)[0] for key in self.changes.docs if split_key(key)[1] in OWNERS}
        return sorted(path for path in folders if self.owned_before(path) != self.owns(path))

    def sort(self, values: Mapping[str, bytes | None], edit: NodeEdit) -> None:
        """Enter keys and their packed values (None: delete) into an edit of the root's node."""
        for keys in key_blocks(list(values)):
            if self._sort_together(values, edit, keys):
                continue
            buckets: dict[tuple[str, int, int], list[str]] = {}
            for key in keys:
                head = key.rstrip(_TAIL)
                shape = head, key.count("/", len(head)), key.count(".", len(head))
                buckets.setdefault(shape, []).append(key)
            for bucket in buckets.values():
                if not self._sort_together(values, edit, bucket):
                    for key in bucket:
                        self._sort_one(key, values[key], edit)

    def _sort_together(
        self, values: Mapping[str, bytes | None], edit: NodeEdit, keys: Sequence[str]
    ) -> bool:
        found = self.chunks_of(keys)
        if found is None:
            return False
        owner, kind, coordinates = found
        tree = edit.at(owner).tree(kind, coordinates.shape[1])
        packed = [values[key] for key in keys]
        sets = [entry for entry in packed if entry is not None]
        if len(sets) < len(keys):
            present = np.array([entry is not None for entry in packed])
            tree.deletes.append(coordinates[~present])
            coordinates = coordinates[present]
        if sets:
            tree.add_packed(coordinates, b"".join(sets))
        return True

    def chunks_of(self, keys: Sequence[str]) -> tuple[str, str, NDArray[np.int64]] | None:
        """Tell which chunks keys mean that are all of one tree: its node, kind and coordinates.

        None where they are not, where that is not sure, and where they are few: then each key has
        to be looked at.
        """
        if len(keys) < _FEW:
            return None
        head = keys[0].rstrip(_TAIL)
        shape = _shape_of(head, keys[0])
        if shape is None:
            return None
        owner, kind, ndim, start = shape
        if not self.owns(owner) or self.has_nodes_below(head, owner):
            return None
        coordinates = parse_chunks(keys, keys[0][:start], kind[-1], ndim)
        return None if coordinates is None else (owner, kind, coordinates)

    def _sort_one(self, key: str, packed: bytes | None, edit: NodeEdit) -> None:
        folder, name = split_key(key)
        owner = self.owner(folder)
        chunk = None
        if owner is not None:
            chunk = parse_chunk(key[len(owner) + 1 :] if owner else key)
        if owner is None or chunk is None:
            edit.at(folder).keys[name] = None if packed is None else unpack_value(packed)
            return
        kind, coordinates = chunk
        tree = edit.at(owner).tree(kind, len(coordinates))
        row = np.array([coordinates], np.int64).reshape(1, -1)
        if packed is None:
            tree.deletes.append(row)
        else:
            tree.add_packed(row, packed)

    def has_nodes_below(self, head: str, owner: str) -> bool:
        """Tell whether there are, or will be, nodes that could own keys of `owner` below `head`."""
        base = f"{head}/" if head else ""
        at, below = bisect_left(self._new, head), bisect_left(self._new, base)
        if head != owner and self._new[at : at + 1] == [head]:
            return True
        for path in self._new[below : below + 2]:  # one of them may be the owner, with base ""
            if path != owner and path.startswith(base):
                return True
        node = self.view.node(head)
        if node is None:
            return False
        if head != owner:
            return True
        return bool(node.shards or node.nodes)


def moved_keys(classifier: Classifier, edit: NodeEdit) -> dict[str, bytes]:
    """Take the keys out of the places that they lose because owners of chunks come or go.

    Returns
    -------
    dict of str to bytes
        Those keys with their packed values, to be sorted in again.
    """
    view, changes = classifier.view, classifier.changes
    moved: dict[str, bytes] = {}
    for path in classifier.flips():
        base = f"{path}/" if path else ""
        node = None if changes.hides(base) else view.node(path)
        if node is not None:
            for folder, inner in _own_folders(view, path, node):
                for name, entry in iter_entries(view.reader, inner):
                    if isinstance(entry, Value):
                        key = f"{folder}/{name}" if folder else name
                        if not changes.hides(key):
                            moved[key] = pack_value(*entry)
                        edit.at(folder).keys[name] = None
        if classifier.owned_before(path):
            keys: Iterable[str] = _chunks_of(view, path, node)
        else:
            keys = view.chunk_keys_above(base) if base else ()
        for key in keys:
            value = view.find(key)
            owner = view.owner(split_key(key)[0])
            assert isinstance(value, Value)
            assert owner is not None
            chunk = parse_chunk(key[len(owner) + 1 :] if owner else key)
            assert chunk is not None
            if not changes.hides(key):
                moved[key] = pack_value(*value)
            row = np.array([chunk[1]], np.int64).reshape(1, -1)
            edit.at(owner).tree(chunk[0], len(chunk[1])).deletes.append(row)
    return moved


def _own_folders(view: TreeView, path: str, node: Node) -> Iterator[tuple[str, Node]]:
    """Yield a node and the folders below it that belong to no deeper owner of chunks."""
    pending = [(path, node)]
    while pending:
        folder, inner = pending.pop()
        if folder.count("/") > MAX_DEPTH:
            raise InvalidKeyError(f"nodes are nested deeper than {MAX_DEPTH} levels")
        yield folder, inner
        for name, entry in iter_entries(view.reader, inner):
            if isinstance(entry, Node) and OWNERS.isdisjoint(entry.docs):
                pending.append((f"{folder}/{name}" if folder else name, entry))


def _chunks_of(view: TreeView, path: str, node: Node | None) -> Iterator[str]:
    for form in node.trees if node is not None else ():
        yield from view.chunk_keys(path, form)


def key_blocks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield keys in blocks of a size to be looked at together."""
    for start in range(0, len(keys), _BLOCK):
        yield keys[start : start + _BLOCK]


def _shape_of(head: str, key: str) -> tuple[str, str, int, int] | None:
    """Say what keys like one can be: owner, kind, dimensions, where the numbers begin."""
    tail = key[len(head) :]
    if not tail:
        return None
    slashes, dots = tail.count("/"), tail.count(".")
    in_c = head == "c" or head.endswith("/c")
    owner, kind, ndim, start = "", "", 0, len(head) + 1
    if in_c and (tail[0] == "/" and not dots):
        owner, kind, ndim = head[:-2], "c/", slashes
    elif in_c and (tail[0] == "." and not slashes):
        owner, kind, ndim = head[:-2], "c.", dots
    elif in_c:
        return None
    elif head == "" and tail[0] not in "./":
        start = 0
        kind, ndim = ("/", slashes + 1) if slashes and not dots else (".", dots + 1)
        if slashes and dots:
            return None
    elif tail[0] == "/" and (slashes == 1 or not dots):
        owner = head
        kind, ndim = (".", dots + 1) if slashes == 1 else ("/", slashes)
    else:
        return None
    return (owner, kind, ndim, start) if ndim <= MAX_NDIM else None


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
