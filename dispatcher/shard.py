"""A shard: the last word on about 300 devices. It owns their quotas, hands over what was leased to it, and reports.

It hands over only what carries its epoch, a token it has not seen and a slot it holds; just before, it reads again that
the token is still the row's and that no opt-out, pause or end has come. Everything in its memory can be rebuilt from
PostgreSQL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dispatcher.completer import THROTTLE_S, Completer, ends_of, persistently
from dispatcher.config import Settings
from dispatcher.core.batches import DueSoon, Indices, Int8s, Int32s, Int64s, Leased, Outcomes, Outgoing, SlotOffer
from dispatcher.core.fleet import Fleet
from dispatcher.core.graph import Catalogue
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.messages import compiled
from dispatcher.core.moments import NEVER_US, SECOND_US, span_us
from dispatcher.core.outcomes import PROVED_UNSENT, Outcome
from dispatcher.core.quota import Offer, SlidingLog
from dispatcher.errors import FencedError
from dispatcher.ports import Fate, Sender
from dispatcher.store.registry import Versions
from dispatcher.store.shard_store import Ends, ShardStore, Usage

_log = logging.getLogger(__name__)
_TOKENS_KEPT = 10_000
_UNSENT = np.array([int(outcome) for outcome in PROVED_UNSENT])


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
        self._trusted_until_s = 0.0
        self._completer = Completer(store, settings, self._written)
        self._pending: list[Leased] = []
        self._out: dict[int, Leased] = {}
        self._batches = 0
        self._seen: dict[int, None] = {}
        self._offer: Offer | None = None
        self._due: list[tuple[Int32s, Int64s]] = []

    # Ownership -----------------------------------------------------------------------------------------------

    async def take_over(self, now_us: int) -> int:
        """Raise the epoch - earlier incarnations can claim nothing more - and only then load what counts."""
        started_s = time.monotonic()
        self.epoch = await self._store.seat.raise_epoch()
        self._versions = await self._store.versions()
        self._load_catalogue(await self._store.catalogue())
        self._fleet = await self._store.fleet()
        self._owned, self._now_us = self._fleet.number, now_us
        self._log = SlidingLog(
            self._fleet.quota_per_hour,
            self._fleet.quota_per_day,
            self._fleet.in_flight_max,
            np.rint(self._fleet.min_gap_s * SECOND_US).astype(np.int64),
            hour_us=self._settings.hours_us(1),
            guard_us=span_us(self._settings.guard_s),
        )
        self._log.set_limits(available=self._fleet.available)
        self._rest_until_us = np.zeros(len(self._fleet), np.int64)
        self._load_usage(await self._read_usage(), self._owned)
        self._pending, self._offer = [], None
        self._sender = self._make_sender(self._fleet)
        self._trusted_until_s = started_s + self._settings.trust_s
        return self.epoch

    async def beat(self) -> int:
        """Renew the trust in the epoch; returns the database's clock.

        Raises:
            FencedError: a newer incarnation owns the devices. Nothing more leaves from here.
        """
        started_s = time.monotonic()
        beat = await self._store.seat.beat(self._settings.leader_s)
        if beat.epoch != self.epoch:
            self._trusted_until_s, self._pending = 0.0, []
            raise FencedError(self._store.seat.name, self.epoch)
        self._trusted_until_s = started_s + self._settings.trust_s
        return beat.wall_us

    @property
    def trusted(self) -> bool:
        """Whether the epoch was renewed lately enough to act on it."""
        return time.monotonic() < self._trusted_until_s

    async def refresh(self) -> None:
        """Read catalogue and devices again if they have changed. Lowered quotas bind new slots only."""
        versions = await self._store.versions()
        if versions.sequences != self._versions.sequences:
            self._load_catalogue(await self._store.catalogue())
        if versions.devices != self._versions.devices:
            fleet = await self._store.fleet()
            joined = not np.isin(fleet.number, self._owned).all()
            self._load_fleet(fleet, await self._read_usage() if joined else [])
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

    def _load_usage(self, usage: list[Usage], numbers: Int32s) -> None:
        """Add the usage of the devices ``numbers``, all of which are in the fleet."""
        for part in usage:
            if part.number in numbers:
                row = int(self._fleet.rows(np.array([part.number], np.int32))[0])
                self._log.load(np.full(len(part.at_us), row, np.intp), part.at_us)

    def _load_fleet(self, fleet: Fleet, usage: list[Usage]) -> None:
        """Take in the devices as they are now: those that left become unavailable, those that join bring their usage.

        One that comes back is charged twice for what this incarnation sent: rather too little than too much.
        """
        joined = np.setdiff1d(fleet.number, self._owned)
        self._owned = fleet.number
        if len(joined):
            # Rows may move: an offer that is open names rows. What is claimed for it waits again.
            self._answer(np.zeros(0, np.int64), None)
        gone = np.setdiff1d(self._fleet.number, fleet.number)
        if len(gone):
            rows = self._fleet.rows(gone.astype(np.int32))
            self._log.set_limits(rows, available=False)
            kept = self._fleet.take(rows)
            fleet = Fleet.join([fleet, kept.replace(available=np.zeros(len(kept), np.bool_))])
            fleet = fleet.take(np.argsort(fleet.number))
        gap_us = np.rint(fleet.min_gap_s * SECOND_US).astype(np.int64)
        rows = np.flatnonzero(~np.isin(fleet.number, self._fleet.number))
        new = fleet.take(rows)
        self._log.add_devices(new.quota_per_hour, new.quota_per_day, new.in_flight_max, gap_us[rows])
        order = np.argsort(np.concatenate([self._fleet.number, new.number]))
        if len(joined):
            self._log.reorder(order)
        self._rest_until_us = np.pad(self._rest_until_us, (0, len(new)))[order]
        self._log.set_limits(
            quota_per_hour=fleet.quota_per_hour,
            quota_per_day=fleet.quota_per_day,
            in_flight_max=fleet.in_flight_max,
            min_gap_us=gap_us,
            available=fleet.available,
        )
        self._fleet = fleet
        self._load_usage(usage, joined)
        self._sender.update(fleet.gateways())

    # Slots ---------------------------------------------------------------------------------------------------

    def offer(self, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """Free slots of ``devices`` (numbers, ascending) within the horizon, held until the delivery.

        An earlier offer that was never answered goes back first; what was claimed for it will be given back.
        """
        self._now_us = now_us
        self._answer(np.zeros(0, np.int64), None)
        known = devices[np.isin(devices, self._fleet.number)]
        rows = self._fleet.rows(known)
        rested = self._rest_until_us[rows] <= now_us
        if not self.trusted:
            rested[:] = False
        offer = self._log.offer(now_us, horizon_us, rows[rested])
        slots = np.zeros(len(rows), np.int32)
        slots[np.searchsorted(rows, offer.devices)] = offer.counts
        free_us = np.maximum(self._log.next_free_us(rows), self._rest_until_us[rows])
        free_us[slots > 0] = offer.slot_us[np.cumsum(offer.counts) - offer.counts]
        self._offer = offer
        due = self.take_due()
        return SlotOffer(
            epoch=self.epoch,
            offer=offer.number,
            number=known,
            slots=slots,
            slot_us=offer.slot_us,
            free_us=free_us,
            due=due,
        )

    def take_due(self) -> DueSoon:
        """What became due again since this was asked last: the earliest moment a device."""
        if not self._due:
            return DueSoon(np.zeros(0, np.int32), np.zeros(0, np.int64))
        device = np.concatenate([part[0] for part in self._due])
        due_us = np.concatenate([part[1] for part in self._due])
        self._due = []
        number, inverse = np.unique(device, return_inverse=True)
        earliest_us = np.full(len(number), NEVER_US, np.int64)
        np.minimum.at(earliest_us, inverse, due_us)
        return DueSoon(number, earliest_us)

    def deliver(self, offer: int, leased: Leased | None) -> None:
        """Take what was claimed for ``offer``. Seen before, or of another epoch: ignored."""
        if leased is None:
            if self._offer is not None and self._offer.number == offer:
                self._answer(np.zeros(0, np.int64), None)
            return
        if leased.epoch != self.epoch or leased.token in self._seen:
            return
        self._seen[leased.token] = None
        while len(self._seen) > _TOKENS_KEPT:
            self._seen.pop(next(iter(self._seen)))
        rows = self._fleet.rows(leased.device)
        order = np.lexsort((leased.slot_us, rows))
        held = self._offer is not None and self._answer(rows[order], leased.slot_us[order])
        if not held:
            _log.warning("claim %d came after its offer: %d enrolments wait again", leased.token, len(leased))
            leased = leased.replace(slot_us=np.full(len(leased), -1, np.int64))
        self._pending.append(leased)

    def _answer(self, rows: Indices, slot_us: Int64s | None) -> bool:
        """Answer the open offer with the slots that were filled; False if they are not its first ones."""
        if self._offer is None:
            return False
        offer = self._offer
        filled = np.zeros(len(offer.devices), np.int64)
        fits = slot_us is None
        if slot_us is not None:
            counted = np.bincount(rows, minlength=len(self._fleet))
            filled = counted[offer.devices]
            if int(filled.sum()) == len(rows) and (filled <= offer.counts).all():
                rank = np.arange(len(offer)) - np.repeat(np.cumsum(offer.counts) - offer.counts, offer.counts)
                fits = bool((offer.slot_us[rank < np.repeat(filled, offer.counts)] == slot_us).all())
            if not fits:
                return False
        self._log.answer(offer, filled)
        self._offer = None
        return fits

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
        token = np.full(len(leased), leased.token, np.int64)
        back = await persistently(lambda: self._store.recheck(leased.enrolment, token))
        deadline_us = leased.slot_us + span_us(self._settings.deadline_s)
        for row in np.flatnonzero(deadline_us < now_us).tolist():
            back.setdefault(row, "late")
        for row in await self._unknown_steps(leased):
            back.setdefault(row, "unknown step")
        if not self.trusted:
            back = dict.fromkeys(range(len(leased)), "epoch not renewed") | back
        stays = np.ones(len(leased), np.bool_)
        if back:
            await self._give_back(leased, back, now_us)
            stays[list(back)] = False
            leased, deadline_us = leased.take(np.flatnonzero(stays)), deadline_us[stays]
            self._out[number] = leased
        if not len(leased):
            del self._out[number]
            return HandOver(0, len(back))
        keys = idempotency_keys(leased.enrolment, leased.visit, leased.generation)
        texts, errors = self._render(leased)
        if errors:
            leased, deadline_us, keys, texts = self._reject(number, leased, deadline_us, keys, texts, errors, now_us)
        outgoing = Outgoing(
            device=leased.device,
            slot_us=leased.slot_us,
            deadline_us=deadline_us,
            visit=leased.visit,
            attempt=leased.attempt,
            to=leased.phone,
            text=texts,
            media_url=[self._catalogue.step[trigger].media_url for trigger in leased.step],
            key=keys,
            sequence=[self._catalogue.sequence_of[trigger].name for trigger in leased.step],
            step=leased.step,
        )
        counts = await self._send(leased, keys, outgoing) if len(leased) else {}
        del self._out[number]
        return HandOver(len(leased), len(back), counts)

    async def _send(self, leased: Leased, keys: list[bytes], outgoing: Outgoing) -> dict[str, int]:
        """Hand over and book what comes back; what the sender says nothing about is in doubt."""
        counts: dict[str, int] = {}
        untold = np.ones(len(leased), np.bool_)

        def book(outcomes: Outcomes) -> None:
            untold[outcomes.row] = False
            self._end(leased.take(outcomes.row), [keys[row] for row in outcomes.row.tolist()], outcomes)
            for value, count in zip(*np.unique(outcomes.outcome, return_counts=True), strict=True):
                counts[Outcome(value).label] = counts.get(Outcome(value).label, 0) + int(count)

        try:
            async for outcomes in self._sender.send(outgoing):
                book(outcomes)
        except Exception:
            _log.exception("shard %d: the sender broke off", self.shard)
        rows = np.flatnonzero(untold)
        if len(rows):
            book(
                Outcomes(
                    row=rows,
                    outcome=np.full(len(rows), int(Outcome.IN_DOUBT), np.int8),
                    at_us=outgoing.deadline_us[rows],
                    message_id=[None] * len(rows),
                    error=["the sender said nothing"] * len(rows),
                    retry_after_s=np.full(len(rows), np.nan),
                )
            )
        return counts

    async def _unknown_steps(self, leased: Leased) -> list[int]:
        """Rows at steps that nobody knows or that are broken, also after another look."""
        if not self._templates.keys() >= set(leased.step):
            await persistently(self.refresh)
        return [row for row, trigger in enumerate(leased.step) if trigger not in self._templates]

    async def _give_back(self, leased: Leased, back: dict[int, str], now_us: int) -> None:
        rows = np.array(list(back), np.intp)
        part = leased.take(rows)
        held = part.slot_us >= 0
        device = self._fleet.rows(part.device)
        self._log.settle(device[held])
        self._log.release(device[held], part.slot_us[held])
        stop = [reason if reason in ("opted out", "trigger removed") else None for reason in back.values()]
        due_us = np.maximum(part.due_us, now_us)
        token = np.full(len(rows), leased.token, np.int64)
        await persistently(lambda: self._store.give_back(part.enrolment, token, due_us, stop, now_us))
        self._due.append((part.device, due_us))

    def _render(self, leased: Leased) -> tuple[list[str], dict[int, str]]:
        """Texts of all rows, a batch a step, and what went wrong by row."""
        step = self._catalogue.indices(leased.step)
        texts = [""] * len(leased)
        errors: dict[int, str] = {}
        for index in np.unique(step).tolist():
            rows = np.flatnonzero(step == index)
            template = self._templates[leased.step[int(rows[0])]]
            picked = rows.tolist()
            rendered, failed = template.render_batch(
                [leased.phone[row] for row in picked],
                [leased.name[row] for row in picked],
                [leased.attributes[row] for row in picked],
            )
            for row, text in zip(picked, rendered, strict=True):
                texts[row] = text
            errors.update({picked[row]: problem for row, problem in failed.items()})
        return texts, errors

    def _reject(
        self,
        number: int,
        leased: Leased,
        deadline_us: Int64s,
        keys: list[bytes],
        texts: list[str],
        errors: dict[int, str],
        now_us: int,
    ) -> tuple[Leased, Int64s, list[bytes], list[str]]:
        """End rows whose message cannot be rendered: they never left."""
        bad = np.array(sorted(errors), np.intp)
        part = leased.take(bad)
        outcomes = Outcomes(
            row=np.arange(len(bad)),
            outcome=np.full(len(bad), int(Outcome.REJECTED), np.int8),
            at_us=np.maximum(part.slot_us, now_us),
            message_id=[None] * len(bad),
            error=[f"content: {errors[row]}" for row in bad.tolist()],
            retry_after_s=np.full(len(bad), np.nan),
        )
        self._log.release(self._fleet.rows(part.device), part.slot_us)
        self._end(part, [keys[row] for row in bad.tolist()], outcomes)
        good = np.setdiff1d(np.arange(len(leased)), bad)
        self._out[number] = leased.take(good)
        rows = good.tolist()
        return leased.take(good), deadline_us[good], [keys[row] for row in rows], [texts[row] for row in rows]

    def _end(self, leased: Leased, keys: list[bytes], outcomes: Outcomes) -> None:
        """Book outcomes (of ``leased``, row by row) against quotas and pass them on to the completer."""
        device = self._fleet.rows(leased.device)
        self._log.settle(device)
        unsent = np.isin(outcomes.outcome, _UNSENT)
        if unsent.any():
            self._log.release(device[unsent], leased.slot_us[unsent])
        unknown = outcomes.outcome == Outcome.IN_DOUBT
        if unknown.any():
            slot_us = leased.slot_us[unknown]
            self._log.postpone(device[unknown], slot_us, slot_us + span_us(self._settings.deadline_s))
        throttled = outcomes.outcome == Outcome.THROTTLED
        if throttled.any():
            wait_s = np.nan_to_num(outcomes.retry_after_s[throttled], nan=THROTTLE_S)
            until_us = outcomes.at_us[throttled] + np.rint(wait_s * SECOND_US).astype(np.int64)
            np.maximum.at(self._rest_until_us, device[throttled], until_us)
        refused = outcomes.outcome == Outcome.CREDENTIALS
        if refused.any():
            # The device is quarantined with the batch; until that is read back, nothing more goes there.
            self._log.set_limits(np.unique(device[refused]), available=False)
        idempotent = self._fleet.idempotent[device]
        self._completer.add(ends_of(leased, keys, outcomes, self._catalogue, idempotent, self._settings))

    @property
    def in_hand(self) -> int:
        """Leases without a written end."""
        return sum(map(len, (*self._pending, *self._out.values()))) + len(self._completer.unwritten())

    @property
    def ripe(self) -> bool:
        """Whether ends wait that should be written now."""
        return self._completer.ripe

    # Completion ----------------------------------------------------------------------------------------------

    async def complete(self, now_us: int) -> int:
        """Write all ends gathered so far; returns how many."""
        return await self._completer.flush(now_us, self.epoch)

    def _written(self, ends: Ends) -> None:
        waits = np.array(
            [
                trigger is not None if outcome in ("accepted", "repeat") else state == "waiting"
                for trigger, outcome, state in zip(ends.next_trigger, ends.outcome, ends.next, strict=True)
            ],
            np.bool_,
        )
        self._due.append((ends.device, np.where(waits, ends.next_due_us, NEVER_US)))

    # Leases --------------------------------------------------------------------------------------------------

    async def adopt(self) -> int:
        """Find claims of this epoch that no routing call brought; returns how many were new."""
        found = 0
        for token in await self._store.leased_tokens(self.epoch):
            if token not in self._seen:
                leased = await self._store.read_lease(self.epoch, token)
                if leased is not None:
                    self.deliver(0, leased)
                    found += 1
        return found

    def fate(self, token: Int64s, enrolment: Int64s) -> Int8s:
        """``Fate`` of each lease; one that was never seen is refused from now on."""
        in_hand = [leased.enrolment for leased in (*self._pending, *self._out.values())]
        mine = np.concatenate([*in_hand, self._completer.unwritten()])
        seen = np.isin(enrolment, mine)
        for unknown in np.unique(token[~seen]).tolist():
            self._seen.setdefault(unknown, None)
        return np.where(seen, Fate.IN_HAND, Fate.NEVER_SEEN).astype(np.int8)

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
