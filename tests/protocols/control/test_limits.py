"""The bucket that measures rates; the bounded outbox (a first part of CON-21)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.control import messages
from protocols.control.limits import TokenBucket
from protocols.control.outbox import Outbox
from protocols.control.outgoing import Outgoing, Priority, priority_of


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


def frame(priority=Priority.HIGH, size=10):
    return Outgoing(b"x" * size, priority)


class OutboxTests(unittest.TestCase):
    def drain(self, box, **options):
        return list(iter(lambda: box.take(**options), None))

    def test_in_order(self):
        box = Outbox(100)
        for name in (b"a", b"b", b"c"):
            box.put(Outgoing(name, Priority.LOW))
        self.assertEqual(self.drain(box), [b"a", b"b", b"c"])
        self.assertEqual(box.size, 0)

    def test_paused_keeps(self):
        box = Outbox(100)
        box.paused = True
        self.assertTrue(box.put(frame()))
        self.assertIsNone(box.take())
        self.assertEqual(box.size, 10)
        self.assertEqual(len(self.drain(box, all_of_it=True)), 1)

    def test_low_goes_first(self):
        """CON-21: at the bound LOW is dropped, and counted; what matters stays."""
        box = Outbox(30)
        box.paused = True
        box.put(frame(Priority.LOW)), box.put(frame(Priority.HIGH)), box.put(frame(Priority.LOW))
        self.assertFalse(box.put(frame(Priority.LOW)))
        self.assertEqual(box.dropped, 1)
        self.assertTrue(box.put(frame(Priority.CRITICAL)))
        self.assertEqual((box.dropped, box.size, box.overrun), (3, 20, False))

    def test_overrun(self):
        box = Outbox(30)
        box.paused = True
        for _ in range(3):
            self.assertTrue(box.put(frame(Priority.NORMAL)))
        self.assertFalse(box.put(frame(Priority.NORMAL)))
        self.assertTrue(box.overrun)

    @given(st.lists(st.tuples(st.sampled_from(Priority), st.integers(0, 40), st.booleans())))
    def test_bounded(self, steps):
        """However it is used: the size is that of what waits, and under the bound when paused."""
        box = Outbox(100)
        box.paused = True
        put = taken = 0
        for priority, size, take in steps:
            put += 1
            box.put(frame(priority, size))
            self.assertLessEqual(box.size, 100)
            if take and (data := box.take(all_of_it=True)) is not None:
                taken += 1
                self.assertGreaterEqual(box.size, 0, data)
        rest = self.drain(box, all_of_it=True)
        self.assertEqual(taken + len(rest) + box.dropped, put)
        self.assertEqual(box.size, 0)


class PriorityTests(unittest.TestCase):
    def test_by_message(self):
        """CON-21: system, answers, others, statistics."""
        event = messages.Event
        self.assertEqual(priority_of(event("server_shutdown", "x")), Priority.CRITICAL)
        self.assertEqual(priority_of(messages.Welcome("c")), Priority.HIGH)
        self.assertEqual(priority_of(event("custom_message", "x")), Priority.NORMAL)
        self.assertEqual(priority_of(event("network_warning", "x")), Priority.LOW)
