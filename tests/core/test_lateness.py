"""Where messages go that are too late: the course keeps its timetable, and a later day its time on the wall."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.lateness import Late, moves_of
from dispatcher.core.moments import NEVER_US, from_datetime, to_datetime
from dispatcher.core.windows import DAYS, Window

HOUR_US = 3_600_000_000
STEPS = (Step("one", "1", "two", 6, is_entry=True), Step("two", "2", "three", 24), Step("three", "3"))


def moved(when_late, step, due, now, time_zone=None, window=None):
    """Step and due moment of one that is late."""
    catalogue = Catalogue.of([Sequence(1, "A", True, STEPS, send_window=window, max_lateness_h=1, when_late=when_late)])
    one = np.array([1])
    late = Late(one, one, one, one, np.array([from_datetime(due)]), [step], [time_zone])
    moves = moves_of(late, catalogue, from_datetime(now), HOUR_US)
    assert moves.skipped.tolist() == [when_late == "skip"]
    return moves.next_trigger[0], int(moves.next_due_us[0])


@pytest.mark.parametrize(("step", "following", "after_h"), [("one", "two", 6), ("two", "three", 24)])
def test_what_follows_a_skipped_step_is_due_as_if_that_had_been_sent_in_time(step, following, after_h):
    due = datetime(2026, 1, 5, 8, tzinfo=UTC)
    found = moved("skip", step, due, due + timedelta(days=9))
    assert found == (following, from_datetime(due + timedelta(hours=after_h)))


def test_after_the_last_step_nothing_is_due():
    due = datetime(2026, 1, 5, 8, tzinfo=UTC)
    assert moved("skip", "three", due, due) == (None, NEVER_US)


def test_what_follows_a_skipped_step_waits_for_its_window():
    window = Window(time(9), time(20), "UTC", DAYS)
    due = datetime(2026, 1, 5, 18, tzinfo=UTC)
    assert moved("skip", "one", due, due, window=window)[1] == from_datetime(datetime(2026, 1, 6, 9, tzinfo=UTC))


@pytest.mark.parametrize(
    ("zone", "due", "now", "then"),
    [
        ("Europe/Berlin", "2026-03-28 20:00", "2026-03-29 09:00", "2026-03-29 20:00"),
        ("Europe/Berlin", "2026-10-24 20:00", "2026-10-25 20:00", "2026-10-26 20:00"),
        ("Europe/Berlin", "2026-03-27 02:30", "2026-03-28 03:00", "2026-03-29 03:30"),
        ("Asia/Kuala_Lumpur", "2026-01-05 20:00", "2026-01-05 23:00", "2026-01-06 20:00"),
        ("Asia/Kuala_Lumpur", "2026-01-05 20:00", "2026-01-09 19:59", "2026-01-09 20:00"),
    ],
)
def test_a_shifted_step_leaves_at_the_same_time_on_the_wall(zone, due, now, then):
    clock = ZoneInfo(zone)
    due, now, then = (datetime.fromisoformat(text).replace(tzinfo=clock) for text in (due, now, then))
    step, due_us = moved("shift", "one", due, now, zone)
    assert (step, to_datetime(due_us).astimezone(clock)) == ("one", then)
