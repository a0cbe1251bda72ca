"""Publishing a version to an IPFS node: only what the node lacks, in few requests, and pinned.

What the node has is found without a list of its blocks: a version that was published there before
and is still pinned is had with all below it, and of what differs from that only blocks of the tree
are asked for. Children go before parents, so a publication that was interrupted is taken up by the
next one. The pin at the end lets the node itself go through all that it has to have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.ipfsnode import IpfsNode, Pin
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import DAG_JSON, CidBytes, CidLike, ReadableCids, codec_of, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    InvalidArgumentError,
    InvalidCIDError,
    NotFoundError,
    RemoteError,
)
from cas_zarr.repository.published import Published, note_published, published_at
from cas_zarr.repository.sending import Outgoing, Progress, Sent, send
from cas_zarr.repository.subtrees import subtree_blocks
from cas_zarr.repository.transfer import parents_first
from cas_zarr.repository.versions import CUT, Commits, read_commit
from cas_zarr.tree.upward import Has, upward

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["NODE", "PublishReport", "View", "publish"]

NODE = "http://127.0.0.1:5001"
"""Address of the RPC of a node that runs here with its defaults."""

View: TypeAlias = Literal["root", "unixfs"]

_CANDIDATES: Final = 3  # earlier publications whose pin is looked for
_ANCESTORS: Final = 1000  # commits that are gone back to find one that the node has pinned
_ASKED: Final = 64  # blocks that are asked for at once
_REMEMBERED: Final = 1 << 16  # blocks of a history: some MB, and few come twice


@dataclass(frozen=True, slots=True, repr=False)
class PublishReport(ReadableCids):
    """What was published.

    Attributes
    ----------
    cid : CidBytes
        What to pass on: the root, with `history` the commit, of a view the directory.
    root : CidBytes
        The root document.
    view : str
        "root" or "unixfs".
    blocks, size : int
        What was sent; `size` in bytes.
    requests : int
        How many requests it took.
    pinned : bool
        Whether the node was asked and has `cid` pinned with all below it.
    ipns : str or None
        The IPNS name that leads to it, ``k51…``.
    location : str
        The node.
    """

    cid: CidBytes
    root: CidBytes
    view: str
    blocks: int
    size: int
    requests: int
    pinned: bool
    ipns: str | None
    location: str

    @property
    def url(self) -> str:
        """Address for programs that know IPFS."""
        return f"ipfs://{format_cid(self.cid)}"

    @property
    def gateway(self) -> str:
        """Where the gateway of the node has it, if that listens at its default port."""
        parts = urlsplit(self.location)
        host = parts.hostname or "127.0.0.1"
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:8080/ipfs/{format_cid(self.cid)}"


def publish(
    repo: Repository,
    version: CidLike = "main",
    *,
    to: Any = NODE,
    name: str | None = None,
    view: View = "root",
    path: str = "",
    history: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
) -> PublishReport:
    """Give a version to an IPFS node, and pin it there.

    Parameters
    ----------
    repo : Repository
    version : CID or str
        A version expression.
    to : str, IpfsNode or ipfshttpclient.Client
        Address of the node's RPC, or what speaks to it.
    name : str, optional
        Name of the pin, and of the key whose IPNS name is made to lead to it.
    view : str
        "root" publishes the root document; "unixfs" beside it a directory of files over the same
        chunks, for readers that know no more than files.
    path : str
        Publish only this group or array.
    history : bool
        Publish the commit with all that came before it.
    token : str, optional
        What the RPC asks for.
    progress : callable, optional
        Called with the blocks and the bytes that are on their way.

    Returns
    -------
    PublishReport

    Raises
    ------
    RemoteError
        If the node cannot be reached, refuses a block or a pin, or the connection breaks again and
        again. What has arrived stays; the next publication sends the rest.
    VersionNotFoundError, NotFoundError
        If there is no such version, or nothing at `path`.
    BlockNotFoundError
        If blocks of the version are not in the repository.
    """
    from cas_zarr.blocks.ipfsclient import as_node
    from cas_zarr.repository.ipns import move_name, own_name

    if view not in ("root", "unixfs"):
        raise InvalidArgumentError(f"view {view!r} is not known; use root or unixfs")
    if history and (path or view != "root"):
        raise InvalidArgumentError("a history is of whole datasets: leave out path, and the view")
    found = repo.resolve(version)
    path = path.strip("/")
    blocks, root = subtree_blocks(repo.blocks, found.root, path)
    if history and found.commit is None:
        raise InvalidArgumentError(f"{version!r} is a root without a commit; it has no history")
    node = as_node(to, token=token)
    before = node.requests
    own = own_name(node, name) if name else None  # what is no name is told before all is sent
    work = _Work(repo, node, blocks, name or "", path, progress)
    if history and found.commit is not None:
        cid = found.commit
        work.publish(cid, "commit")
    else:
        cid = root
        work.publish(cid, "root")
    if view == "unixfs":
        cid = work.publish_view(root)
    ipns = move_name(node, name, own, cid) if name and own else None
    return PublishReport(
        cid=cid,
        root=root,
        view=view,
        blocks=work.sent.blocks,
        size=work.sent.size,
        requests=node.requests - before,
        pinned=True,
        ipns=ipns,
        location=node.location,
    )


class _Work:
    """One publication: what it has to do for each of the CIDs that it pins."""

    def __init__(
        self,
        repo: Repository,
        node: IpfsNode,
        blocks: BlockStore,
        name: str,
        path: str,
        progress: Progress | None,
    ) -> None:
        self.repo = repo
        self.node = node
        self.blocks = blocks
        self.name = name
        self.path = path
        self.progress = progress
        self.sent = Sent(0, 0)

    def publish(self, cid: CidBytes, kind: str) -> None:
        """Send and pin a root or a commit."""
        if self._is_done(cid, kind):
            return
        since = self._since(cid, kind)
        if kind == "commit":
            old = since or self._since(cid, "root")
            self._send(self._history(cid, old, self._has))
        else:
            old = since or self._since(cid, "commit") or self._pinned_root()
            self._send(self._tree(cid, old, self._has))
        if not self._pin(cid, since):
            # It lost blocks whose parents it kept: what it has of a page tells nothing of the rest.
            whole = self._history if kind == "commit" else self._tree
            self._send(self._lacking(whole(cid, None, None)))
            self._pin_all(cid)
        self._note(cid, kind)

    def publish_view(self, root: CidBytes) -> CidBytes:
        """Send and pin the directory over a root that was published; return its CID."""
        from cas_zarr.repository.unixfsview import UnixfsView

        view = UnixfsView(self.blocks, root)
        cid = view.cid
        if self._is_done(cid, "unixfs"):
            return cid
        since = self._since(cid, "unixfs")
        # What lies in the repository is part of the root, which the node has whole.
        self._send(block for block in view.blocks(self._has) if block[1] is not None)
        if not self._pin(cid, since):
            self._send(block for block in view.blocks() if block[1] is not None)
            self._pin_all(cid)
        self._note(cid, "unixfs")
        return cid

    # -- what was published -------------------------------------------------------------------

    def _known(self) -> tuple[Published, ...]:
        return published_at(self.repo.refs, self.node.place).entries

    def _note(self, cid: CidBytes, kind: str, name: str | None = None) -> None:
        """Note a pin at once: what comes next may fail, and then nobody would take it back."""
        one = Published(cid, kind, self.path, self.name if name is None else name)
        note_published(self.repo.refs, self.node.place, [one])

    def _is_done(self, cid: CidBytes, kind: str) -> bool:
        """Tell whether it is pinned already; if by a publication, under this name from now on.

        A pin that no publication is known to have made is somebody else's, and is not noted.
        """
        if not self.node.is_pinned(cid):
            return False
        names = [one.name for one in self._known() if one.cid == cid]
        if names:
            if self.name not in ("", names[-1]):
                self._pin_all(cid)
            self._note(cid, kind, self.name or names[-1])
        return True

    def _since(self, cid: CidBytes, kind: str) -> Published | None:
        """Return what was published before, of the same part if can be, and is still pinned."""
        alike = [one for one in reversed(self._known()) if one.kind == kind and one.cid != cid]
        alike = [one for one in alike if one.path in ("", self.path)]
        alike.sort(key=lambda one: one.path != self.path)
        return next((one for one in alike[:_CANDIDATES] if self.node.is_pinned(one.cid)), None)

    def _pinned_root(self) -> Published | None:
        """Return a root that is pinned there and is here, too; the newest of main's if possible."""
        if self.path or self._known():
            return None
        pins = (one for one in self.node.pins() if codec_of(one.cid) == DAG_JSON)
        pinned = {one.cid: Published(one.cid, name=one.name) for one in pins if self._is_here(one)}
        if len(pinned) > 1:
            for root in self._roots():
                if root in pinned:
                    return pinned[root]
        return next(iter(pinned.values()), None)

    def _is_here(self, pin: Pin) -> bool:
        try:
            return self.repo.blocks.has(pin.cid)
        except InvalidCIDError:  # of a hash that no repository has
            return False

    def _roots(self) -> Iterator[CidBytes]:
        """Yield the newest roots that branches lead to."""
        commits = Commits(self.repo.blocks, self.repo.refs)
        tips = (record.commit for record in self.repo.branches().values())
        walk = commits.walk(*(tip for tip in tips if tip is not None))
        for commit in islice(walk, _ANCESTORS):
            yield commits.read(commit).root

    # -- what has to be sent ------------------------------------------------------------------

    def _has(self, cid: CidBytes) -> bool:
        return self.node.block_size(cid) is not None

    def _tree(self, root: CidBytes, old: Published | None, has: Has | None) -> Iterator[CidBytes]:
        """Yield the blocks of a root but for those of what was published before."""
        blocks, since = (None, None) if old is None else self._earlier(old)
        return upward(self.blocks, root, since=since, since_blocks=blocks, has=has)

    def _earlier(self, old: Published) -> tuple[BlockStore | None, CidBytes | None]:
        """Return the root of an earlier publication, and where it is read; no root if nowhere."""
        for root in self._roots_of(old):
            with suppress(NotFoundError):  # it went from here, or had no such part
                blocks, cid = subtree_blocks(self.repo.blocks, root, self.path)
                if blocks.has(cid) and (not old.path or cid == old.cid):
                    return blocks, cid
        return None, None

    def _roots_of(self, old: Published) -> Iterator[CidBytes]:
        """Yield the root of what was published; of a part those that it may be of."""
        if old.path:
            yield from self._roots()
        elif old.kind != "commit":
            yield old.cid
        elif self.repo.blocks.has(old.cid):
            yield read_commit(self.repo.blocks, old.cid).root

    def _lacking(self, outgoing: Iterable[CidBytes]) -> Iterator[CidBytes]:
        """Leave out the blocks that the node has, each asked for."""
        ahead = iter(outgoing)
        while part := list(islice(ahead, _ASKED)):
            there = map_waiting(self._has, part)
            yield from (cid for cid, has in zip(part, there, strict=True) if not has)

    def _history(self, tip: CidBytes, old: Published | None, has: Has | None) -> Iterator[CidBytes]:
        """Yield the blocks of a commit and of all that came before it, the oldest first."""
        commits = Commits(self.blocks, self.repo.refs)
        order = _parents_first(commits, tip)
        there: set[CidBytes] = set()
        if old is not None and old.cid in order:
            there = set(_parents_first(commits, old.cid))
        if has is not None:
            low, high = 0, len(order)  # they went in this order: what is there stands in front
            while low < high:
                middle = (low + high) // 2
                if order[middle] in there or has(order[middle]):
                    low = middle + 1
                else:
                    high = middle
            if low:
                there.update(_parents_first(commits, order[low - 1]))
        recent: dict[CidBytes, None] = {}
        for cid in order:
            if cid in there:
                continue
            commit = commits.read(cid)
            if cid in commits.cut and commit.parents:
                raise InvalidArgumentError(
                    f"the history of {format_cid(tip)} is not whole at {format_cid(cid)}: {CUT}; "
                    "or publish it without its history"
                )
            parent = next(iter(commit.parents), None)
            before = old if parent is None else Published(parent, "commit")
            for block in self._tree(commit.root, before, has):
                if block not in recent:  # versions before this one may have had it
                    recent[block] = None
                    yield block
                if len(recent) > _REMEMBERED:
                    del recent[next(iter(recent))]
            yield cid

    # -- sending and pinning ------------------------------------------------------------------

    def _send(self, outgoing: Iterable[Outgoing]) -> None:
        before = self.sent
        progress = self.progress
        if progress is not None and before.blocks:
            told = progress

            def progress(blocks: int, size: int) -> None:
                told(before.blocks + blocks, before.size + size)

        sent = send(self.node, self.blocks, outgoing, progress=progress)
        self.sent = Sent(before.blocks + sent.blocks, before.size + sent.size)

    def _pin(self, cid: CidBytes, since: Published | None) -> bool:
        """Pin what was sent; False if the node lacks a block of it."""
        try:
            if since is None or since.name != self.name:  # an update takes the name over
                self.node.pin_add(cid, name=self.name)
            else:
                self.node.pin_update(since.cid, cid)
        except BlockNotFoundError:
            return False
        except RemoteError:
            if since is None or self.node.is_pinned(since.cid):
                raise
            return self._pin(cid, None)  # the earlier pin was taken away meanwhile
        return self._verified(cid)

    def _pin_all(self, cid: CidBytes) -> None:
        self.node.pin_add(cid, name=self.name)
        self._verified(cid)

    def _verified(self, cid: CidBytes) -> bool:
        if not self.node.is_pinned(cid):
            raise RemoteError(
                f"{self.node.location} has not pinned {format_cid(cid)}, though it said so; look "
                "at its pins, and publish again"
            )
        return True


def _parents_first(commits: Commits, tip: CidBytes) -> list[CidBytes]:
    """Return a commit and all that came before it, parents before children."""
    return list(parents_first({cid: commits.parents(cid) for cid in commits.walk(tip)}))
