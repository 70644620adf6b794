"""The hand-over to the reactor is bounded, coalesced, in order, and counts what it drops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.audio.bridge import MAX_AGE_NS, MAX_BATCHES, Bridge
from m32net.audio.frame import EncodedFrame
from tests.support.audio import pcm

MS = 1_000_000


def frame(complete_ms: float) -> EncodedFrame:
    payload = np.zeros((1, 1, 2), np.uint8)
    return EncodedFrame(pcm("L16"), 0, 1, 0, round(complete_ms * MS), payload)


class BridgeTests(unittest.TestCase):
    def setUp(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.got: list[Sequence[EncodedFrame]] = []
        self.now = 0
        self.error: Exception | None = None
        self.bridge = Bridge(self.calls.append, self.receive, lambda: self.now)

    def receive(self, batch: Sequence[EncodedFrame]) -> None:
        self.got.append(batch)
        if self.error:
            error, self.error = self.error, None
            raise error

    def turn(self) -> None:
        """The reactor's turn."""
        calls = self.calls[:]
        self.calls.clear()
        for call in calls:
            call()

    def test_one_call_for_many_batches(self) -> None:
        batches = [[frame(n)] for n in range(5)]
        for batch in batches:
            self.bridge.put(batch)
        self.assertEqual(len(self.calls), 1)
        self.turn()
        self.assertEqual(self.got, batches)
        self.bridge.put([frame(6)])
        self.assertEqual(len(self.calls), 1)

    def test_handed_over_between_two_steps_of_other_work(self) -> None:
        """Long work may let waiting audio go first; the reactor's own call then finds nothing."""
        self.bridge.hand_over()
        self.assertEqual(self.got, [])
        first, second = [frame(1)], [frame(2)]
        self.bridge.put(first)
        self.bridge.hand_over()
        self.assertEqual(self.got, [first])
        self.bridge.put(second)
        self.turn()
        self.assertEqual(self.got, [first, second])
        self.turn()
        self.assertEqual((self.calls, len(self.got)), ([], 2))

    def test_nothing_is_not_handed_over(self) -> None:
        self.bridge.put([])
        self.assertEqual(self.calls, [])

    def test_a_late_reactor_loses_the_oldest(self) -> None:
        """Batches of two frames every 5 ms for 1 s without a turn: the last 100 ms remain."""
        for n in range(200):
            self.bridge.put([frame(5 * n), frame(5 * n)])
        self.turn()
        self.assertEqual(self.got[0][0].complete_ns, 995 * MS - MAX_AGE_NS)
        self.assertEqual(self.got[-1][0].complete_ns, 995 * MS)
        self.assertEqual(self.bridge.dropped, 400 - 2 * len(self.got))
        self.assertEqual(len(self.got), 21)

    def test_number_is_bounded_even_if_time_stands_still(self) -> None:
        for _ in range(1000):
            self.bridge.put([frame(0)])
        self.turn()
        self.assertEqual(len(self.got), MAX_BATCHES)
        self.assertEqual(self.bridge.dropped, 1000 - MAX_BATCHES)

    def test_lateness_is_counted(self) -> None:
        self.bridge.put([frame(0)])
        self.bridge.put([frame(90)])
        self.now = 100 * MS
        self.turn()
        self.assertEqual(self.bridge.late, 1)

    def test_an_error_in_the_receiver_does_not_stop_the_flow(self) -> None:
        self.error = ValueError("a listener's fault")
        self.bridge.put([frame(0)])
        self.bridge.put([frame(1)])
        self.assertRaises(ValueError, self.turn)
        self.turn()
        self.assertEqual(len(self.got), 2)

    def test_what_comes_during_the_turn_waits_for_the_next(self) -> None:
        """A busy engine can't keep the reactor in one turn."""
        receive = self.receive

        def refill(batch: Sequence[EncodedFrame]) -> None:
            receive(batch)
            self.bridge.put([frame(9)])

        self.bridge = Bridge(self.calls.append, refill, lambda: 0)
        self.bridge.put([frame(0)])
        self.turn()
        self.assertEqual(len(self.got), 1)
        self.turn()
        self.assertEqual(len(self.got), 2)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.booleans(), max_size=300))
    def test_any_order_of_puts_and_turns(self, steps: list[bool]) -> None:
        """Nothing is lost uncounted, nothing is handed over twice, order is kept."""
        self.setUp()
        put = 0
        for is_put in steps:
            if is_put:
                self.bridge.put([frame(2.5 * put)])
                put += 1
            else:
                self.turn()
        self.turn()
        order = [batch[0].complete_ns for batch in self.got]
        self.assertEqual(order, sorted(set(order)))
        self.assertEqual(len(self.got) + self.bridge.dropped, put)
