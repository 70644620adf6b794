"""What leaves the server for its listeners: RTP through the fan-out, RTCP beside it.

Owns both sockets.  Streams are started and stopped by name; frames come in and go out in the same
call.  Who may listen, and to what, is decided elsewhere (:mod:`m32net.streaming.registry`).
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet import task

from m32net.audio.frame import EncodedFrame
from m32net.interfaces import QualityReport
from m32net.log import RoomLog
from m32net.streaming import describe
from m32net.streaming.fanout import Fanout, StreamTotals
from m32net.streaming.negotiation import Agreement
from m32net.streaming.profile import Profile
from m32net.streaming.reports import DueReport, MediaClock, ReportBook
from m32net.streaming.timing import DurationWindow
from protocols import datagram
from protocols.rtp import rtcp
from protocols.rtp.extension import EventFlags
from protocols.rtp.packetizer import Group, StreamSpec, payload_type_of
from protocols.rtp.protocol import RtcpServer

REPORT_TICK_S: Final = 0.05
SEND_BUFFER: Final = 4 * 1024 * 1024
"""Bytes; about 40 ms of 1,000 listeners' bundles."""
UNSENDABLE_PER_LINE: Final = 1000
"""Frames that could not be laid out for each line in the log: one in 5 s of 5 ms frames."""


@dataclass(frozen=True, slots=True)
class TransmissionConfig:
    """:ivar interface: IPv4 address to send from; empty for all.

    :ivar send_method: ``auto``, ``gso``, ``sendmmsg`` or ``sendto``.
    :ivar share_ports: use the ports beside the server that has them now, to follow it.
    """

    interface: str = ""
    rtp_port: int = 5004
    dscp: int = 46
    send_method: str = "auto"
    server_name: str = "m32-server"
    share_ports: bool = False


@dataclass(frozen=True, slots=True)
class _Flow:
    """What one listener is sent.

    :ivar version: of its description (RFC 8866 section 5.2), higher for every later one.
    """

    agreement: Agreement
    spec: StreamSpec
    version: int


