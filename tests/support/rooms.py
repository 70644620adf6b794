"""Stand-ins for what :mod:`m32net.interfaces` asks of the rooms, with values a test can set."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from m32net.interfaces import (
    Arrival,
    BlockedAddress,
    ConnectionStatus,
    Health,
    ListenerStatus,
    MigrationStatus,
    QualityReport,
    RefusedError,
    TrustStatus,
)


def listener_status(client_id: str = "c1", **changes: Any) -> ListenerStatus:
    values: dict[str, Any] = {
        "client_id": client_id,
        "name": "Anna's phone",
        "host": "192.0.2.7",
        "udp_port": 5004,
        "state": "streaming",
        "codec": "opus",
        "sample_rate": 48000,
        "frame_ms": 5.0,
        "layout": "bundle",
        "channels": (1, 2, 3),
        "connected_s": 12.5,
        "packets_sent": 1000,
        "octets_sent": 240000,
        "packets_dropped": 1,
        "quality": QualityReport(
            "rtcp", 100.0, loss=0.01, jitter_ms=2.5, latency_ms=15.0, bandwidth_mbps=2.1
        ),
        "rating": "good",
    }
    return ListenerStatus(**{**values, **changes})


@dataclass
class FakeListeners:
    """Provides IListeners."""

    statuses: list[ListenerStatus] = field(default_factory=list)
    refused_count: int = 0
    sessions: dict[str, str] = field(default_factory=dict)
    """Host to client id of the control session from there."""
    descriptions: dict[str, str] = field(default_factory=dict)
    reports: list[tuple[str, str, QualityReport]] = field(default_factory=list)
    messages: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    ports: list[tuple[str, int, str | None]] = field(default_factory=list)

    def snapshot(self) -> Sequence[ListenerStatus]:
        return self.statuses

    def receptions(self) -> Sequence[tuple[str, QualityReport | None]]:
        return [(one.rating, one.quality) for one in self.statuses]

    def count(self) -> int:
        return len(self.statuses)

    def refused(self) -> int:
        return self.refused_count

    def request_audio(self, host: str, udp_port: int, client_id: str | None) -> Mapping[str, Any]:
        self.ports.append((host, udp_port, client_id))
        if host not in self.sessions:
            raise RefusedError("no_session", f"no control session from {host}", 409)
        return {
            "status": "ok",
            "client_id": self.sessions[host],
            "udp_port": udp_port,
            "rtp": {"port": 5004},
        }

    def sdp(self, client_id: str) -> str | None:
        return self.descriptions.get(client_id)

    def report_quality(self, client_id: str, host: str, report: QualityReport) -> None:
        if client_id not in {one.client_id for one in self.statuses}:
            raise RefusedError("unknown_listener", "there is no such listener", 404)
        self.reports.append((client_id, host, report))

    def tell_all(self, kind: str, reason: str, fields: Mapping[str, Any]) -> int:
        self.messages.append((kind, reason, dict(fields)))
        return len(self.statuses)

    def totals(self) -> Mapping[str, int]:
        return {"packets": 7500, "octets": 1_800_000, "dropped": 2, "connections": 5}


@dataclass
class FakeStatus:
    """Provides IServerStatus."""

    name: str = "m32-server"
    version: str = "9.9.9"
    role: str = "master"
    node_id: str = "node-1"
    rtp_port: int = 5004
    page_url: str = "http://192.0.2.1:8080/"
    rooms: dict[str, Health] = field(default_factory=lambda: {"audio": Health("healthy")})
    figures: dict[str, float] = field(default_factory=dict)

    def uptime_s(self) -> float:
        return 42.0

    def health(self) -> Mapping[str, Health]:
        return self.rooms

    def cpu_percent(self) -> float:
        return 45.2

    def memory_mb(self) -> float:
        return 128.5

    def measurements(self) -> Mapping[str, float]:
        return self.figures


@dataclass
class FakeConnections:
    """Provides IConnections."""

    open: list[ConnectionStatus] = field(default_factory=list)
    shut_out: dict[str, BlockedAddress] = field(default_factory=dict)

    def connections(self) -> Sequence[ConnectionStatus]:
        return self.open

    def blocked(self) -> Sequence[BlockedAddress]:
        return list(self.shut_out.values())

    def unblock(self, address: str) -> bool:
        return self.shut_out.pop(address, None) is not None


@dataclass
class FakeMigration:
    """Provides IMigration.

    :ivar target: where newcomers are sent.
    :ivar refusal: what :meth:`begin` fails with.
    """

    now: MigrationStatus = field(default_factory=lambda: MigrationStatus("idle"))
    target: str | None = None
    refusal: RefusedError | None = None
    begun: list[tuple[str, int, float, float]] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    listening: bool | None = None

    def begin(self, host: str, port: int, *, after_s: float, each_s: float) -> Deferred[None]:
        if self.refusal is not None:
            return fail(self.refusal)
        self.begun.append((host, port, after_s, each_s))
        self.now = MigrationStatus("moving", host, port)
        self.target = f"{host}:{port}"
        return succeed(None)

    def status(self) -> MigrationStatus:
        return self.now

    def cancel(self) -> None:
        self.now = MigrationStatus("cancelled", self.now.host, self.now.port)
        self.target = None

    def moved_to(self, *, secure: bool = False) -> str | None:
        if self.target is None:
            return None
        return f"https://{self.target}" if secure else f"http://{self.target}"

    def expect(self, arrivals: Sequence[Arrival]) -> None:
        self.arrivals += arrivals

    def introduction(self) -> Any:
        return SimpleNamespace(
            name="stage-b",
            version="1",
            node_id="n",
            instance="i",
            channels=(1, 2),
            free_places=3,
            https_port=8443,
        )

    def listen(self, wanted: bool) -> Deferred[None]:
        if self.refusal is not None:
            return fail(self.refusal)
        self.listening = wanted
        return succeed(None)


@dataclass
class FakeTrust:
    """Provides ITrust, with a local CA unless ``pem`` is None."""

    pem: bytes | None = ssl.DER_cert_to_PEM_cert(b"a certificate").encode()
    peers: list[Any] = field(default_factory=list)

    def ca_pem(self) -> bytes | None:
        return self.pem

    def ca_fingerprint(self) -> str:
        return "" if self.pem is None else "AB:CD"

    def is_peer(self, certificate: Any, chain: Sequence[Any] = ()) -> bool:
        return certificate in self.peers or bool(set(chain) & set(self.peers))

    def status(self) -> TrustStatus:
        return TrustStatus(
            own=self.pem is None,
            fingerprint=self.ca_fingerprint(),
            names=("m32-server.local", "192.0.2.1"),
            not_covered=(),
            expires=1_800_000_000.0,
            secure_url="https://192.0.2.1:8443/",
            problem="",
        )
