"""Words and bounds that the control messages of both ends share.  Values and types only."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from msgspec import Meta

MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""CON-2: one text frame, either way."""
MAX_CHANNELS: Final = 64
MAX_NAME: Final = 256
"""Characters (code points) in a name; its bytes are never changed."""
SAMPLE_RATES: Final = (48_000, 44_100, 32_000, 24_000)
FRAME_MS: Final = (2.5, 5.0, 10.0, 20.0)
COMPRESSIONS: Final = ("opus", "none", "L16", "L24")

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
EVENT_TYPES: Final = get_args(EventType)
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
