"""The audio room as a Twisted service: its thread, its demand, its events, its end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import defer, reactor, task
from twisted.trial import unittest

from m32net.audio.clock import SystemClock
from m32net.audio.events import DeviceLost, EngineFault
from m32net.audio.frame import EncodedFrame
from m32net.audio.service import SWITCH_INTERVAL_S, AudioService
from m32net.audio.sources import open_source
from m32net.audio.sources.source import SourceStatus
from m32net.streaming.profile import Profile
from tests.support.audio import Events, FakeClock, ScriptedSource, opus, pcm

ALL = frozenset({1, 2, 3, 4})


class FakeReactor(task.Clock):
    """Runs nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def callFromThread(self, call: Callable[..., Any], *args: Any) -> None:
        self.from_threads.append((call, args))

    def turn(self) -> None:
        calls, self.from_threads = self.from_threads, []
        for call, args in calls:
            call(*args)


class InLineTests(unittest.TestCase):
    """No thread: the test takes the engine's steps."""

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.source = ScriptedSource(4)
        self.got: list[EncodedFrame] = []
        self.events = Events()
        self.bodies: list[Callable[[], None]] = []
        self.levels: list[tuple[list[int], int]] = []
        self.service = AudioService(
            self.reactor,
            self.source,
            self.got.extend,
            self.events,
            workers=1,
            on_levels=lambda peaks, slots: self.levels.append((peaks.tolist(), slots)),
            clock=FakeClock(),
            spawn=self.bodies.append,
        )
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)

    def test_frames_and_events_arrive_on_the_reactors_turn(self) -> None:
        self.service.startService()
        self.service.set_demand({pcm(): ALL})
        self.service.engine.start()
        self.service.engine.step()
        self.source.emit(DeviceLost("gone"))
        self.assertEqual((self.got, list(self.events)), ([], []))
        self.reactor.turn()
        self.assertEqual([frame.media_time for frame in self.got], [0])
        self.assertEqual(self.events, [DeviceLost("gone")])

    def test_levels_arrive_on_the_reactors_turn(self) -> None:
        """CON-52: also when they were wanted before the start, and after another one."""
        self.service.set_metering(True)
        for _ in range(2):
            self.service.startService()
            for _ in range(3):
                self.service.engine.step()
            self.assertEqual(self.levels, [])
            self.reactor.turn()
            ((peaks, slots),) = self.levels
            self.assertEqual((len(peaks), slots), (4, 1))
            self.service.stopService()
            self.reactor.turn()
            self.levels.clear()
            self.source.position = 0
        self.service.set_metering(False)
        self.service.startService()
        for _ in range(3):
            self.service.engine.step()
        self.reactor.turn()
        self.assertEqual((self.levels, self.service.status().levels_dropped), ([], 0))

    def test_status(self) -> None:
        self.assertEqual(self.service.status().state, "stopped")
        self.service.startService()
        self.assertEqual(self.service.status().state, "idle")
        self.service.set_demand({opus(): ALL})
        self.service.engine.step()
        status = self.service.status()
        self.assertEqual((status.state, status.source), ("running", "scripted"))
        self.assertEqual((status.channels, status.encoders_active), (4, 4))
        self.source.state = SourceStatus("lost", "pulled", 3, 960)
        status = self.service.status()
        self.assertEqual((status.state, status.reason), ("lost", "pulled"))
        self.assertEqual((status.overruns, status.samples_lost), (3, 960))

    def test_demand_made_before_the_start_holds(self) -> None:
        self.service.set_demand({pcm(): ALL})
        self.service.startService()
        self.service.engine.step()
        self.reactor.turn()
        self.assertEqual(len(self.got), 1)

    def test_stopping_waits_for_the_thread(self) -> None:
        self.service.startService()
        ended = self.service.stopService()
        self.assertNoResult(ended)
        self.bodies[0]()
        self.assertNoResult(ended)
        self.reactor.turn()
        self.successResultOf(ended)
        self.assertEqual(self.source.calls, ["start", "stop"])

    def test_a_hanging_device_does_not_keep_the_server(self) -> None:
        self.service.startService()
        ended = self.service.stopService()
        self.reactor.advance(2.9)
        self.assertNoResult(ended)
        self.reactor.advance(0.2)
        self.successResultOf(ended)
        self.bodies[0]()
        self.reactor.turn()

    def test_it_can_be_started_again(self) -> None:
        for _ in range(2):
            self.service.startService()
            ended = self.service.stopService()
            self.bodies.pop()()
            self.reactor.turn()
            self.successResultOf(ended)
        self.assertEqual(self.source.calls, ["start", "stop"] * 2)

    def test_the_switch_interval_is_short_while_it_runs(self) -> None:
        """A reactor busy in Python gives the engine the GIL within 0.2 ms."""
        before = sys.getswitchinterval()
        self.service.startService()
        self.assertLessEqual(sys.getswitchinterval(), SWITCH_INTERVAL_S * 1.01)
        self.service.stopService()
        self.assertAlmostEqual(sys.getswitchinterval(), before)

    def test_engine_faults_are_logged(self) -> None:
        self.service.startService()
        self.source.error = ValueError("odd")
        self.service.set_demand({pcm(): ALL})
        self.service.engine._rest = lambda _seconds: self.service.engine.stop()
        self.bodies[0]()
        self.reactor.turn()
        (fault,) = self.events.of(EngineFault)
        self.assertIn("odd", fault.reason)


class RealThreadTests(unittest.TestCase):
    """The real engine thread, reactor and clock, with the test source."""

    timeout = 20

    def run_service(self, demand: dict[Profile, frozenset[int]], frames: int) -> Any:
        done: defer.Deferred[list[EncodedFrame]] = defer.Deferred()
        got: list[EncodedFrame] = []

        def on_frames(batch: Sequence[EncodedFrame]) -> None:
            self.assertIs(threading.current_thread(), threading.main_thread())
            got.extend(batch)
            if len(got) >= frames and not done.called:
                done.callback(got)

        source = open_source("test", 8)
        self.events = Events()
        service = AudioService(reactor, source, on_frames, self.events)
        service.startService()
        self.addCleanup(service.stopService)
        service.set_demand(demand)
        self.service = service
        return done

    async def _frames_in_real_time(self) -> None:
        profile = opus()
        began = SystemClock().monotonic_ns()
        frames = await self.run_service({profile: frozenset(range(1, 9))}, 40)
        took = (SystemClock().monotonic_ns() - began) / 1e9
        self.assertGreater(took, 0.18)
        times = [frame.media_time for frame in frames]
        self.assertEqual(times, list(range(times[0], times[0] + 240 * len(times), 240)))
        captured = [frame.capture_time_ns for frame in frames]
        self.assertEqual(captured, sorted(captured))
        off = abs(captured[-1] / 1e9 - SystemClock().realtime_ns() / 1e9)
        self.assertLess(off, 2.0)
        self.assertEqual(self.service.status().state, "running")

    def test_frames_in_real_time(self) -> defer.Deferred[None]:
        """40 frames of 5 ms take 200 ms, follow each other, and arrive on the reactor thread."""
        return defer.ensureDeferred(self._frames_in_real_time())

    def test_no_thread_is_left(self) -> defer.Deferred[None]:
        before = set(threading.enumerate())

        async def run() -> None:
            await self.run_service({pcm(): frozenset({1})}, 3)
            await self.service.stopService()
            self._cleanups = []
            for thread in set(threading.enumerate()) - before:
                if thread.name.startswith("m32net"):
                    thread.join(2)
                    self.assertFalse(thread.is_alive(), thread.name)

        return defer.ensureDeferred(run())
