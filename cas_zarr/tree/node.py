"""Nodes and root documents: all the metadata of a dataset, and the links to its chunks.

A node is a group, an array or just a folder. As canonical DAG-JSON it is a map of what it has::

    {docs: {name: text}, keys: {name: {cid, size}}, nodes: {name: node}, trees: {form: tree}}

with its children inline, so that opening a dataset is one request. Where the entries in `keys`
and `nodes` take more than 128 KiB, they are in blocks of their own, `shards` (see
`cas_zarr.tree.shards`). A root document is a node with a `header`; so is every subtree.

Nodes are never changed once they are made; a changed node is a new one that shares the rest.

Source: docs/format.md, Root documents.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, TypeAlias

from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    RAW,
    BytesLike,
    CidBytes,
    HashFunction,
    Link,
    cid_of,
    codec_of,
    format_cid,
    hash_by_name,
    hash_of,
)
from cas_zarr.codecs import dagcbor, dagjson
from cas_zarr.errors import FormatError, InvalidCIDError
from cas_zarr.tree.chunktree import EMBED_LIMIT, TreeRef, Value, embedded_ref
from cas_zarr.tree.keys import DOCUMENTS, OWNERS, check_segment, parse_form

__all__ = [
    "DOCUMENT_LIMIT",
    "EMPTY",
    "Document",
    "Header",
    "Node",
    "Root",
    "ShardRef",
    "Value",
    "chunks_in",
    "document_text",
]

DOCUMENT_LIMIT: Final = 65536
"""Longest JSON form of a document, in bytes, that stands in its node; a longer one is a link."""

VERSION: Final = 1
ROOT_TYPE: Final = "cas-zarr/root"
MAX_DEPTH: Final = 64
MAX_VALUE: Final = 1 << 63
MAX_SHARD_LEVEL: Final = 16
_JSON_DEPTH: Final = 2 * MAX_DEPTH + 16


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A link to the entries whose BLAKE3(name) begins with `bits`; `size` is their weight.

    At level 0 the block holds entries, above it references to shards of the level below.
    """

    bits: str
    cid: CidBytes
    level: int
    size: int

    def text(self) -> str:
        """Return its DAG-JSON."""
        cid = format_cid(self.cid)
        head = f'{{"bits":"{self.bits}","cid":{{"/":"{cid}"}},'
        return f'{head}"level":{self.level},"size":{self.size}}}'


