"""What the commands share: arguments, options, what they mean, and how a repository is found."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from cas_zarr.cid import CidBytes
from cas_zarr.errors import CasZarrError, InvalidArgumentError, NotFoundError
from cas_zarr.repository.describe import NodeInfo, describe
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.selection import Box, index_box
from cas_zarr.repository.session import Session
from cas_zarr.repository.times import to_micros
from cas_zarr.repository.versions import root_of

__all__ = [
    "AGE",
    "BOX",
    "DURATION",
    "FIRST_MOMENT",
    "LAST_MOMENT",
    "SHARE",
    "Slices",
    "author_option",
    "box_option",
    "branch_option",
    "chunk_box",
    "committed_root",
    "index_box_of",
    "into_option",
    "json_option",
    "message_option",
    "opened",
    "path_argument",
    "repository_argument",
    "resolve_options",
    "sign_option",
    "signing_key",
    "sources_options",
    "version_option",
    "writable",
    "writing",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

Slices = tuple[tuple[int | None, int | None], ...]
"""A box of an array's index: first element, and the one behind the last, along each dimension."""

# -- values -----------------------------------------------------------------------------------

_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([smhdw])")
_FORMS = "write 90d, 12h, 30m, 45s or 2w"


class _Duration(click.ParamType):  # type: ignore[type-arg]
    """``90d``, ``12h``, ``30m``, ``45s``, ``2w`` or ``0``."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = _parse_duration(str(value))
        if found is None:
            self.fail(f"{value!r} is no duration; {_FORMS}, or 0", param, ctx)
        return found


def _parse_duration(text: str) -> timedelta | None:
    if text.strip() == "0":
        return timedelta(0)
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        return None
    try:
        return float(match[1]) * _UNITS[match[2]]
    except OverflowError:
        return None


class _Moment(click.ParamType):  # type: ignore[type-arg]
    """``2026-01-31``, ``2026-01-31T12:00``, or so long ago: ``90d``."""

    name = "time"

    def __init__(self, *, end: bool) -> None:
        self._end = end

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        ago = _parse_duration(str(value))
        try:
            if ago is not None:
                return datetime.now(UTC) - ago
            micros = to_micros(str(value), end=self._end)
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
        except (InvalidArgumentError, OverflowError):
            self.fail(
                f"{value!r} is no time; write 2026-01-31 or 2026-01-31T12:00 (UTC), or how long "
                "ago, as 90d or 12h",
                param,
                ctx,
            )


class _Age(_Moment):
    """What is older than a duration, or than a moment; both are kept as they are given."""

    name = "age"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        found = _parse_duration(str(value)) if isinstance(value, str) else value
        if isinstance(found, timedelta):
            return found
        return super().convert(value, param, ctx)


class _Share(click.ParamType):  # type: ignore[type-arg]
    """``5%`` or ``0.05``."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is no share; write 5% or 0.05", param, ctx)
        return share


class _Slices(click.ParamType):  # type: ignore[type-arg]
    """``0:10,:,3:4``"""

    name = "box"

    def convert(self, value: Any, param: Any, ctx: Any) -> Slices:
        if isinstance(value, tuple):
            return value
        sides = []
        for part in str(value).split(","):
            begin, colon, end = part.strip().partition(":")
            try:
                first, last = (int(text) if text.strip() else None for text in (begin, end))
                if not colon:
                    first = int(begin)
                    last = first + 1 or None
            except ValueError:
                self.fail(
                    f"{part!r} is no range of an array's index; write START:STOP for each "
                    "dimension, as in 0:10,:,3",
                    param,
                    ctx,
                )
            sides.append((first, last))
        return tuple(sides)


DURATION = _Duration()
FIRST_MOMENT, LAST_MOMENT = _Moment(end=False), _Moment(end=True)
AGE = _Age(end=False)
SHARE = _Share()
BOX = _Slices()

_PASSWORD = "CAS_ZARR_SIGNING_PASSWORD"

# -- arguments and options ----------------------------------------------------------------------

repository_argument = click.argument("repository")
path_argument = click.argument("path", default="")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
author_option = click.option(
    "--author",
    envvar="CAS_ZARR_AUTHOR",
    show_envvar=True,
    default="",
    help="Who commits, as 'Name <address>'.",
)
sign_option = click.option(
    "--sign",
    metavar="KEYFILE",
    envvar="CAS_ZARR_SIGNING_KEY",
    show_envvar=True,
    help="Sign with the Ed25519 key in this file, OpenSSH's or PEM; the password of an encrypted "
    f"one is in {_PASSWORD}.",
)
into_option = click.option(
    "--into",
    metavar="BRANCH",
    default="main",
    show_default=True,
    help="Branch that gets the changes.",
)
box_option = click.option(
    "--box",
    type=BOX,
    metavar="A:B,...",
    help="Only the chunks that hold this box of the array's index, as in 0:10,:,3:4.",
)


