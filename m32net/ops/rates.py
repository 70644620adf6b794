"""Rates of counters over the last ten seconds, for a person with nothing but ``curl``.

Prometheus makes better ones with ``rate()``; these are one look at ``/metrics`` away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

INTERVAL_S: Final = 1.0
WINDOW: Final = 10
"""Intervals a rate is taken over."""


class Rates(Service):
    """Samples counters once a second while it runs.

    :param counters: their values now, by name; names may come and go.
    :param seconds: a steady clock; by default the clock's own.
    """

    name = "rates"

    def __init__(
        self,
        clock: IReactorTime,
        counters: Callable[[], Mapping[str, float]],
        seconds: Callable[[], float] | None = None,
    ) -> None:
        self._counters = counters
        self._seconds = seconds or clock.seconds
        self._samples: deque[tuple[float, dict[str, float]]] = deque(maxlen=WINDOW + 1)
        self._sampling = LoopingCall(self._sample)
        self._sampling.clock = clock

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._sampling.start(INTERVAL_S)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._sampling.running:
            self._sampling.stop()

    def _sample(self) -> None:
        self._samples.append((self._seconds(), dict(self._counters())))

    def per_second(self) -> Mapping[str, float]:
        """By counter; a counter that started anew within the window has the rate 0."""
        if len(self._samples) < 2:
            return {}
        (began, old), (ended, new) = self._samples[0], self._samples[-1]
        span = ended - began
        if span <= 0:
            return {}
        return {name: max(0.0, new[name] - old.get(name, 0.0)) / span for name in new}
