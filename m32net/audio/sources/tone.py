"""The ``test`` source: every sample says which channel it belongs to (STR-3).

On PCM the value of each sample of channel *n* is *n* in 16 bits, *n* << 8 in 24: the same number,
left-justified.  Lossy codecs can't carry that, so they get a sine of *n* x 100 Hz at -12 dBFS.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from zope.interface import implementer

from m32net.audio.clock import AudioClock
from m32net.audio.frame import CAPTURE_RATE, MAX_CHANNELS, Samples
from m32net.audio.ring import GRID
from m32net.audio.sources.source import ISource, PacedSource

LEVEL_DBFS: Final = -12.0
"""Peak of the sines relative to full scale."""
STEP_HZ: Final = 100


@implementer(ISource)
class ToneSource(PacedSource):
    """Constant numbers for PCM, sines for Opus; up to 64 channels."""

    def __init__(self, channels: int, clock: AudioClock) -> None:
        super().__init__("test", min(channels, MAX_CHANNELS), channels, clock)
        numbers = np.arange(1, self.channels + 1)
        self._numbers: Samples = np.tile((numbers << 16).astype(np.int32), (GRID, 1))
        # All sines repeat after 480 samples, so a table of the longest frame needs no wrapping.
        phase = np.outer(np.arange(GRID), numbers) * (2 * np.pi * STEP_HZ / CAPTURE_RATE)
        peak = 10 ** (LEVEL_DBFS / 20) * 2**31
        self._tones: Samples = np.rint(np.sin(phase) * peak).astype(np.int32)

    def _next(self, first: int, samples: int) -> tuple[Samples, Samples | None]:
        at = first % GRID
        return self._numbers[:samples], self._tones[at : at + samples]
