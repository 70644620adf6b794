"""A profile: the one thing a channel is encoded for, shared by all who listen in it.

Values and arithmetic only.  Opus always runs on a 48 kHz RTP clock (RFC 7587 section 4.1); a
sample-rate step below 48 kHz is then an encoder setting (bandwidth and bit rate), while for PCM
it is a real rate, resampled once per profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Codec = Literal["opus", "L16", "L24"]
Bandwidth = Literal["fullband", "superwideband"]

CODECS: Final[tuple[Codec, ...]] = ("opus", "L16", "L24")
SAMPLE_RATES: Final = (48_000, 44_100, 32_000, 24_000)
"""The steps of STR-42, best first, in Hz."""
FRAME_US: Final = (2_500, 5_000, 10_000, 20_000)
"""Frame lengths in microseconds; each is twice the one before, so frames nest."""
DEFAULT_BITRATE: Final = 96_000
MIN_BITRATE: Final = 16_000
MAX_BITRATE: Final = 256_000
SAMPLE_WIDTH: Final[dict[Codec, int]] = {"L16": 2, "L24": 3}
"""Bytes per sample on the wire."""

MAX_UDP_PAYLOAD: Final = 1472
"""1500-byte Ethernet/Wi-Fi MTU less IPv4 (20) and UDP (8) headers."""
RTP_OVERHEAD: Final = 12 + 16
"""RTP header plus the time extension that some packets carry."""
MAX_MEDIA_PAYLOAD: Final = MAX_UDP_PAYLOAD - RTP_OVERHEAD

# Reductions of the Opus bit rate at the lower steps: the band gets narrower, so the same quality
# needs less.  44.1 kHz keeps the full band (there is no such Opus rate) and saves a fifth.
_OPUS_STEP: Final[dict[int, tuple[Bandwidth, float]]] = {
    48_000: ("fullband", 1.0),
    44_100: ("fullband", 0.8),
    32_000: ("superwideband", 0.6),
    24_000: ("superwideband", 0.5),
}


@dataclass(frozen=True, slots=True, order=True)
class Profile:
    """Codec, sample-rate step and frame length.

    :ivar codec: ``opus``, ``L16`` or ``L24``.
    :ivar sample_rate: the step in Hz, one of :data:`SAMPLE_RATES`.
    :ivar frame_us: frame length in microseconds, one of :data:`FRAME_US`.
    :ivar bitrate: Opus bits per second of one channel at the 48 kHz step; 0 for PCM.
    """

    codec: Codec
    sample_rate: int
    frame_us: int
    bitrate: int = 0

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"unknown codec {self.codec!r}; choose one of {', '.join(CODECS)}")
        if self.sample_rate not in SAMPLE_RATES:
            raise ValueError(f"unsupported sample rate {self.sample_rate}")
        if self.frame_us not in FRAME_US:
            raise ValueError(f"unsupported frame length {self.frame_us / 1000:g} ms")
        if self.codec == "opus":
            if not MIN_BITRATE <= self.bitrate <= MAX_BITRATE:
                raise ValueError(
                    f"Opus bit rate {self.bitrate} is outside {MIN_BITRATE}..{MAX_BITRATE}"
                )
        elif self.bitrate:
            raise ValueError("PCM has no bit rate to choose")

    @property
    def is_pcm(self) -> bool:
        return self.codec != "opus"

    @property
    def clock_rate(self) -> int:
        """Units per second of the RTP time stamp."""
        return self.sample_rate if self.is_pcm else 48_000

    @property
    def capture_samples(self) -> int:
        """Samples of one frame at the 48 kHz capture rate."""
        return self.frame_us * 48 // 1000

    @property
    def frame_samples(self) -> int | None:
        """Samples of one frame; None where it is not always the same (44.1 kHz)."""
        samples, rest = divmod(self.clock_rate * self.frame_us, 1_000_000)
        return None if rest else samples

    @property
    def frame_ms(self) -> float:
        return self.frame_us / 1000

    @property
    def opus_bandwidth(self) -> Bandwidth:
        return _OPUS_STEP[self.sample_rate][0]

    @property
    def opus_bitrate(self) -> int:
        """Bits per second the encoder is really set to, after the step's reduction."""
        return int(self.bitrate * _OPUS_STEP[self.sample_rate][1])

    @property
    def packet_bytes(self) -> int:
        """Size of one hard-CBR Opus packet, to the nearest byte as libopus rounds it."""
        return (self.opus_bitrate * self.frame_us // 1_000_000 + 4) // 8

    @property
    def channel_bytes(self) -> int:
        """Payload bytes one channel takes in a packet; for 44.1 kHz the larger of two sizes."""
        if self.is_pcm:
            samples = -(-self.sample_rate * self.frame_us // 1_000_000)
            return samples * SAMPLE_WIDTH[self.codec]
        return self.packet_bytes


def longest_frame_that_fits(
    codec: Codec, sample_rate: int, frame_us: int, payload: int = MAX_MEDIA_PAYLOAD
) -> int:
    """The longest frame, at most ``frame_us``, of which one channel fits into one packet.

    Only PCM is ever shortened: 20 ms of 48 kHz L24 is 2,880 bytes, more than an MTU.
    """
    for candidate in sorted(FRAME_US, reverse=True):
        if candidate > frame_us:
            continue
        bitrate = DEFAULT_BITRATE if codec == "opus" else 0
        if Profile(codec, sample_rate, candidate, bitrate).channel_bytes <= payload:
            return candidate
    return FRAME_US[0]
