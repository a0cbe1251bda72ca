"""Proofs that a root has certain chunks, for someone who holds nothing but the root's CID.

A proof is a CAR of version 1 whose one root is that of the dataset. In it is what someone reads
who looks the chunks up: the root document, the shards on the way to the array, the pages that
cover the box, and, if asked for, the blocks of the chunks' values. Each block is checked by the
link that leads to it, so a chunk that the pages do not list is proved to be absent: there the
array has its fill value.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.carfile import CarBlocks
from cas_zarr.cid import (
    DAG_JSON,
    CidBytes,
    CidLike,
    as_cid_bytes,
    codec_of,
    format_cid,
)
from cas_zarr.codecs.car import CarWriter, Section
from cas_zarr.errors import (
    BlockNotFoundError,
    FormatError,
    InvalidArgumentError,
    LimitError,
    NotFoundError,
)
from cas_zarr.parallel import map_ordered
from cas_zarr.repository.describe import describe_node
from cas_zarr.repository.selection import (
    Box,
    Recording,
    index_box,
    select_trees,
)
from cas_zarr.tree.chunktree import Value
from cas_zarr.tree.keys import parse_form
from cas_zarr.tree.morton import COORDINATE_BITS, decode
from cas_zarr.tree.node import Document, Node, Root
from cas_zarr.tree.shards import TreeReader, get_child
from cas_zarr.tree.table import Table, empty_table
from cas_zarr.tree.values import is_file, read_value

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["MAX_CHUNKS", "MAX_PROOF_BYTES", "Proof", "check_proof", "prove"]

MAX_CHUNKS = 1 << 23
"""Most chunks that one proof speaks of."""

MAX_PROOF_BYTES = 1 << 32
"""Largest CAR that is read as a proof, in bytes."""

_MAX_SECTIONS = 1 << 22
_UPPER = 1 << COORDINATE_BITS
_MAX_FILE_DEPTH = 16
_MAX_DOCUMENT = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What a proof shows.

    Attributes
    ----------
    root : CidBytes
        The dataset.
    path : str
        The group or array.
    documents : mapping of str to bytes
        Its metadata documents, exactly as the dataset has them.
    form : str or None
        Its chunk tree, as ``c/3``; None where it has no chunks in the box's dimensions.
    box : tuple of (start, stop)
        In chunk coordinates, along each dimension; the whole grid if no box was asked for.
    coordinates : array of int64, shape (n, ndim)
        The chunks of the box that the dataset has; no others are there.
    cids : array of uint8, shape (n, 36)
        The CIDs of their values.
    sizes : array of uint64, shape (n,)
        Bytes of their values.
    data_verified : bool
        Whether the values themselves are in the proof, all of them and whole.
    size : int
        Bytes of the blocks that it took.
    """

    root: CidBytes
    path: str
    documents: Mapping[str, bytes] = field(repr=False)
    form: str | None
    box: Box
    coordinates: NDArray[np.int64] = field(repr=False)
    cids: NDArray[np.uint8] = field(repr=False)
    sizes: NDArray[np.uint64] = field(repr=False)
    data_verified: bool
    size: int

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def missing(self) -> int:
        """How many chunks of the box are absent: there the array has its fill value."""
        return math.prod(stop - start for start, stop in self.box) - len(self)

    def absent(self) -> NDArray[np.int64]:
        """Return the coordinates of the chunks of the box that are absent, shape (m, ndim).

        Raises
        ------
        LimitError
            If the box has too many chunks to list.
        """
        sides = [stop - start for start, stop in self.box]
        if math.prod(sides) > MAX_CHUNKS:
            raise LimitError(
                f"the box has {math.prod(sides)} chunks; at most {MAX_CHUNKS} are listed: prove a "
                "smaller one"
            )
        there = np.zeros(sides, bool)
        low = np.array([start for start, _ in self.box], np.int64)
        if len(self):  # of no dimensions, an empty index means all
            there[tuple((self.coordinates - low).T)] = True
        return np.argwhere(~there) + low


def prove(
    repo: Repository,
    version: CidLike,
    path: str,
    box: Sequence[slice | tuple[int, int | None]] | None = None,
    *,
    chunks: bool = False,
) -> bytes:
    """Return a proof of which chunks a version has in an array, or in a box of it.

    Parameters
    ----------
    repo : Repository
    version : str, bytes or CID
        Whose root the proof is for: `check_proof` needs its CID, not the version.
    path : str
        The array; for a group the proof shows its metadata.
    box : sequence of slice or (start, stop), optional
        In chunk coordinates; `cas_zarr.repository.selection.index_box` makes it from a box of the
        array's index. The whole array by default.
    chunks : bool
        Whether the values of the chunks are in the proof, too.

    Returns
    -------
    bytes
        A CAR of version 1.

    Raises
    ------
    NotFoundError
        If the version has no such node.
    """
    _check_path(path)
    root = repo.resolve(version).root
    recorded = Recording(repo.blocks)
    _look(recorded, root, path.strip("/"), box, chunks=chunks)
    stream = io.BytesIO()
    writer = CarWriter(stream, [root], version=1)
    for cid, data in recorded.seen.items():
        writer.put(cid, data)
    writer.finish()
    return stream.getvalue()


