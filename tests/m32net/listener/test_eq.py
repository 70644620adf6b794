"""STR-22: the three-band equaliser against the analytic responses, and no clicks when it moves."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.eq import HIGH_HZ, LOW_HZ, MID_HZ, EqBank, sections
from m32net.listener.settings import Eq

RATE = 48_000


def analytic_db(eq: Eq, frequencies: np.ndarray) -> np.ndarray:
    """The cookbook's analogue prototypes at the bilinear-warped frequencies, in dB."""

    def s(corner: float) -> np.ndarray:
        return 1j * np.tan(np.pi * frequencies / RATE) / np.tan(np.pi * corner / RATE)

    total = np.zeros(len(frequencies))
    for gain, f0, shape in (
        (eq.low, LOW_HZ, "low"),
        (eq.mid, MID_HZ, "peak"),
        (eq.high, HIGH_HZ, "high"),
    ):
        a, x = 10 ** (gain / 40), s(f0)
        root = np.sqrt(a) * np.sqrt(2)  # sqrt(A)/Q with S = 1, 1/Q = sqrt(2)
        if shape == "low":
            h = a * (x**2 + root * x + a) / (a * x**2 + root * x + 1)
        elif shape == "high":
            h = a * (a * x**2 + root * x + 1) / (x**2 + root * x + a)
        else:
            h = (x**2 + x * (a / 0.7) + 1) / (x**2 + x / (a * 0.7) + 1)
        total += 20 * np.log10(np.abs(h))
    return total


def settled(eq: Eq, channels: int = 1) -> EqBank:
    bank = EqBank(channels, RATE)
    bank.set({0: eq})
    bank.process(np.zeros((2000, channels), np.float32))
    return bank


gains = st.floats(-15, 15).map(lambda x: round(x, 2))


class ResponseTest(unittest.TestCase):
    """STR-22: low shelf, peak and high shelf in dB, measured by FFT of the impulse response."""

    @settings(max_examples=25, deadline=None)
    @given(gains, gains, gains)
    def test_measured_response_is_the_analytic_one(
        self, low: float, mid: float, high: float
    ) -> None:
        eq = Eq(low, mid, high)
        bank = settled(eq)
        block = np.zeros((1 << 14, 1), np.float32)
        block[0] = 1.0
        for start in range(0, len(block), 333):
            bank.process(block[start : start + 333])
        measured = 20 * np.log10(np.abs(np.fft.rfft(block[:, 0].astype(float))))
        frequencies = np.fft.rfftfreq(len(block), 1 / RATE)
        band = (frequencies > 20) & (frequencies < 20_000)
        error = np.abs(measured - analytic_db(eq, frequencies))[band]
        self.assertLess(error.max(), 0.05)

    def test_bands_do_what_their_names_say(self) -> None:
        for eq, frequency, expected in (
            (Eq(low=12), 30.0, 12.0),
            (Eq(low=-12), 30.0, -12.0),
            (Eq(mid=6), 1000.0, 6.0),
            (Eq(high=-9), 18_000.0, -9.0),
            (Eq(low=12, high=12), 1000.0, 0.0),
        ):
            db = analytic_db(eq, np.array([frequency]))[0]
            self.assertApproximates(db, expected, 0.8)

    def test_low_rates_are_stable(self) -> None:
        for rate in (8000, 24_000, 32_000, 44_100):
            poles = [np.abs(np.roots(row[3:])).max() for row in sections(Eq(15, 15, 15), rate)]
            self.assertLess(max(poles), 1.0)


class BankTest(unittest.TestCase):
    """Only what is not flat is filtered; block borders do not show."""

    def test_flat_passes_bit_exactly_and_costs_nothing(self) -> None:
        bank = EqBank(3, RATE)
        block = np.random.default_rng(1).standard_normal((100, 3)).astype(np.float32)
        expected = block.copy()
        bank.process(block)
        self.assertTrue(np.array_equal(block, expected))
        self.assertEqual(bank.active, 0)

    def test_only_its_own_column(self) -> None:
        bank = settled(Eq(mid=10), 3)
        self.assertEqual(bank.active, 1)
        block = np.random.default_rng(1).standard_normal((100, 3)).astype(np.float32)
        expected = block.copy()
        bank.process(block)
        self.assertTrue(np.array_equal(block[:, 1:], expected[:, 1:]))
        self.assertFalse(np.allclose(block[:, 0], expected[:, 0]))

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(0, 700), min_size=1, max_size=8))
    def test_blocks_of_any_size_give_the_same(self, sizes: list[int]) -> None:
        signal = np.random.default_rng(2).standard_normal((sum(sizes) + 1, 1)).astype(np.float32)
        whole, parts = signal.copy(), signal.copy()
        for block, pieces in ((whole, [len(whole)]), (parts, [*sizes, 1])):
            bank = EqBank(1, RATE)
            bank.set({0: Eq(3, -6, 9)})  # begins with a cross-fade
            start = 0
            for size in pieces:
                bank.process(block[start : start + size])
                start += size
        np.testing.assert_allclose(parts, whole, atol=1e-5)

    def test_back_to_flat_is_free_again(self) -> None:
        bank = settled(Eq(low=15))
        bank.set({0: Eq()})
        self.assertEqual(bank.active, 1)
        bank.process(np.zeros((2000, 1), np.float32))
        self.assertEqual(bank.active, 0)

    def test_last_of_many_changes_wins(self) -> None:
        bank = EqBank(1, RATE)
        for gain in (3.0, 6.0, -12.0):
            bank.set({0: Eq(mid=gain)})
            bank.process(np.zeros((10, 1), np.float32))
        bank.process(np.zeros((3000, 1), np.float32))
        tone = np.sin(2 * np.pi * 1000 * np.arange(9600) / RATE).astype(np.float32)[:, None]
        bank.process(tone)
        self.assertApproximates(20 * np.log10(np.abs(tone[4800:]).max()), -12.0, 0.05)


class ClickTest(unittest.TestCase):
    """STR-22: no clicks when a value moves."""

    def test_curvature_stays_near_the_signals_own(self) -> None:
        """A 200 Hz tone while all bands jump by 30 dB: no corner in the wave."""
        tone = 0.2 * np.sin(2 * np.pi * 200 * np.arange(RATE // 2) / RATE)
        loud = 0.2 * 10 ** (15 / 20)
        own = loud * (2 * np.pi * 200 / RATE) ** 2  # second difference of the louder tone
        bank = settled(Eq(-15, -15, -15))
        out = []
        for number, start in enumerate(range(0, len(tone), 240)):
            if number % 7 == 3:
                bank.set({0: Eq(15, 15, 15) if number % 2 else Eq(-15, -15, -15)})
            block = tone[start : start + 240, None].astype(np.float32)
            bank.process(block)
            out.append(block[:, 0])
        bend = np.abs(np.diff(np.concatenate(out), 2)).max()
        self.assertLess(bend, 3 * own)
