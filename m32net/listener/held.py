"""Packets held back before they are looked at: a longer way, simulated (``FORCE_DELAY_MS``).

A core: no clock is read and no timer set here.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocols.datagram import Datagram

MAX_HELD_BYTES: Final = 128 << 20
"""10 s of the densest stream fit (32 mono L24 of 2.5 ms); beyond, the newest are dropped."""
_OVERHEAD: Final = 256  # of a datagram in memory, about


class HeldBack:
    """Datagrams on their longer way.

    :param delay_ns: how long each is held back; 0 for not at all.
    :ivar dropped: thrown away because more than ``limit`` bytes were held.
    """

    def __init__(self, delay_ns: int, limit: int = MAX_HELD_BYTES) -> None:
        self.delay_ns = delay_ns
        self.dropped = 0
        self._limit = limit
        self._held: deque[tuple[float, list[Datagram]]] = deque()
        self._bytes = 0

    def put(self, datagrams: list[Datagram], now: float) -> None:
        """Hold these back; they will seem to have arrived that much later.

        :param now: in s, on the clock of :meth:`take`.
        """
        kept = []
        for one in datagrams:
            if self._bytes + _size(one) > self._limit:
                self.dropped += 1
                continue
            self._bytes += _size(one)
            kept.append(Datagram(one.data, one.address, one.arrival_ns + self.delay_ns))
        if kept:
            self._held.append((now + self.delay_ns / 1e9, kept))

    def take(self, now: float) -> list[Datagram]:
        """Those whose time has come, in order."""
        due: list[Datagram] = []
        while self._held and self._held[0][0] <= now + 0.0005:
            due += self._held.popleft()[1]
        self._bytes -= sum(_size(one) for one in due)
        return due

    def next_timer(self) -> float | None:
        """When :meth:`take` has something to give; None while nothing is held."""
        return self._held[0][0] if self._held else None


def _size(one: Datagram) -> int:
    return len(one.data) + _OVERHEAD
