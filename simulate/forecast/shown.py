"""A forecast for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dispatcher.core.moments import SECOND_US
from dispatcher.core.quota import HOURS_PER_DAY
from simulate.forecast.needed import amount, arithmetic, hopeless
from simulate.forecast.outlook import NOTHING, Outlook
from simulate.forecast.tally import REASONS
from simulate.outcome import replies_told, span

_BAR: Final = 20
_SPANS: Final = 12
"""Rows of limits that are shown at most."""
_NAMED: Final = {
    "hour": "hour quota",
    "day": "day quota",
    "pacing": "gap between messages",
    "group hour": "hour limit of a group",
    "group day": "day limit of a group",
}
_LEFT_OUT: Final = {
    "in_doubt": "enrolments are in doubt: dripline in-doubt list",
    "paused_leads": "leads are paused: their messages count as if they were not",
    "lateness_limits": "sequences skip or shift what is too late: it counts as sent",
    "without_step": "enrolments stand at a step that does not exist",
    "goals": "sequences end at a goal, which nobody is taken to reach",
}


def as_json(outlook: Outlook, needed: int | None) -> dict[str, Any]:
    """What ``--json`` holds: moments in ISO 8601, UTC."""
    world = outlook.world
    sent = outlook.sent.sum(axis=1)
    return {
        "feasible": outlook.feasible,
        "start": _iso(world.start_us),
        "deadline": _iso(world.deadline_us),
        "finish": _iso(outlook.finish_us),
        "devices": len(world.fleet),
        "devices_needed": needed,
        "fleet_per_day": outlook.per_day,
        "why_not": list(arithmetic(outlook)),
        "leads": outlook.leads,
        **{name: getattr(outlook, name) for name in ("enrolled", "completed", "failed", "stopped", "left")},
        "messages": outlook.messages,
        "replies": outlook.replies,
        "overdue": outlook.overdue,
        "waves": [
            {
                "sequence": wave.sequence,
                "wave": wave.wave,
                "leads": wave.leads,
                "messages": wave.messages,
                "first": _iso(wave.first_us),
                "begun": _iso(wave.begun_us),
                "finished": _iso(wave.finished_us),
                "late_s": round(wave.late_s, 3),
                "left": wave.left,
            }
            for wave in outlook.waves
        ],
        "limits": [{"from_h": held.from_h, "to_h": held.to_h, "limit": held.limit} for held in outlook.spans],
        "hours": {
            "sent": sent.tolist(),
            "sent_so_far": np.cumsum(sent).tolist(),
            **{
                f"waited_{name.replace(' ', '_')}": np.round(row, 4).tolist()
                for name, row in zip(REASONS, outlook.waited, strict=True)
            },
        },
        "left_out": world.left_out,
    }


def shown(outlook: Outlook, needed: int | None) -> Group:
    """What a person sees."""
    parts: list[Any] = [_head(outlook), "", _waves(outlook)]
    if outlook.messages:
        parts += ["", _days(outlook)]
    if any(held.limit != NOTHING for held in outlook.spans):
        parts += ["", _limits(outlook)]
    parts += ["", *_verdict(outlook, needed)]
    return Group(*parts)


def _head(outlook: Outlook) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("devices", f"{len(outlook.world.fleet):,}, which send {amount(outlook.per_day)} a day")
    table.add_row("leads", f"{outlook.leads:,}: {outlook.enrolled:,} enrolments, {outlook.messages:,} messages")
    ends = [f"{getattr(outlook, name):,} {name}" for name in ("failed", "stopped") if getattr(outlook, name)]
    if ends:
        table.add_row("enrolments", ", ".join([f"{outlook.completed:,} completed", *ends]))
    if outlook.replies is not None:
        table.add_row("replies", replies_told(outlook.replies))
    for name, count in outlook.world.left_out.items():
        table.add_row("left out", f"{count:,} {_LEFT_OUT[name]}")
    return table


def _waves(outlook: Outlook) -> Table:
    table = _table("sequence", "wave")
    for name in ("leads", "messages", "all begun", "finished", "latest"):
        table.add_column(name, justify="right", no_wrap=True)
    for wave in outlook.waves:
        table.add_row(
            Text(wave.sequence), wave.wave, f"{wave.leads:,}", f"{wave.messages:,}",
            *map(_said, (wave.begun_us, wave.finished_us)), f"+{span(wave.late_s)}",
        )  # fmt: skip
    return table


def _days(outlook: Outlook) -> Table:
    """What is due and what is sent, day by day."""
    table = _table("day")
    for name in ("due", "sent", "of the fleet"):
        table.add_column(name, justify="right")
    table.add_column("")
    hours = outlook.sent.sum(axis=1)
    sent = np.add.reduceat(hours, np.arange(0, len(hours), HOURS_PER_DAY))
    day_us = outlook.world.settings.hours_us(HOURS_PER_DAY)
    for day, count in enumerate(sent.tolist()):
        use = count / max(outlook.per_day, 1)
        due = int(outlook.demand[day]) if day < len(outlook.demand) else 0
        bar = Text("█" * min(round(use * _BAR), _BAR), "green" if use < 0.9 else "yellow")
        table.add_row(_said(outlook.world.start_us + day * day_us), f"{due:,}", f"{count:,}", f"{use:.0%}", bar)
    return table


def _limits(outlook: Outlook) -> Table:
    table = _table("what limits it", "from", "to")
    hour_us, start_us = outlook.world.settings.hours_us(1), outlook.world.start_us
    spans = [held for held in outlook.spans if held.limit != NOTHING]
    for held in spans[:_SPANS]:
        table.add_row(_NAMED[held.limit], *(_said(start_us + hour * hour_us) for hour in (held.from_h, held.to_h)))
    if len(spans) > _SPANS:
        table.add_row(f"and {len(spans) - _SPANS} more")
    return table


def _verdict(outlook: Outlook, needed: int | None) -> Iterator[Text]:
    world, day_us = outlook.world, outlook.world.settings.hours_us(HOURS_PER_DAY)
    if outlook.finish_us is None:
        yield Text("Nothing is sent.", "bold")
    elif outlook.feasible:
        text = f"Everything is sent by {_said(outlook.finish_us)}"
        text += f", after {_days_of(outlook.finish_us, world.start_us, day_us)}"
        if world.deadline_us is not None:
            text += f" of {_days_of(world.deadline_us, world.start_us, day_us)}"
        yield Text(f"{text}.", "bold green")
    if not outlook.feasible:
        yield Text("Not feasible:", "bold red")
        for line in arithmetic(outlook):
            yield Text(f"  {line}")
    if needed is not None:
        yield Text(f"{needed:,} devices would do.", "bold")
    elif world.deadline_us is not None and hopeless(outlook):
        yield Text("More devices would not help.", "bold")


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))


def _days_of(moment_us: int, start_us: int, day_us: int) -> str:
    return f"{(moment_us - start_us) / day_us:.1f} days"


def _said(moment_us: int | None) -> str:
    return "–" if moment_us is None else f"{_utc(moment_us):%d %b %H:%M}"


def _iso(moment_us: int | None) -> str | None:
    return None if moment_us is None else _utc(moment_us).isoformat()


def _utc(moment_us: int) -> datetime:
    return datetime.fromtimestamp(moment_us / SECOND_US, UTC)
