"""STR-1, STR-2: the device source: exact capture, loss with running stamps, return, overruns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from twisted.trial import unittest

from m32net.audio.clock import NS, samples_to_ns
from m32net.audio.events import DeviceLost, DeviceReturned, FewerChannels, Overrun
from m32net.audio.frame import AudioFrame
from m32net.audio.sources.device import DeviceSource, WakeUp
from m32net.audio.sources.portaudio import InputDevice
from tests.support.audio import Events, FakeBackend, FakeClock, input_device, pattern

MS = 1_000_000
BLOCK = 128


class PatientWakeUp(WakeUp):
    """Waiting passes the test's time, up to the first ring."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self._rung = False

    def ring(self) -> None:
        super().ring()
        self._rung = True

    def wait(self, timeout_ns: int) -> None:
        end = self._clock.now + timeout_ns
        while not self._rung and self._clock.at and self._clock.at[0][0] <= end:
            self._clock.sleep_until(self._clock.at[0][0])
        if not self._rung:
            self._clock.sleep_until(end)
        else:
            super().wait(0)
        self._rung = False


class DeviceCase(unittest.TestCase):
    """A device that captures in the test's own time, while the source waits for it."""

    channels = 4

    def setUp(self) -> None:
        self.clock = FakeClock()
        self.backend = FakeBackend(input_device(channels=self.channels))
        self.events = Events()
        self.spawned: list[Callable[[], None]] = []
        self.in_line = True
        self.cards = 1
        self.source = self.make()
        self.playing = 0

    def make(self, asked: int = 4, device: InputDevice | None = None, **more: str) -> DeviceSource:
        return DeviceSource(
            device or self.backend.plugged[0],
            asked,
            self.backend,
            self.clock,
            spawn=self.spawn,
            random=lambda: 0.5,
            wake_up=PatientWakeUp(self.clock),
            cards=lambda: self.cards,
            **more,
        )

    def spawn(self, body: Callable[[], None]) -> None:
        if self.in_line:
            body()
        else:
            self.spawned.append(body)

    def play(self, seconds: float, *, late: Callable[[int], int] = lambda _n: 0) -> None:
        """Plan the device's blocks from now on."""
        began = self.clock.now
        device = self.backend.input
        for number in range(1, round(seconds * 48_000 / BLOCK) + 1):
            at = began + samples_to_ns(number * BLOCK) + late(number)

            def capture() -> None:
                if device.active:
                    device.capture(BLOCK, self.clock.now)

            self.clock.call_at(at, capture)

    def read(self, seconds: float, samples: int = 240) -> list[AudioFrame]:
        """What the engine would do for so long."""
        end = self.clock.now + round(seconds * NS)
        frames = []
        while self.clock.now < end:
            frame = self.source.read(samples, 50 * MS)
            if frame is not None:
                frames.append(frame)
        return frames

    def assert_running_stamps(self, frames: list[AudioFrame]) -> None:
        """Positions and captured times run on; jumps are by 20 ms."""
        for before, after in pairwise(frames):
            step = after.first_sample - before.first_sample - len(before)
            self.assertGreaterEqual(step, 0)
            self.assertEqual(step % 960, 0)
            self.assertEqual(after.first_sample % len(after), 0)
            self.assertGreater(after.capture_time_ns, before.capture_time_ns)