Document: TypeAlias = "bytes | Value"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A group, an array or a folder.

    Attributes
    ----------
    docs : mapping of str to bytes or Value
        Metadata documents by name: their exact bytes, or a link to a long one.
    keys : mapping of str to Value
        Keys directly in this folder that are neither documents nor chunks.
    nodes : mapping of str to Node
    trees : mapping of str to TreeRef
        Chunk trees by form, as ``c/3`` (see `cas_zarr.tree.keys`).
    shards : tuple of ShardRef
        Where the entries are if they are too many; `keys` and `nodes` are empty then.
    """

    docs: Mapping[str, Document] = field(default_factory=dict)
    keys: Mapping[str, Value] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    trees: Mapping[str, TreeRef] = field(default_factory=dict)
    shards: tuple[ShardRef, ...] = ()
    _memo: dict[str, str] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.docs or self.keys or self.nodes or self.trees or self.shards)

    def text(self) -> str:
        """Return the canonical DAG-JSON of the node."""
        text = self._memo.get("text")
        if text is None:
            text = self._memo["text"] = "{" + ",".join(self._members()) + "}"
        return text

    def _members(self, header: str = "") -> Iterator[str]:
        if self.docs:
            docs = ((name, document_text(doc)) for name, doc in self.docs.items())
            yield f'"docs":{_map_text(docs)}'
        if header:
            yield f'"header":{header}'
        if self.keys:
            yield f'"keys":{_map_text((name, value.text()) for name, value in self.keys.items())}'
        if self.nodes:
            yield f'"nodes":{_map_text((name, node.text()) for name, node in self.nodes.items())}'
        if self.shards:
            yield f'"shards":[{",".join(ref.text() for ref in self.shards)}]'
        if self.trees:
            yield f'"trees":{_map_text((form, _tree_text(t)) for form, t in self.trees.items())}'

    @classmethod
    def from_value(cls, value: Any, depth: int = 0) -> Node:
        """Make the node that a decoded DAG-JSON map describes; refuse anything else."""
        members = _as_map(value, "a node")
        _only(members, {"docs", "keys", "nodes", "shards", "trees"}, "a node")
        if depth > MAX_DEPTH:
            raise FormatError(f"nodes are nested deeper than {MAX_DEPTH} levels")
        if any(not member for member in members.values()):
            raise FormatError("a node has an empty member; what is empty is left out")
        docs = {
            name: _document(doc) for name, doc in _as_map(members.get("docs", {}), "docs").items()
        }
        _only(docs, DOCUMENTS, "the documents of a node")
        keys, nodes = entries_from(members, depth)
        shards = shard_refs(members.get("shards", []))
        if shards and (keys or nodes):
            raise FormatError("a node has entries both inline and in shards")
        trees = {
            form: _tree(form, tree)
            for form, tree in _as_map(members.get("trees", {}), "trees").items()
        }
        if trees and OWNERS.isdisjoint(docs):
            raise FormatError("a node has a chunk tree and neither a zarr.json nor a .zarray")
        return cls(docs, keys, nodes, trees, shards)


EMPTY: Final = Node()


@dataclass(frozen=True, slots=True)
class Header:
    """What a root says of its format.

    Attributes
    ----------
    function : HashFunction
        The hash of the profile: every block that is written for this root has it.
    needs, needs_to_write : tuple of str
        Features that a reader, or a writer, must know.
    extra : mapping
        Anything else; ignored, and kept when the root is rewritten.
    """

    function: HashFunction = BLAKE3
    needs: tuple[str, ...] = ()
    needs_to_write: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return its canonical DAG-JSON."""
        members: dict[str, Any] = {"hash": self.function.name, "type": ROOT_TYPE}
        members["version"] = VERSION
        if self.extra:
            members["extra"] = dict(self.extra)
        if self.needs:
            members["needs"] = list(self.needs)
        if self.needs_to_write:
            members["needs_to_write"] = list(self.needs_to_write)
        return dagjson.encode(members, max_depth=_JSON_DEPTH).decode()

    @classmethod
    def from_value(cls, value: Any) -> Header:
        """Make the header that a decoded map describes.

        Raises
        ------
        FormatError
            If this release does not know its type, its version or something it needs.
        """
        members = _as_map(value, "a header")
        if members.get("type") != ROOT_TYPE:
            raise FormatError(f"a header has type {members.get('type')!r}, not {ROOT_TYPE!r}")
        version = members.get("version")
        if type(version) is not int or version != VERSION:  # true and 1.0 are equal to 1 too
            raise FormatError(
                f"the root document has format version {version!r}; this release "
                f"reads version {VERSION}; upgrade cas_zarr"
            )
        known = {"type", "version", "hash", "needs", "needs_to_write", "extra"}
        _only(members, known, "a header")
        needs = _names(members, "needs")
        if needs:
            raise FormatError(
                f"the root document needs {', '.join(needs)}, which this release does not know; "
                "upgrade cas_zarr"
            )
        extra = _as_map(members.get("extra", {}), "extra")
        if "extra" in members and not extra:
            raise FormatError("a header has an empty member; what is empty is left out")
        try:
            function = hash_by_name(str(members.get("hash")))
        except InvalidCIDError as error:
            raise FormatError(f"the root document has an unknown profile: {error}") from None
        if function.name != members.get("hash"):
            raise FormatError(f"a header has hash {members.get('hash')!r}")
        return cls(function, needs, _names(members, "needs_to_write"), extra)


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """A root document: a header and the node that it is for."""

    header: Header
    node: Node

    def to_block(self) -> bytes:
        """Encode the document."""
        members = self.node._members(self.header.text())
        return ("{" + ",".join(members) + "}").encode()

    def cid(self) -> CidBytes:
        """Return the CID of the document."""
        return cid_of(DAG_JSON, self.header.function, self.to_block())

    def subtree(self, node: Node) -> Root:
        """Return the document of a node below, with a header of its own.

        What the dataset says of itself is not the part's: `extra` stays behind.
        """
        header = self.header
        return Root(Header(header.function, header.needs, header.needs_to_write), node)

    @classmethod
    def from_block(cls, data: BytesLike) -> Root:
        """Decode and check a document.

        Raises
        ------
        FormatError
            If it is none, or one of a version or with needs that this release does not know.
        """
        value = dagjson.decode(data, max_depth=_JSON_DEPTH)
        if not isinstance(value, dict) or "header" not in value:
            raise FormatError("the block is no root document: it has no header")
        header = Header.from_value(value.pop("header"))
        return cls(header, Node.from_value(value))


def document_text(document: Document) -> str:
    """Return the DAG-JSON of a document."""
    if isinstance(document, Value):
        return document.text()
    try:
        return dagjson.encode_string(document.decode()).decode()
    except UnicodeDecodeError:
        return f'{{"/":{{"bytes":"{b64encode(document).decode().rstrip("=")}"}}}}'


def _map_text(entries: Any) -> str:
    body = (f"{dagjson.encode_string(name).decode()}:{text}" for name, text in sorted(entries))
    return "{" + ",".join(body) + "}"


def _tree_text(tree: TreeRef) -> str:
    if tree.embedded is None:
        top = f'{{"/":"{format_cid(tree.cid)}"}}'
    else:
        top = _page_text(tree.embedded)
    return f'{{"bytes":{tree.size},"chunks":{tree.chunks},"top":{top}}}'


@lru_cache(1024)
def _page_text(page: bytes) -> str:
    """Return the DAG-JSON of an embedded page: so every IPLD tool sees the links in it."""
    return dagjson.encode(dagcbor.decode(page)).decode()


