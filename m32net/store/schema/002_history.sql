-- What happened.  Both tables lose their oldest rows when they are full.

CREATE TABLE quality (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    at             REAL NOT NULL,             -- Unix time, s
    client_id      TEXT NOT NULL,
    name           TEXT NOT NULL,
    source         TEXT NOT NULL,             -- rtcp, qos or ntp
    loss           REAL,                      -- fraction, 0..1
    jitter_ms      REAL,
    latency_ms     REAL,
    bandwidth_mbps REAL
) STRICT;

CREATE INDEX quality_by_listener ON quality (client_id, at);
CREATE INDEX quality_by_time ON quality (at);

CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      REAL NOT NULL,
    kind    TEXT NOT NULL,
    message TEXT NOT NULL,
    details TEXT NOT NULL                     -- JSON object
) STRICT;
