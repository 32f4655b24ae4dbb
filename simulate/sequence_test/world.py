"""One test played: the services of production over the memory store, from one moment of work to the next.

Business time jumps; liveness time stands still, so that nothing is renewed, awaited or timed out on the way. As live, a
message leaves in its slot, what happens in between is seen by the last look, and the coordinator makes a pass at the
next moment of work that it knows, at the earliest a twentieth of a second after the last one.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import repeat
from operator import itemgetter
from typing import Final, NamedTuple

from dispatcher.config import Settings
from dispatcher.coordinator import Coordinator
from dispatcher.core import triggers
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.core.graph import Sequence as StepSequence
from dispatcher.core.moments import NEVER_US, span_us
from dispatcher.core.outcomes import Outcome
from dispatcher.shard import Shard
from simulate.memory_store import MemoryCoordinatorStore, MemoryDatabase, MemoryShardStore
from simulate.memory_store.rows import Enrolment
from simulate.population import lead_phone
from simulate.prove.virtual_loop import VirtualLoop
from simulate.sequence_test.gateway import Attempt, ScriptedGateway
from simulate.sequence_test.schema import CaseKeys, EventKeys, LeadKeys

_LEAST_US: Final = span_us(0.05)
_HOLDER: Final = "test"
SETTINGS: Final = Settings.model_construct(
    # Constructed, not loaded: neither environment nor files have a say in what comes true.
    **{name: field.default for name, field in Settings.model_fields.items()}
)


class Act(NamedTuple):
    """Something that people did."""

    at_us: int
    phones: tuple[str, ...]
    """Of the leads that it happened to; none: to sequences."""
    what: str


@dataclass(frozen=True, slots=True)
class Person:
    """One lead at the end."""

    said: LeadKeys
    phone: str
    trigger: str | None
    enrolments: list[Enrolment]
    """In the order they were made."""


@dataclass(frozen=True, slots=True)
class Played:
    """What became of a test."""

    begin_us: int
    story: list[Act | Attempt]
    """In the order it happened."""
    people: list[Person]
    """In the order of the test."""
    sequences: dict[int, str]
    """Names by id."""
    entries: frozenset[str]
    """Triggers that enrol somebody."""

    def attempts(self, person: Person) -> list[Attempt]:
        """All messages that left for a lead."""
        return [each for each in self.story if isinstance(each, Attempt) and each.phone == person.phone]


def play(case: CaseKeys, sequences: Sequence[StepSequence]) -> Played:
    """Play a test to its end."""
    world = World(case, sequences)
    loop = VirtualLoop()  # type: ignore[abstract]
    playing = loop.create_task(world.run())
    try:
        loop.run_until(playing.done, math.inf)
        if not playing.done():
            raise RuntimeError(f"{case.name!r} waits for something that never comes")
        return playing.result()
    finally:
        loop.close()


class _Shards:
    """The ``Shards`` port: one shard, in this process."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """See ``ports.Shards``."""
        return self._shard.offer(now_us, horizon_us, devices)

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        """See ``ports.Shards``."""
        self._shard.deliver(offer, leased)
        return self._shard.take_due()

    async def take_due(self, shard: int) -> DueSoon:
        """See ``ports.Shards``."""
        return self._shard.take_due()

    async def refresh(self, shard: int) -> None:
        """See ``ports.Shards``."""
        await self._shard.refresh()

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """See ``ports.Shards``."""
        return self._shard.fate(token, epoch, enrolment)


class _Lead(NamedTuple):
    said: LeadKeys
    number: int
    phone: str


class World:
    """A test as it is played.

    Args:
        case: the test.
        sequences: all there are.
    """

    def __init__(self, case: CaseKeys, sequences: Sequence[StepSequence]) -> None:
        self._case = case
        self.now_us = self._begin_us = case.begin_us
        self.end_us = NEVER_US if case.until is None else case.until.after(self._begin_us)
        self.story: list[Act | Attempt] = []
        self.database = MemoryDatabase(lambda: self.now_us)
        self._late_told = 0
        self._ids: dict[str, int] = {}
        self._leads = [_Lead(said, number, lead_phone(number)) for number, said in enumerate(case.everybody, 1)]
        self._rows: dict[int, int] = {}
        """Ids of leads by number."""
        self._fill(sequences)
        self.shard = Shard(0, SETTINGS, MemoryShardStore(self.database, 0, _HOLDER), lambda _: self._gateway())
        store = MemoryCoordinatorStore(self.database, _HOLDER)
        self.coordinator = Coordinator(SETTINGS, store, _Shards(self.shard))
        self._acts = self._planned()

    def _fill(self, sequences: Sequence[StepSequence]) -> None:
        device = self._case.device.model_dump()
        self.database.add_device("device", shard_id=0, gateway_idempotent=device.pop("idempotent"), **device)
        for sequence in sequences:
            columns = {field.name: getattr(sequence, field.name) for field in fields(sequence) if field.name != "id"}
            self._ids[sequence.name] = self.database.add_sequence(**columns)

    def _gateway(self) -> ScriptedGateway:
        script: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
        for rule in self._case.gateway:
            for lead in self._leads:
                if rule.lead in (None, lead.said.name):
                    script[lead.phone, rule.step].extend(repeat(Outcome[rule.answer.upper()], rule.times))
        return ScriptedGateway(script, lambda: self.now_us, self.story.append)

    # Time ----------------------------------------------------------------------------------------------------

    async def run(self) -> Played:
        """From the beginning to the end."""
        await self.coordinator.take_over(self.now_us, 1)
        await self.shard.take_over(self.now_us)
        pass_us = self._begin_us
        while self.now_us < self.end_us:
            if self.act():
                await self.shard.refresh()
                pass_us = self.now_us
            if pass_us <= self.now_us:
                pass_us = await self._pass()
            slot_us = self.shard.next_slot_us
            if slot_us is not None and slot_us <= self.now_us:
                await self.shard.hand_over(self.now_us, self.now_us)
                await self.shard.complete(self.now_us)
                self._note_late()
                pass_us = min(pass_us, await self.coordinator.hear(self.now_us))
                slot_us = self.shard.next_slot_us
            pass_us = max(pass_us, self.now_us + _LEAST_US)
            act_us = self._acts[0][0] if self._acts else NEVER_US
            next_us = min(pass_us, act_us, NEVER_US if slot_us is None else slot_us)
            if next_us >= NEVER_US:
                break
            self.now_us = next_us
        return self._played()

    async def _pass(self) -> int:
        """Passes until nothing is left to do; returns the next moment of work."""
        while (done := await self.coordinator.run_once(self.now_us, span_us(SETTINGS.horizon_s))).more:
            pass
        return done.next_us

    def _played(self) -> Played:
        people = []
        for lead in self._leads:
            row = self.database.leads.get(self._rows.get(lead.number, 0))
            enrolments = [] if row is None else self.database.of_lead.get(row.id, [])
            people.append(Person(lead.said, lead.phone, None if row is None else row.trigger, enrolments))
        names = {id_: name for name, id_ in self._ids.items()}
        return Played(self._begin_us, self.story, people, names, frozenset(self.database.catalogue().entries))

    # What happens --------------------------------------------------------------------------------------------

    def _planned(self) -> deque[tuple[int, Callable[[], None]]]:
        """Everything that happens, and when. Of one moment leads come first, and the rest in the order of the file."""
        acts: list[tuple[int, Callable[[], None]]] = []
        acts += [(lead.said.at.after(self._begin_us), partial(self._bring, lead)) for lead in self._leads]
        acts += [(event.at.after(self._begin_us), partial(self._happen, event)) for event in self._case.events]
        return deque(sorted(acts, key=itemgetter(0)))

    def act(self) -> bool:
        """Do what is to happen by now; whether there was anything."""
        acted = False
        while self._acts and self._acts[0][0] <= self.now_us:
            self._acts.popleft()[1]()
            acted = True
        return acted

    def _bring(self, lead: _Lead) -> None:
        said = lead.said
        trigger = triggers.merge(None, said.triggers) or None
        self._note(f"comes with {trigger}" if trigger else "comes without a trigger", lead)
        self._rows[lead.number] = self.database.add_lead(
            lead.phone,
            trigger,
            name=said.name,
            attributes=dict(said.attributes),
            time_zone=said.time_zone,
            opted_in_us=self.now_us if said.opted_in else None,
            opted_out_us=self.now_us if said.opted_out else None,
        )

    def _happen(self, event: EventKeys) -> None:
        if event.sequence is not None:
            self.database.set_active(self._ids[event.sequence], event.resume is not None)
            self._note(f"{event.sequence!r} is {'paused' if event.pause else 'resumed'}")
            return
        leads = [lead for lead in self._leads if event.lead in (None, lead.said.name)]
        for lead in leads:
            self._change(event, self._rows[lead.number])
        self._note(_told(event), *leads)

    def _change(self, event: EventKeys, lead: int) -> None:
        database, row = self.database, self.database.leads[lead]
        if event.opt_out:
            database.opt_out(lead)
        elif event.opt_in:
            database.opt_in(lead)
        elif event.tag is not None:
            database.set_trigger(lead, triggers.add(row.trigger, event.tag))
        elif event.untag is not None:
            database.set_trigger(lead, triggers.remove(row.trigger, event.untag))
        elif event.attributes is not None:
            database.set_attributes(lead, row.attributes | event.attributes)

    def _note_late(self) -> None:
        """What was skipped or shifted since this was told last."""
        for step in self.database.late_steps[self._late_told :]:
            days = 0 if step.shifted_us is None else (step.shifted_us - step.due_us) / span_us(86_400)
            became = f"moves on by {days:g} days" if days else "is skipped"
            self.story.append(
                Act(self.now_us, (self.database.leads[step.lead].phone,), f"{step.step} {became}, too late")
            )
        self._late_told = len(self.database.late_steps)

    def _note(self, what: str, *leads: _Lead) -> None:
        self.story.append(Act(self.now_us, tuple(lead.phone for lead in leads), what))


def _told(event: EventKeys) -> str:
    """What happens to a lead, in words."""
    if event.opt_out:
        return "opts out"
    if event.opt_in:
        return "opts in"
    if event.attributes is not None:
        return "changes " + ", ".join(f"{key} to {value!r}" for key, value in event.attributes.items())
    return f"gets the trigger {event.tag}" if event.tag is not None else f"loses the trigger {event.untag}"
