"""The world of a database as it stands: who waits where, and what has been sent within a day."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Final

import asyncpg
import numpy as np

from dispatcher.config import Settings
from dispatcher.core.batches import Coded, Int32s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import SECOND_US, from_datetime, span_us
from dispatcher.core.quota import HOURS_PER_DAY
from dispatcher.store.columns import int32s, int64s, moments
from dispatcher.store.registry import groups_of, read_devices, read_whole_catalogue
from dispatcher.store.statements import statements
from simulate.forecast.world import Enrolments, Leads, Past, World

_WAVES: Final = 12
"""Days on which leads came are put together until they are no more than so many."""
_2000: Final = date(2000, 1, 1)


async def world_of(connection: asyncpg.Connection, settings: Settings, deadline_us: int | None) -> World:
    """Everything that waits in a database, from now on; whoever comes later is unknown.

    Args:
        connection: to a migrated database.
        settings: the engine's; the length of an hour is the database's own.
        deadline_us: when everything is to be over; None: there is no such moment.
    """
    sql = statements("forecast")
    stamp = (await connection.fetch(statements("status")["stamp"]))[0]
    settings = settings.model_copy(update={"hour_s": stamp["hour_s"]})
    now_us = from_datetime(stamp["now"])
    catalogue = await read_whole_catalogue(connection)
    fleet = await read_devices(connection)
    found = [
        *await connection.fetch(sql["waiting"], catalogue.triggers),
        *await connection.fetch(sql["coming"], catalogue.triggers, list(catalogue.entries)),
    ]
    column = {
        name: b"".join(row[name] or b"" for row in found) for name in ("lead", "entry", "step", "device", "due", "day")
    }
    ids, first, lead = np.unique(int64s(column["lead"]), return_index=True, return_inverse=True)
    zone = Coded.of([name or None for row in found if row["lead"] for name in row["zone"].split(",")])
    wave, waves = _waves(int32s(column["day"])[first])
    left_out = (await connection.fetch(sql["left_out"]))[0]
    day_us = settings.hours_us(HOURS_PER_DAY) + span_us(settings.guard_s + settings.deadline_s)
    return World(
        catalogue=catalogue,
        fleet=fleet,
        leads=Leads(
            ids,
            np.full(len(ids), now_us, np.int64),
            wave,
            np.ones(len(ids), np.bool_),
            zone.code[first].astype(np.int32),
            np.full(len(ids), -1, np.int32),
        ),
        enrolments=Enrolments(
            lead,
            int32s(column["entry"]),
            int32s(column["step"]),
            _homes(fleet, int32s(column["device"])),
            moments(column["due"]),
        ),
        waves=waves,
        zones=list(zone.values) or [None],
        start_us=now_us,
        tick_us=SECOND_US,
        settings=settings,
        groups=groups_of(await connection.fetch(statements("catalogue")["groups"], now_us - day_us)),
        past=await _past(connection, fleet, now_us - day_us),
        standing=await connection.fetchval("SELECT paused FROM fleet"),
        paused=frozenset(catalogue.sequences[id_].name for id_ in set(catalogue.sequences) - catalogue.usable),
        deadline_us=deadline_us,
        notes={name: count for name, count in left_out.items() if count},
    )


def _homes(fleet: Fleet, device: Int32s) -> Int32s:
    return np.where(device < 0, -1, fleet.rows(device)).astype(np.int32)


async def _past(connection: asyncpg.Connection, fleet: Fleet, since_us: int) -> Past:
    rows = await connection.fetch(statements("forecast")["sent_since"], since_us)
    sent_us = [moments(row["at"]) for row in rows]
    row = fleet.rows(np.array([row["number"] for row in rows], np.int32))
    none = np.zeros(0, np.int64)
    return Past(np.repeat(row, [len(each) for each in sent_us]), np.concatenate([none, *sent_us]))


def _waves(day: Int32s) -> tuple[Int32s, list[str]]:
    """When the leads came, by days or as many days together as make few waves: a number each, and the names.

    Args:
        day: of each lead; negative for one that has not been enrolled yet.
    """
    enrolled = day[day >= 0]
    low = int(enrolled.min(initial=day.max(initial=0)))
    width = max(-(-(int(day.max(initial=0)) - low + 1) // _WAVES), 1)
    numbers, wave = np.unique(np.where(day < 0, _WAVES, (day - low) // width), return_inverse=True)
    return wave.astype(np.int32), [_came(low + number * width, width, number) for number in numbers.tolist()]


def _came(day: int, width: int, number: int) -> str:
    if number == _WAVES:
        return "not enrolled yet"
    first, last = _2000 + timedelta(days=day), _2000 + timedelta(days=day + width - 1)
    return f"came {first}" if width == 1 else f"came {first} to {last}"
