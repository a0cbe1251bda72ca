"""What a request asks for: response format, CAR parameters, ranges, conditions.

Source: Trustless and Path Gateway specifications, https://specs.ipfs.tech/http-gateways/, RFC 9110.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

__all__ = [
    "CAR_TYPE",
    "RAW_TYPE",
    "Asked",
    "CarOptions",
    "Format",
    "HttpError",
    "byte_range",
    "car_options",
    "choose_format",
    "matches_etag",
    "parse_entity_bytes",
]

RAW_TYPE: Final = "application/vnd.ipld.raw"
CAR_TYPE: Final = "application/vnd.ipld.car"

Format: TypeAlias = Literal["raw", "car", "dag-json", "dag-cbor", "json", "html", "any"]
Scope: TypeAlias = Literal["block", "entity", "all"]

_BY_NAME: Final[dict[str, Format]] = {
    "raw": "raw",
    "car": "car",
    "dag-json": "dag-json",
    "dag-cbor": "dag-cbor",
    "json": "json",
}
_BY_TYPE: Final[dict[str, Format]] = {
    RAW_TYPE: "raw",
    CAR_TYPE: "car",
    "application/vnd.ipld.dag-json": "dag-json",
    "application/vnd.ipld.dag-cbor": "dag-cbor",
    "application/json": "json",
    "text/html": "html",
}
_REFUSED: Final = {
    "tar": "application/x-tar",
    "cbor": "application/cbor",
    "ipns-record": "application/vnd.ipfs.ipns-record",
}
_MAX_ACCEPT = 64  # entries of an Accept header that are looked at
_NUMBER = r"[0-9]{1,18}"
_RANGE = re.compile(rf"bytes=\s*({_NUMBER})?-({_NUMBER})?\s*")
_ENTITY = re.compile(rf"(-?{_NUMBER}):(-?{_NUMBER}|\*)")


class HttpError(Exception):
    """An answer that is no success: its status and what it says, which is meant for anybody."""

    def __init__(self, status: int, text: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes
    ----------
    head : bool
        Whether no body is wanted.
    path : str
        As it was sent, percent-encoded, without the query.
    query : mapping of str to str
        Decoded; of a parameter that is there twice the first.
    headers : mapping of str to str
        Names in lower case.
    """

    head: bool
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CarOptions:
    """How a CAR is to be: duplicate blocks or not, how much of the DAG, which bytes of a file."""

    dups: bool = False
    scope: Scope = "all"
    entity: tuple[int, int | None] | None = None

    @property
    def media_type(self) -> str:
        """The Content-Type of such a CAR."""
        return f"{CAR_TYPE}; version=1; order=dfs; dups={'y' if self.dups else 'n'}"

    @property
    def tag(self) -> str:
        """What tells an ETag of such a CAR from others."""
        entity = ""
        if self.entity is not None:
            start, stop = self.entity
            entity = f".{start}_{'end' if stop is None else stop}"
        return f"{self.scope}{entity}.dfs.{'y' if self.dups else 'n'}"


def choose_format(asked: Asked) -> tuple[Format, Mapping[str, str]]:
    """Return the format that is wanted, and the parameters that came with it in Accept.

    Raises
    ------
    HttpError
        406 where it is a format that is not served here.
    """
    entries = _accepted(asked.headers.get("accept", ""))
    name = asked.query.get("format")
    if name:
        if name in _BY_NAME:
            chosen = _BY_NAME[name]
            for media, parameters in entries:
                if _BY_TYPE.get(media) == chosen:
                    return chosen, parameters
            return chosen, {}
        known = ", ".join(_BY_NAME)
        status = 406 if name in _REFUSED else 400
        raise HttpError(status, f"format {name[:40]!r} is not served here; ask for {known}")
    refused = ""
    for media, parameters in entries:
        found = _BY_TYPE.get(media)
        if found == "car" and _car_fault(parameters):
            refused = refused or _car_fault(parameters)
            continue
        if found is not None:
            return found, parameters
        if media in _REFUSED.values():
            refused = refused or f"{media} is not served here"
            continue
        return "any", {}  # */*, image/*, or whatever else: the bytes as they are
    if refused:
        raise HttpError(406, f"{refused}; ask for {RAW_TYPE} or {CAR_TYPE}; version=1; order=dfs")
    return "any", {}


