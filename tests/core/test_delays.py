"""Delays as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.delays import hours_of, minutes_of, parts_of, told


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("36h", 36 * 60),
        ("90m", 90),
        ("2d", 48 * 60),
        ("1.5 h", 90),
        ("P1DT2H", 26 * 60),
        ("PT90M", 90),
        ("P2W", 14 * 24 * 60),
        ("P1DT2H3M", 26 * 60 + 3),
    ],
)
def test_iso_durations_and_short_forms(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("P1M", "months and years have no fixed length: count days"),
        ("P1Y2M", "months and years have no fixed length: count days"),
        ("PT5S", "delays are to the minute: leave the seconds out"),
        ("0.33m", "it has a fraction of a minute"),
        ("9" * 40 + "h", "it is too long"),
        *((text, "a delay such as 36h, 90m, 2d or P1DT2H belongs here") for text in ("", "P", "PT", "24", "1w", "-1h")),
    ],
)
def test_what_is_no_delay_says_why(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        minutes_of(text)


@given(st.integers(0, 2**31 - 1), st.integers(0, 59))
def test_hours_keep_their_minutes(hours: int, minutes: int) -> None:
    assert parts_of(hours_of(hours, minutes)) == (hours, minutes)


def test_delays_are_told() -> None:
    assert [told(delay_h) for delay_h in (0, 36, 1.5, 0.25, 24 + 1 / 60)] == [
        "0 h",
        "36 h",
        "1 h 30 min",
        "15 min",
        "24 h 1 min",
    ]
