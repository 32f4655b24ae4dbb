"""A shard: the last word on about 300 devices. It owns their quotas, hands over what was leased to it, and reports.

It hands over only what carries its epoch, a token it has not seen and a slot it holds; just before, it reads again that
the token is still the row's and no opt-out, reply, pause or end has come. PostgreSQL can rebuild all of its memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dispatcher.clock import liveness_s
from dispatcher.completer import Completer, ends_of, persistently
from dispatcher.config import Settings
from dispatcher.core.batches import (
    Coded,
    DueSoon,
    Indices,
    Int8s,
    Int32s,
    Int64s,
    Leased,
    Outcomes,
    Outgoing,
    SlotOffer,
)
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.leases import Ends, Usage
from dispatcher.core.messages import compiled
from dispatcher.core.moments import NEVER_US, span_us
from dispatcher.core.outcomes import Outcome
from dispatcher.errors import FencedError
from dispatcher.latecomers import Latecomers
from dispatcher.ports import Fate, Sender, ShardStore, Versions
from dispatcher.slots import SlotBook, rest_until_us
from dispatcher.windows import SendWindows
from dispatcher.wording import say

_log = logging.getLogger(__name__)
_TOKENS_KEPT = 10_000
_SETTLE_S = 0.05
_SERVICE_WINDOW_H = 24
"""How long after a lead has written free text may be sent, where a network has such a rule."""
_KEY_MARGIN = 0.9
"""A key counts as forgotten before its time is up: clocks differ, and a resend takes a while."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Summary of one pass: messages handed over, given back and ended."""

    handed: int = 0
    given_back: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


