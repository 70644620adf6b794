"""CON-51: one stream becomes another within 20 ms: no gap, no click, and nothing twice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.splice import (
    FADE_S,
    KEPT_S,
    Junction,
    Tape,
    alignment,
    crossfade,
    likeness,
)

RATE = 48_000
FADE = round(FADE_S * RATE)
FRAME = 240


def noise(rows: int, columns: int = 1, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (rows, columns)).astype(np.float32)


def sine(rows: int, hertz: float, phase: float = 0.0, first: int = 0) -> np.ndarray:
    time = np.arange(first, first + rows) / RATE
    return (0.5 * np.sin(2 * np.pi * hertz * time + phase))[:, None].astype(np.float32)


class CrossfadeTest(unittest.TestCase):
    def test_power_of_unlike_sounds_is_kept(self) -> None:
        """Two noises: the level is the same all through, to what 4,000 of them average out to."""
        rows = np.zeros(FADE)
        for seed in range(400):
            old, new = noise(FADE, 10, seed), noise(FADE, 10, seed + 1000)
            rows += (crossfade(old, new, 0, FADE, 0.0) ** 2).mean(axis=1) / 400
        level = np.sqrt(rows / (0.5**2 / 3))
        self.assertLess(np.abs(20 * np.log10(level)).max(), 0.5)

    def test_a_sound_faded_into_itself_is_itself(self) -> None:
        """To the bit, as recordings of L24 are."""
        random = np.random.default_rng(1)
        pcm = random.integers(-(2**23), 2**23, (FADE, 4), dtype=np.int32) << 8
        alike = likeness(pcm, pcm)
        np.testing.assert_array_equal(crossfade(pcm, pcm.copy(), 0, FADE, alike), pcm)

    def test_in_parts_as_in_one(self) -> None:
        old, new = noise(FADE, 2, 1), noise(FADE, 2, 2)
        parts = [
            crossfade(old[a : a + 96], new[a : a + 96], a, FADE, 0.3) for a in range(0, 960, 96)
        ]
        whole = crossfade(old, new, 0, FADE, 0.3)
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-7)

    def test_ends_are_the_streams_themselves(self) -> None:
        old, new = np.full((FADE, 1), 0.5, np.float32), np.full((FADE, 1), -0.5, np.float32)
        faded = crossfade(old, new, 0, FADE, 0.0)
        self.assertApproximates(float(faded[0, 0]), 0.5, 1e-4)
        self.assertApproximates(float(faded[-1, 0]), -0.5, 1e-4)
        self.assertLess(np.abs(np.diff(faded[:, 0])).max(), 0.004)

    def test_the_new_type_is_taken(self) -> None:
        loud = np.full((FADE, 1), 2**31 - 256, np.int32)
        faded = crossfade(np.ones((FADE, 1), np.float32), loud, 0, FADE, 0.0)
        self.assertEqual((faded.dtype, int(faded.max())), (np.int32, 2**31 - 1))  # clipped


class AlignmentTest(unittest.TestCase):
    def find(self, old: np.ndarray, new: np.ndarray, wanted: int = 0) -> tuple[int, float]:
        return alignment(
            old[:, 0], new[:, 0], wanted, least=wanted - 9600, most=wanted + 9600, overlap=960
        )

    @settings(max_examples=40, deadline=None)
    @given(st.integers(-9000, 9000))
    def test_same_sound_is_found_to_the_sample(self, shift: int) -> None:
        whole = noise(60_000)
        old = whole[20_000:39_200]
        found, alike = self.find(old, whole[20_000 - shift : 39_200 - shift])
        self.assertEqual(found, shift)
        self.assertGreater(alike, 0.99)

    def test_unlike_sounds_stay_where_they_are(self) -> None:
        self.assertEqual(self.find(noise(19_200, seed=1), noise(19_200, seed=2), 77), (77, 0.0))
        silence = np.zeros((19_200, 1))
        self.assertEqual(self.find(silence, silence, 5), (5, 0.0))
        self.assertEqual(self.find(noise(10), noise(10), 5), (5, 0.0))

    def test_of_many_periods_the_nearest(self) -> None:
        found, alike = self.find(sine(19_200, 1000), sine(19_200, 1000, first=13))
        self.assertEqual(found, -13)
        self.assertGreater(alike, 0.99)

    @given(st.integers(0, 400), st.integers(0, 400), st.integers(-500, 500))
    def test_any_lengths(self, a: int, b: int, wanted: int) -> None:
        found, alike = alignment(
            noise(a, seed=1)[:, 0], noise(b, seed=2)[:, 0], wanted,
            least=wanted - 300, most=wanted + 300, overlap=20,
        )  # fmt: skip
        self.assertTrue(abs(found - wanted) <= 300 and 0 <= alike <= 1)


class TapeTest(unittest.TestCase):
    @given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 300))
    def test_the_last_rows(self, sizes: list[int], limit: int) -> None:
        tape, total = Tape(limit), 0
        for size in sizes:
            tape.append(np.arange(total, total + size)[:, None])
            total += size
        self.assertEqual(tape.end, total)
        self.assertGreaterEqual(tape.end - tape.first, min(limit, total))
        self.assertLess(tape.end - tape.first, limit + 50)
        if total > tape.first:
            middle = (tape.first + total) // 2
            rows = tape.read(tape.first, middle + 1)[:, 0]
            self.assertEqual(rows.tolist(), list(range(tape.first, middle + 1)))


class JunctionCase(unittest.TestCase):
    def junction(self, *, patient: bool, **expected) -> Junction:
        self.out: list[np.ndarray] = []
        junction = Junction(self.out.append, RATE, "old", patient=patient)
        junction.expect("new", **expected)
        return junction

    def written(self) -> np.ndarray:
        return np.concatenate(self.out)

    def assert_smooth(self, sound: np.ndarray, own: float, factor: float = 1.5) -> None:
        """No step greater than the signal's own; two of them may add up to 1.41 times one."""
        self.assertLess(np.abs(np.diff(sound[:, 0])).max(), factor * own)

    def assert_no_gap(self, sound: np.ndarray, within: int = 192) -> None:
        """Nowhere 4 ms of silence."""
        quiet = np.abs(sound[:, 0]) < 1e-3
        runs = np.diff(np.flatnonzero(np.concatenate(([True], ~quiet, [True]))))
        self.assertLess(runs.max(), within)


