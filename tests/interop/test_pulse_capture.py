"""STR-1, STR-2: 32 channels from a real audio system, PulseAudio through PortAudio, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from twisted.trial import unittest

from m32net.audio.events import DeviceLost, DeviceReturned, Overrun
from m32net.audio.frame import AudioFrame
from m32net.audio.sources import ISource, list_devices, open_source
from tests.support import pulse
from tests.support.audio import Events

READ_TIMEOUT_NS = 50_000_000


def pattern(seconds: float) -> np.ndarray:
    """No two samples alike: row *r* of channel *c* is ``32 * r + c + 1``."""
    rows = np.arange(round(seconds * pulse.RATE), dtype=np.int32)
    return rows[:, None] * pulse.CHANNELS + np.arange(1, pulse.CHANNELS + 1, dtype=np.int32)


class PulseCaptureTests(unittest.TestCase):
    """The test itself reads the source, as the engine thread would."""

    skip = pulse.missing()
    timeout = 60

    def setUp(self) -> None:
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        self.file = directory / "pattern.raw"
        self.daemon = pulse.PulseDaemon(directory / "pulse")
        self.addCleanup(self.daemon.stop)
        self.addCleanup(self.daemon.restore_environment)
        self.daemon.start()
        self.daemon.adopt_environment()
        self.events = Events()
        self.frames: list[AudioFrame] = []

    def open(self) -> ISource:
        source = open_source("device:pulse", pulse.CHANNELS)
        source.start(self.events)
        self.addCleanup(source.stop)
        return source

    def read(self, source: ISource, until: Callable[[], bool], deadline_s: float = 20.0) -> None:
        deadline = time.monotonic() + deadline_s
        while not until():
            self.assertLess(time.monotonic(), deadline, f"{self.events} {source.status()}")
            frame = source.read(240, READ_TIMEOUT_NS)
            if frame is not None:
                self.frames.append(frame)

    def heard(self) -> np.ndarray:
        return np.concatenate([frame.samples for frame in self.frames])

    def assert_running_stamps(self) -> None:
        for before, after in pairwise(self.frames):
            self.assertEqual((after.first_sample - before.first_sample - 240) % 960, 0)
            self.assertGreater(after.capture_time_ns, before.capture_time_ns)

    def ended(self) -> bool:
        """The pattern has been heard, and its end."""
        sounding = [bool(frame.samples[0, 0]) for frame in self.frames]
        return any(sounding) and not sounding[-1]

    def test_every_sample_of_32_channels(self) -> None:
        """3 s of a pattern come out of the device source as they went into the sink."""
        played = pattern(3.0)
        played.tofile(self.file)
        source = self.open()
        self.assertIn("pulse", [device.name for device in list_devices()])
        self.read(source, lambda: bool(self.frames))
        self.daemon.play(self.file)
        self.read(source, self.ended)
        self.assertEqual(self.events.of(DeviceLost), [])
        self.assertEqual(self.events.of(Overrun), [])
        self.assert_running_stamps()
        heard = self.heard()
        sounding = np.flatnonzero(heard[:, 0])
        first, last = int(sounding[0]), int(sounding[-1])
        # PulseAudio may cut a few milliseconds off the beginning while the stream is set up.
        begun = (int(heard[first, 0]) - 1) // pulse.CHANNELS
        self.assertLess(begun, pulse.RATE // 4)
        np.testing.assert_array_equal(heard[first : last + 1], played[begun:])
        self.assertFalse(heard[:first].any() or heard[last + 1 :].any())

    def test_stamps_follow_the_clock(self) -> None:
        """Captured times are true to a few milliseconds though blocks come in bursts."""
        source = self.open()
        self.read(source, lambda: len(self.frames) > 600)
        self.assert_running_stamps()
        late = [abs(time.time_ns() - self.frames[-1].capture_time_ns) / 1e6]
        steps = np.diff([frame.capture_time_ns for frame in self.frames[400:]]) / 1e6
        self.assertLess(np.abs(steps - 5.0).max(), 0.5)
        self.assertLess(max(late), 60)

    def test_lost_and_returned(self) -> None:
        """The daemon is killed and comes back: reported, silence with running stamps, audio."""
        pattern(20.0).tofile(self.file)
        source = self.open()
        self.read(source, lambda: bool(self.frames))
        self.daemon.play(self.file)
        self.read(source, lambda: bool(self.frames[-1].samples.any()))
        self.daemon.kill()
        self.read(source, lambda: bool(self.events.of(DeviceLost)), 3.0)
        self.assertEqual(source.status().state, "lost")
        silent_from = len(self.frames)
        began = time.monotonic()
        self.read(source, lambda: len(self.frames) > silent_from + 200, 3.0)
        self.assertGreater(time.monotonic() - began, 0.7, "1 s of silence takes its time")
        self.assertFalse(np.any([frame.samples for frame in self.frames[silent_from + 1 :]]))
        self.daemon.start()
        self.read(source, lambda: bool(self.events.of(DeviceReturned)))
        self.assertEqual(source.status().state, "running")
        self.daemon.play(self.file)
        self.read(source, lambda: bool(self.frames[-1].samples.any()))
        self.assertEqual(len(self.events.of(DeviceLost)), 1)
        self.assert_running_stamps()
        wall_s = (self.frames[-1].capture_time_ns - self.frames[0].capture_time_ns) / 1e9
        media_s = (self.frames[-1].first_sample - self.frames[0].first_sample) / pulse.RATE
        self.assertLess(abs(wall_s - media_s), 0.1)
