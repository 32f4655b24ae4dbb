"""Operators who stop things for a while, and what the tester writes down of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from dispatcher.core.moments import NEVER_US
from simulate.memory_store import MemoryDatabase
from simulate.prove.dice import Dice
from simulate.prove.faults import Fault
from simulate.prove.stage import Stage

Spans = list[tuple[int, int]]
_FOR_GOOD_US: Final = 2**62


class Pauses:
    """Operators who pause the fleet, a sequence, a device or leads.

    Args:
        stage: where they act.
        pause_sequence: how marketers pause one.
    """

    def __init__(self, stage: Stage, pause_sequence: Callable[[Dice, Fault], None]) -> None:
        self._stage = stage
        self._database: MemoryDatabase = stage.database
        self.fleet: Spans = []
        """When nothing was to be handed over."""
        self.devices: dict[int, Spans] = {}
        """By number."""
        self.leads: dict[str, Spans] = {}
        """By phone."""
        self._kinds = (pause_sequence, pause_sequence, self._pause_fleet, self._pause_device, self._pause_leads)
        self.acts: dict[str, Callable[[Dice, Fault], None]] = {"pause": self._pause}

    def _pause(self, dice: Dice, fault: Fault) -> None:
        dice.of("pauses").pick(self._kinds)(dice, fault)

    def _pause_fleet(self, _: Dice, fault: Fault) -> None:
        if not self._database.versions().paused:
            self._database.pause_fleet(True)
            self._begin(fault, self.fleet, lambda: self._database.pause_fleet(False), "everything")

    def _pause_device(self, dice: Dice, fault: Fault) -> None:
        number = dice.pick(list(self._database.devices))
        if not self._database.devices[number].paused:
            self._database.set_device(number, paused=True)
            spans = self.devices.setdefault(number, [])
            self._begin(fault, spans, lambda: self._resume_device(number), f"device {number}")

    def _resume_device(self, number: int) -> None:
        if number in self._database.devices:
            self._database.set_device(number, paused=False)

    def _pause_leads(self, dice: Dice, fault: Fault) -> None:
        """About half of them, each by itself."""
        leads = [lead for lead in self._database.leads.values() if lead.id not in self._database.paused_leads]
        for lead in [lead for lead in leads if dice.chance(0.5)]:
            self._database.pause_lead(lead.id, NEVER_US)
            spans = self.leads.setdefault(lead.phone, [])
            self._begin(fault, spans, partial(self._database.pause_lead, lead.id, None), lead.phone)

    def _begin(self, fault: Fault, spans: Spans, resume: Callable[[], None], what: str) -> None:
        """Write down that a pause has begun, and have it end in time."""
        spans.append((self._stage.true_us(), _FOR_GOOD_US))
        self._stage.after(fault.lasts_s, self._end, spans, resume, what)
        self._stage.strike(fault.kind, "people", f"{what} for {fault.lasts_s:.0f} s")

    def _end(self, spans: Spans, resume: Callable[[], None], what: str) -> None:
        resume()
        spans[-1] = spans[-1][0], self._stage.true_us()
        self._stage.note("people", f"{what} resumed")
