"""Composition root: connect to Ray, start coordinator and shards, wait for them, drain them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher as streams

from actors.coordinator import RemoteCoordinator, ShardNames
from actors.shard import RemoteShard, SenderOf
from dispatcher.config import Settings
from dispatcher.errors import DriplineError, InputError

_START_S = 120.0
_LEAST_S = 5.0
_LOCAL_RAY: Final = {
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_max_direct_call_object_size": str(8 << 20),
    "RAY_task_rpc_inlined_bytes_limit": str(64 << 20),
}
"""No records of calls and no metrics, which would be for a dashboard that a local Ray does not have: 1.5 µs a send. And
a batch goes in the call itself, not by the object store, which costs 1.5 ms a batch."""
_LOST = (ray.exceptions.RayActorError, ray.exceptions.RaySystemError, ray.exceptions.GetTimeoutError, TimeoutError)


@contextmanager
def joined_ray(address: str | None, *, show_logs: Callable[[Mapping[str, Any]], None] | None = None) -> Iterator[None]:
    """Ray for as long as the context lasts: the cluster at ``address``, or a local one that ends with it.

    Args:
        show_logs: called with what actors write, as Ray gets it: ``lines``, ``actor_name``, ``pid``, ``is_err``.

    Raises:
        InputError: no cluster answers at ``address``.
    """
    try:
        with _sigterm_waits():
            _connect(address, show_logs is not None)
        if show_logs is not None:
            streams.remove_handler("ray_print_logs")
            streams.add_handler("dripline", show_logs)
        yield
    finally:
        streams.remove_handler("dripline")
        ray.shutdown()


@contextmanager
def _sigterm_waits() -> Iterator[None]:
    """SIGTERM takes effect at the end: what ends half-way through Ray's start leaves processes behind.

    Ray's own answer to it, an exit with status 15, is kept out.
    """
    utils, came = ray._private.utils, threading.Event()
    rays, ours = utils.set_sigterm_handler, signal.signal(signal.SIGTERM, lambda _number, _frame: came.set())
    utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = rays
        signal.signal(signal.SIGTERM, ours)
    if came.is_set():
        # An event loop has heard of it already: raised again, it would count as a second one.
        ours(signal.SIGTERM, None) if callable(ours) else signal.raise_signal(signal.SIGTERM)


def _connect(address: str | None, show_logs: bool, *, object_store_mb: int = 256) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address:
        try:
            ray.init(address=address, log_to_driver=show_logs, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"Ray at {address}", first, "start one with: ray start --head") from None
        return
    if "RAY_AUTH_TOKEN" not in os.environ and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in _LOCAL_RAY.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=show_logs,
        configure_logging=False,
        object_store_memory=object_store_mb << 20,
        _temp_dir=_short_temp_dir(),
    )


def _short_temp_dir() -> str | None:
    """Ray's sockets need a short path; None leaves Ray its own default."""
    configured = os.environ.get("RAY_TMPDIR")
    return configured if configured else (None if len(tempfile.gettempdir()) < 40 else "/tmp/ray")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain went."""

    given_back: int
    """Leases that had not left and wait again."""
    unfinished: list[int]
    """Shards that did not finish."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Running actors."""

    coordinator: Any
    shards: list[Any]

    async def wait_ready(self, now_us: int | None = None, timeout_s: float | None = _START_S) -> None:
        """Wait until the coordinator leads and every shard owns its devices.

        The coordinator goes first: it gives devices to shards.

        Raises:
            DriplineError: they did not get ready in time.
        """
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        for actor in (self.coordinator, *self.shards):
            await _persistently(partial(actor.ready.remote, now_us), deadline_s)

    async def drain(self, timeout_s: float = 60.0) -> Drained:
        """Stop claiming, give back what has not left, write what is known, give leadership up.

        A shard that dies meanwhile, or does not finish in time, leaves its leases to the rescue of the next start.
        """
        deadline_s = time.monotonic() + timeout_s
        with contextlib.suppress(DriplineError):
            await _persistently(self.coordinator.drain.remote, deadline_s)
        answers = await asyncio.gather(
            *(
                asyncio.wait_for(shard.drain.remote(), max(deadline_s - time.monotonic(), _LEAST_S))
                for shard in self.shards
            ),
            return_exceptions=True,
        )
        with contextlib.suppress(*_LOST):
            await asyncio.wait_for(self.coordinator.leave.remote(), _LEAST_S)
        unfinished = []
        for shard, answer in enumerate(answers):
            if isinstance(answer, BaseException):
                if not isinstance(answer, _LOST):
                    raise answer
                unfinished.append(shard)
        return Drained(sum(answer for answer in answers if isinstance(answer, int)), unfinished)

    def stop(self) -> None:
        """End the actors; nothing is written."""
        for actor in (self.coordinator, *self.shards):
            with contextlib.suppress(*_LOST):
                ray.kill(actor)


def start(
    settings: Settings, shards: int, sender_of: SenderOf, *, holder: str, virtual: bool, answer_s: float
) -> Cluster:
    """Start (not wait for) the actors of one installation.

    Args:
        settings: with the database's URL.
        shards: how many.
        sender_of: makes each shard's sender.
        holder: names the installation; part of the actors' names.
        virtual: a rehearsal, with time that its driver owns.
        answer_s: how long a shard may take to answer the coordinator.
    """
    namespace = namespace_of(holder)
    names = [f"shard-{number}" for number in range(shards)]
    options: dict[str, Any] = {"namespace": namespace, "get_if_exists": True, "max_concurrency": 64}
    handles: list[Any] = [
        RemoteShard.options(name=name, scheduling_strategy="SPREAD", **options).remote(
            number, settings, holder, sender_of, virtual
        )
        for number, name in enumerate(names)
    ]
    coordinator: Any = RemoteCoordinator.options(name="coordinator", **options).remote(
        settings, holder, ShardNames(namespace, names, answer_s), virtual
    )
    return Cluster(coordinator, handles)


def namespace_of(holder: str) -> str:
    """Where in Ray the actors of an installation are: ``coordinator``, ``shard-0``, ``shard-1``, ..."""
    return f"dripline-{holder}"


async def _persistently(call: Callable[[], ray.ObjectRef[Any]], deadline_s: float) -> Any:
    """Repeat a call whose repetition changes nothing, until an incarnation answers it."""
    while True:
        left_s = None if deadline_s == math.inf else max(deadline_s - time.monotonic(), 0.1)
        try:
            return await asyncio.wait_for(call(), left_s)
        except _LOST as error:
            if time.monotonic() >= deadline_s:
                raise DriplineError(f"an actor did not answer in time: {type(error).__name__}") from None
            await asyncio.sleep(0.2)
