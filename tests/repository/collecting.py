"""A repository with garbage in it, for the tests of collections."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.errors import StorageError
from cas_zarr.repository.gc import GCReport, collect
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import read_commit
from cas_zarr.tree.walk import reachable

NONE = timedelta(0)
GROUP = b'{"zarr_format":3,"node_type":"group"}'
ARRAY = b'{"zarr_format":3,"node_type":"array"}'


def value(seed: int) -> bytes:
    return bytes([seed % 251, seed % 241, seed % 239]) * 40


def write(repo: Repository, branch: str, seeds: dict[int, int], message: str = "") -> CidBytes:
    """Set chunks to values of their seeds, flush, and commit if there is a message."""
    session = repo.session(branch)
    mapping = session.prepare()
    mapping["zarr.json"] = GROUP
    mapping["a/zarr.json"] = ARRAY
    for chunk, seed in seeds.items():
        mapping[f"a/c/{chunk}"] = value(seed)
    try:
        return session.commit(message) if message else session.flush()
    except StorageError:
        session.discard()
        raise


def make(path: Path | str) -> Repository:
    """Make a repository of some packs, used in part, not at all, and as a whole."""
    repo = Repository.open(path, create=True)
    session = repo.session()
    mapping = session.prepare()
    mapping["zarr.json"] = GROUP
    mapping["a/zarr.json"] = ARRAY
    for i in range(60):
        mapping[f"a/c/{i}"] = value(1000 + i)  # overwritten before any flush: garbage
        mapping[f"a/c/{i}"] = value(i)
    session.commit("one")
    repo.create_branch("gone", "main")
    write(repo, "gone", {i: 2000 + i for i in range(30)}, "lost")
    repo.delete_branch("gone")
    write(repo, "main", {0: 7, 70: 70}, "two")
    return repo


def content(repo: Repository, version: str = "main") -> dict[str, bytes]:
    return dict(repo.at(version).items())


def used(repo: Repository) -> set[CidBytes]:
    """Return all blocks that the branches lead to."""
    found: set[CidBytes] = set()
    for record in repo.branches().values():
        cid = record.commit
        while cid is not None:
            found.add(cid)
            commit = read_commit(repo.blocks, cid)
            found.update(cid for _, cid in reachable(repo.blocks, commit.root))
            cid = commit.parents[0] if commit.parents else None
        if record.work is not None:
            found.update(cid for _, cid in reachable(repo.blocks, record.work))
    return found


def held(repo: Repository) -> set[CidBytes]:
    """Return all blocks that are held, with the codecs of `used` as far as they are in use."""
    if isinstance(repo.blocks, LocalBlocks):
        with LocalBlocks(repo.blocks.path, read_only=True) as blocks:
            return set(blocks.list())
    found = set(repo.blocks.list())
    if repo.blocks.remote:  # an object's name tells the multihash alone
        known = {cid[-34:]: cid for cid in used(repo)}
        found = {known.get(cid[-34:], cid) for cid in found}
    return found


def collect_all(repo: Repository) -> GCReport:
    return collect(repo, grace=NONE, log_age=NONE, max_unused=0)
