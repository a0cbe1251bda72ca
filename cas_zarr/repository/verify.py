"""Verification: whether all that a version or a repository leads to is there and whole.

The structure is always read and hashed: commits, roots, shards, pages, inner nodes of large values;
of the values it is checked that they are there. `data` reads and hashes those too, `sample` a share
of them. In a local repository the files are checked as well: packs, refs, the log of refs and the
marker. With `data` no flipped bit in any of them goes unseen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.packcheck import PackCheck, PackFault, check_pack, pack_paths
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import CidBytes, CidLike, format_cid
from cas_zarr.codecs import dagjson
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    FormatError,
    InvalidArgumentError,
)
from cas_zarr.repository.bucket import BucketRefs
from cas_zarr.repository.checking import Checker, Heal, Progress
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.damage import Box, Damage, HurtArray, VerifyReport
from cas_zarr.repository.folder import MARKER, FolderRefs, read_marker
from cas_zarr.repository.guard import CollectionRecord
from cas_zarr.repository.records import Branch, Tag
from cas_zarr.repository.refs import Refs
from cas_zarr.repository.remotes import get_remote, stored_blocks
from cas_zarr.repository.versions import resolve

__all__ = ["Box", "Damage", "HurtArray", "Progress", "VerifyReport", "check_packs", "verify"]


def verify(
    blocks: BlockStore,
    refs: Refs,
    version: CidLike | None = None,
    *,
    path: str = "",
    data: bool = False,
    sample: float | None = None,
    seed: int = 0,
    signatures: bool = False,
    allowed: Collection[bytes] | None = None,
    packs: bool | None = None,
    heal: Heal | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a version, or all refs with their histories and the files of the repository.

    Parameters
    ----------
    blocks, refs
        Those of a repository.
    version : str, bytes or CID, optional
        One version without its history; all branches, tags and kept roots with theirs by default.
    path : str
        Only this node of the version, and what is below it.
    data : bool
        Whether every block is read and hashed, not only the structure.
    sample : float, optional
        The share of the values, above 0 and at most 1, that is read and hashed instead of all.
    seed : int
        Which share: the same values for the same seed.
    signatures : bool
        Whether the signatures of the commits are checked; one that is not valid is damage.
    allowed : collection of bytes, optional
        The public keys, of 32 bytes, whose signatures count; then any other commit is damage.
    packs : bool, optional
        Whether the packs of a local repository are checked; by default if no version is given.
    heal : callable, optional
        Is given damaged and missing blocks before they are reported, and may put them anew; see
        `cas_zarr.repository.repair`.
    progress : callable, optional
        Called now and then with the blocks and the bytes that have been checked.

    Returns
    -------
    VerifyReport
        What is damaged is reported, not raised.

    Raises
    ------
    VersionNotFoundError
        If there is no such version.
    NotFoundError
        If the version has no such node.
    """
    if sample is not None and not 0 < sample <= 1:
        raise InvalidArgumentError(f"{sample!r} is no share to check; give one above 0, up to 1")
    path = path.strip("/")
    if path and version is None:
        raise InvalidArgumentError(f"give the version whose node {path!r} is to be checked")
    local = stored_blocks(blocks)
    run = _Run(local, refs, signatures or allowed is not None, allowed)
    suspects = None
    if isinstance(local, LocalBlocks) and (version is None if packs is None else packs):
        suspects = run.packs(local, data, progress)
    run.begin(
        Checker(
            local,
            data=data,
            sample=sample,
            seed=seed,
            suspects=suspects,
            promised=isinstance(blocks, TieredBlocks),
            heal=heal,
            progress=run.onward(progress),
        )
    )
    if version is None:
        run.everything()
    else:
        run.version(version, path)
    return run.report(sample, seed)


