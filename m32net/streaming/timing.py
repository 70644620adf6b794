"""How long frames take: a fixed window of durations and their quantiles.

Used for the time from a frame's last sample to its last datagram handed to the kernel.
"""

from __future__ import annotations

import numpy as np


class DurationWindow:
    """The last ``size`` durations; recording one is a store into a preallocated array."""

    def __init__(self, size: int = 2000) -> None:
        self._values = np.zeros(size, dtype=np.int64)
        self._count = 0

    def __len__(self) -> int:
        return min(self._count, len(self._values))

    def add(self, nanoseconds: int) -> None:
        self._values[self._count % len(self._values)] = nanoseconds
        self._count += 1

    def quantiles_ms(self, *fractions: float) -> tuple[float, ...]:
        """In milliseconds; zeros before the first duration."""
        if not self._count:
            return (0.0,) * len(fractions)
        window = self._values[: len(self)]
        return tuple(float(value) / 1e6 for value in np.quantile(window, fractions))
