"""Attaching: what any version of any dataset has at a path, put into a session's dataset."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, TypeAlias

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.readonly import Overlaid
from cas_zarr.cid import DAG_JSON, CidBytes, CidLike, as_cid_bytes, codec_of, format_cid
from cas_zarr.errors import InvalidArgumentError, NotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.faraway import Sources
from cas_zarr.repository.guard import Guard
from cas_zarr.repository.names import looks_like_cid
from cas_zarr.repository.versions import split_place
from cas_zarr.tree.node import Root
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.view import TreeView

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["Source", "attach", "subtree_blocks", "subtree_of"]


Source: TypeAlias = "Repository | BlockStore | str | os.PathLike[str]"


def attach(
    mapping: CASMapping,
    repository: Repository | None,
    path: str,
    version: CidLike,
    source: Source | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Put a dataset or a part of one at a path; see `Session.attach`.

    Parameters
    ----------
    mapping : CASMapping
        What is written to.
    repository : Repository or None
        Where versions are looked up without a `source`; None knows only CIDs.
    path, version, source, overwrite
        As `Session.attach` has them.
    """
    place: Repository | BlockStore
    if isinstance(source, (str, os.PathLike)):
        from cas_zarr.repository.repository import Repository

        sources = Sources() if repository is None else repository.sources
        with Repository.open_from(source, sources) as other:
            return attach(mapping, repository, path, version, other, overwrite=overwrite)
    place = source if source is not None else repository or mapping.blocks
    blocks = place if isinstance(place, BlockStore) else place.blocks
    root = subtree_of(place, version)
    mapping.check_target(path, overwrite=overwrite)  # before anything is copied
    if blocks is mapping.blocks:
        if repository is not None and (not isinstance(version, str) or _is_cid(version)):
            # What has no name may have been collected in part.
            blocks.put(root.cid(), root.to_block())
            Guard(blocks, repository.refs).secure(root.cid(), check=True)
    else:
        from cas_zarr.repository.sync import copy_tree

        document = Overlaid(blocks, root.cid(), root.to_block())
        copy_tree(document, mapping.blocks, root.cid())
    return mapping.attach(path, root, overwrite=overwrite)


def subtree_of(place: Repository | BlockStore, version: CidLike) -> Root:
    """Return the document of a version, or of a part of it, in a repository or a block store.

    Parameters
    ----------
    place : Repository or BlockStore
        A block store knows no names: there `version` begins with a CID.
    version : str, bytes or CID
        A version, with a path behind a colon for a part of it.

    Raises
    ------
    VersionNotFoundError, NotFoundError
        If there is no such version, or nothing at its path.
    """
    inner = ""
    if isinstance(version, str):
        version, found = split_place(version)
        inner = (found or "").strip("/")
    if isinstance(place, BlockStore):
        blocks, cid = place, as_cid_bytes(version)
        if codec_of(cid) != DAG_JSON:
            raise InvalidArgumentError(
                f"{format_cid(cid)} is no root or subtree; a commit is looked up in a repository"
            )
    else:
        blocks, cid = place.blocks, place.resolve(version).root
    return _document(blocks, cid, inner)


def _document(blocks: BlockStore, cid: CidBytes, inner: str) -> Root:
    root = Root.from_block(blocks.get(cid))
    if not inner:
        return root
    node = TreeView(TreeReader(blocks), root).node(inner)
    if node is None:
        raise NotFoundError(
            f"there is no node {inner!r} in {format_cid(cid)}; list the folder above it"
        )
    return root.subtree(node)


def subtree_blocks(blocks: BlockStore, root: CidBytes, path: str) -> tuple[BlockStore, CidBytes]:
    """Return the blocks with the document of a part of a dataset among them, and its CID.

    Parameters
    ----------
    blocks : BlockStore
    root : CidBytes
    path : str
        "" is the whole dataset.

    Raises
    ------
    NotFoundError
        If there is nothing at the path.
    """
    if not path:
        return blocks, root
    document = _document(blocks, root, path)
    cid = document.cid()
    return Overlaid(blocks, cid, document.to_block()), cid


def _is_cid(version: str) -> bool:
    return looks_like_cid(re.split("[~^@:]", version)[0])
