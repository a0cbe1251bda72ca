"""Walking all blocks of a root from below: what a block links comes before it.

So is a dataset sent to where blocks may be lost on the way: whoever holds a block of the tree holds
all below it, and a question about that one block tells whether its subtree has to be sent.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import DAG_PB, CidBytes, CidLike, as_cid_bytes
from cas_zarr.errors import FormatError
from cas_zarr.tree.chunktree import ChunkTree, TreeRef
from cas_zarr.tree.descent import CHUNKS, descend, matches
from cas_zarr.tree.earlier import Earlier, not_had
from cas_zarr.tree.keys import MAX_DEPTH, parse_form
from cas_zarr.tree.morton import search
from cas_zarr.tree.node import Node, Root, ShardRef, Value
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.table import Table
from cas_zarr.tree.values import is_file

__all__ = ["Has", "upward"]

Has: TypeAlias = Callable[[CidBytes], bool]
"""Tells whether a block, and with it all below it, is there already. Threads call it."""

_REMEMBERED: Final = 1 << 16  # values: some MB, and enough that equal chunks come once
_ASKED: Final = 64  # files that are asked for at once
_MAX_FILE_DEPTH: Final = 16


def upward(
    blocks: BlockStore,
    root: CidLike,
    *,
    since: CidLike | None = None,
    since_blocks: BlockStore | None = None,
    has: Has | None = None,
) -> Iterator[CidBytes]:
    """Yield every block that a root leads to, each after all that it links, the root last.

    Lazily, and in memory that does not grow with the number of chunks: of the values that came
    some tens of thousands are remembered, so one of them may come again after so many others. A
    block of the tree comes once. Values are named, not read.

    Parameters
    ----------
    blocks : BlockStore
        Where the root, its shards, pages and file nodes are read.
    root : CID
        A root document.
    since : CID, optional
        Another root, all of whose blocks are there already. What it has at the same place is
        neither yielded nor opened.
    since_blocks : BlockStore, optional
        Where `since` is read; without it in `blocks`. A block below it that cannot be read is taken
        for one that it does not have.
    has : callable, optional
        Asked for the root, shards, pages and file nodes. Where it says yes, the block and all below
        it is left out.
    """
    cid = as_cid_bytes(root)
    old = None if since is None else as_cid_bytes(since)
    return _Upward(blocks, since_blocks or blocks, has).run(cid, old)


class _Upward:
    def __init__(self, blocks: BlockStore, since_blocks: BlockStore, has: Has | None) -> None:
        self.reader = TreeReader(blocks)
        self.since = Earlier(self.reader if since_blocks is blocks else TreeReader(since_blocks))
        self.has = has
        self.done: set[CidBytes] = set()  # shards and pages
        self.recent: OrderedDict[CidBytes, None] = OrderedDict()  # values

    def run(self, cid: CidBytes, since: CidBytes | None) -> Iterator[CidBytes]:
        if cid == since or self._had(cid):
            return
        old = None if since is None else Root.from_block(self.since.reader.blocks.get(since)).node
        yield from self._node(Root.from_block(self.reader.blocks.get(cid)).node, old, 0)
        yield cid

    def _had(self, cid: CidBytes) -> bool:
        return self.has is not None and self.has(cid)

    # -- nodes ------------------------------------------------------------------------------

    def _node(self, node: Node, old: Node | None, depth: int) -> Iterator[CidBytes]:
        if depth > MAX_DEPTH:
            raise FormatError(f"nodes are nested deeper than {MAX_DEPTH} levels")
        if old is not None and old.text() == node.text():
            return
        for name, document in node.docs.items():
            if isinstance(document, Value):
                other = None if old is None else old.docs.get(name)
                yield from self._value(document, other if isinstance(other, Value) else None)
        yield from self._entries(node.keys, node.nodes, old, depth)
        yield from self._shards(node.shards, () if old is None else old.shards, old, depth)
        for form, tree in node.trees.items():
            yield from self._tree(form, tree, None if old is None else old.trees.get(form))

    def _entries(
        self,
        keys: Mapping[str, Value],
        nodes: Mapping[str, Node],
        old: Node | None,
        depth: int,
    ) -> Iterator[CidBytes]:
        for name, value in keys.items():
            yield from self._value(value, self.since.key(old, name))
        for name, node in nodes.items():
            yield from self._node(node, self.since.child(old, name), depth + 1)

    def _shards(
        self, refs: Sequence[ShardRef], known: Sequence[ShardRef], old: Node | None, depth: int
    ) -> Iterator[CidBytes]:
        if not refs:
            return
        while known and known[0].level > refs[0].level:
            known = self.since.below(known, ())
        shared = frozenset(known)
        below: Sequence[ShardRef] | None = None
        for ref in refs:
            if ref in shared or ref.cid in self.done:
                continue
            self.done.add(ref.cid)
            if self._had(ref.cid):
                continue
            shard = self.reader.shard(ref)
            if shard.shards:
                if below is None:
                    alike = bool(known) and known[0].level == ref.level
                    below = self.since.below(known, frozenset(refs)) if alike else known
                yield from self._shards(shard.shards, below, old, depth)
            yield from self._entries(shard.keys, shard.nodes, old, depth)
            yield ref.cid

    # -- values -----------------------------------------------------------------------------

    def _once(self, cid: CidBytes) -> bool:
        """Tell whether a value is none of those that came lately, and remember it."""
        if cid in self.recent:
            self.recent.move_to_end(cid)
            return False
        self.recent[cid] = None
        if len(self.recent) > _REMEMBERED:
            self.recent.popitem(last=False)
        return True

    def _value(
        self, value: Value, old: Value | None = None, *, asked: bool = False
    ) -> Iterator[CidBytes]:
        cid, size = value
        if (old is not None and old.cid == cid) or not self._once(cid):
            return
        if not is_file(cid):
            yield cid
        elif asked or not self._had(cid):
            yield from self._file(cid, size, self.since.file_blocks(old), 0)

    def _file(
        self, cid: CidBytes, size: int, had: frozenset[CidBytes], depth: int
    ) -> Iterator[CidBytes]:
        """Yield the blocks of a file that has to be sent, its top node last."""
        node = self.reader.file_node(cid)
        if node.size != size or depth > _MAX_FILE_DEPTH:
            raise FormatError(
                f"a file claims {size} bytes where it has {node.size}, or is too deep"
            )
        for child, length in zip(node.links, node.sizes, strict=True):
            if child in had or not self._once(child):
                continue
            if not is_file(child):
                yield child
            elif not self._had(child):
                yield from self._file(child, length, had, depth + 1)
        yield cid

    # -- chunks -----------------------------------------------------------------------------

    def _tree(self, form: str, ref: TreeRef, old: TreeRef | None) -> Iterator[CidBytes]:
        if old is not None and old.cid == ref.cid:
            return
        _, ndim = parse_form(form)
        tree = ChunkTree(self.reader, ref, ndim)
        if ref.embedded is None:
            if ref.cid in self.done:
                return
            self.done.add(ref.cid)
            if self._had(ref.cid):
                return
        steps = descend(
            tree,
            None if old is None else ChunkTree(self.since.reader, old, ndim),
            only_a=True,
            fresh=(pages := _Pages(self, tree)).chosen,
            on_error=(None, not_had),
        )
        for level, rows, others in steps:
            if len(rows) == 0:
                continue
            if level != CHUNKS:
                yield from pages.settled(int(rows.codes[0]))
                pages.add(level, rows)
                continue
            start = 0
            while start < len(rows):  # those of one leaf after the other, and then the leaf
                yield from pages.settled(int(rows.codes[start]))
                end = pages.next_end()
                stop = len(rows) if end is None else search(rows.codes, end)
                yield from self._chunks(rows.take(slice(start, stop)), others)
                start = stop
        yield from pages.settled(None)
        if ref.embedded is None:
            yield ref.cid

    def _chunks(self, rows: Table, others: Table) -> Iterator[CidBytes]:
        sizes = rows.sizes.tolist()
        files = np.flatnonzero(rows.cids[:, 1] == DAG_PB).tolist()
        before: dict[int, Value] = {}
        if files:
            for row, old in zip(*matches(rows.codes, others.codes), strict=True):
                cid = CidBytes(others.cids[old].tobytes())
                before[int(row)] = Value(cid, int(others.sizes[old]))
        waiting = deque(files)
        held: set[CidBytes] = set()
        until = -1
        for row, size in enumerate(sizes):
            cid = CidBytes(rows.cids[row].tobytes())
            if self.has is not None and waiting and waiting[0] == row and row > until:
                part = [waiting[i] for i in range(min(_ASKED, len(waiting)))]
                until = part[-1]
                found = dict.fromkeys(CidBytes(rows.cids[one].tobytes()) for one in part)
                cids = [one for one in found if one not in self.recent]
                answers = map_waiting(self.has, cids)
                held = {one for one, there in zip(cids, answers, strict=True) if there}
            if waiting and waiting[0] == row:
                waiting.popleft()
                if cid in held:
                    self._once(cid)
                    continue
            yield from self._value(Value(cid, size), before.get(row), asked=True)


class _Pages:
    """The pages of a tree that were met on the way down and come on the way up."""

    def __init__(self, walk: _Upward, tree: ChunkTree) -> None:
        self.walk = walk
        self.bits = tree.bits
        self.waiting: dict[int, deque[tuple[int, CidBytes]]] = {}
        self.open: set[CidBytes] = set()

    def add(self, level: int, rows: Table) -> None:
        """Take up the pages of a level that were not met before and are not there yet."""
        done, has = self.walk.done, self.walk.has
        ends = [
            code + (1 << self.bits - length)
            for code, length in zip(rows.codes.tolist(), rows.prefixes.tolist(), strict=True)
        ]
        fresh: dict[CidBytes, int] = {}
        for cid, end in zip(rows.cids, ends, strict=True):
            page = CidBytes(cid.tobytes())
            if page not in done:
                done.add(page)
                fresh[page] = end
        if has is not None and fresh:
            answers = map_waiting(has, list(fresh))
            pairs = zip(list(fresh.items()), answers, strict=True)
            fresh = {cid: end for (cid, end), there in pairs if not there}
        self.open.update(fresh)
        self.waiting.setdefault(level, deque()).extend((end, cid) for cid, end in fresh.items())

    def chosen(self, rows: Table) -> Table:
        """Return those of some pages that are to be opened: each once."""
        keep = np.zeros(len(rows), bool)
        for row, cid in enumerate(rows.cids):
            page = CidBytes(cid.tobytes())
            if page in self.open:
                self.open.discard(page)
                keep[row] = True
        return rows.take(keep)

    def next_end(self) -> int | None:
        """Return where the next box ends, None where no page waits."""
        return min((waiting[0][0] for waiting in self.waiting.values() if waiting), default=None)

    def settled(self, code: int | None) -> Iterator[CidBytes]:
        """Yield the pages whose box lies below `code`: all in it has come. All for None."""
        for level in sorted(self.waiting):
            waiting = self.waiting[level]
            while waiting and (code is None or waiting[0][0] <= code):
                yield waiting.popleft()[1]
