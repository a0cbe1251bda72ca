"""Applying changes to a version: from a root and what was set and deleted to the next root."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import DAG_CBOR, DAG_PB, HASHES, RAW, CidBytes, HashFunction, make_cid
from cas_zarr.codecs.shardindex import ShardLayout, parse_layout
from cas_zarr.errors import InvalidArgumentError, NotFoundError
from cas_zarr.tree.changes import Changes, is_document, pack_value, unpack_value
from cas_zarr.tree.chunktree import TreeRef, chunk_table
from cas_zarr.tree.classify import Classifier, NodeEdit, key_blocks, moved_keys
from cas_zarr.tree.keys import (
    PLAIN_LENGTH,
    check_key,
    chunk_names,
    form_of,
    parse_chunk,
    parse_form,
    split_key,
)
from cas_zarr.tree.morton import Codes, decode, encode
from cas_zarr.tree.node import DOCUMENT_LIMIT, EMPTY, Document, Node, Root, Value, document_text
from cas_zarr.tree.page import CID_SIZE
from cas_zarr.tree.shards import edit_entries, get_child
from cas_zarr.tree.table import Table
from cas_zarr.tree.update import update
from cas_zarr.tree.values import MAX_VALUE_SIZE, is_file, read_value, write_value
from cas_zarr.tree.view import TreeView

__all__ = ["ChunkEdit", "apply", "bind", "link", "link_keys"]

_DOCUMENT: Final = "zarr.json"
_CID_HEADS: Final = np.frombuffer(  # what comes before the digest, as one number
    b"".join(
        make_cid(codec, function, b"")
        for codec in (RAW, DAG_PB, DAG_CBOR)
        for function in HASHES.values()
    ),
    np.uint32,
)


@dataclass(frozen=True, slots=True, eq=False)
class ChunkEdit:
    """Chunks of one array that are set and deleted all at once.

    Attributes
    ----------
    path, form : str
        The array, and which of its trees.
    rows : callable
        Returns the chunks to set, as of `chunk_table`, and the ascending codes of others to
        delete; called only where they are needed.
    layout : ShardLayout or None
        The sharding that long values were cut for.
    whole : TreeRef or None
        A tree that is stored and holds just the chunks to set; taken as it is where there is none.
    """

    path: str
    form: str
    rows: Callable[[], tuple[Table, Codes]]
    layout: ShardLayout | None = None
    whole: TreeRef | None = None

    def enter(self, changes: Changes) -> None:
        """Enter the chunks into changes key by key."""
        kind, ndim = parse_form(self.form)
        base = f"{self.path}/" if self.path else ""
        sets, deletes = self.rows()
        for name in chunk_names(kind, decode(deletes, ndim)):
            bind(changes, base + name, None)
        sizes = sets.sizes.tolist()
        for row, name in enumerate(chunk_names(kind, decode(sets.codes, ndim))):
            value = Value(CidBytes(sets.cids[row].tobytes()), sizes[row])
            bind(changes, base + name, value, self.layout)


def bind(
    changes: Changes, key: str, value: Value | None, layout: ShardLayout | None = None
) -> None:
    """Enter a key into changes whose keys come in any order: what is set is not deleted again.

    `layout` is the sharding that a long value was cut for.
    """
    if value is None:
        if changes.values.get(key) is None:  # else it has only moved to another tree
            changes.delete(key)
        return
    changes.set_value(key, pack_value(value.cid, value.size))
    if is_file(value.cid):
        changes.layouts[key] = layout


def apply(view: TreeView, changes: Changes, chunks: Sequence[ChunkEdit] = ()) -> Root:
    """Return the root of a version with some keys set and deleted.

    Pages, shards and long documents are written to the view's block store; the root document
    itself is not. The result is the same however the final map of keys came about.

    Parameters
    ----------
    view : TreeView
        The version as it is.
    changes : Changes
        What was set and deleted, whose values are stored already.
    chunks : sequence of ChunkEdit
        More chunks; a key that is set in `changes` goes before them, one that is deleted does not.
    """
    return _Application(view, changes).run(chunks)


def link(
    view: TreeView,
    path: str,
    coordinates: NDArray[np.integer[Any]],
    cids: NDArray[np.uint8],
    sizes: NDArray[np.integer[Any]],
    kind: str,
) -> Root:
    """Return the root of a version with many chunks of one array bound at once.

    The parameters are those of `cas_zarr.mapping.CASMapping.set_links`.
    """
    if coordinates.ndim != 2 or not np.issubdtype(coordinates.dtype, np.integer):
        raise InvalidArgumentError("chunks need coordinates of shape (n, ndim), and integers")
    n, ndim = coordinates.shape
    parse_form(form_of(kind, ndim))
    _check_values(n, cids, sizes)
    table = chunk_table(encode(coordinates), cids, sizes.astype(np.uint64), ndim)
    application = _Application(view, Changes())
    if not application.classifier.owns(path):
        raise NotFoundError(f"there is no array {path!r}; set its zarr.json or .zarray first")
    if _has_folders(view, path, kind):  # some of the keys may belong to an array below
        base = f"{path}/" if path else ""
        for row, name in enumerate(chunk_names(kind, decode(table.codes, ndim))):
            packed = pack_value(CidBytes(table.cids[row].tobytes()), int(table.sizes[row]))
            application.changes.set_value(base + name, packed)
        return application.run()
    edit = NodeEdit()
    edit.at(path).tree(kind, ndim).bulk = lambda: (table, table.codes[:0])
    return Root(view.root.header, application.node(view.root.node, edit) or EMPTY)


def link_keys(
    view: TreeView,
    keys: Sequence[str],
    cids: NDArray[np.uint8],
    sizes: NDArray[np.integer[Any]],
) -> Root:
    """Return the root of a version with many keys bound at once.

    The parameters are those of `cas_zarr.mapping.CASMapping.set_cids`.
    """
    _check_values(len(keys), cids, sizes)
    application, edit = _Application(view, Changes()), NodeEdit()
    single: dict[str, bytes | None] = {}
    start = alone = 0
    for some in key_blocks(keys):
        rows = slice(start, start + len(some))
        start = rows.stop
        found = application.classifier.chunks_of(some)
        if found is not None and len(some[0]) < PLAIN_LENGTH:
            owner, kind, coordinates = found
            edit.at(owner).tree(kind, coordinates.shape[1]).add(
                coordinates, cids[rows], sizes[rows]
            )
            continue
        alone += len(some)
        for row, key in enumerate(some, rows.start):
            check_key(key)
            if is_document(key):
                raise InvalidArgumentError(f"{key!r} is the key of a document; set its bytes")
            single[key] = pack_value(CidBytes(cids[row].tobytes()), int(sizes[row]))
    if len(single) < alone:
        raise InvalidArgumentError("a key is given twice; give each once")
    application.classifier.sort(single, edit)
    return Root(view.root.header, application.node(view.root.node, edit) or EMPTY)


def _has_folders(view: TreeView, path: str, kind: str) -> bool:
    """Tell whether there are nodes where the chunks of an array have their folders."""
    if kind == "c/":
        return view.node(f"{path}/c" if path else "c") is not None
    node = view.node(path)
    return kind == "/" and node is not None and bool(node.nodes or node.shards)


def _check_values(n: int, cids: NDArray[np.uint8], sizes: NDArray[np.integer[Any]]) -> None:
    """Refuse columns that are not the CIDs and sizes of `n` values."""
    if cids.shape != (n, CID_SIZE) or cids.dtype != np.uint8 or sizes.shape != (n,):
        raise InvalidArgumentError(
            f"{n} links need cids of uint8, shape ({n}, {CID_SIZE}), and sizes of shape ({n},), "
            f"not {cids.dtype}, {cids.shape} and {sizes.shape}"
        )
    heads = np.ascontiguousarray(cids).view(np.uint32)[:, 0]  # all that stands before the digests
    if not np.isin(heads, _CID_HEADS, kind="sort").all():
        raise InvalidArgumentError("a cid is not a CIDv1 of raw, dag-pb or dag-cbor")
    if not np.issubdtype(sizes.dtype, np.integer):
        raise InvalidArgumentError(f"sizes are integers, not {sizes.dtype}")
    if n and (sizes.min() < 0 or sizes.max() > MAX_VALUE_SIZE):
        raise InvalidArgumentError(f"a size is not in 0 ... {MAX_VALUE_SIZE} bytes")


class _Application:
    def __init__(self, view: TreeView, changes: Changes) -> None:
        self.view = view
        self.changes = changes
        self.reader = view.reader
        self.function: HashFunction = view.root.header.function
        self.classifier = Classifier(view, changes)
        self._layouts: dict[str, ShardLayout | None] = {}

    def run(self, chunks: Sequence[ChunkEdit] = ()) -> Root:
        changes, edit = self.changes, NodeEdit()
        for one in chunks:
            if self._stays_together(one):
                kind, ndim = parse_form(one.form)
                tree = edit.at(one.path).tree(kind, ndim)
                tree.bulk, tree.whole = one.rows, one.whole
                continue
            apart = Changes()
            one.enter(apart)
            for key, packed in apart.values.items():
                if changes.values.get(key) is None:  # a key that moved is deleted and set
                    changes.values[key] = packed
                    if key in apart.layouts:
                        changes.layouts[key] = apart.layouts[key]
        for folder in changes.cleared:
            edit.at(folder[:-1]).clear = True
        moved = moved_keys(self.classifier, edit)
        values: dict[str, bytes | None] = {**moved, **changes.values}
        values.update(self._cut_anew(values, moved))
        self.classifier.sort(values, edit)
        for key, data in changes.docs.items():
            folder, name = split_key(key)
            edit.at(folder).docs[name] = data
        node = self.node(self.view.root.node, edit)
        return Root(self.view.root.header, node or EMPTY)

    def _stays_together(self, one: ChunkEdit) -> bool:
        """Tell whether chunks are their array's whatever else changes, and cut as it says."""
        path, classifier = one.path, self.classifier
        if not classifier.owns(path):
            return False
        if not classifier.owned_before(path) and (
            self.view.node(path) or any(True for _ in self.view.chunk_keys_above(f"{path}/"))
        ):
            return False  # keys that are there already become its chunks too
        kind = parse_form(one.form)[0]
        head = (f"{path}/c" if path else "c") if kind == "c/" else path
        if kind in ("c/", "/") and classifier.has_nodes_below(head, path):
            return False
        layout = self._layout_of(path)
        return layout == one.layout and (
            layout == self.view.layout(path) or not classifier.owned_before(path)
        )

    def node(self, node: Node | None, edit: NodeEdit) -> Node | None:
        """Return a node as an edit leaves it; None if nothing is left."""
        base = EMPTY if node is None or edit.clear else node
        docs = {name: doc for name, doc in base.docs.items() if name not in edit.docs}
        docs.update(
            (name, self._document(data)) for name, data in edit.docs.items() if data is not None
        )
        trees = dict(base.trees)
        for form, tree_edit in edit.trees.items():
            if tree_edit.whole is not None and form not in trees and tree_edit.in_bulk:
                trees[form] = tree_edit.whole
                continue
            sets, deletes = tree_edit.tables()
            ref = update(
                self.reader, self.function, trees.pop(form, None), sets, deletes, tree_edit.ndim
            )
            if ref is not None:
                trees[form] = ref
        nodes = {
            name: self.node(get_child(self.reader, base, name), inner)
            for name, inner in edit.nodes.items()
        }
        changed = Node(docs, base.keys, base.nodes, trees, base.shards)
        return edit_entries(self.reader, self.function, changed, edit.keys, nodes) or None

    def _document(self, data: bytes) -> Document:
        # a JSON string is never shorter than what it holds
        if len(data) <= DOCUMENT_LIMIT and len(document_text(data).encode()) <= DOCUMENT_LIMIT:
            return data
        return Value(write_value(self.reader.blocks, self.function, data), len(data))

    # -- values that are cut at the borders of inner chunks ---------------------------------

    def _cut_anew(
        self, values: dict[str, bytes | None], moved: dict[str, bytes]
    ) -> dict[str, bytes]:
        """Write anew the long values whose array's sharding is not the one they were cut for."""
        out = {}
        for key, was, packed in self._long_values(values, moved):
            layout = self._layout_for(key)
            if layout == was:
                continue
            value = unpack_value(packed)
            data = read_value(self.reader, value.cid, value.size)
            cid = write_value(self.reader.blocks, self.function, memoryview(data), layout)
            out[key] = pack_value(cid, value.size)
        return out

    def _long_values(
        self, values: dict[str, bytes | None], moved: dict[str, bytes]
    ) -> Iterator[tuple[str, ShardLayout | None, bytes]]:
        """Yield the long values in question, each with the sharding that it was cut for."""
        changes, view = self.changes, self.view
        for key, layout in changes.layouts.items():
            packed = values.get(key)
            if packed is not None:
                yield key, layout, packed
        for key, packed in moved.items():
            if packed[1] == DAG_PB and values.get(key) is packed:
                owner = view.owner(split_key(key)[0])
                chunk = None
                if owner is not None:
                    chunk = parse_chunk(key[len(owner) + 1 :] if owner else key)
                yield key, None if owner is None or chunk is None else view.layout(owner), packed
        for document in changes.docs:
            path, name = split_key(document)
            node = view.node(path)
            if name != _DOCUMENT or node is None or changes.hides(document):
                continue
            if not (self.classifier.owned_before(path) and self.classifier.owns(path)):
                continue  # its chunks move, all of them
            was = view.layout(path)
            if was == self._layout_of(path):
                continue
            for form in node.trees:
                tree = view.tree(path, form)
                assert tree is not None
                kind, ndim = parse_form(form)
                for table in tree.tables():
                    table = table.take(table.cids[:, 1] == DAG_PB)
                    for row, shard in enumerate(chunk_names(kind, decode(table.codes, ndim))):
                        key = f"{path}/{shard}" if path else shard
                        if key not in values:
                            cid = CidBytes(table.cids[row].tobytes())
                            yield key, was, pack_value(cid, int(table.sizes[row]))

    def _layout_for(self, key: str) -> ShardLayout | None:
        owner = self.classifier.owner(split_key(key)[0])
        if owner is None or parse_chunk(key[len(owner) + 1 :] if owner else key) is None:
            return None
        return self._layout_of(owner)

    def _layout_of(self, path: str) -> ShardLayout | None:
        """Return the sharding that the array at a path will have."""
        if path not in self._layouts:
            key = f"{path}/{_DOCUMENT}" if path else _DOCUMENT
            if key in self.changes.docs:
                data = self.changes.docs[key]
                self._layouts[path] = None if data is None else parse_layout(data)
            elif self.changes.hides(key):
                self._layouts[path] = None
            else:
                self._layouts[path] = self.view.layout(path)
        return self._layouts[path]
