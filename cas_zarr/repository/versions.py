"""Version expressions: ``main``, ``v1.0``, ``main~2``, the CID of a commit or of a root.

::

    expression = name [ "@{" n "}" ] *( "~" [n] / "^" [n] / "@" time )
    place      = expression [ ":" path ]

A name is tried as a CID, then as a tag, then as a branch (its newest commit), then as a root that
was kept after a conflict, then as a branch of another repository, as it was when it was fetched,
then as the first twelve characters or more of the CID of a commit, or of its root, in the histories
of all these.
``~n`` follows the first parent n times (once if n is left out), ``^n`` takes the n-th parent.
``@2026-01-31`` follows first parents to what was there at the end of that day (minute, second), in
UTC: the first commit that is not later. ``@{n}`` is what a branch or a tag was before its last n
moves, by the log of refs; it also works for a name that was deleted.

A name that has an "@" itself is taken as it stands where there is a ref of that name.
"""

from __future__ import annotations

import difflib
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    CidBytes,
    CidLike,
    ReadableCids,
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
from cas_zarr.repository.refs import Branch, Refs, Tag
from cas_zarr.repository.times import TIME_PATTERN, format_time, to_micros

__all__ = [
    "CUT",
    "Commits",
    "Resolved",
    "not_found",
    "parents_of",
    "read_commit",
    "resolve",
    "root_of",
    "split_place",
]

CUT = (
    "the history was cut there, by an expiry or by a clone of limited depth; fetch the rest from a "
    "repository that has it"
)

_SUFFIX = re.compile(rf"[~^][0-9]{{0,9}}|@\{{[0-9]{{1,9}}\}}|@{TIME_PATTERN}")
_EXPRESSION = re.compile(rf"([^~^]*?)((?:{_SUFFIX.pattern})*)")
_PLACE = re.compile(rf"((?>@{TIME_PATTERN}|[^:])*+)(?::(.*))?", re.DOTALL)
_is_short_cid = re.compile(r"b[a-z2-7]{11,}").fullmatch  # seven are the same in all commits
_MAX_EXPRESSION = 4096
_MAX_STEPS = 1_000_000
_MEMO_LIMIT = 1 << 14  # commits
_MEMO_BYTES = 32 << 20  # of their blocks: metadata can be large


@dataclass(frozen=True, slots=True, repr=False)
class Resolved(ReadableCids):
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


class Commits:
    """Reads commits, and knows where a history was cut. One lasts for one walk.

    Parameters
    ----------
    blocks : BlockStore
    refs : Refs

    Attributes
    ----------
    cut : frozenset of CidBytes
        The commits whose parents are none here.
    """

    def __init__(self, blocks: BlockStore, refs: Refs) -> None:
        self._blocks = blocks
        self._memo: dict[CidBytes, Commit] = {}
        self._held = 0
        self.cut = refs.shallow()

    def read(self, cid: CidBytes) -> Commit:
        """Return a commit; its `parents` are as they were committed."""
        commit = self._memo.get(cid)
        if commit is None:
            data = self._blocks.get(cid)
            commit = Commit.from_block(cid, data)
            if len(self._memo) >= _MEMO_LIMIT or self._held > _MEMO_BYTES:
                self._memo.clear()
                self._held = 0
            self._memo[cid] = commit
            self._held += len(data)
        return commit

    def parents(self, cid: CidBytes) -> tuple[CidBytes, ...]:
        """Return the parents of a commit as far as they are part of the history here."""
        return () if cid in self.cut else self.read(cid).parents

    def walk(self, *tips: CidBytes) -> Iterator[CidBytes]:
        """Yield commits and all that comes before them here, each once, the nearer ones first."""
        pending = deque(dict.fromkeys(tips))
        seen = set(pending)
        while pending:
            cid = pending.popleft()
            yield cid
            for parent in self.parents(cid):
                if parent not in seen:
                    seen.add(parent)
                    pending.append(parent)


def parents_of(blocks: BlockStore, refs: Refs, cid: CidBytes) -> tuple[CidBytes, ...]:
    """Return the parents of a commit, none where the history was cut off at it on purpose."""
    return Commits(blocks, refs).parents(cid)


