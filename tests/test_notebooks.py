"""The notebooks: run as a reader would, on a run that was just made, its plan, and an engine that is running."""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from dispatcher.store.connect import connect
from simulate.gateway import GatewayProcess

WITHOUT_EXTRA = "the extra 'analysis' is not installed"
nbformat = pytest.importorskip("nbformat", reason=WITHOUT_EXTRA)
nbclient = pytest.importorskip("nbclient", reason=WITHOUT_EXTRA)
for package in ("altair", "ipykernel", "polars"):
    pytest.importorskip(package, reason=WITHOUT_EXTRA)

FOLDER = Path(__file__).parent.parent / "notebooks"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("DRIPLINE_", "RAY_"))}
COMMAND = [sys.executable, "-c", "from dispatcher.cli.main import main; main()"]
DEVICES, LEADS = 60, 600


class Executed:
    """A notebook after a run.

    Args:
        name: the file's, without its ending.
        given: its environment variables.
    """

    def __init__(self, name: str, **given: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for variable in os.environ.keys() - CLEAN.keys():
                patch.delenv(variable)
            for variable, value in given.items():
                patch.setenv(variable, value)
            self._notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
            place = {"metadata": {"path": str(FOLDER)}}
            nbclient.NotebookClient(self._notebook, timeout=120, kernel_name="python3", resources=place).execute()

    def charts(self) -> dict[str, list[list[dict[str, Any]]]]:
        """By title: the data sets of each chart, as altair embeds them."""
        pages = [output["data"]["text/html"] for output in self._outputs() if "text/html" in output.get("data", {})]
        specs = [
            json.JSONDecoder().raw_decode(page, page.index('{"config"'))[0] for page in pages if "vegaEmbed" in page
        ]
        return {title: [spec["datasets"][name] for name in names] for spec in specs for title, names in _titled(spec)}

    def data(self, title: str, *columns: str) -> list[dict[str, Any]]:
        """The data set with those columns, of the one chart whose title begins so."""
        [sets] = [sets for name, sets in self.charts().items() if name.startswith(title)]
        [found] = [rows for rows in sets if rows and set(columns) <= rows[0].keys()]
        return found

    def table(self, *columns: str) -> list[dict[str, str]]:
        """The table with those columns; texts are in quotes."""
        pages = [output["data"].get("text/html", "") for output in self._outputs() if "data" in output]
        heads = {page: re.findall(r"<th>(.*?)</th>", page) for page in pages if 'class="dataframe"' in page}
        [(page, head)] = [(page, head) for page, head in heads.items() if set(columns) <= set(head)]
        lines = re.findall(r"<tr>(.*?)</tr>", page.partition("<tbody>")[2])
        return [dict(zip(head, map(html.unescape, re.findall(r"<td>(.*?)</td>", line)), strict=True)) for line in lines]

    def _outputs(self) -> Iterator[Any]:
        return (output for cell in self._notebook.cells for output in cell.get("outputs", ()))


def _titled(spec: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Every chart that has a title, with the names of its data sets."""
    if isinstance(spec.get("title"), str):
        yield spec["title"], [part["data"]["name"] for part in (spec, *spec.get("layer", ())) if "data" in part]
    for part in (*spec.get("vconcat", ()), *spec.get("hconcat", ())):
        yield from _titled(part)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_they_are_kept_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.id for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_a_folder_without_a_run_is_named(tmp_path):
    (tmp_path / "sends.parquet").write_text("")
    with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
        Executed("throughput", DRIPLINE_RUN_DATA=str(tmp_path))
    assert (caught.value.ename, caught.value.evalue) == (
        "FileNotFoundError",
        f"no devices.parquet in {tmp_path}: make them with 'dripline simulate --parquet DIR', and set DRIPLINE_RUN_DATA"
        " to that directory",
    )


# A run that is over ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsal(new_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A rehearsal's database, and the directory with its tables and its figures."""
    url, folder = new_database(), tmp_path_factory.mktemp("run")
    size = ["--devices", str(DEVICES), "--leads", str(LEADS), "--shards", "2", "--quiet", "--database-url", url]
    files = ["--json", str(folder / "run.json"), "--parquet", str(folder)]
    done = subprocess.run(
        [*COMMAND, "simulate", *size, *files], env=CLEAN, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return url, folder


@pytest.fixture(scope="module")
def of_tables(rehearsal: tuple[str, Path]) -> Executed:
    """``throughput`` after a run over the rehearsal's tables."""
    return Executed("throughput", DRIPLINE_RUN_DATA=str(rehearsal[1]))


@pytest.mark.slow
def test_throughput_draws_a_runs_tables(rehearsal, of_tables):
    drawn, run = of_tables, json.loads((rehearsal[1] / "run.json").read_text())

    # Three waves a day apart, each over within the hour: the highest hour is a third of everything.
    assert max(row["sent"] for row in drawn.data("The fleet may send 4,800", "slot")) == run["sends"] / 3
    assert [row["limit"] for row in drawn.data("The fleet may send 4,800", "limit")] == [DEVICES * 80]
    shares = drawn.data("Share of the hour's quota", "share")
    assert len({row["band"] for row in shares}) == 40
    assert sum(row["share"] * row["devices"] * 80 for row in shares) == pytest.approx(run["sends"])
    for window in ("busiest hour", "busiest 24 hours"):
        of_window = [row for row in drawn.data("Devices by their busiest", "share") if row["window"] == window]
        assert sum(row["devices"] for row in of_window) == DEVICES
    late = [row for row in drawn.data("How late messages left", "minutes") if row["minutes"] is not None]
    assert sum(row["messages"] for row in late if row["share"] == "all") == run["sends"]
    assert max(row["minutes"] for row in late) * 60 == pytest.approx(run["lateness_s"]["max"])
    fair = drawn.data("Devices: Jain's index 0.99", "sent")
    assert sum(row["share"] for row in fair) == pytest.approx(DEVICES)
    reasons = drawn.data("What the devices waited for", "reason")
    for at in {row["at"] for row in reasons}:
        assert sum(row["share"] for row in reasons if row["at"] == at) == pytest.approx(1)
    held = {name: sum(row["share"] for row in reasons if row["reason"] == name) for name in ("pacing", "hour quota")}
    assert max(held, key=held.__getitem__) == run["binding_limit"] == "pacing"
    steps = drawn.data("Hours from step to step", "least")
    assert sum(row["messages"] for row in steps) == run["sends"] * 2 / 3
    assert min(row["least"] for row in steps) >= 24


@pytest.mark.slow
def test_throughput_draws_the_same_from_the_runs_database(rehearsal, of_tables):
    of_database = Executed("throughput", DRIPLINE_DATABASE_URL=rehearsal[0])
    assert of_database.charts() == of_tables.charts()
    assert of_database.table("waited for") == of_tables.table("waited for")


# A plan ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_capacity_planning_says_what_a_rehearsal_of_the_plan_shows(rehearsal):
    run = json.loads((rehearsal[1] / "run.json").read_text())
    leads, hour_s = run["enrolled"], 3600
    drawn = Executed(
        "capacity_planning",
        DRIPLINE_PLAN_DEVICES=str(DEVICES), DRIPLINE_PLAN_LEADS=str(leads), DRIPLINE_PLAN_LATE_H="1",
    )  # fmt: skip

    [figures] = drawn.table("latest message late, h")
    # Homes differ by a lead or two, a gap of 5 s each; and what is claimed at the borders of ticks is a tick late.
    late_s = float(figures["latest message late, h"]) * hour_s
    assert late_s <= run["lateness_s"]["max"] <= late_s + run["tick_s"] + 10
    assert int(figures["messages"]) == run["sends"]
    curves = drawn.data(f"{leads:,} leads", "fleet")
    assert len({row["fleet"] for row in curves}) == 3
    assert {row["messages"] for row in curves if row["hour"] > 48.5} == {run["sends"]}

    # So many on one device: 80 leave in each hour and its guard, the rest 5 s apart.
    reached = {(row["devices"], row["leads"]): row["hours"] for row in drawn.data("Hours until everybody", "hours")}
    waiting = -(-4 * leads // 15) - 1
    expected_s = waiting // 80 * (hour_s + 60) + waiting % 80 * 5
    assert reached[15, 4 * leads] * hour_s == pytest.approx(expected_s)
    # An hour late is what the 80th is not and the 81st is.
    needed = drawn.data("Devices needed so that no message is more than 1 h late", "devices")
    daily = {row["leads"]: row["devices"] for row in needed if row["hours between messages"] == 24}
    assert daily[leads] == -(-leads // 80)
    assert daily[4 * leads] == -(-4 * leads // 80)
    for at in {row["hour"] for row in drawn.data("What the plan's busiest", "reason")}:
        shares = [row["share"] for row in drawn.data("What the plan's busiest", "reason") if row["hour"] == at]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0


# An engine that is running ---------------------------------------------------------------------------------------

WORLD = """
    INSERT INTO devices (name, gateway_url, quota_per_hour, min_gap_s)
    SELECT 'd-' || n, '{gateway}', 5, 0.05 FROM generate_series(1, 6) n;
    UPDATE devices SET health = 'quarantined', health_cause = 'credentials' WHERE name = 'd-6';
    INSERT INTO sequences (name, is_active) VALUES ('Course', true);
    INSERT INTO sequence_steps (sequence_id, trigger, message_text, next_trigger, is_entry_point)
    SELECT id, 'one', 'One', 'two', true FROM sequences UNION ALL SELECT id, 'two', 'Two', NULL, false FROM sequences;
    INSERT INTO leads (phone, trigger) SELECT (60100000000 + n)::text, 'one' FROM generate_series(1, 40) n;
"""
"""Five devices that may send 25 messages in the first hour, for 40 leads."""


def rows(url: str, sql: str) -> list[asyncpg.Record]:
    async def body() -> list[asyncpg.Record]:
        connection = await connect(url)
        try:
            return await connection.fetch(sql) if sql.startswith("SELECT") else await connection.execute(sql)
        finally:
            await connection.close()

    return asyncio.run(body())


@pytest.fixture
def running(database_url: str, place: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A ``dripline run`` whose devices have spent their hour, and what it takes to look inside."""
    ray_of_its_own = {
        "HOME": str(place), "RAY_TMPDIR": str(place), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "DRIPLINE_GATEWAY_HOSTS": "127.0.0.1",
    }  # fmt: skip
    with GatewayProcess(tmp_path / "arrivals.jsonl") as gateway, open(tmp_path / "said", "wb") as said:
        rows(database_url, WORLD.format(gateway=gateway.url))
        process = subprocess.Popen(
            [*COMMAND, "run", "--shards", "2", "--database-url", database_url],
            env=CLEAN | ray_of_its_own, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            spent = "SELECT count(*) = 25 AS spent FROM message_ledger HAVING NOT EXISTS (SELECT FROM leases)"
            give_up_s = time.monotonic() + 90
            while [row["spent"] for row in rows(database_url, spent)] != [True]:
                assert process.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < give_up_s, (tmp_path / "said").read_text()
                time.sleep(0.25)
            yield process, ray_of_its_own | {"DRIPLINE_RAY_ADDRESS": gcs_address(process.pid)}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def gcs_address(pid: int) -> str:
    """Where the Ray that a process has started can be joined."""
    words = [word for child in psutil.Process(pid).children(recursive=True) for word in child.cmdline()]
    return next(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))


@pytest.mark.slow
def test_live_cluster_shows_an_engine_that_is_running_and_leaves_it_alone(running, database_url):
    process, attached = running
    epochs = "SELECT name, epoch FROM epochs ORDER BY name"
    before = rows(database_url, epochs)
    drawn = Executed("live_cluster", DRIPLINE_DATABASE_URL=database_url, **attached)

    health = {(row["shard"], row["health"]): row["devices"] for row in drawn.data("Devices by shard and health")}
    assert sum(health.values()) == 6
    assert sum(count for (_, state), count in health.items() if state == "quarantined") == 1
    backlog = drawn.data("15 messages are due", "reason")
    assert {row["reason"] for row in backlog} == {"its device's hour is used up"}
    assert sum(row["due"] for row in backlog) == 15
    assert {row["shard"] for row in backlog} == {"shard-0", "shard-1"}
    assert [(row["hour"], row["enrolments"]) for row in drawn.data("What falls due", "enrolments")] == [(23, 25)]
    sent = drawn.data("25 attempts in the last 15 minutes", "attempts")
    assert [(row["outcome"], row["attempts"]) for row in sent if row["outcome"] != "accepted"] == []
    actors = drawn.table("epoch", "says")
    assert {row["name"].strip('"'): (row["epoch"], row["says"]) for row in actors} == {
        name: (str(epoch), str(epoch)) for name, epoch in before
    }
    assert [row["so far"] for row in actors if "coordinator" in row["name"]] == ['"40 enrolled, 25 claimed"']
    assert sum(int(row["so far"].strip('"').split()[0]) for row in actors if "shard" in row["name"]) == 25
    assert {row["waits_for"].strip('"'): int(row["number"]) for row in drawn.table("waits_for")} == {
        "its device's hour is used up": 15,
        "its due moment": 25,
    }
    assert [row["alive"] for row in drawn.table("machine", "alive")] == ["true"]

    assert process.poll() is None
    assert rows(database_url, epochs) == before