class Shard:
    """One shard's devices.

    Args:
        shard: its number.
        settings: deadlines, windows, batch sizes.
        store: its statements.
        sender: makes the sender once the devices are known.
    """

    def __init__(self, shard: int, settings: Settings, store: ShardStore, sender: Callable[[Fleet], Sender]) -> None:
        self.shard, self._settings, self._store, self._make_sender = shard, settings, store, sender
        self.epoch = 0
        self.woken = asyncio.Event()
        """Set when something has come that has to leave or to be written; whoever runs the shard clears it."""
        self._trusted_until_s = 0.0
        self._completer = Completer(store, settings, self._written)
        self._windows = SendWindows(store, span_us(settings.deadline_s))
        self._latecomers = Latecomers(store, settings)
        self._pending: list[Leased] = []
        self._out: dict[int, Leased] = {}
        self._batches = 0
        self._seen: dict[int, None] = {}
        self._due: list[tuple[Int32s, Int64s]] = []

    # Ownership -----------------------------------------------------------------------------------------------

    async def take_over(self, now_us: int) -> int:
        """Raise the epoch - earlier incarnations can claim nothing more - and only then load what counts."""
        started_s = liveness_s()
        self.epoch = await self._store.seat.raise_epoch()
        self._versions = await self._store.versions()
        self._load_catalogue(await self._store.catalogue())
        fleet = await self._store.fleet()
        self._now_us = now_us
        self._slots = SlotBook(fleet, await self._read_usage(), self._settings)
        self._pending = []
        self._sender = self._make_sender(fleet)
        self._trusted_until_s = started_s + self._settings.trust_s
        return self.epoch

    async def beat(self) -> int:
        """Renew the trust in the epoch; returns the database's clock.

        Raises:
            FencedError: a newer incarnation owns the devices. Nothing more leaves from here.
        """
        started_s = liveness_s()
        beat = await self._store.seat.beat(self._settings.leader_s)
        if beat.epoch != self.epoch:
            self._trusted_until_s, self._pending = 0.0, []
            raise FencedError(self._store.seat.name, self.epoch)
        self._trusted_until_s = started_s + self._settings.trust_s
        return beat.wall_us

    @property
    def trusted(self) -> bool:
        """Whether the epoch was renewed lately enough to act on it."""
        return liveness_s() < self._trusted_until_s

    async def refresh(self) -> None:
        """Read catalogue and devices again if they have changed. Lowered quotas bind new slots only."""
        versions = await self._store.versions()
        if versions.sequences != self._versions.sequences:
            self._load_catalogue(await self._store.catalogue())
        if versions.devices != self._versions.devices:
            fleet = await self._store.fleet()
            self._slots.load(fleet, await self._read_usage() if self._slots.joins(fleet) else [])
            self._sender.update(fleet.gateways())
        self._versions = Versions(*versions)

    def _load_catalogue(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._templates = {
            trigger: compiled(step.message_text)
            for trigger, step in catalogue.step.items()
            if catalogue.sequence_of[trigger].id not in catalogue.problems
        }

    async def _read_usage(self) -> list[Usage]:
        day_us = self._settings.hours_us(24) + span_us(self._settings.guard_s + self._settings.deadline_s)
        return await self._store.usage(self._now_us - day_us)

    # Slots ---------------------------------------------------------------------------------------------------

    def offer(self, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """Free slots of ``devices`` (numbers, ascending) within the horizon, held until the delivery.

        An earlier offer that was never answered goes back first; what was claimed for it will be given back.
        """
        self._now_us = now_us
        slots = self._slots.offer(now_us, horizon_us if self.trusted else 0, devices)
        return SlotOffer(
            epoch=self.epoch,
            offer=slots.offer,
            number=slots.number,
            slots=slots.slots,
            slot_us=slots.slot_us,
            free_us=slots.free_us,
            due=self.take_due(),
        )

    def take_due(self) -> DueSoon:
        """What became due again since this was asked last: the earliest moment a device."""
        due, self._due = self._due, []
        return DueSoon.earliest(due, self._slots.take_freed())

    def deliver(self, offer: int, leased: Leased | None) -> None:
        """Take what was claimed for ``offer``. Seen before, or of another epoch: ignored."""
        if leased is None:
            self._slots.withdraw(offer)
            return
        if leased.epoch != self.epoch or leased.token in self._seen:
            return
        self._seen[leased.token] = None
        while len(self._seen) > _TOKENS_KEPT:
            self._seen.pop(next(iter(self._seen)))
        if not self._slots.fill(leased):
            _log.warning(
                "claim %d came after its offer: %d enrolments wait again",
                leased.token,
                len(leased),
                extra={"event": "late_claim"},
            )
            leased = leased.replace(slot_us=np.full(len(leased), -1, np.int64))
        self._pending.append(leased)
        self.woken.set()

    # Hand-over -----------------------------------------------------------------------------------------------

    @property
    def next_slot_us(self) -> int | None:
        """The earliest slot that waits for its moment."""
        return min((int(leased.slot_us.min()) for leased in self._pending), default=None)

    async def hand_over(self, now_us: int, until_us: int) -> HandOver:
        """Hand over everything whose slot is at most ``until_us`` and wait for the outcomes.

        What is past its deadline at ``now_us``, may not leave any more, or has lost its slot, waits again.
        """
        if not self.trusted:
            return HandOver()
        ready: list[Leased] = []
        rest: list[Leased] = []
        for leased in self._pending:
            due = leased.slot_us <= until_us
            if due.all():
                ready.append(leased)
                continue
            if due.any():
                ready.append(leased.take(np.flatnonzero(due)))
            rest.append(leased.take(np.flatnonzero(~due)))
        self._pending = rest
        numbers = [self._batches + row for row in range(len(ready))]
        self._batches += len(ready)
        self._out.update(zip(numbers, ready, strict=True))
        parts = await asyncio.gather(
            *(self._hand_over_batch(number, leased, now_us) for number, leased in zip(numbers, ready, strict=True))
        )
        outcomes: dict[str, int] = {}
        for part in parts:
            for label, count in part.outcomes.items():
                outcomes[label] = outcomes.get(label, 0) + count
        return HandOver(sum(p.handed for p in parts), sum(p.given_back for p in parts), outcomes)

    async def _hand_over_batch(self, number: int, leased: Leased, now_us: int) -> HandOver:
        deadline_us = leased.slot_us + span_us(self._settings.deadline_s)
        back = dict.fromkeys(np.flatnonzero(deadline_us < now_us).tolist(), "late")
        back |= dict.fromkeys(await self._unknown_steps(leased), "unknown step")
        catalogue = self._catalogue  # as it is rendered from: steps may be edited until the outcome is known
        remain = np.setdiff1d(np.arange(len(leased)), list(back))
        too_late = self._latecomers.among(leased, remain, catalogue)
        back |= dict.fromkeys(too_late.tolist(), "too late")
        remain = np.setdiff1d(remain, too_late)
        leased, opens_us = await self._windows.look(leased, remain, catalogue)
        shut = np.flatnonzero(opens_us > leased.slot_us)
        back |= dict.fromkeys(shut.tolist(), "window shut")
        remain = np.setdiff1d(remain, shut)
        said = say(leased, *await self._service_windows(leased, remain, now_us), catalogue, self._templates)
        key_known_us = now_us - span_us(_KEY_MARGIN * self._settings.key_retention_s)
        back |= await persistently(
            lambda: self._store.last_look(leased, said.texts, said.media_urls, now_us, key_known_us)
        )
        if not self.trusted:
            back = dict.fromkeys(range(len(leased)), "epoch not renewed") | back
        if back:
            await self._give_back(leased, back, now_us, opens_us)
        if len(too_late) and self.trusted:
            self._due = await self._latecomers.move(catalogue, now_us) + self._due  # as it is afterwards
        if len(shut) and self.trusted:
            await self._windows.postpone(leased.take(shut), catalogue, now_us)
        leaves, sayable = np.ones((2, len(leased)), np.bool_)
        leaves[list(back)] = False
        sayable[list(said.errors)] = False
        rows, unsayable = np.flatnonzero(leaves & sayable), np.flatnonzero(leaves & ~sayable)
        leaving = leased.take(rows)
        self._out[number] = leaving
        if len(unsayable):
            self._keep(leased.take(unsayable), [said.errors[row] for row in unsayable.tolist()], catalogue, now_us)
        step = catalogue.indices(leaving.step)
        outgoing = Outgoing(
            device=leaving.device,
            slot_us=leaving.slot_us,
            deadline_us=deadline_us[rows],
            visit=leaving.visit,
            attempt=leaving.attempt,
            to=leaving.phone,
            text=said.texts.take(rows).map(lambda text: text or ""),
            media_url=said.media_urls.take(rows),
            key=idempotency_keys(leaving.enrolment, leaving.visit, leaving.generation),
            sequence=Coded([catalogue.sequence_of[trigger].name for trigger in catalogue.triggers], step),
            step=Coded(catalogue.triggers, step),
            template=said.templates and [said.templates[row] for row in rows.tolist()],
        )
        counts = await self._send(leaving, outgoing, catalogue) if len(leaving) else {}
        del self._out[number]
        return HandOver(len(leaving), len(back), counts)

    async def _service_windows(
        self, leased: Leased, remain: Indices, now_us: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which rows leave, and which may say no more than an approved template: asked only where it counts."""
        leaves, outside = np.zeros((2, len(leased)), np.bool_)
        leaves[remain] = True
        rows = remain[self._slots.windowed(leased.device[remain])]
        if len(rows):
            # It has to be open still when the message arrives.
            since_us = now_us - self._settings.hours_us(_SERVICE_WINDOW_H) + span_us(self._settings.deadline_s)
            part = leased.take(rows)
            outside[rows] = ~await persistently(lambda: self._store.open_windows(part.lead, part.device, since_us))
        return leaves, outside

    async def _send(self, leased: Leased, outgoing: Outgoing, catalogue: Catalogue) -> dict[str, int]:
        """Hand over and book what comes back; what the sender says nothing about is in doubt."""
        counts: dict[str, int] = {}
        resting: list[tuple[Int32s, Int64s]] = []
        untold = np.ones(len(leased), np.bool_)

        def book(outcomes: Outcomes) -> None:
            untold[outcomes.row] = False
            sent = outgoing.take(outcomes.row)
            self._end(leased.take(outcomes.row), sent.key, outcomes, (sent.text, sent.media_url), catalogue)
            for value, count in zip(*np.unique(outcomes.outcome, return_counts=True), strict=True):
                counts[Outcome(value).label] = counts.get(Outcome(value).label, 0) + int(count)
            if len(told := np.flatnonzero(outcomes.outcome == Outcome.THROTTLED_ACCOUNT)):
                until_us = rest_until_us(Outcome.THROTTLED_ACCOUNT, outcomes.at_us[told], outcomes.retry_after_s[told])
                resting.append((outgoing.device[outcomes.row[told]], until_us))

        try:
            async for outcomes in self._sender.send(outgoing):
                book(outcomes)
        except Exception:
            _log.exception("shard %d: the sender broke off", self.shard, extra={"event": "sender_broke_off"})
        rows = np.flatnonzero(untold)
        if len(rows):
            book(
                Outcomes(
                    row=rows,
                    outcome=np.full(len(rows), int(Outcome.IN_DOUBT), np.int8),
                    at_us=outgoing.deadline_us[rows],
                    message_id=Coded.same(None, len(rows)),
                    error=Coded.same("the sender said nothing", len(rows)),
                    retry_after_s=np.full(len(rows), np.nan),
                )
            )
        for device, until_us in resting:
            await persistently(partial(self._store.rest_accounts, device, until_us))
        return counts

    async def _unknown_steps(self, leased: Leased) -> list[int]:
        """Rows at steps that nobody knows or that are broken, also after another look."""
        step = Coded.of(leased.step)
        if not step.where(self._renders).all():
            await persistently(self.refresh)
        return np.flatnonzero(~step.where(self._renders)).tolist()

    def _renders(self, trigger: str) -> bool:
        return trigger in self._templates

    async def _give_back(
        self, leased: Leased, back: dict[int, str], now_us: int, opens_us: Int64s | None = None
    ) -> None:
        rows = np.array(list(back), np.intp)
        part = leased.take(rows)
        held = part.slot_us >= 0
        self._slots.give_back(part.device[held], part.slot_us[held])
        stop = [reason if reason in ("opted out", "trigger removed", "replied") else None for reason in back.values()]
        # What is paused or too late is as late as it is: nobody claims it as it stands.
        late = [reason in ("paused", "too late") for reason in back.values()]
        due_us = np.where(late, part.due_us, np.maximum(part.due_us, now_us))
        if opens_us is not None:
            shut = [reason == "window shut" for reason in back.values()]
            due_us[shut] = opens_us[rows][shut]
        # At a step that does not exist it would be first in line for ever, and keep the device's slots from all others.
        nowhere = [reason == "unknown step" for reason in back.values()]
        due_us[nowhere] += span_us(self._settings.retry_base_s)
        aside = [reason == "step paused" for reason in back.values()]
        token = np.full(len(rows), leased.token, np.int64)
        forgotten = [reason == "key forgotten" for reason in back.values()]
        await persistently(lambda: self._store.give_back(part.enrolment, token, due_us, stop, now_us, forgotten, aside))
        self._due.append((part.device, due_us))

    def _keep(self, part: Leased, reasons: list[tuple[Outcome, str]], catalogue: Catalogue, now_us: int) -> None:
        """End rows that have nothing to say: they never left."""
        outcomes = Outcomes(
            row=np.arange(len(part)),
            outcome=np.array([outcome for outcome, _ in reasons], np.int8),
            at_us=np.maximum(part.slot_us, now_us),
            message_id=Coded.same(None, len(part)),
            error=[error for _, error in reasons],
            retry_after_s=np.full(len(part), np.nan),
        )
        self._slots.release(part.device, part.slot_us)
        keys = idempotency_keys(part.enrolment, part.visit, part.generation)
        self._end(part, keys, outcomes, None, catalogue)

    def _end(
        self,
        leased: Leased,
        keys: list[bytes],
        outcomes: Outcomes,
        said: tuple[Sequence[str], Sequence[str | None]] | None,
        catalogue: Catalogue,
    ) -> None:
        """Book outcomes (of ``leased``, row by row) against quotas and pass them on to the completer.

        Args:
            said: texts and media URLs of what was handed over; None where nothing was.
            catalogue: where they go from here.
        """
        self._slots.book(leased, outcomes, handed=said is not None)
        idempotent = self._slots.idempotent(leased.device)
        self._completer.add(ends_of(leased, keys, outcomes, said, catalogue, idempotent, self._settings))
        self.woken.set()

    @property
    def in_hand(self) -> int:
        """Leases without a written end."""
        return sum(map(len, (*self._pending, *self._out.values()))) + len(self._completer.unwritten())

    @property
    def ripe_s(self) -> float:
        """When ends that wait should be written, in liveness time; infinity when none do."""
        return self._completer.ripe_s

    # Completion ----------------------------------------------------------------------------------------------

    async def complete(self, now_us: int) -> int:
        """Write all ends gathered so far, and which devices have turned out to fail; returns how many ends."""
        written = await self._completer.flush(now_us, self.epoch)
        turned = self._slots.take_turned()
        if turned is not None:
            await persistently(lambda: self._store.set_breakers(turned))
        return written

    def _written(self, ends: Ends) -> None:
        accepted = Coded.of(ends.outcome).where(lambda outcome: outcome in ("accepted", "repeat"))
        follows = Coded.of(ends.next_trigger).where(lambda trigger: trigger is not None)
        waits = np.where(accepted, follows, Coded.of(ends.next).where(lambda state: state == "waiting"))
        self._due.append((ends.device, np.where(waits, ends.next_due_us, NEVER_US)))

    # Leases --------------------------------------------------------------------------------------------------

    async def adopt(self) -> int:
        """Find claims of this epoch that no routing call brought; returns how many were new."""
        found = 0
        for token in await self._store.leased_tokens(self.epoch):
            if token not in self._seen:
                leased = await self._store.read_lease(self.epoch, token)
                if leased is None:
                    continue
                # Tokens are forgotten in time; what is in hand is known without them.
                lost = np.flatnonzero(~np.isin(leased.enrolment, self._enrolments_in_hand()))
                if len(lost):
                    self.deliver(0, leased.take(lost))
                    found += 1
        return found

    def fate(self, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """``Fate`` of each lease; one of this epoch that was never seen is refused from now on."""
        seen = np.isin(enrolment, self._enrolments_in_hand()) | (epoch != self.epoch)
        for unknown in np.unique(token[~seen]).tolist():
            self._seen.setdefault(unknown, None)
        return np.where(seen, Fate.IN_HAND, Fate.NEVER_SEEN).astype(np.int8)

    def _enrolments_in_hand(self) -> Int64s:
        """Enrolments whose leases have no written end."""
        in_hand = [leased.enrolment for leased in (*self._pending, *self._out.values())]
        return np.concatenate([*in_hand, self._completer.unwritten()])

    async def settle(self, now_us: int, within_s: float) -> None:
        """Write the ends of what is out already, as they come, for at most ``within_s``; nothing more leaves."""
        self._pending = []
        until_s = liveness_s() + within_s
        while self._out and liveness_s() < until_s:
            await asyncio.sleep(_SETTLE_S)
        await self.complete(now_us)

    async def drain(self, now_us: int) -> int:
        """Give back what has not left yet and write every end; returns how many leases were given back."""
        pending, self._pending = self._pending, []
        for leased in pending:
            await self._give_back(leased, dict.fromkeys(range(len(leased)), "drained"), now_us)
        while self._out:
            await asyncio.sleep(0.02)
        await self.complete(now_us)
        return sum(len(leased) for leased in pending)

    async def close(self) -> None:
        """Give up sender and connections."""
        await self._sender.close()
        await self._store.close()
