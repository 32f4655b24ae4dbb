"""``dripline in-doubt``: messages of which nobody knows whether they were sent, and an operator's word about them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import asyncpg
import typer

from dispatcher.cli.common import (
    By,
    DatabaseUrl,
    DataDir,
    actor,
    confirm,
    database,
    err,
    moment_us,
    out,
    progress,
    run,
    show_table,
)
from dispatcher.core.catalogue import Catalogue
from dispatcher.errors import InputError
from dispatcher.intake.sequences import find_sequence
from dispatcher.store.in_doubt import UNDER_WAY, Which, Word, count_in_doubt, list_in_doubt, resolve
from dispatcher.store.registry import read_whole_catalogue

app = typer.Typer(
    help="Attempts sent or not: list them, and say what became of them.",
    no_args_is_help=True,
    epilog="Example: dripline in-doubt list",
)

_TEXT_SHOWN: Final = 60
_LEFT_STATUS: Final = 1

SequenceName = Annotated[
    str | None, typer.Option("--sequence", metavar="NAME_OR_ID", help="Only of this sequence.", envvar=[])
]
_LONGEST_H: Final = 1_000_000.0
OlderThan = Annotated[
    float | None,
    typer.Option(
        "--older-than", metavar="HOURS", min=0, max=_LONGEST_H, help="Only if handed over that long ago.", envvar=[]
    ),
]


@app.command("list", epilog='Example: dripline in-doubt list --sequence "30 Day Fitness" --older-than 24')
def list_(
    sequence: SequenceName = None,
    older_than: OlderThan = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List enrolments with an attempt in doubt: held, waiting to be sent again under its key, or under way."""

    async def body() -> tuple[list[dict[str, Any]], int]:
        async with database(database_url, data_dir) as connection:
            which = await _which(connection, None, sequence, older_than)
            found, _ = await count_in_doubt(connection, which)
            return await list_in_doubt(connection, which, rows=limit), found

    rows, found = run(body())
    if as_json:
        typer.echo(json.dumps([{**row, "text": _short(row["text"])} for row in rows], indent=2, default=str))
        return
    show_table(
        ("enrolment", "phone", "sequence", "step", "device", "handed over", "tries", "state", "said", "why"),
        [
            (
                row["id"],
                row["phone"],
                row["sequence"] or "removed",
                row["step"],
                row["device"] or "removed",
                f"{row['handed_at']:%Y-%m-%d %H:%M:%SZ}" if row["handed_at"] else "-",
                row["tries"],
                row["state"],
                _short(row["text"]) or "-",
                row["why"] or "-",
            )
            for row in rows
        ],
    )
    if found > len(rows):
        err.out(f"{found - len(rows):,} more - see them with --limit")


@app.command("resolve", epilog="Example: dripline in-doubt resolve 17 23 --as not-sent")
def resolve_(
    enrolments: Annotated[
        list[int] | None,
        typer.Argument(metavar="[ENROLMENT]...", min=1, max=2**63 - 1, help="As in the list; else give a selection."),
    ] = None,
    word: Annotated[
        Word | None, typer.Option("--as", show_default=False, help="What became of them.", envvar=[])
    ] = None,
    sequence: SequenceName = None,
    older_than: OlderThan = None,
    due: Annotated[
        str | None,
        typer.Option(
            envvar=[],
            metavar="MOMENT",
            show_default="when it was sent, and the step's delay",
            help="Accepted: when the next step is due; ISO 8601, without a time zone UTC.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", envvar=[], help="Do not ask.")] = False,
    by: By = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Say what became of attempts in doubt: accepted moves on to the next step, not-sent is sent again, as if new.

    What is under way is left alone, and so is what was accepted at a step that no longer exists. The exit status is 1
    if an enrolment that was named was left as it is.
    """
    if word is None:
        raise InputError("--as", "it is missing", "say accepted or not-sent")
    if due is not None and word is not Word.ACCEPTED:
        raise InputError("--due", "what was not sent is due as it was", "leave it out")
    due_us = None if due is None else moment_us("--due", due)
    named = sorted(set(enrolments or ()))
    if bool(named) == (sequence is not None or older_than is not None):
        raise InputError("in-doubt resolve", "which ones?", "name enrolments, or give --sequence, --older-than or both")

    async def body() -> tuple[list[int], dict[int, str]]:
        async with database(database_url, data_dir) as connection:
            which = await _which(connection, named or None, sequence, older_than)
            found, under_way = await count_in_doubt(connection, which)
            if not named and found > under_way and not yes:
                confirm("in-doubt resolve", f"{found - under_way:,} enrolments as {word.value}?")
            catalogue = await read_whole_catalogue(connection)
            resolved = await _resolve(connection, which, word, catalogue, found, actor(by), due_us)
            left = await list_in_doubt(connection, which, rows=len(named) or 1)
            return resolved, {row["id"]: _why_left(row, catalogue) for row in left}

    resolved, left = run(body())
    out.out(f"{len(resolved):,} resolved as {word.value}")
    for enrolment in sorted(set(named) - set(resolved)):
        err.out(f"enrolment {enrolment}: {left.get(enrolment, 'nothing is in doubt there')}")
    if not named and left:
        err.out(f"some were left, such as enrolment {min(left)}: {left[min(left)]} - see: dripline in-doubt list")
    if set(named) - set(resolved):
        raise typer.Exit(_LEFT_STATUS)


def _why_left(row: dict[str, Any], catalogue: Catalogue) -> str:
    if row["state"] == UNDER_WAY:
        return "is under way: wait for its end"
    if row["step"] not in catalogue.step:
        return f"its step {row['step']!r} is gone: put it back first"
    return "somebody else holds it: try again"


async def _resolve(
    connection: asyncpg.Connection,
    which: Which,
    word: Word,
    catalogue: Catalogue,
    found: int,
    by: str,
    due_us: int | None,
) -> list[int]:
    """All pages of ``which``; returns the enrolments that moved on."""
    resolved: list[int] = []
    last: int | None = 0
    with progress(found, "enrolments") as show:
        while last is not None:
            page = await resolve(connection, which, word, catalogue, actor=by, due_us=due_us, after=last)
            resolved += page.enrolments
            last = page.last
            show(len(resolved))
    return resolved


async def _which(
    connection: asyncpg.Connection, enrolments: list[int] | None, sequence: str | None, older_than_h: float | None
) -> Which:
    id_ = None if sequence is None else (await find_sequence(connection, sequence)).id
    return Which(enrolments, id_, older_than_h)


def _short(text: str | None) -> str | None:
    """The beginning of what was said, on one line."""
    return None if text is None else " ".join(text.split())[:_TEXT_SHOWN]
