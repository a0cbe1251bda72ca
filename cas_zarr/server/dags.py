"""Walking DAGs of any IPLD data for a CAR: depth first, lazily, every block verified.

What a hostile DAG can claim costs nothing until someone reads that far: a stack of iterators, no
recursion, and a bound for its depth and for the blocks of one answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import length_hint
from typing import Any, Final

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.readonly import ReadOnlyBlocks
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    RAW,
    BytesLike,
    CidBytes,
    Link,
    as_cid_bytes,
    codec_of,
    format_cid,
)
from cas_zarr.codecs import dagcbor, dagjson, dagpb
from cas_zarr.codecs.unixfs import decode_file_node
from cas_zarr.codecs.unixfsdir import decode_directory, node_type
from cas_zarr.errors import FormatError, LimitError
from cas_zarr.tree.directories import is_inline, read_block

__all__ = ["Recorder", "dag_blocks", "decode_block", "entity_blocks", "links_of"]

MAX_DEPTH: Final = 100_000
MAX_BLOCKS: Final = 100_000_000
_BATCH: Final = 8  # leaves that are read together
_RAW: Final = bytes([1, RAW])
_LEVELS: Final = 160


class Recorder(ReadOnlyBlocks):
    """Reads another store, and remembers in order what was read: the blocks along a path."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self.read: dict[CidBytes, bytes] = {}

    # docstrings inherited

    @property
    def location(self) -> str:
        return self._blocks.location

    def _read(self, cid: CidBytes) -> BytesLike | None:
        data = self.read.get(cid)
        if data is None:
            data = self.read[cid] = self._blocks.get(cid)
        return data

    def _has(self, cid: CidBytes) -> bool:
        return self._blocks.has(cid)

    def _size(self, cid: CidBytes) -> int | None:
        return self._blocks.size(cid)


def decode_block(cid: CidBytes, data: bytes) -> Any:
    """Return the value of a dag-json or dag-cbor block; FormatError for another one."""
    codec = codec_of(cid)
    if codec == DAG_JSON:
        return dagjson.decode(data, max_depth=_LEVELS)
    if codec == DAG_CBOR:
        return dagcbor.decode(data, max_depth=_LEVELS)
    raise FormatError(f"{format_cid(cid)} is neither dag-json nor dag-cbor")


def links_of(cid: CidBytes, data: bytes) -> list[CidBytes]:
    """Return the CIDs that a block links, in the order in which they stand there.

    A block of a codec that is not known here links nothing.

    Raises
    ------
    FormatError
        If it is not what its codec says.
    """
    codec = codec_of(cid)
    if codec == DAG_PB:
        return [as_cid_bytes(link.cid) for link in dagpb.decode(data).links]
    if codec not in (DAG_JSON, DAG_CBOR):
        return []
    found: list[CidBytes] = []
    pending = [decode_block(cid, data)]
    while pending:
        value = pending.pop()
        if isinstance(value, Link):
            found.append(as_cid_bytes(value.cid))
        elif isinstance(value, list):
            pending.extend(reversed(value))
        elif isinstance(value, dict):
            pending.extend(reversed(list(value.values())))
    return found


def dag_blocks(
    blocks: BlockStore,
    root: CidBytes,
    *,
    dups: bool = False,
    seen: set[CidBytes] | None = None,
) -> Iterator[tuple[CidBytes, bytes]]:
    """Yield all blocks of a DAG, a parent before its children, depth first.

    Parameters
    ----------
    blocks : BlockStore
    root : CidBytes
    dups : bool
        Whether a block is yielded each time that the walk meets it.
    seen : set of CidBytes, optional
        What was yielded before; not again, unless `dups`.

    Raises
    ------
    BlockNotFoundError, CorruptBlockError, InvalidCIDError
        If a block is missing, damaged, or of a hash that cannot be checked.
    """
    seen = set() if seen is None else seen
    opened: set[CidBytes] = set()
    stack = [iter([root])]
    sent = 0
    while stack:
        cid = next(stack[-1], None)
        if cid is None or not length_hint(stack[-1]):
            stack.pop()  # before its last link is followed: a history may be long
        if cid is None:
            continue
        if not dups and cid in opened:
            continue
        if not dups:
            opened.add(cid)
        data = read_block(blocks, cid)
        if not is_inline(cid) and (dups or cid not in seen):
            seen.add(cid)
            sent += 1
            yield cid, data
        links = links_of(cid, data)
        if not links:
            continue
        if len(stack) >= MAX_DEPTH or sent > MAX_BLOCKS:
            raise LimitError(f"the dag below {format_cid(root)} is deeper or larger than is walked")
        if all(link.startswith(_RAW) for link in links):  # leaves: read some at a time
            for pair in _leaves(blocks, links, seen, dups):
                sent += 1
                yield pair
            continue
        stack.append(iter(links))


