"""Import of a Zarr hierarchy that was published as plain UnixFS, without fetching its chunks.

Directories are walked, many at a time; metadata documents are fetched and become documents; every
other file becomes a link to the blocks that it has already, whatever tool wrote it. What a raw leaf
has in bytes its directory says; of other files the top node is read. A lie there is found when the
chunk is read, as every block is verified then. Files with bytes inside their CIDs are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, BlockStore
from cas_zarr.blocks.readonly import ReadOnlyBlocks
from cas_zarr.cid import (
    DAG_PB,
    DIGEST_SIZE,
    HASHES,
    RAW,
    CidBytes,
    CidLike,
    as_cid_bytes,
    codec_of,
    format_cid,
    hash_by_name,
    hash_of,
)
from cas_zarr.codecs.unixfs import FileNode, decode_file_node
from cas_zarr.codecs.unixfsdir import node_type
from cas_zarr.errors import (
    CasZarrError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    LimitError,
    NotFoundError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.imports import Progress, write_parents
from cas_zarr.repository.opening import parse_location
from cas_zarr.repository.remotes import Remote, add_remote, list_remotes
from cas_zarr.repository.session import Session
from cas_zarr.tree.apply import apply, bind, link
from cas_zarr.tree.changes import Changes, is_document
from cas_zarr.tree.directories import (
    is_inline,
    list_directory,
    read_block,
    read_blocks,
    read_file,
    resolve_path,
)
from cas_zarr.tree.keys import MAX_DEPTH, OWNERS, check_key, parse_chunk, split_key
from cas_zarr.tree.node import EMPTY, Header, Root, Value
from cas_zarr.tree.page import CID_SIZE
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import MAX_VALUE_SIZE, write_value
from cas_zarr.tree.view import TreeView

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["UnixfsReport", "import_unixfs", "link_published", "link_unixfs"]

MAX_DOCUMENT: Final = 64 << 20
"""Longest metadata document that is fetched, in bytes."""

MAX_KEYS: Final = 1 << 24
"""Most files of an import: a few blocks can claim any number."""

MAX_COPIED: Final = 1 << 30
"""Most bytes of documents, and of files that cannot be linked: they are held in memory."""

_BATCH: Final = 128  # blocks that are read together
_SMALL_LEAF: Final = 1 << 16  # leaves below this are cut by an unusual chunker
_USUAL_LINKS: Final = 174  # of a node, where the writer was told nothing else
_MAX_FILE_DEPTH: Final = 16  # of nodes that link nodes; readers refuse more


@dataclass(frozen=True, slots=True)
class UnixfsReport:
    """What an import of UnixFS has done.

    Attributes
    ----------
    source : str
        The directory, as an /ipfs/ path.
    path : str
        The node it was put at, "" for the root.
    keys : int
        Number of keys that are bound.
    size : int
        Their values' length in bytes.
    linked : int
        How many of them are links to blocks that were not fetched, or but for their top node.
    fetched : int
        Number of blocks that were read.
    """

    source: str
    path: str
    keys: int
    size: int
    linked: int
    fetched: int


def import_unixfs(
    target: Session | CASMapping,
    blocks: BlockStore,
    cid: CidLike,
    *,
    path: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> UnixfsReport:
    """Link a Zarr hierarchy that lies somewhere as a UnixFS directory.

    Afterwards the node at `path` holds the keys of the directory. Its chunks stay where they are:
    whoever reads them needs a block store that has them; see `link_unixfs`.

    Parameters
    ----------
    target : Session or CASMapping
        Where to write. It is not flushed.
    blocks : BlockStore
        Where directories, documents and the top nodes of files are read.
    cid : CID
        The directory. Zarr formats 2 and 3, directories sharded or not, files of any layout.
    path : str
        Node to put it at; "" is the root.
    replace : bool
        Whether what is at `path` is replaced; without it `path` must be empty.
    progress : callable, optional
        Called with the files that are done and those that are known so far.

    Raises
    ------
    NotFoundError
        If there is no Zarr array or group in the directory.
    InvalidArgumentError
        If something is at `path` already.
    InvalidKeyError
        If a name cannot be stored.
    InvalidCIDError
        If a file has a hash that cannot be checked here.
    FormatError, BlockNotFoundError
        If a directory cannot be read.
    LimitError
        If there are more files than 2^24, folders nested deeper than 64, or more than a GiB of
        documents and of files that cannot be linked.
    """
    key = as_cid_bytes(cid)
    mapping = target.prepare() if isinstance(target, Session) else target
    path = mapping.check_target(path, overwrite=replace)
    walk = _Walk(blocks, progress)
    walk.run(key)
    files = walk.files
    if not any(is_document(name) for name in files):
        raise NotFoundError(
            f"no zarr array or group is at /ipfs/{format_cid(key)}: there is no zarr.json, .zgroup "
            "or .zarray; name the directory that holds one"
        )
    root = _build(mapping, files)
    mapping.attach(path, root, overwrite=replace)
    write_parents(mapping, path, files)
    return UnixfsReport(
        f"/ipfs/{format_cid(key)}",
        path,
        len(files),
        sum(file.size for file in files.values()),
        sum(1 for file in files.values() if file.data is None),
        walk.blocks.fetched,
    )


def link_published(
    repo: Repository, source: str, *, branch: str = "main", path: str = "", **options: Any
) -> UnixfsReport:
    """Import a UnixFS directory by its address, as `link_unixfs` does.

    Parameters
    ----------
    repo : Repository
        Its gateways and its node are asked.
    source : str
        ``ipfs://CID``, ``ipfs://CID/path`` or ``ipns://name``, or one of them at a gateway,
        ``https://host/ipfs/CID``.
    branch, path, **options
        As of `link_unixfs`.

    Raises
    ------
    InvalidArgumentError
        If a dataset of cas_zarr is there, or no directory.
    """
    if parse_location(source).kind not in ("ipfs", "ipns"):
        raise InvalidArgumentError(
            f"{source!r} is no directory of files on ipfs; give ipfs://CID, ipns://NAME, or the "
            "address of one at a gateway"
        )
    with repo.open_from(source, repo.sources) as there:
        fixed = there.fixed
        place = parse_location(fixed)
        cid = as_cid_bytes(place.name)
        if codec_of(cid) != DAG_PB:
            raise InvalidArgumentError(
                f"{fixed} is no directory of files; clone it if it is a commit, and attach a root "
                "of cas_zarr"
            )
        folder = resolve_path(there.blocks, cid, place.path).cid
        return link_unixfs(repo, fixed, there.blocks, folder, branch=branch, path=path, **options)


def link_unixfs(
    repo: Repository,
    location: str,
    blocks: BlockStore,
    cid: CidLike,
    *,
    branch: str = "main",
    path: str = "",
    replace: bool = False,
    message: str | None = None,
    progress: Progress | None = None,
) -> UnixfsReport:
    """Import a UnixFS directory, commit it, and read its chunks from there from now on.

    The place becomes a remote of the repository that blocks are left at, as in a partial clone; a
    repository that is opened after this reads them there.

    Parameters
    ----------
    repo : Repository
    location : str
        Where the chunks are, as `Repository.open` takes it: ``ipfs://CID``.
    blocks : BlockStore
        Where directories and documents are read now.
    cid : CID
        The directory.
    branch, path, replace, progress
        As of `import_unixfs`.
    message : str, optional
        Of the commit.

    Raises
    ------
    CasZarrError
        As `import_unixfs` does; the repository is as it was then.
    """
    repo.make()
    with Session(repo, branch) as session:
        try:
            report = import_unixfs(
                session, blocks, cid, path=path, replace=replace, progress=progress
            )
            _leave_at(repo, location)  # before a version leads to what is there
        except BaseException:
            session.discard()
            raise
        session.commit(message or f"link {report.source}")
    return report


def _leave_at(repo: Repository, location: str) -> Remote:
    remotes = list_remotes(repo.refs)
    for remote in remotes:
        if remote.location == location and remote.partial:
            return remote
    taken = {remote.name for remote in remotes}
    name = next(
        name
        for name in ("ipfs", *(f"ipfs-{number}" for number in range(2, len(taken) + 3)))
        if name not in taken
    )
    return add_remote(repo.refs, name, location, parts=())


# -- walking --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """A file, by its CID and its size; with its bytes where it cannot be linked."""

    cid: CidBytes
    size: int
    data: bytes | None = None


class _Counting(ReadOnlyBlocks):
    """Reads another store and counts the blocks."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self.fetched = 0

    # docstrings inherited

    @property
    def location(self) -> str:
        return self._blocks.location

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        self.fetched += len(cids)
        return self._blocks.get_many(cids)

    def _read(self, cid: CidBytes) -> bytes | None:
        self.fetched += 1
        return self._blocks.get(cid)

    def _has(self, cid: CidBytes) -> bool:
        return self._blocks.has(cid)

    def _size(self, cid: CidBytes) -> int | None:
        return self._blocks.size(cid)


