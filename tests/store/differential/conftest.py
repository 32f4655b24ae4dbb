"""Two worlds side by side: whatever one is asked the other is asked too, and they must agree."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields
from datetime import time
from random import Random
from typing import Any

import numpy as np
import pytest

from dispatcher.core.batches import Coded, Leased
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.lateness import Late
from dispatcher.core.leases import EndedLeases
from dispatcher.core.windows import Window
from dispatcher.errors import FencedError

WINDOWS = [
    Window(time(9), time(20), "Asia/Kuala_Lumpur"),
    Window(time(22), time(6), "Europe/Berlin", ("mon", "thu", "sat")),
]
ZONES = [None, "", "Asia/Tokyo", "America/New_York", "Nowhere/Land"]
SHOWN = 60
"""How many of the last calls a disagreement shows."""


TRIGGERS = ("a_start", "a_two", "a_three", "b_start", "b_two", "c_start", "c_other")


class Pair:
    """The twin and PostgreSQL, in this order, with stores of two coordinators and three shards each."""

    def __init__(self, worlds: list[Any]) -> None:
        self.worlds = worlds
        self.log: list[str] = []
        self.devices = 0
        self.coordinators = [{holder: world.coordinator(holder) for holder in ("one", "two")} for world in worlds]
        self.shards = [{shard: world.shard(shard) for shard in range(3)} for world in worlds]

    async def both(self, what: str, act: Callable[[int], Awaitable[Any]]) -> Any:
        """Let both worlds do the same; their answers and their tables must agree."""
        self.log.append(what)
        answers = [await self._answer(act, side) for side in range(2)]
        said = [plain(answer) for answer in answers]
        assert said[0] == said[1], self.story("the answers differ")
        first, second = await self.worlds[0].tables(), await self.worlds[1].tables()
        for name, rows in first.items():
            assert rows == second[name], self.story(f"the tables differ: {name}")
        return answers[0]

    async def _answer(self, act: Callable[[int], Awaitable[Any]], side: int) -> Any:
        try:
            return await act(side)
        except FencedError as error:
            return str(error)
        except Exception as error:
            raise AssertionError(self.story(f"{('the twin', 'PostgreSQL')[side]} raised {error!r}")) from error

    def story(self, end: str) -> str:
        """The last calls and how it ended."""
        return "\n".join([*self.log[-SHOWN:], end])

    async def people(self, name: str, /, *arguments: Any, **columns: Any) -> Any:
        """Let people do something in both worlds."""
        text = f"{name}{arguments}{columns or ''}"
        return await self.both(text, lambda side: getattr(self.worlds[side], name)(*arguments, **columns))

    async def coordinator(self, name: str, /, *arguments: Any, holder: str = "one", **named: Any) -> Any:
        """Ask both coordinators' stores."""
        text = f"coordinator.{name}{_short(arguments)}{named or ''}"
        return await self.both(text, lambda side: getattr(self.coordinators[side][holder], name)(*arguments, **named))

    async def shard(self, shard: int, name: str, /, *arguments: Any, **named: Any) -> Any:
        """Ask both stores of a shard."""
        text = f"shard-{shard}.{name}{_short(arguments)}{named or ''}"
        return await self.both(text, lambda side: getattr(self.shards[side][shard], name)(*arguments, **named))

    async def same_evidence(self) -> None:
        """The checker must see the same in both worlds."""
        seen = [await world.evidence() for world in self.worlds]
        for field in fields(seen[0]):
            first, second = (plain(getattr(each, field.name)) for each in seen)
            if field.name in ("ledger", "enrolments", "quotas", "skipped"):
                first, second = sorted(first), sorted(second)
            assert first == second, self.story(f"the evidence differs: {field.name}")

    async def furnish(self, random: Random) -> None:
        """Four devices of three shards, and three sequences."""
        for number in range(1, 5):
            await self.people("add_device", f"d-{number}", shard_id=(number - 1) % 3, gateway_idempotent=number != 4)
        self.devices = 4
        a = [
            Step("a_start", "one", "a_two", 1, 1, True),
            Step("a_two", "two {{ name }}", "a_three", 5, 2),
            Step("a_three", "three", None, 24, 3, media_url="http://m/3"),
        ]
        await self.people("add_sequence", "a", a)
        await self.people("set_sequence", 1, exit_on_reply=random.random() < 0.6)
        b = [Step("b_start", "one", "b_two", 2, None, True), Step("b_two", "two", None, 2)]
        await self.people("add_sequence", "b", b, reentry="after_interval", reentry_interval_h=30.0)
        c = [Step("c_start", "c", None, 1, None, True), Step("c_other", "other", None, 1, None, True)]
        limits = {"a": "skip", "b": "shift", "c": "skip"}
        steps = {"a": a, "b": b, "c": c}
        self.limited = Catalogue.of(
            Sequence(number, name, True, tuple(steps[name]), max_lateness_h=1.0, when_late=limits[name])
            for number, name in enumerate(limits, 1)
        )
        """How the sequences were at first: where late enrolments go, whatever was edited since."""
        await self.people("add_sequence", "c", c, requires_opt_in=random.random() < 0.3, sender_policy="strict")

    async def edit_sequence(self, random: Random) -> None:
        """Switch a sequence, change how it is re-entered or where its steps lead."""
        sequence = random.randint(1, 3)
        kind = random.random()
        if kind < 0.15:
            await self.people("set_sequence", sequence, send_window=random.choice([None, *WINDOWS]))
        elif kind < 0.25:
            await self.people("set_sequence", sequence, exit_on_reply=random.random() < 0.7)
        elif kind < 0.6:
            await self.people("set_sequence", sequence, is_active=random.random() < 0.6)
        elif kind < 0.75:
            await self.people("set_sequence", sequence, reentry=random.choice(["after_exit", "never"]))
        elif kind < 0.9:
            trigger = random.choice(["a_two", "a_three", "b_two", None])
            await self.people("edit_step", "a_start", next_trigger=trigger, delay_h=random.randint(0, 9))
        elif kind < 0.95:
            await self.people("edit_step", "c_other", is_entry=random.random() < 0.5)
        else:
            await self.people("edit_step", random.choice(TRIGGERS), paused=random.choice([None, None, "refused"]))

    async def edit_device(self, random: Random) -> None:
        """Add a device, or change one's health, owner or quota."""
        kind, number = random.random(), random.randint(1, self.devices)
        if kind < 0.15:
            self.devices += 1
            await self.people("add_device", f"d-{self.devices}", quota_per_hour=random.randint(0, 9))
        elif kind < 0.6:
            health = random.choice(["available", "available", "draining", "offline", "quarantined"])
            await self.people("set_device", number, health=health, health_cause="quality")
        elif kind < 0.7:
            await self.people("set_device", number, paused=random.random() < 0.5)
        elif kind < 0.85:
            await self.people("set_device", number, shard_id=random.randint(0, 2))
        else:
            await self.people("set_device", number, quota_per_day=random.randint(0, 900))

    async def edit_zone(self, random: Random, lead: int) -> None:
        """A lead moves to another time zone."""
        await self.people("set_lead", lead, time_zone=random.choice(ZONES))

    async def reply(self, random: Random, phones: int, now_us: int) -> None:
        """Somebody writes, perhaps a STOP word, perhaps told late or twice."""
        text = random.choice(["STOP", "Stop!", "thanks", "please don't stop"])
        ago_us = random.choice([None, None, 0, 1, 3_600_000_000])
        received_us = None if ago_us is None else now_us - ago_us
        name = f"m{random.randint(1, 40)}"
        await self.people(
            "reply", f"+99910{random.randint(1, phones + 1)}", text, received_us=received_us, message_id=name
        )

    async def postpone(self, random: Random, shard: int, now_us: int) -> None:
        """A shard finds windows shut in some zones."""
        zones = {zone or "": now_us + random.randint(0, 9) * 3_600_000_000 for zone in ZONES if random.random() < 0.5}
        later = {zone: at_us + 3_600_000_000 for zone, at_us in zones.items() if random.random() < 0.5}
        await self.shard(shard, "postpone", {random.randint(1, 3): {"": zones, "a_two": later}}, now_us, 1000)


