"""Everything there is to strike at, started and ended together."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import parse_qs, urlsplit

import psutil

from dispatcher.store.embedded import EmbeddedServer
from simulate.chaos.engine import Engine
from simulate.chaos.nodes import Nodes, private_ray, proceed
from simulate.chaos.plan import SETTINGS, ChaosPlan
from simulate.chaos.proxy import Proxy
from simulate.gateway import GatewayProcess

_OTHER_NODES = 2
_LATENCY_MS = 20


@dataclass(slots=True)
class Stage:
    """The running system, and what of it is out of order at the moment."""

    server: EmbeddedServer
    proxy: Proxy
    gateway: GatewayProcess
    storm_file: Path
    nodes: Nodes
    engine: Engine
    stopped: set[psutil.Process] = field(default_factory=set)
    """Processes under SIGSTOP."""
    server_busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    gateway_busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    storm_busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    nodes_busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def restart_gateway(self) -> None:
        """Kill the gateway and start it again on its log and its port."""
        before = self.gateway
        await asyncio.to_thread(before.kill)
        self.gateway = await asyncio.to_thread(GatewayProcess, before.log, *before.options, port=before.port)

    def storm(self, faults: Mapping[str, float]) -> None:
        """Let the gateway misbehave so from now on."""
        new = self.storm_file.with_suffix(".new")
        new.write_text(",".join(f"{name}={share}" for name, share in faults.items()))
        os.replace(new, self.storm_file)

    def calm(self) -> None:
        """Let everything that was stopped go on."""
        self.storm({})
        for process in self.stopped:
            proceed(process)
        self.stopped.clear()


def proxied(port: int) -> str:
    """The engine's way to the database."""
    return f"postgresql://postgres@127.0.0.1:{port}/dripline?sslmode=disable"


def start_gateway(plan: ChaosPlan, place: Path) -> GatewayProcess:
    """The gateway of a run; it judges quotas itself, by its own clock."""
    return GatewayProcess(
        place / "arrivals.jsonl",
        *("--seed", str(plan.seed), "--latency-ms", str(_LATENCY_MS), "--storm", str(place / "storm")),
        *("--window-s", str(SETTINGS["hour_s"]), "--limit", str(plan.quota_per_hour)),
        *(() if plan.idempotent else ("--not-idempotent",)),
    )


@asynccontextmanager
async def staged(plan: ChaosPlan, server: EmbeddedServer, gateway: GatewayProcess, place: Path) -> AsyncIterator[Stage]:
    """The engine on its nodes, ready; everything but ``server`` has ended when this returns.

    Args:
        server: started, its database populated.
        gateway: started; ended here too.
        place: an existing directory for logs.
    """
    async with AsyncExitStack() as stack:
        ray_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dc-", ignore_cleanup_errors=True)))
        stack.enter_context(private_ray(ray_dir))
        [directory] = parse_qs(urlsplit(server.url()).query)["host"]
        proxy = Proxy(Path(directory) / ".s.PGSQL.5432")
        await proxy.start()
        stack.push_async_callback(proxy.close)
        nodes = await _started_nodes(plan.seed, hooks=not plan.only)
        stack.push_async_callback(asyncio.to_thread, nodes.stop)
        engine = Engine(
            place / "run.log",
            ["--shards", str(plan.shards), "--ray-address", nodes.address],
            {**SETTINGS, "gateway_hosts": "127.0.0.0/8", "database_url": proxied(proxy.port)},
        )
        stack.callback(engine.close)
        stage = Stage(server, proxy, gateway, place / "storm", nodes, engine)
        stack.callback(lambda: stage.gateway.kill())
        stack.callback(stage.calm)
        await engine.start()
        yield stage


async def _started_nodes(seed: int, *, hooks: bool) -> Nodes:
    """The Ray nodes; whoever is interrupted meanwhile waits until they are up, and ends them."""
    # No task: those are all cancelled when the loop ends, and then nobody would know the nodes.
    starting = asyncio.get_running_loop().run_in_executor(None, Nodes, _OTHER_NODES, Random(seed), hooks)  # noqa: S311
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        nodes = await starting
        await asyncio.to_thread(nodes.stop)
        raise
