"""CLK-1: offset and delay by the formulas, samples over 100 ms refused, the best of the last 8."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.clock.ntp import NtpFilter, NtpSample

millis = st.floats(0, 4e12, allow_nan=False)
delays = st.floats(0.0, 60.0)


def sample(offset: float, out: float, back: float, at: float = 1e6, held: float = 0.5):
    """The stamps of a request that took ``out`` ms there and ``back`` ms back."""
    t2 = at + out + offset
    t3 = t2 + held
    return at, t2, t3, t3 - offset + back


class FormulaTests(unittest.TestCase):
    def test_as_in_the_specification(self):
        got = NtpSample(1721123456789, 1721123456795, 1721123456796, 1721123456800)
        self.assertEqual(got.delay, (800 - 789) - (796 - 795))
        self.assertEqual(got.offset, ((795 - 789) + (796 - 800)) / 2)

    def test_integer_nanoseconds(self):
        base = 1721123456789000000
        got = NtpSample(base, base + 5_000_250, base + 5_000_500, base + 1_000_750)
        self.assertEqual((got.delay, got.offset), (1_000_500, 4_500_000))

    @given(st.floats(-1e6, 1e6), delays, delays)
    def test_wrong_by_at_most_half_the_delay(self, offset, out, back):
        got = NtpSample(*sample(offset, out, back))
        self.assertAlmostEqual(got.delay, out + back, places=5)
        self.assertLessEqual(abs(got.offset - offset), (out + back) / 2 + 1e-5)

    @given(st.floats(-1e6, 1e6), delays)
    def test_exact_when_both_ways_are_equal(self, offset, way):
        self.assertAlmostEqual(NtpSample(*sample(offset, way, way)).offset, offset, places=5)


class FilterTests(unittest.TestCase):
    def test_empty(self):
        empty = NtpFilter()
        self.assertEqual((empty.best, empty.offset, empty.delay, len(empty)), (None,) * 3 + (0,))

    def test_refuses_over_100_ms(self):
        """CLK-1: 100 ms is taken, anything over is not."""
        clock = NtpFilter()
        self.assertTrue(clock.add(1000, 1050, 1050, 1100))
        self.assertFalse(clock.add(1000, 1050, 1050, 1100.001))
        self.assertEqual((clock.refused, len(clock)), (1, 1))

    def test_the_limit_is_a_setting(self):
        clock = NtpFilter(max_delay=5)
        self.assertFalse(clock.add(*sample(0, 3, 3)))
        self.assertTrue(clock.add(*sample(0, 2, 2)))

    def test_refuses_what_cannot_be(self):
        clock = NtpFilter()
        self.assertFalse(clock.add(1000, 1000, 1010, 1005), "back before it left")
        self.assertFalse(clock.add(math.nan, 0, 0, 0))
        self.assertFalse(clock.add(0, math.inf, math.inf, 0))
        self.assertFalse(clock.add(0, 10**400, 10**400, 0))
        self.assertEqual(clock.refused, 4)

    def test_best_of_the_last_eight(self):
        """CLK-1: the ninth sample pushes the first out, however good it was."""
        clock = NtpFilter()
        clock.add(*sample(7.0, 0.5, 0.5))
        for way in (9, 3, 8, 4, 6, 5, 7):
            clock.add(*sample(way, way, way))
        self.assertEqual((clock.offset, clock.delay), (7.0, 1.0))
        clock.add(*sample(10, 10, 10))
        self.assertEqual((clock.offset, clock.delay), (3.0, 6.0))
        self.assertEqual(len(clock), 8)

    def test_the_newer_of_equals(self):
        clock = NtpFilter()
        clock.add(*sample(1.0, 2, 2))
        clock.add(*sample(5.0, 2, 2))
        self.assertEqual(clock.offset, 5.0)

    def test_clear(self):
        clock = NtpFilter()
        clock.add(*sample(1.0, 2, 2))
        clock.clear()
        self.assertIsNone(clock.offset)

    def test_a_window_of_none(self):
        with self.assertRaises(ValueError):
            NtpFilter(window=0)

    @given(st.lists(st.tuples(*[st.floats() | st.integers()] * 4), max_size=20))
    def test_any_numbers(self, stamps):
        """Whatever a server answers, the filter holds only possible samples."""
        clock = NtpFilter()
        taken = [clock.add(*four) for four in stamps]
        self.assertEqual(sum(taken) + clock.refused, len(stamps))
        self.assertEqual(len(clock), min(sum(taken), 8))
        if clock.best is not None:
            self.assertTrue(0 <= clock.best.delay <= 100)
            self.assertTrue(math.isfinite(clock.best.offset))
