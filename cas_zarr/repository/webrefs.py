"""Repositories behind the gateway of another: their refs over HTTP, read-only.

``GET /cas-zarr/repository.json`` says where branches and tags are; blocks come from the trustless
gateway beside it. What the server says is checked strictly before anything is made of it, and
blocks verify themselves: a lying server can show another history, never wrong data under a CID.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    CidBytes,
    HashFunction,
    Link,
    hash_by_name,
)
from cas_zarr.codecs import dagjson
from cas_zarr.errors import (
    CasZarrError,
    FormatError,
    InvalidCIDError,
    InvalidKeyError,
    ReadOnlyError,
    RemoteError,
    RepositoryNotFoundError,
)
from cas_zarr.repository.names import check_name
from cas_zarr.repository.records import Branch, Tag, link_of
from cas_zarr.repository.refs import UNGUARDED, Refs, Unguarded

if TYPE_CHECKING:
    from cas_zarr.blocks.gateway import GatewayBlocks
    from cas_zarr.blocks.http import HttpClient

__all__ = ["REFS_PATH", "WebRefs", "describe_refs", "open_web"]

REFS_PATH: Final = "/cas-zarr/repository.json"
"""Where a gateway says what refs there are, below its URL."""

TYPE, VERSION = "cas-zarr/repository", 1
MAX_BYTES: Final = 16 << 20
MAX_REFS: Final = 100_000
MAX_CUT: Final = 300_000
_MAX_AGE: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What a repository was when it was asked."""

    function: HashFunction
    heads: Mapping[str, Branch]
    tags: Mapping[str, Tag]
    cut: frozenset[CidBytes]


def describe_refs(refs: Refs, function: HashFunction) -> tuple[bytes, str]:
    """Return what is served at `REFS_PATH`, as canonical DAG-JSON, and its ETag.

    It has the branches (commit and working root), the tags, and the commits at which the history
    was cut: without these nobody could tell a cut from a block that is missing.
    """
    branches: dict[str, dagjson.Value] = {}
    for name in refs.branches():
        if (record := refs.branch(name)) is not None:
            branches[name] = {"commit": _link(record.commit), "work": _link(record.work)}
    tags: dict[str, dagjson.Value] = {}
    for name in refs.tags():
        if (tag := refs.tag(name)) is not None:
            tags[name] = Link(tag.commit)
    data = dagjson.encode(
        {
            "type": TYPE,
            "version": VERSION,
            "hash": function.name,
            "branches": branches,
            "tags": tags,
            "cut": [Link(cid) for cid in sorted(refs.shallow())],
        }
    )
    return data, f'"{BLAKE3.digest(data)[:16].hex()}"'


def _link(cid: CidBytes | None) -> Link | None:
    return None if cid is None else Link(cid)


def _parse(data: bytes) -> _Known:
    """Read what `describe_refs` made; FormatError if it is anything else."""
    value = dagjson.decode(data)
    if not isinstance(value, dict) or value.get("type") != TYPE:
        raise FormatError("it does not describe a repository")
    version = value.get("version")
    if version != VERSION or isinstance(version, bool):
        raise FormatError(f"it has version {version!r:.40} and {VERSION} is known here")
    if set(value) != {"type", "version", "hash", "branches", "tags", "cut"}:
        raise FormatError("it has missing or unknown fields")
    branches, tags, cut = value["branches"], value["tags"], value["cut"]
    if not (isinstance(branches, dict) and isinstance(tags, dict) and isinstance(cut, list)):
        raise FormatError("its branches, tags or cuts are of another kind")
    if len(branches) + len(tags) > MAX_REFS or len(cut) > MAX_CUT:
        raise FormatError(f"it has more than {MAX_REFS} refs or {MAX_CUT} cuts")
    if not isinstance(value["hash"], str):
        raise FormatError("it has no hash")
    heads: dict[str, Branch] = {}
    for name, record in branches.items():
        if not isinstance(record, dict) or set(record) != {"commit", "work"}:
            raise FormatError("a branch has missing or unknown fields")
        heads[_name(name)] = Branch(
            link_of(record["commit"], DAG_CBOR), link_of(record["work"], DAG_JSON)
        )
    commits = {_name(name): _commit(commit) for name, commit in tags.items()}
    return _Known(
        hash_by_name(value["hash"][:40]),
        heads,
        {name: Tag(commit) for name, commit in commits.items()},
        frozenset(map(_commit, cut)),
    )


def _name(name: str) -> str:
    try:
        return check_name(name)
    except InvalidKeyError as error:
        raise FormatError(f"a ref has a name that none can have: {error}") from None


def _commit(link: object) -> CidBytes:
    cid = link_of(link, DAG_CBOR)
    if cid is None:
        raise FormatError("a tag or a cut has no commit")
    return cid


