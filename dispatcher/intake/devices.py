"""Devices as a person names them, on the command line or in a file, and into the table."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Self

import asyncpg
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from dispatcher.config import problem_of
from dispatcher.core.fleet import GRAPH_URL, GatewayKind
from dispatcher.errors import InputError
from dispatcher.intake.csv_file import CsvFile
from dispatcher.store.statements import statements

Health = Literal["available", "draining", "quarantined", "offline"]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]

_LONGEST_GAP_S: Final = 30 * 86_400
_PHONE_DIGITS: Final = range(3, 16)
_PUNCTUATION: Final = str.maketrans("", "", "+()-. \t")


NO_GROUP: Final = "-"


class DeviceGroup(BaseModel):
    """What the devices of a group may send together; None: no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^-\s]")]
    quota_per_hour: Count | None
    quota_per_day: Count | None


class Device(BaseModel):
    """What is given of one device, by the names of its columns. None: as it is, or a new one's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    phone: str | None = None
    gateway_url: Annotated[str, StringConstraints(pattern=r"^https?://[^/\s]+\S*$")] | None = None
    gateway_token: str | None = None
    gateway_idempotent: bool | None = None
    quota_per_hour: Count | None = None
    quota_per_day: Count | None = None
    in_flight_max: Count | None = None
    min_gap_s: Annotated[float, Field(ge=0, le=_LONGEST_GAP_S, allow_inf_nan=False)] | None = None
    health: Health | None = None
    health_cause: str | None = None
    ramp_per_day: Count | None = None
    ramp_growth: Annotated[float, Field(gt=1, le=100, allow_inf_nan=False)] | None = None
    gateway_kind: GatewayKind | None = None
    gateway_phone_number_id: Annotated[str, StringConstraints(pattern=r"^[0-9]+$", max_length=64)] | None = None
    gateway_account: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    group: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    """Whose limit it shares; ``NO_GROUP`` takes it out of its group."""

    @field_validator("phone")
    @classmethod
    def _digits(cls, phone: str | None) -> str | None:
        # Its shape only: gateways on the loopback have numbers that nobody can dial.
        if phone is None:
            return None
        digits = phone.translate(_PUNCTUATION)
        if not (digits.isascii() and digits.isdigit() and len(digits) in _PHONE_DIGITS):
            raise ValueError(f"{phone!r} is no phone number")
        return digits

    @model_validator(mode="after")
    def _whatsapp(self) -> Self:
        if self.gateway_kind == "whatsapp" and self.gateway_idempotent:
            raise ValueError("the WhatsApp Cloud API honours no idempotency keys")
        return self


_KNOWN: Final = f"known are {', '.join(Device.model_fields)}"


@dataclass(slots=True)
class Written:
    """What became of the rows of a device file."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)
    """Line and problem."""

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self.created + self.updated + self.unchanged + len(self.rejected)


def device(subject: str, values: dict[str, Any]) -> Device:
    """The device that ``values`` describe.

    Raises:
        InputError: a value is out of range; ``subject`` says where it stands.
    """
    try:
        return Device(**values)
    except ValidationError as error:
        where = "".join(f"{name}: " for name in error.errors()[0]["loc"][:1])
        raise InputError(subject, f"{where}{problem_of(error)}") from None


def device_group(name: str, quota_per_hour: int | None, quota_per_day: int | None) -> DeviceGroup:
    """The group of devices that these describe.

    Raises:
        InputError: one of them is out of range, or there is no limit.
    """
    subject = f"group {name!r}"
    if quota_per_hour is None and quota_per_day is None:
        raise InputError(subject, "it needs a limit", "give --per-hour or --per-day")
    try:
        return DeviceGroup(name=name, quota_per_hour=quota_per_hour, quota_per_day=quota_per_day)
    except ValidationError as error:
        raise InputError(subject, f"{error.errors()[0]['loc'][0]}: {problem_of(error)}") from None


async def write_group(connection: asyncpg.Connection, given: DeviceGroup) -> bool | None:
    """Make the group of this name have these limits: True if it is new, None if nothing changed."""
    created: bool | None = await connection.fetchval(
        statements("intake")["write_group"], given.name, given.quota_per_hour, given.quota_per_day
    )
    return created


