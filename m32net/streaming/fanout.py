"""The fan-out: one encoded frame to all its listeners, in a few vectorised steps and system calls.

Between frames listeners come and go; during a frame nothing is decided per listener.  What is
sent lies at fixed addresses: headers (:mod:`protocols.rtp.packetizer`), payloads shared by all
who have the same channels (:mod:`protocols.rtp.bundling`), and the messages that point to both
(:class:`protocols.mmsg.SendTable`).  Tables are built anew, from the old ones, in the frame after
somebody came or left.  Nothing is buffered: what the kernel does not take at once is dropped and
counted (STR-41).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from socket import socket
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from m32net.audio.frame import EncodedFrame, Octets
from m32net.streaming.profile import SAMPLE_WIDTH, Profile
from protocols.datagram import BatchSender, SendFailure, SendMethod
from protocols.mmsg import (
    MAX_MESSAGE_BYTES,
    MAX_SEGMENTS,
    SOCKADDR_IN,
    SendTable,
    socket_addresses,
)
from protocols.rtp.bundling import Bundles, Grouping, OpusBundles, PcmBundles
from protocols.rtp.extension import EventFlags, ntp64_from_unix_ns
from protocols.rtp.packetizer import (
    EXTENDED_BYTES,
    ExtensionSchedule,
    HeaderTable,
    StreamSpec,
)
from protocols.rtp.rtcp import SenderReport

GSO_REFUSALS: Final = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP})
"""Errors of a route that cannot do GSO: no checksum offload (EIO before Linux 6.11), an MTU below
the segment size, a tunnel.  Its listener is sent one message per packet from then on."""

Counts = npt.NDArray[np.int64]


class SendResult(NamedTuple):
    """What became of one frame.

    :ivar listeners: who it was for.
    :ivar packets: RTP packets handed to the kernel.
    :ivar octets: their payload bytes, without RTP headers.
    :ivar dropped: RTP packets the kernel did not take.
    """

    listeners: int
    packets: int
    octets: int
    dropped: int


@dataclass(frozen=True, slots=True)
class StreamTotals:
    """What one listener was sent since its streams began.

    :ivar octets: payload bytes, as RFC 3550 section 6.4.1 counts them.
    :ivar ssrcs: its streams; the two following have an entry for each.
    """

    packets: int
    octets: int
    dropped: int
    ssrcs: tuple[int, ...]
    stream_packets: tuple[int, ...]
    stream_octets: tuple[int, ...]


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
        self._flocks: dict[Profile, _Flock] = {}
        self._flock_of: dict[str, _Flock] = {}

    @property
    def profiles(self) -> frozenset[Profile]:
        """Profiles somebody listens in."""
        return frozenset(self._flocks)

    def __len__(self) -> int:
        return len(self._flock_of)

    def add(self, client_id: str, profile: Profile, spec: StreamSpec) -> None:
        """Send to this listener from the next frame on; what it had before ends.

        :raises ValueError: the host is no IPv4 address, or a port is none.
        """
        addresses = socket_addresses([(spec.host, group.udp_port) for group in spec.groups])
        self.remove(client_id)
        if not spec.groups:
            return
        flock = self._flocks.get(profile)
        if flock is None:
            interval = round(self._extension_interval_s * 1_000_000 / profile.frame_us)
            segmented = self.method is SendMethod.GSO
            flock = self._flocks[profile] = _Flock(profile, interval, segmented)
        flock.add(client_id, spec, addresses)
        self._flock_of[client_id] = flock

    def remove(self, client_id: str) -> StreamTotals | None:
        """Send nothing to this listener any more.

        :returns: what it was sent in all; None if it was not known.
        """
        flock = self._flock_of.pop(client_id, None)
        if flock is None:
            return None
        totals = flock.totals(client_id)
        flock.remove(client_id)
        if not len(flock):
            del self._flocks[flock.profile]
        return totals

    def send(self, frame: EncodedFrame) -> SendResult:
        """Send one frame to everybody who listens in its profile: the hot path.

        :raises LocalProtocolError: the frame lacks a channel somebody is to get, or its Opus
            packets cannot be bundled.
        """
        flock = self._flocks.get(frame.profile)
        if flock is None:
            return SendResult(0, 0, 0, 0)
        table = flock.prepare(
            frame.payload, self._timestamp_offset + frame.media_time, self._realtime_ns
        )
        return flock.account(self._sender.send(table))

    def announce(self, client_id: str, flags: EventFlags) -> None:
        """Let the listener's next packets carry these event flags (CLK-3)."""
        flock = self._flock_of.get(client_id)
        if flock is not None:
            flock.schedule.announce(client_id, flags)

    def totals(self, client_id: str) -> StreamTotals | None:
        """What this listener was sent since its streams began; None if it is not known."""
        flock = self._flock_of.get(client_id)
        return None if flock is None else flock.totals(client_id)

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


