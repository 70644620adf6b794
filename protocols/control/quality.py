"""How a control connection fares (CON-13): round trips, unanswered ones, traffic.

Counting and arithmetic only; who counts is in :mod:`protocols.control.liveness` and the shells.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Final

REMEMBERED: Final = 100
"""Round trips that count."""


@dataclass(frozen=True, slots=True)
class ControlQuality:
    """One connection, now; what is not known yet is None.

    :ivar rtt_ms: median of the last :data:`REMEMBERED` round trips; ``rtt_last_ms``: the newest.
    :ivar loss: fraction of the last :data:`REMEMBERED` questions not answered in time.
    :ivar idle_s: seconds since anything came from the peer.
    :ivar messages_received: text messages; ``bytes_received`` is everything on the wire, frame
        headers, pings and compression included, TLS and below not.  The same for ``sent``.
    :ivar queued: messages that wait because the peer reads too slowly.
    :ivar dropped: messages thrown away for that; ``expired``: that waited for too long.
    """

    rtt_ms: float | None
    rtt_last_ms: float | None
    loss: float | None
    idle_s: float
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int
    queued: int = 0
    dropped: int = 0
    expired: int = 0


class RoundTrips:
    """The last :data:`REMEMBERED` round trips, and how many questions had no answer in time.

    Kept in order and counted as they come, about one in 30 s: they are read much more often, of
    all listeners in one go.
    """

    __slots__ = ("_answered", "_lost", "_sorted", "_times")

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._sorted: list[float] = []
        self._answered: deque[bool] = deque(maxlen=REMEMBERED)
        self._lost = 0

    def took(self, milliseconds: float) -> None:
        """An answer came so long after its question."""
        if len(self._times) == REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._times[0])]
        time = max(0.0, milliseconds)
        self._times.append(time)
        insort(self._sorted, time)

    def settle(self, *, answered: bool) -> None:
        """Whether a question was answered in time is known now."""
        if len(self._answered) == REMEMBERED:
            self._lost -= not self._answered[0]
        self._answered.append(answered)
        self._lost += not answered

    @property
    def median_ms(self) -> float | None:
        times = self._sorted
        if not times:
            return None
        middle = len(times) // 2
        return times[middle] if len(times) % 2 else (times[middle - 1] + times[middle]) / 2

    @property
    def last_ms(self) -> float | None:
        return self._times[-1] if self._times else None

    @property
    def loss(self) -> float | None:
        """0..1; None while nothing is known."""
        if not self._answered:
            return None
        return self._lost / len(self._answered)


@dataclass(slots=True)
class Traffic:
    """What went over one connection.

    :ivar heard_at: seconds, when anything came last.
    """

    heard_at: float
    messages_received: int = 0
    messages_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0

    def add(self, other: Traffic) -> None:
        """Count what went over another connection too."""
        self.messages_received += other.messages_received
        self.messages_sent += other.messages_sent
        self.bytes_received += other.bytes_received
        self.bytes_sent += other.bytes_sent

    def quality(
        self, trips: RoundTrips, now: float, *, queued: int = 0, dropped: int = 0, expired: int = 0
    ) -> ControlQuality:
        """All of it in one value."""
        return ControlQuality(
            rtt_ms=trips.median_ms,
            rtt_last_ms=trips.last_ms,
            loss=trips.loss,
            idle_s=max(0.0, now - self.heard_at),
            messages_received=self.messages_received,
            messages_sent=self.messages_sent,
            bytes_received=self.bytes_received,
            bytes_sent=self.bytes_sent,
            queued=queued,
            dropped=dropped,
            expired=expired,
        )
