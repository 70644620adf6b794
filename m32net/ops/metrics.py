"""``/metrics``: what the rooms say of themselves, in Prometheus' text format (CON-40).

A collector that takes a fresh snapshot at every scrape; nothing is counted here.  What the named
figures mean is in :mod:`m32net.ops.catalogue`.
"""

from __future__ import annotations

import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.threads import deferToThread

from m32net.interfaces import Health, IListeners, IServerStatus, ListenerStatus
from m32net.ops import catalogue
from m32net.ops.catalogue import PREFIX
from m32net.ops.lag import Histogram
from m32net.ops.listeners import exposition

_STATES: Final = ("healthy", "degraded", "unhealthy")
FRESH_S: Final = 0.5
"""Anybody may ask for ``/metrics``; however often they do, it is made at most this often."""
INLINE: Final = 50
"""Listeners whose lines are written on the spot: it takes 2 ms."""
_RATINGS: Final = ("good", "fair", "poor", "unknown")

Figures = Callable[[], Mapping[str, float]]


class ServerCollector(Collector):
    """Turns snapshots of the rooms into metrics.

    :param figures: further named values; a name that ends in ``_total`` is a counter, and one may
        carry labels: ``refused_total{reason="full"}``.
    :param rates: counters per second, by name.
    :param lag: the event loop's, since the start.
    :ivar everybody: the listeners of this scrape; to be set before it.
    """

    def __init__(
        self,
        status: IServerStatus,
        listeners: IListeners,
        figures: Sequence[Figures] = (),
        rates: Figures | None = None,
        lag: Callable[[], Histogram] | None = None,
    ) -> None:
        self._status = status
        self._listeners = listeners
        self._figures = figures
        self._rates = rates
        self._lag = lag
        self._build = _build_info(status.version)
        self.everybody: Sequence[ListenerStatus] = ()

    def collect(self) -> Iterator[Metric]:
        yield self._build
        yield from self._server()
        yield from _health(self._status.health())
        yield _ratings(self.everybody)
        named = list(self._named())
        yield from catalogue.families(named)
        yield catalogue.errors(named)
        yield from self._measured()

    def _server(self) -> Iterator[Metric]:
        status = self._status
        info = GaugeMetricFamily(
            f"{PREFIX}info",
            "Always 1; its labels say which server this is.",
            labels=["name", "version", "role", "node_id"],
        )
        info.add_metric([status.name, status.version, status.role, status.node_id], 1)
        yield info
        yield _gauge("uptime_seconds", "Time since the start.", status.uptime_s())
        cpu = status.cpu_percent() / 100
        yield _gauge("cpu_ratio", "CPU used in the last seconds; 1 is a whole core.", cpu)
        yield _gauge("memory_bytes", "Resident memory.", status.memory_mb() * 1e6)
        yield _gauge("listeners", "Connected now, streaming or not.", self._listeners.count())

    def _named(self) -> Iterator[tuple[str, float]]:
        for name, value in self._listeners.totals().items():
            yield catalogue.TOTALS.get(name, f"{name.removesuffix('_total')}_total"), value
        yield "listeners_refused_total", self._listeners.refused()
        for figures in (self._status.measurements, *self._figures):
            yield from figures().items()

    def _measured(self) -> Iterator[Metric]:
        if self._lag is not None:
            lag = self._lag()
            yield HistogramMetricFamily(
                f"{PREFIX}event_loop_lag_seconds",
                "How late the event loop came to a timer that was due.",
                buckets=list(lag.buckets),
                sum_value=lag.total,
            )
        if self._rates is not None:
            family = GaugeMetricFamily(
                f"{PREFIX}rate_per_second",
                "A counter's growth per second over the last 10 s, for a look without Prometheus.",
                labels=["counter"],
            )
            for name, value in self._rates().items():
                family.add_metric([name], value)
            yield family


def _health(rooms: Mapping[str, Health]) -> Iterator[Metric]:
    labels = ["room", "state"]
    family = GaugeMetricFamily(
        f"{PREFIX}health", "1 for the state each room is in, 0 for the others.", labels=labels
    )
    for room, health in rooms.items():
        for state in _STATES:
            family.add_metric([room, state], float(health.state == state))
    yield family


def _ratings(everybody: Sequence[ListenerStatus]) -> Metric:
    family = GaugeMetricFamily(
        f"{PREFIX}listeners_rated",
        "Listeners by their reception: loss, jitter and latency in one word.",
        labels=["rating"],
    )
    rated = Counter(one.rating for one in everybody)
    for rating in _RATINGS:
        family.add_metric([rating], rated[rating])
    return family


def _build_info(version: str) -> GaugeMetricFamily:
    """What this server is made of; it does not change while it runs."""
    labels = ["version", "python", "twisted", "system"]
    family = GaugeMetricFamily(
        f"{PREFIX}build_info", "Always 1; its labels say what runs here.", labels=labels
    )
    twisted = metadata.version("twisted")
    system = f"{platform.system()} {platform.machine()}"
    family.add_metric([version, platform.python_version(), twisted, system], 1)
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


class Metrics:
    """The whole of ``/metrics``: the server's figures and those of its process.

    The parameters are those of :class:`ServerCollector`, and:

    :param seconds: a steady clock.
    :param in_thread: runs a function elsewhere and gives a Deferred of its result.
    """

    def __init__(
        self,
        status: IServerStatus,
        listeners: IListeners,
        figures: Sequence[Figures] = (),
        rates: Figures | None = None,
        lag: Callable[[], Histogram] | None = None,
        *,
        seconds: Callable[[], float] = time.monotonic,
        in_thread: Callable[..., Deferred[str]] = deferToThread,
    ) -> None:
        self._in_thread = in_thread
        self._one = DeferredLock()
        self._listeners = listeners
        self._seconds = seconds
        self._text = b""
        self._made_at = -math.inf
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._collector = ServerCollector(status, listeners, figures, rates, lag)
        self._registry.register(self._collector)

    def answer(self) -> Deferred[bytes]:
        """The text, UTF-8, not older than :data:`FRESH_S`.

        The lines of many listeners are written in a thread, so that audio goes out meanwhile.
        """
        return self._one.run(self._make)

    def render(self) -> bytes:
        """The same, at once and anew."""
        head, everybody = self._look()
        return head + exposition(everybody).encode(errors="replace")

    def _look(self) -> tuple[bytes, Sequence[ListenerStatus]]:
        everybody = self._collector.everybody = self._listeners.snapshot()
        return generate_latest(self._registry), everybody

    def _make(self) -> Deferred[bytes]:
        now = self._seconds()
        if now - self._made_at < FRESH_S:
            return succeed(self._text)
        head, everybody = self._look()

        def done(lines: str) -> bytes:
            self._text, self._made_at = head + lines.encode(errors="replace"), now
            return self._text

        if len(everybody) <= INLINE:
            return succeed(done(exposition(everybody)))
        return self._in_thread(exposition, everybody).addCallback(done)
