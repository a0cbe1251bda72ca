"""Putting a whole subtree at a path, without a look at what lies in it.

A node that owns chunks (it has a `zarr.json` or `.zarray`) is the same wherever it lies, and so is
one with no owner of chunks above it. Elsewhere keys of the subtree may read as chunks of an array
above; then they are set one by one, so that the root stays what its keys make it.
"""

from __future__ import annotations

from cas_zarr.cid import HashFunction
from cas_zarr.errors import InvalidKeyError
from cas_zarr.tree.apply import apply, bind
from cas_zarr.tree.changes import Changes, is_document
from cas_zarr.tree.keys import (
    MAX_DEPTH,
    MAX_KEY_BYTES,
    OWNERS,
    check_key,
    chunk_key,
    parse_chunk,
    parse_form,
    split_key,
)
from cas_zarr.tree.moving import holds_chunk_keys
from cas_zarr.tree.node import EMPTY, Node, Root, Value
from cas_zarr.tree.shards import TreeReader, edit_entries, get_child
from cas_zarr.tree.view import TreeView

__all__ = ["graft"]


def graft(view: TreeView, path: str, node: Node | None) -> Root:
    """Return the root of a version with a subtree in place of what lies at a path.

    It costs the folders on the way to the path, whatever the size of the subtree; where keys of
    it, or chunks of an array above, lie so that they change places, it costs those.

    Parameters
    ----------
    view : TreeView
        The version as it is. The blocks of the subtree are in its block store.
    path : str
        Where to put it; every key at and below it goes first. "" is the whole dataset.
    node : Node or None
        The subtree; its links stay as they are, also those of another hash. None removes what is
        there.

    Raises
    ------
    InvalidKeyError
        If the path is none, or keys of the subtree would be too deep or too long there.
    """
    node = node or EMPTY
    if path == "":
        return Root(view.root.header, node)
    check_key(path)
    _check_keys(node, path.count("/") + 1, len(path.encode()))
    owner = view.owner(split_key(path)[0])
    if owner is not None:
        covered = list(view.chunk_keys_above(f"{path}/"))
        if covered:
            changes = Changes()
            for key in covered:
                changes.delete(key)
            view = TreeView(view.reader, apply(view, changes))
        if OWNERS.isdisjoint(node.docs):
            name = path[len(owner) + 1 if owner else 0 :]
            if holds_chunk_keys(view.reader, node, name):
                view = TreeView(view.reader, _placed(view, path, EMPTY))
                return apply(view, _as_changes(view, path, node))
    return _placed(view, path, node)


def _placed(view: TreeView, path: str, node: Node) -> Root:
    header = view.root.header
    top = _put(view.reader, header.function, view.root.node, path.split("/"), node)
    return Root(header, top)


def _put(
    reader: TreeReader, function: HashFunction, node: Node, names: list[str], new: Node
) -> Node:
    """Return a node with another one at some names below it."""
    name, rest = names[0], names[1:]
    child = get_child(reader, node, name)
    inner = _put(reader, function, child or EMPTY, rest, new) if rest else new
    if not inner and child is None:
        return node
    return edit_entries(reader, function, node, {}, {name: inner or None})


def _as_changes(view: TreeView, path: str, node: Node) -> Changes:
    """Return changes that set every key of a subtree."""
    changes = Changes()
    tree = TreeView(view.reader, Root(view.root.header, node))
    for key in tree.keys(""):
        found = tree.find(key)
        assert found is not None
        if is_document(key):
            changes.set_document(f"{path}/{key}", tree.document_bytes(found))
            continue
        assert isinstance(found, Value)
        owner = tree.owner(split_key(key)[0])
        of_array = owner is not None and parse_chunk(key[len(owner) + 1 if owner else 0 :])
        layout = tree.layout(owner) if owner is not None and of_array else None
        bind(changes, f"{path}/{key}", found, layout)
    return changes


def _check_keys(node: Node, depth: int, size: int) -> None:
    """Refuse a subtree some of whose keys could not be asked for; shards are not opened.

    Parameters
    ----------
    node : Node
    depth, size : int
        Segments and bytes of the path that it would lie at.
    """
    pending = [(node, depth, size)]
    while pending:
        node, depth, size = pending.pop()
        names = [*node.docs, *node.keys]
        names += [chunk_key(form, (0,) * parse_form(form)[1]) for form in node.trees]
        below = max((1 + name.count("/") for name in names), default=1 if node.shards else 0)
        longest = max((1 + len(name.encode()) for name in names), default=0)
        if depth + below > MAX_DEPTH or size + longest > MAX_KEY_BYTES:
            raise InvalidKeyError(
                f"keys of the subtree would have more than {MAX_DEPTH} levels or {MAX_KEY_BYTES} "
                "bytes; put it at a shorter path"
            )
        for name, inner in node.nodes.items():
            pending.append((inner, depth + 1, size + 1 + len(name.encode())))
