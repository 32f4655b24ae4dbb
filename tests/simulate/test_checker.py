"""One thing of a tiny clean world is broken by hand, and exactly that rule is seen to be broken."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date, time
from typing import Any

import numpy as np
import pytest

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.identity import idempotency_key
from dispatcher.core.moments import from_datetime
from dispatcher.core.outcomes import Outcome
from dispatcher.core.windows import Blackout, Window
from simulate.checker import Violations, check, findings
from simulate.evidence import ENROLMENT, LEDGER, NO_DUE, QUOTA, STATUSES, Evidence, Skip, stamps
from simulate.receipts import RECEIPT, Receipts, body_sum
from simulate.rehearsal import START

S_US = 1_000_000
HOUR_US = 3600 * S_US
DAY_US = 24 * HOUR_US
START_US = from_datetime(START)
LABELS = tuple(outcome.label for outcome in Outcome)
FOR_GOOD_US = 2**62


def catalogue(
    last: str | None = None,
    delay_h: float = 24,
    active: bool = True,
    window: Window | None = None,
    late_h: float | None = None,
    first_at: time | None = None,
    at: time | None = None,
) -> Catalogue:
    """Three steps, a day apart; ``last`` follows the third, without a step of that name it leads nowhere."""
    steps = (
        Step("fit", "one", "fit_2", delay_h=delay_h, is_entry=True, at=first_at),
        Step("fit_2", "two", "fit_3", delay_h=24, at=at),
        Step("fit_3", "three", last, delay_h=24),
    )
    late = {"max_lateness_h": late_h, "when_late": "skip"} if late_h is not None else {}
    zone = None if window else "UTC"
    return Catalogue.of([Sequence(7, "Fitness", active, steps, send_window=window, time_zone=zone, **late)])


TUESDAY = date(2026, 1, 6)
"""The day of the second message of the first enrolment."""
NIGHT = Window(time(23), time(0, 0, 10), "UTC")
"""All arrive in it, but the first message of the second enrolment, which comes half a second after it has closed."""
NIGHTS = Window(time(23), time(1), "Asia/Tokyo", ("sun", "tue"))
"""The second message of the first enrolment comes in the night from Monday to Tuesday."""


class World:
    """Enrolment 1 has completed its three steps; enrolment 2 has had its first and waits for its second.

    Both have device 1; moments count from the enrolment, in microseconds.
    """

    def __init__(self) -> None:
        self.receipts: list[dict[str, Any]] = []
        self.ledger: list[dict[str, Any]] = []
        self.enrolments: list[dict[str, Any]] = [
            {"id": 1, "step": 3, "visit": 4, "status": "completed", "due": NO_DUE, "carries": 0},
            {"id": 2, "step": 2, "visit": 2, "status": "active", "due": self._stamp(DAY_US + 11 * S_US), "carries": 1},
        ]
        self.evidence: dict[str, Any] = {"now_us": START_US + 3 * DAY_US}
        for visit in (1, 2, 3):
            self.sent(1, visit, (visit - 1) * (DAY_US + S_US))
        self.sent(2, 1, 10 * S_US)

    @staticmethod
    def _stamp(moment_us: int) -> int:
        return int(stamps(np.int64(START_US + moment_us)))

    def sent(self, enrolment: int, visit: int, slot_us: int, **changes: Any) -> None:
        """A request, due at its slot, that arrived half a second later and was accepted; and its ledger row."""
        self.asked(enrolment, visit, slot_us, **changes)
        self.booked(
            enrolment,
            visit,
            slot_us,
            **{name: changes[name] for name in ("attempt", "key", "device") if name in changes},
        )

    def asked(self, enrolment: int, visit: int, slot_us: int, **changes: Any) -> None:
        """The request alone."""
        self.receipts.append(
            {
                "slot_us": START_US + slot_us, "arrived_us": START_US + slot_us + S_US // 2, "device": 1,
                "step": visit - 1, "visit": visit, "attempt": 1, "phone": f"99910000000{enrolment}".encode(),
                "key": idempotency_key(enrolment, visit, 0), "answer": Outcome.ACCEPTED,
                "body": body_sum(f"{enrolment} {visit}", None), **changes,
            }
        )  # fmt: skip

    def booked(self, enrolment: int, visit: int, slot_us: int, outcome: str = "accepted", **changes: Any) -> None:
        """The ledger row alone."""
        self.ledger.append(
            {
                "key": idempotency_key(enrolment, visit, 0), "enrolment": enrolment, "visit": visit, "attempt": 1,
                "due": self._stamp(slot_us), "reserved": self._stamp(slot_us), "accepted": self._stamp(slot_us),
                "device": 1, "outcome": LABELS.index(outcome) + 1, **changes,
            }
        )  # fmt: skip

    def taken_off(self, enrolment: int, visit: int) -> None:
        """Receipts and ledger rows of a visit were never there."""
        key = idempotency_key(enrolment, visit, 0)
        self.receipts = [row for row in self.receipts if row["key"] != key]
        self.ledger = [row for row in self.ledger if row["key"] != key]

    def judged(self, order: random.Random | None = None) -> tuple[Receipts, Evidence]:
        """What the checker is given; with ``order``, every table shuffled."""
        tables = [list(table) for table in (self.receipts, self.ledger, self.enrolments)]
        if order is not None:
            for table in tables:
                order.shuffle(table)
        enrolments = [
            {"lead": 40 + row["id"], "enrolled": self._stamp(0), "entry": 1, "device": 1, **row}
            | {"status": STATUSES.index(row["status"]) + 1}
            for row in tables[2]
        ]
        evidence = Evidence(
            ledger=_records(tables[1], LEDGER),
            enrolments=_records(enrolments, ENROLMENT),
            catalogue=catalogue(),
            outcomes=LABELS,
            quotas=np.array([(1, START_US, 3, 6), (2, START_US, 3, 6)], QUOTA),
            opted_out={},
            missed=0,
            devices={1: ("id-1", "d-1"), 2: ("id-2", "d-2")},
            hour_s=3600.0,
            ready=frozenset({1, 2}),
        )
        steps = [("Fitness", "fit"), ("Fitness", "fit_2"), ("Fitness", "fit_3"), ("Fitness", "fit_4")]
        return Receipts(_records(tables[0], RECEIPT), steps), replace(evidence, **self.evidence)


def _records(rows: list[dict[str, Any]], kind: np.dtype[Any]) -> np.ndarray:
    table = np.zeros(len(rows), kind)
    for record, row in zip(table, rows, strict=True):
        for name, value in row.items():
            record[name] = value
    return table


def row_of(table: str, place: int, **changes: Any) -> Callable[[World], None]:
    """A change of one row."""
    return lambda world: getattr(world, table)[place].update(changes)


def gone(table: str, place: int) -> Callable[[World], None]:
    """One row is missing."""
    return lambda world: getattr(world, table).pop(place) and None


def told(**evidence: Any) -> Callable[[World], None]:
    """The tester knows something else."""
    return lambda world: world.evidence.update(evidence)


def skipped(late_h: float) -> Callable[[World], None]:
    """The second step was passed over so much later than it was due, where an hour is allowed."""
    skip = Skip(1, 2, 0, "fit_2", START_US, START_US + round(late_h * HOUR_US))
    return told(catalogue=catalogue(late_h=1), skipped=(skip,))


def both(*changes: Callable[[World], None]) -> Callable[[World], None]:
    """Several changes."""
    return lambda world: [change(world) for change in changes] and None


def resent(outcome: Outcome = Outcome.REPEAT, hours: int = 1, **changes: Any) -> Callable[[World], None]:
    """The first message of enrolment 2 is asked for again after an hour."""
    return lambda world: world.asked(2, 1, 10 * S_US + hours * HOUR_US, answer=outcome, attempt=2, **changes)


def doubted(second: dict[str, Any], unknown: str = "in_doubt", arrived: bool = False) -> Callable[[World], None]:
    """The second message of enrolment 2: an attempt nobody knows of, and another one that was accepted."""

    def change(world: World) -> None:
        first_us = DAY_US + 11 * S_US
        if arrived:
            world.asked(2, 2, first_us, answer=Outcome.IN_DOUBT)
        world.booked(2, 2, first_us, unknown)
        world.asked(2, 2, first_us + HOUR_US, attempt=2, **second)
        world.booked(2, 2, first_us + HOUR_US, attempt=2, device=second.get("device", 1))
        world.enrolments[1].update(visit=3, step=3, due=world._stamp(2 * DAY_US + 2 * HOUR_US))

    return change


def ended(status: str, *outcomes: str, **changes: Any) -> Callable[[World], None]:
    """Enrolment 2 ended at its second visit, after attempts with these outcomes."""

    def change(world: World) -> None:
        for attempt, outcome in enumerate(outcomes, 1):
            world.booked(2, 2, DAY_US + attempt * HOUR_US, outcome, attempt=attempt)
        world.enrolments[1].update(status=status, **changes)

    return change


def burst(*after_us: int, answers: tuple[Outcome, ...] = (), device: int = 2) -> Callable[[World], None]:
    """Rejected requests, of an enrolment each, that a device made at these moments after a year."""

    def change(world: World) -> None:
        for place, moment_us in enumerate(after_us):
            id_, at_us = 10 + place, 365 * DAY_US + moment_us
            answer = answers[place] if answers else Outcome.REJECTED
            world.enrolments.append({"id": id_, "step": 1, "visit": 1, "status": "failed", "due": NO_DUE, "carries": 1})
            world.asked(id_, 1, at_us, arrived_us=START_US + at_us, device=device, answer=answer, phone=b"99920")
            world.booked(id_, 1, at_us, "rejected", device=device)

    return change


def lowered(world: World, per_hour: int, at_us: int) -> None:
    """Device 2 has had a smaller hour quota since a moment."""
    year_us = START_US + 365 * DAY_US
    quotas = [(1, START_US, 3, 6), (2, START_US, 3, 6), (2, year_us + at_us, per_hour, 6)]
    world.evidence["quotas"] = np.array(quotas[::-1], QUOTA)


OTHER_KEY = b"another key 16 B"
SECOND_US = DAY_US + S_US
LOST, TWICE, ALTERED = Violations(lost=1), Violations(duplicate=1), Violations(altered=1)
EARLY, UNORDERED = Violations(early=1), Violations(out_of_order=1)
OUTSIDE = Violations(outside_window=1)
STUCK, UNWANTED, OVER_HOUR = Violations(stuck=1), Violations(after_opt_out=1), Violations(over_hour=1)
HOUR_QUOTA = "over the hour's quota"
AFTERNOON_US = (2 * HOUR_US, 2 * HOUR_US + 1, 2 * HOUR_US + 2)
TOO_EARLY = "before its slot or before it was due"
UNKNOWN = "a request under a key that neither ledger nor a lease knows"
STRAYED = "asked for again from another device"
JUMPED = "does not follow from the step before"
BROKEN: dict[str, tuple[Callable[[World], None], Violations, str]] = {
    # 1: nothing is lost
    "accepted, and no ledger row": (both(gone("ledger", 3), row_of("enrolments", 1, visit=1, step=1)), LOST, UNKNOWN),
    "accepted, and refused in the ledger": (
        both(row_of("ledger", 3, outcome=LABELS.index("refused") + 1), row_of("enrolments", 1, visit=1, step=1)),
        LOST,
        "accepted, and the ledger says otherwise",
    ),
    "accepted in the ledger, and never arrived": (
        gone("receipts", 3), LOST, "accepted in the ledger, and never arrived",
    ),
    "a refused request of a key nobody knows": (
        lambda world: world.asked(2, 2, 2 * DAY_US, answer=Outcome.REFUSED), LOST, UNKNOWN,
    ),
    "an enrolment has disappeared": (gone("enrolments", 1), LOST, "an enrolment that is gone"),
    "a step was left out": (lambda world: world.taken_off(1, 2), LOST, "an earlier step was never accepted"),
    "would be sent again": (row_of("enrolments", 1, visit=1, step=1), LOST, "stands at a step that was accepted"),
    "completed before its last step": (
        row_of("enrolments", 1, status="completed", carries=0), LOST, "completed before its last step",
    ),
    "nothing is in doubt": (row_of("enrolments", 1, status="in_doubt"), LOST, "in doubt without an attempt in doubt"),
    "failed, and nobody refused": (ended("failed"), LOST, "failed without a refusal"),
    "a refusal after an unknown attempt taken as failure": (
        ended("failed", "in_doubt", "rejected"), LOST, "failed although an attempt is unknown",
    ),
    "a lead never enrolled": (told(missed=1), LOST, "carries an open entry's trigger and was never enrolled"),
    # 2: nothing twice, nothing altered
    "taken twice": (resent(Outcome.ACCEPTED), TWICE, "accepted again"),
    "taken twice, by two devices": (resent(Outcome.ACCEPTED, device=2), TWICE, "accepted again"),
    "taken under two keys": (
        lambda world: world.sent(2, 1, HOUR_US, key=OTHER_KEY, attempt=2), Violations(duplicate=3), "accepted again",
    ),
    "accepted twice in the ledger": (
        lambda world: world.booked(2, 1, HOUR_US, attempt=2), TWICE, "accepted again in the ledger",
    ),
    "one key for two visits": (
        lambda world: world.booked(2, 2, SECOND_US, "refused", key=idempotency_key(2, 1, 0)),
        TWICE,
        "a key that another visit has",
    ),
    "another device after acceptance": (resent(device=2), TWICE, STRAYED),
    "another key after acceptance": (
        both(
            resent(Outcome.REFUSED, key=OTHER_KEY),
            lambda world: world.booked(2, 1, 2 * HOUR_US, "refused", attempt=2, key=OTHER_KEY),
        ),
        Violations(duplicate=2),
        "asked for again under another key",
    ),
    "another body after acceptance": (resent(body=5), ALTERED, "asked for again with another body"),
    "another device after an attempt that never arrived": (doubted({"device": 2}), TWICE, STRAYED),
    "the same, and by now it is known that it never arrived": (doubted({"device": 2}, "not_sent"), TWICE, STRAYED),
    "another body after an unknown attempt": (
        doubted({"body": 5}, arrived=True), ALTERED, "asked for again with another body",
    ),
    # 3: quotas, by arrival
    "a fourth arrival within an hour": (burst(0, 1, 2, HOUR_US - 1), OVER_HOUR, HOUR_QUOTA),
    "a seventh within a day": (
        burst(0, 1, 2, *AFTERNOON_US, DAY_US - 1), Violations(over_day=1), "over the day's quota",
    ),
    "a lowered quota is not heeded": (
        both(burst(0, 1, 20 * S_US), lambda world: lowered(world, 2, 10 * S_US)), OVER_HOUR, HOUR_QUOTA,
    ),
    # 4: nothing early or unwanted
    "a slot before it was due": (
        both(row_of("receipts", 1, slot_us=START_US + SECOND_US - 1),
             row_of("ledger", 1, reserved=World._stamp(SECOND_US - 1))),
        EARLY,
        TOO_EARLY,
    ),
    "a refused request before it was due": (
        both(lambda world: world.asked(2, 2, DAY_US, answer=Outcome.REFUSED), ended("active", "refused")),
        EARLY,
        TOO_EARLY,
    ),
    "claimed before it was due": (
        row_of("ledger", 1, reserved=World._stamp(SECOND_US - 1)), EARLY, "a slot before it was due",
    ),
    "the delay stood before the step": (
        both(row_of("receipts", 1, slot_us=START_US + HOUR_US), row_of("ledger", 1, due=World._stamp(HOUR_US))),
        EARLY,
        TOO_EARLY,
    ),
    "before its enrolment": (row_of("enrolments", 1, enrolled=World._stamp(11 * S_US)), EARLY, TOO_EARLY),
    "an arrival before its slot": (row_of("receipts", 2, arrived_us=START_US + 2 * SECOND_US - 1), EARLY, TOO_EARLY),
    "after the opt-out": (told(opted_out={"999100000001": START_US + SECOND_US}), UNWANTED, "after the lead's opt-out"),
    "after the window had closed": (
        told(catalogue=catalogue(window=NIGHT)), OUTSIDE, "outside the send window",
    ),
    "before the window had opened, by the lead's own clock": (
        told(catalogue=catalogue(window=NIGHT), time_zones={"999100000001": [(0, "Europe/Berlin")]}),
        Violations(outside_window=4),
        "outside the send window",
    ),
    "on a day that is none of the window's": (
        told(catalogue=catalogue(window=NIGHTS), time_zones={f"99910000000{n}": [(0, "UTC")] for n in (1, 2)}),
        OUTSIDE,
        "outside the send window",
    ),
    "where the lead had lived before": (
        told(
            catalogue=catalogue(window=NIGHT),
            time_zones={"999100000002": [(0, "UTC"), (START_US + 10 * S_US, "Asia/Tokyo")]},
        ),
        OUTSIDE,
        "outside the send window",
    ),
    "outside every window that ever held": (
        told(catalogue=catalogue(window=NIGHT), earlier=(catalogue(window=Window(time(12), time(13), "UTC")),)),
        OUTSIDE,
        "outside the send window",
    ),
    "while the sequence was paused": (
        told(paused={7: [(START_US + SECOND_US, START_US + SECOND_US + 1)]}), UNWANTED, "while the sequence was paused",
    ),
    "while everything was paused": (
        told(fleet_paused=[(START_US + SECOND_US, START_US + SECOND_US + 1)]), UNWANTED, "while everything was paused",
    ),
    "while the device was paused": (
        told(devices_paused={1: [(START_US + SECOND_US, START_US + SECOND_US + 1)]}), UNWANTED,
        "while the device was paused",
    ),
    "while the lead was paused": (
        told(leads_paused={"999100000001": [(START_US + SECOND_US, START_US + SECOND_US + 1)]}), UNWANTED,
        "while the lead was paused",
    ),
    "later than its sequence allows": (
        both(row_of("ledger", 1, due=World._stamp(SECOND_US - 2 * HOUR_US)), told(catalogue=catalogue(late_h=1))),
        OUTSIDE,
        "later than its sequence allows",
    ),
    "skipped, and not too late": (
        both(lambda world: world.taken_off(1, 2), skipped(1.0)),
        Violations(lost=1),
        "a step was skipped that was not too late",
    ),
    "skipped, and sent": (skipped(1.5), Violations(lost=1), "a step was skipped, and accepted"),
    "after the trigger was taken off": (
        told(untriggered={(41, "fit"): [(START_US + SECOND_US, FOR_GOOD_US)]}),
        Violations(after_opt_out=2),
        "after the trigger was taken off",
    ),
    "after a reply had ended it": (
        told(replied={1: START_US + SECOND_US - 1, 2: START_US + 2 * DAY_US}),
        Violations(after_exit=2),
        "after a reply had ended the enrolment",
    ),
    "after the goal was reached": (
        told(reached={(41, 7): [START_US + SECOND_US]}), Violations(after_opt_out=2), "after the trigger was taken off"
    ),
    "on a blackout": (
        told(catalogue=catalogue(window=Window(time(), time(), "UTC", blackouts=(Blackout(TUESDAY, TUESDAY),)))),
        OUTSIDE, "outside the send window",
    ),
    "half a second before its time of day": (
        told(catalogue=catalogue(at=time(0, 0, 2))), Violations(early=1), "before its time of day"
    ),
    "before its time of day by the lead's own clock": (
        told(catalogue=catalogue(at=time(5, 45, 2)), time_zones={"999100000001": [(0, "Asia/Kathmandu")]}),
        Violations(early=1), "before its time of day",
    ),
    "a first message before its time of day": (
        told(catalogue=catalogue(first_at=time(0, 0, 11))), Violations(early=2), "before its time of day"
    ),
    "before every time of day that ever held": (
        told(catalogue=catalogue(at=time(9)), earlier=(catalogue(at=time(10)),)), Violations(early=1),
        "before its time of day",
    ),
    # 5: steps in order
    "the second and the third step have changed places": (
        both(row_of("receipts", 1, step=2), row_of("receipts", 2, step=1)), Violations(out_of_order=2), JUMPED,
    ),
    "a step nobody knows": (row_of("receipts", 2, step=3), UNORDERED, JUMPED),
    "begun at the second step": (row_of("receipts", 3, step=1), UNORDERED, "begins at a step that is not its entry"),
    # 6: everything ends
    "a lease that never ended": (row_of("enrolments", 1, leased=1), LOST, "a lease that never ended"),
    "nobody sees to what is due": (told(stuck_us=HOUR_US), STUCK, "due for long, and its device is idle"),
    "all accepted, and never completed": (
        both(told(stuck_us=30 * DAY_US), row_of("enrolments", 0, status="active", carries=1)),
        STUCK,
        "all accepted, and never completed",
    ),
    # 7: triggers
    "completed, and its trigger is still there": (
        row_of("enrolments", 0, carries=1), LOST, "completed, and the trigger is still on the lead",
    ),
    "another's trigger is off": (row_of("enrolments", 1, carries=0), LOST, "active, and the trigger is off the lead"),
}  # fmt: skip
"""What is done to the world, what is counted, and how one of the findings begins after its rule."""

CLEAN: dict[str, Callable[[World], None]] = {
    "nothing is done": lambda world: None,
    "nothing has happened": lambda world: [table.clear() for table in (world.receipts, world.ledger, world.enrolments)]
    and None,
    "in doubt, and accepted by a gateway that honours no keys": both(
        lambda world: world.asked(2, 2, DAY_US + 11 * S_US), ended("in_doubt"),
        lambda world: world.booked(2, 2, DAY_US + 11 * S_US, "in_doubt"),
    ),
    "failed because it was rejected": ended("failed", "refused", "rejected"),
    "stopped while an attempt was unknown": ended("stopped", "in_doubt", carries=0),
    "stopped, and a late acceptance": both(
        lambda world: world.sent(2, 2, DAY_US + 11 * S_US), row_of("enrolments", 1, status="stopped"),
    ),
    "a person said that it was accepted": both(gone("receipts", 3), told(by_hand=frozenset({(2, 1, 0)}))),
    "a person said that it was not sent": both(
        doubted({"device": 2}, "not_sent"), told(by_hand=frozenset({(2, 2, 0)})),
    ),
    "a person has settled what is held": both(ended("in_doubt"), told(by_hand=frozenset({(2, 2, 0)}))),
    "entered again by the same trigger": both(
        row_of("enrolments", 0, carries=1),
        lambda world: world.enrolments.append({**world.enrolments[1], "id": 3, "lead": 41, "visit": 1, "step": 1}),
    ),
    "repeated, by the same device with the same words": resent(),
    "resent, by the same device with the same words": doubted({}, arrived=True),
    "another device and other words after a refusal": doubted({"device": 2, "body": 5}, "refused"),
    "a lease that is under way": both(
        row_of("enrolments", 1, leased=1), lambda world: world.asked(2, 2, DAY_US + 11 * S_US), told(drained=False),
    ),
    "a trigger taken off a moment ago": both(row_of("enrolments", 1, carries=0), told(drained=False)),
    "a trigger that was put on again": both(
        row_of("enrolments", 0, carries=1), told(retriggered=frozenset({(41, "fit")})),
    ),
    "half a second after closing, by a clock that may be off as much": told(
        catalogue=catalogue(window=NIGHT), skew_us=S_US // 2 + 1
    ),
    "while the lead moved away": told(
        catalogue=catalogue(window=Window(time(0), time(1), "UTC")),
        time_zones={"999100000002": [(0, "UTC"), (START_US + 10 * S_US, "Asia/Tokyo")]},
        look_us=S_US,
    ),
    "outside a window that did not hold yet": told(catalogue=catalogue(window=NIGHT), earlier=(catalogue(),)),
    "outside another window that held before": told(
        catalogue=catalogue(window=NIGHT), earlier=(catalogue(window=Window(time(0), time(1), "UTC")),)
    ),
    "turned down outside the window": both(
        told(catalogue=catalogue(window=Window(time(23), time(1), "UTC"))),
        lambda world: world.asked(2, 2, DAY_US + 12 * HOUR_US, answer=Outcome.EXPIRED),
        lambda world: world.booked(2, 2, DAY_US + 12 * HOUR_US, "expired"),
    ),
    "at its time of day, or later": told(catalogue=catalogue(first_at=time(0), at=time(0, 0, 1))),
    "before a time of day that did not hold yet": told(catalogue=catalogue(at=time(9)), earlier=(catalogue(),)),
    "at another time of day that held before": told(
        catalogue=catalogue(at=time(9)), earlier=(catalogue(at=time(0)),)
    ),
    "at its time in a zone that the lead had before": told(
        catalogue=catalogue(at=time(5, 45, 1)),
        time_zones={"999100000001": [(0, "Asia/Kathmandu"), (START_US + S_US, "UTC")]},
    ),
    "an enrolment made anew after its goal was reached": told(reached={(41, 7): [START_US - S_US]}),
    "a fourth arrival an hour later": burst(0, 1, 2, HOUR_US),
    "a seventh a day later": burst(0, 1, 2, *AFTERNOON_US, DAY_US),
    "three arrivals and what was turned away": burst(
        0, 1, 2, 3, 4, 5, answers=(*[Outcome.REJECTED] * 3, Outcome.THROTTLED, Outcome.REFUSED, Outcome.EXPIRED)
    ),
    "a lowered quota that could not be known yet": both(
        burst(0, 1, 20 * S_US), lambda world: lowered(world, 2, 10 * S_US), told(refresh_us=10 * S_US + 1),
    ),
    "a raised quota": both(burst(0, 1, 2, 20 * S_US), lambda world: lowered(world, 4, 10 * S_US)),
    "clocks that are a second apart": both(
        row_of("receipts", 2, arrived_us=START_US + 2 * SECOND_US - S_US), told(skew_us=S_US),
        row_of("receipts", 1, slot_us=START_US + DAY_US), row_of("ledger", 1, due=World._stamp(DAY_US)),
    ),
    "a look that may have begun before the opt-out": told(
        opted_out={"999100000001": START_US + 2 * SECOND_US - 4 * S_US}, look_us=5 * S_US
    ),
    "a look that may have begun before or after the pause": told(
        paused={7: [(START_US + SECOND_US - from_us, START_US + SECOND_US + to_us)
                    for from_us, to_us in ((4 * S_US, 4 * S_US), (10 * S_US, S_US // 4))]},
        look_us=5 * S_US,
    ),
    "a shorter delay held before": both(
        row_of("receipts", 1, slot_us=START_US + 2 * HOUR_US), row_of("ledger", 1, due=World._stamp(2 * HOUR_US)),
        told(earlier=(catalogue(delay_h=1),)),
    ),
    "the last step, before a fourth was added": told(catalogue=catalogue("fit_4"), earlier=(catalogue(),)),
    "due, and its device is sending": told(stuck_us=2 * HOUR_US, now_us=START_US + 2 * SECOND_US + HOUR_US),
    "due, and its device is spent for the hour": told(
        stuck_us=HOUR_US, now_us=START_US + 2 * SECOND_US + 90 * 60 * S_US,
        quotas=np.array([(1, START_US, 3, 6), (2, START_US, 3, 6), (1, START_US + DAY_US, 1, 6)], QUOTA),
    ),
    "due, and its sequence is paused": told(stuck_us=HOUR_US, catalogue=catalogue(active=False)),
    "a step that was skipped": both(lambda world: world.taken_off(1, 2), skipped(1.5)),
    "due, and its lead is paused": told(stuck_us=HOUR_US, resting=frozenset({42})),
    "resent however late": both(
        doubted({}), row_of("ledger", -1, due=World._stamp(DAY_US)), row_of("ledger", -2, due=World._stamp(DAY_US)),
        told(catalogue=catalogue(late_h=0.5)),
    ),
    "due, and its device cannot send": told(stuck_us=HOUR_US, ready=frozenset({2})),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_was_broken_is_counted_and_said(name):
    breaking, counted, said = BROKEN[name]
    world = World()
    breaking(world)
    receipts, evidence = world.judged()
    assert check(receipts, evidence) == counted
    lines = findings(receipts, evidence)
    assert len(lines) == counted.total
    assert any(f": {said}: " in line for line in lines), lines
    violation = next(key for key, count in asdict(counted).items() if count)
    assert all(f", {violation}: " in line for line in lines), lines


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_no_violation(name):
    world = World()
    CLEAN[name](world)
    receipts, evidence = world.judged()
    assert findings(receipts, evidence) == []
    assert check(receipts, evidence) == Violations()


@pytest.mark.parametrize("name", BROKEN)
def test_the_order_in_which_things_are_told_changes_nothing(name):
    world = World()
    BROKEN[name][0](world)
    receipts, evidence = world.judged()
    expected = check(receipts, evidence), findings(receipts, evidence)
    for seed in range(5):
        shuffled = world.judged(random.Random(seed))
        assert (check(*shuffled), findings(*shuffled)) == expected


def test_two_breaches_count_as_two_and_a_limit_cuts_the_words_only():
    world = World()
    resent(body=5)(world)
    row_of("enrolments", 0, carries=1)(world)
    told(missed=3)(world)
    receipts, evidence = world.judged()
    assert check(receipts, evidence) == Violations(altered=1, lost=4)
    assert findings(receipts, evidence) == [
        "rule 1, lost: carries an open entry's trigger and was never enrolled: 3 leads",
        "rule 2, altered: asked for again with another body: 999100000002, enrolment 2, 'Fitness' fit, visit 1, "
        "attempt 2, device d-1, slot 2026-01-05T01:00:10Z, arrived 2026-01-05T01:00:10.500000Z, repeat",
        "rule 7, lost: completed, and the trigger is still on the lead: 999100000001, enrolment 1 of lead 41 by fit, "
        "completed at fit_3, visit 4, generation 0, device d-1, nothing due",
    ]
    assert len(findings(receipts, evidence, limit=2)) == 2
