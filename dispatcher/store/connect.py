"""Connections to PostgreSQL by libpq URL. What goes wrong is one line that never shows a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypedDict
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

from dispatcher.errors import InputError, NotMigratedError, StoreError
from dispatcher.store import arrays

MINIMUM_MAJOR: Final = 15
CONNECT_TIMEOUT_S: Final = 10.0
LOCK_TIMEOUT_S: Final = 5.0
IDLE_IN_TRANSACTION_S: Final = 10.0

_UNWANTED_PLANS: Final = (
    "enable_hashjoin",
    "enable_material",
    "enable_memoize",
    "enable_mergejoin",
    "enable_seqscan",
)
"""Every row of a batch is looked up once, by its key. Reading a table whole for it is quadratic where nobody has
analysed the table yet; remembering what was looked up is work for nothing."""

_EXAMPLE: Final = "write postgresql://user@host:5432/database"
_LIBPQ_ONLY: Final = frozenset({
    "channel_binding", "client_encoding", "connect_timeout", "fallback_application_name", "gssdelegation",
    "gssencmode", "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval",
    "load_balance_hosts", "replication", "require_auth", "requirepeer", "sslcertmode", "sslcompression",
    "sslcrldir", "sslsni", "tcp_user_timeout",
})  # fmt: skip
"""Parameters of libpq itself; asyncpg would send them to the server, which refuses them."""


class _Arguments(TypedDict):
    dsn: str
    timeout: float
    server_settings: dict[str, str]


async def connect(url: str, *, application_name: str = "dripline") -> asyncpg.Connection:
    """A connection for a person's command: no time limits, because a person sees it wait.

    Raises:
        InputError: ``url`` is not a PostgreSQL URL.
        StoreError: the server cannot be reached, refuses, or is older than PostgreSQL 15.
    """
    with _dialling(url):
        connection = await asyncpg.connect(**_arguments(url, _common(application_name)))
        try:
            _require_version(connection, url)
        except StoreError:
            await connection.close()
            raise
        return connection


async def open_pool(
    url: str,
    *,
    size: int,
    application_name: str = "dripline",
    statement_timeout_s: float | None = None,
    planner_hints: bool = True,
) -> asyncpg.Pool:
    """``size`` connections for the engine, all opened before this returns.

    A stopped process may not hold a takeover: locks and idle transactions end below the trust window.

    Args:
        url: any libpq URL.
        size: connections, the smallest and the largest number.
        application_name: shown in ``pg_stat_activity``.
        statement_timeout_s: None is no limit.
        planner_hints: keep the planner on index nested loops: bounded rows whatever the statistics say.

    Raises:
        InputError: ``url`` is not a PostgreSQL URL.
        StoreError: the server cannot be reached, refuses, is older than PostgreSQL 15, or the database is not migrated.
    """
    settings = _common(application_name) | {
        "lock_timeout": _milliseconds(LOCK_TIMEOUT_S),
        "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_S),
    }
    if statement_timeout_s is not None:
        settings["statement_timeout"] = _milliseconds(statement_timeout_s)
    if planner_hints:
        settings |= dict.fromkeys(_UNWANTED_PLANS, "off")
    with _dialling(url):
        return await asyncpg.create_pool(
            **_arguments(url, settings),
            min_size=size,
            max_size=size,
            max_inactive_connection_lifetime=0,
            init=partial(_prepare, url),
            reset=_keep,
        )


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn what befalls a database command into one line; a bug in a statement stays an exception."""
    try:
        yield
    except asyncpg.InvalidPasswordError:
        raise StoreError(f"{place(url)}: the password is wrong or missing") from None
    except asyncpg.InvalidCatalogNameError:
        raise StoreError(f"{place(url)}: there is no such database") from None
    except asyncpg.UndefinedTableError:
        raise NotMigratedError from None
    except asyncpg.LockNotAvailableError:
        raise StoreError(f"{place(url)}: another session holds a lock that is needed - try again") from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreError(f"{place(url)}: {error} - grant it, or connect as another user") from None
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InsufficientResourcesError,
        asyncpg.OperatorInterventionError,
        asyncpg.PostgresConnectionError,
        asyncpg.TargetServerAttributeNotMatched,
    ) as error:
        raise StoreError(f"{place(url)}: {error}") from None
    except TimeoutError:
        raise StoreError(f"{place(url)}: no answer within {CONNECT_TIMEOUT_S:g} s") from None
    except ConnectionRefusedError:
        raise StoreError(f"{place(url)}: nothing accepts connections there") from None
    except FileNotFoundError:
        raise StoreError(f"{place(url)}: no server listens in that directory") from None
    except OSError as error:
        raise StoreError(f"{place(url)}: {error.strerror or error}") from None


def place(url: str) -> str:
    """``url`` for people: without the password, and without parameters other than where the server is."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    given = dict(parse_qsl(parts.query))
    name = unquote(user.partition(":")[0]) or given.get("user", "")
    kept = [(key, given[key]) for key in ("host", "port") if key in given]
    shown = f"{quote(name)}@{host}" if name else host
    database = parts.path.lstrip("/") or given.get("dbname", "")
    return f"postgresql://{shown}/{database}" + (f"?{urlencode(kept, safe='/')}" if kept else "")


@contextmanager
def _dialling(url: str) -> Iterator[None]:
    try:
        with store_errors(url):
            yield
    except (ValueError, OverflowError):  # no URL, or a port beyond all; the text may quote a part of the password
        raise InputError("--database-url", "not a PostgreSQL URL", _EXAMPLE) from None
    except (asyncpg.UndefinedObjectError, asyncpg.CantChangeRuntimeParamError) as error:
        raise InputError("--database-url", str(error)) from None


def _arguments(url: str, settings: dict[str, str]) -> _Arguments:
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query, strict_parsing=True) if parts.query else []
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("scheme")
    timeouts = [float(value) for key, value in parameters if key == "connect_timeout"]
    kept = [(key, value) for key, value in parameters if key not in _LIBPQ_ONLY]
    account, at, hosts = parts.netloc.rpartition("@")
    account = quote(unquote(account), safe=":")  # asyncpg takes the first "@" for the end of the password
    return {
        "dsn": urlunsplit(parts._replace(netloc=account + at + hosts, query=urlencode(kept, quote_via=quote))),
        "timeout": next((seconds for seconds in timeouts if seconds > 0), CONNECT_TIMEOUT_S),
        "server_settings": settings,
    }


def _common(application_name: str) -> dict[str, str]:
    return {"application_name": application_name, "timezone": "UTC", "search_path": "public", "jit": "off"}


async def _prepare(url: str, connection: Any) -> None:
    """What the engine needs of a new connection of its pool."""
    _require_version(connection, url)
    try:
        await arrays.announce(connection)
    except ValueError as error:
        raise StoreError(f"{place(url)}: {error} - run: dripline db migrate") from None


async def _keep(_connection: Any) -> None:
    """Nothing to undo when a connection is released: what the engine sets ends with its transaction.

    asyncpg's own reset is a round trip after every statement.
    """


def _require_version(connection: Any, url: str) -> None:
    major = connection.get_server_version().major
    if major < MINIMUM_MAJOR:
        raise StoreError(f"{place(url)}: PostgreSQL {major} is too old, Dripline needs {MINIMUM_MAJOR} or newer")


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
