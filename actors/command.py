"""``dripline run``: the engine in production."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, run
from dispatcher.errors import DriplineError

if TYPE_CHECKING:
    from socket import socket

    from actors.screen import Screen
    from dispatcher.config import Settings

app = typer.Typer()

_ANSWER_S = 1.0


@app.command(
    name="run",
    epilog="Example: dripline run --database-url postgresql://dripline@db.example/dripline",
)
def run_(
    shards: Annotated[
        int | None, typer.Option(min=1, max=200, help="How many shard actors.", show_default="as the devices need")
    ] = None,
    devices_per_shard: Annotated[
        int | None, typer.Option(min=1, max=5000, show_default="300", help="Where --shards is not given.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster that is up.", show_default="a local Ray of its own")
    ] = None,
    webhooks: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", show_default="none are served", help="Take in what gateways tell, beside the engine."
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(metavar="text|json", help="Form of the log.", show_default="text in a terminal, else json"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what needs attention.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Run the engine: enrol, claim and send through the devices' gateways, until it is told to end.

    SIGTERM or Ctrl-C drains: nothing more is claimed, what has not left waits again, what is under way is waited for,
    and everything known is written. A second one ends at once; the next start sorts out what was under way.

    Exit status 0 after a drain; 2 where something is wrong or would be unsafe, 3 where the database cannot be used; 130
    or 143 after a second signal.
    """
    from actors.screen import Screen
    from dispatcher import logs
    from dispatcher.config import load_settings

    settings = load_settings(
        database_url=database_url,
        data_dir=data_dir,
        ray_address=ray_address,
        devices_per_shard=devices_per_shard,
        webhooks=webhooks,
        log=log,
    )
    listening = None
    if settings.webhooks is not None:
        from dispatcher.webhooks.listening import listen

        listening = listen(settings.webhooks, settings)
    form: logs.Form = settings.log if settings.log != "auto" else ("text" if sys.stderr.isatty() else "json")
    screen = Screen(quiet, settings.cycle_s, form)
    logs.configure(form, "run")
    try:
        run(_live(settings.model_copy(update={"log": form}), shards, screen, listening))
    except DriplineError as error:
        if not screen.failed(error):
            raise
        raise typer.Exit(error.exit_code) from None


async def _live(settings: Settings, shards: int | None, screen: Screen, listening: socket | None) -> None:
    from functools import partial

    from actors.cluster import joined_ray, start
    from actors.live import Installation, ending, http_sender, new_holder
    from actors.preflight import check_database, watched
    from dispatcher.cli.common import served
    from dispatcher.core.routing import shard_count

    with ending(screen.attention) as stop:
        async with served(settings.database_url, settings.data_dir, create=True) as url:
            devices = await check_database(url, settings, embedded=settings.database_url is None)
            settings = settings.model_copy(update={"database_url": url})
            with screen, joined_ray(settings.ray_address, show_logs=screen.forwarded):
                for remark in devices.remarks:
                    screen.attention(remark)
                holder = new_holder()
                wanted = shards or shard_count(devices.devices, settings.devices_per_shard)
                line = f"starting {wanted:,} shards (version {version('dripline')}, process {os.getpid()})"
                screen.news(line, "started", devices=devices.devices, shards=wanted)
                sender_of = partial(http_sender, settings.gateway_hosts)
                cluster = start(settings, wanted, sender_of, holder=holder, virtual=False, answer_s=_ANSWER_S)
                beside = _webhooks(listening, url, settings, screen.news)
                async with beside, watched(url, settings.data_dir, stop, screen.attention):
                    await Installation(cluster, settings, holder, stop, screen).live(devices)


def _webhooks(
    listening: socket | None, url: str, settings: Settings, say: Callable[[str], None]
) -> AbstractAsyncContextManager[None]:
    """Webhooks beside the engine, where they are wanted."""
    if listening is None:
        return nullcontext()
    from dispatcher.webhooks.server import serving

    return serving(listening, url, settings, say)
