"""The last 20 ms of audio, from which frames of every length are cut.

Frames of 2.5, 5, 10 and 20 ms nest, so one buffer of the longest serves all profiles, and a frame
is a view into it.  It holds the frame at hand and nothing older (STR-41).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from m32net.audio.frame import AudioFrame, Samples
from m32net.audio.ring import GRID

SHORTEST: Final = 120
"""Samples of the shortest frame (2.5 ms)."""
_FULL_SCALE: Final = np.float32(2.0**-31)


class FrameWindow:
    """A buffer of one :data:`GRID`, addressed by sample position modulo its length.

    :ivar floats_wanted: keep :meth:`floats` up to date as blocks come in.
    """

    def __init__(self, channels: int) -> None:
        self._samples: Samples = np.zeros((GRID, channels), dtype=np.int32)
        # One more column, always silent: the Opus encoders need it (see encoder.py).
        self._floats = np.zeros((GRID, channels + 1), dtype=np.float32)
        self._times = [0] * (GRID // SHORTEST)
        self.floats_wanted = False
        self._floats_since = 0
        self._since = 0
        self.end = 0
        """Position after the newest sample."""

    def put(self, frame: AudioFrame) -> None:
        """Add a block that lies on the grid of its own length."""
        first, count = frame.first_sample, len(frame)
        if first % count or GRID % count:
            raise ValueError(f"a block of {count} samples can't begin at {first}")
        if first != self.end:
            self._since = self._floats_since = first
        at = first % GRID
        self._samples[at : at + count] = frame.samples
        if self.floats_wanted:
            heard = frame.samples if frame.tones is None else frame.tones
            target = self._floats[at : at + count, :-1]
            np.multiply(heard, _FULL_SCALE, out=target, dtype=np.float32, casting="unsafe")
        else:
            self._floats_since = first + count
        for slot in range(0, count, SHORTEST):
            shift = slot * 1_000_000 // 48
            self._times[(at + slot) // SHORTEST] = frame.capture_time_ns + shift
        self.end = first + count

    def complete(self, samples: int, *, floats: bool) -> bool:
        """Whether a frame of ``samples`` on its grid ends at :attr:`end`, without a gap."""
        since = self._floats_since if floats else self._since
        return self.end % samples == 0 and self.end - samples >= since

    def samples(self, count: int) -> Samples:
        """The newest frame of ``count`` samples: int32, a view, shape ``(count, channels)``."""
        at = (self.end - count) % GRID
        return self._samples[at : at + count]

    def floats(self, count: int) -> npt.NDArray[np.float32]:
        """The same for lossy codecs, full scale 1.0, with a silent last column."""
        at = (self.end - count) % GRID
        return self._floats[at : at + count]

    def capture_time_ns(self, count: int) -> int:
        """Wall-clock time of the first sample of the newest frame of ``count`` samples."""
        return self._times[(self.end - count) % GRID // SHORTEST]
