"""Repositories that are only read: a CID on IPFS, a name, a CAR file, a server.

Each is a branch ``main`` over blocks in a tier: what was fetched before, a node on this machine,
gateways. Nothing is contacted before it is needed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote, urlsplit

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.cache import MEMORY_LIMIT, Cache, RecentBlocks, open_cache
from cas_zarr.blocks.objects import Objects, open_object_store
from cas_zarr.blocks.readonly import Overlaid
from cas_zarr.blocks.tiered import Behind, TieredBlocks
from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    BytesLike,
    CidBytes,
    HashFunction,
    as_cid_bytes,
    codec_of,
    format_cid,
    hash_of,
)
from cas_zarr.errors import (
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    NotFoundError,
    VersionNotFoundError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.folder import MARKER
from cas_zarr.repository.opening import Location, parse_location
from cas_zarr.repository.refs import Branch, MemoryRefs, Refs
from cas_zarr.repository.versions import read_commit
from cas_zarr.tree.directories import resolve_path
from cas_zarr.tree.node import Root
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.view import TreeView

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from cas_zarr.blocks.ipfsnode import IpfsNode

__all__ = [
    "LOCAL_GATEWAY",
    "LOCAL_NODE",
    "PUBLIC_GATEWAYS",
    "Faraway",
    "NodeLike",
    "Sources",
    "content_blocks",
    "fixed_location",
    "open_faraway",
]

LOCAL_NODE: Final = "http://127.0.0.1:5001"
"""RPC of a node on this machine, as Kubo sets it up."""

LOCAL_GATEWAY: Final = "http://127.0.0.1:8080"
"""Gateway of a node on this machine, as Kubo sets it up."""

PUBLIC_GATEWAYS: Final = (
    "https://trustless-gateway.link",
    "https://ipfs.io",
    "https://4everland.io",
)
"""Trustless gateways that anyone may ask, as of 2026."""

NodeLike: TypeAlias = "str | bool | IpfsNode | Any"

MAIN: Final = "main"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where blocks of other machines are looked for, and kept.

    Attributes
    ----------
    gateways : tuple of str, optional
        Trustless gateways, in order of preference. None: that of a node on this machine, then
        public ones.
    node : str, bool or IpfsNode, optional
        The RPC of a node, which is asked first; True is `LOCAL_NODE`.
    cache : bool, path or (path, int), optional
        As in `cas_zarr.blocks.cache.open_cache`. None is the user's cache, and for servers on this
        machine memory.
    memory : int
        Bytes that are kept where there is no cache on disk.
    storage_options : mapping, optional
        For object storage, as `cas_zarr.blocks.objects.open_object_store` takes them.
    store : obstore store, optional
        One that was given in place of a URL; it is what its own URL means.
    """

    gateways: tuple[str, ...] | None = None
    node: NodeLike | None = None
    cache: Cache = None
    memory: int = field(default=MEMORY_LIMIT, repr=False)
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    store: ObjectStore | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        gateways: str | Sequence[str] | None = None,
        node: NodeLike | None = None,
        cache: Cache = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Sources:
        """Return the record for what a caller gave, checked.

        Raises
        ------
        InvalidArgumentError
            If a gateway or the node is none, or the cache would lie in a repository.
        """
        if storage_options is not None and not isinstance(storage_options, Mapping):
            raise InvalidArgumentError(
                "storage_options are a mapping of names to values, not a "
                f"{type(storage_options).__name__}"
            )
        if gateways is not None:
            gateways = (gateways,) if isinstance(gateways, str) else tuple(gateways)
            for url in gateways:
                _check_gateway(url)
        folder = cache[0] if isinstance(cache, tuple) and cache else cache
        if isinstance(folder, (str, os.PathLike)):
            _check_cache(Path(os.path.abspath(os.fspath(folder))))
        options = None if storage_options is None else dict(storage_options)
        sources = cls(gateways, None if node is False else node, cache, storage_options=options)
        sources.open_node()
        return sources

    def passing(self) -> Sources:
        """Return the same without a cache, for a reader that keeps what comes itself."""
        return replace(self, cache=False, memory=0)

    def open_node(self) -> IpfsNode | None:
        """Return the node, or None if none was given."""
        if self.node is None:
            return None
        from cas_zarr.blocks.ipfsclient import as_node

        return as_node(LOCAL_NODE if self.node is True else self.node)

    def all_gateways(self, first: str = "") -> tuple[str, ...]:
        """Return the gateways to ask, `first` before the others."""
        known = (LOCAL_GATEWAY, *PUBLIC_GATEWAYS) if self.gateways is None else self.gateways
        return tuple(dict.fromkeys((first, *known) if first else known))

    def given(self, location: object) -> Objects | None:
        """Return the objects of the store that was given, if that is what a location means."""
        objects = None if self.store is None else Objects(self.store)
        return objects if objects is not None and objects.url == location else None

    def objects(self, url: str) -> Objects:
        """Return the objects of a bucket, below the prefix that its URL has."""
        return open_object_store(url, **(self.storage_options or {}))

    def keep(self, urls: Sequence[str]) -> BlockStore:
        """Return the place for what is fetched from some addresses."""
        if self.cache is False or (self.cache is None and all(map(_is_here, urls))):
            return RecentBlocks(self.memory)
        return open_cache(self.cache)


