"""A gateway in a process of its own, speaking the generic HTTP contract, for load and chaos tests.

    python -m simulate.gateway --port 0 --log arrivals.jsonl --fail lost=0.01,throttle=0.01

It judges by its own clock and appends one line per request to its log before the answer leaves, so the log is
the truth about what arrived, whatever becomes of the caller. Started again on a log, it still knows its keys.
With ``--storm`` its faults can be changed while it runs; with ``--tell`` a webhook hears what it did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dispatcher.errors import InputError
from simulate.contract import MALFORMED, Connection, Reply, parse_message, refusal, response, taken
from simulate.gateway_events import Telling

CLOSED: Final = 0
SILENT: Final = -1
"""Statuses of requests that get no answer: the connection is closed, or nothing happens any more."""

REFUSING: Final = {
    "throttle": (429, "throttled", "throttled"),
    "refuse": (503, "refused", "not_accepted"),
    "reject": (422, "rejected", "invalid_recipient"),
    "opt_out": (422, "opted_out", "opted_out"),
    "drop": (CLOSED, "dropped", ""),
}
"""Faults before the message is taken: status (0: closed without an answer), what the log says, error code."""

HIDING: Final = {"lost": CLOSED, "hang": SILENT, "5xx": 500, "garbage": 200}
"""Faults that hide whether the message was taken: status. ``lost`` took it, half of the others did; ``hang`` says
nothing and leaves the connection open."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as the gateway saw it."""

    arrived_at: float
    """Seconds since the epoch by the gateway's clock."""
    device_id: str
    to: str
    key: str
    text_sha256: str
    """The first 16 hexadecimal digits."""
    answer: str
    """What the gateway did: accepted, repeat, expired, throttled, over_limit, refused, rejected, opted_out,
    dropped, failed (not taken, and the answer does not say so) or malformed."""
    status: int
    """The HTTP status that left; 0 when the connection was closed instead, -1 when nothing happened any more. It need
    not tell what was done."""
    not_after_us: int = 0
    """``Not-After`` in microseconds since 1970; 0 without one."""


def read_log(path: Path) -> list[Arrival]:
    """Every request in a gateway's log, in order of arrival; a last line still being written is left out.

    Raises:
        InputError: the file is not a gateway's log; names the line.
    """
    arrivals = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            arrivals.append(Arrival(**json.loads(line)))
        except (ValueError, TypeError):
            raise InputError(f"{path}:{number}", "not a line of a gateway's log") from None
    return arrivals


class Gateway:
    """The gateway's judgement, without the network.

    Args:
        log: appended to; keys accepted in it stay accepted.
        seed: with key and attempt it decides the faults.
        faults: probability by fault name, of ``REFUSING`` and ``HIDING``.
        idempotent: whether a repeated key is answered 409; otherwise it is taken again.
        window_s, limit: a device may have ``limit`` messages accepted in any ``window_s``; 0: no limit.
        storm: a file with other faults, in the words of ``--fail``; read again whenever it changes.
        telling: who tells afterwards what became of messages.
    """

    def __init__(
        self,
        log: Path,
        seed: int,
        faults: Mapping[str, float],
        idempotent: bool,
        window_s: float,
        limit: int,
        storm: Path | None = None,
        telling: Telling | None = None,
    ) -> None:
        self._seed, self._faults, self._idempotent = seed, faults, idempotent
        self._window_s, self._limit = window_s, limit
        self._storm, self._storm_version, self._telling = storm, (0, 0), telling
        self._seen: Counter[str] = Counter()
        self._accepted: dict[str, str] = {}
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)
        for arrival in read_log(log):
            self._seen[arrival.key] += 1
            if arrival.answer == "accepted":
                self._take(arrival.device_id, arrival.key, arrival.arrived_at)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def answer(self, path: str, headers: Mapping[str, str], body: bytes, reply: Reply) -> None:
        """Answer one ``POST``."""
        self._look_at_storm()
        try:
            message, not_after = parse_message(path, headers, body)
        except (ValueError, RecursionError):
            reply(self.malformed())
        else:
            reply(self._answer(message, not_after))

    def _answer(self, message: Mapping[str, Any], not_after: float) -> bytes | None:
        now = time.time()
        key = message["idempotency_key"]
        self._seen[key] += 1
        did, status, said = self._judge(message, not_after, now)
        digest = hashlib.sha256(message["text"].encode("utf-8", "surrogatepass")).hexdigest()[:16]
        not_after_us = round(not_after * 1e6) if math.isfinite(not_after) else 0
        self._write(Arrival(now, message["device_id"], message["to"], key, digest, did, status, not_after_us))
        if self._telling is not None:
            self._telling.note(key, did, now)
        if status == CLOSED:
            return None
        if status == SILENT:
            return b""
        retry = ("Retry-After: 1",) if status == 429 else ()
        return response(status, b"<html>" if status == 200 else said, *retry)

    def malformed(self) -> bytes:
        """The answer to a request that breaks the contract; what it was meant to be cannot be logged."""
        self._write(Arrival(time.time(), "", "", "", "", "malformed", 400))
        return MALFORMED

    def _look_at_storm(self) -> None:
        if self._storm is None:
            return
        with contextlib.suppress(FileNotFoundError):
            found = self._storm.stat()
            version = (found.st_ino, found.st_mtime_ns)
            if version != self._storm_version:
                self._faults, self._storm_version = _faults(self._storm.read_text().strip()), version

    def _judge(self, message: Mapping[str, Any], not_after: float, now: float) -> tuple[str, int, bytes]:
        device, key = message["device_id"], message["idempotency_key"]
        if now > not_after:
            return "expired", 410, refusal("expired")
        fault, coin = self._draw(key)
        if fault in REFUSING:
            status, did, code = REFUSING[fault]
            return did, status, refusal(code)
        if self._full(device, now):
            return "over_limit", 429, refusal("throttled")
        if self._idempotent and key in self._accepted:
            return "repeat", HIDING.get(fault, 409), taken(self._accepted[key])
        if fault in HIDING and fault != "lost" and coin:
            return "failed", HIDING[fault], refusal("internal")
        return "accepted", HIDING.get(fault, 201), taken(self._take(device, key, now))

    def _draw(self, key: str) -> tuple[str, bool]:
        text = f"{self._seed}:{key}:{self._seen[key]}"
        drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        left = (drawn >> 1) / 2**63
        for fault, share in self._faults.items():
            if left < share:
                return fault, bool(drawn & 1)
            left -= share
        return "", False

    def _full(self, device: str, now: float) -> bool:
        recent = self._recent[device]
        while recent and recent[0] <= now - self._window_s:
            recent.popleft()
        return self._window_s > 0 and len(recent) >= self._limit

    def _take(self, device: str, key: str, now: float) -> str:
        self._recent[device].append(now)
        return self._accepted.setdefault(key, f"m-{key}")

    def _write(self, arrival: Arrival) -> None:
        os.write(self._log, json.dumps(asdict(arrival)).encode() + b"\n")


