"""CON-10, CON-13: pings in time, round trips, and peers that do not answer."""

from __future__ import annotations

import random
import statistics

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial import unittest

from m32net.interfaces import ControlQuality as EngineersView
from protocols.control import events as e
from protocols.control import messages as m
from protocols.control.limits import ServerLimits
from protocols.control.liveness import Liveness
from protocols.control.quality import ControlQuality, RoundTrips
from tests.protocols.control.test_protocol import Server
from tests.support.websocket import CLOSE, PING, PONG, TEXT, frame


def live(random_number=0.0, interval=30.0, timeout=90.0, now=0.0):
    return Liveness(now, interval, timeout, lambda: random_number)


class ScheduleTests(unittest.TestCase):
    def test_the_first_ping(self):
        """CON-10: after a random 1..59 s, then every 30 s."""
        for number, at in ((0.0, 1.0), (0.5, 30.0), (0.9999999, 59.0)):
            schedule = live(number, now=100.0)
            self.assertAlmostEqual(schedule.next_timer(), 100.0 + at, places=4)
            self.assertIsNone(schedule.ping(100.0 + at - 0.01))
            first = schedule.ping(100.0 + at)
            self.assertIsNotNone(first)
            schedule.pong(first, 100.0 + at)
            self.assertAlmostEqual(schedule.next_timer(), 130.0 + at, places=4)

    def test_spread(self):
        """CON-10: who came at once is not asked at once."""
        source = random.Random(3)
        times = [Liveness(0.0, 30.0, 90.0, source.random).next_timer() for _ in range(1000)]
        self.assertLess(min(times), 2)
        self.assertGreater(max(times), 58)
        for start in range(1, 58, 10):
            among = sum(start <= at < start + 10 for at in times)
            self.assertTrue(120 < among < 225, f"{among} of 1000 from {start} s on")

    def test_other_intervals(self):
        """The first comes within twice the interval, whatever that is."""
        self.assertEqual(live(0.5, interval=1.0).next_timer(), 1.0)
        self.assertEqual(live(0.5, interval=10.0).next_timer(), 10.0)
        self.assertGreater(live(0.0, interval=0.2).next_timer(), 0.0)

    def test_90_s(self):
        """CON-10: counted from the first ping that was not answered."""
        schedule = live()
        for at in (1.0, 31.0, 61.0):
            self.assertIsNotNone(schedule.ping(at))
            self.assertFalse(schedule.silent(at))
        self.assertEqual(schedule.next_timer(), 91.0)
        self.assertFalse(schedule.silent(90.9))
        self.assertTrue(schedule.silent(91.0))

    def test_any_answer_is_a_sign_of_life(self):
        """CON-10, RFC 6455 section 5.5.3: only the last ping may be answered, or a late one."""
        schedule = live()
        first, second = schedule.ping(1.0), schedule.ping(31.0)
        self.assertTrue(schedule.pong(first, 60.0))
        self.assertFalse(schedule.silent(120.9))
        self.assertTrue(schedule.silent(121.0))
        self.assertTrue(schedule.pong(second, 60.5))
        self.assertFalse(schedule.silent(1000.0))

    def test_others_pongs(self):
        """RFC 6455 section 5.5.3: unsolicited ones mean nothing, nor does one come twice."""
        schedule = live()
        self.assertFalse(schedule.pong(b"\0" * 8, 0.5), "not asked yet")
        payload = schedule.ping(1.0)
        self.assertFalse(schedule.pong(b"", 1.5))
        self.assertFalse(schedule.pong(payload + b"x", 1.5))
        self.assertTrue(schedule.pong(payload, 2.0))
        self.assertFalse(schedule.pong(payload, 3.0))
        self.assertEqual(schedule.trips.last_ms, 1000.0)

    @given(st.lists(st.tuples(st.floats(0.1, 40), st.integers(0, 5)), max_size=60))
    def test_whatever_comes(self, steps):
        """CON-10: silent exactly when the oldest unanswered ping is 90 s old."""
        schedule, now, asked = live(), 0.0, {}
        for later, which in steps:
            now += later
            if (payload := schedule.ping(now)) is not None:
                asked[payload] = now
            if which < len(asked):
                answered = list(asked)[which]
                at = asked[answered]
                self.assertTrue(schedule.pong(answered, now))
                asked = {one: when for one, when in asked.items() if when > at}
            self.assertEqual(schedule.silent(now), any(now - at >= 90 for at in asked.values()))
            self.assertLessEqual(len(schedule._asked), 1 + now / 30)


