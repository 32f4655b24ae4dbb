"""Who a rehearsal is about: devices and leads, by COPY, with phone numbers that are assigned to nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg
import numpy as np
from numpy.typing import NDArray

from dispatcher.core.backoff import uniform

PHONE_PREFIX = "999"
"""A country code the ITU keeps in reserve: such a number reaches nobody."""
_CHUNK = 50_000
_SECOND_TRIGGER = 0.1
"""Share of leads that carry two entry triggers."""
_LABELLED = 0.05
"""Share of leads that carry a label nobody sends to, as real lists do."""
_NAMES = ("Aisyah", "Ben", "Chitra", "Daniel", "Elena", "Farid", "Grace", "Hana", "Ivan", "Jun", "Kavya", "Liam")
_ENTRY, _SECOND, _WHICH, _LABEL, _NAME, _ZONE, _HOME = range(7)


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices with the same limits."""

    count: int
    quota_per_hour: int = 80
    quota_per_day: int = 800
    min_gap_s: float = 5.0
    in_flight_max: int = 50
    name: str = "sim"
    """The devices are called ``<name>-0001`` and on."""
    shared: tuple[int | None, int | None] | None = None
    """What all of them together may send in an hour and in a day; None: nothing is shared."""
    region: str | None = None
    """Leads of this region have their homes here; None: whoever has no region."""

    @property
    def names(self) -> list[str]:
        """Those of its devices."""
        digits = max(4, len(str(self.count)))
        return [f"{self.name}-{n:0{digits}d}" for n in range(1, self.count + 1)]


Carried = tuple[tuple[str, ...], float]
"""Triggers that leads carry together, and how many of them do in proportion to the others."""


class Zoned(NamedTuple):
    """Where some of the leads live."""

    zone: str
    """Their time zone."""
    weight: float
    """How many they are, in proportion to the others."""
    region: str | None = None
    """Whose devices they hear from; None: any."""


async def create_devices(connection: asyncpg.Connection, *groups: DeviceGroup) -> None:
    """Create the devices of these groups, one group after the other."""
    limits = ("quota_per_hour", "quota_per_day", "min_gap_s", "in_flight_max")
    named = [
        (name, *(getattr(group, limit) for limit in limits), None if group.shared is None else group.name)
        for group in groups
        for name in group.names
    ]
    records = [(name, f"{PHONE_PREFIX}8{n:08d}", *bounds) for n, (name, *bounds) in enumerate(named, 1)]
    await connection.executemany(
        "INSERT INTO device_groups VALUES ($1, $2, $3)",
        [(group.name, *group.shared) for group in groups if group.shared is not None],
    )
    await connection.copy_records_to_table("devices", records=records, columns=("name", "phone", *limits, "group_name"))


async def create_leads(
    connection: asyncpg.Connection, count: int, entries: Sequence[str], seed: int, *, tagged: bool = True
) -> None:
    """Create ``count`` leads; each carries at least one of the ``entries`` triggers, or, not tagged, its niche only."""
    for chunk in lead_chunks(count):
        await copy_leads(connection, chunk, entries, seed, tagged=tagged)


def niche(entry: str) -> str:
    """What leads are interested in who carry this trigger."""
    return entry.split("_")[0]


def lead_chunks(count: int, first: int = 0) -> Iterator[NDArray[np.int64]]:
    """The numbers of ``count`` leads, as many together as are copied at once."""
    for start in range(first, first + count, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, first + count))


async def copy_leads(
    connection: asyncpg.Connection,
    numbers: NDArray[np.int64],
    entries: Sequence[str],
    seed: int,
    mix: Sequence[Carried] = (),
    zones: Sequence[Zoned] = (),
    fleet: Sequence[DeviceGroup] = (),
    *,
    tagged: bool = True,
) -> int:
    """Create the leads of these numbers; returns how many.

    Args:
        entries: triggers, of which every lead carries one or two, if there is no ``mix``.
        mix: what leads carry instead.
        zones: where they live; unknown if there are none.
        fleet: the devices there are, for leads that have a region.
        tagged: whether they carry triggers already.
    """
    lines = _lines(numbers, entries, seed, mix, tagged)
    columns = ["phone", "name", "niche", *(["trigger"] if tagged else [])]
    if zones:
        names = [zone.zone for zone in zones]
        lines = _with(lines, [names[n] for n in zoned(numbers, zones, seed).tolist()])
        columns.append("time_zone")
    if any(zone.region for zone in zones):
        ids = [str(row["id"]) for row in await connection.fetch("SELECT id FROM devices ORDER BY number")]
        homes = regional_homes(numbers, zones, fleet, seed).tolist()
        lines = _with(lines, [ids[home] if home >= 0 else "\\N" for home in homes])
        columns.append("home_device_id")
    await connection.copy_to_table("leads", source=_once(lines), columns=columns)
    return len(numbers)


