"""STR-12, STR-31: reception merged from several sources, rated, warned about; RTCP sums."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.interfaces import QualityReport
from m32net.streaming.profile import Profile
from m32net.streaming.quality import STALE_S, Limits, Reception, rate
from m32net.streaming.reports import MediaClock, ReportBook
from m32net.streaming.timing import DurationWindow
from protocols.rtp import rtcp
from protocols.rtp.extension import ntp64_from_unix_ns
from protocols.rtp.packetizer import Group, StreamSpec

FIGURES = st.none() | st.floats(0, 1000)


class RatingTest(unittest.TestCase):
    def test_words(self) -> None:
        for loss, jitter, latency, word in (
            (0.0, 1.0, 10.0, "good"),
            (0.01, 1.0, 10.0, "fair"),
            (0.0, 6.0, None, "fair"),
            (0.0, 1.0, 151.0, "poor"),
            (0.5, None, None, "poor"),
            (None, None, None, "unknown"),
        ):
            report = QualityReport("qos", 0, loss=loss, jitter_ms=jitter, latency_ms=latency)
            self.assertEqual(rate(report, Limits()), word)

    def test_sources_complete_each_other(self) -> None:
        """The newest word on each figure counts; one not heard for long is forgotten."""
        reception = Reception()
        reception.note(QualityReport("rtcp", 0.0, loss=0.0, jitter_ms=2.0))
        reception.note(QualityReport("qos", 1.0, latency_ms=12.0))
        assert reception.latest is not None
        self.assertEqual((reception.latest.jitter_ms, reception.latest.latency_ms), (2.0, 12.0))
        reception.note(QualityReport("rtcp", STALE_S + 2, loss=0.1))
        self.assertEqual((reception.latest.loss, reception.latest.latency_ms), (0.1, None))

    @given(st.lists(st.tuples(st.floats(0, 100), FIGURES, FIGURES, FIGURES)))
    def test_any_reports(self, reports: list[tuple[float, float, float, float]]) -> None:
        """Never more than one warning in 30 s, and never without a reason."""
        reception = Reception()
        warned = []
        for at, loss, jitter, latency in sorted(reports, key=lambda one: one[0]):
            words = reception.note(QualityReport("qos", at, loss, jitter, latency))
            if words is not None:
                self.assertTrue(words)
                warned.append(at)
        gaps = [b - a for a, b in itertools.pairwise(warned)]
        self.assertTrue(all(gap >= 30 for gap in gaps))


class ReportBookTest(unittest.TestCase):
    profile = Profile("L16", 48_000, 5_000)
    spec = StreamSpec("127.0.0.1", (Group(7, 98, 5004, (1,)), Group(8, 98, 5004, (2,))))

    def book(self) -> ReportBook:
        book = ReportBook(lambda: 0.5)
        book.add("client_1", self.profile, self.spec, now=0.0)
        return book

    def test_due_about_every_five_seconds(self) -> None:
        """RFC 3550 6.2: the first after half the interval, then 5 s / (e - 1.5) x random."""
        book = self.book()
        times = []
        for tenth in range(200):
            times += [tenth / 10 for _ in book.due(tenth / 10)]
        self.assertLess(times[0], 2.6)
        gaps = [b - a for a, b in itertools.pairwise(times)]
        self.assertTrue(all(math.isclose(gap, 5 / (math.e - 1.5), abs_tol=0.11) for gap in gaps))
        book.remove("client_1")
        self.assertEqual(list(book.due(100)), [])

    def test_round_trip_and_worst_jitter(self) -> None:
        book = self.book()
        sent_ns, back_ns = 1_000_000_000_000, 1_000_040_000_000
        last_sr = rtcp.compact_ntp(ntp64_from_unix_ns(sent_ns))
        blocks = (
            rtcp.ReportBlock(7, 0, 0, 1, 48, last_sr, 65_536 // 100),
            rtcp.ReportBlock(8, 128, 9, 1, 96, 0, 0),
        )
        compound = (rtcp.ReceiverReport(1, blocks),)
        ((client_id, report),) = book.received("127.0.0.1", compound, 3.0, back_ns)
        self.assertEqual((client_id, report.loss, report.jitter_ms), ("client_1", 0.25, 2.0))
        assert report.latency_ms is not None
        self.assertTrue(math.isclose(report.latency_ms, 15.0, abs_tol=0.1), report.latency_ms)

    def test_nobody_speaks_for_another(self) -> None:
        book = self.book()
        block = rtcp.ReportBlock(7, 255, 9, 1, 1, 0, 0)
        self.assertEqual(book.received("10.0.0.1", (rtcp.ReceiverReport(1, (block,)),), 1.0, 0), [])
        self.assertEqual(book.foreign, 1)


class ClockTest(unittest.TestCase):
    def test_media_clock(self) -> None:
        clock = MediaClock(1000, 5_000_000_000, 48_000)
        self.assertEqual(clock.at(5_000_000_000), 1000)
        self.assertEqual(clock.at(5_500_000_000), 25_000)
        self.assertEqual(clock.at(4_000_000_000), -47_000)

    def test_durations(self) -> None:
        window = DurationWindow(100)
        self.assertEqual(window.quantiles_ms(0.5), (0.0,))
        for value in range(1, 301):
            window.add(value * 1_000_000)
        p50, p99 = window.quantiles_ms(0.5, 0.99)
        self.assertEqual(len(window), 100)
        self.assertTrue(math.isclose(p50, 250.5) and 298 < p99 <= 300)
