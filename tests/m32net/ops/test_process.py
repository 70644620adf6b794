"""STR-37: server_cpu_usage and server_memory_usage are measured."""

from __future__ import annotations

import resource
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.ops import process
from m32net.ops.process import WINDOW, ProcessMeter, resident_bytes


class Cpu(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.used = 0.0
        self.meter = ProcessMeter(self.clock, lambda: self.used, self.clock.seconds)
        self.meter.startService()
        self.addCleanup(self.meter.stopService)

    def run_for(self, seconds: int, load: float) -> None:
        for _ in range(seconds):
            self.used += load
            self.clock.advance(1)

    def test_start(self) -> None:
        self.assertEqual(self.meter.cpu_percent(), 0.0)

    def test_steady(self) -> None:
        self.run_for(10, 0.25)
        self.assertAlmostEqual(self.meter.cpu_percent(), 25.0)

    def test_only_the_last_seconds(self) -> None:
        self.run_for(60, 1.5)
        self.assertAlmostEqual(self.meter.cpu_percent(), 150.0)
        self.run_for(WINDOW + 1, 0.0)
        self.assertEqual(self.meter.cpu_percent(), 0.0)

    def test_stopped(self) -> None:
        self.meter.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Memory(unittest.SynchronousTestCase):
    def test_measured(self) -> None:
        """What /proc says lies between a megabyte and the peak."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.assertTrue(1e6 < resident_bytes() <= peak * 1.1, resident_bytes())
        self.assertLess(abs(ProcessMeter(Clock()).memory_mb() - resident_bytes() / 1e6), 5)

    def test_without_proc(self) -> None:
        self.patch(process, "_STATM", Path("/nowhere"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.assertEqual(resident_bytes(), peak)
