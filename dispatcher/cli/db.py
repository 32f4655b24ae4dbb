"""``dripline db``: the database and the embedded server."""

from __future__ import annotations

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, out, run, show_table
from dispatcher.config import load_settings
from dispatcher.errors import InputError
from dispatcher.store import migrate as migrations
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.stamp import read_kind

app = typer.Typer(
    help="Migrate the database; start and stop the embedded server.",
    no_args_is_help=True,
    epilog="Example: dripline db migrate --database-url postgresql://dripline@db.example/dripline",
)


@app.command(epilog="Example: dripline db migrate --database-url postgresql://dripline@db.example/dripline")
def migrate(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Bring the schema up to date; what is in force already is left alone."""

    async def body() -> list[str]:
        async with database(database_url, data_dir) as connection:
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