def root_of(blocks: BlockStore, record: Branch | None) -> CidBytes | None:
    """Return the root that writers of a branch share; None before the first flush."""
    if record is None:
        return None
    if record.work is not None:
        return record.work
    return None if record.commit is None else read_commit(blocks, record.commit).root


def split_place(text: str) -> tuple[str, str]:
    """Return the version and the path of ``version:path``; without a path that of the root, "".

    The colons of a time belong to the version.

    Raises
    ------
    InvalidArgumentError
        If there is no version.
    """
    match = _PLACE.fullmatch(text) if isinstance(text, str) else None
    if match is None or not match[1]:
        raise InvalidArgumentError(
            f"{text!r} is no place in a version; write version:path, as in main:group/array"
        )
    return match[1], (match[2] or "").strip("/")


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
    match = _EXPRESSION.fullmatch(version) if len(version) <= _MAX_EXPRESSION else None
    name, steps = ("", []) if match is None else _split(refs, match[1], _SUFFIX.findall(match[2]))
    if not name:
        shown = version if len(version) <= 80 else f"{version[:80]}…"
        raise InvalidArgumentError(
            f"{shown!r} is no version; give a branch, a tag, a cid, or one with ~n, ^n, @{{n}} or "
            "@2026-01-31 behind it"
        )
    if steps and steps[0].startswith("@{"):
        found = _of_log(blocks, refs, name, int(steps.pop(0)[2:-1]))
    else:
        found = _of_name(blocks, refs, name)
    if not steps:
        return found
    if found.commit is None:
        raise InvalidArgumentError(
            f"{name!r} is a root and has no history; {version!r} needs a commit, a branch or a tag"
        )
    cid = found.commit
    commits = Commits(blocks, refs)
    for step in steps:
        cid = _step(commits, cid, step, version)
    return Resolved(commits.read(cid).root, cid, version)


def _split(refs: Refs, name: str, steps: list[str]) -> tuple[str, list[str]]:
    """Give what reads as times, but is the end of the name of a ref, back to the name."""
    times = 0
    while times < len(steps) and steps[times][0] == "@" and steps[times][1] != "{":
        times += 1
    for number in range(times, 0, -1):
        longer = name + "".join(steps[:number])
        if _exists(refs, longer):
            return longer, steps[number:]
    return name, steps


def _exists(refs: Refs, name: str) -> bool:
    try:
        return any(
            look(name) is not None for look in (refs.tag, refs.branch, refs.kept, refs.tracked)
        )
    except InvalidKeyError:
        return False


def _step(commits: Commits, cid: CidBytes, step: str, version: str) -> CidBytes:
    if step.startswith("@{"):
        raise InvalidArgumentError(
            f"{version!r} is no version: @{{n}} stands right behind the name of a branch or a tag"
        )
    if step[0] == "@":
        return _not_later(commits, cid, step[1:], version)
    number = int(step[1:] or 1)
    if step[0] == "^":
        if number == 0:
            return cid
        parents = commits.parents(cid)
        if number > len(parents):
            name = format_cid(cid)
            raise VersionNotFoundError(
                f"there is no {version}: behind commit {name}, {CUT}"
                if cid in commits.cut
                else f"there is no {version}: commit {name} has {len(parents)} parents"
            )
        return parents[number - 1]
    if number > _MAX_STEPS:
        raise InvalidArgumentError(f"{version!r} goes back more than {_MAX_STEPS} commits")
    for _ in range(number):
        parents = commits.parents(cid)
        if not parents:
            raise _no_parents(commits, cid, version)
        cid = parents[0]
    return cid


def _not_later(commits: Commits, cid: CidBytes, time: str, version: str) -> CidBytes:
    limit = to_micros(time, end=True)
    while (at := commits.read(cid).time) > limit:
        parents = commits.parents(cid)
        if not parents:
            raise _no_parents(commits, cid, version, f", of {format_time(at)}")
        cid = parents[0]
    return cid


