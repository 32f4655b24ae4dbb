"""``dripline simulate --keep`` on a data directory that somebody else's server lives in."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.store.connect import connect
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.migrate import migrate
from dispatcher.store.stamp import require_live
from simulate.scratch import scratch_server

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}


@pytest.fixture
def live(place: Path) -> Iterator[EmbeddedServer]:
    """A running server with a live database."""
    server = EmbeddedServer(place / "data")
    asyncio.run(_make_live(server.start()))
    yield server
    server.stop()


async def _make_live(url: str) -> None:
    connection = await connect(url)
    await migrate(connection)
    await require_live(connection)
    await connection.close()


def test_what_a_killed_rehearsal_left_is_ended_and_removed_by_the_next(place):
    directory = place / "data"
    directory.mkdir(mode=0o711)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = EmbeddedServer(directory / f"scratch-{gone.pid}")
    left.start()
    with scratch_server(directory, keep=False) as server:
        assert server.running()
        assert not left.running()
        assert [place.name for place in directory.iterdir()] == [f"scratch-{os.getpid()}"]
    assert not directory.exists()


@pytest.mark.slow
def test_a_live_database_is_refused_and_its_server_keeps_running(live):
    data_dir = live.url().partition("host=")[2].removesuffix("/postgres")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from dispatcher.cli.main import main; main()"),
            *("simulate", "--devices", "2", "--leads", "2", "--shards", "1", "--keep", "--quiet"),
            *("--data-dir", data_dir),
        ],
        capture_output=True,
        text=True,
        env=CLEAN,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: database: it is live - a rehearsal needs a database of its own\n",
    )
    assert live.running()
