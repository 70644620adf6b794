"""``/metrics``: what the rooms say of themselves, in Prometheus' text format (CON-40).

A collector that takes a fresh snapshot at every scrape; nothing is counted here.  What the named
figures mean is in :mod:`m32net.ops.catalogue`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from m32net.interfaces import Health, IListeners, IServerStatus, ListenerStatus
from m32net.ops import catalogue
from m32net.ops.catalogue import PREFIX
from m32net.ops.lag import Histogram

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


def _control(field: str, scale: float = 1.0) -> Reading:
    """Reads a field of the quality of its control session (CON-13), if that is known."""

    def read(one: ListenerStatus) -> float | None:
        value = getattr(one.control, field, None)
        return None if value is None else float(value) * scale

    return read


_LISTENER_GAUGES: Final[tuple[tuple[str, str, Reading], ...]] = (
    ("connected_seconds", "Time since it connected.", lambda one: one.connected_s),
    ("channels", "Channels it is sent.", lambda one: len(one.channels)),
    ("loss_ratio", "Packets lost, 0 to 1, in its last report.", _quality("loss")),
    ("jitter_seconds", "RFC 3550 interarrival jitter.", _quality("jitter_ms", 0.001)),
    ("latency_seconds", "One way, server to listener.", _quality("latency_ms", 0.001)),
    ("control_rtt_seconds", "Control: median of 100 pings.", _control("rtt_ms", 0.001)),
    ("control_rtt_last_seconds", "Control: newest ping.", _control("rtt_last_ms", 0.001)),
    ("control_loss_ratio", "Control: pings not answered in time, 0 to 1.", _control("loss")),
    ("control_idle_seconds", "Control: since anything was heard.", _control("idle_s")),
    ("control_queued_messages", "Control: messages that wait to be sent.", _control("queued")),
)
_LISTENER_COUNTERS: Final[tuple[tuple[str, str, Reading], ...]] = (
    ("packets_sent", "RTP packets sent.", lambda one: one.packets_sent),
    ("octets_sent", "RTP payload sent, in bytes.", lambda one: one.octets_sent),
    ("packets_dropped", "RTP packets the kernel did not take.", lambda one: one.packets_dropped),
    ("control_messages_received", "Control messages received.", _control("messages_received")),
    ("control_messages_sent", "Control messages sent.", _control("messages_sent")),
    ("control_bytes_received", "Control messages received, in bytes.", _control("bytes_received")),
    ("control_bytes_sent", "Control messages sent, in bytes.", _control("bytes_sent")),
    ("control_messages_dropped", "Control messages it was too slow for.", _control("dropped")),
    ("control_messages_expired", "Control messages that waited too long.", _control("expired")),
)
_LISTENER_FAMILIES: Final = (
    *((*gauge, False) for gauge in _LISTENER_GAUGES),
    *((*counter, True) for counter in _LISTENER_COUNTERS),
)


class ServerCollector(Collector):
    """Turns snapshots of the rooms into metrics.

    :param figures: further named values; a name that ends in ``_total`` is a counter, and one may
        carry labels: ``refused_total{reason="full"}``.
    :param rates: counters per second, by name.
    :param lag: the event loop's, since the start.
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

    def collect(self) -> Iterator[Metric]:
        yield self._build
        yield from self._server()
        yield from _health(self._status.health())
        yield from _each_listener(self._listeners.snapshot())
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


def _each_listener(snapshot: Iterable[ListenerStatus]) -> Iterator[Metric]:
    everybody = list(snapshot)
    ratings = GaugeMetricFamily(
        f"{PREFIX}listeners_rated",
        "Listeners by their reception: loss, jitter and latency in one word.",
        labels=["rating"],
    )
    for rating in _RATINGS:
        ratings.add_metric([rating], sum(one.rating == rating for one in everybody))
    yield ratings
    labels = ["client_id", "name", "codec"]
    family: GaugeMetricFamily | CounterMetricFamily
    for name, text, read, counts in _LISTENER_FAMILIES:
        full = f"{PREFIX}listener_{name}"
        if counts:
            family = CounterMetricFamily(full, text, labels=labels)
        else:
            family = GaugeMetricFamily(full, text, labels=labels)
        for one in everybody:
            value = read(one)
            if value is not None:
                family.add_metric([one.client_id, one.name, one.codec or ""], value)
        yield family


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

    Parameters are those of :class:`ServerCollector`.
    """

    def __init__(
        self,
        status: IServerStatus,
        listeners: IListeners,
        figures: Sequence[Figures] = (),
        rates: Figures | None = None,
        lag: Callable[[], Histogram] | None = None,
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(ServerCollector(status, listeners, figures, rates, lag))

    def render(self) -> bytes:
        """The text, UTF-8."""
        return generate_latest(self._registry)
