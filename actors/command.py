"""``dripline run``: the engine in production."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, run

if TYPE_CHECKING:
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
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what needs attention.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Run the engine: enrol, claim and send through the devices' gateways, until it is told to end.

    SIGTERM or Ctrl-C drains: nothing more is claimed, what has not left waits again, what is under way is waited for,
    and everything known is written. A second one ends at once; the next start sorts out what was under way.
    """
    from dispatcher.config import load_settings

    settings = load_settings(
        database_url=database_url, data_dir=data_dir, ray_address=ray_address, devices_per_shard=devices_per_shard
    )
    run(_live(settings, shards, quiet))


async def _live(settings: Settings, shards: int | None, quiet: bool) -> None:
    from functools import partial

    from actors.cluster import joined_ray, start
    from actors.live import Installation, ending, http_sender, new_holder
    from actors.preflight import check_database, watched
    from actors.screen import Screen
    from dispatcher.cli.common import served
    from dispatcher.core.routing import shard_count

    screen = Screen(quiet, settings.cycle_s)
    with ending(screen.attention) as stop:
        async with served(settings.database_url, settings.data_dir, create=True) as url:
            devices = await check_database(url, settings, embedded=settings.database_url is None)
            settings = settings.model_copy(update={"database_url": url})
            with screen, joined_ray(settings.ray_address, show_logs=True):
                for remark in devices.remarks:
                    screen.attention(remark)
                holder = new_holder()
                wanted = shards or shard_count(devices.devices, settings.devices_per_shard)
                sender_of = partial(http_sender, settings.gateway_hosts)
                cluster = start(settings, wanted, sender_of, holder=holder, virtual=False, answer_s=_ANSWER_S)
                async with watched(url, settings.data_dir, stop, screen.attention):
                    await Installation(cluster, settings, holder, stop, screen).live(devices)