class _Walk:
    """Finds all files below a directory, and reads what has to be read many at a time."""

    def __init__(self, blocks: BlockStore, progress: Progress | None) -> None:
        self.blocks = _Counting(blocks)
        self.progress = progress
        self.files: dict[str, _File] = {}
        self.known = 0
        self.copied = 0

    def run(self, cid: CidBytes) -> None:
        if codec_of(cid) != DAG_PB:
            raise NotFoundError(
                f"{format_cid(cid)} is no directory; name one that holds a zarr array or group"
            )
        pending: list[tuple[str, CidBytes]] = [("", cid)]
        while pending:
            batch = [pending.pop() for _ in range(min(_BATCH, len(pending)))]
            found = read_blocks(self.blocks, [below for _, below in batch])
            for (key, below), data in zip(batch, found, strict=True):
                if codec_of(below) == RAW:
                    linked = _can_link(below) and not is_document(key)
                    self._add(key, _File(below, len(data), None if linked else data))
                else:
                    self._open(key, below, data, pending)
            if self.progress is not None:
                self.progress(len(self.files), max(self.known, len(self.files)))

    def _open(
        self, key: str, cid: CidBytes, data: bytes, pending: list[tuple[str, CidBytes]]
    ) -> None:
        try:
            kind = node_type(data)
            node = decode_file_node(data) if kind == "file" else None
        except FormatError as error:
            raise FormatError(f"{key!r} ({format_cid(cid)}) cannot be imported: {error}") from None
        if node is not None and key:
            self._add_node(key, cid, node)
            return
        if kind not in ("directory", "shard"):
            raise FormatError(
                f"{key!r} ({format_cid(cid)}) is a {kind}, not a directory; it cannot be imported"
            )
        if key.count("/") >= MAX_DEPTH - 1:
            raise LimitError(f"{key[:80]!r} is nested deeper than {MAX_DEPTH} folders")
        for name, below, size in list_directory(self.blocks, cid, block=data):
            self.known += 1
            if self.known > MAX_KEYS:
                raise LimitError(f"there are more than {MAX_KEYS} files; import a part of them")
            self._enter(f"{key}/{name}" if key else name, below, size, pending)

    def _enter(
        self, key: str, cid: CidBytes, size: int, pending: list[tuple[str, CidBytes]]
    ) -> None:
        """Enter what a directory links: all but a raw leaf of which it tells the size is read."""
        check_key(key)
        codec = codec_of(cid)
        if codec not in (RAW, DAG_PB):
            raise FormatError(
                f"{key!r} ({format_cid(cid)}) is a block of codec 0x{codec:x}, and no file; it "
                "cannot be imported"
            )
        linkable = _can_link(cid)
        if not linkable and not is_inline(cid):
            try:
                hash_of(cid)
            except InvalidCIDError as error:
                raise InvalidCIDError(f"{key!r} cannot be imported: {error}") from None
        if codec == DAG_PB or not linkable or is_document(key) or not size:
            pending.append((key, cid))
            return
        if size > MAX_BLOCK_SIZE:
            raise FormatError(
                f"{key!r} ({format_cid(cid)}) claims {size} bytes in one block; at most "
                f"{MAX_BLOCK_SIZE} can be"
            )
        self._add(key, _File(cid, size))

    def _add_node(self, key: str, cid: CidBytes, node: FileNode) -> None:
        document = is_document(key)
        limit = MAX_DOCUMENT if document else MAX_VALUE_SIZE
        if node.size > limit:
            raise LimitError(
                f"{key!r} ({format_cid(cid)}) has {node.size} bytes; at most {limit} can be"
            )
        if not document and _can_link(cid) and self._is_linkable(key, node):
            self._add(key, _File(cid, node.size))
            return
        self._check_copied(key, node.size)
        try:
            data = read_file(self.blocks, cid, limit=limit) if node.links else node.data
        except CasZarrError as error:
            raise type(error)(f"{key!r} cannot be imported: {error}") from None
        self._add(key, _File(cid, len(data), data))

    def _is_linkable(self, key: str, node: FileNode) -> bool:
        """Tell whether all links of a file are to blocks, none inline.

        Writers inline what is short, so in a file of leaves of one size only the last can be. Where
        there are nodes between, those on the way to it are read.
        """
        for _ in range(_MAX_FILE_DEPTH):
            if not all(map(_can_link, node.links)):
                return False
            if not node.links or codec_of(node.links[-1]) != DAG_PB or not _has_levels(node):
                return True
            try:
                node = decode_file_node(read_block(self.blocks, node.links[-1]))
            except FormatError as error:
                raise FormatError(f"{key!r} cannot be imported: {error}") from None
        raise FormatError(f"{key!r} is more than {_MAX_FILE_DEPTH} nodes deep; files are not")

    def _add(self, key: str, file: _File) -> None:
        if key in self.files:
            raise FormatError(f"the directory has {key!r} twice")
        if file.data is not None:
            self._check_copied(key, file.size)
            self.copied += file.size
        self.files[key] = file

    def _check_copied(self, key: str, size: int) -> None:
        if self.copied + size > MAX_COPIED:
            raise LimitError(
                f"with {key!r} the documents and files that are copied have more than {MAX_COPIED} "
                "bytes; import a part of the directory"
            )


