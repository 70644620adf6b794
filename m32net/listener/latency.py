"""One-way latency from server to listener, from the RTP time extension (CLK-2).

A packet that carries the server's send time gives its latency outright: ``(arrival + offset) -
send time``.  Those are three in five seconds; for all others the send time is inferred from their
time stamp, since the server sends every frame the same time after its last sample.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

_BIN_MS: Final = 0.1
_BINS: Final = 20_001  # up to 2 s
_ANCHORS: Final = 9
_MAX_RECENT: Final = 20_000
_JUMP_NS: Final = 10_000_000_000


class LatencyMeter:
    """Gathers latencies.

    :ivar offset_ns: add it to the local wall clock to have the server's (CLK-1); None: not known
        yet, and then nothing is measured.
    :ivar last_ms: of the last packet that carried its send time (CLK-2).
    """

    def __init__(self) -> None:
        self.offset_ns: int | None = None
        self.last_ms: float | None = None
        self._bins = [0] * _BINS
        self._count = 0
        self._recent: list[float] = []
        self._anchors: deque[int] = deque(maxlen=_ANCHORS)  # send time less media time
        self._anchor: int | None = None
        self._media_ns = 0

    def received(self, arrival_ns: int, media_ns: int, send_ns: int | None) -> None:
        """Note a packet.

        :param arrival_ns: local wall clock when it came.
        :param media_ns: its time stamp in ns, on any base that lasts.
        :param send_ns: the server's wall clock when it was sent, if it says so.
        """
        if abs(media_ns - self._media_ns) > _JUMP_NS:
            self._anchors.clear()
            self._anchor = None
        self._media_ns = media_ns
        if send_ns is not None:
            self._anchors.append(send_ns - media_ns)
            self._anchor = int(median(self._anchors))
        if self.offset_ns is None or self._anchor is None:
            return
        if send_ns is None:
            self._note((arrival_ns + self.offset_ns - media_ns - self._anchor) / 1e6)
        else:
            self.last_ms = (arrival_ns + self.offset_ns - send_ns) / 1e6
            self._note(self.last_ms)

    def _note(self, latency_ms: float) -> None:
        self._bins[min(_BINS - 1, max(0, round(latency_ms / _BIN_MS)))] += 1
        self._count += 1
        if len(self._recent) < _MAX_RECENT:
            self._recent.append(latency_ms)

    def take_recent(self) -> tuple[float, float] | None:
        """Median and 99th percentile in ms since the last call; None if there was nothing."""
        recent, self._recent = sorted(self._recent), []
        if not recent:
            return None
        return recent[len(recent) // 2], recent[min(len(recent) - 1, len(recent) * 99 // 100)]

    def quantile(self, fraction: float) -> float | None:
        """Latency in ms that this fraction of all packets did not exceed, to 0.1 ms."""
        if not self._count:
            return None
        rank = max(1, -(-self._count * fraction // 1))
        seen = 0
        for index, count in enumerate(self._bins):
            seen += count
            if seen >= rank:
                return round(index * _BIN_MS, 1)
        return None