class RecordingJunctionTest(JunctionCase):
    """Where it may wait, nothing is lost and nothing is twice."""

    def run_both(
        self, junction: Junction, old: np.ndarray, new: np.ndarray, begin_at: int, **how
    ) -> None:
        """Both streams frame by frame; ``new[k]`` comes when ``old[k]`` does."""
        for at in range(0, max(len(old), len(new)), FRAME):
            if at == begin_at:
                junction.begin(**how)
            junction.put("old", old[at : at + FRAME])
            junction.put("new", new[at : at + FRAME])

    def test_same_sound_with_any_delay_is_recorded_as_if_nothing_happened(self) -> None:
        whole = noise(3 * RATE, 3)
        for delay in (-9000, -1234, 0, 17, 4800, 9200):
            junction = self.junction(patient=True)
            first = 12_000
            old = whole[first : first + RATE]
            new = whole[first - delay : first - delay + 2 * RATE]
            self.run_both(junction, old, new, 24_000)
            written = self.written()
            np.testing.assert_allclose(written, whole[first : first + len(written)], atol=1e-6)
            self.assertGreater(len(written), 2 * RATE - abs(delay) - FRAME)
            self.assertEqual(junction.current, "new")
            self.assertApproximates(junction.alike, 1.0, 0.01)

    def test_bit_exact(self) -> None:
        random = np.random.default_rng(1)
        pcm = random.integers(-(2**23), 2**23, (2 * RATE, 32), dtype=np.int32) << 8
        junction = self.junction(patient=True)
        self.run_both(junction, pcm[480:RATE], pcm, 24_000)
        written = self.written()
        np.testing.assert_array_equal(written, pcm[480 : 480 + len(written)])

    def test_other_sounds_are_faded_where_they_are(self) -> None:
        junction = self.junction(patient=True)
        old, new = sine(RATE, 440), noise(2 * RATE) * 0
        new += sine(2 * RATE, 700)
        self.run_both(junction, old, new, 24_000)
        self.assertEqual(len(self.written()), 2 * RATE)
        self.assert_smooth(self.written(), 0.5 * 2 * np.pi * 700 / RATE)
        self.assert_no_gap(self.written())

    def test_old_one_stops_in_the_cross_fade(self) -> None:
        junction = self.junction(patient=True)
        old, new = sine(24_000 + 2 * FRAME, 440), sine(2 * RATE, 440, 1.0)
        made: list[int] = []

        def more(rows: int) -> np.ndarray:
            made.append(rows)
            return sine(rows, 440, first=len(old))

        self.run_both(junction, old, new, 24_000, more=more)
        self.assertEqual(len(made), 1)
        self.assert_no_gap(self.written())
        self.assert_smooth(self.written(), 0.5 * 2 * np.pi * 440 / RATE)

    def test_new_one_stops_in_the_cross_fade(self) -> None:
        """What was held back is not for ever: the old one fades out, and the new one may return."""
        junction = self.junction(patient=True)
        self.run_both(junction, sine(RATE * 2, 440), sine(24_000 + FRAME, 440), 24_000)
        self.assertEqual(junction.current, "new")
        self.assert_smooth(self.written(), 0.5 * 2 * np.pi * 440 / RATE)

    def test_old_one_had_stopped(self) -> None:
        """It is faded out, silence keeps the time, and the new one fades in."""
        junction = self.junction(patient=True)
        for at in range(0, 24_000, FRAME):
            junction.put("old", sine(FRAME, 440, first=at))
        for at in range(0, 2400, FRAME):
            junction.put("new", sine(FRAME, 300, first=at))
        behind = 7200  # 150 ms, of which the new one knows the last 50
        junction.begin(behind=behind, alone=True, more=lambda rows: sine(rows, 440, first=24_000))
        junction.put("new", sine(FRAME, 300, first=2400))
        written = self.written()
        self.assertEqual(len(written), 24_000 + behind + FRAME)
        self.assert_smooth(written, 0.5 * 2 * np.pi * 440 / RATE)
        self.assertEqual(np.abs(written[25_000:28_000]).max(), 0)

    def test_another_format_begins_anew(self) -> None:
        junction = self.junction(patient=True, cut=lambda: self.out.append("cut"), rate=32_000)
        for _ in range(20):
            junction.put("old", noise(FRAME))
            junction.put("new", noise(160, 5))
        junction.begin()
        junction.put("old", noise(FRAME))
        junction.put("new", noise(160, 5))
        self.assertEqual(self.out[20], "cut")
        self.assertEqual([one.shape for one in self.out[21:]], [(160, 5)])
        self.assertEqual(junction.rate, 32_000)

    def test_given_up(self) -> None:
        junction = self.junction(patient=True)
        whole = noise(RATE)
        for at in range(0, RATE, FRAME):
            if at == 24_000:
                junction.give_up()
            junction.put("old", whole[at : at + FRAME])
            junction.put("new", noise(FRAME, seed=2))
        np.testing.assert_array_equal(self.written(), whole)

    def test_what_is_remembered_is_bounded(self) -> None:
        junction = self.junction(patient=True)
        for _ in range(2000):
            junction.put("old", noise(FRAME))
            junction.put("new", noise(FRAME))
        self.assertLess(junction._new.end - junction._new.first, KEPT_S * RATE + FRAME)
        self.assertLess(junction._old.end - junction._old.first, RATE / 2)


