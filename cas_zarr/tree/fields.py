"""Metadata documents field by field: what differs between two, and uniting what two sides changed.

A document is JSON. Its objects are compared and united by their members, recursively; lists and
everything else are one thing each. Values are equal if they read the same in JSON, so 1, 1.0 and
true are three.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from cas_zarr.codecs.dagjson import MAX_DEPTH, fits_depth

__all__ = [
    "MISSING",
    "FieldChange",
    "FieldPath",
    "Side",
    "changed_fields",
    "merge_fields",
    "parse",
    "text_of",
]

FieldPath: TypeAlias = "tuple[str, ...]"
Side: TypeAlias = Literal["base", "ours", "theirs"]


class _Missing:
    """What stands for a field that is not there: JSON has null for something else."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""The value of a field, or a document, that is not there."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field of a document that differs.

    Attributes
    ----------
    path : tuple of str
        Names of the members that lead to it; () is the whole document.
    before, after : Any
        As JSON has it; `MISSING` where there is none; bytes of a document that is no JSON.
    """

    path: FieldPath
    before: Any
    after: Any


def changed_fields(before: bytes | None, after: bytes | None) -> list[FieldChange]:
    """Return the fields that differ between two documents.

    Members that come or go are one change each, in the order of their names. Documents that
    differ in their formatting only have none.

    Parameters
    ----------
    before, after : bytes or None
        The documents; None where there is none.
    """
    if before == after:
        return []
    return list(_changes((), _read(before), _read(after)))


def merge_fields(
    base: bytes | None,
    ours: bytes,
    theirs: bytes,
    *,
    apart: Collection[str] = (),
    prefer: Side = "ours",
) -> tuple[bytes, list[FieldPath]]:
    """Unite what two sides changed in a document.

    The result does not depend on which side is which: it is written like `base`, with new members
    behind the old ones in the order of their names.

    Parameters
    ----------
    base, ours, theirs : bytes
        The document before, and on the two sides; `base` is None where there was none.
    apart : collection of str, optional
        If given, all members of the document but these are one thing, which the sides must not
        change in two ways.
    prefer : "base", "ours" or "theirs"
        Whose value to take where both sides changed a field.

    Returns
    -------
    document : bytes
    conflicts : list of tuple of str
        Fields that both sides changed, to different values; () where the documents are no JSON.
    """
    if ours == theirs:
        return ours, []
    if ours == base:
        return theirs, []
    if theirs == base:
        return ours, []
    values = {"base": _read(base), "ours": _read(ours), "theirs": _read(theirs)}
    if any(isinstance(value, bytes) for value in values.values()):
        sides: dict[Side, bytes | None] = {"base": base, "ours": ours, "theirs": theirs}
        chosen = sides[prefer]
        return ours if chosen is None else chosen, [()]
    conflicts: list[FieldPath] = []
    if apart and all(isinstance(value, dict) for value in values.values() if value is not MISSING):
        _decide(values, apart, prefer, conflicts)
    merged = _merge((), values, prefer, conflicts)
    if merged is MISSING:
        return ours, conflicts
    return _write(merged, base, ours, theirs), conflicts


def parse(document: bytes) -> Any:
    """Return what a document says, or its bytes if it is no JSON that can be written again."""
    if not fits_depth(document, MAX_DEPTH):
        return document
    try:
        return json.loads(document.decode(), object_pairs_hook=_object, parse_float=_float)
    except ValueError:
        return document


def _read(document: bytes | None) -> Any:
    return MISSING if document is None else parse(document)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is there twice")
    return members


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0.0:
        raise ValueError(f"{text} is beyond a double")
    return value


def text_of(value: Any) -> str:
    """Return a text that equal values share."""
    if value is MISSING or isinstance(value, bytes):
        return repr(value)
    return json.dumps(value, sort_keys=True)


def _changes(path: FieldPath, before: Any, after: Any) -> Iterator[FieldChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            inner = before.get(name, MISSING), after.get(name, MISSING)
            yield from _changes((*path, name), *inner)
    elif text_of(before) != text_of(after):
        yield FieldChange(path, before, after)


def _merge(
    path: FieldPath, values: dict[str, Any], prefer: Side, conflicts: list[FieldPath]
) -> Any:
    base, ours, theirs = values["base"], values["ours"], values["theirs"]
    texts = text_of(base), text_of(ours), text_of(theirs)
    if texts[1] == texts[2]:
        if texts[0] == texts[1]:
            return base
        return min(ours, theirs, key=json.dumps) if ours is not MISSING else MISSING
    if texts[1] == texts[0]:
        return theirs
    if texts[2] == texts[0]:
        return ours
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        conflicts.append(path)
        return values[prefer]
    before = base if isinstance(base, dict) else {}
    if before is not base and base is not MISSING:
        conflicts.append(path)
        return values[prefer]
    merged = {}
    new = sorted((ours.keys() | theirs.keys()) - before.keys())
    for name in (*before, *new):
        inner = {
            "base": before.get(name, MISSING),
            "ours": ours.get(name, MISSING),
            "theirs": theirs.get(name, MISSING),
        }
        member = _merge((*path, name), inner, prefer, conflicts)
        if member is not MISSING:
            merged[name] = member
    return merged


def _decide(
    values: dict[str, Any], apart: Collection[str], prefer: Side, conflicts: list[FieldPath]
) -> None:
    """Where both sides changed what has to stay one thing, let both have that of one side."""
    parts = {
        side: {name: member for name, member in (value or {}).items() if name not in apart}
        for side, value in values.items()
    }
    texts = {side: text_of(part) for side, part in parts.items()}
    if texts["ours"] == texts["theirs"] or texts["base"] in (texts["ours"], texts["theirs"]):
        return
    fields = {
        change.path: None
        for side in ("ours", "theirs")
        for change in _changes((), parts["base"], parts[side])
    }
    conflicts.extend(sorted(fields))
    for side in ("ours", "theirs"):
        rest = {name: member for name, member in values[side].items() if name in apart}
        values[side] = parts[prefer] | rest


# -- writing like another document ----------------------------------------------------------

_STYLES: Final[list[dict[str, Any]]] = [
    {"indent": indent, "separators": separators, "ensure_ascii": ascii}
    for indent in (2, 4, None, 1, 0, "\t")
    for separators in ((None, (",", ":")) if indent is None else ((",", ": "), (", ", ": ")))
    for ascii in (True, False)
]


def _write(value: Any, base: bytes | None, ours: bytes, theirs: bytes) -> bytes:
    style = _style(base) if base is not None else None
    if style is None:
        style = _style(ours)
        if style != _style(theirs):
            style = None
    options, end = style or (_STYLES[0], b"")
    return json.dumps(value, **options).encode("utf-8", "surrogatepass") + end


def _style(document: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Return how a document is written, and what follows its last bracket."""
    body = document.rstrip()
    value = parse(document)
    if isinstance(value, bytes):
        return None
    for options in _STYLES:
        if json.dumps(value, **options).encode("utf-8", "surrogatepass") == body:
            return options, document[len(body) :]
    return None
