"""Linking: chunks that lie elsewhere already become those of a dataset, without being copied.

Each chunk is hashed once, where it lies, and linked by its CID, so the root is the one that an
import would have given. What is not copied is referred to (`cas_zarr.blocks.references`): it is
read where it lies from then on, verified, and a source that has changed is refused. References are
local to the repository: a clone, a push and an export carry the bytes.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np

from cas_zarr.blocks.references import References, SourceReport
from cas_zarr.blocks.referencetable import Place, Table
from cas_zarr.blocks.referring import ReferringBlocks
from cas_zarr.cid import RAW, CidBytes, HashFunction, cid_of, hash_by_name
from cas_zarr.codecs.shardindex import ShardLayout, cut_points
from cas_zarr.codecs.unixfs import LEAF_SIZE, build_file
from cas_zarr.errors import (
    InvalidArgumentError,
    LimitError,
    NotFoundError,
    StorageError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.parallel import map_ordered
from cas_zarr.repository.guard import collectable
from cas_zarr.repository.imports import (
    FolderSource,
    Progress,
    import_zarr,
    make_room,
    refuse_itself,
)
from cas_zarr.repository.kerchunk import absolute, is_parquet, parse, read_parquet
from cas_zarr.repository.session import Session
from cas_zarr.tree.changes import is_document
from cas_zarr.tree.keys import check_key
from cas_zarr.tree.page import CID_SIZE
from cas_zarr.tree.values import MAX_VALUE_SIZE

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["LinkReport", "LinkSource", "link", "list_sources", "repoint"]

LinkSource: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"
"""A folder with a Zarr, kerchunk's references in JSON or parquet, or what is in such a JSON."""

_T = TypeVar("_T")

