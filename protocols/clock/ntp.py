"""NTP's four time stamps over the control WebSocket (CLK-1): arithmetic and the sample filter.

Times are milliseconds as floats (or, all four of them, integer nanoseconds: the arithmetic is the
same, only ``max_delay`` must then be in nanoseconds too).  The formulas are those of RFC 5905
section 8.  No clock is read and nothing is sent here.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

MAX_DELAY_MS: Final = 100.0
WINDOW: Final = 8


@dataclass(frozen=True, slots=True)
class NtpSample:
    """One request and its answer.

    :ivar t1: client's time when the request left.
    :ivar t2: server's time when it came.
    :ivar t3: server's time when the answer left.
    :ivar t4: client's time when that came.
    """

    t1: float
    t2: float
    t3: float
    t4: float

    @property
    def delay(self) -> float:
        """Time on the network, both ways: ``(t4 - t1) - (t3 - t2)``."""
        return (self.t4 - self.t1) - (self.t3 - self.t2)

    @property
    def offset(self) -> float:
        """What to add to the client's clock to have the server's.

        ``((t2 - t1) + (t3 - t4)) / 2``; wrong by at most half the delay.
        """
        return ((self.t2 - self.t1) + (self.t3 - self.t4)) / 2


class NtpFilter:
    """Keeps the last samples and trusts the one that spent the least time on the way.

    :param max_delay: samples with more delay than this are refused.
    :param window: how many accepted samples are remembered; the best is one of them.
    """

    def __init__(self, max_delay: float = MAX_DELAY_MS, window: int = WINDOW) -> None:
        if window < 1:
            raise ValueError(f"a window of {window} samples holds none")
        self.max_delay = max_delay
        self.refused = 0
        self._samples: deque[NtpSample] = deque(maxlen=window)

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, t1: float, t2: float, t3: float, t4: float) -> bool:
        """Take one sample in.

        :returns: whether it was accepted.  Refused (and counted) are samples whose delay is over
            the limit, below zero (a clock was set meanwhile), or not a finite number.
        """
        sample = NtpSample(t1, t2, t3, t4)
        try:
            usable = 0 <= sample.delay <= self.max_delay and math.isfinite(sample.offset)
        except OverflowError:  # integers too large for a float
            usable = False
        if not usable:
            self.refused += 1
            return False
        self._samples.append(sample)
        return True

    def clear(self) -> None:
        """Forget all samples, as after a step of the local clock."""
        self._samples.clear()

    @property
    def best(self) -> NtpSample | None:
        """The remembered sample of least delay, the newest of equals; None without any."""
        if not self._samples:
            return None
        return min(reversed(self._samples), key=lambda sample: sample.delay)

    @property
    def offset(self) -> float | None:
        """Offset of the best sample; None before the first."""
        best = self.best
        return None if best is None else best.offset

    @property
    def delay(self) -> float | None:
        """Delay of the best sample; None before the first."""
        best = self.best
        return None if best is None else best.delay
