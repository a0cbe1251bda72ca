"""What differs between any two things of a repository, told in the words of its user.

`cas_zarr.tree.diff` finds nodes and chunks by their CIDs; here versions and places are resolved,
metadata is compared field by field, and chunks become boxes of the array's index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import CidBytes, CidLike
from cas_zarr.errors import InvalidArgumentError, NotFoundError
from cas_zarr.repository.describe import NodeInfo, describe_node
from cas_zarr.repository.innerchunks import differing_inner_chunks, inner_grid
from cas_zarr.repository.versions import root_of, split_place
from cas_zarr.tree.boxes import merge_boxes
from cas_zarr.tree.diff import ChunkChanges, NodeChange, Status, diff
from cas_zarr.tree.fields import MISSING, changed_fields
from cas_zarr.tree.node import EMPTY, Document, Header, Root
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.view import TreeView

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = [
    "Box",
    "Change",
    "DocumentField",
    "Place",
    "compare",
    "empty_place",
    "index_boxes",
    "place_of",
    "same",
]

Box: TypeAlias = "tuple[slice, ...]"
"""Part of an array's index: one slice for each dimension."""


class Place(NamedTuple):
    """A node of a version: what is compared."""

    view: TreeView
    path: str

    @property
    def cid(self) -> CidBytes:
        """CID of the node's subtree, as `CASMapping.cid` gives it."""
        node = self.view.node(self.path)
        header = self.view.root.header
        if self.path:
            header = Header(header.function, header.needs, header.needs_to_write)
        return Root(header, node or EMPTY).cid()


class DocumentField(NamedTuple):
    """A field of a metadata document that differs.

    Attributes
    ----------
    document : str
        The document, as ``zarr.json``.
    path : tuple of str
        Names of the members that lead to the field; () is the whole document.
    before, after : Any
        As JSON has it; `cas_zarr.tree.fields.MISSING` where there is none.
    """

    document: str
    path: tuple[str, ...]
    before: Any
    after: Any


