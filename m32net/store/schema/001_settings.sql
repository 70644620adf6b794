-- What the engineer sets up.  A channel, threshold or setting without a row has its default.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- The last row is in force; the others are its history.
CREATE TABLE audio_config (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    sample_rate INTEGER NOT NULL,             -- Hz, the active step
    codec       TEXT    NOT NULL,
    bitrate     INTEGER NOT NULL,             -- bit/s of one channel
    frame_us    INTEGER NOT NULL,
    layout      TEXT    NOT NULL,
    changed_at  REAL    NOT NULL,             -- Unix time, s
    who         TEXT    NOT NULL,
    reason      TEXT    NOT NULL
) STRICT;

CREATE TABLE channels (
    id         INTEGER PRIMARY KEY,
    name       TEXT,                          -- NULL: its default name
    color      TEXT    NOT NULL,
    position   INTEGER NOT NULL,
    enabled    INTEGER NOT NULL CHECK (enabled IN (0, 1))
) STRICT;

CREATE TABLE thresholds (
    only        INTEGER PRIMARY KEY CHECK (only = 1),
    interpolate INTEGER NOT NULL,             -- ms
    dropped     INTEGER NOT NULL              -- ms
) STRICT;

CREATE TABLE settings (
    key        TEXT PRIMARY KEY,
    value      TEXT NOT NULL,                 -- JSON
    changed_at REAL NOT NULL,
    who        TEXT NOT NULL
) STRICT;

CREATE TABLE users (
    name          TEXT PRIMARY KEY,
    password_hash TEXT NOT NULL,              -- argon2, with its parameters
    changed_at    REAL NOT NULL
) STRICT;
