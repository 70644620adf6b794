"""The fan-out: one encoded frame to all its listeners, in a few vectorised steps and system calls.

Between frames listeners come and go; during a frame nothing is decided per listener.  What is
sent lies in the tables of an :class:`~m32net.streaming.audience.Audience`, one for each profile,
and goes out through one socket.  Nothing is buffered: what the kernel does not take at once is
dropped and counted (STR-41).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from socket import socket
from typing import Protocol

from m32net.audio.frame import EncodedFrame
from m32net.streaming.audience import Audience, SendResult, StreamTotals
from m32net.streaming.profile import Profile
from protocols.datagram import BatchSender, SendFailure, SendMethod
from protocols.mmsg import SendTable, socket_addresses
from protocols.rtp.extension import EventFlags, ntp64_from_unix_ns
from protocols.rtp.packetizer import StreamSpec
from protocols.rtp.rtcp import SenderReport

__all__ = ["Fanout", "SendResult", "Sender", "StreamTotals"]


class Sender(Protocol):
    """What :class:`BatchSender` is to the fan-out."""

    def send(self, table: SendTable) -> list[SendFailure]: ...


class Fanout:
    """Sends the frames of all profiles to all listeners through one socket.

    :param timestamp_offset: random start of the RTP time stamps (RFC 3550 section 5.1), one for
        all, so that a listener can align its streams by time stamp.
    :param realtime_ns: wall clock (Unix, ns), for the time extension.
    :param sender: what sends the tables, instead of a :class:`BatchSender` on ``sock``.
    """

    def __init__(
        self,
        sock: socket,
        method: SendMethod,
        *,
        timestamp_offset: int,
        extension_interval_s: float = 5.0,
        realtime_ns: Callable[[], int] = time.time_ns,
        sender: Sender | None = None,
    ) -> None:
        self.method = method
        self._sender = BatchSender(sock, method) if sender is None else sender
        self._timestamp_offset = timestamp_offset
        self._extension_interval_s = extension_interval_s
        self._realtime_ns = realtime_ns
        self._audiences: dict[Profile, Audience] = {}
        self._audience_of: dict[str, Audience] = {}

    @property
    def profiles(self) -> frozenset[Profile]:
        """Profiles somebody listens in."""
        return frozenset(self._audiences)

    def __len__(self) -> int:
        return len(self._audience_of)

    def add(self, client_id: str, profile: Profile, spec: StreamSpec) -> None:
        """Send to this listener from the next frame on; what it had before ends.

        :raises ValueError: the host is no IPv4 address, or a port is none.
        """
        addresses = socket_addresses(
            [(spec.host, group.udp_port) for group in spec.groups for _part in range(group.parts)]
        )
        self.remove(client_id)
        if not spec.groups:
            return
        audience = self._audiences.get(profile)
        if audience is None:
            interval = round(self._extension_interval_s * 1_000_000 / profile.frame_us)
            segmented = self.method is SendMethod.GSO
            audience = self._audiences[profile] = Audience(profile, interval, segmented=segmented)
        audience.add(client_id, spec, addresses)
        self._audience_of[client_id] = audience

    def remove(self, client_id: str) -> StreamTotals | None:
        """Send nothing to this listener any more.

        :returns: what it was sent in all; None if it was not known.
        """
        audience = self._audience_of.pop(client_id, None)
        if audience is None:
            return None
        totals = audience.totals(client_id)
        audience.remove(client_id)
        if not len(audience):
            del self._audiences[audience.profile]
        return totals

    def send(self, frame: EncodedFrame) -> SendResult:
        """Send one frame to everybody who listens in its profile: the hot path.

        :raises LocalProtocolError: the frame lacks a channel somebody is to get, its Opus packets
            cannot be bundled, or it cannot be divided into somebody's parts.
        """
        audience = self._audiences.get(frame.profile)
        if audience is None:
            return SendResult(0, 0, 0, 0)
        table = audience.prepare(
            frame.payload, self._timestamp_offset + frame.media_time, self._realtime_ns
        )
        return audience.account(self._sender.send(table))

    def announce(self, client_id: str, flags: EventFlags) -> None:
        """Let the listener's next packets carry these event flags (CLK-3)."""
        audience = self._audience_of.get(client_id)
        if audience is not None:
            audience.schedule.announce(client_id, flags)

    def totals(self, client_id: str) -> StreamTotals | None:
        """What this listener was sent since its streams began; None if it is not known."""
        audience = self._audience_of.get(client_id)
        return None if audience is None else audience.totals(client_id)

    def sender_reports(self, client_id: str, unix_ns: int, rtp_time: int) -> list[SenderReport]:
        """A sender report (RFC 3550 section 6.4.1) for each of a listener's streams.

        :param unix_ns: wall-clock time of the report.
        :param rtp_time: RTP time of the same instant, offset included; it is wrapped here.
        """
        totals = self.totals(client_id)
        if totals is None:
            return []
        ntp = ntp64_from_unix_ns(unix_ns)
        timestamp = rtp_time & 0xFFFF_FFFF
        return [
            SenderReport(ssrc, ntp, timestamp, packets & 0xFFFF_FFFF, octets & 0xFFFF_FFFF)
            for ssrc, packets, octets in zip(
                totals.ssrcs, totals.stream_packets, totals.stream_octets, strict=True
            )
        ]
