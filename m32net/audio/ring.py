"""The ring between the PortAudio callback and the engine thread.

Single producer, single consumer, memory allocated once.  The producer never waits: it overwrites
the oldest samples, and it is the consumer who notices, counts them and steps over them.  The ring
knows nothing of time or devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from m32net.audio.frame import Samples

GRID: Final = 960
"""Samples of the longest frame (20 ms); what is stepped over is a multiple of it, so that frames
of every length stay where they were."""
_NEVER: Final = 1 << 62
_STAMPS: Final = 32
"""Writes whose times are remembered."""


def _not_waiting() -> None:
    """Nobody sleeps on this ring."""


class FrameRing:
    """A bounded queue of samples for one writing and one reading thread.

    Positions count samples since the ring was made and never wrap.  The producer announces a
    write (``_claimed``) before it touches the memory and confirms it (``written``) afterwards;
    the consumer checks the claim after copying, as in a sequence lock, and throws away what was
    overwritten under its hands.

    :param capacity: samples per channel it holds, at least two :data:`GRID`.
    :param wake: called by the producer once the samples given to :meth:`wake_at` are there; must
        neither block nor raise.
    """

    def __init__(
        self, capacity: int, channels: int, wake: Callable[[], None] = _not_waiting
    ) -> None:
        if capacity < 2 * GRID:
            raise ValueError(f"a ring holds at least {2 * GRID} samples, not {capacity}")
        self.capacity = capacity
        self.channels = channels
        self._samples: Samples = np.zeros((capacity, channels), dtype=np.int32)
        self._octets = self._samples.data.cast("B")
        self._row = channels * 4
        self._wake = wake
        self._claimed = 0
        self.written = 0
        """Samples ever written."""
        self.stamp = (0, 0)
        """``(written, monotonic ns)`` of the latest write; a tuple, so it is never torn."""
        self._stamps = [self.stamp] * _STAMPS
        self._writes = 0
        self._wake_at = _NEVER
        self._position = 0
        self.dropped = 0
        """Samples overwritten before they were read, or stepped over with them."""

    def write(self, block: object, samples: int, stamp_ns: int) -> None:
        """Append a block; producer only.  No lock, no array made, no call that waits.

        :param block: a C-contiguous buffer of ``samples * channels`` native int32.
        :param samples: at most ``capacity``.
        """
        octets = memoryview(block)  # type: ignore[arg-type]
        if octets.format != "B" or octets.ndim != 1:
            octets = octets.cast("B")
        start = self.written
        end = self._claimed = start + samples
        row = self._row
        at = start % self.capacity
        first = min(samples, self.capacity - at)
        self._octets[at * row : (at + first) * row] = octets[: first * row]
        if first < samples:
            self._octets[: (samples - first) * row] = octets[first * row : samples * row]
        self.stamp = self._stamps[self._writes % _STAMPS] = (end, stamp_ns)
        self._writes += 1
        self.written = end
        if end >= self._wake_at:
            self._wake_at = _NEVER
            self._wake()

    @property
    def available(self) -> int:
        """Samples that can be read now; consumer only."""
        return min(self.written - self._position, self.capacity)

    @property
    def position(self) -> int:
        """Index of the sample the next :meth:`read` begins with, unless it has to step."""
        return self._position

    def wake_at(self, samples: int) -> bool:
        """Ask for a wake-up when ``samples`` can be read.

        :returns: True if they are there already (then no wake-up need come).
        """
        self._wake_at = self._position + samples
        if self.written >= self._position + samples:
            self._wake_at = _NEVER
            return True
        return False

    def arrived_ns(self, position: int) -> int:
        """When the sample before ``position`` was written, as far back as 32 writes."""
        writes = self._writes
        found = self.stamp[1]
        for write in range(writes - 1, max(-1, writes - _STAMPS), -1):
            end, stamp_ns = self._stamps[write % _STAMPS]
            if end < position:
                break
            found = min(found, stamp_ns)
        return found

    def read(self, samples: int) -> tuple[int, Samples] | None:
        """Take the next ``samples``; consumer only.

        :returns: the position of the first and a copy, shape ``(samples, channels)``; None if
            they aren't all there yet.
        """
        while self.written - self._position >= samples:
            if self._overwritten():
                self._step()
                continue
            block = self._copy(samples)
            if not self._overwritten():
                first = self._position
                self._position = first + samples
                return first, block
        return None

    def discard(self) -> None:
        """Step to the newest sample that lies on the grid; these aren't counted as dropped."""
        ready = self.written - self._position
        self._position += max(0, ready // GRID * GRID)

    def _overwritten(self) -> bool:
        return self._claimed - self._position > self.capacity

    def _step(self) -> None:
        """Go past what was overwritten and a quarter more, or the writer is there again at once."""
        behind = self._claimed - self._position - self.capacity + self.capacity // 4
        step = -(-behind // GRID) * GRID
        self._position += step
        self.dropped += step

    def _copy(self, samples: int) -> Samples:
        at = self._position % self.capacity
        if at + samples <= self.capacity:
            return self._samples[at : at + samples].copy()
        return np.concatenate((self._samples[at:], self._samples[: at + samples - self.capacity]))
