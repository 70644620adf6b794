"""When was a sample captured?  A slow filter over bursty arrivals, and a count of what is missing.

A device's samples arrive in blocks that are late by anything between nothing and many
milliseconds (PortAudio on PulseAudio: 2 ms standard deviation, 15 ms at most), but never early.
So the earliest arrival within a second is taken for the truth, and the mapping is steered towards
it slowly enough that it always runs forwards.  A pure core: positions and arrival times in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from m32net.audio.clock import NS, ns_to_samples, samples_to_ns
from m32net.audio.frame import CAPTURE_RATE
from m32net.audio.ring import GRID

WINDOW: Final = CAPTURE_RATE
"""Samples over which the earliest arrival is looked for: one second."""
STEP_NS: Final = 4_000_000
"""A lasting delay of more than this means missing samples: drift is 0.1 ms a second at most,
blocks of one to two periods (2.7 or 5.3 ms) are what drivers drop."""
_SETTLING: Final = 3
"""Windows after a start in which the estimate may move fast."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Fewer samples came than time passed.

    :ivar samples: how many are missing, as estimated; accurate to about a block.
    :ivar skip: what the positions should jump by, a multiple of 20 ms; may be 0.
    """

    samples: int
    skip: int


class CaptureClock:
    """Sample positions to monotonic time, for one run of one device."""

    def __init__(self, position: int, now_ns: int) -> None:
        """:param position: of the sample that is captured at ``now_ns``."""
        self._from = position
        self._base = float(now_ns)
        self._ns_per_sample = NS / CAPTURE_RATE
        self._windows = 0
        self._window_end = position + WINDOW
        self._earliest: float | None = None
        self._before: float | None = None
        self._suspect: float | None = None

    def time_ns(self, position: int) -> int:
        """Monotonic time at which the sample at ``position`` is captured, past or future."""
        return round(self._base + (position - self._from) * self._ns_per_sample)

    def observe(self, end: int, stamp_ns: int) -> Shortfall | None:
        """Note that the sample before ``end`` had arrived at ``stamp_ns``."""
        lateness = stamp_ns - samples_to_ns(end)
        if self._earliest is None or lateness < self._earliest:
            self._earliest = lateness
        if end < self._window_end:
            return None
        earliest, self._earliest = self._earliest, None
        self._window_end = end + WINDOW
        self._windows += 1
        shortfall = self._missing(earliest, end)
        self._steer(earliest, end, shortfall)
        return shortfall

    def _missing(self, earliest: float, end: int) -> Shortfall | None:
        """A step in the earliest arrival that the next window confirms."""
        before, suspect = self._before, self._suspect
        if before is None or earliest - before < STEP_NS:
            self._before, self._suspect = earliest, None
            return None
        if suspect is None:
            self._suspect = earliest
            return None
        step = min(earliest, suspect) - before
        behind = earliest - (self.time_ns(end) - samples_to_ns(end))
        skip = ns_to_samples(max(0, int(behind))) // GRID * GRID
        self._before, self._suspect = earliest - samples_to_ns(skip), None
        return Shortfall(ns_to_samples(int(step)), skip)

    def _steer(self, earliest: float, end: int, shortfall: Shortfall | None) -> None:
        """Bend the line, from ``end`` on, so that it meets the earliest arrivals."""
        here = self.time_ns(end)
        error = earliest + samples_to_ns(end) - here
        if shortfall is not None:
            error -= samples_to_ns(shortfall.skip)
            # The positions are about to jump; the moment they name does not.
            end += shortfall.skip
            here += samples_to_ns(shortfall.skip)
            self._window_end += shortfall.skip
        share, most = (0.5, 0.02) if self._windows <= _SETTLING else (0.1, 0.002)
        slew = max(-most, min(most, share * error / NS))
        self._from, self._base = end, float(here)
        self._ns_per_sample = NS / CAPTURE_RATE * (1 + slew)
