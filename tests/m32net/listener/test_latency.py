"""CLK-2: latency is (receive time + offset) - send time, from the packets that carry it."""

from __future__ import annotations

from twisted.trial import unittest

from m32net.listener.latency import LatencyMeter

MS = 1_000_000


class LatencyTest(unittest.TestCase):
    def test_offset_is_applied(self) -> None:
        meter = LatencyMeter()
        meter.offset_ns = 40 * MS
        meter.received(1000 * MS, 1035 * MS)
        self.assertEqual(meter.last_ms, 5.0)

    def test_nothing_before_the_clock_is_known(self) -> None:
        meter = LatencyMeter()
        meter.received(1000 * MS, 900 * MS)
        self.assertIsNone(meter.last_ms)
        self.assertIsNone(meter.take_recent())
        self.assertIsNone(meter.quantile(0.5))

    def test_a_better_offset_counts_for_what_came_lately(self) -> None:
        """The first packets come before the clocks are well compared."""
        meter = LatencyMeter()
        meter.offset_ns = 30 * MS
        for _ in range(10):
            meter.received(1000 * MS, 1020 * MS)
        meter.offset_ns = 25 * MS
        self.assertEqual(meter.quantile(0.5), 5.0)
        self.assertEqual(meter.last_ms, 5.0)

    def test_an_old_sample_keeps_the_offset_of_its_time(self) -> None:
        meter = LatencyMeter()
        meter.offset_ns = 0
        for number in range(100):
            meter.received(number * MS, number * MS - 7 * MS)
        meter.received(60_000 * MS, 60_000 * MS - 7 * MS)
        meter.offset_ns = 1000 * MS
        self.assertEqual(meter.quantile(0.5), 7.0)

    def test_quantiles(self) -> None:
        meter = LatencyMeter()
        meter.offset_ns = 0
        for number in range(1000):
            meter.received(number * 60 * MS, number * 60 * MS - (number % 100) * MS // 10)
        self.assertEqual(meter.quantile(0.5), 4.9)
        self.assertEqual(meter.quantile(0.99), 9.8)
        self.assertEqual(meter.quantile(1.0), 9.9)
        recent = meter.take_recent()
        assert recent is not None
        self.assertApproximates(recent[0], 5.0, 0.11)
        self.assertIsNone(meter.take_recent())

    def test_less_than_nothing_is_the_clocks_error(self) -> None:
        meter = LatencyMeter()
        meter.offset_ns = 0
        meter.received(0, 3 * MS)
        self.assertEqual(meter.last_ms, -3.0)
        self.assertEqual(meter.quantile(0.5), 0.0)

    def test_memory_is_bounded(self) -> None:
        meter = LatencyMeter()
        for _ in range(50_000):
            meter.received(0, 0)
        self.assertLessEqual(len(meter._waiting), 20_000)
        self.assertLessEqual(len(meter._recent), 20_000)