@dataclass(frozen=True, eq=False)
class Change:
    """A node that differs.

    Nothing is opened before it is asked for: of an array that came or went the totals are known
    until its chunks are looked at, and in a subtree that moved nothing is opened at all.

    Attributes
    ----------
    node : NodeChange
        What the trees say.
    before, after : TreeView
        The two versions.
    path : str
        Where it is; where it was, if it was removed. Of two places that are compared, below the
        first.
    other : str
        Where it is below the second place; the same as `path`, unless two places are compared.
    """

    node: NodeChange
    before: TreeView
    after: TreeView
    path: str
    other: str

    def __repr__(self) -> str:
        return f"<Change: {self.summary()}>"

    @property
    def status(self) -> Status:
        """``added``, ``removed``, ``moved`` or ``changed``."""
        return self.node.status

    @property
    def source(self) -> str | None:
        """Where a subtree that moved was."""
        return self.node.source

    @cached_property
    def _info(self) -> NodeInfo:
        gone = self.status == "removed"
        view, path = (self.before, self.path) if gone else (self.after, self.other)
        return describe_node(view.reader, view.node(path) or EMPTY, path)

    @property
    def kind(self) -> str:
        """``array``, ``group`` or ``folder``."""
        return self._info.kind

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the array after the change, or before it was removed; None where unknown."""
        return self._info.shape

    @property
    def chunk_shape(self) -> tuple[int, ...] | None:
        """Shape of a chunk, in elements; None where chunks are not all alike."""
        return self._info.chunk_shape

    @cached_property
    def fields(self) -> tuple[DocumentField, ...]:
        """The fields of metadata documents that differ."""
        return tuple(
            DocumentField(name, field.path, field.before, field.after)
            for name, (old, new) in self.node.docs.items()
            for field in changed_fields(_bytes_of(self.before, old), _bytes_of(self.after, new))
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of keys that differ and are neither metadata nor chunks."""
        return tuple(self.node.keys)

    @cached_property
    def chunks(self) -> tuple[ChunkChanges, ...]:
        """The chunks that differ: coordinates, CIDs and sizes, before and after."""
        return self.node.chunks

    @cached_property
    def coordinates(self) -> NDArray[np.int64]:
        """Grid coordinates of the chunks that differ, shape (n, ndim)."""
        found = [part.coordinates for part in self._fitting()]
        if not found:
            return np.zeros((0, len(self.shape or ())), np.int64)
        return np.concatenate(found)

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """What differs, as boxes of the array's index: disjoint, covering just those chunks.

        Of long shards the inner chunks that differ; their indexes are read for that, unless more
        than 1024 shards changed. Empty where the metadata does not say which part of the index a
        chunk has.
        """
        shape, chunk_shape = self.shape, self.chunk_shape
        if shape is None or chunk_shape is None or not len(self.coordinates):
            return ()
        layouts = self.before.layout(self.path), self.after.layout(self.other)
        grid = inner_grid(*layouts, chunk_shape) if self.status == "changed" else None
        if grid is None:
            return index_boxes(self.coordinates, shape, chunk_shape)
        readers = self.before.reader, self.after.reader
        found = [differing_inner_chunks(*readers, part, grid) for part in self._fitting()]
        shards, chunks = (np.concatenate(each) for each in zip(*found, strict=True))
        whole = index_boxes(shards, shape, chunk_shape) if len(shards) else ()
        parts = index_boxes(chunks, shape, grid.after.inner_shape) if len(chunks) else ()
        return tuple(sorted(whole + parts, key=lambda box: [side.start for side in box]))

    def _fitting(self) -> list[ChunkChanges]:
        """Return the chunks on the grid that the metadata describes; others are left-overs."""
        ndim = len(self.shape or ())
        return [part for part in self.chunks if part.coordinates.shape[1] == ndim]

    @cached_property
    def counts(self) -> tuple[int, int, int]:
        """Chunks that were added, removed, and changed; no page is opened for a whole array."""
        if self.status == "added":
            return self.node.after.chunks, 0, 0
        if self.status == "removed":
            return 0, self.node.before.chunks, 0
        added = sum(int(part.added.sum()) for part in self.chunks)
        removed = sum(int(part.removed.sum()) for part in self.chunks)
        return added, removed, sum(map(len, self.chunks)) - added - removed

    @property
    def added(self) -> int:
        """Number of chunks that came."""
        return self.counts[0]

    @property
    def removed(self) -> int:
        """Number of chunks that went."""
        return self.counts[1]

    @property
    def modified(self) -> int:
        """Number of chunks that have another value."""
        return self.counts[2]

    @property
    def bytes_before(self) -> int:
        """Bytes of the values of the chunks that differ, as they were."""
        if self.status in ("added", "removed"):
            return self.node.before.size
        return sum(int(part.sizes_before.sum()) for part in self.chunks)

    @property
    def bytes_after(self) -> int:
        """Bytes of the values of the chunks that differ, as they are."""
        if self.status in ("added", "removed"):
            return self.node.after.size
        return sum(int(part.sizes_after.sum()) for part in self.chunks)

    def summary(self) -> str:
        """Return one line that says what happened."""
        name = self.path or "/"
        if self.status == "moved":
            return f"{self.kind} {self.source} moved to {name}"
        what = []
        if self.status == "changed" and self.fields:
            what.append("fields " + ", ".join(".".join(field.path) for field in self.fields))
        counts = zip(self.counts, ("added", "removed", "changed"), strict=True)
        what += [
            f"{count:,} chunk{'' if count == 1 else 's'} {word}" for count, word in counts if count
        ]
        if self.keys:
            what.append("keys " + ", ".join(self.keys))
        return f"{self.kind} {name} {self.status}" + (f": {'; '.join(what)}" if what else "")

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON values; a box is a list of [start, stop], one a dimension."""
        found: dict[str, Any] = {"path": self.path, "status": self.status, "kind": self.kind}
        if self.other != self.path:
            found["other"] = self.other
        if self.source is not None:
            found["source"] = self.source
        if self.fields:
            found["fields"] = [_field_json(field) for field in self.fields]
        if self.keys:
            found["keys"] = list(self.keys)
        if any(self.counts):
            found["chunks"] = {
                "added": self.added,
                "removed": self.removed,
                "modified": self.modified,
                "bytes_before": self.bytes_before,
                "bytes_after": self.bytes_after,
                "boxes": [[[side.start, side.stop] for side in box] for box in self.boxes],
            }
        return found


def compare(before: Place, after: Place, path: str = "", *, moves: bool = True) -> Iterator[Change]:
    """Yield what differs between two places, a node at a time, parents before children.

    Parameters
    ----------
    before, after : Place
        A node of a version each. Their blocks may be in different repositories.
    path : str
        Compare only what lies at and below this path of both.
    moves : bool
        Whether to look for subtrees that lie elsewhere now. They are told when all else is known,
        so nothing is yielded before the comparison is done; without, changes come as found.
    """
    start, other = (_join(place.path, path.strip("/")) for place in (before, after))
    if not before.view.node(start) and not after.view.node(other) and start + other:
        raise NotFoundError(
            f"there is no node {start!r} in the one and no {other!r} in the other; list them first"
        )
    for node in diff(before.view, after.view, start, other=other, moves=moves):
        below = node.path[len(start) :].lstrip("/")
        yield Change(node, before.view, after.view, node.path, _join(other, below))


def empty_place(repo: Repository) -> Place:
    """Return the root of a dataset that has nothing yet."""
    return Place(TreeView(TreeReader(repo.blocks), Root(Header(repo.function), EMPTY)), "")


def place_of(repo: Repository, what: CidLike | None, *, branch: str = "main") -> Place:
    """Return the node that is meant.

    Parameters
    ----------
    repo : Repository
    what : str, bytes, CID or None
        A version, ``version:path``, or the CID of a commit, a root or any subtree. None is what
        the branch shows now, committed or not.
    branch : str
        The branch that None stands for.

    Raises
    ------
    VersionNotFoundError
        If there is no such version.
    """
    path = ""
    if what is None:
        root = root_of(repo.blocks, repo.record(branch))
    else:
        if isinstance(what, str) and ":" in what:
            what, path = split_place(what)
        root = repo.resolve(what).root
    if root is None:
        return empty_place(repo)._replace(path=path)
    reader = TreeReader(repo.blocks)
    return Place(TreeView(reader, Root.from_block(repo.blocks.get(root))), path)


def same(a: Place, b: Place) -> bool:
    """Tell whether two nodes are equal to the last bit, with all that lies below them.

    Their CIDs are compared and nothing is opened. With different hashes equal data have different
    CIDs; that is refused rather than called a difference.
    """
    functions = {place.view.root.header.function.name for place in (a, b)}
    if len(functions) > 1:
        raise InvalidArgumentError(
            f"one has CIDs of {' and the other of '.join(sorted(functions))}; equal data have "
            "different CIDs there: compare the values"
        )
    for place in (a, b):
        if place.path and not place.view.node(place.path):
            raise NotFoundError(f"there is no node {place.path!r}; list the folder above it")
    return a.cid == b.cid


def index_boxes(
    coordinates: NDArray[np.int64], shape: Sequence[int], chunk_shape: Sequence[int]
) -> tuple[Box, ...]:
    """Return the part of an array's index that some chunks have, as few disjoint boxes.

    Parameters
    ----------
    coordinates : array of int64, shape (n, ndim)
    shape, chunk_shape : sequence of int
        Of the array, in elements. Chunks at the edge end with the array; what lies outside it, as
        after it was cut, keeps the full size of its chunks.
    """
    # Coordinates lie below 2**32; documents can claim lengths of any size.
    wide = any(length >> 31 for length in (*shape, *chunk_shape))
    lengths, sides = (np.array(each, object if wide else np.int64) for each in (shape, chunk_shape))
    starts, stops = merge_boxes(coordinates)
    firsts, lasts = starts * sides, stops * sides
    lasts = np.where(firsts < lengths, np.minimum(lasts, lengths), lasts)
    return tuple(
        tuple(slice(*side) for side in zip(first, last, strict=True))
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
    )


def _join(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder and path else folder or path


def _bytes_of(view: TreeView, document: Document | None) -> bytes | None:
    return None if document is None else view.document_bytes(document)


def _field_json(field: DocumentField) -> dict[str, Any]:
    found: dict[str, Any] = {"document": field.document, "field": list(field.path)}
    for name, value in (("before", field.before), ("after", field.after)):
        if value is not MISSING:
            found[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return found