def message_option(text: str, *, required: bool = False) -> Callable[[_Function], _Function]:
    """Return what adds `--message`."""
    return click.option("--message", "-m", required=required, help=text)


def branch_option(function: _Function) -> _Function:
    """Add `--branch`."""
    return click.option(
        "--branch",
        "-b",
        metavar="NAME",
        default="main",
        show_default=True,
        help="Branch whose working root is meant.",
    )(function)


def version_option(function: _Function) -> _Function:
    """Add `--version` and `--branch`."""
    return click.option(
        "--version",
        "-v",
        metavar="VERSION",
        help="Tag, branch, commit, root CID, main~2 or main@2026-01-31. Without it: what the "
        "branch shows now, committed or not.",
    )(branch_option(function))


def sources_options(function: _Function) -> _Function:
    """Add `--gateway`, which gives `gateways`, and `--node`: where blocks of IPFS are."""
    gateway = click.option(
        "--gateway",
        "gateways",
        multiple=True,
        metavar="URL",
        envvar="CAS_ZARR_GATEWAYS",
        show_envvar=True,
        help="Gateway to read blocks of IPFS from, instead of the default ones. Repeatable.",
    )
    node = click.option(
        "--node",
        metavar="URL",
        envvar="CAS_ZARR_NODE",
        show_envvar=True,
        help="RPC of a node of IPFS that is asked first.",
    )
    return gateway(node(function))


def resolve_options(function: _Function) -> _Function:
    """Add `--ours` and `--theirs`, which give `resolve`."""
    ours = click.option(
        "--ours",
        "resolve",
        flag_value="ours",
        help="Where both changed the same thing, take what the branch has.",
    )
    theirs = click.option(
        "--theirs",
        "resolve",
        flag_value="theirs",
        help="Where both changed the same thing, take what comes in.",
    )
    return ours(theirs(function))


# -- repositories -------------------------------------------------------------------------------


def opened(
    location: str,
    version: str | None,
    branch: str,
    *,
    gateways: Sequence[str] = (),
    node: str | None = None,
) -> tuple[Repository, CidBytes | None]:
    """Open a repository for reading, and find the root that is meant; None if it is empty."""
    repository = Repository.open(location, read_only=True, gateways=gateways or None, node=node)
    if version is not None:
        return repository, repository.resolve(version).root
    return repository, root_of(repository.blocks, repository.record(branch))


def writable(
    location: str, *, author: str = "", gateways: Sequence[str] = (), node: str | None = None
) -> Repository:
    """Open a repository for writing."""
    return Repository.open(location, author=author, gateways=gateways or None, node=node)


@contextmanager
def writing(repository: Repository, branch: str) -> Iterator[Session]:
    """Give a session; a command that fails or is interrupted leaves the branch as it was."""
    with repository.session(branch) as session:
        try:
            yield session
        except BaseException:
            with suppress(CasZarrError):  # the first error is the one to tell
                session.discard()
            raise


def committed_root(repository: Repository, branch: str) -> CidBytes | None:
    """Return the root of the newest commit of a branch; None before the first."""
    record = repository.record(branch)
    if record is None or record.commit is None:
        return None
    return repository.resolve(record.commit).root


def chunk_box(
    repository: Repository, root: CidBytes, path: str, slices: Slices | None
) -> Box | None:
    """Return the box of chunks of the array at a path that holds a box of its index."""
    if slices is None:
        return None
    return index_box_of(describe(repository.blocks, root, path), path, slices)


def index_box_of(node: NodeInfo, path: str, slices: Slices) -> Box:
    """Return the box of chunks of an array that holds a box of its index."""
    if node.shape is None or node.chunk_shape is None:
        raise NotFoundError(
            f"{path or 'the root'} is no array on a regular grid of chunks, so --box has no "
            "meaning there; give the path of an array"
        )
    return index_box(node.shape, node.chunk_shape, slices)


def signing_key(file: str | None) -> Any:
    """Return the key in a file, None without one."""
    if file is None:
        return None
    from cas_zarr.repository.signing import load_key

    return load_key(file, password=os.environ.get(_PASSWORD))
