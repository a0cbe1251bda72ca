"""What a repository is made of: an address, blocks and refs, opened or made.

`cas_zarr.repository.repository` has what is done with one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.cache import Cache
from cas_zarr.blocks.fronted import FrontedBlocks
from cas_zarr.blocks.objects import Objects
from cas_zarr.blocks.objectstore import ObjectStoreBlocks
from cas_zarr.blocks.referring import ReferringBlocks
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import BLAKE3, CidBytes, CidLike, HashFunction
from cas_zarr.closing import Closing
from cas_zarr.errors import InvalidArgumentError, ReadOnlyError, RepositoryNotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.bucket import BucketRefs, make_bucket
from cas_zarr.repository.faraway import NodeLike, Sources, open_faraway
from cas_zarr.repository.folder import FolderRefs, is_repository, make_folder, read_marker
from cas_zarr.repository.opening import (
    MEMORY,
    Location,
    SharedMemory,
    check_owner,
    hash_named,
    in_memory,
    owner_of,
    parse_location,
    same_hash,
)
from cas_zarr.repository.refs import Branch, MemoryRefs, Refs
from cas_zarr.repository.remotes import blocks_for
from cas_zarr.repository.versions import Resolved, not_found, resolve

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Address", "RepositoryBase", "reopen"]

Address: TypeAlias = "str | os.PathLike[str] | ObjectStore"
"""Where a repository is: a path, an address, or for object storage a store of obstore."""

_T = TypeVar("_T")
_Repository = TypeVar("_Repository", bound="RepositoryBase")


class RepositoryBase(Closing):
    """A place of blocks and refs: where it is, and what its names mean.

    Attributes
    ----------
    location : str
        The path of the folder, ``memory://name``, or the address.
    refs : Refs
        Branches and tags.
    read_only : bool
        Whether writing is refused.
    author : str
        Who commits, unless a commit says otherwise.
    sources : Sources
        Where blocks of other machines are looked for, and kept.
    fixed : str
        Where this is one that can only be read: what the location stood for when it was opened;
        of a name the CID. Otherwise "".
    """

    def __init__(
        self,
        location: str,
        refs: Refs,
        blocks: BlockStore | None,
        function: HashFunction,
        *,
        read_only: bool = False,
        author: str = "",
        sources: Sources | None = None,
        fixed: str = "",
    ) -> None:
        self.location = location
        self.sources = sources or Sources()
        self.fixed = fixed
        self.refs = refs
        self.read_only = read_only
        self.author = author
        self._function = function
        self._blocks = blocks
        self._lock = threading.Lock()
        self._asked: HashFunction | None = None
        self._memory: SharedMemory | None = None
        self._bucket: Objects | None = None

    def __repr__(self) -> str:
        led = f", at {self.fixed}" if self.fixed not in ("", self.location) else ""
        return f"Repository({self.location!r}{led})"

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, self.opening(read_only=self.read_only)

    def opening(self, *, read_only: bool) -> tuple[Any, ...]:
        """Return what `reopen` takes, in another process maybe."""
        who = self.sources, self.author
        return type(self), self.location, self.fixed, *who, read_only, owner_of(self.location)

    # -- opening ------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        location: Address,
        *,
        create: bool = False,
        hash: str | None = None,
        read_only: bool = False,
        author: str = "",
        gateways: str | Sequence[str] | None = None,
        node: NodeLike | None = None,
        cache: Cache = None,
        storage_options: Mapping[str, Any] | None = None,
        first: str = "",
    ) -> Self:
        """Open a repository.

        Parameters
        ----------
        location : str, path or obstore store
            A folder, ``memory://name`` for one in this process, or ``s3://bucket/prefix`` (also
            ``gs://``, ``az://``) or a store of obstore for object storage. For reading also
            ``ipfs://CID`` (a root, a commit, or a directory of Zarr files; with a path behind it a
            part), ``ipns://NAME``, the same behind ``http(s)://host/ipfs/`` of a gateway,
            ``http(s)://host:port`` of a repository that is served, and a ``.car`` file or its
            address.
        create : bool
            Make it if it is not there.
        hash : str, optional
            ``blake3`` (for a new repository the default) or ``sha2-256``. For one that exists it
            must be what the repository has.
        read_only : bool
            Refuse to write.
        author : str
            Who commits, unless a commit says otherwise.
        gateways : str or sequence of str, optional
            Trustless gateways to read from, in order of preference; by default that of a node on
            this machine, then public ones.
        node : str, IpfsNode or bool, optional
            The RPC of a node to read from first; True is the one on this machine.
        cache : bool, path or (path, int), optional
            Where to keep what was fetched: a folder, with a limit in bytes; False is memory. By
            default the user's cache, of 10 GiB; for servers on this machine memory.
        storage_options : mapping, optional
            For object storage: ``endpoint``, ``region``, ``access_key_id``, ``anonymous``, and
            what else `cas_zarr.blocks.objects.open_object_store` takes.
        first : str
            The branch that is asked for next, at once: in object storage it is read at the same
            time as the repository is opened.

        Raises
        ------
        RepositoryNotFoundError
            If there is none and `create` is false, or the folder holds something else.
        FormatError
            If it is damaged, or of a format version that is not known here.
        """
        repository = cls.prepare(
            location,
            hash=hash,
            read_only=read_only,
            author=author,
            gateways=gateways,
            node=node,
            cache=cache,
            storage_options=storage_options,
            first=first,
        )
        if not repository.exists:
            if not create:
                raise repository._not_there()
            repository.make()
        return repository

    @classmethod
    def open_from(
        cls,
        location: Address,
        sources: Sources,
        *,
        read_only: bool = True,
        author: str = "",
    ) -> Self:
        """Open a repository with the sources that another one has."""
        repository = cls._prepare(location, None, read_only, author, sources)
        if not repository.exists:
            raise repository._not_there()
        return repository

    @classmethod
    def prepare_from(cls, location: Address, sources: Sources, *, author: str = "") -> Self:
        """Open a repository for writing, as `prepare`, with the sources that another one has."""
        return cls._prepare(location, None, False, author, sources)

    def _not_there(self) -> RepositoryNotFoundError:
        return RepositoryNotFoundError(
            f"there is no repository at {self.location}; check the path, or pass create=True to "
            "make one"
        )

    @classmethod
    def prepare(
        cls,
        location: Address,
        *,
        hash: str | None = None,
        read_only: bool = False,
        author: str = "",
        gateways: str | Sequence[str] | None = None,
        node: NodeLike | None = None,
        cache: Cache = None,
        storage_options: Mapping[str, Any] | None = None,
        first: str = "",
    ) -> Self:
        """Open a repository that is made by the first write, where there is none yet."""
        return cls._prepare(
            location,
            None if hash is None else hash_named(hash),
            read_only,
            author,
            Sources.of(gateways, node, cache, storage_options),
            first,
        )

    @classmethod
    def _prepare(
        cls,
        location: Address,
        function: HashFunction | None,
        read_only: bool,
        author: str,
        sources: Sources,
        first: str = "",
    ) -> Self:
        if not isinstance(location, (str, bytes, os.PathLike)):
            sources = replace(sources, store=location)
            location = Objects(location).url
        given = sources.given(location)
        if given is not None:
            return cls._prepare_bucket(
                given.url, given, function, read_only, author, sources, first
            )
        place = parse_location(location)
        if place.kind == "bucket":
            objects = sources.objects(place.text)
            return cls._prepare_bucket(
                place.text, objects, function, read_only, author, sources, first
            )
        if place.kind == "memory":
            return cls._prepare_memory(place.text, function, read_only, author, sources)
        if place.kind != "folder":
            return cls._open_faraway(place, function, author, sources)
        path = Path(place.text)
        refs = FolderRefs(path, read_only=read_only)
        if not is_repository(path):
            repository = cls(
                str(path),
                refs,
                None,
                function or BLAKE3,
                read_only=read_only,
                author=author,
                sources=sources,
            )
            repository._asked = function
            return repository
        found = same_hash(str(path), function, read_marker(path))
        local = ReferringBlocks(path / "packs", path / "references", read_only=read_only)
        blocks = blocks_for(refs, local, sources=sources)
        return cls(
            str(path), refs, blocks, found, read_only=read_only, author=author, sources=sources
        )

    @classmethod
    def memory(cls, *, hash: str | None = None, author: str = "") -> Self:
        """Make a repository in the memory of this process, under a name of its own."""
        return cls.prepare(MEMORY, hash=hash, author=author)

    @classmethod
    def _prepare_memory(
        cls,
        location: str,
        function: HashFunction | None,
        read_only: bool,
        author: str,
        sources: Sources,
    ) -> Self:
        location, held = in_memory(location, function or BLAKE3)
        repository = cls(
            location,
            MemoryRefs(held.refs, read_only=read_only),
            blocks_for(held.refs, held.blocks, sources=sources),
            same_hash(location, function, held.function),
            read_only=read_only,
            author=author,
            sources=sources,
        )
        repository._memory = held
        return repository

    @classmethod
    def _prepare_bucket(
        cls,
        location: str,
        objects: Objects,
        function: HashFunction | None,
        read_only: bool,
        author: str,
        sources: Sources,
        first: str,
    ) -> Self:
        refs = BucketRefs(objects, read_only=read_only)
        found = refs.open(first)
        repository = cls(
            location,
            refs,
            None,
            found or function or BLAKE3,
            read_only=read_only,
            author=author,
            sources=sources,
        )
        repository._asked = function
        repository._bucket = objects
        if found is not None:
            same_hash(location, function, found)
            repository._blocks = repository._open_bucket(objects)
        return repository

    def _open_bucket(self, objects: Objects) -> BlockStore:
        cache = self.sources.keep([objects.server or objects.url])
        behind = ObjectStoreBlocks(objects, read_only=self.read_only)
        assert isinstance(self.refs, BucketRefs)
        self.refs.keep_roots(cache)
        return blocks_for(self.refs, FrontedBlocks(cache, behind), sources=self.sources)

    @classmethod
    def _open_faraway(
        cls, location: Location, function: HashFunction | None, author: str, sources: Sources
    ) -> Self:
        found = open_faraway(location, sources)
        try:
            same_hash(found.location, function, found.function)
        except InvalidArgumentError:
            found.blocks.close()
            raise
        return cls(
            found.location,
            found.refs,
            found.blocks,
            found.function,
            read_only=True,
            author=author,
            sources=sources,
            fixed=found.fixed,
        )

    # ---------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether it has been made."""
        return self._blocks is not None

    @property
    def blocks(self) -> BlockStore:
        """The blocks.

        Raises
        ------
        RepositoryNotFoundError
            If the repository has not been made yet.
        """
        if self._blocks is None:
            raise RepositoryNotFoundError(
                f"there is no repository at {self.location} yet; the first write makes it"
            )
        return self._blocks

    @property
    def function(self) -> HashFunction:
        """The hash function of new blocks."""
        return self._function

    @property
    def hash(self) -> str:
        """The name of the hash function of new blocks."""
        return self._function.name

    def make(self) -> None:
        """Make the repository if it is not there yet."""
        with self._lock:
            if self._blocks is not None:
                return
            self._check_writable()
            path, bucket = Path(self.location), self._bucket
            make = partial(make_folder, path) if bucket is None else partial(make_bucket, bucket)
            self._function = same_hash(self.location, self._asked, make(self._function))
            self._blocks = (
                ReferringBlocks(path / "packs", path / "references", create=True)
                if bucket is None
                else self._open_bucket(bucket)
            )

    def close(self) -> None:
        """Release files."""
        with self._lock:
            if self._blocks is not None and self._memory is None:
                self._blocks.close()

    # -- versions -----------------------------------------------------------------------------

    def resolve(self, version: CidLike) -> Resolved:
        """Find what a version expression stands for; see `cas_zarr.repository.versions`.

        Raises
        ------
        VersionNotFoundError
            If nothing has that name; the message has the nearest ones.
        """
        return resolve(self.blocks, self.refs, version)

    def record(self, branch: str) -> Branch | None:
        """Return where a branch stands; None if it is to be the first one of the repository.

        Raises
        ------
        VersionNotFoundError
            If there is no such branch, but others are.
        """
        record = self.refs.branch(branch)
        if record is None and (others := self.refs.branches()):
            raise not_found(self.refs, branch, kind="branch", names=others)
        return record

    def at(self, version: CidLike) -> CASMapping:
        """Return the keys and values of a version, for reading only."""
        return CASMapping(self.blocks, self.resolve(version).root, hash=self.hash, read_only=True)

    def branches(self) -> dict[str, Branch]:
        """Return all branches by name."""
        found = self._read_all(self.refs.branches(), self.refs.branch)
        return {name: branch for name, branch in found if branch is not None}

    def tags(self) -> dict[str, CidBytes]:
        """Return the commits of all tags by name."""
        found = self._read_all(self.refs.tags(), self.refs.tag)
        return {name: tag.commit for name, tag in found if tag is not None}

    def _read_all(
        self, names: Sequence[str], read: Callable[[str], _T]
    ) -> Iterable[tuple[str, _T]]:
        """Read many refs; where each takes a round trip, at once."""
        several = map(read, names) if self._bucket is None else map_waiting(read, names)
        return zip(names, several, strict=True)

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")


def reopen(
    kind: type[_Repository],
    location: str,
    fixed: str,
    sources: Sources,
    author: str,
    read_only: bool,
    owner: int | None,
) -> _Repository:
    """Open a repository as another one is that gave its `opening`."""
    check_owner(location, owner)
    if not read_only:
        return kind.prepare_from(location, sources, author=author)
    # What a name stands for may be another by now.
    repository = kind.open_from(fixed or location, sources, author=author)
    repository.location = location
    return repository
