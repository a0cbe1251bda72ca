"""Reading a dataset: keys, folders and sizes of one root document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import DAG_CBOR, CidBytes, HashFunction, cid_of
from cas_zarr.codecs.shardindex import ShardLayout, parse_layout
from cas_zarr.errors import FormatError, InvalidArgumentError
from cas_zarr.tree.chunktree import ChunkTree, build, chunk_table
from cas_zarr.tree.keys import (
    DOCUMENTS,
    MAX_DEPTH,
    OWNERS,
    chunk_names,
    form_of,
    parse_chunk,
    parse_form,
    split_key,
)
from cas_zarr.tree.morton import COORDINATE_BITS, MAX_NDIM, code_of, decode, encode, spread
from cas_zarr.tree.node import Document, Node, Root, Value
from cas_zarr.tree.shards import TreeReader, get_child, get_key, iter_entries
from cas_zarr.tree.table import Table, empty_table, to_page
from cas_zarr.tree.values import read_value

__all__ = ["TreeView", "box_cid", "walk_nodes"]

_MEMO_LIMIT: Final = 1 << 14
_UPPER: Final = 1 << COORDINATE_BITS
_DIGITS_AND_SLASH: Final = "0123456789/"


class TreeView:
    """One version of a dataset: a root document and what it links.

    Parameters
    ----------
    reader : TreeReader
    root : Root
    """

    def __init__(self, reader: TreeReader, root: Root) -> None:
        self.reader = reader
        self.root = root
        self._nodes: dict[str, Node | None] = {}
        self._owners: dict[str, str | None] = {}
        self._trees: dict[tuple[str, str], ChunkTree | None] = {}
        self._heads: dict[str, tuple[int, list[ChunkTree | None]]] = {}

    # -- nodes ------------------------------------------------------------------------------

    def node(self, path: str) -> Node | None:
        """Return the node at a path ("" is the root's), or None."""
        if path == "":
            return self.root.node
        try:
            return self._nodes[path]
        except KeyError:
            if path.count("/") >= MAX_DEPTH:  # nothing lies there, and recursion has an end
                return None
            folder, name = split_key(path)
            parent = self.node(folder)
            node = None if parent is None else get_child(self.reader, parent, name)
            _bound(self._nodes)[path] = node
            return node

    def owner(self, folder: str) -> str | None:
        """Return the path of the deepest node at or above `folder` that owns chunks."""
        try:
            return self._owners[folder]
        except KeyError:
            if folder.count("/") >= MAX_DEPTH:
                return None
            node = self.node(folder)
            if node is not None and not OWNERS.isdisjoint(node.docs):
                owner: str | None = folder
            else:
                owner = None if folder == "" else self.owner(split_key(folder)[0])
            _bound(self._owners)[folder] = owner
            return owner

    def tree(self, path: str, form: str) -> ChunkTree | None:
        """Return the reader of one chunk tree of the node at a path."""
        try:
            return self._trees[path, form]
        except KeyError:
            node = self.node(path)
            ref = None if node is None else node.trees.get(form)
            tree = None if ref is None else ChunkTree(self.reader, ref, parse_form(form)[1])
            _bound(self._trees)[path, form] = tree
            return tree

    def layout(self, path: str) -> ShardLayout | None:
        """Return the sharding of the array at a path, None if it is not sharded or no array."""
        node = self.node(path)
        document = None if node is None else node.docs.get("zarr.json")
        return None if document is None else parse_layout(self.document_bytes(document))

    def document_bytes(self, document: Document) -> bytes:
        """Return the exact bytes of a document."""
        if isinstance(document, Value):
            return bytes(read_value(self.reader, document.cid, document.size))
        return document

    # -- one key ----------------------------------------------------------------------------

    def find(self, key: str) -> Document | None:
        """Return what is stored under a key: a document's bytes, or the link to a value."""
        found = self._find_chunk_fast(key)
        if found is not None:
            return found
        folder, name = split_key(key)
        if name in DOCUMENTS:
            node = self.node(folder)
            return None if node is None else node.docs.get(name)
        owner = self.owner(folder)
        if owner is not None:
            chunk = parse_chunk(key[len(owner) + 1 :] if owner else key)
            if chunk is not None:
                return self._find_chunk(owner, *chunk)
        node = self.node(folder)
        return None if node is None else get_key(self.reader, node, name)

    def _find_chunk(self, owner: str, kind: str, coordinates: tuple[int, ...]) -> Value | None:
        tree = self.tree(owner, form_of(kind, len(coordinates)))
        if tree is None:
            return None
        if kind == "c/":  # the next key of this array takes the short way
            head = f"{owner}/c" if owner else "c"
            if head not in self._heads and self.node(head) is None:
                trees: list[ChunkTree | None] = [None] * (MAX_NDIM + 1)
                _bound(self._heads)[head] = len(head) + 1, trees
            known = self._heads.get(head)
            if known is not None:
                known[1][len(coordinates)] = tree
        return tree.find(code_of(coordinates))

    def _find_chunk_fast(self, key: str) -> Value | None:
        """Look a key up in an array whose chunks were read before; None says nothing."""
        head = self._heads.get(key.rstrip(_DIGITS_AND_SLASH))
        if head is None:
            return None
        start, trees = head
        if key[start - 1 : start] != "/":  # "a/c12/3" is no chunk of "a"
            return None
        parts = key[start:].split("/")
        ndim = len(parts)
        tree = trees[ndim] if ndim <= MAX_NDIM else None
        if tree is None:
            return None
        table = _SPREADS[ndim]
        code = 0
        try:
            for part in parts:
                code = code << 1 | table[part]
        except KeyError:
            spreads = _learn(table, parts, ndim)
            if spreads is None:
                return None
            code = 0
            for bits in spreads:
                code = code << 1 | bits
        return tree.find(code)

    # -- many keys --------------------------------------------------------------------------

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield every key that begins with `prefix`, documents and folders before chunks."""
        folder, rest = split_key(prefix)
        if not folder and prefix.startswith("/"):  # no key does
            return
        yield from self.chunk_keys_above(prefix)
        node = self.node(folder)
        if node is None:
            return
        start = f"{folder}/" if folder else ""
        for path, inner in walk_nodes(self.reader, node, folder, rest):
            base = f"{path}/" if path else ""
            for name in inner.docs:
                if base != start or name.startswith(rest):
                    yield base + name
            for name, entry in iter_entries(self.reader, inner):
                if isinstance(entry, Value) and (base != start or name.startswith(rest)):
                    yield base + name
            for form in inner.trees:
                yield from self.chunk_keys(path, form, rest if base == start else "")

    def chunk_keys_above(self, prefix: str) -> Iterator[str]:
        """Yield the chunk keys with a prefix whose array lies above the prefix's folder."""
        folder = split_key(prefix)[0]
        owner = self.owner(folder) if folder else None
        if owner is None or owner == folder:
            return
        node = self.node(owner)
        rest = prefix[len(owner) + 1 :] if owner else prefix
        for form in node.trees if node is not None else ():
            yield from self.chunk_keys(owner, form, rest)

    def chunk_keys(self, path: str, form: str, rest: str = "") -> Iterator[str]:
        """Yield the keys of one chunk tree whose names behind the array begin with `rest`."""
        tree = self.tree(path, form)
        assert tree is not None
        kind, ndim = parse_form(form)
        base = f"{path}/" if path else ""
        for table in _tables_below(tree, kind, ndim, rest) if ndim else tree.tables():
            names = chunk_names(kind, decode(table.codes, ndim))
            if rest:
                names = [name for name in names if name.startswith(rest)]
            yield from [base + name for name in names]

    def folder(self, path: str) -> list[str]:
        """Return the names directly below a path, sorted, as of a directory."""
        names: set[str] = set()
        base = f"{path}/" if path else ""
        for key in self.chunk_keys_above(base):
            names.add(key[len(base) :].partition("/")[0])
        node = self.node(path)
        if node is not None:
            names.update(node.docs)
            names.update(name for name, _ in iter_entries(self.reader, node))
            for form in node.trees:
                names.update(self._first_names(path, form))
        return sorted(names)

    def _first_names(self, path: str, form: str) -> Iterator[str]:
        kind = parse_form(form)[0]
        if kind in ("c", "c/"):
            yield "c"
        elif kind == "/":
            tree = self.tree(path, form)
            assert tree is not None
            for coordinates in tree.coordinates():
                yield from map(str, np.unique(coordinates[:, 0]).tolist())
        else:
            skip = len(path) + 1 if path else 0
            for key in self.chunk_keys(path, form, ""):
                yield key[skip:]

    def size_below(self, path: str = "") -> int:
        """Return the bytes of all values in a folder, from the tree alone."""
        total = 0
        owner = self.owner(path) if path else None
        if owner is not None and owner != path:
            total += self._chunk_bytes(owner, path[len(owner) + 1 if owner else 0 :] + "/")
        node = self.node(path)
        if node is None:
            return total
        for _, inner in walk_nodes(self.reader, node, path):
            for document in inner.docs.values():
                total += document.size if isinstance(document, Value) else len(document)
            for _, entry in iter_entries(self.reader, inner):
                if isinstance(entry, Value):
                    total += entry.size
            total += sum(tree.size for tree in inner.trees.values())
        return total

    def _chunk_bytes(self, owner: str, rest: str) -> int:
        node = self.node(owner)
        total = 0
        for form in node.trees if node is not None else ():
            kind, ndim = parse_form(form)
            tree = self.tree(owner, form)
            if "/" in kind and tree is not None:  # other names have no folders
                for table in _tables_below(tree, kind, ndim, rest):
                    total += sum(table.sizes.tolist())
        return total


def walk_nodes(
    reader: TreeReader, node: Node, path: str = "", name_prefix: str = ""
) -> Iterator[tuple[str, Node]]:
    """Yield a node and all below it with their paths, a parent before its children.

    With `name_prefix`, of the first level only the children whose names begin with it.
    """
    pending = [(path, node, path.count("/"))]
    first = True
    while pending:
        path, node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise FormatError(f"nodes are nested deeper than {MAX_DEPTH} levels")
        yield path, node
        base = f"{path}/" if path else ""
        for name, entry in iter_entries(reader, node):
            if isinstance(entry, Node) and (not first or name.startswith(name_prefix)):
                pending.append((base + name, entry, depth + 1))
        first = False


def box_cid(view: TreeView, path: str, box: Sequence[slice | tuple[int, int | None]]) -> CidBytes:
    """Return the CID of a box of an array's chunks: that of the tree they would make at zero.

    Raises
    ------
    InvalidArgumentError
        If the array has no chunks in that many dimensions, or the box is none.
    """
    tree, start, stop = box_tree(view, path, box)
    chunks = tree.select(start, stop)
    places = decode(chunks.codes, tree.ndim) - np.array(start, np.int64)
    return chunks_cid(view.root.header.function, places, chunks.cids, chunks.sizes)


def box_tree(
    view: TreeView, path: str, box: Sequence[slice | tuple[int, int | None]]
) -> tuple[ChunkTree, tuple[int, ...], tuple[int, ...]]:
    """Return the tree that a box is of, and the box's first and its last but one coordinates.

    Raises
    ------
    InvalidArgumentError
        As of `box_cid`.
    """
    bounds = [_bounds(part) for part in box]
    node = view.node(path)
    forms = [] if node is None else list(node.trees)
    fitting = [form for form in forms if parse_form(form)[1] == len(bounds)]
    if len(fitting) != 1:
        have = ", ".join(str(parse_form(form)[1]) for form in forms) or "no"
        raise InvalidArgumentError(
            f"a box of {len(bounds)} dimensions does not fit {path!r}, which has chunks in "
            f"{have} dimensions"
        )
    tree = view.tree(path, fitting[0])
    assert tree is not None
    return tree, tuple(low for low, _ in bounds), tuple(high for _, high in bounds)


def chunks_cid(
    function: HashFunction,
    coordinates: NDArray[np.int64],
    cids: NDArray[np.uint8],
    sizes: NDArray[np.uint64],
) -> CidBytes:
    """Return the CID of the tree that chunks make: of its top page, or of the empty leaf page."""
    if len(coordinates) == 0:
        return cid_of(DAG_CBOR, function, to_page(empty_table(), 0, 0).to_block())
    ndim = coordinates.shape[1]
    table = chunk_table(encode(coordinates), cids, sizes, ndim)
    ref = build(TreeReader(MemoryBlocks()), function, table, ndim)
    assert ref is not None
    return ref.cid if ref.embedded is None else cid_of(DAG_CBOR, function, ref.embedded)


def _bounds(part: slice | tuple[int, int | None]) -> tuple[int, int]:
    """Return the first and the last but one coordinate of one side of a box."""
    start, stop, step = (
        (part.start, part.stop, part.step) if isinstance(part, slice) else (*part, None)
    )
    start = 0 if start is None else index(start)
    stop = _UPPER if stop is None else min(index(stop), _UPPER)
    if start < 0 or stop < 0 or step not in (None, 1):
        raise InvalidArgumentError(
            f"{part} is no side of a box of chunks: it counts from 0 upwards, in steps of 1"
        )
    return min(start, _UPPER), stop


def _tables_below(tree: ChunkTree, kind: str, ndim: int, rest: str) -> Iterator[Table]:
    """Yield the chunks whose names may begin with `rest`: those of the box that it fixes."""
    if not rest.startswith(kind if len(kind) == 2 else ""):
        if kind.startswith(rest):
            yield from tree.tables()
        return
    given = rest[len(kind) if len(kind) == 2 else 0 :].split(kind[-1])[:-1]
    if len(given) >= ndim or not all(_is_number(part) for part in given):
        return
    if not given:
        yield from tree.tables()
        return
    fixed = tuple(map(int, given))
    free = ndim - len(fixed)
    yield tree.select(fixed + (0,) * free, tuple(part + 1 for part in fixed) + (_UPPER,) * free)


_SPREADS: Final[list[dict[str, int]]] = [{} for _ in range(MAX_NDIM + 1)]


def _learn(table: dict[str, int], parts: list[str], ndim: int) -> list[int] | None:
    """Enter coordinates, as they read in keys, into the table of their spread bits.

    They are returned too, as another thread may clear the table; None if one is no number.
    """
    if not all(_is_number(part) for part in parts):
        return None
    if len(table) > 1 << 17:
        table.clear()
    spreads = [spread(int(part), ndim) for part in parts]
    table.update(zip(parts, spreads, strict=True))
    return spreads


def _is_number(text: str) -> bool:
    return (
        text.isascii()
        and text.isdigit()
        and (text == "0" or text[0] != "0")
        and len(text) <= 10
        and int(text) >> COORDINATE_BITS == 0
    )


def _bound(memo: dict[Any, Any]) -> dict[Any, Any]:
    if len(memo) >= _MEMO_LIMIT:
        memo.clear()
    return memo