def check_proof(
    car: bytes | str | os.PathLike[str],
    root: CidLike,
    path: str,
    box: Sequence[slice | tuple[int, int | None]] | None = None,
) -> Proof:
    """Check a proof with nothing but the CID of the root, and return what it shows.

    Parameters
    ----------
    car : bytes or path
        The proof. Only those blocks are looked at that the root leads to on the way to the box;
        others are ignored.
    root : str, bytes or CID
        The root that the checker trusts. What the CAR says of its root is not believed.
    path : str
        The array or the group.
    box : sequence of slice or (start, stop), optional
        As for `prove`; a part of the box that was proved can be checked, too.

    Raises
    ------
    BlockNotFoundError
        If the proof does not cover what is asked for.
    CorruptBlockError
        If a block in it does not hash to its CID.
    FormatError
        If it is no CAR, or a block is not what its link says.
    NotFoundError
        If it shows that the dataset has no such node.
    LimitError
        If it, or what it shows, is larger than `MAX_PROOF_BYTES` or `MAX_CHUNKS`.
    """
    _check_path(path)
    cid = as_cid_bytes(root)
    if codec_of(cid) != DAG_JSON:
        raise InvalidArgumentError(f"{format_cid(cid)} is the cid of no root; give that of a root")
    if not isinstance(car, (bytes, str, os.PathLike)):
        raise InvalidArgumentError(f"{type(car).__name__} is no proof; give bytes or a path")
    with _ProofBlocks(car, path or "the root") as blocks:
        return _look(blocks, cid, path.strip("/"), box, chunks=None)


def _check_path(path: str) -> None:
    if not isinstance(path, str):
        raise InvalidArgumentError(f"{path!r} is no path of a group or an array")


def _look(
    blocks: _ProofBlocks | Recording,
    root: CidBytes,
    path: str,
    box: Sequence[slice | tuple[int, int | None]] | None,
    *,
    chunks: bool | None,
) -> Proof:
    """Read what a proof is made of; `chunks` None reads the values if they are there."""
    reader = TreeReader(blocks)
    node = _node(reader, Root.from_block(blocks.get(root)).node, path)
    documents = {
        name: _document(reader, name, document) for name, document in sorted(node.docs.items())
    }
    form, bounds, table = _chunks(reader, node, path, _bounds(reader, node, path, box))
    whole = False
    if chunks is not False:
        whole = _values_are_there(reader, table, required=bool(chunks))
    return Proof(
        root=root,
        path=path,
        documents=documents,
        form=form,
        box=bounds,
        coordinates=decode(table.codes, len(bounds)),
        cids=table.cids,
        sizes=table.sizes,
        data_verified=whole,
        size=blocks.bytes_read,
    )


def _node(reader: TreeReader, node: Node, path: str) -> Node:
    for name in path.split("/") if path else ():
        child = get_child(reader, node, name)
        if child is None:
            raise NotFoundError(
                f"the dataset has no node {path!r}: there is no {name!r} on the way"
            )
        node = child
    return node


def _document(reader: TreeReader, name: str, document: Document) -> bytes:
    if not isinstance(document, Value):
        return document
    if document.size > _MAX_DOCUMENT:
        raise LimitError(f"{name} claims {document.size} bytes; at most {_MAX_DOCUMENT} are read")
    return bytes(read_value(reader, document.cid, document.size))


def _bounds(
    reader: TreeReader,
    node: Node,
    path: str,
    box: Sequence[slice | tuple[int, int | None]] | None,
) -> Box:
    """Return the box that is asked for; the array's grid, where it is known, if none is."""
    if box is not None:
        if not isinstance(box, Iterable):
            raise InvalidArgumentError(f"{box!r} is no box; give a start and a stop for each side")
        return tuple(_side(part) for part in box)
    info = describe_node(reader, node, path)
    if info.shape is not None and info.chunk_shape is not None:
        return index_box(info.shape, info.chunk_shape, ())
    dimensions = {parse_form(form)[1] for form in node.trees}
    if len(dimensions) > 1:
        raise InvalidArgumentError(
            f"{path!r} has chunks in {sorted(dimensions)} dimensions; give a box of one of them"
        )
    return ((0, _UPPER),) * next(iter(dimensions), 0)


