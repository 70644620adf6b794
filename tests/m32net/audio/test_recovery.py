"""STR-2, CON-12, CON-22: when a device counts as lost, and when it is tried again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.audio.clock import NS
from m32net.audio.events import DeviceLost, DeviceReturned
from m32net.audio.sources.recovery import (
    FIRST_AUDIO_NS,
    PLUGGED_NS,
    SILENCE_NS,
    TRANSITIONS,
    Action,
    DeviceRecovery,
    Happening,
    State,
)
from protocols.control.states import mermaid

H = Happening


class RecoveryTests(unittest.TestCase):
    def setUp(self) -> None:
        self.recovery = DeviceRecovery(lambda: 0.5)
        self.now = 0

    def happen(self, happening: Happening, reason: str = "") -> list[object]:
        return list(self.recovery.receive(happening, self.now, reason))

    def wait(self) -> list[object]:
        """Until its timer."""
        due = self.recovery.next_timer()
        assert due is not None
        self.assertEqual(self.recovery.handle_timer(due - 1), [])
        self.now = due
        return list(self.recovery.handle_timer(due))

    def run_up(self) -> None:
        self.assertEqual(self.happen(H.START), [Action.OPEN])
        self.assertEqual(self.happen(H.OPENED), [])
        self.assertEqual(self.happen(H.AUDIO), [])
        self.assertFalse(self.recovery.lost)

    def test_lost_after_half_a_second_without_audio(self) -> None:
        self.run_up()
        for _ in range(10):
            self.now += SILENCE_NS - 1
            self.assertEqual(self.happen(H.AUDIO), [])
        before = self.now
        lost, close = self.wait()
        self.assertEqual(self.now - before, SILENCE_NS)
        self.assertEqual((lost, close), (DeviceLost("its audio stopped coming"), Action.CLOSE))
        self.assertTrue(self.recovery.lost)

    def test_lost_at_once_when_the_stream_ends(self) -> None:
        self.run_up()
        self.assertEqual(self.happen(H.ENDED, "gone"), [DeviceLost("gone"), Action.CLOSE])
        self.assertEqual(self.recovery.reason, "gone")

    def test_backs_off_then_rests_and_tells_once(self) -> None:
        """CON-12: 2, 4, 8, 16 s; CON-22: the fifth failure in a row means 60 s, then one try."""
        self.run_up()
        self.happen(H.ENDED, "gone")
        waits = []
        for _ in range(8):
            before = self.now
            self.assertEqual(self.wait(), [Action.OPEN])
            waits.append((self.now - before) / NS)
            self.assertEqual(self.happen(H.FAILED, "still gone"), [])
        self.assertEqual(waits, [2, 4, 8, 16, 60, 60, 60, 60])
        self.assertEqual(self.recovery.reason, "still gone")

    def test_jitter_spreads_the_attempts(self) -> None:
        """CON-12: by a tenth."""
        for random, expected in ((0.0, 1.8), (1.0, 2.2)):
            self.recovery = DeviceRecovery(lambda value=random: value)  # type: ignore[misc]
            self.now = 0
            self.happen(H.START)
            self.happen(H.FAILED, "busy")
            self.assertAlmostEqual((self.recovery.next_timer() or 0) / NS, expected)

    def test_returns_with_its_first_audio_not_with_opening(self) -> None:
        self.run_up()
        self.happen(H.ENDED, "gone")
        lost_at = self.now
        self.wait()
        self.assertEqual(self.happen(H.OPENED), [])
        self.assertTrue(self.recovery.lost)
        self.now += NS
        (event,) = self.happen(H.AUDIO)
        self.assertEqual(event, DeviceReturned((self.now - lost_at) / NS))
        self.assertFalse(self.recovery.lost)
        self.assertEqual(self.recovery.reason, "")

    def test_a_device_that_opens_but_stays_silent_is_lost(self) -> None:
        self.happen(H.START)
        self.happen(H.OPENED)
        lost, close = self.wait()
        self.assertEqual(self.now, FIRST_AUDIO_NS)
        self.assertEqual((lost, close), (DeviceLost("it delivers no audio"), Action.CLOSE))

    def test_something_plugged_in_is_tried_at_once(self) -> None:
        """CON-22: nobody who plugs the console in again waits out a minute; then 2, 4, 8 s."""
        self.happen(H.START)
        for _ in range(6):
            self.happen(H.FAILED, "no such device")
            self.wait()
        self.happen(H.FAILED, "no such device")
        before = self.now
        self.now += 10 * NS
        self.assertEqual(self.happen(H.PLUGGED), [])
        self.now += NS // 2
        self.assertEqual(self.happen(H.PLUGGED), [])
        waits = []
        for _ in range(6):
            self.assertEqual(self.wait(), [Action.OPEN])
            waits.append((self.now - before) / NS)
            before = self.now
            self.happen(H.FAILED, "not yet")
        self.assertEqual(waits, [10 + PLUGGED_NS / NS, 2, 4, 8, 16, 60])

    def test_plugging_changes_nothing_while_it_runs(self) -> None:
        self.run_up()
        due = self.recovery.next_timer()
        self.assertEqual(self.happen(H.PLUGGED), [])
        self.assertEqual((self.recovery.state, self.recovery.next_timer()), (State.RUNNING, due))

    def test_plugging_never_delays(self) -> None:
        """CON-12: an attempt that is due sooner stays so."""
        self.happen(H.START)
        self.happen(H.FAILED, "busy")
        self.now += 2 * NS - NS // 4
        self.happen(H.PLUGGED)
        self.assertEqual(self.recovery.next_timer(), self.now + NS // 4)

    def test_a_new_start_begins_anew(self) -> None:
        """CON-22: who stops and starts the audio is not kept waiting by what failed before."""
        self.happen(H.START)
        for _ in range(5):
            self.happen(H.FAILED, "busy")
            self.wait()
        self.happen(H.STOP)
        self.assertEqual(self.happen(H.START), [Action.OPEN])
        self.happen(H.FAILED, "busy")
        self.assertEqual(self.recovery.next_timer(), self.now + 2 * NS)

    def test_back_off_begins_anew_after_a_return(self) -> None:
        """CON-12: reset on success."""
        self.happen(H.START)
        for _ in range(6):
            self.happen(H.FAILED, "busy")
            self.wait()
        self.happen(H.OPENED)
        self.happen(H.AUDIO)
        self.happen(H.ENDED, "gone")
        before = self.now
        self.wait()
        self.assertEqual(self.now - before, 2 * NS)

    def test_nothing_happens_after_the_stop(self) -> None:
        self.run_up()
        self.assertEqual(self.happen(H.STOP), [Action.CLOSE])
        self.assertIsNone(self.recovery.next_timer())
        for happening in (H.AUDIO, H.ENDED, H.OPENED, H.FAILED, H.TIMER, H.STOP):
            self.assertEqual(self.happen(happening, "late"), [])

    def test_the_table_can_be_drawn(self) -> None:
        drawing = mermaid(TRANSITIONS)  # type: ignore[arg-type]
        for state in State:
            self.assertIn(state.name, drawing)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(Happening), st.integers(0, 40 * NS)), max_size=60))
    def test_any_history(self, history: list[tuple[Happening, int]]) -> None:
        """State x happening: lost and returned alternate, it is opened only when it is closed, and
        while it should run there is always a next step to come."""
        self.setUp()
        told: list[object] = []
        opened = 0
        for happening, wait in history:
            self.now += wait
            done = self.happen(happening, "reason") + list(self.recovery.handle_timer(self.now))
            for thing in done:
                if thing is Action.OPEN:
                    opened += 1
                elif thing is not Action.CLOSE:
                    told.append(type(thing))
            state = self.recovery.state
            waiting = state in (State.STARTING, State.RUNNING, State.WAITING)
            self.assertEqual(self.recovery.next_timer() is not None, waiting)
        expected = [DeviceLost, DeviceReturned] * len(told)
        self.assertEqual(told, expected[: len(told)])
        self.assertEqual(self.recovery.lost, len(told) % 2 == 1)
