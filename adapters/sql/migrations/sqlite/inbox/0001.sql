CREATE TABLE {consumer} (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL
);

-- The hour of the message's own time stands in front of the key, so that marks are written side by side.
CREATE TABLE {inbox} (
    consumer INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    key BLOB NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (consumer, hour, key)
) WITHOUT ROWID;

-- Marks that were set in another hour than the message's: of messages without a time, of those that came late, and of
-- clocks that are off. The sweeper finds these by when they were set. The others need no second index: they were set in
-- the order of their hours.
CREATE INDEX main."{prefix}inbox_odd" ON "{prefix}inbox" (consumer, at) WHERE abs(hour - at / 3600000000) > 1;
