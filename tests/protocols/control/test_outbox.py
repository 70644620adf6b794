"""CON-11, CON-21: what waits for a slow reader, in which order, for how long, and what goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.control.outbox import Outbox
from protocols.control.outgoing import Outgoing, Priority, ping

CRITICAL, HIGH, NORMAL, LOW = Priority


def frame(priority=HIGH, size=10, replaces=None):
    return Outgoing(b"x" * size, priority, replaces)


def paused(limit=100, **options):
    box = Outbox(limit, **options)
    box.paused = True
    return box


def drain(box, now=0.0, **options):
    return [item.data for item in iter(lambda: box.take(now, **options), None)]


class OrderTests(unittest.TestCase):
    def test_first_in_first_out(self):
        """CON-21: within one priority."""
        box = Outbox(100)
        for name in (b"a", b"b", b"c"):
            box.put(Outgoing(name, LOW), 0.0)
        self.assertEqual(drain(box), [b"a", b"b", b"c"])
        self.assertEqual((box.size, len(box)), (0, 0))

    def test_by_priority(self):
        """CON-21: CRITICAL, HIGH, NORMAL, LOW."""
        box = paused()
        for name, priority in ((b"l", LOW), (b"n", NORMAL), (b"h", HIGH), (b"c", CRITICAL)):
            box.put(Outgoing(name, priority), 0.0)
        self.assertEqual(drain(box, all_of_it=True), [b"c", b"h", b"n", b"l"])

    def test_paused_keeps(self):
        box = paused()
        self.assertTrue(box.put(frame(), 0.0))
        self.assertIsNone(box.take(0.0))
        self.assertEqual(box.size, 10)
        self.assertEqual(len(drain(box, all_of_it=True)), 1)

    def test_of_pings_the_newest(self):
        """CON-10: a peer that reads again is asked once."""
        box = paused()
        for number in range(5):
            box.put(ping(bytes([number] * 8)), 0.0)
        self.assertEqual(drain(box, all_of_it=True), [b"\4" * 8])


class RoomTests(unittest.TestCase):
    def test_low_goes_first(self):
        """CON-21: the oldest LOW make room, as many as it takes, and are counted."""
        box = paused(30)
        box.put(frame(LOW), 0.0), box.put(frame(HIGH), 0.0), box.put(frame(LOW), 0.0)
        self.assertFalse(box.put(frame(LOW), 0.0))
        self.assertEqual(box.dropped, 1)
        self.assertTrue(box.put(frame(CRITICAL), 0.0))
        self.assertEqual((box.dropped, box.size, box.overrun), (2, 30, False))
        self.assertTrue(box.put(frame(NORMAL), 0.0))
        self.assertEqual((box.dropped, box.size, box.overrun), (3, 30, False))

    def test_then_normal(self):
        """CON-21."""
        box = paused(30)
        for priority in (NORMAL, LOW, NORMAL):
            box.put(frame(priority), 0.0)
        self.assertTrue(box.put(frame(HIGH, 20), 0.0))
        self.assertEqual((box.dropped, box.size), (2, 30))
        self.assertFalse(box.put(frame(NORMAL), 0.0))
        self.assertFalse(box.overrun, "what is not urgent ends no connection")

    def test_overrun(self):
        """CON-21: answers that find no room end the connection."""
        box = paused(30)
        for _ in range(3):
            self.assertTrue(box.put(frame(HIGH), 0.0))
        self.assertFalse(box.put(frame(CRITICAL), 0.0))
        self.assertTrue(box.overrun)

    def test_many_small_ones(self):
        """CON-21: bounded in messages too."""
        box = paused(10_000, messages=3)
        self.assertEqual([box.put(frame(LOW, 1), 0.0) for _ in range(4)], [True] * 3 + [False])
        self.assertTrue(box.put(frame(HIGH, 1), 0.0))
        self.assertEqual((len(box), box.dropped), (3, 2))

    def test_the_newest_of_a_kind(self):
        box = paused(25)
        box.put(Outgoing(b"old", LOW, "meters"), 0.0)
        box.put(Outgoing(b"other", LOW), 0.0)
        box.put(Outgoing(b"new", LOW, "meters"), 0.0)
        self.assertEqual(box.dropped, 1)
        self.assertEqual(drain(box, all_of_it=True), [b"other", b"new"])


class TimeTests(unittest.TestCase):
    def test_30_s(self):
        """CON-11: from when it was put; then it is neither sent nor kept."""
        box = paused()
        box.put(Outgoing(b"first", NORMAL), 0.0)
        box.put(Outgoing(b"second", CRITICAL), 0.1)
        box.paused = False
        self.assertEqual(drain(box, 30.0), [b"second"])
        self.assertEqual((box.expired, box.dropped, box.size), (1, 0, 0))

    def test_what_expired_makes_room(self):
        """CON-11."""
        box = paused(10)
        box.put(frame(HIGH), 0.0)
        self.assertTrue(box.put(frame(HIGH), 30.0))
        self.assertFalse(box.overrun)

    def test_shorter(self):
        box = paused(ttl_s=2.0)
        box.put(frame(), 0.0)
        box.expire(1.9)
        self.assertEqual(len(box), 1)
        box.expire(2.0)
        self.assertEqual((len(box), box.expired), (0, 1))


class AlwaysTests(unittest.TestCase):
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(Priority),
                st.integers(0, 40),
                st.booleans(),
                st.floats(0, 20),
                st.sampled_from((None, None, "a", "b")),
            )
        )
    )
    def test_bounded(self, steps):
        """CON-11, CON-21: however it is used, nothing is lost without being counted, nothing is
        beyond the bounds while paused, nothing is older than its time when it leaves."""
        box = paused(100, messages=5)
        now, put, taken = 0.0, 0, 0
        for priority, size, take, later, kind in steps:
            now += later
            put += 1
            box.put(Outgoing(repr(now).encode().ljust(size, b" ")[:40], priority, kind), now)
            self.assertLessEqual(box.size, 100)
            self.assertLessEqual(len(box), 5)
            if take and (item := box.take(now, all_of_it=True)) is not None:
                taken += 1
                self.assertGreater(float(item.data) + 30, now - 1e-6)
        rest = drain(box, now, all_of_it=True)
        self.assertEqual(taken + len(rest) + box.dropped + box.expired, put)
        self.assertEqual((box.size, len(box)), (0, 0))
