"""The UnixFS view of a dataset: directories over the very same chunk blocks.

What a store lists as keys becomes files in folders, so that software that knows UnixFS, or HTTP,
and nothing of this package reads the dataset at ``/ipfs/CID``. Chunks are linked, not copied: what
the view adds are directory nodes and the metadata documents, those of groups with consolidated
metadata as a read-only store gives them. The same root makes the same view.

Source: https://specs.ipfs.tech/unixfs/; `cas_zarr.codecs.unixfsdir` has the rules of directories.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import DAG_CBOR, DAG_PB, RAW, CidBytes, CidLike, as_cid_bytes, cid_of
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.unixfs import LEAF_SIZE
from cas_zarr.codecs.unixfsdir import DirectoryBlock, directory_blocks
from cas_zarr.consolidated import Consolidation, is_composed
from cas_zarr.errors import InvalidArgumentError, InvalidKeyError, NotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree.chunktree import ChunkTree
from cas_zarr.tree.keys import chunk_names, parse_form
from cas_zarr.tree.morton import COORDINATE_BITS, decode
from cas_zarr.tree.node import Node, Value
from cas_zarr.tree.shards import TreeReader, iter_entries
from cas_zarr.tree.table import Table
from cas_zarr.tree.values import is_file, write_value

__all__ = ["UnixfsView"]

Block = tuple[CidBytes, bytes | None]
Has = Callable[[CidBytes], bool]

_GROUP: Final = 1 << 18  # chunks of a grid of folders that are held at once
_BATCH: Final = 256
_CID_SIZE: Final = 36


class UnixfsView:
    """A dataset, or a group or an array of it, as a UnixFS directory.

    Parameters
    ----------
    blocks : BlockStore
        Where the root and what it links are read. Chunks of one block are never read.
    root : CID
        A root document.
    path : str
        The group or the array that becomes the directory; "" is the whole dataset.

    Raises
    ------
    NotFoundError
        If there is nothing at `path`.
    """

    def __init__(self, blocks: BlockStore, root: CidLike, *, path: str = "") -> None:
        self.root = as_cid_bytes(root)
        self.path = path.strip("/")
        mapping = CASMapping(blocks, self.root, read_only=True)
        self._view = mapping.view
        self._reader: TreeReader = self._view.reader
        self._function = self._view.root.header.function
        self._consolidation = Consolidation(mapping, fixed=True)
        node = self._view.node(self.path)
        if node is None or (self.path and not node):
            raise NotFoundError(f"there is no node {self.path!r}; list the folder above it")
        self._top = _Folder(self.path, node)
        self._known: dict[str, tuple[CidBytes, int]] = {}  # CID and size of folders, by path

    @property
    def cid(self) -> CidBytes:
        """The CID of the directory."""
        return self._entry(self._top)[0]

    @property
    def size(self) -> int:
        """Bytes of all blocks of the directory, chunks included, as its nodes count them."""
        return self._entry(self._top)[1]

    def blocks(self, has: Has | None = None) -> Iterator[Block]:
        """Yield the CIDs of all blocks of the view, children first.

        The bytes are given for what the view makes: directories, documents. They are None for what
        lies in the block store of the dataset. A directory comes once, a chunk that is linked from
        several places may come again.

        Parameters
        ----------
        has : callable, optional
            Tells of the CID of a directory whether it is there already with all that is below it;
            then it is skipped. The directory above is asked about first.

        Yields
        ------
        CidBytes, bytes or None
        """
        return self._emit(self._top, has, set())

    def _emit(self, folder: _Folder, has: Has | None, seen: set[CidBytes]) -> Iterator[Block]:
        cid, _ = self._entry(folder)
        if cid in seen or (has is not None and has(cid)):
            return
        seen.add(cid)
        listing = self._list(folder)
        yield from listing.made
        for start in range(listing.linked, len(listing.names)):
            at = _CID_SIZE * start
            yield from self._value(CidBytes(bytes(listing.cids[at : at + _CID_SIZE])))
        for name, child in listing.folders:
            yield from self._emit(child, has, seen)
            listing.add(name, *self._entry(child))
        for block in self._directory(folder.path, listing):
            yield block.cid, block.data

    def _value(self, cid: CidBytes) -> Iterator[Block]:
        """Yield the blocks of a value, children first."""
        if not is_file(cid):
            yield cid, None
            return
        pending = [(cid, iter(self._reader.file_node(cid).links))]
        done = {cid}
        while pending:
            cid, links = pending[-1]
            child = next(links, None)
            if child is None:
                pending.pop()
                yield cid, None
            elif child not in done:
                done.add(child)
                if is_file(child):
                    pending.append((child, iter(self._reader.file_node(child).links)))
                else:
                    yield child, None

    def _entry(self, folder: _Folder) -> tuple[CidBytes, int]:
        """Return CID and size of a folder."""
        known = folder.known(self._known)
        entry = known.get(folder.path)
        if entry is None:
            listing = self._list(folder)
            for name, child in listing.folders:
                listing.add(name, *self._entry(child))
            top = deque(self._directory(folder.path, listing), maxlen=1).pop()
            entry = known[folder.path] = top.cid, top.tsize
        return entry

    def _directory(self, path: str, listing: _Listing) -> Iterator[DirectoryBlock]:
        try:
            yield from directory_blocks(listing.names, listing.cids, listing.tsizes, self._function)
        except InvalidArgumentError as error:
            raise InvalidKeyError(
                f"the keys in {path!r} make no directory: {error}; where a key is a folder of "
                "other keys too, rename one"
            ) from None

    # -- what is in a folder ----------------------------------------------------------------------

    def _list(self, folder: _Folder) -> _Listing:
        listing = _Listing()
        base = f"{folder.path}/" if folder.path else ""
        folders: dict[str, _Folder] = {}

        def below(name: str) -> _Folder:
            return folders.setdefault(name, _Folder(base + name))

        if folder.node is not None:
            node = folder.node
            linked = list(self._add_documents(listing, base, node))
            listing.linked = len(listing.names)
            self._add_values(listing, linked)
            self._add_values(
                listing,
                (
                    (name, entry)
                    for name, entry in iter_entries(self._reader, node)
                    if isinstance(entry, Value)
                ),
            )
            for name, entry in iter_entries(self._reader, node):
                if isinstance(entry, Node):
                    below(name).node = entry
            for form in node.trees:
                tree = self._view.tree(folder.path, form)
                assert tree is not None
                kind, ndim = parse_form(form)
                if kind == "c/":
                    below("c").rows.append(_Rows(_Grid(tree, self._reader)))
                elif kind == "/":
                    self._add_rows(listing, below, _Rows(_Grid(tree, self._reader)))
                else:
                    for table in tree.tables():
                        self._add_table(
                            listing, chunk_names(kind, decode(table.codes, ndim)), table
                        )
        for rows in folder.rows:
            self._add_rows(listing, below, rows)
        listing.folders = list(folders.items())
        return listing

    def _add_documents(
        self, listing: _Listing, base: str, node: Node
    ) -> Iterator[tuple[str, Value]]:
        """Add the documents that the view makes; yield those that are values already."""
        names = list(node.docs)
        if ".zgroup" in node.docs and ".zmetadata" not in node.docs:
            names.append(".zmetadata")
        for name in names:
            document = node.docs.get(name)
            data = self._consolidation.get(base + name) if is_composed(name) else None
            if isinstance(document, Value):
                if data is None or data == self._view.document_bytes(document):
                    yield name, document
                    continue
            elif data is None:
                data = document
            if data is not None:
                listing.add(name, *self._make_file(listing, bytes(data)))

    def _make_file(self, listing: _Listing, data: bytes) -> tuple[CidBytes, int]:
        if len(data) <= LEAF_SIZE:
            cid = cid_of(RAW, self._function, data)
            listing.made.append((cid, data))
            return cid, len(data)
        held = MemoryBlocks()
        cid = write_value(held, self._function, data)
        made = list(held.list())  # in the order in which they were put: leaves, then nodes
        listing.made.extend((block, held.get(block)) for block in made if not is_file(block))
        listing.made.extend((block, held.get(block)) for block in made if is_file(block))
        return cid, _tsize_of(held.get(cid))

    def _add_values(
        self, listing: _Listing, values: Iterator[tuple[str, Value]] | list[tuple[str, Value]]
    ) -> None:
        for name, value in values:
            if is_file(value.cid):
                tsize = _tsize_of(self._reader.blocks.get(value.cid))
            else:
                tsize = value.size
            listing.add(name, _shown(value.cid), tsize)

    def _add_rows(self, listing: _Listing, below: Callable[[str], _Folder], rows: _Rows) -> None:
        if rows.is_last:
            listing.extend(*rows.files())
        else:
            for name, inner in rows.folders():
                below(name).rows.append(inner)

    def _add_table(self, listing: _Listing, names: list[str], table: Table) -> None:
        listing.extend(names, *_columns(self._reader, table))


@dataclass(slots=True)
class _Folder:
    """A folder: a node of the root document, chunks of grids that lie there, or both."""

    path: str
    node: Node | None = None
    rows: list[_Rows] = field(default_factory=list)

    def known(self, known: dict[str, tuple[CidBytes, int]]) -> dict[str, tuple[CidBytes, int]]:
        """Return where its CID is remembered: deep in a grid with the chunks that are loaded."""
        if self.node is None and len(self.rows) == 1 and len(self.rows[0].prefix) > 1:
            return self.rows[0].grid.known
        return known


@dataclass(slots=True)
class _Listing:
    """The entries of a folder in columns: first what the view makes, then values, then folders."""

    names: list[str] = field(default_factory=list)
    cids: bytearray = field(default_factory=bytearray)
    tsizes: list[int] = field(default_factory=list)
    made: list[Block] = field(default_factory=list)
    linked: int = 0
    folders: list[tuple[str, _Folder]] = field(default_factory=list)

    def add(self, name: str, cid: CidBytes, tsize: int) -> None:
        self.names.append(name)
        self.cids += cid
        self.tsizes.append(tsize)

    def extend(self, names: Sequence[str], cids: bytes, tsizes: Sequence[int]) -> None:
        self.names.extend(names)
        self.cids += cids
        self.tsizes.extend(tsizes)


class _Grid:
    """The chunks of one tree whose keys are nested folders.

    They are held in the order of their coordinates, and where they are many, a group of those
    whose first coordinates follow each other at a time.
    """

    def __init__(self, tree: ChunkTree, reader: TreeReader) -> None:
        self.tree = tree
        self.reader = reader
        self.known: dict[str, tuple[CidBytes, int]] = {}
        self._groups: list[tuple[int, int]] | None = None
        self._loaded = (0, 0)
        self.columns: list[list[int]] = []
        self.cids = b""
        self.tsizes: list[int] = []

    def groups(self) -> list[tuple[int, int]]:
        """Return the ranges of the first coordinate that are held together."""
        if self._groups is None:
            if self.tree.ref.chunks <= _GROUP:
                self._groups = [(0, 1 << COORDINATE_BITS)]
            else:
                self._groups = list(self._cut())
        return self._groups

    def _cut(self) -> Iterator[tuple[int, int]]:
        counts: dict[int, int] = {}
        for coordinates in self.tree.coordinates():
            found, numbers = np.unique(coordinates[:, 0], return_counts=True)
            for first, number in zip(found.tolist(), numbers.tolist(), strict=True):
                counts[first] = counts.get(first, 0) + number
        start, held = 0, 0
        for first in sorted(counts):
            if held and held + counts[first] > _GROUP:
                yield start, first
                start, held = first, 0
            held += counts[first]
        yield start, 1 << COORDINATE_BITS

    def load(self, start: int, stop: int) -> None:
        """Hold the chunks whose first coordinate is in a range."""
        if self._loaded == (start, stop):
            return
        ndim = self.tree.ndim
        if len(self.groups()) == 1:
            table = self.tree.table()
        else:
            upper = (stop, *(1 << COORDINATE_BITS,) * (ndim - 1))
            table = self.tree.select((start, *(0,) * (ndim - 1)), upper)
        coordinates = decode(table.codes, ndim)
        order = np.lexsort(coordinates.T[::-1])
        self.columns = coordinates[order].T.tolist()
        self.cids, self.tsizes = _columns(self.reader, table.take(order))
        self.known.clear()
        self._loaded = start, stop

    def span(self, prefix: tuple[int, ...]) -> tuple[int, int]:
        """Return the rows of the chunks whose coordinates begin with `prefix`, loaded."""
        if not prefix:
            self.load(*self.groups()[0])
        else:
            groups = self.groups()
            row = bisect_right(groups, prefix[0], key=lambda group: group[0]) - 1
            self.load(*groups[row])
        low, high = 0, len(self.tsizes)
        for column, coordinate in zip(self.columns, prefix, strict=False):
            low, high = (
                bisect_left(column, coordinate, low, high),
                bisect_right(column, coordinate, low, high),
            )
        return low, high


@dataclass(frozen=True, slots=True)
class _Rows:
    """The chunks of a grid whose coordinates begin with a prefix."""

    grid: _Grid
    prefix: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether what follows the prefix is the name of a chunk, not of a folder."""
        return len(self.prefix) == self.grid.tree.ndim - 1

    def folders(self) -> Iterator[tuple[str, _Rows]]:
        """Yield the folders below."""
        for first in self._next():
            yield str(first), _Rows(self.grid, (*self.prefix, first))

    def _next(self) -> Iterator[int]:
        for group in self.grid.groups() if not self.prefix else [None]:
            if group is not None:
                self.grid.load(*group)
            low, high = self.grid.span(self.prefix) if self.prefix else (0, len(self.grid.tsizes))
            column = self.grid.columns[len(self.prefix)]
            while low < high:
                yield column[low]
                low = bisect_right(column, column[low], low, high)

    def files(self) -> tuple[list[str], bytes, list[int]]:
        """Return names, CIDs and sizes of the chunks in this folder."""
        names: list[str] = []
        cids = bytearray()
        tsizes: list[int] = []
        grid = self.grid
        for group in grid.groups() if not self.prefix else [None]:
            if group is not None:
                grid.load(*group)
            low, high = grid.span(self.prefix) if self.prefix else (0, len(grid.tsizes))
            names += map(str, grid.columns[-1][low:high])
            cids += grid.cids[_CID_SIZE * low : _CID_SIZE * high]
            tsizes += grid.tsizes[low:high]
        return names, bytes(cids), tsizes


