"""Version expressions: ``main``, ``v1.0``, ``main~2``, the CID of a commit or of a root.

::

    expression = name *( "~" [n] / "^" [n] )

A name is tried as a CID, then as a tag, then as a branch (its newest commit), then as a root that
was kept after a conflict. ``~n`` follows the first parent n times (once if n is left out), ``^n``
takes the n-th parent.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    CidBytes,
    CidLike,
    as_cid_bytes,
    codec_of,
    format_cid,
    hash_of,
)
from cas_zarr.errors import (
    BlockNotFoundError,
    InvalidArgumentError,
    InvalidKeyError,
    VersionNotFoundError,
)
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.names import looks_like_cid
from cas_zarr.repository.refs import Branch, Refs

__all__ = ["Resolved", "not_found", "read_commit", "resolve", "root_of"]

_STEPS = re.compile(r"([~^])([0-9]{0,9})")
_EXPRESSION = re.compile(r"([^~^]*)((?:[~^][0-9]{0,9})*)")
_MAX_STEPS = 1_000_000


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a version expression stands for.

    Attributes
    ----------
    root : CidBytes
        The root document, or the document of a subtree.
    commit : CidBytes or None
        The commit, if the expression names one.
    name : str
        The expression.
    """

    root: CidBytes
    commit: CidBytes | None
    name: str


def read_commit(blocks: BlockStore, cid: CidBytes) -> Commit:
    """Read and verify a commit.

    Raises
    ------
    BlockNotFoundError, CorruptBlockError, FormatError
        If it is not there, damaged, or no commit.
    """
    return Commit.from_block(cid, blocks.get(cid))


def root_of(blocks: BlockStore, record: Branch | None) -> CidBytes | None:
    """Return the root that writers of a branch share; None before the first flush."""
    if record is None:
        return None
    if record.work is not None:
        return record.work
    return None if record.commit is None else read_commit(blocks, record.commit).root


def resolve(blocks: BlockStore, refs: Refs, version: CidLike) -> Resolved:
    """Find what a version expression stands for.

    Raises
    ------
    VersionNotFoundError
        If nothing has that name; the message has the nearest ones.
    InvalidArgumentError
        If it is no expression, or the CID of something that is no version.
    """
    if not isinstance(version, str):
        cid = as_cid_bytes(version)
        return _of_cid(blocks, refs, cid, format_cid(cid))
    match = _EXPRESSION.fullmatch(version)
    if match is None or not match[1]:
        raise InvalidArgumentError(
            f"{version!r} is no version; give a branch, a tag, a cid, or one with ~n behind it"
        )
    name, steps = match[1], _STEPS.findall(match[2])
    found = _of_name(blocks, refs, name)
    if not steps:
        return found
    if found.commit is None:
        raise InvalidArgumentError(
            f"{name!r} is a root and has no history; {version!r} needs a commit, a branch or a tag"
        )
    cid = found.commit
    for kind, number in steps:
        cid = _step(blocks, cid, kind, int(number or 1), version)
    return Resolved(read_commit(blocks, cid).root, cid, version)


def _step(blocks: BlockStore, cid: CidBytes, kind: str, number: int, version: str) -> CidBytes:
    if kind == "^":
        parents = read_commit(blocks, cid).parents
        if number == 0:
            return cid
        if number > len(parents):
            raise VersionNotFoundError(
                f"there is no {version}: commit {format_cid(cid)} has {len(parents)} parents"
            )
        return parents[number - 1]
    if number > _MAX_STEPS:
        raise InvalidArgumentError(f"{version!r} goes back more than {_MAX_STEPS} commits")
    for _ in range(number):
        parents = read_commit(blocks, cid).parents
        if not parents:
            raise VersionNotFoundError(
                f"there is no {version}: the history begins with commit {format_cid(cid)}"
            )
        cid = parents[0]
    return cid


def _of_name(blocks: BlockStore, refs: Refs, name: str) -> Resolved:
    if looks_like_cid(name):
        return _of_cid(blocks, refs, as_cid_bytes(name), name)
    try:
        tag = refs.tag(name)
        if tag is not None:
            return Resolved(read_commit(blocks, tag.commit).root, tag.commit, name)
        branch = refs.branch(name)
        kept = refs.kept(name) if branch is None else None
    except InvalidKeyError as error:
        raise VersionNotFoundError(f"there is no version {name!r}: {error}") from None
    if branch is not None:
        if branch.commit is None:
            raise VersionNotFoundError(
                f"branch {name!r} has no commit yet; commit, or open the branch without a "
                "version to see its working root"
            )
        return Resolved(read_commit(blocks, branch.commit).root, branch.commit, name)
    if kept is not None and kept.work is not None:
        return Resolved(kept.work, None, name)
    raise not_found(refs, name)


def _of_cid(blocks: BlockStore, refs: Refs, cid: CidBytes, name: str) -> Resolved:
    hash_of(cid)  # one that cannot be verified is refused before it is looked for
    codec = codec_of(cid)
    if codec not in (DAG_CBOR, DAG_JSON):
        raise InvalidArgumentError(
            f"{name} is the cid of data, not of a version; give that of a commit or of a root"
        )
    if codec == DAG_JSON:
        if not blocks.has(cid):
            raise VersionNotFoundError(
                f"root {name} is not in {refs.location}; fetch it from a place that has it"
            )
        return Resolved(cid, None, name)
    try:
        return Resolved(read_commit(blocks, cid).root, cid, name)
    except BlockNotFoundError:
        raise VersionNotFoundError(
            f"commit {name} is not in {refs.location}; fetch it from a place that has it"
        ) from None


def not_found(
    refs: Refs, name: str, *, kind: str = "version", names: list[str] | None = None
) -> VersionNotFoundError:
    """Return the error for a name that nothing has, with the nearest of `names`."""
    if names is None:
        names = refs.tags() + refs.branches()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = "did you mean " + " or ".join(repr(one) for one in near) + "?"
    elif names:
        hint = "there are " + ", ".join(repr(one) for one in names[:10])
    else:
        hint = "there is none yet"
    return VersionNotFoundError(f"there is no {kind} {name!r} in {refs.location}; {hint}")
