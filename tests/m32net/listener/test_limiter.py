"""STR-22: the limiters: no sample over the ceiling, whatever comes; no step in the gain."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.limiter import Limiter
from m32net.listener.settings import Limit

RATE = 48_000


def run(limiter: Limiter, signal: np.ndarray, size: int = 240) -> np.ndarray:
    signal = signal.astype(np.float32)
    return np.concatenate(
        [limiter.process(signal[at : at + size]) for at in range(0, len(signal), size)]
    )


def made(limit: Limit | None, columns: int = 1, linked: bool = False) -> Limiter:
    limiter = Limiter(columns, RATE, linked=linked)
    limiter.set([limit] * (1 if linked else columns))
    return limiter


class CeilingTest(unittest.TestCase):
    """Never a sample over the ceiling."""

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        ceiling=st.floats(-40, 0),
        release=st.floats(1, 1000),
        size=st.integers(1, 3000),
        linked=st.booleans(),
        scale=st.floats(0.01, 1000),
    )
    def test_no_overs(
        self, seed: int, ceiling: float, release: float, size: int, linked: bool, scale: float
    ) -> None:
        random = np.random.default_rng(seed)
        signal = random.standard_normal((4000, 3)) * scale * (random.random((4000, 1)) < 0.2)
        limiter = made(Limit(ceiling, release), 3, linked)
        out = run(limiter, signal, size)
        self.assertLessEqual(np.abs(out).max(), np.float32(10 ** (ceiling / 20)))

    def test_full_scale_step_comes_out_at_the_ceiling(self) -> None:
        limiter = made(Limit(-6.0, 50.0))
        signal = np.zeros((4800, 1))
        signal[2000:] = 1.0
        out = run(limiter, signal)
        self.assertAlmostEqual(float(out[-1, 0]), 10 ** (-6 / 20), places=4)
        self.assertLessEqual(out.max(), 10 ** (-6 / 20))

    def test_it_is_no_clipper(self) -> None:
        """A loud tone stays a tone: its harmonics are far down, where a clipper's are not."""
        tone = 2.0 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)[:, None]
        out = run(made(Limit(-1.0, 100.0)), tone)[24_000:, 0]
        spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out))))
        third = spectrum[1495:1505].max() / spectrum[495:505].max()
        self.assertLess(20 * np.log10(third), -55)
        clipped = np.abs(np.fft.rfft(np.clip(tone[24_000:, 0], -0.89, 0.89) * np.hanning(24_000)))
        self.assertGreater(20 * np.log10(clipped[1495:1505].max() / clipped[495:505].max()), -20)


class TransparencyTest(unittest.TestCase):
    """Below the ceiling nothing happens but the delay."""

    def test_quiet_signal_passes_bit_exactly(self) -> None:
        for limit in (None, Limit(-1.0)):
            limiter = made(limit, 2)
            signal = (np.random.default_rng(3).random((1000, 2)) - 0.5).astype(np.float32)
            out = run(limiter, signal, 77)
            delay = limiter.lookahead
            self.assertTrue(np.array_equal(out[delay:], signal[:-delay]))
            self.assertEqual(limiter.reduction_db, 0.0)

    def test_other_columns_are_left_alone(self) -> None:
        limiter = Limiter(2, RATE)
        limiter.set([Limit(-20.0), None])
        signal = np.ones((1000, 2), np.float32)
        out = run(limiter, signal)
        self.assertAlmostEqual(float(out[-1, 0]), 0.1, places=4)
        self.assertEqual(float(out[-1, 1]), 1.0)

    def test_linked_keeps_the_image(self) -> None:
        limiter = made(Limit(-12.0), 2, linked=True)
        signal = np.tile(np.array([[1.0, 0.25]]), (4000, 1))
        out = run(limiter, signal)
        np.testing.assert_allclose(out[200:, 0], 4 * out[200:, 1], rtol=1e-5)

    def test_release(self) -> None:
        """After a peak the reduction falls to 1/e within the release time."""
        limiter = made(Limit(-20.0, 100.0))
        signal = np.full((80_000, 1), 0.05)
        signal[1000] = 1.0
        out = run(limiter, signal)[:, 0] / 0.05
        at_peak = 1000 + limiter.lookahead
        reduction = 1 - out[at_peak + 2 * limiter.lookahead + round(0.1 * RATE)]
        self.assertApproximates(reduction / 0.9, np.exp(-1), 0.02)
        self.assertEqual(float(out[-1]), 1.0)

    def test_blocks_of_any_size_give_the_same(self) -> None:
        signal = np.random.default_rng(5).standard_normal((6000, 2))
        whole = run(made(Limit(-10.0, 5.0), 2), signal, 6000)
        for size in (1, 48, 49, 240, 2049):
            np.testing.assert_allclose(
                run(made(Limit(-10.0, 5.0), 2), signal, size), whole, atol=1e-6
            )


class ClickTest(unittest.TestCase):
    """Setting a limiter while the signal runs moves the gain, never steps it."""

    def test_gain_slope_is_bounded(self) -> None:
        limiter = made(None)
        signal = np.ones((240, 1), np.float32)
        out = []
        for number in range(60):
            limiter.set(
                [None, Limit(-20.0), Limit(-3.0), Limit(-30.0, 1.0)][
                    number // 5 % 4 : number // 5 % 4 + 1
                ]
            )
            out.append(limiter.process(signal))
        gain = np.concatenate(out)[limiter.lookahead :, 0]
        # an attack takes the whole look-ahead; a release of 1 ms is slower than that
        self.assertLess(np.abs(np.diff(gain)).max(), 1.0 / limiter.lookahead + 1e-3)
