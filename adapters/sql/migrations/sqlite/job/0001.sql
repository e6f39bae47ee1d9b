-- The payload stands last: what is in front of it is then read without it.
CREATE TABLE {job} (
    -- AUTOINCREMENT, or ids would begin anew once the table is empty.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    -- 0 available, 1 scheduled, 2 running.
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    run_at INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    -- The key is free again once the row is gone, whatever has become of its process.
    unique_key BLOB UNIQUE,
    -- 0 until it is started, 1 until it is done; NULL for a key that is in job_unique.
    unique_until INTEGER,
    schedule TEXT,
    locked_by BLOB,
    locked_until INTEGER,
    -- For how long it was locked.
    term INTEGER,
    cancelled INTEGER NOT NULL DEFAULT 0,
    progress INTEGER,
    note TEXT,
    last_error TEXT,
    created_at INTEGER NOT NULL,
    head TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX main."{prefix}job_fetch" ON "{prefix}job" (queue, priority, run_at, id) WHERE state = 0;
CREATE INDEX main."{prefix}job_due" ON "{prefix}job" (run_at) WHERE state = 1;
CREATE INDEX main."{prefix}job_lease" ON "{prefix}job" (locked_until) WHERE state = 2;

CREATE TABLE {job_done} (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    -- 0 completed, 1 discarded, 2 cancelled.
    outcome INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    run_at INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    -- For a retry, which takes the key again.
    unique_key BLOB,
    unique_until INTEGER,
    schedule TEXT,
    progress INTEGER,
    note TEXT,
    last_error TEXT,
    result TEXT,
    created_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    head TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX main."{prefix}job_done_finished" ON "{prefix}job_done" (outcome, finished_at);

-- Keys that are taken for a time, whatever becomes of their job.
CREATE TABLE {job_unique} (
    key BLOB PRIMARY KEY,
    until_at INTEGER NOT NULL,
    job INTEGER NOT NULL
);
CREATE INDEX main."{prefix}job_unique_until" ON "{prefix}job_unique" (until_at);

-- A queue has a row once it was paused.
CREATE TABLE {job_queue} (
    queue TEXT NOT NULL PRIMARY KEY,
    paused INTEGER NOT NULL
);

CREATE TABLE {job_schedule} (
    name TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    hash TEXT NOT NULL,
    spec TEXT NOT NULL,
    zone TEXT NOT NULL,
    kind TEXT NOT NULL,
    queue TEXT NOT NULL,
    missed TEXT NOT NULL,
    overlap TEXT NOT NULL,
    next_at INTEGER,
    last_at INTEGER,
    paused INTEGER NOT NULL,
    pending TEXT NOT NULL,
    replaced TEXT NOT NULL,
    last_job INTEGER
);

CREATE VIEW {job_view} AS
SELECT id, queue, kind, CASE state WHEN 0 THEN 'available' WHEN 1 THEN 'scheduled' ELSE 'running' END AS state,
    priority, attempt, max_attempts, schedule, progress, note, cancelled <> 0 AS cancelled, last_error, head,
    length(data) AS data_bytes, strftime('%Y-%m-%d %H:%M:%f', created_at / 1000000.0, 'unixepoch') AS created_at,
    strftime('%Y-%m-%d %H:%M:%f', run_at / 1000000.0, 'unixepoch') AS run_at, strftime('%Y-%m-%d %H:%M:%f', locked_until / 1000000.0, 'unixepoch') AS locked_until
FROM {job};

CREATE VIEW {job_done_view} AS
SELECT id, queue, kind, CASE outcome WHEN 0 THEN 'completed' WHEN 2 THEN 'cancelled' ELSE 'discarded' END AS outcome,
    priority, attempt, max_attempts, schedule, progress, note, last_error, result, head,
    length(data) AS data_bytes, strftime('%Y-%m-%d %H:%M:%f', created_at / 1000000.0, 'unixepoch') AS created_at,
    strftime('%Y-%m-%d %H:%M:%f', finished_at / 1000000.0, 'unixepoch') AS finished_at
FROM {job_done};
