"""What the world does to a rehearsal on its way: leads come, devices go, people change their minds.

Everything takes effect at the tick border that follows its moment, by SQL as anybody outside writes it, and may be done
twice: a database that dies half-way is asked again. Draws are hashed from the seed and what they decide.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import asyncpg
import numpy as np
import ray
from numpy.typing import NDArray

from dispatcher.core.backoff import uniform
from dispatcher.core.moments import NEVER_US
from simulate.population import lead_chunks, lead_phone

_ROWS: Final = 10_000
"""Rows that one statement changes at most."""
_CHOICE: Final = 0x77
_RESTART_S: Final = 120.0
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Wave:
    """Leads that come evenly within a time."""

    at_us: int
    over_us: int
    """0: all at once."""
    count: int


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """Devices whose health or quotas are set; what is None stays."""

    at_us: int
    names: tuple[str, ...]
    health: str | None = None
    cause: str | None = None
    quota_per_hour: int | None = None
    quota_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class BansLifted:
    """Devices that an operator makes available again after their gateway had turned them down."""

    at_us: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """A sequence, or the whole fleet, is paused or resumed."""

    at_us: int
    sequence: str | None
    """None: the fleet."""
    active: bool


@dataclass(frozen=True, slots=True)
class OptOut:
    """A share of all leads that are there opts out."""

    at_us: int
    share: float


@dataclass(frozen=True, slots=True)
class Tag:
    """A share of all leads that are there, and have not opted out, gets a trigger."""

    at_us: int
    share: float
    trigger: str


@dataclass(frozen=True, slots=True)
class Kill:
    """An actor dies, between two ticks; Ray starts it again."""

    at_us: int
    actor: str
    """``coordinator`` or ``shard-<n>``."""


Event = DeviceChange | BansLifted | Switch | OptOut | Tag | Kill


class Timetable:
    """Does what is due at a tick border.

    Args:
        waves: leads that come while virtual time runs.
        events: everything else.
        first_lead: the number of the first lead that comes.
        copy: creates the leads of these numbers.
        actors: by name, those that may be killed.
        referee: who knows which leads opt out after a message; None: nobody does.
        seed: of the draws.
    """

    def __init__(
        self,
        waves: Sequence[Wave],
        events: Sequence[Event],
        *,
        first_lead: int,
        copy: Callable[[asyncpg.Connection, NDArray[np.int64]], Any],
        actors: Mapping[str, Any],
        referee: Any | None,
        seed: int,
    ) -> None:
        self._waves = sorted(waves, key=lambda wave: wave.at_us)
        self._events = sorted(enumerate(events), key=lambda numbered: numbered[1].at_us)
        self._coming = np.sort(np.concatenate([moments(wave) for wave in waves] or [np.zeros(0, np.int64)]))
        self._first, self._copy, self._actors, self._referee, self._seed = first_lead, copy, actors, referee, seed
        self._come, self._done, self._analysed = 0, 0, first_lead
        self._switched: dict[str | None, list[int]] = defaultdict(list)
        self.retriggered: set[tuple[int, str]] = set()
        """Lead ids and triggers that were put on leads on the way."""

    async def next_us(self) -> int:
        """The next moment at which something happens; ``NEVER_US`` when nothing is left."""
        moments = [NEVER_US]
        if self._come < len(self._coming):
            moments.append(int(self._coming[self._come]))
        if self._done < len(self._events):
            moments.append(self._events[self._done][1].at_us)
        if self._referee is not None:
            moments.append(await self._referee.next_opt_out_us.remote())
        return min(moments)

    async def act(self, connection: asyncpg.Connection, now_us: int) -> bool:
        """Do everything up to ``now_us``; the database's clock shows it. Returns whether actors were killed."""
        first = self._done
        await self._bring(connection, int(np.searchsorted(self._coming, now_us, side="right")))
        while self._done < len(self._events) and self._events[self._done][1].at_us <= now_us:
            await self._do(connection, now_us, *self._events[self._done])
            self._done += 1
        if self._referee is not None:
            await self._opt_out(connection, await self._referee.opt_outs.remote(now_us))
            await self._referee.forget_opt_outs.remote(now_us)
        return any(isinstance(event, Kill) for _, event in self._events[first : self._done])

    def paused(self, ids: Mapping[str, int]) -> dict[int, list[tuple[int, int]]]:
        """When sequences were switched off, by their ids."""
        return {ids[name]: self._spans(name) for name in self._switched if name is not None}

    @property
    def fleet_paused(self) -> list[tuple[int, int]]:
        """When nothing was to be handed over."""
        return self._spans(None)

    def _spans(self, name: str | None) -> list[tuple[int, int]]:
        return list(pairwise([*self._switched.get(name, ()), NEVER_US]))[::2]

    async def _bring(self, connection: asyncpg.Connection, upto: int) -> None:
        """Let leads come until ``upto`` of them have; who is there after a broken commit is not brought again."""
        for chunk in lead_chunks(upto - self._come, self._first + self._come):
            there = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM leads WHERE phone = $1)", lead_phone(int(chunk[0]))
            )
            if not there:
                await self._copy(connection, chunk)
            self._come += len(chunk)
        if self._first + self._come >= 2 * self._analysed and upto:
            await connection.execute("ANALYZE leads")
            self._analysed = max(self._first + self._come, 1)

    async def _do(self, connection: asyncpg.Connection, now_us: int, number: int, event: Event) -> None:
        match event:
            case DeviceChange():
                await connection.execute(
                    """UPDATE devices SET health = coalesce($2, health),
                           health_cause = CASE WHEN $2::text IS NULL THEN health_cause ELSE $3 END,
                           quota_per_hour = coalesce($4, quota_per_hour), quota_per_day = coalesce($5, quota_per_day)
                       WHERE name = ANY ($1::text[])""",
                    event.names, event.health, event.cause, event.quota_per_hour, event.quota_per_day,
                )  # fmt: skip
            case BansLifted():
                await connection.execute(
                    """UPDATE devices SET health = 'available', health_cause = NULL
                       WHERE name = ANY ($1::text[]) AND health = 'quarantined' AND health_cause = 'credentials'""",
                    event.names,
                )
            case Switch():
                if event.sequence is None:
                    await connection.execute("UPDATE fleet SET paused = $1", not event.active)
                else:
                    await connection.execute(
                        "UPDATE sequences SET is_active = $2 WHERE name = $1", event.sequence, event.active
                    )
                # Pauses and resumptions take turns; what changes nothing is no moment of a switch.
                if event.active == bool(len(self._switched[event.sequence]) % 2):
                    self._switched[event.sequence].append(now_us)
            case OptOut():
                rows = await connection.fetch("SELECT phone FROM leads ORDER BY phone")
                await self._opt_out(connection, self._chosen([row["phone"] for row in rows], number, event.share))
            case Tag():
                await self._tag(connection, number, event)
            case Kill():
                await _kill(self._actors[event.actor])

    def _chosen(self, phones: Sequence[str], number: int, share: float) -> list[str]:
        """The phones that event ``number`` concerns."""
        rows = np.flatnonzero(chosen(self._seed, np.array(phones, np.int64), number, share))
        return [phones[row] for row in rows.tolist()]

    async def _opt_out(self, connection: asyncpg.Connection, phones: Sequence[str]) -> None:
        for some in _portions(phones):
            await connection.execute(
                """UPDATE leads SET opted_out_at = dripline_now()
                   WHERE phone = ANY ($1::text[]) AND opted_out_at IS NULL""",
                some,
            )

    async def _tag(self, connection: asyncpg.Connection, number: int, event: Tag) -> None:
        rows = await connection.fetch("SELECT phone, id FROM leads WHERE opted_out_at IS NULL ORDER BY phone")
        ids = {row["phone"]: row["id"] for row in rows}
        for some in _portions(self._chosen(list(ids), number, event.share)):
            await connection.execute(
                """UPDATE leads SET trigger = concat_ws(',', nullif(trigger, ''), $2::text)
                   WHERE phone = ANY ($1::text[])
                     AND NOT EXISTS (SELECT FROM dripline_tokens(trigger) t(token) WHERE t.token = $2)""",
                some, event.trigger,
            )  # fmt: skip
            self.retriggered.update((ids[phone], event.trigger) for phone in some)


