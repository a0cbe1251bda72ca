"""`CasFileSystem`: what is on IPFS as a file system of fsspec, for reading.

It is what ``fsspec.open("ipfs://CID/air/zarr.json")`` and ``xarray.open_zarr("ipfs://CID")`` use.
The CID is a root or a commit of a dataset, whose keys are shown as files, or any UnixFS file or
directory. Every byte is verified.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.cache import Cache
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import DAG_PB, RAW, CidBytes, as_cid_bytes, codec_of, format_cid
from cas_zarr.consolidated import Consolidation, is_composed
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    InvalidCIDError,
    InvalidKeyError,
    MissingDependencyError,
    NotFoundError,
    StorageError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.faraway import NodeLike, Sources, content_blocks, fixed_location
from cas_zarr.repository.opening import parse_location
from cas_zarr.repository.repository import Repository
from cas_zarr.tree.directories import (
    Entry,
    list_directory,
    open_entry,
    read_file,
    resolve_path,
)
from cas_zarr.tree.values import MAX_VALUE_SIZE

try:
    from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
except ImportError as error:
    raise MissingDependencyError(
        "file systems of ipfs:// need fsspec; install cas_zarr[ipfs]"
    ) from error

__all__ = ["CasFileSystem"]

_T = TypeVar("_T")

_KEPT = 32  # datasets and directories that are open at once


class CasFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What is on IPFS, as files that can be read.

    Paths are ``CID/key`` or ``NAME/key``; what a name stands for is found out once.

    Parameters
    ----------
    gateways, node, cache
        Where blocks are read from and kept; see `Repository.open`.
    **options
        As fsspec has them.

    Examples
    --------
    >>> fs = CasFileSystem(gateways="http://127.0.0.1:8080")  # doctest: +SKIP
    >>> fs.ls("bafy.../air")  # doctest: +SKIP
    """

    protocol = ("ipfs", "ipns")
    root_marker = ""

    def __init__(
        self,
        gateways: str | Sequence[str] | None = None,
        node: NodeLike | None = None,
        cache: Cache = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._sources = Sources.of(gateways, node, cache)
        self._trees: OrderedDict[str, _Tree] = OrderedDict()
        self._guard = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = str(path)
        for scheme in ("ipfs://", "ipns://"):
            text = text.removeprefix(scheme)
        return text.strip("/")

    def unstrip_protocol(self, name: str) -> str:
        """Return a path with the protocol in front that it has."""
        path = self._strip_protocol(name)
        return f"{_scheme(path.partition('/')[0])}://{path}"

    # -- reading, docstrings inherited ----------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        tree, key = self._find(path)
        size = _looked_up(path, lambda: tree.size(key))
        if size is None:
            return {"name": path, "size": 0, "type": "directory"}
        return {"name": path, "size": size, "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        tree, key = self._find(path)
        if _looked_up(path, lambda: tree.size(key)) is not None:
            found = [self.info(path)]
        else:
            entries = _looked_up(path, lambda: tree.names(key))
            found = [
                {
                    "name": f"{path}/{name}",
                    "size": size or 0,
                    "type": "directory" if size is None else "file",
                }
                for name, size in entries.items()
            ]
        return found if detail else [one["name"] for one in found]

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        path = self._strip_protocol(path)
        tree, key = self._find(path)
        return _looked_up(path, lambda: tree.read(key, start, end))

    def cat(
        self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any
    ) -> Any:
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0], **options)
        read = self.cat_ranges(paths, None, None, on_error="return", **options)
        out = dict(zip(paths, read, strict=True))
        if on_error == "raise":
            for value in read:
                if isinstance(value, Exception):
                    raise value
        if on_error == "omit":
            out = {name: data for name, data in out.items() if not isinstance(data, Exception)}
        return out

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,  # noqa: ARG002 - a value comes block by block in any case
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        count = len(paths)
        begins = starts if isinstance(starts, (list, tuple)) else [starts] * count
        stops = ends if isinstance(ends, (list, tuple)) else [ends] * count

        def read(one: tuple[str, int | None, int | None]) -> Any:
            try:
                return self.cat_file(*one)
            except (OSError, ValueError, CasZarrError) as error:
                if on_error != "return":
                    raise
                return error

        return map_waiting(read, list(zip(paths, begins, stops, strict=True)))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> _File:
        if mode != "rb":
            raise NotImplementedError(f"{path} can only be read; open it with mode 'rb'")
        return _File(self, path, mode, **options)

    def created(self, path: str) -> Any:
        raise NotImplementedError(f"{path} has no time: its name is its content")

    modified = created

    def ukey(self, path: str) -> str:
        """Return what changes when the content of a path does: the CID it leads to, and a path."""
        path = self._strip_protocol(path)
        tree, key = self._find(path)
        return f"{tree.fixed}/{key}"

    # ---------------------------------------------------------------------------------------

    def _find(self, path: str) -> tuple[_Tree, str]:
        name, _, key = path.partition("/")
        if not name:
            raise FileNotFoundError("what there is on ipfs cannot be listed; give a cid")
        with self._guard:  # several readers of one would each ask for its root
            tree = self._trees.get(name)
            if tree is None:
                tree = _looked_up(path, lambda: _open_tree(name, self._sources))
                self._trees[name] = tree
                if len(self._trees) > _KEPT:
                    self._trees.popitem(last=False)
            self._trees.move_to_end(name)
        return tree, key.strip("/")


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is read in pieces, as fsspec reads one."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end))


