"""STR-2, STR-41: the ring between audio callback and engine is bounded and counts its drops."""

from __future__ import annotations

import threading
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.audio.ring import GRID, FrameRing

CAPACITY = 4 * GRID


def block(first: int, samples: int, channels: int = 2) -> np.ndarray:
    rows = np.arange(first, first + samples, dtype=np.int32)[:, None]
    return np.ascontiguousarray(rows * channels + np.arange(channels, dtype=np.int32))


class RingTests(unittest.TestCase):
    def setUp(self) -> None:
        self.woken = 0
        self.ring = FrameRing(CAPACITY, 2, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def write(self, samples: int, stamp_ns: int = 0) -> None:
        self.ring.write(block(self.ring.written, samples), samples, stamp_ns)

    def test_reads_what_was_written_over_the_end(self) -> None:
        """Blocks of 128 in, frames of 240 out, many times around."""
        expected = 0
        for _ in range(200):
            self.write(128)
            while (taken := self.ring.read(240)) is not None:
                first, samples = taken
                self.assertEqual(first, expected)
                np.testing.assert_array_equal(samples, block(first, 240))
                expected += 240
        self.assertEqual(expected, 200 * 128 // 240 * 240)
        self.assertEqual(self.ring.dropped, 0)

    def test_accepts_bytes_as_portaudio_gives_them(self) -> None:
        self.ring.write(memoryview(block(0, 120).tobytes()), 120, 0)
        taken = self.ring.read(120)
        assert taken is not None
        np.testing.assert_array_equal(taken[1], block(0, 120))

    def test_a_copy_survives_later_writes(self) -> None:
        self.write(240)
        taken = self.ring.read(240)
        assert taken is not None
        self.write(CAPACITY)
        np.testing.assert_array_equal(taken[1], block(0, 240))

    def test_full_drops_the_oldest_by_whole_grids_and_counts(self) -> None:
        """What is stepped over is a multiple of 20 ms, and reading goes on behind it."""
        for _ in range(10):
            self.write(GRID)
        taken = self.ring.read(120)
        assert taken is not None
        first, samples = taken
        self.assertEqual(first % GRID, 0)
        self.assertEqual(first, self.ring.dropped)
        self.assertGreaterEqual(first, 10 * GRID - CAPACITY)
        np.testing.assert_array_equal(samples, block(first, 120))

    def test_overwritten_while_copying_is_thrown_away(self) -> None:
        """The writer laps the reader in the middle of a copy: the torn copy isn't handed out."""
        copy = self.ring._copy
        interfere = iter([CAPACITY, 0, 0])

        def copy_slowly(samples: int) -> np.ndarray:
            taken = copy(samples)
            more = next(interfere)
            if more:
                self.write(more)
                taken[samples // 2 :] = -1
            return taken

        self.write(GRID)
        self.ring._copy = copy_slowly  # type: ignore[method-assign]
        taken = self.ring.read(240)
        assert taken is not None
        first, samples = taken
        self.assertGreater(first, 0)
        np.testing.assert_array_equal(samples, block(first, 240))

    def test_wakes_once_when_enough_is_there(self) -> None:
        self.assertFalse(self.ring.wake_at(240))
        self.write(128)
        self.assertEqual(self.woken, 0)
        self.write(128)
        self.write(128)
        self.assertEqual(self.woken, 1)
        self.assertTrue(self.ring.wake_at(240))
        self.write(128)
        self.assertEqual(self.woken, 1)

    def test_discard_keeps_the_newest_on_the_grid(self) -> None:
        for _ in range(31):
            self.write(128)
        self.ring.discard()
        taken = self.ring.read(120)
        assert taken is not None
        self.assertEqual(taken[0], 31 * 128 // GRID * GRID)
        self.assertEqual(self.ring.dropped, 0)

    def test_remembers_when_a_sample_arrived(self) -> None:
        for number in range(40):
            self.write(128, stamp_ns=1000 + number)
        self.assertEqual(self.ring.arrived_ns(40 * 128), 1039)
        self.assertEqual(self.ring.arrived_ns(39 * 128), 1038)
        self.assertEqual(self.ring.arrived_ns(38 * 128 + 1), 1038)
        self.assertEqual(self.ring.arrived_ns(38 * 128), 1037)

    def test_refuses_to_be_too_small(self) -> None:
        self.assertRaises(ValueError, FrameRing, GRID, 2)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 500)), max_size=200))
    def test_any_order_of_writes_and_reads(self, steps: list[tuple[bool, int]]) -> None:
        """Content is right, positions go on by grids, nothing is lost silently."""
        ring = FrameRing(2 * GRID, 2)
        expected = read = 0
        for is_write, samples in steps:
            if is_write:
                ring.write(block(ring.written, samples), samples, 0)
                continue
            taken = ring.read(samples)
            if taken is None:
                continue
            first, content = taken
            self.assertEqual((first - expected) % GRID, 0)
            np.testing.assert_array_equal(content, block(first, samples))
            expected = first + samples
            read += samples
        self.assertEqual(ring.position, read + ring.dropped)
        self.assertLessEqual(ring.available, 2 * GRID)


class TwoThreadsTests(unittest.TestCase):
    def test_a_writer_that_is_faster_than_the_reader(self) -> None:
        """Real threads: every block read is whole, whatever was overwritten meanwhile."""
        ring = FrameRing(2 * GRID, 8)
        source = block(0, 400 * 128, 8)

        def write() -> None:
            for number in range(400):
                ring.write(source[number * 128 : (number + 1) * 128], 128, 0)
                if number % 16 == 0:
                    time.sleep(0)

        writer = threading.Thread(target=write)
        writer.start()
        blocks = 0
        while writer.is_alive() or ring.available >= 240:
            taken = ring.read(240)
            if taken is not None:
                np.testing.assert_array_equal(taken[1], block(taken[0], 240, 8))
                blocks += 1
        writer.join()
        self.assertGreater(blocks, 0)
        self.assertLess(ring.written - ring.dropped - blocks * 240, 2 * GRID)
