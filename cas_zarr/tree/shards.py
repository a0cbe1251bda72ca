"""Large folders: the entries of a node in blocks of their own.

Where the entries (`keys` and `nodes`) of a node weigh more than 128 KiB, each maximal binary prefix
of BLAKE3(name) whose entries weigh at most that (or have a single name) makes a shard. An entry
weighs the bytes of its DAG-JSON and a comma. The list of shards is split by the same rule where
it is itself too long. So the blocks follow from the entries alone, and a change rewrites one.

Source: docs/format.md, Shards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import BLAKE3, DAG_JSON, CidBytes, HashFunction, cid_of
from cas_zarr.codecs import dagjson
from cas_zarr.codecs.unixfs import FileNode, decode_file_node
from cas_zarr.errors import FormatError
from cas_zarr.tree.directories import read_block
from cas_zarr.tree.node import Node, ShardRef, Value, entries_from, shard_refs
from cas_zarr.tree.page import PageReader, remember

__all__ = [
    "SHARD_LIMIT",
    "Entry",
    "TreeReader",
    "differing_entries",
    "edit_entries",
    "get_child",
    "get_key",
    "iter_entries",
    "name_bits",
    "shard_cids",
]

SHARD_LIMIT: Final = 131072
"""Greatest weight, in bytes, of entries that stay together."""

SHARD_TYPE: Final = "cas-zarr/shard"
VERSION: Final = 1
_HEADER: Final = '"header":{"type":"cas-zarr/shard","version":1}'

Entry: TypeAlias = "Value | Node"


@dataclass(frozen=True, slots=True)
class _Shard:
    """A decoded shard: entries (level 0), or references to shards of the level below."""

    keys: Mapping[str, Value]
    nodes: Mapping[str, Node]
    shards: tuple[ShardRef, ...]
    weight: int


class TreeReader(PageReader):
    """Reads pages, shards and file nodes of a block store and remembers some of each."""

    __slots__ = ("_files", "_shards")

    def __init__(self, blocks: BlockStore, capacity: int = 256) -> None:
        super().__init__(blocks, capacity)
        self._shards: OrderedDict[ShardRef, _Shard] = OrderedDict()
        self._files: OrderedDict[CidBytes, FileNode] = OrderedDict()

    def shard(self, ref: ShardRef) -> _Shard:
        """Return a decoded shard, checked to hold what its reference says."""
        shard = self._shards.get(ref)
        if shard is None:
            shard = _decode(self.blocks.get(ref.cid))
            self._check(ref, shard)
            remember(self._shards, ref, shard, 32)
        return shard

    @staticmethod
    def _check(ref: ShardRef, shard: _Shard) -> None:
        if shard.weight != ref.size:
            raise FormatError(f"a shard weighs {shard.weight} where its link says {ref.size}")
        for name in (*shard.keys, *shard.nodes):
            if not name_bits(name).startswith(ref.bits):
                raise FormatError(f"a shard for names of {ref.bits!r} holds {name[:40]!r}")
        for inner in shard.shards:
            if not inner.bits.startswith(ref.bits) or inner.level != ref.level - 1:
                raise FormatError(f"a shard for names of {ref.bits!r} links {inner.bits!r}")
        if bool(ref.level) != bool(shard.shards):
            raise FormatError(f"a shard for names of {ref.bits!r} is not of level {ref.level}")

    def knows_file_node(self, cid: CidBytes) -> bool:
        """Tell whether an inner node of a value is remembered."""
        return cid in self._files

    def file_node(self, cid: CidBytes) -> FileNode:
        """Return a decoded inner node of a value of more than one leaf."""
        node = self._files.get(cid)
        if node is None:
            node = decode_file_node(read_block(self.blocks, cid))
            remember(self._files, cid, node, 64)
        return node


def name_bits(name: str) -> str:
    """Return the 256 bits of BLAKE3(name) as text."""
    data = name.encode("utf-8", "surrogatepass")  # no name has a surrogate, but one may ask
    return f"{int.from_bytes(BLAKE3.digest(data), 'big'):0256b}"


def get_child(reader: TreeReader, node: Node, name: str) -> Node | None:
    """Return the child node of that name."""
    if not node.shards:
        return node.nodes.get(name)
    shard = _shard_for(reader, node.shards, name)
    return None if shard is None else shard.nodes.get(name)


def get_key(reader: TreeReader, node: Node, name: str) -> Value | None:
    """Return the plain key of that name in a folder."""
    if not node.shards:
        return node.keys.get(name)
    shard = _shard_for(reader, node.shards, name)
    return None if shard is None else shard.keys.get(name)


def iter_entries(reader: TreeReader, node: Node) -> Iterator[tuple[str, Entry]]:
    """Yield all entries of a node; those in shards a shard at a time."""
    yield from node.keys.items()
    yield from node.nodes.items()
    for ref in _leaf_refs(reader, node.shards):
        shard = reader.shard(ref)
        yield from shard.keys.items()
        yield from shard.nodes.items()


def differing_entries(
    reader_a: TreeReader, a: Node, reader_b: TreeReader, b: Node
) -> tuple[dict[str, list[Entry]], dict[str, list[Entry]]]:
    """Return the entries of two nodes by name, without those in shards that both have."""
    opened = _differing_refs(reader_a, list(a.shards), reader_b, list(b.shards))
    out: tuple[dict[str, list[Entry]], dict[str, list[Entry]]] = ({}, {})
    for side, (reader, node) in enumerate(((reader_a, a), (reader_b, b))):
        places: list[tuple[Mapping[str, Entry], Mapping[str, Entry]]] = [(node.keys, node.nodes)]
        for ref in opened[side]:
            shard = reader.shard(ref)
            places.append((shard.keys, shard.nodes))
        for keys, nodes in places:
            for entries in (keys, nodes):
                for name, entry in entries.items():
                    out[side].setdefault(name, []).append(entry)
    return out


def _differing_refs(
    reader_a: TreeReader, a: list[ShardRef], reader_b: TreeReader, b: list[ShardRef]
) -> tuple[list[ShardRef], list[ShardRef]]:
    """Return the shards of entries of two lists of shards, without what both lists have."""
    while True:
        shared = set(a) & set(b)
        if shared:
            a = [ref for ref in a if ref not in shared]
            b = [ref for ref in b if ref not in shared]
        level = max((ref.level for ref in (*a[:1], *b[:1])), default=0)
        if level == 0:
            return a, b
        if a and a[0].level == level:
            a = [inner for ref in a for inner in reader_a.shard(ref).shards]
        if b and b[0].level == level:
            b = [inner for ref in b for inner in reader_b.shard(ref).shards]


def shard_cids(reader: TreeReader, node: Node) -> Iterator[CidBytes]:
    """Yield the CIDs of all shards of a node, those that list others before them."""
    pending = list(node.shards)
    while pending:
        ref = pending.pop()
        yield ref.cid
        if ref.level:
            pending.extend(reader.shard(ref).shards)


def edit_entries(
    reader: TreeReader,
    function: HashFunction,
    node: Node,
    keys: Mapping[str, Value | None],
    nodes: Mapping[str, Node | None],
) -> Node:
    """Return a node with the documents and trees of `node` and some entries set or removed.

    Only the shards that hold one of them (or have to be joined) are read and written.
    """
    if not node.shards:
        merged_keys, merged_nodes = _merged(node.keys, keys), _merged(node.nodes, nodes)
        items = [*map(_key_item, merged_keys.items()), *map(_node_item, merged_nodes.items())]
        if sum(item.weight for item in items) <= SHARD_LIMIT:
            return Node(node.docs, merged_keys, merged_nodes, node.trees)
        buckets = [_Bucket("", _weight(items), items)]
    else:
        buckets = _edited_buckets(reader, node, keys, nodes)
        if sum(bucket.weight for bucket in buckets) <= SHARD_LIMIT:
            items = [item for bucket in buckets for item in _items_of(reader, bucket)]
            return Node(
                node.docs,
                {item.name: item.entry for item in items if isinstance(item.entry, Value)},
                {item.name: item.entry for item in items if isinstance(item.entry, Node)},
                node.trees,
            )
    refs = [_store(reader, function, bucket, 0) for bucket in _distribute(reader, "", buckets)]
    return Node(node.docs, {}, {}, node.trees, _fold_refs(reader, function, refs))


# -- the partition --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Item:
    """An entry, or a reference to a shard, with the bits that place it and its weight."""

    name: str
    bits: str
    text: str
    entry: Entry | ShardRef

    @property
    def weight(self) -> int:
        return len(self.text.encode()) + 1


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What lies under one prefix: items in hand, or a shard that was not opened."""

    bits: str
    weight: int
    items: list[_Item] | None
    ref: ShardRef | None = None


