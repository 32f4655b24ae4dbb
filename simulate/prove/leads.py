"""What becomes of leads: triggers put on and taken off, opt-outs, edits. And what the tester writes down of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from dispatcher.core import triggers
from dispatcher.core.moments import span_us
from simulate.evidence import ALWAYS_US
from simulate.memory_store import MemoryDatabase
from simulate.memory_store.replying import receive
from simulate.memory_store.rows import Change, Lead
from simulate.prove.dice import Dice
from simulate.prove.faults import REPLY, Fault
from simulate.prove.stage import Stage
from simulate.prove.world import NAMES, REPLIES, TOKENS, ZONES, LeadPlan

_FOR_GOOD_US: Final = 2**62


class Leads:
    """Leads, and the marketers who bring them.

    Args:
        stage: where they act.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._database: MemoryDatabase = stage.database
        self.opted_out: dict[str, int] = {}
        """When each phone opted out, by the true clock; those that opted in again since are not in it."""
        self.replied: dict[int, int] = {}
        """By enrolment, when a reply ended it, by the true clock."""
        self.time_zones: dict[str, list[tuple[int, str | None]]] = {}
        """By phone, since when which one holds."""
        self.untriggered: dict[tuple[int, str], list[tuple[int, int]]] = {}
        """By lead and trigger: since when the engine has seen that it was taken off by hand, until it came back."""
        self.reached: dict[tuple[int, int], list[int]] = {}
        """By lead and sequence: when the engine had seen that its goal was reached."""
        self.retriggered: set[tuple[int, str]] = set()
        """Lead and trigger that was put on by hand after the lead had been brought in."""
        self._put: dict[int, set[str]] = {}
        """By lead, the triggers that were ever put on."""
        self._removed: list[tuple[int, str]] = []
        self._unseen: dict[tuple[int, str], Change] = {}
        """What was taken off, with the queued change that tells the engine."""
        self._unseen_goals: dict[tuple[int, int], Change] = {}
        """Goals that were reached, likewise."""
        stage.listen("enrol", self._see)
        self.acts: dict[str, Callable[[Dice, Fault], None]] = {
            "opt-out": self._opt_out,
            "opt-in": self._opt_in,
            REPLY: self._reply,
            "trigger removed": self._remove_trigger,
            "trigger edited": self._edit_trigger,
            "trigger comes back": self._bring_trigger_back,
            "lead edited": self._edit,
            "lead deleted": self._delete,
            "leads locked": self._lock,
        }

    def begin(self) -> None:
        """Have them come when they come."""
        for lead in self._stage.world.leads:
            self._stage.at(lead.at_s, self._bring, lead)

    def heal(self) -> None:
        """Nobody holds a lead's row any more."""
        self._database.locked_leads.clear()

    def _bring(self, plan: LeadPlan) -> None:
        device = None if plan.home is None else self._database.devices.get(plan.home)
        added = self._database.add_lead(
            plan.phone,
            plan.trigger,
            name=plan.name,
            attributes={"city": "Ipoh"} if plan.name else {},
            home_device_id=None if device is None else device.id,
            opted_in_us=self._stage.database_us() if plan.opted_in else None,
            time_zone=plan.time_zone,
        )
        self.time_zones[plan.phone] = [(ALWAYS_US, plan.time_zone)]
        self._put[added] = set(triggers.parse(plan.trigger))
        self._reach(added, triggers.parse(plan.trigger))

    def stripped(self) -> int:
        """Triggers gone from leads though nobody took them off and no enrolment by them has completed."""
        database, gone = self._database, 0
        for id_, lead in database.leads.items():
            done = {row.entry for row in database.of_lead.get(id_, ()) if row.status == "completed"}
            by_hand = {token for other, token in self._removed if other == id_}
            gone += len(self._put.get(id_, set()) - set(triggers.parse(lead.trigger)) - done - by_hand)
        return gone

    def _done(self, fault: Fault, what: str) -> None:
        self._stage.strike(fault.kind, "people", what)

    def _lead(self, dice: Dice) -> Lead | None:
        leads = list(self._database.leads.values())
        return dice.pick(leads) if leads else None

    # Consent -------------------------------------------------------------------------------------------------

    def _opt_out(self, dice: Dice, fault: Fault) -> None:
        """By the lead's column, or by its number on the list."""
        lead = self._lead(dice)
        if lead is not None and lead.opted_out_us is None:
            if lead.id % 2:
                self._database.opt_out(lead.id)
            else:
                self._database.suppress(lead.phone)
            self.opted_out[lead.phone] = self._stage.true_us()
            self._done(fault, lead.phone)

    def _opt_in(self, dice: Dice, fault: Fault) -> None:
        """One that has opted out before, if there is any, else one that never said anything."""
        leads = self._database.leads.values()
        out = [lead for lead in leads if lead.opted_out_us is not None]
        silent = [lead for lead in leads if lead.opted_in_us is None]
        if out or silent:
            lead = dice.pick(out or silent)
            self._database.suppressions.discard(lead.phone)
            self._database.opt_in(lead.id)
            self.opted_out.pop(lead.phone, None)
            self._done(fault, lead.phone)

    def _reply(self, dice: Dice, fault: Fault) -> None:
        """Most are told once; some twice, and some as of a while ago."""
        lead = self._lead(dice)
        if lead is None:
            return
        text, now_us, database = dice.pick(REPLIES), self._stage.true_us(), self._database
        ago_us = span_us(dice.between(1, 60)) if dice.chance(0.2) else None
        received_us = None if ago_us is None else database.wall_us() - ago_us
        known = [
            row
            for row in database.of_lead.get(lead.id, ())
            if row.live
            and database.sequences[row.sequence].exit_on_reply
            and (received_us is None or row.enrolled_us <= received_us)
        ]
        name = f"reply {fault.number}"
        for _ in range(dice.whole(1, 2)):
            receive(database, f"+{lead.phone}", text, received_us=received_us, message_id=name)
        for row in known:
            self.replied.setdefault(row.id, now_us)
        if text in REPLIES[:3] and lead.opted_out_us is None:
            self.opted_out[lead.phone] = now_us
        self._done(fault, f"{text!r} from {lead.phone}")

    # Triggers ------------------------------------------------------------------------------------------------

    def _remove_trigger(self, dice: Dice, fault: Fault) -> None:
        lead = self._lead(dice)
        tokens = list(triggers.parse(lead.trigger)) if lead is not None else []
        if lead is not None and tokens:
            token = dice.pick(tokens)
            left = [other for other in tokens if other != token]
            self._database.set_trigger(lead.id, ",".join(left) or None)
            self._taken_off(lead.id, [token])
            self._done(fault, f"{token} off {lead.phone}")

    def _edit_trigger(self, dice: Dice, fault: Fault) -> None:
        lead = self._lead(dice)
        if lead is not None:
            tokens = [dice.pick(TOKENS), dice.pick(TOKENS)]
            trigger = dice.pick((" {} , {}", "{},,{}", "{},{}")).format(*tokens)
            gone = [token for token in triggers.parse(lead.trigger) if token not in tokens]
            self._database.set_trigger(lead.id, trigger)
            self._put_on(lead.id, tokens)
            self._taken_off(lead.id, gone)
            self._done(fault, f"{lead.phone} now carries {trigger!r}")

    def _bring_trigger_back(self, dice: Dice, fault: Fault) -> None:
        if self._removed:
            id_, token = dice.pick(self._removed)
            lead = self._database.leads.get(id_)
            if lead is not None:
                self._database.set_trigger(id_, f"{lead.trigger},{token}" if lead.trigger else token)
                self._put_on(id_, [token])
                self._done(fault, f"{token} on {lead.phone}")

    def _taken_off(self, lead: int, tokens: Iterable[str]) -> None:
        """Just now, by the change that was queued last."""
        for token in tokens:
            self._removed.append((lead, token))
            self._unseen[lead, token] = self._database.queue[-1]
            for pair in self._goals(lead, token):
                self._unseen_goals.pop(pair, None)

    def _put_on(self, lead: int, tokens: Iterable[str]) -> None:
        self._put.setdefault(lead, set()).update(tokens)
        for pair in [(lead, token) for token in tokens]:
            self.retriggered.add(pair)
            self._unseen.pop(pair, None)
            spans = self.untriggered.get(pair)
            if spans and spans[-1][1] == _FOR_GOOD_US:
                spans[-1] = spans[-1][0], self._stage.true_us()
        self._reach(lead, tokens)

    def _reach(self, lead: int, tokens: Iterable[str]) -> None:
        """The lead carries these triggers: what they are the goals of is to end."""
        for pair in [pair for token in tokens for pair in self._goals(lead, token)]:
            if self._database.queue:
                self._unseen_goals.setdefault(pair, self._database.queue[-1])

    def _goals(self, lead: int, token: str) -> list[tuple[int, int]]:
        rows = self._database.sequences.items()
        return [(lead, id_) for id_, row in rows if row.goal is not None and row.goal.trigger == token]

    def _see(self) -> None:
        """The engine has worked off changes: what is not queued any more it knows."""
        for pair, change in list(self._unseen.items()):
            if change not in self._database.queue:
                del self._unseen[pair]
                self.untriggered.setdefault(pair, []).append((self._stage.true_us(), _FOR_GOOD_US))
        for goal, change in list(self._unseen_goals.items()):
            if change not in self._database.queue:
                del self._unseen_goals[goal]
                self.reached.setdefault(goal, []).append(self._stage.true_us())

    # Everything else -----------------------------------------------------------------------------------------

    def _edit(self, dice: Dice, fault: Fault) -> None:
        """Every lead's name and city: a file is imported again. Some have moved to another time zone."""
        for id_, lead in list(self._database.leads.items()):
            zone = dice.of("moves", id_).pick((lead.time_zone, None, *ZONES))
            named = {"name": dice.pick(NAMES), "attributes": {"city": dice.pick(("Ipoh", "Melaka"))}}
            self._database.set_lead(id_, **named, time_zone=zone)
            self.time_zones[lead.phone].append((self._stage.true_us(), zone))
        self._done(fault, f"{len(self._database.leads)} leads")

    def _delete(self, dice: Dice, fault: Fault) -> None:
        lead = self._lead(dice)
        if lead is not None:
            self._database.delete_lead(lead.id)
            self._taken_off(lead.id, triggers.parse(lead.trigger))
            self._done(fault, lead.phone)

    def _lock(self, _: Dice, fault: Fault) -> None:
        locked = set(self._database.leads)
        self._database.locked_leads |= locked
        self._stage.after(fault.lasts_s, self._database.locked_leads.difference_update, locked)
        self._done(fault, f"{len(locked)} for {fault.lasts_s:.0f} s")
