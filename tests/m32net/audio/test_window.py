"""STR-41: one window of 20 ms serves frames of every length."""

from __future__ import annotations

import numpy as np
from twisted.trial import unittest

from m32net.audio.frame import AudioFrame
from m32net.audio.window import FrameWindow
from tests.support.audio import UNIX_2025, pattern


def frame(first: int, samples: int, **more: object) -> AudioFrame:
    captured = UNIX_2025 + first * 1_000_000 // 48
    return AudioFrame(pattern(first, samples, 3), first, captured, **more)  # type: ignore[arg-type]


class WindowTests(unittest.TestCase):
    def setUp(self) -> None:
        self.window = FrameWindow(3)

    def test_frames_nest(self) -> None:
        """Blocks of 2.5 ms: a longer frame is there when its last block is."""
        for first in range(0, 1920, 120):
            self.window.put(frame(first, 120))
            end = first + 120
            for samples in (120, 240, 480, 960):
                complete = self.window.complete(samples, floats=False)
                self.assertEqual(complete, end % samples == 0, f"{samples} at {end}")
                if complete:
                    content = self.window.samples(samples)
                    np.testing.assert_array_equal(content, pattern(end - samples, samples, 3))
                    captured = self.window.capture_time_ns(samples)
                    self.assertEqual(captured, UNIX_2025 + (end - samples) * 1_000_000 // 48)

    def test_no_frame_over_a_gap(self) -> None:
        self.window.put(frame(0, 480))
        self.window.put(frame(480 + 1920, 480))
        self.assertTrue(self.window.complete(480, floats=False))
        self.assertFalse(self.window.complete(960, floats=False))
        self.window.put(frame(2880, 480))
        self.window.put(frame(3360, 480))
        self.assertTrue(self.window.complete(960, floats=False))

    def test_floats_only_from_when_they_are_wanted(self) -> None:
        self.window.put(frame(0, 480))
        self.window.floats_wanted = True
        self.window.put(frame(480, 480))
        self.assertTrue(self.window.complete(480, floats=True))
        self.assertFalse(self.window.complete(960, floats=True))
        self.assertTrue(self.window.complete(960, floats=False))

    def test_floats_are_tones_where_there_are_some(self) -> None:
        self.window.floats_wanted = True
        samples = pattern(0, 240, 3)
        self.window.put(frame(0, 240))
        np.testing.assert_allclose(self.window.floats(240)[:, :3], samples / 2.0**31, atol=1e-7)
        self.window.put(frame(240, 240, tones=np.full((240, 3), -(2**30), np.int32)))
        self.assertEqual(set(self.window.floats(240)[:, :3].ravel()), {-0.5})
        self.assertEqual(set(self.window.floats(240)[:, 3]), {0.0})

    def test_a_block_off_its_grid_is_our_mistake(self) -> None:
        self.assertRaises(ValueError, self.window.put, frame(120, 240))
