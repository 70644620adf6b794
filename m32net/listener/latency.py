"""One-way latency from server to listener, from the RTP time extension (CLK-2).

A packet that carries the server's send time gives its latency: ``(arrival + offset) - send time``.
The offset of the clocks gets better during the first seconds, so it is applied late: samples wait
a while before they are filed, and until then count with the offset that is known by now.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_WAIT_NS: Final = 10_000_000_000
_MAX_WAITING: Final = 20_000
_BIN_MS: Final = 0.1
_BINS: Final = 20_001  # up to 2 s


class LatencyMeter:
    """Gathers latencies.

    :ivar offset_ns: add it to the local wall clock to have the server's (CLK-1); None: not known
        yet, and then there are no latencies.
    """

    def __init__(self) -> None:
        self.offset_ns: int | None = None
        self._last: int | None = None  # arrival less send time, by two clocks
        self._waiting: deque[tuple[int, int]] = deque()
        self._recent: list[int] = []
        self._bins = [0] * _BINS
        self._count = 0

    @property
    def last_ms(self) -> float | None:
        """Of the last packet that carried its send time."""
        if self._last is None or self.offset_ns is None:
            return None
        return (self._last + self.offset_ns) / 1e6

    def received(self, arrival_ns: int, send_ns: int) -> None:
        """Note a packet.

        :param arrival_ns: local wall clock when it came.
        :param send_ns: the server's wall clock when it was sent.
        """
        self._last = arrival_ns - send_ns
        self._waiting.append((arrival_ns, self._last))
        if len(self._recent) < _MAX_WAITING:
            self._recent.append(self._last)
        while self._waiting and (
            len(self._waiting) > _MAX_WAITING or arrival_ns - self._waiting[0][0] > _WAIT_NS
        ):
            self._file(1)

    def follow(self, other: LatencyMeter) -> None:
        """From now on it is the stream and the server's clock that ``other`` has measured.

        What was measured so far is filed with the clock it was measured by.
        """
        self._file(len(self._waiting))
        self.offset_ns = other.offset_ns
        self._last = other._last
        self._waiting.extend(other._waiting)

    def _file(self, count: int) -> None:
        for _ in range(count):
            difference = self._waiting.popleft()[1]
            if self.offset_ns is not None:
                self._count += 1
                self._bins[_bin_of(difference + self.offset_ns)] += 1

    def take_recent(self) -> tuple[float, float] | None:
        """Median and 99th percentile in ms since the last call; None if there was nothing."""
        recent, self._recent = sorted(self._recent), []
        if not recent or self.offset_ns is None:
            return None
        middle, high = recent[len(recent) // 2], recent[(len(recent) - 1) * 99 // 100]
        return (middle + self.offset_ns) / 1e6, (high + self.offset_ns) / 1e6

    def quantile(self, fraction: float) -> float | None:
        """Latency in ms that this fraction of all samples did not exceed, to 0.1 ms."""
        if self.offset_ns is None or not self._count + len(self._waiting):
            return None
        bins = list(self._bins)
        for _, difference in self._waiting:
            bins[_bin_of(difference + self.offset_ns)] += 1
        rank = max(1.0, fraction * sum(bins))
        seen = 0
        for index, count in enumerate(bins):
            seen += count
            if seen >= rank:
                return round(index * _BIN_MS, 1)
        return None


def _bin_of(latency_ns: int) -> int:
    """Clocks that are not quite right may give less than nothing: that is the first bin."""
    return min(_BINS - 1, max(0, round(latency_ns / 1e6 / _BIN_MS)))
