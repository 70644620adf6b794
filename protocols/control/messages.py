"""The control messages as values, and their JSON on the wire (STR, *WebSocket messages*).

:func:`decode_client` and :func:`decode_server` take one text frame and give one message or raise
:class:`MessageError`; :func:`encode` is their inverse.  Fields that are not known are ignored,
known ones are checked for type and bounds.  Who may say what when is for
:mod:`protocols.control.session`; nothing here remembers anything.

On the wire ``heartbeat``, ``ntp_request`` and ``ntp_response`` have their fields beside ``type``;
all others have them in an object ``payload``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from protocols.errors import LocalProtocolError, RemoteProtocolError

MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""CON-2: one text frame, either way."""
MAX_CHANNELS: Final = 64
MAX_NAME: Final = 256
"""Characters (code points) in a name; its bytes are never changed."""
SAMPLE_RATES: Final = (48_000, 44_100, 32_000, 24_000)
FRAME_MS: Final = (2.5, 5.0, 10.0, 20.0)
COMPRESSIONS: Final = ("opus", "none", "L16", "L24")
_MAX_REASON: Final = 300  # characters of an error text: it may quote what the peer sent

Codec = Literal["opus", "L16", "L24"]
Compression = Literal["opus", "none", "L16", "L24"]
Layout = Literal["bundle", "mono"]
Ports = Literal["single", "consecutive"]
Role = str
"""``master``, ``slave`` or ``candidate``."""

EventType = Literal[
    "reconnect",
    "config_changed",
    "server_shutdown",
    "network_warning",
    "custom_message",
    "serverMigration",
    "migrationCancelled",
]
EVENT_TYPES: Final = (
    "reconnect",
    "config_changed",
    "server_shutdown",
    "network_warning",
    "custom_message",
    "serverMigration",
    "migrationCancelled",
)
"""STR-31 and CON-51."""
MAX_PIN: Final = 16
MIGRATION: Final = "serverMigration"
METER_FLOOR_DB: Final = -90
METER_INTERVAL_MS: Final = (50, 5000)

