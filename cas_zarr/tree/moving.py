"""Keys that change places where a node comes to own chunks, or ceases to.

What a key is follows from the documents around it (docs/format.md, Keys): with a `zarr.json` or a
`.zarray` above it, a key may be a chunk of a tree; without, it is a plain key of its folder.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cas_zarr.tree.descent import alike
from cas_zarr.tree.diff import NodeChange
from cas_zarr.tree.keys import OWNERS, chunk_names, parse_chunk, parse_form
from cas_zarr.tree.morton import Codes, decode
from cas_zarr.tree.node import EMPTY, Node, Value
from cas_zarr.tree.shards import TreeReader, iter_entries
from cas_zarr.tree.view import TreeView

__all__ = ["codes_below", "covers", "holds_chunk_keys", "moves", "same_below"]


def covers(view: TreeView, path: str) -> bool:
    """Tell whether an array above a node has chunks whose keys lie below the node."""
    return any(True for _ in view.chunk_keys_above(f"{path}/"))


def holds_chunk_keys(reader: TreeReader, node: Node, name: str = "") -> bool:
    """Tell whether a plain key of a subtree would be a chunk of an array at or above it.

    `name` is the path of the subtree below that array. Behind a chunk's first segments only
    numbers can follow, so other folders are not opened.
    """
    pending = [(name, node)]
    while pending:
        name, node = pending.pop()
        if name and parse_chunk(name) is None:
            continue
        for inner, entry in iter_entries(reader, node):
            below = f"{name}/{inner}" if name else inner
            if isinstance(entry, Value):
                if parse_chunk(below) is not None:
                    return True
            elif OWNERS.isdisjoint(entry.docs):
                pending.append((below, entry))
    return False


def moves(view: TreeView, path: str) -> bool:
    """Tell whether keys change places where a node comes to own chunks, or ceases to."""
    node = view.node(path)
    if node and (node.trees or holds_chunk_keys(view.reader, node)):
        return True
    return covers(view, path)


def same_below(a: TreeView, b: TreeView, path: str) -> bool:
    """Tell whether two versions have the same keys below a node."""
    nodes = a.node(path) or EMPTY, b.node(path) or EMPTY
    above = [{key: view.find(key) for key in view.chunk_keys_above(f"{path}/")} for view in (a, b)]
    return nodes[0].text() == nodes[1].text() and above[0] == above[1]


def codes_below(change: NodeChange, rest: str) -> Iterator[tuple[str, Codes]]:
    """Yield, by form, the codes of the chunks that changed and whose names begin with `rest`."""
    for form in change.forms:
        kind, ndim = parse_form(form)
        if "/" in kind:  # other names have no folders
            codes = np.concatenate(alike(*(table.codes for table in change.tables(form))))
            names = chunk_names(kind, decode(codes, ndim))
            hits = np.array([name.startswith(rest) for name in names], bool)
            yield form, np.sort(codes[hits])
