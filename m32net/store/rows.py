"""The SQL of the settings tables: reading them all, and writing each.

Functions on a cursor, without transactions, threads or checks of values: the caller
(:mod:`m32net.store.service`) has those.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from m32net.settings import (
    SETTING_NAMES,
    AudioConfig,
    Channel,
    ServerSettings,
    Thresholds,
    changed_settings,
    default_channel,
)


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """A channel as stored.

    :ivar name: None where the engineer has not chosen one.
    """

    id: int
    name: str | None
    color: str
    order: int
    enabled: bool

    def channel(self, default_name: str | None) -> Channel:
        name = self.name or default_channel(self.id, default_name).name
        return Channel(self.id, name, self.color, self.order, self.enabled)


@dataclass(slots=True)
class Stored:
    """What the database holds at start-up.

    :ivar audio_config: None before the first change.
    :ivar channels: by id, only those that were ever changed.
    """

    node_id: str = ""
    audio_config: AudioConfig | None = None
    channels: dict[int, ChannelRow] = field(default_factory=dict)
    thresholds: Thresholds = field(default_factory=Thresholds)
    settings: ServerSettings = field(default_factory=ServerSettings)
    has_users: bool = False


def read_stored(connection: sqlite3.Connection) -> Stored:
    """All current values; the node's id is made if it has none yet."""
    with connection:
        connection.execute(
            "INSERT INTO meta VALUES ('node_id', ?) ON CONFLICT DO NOTHING", (uuid.uuid4().hex,)
        )
    stored = Stored()
    stored.node_id = connection.execute("SELECT value FROM meta WHERE key = 'node_id'").fetchone()[
        0
    ]
    for row in connection.execute(
        "SELECT sample_rate, codec, bitrate, frame_us, layout FROM audio_config"
        " ORDER BY id DESC LIMIT 1"
    ):
        stored.audio_config = AudioConfig(*row)
    for number, name, color, order, enabled in connection.execute(
        "SELECT id, name, color, position, enabled FROM channels"
    ):
        stored.channels[number] = ChannelRow(number, name, color, order, bool(enabled))
    for row in connection.execute("SELECT interpolate, dropped FROM thresholds"):
        stored.thresholds = Thresholds(*row)
    values = {
        key: msgspec.json.decode(value)
        for key, value in connection.execute("SELECT key, value FROM settings")
        if key in SETTING_NAMES
    }
    stored.settings = changed_settings(ServerSettings(), values)
    stored.has_users = connection.execute("SELECT 1 FROM users LIMIT 1").fetchone() is not None
    return stored


def add_audio_config(
    cursor: sqlite3.Cursor, config: AudioConfig, now: float, who: str, reason: str
) -> None:
    cursor.execute(
        "INSERT INTO audio_config (sample_rate, codec, bitrate, frame_us, layout,"
        " changed_at, who, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*msgspec.structs.astuple(config), now, who, reason),
    )


def put_channels(cursor: sqlite3.Cursor, rows: Iterable[ChannelRow]) -> None:
    cursor.executemany(
        "INSERT INTO channels (id, name, color, position, enabled) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name, color = excluded.color,"
        " position = excluded.position, enabled = excluded.enabled",
        [(row.id, row.name, row.color, row.order, row.enabled) for row in rows],
    )


def put_thresholds(cursor: sqlite3.Cursor, thresholds: Thresholds) -> None:
    cursor.execute(
        "INSERT INTO thresholds VALUES (1, ?, ?) ON CONFLICT DO UPDATE SET"
        " interpolate = excluded.interpolate, dropped = excluded.dropped",
        (thresholds.interpolate, thresholds.drop),
    )


def put_settings(
    cursor: sqlite3.Cursor, settings: ServerSettings, names: Iterable[str], now: float, who: str
) -> None:
    """Write the settings called ``names``."""
    cursor.executemany(
        "INSERT INTO settings VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
        " value = excluded.value, changed_at = excluded.changed_at, who = excluded.who",
        [
            (name, msgspec.json.encode(getattr(settings, name)).decode(), now, who)
            for name in sorted(names)
        ],
    )


def put_user(cursor: sqlite3.Cursor, user: str, password_hash: str, now: float) -> None:
    cursor.execute(
        "INSERT INTO users VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
        " password_hash = excluded.password_hash, changed_at = excluded.changed_at",
        (user, password_hash, now),
    )


def password_hash(cursor: sqlite3.Cursor, user: str) -> str | None:
    row = cursor.execute("SELECT password_hash FROM users WHERE name = ?", (user,)).fetchone()
    return None if row is None else str(row[0])