ChannelId = Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]
Name = Annotated[str, Meta(max_length=MAX_NAME)]
Token = Annotated[str, Meta(max_length=256)]
ClientId = Annotated[str, Meta(min_length=1, max_length=64)]
ListenerPort = Annotated[int, Meta(ge=1024, le=65_535)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Millis = Annotated[int, Meta(ge=-(10**15), le=10**15)] | Annotated[float, Meta(ge=-1e15, le=1e15)]
"""Milliseconds since 1970; decimals are sub-milliseconds, for those whose clock has them."""


class MessageError(RemoteProtocolError):
    """The peer's message cannot be taken.

    :ivar code: for programs: ``bad_message``, ``unknown_type`` or ``too_large``.
    :ivar message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code)
        self.message = message


def _one_of(name: str, value: float | None, choices: tuple[float, ...]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} {value:g} is not one of {', '.join(map(str, choices))}")


# -- what a listener says ------------------------------------------------------------------------


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


# -- what a server says --------------------------------------------------------------------------


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


ClientMessage = Hello | ClientConfig | Heartbeat | NtpRequest | MetersRequest | Bye
ServerMessage = Welcome | Stream | Event | Meters | NtpResponse | Error


# -- the wire ------------------------------------------------------------------------------------


class _HelloFrame(Struct, frozen=True, tag_field="type", tag="hello"):
    payload: Hello = Hello()


class _ClientConfigFrame(Struct, frozen=True, tag_field="type", tag="client_config"):
    payload: ClientConfig = ClientConfig()


class _MetersRequestFrame(Struct, frozen=True, tag_field="type", tag="meters"):
    payload: MetersRequest


class _ByeFrame(Struct, frozen=True, tag_field="type", tag="bye"):
    payload: Bye = Bye()


class _WelcomeFrame(Struct, frozen=True, tag_field="type", tag="welcome"):
    payload: Welcome


class _StreamFrame(Struct, frozen=True, tag_field="type", tag="stream"):
    payload: Stream


class _EventFrame(Struct, frozen=True, tag_field="type", tag="event", omit_defaults=True):
    """``event`` and ``data`` say a migration once more, in the words of CON-51."""

    payload: dict[str, Any]
    event: str | None = None
    data: dict[str, Any] | None = None


class _BareEventFrame(Struct, frozen=True):
    """As CON-51 has it alone."""

    event: str
    data: dict[str, Any]


class _MetersFrame(Struct, frozen=True, tag_field="type", tag="meters"):
    payload: Meters


class _ErrorFrame(Struct, frozen=True, tag_field="type", tag="error"):
    payload: Error


_EVENT_FIELDS: Final = frozenset({"type", "reason", "new_sample_rate", "reconnect_after"})


def _event_payload(event: Event) -> dict[str, Any]:
    clash = _EVENT_FIELDS & event.fields.keys()
    if clash:
        raise ValueError(f"fields must not repeat {', '.join(sorted(clash))}")
    payload: dict[str, Any] = {"type": event.type, "reason": event.reason}
    if event.new_sample_rate is not None:
        payload["new_sample_rate"] = event.new_sample_rate
    if event.reconnect_after is not None:
        payload["reconnect_after"] = event.reconnect_after
    return payload | event.fields


def _frame_of(event: Event) -> _EventFrame:
    payload = _event_payload(event)
    if event.type != MIGRATION:
        return _EventFrame(payload)
    return _EventFrame(payload, event.type, event.fields)


_FRAMES: Final[Mapping[type[Struct], Callable[[Any], Struct]]] = {
    Hello: _HelloFrame,
    ClientConfig: _ClientConfigFrame,
    MetersRequest: _MetersRequestFrame,
    Bye: _ByeFrame,
    Welcome: _WelcomeFrame,
    Stream: _StreamFrame,
    Meters: _MetersFrame,
    Error: _ErrorFrame,
    Event: _frame_of,
}
_CLIENT_TYPES: Final = ("hello", "client_config", "heartbeat", "ntp_request", "meters", "bye")
_SERVER_TYPES: Final = ("welcome", "stream", "event", "meters", "ntp_response", "error")

_CHOICES: Final = {
    "compression": COMPRESSIONS,
    "layout": ("bundle", "mono"),
    "ports": ("single", "consecutive"),
    "codec": ("opus", "L16", "L24"),
}

_encoder = msgspec.json.Encoder()
_client_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(
    _HelloFrame | _ClientConfigFrame | Heartbeat | NtpRequest | _MetersRequestFrame | _ByeFrame
)
_server_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(
    _WelcomeFrame | _StreamFrame | _EventFrame | _MetersFrame | NtpResponse | _ErrorFrame
)
_bare_decoder: Final = msgspec.json.Decoder(_BareEventFrame)


def decode_client(data: bytes | str) -> ClientMessage:
    """Read what a listener sent.

    :param data: one text frame.
    :raises MessageError: for everything that is not one of :data:`ClientMessage`.
    """
    frame = _decode(_client_decoder, data, _CLIENT_TYPES)
    message: ClientMessage = frame if isinstance(frame, Heartbeat | NtpRequest) else frame.payload
    return message


def decode_server(data: bytes | str) -> ServerMessage:
    """Read what a server sent.

    :param data: one text frame.
    :raises MessageError: for everything that is not one of :data:`ServerMessage`.
    """
    try:
        frame = _decode(_server_decoder, data, _SERVER_TYPES)
    except MessageError as error:
        bare = _bare_event(data) if error.code == "bad_message" else None
        if bare is None:
            raise
        return bare
    if isinstance(frame, NtpResponse):
        return frame
    if isinstance(frame, _EventFrame):
        return _event_of(frame.payload)
    message: ServerMessage = frame.payload
    return message


def encode(message: ClientMessage | ServerMessage) -> bytes:
    """The text frame for ``message``, UTF-8.

    :raises LocalProtocolError: what it holds is no JSON or longer than :data:`MAX_MESSAGE_BYTES`.
    """
    frame = _FRAMES.get(type(message))
    try:
        data = _encoder.encode(message if frame is None else frame(message))
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        kind = type(message).__name__
        raise LocalProtocolError(f"cannot write this {kind} as JSON: {error}") from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise LocalProtocolError(f"a {type(message).__name__} of {len(data)} bytes is too long")
    return data


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes | str, types: tuple[str, ...]) -> Any:
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(
            "too_large", f"message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are allowed"
        )
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        reason = str(error)
        if reason.startswith("Invalid value") and reason.endswith("`$.type`"):
            raise MessageError(
                "unknown_type", _short(f"{reason}; known are {', '.join(types)}")
            ) from None
        for name, choices in _CHOICES.items():
            if reason.startswith("Invalid enum value") and reason.endswith(f".{name}`"):
                reason = f"{name} is none of {', '.join(choices)}"
        raise MessageError("bad_message", _short(reason)) from None
    except RecursionError:
        raise MessageError("bad_message", "JSON is nested too deeply") from None
    except UnicodeError:
        raise MessageError("bad_message", "text is not valid UTF-8") from None
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise MessageError("bad_message", _short(str(error))) from None


def _short(reason: str) -> str:
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 1] + "…"


def _bare_event(data: bytes | str) -> Event | None:
    try:
        bare = _bare_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
        return None
    return _event_of({**bare.data, "type": bare.event})


def _event_of(payload: dict[str, Any]) -> Event:
    known = {name: payload[name] for name in _EVENT_FIELDS & payload.keys()}
    rest = {name: value for name, value in payload.items() if name not in _EVENT_FIELDS}
    try:
        return msgspec.convert({**known, "fields": rest}, Event)
    except msgspec.ValidationError as error:
        raise MessageError("bad_message", _short(f"{error} of the payload")) from None
