"""The quota kernel against a plain list of timestamps a device, told the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.core.moments import NEVER_US
from dispatcher.core.quota import Offer, SlidingLog

HOUR_TINY, GUARD_TINY = 5, 2
HOUR_WINDOW, DAY_WINDOW = HOUR_TINY + GUARD_TINY, 24 * HOUR_TINY + GUARD_TINY


def rows(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


@dataclass
class PlainDevice:
    """The rule as a sentence: every moment is tried, every reservation is looked at."""

    per_hour: int
    per_day: int
    in_flight_max: int
    gap: int
    available: bool = True
    times: list[int] = field(default_factory=list)
    last: int = -(10**6)
    in_flight: int = 0
    held: list[int] | None = None

    def is_free(self, slot: int, held: list[int]) -> bool:
        ages = [slot - at for at in self.times + held]
        in_hour = sum(age < HOUR_WINDOW for age in ages)
        return in_hour < self.per_hour and sum(age < DAY_WINDOW for age in ages) < self.per_day

    def free(self, now: int, horizon: int) -> list[int]:
        held: list[int] = []
        slot = max(now, self.last + max(self.gap, 1))
        while self.available and slot < now + horizon and self.in_flight + len(held) < self.in_flight_max:
            if self.is_free(slot, held):
                held.append(slot)
                slot += max(self.gap, 1)
            else:
                slot += 1
        return held

    def next_free(self) -> int:
        if self.held is not None or not self.available or not self.per_hour or not self.per_day:
            return NEVER_US
        return next(iter(self.free(0, 10**5)), NEVER_US) if self.in_flight < self.in_flight_max else NEVER_US

    def replace(self, old: int, new: int | None) -> bool:
        if old not in self.times or old <= self.last - DAY_WINDOW:
            return False
        self.times.remove(old)
        if new is not None:
            self.times.append(new)
            self.last = max(self.last, new)
        return True


usual_limits = st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(1, 5), st.integers(0, 3))
limits = st.one_of(usual_limits, usual_limits, st.tuples(*[st.integers(0, 2)] * 4))


class QuotaMachine(RuleBasedStateMachine):
    """Both worlds are told the same; everything they say is compared."""

    @initialize(start=st.lists(limits, min_size=1, max_size=3))
    def begin(self, start: list[tuple[int, int, int, int]]) -> None:
        self.now = 1000
        self.plain = [PlainDevice(*limit) for limit in start]
        self.log = SlidingLog(*np.array(start).T, hour_us=HOUR_TINY, guard_us=GUARD_TINY)
        self.offers: list[Offer] = []

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.plain) - 1), "device")

    def pick_reservation(self, data: st.DataObject) -> tuple[int, int]:
        number = self.pick(data)
        known = self.plain[number].times
        return number, data.draw(st.sampled_from(known) if known else st.integers(900, 1100), "reservation")

    @rule(
        data=st.data(),
        back=st.integers(0, 12),
        horizon=st.one_of(st.integers(1, 10), st.integers(1, 260)),
        limit=st.one_of(st.none(), st.integers(0, 6)),
    )
    def offer(self, data: st.DataObject, back: int, horizon: int, limit: int | None) -> None:
        idle = [number for number, plain in enumerate(self.plain) if plain.held is None]
        asked = [number for number in idle if data.draw(st.booleans(), "ask")]
        now = self.now - back
        offer = self.log.offer(now, horizon, np.array(asked, np.intp), limit)
        expected = [(number, slot) for number in asked for slot in self.plain[number].free(now, horizon)]
        expected = sorted(sorted(expected, key=lambda row: row[1])[:limit])
        assert list(zip(offer.device.tolist(), offer.slot_us.tolist(), strict=True)) == expected
        assert np.repeat(offer.devices, offer.counts).tolist() == offer.device.tolist()
        for number in offer.devices.tolist():
            plain = self.plain[number]
            plain.held = [slot for device, slot in expected if device == number]
            plain.in_flight += len(plain.held)
        if len(offer):
            self.offers.append(offer)

    @rule(horizon=st.integers(1, 10), steps=st.lists(st.integers(0, 60), min_size=1, max_size=6))
    def send(self, horizon: int, steps: list[int]) -> None:
        """The usual life: everything idle is offered, used up and settled, again and again."""
        for step in steps:
            self.now += step
            idle = [number for number, plain in enumerate(self.plain) if plain.held is None]
            offer = self.log.offer(self.now, horizon, np.array(idle, np.intp))
            self.log.answer(offer, offer.counts)
            self.log.settle(offer.devices, offer.counts)
            expected = []
            for number in idle:
                plain = self.plain[number]
                slots = plain.free(self.now, horizon)
                plain.times += slots
                plain.last = max([plain.last, *slots])
                expected += slots
            assert offer.slot_us.tolist() == expected

    @precondition(lambda self: self.offers)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        offer = self.offers.pop(data.draw(st.integers(0, len(self.offers) - 1), "offer"))
        filled = [data.draw(st.integers(0, int(count)), "filled") for count in offer.counts]
        self.log.answer(offer, np.array(filled))
        for number, count in zip(offer.devices.tolist(), filled, strict=True):
            plain = self.plain[number]
            assert plain.held is not None
            plain.in_flight -= len(plain.held) - count
            plain.times += plain.held[:count]
            plain.last = max([plain.last, *plain.held[:count]])
            plain.held = None

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        number = self.pick(data)
        plain = self.plain[number]
        count = data.draw(st.integers(0, plain.in_flight - len(plain.held or [])), "count")
        self.log.settle(rows(number), count)
        plain.in_flight -= count

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number, slot = self.pick_reservation(data)
        expected = sum(self.plain[number].replace(slot, None) for _ in range(1 + self.plain[number].times.count(slot)))
        assert self.log.release(np.full(expected + 1, number), np.full(expected + 1, slot)) == expected

    @rule(data=st.data(), delay=st.integers(0, 15))
    def postpone(self, data: st.DataObject, delay: int) -> None:
        number, slot = self.pick_reservation(data)
        expected = self.plain[number].replace(slot, slot + delay)
        assert self.log.postpone(rows(number), rows(slot), rows(slot + delay)) == expected

    @rule(data=st.data(), ages=st.lists(st.integers(-10, 140), max_size=12))
    def load(self, data: st.DataObject, ages: list[int]) -> None:
        idle = [number for number, plain in enumerate(self.plain) if plain.held is None]
        if not idle:
            return
        device = [data.draw(st.sampled_from(idle), "device") for _ in ages]
        flying = [data.draw(st.booleans(), "in flight") for _ in ages]
        self.log.load(np.array(device, np.intp), self.now - np.array(ages, np.int64), np.array(flying, np.bool_))
        for number, age, flies in zip(device, ages, flying, strict=True):
            plain = self.plain[number]
            plain.times.append(self.now - age)
            plain.last = max(plain.last, self.now - age)
            plain.in_flight += flies

    @rule(data=st.data(), to=limits, available=st.booleans())
    def set_limits(self, data: st.DataObject, to: tuple[int, int, int, int], available: bool) -> None:
        number = self.pick(data)
        plain = self.plain[number]
        plain.per_hour, plain.per_day, plain.in_flight_max, plain.gap = to
        plain.available = available
        names = ("quota_per_hour", "quota_per_day", "in_flight_max", "min_gap_us")
        self.log.set_limits(rows(number), **dict(zip(names, to, strict=True)), available=available)

    @precondition(lambda self: len(self.plain) < 5)
    @rule(limit=limits)
    def add_device(self, limit: tuple[int, int, int, int]) -> None:
        self.plain.append(PlainDevice(*limit))
        self.log.add_devices(*np.array([limit]).T)

    @rule(step=st.one_of(st.integers(0, 8), st.integers(0, 150)))
    def pass_time(self, step: int) -> None:
        self.now += step

    @invariant()
    def both_say_the_same(self) -> None:
        assert self.log.next_free_us().tolist() == [max(plain.next_free(), 0) for plain in self.plain]
        # Usage is exact from the guard before the last reservation on; what is older may be forgotten.
        moment = max([self.now, *(plain.last - GUARD_TINY for plain in self.plain)])
        hour, day, in_flight = self.log.usage(moment)
        for number, plain in enumerate(self.plain):
            ages = [moment - at for at in plain.times]
            told = (hour[number], day[number], in_flight[number])
            assert told == (
                sum(0 <= age < HOUR_TINY for age in ages),
                sum(0 <= age < 24 * HOUR_TINY for age in ages),
                plain.in_flight,
            )


TestQuotaMachine = QuotaMachine.TestCase
TestQuotaMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
