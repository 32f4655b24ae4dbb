"""``dripline webhooks``: take in what gateways tell, without the engine."""

from __future__ import annotations

import asyncio
import signal
from datetime import datetime
from socket import socket
from typing import Annotated

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, err, run
from dispatcher.config import Settings, load_settings
from dispatcher.errors import InputError, NotMigratedError
from dispatcher.webhooks.listening import listen

app = typer.Typer()


@app.command(name="webhooks", epilog="Example: dripline webhooks 127.0.0.1:8090")
def webhooks(
    where: Annotated[
        str | None,
        typer.Argument(metavar="[HOST:PORT]", show_default="the setting webhooks", help="Where to listen."),
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Serve webhooks only: receipts, replies and opt-outs of gateways, until it is told to end.

    Beside an engine on another machine, or several of them behind one address. Secrets come from the environment
    (DRIPLINE_WEBHOOK_SECRET, DRIPLINE_WHATSAPP_APP_SECRET, DRIPLINE_WHATSAPP_VERIFY_TOKEN) or dripline.toml.
    """
    settings = load_settings(database_url=database_url, data_dir=data_dir, webhooks=where)
    if settings.webhooks is None:
        raise InputError("webhooks", "where?", "say it like: dripline webhooks 127.0.0.1:8090")
    run(_serve(settings, settings.webhooks, listen(settings.webhooks, settings)))


async def _serve(settings: Settings, where: str, listening: socket) -> None:
    from dispatcher.cli.common import served
    from dispatcher.store.connect import connect, store_errors
    from dispatcher.store.migrate import status
    from dispatcher.store.stamp import require_live
    from dispatcher.webhooks.server import serving

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with served(settings.database_url, settings.data_dir) as url:
        connection = await connect(url)
        with store_errors(url):
            if any(each.applied_at is None for each in await status(connection)):
                raise NotMigratedError
            await require_live(connection)
        await connection.close(timeout=5)
        async with serving(listening, url, settings, _say):
            _say(f"webhooks: listening at {where}")
            await stop.wait()


def _say(line: str) -> None:
    err.out(f"{datetime.now():%H:%M:%S}  {line}")