def _columns(reader: TreeReader, table: Table) -> tuple[bytes, list[int]]:
    """Return the CIDs of chunks one after another, and the bytes of all blocks of each."""
    cids = table.cids
    tsizes: list[int] = table.sizes.tolist()
    codecs = cids[:, 1]
    if (codecs == DAG_CBOR).any():
        cids = cids.copy()
        cids[codecs == DAG_CBOR, 1] = RAW
    files = np.flatnonzero(codecs == DAG_PB).tolist()
    for start in range(0, len(files), _BATCH):
        rows = files[start : start + _BATCH]
        nodes = reader.blocks.get_many([CidBytes(cids[row].tobytes()) for row in rows])
        for row, data in zip(rows, nodes, strict=True):
            tsizes[row] = _tsize_of(data)
    return cids.tobytes(), tsizes


def _tsize_of(data: bytes) -> int:
    """Return the bytes of all blocks of a file, from its top node."""
    return len(data) + sum(link.tsize or 0 for link in dagpb.decode(data).links)


def _shown(cid: CidBytes) -> CidBytes:
    """Return the CID under which UnixFS knows a value: one block is raw, whatever its codec."""
    return CidBytes(cid[:1] + bytes([RAW]) + cid[2:]) if cid[1] == DAG_CBOR else cid
