"""STR-12: quality is kept as time series, within bounds."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.settings import EventRow, QualityRow
from m32net.store import history
from m32net.store.database import open_database
from m32net.store.guard import GuardedWrites
from m32net.store.history import EVENTS_AT_ONCE, History, Retention
from tests.support.store import InlineDatabase


def point(at: float, client_id: str = "a", loss: float | None = 0.0) -> QualityRow:
    return QualityRow(at, client_id, "Anna", "rtcp", loss, 1.5, None, None)


class Keeping(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        path = Path(self.mktemp()) / "db"
        open_database(path)
        self.database = InlineDatabase(path)
        self.addCleanup(self.database.close)
        self.clock = Clock()
        self.changes: list[bool] = []
        writes = GuardedWrites(
            self.database, self.clock.seconds, lambda resting, _: self.changes.append(resting)
        )
        self.history = History(self.database, writes, Retention(5, 100.0, 3))

    def points(self, client_id: str | None = None, since: float = 0, limit: int = 99) -> list[Any]:
        rows: Deferred[Any] = self.history.quality(client_id, since, limit)
        return self.successResultOf(rows)

    def flush(self, now: float = 0.0) -> None:
        self.successResultOf(self.history.flush(now))

    def test_round_trip(self) -> None:
        rows = [point(1), point(2, "b", None)]
        for row in rows:
            self.history.add_quality(row)
        self.flush()
        self.assertEqual(self.points(), rows)
        self.assertEqual(self.points("b"), rows[1:])
        self.assertEqual(self.points(since=1), rows[1:])

    def test_limit_takes_the_newest(self) -> None:
        for at in range(4):
            self.history.add_quality(point(at + 1))
        self.flush()
        self.assertEqual([row.at for row in self.points(limit=2)], [3, 4])

    def test_bounded_by_number(self) -> None:
        for at in range(1, 20):
            self.history.add_quality(point(at))
            self.history.add_event(EventRow(at, "k", "m", {"n": at}))
            self.flush()
        self.assertEqual([row.at for row in self.points()], [15, 16, 17, 18, 19])
        events = self.successResultOf(self.history.events(0, 99))
        self.assertEqual([event.details["n"] for event in events], [19, 18, 17])

    def test_bounded_by_age(self) -> None:
        self.history.add_quality(point(10))
        self.history.add_quality(point(150))
        self.flush(now=200)
        self.assertEqual([row.at for row in self.points()], [150])

    def test_bounded_in_memory(self) -> None:
        """While nothing can be written the oldest rows go, and are counted."""
        self.patch(history, "PENDING_ROWS", 3)
        for at in range(5):
            self.history.add_quality(point(at + 1))
        self.assertEqual(self.history.dropped, 2)
        self.flush()
        self.assertEqual([row.at for row in self.points()], [3, 4, 5])

    def test_what_the_database_does_not_take_waits(self) -> None:
        """CON-22: before what has come since, in order, and within the bound."""
        self.patch(history, "PENDING_ROWS", 4)
        self.database.failure = sqlite3.OperationalError("disk I/O error")
        for at in range(1, 4):
            self.history.add_quality(point(at))
            self.flush()
        self.assertEqual((self.history.dropped, self.history.waiting), (0, 3))
        self.history.add_quality(point(4))
        self.history.add_quality(point(5))
        self.flush()
        self.assertEqual((self.history.dropped, self.history.waiting), (1, 4))
        self.database.failure = None
        self.flush()
        self.assertEqual([row.at for row in self.points()], [2, 3, 4, 5])
        self.assertIsNone(self.history.failure)

    def test_rows_that_come_while_a_write_fails(self) -> None:
        """CON-22: they take the places of the oldest, which were to be put back."""
        self.patch(history, "PENDING_ROWS", 3)
        self.history.add_quality(point(1))
        self.history.add_quality(point(2))
        self.database.waiting = []
        flushing = self.history.flush(0)
        for at in (3, 4):
            self.history.add_quality(point(at))
        self.database.failure = sqlite3.OperationalError("disk I/O error")
        self.database.do_one()
        self.successResultOf(flushing)
        self.database.failure = self.database.waiting = None
        self.flush()
        self.assertEqual([row.at for row in self.points()], [2, 3, 4])
        self.assertEqual(self.history.dropped, 1)

    def test_left_alone_for_a_minute(self) -> None:
        """CON-22: after five failures nothing is tried for 60 s; then all is written."""
        self.database.failure = sqlite3.OperationalError("disk I/O error")
        for at in range(1, 6):
            self.history.add_quality(point(at))
            self.flush()
        self.assertEqual(self.changes, [True])
        self.database.failure = None
        self.clock.advance(59)
        self.flush()
        self.assertEqual(self.points(), [])
        self.clock.advance(1)
        self.flush()
        self.assertEqual([row.at for row in self.points()], [1, 2, 3, 4, 5])
        self.assertEqual(self.changes, [True, False])

    def test_the_last_write_is_tried_in_any_case(self) -> None:
        """CON-22: when the server stops there is no later."""
        self.history.add_quality(point(1))
        self.database.failure = sqlite3.OperationalError("disk I/O error")
        for _ in range(5):
            self.flush()
        self.database.failure = None
        self.successResultOf(self.history.flush(0, last=True))
        self.assertEqual([row.at for row in self.points()], [1])

    def test_lost_last_write_is_counted(self) -> None:
        self.history.add_quality(point(1))
        self.database.failure = sqlite3.OperationalError("disk I/O error")
        self.successResultOf(self.history.flush(0, last=True))
        self.assertEqual(self.history.dropped, 1)

    def test_events_newest_first(self) -> None:
        """What waits is there, too; since and limit hold for both."""
        for at in range(1, 4):
            self.history.add_event(EventRow(at, "k", "m", {}))
            if at == 2:
                self.flush()

        def found(since: float, limit: int) -> list[float]:
            return [row.at for row in self.successResultOf(self.history.events(since, limit))]

        self.assertEqual(found(0, 99), [3, 2, 1])
        self.assertEqual(found(1, 99), [3, 2])
        self.assertEqual(found(0, 2), [3, 2])
        self.assertEqual(found(0, 1), [3])
        self.assertEqual((found(3, 99), found(0, 0), found(0, -1)), ([], [], []))

    def test_events_are_bounded(self) -> None:
        for at in range(EVENTS_AT_ONCE + 5):
            self.history.add_event(EventRow(at + 1, "k", "m", {}))
        events = self.successResultOf(self.history.events(0, 10**9))
        self.assertEqual((len(events), events[0].at), (EVENTS_AT_ONCE, EVENTS_AT_ONCE + 5))

    def test_what_cannot_be_written_is_counted(self) -> None:
        """Half a surrogate pair, as undecodable file names have; what comes later is written."""
        self.history.add_event(EventRow(1, "k", "m", {"path": "/tmp/\udcff.wav"}))
        self.flush()
        self.assertEqual(self.history.dropped, 1)
        self.history.add_event(EventRow(2, "k", "m", {}))
        self.flush()
        self.assertEqual([row.at for row in self.successResultOf(self.history.events(0, 9))], [2])

    def test_details_of_any_kind(self) -> None:
        """What JSON has no form for is written as text."""
        self.history.add_event(EventRow(1, "k", "m", {"where": Path("/x")}))
        self.flush()
        (event,) = self.successResultOf(self.history.events(0, 1))
        self.assertEqual(event.details, {"where": "/x"})
