"""``dripline explain``: why a lead got a message, or did not, in plain words on one page."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, out, run, show_table
from dispatcher.cli.status import ahead
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.graph import Sequence
from dispatcher.core.moments import from_datetime, to_datetime
from dispatcher.core.triggers import parse
from dispatcher.errors import InputError
from dispatcher.intake.unmatched import why_closed
from dispatcher.store.registry import read_whole_catalogue
from dispatcher.store.statements import statements

app = typer.Typer(help="Why a lead got a message, or did not.")

_TEXT_SHOWN = 70
Row = Any
"""A row of ``explain.sql``."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything there is about one lead."""

    lead: Row
    now: datetime
    hour: timedelta
    catalogue: Catalogue
    enrolments: list[Row]
    replies: list[Row]
    """The last 20, the newest first."""
    archived: list[Row]
    """What is known of earlier enrolments that were archived, a row a sequence."""
    queued: bool
    """Whether changes of this lead wait for the enroller."""
    unsearched: set[str]
    """Entries whose search has not come to this lead yet."""
    devices: dict[UUID, Row]
    groups: dict[str, Row]
    """Whose limits these devices share."""
    attempts: list[Row]
    decisions: list[Row]
    """What operators did about the enrolments."""
    leader: str | None
    """Who leads at present."""
    paused_since: datetime | None
    """Since when everything is paused."""
    pause: Row | None
    """The lead's own, while it lasts."""
    late_steps: list[Row]
    """What was skipped or moved because it was too late."""

    def at(self, moment: datetime) -> str:
        """A moment for people."""
        return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({ahead(moment, self.now)})"


