"""Verification: every block that a version leads to is read and hashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import CidBytes, CidLike, format_cid
from cas_zarr.errors import BlockNotFoundError, CasZarrError, CorruptBlockError
from cas_zarr.repository.refs import Refs
from cas_zarr.repository.versions import read_commit, resolve
from cas_zarr.tree.walk import reachable

__all__ = ["Damage", "Progress", "VerifyReport", "verify"]

Progress = Callable[[int, int], None]
"""Called with the blocks and the bytes that have been checked."""

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not what it should be.

    Attributes
    ----------
    cid : CidBytes or None
        The block; None for a ref that cannot be read.
    path : str
        The key or node whose block it is; "" for a root. For a ref or a commit, its name.
    reason : str
        What is wrong, and where the block lies.
    """

    cid: CidBytes | None
    path: str
    reason: str

    def __str__(self) -> str:
        named = "" if self.cid is None else f" (block {format_cid(self.cid)})"
        return f"{self.path or 'root'}{named}: {self.reason}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `Repository.verify` found.

    Attributes
    ----------
    roots, commits, blocks, size : int
        What was checked; `size` in bytes. A block that is used twice is checked once.
    damaged : tuple of Damage
        What is broken or missing.
    complete : bool
        False if a damaged block hid what lies below it, which could not be checked then.
    """

    roots: int
    commits: int
    blocks: int
    size: int
    damaged: tuple[Damage, ...]
    complete: bool

    @property
    def ok(self) -> bool:
        """Whether everything is whole."""
        return not self.damaged and self.complete


def verify(
    blocks: BlockStore,
    refs: Refs,
    version: CidLike | None = None,
    *,
    progress: Progress | None = None,
) -> VerifyReport:
    """Read and hash every block of a version, or of all refs and their histories.

    Parameters
    ----------
    blocks, refs
        Those of a repository.
    version : str, bytes or CID, optional
        One version without its history; all branches, tags and kept roots with theirs by default.
    progress : callable, optional
        Called now and then with the blocks and the bytes that have been checked.

    Raises
    ------
    VersionNotFoundError
        If there is no such version. What is damaged is reported, not raised.
    """
    check = _Check(blocks, progress)
    if version is not None:
        try:
            found = resolve(blocks, refs, version)
        except (BlockNotFoundError, CorruptBlockError) as error:  # the commit itself
            check.hidden(version if isinstance(version, str) else "version", error)
            return check.report()
        if found.commit is not None:
            check.commit(found.commit, found.name, history=False)
        check.root(found.root)
    else:
        for name, commit, root in check.starts(refs):
            if commit is not None:
                check.commit(commit, name, history=True)
            if root is not None:
                check.root(root)
    return check.report()


class _Check:
    def __init__(self, blocks: BlockStore, progress: Progress | None) -> None:
        self.blocks = blocks
        self.progress = progress
        self.checked: set[CidBytes] = set()
        self.roots: set[CidBytes] = set()
        self.commits: set[CidBytes] = set()
        self.damaged: dict[CidBytes | str, Damage] = {}
        self.count = self.size = 0
        self.complete = True

    def starts(self, refs: Refs) -> Iterator[tuple[str, CidBytes | None, CidBytes | None]]:
        """Yield name, commit and root of every ref; report those that cannot be read."""
        names = [
            *((f"branch {name}", name, refs.branch) for name in refs.branches()),
            *((name, name, refs.kept) for name in refs.all_kept()),
        ]
        for shown, name, read in names:
            try:
                record = read(name)
            except CasZarrError as error:
                self._report(None, shown, error)
                continue
            if record is not None:
                yield shown, record.commit, record.work
        for name in refs.tags():
            try:
                tag = refs.tag(name)
            except CasZarrError as error:
                self._report(None, f"tag {name}", error)
                continue
            if tag is not None:
                yield f"tag {name}", tag.commit, None

    def commit(self, cid: CidBytes, name: str, *, history: bool) -> None:
        """Check a commit, and with `history` those before it and the roots of all."""
        ahead = [cid]
        while ahead:
            cid = ahead.pop()
            if cid in self.commits:
                continue
            self.commits.add(cid)
            self._blocks([(f"commit of {name}", cid)])
            if not history or cid in self.damaged:
                self.complete = self.complete and cid not in self.damaged
                continue
            try:
                commit = read_commit(self.blocks, cid)
            except CasZarrError as error:
                self._report(cid, f"commit of {name}", error)
                self.complete = False
                continue
            ahead.extend(commit.parents)
            self.root(commit.root)

    def root(self, cid: CidBytes) -> None:
        """Check all blocks of a root."""
        if cid in self.roots:
            return
        self.roots.add(cid)
        batch: list[tuple[str, CidBytes]] = []
        for place in reachable(self.blocks, cid, on_error=self._unread):
            if place[1] not in self.checked:
                batch.append(place)
            if len(batch) == _BATCH:
                self._blocks(batch)
                batch = []
        self._blocks(batch)

    def _unread(self, path: str, cid: CidBytes, error: CasZarrError) -> None:
        """Report a block of a tree that hides what lies below it."""
        self._report(cid, path, error)
        self.complete = False

    def hidden(self, name: str, error: CasZarrError) -> None:
        """Report a version that cannot be opened."""
        self._report(None, name, error)
        self.complete = False

    def report(self) -> VerifyReport:
        """Return what was found."""
        return VerifyReport(
            roots=len(self.roots),
            commits=len(self.commits),
            blocks=self.count,
            size=self.size,
            damaged=tuple(self.damaged.values()),
            complete=self.complete,
        )

    def _blocks(self, batch: list[tuple[str, CidBytes]]) -> None:
        if not batch:
            return
        try:
            sizes = [len(data) for data in self.blocks.get_many([cid for _, cid in batch])]
        except CasZarrError:
            sizes = [size for one in batch if (size := self._block(one)) is not None]
        self.checked.update(cid for _, cid in batch)
        self.count += len(sizes)
        self.size += sum(sizes)
        if self.progress is not None:
            self.progress(self.count, self.size)

    def _block(self, one: tuple[str, CidBytes]) -> int | None:
        path, cid = one
        try:
            return len(self.blocks.get(cid))
        except CasZarrError as error:
            self._report(cid, path, error)
            return None

    def _report(self, cid: CidBytes | None, path: str, error: CasZarrError) -> None:
        self.damaged.setdefault(path if cid is None else cid, Damage(cid, path, str(error)))
