"""The log of refs: what each move of a branch or a tag replaced, so that it can be brought back.

A log is lines, oldest first. A line is 32 hex digits, the first 16 bytes of the BLAKE3 of what
follows them; a space; and canonical DAG-JSON without a line break of its own::

    {"new":{"commit":link,"work":link},"old":null,"ref":"heads/main","time":0,"why":""}

A line is written before its ref moves, so the last one may tell of a move that never came to be,
and one that a crash has torn is no damage: its ref has not moved. Anything else that is not as it
was written is noticed, and costs no other line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Self

from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, CidBytes, Link, ReadableCids
from cas_zarr.codecs import dagjson
from cas_zarr.codecs.dagjson import Value
from cas_zarr.errors import FormatError
from cas_zarr.repository.records import Branch, Tag, link_of

__all__ = ["MAX_LINE", "RefMove", "is_torn", "mended", "read_lines", "without"]

MAX_WHY_BYTES = 1024
MAX_LINE = 16 * 1024
"""More than any line has: a name and a reason with every byte escaped, and four links."""

_CHECK = 32
_MAX_JOINED = 64  # places at which a damaged line is tried as two
_BEGIN = re.compile(rb"[0-9a-f]{32} \{")
_FIELDS = {"new", "old", "ref", "time", "why"}
_KINDS: dict[str, Literal["branch", "tag", "kept root"]] = {
    "heads": "branch",
    "tags": "tag",
    "conflicts": "kept root",
}


@dataclass(frozen=True, slots=True, repr=False)
class RefMove(ReadableCids):
    """One move of a ref, as the log has it.

    Attributes
    ----------
    ref : str
        ``heads/<branch>``, ``tags/<tag>``, or the name of a kept root, ``conflicts/…``.
    old, new : Branch, Tag or None
        What it was and what it became; None where it was not there. Moves that change only the
        working root are not logged as sessions make them, so `old` may have a later working root
        than the move before it.
    time : int
        Microseconds since 1970-01-01 UTC, by the clock of the writer.
    why : str
        The reason, which may be empty.
    """

    ref: str
    old: Branch | Tag | None
    new: Branch | Tag | None
    time: int
    why: str = ""

    @property
    def kind(self) -> Literal["branch", "tag", "kept root"]:
        """What moved."""
        return _KINDS[self.ref.partition("/")[0]]

    @property
    def name(self) -> str:
        """The name as it is used in a version."""
        return self.ref if self.kind == "kept root" else self.ref.partition("/")[2]

    def names(self, commits: Set[CidBytes]) -> bool:
        """Tell whether it went from or to one of some commits."""
        return any(
            record is not None and record.commit in commits for record in (self.old, self.new)
        )

    def to_line(self) -> bytes:
        """Return the line of this move, with its end."""
        value: Value = {
            "new": _to_value(self.new),
            "old": _to_value(self.old),
            "ref": self.ref,
            "time": self.time,
            "why": _shorten(self.why),
        }
        text = dagjson.encode(value)
        return _check(text) + b" " + text + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Read a line, without its end; FormatError if it is not as it was written."""
        if not _is_whole(line):
            raise FormatError("its bytes do not match its check")
        value = dagjson.decode(line[_CHECK + 1 :])
        if not isinstance(value, dict) or set(value) != _FIELDS:
            raise FormatError("it has missing or unknown fields; a newer cas_zarr may know them")
        ref, time, why = value["ref"], value["time"], value["why"]
        if not isinstance(ref, str) or ref.partition("/")[0] not in _KINDS:
            raise FormatError("it names no ref")
        if isinstance(time, bool) or not isinstance(time, int) or not isinstance(why, str):
            raise FormatError("its time or its reason is none")
        tag = ref.startswith("tags/")
        return cls(ref, _from_value(value["old"], tag), _from_value(value["new"], tag), time, why)