@app.command(name="explain", epilog="Example: dripline explain 60123456789")
def explain(
    which: Annotated[str, typer.Argument(metavar="PHONE_OR_LEAD_ID", help="As in leads.phone, or leads.id.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Say why a lead got a message, or did not: triggers, enrolments, replies, devices, and the last 20 attempts."""

    async def body() -> Facts:
        async with database(database_url, data_dir) as connection:
            return await read_facts(connection, which)

    show(run(body()))


async def read_facts(connection: asyncpg.Connection, which: str) -> Facts:
    """Read everything about the lead with this phone or id.

    Raises:
        InputError: there is no such lead.
    """
    sql = statements("explain")
    digits = "".join(char for char in which if char.isascii() and char.isdigit())
    id_ = int(digits) if which.isdigit() and len(digits) < 19 else None
    lead = await connection.fetchrow(sql["lead"], digits, id_)
    if not digits or lead is None:
        raise InputError(f"lead {which!r}", *await _why_nobody(connection, digits, id_))
    enrolments = await connection.fetch(sql["enrolments"], lead["id"])
    homes = {row["home_device_id"] for row in enrolments} | {lead["home_device_id"]}
    devices = {id_: await connection.fetchrow(sql["device"], id_) for id_ in homes if id_ is not None}
    names = {row["group_name"] for row in devices.values() if row is not None and row["group_name"] is not None}
    groups = {name: await connection.fetchrow(sql["group"], name) for name in sorted(names)}
    leader = await connection.fetchrow(statements("status")["leader"])
    return Facts(
        lead=lead,
        now=lead["now"],
        hour=lead["hour"],
        catalogue=await read_whole_catalogue(connection),
        enrolments=enrolments,
        replies=await connection.fetch(sql["replies"], lead["id"]),
        archived=await connection.fetch(statements("archive")["archived_of"], lead["id"]),
        queued=bool(await connection.fetchval(sql["queued"], lead["id"])),
        unsearched={row["trigger"] for row in await connection.fetch(sql["unsearched"], lead["id"])},
        devices={id_: row for id_, row in devices.items() if row is not None},
        groups={name: row for name, row in groups.items() if row is not None},
        attempts=await connection.fetch(sql["attempts"], [row["id"] for row in enrolments]),
        decisions=await connection.fetch(
            sql["decisions"], [f"lead {lead['id']}", *(f"enrolment {row['id']}" for row in enrolments)]
        ),
        leader=leader["holder"] if leader and leader["alive"] else None,
        paused_since=await connection.fetchval(sql["paused_since"]),
        pause=await connection.fetchrow(sql["pause"], lead["id"]),
        late_steps=await connection.fetch(sql["late_steps"], [row["id"] for row in enrolments]),
    )


async def _why_nobody(connection: asyncpg.Connection, digits: str, id_: int | None) -> tuple[str, str]:
    """What is known where there is no lead, and what to do."""
    sql, nobody = statements("explain"), "there is none with this phone or id"
    for row in await connection.fetch(sql["decisions"], [f"lead {id_}"]):
        if row["action"] == "leads delete":
            return f"it was deleted {row['at']:%Y-%m-%d %H:%M:%SZ} by {row['actor']}", "nothing personal is left of it"
    for row in await connection.fetch(sql["suppressed"], digits):
        why = row["reason"] or "its lead had opted out, and was deleted"
        return f"{nobody}; the number is suppressed: {why}", "see: dripline suppressions list"
    return nobody, "write the phone as in leads.phone"


def show(facts: Facts) -> None:
    """One page."""
    _say(f"Lead {facts.lead['id']}: {', '.join(_describe(facts))}")
    if facts.leader is None:
        _say("Nothing is sent at present: no engine is running.")
    if facts.paused_since is not None:
        _say(f"Nothing is sent at present: everything is paused since {facts.at(facts.paused_since)}.")
    _heading("Triggers on the lead")
    tokens = parse(facts.lead["trigger"])
    for token in tokens:
        _say(f"{token}: {why_trigger(facts, token)}")
    if not tokens:
        _say("none")
    _heading("Enrolments")
    for row in facts.enrolments:
        name = _sequence_name(facts, row["sequence_id"])
        _say(f"{name}, entered by {row['entry_trigger']} {facts.at(row['enrolled_at'])}: {why_enrolment(facts, row)}")
    for row in facts.archived:
        name, many = _sequence_name(facts, row["sequence_id"]), row["enrolments"]
        _say(f"{name}: {many} earlier, archived; the last one finished {facts.at(row['finished_at'])}")
    if not facts.enrolments and not facts.archived:
        _say("none, never")
    if facts.replies:
        _heading("Replies")
    for row in facts.replies:
        _say(f"{facts.at(row['received_at'])}: {_shortened(row['text'])!r}{', which opts out' if row['stops'] else ''}")
    _heading("Devices")
    for device in facts.devices.values():
        _say(why_device(device))
    for group in facts.groups.values():
        _say(why_group(group))
    if not facts.devices:
        _say("none yet: a home device is chosen with the first enrolment")
    _heading("Last attempts")
    show_table(
        ("slot", "step", "attempt", "device", "outcome", "error", "receipt"),
        [
            (
                f"{row['reserved_at']:%Y-%m-%d %H:%M:%S}",
                row["step_trigger"],
                row["attempt"],
                row["device"] or "removed",
                row["outcome"].replace("_", " "),
                row["error"] or "",
                _receipt(row),
            )
            for row in facts.attempts
        ],
    )
    if not facts.attempts:
        _say("none")
    if facts.late_steps:
        _heading("Too late to be sent")
    for row in facts.late_steps:
        became = "skipped" if row["shifted_to"] is None else f"moved to {row['shifted_to']:%Y-%m-%d %H:%M:%S} UTC"
        _say(f"{row['step_trigger']}, due {row['due_at']:%Y-%m-%d %H:%M:%S} UTC: {became} {facts.at(row['at'])}")
    if facts.decisions:
        _heading("Operators")
    for row in facts.decisions:
        _say(f"{facts.at(row['at'])}, {row['actor']}: {row['action']}, {row['subject']}, {_detail(row['detail'])}")


def why_trigger(facts: Facts, token: str) -> str:
    """What a trigger on the lead does, or why it does nothing."""
    if closed := why_closed(facts.catalogue, token):
        return f"enrols nobody - {closed}"
    sequence = facts.catalogue.sequence_of[token]
    mine = [row for row in facts.enrolments if row["sequence_id"] == sequence.id]
    opens = f"opens {sequence.name!r}"
    if any(row["status"] in ("active", "in_doubt") for row in mine):
        return f"{opens}, enrolled"
    if facts.lead["opted_out_at"]:
        return f"{opens}, but the lead has opted out"
    if sequence.requires_opt_in and not facts.lead["opted_in_at"]:
        return f"{opens}, but it requires an opt-in, which the lead has not given"
    if kept := next((row for row in mine if row["trigger_kept"] and row["entry_trigger"] == token), None):
        return (
            f"{opens}, but stayed on the lead after that enrolment {kept['status']}: it enrols again once it has"
            " been taken off and set anew"
        )
    earlier = [*mine, *(row for row in facts.archived if row["sequence_id"] == sequence.id)]
    if earlier and (refused := _reentry(facts, sequence, earlier)):
        return f"{opens}, but {refused}"
    if facts.queued or token in facts.unsearched:
        return f"{opens}, waits for the enroller"
    return f"{opens}, but has not enrolled the lead: was it set without the queue (triggers disabled, restore)?"


def _reentry(facts: Facts, sequence: Sequence, mine: list[Row]) -> str | None:
    """Why the sequence does not take a lead again that it had before."""
    if sequence.reentry == "never":
        return "the sequence takes a lead once only"
    if sequence.reentry == "after_interval":
        last = max(row["finished_at"] for row in mine)
        again = last + facts.hour * (sequence.reentry_interval_h or 0)
        if again > facts.now:
            return f"the sequence takes the lead again only from {facts.at(again)}"
    return None


def why_enrolment(facts: Facts, row: Row) -> str:
    """Where an enrolment stands, and why it goes no further."""
    status, retries = row["status"], _retries(row)
    if status == "completed":
        return f"completed {facts.at(row['finished_at'])}"
    if status in ("failed", "stopped"):
        why = _why_stopped(facts, row) if status == "stopped" else row["last_error"]
        return (
            f"{status} {facts.at(row['finished_at'])} at {row['current_trigger']}, because: {why or 'unknown'}{retries}"
        )
    if status == "in_doubt":
        return (
            f"in doubt at {row['current_trigger']}: sent or not is unknown ({row['last_error'] or 'no answer'});"
            " held for a receipt or an operator, never blindly sent again"
            f" - settle it with: dripline in-doubt resolve {row['id']}"
        )
    if row["lease_token"] is not None:
        end = f"; ends after this attempt: {_why_stopped(facts, row)}" if row["stop_reason"] else ""
        return (
            f"leased by {row['home']} for {row['current_trigger']},"
            f" slot {facts.at(row['processing_started_at'])},"
            f" to leave at latest {row['lease_deadline_at']:%H:%M:%S}{end}{retries}"
        )
    if row["next_trigger_time"] is None:
        return "last step accepted; completion waits for the lead's row, which somebody has locked"
    return _why_waiting(facts, row) + (retries or _put_off(row))


def _why_stopped(facts: Facts, row: Row) -> str | None:
    """Why an enrolment has ended or is to end; with the moment where a reply has ended it."""
    reason: str | None = row["stop_reason"]
    if reason != "replied":
        return reason
    until = row["finished_at"] or facts.now
    moments = [reply["received_at"] for reply in facts.replies if row["enrolled_at"] <= reply["received_at"] <= until]
    return f"replied at {facts.at(min(moments))}" if moments else reason


def _why_waiting(facts: Facts, row: Row) -> str:
    step, due, home = row["current_trigger"], row["next_trigger_time"], row["home"] or "a device to be chosen"
    sequence = facts.catalogue.sequences.get(row["sequence_id"])
    if sequence is not None and not sequence.is_active:
        return f"waiting for {step}; held, because the sequence is paused (due {facts.at(due)})"
    if problems := facts.catalogue.problems.get(row["sequence_id"]):
        return f"waiting for {step}; held, because the sequence is broken: {problems[0]}"
    if (stands := facts.catalogue.step.get(step)) is not None and stands.paused is not None:
        advice = f"put it right, then: dripline sequences resume-step {step}"
        return f"waiting for {step}; held, because the step is paused: {stands.paused} - {advice}"
    if facts.pause is not None:
        until = f" until {facts.at(facts.pause['until'])}" if facts.pause["until"] else ""
        why = f": {facts.pause['reason']}" if facts.pause["reason"] else ""
        since = facts.at(facts.pause["since"])
        return f"waiting for {step}; the lead is paused since {since}{until}{why} (due {facts.at(due)})"
    if opens := _opens(facts, sequence, due):
        return f"waiting for {step}; waits for the send window, {opens}, then from {home}"
    if due > facts.now:
        return f"waiting for {step} until {facts.at(due)}, then from {home}"
    device = facts.devices.get(row["home_device_id"])
    late = f"waiting for {step}, due since {facts.at(due)}"
    if row["pinned"]:
        late += f"; an earlier attempt is in doubt, so only {row['home']} may send it again, under the same key"
    if device is None:
        return f"{late}; no device is available"
    if limit := _limit(device):
        return f"{late}; its device {limit}"
    if limit := _group_limit(facts, device):
        return f"{late}; its device's {limit}"
    return f"{late}; next in line on {device['name']}"


def _opens(facts: Facts, sequence: Sequence | None, due: datetime) -> str | None:
    """The window that a message waits for, by whose clock, and when it opens; None where it waits for none."""
    window = facts.catalogue.window_of(sequence.steps[0].trigger) if sequence is not None and sequence.steps else None
    if window is None:
        return None
    zone = facts.lead["time_zone"]
    wanted_us = max(from_datetime(due), from_datetime(facts.now))
    opens_us = window.first_open(zone, wanted_us)
    # A due moment that is an opening was moved there.
    if opens_us == wanted_us and (due <= facts.now or window.first_open(zone, wanted_us - 1) == wanted_us - 1):
        return None
    clock = replace(window, time_zone=window.zone_of(zone))
    return f"{clock}, opens at {facts.at(to_datetime(opens_us))}"


def _limit(device: Row) -> str | None:
    """What keeps a device from sending now; None when nothing does."""
    if device["paused"]:
        why = f" ({device['pause_reason']})" if device["pause_reason"] else ""
        return f"is paused since {device['paused_since']:%Y-%m-%d %H:%M:%S} UTC{why}"
    if device["health"] != "available":
        return f"is {device['health']}"
    if device["account_rests"]:
        return "rests: its account is asked to slow down"
    if device["messages_hour"] + device["current_processing"] >= device["quota_per_hour"]:
        return "has used up its hour"
    if device["messages_today"] + device["current_processing"] >= device["quota_per_day"]:
        return "has used up its day"
    if device["current_processing"] >= device["in_flight_max"]:
        return "has as much in progress as it may"
    return None


def _group_limit(facts: Facts, device: Row) -> str | None:
    """What keeps the group of a device from sending now; None when nothing does."""
    group = facts.groups.get(device["group_name"])
    for sent, quota, span in (("messages_hour", "quota_per_hour", "hour"), ("messages_today", "quota_per_day", "day")):
        if group is not None and group[quota] is not None and group[sent] >= group[quota]:
            return f"group {group['name']} has used up its {span}"
    return None


def why_device(device: Row) -> str:
    """A device's health and headroom."""
    cause = f" ({device['health_cause']})" if device["health_cause"] else ""
    missing = "" if device["gateway_url"] else "; it has no gateway_url"
    limit = _limit(device)
    blocked = f"; it {limit}" if limit and device["health"] == "available" else ""
    return (
        f"{device['name']}: {device['health']}{cause};"
        f" {device['messages_hour']} of {device['quota_per_hour']} this hour,"
        f" {device['messages_today']} of {device['quota_per_day']} today,"
        f" {device['current_processing']} of {device['in_flight_max']} in progress{blocked}{missing}"
    )


def why_group(group: Row) -> str:
    """What a group of devices has sent, and may; what is in progress counts."""
    spans = (("messages_hour", "quota_per_hour", "this hour"), ("messages_today", "quota_per_day", "today"))
    used = [f"{group[sent]} of {group[quota]} {span}" for sent, quota, span in spans if group[quota] is not None]
    return f"group {group['name']}: {', '.join(used)}"


def _describe(facts: Facts) -> list[str]:
    lead = facts.lead
    found = [f"phone {lead['phone']}"]
    found += [f"{name} {lead[name]}" for name in ("name", "niche", "time_zone") if lead[name]]
    found += [f"opted in {facts.at(lead['opted_in_at'])}"] if lead["opted_in_at"] else []
    found += [f"OPTED OUT {facts.at(lead['opted_out_at'])}"] if lead["opted_out_at"] else []
    found += [f"ON THE SUPPRESSION LIST: {lead['suppressed']}"] if lead["suppressed"] else []
    return [text.replace("time_zone", "time zone") for text in found]


def _sequence_name(facts: Facts, id_: int) -> str:
    sequence = facts.catalogue.sequences.get(id_)
    return repr(sequence.name) if sequence else f"sequence {id_} (removed)"


def _retries(row: Row) -> str:
    if not row["retry_count"]:
        return ""
    return f" (failed {row['retry_count']} times so far: {row['last_error'] or 'no reason known'})"


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else f"{text[: _TEXT_SHOWN - 3]}..."


def _put_off(row: Row) -> str:
    """Why it waits though nothing failed: the last attempt was not counted."""
    return f" (not sent before: {row['last_error']})" if row["last_error"] else ""


def _detail(detail: str) -> str:
    """A decision's detail, which is JSON, for people."""
    return ", ".join(f"{name} {value}" for name, value in json.loads(detail).items())


def _receipt(row: Row) -> str:
    """What gateways told of an attempt since it left."""
    moments = {"delivered": row["delivered_at"], "read": row["read_at"], "failed": row["failed_at"]}
    told = [f"{name} {moment:%Y-%m-%d %H:%M:%S}" for name, moment in moments.items() if moment]
    return ", ".join(told) + (f" ({row['failure']})" if row["failure"] else "")


def _heading(text: str) -> None:
    out.print(f"\n[bold]{text}[/]")


def _say(text: str) -> None:
    out.print(text, markup=False)
