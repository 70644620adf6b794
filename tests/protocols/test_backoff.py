"""CON-12: how long to wait before the next attempt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.backoff import Backoff


class BackoffTests(unittest.TestCase):
    def test_doubles_up_to_the_cap(self):
        """CON-12: 2 s base, 60 s cap."""
        backoff = Backoff(lambda: 0.5)
        self.assertEqual([backoff.failed() for _ in range(7)], [2, 4, 8, 16, 32, 60, 60])
        self.assertEqual(backoff.attempts, 7)

    def test_success_starts_anew(self):
        """CON-12: reset on success."""
        backoff = Backoff(lambda: 0.5)
        backoff.failed(), backoff.failed()
        backoff.succeeded()
        self.assertEqual((backoff.attempts, backoff.failed()), (0, 2))

    @given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=12))
    def test_a_tenth_of_jitter(self, draws):
        """CON-12: 10 % jitter, and the cap holds with it."""
        backoff = Backoff(iter(draws).__next__)
        for attempt in range(len(draws)):
            plain = min(2 * 2**attempt, 60)
            delay = backoff.failed()
            self.assertTrue(plain * 0.9 <= delay <= min(plain * 1.1, 60))

    def test_jitter_reaches_both_ends(self):
        self.assertAlmostEqual(Backoff(lambda: 0.0).failed(), 1.8)
        self.assertAlmostEqual(Backoff(lambda: 1.0).failed(), 2.2)
