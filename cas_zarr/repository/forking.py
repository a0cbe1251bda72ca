"""Forks: one session written by many workers, and made visible by one.

A fork goes to a worker, writes blocks to the shared place and comes back with its delta: which keys
it set, and to which CIDs. Whoever made the forks merges them. A worker that died, was retried or
ran twice costs nothing: the same data are the same blocks, and what does not come back is garbage.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cas_zarr.cid import CidBytes
from cas_zarr.closing import Closing
from cas_zarr.errors import (
    BlockNotFoundError,
    InvalidArgumentError,
    StorageError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.faraway import Sources
from cas_zarr.repository.guard import Guard
from cas_zarr.repository.opening import check_owner, owner_of
from cas_zarr.tree.delta import Delta

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["Fork"]

_OPEN = 4  # repositories that a worker keeps open for the next forks


class Fork(Closing):
    """A session of a worker: what it writes is seen by nobody until it is merged.

    `Session.fork` makes one. It can be pickled, with what it has written: its blocks are made
    durable then.

    Attributes
    ----------
    base : CidBytes
        The root that it began with.
    branch : str
        The branch of the session that made it.
    maker : bytes
        Names the session that made it.
    """

    def __init__(
        self,
        repository: Repository,
        base: CidBytes,
        branch: str,
        maker: bytes,
        *,
        strict: bool = False,
    ) -> None:
        self._set_up(repository, base, branch, maker, strict, [])

    def _set_up(
        self,
        repository: Repository | None,
        base: CidBytes,
        branch: str,
        maker: bytes,
        strict: bool,
        deltas: list[Delta],
    ) -> None:
        self.tree = self  # what adapters need of a session
        self.base = base
        self.branch = branch
        self.maker = maker
        self._strict = strict
        self._repository = repository
        self._deltas = deltas
        self._mapping: CASMapping | None = None
        self._lock = threading.RLock()
        self._opened: tuple[str, str, Sources] | None = None

    def __repr__(self) -> str:
        return f"Fork({self.repository.location!r}, branch={self.branch!r})"

    @property
    def repository(self) -> Repository:
        """Where its blocks are."""
        if self._repository is None:
            assert self._opened is not None
            self._repository = _open(*self._opened)
        return self._repository

    @property
    def mapping(self) -> CASMapping:
        """The keys and values as this fork sees them."""
        if self._mapping is None:
            with self._lock:
                if self._mapping is None:
                    self._mapping = self._open()
        return self._mapping

    target = mapping

    def _open(self) -> CASMapping:
        repository = self.repository
        # Kept: what is condemned while it lives counts as absent, and is written anew.
        self._guard = Guard(repository.blocks, repository.refs, writer="this fork")
        try:
            mapping = CASMapping(
                repository.blocks, self.base, hash=repository.hash, strict=self._strict
            )
        except BlockNotFoundError as error:
            raise StorageError(
                f"{self!r} cannot begin: it is older than the grace time of a collection of "
                f"garbage, which has deleted the root of it ({error}); make it anew"
            ) from error
        if self._deltas:
            mapping.unite_deltas({self.base: self._deltas})
        return mapping

    @property
    def remote(self) -> bool:
        """Whether a read takes a round trip."""
        return self.repository.blocks.remote

    @property
    def root(self) -> CidBytes:
        """The root that it began with."""
        return self.base

    @property
    def dirty(self) -> bool:
        """Never: what was written comes back with the fork."""
        return False

    def deltas(self) -> list[Delta]:
        """Return what was written; its blocks are durable."""
        with self._lock:
            if self._mapping is None:
                return self._deltas
            delta = self._mapping.delta(self.base)
            self._mapping.blocks.flush()  # behind it: other threads may write, and values be cut
            return [delta] if delta else []

    def fresh(self) -> Fork:
        """Return another fork that began as this one did, without what this one wrote."""
        return self.bringing([])

    def bringing(self, deltas: list[Delta]) -> Fork:
        """Return another fork that has written this, wherever it was."""
        fork = Fork.__new__(Fork)
        fork._set_up(self._repository, self.base, self.branch, self.maker, self._strict, deltas)
        fork._opened = self._opened
        return fork

    def prepare(self) -> CASMapping:
        """Return the mapping to write to."""
        return self.mapping

    def fork(self) -> Fork:
        """Return this fork: it can be handed on as it is."""
        return self

    def flush(self) -> CidBytes:
        """Make all that was written durable; return the root that it would make."""
        root = self.mapping.cid()
        self.mapping.blocks.flush()
        return root

    def commit(self, message: str, **options: object) -> CidBytes:
        """Refuse: a fork is merged into the session that made it."""
        named = f" {message!r} ({', '.join(options)})" if options else f" {message!r}"
        raise InvalidArgumentError(
            f"cannot commit{named}: this is a fork; merge it into the store that made it, and "
            "commit there"
        )

    def merge(self, forks: Fork | Iterable[Fork]) -> None:
        """Refuse: only the session that made forks merges them."""
        raise InvalidArgumentError(
            f"{forks!r} cannot be merged into a fork; merge all forks into the store that made them"
        )

    def close(self) -> None:
        """Make what was written durable."""
        if self._mapping is not None:
            self._mapping.blocks.flush()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._repository is None:
            assert self._opened is not None
            opened = self._opened
        else:
            repository = self._repository
            opened = repository.location, repository.author, repository.sources
        made = self.base, self.branch, self.maker, self._strict
        return _unpickle, (opened, made, self.deltas(), owner_of(opened[0]))


def _unpickle(
    opened: tuple[str, str, Sources],
    made: tuple[CidBytes, str, bytes, bool],
    deltas: list[Delta],
    owner: int | None,
) -> Fork:
    check_owner(opened[0], owner)
    fork = Fork.__new__(Fork)
    fork._set_up(None, *made, deltas)
    fork._opened = opened
    return fork


# -- repositories of a worker ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Held:
    """A repository that was opened, and its folder, held open so that no other takes its number."""

    repository: Repository
    sources: Sources
    folder: int | None

    def is_at(self, location: str) -> bool:
        """Tell whether it is still the one at its location: it may have been made anew there."""
        try:
            return self.folder is None or os.path.samestat(os.fstat(self.folder), os.stat(location))
        except OSError:
            return False

    def forget(self) -> None:
        """Let go of the folder; forks that have the repository go on with it."""
        if self.folder is not None:
            os.close(self.folder)


_lock = threading.Lock()
_held: OrderedDict[tuple[int, str], _Held] = OrderedDict()


def _open(location: str, author: str, sources: Sources) -> Repository:
    """Return a repository for the forks of this process: many come, one after the other."""
    from cas_zarr.repository.repository import Repository

    key = os.getpid(), location
    with _lock:
        known = _held.get(key)
        if known is not None and known.sources == sources and known.is_at(location):
            _held.move_to_end(key)
            return known.repository
        repository = Repository.open_from(location, sources, read_only=False, author=author)
        if known is not None:
            known.forget()
        folder = None
        with suppress(OSError):  # it is no folder
            folder = os.open(location, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _held[key] = _Held(repository, sources, folder)
        while len(_held) > _OPEN:
            _held.popitem(last=False)[1].forget()
        return repository


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for held in list(_held.values()):
        held.forget()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