class Transmission:
    """RTP and RTCP to all listeners.

    :param on_quality: called with ``(client_id, report)`` for every receiver report.
    :ivar totals: counters since the start; ``unsendable`` are frames that could not be laid out.
    """

    log = RoomLog(namespace="m32net.streaming")

    def __init__(
        self,
        clock: Any,
        config: TransmissionConfig,
        on_quality: Callable[[str, QualityReport], object],
        rng: random.Random,
        seconds: Callable[[], float],
    ) -> None:
        self.clock = clock
        self._seconds = seconds
        self.config = config
        self.send_times = DurationWindow()
        self.totals = {"frames": 0, "packets": 0, "octets": 0, "dropped": 0, "unsendable": 0}
        self.method: datagram.SendMethod | None = None
        self._on_quality = on_quality
        self._rng = rng
        self._timestamp_offset = rng.getrandbits(32)
        self._session_id = int(time.time())
        self._versions = itertools.count(self._session_id)
        self._streams: dict[str, _Flow] = {}
        self._clocks: dict[Profile, MediaClock] = {}
        self._book = ReportBook(rng.random)
        self._reporting = task.LoopingCall(self._send_reports)
        self._reporting.clock = clock
        self._rtcp: RtcpServer | None = None
        self._fanout: Fanout | None = None

    # -- sockets ---------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._fanout is not None

    @property
    def foreign_reports(self) -> int:
        return self._book.foreign

    def open(self) -> None:
        """Open the sockets and find out how to send.

        :raises OSError: a port is taken or the address is not this machine's.
        """
        config = self.config
        self._socket = datagram.open_udp(
            config.interface,
            config.rtp_port,
            dscp=config.dscp,
            sndbuf=SEND_BUFFER,
            shareable=True,
            share=config.share_ports,
        )
        try:
            self._rtcp = RtcpServer(
                self.clock,
                config.interface,
                config.rtp_port + 1,
                self._rtcp_received,
                share=config.share_ports,
            )
        except OSError:
            self._socket.close()
            raise
        if config.send_method == "auto":
            self.method = datagram.probe_send_method(self._socket)
        else:
            self.method = datagram.SendMethod(config.send_method)
        self._fanout = Fanout(self._socket, self.method, timestamp_offset=self._timestamp_offset)

    def start(self) -> None:
        assert self._rtcp is not None
        self._rtcp.start()
        self._reporting.start(REPORT_TICK_S, now=False)

    def close(self) -> None:
        if self._reporting.running:
            self._reporting.stop()
        if self._rtcp is not None:
            self._rtcp.stop()
            self._rtcp = None
        if self._fanout is not None:
            self._fanout = None
            self._socket.close()

    def set_dscp(self, dscp: int) -> None:
        if self._fanout is not None:
            datagram.set_dscp(self._socket, dscp)

    # -- streams ---------------------------------------------------------------------------

    def add(self, client_id: str, host: str, agreement: Agreement) -> None:
        """Stream to ``host`` from the next frame on; nothing if no channel is wanted."""
        spec = self._spec(host, agreement)
        if spec is None or self._fanout is None:
            return
        self._streams[client_id] = _Flow(agreement, spec, next(self._versions))
        self._fanout.add(client_id, agreement.profile, spec)
        self._book.add(client_id, agreement.profile, spec, self._seconds())

    def remove(self, client_id: str, reason: str) -> None:
        """Stop these streams and say BYE (RFC 3550 section 6.6)."""
        known = self._streams.pop(client_id, None)
        if known is None:
            return
        self._book.remove(client_id)
        if self._fanout is not None:
            self._fanout.remove(client_id)
        host = known.spec.host
        cname = describe.cname(self.config.server_name, self._address_towards(host))
        for port, ssrcs in _by_port(known.spec).items():
            for start in range(0, len(ssrcs), rtcp.MAX_COUNT):
                some = tuple(ssrcs[start : start + rtcp.MAX_COUNT])
                # A report and a CNAME are in every compound packet (RFC 3550 section 6.1).
                who = rtcp.SdesChunk(some[0], ((rtcp.CNAME, cname),))
                compound = (
                    rtcp.ReceiverReport(some[0]),
                    rtcp.SourceDescription((who,)),
                    rtcp.Goodbye(some, reason),
                )
                self._send_rtcp(rtcp.serialize_compound(compound), (host, port + 1))

    def announce(self, flags: EventFlags, client_id: str | None = None) -> None:
        """Set event flags (CLK-3) on the next packets, of one listener or of all."""
        if self._fanout is None:
            return
        for one in self._streams if client_id is None else (client_id,):
            if one in self._streams:
                self._fanout.announce(one, flags)

    def spec(self, client_id: str) -> StreamSpec | None:
        known = self._streams.get(client_id)
        return known.spec if known else None

    def stream_totals(self, client_id: str) -> StreamTotals | None:
        if self._fanout is None or client_id not in self._streams:
            return None
        return self._fanout.totals(client_id)

    def description(self, client_id: str, names: Mapping[int, str]) -> str | None:
        """The SDP of a listener's streams; None if nothing flows to it."""
        known = self._streams.get(client_id)
        if known is None:
            return None
        return describe.session_description(
            known.agreement,
            known.spec,
            server_address=self._address_towards(known.spec.host),
            server_name=self.config.server_name,
            session_id=self._session_id,
            version=known.version,
            names=names,
        )

    def frames_ready(self, frames: Sequence[EncodedFrame]) -> None:
        """Send what the engine has encoded: the hot path.  A frame that fails fails alone."""
        fanout = self._fanout
        if fanout is None:
            return
        totals = self.totals
        for frame in frames:
            try:
                result = fanout.send(frame)
            except Exception:
                self._not_sent(frame.profile)
                continue
            self.send_times.add(time.monotonic_ns() - frame.complete_ns)
            totals["frames"] += 1
            totals["packets"] += result.packets
            totals["octets"] += result.octets
            totals["dropped"] += result.dropped
            self._clocks[frame.profile] = MediaClock(
                self._timestamp_offset + frame.media_time,
                frame.capture_time_ns,
                frame.profile.clock_rate,
            )

    def _not_sent(self, profile: Profile) -> None:
        """Count it; said once in so many frames, for it is likely to be every frame."""
        if self.totals["unsendable"] % UNSENDABLE_PER_LINE == 0:
            self.log.failure("A frame of {profile} could not be sent", profile=profile)
        self.totals["unsendable"] += 1

    def _spec(self, host: str, agreement: Agreement) -> StreamSpec | None:
        groups = tuple(
            Group(
                ssrc=self._rng.getrandbits(32),
                payload_type=payload_type_of(agreement.profile.codec, agreement.layout),
                udp_port=agreement.port_of(number),
                channels=channels,
                first_sequence=self._rng.getrandbits(16),
                parts=agreement.parts,
            )
            for number, channels in enumerate(agreement.groups)
        )
        return StreamSpec(host=host, groups=groups) if groups else None

    # -- RTCP ------------------------------------------------------------------------------

    def _send_reports(self) -> None:
        for due in self._book.due(self._seconds()):
            try:
                self._send_report(due)
            except Exception:  # or the LoopingCall would end, and with it everybody's reports
                self.log.failure("No sender report to {listener}", listener=due.client_id)

    def _send_report(self, due: DueReport) -> None:
        fanout, clock = self._fanout, self._clocks.get(due.profile)
        if fanout is None or clock is None:
            return
        now_ns = time.time_ns()
        port_of = {group.ssrc: group.udp_port for group in due.spec.groups}
        by_port: dict[int, list[rtcp.SenderReport]] = {}
        for report in fanout.sender_reports(due.client_id, now_ns, clock.at(now_ns)):
            by_port.setdefault(port_of[report.ssrc], []).append(report)
        cname = describe.cname(self.config.server_name, self._address_towards(due.spec.host))
        for port, reports in by_port.items():
            for data in rtcp.sender_compounds(reports, cname):
                self._send_rtcp(data, (due.spec.host, port + 1))

    def _send_rtcp(self, data: bytes, address: tuple[str, int]) -> None:
        if self._rtcp is not None:
            self._rtcp.send(data, address)

    def _rtcp_received(
        self, address: tuple[str, int], compound: rtcp.Compound, arrival_ns: int
    ) -> None:
        now = self._seconds()
        for client_id, report in self._book.received(address[0], compound, now, arrival_ns):
            self._on_quality(client_id, report)

    def _address_towards(self, host: str) -> str:
        return self.config.interface or datagram.local_address_towards(host)


def _by_port(spec: StreamSpec) -> dict[int, list[int]]:
    """SSRCs by the port they go to: streams that share a port share RTCP datagrams."""
    ports: dict[int, list[int]] = {}
    for group in spec.groups:
        ports.setdefault(group.udp_port, []).append(group.ssrc)
    return ports
