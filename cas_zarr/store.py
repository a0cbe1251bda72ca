"""`CASStore`: the adapter to zarr-python 3, and the only asynchronous code of the package.

The core is synchronous and quick: the asynchronous methods call it in place, since a hop to a
thread costs more than most of what they do. Where blocks come over a network they call it in
threads, so that what zarr asks for at once is fetched at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

from zarr.abc.store import Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from cas_zarr.blocks.cache import Cache
from cas_zarr.blocks.waiting import waiting_pool
from cas_zarr.buffers import (
    CPU_BUFFER,
    bounds_of,
    later,
    no_buffer,
    out_of_reach,
    set_carried,
    to_buffer,
)
from cas_zarr.cid import CidBytes, CidLike, as_cid_bytes, format_cid
from cas_zarr.consolidated import Consolidation, is_composed
from cas_zarr.dataset import Dataset
from cas_zarr.errors import BlockNotFoundError, CasZarrError, InvalidArgumentError, ReadOnlyError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.base import Address, reopen
from cas_zarr.repository.faraway import NodeLike
from cas_zarr.repository.forking import Fork
from cas_zarr.repository.readahead import read_ahead
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.session import Session, View
from cas_zarr.repository.versions import root_of

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

__all__ = ["CASStore"]

Location: TypeAlias = "Address | Repository | Session | Fork | CASMapping"

_T = TypeVar("_T")

_LISTED = 4096  # keys that are listed between two looks at what else there is to do
_REFUSAL = "store was opened in read-only mode and does not support writing"


class CASStore(Dataset, Store):
    """A content-addressed store for zarr-python 3.

    Parameters
    ----------
    location : str, path, obstore store, Repository, Session or CASMapping
        The folder of a repository, made by the first write; ``s3://bucket/prefix``, ``gs://`` or
        ``az://`` for one in object storage; ``memory://name`` for one in this process; for reading
        ``ipfs://CID``, ``ipns://NAME``, a ``.car`` file, the address of a server (see
        `Repository.open`); or something that is open already.
    version : str, bytes or CID, optional
        A tag, a branch (its newest commit), a commit, a root, or ``main~2``: for reading only.
    branch : str
        Without a version: the branch whose working root is shown and written to.
    read_only : bool
        Refuse to write.
    strict : bool
        Refuse to bind a key to another value.
    hash : str, optional
        For a new repository: ``blake3``, the default, or ``sha2-256``.
    author : str
        Who commits, unless a commit says otherwise.
    gateways, node, cache, storage_options
        Where blocks of other machines are read from and kept; see `Repository.open`.

    Raises
    ------
    RepositoryNotFoundError
        If there is no repository to read, or the folder holds something else.
    VersionNotFoundError
        If there is no such version or branch.

    Notes
    -----
    What was written is visible to others after `flush`, `commit`, `close`, the end of a ``with``,
    and a normal exit of the interpreter.
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True
    supports_partial_writes: Literal[False] = False

    def __init__(
        self,
        location: Location,
        *,
        version: CidLike | None = None,
        branch: str = "main",
        read_only: bool = False,
        strict: bool = False,
        hash: str | None = None,
        author: str = "",
        gateways: str | Sequence[str] | None = None,
        node: NodeLike | None = None,
        cache: Cache = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        read_only = read_only or version is not None
        pin: CidBytes | None = None
        session: Session | Fork | View
        shown: str | None = branch
        if isinstance(location, (Session, Fork)):
            session, shown = location, location.branch
        elif isinstance(location, CASMapping):
            session, shown = View(location), None
            read_only = read_only or location.read_only
        else:
            repository = (
                location
                if isinstance(location, Repository)
                else (Repository.open if read_only else Repository.prepare)(
                    location,
                    hash=hash,
                    read_only=read_only,
                    author=author,
                    gateways=gateways,
                    node=node,
                    cache=cache,
                    storage_options=storage_options,
                    first="" if version is not None else branch,
                )
            )
            read_only = read_only or bool(repository.fixed)
            if read_only:
                if version is None:
                    pin = root_of(repository.blocks, repository.record(branch))
                else:
                    pin = repository.resolve(version).root
                session = _view(repository, pin)
            else:
                session = repository.session(branch, strict=strict)
        if version is not None and isinstance(location, (Session, Fork, CASMapping)):
            raise InvalidArgumentError(
                "a session or a mapping is at one version; give its repository to open another"
            )
        self._set_up(session, shown, version, read_only=read_only, strict=strict, pin=pin)

    def _set_up(
        self,
        session: Session | Fork | View,
        branch: str | None,
        version: CidLike | None,
        *,
        read_only: bool,
        strict: bool,
        pin: CidBytes | None,
    ) -> None:
        super().__init__(read_only=read_only)
        self._session = session
        self._tree = session.tree  # one step less on the way to each value
        self._branch = branch
        self._version = version
        self._strict = strict
        self._pin = pin
        self._consolidation: Consolidation | None = None
        self._far = session.remote
        self._ahead = read_ahead(session.tree.mapping) if isinstance(session, View) else None

    # -- what it is ---------------------------------------------------------------------------

    @property
    def location(self) -> str:
        """The path of the repository's folder, ``memory://name``, or words for a mapping."""
        repository = self._session.repository
        return self._tree.mapping.blocks.location if repository is None else repository.location

    def __str__(self) -> str:
        return f"cas-zarr://{self.location}{self._which()}"

    def __repr__(self) -> str:
        return f"CASStore('{self}'{', read_only=True' if self._read_only else ''})"

    def _which(self) -> str:
        version = self._version
        if version is not None:
            return f"@{version if isinstance(version, str) else format_cid(as_cid_bytes(version))}"
        which = "" if self._branch is None else f"#{self._branch}"
        return f"{which}, a fork" if isinstance(self._session, Fork) else which

    def _identity(self) -> tuple[object, ...]:
        if self._session.repository is None:
            return id(self._tree.mapping), self._read_only
        return self.location, self._which(), self._read_only

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CASStore) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]

    def _of(self, fork: Fork) -> Self:
        return type(self)(fork)

    # -- opening and closing --------------------------------------------------------------------

    def close(self) -> None:
        """Flush. A read-only store leaves its writable siblings as they are."""
        super().close()
        if not self._read_only:
            self._session.close()

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return a store of the same data for reading only, or for writing.

        A sibling for reading shares the session: it sees what was not flushed yet.

        Raises
        ------
        ReadOnlyError
            If this is a version, which cannot be written.
        """
        if not read_only and self._session.tree.target is None and isinstance(self._session, View):
            return self._writable()
        sibling = type(self).__new__(type(self))
        sibling._set_up(
            self._session,
            self._branch,
            self._version,
            read_only=read_only,
            strict=self._strict,
            pin=self._pin,
        )
        return sibling

    def _writable(self) -> Self:
        repository = self._session.repository
        if self._version is not None or repository is None or self._branch is None:
            raise ReadOnlyError(
                f"{self} is a version and cannot be written; open its branch, or make a branch of "
                "it to write"
            )
        if repository.fixed:
            raise ReadOnlyError(f"{self} can only be read; clone it into a folder to change it")
        there = Repository.prepare_from(
            repository.location, repository.sources, author=repository.author
        )
        return type(self)(there, branch=self._branch, strict=self._strict)

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._session, Fork):
            return type(self), (self._session,)
        repository = self._session.repository
        if repository is None:
            raise CasZarrError(
                "a store on a bare mapping cannot be pickled; open it from a repository's location"
            )
        if self._session.dirty:
            raise CasZarrError(
                f"{self} has unflushed changes, which a pickled copy would not see; give workers a "
                "fork (`store.fork()`, and `store.merge` what comes back), or flush first"
            )
        pin = self._pin
        if self._read_only and pin is None:
            pin = self._session.root
        opening = repository.opening(read_only=self._read_only)
        options = self._version, self._read_only, pin, self._branch, self._strict
        return _unpickle, (type(self), opening, *options)

    # -- consolidated metadata ------------------------------------------------------------------

    @property
    def supports_consolidated_metadata(self) -> bool:
        """Whether zarr may look for consolidated metadata.

        Only for reading, where they are composed: in a store that changes, they would be stale
        as soon as they were read.
        """
        return self._read_only

    def _compose(self, key: str) -> bytes | None:
        mapping = self._tree.mapping
        if not mapping.read_only:  # it may change before the next time
            return Consolidation(mapping, fixed=False).get(key)
        if self._consolidation is None:
            self._consolidation = Consolidation(mapping, fixed=True)
        return self._consolidation.get(key)

    # -- reading --------------------------------------------------------------------------------

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return a value, verified, or None; see `zarr.abc.store.SupportsGetSync`."""
        if prototype is None:
            prototype = default_buffer_prototype()
        try:
            if byte_range is not None or (
                self._read_only and key[-1:] in "an" and is_composed(key)
            ):
                return self._get_part(key, prototype, byte_range)
            if prototype.buffer is not CPU_BUFFER and not self._far:
                found = later(prototype, self._tree.mapping, key)
                if found is not None:
                    return found
            data = self._tree.mapping.get_value(key)
        except BlockNotFoundError as error:
            raise out_of_reach(error) from error
        return None if data is None else to_buffer(prototype, data)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        # docstring inherited
        if self._far:
            ahead = None if self._ahead is None or byte_range else self._ahead.take(key)
            if isinstance(ahead, Future):
                ahead = await asyncio.wrap_future(ahead)
            if ahead is not None:
                return to_buffer(prototype or default_buffer_prototype(), ahead)
            return await _in_thread(
                lambda: self.get_sync(key, prototype=prototype, byte_range=byte_range)
            )
        return self.get_sync(key, prototype=prototype, byte_range=byte_range)

    @property
    def _supports_sync_io(self) -> bool:
        """Whether zarr's fused pipeline may read chunk by chunk: not where each is a round trip."""
        return not self._far

    def _get_part(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        mapping = self._tree.mapping
        if self._read_only and is_composed(key):
            whole = self._compose(key)
            if whole is None:
                return None
            start, stop = bounds_of(byte_range, len(whole))
            return to_buffer(prototype, whole[start:stop])
        size = mapping.size_of(key) if isinstance(byte_range, SuffixByteRequest) else None
        if size is None and isinstance(byte_range, SuffixByteRequest):
            return None
        start, stop = bounds_of(byte_range, size)
        data = mapping.get_value(key, start, stop)
        return None if data is None else to_buffer(prototype, data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        # docstring inherited
        return list(
            await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))
        )

    async def exists(self, key: str) -> bool:
        # docstring inherited
        return await self._ask(lambda: self._tree.mapping.exists(key))

    async def getsize(self, key: str) -> int:
        # docstring inherited
        size = await self._ask(lambda: self._size_of(key))
        if size is None:
            raise FileNotFoundError(key)
        return size

    def _size_of(self, key: str) -> int | None:
        if self._read_only and is_composed(key):
            whole = self._compose(key)
            return None if whole is None else len(whole)
        return self._tree.mapping.size_of(key)

    async def getsize_prefix(self, prefix: str) -> int:
        # docstring inherited
        return await self._ask(lambda: self._tree.mapping.prefix_size(_folder(prefix)))

    async def is_empty(self, prefix: str) -> bool:
        # docstring inherited
        async for _ in self.list_prefix(_folder(prefix)):
            return False
        return True

    async def list(self) -> AsyncIterator[str]:
        # docstring inherited
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        # docstring inherited
        keys = self._tree.mapping.list_keys(prefix)
        try:
            if not self._far:
                for key in keys:
                    yield key
                return
            while batch := await _in_thread(lambda: list(islice(keys, _LISTED))):
                for key in batch:
                    yield key
        except BlockNotFoundError as error:
            raise out_of_reach(error) from error

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        # docstring inherited
        folder = prefix.rstrip("/")
        for name in await self._ask(lambda: self._tree.mapping.list_folder(folder)):
            yield name

    async def _ask(self, question: Callable[[], _T]) -> _T:
        """Return an answer of the core; where it may take a network, without blocking others."""
        try:
            return await _in_thread(question) if self._far else question()
        except BlockNotFoundError as error:
            raise out_of_reach(error) from error

    # -- writing --------------------------------------------------------------------------------

    def set_sync(self, key: str, value: Buffer) -> None:
        """Hold a value; see `zarr.abc.store.SupportsSetSync`.

        It is hashed and written or copied before this returns: the caller may change it then.
        """
        if self._read_only:
            self._check_writable()
        target = self._tree.target
        if target is None:
            target = self._session.prepare()
        carried = getattr(value, "carried", None)
        if carried is not None and set_carried(target, key, carried):
            return
        try:
            data = value.as_numpy_array()
        except AttributeError:
            raise no_buffer(value) from None
        target.set_value(key, data)

    async def set(self, key: str, value: Buffer) -> None:
        # docstring inherited
        self.set_sync(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # docstring inherited
        self._check_writable()
        if not self._session.prepare().exists(key):
            self.set_sync(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            self.set_sync(key, value)

    def delete_sync(self, key: str) -> None:
        """Forget a key, if it is there; see `zarr.abc.store.SupportsDeleteSync`."""
        if self._read_only:
            self._check_writable()
        target = self._tree.target
        if target is None:
            target = self._session.prepare()
        target.discard(key)

    async def delete(self, key: str) -> None:
        # docstring inherited
        self.delete_sync(key)

    async def delete_dir(self, prefix: str) -> None:
        # docstring inherited
        self._check_writable()
        self._session.prepare().discard_prefix(_folder(prefix))

    async def clear(self) -> None:
        # docstring inherited
        self._check_writable()
        self._session.prepare().discard_prefix("")

    async def set_partial_values(
        self, key_start_values: Iterable[tuple[str, int, bytes | bytearray | memoryview]]
    ) -> None:
        """Refuse: a value is written whole. Zarr 3.1.0 is the last that knows of this."""
        keys = ", ".join(repr(key) for key, _, _ in key_start_values)
        raise NotImplementedError(f"a part of {keys} cannot be written: values are written whole")

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError(f"{_REFUSAL}; open a branch for writing instead of {self}")


async def _in_thread(call: Callable[[], _T]) -> _T:
    """Return what a call gives, made in one of the threads that wait for servers."""
    return await asyncio.get_running_loop().run_in_executor(waiting_pool("store"), call)


def _view(repository: Repository, root: CidBytes | None) -> View:
    """Return a fixed version of a repository."""
    return View(
        CASMapping(repository.blocks, root, hash=repository.hash, read_only=True), repository
    )


def _folder(prefix: str) -> str:
    return prefix if prefix == "" or prefix.endswith("/") else prefix + "/"


def _unpickle(
    kind: type[CASStore],
    opening: tuple[Any, ...],
    version: CidLike | None,
    read_only: bool,
    pin: CidBytes | None,
    branch: str,
    strict: bool,
) -> CASStore:
    repository: Repository = reopen(*opening)
    if not read_only:
        return kind(repository, branch=branch, strict=strict)
    store = kind.__new__(kind)
    store._set_up(_view(repository, pin), branch, version, read_only=True, strict=strict, pin=pin)
    return store