_BATCH: Final = 1024  # values that are hashed between two calls of a progress


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What a link has done.

    Attributes
    ----------
    source : str
        Where the data lie.
    path : str
        The node that they were put at, "" for the root.
    keys : int
        Number of keys that are bound.
    size : int
        Their values' length in bytes.
    linked : int
        How many of them are referred to; the others were copied.
    """

    source: str
    path: str
    keys: int
    size: int
    linked: int


def link(
    target: Repository | Session,
    source: LinkSource,
    *,
    branch: str = "main",
    path: str = "",
    copy: bool = False,
    replace: bool = False,
    message: str | None = None,
    progress: Progress | None = None,
) -> LinkReport:
    """Put data that lie elsewhere into a dataset, and refer to their bytes there.

    Metadata documents are copied. Every chunk is read and hashed once, in parallel, and linked; its
    bytes stay where they are, and have to stay as they are: if they change, reading them raises
    `CorruptBlockError`, and if they are gone, `BlockNotFoundError`. See `repoint` for sources that
    move, and `list_sources` for those that are gone.

    Parameters
    ----------
    target : Repository or Session
        A repository in a folder. Its branch shows the data afterwards; a session is left to be
        flushed or committed by who has it.
    source : str, path or mapping
        A folder with a Zarr of format 2 or 3; or references as kerchunk and VirtualiZarr write
        them, as a JSON file, a folder of parquet or a dict: the chunks are ranges of other files,
        local ones or on servers of HTTP. Paths in a file are relative to the folder that it is in.
        Whatever they name is read and becomes data: link references of those alone whom you trust.
    branch : str
        The branch of a repository that is written to.
    path : str
        Node to put the data at; "" is the root.
    copy : bool
        Whether the bytes are copied, and nothing is referred to.
    replace : bool
        Whether keys below `path` that the source does not have are removed. Without it they make
        this fail before anything is written.
    message : str, optional
        Of a commit; without it none is made.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Raises
    ------
    NotFoundError
        If there is no Zarr array or group at the source.
    InvalidArgumentError
        If `path` holds something else, the references mean nothing, or the repository is not in a
        folder, where references can be kept.
    InvalidKeyError
        If a key cannot be stored.
    StorageError
        If a source cannot be read.
    LimitError
        If a chunk has more than 4 GiB.
    """
    if isinstance(target, Session):
        return _link(target, source, path, copy, replace, progress)
    with Session(target, branch) as session:
        try:
            report = _link(session, source, path, copy, replace, progress)
        except BaseException:
            session.discard()
            raise
        if message is None:
            session.flush()
        else:
            session.commit(message)
    return report


def list_sources(repository: Repository) -> list[SourceReport]:
    """Return what is referred to, by location, and which files of it are gone or cut off.

    Whether what is there is still the same is found by reading it: ``verify(data=True)``.
    """
    blocks = collectable(repository.blocks)
    return blocks.references.reports() if isinstance(blocks, ReferringBlocks) else []


def repoint(
    repository: Repository, old: str | os.PathLike[str], new: str | os.PathLike[str]
) -> int:
    """Look for sources that moved where they are now; return how many blocks that concerns.

    Nothing is read: what is not the same there is refused when it is read.

    Parameters
    ----------
    repository : Repository
    old, new : str or path
        A file or a folder, or the begin of a URL up to a slash, where it was and where it is.

    Raises
    ------
    NotFoundError
        If nothing at `old` is referred to.
    """
    repository._check_writable()
    before, after = (absolute(os.fspath(one), ".") for one in (old, new))
    count = _references_of(repository).repoint(before, after)
    if not count:
        places = ", ".join(report.location for report in list_sources(repository)[:8]) or "nothing"
        raise NotFoundError(
            f"nothing at {before} is referred to in {repository.location}; what is: {places}"
        )
    return count


def _references_of(repository: Repository) -> References:
    blocks = collectable(repository.blocks)
    if not isinstance(blocks, ReferringBlocks):
        raise InvalidArgumentError(
            f"{repository.location} is no folder, and references are kept beside packs; copy the "
            "data (copy=True), or link them in a local repository"
        )
    return blocks.references


def _link(
    session: Session,
    source: LinkSource,
    path: str,
    copy: bool,
    replace: bool,
    progress: Progress | None,
) -> LinkReport:
    found = _find(source)
    if copy and isinstance(found.origin, FolderSource):
        done = import_zarr(found.location, session, path=path, replace=replace, progress=progress)
        return LinkReport(found.location, done.path, done.keys, done.size, 0)
    path = path.strip("/")
    prefix = path + "/" if path else ""
    keys = found.held.keys() | found.places.keys()
    if not any(is_document(key) for key in keys):
        raise NotFoundError(
            f"no zarr array or group is in {found.location}: there is no zarr.json, .zgroup or "
            ".zarray; name what has one"
        )
    if found.origin is not None:
        refuse_itself(found.origin, session.repository.location)
    for key in keys:
        check_key(prefix + key)
    mapping = session.prepare()
    with _references_for(session.repository, copy=copy) as references:
        run = _Run(mapping, references, prefix, progress)
        documents = {key for key in found.places if is_document(key)}
        held = found.held | {key: run.read(found.places[key]) for key in documents}
        places = {key: place for key, place in found.places.items() if key not in documents}
        make_room(mapping, path, keys, replace=replace)
        for key in sorted(held, key=lambda key: not is_document(key)):
            mapping.set_value(prefix + key, held[key])
        if copy:
            run.copy(places)
        else:
            run.link(found.location if found.origin is not None else "", places)
    size = sum(map(len, held.values())) + sum(place.size for place in places.values())
    return LinkReport(found.location, path, len(keys), size, 0 if copy else len(places))


@contextmanager
def _references_for(repository: Repository, *, copy: bool) -> Iterator[References]:
    """Give what reads the sources, and holds references to them unless they are copied."""
    if not copy:
        yield _references_of(repository)
        return
    references = References(os.devnull)
    try:
        yield references
    finally:
        references.close()


class _Run:
    """Reads sources, hashes what is in them, and binds it."""

    def __init__(
        self,
        mapping: CASMapping,
        references: References,
        prefix: str,
        progress: Progress | None,
    ) -> None:
        self._mapping = mapping
        self._references = references
        self._prefix = prefix
        self._progress = progress
        self._function = hash_by_name(mapping.hash)

    def read(self, place: Place) -> bytes:
        """Return the bytes at a place, all of them."""
        if place.size > MAX_VALUE_SIZE:
            raise LimitError(
                f"{place} are {place.size} bytes; at most {MAX_VALUE_SIZE} can be stored under one "
                "key: use smaller chunks"
            )
        data = self._references.read(place) if place.is_there() else None
        if data is None or len(data) != place.size:
            raise StorageError(f"there are no {place}; check the source, and link it again")
        return data

    def copy(self, places: dict[str, Place]) -> None:
        """Store values."""

        def copy(key: str) -> None:
            self._mapping.set_value(self._prefix + key, self.read(places[key]))

        for _ in self._each(copy, places):
            pass

    def link(self, location: str, places: dict[str, Place]) -> None:
        """Hash values, bind their keys, and hold references to their blocks."""
        keys = list(places)
        found = list(self._each(lambda key: self._hash(key, places[key]), places))
        rows = (
            (cid, _below(location, places[key].source), places[key].offset + at, size)
            for key, one in zip(keys, found, strict=True)
            for cid, at, size in one.leaves
        )
        table = Table.of(location, rows)
        if len(table):
            self._references.add(table)  # before a version leads to what it names
        for one in found:
            self._mapping.blocks.put_many(one.nodes)
        if keys:
            self._mapping.set_cids(
                [self._prefix + key for key in keys],
                np.frombuffer(b"".join(one.cid for one in found), np.uint8).reshape(-1, CID_SIZE),
                np.array([places[key].size for key in keys], np.int64),
            )

    def _each(self, function: Callable[[str], _T], places: dict[str, Place]) -> Iterator[_T]:
        """Yield what a function returns for each key, with many of them at work."""
        keys = list(places)
        done, total = 0, sum(place.size for place in places.values())
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            yield from map_ordered(function, some)
            done += sum(places[key].size for key in some)
            if self._progress is not None:
                self._progress(done, total)

    def _hash(self, key: str, place: Place) -> _Hashed:
        layout = None
        if place.size > LEAF_SIZE:
            layout = self._mapping.layout_now(self._prefix + key)
        return _hash_value(self._function, self.read(place), layout)


@dataclass(frozen=True, slots=True)
class _Hashed:
    """A value's CID, its leaves as (CID, offset, size), and the nodes that link them."""

    cid: CidBytes
    leaves: list[tuple[CidBytes, int, int]]
    nodes: list[tuple[CidBytes, bytes]]


