"""Who acts on a repository in test_repository_machine.py: here, or in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from cas_zarr import errors
from cas_zarr.cid import CidLike
from cas_zarr.repository import gc, history, merging, sync
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.session import Session, close_sessions

__all__ = ["Actor", "RemoteActor", "zarr_edit"]

Edit = tuple[Any, ...]


def zarr_edit(store: Any, path: str, what: str, *arguments: Any) -> None:
    """Change an array as a user of zarr does; values are written one by one."""
    import zarr

    array = zarr.open_array(store, path=path, mode="r+", zarr_format=3)
    if what == "write":
        place, value = arguments
        array[place] = value
    elif what == "resize":
        array.resize(arguments[0])
    else:
        array.attrs["u"] = arguments[0]


class Actor:
    """A `Repository` object, the sessions that were opened with it, and what can be done."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.sessions: dict[int, Session] = {}
        self.open()

    def open(self) -> None:
        """Open the repository."""
        self.repo = Repository.open(self.folder, create=True, author="somebody")

    def do(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method by its name."""
        return getattr(self, name)(*arguments, **options)

    def reopen(self) -> None:
        """Close the repository and open it again; sessions are flushed and stay usable."""
        self.shut()
        self.open()

    def shut(self) -> None:
        """Close the repository."""
        assert not self.sessions
        close_sessions(self.repo)
        self.repo.close()

    # -- sessions ---------------------------------------------------------------------------

    def begin(self, number: int, branch: str) -> dict[str, bytes]:
        """Open a session; return what it shows."""
        session = self.sessions[number] = self.repo.session(branch)
        return dict(session.prepare().items())

    def edit(self, number: int, edits: Sequence[Edit]) -> dict[str, bytes]:
        """Change the dataset of a session; return what it shows."""
        session = self.sessions[number]
        mapping = session.mapping
        for what, *arguments in edits:
            if what == "set":
                mapping.set_value(*arguments)
            elif what == "delete":
                mapping.discard(*arguments)
            elif what == "remove":
                mapping.discard_prefix(*arguments)
            elif what == "zarr":
                from cas_zarr.store import CASStore

                zarr_edit(CASStore(session), *arguments)
            else:
                options = arguments.pop() if isinstance(arguments[-1], dict) else {}
                getattr(session, what)(*arguments, **options)
        return dict(mapping.items())

    def flush(self, number: int) -> bytes:
        """Flush a session."""
        return self.sessions[number].flush()

    def commit(self, number: int, message: str, time: int) -> bytes:
        """Commit."""
        return self.sessions[number].commit(message, time=time)

    def end(self, number: int) -> None:
        """Let a session go whatever it has left."""
        with suppress(errors.VersionNotFoundError):  # its branch was deleted
            self.sessions.pop(number).discard()

    # -- the repository ---------------------------------------------------------------------

    def merge(self, version: CidLike, **options: Any) -> merging.MergeResult:
        """Merge."""
        return merging.merge(self.repo, version, **options)

    def cherry_pick(self, version: CidLike, **options: Any) -> merging.MergeResult:
        """Pick a commit."""
        return merging.cherry_pick(self.repo, version, **options)

    def revert(self, version: CidLike, **options: Any) -> merging.MergeResult:
        """Revert a commit."""
        return merging.revert(self.repo, version, **options)

    def rebase(self, branch: str, **options: Any) -> merging.MergeResult:
        """Rebase a branch."""
        return merging.rebase(self.repo, branch, **options)

    def history(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a function of `history`."""
        return getattr(history, name)(self.repo, *arguments, **options)

    def refs(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Create, delete, rename, reset: what `Repository` and `history` have."""
        if hasattr(self.repo, name):
            return getattr(self.repo, name)(*arguments, **options)
        return getattr(history, name)(self.repo, *arguments, **options)

    def expire(self, **options: Any) -> history.ExpireReport:
        """Cut histories."""
        return history.expire(self.repo, **options)

    def collect(self, grace: timedelta, log_age: timedelta, now: int) -> gc.GCReport:
        """Collect garbage."""
        return gc.collect(
            self.repo, grace=grace, log_age=log_age, max_unused=0.0, clock=lambda: now
        )

    def repack(self) -> None:
        """Put all blocks into few packs."""
        gc.repack(self.repo)

    def push(self, target: str, **options: Any) -> sync.SyncReport:
        """Push."""
        return sync.push(self.repo, target, **options)

    def fetch(self, source: str, **options: Any) -> sync.SyncReport:
        """Fetch."""
        return sync.fetch(self.repo, source, **options)

    def pull(self, source: str, **options: Any) -> sync.PullReport:
        """Pull."""
        return sync.pull(self.repo, source, **options)

    def read(self, version: CidLike) -> dict[str, bytes]:
        """Return the dataset of a version."""
        return dict(self.repo.at(version).items())


def _serve(connection: Connection) -> None:
    actor: Actor | None = None
    while True:
        name, arguments, options = connection.recv()
        try:
            if name == "stop":
                break
            if name == "start":
                actor = Actor(*arguments)
                result = None
            else:
                assert actor is not None
                result = actor.do(name, *arguments, **options)
        except errors.CasZarrError as error:
            connection.send((type(error).__name__, str(error)))
        else:
            connection.send(("", result))


class RemoteActor:
    """An `Actor` in another process, which it shares with those that come after it."""

    _process: multiprocessing.process.BaseProcess | None = None
    _connection: Connection

    def __init__(self, folder: str) -> None:
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            RemoteActor._process, RemoteActor._connection = process, here
        self.do("start", folder)

    def do(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the actor; raise what it raises."""
        self._connection.send((name, arguments, options))
        kind, result = self._connection.recv()
        if kind:
            raise getattr(errors, kind, errors.CasZarrError)(result)
        return result
