"""STR-20: which channels are where in what comes, whatever the codec and layout."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.depacketize import StreamPlan, opus_duration
from protocols.errors import RemoteProtocolError
from tests.m32net.listener.streams import opus_payloads, stream, tones


class PlanTest(unittest.TestCase):
    def test_columns_follow_the_order_asked_for(self) -> None:
        plan = StreamPlan.of(stream(groups=((1, 2, 3), (4, 5))), wanted=(5, 1, 9))
        self.assertEqual(plan.channels, (5, 1, 2, 3, 4))
        self.assertEqual([group.columns for group in plan.groups], [(1, 2, 3), (4, 0)])
        self.assertEqual(StreamPlan.of(stream()).channels, (1, 2, 3, 4, 5))

    def test_rates(self) -> None:
        plan = StreamPlan.of(stream("opus", rate=32_000))
        self.assertEqual((plan.sample_rate, plan.clock_rate, plan.frame), (48_000, 48_000, 240))
        plan = StreamPlan.of(stream("L16", rate=32_000))
        self.assertEqual((plan.sample_rate, plan.clock_rate, plan.frame), (32_000, 32_000, 160))

    def test_contradictions_are_refused(self) -> None:
        twice = stream(groups=((1, 2), (2, 3)))
        self.assertRaises(RemoteProtocolError, StreamPlan.of, twice)
        good = stream(groups=((1,), (2,)))
        same = type(good)(**{**_fields(good), "groups": (good.groups[0],) * 2})
        self.assertRaises(RemoteProtocolError, StreamPlan.of, same)
        wrong = type(good)(**{**_fields(good), "codec": "opus"})
        self.assertRaises(RemoteProtocolError, StreamPlan.of, wrong)

    def test_nothing_flows(self) -> None:
        plan = StreamPlan.of(stream(groups=()))
        self.assertEqual((plan.channels, plan.groups), ((), ()))


class DurationTest(unittest.TestCase):
    def test_pcm(self) -> None:
        plan = StreamPlan.of(stream("L24", ((1, 2, 3),)))
        self.assertEqual(plan.duration(plan.groups[0], b"\0" * 9 * 240), 240)
        for size in (0, 8, 10):
            self.assertRaises(RemoteProtocolError, plan.duration, plan.groups[0], b"\0" * size)

    def test_opus_as_libopus_writes_it(self) -> None:
        for frame in (120, 240, 480, 960):
            for payload in opus_payloads(tones(frame * 2, 3), frame):
                self.assertEqual(opus_duration(payload), frame)

    def test_all_configurations(self) -> None:
        """RFC 6716 section 3.1, table 2, and the frame counts of section 3.2."""
        expected = [10, 20, 40, 60] * 3 + [10, 20] * 2 + [2.5, 5, 10, 20] * 4
        for configuration, ms in enumerate(expected):
            toc = configuration << 3
            self.assertEqual(opus_duration(bytes([toc])), ms * 48)
            self.assertEqual(opus_duration(bytes([toc | 1])), 2 * ms * 48)
            self.assertEqual(opus_duration(bytes([toc | 2])), 2 * ms * 48)
        self.assertEqual(opus_duration(b"\xfb\x03"), 3 * 960)

    @given(st.binary(max_size=4))
    def test_rubbish(self, data: bytes) -> None:
        try:
            self.assertTrue(0 < opus_duration(data) <= 5760)
        except RemoteProtocolError:
            pass


def _fields(value):
    return {name: getattr(value, name) for name in value.__struct_fields__}