class WebRefs(Refs):
    """The refs of a repository that a gateway serves, for reading only.

    Parameters
    ----------
    url : str
        That of the gateway.
    client : HttpClient
    max_age : float
        Seconds for which what was read is taken for what is there.

    Raises
    ------
    RepositoryNotFoundError
        If no repository is served there.
    RemoteError
        If the server does not answer, or not as it should.

    Attributes
    ----------
    function : HashFunction
        The hash of the repository.
    """

    read_only = True

    def __init__(self, url: str, client: HttpClient, *, max_age: float = _MAX_AGE) -> None:
        self._url = url.rstrip("/")
        self._client = client
        self._max_age = max_age
        self._lock = threading.Lock()
        self._etag: str | None = None
        self._known: _Known | None = None
        self._read_at = 0.0
        self.function = self.refresh().function

    @property
    def location(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"WebRefs({self._url!r})"

    def refresh(self) -> _Known:
        """Read the refs from the server anew, and return them."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> _Known:
        headers = {"accept": "application/json"}
        if self._known is not None and self._etag is not None:
            headers["if-none-match"] = self._etag
        response = self._client.request(
            "GET", self._url + REFS_PATH, headers=headers, limit=MAX_BYTES, retries=2
        )
        if response.status == 304 and self._known is not None:
            self._read_at = time.monotonic()
            return self._known
        if response.status in (404, 410):
            raise RepositoryNotFoundError(
                f"there is no repository of cas_zarr at {self._url}; give the url that "
                "`cas-zarr gateway` prints, or ipfs://<cid> to read a version by way of IPFS"
            )
        if response.status != 200:
            raise RemoteError(
                f"{self._url} answers {response.status} where it should say what branches it has; "
                "try again later, or ask whoever runs it",
                status=response.status,
            )
        try:
            known = _parse(response.body)
        except (FormatError, InvalidCIDError) as error:
            raise RemoteError(
                f"{self._url}{REFS_PATH} cannot be read: {error}; check that the url is that of a "
                "gateway of cas_zarr, and its version",
                status=200,
            ) from None
        if self._known is not None and known.function is not self._known.function:
            raise RemoteError(f"the repository at {self._url} is another by now; open it anew")
        etag = response.headers.get("etag")
        self._etag = etag if etag is not None and len(etag) <= 200 else None
        self._known = known
        self._read_at = time.monotonic()
        return known

    def _now(self) -> _Known:
        with self._lock:
            if self._known is None or time.monotonic() - self._read_at > self._max_age:
                return self._refresh()
            return self._known

    # -- what the base class asks for -----------------------------------------------------------

    def _load(self, path: str) -> bytes | None:
        kind, _, name = path.partition("/")
        if kind == "heads":
            head = self._now().heads.get(name)
            return None if head is None else head.to_block()
        if kind == "tags":
            tag = self._now().tags.get(name)
            return None if tag is None else tag.to_block()
        return None

    def _paths(self, folder: str) -> Iterator[str]:
        if folder == "heads":
            return iter(list(self._now().heads))
        return iter(list(self._now().tags) if folder == "tags" else [])

    def shallow(self) -> frozenset[CidBytes]:
        """Return the commits whose parents were cut off on purpose."""
        return self._now().cut

    def _read_log(self) -> bytes:
        return b""

    def _swap(
        self,
        path: str,
        old: bytes | None,  # noqa: ARG002
        new: bytes | None,  # noqa: ARG002
        *,
        line: bytes | None = None,  # noqa: ARG002
        guard: bytes | Unguarded | None = UNGUARDED,  # noqa: ARG002
    ) -> bool:
        raise self._refusal(path)

    def _rewrite_log(self, change: Callable[[bytes], tuple[bytes, int]]) -> int:  # noqa: ARG002
        raise self._refusal("log")

    def set_shallow(
        self,
        expected: Set[CidBytes],  # noqa: ARG002
        new: Set[CidBytes],  # noqa: ARG002
        *,
        guard: bytes | Unguarded | None = UNGUARDED,  # noqa: ARG002
    ) -> None:
        """Refuse."""
        raise self._refusal("shallow")

    def _refusal(self, path: str) -> ReadOnlyError:
        return ReadOnlyError(
            f"{self._url} is for reading only, and {path} stays as it is; clone it, and push to a "
            "repository that you can write to"
        )


def open_web(
    url: str, *, client: HttpClient | None = None
) -> tuple[WebRefs, GatewayBlocks, HashFunction]:
    """Open what a gateway of cas_zarr serves.

    Parameters
    ----------
    url : str
        ``http://host:port``, as ``cas-zarr gateway`` prints it.
    client : HttpClient, optional
        By default one of its own, which closes with the blocks.

    Returns
    -------
    WebRefs
        Read anew when they are asked for and older than two seconds.
    GatewayBlocks
        Each verified.
    HashFunction
        That of the repository.

    Raises
    ------
    RepositoryNotFoundError
        If no repository is served there.
    RemoteError
        If the server does not answer, or not as it should.
    """
    from cas_zarr.blocks.gateway import GatewayBlocks

    gateway = GatewayBlocks(url, client=client)
    try:
        refs = WebRefs(url, gateway.client)
    except CasZarrError:
        gateway.close()
        raise
    return refs, gateway, refs.function
