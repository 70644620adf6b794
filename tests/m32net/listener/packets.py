"""RTP as a server sends it, made one packet at a time for the listener's tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.control.messages import Stream
from protocols.datagram import Datagram
from protocols.rtp.extension import ONE_BYTE_PROFILE, build_time_extension
from protocols.rtp.packet import RtpPacket, serialize

SERVER = ("192.0.2.1", 5004)


@dataclass
class PacketSource:
    """Numbers the packets of one announced stream.

    :ivar payloads: for each group, one payload a frame.
    """

    stream: Stream
    payloads: list[list[bytes]]
    frame: int = 240
    first_timestamp: int = 0xFFFF_F000
    first_sequence: int = 0xFFF0
    sent: dict[int, int] = field(default_factory=dict)

    def datagrams(
        self,
        number: int,
        arrival_ns: int,
        *,
        send_ns: int | None = None,
        lost: frozenset[int] = frozenset(),
        address: tuple[str, int] = SERVER,
    ) -> list[Datagram]:
        """Frame ``number``: one datagram a group, less those lost."""
        extension = None if send_ns is None else build_time_extension(send_ns)[4:]
        made = []
        for index, group in enumerate(self.stream.groups):
            if index in lost:
                continue
            packet = RtpPacket(
                payload_type=group.payload_type,
                sequence_number=(self.first_sequence + number) & 0xFFFF,
                timestamp=(self.first_timestamp + number * self.frame) & 0xFFFF_FFFF,
                ssrc=group.ssrc,
                payload=self.payloads[index][number % len(self.payloads[index])],
                extension=extension,
                extension_profile=ONE_BYTE_PROFILE if extension else 0,
            )
            made.append(Datagram(serialize(packet), address, arrival_ns))
        return made
