"""Deliberately broken builds: each breaks one promise from outside, and a seed has to notice.

A checker that nothing can fail proves nothing. Every canary patches the product or its store; the product has no
branch for any of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from dispatcher import completer, latecomers, rescuer, shard, slots, windows, wording
from dispatcher.core import identity, quota, triggers
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.leases import Ends
from dispatcher.core.outcomes import Outcome
from dispatcher.errors import StoreUnavailableError
from simulate.memory_store import (
    MemoryCoordinatorStore,
    MemoryDatabase,
    MemoryShardStore,
    ending,
    enrolling,
)
from simulate.memory_store import coordinator_store as memory_coordinator

Broken = Callable[[ExitStack], None]


@dataclass(frozen=True, slots=True)
class Canary:
    """One broken build."""

    name: str
    broken: str
    """The promise that does not hold any more."""
    apply: Broken


CANARIES: Final[list[Canary]] = []


def _canary(name: str, broken: str) -> Callable[[Broken], Broken]:
    def add(apply: Broken) -> Broken:
        CANARIES.append(Canary(name, broken, apply))
        return apply

    return add


@contextmanager
def released(canary: Canary) -> Iterator[None]:
    """The build is broken while this lasts."""
    with ExitStack() as patches:
        canary.apply(patches)
        yield


def _put(patches: ExitStack, owner: Any, name: str, value: Any) -> None:
    patches.enter_context(patch.object(owner, name, value))


# Quotas ------------------------------------------------------------------------------------------------------------


@_canary("quota off by one", "at most the quota in any rolling window")
def _quota_off_by_one(patches: ExitStack) -> None:
    real = quota.SlidingLog.set_limits

    def set_limits(self: Any, devices: Any = None, **limits: Any) -> None:
        for name in ("quota_per_hour", "quota_per_day"):
            if limits.get(name) is not None:
                limits[name] = np.asarray(limits[name]) + 1
        real(self, devices, **limits)

    _put(patches, quota.SlidingLog, "set_limits", set_limits)


@_canary("guard 0", "arrivals trail slots, and the limit counts arrivals")
def _guard_0(patches: ExitStack) -> None:
    real = slots.SlotBook.__init__

    def init(self: Any, fleet: Any, usage: Any, settings: Any) -> None:
        real(self, fleet, usage, settings.model_copy(update={"guard_s": 0.0}))

    _put(patches, slots.SlotBook, "__init__", init)


@_canary("restart forgets usage", "what an earlier incarnation sent counts")
def _restart_forgets_usage(patches: ExitStack) -> None:
    async def usage(self: Any, since_us: int) -> list[Any]:
        return []

    _put(patches, MemoryShardStore, "usage", usage)


@_canary("restart forgets what was in flight", "what an earlier incarnation may still have sent counts")
def _restart_forgets_in_flight(patches: ExitStack) -> None:
    def leased(self: Any) -> list[Any]:
        return []

    real = MemoryShardStore.usage

    async def usage(self: Any, since_us: int) -> list[Any]:
        with patch.object(MemoryShardStore, "_leased", leased):
            return await real(self, since_us)

    _put(patches, MemoryShardStore, "usage", usage)


@_canary("takeover forgets what groups have sent", "what devices have sent counts against their group's limit")
def _takeover_forgets_groups(patches: ExitStack) -> None:
    async def usage(self: Any, number: Any, since_us: int) -> list[Any]:
        return []

    _put(patches, MemoryCoordinatorStore, "usage", usage)


@_canary("unknown attempts do not count", "what may have been sent counts against the quota")
def _unknown_uncounted(patches: ExitStack) -> None:
    real = slots.SlotBook.book

    def book(self: Any, leased: Any, outcomes: Any, **how: bool) -> None:
        unsent = np.where(outcomes.outcome == Outcome.IN_DOUBT, int(Outcome.REFUSED), outcomes.outcome)
        real(self, leased, outcomes.replace(outcome=unsent.astype(np.int8)), **how)

    _put(patches, slots.SlotBook, "book", book)


@_canary("resume ignores quotas", "a resumed backlog is spread over capacity, never beyond a quota")
def _resume_ignores_quotas(patches: ExitStack) -> None:
    real = shard.Shard._load_catalogue

    def load(self: Any, catalogue: Catalogue) -> None:
        real(self, catalogue)
        book = getattr(self, "_slots", None)
        if book is not None:
            book.withdraw()
            self._slots = slots.SlotBook(book._fleet, [], self._settings)

    _put(patches, shard.Shard, "_load_catalogue", load)


# Who may act -------------------------------------------------------------------------------------------------------


@_canary("epoch not read", "a superseded incarnation hands nothing over and claims nothing")
def _epoch_not_read(patches: ExitStack) -> None:
    _put(patches, MemoryDatabase, "in_force", lambda self, name, epoch: True)


@_canary("hand-over not recorded", "what may have left is known after a crash")
def _not_recorded(patches: ExitStack) -> None:
    _put(patches, MemoryDatabase, "record", lambda self, handover: None)


@_canary("lease ignored", "what is leased is claimed by nobody else")
def _lease_ignored(patches: ExitStack) -> None:
    real = MemoryCoordinatorStore.claim

    async def claim(self: Any, want: Any, now_us: int, **named: Any) -> Any:
        # Leases that have begun count for nothing: they are given back before every claim.
        given = [
            ending.Given(row.id, row.token, now_us, None, False, False) for row in list(self._database.leased.values())
        ]
        ending.give_back(self._database, given, now_us)
        return await real(self, want, now_us, **named)

    _put(patches, MemoryCoordinatorStore, "claim", claim)


@_canary("token not fenced", "a claim is delivered once, and an end without the lease's token moves nothing")
def _token_not_fenced(patches: ExitStack) -> None:
    class Unseen(dict[int, None]):
        def __contains__(self, token: object) -> bool:
            return False

    real = shard.Shard.take_over

    async def take_over(self: Any, now_us: int) -> int:
        self._seen = Unseen()
        return await real(self, now_us)

    real_fill = slots.SlotBook.fill

    def fill(self: Any, claim: Any) -> bool:
        return real_fill(self, claim) or True

    def leased(database: MemoryDatabase, lease: Any) -> Any:
        return database.leased.get(lease.enrolment)

    _put(patches, shard.Shard, "take_over", take_over)
    _put(patches, slots.SlotBook, "fill", fill)
    _put(patches, ending, "_leased", leased)


@_canary("a lost commit counts as done", "what may not have been written is written again")
def _lost_commit(patches: ExitStack) -> None:
    async def once(statement: Any) -> Any:
        try:
            return await statement()
        except StoreUnavailableError:
            return {}

    _put(patches, completer, "persistently", once)


# What was sent -----------------------------------------------------------------------------------------------------


@_canary("fresh key a retry", "all attempts of a visit are the same message")
def _fresh_key(patches: ExitStack) -> None:
    fresh = iter(range(1, 10**9))

    def keys(enrolment: Any, visit: Any, generation: Any) -> list[bytes]:
        return [identity.idempotency_key(int(row), next(fresh), 0) for row in enrolment]

    _put(patches, shard, "idempotency_keys", keys)


@_canary("key contains the device", "a message that changes devices stays the same message")
def _key_contains_device(patches: ExitStack) -> None:
    real = shard.Shard._send

    async def send(self: Any, leased: Any, outgoing: Any, catalogue: Catalogue) -> Any:
        keys = [
            identity.idempotency_key(enrolment * 1000 + device, visit, 7)
            for enrolment, device, visit in zip(
                leased.enrolment.tolist(), leased.device.tolist(), leased.visit.tolist(), strict=True
            )
        ]
        return await real(self, leased, outgoing.replace(key=keys), catalogue)

    _put(patches, shard.Shard, "_send", send)


@_canary("resend rendered anew", "a resend says what was said before, byte for byte")
def _rendered_anew(patches: ExitStack) -> None:
    real = wording.say

    def say(leased: Any, *others: Any) -> Any:
        nothing = [None] * len(leased)
        return real(leased.replace(resend_text=nothing, resend_media_url=nothing), *others)

    _put(patches, shard, "say", say)


@_canary("resend to a gateway without keys", "what is unknown is held where a resend could be a second message")
def _resend_anyway(patches: ExitStack) -> None:
    _put(patches, slots.SlotBook, "idempotent", lambda self, device: np.ones(len(device), np.bool_))
    _overlook(patches, "key forgotten")


@_canary("unknown taken as failed", "silence proves nothing")
def _unknown_failed(patches: ExitStack) -> None:
    real = completer.ends_of

    def ends_of(leased: Any, keys: Any, outcomes: Any, *more: Any) -> Ends:
        refused = np.where(outcomes.outcome == Outcome.IN_DOUBT, int(Outcome.REFUSED), outcomes.outcome)
        return real(leased, keys, outcomes.replace(outcome=refused.astype(np.int8)), *more)

    _put(patches, shard, "ends_of", ends_of)


@_canary("refusal after unknown taken as failed", "a refusal proves nothing about the attempt before it")
def _refusal_after_unknown(patches: ExitStack) -> None:
    real = ending.end_attempts

    def end_attempts(database: MemoryDatabase, setbacks: Any, now_us: int) -> int:
        for setback in setbacks:
            row = database.enrolments.get(setback.enrolment)
            if row is not None and setback.next in ("failed", "stopped"):
                row.pinned = False
        return real(database, setbacks, now_us)

    for module in (memory_coordinator, ending):
        _put(patches, module, "end_attempts", end_attempts)


@_canary("advance before the answer", "an enrolment advances when its message was accepted")
def _advance_before(patches: ExitStack) -> None:
    real = shard.Shard._send

    async def send(self: Any, leased: Any, outgoing: Any, catalogue: Catalogue) -> Any:
        sender = self._sender

        class Hasty:
            async def send(self, batch: Any) -> AsyncIterator[Any]:
                async for outcomes in sender.send(batch):
                    unknown = outcomes.outcome == Outcome.IN_DOUBT
                    hasty = np.where(unknown, int(Outcome.ACCEPTED), outcomes.outcome)
                    yield replace(outcomes, outcome=hasty.astype(np.int8))

        self._sender = Hasty()
        try:
            return await real(self, leased, outgoing, catalogue)
        finally:
            self._sender = sender

    _put(patches, shard.Shard, "_send", send)


# When --------------------------------------------------------------------------------------------------------------


@_canary("delay before the step", "a step's delay is the wait after it")
def _delay_before(patches: ExitStack) -> None:
    real = Catalogue.advance

    def advance(self: Catalogue, step_index: Any, accepted_us: Any, time_zone: Any, hour_us: int) -> Any:
        following, _ = real(self, step_index, accepted_us, time_zone, hour_us)
        return following, accepted_us + np.rint(self.delay_h[self.next_index[step_index]] * hour_us).astype(np.int64)

    _put(patches, Catalogue, "advance", advance)


@_canary("send window not looked at", "nothing arrives while the send window of its lead is shut")
def _window_unread(patches: ExitStack) -> None:
    async def look(self: Any, leased: Any, rows: Any, catalogue: Catalogue) -> Any:
        return leased, leased.slot_us

    _put(patches, windows.SendWindows, "look", look)


@_canary("opt-out not read again", "nothing leaves after an opt-out")
def _opt_out_unread(patches: ExitStack) -> None:
    _overlook(patches, "opted out")
    real = enrolling.enrol

    def enrol(database: MemoryDatabase, *arguments: Any, **named: Any) -> Any:
        database.queue[:] = [change._replace(opted_out=False) for change in database.queue]
        return real(database, *arguments, **named)

    _put(patches, memory_coordinator, "enrol", enrol)


@_canary("pause not read again", "nothing leaves once its sequence is paused")
def _pause_unread(patches: ExitStack) -> None:
    _overlook(patches, "paused")
    _put(patches, MemoryDatabase, "sendable_sequences", lambda self: frozenset(self.sequences))


@_canary("lead's pause not read", "nothing leaves to a lead that is paused")
def _lead_pause_unread(patches: ExitStack) -> None:
    _put(patches, MemoryDatabase, "paused", lambda self, lead, now_us: False)


@_canary("lateness not looked at", "nothing leaves later than its sequence allows")
def _lateness_unread(patches: ExitStack) -> None:
    _put(patches, latecomers.Latecomers, "among", lambda self, leased, rows, catalogue: rows[:0])


@_canary("trigger removed not read again", "nothing leaves once the engine knows that its trigger was taken off")
def _trigger_unread(patches: ExitStack) -> None:
    for reason in ("stopped", "trigger removed"):
        _overlook(patches, reason)
    real = enrolling._stop

    def stop(database: MemoryDatabase, row: Any, gone: Any, now_us: int) -> None:
        if gone.opted_out:
            real(database, row, gone, now_us)

    _put(patches, enrolling, "_stop", stop)


@_canary("reply not read again", "nothing leaves of a sequence that a reply has ended")
def _reply_unread(patches: ExitStack) -> None:
    _overlook(patches, "replied")
    _put(patches, enrolling, "end_replied", lambda database, leads, now_us: 0)


@_canary("goal not seen", "nothing leaves once the engine knows that its goal was reached")
def _goal_unseen(patches: ExitStack) -> None:
    _put(patches, enrolling, "_leave_at_goals", lambda *_: 0)


def _overlook(patches: ExitStack, reason: str) -> None:
    real = MemoryShardStore._against

    def against(self: Any, *arguments: int) -> str | None:
        found = real(self, *arguments)
        return None if found == reason else found

    _put(patches, MemoryShardStore, "_against", against)


@_canary("deadline not checked", "nothing leaves after its deadline")
def _deadline_unchecked(patches: ExitStack) -> None:
    real = shard.Shard._hand_over_batch

    async def hand_over(self: Any, number: int, leased: Any, now_us: int) -> Any:
        deadline_us = round(self._settings.deadline_s * 1e6)
        moved = np.where(leased.slot_us >= 0, np.maximum(leased.slot_us, now_us - deadline_us // 2), leased.slot_us)
        self._out[number] = leased
        return await real(self, number, leased.replace(slot_us=moved), now_us)

    _put(patches, shard.Shard, "_hand_over_batch", hand_over)


# Triggers ----------------------------------------------------------------------------------------------------------


@_canary("trigger removed by substring", "the entry trigger goes as an exact token")
def _substring(patches: ExitStack) -> None:
    def remove(list_: str | None, token: str) -> str | None:
        left = [each for each in (list_ or "").split(",") if token not in each]
        return ",".join(left) or None

    for module in (memory_coordinator, triggers):
        _put(patches, module, "remove", remove)


@_canary("trigger stays", "the entry trigger goes when its enrolment completes")
def _trigger_stays(patches: ExitStack) -> None:
    for module in (memory_coordinator, triggers):
        _put(patches, module, "remove", lambda list_, token: list_)


@_canary("rescue forgets", "every lease ends")
def _rescue_forgets(patches: ExitStack) -> None:
    async def run_once(self: Any, now_us: int) -> rescuer.RescuePass:
        return rescuer.RescuePass()

    _put(patches, rescuer.Rescuer, "run_once", run_once)
