"""Marking: the blocks of many roots, each page, shard and file node opened once.

Versions of a dataset share most of their pages, and what lies below a page that was opened is
marked. Multihashes are handed over as arrays, a page at a time; chunks are named, not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import DAG_PB, DIGEST_SIZE, CidBytes, format_cid
from cas_zarr.errors import BlockNotFoundError, CasZarrError, CorruptBlockError
from cas_zarr.tree.chunktree import ChunkTree, TreeRef
from cas_zarr.tree.keys import parse_form
from cas_zarr.tree.node import Node, Root, Value
from cas_zarr.tree.page import Page
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import is_file

__all__ = ["Marker", "Sink"]

Sink: TypeAlias = Callable[[NDArray[np.uint8]], None]
"""Is given multihashes, (n, 34) uint8."""

_KEY_SIZE = DIGEST_SIZE + 2
_CACHE = 8  # pages: each is opened once, only a parent is looked at again


class Marker:
    """Hands over the multihashes of all blocks that roots lead to, most of them once.

    Parameters
    ----------
    blocks : BlockStore
        Where roots, pages, shards and file nodes are read.
    sink : callable
        Is given them.
    missing : "error" or "skip"
        What to do where one of these is not there. What lies below it cannot be marked then.

    Attributes
    ----------
    missing_count : int
        How many were passed over.
    """

    def __init__(
        self, blocks: BlockStore, sink: Sink, *, missing: Literal["error", "skip"] = "error"
    ) -> None:
        self._reader = TreeReader(blocks, _CACHE)
        self._sink = sink
        self._skip = missing == "skip"
        self._opened: set[CidBytes] = set()
        self._few: list[bytes] = []
        self.missing_count = 0

    def block(self, cid: CidBytes) -> None:
        """Hand over one block."""
        self._few.append(cid[-_KEY_SIZE:])
        if len(self._few) >= 512:
            self.finish()

    def finish(self) -> None:
        """Hand over what was gathered."""
        if self._few:
            few, self._few = self._few, []
            self._sink(np.frombuffer(b"".join(few), np.uint8).reshape(-1, _KEY_SIZE))

    def root(self, cid: CidBytes) -> None:
        """Hand over all blocks of a root.

        Raises
        ------
        BlockNotFoundError, CorruptBlockError, FormatError
            If a block cannot be read that links others. They name it and its node.
        """
        if self._is_new(cid):
            try:
                node = Root.from_block(self._reader.blocks.get(cid)).node
            except CasZarrError as error:
                self._lost("", cid, error)
            else:
                self._node("", node)
        self.finish()

    # ---------------------------------------------------------------------------------------

    def _is_new(self, cid: CidBytes) -> bool:
        """Hand over a block that links others; tell whether it has to be opened."""
        self.block(cid)
        if cid in self._opened:
            return False
        self._opened.add(cid)
        return True

    def _lost(self, path: str, cid: CidBytes, error: CasZarrError) -> None:
        if self._skip and isinstance(error, BlockNotFoundError):
            self.missing_count += 1
            return
        kind = type(error) if isinstance(error, CorruptBlockError | BlockNotFoundError) else None
        message = f"{path or 'root'} (block {format_cid(cid)}): {error}"
        raise (kind or CorruptBlockError)(message) from error

    def _node(self, path: str, node: Node) -> None:
        pending = [(path, node)]
        while pending:
            path, node = pending.pop()
            base = f"{path}/" if path else ""
            self._values(base, node.keys.items())
            self._values(
                base, ((name, doc) for name, doc in node.docs.items() if isinstance(doc, Value))
            )
            pending.extend((base + name, child) for name, child in node.nodes.items())
            shards = list(node.shards)
            while shards:
                ref = shards.pop()
                if not self._is_new(ref.cid):
                    continue
                try:
                    shard = self._reader.shard(ref)
                except CasZarrError as error:
                    self._lost(path, ref.cid, error)
                    continue
                shards.extend(shard.shards)
                self._values(base, shard.keys.items())
                pending.extend((base + name, child) for name, child in shard.nodes.items())
            for form, tree in node.trees.items():
                self._tree(path, form, tree)

    def _values(self, base: str, values: Iterable[tuple[str, Value]]) -> None:
        for name, value in values:
            if is_file(value.cid):
                self._file(base + name, value.cid)
            else:
                self.block(value.cid)

    def _file(self, path: str, cid: CidBytes) -> None:
        files = [cid]
        while files:
            cid = files.pop()
            if not self._is_new(cid):
                continue
            try:
                links = self._reader.file_node(cid).links
            except CasZarrError as error:
                self._lost(path, cid, error)
                continue
            for link in links:
                if is_file(link):
                    files.append(link)
                elif len(link) > _KEY_SIZE:  # else of a hash that no block here has
                    self.block(link)

    def _tree(self, path: str, form: str, ref: TreeRef) -> None:
        if ref.embedded is None and not self._is_new(ref.cid):
            return
        tree = ChunkTree(self._reader, ref, parse_form(form)[1])
        try:
            pending: list[tuple[Page, int]] = [(tree.top, 0)]
        except CasZarrError as error:
            self._lost(path, ref.cid, error)
            return
        while pending:
            page, low = pending.pop()
            if page.prefixes is None:
                self._sink(page.cids[:, -_KEY_SIZE:])
                for row in np.flatnonzero(page.cids[:, 1] == DAG_PB).tolist():
                    self._file(path, page.cid(row))
                continue
            for row in range(len(page)):
                child = page.cid(row)
                if self._is_new(child):
                    try:
                        pending.append(tree.child(page, low, row)[:2])
                    except CasZarrError as error:
                        self._lost(path, child, error)
