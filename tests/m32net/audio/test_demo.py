"""STR-1: the demo is 32 musically distinct channels at sensible levels, always the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from twisted.trial import unittest

from m32net.audio.events import FewerChannels
from m32net.audio.sources import demo_score as score
from m32net.audio.sources.demo import DEMO_CHANNEL_NAMES, DemoSource, render
from m32net.audio.sources.demo_sounds import hertz, pluck, saw
from tests.support.audio import Events, FakeClock, loudest_hz

MS = 1_000_000


def band(first: int, samples: int) -> np.ndarray:
    """What all 32 play then: int16, one row each."""
    rows = [loop[:, np.arange(first, first + samples) % loop.shape[1]] for loop in render()]
    return np.concatenate(rows)


class DemoTests(unittest.TestCase):
    def sound(self, name: str) -> np.ndarray:
        """A channel's loop."""
        short, long = render()
        row = DEMO_CHANNEL_NAMES.index(name)
        loop = short[row] if row < len(short) else long[row - len(short)]
        return loop.astype(np.float32) / 32768

    def test_32_names(self) -> None:
        self.assertEqual(len(set(DEMO_CHANNEL_NAMES)), 32)
        self.assertEqual(sum(len(loop) for loop in render()), 32)

    def test_levels(self) -> None:
        """Peaks of -6 to -15 dBFS, nothing clips, nothing is silent, no DC worth the name."""
        for name in DEMO_CHANNEL_NAMES:
            sound = self.sound(name)
            peak = 20 * np.log10(np.abs(sound).max())
            self.assertTrue(-15.5 < peak < -5.5, f"{name}: peak {peak:.1f}")
            rms = 20 * np.log10(np.sqrt((sound**2).mean()))
            self.assertTrue(-40 < rms < -15, f"{name}: RMS {rms:.1f}")
            self.assertLess(abs(sound.mean()), 0.01, name)

    def test_no_two_channels_sound_alike(self) -> None:
        """Correlation of the signals, stereo sides and the bass's two ways apart."""
        part = band(10 * score.BAR, 2 * score.BAR).astype(np.float32)
        part -= part.mean(axis=1, keepdims=True)
        likeness = np.abs(np.corrcoef(part))
        pairs = {("Bass DI", "Bass Amp"), ("Keys L", "Keys R"), ("Overhead L", "Overhead R")}
        for row, name in enumerate(DEMO_CHANNEL_NAMES):
            for column in range(row):
                other = DEMO_CHANNEL_NAMES[column]
                if (other, name) not in pairs:
                    self.assertLess(likeness[row, column], 0.8, f"{name} and {other}")
        for one, other in pairs:
            both = DEMO_CHANNEL_NAMES.index(one), DEMO_CHANNEL_NAMES.index(other)
            self.assertLess(likeness[both], 0.999, f"{one} and {other}")

    def test_each_sounds_like_what_it_is(self) -> None:
        def middle(name: str) -> float:
            power = np.abs(np.fft.rfft(self.sound(name)[: 8 * score.BAR])) ** 2
            return float(np.searchsorted(power.cumsum(), power.sum() / 2) / (8 * 2.4))

        for name, low, high in (
            ("Kick Out", 40, 90),
            ("Snare Bottom", 4000, 14_000),
            ("Hi-Hat", 7000, 18_000),
            ("Floor Tom", 60, 120),
            ("Bass DI", 40, 200),
            ("Organ", 150, 800),
            ("Lead Vocal", 200, 1200),
            ("Acoustic Guitar", 300, 4000),
        ):
            self.assertTrue(low < middle(name) < high, f"{name}: {middle(name):.0f} Hz")

    def test_the_band_is_in_time_and_in_tune(self) -> None:
        click = np.abs(self.sound("Click"))
        for beat in range(32):
            at = beat * score.BEAT
            self.assertGreater(click[at : at + 2000].max(), 0.05)
            self.assertEqual(click[at + 3000 : at + score.BEAT - 10].max(), 0)
        for pitch in (40, 57, 69, 84):
            string = pluck(hertz(pitch), 48_000, 0.5, 2.0, np.random.default_rng(1))
            spectrum = np.abs(np.fft.rfft(string * np.hanning(48_000), 480_000))
            near = slice(int(hertz(pitch) * 9.5), int(hertz(pitch) * 10.5))
            found = (near.start + spectrum[near].argmax()) / 10
            cents = abs(1200 * np.log2(found / hertz(pitch)))
            self.assertLess(cents, 3, f"MIDI {pitch}")
        self.assertLess(abs(loudest_hz(saw(440.0, 48_000)) - 440), 1.5)

    def test_loops_have_no_seam(self) -> None:
        """Sustained channels: from the last sample to the first is a step like any other."""
        for name in ("Bass Amp", "Organ", "Pad L", "Pad R", "Keys L", "Backing 1", "Ambience L"):
            sound = self.sound(name)
            self.assertLess(abs(sound[0] - sound[-1]), 2 * np.abs(np.diff(sound)).max(), name)

    def test_always_the_same(self) -> None:
        """Rendered twice, on two threads each time: the same bits."""
        first = render()
        render.cache_clear()
        for before, after in zip(first, render(), strict=True):
            np.testing.assert_array_equal(before, after)

    def test_memory(self) -> None:
        self.assertLess(sum(loop.nbytes for loop in render()), 100e6)


class PlayingTests(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.events = Events()

    def test_plays_the_loops_in_order(self) -> None:
        source = DemoSource(32, self.clock)
        source.start(self.events)
        frames = [source.read(240, 50 * MS) for _ in range(50)]
        heard = np.concatenate([frame.samples for frame in frames if frame is not None])
        np.testing.assert_array_equal(heard, band(0, 50 * 240).T.astype(np.int32) << 16)

    def test_goes_on_over_the_end(self) -> None:
        """The 8-bar loop begins again while the 16-bar loop goes on, and then both."""
        source = DemoSource(32, self.clock)
        source.start(self.events)
        for bars in (8, 16, 160):
            at = bars * score.BAR
            before, _ = source._next(at - 960, 960)
            after, _ = source._next(at, 960)
            heard = np.concatenate((before, after)) >> 16
            np.testing.assert_array_equal(heard, band(at - 960, 1920).T)

    def test_first_channels_only(self) -> None:
        source = DemoSource(5, self.clock)
        source.start(self.events)
        frame = source.read(240, 50 * MS)
        assert frame is not None
        self.assertEqual(frame.samples.shape, (240, 5))
        self.assertTrue(frame.samples.flags.c_contiguous)

    def test_more_than_it_has(self) -> None:
        source = DemoSource(64, self.clock)
        source.start(self.events)
        self.assertEqual((source.channels, self.events), (32, [FewerChannels(64, 32)]))


class ScoreTests(unittest.TestCase):
    def test_everything_lies_on_whole_samples_and_in_the_loop(self) -> None:
        self.assertEqual(score.BAR % 960, 0)
        self.assertEqual(score.STEP * 16, score.BAR)
        for part in (score.LEAD_VOCAL, score.LEAD_GUITAR, score.backing_vocal(0), score.brass()):
            for one, other in pairwise(part):
                self.assertLessEqual(one.at + one.length, other.at + 0.01)
            self.assertLessEqual(part[-1].at + part[-1].length, 8 * score.LONG_BARS + 0.01)
        for patterns in (score.KICK, score.SNARE, score.HAT, score.CONGAS):
            self.assertEqual({len(pattern) for pattern in patterns}, {16})