async def _kill(actor: Any) -> None:
    """End an actor's process; when this returns another incarnation answers, so no tick is run by the one that dies."""
    pid, give_up_s = await actor.pid.remote(), time.monotonic() + _RESTART_S
    ray.kill(actor, no_restart=False)
    while True:
        try:
            if await actor.pid.remote() != pid:
                return
        except ray.exceptions.RayActorError:
            if time.monotonic() > give_up_s:
                raise
        await asyncio.sleep(_LOOK_S)


def chosen(seed: int, phones: NDArray[np.int64], number: int, share: float) -> NDArray[np.bool_]:
    """Which of the leads with these phones event ``number`` concerns."""
    draw = uniform(seed, phones, np.full(len(phones), number), np.full(len(phones), _CHOICE))
    return np.asarray(draw < share)


def choose(names: Sequence[str], count: int, seed: int, number: int) -> tuple[str, ...]:
    """The ``count`` devices that event ``number`` concerns, in the order of ``names``."""
    place = np.arange(len(names))
    draw = uniform(seed, place, np.full(len(names), number), np.full(len(names), _CHOICE))
    return tuple(names[row] for row in np.sort(np.argsort(draw, kind="stable")[:count]).tolist())


def moments(wave: Wave) -> NDArray[np.int64]:
    """When each lead of a wave comes."""
    return wave.at_us + np.arange(wave.count) * wave.over_us // max(wave.count, 1)


def _portions(phones: Sequence[str]) -> Iterable[Sequence[str]]:
    return (phones[start : start + _ROWS] for start in range(0, len(phones), _ROWS))
