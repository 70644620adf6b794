"""STR-25: lost PCM is interpolated between its neighbours, never clicked; long gaps are faded."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.conceal import HISTORY_S, JOIN_S, Concealer, burg

RATE = 48_000
FRAME = 240
JOIN = round(JOIN_S * RATE)
TIME = np.arange(RATE // 2) / RATE


def tones(*frequencies: float, level: float = 0.2) -> np.ndarray:
    return sum(level * np.sin(2 * np.pi * f * TIME + f) for f in frequencies)


def band() -> np.ndarray:
    """Tones, a chord, a buzz, noise and silence side by side, float32, shape (n, 6)."""
    random = np.random.default_rng(1)
    noise = 0.1 * np.convolve(random.standard_normal(len(TIME)), np.ones(8) / 8, "same")
    buzz = sum(0.3 / k * np.sin(2 * np.pi * 110 * k * TIME + k) for k in range(1, 30))
    return np.stack(
        (
            tones(440),
            tones(100),
            tones(220, 277.2, 329.6),
            buzz,
            noise,
            0 * TIME,
        ),
        axis=1,
    ).astype(np.float32)


def repair(
    signal: np.ndarray,
    lost: set[int],
    *,
    know_next: bool = True,
    concealer: Concealer | None = None,
    columns: np.ndarray | None = None,
) -> np.ndarray:
    """Run a signal through with these frames lost, in all or some columns."""
    concealer = concealer or Concealer(signal.shape[1], RATE)
    mask = np.ones(signal.shape[1], bool) if columns is None else columns
    frames = [signal[at : at + FRAME] for at in range(0, len(signal), FRAME)]
    out = []
    for number, frame in enumerate(frames):
        if number not in lost:
            out.append(concealer.repair(frame))
            continue
        known = know_next and number + 1 not in lost and number + 1 < len(frames)
        broken = np.where(mask, np.full_like(frame, 77), frame)
        out.append(concealer.repair(broken, mask, frames[number + 1] if known else None))
    return np.concatenate(out)


def quality_db(signal: np.ndarray, out: np.ndarray, frame: int, frames: int = 1) -> float:
    where = slice(frame * FRAME, (frame + frames) * FRAME)
    error = float(((signal[where] - out[where]) ** 2).sum())
    return 10 * np.log10(float((signal[where] ** 2).sum()) / max(error, 1e-20))


class ClickTest(unittest.TestCase):
    """No discontinuity greater than the signal's own slope."""

    def assert_no_click(
        self, signal: np.ndarray, out: np.ndarray, joins: bool = False, slack: float = 1.1
    ) -> None:
        """A join of two waves that do not fit may add the slope of its own 2.5 ms ramp."""
        own = np.abs(np.diff(signal, axis=0)).max(axis=0)
        if joins:
            own = own + np.ptp(signal, axis=0) * np.pi / 2 / JOIN
        got = np.abs(np.diff(out, axis=0)).max(axis=0)
        for column in range(signal.shape[1]):
            self.assertLessEqual(got[column], slack * own[column] + 1e-6, f"column {column}")

    def test_single_frames_between_known_neighbours(self) -> None:
        self.assert_no_click(band(), repair(band(), {10, 30, 55, 70}))

    def test_runs_of_frames(self) -> None:
        self.assert_no_click(band(), repair(band(), {20, 21, 22, 50, 51, 52, 53, 54, 55}))

    def test_next_frame_not_known(self) -> None:
        self.assert_no_click(band(), repair(band(), {10, 30, 31, 70}, know_next=False))

    def test_every_other_frame(self) -> None:
        self.assert_no_click(band(), repair(band(), set(range(9, 90, 2))))

    def test_long_gap_and_silence(self) -> None:
        signal = band()
        concealer = Concealer(signal.shape[1], RATE, interpolate_ms=20)
        everything = np.ones(signal.shape[1], bool)
        out = [concealer.repair(signal[:4800])]
        out += [concealer.repair(np.zeros((FRAME, 6), np.float32), everything) for _ in range(4)]
        self.assertEqual(np.abs(out[-1][-1]).max(), 0)
        out.append(concealer.silence(3000, np.float32))
        out.append(concealer.repair(signal[9000:9600]))
        self.assert_no_click(signal, np.concatenate(out))

    def test_skipped_time(self) -> None:
        """Two pieces that do not fit are joined, as when frames are too late to be played."""
        signal = band()
        concealer = Concealer(signal.shape[1], RATE)
        out = [concealer.repair(signal[:4800])]
        concealer.discontinuity()
        out.append(concealer.repair(signal[10_111:12_000]))
        self.assert_no_click(signal, np.concatenate(out), joins=True)
        self.assertTrue(np.array_equal(out[-1][JOIN:], signal[10_111 + JOIN : 12_000]))

    def test_first_frame_lost(self) -> None:
        out = repair(band(), {0})
        self.assert_no_click(band(), out)

    @settings(max_examples=40, deadline=None)
    @given(st.sets(st.integers(0, 99), max_size=60), st.booleans())
    def test_any_pattern(self, lost: set[int], know_next: bool) -> None:
        signal = band()[:, :3]
        out = repair(signal, lost, know_next=know_next)
        self.assertEqual(out.shape, signal.shape)
        # Frame upon frame lost with 5 ms of history between them is continued by a model that has
        # heard too little: its wave is up to 1.5 times as steep.  A cut would be 20 times.
        self.assert_no_click(signal, out, joins=True, slack=2.0)