def lead_phones(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """``lead_phone`` of each, as a number."""
    return numbers + int(lead_phone(0))


def lead_phone(number: int) -> str:
    """The phone of the lead of a number."""
    return f"{PHONE_PREFIX}1{number:08d}"


def _draw(seed: int, numbers: NDArray[np.int64], what: int) -> NDArray[np.float64]:
    return uniform(seed, numbers, np.full(len(numbers), what, np.int64))


def carried(
    numbers: NDArray[np.int64], entries: Sequence[str], seed: int, mix: Sequence[Carried] = ()
) -> tuple[NDArray[np.intp], list[tuple[str, ...]]]:
    """Which triggers leads carry, but for labels that nobody sends to: a place in the list, and the list."""
    if mix:
        which = _weighed([weight for _, weight in mix], _draw(seed, numbers, _ENTRY))
        return which, [triggers for triggers, _ in mix]
    count = len(entries)
    first = (_draw(seed, numbers, _ENTRY) * count).astype(np.intp)
    other = (first + 1 + (_draw(seed, numbers, _WHICH) * (count - 1)).astype(np.intp)) % count
    two = (_draw(seed, numbers, _SECOND) < _SECOND_TRIGGER) & (count > 1)
    pairs: list[tuple[str, ...]] = [(a,) if a == b else (a, b) for a in entries for b in entries]
    return first * count + np.where(two, other, first), pairs


def _lines(
    numbers: NDArray[np.int64], entries: Sequence[str], seed: int, mix: Sequence[Carried], tagged: bool
) -> bytes:
    which, lists = carried(numbers, entries, seed, mix)
    label = (_draw(seed, numbers, _LABEL) < _LABELLED) & (not mix) & tagged
    name = (_draw(seed, numbers, _NAME) * len(_NAMES)).astype(np.intp)
    told = ["\t".join([niche(triggers[0]), *([",".join(triggers)] if tagged else [])]) for triggers in lists]
    rows = zip(numbers.tolist(), name.tolist(), which.tolist(), label.tolist(), strict=True)
    return "".join(
        f"{lead_phone(n)}\t{_NAMES[who]}\t{told[w]}{', newsletter' if marked else ''}\n" for n, who, w, marked in rows
    ).encode()


def zoned(numbers: NDArray[np.int64], zones: Sequence[Zoned], seed: int) -> NDArray[np.intp]:
    """Where leads live: a place in ``zones``."""
    return _weighed([zone.weight for zone in zones], _draw(seed, numbers, _ZONE))


def regional_homes(
    numbers: NDArray[np.int64], zones: Sequence[Zoned], fleet: Sequence[DeviceGroup], seed: int
) -> NDArray[np.int32]:
    """The home device of each lead as its place in ``fleet``: one of its region, drawn by day quota; -1 without one."""
    found = np.full(len(numbers), -1, np.int32)
    if not any(zone.region for zone in zones):
        return found
    region = np.repeat([group.region or "" for group in fleet], [group.count for group in fleet])
    quota = np.repeat([group.quota_per_day for group in fleet], [group.count for group in fleet])
    where, drawn = zoned(numbers, zones, seed), _draw(seed, numbers, _HOME)
    for name in dict.fromkeys(zone.region for zone in zones if zone.region):
        theirs = np.flatnonzero(region == name)
        some = np.isin(where, [place for place, zone in enumerate(zones) if zone.region == name])
        found[some] = theirs[_weighed(quota[theirs].tolist(), drawn[some])]
    return found


def _with(lines: bytes, values: Iterable[str]) -> bytes:
    """Rows of COPY with one column more."""
    return b"".join(
        b"%s\t%s\n" % (line, value.encode()) for line, value in zip(lines.splitlines(), values, strict=True)
    )


def _weighed(weights: Sequence[float], drawn: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which one each draw in [0, 1) falls to."""
    shares = np.array(weights)
    return np.searchsorted(np.cumsum(shares / shares.sum())[:-1], drawn, side="right")


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
