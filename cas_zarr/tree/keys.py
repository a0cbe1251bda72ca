"""The grammar of keys: which are possible, which are documents, and which are chunks.

A chunk key reads, behind the folder of its array, ``c``, ``c(/N)+``, ``c(.N)+``, ``N(.N)*`` or
``N(/N)+`` with N below 2**32 and at most 32 of them. The form of a chunk tree names the kind and
the number of dimensions: ``c``, ``c/3``, ``c.3``, ``.3``, ``/3``.

Source: docs/format.md, Keys; Zarr v3 specification, chunk key encodings; Zarr v2, chunk keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cas_zarr.errors import CasZarrError, FormatError, InvalidKeyError
from cas_zarr.tree.morton import COORDINATE_BITS, MAX_NDIM

__all__ = [
    "DOCUMENTS",
    "MAX_DEPTH",
    "MAX_KEY_BYTES",
    "OWNERS",
    "PLAIN_LENGTH",
    "check_key",
    "check_segment",
    "chunk_key",
    "chunk_names",
    "form_of",
    "is_plain",
    "parse_chunk",
    "parse_chunks",
    "parse_form",
    "split_key",
]

DOCUMENTS: Final = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
OWNERS: Final = frozenset({"zarr.json", ".zarray"})
"""Documents whose presence makes the chunk-like keys below a node its chunks."""

MAX_KEY_BYTES: Final = 1024
MAX_DEPTH: Final = 64

_ZERO, _NINE = b"09"
_NEWLINE: Final = ord("\n")
_N = r"(?:0|[1-9][0-9]{0,9})"
_CHUNK = re.compile(rf"c|(c)((?:/{_N})+)|(c)((?:\.{_N})+)|{_N}(?:\.{_N})*|{_N}(?:/{_N})+", re.ASCII)
_FORM = re.compile(r"c|(c/|c\.|\.|/)([1-9][0-9]?)", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*", re.ASCII)

PLAIN_LENGTH: Final = 128
"""A key shorter than this that `is_plain` matches can be stored; others are looked at closely."""
is_plain = _PLAIN.fullmatch


def check_key(key: str) -> None:
    """Refuse a key that cannot be stored.

    Raises
    ------
    InvalidKeyError
        If it has an empty segment, ".", "..", NUL or a lone surrogate, or is longer than 1 KiB
        or deeper than 64 segments.
    """
    if isinstance(key, str) and len(key) < PLAIN_LENGTH and is_plain(key):
        return
    if not isinstance(key, str):
        raise InvalidKeyError(f"a key is text, not {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKeyError(f"key {key[:80]!r} has a lone surrogate; keys are unicode") from None
    if size > MAX_KEY_BYTES:
        raise InvalidKeyError(f"key {key[:80]!r}... has {size} bytes; at most {MAX_KEY_BYTES} can")
    segments = key.split("/")
    if len(segments) > MAX_DEPTH:
        raise InvalidKeyError(
            f"key {key[:80]!r} has {len(segments)} segments; at most {MAX_DEPTH} can"
        )
    for segment in segments:
        check_segment(segment)


def check_segment(segment: str, error: type[CasZarrError] = InvalidKeyError) -> None:
    """Refuse a name that cannot stand between slashes."""
    if segment in ("", ".", "..") or "/" in segment or "\0" in segment:
        raise error(f"a key has the segment {segment[:80]!r}; it cannot be empty, '.', '..' or NUL")
    if len(segment) > MAX_KEY_BYTES:
        raise error(f"a key has a segment of {len(segment)} characters")


def split_key(key: str) -> tuple[str, str]:
    """Return the folder and the last segment of a key."""
    folder, _, name = key.rpartition("/")
    return folder, name


def form_of(kind: str, ndim: int) -> str:
    """Return the form of chunk tree for a kind (``c``, ``c/``, ``c.``, ``.``, ``/``)."""
    return kind if ndim == 0 else f"{kind}{ndim}"


def parse_form(form: str) -> tuple[str, int]:
    """Return kind and number of dimensions of a form.

    Raises
    ------
    FormatError
        If it is none.
    """
    match = _FORM.fullmatch(form)
    if match is None:
        raise FormatError(f"{form[:40]!r} is no form of a chunk tree")
    if match[1] is None:
        return "c", 0
    ndim = int(match[2])
    if ndim > MAX_NDIM or (match[1] == "/" and ndim < 2):
        raise FormatError(f"{form[:40]!r} is no form of a chunk tree")
    return match[1], ndim


def parse_chunk(name: str) -> tuple[str, tuple[int, ...]] | None:
    """Return kind and coordinates if `name`, what follows an array's folder, is a chunk's."""
    if _CHUNK.fullmatch(name) is None:
        return None
    if name == "c":
        return "c", ()
    prefix = "c" if name[0] == "c" else ""
    separator = "/" if "/" in name else "."
    parts = name[len(prefix) :].lstrip("./").split(separator)
    coordinates = tuple(map(int, parts))
    if len(parts) > MAX_NDIM or max(coordinates) >> COORDINATE_BITS:
        return None
    return prefix + separator, coordinates


def parse_chunks(
    keys: Sequence[str], prefix: str, separator: str, ndim: int
) -> NDArray[np.int64] | None:
    """Return the coordinates, shape (n, ndim), of keys that are a prefix and a chunk's numbers.

    None if one of them has another prefix, other separators or not just so many canonical numbers.
    """
    n, head = len(keys), np.frombuffer(prefix.encode("utf-8", "surrogatepass"), np.uint8)
    text = "\n".join(keys).encode("utf-8", "surrogatepass")
    raw = np.frombuffer(text + b"\n", np.uint8)
    before = int((head < _ZERO).sum())  # separators, and what else stands below the digits
    found = np.flatnonzero(raw < _ZERO)
    if len(found) != n * (before + ndim) or _NEWLINE in head:
        return None
    marks = found.reshape(n, before + ndim)
    lines = np.append(0, marks[:-1, -1] + 1)
    if lines[-1] + len(head) >= len(raw):
        return None
    if len(head) and (sliding_window_view(raw, len(head))[lines] != head).any():
        return None
    ends = marks[:, before:]
    if (raw[ends] != [ord(separator)] * (ndim - 1) + [_NEWLINE]).any():
        return None
    starts = np.column_stack([lines + len(head), ends[:, :-1] + 1])
    lengths = ends - starts
    longest = int(lengths.max())
    if lengths.min() < 1 or longest > 10 or ((raw[starts] == _ZERO) & (lengths > 1)).any():
        return None
    if np.count_nonzero(raw > _NINE) != n * np.count_nonzero(head > _NINE):
        return None  # the numbers have something else than digits
    coordinates = np.zeros((n, ndim), np.int64)
    for place in range(longest, 0, -1):  # before the end; shorter numbers add zeros
        coordinates *= 10
        coordinates += (raw[ends - place] - _ZERO) * (lengths >= place)
    return None if (coordinates >> COORDINATE_BITS).any() else coordinates


def chunk_key(form: str, coordinates: tuple[int, ...]) -> str:
    """Return the name of one chunk of a tree of that form."""
    kind = parse_form(form)[0]
    if not coordinates:
        return kind
    return (kind if len(kind) == 2 else "") + kind[-1].join(map(str, coordinates))


def chunk_names(kind: str, coordinates: NDArray[np.int64]) -> list[str]:
    """Return the names of many chunks, whose coordinates have the shape (n, ndim)."""
    ndim = coordinates.shape[1]
    if ndim == 0:
        return ["c"] * len(coordinates)
    template = (kind if len(kind) == 2 else "") + kind[-1].join(["%d"] * ndim)
    return [template % row for row in zip(*coordinates.T.tolist(), strict=True)]
