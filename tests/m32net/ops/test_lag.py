"""CON-40: the event loop's lag is measured, and a loop that is late shows on /health."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.ops.lag import ENOUGH, INTERVAL_S, LagRecord, LoopMeter


class Record(unittest.SynchronousTestCase):
    @given(st.lists(st.floats(-1, 100), max_size=300))
    def test_quantiles_and_histogram(self, samples: list[float]) -> None:
        """CON-40: quantiles are samples of the window, buckets count all that fit."""
        record = LagRecord(100)
        for sample in samples:
            record.add(sample)
        figures, window = record.figures(), sorted(max(0.0, s) for s in samples[-100:])
        self.assertEqual(figures.samples, len(window))
        if window:
            self.assertEqual(figures.max, window[-1])
            self.assertEqual(figures.p50, window[math.ceil(len(window) * 0.5) - 1])
            self.assertEqual(figures.p99, window[math.ceil(len(window) * 0.99) - 1])
        histogram = record.histogram()
        self.assertEqual(histogram.buckets[-1], ("+Inf", len(samples)))
        for bound, count in histogram.buckets[:-1]:
            self.assertEqual(count, sum(max(0.0, s) <= float(bound) for s in samples))
        self.assertAlmostEqual(histogram.total, sum(max(0.0, s) for s in samples))

    def test_empty(self) -> None:
        """CON-40: nothing measured yet is zero, not an error."""
        self.assertEqual(LagRecord(10).figures().max, 0.0)
        self.assertEqual(LagRecord(10).histogram().buckets[-1], ("+Inf", 0.0))


class Meter(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.meter = LoopMeter(self.clock)
        self.meter.startService()
        self.clock.advance(0)

    def turn(self, times: int, late_s: float = 0.0) -> None:
        """The loop comes round so late each time."""
        for _ in range(times):
            self.clock.advance(INTERVAL_S + late_s)

    def test_a_loop_in_time(self) -> None:
        """CON-40: no lag, no complaint."""
        self.turn(1200)
        self.assertLess(self.meter.record.figures().max, 1e-6)
        self.assertEqual(self.meter.health().state, "healthy")

    def test_lateness_is_measured(self) -> None:
        """CON-40: what is measured is how late the timer came."""
        self.turn(60)
        self.turn(60, 0.03)
        figures = self.meter.figures()
        self.assertAlmostEqual(figures["event_loop_lag_max_seconds"], 0.03)
        self.assertAlmostEqual(figures["event_loop_lag_p99_seconds"], 0.03)
        self.assertAlmostEqual(figures["event_loop_lag_p50_seconds"], 0.0, places=6)

    def test_one_hiccup_is_no_fault(self) -> None:
        """CON-40: a single stop of two seconds is in the figures and not in the verdict."""
        self.turn(600)
        self.turn(1, 2.0)
        self.assertAlmostEqual(self.meter.record.figures().max, 2.0)
        self.assertEqual(self.meter.health().state, "healthy")

    def test_often_late_is_degraded(self) -> None:
        """CON-40: more than one turn in a hundred that is heard."""
        self.turn(980)
        self.turn(20, 0.08)
        health = self.meter.health()
        self.assertEqual(health.state, "degraded")
        self.assertIn("80 ms", health.reasons[0])

    def test_mostly_late_is_unhealthy(self) -> None:
        """CON-40: a loop that half of everything waits for serves nobody."""
        self.turn(200, 0.15)
        self.assertEqual(self.meter.health().state, "unhealthy")

    def test_it_passes(self) -> None:
        """CON-40: a minute later it is forgotten, and stays in the histogram."""
        self.turn(200, 0.15)
        self.turn(1200)
        self.assertEqual(self.meter.health().state, "healthy")
        within = dict(self.meter.record.histogram().buckets)
        self.assertEqual(within["+Inf"] - within["0.1"], 200)

    def test_not_judged_at_the_start(self) -> None:
        """CON-40: the first seconds are not judged."""
        self.turn(ENOUGH - 1, 0.2)
        self.assertEqual(self.meter.health().state, "healthy")
        self.turn(1, 0.2)
        self.assertEqual(self.meter.health().state, "unhealthy")

    def test_stopped(self) -> None:
        """CON-40: nothing stays behind, stopped before or after its first turn."""
        self.meter.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        other = LoopMeter(self.clock)
        other.startService()
        other.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
