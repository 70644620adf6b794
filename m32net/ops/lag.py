"""The event loop's lag: how late the reactor gets round to what is due.

Audio leaves the server on the reactor thread, so whatever holds the loop up holds everybody's ears
up.  A timer that is due every 50 ms notes how late it is called; nothing else is measured here, and
nothing is done about it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from m32net.interfaces import Health

INTERVAL_S: Final = 0.05
"""Twenty calls a second cost nothing to speak of (0.1 % of a core).  A loop that is held up for
``b`` seconds is noticed with a chance of ``b / INTERVAL_S``, surely from 50 ms on: just as likely
as a frame or a request meets it, so the quantiles are those of what the others wait for."""
WINDOW_S: Final = 60.0
DEGRADED_S: Final = 0.05
"""A 99th percentile beyond this is said on ``/health``: a listener on good Wi-Fi plays 20 to 60 ms
after the server sends, so one frame in a hundred that is 50 ms late is heard.  Over a minute it
takes 0.6 s of standing still to get there, so a single hiccup does not."""
UNHEALTHY_S: Final = 0.1
"""A median beyond this: every second frame is later than anybody's jitter buffer."""
ENOUGH: Final = 100
"""Samples (5 s) before lag is judged: libraries load and caches fill in the first second."""
BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


@dataclass(frozen=True, slots=True)
class LagFigures:
    """The last minute, in seconds of lateness; zeros before the first sample."""

    samples: int
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Since the start, as Prometheus wants it.

    :ivar buckets: ``(upper bound in s, samples up to it)``, the last one infinite.
    :ivar total: of all samples, in seconds.
    """

    buckets: tuple[tuple[str, float], ...]
    total: float


class LagRecord:
    """The samples of a window, and the histogram of all there ever were.

    :param size: samples in the window.
    """

    def __init__(self, size: int, buckets: Sequence[float] = BUCKETS_S) -> None:
        self._recent: deque[float] = deque(maxlen=size)
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, late_s: float) -> None:
        """Note one sample; a clock that stepped back counts as no lateness."""
        late_s = max(0.0, late_s)
        self._recent.append(late_s)
        self._counts[bisect_left(self._bounds, late_s)] += 1
        self._total += late_s

    def figures(self) -> LagFigures:
        ordered = sorted(self._recent)
        if not ordered:
            return LagFigures(0, 0.0, 0.0, 0.0)
        return LagFigures(
            len(ordered), _quantile(ordered, 0.5), _quantile(ordered, 0.99), ordered[-1]
        )

    def histogram(self) -> Histogram:
        below = 0
        buckets = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        return Histogram(tuple(buckets), self._total)


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of all do not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -int(-fraction * len(ordered) // 1) - 1))]


class LoopMeter(Service):
    """Measures while it runs.

    :param clock: whose lateness is measured: the reactor, or a ``task.Clock``.
    :param seconds: a steady clock; by default the clock's own.
    """

    name = "loop"

    def __init__(
        self,
        clock: IReactorTime,
        seconds: Callable[[], float] | None = None,
        interval_s: float = INTERVAL_S,
        window_s: float = WINDOW_S,
    ) -> None:
        self._clock = clock
        self._seconds = seconds or clock.seconds
        self._interval_s = interval_s
        self.record = LagRecord(round(window_s / interval_s))
        self._next: IDelayedCall | None = None
        self._due = 0.0

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        # Not before the loop turns: what other rooms do at their start is no lag.
        self._next = self._clock.callLater(0, self._arm)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._next = None

    def _arm(self) -> None:
        self._due = self._seconds() + self._interval_s
        self._next = self._clock.callLater(self._interval_s, self._sample)

    def _sample(self) -> None:
        self.record.add(self._seconds() - self._due)
        self._arm()

    def health(self) -> Health:
        """Degraded or worse while the last minute's lag is one that is heard."""
        lag = self.record.figures()
        details = {
            "lag_ms_p50": round(lag.p50 * 1000, 3),
            "lag_ms_p99": round(lag.p99 * 1000, 3),
            "lag_ms_max": round(lag.max * 1000, 3),
        }
        if lag.samples >= ENOUGH and lag.p50 > UNHEALTHY_S:
            why = f"the event loop is overloaded: half of everything waits {lag.p50 * 1000:.0f} ms"
            return Health("unhealthy", (why,), details)
        if lag.samples >= ENOUGH and lag.p99 > DEGRADED_S:
            why = (
                f"the event loop is late: up to {lag.p99 * 1000:.0f} ms for 99 % of the last "
                f"minute, {lag.max * 1000:.0f} ms at worst"
            )
            return Health("degraded", (why,), details)
        return Health("healthy", (), details)

    def figures(self) -> dict[str, float]:
        """Named figures for ``/metrics``; the histogram is apart, in :attr:`record`."""
        lag = self.record.figures()
        return {
            "event_loop_lag_p50_seconds": lag.p50,
            "event_loop_lag_p99_seconds": lag.p99,
            "event_loop_lag_max_seconds": lag.max,
        }
