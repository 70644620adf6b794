"""The time extension: send time and event flags in an RFC 8285 one-byte header extension.

Bytes and conversions only.  When a packet carries it is decided by the packetizer (STR-52,
CLK-3): on the first packets of a stream and on three packets in a row every few seconds.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |       0xBE    |    0xDE       |           length = 3          |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    | ID=1  | len=7 |   NTP time stamp of sending, 8 bytes          :
    +-+-+-+-+-+-+-+-+               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    :                               | ID=2  | len=0 |  event flags  |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    (the last byte is padding; ID 1 is RFC 6051's ``ntp-64``)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

import numpy as np

from protocols.errors import RemoteProtocolError
from protocols.rtp.packet import RtpPacket

ONE_BYTE_PROFILE: Final = 0xBEDE
NTP64_ID: Final = 1
EVENT_FLAGS_ID: Final = 2
NTP64_URI: Final = "urn:ietf:params:rtp-hdrext:ntp-64"
EVENT_FLAGS_URI: Final = "urn:x-m32net:event-flags"

TIME_EXTENSION: Final = np.dtype(
    [
        ("profile", ">u2"),
        ("words", ">u2"),
        ("ntp_element", "u1"),
        ("ntp", ">u8"),
        ("flags_element", "u1"),
        ("flags", "u1"),
        ("padding", "u1"),
    ]
)
EXTENSION_BYTES: Final = TIME_EXTENSION.itemsize
"""16: what a packet grows by when it carries the extension."""

NTP_UNIX_SECONDS: Final = 2_208_988_800
"""Seconds from the NTP era 0 (1900) to the Unix epoch (RFC 5905 section 6)."""

_NTP_ELEMENT: Final = NTP64_ID << 4 | 7
_FLAGS_ELEMENT: Final = EVENT_FLAGS_ID << 4 | 0
_WIRE: Final = struct.Struct("!HHBQBBB")
_SECOND_NS: Final = 1_000_000_000


class EventFlags(IntFlag):
    """What the extension's flags byte announces (CLK-3)."""

    NONE = 0
    TIME_SYNC = 0x01
    STATUS_UPDATE = 0x02
    CONTROL_MESSAGE = 0x04


@dataclass(frozen=True, slots=True)
class TimeExtension:
    """What a packet's extension says.

    :ivar send_time_ns: the server's wall clock when it sent the packet (Unix, ns).
    """

    send_time_ns: int
    flags: EventFlags


def ntp64_from_unix_ns(unix_ns: int) -> int:
    """Unix time in ns as a 64-bit NTP time stamp (RFC 5905 section 6), modulo its era."""
    seconds, rest = divmod(unix_ns, _SECOND_NS)
    return ((seconds + NTP_UNIX_SECONDS) & 0xFFFF_FFFF) << 32 | (rest << 32) // _SECOND_NS


def unix_ns_from_ntp64(ntp: int) -> int:
    """A 64-bit NTP time stamp as Unix time in ns; exact for what :func:`ntp64_from_unix_ns` made.

    Seconds below 2**31 are taken as of the era that begins in 2036 (RFC 4330 section 3).
    """
    seconds = ntp >> 32
    if seconds < 0x8000_0000:
        seconds += 1 << 32
    rest = ((ntp & 0xFFFF_FFFF) * _SECOND_NS + 0x8000_0000) >> 32
    return (seconds - NTP_UNIX_SECONDS) * _SECOND_NS + rest


def build_time_extension(send_time_ns: int, flags: EventFlags = EventFlags.TIME_SYNC) -> bytes:
    """The 16 bytes that follow the RTP header, including the 4 of the extension header."""
    return _WIRE.pack(
        ONE_BYTE_PROFILE,
        3,
        _NTP_ELEMENT,
        ntp64_from_unix_ns(send_time_ns),
        _FLAGS_ELEMENT,
        flags,
        0,
    )


def parse_one_byte(extension: bytes) -> dict[int, bytes]:
    """The elements of a one-byte form extension body by their id (RFC 8285 section 4.2).

    Padding is skipped; id 15 ends the list; of an id that appears twice the last counts.

    :raises RemoteProtocolError: an element reaches over the end.
    """
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(extension):
        head = extension[at]
        at += 1
        identifier = head >> 4
        if identifier == 0:
            continue
        if identifier == 15:
            break
        end = at + (head & 0x0F) + 1
        if end > len(extension):
            raise RemoteProtocolError("RTP extension: an element is cut off")
        elements[identifier] = extension[at:end]
        at = end
    return elements


def time_extension(packet: RtpPacket) -> TimeExtension | None:
    """What a packet's time extension says; None if it carries none.

    :raises RemoteProtocolError: the extension is malformed.
    """
    if packet.extension is None or packet.extension_profile != ONE_BYTE_PROFILE:
        return None
    elements = parse_one_byte(packet.extension)
    ntp = elements.get(NTP64_ID)
    if ntp is None:
        return None
    if len(ntp) != 8:
        raise RemoteProtocolError(f"RTP extension: an NTP time of {len(ntp)} bytes")
    flags = elements.get(EVENT_FLAGS_ID, b"\0")
    return TimeExtension(
        send_time_ns=unix_ns_from_ntp64(int.from_bytes(ntp, "big")),
        flags=EventFlags(flags[0] & 0x07),
    )
