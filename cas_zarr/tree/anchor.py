"""Anchors: blocks that let a pin hold all of a dataset.

A small chunk tree has its top page embedded in the root document, as bytes. The links in it are
none that an IPFS node follows, so that a pin of the root alone would leave such chunks to the
node's collection of garbage. An anchor is a DAG-CBOR list of links to the root and to those pages,
stored as blocks; pinned in place of the root it holds everything. It follows from the root alone.
A root without embedded pages needs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import DAG_CBOR, CidBytes, HashFunction, Link, cid_of
from cas_zarr.codecs import dagcbor
from cas_zarr.tree.node import Node, Root
from cas_zarr.tree.shards import TreeReader

__all__ = ["Anchor", "anchor_of"]

_MOST_LINKS: Final = 8192  # of one block: some 340 KB


class Anchor:
    """What has to be pinned for a root, or a commit, to be held with all its data.

    Attributes
    ----------
    cid : CidBytes
        The anchor; the root or commit itself where it needs none.
    blocks : tuple of (CidBytes, bytes)
        What has to be stored beside the dataset, children first; the anchor is the last.
    """

    __slots__ = ("blocks", "cid")

    def __init__(self, cid: CidBytes, blocks: Sequence[tuple[CidBytes, bytes]] = ()) -> None:
        self.cid = cid
        self.blocks = tuple(blocks)


def anchor_of(
    blocks: BlockStore,
    root: CidBytes,
    *,
    commit: CidBytes | None = None,
    parents: Sequence[CidBytes] = (),
) -> Anchor:
    """Return the anchor of a root.

    Parameters
    ----------
    blocks : BlockStore
        Where the root and its shards are read; pages are not.
    root : CidBytes
    commit : CidBytes, optional
        A commit of the root, which is anchored then.
    parents : sequence of CidBytes
        The anchors of the commit's parents, where they differ from the parents themselves.
    """
    reader = TreeReader(blocks)
    document = Root.from_block(blocks.get(root))
    function = document.header.function
    top = root if commit is None else commit
    pages: dict[CidBytes, bytes] = {}
    for page in _embedded(reader, document.node):
        pages[cid_of(DAG_CBOR, function, page)] = page
    if not pages and not parents:
        return Anchor(top)
    out = list(pages.items())
    links = [top, *parents, *pages]
    while len(links) > _MOST_LINKS:
        lists = [
            _list(function, links[start : start + _MOST_LINKS])
            for start in range(0, len(links), _MOST_LINKS)
        ]
        out += lists
        links = [cid for cid, _ in lists]
    out.append(_list(function, links))
    return Anchor(out[-1][0], out)


def _list(function: HashFunction, links: Sequence[CidBytes]) -> tuple[CidBytes, bytes]:
    data = dagcbor.encode([Link(cid) for cid in links])
    return cid_of(DAG_CBOR, function, data), data


def _embedded(reader: TreeReader, node: Node) -> Iterator[bytes]:
    pending = [node]
    while pending:
        node = pending.pop()
        for tree in node.trees.values():
            if tree.embedded is not None:
                yield tree.embedded
        pending.extend(node.nodes.values())
        refs = list(node.shards)
        while refs:
            shard = reader.shard(refs.pop())
            refs.extend(shard.shards)
            pending.extend(shard.nodes.values())
