"""Repair: damaged and missing blocks are fetched from another place and put anew.

First the sound blocks of every damaged pack are copied into new ones, and the damaged packs are
read no more. Then all that the refs lead to is checked; what is missing is fetched from the source,
verified, and put anew, and the check goes on with what lies below it. Once all that is durable the
damaged packs go, except those that may hold a block which nobody else has. Of the log of refs the
damaged lines are dropped, and told: the source has a log of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.index import KEY_SIZE
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.packcheck import PackCheck, salvage
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import CasZarrError, InvalidArgumentError, ReadOnlyError
from cas_zarr.repository.damage import Damage, VerifyReport
from cas_zarr.repository.remotes import stored_blocks
from cas_zarr.repository.verify import check_packs, verify

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["RepairProgress", "RepairReport", "repair"]

RepairProgress = Callable[[str, int, int], None]
"""Called with what is done (``check``, ``save``, ``fetch`` or ``verify``), blocks and bytes."""

_BATCH = 64
_RECORDS = ("ref", "log", "marker", "record")


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What `repair` did.

    Attributes
    ----------
    fetched, fetched_size : int
        Blocks, and their bytes, that came from the source.
    saved : int
        Blocks that were copied out of damaged packs.
    replaced : tuple of str
        Paths of damaged packs that are gone.
    kept : tuple of str
        Paths of damaged packs that stay, as they may hold what nobody else has.
    lost : tuple of CidBytes
        Blocks that are hurt here and that the source could not give.
    refs : tuple of Damage
        Refs and other records that are damaged, which are not guessed; the reason says what the
        log has.
    log : tuple of Damage
        What was wrong with the log of refs.
    mended : int
        How many damaged lines were dropped from it. One that a newer version has written stays.
    verified : VerifyReport
        What a check of everything has found at the end.
    """

    fetched: int
    fetched_size: int
    saved: int
    replaced: tuple[str, ...]
    kept: tuple[str, ...]
    lost: tuple[CidBytes, ...]
    refs: tuple[Damage, ...]
    log: tuple[Damage, ...]
    mended: int
    verified: VerifyReport

    @property
    def ok(self) -> bool:
        """Whether everything is whole now."""
        return self.verified.ok

    def as_json(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "ok": self.ok,
            "fetched_blocks": self.fetched,
            "fetched_bytes": self.fetched_size,
            "saved_blocks": self.saved,
            "replaced_packs": self.replaced,
            "kept_packs": self.kept,
            "lost": [format_cid(cid) for cid in self.lost],
            "refs": [damage.as_json() for damage in self.refs],
            "log": [damage.as_json() for damage in self.log],
            "mended_log_lines": self.mended,
            "verified": self.verified.as_json(),
        }


def repair(
    repo: Repository,
    source: Repository | BlockStore | str | os.PathLike[str],
    *,
    progress: RepairProgress | None = None,
) -> RepairReport:
    """Put right what is damaged or missing, with blocks from another place.

    Parameters
    ----------
    repo : Repository
    source : Repository, BlockStore, str or path
        A repository, or any place of blocks, that has what is hurt here. All that comes from it is
        hashed.
    progress : callable, optional
        Called now and then with what is done, and how many blocks and bytes of it are.

    Returns
    -------
    RepairReport
        What the source lacks, and what cannot be repaired, is reported.

    Raises
    ------
    ReadOnlyError
        If the repository is open for reading only.
    RepositoryNotFoundError
        If the source is no repository.
    """
    from cas_zarr.repository.repository import Repository

    blocks = stored_blocks(repo.blocks)
    if repo.read_only or blocks.read_only:
        raise ReadOnlyError(f"{repo.location} is open for reading only and cannot be repaired")
    if isinstance(source, BlockStore):
        return _Repair(repo, blocks, source, progress).run()
    if isinstance(source, Repository):
        return _Repair(repo, blocks, source.blocks, progress).run()
    with_blocks = Repository.open_from(source, repo.sources)
    try:
        if os.path.abspath(with_blocks.location) == os.path.abspath(repo.location):
            raise InvalidArgumentError(f"{repo.location} cannot be repaired from itself")
        return _Repair(repo, blocks, with_blocks.blocks, progress).run()
    finally:
        with_blocks.close()


