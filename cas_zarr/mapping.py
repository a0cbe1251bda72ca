"""A dataset as a dict: `CASMapping`, the MutableMapping that zarr 2, kerchunk and plain code take.

It is a root document, read through `cas_zarr.tree.view`, with the changes that were made since.
Blocks, and so roots, are written once; keys of the working state can be set anew and deleted,
unless the mapping is strict.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import (
    BLAKE3,
    DAG_JSON,
    RAW,
    BytesLike,
    CidBytes,
    CidLike,
    as_cid_bytes,
    cid_of,
    codec_of,
    format_cid,
    hash_by_name,
    make_cid,
)
from cas_zarr.codecs.shardindex import ShardLayout, parse_layout
from cas_zarr.codecs.unixfs import LEAF_SIZE
from cas_zarr.errors import (
    BlockNotFoundError,
    ConflictError,
    FormatError,
    InvalidArgumentError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
    WriteOnceError,
)
from cas_zarr.tree.apply import apply, link, link_keys
from cas_zarr.tree.changes import ABSENT, CLEAR, Changes, is_document
from cas_zarr.tree.delta import Delta, delta_between, delta_of, unite
from cas_zarr.tree.graft import graft
from cas_zarr.tree.keys import (
    DOCUMENTS,
    OWNERS,
    PLAIN_LENGTH,
    check_key,
    is_plain,
    parse_chunk,
    split_key,
)
from cas_zarr.tree.merge import merge
from cas_zarr.tree.node import EMPTY, Document, Header, Node, Root, Value, chunks_in
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import read_value, write_value
from cas_zarr.tree.view import TreeView, box_cid

__all__ = ["CASMapping"]

_SETTLE_AT: Final = 1 << 18
_SETTLE_BY: Final = 1 << 22  # each change takes up to 200 bytes
_DIGITS: Final = frozenset("0123456789")


class CASMapping(MutableMapping[str, bytes]):
    """The keys and values of one dataset, over a block store.

    Parameters
    ----------
    blocks : BlockStore
        Where blocks are read and written.
    root : CID, optional
        The root document to start from; without it the mapping is empty.
    hash : str, optional
        Hash of a new dataset, ``"blake3"`` (the default) or ``"sha2-256"``. A root brings its own.
    read_only : bool
        Refuse every change.
    strict : bool
        Refuse to bind a key anew or to delete it: `WriteOnceError`.

    Notes
    -----
    `flush` makes the state durable and returns its root CID; nothing else does. All methods may be
    called from several threads.
    """

    def __init__(
        self,
        blocks: BlockStore,
        root: CidLike | None = None,
        *,
        hash: str | None = None,
        read_only: bool = False,
        strict: bool = False,
    ) -> None:
        self.blocks = blocks
        self.strict = strict
        self.reader = TreeReader(blocks)
        self._lock = threading.RLock()
        self._root = None if root is None else as_cid_bytes(root)
        if self._root is None:
            function = BLAKE3 if hash is None else hash_by_name(hash)
            view = TreeView(self.reader, Root(Header(function), EMPTY))
        else:
            view = self._open(self._root)
        self.read_only = read_only or blocks.read_only or bool(view.root.header.needs_to_write)
        self._function = view.root.header.function
        self._raw_prefix = make_cid(RAW, self._function, b"")
        self._digest = self._function.digest
        self._flushed = view.root
        self._state = view, Changes()  # replaced as one, so readers see a consistent pair
        self._settle_at = _settle_at(view.root)

    # -- one key ----------------------------------------------------------------------------

    def get_value(
        self, key: str, start: int = 0, stop: int | None = None
    ) -> bytes | memoryview | None:
        """Return the value of a key, or a range of its bytes, verified; None if there is none.

        Parameters
        ----------
        key : str
        start, stop : int
            Range of bytes; a negative `start` counts from the end.

        Returns
        -------
        bytes or memoryview or None
        """
        found = self.find(key)
        if found is None:
            return None
        if not isinstance(found, Value):
            return found[start:stop] if start or stop is not None else found
        if start < 0:
            start = max(0, found.size + start)
        return read_value(self.reader, found.cid, found.size, start, stop)

    def set_value(self, key: str, data: BytesLike | NDArray[Any]) -> None:
        """Bind a key to a value, which is hashed and stored before this returns.

        Raises
        ------
        ReadOnlyError, WriteOnceError, InvalidKeyError, LimitError
        """
        if self.read_only:
            raise self._read_only()
        if type(key) is not str or len(key) >= PLAIN_LENGTH or is_plain(key) is None:
            check_key(key)
        if type(data) is not bytes:
            data = _bytes_of(data)
        if key[-1] not in _DIGITS and is_document(key):
            self._set_document(key, bytes(data))
            return
        size = len(data)
        layout = None if size <= LEAF_SIZE else self.layout_now(key)
        if size <= LEAF_SIZE:
            cid: Any = self._raw_prefix + self._digest(data)
            self.blocks.put(cid, data)
        else:
            cid = write_value(self.blocks, self._function, data, layout)
        self.bind(key, cid, size, layout)

    def bind(self, key: str, cid: CidBytes, size: int, layout: ShardLayout | None = None) -> None:
        """Bind a checked key, of no document, to a value that `write_value` stored."""
        if self.strict:
            _check_same(key, self.find(key), Value(cid, size))
        with self._lock:
            changes = self._state[1]
            changes.values[key] = cid + size.to_bytes(8, "little")
            if size > LEAF_SIZE:
                changes.layouts[key] = layout
            elif changes.layouts:
                changes.layouts.pop(key, None)
            if len(changes.values) > self._settle_at:
                self._settle()

    def discard(self, key: str) -> bool:
        """Unbind a key; tell whether it was bound."""
        self._check_deletable()
        if self.find(key) is None:
            return False
        with self._lock:
            self._state[1].delete(key)
        return True

    def discard_prefix(self, folder: str) -> None:
        """Unbind every key in a folder: `folder` is "" or ends with a slash."""
        self._check_deletable()
        if folder:
            if not folder.endswith("/"):
                raise InvalidArgumentError(f"folder {folder!r} does not end with a slash")
            check_key(folder[:-1])
        with self._lock:
            view = self._settle()
            changes = self._state[1]
            changes.clear(folder)
            for key in view.chunk_keys_above(folder):
                changes.delete(key)

    def size_of(self, key: str) -> int | None:
        """Return the size of a value in bytes, from the tree alone; None if there is none."""
        found = self.find(key)
        if found is None:
            return None
        return found.size if isinstance(found, Value) else len(found)

    def exists(self, key: str) -> bool:
        """Tell whether a key is bound."""
        return self.find(key) is not None

    def cid_of(self, key: str) -> CidBytes | None:
        """Return the CID of a value (of a document too), or None."""
        found = self.find(key)
        if found is None:
            return None
        return found.cid if isinstance(found, Value) else cid_of(RAW, self._function, found)

    # -- many keys --------------------------------------------------------------------------

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        """Yield every key that begins with `prefix`, as they are now."""
        return self._settle().keys(prefix)

    def list_folder(self, path: str = "") -> Iterator[str]:
        """Yield the names directly below a path, sorted."""
        return iter(self._settle().folder(path.rstrip("/")))

    def prefix_size(self, prefix: str = "") -> int:
        """Return the bytes of all values in a folder, from the tree alone."""
        return self._settle().size_below(prefix.rstrip("/"))

    def set_links(
        self,
        path: str,
        coordinates: NDArray[np.integer[Any]],
        cids: NDArray[np.uint8],
        sizes: NDArray[np.integer[Any]],
        *,
        kind: str = "c/",
    ) -> None:
        """Bind many chunks of an array to blocks that are stored, all at once.

        Parameters
        ----------
        path : str
            Path of the array, which has its `zarr.json` or `.zarray` already.
        coordinates : array of integers, shape (n, ndim)
            Chunk coordinates, each at most once.
        cids : array of uint8, shape (n, 36)
            CIDs of the values.
        sizes : array of integers, shape (n,)
            Bytes of the values.
        kind : str
            Kind of chunk key: ``c/`` (default of v3), ``c.``, ``.`` (default of v2) or ``/``.
        """
        self._check_bulk()
        with self._lock:
            self._adopt(link(self._settle(), path, coordinates, cids, sizes, kind))

    def set_cids(
        self, keys: Sequence[str], cids: NDArray[np.uint8], sizes: NDArray[np.integer[Any]]
    ) -> None:
        """Bind many keys to values that are stored, all at once.

        It is quickest where keys of one array follow one another; see `set_links` where their
        coordinates are known.

        Parameters
        ----------
        keys : sequence of str
            Keys of chunks and others, none of a document, each at most once.
        cids : array of uint8, shape (n, 36)
            CIDs of the values.
        sizes : array of integers, shape (n,)
            Bytes of the values.
        """
        self._check_bulk()
        with self._lock:
            self._adopt(link_keys(self._settle(), keys, cids, sizes))

    # -- versions ---------------------------------------------------------------------------

    @property
    def root(self) -> CidBytes | None:
        """The root that was opened or flushed last; None before the first flush."""
        return self._root

    @property
    def hash(self) -> str:
        """Name of the hash of this dataset."""
        return self._function.name

    @property
    def dirty(self) -> bool:
        """Whether there are changes that were not flushed."""
        view, changes = self._state
        return bool(changes) or view.root is not self._flushed

    @property
    def view(self) -> TreeView:
        """The tree with all changes so far."""
        return self._settle()

    def flush(self) -> CidBytes:
        """Make the state durable and return the CID of its root document."""
        if self.read_only and self._root is not None:
            return self._root
        with self._lock:
            root = self._settle().root
            if root is not self._flushed or self._root is None:
                data = root.to_block()
                cid = cid_of(DAG_JSON, self._function, data)
                if not self.read_only:
                    self.blocks.put(cid, data)
                    self.blocks.flush()
                self._root, self._flushed = cid, root
            elif not self.read_only:
                self.blocks.flush()  # `cid` may have stored a subtree
            return self._root

    def unite(self, theirs: CidLike | None, *, base: CidLike | None) -> None:
        """Apply what changed here since `base` to the root of another writer.

        Parameters
        ----------
        theirs : CID or None
            The root that another writer has placed meanwhile.
        base : CID or None
            The root that both began with.

        Raises
        ------
        ConflictError
            If both changed the same thing, or the other has another hash; nothing is changed then.
        ReadOnlyError
            If the other root needs something of its writers that this release does not know.
        """
        with self._lock:
            ours = self._settle()
            empty = Root(Header(self._function), EMPTY)
            views = [
                TreeView(self.reader, empty) if cid is None else self._open(as_cid_bytes(cid))
                for cid in (base, theirs)
            ]
            header = views[1].root.header
            if header.needs_to_write:
                raise _needs(header)
            if header.function is not self._function:
                raise ConflictError(
                    f"another writer made a dataset with {header.function.name} here, this one has "
                    f"{self._function.name}; open the branch anew"
                )
            self._adopt(merge(views[0], ours, views[1]).root)

    def delta(self, since: CidBytes) -> Delta:
        """Return what was changed here since a root, whatever was flushed meanwhile."""
        with self._lock:
            view, changes = self._state
            if self._root != since:
                return delta_between(self._open(since), self._settle())
            if view.root is self._flushed:
                return delta_of(view, changes)
            return delta_between(TreeView(self.reader, self._flushed), self._settle())

    def unite_deltas(self, deltas: Mapping[CidBytes, Sequence[Delta]]) -> None:
        """Apply what others changed, all of it or, where it conflicts, nothing.

        Parameters
        ----------
        deltas : mapping of CidBytes to sequence of Delta
            By the root that they began with, as this mapping did. Their values are stored here.

        Raises
        ------
        ConflictError
            If two of them, or one and this mapping, changed the same thing.
        """
        if self.read_only:
            raise self._read_only()
        with self._lock:
            view = self._settle()
            for base, parts in deltas.items():
                unmoved = self._root == base and view.root is self._flushed
                before = view if unmoved else self._open(base)
                root = unite(before, parts)
                if not unmoved:
                    root = merge(before, view, TreeView(self.reader, root)).root
                view = TreeView(self.reader, root)
            self._adopt(view.root)

    def cid(self, path: str = "", box: Sequence[slice | tuple[int, int]] | None = None) -> CidBytes:
        """Return the CID of a group or an array, or of a box of an array's chunks.

        Parameters
        ----------
        path : str
            Path of the node; "" is the whole dataset.
        box : sequence of slices or (start, stop), optional
            A box in chunk coordinates. Equal boxes have equal CIDs wherever they lie.

        Notes
        -----
        In a writable mapping the subtree's document becomes a stored block, durable with the next
        flush, so that it can be opened by its CID.
        """
        view = self._settle()
        path = path.strip("/")
        node = view.node(path)
        if node is None or (path and not node):
            raise NotFoundError(f"there is no node {path!r}; list the folder above it")
        if box is not None:
            return box_cid(view, path, box)
        data = (view.root.subtree(node) if path else view.root).to_block()
        cid = cid_of(DAG_JSON, self._function, data)
        if not self.read_only:
            self.blocks.put(cid, data)
        return cid

    # -- subtrees ---------------------------------------------------------------------------

    def copy(self, source: str, target: str, *, overwrite: bool = False) -> None:
        """Put a group or an array, with all below it, at another path too.

        No chunk is opened, whatever lies there: the two share all blocks. Missing groups above
        the target are not made.

        Parameters
        ----------
        source, target : str
            Paths of nodes; `target` is not "".
        overwrite : bool
            Replace what is at `target`.

        Raises
        ------
        NotFoundError
            If there is nothing at `source`.
        InvalidArgumentError
            If something is at `target`, or the path cannot take it.
        """
        with self._lock:
            node = self._node_to_copy(source)
            path = self.check_target(target, overwrite=overwrite)
            self._graft(path, node)

    def move(self, source: str, target: str, *, overwrite: bool = False) -> None:
        """Put a group or an array, with all below it, at another path instead; see `copy`."""
        self._check_deletable()
        with self._lock:
            node = self._node_to_copy(source)
            path, old = self.check_target(target, overwrite=overwrite), source.strip("/")
            if not old or path == old or path.startswith(f"{old}/"):
                raise InvalidArgumentError(
                    f"{old!r} cannot be moved to {path!r}, which is the same or lies in it; give "
                    "a path outside"
                )
            self._graft(path, node, without=old)

    def attach(self, path: str, subtree: CidLike | Root, *, overwrite: bool = False) -> None:
        """Put a root, or a subtree as `cid` names it, at a path; see `copy`.

        Parameters
        ----------
        path : str
            Where to put it; "" replaces the whole dataset.
        subtree : CID or Root
            Its document. All its blocks must be in this block store.
        overwrite : bool
            Replace what is at `path`.

        Raises
        ------
        BlockNotFoundError
            If the document is not there.
        InvalidArgumentError
            If something is at `path`, or the path cannot take it.
        ReadOnlyError
            If the subtree needs something of its writers that this release does not know.
        """
        if not isinstance(subtree, Root):
            subtree = self._open(as_cid_bytes(subtree)).root
        if subtree.header.needs_to_write:
            raise _needs(subtree.header)
        with self._lock:
            path = self.check_target(path, overwrite=overwrite)
            self._graft(path, subtree.node)

    def check_target(self, path: str, *, overwrite: bool = False) -> str:
        """Refuse a path that a subtree cannot be put at; return it without outer slashes."""
        if self.read_only:
            raise self._read_only()
        if overwrite and self.strict:
            raise WriteOnceError("a strict mapping replaces nothing; open without strict=True")
        path = path.strip("/")
        if path:
            check_key(path)
        if split_key(path)[1] in DOCUMENTS:
            raise InvalidArgumentError(
                f"{path!r} is the key of a document, and no node can be there; give another path"
            )
        taken = self.view.node(path) if path == "" else self.exists(path) or self._has_below(path)
        if taken and not overwrite:
            raise InvalidArgumentError(
                f"there is something at {repr(path) if path else 'the root'} already; pass "
                "overwrite=True to replace it, or give another path"
            )
        return path

    def _graft(self, path: str, node: Node, *, without: str | None = None) -> None:
        """Put a subtree at a path; all of it is done, or, where it cannot be put there, nothing."""
        view = self._settle()
        if without is not None:
            view = TreeView(self.reader, graft(view, without, None))
        if path and view.find(path) is not None:  # a key of the same name
            changes = Changes()
            changes.delete(path)
            view = TreeView(self.reader, apply(view, changes))
        self._adopt(graft(view, path, node))

    def _has_below(self, path: str) -> bool:
        return next(self.list_keys(f"{path}/"), None) is not None

    def _node_to_copy(self, source: str) -> Node:
        source = source.strip("/")
        node = self.view.node(source)
        if not node:
            raise NotFoundError(f"there is no node {source!r}; list the folder above it")
        return node

    # -- MutableMapping ---------------------------------------------------------------------

    def __getitem__(self, key: str) -> bytes:
        try:
            value = self.get_value(key)
        except BlockNotFoundError as error:
            # It is there, but out of reach: a KeyError would say that there is none.
            raise StorageError(str(error)) from error
        if value is None:
            raise KeyError(key)
        return value if type(value) is bytes else bytes(value)

    def __setitem__(self, key: str, value: BytesLike | NDArray[Any]) -> None:
        self.set_value(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.discard(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.exists(key)

    def __iter__(self) -> Iterator[str]:
        return self.list_keys()

    def __len__(self) -> int:
        return sum(1 for _ in self.list_keys())

    def clear(self) -> None:
        """Unbind every key."""
        self.discard_prefix("")

    def __repr__(self) -> str:
        name = "new" if self._root is None else format_cid(self._root)
        return f"<CASMapping {name} in {self.blocks.location}{' (changed)' if self.dirty else ''}>"

    # zarr 2 asks a store for these instead of going through all keys
    def listdir(self, path: str = "") -> list[str]:
        """Return the names directly below a path (the store interface of zarr 2)."""
        return list(self.list_folder(path))

    def rmdir(self, path: str = "") -> None:
        """Unbind every key below a path (the store interface of zarr 2)."""
        path = path.strip("/")
        self.discard_prefix(f"{path}/" if path else "")

    def getsize(self, path: str = "") -> int:
        """Return the bytes of a value or of a folder (the store interface of zarr 2)."""
        size = self.size_of(path) if path else None
        return self.prefix_size(path) if size is None else size

    # -- inside -----------------------------------------------------------------------------

    def find(self, key: str) -> Document | None:
        """Return what a key is bound to: a `Value`, the bytes of a document, or None."""
        view, changes = self._state
        if changes.values or changes.docs or changes.cleared:  # a call less than its truth
            found = changes.get(key)
            if found is ABSENT:
                return None
            if found is not CLEAR:
                return found  # type: ignore[return-value]
        return view.find(key)

    def _settle(self) -> TreeView:
        """Apply the changes so far to the tree in memory; return it."""
        view, changes = self._state
        if changes:
            with self._lock:
                view, changes = self._state
                if changes:
                    view = self._adopt(apply(view, changes))
        return view

    def _adopt(self, root: Root) -> TreeView:
        view = TreeView(self.reader, root)
        self._state = view, Changes()
        self._settle_at = _settle_at(root)
        return view

    def _open(self, cid: CidBytes) -> TreeView:
        if codec_of(cid) != DAG_JSON:
            raise FormatError(f"cid {format_cid(cid)} is not that of a root document")
        return TreeView(self.reader, Root.from_block(self.blocks.get(cid)))

    def _set_document(self, key: str, data: bytes) -> None:
        if self.strict:
            old = self.find(key)
            if isinstance(old, Value):
                old = self._state[0].document_bytes(old)
            _check_same(key, old, data)
        with self._lock:
            self._state[1].set_document(key, data)

    def layout_now(self, key: str) -> ShardLayout | None:
        """Return the sharding of a key's array as it is now; a flush looks again."""
        folder = split_key(key)[0]
        while True:
            base = f"{folder}/" if folder else ""
            if any(self.find(base + name) is not None for name in OWNERS):
                break
            if not folder:
                return None
            folder = split_key(folder)[0]
        if parse_chunk(key[len(base) :]) is None:
            return None
        document = self.find(f"{base}zarr.json")
        if document is None:
            return None
        return parse_layout(self._state[0].document_bytes(document))

    def _check_bulk(self) -> None:
        if self.read_only:
            raise self._read_only()
        if self.strict:
            raise WriteOnceError("a strict mapping binds its keys one by one; use set_value")

    def _check_deletable(self) -> None:
        if self.read_only:
            raise self._read_only()
        if self.strict:
            raise WriteOnceError("a strict mapping deletes nothing; open without strict=True")

    def _read_only(self) -> ReadOnlyError:
        if self._flushed.header.needs_to_write:
            return _needs(self._flushed.header)
        return ReadOnlyError(
            "this version is open for reading only; open a branch without version= to write"
        )