def _distribute(reader: TreeReader, bits: str, buckets: list[_Bucket]) -> list[_Bucket]:
    """Regroup buckets, all below the prefix `bits`, into one for each shard that has to be."""
    buckets = [bucket for bucket in buckets if bucket.weight]
    weight = sum(bucket.weight for bucket in buckets)
    single = len(buckets) == 1 and (
        weight > SHARD_LIMIT
        if buckets[0].items is None
        else len({item.bits for item in buckets[0].items}) == 1
    )
    if weight <= SHARD_LIMIT or single:
        if not buckets:
            return []
        if len(buckets) == 1 and buckets[0].bits == bits and buckets[0].items is None:
            return buckets
        items = [item for bucket in buckets for item in _items_of(reader, bucket)]
        return [_Bucket(bits, weight, items)]
    sides: tuple[list[_Bucket], list[_Bucket]] = ([], [])
    depth = len(bits)
    for bucket in buckets:
        if len(bucket.bits) > depth:
            sides[bucket.bits[depth] == "1"].append(bucket)
        else:
            items = _items_of(reader, bucket)
            for side in (0, 1):
                part = [item for item in items if (item.bits[depth] == "1") == side]
                sides[side].append(_Bucket(f"{bits}{side}", _weight(part), part))
    return [
        *_distribute(reader, bits + "0", sides[0]),
        *_distribute(reader, bits + "1", sides[1]),
    ]


