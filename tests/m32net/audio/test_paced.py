"""STR-1, STR-3: generated sources keep time by the clock; ``test`` says which channel is which."""

from __future__ import annotations

import numpy as np
from twisted.trial import unittest

from m32net.audio.clock import NS, samples_to_ns
from m32net.audio.events import FewerChannels, Overrun
from m32net.audio.frame import AudioFrame
from m32net.audio.sources.source import LossLog
from m32net.audio.sources.tone import ToneSource
from protocols.rtp.payload import pcm_to_wire
from tests.support.audio import Events, FakeClock, level_dbfs, loudest_hz

MS = 1_000_000


class PacedCase(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.events = Events()
        self.source = ToneSource(32, self.clock)
        self.source.start(self.events)

    def read(self, samples: int = 240) -> AudioFrame:
        frame = self.source.read(samples, 50 * MS)
        assert frame is not None
        return frame


class PacingTests(PacedCase):
    def test_an_hour_does_not_drift(self) -> None:
        """The schedule is absolute: however long each block took, the next is due on time."""
        began = self.clock.now
        self.clock.now += samples_to_ns(3600 * 48_000)
        self.read()
        for number in range(400):
            self.clock.now += number % 4 * MS
            frame = self.read()
        due = began + samples_to_ns(frame.first_sample + 240)
        self.assertLess(self.clock.now - due, 4 * MS)
        self.assertEqual(self.source.complete_ns, due)

    def test_waits_no_longer_than_it_may(self) -> None:
        began = self.clock.now
        self.assertIsNone(self.source.read(960, 5 * MS))
        self.assertEqual(self.clock.now - began, 5 * MS)
        self.read(960)
        self.assertEqual(self.clock.now - began, 20 * MS)

    def test_a_little_late_catches_up(self) -> None:
        self.read()
        self.clock.advance(0.09)
        for _ in range(18):
            now = self.clock.now
            self.read()
            self.assertEqual(self.clock.now, now)
        self.assertEqual(self.events, [])

    def test_very_late_skips_ahead_and_counts(self) -> None:
        """STR-2: the time stamps advance over the gap, by whole 20 ms."""
        before = self.read()
        self.clock.advance(1.003)
        after = self.read()
        gap = after.first_sample - before.first_sample - 240
        self.assertEqual(gap, 960 * 49)
        self.assertEqual(self.events, [Overrun(gap, "pace", 1)])
        status = self.source.status()
        self.assertEqual((status.overruns, status.samples_lost), (1, gap))
        passed = after.capture_time_ns - before.capture_time_ns
        self.assertEqual(passed, samples_to_ns(gap + 240))

    def test_idle_time_is_no_gap(self) -> None:
        """STR-40: after a pause it goes on at the current time, with nothing to report."""
        before = self.read()
        self.source.idle()
        self.clock.advance(10.0)
        after = self.read()
        self.assertEqual((after.first_sample - before.first_sample - 240) % 960, 0)
        self.assertLess(self.clock.now - 1000 * NS - samples_to_ns(after.first_sample), 30 * MS)
        self.assertEqual(self.events, [])
        self.assertEqual(self.source.status().overruns, 0)

    def test_captured_time_is_when_the_first_sample_passed(self) -> None:
        frame = self.read(960)
        self.assertEqual(frame.capture_time_ns, self.clock.realtime_ns() - 20 * MS)


class ToneTests(PacedCase):
    def test_pcm_numbers(self) -> None:
        """STR-3: every L16 sample of channel n is n; every L24 sample is n << 8."""
        frame = self.read()
        l16 = pcm_to_wire(frame.samples, 2).view(">i2")[:, :, 0]
        np.testing.assert_array_equal(l16, np.tile(np.arange(1, 33), (240, 1)))
        l24 = pcm_to_wire(frame.samples, 3).astype(np.int32)
        value = l24[:, :, 0] << 16 | l24[:, :, 1] << 8 | l24[:, :, 2]
        np.testing.assert_array_equal(value, np.tile(np.arange(1, 33) << 8, (240, 1)))

    def test_sines_for_lossy_codecs(self) -> None:
        """STR-3: n x 100 Hz at -12 dBFS, without a seam between blocks of any length."""
        blocks = [self.read(size) for size in (120, 120, 240, 480, 960) * 12]
        tones = np.concatenate([block.tones for block in blocks if block.tones is not None])
        for channel in (1, 2, 7, 32):
            signal = tones[:, channel - 1].astype(np.float64)
            self.assertLess(abs(loudest_hz(signal[:19_200]) - 100 * channel), 2)
            at = np.arange(len(signal)) / 48_000
            ideal = 10 ** (-12 / 20) * 2**31 * np.sin(2 * np.pi * 100 * channel * at)
            self.assertLess(np.abs(signal - ideal).max(), 2)
            self.assertLess(abs(level_dbfs(signal) + 12), 0.05)

    def test_64_channels(self) -> None:
        source = ToneSource(64, self.clock)
        source.start(self.events)
        frame = source.read(120, 50 * MS)
        assert frame is not None
        self.assertEqual(frame.samples[0, 63] >> 16, 64)

    def test_more_than_it_has(self) -> None:
        events = Events()
        source = ToneSource(70, self.clock)
        source.start(events)
        self.assertEqual(events, [FewerChannels(70, 64)])


class LossLogTests(unittest.TestCase):
    def test_tells_once_a_second_and_counts_all(self) -> None:
        """A device that stumbles 375 times a second must not drown the log."""
        events = Events()
        log = LossLog(events)
        for number in range(750):
            log.count(10, "device", number * NS // 375)
        log.tell(3 * NS)
        log.tell(9 * NS)
        self.assertEqual(len(events), 3)
        self.assertEqual(sum(event.samples for event in events.of(Overrun)), 7500)
        self.assertEqual(events.of(Overrun)[-1].total, 750)
        self.assertEqual((log.events, log.samples), (750, 7500))
