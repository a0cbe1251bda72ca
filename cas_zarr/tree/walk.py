"""Walking all blocks that a root links to."""

from __future__ import annotations

from collections.abc import Iterator

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import CidBytes, CidLike, as_cid_bytes
from cas_zarr.tree.chunktree import ChunkTree
from cas_zarr.tree.keys import chunk_name, parse_form
from cas_zarr.tree.morton import decode
from cas_zarr.tree.node import Node, Root, Value
from cas_zarr.tree.page import Page
from cas_zarr.tree.shards import TreeReader, iter_entries, shard_cids
from cas_zarr.tree.table import from_page
from cas_zarr.tree.values import file_blocks
from cas_zarr.tree.view import walk_nodes

__all__ = ["reachable"]


def reachable(
    blocks: BlockStore, root: CidLike, *, values: bool = True
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
    """
    return _Walk(TreeReader(blocks), values).run(as_cid_bytes(root))


class _Walk:
    def __init__(self, reader: TreeReader, values: bool) -> None:
        self.reader = reader
        self.values = values
        self.seen: set[CidBytes] = set()
        self.opened: set[CidBytes] = set()  # pages: a value may have the CID of one

    def run(self, cid: CidBytes) -> Iterator[tuple[str, CidBytes]]:
        yield from self._once("", cid)
        root = Root.from_block(self.reader.blocks.get(cid))
        for path, node in walk_nodes(self.reader, root.node):
            for shard in shard_cids(self.reader, node):
                yield from self._once(path, shard)
            base = f"{path}/" if path else ""
            for name, document in node.docs.items():
                if isinstance(document, Value):
                    yield from self._value(base + name, document.cid, document.size)
            for name, entry in iter_entries(self.reader, node):
                if isinstance(entry, Value):
                    yield from self._value(base + name, entry.cid, entry.size)
            yield from self._trees(path, node)

    def _once(self, place: str, cid: CidBytes) -> Iterator[tuple[str, CidBytes]]:
        if cid not in self.seen:
            self.seen.add(cid)
            yield place, cid

    def _value(self, key: str, cid: CidBytes, size: int) -> Iterator[tuple[str, CidBytes]]:
        if self.values and cid not in self.seen:
            for block in file_blocks(self.reader, cid, size):
                yield from self._once(key, block)

    def _trees(self, path: str, node: Node) -> Iterator[tuple[str, CidBytes]]:
        for form, ref in node.trees.items():
            kind, ndim = parse_form(form)
            tree = ChunkTree(self.reader, ref, ndim)
            if ref.embedded is None:
                if ref.cid in self.opened:
                    continue
                self.opened.add(ref.cid)
                yield from self._once(path, ref.cid)
            pending: list[tuple[Page, int]] = [(tree.top, 0)]
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
                        pending.append(tree.child(page, low, row)[:2])

    def _chunks(
        self, path: str, kind: str, tree: ChunkTree, page: Page, low: int
    ) -> Iterator[tuple[str, CidBytes]]:
        base = f"{path}/" if path else ""
        table = from_page(page, low, tree.bits)
        sizes = table.sizes.tolist()
        for row, coordinates in enumerate(decode(table.codes, tree.ndim).tolist()):
            key = base + chunk_name(kind, coordinates)
            yield from self._value(key, CidBytes(table.cids[row].tobytes()), sizes[row])
