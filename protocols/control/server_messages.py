"""What a server says, as values.  Their JSON is in :mod:`protocols.control.messages`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from protocols.control.vocabulary import (
    MAX_CHANNELS,
    METER_FLOOR_DB,
    MIGRATION,
    ChannelId,
    ClientId,
    Codec,
    Layout,
    Millis,
    Port,
    Role,
    Token,
)


class ServerInfo(Struct, frozen=True):
    """The server, as in ``/audio-meta``."""

    name: str = ""
    version: str = ""
    role: Role = "master"


class Welcome(Struct, frozen=True):
    """Answer to :class:`Hello` (or to the first :class:`ClientConfig` without one).

    :ivar heartbeat_s: how often the server wants to hear from the listener.
    """

    client_id: ClientId
    session_token: Token = ""
    server: ServerInfo = ServerInfo()
    heartbeat_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0


class StreamGroup(Struct, frozen=True):
    """One RTP stream: the channels interleaved in its packets, in this order."""

    ssrc: Annotated[int, Meta(ge=0, lt=2**32)]
    payload_type: Annotated[int, Meta(ge=0, le=127)]
    udp_port: Port
    channels: Annotated[tuple[ChannelId, ...], Meta(min_length=1, max_length=MAX_CHANNELS)]


class Stream(Struct, frozen=True):
    """What flows from now on; no groups: nothing.

    :ivar sample_rate: the step in Hz; with Opus an encoder setting (RFC 7587 section 4.1).
    :ivar clock_rate: units per second of the RTP time stamps.
    :ivar frame_ms: duration of each packet.
    :ivar rtp_port: the server's port, where datagrams come from.
    :ivar udp_port: the listener's port, where the first group goes to.
    :ivar sdp: path of the session description on the server's HTTP port.
    """

    client_id: ClientId
    codec: Codec
    sample_rate: Annotated[int, Meta(ge=8_000, le=192_000)]
    clock_rate: Annotated[int, Meta(ge=8_000, le=192_000)]
    frame_ms: Annotated[float, Meta(gt=0, le=120)]
    layout: Layout
    rtp_port: Port
    udp_port: Port
    sdp: Annotated[str, Meta(max_length=1024)]
    groups: Annotated[tuple[StreamGroup, ...], Meta(max_length=MAX_CHANNELS)] = ()


class Migration(Struct, frozen=True):
    """Another server takes over (CON-51).

    :ivar new_host: its name or address, with the port of its HTTP and WebSocket.
    :ivar migrate_after: seconds from now until this listener is to move.
    """

    new_host: Annotated[str, Meta(min_length=1, max_length=253)]
    new_port: Port
    migrate_after: Annotated[float, Meta(ge=0, le=86_400)] = 0.0

    def event(self, reason: str) -> Event:
        """The message that says so."""
        return Event(MIGRATION, reason, fields=msgspec.structs.asdict(self))


class Event(Struct, frozen=True):
    """Something the listener should act on or its user should read (STR-31).

    :ivar type: one of :data:`EVENT_TYPES`; a later server may have more.
    :ivar reason: a sentence for people.
    :ivar new_sample_rate: Hz, with ``config_changed``.
    :ivar reconnect_after: seconds, with ``reconnect`` and ``server_shutdown``.
    :ivar fields: any others, beside these in the payload; of ``serverMigration`` ``new_host``,
        ``new_port`` and ``migrate_after`` in seconds (:attr:`migration`).
    """

    type: Annotated[str, Meta(max_length=64)]
    reason: str = ""
    new_sample_rate: int | None = None
    reconnect_after: float | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def migration(self) -> Migration | None:
        """Where to go and when; None if this is no ``serverMigration`` one could follow."""
        if self.type != MIGRATION:
            return None
        try:
            return msgspec.convert(self.fields, Migration)
        except msgspec.ValidationError:
            return None


class Meters(Struct, frozen=True, omit_defaults=True):
    """Peak levels since the last such message.

    :ivar peak_db: whole dB relative to full scale.
    :ivar channels: whose levels these are; None: those of all channels, ids 1, 2 and so on.
        Those not listed have not changed.
    """

    peak_db: Annotated[
        tuple[Annotated[int, Meta(ge=METER_FLOOR_DB, le=0)], ...], Meta(max_length=MAX_CHANNELS)
    ]
    channels: Annotated[tuple[ChannelId, ...], Meta(max_length=MAX_CHANNELS)] | None = None

    def __post_init__(self) -> None:
        if self.channels is not None and len(self.channels) != len(self.peak_db):
            raise ValueError(f"{len(self.peak_db)} levels for {len(self.channels)} channels")


class NtpResponse(Struct, frozen=True, tag_field="type", tag="ntp_response"):
    """Answer to :class:`NtpRequest`: its ``t1``, then when it came and when this left, in ms."""

    t1: Millis
    t2: Millis
    t3: Millis


class Error(Struct, frozen=True):
    """What was wrong with a message or a request; the session goes on unless it is closed too."""

    code: Annotated[str, Meta(max_length=64)]
    message: str = ""
