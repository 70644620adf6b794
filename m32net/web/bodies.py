"""The bodies of the REST interface as msgspec structs: what is taken, what is answered.

The OpenAPI document is made from these, and every decode checks against them.  Exact forms:
STR-35 to STR-38.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from m32net.interfaces import BlockedAddress, ConnectionStatus, ListenerStatus
from m32net.settings import (
    MAX_DROP_MS,
    AudioConfig,
    AudioConfigChange,
    Channel,
    EventRow,
    Layout,
    QualityRow,
    ServerSettings,
)
from m32net.streaming.profile import FRAME_US, MAX_BITRATE, MIN_BITRATE, SAMPLE_RATES, Codec

MAX_MESSAGE_FIELDS = 20

State = Literal["healthy", "degraded", "unhealthy"]
ClientId = Annotated[str, Meta(min_length=1, max_length=64)]


class ErrorDetail(Struct, frozen=True):
    """:ivar code: for programs; ``message`` is for people."""

    code: str
    message: str


class ErrorBody(Struct, frozen=True):
    error: ErrorDetail


class Done(Struct, frozen=True):
    status: Literal["ok"] = "ok"


# -- STR-35 ----------------------------------------------------------------------------------------


class ServerInfo(Struct, frozen=True):
    """:ivar time_ms: Unix time in milliseconds."""

    name: str
    version: str
    uptime_s: float
    role: str
    time_ms: int


class RtpInfo(Struct, frozen=True):
    """:ivar port: UDP port audio is sent from."""

    port: int


class QualitySummary(Struct, frozen=True):
    """All listeners together: how many are rated how, and means of those that report."""

    good: int
    fair: int
    poor: int
    unknown: int
    loss: float | None
    jitter_ms: float | None
    latency_ms: float | None


class AudioMeta(Struct, frozen=True):
    """:ivar bitrate: bits per second one channel takes, as in force at this sample-rate step.

    :ivar pin: whether listeners must name one in their ``hello``.
    """

    server: ServerInfo
    sample_rate: int
    codec: Codec
    bitrate: int
    frame_ms: float
    channels: tuple[Channel, ...]
    rtp: RtpInfo
    ws: str
    listeners: int
    quality: QualitySummary
    pin: bool


# -- STR-36, STR-37, STR-38 ------------------------------------------------------------------------


class RequestAudio(Struct, frozen=True):
    """:ivar rtp: where the audio comes from, and what the registry says of it."""

    status: Literal["ok"]
    client_id: str
    udp_port: int
    rtp: dict[str, Any]


Count = Annotated[int, Meta(ge=0, le=2**53)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Millis = Annotated[float, Meta(ge=0, le=600_000)]
SignedMillis = Annotated[float, Meta(ge=-600_000, le=600_000)]


class QosFigures(Struct, frozen=True):
    """What a listener measured since its last report; it leaves out what it doesn't know.

    :ivar packet_loss_rate: 0 to 1; without it, it follows from the two counts.
    """

    packets_received: Count | None = None
    packets_expected: Count | None = None
    packet_loss_rate: Fraction | None = None
    jitter_ms: Millis | None = None
    latency_ms: SignedMillis | None = None
    bandwidth_mbps: Annotated[float, Meta(ge=0, le=1e6)] | None = None

    def loss(self) -> float | None:
        if self.packet_loss_rate is not None:
            return self.packet_loss_rate
        if self.packets_received is None or not self.packets_expected:
            return None
        return max(0.0, 1 - self.packets_received / self.packets_expected)


class QosMetrics(Struct, frozen=True):
    client_id: ClientId
    metrics: QosFigures
    timestamp: datetime | None = None


class ServerMetrics(Struct, frozen=True):
    """:ivar server_cpu_usage: per cent of one core; ``server_memory_usage``: MB."""

    total_clients: int
    total_packets_sent: int
    server_cpu_usage: float
    server_memory_usage: float


class QosAnswer(Struct, frozen=True):
    status: Literal["ok"]
    server_metrics: ServerMetrics


class JitterThresholds(Struct, frozen=True):
    """Milliseconds; 0 < interpolate < drop <= 5000."""

    interpolate: Annotated[int, Meta(ge=1, le=MAX_DROP_MS)]
    drop: Annotated[int, Meta(ge=1, le=MAX_DROP_MS)]


# -- health ----------------------------------------------------------------------------------------


class RoomHealth(Struct, frozen=True):
    state: State
    reasons: tuple[str, ...]
    details: dict[str, Any]


class HealthBody(Struct, frozen=True):
    """:ivar status: the worst state of any room."""

    status: State
    reasons: tuple[str, ...]
    uptime_s: float
    version: str
    rooms: dict[str, RoomHealth]


# -- the engineer's --------------------------------------------------------------------------------


class Login(Struct, frozen=True):
    password: Annotated[str, Meta(max_length=1024)]
    user: Annotated[str, Meta(min_length=1, max_length=64)] = "admin"


class SessionBody(Struct, frozen=True):
    """:ivar expires_s: seconds it lasts after its last use."""

    user: str
    expires_s: float
    token: str | UnsetType = UNSET


class NewPassword(Struct, frozen=True):
    old: Annotated[str, Meta(max_length=1024)]
    password: Annotated[str, Meta(min_length=8, max_length=1024)]


class AudioConfigBody(Struct, frozen=True):
    """:ivar bitrate: Opus bits per second of a channel at 48 kHz, also while PCM is chosen.

    :ivar bitrate_in_force: what a channel takes now.
    :ivar bandwidth: of Opus at this step; None for PCM.
    """

    sample_rate: int
    codec: Codec
    bitrate: int
    frame_ms: float
    layout: Layout
    bitrate_in_force: int
    bandwidth: Literal["fullband", "superwideband"] | None

    @classmethod
    def of(cls, config: AudioConfig) -> AudioConfigBody:
        profile = config.profile
        return cls(
            config.sample_rate,
            config.codec,
            config.bitrate,
            config.frame_ms,
            config.layout,
            config.bitrate_in_force,
            None if profile.is_pcm else profile.opus_bandwidth,
        )


def _one_of(values: Iterable[float]) -> Meta:
    """For the description alone: what is refused is said by the settings themselves."""
    return Meta(extra_json_schema={"enum": list(values)})


class AudioConfigUpdate(Struct, frozen=True):
    """The fields that are to change; ``reason`` is told to the listeners."""

    sample_rate: Annotated[int, _one_of(SAMPLE_RATES)] | UnsetType = UNSET
    codec: Codec | UnsetType = UNSET
    bitrate: (
        Annotated[int, Meta(extra_json_schema={"minimum": MIN_BITRATE, "maximum": MAX_BITRATE})]
        | UnsetType
    ) = UNSET
    frame_ms: (
        Annotated[float, Meta(ge=0, le=1000), _one_of(us / 1000 for us in FRAME_US)] | UnsetType
    ) = UNSET
    layout: Layout | UnsetType = UNSET
    reason: Annotated[str, Meta(max_length=200)] = ""

    def change(self) -> AudioConfigChange:
        frame_us: int | UnsetType = UNSET
        if not isinstance(self.frame_ms, UnsetType):
            frame_us = round(self.frame_ms * 1000)
        return AudioConfigChange(self.sample_rate, self.codec, self.bitrate, frame_us, self.layout)


SettingsUpdate: type[Struct] = msgspec.defstruct(
    "SettingsUpdate",
    [
        (field.name, field.type | UnsetType, UNSET)
        for field in msgspec.structs.fields(ServerSettings)
    ],
    frozen=True,
    forbid_unknown_fields=True,
    namespace={"__doc__": "The settings that are to change."},
)


class ListenersBody(Struct, frozen=True):
    """:ivar refused: turned away since the start because the server was full (STR-6)."""

    listeners: tuple[ListenerStatus, ...]
    count: int
    max: int
    refused: int


class QualityBody(Struct, frozen=True):
    quality: tuple[QualityRow, ...]


class EventsBody(Struct, frozen=True):
    """What happened, newest first."""

    events: tuple[EventRow, ...]


class ConnectionsBody(Struct, frozen=True):
    """TCP connections as the kernel sees them, WebSockets included."""

    connections: tuple[ConnectionStatus, ...]
    count: int


class BlockedBody(Struct, frozen=True):
    """The addresses that are shut out, and why."""

    blocked: tuple[BlockedAddress, ...]


class Message(Struct, frozen=True):
    """Told to every listener; further fields, plain values, are passed on with it.

    :ivar type: ``custom_message`` is shown; ``reconnect`` makes listeners connect anew (STR-31).
    """

    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    type: Literal["custom_message", "reconnect"] = "custom_message"


DescribedMessage = Annotated[
    Message,
    Meta(
        extra_json_schema={
            "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
            "maxProperties": 2 + MAX_MESSAGE_FIELDS,
        }
    ),
]
"""For the description: what a further field may hold."""


class MessageAnswer(Struct, frozen=True):
    """:ivar listeners: how many it was sent to."""

    status: Literal["ok"]
    listeners: int


class ClusterNode(Struct, frozen=True):
    node_id: str
    name: str
    role: str
    url: str


class ClusterBody(Struct, frozen=True):
    """:ivar state: ``single``: this server knows of no other."""

    state: Literal["single"]
    node_id: str
    role: str
    nodes: tuple[ClusterNode, ...]


class ClockBody(Struct, frozen=True):
    """:ivar state: ``unsynchronised``: the system's clock, followed by nobody here.

    :ivar time_ms: Unix time in milliseconds.
    """

    state: Literal["unsynchronised"]
    source: Literal["system"]
    time_ms: float
