"""STR-28: the sound card's clock is followed by resampling, at most +-0.5 %, never by clicks."""

from __future__ import annotations

import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.playback import (
    MAX_CORRECTION,
    DriftControl,
    PlaybackError,
    Resampled,
    SoundCard,
    Speaker,
    StereoRing,
)
from tests.m32net.listener.rig import FakeCard


class RingTest(unittest.TestCase):
    @given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=60))
    def test_order_and_bounds(self, steps: list[tuple[int, int]]) -> None:
        """What comes out is what went in, in order; too much is dropped, too little is silence."""
        ring = StereoRing(100, 48_000)
        ring._fade = np.ones((2, 1), np.float32)  # as it is, without fading in
        value, expected = 1, []
        for into, out in steps:
            block = np.arange(value, value + into, dtype=np.float32)
            value += into
            expected += list(block[: 100 - len(ring)])
            ring.write(np.stack((block, -block), axis=1))
            self.assertLessEqual(len(ring), 100)
            got = np.empty((out, 2), np.float32)
            ring.read_into(got)
            there = min(out, len(expected))
            self.assertEqual(got[:there, 0].tolist(), expected[:there])
            self.assertTrue(np.array_equal(got[:there, 1], -got[:there, 0]))
            expected = expected[there:]
        self.assertEqual(ring.dropped, value - 1 - ring._written)

    def test_running_dry_and_coming_back_does_not_click(self) -> None:
        ring = StereoRing(48_000, 48_000)
        out = []
        for number in range(60):
            if not 20 <= number < 40:
                ring.write(np.full((128, 2), 0.5, np.float32))
            block = np.empty((128, 2), np.float32)
            ring.read_into(block)
            out.append(block)
        sound = np.concatenate(out)
        self.assertLess(np.abs(np.diff(sound, axis=0)).max(), 0.01)
        self.assertEqual(sound[25 * 128 : 40 * 128].max(), 0)
        self.assertEqual((ring.underruns, ring.missing), (1, 20 * 128))

    def test_card_that_stood_still_is_not_late_for_good(self) -> None:
        ring = StereoRing(48_000, 48_000, 720)
        time = np.arange(96_000) / 48_000
        tone = np.repeat(0.5 * np.sin(2 * np.pi * 200 * time)[:, None], 2, axis=1)
        out, at = [], 0
        for number in range(400):
            ring.write(tone[at : at + 128].astype(np.float32))
            at += 128
            if 5 < number < 100 or number > 200:  # stands still for 270 ms
                block = np.empty((128, 2), np.float32)
                ring.read_into(block)
                out.append(block)
        self.assertLessEqual(len(ring), 720 + 128)
        self.assertGreater(ring.skipped, 10_000)
        slope = np.abs(np.diff(np.concatenate(out), axis=0)).max()
        self.assertLess(slope, 0.03)  # own slope 0.013, plus that of a 2.5 ms fade


class DriftTest(unittest.TestCase):
    def play(
        self, rate: int, card: FakeCard, seconds: float
    ) -> tuple[Speaker, list[float], list[float]]:
        speaker, resampled = Speaker(card.rate, 0.015), Resampled(rate, card.rate)
        card.start(speaker.ring)
        levels, corrections, done = [], [], 0
        for number in range(round(seconds / 0.005)):
            n = (number + 1) * rate // 200 - done
            time = np.arange(done, done + n) / rate
            done += n
            tone = 0.5 * np.sin(2 * np.pi * 440 * time)
            block = np.stack((tone, tone), axis=1).astype(np.float32)
            speaker.play(resampled(block, speaker.steer(n / rate)))
            card.advance(0.005)
            levels.append(speaker.level_s)
            corrections.append(speaker.drift.correction)
        return speaker, levels, corrections

    def test_level_is_kept_without_clicks(self) -> None:
        for ppm, rate, device in (
            (300, 48_000, 48_000),
            (-300, 44_100, 48_000),
            (0, 32_000, 44_100),
        ):
            with self.subTest(f"{ppm} ppm, {rate} -> {device}"):
                card = FakeCard(device, ppm)
                speaker, levels, corrections = self.play(rate, card, 15)
                self.assertEqual(speaker.ring.underruns, 0)
                self.assertEqual(speaker.ring.dropped, 0)
                self.assertApproximates(float(np.mean(levels[-1000:])), 0.015, 0.002)
                self.assertLess(max(levels), 0.025)
                taken = float(np.mean(corrections[-1000:]))
                self.assertApproximates(-taken * 1e6, ppm, 100)
                slope = np.abs(np.diff(card.sound()[device:], axis=0)).max()
                self.assertLess(slope, 1.05 * 0.5 * 2 * np.pi * 440 / device)

    def test_pitch_is_right(self) -> None:
        card = FakeCard(44_100, 200)
        self.play(32_000, card, 12)
        sound = card.sound()[-8 * 44_100 :, 0]
        peak = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))).argmax() / 8
        self.assertApproximates(peak, 440 / 1.0002, 0.3)

    @given(st.lists(st.floats(0, 10), max_size=200), st.floats(0.001, 0.1))
    def test_never_more_than_half_a_percent(self, levels: list[float], elapsed: float) -> None:
        control = DriftControl(0.015)
        for level in levels:
            self.assertLessEqual(abs(control.update(level, elapsed)), MAX_CORRECTION)


class SoundCardTest(unittest.TestCase):
    def test_missing_portaudio_is_one_clear_line(self) -> None:
        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "sounddevice":
                    raise OSError("PortAudio library not found")

        self.patch(sys, "meta_path", [Broken(), *sys.meta_path])
        kept = sys.modules.pop("sounddevice", None)
        try:
            error = self.assertRaises(PlaybackError, SoundCard)
        finally:
            if kept is not None:
                sys.modules["sounddevice"] = kept
        self.assertIn("apt-get install libportaudio2", str(error))
        self.assertNotIn("\n", str(error))

    def test_unknown_device_is_one_clear_line(self) -> None:
        try:
            import sounddevice  # noqa: F401
        except OSError as reason:
            raise unittest.SkipTest(f"PortAudio is not installed: {reason}") from None
        error = self.assertRaises(PlaybackError, SoundCard, "no such card at all")
        self.assertIn("no such card at all", str(error))
        self.assertNotIn("\n", str(error))
