"""Parts of a dataset: groups, arrays, and boxes of arrays, and which blocks they take.

A part is written as a path, for an array with slices of its index behind it::

    ocean                 a group and all below it
    ocean/t2m             an array
    ocean/t2m[0:10, :]    the chunks of an array that hold a box of its index
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from typing import TypeAlias

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.readonly import Overlaid, ReadOnlyBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.errors import BlockNotFoundError, InvalidArgumentError
from cas_zarr.repository.describe import describe_node
from cas_zarr.tree.chunktree import ChunkTree, Value
from cas_zarr.tree.keys import check_key, parse_form
from cas_zarr.tree.morton import COORDINATE_BITS
from cas_zarr.tree.node import Node, Root
from cas_zarr.tree.shards import TreeReader, iter_entries
from cas_zarr.tree.values import file_blocks
from cas_zarr.tree.view import TreeView
from cas_zarr.tree.walk import reachable

__all__ = [
    "Box",
    "Part",
    "Recording",
    "index_box",
    "parse_part",
    "parse_parts",
    "part_blocks",
    "select_trees",
]

Box: TypeAlias = "tuple[tuple[int, int], ...]"
"""First chunk coordinate, and the one behind the last, along each dimension."""


@dataclass(frozen=True, slots=True)
class Part:
    """A group or an array, or a box of an array.

    Attributes
    ----------
    path : str
        "" is the whole dataset.
    slices : tuple of (start, stop), optional
        Of the array's index, in elements; None stands for the begin or the end, numbers below 0
        count from the end.
    """

    path: str
    slices: tuple[tuple[int | None, int | None], ...] | None = None

    def __str__(self) -> str:
        if self.slices is None:
            return self.path
        inner = ("" if n is None else str(n) for side in self.slices for n in side)
        sides = [f"{start}:{stop}" for start, stop in zip(inner, inner, strict=True)]
        return f"{self.path}[{', '.join(sides)}]"


def parse_part(text: str | Part) -> Part:
    """Return the part of a dataset that a text means.

    Raises
    ------
    InvalidArgumentError, InvalidKeyError
        If it means none.
    """
    if isinstance(text, Part):
        return text
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{text!r} is no path of a group or an array")
    path, bracket, inner = text.partition("[")
    path = path.strip().strip("/")
    if path:
        check_key(path)
    if not bracket:
        return Part(path)
    if not inner.endswith("]"):
        raise _no_slices(text)
    try:
        return Part(path, tuple(_side(side, text) for side in inner[:-1].split(",")))
    except ValueError:
        raise _no_slices(text) from None


def parse_parts(texts: str | Part | Iterable[str | Part] | None) -> tuple[Part, ...] | None:
    """Return the parts that texts mean, or one text; None, which is everything, for None."""
    if texts is None:
        return None
    if isinstance(texts, (str, Part)):
        return (parse_part(texts),)
    if not isinstance(texts, Iterable):
        raise InvalidArgumentError(f"{texts!r} is no path, and no sequence of paths")
    return tuple(map(parse_part, texts))


def _side(side: str, text: str) -> tuple[int | None, int | None]:
    numbers = [int(number) if number.strip() else None for number in side.split(":")]
    if len(numbers) == 1 and numbers[0] is not None:
        return numbers[0], numbers[0] + 1 or None
    if len(numbers) != 2:
        raise _no_slices(text)
    return numbers[0], numbers[1]


def _no_slices(text: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{text!r} is no part of a dataset; write a box as path[start:stop, start:stop], in "
        "elements of the array, without steps"
    )


def index_box(
    shape: Sequence[int],
    chunk_shape: Sequence[int],
    slices: Sequence[slice | tuple[int | None, int | None] | int],
) -> Box:
    """Return the box of chunks that hold a box of an array's index.

    Parameters
    ----------
    shape, chunk_shape : sequence of int
        Of the array, in elements.
    slices : sequence of slice, (start, stop) or int
        Along each dimension; those that are left out are whole. In elements, without steps.

    Returns
    -------
    tuple of (start, stop)
        In chunk coordinates, as `CASMapping.cid` and `prove` take a box; no further than there
        can be chunks.
    """
    if len(slices) > len(shape):
        raise InvalidArgumentError(
            f"{len(slices)} slices are too many for an array of {len(shape)} dimensions"
        )
    box = []
    for axis, (length, chunk) in enumerate(zip(shape, chunk_shape, strict=True)):
        start, stop = _bounds(slices[axis], length) if axis < len(slices) else (0, length)
        step = max(chunk, 1)
        low, high = start // step, min(-(-stop // step), 1 << COORDINATE_BITS)
        box.append((low, high) if stop > start and high > low else (0, 0))
    return tuple(box)


def _bounds(part: slice | tuple[int | None, int | None] | int, length: int) -> tuple[int, int]:
    if isinstance(part, slice):
        if part.step not in (None, 1):
            raise InvalidArgumentError(f"{part} has a step; give a box without steps")
        part = (part.start, part.stop)
    try:
        if not isinstance(part, tuple):
            part = (index(part), index(part) + 1 or None)
        start, stop, _ = slice(*part).indices(length)
    except TypeError:
        raise InvalidArgumentError(f"{part!r} is no side of a box; give start and stop") from None
    return start, stop


class Recording(ReadOnlyBlocks):
    """Reads another store and remembers what was read.

    Parameters
    ----------
    blocks : BlockStore

    Attributes
    ----------
    seen : dict
        CIDs and bytes of the blocks that were read.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self.seen: dict[CidBytes, bytes] = {}

    @property
    def bytes_read(self) -> int:
        """Size of the blocks that were read, in bytes."""
        return sum(map(len, self.seen.values()))

    # docstrings inherited

    @property
    def location(self) -> str:
        return self._blocks.location

    def _read(self, cid: CidBytes) -> bytes | None:
        data = self._blocks.get(cid)
        self.seen[cid] = data
        return data

    def _has(self, cid: CidBytes) -> bool:
        return self._blocks.has(cid)

    def _size(self, cid: CidBytes) -> int | None:
        return self._blocks.size(cid)