def _no_parents(
    commits: Commits, cid: CidBytes, version: str, when: str = ""
) -> VersionNotFoundError:
    if cid in commits.cut:
        return VersionNotFoundError(
            f"there is no {version}: behind commit {format_cid(cid)}{when}, {CUT}"
        )
    return VersionNotFoundError(
        f"there is no {version}: the history begins with commit {format_cid(cid)}{when}"
    )


def _of_log(blocks: BlockStore, refs: Refs, name: str, number: int) -> Resolved:
    """Find what a ref was before its last moves."""
    states: list[Branch | Tag | None] = []
    try:
        now: list[tuple[str, Branch | Tag | None]] = [
            (f"tags/{name}", refs.tag(name)),
            (f"heads/{name}", refs.branch(name)),
        ]
    except InvalidKeyError as error:
        raise VersionNotFoundError(f"there is no version {name!r}: {error}") from None
    now.sort(key=lambda one: one[1] is None)  # what the name means now comes first
    log = refs.log(name)
    for ref, record in now:
        moves = [move for move in log if move.ref == ref]
        if not moves and record is None:
            continue
        states = [record]
        for move in reversed(moves):
            # One whose end was not there, while its begin was, never came to be.
            if _commit(move.new) != _commit(states[-1]):
                if _commit(move.old) == _commit(states[-1]):
                    continue
                states.append(move.new)  # what came between is not in the log any more
            states.append(move.old)
        break
    version = f"{name}@{{{number}}}"
    if not states:
        raise not_found(refs, name, kind="branch")
    if number >= len(states):
        raise VersionNotFoundError(
            f"there is no {version}: the log of refs in {refs.location} has {len(states) - 1} "
            f"moves of {name!r}"
        )
    record = states[number]
    cid = _commit(record)
    if record is None:
        raise VersionNotFoundError(f"there is no {version}: {name!r} was not there then")
    if cid is not None:
        return _of_cid(blocks, refs, cid, version)
    if isinstance(record, Branch) and record.work is not None:
        return _of_cid(blocks, refs, record.work, version)
    raise VersionNotFoundError(f"there is no {version}: {name!r} had no commit then")


def _commit(record: Branch | Tag | None) -> CidBytes | None:
    return None if record is None else record.commit


def _of_name(blocks: BlockStore, refs: Refs, name: str) -> Resolved:
    if looks_like_cid(name):
        return _of_cid(blocks, refs, as_cid_bytes(name), name)
    try:
        tag = refs.tag(name)
        if tag is not None:
            return Resolved(read_commit(blocks, tag.commit).root, tag.commit, name)
        branch = refs.branch(name)
        kept = refs.kept(name) if branch is None else None
        tracked = refs.tracked(name) if branch is None else None
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
    if tracked is not None:
        return Resolved(read_commit(blocks, tracked.commit).root, tracked.commit, name)
    cid = _of_short_cid(blocks, refs, name) if _is_short_cid(name) else None
    if cid is None:
        raise not_found(refs, name)
    return _of_cid(blocks, refs, cid, name)


def _of_short_cid(blocks: BlockStore, refs: Refs, name: str) -> CidBytes | None:
    """Find the commit or root whose CID begins so, in the histories of all refs."""
    records: list[Branch | Tag | None] = [
        look(ref)
        for look, names in (
            (refs.branch, refs.branches),
            (refs.tag, refs.tags),
            (refs.kept, refs.all_kept),
            (refs.tracked, refs.all_tracked),
        )
        for ref in names()
    ]
    commits = Commits(blocks, refs)
    known = {one.work for one in records if isinstance(one, Branch) and one.work is not None}
    for cid in commits.walk(*(one.commit for one in records if one and one.commit is not None)):
        known |= {cid, commits.read(cid).root}
    found = sorted(cid for cid in known if format_cid(cid).startswith(name))
    if len(found) > 1:
        these = " and ".join(map(format_cid, found[:3]))
        raise InvalidArgumentError(f"{name!r} stands for {these}; write more of the one meant")
    return found[0] if found else None


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
    elif kind == "remote":
        hint = "give the location of the other repository, or make a remote of that name first"
    else:
        hint = "there is none yet"
    return VersionNotFoundError(f"there is no {kind} {name!r} in {refs.location}; {hint}")
