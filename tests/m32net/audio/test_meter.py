"""CON-52: levels of all channels cost little: measured by slots of 50 ms, only while wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.audio.crew import Crew
from m32net.audio.engine import Engine
from m32net.audio.frame import EncodedFrame
from m32net.audio.meter import MAX_SLOTS, SLOT_SAMPLES, LevelBridge, LevelMeter, Peaks
from tests.support.audio import Events, FakeClock, ScriptedSource, opus, pattern, pcm

ALL = frozenset({1, 2, 3, 4})


class MeterTests(unittest.TestCase):
    def setUp(self) -> None:
        self.got: list[list[int]] = []
        self.meter = LevelMeter(lambda peaks: self.got.append(peaks.tolist()))

    def test_peak_is_the_highest_of_either_sign(self) -> None:
        block = np.zeros((SLOT_SAMPLES, 5), np.int32)
        block[3] = [0, 7, -9, 2**31 - 1, -(2**31)]
        self.meter.add(block, SLOT_SAMPLES)
        self.assertEqual(self.got, [[0, 7, 9, 2**31 - 1, 2**31]])

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 50), st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=60))
    def test_no_peak_is_lost_and_slots_last_50_ms(self, first: int, values: list[int]) -> None:
        """Blocks of 20 ms with one value each: every slot has the highest of its blocks."""
        self.setUp()
        ends = []
        for i, value in enumerate(values, first):
            before = len(self.got)
            self.meter.add(np.full((960, 1), value, np.int32), (i + 1) * 960)
            if len(self.got) > before:
                ends.append((i + 1) * 960)
        starts = [first * 960, *ends]
        for (start,), low, high in zip(self.got, starts, ends, strict=False):
            self.assertEqual(
                start, max(abs(v) for v in values[low // 960 - first : high // 960 - first])
            )
        for low, high in zip(starts[1:], ends[1:], strict=False):
            self.assertIn(high - low, (1920, 2880))
        if len(ends) > 3:
            mean = (ends[-1] - ends[0]) / (len(ends) - 1)
            self.assertLess(abs(mean - SLOT_SAMPLES), 481)

    def test_what_was_begun_is_forgotten(self) -> None:
        self.meter.add(np.full((960, 1), 1000, np.int32), 960)
        self.meter.clear()
        for end in (48_960, 49_920, 50_880):
            self.meter.add(np.full((960, 1), 1, np.int32), end)
        self.assertEqual(self.got, [[1]])


class EngineTests(unittest.TestCase):
    """The engine measures what it captures."""

    def setUp(self) -> None:
        self.source = ScriptedSource(4)
        self.frames: list[EncodedFrame] = []
        self.peaks: list[Peaks] = []
        self.rests: list[float] = []
        self.events = Events()
        self.engine = Engine(
            self.source,
            self.frames.extend,
            self.events,
            clock=FakeClock(),
            crew=Crew(1),
            levels=self.peaks.append,
            rest=self.rests.append,
        )

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def assert_exact(self, first: int, end: int, peaks: Peaks) -> None:
        expected = np.abs(pattern(first, end - first, 4).astype(np.int64)).max(axis=0)
        self.assertEqual(peaks.tolist(), expected.tolist())

    def test_nobody_wants_levels_nothing_is_read_or_measured(self) -> None:
        """STR-40 stays true: neither listeners nor meters, no work."""
        self.steps(5)
        self.assertEqual(self.source.calls, ["idle"] * 5)
        self.engine.set_metering(True)
        self.steps(5)
        self.engine.set_metering(False)
        self.source.calls.clear()
        self.peaks.clear()
        self.steps(5)
        self.assertEqual((self.source.calls, self.peaks), (["idle"] * 5, []))

    def test_a_listener_without_meters_is_not_measured(self) -> None:
        self.engine.set_demand({pcm(): ALL})
        self.steps(100)
        self.assertEqual(self.peaks, [])

    def test_meters_without_a_listener(self) -> None:
        """Frames are read, 20 ms at a time, and nothing is encoded."""
        self.engine.set_metering(True)
        self.steps(50)
        self.assertEqual(self.source.calls, ["read 960"] * 50)
        self.assertEqual((self.frames, self.rests), ([], []))
        status = self.engine.status()
        self.assertEqual((status.frames_encoded, status.profiles), (0, ()))
        self.assertEqual(len(self.peaks), 20)
        self.assert_exact(0, 2880, self.peaks[0])
        self.assert_exact(2880, 4800, self.peaks[1])

    def test_listeners_and_meters(self) -> None:
        """Audio is the same with and without; levels are those before encoding."""
        for profile in (pcm("L24", 2500), opus(5000), pcm("L16", 20_000)):
            plain, metered = [], []
            for into, wanted in ((plain, False), (metered, True)):
                self.setUp()
                self.engine.set_demand({profile: ALL})
                self.engine.set_metering(wanted)
                self.steps(40)
                into += [(one.media_time, one.payload.tobytes()) for one in self.frames]
                self.engine.close()
            self.assertEqual(plain, metered)
            self.assert_exact(0, 2880, self.peaks[0])

    def test_a_listener_comes_and_goes_while_metered(self) -> None:
        """Slots go on through changes of the block length."""
        self.engine.set_metering(True)
        for demand in ({}, {pcm("L24", 2500): ALL}, {pcm("L24", 5000): ALL}, {}):
            self.engine.set_demand(demand)
            self.steps(33)
        read = sum(int(call.split()[1]) for call in self.source.calls)
        self.assertLess(abs(len(self.peaks) - read / SLOT_SAMPLES), 1.5)
        self.assertEqual(self.events, [])

    def test_a_source_that_steps(self) -> None:
        """Time stamps that run on over a gap begin another slot, and no fault."""
        self.engine.set_metering(True)
        self.steps(7)
        self.source.jump = 960 * 1000
        self.steps(7)
        self.assertEqual(self.events, [])
        self.assertGreaterEqual(len(self.peaks), 4)


class BridgeTests(unittest.TestCase):
    def setUp(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.got: list[tuple[list[int], int]] = []
        self.bridge = LevelBridge(
            self.calls.append, lambda peaks, slots: self.got.append((peaks.tolist(), slots))
        )

    def put(self, *peaks: int) -> None:
        self.bridge.put(np.array(peaks, np.int64))

    def turn(self) -> None:
        calls = self.calls[:]
        self.calls.clear()
        for call in calls:
            call()

    def test_a_slot_a_call(self) -> None:
        self.put(1, 2)
        self.turn()
        self.put(3, 1)
        self.turn()
        self.assertEqual(self.got, [([1, 2], 1), ([3, 1], 1)])

    def test_a_late_reactor_gets_the_highest_in_one_call(self) -> None:
        self.put(1, 9)
        self.put(5, 2)
        self.put(3, 3)
        self.assertEqual(len(self.calls), 1)
        self.turn()
        self.assertEqual(self.got, [([5, 9], 3)])

    def test_bounded(self) -> None:
        """A reactor that stands costs a second of levels, no more memory; what is lost counts."""
        for i in range(1000):
            self.put(1000 - i)
        self.assertEqual(self.bridge.dropped, 1000 - MAX_SLOTS)
        self.assertEqual(len(self.calls), 1)
        self.turn()
        self.assertEqual(self.got, [([MAX_SLOTS], MAX_SLOTS)])

    def test_two_threads(self) -> None:
        """Nothing is lost or told twice between them."""
        done = threading.Event()

        def engine() -> None:
            for _ in range(20_000):
                self.put(1)
            done.set()

        thread = threading.Thread(target=engine)
        thread.start()
        while not done.is_set():
            self.turn()
        thread.join()
        self.turn()
        told = sum(slots for _, slots in self.got)
        self.assertEqual(told + self.bridge.dropped, 20_000)
