"""How a peer's process speaks with bench/peers.py.

It says ``ready`` once everything is imported and connected, waits for a line that means go, then says every 10 ms how
many jobs it has done, until its standard input is closed: then it ends at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable


async def go(done: Callable[[], int]) -> asyncio.Task[None]:
    """Return when it is time to start; keep the task."""
    print("ready", flush=True)
    await asyncio.to_thread(os.read, 0, 3)
    threading.Thread(target=_end_with_input, daemon=True).start()
    return asyncio.create_task(_tell(done))


def _end_with_input() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be held when an error ends the process
        pass
    os._exit(0)


async def _tell(done: Callable[[], int]) -> None:
    while True:
        print(done(), flush=True)
        await asyncio.sleep(0.01)
