"""Uploading a version to a service that imports CARs with a token, and offers nothing else.

Such services speak the one call ``/api/v0/dag/import`` of Kubo: what they have cannot be asked, so
everything is sent, or all that a version lacks which the caller knows to be there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import CidBytes, CidLike, ReadableCids
from cas_zarr.errors import BlockNotFoundError, InvalidArgumentError, NotFoundError
from cas_zarr.repository.sending import Progress, send
from cas_zarr.repository.subtrees import subtree_blocks

if TYPE_CHECKING:
    from cas_zarr.blocks.http import HttpClient
    from cas_zarr.repository.repository import Repository

__all__ = ["UploadReport", "upload_car"]


@dataclass(frozen=True, slots=True, repr=False)
class UploadReport(ReadableCids):
    """What was uploaded.

    Attributes
    ----------
    cid : CidBytes
        The root, which the service was told to pin.
    blocks, size : int
        What was sent; `size` in bytes.
    location : str
        The service.
    """

    cid: CidBytes
    blocks: int
    size: int
    location: str


def upload_car(
    repo: Repository,
    version: CidLike = "main",
    *,
    to: str,
    token: str | None = None,
    path: str = "",
    since: CidLike | None = None,
    client: HttpClient | None = None,
    progress: Progress | None = None,
) -> UploadReport:
    """Send a version as CARs, the root last; with that one the service pins it.

    Parameters
    ----------
    repo : Repository
    version : CID or str
        A version expression; its root is sent, and all that it leads to.
    to : str
        Address of the service; ``/api/v0`` at its end may be left out.
    token : str, optional
        Sent in the header ``Authorization``.
    path : str
        Only this group or array.
    since : CID or str, optional
        A version that the service is known to have whole: what it has is not sent.
    client : HttpClient, optional
        What asks the service.
    progress : callable, optional
        Called with the blocks and the bytes that are on their way.

    Raises
    ------
    RemoteError
        If the service cannot be reached, or refuses; `status` is 401 or 403 where the token is not
        taken. What has arrived stays.
    """
    from cas_zarr.blocks.kubo import KuboNode
    from cas_zarr.tree.upward import upward

    if not isinstance(to, str):
        raise InvalidArgumentError("a car is uploaded to an address; to a node, publish")
    node = KuboNode(to, token=token, client=client)
    path = path.strip("/")
    blocks, root = subtree_blocks(repo.blocks, repo.resolve(version).root, path)
    old_blocks, old = _earlier(repo, since, path)

    def pinning(pieces: Iterable[bytes]) -> None:
        node.import_car(pieces, pin_roots=True)

    below = (cid for cid in upward(blocks, root, since=old, since_blocks=old_blocks) if cid != root)
    sent = send(node, blocks, below, progress=progress, upload=node.import_car)
    # The root comes in a car of its own: before it the service lacks what it would have to pin.
    last = send(node, blocks, [root], upload=pinning, roots=(root,))
    if progress is not None:
        progress(sent.blocks + last.blocks, sent.size + last.size)
    return UploadReport(root, sent.blocks + last.blocks, sent.size + last.size, node.location)


def _earlier(
    repo: Repository, since: CidLike | None, path: str
) -> tuple[BlockStore | None, CidBytes | None]:
    """Return the root of what the service has, and where it is read; none where it has no part."""
    if since is None:
        return None, None
    found = repo.resolve(since).root
    try:
        return subtree_blocks(repo.blocks, found, path)
    except BlockNotFoundError:
        raise
    except NotFoundError:
        return None, None