class _Tree(ABC):
    """Files and folders below one CID. A missing one is a NotFoundError.

    Attributes
    ----------
    fixed : str
        The CID, with a path behind it where a name led to one.
    """

    fixed: str

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return the size of a file, None for a folder."""

    @abstractmethod
    def names(self, key: str) -> Mapping[str, int | None]:
        """Return what is in a folder, with sizes."""

    @abstractmethod
    def read(self, key: str, start: int | None, stop: int | None) -> bytes:
        """Return bytes of a file; numbers below 0 count from its end."""


class _Dataset(_Tree):
    def __init__(self, mapping: CASMapping) -> None:
        self.fixed = "" if mapping.root is None else format_cid(mapping.root)
        self._mapping = mapping
        self._consolidation = Consolidation(mapping, fixed=True)

    def _composed(self, key: str) -> bytes | None:
        return self._consolidation.get(key) if is_composed(key) else None

    def size(self, key: str) -> int | None:
        if key == "":
            return None
        whole = self._composed(key)
        size = self._mapping.size_of(key) if whole is None else len(whole)
        if size is None and next(self._mapping.list_folder(key), None) is None:
            raise NotFoundError(key)
        return size

    def names(self, key: str) -> Mapping[str, int | None]:
        base = f"{key}/" if key else ""
        return {name: self.size(base + name) for name in self._mapping.list_folder(key)}

    def read(self, key: str, start: int | None, stop: int | None) -> bytes:
        whole = self._composed(key)
        if whole is not None:
            return whole[start:stop]
        if stop is not None and stop < 0:
            stop = max(0, stop + (self.size(key) or 0))
        data = self._mapping.get_value(key, start or 0, stop) if key else None
        if data is None:
            if self.size(key) is None:
                raise IsADirectoryError(key)
            raise NotFoundError(key)
        return bytes(data)


class _Files(_Tree):
    def __init__(self, blocks: BlockStore, cid: CidBytes, path: str) -> None:
        self.fixed = f"{format_cid(cid)}/{path}".rstrip("/")
        self._blocks = blocks
        self._cid = cid
        self._path = path

    def _entry(self, key: str) -> Entry:
        return resolve_path(self._blocks, self._cid, f"{self._path}/{key}")

    def size(self, key: str) -> int | None:
        return _size_of(self._entry(key))

    def names(self, key: str) -> Mapping[str, int | None]:
        entries = list(list_directory(self._blocks, self._entry(key).cid))

        def size(entry: tuple[str, CidBytes, int]) -> int | None:
            _, cid, claimed = entry
            if claimed and codec_of(cid) == RAW:
                return claimed  # a raw block, whose size is what the directory says
            return _size_of(open_entry(self._blocks, cid))

        sizes = map_waiting(size, entries)
        return {name: size for (name, _, _), size in zip(entries, sizes, strict=True)}

    def read(self, key: str, start: int | None, stop: int | None) -> bytes:
        entry = self._entry(key)
        if _size_of(entry) is None:
            raise IsADirectoryError(key)
        return read_file(self._blocks, entry.cid, limit=MAX_VALUE_SIZE, start=start or 0, stop=stop)


def _size_of(entry: Entry) -> int | None:
    return None if entry.kind == "directory" else entry.size


def _open_tree(name: str, sources: Sources) -> _Tree:
    found = fixed_location(parse_location(f"{_scheme(name)}://{name}"), sources)
    cid = as_cid_bytes(found.name)
    if codec_of(cid) in (RAW, DAG_PB):
        return _Files(content_blocks(found, sources), cid, found.path)
    repository = Repository.open_from(found.text, sources)
    record = repository.refs.branch("main")
    assert record is not None
    return _Dataset(
        CASMapping(repository.blocks, record.work, hash=repository.hash, read_only=True)
    )


def _scheme(name: str) -> str:
    """Tell whether a name is a CID, or one that stands for a CID."""
    try:
        return "ipns" if codec_of(as_cid_bytes(name)) == _LIBP2P_KEY else "ipfs"
    except InvalidCIDError:
        return "ipns"


_LIBP2P_KEY = 0x72


def _looked_up(path: str, look: Callable[[], _T]) -> _T:
    """Return what a look gives; what is not there is what fsspec calls so."""
    try:
        return look()
    except BlockNotFoundError as error:
        # It is there, but out of reach: who reads a mapping would take a KeyError for no chunk.
        raise StorageError(str(error)) from error
    except (NotFoundError, InvalidKeyError):
        raise FileNotFoundError(path) from None
