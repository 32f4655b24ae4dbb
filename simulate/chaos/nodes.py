"""The Ray cluster under attack: a head and other nodes on this machine, each with raylet and actors of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil

OBJECT_STORE_BYTES: Final = 80 << 20
_GONE_S: Final = 20.0

HOOKS: Final[Mapping[str, Mapping[str, str]]] = {
    "Ray calls lost": {
        "RAY_testing_rpc_failure": json.dumps(
            {
                "CoreWorkerService.grpc_client.PushTask": {
                    "num_failures": 60,
                    "req_failure_prob": 4,
                    "resp_failure_prob": 6,
                }
            }
        )
    },
    "Ray calls late": {"RAY_testing_asio_delay_us": "CoreWorkerService.grpc_server.PushTask=0:400000"},
}
"""Ray's own fault hooks, as environment of a node; per cent and microseconds. Each process loses at most so many."""


class Nodes:
    """Head and other nodes.

    Args:
        others: how many beside the head.
        rng: draws which hook a node starts with.
        hooks: whether nodes start with one of Ray's fault hooks at all.
    """

    def __init__(self, others: int, rng: Random, hooks: bool) -> None:
        from ray.cluster_utils import Cluster

        self._rng, self._hooks = rng, hooks
        self.hooked: dict[str, int] = dict.fromkeys(HOOKS, 0)
        # Without Ray's own hooks at exit: those want the main thread, which must not stand still meanwhile.
        self._cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,
            head_node_args=self._arguments() | {"include_dashboard": False},
        )
        self._others: list[Any] = [self._cluster.add_node(**self._arguments()) for _ in range(others)]

    @property
    def address(self) -> str:
        """Where drivers join."""
        return str(self._cluster.address)

    def actors(self, kind: str) -> list[psutil.Process]:
        """Processes of live actors of a class."""
        return [each for node in self._all() for each in _below(node) if _is_actor(each, kind)]

    def kill_one(self) -> None:
        """Kill one of the other nodes, raylet and actors, and start a new one; takes some seconds."""
        node = self._others.pop(self._rng.randrange(len(self._others)))
        inside = _below(node)
        self._cluster.remove_node(node, allow_graceful=False)
        _kill(inside)
        self._others.append(self._cluster.add_node(**self._arguments()))

    def stop(self) -> None:
        """End every process of the cluster."""
        inside = [each for node in self._all() for each in _below(node)]
        self._cluster.shutdown()  # type: ignore[no-untyped-call]
        _kill(inside)

    def _all(self) -> list[Any]:
        return [self._cluster.head_node, *self._others]

    def _arguments(self) -> dict[str, Any]:
        environment: dict[str, str] = {}
        hook = self._rng.choice((None, *HOOKS)) if any(self.hooked.values()) else next(iter(HOOKS))
        if hook is not None and self._hooks:
            self.hooked[hook] += 1
            environment |= HOOKS[hook]
        return {"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES, "env_vars": environment}


@contextmanager
def private_ray(temp_dir: Path) -> Iterator[None]:
    """The environment of a Ray of our own, which others neither find nor may use, and which soon sees a dead node."""
    given = {
        "RAY_TMPDIR": str(temp_dir),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "4",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def proceed(process: psutil.Process) -> None:
    """Let a stopped process go on, if it is still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)


def _below(node: Any) -> list[psutil.Process]:
    """Processes of a node's actors and idle workers; none of a node that is gone."""
    try:
        return psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    except (psutil.NoSuchProcess, KeyError):
        return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, _GONE_S)


def _is_actor(process: psutil.Process, kind: str) -> bool:
    try:
        return "".join(process.cmdline()[:1]).startswith(f"ray::{kind}") and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
