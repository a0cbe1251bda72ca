"""What a writer of refs holds against a garbage collection that runs beside it."""

from __future__ import annotations

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import CidBytes
from cas_zarr.repository.refs import Refs

__all__ = ["Guard"]


class Guard:
    """Keeps a writer from relying on blocks that are being collected.

    Parameters
    ----------
    blocks : BlockStore
    refs : Refs

    Attributes
    ----------
    record : bytes or None
        The record of collections that `secure` has looked at last; what a ref is moved with.
    """

    def __init__(self, blocks: BlockStore, refs: Refs) -> None:
        self.blocks = blocks
        self.refs = refs
        self.record: bytes | None = None

    def secure(self, root: CidBytes | None, *, since: CidBytes | None = None) -> None:
        """Make sure that a ref can lead to `root`; `since` is a root that a ref leads to."""
