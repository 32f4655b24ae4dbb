"""PostgreSQL and its twin live through the same random history: after every call they say and hold the same.

People edit devices, sequences and leads; coordinators and shards come, are superseded and go on asking; claims, looks,
hand-overs, answers of gateways, repetitions after a lost answer, rescues. The gateway of the history is a consistent
one: it takes a key once and says "repeat" from then on. Nothing the stores are asked is nonsense, so neither may raise.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.batches import Leased
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.identity import idempotency_key, idempotency_keys
from dispatcher.core.lateness import moves_of
from dispatcher.core.leases import EndedLeases, Ends, Want

SECOND_US, HOUR_US, DEADLINE_US = 1_000_000, 3_600_000_000, 30_000_000
LISTS = [
    *(None, "", "a_start", "b_start", "c_start", "a_start,b_start", " b_start , c_start,", "c_other,c_start"),
    *("nobody", "a_start,a_start", "xa_start", "a_start,b_start,c_start", "keep,c_start"),
]
ACCEPTED = ("accepted", "repeat")
STEPS = 120


@dataclass
class Sent:
    """A message in the gateway's hands: what the gateway did, and what the shard will have been told."""

    leased: Leased
    row: int
    text: str
    media_url: str | None
    truth: str
    told: str
    reported: bool = False
    known: bool = False
    """Whether a shard was told the truth."""

    @property
    def visit(self) -> tuple[int, int, int]:
        """Enrolment, visit, generation."""
        leased, row = self.leased, self.row
        return int(leased.enrolment[row]), int(leased.visit[row]), int(leased.generation[row])

    @property
    def attempt(self) -> int:
        return int(self.leased.attempt[self.row])


