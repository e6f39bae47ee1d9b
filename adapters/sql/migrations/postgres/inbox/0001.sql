CREATE TABLE {consumer} (
    id INT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    source TEXT NOT NULL
);

-- The hour of the message's own time stands in front of the key, so that marks are written side by side.
CREATE TABLE {inbox} (
    consumer INT NOT NULL,
    hour INT NOT NULL,
    key BYTEA NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (consumer, hour, key)
);
ALTER TABLE {inbox} SET (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

-- Marks that were set in another hour than the message's: of messages without a time, of those that came late, and of
-- clocks that are off. The sweeper finds these by when they were set. The others need no second index: they were set in
-- the order of their hours.
CREATE INDEX "{prefix}inbox_odd" ON {inbox} (consumer, at) WHERE abs(hour - at / 3600000000) > 1;
