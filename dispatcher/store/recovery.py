"""Whether a database is still the one the engine ran on last; and what may be gone where it is not.

A promoted standby, a recovery to a point in time, and a copy or dump in another database differ in what PostgreSQL says
of itself (``Lineage``). A copy of the files or of the disk does not: only a memory outside of the database knows that
it has gone back, a small file on the machine that runs the engine: ``<data_dir>/seen/<system>-<database>.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import numpy as np

from dispatcher.core.identity import idempotency_keys
from dispatcher.errors import InputError, RefusedError
from dispatcher.store.bodies import unpacked
from dispatcher.store.in_doubt import write_log
from dispatcher.store.stamp import read_kind
from dispatcher.store.statements import statements

LOST: Final = "the database was recovered"
"""The error of attempts that may have been made in the time that is lost."""
ID_GAP: Final = 1_000_000_000
PAGE_ROWS: Final = 5000

_ADVICE: Final = "run: dripline db recovered --since <when what is lost begins>"
_SILENT: Final = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedFunctionError,
    asyncpg.FeatureNotSupportedError,
)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Which database this is, as PostgreSQL tells it; copies of the files tell the same."""

    system_identifier: int
    timeline_id: int
    database_oid: int

    def difference(self, before: Lineage) -> str | None:
        """What has befallen the database that was ``before``; None when it is the same."""
        if self.system_identifier != before.system_identifier or self.database_oid != before.database_oid:
            return "it is a copy of the database that 'dripline run' saw last, restored or moved"
        if self.timeline_id != before.timeline_id:
            return (
                f"it was restored or promoted since 'dripline run' saw it last"
                f" (timeline {before.timeline_id}, now {self.timeline_id})"
            )
        return None


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a database had come: none of it goes back by itself."""

    recoveries: int
    wal: int
    """Bytes of the log that are on disk."""
    token: int
    """The last lease token or epoch that was given out."""

    def is_behind(self, before: Seen) -> bool:
        """Whether the database has gone back since ``before``; after a recovery the log starts anew."""
        if self.recoveries != before.recoveries:
            return self.recoveries < before.recoveries
        return self.wal < before.wal or self.token < before.token


@dataclass(frozen=True, slots=True)
class Lost:
    """What ``recover`` is about."""

    since_us: int
    until_us: int
    """When nothing was sent any more."""
    resend: bool
    """Send again, under the same key, what a gateway that honours keys may have got."""
    actor: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """What ``recover`` did, or would do."""

    held: int = 0
    resent: int = 0
    """Waiting for a resend under the same key."""
    queued: int = 0
    """Lead changes that wait for the enroller: whoever of them was enrolled in the time that is lost will be again."""


async def check_lineage(connection: asyncpg.Connection, data_dir: Path) -> str | None:
    """Make sure that this is the database the engine ran on last, and has not gone back; remember it.

    Returns a remark where that cannot be told.

    Raises:
        RefusedError: it is a standby, has been restored, promoted or copied, or its recovery has not ended.
        InputError: what was remembered cannot be read.
    """
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        raise RefusedError("database", "it is a standby, where nothing can be written", "name the primary")
    found = await _look(connection)
    remembered = await connection.fetchrow(statements("recovery")["remembered"])
    assert remembered is not None
    if remembered["recovering_since"] is not None:
        raise RefusedError(
            "database",
            "its recovery was broken off",
            f"run again: dripline db recovered --since {remembered['recovering_since']:%Y-%m-%dT%H:%M:%SZ}",
        )
    if found is None:
        return (
            "this PostgreSQL does not tell which database it is: a restore or a promotion goes unnoticed -"
            f" after one, {_ADVICE}"
        )
    lineage, seen = found
    if remembered["system_identifier"] is None:
        await _remember(connection, lineage)
    else:
        before = Lineage(*(remembered[name] for name in ("system_identifier", "timeline_id", "database_oid")))
        if befallen := lineage.difference(before):
            raise RefusedError("database", befallen, _ADVICE)
    return _check_seen(_file(data_dir, lineage), seen)


async def recover(
    connection: asyncpg.Connection,
    lost: Lost,
    *,
    leader_s: float,
    report: Callable[[int], None],
    rows: int = PAGE_ROWS,
) -> Recovered:
    """Hold everything that may have been sent in the time that is lost, and let the engine run here again.

    Safe to repeat after it was broken off; until it has ended the engine is refused.

    Args:
        leader_s: lifetime of a leadership; this takes it, so that no engine starts meanwhile.
        report: told how many enrolments have been seen to.
        rows: how many at a time.

    Raises:
        RefusedError: it is a rehearsal, or an engine is running, or has begun to because a page took too long.
    """
    sql = statements("recovery")
    await require_recoverable(connection, leader_s)
    holder = f"db recovered by {lost.actor}"
    await _lead(connection, holder, leader_s)
    try:
        await connection.execute(sql["begin_recovery"], lost.since_us)
        await connection.execute(sql["leave_gap"], ID_GAP)
        await connection.execute(sql["supersede"], holder)
        begun_us = await now_us(connection)
        await connection.execute(statements("catalogue")["make_partitions"], begun_us, 1)
        held = resent = last = 0
        more = lost.since_us < lost.until_us
        while more:
            await _lead(connection, holder, leader_s)
            page = await _hold_page(connection, lost, begun_us, last, rows)
            held, resent, last = held + page.held, resent + page.resent, page.last
            more = page.more
            report(held + resent)
        done = Recovered(held, resent, await connection.fetchval(statements("status")["queued"]))
        await _lead(connection, holder, leader_s)
        await _end(connection, lost, done)
        return done
    finally:
        await connection.execute(statements("epochs")["end_leadership"], holder)


async def _lead(connection: asyncpg.Connection, holder: str, leader_s: float) -> None:
    """Take or renew the leadership, so that no engine runs meanwhile."""
    if await connection.fetchval(statements("epochs")["take_leadership"], holder, leader_s) is None:
        raise _running(await connection.fetchval(statements("epochs")["current_leader"]))


async def foresee(connection: asyncpg.Connection, lost: Lost, *, leader_s: float) -> Recovered:
    """What ``recover`` would do; writes nothing.

    Raises:
        RefusedError: it is a rehearsal, or an engine is running.
    """
    await require_recoverable(connection, leader_s)
    row = await connection.fetchrow(statements("recovery")["count_lost"], lost.until_us, LOST)
    assert row is not None
    found = row["found"] if lost.since_us < lost.until_us else 0
    resent = row["idempotent"] if found and lost.resend else 0
    return Recovered(found - resent, resent, await connection.fetchval(statements("status")["queued"]))


async def require_recoverable(connection: asyncpg.Connection, leader_s: float) -> None:
    """Make sure that this is a live database without an engine.

    Raises:
        RefusedError: it is a rehearsal, or an engine is running.
    """
    if await read_kind(connection) == "rehearsal":
        raise RefusedError("database", "it is a rehearsal: nothing real was sent", "choose a live one")
    leader = await connection.fetchval(statements("recovery")["leading"], leader_s)
    if leader is not None:
        raise _running(leader)


@dataclass(frozen=True, slots=True)
class _Page:
    held: int
    resent: int
    last: int
    more: bool


async def _hold_page(connection: asyncpg.Connection, lost: Lost, now_us: int, after: int, rows: int) -> _Page:
    async with connection.transaction():
        found = await connection.fetch(statements("recovery")["lost"], after, lost.until_us, LOST, rows)
        if not found:
            return _Page(0, 0, after, False)
        tokens = sorted({row["lease_token"] for row in found if row["lease_token"] is not None})
        records = await connection.fetch(statements("rescue")["handed_bodies"], tokens) if tokens else []
        said = {enrolment: (text, media) for row in records for enrolment, text, media in unpacked(row["bodies"])}
        bodies = [said.get(row["id"], (None, None)) for row in found]
        keys = idempotency_keys(
            np.array([row["id"] for row in found], np.int64),
            np.array([row["visit"] for row in found], np.int32),
            np.array([row["generation"] for row in found], np.int32),
        )
        resend = [lost.resend and row["idempotent"] for row in found]
        await connection.execute(
            statements("recovery")["hold_lost"],
            [row["id"] for row in found],
            [row["attempt"] for row in found],
            [row["device_id"] for row in found],
            resend,
            [text for text, _ in bodies],
            [media for _, media in bodies],
            LOST,
            [UUID(bytes=key) for key in keys],
            now_us,
        )
    return _Page(len(found) - sum(resend), sum(resend), found[-1]["id"], len(found) == rows)


async def _end(connection: asyncpg.Connection, lost: Lost, done: Recovered) -> None:
    async with connection.transaction():
        found = await _look(connection)
        lineage = (None, None, None) if found is None else tuple(asdict(found[0]).values())
        await connection.execute(statements("recovery")["end_recovery"], *lineage)
        detail = {
            "since": _written(lost.since_us),
            "until": _written(lost.until_us),
            "held": done.held,
            "resent": done.resent,
            "queued": done.queued,
        }
        await write_log(connection, lost.actor, "db recovered", [("database", detail)])


def _written(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us / 1e6, UTC).isoformat(timespec="seconds")


async def now_us(connection: asyncpg.Connection) -> int:
    """The database's business time.

    Raises:
        InputError: no engine ever ran on it.
    """
    if await read_kind(connection) is None:
        raise InputError("database", "no engine has run on it", "there is nothing to recover")
    row = await connection.fetchrow(statements("in_doubt")["clock"])
    assert row is not None
    return int(row["now_us"])


def _running(leader: str) -> RefusedError:
    return RefusedError("database", f"{leader} is running on it", "end that engine first")


async def _remember(connection: asyncpg.Connection, lineage: Lineage) -> None:
    await connection.execute(statements("recovery")["remember"], *asdict(lineage).values())


async def _look(connection: asyncpg.Connection) -> tuple[Lineage, Seen] | None:
    """What the database is and how far it has come; None where this role or this PostgreSQL may not tell."""
    try:
        async with connection.transaction():
            told = await connection.fetchrow(statements("recovery")["lineage"])
    except _SILENT:
        return None
    known = await connection.fetchrow(statements("recovery")["remembered"])
    assert told is not None
    assert known is not None
    return (
        Lineage(told["system_identifier"], told["timeline_id"], told["database_oid"]),
        Seen(known["recoveries"], told["wal"], known["token"]),
    )


def _file(data_dir: Path, lineage: Lineage) -> Path:
    return data_dir / "seen" / f"{lineage.system_identifier}-{lineage.database_oid}.json"


def _check_seen(file: Path, seen: Seen) -> str | None:
    """Refuse a database that is behind what ``file`` remembers, else remember it there; a remark where that fails."""
    try:
        before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        noted_at = before.pop("at")
        if seen.is_behind(Seen(**before)):
            raise RefusedError("database", f"it was restored: it is behind what it was at {noted_at}", _ADVICE)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        raise InputError(str(file), "it is damaged", "remove it if the database was not restored") from None
    except OSError as error:
        return _forgetful(file, error)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        noted = json.dumps({**asdict(seen), "at": datetime.now(UTC).isoformat(timespec="seconds")})
        making = file.with_suffix(f".{os.getpid()}")
        making.write_text(noted, encoding="utf-8")
        making.replace(file)
    except OSError as error:
        return _forgetful(file, error)
    return None


def _forgetful(file: Path, error: OSError) -> str:
    return f"{file}: {error.strerror}: a database restored from a copy of its files or disk goes unnoticed"
