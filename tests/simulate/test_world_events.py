"""People act in the middle of a run: they pause a sequence, resume it, a lead opts out, a trigger is taken off."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.moments import span_us
from simulate.driver import Progress
from simulate.rehearsal import Rehearsed

DEVICES, LEADS = 20, 400
PAUSE, RESUME = 4, 9
SET_ACTIVE = "UPDATE sequences SET is_active = $1 WHERE name = '30 Day Fitness' RETURNING dripline_us(dripline_now())"


class Acts:
    """Runs SQL after given ticks and notes the moment it returned.

    Args:
        world: whose database.
        acts: SQL and arguments by the number of ticks gone by.
    """

    def __init__(self, world: Any, acts: dict[int, tuple[Any, ...]]) -> None:
        self._world, self._acts, self.moments_us = world, acts, []

    def __call__(self, progress: Progress) -> None:
        act = self._acts.pop(progress.ticks, None)
        if act is not None:
            self.moments_us.append(self._world.value(*act))


def slots(done: Rehearsed, sequence: str) -> list[int]:
    """When messages of a sequence left."""
    steps = [index for index, (name, _) in enumerate(done.receipts.steps) if name == sequence]
    rows = done.receipts.rows
    return sorted(rows["slot_us"][[step in steps for step in rows["step"].tolist()]].tolist())


@pytest.mark.slow
def test_a_paused_sequence_is_silent_until_it_is_resumed(world):
    acts = Acts(world, {PAUSE: (SET_ACTIVE, False), RESUME: (SET_ACTIVE, True)})
    done = world.rehearse(acts, devices=DEVICES, leads=LEADS, days=5, tick_s=15.0)
    assert done.outcome.good
    assert done.outcome.completed == done.outcome.enrolled >= LEADS
    paused_us, resumed_us = acts.moments_us
    assert resumed_us - paused_us >= span_us((RESUME - PAUSE) * 15)

    fitness, crypto = slots(done, "30 Day Fitness"), slots(done, "Crypto Basics")
    assert any(slot_us < paused_us for slot_us in fitness)
    assert [slot_us for slot_us in fitness if paused_us <= slot_us < resumed_us] == []
    assert any(slot_us >= resumed_us for slot_us in fitness)
    assert any(paused_us <= slot_us < resumed_us for slot_us in crypto)


def test_an_opt_out_stops_a_lead_for_good(world):
    half = "phone < '999100000200'"
    opt_out = f"""WITH out AS (UPDATE leads SET opted_out_at = dripline_now() WHERE {half} RETURNING 1)
        SELECT dripline_us(dripline_now()) FROM out"""
    acts = Acts(world, {2: (opt_out,)})
    done = world.rehearse(acts, devices=DEVICES, leads=LEADS, days=5, tick_s=15.0)
    assert done.outcome.good
    rows, (at_us,) = done.receipts.rows, acts.moments_us
    theirs = rows["phone"] < b"999100000200"
    assert 0 < (theirs & (rows["slot_us"] <= at_us)).sum() < 200
    assert not (theirs & (rows["slot_us"] > at_us)).any()

    states = world.rows(
        f"""SELECT {half} AS out, c.status, c.stop_reason,
                   coalesce(l.trigger, '') LIKE '%' || c.entry_trigger || '%' AS carries,
                   count(*) FROM sequence_contacts c JOIN leads l ON l.id = c.lead_id
            GROUP BY 1, 2, 3, 4 ORDER BY 1, 2"""
    )
    assert [tuple(row)[:3] for row in states] == [(False, "completed", None), (True, "stopped", "opted out")]
    assert states[1]["carries"] is True
    assert (states[0]["count"], states[1]["count"]) == (done.outcome.completed, done.outcome.stopped)


@pytest.mark.slow
def test_a_trigger_taken_off_by_hand_stops_its_enrolment_only(world):
    take_off = """WITH off AS (UPDATE leads SET trigger = dripline_without(trigger, 'fitness_start')
        WHERE trigger LIKE '%fitness_start%' AND trigger LIKE '%crypto_welcome%' RETURNING 1)
        SELECT count(*) FROM off"""
    acts = Acts(world, {5: (take_off,)})
    done = world.rehearse(acts, devices=DEVICES, leads=LEADS, days=5, tick_s=15.0)
    assert done.outcome.good
    (both,) = acts.moments_us
    assert done.outcome.stopped == both > 5
    assert done.outcome.completed == done.outcome.enrolled - both
    stopped = world.rows("SELECT DISTINCT entry_trigger, stop_reason FROM sequence_contacts WHERE status = 'stopped'")
    assert [tuple(row) for row in stopped] == [("fitness_start", "trigger removed")]
