"""STR-26: small at low jitter, larger at high, grows at once, shrinks slowly, says why."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.delay import DelaySettings, PlayoutDelay

FRAME_S = 0.005


class Way:
    """A network of which only the transit times are known, and the delay that watches it."""

    def __init__(self, seed: int = 1, media_start: float = 12_345.678) -> None:
        self.random = np.random.default_rng(seed)
        self.delay = PlayoutDelay(FRAME_S)
        self.media = media_start
        self.now = 0.0
        self.late = 0
        self.trace: list[float] = []

    def frame(self, transit: float) -> None:
        self.media += FRAME_S
        self.now += FRAME_S
        arrival = self.now + transit
        if self.delay.started and arrival > self.delay.due(self.media):
            self.late += 1
        self.delay.observe(self.media, arrival)
        self.trace.append(self.delay.target_ms)

    def run(self, seconds: float, jitter: float = 0.0, base: float = 0.01) -> None:
        for _ in range(round(seconds / FRAME_S)):
            self.frame(base + jitter * self.random.random())

    def stall(self, length: float, base: float = 0.01) -> None:
        """Packets of ``length`` seconds wait and then come all at once."""
        for left in range(round(length / FRAME_S), 0, -1):
            self.frame(base + left * FRAME_S)


class TargetTest(unittest.TestCase):
    """Where the delay settles."""

    def test_small_at_low_jitter(self) -> None:
        way = Way()
        way.run(20, jitter=0.0005)
        self.assertLess(way.delay.target_ms, 6)
        self.assertIn("least", way.delay.reason)

    def test_larger_at_high_jitter(self) -> None:
        way = Way()
        way.run(20, jitter=0.04)
        self.assertGreater(way.delay.target_ms, 38)
        self.assertLess(way.delay.target_ms, 46)
        self.assertRegex(way.delay.reason, "(jitter is|came) (39|4[0-2])")

    def test_few_frames_are_late(self) -> None:
        way = Way()
        way.run(5, jitter=0.03)
        way.late = 0
        way.run(30, jitter=0.03)
        self.assertLess(way.late / (30 / FRAME_S), 0.01)

    def test_bounded(self) -> None:
        way = Way()
        way.run(20, jitter=1.0)
        self.assertLessEqual(way.delay.target_ms, 200.0)
        self.assertIn("limit", way.delay.reason)

    def test_constant_transit_does_not_count(self) -> None:
        near, far = Way(), Way()
        near.run(10, base=0.001)
        far.run(10, base=0.3)
        self.assertApproximates(near.delay.target_ms, far.delay.target_ms, 1e-6)


class GrowthTest(unittest.TestCase):
    """It grows at once."""

    def test_within_a_tenth_of_a_second(self) -> None:
        way = Way()
        way.run(20, jitter=0.001)
        way.run(0.15, jitter=0.04)
        self.assertGreater(way.delay.target_ms, 25)
        self.assertIn("grown", way.delay.reason)
        self.assertGreater(way.delay.grown, 0)

    def test_way_gets_longer_for_good(self) -> None:
        """Roaming to a slower way by more than the limit: played again within a second."""
        way = Way()
        way.run(20, jitter=0.001)
        way.run(1.0, jitter=0.001, base=0.51)
        way.late = 0
        way.run(5.0, jitter=0.001, base=0.51)
        self.assertEqual(way.late, 0)

    def test_way_gets_shorter(self) -> None:
        way = Way()
        way.run(20, jitter=0.001, base=0.1)
        way.run(70, jitter=0.001, base=0.01)
        self.assertLess(way.delay.target_ms, 7)
        self.assertEqual(way.late, 0)


class ShrinkTest(unittest.TestCase):
    """It shrinks slowly, and one spike must not raise it for minutes."""

    def test_one_spike_is_over_in_half_a_minute(self) -> None:
        way = Way()
        way.run(40, jitter=0.001)
        calm = way.delay.target_ms
        way.stall(0.1)
        way.run(30, jitter=0.001)
        self.assertLess(way.delay.target_ms, calm + 2)

    def test_a_lone_late_packet_changes_nothing(self) -> None:
        way = Way()
        way.run(40, jitter=0.001)
        calm = way.delay.target_ms
        way.frame(0.15)
        way.run(1, jitter=0.001)
        self.assertLess(way.delay.target_ms, calm + 1)

    def test_spikes_that_come_again_are_remembered(self) -> None:
        way = Way()
        for _ in range(12):
            way.run(4, jitter=0.001)
            way.stall(0.1)
        way.run(3.9, jitter=0.001)
        self.assertGreater(way.delay.target_ms, 50)

    def test_never_faster_than_resampling_can_follow(self) -> None:
        way = Way()
        way.run(20, jitter=0.05)
        way.trace.clear()
        way.run(50, jitter=0.0, base=0.01)
        steps = -np.diff(way.trace)
        window = round(1.0 / FRAME_S)
        per_second = np.convolve(steps, np.ones(window), "valid").max()
        self.assertLess(per_second, 5.0)
        self.assertGreater(per_second, 3.0)

    def test_drift_is_followed(self) -> None:
        """A sender's clock 200 ppm fast or slow for ten minutes neither starves nor bloats it."""
        for ppm in (-200, 200):
            way = Way()
            way.delay = PlayoutDelay(FRAME_S)
            for number in range(round(600 / FRAME_S)):
                way.frame(0.05 + number * FRAME_S * ppm * 1e-6)
            self.assertLess(way.delay.target_ms, 15)
            self.assertLess(way.late, 10)


class RobustnessTest(unittest.TestCase):
    """Any arrival times: bounded and finite."""

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(-2, 2), min_size=1, max_size=300), st.floats(0.0001, 0.1))
    def test_any_transits(self, transits: list[float], frame_s: float) -> None:
        way = Way()
        way.delay = PlayoutDelay(frame_s, DelaySettings(maximum_ms=150))
        for transit in transits:
            way.frame(transit)
            self.assertTrue(np.isfinite(way.delay.due(way.media)))
        way.run(1)
        self.assertLessEqual(way.delay.target_ms, 150.001)

    def test_window_wraps(self) -> None:
        way = Way()
        way.run(100, jitter=0.01)
        self.assertApproximates(way.delay.target_ms, 11.4, 1.0)
