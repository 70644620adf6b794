"""STR-12, STR-61: loss and jitter as RFC 3550 appendix A.1, A.3 and A.8 define them."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.rtp.reception import ReceptionStatistics
from protocols.rtp.rtcp import compact_ntp

FRAME_NS = 5_000_000


def feed(statistics: ReceptionStatistics, numbers: list[int], start: int = 0) -> list[int | None]:
    return [
        statistics.update((start + k) & 0xFFFF, 240 * k & 0xFFFF_FFFF, FRAME_NS * k)
        for k in numbers
    ]


class LossTests(SynchronousTestCase):
    def test_nothing_yet(self) -> None:
        statistics = ReceptionStatistics(48_000)
        self.assertFalse(statistics.started)
        self.assertEqual((statistics.expected, statistics.missing, statistics.jitter), (0, 0, 0.0))

    def test_across_the_wrap(self) -> None:
        statistics = ReceptionStatistics(48_000)
        extended = feed(statistics, list(range(200)), start=65_436)
        self.assertEqual(extended, list(range(65_436, 65_636)))
        self.assertEqual((statistics.expected, statistics.missing), (200, 0))
        self.assertEqual(statistics.highest_sequence, 65_635)

    @given(st.integers(0, 0xFFFF), st.integers(0, 2**32), st.integers(1, 400))
    def test_counts_what_really_happened(self, start: int, seed: int, count: int) -> None:
        """Random loss, duplication and reordering within 20 packets."""
        rng = random.Random(seed)
        sent = [k for k in range(count) if k in (0, count - 1) or rng.random() > 0.2]
        sent += [k for k in sent if rng.random() < 0.1]
        order = sorted(sent, key=lambda k: k + rng.random() * 20)
        statistics = ReceptionStatistics(48_000)
        results = feed(statistics, order, start)
        distinct = len(set(order))
        self.assertEqual(len([r for r in results if r is not None]), distinct)
        self.assertEqual(len(set(results) - {None}), distinct)
        self.assertEqual(statistics.received, len(order))
        self.assertEqual(statistics.duplicates, len(order) - distinct)
        self.assertEqual(statistics.expected, count)
        self.assertEqual(statistics.missing, count - distinct)

    def test_fraction_is_since_the_last_report(self) -> None:
        statistics = ReceptionStatistics(48_000)
        feed(statistics, [0, 1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(statistics.report_block(9, 0).fraction_lost, 0)
        feed(statistics, [9, 11, 12, 13, 14, 15])
        block = statistics.report_block(9, 0)
        self.assertEqual((block.ssrc, block.fraction_lost, block.cumulative_lost), (9, 64, 2))
        feed(statistics, [16, 17])
        block = statistics.report_block(9, 0)
        self.assertEqual((block.fraction_lost, block.cumulative_lost), (0, 2))

    def test_restarted_sender(self) -> None:
        statistics = ReceptionStatistics(48_000)
        feed(statistics, [0, 1, 2])
        self.assertIsNone(statistics.update(30_000, 0, 0))
        resumed = statistics.update(30_001, 0, 0)
        self.assertEqual(resumed, 65_536 + 30_001)
        self.assertEqual((statistics.restarts, statistics.rejected), (1, 1))
        self.assertEqual((statistics.expected, statistics.missing), (4, 0))

    def test_one_stray_packet_changes_nothing(self) -> None:
        statistics = ReceptionStatistics(48_000)
        feed(statistics, [0, 1, 2])
        self.assertIsNone(statistics.update(40_000, 0, 0))
        self.assertEqual(feed(statistics, [3]), [3])
        self.assertIsNone(statistics.update(40_001, 0, 0))
        self.assertEqual((statistics.restarts, statistics.missing), (0, 0))


class JitterTests(SynchronousTestCase):
    def test_steady_stream_has_none(self) -> None:
        statistics = ReceptionStatistics(48_000)
        feed(statistics, list(range(1000)), start=65_000)
        self.assertEqual(statistics.jitter, 0.0)

    def test_formula(self) -> None:
        """J += (|D| - J) / 16, by hand: 1 ms late, then 1 ms early again."""
        statistics = ReceptionStatistics(48_000)
        statistics.update(0, 0xFFFF_FFF0, 0)
        statistics.update(1, 0xFFFF_FFF0 + 240 & 0xFFFF_FFFF, 6_000_000)
        self.assertEqual(statistics.jitter, 48 / 16)
        statistics.update(2, 0xFFFF_FFF0 + 480 & 0xFFFF_FFFF, 10_000_000)
        self.assertEqual(statistics.jitter, 3 + (48 - 3) / 16)
        self.assertAlmostEqual(statistics.jitter_ms, (3 + 45 / 16) / 48)

    def test_converges_to_the_mean_deviation(self) -> None:
        rng = random.Random(7)
        statistics = ReceptionStatistics(48_000)
        for k in range(4000):
            late = rng.choice((0, 2_000_000))
            statistics.update(k & 0xFFFF, 240 * k, FRAME_NS * k + late)
        self.assertLess(abs(statistics.jitter_ms - 1.0), 0.5)


class SenderReportTests(SynchronousTestCase):
    def test_last_sr_and_delay(self) -> None:
        statistics = ReceptionStatistics(48_000)
        feed(statistics, [0])
        self.assertEqual(statistics.report_block(1, 10**9).last_sr, 0)
        ntp = 0x0123_4567_89AB_CDEF
        statistics.sender_report(ntp, 2_000_000_000)
        block = statistics.report_block(1, 2_500_000_000)
        self.assertEqual(block.last_sr, 0x4567_89AB)
        self.assertEqual(block.last_sr, compact_ntp(ntp))
        self.assertEqual(block.delay_since_last_sr, 32_768)
