"""RTCP (RFC 3550 section 6): SR, RR, SDES, BYE and APP, compound packets, and their arithmetic.

Bytes to values and back, nothing else: when reports are sent is for the caller, who asks
:func:`report_interval` with a random number of its own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.errors import LocalProtocolError, RemoteProtocolError

SR: Final = 200
RR: Final = 201
SDES: Final = 202
BYE: Final = 203
APP: Final = 204

CNAME: Final = 1
NAME: Final = 2
TOOL: Final = 6

MAX_COUNT: Final = 31
"""Most report blocks, chunks or sources in one packet (a 5-bit count)."""

_BLOCK: Final = struct.Struct("!IIIIII")
_SENDER: Final = struct.Struct("!IQIII")


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """Reception of one source, RFC 3550 section 6.4.1.

    :ivar fraction_lost: since the previous report, in 1/256.
    :ivar cumulative_lost: since the start, signed 24 bits.
    :ivar highest_sequence: extended highest sequence number, 32 bits.
    :ivar jitter: in units of the RTP clock.
    :ivar last_sr: the middle 32 bits of the last SR's NTP time; 0 if none came.
    :ivar delay_since_last_sr: in 1/65536 s.
    """

    ssrc: int
    fraction_lost: int
    cumulative_lost: int
    highest_sequence: int
    jitter: int
    last_sr: int
    delay_since_last_sr: int


@dataclass(frozen=True, slots=True)
class SenderReport:
    """SR: NTP and RTP time of one instant, and what was sent up to it.

    :ivar ntp: 64-bit NTP time stamp.
    :ivar octet_count: payload bytes, without headers and padding, modulo 2**32.
    """

    ssrc: int
    ntp: int
    rtp_timestamp: int
    packet_count: int
    octet_count: int
    reports: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceiverReport:
    """RR: what a receiver got of each source."""

    ssrc: int
    reports: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class SdesChunk:
    """Items of one source: ``(type, text)``, for instance ``(CNAME, "m32net@10.0.0.2")``."""

    ssrc: int
    items: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """SDES, RFC 3550 section 6.5."""

    chunks: tuple[SdesChunk, ...]


@dataclass(frozen=True, slots=True)
class Goodbye:
    """BYE, RFC 3550 section 6.6."""

    sources: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ApplicationDefined:
    """APP, RFC 3550 section 6.7.

    :ivar name: four ASCII characters.
    :ivar data: a multiple of 4 bytes.
    """

    subtype: int
    ssrc: int
    name: bytes
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class OtherPacket:
    """A packet type this module does not know (feedback, XR…), as it came."""

    packet_type: int
    count: int
    body: bytes


RtcpPacket = (
    SenderReport | ReceiverReport | SourceDescription | Goodbye | ApplicationDefined | OtherPacket
)
Compound = tuple[RtcpPacket, ...]


def parse_compound(data: bytes | bytearray | memoryview) -> Compound:
    """Parse one datagram, with the validity checks of RFC 3550 appendix A.2.

    :raises RemoteProtocolError: not version 2, the first packet is no report, padding in the
        first or anywhere but in the last packet, lengths that do not add up, or a malformed
        packet inside.
    """
    raw = bytes(data)
    packets: list[RtcpPacket] = []
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise RemoteProtocolError("RTCP: cut off in a header")
        flags, packet_type, words = struct.unpack_from("!BBH", raw, at)
        if flags >> 6 != 2:
            raise RemoteProtocolError(f"RTCP: version {flags >> 6}")
        if not packets and packet_type not in (SR, RR):
            raise RemoteProtocolError(f"RTCP: a compound packet begins with type {packet_type}")
        end = at + 4 + 4 * words
        if end > len(raw):
            raise RemoteProtocolError("RTCP: a length reaches over the end")
        body = raw[at + 4 : end]
        if flags & 0x20:
            body = _without_padding(body, last=end == len(raw), first=not packets)
        packets.append(_parse_packet(packet_type, flags & 0x1F, body))
        at = end
    if not packets:
        raise RemoteProtocolError("RTCP: empty")
    return tuple(packets)


def serialize_compound(packets: Iterable[RtcpPacket]) -> bytes:
    """The packets as one datagram.

    :raises LocalProtocolError: the first is no report, or a field is out of its range.
    """
    sequence = tuple(packets)
    if not sequence or not isinstance(sequence[0], SenderReport | ReceiverReport):
        raise LocalProtocolError("RTCP: a compound packet begins with a report")
    return b"".join(map(_serialize_packet, sequence))


def sender_compounds(
    reports: Sequence[SenderReport], cname: str, max_bytes: int = 1400
) -> list[bytes]:
    """Reports on all streams of one listener, each with its CNAME, in as few datagrams as fit."""
    each = 28 + 4 + 4 * math.ceil((2 + len(cname.encode()) + 1) / 4)
    room = max(1, min(MAX_COUNT, (max_bytes - 4) // each))
    datagrams = []
    for start in range(0, len(reports), room):
        part = reports[start : start + room]
        chunks = tuple(SdesChunk(report.ssrc, ((CNAME, cname),)) for report in part)
        datagrams.append(serialize_compound((*part, SourceDescription(chunks))))
    return datagrams


def receiver_compounds(ssrc: int, blocks: Sequence[ReportBlock], cname: str) -> list[bytes]:
    """What one receiver reports on all its sources, in as few datagrams as needed."""
    description = SourceDescription((SdesChunk(ssrc, ((CNAME, cname),)),))
    return [
        serialize_compound((ReceiverReport(ssrc, tuple(blocks[at : at + MAX_COUNT])), description))
        for at in range(0, max(1, len(blocks)), MAX_COUNT)
    ]


def compact_ntp(ntp: int) -> int:
    """The middle 32 bits of a 64-bit NTP time stamp: 16.16 seconds (RFC 3550 section 4)."""
    return ntp >> 16 & 0xFFFF_FFFF


def round_trip_s(arrival_ntp: int, block: ReportBlock) -> float | None:
    """Round-trip time in s from a report block (RFC 3550 section 6.4.1, figure 2).

    :param arrival_ntp: 64-bit NTP time at which the report came.
    :returns: None where the receiver had no SR yet, or where the times contradict each other.
    """
    if not block.last_sr:
        return None
    delay = compact_ntp(arrival_ntp) - block.delay_since_last_sr - block.last_sr
    delay &= 0xFFFF_FFFF
    return None if delay >= 0x8000_0000 else delay / 65_536


def report_interval(
    *,
    members: int,
    senders: int,
    bandwidth: float,
    we_sent: bool,
    average_bytes: float,
    initial: bool,
    randomness: float,
    minimum_s: float = 5.0,
) -> float:
    """Seconds to the next report (RFC 3550 sections 6.2, 6.3.1 and appendix A.7).

    :param bandwidth: RTCP bandwidth of the session in bytes per second (5 % of the media).
    :param randomness: uniformly distributed in 0..1, drawn by the caller.
    :param minimum_s: 5 s, or 360 / session kb/s (the reduced minimum).
    """
    minimum = minimum_s / 2 if initial else minimum_s
    n = members
    if 0 < senders <= members * 0.25:
        if we_sent:
            bandwidth *= 0.25
            n = senders
        else:
            bandwidth *= 0.75
            n = members - senders
    interval = max(minimum, average_bytes * n / bandwidth) if bandwidth > 0 else minimum
    return interval * (randomness + 0.5) / (math.e - 1.5)


def _without_padding(body: bytes, *, last: bool, first: bool) -> bytes:
    padding = body[-1] if body else 0
    if first or not last:
        raise RemoteProtocolError("RTCP: padding is for the last packet of several")
    if padding == 0 or padding % 4 or padding > len(body):
        raise RemoteProtocolError(f"RTCP: {padding} bytes of padding do not fit")
    return body[:-padding]


def _parse_packet(packet_type: int, count: int, body: bytes) -> RtcpPacket:
    try:
        if packet_type == SR:
            ssrc, ntp, rtp_timestamp, packets, octets = _SENDER.unpack_from(body)
            reports = _parse_blocks(body, _SENDER.size, count)
            return SenderReport(ssrc, ntp, rtp_timestamp, packets, octets, reports)
        if packet_type == RR:
            (ssrc,) = struct.unpack_from("!I", body)
            return ReceiverReport(ssrc, _parse_blocks(body, 4, count))
        if packet_type == SDES:
            return _parse_sdes(body, count)
        if packet_type == BYE:
            sources = struct.unpack_from(f"!{count}I", body)
            rest = body[4 * count :]
            length = rest[0] if rest else 0
            if length >= max(1, len(rest)):
                raise RemoteProtocolError("RTCP: a BYE's reason is cut off")
            return Goodbye(sources, rest[1 : 1 + length].decode("utf-8", "replace"))
        if packet_type == APP:
            ssrc, name = struct.unpack_from("!I4s", body)
            return ApplicationDefined(count, ssrc, name, body[8:])
    except struct.error:
        raise RemoteProtocolError(f"RTCP: type {packet_type} is cut off") from None
    return OtherPacket(packet_type, count, body)


def _parse_blocks(body: bytes, start: int, count: int) -> tuple[ReportBlock, ...]:
    blocks = []
    for at in range(start, start + 24 * count, 24):
        ssrc, loss, highest, jitter, last_sr, delay = _BLOCK.unpack_from(body, at)
        lost = loss & 0xFF_FFFF
        if lost & 0x80_0000:
            lost -= 1 << 24
        blocks.append(ReportBlock(ssrc, loss >> 24, lost, highest, jitter, last_sr, delay))
    return tuple(blocks)


def _parse_sdes(body: bytes, count: int) -> SourceDescription:
    chunks = []
    at = 0
    for _ in range(count):
        (ssrc,) = struct.unpack_from("!I", body, at)
        at += 4
        items = []
        while True:
            if at >= len(body):
                raise RemoteProtocolError("RTCP: an SDES chunk has no end")
            kind = body[at]
            at += 1
            if kind == 0:
                at += -at % 4
                break
            if at >= len(body) or at + 1 + body[at] > len(body):
                raise RemoteProtocolError("RTCP: an SDES item is cut off")
            text = body[at + 1 : at + 1 + body[at]]
            items.append((kind, text.decode("utf-8", "replace")))
            at += 1 + len(text)
        chunks.append(SdesChunk(ssrc, tuple(items)))
    return SourceDescription(tuple(chunks))


def _serialize_packet(packet: RtcpPacket) -> bytes:
    try:
        packet_type, count, body = _body(packet)
    except struct.error as error:
        raise LocalProtocolError(f"RTCP: {error}") from None
    if not 0 <= count <= MAX_COUNT or len(body) % 4:
        raise LocalProtocolError(f"RTCP: {count} entries, {len(body)} bytes")
    return struct.pack("!BBH", 0x80 | count, packet_type, len(body) // 4) + body


def _body(packet: RtcpPacket) -> tuple[int, int, bytes]:
    """Packet type, count field and body."""
    if isinstance(packet, SenderReport):
        body = _SENDER.pack(
            packet.ssrc,
            packet.ntp,
            packet.rtp_timestamp,
            packet.packet_count & 0xFFFF_FFFF,
            packet.octet_count & 0xFFFF_FFFF,
        )
        return SR, len(packet.reports), body + _blocks(packet.reports)
    if isinstance(packet, ReceiverReport):
        body = struct.pack("!I", packet.ssrc) + _blocks(packet.reports)
        return RR, len(packet.reports), body
    if isinstance(packet, SourceDescription):
        return SDES, len(packet.chunks), b"".join(map(_chunk, packet.chunks))
    if isinstance(packet, Goodbye):
        body = struct.pack(f"!{len(packet.sources)}I", *packet.sources)
        if packet.reason:
            body += _text(packet.reason)
        return BYE, len(packet.sources), _aligned(body)
    if isinstance(packet, ApplicationDefined):
        body = struct.pack("!I4s", packet.ssrc, packet.name) + packet.data
        return APP, packet.subtype, body
    return packet.packet_type, packet.count, packet.body


def _blocks(blocks: Iterable[ReportBlock]) -> bytes:
    return b"".join(
        _BLOCK.pack(
            block.ssrc,
            block.fraction_lost << 24 | block.cumulative_lost & 0xFF_FFFF,
            block.highest_sequence,
            block.jitter,
            block.last_sr,
            block.delay_since_last_sr,
        )
        for block in blocks
    )


def _chunk(chunk: SdesChunk) -> bytes:
    items = b"".join(bytes([kind]) + _text(text) for kind, text in chunk.items)
    return _aligned(struct.pack("!I", chunk.ssrc) + items + b"\0")


def _text(text: str) -> bytes:
    """Length and UTF-8 of a text of at most 255 bytes; a longer one is cut between characters."""
    encoded = text.encode()[:255].decode("utf-8", "ignore").encode()
    return bytes([len(encoded)]) + encoded


def _aligned(body: bytes) -> bytes:
    return body + bytes(-len(body) % 4)
