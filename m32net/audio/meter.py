"""Peak levels of all captured channels, in slots of 50 ms, and their way to the reactor thread.

Measures what was captured, before any encoding, and only while somebody wants to see it: the
engine decides that, nothing here runs otherwise.  Decibels are for those who show them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from m32net.audio.frame import Samples

SLOT_SAMPLES: Final = 2400
"""50 ms.  Measured are blocks of 20 ms, so slots end after three and two of them in turn."""
MAX_SLOTS: Final = 20
"""A second of levels that the reactor may be late for; the oldest are dropped then."""

Peaks = npt.NDArray[np.int64]
"""Highest absolute sample by channel (id - 1), 0..2**31, full scale 2**31."""


class LevelMeter:
    """Holds peaks until a slot is over; engine thread only.

    :param deliver: called with each slot's peaks.
    """

    def __init__(self, deliver: Callable[[Peaks], object]) -> None:
        self._deliver = deliver
        self._peaks: Peaks | None = None
        self._due = 0

    def clear(self) -> None:
        """Forget a slot that has begun: what comes next is another time."""
        self._peaks = None

    def add(self, samples: Samples, end: int) -> None:
        """Measure a block.

        :param samples: shape ``(n, channels)``.
        :param end: position after its last sample; what ends a slot is delivered at once.
        """
        low, high = samples.min(axis=0), samples.max(axis=0)
        # In 64 bits: the lowest sample has no counterpart in 32.
        peaks = np.maximum(high.astype(np.int64), -low.astype(np.int64))
        if self._peaks is None:
            self._due = (end - len(samples)) // SLOT_SAMPLES * SLOT_SAMPLES + SLOT_SAMPLES
        else:
            np.maximum(peaks, self._peaks, out=peaks)
        self._peaks = peaks
        if end >= self._due:
            self._peaks = None
            self._deliver(peaks)


class LevelBridge:
    """From the engine thread to the reactor thread, bounded, one call under way at most.

    :param call_from_thread: ``reactor.callFromThread``.
    :param on_levels: called on the reactor thread with the highest of the slots that have come
        since the last call, and how many these were.
    """

    def __init__(
        self,
        call_from_thread: Callable[..., object],
        on_levels: Callable[[Peaks, int], object],
    ) -> None:
        self._call = call_from_thread
        self._on_levels = on_levels
        # Appended to by one thread and popped by either; each operation is atomic.
        self._slots: deque[Peaks] = deque()
        self._pending = False
        self.dropped = 0
        """Slots that the reactor was too late for."""

    def put(self, peaks: Peaks) -> None:
        """Hand over a slot; engine thread only.  Never blocks."""
        self._slots.append(peaks)
        if len(self._slots) > MAX_SLOTS:
            try:
                self._slots.popleft()
            except IndexError:  # the reactor has just taken them all
                pass
            else:
                self.dropped += 1
        if not self._pending:
            self._pending = True
            self._call(self._drain)

    def _drain(self) -> None:
        # Cleared first: a slot that comes in from here on asks for a call of its own.
        self._pending = False
        taken = []
        for _ in range(len(self._slots)):
            try:
                taken.append(self._slots.popleft())
            except IndexError:
                break
        if taken:
            peaks = taken[0] if len(taken) == 1 else np.maximum.reduce(taken)
            self._on_levels(peaks, len(taken))
