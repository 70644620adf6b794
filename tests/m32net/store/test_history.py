"""STR-12: quality is kept as time series, within bounds."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial import unittest

from m32net.settings import QualityRow
from m32net.store import history
from m32net.store.database import open_database
from m32net.store.history import EventRow, History, Retention
from tests.support.store import InlineDatabase


def point(at: float, client_id: str = "a", loss: float | None = 0.0) -> QualityRow:
    return QualityRow(at, client_id, "Anna", "rtcp", loss, 1.5, None, None)


class Keeping(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        path = Path(self.mktemp()) / "db"
        open_database(path)
        self.database = InlineDatabase(path)
        self.addCleanup(self.database.close)
        self.history = History(self.database, Retention(5, 100.0, 3))

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
        events = self.successResultOf(self.history.events(99))
        self.assertEqual([event.details["n"] for event in events], [17, 18, 19])

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

    def test_lost_write_is_counted(self) -> None:
        self.history.add_quality(point(1))
        self.database.failure = sqlite3.OperationalError("disk I/O error")
        self.flush()
        self.assertEqual(self.history.dropped, 1)

    def test_what_cannot_be_written_is_counted(self) -> None:
        """Half a surrogate pair, as undecodable file names have; what comes later is written."""
        self.history.add_event(EventRow(1, "k", "m", {"path": "/tmp/\udcff.wav"}))
        self.flush()
        self.assertEqual(self.history.dropped, 1)
        self.history.add_event(EventRow(2, "k", "m", {}))
        self.flush()
        self.assertEqual([row.at for row in self.successResultOf(self.history.events(9))], [2])

    def test_details_of_any_kind(self) -> None:
        """What JSON has no form for is written as text."""
        self.history.add_event(EventRow(1, "k", "m", {"where": Path("/x")}))
        self.flush()
        (event,) = self.successResultOf(self.history.events(1))
        self.assertEqual(event.details, {"where": "/x"})
