-- One row: the last position. Whoever appends locks it until its transaction ends, so events come in the order of commits.
CREATE TABLE IF NOT EXISTS {log} (
    id SMALLINT NOT NULL PRIMARY KEY,
    head BIGINT NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
INSERT INTO {log} (id, head) VALUES (1, 0) ON DUPLICATE KEY UPDATE id = id;

CREATE TABLE IF NOT EXISTS {log_stream} (
    stream VARBINARY(256) NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    -- 0 open, 1 archived, 2 deleted.
    state SMALLINT NOT NULL DEFAULT 0
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {log_event} (
    pos BIGINT NOT NULL PRIMARY KEY,
    stream VARBINARY(256) NOT NULL,
    version BIGINT NOT NULL,
    event_id VARBINARY(256) NOT NULL,
    kind VARBINARY(256) NOT NULL,
    written_at BIGINT NOT NULL,
    head LONGBLOB NOT NULL,
    data LONGBLOB NOT NULL,
    UNIQUE KEY by_version (stream, version),
    UNIQUE KEY by_id (stream, event_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- A cache: states as they were, which the events make again.
CREATE TABLE IF NOT EXISTS {log_snapshot} (
    stream VARBINARY(256) NOT NULL,
    kind VARBINARY(128) NOT NULL,
    schema_version BIGINT NOT NULL,
    version BIGINT NOT NULL,
    data LONGBLOB NOT NULL,
    PRIMARY KEY (stream, kind)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {log_subscription} (
    name VARBINARY(128) NOT NULL PRIMARY KEY,
    -- The last event that was handled.
    pos BIGINT NOT NULL,
    -- Rises whenever somebody moves or stops it by hand.
    token BIGINT NOT NULL DEFAULT 0,
    -- Since when it stands still, and why; NULL while it runs.
    stopped_at BIGINT,
    stopped_why BLOB,
    -- The event that could not be handled.
    stopped_on BIGINT
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
