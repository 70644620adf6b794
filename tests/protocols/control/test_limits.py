"""The bucket that measures rates; how urgent which message is (CON-21)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.control import messages
from protocols.control.limits import TokenBucket
from protocols.control.outgoing import Priority, outgoing, priority_of


class TokenBucketTests(unittest.TestCase):
    def test_burst_then_rate(self):
        bucket = TokenBucket(10, 3, now=100.0)
        self.assertEqual([bucket.take(1, 100.0) for _ in range(4)], [True, True, True, False])
        self.assertFalse(bucket.take(1, 100.09))
        self.assertTrue(bucket.take(1, 100.11))
        self.assertFalse(bucket.take(1, 100.12))

    def test_never_more_than_the_burst(self):
        bucket = TokenBucket(10, 3, now=0.0)
        self.assertFalse(bucket.take(4, 1e6))
        self.assertTrue(bucket.take(3, 1e6))

    def test_a_clock_that_stands_or_goes_back(self):
        bucket = TokenBucket(10, 1, now=5.0)
        self.assertTrue(bucket.take(1, 4.0))
        self.assertFalse(bucket.take(1, 3.0))
        self.assertFalse(bucket.take(1, 5.0))

    @given(st.lists(st.floats(0, 0.05), max_size=200))
    def test_the_long_run(self, gaps):
        """Whatever the pattern: no more than the burst and the rate allow."""
        bucket, now, taken = TokenBucket(50, 5, 0.0), 0.0, 0
        for gap in gaps:
            now += gap
            taken += bucket.take(1, now)
        self.assertLessEqual(taken, 5 + 50 * now + 1e-6)


class PriorityTests(unittest.TestCase):
    def test_by_message(self):
        """CON-21: system, answers, others, statistics."""
        event = messages.Event
        self.assertEqual(priority_of(event("server_shutdown", "x")), Priority.CRITICAL)
        self.assertEqual(priority_of(messages.Welcome("c")), Priority.HIGH)
        self.assertEqual(priority_of(event("custom_message", "x")), Priority.NORMAL)
        self.assertEqual(priority_of(event("network_warning", "x")), Priority.LOW)
        self.assertEqual(priority_of(messages.Meters((-3,))), Priority.LOW)
        for name in ("reconnect", "serverMigration", "migrationCancelled"):
            self.assertEqual(priority_of(event(name, "x")), Priority.CRITICAL)

    def test_what_replaces_what(self):
        """CON-21: all levels make older ones worthless; some levels do not."""
        self.assertEqual(outgoing(messages.Meters((-3, -4))).replaces, "meters")
        self.assertIsNone(outgoing(messages.Meters((-3,), (2,))).replaces)
        warning = outgoing(messages.Event("network_warning", "x"))
        self.assertEqual(warning.replaces, "network_warning")
        self.assertIsNone(outgoing(messages.Event("custom_message", "x")).replaces)