def _accepted(text: str) -> list[tuple[str, dict[str, str]]]:
    """Return media types and their parameters, the most wanted first."""
    found: list[tuple[float, str, dict[str, str]]] = []
    for entry in text.split(",")[:_MAX_ACCEPT]:
        media, *rest = (part.strip() for part in entry.split(";"))
        parameters: dict[str, str] = {}
        for part in rest:
            key, _, value = part.partition("=")
            parameters.setdefault(key.strip().lower(), value.strip().strip('"'))
        try:
            weight = float(parameters.pop("q", "1"))
        except ValueError:
            weight = 0.0
        if media and weight > 0:
            found.append((weight, media.lower(), parameters))
    found.sort(key=lambda one: -one[0])  # stable: those that came first stay first
    return [(media, parameters) for _, media, parameters in found]


def _car_fault(parameters: Mapping[str, str]) -> str:
    if parameters.get("version", "1") != "1":
        return "cars of another version than 1 are not served here"
    if parameters.get("order", "dfs") not in ("dfs", "unk", ""):
        return "cars of another order than dfs are not served here"
    if parameters.get("dups", "n") not in ("y", "n", ""):
        return "dups of a car is y or n"
    return ""


def car_options(asked: Asked, parameters: Mapping[str, str]) -> CarOptions:
    """Return how the CAR is to be; what the query says comes before what Accept says.

    Raises
    ------
    HttpError
        400 where a parameter makes no sense.
    """
    names = {"version": "car-version", "order": "car-order", "dups": "car-dups"}
    given = dict(parameters)
    given.update({name: asked.query[key] for name, key in names.items() if key in asked.query})
    if fault := _car_fault(given):
        raise HttpError(400, fault)
    scope = asked.query.get("dag-scope", "all") or "all"
    entity = None
    if (text := asked.query.get("entity-bytes")) is not None:
        entity = parse_entity_bytes(text)
        scope = "entity"
    if scope == "block":
        return CarOptions(given.get("dups") == "y", "block", entity)
    if scope == "entity":
        return CarOptions(given.get("dups") == "y", "entity", entity)
    if scope == "all":
        return CarOptions(given.get("dups") == "y", "all", entity)
    raise HttpError(400, f"dag-scope {scope[:40]!r} is none of block, entity and all")


def parse_entity_bytes(text: str) -> tuple[int, int | None]:
    """Return first and last byte of ``from:to``; negative ones count from the end, None is it."""
    match = _ENTITY.fullmatch(text)
    if match is None:
        raise HttpError(400, f"entity-bytes {text[:40]!r} is not from:to, two numbers or from:*")
    first, last = int(match[1]), None if match[2] == "*" else int(match[2])
    if last is not None and (first < 0) == (last < 0) and last < first:
        raise HttpError(400, f"entity-bytes {text[:40]!r} ends before it begins")
    return first, last


def byte_range(asked: Asked, size: int, etag: str) -> tuple[int, int] | None:
    """Return the bytes, from and up to, that Range asks for; None for all of them.

    Several ranges, or a Range that is none, are answered with the whole, as RFC 9110 allows.

    Raises
    ------
    HttpError
        416 where none of the bytes is there.
    """
    match = _RANGE.fullmatch(asked.headers.get("range", ""))
    if match is None or (match[1] is None and match[2] is None):
        return None
    condition = asked.headers.get("if-range")
    if condition is not None and condition.strip() != etag:
        return None
    if match[1] is None:
        start, stop = max(0, size - int(match[2])), size
        if int(match[2]) == 0:
            start = size
    else:
        start = int(match[1])
        stop = size if match[2] is None else min(size, int(match[2]) + 1)
        if match[2] is not None and int(match[2]) < start:
            return None
    if start >= size:
        raise HttpError(
            416, f"there are {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, stop


def matches_etag(asked: Asked, etag: str) -> bool:
    """Tell whether If-None-Match has the ETag, which then need not be sent again."""
    given = asked.headers.get("if-none-match", "")
    bare = etag.removeprefix("W/")
    tags = (tag.strip() for tag in given.split(","))
    return any(tag == "*" or tag.removeprefix("W/") == bare for tag in tags if tag)