class _Repair:
    def __init__(
        self,
        repo: Repository,
        blocks: BlockStore,
        source: BlockStore,
        progress: RepairProgress | None,
    ) -> None:
        self.repo = repo
        self.blocks = blocks
        self.source = source
        self.progress = progress
        self.fetched = self.fetched_size = self.saved = 0
        self.lost: dict[CidBytes, None] = {}
        self.replaced: list[str] = []
        self.kept: list[str] = []

    def run(self) -> RepairReport:
        """Save, fetch, replace, and check at the end."""
        blocks, refs = self.repo.blocks, self.repo.refs
        self.blocks.flush()
        damaged: list[PackCheck] = []
        local = self.blocks if isinstance(self.blocks, LocalBlocks) else None
        if local is not None:
            checks = check_packs(local, data=True, progress=self._step("check"))
            damaged = [check for check in checks if check.faults]
            self._save(local, damaged)
        found = verify(
            blocks,
            refs,
            data=local is None,  # the packs that are read now are sound
            packs=False,
            heal=self._fetch,
            progress=self._step("fetch"),
        )
        self.blocks.flush()
        if local is not None:
            self._remove(local, damaged)
        log = tuple(one for one in found.damaged if one.kind == "log")
        mended = refs.mend_log() if log else 0
        verified = verify(blocks, refs, data=True, progress=self._step("verify"))
        return RepairReport(
            fetched=self.fetched,
            fetched_size=self.fetched_size,
            saved=self.saved,
            replaced=tuple(self.replaced),
            kept=tuple(self.kept),
            lost=tuple(self.lost),
            refs=tuple(one for one in verified.damaged if one.kind in _RECORDS),
            log=log,
            mended=mended,
            verified=verified,
        )

    def _step(self, what: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda blocks, size: progress(what, blocks, size)

    # -- packs ----------------------------------------------------------------------------------

    def _save(self, blocks: LocalBlocks, damaged: Sequence[PackCheck]) -> None:
        """Copy the sound blocks of damaged packs, which are read no more, into new ones."""
        for check in damaged:
            blocks.set_aside(os.path.basename(check.path))
        step, size = self._step("save"), 0
        for check in damaged:
            try:
                for cid, data in salvage(check.path):
                    if not blocks.has(cid):
                        blocks.put(cid, data)
                        self.saved += 1
                        size += len(data)
                        if step is not None:
                            step(self.saved, size)
            except FileNotFoundError:  # another process has merged it; the check at the end tells
                continue
        blocks.flush()

    def _remove(self, blocks: LocalBlocks, damaged: Sequence[PackCheck]) -> None:
        """Remove the damaged packs that cannot hold what is lost; all else of them is durable."""
        lost = {bytes(cid[-KEY_SIZE:]) for cid in self.lost}
        for check in damaged:
            if lost & check.suspects or (lost and not check.indexed):
                self.kept.append(check.path)
            else:
                blocks.remove_pack(os.path.basename(check.path))
                self.replaced.append(check.path)

    # -- the source -----------------------------------------------------------------------------

    def _fetch(self, cids: Sequence[CidBytes]) -> Sequence[bool]:
        """Put blocks anew from the source; tell which of them it gave."""
        given: dict[CidBytes, bool] = {}
        wanted = [cid for cid in dict.fromkeys(cids) if cid not in self.lost]
        for first in range(0, len(wanted), _BATCH):
            part = wanted[first : first + _BATCH]
            try:
                found = self.source.get_many(part)
            except CasZarrError:  # of one of them
                given.update((cid, self._fetch_one(cid)) for cid in part)
                continue
            for cid, data in zip(part, found, strict=True):
                self._put(cid, data)
                given[cid] = True
        return [given.get(cid, False) for cid in cids]

    def _fetch_one(self, cid: CidBytes) -> bool:
        try:
            data = self.source.get(cid)
        except CasZarrError:  # missing or damaged there as well
            self.lost[cid] = None
            return False
        self._put(cid, data)
        return True

    def _put(self, cid: CidBytes, data: bytes) -> None:
        if isinstance(self.blocks, LocalBlocks):
            self.blocks.renew(cid, data)
        else:
            self.blocks.delete(cid)
            self.blocks.put(cid, data)
        self.fetched += 1
        self.fetched_size += len(data)
