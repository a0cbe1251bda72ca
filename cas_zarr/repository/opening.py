"""Where a repository is: its address, its hash, and the repositories of this process' memory.

::

    weather.cas, file:///data/weather.cas   a folder
    memory://name                           in this process
    s3://bucket/prefix, gs://…, az://…      in object storage
    ipfs://CID, ipfs://CID/path             a root, a commit, or a directory of Zarr files
    ipns://NAME                             what a name stands for
    http://host/ipfs/CID                    the same, from that gateway first
    http://host:port                        a repository that ``cas-zarr gateway`` serves
    x.car, http://host/x.car                a CAR file
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import HashFunction, as_cid_bytes, hash_by_name
from cas_zarr.errors import CasZarrError, InvalidArgumentError, InvalidCIDError
from cas_zarr.repository.names import looks_like_cid
from cas_zarr.repository.refs import MemoryRefs

__all__ = [
    "MEMORY",
    "Location",
    "SharedMemory",
    "check_owner",
    "hash_named",
    "in_memory",
    "owner_of",
    "parse_location",
    "path_of",
    "same_hash",
]

MEMORY = "memory://"

FORMS: Final = (
    "a path, memory://name, s3://bucket/prefix (or gs, az), ipfs://CID, ipns://NAME, "
    "http(s)://host/ipfs/CID, http(s)://host:port of a served repository, or a .car file (path or "
    "address)"
)

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,19}):/{0,3}(?=[^/\\]|$)")
_BUCKETS: Final = ("s3", "s3a", "gs", "az", "abfs", "abfss")
_KNOWN: Final = ("file", "memory", "ipfs", "ipns", "http", "https", *_BUCKETS)
_IN_GATEWAY: Final = re.compile(r"((?:/[^/]+)*?)/(ipfs|ipns)/(.+)", re.DOTALL)
_MAX_LOCATION: Final = 8192

Kind: TypeAlias = Literal["folder", "memory", "bucket", "ipfs", "ipns", "car", "server"]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a repository is, taken apart.

    Attributes
    ----------
    kind : str
    text : str
        The location as it is shown and recorded.
    name : str
        Of ``ipfs`` the CID, of ``ipns`` the name, as they were written.
    path : str
        What lies behind it, without slashes at the ends.
    gateway : str
        The gateway that the address named, or "".
    """

    kind: Kind
    text: str
    name: str = ""
    path: str = ""
    gateway: str = ""

    @property
    def remote(self) -> bool:
        """Whether reading takes a network."""
        return self.kind in ("bucket", "ipfs", "ipns", "server") or (
            self.kind == "car" and self.text.startswith(("http://", "https://"))
        )


def parse_location(location: str | os.PathLike[str]) -> Location:
    """Tell what a location means; nothing is contacted.

    Raises
    ------
    InvalidArgumentError
        If it means nothing; the message has the forms that there are.
    """
    text = os.fspath(location)
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{location!r} is no path or address of a repository")
    if len(text) > _MAX_LOCATION:
        raise InvalidArgumentError(f"{text[:60]!r}... is too long for the address of a repository")
    if text.startswith(MEMORY):
        return Location("memory", text)
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if scheme in _KNOWN[2:] or (scheme and "://" in text[: len(scheme) + 3]):
        if not text.lower().startswith(f"{scheme}://") or scheme not in _KNOWN:
            raise _no_location(text)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _no_location(text) from None
        text = f"{scheme}://{text[len(scheme) + 3 :]}"
    if scheme in ("ipfs", "ipns"):
        return _content(text, scheme, text[len(scheme) + 3 :], "")
    if scheme in ("http", "https"):
        return _address(text)
    if scheme in _BUCKETS:
        return _bucket(text)
    path = path_of(text)
    if not os.path.exists(path) and isinstance(location, str) and looks_like_cid(text):
        raise InvalidArgumentError(f"{text!r} is a cid; write ipfs://{text} to open it")
    if path.suffix.lower() == ".car" and not path.is_dir():
        return Location("car", str(path))
    return Location("folder", str(path))


