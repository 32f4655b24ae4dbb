"""A partition while requests are under way: what a sender gave up must not arrive when the network is whole again.

The kernel goes on sending what a process has written, even once the process has stopped or ended, unless the socket's
options say otherwise. Senders and gateway live in two network namespaces. Beside each sender that must be silent stands
one with sockets as they come, which shows that its message was still on its way.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from uuid import uuid4

import numpy as np
import pytest

from dispatcher.core.batches import Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.hosts import GatewayHosts
from dispatcher.core.outcomes import Outcome
from dispatcher.sender import http
from simulate.contract import Connection
from simulate.gateway import Gateway as Judge
from simulate.gateway import read_log

DEADLINE_S = 3.0
NETWORK = GatewayHosts("10.213.87.0/24")
HASTY_MS = 1500
"""Instead of ``UNACKNOWLEDGED_MS``, so that half a minute passes within a deadline."""
ENDING = {"ends": "ours", "ends, default sockets": "default"}
STOPPED = {"stops": "hasty", "stops, default sockets": "default"}
"""Which sockets each sender has."""
ESTABLISHED = b"01"


async def send_when_told(url: str, name: str, sockets: str) -> None:
    """One sender: a message for every line it reads, and its outcome in a line of its own."""
    if sockets == "default":
        http._socket_options = list
    elif sockets == "hasty":
        http.UNACKNOWLEDGED_MS = HASTY_MS
    sender = http.HttpSender({1: Gateway(1, name, url, None, True)}, now_us, NETWORK)
    print("ready", flush=True)
    for _ in range(2):
        sys.stdin.readline()
        (outcomes,) = [group async for group in sender.send(message())]
        print(Outcome(int(outcomes.outcome[0])).label, outcomes.error[0], flush=True)
    await sender.close()


def now_us() -> int:
    return time.time_ns() // 1000


def message() -> Outgoing:
    now = now_us()
    return Outgoing(
        device=np.array([1], np.int32),
        slot_us=np.array([now], np.int64),
        deadline_us=np.array([now + round(DEADLINE_S * 1e6)], np.int64),
        visit=np.array([1], np.int32),
        attempt=np.array([1], np.int32),
        to=["60100000000"],
        text=["Welcome to fitness!"],
        media_url=[None],
        key=[uuid4().bytes],
        sequence=["30 Day Fitness"],
        step=["fitness_start"],
    )


async def started(namespace: str, url: str, name: str, sockets: str) -> Process:
    command = ("ip", "netns", "exec", namespace, sys.executable, __file__, url, name, sockets)
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)


async def line_of(process: Process) -> str:
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


async def unacknowledged(namespace: str) -> int:
    """Open connections of the namespace with bytes the other side has not confirmed."""
    command = ("ip", "netns", "exec", namespace, "cat", "/proc/net/tcp")
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    table, _ = await process.communicate()
    rows = [line.split() for line in table.splitlines()[1:]]
    return sum(row[3] == ESTABLISHED and not row[4].startswith(b"00000000:") for row in rows)


@pytest.mark.slow
async def test_what_was_under_way_in_a_partition_does_not_arrive_after_it(bridge_apart, tmp_path):
    log, near = tmp_path / "arrivals.jsonl", bridge_apart.near
    judge = Judge(log, 1, {}, True, 0.0, 100)
    listening = await asyncio.to_thread(bridge_apart.listen, bridge_apart.THERE, 0)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(judge, 0.0), sock=listening)
    url = f"http://{bridge_apart.THERE}:{listening.getsockname()[1]}"
    senders: dict[str, Process] = {}
    try:
        for name, sockets in (ENDING | STOPPED).items():
            senders[name] = await started(near, url, name, sockets)
        assert [await line_of(each) for each in senders.values()] == ["ready"] * 4
        for each in senders.values():
            each.stdin.write(b"before\n")
        assert [await line_of(each) for each in senders.values()] == ["accepted None"] * 4

        bridge_apart.cut()
        cut_s = time.monotonic()
        for each in senders.values():
            each.stdin.write(b"during\n")
        while await unacknowledged(near) < 4:
            assert time.monotonic() - cut_s < DEADLINE_S, "not every request was written"
        for name in STOPPED:
            senders[name].send_signal(signal.SIGSTOP)
        gave_up = [await line_of(senders[name]) for name in ENDING]
        ended = [await senders[name].wait() for name in ENDING]
        assert (gave_up, ended) == (["in_doubt no answer before the deadline"] * 2, [0, 0])
        assert [senders[name].returncode for name in STOPPED] == [None, None]

        bridge_apart.heal()
        while len(read_log(log)) < 6 and time.monotonic() - cut_s < 30:
            await asyncio.sleep(0.1)
        # The kernel doubles its waits: what was still on its way would be sent once more within this.
        await asyncio.sleep(1.5 * (time.monotonic() - cut_s))
    finally:
        for each in senders.values():
            if each.returncode is None:
                each.kill()
                await each.wait()
        server.close()
    arrived = [(arrival.device_id, arrival.answer) for arrival in read_log(log)]
    assert sorted(arrived[:4]) == sorted((name, "accepted") for name in senders)
    assert sorted(arrived[4:]) == [("ends, default sockets", "expired"), ("stops, default sockets", "expired")]


if __name__ == "__main__":
    asyncio.run(send_when_told(*sys.argv[1:]))
