"""``dripline simulate`` as people run it: files in, figures out, refusals in one line, nothing left behind."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from dispatcher.cli.main import main
from dispatcher.store.connect import connect
from dispatcher.store.stamp import require_live
from simulate.receipts import COLUMNS

COMMAND = (sys.executable, "-c", "from dispatcher.cli.main import main; main()", "simulate")
SMALL = ("--devices", "20", "--leads", "60", "--shards", "1", "--days", "4")
KEYS = {
    *("seed", "devices", "leads", "shards", "virtual_s", "wall_s", "enrolled", "sends", "sends_per_wall_s"),
    *("completed", "active", "failed", "stopped", "in_doubt", "violations", "receipts_sha256", "lateness_s"),
    *("optimality_gap_s", "device_use", "binding_limit", "peak_rss_mb"),
}
VIOLATIONS = {
    *("duplicate", "early", "over_hour", "over_day", "out_of_order", "after_opt_out", "outside_window", "lost"),
    *("after_exit", "altered", "stuck"),
}
CYCLE = """
sequences:
  - name: Round
    steps:
      - {trigger: round_a, text: A, next: round_b}
      - {trigger: round_b, text: B, next: round_a}
"""


@dataclass(frozen=True)
class Place:
    """A directory where commands run, with a home of its own."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("DRIPLINE_", "RAY_"))}
        return clean | {"HOME": str(self.path), "TMPDIR": str(self.path)}

    def simulate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``dripline simulate`` here to its end."""
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, cwd=self.path, env=self.environment,
            timeout=180, check=False,
        )  # fmt: skip

    def left(self) -> set[str]:
        """What lies here, apart from Ray's own session logs."""
        return {path.name for path in self.path.iterdir()} - {"ray", ".ray"}


@pytest.fixture
def place() -> Iterator[Place]:
    """An empty directory under a short path, since sockets need one."""
    path = Path(tempfile.mkdtemp(prefix="dl-"))
    path.chmod(0o711)
    yield Place(path)
    shutil.rmtree(path)


@pytest.mark.slow
def test_figures_and_receipts_land_in_files(place):
    done = place.simulate(*SMALL, "--json", "run.json", "--receipts", "run.parquet", "--seed", "7")
    assert (done.returncode, place.left()) == (0, {"run.json", "run.parquet"})
    assert "Every invariant held." in done.stdout
    assert done.stderr.splitlines()[0] == "seed 7: 20 devices, 1 shards, ticks of 30 s"

    figures = json.loads((place.path / "run.json").read_text())
    assert figures.keys() >= KEYS
    assert figures["violations"] == dict.fromkeys(VIOLATIONS, 0)
    assert figures["lateness_s"].keys() == {"p50", "p95", "p99", "max"}
    assert figures["optimality_gap_s"].keys() == {"mean", "max"}
    assert figures["device_use"].keys() == {"mean", "min", "max"}
    assert (figures["seed"], figures["devices"], figures["leads"], figures["shards"]) == (7, 20, 60, 1)
    assert figures["sends"] == 3 * figures["enrolled"] == 3 * figures["completed"] > 180

    receipts = pq.read_table(place.path / "run.parquet")
    assert tuple(receipts.column_names) == COLUMNS
    assert receipts.num_rows == figures["sends"]


