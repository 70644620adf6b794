"""STR-7: killed at any moment, the server comes back with all that it had confirmed."""

from __future__ import annotations

import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.trial import unittest

import m32net
from tests.support.processes import SOAK
from tests.support.store import inline_settings, quick_check
from tests.support.store_writer import CHANNELS, KINDS, told_by

ROOT = Path(m32net.__file__).parent.parent
KILLS = 500 if SOAK else 50
SEED_STEP = 10_000


class Killed(unittest.SynchronousTestCase):
    timeout = 120

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "m32net.sqlite3"
        self.writer = subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_writer", str(self.path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.addCleanup(self.end)
        self.rest = b""

    def end(self) -> None:
        assert self.writer.stdin and self.writer.stdout
        self.writer.stdin.close()
        self.writer.kill()
        self.writer.wait()
        self.writer.stdout.close()

    def lines(self, until: float) -> list[str]:
        """What the writer says before ``until`` (monotonic), or until its process ends."""
        assert self.writer.stdout
        found: list[str] = []
        while (left := until - time.monotonic()) > 0:
            if not select.select([self.writer.stdout], [], [], left)[0]:
                break
            data = os.read(self.writer.stdout.fileno(), 65536)
            self.assertNotEqual(data, b"", "the writer is gone")
            *whole, self.rest = (self.rest + data).split(b"\n")
            found += [line.decode() for line in whole]
            if any(line.startswith("end") for line in found):
                break
        return found

    def one_life(self, seed: int, length_s: float) -> list[str]:
        """Let it write, kill it, and give back what it confirmed."""
        assert self.writer.stdin
        self.writer.stdin.write(f"{seed}\n".encode())
        said: list[str] = []
        patience = time.monotonic() + 30
        while len(said) < 2:  # "start", and something confirmed
            self.assertLess(time.monotonic(), patience, said)
            said += self.lines(time.monotonic() + 0.005)
        said += self.lines(time.monotonic() + length_s)
        os.kill(int(said[0].split()[1]), signal.SIGKILL)
        while not said[-1].startswith("end"):
            self.assertLess(time.monotonic(), patience, said[-3:])
            said += self.lines(patience)
        self.assertEqual(said[-1], f"end {-signal.SIGKILL}")
        return [line for line in said if line[0].isdigit()]

    def test_fifty_kills(self) -> None:
        chance = random.Random(7)
        newest: dict[Any, int] = {}
        total = 0
        for life in range(1, KILLS + 1):
            confirmed = self.one_life(life * SEED_STEP, chance.uniform(0.0, 0.08))
            total += len(confirmed)
            for line in confirmed:
                _, number, kind = line.split()
                newest[self.place(kind, int(number))] = int(number)
            self.assertEqual(quick_check(self.path), "ok")
            self.assert_there(newest)
        self.assertGreater(total, KILLS * len(KINDS))

    @staticmethod
    def place(kind: str, number: int) -> Any:
        return (kind, number % CHANNELS + 1) if kind == "channel" else kind

    def assert_there(self, newest: dict[Any, int]) -> None:
        """Every confirmed value is there, or one written after it in the same place."""
        service, database = inline_settings(self.path)
        database.close()
        with closing(sqlite3.connect(self.path)) as connection:
            reasons = {int(row[0]) for row in connection.execute("SELECT reason FROM audio_config")}
            who = connection.execute("SELECT who FROM settings").fetchone()
        for place, number in newest.items():
            if place == "audio":
                self.assertIn(number, reasons)
            elif place == "setting":
                self.assertGreaterEqual(int(who[0]), number)
            elif place == "thresholds":
                self.assertGreaterEqual(told_by(service.thresholds), number)
            else:
                name = service.channels[place[1] - 1].name
                self.assertTrue(name.endswith(" 🎸"), name)
                self.assertGreaterEqual(int(name.split()[0]), number)
