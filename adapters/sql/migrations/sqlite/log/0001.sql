-- One row: the last position. One transaction writes at a time, so events come in the order of commits.
CREATE TABLE {log} (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    head INTEGER NOT NULL
);
INSERT INTO {log} (id, head) VALUES (1, 0);

CREATE TABLE {log_stream} (
    stream TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    -- 0 open, 1 archived, 2 deleted.
    state INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE {log_event} (
    pos INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    version INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    written_at INTEGER NOT NULL,
    head TEXT NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (stream, version),
    UNIQUE (stream, event_id)
);

-- A cache: states as they were, which the events make again.
CREATE TABLE {log_snapshot} (
    stream TEXT NOT NULL,
    kind TEXT NOT NULL,
    schema_version INTEGER NOT NULL,
    version INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (stream, kind)
);

CREATE TABLE {log_subscription} (
    name TEXT NOT NULL PRIMARY KEY,
    -- The last event that was handled.
    pos INTEGER NOT NULL,
    -- Rises whenever somebody moves or stops it by hand.
    token INTEGER NOT NULL DEFAULT 0,
    -- Since when it stands still, and why; NULL while it runs.
    stopped_at INTEGER,
    stopped_why TEXT,
    -- The event that could not be handled.
    stopped_on INTEGER
) WITHOUT ROWID;
