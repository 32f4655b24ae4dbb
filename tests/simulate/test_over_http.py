"""A rehearsal over HTTP: every message in a request of its own, and the same receipts as without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest
import ray

from dispatcher.core.batches import Outcomes, Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.outcomes import Outcome
from dispatcher.errors import DriplineError, InputError
from simulate import http_sender
from simulate.contract import Connection
from simulate.driver import Progress
from simulate.http_referee import ARRIVED, MESSAGE, HttpReferee, covered_s
from simulate.http_sender import RehearsalHttpSender, open_gateway
from simulate.receipts import read
from simulate.referee import Behaviour, Latency, Referee
from simulate.scenario.sender import Over
from simulate.sender import RefereeSender
from simulate.timetable import Kill

SLOT_US = 1_767_571_200_000_000
SHARES = {"rejected": 0.1, "throttled": 0.1, "refused": 0.1, "lost": 0.1}


class Remote:
    """An actor's handle to an object of this process: calls return awaitables."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return getattr(self._actor, name)(*arguments)

        return SimpleNamespace(remote=call)


@pytest.fixture
def referees(tmp_path: Path) -> tuple[Referee, HttpReferee]:
    """One that is called and one that listens, of the same seed and behaviour."""
    behaviour = Behaviour(Latency(0.05, 20.0), **SHARES)
    return Referee(3, tmp_path / "direct", behaviour), HttpReferee(3, tmp_path / "http", behaviour)


@asynccontextmanager
async def sending(referee: HttpReferee) -> AsyncIterator[RehearsalHttpSender]:
    """A shard's sender for one device."""
    url = await referee.listen({"seven": 7})
    sender = RehearsalHttpSender({7: Gateway(7, "seven", url, None, True)}, Remote(referee))
    try:
        yield sender
    finally:
        await sender.close()