@pytest.mark.slow
def test_leads_come_from_a_file_and_stay_in_a_database_of_ones_own(place, empty_url):
    (place.path / "leads.csv").write_text("who,mobile\nAnn,+60 12-345 6789\nBo,+60 12-345 6790\nno,phone\n")
    arguments = (
        *("--devices", "2", "--shards", "1", "--days", "4", "--database-url", empty_url, "--leads-csv", "leads.csv"),
        *("--map", "phone=mobile", "--map", "name=who", "--trigger", "crypto_welcome", "--quiet"),
    )
    done = place.simulate(*arguments, "--receipts", "run.csv", "--json", "run.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with (place.path / "run.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == COLUMNS
    assert [(row[4], row[6]) for row in rows] == [
        (phone, step)
        for step in ("crypto_welcome", "crypto_wallets", "crypto_safety")
        for phone in ("60123456789", "60123456790")
    ]
    figures = json.loads((place.path / "run.json").read_text())
    assert (figures["leads"], figures["lead_file"]) == (2, {"rows": 3, "imported": 2, "merged": 0, "rejected": 1})
    assert fetch(empty_url, "SELECT phone, name, trigger FROM leads ORDER BY phone") == [
        ("60123456789", "Ann", None),
        ("60123456790", "Bo", None),
    ]

    again = place.simulate(*arguments)
    assert (again.returncode, again.stderr) == (
        2,
        "error: database: it holds an earlier rehearsal - give --reset to delete that\n",
    )
    assert fetch(empty_url, "SELECT count(*) FROM message_ledger") == [(6,)]


@pytest.mark.slow
def test_a_scenario_file_with_its_sequences_beside_it_and_flags_before_it(place):
    folder = place.path / "plans"
    folder.mkdir()
    (folder / "hello.yaml").write_text("sequences: [{name: Hello, steps: [{trigger: hello, text: Hello}]}]")
    (folder / "scenario.yaml").write_text(
        "title: a few greetings\nseed: 5\ndays: 2\nshards: 1\ndevices: {count: 2}\nleads: {count: 30}\n"
        "sequences: [hello.yaml]\nevents: [{at_h: 1, opt_out: 1}]\n"
    )
    done = place.simulate("plans/scenario.yaml", "--leads", "20", "--set", "devices.count=4", "--json", "run.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[:2] == ["seed 5: 4 devices, 1 shards, ticks of 30 s", "a few greetings"]
    figures = json.loads((place.path / "run.json").read_text())
    assert (figures["devices"], figures["leads"], figures["sends"], figures["completed"]) == (4, 20, 20, 20)
    assert figures["optimality_gap_missing"] is None


def fetch(url: str, sql: str) -> list[tuple[object, ...]]:
    async def ask() -> list[tuple[object, ...]]:
        connection = await connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_a_live_database_is_never_touched(place, database_url):
    async def go_live() -> None:
        connection = await connect(database_url)
        await require_live(connection)
        await connection.execute("INSERT INTO leads (phone) VALUES ('60123456789')")
        await connection.close()

    asyncio.run(go_live())
    for reset in ((), ("--reset",)):
        done = place.simulate(*SMALL, "--database-url", database_url, "--json", "run.json", "--quiet", *reset)
        assert (done.returncode, done.stdout, done.stderr) == (
            2,
            "",
            "error: database: it is live - a rehearsal needs a database of its own\n",
        )
    assert fetch(database_url, "SELECT phone FROM leads") == [("60123456789",)]
    assert fetch(database_url, "SELECT kind FROM dripline_database") == [("live",)]
    assert place.left() == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--leads-csv", "missing.csv"), "missing.csv"),
        (("--leads-csv", "leads.csv", "--map", "phone=nope"), "nope"),
        (("--leads-csv", "leads.csv", "--map", "phone"), "phone"),
        (("--map", "phone=mobile"), "--leads-csv"),
        (("--start", "9999-12-31"), "belongs here, not 9999"),
        (("--receipts", "run.txt"), "run.txt"),
        (("--receipts", "nowhere/run.csv"), "nowhere"),
        (("--json", "nowhere/run.json"), "nowhere"),
        (("--report", "nowhere/run.html"), "nowhere"),
        (("--parquet", "leads.csv"), "leads.csv is a file"),
        (("--parquet", "nowhere/tables"), "nowhere"),
        (("--sequences", "missing.yaml"), "missing.yaml"),
        (("--sequences", "cycle.yaml"), "round_"),
        (("--sequences", "leads.csv"), "leads.csv"),
        (("--database-url", "mysql://here/there"), "--database-url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_clear_line_and_nothing_is_started(place, monkeypatch, capsys, arguments, said):
    (place.path / "leads.csv").write_text("name,mobile\nAnn,+60 12-345 6789\n")
    (place.path / "cycle.yaml").write_text(CYCLE)
    monkeypatch.chdir(place.path)
    monkeypatch.setenv("HOME", str(place.path))
    monkeypatch.setattr(tempfile, "tempdir", str(place.path))
    monkeypatch.setattr(sys, "argv", ["dripline", "simulate", "--quiet", "--json", "out.json", *arguments])
    for name in os.environ.keys() - place.environment.keys():
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert place.left() == {"leads.csv", "cycle.yaml"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "phase", "status", "line"),
    [
        (signal.SIGINT, "virtual time", 130, "interrupted"),
        (signal.SIGINT, "starting Ray", 130, "interrupted"),
        (signal.SIGTERM, "starting Ray", 143, "terminated"),
    ],
)
def test_a_rehearsal_that_is_told_to_end_leaves_nothing_behind(place, sent, phase, status, line):
    arguments = ("--devices", "300", "--leads", "60000", "--shards", "2", "--days", "30")
    running = subprocess.Popen(
        [*COMMAND, *arguments, "--json", "run.json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place.path, env=place.environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert running.stderr is not None
        while phase not in running.stderr.readline():
            assert running.poll() is None
        until = time.monotonic() + 20
        while not raylets(running.pid) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)
        started = psutil.Process(running.pid).children(recursive=True)
        servers = [process for process in psutil.process_iter(["name", "cwd"]) if in_place(process, place)]
        assert servers
        running.send_signal(sent)
        _, errors = running.communicate(timeout=60)
        assert (running.returncode, errors.splitlines()[-1]) == (status, line)
        assert "Traceback" not in errors
        gone, alive = psutil.wait_procs([*started, *servers], timeout=20)
        assert alive == []
        assert len(gone) == len({*started, *servers})
    finally:
        running.kill()
        running.wait()
    assert place.left() == set()


def raylets(pid: int) -> list[psutil.Process]:
    """Ray's own process of a node, below ``pid``."""
    return [process for process in psutil.Process(pid).children(recursive=True) if "raylet" in process.name()]


def in_place(process: psutil.Process, place: Place) -> bool:
    """Whether a process works below the directory."""
    cwd = process.info["cwd"]
    return cwd is not None and Path(cwd).is_relative_to(place.path)