class _Member:
    """One listener of a flock.

    :ivar start: its first row in the flock's tables.
    :ivar began: the flock's counters when its streams began.
    :ivar segmented: whether its packets of a frame go out as one GSO message.
    """

    __slots__ = ("addresses", "began", "segmented", "size", "spec", "start")

    def __init__(self, spec: StreamSpec, addresses: npt.NDArray[np.void], segmented: bool) -> None:
        self.spec = spec
        self.addresses = addresses
        self.size = len(spec.groups)
        self.start = 0
        self.began = (0, 0, 0)
        self.segmented = segmented

    def first_packets(self, profile: Profile) -> list[bool]:
        """For each packet whether a new message begins with it.

        One message holds packets to one port, of one size but for a smaller last one
        (UDP_SEGMENT), and no more than the kernel takes.
        """
        groups = self.spec.groups
        first = [True] * len(groups)
        if not self.segmented:
            return first
        count = port = size = 0
        total = MAX_MESSAGE_BYTES
        ended = True
        for at, group in enumerate(groups):
            channels = len(group.channels)
            # an upper bound: two length bytes a channel, and Opus packets rounded up
            most = EXTENDED_BYTES + channels * (profile.channel_bytes + 3)
            new = (
                ended
                or group.udp_port != port
                or channels > size
                or count == MAX_SEGMENTS
                or total + most > MAX_MESSAGE_BYTES
            )
            if new:
                count, total, port, size = 0, 0, group.udp_port, channels
            first[at] = new
            ended = channels < size
            count += 1
            total += most
        return first