def _shorten(why: str) -> str:
    """Return the first line of a reason, as far as there is room for it."""
    line = (why.splitlines() or [""])[0]
    return line.encode("utf-8", "replace")[:MAX_WHY_BYTES].decode("utf-8", "ignore")


def read_lines(data: bytes) -> Iterator[tuple[int, bytes, list[RefMove | FormatError]]]:
    """Yield the lines of a log: the number, from 1, the bytes without the end, what they say.

    A line says one move. A damaged one says an error, and the moves that can still be read: two
    where it was the end between two lines that was hurt. A torn last line is left out.
    """
    lines = data.split(b"\n")
    tail = lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line, _read(line)
    if tail and not is_torn(tail):
        yield len(lines) + 1, tail, _read(tail)


def is_torn(tail: bytes) -> bool:
    """Tell whether what follows the last end of a line is what a crash has left of one."""
    return len(tail) < MAX_LINE and not any(isinstance(one, RefMove) for one in _read(tail))


def without(
    data: bytes, before: int | None, commits: Set[CidBytes] = frozenset()
) -> tuple[bytes, int]:
    """Return a log without old moves, and how many those were.

    Old is what was before a time (microseconds), or names one of `commits`. Damaged lines that
    stand before a move that is too early go as well.
    """
    kept: list[bytes] = []
    dropped = 0
    early = False
    for _, line, found in reversed(list(read_lines(data))):
        moves = [one for one in found if isinstance(one, RefMove)]
        late = [move for move in moves if before is None or move.time >= before]
        early = early or len(late) < len(moves)
        if all(move.names(commits) for move in late) and (moves or early):
            dropped += len(moves)
        else:
            kept.append(line + b"\n")
    return b"".join(reversed(kept)), dropped


def mended(data: bytes) -> tuple[bytes, int]:
    """Return a log without its damaged lines, and how many those were.

    A line that is as it was written stays, whoever can read it.
    """
    kept: list[bytes] = []
    hurt = 0
    for _, line, found in read_lines(data):
        if _is_whole(line):
            kept.append(line + b"\n")
        else:
            hurt += 1
            kept.extend(one.to_line() for one in found if isinstance(one, RefMove))
    return b"".join(kept), hurt


def _is_whole(line: bytes) -> bool:
    return line[_CHECK : _CHECK + 1] == b" " and line[:_CHECK] == _check(line[_CHECK + 1 :])


def _read(line: bytes) -> list[RefMove | FormatError]:
    try:
        return [RefMove.from_line(line)]
    except FormatError as error:
        reason = error
    if len(line) > 2 * MAX_LINE:
        return [reason]
    # Lines whose end is another byte now have become one line.
    for match in islice(_BEGIN.finditer(line), _MAX_JOINED):
        ends = [line[: match.start() - 1], line[match.start() :]] if match.start() else [line[:-1]]
        moves = [_move(part) for part in ends]
        if None not in moves:
            return [
                *(move for move in moves if move is not None),
                FormatError("its end is damaged"),
            ]
    return [reason]


def _move(line: bytes) -> RefMove | None:
    try:
        return RefMove.from_line(line)
    except FormatError:
        return None


def _to_value(record: Branch | Tag | None) -> Value:
    if record is None:
        return None
    if isinstance(record, Tag):
        return {"commit": Link(record.commit)}
    return {
        "commit": None if record.commit is None else Link(record.commit),
        "work": None if record.work is None else Link(record.work),
    }


def _from_value(value: Value, tag: bool) -> Branch | Tag | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != ({"commit"} if tag else {"commit", "work"}):
        raise FormatError("it holds something else than a ref's record")
    commit = link_of(value["commit"], DAG_CBOR)
    if not tag:
        return Branch(commit, link_of(value["work"], DAG_JSON))
    if commit is None:
        raise FormatError("it holds a tag without a commit")
    return Tag(commit)


def _check(text: bytes) -> bytes:
    return BLAKE3.digest(text)[: _CHECK // 2].hex().encode()
