"""STR-7: the database file is created, checked and migrated, or refused in one clear line."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from twisted.internet import defer, reactor
from twisted.trial import unittest

from m32net.store import database
from m32net.store.database import StoreError, open_database


class Place(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.path = self.directory / "m32net.sqlite3"

    def refusal(self, path: Path | None = None) -> str:
        error = self.assertRaises(StoreError, open_database, path or self.path)
        text = str(error)
        self.assertEqual(len(text.splitlines()), 1, text)
        self.assertIn(str(path or self.path), text)
        return text


class Creating(Place):
    def test_first_start(self) -> None:
        """The directory is made, and only its owner can read the hashes."""
        open_database(self.path)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)

    def test_again(self) -> None:
        """Opening what is there changes nothing."""
        open_database(self.path)
        before = self.dump()
        open_database(self.path)
        self.assertEqual(self.dump(), before)

    def dump(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            return list(connection.iterdump())

    def test_pragmas(self) -> None:
        """WAL, and FULL: what is confirmed is on the disk."""
        open_database(self.path)
        with closing(database.connect(self.path)) as connection:
            self.assertEqual(connection.execute("PRAGMA journal_mode").fetchone()[0], "wal")
            self.assertEqual(connection.execute("PRAGMA synchronous").fetchone()[0], 2)


class Locks(Place):
    def test_of_other_connections_stay(self) -> None:
        """A preflight beside an open connection of this process leaves that one its locks.

        Without them another process would take the file for unused and delete the WAL.
        """
        open_database(self.path)
        with closing(database.connect(self.path)) as connection:
            with connection:
                connection.execute("INSERT INTO meta VALUES ('a', 'b')")
            open_database(self.path)
            script = (
                "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
                "c.execute('SELECT * FROM meta').fetchall(); c.close()"
            )
            subprocess.run([sys.executable, "-c", script, str(self.path)], check=True)
            self.assertTrue(Path(f"{self.path}-wal").exists())


class Refusing(Place):
    def test_garbage(self) -> None:
        self.directory.mkdir()
        self.path.write_bytes(b"This is no database at all. " * 100)
        self.assertIn("is damaged", self.refusal())

    def test_page_overwritten(self) -> None:
        """Damage inside the file, which the header does not show, is found."""
        open_database(self.path)
        with closing(database.connect(self.path)) as connection, connection:
            connection.executemany(
                "INSERT INTO settings VALUES (?, 'x', 0, '')", [(f"k{i}",) for i in range(2000)]
            )
        content = bytearray(self.path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 8192] = os.urandom(8192)
        self.path.write_bytes(content)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.assertIn("is damaged", self.refusal())

    def test_directory_in_its_place(self) -> None:
        self.path.mkdir(parents=True)
        self.assertIn("is a directory", self.refusal())

    def test_state_directory_is_a_file(self) -> None:
        self.directory.write_text("x")
        error = self.assertRaises(StoreError, open_database, self.path)
        self.assertIn("cannot create the state directory", str(error))
        self.assertIn("--state-dir", str(error))

    def test_unwritable(self) -> None:
        """A directory nobody can write to, not even root."""
        self.assertIn("cannot write", self.refusal(Path("/proc/self/m32net.sqlite3")))

    def test_somebody_elses_database(self) -> None:
        self.directory.mkdir()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("CREATE TABLE recipes (id)")
        self.assertIn("another program", self.refusal())

    def test_newer_than_the_program(self) -> None:
        open_database(self.path)
        with closing(database.connect(self.path)) as connection, connection:
            connection.execute("INSERT INTO schema_version VALUES (999, '999_x.sql', 0)")
        text = self.refusal()
        self.assertIn("newer m32net", text)
        self.assertIn("999", text)

    def test_in_use(self) -> None:
        """Another program holds the lock: said so instead of waiting for ever."""
        self.patch(database, "BUSY_TIMEOUT_S", 0.05)
        self.directory.mkdir()
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("CREATE TABLE t (x)")
            self.assertIn("in use", self.refusal())


class Migrating(Place):
    def at_version(self, version: int) -> None:
        """Make a database as an old program left it."""
        schema = Path(self.mktemp())
        schema.mkdir()
        for _number, name, sql in database.migrations()[:version]:
            (schema / name).write_text(sql)
        open_database(self.path, schema)

    def version(self) -> int:
        with closing(sqlite3.connect(self.path)) as connection:
            row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
            return int(row[0])

    def test_from_the_first_version(self) -> None:
        """STR-7: what an old program saved is there after the migration."""
        self.at_version(1)
        self.assertEqual(self.version(), 1)
        with closing(database.connect(self.path)) as connection, connection:
            connection.execute("INSERT INTO channels VALUES (3, 'Änne 🎤', '#112233', 9, 0)")
        open_database(self.path)
        self.assertEqual(self.version(), len(database.migrations()))
        with closing(database.connect(self.path)) as connection:
            self.assertEqual(
                connection.execute("SELECT * FROM channels").fetchall(),
                [(3, "Änne 🎤", "#112233", 9, 0)],
            )
            self.assertEqual(connection.execute("SELECT * FROM quality").fetchall(), [])

    def test_step_that_fails(self) -> None:
        """A step that fails leaves the version, and everything, as it was."""
        self.at_version(1)
        schema = Path(self.mktemp())
        schema.mkdir()
        (schema / "001_settings.sql").write_text("SELECT 1;")
        (schema / "002_bad.sql").write_text(
            "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1);"
        )
        self.assertRaises(StoreError, open_database, self.path, schema)
        self.assertEqual(self.version(), 1)
        with closing(sqlite3.connect(self.path)) as connection:
            self.assertRaises(sqlite3.OperationalError, connection.execute, "SELECT * FROM extra")

    def test_gap_in_the_numbers(self) -> None:
        schema = Path(self.mktemp())
        schema.mkdir()
        (schema / "002_x.sql").write_text("SELECT 1;")
        self.assertRaises(StoreError, open_database, self.path, schema)


class Working(unittest.TestCase):
    """The real thread."""

    def setUp(self) -> None:
        path = Path(self.mktemp()) / "m32net.sqlite3"
        open_database(path)
        self.database = database.Database(path, reactor)
        self.addCleanup(self.database.close)

    @defer.inlineCallbacks
    def test_pragmas_of_the_pool(self) -> defer.Generator:
        mode, level = yield self.database.run(
            lambda c: (
                c.execute("PRAGMA journal_mode").fetchone()[0],
                c.execute("PRAGMA synchronous").fetchone()[0],
            )
        )
        self.assertEqual((mode, level), ("wal", 2))

    @defer.inlineCallbacks
    def test_all_or_nothing(self) -> defer.Generator:
        def half(cursor: sqlite3.Cursor) -> None:
            cursor.execute("INSERT INTO meta VALUES ('a', 'b')")
            cursor.execute("INSERT INTO nowhere VALUES (1)")

        yield self.assertFailure(self.database.run(half), sqlite3.OperationalError)
        rows = yield self.database.run(lambda c: c.execute("SELECT * FROM meta").fetchall())
        self.assertEqual(rows, [])
