"""A real partition: the node of a shard is cut off from the rest of Ray without a word, and its successor starts while
it is still alive and still reaches the database and the gateway.

The node lives in a network namespace of its own, behind a bridge; its end of the bridge is taken off. The database is
reached through a socket file and the gateway through a forwarder, which no bridge can cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from simulate.chaos.engine import Engine
from simulate.chaos.nodes import private_ray
from simulate.chaos.plan import SETTINGS, ChaosPlan
from simulate.chaos.stage import start_gateway
from simulate.chaos.verdict import judge
from simulate.chaos.world import bring_leads, populate
from simulate.examples import builtin

SHARDS = 4
RAY = "from ray.scripts.scripts import main; main()"
SPREAD = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
class Here:
    def node(self):
        return ray.get_runtime_context().get_node_id()
while len(set(ray.get([each.node.remote() for each in [Here.remote() for _ in range(4)]]))) < 2:
    time.sleep(0.2)
"""
"""Ends when actors are placed on both nodes: until the head has heard of the other one, all land on the head."""


@asynccontextmanager
async def forwarded(bridge, port: int) -> AsyncIterator[None]:
    """The loopback port ``port`` out here, reached at the same place inside."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_gateway, to_gateway = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, to_gateway), pump(from_gateway, writer))

    server = await asyncio.start_server(accept, sock=await asyncio.to_thread(bridge.listen, "127.0.0.1", port))
    try:
        yield
    finally:
        server.close()


class Island:
    """A Ray head out here and a node in the namespace, each with everything below one process."""

    def __init__(self, bridge, logs: Path) -> None:
        self._said = logs / "node.log"
        with socket.create_server((bridge.HERE, 0)) as free:
            self.address = f"{bridge.HERE}:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self._head = ray_start(
            "--head",
            f"--port={port}",
            f"--node-ip-address={bridge.HERE}",
            "--include-dashboard=false",
            said=logs / "head.log",
        )
        wait_for_port(bridge.HERE, int(port))
        self._node = ray_start(
            f"--address={self.address}",
            f"--node-ip-address={bridge.THERE}",
            said=self._said,
            before=("ip", "netns", "exec", bridge.namespace),
        )
        self._wait_for_node()

    def _wait_for_node(self) -> None:
        """The node says on its own account when it has joined."""
        give_up_s = time.monotonic() + 60
        while b"Ray runtime started" not in self._said.read_bytes():
            assert time.monotonic() < give_up_s, "the node does not join"
            time.sleep(0.2)
        subprocess.run([sys.executable, "-c", SPREAD, self.address], check=True, timeout=90, stderr=subprocess.DEVNULL)

    def shards_here(self) -> set[int]:
        """Processes of shards on the head."""
        return shards_below(self._head)

    def shards_there(self) -> set[int]:
        """Processes of shards in the namespace."""
        return shards_below(self._node)

    def stop(self) -> None:
        for root in (self._node, self._head):
            for process in psutil.Process(root.pid).children(recursive=True) if root.poll() is None else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            root.kill()
            root.wait()


def ray_start(*arguments: str, said: Path, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    sizes = ("--block", "--num-cpus=2", "--object-store-memory=80000000")
    command = [*before, sys.executable, "-c", RAY, "start", *sizes, *arguments]
    with said.open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def wait_for_port(host: str, port: int) -> None:
    give_up_s = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        assert time.monotonic() < give_up_s, "the head does not start"
        time.sleep(0.2)


def shards_below(root: subprocess.Popen[bytes]) -> set[int]:
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in psutil.Process(root.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "".join(each.cmdline()[:1]).startswith("ray::DeviceShard"):
                    found.add(each.pid)
    return found


async def until(holds: Callable[[], bool], limit_s: float, what: str) -> None:
    give_up_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < give_up_s, what
        await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_two_incarnations_of_a_shard_at_once_send_nothing_twice_and_nothing_over_a_quota(
    bridge, empty_url, tmp_path
):
    plan = ChaosPlan(builtin(), seed=1, devices=12, leads=500, shards=SHARDS, quota_per_hour=30)
    short = Path("/tmp") / f"dp-{secrets.token_hex(3)}"
    short.mkdir()
    with private_ray(short), start_gateway(plan, tmp_path) as gateway:
        await populate(plan, empty_url, gateway.url)
        island = await asyncio.to_thread(Island, bridge, tmp_path)
        engine = Engine(
            tmp_path / "run.log",
            ["--shards", str(SHARDS), "--ray-address", island.address],
            {**SETTINGS, "gateway_hosts": "127.0.0.0/8", "database_url": empty_url},
        )
        try:
            async with forwarded(bridge, gateway.port):
                await engine.start()
                old, neighbours = island.shards_there(), island.shards_here()
                assert old, "no shard was placed in the namespace"
                progress = await bring_leads(plan, empty_url)
                await until(lambda: len(gateway.arrivals()) > 100, 60, "nothing is sent")
                bridge.cut()
                await until(lambda: len(island.shards_here()) == SHARDS, 90, "no successors were started")
                assert old <= set(psutil.pids()), "the first incarnations are gone: they did not run at once"
                new = island.shards_here() - neighbours
                alive_s, arrived = time.monotonic(), len(gateway.arrivals())
                await until(lambda: time.monotonic() - alive_s > 20, 30, "time stands still")
                assert old | new <= set(psutil.pids()), "one of two incarnations is gone"
                assert len(gateway.arrivals()) > arrived + 50
                bridge.heal()
                for _ in range(200):
                    await progress.look(empty_url)
                    if progress.drained:
                        break
                    await asyncio.sleep(1)
                assert await engine.end() == 0
        finally:
            engine.close()
            island.stop()
            shutil.rmtree(short, ignore_errors=True)
    verdict = await judge(plan, empty_url, tmp_path / "arrivals.jsonl")
    assert verdict.violations.total == verdict.over_limit == verdict.malformed == 0, verdict
    assert verdict.status["completed"] == verdict.enrolled == progress.enrolments
    assert verdict.accepted == progress.messages
