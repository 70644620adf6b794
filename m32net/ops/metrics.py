"""``/metrics``: what the rooms say of themselves, in Prometheus' text format (CON-40).

A collector that takes a fresh snapshot at every scrape; nothing is counted here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from m32net.interfaces import IListeners, IServerStatus, ListenerStatus

PREFIX: Final = "m32net_"
_STATES: Final = ("healthy", "degraded", "unhealthy")
_RATINGS: Final = ("good", "fair", "poor", "unknown")

Figures = Callable[[], Mapping[str, float]]

Reading = Callable[[ListenerStatus], float | None]


def _quality(field: str, scale: float = 1.0) -> Reading:
    """Reads a field of the listener's last quality report, if it has one."""

    def read(one: ListenerStatus) -> float | None:
        value = getattr(one.quality, field, None)
        return None if value is None else float(value) * scale

    return read


_LISTENER_GAUGES: Final[tuple[tuple[str, str, Reading], ...]] = (
    ("connected_seconds", "Time since it connected.", lambda one: one.connected_s),
    ("channels", "Channels it is sent.", lambda one: len(one.channels)),
    ("loss_ratio", "Packets lost, 0 to 1.", _quality("loss")),
    ("jitter_seconds", "RFC 3550 interarrival jitter.", _quality("jitter_ms", 0.001)),
    ("latency_seconds", "One way, server to listener.", _quality("latency_ms", 0.001)),
)
_LISTENER_COUNTERS: Final[tuple[tuple[str, str, Callable[[ListenerStatus], float]], ...]] = (
    ("packets_sent", "RTP packets sent.", lambda s: s.packets_sent),
    ("octets_sent", "Payload octets sent.", lambda s: s.octets_sent),
    ("packets_dropped", "RTP packets the kernel did not take.", lambda s: s.packets_dropped),
)


class ServerCollector(Collector):
    """Turns snapshots of the rooms into metrics.

    :param figures: further named values; a name that ends in ``_total`` is a counter.
    """

    def __init__(
        self, status: IServerStatus, listeners: IListeners, figures: Sequence[Figures] = ()
    ) -> None:
        self._status = status
        self._listeners = listeners
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        yield from self._server()
        yield from self._health()
        yield from self._each_listener(self._listeners.snapshot())
        yield from self._named()

    def _server(self) -> Iterator[Metric]:
        status = self._status
        info = GaugeMetricFamily(
            f"{PREFIX}info", "This server.", labels=["name", "version", "role", "node_id"]
        )
        info.add_metric([status.name, status.version, status.role, status.node_id], 1)
        yield info
        yield _gauge("uptime_seconds", "Time since the start.", status.uptime_s())
        yield _gauge("cpu_percent", "CPU of one core, last seconds.", status.cpu_percent())
        yield _gauge("memory_bytes", "Resident memory.", status.memory_mb() * 1e6)
        yield _gauge("listeners", "Connected now, streaming or not.", self._listeners.count())
        yield _counter("listeners_refused", "Turned away because full.", self._listeners.refused())
        for name, value in self._listeners.totals().items():
            yield _counter(_word(name), f"{name} since the start.", value)

    def _health(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            f"{PREFIX}health", "1 for the state each room is in.", labels=["room", "state"]
        )
        for room, health in self._status.health().items():
            for state in _STATES:
                family.add_metric([room, state], float(health.state == state))
        yield family

    @staticmethod
    def _each_listener(snapshot: Iterable[ListenerStatus]) -> Iterator[Metric]:
        everybody = list(snapshot)
        ratings = GaugeMetricFamily(
            f"{PREFIX}listeners_rated", "Listeners by rating.", labels=["rating"]
        )
        for rating in _RATINGS:
            ratings.add_metric([rating], sum(one.rating == rating for one in everybody))
        yield ratings
        labels = ["client_id", "name", "codec"]
        for name, text, read in _LISTENER_GAUGES:
            gauge = GaugeMetricFamily(f"{PREFIX}listener_{name}", text, labels=labels)
            for one in everybody:
                value = read(one)
                if value is not None:
                    gauge.add_metric(_labels(one), value)
            yield gauge
        for name, text, count in _LISTENER_COUNTERS:
            counter = CounterMetricFamily(f"{PREFIX}listener_{name}", text, labels=labels)
            for one in everybody:
                counter.add_metric(_labels(one), count(one))
            yield counter

    def _named(self) -> Iterator[Metric]:
        named: dict[str, float] = {}
        for figures in (self._status.measurements, *self._figures):
            named.update((_word(name), value) for name, value in figures().items())
        for name, value in named.items():
            if not math.isfinite(value):
                continue
            if name.endswith("_total"):
                yield _counter(name.removesuffix("_total"), name.replace("_", " "), value)
            else:
                yield _gauge(name, name.replace("_", " "), value)


def _labels(one: ListenerStatus) -> list[str]:
    return [one.client_id, one.name, one.codec or ""]


def _word(name: str) -> str:
    """A metric name of letters, digits and underscores."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, value=value)


class Metrics:
    """The whole of ``/metrics``: the server's figures and those of its process."""

    def __init__(
        self, status: IServerStatus, listeners: IListeners, figures: Sequence[Figures] = ()
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(ServerCollector(status, listeners, figures))

    def render(self) -> bytes:
        """The text, UTF-8."""
        return generate_latest(self._registry)
