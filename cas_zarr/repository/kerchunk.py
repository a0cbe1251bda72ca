"""References as kerchunk and VirtualiZarr write them: keys, and which range of which file each is.

JSON of version 0 (a dict of keys) and 1 (with templates), and folders of parquet files.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from cas_zarr.blocks.carsource import is_url, open_source
from cas_zarr.blocks.referencetable import Place
from cas_zarr.errors import InvalidArgumentError, MissingDependencyError, StorageError
from cas_zarr.tree.keys import check_key

__all__ = ["absolute", "is_parquet", "parse", "read_parquet"]

_TEMPLATE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_INDEX: Final = ".zmetadata"
_FILE = re.compile(r"refs\.([0-9]{1,18})\.parq")


def parse(
    value: Mapping[str, Any], folder: str, name: str
) -> tuple[dict[str, bytes], dict[str, Place]]:
    """Return the values that stand in references themselves, and the places of the others.

    Parameters
    ----------
    value : mapping
        What is in a JSON file of references.
    folder : str
        What paths are relative to.
    name : str
        Of the references, for messages.

    Raises
    ------
    InvalidArgumentError
        If they mean nothing.
    StorageError, RemoteError
        If the size of a file is asked for, and it cannot be read.
    """
    refs = value.get("refs", value) if "version" in value or "refs" in value else value
    templates = value.get("templates", {}) if refs is not value else {}
    if value.get("version", 1) not in (0, 1):
        raise InvalidArgumentError(f"{name}: version {value.get('version')!r} is not known here")
    if not isinstance(refs, Mapping) or not isinstance(templates, Mapping):
        raise InvalidArgumentError(f"{name}: refs and templates are not maps, as kerchunk has them")
    if value.get("gen"):
        raise InvalidArgumentError(
            f"{name} generate keys (gen), which is not done here; write them out first"
        )
    held: dict[str, bytes] = {}
    places: dict[str, Place] = {}
    fill = partial(_fill, templates, name)
    for key, entry in refs.items():
        if not isinstance(key, str):
            raise InvalidArgumentError(f"{name}: {key!r} is no key; keys are text")
        if isinstance(entry, (list, tuple)):
            places[key] = _place(entry, folder, f"{name}: {key!r}", fill)
        else:
            held[key] = _bytes_of(entry, f"{name}: {key!r}")
    return held, places


def _fill(templates: Mapping[str, Any], name: str, text: str) -> str:
    try:
        filled = _TEMPLATE.sub(lambda match: str(templates[match[1]]), text)
    except KeyError as error:
        raise InvalidArgumentError(f"{name} have no template {error}") from None
    if "{{" in filled:
        raise InvalidArgumentError(
            f"{name}: the template in {text[:80]!r} is not understood; write it out first"
        )
    return filled


def _place(entry: Sequence[Any], folder: str, what: str, fill: Callable[[str], str]) -> Place:
    """Read ``[url]`` or ``[url, offset, length]``."""
    url, *numbers = entry or (None,)
    whole = not numbers
    if (
        not isinstance(url, str)
        or len(numbers) not in (0, 2)
        or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
    ):
        raise InvalidArgumentError(f"{what} is {entry!r}, not [url] or [url, offset, length]")
    source = absolute(fill(url), folder)
    return Place(source, 0, _size_of(source)) if whole else Place(source, *numbers)


def _size_of(source: str) -> int:
    if is_url(source):
        opened = open_source(source)
        opened.close()
        return opened.size
    try:
        return os.stat(source).st_size
    except (OSError, ValueError) as error:
        raise StorageError(f"{source} cannot be read: {error}; check its path") from error


def absolute(source: str, folder: str) -> str:
    """Return a source as a URL of HTTP or an absolute path."""
    if is_url(source):
        return source
    if source.startswith("file://"):
        source = source.removeprefix("file://").removeprefix("localhost")
        if not os.path.exists(source):  # as URLs are, and as many write them, unquoted
            source = unquote(source)
    if "://" in source:
        raise InvalidArgumentError(
            f"{source} cannot be referred to: local files and http(s) can; download it, or give "
            "its address of http"
        )
    return os.path.abspath(os.path.join(folder, source))


def _bytes_of(entry: Any, what: str) -> bytes:
    """Return bytes that stand in the references themselves."""
    if isinstance(entry, bytes):
        return entry
    if not isinstance(entry, (dict, str)):
        raise InvalidArgumentError(f"{what} is {type(entry).__name__}, and no reference")
    try:
        if isinstance(entry, dict):  # a document that was not made text
            return json.dumps(entry).encode()
        if not entry.startswith("base64:"):
            return entry.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{what} cannot be written as text: {error}") from None
    try:
        return base64.b64decode(entry.removeprefix("base64:"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgumentError(f"{what} is no base64: {error}") from None


# -- folders of parquet files ----------------------------------------------------------------------


def is_parquet(folder: Path) -> bool:
    """Tell whether a folder holds references in parquet files, and no Zarr."""
    try:
        value = json.loads((folder / _INDEX).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "record_size" in value


def read_parquet(folder: Path) -> dict[str, Any]:
    """Return the references of a folder of parquet files, as `parse` takes them.

    Only what the files have is gone through, whatever shape an array claims.

    Raises
    ------
    InvalidArgumentError
        If it is none of kerchunk's.
    StorageError
        If a file cannot be read.
    MissingDependencyError
        Without pandas and what reads parquet.
    """
    index = json.loads((folder / _INDEX).read_bytes())
    documents, records = index.get("metadata"), index["record_size"]
    if not isinstance(documents, dict) or type(records) is not int or records < 1:
        raise InvalidArgumentError(f"{folder}/{_INDEX} is not as kerchunk writes it")
    refs: dict[str, Any] = dict(documents)
    for key, document in documents.items():
        check_key(key)
        path, _, name = key.rpartition("/")
        if name != ".zarray":
            continue
        try:
            pairs = zip(document["shape"], document["chunks"], strict=True)
            grid = [-(-side // chunk) for side, chunk in pairs]
            separator = document.get("dimension_separator") or "."
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            raise InvalidArgumentError(f"{folder}: {key!r} is not the document of an array") from (
                None
            )
        for file in sorted((folder / path).glob("refs.*.parq")):
            found = _FILE.fullmatch(file.name)
            if found is None:
                continue
            for number, entry in _entries(file, int(found[1]) * records, math.prod(grid)):
                chunk = separator.join(map(str, _unravel(number, grid))) or "0"
                refs[f"{path}/{chunk}" if path else chunk] = entry
    return refs


def _entries(file: Path, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Yield the references in a file, each with the number of its chunk, which is below `stop`."""
    try:
        table = import_module("pandas").read_parquet(file)
        none = [None] * len(table)
        paths, raws = (
            table[name].astype(object).tolist() if name in table else none
            for name in ("path", "raw")
        )
        offsets, sizes = (
            table[name].fillna(0).astype("int64").tolist() if name in table else [0] * len(none)
            for name in ("offset", "size")
        )
    except ImportError:
        raise MissingDependencyError(
            f"reading {file} needs pandas and fastparquet; install them with: pip install "
            "'cas-zarr[import]' fastparquet"
        ) from None
    except Exception as error:  # of a reader of parquet, about anything in the file
        raise StorageError(f"{file} cannot be read as parquet: {error}") from error
    rows = zip(range(start, stop), paths, offsets, sizes, raws, strict=False)
    for number, path, offset, size, raw in rows:
        if isinstance(raw, bytes):
            yield number, raw
        elif isinstance(path, str):
            yield number, [path, offset, size] if offset or size else [path]


def _unravel(number: int, grid: Sequence[int]) -> list[int]:
    place = []
    for side in reversed(grid):
        number, at = divmod(number, side)
        place.append(at)
    return place[::-1]