class FidelityTest(unittest.TestCase):
    """It is an interpolation, not a hole."""

    def test_tones_are_continued(self) -> None:
        signal = band()
        out = repair(signal, {20, 50, 51})
        for column, least in ((0, 30), (1, 60), (2, 18)):
            self.assertGreater(quality_db(signal[:, column], out[:, column], 20), least)
        self.assertGreater(quality_db(signal[:, 0], out[:, 0], 50, 2), 25)

    def test_constant_stays_constant(self) -> None:
        signal = np.tile(np.arange(1, 33, dtype=np.int32) << 16, (4800, 1))
        out = repair(signal, {5, 6, 12})
        self.assertTrue(np.array_equal(out, signal))

    def test_silence_stays_silent(self) -> None:
        self.assertEqual(np.abs(repair(band(), {10, 11})[:, 5]).max(), 0)

    def test_level_is_held(self) -> None:
        """Noise of three lost frames is no hole: its level stays within 6 dB."""
        out = repair(band(), {40, 41, 42})
        before = out[30 * FRAME : 40 * FRAME, 4].std()
        during = out[40 * FRAME : 41 * FRAME, 4].std()
        self.assertGreater(during, before / 2)

    def test_faded_out_at_the_threshold(self) -> None:
        signal = band()
        concealer = Concealer(6, RATE, interpolate_ms=50)
        out = repair(signal, set(range(20, 40)), concealer=concealer)
        self.assertGreater(np.abs(out[20 * FRAME : 21 * FRAME, 0]).max(), 0.15)
        self.assertEqual(np.abs(out[30 * FRAME : 39 * FRAME]).max(), 0)


class UntouchedTest(unittest.TestCase):
    """What is there stays as it is."""

    def test_nothing_lost_is_bit_exact_and_not_even_copied(self) -> None:
        random = np.random.default_rng(2)
        for dtype in (np.int32, np.float32):
            concealer = Concealer(3, RATE)
            block = (random.standard_normal((FRAME, 3)) * 1e6).astype(dtype)
            self.assertIs(concealer.repair(block), block)

    def test_neighbours_of_an_interpolated_frame_are_bit_exact(self) -> None:
        random = np.random.default_rng(2)
        signal = random.integers(-(2**31), 2**31, (FRAME * 40, 4)).astype(np.int32)
        out = repair(signal, {20})
        keep = np.r_[0 : 20 * FRAME, 21 * FRAME : len(signal)]
        self.assertTrue(np.array_equal(out[keep], signal[keep]))
        self.assertEqual(out.dtype, np.int32)

    def test_only_the_join_is_touched_after_an_extrapolated_frame(self) -> None:
        signal = band()
        out = repair(signal, {20}, know_next=False)
        keep = np.r_[0 : 20 * FRAME, 21 * FRAME + JOIN : len(signal)]
        self.assertTrue(np.array_equal(out[keep], signal[keep]))

    def test_other_columns_are_bit_exact(self) -> None:
        signal = band()
        mask = np.array([True, False, True, False, False, False])
        out = repair(signal, {20, 21, 40}, columns=mask)
        self.assertTrue(np.array_equal(out[:, ~mask], signal[:, ~mask]))
        self.assertFalse(np.array_equal(out[:, mask], signal[:, mask]))

    def test_full_scale_does_not_wrap(self) -> None:
        tone = (np.sin(2 * np.pi * 300 * TIME) * (2**31 - 1)).astype(np.int32)[:, None]
        out = repair(tone, {20, 21, 60}).astype(float)
        self.assertLess(np.abs(np.diff(out[:, 0])).max(), 1.2 * 2**31 * 2 * np.pi * 300 / RATE)


class BoundsTest(unittest.TestCase):
    """Memory and models."""

    def test_history_is_bounded(self) -> None:
        concealer = Concealer(2, RATE)
        for size in (1, 7, 960, 240) * 200:
            concealer.repair(np.zeros((size, 2), np.float32))
        self.assertLessEqual(concealer._held, HISTORY_S * RATE + 960)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32), st.integers(0, 32), st.integers(100, 400))
    def test_models_are_stable(self, seed: int, order: int, n: int) -> None:
        lanes = np.random.default_rng(seed).standard_normal((3, n)).cumsum(axis=1)
        for model in burg(lanes, order)[0]:
            self.assertLessEqual(np.abs(np.roots(model)).max(initial=0), 1 + 1e-6)
