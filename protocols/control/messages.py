"""The control messages as values, and their JSON on the wire (STR, *WebSocket messages*).

:func:`decode_client` and :func:`decode_server` take one text frame and give one message or raise
:class:`MessageError`; :func:`encode` is their inverse.  Fields that are not known are ignored,
known ones are checked for type and bounds.  Who may say what when is for
:mod:`protocols.control.session`; nothing here remembers anything.  The messages themselves are in
:mod:`protocols.control.client_messages` and :mod:`protocols.control.server_messages`.

On the wire ``heartbeat``, ``ntp_request`` and ``ntp_response`` have their fields beside ``type``;
all others have them in an object ``payload``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from protocols.control.client_messages import (
    Bye,
    ChannelRequest,
    ClientConfig,
    Heartbeat,
    Hello,
    MetersRequest,
    NtpRequest,
)
from protocols.control.server_messages import (
    Error,
    Event,
    Meters,
    Migration,
    NtpResponse,
    ServerInfo,
    Stream,
    StreamGroup,
    Welcome,
)
from protocols.control.vocabulary import (
    COMPRESSIONS,
    EVENT_TYPES,
    FRAME_MS,
    MAX_CHANNELS,
    MAX_MESSAGE_BYTES,
    MAX_NAME,
    MAX_PIN,
    METER_FLOOR_DB,
    METER_INTERVAL_MS,
    MIGRATION,
    SAMPLE_RATES,
    ChannelId,
    ClientId,
    Codec,
    Compression,
    EventType,
    Layout,
    ListenerPort,
    Millis,
    Name,
    Port,
    Ports,
    Role,
    Token,
)
from protocols.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "COMPRESSIONS",
    "EVENT_TYPES",
    "FRAME_MS",
    "MAX_CHANNELS",
    "MAX_MESSAGE_BYTES",
    "MAX_NAME",
    "MAX_PIN",
    "METER_FLOOR_DB",
    "METER_INTERVAL_MS",
    "MIGRATION",
    "SAMPLE_RATES",
    "Bye",
    "ChannelId",
    "ChannelRequest",
    "ClientConfig",
    "ClientId",
    "ClientMessage",
    "Codec",
    "Compression",
    "Error",
    "Event",
    "EventType",
    "Heartbeat",
    "Hello",
    "Layout",
    "ListenerPort",
    "MessageError",
    "Meters",
    "MetersRequest",
    "Migration",
    "Millis",
    "Name",
    "NtpRequest",
    "NtpResponse",
    "Port",
    "Ports",
    "Role",
    "ServerInfo",
    "ServerMessage",
    "Stream",
    "StreamGroup",
    "Token",
    "Welcome",
    "decode_client",
    "decode_server",
    "encode",
]

_MAX_REASON: Final = 300  # characters of an error text: it may quote what the peer sent

ClientMessage = Hello | ClientConfig | Heartbeat | NtpRequest | MetersRequest | Bye
ServerMessage = Welcome | Stream | Event | Meters | NtpResponse | Error


class MessageError(RemoteProtocolError):
    """The peer's message cannot be taken.

    :ivar code: for programs: ``bad_message``, ``unknown_type`` or ``too_large``.
    :ivar message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code)
        self.message = message


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