def _side(part: slice | tuple[int, int | None]) -> tuple[int, int]:
    try:
        start, stop, step = (
            (part.start, part.stop, part.step) if isinstance(part, slice) else (*part, 1)
        )
        start = 0 if start is None else index(start)
        stop = _UPPER if stop is None else min(index(stop), _UPPER)
    except (TypeError, ValueError):
        start = stop = step = -1
    if start < 0 or stop < 0 or step not in (None, 1):
        raise InvalidArgumentError(
            f"{part} is no side of a box of chunks: it counts from 0 upwards, in steps of 1"
        )
    return min(start, stop), stop


def _chunks(reader: TreeReader, node: Node, path: str, box: Box) -> tuple[str | None, Box, Table]:
    """Return form, box and chunks of the tree that a box fits."""
    trees = list(select_trees(reader, node, len(box)))
    if len(trees) > 1:
        raise InvalidArgumentError(
            f"{path!r} has chunks under keys of several forms, and a proof is about one"
        )
    if not trees:
        return None, box, empty_table()
    form, tree = trees[0]
    most = min(math.prod(stop - start for start, stop in box), tree.ref.chunks)
    if most > MAX_CHUNKS:
        raise LimitError(
            f"{path!r} has up to {most} chunks there; a proof speaks of {MAX_CHUNKS} at most: give "
            "a smaller box"
        )
    if not box:
        return form, box, tree.table()
    starts, stops = zip(*box, strict=True)
    return form, box, tree.select(starts, stops)


def _values_are_there(reader: TreeReader, table: Table, *, required: bool) -> bool:
    """Read and verify the values of chunks, each block once; tell whether all are there."""
    if required and (total := sum(table.sizes.tolist())) > MAX_PROOF_BYTES:
        raise LimitError(
            f"the chunks have {total} bytes; a proof has at most {MAX_PROOF_BYTES}: give a smaller "
            "box, or leave the chunks out"
        )
    done: set[tuple[CidBytes, int]] = set()
    for row, size in enumerate(table.sizes.tolist()):
        pending = [(CidBytes(table.cids[row].tobytes()), size, 0)]
        while pending:
            cid, size, depth = pending.pop()
            if (cid, size) in done:  # a hostile file may link one block a billion times
                continue
            done.add((cid, size))
            try:
                if is_file(cid):
                    node = reader.file_node(cid)
                    found = node.size
                    pending.extend(
                        (child, part, depth + 1)
                        for child, part in zip(node.links, node.sizes, strict=True)
                    )
                else:
                    found = len(reader.blocks.get(cid))
            except BlockNotFoundError:
                if required:
                    raise
                return False
            if found != size or depth > _MAX_FILE_DEPTH:
                raise FormatError(
                    f"block {format_cid(cid)} of a value has {found} bytes where {size} are claimed"
                )
    return True


class _ProofBlocks(CarBlocks):
    """The blocks of a CAR that should be a proof, and how much of them was looked at.

    Parameters
    ----------
    car : bytes or path
    subject : str
        What the proof should be about, for messages.
    """

    def __init__(self, car: bytes | str | os.PathLike[str], subject: str) -> None:
        self._subject = subject
        self._looked_at: dict[CidBytes, int] = {}
        super().__init__(car if isinstance(car, bytes) else Path(car), index=False)

    @property
    def bytes_read(self) -> int:
        """Size of the blocks that were looked at, in bytes."""
        return sum(self._looked_at.values())

    # docstrings inherited

    @property
    def location(self) -> str:
        return "the proof"

    def _sections(self) -> Iterator[Section]:
        if self.file_size > MAX_PROOF_BYTES:
            raise LimitError(f"a proof of {self.file_size} bytes is over {MAX_PROOF_BYTES}")
        for number, section in enumerate(super()._sections()):
            if number == _MAX_SECTIONS:
                raise LimitError(f"a proof has more than {_MAX_SECTIONS} blocks")
            yield section

    def _read(self, cid: CidBytes) -> bytes | None:
        data = super()._read(cid)
        if data is not None:
            self._looked_at[cid] = len(data)
        return data

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        return map_ordered(self.get, cids)  # each is counted

    def _not_found(self, cid: CidBytes) -> BlockNotFoundError:
        return BlockNotFoundError(
            f"the proof does not cover what is asked of {self._subject}: block {format_cid(cid)} "
            "is not in it; ask for a proof of this root and box"
        )
