-- The last number that was drawn for a key. No index by its age: each enqueue would have to change it.
CREATE TABLE {sequence} (
    address TEXT COLLATE "C" NOT NULL,
    okey BYTEA NOT NULL,
    n BIGINT NOT NULL,
    used_at BIGINT NOT NULL,
    PRIMARY KEY (address, okey)
) WITH (fillfactor = 80);
ALTER TABLE {sequence} SET (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

-- How far each key of a consumer has come.
CREATE TABLE {sequence_progress} (
    consumer INT NOT NULL,
    -- Of the source and the ordering key.
    key BYTEA NOT NULL,
    source TEXT NOT NULL,
    okey BYTEA NOT NULL,
    -- The lowest number that came, and one above the highest.
    first_n BIGINT NOT NULL,
    next_n BIGINT NOT NULL,
    -- Those between them that did not, such as 3-5,9. NULL where nothing came.
    missing TEXT,
    -- What was followed before the producer's counter went back, and the like.
    aside TEXT NOT NULL DEFAULT '',
    -- Where it was last told that the key stands still; 0 if it does not.
    told_at BIGINT NOT NULL DEFAULT 0,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (consumer, key)
) WITH (fillfactor = 80);
ALTER TABLE {sequence_progress} SET (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);
CREATE INDEX "{prefix}sequence_gaps" ON {sequence_progress} (consumer, key) WHERE missing <> '';
