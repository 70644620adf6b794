"""The clocks of the audio room: what time it is, how to wait, when a sample was captured.

The only module of the room that reads a system clock.  Everything else takes an
:class:`AudioClock`, so tests drive the engine with a clock of their own.  It doesn't discipline
anything: PTP and NTP live elsewhere.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

from m32net.audio.frame import CAPTURE_RATE

NS: Final = 1_000_000_000
WALL_STEP_NS: Final = 100_000_000
"""A wall clock that jumps further than this was set, not steered; captured time follows it."""
_WALL_SLEW_PPM: Final = 500
"""The fastest the kernel lets NTP steer a clock (adjtimex), so we follow it at that rate."""


class AudioClock(Protocol):
    """What the room needs of time; all in integer nanoseconds."""

    def monotonic_ns(self) -> int: ...

    def realtime_ns(self) -> int:
        """Unix time."""
        ...

    def sleep_until(self, monotonic_ns: int) -> None:
        """Block this thread until then; return at once if it is past."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def realtime_ns(self) -> int:
        return time.time_ns()

    def sleep_until(self, monotonic_ns: int) -> None:
        remaining = monotonic_ns - time.monotonic_ns()
        if remaining > 0:
            time.sleep(remaining / NS)


def samples_to_ns(samples: int) -> int:
    """Duration of ``samples`` at the capture rate, in ns, rounded down."""
    return samples * NS // CAPTURE_RATE


def ns_to_samples(ns: int) -> int:
    """Whole samples of the capture rate in ``ns``, rounded down."""
    return ns * CAPTURE_RATE // NS


class WallTime:
    """Monotonic time to wall time, steered so that the result never runs backwards.

    Small differences are taken up at 500 ppm.  One of over 100 ms means that somebody set the
    clock: it is adopted at once, and is the only thing that can make the result jump.
    """

    def __init__(self, clock: AudioClock) -> None:
        self._clock = clock
        self._at = clock.monotonic_ns()
        self._offset = clock.realtime_ns() - self._at
        self._last = 0

    def at(self, monotonic_ns: int) -> int:
        """Unix time in ns of a moment near now; later than any returned before."""
        now = self._clock.monotonic_ns()
        error = self._clock.realtime_ns() - now - self._offset
        if abs(error) > WALL_STEP_NS:
            self._offset += error
            self._last = 0
        else:
            most = max(0, now - self._at) * _WALL_SLEW_PPM // 1_000_000
            self._offset += max(-most, min(most, error))
        self._at = now
        self._last = max(self._last + 1, monotonic_ns + self._offset)
        return self._last
