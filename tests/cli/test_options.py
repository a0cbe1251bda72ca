"""What people write for durations, times, shares and boxes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from cas_zarr.cli.options import AGE, BOX, DURATION, FIRST_MOMENT, LAST_MOMENT, SHARE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", timedelta(0)),
        ("90d", timedelta(days=90)),
        ("1.5h", timedelta(minutes=90)),
        ("30 m", timedelta(minutes=30)),
        ("45s", timedelta(seconds=45)),
        (" 2w ", timedelta(weeks=2)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    assert DURATION.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1y", "1d2h", "nan d", "9999999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no duration; write 90d"):
        DURATION.convert(text, None, None)


def test_a_duration_that_no_computer_can_count_is_refused() -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert("999999999w", None, None)


def test_moments() -> None:
    day = datetime(2026, 1, 31, tzinfo=UTC)
    assert FIRST_MOMENT.convert("2026-01-31", None, None) == day
    last = LAST_MOMENT.convert("2026-01-31", None, None)
    assert last == day + timedelta(days=1) - timedelta(microseconds=1)
    noon = FIRST_MOMENT.convert("2026-01-31T14:00+02:00", None, None)
    assert noon == day + timedelta(hours=12)
    before = datetime.now(UTC)
    ago = LAST_MOMENT.convert("30d", None, None) + timedelta(days=30)
    assert before <= ago <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-02-30", "2026-1-1", "9999999999d"])
def test_what_is_no_moment(text: str) -> None:
    for kind in (FIRST_MOMENT, LAST_MOMENT, AGE):
        with pytest.raises(click.BadParameter, match="is no time; write 2026-01-31"):
            kind.convert(text, None, None)


def test_an_age_is_a_duration_or_a_moment() -> None:
    assert AGE.convert("90d", None, None) == timedelta(days=90)
    assert AGE.convert("2026-01-31", None, None) == datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"), [("5%", 0.05), ("0.05", 0.05), ("0", 0), ("100%", 1)]
)
def test_shares(text: str, expected: float) -> None:
    assert SHARE.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "%", "5", "-1%", "101%", "nan", "x"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"write 5% or 0\.05"):
        SHARE.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:10,:,3:4", ((0, 10), (None, None), (3, 4))),
        ("3", ((3, 4),)),
        ("-1", ((-1, None),)),
        ("-10:, 5:-1", ((-10, None), (5, -1))),
    ],
)
def test_boxes(text: str, expected: object) -> None:
    assert BOX.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "a", "1:2:3", "0:10,", "1-2"])
def test_what_is_no_box(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no range of an array's index"):
        BOX.convert(text, None, None)
