"""What a listener has to say of its reception: one snapshot, and what changed between two.

Values only.  :mod:`m32net.listener.report` shows them, :mod:`m32net.listener.session` posts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from m32net.listener.reception import Totals


@dataclass(frozen=True, slots=True)
class Figures:
    """A snapshot.

    :ivar totals: counted since the start.
    :ivar jitter_ms: RFC 3550 interarrival jitter now.
    :ivar latency_ms: one way, of the last packet that carried its send time (CLK-2).
    :ivar buffer_ms: delay of the jitter buffer over the fastest packets (STR-26); what it would
        be, if nothing is played.
    :ivar buffer_reason: why, for people.
    :ivar late: packets that came too late for that delay.
    :ivar dropped: packets dropped because too much was held back (STR-24).
    :ivar concealed_ms: audio put in for what was lost, as a mean over the channels.
    :ivar skipped_ms: audio that was left out while playing, since it was no longer timely.
    :ivar capture_ms: from capture to arrival, or while playing to the ear.
    :ivar underruns: times the sound card ran dry; None if nothing is played.
    :ivar drift_ppm: by how much the sound card's clock differs, as far as it is known.
    """

    totals: Totals = field(default_factory=Totals)
    jitter_ms: float = 0.0
    latency_ms: float | None = None
    buffer_ms: float = 0.0
    buffer_reason: str = ""
    late: int = 0
    dropped: int = 0
    concealed_ms: float = 0.0
    skipped_ms: float = 0.0
    capture_ms: float | None = None
    underruns: int | None = None
    drift_ppm: float | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two snapshots.

    :ivar loss: fraction 0..1 of the packets expected.
    :ivar mbps: received, UDP payload.
    """

    seconds: float
    packets: int
    expected: int
    lost: int
    loss: float
    duplicates: int
    octets: int
    mbps: float
    concealed_ms: float
    late: int

    @classmethod
    def between(cls, before: Figures, after: Figures, seconds: float) -> Interval:
        packets = after.totals.packets - before.totals.packets
        expected = after.totals.expected - before.totals.expected
        lost = max(0, expected - packets)
        octets = after.totals.octets - before.totals.octets
        return cls(
            seconds=round(seconds, 3),
            packets=packets,
            expected=expected,
            lost=lost,
            loss=round(lost / expected, 6) if expected > 0 else 0.0,
            duplicates=after.totals.duplicates - before.totals.duplicates,
            octets=octets,
            mbps=round(octets * 8 / 1e6 / seconds, 3) if seconds > 0 else 0.0,
            concealed_ms=round(after.concealed_ms - before.concealed_ms, 3),
            late=after.late - before.late,
        )


def qos_body(client_id: str, timestamp: str, interval: Interval, now: Figures) -> dict[str, Any]:
    """The body of ``POST /qos-metrics`` (STR-37, STR-63)."""
    metrics: dict[str, Any] = {
        "packets_received": interval.packets,
        "packets_expected": max(interval.expected, interval.packets),
        "packet_loss_rate": interval.loss,
        "jitter_ms": round(now.jitter_ms, 3),
        "bandwidth_mbps": interval.mbps,
    }
    if now.latency_ms is not None:
        metrics["latency_ms"] = round(max(0.0, now.latency_ms), 3)
    return {"client_id": client_id, "timestamp": timestamp, "metrics": metrics}