def part_blocks(
    blocks: BlockStore,
    root: CidBytes,
    parts: Iterable[Part],
    *,
    since: CidBytes | None = None,
    since_blocks: BlockStore | None = None,
) -> Iterator[CidBytes]:
    """Yield the blocks that parts of a dataset take: those on the way to them, and all in them.

    Parameters
    ----------
    blocks : BlockStore
        Where the tree is read.
    root : CidBytes
        The whole dataset.
    parts : iterable of Part
        One that the dataset does not have takes nothing.
    since : CidBytes, optional
        A root whose same parts are had. What it has at the same place is left out, where that
        can be told without opening it.
    since_blocks : BlockStore, optional
        Where `since` is read.
    """
    seen: set[CidBytes] = set()
    recorded = Recording(blocks)
    view = TreeView(TreeReader(recorded), Root.from_block(recorded.get(root)))
    old: TreeView | None = None
    if since is not None:
        behind = blocks if since_blocks is None else since_blocks
        old = TreeView(TreeReader(behind), Root.from_block(behind.get(since)))
    for part in parts:
        node = view.node(part.path)
        before: Node | None = None
        if old is not None:
            with suppress(BlockNotFoundError):  # what cannot be read is not had
                before = old.node(part.path)
        if node is not None and (before is None or before.text() != node.text()):
            if part.slices is None:
                found = _subtree(blocks, view, node, old, before, since_blocks)
            else:
                found = _box(view, node, part)
            for cid in found:
                if cid not in seen:
                    seen.add(cid)
                    yield cid
        for cid in recorded.seen:  # the root, and the pages and shards on the way
            if cid not in seen:
                seen.add(cid)
                yield cid
        recorded.seen.clear()


def _subtree(
    blocks: BlockStore,
    view: TreeView,
    node: Node,
    old: TreeView | None,
    before: Node | None,
    since_blocks: BlockStore | None,
) -> Iterator[CidBytes]:
    root = Root(view.root.header, node)
    cid = root.cid()
    document = Overlaid(blocks, cid, root.to_block())
    since: CidBytes | None = None
    behind: Overlaid | None = None
    if old is not None and before is not None:
        was = Root(old.root.header, before)
        since = was.cid()
        behind = Overlaid(since_blocks or blocks, since, was.to_block())
    for _, found in reachable(document, cid, since=since, since_blocks=behind):
        if found != cid:
            yield found


def _box(view: TreeView, node: Node, part: Part) -> Iterator[CidBytes]:
    reader = view.reader
    for document in node.docs.values():
        if isinstance(document, Value):
            yield from file_blocks(reader, document.cid, document.size)
    info = describe_node(reader, node, part.path)
    if info.shape is None or info.chunk_shape is None:
        raise InvalidArgumentError(
            f"{part} cannot be selected: {part.path!r} is no array on a regular grid of chunks; "
            "give its path alone"
        )
    box = index_box(info.shape, info.chunk_shape, part.slices or ())
    for _, entry in iter_entries(reader, node):
        if isinstance(entry, Value):
            yield from file_blocks(reader, entry.cid, entry.size)
    for _, tree in select_trees(reader, node, len(box)):
        table = tree.select(*zip(*box, strict=True)) if box else tree.table()
        for row, size in enumerate(table.sizes.tolist()):
            yield from file_blocks(reader, CidBytes(table.cids[row].tobytes()), size)


def select_trees(reader: TreeReader, node: Node, ndim: int) -> Iterator[tuple[str, ChunkTree]]:
    """Yield form and reader of the chunk trees of a node that have `ndim` dimensions."""
    for form, ref in sorted(node.trees.items()):
        if parse_form(form)[1] == ndim:
            yield form, ChunkTree(reader, ref, ndim)
