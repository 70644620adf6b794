"""What a listener gets, from what it asks for and what the server offers.

Pure: the same request and offer always give the same answer, and a request that cannot be met
raises :class:`~m32net.interfaces.RefusedError` with a sentence for the person in front of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, Literal

from m32net.interfaces import RefusedError
from m32net.streaming.profile import (
    FRAME_US,
    MAX_MEDIA_PAYLOAD,
    SAMPLE_RATES,
    SAMPLE_WIDTH,
    Codec,
    Profile,
    longest_frame_that_fits,
)
from protocols.control.messages import ClientConfig
from protocols.rtp.packetizer import plan_groups, plan_parts

Layout = Literal["mono", "bundle"]
Ports = Literal["single", "consecutive"]

BITRATES: Final = (32_000, 48_000, 64_000, 96_000, 128_000)
"""Opus bit rates a listener may ask for; a ladder, so that profiles stay few and shared."""


@dataclass(frozen=True, slots=True)
class AudioOffer:
    """What the server sends to a listener that leaves everything to it.

    :ivar channels: ids of the channels that are switched on, ascending.
    :ivar sample_rate: the best rate anybody gets, in Hz (STR-42's active step).
    :ivar opus: whether this server can encode it at all.
    """

    channels: tuple[int, ...]
    codec: Codec = "opus"
    sample_rate: int = 48_000
    bitrate: int = 96_000
    frame_us: int = 5_000
    layout: Layout = "bundle"
    opus: bool = True


@dataclass(frozen=True, slots=True)
class Agreement:
    """What one listener's streams look like; two equal agreements need no restart.

    :ivar groups: the channels of each packet, ids in ascending order, so that listeners of the
        same set share payloads; empty if all that was asked for is muted or not sent.
    :ivar udp_port: where the listener wants its audio; None until it says so.
    :ivar parts: packets that each frame of a group is divided into, all of one duration.
    """

    profile: Profile
    groups: tuple[tuple[int, ...], ...]
    layout: Layout
    ports: Ports
    udp_port: int | None
    parts: int = 1

    @property
    def packet_ms(self) -> float:
        """Duration of one packet."""
        return self.profile.frame_ms / self.parts

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(channel for group in self.groups for channel in group)

    def port_of(self, group: int) -> int:
        """The UDP port that group number ``group`` goes to; RTCP goes to the next one."""
        assert self.udp_port is not None
        return self.udp_port + (2 * group if self.ports == "consecutive" else 0)

    def at(self, udp_port: int) -> Agreement:
        """The same streams to this port.

        :raises RefusedError: 400; consecutive ports would not all be below 65536.
        """
        settled = replace(self, udp_port=check_port(udp_port))
        if self.groups and settled.port_of(len(self.groups) - 1) >= 65535:
            needed = 2 * len(self.groups)
            raise RefusedError(
                "bad_port", f"udp_port {udp_port} leaves no room for {needed} consecutive ports"
            )
        return settled


def check_port(udp_port: int) -> int:
    """:raises RefusedError: the port is outside 1024..65535 (STR-36)."""
    if not 1024 <= udp_port <= 65535:
        raise RefusedError("bad_port", f"udp_port {udp_port} is outside 1024..65535", 400)
    return udp_port


def check_host(host: str) -> None:
    """:raises RefusedError: audio cannot be sent there, for it is sent by IPv4."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise RefusedError(
            "no_ipv4", f"audio is sent by IPv4; connect by the server's IPv4 address, not as {host}"
        ) from None


def agree(config: ClientConfig, offer: AudioOffer) -> Agreement:
    """Settle codec, rate, frame length and channels for one listener.

    A rate above the offer's becomes the offer's; a PCM frame that would not fit into one packet
    becomes the longest that does.  Where ``max_group`` is given, a bundle of PCM has so many
    channels, and its frames are divided into as many packets as that takes.  Muted channels are
    not sent (STR-30), channels that the server does not send are left out.

    :raises RefusedError: 400 for a rate, frame length, bit rate or port that does not exist.
    """
    codec = config.codec or offer.codec
    if codec == "opus" and not offer.opus:
        raise RefusedError("no_opus", "this server has no Opus; ask for L16 or L24")
    rate = offer.sample_rate if config.sample_rate is None else config.sample_rate
    if rate not in SAMPLE_RATES:
        steps = ", ".join(map(str, SAMPLE_RATES))
        raise RefusedError("bad_sample_rate", f"sample_rate {rate} is none of {steps}")
    rate = min(rate, offer.sample_rate)
    frame_us = offer.frame_us if config.frame_ms is None else round(config.frame_ms * 1000)
    if frame_us not in FRAME_US:
        raise RefusedError("bad_frame", f"frame_ms {config.frame_ms} is none of 2.5, 5, 10, 20")
    profile = Profile(
        codec,
        rate,
        longest_frame_that_fits(codec, rate, frame_us),
        _bitrate(config.bitrate, offer.bitrate) if codec == "opus" else 0,
    )
    layout = config.layout or offer.layout
    groups, parts = _groups(_channels(config, offer.channels), profile, layout, config.max_group)
    return Agreement(
        profile=profile,
        groups=groups,
        layout=layout,
        ports=config.ports or "single",
        udp_port=None if config.udp_port is None else check_port(config.udp_port),
        parts=parts,
    )


def _groups(
    channels: tuple[int, ...], profile: Profile, layout: Layout, max_group: int | None
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The channels of each group, and into how many packets its frames are divided."""
    if profile.codec != "opus" and layout == "bundle" and max_group is not None:
        samples = profile.frame_samples
        if samples is not None:
            width = SAMPLE_WIDTH[profile.codec]
            return plan_parts(channels, samples, width, max_group, MAX_MEDIA_PAYLOAD)
    groups = plan_groups(
        channels,
        profile.channel_bytes,
        layout,
        max_group,
        MAX_MEDIA_PAYLOAD,
        opus=not profile.is_pcm,
    )
    return groups, 1


def _bitrate(asked: int | None, offered: int) -> int:
    if asked is None:
        return offered
    if asked not in BITRATES and asked != offered:
        ladder = ", ".join(map(str, BITRATES))
        raise RefusedError("bad_bitrate", f"bitrate {asked} is none of {ladder}")
    return min(asked, offered)


def _channels(config: ClientConfig, offered: Collection[int]) -> tuple[int, ...]:
    wanted = config.wanted
    return tuple(sorted(offered if wanted is None else set(wanted).intersection(offered)))
