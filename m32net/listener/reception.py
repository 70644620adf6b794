"""What arrives of one stream: counted per RTP source, and turned into packets for jitter buffers.

Datagrams in, :class:`~m32net.listener.jitter.Packet` values out, with loss and jitter (RFC 3550),
latency (CLK-2) and the sender's clock on the side.  No sockets and no clocks; what becomes of the
packets is for :mod:`m32net.listener.receiver`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from m32net.listener.depacketize import GroupPlan, StreamPlan
from m32net.listener.jitter import Packet
from m32net.listener.latency import LatencyMeter
from protocols.errors import RemoteProtocolError
from protocols.rtp.extension import time_extension, unix_ns_from_ntp64
from protocols.rtp.packet import parse
from protocols.rtp.reception import ReceptionStatistics
from protocols.rtp.rtcp import Compound, ReportBlock, SenderReport
from protocols.serial import Unwrapper, distance32

_SECOND_NS: Final = 1_000_000_000


@dataclass(slots=True)
class Totals:
    """Counted since the start, over all streams.

    :ivar packets: distinct packets received.
    :ivar expected: packets that should have come, from the sequence numbers.
    :ivar octets: UDP payload bytes of all that belonged to the stream.
    :ivar malformed: datagrams that were no RTP or no payload of the stream.
    :ivar foreign: RTP of other sources.
    """

    packets: int = 0
    expected: int = 0
    duplicates: int = 0
    reordered: int = 0
    octets: int = 0
    malformed: int = 0
    foreign: int = 0

    @property
    def lost(self) -> int:
        return max(0, self.expected - self.packets)

    def plus(self, other: Totals) -> Totals:
        return Totals(
            *(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__)
        )

    def less(self, other: Totals) -> Totals:
        return Totals(
            *(getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__)
        )


@dataclass(slots=True)
class _Source:
    group: GroupPlan
    statistics: ReceptionStatistics
    report: SenderReport | None = None


class StreamReception:
    """Reception of the groups of one stream.

    :param plan: the groups.
    :param latency: where latencies are gathered; it outlasts the stream.
    """

    def __init__(self, plan: StreamPlan, latency: LatencyMeter) -> None:
        self.plan = plan
        self.latency = latency
        self.octets = 0
        self.malformed = 0
        self.foreign = 0
        self.last_arrival_ns: int | None = None
        self.last_timestamp: int | None = None
        self._unwrapper = Unwrapper(32)
        self._sources = {
            group.ssrc: _Source(group, ReceptionStatistics(plan.clock_rate))
            for group in plan.groups
        }

    @property
    def complete(self) -> bool:
        """Whether every group has been heard."""
        return all(source.statistics.started for source in self._sources.values())

    def knows(self, data: bytes) -> bool:
        """Whether a datagram's SSRC is one of the stream's."""
        return int.from_bytes(data[8:12], "big") in self._sources

    def receive(self, data: bytes, arrival_ns: int, arrival: float) -> Packet | None:
        """Take a datagram in.

        :param arrival_ns: wall clock (Unix, ns) when it came.
        :param arrival: the same moment on the clock the jitter buffers go by, in s.
        :returns: what is in it; None if that is of no use.
        """
        try:
            rtp = parse(data)
            source = self._sources.get(rtp.ssrc)
            if source is None:
                self.foreign += 1
                return None
            if rtp.payload_type != source.group.payload_type:
                raise RemoteProtocolError(f"RTP: payload type {rtp.payload_type}")
            duration = self.plan.duration(source.group, rtp.payload)
            sent = None if rtp.extension is None else time_extension(rtp)
        except RemoteProtocolError:
            self.malformed += 1
            return None
        self.octets += len(data)
        self.last_arrival_ns = arrival_ns
        self.last_timestamp = rtp.timestamp
        if source.statistics.update(rtp.sequence_number, rtp.timestamp, arrival_ns) is not None:
            self._unwrapper.unwrap(rtp.timestamp)
            if sent is not None:
                self.latency.received(arrival_ns, sent.send_time_ns)
        return Packet(
            source.group.index,
            rtp.sequence_number,
            rtp.timestamp,
            duration,
            rtp.payload,
            arrival,
        )

    def media_time(self, timestamp: int) -> int:
        """A time stamp lately received, unwrapped."""
        return self._unwrapper.peek(timestamp)

    def sender_reports(self, compound: Compound, arrival_ns: int) -> None:
        """Take in what the server says of its streams (RFC 3550 section 6.4.1)."""
        for packet in compound:
            if isinstance(packet, SenderReport) and packet.ssrc in self._sources:
                source = self._sources[packet.ssrc]
                source.report = packet
                source.statistics.sender_report(packet.ntp, arrival_ns)

    def report_blocks(self, now_ns: int) -> list[ReportBlock]:
        """What the next receiver report says of each source that was heard."""
        return [
            source.statistics.report_block(ssrc, now_ns)
            for ssrc, source in self._sources.items()
            if source.statistics.started
        ]

    def captured_ns(self, timestamp: int) -> int | None:
        """Server's wall clock (Unix, ns) at which the sample of a time stamp was captured.

        From the newest sender report; None before the first.
        """
        reports = [source.report for source in self._sources.values() if source.report is not None]
        if not reports:
            return None
        newest = max(reports, key=lambda report: report.ntp)
        ahead = distance32(timestamp & 0xFFFF_FFFF, newest.rtp_timestamp)
        return unix_ns_from_ntp64(newest.ntp) + ahead * _SECOND_NS // self.plan.clock_rate

    @property
    def jitter_ms(self) -> float:
        """RFC 3550 jitter of the source that has most of it."""
        return max((source.statistics.jitter_ms for source in self._sources.values()), default=0.0)

    def totals(self) -> Totals:
        """The counters of this stream."""
        statistics = [source.statistics for source in self._sources.values()]
        return Totals(
            packets=sum(one.received - one.duplicates for one in statistics),
            expected=sum(one.expected for one in statistics),
            duplicates=sum(one.duplicates for one in statistics),
            reordered=sum(one.reordered for one in statistics),
            octets=self.octets,
            malformed=self.malformed,
            foreign=self.foreign,
        )