def _hash_value(function: HashFunction, data: bytes, layout: ShardLayout | None) -> _Hashed:
    """Hash a value as `cas_zarr.tree.values.write_value` does, and store nothing."""
    if len(data) <= LEAF_SIZE:
        cid = cid_of(RAW, function, data)
        return _Hashed(cid, [(cid, 0, len(data))], [])
    view = memoryview(data)
    cuts = cut_points(view, layout)
    leaves = [
        (cid_of(RAW, function, view[start:stop]), start, stop - start)
        for start, stop in itertools.pairwise(cuts)
    ]
    cid, nodes = build_file([(leaf, size) for leaf, _, size in leaves], function)
    return _Hashed(cid, leaves, nodes)


def _below(location: str, source: str) -> str:
    return source[len(location) + 1 :] if location else source


# -- sources --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """The keys of a source: with their bytes, or with the place of them."""

    location: str
    held: dict[str, bytes]
    places: dict[str, Place]
    origin: FolderSource | None = None


def _find(source: LinkSource) -> _Found:
    if isinstance(source, Mapping):
        return _Found("the references", *parse(source, ".", "the references"))
    text = os.fspath(source)
    path = Path(text)
    beside = os.path.dirname(os.path.abspath(text))
    if is_parquet(path):
        return _Found(text, *parse({"refs": read_parquet(path)}, beside, text))
    if path.is_dir():
        location = os.path.abspath(text)
        folder = FolderSource(Path(location))
        try:
            sizes = folder.sizes()
        except OSError as error:
            raise StorageError(f"reading {location} failed: {error}") from error
        places = {key: Place(f"{location}/{key}", 0, size) for key, size in sizes.items()}
        return _Found(location, {}, places, folder)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(
            f"{text} does not exist; name a folder with a zarr, or a file of references"
        ) from None
    except OSError as error:
        raise StorageError(f"reading {text} failed: {error}") from error
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidArgumentError(
            f"{text} is neither a folder with a zarr nor a json file of references, as kerchunk "
            "writes them; import it instead"
        )
    return _Found(text, *parse(value, beside, text))
