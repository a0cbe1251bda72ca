"""Checking all that roots lead to: the walk behind `cas_zarr.repository.verify`.

Pages, shards, roots and inner nodes of large values are always read and hashed. The blocks of
values are looked for, a leaf page at a time, and read as far as they are asked for. Of values only
eight bytes each are remembered, so a million of them take some megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.index import KEY_SIZE
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.referring import ReferringBlocks
from cas_zarr.cid import DAG_PB, DIGEST_SIZE, CidBytes, format_cid, hash_of
from cas_zarr.codecs.unixfs import FileNode, decode_file_node
from cas_zarr.errors import BlockNotFoundError, CasZarrError, FormatError, LimitError, NotFoundError
from cas_zarr.repository.damage import MAX_LISTED, Box, Damage, HurtArray
from cas_zarr.repository.describe import describe, find_node
from cas_zarr.tree.boxes import merge_boxes
from cas_zarr.tree.chunktree import ChunkTree, TreeRef
from cas_zarr.tree.keys import MAX_DEPTH, chunk_names, parse_form
from cas_zarr.tree.morton import coordinates_of, decode
from cas_zarr.tree.node import Node, Root, ShardRef, Value
from cas_zarr.tree.page import CID_SIZE, Page
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.table import Table, concatenate, from_page

__all__ = ["Checker", "Heal", "Progress", "Seen"]

Progress = Callable[[int, int], None]
"""Called with the blocks and the bytes that have been checked."""

Heal = Callable[[Sequence[CidBytes]], Sequence[bool]]
"""Tries to put damaged or missing blocks anew; tells for each whether it can be read now."""

_AHEAD = 64  # pages that are read at once
_TABLES = 128  # pages whose chunks are looked for at once
_BYTES = 64 << 20  # of values that are read at once
_MAX_FILE_DEPTH = 16
_HEAD = slice(CID_SIZE - DIGEST_SIZE, CID_SIZE - DIGEST_SIZE + 8)

_T = TypeVar("_T")
_Sizes = NDArray[np.uint64]
_Rows = NDArray[np.uint8]
_Namer = Callable[[NDArray[np.intp]], Iterable[str]]


class Seen:
    """A set of digests that grows, eight bytes each: sorted runs, merged as they get many."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, heads: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Add the leading eight bytes of digests; tell which of them are new, repetitions once."""
        fresh = np.zeros(len(heads), bool)
        unique, first = np.unique(heads, return_index=True)
        new = ~self.has(unique)
        fresh[first[new]] = True
        if new.any():
            run = unique[new]
            while self._runs and len(self._runs[-1]) <= 2 * len(run):
                run = np.sort(np.concatenate([self._runs.pop(), run]))
            self._runs.append(run)
        return fresh

    def has(self, heads: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which digests, by their leading eight bytes, have been added."""
        found = np.zeros(len(heads), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, heads), len(run) - 1)
            found |= run[at] == heads
        return found


class Checker:
    """Checks roots, one after another; what they share is checked once.

    Parameters
    ----------
    blocks : BlockStore
    data : bool
        Whether every block of a value is read and hashed.
    sample : float or None
        Share of them that is read and hashed where not all are.
    seed : int
        Chooses which.
    suspects : collection of bytes or None
        Multihashes of blocks to read where all others are known to be sound; None if nobody looked.
    promised : bool
        Whether a block that is not there is no damage.
    heal : Heal, optional
        Called for blocks that are damaged or missing, before they are reported.
    progress : Progress, optional
    """

    def __init__(
        self,
        blocks: BlockStore,
        *,
        data: bool = False,
        sample: float | None = None,
        seed: int = 0,
        suspects: Collection[bytes] | None = None,
        promised: bool = False,
        heal: Heal | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.blocks = blocks
        self.reader = TreeReader(blocks)
        self._data = data
        self._limit = 0 if sample is None else round(sample * (1 << 64))
        self._seed = np.uint64(seed * 0x9E3779B97F4A7C15 % (1 << 64))
        self._suspects = suspects
        self._promises = promised
        self._heal = heal
        self._progress = progress
        self._seen = Seen()
        self._bad = Seen()  # values that are damaged
        self._ahead: dict[CidBytes, bytes] = {}  # pages that were read ahead
        self._opened: set[object] = set()
        self._hurt: dict[tuple[str, CidBytes, str, int], _Hurt] = {}
        self._versions: dict[CidBytes, str] = {}
        self._version = ""
        self._root = CidBytes(b"")
        self.roots = self.count = self.size = self.read = self.read_size = 0
        self.promised = self.damages = 0
        self.damaged: dict[tuple[CidBytes | None, str], Damage] = {}
        self.complete = True

    # -- what is checked ----------------------------------------------------------------------

    def root(self, cid: CidBytes, version: str, path: str = "") -> None:
        """Check all that a root leads to, or all that a node of it does."""
        if (cid, path) in self._opened:
            return
        self._opened.add((cid, path))
        self.roots += 1
        self._root, self._version = cid, version
        self._versions.setdefault(cid, version)
        root = self.block("root", "", cid, Root.from_block)
        if root is None:
            return
        try:
            node = find_node(self.reader, root.node, path)
        except NotFoundError as error:
            if not isinstance(error, BlockNotFoundError):
                raise
            self.report("shard", path, None, error, hides=True)
            return
        except CasZarrError as error:
            self.report("shard", path, None, error, hides=True)
            return
        self._nodes(path, node)

    def block(
        self,
        kind: str,
        path: str,
        cid: CidBytes,
        parse: Callable[[bytes], _T],
        hurts: Callable[[], None] | None = None,
    ) -> _T | None:
        """Read, hash and parse a block that leads to others; report what is wrong with it.

        `hurts` is called if it is damaged or missing.
        """
        try:
            data = self._get(cid)
            self._counted(1, len(data))
            self.read += 1
            self.read_size += len(data)
            return parse(data)
        except CasZarrError as error:
            if self._promises and isinstance(error, BlockNotFoundError):
                self.promised += 1
                return None
            self.report(kind, path, cid, error, hides=True)
        if hurts is not None:
            hurts()
        return None

    def report(
        self,
        kind: str,
        path: str,
        cid: CidBytes | None,
        error: CasZarrError | str,
        *,
        hides: bool = False,
        version: str | None = None,
    ) -> None:
        """Note something that is damaged; `hides` if what lies below could not be checked."""
        key = (cid, "" if cid is not None else f"{path}: {error}")
        if key not in self.damaged:
            self.damages += 1
            if len(self.damaged) < MAX_LISTED:
                version = self._version if version is None else version
                self.damaged[key] = Damage(cid, path, str(error), kind, version)
        if hides:
            self.complete = False

    def hurt(self) -> tuple[HurtArray, ...]:
        """Return the arrays and chunks that the damage hurts, by path."""
        return tuple(
            self._describe(path, root, ndim, found)
            for (path, root, _, ndim), found in sorted(
                self._hurt.items(), key=lambda one: one[0][0]
            )
        )

    # -- trees ----------------------------------------------------------------------------------

    def _nodes(self, path: str, node: Node) -> None:
        pending = [(path, node)]
        while pending:
            path, node = pending.pop()
            if path.count("/") > MAX_DEPTH:
                error = FormatError(f"nodes are nested deeper than {MAX_DEPTH} levels")
                self.report("root", path, self._root, error, hides=True)
                return
            base = f"{path}/" if path else ""
            named = [(n, d) for n, d in node.docs.items() if isinstance(d, Value)]
            self._named(base, [*named, *node.keys.items()])
            pending.extend((base + name, child) for name, child in node.nodes.items())
            refs = list(node.shards)
            while refs:
                ref = refs.pop()
                if ref in self._opened:
                    continue
                self._opened.add(ref)
                read = partial(self._shard, ref)
                shard = self.block("shard", path, ref.cid, read)
                if shard is not None:
                    refs.extend(shard.shards)
                    self._named(base, list(shard.keys.items()))
                    pending.extend((base + name, child) for name, child in shard.nodes.items())
            for form, tree in node.trees.items():
                self._tree(path, form, tree)

    def _shard(self, ref: ShardRef, _: bytes) -> Any:
        return self.reader.shard(ref)

    def _tree(self, path: str, form: str, ref: TreeRef) -> None:
        if ref in self._opened:
            return
        self._opened.add(ref)
        kind, ndim = parse_form(form)
        tree = ChunkTree(self.reader, ref, ndim)
        try:
            top = tree.top if ref.embedded is not None else None
        except FormatError as error:
            self.report("page", path, self._root, error, hides=True)
            return
        if top is None:
            top = self.block(
                "page",
                path,
                ref.cid,
                lambda data: self._top(tree, data),
                lambda: self._hurt_at(path, kind, ndim).all(ref.chunks),
            )
        if top is None:
            return
        stack = [(top, 0, self._rows(top))]
        tables: list[Table] = []
        while stack:
            page, low, rows = stack[-1]
            if page.prefixes is None:
                tables.append(from_page(page, low, tree.bits))
                if len(tables) == _TABLES:
                    self._chunks(path, kind, tree, concatenate(tables))
                    tables.clear()
                stack.pop()
                continue
            row = next(rows, None)
            if row is None:
                stack.pop()
                continue
            child = self._child(path, kind, tree, page, low, row)
            if child is not None:
                stack.append((*child, self._rows(child[0])))
        if tables:
            self._chunks(path, kind, tree, concatenate(tables))

    def _top(self, tree: ChunkTree, data: bytes) -> Page:
        self.reader.remember(tree.ref.cid, Page.from_block(data, "a page"))
        return tree.top

    def _rows(self, page: Page) -> Iterator[int]:
        """Yield the rows of the child pages that were not checked yet, read ahead."""
        if page.prefixes is None:
            return
        for first in range(0, len(page), _AHEAD):
            rows = [
                row
                for row in range(first, min(first + _AHEAD, len(page)))
                if (page.cid(row), int(page.counts[row]), int(page.sizes[row])) not in self._opened
            ]
            cids = [page.cid(row) for row in rows]
            if len(cids) > 1:
                with suppress(CasZarrError):  # of one of them: they are read one by one below
                    self._ahead.update(zip(cids, self.blocks.get_many(cids), strict=True))
            yield from rows

    def _child(
        self, path: str, kind: str, tree: ChunkTree, page: Page, low: int, row: int
    ) -> tuple[Page, int] | None:
        cid = page.cid(row)
        key = (cid, int(page.counts[row]), int(page.sizes[row]))
        if key in self._opened:
            self._ahead.pop(cid, None)
            return None
        self._opened.add(key)

        def parse(data: bytes) -> tuple[Page, int]:
            self.reader.remember(cid, Page.from_block(data, "a page"))
            return tree.child(page, low, row)[:2]

        def hurts() -> None:
            assert page.prefixes is not None
            first = low + int(page.codes[row])
            last = first + (1 << tree.bits - int(page.prefixes[row])) - 1
            begin, end = coordinates_of(first, tree.ndim), coordinates_of(last, tree.ndim)
            box = tuple((a, b + 1) for a, b in zip(begin, end, strict=True))
            self._hurt_at(path, kind, tree.ndim).box(box, int(page.counts[row]))

        return self.block("page", path, cid, parse, hurts)

    def _chunks(self, path: str, kind: str, tree: ChunkTree, table: Table) -> None:
        base = f"{path}/" if path else ""

        def names(rows: NDArray[np.intp]) -> Iterable[str]:
            return (base + n for n in chunk_names(kind, decode(table.codes[rows], tree.ndim)))

        bad = self._values(table.cids, table.sizes, names)
        if len(bad):
            self._hurt_at(path, kind, tree.ndim).chunks(decode(table.codes[bad], tree.ndim))

    # -- values -----------------------------------------------------------------------------------

    def _named(self, base: str, values: list[tuple[str, Value]]) -> None:
        if values:
            cids = _rows([value.cid for _, value in values])
            sizes = np.array([value.size for _, value in values], np.uint64)
            self._values(
                cids,
                sizes,
                lambda rows: (base + values[row][0] for row in rows.tolist()),
            )

    def _values(self, cids: _Rows, sizes: _Sizes, names: _Namer) -> NDArray[np.intp]:
        """Check values, each with its CID and size; return the rows of those that are hurt."""
        heads = _heads(cids)
        fresh = self._seen.add(heads)
        hurt = np.zeros(len(cids), bool)
        files = cids[:, 1] == DAG_PB
        for row in np.flatnonzero(fresh & files).tolist():
            cid = CidBytes(cids[row].tobytes())
            (name,) = names(np.array([row]))
            hurt[row] = not self._file(name, cid, int(sizes[row]))
        rows = np.flatnonzero(fresh & ~files)
        if len(rows):
            hurt[rows[self._blocks(cids[rows], sizes[rows], lambda at: names(rows[at]))]] = True
        if hurt.any():
            self._bad.add(heads[hurt])
        hurt |= self._bad.has(heads)
        return np.flatnonzero(hurt)

    def _file(self, name: str, cid: CidBytes, size: int, depth: int = 0) -> bool:
        """Check a value of more than one block, or an inner node of it; tell whether it is whole.

        An inner node is opened once: a few can link one another a billion times.
        """

        def parse(data: bytes) -> FileNode:
            node = decode_file_node(data)
            if node.size != size:
                raise FormatError(f"a file has {node.size} bytes where what links it claims {size}")
            for link in node.links:
                hash_of(link)
                if len(link) != CID_SIZE:
                    raise FormatError(f"a file links {format_cid(link)}, which is no part of one")
            return node

        key = (cid, size, depth)
        if depth:
            if key in self._opened:
                return not self._bad.has(_heads(_rows([cid]))).any()
            self._opened.add(key)
        node = self.block("file", name, cid, parse)
        if node is not None and depth > _MAX_FILE_DEPTH:
            error = LimitError(f"a file is deeper than {_MAX_FILE_DEPTH} levels")
            self.report("file", name, cid, error, hides=True)
            node = None
        if node is None:
            self._bad.add(_heads(_rows([cid])))
            return False
        links = _rows(node.links)
        lengths = np.array(node.sizes, np.uint64)
        inner = links[:, 1] == DAG_PB
        whole = True
        for row in np.flatnonzero(inner).tolist():
            whole &= self._file(name, node.links[row], node.sizes[row], depth + 1)
        fresh = self._seen.add(_heads(links))
        rows = np.flatnonzero(fresh & ~inner)
        self._blocks(links[rows], lengths[rows], lambda at: [name] * len(at))
        whole &= not self._bad.has(_heads(links)).any()
        if not whole:
            self._bad.add(_heads(_rows([cid])))
        return whole

    def _blocks(self, cids: _Rows, sizes: _Sizes, names: _Namer) -> NDArray[np.bool_]:
        """Check blocks that were not checked before; return a mask of those that are hurt."""
        hurt = np.zeros(len(cids), bool)
        if not len(cids):
            return hurt
        wanted = self._chosen(cids)
        held = ~wanted
        if self._promises or not wanted.all():
            held[:] = self._held(cids)
            if self._promises:
                wanted &= held
                self.promised += len(cids) - int(held.sum())
            else:
                wanted |= ~held  # reading says why it is not there
            held &= ~wanted
        rows = np.flatnonzero(wanted)
        while len(rows):
            cut = max(1, int(np.searchsorted(np.cumsum(sizes[rows].astype(np.float64)), _BYTES)))
            part, rows = rows[:cut], rows[cut:]
            self._read(part, cids, sizes, names, hurt)
        self._counted(int(held.sum()), int(sizes[held].sum()))
        if hurt.any():
            self._bad.add(_heads(cids[hurt]))
        return hurt

    def _held(self, cids: _Rows) -> NDArray[np.bool_]:
        """Return a mask of the blocks that are here."""
        if isinstance(self.blocks, LocalBlocks):
            return self.blocks.has_array(cids[:, -KEY_SIZE:])
        return np.array(self.blocks.has_many(_cids(cids)), bool)

    def _chosen(self, cids: _Rows) -> NDArray[np.bool_]:
        """Return a mask of the blocks to read."""
        if self._data and self._suspects is None:
            return np.ones(len(cids), bool)
        chosen = np.zeros(len(cids), bool)
        if self._data and isinstance(self.blocks, ReferringBlocks):
            chosen |= self.blocks.elsewhere(cids[:, -KEY_SIZE:])  # no pack has been read for them
        if self._suspects:
            chosen |= np.array([cid[-KEY_SIZE:] in self._suspects for cid in _cids(cids)], bool)
        if self._limit:
            drawn = (_heads(cids) ^ self._seed) * np.uint64(0x9E3779B97F4A7C15)
            drawn ^= drawn >> np.uint64(32)
            chosen |= drawn <= np.uint64(min(self._limit, (1 << 64) - 1))
        return chosen

    def _read(
        self,
        rows: NDArray[np.intp],
        cids: _Rows,
        sizes: _Sizes,
        names: _Namer,
        hurt: NDArray[np.bool_],
    ) -> None:
        asked = _cids(cids[rows])
        try:
            lengths = [len(data) for data in self.blocks.get_many(asked)]
        except CasZarrError:
            self._read_each(rows, asked, sizes, names, hurt)
            return
        wrong = np.array(lengths, np.uint64) != sizes[rows]
        if wrong.any():
            self._read_each(rows, asked, sizes, names, hurt)
            return
        self._took(len(asked), sum(lengths))

    def _read_each(
        self,
        rows: NDArray[np.intp],
        asked: list[CidBytes],
        sizes: _Sizes,
        names: _Namer,
        hurt: NDArray[np.bool_],
    ) -> None:
        bad: list[tuple[int, CidBytes, CasZarrError]] = []
        for row, cid in zip(rows.tolist(), asked, strict=True):
            error = self._attempt(cid, int(sizes[row]))
            if error is not None:
                bad.append((row, cid, error))
        if bad and self._heal is not None:
            lost = [cid for _, cid, error in bad if not isinstance(error, FormatError)]
            if any(self._heal(lost)):
                retried = [(row, cid, self._attempt(cid, int(sizes[row]))) for row, cid, _ in bad]
                bad = [(row, cid, error) for row, cid, error in retried if error is not None]
        for row, cid, error in bad:
            (name,) = names(np.array([row]))
            self.report("value", name, cid, error)
            hurt[row] = True

    def _attempt(self, cid: CidBytes, size: int) -> CasZarrError | None:
        """Read a block; return what is wrong with it."""
        try:
            length = len(self.blocks.get(cid))
        except CasZarrError as error:
            return error
        if length != size:
            return FormatError(f"it has {length} bytes where what links it claims {size}")
        self._took(1, length)
        return None

    # -- small parts --------------------------------------------------------------------------

    def _get(self, cid: CidBytes) -> bytes:
        data = self._ahead.pop(cid, None)
        if data is not None:
            return data
        try:
            return self.blocks.get(cid)
        except CasZarrError as error:
            promised = self._promises and isinstance(error, BlockNotFoundError)
            if promised or self._heal is None or not self._heal([cid])[0]:
                raise
        return self.blocks.get(cid)

    def _took(self, blocks: int, size: int) -> None:
        self.read += blocks
        self.read_size += size
        self._counted(blocks, size)

    def _counted(self, blocks: int, size: int) -> None:
        self.count += blocks
        self.size += size
        if self._progress is not None and blocks:
            self._progress(self.count, self.size)

    def _hurt_at(self, path: str, kind: str, ndim: int) -> _Hurt:
        return self._hurt.setdefault((path, self._root, kind, ndim), _Hurt())

    def _describe(self, path: str, root: CidBytes, ndim: int, found: _Hurt) -> HurtArray:
        shape = chunk_shape = None
        try:
            info = describe(self.blocks, root, path)
            shape, chunk_shape = info.shape, info.chunk_shape
        except CasZarrError:  # its metadata is hurt as well
            pass
        if shape is not None and len(shape) != ndim:
            shape = chunk_shape = None
        count, boxes = found.total(ndim)
        return HurtArray(path, self._versions[root], count, boxes, shape, chunk_shape)


class _Hurt:
    """The chunks of one array in one version that cannot be read."""

    def __init__(self) -> None:
        self.count = 0
        self.boxes: list[Box] = []
        self.coordinates: list[NDArray[np.int64]] = []
        self.whole = False

    def all(self, count: int) -> None:
        self.whole = True
        self.count += count

    def box(self, box: Box, count: int) -> None:
        self.boxes.append(box)
        self.count += count

    def chunks(self, coordinates: NDArray[np.int64]) -> None:
        self.coordinates.append(coordinates)
        self.count += len(coordinates)

    def total(self, ndim: int) -> tuple[int, tuple[Box, ...]]:
        """Return the number of chunks, and the boxes they are in; none where all is meant."""
        if self.whole or not ndim:
            return self.count, ()
        boxes = list(self.boxes)
        if self.coordinates:
            starts, stops = merge_boxes(np.concatenate(self.coordinates))
            boxes += [
                tuple(zip(start, stop, strict=True))
                for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
            ]
        return self.count, tuple(sorted(boxes))


def _rows(cids: Sequence[CidBytes]) -> _Rows:
    return np.frombuffer(b"".join(cids), np.uint8).reshape(-1, CID_SIZE)


def _cids(rows: _Rows) -> list[CidBytes]:
    flat = rows.tobytes()
    return [CidBytes(flat[i : i + CID_SIZE]) for i in range(0, len(flat), CID_SIZE)]


def _heads(cids: _Rows) -> NDArray[np.uint64]:
    heads: NDArray[np.uint64] = np.ascontiguousarray(cids[:, _HEAD]).view(np.uint64).ravel()
    return heads
