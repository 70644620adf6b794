"""What happened, as time series: reception of every listener, and events.

Rows are gathered in memory and written together every few seconds, so that a hundred reports
cost one disk write; the tables are bounded, the oldest rows go first.  What could not be written
waits, within bounds.  Settings are not kept here: they are confirmed one by one in
:mod:`m32net.store.service`.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final, TypeVar

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from m32net.log import RoomLog
from m32net.settings import EventRow, QualityRow
from m32net.store.database import IDatabase
from m32net.store.guard import GuardedWrites, NotTriedError, is_fault

Row = TypeVar("Row")

PENDING_ROWS: Final = 20_000
"""Rows that may wait in memory, of each kind; more than that drops the oldest and counts."""
EVENTS_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept.

    :ivar quality_rows: about 14 hours of 20 listeners that report every 5 s.
    :ivar quality_s: age, in seconds, at which points go whatever their number.
    """

    quality_rows: int = 200_000
    quality_s: float = 30 * 86_400.0
    event_rows: int = 20_000


class History:
    """Appends and reads the two tables.

    :param writes: for what is written; ``database`` is for reading, and for the last write.
    :ivar dropped: rows lost because too many waited, or because they cannot be written at all.
    :ivar failure: why the last write failed; None if it did not.
    """

    _log = RoomLog()

    def __init__(
        self, database: IDatabase, writes: GuardedWrites, retention: Retention | None = None
    ) -> None:
        self._database = database
        self._writes = writes
        self._retention = retention or Retention()
        self._quality: deque[QualityRow] = deque()
        self._events: deque[EventRow] = deque()
        self.dropped = 0
        self.failure: str | None = None

    def add_quality(self, row: QualityRow) -> None:
        self._add(self._quality, row)

    def add_event(self, row: EventRow) -> None:
        self._add(self._events, row)

    def _add(self, queue: deque[Any], row: object) -> None:
        if len(queue) >= PENDING_ROWS:
            queue.popleft()
            self.dropped += 1
        queue.append(row)

    @property
    def waiting(self) -> int:
        """Rows that are not written yet."""
        return len(self._quality) + len(self._events)

    def flush(self, now: float, *, last: bool = False) -> Deferred[None]:
        """Write what waits, and forget what is too old; never fails.

        What the database does not take waits for the next time; while it is left alone
        (CON-22) nothing is tried.

        :param now: Unix time in seconds.
        :param last: there is no next time: try whatever happened before.
        """
        if not self.waiting or (self._writes.retry_in_s() and not last):
            return succeed(None)
        quality, events = list(self._quality), list(self._events)
        self._quality.clear()
        self._events.clear()

        def written(_: object) -> None:
            self.failure = None

        def lost(failure: Failure) -> None:
            self.failure = failure.getErrorMessage()
            if not last and _worth_another_try(failure.value):
                self._put_back(self._quality, quality)
                self._put_back(self._events, events)
                return
            self.dropped += len(quality) + len(events)
            self._log.error(
                "history: {count} rows are lost: {reason}",
                count=len(quality) + len(events),
                reason=self.failure,
            )

        def write(cursor: sqlite3.Cursor) -> None:
            _insert(cursor, quality, events)
            _forget(cursor, now, self._retention)

        run = self._database.run if last else self._writes.write
        return run(write).addCallbacks(written, lost)

    def _put_back(self, queue: deque[Row], rows: list[Row]) -> None:
        """Before what has come since; the oldest go where there are too many."""
        room = max(0, PENDING_ROWS - len(queue))
        kept = rows[len(rows) - min(room, len(rows)) :]
        self.dropped += len(rows) - len(kept)
        queue.extendleft(reversed(kept))

    def quality(
        self, client_id: str | None, since: float, limit: int
    ) -> Deferred[list[QualityRow]]:
        """The newest ``limit`` written points after ``since``, oldest first."""

        def read(cursor: sqlite3.Cursor) -> list[QualityRow]:
            cursor.execute(
                "SELECT at, client_id, name, source, loss, jitter_ms, latency_ms, bandwidth_mbps"
                " FROM quality WHERE at > ? AND (? IS NULL OR client_id = ?)"
                " ORDER BY id DESC LIMIT ?",
                (since, client_id, client_id, limit),
            )
            return [QualityRow(*row) for row in cursor.fetchall()][::-1]

        return self._database.run(read)

    def events(self, since: float, limit: int) -> Deferred[list[EventRow]]:
        """The newest events after ``since``, newest first, those that wait to be written too.

        :param limit: at most :data:`EVENTS_AT_ONCE` in any case.
        """
        limit = max(0, min(limit, EVENTS_AT_ONCE))
        waiting = [row for row in reversed(self._events) if row.at > since][:limit]

        def read(cursor: sqlite3.Cursor) -> list[EventRow]:
            cursor.execute(
                "SELECT at, kind, message, details FROM events WHERE at > ?"
                " ORDER BY id DESC LIMIT ?",
                (since, limit - len(waiting)),
            )
            return waiting + [
                EventRow(at, kind, message, msgspec.json.decode(details))
                for at, kind, message, details in cursor.fetchall()
            ]

        return self._database.run(read)


def _worth_another_try(error: BaseException | None) -> bool:
    """Whether the database is at fault, not the rows: those would fail for ever."""
    return isinstance(error, NotTriedError) or (error is not None and is_fault(error))


def _insert(
    cursor: sqlite3.Cursor, quality: Sequence[QualityRow], events: Sequence[EventRow]
) -> None:
    cursor.executemany(
        "INSERT INTO quality (at, client_id, name, source, loss, jitter_ms, latency_ms,"
        " bandwidth_mbps) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [astuple(row) for row in quality],
    )
    cursor.executemany(
        "INSERT INTO events (at, kind, message, details) VALUES (?, ?, ?, ?)",
        [
            (row.at, row.kind, row.message, msgspec.json.encode(row.details, enc_hook=str).decode())
            for row in events
        ],
    )


def _forget(cursor: sqlite3.Cursor, now: float, retention: Retention) -> None:
    """Delete what is too old, and the oldest of what is too much."""
    cursor.execute("DELETE FROM quality WHERE at < ?", (now - retention.quality_s,))
    for table, rows in (("quality", retention.quality_rows), ("events", retention.event_rows)):
        cursor.execute(
            f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?",  # noqa: S608  # nosec B608 # named above
            (rows,),
        )
