"""The ``dripline`` command as a person meets it: a process, its lines, its exit status."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from rich.console import Console

from dispatcher.cli import common
from dispatcher.cli import main as cli
from dispatcher.cli.common import require_writable
from dispatcher.errors import InputError
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.migrate import migrations

NAMES = "".join(f"{migration.name}\n" for migration in migrations())
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}


def dripline(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from dispatcher.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**CLEAN, **environment},
        timeout=120,
        check=False,
    )


@pytest.fixture
def place(place: Path) -> Iterator[Path]:
    """A working directory; an embedded server in its ``data`` is stopped at the end."""
    yield place
    EmbeddedServer(place / "data").stop()


def test_help_lists_every_command_and_loads_none():
    code = (
        "import sys\n"
        "from dispatcher.cli.main import main\n"
        "sys.argv = ['dripline', '--help']\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'ray', 'asyncpg', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))\n"
    )
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=CLEAN, check=True)
    took_s = time.perf_counter() - begin
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if line]
    assert listed == [*cli.COMMANDS, "Example:"]
    assert took_s < 2  # 0.2 s on an idle machine; this one may be busy


def test_version():
    done = dripline("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "dripline 0.1.0\n", "")


def test_a_mistyped_command_suggests_the_near_one():
    done = dripline("statsu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: No such command 'statsu'. Did you mean 'status'?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (("db", "url"), 2, "error: embedded server: it is not running - run: dripline db start\n"),
        (
            ("db", "migrate", "--database-url", "postgresql://u:hush@127.0.0.1:1/x"),
            3,
            "error: postgresql://u@127.0.0.1:1/x: nothing accepts connections there\n",
        ),
        (
            ("db", "status", "--database-url", "x:hush@y"),
            2,
            "error: --database-url: not a PostgreSQL URL - write postgresql://user@host:5432/database\n",
        ),
        (("db", "start", "--data-dir", "file"), 3, None),
    ],
)
def test_a_persons_error_is_one_line(place, arguments, status, line):
    (place / "file").touch()
    done = dripline(*arguments, cwd=place)
    expected = line or f"error: {place / 'file'}: not a directory - choose another --data-dir\n"
    assert (done.returncode, done.stdout, done.stderr) == (status, "", expected)


READING = [
    ("status",), ("explain", "60123456789"), ("leads", "unmatched"), ("devices", "list"), ("sequences", "list"),
    ("in-doubt", "list"),
]  # fmt: skip


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_database_that_is_not_migrated_is_refused_alike_everywhere(empty_url, command):
    done = dripline(*command, DRIPLINE_DATABASE_URL=empty_url)
    line = "error: database: it is not migrated - run: dripline db migrate\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize("command", [*READING, ("db", "status"), ("devices", "add", "--name", "d-1")], ids=" ".join)
def test_a_mistyped_data_directory_is_refused_and_not_made(place, command):
    done = dripline(*command, "--data-dir", "dtaa", cwd=place)
    line = "error: --data-dir: there is no database in dtaa - make one: dripline db migrate\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"DRIPLINE_GUARD_S": "1"},
            "error: settings: guard_s=1.0 must be at least deadline_s + 2 x skew_s = 40.0\n",
        ),
        ({"DRIPLINE_GUARD_S": "long"}, "error: DRIPLINE_GUARD_S: input should be a valid number"),
        (
            {"DRIPLINE_DATABASE_URL": "postgresql://u:hush@127.0.0.1:99999/x"},
            "error: --database-url: not a PostgreSQL URL - write postgresql://user@host:5432/database\n",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_of_ours(place, environment, line):
    done = dripline("status", cwd=place, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_figures_file_and_json_on_stdout_have_twins_of_their_own():
    twins = {
        name: {each.envvar for each in cli.load(name).params if "--json" in each.opts}
        for name in ("simulate", "prove", "import", "status")
    }
    files = {"DRIPLINE_JSON_FILE"}
    assert twins == {"simulate": files, "prove": files, "import": files, "status": {"DRIPLINE_JSON"}}


def test_a_database_is_migrated_shown_and_printed(empty_url):
    assert dripline("db", "migrate", DRIPLINE_DATABASE_URL=empty_url).stdout == NAMES
    assert dripline("db", "migrate", "--database-url", empty_url).stdout == "nothing to do\n"
    *found, stamp = dripline("db", "status", "--database-url", empty_url).stdout.splitlines()
    assert [line.split("\t")[:2] for line in found] == [[f"{m.version:04}", m.name] for m in migrations()]
    assert stamp == "database: not stamped"
    assert "CREATE TABLE leads (" in dripline("db", "sql").stdout


def test_a_command_leaves_the_embedded_server_as_it_found_it(place):
    server = EmbeddedServer(place / "data")
    assert dripline("db", "migrate", "--data-dir", "data", cwd=place).stdout == NAMES
    assert not server.running()

    started = dripline("db", "start", cwd=place, DRIPLINE_DATA_DIR="data")
    assert started.stdout == f"{server.url()}\n"
    assert dripline("db", "migrate", "--data-dir", "data", cwd=place).stdout == "nothing to do\n"
    assert server.running()
    assert dripline("db", "url", "--data-dir", "data", cwd=place).stdout == started.stdout

    assert dripline("db", "stop", "--data-dir", "data", cwd=place).returncode == 0
    assert not server.running()


def test_a_server_in_use_is_left_running(place):
    server = EmbeddedServer(place / "data")
    holding = (
        "import asyncio, sys\n"
        "from dispatcher.store.connect import connect\n"
        "async def main():\n"
        "    held = await connect(sys.argv[1])\n"
        "    print('connected', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "asyncio.run(main())\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holding, server.start()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "connected\n"
        server.stop(unless_used=True)
        assert server.running()
    server.stop(unless_used=True)
    assert not server.running()


@pytest.mark.parametrize(
    ("sent", "status", "line"), [(signal.SIGTERM, 143, "terminated\n"), (signal.SIGINT, 130, "interrupted\n")]
)
def test_a_command_that_is_told_to_end_closes_what_it_opened(sent, status, line):
    code = (
        "import asyncio\n"
        "from dispatcher.cli import main as cli\n"
        "from dispatcher.cli.common import run\n"
        "async def body():\n"
        "    try:\n        print('begun', flush=True)\n        await asyncio.sleep(60)\n"
        "    finally:\n        await asyncio.sleep(0)\n        print('closed')\n"
        "cli.typer.main.get_command = lambda app: lambda prog_name: run(body())\n"
        "cli.main()\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with command:
        assert command.stdout is not None
        assert command.stdout.readline() == "begun\n"
        command.send_signal(sent)
        assert command.communicate(timeout=20) == ("closed\n", line)
    assert command.returncode == status


def test_every_flag_has_an_environment_twin(monkeypatch):
    app = typer.Typer()

    @app.command()
    def command(devices: int = 1, max_lateness_h: int = 1, url: str = typer.Option("", envvar=[])) -> None: ...

    monkeypatch.setitem(cli.COMMANDS, "probe", ("probe:app", ""))
    monkeypatch.setitem(sys.modules, "probe", type("probe", (), {"app": app}))
    loaded = cli.load("probe")
    assert {parameter.name: parameter.envvar for parameter in loaded.params} == {
        "devices": "DRIPLINE_DEVICES",
        "max_lateness_h": "DRIPLINE_MAX_LATENESS_H",
        "url": None,
    }


def test_the_doctor_says_what_is_wrong(database_url, place):
    lossy = f"{database_url}&synchronous_commit=off"
    done = dripline("doctor", "--database-url", lossy, cwd=place)
    levels = {line[5:20].strip(): line[:4].strip() for line in done.stdout.splitlines()}
    assert {name: levels[name] for name in levels if name not in ("disk", "shared memory")} == {
        "python": "ok",
        "ray": "ok",
        "postgresql": "ok",
        "durability": "fail",
        "max_connections": "ok",
        "clock": "ok",
        "migrations": "ok",
        "stamp": "warn",
    }
    assert (done.returncode, done.stderr) == (1, "")


def test_the_doctor_creates_nothing(place):
    done = dripline("doctor", "--data-dir", "data", cwd=place)
    assert "warn postgresql      no database yet: data is filled at first use" in done.stdout.splitlines()
    assert list(place.iterdir()) == []


def test_a_result_is_never_written_over_what_is_read_nor_where_it_cannot_be(tmp_path):
    leads, missing = tmp_path / "leads.csv", tmp_path / "no" / "run.json"
    leads.write_text("phone\n")
    require_writable("--json", None, leads)
    require_writable("--json", tmp_path / "run.json", leads)
    for path, problem in (
        (leads, f"{leads} is a file that is read"),
        (tmp_path, f"{tmp_path} is a directory"),
        (missing, f"the directory of {missing} does not exist"),
    ):
        with pytest.raises(InputError) as refused:
            require_writable("--json", path, leads)
        assert (refused.value.subject, refused.value.problem) == ("--json", problem)


def test_names_that_look_like_markup_are_shown_as_they_are(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(common, "out", screen)
    common.show_table(["name"], [["Promo [new]"], ["[red]x[/bold]"]])
    assert [line.strip() for line in screen.file.getvalue().splitlines()] == ["name", "Promo [new]", "[red]x[/bold]"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_what_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from dispatcher.cli.main import main; main()", "--help"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=CLEAN, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (74, "error: output: No space left on device\n")