class RoundTripTests(unittest.TestCase):
    def test_the_last_100(self):
        """CON-13."""
        trips = RoundTrips()
        self.assertEqual((trips.median_ms, trips.last_ms, trips.loss), (None, None, None))
        for number in range(150):
            trips.took(number)
            trips.settle(answered=number >= 75)
        self.assertEqual(trips.median_ms, 99.5)
        self.assertEqual(trips.last_ms, 149)
        self.assertEqual(trips.loss, 0.25)

    @given(st.lists(st.tuples(st.floats(-1, 1e6), st.booleans()), max_size=250))
    def test_kept_in_order_as_they_come(self, trips):
        """CON-13: what is kept up to date is what the last 100 say."""
        kept = RoundTrips()
        for time, answered in trips:
            kept.took(time)
            kept.settle(answered=answered)
            self.assertLessEqual(len(kept._sorted), 100)
        times = [max(0.0, time) for time, _ in trips][-100:]
        lost = [not answered for _, answered in trips][-100:]
        self.assertEqual(kept.median_ms, statistics.median(times) if times else None)
        self.assertEqual(kept.loss, sum(lost) / len(lost) if lost else None)

    def test_reading_does_not_sort(self):
        """CON-2: a thousand listeners are looked at in one go, each with 100 round trips."""
        compared = []

        class Counted(float):
            def __lt__(self, other):
                compared.append(None)
                return float(self) < float(other)

        trips = RoundTrips()
        for number in range(100):
            trips.took(Counted(number * 37 % 100))
        self.assertLess(len(compared), 800, "log2(100) for each")
        compared.clear()
        self.assertEqual(trips.median_ms, 49.5)
        self.assertEqual(compared, [])

    def test_unanswered_before_the_next(self):
        """CON-13."""
        schedule = live()
        schedule.ping(1.0)
        schedule.pong(schedule.ping(31.0), 31.02)
        schedule.ping(61.0)
        self.assertEqual(schedule.trips.loss, 0.5, "the third may be answered still")
        self.assertAlmostEqual(schedule.trips.last_ms, 20)


class ShellTests(unittest.TestCase):
    def setUp(self):
        self.server = Server(random=lambda: 0.0)
        self.client = self.server.client()
        self.client.say(type="client_config")
        self.client.heard()

    def at(self, second):
        """Go there by steps, with heartbeats; what was heard on the way."""
        heard = []
        while self.server.clock.seconds() < second:
            self.server.clock.advance(min(1.0, second - self.server.clock.seconds()))
            self.client.say(type="heartbeat")
            heard += self.client.heard()
        return heard

    def test_pings(self):
        """CON-10: on the wire at 1, 31 and 61 s, each with another payload."""
        pings = []
        for until in (1.0, 31.0, 61.0):
            (found,) = self.at(until)
            self.assertEqual(found[0], PING)
            pings.append(found[1])
            self.client.feed(frame(PONG, found[1]))
            self.assertEqual(self.at(until + 29), [])
        self.assertEqual(len(set(pings)), 3)

    def test_no_pong(self):
        """CON-10: 90 s, though heartbeats come: whoever sends them does not hear us."""
        self.at(90.9)
        self.assertNotIsInstance(self.server.told[-1], e.SessionClosed)
        (_, close) = self.at(91.0)[-1], self.server.told[-1]
        reason = "no answer to pings for 90 s"
        self.assertEqual(close, e.SessionClosed("silent", 1008, reason))
        self.client.lose(Failure(ConnectionLost()))
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_the_close_frame_says_so(self):
        """CON-10: for those who hear it after all."""
        heard = self.at(92)
        self.assertEqual(heard[-1], (CLOSE, b"\x03\xf0no answer to pings for 90 s"))

    def test_settings(self):
        """CON-10."""
        self.server = Server(
            limits=ServerLimits(ping_interval_s=5, pong_timeout_s=12), random=lambda: 0.0
        )
        self.client = self.server.client()
        self.client.say(type="client_config")
        heard = self.at(13)
        self.assertEqual([opcode for opcode, _ in heard], [PING, PING, PING, CLOSE])

    def test_a_ping_comes_first(self):
        """CON-10, CON-21: it waits behind nothing."""
        self.client.transport.producer.pauseProducing()
        self.server.connections[0].send(m.Error("x", "y"))
        self.assertEqual(self.at(1.0), [])
        self.client.transport.producer.resumeProducing()
        self.assertEqual([opcode for opcode, _ in self.client.heard()], [PING, TEXT])

    def test_quality(self):
        """CON-13: round trip, loss, idle, messages and bytes each way."""
        connection = self.server.connections[0]
        before = connection.quality(0.0)
        self.assertEqual((before.rtt_ms, before.rtt_last_ms, before.loss), (None, None, None))
        self.assertEqual((before.messages_received, before.messages_sent), (1, 0))
        ((_, payload),) = self.at(1.0)
        self.server.clock.advance(0.25)
        self.client.feed(frame(PONG, payload))
        connection.send(m.Event("custom_message", "hello"))
        sent = len(self.client.transport.value())
        self.server.clock.advance(2)
        after = connection.quality(self.server.clock.seconds())
        self.assertEqual((after.rtt_ms, after.rtt_last_ms, after.loss), (250.0, 250.0, 0.0))
        self.assertEqual(after.idle_s, 2.0)
        self.assertEqual((after.messages_received, after.messages_sent), (2, 1))
        beat = len(frame(TEXT, b'{"type": "heartbeat"}'))
        pong = len(frame(PONG, payload))
        self.assertEqual(after.bytes_received, before.bytes_received + beat + pong)
        ping = 2 + len(payload)
        self.assertEqual(after.bytes_sent, before.bytes_sent + ping + sent)

    def test_as_the_engineer_sees_it(self):
        """CON-13: the same figures by the same names."""
        self.assertEqual(ControlQuality.__slots__, EngineersView.__slots__)
