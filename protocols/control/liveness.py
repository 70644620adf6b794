"""When to ping, and when a peer that does not answer is gone (CON-10, RFC 6455 section 5.5.2).

A core without I/O: ``now`` (seconds, any steady clock) and one random number go in; payloads for
ping frames, the time of the next timer and the round trips come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocols.control.quality import RoundTrips

FIRST_PING_S: Final = 1.0
"""None is earlier; spread over up to twice the interval, so that a crowd that came at once is not
asked at once for ever after."""
_PAYLOAD_BYTES: Final = 8
_SEQUENCES: Final = 1 << (8 * _PAYLOAD_BYTES)


class Liveness:
    """Pings at intervals, and what came back.

    Pings that are not answered before the next one count as lost; an answer that comes later
    still says that the peer is there.

    :param now: when the connection opened.
    :param interval_s: between two pings; the first comes after ``FIRST_PING_S`` to
        ``2 * interval_s - FIRST_PING_S``, 1..59 s with the usual 30 s.
    :param timeout_s: without any answer, from the first unanswered ping on, the peer is gone.
    :param random: gives numbers 0 <= x < 1; asked once.
    """

    def __init__(
        self, now: float, interval_s: float, timeout_s: float, random: Callable[[], float]
    ) -> None:
        self.trips = RoundTrips()
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        spread = max(0.0, 2 * (interval_s - FIRST_PING_S))
        self._next_at = now + FIRST_PING_S + spread * random()
        self._sequence = 0
        self._asked: dict[bytes, float] = {}
        self._in_question: bytes | None = None
        self._silent_at: float | None = None

    def next_timer(self) -> float:
        """When :meth:`ping` or :meth:`silent` has something to say."""
        return self._next_at if self._silent_at is None else min(self._next_at, self._silent_at)

    def silent(self, now: float) -> bool:
        """Whether the peer has not answered for too long."""
        return self._silent_at is not None and now >= self._silent_at

    def ping(self, now: float) -> bytes | None:
        """Payload of the ping to send now; None if none is due."""
        if now < self._next_at:
            return None
        if self._in_question is not None:
            self.trips.settle(answered=False)
        payload = self._sequence.to_bytes(_PAYLOAD_BYTES, "big")
        self._sequence = (self._sequence + 1) % _SEQUENCES
        self._asked[payload] = now
        self._in_question = payload
        if self._silent_at is None:
            self._silent_at = now + self._timeout_s
        self._next_at = now + self._interval_s
        return payload

    def pong(self, payload: bytes, now: float) -> bool:
        """A pong came; whether it answers one of our pings.  Others mean nothing (section 5.5.3).

        A peer may answer only the last of several pings, so earlier ones are settled with it.
        """
        asked_at = self._asked.get(payload)
        if asked_at is None:
            return False
        self.trips.took((now - asked_at) * 1000)
        if payload == self._in_question:
            self.trips.settle(answered=True)
            self._in_question = None
        self._asked = {other: at for other, at in self._asked.items() if at > asked_at}
        self._silent_at = min(self._asked.values()) + self._timeout_s if self._asked else None
        return True
