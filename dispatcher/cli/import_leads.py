"""``dripline import``: leads from a delimited file."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Annotated, Final, Self

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dispatcher.cli.common import DatabaseUrl, DataDir, database, err, out, require_writable, run
from dispatcher.errors import InputError
from dispatcher.intake.csv_file import CsvFile
from dispatcher.intake.lead_file import LeadReader
from dispatcher.intake.leads import Counts, LeadImport
from dispatcher.intake.mapping import parse_mapping
from dispatcher.intake.rejects_file import RejectsFile

BAR_AFTER_S: Final = 1.0
LINE_EVERY_S: Final = 5.0
INTERRUPTED: Final = 130

app = typer.Typer()


@app.command(
    name="import",
    epilog='Example: dripline import leads.csv --map phone="Phone 1" --map name="First Name" '
    "--map company=Company --trigger fitness_start --region US",
)
def import_leads(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header line, of any size.")],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN",
            help="phone, name, niche, time_zone, trigger, opted_in_at, or the name of an attribute. "
            "Only a column called phone is found by itself.",
        ),
    ] = None,
    triggers: Annotated[
        list[str] | None, typer.Option("--trigger", help="A trigger every lead gets; may be repeated.")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(help="Where numbers without a country code are dialled, such as US; without it, none are."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and write nothing.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", envvar="DRIPLINE_JSON_FILE", help="Write the counts here.")
    ] = None,
    rejects_file: Annotated[
        Path | None,
        typer.Option(
            "--rejects",
            metavar="FILE",
            show_default="FILE.rejects.csv; none in a dry run",
            help="Where rejected rows go, with line and reason, their cells unchanged (also those that a "
            "spreadsheet would take for a formula).",
        ),
    ] = None,
    encoding: Annotated[str | None, typer.Option(show_default="found out", help="Such as cp1252.")] = None,
    delimiter: Annotated[str | None, typer.Option(show_default="found out", help="One character.")] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Bring in leads: every row is imported, merged with the lead of its phone, or rejected with the reason.

    Merging adds triggers and fills what is empty; nothing is overwritten, and opted-out leads stay so. Ctrl-C stops
    after the rows in hand; importing the file again goes on from there.
    """
    begun = time.monotonic()
    require_writable("--json", json_file, file)
    with CsvFile(file, encoding=encoding, delimiter=delimiter) as opened:
        reader = LeadReader(opened, parse_mapping(columns or ()), tags=triggers or (), region=region)
        if rejects_file is None and not dry_run:
            rejects_file = Path(f"{file}.rejects.csv")

        async def body(rejects: RejectsFile | None) -> Counts:
            stop = stop_on_interrupt()
            async with database(database_url, data_dir) as connection:
                write = (lambda record, reason: None) if rejects is None else rejects.write
                with FileProgress(opened) as progress:
                    leads = LeadImport(connection, reader, dry_run=dry_run, on_reject=write)
                    return await leads.run(opened, stopped=stop.is_set, on_progress=progress.show)

        if rejects_file is None:
            counts = run(body(None))
        else:
            with RejectsFile(rejects_file, opened) as rejects:
                counts = run(body(rejects))
    seconds = time.monotonic() - begun
    _report(counts, seconds, dry_run, rejects_file)
    if json_file is not None:
        _write_json(json_file, counts, seconds, dry_run)
    if not counts.finished:
        raise typer.Exit(INTERRUPTED)


def stop_on_interrupt() -> asyncio.Event:
    """Set by the first Ctrl-C, so that the chunk in hand is committed and counted; the second one interrupts."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupted() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    return stop


class FileProgress:
    """A bar over the bytes of the file once it takes longer than a second; plain lines where no terminal is."""

    def __init__(self, file: CsvFile) -> None:
        self._file = file
        self._begun = self._shown = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, counts: Counts) -> None:
        """Bring the bar up to date, or print a line from time to time."""
        now = time.monotonic()
        if not err.is_terminal:
            if now - self._shown >= LINE_EVERY_S:
                self._shown = now
                share = self._file.bytes_read / max(self._file.bytes_total, 1)
                err.out(f"{share:4.0%}  {counts.rows} rows, {counts.rejected} rejected")
            return
        if self._bar is None and now - self._begun >= BAR_AFTER_S:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=err, transient=True)
            self._task = self._bar.add_task("", total=self._file.bytes_total)
            self._bar.start()
        if self._bar is not None:
            rows = f"{counts.rows:,} rows"
            self._bar.update(self._task, completed=self._file.bytes_read, description=rows)


def _report(counts: Counts, seconds: float, dry_run: bool, rejects_file: Path | None) -> None:
    would = "would be " if dry_run else ""
    out.out(
        f"{counts.rows} rows in {seconds:.1f} s: {counts.imported} {would}imported, {counts.merged} {would}merged, "
        f"{counts.rejected} {would}rejected"
    )
    for reason, times in counts.reasons.most_common():
        out.out(f"{times:>9}  {reason}")
    if counts.rejected and rejects_file is not None:
        out.out(f"rejected rows: {rejects_file}")
    if not counts.finished:
        kept = "nothing was written" if dry_run else "these rows stay; importing the file again goes on from here"
        err.out(f"interrupted: {kept}")


def _write_json(path: Path, counts: Counts, seconds: float, dry_run: bool) -> None:
    content = {
        **counts.as_json(),
        "reasons": dict(counts.reasons.most_common()),
        "seconds": round(seconds, 3),
        "dry_run": dry_run,
        "finished": counts.finished,
    }
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError("--json", f"{path} cannot be written: {error.strerror}") from None
