"""A settings service whose database answers at once, for tests that run no reactor."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from m32net.store import database, rows
from m32net.store.service import SettingsService


class InlineDatabase:
    """Does the work before :meth:`run` returns.

    :ivar failure: raised instead of doing the work, while set.
    :ivar waiting: if a list, work is appended here as (Deferred, work) and not done.
    """

    def __init__(self, path: Path) -> None:
        self.connection = database.connect(path)
        self.failure: Exception | None = None
        self.waiting: list[tuple[Deferred[Any], Any]] | None = None
        self.closed = False

    def run(self, work: Any) -> Deferred[Any]:
        if self.waiting is not None:
            result: Deferred[Any] = Deferred()
            self.waiting.append((result, work))
            return result
        return maybeDeferred(self._run, work)

    def do_one(self) -> None:
        """Do the first piece of work that waits."""
        assert self.waiting
        result, work = self.waiting.pop(0)
        maybeDeferred(self._run, work).chainDeferred(result)

    def _run(self, work: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        cursor = self.connection.cursor()
        try:
            result = work(cursor)
            self.connection.commit()
        except BaseException:
            self.connection.rollback()
            raise
        return result

    def close(self) -> None:
        self.connection.close()
        self.closed = True


def inline_settings(
    path: Path | None = None, *, clock: Clock | None = None, **options: Any
) -> tuple[SettingsService, InlineDatabase]:
    """A service on a new database (or the one at ``path``) that needs no reactor."""
    path = path or Path(mkdtemp(dir=".")) / "m32net.sqlite3"
    database.open_database(path)
    inline = InlineDatabase(path)
    stored = rows.read_stored(inline.connection)
    clock = clock or Clock()
    service = SettingsService(inline, stored, clock=clock, path=path, wall=clock.seconds, **options)
    return service, inline


def quick_check(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA quick_check").fetchone()[0])
