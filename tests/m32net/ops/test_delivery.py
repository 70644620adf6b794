"""CON-40: /health is honest about whether audio leaves the server."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.ops.delivery import (
    HUNG_S,
    LOOK_S,
    STALLED_S,
    START_S,
    Counters,
    Delivery,
    DeliveryWatch,
)


class Watch(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.encoding = True
        self.watch = DeliveryWatch(self.clock, lambda: self.counters, lambda: self.encoding)
        self.watch.startService()
        self.addCleanup(self.watch.stopService)

    def pass_time(self, seconds: float, **each_look: int) -> None:
        """So many of each per look."""
        for _ in range(round(seconds / LOOK_S)):
            grown = {n: getattr(self.counters, n) + more for n, more in each_look.items()}
            self.counters = replace(self.counters, **grown)
            self.clock.advance(LOOK_S)

    def state(self) -> str:
        return self.watch.health().state

    def test_nobody_listens(self) -> None:
        """CON-40: no frames because none are wanted is healthy."""
        self.pass_time(100, turns=2)
        self.assertEqual((self.state(), self.watch.alive()), ("healthy", True))
        self.assertEqual(self.watch.figures()["last_frame_age_seconds"], 0)

    def test_delivering(self) -> None:
        """CON-40: frames flow."""
        self.watch.want(True)
        self.pass_time(100, turns=100, frames=100, packets=2000)
        self.assertEqual((self.state(), self.watch.alive()), ("healthy", True))

    def test_right_at_this_moment(self) -> None:
        """CON-40: the last frame's age is no older than the question."""
        self.watch.want(True)
        self.pass_time(1, turns=1, frames=1)
        self.clock.advance(LOOK_S * 0.8)
        self.counters = replace(self.counters, frames=1000)
        self.assertEqual(self.watch.health().details["last_frame_ms"], 0)
        self.assertEqual(self.watch.figures()["last_frame_age_seconds"], 0)

    def test_wanted_and_not_sent(self) -> None:
        """CON-40: somebody listens and nothing is sent: unhealthy, with the reason."""
        self.pass_time(100, turns=2)
        self.watch.want(True)
        self.pass_time(STALLED_S, turns=100)
        self.assertEqual(self.state(), "healthy")
        self.pass_time(1, turns=100)
        health = self.watch.health()
        self.assertEqual(health.state, "unhealthy")
        self.assertIn("no audio was sent for 3 s", health.reasons[0])
        self.watch.want(False)
        self.pass_time(1, turns=2)
        self.assertEqual(self.state(), "healthy")

    def test_wanting_more_is_no_new_start(self) -> None:
        """CON-40: a further listener does not hide that nothing flows."""
        self.watch.want(True)
        for _ in range(10):
            self.pass_time(1, turns=1)
            self.watch.want(True)
        self.assertEqual(self.state(), "unhealthy")

    def test_restarted_for_what_a_restart_mends(self) -> None:
        """CON-40: the watchdog starves for an engine that should deliver, not for a lost device."""
        self.watch.want(True)
        self.pass_time(HUNG_S + 1, turns=10)
        self.assertFalse(self.watch.alive())
        self.encoding = False
        self.assertTrue(self.watch.alive())

    def test_engine_hangs(self) -> None:
        """CON-40: also when nobody listens: the next listener would hear nothing."""
        self.encoding = False
        self.pass_time(5, turns=2)
        self.pass_time(HUNG_S + 1)
        health = self.watch.health()
        self.assertEqual((health.state, self.watch.alive()), ("unhealthy", False))
        self.assertIn("hung for 11 s", health.reasons[0])
        self.pass_time(1, turns=1)
        self.assertEqual((self.state(), self.watch.alive()), ("healthy", True))

    def test_a_slow_start_is_no_hang(self) -> None:
        """CON-40: devices take seconds to open; a minute is too long."""
        self.pass_time(START_S)
        self.assertEqual((self.state(), self.watch.alive()), ("healthy", True))
        self.pass_time(1)
        self.assertEqual((self.state(), self.watch.alive()), ("unhealthy", False))

    def test_kernel_takes_few(self) -> None:
        """CON-40: some packets dropped: degraded; most: the fan-out cannot send."""
        self.watch.want(True)
        self.pass_time(10, turns=1, frames=100, packets=1000, dropped=5)
        self.assertEqual(self.state(), "healthy")
        self.pass_time(20, turns=1, frames=100, packets=900, dropped=100)
        self.assertEqual(self.state(), "degraded")
        self.assertIn("10%", self.watch.health().reasons[0])
        self.pass_time(20, turns=1, frames=100, packets=100, dropped=900)
        self.assertEqual(self.state(), "unhealthy")
        self.pass_time(20, turns=1, frames=100, packets=1000)
        self.assertEqual(self.state(), "healthy")

    def test_unsendable(self) -> None:
        """CON-40: frames of one format that cannot be laid out, while another's go out."""
        self.watch.want(True)
        self.pass_time(1, turns=1, frames=100, packets=1000, unsendable=3)
        self.assertEqual(self.state(), "degraded")
        self.pass_time(20, turns=1, frames=100, packets=1000)
        self.assertEqual(self.state(), "healthy")

    def test_stopped(self) -> None:
        """CON-40: no timer stays."""
        self.watch.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Core(unittest.SynchronousTestCase):
    @given(
        st.lists(
            st.tuples(
                st.booleans(),
                st.floats(0, 20),
                *[st.integers(0, 3)] * 5,
            ),
            max_size=30,
        )
    )
    def test_any_course(self, course: list[tuple[bool, float, int, int, int, int, int]]) -> None:
        """CON-40: shares stay within 0..1 and ages are never negative, whatever happens."""
        delivery, now, counters = Delivery(0.0), 0.0, Counters()
        for wanted, passed, turns, frames, packets, dropped, unsendable in course:
            now += passed
            delivery.want(wanted, now)
            counters = Counters(
                counters.turns + turns,
                counters.frames + frames,
                counters.packets + packets,
                counters.dropped + dropped,
                counters.unsendable + unsendable,
            )
            delivery.look(counters, now)
            self.assertTrue(0 <= delivery.dropped_share() <= 1)
            self.assertGreaterEqual(delivery.frame_age_s(now), 0)
            if frames or not wanted:
                self.assertEqual(delivery.frame_age_s(now), 0)
