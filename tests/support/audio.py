"""Clocks, sources and devices that do what a test says, and helpers to look at audio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from zope.interface import implementer

from m32net.audio.clock import NS, samples_to_ns
from m32net.audio.events import AudioEvent, Emit
from m32net.audio.frame import AudioFrame
from m32net.audio.ring import FrameRing
from m32net.audio.sources.portaudio import Choose, InputDevice
from m32net.audio.sources.source import ISource, SourceError, SourceStatus
from m32net.streaming.profile import Profile

UNIX_2025 = 1_735_689_600 * NS


class FakeClock:
    """Time that passes only when somebody sleeps or a test says so."""

    def __init__(self) -> None:
        self.now = 1000 * NS
        self.wall_ahead = UNIX_2025
        self.at: list[tuple[int, Callable[[], None]]] = []

    def monotonic_ns(self) -> int:
        return self.now

    def realtime_ns(self) -> int:
        return self.now + self.wall_ahead

    def sleep_until(self, monotonic_ns: int) -> None:
        """Pass the time, doing on the way what was planned with :meth:`call_at`."""
        while self.at and self.at[0][0] <= monotonic_ns:
            due, call = self.at.pop(0)
            self.now = max(self.now, due)
            call()
        self.now = max(self.now, monotonic_ns)

    def advance(self, seconds: float) -> None:
        self.sleep_until(self.now + round(seconds * NS))

    def call_at(self, monotonic_ns: int, call: Callable[[], None]) -> None:
        self.at.append((monotonic_ns, call))
        self.at.sort(key=lambda item: item[0])


@implementer(ISource)
class ScriptedSource:
    """Counts: sample *s* of channel *c* is ``(s << 14) + (c << 8)`` modulo 2**31.

    :ivar jump: skipped before the next read, in samples.
    """

    name = "scripted"

    def __init__(self, channels: int = 4, *, tones: bool = False) -> None:
        self.channels = channels
        self.complete_ns = 0
        self.tones = tones
        self.position = 0
        self.jump = 0
        self.absent = 0
        self.error: Exception | None = None
        self.calls: list[str] = []
        self.state = SourceStatus("running", "", 0, 0)

    def start(self, emit: Emit) -> None:
        self.calls.append("start")
        self.emit = emit

    def stop(self) -> None:
        self.calls.append("stop")

    def read(self, samples: int, timeout_ns: int) -> AudioFrame | None:
        self.calls.append(f"read {samples}")
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.absent:
            self.absent -= 1
            return None
        self.position += self.jump
        self.jump = 0
        first = self.position
        self.position += samples
        self.complete_ns = samples_to_ns(self.position)
        pcm = pattern(first, samples, self.channels)
        captured = UNIX_2025 + samples_to_ns(first)
        return AudioFrame(pcm, first, captured, -pcm if self.tones else None)

    def idle(self) -> None:
        self.calls.append("idle")

    def status(self) -> SourceStatus:
        return self.state


def pattern(first: int, samples: int, channels: int) -> npt.NDArray[np.int32]:
    rows = np.arange(first, first + samples, dtype=np.int64)[:, None] << 14
    return ((rows + (np.arange(1, channels + 1) << 8)) % 2**31).astype(np.int32)


class FakeInput:
    """An opened device; the test writes what it captures."""

    def __init__(self, device: InputDevice, ring: FrameRing) -> None:
        self.name = device.name
        self.ring = ring
        self.overflows = 0
        self.active = True
        self.closed = False
        self.captured = 0

    def capture(self, samples: int, stamp_ns: int) -> None:
        """Samples count on: sample *s* of channel *c* is as in :func:`pattern`."""
        self.ring.write(pattern(self.captured, samples, self.ring.channels), samples, stamp_ns)
        self.captured += samples

    def close(self) -> None:
        self.active = False
        self.closed = True


class FakeBackend:
    """An audio system whose devices a test plugs and pulls."""

    def __init__(self, *devices: InputDevice) -> None:
        self.plugged = list(devices)
        self.inputs: list[FakeInput] = []
        self.refusal = ""
        self.released = 0

    @property
    def input(self) -> FakeInput:
        """The latest that was opened."""
        return self.inputs[-1]

    def devices(self) -> list[InputDevice]:
        return list(self.plugged)

    def open(self, choose: Choose, make_ring: Callable[[InputDevice], FrameRing]) -> FakeInput:
        device = choose(self.devices())
        if self.refusal:
            raise SourceError(self.refusal)
        self.inputs.append(FakeInput(device, make_ring(device)))
        return self.inputs[-1]

    def release(self) -> None:
        self.released += 1


def input_device(name: str = "X32", channels: int = 32, index: int = 0) -> InputDevice:
    return InputDevice(index, name, channels, "ALSA", 48000.0)


class Events(list[AudioEvent]):
    """A list to be given as ``emit``."""

    def __call__(self, event: AudioEvent) -> None:
        self.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


def opus(frame_us: int = 5000, *, step: int = 48_000, bitrate: int = 96_000) -> Profile:
    return Profile("opus", step, frame_us, bitrate)


def pcm(codec: Any = "L24", frame_us: int = 5000, *, step: int = 48_000) -> Profile:
    return Profile(codec, step, frame_us)


def loudest_hz(signal: npt.NDArray[Any], rate: int = 48_000) -> float:
    """The strongest frequency of a mono signal."""
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal))))
    return float(spectrum.argmax() * rate / len(signal))


def level_dbfs(signal: npt.NDArray[Any], full_scale: float = 2.0**31) -> float:
    """RMS relative to a full-scale sine."""
    rms = np.sqrt(np.mean(np.square(signal.astype(np.float64) / full_scale)))
    return float(20 * np.log10(rms * 2**0.5 + 1e-12))


def chunks(total: int, *sizes: int) -> Iterator[tuple[int, int]]:
    """``(first, size)`` of consecutive pieces, cycling through ``sizes``."""
    first = 0
    while first < total:
        for size in sizes:
            yield first, size
            first += size
