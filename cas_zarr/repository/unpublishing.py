"""Taking back what was published: pins that lead to versions which are no more, or to one version.

Only pins that a publication from this repository has made are touched. Nothing is deleted: what no
pin leads to any more goes when the node collects its garbage, and whoever else has it keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cas_zarr.cid import DAG_PB, CidBytes, CidLike, ReadableCids, as_cid_bytes, codec_of
from cas_zarr.errors import (
    BlockNotFoundError,
    InvalidArgumentError,
    InvalidCIDError,
    InvalidKeyError,
    NotFoundError,
    ReadOnlyError,
    RemoteError,
)
from cas_zarr.repository.published import Published, forget_published, published_at
from cas_zarr.repository.versions import Commits

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["UnpublishReport", "unpublish"]


@dataclass(frozen=True, slots=True, repr=False)
class UnpublishReport(ReadableCids):
    """What was taken back, or would be.

    Attributes
    ----------
    location : str
        The node.
    unpinned : tuple of Published
        Publications whose pins were taken away.
    gone : tuple of Published
        Those that the node has not pinned any more; they were forgotten here.
    foreign : tuple of Published
        Those whose pin bears a name that no publication gave: somebody else's, left alone.
    kept : int
        How many publications of the place stay.
    dry_run : bool
        Whether nothing was done.
    """

    location: str
    unpinned: tuple[Published, ...]
    gone: tuple[Published, ...]
    foreign: tuple[Published, ...]
    kept: int
    dry_run: bool


def unpublish(
    repo: Repository,
    to: Any,
    *,
    version: CidLike | None = None,
    expired: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> UnpublishReport:
    """Take pins away from a node that publications from this repository have made there.

    Parameters
    ----------
    repo : Repository
    to : str, IpfsNode or ipfshttpclient.Client
        Where it was published, given as it was given then: the record is kept by address.
    version : CID or str, optional
        Take back this version: its root, views of it, parts of it, its history. Or the CID of a
        publication itself, of a version that is gone from here as well.
    expired : bool
        Take back every publication that no branch, tag or kept root leads to any more.
    token : str, optional
        What the RPC asks for.
    dry_run : bool
        Only tell what would be done.

    Returns
    -------
    UnpublishReport

    Raises
    ------
    InvalidArgumentError
        If not exactly one of `version` and `expired` is given.
    NotFoundError
        If nothing of `version` was published there.
    RemoteError
        If the node does not answer; what was taken back until then is forgotten here.

    Notes
    -----
    An IPNS name that leads to what is taken back goes on leading there until it is published anew
    or its record is over. What a pinning service keeps is deleted there.
    """
    from cas_zarr.blocks.ipfsclient import as_node

    if (version is None) == (not expired):
        raise InvalidArgumentError(
            "give either a version or expired=True, to say what to take back"
        )
    if repo.read_only and not dry_run:
        raise ReadOnlyError(f"{repo.location} is open for reading only")
    node = as_node(to, token=token)
    entries = published_at(repo.refs, node.place).entries
    chosen = _chosen(repo, entries, version)
    if version is not None and not chosen:
        raise NotFoundError(
            f"nothing of {version!r} is known to have been published to {node.location}; give the "
            "address as it was given then, or take the pin away at the node"
        )
    cids = {one.cid for one in chosen}
    pinned = {pin.cid: pin.name for pin in node.pins() if pin.cid in cids} if chosen else {}
    own = {"", *(one.name for one in entries)}
    gone = tuple(one for one in chosen if one.cid not in pinned)
    if any(node.is_pinned(cid) for cid in cids.difference(pinned)):
        raise RemoteError(f"{node.location} does not list all of its pins; try again")
    foreign = tuple(one for one in chosen if pinned.get(one.cid, "") not in own)
    unpinned = tuple(one for one in chosen if one not in gone and one not in foreign)
    if not dry_run:
        for one in unpinned:
            node.pin_rm(one.cid)
            forget_published(repo.refs, node.place, [one.cid])
        forget_published(repo.refs, node.place, [one.cid for one in (*gone, *foreign)])
    kept = len(entries) - len(chosen)
    return UnpublishReport(node.location, unpinned, gone, foreign, kept, dry_run)


def _chosen(
    repo: Repository, entries: Sequence[Published], version: CidLike | None
) -> list[Published]:
    """Return what to take back: what is of a version, or without one what is of none.

    Parts that are alike share a pin: it goes with a version, and stays while one of them is alive.
    """
    if not entries:
        return []
    if version is None:
        alive = _Alive(repo, _live(repo))
        kept = {one.cid for one in entries if alive.holds(one)}
        return [one for one in entries if one.cid not in kept]
    cids = _cids_of(repo, entries, version)
    return [one for one in entries if one.cid in cids]


def _cids_of(repo: Repository, entries: Sequence[Published], version: CidLike) -> set[CidBytes]:
    """Return the CIDs of what was published of a version."""
    try:
        cid = as_cid_bytes(version)
    except InvalidCIDError:
        pass
    else:
        if codec_of(cid) == DAG_PB or not repo.blocks.has(cid):
            return {cid}  # a view, or a version that is gone: nothing more is known of it
    found = repo.resolve(version)
    commits = set() if found.commit is None else {found.commit}
    alive = _Alive(repo, (commits, [found.root]))
    return {one.cid for one in entries if alive.holds(one)}


class _Alive:
    """Which publications versions of a repository still have."""

    def __init__(self, repo: Repository, live: tuple[set[CidBytes], list[CidBytes]]) -> None:
        self.blocks = repo.blocks
        self.commits, self.roots = live
        self._made: dict[tuple[str, str], set[CidBytes]] = {}
        self._ahead: dict[tuple[str, str], Iterator[CidBytes]] = {}

    def holds(self, one: Published) -> bool:
        """Tell whether a version still leads to what was published."""
        if one.kind == "commit":
            return one.cid in self.commits
        key = (one.kind, one.path)
        made = self._made.setdefault(key, set())
        if one.cid in made:
            return True
        for cid in self._ahead.setdefault(key, self._all(*key)):  # no more than it takes
            made.add(cid)
            if cid == one.cid:
                return True
        return False

    def _all(self, kind: str, path: str) -> Iterator[CidBytes]:
        """Yield what publications of a kind and a path have, or would have, of all roots."""
        from cas_zarr.repository.subtrees import subtree_blocks
        from cas_zarr.repository.unixfsview import UnixfsView

        for root in self.roots:
            try:
                blocks, cid = subtree_blocks(self.blocks, root, path)
                yield UnixfsView(blocks, cid).cid if kind == "unixfs" else cid
            except BlockNotFoundError:  # it may be alive: nobody can tell
                raise
            except (NotFoundError, InvalidKeyError):  # there is no such part, or no view of it
                continue


def _live(repo: Repository) -> tuple[set[CidBytes], list[CidBytes]]:
    """Return the commits and the roots that refs lead to; the log of refs is not looked at."""
    refs, commits = repo.refs, Commits(repo.blocks, repo.refs)
    ahead: list[CidBytes] = []
    roots: dict[CidBytes, None] = {}
    records = [refs.branch(name) for name in refs.branches()]
    records += [refs.kept(name) for name in refs.all_kept()]
    for record in records:
        if record is not None and record.work is not None:
            roots[record.work] = None
        if record is not None and record.commit is not None:
            ahead.append(record.commit)
    tags = [refs.tag(name) for name in refs.tags()]
    tags += [refs.tracked(name) for name in refs.all_tracked()]
    ahead += [tag.commit for tag in tags if tag is not None]
    seen: set[CidBytes] = set()
    while ahead:
        cid = ahead.pop()
        if cid not in seen:
            seen.add(cid)
            roots[commits.read(cid).root] = None
            ahead.extend(commits.parents(cid))
    return seen, list(roots)
