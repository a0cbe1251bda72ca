"""What the nodes of a dataset are, read from its root document without opening a chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import CidLike, as_cid_bytes
from cas_zarr.errors import FormatError, NotFoundError
from cas_zarr.tree.keys import MAX_DEPTH
from cas_zarr.tree.node import EMPTY, Node, Root, Value
from cas_zarr.tree.shards import TreeReader, get_child, iter_entries
from cas_zarr.tree.values import read_value

__all__ = ["NodeInfo", "describe", "describe_node", "iter_nodes", "unfold"]


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A group, an array, or a folder that is neither.

    Attributes
    ----------
    path : str
        "" for the root.
    kind : str
        ``group``, ``array`` or ``folder``.
    zarr_format : int or None
        2 or 3; 3 where a node has the documents of both.
    shape, chunk_shape : tuple of int or None
        Of an array; None where its metadata does not say so, as with a chunk grid of an extension.
    data_type : str or None
        As the metadata has it.
    codecs : tuple of str
        Names of filters, compressors and codecs, in order.
    chunks, size : int
        Chunks that are stored, and the bytes of their values.
    documents : mapping of str to Any
        Metadata documents by name, decoded; text or bytes where they are no JSON.
    attributes : mapping
        User attributes.
    """

    path: str
    kind: str
    zarr_format: int | None
    shape: tuple[int, ...] | None
    chunk_shape: tuple[int, ...] | None
    data_type: str | None
    codecs: tuple[str, ...]
    chunks: int
    size: int
    documents: Mapping[str, Any] = field(repr=False)
    attributes: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def dimension_names(self) -> tuple[str, ...]:
        """Names of an array's dimensions, "" for one without; none if its metadata has none."""
        document = self.documents.get("zarr.json")
        names = self.attributes.get("_ARRAY_DIMENSIONS")  # xarray's way in format 2
        if isinstance(document, dict) and document.get("dimension_names") is not None:
            names = document["dimension_names"]
        return tuple(name if isinstance(name, str) else "" for name in _as_list(names))

    @property
    def grid_size(self) -> int | None:
        """Number of chunks that cover the shape, stored or not."""
        if self.shape is None or self.chunk_shape is None:
            return None
        count = 1
        for length, chunk in zip(self.shape, self.chunk_shape, strict=True):
            count *= -(-length // chunk) if chunk else 0
        return count


def describe(blocks: BlockStore, root: CidLike | None, path: str = "") -> NodeInfo:
    """Describe one node.

    Parameters
    ----------
    blocks : BlockStore
    root : str, bytes, CID or None
        A root; None for a dataset without anything.
    path : str
        The node; "" is the root.

    Raises
    ------
    NotFoundError
        If there is no such node.
    """
    reader = TreeReader(blocks)
    path = path.strip("/")
    node = find_node(reader, _open(blocks, root), path)
    return describe_node(reader, node, path)


def iter_nodes(
    blocks: BlockStore, root: CidLike | None, path: str = "", *, depth: int | None = None
) -> Iterator[NodeInfo]:
    """Yield the node at `path` and those below it, parents first, in the order of their names.

    Parameters
    ----------
    blocks, root, path
        As for `describe`.
    depth : int, optional
        How many levels below `path` to go; all by default.
    """
    reader = TreeReader(blocks)
    path = path.strip("/")
    for at, node in walk(reader, find_node(reader, _open(blocks, root), path), path, depth):
        yield describe_node(reader, node, at)


def walk(
    reader: TreeReader, node: Node, path: str, depth: int | None = None
) -> Iterator[tuple[str, Node]]:
    """Yield path and node for a node and all below it, parents first, in order of names."""
    pending = [(path, node, 0)]
    while pending:
        path, node, level = pending.pop()
        if level > MAX_DEPTH:
            raise FormatError(f"nodes are nested deeper than {MAX_DEPTH} levels")
        yield path, node
        if level == depth:
            continue
        base = f"{path}/" if path else ""
        children = {
            name: entry for name, entry in iter_entries(reader, node) if isinstance(entry, Node)
        }
        pending += [(base + name, children[name], level + 1) for name in sorted(children)[::-1]]


def unfold(block: bytes) -> dict[str, Any]:
    """Return a root document as JSON values, its metadata documents decoded in place.

    Links stay ``{"/": cid}``. It is for people: the exact bytes are the block's.
    """
    Root.from_block(block)  # raises for anything that is no root document
    value: dict[str, Any] = json.loads(block)
    pending = [value]
    while pending:
        node = pending.pop()
        for name, document in node.get("docs", {}).items():
            if isinstance(document, str):
                node["docs"][name] = _decode(document)
        pending.extend(node.get("nodes", {}).values())
    return value


def _open(blocks: BlockStore, root: CidLike | None) -> Node:
    return EMPTY if root is None else Root.from_block(blocks.get(as_cid_bytes(root))).node


def find_node(reader: TreeReader, node: Node, path: str) -> Node:
    at = ""
    for name in path.split("/") if path else ():
        child = get_child(reader, node, name)
        if child is None:
            names = sorted(n for n, entry in iter_entries(reader, node) if isinstance(entry, Node))
            there = f"there are: {', '.join(names[:20])}" if names else "it has no nodes"
            raise NotFoundError(f"no node {name!r} is in {at or 'the root'}; {there}")
        at = f"{at}/{name}" if at else name
        node = child
    return node


def describe_node(reader: TreeReader, node: Node, path: str) -> NodeInfo:
    """Describe a node that has been read; `path` is where it lies."""
    documents = {
        name: _decode(_text(reader, document)) for name, document in sorted(node.docs.items())
    }
    v3 = _as_map(documents.get("zarr.json"))
    array = v3 if v3.get("node_type") == "array" else _as_map(documents.get(".zarray"))
    kind = "folder"
    if "zarr.json" in documents:
        kind = "array" if v3.get("node_type") == "array" else "group"
    elif ".zarray" in documents:
        kind = "array"
    elif ".zgroup" in documents:
        kind = "group"
    grid = _as_map(_as_map(array.get("chunk_grid")).get("configuration"))
    shape = _lengths(array.get("shape"))
    chunk_shape = _lengths(array.get("chunks", grid.get("chunk_shape")))
    if shape is None or chunk_shape is None or len(shape) != len(chunk_shape):
        chunk_shape = None
    data_type = array.get("dtype", array.get("data_type"))
    return NodeInfo(
        path=path,
        kind=kind,
        zarr_format=None if kind == "folder" else (3 if "zarr.json" in documents else 2),
        shape=shape,
        chunk_shape=chunk_shape,
        data_type=None if data_type is None else _type_name(data_type),
        codecs=tuple(_codecs(array)),
        chunks=sum(tree.chunks for tree in node.trees.values()),
        size=sum(tree.size for tree in node.trees.values()),
        documents=documents,
        attributes=_as_map(v3.get("attributes") if v3 else documents.get(".zattrs")),
    )


def _text(reader: TreeReader, document: bytes | Value) -> bytes:
    if isinstance(document, Value):
        return bytes(read_value(reader, document.cid, document.size))
    return document


def _decode(text: str | bytes) -> Any:
    """Return what a document says; the text itself where that is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # UnicodeDecodeError is one
        return text


def _as_map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _lengths(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(length) is int and length >= 0 for length in value):
        return tuple(value)
    return None


def _type_name(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else value
    return name if isinstance(name, str) else json.dumps(name)


def _codecs(array: Mapping[str, Any]) -> Iterator[str]:
    v2 = [*_as_list(array.get("filters")), array.get("compressor")]
    for entry in (*v2, *_as_list(array.get("codecs"))):
        name = _as_map(entry).get("id", _as_map(entry).get("name", entry))
        if isinstance(name, str):
            yield name


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
