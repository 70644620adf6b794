"""CON-22: writes to a database that keeps failing are refused at once; nothing saved is lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer, reactor
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.settings import ChannelChange, NotSavedError, Thresholds
from m32net.store.database import Database, connect, open_database
from m32net.store.guard import GuardedWrites, NotTriedError
from m32net.store.service import FLUSH_S, SettingsService, open_settings
from protocols.breaker import BreakerState
from tests.support.store import inline_settings

FULL = sqlite3.OperationalError("database or disk is full")


class SettingsCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "m32net.sqlite3"
        self.clock = Clock()
        self.clock.advance(1000)
        self.service, self.database = inline_settings(self.path, clock=self.clock)
        self.addCleanup(self.database.close)

    def save(self, interpolate: int) -> defer.Deferred[Any]:
        return self.service.set_thresholds(Thresholds(interpolate, 5000), who="t")

    def refused(self, interpolate: int = 1) -> NotSavedError:
        error: NotSavedError = self.failureResultOf(self.save(interpolate), NotSavedError).value
        return error

    def on_disk(self) -> int | None:
        with closing(sqlite3.connect(self.path)) as connection:
            row = connection.execute("SELECT interpolate FROM thresholds").fetchone()
        return None if row is None else int(row[0])


class RefusingTests(SettingsCase):
    def fail_five_times(self) -> None:
        self.database.failure = FULL
        for _ in range(5):
            self.assertIsNone(self.refused().retry_in_s)

    def test_the_sixth_is_refused_without_a_try(self) -> None:
        """CON-22: at once, 503, in words that name the reason and when it is tried again."""
        self.fail_five_times()
        self.database.failure = None  # it would work, but it is not tried
        self.database.waiting = []
        self.clock.advance(18)
        error = self.refused()
        self.assertEqual(self.database.waiting, [])
        self.assertEqual((error.code, error.status, error.retry_in_s), ("not_saved", 503, 42))
        self.assertEqual(
            error.message,
            "the change could not be saved: the database failed 5 times in a row (database or "
            "disk is full); it is tried again in 42 s",
        )

    def test_health_is_honest(self) -> None:
        """CON-22: degraded with reason and time while it rests, healthy once a write worked."""
        self.fail_five_times()
        self.clock.advance(20)
        health = self.service.health()
        self.assertEqual(health.state, "degraded")
        self.assertEqual(
            health.reasons,
            ("the database cannot be written: database or disk is full; tried again in 40 s",),
        )
        self.assertEqual((health.details["writes"], health.details["retry_in_s"]), ("open", 40))
        self.assertEqual(self.service.figures()["store_writes_resting"], 1)
        self.refused()
        self.assertEqual(self.service.figures()["store_writes_refused_total"], 1)
        self.database.failure = None
        self.clock.advance(40)
        self.successResultOf(self.save(7))
        self.assertEqual(self.service.health().state, "healthy")
        self.assertEqual(self.service.figures()["store_writes_resting"], 0)

    def test_half_open_lets_one_through(self) -> None:
        """CON-22: whose failure costs another minute; whose success lets all through."""
        self.fail_five_times()
        self.clock.advance(60)
        self.assertIsNone(self.refused().retry_in_s)
        self.assertEqual(self.refused().retry_in_s, 60)
        self.clock.advance(60)
        self.database.failure = None
        self.successResultOf(self.save(7))
        self.successResultOf(self.save(8))
        self.assertEqual((self.on_disk(), self.service.thresholds.interpolate), (8, 8))

    def test_another_write_while_the_one_is_under_way(self) -> None:
        """CON-22: history does not add to it, and a password is refused in words of its own."""
        writes = GuardedWrites(self.database, self.clock.seconds, lambda *_: None)
        self.database.failure = FULL
        for _ in range(5):
            self.failureResultOf(writes.write(lambda _: None), sqlite3.OperationalError)
        self.clock.advance(60)
        self.database.failure, self.database.waiting = None, []
        one = writes.write(lambda _: "done")
        error = self.failureResultOf(writes.write(lambda _: None), NotTriedError).value
        self.assertIn("is being tried again right now", str(error))
        self.assertEqual(error.retry_in_s, 1)
        self.database.do_one()
        self.assertEqual(self.successResultOf(one), "done")
        self.assertEqual(writes.breaker.state, BreakerState.CLOSED)

    def test_it_heals_without_anybody_asking(self) -> None:
        """CON-22: the history's regular write is the one let through; both are in the events."""
        self.service.startService()
        self.fail_five_times()
        self.clock.advance(FLUSH_S)
        self.database.failure = None
        self.clock.pump([FLUSH_S] * 13)
        self.assertEqual(self.service.health().state, "healthy")
        kinds = [row.kind for row in self.successResultOf(self.service.events())]
        self.assertEqual(kinds, ["store_works_again", "store_failed"])
        self.successResultOf(self.service.stopService())

    def test_wrong_values_are_no_fault_of_the_database(self) -> None:
        """CON-22: what SQLite refuses for itself alone does not keep others from saving."""
        writes = GuardedWrites(self.database, self.clock.seconds, lambda *_: None)

        def wrong(cursor: sqlite3.Cursor) -> None:
            cursor.execute("INSERT INTO channels VALUES (1, NULL, '#000000', 1, 7)")

        for _ in range(20):
            self.failureResultOf(writes.write(wrong), sqlite3.IntegrityError)
        self.failureResultOf(writes.write(lambda _: 1 // 0), ZeroDivisionError)  # type: ignore
        self.assertEqual((writes.breaker.state, writes.breaker.failed), (BreakerState.CLOSED, 0))

    def test_reading_goes_on(self) -> None:
        """CON-22: who has a password can log in, and values are what was saved last."""
        self.successResultOf(self.service.save_password("admin", "$hash"))
        self.successResultOf(self.save(7))
        self.fail_five_times()
        self.database.failure = None
        self.assertEqual(self.successResultOf(self.service.password_hash("admin")), "$hash")
        self.assertEqual(self.service.thresholds.interpolate, 7)

    def test_start_up_is_not_affected(self) -> None:
        """CON-22: a new process begins with a try, and passwords set before it runs are written."""
        self.fail_five_times()
        self.service.save_password_now("admin", "$hash")
        again, database = inline_settings(self.path, clock=self.clock)
        self.addCleanup(database.close)
        self.successResultOf(again.set_thresholds(Thresholds(7, 5000), who="t"))
        self.assertEqual(self.on_disk(), 7)

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["works", "fails", "fails", "fails"]),
                st.sampled_from([0.0, 0.0, 1.0, 30.0, 61.0]),
            ),
            max_size=40,
        )
    )
    def test_nothing_confirmed_is_lost_and_nothing_refused_is_kept(self, history) -> None:
        """CON-22, STR-7: any history; memory, disk and what was confirmed always agree."""
        service, database = inline_settings(Path(mkdtemp(dir=".")) / "db", clock=self.clock)
        confirmed, tries = 100, 0
        try:
            for number, (outcome, seconds) in enumerate(history, 1):
                self.clock.advance(seconds)
                database.failure = FULL if outcome == "fails" else None
                saving = service.set_thresholds(Thresholds(number, 5000), who="t")
                done: list[Any] = []
                saving.addBoth(done.append)
                (result,) = done
                if isinstance(result, Thresholds):
                    confirmed, tries = number, 0
                else:
                    result.trap(NotSavedError)
                    tries += 1
                    if tries <= 5 and outcome == "works":
                        self.fail("refused before five failures")
                self.assertEqual(service.thresholds.interpolate, confirmed)
            stored = database.connection.execute("SELECT interpolate FROM thresholds").fetchone()
            self.assertEqual(stored[0] if stored else 100, confirmed)
        finally:
            database.close()


