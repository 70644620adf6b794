"""The small interfaces through which the rooms meet, and the values that cross them.

No behaviour here.  A room receives objects that provide these in its constructor and never
imports the room that stands behind them; :mod:`m32net.server` does the wiring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred

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
class ControlQuality:
    """How a listener's control session fares (CON-13); what is not known yet is None.

    :ivar rtt_ms: median round trip of the last 100 pings; ``rtt_last_ms`` of the newest.
    :ivar loss: fraction of the last 100 pings that were not answered in time.
    :ivar idle_s: since anything was heard.
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
    queued: int
    dropped: int
    expired: int


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
    control: ControlQuality | None = None


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One TCP connection, as the kernel sees it.

    :ivar rtt_ms: the kernel's smoothed round trip.
    :ivar retransmitted: fraction of the segments sent that had to be sent again.
    """

    host: str
    port: int
    secure: bool
    age_s: float
    idle_s: float
    bytes_received: int
    bytes_sent: int
    rtt_ms: float | None
    retransmitted: float | None


@dataclass(frozen=True, slots=True)
class BlockedAddress:
    """An address that is shut out, and for how long still."""

    address: str
    reason: str
    remaining_s: float


class IConnections(Protocol):
    """The TCP connections of all listening ports, seen from the engineer's page."""

    def connections(self) -> Sequence[ConnectionStatus]: ...

    def blocked(self) -> Sequence[BlockedAddress]: ...

    def unblock(self, address: str) -> bool:
        """Let an address in again; whether it was shut out."""
        ...


MoveState = str
"""``waiting``, ``told``, ``moved``, ``stayed`` or ``left``."""


@dataclass(frozen=True, slots=True)
class Move:
    """One listener's move to another server."""

    client_id: str
    name: str
    state: MoveState


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """A migration under way or done (CON-51).

    :ivar state: ``idle``, ``checking``, ``moving``, ``done`` (all moved), ``incomplete`` (some
        stayed), ``failed`` (nothing was moved) or ``cancelled``.
    :ivar host: of the new server, with ``port``; empty while idle.
    :ivar reason: why, where something went wrong.
    """

    state: str
    host: str = ""
    port: int = 0
    reason: str = ""
    moves: tuple[Move, ...] = ()


class IMigration(Protocol):
    """Moves this server's listeners to another one."""

    def begin(self, host: str, port: int, *, after_s: float, each_s: float) -> Deferred[None]:
        """Check the new server and tell everybody.

        :param after_s: seconds until the first listener is to move.
        :param each_s: seconds between one listener and the next.
        :returns: fires once the listeners are told, or fails with RefusedError.
        """
        ...

    def status(self) -> MigrationStatus: ...

    def cancel(self) -> None:
        """Take new listeners again, and tell those that have not moved to stay."""
        ...

    def moved_to(self, *, secure: bool = False) -> str | None:
        """``http://HOST:PORT`` of the server newcomers are sent to; None: they may stay here.

        None also while this server's successor takes over its address: who connects anew gets
        there without being sent.

        :param secure: for somebody who came over TLS: ``https`` where the other server has it.
        """
        ...

    def expect(self, arrivals: Sequence[Arrival]) -> None:
        """Another server hands these listeners over: they keep their identity here."""
        ...

    def introduction(self) -> Any:
        """What this server says of itself to another: a struct or dataclass for JSON."""
        ...

    def listen(self, wanted: bool) -> Deferred[None]:
        """This is the successor of the server on the same ports: take new connections, or none.

        :returns: fires when that is so, or fails with RefusedError.
        """
        ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """A listener that is about to come from another server."""

    client_id: str
    token: str
    name: str
    host: str


@dataclass(frozen=True, slots=True)
class TrustStatus:
    """What this server proves itself with (CON-32).

    :ivar own: its certificate was given (``--tls-certificate``), not made by the local CA.
    :ivar fingerprint: SHA-256 of the local CA's certificate; empty if there is none.
    :ivar names: host names and addresses the certificate is for.
    :ivar not_covered: those of this machine that the local CA may not certify.
    :ivar expires: when the certificate ends, Unix seconds.
    :ivar secure_url: the page's address with TLS; empty if nothing listens.
    :ivar problem: one line, where something is wrong with the certificates.
    """

    own: bool
    fingerprint: str
    names: tuple[str, ...]
    not_covered: tuple[str, ...]
    expires: float
    secure_url: str
    problem: str


class ITrust(Protocol):
    """Certificates, seen from the web."""

    def ca_pem(self) -> bytes | None:
        """The local CA's certificate, for installing on phones; None with own certificates."""
        ...

    def ca_fingerprint(self) -> str:
        """SHA-256 of it, as colon-separated hexadecimal, for comparing by eye."""
        ...

    def is_peer(self, certificate: Any, chain: Sequence[Any] = ()) -> bool:
        """Whether this client certificate (pyOpenSSL ``X509``) is another m32net server's.

        :param chain: of the same kind, what the client sent besides: CAs between its own and one
            that is trusted.
        """
        ...

    def status(self) -> TrustStatus: ...


class IListeners(Protocol):
    """The registry of listeners, seen from the web and from metrics."""

    def snapshot(self) -> Sequence[ListenerStatus]:
        """Everything of each listener; for a thousand of them it takes milliseconds."""
        ...

    def receptions(self) -> Sequence[tuple[str, QualityReport | None]]:
        """Of each listener only its rating and its last report, which is quick."""
        ...

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