def check_packs(
    blocks: LocalBlocks, *, data: bool = True, progress: Progress | None = None
) -> Iterator[PackCheck]:
    """Check the packs of a local repository, one after another.

    Parameters
    ----------
    blocks : LocalBlocks
    data : bool
        Whether every block is read and hashed.
    progress : callable, optional
        Called with the blocks and the bytes that have been checked.
    """
    done: set[str] = set()
    counts = [0, 0]

    def count(blocks: int, size: int) -> None:
        counts[0] += blocks
        counts[1] += size
        if progress is not None:
            progress(*counts)

    while fresh := [path for path in pack_paths(blocks.path) if path not in done]:
        for path in fresh:
            done.add(path)
            try:
                yield check_pack(path, data=data, progress=count)
            except FileNotFoundError:  # merged into another one, which is met the next time
                continue


class _Run:
    def __init__(
        self,
        blocks: BlockStore,
        refs: Refs,
        signatures: bool,
        allowed: Collection[bytes] | None,
    ) -> None:
        self.blocks = blocks
        self.refs = refs
        self.signatures = signatures
        self.allowed = None if allowed is None else frozenset(bytes(key) for key in allowed)
        self.commits: set[CidBytes] = set()
        self.cut: frozenset[CidBytes] = frozenset()
        self.faults: list[PackFault] = []
        self.pack_count = self.pack_blocks = self.pack_size = 0
        self.signed = self.unsigned = 0
        self.hashed = False

    def begin(self, check: Checker) -> None:
        """Take the checker of the trees."""
        self.check = check

    def onward(self, progress: Progress | None) -> Progress | None:
        """Return a progress that counts on from the packs."""
        if progress is None or not self.pack_blocks:
            return progress
        return lambda blocks, size: progress(self.pack_blocks + blocks, self.pack_size + size)

    # -- files ----------------------------------------------------------------------------------

    def packs(self, blocks: LocalBlocks, data: bool, progress: Progress | None) -> frozenset[bytes]:
        """Check all packs; return the multihashes of the blocks that cannot be relied on."""
        suspects: set[bytes] = set()
        self.hashed = data

        def count(blocks: int, size: int) -> None:
            self.pack_blocks, self.pack_size = blocks, size
            if progress is not None:
                progress(blocks, size)

        for found in check_packs(blocks, data=data, progress=count):
            self.pack_count += 1
            self.faults.extend(found.faults)
            suspects |= found.suspects
        return frozenset(suspects)

    def files(self) -> None:
        """Check the marker, and the records beside the refs."""
        if isinstance(self.refs, FolderRefs):
            marker = Path(self.refs.location) / MARKER
            try:
                read_marker(marker.parent)
                held = marker.read_bytes()
                if dagjson.encode(dagjson.decode(held)) != held:
                    raise FormatError(f"{marker} is not in its canonical form")
            except CasZarrError as error:
                self._record("marker", MARKER, error)
            except OSError as error:
                self._record("marker", MARKER, f"it cannot be read: {error}")
        elif isinstance(self.refs, BucketRefs):
            try:
                self.refs.check_marker()
            except CasZarrError as error:
                self._record("marker", MARKER, error)
        for reason in self.refs.log_damage():
            self._record("log", "log of refs", reason)
        try:
            self.cut = self.refs.shallow()
        except CasZarrError as error:
            self._record("record", "shallow", error)
        try:
            for pending in CollectionRecord.from_bytes(self.refs.gc_record()).lists:
                if isinstance(self.blocks, LocalBlocks):
                    self.blocks.read_list(pending.name)
        except CasZarrError as error:
            self._record("record", "collections", error)
        for name in self.refs.remotes():
            try:
                get_remote(self.refs, name)
            except CasZarrError as error:
                self._record("record", f"remote {name}", error)

    def _record(self, kind: str, name: str, error: CasZarrError | str) -> None:
        self.check.report(kind, name, None, error, version="")

    # -- versions -------------------------------------------------------------------------------

    def version(self, version: CidLike, path: str) -> None:
        """Check one version, or a node of it."""
        name = version if isinstance(version, str) else "version"
        try:
            found = resolve(self.blocks, self.refs, version)
        except (BlockNotFoundError, CorruptBlockError) as error:  # the commit itself
            self.check.report("commit", name, None, error, hides=True, version=name)
            return
        if found.commit is not None:
            self._commit(found.commit, found.name)
        self.check.root(found.root, found.name, path)

    def everything(self) -> None:
        """Check all refs with their histories, and the records beside them."""
        self.files()
        for shown, name, commit, work in self._starts():
            if commit is not None:
                self._history(commit, shown, name)
            if work is not None:
                self.check.root(work, format_cid(work))

    def _starts(self) -> Iterator[tuple[str, str, CidBytes | None, CidBytes | None]]:
        """Yield kind with name, name, commit and working root of every ref.

        In place of a ref that cannot be read: what the log says that it was last.
        """
        refs = self.refs
        for kind, folder, names, read in (
            ("branch ", "heads/", refs.branches, refs.branch),
            ("", "", refs.all_kept, refs.kept),
            ("tag ", "tags/", refs.tags, refs.tag),
            ("tracked branch ", "tracking/", refs.all_tracked, refs.tracked),
        ):
            for name in names():
                record: Branch | Tag | None
                try:
                    record = read(name)
                except CasZarrError as error:
                    log = refs.log(name, damaged="skip")
                    moves = [move for move in log if move.ref == folder + name]
                    record = moves[-1].new if moves else None
                    self._record("ref", kind + name, f"{error}; {_last_known(record)}")
                if record is not None:
                    work = record.work if isinstance(record, Branch) else None
                    yield kind + name, name, record.commit, work

    def _history(self, cid: CidBytes, shown: str, name: str) -> None:
        """Check a commit, those before it, and the roots of all."""
        ahead = [(cid, name)]
        while ahead:
            cid, name = ahead.pop()
            if cid in self.commits:
                continue
            commit = self._commit(cid, shown)
            if commit is None:
                continue
            if cid not in self.cut:
                ahead.extend((parent, format_cid(parent)) for parent in reversed(commit.parents))
            self.check.root(commit.root, name)

    def _commit(self, cid: CidBytes, shown: str) -> Commit | None:
        self.commits.add(cid)
        name = f"commit of {shown}"
        commit = self.check.block("commit", name, cid, partial(Commit.from_block, cid))
        if commit is not None and self.signatures:
            self._signature(commit, cid, name)
        return commit

    def _signature(self, commit: Commit, cid: CidBytes, name: str) -> None:
        if commit.signature is None:
            self.unsigned += 1
            if self.allowed is not None:
                self.check.report("signature", name, cid, "the commit is not signed")
            return
        from cas_zarr.repository import signing

        state = signing.check(commit)
        if not state.valid or state.signer is None:
            self.check.report("signature", name, cid, state.reason)
        elif self.allowed is not None and state.signer not in self.allowed:
            signer = signing.signer_text(state.signer)
            reason = f"the commit is signed by {signer}, which is none of the allowed keys"
            self.check.report("signature", name, cid, reason)
        else:
            self.signed += 1

    def report(self, sample: float | None, seed: int) -> VerifyReport:
        """Return what was found."""
        check = self.check
        return VerifyReport(
            roots=check.roots,
            commits=len(self.commits),
            blocks=check.count,
            size=check.size,
            damaged=tuple(check.damaged.values()),
            complete=check.complete,
            damages=check.damages,
            read=check.read + (self.pack_blocks if self.hashed else 0),
            read_size=check.read_size + (self.pack_size if self.hashed else 0),
            promised=check.promised,
            arrays=check.hurt(),
            packs=self.pack_count,
            pack_faults=tuple(self.faults),
            signed=self.signed,
            unsigned=self.unsigned,
            sample=sample,
            seed=seed,
        )


def _last_known(record: Branch | Tag | None) -> str:
    if record is None:
        return "the log of refs does not have it"
    cid = record.commit or (record.work if isinstance(record, Branch) else None)
    return "it had nothing yet" if cid is None else f"the log of refs has it at {format_cid(cid)}"
