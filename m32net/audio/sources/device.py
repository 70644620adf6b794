"""The ``device`` source: a PortAudio input through the ring, with silence while it is lost.

Three threads meet here.  PortAudio's callback writes the ring; the engine thread reads it; a
short-lived one opens and closes devices, which can take seconds, while the engine goes on
streaming silence with running time stamps (STR-2).
"""

from __future__ import annotations

import os
import random as random_module
import select
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from zope.interface import implementer

from m32net.audio.capture_clock import CaptureClock
from m32net.audio.clock import NS, AudioClock, WallTime, ns_to_samples
from m32net.audio.events import AudioEvent, Emit, FewerChannels
from m32net.audio.frame import AudioFrame, Samples
from m32net.audio.ring import GRID, FrameRing
from m32net.audio.sources.portaudio import (
    InputBackend,
    InputDevice,
    OpenInput,
    choose_device,
)
from m32net.audio.sources.recovery import Action, DeviceRecovery, Happening, State
from m32net.audio.sources.source import LATE_NS, ISource, LossLog, SourceError, SourceStatus

RING_SAMPLES: Final = 10 * GRID
"""200 ms: the engine can be late by that much before anything is lost."""
_OPENING_POLL_NS: Final = 20_000_000
_PLUGGED_POLL_NS: Final = NS // 2
"""How often a lost device's absence is doubted."""


class WakeUp:
    """An eventfd: the callback thread rings it without a lock, the engine thread sleeps on it.

    It is closed with its last reference, because a callback may still ring it while a device is
    being closed, and a closed number may by then belong to something else.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def ring(self) -> None:
        """Wake the sleeper."""
        os.eventfd_write(self._fd, 1)

    def wait(self, timeout_ns: int) -> None:
        """Sleep until rung, or so long."""
        if self._poll.poll(timeout_ns / 1_000_000):
            os.eventfd_read(self._fd)

    def __del__(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What the opening thread brought back; ``run`` is the start it was opened for."""

    run: int
    stream: OpenInput | None
    reason: str = ""


def sound_cards() -> object:
    """Another value when a sound card was plugged in or out: the time stamp of ``/dev/snd``.

    Cheap and never waits, so it may be asked on the engine thread.  Cards of sound servers
    (PulseAudio, PipeWire) that are no devices of this machine do not show.
    """
    try:
        return Path("/dev/snd").stat().st_mtime_ns
    except OSError:
        return None


def _start_thread(body: Callable[[], None]) -> None:
    threading.Thread(target=body, name="m32net-device", daemon=True).start()