# -- checks of what was decoded -------------------------------------------------------------


def entries_from(
    members: Mapping[str, Any], depth: int
) -> tuple[dict[str, Value], dict[str, Node]]:
    """Return the `keys` and `nodes` of a decoded node or shard."""
    keys = {name: _value(entry) for name, entry in _as_map(members.get("keys", {}), "keys").items()}
    nodes = {
        name: Node.from_value(entry, depth + 1)
        for name, entry in _as_map(members.get("nodes", {}), "nodes").items()
    }
    for name in (*keys, *nodes):
        check_segment(name, FormatError)
    if not DOCUMENTS.isdisjoint(keys):
        raise FormatError("a document is stored as a plain key")
    for name, node in nodes.items():
        if not node:
            raise FormatError(f"node {name!r} is empty; what is empty is not stored")
    return keys, nodes


def shard_refs(value: Any) -> tuple[ShardRef, ...]:
    """Return the references in a decoded list of shards, which must not overlap."""
    if not isinstance(value, list):
        raise FormatError("shards are not a list")
    refs: list[ShardRef] = []
    for entry in value:
        members = _as_map(entry, "a shard")
        _only(members, {"bits", "cid", "level", "size"}, "a shard")
        bits = members.get("bits")
        if not isinstance(bits, str) or len(bits) > 256 or bits.strip("01"):
            raise FormatError(f"a shard has bits {bits!r}")
        cid, level = _link(members.get("cid"), DAG_JSON), _number(members, "level")
        if level > MAX_SHARD_LEVEL or level != (refs[0].level if refs else level):
            raise FormatError(f"a shard has level {level}, unlike its neighbours or too many")
        refs.append(ShardRef(bits, cid, level, _number(members, "size")))
    for before, after in pairwise(refs):
        if after.bits < before.bits or after.bits.startswith(before.bits):
            raise FormatError("shards overlap or are out of order")
    return tuple(refs)


def _document(value: Any) -> Document:
    if isinstance(value, dict):
        return _value(value)
    document = value.encode() if isinstance(value, str) else value
    if not isinstance(document, bytes):
        raise FormatError(f"a document is {str(value)[:40]!r}, which is no text")
    text = document_text(document)
    if len(text.encode()) > DOCUMENT_LIMIT or text.startswith("{") != isinstance(value, bytes):
        raise FormatError("a document is not in the form that its length and encoding ask for")
    return document


def _value(value: Any) -> Value:
    members = _as_map(value, "a link to a value")
    _only(members, {"cid", "size"}, "a link to a value")
    cid = _link(members.get("cid"))
    if cid[0] != 1 or codec_of(cid) not in (RAW, DAG_PB, DAG_CBOR):
        raise FormatError(
            f"link {format_cid(cid)} to a value is no CIDv1 of raw, dag-pb or dag-cbor"
        )
    return Value(cid, _number(members, "size"))


def _tree(form: str, value: Any) -> TreeRef:
    parse_form(form)
    members = _as_map(value, "a chunk tree")
    _only(members, {"bytes", "chunks", "top"}, "a chunk tree")
    top = members.get("top")
    chunks, size = _number(members, "chunks"), _number(members, "bytes")
    if chunks == 0:
        raise FormatError("a chunk tree without chunks is stored; what is empty is left out")
    if isinstance(top, dict):
        page = dagcbor.encode(top)
        if len(page) > EMBED_LIMIT:
            raise FormatError(f"a page of {len(page)} bytes is embedded; at most {EMBED_LIMIT} are")
        return embedded_ref(page, chunks, size)
    return TreeRef(_link(top, DAG_CBOR), chunks, size)


def _link(value: Any, codec: int | None = None) -> CidBytes:
    if not isinstance(value, Link):
        raise FormatError(f"a document has {str(value)[:40]!r} where a link has to be")
    hash_of(value.cid)  # raises for what cannot be verified
    if codec is not None and codec_of(value.cid) != codec:
        raise FormatError(f"link {format_cid(value.cid)} has another codec than 0x{codec:x}")
    return value.cid


def _number(members: Mapping[str, Any], name: str) -> int:
    value = members.get(name)
    if type(value) is not int or not 0 <= value < MAX_VALUE:
        raise FormatError(f"a document has {name} {str(value)[:40]!r}, not a size below 2**63")
    return value


def _names(members: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = members.get(name, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise FormatError(f"a header has {name} that is no list of names")
    if name in members and not value:
        raise FormatError("a header has an empty member; what is empty is left out")
    return tuple(value)


def _as_map(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is no map")
    return value


def _only(members: Mapping[str, Any], known: Any, what: str) -> None:
    for name in members:
        if name not in known:
            raise FormatError(f"{what} has {name[:40]!r}, which format version 1 does not know")


def chunks_in(node: Node) -> int:
    """Count the chunks in a node and below it that are known without opening a block."""
    return sum(tree.chunks for tree in node.trees.values()) + sum(
        chunks_in(inner) for inner in node.nodes.values()
    )
