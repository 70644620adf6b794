"""STR-20: the disk is waited for elsewhere, in order, within a bound, to the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import soundfile
from twisted.internet import reactor
from twisted.internet.defer import Deferred, execute, gatherResults, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.trial import unittest

from m32net.listener.disk import DiskThread, at_once
from m32net.listener.recorder import MAX_QUEUED_S, Recorder, RecordingError, TrackFormat
from tests.m32net.listener.streams import noise

PATIENCE_S = 60.0
STEREO = TrackFormat.stereo(48_000)


class DiskThreadTest(unittest.TestCase):
    @inlineCallbacks
    def test_in_order_and_not_here(self) -> Any:
        """While a job waits, the reactor does other things."""
        disk = DiskThread(reactor)
        self.addCleanup(disk.stop)
        done: list[int] = []
        gate = Event()

        def slow() -> None:
            gate.wait(PATIENCE_S)
            done.append(0)

        jobs = [disk(slow)]
        jobs += [disk(lambda number=number: done.append(number)) for number in range(1, 200)]
        yield deferLater(reactor, 0)
        self.assertEqual(done, [])
        gate.set()
        yield gatherResults(jobs)
        self.assertEqual(done, list(range(200)))

    @inlineCallbacks
    def test_errors_come_back(self) -> Any:
        for disk in (DiskThread(reactor), at_once):
            yield self.assertFailure(disk(lambda: 1 // 0), ZeroDivisionError)
            self.assertEqual((yield disk(lambda: 7)), 7)
            if isinstance(disk, DiskThread):
                disk.stop()

    @inlineCallbacks
    def test_one_that_hangs_is_left_behind(self) -> Any:
        """Neither the end of the listener nor that of the process waits for it."""
        disk = DiskThread(reactor)
        gate, hangs = Event(), Deferred()

        def hanging() -> None:
            reactor.callFromThread(hangs.callback, None)
            gate.wait(PATIENCE_S)

        jobs = [disk(hanging), disk(lambda: None)]
        yield hangs
        for job in jobs:
            job.addErrback(lambda failure: None)
            job.cancel()
        self.assertTrue(disk.busy)
        disk.stop()
        self.assertTrue(all(thread.daemon for thread in disk._pool.threads))
        gate.set()
        yield disk(lambda: None)
        self.assertFalse(disk.busy)
        disk.stop()
        self.assertFalse(any(thread.is_alive() for thread in disk._pool.threads))

    def test_no_thread_without_a_job(self) -> None:
        disk = DiskThread(reactor)
        disk.stop()
        self.assertEqual(disk._pool.threads, [])

    @inlineCallbacks
    def test_recording(self) -> Any:
        """Bit-exact, though nobody waits for it before the end."""
        path = Path(self.mktemp())
        disk = DiskThread(reactor)
        self.addCleanup(disk.stop)
        recorder = Recorder(path, disk)
        recorder.open(TrackFormat.multitrack("L24", 48_000, tuple(range(1, 9))))
        signal = noise(5 * 48_000, 8)
        for at in range(0, len(signal), 240):
            recorder.write(signal[at : at + 240])
        yield recorder.close()
        found = soundfile.read(path, dtype="int32", always_2d=True)[0]
        self.assertTrue(np.array_equal(found, signal))
        self.assertApproximates(recorder.queued_s, 0.0, 1e-9)


class StuckDisk:
    """Does nothing before the test lets it."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Deferred]] = []

    def __call__(self, job: Callable[[], Any]) -> Deferred:
        self.jobs.append((job, Deferred()))
        return self.jobs[-1][1]

    def go_on(self) -> None:
        while self.jobs:
            job, done = self.jobs.pop(0)
            execute(job).chainDeferred(done)


class SlowDiskTest(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.disk = StuckDisk()
        self.recorder = Recorder(self.path, self.disk)
        self.recorder.open(STEREO)
        self.block = np.full((480, 2), 1 << 20, np.int32)

    def write(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            self.recorder.write(self.block)

    def test_too_slow(self) -> None:
        """20 s may wait; then it is said once, and what was before is kept."""
        self.write(MAX_QUEUED_S)
        self.assertApproximates(self.recorder.queued_s, MAX_QUEUED_S, 1e-6)
        error = self.assertRaises(RecordingError, self.write, 0.2)
        self.assertEqual(
            str(error),
            f"{self.path}: recording stopped: the disk is too slow, 20 s of audio wait for it",
        )
        waiting = len(self.disk.jobs)
        self.write(30)
        self.recorder.pad(10)
        self.recorder.open(TrackFormat.stereo(44_100))
        self.assertEqual(len(self.disk.jobs), waiting)
        closed = self.recorder.close()
        self.assertNoResult(closed)
        self.disk.go_on()
        self.assertIsNone(self.successResultOf(closed))
        self.assertEqual(soundfile.info(self.path).frames, round(MAX_QUEUED_S * 48_000))

    def test_a_disk_that_wakes_up(self) -> None:
        for _ in range(3):
            self.write(MAX_QUEUED_S)
            self.disk.go_on()
        closed = self.recorder.close()
        self.disk.go_on()
        self.successResultOf(closed)
        self.assertEqual(soundfile.info(self.path).frames, round(3 * MAX_QUEUED_S * 48_000))

    def test_long_silence_takes_no_room(self) -> None:
        """A minute without audio is no minute in the queue, and is a minute in the file."""
        self.write(0.05)
        for _ in range(30):
            self.recorder.write(np.zeros((48_000, 2), np.float32))
        self.recorder.pad(30)
        self.write(0.05)
        self.assertLess(self.recorder.queued_s, 0.2)
        closed = self.recorder.close()
        self.disk.go_on()
        self.successResultOf(closed)
        found = soundfile.read(self.path, dtype="int32")[0]
        self.assertEqual(len(found), 60 * 48_000 + 4800)
        (sounding,) = np.nonzero(found.any(axis=1))
        self.assertEqual(
            (len(sounding), sounding[2399], sounding[2400]), (4800, 2399, 60 * 48_000 + 2400)
        )

    def test_an_error_is_raised_by_the_next_call(self) -> None:
        self.write(0.1)
        self.recorder._files.open = lambda form: self.fail_with("No space left on device")
        self.disk.go_on()
        error = self.assertRaises(RecordingError, self.write, 0.01)
        self.assertIn("No space left", str(error))
        self.write(1)
        closed = self.recorder.close()
        self.disk.go_on()
        self.assertIsNone(self.successResultOf(closed))

    def test_an_error_at_the_end_is_told_by_close(self) -> None:
        self.recorder._files.open = lambda form: self.fail_with("No space left on device")
        closed = self.recorder.close()
        self.disk.go_on()
        self.assertIn("No space left", str(self.failureResultOf(closed, RecordingError).value))

    def fail_with(self, text: str) -> None:
        raise OSError(28, text)
