CREATE TABLE {outbox} (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- -1: not due yet.
    slot SMALLINT NOT NULL,
    address TEXT COLLATE "C" NOT NULL,
    okey BYTEA,
    head TEXT NOT NULL,
    data BYTEA NOT NULL,
    due_at BIGINT NOT NULL DEFAULT 0,
    attempts INT NOT NULL DEFAULT 0,
    last_error TEXT,
    created_at BIGINT NOT NULL
);
CREATE INDEX "{prefix}outbox_slot" ON {outbox} (slot, address, id);
CREATE INDEX "{prefix}outbox_due" ON {outbox} (due_at) WHERE slot = -1;
-- Rows come and go quickly. vacuum_truncate is off because its lock stops those who write.
ALTER TABLE {outbox} SET (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

CREATE TABLE {outbox_parked} (
    id BIGINT PRIMARY KEY,
    slot SMALLINT NOT NULL,
    address TEXT COLLATE "C" NOT NULL,
    okey BYTEA,
    head TEXT NOT NULL,
    data BYTEA NOT NULL,
    due_at BIGINT NOT NULL,
    attempts INT NOT NULL,
    last_error TEXT,
    created_at BIGINT NOT NULL,
    reason TEXT NOT NULL,
    holds_key BOOLEAN NOT NULL,
    parked_at BIGINT NOT NULL
);
CREATE INDEX "{prefix}outbox_parked_key" ON {outbox_parked} (address, okey) WHERE holds_key;

-- The keys that parked rows hold up.
CREATE TABLE {outbox_held} (
    address TEXT COLLATE "C" NOT NULL,
    okey BYTEA NOT NULL,
    PRIMARY KEY (address, okey)
);

CREATE TABLE {outbox_paused} (
    address TEXT COLLATE "C" PRIMARY KEY
);

CREATE VIEW {outbox_view} AS
SELECT id, slot, address, okey, head, octet_length(data) AS data_bytes, attempts, last_error,
    CASE WHEN due_at = 0 THEN NULL ELSE to_timestamp(due_at / 1000000.0) END AS due_at,
    to_timestamp(created_at / 1000000.0) AS created_at
FROM {outbox};

CREATE VIEW {outbox_parked_view} AS
SELECT id, slot, address, okey, head, octet_length(data) AS data_bytes, attempts, last_error, reason, holds_key,
    to_timestamp(created_at / 1000000.0) AS created_at,
    to_timestamp(parked_at / 1000000.0) AS parked_at
FROM {outbox_parked};