class History:
    """One random history on two worlds."""

    def __init__(self, seed: int, pair: Any) -> None:
        self.random, self.pair = random.Random(seed), pair
        self.worlds, self.coordinators, self.shards = pair.worlds, pair.coordinators, pair.shards
        self.both, self.people, self.coordinator, self.shard = pair.both, pair.people, pair.coordinator, pair.shard
        self.log, self.story = pair.log, pair.story
        self.now_us = self.worlds[0].now_us
        self.epoch = 0
        self.old_epochs: list[int] = []
        self.shard_epochs: dict[int, list[int]] = {0: [], 1: [], 2: []}
        self.catalogue: Catalogue | None = None
        self.batches: list[tuple[int, Leased]] = []
        self.unsent: list[tuple[int, Leased, int]] = []
        self.sent: list[Sent] = []
        self.told: list[Ends] = []
        self.taken: set[bytes] = set()
        self.leads: list[int] = []
        self.phones = 0
        self.locked: list[int] = []
        self.asked_versions: list[Any] = [None, None]

    # The course -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live through it; in the end the ledger must not contradict the gateway."""
        await self.begin()
        acts = {
            self.time: 9, self.lead: 3, self.edit_lead: 4, self.waver: 2, self.edit_registry: 3,
            self.lock: 3, self.enrol: 5, self.registry: 2, self.claim: 14, self.look: 18, self.answer: 18,
            self.answer_again: 2, self.rescue: 10, self.hold: 2, self.finish: 3, self.rehome: 1, self.take_over: 6,
            self.read: 2, self.seat: 1, self.give_back: 3, self.postpone: 3,
            self.pause: 3, self.move_late: 4, self.retry: 2, self.reply: 3,
        }  # fmt: skip
        for _ in range(STEPS):
            act = self.random.choices(list(acts), list(acts.values()))[0]
            await act()
        await self.pair.same_evidence()
        await self.judge()

    async def judge(self) -> None:
        """What shards were told of is in the ledger; nothing that the gateway has seen passes for unsent."""
        attempts: dict[tuple[int, ...], set[str]] = {}
        accepted: dict[tuple[int, ...], int] = {}
        for enrolment, visit, generation, attempt, outcome, *_ in (await self.worlds[1].tables())["ledger"]:
            attempts.setdefault((enrolment, visit, generation, attempt), set()).add(outcome)
            accepted[enrolment, visit, generation] = accepted.get((enrolment, visit, generation), 0) + (
                outcome == "accepted"
            )
        for sent in self.sent:
            said = attempts.get((*sent.visit, sent.attempt), set())
            if sent.truth in ACCEPTED:
                assert said <= {"accepted", "repeat", "in_doubt"}, self.story(f"{sent} is {said}")
            if sent.known and sent.truth in ACCEPTED:
                assert accepted.get(sent.visit) == 1, self.story(f"{sent} has {accepted.get(sent.visit)} acceptances")

    async def begin(self) -> None:
        await self.pair.furnish(self.random)
        await self.coordinator("begin_day", self.now_us, 1, 0)
        self.epoch = await self.both("raise", lambda side: self.coordinators[side]["one"].seat.raise_epoch())
        for shard in range(3):
            await self.raise_shard(shard)
        self.catalogue = await self.coordinator("catalogue", self.now_us)
        for _ in range(5):
            await self.lead()

    async def raise_shard(self, shard: int) -> None:
        epoch = await self.both(f"shard-{shard} raises", lambda side: self.shards[side][shard].seat.raise_epoch())
        self.shard_epochs[shard].append(epoch)

    async def time(self) -> None:
        step_us = self.random.choice([1, SECOND_US, 40 * SECOND_US, 600 * SECOND_US, HOUR_US, 6 * HOUR_US])
        step_us = 30 * HOUR_US if self.random.random() < 0.05 else step_us
        self.now_us += step_us
        await self.people("set_now", self.now_us)
        await self.coordinator("begin_day", self.now_us, 2, self.random.choice([HOUR_US, 48 * HOUR_US]))

    async def reply(self) -> None:
        await self.pair.reply(self.random, self.phones, self.now_us)

    # People ---------------------------------------------------------------------------------------------------

    async def lead(self) -> None:
        self.phones += 1
        columns: dict[str, Any] = {}
        if self.random.random() < 0.3:
            columns["home_device_id"] = UUID(int=self.random.randint(1, 4))
        if self.random.random() < 0.3:
            columns["opted_in_us"] = self.now_us
        if self.random.random() < 0.3:
            columns |= {"name": f"n{self.phones}", "attributes": {"city": "X", "b": [1, {"zz": 1, "y": None}]}}
        phone = f"99910{self.phones}"
        self.leads.append(await self.people("add_lead", phone, self.random.choice(LISTS[2:]), **columns))

    async def edit_lead(self) -> None:
        if not self.leads:
            return
        lead = self.random.choice(self.leads)
        if lead in self.locked:
            return
        kind = self.random.random()
        if kind < 0.1:
            await self.pair.edit_zone(self.random, lead)
        elif kind < 0.6:
            await self.people("set_lead", lead, trigger=self.random.choice(LISTS))
        elif kind < 0.7:
            await self.people("set_lead", lead, opted_out_us=self.now_us)
        elif kind < 0.85:
            await self.people("set_lead", lead, opted_in_us=self.now_us, opted_out_us=None)
        elif kind < 0.93:
            await self.people("set_lead", lead, home_device_id=UUID(int=self.random.randint(1, 5)))
        else:
            self.leads.remove(lead)
            await self.people("delete_lead", lead)

    async def waver(self) -> None:
        """A trigger is taken off and comes back, before or after the enroller has seen it."""
        free = [lead for lead in self.leads if lead not in self.locked]
        if not free:
            return
        lead = self.random.choice(free)
        trigger = {row[0]: row[1] for row in (await self.worlds[0].tables())["leads"]}[lead]
        await self.people("set_lead", lead, trigger=None)
        if self.random.random() < 0.7:
            await self.enrol()
        await self.people("set_lead", lead, trigger=trigger)
        await self.enrol()

    async def edit_registry(self) -> None:
        await self.random.choice([self.pair.edit_sequence, self.pair.edit_sequence, self.pair.edit_device])(self.random)

    async def lock(self) -> None:
        self.locked = sorted(self.random.sample(self.leads, min(2, len(self.leads)))) if not self.locked else []
        await self.people("lock_leads", self.locked)

    # Coordinator ----------------------------------------------------------------------------------------------

    def coordinator_epoch(self) -> int:
        return self.random.choice(self.old_epochs) if self.old_epochs and self.random.random() < 0.05 else self.epoch

    async def registry(self) -> None:
        self.catalogue = await self.coordinator("catalogue", self.now_us)
        await self.coordinator("fleet")
        if self.random.random() < 0.2:
            number = sorted(self.random.sample(range(1, self.pair.devices + 1), 2))
            owner = [self.random.randint(0, 2) for _ in number]
            await self.coordinator("assign_shards", np.array(number, np.int32), np.array(owner, np.int32))
        await self.coordinator("search_entries", self.random.choice([1, 3, 1000]))

    async def enrol(self) -> None:
        rows = self.random.choice([1, 2, 5, 1000])
        planned = rows if self.random.random() < 0.9 else 0
        plan = [UUID(int=self.random.randint(1, self.pair.devices)) for _ in range(planned)]
        await self.coordinator(
            "enrol",
            self.catalogue,
            lambda leads: plan[:leads],
            self.now_us,
            epoch=self.coordinator_epoch(),
            rows=rows,
            hour_us=HOUR_US,
        )

    async def claim(self) -> None:
        shard = self.random.randint(0, 2)
        epochs = self.shard_epochs[shard]
        epoch = epochs[-1] if self.random.random() < 0.9 else self.random.choice(epochs)
        number = sorted(self.random.sample(range(1, self.pair.devices + 1), self.random.randint(2, self.pair.devices)))
        slots = [self.random.randint(0, 3) for _ in number]
        slot_us = [self.now_us + n * 5 * SECOND_US for count in slots for n in range(count)]
        want = Want(
            shard=shard,
            epoch=epoch,
            device_id=[UUID(int=n) for n in number],
            number=np.array(number, np.int32),
            slots=np.array(slots, np.int32),
            slot_us=np.array(slot_us, np.int64),
            since_us=np.array([self.random.choice((0, 0, self.now_us - HOUR_US)) for _ in number], np.int64),
        )
        fields_too = self.random.random() < 0.5
        coordinator_epoch = self.coordinator_epoch()
        leased = await self.coordinator(
            "claim",
            want,
            self.now_us,
            epoch=coordinator_epoch,
            deadline_us=DEADLINE_US,
            lead_fields=fields_too,
        )
        await self.coordinator("next_due", want.device_id)
        if leased is not None:
            self.batches.append((shard, leased))

    async def rescue(self) -> None:
        before_us = self.now_us - self.random.choice([0, 300 * SECOND_US, HOUR_US])
        ended: EndedLeases = await self.coordinator("ended_leases", before_us, 1000)
        lost = ended.take(np.flatnonzero(ended.superseded & ended.handed))
        if len(lost):
            resend = lost.idempotent & np.array([self.random.random() < 0.8 for _ in lost.token], np.bool_)
            keys = idempotency_keys(lost.enrolment, lost.visit, lost.generation)
            due_us = np.maximum(self.now_us, lost.deadline_us)
            await self.coordinator("doubt", lost, keys, resend, due_us, self.now_us)
        unsent = ended.take(np.flatnonzero(ended.superseded & ~ended.handed))
        if len(unsent):
            await self.coordinator("return_leases", unsent.enrolment, unsent.token, self.now_us, self.now_us)

    async def hold(self) -> None:
        sequence = self.random.randint(1, 3)
        name, *more = self.random.choice([("hold",), ("unhold", self.now_us)])
        await self.coordinator(name, sequence, 1000, *more)
        await self.coordinator("hold_step", self.random.choice(["a_start", "a_two", "b_two"]), 1000)
        await self.coordinator("held_sequences")

    async def finish(self) -> None:
        await self.coordinator("finish_waiting", self.random.choice([1, 1000]), self.now_us)

    async def rehome(self) -> None:
        left = [UUID(int=self.random.randint(1, self.pair.devices))]

        async def misplaced(side: int) -> list[int]:
            return sorted((await self.coordinators[side]["one"].misplaced(left, 1000)).tolist())

        found = np.array(await self.both(f"misplaced {left}", misplaced), np.int64)
        homes = [UUID(int=self.random.randint(1, self.pair.devices)) for _ in found]
        await self.coordinator("rehome", found, homes)

    async def take_over(self) -> None:
        if self.random.random() < 0.3:
            self.old_epochs.append(self.epoch)
            self.epoch = await self.both("raise", lambda side: self.coordinators[side]["two"].seat.raise_epoch())
        else:
            await self.raise_shard(self.random.randint(0, 2))

    async def seat(self) -> None:
        holder, lifetime_s = self.random.choice(["one", "two"]), self.random.choice([-1.0, 1e7])
        seats = [stores[holder].seat for stores in self.coordinators]
        await self.both(f"{holder} leads {lifetime_s}", lambda side: seats[side].lead(lifetime_s))
        await self.both("leader", lambda side: seats[side].leader())
        if self.random.random() < 0.5:
            await self.both(f"{holder} leaves", lambda side: seats[side].leave())

        async def beat(side: int) -> int | None:
            return (await seats[side].beat(lifetime_s)).epoch

        await self.both(f"{holder} beats {lifetime_s}", beat)

    async def postpone(self) -> None:
        shard = self.random.randint(0, 2)
        await self.shard(shard, "time_zones", np.array(self.random.choices([*self.leads, 999], k=3)))
        await self.pair.postpone(self.random, shard, self.now_us)

    async def pause(self) -> None:
        if self.random.random() < 0.3:
            await self.people("pause_fleet", self.random.random() < 0.3)
        elif self.leads:
            until_us = self.random.choice([None, self.now_us + HOUR_US, self.now_us + 999 * HOUR_US])
            await self.people("pause_lead", self.random.choice(self.leads), until_us)

    async def move_late(self) -> None:
        shard = self.random.randint(0, 2)
        before_us = {sequence: self.now_us - self.random.randint(0, 9) * HOUR_US for sequence in (1, 2)}
        late = await self.shard(shard, "late", before_us, 1000)
        if len(late):
            await self.time()
            moves = moves_of(late, self.pair.limited, self.now_us, HOUR_US)
            await self.shard(shard, "move_late", moves, self.now_us)

    async def retry(self) -> None:
        await self.people("retry")

    async def read(self) -> None:
        shard = self.random.randint(0, 2)
        await self.shard(shard, "usage", self.now_us - self.random.choice([HOUR_US, 25 * HOUR_US]))
        await self.shard(shard, "fleet")
        await self.shard(shard, "catalogue")
        await self.coordinator("home_load")
        epoch = self.random.choice(self.shard_epochs[shard])
        tokens = await self.shard(shard, "leased_tokens", epoch)
        for token in tokens:
            found = await self.shard(shard, "read_lease", epoch, token)
            assert found is not None

        async def changed(side: int) -> list[bool]:
            versions, asked = await self.shards[side][shard].versions(), self.asked_versions[side]
            self.asked_versions[side] = versions
            return [] if asked is None else [now != then for now, then in zip(versions, asked, strict=True)]

        await self.both("versions", changed)

    # Shards ---------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """A shard looks once more and hands over what passes."""
        if not self.batches:
            return
        shard, leased = self.batches.pop(self.random.randrange(len(self.batches)))
        rows = [row for row in range(len(leased)) if self.random.random() < 0.95]
        leased = leased.take(np.array(rows, np.intp))
        if not rows:
            return
        texts: list[str | None] = []
        for row, said in enumerate(leased.resend_text):
            fresh = f"text {leased.enrolment[row]} {leased.visit[row]} {leased.token}"
            texts.append(None if self.random.random() < 0.1 else said or fresh)
        urls = [self.random.choice([None, "http://m/1"]) if text else None for text in texts]
        urls = [said if leased.resend_text[row] else urls[row] for row, said in enumerate(leased.resend_media_url)]
        known_us = self.now_us - self.random.choice([HOUR_US, 100 * HOUR_US])
        reasons = await self.shard(shard, "last_look", leased, texts, urls, self.now_us, known_us)
        for row, text in enumerate(texts):
            if row in reasons or text is None:
                self.unsent.append((shard, leased, row))
            else:
                self.sent.append(self._handed(leased, row, text, urls[row]))

    def _handed(self, leased: Leased, row: int, text: str, media_url: str | None) -> Sent:
        sent = Sent(leased, row, text, media_url, "accepted", "accepted")
        key = idempotency_key(*sent.visit)
        refusals = ["refused", "rejected", "throttled", "expired", "credentials", "quality", "content", "opted_out"]
        if int(leased.lead[row]) in self.locked:
            refusals = refusals[:-1]
        truth = "accepted" if self.random.random() < 0.55 else self.random.choice(refusals)
        if truth == "accepted" and key in self.taken:
            truth = "repeat"
        if truth == "accepted":
            self.taken.add(key)
        sent.truth, sent.told = truth, "in_doubt" if self.random.random() < 0.4 else truth
        return sent

    async def give_back(self) -> None:
        """Leases that were not handed over go back."""
        if not self.unsent:
            return
        shard, leased, row = self.unsent.pop(self.random.randrange(len(self.unsent)))
        stop = self.random.choice([None, None, "opted out", "trigger removed", "stopped"])
        await self.shard(
            shard,
            "give_back",
            leased.enrolment[[row]],
            np.array([leased.token], np.int64),
            np.array([self.now_us + self.random.choice([0, HOUR_US])], np.int64),
            [stop],
            self.now_us,
            [bool(leased.resend_text[row]) and self.random.random() < 0.5],
            [self.random.random() < 0.1],
        )

    async def answer(self) -> None:
        """Ends of some attempts, early or late, in one batch; an attempt told to be in doubt may become known later."""
        open_ = [sent for sent in self.sent if not sent.reported]
        chosen = self.random.sample(open_, min(len(open_), self.random.randint(1, 4)))
        seen: set[tuple[int, int, int]] = set()
        ends = []
        for sent in chosen:
            late_opt_out = sent.told == "opted_out" and int(sent.leased.lead[sent.row]) in self.locked
            if sent.visit in seen or late_opt_out:
                continue
            seen.add(sent.visit)
            ends.append(self._end(sent))
            if sent.told == sent.truth or self.random.random() < 0.6:
                sent.reported = True
            sent.known = sent.known or sent.told == sent.truth
            sent.told = sent.truth
        if ends:
            await self._write(Ends.join(ends))

    async def answer_again(self) -> None:
        """A commit whose answer was lost is repeated."""
        if self.told and not (self.locked and "opted_out" in self.told[-1].outcome):
            await self._write(self.told[-1])

    async def _write(self, ends: Ends) -> None:
        self.told.append(ends)
        shard = self.random.randint(0, 2)
        epoch = self.shard_epochs[shard][-1]
        await self.shard(shard, "end", ends, self.now_us, epoch=epoch, deadline_us=DEADLINE_US)

    def _end(self, sent: Sent) -> Ends:
        leased, row, outcome = sent.leased.take(np.array([sent.row])), 0, sent.told
        assert self.catalogue is not None
        step = self.catalogue.indices(leased.step)
        trigger, due_us = self.catalogue.advance(step, np.array([self.now_us]), [None], HOUR_US)
        good = outcome in ACCEPTED
        next_ = {"rejected": "failed", "opted_out": "stopped"}.get(outcome, "waiting")
        if outcome == "refused" and self.random.random() < 0.3:
            next_ = "failed"
        if outcome == "in_doubt" and self.random.random() < 0.3:
            next_ = "in_doubt"
        wait_us = int(due_us[row]) - self.now_us if good else self.random.choice([0, 60 * SECOND_US])
        return Ends(
            enrolment=leased.enrolment,
            token=np.array([leased.token], np.int64),
            lead=leased.lead,
            visit=leased.visit,
            generation=leased.generation,
            attempt=leased.attempt,
            device=leased.device,
            slot_us=leased.slot_us,
            due_us=leased.due_us,
            at_us=np.array([self.now_us], np.int64),
            step=leased.step,
            key=idempotency_keys(leased.enrolment, leased.visit, leased.generation),
            outcome=[outcome],
            message_id=[f"m{leased.token}" if good else None],
            error=[None if good else f"{outcome} it is"],
            next_trigger=[trigger[row]],
            next_due_us=np.array([self.now_us + wait_us], np.int64),
            next=[next_],
            counted=np.array([outcome in ("refused", "in_doubt")], np.int32),
            pinned=np.array([outcome == "in_doubt"], np.bool_),
            handed=np.array([True], np.bool_),
            text=[sent.text if outcome == "in_doubt" else None],
            media_url=[sent.media_url if outcome == "in_doubt" else None],
        )


@pytest.mark.parametrize("seed", range(3))
async def test_a_random_history_is_the_same_on_both_stores(seed, new_pair):
    history = History(seed, await new_pair())
    await history.run()
    assert len(history.log) > STEPS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
async def test_many_random_histories_are_the_same_on_both_stores(seed, new_pair):
    history = History(seed, await new_pair())
    await history.run()
    assert len(history.log) > STEPS
