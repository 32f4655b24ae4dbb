"""The live engine through a storm on the real stack, and what a storm is made of."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.identity import idempotency_key
from dispatcher.core.outcomes import Outcome
from simulate.chaos.faults import CUTS, TROUBLES
from simulate.chaos.proxy import Proxy
from simulate.chaos.storm import FIRST, LAST, drawn
from simulate.gateway import Arrival, GatewayProcess
from simulate.gateway_receipts import Message, read_messages, receipts_of

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("DRIPLINE_", "RAY_"))}
COMMAND = [sys.executable, "-c", "from dispatcher.cli.main import main; main()", "simulate"]


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``dripline simulate`` as a person starts it."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=CLEAN, timeout=400, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("gateway", ["--chaos-idempotent", "--chaos-not-idempotent"])
def test_a_storm_loses_nothing_doubles_nothing_and_overruns_no_quota(tmp_path, gateway):
    figures, place = tmp_path / "run.json", tmp_path / "data"
    done = simulate(
        "--chaos", "11", gateway, "--devices", "10", "--leads", "300", "--chaos-strikes", "10",
        "--json", str(figures), "--data-dir", str(place),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every invariant held." in done.stdout
    run: dict[str, Any] = json.loads(figures.read_text())
    verdict = run["verdict"]
    assert set(run["broken"].values()) == {0}
    assert sum(run["cuts"].values()) + sum(run["troubles"].values()) + run["missed"] == 15
    assert sum(run["cuts"].values()) >= 8
    assert verdict["enrolled"] == verdict["status"]["completed"] + verdict["status"]["in_doubt"]
    if gateway == "--chaos-idempotent":
        assert verdict["status"]["completed"] == verdict["enrolled"]
        assert verdict["accepted"] == 3 * verdict["enrolled"]
    assert not place.exists(), "the run's database is to go with it"


@pytest.mark.slow
def test_a_days_work_at_its_quotas_survives_sigterm_and_kill_9(tmp_path):
    figures = tmp_path / "run.json"
    done = simulate(
        "--chaos", "1", "--devices", "2", "--leads", "130", "--shards", "1", "--chaos-strikes", "2",
        "--chaos-only", "run killed", "--chaos-only", "run told to end",
        "--sequences", "examples/fitness.yaml", "--json", str(figures), "--data-dir", str(tmp_path / "data"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run: dict[str, Any] = json.loads(figures.read_text())
    struck = {name: count for name, count in (run["cuts"] | run["troubles"]).items() if count}
    assert (struck, run["run_starts"]) == ({"run killed": 1, "run told to end": 1}, 3)
    verdict = run["verdict"]
    assert (verdict["enrolled"], verdict["accepted"]) == (130, 390)
    assert verdict["devices_at_quota"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--chaos", "1", "--days", "3"), "error: --days: it means nothing to a chaos run - leave it out\n"),
        (("--chaos-strikes", "3"), "error: --chaos-strikes: it means nothing to a rehearsal - give --chaos SEED too\n"),
        (
            ("--chaos", "1", "--chaos-only", "flood"),
            "error: --chaos-only: there is no fault 'flood' - known: "
            + ", ".join(fault.name for fault in (*CUTS, *TROUBLES))
            + "\n",
        ),
    ],
)
def test_flags_of_the_other_kind_of_run_are_refused(arguments, said):
    done = simulate(*arguments)
    assert (done.returncode, done.stderr) == (2, said)


def test_a_seed_draws_the_same_storm_of_every_kind_spread_over_the_run():
    storm = drawn(5, 60)
    kinds = Counter(strike.fault.name for strike in storm)
    assert storm == drawn(5, 60) != drawn(6, 60)
    assert [strike.at for strike in storm] == sorted(strike.at for strike in storm)
    assert FIRST <= storm[0].at < 0.1 < 0.75 < storm[-1].at <= LAST
    assert kinds.keys() == {fault.name for fault in (*CUTS, *TROUBLES)}
    assert sum(kinds[fault.name] for fault in CUTS) == 60
    assert sum(kinds[fault.name] for fault in TROUBLES) == 30
    assert {strike.fault.name for strike in drawn(5, 9, ["run killed"])} == {"run killed"}


def test_a_gateway_changes_its_faults_while_it_runs(tmp_path):
    storm, log = tmp_path / "storm", tmp_path / "arrivals.jsonl"

    def post(key: str, timeout_s: float = 5.0) -> int | str:
        message = {"device_id": "d", "to": "60100000000", "text": "Hello!", "idempotency_key": key}
        headers = {"Idempotency-Key": key, "Not-After": "2999-01-01T00:00:00Z"}
        try:
            return httpx.post(
                f"{gateway.url}/messages", json=message, headers=headers, timeout=timeout_s, trust_env=False
            ).status_code
        except httpx.HTTPError as error:
            return type(error).__name__

    with GatewayProcess(log, "--storm", str(storm)) as gateway:
        said = [post("a")]
        for name in ("throttle=1", "hang=1", "drop=1", ""):
            storm.with_suffix(".new").write_text(name)
            storm.with_suffix(".new").replace(storm)
            said.append(post(name or "z", timeout_s=0.5 if name == "hang=1" else 5.0))
        arrivals = gateway.arrivals()
    assert said == [201, 429, "ReadTimeout", "RemoteProtocolError", 201] or said[3] == "ReadError"
    assert [arrival.status for arrival in arrivals] == [201, 429, -1, 0, 201]
    assert {arrival.not_after_us for arrival in arrivals} == {32_472_144_000_000_000}


def test_a_gateways_log_becomes_receipts_judged_against_what_was_to_arrive():
    steps = (Step("a", "One", "b", is_entry=True), Step("b", "Two"))
    catalogue = Catalogue.of([Sequence(1, "Pair", True, steps)])
    digest = {text: hashlib.sha256(text.encode()).hexdigest()[:16] for text in ("One", "Two")}
    key = {visit: str(UUID(bytes=idempotency_key(7, visit, 0))) for visit in (1, 2)}
    messages = {key[1]: Message(1, 0, "601", digest["One"]), key[2]: Message(2, 1, "601", digest["Two"])}
    arrivals = [
        Arrival(10.0, "device", "601", key[1], digest["One"], "failed", 500, 12_000_000),
        Arrival(11.5, "device", "601", key[1], digest["One"], "accepted", 201, 13_000_000),
        Arrival(12.0, "stranger", "601", key[2], digest["One"], "over_limit", 429, 14_000_000),
        Arrival(13.0, "", "", "", "", "malformed", 400),
    ]
    receipts = receipts_of(arrivals, messages, {"device": 3}, catalogue, 2_000_000)
    seen = [
        (row["slot_us"], row["arrived_us"], row["device"], receipts.steps[row["step"]], row["visit"], row["attempt"])
        for row in receipts.rows
    ]
    assert seen == [
        (10_000_000, 10_000_000, 3, ("Pair", "a"), 1, 1),
        (11_000_000, 11_500_000, 3, ("Pair", "a"), 1, 2),
        (12_000_000, 12_000_000, 0, ("", ""), 0, 1),  # the text of another step, from a device nobody has
    ]
    assert [Outcome(answer) for answer in receipts.rows["answer"]] == [
        Outcome.IN_DOUBT, Outcome.ACCEPTED, Outcome.THROTTLED,
    ]  # fmt: skip
    assert [row["key"].tobytes() for row in receipts.rows] == [UUID(each.key).bytes for each in arrivals[:3]]


async def test_what_was_to_arrive_is_worked_out_from_enrolments_and_texts(connection):
    catalogue = Catalogue.of(
        [Sequence(1, "Pair", True, (Step("a", "Hi {{ name }}", "b", is_entry=True), Step("b", "Two")))]
    )
    await connection.execute("INSERT INTO sequences (name, is_active) VALUES ('Pair', false)")
    await connection.execute("INSERT INTO leads (phone, name) VALUES ('60100000001', 'Ann')")
    enrolment = await connection.fetchval(
        """INSERT INTO sequence_contacts
               (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, enrolled_at)
           SELECT s.id, l.id, l.phone, 'a', 'a', now() FROM sequences s, leads l RETURNING id"""
    )
    messages = await read_messages(connection, catalogue)
    assert messages == {
        str(UUID(bytes=idempotency_key(enrolment, visit, 0))): Message(
            visit, visit - 1, "60100000001", hashlib.sha256(text.encode()).hexdigest()[:16]
        )
        for visit, text in ((1, "Hi Ann"), (2, "Two"))
    }


async def test_the_proxy_cuts_stalls_and_loses_the_answer_to_a_commit_that_happened(database_url, connection):
    proxy = Proxy(Path(parse_qs(urlsplit(database_url).query)["host"][0]) / ".s.PGSQL.5432")
    await proxy.start()
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}{urlsplit(database_url).path}?sslmode=disable"
    try:
        through = await asyncpg.connect(url)
        assert await through.fetchval("SELECT 1") == 1
        begun_s = time.monotonic()
        stall = asyncio.create_task(proxy.stall(0.3))
        await asyncio.sleep(0)
        assert await through.fetchval("SELECT 2") == 2
        assert time.monotonic() - begun_s >= 0.3
        await stall
        assert proxy.cut() == 1
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            await through.fetchval("SELECT 3")
        through = await asyncpg.connect(url)
        losing = asyncio.create_task(proxy.lose_answer(5))
        await asyncio.sleep(0)
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            async with through.transaction():
                await through.execute("INSERT INTO leads (phone) VALUES ('60100000001')")
        assert await losing is True
        assert await connection.fetchval("SELECT count(*) FROM leads") == 1
    finally:
        await proxy.close()