def _needs(header: Header) -> ReadOnlyError:
    return ReadOnlyError(
        f"writing this dataset needs {', '.join(header.needs_to_write)}, which this release does "
        "not know; upgrade cas_zarr"
    )


def _check_same(key: str, old: Document | None, new: Document) -> None:
    if old is not None and old != new:
        raise WriteOnceError(
            f"key {key!r} is bound to another value; open without strict=True to change it"
        )


def _bytes_of(data: Any) -> memoryview | bytes:
    """Return the bytes of a buffer or an array, without a copy where its memory allows that."""
    array = isinstance(data, np.ndarray)
    try:
        if not array or not data.dtype.hasobject:  # objects would be stored as their addresses
            return memoryview(data).cast("B")
    except (TypeError, ValueError):  # zero-size, strided, or of a type that buffers do not know
        if array or isinstance(data, memoryview):
            contents: bytes = data.tobytes()
            return contents
    raise InvalidArgumentError(
        f"a value is bytes or an array of numbers, not {type(data).__name__}"
        + (f" of {data.dtype}" if array else "")
    )


def _settle_at(root: Root) -> int:
    """Return how many changes are held at most before they are applied to the tree."""
    return min(max(_SETTLE_AT, chunks_in(root.node) // 4), _SETTLE_BY)
