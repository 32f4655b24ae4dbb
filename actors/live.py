"""One live installation from start to drain: leads, supervises, and says what is going on."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray

from actors.cluster import Cluster, Drained
from actors.coordinator import HUNG_S, CoordinatorFigures
from actors.shard import ShardFigures
from dispatcher.config import Settings
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import SECOND_US
from dispatcher.errors import DriplineError, StoreError
from dispatcher.ports import Sender
from dispatcher.sender.http import HttpSender
from dispatcher.store.connect import connect
from dispatcher.store.statements import statements

LOOK_S = 2.0
_ANSWER_S = 2.0
_GIVE_UP_S = 120.0
_DRAIN_S = 15.0
_LOST = (ray.exceptions.RayError, TimeoutError)


def new_holder() -> str:
    """A name for this installation that no other one has and that tells a person where it runs."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def http_sender(fleet: Fleet, now_us: Callable[[], int]) -> Sender:
    """The sender of a live shard: every device's own gateway, over the generic HTTP contract."""
    return HttpSender(fleet.gateways(), now_us)


async def read_leader(url: str) -> str | None:
    """The installation that leads at present, if one does.

    Raises:
        StoreError: the database does not answer.
    """
    connection = await connect(url)
    try:
        row = await connection.fetchrow(statements("status")["leader"])
    finally:
        await connection.close(timeout=_ANSWER_S)
    return str(row["holder"]) if row is not None and row["alive"] else None


class Installation:
    """The actors of one ``dripline run``, and their supervision.

    Args:
        cluster: started, not yet ready.
        settings: with the database's URL.
        holder: names this installation.
        stop: set when it is to end.
        say: shows a person one line.
    """

    def __init__(
        self, cluster: Cluster, settings: Settings, holder: str, stop: asyncio.Event, say: Callable[[str], None]
    ) -> None:
        self._cluster, self._settings, self._holder = cluster, settings, holder
        self._stop, self._say = stop, say
        self._told = ""
        self._heard_s = time.monotonic()
        self._since: dict[int, ShardFigures] = {}
        self._outcomes: Counter[str] = Counter()

    async def wait_ready(self) -> bool:
        """Wait until this installation leads and owns every device; False when it is to end before that."""
        ready = asyncio.ensure_future(self._cluster.wait_ready(timeout_s=None))
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            while not ready.done() and not stopped.done():
                await asyncio.wait({ready, stopped}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                if not ready.done():
                    await self._tell_leader()
            if ready.done():
                ready.result()
            return ready.done() and not stopped.done()
        finally:
            ready.cancel()
            stopped.cancel()

    async def look(self) -> str:
        """One round of supervision: replace a coordinator that ended or hangs; returns a line on how things stand.

        Raises:
            DriplineError: the coordinator does not come back.
        """
        coordinator = await self._look_at_coordinator()
        shards = await asyncio.gather(
            *(asyncio.wait_for(shard.figures.remote(), _ANSWER_S) for shard in self._cluster.shards),
            return_exceptions=True,
        )
        alive = in_hand = 0
        for number, figures in enumerate(shards):
            if isinstance(figures, ShardFigures):
                self._add(number, figures)
                alive += figures.epoch > 0
                in_hand += figures.in_hand
            elif not isinstance(figures, _LOST):
                raise figures
        return self._line(coordinator, alive, in_hand)

    async def drain(self) -> Drained:
        """Stop claiming, give back what has not left, wait for the rest, give leadership up."""
        return await self._cluster.drain(self._settings.deadline_s + _DRAIN_S)

    async def _look_at_coordinator(self) -> CoordinatorFigures | None:
        """The coordinator's figures; None while it does not answer."""
        actor: Any = self._cluster.coordinator
        try:
            figures: CoordinatorFigures = await asyncio.wait_for(actor.figures.remote(), _ANSWER_S)
        except _LOST as error:
            silent_s = time.monotonic() - self._heard_s
            if silent_s >= _GIVE_UP_S:
                raise DriplineError(f"the coordinator has not answered for {silent_s:.0f} s: giving up") from None
            if isinstance(error, TimeoutError) and silent_s >= HUNG_S:
                self._replace("does not answer")
            return None
        self._heard_s = time.monotonic()
        if figures.epoch < 0:
            self._replace("has ended")
            return None
        if figures.epoch == 0:
            await self._tell_leader()
        else:
            self._told = ""
        return figures

    def _replace(self, why: str) -> None:
        self._say(f"the coordinator {why}: replaced")
        ray.kill(self._cluster.coordinator, no_restart=False)

    async def _tell_leader(self) -> None:
        """Say, once, what this installation waits for before it can lead."""
        try:
            leader = await read_leader(self._settings.database_url or "")
        except StoreError as error:
            told = f"waiting for the database: {error}"
        else:
            if leader in (None, self._holder):
                return
            told = f"{leader} leads: waiting until it leaves"
        if told != self._told:
            self._told = told
            self._say(told)

    def _add(self, number: int, figures: ShardFigures) -> None:
        """Count what is new; a new incarnation counts from nothing."""
        before = self._since.get(number)
        known = before.outcomes if before is not None and before.epoch == figures.epoch else {}
        self._outcomes.update({name: count - known.get(name, 0) for name, count in figures.outcomes.items()})
        self._since[number] = figures

    def _line(self, coordinator: CoordinatorFigures | None, alive: int, in_hand: int) -> str:
        parts = [f"{self._outcomes['accepted']:,} accepted"]
        parts += [f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(self._outcomes.items())
                  if count and name != "accepted"]  # fmt: skip
        parts.append(f"{in_hand:,} in hand")
        if coordinator is None:
            parts.append("coordinator does not answer")
        elif coordinator.epoch == 0:
            parts.append("not leading")
        else:
            ahead_s = coordinator.next_us / SECOND_US - time.time()
            parts.append(f"next pass in {math.ceil(ahead_s)} s" if ahead_s > 0 else "busy")
        if alive < len(self._cluster.shards):
            parts.append(f"{alive} of {len(self._cluster.shards)} shards alive")
        return ", ".join(parts)
