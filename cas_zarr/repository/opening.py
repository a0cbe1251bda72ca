"""Where a repository is: its address, its hash, and the repositories of this process' memory."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import HashFunction, hash_by_name
from cas_zarr.errors import InvalidArgumentError, InvalidCIDError
from cas_zarr.repository.refs import MemoryRefs

__all__ = ["MEMORY", "SharedMemory", "hash_named", "in_memory", "path_of", "same_hash"]

MEMORY = "memory://"


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
    """Return the folder that a path or a file:// address means."""
    if text.startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise InvalidArgumentError(f"{text!r} is on another machine; give a local path")
        text = unquote(parts.path)
    elif "://" in text:
        raise InvalidArgumentError(
            f"{text!r} cannot be opened: a repository is a folder, or memory:// in this process"
        )
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{text!r} is no path of a repository")
    return Path(os.path.abspath(text))