def _check_gateway(url: object) -> None:
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise InvalidArgumentError(
            f"{url!r} is no address of a gateway; give http://host or https://host"
        )
    from cas_zarr.blocks.gateway import gateway_url

    gateway_url(url)


def _check_cache(folder: Path) -> None:
    """Refuse a folder of a repository: a cache removes the packs that were not read for longest."""
    for place in (folder, folder.parent):
        if (place / MARKER).exists():
            raise InvalidArgumentError(
                f"{folder} is a folder of the repository {place}, whose packs a cache would "
                "remove; give it another folder"
            )


@dataclass(frozen=True, slots=True)
class Faraway:
    """What a repository that is only read is made of.

    Attributes
    ----------
    location : str
        As it was asked for.
    fixed : str
        What that stood for when it was opened: of a name, the CID.
    refs : Refs
    blocks : BlockStore
    function : HashFunction
    """

    location: str
    fixed: str
    refs: Refs
    blocks: BlockStore
    function: HashFunction


def open_faraway(location: Location, sources: Sources) -> Faraway:
    """Open what is not a folder and not in memory, for reading.

    Raises
    ------
    RemoteError
        If a name cannot be resolved, or a server does not answer. Of a CID nothing is asked yet.
    """
    if location.kind == "server":
        return _open_server(location, sources)
    if location.kind == "car":
        return _open_car(location, sources)
    fixed = fixed_location(location, sources)
    cid = _checked_root(fixed)
    blocks = content_blocks(fixed, sources)
    refs = FixedRefs(fixed.text, partial(_branches, blocks, cid, fixed))
    return Faraway(location.text, fixed.text, refs, blocks, hash_of(cid))


def _checked_root(location: Location) -> CidBytes:
    try:
        cid = as_cid_bytes(location.name)
        hash_of(cid)
    except InvalidCIDError as error:
        raise InvalidArgumentError(f"{location.text} cannot be read: {error}") from None
    if codec_of(cid) not in (DAG_CBOR, DAG_JSON, DAG_PB):
        raise InvalidArgumentError(
            f"{location.text} is a single block and no dataset; give the cid of a root, of a "
            "commit, or of a directory of Zarr files"
        )
    return cid


def fixed_location(location: Location, sources: Sources) -> Location:
    """Return what a location of IPFS stands for now: of a name a CID, with a path perhaps."""
    if location.kind != "ipns":
        return location
    from cas_zarr.blocks.http import HttpClient
    from cas_zarr.repository.ipns import resolve_ipns

    node = sources.open_node()
    client = HttpClient()
    try:
        path = resolve_ipns(
            location.name,
            nodes=() if node is None else (node,),
            gateways=sources.all_gateways(location.gateway),
            client=client,
        )
    finally:
        client.close()
    if not path.startswith("/ipfs/"):
        raise FormatError(f"{location.text} leads to {path[:200]!r}, which is no path of IPFS")
    rest = path.removeprefix("/ipfs/").strip("/") + "/" * bool(location.path) + location.path
    gateway = location.gateway
    return parse_location(f"{gateway}/ipfs/{quote(rest)}" if gateway else f"ipfs://{rest}")


# -- blocks -----------------------------------------------------------------------------------


def content_blocks(location: Location, sources: Sources) -> _Beside:
    """Return the blocks behind the location of a CID; nothing is asked yet."""
    gateways = sources.all_gateways(location.gateway)
    behind: list[Behind] = []
    urls = list(gateways)
    node = sources.open_node()
    if node is not None:
        behind.append(partial(_node_blocks, node))
        urls.append(node.location)
    if gateways:
        behind.append(partial(_gateway_blocks, gateways))
    if not behind:
        raise InvalidArgumentError(
            f"there is nowhere to look for {location.text}; give a gateway or a node"
        )
    return _Beside(location.text, TieredBlocks(sources.keep(urls), behind, remote=True))


def _node_blocks(node: IpfsNode) -> BlockStore:
    from cas_zarr.blocks.kubo import KuboBlocks

    return KuboBlocks(node)


def _gateway_blocks(urls: Sequence[str]) -> BlockStore:
    from cas_zarr.blocks.gateway import GatewayBlocks

    return GatewayBlocks(urls)


def _is_here(url: str) -> bool:
    if url.startswith(("memory:", "file:")):
        return True
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return host == "localhost" or ip_address(host).is_loopback
    return False


