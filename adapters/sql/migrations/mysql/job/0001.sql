-- All text is bytes, as in the outbox. MySQL has no index of some rows alone, so the state leads in each.
CREATE TABLE IF NOT EXISTS {job} (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    queue VARBINARY(256) NOT NULL,
    kind VARBINARY(256) NOT NULL,
    -- 0 available, 1 scheduled, 2 running.
    state TINYINT NOT NULL,
    priority SMALLINT NOT NULL,
    run_at BIGINT NOT NULL,
    attempt INT NOT NULL DEFAULT 0,
    max_attempts INT NOT NULL,
    -- The key is free again once the row is gone, whatever has become of its process.
    unique_key BINARY(16),
    -- 0 until it is started, 1 until it is done; NULL for a key that is in job_unique.
    unique_until TINYINT,
    schedule VARBINARY(256),
    locked_by BINARY(16),
    locked_until BIGINT,
    -- For how long it was locked.
    term BIGINT,
    cancelled TINYINT NOT NULL DEFAULT 0,
    progress SMALLINT,
    note BLOB,
    last_error BLOB,
    created_at BIGINT NOT NULL,
    head LONGBLOB NOT NULL,
    data LONGBLOB NOT NULL,
    UNIQUE KEY by_unique (unique_key),
    KEY by_fetch (queue, state, priority, run_at, id),
    KEY by_due (state, run_at),
    -- With the term, so that leases which end too far ahead are found in the index.
    KEY by_lease (state, locked_until, term)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {job_done} (
    id BIGINT NOT NULL PRIMARY KEY,
    queue VARBINARY(256) NOT NULL,
    kind VARBINARY(256) NOT NULL,
    -- 0 completed, 1 discarded, 2 cancelled.
    outcome TINYINT NOT NULL,
    priority SMALLINT NOT NULL,
    run_at BIGINT NOT NULL,
    attempt INT NOT NULL,
    max_attempts INT NOT NULL,
    -- For a retry, which takes the key again.
    unique_key BINARY(16),
    unique_until TINYINT,
    schedule VARBINARY(256),
    progress SMALLINT,
    note BLOB,
    last_error BLOB,
    result LONGBLOB,
    created_at BIGINT NOT NULL,
    finished_at BIGINT NOT NULL,
    head LONGBLOB NOT NULL,
    data LONGBLOB NOT NULL,
    KEY by_finished (outcome, finished_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- Keys that are taken for a time, whatever becomes of their job.
CREATE TABLE IF NOT EXISTS {job_unique} (
    `key` BINARY(16) NOT NULL PRIMARY KEY,
    until_at BIGINT NOT NULL,
    job BIGINT NOT NULL,
    KEY by_until (until_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- Whoever writes a job with a unique key locks the row with the first two bytes of the key until its transaction ends.
-- Two that wait for a key itself deadlock as soon as the one that holds it rolls back. Rows are made at their first use.
CREATE TABLE IF NOT EXISTS {job_turn} (
    id INT NOT NULL PRIMARY KEY
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- A queue has a row once it was paused.
CREATE TABLE IF NOT EXISTS {job_queue} (
    queue VARBINARY(256) NOT NULL PRIMARY KEY,
    paused TINYINT NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {job_schedule} (
    name VARBINARY(256) NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    hash LONGBLOB NOT NULL,
    spec LONGBLOB NOT NULL,
    zone LONGBLOB NOT NULL,
    kind LONGBLOB NOT NULL,
    queue LONGBLOB NOT NULL,
    missed LONGBLOB NOT NULL,
    overlap LONGBLOB NOT NULL,
    next_at BIGINT,
    last_at BIGINT,
    paused TINYINT NOT NULL,
    pending LONGBLOB NOT NULL,
    replaced LONGBLOB NOT NULL,
    last_job BIGINT
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE OR REPLACE VIEW {job_view} AS
SELECT id, CONVERT(queue USING utf8mb4) AS queue, CONVERT(kind USING utf8mb4) AS kind,
    CASE state WHEN 0 THEN 'available' WHEN 1 THEN 'scheduled' ELSE 'running' END AS state,
    priority, attempt, max_attempts, CONVERT(schedule USING utf8mb4) AS schedule, progress,
    CONVERT(note USING utf8mb4) AS note, cancelled <> 0 AS cancelled,
    CONVERT(last_error USING utf8mb4) AS last_error, CONVERT(head USING utf8mb4) AS head, LENGTH(data) AS data_bytes,
    TIMESTAMP('1970-01-01') + INTERVAL created_at MICROSECOND AS created_at,
    TIMESTAMP('1970-01-01') + INTERVAL run_at MICROSECOND AS run_at,
    TIMESTAMP('1970-01-01') + INTERVAL locked_until MICROSECOND AS locked_until
FROM {job};

CREATE OR REPLACE VIEW {job_done_view} AS
SELECT id, CONVERT(queue USING utf8mb4) AS queue, CONVERT(kind USING utf8mb4) AS kind,
    CASE outcome WHEN 0 THEN 'completed' WHEN 2 THEN 'cancelled' ELSE 'discarded' END AS outcome,
    priority, attempt, max_attempts, CONVERT(schedule USING utf8mb4) AS schedule, progress,
    CONVERT(note USING utf8mb4) AS note, CONVERT(last_error USING utf8mb4) AS last_error,
    CONVERT(result USING utf8mb4) AS result, CONVERT(head USING utf8mb4) AS head, LENGTH(data) AS data_bytes,
    TIMESTAMP('1970-01-01') + INTERVAL created_at MICROSECOND AS created_at,
    TIMESTAMP('1970-01-01') + INTERVAL finished_at MICROSECOND AS finished_at
FROM {job_done};