def _edited_buckets(
    reader: TreeReader,
    node: Node,
    keys: Mapping[str, Value | None],
    nodes: Mapping[str, Node | None],
) -> list[_Bucket]:
    refs = list(_leaf_refs(reader, node.shards))
    touched: dict[int, tuple[dict[str, Value | None], dict[str, Node | None]]] = {}
    fresh: list[_Item] = []
    for name, value in keys.items():
        row = _row_for(refs, name)
        if row is not None:
            touched.setdefault(row, ({}, {}))[0][name] = value
        elif value is not None:
            fresh.append(_key_item((name, value)))
    for name, child in nodes.items():
        row = _row_for(refs, name)
        if row is not None:
            touched.setdefault(row, ({}, {}))[1][name] = child
        elif child is not None:
            fresh.append(_node_item((name, child)))
    buckets = []
    for row, ref in enumerate(refs):
        if row not in touched:
            buckets.append(_Bucket(ref.bits, ref.size, None, ref))
            continue
        shard = reader.shard(ref)
        items = [
            *map(_key_item, _merged(shard.keys, touched[row][0]).items()),
            *map(_node_item, _merged(shard.nodes, touched[row][1]).items()),
        ]
        buckets.append(_Bucket(ref.bits, _weight(items), items))
    buckets.extend(_Bucket(item.bits, item.weight, [item]) for item in fresh)
    return buckets


def _items_of(reader: TreeReader, bucket: _Bucket) -> list[_Item]:
    if bucket.items is not None:
        return bucket.items
    assert bucket.ref is not None
    shard = reader.shard(bucket.ref)
    return [*map(_key_item, shard.keys.items()), *map(_node_item, shard.nodes.items())]