class _Flock:
    """All listeners of one profile and the tables that serve them."""

    def __init__(self, profile: Profile, extension_interval: int, segmented: bool) -> None:
        self.profile = profile
        self.schedule = ExtensionSchedule(extension_interval)
        self._segmented = segmented
        self._members: dict[str, _Member] = {}
        self._headers = HeaderTable.of(())
        self._dropped: Counts = np.zeros((0, 2), np.int64)  # packets, octets of each row
        self._arriving: dict[str, _Member] = {}
        self._leaving: list[tuple[int, int]] = []
        self._stale = True
        self._frames = 0
        self._scale_sum = 0
        self._offset_sum = 0
        self._last_form = (-1, -1)
        self._extended = np.zeros(0, np.intp)
        self._bundles: Bundles
        self._table: SendTable

    def __len__(self) -> int:
        return len(self._members) + len(self._arriving)

    # -- coming and going ------------------------------------------------------------------

    def add(self, client_id: str, spec: StreamSpec, addresses: npt.NDArray[np.void]) -> None:
        member = _Member(spec, addresses, self._segmented)
        member.began = (self._frames, self._scale_sum, self._offset_sum)
        self._arriving[client_id] = member
        self.schedule.join(client_id)
        self._stale = True

    def remove(self, client_id: str) -> None:
        self.schedule.leave(client_id)
        if self._arriving.pop(client_id, None) is None:
            member = self._members.pop(client_id)
            self._leaving.append((member.start, member.start + member.size))
        self._stale = True

    def totals(self, client_id: str) -> StreamTotals:
        member = self._members.get(client_id)
        if member is None:
            ssrcs = tuple(group.ssrc for group in self._arriving[client_id].spec.groups)
            nothing = (0,) * len(ssrcs)
            return StreamTotals(0, 0, 0, ssrcs, nothing, nothing)
        rows = slice(member.start, member.start + member.size)
        frames, scale_sum, offset_sum = member.began
        dropped = self._dropped[rows]
        packets = self._frames - frames - dropped[:, 0]
        octets = self._units[rows] * (self._scale_sum - scale_sum) - dropped[:, 1]
        octets += self._offset_sum - offset_sum
        return StreamTotals(
            packets=int(packets.sum()),
            octets=int(octets.sum()),
            dropped=int(dropped[:, 0].sum()),
            ssrcs=tuple(group.ssrc for group in member.spec.groups),
            stream_packets=tuple(packets.tolist()),
            stream_octets=tuple(octets.tolist()),
        )

    # -- one frame -------------------------------------------------------------------------

    def prepare(self, payload: Octets, timestamp: int, realtime_ns: Callable[[], int]) -> SendTable:
        """Write one frame into the tables; what is returned is ready to be sent."""
        if self._stale or not self._bundles.fits(payload):
            self._rebuild(payload)
        bundles, headers = self._bundles, self._headers
        bundles.fill(payload)
        ended = self.schedule.step(self._frames)
        form = (bundles.scale, bundles.offset)
        if ended is not None:
            self._change_extensions(ended)
            self._write_lengths(form)
        elif form != self._last_form:
            self._write_lengths(form)
        headers.advance(timestamp)
        if len(self._extended):
            headers.stamp(self._extended, ntp64_from_unix_ns(realtime_ns()))
        self._frames += 1
        self._scale_sum += form[0]
        self._offset_sum += form[1]
        return self._table

    def account(self, failures: list[SendFailure]) -> SendResult:
        """Count what went out and what did not."""
        scale, offset = self._last_form
        packets = len(self._headers)
        octets = self._all_units * scale + packets * offset
        if not failures:
            return SendResult(len(self._members), packets, octets, 0)
        in_message = np.diff(self._first)
        failed = np.zeros(len(in_message), np.int64)
        failed[[failure.message for failure in failures]] = 1
        missed = np.repeat(failed, in_message)
        missed_octets = missed * (self._units * scale + offset)
        self._dropped += np.stack((missed, missed_octets), axis=1)
        refused = [f.message for f in failures if f.error in GSO_REFUSALS]
        self._stop_segmenting(self._first[m] for m in refused if in_message[m] > 1)
        lost = int(missed.sum())
        sent_octets = octets - int(missed_octets.sum())
        return SendResult(len(self._members), packets - lost, sent_octets, lost)

    def _change_extensions(self, ended: Iterable[object]) -> None:
        headers = self._headers
        plain = self._rows_of(ended)
        if len(plain):
            headers.plain(plain)
        running = self.schedule.running
        self._extended = self._rows_of(running)
        if len(self._extended):
            sizes = [self._members[key].size for key in running]  # type: ignore[index]
            headers.extend(self._extended, np.repeat(list(running.values()), sizes))

    def _rows_of(self, keys: Iterable[object]) -> npt.NDArray[np.intp]:
        members = [self._members[key] for key in keys]  # type: ignore[index]
        if not members:
            return np.zeros(0, np.intp)
        return np.concatenate([np.arange(m.start, m.start + m.size) for m in members])

    def _write_lengths(self, form: tuple[int, int]) -> None:
        """Parts and segments follow the sizes of headers and payloads."""
        scale, offset = form
        headers = self._headers.lengths
        payloads = (self._units * scale + offset).astype(np.uint64)
        table = self._table
        table.part_lengths[0::2] = headers
        table.part_lengths[1::2] = payloads
        table.segment_sizes[:] = (headers + payloads)[self._first[:-1]]
        self._last_form = form

    def _stop_segmenting(self, rows: Iterable[int]) -> None:
        """Those whose route refused GSO get one message for each packet from now on."""
        refused = set(rows)
        if not refused:
            return
        self._stale = True
        for member in self._members.values():
            if not refused.isdisjoint(range(member.start, member.start + member.size)):
                member.segmented = False

    # -- the tables ------------------------------------------------------------------------

    def _rebuild(self, payload: Octets) -> None:
        """Tables for the members as they are now; who stays goes on as before."""
        members = {**self._members, **self._arriving}
        self._build_bundles(members.values(), payload)  # first, for it may raise
        keep = np.ones(len(self._headers) + sum(m.size for m in self._arriving.values()), bool)
        for start, end in self._leaving:
            keep[start:end] = False
        new = [HeaderTable.of(member.spec.groups) for member in self._arriving.values()]
        self._headers = HeaderTable.joined([self._headers, *new], keep)
        dropped = np.zeros((len(keep), 2), np.int64)
        dropped[: len(self._dropped)] = self._dropped
        self._dropped = dropped[keep]
        self._members = members
        self._arriving = {}
        self._leaving = []
        row = 0
        for member in members.values():
            member.start = row
            row += member.size
        self._units: Counts = self._bundles.units[self._slot_of]
        self._all_units = int(self._units.sum())
        self._build_table()
        self._extended = self._rows_of(key for key in self.schedule.running if key in self._members)
        self._last_form = (-1, -1)
        self._stale = False

    def _build_bundles(self, members: Iterable[_Member], payload: Octets) -> None:
        slots: dict[Grouping, int] = {}
        slot_of = [
            slots.setdefault(group.channels, len(slots))
            for member in members
            for group in member.spec.groups
        ]
        self._bundles = _bundles(self.profile, list(slots), payload)
        self._slot_of = np.array(slot_of, np.intp)

    def _build_table(self) -> None:
        headers, bundles, members = self._headers, self._bundles, self._members.values()
        bases = np.zeros(2 * len(headers), np.uint64)
        slots = headers.slots
        bases[0::2] = slots.ctypes.data + np.arange(len(slots)) * slots.itemsize
        bases[1::2] = bundles.addresses[self._slot_of]
        begins = [first for member in members for first in member.first_packets(self.profile)]
        starts = np.flatnonzero(begins)
        self._first = np.append(starts, len(headers))
        # without dtype numpy would make its fields native and lose the network byte order
        addresses = np.concatenate([m.addresses for m in members], dtype=SOCKADDR_IN)
        self._table = SendTable(
            addresses[starts],
            bases=bases,
            lengths=np.zeros_like(bases),
            first_parts=2 * starts,
            segmented=np.diff(self._first) > 1,
            keep=(slots, bundles),
        )


def _bundles(profile: Profile, groupings: list[Grouping], payload: Octets) -> Bundles:
    if not profile.is_pcm:
        channels, packet_bytes = payload.shape
        return OpusBundles(groupings, channels, packet_bytes)
    width = SAMPLE_WIDTH[profile.codec]
    most = max(len(payload), profile.channel_bytes // width)
    return PcmBundles(groupings, payload.shape[1], width, most)
