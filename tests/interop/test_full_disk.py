"""CON-22: a real server whose state directory is on a real file system that is really full."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from tests.support.processes import ServerProcess, wait_for

IN_A_SMALL_ONE = 'mount -t tmpfs -o size=2m,mode=700 tmpfs "$1" && shift && exec "$@"'


def unable() -> str | None:
    """Why no file system of its own can be had here; None if it can."""
    with tempfile.TemporaryDirectory() as place:
        command = ["unshare", "-rm", "sh", "-c", IN_A_SMALL_ONE, "sh", place, "true"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no file system of its own: {error}"
    return f"no file system of its own: {done.stderr.decode()}" if done.returncode else None


class FullDiskTest(unittest.TestCase):
    timeout = 240

    def setUp(self) -> None:
        reason = unable()
        if reason:
            raise unittest.SkipTest(reason)
        place = tempfile.TemporaryDirectory(prefix="m32net-full-")
        self.addCleanup(place.cleanup)
        self.server = ServerProcess(
            "--source=test",
            state_dir=place.name,
            prefix=["unshare", "-rm", "sh", "-c", IN_A_SMALL_ONE, "sh", place.name],
        )
        self.addCleanup(self.server.close)
        self.token = self.server.login()
        self.state = Path(f"/proc/{self.server.pid}/root{place.name}")

    def change(self, dscp: int) -> tuple[int, Any]:
        return self.server.call("PUT", "/api/settings", {"dscp": dscp}, self.token)

    def dscp(self) -> int:
        status, answer = self.server.call("GET", "/api/settings", token=self.token)
        assert status == 200, answer
        value: int = answer["dscp"]
        return value

    def fill(self) -> Path:
        filler = self.state / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                return filler

    def store(self) -> dict[str, Any]:
        room: dict[str, Any] = self.server.get("/health")["rooms"]["store"]
        return room

    def copy(self) -> Path:
        """The database as it is on that disk; SQLite itself would not find its way there."""
        place = tempfile.TemporaryDirectory(prefix="m32net-copy-")
        self.addCleanup(place.cleanup)
        for file in self.state.glob("m32net.sqlite*"):
            if not file.name.endswith("-shm"):
                shutil.copyfile(file, Path(place.name) / file.name)
        return Path(place.name) / "m32net.sqlite"

    def test_full_then_free(self) -> None:
        """CON-22, STR-7: refused with the reason and the time, at once after five failures; audio
        goes on; when there is room again it saves again, by itself; nothing confirmed is lost."""
        self.assertEqual(self.change(10)[0], 200)
        filler = self.fill()
        reasons = []
        for number in range(11, 20):
            began = time.monotonic()
            status, answer = self.change(number)
            took = time.monotonic() - began
            self.assertEqual(status, 503, answer)
            reasons.append(str(answer))
        self.assertIn("disk is full", reasons[0])
        self.assertRegex(reasons[-1], r"failed 5 times in a row .* tried again in \d+ s")
        self.assertLess(took, 0.5)
        self.assertEqual(self.dscp(), 10)
        self.assertEqual(self.store()["state"], "degraded")
        self.assertIn("disk is full", str(self.store()["reasons"]))
        filler.unlink()
        self.assertEqual(self.change(20)[0], 503)
        began = time.monotonic()
        wait_for(lambda: self.store()["state"] == "healthy" or None, "it saves again", 90)
        self.assertGreater(time.monotonic() - began, 30)
        self.assertEqual(self.change(21)[0], 200)
        copy = self.copy()
        with closing(sqlite3.connect(copy)) as connection:
            rows = connection.execute("SELECT value FROM settings WHERE key = 'dscp'").fetchall()
            kinds = [kind for (kind,) in connection.execute("SELECT kind FROM events")]
        self.assertEqual(rows, [("21",)])
        self.assertIn("store_failed", kinds)
        self.assertEqual(self.server.stop(), 0, self.server.text())
        self.assertNotIn("Traceback", self.server.text())
