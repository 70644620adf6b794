"""RTP packets as they are on the wire (RFC 3550 section 5.1): parse, serialize, and a numpy dtype.

One packet at a time, with every field honoured.  Sending many packets at once is the business of
:mod:`protocols.rtp.packetizer`, which fills arrays of :data:`RTP_HEADER`.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |V=2|P|X|  CC   |M|     PT      |       sequence number         |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                           timestamp                           |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |           synchronization source (SSRC) identifier            |
    +=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+=+
    |   contributing source (CSRC) identifiers, 0..15 of them       |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |      defined by profile       |  length in 32-bit words       |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from protocols.errors import LocalProtocolError, RemoteProtocolError

RTP_HEADER: Final = np.dtype(
    [
        ("flags", "u1"),
        ("marker_type", "u1"),
        ("sequence_number", ">u2"),
        ("timestamp", ">u4"),
        ("ssrc", ">u4"),
    ]
)
"""The 12 fixed bytes; ``flags`` is V, P, X and CC, ``marker_type`` is M and PT."""

HEADER_BYTES: Final = RTP_HEADER.itemsize
VERSION_2: Final = 0x80
PADDING_BIT: Final = 0x20
EXTENSION_BIT: Final = 0x10
MARKER_BIT: Final = 0x80

_FIXED: Final = struct.Struct("!BBHII")
_EXTENSION: Final = struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """One RTP packet.

    :ivar payload: without padding; a view into what was parsed.
    :ivar extension: body of the header extension, a multiple of 4 bytes; None without the X bit.
    :ivar extension_profile: the 16 bits before its length, 0xBEDE for RFC 8285 one-byte form.
    :ivar padding: number of padding bytes after the payload, 0..255.
    """

    payload_type: int
    sequence_number: int
    timestamp: int
    ssrc: int
    payload: bytes | memoryview = b""
    marker: bool = False
    csrc: tuple[int, ...] = ()
    extension: bytes | None = None
    extension_profile: int = 0
    padding: int = 0


def parse(data: bytes | bytearray | memoryview) -> RtpPacket:
    """Parse one datagram (RFC 3550 section 5.1, checks of appendix A.1).

    :raises RemoteProtocolError: not RTP version 2, cut off, or padding that does not fit.
        A datagram whose packet type would be RTCP's (RFC 5761 section 4) is refused too.
    """
    view = memoryview(data).cast("B")
    size = len(view)
    if size < HEADER_BYTES:
        raise RemoteProtocolError(f"RTP: {size} bytes are less than a header")
    flags, marker_type, sequence_number, timestamp, ssrc = _FIXED.unpack_from(view)
    if flags & 0xC0 != VERSION_2:
        raise RemoteProtocolError(f"RTP: version {flags >> 6}")
    if 192 <= marker_type <= 223:
        raise RemoteProtocolError("RTP: this is RTCP")
    start = HEADER_BYTES
    csrc: tuple[int, ...] = ()
    if count := flags & 0x0F:
        if size < start + 4 * count:
            raise RemoteProtocolError("RTP: cut off in the CSRC list")
        csrc = struct.unpack_from(f"!{count}I", view, start)
        start += 4 * count
    extension: bytes | None = None
    extension_profile = 0
    if flags & EXTENSION_BIT:
        if size < start + 4:
            raise RemoteProtocolError("RTP: cut off in the extension header")
        extension_profile, words = _EXTENSION.unpack_from(view, start)
        start += 4
        if size < start + 4 * words:
            raise RemoteProtocolError("RTP: cut off in the extension")
        extension = bytes(view[start : start + 4 * words])
        start += 4 * words
    padding = 0
    if flags & PADDING_BIT:
        padding = view[-1]
        if padding == 0 or start + padding > size:
            raise RemoteProtocolError(f"RTP: {padding} bytes of padding do not fit")
    return RtpPacket(
        payload_type=marker_type & 0x7F,
        sequence_number=sequence_number,
        timestamp=timestamp,
        ssrc=ssrc,
        payload=view[start : size - padding],
        marker=bool(marker_type & MARKER_BIT),
        csrc=csrc,
        extension=extension,
        extension_profile=extension_profile,
        padding=padding,
    )


def serialize(packet: RtpPacket) -> bytes:
    """The packet as bytes.

    :raises LocalProtocolError: a field is out of its range.
    """
    flags = VERSION_2 | len(packet.csrc)
    if len(packet.csrc) > 15 or not 0 <= packet.padding <= 255 or packet.payload_type > 0x7F:
        raise LocalProtocolError("RTP: too many CSRCs, too much padding or a bad payload type")
    tail = b""
    if packet.extension is not None:
        if len(packet.extension) % 4:
            raise LocalProtocolError("RTP: an extension is a multiple of 4 bytes")
        flags |= EXTENSION_BIT
        words = len(packet.extension) // 4
        tail = _EXTENSION.pack(packet.extension_profile, words) + packet.extension
    padding = b""
    if packet.padding:
        flags |= PADDING_BIT
        padding = bytes(packet.padding - 1) + bytes([packet.padding])
    try:
        head = _FIXED.pack(
            flags,
            packet.payload_type | (MARKER_BIT if packet.marker else 0),
            packet.sequence_number,
            packet.timestamp,
            packet.ssrc,
        ) + struct.pack(f"!{len(packet.csrc)}I", *packet.csrc)
    except struct.error as error:
        raise LocalProtocolError(f"RTP: {error}") from None
    return b"".join((head, tail, packet.payload, padding))
