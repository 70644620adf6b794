"""STR-2: captured time runs forwards, whatever the arrivals and the wall clock do."""

from __future__ import annotations

import random

from twisted.trial import unittest

from m32net.audio.capture_clock import CaptureClock
from m32net.audio.clock import NS, SystemClock, WallTime, ns_to_samples, samples_to_ns
from tests.support.audio import UNIX_2025, FakeClock

BLOCK = 128


class WallTimeTests(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.wall = WallTime(self.clock)

    def test_follows_a_slewed_clock_forwards(self) -> None:
        """NTP steers by 300 ppm: never backwards, and never off by more than a little."""
        last = 0
        for _ in range(2000):
            self.clock.advance(0.005)
            self.clock.wall_ahead -= 1500
            at = self.wall.at(self.clock.now)
            self.assertGreater(at, last)
            self.assertLess(abs(at - self.clock.realtime_ns()), 10_000)
            last = at

    def test_small_steps_are_taken_up_slowly(self) -> None:
        self.clock.wall_ahead -= 20_000_000
        first = self.wall.at(self.clock.now)
        self.clock.advance(0.005)
        second = self.wall.at(self.clock.now)
        self.assertGreater(second, first)
        self.clock.advance(60)
        self.assertLess(abs(self.wall.at(self.clock.now) - self.clock.realtime_ns()), 1000)

    def test_a_clock_that_was_set_is_followed_at_once(self) -> None:
        for hours in (1, -2):
            self.clock.wall_ahead += hours * 3600 * NS
            self.clock.advance(0.005)
            self.assertEqual(self.wall.at(self.clock.now), self.clock.realtime_ns())

    def test_the_same_moment_asked_twice_moves_on(self) -> None:
        self.assertLess(self.wall.at(self.clock.now), self.wall.at(self.clock.now))

    def test_the_machines_clocks(self) -> None:
        clock = SystemClock()
        began = clock.monotonic_ns()
        clock.sleep_until(began + 2_000_000)
        self.assertGreaterEqual(clock.monotonic_ns(), began + 2_000_000)
        clock.sleep_until(began)
        self.assertGreater(clock.realtime_ns(), UNIX_2025)
        self.assertEqual(ns_to_samples(samples_to_ns(48_000)), 48_000)


class CaptureClockTests(unittest.TestCase):
    """Arrivals as PortAudio gives them on PulseAudio: std 2 ms, up to 15 ms late."""

    def setUp(self) -> None:
        self.random = random.Random(7)
        self.clock = CaptureClock(0, 0)
        self.end = 0
        self.true_ns = 0.0
        self.found: list[tuple[int, int]] = []

    def run_device(self, seconds: float, *, ppm: float = 0.0, late_ns: int = 0) -> None:
        for _ in range(round(seconds * 48_000 / BLOCK)):
            self.end += BLOCK
            self.true_ns += BLOCK * NS / 48_000 * (1 + ppm / 1e6)
            late = min(15e6, abs(self.random.gauss(0, 2e6)))
            shortfall = self.clock.observe(self.end, round(self.true_ns + late_ns + late))
            if shortfall:
                self.found.append((shortfall.samples, shortfall.skip))
                self.end += shortfall.skip

    def error_ms(self) -> float:
        return (self.clock.time_ns(self.end) - self.true_ns) / 1e6

    def test_bursts_are_smoothed_and_are_no_loss(self) -> None:
        last = -1
        errors = []
        for _ in range(60 * 375):
            self.run_device(BLOCK / 48_000)
            at = self.clock.time_ns(self.end)
            self.assertGreater(at, last)
            last = at
            errors.append(self.error_ms())
        self.assertEqual(self.found, [])
        self.assertLess(max(errors[375 * 5 :]) - min(errors[375 * 5 :]), 0.5)

    def test_follows_drift(self) -> None:
        """A card 100 ppm fast: an hour's error would be 0.36 s, an open loop's."""
        self.run_device(120, ppm=100)
        self.assertLess(abs(self.error_ms()), 1.5)
        self.assertEqual(self.found, [])

    def test_missing_blocks_are_noticed(self) -> None:
        """Ten blocks of 128 vanish without a flag: counted, and the positions jump by 20 ms."""
        self.run_device(10)
        self.true_ns += 10 * BLOCK * NS / 48_000
        self.run_device(10)
        self.assertEqual(len(self.found), 1)
        samples, skip = self.found[0]
        self.assertLess(abs(samples - 10 * BLOCK), BLOCK)
        self.assertEqual(skip, 960)
        self.run_device(60)
        self.assertLess(abs(self.error_ms()), 1.0)

    def test_a_few_missing_blocks_are_counted_without_a_jump(self) -> None:
        self.run_device(10)
        self.true_ns += 2 * BLOCK * NS / 48_000
        self.run_device(10)
        self.assertEqual([skip for _, skip in self.found], [0])

    def test_one_stall_is_no_loss(self) -> None:
        """The machine hangs for 300 ms, then everything comes at once."""
        self.run_device(10)
        for _ in range(112):
            self.end += BLOCK
            self.true_ns += BLOCK * NS / 48_000
        self.clock.observe(self.end, round(self.true_ns + 1e6))
        self.run_device(10)
        self.assertEqual(self.found, [])

    def test_a_second_of_lateness_is_no_loss(self) -> None:
        """The machine is overloaded for a while, then as punctual as before."""
        self.run_device(10)
        self.run_device(1.2, late_ns=8_000_000)
        self.run_device(10)
        self.assertEqual(self.found, [])

    def test_time_runs_forwards_over_a_loss(self) -> None:
        last = -1
        for stretch in range(20):
            for _ in range(375):
                self.run_device(BLOCK / 48_000)
                at = self.clock.time_ns(self.end)
                self.assertGreater(at, last, f"stretch {stretch}")
                last = at
            self.true_ns += 40_000_000 * (stretch % 4 == 2)
        self.assertGreater(len(self.found), 2)

    def test_an_early_start_is_corrected(self) -> None:
        """The first block came 12 ms late: found out within seconds, not minutes."""
        self.clock = CaptureClock(0, 12_000_000)
        self.run_device(4)
        self.assertLess(abs(self.error_ms()), 3.0)
