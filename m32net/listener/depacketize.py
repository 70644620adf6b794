"""What the server's ``stream`` message means for the packets that follow it.

Which SSRC carries which channels, where those stand in the blocks that come out, and how long a
payload is.  Payloads are not decoded here (:mod:`m32net.listener.decode`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocols.control.messages import Stream
from protocols.errors import RemoteProtocolError
from protocols.rtp.payload import PT_L16, PT_L24, PT_MULTIOPUS, PT_OPUS

SAMPLE_WIDTH: Final = {"L16": 2, "L24": 3}
_PAYLOAD_TYPES: Final = {
    "L16": (PT_L16,),
    "L24": (PT_L24,),
    "opus": (PT_OPUS, PT_MULTIOPUS),
}
_SILK_MS: Final = (10.0, 20.0, 40.0, 60.0)
_HYBRID_MS: Final = (10.0, 20.0)
_CELT_MS: Final = (2.5, 5.0, 10.0, 20.0)
_OPUS_RATE: Final = 48_000
_MAX_OPUS_MS: Final = 120.0


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """One RTP stream and where its channels go.

    :ivar index: 0-based number of the group.
    :ivar columns: column of the output block for each channel of the payload.
    """

    index: int
    ssrc: int
    payload_type: int
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """All RTP streams of a listener.

    :ivar sample_rate: of the blocks that come out: for PCM the step, for Opus always 48 kHz.
    :ivar frame: usual length of a frame in RTP clock units.
    :ivar channels: channel id of each output column.
    """

    codec: str
    sample_rate: int
    clock_rate: int
    frame: int
    channels: tuple[int, ...]
    groups: tuple[GroupPlan, ...]

    @classmethod
    def of(cls, stream: Stream, wanted: Sequence[int] | None = None) -> StreamPlan:
        """The plan for a ``stream`` message.

        :param wanted: order of the output columns; channels that do not flow have none.
            None: the order in which they flow.
        :raises RemoteProtocolError: an SSRC or a channel is there twice, or a payload type does
            not fit the codec.
        """
        flowing = [channel for group in stream.groups for channel in group.channels]
        if len(set(flowing)) != len(flowing):
            raise RemoteProtocolError("stream: a channel is in two groups")
        if len({group.ssrc for group in stream.groups}) != len(stream.groups):
            raise RemoteProtocolError("stream: an SSRC is there twice")
        for group in stream.groups:
            if group.payload_type not in _PAYLOAD_TYPES[stream.codec]:
                raise RemoteProtocolError(
                    f"stream: payload type {group.payload_type} is not {stream.codec}"
                )
        first = [channel for channel in wanted or () if channel in flowing]
        channels = (*first, *(channel for channel in flowing if channel not in first))
        column = {channel: index for index, channel in enumerate(channels)}
        return cls(
            codec=stream.codec,
            sample_rate=_OPUS_RATE if stream.codec == "opus" else stream.sample_rate,
            clock_rate=stream.clock_rate,
            frame=round(stream.clock_rate * stream.frame_ms / 1000),
            channels=channels,
            groups=tuple(
                GroupPlan(
                    index,
                    group.ssrc,
                    group.payload_type,
                    tuple(column[channel] for channel in group.channels),
                )
                for index, group in enumerate(stream.groups)
            ),
        )

    def duration(self, group: GroupPlan, payload: bytes | memoryview) -> int:
        """Length of a payload in RTP clock units.

        :raises RemoteProtocolError: it is empty, no whole number of samples, or no Opus packet.
        """
        if self.codec == "opus":
            return opus_duration(payload)
        samples, rest = divmod(len(payload), len(group.columns) * SAMPLE_WIDTH[self.codec])
        if rest or not samples:
            raise RemoteProtocolError(
                f"PCM: {len(payload)} bytes for {len(group.columns)} channels"
            )
        return samples


def opus_duration(packet: bytes | memoryview) -> int:
    """Length of an Opus packet in samples of 48 kHz, from its first bytes.

    RFC 6716 sections 3.1 and 3.2; self-delimiting framing (and so a multistream packet) begins in
    the same way.

    :raises RemoteProtocolError: there are no such packets.
    """
    if not len(packet):
        raise RemoteProtocolError("Opus: an empty packet")
    configuration, code = packet[0] >> 3, packet[0] & 3
    if configuration < 12:
        frame_ms = _SILK_MS[configuration & 3]
    elif configuration < 16:
        frame_ms = _HYBRID_MS[configuration & 1]
    else:
        frame_ms = _CELT_MS[configuration & 3]
    frames = 1 if code == 0 else 2
    if code == 3:
        if len(packet) < 2:
            raise RemoteProtocolError("Opus: a packet of code 3 is cut off")
        frames = packet[1] & 0x3F
    if not 0 < frames * frame_ms <= _MAX_OPUS_MS:
        raise RemoteProtocolError(f"Opus: a packet of {frames} x {frame_ms:g} ms")
    return round(frames * frame_ms * _OPUS_RATE / 1000)