def outgoing(count: int, attempt: int = 1) -> Outgoing:
    slot_us = SLOT_US + np.arange(count) * 1_000_003
    return Outgoing(
        device=np.full(count, 7, np.int32), slot_us=slot_us, deadline_us=slot_us + 30_000_000,
        visit=np.full(count, 2, np.int32), attempt=np.full(count, attempt, np.int32),
        to=[f"9991{row:08d}" for row in range(count)], text=[f"Grüße {row} 💪" for row in range(count)],
        media_url=[None if row % 2 else "https://example.com/a.jpg" for row in range(count)],
        key=[UUID(int=row + 1).bytes for row in range(count)], sequence=["Kurs für “alle”"] * count,
        step=["anfang", "ende"] * (count // 2),
    )  # fmt: skip


async def told(sender: Any, batch: Outgoing) -> list[tuple[int, int]]:
    """Outcome and moment, row by row."""
    groups: list[Outcomes] = [group async for group in sender.send(batch)]
    rows = np.concatenate([group.row for group in groups])
    assert sorted(rows.tolist()) == list(range(len(batch)))
    outcome, at_us = (np.concatenate([getattr(group, name) for group in groups]) for name in ("outcome", "at_us"))
    order = np.argsort(rows)
    return list(zip(outcome[order].tolist(), at_us[order].tolist(), strict=True))


async def test_a_shard_hears_over_http_what_it_hears_directly(referees, tmp_path):
    direct, listening = referees
    async with sending(listening) as sender:
        for attempt in (1, 2):  # what was accepted is a repeat the second time
            batch = outgoing(200, attempt)
            assert await told(sender, batch) == await told(RefereeSender(Remote(direct).submit.remote), batch)
    receipts = [read(tmp_path / name, each.steps()) for name, each in zip(("direct", "http"), referees, strict=True)]
    assert receipts[0].sha256({7: "seven"}) == receipts[1].sha256({7: "seven"})
    by_key = [np.sort(each.rows, order=["key", "attempt"]) for each in receipts]
    names = [name for name in receipts[0].rows.dtype.names if name != "step"]
    assert all((by_key[0][name] == by_key[1][name]).all() for name in names)
    assert {Outcome(each) for each in receipts[1].rows["answer"].tolist()} == {
        Outcome.ACCEPTED, Outcome.REPEAT, Outcome.REJECTED, Outcome.THROTTLED, Outcome.REFUSED,
    }  # fmt: skip


async def test_deadlines_pass_in_virtual_time_only(referees):
    """A batch that takes longer than a deadline on this machine is sent all the same."""
    _, listening = referees

    def slowly() -> Connection:
        return Connection(listening, 0.3)

    listening._connected = slowly
    async with sending(listening) as sender:
        batch = outgoing(200)
        outcomes = await told(sender, batch.replace(deadline_us=batch.slot_us + 100_000))
    assert Outcome.EXPIRED not in {outcome for outcome, _ in outcomes}
    assert listening.http_figures().latency_ms["p50"] >= 300


async def test_of_a_gateway_that_is_gone_nothing_is_known_but_that_nothing_left(referees):
    sender = RehearsalHttpSender({7: Gateway(7, "seven", "http://127.0.0.1:9", None, True)}, Remote(referees[1]))
    batch = outgoing(4)
    assert await told(sender, batch) == [(Outcome.REFUSED, slot_us) for slot_us in batch.slot_us.tolist()]
    await sender.close()
    assert referees[1].http_figures().requests == 0


async def test_the_figures_count_requests_connections_and_the_time_of_sending(referees):
    _, listening = referees
    async with sending(listening) as sender:
        await told(sender, outgoing(50))
        await asyncio.sleep(0.5)
        await told(sender, outgoing(50, 2))
    figures = listening.http_figures()
    assert figures.requests == 100
    assert 1 <= figures.connections <= 100
    assert 0 < figures.sending_s == pytest.approx(sum(end - begin for begin, end in listening._sent), abs=0.001)
    assert 0 < figures.latency_ms["p50"] <= figures.latency_ms["p95"] <= figures.latency_ms["max"]


def test_time_in_which_several_send_counts_once():
    assert covered_s([]) == 0
    assert covered_s([(1, 3), (2, 2.5), (5, 6), (2, 4), (5, 6)]) == 4


async def test_the_gateway_speaks_the_contract(referees):
    _, listening = referees
    url = await listening.listen({"seven": 7})
    said = {
        "device_id": "seven",
        "to": "99910000001",
        "text": "Hi",
        "media_url": None,
        "idempotency_key": str(UUID(int=9)),
    }
    headers = {"Idempotency-Key": said["idempotency_key"], "Not-After": "2026-01-05T00:00:30Z"}
    message = {MESSAGE: json.dumps([SLOT_US, 1, 1, "Round", "round_a"])}
    async with httpx.AsyncClient(trust_env=False) as client:
        post = partial(client.post, f"{url}/messages")
        broken = [
            await post(json=said, headers=headers),
            await post(json={**said, "device_id": "eight"}, headers=headers | message),
            await post(json=said, headers=headers | {MESSAGE: "[1, 2]"}),
            await post(json=said, headers={**headers, **message, "Idempotency-Key": "another"}),
        ]
        first, again = [await post(json=said, headers=headers | message) for _ in range(2)]
    assert [each.status_code for each in broken] == [400] * 4
    assert (first.status_code, again.status_code) == (201, 409)
    assert first.json() == again.json() == {"message_id": f"m-{UUID(int=9)}"}
    assert SLOT_US < int(first.headers[ARRIVED]) <= SLOT_US + 20_000_000
    assert listening.http_figures().requests == 2


@pytest.mark.slow
def test_the_same_scenario_gives_the_same_receipts_over_http(world):
    behaviour = Behaviour(**dict.fromkeys(SHARES, 0.03), opted_out=0.02, opted_out_within_s=3600)
    events = (Kill(SLOT_US + 600_000_000, "shard-0"),)

    def rehearsed(over: Over) -> Any:
        return world.rehearse(devices=10, leads=150, days=2, over=over, behaviour=behaviour, events=events)

    direct, http = rehearsed(Over.DIRECT), rehearsed(Over.HTTP)
    assert (direct.outcome.violations.total, http.outcome.violations.total) == (0, 0)
    assert http.outcome.receipts_sha256 == direct.outcome.receipts_sha256
    assert (http.outcome.completed, http.outcome.failed) == (direct.outcome.completed, direct.outcome.failed)
    assert direct.outcome.http is None
    figures = http.outcome.http
    assert figures["requests"] == len(http.receipts)
    assert figures["sends_per_s"] == pytest.approx(http.outcome.sends / figures["sending_s"], rel=0.01)


@pytest.mark.slow
def test_without_the_gateways_process_there_is_no_verdict(world):
    def strike(progress: Progress) -> None:
        if progress.ticks == 1:
            found = [each for each in ray.util.list_named_actors(all_namespaces=True) if each["name"] == "referee"]
            ray.kill(ray.get_actor(found[0]["name"], found[0]["namespace"]))

    with pytest.raises(DriplineError, match="the referee died"):
        world.rehearse(strike, devices=5, leads=20, days=0.2, over=Over.HTTP)


async def test_a_cluster_of_several_machines_is_refused(monkeypatch):
    nodes = [{"NodeManagerAddress": f"10.0.0.{n}", "Alive": True} for n in (1, 2)]
    monkeypatch.setattr(http_sender.ray, "nodes", lambda: nodes)
    with pytest.raises(InputError, match="the gateway listens on one machine only, and the Ray cluster has 2"):
        await open_gateway(None, None)