class _Beside(Overlaid):
    """Blocks of a tier, and those that were made here to read them: documents of subtrees."""

    def __init__(self, name: str, tier: TieredBlocks) -> None:
        super().__init__(tier)
        self.tier = tier
        self.fetch_car = tier.fetch_car
        self._name = name

    # docstrings inherited

    @property
    def location(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, {self.tier!r})"

    def close(self) -> None:
        self.tier.close()


# -- refs -------------------------------------------------------------------------------------


class FixedRefs(MemoryRefs):
    """Branches that never move, found when they are asked for first.

    Parameters
    ----------
    location : str
    find : callable
        Returns the branches by name.
    """

    def __init__(self, location: str, find: Callable[[], dict[str, Branch]]) -> None:
        super().__init__(read_only=True)
        self._where = location
        self._find = find
        self._found = False
        self._finding = threading.Lock()

    # docstrings inherited

    @property
    def location(self) -> str:
        return self._where

    def _load(self, path: str) -> bytes | None:
        if path.startswith("heads/"):
            self._fill()
        return super()._load(path)

    def _paths(self, folder: str) -> Iterator[str]:
        if folder == "heads":
            self._fill()
        return super()._paths(folder)

    def _fill(self) -> None:
        with self._finding:
            if not self._found:
                found = self._find()
                self._refs.update({f"heads/{name}": r.to_block() for name, r in found.items()})
                self._found = True


def _branches(blocks: _Beside, cid: CidBytes, location: Location) -> dict[str, Branch]:
    """Return the branch ``main`` of a CID."""
    codec = codec_of(cid)
    if codec == DAG_PB:
        return {MAIN: Branch(work=_linked(blocks, cid, location))}
    if codec == DAG_CBOR:
        root = read_commit(blocks, cid).root
        if not location.path:
            return {MAIN: Branch(commit=cid, work=root)}
    else:
        root = cid
    if location.path:
        root = _subtree(blocks, root, location)
    return {MAIN: Branch(work=root)}


def _subtree(blocks: _Beside, root: CidBytes, location: Location) -> CidBytes:
    view = TreeView(TreeReader(blocks), Root.from_block(blocks.get(root)))
    node = view.node(location.path)
    if node is None:
        raise NotFoundError(
            f"there is no group or array {location.path!r} in ipfs://{location.name}; open it "
            "without a path to see what there is"
        )
    document = view.root.subtree(node)
    blocks.made.put(document.cid(), document.to_block())
    return document.cid()


def _linked(blocks: _Beside, cid: CidBytes, location: Location) -> CidBytes:
    """Return a root that links the files of a directory; none of their content is fetched."""
    from cas_zarr.repository.unixfsimport import import_unixfs

    making = _Making(blocks)
    if location.path:
        cid = resolve_path(making, cid, location.path).cid
    mapping = CASMapping(making, hash=hash_of(cid).name)
    import_unixfs(mapping, making, cid)
    return mapping.flush()


class _Making(_Beside):
    """The same blocks, where more can be made."""

    read_only = False

    def __init__(self, blocks: _Beside) -> None:
        super().__init__(blocks.location, blocks.tier)
        self.made = blocks.made

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        self.made.put(cid, data)


# -- CAR files and servers ----------------------------------------------------------------------


def _open_car(location: Location, sources: Sources) -> Faraway:
    from cas_zarr.blocks.carfile import CarBlocks

    kept = sources.keep([location.text]) if location.remote else None
    car = CarBlocks(location.text)
    roots = car.roots
    try:
        function = hash_of(roots[0]) if roots else BLAKE3
    except InvalidCIDError as error:
        car.close()
        raise FormatError(f"the root of {location.text} cannot be read: {error}") from None
    blocks = car if kept is None else _Beside(location.text, TieredBlocks(kept, [car], remote=True))
    refs = FixedRefs(location.text, partial(_car_branches, blocks, roots, location))
    return Faraway(location.text, location.text, refs, blocks, function)


def _car_branches(
    blocks: BlockStore, roots: Sequence[CidBytes], location: Location
) -> dict[str, Branch]:
    found: dict[str, Branch] = {}
    for number, cid in enumerate(roots, 1):
        name = MAIN if number == 1 else f"root{number}"
        codec = codec_of(cid)
        if codec == DAG_CBOR:
            found[name] = Branch(commit=cid, work=read_commit(blocks, cid).root)
        elif codec == DAG_JSON:
            found[name] = Branch(work=cid)
        else:
            raise FormatError(
                f"root {format_cid(cid)} of {location.text} is no dataset and no commit; give the "
                "version to open by its cid"
            )
    if not found:
        raise VersionNotFoundError(
            f"{location.text} names no root; give the version to open by its cid"
        )
    return found


def _open_server(location: Location, sources: Sources) -> Faraway:
    from cas_zarr.repository.webrefs import open_web

    kept = sources.keep([location.text])
    refs, gateway, function = open_web(location.text)
    blocks = _Beside(location.text, TieredBlocks(kept, [gateway]))
    return Faraway(location.text, location.text, refs, blocks, function)
