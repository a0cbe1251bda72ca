"""The stores that are measured, each behind the same few verbs.

A contender that cannot run here says why in `missing`; the benchmark prints that and goes on.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store

from benchmarks.report import folder_bytes

__all__ = ["CONTENDERS", "Contender"]


class Contender(ABC):
    """One store under test, living in `folder` for the length of one round.

    Attributes
    ----------
    name : str
        Its name in tables and on the command line.
    note : str
        What a reader must know to compare it.
    asynchronous : bool
        Whether it has no synchronous methods, so that the Fused pipeline has nothing to gain.
    """

    name: str
    note: str
    asynchronous = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def missing(cls) -> str | None:
        """Return why this contender cannot run here, or None."""
        return None

    @abstractmethod
    def create(self) -> Store:
        """Return a new, empty, writable store."""

    def commit(self) -> None:
        """Make what was written durable, in the store's own way."""
        return

    def again(self, store: Store) -> Store:
        """Return the store for a second write, after a commit."""
        return store

    def commit_again(self) -> None:
        """Make the second write durable."""
        self.commit()

    @abstractmethod
    def reopen(self) -> Store:
        """Return the store opened afresh, for reading."""

    def stored_bytes(self) -> int:
        """Return how many bytes lie in the store's place."""
        return folder_bytes(self.folder)

    def remove(self) -> None:
        """Delete all that this contender wrote."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Memory(Contender):
    name = "MemoryStore"
    note = "a dict; keeps views of the caller's array, copies and verifies nothing"

    def create(self) -> Store:
        self._dict: dict[str, Any] = {}
        return zarr.storage.MemoryStore(self._dict)

    def reopen(self) -> Store:
        return zarr.storage.MemoryStore(self._dict, read_only=True)

    def stored_bytes(self) -> int:
        return sum(len(value) for value in self._dict.values())

    def remove(self) -> None:
        self._dict = {}


class _Local(Contender):
    name = "LocalStore"
    note = "a file a chunk; no fsync, verifies nothing"

    def create(self) -> Store:
        return zarr.storage.LocalStore(self.folder)

    def reopen(self) -> Store:
        return zarr.storage.LocalStore(self.folder, read_only=True)


class _Object(Contender):
    name = "ObjectStore"
    note = "obstore on local files; no fsync, verifies nothing"
    asynchronous = True

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("obstore") else "obstore is not installed"

    def _open(self, read_only: bool) -> Store:
        import obstore

        return zarr.storage.ObjectStore(
            obstore.store.LocalStore(self.folder, mkdir=True), read_only=read_only
        )

    def create(self) -> Store:
        return self._open(False)

    def reopen(self) -> Store:
        return self._open(True)


class _Icechunk(Contender):
    name = "icechunk"
    note = "local files; a commit is a snapshot; verifies nothing on read"
    asynchronous = True

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("icechunk") else "icechunk is not installed"

    def create(self) -> Store:
        import icechunk

        icechunk.set_logs_filter("error")  # it warns that local files are not safe for many writers
        self._repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(self.folder)))
        self._session = self._repo.writable_session("main")
        return self._session.store

    def commit(self) -> None:
        self._session.commit("write")

    def again(self, store: Store) -> Store:  # noqa: ARG002 - a session ends with its commit
        self._session = self._repo.writable_session("main")
        return self._session.store

    def reopen(self) -> Store:
        import icechunk

        repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(self.folder)))
        return repo.readonly_session("main").store


class _Hamt(Contender):
    name = "py-hamt"
    note = "HAMT over its in-memory block store (BLAKE3): no disk, no IPFS node; verifies nothing"
    asynchronous = True

    @classmethod
    def missing(cls) -> str | None:
        if importlib.util.find_spec("py_hamt") is None:
            return "py-hamt is not installed (it pins zarr 3.0.9; needs an environment of its own)"
        return None

    def create(self) -> Store:
        from py_hamt import HAMT, InMemoryCAS, ZarrHAMTStore

        self._cas = InMemoryCAS()
        self._hamt = _wait(HAMT.build(self._cas, values_are_bytes=True))
        return ZarrHAMTStore(self._hamt, read_only=False)

    def commit(self) -> None:
        _wait(self._hamt.make_read_only())
        self._root = self._hamt.root_node_id

    def again(self, store: Store) -> Store:
        _wait(self._hamt.enable_write())
        return store

    def reopen(self) -> Store:
        from py_hamt import HAMT, ZarrHAMTStore

        hamt = _wait(
            HAMT.build(self._cas, root_node_id=self._root, read_only=True, values_are_bytes=True)
        )
        return ZarrHAMTStore(hamt, read_only=True)

    def stored_bytes(self) -> int:
        return sum(len(block) for block in self._cas.store.values())

    def remove(self) -> None:
        del self._cas, self._hamt


class _Cas(Contender):
    name = "cas_zarr"
    note = "packs on local files; a commit fsyncs; every byte that is read is verified"

    def create(self) -> Store:
        from cas_zarr import CASStore

        self._store = CASStore(str(self.folder))
        return self._store

    def commit(self) -> None:
        self._store.commit("write")

    def commit_again(self) -> None:
        self._store.flush()

    def reopen(self) -> Store:
        from cas_zarr import CASStore

        return CASStore(str(self.folder), version="main")

    def remove(self) -> None:
        self._store.close()
        super().remove()


class _CasMemory(_Cas):
    name = "cas_zarr-memory"
    note = "blocks in a dict: what hashing and the tree cost without a disk; verified"

    def create(self) -> Store:
        from cas_zarr import CASStore, Repository

        self._repo = Repository.memory()
        self._store = CASStore(self._repo)
        return self._store

    def reopen(self) -> Store:
        from cas_zarr import CASStore

        return CASStore(self._repo, version="main")

    def stored_bytes(self) -> int:
        blocks = self._repo.blocks
        return sum(blocks.size(cid) for cid in blocks.list())


def _wait(awaitable: Any) -> Any:
    """Run a coroutine on zarr's own event loop, where the store's locks will live."""
    from zarr.core.sync import sync

    async def run() -> Any:
        return await awaitable

    return sync(run()) if asyncio.iscoroutine(awaitable) else awaitable


CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender
    for contender in (_Memory, _Local, _Cas, _Object, _Icechunk, _Hamt, _CasMemory)
}
