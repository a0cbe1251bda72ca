"""Times: microseconds since 1970-01-01 UTC, and what people write for them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from cas_zarr.errors import InvalidArgumentError

__all__ = ["TIME_PATTERN", "When", "format_time", "to_micros"]

When = datetime | str | int
"""A moment: a `datetime` (UTC where it has no zone), ISO 8601 text, or microseconds."""

TIME_PATTERN = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
"""What text of a time is: ``2026-01-31``, ``2026-01-31T12:00``, ``2026-01-31T12:00:05.25Z``."""

_TIME = re.compile(TIME_PATTERN)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(when: When, *, end: bool = False) -> int:
    """Return the microseconds since 1970-01-01 UTC of a moment.

    Parameters
    ----------
    when : datetime, str or int
        A time without a zone is UTC. Text is a day, a minute, a second, or exact.
    end : bool
        Of a day, a minute or a second in text take the last microsecond, not the first.

    Raises
    ------
    InvalidArgumentError
        If it is no moment.
    """
    if isinstance(when, int) and not isinstance(when, bool):
        return when
    unit = _MICROSECOND
    if isinstance(when, str):
        if _TIME.fullmatch(when) is None:
            raise InvalidArgumentError(
                f"{when!r} is no time; write 2026-01-31, 2026-01-31T12:00 or 2026-01-31T12:00:05Z"
            )
        try:
            moment = datetime.fromisoformat(when)
        except ValueError as error:
            raise InvalidArgumentError(f"{when!r} is no time: {error}") from None
        if "T" not in when:
            unit = timedelta(days=1)
        elif "." not in when:
            unit = timedelta(seconds=1) if when.count(":", 0, 19) == 2 else timedelta(minutes=1)
    elif isinstance(when, datetime):
        moment = when
    else:
        raise InvalidArgumentError(
            f"{when!r} is no time; give a datetime, text as 2026-01-31T12:00, or microseconds"
        )
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - _EPOCH
    return (since + unit) // _MICROSECOND - 1 if end else since // _MICROSECOND


def format_time(time: int) -> str:
    """Return the text of a time, to the second; of one that no calendar has, the number."""
    try:
        return (_EPOCH + timedelta(microseconds=time)).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        return f"{time} µs"
