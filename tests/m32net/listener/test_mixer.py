"""STR-22: pan, volume, mute, solo, master limiter and meters against theory; no clicks."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.mixer import RAMP_S, SILENCE_DB, Mixer, pan_gains
from m32net.listener.settings import ChannelMix, Eq, Limit, Master, Mix

RATE = 48_000
OPEN = Master(limit=False)


def db(value: float) -> float:
    return 20 * math.log10(max(value, 1e-12))


def level(mix: Mix, inputs: tuple[float, ...] = (0.1,)) -> tuple[float, float]:
    """What constant inputs on channels 1, 2, … come out as, left and right, in dB re 0.1."""
    mixer = Mixer(range(1, len(inputs) + 1), RATE, mix)
    block = np.tile(np.array(inputs, np.float32), (1000, 1))
    out = mixer.process(block)[-1]
    return db(out[0] / 0.1), db(out[1] / 0.1)


def run(mixer: Mixer, signal: np.ndarray, changes: dict[int, Mix], size: int = 240) -> np.ndarray:
    """Mix a signal block by block, with a new mix before the block of that number."""
    out = []
    for number, start in enumerate(range(0, len(signal), size)):
        if number in changes:
            mixer.set_mix(changes[number])
        out.append(mixer.process(signal[start : start + size].astype(np.float32)))
    return np.concatenate(out)


class LevelTest(unittest.TestCase):
    """The numbers of a mix in dB."""

    def test_pan_law(self) -> None:
        for pan, left, right in (
            (0.0, -3.0103, -3.0103),
            (-1.0, 0.0, None),
            (1.0, None, 0.0),
            (0.5, db(math.cos(3 * math.pi / 8)), db(math.sin(3 * math.pi / 8))),
        ):
            got = level(Mix((ChannelMix(1, pan=pan),), OPEN))
            for value, expected in zip(got, (left, right), strict=True):
                if expected is None:
                    self.assertLess(value, -120)
                else:
                    self.assertAlmostEqual(value, expected, places=3)

    @given(st.floats(-1, 1))
    def test_pan_keeps_power(self, pan: float) -> None:
        left, right = pan_gains(pan)
        self.assertAlmostEqual(left**2 + right**2, 1.0, places=12)
        self.assertGreaterEqual(min(left, right), -1e-12)

    def test_volume_is_linear(self) -> None:
        for volume in (0.25, 1.0, 4.0):
            got = level(Mix((ChannelMix(1, volume=volume, pan=-1),), OPEN))[0]
            self.assertAlmostEqual(got, db(volume), places=3)
        got = level(Mix((ChannelMix(1, pan=-1),), Master(volume=0.5, limit=False)))[0]
        self.assertAlmostEqual(got, db(0.5), places=3)

    def test_channels_add(self) -> None:
        mix = Mix((ChannelMix(1, pan=-1), ChannelMix(2, pan=-1)), OPEN)
        self.assertAlmostEqual(level(mix, (0.1, 0.2))[0], db(3), places=3)

    def test_mute_and_solo(self) -> None:
        left = ChannelMix(1, pan=-1)
        right = ChannelMix(2, pan=1)
        both = (0.1, 0.1)
        muted = level(Mix((ChannelMix(1, pan=-1, mute=True), right), OPEN), both)
        self.assertLess(muted[0], -100)
        self.assertAlmostEqual(muted[1], 0, places=3)
        solo = level(Mix((left, ChannelMix(2, pan=1, solo=True)), OPEN), both)
        self.assertLess(solo[0], -100)
        self.assertAlmostEqual(solo[1], 0, places=3)
        muted_solo = level(Mix((left, ChannelMix(2, solo=True, mute=True)), OPEN), both)
        self.assertLess(max(muted_solo), -100)

    def test_hidden_sounds_all_the_same(self) -> None:
        self.assertAlmostEqual(level(Mix((ChannelMix(1, hidden=True),), OPEN))[0], -3.01, places=2)

    def test_columns_follow_channel_ids(self) -> None:
        mixer = Mixer((7, 3), RATE, Mix((ChannelMix(3, volume=0), ChannelMix(7, pan=-1)), OPEN))
        out = mixer.process(np.tile(np.array([0.2, 0.9], np.float32), (500, 1)))
        self.assertAlmostEqual(float(out[-1, 0]), 0.2, places=5)


class LimiterTest(unittest.TestCase):
    """STR-22: the master limiter is on by default and is never passed."""

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**32), volume=st.floats(0, 4), size=st.integers(1, 1500))
    def test_default_never_over_one_db_below_full_scale(
        self, seed: int, volume: float, size: int
    ) -> None:
        random = np.random.default_rng(seed)
        mix = Mix(tuple(ChannelMix(i, volume=volume) for i in range(1, 9)))
        mixer = Mixer(range(1, 9), RATE, mix)
        out = run(mixer, random.standard_normal((4000, 8)), {}, size)
        self.assertLessEqual(np.abs(out).max(), 10 ** (-1 / 20))

    def test_off_lets_through(self) -> None:
        self.assertAlmostEqual(
            level(Mix((ChannelMix(1, volume=4, pan=-1),), OPEN), (1.0,))[0], db(40), places=3
        )

    def test_channel_limit(self) -> None:
        mix = Mix((ChannelMix(1, limit=Limit(-40.0), pan=-1),), OPEN)
        self.assertAlmostEqual(level(mix, (0.5,))[0], -20, places=2)


class ClickTest(unittest.TestCase):
    """STR-22: no clicks when a value moves (ramped)."""

    def moved(self, before: Mix, after: Mix) -> np.ndarray:
        constant = np.full((RATE // 4, 2), 0.25)
        mixer = Mixer((1, 2), RATE, before)
        changes = {20: after, 22: before, 23: after, 35: before}  # some while the ramp runs
        return run(mixer, constant, changes)[mixer.latency :]

    def test_second_difference_is_bounded(self) -> None:
        """A constant input shows the gain itself: its bends stay those of a 20 ms ramp."""
        quiet = Mix((ChannelMix(1, volume=0), ChannelMix(2, mute=True)), OPEN)
        loud = Mix((ChannelMix(1, volume=2, pan=-1), ChannelMix(2, volume=2, pan=-1)), OPEN)
        solo = Mix((ChannelMix(1, volume=2, pan=1, solo=True),), OPEN)
        swing = 0.25 * 4
        # largest slope of a raised cosine over n samples: swing * pi / 2n; a ramp that begins
        # amid another one may bend by twice that
        bend = 2 * swing * math.pi / (2 * RAMP_S * RATE)
        for before, after in ((quiet, loud), (loud, solo), (solo, quiet)):
            out = self.moved(before, after)
            self.assertGreater(np.ptp(out), 0.3)
            self.assertLess(np.abs(np.diff(out, 2, axis=0)).max(), bend)
            self.assertLess(np.abs(np.diff(out, axis=0)).max(), bend)

    def test_ramp_ends_on_time(self) -> None:
        mixer = Mixer((1,), RATE, Mix((), OPEN))
        mixer.set_mix(Mix((ChannelMix(1, volume=0),), OPEN))
        out = mixer.process(np.ones((2000, 1), np.float32))[:, 0]
        end = mixer.latency + round(RAMP_S * RATE)
        self.assertGreater(out[end - 100], 0)
        self.assertTrue((out[end:] == 0).all())

    def test_eq_and_limit_switches_do_not_click(self) -> None:
        plain = Mix((ChannelMix(1),), OPEN)
        worked = Mix((ChannelMix(1, eq=Eq(12, -12, 12), limit=Limit(-20.0)),), OPEN)
        tone = 0.2 * np.sin(2 * np.pi * 100 * np.arange(RATE // 4) / RATE)[:, None]
        out = run(Mixer((1,), RATE, plain), tone, {10: worked, 20: plain, 21: worked, 30: plain})
        # four times the tone's own slope (it gets 12 dB louder); a click would be a jump of 0.1
        self.assertLess(np.abs(np.diff(out, axis=0)).max(), 6 * 0.2 * 2 * np.pi * 100 / RATE)

    def test_same_mix_again_changes_nothing(self) -> None:
        mix = Mix((ChannelMix(1, volume=0.5),))
        mixer = Mixer((1,), RATE, mix)
        first = mixer.process(np.full((300, 1), 0.1, np.float32))
        mixer.set_mix(Mix((ChannelMix(1, volume=0.5),)))
        again = mixer.process(np.full((300, 1), 0.1, np.float32))
        self.assertTrue(np.array_equal(first[-1], again[0]))

    def test_blocks_of_any_size_give_the_same(self) -> None:
        signal = np.random.default_rng(1).standard_normal((4800, 2)) * 0.1
        mix = Mix((ChannelMix(1, eq=Eq(3, 3, 3), limit=True), ChannelMix(2, pan=0.3)))
        whole = run(Mixer((1, 2), RATE, mix), signal, {}, 4800)
        for size in (1, 221, 960):
            np.testing.assert_allclose(
                run(Mixer((1, 2), RATE, mix), signal, {}, size), whole, atol=1e-5
            )


class MeterTest(unittest.TestCase):
    """STR-22: meters."""

    def test_peak_and_rms(self) -> None:
        tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
        mixer = Mixer((1, 2), RATE, Mix((ChannelMix(1, pan=-1),), OPEN))
        run(mixer, np.stack((tone, 0 * tone), axis=1), {})
        meters = mixer.read_meters()
        self.assertApproximates(meters.peak[0], db(0.5), 0.1)
        self.assertApproximates(meters.rms[0], db(0.5 / math.sqrt(2)), 0.1)
        self.assertEqual(meters.peak[1], SILENCE_DB)
        self.assertApproximates(meters.master_peak[0], db(0.5), 0.1)
        self.assertLess(meters.master_peak[1], -100)
        self.assertEqual(meters.reduction, 0.0)

    def test_reading_starts_anew(self) -> None:
        mixer = Mixer((1,), RATE, Mix((ChannelMix(1, volume=2),)))
        mixer.process(np.ones((480, 1), np.float32))
        self.assertLess(mixer.read_meters().reduction, -1)
        mixer.process(np.zeros((4800, 1), np.float32))
        self.assertEqual(mixer.read_meters().peak, (SILENCE_DB,))
