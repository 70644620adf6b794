"""STR-37: server_cpu_usage and server_memory_usage are measured."""

from __future__ import annotations

import gc
import resource
import time
import weakref
from pathlib import Path

from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.ops import process
from m32net.ops.process import (
    FILES_BESIDES,
    FULL_SEARCH_AFTER,
    WINDOW,
    ProcessMeter,
    resident_bytes,
    spare_the_collector,
    steady_timers,
    too_few_files,
)


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


class SteadyTimers(unittest.SynchronousTestCase):
    """STR-5: a clock that is set must neither end streams nor keep them."""

    def setUp(self) -> None:
        self.wall_s = 1_000_000.0
        self.reactor = SelectReactor()
        self.reactor.seconds = lambda: self.wall_s  # type: ignore[method-assign]
        self.addCleanup(lambda: [one.connectionLost(None) for one in self.reactor.removeAll()])
        self.fired: list[int] = []

    def turn_until(self, deadline: float) -> None:
        while not self.fired and time.monotonic() < deadline:
            self.reactor.iterate(0.005)

    def test_clock_set_back(self) -> None:
        steady_timers(self.reactor)
        self.reactor.callLater(0.01, self.fired.append, 1)
        self.wall_s -= 3600
        self.turn_until(time.monotonic() + 5)
        self.assertEqual(self.fired, [1])

    def test_what_is_under_way_stays_on_its_clock(self) -> None:
        self.reactor.callLater(1, self.fired.append, 1)
        steady_timers(self.reactor)
        self.wall_s += 2
        self.turn_until(time.monotonic() + 5)
        self.assertEqual(self.fired, [1])


class Files(unittest.SynchronousTestCase):
    def test_enough(self) -> None:
        self.assertEqual(too_few_files(100 + FILES_BESIDES, 100), "")
        self.assertEqual(too_few_files(resource.RLIM_INFINITY, 10_000), "")

    def test_too_few(self) -> None:
        """CON-2: one line: which limit, what it is enough for, what to do."""
        line = too_few_files(128, 100)
        self.assertNotIn("\n", line)
        for part in (
            "open files is 128",
            "100 connections",
            "64 will",
            "ulimit -n 164",
            "NOFILE=164",
        ):
            self.assertIn(part, line)
        self.assertIn("About 0 will", too_few_files(40, 100))


class Collector(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        self.addCleanup(gc.unfreeze)

    def test_what_has_started_is_left_alone(self) -> None:
        """CON-2: full searches are rare and do not look at what stays anyway."""
        spare_the_collector()
        self.assertGreater(gc.get_freeze_count(), 10_000)
        self.assertEqual(gc.get_threshold()[2], FULL_SEARCH_AFTER)
        self.assertLess(len(gc.get_objects()), gc.get_freeze_count() / 10)

    def test_garbage_is_not_kept_for_ever(self) -> None:
        """CON-2: what was alive at one time and is garbage at the next is found then."""
        loop = Loop()
        loop.itself = loop
        gone = weakref.ref(loop)
        spare_the_collector()
        del loop
        self.assertIsNotNone(gone())
        spare_the_collector()
        self.assertIsNone(gone())


class Loop:
    itself: Loop | None = None
