"""``dripline webhooks``, and ``dripline run --webhooks`` as far as it starts nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}
SECRET = {"DRIPLINE_WEBHOOK_SECRET": "gateways-secret-hush"}
COMMAND = [sys.executable, "-c", "from dispatcher.cli.main import main; main()"]


def refusal(*arguments: str, cwd=None, **settings: str) -> str:
    """What the command says when it exits with status 2."""
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=CLEAN | settings, cwd=cwd, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        told = f"error: --webhooks: {where}: something listens there already - choose another address\n"
        assert refusal("run", "--webhooks", where, cwd=tmp_path, **SECRET) == told
        assert refusal("webhooks", where, cwd=tmp_path, **SECRET) == told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "settings", "line"),
    [
        (
            ("run", "--webhooks", "127.0.0.1:0"),
            {},
            "--webhooks: there is no secret, so nothing that comes in could be believed - set DRIPLINE_WEBHOOK_SECRET"
            " (of the generic contract) or DRIPLINE_WHATSAPP_APP_SECRET",
        ),
        (("run",), SECRET | {"DRIPLINE_WEBHOOKS": "8090"}, "--webhooks: '8090' is no HOST:PORT - write it like "
         "127.0.0.1:8090, or [::1]:8090"),
        (("webhooks",), SECRET, "webhooks: where? - say it like: dripline webhooks 127.0.0.1:8090"),
        (
            ("webhooks", "127.0.0.1:0"),
            {"DRIPLINE_WEBHOOK_SECRET": "hush"},
            "DRIPLINE_WEBHOOK_SECRET: it must have at least 16 characters: it is all that keeps others out",
        ),
    ],
)  # fmt: skip
def test_a_persons_mistake_is_one_line(tmp_path, arguments, settings, line):
    assert refusal(*arguments, cwd=tmp_path, **settings) == f"error: {line}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_not_migrated_is_refused(empty_url):
    told = refusal("webhooks", "127.0.0.1:0", "--database-url", empty_url, **SECRET)
    assert told == "error: database: it is not migrated - run: dripline db migrate\n"


def test_webhooks_alone_serve_until_they_are_told_to_end(database_url):
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    command = [*COMMAND, "webhooks", where, "--database-url", database_url]
    with subprocess.Popen(command, env=CLEAN | SECRET, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline()[10:] == f"webhooks: listening at {where}\n"
        with httpx.Client(base_url=f"http://{where}", trust_env=False) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            assert client.post("/webhooks/gateway", json=[]).status_code == 401
            began_s = time.monotonic()
            process.send_signal(signal.SIGTERM)  # while a connection is open
            rest = process.stderr.read()
    assert process.returncode == 0
    assert time.monotonic() - began_s < 10
    assert [line[10:] for line in rest.splitlines()] == ["webhooks: 0 events taken, 1 requests refused with 401"]
