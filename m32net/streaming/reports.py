"""RTCP on the server's side: whose report block is whose, and which sender reports are due.

A core: it is given the registry's streams, report datagrams and the time, and returns quality
reports and the values for sender reports.  It owns no socket.  RFC 3550 sections 6.2 to 6.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from m32net.interfaces import QualityReport
from m32net.streaming.profile import Profile
from protocols.rtp import rtcp
from protocols.rtp.extension import ntp64_from_unix_ns
from protocols.rtp.packetizer import StreamSpec

MEMBERS_PER_STREAM = 2
"""A unicast session has two members: us, the sender, and the listener."""
FRESH_S = 15.0
"""Reports older than this no longer count: three intervals of 5 s."""


@dataclass(frozen=True, slots=True)
class MediaClock:
    """RTP time and wall-clock time of one instant of a profile's media.

    :ivar rtp_time: unwrapped, with the server's offset.
    :ivar unix_ns: when that sample was captured.
    """

    rtp_time: int
    unix_ns: int
    clock_rate: int

    def at(self, unix_ns: int) -> int:
        """RTP time of the wall-clock time ``unix_ns``, unwrapped."""
        return self.rtp_time + (unix_ns - self.unix_ns) * self.clock_rate // 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Heard:
    """The last report on one stream; ``round_trip_s`` is None where it cannot be told."""

    at: float
    block: rtcp.ReportBlock
    round_trip_s: float | None


@dataclass(slots=True)
class _Subject:
    client_id: str
    profile: Profile
    spec: StreamSpec
    due: float
    heard: dict[int, _Heard] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DueReport:
    """One listener's sender reports are due; the caller knows the packet counts."""

    client_id: str
    profile: Profile
    spec: StreamSpec


class ReportBook:
    """The RTCP state of all listeners.

    :param randomness: uniform in 0..1, spreads the reports (RFC 3550 section 6.3.5).
    """

    def __init__(self, randomness: Callable[[], float]) -> None:
        self._randomness = randomness
        self._subjects: dict[str, _Subject] = {}
        self._by_ssrc: dict[int, _Subject] = {}
        self.foreign = 0

    def add(self, client_id: str, profile: Profile, spec: StreamSpec, now: float) -> None:
        subject = _Subject(client_id, profile, spec, now + self._interval(initial=True))
        self._subjects[client_id] = subject
        for group in spec.groups:
            self._by_ssrc[group.ssrc] = subject

    def remove(self, client_id: str) -> StreamSpec | None:
        subject = self._subjects.pop(client_id, None)
        if subject is None:
            return None
        for group in subject.spec.groups:
            self._by_ssrc.pop(group.ssrc, None)
        return subject.spec

    def due(self, now: float) -> Iterator[DueReport]:
        """Listeners whose sender reports are due now; each is due again later."""
        for subject in self._subjects.values():
            if subject.due <= now:
                subject.due = now + self._interval(initial=False)
                yield DueReport(subject.client_id, subject.profile, subject.spec)

    def received(
        self, host: str, compound: Iterable[rtcp.RtcpPacket], now: float, arrival_unix_ns: int
    ) -> list[tuple[str, QualityReport]]:
        """Read the report blocks of one datagram.

        A block about a stream that goes to another address is counted as foreign and ignored:
        nobody may speak for somebody else.
        """
        concerned: dict[str, _Subject] = {}
        arrival = ntp64_from_unix_ns(arrival_unix_ns)
        for packet in compound:
            if not isinstance(packet, rtcp.ReceiverReport | rtcp.SenderReport):
                continue
            for block in packet.reports:
                subject = self._by_ssrc.get(block.ssrc)
                if subject is None or subject.spec.host != host:
                    self.foreign += 1
                    continue
                trip = rtcp.round_trip_s(arrival, block)
                subject.heard[block.ssrc] = _Heard(now, block, trip)
                concerned[subject.client_id] = subject
        return [(client_id, _summary(subject, now)) for client_id, subject in concerned.items()]

    def _interval(self, *, initial: bool) -> float:
        return rtcp.report_interval(
            members=MEMBERS_PER_STREAM,
            senders=1,
            bandwidth=0,  # a fixed share of so small a session never binds: the minimum does
            we_sent=True,
            average_bytes=0,
            initial=initial,
            randomness=self._randomness(),
        )


def _summary(subject: _Subject, now: float) -> QualityReport:
    """Worst jitter, mean loss and half the shortest round trip over a listener's streams."""
    fresh = [heard for heard in subject.heard.values() if now - heard.at < FRESH_S]
    trips = [heard.round_trip_s for heard in fresh if heard.round_trip_s is not None]
    return QualityReport(
        source="rtcp",
        at=now,
        loss=sum(heard.block.fraction_lost for heard in fresh) / 256 / len(fresh),
        jitter_ms=max(heard.block.jitter for heard in fresh) / subject.profile.clock_rate * 1000,
        latency_ms=min(trips) * 500 if trips else None,
    )