@implementer(ISource)
class DeviceSource:
    """One PortAudio input.

    :param device: as chosen when the server started; found again by its name, or else by
        ``wanted``, what the engineer asked for (a replugged card may get another number).
    :param asked: channels to capture; fewer where the device has fewer.
    :param spawn: runs a body on another thread; for tests.
    :param random: 0..1, for the retry times.
    :param cards: another value whenever a sound card came or went; asked while the device is lost.
    """

    def __init__(
        self,
        device: InputDevice,
        asked: int,
        backend: InputBackend,
        clock: AudioClock,
        *,
        wanted: str | None = None,
        spawn: Callable[[Callable[[], None]], None] = _start_thread,
        random: Callable[[], float] = random_module.random,
        wake_up: WakeUp | None = None,
        cards: Callable[[], object] = sound_cards,
    ) -> None:
        self.name = f"device {device.name}"
        self.channels = min(asked, device.channels)
        self.complete_ns = 0
        self._device = device
        self._asked = asked
        self._backend = backend
        self._clock = clock
        self._spawn = spawn
        self._wanted = None if wanted is None or wanted.isdecimal() else wanted
        self._by_number = wanted is not None and wanted.isdecimal()
        self._recovery = DeviceRecovery(random)
        self._ask_cards = cards
        self._cards = cards()
        self._cards_at = 0
        self._wall = WallTime(clock)
        self._losses = LossLog(lambda _event: None)
        self._run = 0
        self._results: list[_Opened] = []
        self._stream: OpenInput | None = None
        self._ring = FrameRing(2 * GRID, self.channels)
        self._seen = 0
        self._overflows = 0
        self._shift = 0
        self._position = 0
        self._capture = CaptureClock(0, clock.monotonic_ns())
        self._wake_up = wake_up or WakeUp()
        self._idle = False

    def start(self, emit: Emit) -> None:
        self._emit = emit
        self._losses = LossLog(emit)
        self._run += 1
        if self.channels < self._asked:
            emit(FewerChannels(self._asked, self.channels))
        now = self._clock.monotonic_ns()
        self._capture = CaptureClock(self._position, now)
        self._happened(Happening.START, now)

    def stop(self) -> None:
        self._run += 1
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._happened(Happening.STOP, self._clock.monotonic_ns())

    def status(self) -> SourceStatus:
        recovery, losses = self._recovery, self._losses
        return SourceStatus(
            "lost" if recovery.lost else "running",
            recovery.reason,
            losses.events,
            losses.samples,
        )

    def idle(self) -> None:
        self._idle = True
        self._look_after()

    def read(self, samples: int, timeout_ns: int) -> AudioFrame | None:
        self._look_after()
        if self._recovery.lost:
            return self._silence(samples, timeout_ns)
        if self._recovery.state is not State.RUNNING:
            self._sleep(min(timeout_ns, _OPENING_POLL_NS))
            return None
        ring = self._ring
        if self._idle:
            before = ring.position
            ring.discard()
            self._position += ring.position - before
        self._idle = False
        if not ring.wake_at(samples):
            self._wake_up.wait(timeout_ns)
        expected = ring.position
        taken = ring.read(samples)
        if taken is None:
            return None
        first, block = taken
        if first != expected:
            self._position += first - expected
            self._losses.count(first - expected, "ring", self._clock.monotonic_ns())
        self.complete_ns = ring.arrived_ns(first + samples)
        if ring.channels < self.channels:
            block = np.pad(block, ((0, 0), (0, self.channels - ring.channels)))
        return self._frame(block)

    def _frame(self, block: Samples) -> AudioFrame:
        first, self._position = self._position, self._position + len(block)
        captured = self._wall.at(self._capture.time_ns(first))
        return AudioFrame(block, first, captured)

    def _silence(self, samples: int, timeout_ns: int) -> AudioFrame | None:
        """The next silent samples, once they are due."""
        self._catch_up(samples)
        due = self._capture.time_ns(self._position + samples)
        now = self._clock.monotonic_ns()
        if due > now + timeout_ns:
            self._clock.sleep_until(now + timeout_ns)
            return None
        self._clock.sleep_until(due)
        self.complete_ns = due
        return self._frame(np.zeros((samples, self.channels), np.int32))

    def _catch_up(self, samples: int) -> None:
        """Let the position follow the clock over time in which nothing was captured."""
        now = self._clock.monotonic_ns()
        late = now - self._capture.time_ns(self._position + samples)
        if late > LATE_NS:
            self._position += ns_to_samples(late) // GRID * GRID

    def _sleep(self, duration_ns: int) -> None:
        self._clock.sleep_until(self._clock.monotonic_ns() + duration_ns)

    def _look_after(self) -> None:
        """See what happened to the device since the last look."""
        now = self._clock.monotonic_ns()
        while self._results:
            opened = self._results.pop(0)
            if opened.run == self._run:
                self._take(opened, now)
        stream = self._stream
        if stream is not None:
            end, stamp = self._ring.stamp
            if end != self._seen:
                self._audio_came(end, stamp, now)
            if not stream.active:
                self._happened(Happening.ENDED, now, "it went away")
            elif stream.overflows != self._overflows:
                self._overflows = stream.overflows
                self._losses.count(0, "device", now)
        self._watch_cards(now)
        self._do(self._recovery.handle_timer(now))
        self._losses.tell(now)

    def _watch_cards(self, now: int) -> None:
        """A card that comes back is not kept waiting for the next regular attempt."""
        if self._recovery.state is not State.WAITING or now < self._cards_at:
            return
        self._cards_at = now + _PLUGGED_POLL_NS
        cards = self._ask_cards()
        if cards != self._cards:
            self._cards = cards
            self._happened(Happening.PLUGGED, now)

    def _audio_came(self, end: int, stamp: int, now: int) -> None:
        self._seen = end
        starting = self._recovery.state is State.STARTING
        self._happened(Happening.AUDIO, now)
        if starting:
            self._catch_up(0)
            self._ring.discard()
            self._shift = self._position - self._ring.position
            self._capture = CaptureClock(self._shift + end, stamp)
            return
        shortfall = self._capture.observe(end + self._shift, stamp)
        if shortfall is not None:
            self._losses.count(shortfall.samples, "count", now)
            self._shift += shortfall.skip
            self._position += shortfall.skip

    def _happened(self, happening: Happening, now: int, reason: str = "") -> None:
        self._do(self._recovery.receive(happening, now, reason))

    def _do(self, actions: Sequence[Action | AudioEvent]) -> None:
        for action in actions:
            if action is Action.OPEN:
                self._spawn(partial(self._open, self._run))
            elif action is Action.CLOSE:
                stream, self._stream = self._stream, None
                if stream is not None:
                    self._spawn(stream.close)
            else:
                self._emit(action)

    def _take(self, opened: _Opened, now: int) -> None:
        if opened.stream is None:
            self._happened(Happening.FAILED, now, opened.reason)
            return
        self._stream, self._ring = opened.stream, opened.stream.ring
        self._seen = self._overflows = 0
        if self._ring.channels < self.channels:
            self._emit(FewerChannels(self._asked, self._ring.channels))
        self._happened(Happening.OPENED, now)

    def _open(self, run: int) -> None:
        """Find the device again and open it; on the opening thread."""
        try:
            opened = _Opened(run, self._backend.open(self._find, self._make_ring))
        except SourceError as error:
            opened = _Opened(run, None, str(error))
        except Exception as error:  # a driver's surprise is a lost device, too
            opened = _Opened(run, None, f"{type(error).__name__}: {error}")
        self._results.append(opened)
        if run != self._run and opened.stream is not None:
            opened.stream.close()

    def _make_ring(self, device: InputDevice) -> FrameRing:
        return FrameRing(RING_SAMPLES, min(self.channels, device.channels), self._wake_up.ring)

    def _find(self, devices: Sequence[InputDevice]) -> InputDevice:
        try:
            return choose_device(devices, self._device.name)
        except SourceError:
            if self._by_number:
                raise
            return choose_device(devices, self._wanted)
