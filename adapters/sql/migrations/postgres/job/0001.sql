CREATE TABLE {job} (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    -- 0 available, 1 scheduled, 2 running.
    state SMALLINT NOT NULL,
    priority SMALLINT NOT NULL,
    run_at BIGINT NOT NULL,
    attempt INT NOT NULL DEFAULT 0,
    max_attempts INT NOT NULL,
    -- The key is free again once the row is gone, whatever has become of its process.
    unique_key BYTEA UNIQUE,
    -- 0 until it is started, 1 until it is done; NULL for a key that is in job_unique.
    unique_until SMALLINT,
    schedule TEXT COLLATE "C",
    locked_by BYTEA,
    locked_until BIGINT,
    -- For how long it was locked.
    term BIGINT,
    cancelled SMALLINT NOT NULL DEFAULT 0,
    progress SMALLINT,
    note TEXT,
    last_error TEXT,
    created_at BIGINT NOT NULL,
    head TEXT NOT NULL,
    data BYTEA NOT NULL
);
CREATE INDEX "{prefix}job_fetch" ON {job} (queue, priority, run_at, id) WHERE state = 0;
CREATE INDEX "{prefix}job_due" ON {job} (run_at) WHERE state = 1;
CREATE INDEX "{prefix}job_lease" ON {job} (locked_until) WHERE state = 2;
-- Rows come and go quickly. vacuum_truncate is off because its lock stops those who write.
ALTER TABLE {job} SET (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

CREATE TABLE {job_done} (
    id BIGINT PRIMARY KEY,
    queue TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    -- 0 completed, 1 discarded, 2 cancelled.
    outcome SMALLINT NOT NULL,
    priority SMALLINT NOT NULL,
    run_at BIGINT NOT NULL,
    attempt INT NOT NULL,
    max_attempts INT NOT NULL,
    -- For a retry, which takes the key again.
    unique_key BYTEA,
    unique_until SMALLINT,
    schedule TEXT COLLATE "C",
    progress SMALLINT,
    note TEXT,
    last_error TEXT,
    result TEXT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT NOT NULL,
    head TEXT NOT NULL,
    data BYTEA NOT NULL
);
CREATE INDEX "{prefix}job_done_finished" ON {job_done} (queue, outcome, finished_at);
ALTER TABLE {job_done} SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

-- Keys that are taken for a time, whatever becomes of their job.
CREATE TABLE {job_unique} (
    key BYTEA PRIMARY KEY,
    until_at BIGINT NOT NULL,
    -- For how long it was taken.
    span BIGINT NOT NULL,
    job BIGINT NOT NULL
);
CREATE INDEX "{prefix}job_unique_until" ON {job_unique} (until_at);

-- A queue has a row once it was paused.
CREATE TABLE {job_queue} (
    queue TEXT COLLATE "C" PRIMARY KEY,
    paused SMALLINT NOT NULL
);

CREATE TABLE {job_schedule} (
    name TEXT COLLATE "C" PRIMARY KEY,
    version BIGINT NOT NULL,
    hash TEXT NOT NULL,
    spec TEXT NOT NULL,
    zone TEXT NOT NULL,
    kind TEXT NOT NULL,
    queue TEXT NOT NULL,
    missed TEXT NOT NULL,
    overlap TEXT NOT NULL,
    next_at BIGINT,
    last_at BIGINT,
    paused SMALLINT NOT NULL,
    pending TEXT NOT NULL,
    replaced TEXT NOT NULL,
    last_job BIGINT
);

CREATE VIEW {job_view} AS
SELECT id, queue, kind, CASE state WHEN 0 THEN 'available' WHEN 1 THEN 'scheduled' ELSE 'running' END AS state,
    priority, attempt, max_attempts, schedule, progress, note, cancelled <> 0 AS cancelled, last_error, head,
    octet_length(data) AS data_bytes, to_timestamp(created_at / 1000000.0) AS created_at,
    to_timestamp(run_at / 1000000.0) AS run_at, to_timestamp(locked_until / 1000000.0) AS locked_until
FROM {job};

CREATE VIEW {job_done_view} AS
SELECT id, queue, kind, CASE outcome WHEN 0 THEN 'completed' WHEN 2 THEN 'cancelled' ELSE 'discarded' END AS outcome,
    priority, attempt, max_attempts, schedule, progress, note, last_error, result, head,
    octet_length(data) AS data_bytes, to_timestamp(created_at / 1000000.0) AS created_at,
    to_timestamp(finished_at / 1000000.0) AS finished_at
FROM {job_done};