class GatewayProcess:
    """A gateway started as ``python -m simulate.gateway`` on the loopback; a context manager.

    Args:
        log: its log; a restart on the same one keeps its keys.
        options: further command line options, such as ``"--fail", "lost=0.1"``.
        port: 0 for any free one.
    """

    def __init__(self, log: Path, *options: str, port: int = 0) -> None:
        self.log, self.options = log, options
        command = [sys.executable, "-m", "simulate.gateway", "--port", str(port), "--log", str(log), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            line = lines.readline().strip()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the gateway did not start: exit status {self._process.wait()}")
        self.url = line.removeprefix("listening on ")
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The gateway's process id."""
        return self._process.pid

    def arrivals(self) -> list[Arrival]:
        """What has reached the gateway so far."""
        return read_log(self.log)

    def stop(self) -> int:
        """End it in order (SIGTERM); returns its exit status. Does nothing when it has ended."""
        self._process.terminate()
        return self._process.wait()

    def kill(self) -> int:
        """End it at once (SIGKILL); returns its exit status."""
        self._process.kill()
        return self._process.wait()


def _faults(text: str) -> dict[str, float]:
    faults = {}
    for part in text.split(",") if text else ():
        name, _, share = part.partition("=")
        if name not in REFUSING and name not in HIDING:
            raise argparse.ArgumentTypeError(f"unknown fault {name!r}; known: {', '.join((*REFUSING, *HIDING))}")
        try:
            faults[name] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} must be name=probability") from None
    if not all(share >= 0 for share in faults.values()) or sum(faults.values()) > 1:
        raise argparse.ArgumentTypeError("probabilities must be at least 0 and at most 1 together")
    return faults


async def _serve(gateway: Gateway, port: int, latency_s: float, telling: Telling | None) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = await loop.create_server(lambda: Connection(gateway, latency_s), "127.0.0.1", port, backlog=1024)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    beside = None if telling is None else asyncio.create_task(telling.live())
    await ended.wait()
    server.close()
    if beside is not None:
        beside.cancel()


def main() -> None:
    """The ``python -m simulate.gateway`` command."""
    parser = argparse.ArgumentParser(
        prog="simulate.gateway", description="A messaging gateway for tests, loopback only."
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free port, printed in the first line")
    parser.add_argument("--log", type=Path, required=True, help="one JSON line per request")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latency-ms", type=float, default=5.0, help="between arrival and answer")
    parser.add_argument(
        "--fail", type=_faults, default={}, metavar="NAME=SHARE,…", help=", ".join((*REFUSING, *HIDING))
    )
    parser.add_argument("--not-idempotent", action="store_true", help="take a repeated key again")
    parser.add_argument("--window-s", type=float, default=0.0, help="length of an hour for --limit; 0: no limit")
    parser.add_argument("--limit", type=int, default=100, help="messages a device may have accepted in any such hour")
    parser.add_argument("--storm", type=Path, metavar="FILE", help="what --fail says, and may say anew at any time")
    parser.add_argument("--tell", metavar="URL", help="a webhook; DRIPLINE_WEBHOOK_SECRET is what to sign with")
    given = parser.parse_args()
    telling = Telling(given.tell, os.environ["DRIPLINE_WEBHOOK_SECRET"]) if given.tell else None
    try:
        gateway = Gateway(
            given.log,
            given.seed,
            given.fail,
            not given.not_idempotent,
            given.window_s,
            given.limit,
            given.storm,
            telling,
        )
        asyncio.run(_serve(gateway, given.port, given.latency_ms / 1000, telling))
    except (OSError, InputError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
