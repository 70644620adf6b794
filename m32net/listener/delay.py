"""How long to hold frames back before they are played: the adaptive part of the jitter buffer.

Every frame's transit (arrival less media time) is kept for half a minute.  The delay is what the
99th percentile of the last two seconds, or of the whole half minute if that is more, needs over
the fastest transit.  It grows at once and shrinks by a few ms a second (STR-26); as two seconds
forget a burst, a single one never holds the delay up for long.  No packets here, only times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

QUANTILE: Final = 0.99
SHORT_S: Final = 2.0
LONG_S: Final = 30.0
BASE_S: Final = 10.0
"""Window of the fastest transit; clocks that differ by 100 ppm move it by 1 ms in that time."""
RECENT_S: Final = 0.5
_REVIEW_S: Final = 0.1
_HURRY_S: Final = 0.02
_SHORTEST_FRAME_S: Final = 0.0025
_CAPACITY: Final = round(LONG_S / _SHORTEST_FRAME_S)


@dataclass(frozen=True, slots=True)
class DelaySettings:
    """Bounds of the delay over the fastest transit.

    :ivar initial_ms: before anything has been measured.
    :ivar margin_ms: added to what was measured, for the timers that play the frames.
    :ivar shrink_ms_per_s: at most this fast; below the 0.5 % of resampling of STR-28.
    """

    minimum_ms: float = 4.0
    maximum_ms: float = 200.0
    initial_ms: float = 20.0
    margin_ms: float = 1.5
    shrink_ms_per_s: float = 4.0


class PlayoutDelay:
    """Decides when a frame is played.

    :param frame_s: length of a frame in s.
    """

    def __init__(self, frame_s: float, settings: DelaySettings | None = None) -> None:
        self.settings = settings or DelaySettings()
        self.frame_s = max(frame_s, _SHORTEST_FRAME_S)
        self.reason = "nothing received yet"
        """Why the delay is what it is, for people."""
        self.grown = 0
        """How often it had to grow."""
        self._transits = np.zeros(_CAPACITY)
        self._count = 0  # transits noted; the newest is at count - 1, modulo the capacity
        self._anchor = 0.0  # the first; all are kept relative to it
        self._base = 0.0
        self._point = self.settings.initial_ms / 1000  # transit of a frame just in time
        self._long_quantile = -math.inf
        self._reviewed_at = self._long_at = self._grown_at = -math.inf

    @property
    def started(self) -> bool:
        return self._count > 0

    @property
    def target_ms(self) -> float:
        """Delay of the play-out over the fastest transit."""
        return (self._point - self._base) * 1000

    def observe(self, media_s: float, arrival: float) -> None:
        """Note that a frame is complete.

        :param media_s: its time stamp in s.
        :param arrival: when its last packet came, in s on the clock of :meth:`due`.
        """
        transit = arrival - media_s
        if not self._count:
            self._anchor = transit
            self.reason = "starting"
            self._reviewed_at = self._long_at = arrival
        transit -= self._anchor
        self._transits[self._count % _CAPACITY] = transit
        self._count += 1
        pause = _HURRY_S if transit > self._point else _REVIEW_S
        if not 0 <= arrival - self._reviewed_at < pause:
            self._review(arrival)

    def due(self, media_s: float) -> float:
        """When the frame of this time stamp is to be played."""
        return media_s + self._anchor + self._point

    def _review(self, now: float) -> None:
        elapsed = max(0.0, now - self._reviewed_at)
        self._reviewed_at = now
        self._find_base()
        if not 0 <= now - self._long_at < 1.0:
            self._long_at = now
            self._long_quantile = self._exceeded_by(LONG_S, (1 - QUANTILE) * LONG_S / self.frame_s)
        length = min(self._count, SHORT_S / self.frame_s)
        short = self._exceeded_by(SHORT_S, (1 - QUANTILE) * length)
        needed = max(short, self._long_quantile) + self.settings.margin_ms / 1000
        lowest = self._base + self.settings.minimum_ms / 1000
        highest = self._base + self.settings.maximum_ms / 1000
        wanted = min(max(needed, lowest), highest)
        jitter = f"{(max(short, self._long_quantile) - self._base) * 1000:.1f} ms"
        if wanted > self._point:
            self._point = wanted
            self.grown += 1
            self._grown_at = now
            self.reason = f"grown: packets came {jitter} late"
        else:
            slowly = self._point - elapsed * self.settings.shrink_ms_per_s / 1000
            self._point = min(max(wanted, slowly), highest)  # at once only if out of bounds
            if now - self._grown_at < SHORT_S:
                return  # let the reason be read
            if self._point > wanted + 0.001:
                self.reason = f"shrinking slowly, jitter is down to {jitter}"
            elif needed < lowest:
                self.reason = f"at its least, jitter is {jitter}"
            else:
                self.reason = f"jitter is {jitter}"
        if needed > highest:
            self.reason += ", at its limit"

    def _find_base(self) -> None:
        """The fastest transit lately.

        If all of the last half second is so late that nothing would be played, the way has become
        longer for good: what was before is forgotten.
        """
        self._base = float(self._window(BASE_S).min())
        fastest = float(self._window(RECENT_S).min())
        if fastest - self._base > self.settings.maximum_ms / 2000:
            keep = self._window(RECENT_S).copy()
            self._transits[: len(keep)] = keep
            self._count = len(keep)
            self._base = fastest
            self._long_quantile = -math.inf

    def _exceeded_by(self, seconds: float, frames: float) -> float:
        """The transit that at most so many frames of the last ``seconds`` exceeded.

        For the long window the number is that of a full one: of a stream that has just begun, its
        first frames, late as they often are, do not count for half a minute.
        """
        window = self._window(seconds)
        rank = max(0, len(window) - 1 - math.floor(frames))
        return float(np.partition(window, rank)[rank])

    def _window(self, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The transits of the last ``seconds``, in any order."""
        length = min(self._count, _CAPACITY, max(1, round(seconds / self.frame_s)))
        end = self._count % _CAPACITY
        if self._count <= _CAPACITY or length <= end:
            end = end or min(self._count, _CAPACITY)
            return self._transits[end - length : end]
        return np.concatenate((self._transits[:end], self._transits[end - length :]))