def _leaves(
    blocks: BlockStore, links: Sequence[CidBytes], seen: set[CidBytes], dups: bool
) -> Iterator[tuple[CidBytes, bytes]]:
    wanted = [link for link in links if not is_inline(link)]
    if not dups:
        wanted = [link for link in dict.fromkeys(wanted) if link not in seen]
    for start in range(0, len(wanted), _BATCH):
        part = wanted[start : start + _BATCH]
        for cid, data in zip(part, blocks.get_many(part), strict=True):
            seen.add(cid)
            yield cid, data


def entity_blocks(
    blocks: BlockStore,
    cid: CidBytes,
    entity: tuple[int, int | None] | None = None,
    *,
    dups: bool = False,
) -> Iterator[tuple[CidBytes, bytes]]:
    """Yield the blocks that show what a CID is: those of a file, of a range of it, of a directory.

    For anything that is no UnixFS it is the block alone. What is below a block is walked once, or a
    few blocks that link each other often would never come to an end.

    Parameters
    ----------
    blocks : BlockStore
    cid : CidBytes
    entity : (int, int or None), optional
        First and last byte that are wanted of a file, negative from its end; None is the end.
    dups : bool
        Whether what is linked twice is walked and yielded each time.
    """
    data = read_block(blocks, cid)
    yield cid, data
    if codec_of(cid) != DAG_PB:
        return
    try:
        kind = node_type(data)
    except FormatError:  # a node of others: it stands for itself
        return
    if kind == "file":
        yield from _file(blocks, data, entity, dups)
    elif kind == "shard":
        yield from _shards(blocks, data, dups)


def _file(
    blocks: BlockStore, data: bytes, entity: tuple[int, int | None] | None, dups: bool
) -> Iterator[tuple[CidBytes, bytes]]:
    top = decode_file_node(data)
    start, stop = 0, top.size
    if entity is not None:
        first, last = entity
        start = first if first >= 0 else max(0, top.size + first)
        if last is not None:
            stop = min(top.size, (last if last >= 0 else top.size + last) + 1)
        if start >= stop:
            return
    stack = [_children(data, 0, start, stop)]
    whole: set[CidBytes] = set()
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
            continue
        child, offset, size = found
        if child in whole:
            continue
        if not dups and start <= offset and offset + size <= stop:
            whole.add(child)  # nothing of it is left out, so another time shows nothing more
        block = read_block(blocks, child)
        yield child, block
        if codec_of(child) == DAG_PB:
            if len(stack) > 16:
                raise LimitError(f"file node {format_cid(child)} lies deeper than files are read")
            stack.append(_children(block, offset, start, stop))


def _children(
    data: bytes, offset: int, start: int, stop: int
) -> Iterator[tuple[CidBytes, int, int]]:
    """Yield the children of a file node that hold some of the bytes, where they begin, how many."""
    node = decode_file_node(data)
    offset += len(node.data)
    for child, size in zip(node.links, node.sizes, strict=True):
        if offset < stop and start < offset + size:
            yield child, offset, size
        offset += size


def _shards(blocks: BlockStore, data: bytes, dups: bool) -> Iterator[tuple[CidBytes, bytes]]:
    stack = [_inner(data)]
    walked: set[CidBytes] = set()
    while stack:
        cid = next(stack[-1], None)
        if cid is None:
            stack.pop()
            continue
        if cid in walked:
            continue
        if not dups:
            walked.add(cid)
        block = read_block(blocks, cid)
        yield cid, block
        if len(stack) > 64:
            raise LimitError(f"shard {format_cid(cid)} lies deeper than hashes have bits")
        stack.append(_inner(block))


def _inner(data: bytes) -> Iterator[CidBytes]:
    return iter([entry.cid for entry in decode_directory(data).entries if entry.name is None])
