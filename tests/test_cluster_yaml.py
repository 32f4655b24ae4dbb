"""``cluster.yaml``: Ray accepts it, nothing in it is open to the world, and its commands do what they are there for."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file as ``ray up`` reads it: parsed, filled with Ray's defaults, checked against Ray's schema."""
    prepared = prepare_config(yaml.safe_load(TEXT))
    validate_config(prepared)
    return prepared


def ray_start(cluster: dict[str, Any], role: str) -> tuple[str, dict[str, Any]]:
    """The command that starts Ray on the head or a worker, and its options as Ray's own command line reads them."""
    (command,) = (line for line in cluster[f"{role}_start_ray_commands"] if "ray start" in line)
    words = shlex.split(command)
    return command, start.make_context("ray start", words[words.index("start") + 1 :]).params


def command_with(lines: list[str], word: str) -> str:
    (command,) = (line for line in lines if word in line)
    return command


def test_ray_accepts_it_and_every_node_runs_the_same_setup(cluster):
    assert cluster["available_node_types"] == {
        "local.cluster.node": {"node_config": {}, "resources": {}, "min_workers": 2, "max_workers": 2}
    }
    assert cluster["head_setup_commands"] == cluster["worker_setup_commands"] == cluster["setup_commands"]


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_wants_the_token_everywhere(cluster, role):
    command, _ = ray_start(cluster, role)
    assert "RAY_AUTH_MODE=token " in command
    assert "RAY_AUTH_MODE=token" in command_with(cluster["head_start_ray_commands"], "dripline run")


def test_secrets_come_as_files_that_only_their_owner_reads(cluster):
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token ~/.dripline/cluster.env" in cluster["setup_commands"]
    assert not re.search(r"RAY_AUTH_TOKEN|password|:[^/\s]+@|[0-9a-f]{32}", TEXT, re.IGNORECASE)


def test_nothing_is_meant_for_the_world(cluster):
    _, head = ray_start(cluster, "head")
    assert (head["dashboard_host"], head["node_ip_address"]) == ("127.0.0.1", cluster["provider"]["head_ip"])
    nodes = [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]
    assert [node for node in nodes if not ip_address(node).is_private] == []
    assert not re.search(r"0\.0\.0\.0|\[?::\]?/", TEXT)


@pytest.mark.parametrize(("role", "only_on_the_head"), [("head", set()), ("worker", {"ray_client_server_port"})])
def test_every_port_is_named_so_that_a_firewall_can_be_too(cluster, role, only_on_the_head):
    _, options = ray_start(cluster, role)
    ports = {name: value for name, value in options.items() if name.endswith("_port") and name not in only_on_the_head}
    # A worker's GCS and dashboard are the head's.
    named = {name: int(value) for name, value in ports.items() if name not in {"port", "dashboard_port"}}
    assert len(set(named.values())) == len(named)
    single = sorted(set(named.values()) - {named["min_worker_port"], named["max_worker_port"]})
    assert [port for port in single if named["min_worker_port"] <= port <= named["max_worker_port"]] == []


@pytest.mark.parametrize(
    ("addresses", "refused"),
    [
        ("10.0.0.11", None),
        ("192.168.7.3 fd12::5", None),
        ("10.0.0.11 8.8.8.8", "8.8.8.8"),
        ("2606:4700::1", "2606:4700::1"),
    ],
)
def test_a_node_that_the_world_reaches_is_refused(cluster, tmp_path, addresses, refused):
    executable(tmp_path / "hostname", f"echo {addresses}")
    guard = command_with(cluster["setup_commands"], "is_global")
    done = subprocess.run(
        ["bash", "-c", guard],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"{refused} is a public address: give this node private ones only\n" if refused else ""
    assert (done.returncode, done.stderr) == (1 if refused else 0, said)


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed here; the nodes need it")
def test_the_engine_is_started_again_until_it_drained_and_only_once(cluster, tmp_path):
    home, runs = tmp_path / "home", tmp_path / "runs"
    (home / ".dripline/venv/bin").mkdir(parents=True)
    (home / ".dripline/cluster.env").write_text("DRIPLINE_DATABASE_URL='postgresql://db/x?a=1&b=2'\n")
    executable(
        home / ".dripline/venv/bin/dripline",
        f'echo "$* $DRIPLINE_DATABASE_URL $DRIPLINE_RAY_ADDRESS" >> {runs}; test "$(wc -l < {runs})" -eq 3',
    )
    executable(tmp_path / "sleep", "exec /bin/sleep 0.3")
    loop = command_with(cluster["head_start_ray_commands"], "dripline run")
    environment = {"HOME": str(home), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-c", loop], env=environment, check=True, timeout=10)
    deadline = time.monotonic() + 20
    while free(home / ".dripline/lock") is False and time.monotonic() < deadline:
        time.sleep(0.1)
    assert runs.read_text().splitlines() == ["run postgresql://db/x?a=1&b=2 auto"] * 3
    assert free(home / ".dripline/lock")


def executable(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def free(lock: Path) -> bool:
    """Whether nobody holds the lock, once somebody has made it."""
    if not lock.exists():
        return False
    return subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False).returncode == 0
