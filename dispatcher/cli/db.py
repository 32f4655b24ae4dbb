"""``dripline db``: the database and the embedded server."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli.common import (
    By,
    DatabaseUrl,
    DataDir,
    actor,
    database,
    err,
    moment_us,
    out,
    progress,
    run,
    show_table,
)
from dispatcher.config import load_settings
from dispatcher.core.moments import span_us
from dispatcher.errors import InputError, NotMigratedError
from dispatcher.store import migrate as migrations
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.recovery import Lost, Recovered, foresee, now_us, recover
from dispatcher.store.stamp import read_kind

app = typer.Typer(
    help="Migrate and recover the database; start and stop the embedded server.",
    no_args_is_help=True,
    epilog="Example: dripline db migrate --database-url postgresql://dripline@db.example/dripline",
)


@app.command(epilog="Example: dripline db migrate --database-url postgresql://dripline@db.example/dripline")
def migrate(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Bring the schema up to date; what is in force already is left alone."""

    async def body() -> list[str]:
        async with database(database_url, data_dir, create=True) as connection:
            return await migrations.migrate(connection)

    for name in run(body()) or ["nothing to do"]:
        out.out(name)


@app.command(epilog="Example: dripline db status --data-dir rehearsal")
def status(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """List the migrations and what the database is stamped as."""

    async def body() -> tuple[str, list[migrations.MigrationStatus]]:
        async with database(database_url, data_dir) as connection:
            return await read_kind(connection) or "not stamped", await migrations.status(connection)

    kind, found = run(body())
    rows = [
        (
            f"{each.version:04}",
            each.name,
            f"{each.applied_at:%Y-%m-%d %H:%M:%SZ}" if each.applied_at else "missing",
        )
        for each in found
    ]
    show_table(("migration", "name", "applied"), rows)
    out.out(f"database: {kind}")


@app.command(epilog="Example: dripline db sql | psql postgresql://dba@db.example/dripline")
def sql() -> None:
    """Print all migrations as one script, for those who apply SQL themselves."""
    typer.echo(migrations.script(), nl=False)


@app.command(epilog="Example: dripline db recovered --since 2026-01-05T09:00:00Z --dry-run")
def recovered(
    since: Annotated[
        str,
        typer.Option(envvar=[], help="When what is lost begins, with a margin; 'now' when surely nothing is lost."),
    ],
    until: Annotated[
        str | None, typer.Option(envvar=[], show_default="now", help="When surely nothing was sent any more.")
    ] = None,
    resend: Annotated[
        bool,
        typer.Option("--resend", envvar=[], help="Send again, under the same key, where the gateway honours keys."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    by: By = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """After a restore or the promotion of a standby: hold what may have been sent, and let the engine run again.

    Everything that was due in the lost time and still waits becomes in doubt; 'dripline in-doubt' takes it from there.
    Moments are ISO 8601, without a time zone UTC. Safe to repeat. No engine may be running.
    """
    settings = load_settings(database_url=database_url, data_dir=data_dir)

    async def body() -> Recovered:
        async with database(database_url, data_dir) as connection:
            if any(each.applied_at is None for each in await migrations.status(connection)):
                raise NotMigratedError
            now = await now_us(connection)
            lost = Lost(
                since_us=now if since == "now" else moment_us("--since", since),
                until_us=now if until is None else moment_us("--until", until),
                resend=resend,
                actor=actor(by),
            )
            _check(lost, now, span_us(0.9 * settings.key_retention_s))
            found = await foresee(connection, lost, leader_s=settings.leader_s)
            if dry_run:
                return found
            with progress(found.held + found.resent, "enrolments") as show:
                return await recover(connection, lost, leader_s=settings.leader_s, report=show)

    done = run(body())
    would = "would be " if dry_run else ""
    out.out(f"{done.held:,} enrolments {would}held as in doubt, {done.resent:,} {would}sent again under their keys")
    if done.held and not dry_run:
        out.out("see: dripline in-doubt list")
    if done.queued:
        err.out(
            f"{done.queued:,} lead changes wait for enrolment: a lead that was enrolled by them in the lost time is"
            " enrolled anew, and gets the first message again"
        )


def _check(lost: Lost, now: int, remembered_us: int) -> None:
    for option, moment in (("--since", lost.since_us), ("--until", lost.until_us)):
        if moment > now:
            raise InputError(option, "it lies in the future", "the database's clock decides")
    if lost.since_us > lost.until_us:
        raise InputError("--until", "it lies before --since", "swap them")
    if lost.resend and lost.since_us < now - remembered_us:
        raise InputError(
            "--resend", "gateways may have forgotten keys since then (key_retention_s)", "leave it out, and resolve"
        )


@app.command(epilog="Example: dripline db start --data-dir rehearsal")
def start(data_dir: DataDir = None) -> None:
    """Start the embedded server, leave it running, and print its URL."""
    out.out(_embedded(data_dir).start())


@app.command(epilog="Example: dripline db stop --data-dir rehearsal")
def stop(data_dir: DataDir = None) -> None:
    """Stop the embedded server, whoever started it."""
    _embedded(data_dir).stop()


@app.command(epilog='Example: psql "$(dripline db url)"')
def url(data_dir: DataDir = None) -> None:
    """Print the URL of the running embedded server."""
    server = _embedded(data_dir)
    if not server.running():
        raise InputError("embedded server", "it is not running", "run: dripline db start")
    out.out(server.url())


def _embedded(data_dir: DataDir) -> EmbeddedServer:
    return EmbeddedServer(load_settings(data_dir=data_dir).data_dir)