async def list_groups(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Every group with its limits, its devices, and what those have sent."""
    return [dict(row) for row in await connection.fetch(statements("intake")["group_list"])]


async def write_device(connection: asyncpg.Connection, given: Device) -> bool | None:
    """Make the device of this name say what ``given`` says: True if it is new, None if nothing changed.

    Raises:
        InputError: its phone is another device's: the limits of a number would hold twice. Or there is no such group,
            or it is retired, or speaks to the WhatsApp Cloud API and nobody has said as which number.
    """
    if given.gateway_kind == "whatsapp":
        given = await _whatsapp(connection, given)
    if given.phone is not None:
        other = await connection.fetchval(statements("intake")["device_of_phone"], given.phone, given.name)
        if other is not None:
            raise InputError(
                f"device {given.name!r}", f"phone {given.phone} is that of device {other!r}", "give it its own"
            )
    known = given.group in (None, NO_GROUP) or await connection.fetchval(statements("intake")["is_group"], given.group)
    if not known:
        advice = f"create it: dripline devices group {given.group} --per-day ..."
        raise InputError(f"device {given.name!r}", f"there is no group {given.group!r}", advice)
    try:
        created: bool | None = await connection.fetchval(
            statements("intake")["write_device"], *(getattr(given, name) for name in Device.model_fields)
        )
    except asyncpg.RaiseError:
        problem = f"device {given.name!r}", "it is retired, for good", "add a new one of another name"
        raise InputError(*problem) from None
    return created


async def _whatsapp(connection: asyncpg.Connection, given: Device) -> Device:
    """The device with what the Cloud API needs."""
    known = await connection.fetchrow(statements("intake")["device_gateway"], given.name)
    if given.gateway_phone_number_id is None and (known is None or known["gateway_phone_number_id"] is None):
        advice = "give it a gateway_phone_number_id, as its account shows it"
        raise InputError(f"device {given.name!r}", "the WhatsApp Cloud API must know its number", advice)
    if given.gateway_url is None and (known is None or known["gateway_kind"] != "whatsapp"):
        return given.model_copy(update={"gateway_url": GRAPH_URL})
    return given


async def add_device(connection: asyncpg.Connection, given: Device) -> None:
    """Add a new device.

    Raises:
        InputError: there is one of this name.
    """
    async with connection.transaction():
        if not await write_device(connection, given):
            raise InputError(f"device {given.name!r}", "there is one already", "to change it: dripline devices set")


async def change_device(connection: asyncpg.Connection, given: Device) -> bool:
    """Change the device of this name; whether that changed anything.

    Raises:
        InputError: there is none of this name, or a cause is given without a health.
    """
    subject = f"device {given.name!r}"
    if given.health_cause is not None and given.health is None:
        raise InputError(subject, "a cause says why the health is what it is", "give the health with it")
    async with connection.transaction():
        created = await write_device(connection, given)
        if created:
            raise InputError(subject, "there is none", "see: dripline devices list")
        return created is False


@dataclass(frozen=True, slots=True)
class Remaining:
    """What has not left a device yet."""

    active: int
    in_doubt: int

    @property
    def live(self) -> int:
        """Enrolments that call it home."""
        return self.active + self.in_doubt


async def drain_device(connection: asyncpg.Connection, name: str, cause: str | None) -> Remaining:
    """Have what waits for the device move to others; returns what has not yet.

    Raises:
        InputError: there is none of this name, or it is retired.
    """
    remaining = await _remaining(connection, name)
    if remaining is None:
        raise InputError(f"device {name!r}", "it is retired, for good", "add a new one: dripline devices add")
    await connection.execute(statements("intake")["drain"], name, cause)
    return remaining


async def retire_device(connection: asyncpg.Connection, name: str, cause: str | None) -> Remaining | None:
    """Close a device for good, once nothing is left on it; its history stays.

    Returns what still has to leave it, draining meanwhile; None when it is retired.

    Raises:
        InputError: there is none of this name.
    """
    remaining = await _remaining(connection, name)
    if remaining is None:
        return None
    await connection.execute(statements("intake")["drain"], name, cause)
    if remaining.live:
        return remaining
    try:
        await connection.execute(statements("intake")["retire"], name)
    except asyncpg.RaiseError:  # something has come to it since
        return await _remaining(connection, name)
    return None


async def _remaining(connection: asyncpg.Connection, name: str) -> Remaining | None:
    """What has not left the device; None when it is retired."""
    row = await connection.fetchrow(statements("intake")["remaining"], name)
    if row is None:
        raise InputError(f"device {name!r}", "there is none", "see: dripline devices list")
    return None if row["health"] == "retired" else Remaining(row["active"], row["in_doubt"])


async def list_devices(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Every device with its settings and what it has sent; tokens are left out."""
    return [dict(row) for row in await connection.fetch(statements("intake")["device_list"])]


async def import_devices(connection: asyncpg.Connection, file: CsvFile) -> Written:
    """Write every device of ``file``, found by its name; empty cells keep what is there. One transaction.

    Raises:
        InputError: a column is not one of a device, or there is no ``name``.
    """
    columns = [_column(file, name) for name in file.columns]
    if "name" not in columns:
        raise InputError(str(file.path), "it has no column 'name'", _KNOWN)
    written = Written()
    async with connection.transaction():
        for line, given in _devices(file, columns, written):
            try:
                became = await write_device(connection, given)
            except InputError as error:
                written.rejected.append((line, error.problem))
                continue
            match became:
                case None:
                    written.unchanged += 1
                case True:
                    written.created += 1
                case False:
                    written.updated += 1
    return written


def _devices(file: CsvFile, columns: list[str], written: Written) -> Iterator[tuple[int, Device]]:
    seen: set[str] = set()
    for record in file.records():
        values = {name: cell for name, cell in zip(columns, record.cells, strict=False) if cell.strip()}
        try:
            if record.reason is not None:
                raise InputError("row", record.reason)
            given = device("row", values)
            if given.name in seen:
                raise InputError("row", f"name: {given.name!r} stands twice")
        except InputError as error:
            written.rejected.append((record.line, error.problem))
            continue
        seen.add(given.name)
        yield record.line, given


def _column(file: CsvFile, name: str) -> str:
    known = name.casefold()
    if known not in Device.model_fields:
        near = difflib.get_close_matches(known, Device.model_fields, 1)
        advice = f"did you mean {near[0]!r}?" if near else _KNOWN
        raise InputError(str(file.path), f"unknown column {name!r}", advice)
    return known
