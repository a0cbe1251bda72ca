"""Walking all blocks that a root links to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import CidBytes, CidLike, as_cid_bytes
from cas_zarr.errors import CasZarrError, FormatError
from cas_zarr.tree.chunktree import ChunkTree, TreeRef
from cas_zarr.tree.keys import MAX_DEPTH, chunk_names, parse_form
from cas_zarr.tree.morton import decode
from cas_zarr.tree.node import Node, Root, Value
from cas_zarr.tree.page import Page
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.table import from_page
from cas_zarr.tree.values import file_blocks

__all__ = ["OnError", "reachable"]


OnError: TypeAlias = Callable[[str, CidBytes, CasZarrError], None]


def reachable(
    blocks: BlockStore, root: CidLike, *, values: bool = True, on_error: OnError | None = None
) -> Iterator[tuple[str, CidBytes]]:
    """Yield every block that a root leads to, with the path or key that it is for.

    Lazily, each block once, a block before those it links. Blocks of values are named, not read.

    Parameters
    ----------
    blocks : BlockStore
        Where the root, its shards, pages and file nodes are read.
    root : CID
        A root document.
    values : bool
        Whether to yield the blocks of values too, not only the tree's.
    on_error : callable, optional
        Called with path, CID and error for a block of the tree that cannot be read; the walk goes
        on with what does not lie below it. Without it the error is raised.
    """
    return _Walk(TreeReader(blocks), values, on_error).run(as_cid_bytes(root))


class _Walk:
    def __init__(self, reader: TreeReader, values: bool, on_error: OnError | None) -> None:
        self.reader = reader
        self.values = values
        self.on_error = on_error
        self.seen: set[CidBytes] = set()
        self.opened: set[CidBytes] = set()  # pages: a value may have the CID of one

    def run(self, cid: CidBytes) -> Iterator[tuple[str, CidBytes]]:
        yield from self._once("", cid)
        pending: list[tuple[str, Node]] = []
        with self._guard("", cid):
            pending.append(("", Root.from_block(self.reader.blocks.get(cid)).node))
        while pending:
            path, node = pending.pop()
            if path.count("/") > MAX_DEPTH:
                raise FormatError(f"nodes are nested deeper than {MAX_DEPTH} levels")
            base = f"{path}/" if path else ""
            for name, document in node.docs.items():
                if isinstance(document, Value):
                    yield from self._value(base + name, document.cid, document.size)
            yield from self._entries(base, node.keys, node.nodes, pending)
            refs = list(node.shards)
            while refs:
                ref = refs.pop()
                yield from self._once(path, ref.cid)
                with self._guard(path, ref.cid):
                    shard = self.reader.shard(ref)
                    refs.extend(shard.shards)
                    yield from self._entries(base, shard.keys, shard.nodes, pending)
            for form, tree in node.trees.items():
                yield from self._tree(path, form, tree)

    @contextmanager
    def _guard(self, path: str, cid: CidBytes) -> Iterator[None]:
        try:
            yield
        except CasZarrError as error:
            if self.on_error is None:
                raise
            self.on_error(path, cid, error)

    def _once(self, place: str, cid: CidBytes) -> Iterator[tuple[str, CidBytes]]:
        if cid not in self.seen:
            self.seen.add(cid)
            yield place, cid

    def _entries(
        self,
        base: str,
        keys: Mapping[str, Value],
        nodes: Mapping[str, Node],
        pending: list[tuple[str, Node]],
    ) -> Iterator[tuple[str, CidBytes]]:
        pending.extend((base + name, node) for name, node in nodes.items())
        for name, value in keys.items():
            yield from self._value(base + name, value.cid, value.size)

    def _value(self, key: str, cid: CidBytes, size: int) -> Iterator[tuple[str, CidBytes]]:
        if self.values and cid not in self.seen:
            with self._guard(key, cid):
                for block in file_blocks(self.reader, cid, size):
                    yield from self._once(key, block)

    def _tree(self, path: str, form: str, ref: TreeRef) -> Iterator[tuple[str, CidBytes]]:
        kind, ndim = parse_form(form)
        tree = ChunkTree(self.reader, ref, ndim)
        if ref.embedded is None:
            if ref.cid in self.opened:
                return
            self.opened.add(ref.cid)
            yield from self._once(path, ref.cid)
        pending: list[tuple[Page, int]] = []
        with self._guard(path, ref.cid):
            pending.append((tree.top, 0))
        while pending:
            page, low = pending.pop()
            if page.prefixes is None:
                if self.values:
                    yield from self._chunks(path, kind, tree, page, low)
                continue
            for row in range(len(page)):
                child = page.cid(row)
                if child not in self.opened:
                    self.opened.add(child)
                    yield from self._once(path, child)
                    with self._guard(path, child):
                        pending.append(tree.child(page, low, row)[:2])

    def _chunks(
        self, path: str, kind: str, tree: ChunkTree, page: Page, low: int
    ) -> Iterator[tuple[str, CidBytes]]:
        base = f"{path}/" if path else ""
        table = from_page(page, low, tree.bits)
        sizes = table.sizes.tolist()
        for row, name in enumerate(chunk_names(kind, decode(table.codes, tree.ndim))):
            yield from self._value(base + name, CidBytes(table.cids[row].tobytes()), sizes[row])
