-- The payload stands last: what is in front of it is then read without it.
CREATE TABLE {outbox} (
    -- AUTOINCREMENT, or ids would begin anew once the table is empty.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- -1: not due yet.
    slot INTEGER NOT NULL,
    address TEXT NOT NULL,
    okey BLOB,
    due_at INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    created_at INTEGER NOT NULL,
    head TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX main."{prefix}outbox_slot" ON "{prefix}outbox" (slot, address, id);
CREATE INDEX main."{prefix}outbox_due" ON "{prefix}outbox" (due_at) WHERE slot = -1;

CREATE TABLE {outbox_parked} (
    id INTEGER PRIMARY KEY,
    slot INTEGER NOT NULL,
    address TEXT NOT NULL,
    okey BLOB,
    due_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    last_error TEXT,
    created_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    holds_key INTEGER NOT NULL,
    parked_at INTEGER NOT NULL,
    head TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX main."{prefix}outbox_parked_key" ON "{prefix}outbox_parked" (address, okey) WHERE holds_key = 1;

-- The keys that parked rows hold up.
CREATE TABLE {outbox_held} (
    address TEXT NOT NULL,
    okey BLOB NOT NULL,
    PRIMARY KEY (address, okey)
) WITHOUT ROWID;

CREATE TABLE {outbox_paused} (
    address TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID;

CREATE VIEW {outbox_view} AS
SELECT id, slot, address, okey, head, length(data) AS data_bytes, attempts, last_error,
    CASE WHEN due_at = 0 THEN NULL ELSE strftime('%Y-%m-%d %H:%M:%f', due_at / 1000000.0, 'unixepoch') END AS due_at,
    strftime('%Y-%m-%d %H:%M:%f', created_at / 1000000.0, 'unixepoch') AS created_at
FROM {outbox};

CREATE VIEW {outbox_parked_view} AS
SELECT id, slot, address, okey, head, length(data) AS data_bytes, attempts, last_error, reason, holds_key,
    strftime('%Y-%m-%d %H:%M:%f', created_at / 1000000.0, 'unixepoch') AS created_at,
    strftime('%Y-%m-%d %H:%M:%f', parked_at / 1000000.0, 'unixepoch') AS parked_at
FROM {outbox_parked};
