"""What a dataset takes, and what dedupe has saved, array by array.

Every page is opened once, however often it is linked; no chunk is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import DAG_PB, DIGEST_SIZE, CidBytes, CidLike, as_cid_bytes, digest_of
from cas_zarr.repository.describe import find_node, walk
from cas_zarr.tree.chunktree import ChunkTree, TreeRef
from cas_zarr.tree.keys import parse_form
from cas_zarr.tree.node import Node, Root, Value
from cas_zarr.tree.shards import TreeReader, iter_entries, shard_cids
from cas_zarr.tree.values import is_file, map_reads

__all__ = ["DatasetStats", "NodeStats", "dataset_stats"]


@dataclass(frozen=True, slots=True)
class NodeStats:
    """The values of one node: its chunks, plain keys and long documents.

    Attributes
    ----------
    path : str
    values : int
        How many there are.
    logical : int
        Their bytes, as a folder of files would store them.
    stored : int
        Bytes of their distinct blocks: what this node alone would take.
    shared : int
        Bytes of those blocks that other nodes have too.
    blocks : int
        How many distinct blocks there are: of long shards, one for each inner chunk.
    """

    path: str
    values: int
    logical: int
    stored: int
    shared: int
    blocks: int


@dataclass(frozen=True, slots=True)
class DatasetStats:
    """The values of all nodes.

    Attributes
    ----------
    nodes : tuple of NodeStats
        Those nodes that have values, parents first.
    values, logical : int
        Sums over the nodes.
    stored : int
        Bytes of the distinct blocks of all values.
    tree : int
        Bytes of what links the values: the root document, and the shards, pages and file nodes
        below the path.
    blocks : int
        How many distinct blocks all values have.
    """

    nodes: tuple[NodeStats, ...]
    values: int
    logical: int
    stored: int
    tree: int
    blocks: int

    @property
    def saved(self) -> int:
        """Bytes that dedupe saved."""
        return self.logical - self.stored


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Distinct blocks: their digests, shape (n, 32), and sizes in bytes, shape (n,)."""

    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]


def dataset_stats(blocks: BlockStore, root: CidLike | None, path: str = "") -> DatasetStats:
    """Count what a dataset takes, or a group or an array in it.

    Parameters
    ----------
    blocks : BlockStore
    root : str, bytes, CID or None
        A root; None for a dataset without anything.
    path : str
        Count this node and those below it.

    Raises
    ------
    BlockNotFoundError, CorruptBlockError, FormatError
        If a page or the root document is missing or damaged.
    NotFoundError
        If there is no node at `path`.
    """
    if root is None:
        return DatasetStats((), 0, 0, 0, 0, 0)
    cid = as_cid_bytes(root)
    document = blocks.get(cid)
    walker = _Walker(blocks, len(document))
    path = path.strip("/")
    start = find_node(walker.reader, Root.from_block(document).node, path)
    rows = [
        (at, values, logical, found)
        for at, node in walk(walker.reader, start, path)
        for values, logical, found in [walker.blocks_of(node)]
        if values
    ]
    # One number for each distinct block of the dataset, and the nodes that have it.
    digests = np.concatenate([found.digests for *_, found in rows] or [_no_digests()])
    sizes = np.concatenate([found.sizes for *_, found in rows] or [np.empty(0, np.int64)])
    names = digests.view(f"V{DIGEST_SIZE}").ravel()
    first, inverse = np.unique(names, return_index=True, return_inverse=True)[1:]
    holders = np.bincount(inverse, minlength=len(first))
    nodes = []
    offset = 0
    for at, values, logical, found in rows:
        mine = inverse[offset : offset + len(found.sizes)]
        offset += len(found.sizes)
        shared = int(found.sizes[holders[mine] > 1].sum())
        stored, count = int(found.sizes.sum()), len(found.sizes)
        nodes.append(NodeStats(at, values, logical, stored, shared, count))
    return DatasetStats(
        tuple(nodes),
        sum(node.values for node in nodes),
        sum(node.logical for node in nodes),
        int(sizes[first].sum()),
        walker.tree_bytes,
        len(first),
    )


