"""Wrap-around arithmetic: signed distances, order, and extension to unbounded numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.serial import Unwrapper, distance16, distance32, newer16, newer32

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFF_FFFF)


class DistanceTests(SynchronousTestCase):
    def test_across_the_wrap(self) -> None:
        self.assertEqual(distance16(2, 0xFFFE), 4)
        self.assertEqual(distance16(0xFFFE, 2), -4)
        self.assertEqual(distance32(1, 0xFFFF_FFFF), 2)
        self.assertTrue(newer16(0, 0xFFFF))
        self.assertFalse(newer16(0xFFFF, 0))
        self.assertTrue(newer32(5, 0xFFFF_FFF0))
        self.assertFalse(newer32(5, 5))

    @given(U16, st.integers(-0x8000, 0x7FFF))
    def test_distance_undoes_addition(self, start: int, step: int) -> None:
        self.assertEqual(distance16((start + step) & 0xFFFF, start), step)

    @given(U32, st.integers(-(2**31), 2**31 - 1))
    def test_distance_undoes_addition_32(self, start: int, step: int) -> None:
        self.assertEqual(distance32((start + step) & 0xFFFF_FFFF, start), step)

    def test_arrays(self) -> None:
        a = np.array([0, 5, 0xFFFF], np.int64)
        b = np.array([0xFFFF, 6, 0], np.int64)
        self.assertEqual(distance16(a, b).tolist(), [1, -1, -1])


class UnwrapperTests(SynchronousTestCase):
    @given(U16, st.lists(st.integers(-300, 3000), max_size=200))
    def test_follows_a_wandering_counter(self, start: int, steps: list[int]) -> None:
        unwrapper = Unwrapper(16)
        true = newest = unwrapper.unwrap(start)
        for step in steps:
            true = newest + step
            self.assertEqual(unwrapper.unwrap(true & 0xFFFF), true)
            newest = max(newest, true)
        self.assertEqual(unwrapper.newest, newest)

    def test_peek_remembers_nothing(self) -> None:
        unwrapper = Unwrapper(32)
        self.assertIsNone(unwrapper.newest)
        self.assertEqual(unwrapper.peek(7), 7)
        self.assertIsNone(unwrapper.newest)
        unwrapper.unwrap(0xFFFF_FFFF)
        self.assertEqual(unwrapper.peek(0), 1 << 32)
        self.assertEqual(unwrapper.newest, 0xFFFF_FFFF)