def plain(answer: Any) -> Any:
    """An answer as values that compare whole; rows whose order nobody promises are sorted."""
    if isinstance(answer, Catalogue):
        return answer.sequences, answer.problems, answer.entries, answer.triggers
    if isinstance(answer, np.ndarray):
        return answer.tolist()
    if isinstance(answer, Leased | EndedLeases | Fleet | Late):
        columns = [getattr(answer, field.name) for field in fields(answer)]
        listed = [column.tolist() if isinstance(column, np.ndarray | Coded) else column for column in columns]
        rows = zip(*(column for column in listed if isinstance(column, list)), strict=True)
        scalars = [column for column in listed if not isinstance(column, list)]
        return scalars, sorted(rows, key=lambda row: row[0]) if not isinstance(answer, Fleet) else list(rows)
    if isinstance(answer, list) and answer and hasattr(answer[0], "at_us"):
        return sorted((usage.number, sorted(usage.at_us.tolist())) for usage in answer)
    if isinstance(answer, list):
        return sorted(answer)
    return answer


def _short(arguments: tuple[Any, ...]) -> str:
    """Arguments for the story."""
    return f"({', '.join('catalogue' if isinstance(each, Catalogue) else repr(each) for each in arguments)})"


@pytest.fixture
def new_pair(new_memory_world: Callable[[], Any], new_postgres_world: Callable[[], Any]) -> Callable[[], Any]:
    """Makes a pair of worlds without anything in them."""

    async def make() -> Pair:
        return Pair([new_memory_world(), await new_postgres_world()])

    return make
