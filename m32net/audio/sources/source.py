"""What a source of audio is, and the pacing that generated ones share.

A source belongs to the engine thread: only that thread reads it.  Its time stamps run on over
gaps and idle times, and what is left out is always a multiple of the longest frame (20 ms), so
that frames of every length keep their places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from zope.interface import Attribute, Interface

from m32net.audio.clock import NS, AudioClock, WallTime, ns_to_samples, samples_to_ns
from m32net.audio.events import Emit, FewerChannels, Overrun
from m32net.audio.frame import AudioFrame, Samples
from m32net.audio.ring import GRID

LATE_NS: Final = 100_000_000
"""A generated source that is late by more than this gives up the time it missed."""


class SourceError(Exception):
    """A source can't be opened: one line saying what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a source is doing.

    :ivar state: ``running``, or ``lost``: it delivers silence until it returns.
    :ivar reason: why it is lost, else empty.
    :ivar overruns: times that samples were lost.
    :ivar samples_lost: how many, per channel, as far as that is known.
    """

    state: Literal["running", "lost"]
    reason: str
    overruns: int
    samples_lost: int


class LossLog:
    """Counts lost samples and tells of them, at most once a second for each place."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.events = 0
        self.samples = 0
        self._untold: dict[str, int] = {}
        self._told_at: dict[str, int] = {}

    def count(self, samples: int, where: str, now_ns: int) -> None:
        """Note one loss; ``where`` as in :class:`~m32net.audio.events.Overrun`."""
        self.events += 1
        self.samples += samples
        self._untold[where] = self._untold.get(where, 0) + samples
        self.tell(now_ns)

    def tell(self, now_ns: int) -> None:
        """Tell what has been kept back, where a second has passed."""
        for where in list(self._untold):
            told_at = self._told_at.get(where)
            if told_at is None or now_ns - told_at >= NS:
                self._told_at[where] = now_ns
                self._emit(Overrun(self._untold.pop(where), where, self.events))


class ISource(Interface):
    """Where frames come from.  Every method but ``status`` is called on the engine thread."""

    name: str = Attribute("What it is, for people: 'demo', 'file song.wav', 'device X32'.")
    channels: int = Attribute("Columns of its frames; never changes.")
    complete_ns: int = Attribute("Monotonic time at which the last frame's last sample was there.")

    def start(emit: Emit) -> None:  # noqa: N805
        """Begin to capture.  Device trouble is no error here; it is reported through ``emit``."""

    def stop() -> None:
        """Release everything."""

    def read(samples: int, timeout_ns: int) -> AudioFrame | None:  # noqa: N805
        """Wait for the next ``samples``: 120, 240, 480 or 960, on the grid of that length.

        The frame begins where the last one ended, or a multiple of 960 samples later.

        :returns: None if they aren't there after ``timeout_ns``.
        """

    def idle() -> None:
        """Nobody listens: throw away what is there; look after the device (several times a s)."""

    def status() -> SourceStatus:
        """May be called from any thread."""


class PacedSource:
    """A source that makes its samples itself, at the pace of the monotonic clock.

    The schedule is absolute, so it doesn't drift against the clock, and there is no thread: the
    reader sleeps until its samples are due.
    """

    def __init__(self, name: str, channels: int, asked: int, clock: AudioClock) -> None:
        self.name = name
        self.channels = channels
        self.complete_ns = 0
        self._asked = asked
        self._clock = clock
        self._wall = WallTime(clock)
        self._epoch = 0
        self._position = 0
        self._idle = False
        self._losses = LossLog(lambda _event: None)

    def start(self, emit: Emit) -> None:
        self._losses = LossLog(emit)
        if self.channels < self._asked:
            emit(FewerChannels(asked=self._asked, available=self.channels))
        self._prepare()
        self._epoch = self._clock.monotonic_ns()
        self._position = 0

    def stop(self) -> None:
        """Nothing to release."""

    def read(self, samples: int, timeout_ns: int) -> AudioFrame | None:
        now = self._clock.monotonic_ns()
        late = now - self._due(samples)
        if self._idle:
            self._idle = False
            self._skip(max(0, late))
        elif late > LATE_NS:
            self._losses.count(self._skip(late), "pace", now)
        self._losses.tell(now)
        due = self._due(samples)
        if due > now + timeout_ns:
            self._clock.sleep_until(now + timeout_ns)
            return None
        self._clock.sleep_until(due)
        self.complete_ns = due
        first, self._position = self._position, self._position + samples
        audio, tones = self._next(first, samples)
        captured = self._wall.at(due - samples_to_ns(samples))
        return AudioFrame(audio, first, captured, tones)

    def idle(self) -> None:
        self._idle = True

    def status(self) -> SourceStatus:
        return SourceStatus("running", "", self._losses.events, self._losses.samples)

    def _due(self, samples: int) -> int:
        """When the next ``samples`` will all have passed."""
        return self._epoch + samples_to_ns(self._position + samples)

    def _skip(self, late_ns: int) -> int:
        missed = ns_to_samples(late_ns) // GRID * GRID
        self._position += missed
        return missed

    def _prepare(self) -> None:
        """Made ready before the first sample is due."""

    def _next(self, first: int, samples: int) -> tuple[Samples, Samples | None]:
        """Samples ``first`` .. ``first + samples``, and tones if lossy codecs get others."""
        raise NotImplementedError
