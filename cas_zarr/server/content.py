"""What a path leads to: keys of datasets, files and directories of UnixFS, links of IPLD data.

A dataset's root is followed by the keys of its mapping, with consolidated metadata composed as the
store does it, so that readers of plain Zarr over HTTP see what a store shows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    RAW,
    CidBytes,
    Link,
    ReadableCids,
    as_cid_bytes,
    cid_of,
    codec_of,
    format_cid,
)
from cas_zarr.consolidated import Consolidation, is_composed
from cas_zarr.errors import FormatError, InvalidKeyError, NotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.refs import Branch, Refs
from cas_zarr.repository.versions import resolve, root_of
from cas_zarr.server.dags import decode_block
from cas_zarr.server.negotiation import HttpError
from cas_zarr.tree.directories import find_name, is_inline, open_entry, read_block
from cas_zarr.tree.node import ROOT_TYPE
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import read_value

__all__ = ["Target", "Versions", "follow", "media_type", "pieces_of"]

_KEPT: Final = 16  # datasets that stay open
_STEP: Final = 1 << 20
_MAX_NAMES: Final = 128

_TYPES: Final = {
    "json": "application/json",
    "zarray": "application/json",
    "zattrs": "application/json",
    "zgroup": "application/json",
    "zmetadata": "application/json",
    "txt": "text/plain; charset=utf-8",
    "md": "text/plain; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "svg": "image/svg+xml",
    "pdf": "application/pdf",
    "wasm": "application/wasm",
}


@dataclass(frozen=True, slots=True, repr=False)
class Target(ReadableCids):
    """What a path leads to.

    Attributes
    ----------
    kind : str
        ``file`` (bytes), ``directory`` of UnixFS, or ``block`` of IPLD data.
    block : CidBytes
        The block at the end: of the value, the file, the directory; of a document that stands in
        the root, the block that it stands in.
    size : int
        Bytes of a file.
    etag : str
        Names the bytes.
    data : bytes, optional
        The bytes themselves where they are no value of their own.
    """

    kind: Literal["file", "directory", "block"]
    block: CidBytes
    size: int
    etag: str
    data: bytes | memoryview | None = None


@dataclass(frozen=True, slots=True)
class _Dataset:
    """A dataset that is open; what it composes is kept, by one thread at a time."""

    mapping: CASMapping
    consolidation: Consolidation
    composing: threading.Lock = field(default_factory=threading.Lock)


class Versions:
    """Datasets that were opened by their root, some of them kept for the next request.

    Parameters
    ----------
    hash : str
        Of the repository.
    """

    def __init__(self, hash: str) -> None:
        self._hash = hash
        self._lock = threading.Lock()
        self._open: OrderedDict[CidBytes, _Dataset] = OrderedDict()

    def has_open(self, root: CidBytes) -> bool:
        """Tell whether a dataset is open, and so is one."""
        with self._lock:
            return root in self._open

    def root_named(self, refs: Refs, blocks: BlockStore, version: str) -> CidBytes:
        """Return the root of a branch, a tag, or of one with ``~n`` behind it.

        A branch without a commit shows its working root.
        """
        if "@{" in version:
            raise HttpError(404, "the log of refs is not served here")
        record = _branch(refs, version)
        if record is not None and record.commit is None:
            root = root_of(blocks, record)
            if root is None:
                raise HttpError(404, "this branch has nothing in it yet")
            return root
        return resolve(blocks, refs, version).root

    def key(
        self, blocks: BlockStore, root: CidBytes, key: str, *, cached: bool = True
    ) -> Target | None:
        """Return what a key of a dataset leads to, or None."""
        dataset = self._dataset(blocks, root, cached)
        mapping = dataset.mapping
        if is_composed(key):
            with dataset.composing:
                data = dataset.consolidation.get(key)
            if data is None:
                return None
            tag = format_cid(cid_of(RAW, BLAKE3, data))
            return Target("file", root, len(data), f"{tag}.key", data)
        cid = mapping.cid_of(key)
        size = mapping.size_of(key)
        if cid is None or size is None:
            return None
        document = key.rpartition("/")[2] in (".zarray", ".zgroup", ".zattrs")
        value = mapping.get_value(key) if document else None  # it stands in the root, or may
        held = None if value is None else bytes(value)
        return Target("file", root if document else cid, size, format_cid(cid), held)

    def _dataset(self, blocks: BlockStore, root: CidBytes, cached: bool) -> _Dataset:
        with self._lock:
            found = self._open.get(root) if cached else None
            if found is not None:
                self._open.move_to_end(root)
                return found
        mapping = CASMapping(blocks, root, hash=self._hash, read_only=True)
        made = _Dataset(mapping, Consolidation(mapping, fixed=True))
        if cached:
            with self._lock:
                made = self._open.setdefault(root, made)  # another thread may have been first
                while len(self._open) > _KEPT:
                    self._open.popitem(last=False)
        return made


def _branch(refs: Refs, name: str) -> Branch | None:
    try:
        return refs.branch(name) if refs.tag(name) is None else None
    except InvalidKeyError:
        return None


def follow(
    versions: Versions,
    blocks: BlockStore,
    cid: CidBytes,
    names: Sequence[str],
    *,
    cached: bool = True,
) -> Target:
    """Return what the names of a path lead to, from a CID on.

    Raises
    ------
    NotFoundError
        If there is nothing.
    """
    if len(names) > _MAX_NAMES:
        raise HttpError(400, f"a path has at most {_MAX_NAMES} names")
    while names:  # a link at a time
        codec = codec_of(cid)
        if codec in (DAG_PB, RAW):
            cid, names = _named(blocks, cid, names[0]), names[1:]
            continue
        opened = cached and versions.has_open(cid)
        value = None if opened else decode_block(cid, read_block(blocks, cid))
        if opened or (codec == DAG_JSON and _is_root(value)):
            key = "/".join(names)
            target = versions.key(blocks, cid, key, cached=cached)
            if target is None:
                raise NotFoundError(f"{format_cid(cid)} has no key {key[:200]!r}")
            return target
        found, used = _link(value, names)
        if found is None:
            raise NotFoundError(f"{format_cid(cid)} has no link at {'/'.join(names)[:200]!r}")
        cid, names = found, names[used:]
    return _end(blocks, cid)


def _end(blocks: BlockStore, cid: CidBytes) -> Target:
    """Return what a CID is itself."""
    if codec_of(cid) not in (DAG_PB, RAW):
        return _block(blocks, cid)
    try:
        entry = open_entry(blocks, cid)
    except FormatError:
        return _block(blocks, cid)
    return Target(entry.kind, entry.cid, entry.size, format_cid(entry.cid))


def _named(blocks: BlockStore, cid: CidBytes, name: str) -> CidBytes:
    """Return what has a name in a directory, whatever it is."""
    found = find_name(blocks, cid, name)
    if found is None:
        raise NotFoundError(f"there is no {name[:200]!r} in {format_cid(cid)}")
    return found


def _block(blocks: BlockStore, cid: CidBytes) -> Target:
    data = read_block(blocks, cid)
    suffix = {DAG_JSON: ".dag-json", DAG_CBOR: ".dag-cbor"}.get(codec_of(cid), "")
    return Target("block", cid, len(data), format_cid(cid) + suffix, data)


def _is_root(value: object) -> bool:
    header = value.get("header") if isinstance(value, dict) else None
    return isinstance(header, dict) and header.get("type") == ROOT_TYPE


def _link(value: object, names: Sequence[str]) -> tuple[CidBytes | None, int]:
    """Follow names through a value to a link; return its CID and how many names that took."""
    for used, name in enumerate(names, 1):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdecimal() and len(name) < 10:
            value = value[int(name)] if int(name) < len(value) else None
        else:
            return None, used
        if isinstance(value, Link):
            return as_cid_bytes(value.cid), used
    return None, len(names)


def pieces_of(
    blocks: BlockStore, target: Target, start: int, stop: int
) -> Iterator[bytes | memoryview]:
    """Yield bytes `start` to `stop` of a file, a mebibyte at a time, verified."""
    cid = target.block
    if is_inline(cid) and codec_of(cid) == RAW:
        yield read_block(blocks, cid)[start:stop]
        return
    reader = TreeReader(blocks)
    while start < stop:
        end = min(stop, (start // _STEP + 1) * _STEP)  # as leaves end, so none is read twice
        yield read_value(reader, cid, target.size, start, end)
        start = end


def media_type(name: str) -> str:
    """Return the Content-Type of a file of that name; bytes of any kind where it says nothing."""
    return _TYPES.get(
        name.rpartition(".")[2].lower() if "." in name else "", "application/octet-stream"
    )
