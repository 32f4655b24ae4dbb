"""What people do meanwhile - leads, marketers, operators - and what the tester writes down of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from dispatcher.core import triggers
from dispatcher.core.graph import Catalogue, Step
from dispatcher.core.leases import Ends
from dispatcher.core.moments import span_us
from dispatcher.core.outcomes import Outcome
from simulate.memory_store import MemoryDatabase, MemoryShardStore
from simulate.memory_store.rows import Attempt, Lead
from simulate.prove.dice import Dice
from simulate.prove.faults import Fault
from simulate.prove.gateway import Request
from simulate.prove.stage import Stage
from simulate.prove.world import NAMES, TEXTS, TOKENS

_NOBODYS_TOKEN: Final = -1
_RECEIPT_S: Final = 20.0


class People:
    """Everybody outside the engine.

    Args:
        stage: where they act.
        ask: what the gateways' logs say of a key: message id and moment, if it was accepted.
    """

    def __init__(self, stage: Stage, ask: Callable[[bytes], tuple[str, int] | None]) -> None:
        self._stage, self._ask = stage, ask
        self._database: MemoryDatabase = stage.database
        self.opted_out: dict[str, int] = {}
        """When each phone opted out, by the true clock; those that opted in again since are not in it."""
        self.removed: list[tuple[str, str, int]] = []
        """Phone, trigger and when it was taken off by hand."""
        self.retriggered: set[tuple[int, str]] = set()
        """Lead and trigger that was put on by hand after the lead had been brought in."""
        self.settled: set[tuple[int, int, int]] = set()
        """Enrolment, visit and generation of what an operator has settled."""
        self.paused: dict[int, list[tuple[int, int | None]]] = {}
        """When each sequence was paused, and until when."""
        self.quotas: list[tuple[int, int, int, int]] = []
        """Device number, since when, hour and day quota: by the true clock."""
        self.catalogues: list[Catalogue] = []
        """Every version there was."""
        self._acts: dict[str, Callable[[Dice, Fault], None]] = {
            "opt-out": self._opt_out,
            "trigger removed": self._remove_trigger,
            "trigger edited": self._edit_trigger,
            "trigger comes back": self._bring_trigger_back,
            "lead edited": self._edit_lead,
            "lead deleted": self._delete_lead,
            "leads locked": self._lock_leads,
            "sequence paused": self._pause,
            "text edited": self._edit_text,
            "delay edited": self._edit_delay,
            "graph broken": self._break_graph,
            "step removed": self._remove_step,
            "device offline": self._set_offline,
            "device draining": self._drain,
            "device added": self._add_device,
            "device moved": self._move_device,
            "quota lowered": self._lower_quota,
            "quota raised": self._raise_quota,
            "operator resolves": self._resolve,
        }

    # The beginning -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Fill the tables; leads come when they come."""
        world = self._stage.world
        for number, device in enumerate(world.devices, 1):
            added = self._database.add_device(
                f"d-{number}",
                quota_per_hour=device.quota_per_hour,
                quota_per_day=device.quota_per_day,
                in_flight_max=device.in_flight_max,
                min_gap_s=device.min_gap_s,
                gateway_idempotent=device.idempotent,
                shard_id=device.shard,
            )
            self._keep_quota(added)
        for sequence in world.sequences:
            self._database.add_sequence(
                sequence.name, sequence.steps, reentry=sequence.reentry, sender_policy=sequence.sender_policy
            )
        self._keep_catalogue()
        for lead in world.leads:
            self._stage.at(lead.at_s, self._bring, lead.phone, lead.name, lead.trigger)

    def _bring(self, phone: str, name: str | None, trigger: str) -> None:
        self._database.add_lead(phone, trigger, name=name, attributes={"city": "Ipoh"} if name else {})

    def act(self, fault: Fault) -> bool:
        """Do what ``fault`` says, if it is people who do it."""
        act = self._acts.get(fault.kind)
        if act is not None:
            act(self._stage.dice.of("people", fault.number), fault)
        return act is not None

    def heal(self) -> None:
        """Faults are over: whoever was asked to look after devices and locks has done so."""
        self._database.locked_leads.clear()
        for number, device in self._database.devices.items():
            if device.health != "available":
                self.make_available(number)

    def _done(self, fault: Fault, what: str) -> None:
        self._stage.strike(fault.kind, "people", what)

    def _keep_quota(self, number: int) -> None:
        device = self._database.devices[number]
        self.quotas.append((number, self._stage.true_us(), device.quota_per_hour, device.quota_per_day))

    def _keep_catalogue(self) -> None:
        self.catalogues.append(self._database.catalogue())

    # Leads ---------------------------------------------------------------------------------------------------

    def _lead(self, dice: Dice) -> Lead | None:
        leads = list(self._database.leads.values())
        return dice.pick(leads) if leads else None

    def _opt_out(self, dice: Dice, fault: Fault) -> None:
        lead = self._lead(dice)
        if lead is not None and lead.opted_out_us is None:
            self._database.opt_out(lead.id)
            self.opted_out[lead.phone] = self._stage.true_us()
            self._done(fault, lead.phone)

    def _remove_trigger(self, dice: Dice, fault: Fault) -> None:
        lead = self._lead(dice)
        tokens = list(triggers.parse(lead.trigger)) if lead is not None else []
        if lead is not None and tokens:
            token = dice.pick(tokens)
            left = [other for other in tokens if other != token]
            self._database.set_trigger(lead.id, ",".join(left) or None)
            self.removed.append((lead.phone, token, self._stage.true_us()))
            self._done(fault, f"{token} off {lead.phone}")

    def _edit_trigger(self, dice: Dice, fault: Fault) -> None:
        lead = self._lead(dice)
        if lead is not None:
            tokens = [dice.pick(TOKENS), dice.pick(TOKENS)]
            trigger = dice.pick((" {} , {}", "{},,{}", "{},{}")).format(*tokens)
            self.retriggered |= {(lead.id, token) for token in tokens}
            self.removed += [
                (lead.phone, token, self._stage.true_us())
                for token in triggers.parse(lead.trigger)
                if token not in tokens
            ]
            self._database.set_trigger(lead.id, trigger)
            self._done(fault, f"{lead.phone} now carries {trigger!r}")

    def _bring_trigger_back(self, dice: Dice, fault: Fault) -> None:
        if self.removed:
            phone, token, _ = dice.pick(self.removed)
            for lead in self._database.leads.values():
                if lead.phone == phone:
                    self.retriggered.add((lead.id, token))
                    self._database.set_trigger(lead.id, f"{lead.trigger},{token}" if lead.trigger else token)
                    self._done(fault, f"{token} on {phone}")

    def _edit_lead(self, dice: Dice, fault: Fault) -> None:
        lead = self._lead(dice)
        if lead is not None:
            self._database.set_lead(lead.id, name=dice.pick(NAMES), attributes={"city": dice.pick(("Ipoh", "Melaka"))})
            self._done(fault, lead.phone)

    def _delete_lead(self, dice: Dice, fault: Fault) -> None:
        lead = self._lead(dice)
        if lead is not None:
            self.removed += [(lead.phone, token, self._stage.true_us()) for token in triggers.parse(lead.trigger)]
            self._database.delete_lead(lead.id)
            self._done(fault, lead.phone)

    def _lock_leads(self, _: Dice, fault: Fault) -> None:
        locked = set(self._database.leads)
        self._database.locked_leads |= locked
        self._stage.after(fault.lasts_s, self._database.locked_leads.difference_update, locked)
        self._done(fault, f"{len(locked)} for {fault.lasts_s:.0f} s")

    # Sequences -----------------------------------------------------------------------------------------------

    def _sequence(self, dice: Dice) -> int:
        return dice.pick(list(self._database.sequences))

    def _pause(self, dice: Dice, fault: Fault) -> None:
        sequence = self._sequence(dice)
        if self._database.sequences[sequence].is_active:
            self._database.set_active(sequence, False)
            self.paused.setdefault(sequence, []).append((self._stage.true_us(), None))
            self._stage.after(fault.lasts_s, self._resume, sequence)
            self._keep_catalogue()
            self._done(fault, f"sequence {sequence} for {fault.lasts_s:.0f} s")

    def _resume(self, sequence: int) -> None:
        self._database.set_active(sequence, True)
        self.paused[sequence][-1] = self.paused[sequence][-1][0], self._stage.true_us()
        self._keep_catalogue()
        self._stage.note("people", f"sequence {sequence} resumed")

    def _trigger(self, dice: Dice) -> str:
        return dice.pick([step.trigger for row in self._database.sequences.values() for step in row.steps])

    def _edit_text(self, dice: Dice, fault: Fault) -> None:
        trigger = self._trigger(dice)
        self._database.edit_step(trigger, message_text=dice.pick(TEXTS))
        self._keep_catalogue()
        self._done(fault, trigger)

    def _edit_delay(self, dice: Dice, fault: Fault) -> None:
        trigger = self._trigger(dice)
        self._database.edit_step(trigger, delay_h=dice.whole(1, 4))
        self._keep_catalogue()
        self._done(fault, trigger)

    def _break_graph(self, dice: Dice, fault: Fault) -> None:
        trigger = self._trigger(dice)
        step = self._database.catalogue().step[trigger]
        if step.next_trigger != "nowhere":
            self._database.edit_step(trigger, next_trigger="nowhere")
            self._keep_catalogue()
            self._stage.after(fault.lasts_s, self._mend_graph, trigger, step.next_trigger)
            self._done(fault, f"{trigger} leads nowhere for {fault.lasts_s:.0f} s")

    def _mend_graph(self, trigger: str, following: str | None) -> None:
        self._database.edit_step(trigger, next_trigger=following)
        self._keep_catalogue()
        self._stage.note("people", f"{trigger} mended")

    def _remove_step(self, dice: Dice, fault: Fault) -> None:
        trigger = self._trigger(dice)
        row = next(row for row in self._database.sequences.values() if any(s.trigger == trigger for s in row.steps))
        step = self._database.catalogue().step[trigger]
        if len(row.steps) > 1 and row.id is not None and step.next_trigger != "nowhere":  # somebody is to mend that one
            self._database.remove_step(trigger)
            self._keep_catalogue()
            self._stage.after(fault.lasts_s, self._bring_step_back, row.id, step)
            self._done(fault, f"{trigger} for {fault.lasts_s:.0f} s")

    def _bring_step_back(self, sequence: int, step: Step) -> None:
        self._database.add_step(sequence, step)
        self._keep_catalogue()
        self._stage.note("people", f"{step.trigger} is back")

    # Devices -------------------------------------------------------------------------------------------------

    def _device(self, dice: Dice) -> int:
        return dice.pick(list(self._database.devices))

    def _set_health(self, dice: Dice, fault: Fault, health: str) -> None:
        number = self._device(dice)
        self._database.set_device(number, health=health)
        self._stage.after(fault.lasts_s, self.make_available, number)
        self._done(fault, f"device {number} for {fault.lasts_s:.0f} s")

    def make_available(self, number: int) -> None:
        """A device works again."""
        self._database.set_device(number, health="available", health_cause=None)

    def _set_offline(self, dice: Dice, fault: Fault) -> None:
        self._set_health(dice, fault, "offline")

    def _drain(self, dice: Dice, fault: Fault) -> None:
        self._set_health(dice, fault, "draining")

    def _add_device(self, dice: Dice, fault: Fault) -> None:
        number = self._database.add_device(
            f"d-{len(self._database.devices) + 1}-late",
            quota_per_hour=dice.whole(2, 6),
            quota_per_day=dice.whole(10, 40),
            min_gap_s=1.0,
            in_flight_max=dice.whole(1, 5),
            gateway_idempotent=dice.chance(0.5),
        )
        self._keep_quota(number)
        self._done(fault, f"device {number}")

    def _move_device(self, dice: Dice, fault: Fault) -> None:
        number, shard = self._device(dice), dice.whole(0, self._stage.world.shards - 1)
        if self._database.devices[number].shard_id not in (None, shard):
            self._database.set_device(number, shard_id=shard)
            self._done(fault, f"device {number} to shard {shard}")

    def _lower_quota(self, dice: Dice, fault: Fault) -> None:
        number = self._device(dice)
        device = self._database.devices[number]
        if device.quota_per_hour > 1:
            day = max(device.quota_per_day // 2, device.quota_per_hour + 4)
            self._database.set_device(
                number, quota_per_hour=device.quota_per_hour - 1, quota_per_day=min(day, device.quota_per_day)
            )
            self._keep_quota(number)
            self._done(fault, f"device {number}")

    def _raise_quota(self, dice: Dice, fault: Fault) -> None:
        number = self._device(dice)
        device = self._database.devices[number]
        self._database.set_device(
            number, quota_per_hour=device.quota_per_hour + 2, quota_per_day=device.quota_per_day + 9
        )
        self._keep_quota(number)
        self._done(fault, f"device {number}")

    # What becomes known later --------------------------------------------------------------------------------

    def hear(self, request: Request) -> None:
        """A gateway has accepted a message without telling its sender: half of them send a receipt later."""
        stage = self._stage
        if not stage.dice.chance(0.5):
            return
        delay_s = stage.dice.between(0.1, _RECEIPT_S)
        if stage.struck("receipt late", "gateway", str(request)):
            delay_s *= 10
        stage.after(delay_s, self._learn, request.key)
        if stage.struck("receipt doubled", "gateway", str(request)):
            stage.after(delay_s * stage.dice.between(0.5, 2), self._learn, request.key)

    def _resolve(self, dice: Dice, fault: Fault) -> None:
        """An operator asks the gateway what became of an attempt in doubt."""
        surely_us = self._stage.true_us() - 2 * span_us(self._stage.world.settings.skew_s)
        rows = self._database.ledger.rows
        doubts = [row for row in rows if row.outcome == "in_doubt" and row.deadline_us < surely_us]
        if doubts:
            attempt = dice.pick(doubts)
            self._done(fault, f"enrolment {attempt.enrolment} visit {attempt.visit} attempt {attempt.attempt}")
            self.settled.add((attempt.enrolment, attempt.visit, attempt.generation))
            self._learn(attempt.key)

    def _learn(self, key: bytes) -> None:
        """Pass on what the gateway's log says of the earliest attempt in doubt under ``key``."""
        rows = [row for row in self._database.ledger.rows if row.key == key and row.outcome == "in_doubt"]
        if rows:
            self._stage.note("people", f"receipt for enrolment {rows[0].enrolment} visit {rows[0].visit}")
            self._stage.start(self._write(rows[0]))

    async def _write(self, row: Attempt) -> None:
        stage = self._stage
        catalogue = self._database.catalogue()
        following, delay_h = catalogue.advance(catalogue.indices([row.step]))
        number = next((device.number for device in self._database.devices.values() if device.id == row.device), 0)
        now_us = stage.database_us()
        message_id, at_us = self._ask(row.key) or (None, now_us)
        outcome = Outcome.NOT_SENT if message_id is None else Outcome.ACCEPTED
        delay_us = 0 if message_id is None else span_us(float(delay_h[0]) * stage.world.settings.hour_s)
        ends = Ends(
            enrolment=np.array([row.enrolment]),
            token=np.array([_NOBODYS_TOKEN]),
            lead=np.array([row.lead]),
            visit=np.array([row.visit], np.int32),
            generation=np.array([row.generation], np.int32),
            attempt=np.array([row.attempt], np.int32),
            device=np.array([number], np.int32),
            slot_us=np.array([row.slot_us]),
            due_us=np.array([row.due_us]),
            at_us=np.array([at_us]),
            step=[row.step],
            key=[row.key],
            outcome=[outcome.label],
            message_id=[message_id],
            error=[None],
            next_trigger=following.tolist(),
            next_due_us=np.array([at_us + delay_us]),
            next=["waiting"],
            counted=np.array([0], np.int32),
            pinned=np.array([False]),
            handed=np.array([True]),
            text=[None],
            media_url=[None],
        )
        settings = stage.world.settings
        store = MemoryShardStore(self._database, 0, "people")
        await store.end(ends, now_us, epoch=row.epoch, deadline_us=span_us(settings.deadline_s))
