"""``dripline sequences preview``: the messages of a sequence file as one lead would get them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, out, run
from dispatcher.core.delays import told
from dispatcher.core.graph import Step, way_from
from dispatcher.core.messages import compiled
from dispatcher.errors import InputError
from dispatcher.intake.sequence_file import load
from dispatcher.intake.yaml_file import parse_value
from dispatcher.store.statements import statements

_PHONE: Final = "60123456789"
"""Of a lead that is invented."""


def preview(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A sequence file.")],
    lead: Annotated[
        str | None,
        typer.Option("--lead", metavar="PHONE", help="A lead in the database.", show_default="an invented one"),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="name, phone or an attribute; repeatable.", envvar=[]),
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Show every message in order, with its earliest time, as one lead would get it.

    The lead is one of the database, or invented with --set; with both, --set says what differs. Values of attributes
    are read as in YAML: age=42 is a number. Exit status 1 if a message has no text for this lead: its enrolment would
    fail there.
    """
    sequences = load(file)
    phone, name, attributes = run(_lead(lead, database_url, data_dir)) if lead is not None else (_PHONE, None, {})
    for field, value in map(_field, fields or ()):
        if field == "phone":
            phone = str(value)
        elif field == "name":
            name = str(value)
        else:
            attributes[field] = value
    failed: list[str] = []
    for sequence in sequences:
        for entry in [step for step in sequence.steps if step.is_entry]:
            out.out(f"{sequence.name}, entered by {entry.trigger}", style="bold")
            for step, after_h in way_from(sequence, entry):
                (text,), errors = compiled(step.message_text).render_batch([phone], [name], [json.dumps(attributes)])
                parameters: list[str] = []
                for parameter in step.template.parameters if step.template else ():
                    (value,), lacking = compiled(parameter).render_batch([phone], [name], [json.dumps(attributes)])
                    parameters.append(repr(value))
                    errors = errors or lacking
                _show(step, after_h, text or f"no message: {errors[0]}", parameters)
                if errors:
                    failed.append(f"step {step.trigger!r} of {sequence.name!r}: content error: {errors[0]}")
    for line in dict.fromkeys(failed):
        out.out(line, style="red")
    raise typer.Exit(1 if failed else 0)


def _show(step: Step, after_h: float, text: str, parameters: list[str]) -> None:
    days, hours = divmod(after_h, 24)
    at = " ".join([*[f"{days:.0f} d"] * (days > 0), *[told(hours)] * (hours > 0)])
    day = "" if step.day_number is None else f", day {step.day_number}"
    clock = "" if step.at is None else f", at {step.at:%H:%M} by the lead's clock"
    out.out(f"\n  {step.trigger}{day}: {f'{at} after entering' if at else 'at once'}{clock}")
    for line in [*text.splitlines(), *filter(None, [step.media_url])]:
        out.out(f"    {line}")
    if step.template is not None:
        out.out(f"    or the template {step.template.name} ({step.template.language}) {' '.join(parameters)}".rstrip())


def _field(text: str) -> tuple[str, Any]:
    """A field and its value.

    Raises:
        InputError: it is not written so.
    """
    field, equals, value = text.partition("=")
    if not equals or not field.isidentifier():
        raise InputError("--set", f"{text!r} is no field and value", "write it like name=Ann")
    if field in ("name", "phone"):
        return field, value
    try:
        read = parse_value(value)
        json.dumps(read)
    except (ValueError, TypeError):  # what JSON has no value for, such as a date, is text on a lead
        return field, value
    return field, read


async def _lead(phone: str, database_url: str | None, data_dir: Path | None) -> tuple[str, str | None, dict[str, Any]]:
    digits = "".join(char for char in phone if char.isascii() and char.isdigit())
    async with database(database_url, data_dir) as connection:
        rows = await connection.fetch(statements("intake")["find"], [digits])
    if not rows:
        raise InputError(f"lead {phone!r}", "there is none with this phone", "write the phone as in leads.phone")
    return rows[0]["phone"], rows[0]["name"], json.loads(rows[0]["attributes"])