class _Walker:
    def __init__(self, blocks: BlockStore, root_bytes: int) -> None:
        self.blocks = blocks
        self.reader = TreeReader(blocks)
        self.tree_bytes = root_bytes
        self._counted: set[CidBytes] = set()
        self._files: dict[CidBytes, _Blocks] = {}

    def blocks_of(self, node: Node) -> tuple[int, int, _Blocks]:
        """Return the number of values of a node, their bytes, and their distinct blocks."""
        for cid in shard_cids(self.reader, node):
            self._count(cid)
        links = [value for value in node.docs.values() if isinstance(value, Value)]
        links += [v for _, v in iter_entries(self.reader, node) if isinstance(v, Value)]
        values = len(links) + sum(tree.chunks for tree in node.trees.values())
        logical = sum(v.size for v in links) + sum(tree.size for tree in node.trees.values())
        parts = list(self._values([(value.cid, value.size) for value in links]))
        for form, tree in node.trees.items():
            parts += self._tree(tree, parse_form(form)[1])
        return values, logical, _distinct(parts)

    def _tree(self, tree: TreeRef, ndim: int) -> Iterator[_Blocks]:
        pending = [ChunkTree(self.reader, tree, ndim).top]
        if tree.embedded is None:
            self._count(tree.cid)
        seen: set[CidBytes] = set()
        while pending:
            page = pending.pop()
            if page.level:
                below = dict.fromkeys(page.cid(row) for row in range(len(page)))
                fresh = [cid for cid in below if cid not in seen]
                seen.update(fresh)
                pending += self.reader.pages(fresh, page.level - 1)
                for cid in fresh:  # only now: far away, a size that is not here is a request
                    self._count(cid)
                continue
            sizes = page.sizes.astype(np.int64)
            files = page.cids[:, 1] == DAG_PB
            yield _Blocks(page.cids[~files, -DIGEST_SIZE:], sizes[~files])
            rows = np.flatnonzero(files).tolist()
            yield from self._values([(page.cid(row), int(sizes[row])) for row in rows])

    def _values(self, values: list[tuple[CidBytes, int]]) -> Iterator[_Blocks]:
        """Yield the blocks with the bytes of each value: itself, or the leaves of a file."""
        files = dict.fromkeys(cid for cid, _ in values if is_file(cid))
        fresh = [cid for cid in files if cid not in self._files]
        for cid, opened in zip(fresh, map_reads(self.reader, self._open, fresh), strict=True):
            self._files[cid], nodes = opened
            for node in nodes:
                self._count(node)
        for cid, size in values:
            known = self._files.get(cid)
            yield known or _Blocks(_digests([cid]), np.array([size], np.int64))

    def _open(self, cid: CidBytes) -> tuple[_Blocks, set[CidBytes]]:
        """Return the leaves of a file, and its nodes."""
        leaves: dict[CidBytes, int] = {}
        nodes = {cid}
        pending = [cid]
        while pending:
            node = self.reader.file_node(pending.pop())
            for child, length in zip(node.links, node.sizes, strict=True):
                if not is_file(child):
                    leaves[child] = length
                elif child not in nodes:
                    nodes.add(child)
                    pending.append(child)
        return _Blocks(_digests(list(leaves)), np.array(list(leaves.values()), np.int64)), nodes

    def _count(self, cid: CidBytes) -> None:
        """Count a block of the tree, once."""
        if cid not in self._counted:
            self._counted.add(cid)
            self.tree_bytes += self.blocks.size(cid)


def _digests(cids: list[CidBytes]) -> NDArray[np.uint8]:
    joined = b"".join(digest_of(cid) for cid in cids)
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_SIZE)


def _no_digests() -> NDArray[np.uint8]:
    return np.empty((0, DIGEST_SIZE), np.uint8)


def _distinct(parts: list[_Blocks]) -> _Blocks:
    if not parts:
        return _Blocks(_no_digests(), np.empty(0, np.int64))
    digests = np.ascontiguousarray(np.concatenate([part.digests for part in parts]))
    sizes = np.concatenate([part.sizes for part in parts])
    first = np.unique(digests.view(f"V{DIGEST_SIZE}").ravel(), return_index=True)[1]
    return _Blocks(digests[first], sizes[first])
