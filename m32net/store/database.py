"""The SQLite file: opening, checking and migrating it, and the one thread that writes to it.

:func:`open_database` is the preflight, synchronous and before the reactor runs; it leaves a file
of the current version or raises one clear line.  :class:`Database` then carries out work on a
single connection in a thread of its own (one writer), and a Deferred fires only after COMMIT with
``synchronous=FULL``, so what was confirmed survives a kill at any moment (STR-7).  What the tables
mean is for :mod:`m32net.store.service`.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred

T = TypeVar("T")
Work = Callable[[sqlite3.Cursor], T]

BUSY_TIMEOUT_S: Final = 5.0
SCHEMA: Final[Traversable] = resources.files("m32net.store") / "schema"


class StoreError(Exception):
    """The database can't be used; the message is one line that says why and what to do."""


class IDatabase(Protocol):
    """Where work on the database is done."""

    def run(self, work: Work[T]) -> Deferred[T]:
        """Do ``work`` in one transaction; fires with its result after COMMIT.

        Fails with what ``work`` or SQLite raised, after ROLLBACK.
        """
        ...

    def close(self) -> None: ...


def connect(path: Path) -> sqlite3.Connection:
    """A connection with this program's pragmas; DML opens a transaction that takes the lock."""
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level="IMMEDIATE", check_same_thread=False
    )
    _configure(connection)
    return connection


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def migrations(schema: Traversable = SCHEMA) -> list[tuple[int, str, str]]:
    """Version, file name and SQL of every step, ascending and without a gap."""
    steps = []
    for file in schema.iterdir():
        match = re.fullmatch(r"(\d{3})_\w+\.sql", file.name)
        if match:
            steps.append((int(match[1]), file.name, file.read_text(encoding="utf-8")))
    steps.sort()
    if [step[0] for step in steps] != list(range(1, len(steps) + 1)):
        raise StoreError(f"the schema files are not numbered 001 to {len(steps):03d}")
    return steps


def open_database(path: Path, schema: Traversable = SCHEMA, *, may_migrate: bool = True) -> None:
    """Create, check and migrate the database at ``path``; its directory is made if missing.

    :param may_migrate: False while another server, perhaps of an older version, uses it.
    :raises StoreError: one line for every reason it can't be used.
    """
    steps = migrations(schema)
    _make_place(path)
    with _one_line(path), closing(connect(path)) as connection:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StoreError(_damaged(path, verdict.splitlines()[-1]))
        version = _version(connection, path)
        if version > len(steps):
            raise StoreError(
                f"{path} was written by a newer m32net (version {version} of its tables, this "
                f"program knows {len(steps)}); start that one, or use another --state-dir"
            )
        if steps[version:] and not may_migrate:
            raise StoreError(
                f"this version changes the tables of {path}, which the running server needs as "
                "they are; stop that one first and start without --take-over"
            )
        for number, name, sql in steps[version:]:
            _migrate(connection, number, name, sql)


def _make_place(path: Path) -> None:
    """The directory, and an empty file that only its owner reads (it will hold hashes)."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create the state directory {path.parent}: {_reason(error)}; "
            "choose another with --state-dir"
        ) from None
    if path.is_dir():
        raise StoreError(f"{path} is a directory, but the database belongs there; move it away")
    if path.exists() and os.access(path, os.R_OK | os.W_OK):
        # Not opened here: closing any descriptor of the file would drop the locks that other
        # SQLite connections of this process hold on it (POSIX), and with them written data.
        return
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        reason = "Permission denied" if isinstance(error, FileExistsError) else _reason(error)
        raise StoreError(
            f"cannot write {path}: {reason}; choose another place with --state-dir"
        ) from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Say in one line what SQLite says in many ways."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise StoreError(
                f"{path} is in use by another program; stop it, or use another --state-dir"
            ) from None
        raise StoreError(f"cannot use {path}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise StoreError(_damaged(path, str(error))) from None


def _damaged(path: Path, why: str) -> str:
    return (
        f"{path} is damaged ({why}); put a backup in its place, or move it away to start "
        "with default settings"
    )


def _version(connection: sqlite3.Connection, path: Path) -> int:
    tables = {
        row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    }
    if not tables:
        return 0
    if "schema_version" not in tables:
        raise StoreError(f"{path} is a database of another program; use another --state-dir")
    return int(connection.execute("SELECT max(version) FROM schema_version").fetchone()[0] or 0)


def _migrate(connection: sqlite3.Connection, number: int, name: str, sql: str) -> None:
    """Carry out one step and note it, both or neither."""
    try:
        connection.executescript(
            f"""BEGIN EXCLUSIVE;
            CREATE TABLE IF NOT EXISTS schema_version (
                version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at REAL NOT NULL
            ) STRICT;
            INSERT INTO schema_version VALUES ({number}, '{name}', {time.time()!r});
            {sql}
            COMMIT;"""  # noqa: S608  # nosec B608 # files of this package, a number and a time
        )
    except BaseException:
        if connection.in_transaction:
            connection.rollback()
        raise


class Database:
    """The database while the server runs: one connection in one thread of its own.

    :param reactor: where Deferreds fire.  Work given before it runs is done when it does.
    """

    def __init__(self, path: Path, reactor: Any) -> None:
        self._pool = adbapi.ConnectionPool(  # type: ignore[no-untyped-call]
            "sqlite3",
            str(path),
            timeout=BUSY_TIMEOUT_S,
            isolation_level="IMMEDIATE",
            check_same_thread=False,
            cp_reactor=reactor,
            cp_min=1,
            cp_max=1,
            cp_name="m32net-store",
            cp_openfun=_configure,
        )

    def run(self, work: Work[T]) -> Deferred[T]:
        return cast("Deferred[T]", self._pool.runInteraction(work))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Finish the work under way and close; blocks for as long as that takes."""
        self._pool.close()  # type: ignore[no-untyped-call]
