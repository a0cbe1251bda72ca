"""Moving the refs of a repository to what was copied into it, beside collections and other writers.

Make a `Placer` before the first block is copied; move refs when all blocks are durable.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from cas_zarr.cid import CidBytes
from cas_zarr.errors import ConflictError
from cas_zarr.repository.guard import Guard
from cas_zarr.repository.refs import Branch, GuardError, Tag
from cas_zarr.repository.versions import read_commit

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository
    from cas_zarr.repository.transfer import Plan

__all__ = ["Placer"]

_ATTEMPTS = 100


class Placer:
    """Moves refs of a repository, each when what it will lead to is safe from collections.

    Parameters
    ----------
    repo : Repository
    verb : str
        What is done, for messages.
    """

    def __init__(self, repo: Repository, verb: str) -> None:
        self._repo = repo
        self._guard = Guard(
            repo.blocks, repo.refs, writer=f"this {verb}", remedy=f"{verb} again: it copies them"
        )

    def branch(self, name: str, old: Branch | None, new: Branch, *, why: str) -> None:
        """Move a branch; ConflictError if it is not `old` any more."""

        def move(record: bytes | None) -> None:
            self._repo.refs.update(name, expected=old, new=new, why=why, guard=record)

        self._place(new, old, move)

    def begin(self, name: str, new: Branch, *, why: str) -> None:
        """Make a branch; ConflictError if there is another one of that name."""
        try:
            self.branch(name, None, new, why=why)
        except ConflictError:
            if self._repo.refs.branch(name) != new:
                raise

    def track(self, name: str, commit: CidBytes) -> None:
        """Note where a branch of a remote is."""
        refs = self._repo.refs
        for _ in range(_ATTEMPTS):
            old = refs.tracked(name)
            if old is not None and old.commit == commit:
                return

            def move(record: bytes | None, old: Tag | None = old) -> None:
                refs.track(name, expected=old, new=Tag(commit), guard=record)

            with suppress(ConflictError):  # fetched elsewhere meanwhile: the later one counts
                self._place(Tag(commit), old, move)
                return
        raise ConflictError(f"{name!r} is fetched into {refs.location} all the time; repeat")

    def tag(self, name: str, commit: CidBytes, *, why: str) -> CidBytes | None:
        """Make a tag; return the commit of one that is there already."""
        ours = self._repo.refs.tag(name)
        if ours is None:
            try:
                self.set_tag(name, None, commit, why=why)
            except ConflictError:
                ours = self._repo.refs.tag(name)
                if ours is None:
                    raise
        return None if ours is None else ours.commit

    def set_tag(self, name: str, old: Tag | None, commit: CidBytes, *, why: str) -> None:
        """Make or move a tag; ConflictError if it is not `old` any more."""
        refs = self._repo.refs
        if old is not None and old.commit == commit:
            return

        def move(record: bytes | None) -> None:
            if old is None:
                refs.create_tag(name, Tag(commit), why=why, guard=record)
            else:
                refs.move_tag(name, expected=old, new=Tag(commit), why=why, guard=record)

        self._place(Tag(commit), old, move)

    def cut(self, steps: Plan) -> None:
        """Note at which commits the history ends here, and which have their parents by now."""
        refs = self._repo.refs
        deeper = {
            parent for cid in steps.whole for parent in read_commit(self._repo.blocks, cid).parents
        }
        for _ in range(_ATTEMPTS):
            with suppress(ConflictError):  # another transfer, or a collection
                old = refs.shallow()
                new = old | steps.cut
                if new != old:  # first: a look at what is deeper shall end there
                    refs.set_shallow(old, new)
                if not new & steps.whole:
                    return
                self._guard.secure(None)
                record = self._guard.record
                for commit in deeper:
                    self._guard.secure(commit)
                if self._guard.record == record:  # all were looked at under the same
                    refs.set_shallow(new, new - steps.whole, guard=record)
                    return
        raise ConflictError(f"the history in {refs.location} is cut elsewhere all the time; repeat")

    def _place(
        self,
        new: Branch | Tag,
        old: Branch | Tag | None,
        move: Callable[[bytes | None], None],
    ) -> None:
        for _ in range(_ATTEMPTS):
            self._guard.secure_move(new, old)
            with suppress(GuardError):
                move(self._guard.record)
                return
        raise ConflictError(
            f"collections of garbage in {self._repo.location} begin all the time; repeat when they "
            "have ended"
        )