class CaptureTests(DeviceCase):
    def test_every_sample_arrives_once(self) -> None:
        """Bursty blocks of 128 in, frames of 240 out: exact, in order, stamped truly."""
        self.source.start(self.events)
        self.play(3.0, late=lambda n: (n * 7919 % 13) * MS)
        frames = self.read(2.9)
        self.assertEqual(self.events, [])
        first = frames[0].first_sample
        content = np.concatenate([frame.samples for frame in frames])
        np.testing.assert_array_equal(content, pattern(first, len(content), 4))
        self.assert_running_stamps(frames)
        self.assertGreater(len(content), 2.8 * 48_000)
        last = frames[-1]
        truth = self.clock.wall_ahead + 1000 * NS + samples_to_ns(last.first_sample)
        self.assertLess(abs(last.capture_time_ns - truth), 5 * MS)

    def test_complete_is_when_the_last_block_arrived(self) -> None:
        self.source.start(self.events)
        self.play(1.0)
        began = self.clock.now
        frames = self.read(0.5)
        needed = -(-(frames[-1].first_sample + 240) // BLOCK) * BLOCK
        self.assertEqual(self.source.complete_ns, began + samples_to_ns(needed))

    def test_a_late_engine_loses_the_oldest_and_says_so(self) -> None:
        """Half a second away from a ring of 200 ms."""
        self.source.start(self.events)
        self.play(3.0)
        before = self.read(1.0)
        self.clock.advance(0.5)
        after = self.read(1.0)
        self.assert_running_stamps(before + after)
        (overrun,) = self.events.of(Overrun)
        gap = after[0].first_sample - before[-1].first_sample - 240
        self.assertEqual((overrun.where, overrun.samples), ("ring", gap))
        self.assertEqual(self.source.status().samples_lost, gap)
        np.testing.assert_array_equal(after[0].samples, pattern(after[0].first_sample, 240, 4))

    def test_overflow_flags_are_counted_but_not_every_one_told(self) -> None:
        self.source.start(self.events)
        self.play(3.0)
        for _ in range(20):
            self.read(0.05)
            self.backend.input.overflows += 1
        self.read(1.0)
        self.assertEqual(self.source.status().overruns, 20)
        told = self.events.of(Overrun)
        self.assertEqual({event.where for event in told}, {"device"})
        self.assertLessEqual(len(told), 3)
        self.assertEqual(told[-1].total, 20)

    def test_blocks_lost_without_a_flag_are_noticed(self) -> None:
        """JACK without -S drops blocks and says nothing: the clock knows."""
        self.source.start(self.events)
        self.play(5.0)
        before = self.read(4.9)
        self.clock.at.clear()
        self.clock.advance(0.1)
        self.play(5.0)
        after = self.read(4.9)
        self.assert_running_stamps(before + after)
        (overrun,) = self.events.of(Overrun)
        self.assertEqual(overrun.where, "count")
        self.assertLess(abs(overrun.samples - 4800), 600)
        truth = self.clock.now
        heard = 1000 * NS + samples_to_ns(after[-1].first_sample + 240)
        self.assertLess(abs(truth - heard), 25 * MS)

    def test_idle_keeps_nothing_and_loses_nothing(self) -> None:
        """STR-40, STR-41: after idle time the newest audio is read, and that is no overrun."""
        self.source.start(self.events)
        self.play(6.0)
        before = self.read(0.5)
        for _ in range(8):
            self.source.idle()
            self.clock.advance(0.25)
        after = self.read(0.5)
        self.assertEqual(self.events, [])
        self.assert_running_stamps(before + after)
        lag = self.clock.now - 1000 * NS - samples_to_ns(after[0].first_sample)
        self.assertLess(lag - 0.5 * NS, 30 * MS)
        np.testing.assert_array_equal(after[0].samples, pattern(after[0].first_sample, 240, 4))

    def test_fewer_channels_than_asked(self) -> None:
        self.source = self.make(asked=32)
        self.source.start(self.events)
        self.assertEqual(self.source.channels, 4)
        self.assertEqual(self.events, [FewerChannels(32, 4)])
        self.assertEqual(self.source.name, "device X32")

    def test_more_channels_than_asked_are_not_opened(self) -> None:
        self.source = self.make(asked=2)
        self.source.start(self.events)
        self.assertEqual(self.backend.input.ring.channels, 2)


class LossTests(DeviceCase):
    def pull(self) -> None:
        """The cable is pulled."""
        self.backend.plugged.clear()
        self.backend.input.active = False

    def test_silence_with_running_stamps_until_it_returns(self) -> None:
        self.source.start(self.events)
        self.play(1.0)
        before = self.read(1.0)
        self.pull()
        device = input_device(channels=4, index=7)
        self.clock.call_at(self.clock.now + 5 * NS, lambda: self.backend.plugged.append(device))
        silent = self.read(5.5)
        (lost,) = self.events
        self.assertEqual(lost, DeviceLost("it went away"))
        self.assertEqual(self.source.status().state, "lost")
        self.assertFalse(np.any([frame.samples for frame in silent[1:]]))
        while len(self.backend.inputs) < 2:
            silent += self.read(0.1)
        self.play(2.0)
        after = self.read(1.5)
        self.assert_running_stamps(before + silent + after)
        returned = self.events[1]
        assert isinstance(returned, DeviceReturned)
        self.assertTrue(5 < returned.after_s < 9, returned)
        self.assertEqual(self.source.status().state, "running")
        sounding = [frame for frame in after if frame.samples.any()]
        self.assertGreater(len(sounding), 290)
        elapsed = (self.clock.now - 1000 * NS) / NS
        self.assertLess(abs(after[-1].first_sample / 48_000 - elapsed), 0.03)
        self.assertLess(abs(after[-1].capture_time_ns - self.clock.realtime_ns()), 30 * MS)

    def test_silence_comes_in_time(self) -> None:
        """While it is lost, a frame of silence every 5 ms: neither bursts nor holes."""
        self.source.start(self.events)
        self.play(1.0)
        self.read(1.0)
        self.pull()
        self.read(0.2)
        began = self.clock.now
        silent = self.read(2.0)
        self.assertLess(abs(len(silent) - 400), 2)
        self.assertLess(abs((self.clock.now - began) / NS - 2.0), 0.01)

    def test_a_device_that_falls_silent_without_a_word(self) -> None:
        """No callback for over 0.5 s, though the stream claims to be active."""
        self.source.start(self.events)
        self.play(1.0)
        self.read(1.0)
        self.assertEqual(self.events, [])
        self.read(0.4)
        self.assertEqual(self.events, [])
        self.read(0.2)
        self.assertEqual(self.events, [DeviceLost("its audio stopped coming")])
        self.assertTrue(self.backend.inputs[0].closed)

    def test_not_there_at_the_start(self) -> None:
        """The server comes up, reports it, streams silence, and catches the device later."""
        device = self.backend.plugged.pop()
        self.source = self.make(device=device)
        self.source.start(self.events)
        silent = self.read(0.5)
        (lost,) = self.events
        self.assertIn("X32", lost.reason)
        self.assertGreater(len(silent), 90)
        self.backend.plugged.append(device)
        self.read(2.0)
        self.play(1.0)
        after = self.read(0.8)
        self.assertEqual(len(self.events.of(DeviceReturned)), 1)
        self.assert_running_stamps(silent + after)

    def test_refusals_are_reasons(self) -> None:
        self.backend.refusal = "device 'X32' is busy"
        self.source.start(self.events)
        self.read(0.1)
        self.assertEqual(self.events, [DeviceLost("device 'X32' is busy")])
        self.assertEqual(self.source.status().reason, "device 'X32' is busy")

    def test_attempts_back_off_then_rest(self) -> None:
        """CON-12, CON-22: 2, 4, 8 and 16 s apart, then one a minute."""
        attempts = []

        def refuse() -> list[InputDevice]:
            attempts.append(self.clock.now / NS)
            return []

        self.backend.devices = refuse  # type: ignore[method-assign]
        self.source.start(self.events)
        self.read(160.0, 960)
        waits = [round(after - before) for before, after in pairwise(attempts)]
        self.assertEqual(waits, [2, 4, 8, 16, 60, 60])
        self.assertEqual(len(self.events), 1)

    def test_a_card_that_comes_is_tried_at_once(self) -> None:
        """CON-22: no minute is waited out when a card was plugged in."""
        card = self.backend.plugged.pop()
        self.source = self.make(device=card)
        self.source.start(self.events)
        self.read(40.0, 960)
        self.assertEqual(self.backend.inputs, [])
        self.backend.plugged.append(card)
        self.read(10.0, 960)
        self.assertEqual(self.backend.inputs, [])
        self.cards += 1
        self.read(1.6, 960)
        self.assertEqual(len(self.backend.inputs), 1)

    def test_opening_takes_its_time_elsewhere(self) -> None:
        """PortAudio may need seconds; the engine goes on with silence meanwhile."""
        self.source.start(self.events)
        self.play(1.0)
        self.read(1.0)
        self.backend.input.active = False
        self.in_line = False
        silent = self.read(4.0)
        self.assertGreater(len(silent), 780)
        self.assertEqual(len(self.backend.inputs), 1)
        for body in self.spawned:
            body()
        self.assertEqual(len(self.backend.inputs), 2)
        self.assertTrue(self.backend.inputs[0].closed)

    def test_lost_and_found_while_nobody_listens(self) -> None:
        """STR-40: idle looks after the device, too."""
        self.source.start(self.events)
        self.play(1.0)
        for _ in range(4):
            self.source.idle()
            self.clock.advance(0.25)
        self.source.idle()
        self.assertEqual(self.events, [])
        self.pull()
        self.source.idle()
        self.assertEqual(len(self.events.of(DeviceLost)), 1)
        self.backend.plugged.append(input_device(channels=4))
        for _ in range(8):
            self.clock.advance(0.25)
            self.source.idle()
        self.play(1.0)
        self.clock.advance(0.25)
        self.source.idle()
        self.assertEqual(len(self.events.of(DeviceReturned)), 1)

    def test_returns_with_fewer_channels(self) -> None:
        """The missing ones are silent; the frame keeps its shape."""
        self.source.start(self.events)
        self.play(1.0)
        self.read(1.0)
        self.pull()
        self.backend.plugged.append(input_device(channels=2))
        self.read(2.5)
        self.play(1.0)
        frames = self.read(0.8)
        self.assertIn(FewerChannels(4, 2), self.events)
        self.assertEqual(frames[-1].samples.shape, (240, 4))
        self.assertTrue(frames[-1].samples[:, :2].any())
        self.assertFalse(frames[-1].samples[:, 2:].any())

    def test_found_again_under_another_number(self) -> None:
        """ALSA puts the card's number into the name: what was asked for finds it again."""
        card = input_device("X32: USB Audio (hw:1,0)", 4)
        self.backend.plugged = [card]
        self.source = self.make(wanted="x32")
        self.source.start(self.events)
        self.play(0.5)
        self.read(0.5)
        self.pull()
        self.backend.plugged.append(input_device("X32: USB Audio (hw:2,0)", 4))
        self.read(2.5)
        self.assertEqual(self.backend.input.name, "X32: USB Audio (hw:2,0)")

    def test_stopped_while_opening(self) -> None:
        """What the opening thread brings after the stop is closed again."""
        self.in_line = False
        self.source.start(self.events)
        self.source.stop()
        for body in self.spawned:
            body()
        self.assertTrue(self.backend.input.closed)

    def test_stop_closes_and_a_new_start_opens_again(self) -> None:
        self.source.start(self.events)
        self.play(0.5)
        self.read(0.5)
        self.source.stop()
        self.assertTrue(self.backend.inputs[0].closed)
        self.source.start(self.events)
        self.play(0.5)
        self.assertGreater(len(self.read(0.4)), 50)
        self.assertEqual(self.events, [])

    def test_a_drivers_surprise_is_a_lost_device(self) -> None:
        def explode() -> list[InputDevice]:
            raise RuntimeError("segfaulting driver")

        self.backend.devices = explode  # type: ignore[method-assign]
        self.source.start(self.events)
        self.read(0.1)
        self.assertEqual(self.events, [DeviceLost("RuntimeError: segfaulting driver")])


class WakeUpTests(unittest.TestCase):
    def test_a_ring_is_not_forgotten(self) -> None:
        bell = WakeUp()
        bell.ring()
        bell.wait(60 * NS)
        bell.wait(1 * MS)
