"""STR-42: PCM at 44.1, 32 and 24 kHz, frame by frame, without clicks and without much delay."""

from __future__ import annotations

import numpy as np
from twisted.trial import unittest

from m32net.audio.resample import Resampler
from m32net.streaming.profile import FRAME_US
from tests.support.audio import level_dbfs

RATES = (44_100, 32_000, 24_000)
FRAMES = tuple(us * 48 // 1000 for us in FRAME_US)


def run(resampler: Resampler, signal: np.ndarray, frame: int, start: int = 0) -> list[np.ndarray]:
    return [
        resampler.process(signal[at : at + frame], start + at)
        for at in range(0, len(signal), frame)
    ]


def sines(hertz: np.ndarray, samples: int) -> np.ndarray:
    at = np.arange(samples)[:, None] / 48_000
    return (0.5 * np.sin(2 * np.pi * hertz * at) * 2**31).astype(np.int32)


class ResamplerTests(unittest.TestCase):
    def test_each_frame_has_its_share(self) -> None:
        """floor((k+1)*n*r) - floor(k*n*r) samples; 44.1 kHz at 5 ms has 220 and 221 in turn."""
        for rate in RATES:
            for frame in FRAMES:
                resampler = Resampler(rate, frame, 2)
                signal = np.zeros((frame * 50, 2), np.int32)
                for number, out in enumerate(run(resampler, signal, frame)):
                    first = number * frame * rate // 48_000
                    after = (number + 1) * frame * rate // 48_000
                    self.assertEqual(len(out), after - first)
                    self.assertEqual(resampler.first_output(number * frame), first)

    def test_sines_come_out_as_they_would_have_been_sampled(self) -> None:
        """Against the ideal, 8 frequencies up to the filter's edge: better than 90 dB."""
        for rate, edge in zip(RATES, (20_000, 14_000, 10_400), strict=True):
            hertz = np.linspace(50, edge, 8)
            for frame in FRAMES:
                resampler = Resampler(rate, frame, 8)
                out = np.concatenate(run(resampler, sines(hertz, 24_000), frame)) / 2.0**31
                at = (np.arange(len(out)) * 48_000 / rate - resampler.delay_samples) / 48_000
                ideal = 0.5 * np.sin(2 * np.pi * hertz * at[:, None])
                error = (out - ideal)[200:]
                snr = 10 * np.log10((ideal[200:] ** 2).mean(0) / (error**2).mean(0))
                self.assertGreater(snr.min(), 90, f"{rate} Hz, frames of {frame}: {snr}")

    def test_what_would_fold_back_is_gone(self) -> None:
        for rate, hertz in ((32_000, 18_000), (32_000, 22_000), (24_000, 14_000), (24_000, 20_000)):
            out = np.concatenate(
                run(Resampler(rate, 960, 1), sines(np.array([hertz]), 48_000), 960)
            )
            self.assertLess(level_dbfs(out[500:]), -90, f"{hertz} at {rate}")

    def test_delay_is_about_a_millisecond(self) -> None:
        for rate in RATES:
            resampler = Resampler(rate, 240, 1)
            self.assertLess(resampler.delay_samples, 60)
            delay_ns = resampler.delay_samples * 1_000_000_000 // 48_000
            self.assertEqual(resampler.shift_ns(0), -delay_ns)
            # In the second frame of 5 ms, 44.1 kHz's first output is half a sample early.
            early = resampler.shift_ns(240) - resampler.shift_ns(0)
            self.assertLess(abs(early - (-11338 if rate == 44_100 else 0)), 2)

    def test_constants_stay_what_they_are(self) -> None:
        """STR-3: the test source's numbers survive resampling exactly, from the first sample."""
        numbers = np.tile(np.arange(1, 65, dtype=np.int32) << 16, (960, 1))
        for rate in RATES:
            resampler = Resampler(rate, 960, 64)
            for at in range(0, 9600, 960):
                out = resampler.process(numbers, at)
                np.testing.assert_array_equal(out, np.broadcast_to(numbers[0], out.shape))

    def test_frame_length_makes_no_difference(self) -> None:
        random = np.random.default_rng(3)
        signal = random.integers(-(2**30), 2**30, (9600, 3)).astype(np.int32)
        for rate in RATES:
            outs = [
                np.concatenate(run(Resampler(rate, frame, 3), signal, frame)) for frame in FRAMES
            ]
            for out in outs[1:]:
                self.assertLessEqual(np.abs((out - outs[0]) >> 8).max(), 1)

    def test_a_gap_starts_over_without_a_click(self) -> None:
        resampler = Resampler(32_000, 240, 1)
        level = np.full((240, 1), 2**29, np.int32)
        resampler.process(level, 0)
        out = resampler.process(-level, 240 + 960)
        self.assertEqual(np.unique(out).tolist(), [-(2**29)])

    def test_full_scale_saturates(self) -> None:
        square = np.where(np.arange(9600)[:, None] // 40 % 2, 2**31 - 1, -(2**31))
        out = np.concatenate(run(Resampler(44_100, 960, 1), square.astype(np.int32), 960))
        self.assertEqual(out.max(), (2**23 - 1) << 8)
        self.assertEqual(out.min(), -(2**31))

    def test_odd_frames_are_refused(self) -> None:
        self.assertRaises(ValueError, Resampler, 44_100, 100, 1)
