"""STR-23: the table of a listener's life: total, no dead ends, and drawn in the documentation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.life import TABLE, Action, Happening, Life


class TableTest(unittest.TestCase):
    def test_total(self) -> None:
        self.assertEqual(set(TABLE), {(state, what) for state in Life for what in Happening})

    def test_every_state_is_reached_and_left(self) -> None:
        reached = {Life.IDLE}
        while True:
            more = {new for (state, _), (new, _) in TABLE.items() if state in reached} - reached
            if not more:
                break
            reached |= more
        self.assertEqual(reached, set(Life))
        for state in set(Life) - {Life.CLOSED}:
            self.assertEqual(TABLE[state, Happening.STOP], (Life.CLOSED, Action.END))

    def test_closed_is_the_end(self) -> None:
        for what in Happening:
            self.assertEqual(TABLE[Life.CLOSED, what], (Life.CLOSED, Action.IGNORE))

    def test_losing_the_connection_always_leads_back(self) -> None:
        """STR-23: whatever connected state it is lost in, it waits and connects again."""
        for state in (Life.GREETING, Life.ASKING, Life.REQUESTING, Life.STREAMING):
            self.assertEqual(TABLE[state, Happening.LOST], (Life.WAITING, Action.BACK_OFF))
        self.assertEqual(TABLE[Life.WAITING, Happening.DUE], (Life.CONNECTING, Action.CONNECT))

    @given(st.lists(st.sampled_from(list(Happening)), max_size=60))
    def test_waiting_is_only_entered_with_a_timer(self, happenings: list[Happening]) -> None:
        """Every way into WAITING sets the timer that leads out of it again."""
        state = Life.IDLE
        for what in happenings:
            before, (state, action) = state, TABLE[state, what]
            if state is Life.WAITING and before is not Life.WAITING:
                self.assertIn(action, (Action.BACK_OFF, Action.LEAVE))
