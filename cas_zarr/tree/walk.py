"""Walking all blocks that a root links to, or those that an earlier root does not link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import DAG_PB, CidBytes, CidLike, as_cid_bytes
from cas_zarr.errors import CasZarrError, FormatError
from cas_zarr.tree.chunktree import ChunkTree, TreeRef
from cas_zarr.tree.descent import CHUNKS, descend, matches
from cas_zarr.tree.earlier import Earlier, not_had
from cas_zarr.tree.keys import MAX_DEPTH, chunk_names, parse_form
from cas_zarr.tree.morton import decode
from cas_zarr.tree.node import Node, Root, ShardRef, Value
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.table import Table
from cas_zarr.tree.values import file_blocks, is_file

__all__ = ["OnError", "reachable"]


OnError: TypeAlias = Callable[[str, CidBytes, CasZarrError], None]


def reachable(
    blocks: BlockStore,
    root: CidLike,
    *,
    values: bool = True,
    since: CidLike | None = None,
    since_blocks: BlockStore | None = None,
    on_error: OnError | None = None,
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
    since : CID, optional
        Another root, all of whose blocks are had already. What it has at the same place is neither
        yielded nor opened, so that the walk costs what changed. Together with what `since` leads
        to, what is yielded is all that `root` leads to.
    since_blocks : BlockStore, optional
        Where `since` and its blocks are read; without it in `blocks`. A block below it that cannot
        be read is taken for one that it does not have.
    on_error : callable, optional
        Called with path, CID and error for a block of the tree that cannot be read; the walk goes
        on with what does not lie below it. Without it the error is raised.
    """
    walk = _Walk(TreeReader(blocks), values, on_error)
    cid = as_cid_bytes(root)
    if since is None:
        return walk.run(cid, None)
    old = as_cid_bytes(since)
    if since_blocks is not None and since_blocks is not blocks:
        walk.since = Earlier(TreeReader(since_blocks))
    return walk.run(cid, old) if old != cid else iter(())


class _Walk:
    def __init__(self, reader: TreeReader, values: bool, on_error: OnError | None) -> None:
        self.reader = reader
        self.since = Earlier(reader)
        self.values = values
        self.on_error = on_error
        self.seen: set[CidBytes] = set()
        self.opened: set[CidBytes] = set()  # pages: a value may have the CID of one

    def run(self, cid: CidBytes, since: CidBytes | None) -> Iterator[tuple[str, CidBytes]]:
        old = None if since is None else Root.from_block(self.since.reader.blocks.get(since)).node
        yield from self._once("", cid)
        pending: list[tuple[str, Node, Node | None]] = []
        with self._guard("", cid):
            pending.append(("", Root.from_block(self.reader.blocks.get(cid)).node, old))
        while pending:
            path, node, old = pending.pop()
            if path.count("/") > MAX_DEPTH:
                raise FormatError(f"nodes are nested deeper than {MAX_DEPTH} levels")
            if old is not None and old.text() == node.text():
                continue
            base = f"{path}/" if path else ""
            for name, document in node.docs.items():
                if isinstance(document, Value):
                    other = None if old is None else old.docs.get(name)
                    was = other if isinstance(other, Value) else None
                    yield from self._value(base + name, document, was)
            yield from self._entries(base, node.keys, node.nodes, old, pending)
            yield from self._shards(path, node, old, pending)
            for form, tree in node.trees.items():
                yield from self._tree(path, form, tree, old.trees.get(form) if old else None)

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

    # -- folders ----------------------------------------------------------------------------

    def _entries(
        self,
        base: str,
        keys: Mapping[str, Value],
        nodes: Mapping[str, Node],
        old: Node | None,
        pending: list[tuple[str, Node, Node | None]],
    ) -> Iterator[tuple[str, CidBytes]]:
        for name, node in nodes.items():
            pending.append((base + name, node, self.since.child(old, name)))
        if not self.values:
            return
        for name, value in keys.items():
            yield from self._value(base + name, value, self.since.key(old, name))

    def _shards(
        self,
        path: str,
        node: Node,
        old: Node | None,
        pending: list[tuple[str, Node, Node | None]],
    ) -> Iterator[tuple[str, CidBytes]]:
        base = f"{path}/" if path else ""
        refs, known = list(node.shards), list(old.shards) if old is not None else []
        while refs:
            while known and known[0].level > refs[0].level:
                known = self.since.below(known, ())
            shared = set(known)
            inner: list[ShardRef] = []
            for ref in refs:
                if ref in shared:
                    continue
                yield from self._once(path, ref.cid)
                with self._guard(path, ref.cid):
                    shard = self.reader.shard(ref)
                    inner.extend(shard.shards)
                    yield from self._entries(base, shard.keys, shard.nodes, old, pending)
            if known and known[0].level == refs[0].level:
                known = self.since.below(known, set(refs))
            refs = inner

    # -- values and chunks ------------------------------------------------------------------

    def _value(
        self, key: str, value: Value, old: Value | None = None
    ) -> Iterator[tuple[str, CidBytes]]:
        cid, size = value
        if not self.values or cid in self.seen or (old is not None and old.cid == cid):
            return
        if not is_file(cid):
            self.seen.add(cid)
            yield key, cid
            return
        had = self.since.file_blocks(old)
        with self._guard(key, cid):
            for block in file_blocks(self.reader, cid, size):
                if block not in had:
                    yield from self._once(key, block)

    def _tree(
        self, path: str, form: str, ref: TreeRef, old: TreeRef | None
    ) -> Iterator[tuple[str, CidBytes]]:
        if old is not None and old.cid == ref.cid:
            return
        kind, ndim = parse_form(form)
        tree = ChunkTree(self.reader, ref, ndim)
        if ref.embedded is None:
            if ref.cid in self.opened:
                return
            self.opened.add(ref.cid)
            yield from self._once(path, ref.cid)

        def unread(cid: CidBytes, error: CasZarrError) -> None:
            if self.on_error is None:
                raise error
            self.on_error(path, cid, error)

        steps = descend(
            tree,
            None if old is None else ChunkTree(self.since.reader, old, ndim),
            only_a=True,
            fresh=self._fresh,
            on_error=(unread, not_had),
        )
        for level, rows, others in steps:
            if level == CHUNKS:
                if self.values:
                    yield from self._chunks(path, kind, ndim, rows, others)
                continue
            for cid in rows.cids:
                yield from self._once(path, CidBytes(cid.tobytes()))

    def _fresh(self, rows: Table) -> Table:
        """Return the pages that were not opened yet: some trees hold one many times."""
        keep = np.ones(len(rows), bool)
        for row, cid in enumerate(rows.cids):
            page = CidBytes(cid.tobytes())
            keep[row] = page not in self.opened
            self.opened.add(page)
        return rows.take(keep)

    def _chunks(
        self, path: str, kind: str, ndim: int, rows: Table, others: Table
    ) -> Iterator[tuple[str, CidBytes]]:
        base = f"{path}/" if path else ""
        sizes = rows.sizes.tolist()
        before: dict[int, Value] = {}
        if (rows.cids[:, 1] == DAG_PB).any():
            for row, old in zip(*matches(rows.codes, others.codes), strict=True):
                cid = CidBytes(others.cids[old].tobytes())
                before[int(row)] = Value(cid, int(others.sizes[old]))
        for row, name in enumerate(chunk_names(kind, decode(rows.codes, ndim))):
            value = Value(CidBytes(rows.cids[row].tobytes()), sizes[row])
            yield from self._value(base + name, value, before.get(row))
