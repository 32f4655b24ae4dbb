"""One live installation from start to drain: leads, supervises, and says what is going on."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from actors.cluster import Cluster
from actors.coordinator import CoordinatorFigures
from actors.preflight import REAL_HOUR_S, Devices, read_devices
from actors.screen import Screen
from actors.shard import ShardFigures
from dispatcher.config import Settings
from dispatcher.core.fleet import Fleet
from dispatcher.core.hosts import GatewayHosts
from dispatcher.errors import DriplineError, StoreError
from dispatcher.ports import Sender
from dispatcher.sender.http import HttpSender
from dispatcher.store.connect import connect
from dispatcher.store.statements import statements

LOOK_S = 2.0
_UNWATCHED_S = 5.0
_ANSWER_S = 2.0
_GIVE_UP_S = 120.0
_DRAIN_S = 15.0
_LOST = (ray.exceptions.RayError, TimeoutError)


def new_holder() -> str:
    """A name for this installation that no other one has and that tells a person where it runs."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def http_sender(gateway_hosts: str, fleet: Fleet, now_us: Callable[[], int]) -> Sender:
    """The sender of a live shard: every device's own gateway, in the words that it speaks."""
    return HttpSender(fleet.gateways(), now_us, GatewayHosts(gateway_hosts))


@contextmanager
def ending(say: Callable[[str], None]) -> Iterator[asyncio.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal ends the process at once, with 128 + its number.

    Args:
        say: shows a person one line.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        say("draining: what has not left is given back (once more to end at once)")
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, end, number)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


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
        screen: where a person is told.
    """

    def __init__(self, cluster: Cluster, settings: Settings, holder: str, stop: asyncio.Event, screen: Screen) -> None:
        self._cluster, self._settings, self._holder = cluster, settings, holder
        self._stop, self._screen = stop, screen
        self._told = ""
        self._heard_s = self._patient_from_s = time.monotonic()
        self._since: dict[int, ShardFigures] = {}
        self._outcomes: Counter[str] = Counter()

    async def live(self, devices: Devices) -> None:
        """Get ready, supervise until told to end, and drain; then end the actors.

        Args:
            devices: what there is at the start, for the line that says so.

        Raises:
            DriplineError: the coordinator does not come back.
            RefusedError: hours are short, and a device has got a real gateway.
        """
        shards = len(self._cluster.shards)
        try:
            if await self.wait_ready():
                self._screen.news(
                    f"ready: {_count(devices.devices, 'device')}, {_count(shards, 'shard')},"
                    f" {_count(devices.gateways, 'gateway')} (installation {self._holder})",
                    "ready",
                    installation=self._holder,
                )
            try:
                await self._supervise()
            finally:
                await self._drain()
        finally:
            self._cluster.stop()

    async def _drain(self) -> None:
        drained = await self._cluster.drain(self._settings.deadline_s + _DRAIN_S)
        self._screen.news(f"drained: {_count(drained.given_back, 'lease')} given back", "drained")
        for shard in drained.unfinished:
            line = f"shard {shard} did not finish: the next start sorts out what it had in hand"
            self._screen.attention(line, "unfinished")

    async def _supervise(self) -> None:
        """Look after everything until told to end, more often where a person watches; a reason to stop drains first."""
        every_s = LOOK_S if self._screen.watched else _UNWATCHED_S
        while not self._stop.is_set():
            line = await self.look()
            self._screen.standing(line, outcomes=dict(sorted(self._outcomes.items())))
            if self._settings.hour_s != REAL_HOUR_S:
                await self._stay_on_loopback()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), every_s)

    async def _stay_on_loopback(self) -> None:
        with contextlib.suppress(StoreError):
            connection = await connect(self._settings.database_url or "")
            try:
                await read_devices(connection, self._settings.hour_s)
            finally:
                await connection.close(timeout=_ANSWER_S)

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

    async def _look_at_coordinator(self) -> CoordinatorFigures | None:
        """The coordinator's figures; None while it does not answer."""
        actor: Any = self._cluster.coordinator
        try:
            figures: CoordinatorFigures = await asyncio.wait_for(actor.figures.remote(), _ANSWER_S)
        except _LOST as error:
            silent_s = time.monotonic() - self._heard_s
            if silent_s >= _GIVE_UP_S:
                raise DriplineError(f"the coordinator has not answered for {silent_s:.0f} s: giving up") from None
            if not isinstance(error, TimeoutError):  # dead: Ray is restarting it
                self._patient_from_s = time.monotonic()
            elif time.monotonic() - self._patient_from_s >= self._settings.hung_s:
                self._replace("does not answer")
            return None
        self._heard_s = self._patient_from_s = time.monotonic()
        if figures.epoch < 0:
            self._replace("has ended")
            return None
        if figures.epoch == 0:
            await self._tell_leader()
        else:
            self._told = ""
        return figures

    def _replace(self, why: str) -> None:
        self._screen.attention(f"the coordinator {why}: replaced", "coordinator_replaced")
        self._patient_from_s = time.monotonic()
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
            self._screen.attention(told, "waiting")

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
            parts.append(f"next pass in {math.ceil(coordinator.ahead_s)} s" if coordinator.ahead_s else "busy")
        if alive < len(self._cluster.shards):
            parts.append(f"{alive} of {len(self._cluster.shards)} shards alive")
        return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