class RealErrors(unittest.TestCase):
    """SQLite itself fails, in its own thread."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "m32net.sqlite3"
        self.clock = Clock()
        open_database(self.path)
        self.database = Database(self.path, reactor)
        self.addCleanup(self.database.close)
        self.changes: list[tuple[bool, str]] = []
        self.writes = GuardedWrites(
            self.database, self.clock.seconds, lambda *change: self.changes.append(change)
        )

    def pragma(self, text: str) -> defer.Deferred[Any]:
        return self.database.run(lambda cursor: cursor.execute(f"PRAGMA {text}").fetchall())

    def put(self, key: str, size: int = 1) -> defer.Deferred[Any]:
        def work(cursor: sqlite3.Cursor) -> None:
            cursor.execute("INSERT INTO meta VALUES (?, ?)", (key, "x" * size))

        return self.writes.write(work)

    @defer.inlineCallbacks
    def breaks_and_heals(
        self, size: int, reason: str, cure: Callable[[], Any]
    ) -> defer.Generator[Any, Any, None]:
        yield self.put("before")
        for number in range(5):
            error = yield self.assertFailure(self.put(f"lost {number}", size), sqlite3.Error)
            self.assertIn(reason, str(error))
        error = yield self.assertFailure(self.put("refused", size), NotTriedError)
        self.assertIn(reason, str(error))
        yield defer.maybeDeferred(cure)
        self.clock.advance(59)
        yield self.assertFailure(self.put("still refused"), NotTriedError)
        self.clock.advance(1)
        yield self.put("after", size)
        with closing(connect(self.path)) as connection:
            rows = connection.execute("SELECT key FROM meta WHERE key <> 'node_id' ORDER BY rowid")
            self.assertEqual([key for (key,) in rows], ["before", "after"])
        self.assertEqual([resting for resting, _ in self.changes], [True, False])

    @defer.inlineCallbacks
    def test_full(self) -> defer.Generator[Any, Any, None]:
        """CON-22: SQLITE_FULL, as from a full file system."""
        ((pages,),) = yield self.pragma("page_count")
        yield self.pragma(f"max_page_count = {pages + 1}")
        yield self.breaks_and_heals(
            50_000, "database or disk is full", lambda: self.pragma("max_page_count = 100000")
        )

    @defer.inlineCallbacks
    def test_read_only(self) -> defer.Generator[Any, Any, None]:
        """CON-22: SQLITE_READONLY, as from a file system remounted read-only."""
        yield self.put("warm")
        yield self.database.run(lambda cursor: cursor.execute("DELETE FROM meta WHERE key='warm'"))
        original = self.put

        def put(key: str, size: int = 1) -> defer.Deferred[Any]:
            if key == "lost 0":
                return self.pragma("query_only = ON").addCallback(lambda _: original(key, size))
            return original(key, size)

        self.put = put  # type: ignore[method-assign]
        yield self.breaks_and_heals(1, "readonly", lambda: self.pragma("query_only = OFF"))

    @defer.inlineCallbacks
    def test_locked(self) -> defer.Generator[Any, Any, None]:
        """CON-22: SQLITE_BUSY: another program holds the file's lock."""
        yield self.pragma("busy_timeout = 1")
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        original = self.put

        def put(key: str, size: int = 1) -> defer.Deferred[Any]:
            if key == "lost 0":
                other.execute("BEGIN IMMEDIATE")
            return original(key, size)

        self.put = put  # type: ignore[method-assign]
        yield self.breaks_and_heals(1, "locked", lambda: other.execute("ROLLBACK"))


class WholeService(unittest.TestCase):
    @defer.inlineCallbacks
    def test_confirmed_changes_survive_a_database_that_fails_between_them(self) -> Any:
        """CON-22, STR-7: what the next process finds is what was confirmed."""
        path = Path(self.mktemp()) / "m32net.sqlite3"
        service: SettingsService = open_settings(path, reactor=reactor, channels=4)
        service.startService()
        yield service.set_channels([ChannelChange(1, name="kept")], who="t")
        yield service._database.run(lambda c: c.execute("PRAGMA query_only = ON").fetchall())
        for _ in range(7):
            change = service.set_channels([ChannelChange(1, name="lost")], who="t")
            yield self.assertFailure(change, NotSavedError)
        self.assertEqual(service.channels[0].name, "kept")
        yield service._database.run(lambda c: c.execute("PRAGMA query_only = OFF").fetchall())
        yield service.stopService()
        again = open_settings(path, reactor=reactor, channels=4)
        self.assertEqual(again.channels[0].name, "kept")
        again.startService()
        yield again.set_channels([ChannelChange(2, name="new")], who="t")
        kinds = [row.kind for row in (yield again.events())]
        self.assertEqual(kinds, ["store_failed"])
        yield again.stopService()