class SoundCardJunctionTest(JunctionCase):
    """Where it cannot wait, every block goes on at once."""

    def run_both(self, old: np.ndarray, new: np.ndarray, *, ahead: int, late: int) -> Junction:
        """``new[k]`` comes ``late`` rows after ``old[k]``; the cross-fade begins at 0.5 s."""
        junction = self.junction(patient=False)
        given = 0
        for at in range(0, len(old), FRAME):
            if at == 24_000:
                junction.begin(ahead=ahead)
            before = sum(map(len, self.out))
            junction.put("old", old[at : at + FRAME])
            if at < 24_960:  # to the end of the cross-fade
                self.assertGreaterEqual(sum(map(len, self.out)) - before, min(FRAME, 960))
            upto = max(0, at + FRAME - late)
            junction.put("new", new[given:upto])
            given = max(given, upto)
        return junction

    def test_same_sound_goes_on(self) -> None:
        whole = noise(2 * RATE)
        junction = self.run_both(whole[4800 : 4800 + RATE], whole[5800:], ahead=900, late=0)
        written = self.written()
        np.testing.assert_allclose(written, whole[4800 : 4800 + len(written)], atol=1e-6)
        self.assertEqual(junction.current, "new")

    def test_a_sine_is_joined_in_phase(self) -> None:
        for hertz in (100, 440, 997, 3000):
            for phase in (0.0, 1.0, 2.0, 3.1, 5.0):
                self.run_both(sine(RATE, hertz), sine(RATE, hertz, phase), ahead=620, late=100)
                written = self.written()
                self.assert_no_gap(written)
                self.assert_smooth(written, 0.5 * 2 * np.pi * hertz / RATE, 1.05)
                level = np.sqrt(np.convolve(written[:, 0] ** 2, np.ones(960) / 960, "valid"))
                self.assertLess(np.abs(20 * np.log10(level / level[0])).max(), 0.5)

    def test_other_sounds(self) -> None:
        self.run_both(sine(RATE, 440), sine(RATE, 1000), ahead=620, late=100)
        self.assert_no_gap(self.written())
        self.assert_smooth(self.written(), 0.5 * 2 * np.pi * 1000 / RATE)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.booleans(), st.integers(1, 2000)), max_size=80),
        st.integers(0, 79),
        st.booleans(),
        st.booleans(),
    )
    def test_whatever_comes_when(
        self, steps: list[tuple[bool, int]], begin_at: int, alone: bool, patient: bool
    ) -> None:
        """Nothing raises, what is held back is bounded, and blocks keep their shape and type."""
        junction = self.junction(patient=patient)
        for number, (old, rows) in enumerate(steps):
            if number == begin_at and junction._new.end:
                junction.begin(ahead=500, behind=300, alone=alone)
            junction.put("old" if old else "new", noise(rows, 2))
            self.assertLess(junction._held.end - junction._done, 1.0 * RATE)
        for block in self.out:
            self.assertEqual((block.shape[1], block.dtype), (2, np.float32))
