"""All listeners of one profile, and the tables that serve them frame by frame.

The memory side of the fan-out: headers (:mod:`protocols.rtp.packetizer`), payloads shared by all
who have the same channels (:mod:`protocols.rtp.bundling`) and the messages that point to both
(:class:`protocols.mmsg.SendTable`).  A row is one packet of a frame: an RTP stream has one, or as
many as it has parts; the rows of a stream are adjacent, and so are a listener's.  A part is a
slice of its group's payload, which lies there sample after sample.  When somebody comes or goes,
the tables are built anew from the old ones in the next frame; who stays goes on as before.
Nothing is sent here.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from m32net.audio.frame import Octets
from m32net.streaming.profile import SAMPLE_WIDTH, Profile
from protocols.datagram import SendFailure
from protocols.errors import LocalProtocolError
from protocols.mmsg import MAX_MESSAGE_BYTES, MAX_SEGMENTS, SOCKADDR_IN, SendTable, Words
from protocols.rtp.bundling import Bundles, Grouping, OpusBundles, PcmBundles
from protocols.rtp.extension import ntp64_from_unix_ns
from protocols.rtp.packetizer import (
    EXTENDED_BYTES,
    ExtensionSchedule,
    Group,
    HeaderTable,
    StreamSpec,
)

GSO_REFUSALS: Final = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP})
"""Errors of a route that cannot do GSO: no checksum offload (EIO before Linux 6.11), an MTU below
the segment size, a tunnel.  Its listener is sent one message per packet from then on."""

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]


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


@dataclass(slots=True)
class _Member:
    """One listener.

    :ivar addresses: SOCKADDR_IN of each row.
    :ivar began: the audience's counters when its streams began.
    :ivar start: its first row, ``end`` the one after its last.
    """

    spec: StreamSpec
    addresses: npt.NDArray[np.void]
    began: tuple[int, int, int]
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.addresses)


class Audience:
    """The listeners of one profile.

    :param extension_interval: frames between two runs of the time extension.
    :param segmented: whether packets may be joined to GSO messages.
    :ivar schedule: who carries the time extension when.
    """

    def __init__(self, profile: Profile, extension_interval: int, *, segmented: bool) -> None:
        self.profile = profile
        self.schedule = ExtensionSchedule(extension_interval)
        self._segmented = segmented
        self._members: dict[str, _Member] = {}
        self._arriving: dict[str, _Member] = {}
        self._leaving: list[tuple[int, int]] = []
        self._stale = True
        # for each row
        self._headers = HeaderTable.of(())
        self._addresses = np.zeros(0, SOCKADDR_IN)
        self._begins: Flags = np.zeros(0, np.bool_)  # a new message
        self._slot_of: Rows = np.zeros(0, np.intp)  # which of the groupings
        self._units: Counts = np.zeros(0, np.int64)  # of the whole frame, all parts
        self._payload_bases: Words = np.zeros(0, np.uint64)  # addresses, also of the whole
        self._payload_lengths: Words = np.zeros(0, np.uint64)
        self._dropped: Counts = np.zeros((0, 2), np.int64)  # packets, octets
        # for all
        self._groupings: dict[Grouping, int] = {}
        self._first: Rows = np.zeros(1, np.intp)  # first row of each message, and the end
        self._extended: Rows = np.zeros(0, np.intp)
        self._frames = 0
        self._scale_sum = 0
        self._offset_sum = 0
        self._octets = 0  # of a frame
        self._form: tuple[int, int] | None = None
        self._bundles: Bundles | None = None
        self._table: SendTable

    def __len__(self) -> int:
        return len(self._members) + len(self._arriving)

    # -- coming and going ------------------------------------------------------------------

    def add(self, client_id: str, spec: StreamSpec, addresses: npt.NDArray[np.void]) -> None:
        """From the next frame on; ``addresses`` are SOCKADDR_IN, one for each packet of a frame."""
        began = (self._frames, self._scale_sum, self._offset_sum)
        self._arriving[client_id] = _Member(spec, addresses, began)
        self.schedule.join(client_id)
        self._stale = True

    def remove(self, client_id: str) -> None:
        self.schedule.leave(client_id)
        if self._arriving.pop(client_id, None) is None:
            member = self._members.pop(client_id)
            self._leaving.append((member.start, member.end))
        self._stale = True

    def totals(self, client_id: str) -> StreamTotals:
        member = self._members.get(client_id)
        if member is None:
            ssrcs = tuple(group.ssrc for group in self._arriving[client_id].spec.groups)
            nothing = (0,) * len(ssrcs)
            return StreamTotals(0, 0, 0, ssrcs, nothing, nothing)
        rows = slice(member.start, member.end)
        frames, scale_sum, offset_sum = member.began
        dropped = self._dropped[rows]
        packets = self._frames - frames - dropped[:, 0]
        octets = self._units[rows] * (self._scale_sum - scale_sum) // self._headers.parts[rows]
        octets += self._offset_sum - offset_sum - dropped[:, 1]
        streams = np.flatnonzero(self._headers.part[rows] == 0)
        packets, octets = np.add.reduceat(packets, streams), np.add.reduceat(octets, streams)
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
        """Write one frame into the tables; what is returned is ready to be sent.

        :raises LocalProtocolError: the frame lacks a channel somebody is to get, its Opus packets
            cannot be bundled, or it cannot be divided into somebody's parts; nothing has changed
            then.
        """
        bundles = self._bundles
        if self._stale or bundles is None or not bundles.fits(payload):
            bundles = self._rebuild(payload)
        bundles.fill(payload)
        form = (bundles.scale, bundles.offset)
        if form != self._form:
            self._check_divides(form[0])
        ended = self.schedule.step(self._frames)
        if ended is not None:
            self._change_extensions(ended)
        if ended is not None or form != self._form:
            self._write_lengths(form)
        headers = self._headers
        headers.advance(timestamp)
        if len(self._extended):
            headers.stamp(self._extended, ntp64_from_unix_ns(realtime_ns()))
        self._frames += 1
        self._scale_sum += form[0]
        self._offset_sum += form[1]
        return self._table

    def account(self, failures: list[SendFailure]) -> SendResult:
        """Count what went out of the frame prepared last, and what did not."""
        packets = len(self._headers)
        octets = self._octets
        if not failures:
            return SendResult(len(self._members), packets, octets, 0)
        in_message = np.diff(self._first)
        failed = np.zeros(len(in_message), np.int64)
        failed[[failure.message for failure in failures]] = 1
        missed = np.repeat(failed, in_message)
        missed_octets = missed * self._payload_lengths.astype(np.int64)
        self._dropped += np.stack((missed, missed_octets), axis=1)
        self._stop_segmenting(f.message for f in failures if f.error in GSO_REFUSALS)
        lost = int(missed.sum())
        sent_octets = octets - int(missed_octets.sum())
        return SendResult(len(self._members), packets - lost, sent_octets, lost)

    def _check_divides(self, samples: int) -> None:
        """:raises LocalProtocolError: a frame of this length does not make equal parts."""
        headers = self._headers
        if headers.divided and (samples % headers.parts).any():
            raise LocalProtocolError(f"a frame of {samples} samples cannot be divided as agreed")

    def _change_extensions(self, ended: Iterable[object]) -> None:
        headers = self._headers
        headers.plain(self._rows_of(ended))
        running = self.schedule.running
        self._extended = self._rows_of(running)
        flags = [
            flags
            for key, flags in running.items()
            for _row in self._members[key].addresses  # type: ignore[index]
        ]
        headers.extend(self._extended, np.array(flags, np.uint8))

    def _rows_of(self, keys: Iterable[object]) -> Rows:
        members = (self._members[key] for key in keys)  # type: ignore[index]
        return np.array([row for m in members for row in range(m.start, m.end)], np.intp)

    def _write_lengths(self, form: tuple[int, int]) -> None:
        """Parts and segments follow the sizes of headers and payloads."""
        if form != self._form:
            self._write_payloads(form)
        headers, table = self._headers.lengths, self._table
        table.part_lengths[0::2] = headers
        table.segment_sizes[:] = (headers + self._payload_lengths)[self._first[:-1]]

    def _write_payloads(self, form: tuple[int, int]) -> None:
        """Where each packet's payload lies, and the time stamps, follow the length of frames."""
        scale, offset = form
        headers, table = self._headers, self._table
        payloads = self._units * scale
        if headers.divided:
            payloads //= headers.parts
            headers.space(scale)
            table.part_bases[1::2] = self._payload_bases + headers.part * payloads.astype(np.uint64)
        payloads += offset
        table.part_lengths[1::2] = payloads
        self._payload_lengths = payloads.astype(np.uint64)
        self._octets = int(payloads.sum())
        self._form = form

    def _stop_segmenting(self, messages: Iterable[int]) -> None:
        """Listeners whose route refused GSO get one message for each packet from now on."""
        first = self._first
        refused = {int(first[m]) for m in messages if first[m + 1] - first[m] > 1}
        if not refused:
            return
        self._stale = True
        for member in self._members.values():
            if not refused.isdisjoint(range(member.start, member.end)):
                self._begins[member.start : member.end] = True

    # -- the tables ------------------------------------------------------------------------

    def _rebuild(self, payload: Octets) -> Bundles:
        """Tables for the members as they are now."""
        arriving = list(self._arriving.values())
        groups = [group for member in arriving for group in member.spec.groups]
        headers = HeaderTable.of(groups)
        keep = np.ones(len(self._headers) + len(headers), np.bool_)
        for start, end in self._leaving:
            keep[start:end] = False
        bundles = self._choose_slots(groups, keep, payload)  # first, for it may raise
        begins = [first for member in arriving for first in self._message_begins(member.spec)]
        self._headers = HeaderTable.joined([self._headers, headers], keep)
        # without dtype numpy would make its fields native and lose the network byte order
        addresses = [self._addresses, *(member.addresses for member in arriving)]
        self._addresses = np.concatenate(addresses, dtype=SOCKADDR_IN)[keep]
        self._begins = np.concatenate([self._begins, np.array(begins, np.bool_)])[keep]
        self._dropped = np.pad(self._dropped, ((0, len(headers)), (0, 0)))[keep]
        self._members.update(self._arriving)
        self._arriving = {}
        self._leaving = []
        row = 0
        for member in self._members.values():
            member.start = row
            row = member.end
        self._build_table(bundles)
        self._stale = False
        return bundles

    def _choose_slots(self, new: Sequence[Group], keep: Flags, payload: Octets) -> Bundles:
        """Which payload each row points to; new payloads only where the groupings changed."""
        known = dict(self._groupings)
        slots = [known.setdefault(group.channels, len(known)) for group in new]
        arrived = np.repeat(np.array(slots, np.intp), [group.parts for group in new])
        slot_of = np.concatenate([self._slot_of, arrived])[keep]
        used = np.bincount(slot_of, minlength=len(known)) > 0
        bundles = self._bundles
        if bundles is None or len(known) > len(self._groupings) or not used.all():
            bundles = None
            slot_of = (np.cumsum(used) - 1)[slot_of]
            still = [grouping for grouping, slot in known.items() if used[slot]]
            known = {grouping: slot for slot, grouping in enumerate(still)}
        if bundles is None or not bundles.fits(payload):
            bundles = _bundles(self.profile, list(known), payload)
        self._bundles, self._groupings, self._slot_of = bundles, known, slot_of
        return bundles

    def _build_table(self, bundles: Bundles) -> None:
        headers = self._headers
        slots = headers.slots
        self._units = bundles.units[self._slot_of]
        self._payload_bases = bundles.addresses[self._slot_of]
        bases = np.zeros(2 * len(headers), np.uint64)
        bases[0::2] = slots.ctypes.data + np.arange(len(slots)) * slots.itemsize
        bases[1::2] = self._payload_bases
        starts = np.flatnonzero(self._begins)
        self._first = np.append(starts, len(headers))
        self._table = SendTable(
            self._addresses[starts],
            bases=bases,
            lengths=np.zeros_like(bases),
            first_parts=2 * starts,
            segmented=np.diff(self._first) > 1,
            keep=(slots, bundles),
        )
        self._form = None
        self._extended = self._rows_of(key for key in self.schedule.running if key in self._members)

    def _message_begins(self, spec: StreamSpec) -> list[bool]:
        """For each of a listener's packets whether a new message begins with it.

        One message holds packets to one port, of one size but for a smaller last one
        (UDP_SEGMENT), and no more than the kernel takes.
        """
        packets = [group for group in spec.groups for _part in range(group.parts)]
        begins = [True] * len(packets)
        if not self._segmented:
            return begins
        count = port = 0
        size = 0.0
        total = MAX_MESSAGE_BYTES
        for at, group in enumerate(packets):
            relative = len(group.channels) / group.parts
            # an upper bound: two length bytes a channel, and Opus packets rounded up
            most = EXTENDED_BYTES + math.ceil(relative * (self.profile.channel_bytes + 3))
            if (
                group.udp_port != port
                or relative > size
                or (relative < size and group.parts > 1)  # a stream's parts stay together
                or count == MAX_SEGMENTS
                or total + most > MAX_MESSAGE_BYTES
            ):
                count, total, port, size = 0, 0, group.udp_port, relative
            else:
                begins[at] = False
            count += 1
            total += most
            if relative < size:  # none can follow a smaller one
                port = 0
        return begins


def _bundles(profile: Profile, groupings: Sequence[Grouping], payload: Octets) -> Bundles:
    if not profile.is_pcm:
        channels, packet_bytes = payload.shape
        return OpusBundles(groupings, channels, packet_bytes)
    width = SAMPLE_WIDTH[profile.codec]
    most = max(len(payload), profile.channel_bytes // width)
    return PcmBundles(groupings, payload.shape[1], width, most)
