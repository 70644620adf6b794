"""What a listener says, as values.  Their JSON is in :mod:`protocols.control.messages`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from protocols.control.vocabulary import (
    FRAME_MS,
    MAX_CHANNELS,
    MAX_NAME,
    MAX_PIN,
    METER_INTERVAL_MS,
    SAMPLE_RATES,
    ChannelId,
    ClientId,
    Codec,
    Compression,
    Layout,
    ListenerPort,
    Millis,
    Name,
    Ports,
    Token,
)


def _one_of(name: str, value: float | None, choices: tuple[float, ...]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} {value:g} is not one of {', '.join(map(str, choices))}")


class Hello(Struct, frozen=True, omit_defaults=True):
    """Who is there.

    :ivar client_id: as in an earlier :class:`Welcome`, to come back as the same listener.
    :ivar name: of the device, for the engineer's page.
    :ivar token: session token of an earlier :class:`Welcome`.
    :ivar pin: what the engineer tells the band, where the server asks for one.
    """

    client_id: ClientId | None = None
    name: Name | None = None
    token: Token | None = None
    pin: Annotated[str, Meta(max_length=MAX_PIN)] | None = None


class ChannelRequest(Struct, frozen=True, omit_defaults=True):
    """One channel a listener maps; a muted one is not sent (STR-30)."""

    id: ChannelId
    name: Name | None = None
    mute: bool = False


class ClientConfig(Struct, frozen=True, omit_defaults=True):
    """What a listener wants to hear, and how.  What is left out is the server's choice.

    :ivar channels: none listed means all the server sends.
    :ivar sample_rate: Hz, one of :data:`SAMPLE_RATES`.
    :ivar compression: ``none`` is L16.
    :ivar udp_port: where RTP is to arrive; may come later through ``/request-audio``.
    :ivar frame_ms: one of :data:`FRAME_MS`.
    :ivar max_group: channels in a group at most; of PCM in a bundle also how many are wanted, even
        if the frame then takes several packets.
    :ivar ports: ``single``, all groups to one port; ``consecutive``, to port, +2, +4 and so on.
    :ivar bitrate: Opus bits per second and channel; RFC 6716's range, a server may have a smaller.
    """

    channels: Annotated[tuple[ChannelRequest, ...], Meta(max_length=MAX_CHANNELS)] = ()
    sample_rate: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    compression: Compression | None = None
    layout: Layout | None = None
    udp_port: ListenerPort | None = None
    frame_ms: float | None = None
    max_group: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)] | None = None
    ports: Ports | None = None
    bitrate: Annotated[int, Meta(ge=6_000, le=510_000)] | None = None

    def __post_init__(self) -> None:
        _one_of("sample_rate", self.sample_rate, SAMPLE_RATES)
        _one_of("frame_ms", self.frame_ms, FRAME_MS)
        seen: set[int] = set()
        for channel in self.channels:
            if channel.id in seen:
                raise ValueError(f"channel {channel.id} is listed twice")
            seen.add(channel.id)

    @property
    def codec(self) -> Codec | None:
        """``compression`` by its name in RTP; None if the listener left it to the server."""
        return "L16" if self.compression == "none" else self.compression

    @property
    def wanted(self) -> tuple[int, ...] | None:
        """Ids of the channels to send, in the listener's order; None means all there are."""
        if not self.channels:
            return None
        return tuple(channel.id for channel in self.channels if not channel.mute)


class Heartbeat(Struct, frozen=True, tag_field="type", tag="heartbeat", omit_defaults=True):
    """I am still here.  The time stamp is for people reading traces."""

    timestamp: Annotated[str, Meta(max_length=64)] | int | float | None = None


class NtpRequest(Struct, frozen=True, tag_field="type", tag="ntp_request", omit_defaults=True):
    """What time is it? (CLK-1)

    :ivar t1: client's clock in ms; given back unchanged.
    :ivar sub_ms: the client wants decimals in the answer, though this ``t1`` has none.
    """

    t1: Millis
    sub_ms: bool = False

    @property
    def decimals(self) -> bool:
        """Whether the answer has sub-milliseconds: where both sides have them."""
        return self.sub_ms or isinstance(self.t1, float)


class MetersRequest(Struct, frozen=True, omit_defaults=True):
    """I want to see levels (:class:`Meters`), at most every so many ms; 0: no more."""

    interval_ms: int

    def __post_init__(self) -> None:
        least, most = METER_INTERVAL_MS
        if self.interval_ms != 0 and not least <= self.interval_ms <= most:
            raise ValueError(f"interval_ms {self.interval_ms} is neither 0 nor {least} to {most}")


class Bye(Struct, frozen=True, omit_defaults=True):
    """The listener leaves; its streams end at once.

    :ivar reason: for people; ``migrated`` says that it moved to the server it was sent to.
    """

    reason: Annotated[str, Meta(max_length=MAX_NAME)] | None = None