def _content(text: str, kind: str, rest: str, gateway: str) -> Location:
    """Return the location of a CID or a name with a path behind it."""
    rest = unquote(rest) if gateway else rest
    if any(mark in rest for mark in "?#\0") or any(part in (".", "..") for part in rest.split("/")):
        raise _no_location(text)
    name, _, path = rest.partition("/")
    if not name:
        raise _no_location(text)
    path = path.strip("/")
    behind = f"{name}/{path}" if path else name
    shown = f"{gateway}/{kind}/{quote(behind)}" if gateway else f"{kind}://{behind}"
    if kind == "ipfs":
        try:
            as_cid_bytes(name)
        except InvalidCIDError as error:
            raise InvalidArgumentError(f"{text!r} names no cid: {error}") from None
        return Location("ipfs", shown, name, path, gateway)
    return Location("ipns", shown, name, path, gateway)


def _bucket(text: str) -> Location:
    try:
        parts = urlsplit(text)
        secret = parts.password
    except ValueError:
        raise _no_location(text) from None
    if secret is not None:
        raise InvalidArgumentError(
            f"an address of {parts.hostname} has a key in it, which would be shown in messages; "
            "give it in storage_options"
        )
    path = parts.path.strip("/")
    inner = path.split("/") if path else []
    if not parts.netloc or parts.query or parts.fragment or {"", ".", ".."} & set(inner):
        raise _no_location(text)
    return Location("bucket", f"{parts.scheme}://{parts.netloc}" + f"/{path}" * bool(path))


def _address(text: str) -> Location:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _no_location(text) from None
    if not parts.hostname or port == 0 or parts.fragment:
        raise _no_location(text)
    if parts.username is not None or parts.password is not None:
        raise InvalidArgumentError(
            f"an address of {parts.hostname} has a name or password in it, which would be shown "
            "in messages; leave it out"
        )
    found = _IN_GATEWAY.fullmatch(parts.path)
    if found and not parts.query:
        gateway = f"{parts.scheme}://{parts.netloc}{found[1]}"
        return _content(text, found[2], found[3], gateway)
    if parts.path.lower().endswith(".car"):
        return Location("car", text)
    if parts.query:
        raise _no_location(text)
    return Location("server", text.rstrip("/"))


def _no_location(text: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{text!r} cannot be opened; a repository is {FORMS}")


class SharedMemory:
    """What the repositories of one name in memory share; it goes with the last of them."""

    def __init__(self, function: HashFunction) -> None:
        self.function = function
        self.refs = MemoryRefs()
        self.blocks = MemoryBlocks()


_shared: weakref.WeakValueDictionary[str, SharedMemory] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def in_memory(location: str, function: HashFunction) -> tuple[str, SharedMemory]:
    """Return the name and the content of a repository in memory; without a name, of a new one."""
    if location == MEMORY:
        location += os.urandom(8).hex()
    with _lock:
        held = _shared.get(location)
        if held is None:
            held = _shared[location] = SharedMemory(function)
    return location, held


def hash_named(name: str) -> HashFunction:
    """Return the hash function of that name."""
    try:
        return hash_by_name(name)
    except InvalidCIDError as error:
        raise InvalidArgumentError(str(error)) from None


def same_hash(location: str, asked: HashFunction | None, found: HashFunction) -> HashFunction:
    """Return the hash that a repository has; refuse it if another was asked for."""
    if asked is not None and asked is not found:
        raise InvalidArgumentError(
            f"{location} uses {found.name}, not {asked.name}; leave the hash out, or make another "
            "repository"
        )
    return found


def path_of(text: str) -> Path:
    """Return the folder that a path, also with ~ for a home, or a file:// address means."""
    if text.startswith("file://"):
        host, slash, rest = text.removeprefix("file://").partition("/")
        if host not in ("", "localhost"):
            raise InvalidArgumentError(f"{text!r} is on another machine; give a local path")
        if "?" in rest or "#" in rest:
            raise InvalidArgumentError(
                f"{text!r} has a query or a fragment, and a path has none; write %3F for ? and "
                "%23 for #"
            )
        text = unquote(slash + rest)
    elif "://" in text:
        raise _no_location(text)
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{text!r} is no path of a repository")
    return Path(os.path.abspath(os.path.expanduser(text)))


def owner_of(location: str) -> int | None:
    """Return the process that alone can open a location; None where others can, too."""
    return os.getpid() if location.startswith(MEMORY) else None


def check_owner(location: str, owner: int | None) -> None:
    """Refuse to open in this process what is in the memory of another.

    Raises
    ------
    CasZarrError
        If `owner`, of `owner_of`, is another process.
    """
    if owner not in (None, os.getpid()):
        raise CasZarrError(
            f"{location} is in the memory of process {owner} and cannot be opened in another; "
            "use a folder or object storage"
        )
