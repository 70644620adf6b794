"""The small interfaces through which the rooms meet, and the values that cross them.

No behaviour here.  A room receives objects that provide these in its constructor and never
imports the room that stands behind them; :mod:`m32net.tap` does the wiring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

HealthState = str
"""``healthy``, ``degraded`` or ``unhealthy``, from best to worst."""


class RefusedError(Exception):
    """A request that cannot be granted: a code for programs and a sentence for people.

    :ivar status: the HTTP status that says it best.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What one listener experienced lately, whoever measured it.

    :ivar source: ``rtcp`` (receiver report), ``qos`` (POST /qos-metrics; its
        latency is corrected by the NTP exchange).
    :ivar loss: fraction 0..1 of the packets expected, or None where this source does not know.
    :ivar jitter_ms: RFC 3550 interarrival jitter.
    :ivar latency_ms: one way, server to listener.
    """

    source: str
    at: float
    loss: float | None = None
    jitter_ms: float | None = None
    latency_ms: float | None = None
    packets_received: int | None = None
    packets_expected: int | None = None
    bandwidth_mbps: float | None = None


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """One listener as the engineer sees it."""

    client_id: str
    name: str
    host: str
    udp_port: int | None
    state: str
    codec: str | None
    sample_rate: int | None
    frame_ms: float | None
    layout: str | None
    channels: tuple[int, ...]
    connected_s: float
    packets_sent: int
    octets_sent: int
    packets_dropped: int
    quality: QualityReport | None
    rating: str
    """``good``, ``fair``, ``poor`` or ``unknown``: loss, jitter and latency in one plain word."""


class IListeners(Protocol):
    """The registry of listeners, seen from the web and from metrics."""

    def snapshot(self) -> Sequence[ListenerStatus]: ...

    def count(self) -> int:
        """Listeners that are connected now, streaming or not."""
        ...

    def refused(self) -> int:
        """Listeners turned away since the start because the server was full (STR-6)."""
        ...

    def request_audio(self, host: str, udp_port: int, client_id: str | None) -> Mapping[str, Any]:
        """Name the UDP port of the control session from ``host`` (STR-36).

        :returns: the body of the 200 answer.
        :raises RefusedError: 400 for a bad port, 409 without a session from that address.
        """
        ...

    def sdp(self, client_id: str) -> str | None:
        """The session description of what flows to this listener; None if nothing does."""
        ...

    def report_quality(self, client_id: str, host: str, report: QualityReport) -> None:
        """Note a listener's own measurements (STR-37).

        :raises RefusedError: 404 for an unknown listener, 403 for another address's listener.
        """
        ...

    def tell_all(self, kind: str, reason: str, fields: Mapping[str, Any]) -> int:
        """Send every listener an event of this type (STR-31); returns how many there were."""
        ...

    def totals(self) -> Mapping[str, int]:
        """Counters since the start: packets, octets, dropped, connections, …"""
        ...


@dataclass(frozen=True, slots=True)
class Health:
    """One room's own judgement, for ``/health``: state, reasons a person can read, details."""

    state: HealthState
    reasons: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class IServerStatus(Protocol):
    """What the server says of itself."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def role(self) -> str:
        """``master``, ``slave`` or ``candidate``; a server alone is master."""
        ...

    @property
    def node_id(self) -> str: ...

    @property
    def rtp_port(self) -> int: ...

    @property
    def page_url(self) -> str:
        """The address a musician opens, as the QR code shows it."""
        ...

    def uptime_s(self) -> float: ...

    def health(self) -> Mapping[str, Health]:
        """By room: audio, streaming, store, discovery, …"""
        ...

    def cpu_percent(self) -> float:
        """CPU of this process in per cent of one core, over the last seconds (measured)."""
        ...

    def memory_mb(self) -> float:
        """Resident memory of this process in MB (measured)."""
        ...

    def measurements(self) -> Mapping[str, float]:
        """Named figures for /metrics: send latency quantiles, encode time, overruns, …"""
        ...