def _can_link(cid: CidBytes) -> bool:
    """Tell whether a value can have this CID: one of 36 bytes, of a hash that is known here."""
    return len(cid) == CID_SIZE and cid[2] in HASHES and cid[3] == DIGEST_SIZE


def _has_levels(node: FileNode) -> bool:
    """Tell whether the links of a file may be to nodes that link others."""
    first = node.sizes[0]
    return first > MAX_BLOCK_SIZE or first < _SMALL_LEAF or len(node.links) > _USUAL_LINKS


# -- linking --------------------------------------------------------------------------------------


def _build(mapping: CASMapping, files: dict[str, _File]) -> Root:
    """Write the tree of a dataset that has these files as its keys."""
    function = hash_by_name(mapping.hash)
    changes = Changes()
    owners = {split_key(key)[0] for key in files if split_key(key)[1] in OWNERS}
    nearest: dict[str, str | None] = {}
    grids: dict[tuple[str, str, int], _Grid] = {}
    for key, file in files.items():
        if is_document(key):
            changes.set_document(key, file.data or b"")
            continue
        value = Value(file.cid, file.size)
        if file.data is not None:
            value = Value(write_value(mapping.blocks, function, file.data), file.size)
        owner = _owner(split_key(key)[0], owners, nearest)
        chunk = None
        if owner is not None:
            chunk = parse_chunk(key[len(owner) + 1 :] if owner else key)
        if owner is None or chunk is None:
            bind(changes, key, value)
            continue
        kind, coordinates = chunk
        grid = grids.setdefault((owner, kind, len(coordinates)), _Grid())
        grid.coordinates.append(coordinates)
        grid.cids += value.cid
        grid.sizes.append(value.size)
    reader = TreeReader(mapping.blocks)
    root = apply(TreeView(reader, Root(Header(function), EMPTY)), changes)
    for (owner, kind, ndim), grid in grids.items():
        n = len(grid.sizes)
        root = link(
            TreeView(reader, root),
            owner,
            np.array(grid.coordinates, np.int64).reshape(n, ndim),
            np.frombuffer(bytes(grid.cids), np.uint8).reshape(n, CID_SIZE),
            np.array(grid.sizes, np.int64),
            kind,
        )
    return root


@dataclass(slots=True)
class _Grid:
    coordinates: list[tuple[int, ...]] = field(default_factory=list)
    cids: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=list)


def _owner(folder: str, owners: set[str], nearest: dict[str, str | None]) -> str | None:
    """Return the deepest folder at or above one that owns chunks."""
    if folder not in nearest:
        if folder in owners:
            nearest[folder] = folder
        else:
            nearest[folder] = _owner(split_key(folder)[0], owners, nearest) if folder else None
    return nearest[folder]