def _fold_refs(
    reader: TreeReader, function: HashFunction, refs: list[ShardRef]
) -> tuple[ShardRef, ...]:
    """Put a list of shards that is too long into shards itself, until it is not."""
    items = [_Item("", ref.bits, ref.text(), ref) for ref in refs]
    if _weight(items) <= SHARD_LIMIT:
        return tuple(refs)
    buckets = _distribute(reader, "", [_Bucket("", _weight(items), items)])
    level = refs[0].level + 1
    return _fold_refs(reader, function, [_store(reader, function, each, level) for each in buckets])


def _store(reader: TreeReader, function: HashFunction, bucket: _Bucket, level: int) -> ShardRef:
    if bucket.items is None:
        assert bucket.ref is not None
        return bucket.ref
    texts: dict[str, list[str]] = {"keys": [], "nodes": [], "shards": []}
    for item in sorted(bucket.items, key=lambda item: (item.name, item.bits)):
        kind = {Value: "keys", Node: "nodes", ShardRef: "shards"}[type(item.entry)]
        texts[kind].append(item.text)
    members = [_HEADER]
    for kind, brackets in {"keys": "{}", "nodes": "{}", "shards": "[]"}.items():
        if texts[kind]:
            members.append(f'"{kind}":{brackets[0]}{",".join(texts[kind])}{brackets[1]}')
    data = ("{" + ",".join(members) + "}").encode()
    cid = cid_of(DAG_JSON, function, data)
    reader.blocks.put(cid, data)
    return ShardRef(bucket.bits, cid, level, bucket.weight)


# -- small parts ----------------------------------------------------------------------------


def _shard_for(reader: TreeReader, refs: tuple[ShardRef, ...], name: str) -> _Shard | None:
    bits = name_bits(name)
    while True:
        ref = next((ref for ref in refs if bits.startswith(ref.bits)), None)
        if ref is None:
            return None
        shard = reader.shard(ref)
        if not shard.shards:
            return shard
        refs = shard.shards


def _leaf_refs(reader: TreeReader, refs: tuple[ShardRef, ...]) -> Iterator[ShardRef]:
    for ref in refs:
        if ref.level:
            yield from _leaf_refs(reader, reader.shard(ref).shards)
        else:
            yield ref


def _row_for(refs: list[ShardRef], name: str) -> int | None:
    bits = name_bits(name)
    low, high = 0, len(refs)
    while low < high:  # the last whose bits are not above
        middle = (low + high) // 2
        if refs[middle].bits <= bits:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low and bits.startswith(refs[low - 1].bits) else None


def _merged(old: Mapping[str, Any], edits: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: entry for name, entry in old.items() if name not in edits}
    merged.update((name, entry) for name, entry in edits.items() if entry is not None)
    return merged


def _key_item(entry: tuple[str, Value]) -> _Item:
    return _item(entry[0], entry[1])


def _node_item(entry: tuple[str, Node]) -> _Item:
    return _item(entry[0], entry[1])


def _item(name: str, entry: Entry) -> _Item:
    text = f"{dagjson.encode_string(name).decode()}:{entry.text()}"
    return _Item(name, name_bits(name), text, entry)


def _weight(items: list[_Item]) -> int:
    return sum(item.weight for item in items)


def _decode(data: bytes) -> _Shard:
    value = dagjson.decode(data, max_depth=160)
    header = value.pop("header", None) if isinstance(value, dict) else None
    if not isinstance(header, dict) or header.get("type") != SHARD_TYPE:
        raise FormatError("a link to a shard leads to a block that is none")
    version = header.get("version")
    if type(version) is not int or version != VERSION or len(header) != 2:
        raise FormatError(f"a shard has header {header!r:.80}; this release reads {VERSION}")
    if not set(value) <= {"keys", "nodes", "shards"} or not all(value.values()):
        raise FormatError("a shard has members that format version 1 does not know, or empty ones")
    keys, nodes = entries_from(value, 0)
    shards = shard_refs(value.get("shards", []))
    if bool(shards) == bool(keys or nodes):
        raise FormatError("a shard has to hold either entries or shards")
    # the block is canonical, so what is not framing are the entries and the commas between them
    framing = len("{}") + len(_HEADER) + sum(len(f',"{kind}":{{}}') - 1 for kind in value)
    return _Shard(keys, nodes, shards, len(data) - framing)
